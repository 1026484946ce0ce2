"""The order in which a bus tells what its commands have caused."""

from __future__ import annotations

from errno import (
    EADDRINUSE,
    EEXIST,
)

import pytest
from broker_world import OWNER, Recorder, World, kinds, refused

from kdbus_core import Connection, Credentials
from kdbus_core.message import Message
from kdbus_core.metadata import Process
from kdbus_core.names import ALLOW_REPLACEMENT, PRIMARY, QUEUE, REPLACE_EXISTING
from kdbus_core.notifications import IdAdd, IdRemove, NameChange, Notification, ReplyDead, ReplyTimeout

NAME = "org.example.Name"
ROOT = Credentials(uid=0, gid=0)
FAKED = Credentials(uid=3000, gid=3000, pid=77)


def test_what_a_command_causes_has_been_told_when_it_returns() -> None:
    world = World()
    first, second = world.connect_many(2)
    world.bus.name_acquire(first, NAME, ALLOW_REPLACEMENT)
    assert len(world.take_news()) == 1
    world.bus.name_acquire(second, NAME, REPLACE_EXISTING)
    assert len(world.take_news()) == 1
    world.bus.name_release(second, NAME)
    assert len(world.take_news()) == 1


def test_every_observer_is_told_and_the_requester_alone_of_its_reply() -> None:
    world = World()
    seen: list[Notification] = []
    world.bus.observers.append(seen.append)
    requester_log: list[Notification] = []
    requester = world.bus.hello(world.bus.endpoint, Process.of(OWNER), sink=Recorder(requester_log))
    other, gone = world.connect_many(2)
    seen.clear()
    world.open_request(requester, gone, 1)
    world.open_request(requester, other, 2, 10)
    world.bus.disconnect(gone)
    world.bus.expire_replies(10)
    assert requester_log == [ReplyDead(requester, 1), ReplyTimeout(requester, 2)]
    assert seen == world.news == [IdRemove(gone)]


def test_in_a_transaction_nothing_is_told_before_the_end() -> None:
    world = World()
    first, second = world.connect_many(2)
    with world.bus.transaction():
        world.bus.name_acquire(first, NAME, QUEUE)
        third = world.connect()
        with world.bus.transaction():
            world.bus.name_acquire(second, NAME, QUEUE)
            world.bus.name_release(first, NAME)
        world.bus.expire_replies(10)
        assert not world.news
    flags = QUEUE | PRIMARY
    assert world.take_news() == [
        NameChange(NAME, None, 0, first, flags),
        IdAdd(third),
        NameChange(NAME, first, flags, second, flags),
    ]


def test_what_happened_is_told_even_if_a_later_part_of_the_transaction_is_refused() -> None:
    world = World()
    first, second = world.connect_many(2)

    def command() -> None:
        with world.bus.transaction():
            world.bus.name_acquire(first, NAME, 0)
            world.bus.name_acquire(second, NAME, 0)

    with refused(EEXIST):
        command()
    assert kinds(world.take_news()) == [NameChange]
    world.bus.name_release(first, NAME)
    assert kinds(world.take_news()) == [NameChange]


def test_a_refused_command_tells_nothing() -> None:
    world = World()
    first, second = world.connect_many(2)
    world.bus.name_acquire(first, NAME, 0)
    world.news.clear()
    with refused(EEXIST):
        world.bus.name_acquire(second, NAME, 0)
    with refused(EADDRINUSE):
        world.bus.name_release(second, NAME)
    assert not world.news


def test_what_an_observer_causes_is_told_after_what_it_was_told() -> None:
    world = World()
    first, second = world.connect_many(2)
    world.bus.name_acquire(second, "org.example.Second", 0)

    def follow(notification: Notification) -> None:
        if notification == IdRemove(first):
            world.bus.disconnect(second)

    world.bus.observers.append(follow)
    world.news.clear()
    world.bus.disconnect(first)
    assert world.take_news() == [
        IdRemove(first),
        NameChange("org.example.Second", second, PRIMARY, None, 0),
        IdRemove(second),
    ]


def test_what_an_observer_causes_reaches_all_observers_in_one_order() -> None:
    world = World()
    first, second, third = world.connect_many(3)
    world.bus.name_acquire(second, NAME, 0)
    world.bus.name_acquire(third, NAME, QUEUE)
    early: list[Notification] = []
    late: list[Notification] = []

    def lead(notification: Notification) -> None:
        early.append(notification)
        if notification == IdRemove(first):
            world.bus.disconnect(second)

    def follow(notification: Notification) -> None:
        late.append(notification)
        if notification == IdRemove(first):
            world.bus.name_acquire(third, "org.example.Other", 0)

    world.bus.observers[:] = [lead, follow]
    world.bus.disconnect(first)
    assert early == late
    assert early == [
        IdRemove(first),
        NameChange(NAME, second, PRIMARY, third, QUEUE | PRIMARY),
        IdRemove(second),
        NameChange("org.example.Other", None, 0, third, PRIMARY),
    ]


def test_what_an_observer_causes_in_a_transaction_of_its_own_waits_for_its_turn_too() -> None:
    world = World()
    first, second = world.connect_many(2)
    late: list[Notification] = []

    def lead(notification: Notification) -> None:
        if notification == IdRemove(first):
            with world.bus.transaction():
                world.bus.name_acquire(second, NAME, 0)
                world.bus.name_release(second, NAME)

    world.bus.observers[:] = [lead, late.append]
    world.bus.disconnect(first)
    assert late == [
        IdRemove(first),
        NameChange(NAME, None, 0, second, PRIMARY),
        NameChange(NAME, second, PRIMARY, None, 0),
    ]


def test_an_observer_that_fails_holds_nothing_up() -> None:
    world = World()
    (first,) = world.connect_many(1)
    world.bus.name_acquire(first, NAME, 0)
    world.news.clear()
    failed: list[Notification] = []

    def fail(notification: Notification) -> None:
        failed.append(notification)
        raise RuntimeError

    world.bus.observers.append(fail)
    with pytest.raises(RuntimeError):
        world.bus.disconnect(first)
    expected = [NameChange(NAME, first, PRIMARY, None, 0), IdRemove(first)]
    assert world.take_news() == failed == expected
    assert world.bus.order.is_idle


def test_what_a_sink_causes_is_told_before_the_command_returns() -> None:
    world = World()

    class Leaver:
        connection: Connection

        def on_reply_lost(self, notification: ReplyDead | ReplyTimeout) -> None:
            world.bus.disconnect(self.connection)

        def on_message(self, sender: Connection, message: Message) -> None:
            raise AssertionError(f"{sender} has sent {message}")

    leaver = Leaver()
    leaver.connection = world.bus.hello(world.bus.endpoint, Process.of(OWNER), sink=leaver)
    (gone,) = world.connect_many(1)
    world.open_request(leaver.connection, gone, 1)
    world.open_request(leaver.connection, gone, 2)
    world.bus.disconnect(gone)
    assert world.take_news() == [IdRemove(gone), IdRemove(leaver.connection)]
    world.assert_holds_nothing()
