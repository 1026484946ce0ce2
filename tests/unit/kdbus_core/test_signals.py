"""Broadcasts and signals to one connection: who hears them, and what becomes of those that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from native_mail import inbox_of
from native_world import (
    NAME,
    NO_FLAGS,
    OTHER,
    OWNER,
    STRANGER,
    World,
    errno_of,
    everything,
    running_world,
)

from kdbus_core import Connection
from kdbus_core.abi import (
    DST_BROADCAST,
    AccessLevel,
    AccessType,
    HelloFlag,
    ItemType,
    MessageFlag,
    ReceiveFlag,
)
from kdbus_core.matches import BloomMask, DstIdMatch, Filter, IdMatch, NameMatch
from kdbus_core.message import Vec
from kdbus_core.policy import Access

PEEK, DROP, USE_PRIORITY = ReceiveFlag.PEEK, ReceiveFlag.DROP, ReceiveFlag.USE_PRIORITY
EVERYBODY_TALKS = (Access(AccessType.WORLD, 0, AccessLevel.TALK),)
SIGNAL = MessageFlag.SIGNAL


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


# Broadcasts


def test_a_broadcast_reaches_everybody_who_wants_it_its_sender_too(world: World) -> None:
    sender, listener, other = world.connect_many(3)
    world.listen(sender, everything())
    world.listen(listener, everything(), IdMatch(sender.id))
    world.signal(sender, None, 7, Vec(b"news"))
    mail = world.take(listener)
    assert (mail.src, mail.dst, mail.flags, mail.payload) == (sender.id, DST_BROADCAST, 4, b"news\0\0\0\0")
    assert mail.item(ItemType.BLOOM_FILTER).payload == bytes(72)
    assert [world.read(connection) for connection in (sender, listener, other)] == [["#7"], [], []]


def test_a_broadcast_that_nobody_wants_succeeds(world: World) -> None:
    sender = world.connect()
    world.signal(sender, None, 7, world.memfd("m"))
    world.assert_files_closed()


def test_a_broadcast_reaches_those_whose_mask_it_contains(world: World) -> None:
    sender, listener, other = world.connect_many(3)
    low, high = bytes([1]) + bytes(63), bytes(63) + bytes([0x80])
    world.listen(listener, BloomMask((low,)))
    world.listen(other, BloomMask((high, low)))
    world.signal(sender, None, 7, Filter(0, low))
    world.signal(sender, None, 8, Filter(5, low))
    assert world.read(listener) == ["#7", "#8"]
    assert world.read(other) == ["#8"]


def test_a_broadcast_may_be_chosen_by_a_name_of_its_sender(world: World) -> None:
    sender, listener = world.connect_many(2)
    world.listen(listener, NameMatch(NAME))
    world.signal(sender, None, 1)
    world.bus.name_acquire(sender, NAME, 0)
    world.signal(sender, None, 2)
    world.bus.name_release(sender, NAME)
    world.signal(sender, None, 3)
    assert world.read(listener) == ["#2"]


def test_who_may_not_talk_to_the_sender_does_not_hear_it(world: World) -> None:
    sender, listener, stranger = world.connect(OTHER), world.connect(OTHER), world.connect(STRANGER)
    for connection in (listener, stranger):
        world.listen(connection, everything())
    world.signal(sender, None, 1)
    world.connect(
        flags=HelloFlag.POLICY_HOLDER,
        name=NAME,
        accesses=[Access(AccessType.USER, 3000, AccessLevel.OWN), *EVERYBODY_TALKS],
    )
    world.bus.name_acquire(sender, NAME, 0)
    world.signal(sender, None, 2)
    assert world.read(listener) == ["#1", "#2"]
    assert world.read(stranger) == ["#2"]


def test_a_broadcast_that_finds_no_room_is_lost_for_that_receiver_alone(world: World) -> None:
    sender, listener, full, fuller = world.connect_many(4)
    for connection in (listener, full, fuller):
        world.listen(connection, everything())
    refund, free = world.use_up_quota(full), world.use_up_pool(fuller)
    for cookie in (1, 2):
        world.signal(sender, None, cookie, world.memfd("m"))
    assert world.read(listener) == ["#1", "#2"]
    world.assert_files_closed()
    assert inbox_of(full).readable
    refund()
    free()
    world.signal(sender, None, 3)
    assert world.read(full) == world.read(fuller) == ["lost 2", "#3"]


def test_a_local_connection_gets_no_broadcast(world: World) -> None:
    sender = world.connect()
    local = world.bus.hello(world.bus.endpoint, OWNER)
    world.bus.match_add(local, 1, [everything()])
    world.signal(sender, None, 7)
    world.bus.disconnect(local)


# Signals to one connection


def test_a_signal_to_one_reaches_it_if_it_wants_it(world: World) -> None:
    sender, listener, deaf = world.connect_many(3)
    world.listen(listener, DstIdMatch(listener.id))
    for cookie, to in enumerate((listener, deaf)):
        world.signal(sender, to, cookie)
    world.bus.name_acquire(listener, NAME, 0)
    world.signal(sender, NAME, 2)  # is not sent to its number
    assert world.read(listener) == ["#0"]
    assert world.read(deaf) == []


def test_a_signal_to_a_name_reaches_its_owner(world: World) -> None:
    sender, listener = world.connect_many(2)
    world.listen(listener, everything())
    world.bus.name_acquire(listener, NAME, 0)
    world.signal(sender, NAME, 7)
    assert world.read(listener) == ["#7"]


def test_a_signal_to_one_is_heard_by_whoever_may_talk_to_its_sender(world: World) -> None:
    sender, listener = world.connect(STRANGER), world.connect(OTHER)
    owner = world.connect()
    for connection in (listener, owner):
        world.listen(connection, everything())
        world.signal(sender, connection, 1)
    assert world.read(listener) == []
    assert world.read(owner) == ["#1"]


def test_a_signal_to_nobody_is_refused_like_any_message(world: World) -> None:
    sender, gone = world.connect_many(2)
    world.bus.disconnect(gone)
    assert errno_of(lambda: world.signal(sender, gone, 1, world.memfd("m"))) == "ENXIO"
    assert errno_of(lambda: world.signal(sender, NAME, 1)) == "ESRCH"
    world.assert_files_closed()


@pytest.mark.parametrize("obstacle", [World.use_up_quota, World.use_up_pool])
def test_a_signal_to_one_that_finds_no_room_is_lost_for_it(
    world: World, obstacle: Callable[[World, Connection], Callable[[], None]]
) -> None:
    sender, listener = world.connect_many(2)
    world.listen(listener, everything())
    remove = obstacle(world, listener)
    world.signal(sender, listener, 7, world.memfd("m"))
    remove()
    assert world.read(listener) == ["lost 1"]
    world.assert_files_closed()


def test_a_signal_with_files_is_lost_for_whoever_accepts_none(world: World) -> None:
    sender, listener = world.connect(), world.connect(flags=NO_FLAGS)
    world.listen(listener, everything())
    world.signal(sender, listener, 7, world.fds("a"))
    assert world.read(listener) == ["lost 1"]
    world.assert_files_closed()
