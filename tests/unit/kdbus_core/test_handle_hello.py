"""HELLO: what it gives, what it refuses, and in which order."""

from __future__ import annotations

from errno import (
    EAGAIN,
    ECONNREFUSED,
    EEXIST,
    EFAULT,
    EINVAL,
    EMFILE,
    ENAMETOOLONG,
    ENOMEM,
    ENOSPC,
    EOPNOTSUPP,
    EPERM,
)

import pytest
from handle_world import (
    ACTIVATOR,
    EVERYTHING,
    MONITOR,
    NAME,
    OWNER,
    POLICY_HOLDER,
    POOL_SIZE,
    ROOT,
    STRANGER,
    Client,
    HandleWorld,
    access_item,
    build_command,
    name_item,
    refused,
)

from kdbus_core.abi import (
    ATTACH_ALL,
    MATCH_ANY,
    MAX_CONNECTIONS_PER_USER,
    MAX_POOL_SIZE,
    NEGOTIATE,
    PAGE_SIZE,
    UNSET_ID,
    AccessLevel,
    AccessType,
    Command,
    HelloFlag,
    ItemType,
    MakeFlag,
)
from kdbus_core.handle import Handle, HandleState
from kdbus_core.items import BLOOM_PARAMETER, build_item, build_numbers_item, build_string_item, iterate_items
from kdbus_core.metadata import Creds, Pids, Snapshot
from kdbus_core.pool import CHUNK_SIZE, LazyMemory

CREDS = build_numbers_item(ItemType.CREDS, *[2000] * 8)
PIDS = build_numbers_item(ItemType.PIDS, 7, 8, 0)
BAD_CREDS = build_numbers_item(ItemType.CREDS, *[1 << 40] * 8)
SECLABEL = build_string_item(ItemType.SECLABEL, "label")
AUXGROUPS = build_numbers_item(ItemType.AUXGROUPS, 5, 6)
BAD_ACCESS = access_item(AccessType.USER, AccessLevel.SEE, 1 << 40)


def connection_info(client: Client, *, id: int = 0, name: str | None = None) -> dict[int, bytes]:
    """The items of what is known of a connection."""
    items = [] if name is None else [name_item(name)]
    _, _, offset, size = client.run(Command.CONN_INFO, id, EVERYTHING, items=items).fields
    record = client.read_pool(offset, size)
    client.free(offset)
    return {item.type: item.payload for item in iterate_items(record, 24)}


# What it gives


def test_hello_gives_an_id_the_bus_and_a_slice_with_its_bloom_parameters() -> None:
    world = HandleWorld(access=MakeFlag.ACCESS_WORLD | MakeFlag.FINAL_METADATA)
    client = world.open()
    _, _, bus_flags, id, pool_size, offset, size, id128 = client.run(
        Command.HELLO, 1, 2, 3, 4, POOL_SIZE, EVERYTHING, EVERYTHING, b"garbage"
    ).fields
    assert (bus_flags, id, pool_size) == (6, 2, POOL_SIZE)
    assert id128 == world.bus.id128
    assert (offset, size) == (0, 32)
    assert [(item.type, item.payload) for item in iterate_items(client.read_pool(offset, size), 0)] == [
        (ItemType.BLOOM_PARAMETER, BLOOM_PARAMETER.pack(64, 1))
    ]
    client.free(offset)
    assert client.busy == 0


def test_ids_come_from_the_domain_and_a_refusal_before_the_id_burns_none() -> None:
    world = HandleWorld()
    assert world.connect().id == 2
    with refused(EINVAL):
        world.open().hello(pool_size=1)
    assert world.connect().id == 3


def test_a_handle_becomes_connected_once() -> None:
    client = HandleWorld().open()
    with refused(EINVAL):
        client.hello(pool_size=0)
    assert client.is_in(HandleState.NONE)
    client.hello()
    assert client.is_in(HandleState.CONNECTED)


def test_negotiation_connects_nobody() -> None:
    world = HandleWorld()
    client = world.open()
    client.hello(flags=NEGOTIATE | ACTIVATOR, pool_size=0)
    assert client.is_in(HandleState.NONE)
    assert not world.bus.connections


def test_masks_flags_and_description_are_those_of_hello() -> None:
    world = HandleWorld()
    client = world.connect(
        flags=HelloFlag.ACCEPT_FD,
        attach_send=EVERYTHING,
        attach_recv=5,
        items=[build_string_item(ItemType.CONN_DESCRIPTION, "this-is-my-name")],
    )
    connection = client.handle.connection
    assert connection is not None
    assert (connection.attach_send, connection.attach_recv) == (ATTACH_ALL, 5)
    assert (connection.flags, connection.description) == (HelloFlag.ACCEPT_FD, "this-is-my-name")
    assert connection.process is OWNER


@pytest.mark.parametrize("kind", ["ordinary", "monitor", "activator", "policy holder"])
def test_a_connection_is_of_the_kind_that_was_asked_for(kind: str) -> None:
    connection = HandleWorld().connect_kind(kind).handle.connection
    assert connection is not None
    kinds = {
        "ordinary": connection.is_ordinary,
        "monitor": connection.is_monitor,
        "activator": connection.is_activator,
        "policy holder": connection.is_policy_holder,
    }
    assert [name for name, is_so in kinds.items() if is_so] == [kind]


def test_an_activator_offers_its_name() -> None:
    world = HandleWorld()
    activator = world.connect(flags=ACTIVATOR, items=[name_item(NAME)])
    holder = world.bus.names.entry(NAME)
    assert holder is not None
    assert holder.activator is not None
    assert holder.activator.connection is activator.handle.connection


@pytest.mark.parametrize("flags", [ACTIVATOR, POLICY_HOLDER])
def test_activators_and_holders_bring_a_policy(flags: HelloFlag) -> None:
    world = HandleWorld()
    access = access_item(AccessType.USER, AccessLevel.OWN, 2000)
    holder = world.connect(flags=flags, items=[name_item(NAME), access])
    stranger = world.connect(STRANGER)
    stranger.run(Command.NAME_ACQUIRE, items=[name_item(NAME)])
    stranger.run(Command.NAME_RELEASE, items=[name_item(NAME)])
    holder.handle.close()
    with refused(EPERM):
        stranger.run(Command.NAME_ACQUIRE, items=[name_item(NAME)])


def test_policies_of_ordinary_connections_and_monitors_are_ignored_whatever_is_in_them() -> None:
    world = HandleWorld()
    world.connect(STRANGER, items=[BAD_ACCESS, access_item(99, 99)])
    world.connect(flags=MONITOR, items=[BAD_ACCESS])
    assert len(world.bus.policy) == 0


def test_the_pool_lies_in_the_memory_that_the_transport_makes() -> None:
    world = HandleWorld()
    memories: list[tuple[int, LazyMemory]] = []

    def make_memory(size: int) -> LazyMemory:
        memories.append((size, LazyMemory()))
        return memories[-1][1]

    client = Client(Handle(world.bus.endpoint, OWNER, make_memory=make_memory))
    client.hello()
    ((size, memory),) = memories
    assert size == POOL_SIZE
    assert client.handle.map_pool(4096, writable=False).memory is memory


# Faked credentials


def test_an_owner_may_speak_for_others_and_only_what_it_gives_is_known() -> None:
    world = HandleWorld()
    client = world.connect(items=[CREDS, PIDS, SECLABEL, AUXGROUPS])
    info = connection_info(client, id=client.id)
    assert info == {
        ItemType.CREDS: CREDS[16:],
        ItemType.PIDS: PIDS[16:],
        ItemType.SECLABEL: b"label\0",
        ItemType.AUXGROUPS: AUXGROUPS[16:],
    }
    assert client.handle.connection is not None
    assert client.handle.connection.faked == Snapshot(
        creds=Creds(*[2000] * 8), pids=Pids(7, 8, 0), seclabel=b"label", auxgroups=(5, 6)
    )


def test_only_pids_may_be_faked() -> None:
    client = HandleWorld().connect(items=[PIDS])
    assert connection_info(client, id=client.id) == {ItemType.PIDS: PIDS[16:]}


def test_unknown_ids_and_pids_are_told_as_unknown() -> None:
    unknown = build_numbers_item(ItemType.CREDS, *[UNSET_ID] * 8)
    nobody = build_numbers_item(ItemType.PIDS, 0, 0, 0)
    client = HandleWorld().connect(items=[unknown, nobody])
    info = connection_info(client, id=client.id)
    assert info == {ItemType.CREDS: unknown[16:], ItemType.PIDS: nobody[16:]}


def test_without_faked_credentials_nothing_is_faked() -> None:
    connection = HandleWorld().connect().handle.connection
    assert connection is not None
    assert connection.faked is None


@pytest.mark.parametrize("item", [CREDS, PIDS, SECLABEL, AUXGROUPS, BAD_CREDS])
def test_only_an_owner_may_speak_for_others(item: bytes) -> None:
    world = HandleWorld()
    _, endpoint = world.make_endpoint()
    for client in (world.open(process=STRANGER), world.open(endpoint), world.open(endpoint, ROOT)):
        with refused(EPERM):
            client.hello(items=[item])
    world.open(process=ROOT).hello(items=[PIDS])


@pytest.mark.parametrize(
    "item",
    [
        BAD_CREDS,
        build_numbers_item(ItemType.CREDS, *[0] * 7, 1 << 32),
        build_numbers_item(ItemType.PIDS, 1 << 31, 0, 0),
        build_numbers_item(ItemType.PIDS, 0, 0, EVERYTHING),
        build_numbers_item(ItemType.AUXGROUPS, 1, UNSET_ID),
        build_item(ItemType.AUXGROUPS, bytes(4)),
        build_item(ItemType.PIDS, bytes(16)),
        build_item(ItemType.CREDS, bytes(32)),
    ],
)
def test_faked_ids_must_exist(item: bytes) -> None:
    world = HandleWorld()
    with refused(EINVAL):
        world.open().hello(items=[item])
    assert not world.bus.connections


# What it refuses


@pytest.mark.parametrize("pool_size", [0, 1, 4095, 4097, (1 << 64) - 1])
def test_a_pool_consists_of_pages(pool_size: int) -> None:
    with refused(EINVAL):
        HandleWorld().open().hello(pool_size=pool_size)


def test_the_largest_pool_costs_nothing_until_it_is_used() -> None:
    client = HandleWorld().connect(pool_size=MAX_POOL_SIZE)
    assert client.handle.connection is not None
    assert client.handle.connection.inbox is not None
    memory = client.handle.connection.inbox.pool.memory
    assert isinstance(memory, LazyMemory)
    assert len(memory) <= CHUNK_SIZE  # where the bloom parameters were


@pytest.mark.parametrize("pool_size", [MAX_POOL_SIZE + PAGE_SIZE, 1 << 62, (1 << 64) - PAGE_SIZE])
def test_a_larger_pool_is_refused(pool_size: int) -> None:
    world = HandleWorld()
    with refused(EINVAL):
        world.open().hello(pool_size=pool_size)
    assert not world.bus.connections


NAMED = [name_item(NAME)]
REFUSALS = {
    "two kinds": (OWNER, ACTIVATOR | MONITOR, NAMED, EINVAL),
    "three kinds": (OWNER, ACTIVATOR | MONITOR | POLICY_HOLDER, NAMED, EINVAL),
    "two kinds by nobody special": (STRANGER, ACTIVATOR | POLICY_HOLDER, NAMED, EINVAL),
    "an ordinary connection with a name": (OWNER, 0, NAMED, EINVAL),
    "a monitor with a name": (OWNER, MONITOR, NAMED, EINVAL),
    "an activator without a name": (OWNER, ACTIVATOR, [], EINVAL),
    "an activator without a name by nobody special": (STRANGER, ACTIVATOR, [], EINVAL),
    "a holder without a name": (OWNER, POLICY_HOLDER, [], EINVAL),
    "an activator of a bad name": (STRANGER, ACTIVATOR, [name_item("noname")], EINVAL),
    "an activator of a name beyond ASCII": (OWNER, ACTIVATOR, [name_item("com.ex\xe4mple")], EINVAL),
    "an activator of a wildcard": (OWNER, ACTIVATOR, [name_item("com.example.*")], EINVAL),
    "a holder of a bad wildcard": (OWNER, POLICY_HOLDER, [name_item("example.*.a")], EINVAL),
    "a monitor by nobody special": (STRANGER, MONITOR, [], EPERM),
    "an activator by nobody special": (STRANGER, ACTIVATOR, NAMED, EPERM),
    "a holder by nobody special": (STRANGER, POLICY_HOLDER, NAMED, EPERM),
    "a bad policy by nobody special": (STRANGER, POLICY_HOLDER, [*NAMED, BAD_ACCESS], EPERM),
    "a bad policy": (OWNER, POLICY_HOLDER, [*NAMED, BAD_ACCESS], EINVAL),
    "a policy before its name": (OWNER, ACTIVATOR, [access_item(3, 0), *NAMED], EINVAL),
    "an unknown type of access": (OWNER, ACTIVATOR, [*NAMED, access_item(0, 0)], EINVAL),
    "two names": (OWNER, POLICY_HOLDER, NAMED * 2, EINVAL),
    "a description that is too long": (
        OWNER,
        0,
        [build_string_item(ItemType.CONN_DESCRIPTION, "x" * 64)],
        ENAMETOOLONG,
    ),
    "a bad description": (OWNER, 0, [build_string_item(ItemType.CONN_DESCRIPTION, "a b")], EINVAL),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_hello_refuses(case: str) -> None:
    process, flags, items, errno = REFUSALS[case]
    world = HandleWorld()
    client = world.open(process=process)
    with refused(errno):
        client.hello(flags=flags, items=items)
    assert client.is_in(HandleState.NONE)
    assert not world.bus.connections


def test_a_holder_may_have_a_wildcard() -> None:
    world = HandleWorld()
    access = access_item(AccessType.WORLD, AccessLevel.OWN)
    world.connect(flags=POLICY_HOLDER, items=[name_item("com.example.*"), access])
    world.connect(STRANGER).run(Command.NAME_ACQUIRE, items=[name_item(NAME)])


def test_a_monitor_on_a_custom_endpoint_is_not_supported_and_everything_else_special_not_permitted() -> None:
    world = HandleWorld()
    _, endpoint = world.make_endpoint()
    for process in (OWNER, STRANGER, ROOT):
        with refused(EOPNOTSUPP):
            world.open(endpoint, process).hello(flags=MONITOR, items=[CREDS])
        with refused(EPERM):
            world.open(endpoint, process).hello(flags=ACTIVATOR, items=NAMED)


@pytest.mark.parametrize(("send", "recv"), [(0x4000, 0), (0, 0x4000), ((1 << 64) - 2, 0)])
def test_unknown_metadata_is_invalid(send: int, recv: int) -> None:
    with refused(EINVAL):
        HandleWorld().open().hello(attach_send=send, attach_recv=recv)


def test_kinds_are_judged_before_metadata_and_permission_before_it() -> None:
    with refused(EPERM):
        HandleWorld().open(process=STRANGER).hello(flags=MONITOR, attach_send=0x4000)
    with refused(EPERM):
        HandleWorld().open(process=STRANGER).hello(items=[CREDS], attach_send=0x4000)


def requiring(mask: int) -> HandleWorld:
    return HandleWorld(bus_items=[build_numbers_item(ItemType.ATTACH_FLAGS_RECV, mask)])


def test_a_bus_refuses_connections_that_do_not_grant_what_it_requires() -> None:
    world = requiring(0b101)
    for mask in (0, 1, 4, 2):
        with refused(ECONNREFUSED):
            world.open().hello(attach_send=mask)
    world.open().hello(attach_send=0b101)
    world.open().hello(attach_send=EVERYTHING)


@pytest.mark.parametrize(
    ("flags", "items"),
    [(0, [BAD_CREDS]), (ACTIVATOR, [*NAMED, BAD_ACCESS]), (POLICY_HOLDER, [*NAMED, BAD_CREDS])],
)
def test_what_the_bus_requires_is_judged_before_ids_that_do_not_exist(flags: int, items: list[bytes]) -> None:
    world = requiring(1)
    with refused(ECONNREFUSED):
        world.open().hello(attach_send=0, flags=flags, items=items)
    with refused(EINVAL):
        world.open().hello(attach_send=0x4000, flags=flags, items=items)
    with refused(EINVAL):
        world.open().hello(attach_send=1, flags=flags, items=items)
    assert not world.bus.connections


def test_a_name_has_one_activator_and_one_policy() -> None:
    world = HandleWorld()
    world.connect(flags=ACTIVATOR, items=NAMED)
    with refused(EEXIST):
        world.open().hello(flags=ACTIVATOR, items=NAMED)
    with refused(EEXIST):
        world.open().hello(flags=POLICY_HOLDER, items=NAMED)


def test_a_user_has_1024_connections() -> None:
    world = HandleWorld()
    for _ in range(MAX_CONNECTIONS_PER_USER):
        world.open().hello(pool_size=4096)
    with refused(EMFILE):
        world.open().hello()
    world.open(process=STRANGER).hello()


@pytest.mark.parametrize("position", [40, 48, 64, 72, 80, 88])
def test_a_hello_whose_results_cannot_be_written_is_announced_to_nobody(position: int) -> None:
    world = HandleWorld()
    watcher = world.connect()
    for kind in (ItemType.ID_ADD, ItemType.ID_REMOVE):
        watcher.run(Command.MATCH_ADD, items=[build_numbers_item(kind, MATCH_ANY, 0)])
    client = world.open()
    data = build_command(Command.HELLO, 0, 0, 0, 0, POOL_SIZE)
    address = client.thread.put(data)
    client.thread.protect(address + position, 8)
    with refused(EFAULT):
        client.handle.ioctl(client.thread, Command.HELLO, address)
    assert client.is_in(HandleState.NONE)
    assert client.handle.connection is None
    assert list(world.bus.connections.values()) == [watcher.handle.connection]
    with refused(EAGAIN):
        watcher.receive()
    assert watcher.busy == 0


# The memory of a pool


LOOKED_AT_LAST = {"a bad policy", "a policy before its name", "an unknown type of access", "two names"}
"""Refusals for whom a policy names, which is read when there is a pool."""


class MemoryMaker:
    """Makes memories and remembers how large they were to be; fails with `error` if there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.sizes: list[int] = []
        self.error = error

    def __call__(self, size: int) -> LazyMemory:
        self.sizes.append(size)
        if self.error is not None:
            raise self.error
        return LazyMemory()


@pytest.mark.parametrize("case", sorted(REFUSALS.keys() - LOOKED_AT_LAST))
def test_for_a_connection_that_may_not_be_no_memory_is_made(case: str) -> None:
    process, flags, items, errno = REFUSALS[case]
    world, make_memory = HandleWorld(), MemoryMaker()
    client = Client(Handle(world.bus.endpoint, process, make_memory=make_memory))
    with refused(errno):
        client.hello(flags=flags, items=items)
    assert make_memory.sizes == []


@pytest.mark.parametrize("pool_size", [0, 1, MAX_POOL_SIZE + PAGE_SIZE])
def test_for_a_pool_of_a_wrong_size_no_memory_is_made(pool_size: int) -> None:
    make_memory = MemoryMaker()
    client = Client(Handle(HandleWorld().bus.endpoint, OWNER, make_memory=make_memory))
    with refused(EINVAL):
        client.hello(pool_size=pool_size)
    assert make_memory.sizes == []


def test_for_a_connection_too_many_no_memory_is_made() -> None:
    world, make_memory = HandleWorld(), MemoryMaker()
    for _ in range(MAX_CONNECTIONS_PER_USER):
        world.open().hello(pool_size=PAGE_SIZE)
    with refused(EMFILE):
        Client(Handle(world.bus.endpoint, OWNER, make_memory=make_memory)).hello()
    assert make_memory.sizes == []


def test_where_metadata_is_required_no_memory_is_made_for_who_does_not_grant_it() -> None:
    world, make_memory = requiring(1), MemoryMaker()
    with refused(ECONNREFUSED):
        Client(Handle(world.bus.endpoint, OWNER, make_memory=make_memory)).hello(attach_send=0)
    assert make_memory.sizes == []


def test_an_activator_of_a_name_that_has_one_gets_no_memory() -> None:
    world, make_memory = HandleWorld(), MemoryMaker()
    world.connect(flags=ACTIVATOR, items=NAMED)
    with refused(EEXIST):
        Client(Handle(world.bus.endpoint, OWNER, make_memory=make_memory)).hello(flags=ACTIVATOR, items=NAMED)
    assert make_memory.sizes == []


@pytest.mark.parametrize("position", [40, 48, 64, 72, 80, 88])
def test_a_hello_whose_results_cannot_be_written_gets_no_memory(position: int) -> None:
    make_memory = MemoryMaker()
    client = Client(Handle(HandleWorld().bus.endpoint, OWNER, make_memory=make_memory))
    address = client.thread.put(build_command(Command.HELLO, 0, 0, 0, 0, POOL_SIZE))
    client.thread.protect(address + position, 8)
    with refused(EFAULT):
        client.handle.ioctl(client.thread, Command.HELLO, address)
    assert make_memory.sizes == []


@pytest.mark.parametrize("error", [OSError(ENOSPC, "full"), MemoryError(), OverflowError("too large")])
def test_memory_that_cannot_be_made_is_missing(error: Exception) -> None:
    world, make_memory = HandleWorld(), MemoryMaker(error)
    watcher = world.connect()
    watcher.run(Command.MATCH_ADD, items=[build_numbers_item(ItemType.ID_ADD, MATCH_ANY, 0)])
    client = Client(Handle(world.bus.endpoint, STRANGER, make_memory=make_memory))
    with refused(ENOMEM):
        client.hello()
    assert make_memory.sizes == [POOL_SIZE]
    assert client.is_in(HandleState.NONE)
    assert list(world.bus.connections.values()) == [watcher.handle.connection]
    assert world.domain.user(2000).connections == 0
    with refused(EAGAIN):
        watcher.receive()
    make_memory.error = None
    client.hello()
    assert client.is_in(HandleState.CONNECTED)


def test_what_else_goes_wrong_with_memory_is_not_hidden() -> None:
    make_memory = MemoryMaker(ZeroDivisionError())
    client = Client(Handle(HandleWorld().bus.endpoint, OWNER, make_memory=make_memory))
    with pytest.raises(ZeroDivisionError):
        client.hello()
