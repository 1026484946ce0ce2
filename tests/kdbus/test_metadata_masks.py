"""Metadata that is asked for, the masks it is asked with, what a bus demands, and what notifications tell.

CONN_INFO and BUS_CREATOR_INFO tell what is asked for and granted; nothing is implicit in them.
"""

from __future__ import annotations

from errno import ECONNREFUSED, EINVAL

import pytest
from support.kdbus import (
    NOBODY,
    Attach,
    ItemType,
    Make,
    Msg,
    World,
    refused,
)
from support.kdbus.layout import ANY, ATTACH_ALL, BUS_CREATOR_INFO, CONN_INFO, PAGE, number

from .metadata_kinds import (
    EACH,
    FORMULAS,
    KINDS,
    NAME,
    OF_PROCESS,
    Buses,
    Kind,
    by_unicast,
    connect,
    subject,
)


@pytest.fixture
def nodes(world: World) -> Buses:
    """A bus of each formula."""
    world.make_bus("1000-final", flags=Make.ACCESS_WORLD | Make.FINAL_METADATA)
    return {"consent": world.bus.endpoint, "final": world.find_endpoint(bus="1000-final")}


# CONN_INFO


@FORMULAS
@EACH
def test_conn_info_tells_what_is_asked_for_and_granted(
    world: World, nodes: Buses, formula: str, kind: Kind
) -> None:
    """Nothing is implicit here, whatever the formula."""
    node = nodes[formula]
    reader = world.connect(node=node)
    for send in (kind.flag, ATTACH_ALL, ATTACH_ALL & ~kind.flag, 0):
        client = connect(world, node, send=send)
        for mask in (kind.flag, ATTACH_ALL, ATTACH_ALL & ~kind.flag, 0):
            info = reader.conn_info(client, mask=mask)
            expected = [one.item for one in KINDS if one.flag & send & mask and one.flag != Attach.TIMESTAMP]
            assert sorted(info.kinds) == sorted(expected)
        client.close()


@FORMULAS
def test_what_the_reader_asks_of_messages_does_not_matter_to_conn_info(
    world: World, nodes: Buses, formula: str
) -> None:
    client = connect(world, nodes[formula])
    reader = world.connect(node=nodes[formula], attach_recv=0)
    assert len(reader.conn_info(client, mask=ATTACH_ALL).kinds) == len(KINDS) - 1


def test_conn_info_tells_what_is_granted_now(world: World, nodes: Buses) -> None:
    client = connect(world, nodes["consent"])
    reader = world.connect()
    client.update_attach_flags(send=Attach.PIDS)
    assert reader.conn_info(client, mask=ATTACH_ALL).kinds == [ItemType.PIDS]
    client.update_attach_flags(send=0)
    assert reader.conn_info(client, mask=ATTACH_ALL).kinds == []


def test_a_message_carries_what_is_granted_and_asked_for_now(world: World, nodes: Buses) -> None:
    sender = connect(world, nodes["consent"], send=0)
    receiver = world.connect()
    assert by_unicast(sender, receiver).metadata_kinds == []
    sender.update_attach_flags(send=Attach.PIDS | Attach.CREDS)
    assert by_unicast(sender, receiver).metadata_kinds == [ItemType.CREDS, ItemType.PIDS]
    receiver.update_attach_flags(recv=Attach.PIDS)
    assert by_unicast(sender, receiver).metadata_kinds == [ItemType.PIDS]


# BUS_CREATOR_INFO


@EACH
def test_creator_info_tells_what_is_asked_for_and_was_granted(world: World, kind: Kind) -> None:
    never = {Attach.TIMESTAMP, Attach.NAMES, Attach.CONN_DESCRIPTION}
    for place, granted in enumerate((kind.flag, ATTACH_ALL, ATTACH_ALL & ~kind.flag, 0)):
        bus = f"1000-granting{place}"
        world.make_bus(bus, subject(world), creator_mask=granted)
        reader = world.connect(node=world.find_endpoint(bus=bus))
        for mask in (kind.flag, ATTACH_ALL, ATTACH_ALL & ~kind.flag, 0):
            info = reader.creator_info(mask)
            told = [one.item for one in KINDS if one.flag & granted & mask and one.flag not in never]
            assert info.kinds[0] == ItemType.MAKE_NAME
            assert info.text(ItemType.MAKE_NAME) == bus
            assert sorted(info.kinds[1:]) == sorted(told)


def test_a_creator_grants_nothing_unless_it_says_so(world: World) -> None:
    control = world.open_control()
    control.bus_make(name="1000-other")
    reader = world.connect(node=world.find_endpoint(bus="1000-other"))
    assert reader.creator_info().kinds == [ItemType.MAKE_NAME]


def test_creator_info_does_not_look_at_an_id(world: World) -> None:
    client = world.connect()
    answer = client.command(BUS_CREATOR_INFO, id=12345, attach_flags=0)
    info = client._take_info(answer, keep=False)
    assert info.id == world.bus.id


# Masks


@pytest.mark.parametrize("mask", [ATTACH_ALL + 1, 1 << 14, 1 << 63, ANY - 1])
def test_bits_that_there_are_not_are_refused(world: World, mask: int) -> None:
    client = world.connect()
    for command in (CONN_INFO, BUS_CREATOR_INFO):
        with refused(EINVAL):
            client.command(command, id=client.id, attach_flags=mask)
    for options in ({"attach_send": mask}, {"attach_recv": mask}):
        with refused(EINVAL):
            world.connect(None, **options)  # type: ignore[arg-type] # only numbers
    with refused(EINVAL):
        client.update_attach_flags(send=mask)
    with refused(EINVAL):
        client.update_attach_flags(recv=mask)
    control = world.open_control()
    for kind in (ItemType.ATTACH_FLAGS_SEND, ItemType.ATTACH_FLAGS_RECV):
        with refused(EINVAL):
            control.bus_make(number(kind, mask), name="1000-other")


def test_any_is_all(world: World) -> None:
    world.make_bus("1000-any", subject(world), creator_mask=ANY)
    node = world.find_endpoint(bus="1000-any")
    sender = connect(world, node, send=ANY)
    receiver = world.connect(node=node, attach_recv=ANY)
    assert len(by_unicast(sender, receiver).metadata_kinds) == len(KINDS)
    sender.update_attach_flags(send=0)
    assert by_unicast(sender, receiver).metadata_kinds == []
    receiver.update_attach_flags(recv=ANY)
    sender.update_attach_flags(send=ANY)
    assert len(by_unicast(sender, receiver).metadata_kinds) == len(KINDS)
    assert len(receiver.conn_info(sender, mask=ANY).kinds) == len(KINDS) - 1
    assert len(receiver.creator_info(ANY).kinds) == len(OF_PROCESS) + 1


def test_a_refused_update_changes_neither_mask(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    for client in (sender, receiver):
        with refused(EINVAL):
            client.update_attach_flags(send=0, recv=1 << 20)
        with refused(EINVAL):
            client.update_attach_flags(send=1 << 20, recv=0)
    assert len(by_unicast(sender, receiver).metadata_kinds) == len(KINDS) - 1


# What a bus demands


@EACH
def test_a_bus_can_demand_each_kind(world: World, kind: Kind) -> None:
    world.make_bus("1000-strict", required=kind.flag)
    node = world.find_endpoint(bus="1000-strict")
    for send in (0, ATTACH_ALL & ~kind.flag):
        with refused(ECONNREFUSED):
            world.connect(node=node, attach_send=send)
    client = world.connect(node=node, attach_send=kind.flag)
    client.update_attach_flags(send=ATTACH_ALL)
    for send in (0, ATTACH_ALL & ~kind.flag):
        with refused(EINVAL):
            client.update_attach_flags(send=send)
    client.update_attach_flags(send=kind.flag, recv=0)
    client.update_attach_flags(recv=ATTACH_ALL)


def test_a_bus_can_demand_everything_of_everybody(world: World) -> None:
    world.make_bus("1000-strict", required=ANY)
    node = world.find_endpoint(bus="1000-strict")
    for task in (world.owner, world.task(NOBODY), world.task(0, privileged=True)):
        with refused(ECONNREFUSED):
            world.connect(task, node=node, attach_send=ATTACH_ALL & ~Attach.AUDIT)
        world.connect(task, node=node, attach_send=ANY, pool_size=PAGE)


def test_wrong_bits_are_told_before_missing_ones(world: World) -> None:
    world.make_bus("1000-strict", required=ATTACH_ALL)
    node = world.find_endpoint(bus="1000-strict")
    with refused(EINVAL):
        world.connect(node=node, attach_send=1 << 20)
    with refused(EINVAL):
        world.connect(node=node, attach_send=0, attach_recv=1 << 20)
    with refused(ECONNREFUSED):
        world.connect(node=node, attach_send=0, attach_recv=0)


# Notifications


@FORMULAS
@pytest.mark.parametrize("recv", [0, ATTACH_ALL, int(Attach.CREDS)])
def test_a_notification_tells_when_it_was_and_nothing_else(
    world: World, nodes: Buses, formula: str, recv: int
) -> None:
    node = nodes[formula]
    reader, peer = world.connect(node=node, attach_recv=recv), world.connect(node=node)
    reader.add_match()
    peer.name_acquire(NAME)
    peer.name_release(NAME)
    for cookie in (1, 2):
        reader.send_small(peer, cookie=cookie, flags=Msg.EXPECT_REPLY, timeout_ms=100 * cookie)
    world.advance(100)
    peer.close()
    messages = reader.drain()
    assert [message.kind for message in messages] == [
        ItemType.NAME_ADD,
        ItemType.NAME_REMOVE,
        ItemType.REPLY_TIMEOUT,
        ItemType.ID_REMOVE,
        ItemType.REPLY_DEAD,
    ]
    for message in messages:
        assert message.metadata_kinds == [ItemType.TIMESTAMP]
        assert len(message.items) == 2
    numbers = [message.timestamp.seqnum for message in messages]
    assert numbers == sorted(set(numbers))
