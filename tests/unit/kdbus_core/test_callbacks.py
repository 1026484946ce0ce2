"""Callbacks find the bus in order: what caused them is complete, and what they do comes after it."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EOPNOTSUPP

import pytest
from broker_world import refused
from native_world import EVERY_NOTICE, NAME, OWNER, World, errno_of, running_world

from kdbus_core import SyncCall
from kdbus_core.items import ID_NOTICE


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


def test_a_caller_that_is_woken_does_not_find_the_dead(world: World) -> None:
    caller, replier = world.connect_many(2)
    seen: list[str] = []

    def ask_again(call: SyncCall) -> None:
        seen.append(errno_of(lambda: world.request(caller, replier, 9)))

    world.call(caller, replier, 7, on_done=ask_again)
    world.bus.disconnect(replier)
    assert seen == ["ENXIO"]


def test_what_a_woken_caller_sends_comes_after_the_news_of_the_death(world: World) -> None:
    caller, replier, listener = world.connect_many(3)
    world.listen(listener, *EVERY_NOTICE)
    world.call(caller, replier, 7, on_done=lambda _: world.send(caller, listener, 9))
    world.bus.disconnect(replier)
    assert world.read(listener) == [f"ID_REMOVE {replier.id}", "#9"]


def test_what_an_observer_sends_comes_after_all_news(world: World) -> None:
    listener, sender, gone = world.connect_many(3)
    world.bus.name_acquire(gone, NAME, 0)
    world.listen(listener, *EVERY_NOTICE)
    once = [lambda: world.send(sender, listener, 5)]
    world.bus.observers.append(lambda _: once.pop()() if once else None)
    world.bus.disconnect(gone)
    world.bus.observers.clear()
    assert world.read(listener) == [f"NAME_REMOVE {NAME} {gone.id}→0", f"ID_REMOVE {gone.id}", "#5"]


def test_a_callback_that_fails_does_not_keep_the_dead_alive() -> None:
    world = World()
    first, second, replier = world.connect_many(3)

    def fail(call: SyncCall) -> None:
        raise RuntimeError

    world.call(first, replier, 7, on_done=fail)
    world.request(second, replier, 8)
    with pytest.raises(RuntimeError):
        world.bus.disconnect(replier)
    assert replier.id not in world.bus.connections
    assert world.read(second) == ["REPLY_DEAD #8"]
    world.end()


def test_a_reply_that_its_caller_did_not_live_to_take_goes_with_it(world: World) -> None:
    caller, replier = world.connect_many(2)
    ends: list[int] = []
    world.call(caller, replier, 7, on_done=lambda call: ends.append(call.errno))
    world.read(replier)
    with world.bus.transaction():
        world.reply(replier, caller, 7, 8, world.fds("a"))
        world.bus.disconnect(caller)
    assert len(ends) == 1
    assert ends[0] != 0
    world.assert_files_closed()


def test_a_connection_that_becomes_a_monitor_is_said_to_be_gone_as_what_it_was(world: World) -> None:
    listener = world.connect()
    world.listen(listener, *EVERY_NOTICE)
    local = world.bus.hello(world.bus.endpoint, OWNER)
    world.take(listener)
    world.bus.become_monitor(local)
    mail = world.take(listener)
    world.bus.disconnect(local)
    assert ID_NOTICE.unpack(mail.items[0].payload) == (local.id, 0)


def test_a_native_connection_does_not_become_a_monitor(world: World) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7)
    with refused(EOPNOTSUPP):
        world.bus.become_monitor(requester)
