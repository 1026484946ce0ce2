"""Handles: what each takes, what each owns, when it is ready, and how it ends."""

from __future__ import annotations

from errno import (
    EACCES,
    EBADFD,
    EEXIST,
    EFAULT,
    EINVAL,
    EMFILE,
    ENAMETOOLONG,
    ENOTTY,
    EPERM,
    ESHUTDOWN,
    ESRCH,
)

import pytest
from handle_world import (
    NAME,
    OWNER,
    OWNER_UID,
    POOL_SIZE,
    ROOT,
    STRANGER,
    Client,
    HandleWorld,
    access_item,
    bloom_filter,
    bloom_parameter,
    build_command,
    build_message,
    name_item,
    refused,
)

from kdbus_core.abi import (
    DST_BROADCAST,
    MAX_BUSES_PER_USER,
    NEGOTIATE,
    AccessLevel,
    AccessType,
    Command,
    ItemType,
    MakeFlag,
    MessageFlag,
)
from kdbus_core.handle import Handle, HandleState, PollFlag
from kdbus_core.items import build_item, build_numbers_item
from kdbus_core.metadata import Credentials, Process

MAKE_NAME = ItemType.MAKE_NAME
OF_CONNECTIONS = {
    Command.BYEBYE,
    Command.NAME_ACQUIRE,
    Command.NAME_RELEASE,
    Command.LIST,
    Command.CONN_INFO,
    Command.BUS_CREATOR_INFO,
    Command.UPDATE,
    Command.MATCH_ADD,
    Command.MATCH_REMOVE,
    Command.SEND,
    Command.RECV,
    Command.FREE,
    Command.MSG_CANCEL,
}
UNKNOWN = [0, 0x9502, 0x40189512, 0xC0609581, (1 << 32) - 1, -1]


def make_domain(client: Client, name: str = "inner") -> None:
    client.run(Command.DOMAIN_MAKE, items=[name_item(name, MAKE_NAME)])


def handle_in(world: HandleWorld, state: str) -> Client:
    match state:
        case "fresh, of a control node":
            return world.open(world.domain)
        case "bus owner":
            return world.maker
        case "domain owner":
            client = world.open(world.domain, ROOT)
            make_domain(client)
            return client
        case "fresh, of an endpoint":
            return world.open()
        case "endpoint owner":
            return world.make_endpoint()[0]
        case _:
            return world.connect()


TAKEN = {
    "fresh, of a control node": {Command.BUS_MAKE, Command.DOMAIN_MAKE},
    "bus owner": set(),
    "domain owner": set(),
    "fresh, of an endpoint": {Command.HELLO, Command.ENDPOINT_MAKE},
    "endpoint owner": {Command.ENDPOINT_UPDATE},
    "connected": OF_CONNECTIONS,
}


@pytest.mark.parametrize("state", TAKEN)
@pytest.mark.parametrize("command", list(Command))
def test_a_handle_takes_what_its_state_takes_and_nothing_else(state: str, command: Command) -> None:
    client = handle_in(HandleWorld(), state)
    # Nothing can be read there, so a command that is taken ends with EFAULT, or with EPERM before that.
    expected = EBADFD
    if command in TAKEN[state]:
        expected = EPERM if command is Command.DOMAIN_MAKE else EFAULT
    with refused(expected):
        client.handle.ioctl(client.thread, command, 0)


@pytest.mark.parametrize("state", TAKEN)
@pytest.mark.parametrize("request_number", UNKNOWN)
def test_a_command_that_does_not_exist_is_enotty_in_every_state(state: str, request_number: int) -> None:
    client = handle_in(HandleWorld(), state)
    with refused(ENOTTY):
        client.handle.ioctl(client.thread, request_number, 0)


def test_the_table_of_this_test_has_every_command() -> None:
    assert set().union(*TAKEN.values()) == set(Command)


# Opening


def test_a_node_is_opened_by_whom_its_mode_lets_in() -> None:
    world = HandleWorld(access=MakeFlag(0))
    Handle(world.bus.endpoint, OWNER)
    Handle(world.bus.endpoint, ROOT)
    with refused(EACCES):
        Handle(world.bus.endpoint, STRANGER)


def test_a_control_node_is_opened_by_everybody() -> None:
    assert Handle(HandleWorld().domain, STRANGER).state is HandleState.NONE


def test_a_node_that_has_gone_cannot_be_opened_even_by_those_who_may_not() -> None:
    world = HandleWorld(access=MakeFlag(0))
    endpoint = world.bus.endpoint
    world.maker.handle.close()
    with refused(ESHUTDOWN):
        Handle(endpoint, STRANGER)
    world.domain.close()
    with refused(ESHUTDOWN):
        Handle(world.domain, OWNER)


# BUS_MAKE


def test_a_bus_lives_as_long_as_the_handle_that_made_it() -> None:
    world = HandleWorld()
    other = world.connect()
    world.maker.handle.close()
    assert not world.domain.buses
    with refused(ESHUTDOWN):
        other.run(Command.LIST)


def test_a_failed_or_negotiated_bus_make_leaves_the_handle_fresh() -> None:
    world = HandleWorld()
    client = world.open(world.domain)
    for name in ("foo", f"{OWNER_UID}-blah@123", f"{OWNER_UID}-blah-", f"{OWNER_UID + 1}-bus"):
        with refused(EINVAL):
            world.make_bus(client, name)
    with refused(EEXIST):
        world.make_bus(client)
    client.run(Command.BUS_MAKE, flags=NEGOTIATE)
    assert client.handle.state is HandleState.NONE
    world.make_bus(client, f"{OWNER_UID}-other")
    assert client.handle.state is HandleState.BUS_OWNER
    with refused(EBADFD):
        world.make_bus(client, f"{OWNER_UID}-another")


@pytest.mark.parametrize(
    ("size", "n_hash"), [(0, 1), (7, 1), (9, 1), (4104, 1), (64, 0), ((1 << 64) - 8, 1), (12, 1)]
)
def test_bloom_parameters_must_be_sensible(size: int, n_hash: int) -> None:
    world = HandleWorld()
    items = [name_item(f"{OWNER_UID}-x", MAKE_NAME), bloom_parameter(size, n_hash)]
    with refused(EINVAL):
        world.open(world.domain).run(Command.BUS_MAKE, items=items)


@pytest.mark.parametrize(("size", "n_hash"), [(8, 1), (4096, (1 << 64) - 1)])
def test_the_largest_and_smallest_bloom_parameters_are_fine(size: int, n_hash: int) -> None:
    world = HandleWorld()
    items = [name_item(f"{OWNER_UID}-x", MAKE_NAME), bloom_parameter(size, n_hash)]
    world.open(world.domain).run(Command.BUS_MAKE, items=items)
    assert world.domain.buses[f"{OWNER_UID}-x"].bloom == (size, n_hash)


@pytest.mark.parametrize("missing", [MAKE_NAME, ItemType.BLOOM_PARAMETER])
def test_a_bus_needs_a_name_and_bloom_parameters(missing: ItemType) -> None:
    world = HandleWorld()
    items = {MAKE_NAME: name_item(f"{OWNER_UID}-x", MAKE_NAME), ItemType.BLOOM_PARAMETER: bloom_parameter()}
    del items[missing]
    with refused(EINVAL):
        world.open(world.domain).run(Command.BUS_MAKE, items=items.values())


@pytest.mark.parametrize("type", [ItemType.ATTACH_FLAGS_SEND, ItemType.ATTACH_FLAGS_RECV])
def test_unknown_metadata_of_a_bus_is_invalid(type: ItemType) -> None:
    world = HandleWorld()
    with refused(EINVAL):
        world.make_bus(world.open(world.domain), f"{OWNER_UID}-x", items=[build_numbers_item(type, 0x4000)])


def test_a_bus_has_the_masks_and_flags_it_was_made_with() -> None:
    world = HandleWorld()
    flags = MakeFlag.ACCESS_GROUP | MakeFlag.FINAL_METADATA
    world.make_bus(
        world.open(world.domain),
        f"{OWNER_UID}-x",
        flags=flags,
        items=[
            build_numbers_item(ItemType.ATTACH_FLAGS_SEND, (1 << 64) - 1),
            build_numbers_item(ItemType.ATTACH_FLAGS_RECV, 5),
        ],
    )
    bus = world.domain.buses[f"{OWNER_UID}-x"]
    assert (bus.creator_mask, bus.required, bus.flags) == (0x3FFF, 5, flags)


def test_a_bus_name_may_have_63_bytes() -> None:
    world = HandleWorld()
    world.make_bus(world.open(world.domain), f"{OWNER_UID}-" + "x" * 58)
    with refused(ENAMETOOLONG):
        world.make_bus(world.open(world.domain), f"{OWNER_UID}-" + "x" * 59)


def test_one_user_has_16_buses() -> None:
    world = HandleWorld()
    for number in range(1, MAX_BUSES_PER_USER):
        world.make_bus(world.open(world.domain), f"{OWNER_UID}-{number}")
    with refused(EMFILE):
        world.make_bus(world.open(world.domain), f"{OWNER_UID}-x")


# DOMAIN_MAKE


def test_a_domain_lives_as_long_as_the_handle_that_made_it() -> None:
    world = HandleWorld()
    client = world.open(world.domain, ROOT)
    make_domain(client)
    assert client.handle.state is HandleState.DOMAIN_OWNER
    inner = world.domain.domains["inner"]
    fresh = Client(Handle(inner, ROOT))
    client.handle.close()
    assert not world.domain.domains
    with refused(ESHUTDOWN):
        make_domain(fresh)


def test_only_the_privileged_make_domains_whatever_they_ask() -> None:
    world = HandleWorld()
    client = world.open(world.domain)
    with refused(EPERM):
        client.ioctl(Command.DOMAIN_MAKE, bytes(8))
    with refused(EPERM):
        client.run(Command.DOMAIN_MAKE, flags=NEGOTIATE)


def test_a_domain_needs_a_name_of_its_own() -> None:
    world = HandleWorld()
    first, second = world.open(world.domain, ROOT), world.open(world.domain, ROOT)
    make_domain(first)
    with refused(EEXIST):
        make_domain(second)
    with refused(EINVAL):
        second.run(Command.DOMAIN_MAKE)
    with refused(ENAMETOOLONG):
        make_domain(second, "x" * 64)
    assert second.handle.state is HandleState.NONE


def test_who_may_open_a_domain_is_said_when_it_is_made() -> None:
    world = HandleWorld()
    world.open(world.domain, ROOT).run(
        Command.DOMAIN_MAKE, flags=MakeFlag.ACCESS_WORLD, items=[name_item("inner", MAKE_NAME)]
    )
    Handle(world.domain.domains["inner"], STRANGER)


# ENDPOINT_MAKE and ENDPOINT_UPDATE


def test_an_endpoint_lives_as_long_as_the_handle_that_made_it() -> None:
    world = HandleWorld()
    maker, endpoint = world.make_endpoint()
    assert maker.handle.state is HandleState.EP_OWNER
    client = world.connect(STRANGER, node=endpoint)
    maker.handle.close()
    assert list(world.bus.endpoints) == ["bus"]
    with refused(ESHUTDOWN):
        client.run(Command.LIST)


def test_only_owners_make_endpoints_whatever_they_ask() -> None:
    world = HandleWorld()
    _, endpoint = world.make_endpoint()
    for client in (world.open(process=STRANGER), world.open(endpoint), world.open(endpoint, ROOT)):
        with refused(EPERM):
            client.ioctl(Command.ENDPOINT_MAKE, bytes(8))


@pytest.mark.parametrize(
    ("name", "errno"),
    [
        (f"{OWNER_UID}-" + "x" * 63, ENAMETOOLONG),
        (f"{OWNER_UID + 1}-foobar", EINVAL),
        ("foobar", EINVAL),
        (f"{OWNER_UID}-door", EEXIST),
    ],
)
def test_an_endpoint_needs_a_name_of_its_maker(name: str, errno: int) -> None:
    world = HandleWorld()
    world.make_endpoint()
    client = world.open()
    with refused(errno):
        client.run(Command.ENDPOINT_MAKE, items=[name_item(name, MAKE_NAME)])
    assert client.handle.state is HandleState.NONE


def test_a_privileged_maker_puts_its_own_uid_before_the_name() -> None:
    world = HandleWorld()
    world.open(process=ROOT).run(Command.ENDPOINT_MAKE, items=[name_item("0-door", MAKE_NAME)])
    assert "0-door" in world.bus.endpoints


def see(client: Client, name: str = NAME) -> None:
    client.run(Command.CONN_INFO, items=[name_item(name)])


def test_an_endpoint_shows_what_its_policy_shows_and_an_update_replaces_all_of_it() -> None:
    world = HandleWorld()
    maker, endpoint = world.make_endpoint()
    owner, guest = world.connect(), world.connect(STRANGER, node=endpoint)
    owner.run(Command.NAME_ACQUIRE, items=[name_item(NAME)])
    owner.run(Command.NAME_ACQUIRE, items=[name_item("com.example.second")])
    with refused(ESRCH):
        see(guest)
    world_may_see = access_item(AccessType.WORLD, AccessLevel.SEE)
    maker.run(
        Command.ENDPOINT_UPDATE,
        items=[name_item(NAME), world_may_see, name_item("com.example.second"), world_may_see],
    )
    see(guest)
    see(guest, "com.example.second")
    maker.run(Command.ENDPOINT_UPDATE, items=[name_item(NAME), world_may_see])
    with refused(ESRCH):
        see(guest, "com.example.second")
    maker.run(Command.ENDPOINT_UPDATE)
    with refused(ESRCH):
        see(guest)


@pytest.mark.parametrize(
    ("items", "errno"),
    [
        ([access_item(AccessType.WORLD, 0)], EINVAL),
        ([name_item("noname")], EINVAL),
        ([name_item("com.example.n\xe4me")], EINVAL),
        ([name_item(NAME), access_item(0, 0)], EINVAL),
        ([name_item(NAME), access_item(4, 0)], EINVAL),
        ([name_item(NAME), access_item(AccessType.WORLD, 3)], EINVAL),
        ([name_item(NAME), access_item(AccessType.USER, 0, 1 << 40)], EINVAL),
        ([name_item(NAME), access_item(AccessType.GROUP, 0, (1 << 32) - 1)], EINVAL),
        ([name_item(NAME), name_item(NAME)], EEXIST),
        ([name_item(NAME), access_item(AccessType.WORLD, 0), build_item(ItemType.NAME, b"x")], EINVAL),
    ],
)
def test_a_bad_endpoint_policy_changes_nothing(items: list[bytes], errno: int) -> None:
    world = HandleWorld()
    maker, endpoint = world.make_endpoint()
    guest = world.connect(STRANGER, node=endpoint)
    world.connect().run(Command.NAME_ACQUIRE, items=[name_item(NAME)])
    maker.run(Command.ENDPOINT_UPDATE, items=[name_item(NAME), access_item(AccessType.USER, 0, 2000)])
    with refused(errno):
        maker.run(Command.ENDPOINT_UPDATE, items=items)
    see(guest)


def test_an_endpoint_policy_may_have_wildcards() -> None:
    world = HandleWorld()
    maker, endpoint = world.make_endpoint()
    guest = world.connect(STRANGER, node=endpoint)
    world.connect().run(Command.NAME_ACQUIRE, items=[name_item(NAME)])
    maker.run(Command.ENDPOINT_UPDATE, items=[name_item("com.example.*"), access_item(AccessType.WORLD, 0)])
    see(guest)


# When what is underneath has gone


def test_a_fresh_handle_of_an_endpoint_that_has_gone_is_shut_down() -> None:
    world = HandleWorld()
    maker, endpoint = world.make_endpoint()
    fresh, default = world.open(endpoint), world.open()
    maker.handle.close()
    with refused(ESHUTDOWN):
        fresh.hello()
    world.maker.handle.close()
    with refused(ESHUTDOWN):
        default.hello()
    with refused(ESHUTDOWN):
        default.run(Command.ENDPOINT_MAKE)
    with refused(EBADFD):
        default.run(Command.LIST)


def test_an_endpoint_owner_whose_bus_has_gone_is_shut_down() -> None:
    world = HandleWorld()
    maker, _ = world.make_endpoint()
    world.maker.handle.close()
    with refused(ESHUTDOWN):
        maker.run(Command.ENDPOINT_UPDATE)


@pytest.mark.parametrize("command", sorted(OF_CONNECTIONS))
@pytest.mark.parametrize("kind", ["ordinary", "monitor", "activator", "policy holder"])
def test_after_its_end_every_command_of_a_connection_is_shut_down(kind: str, command: Command) -> None:
    world = HandleWorld()
    client = world.connect_kind(kind)
    assert client.handle.connection is not None
    world.bus.disconnect(client.handle.connection)
    with refused(ESHUTDOWN):
        client.handle.ioctl(client.thread, command, 0)


def test_every_handle_of_a_closed_domain_is_shut_down() -> None:
    world = HandleWorld()
    client, fresh, control = world.connect(), world.open(), world.open(world.domain)
    world.domain.close()
    for used, command in (
        (client, Command.LIST),
        (fresh, Command.HELLO),
        (control, Command.BUS_MAKE),
    ):
        with refused(ESHUTDOWN):
            used.run(command)


# poll


IDLE = PollFlag.OUT | PollFlag.WRNORM
READABLE = IDLE | PollFlag.IN | PollFlag.RDNORM
DEAD = PollFlag.ERR | PollFlag.HUP


def test_what_is_not_connected_is_in_error_when_polled() -> None:
    world = HandleWorld()
    for state in TAKEN.keys() - {"connected"}:
        assert handle_in(HandleWorld(), state).handle.poll() == DEAD
    assert world.open().handle.poll() == DEAD


def test_a_connection_can_be_read_while_something_is_queued() -> None:
    world = HandleWorld()
    client = world.connect()
    assert client.handle.poll() == IDLE
    client.send(build_message(dst_id=client.id))
    assert client.handle.poll() == READABLE
    client.receive()
    assert client.handle.poll() == IDLE


def test_a_connection_can_be_read_while_something_was_lost() -> None:
    world = HandleWorld()
    small, sender = world.connect(pool_size=4096), world.connect()
    small.run(Command.MATCH_ADD)
    vec = build_item(ItemType.PAYLOAD_VEC, (4096).to_bytes(8, "little") + (0x8000).to_bytes(8, "little"))
    sender.thread.blocks.append(type(sender.thread.blocks[0])(0x8000, bytearray(4096)))
    sender.send(build_message(dst_id=DST_BROADCAST, flags=MessageFlag.SIGNAL, items=[vec, bloom_filter()]))
    assert small.handle.poll() == READABLE


def test_a_dead_connection_is_in_error_when_polled() -> None:
    world = HandleWorld()
    client = world.connect()
    client.run(Command.BYEBYE)
    assert client.handle.poll() == DEAD


def test_whoever_opened_the_handle_is_told_when_there_is_something_to_receive() -> None:
    world = HandleWorld()
    calls: list[int] = []
    client = Client(Handle(world.bus.endpoint, OWNER, on_ready=lambda: calls.append(1)))
    client.hello()
    assert calls == []
    client.send(build_message(dst_id=client.id))
    assert calls == [1]


# The pool


def test_a_pool_is_mapped_up_to_its_size_and_for_reading_only() -> None:
    client = HandleWorld().connect()
    assert client.handle.map_pool(POOL_SIZE, writable=False).size == POOL_SIZE
    client.handle.map_pool(4096, writable=False)
    with refused(EFAULT):
        client.handle.map_pool(POOL_SIZE + 1, writable=False)
    for length in (4096, POOL_SIZE + 1):
        with refused(EPERM):
            client.handle.map_pool(length, writable=True)


@pytest.mark.parametrize("state", sorted(TAKEN.keys() - {"connected"}))
def test_what_is_not_connected_has_no_pool(state: str) -> None:
    with refused(EBADFD):
        handle_in(HandleWorld(), state).handle.map_pool(4096, writable=True)


def test_a_pool_can_be_mapped_after_the_connection_ended() -> None:
    client = HandleWorld().connect()
    client.run(Command.BYEBYE)
    assert client.handle.map_pool(4096, writable=False).size == POOL_SIZE


# Closing


@pytest.mark.parametrize("state", TAKEN)
def test_closing_ends_what_a_handle_owns_and_can_be_repeated(state: str) -> None:
    world = HandleWorld()
    client = handle_in(world, state)
    for _ in range(2):
        client.handle.close()
    if client is world.maker:
        assert not world.domain.buses
    else:
        world.maker.handle.close()
    assert not world.bus.connections
    assert list(world.bus.endpoints) == []
    assert not world.domain.domains


def test_closing_a_connection_throws_away_what_is_queued() -> None:
    world = HandleWorld()
    client, sender = world.connect(), world.connect()
    sender.send(build_message(dst_id=client.id))
    client.handle.close()
    assert client.handle.connection is not None
    assert not client.handle.connection.active
    assert client.busy == 0


def test_a_process_is_judged_as_it_was_when_it_opened_the_handle() -> None:
    """The uid counts on the handle, not the thread that happens to use it."""
    world = HandleWorld()
    thread = world.open(process=STRANGER).thread
    owner = Client(Handle(world.bus.endpoint, OWNER), thread)
    owner.run(Command.ENDPOINT_MAKE, items=[name_item(f"{OWNER_UID}-door", MAKE_NAME)])
    assert owner.handle.process is OWNER


def test_nobody_without_a_known_uid_makes_a_bus() -> None:
    world = HandleWorld()
    with refused(EINVAL):
        world.make_bus(world.open(world.domain, Process.of(Credentials())), "0-bus")


def test_the_results_of_a_command_that_needs_unwritable_memory_are_not_there() -> None:
    world = HandleWorld()
    client = world.open(world.domain)
    data = build_command(Command.BUS_MAKE, items=[name_item(f"{OWNER_UID}-x", MAKE_NAME), bloom_parameter()])
    with refused(EFAULT):
        client.handle.ioctl(client.thread, Command.BUS_MAKE, client.thread.put(data, writable=False))
    assert list(world.domain.buses) == [f"{OWNER_UID}-bus"]
