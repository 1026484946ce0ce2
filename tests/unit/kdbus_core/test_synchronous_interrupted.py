"""Senders that are interrupted while they wait: the request stays, and they come back to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EBADSLT, ETIMEDOUT

import pytest
from broker_world import refused
from native_mail import inbox_of
from native_world import (
    NAME,
    SECOND,
    World,
    running_world,
)
from waiting_scene import Scene

from kdbus_core import Connection
from kdbus_core.connection import Limits

FOREVER = 2**64 - 1


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


def test_an_interrupted_call_is_taken_up_again_without_being_sent_again(world: World) -> None:
    scene = Scene(world)
    scene.interrupt()
    again = scene.call_again()
    assert world.read(scene.replier) == ["#7"]
    scene.answer()
    assert again.outcomes == ["#8"]
    assert scene.waiter.outcomes == ["EINTR"]
    world.assert_idle(scene.caller, scene.replier)


def test_files_of_a_call_that_is_taken_up_again_are_closed_and_not_sent_again(world: World) -> None:
    caller, replier = world.connect_many(2)
    waiter = world.call(caller, replier, 7, world.fds("a"))
    waiter.interrupt()
    world.call(caller, replier, 7, world.fds("a again"))
    world.take(replier)
    assert world.installed == ["a"]
    world.assert_files_closed()


def test_a_call_may_be_interrupted_many_times(world: World) -> None:
    scene = Scene(world, is_read=True)
    scene.interrupt()
    for _ in range(3):
        again = scene.call_again()
        again.interrupt()
        assert again.outcomes == ["EINTR"]
    last = scene.call_again()
    scene.die()
    assert last.outcomes == ["EPIPE"]


def test_a_call_taken_up_again_keeps_its_deadline(world: World) -> None:
    scene = Scene(world, is_read=True)
    scene.interrupt()
    again = scene.call_again(wait=10 * SECOND)
    world.pass_time()
    assert again.outcomes == ["ETIMEDOUT"]
    assert world.read(scene.caller) == []


def test_a_call_taken_up_with_less_time_keeps_its_deadline_for_who_comes_next(world: World) -> None:
    scene = Scene(world)
    scene.interrupt()
    world.pass_time(SECOND // 2)
    hurried = scene.call_again(wait=SECOND // 10)
    hurried.interrupt()
    world.pass_time(SECOND // 4)
    last = scene.call_again()
    assert world.read(scene.replier) == ["#7"]
    world.pass_time(SECOND // 4)
    assert (hurried.outcomes, last.outcomes) == (["EINTR"], ["ETIMEDOUT"])


def test_a_call_that_waits_or_was_cancelled_is_not_taken_up_again_but_sent_once_more(world: World) -> None:
    scene = Scene(world)
    second = scene.call_again()
    scene.cancel()
    third = scene.call_again()
    assert world.read(scene.replier) == ["#7"] * 3
    assert (scene.waiter.outcomes, second.outcomes, third.outcomes) == (["ECANCELED"], ["ECANCELED"], [])


def test_a_request_that_nobody_waits_for_is_not_taken_up_by_a_call(world: World) -> None:
    caller, replier = world.connect_many(2)
    world.request(caller, replier, 7)
    waiter = world.call(caller, replier, 7)
    assert world.read(replier) == ["#7", "#7"]
    world.reply(replier, caller, 7, 8)
    world.reply(replier, caller, 7, 9)
    assert waiter.outcomes == ["#8"]
    assert world.read(caller) == ["#9"]


@pytest.mark.parametrize("end", [Scene.let_pass, Scene.die, Scene.throw_away])
def test_an_interrupted_call_is_not_told_of_its_end(world: World, end: Callable[[Scene], None]) -> None:
    scene = Scene(world)
    scene.interrupt()
    end(scene)
    assert scene.waiter.outcomes == ["EINTR"]
    assert world.read(scene.caller) == []


@pytest.mark.parametrize("end", [Scene.die, Scene.throw_away])
def test_who_takes_up_a_call_learns_how_it_has_ended(world: World, end: Callable[[Scene], None]) -> None:
    scene = Scene(world)
    scene.interrupt()
    end(scene)
    assert scene.call_again().outcomes == ["EPIPE"]
    world.assert_idle(scene.caller, scene.replier)


def test_how_an_interrupted_call_has_ended_is_forgotten_at_its_deadline(world: World) -> None:
    scene = Scene(world)
    scene.interrupt()
    scene.answer()
    scene.let_pass()
    again = scene.call_again()
    assert again.outcomes == []
    assert world.read(scene.replier) == ["#7", "#7"]
    scene.break_off()
    world.assert_idle(scene.replier)


def keep_reply(scene: Scene) -> None:
    """Interrupt the call; its reply, with a file, then waits for whoever takes it up."""
    scene.interrupt()
    scene.world.reply(scene.replier, scene.caller, 7, 8, scene.world.fds("a"))
    assert scene.caller.calls
    assert scene.caller.quota.total_memory
    assert inbox_of(scene.caller).pool.busy


def test_a_reply_that_nobody_takes_up_is_kept_until_its_deadline_and_no_longer(world: World) -> None:
    scene = Scene(world, is_read=True)
    keep_reply(scene)
    assert world.bus.replies.next_deadline() == world.clock.now + SECOND
    world.pass_time(SECOND - 1)
    assert scene.caller.calls
    world.pass_time(1)
    assert world.bus.replies.next_deadline() is None
    assert inbox_of(scene.caller).pool.busy == 0
    assert world.read(scene.caller) == []
    world.assert_idle(scene.caller, scene.replier)
    world.assert_files_closed()


def test_who_comes_back_after_the_deadline_finds_that_the_reply_has_gone(world: World) -> None:
    scene = Scene(world, is_read=True)
    keep_reply(scene)
    world.pass_time(3 * SECOND)
    with refused(ETIMEDOUT):
        scene.call_again(wait=-SECOND)
    world.assert_idle(scene.caller, scene.replier)
    world.assert_files_closed()


def test_the_deadline_of_a_reply_that_was_taken_up_means_nothing_more(world: World) -> None:
    scene = Scene(world, is_read=True)
    keep_reply(scene)
    assert scene.call_again().outcomes == ["#8"]
    assert world.bus.replies.next_deadline() is None
    second = world.call(scene.caller, scene.replier, 7, wait=2 * SECOND)
    world.pass_time()
    assert second.outcomes == []


def get_reply(world: World, caller: Connection, replier: Connection, cookie: int) -> None:
    world.take(replier)
    world.reply(replier, caller, cookie, 99, world.fds(f"of {cookie}"))


def get_none(world: World, caller: Connection, replier: Connection, cookie: int) -> None:
    world.drop(replier)


@pytest.mark.parametrize(("end", "outcome"), [(get_reply, "#99"), (get_none, "EPIPE")])
def test_no_more_outcomes_are_kept_than_requests_may_be_outstanding(
    world: World, end: Callable[[World, Connection, Connection, int], None], outcome: str
) -> None:
    caller = world.connect(limits=Limits(outstanding_requests=3))
    replier = world.connect()
    for cookie in range(1, 11):
        world.call(caller, replier, cookie, wait=FOREVER - world.clock.now).interrupt()
        end(world, caller, replier, cookie)
    assert [call.cookie for call in caller.calls] == [8, 9, 10]
    assert [world.call(caller, replier, cookie).outcomes for cookie in (8, 9, 10)] == [[outcome]] * 3
    world.assert_idle(caller, replier)
    world.assert_files_closed()


def test_another_destination_makes_it_another_call(world: World) -> None:
    scene = Scene(world)
    other = world.connect()
    scene.interrupt()
    world.call(scene.caller, other, 7)
    assert world.read(other) == ["#7"]


def test_after_its_deadline_an_interrupted_call_is_sent_once_more(world: World) -> None:
    scene = Scene(world)
    scene.interrupt()
    scene.let_pass()
    scene.call_again()
    assert world.read(scene.replier) == ["#7", "#7"]


def test_a_reply_to_an_interrupted_call_waits_for_who_takes_it_up(world: World) -> None:
    scene = Scene(world, is_read=True)
    scene.interrupt()
    world.reply(scene.replier, scene.caller, 7, 8, world.fds("a"))
    assert world.read(scene.caller) == []
    assert world.installed == []
    assert scene.call_again().outcomes == ["#8"]
    assert world.installed == ["a"]
    with refused(EBADSLT):
        world.reply(scene.replier, scene.caller, 7, 9)


def test_a_reply_that_nobody_takes_up_goes_with_the_caller(world: World) -> None:
    scene = Scene(world, is_read=True)
    scene.interrupt()
    world.reply(scene.replier, scene.caller, 7, 8, world.fds("a"))
    world.bus.disconnect(scene.caller)
    world.assert_files_closed()
    assert scene.waiter.outcomes == ["EINTR"]


def test_an_interrupted_call_is_taken_up_where_its_name_has_gone(world: World) -> None:
    caller, service = world.connect_many(2)
    world.connect_activator()
    first = world.call(caller, NAME, 7)
    first.interrupt()
    world.bus.name_acquire(service, NAME, 0)
    again = world.call(caller, NAME, 7)
    assert world.read(service) == ["#7"]
    world.reply(service, caller, 7, 8)
    assert (first.outcomes, again.outcomes) == (["EINTR"], ["#8"])


def test_an_interrupted_caller_may_go(world: World) -> None:
    scene = Scene(world)
    scene.interrupt()
    scene.break_off()
    world.drop(scene.replier)
    assert scene.waiter.outcomes == ["EINTR"]
    world.assert_idle(scene.caller, scene.replier)
