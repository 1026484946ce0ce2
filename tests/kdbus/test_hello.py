"""HELLO: what a connection may ask for, and what it is told."""

from __future__ import annotations

from errno import EBADFD, ECONNREFUSED, EFAULT, EINVAL, EMSGSIZE, ENOTTY, ENXIO, EPERM
from struct import pack

import pytest
from support.kdbus import NOBODY, Attach, Client, Hello, ItemType, Make, World, layout, refused
from support.kdbus.layout import ATTACH_ALL, POOL_SIZE

SPECIAL = [Hello.ACTIVATOR, Hello.POLICY_HOLDER, Hello.MONITOR]


def say_hello(
    client: Client,
    *items: bytes,
    flags: int = Hello.ACCEPT_FD,
    send: int = ATTACH_ALL,
    recv: int = ATTACH_ALL,
    pool_size: int = POOL_SIZE,
    offset: int = 0,
) -> int:
    """HELLO with everything right but what was changed; returns where its slice is."""
    answer = client.command(
        layout.HELLO,
        *items,
        flags=flags,
        attach_flags_send=send,
        attach_flags_recv=recv,
        pool_size=pool_size,
        offset=offset,
    )
    client.finish_hello(answer, pool_size)
    return answer["offset"]


def test_a_pointer_that_is_not_aligned_is_refused(world: World) -> None:
    address = world.owner.memory.allocate(layout.HELLO.build(0, 96, {"pool_size": POOL_SIZE}) + bytes(8))
    with refused(EFAULT):
        world.open().ioctl(layout.HELLO.request, address + 1)


@pytest.mark.parametrize("address", [0, 8, 2**64 - 8])
def test_a_pointer_to_nothing_is_refused(world: World, address: int) -> None:
    with refused(EFAULT):
        world.open().ioctl(layout.HELLO.request, address)


def test_a_command_that_goes_past_readable_memory_is_refused(world: World) -> None:
    with refused(EFAULT):
        world.open().command(layout.HELLO, size=104, pool_size=POOL_SIZE)


@pytest.mark.parametrize("size", [0, 1, 24, 95])
def test_a_command_shorter_than_its_struct_is_refused(world: World, size: int) -> None:
    with refused(EINVAL):
        world.open().command(layout.HELLO, size=size, pool_size=POOL_SIZE)


def test_a_command_of_32_kib_is_the_longest(world: World) -> None:
    client = world.open()
    access = layout.access(layout.WORLD, layout.SEE)
    count = (32768 - 96) // len(access)
    with refused(EMSGSIZE):
        say_hello(client, *[access] * (count + 1))
    client.free(say_hello(client, *[access] * count))


@pytest.mark.parametrize("flags", [1 << 32, 16])
def test_an_unknown_flag_is_refused(world: World, flags: int) -> None:
    with refused(EINVAL):
        say_hello(world.open(), flags=flags)


@pytest.mark.parametrize("pool_size", [0, 1, 4095, 4097, POOL_SIZE + 8])
def test_a_pool_that_is_not_made_of_pages_is_refused(world: World, pool_size: int) -> None:
    with refused(EINVAL):
        say_hello(world.open(), pool_size=pool_size)


def test_the_answer_is_a_slice_to_be_freed_once(world: World) -> None:
    client = world.open()
    offset = say_hello(client, offset=2**64 - 1)
    assert offset != 2**64 - 1
    client.free(offset)
    with refused(ENXIO):
        client.free(offset)


def test_the_answer_is_the_first_slice_of_the_pool(world: World) -> None:
    client = world.open()
    offset = say_hello(client)
    assert offset == 0
    assert client.read_pool(0, 32) == pack("=4Q", 32, ItemType.BLOOM_PARAMETER, 64, 1)
    client.free(offset)


def test_the_answer_tells_the_bus(world: World) -> None:
    answer = world.open().hello()
    assert answer["bus_flags"] == Make.ACCESS_WORLD
    id128 = answer.raw[80:96]
    assert id128 == world.bus.id128
    assert id128[6] >> 4 == 4  # a random UUID
    assert id128[8] >> 6 == 0b10


def test_connections_are_numbered_by_the_domain(world: World) -> None:
    first = world.connect()
    world.make_bus("1000-other")
    second = world.connect()
    assert (first.id, second.id) == (2, 4)


@pytest.mark.parametrize("flags", [Hello.ACTIVATOR, Hello.POLICY_HOLDER])
def test_an_activator_or_policy_holder_needs_a_name(world: World, flags: int) -> None:
    with refused(EINVAL):
        say_hello(world.open(), flags=flags)


@pytest.mark.parametrize("flags", [0, Hello.MONITOR])
def test_nobody_else_has_a_name(world: World, flags: int) -> None:
    with refused(EINVAL):
        say_hello(world.open(), layout.name("foo.bar"), flags=flags)


@pytest.mark.parametrize("flags", [SPECIAL[0] | SPECIAL[1], SPECIAL[1] | SPECIAL[2], sum(SPECIAL)])
def test_a_connection_is_of_one_kind(world: World, flags: int) -> None:
    with refused(EINVAL):
        say_hello(world.open(), layout.name("foo.bar"), flags=flags)


@pytest.mark.parametrize("flags", SPECIAL)
def test_only_an_owner_makes_special_connections(world: World, flags: int) -> None:
    client = world.open(task=world.task(NOBODY))
    items = [] if flags == Hello.MONITOR else [layout.name("foo.bar")]
    with refused(EPERM):
        say_hello(client, *items, flags=flags)


@pytest.mark.parametrize(
    "item",
    [
        pytest.param(layout.creds(*[0] * 8), id="CREDS"),
        pytest.param(layout.pids(1), id="PIDS"),
        pytest.param(layout.string(ItemType.SECLABEL, "label"), id="SECLABEL"),
    ],
)
def test_only_an_owner_speaks_for_others(world: World, item: bytes) -> None:
    with refused(EPERM):
        say_hello(world.open(task=world.task(NOBODY)), item)


def test_unknown_metadata_is_refused_and_2_to_the_64_minus_1_means_all(world: World) -> None:
    client = world.open()
    for send, recv in ((ATTACH_ALL + 1, ATTACH_ALL), (ATTACH_ALL, ATTACH_ALL + 1)):
        with refused(EINVAL):
            say_hello(client, send=send, recv=recv)
    client.free(say_hello(client, send=2**64 - 1, recv=2**64 - 1))


@pytest.mark.parametrize(
    "description", [b"", b"-x", b"x.", b"a b", b"x" * 64, b"\xe4"], ids=lambda text: repr(text[:4])
)
def test_a_description_obeys_the_rule_of_node_names(world: World, description: bytes) -> None:
    errno = 36 if len(description) > 63 else EINVAL  # ENAMETOOLONG
    with refused(errno):
        say_hello(world.open(), layout.string(ItemType.CONN_DESCRIPTION, description))


def test_of_several_faults_the_flags_come_first_then_items_then_meaning(world: World) -> None:
    client = world.open(task=world.task(NOBODY))
    bad_item = layout.item(ItemType.PIDS, bytes(20))
    with refused(EMSGSIZE):
        client.command(layout.HELLO, size=40000, flags=1 << 32)
    with refused(EINVAL):
        say_hello(client, bad_item, flags=Hello.MONITOR)
    with refused(EPERM):
        say_hello(client, flags=Hello.MONITOR)


def test_a_refused_command_returns_no_flags(world: World) -> None:
    client = world.open()
    for fault in ({"flags": 1 << 32}, {"pool_size": 0}):
        with refused(EINVAL) as refusal:
            say_hello(client, **fault)
        assert refusal.answer["return_flags"] == 0
    with refused(EINVAL) as refusal:
        client.command(layout.HELLO, size=95)
    assert refusal.answer["return_flags"] == layout.CANARY


def test_a_handle_that_was_refused_can_say_hello_again(world: World) -> None:
    client = world.open()
    with refused(EINVAL):
        say_hello(client, pool_size=0)
    client.free(say_hello(client))
    with refused(EBADFD):
        say_hello(client)


def test_before_hello_nothing_else_works(world: World) -> None:
    client = world.open()
    for command in (layout.BYEBYE, layout.SEND, layout.RECV, layout.FREE, layout.ENDPOINT_UPDATE):
        with refused(EBADFD):
            client.command(command)
    with refused(ENOTTY):
        client.ioctl(layout.encode_request(3, 96, 0x8F), 0)
    assert client.poll() == layout.POLLERR | layout.POLLHUP


def test_a_bus_that_demands_metadata_refuses_who_withholds_it(world: World) -> None:
    world.make_bus("1000-strict", required=Attach.PIDS)
    node = world.find_endpoint(bus="1000-strict")
    for granted in (0, ATTACH_ALL & ~Attach.PIDS):
        with refused(ECONNREFUSED):
            world.connect(node=node, attach_send=granted)
    world.connect(node=node, attach_send=Attach.PIDS)


def test_a_connection_that_was_refused_leaves_no_trace(world: World) -> None:
    listener = world.connect()
    listener.add_match_id(ItemType.ID_ADD)
    listener.add_match_id(ItemType.ID_REMOVE)
    listener.add_match_name(ItemType.NAME_ADD)
    world.connect_activator("foo.bar")
    listener.drain()
    with refused(17):  # EEXIST
        world.connect_activator("foo.bar")
    assert not listener.is_readable
