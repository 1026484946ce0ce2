"""Which metadata a bus demands, a connection grants, and a creator lets be told."""

from __future__ import annotations

from errno import ECONNREFUSED, EINVAL

import pytest
from support.kdbus import Attach, Client, Info, ItemType, Make, World, layout, refused
from support.kdbus.layout import ANY, ATTACH_ALL

BUS = "1000-demanding"
CREDS, PIDS = Attach.CREDS, Attach.PIDS


def connect(world: World, required: int | None, *, send: int, creator_mask: int = ATTACH_ALL) -> Client:
    """Somebody on a bus that demands this of everybody."""
    if BUS not in world.domain.buses:
        world.make_bus(BUS, required=required, creator_mask=creator_mask)
    return world.connect(node=world.find_endpoint(bus=BUS), attach_send=send)


# What a bus demands


@pytest.mark.parametrize(
    ("required", "send", "may"),
    [
        pytest.param(ATTACH_ALL, 0, False, id="all and nothing"),
        pytest.param(ATTACH_ALL, CREDS, False, id="all and one"),
        pytest.param(ATTACH_ALL, ATTACH_ALL & ~Attach.TIMESTAMP, False, id="all and all but one"),
        pytest.param(ATTACH_ALL, ATTACH_ALL, True, id="all and all"),
        pytest.param(ATTACH_ALL, ANY, True, id="all and everything"),
        pytest.param(ANY, ATTACH_ALL, True, id="everything and all"),
        pytest.param(PIDS, 0, False, id="one and nothing"),
        pytest.param(PIDS, ATTACH_ALL & ~PIDS, False, id="one and all the others"),
        pytest.param(PIDS, PIDS, True, id="one and that"),
        pytest.param(PIDS, ATTACH_ALL, True, id="one and all"),
        pytest.param(0, 0, True, id="nothing and nothing"),
        pytest.param(0, ATTACH_ALL, True, id="nothing and all"),
        pytest.param(None, 0, True, id="nothing said"),
    ],
)
def test_who_does_not_grant_what_the_bus_demands_is_refused(
    world: World, required: int | None, send: int, *, may: bool
) -> None:
    if may:
        connect(world, required, send=send)
    else:
        with refused(ECONNREFUSED):
            connect(world, required, send=send)


@pytest.mark.parametrize(
    ("required", "send", "may"),
    [
        pytest.param(ATTACH_ALL, CREDS | PIDS, False, id="all and some"),
        pytest.param(ATTACH_ALL, ATTACH_ALL, True, id="all and all"),
        pytest.param(PIDS, ATTACH_ALL & ~PIDS, False, id="one and all the others"),
        pytest.param(PIDS, 0, False, id="one and nothing"),
        pytest.param(PIDS, PIDS, True, id="one and that"),
        pytest.param(0, 0, True, id="nothing and nothing"),
    ],
)
def test_who_is_connected_cannot_take_back_what_the_bus_demands(
    world: World, required: int, send: int, *, may: bool
) -> None:
    client = connect(world, required, send=ATTACH_ALL)
    if may:
        client.update_attach_flags(send=send, recv=0)
    else:
        with refused(EINVAL):
            client.update_attach_flags(send=send, recv=0)
        assert client.conn_info(client, mask=ATTACH_ALL).has(ItemType.CREDS)  # nothing has changed


def test_nothing_is_demanded_of_what_is_received(world: World) -> None:
    client = connect(world, ATTACH_ALL, send=ATTACH_ALL)
    client.update_attach_flags(recv=0)
    client.send_small(client)
    assert client.recv().metadata_kinds == []


def test_a_bus_cannot_demand_what_does_not_exist(world: World) -> None:
    with refused(EINVAL):
        world.make_bus(BUS, required=ATTACH_ALL + 1)


def test_a_demand_does_not_tell_the_receiver_more_than_it_asks_for(world: World) -> None:
    sender = connect(world, PIDS, send=PIDS)
    receiver = connect(world, PIDS, send=PIDS)
    sender.send_small(receiver)
    assert receiver.recv().metadata_kinds == [ItemType.PIDS]


def test_a_demand_holds_for_special_connections_and_with_the_final_formula_too(world: World) -> None:
    flags = Make.ACCESS_WORLD | Make.FINAL_METADATA
    world.make_bus(BUS, required=PIDS, flags=flags)
    node = world.find_endpoint(bus=BUS)
    for special in (0, 8):
        with refused(ECONNREFUSED):
            world.connect(node=node, flags=special, attach_send=0)
    with refused(ECONNREFUSED):
        world.connect(None, layout.name("foo.bar"), node=node, flags=2, attach_send=0)


# What a connection grants


def told_bits(info: Info) -> int:
    """The kinds of metadata in a record, as a mask; each is there once."""
    kinds = [kind for kind in info.kinds if kind != ItemType.MAKE_NAME]
    assert len(set(kinds)) == len(kinds)
    return sum(1 << kind - ItemType.TIMESTAMP for kind in kinds)


ABOUT_CONNECTIONS = ATTACH_ALL & ~(Attach.TIMESTAMP | Attach.NAMES)
ABOUT_CREATORS = ABOUT_CONNECTIONS & ~Attach.CONN_DESCRIPTION
SUBSETS = [0, PIDS, CREDS | PIDS, Attach.EXE | Attach.CGROUP | Attach.AUDIT, Attach.NAMES, ATTACH_ALL, ANY]


@pytest.mark.parametrize("asked", SUBSETS, ids=hex)
@pytest.mark.parametrize("granted", [0, PIDS, CREDS | PIDS, Attach.NAMES, ATTACH_ALL], ids=hex)
def test_of_a_connection_exactly_what_is_asked_and_granted_is_told(
    world: World, asked: int, granted: int
) -> None:
    subject, reader = world.connect(attach_send=granted), world.connect()
    info = reader.conn_info(subject, mask=asked)
    assert told_bits(info) == asked & granted & ABOUT_CONNECTIONS


@pytest.mark.parametrize("asked", SUBSETS, ids=hex)
@pytest.mark.parametrize("granted", [0, PIDS, CREDS | PIDS, ATTACH_ALL, ANY], ids=hex)
def test_of_a_creator_exactly_what_is_asked_and_granted_is_told_and_the_name(
    world: World, asked: int, granted: int
) -> None:
    reader = connect(world, None, send=0, creator_mask=granted)
    info = reader.creator_info(asked)
    assert info.kinds[0] == ItemType.MAKE_NAME
    assert info.text(ItemType.MAKE_NAME) == BUS
    assert told_bits(info) == asked & granted & ABOUT_CREATORS


def test_of_a_creator_who_said_nothing_only_the_name_is_told(world: World) -> None:
    world.open_control().bus_make(name=BUS, flags=Make.ACCESS_WORLD)
    info = connect(world, None, send=0).creator_info(ATTACH_ALL)
    assert info.kinds == [ItemType.MAKE_NAME]


@pytest.mark.parametrize("mask", [ATTACH_ALL + 1, 1 << 63], ids=hex)
def test_unknown_metadata_is_refused_wherever_it_is_asked_for(world: World, mask: int) -> None:
    client = world.connect()
    with refused(EINVAL):
        client.conn_info(client, mask=mask)
    with refused(EINVAL):
        client.creator_info(mask)
    with refused(EINVAL):
        world.make_bus(BUS, creator_mask=mask)
