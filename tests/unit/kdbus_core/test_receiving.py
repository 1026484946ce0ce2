"""RECV: messages are read, looked at and thrown away, and their files are handed over or closed."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EAGAIN, ECOMM, EINVAL, EOPNOTSUPP

import pytest
from broker_world import refused
from native_mail import inbox_of
from native_world import (
    NO_FLAGS,
    World,
    bulk,
    errno_of,
    everything,
    running_world,
)

from kdbus_core.abi import (
    AccessLevel,
    AccessType,
    HelloFlag,
    ItemType,
    MessageFlag,
    ReceiveFlag,
)
from kdbus_core.message import Vec
from kdbus_core.policy import Access

PEEK, DROP, USE_PRIORITY = ReceiveFlag.PEEK, ReceiveFlag.DROP, ReceiveFlag.USE_PRIORITY
EVERYBODY_TALKS = (Access(AccessType.WORLD, 0, AccessLevel.TALK),)
SIGNAL = MessageFlag.SIGNAL


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


# Files


def test_files_are_installed_when_a_message_is_read_and_closed_once(world: World) -> None:
    sender, receiver = world.connect_many(2)
    world.send(sender, receiver, 7, world.fds("a", "b"), world.memfd("m"))
    assert world.installed == []
    world.take(receiver)
    assert sorted(world.installed) == ["a", "b", "m"]
    world.assert_files_closed()


def test_files_are_not_sent_to_somebody_who_accepts_none_but_memory_is(world: World) -> None:
    sender, receiver = world.connect(), world.connect(flags=NO_FLAGS)
    with refused(ECOMM):
        world.send(sender, receiver, 7, world.fds("a"))
    world.assert_files_closed()
    world.send(sender, receiver, 8, world.memfd("m"))
    world.take(receiver)
    assert world.installed == ["m"]
    world.assert_files_closed()


def test_no_more_than_16_files_of_a_user_wait_at_a_receiver(world: World) -> None:
    sender, receiver = world.connect_many(2)
    world.send(sender, receiver, 1, world.fds(*"abcdefghijklmnop"))
    assert errno_of(lambda: world.send(sender, receiver, 2, world.fds("q"))) == "EMFILE"
    world.send(sender, receiver, 3, world.memfd("m"))
    assert world.read(receiver) == ["#1", "#3"]
    world.send(sender, receiver, 2, world.fds("q"))
    world.take(receiver)
    world.assert_files_closed()


def test_files_that_find_no_room_in_the_table_are_missed(world: World) -> None:
    sender, receiver = world.connect_many(2)
    world.has_room_for_files = False
    world.send(sender, receiver, 7, world.fds("a"))
    assert world.read(receiver) == ["#7 incomplete"]
    world.assert_files_closed()


@pytest.mark.parametrize("end", ["drop", "disconnect", "close"])
def test_files_of_unread_messages_are_closed(end: str) -> None:
    world = World()
    sender, receiver = world.connect_many(2)
    world.send(sender, receiver, 7, world.fds("a"), world.memfd("m"))
    if end == "drop":
        world.drop(receiver)
    elif end == "disconnect":
        world.bus.disconnect(receiver)
    else:
        world.bus.close()
    world.assert_files_closed()
    assert world.installed == []
    world.end()


def test_files_that_several_hold_are_closed_by_the_last(world: World) -> None:
    sender, receiver = world.connect_many(2)
    monitors = [world.connect(flags=HelloFlag.MONITOR | HelloFlag.ACCEPT_FD), world.connect_kind("monitor")]
    world.send(sender, receiver, 7, world.fds("a"), world.memfd("m"))
    world.take(receiver)
    world.take(monitors[0])
    assert sorted(world.installed) == ["a", "a", "m", "m"]
    world.take(monitors[1])
    assert sorted(world.installed) == ["a", "a", "m", "m", "m"]
    world.assert_files_closed()


# RECV


def test_without_messages_there_is_nothing_to_receive(world: World) -> None:
    me = world.connect()
    for flags in (0, PEEK, DROP, USE_PRIORITY, PEEK | DROP):
        got = world.bus.receive(me, flags, 0, world.install)
        assert got == (EAGAIN, inbox_of(me).pool.size, 0, 0, False)


def test_messages_are_received_in_order_or_by_priority(world: World) -> None:
    sender, receiver = world.connect_many(2)
    for cookie, priority in enumerate((5, -1, 5, 0, -1)):
        world.send(sender, receiver, cookie, priority=priority)
    order = []
    for limit in (-2, -1, 0, 4, 4):
        mail, _, _ = world.receive(receiver, USE_PRIORITY, limit)
        order.append(None if mail is None else mail.cookie)
    assert order == [None, 1, 4, 3, None]
    assert world.read(receiver) == ["#0", "#2"]


def test_a_message_can_be_looked_at_and_stays(world: World) -> None:
    sender, receiver = world.connect_many(2)
    world.send(sender, receiver, 7, world.fds("a"))
    for _ in range(2):
        mail, _, _ = world.receive(receiver, PEEK)
        assert mail is not None
        assert mail.words == "#7"
        assert mail.item(ItemType.FDS).payload == b"\xff\xff\xff\xff"
    assert world.installed == []
    inbox_of(receiver).pool.free(0)
    assert world.read(receiver) == ["#7"]
    assert inbox_of(receiver).pool.busy == 0


def test_the_most_urgent_message_can_be_looked_at(world: World) -> None:
    sender, receiver = world.connect_many(2)
    world.send(sender, receiver, 1, priority=4)
    world.send(sender, receiver, 2, priority=3)
    mail, _, _ = world.receive(receiver, PEEK | USE_PRIORITY, 3)
    assert mail is not None
    assert mail.cookie == 2


@pytest.mark.parametrize("flags", [DROP, DROP | PEEK])
def test_the_first_message_can_be_thrown_away(world: World, flags: int) -> None:
    sender, receiver = world.connect_many(2)
    for cookie in (1, 2):
        world.send(sender, receiver, cookie, priority=-cookie)
    assert world.receive(receiver, flags) == (None, 0, False)
    assert world.read(receiver) == ["#2"]


def test_what_was_looked_at_and_thrown_away_can_be_read_until_it_is_freed(world: World) -> None:
    sender, receiver = world.connect_many(2)
    world.send(sender, receiver, 7, Vec(b"contents"))
    world.receive(receiver, PEEK)
    world.drop(receiver)
    world.assert_idle(receiver)
    assert inbox_of(receiver).pool.busy
    inbox_of(receiver).pool.free(0)
    assert inbox_of(receiver).pool.busy == 0


def test_nothing_is_thrown_away_by_priority(world: World) -> None:
    sender, receiver = world.connect_many(2)
    world.send(sender, receiver, 7)
    inbox_of(receiver).on_lost()
    with refused(EINVAL):
        world.receive(receiver, DROP | USE_PRIORITY)
    assert world.read(receiver) == ["lost 1", "#7"]


@pytest.mark.parametrize("flags", [0, PEEK, DROP, USE_PRIORITY])
@pytest.mark.parametrize("waits", [False, True])
def test_losses_are_reported_once_whatever_is_received(world: World, flags: int, waits: bool) -> None:
    sender, receiver = world.connect_many(2)
    if waits:
        world.send(sender, receiver, 7)
    for _ in range(3):
        inbox_of(receiver).on_lost()
    _, lost, _ = world.receive(receiver, flags)
    assert lost == 3
    _, lost, _ = world.receive(receiver, flags)
    assert lost == 0


def test_a_policy_holder_receives_nothing(world: World) -> None:
    holder = world.connect_kind("policy holder")
    with refused(EOPNOTSUPP):
        world.receive(holder)


def test_a_connection_is_ready_for_each_message_and_each_loss(world: World) -> None:
    ready: list[int] = []
    receiver = world.connect(pages=1, on_ready=lambda: ready.append(len(inbox_of(receiver))))
    sender = world.connect()
    world.listen(receiver, everything())
    world.send(sender, receiver, 1)
    world.signal(sender, None, 2, bulk(2000))
    world.send(sender, receiver, 3)
    assert ready == [1, 1, 2]
