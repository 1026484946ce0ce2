"""Callbacks find the bus in order: what caused them is complete, and what they do comes after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EOPNOTSUPP

import pytest
from broker_world import refused
from native_world import EVERY_NOTICE, NAME, OWNER, World, errno_of, running_world
from waiting_scene import Scene

from kdbus_core import SyncCall
from kdbus_core.items import ID_NOTICE


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


def in_a_callback(world: World, act: Callable[[], None]) -> None:
    """Have somebody who is woken by a reply do something before anybody else can."""
    caller, replier = world.connect_many(2)
    done: list[int] = []

    def on_done(call: SyncCall) -> None:
        act()
        done.append(call.errno)

    world.call(caller, replier, 99, on_done=on_done)
    world.reply(replier, caller, 99, 98)
    assert done == [0]


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


# What a callback does is a command like any other


def test_news_of_what_a_callback_did_comes_before_what_it_sends_next(world: World) -> None:
    owner, listener = world.connect_many(2)

    def act() -> None:
        world.listen(listener, *EVERY_NOTICE)
        world.bus.name_acquire(owner, NAME, 0)
        world.send(owner, listener, 9)

    in_a_callback(world, act)
    assert world.read(listener) == [f"NAME_ADD {NAME} 0→{owner.id}", "#9"]


def test_a_request_that_dies_in_a_callback_is_said_to_be_dead_before_what_is_sent_next(world: World) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7)

    def act() -> None:
        world.drop(replier)
        world.send(replier, requester, 9)

    in_a_callback(world, act)
    assert world.read(requester) == ["REPLY_DEAD #7", "#9"]


def test_who_says_bye_in_a_callback_is_gone_for_everybody_when_the_command_returns(world: World) -> None:
    leaver, listener = world.connect_many(2)
    found: list[list[str]] = []

    def act() -> None:
        world.listen(listener, *EVERY_NOTICE)
        world.bus.byebye(leaver)
        found.append(world.read(listener))

    in_a_callback(world, act)
    assert found == [[f"ID_REMOVE {leaver.id}"]]
    assert world.read(listener) == []


# Whatever ends many waits is one command


def test_when_one_hears_that_the_bus_has_ended_nobody_is_left_on_it(world: World) -> None:
    scene = Scene(world)
    other = world.connect(endpoint=world.bus.make_endpoint("1000-door", OWNER))
    seen: list[tuple[bool, str]] = []

    def look_around(call: SyncCall) -> None:
        seen.append((other.active, errno_of(lambda: world.send(other, scene.caller, 9))))

    world.call(scene.caller, scene.replier, 9, on_done=look_around)
    world.bus.close()
    assert seen == [(False, "ESHUTDOWN")]
    assert scene.waiter.outcomes == ["ESHUTDOWN"]


def test_when_one_hears_that_the_bus_has_ended_its_name_is_free(world: World) -> None:
    scene = Scene(world)
    name = world.bus.name
    seen: list[str] = []

    def make_again(call: SyncCall) -> None:
        seen.append(errno_of(lambda: world.domain.make_bus(name, OWNER)))

    world.call(scene.caller, scene.replier, 9, on_done=make_again)
    world.bus.close()
    assert seen == [""]
    world.domain.buses[name].close()


def test_a_callback_that_fails_does_not_keep_the_name_of_a_bus_that_has_ended() -> None:
    world = World()
    caller, replier = world.connect_many(2)

    def fail(call: SyncCall) -> None:
        raise RuntimeError

    world.call(caller, replier, 7, on_done=fail)
    with pytest.raises(RuntimeError):
        world.bus.close()
    world.end()


def test_when_one_hears_that_an_endpoint_has_ended_nobody_is_left_on_it(world: World) -> None:
    endpoint = world.bus.make_endpoint("1000-door", OWNER)
    caller = world.connect()
    inside = [world.connect(endpoint=endpoint) for _ in range(2)]
    seen: list[list[str]] = []

    def ask_all(call: SyncCall) -> None:
        seen.append([errno_of(lambda to=to: world.send(caller, to, 9)) for to in inside])  # type: ignore[misc]

    world.call(caller, inside[0], 7, on_done=ask_all)
    endpoint.close()
    assert seen == [["ENXIO", "ENXIO"]]


def test_when_one_hears_that_it_was_cancelled_so_were_all_with_its_cookie(world: World) -> None:
    caller, replier = world.connect_many(2)
    calls: list[SyncCall] = []
    seen: list[list[bool]] = []

    def look_around(call: SyncCall) -> None:
        seen.append([each.done for each in calls])

    for _ in range(3):
        waiter = world.call(caller, replier, 7, on_done=look_around)
        assert waiter.call is not None
        calls.append(waiter.call)
    world.bus.cancel(caller, 7)
    assert seen == [[True] * 3] * 3


# What goes wrong


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
