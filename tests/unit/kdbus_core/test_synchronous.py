"""Senders that wait for the reply: they get it, or an errno, once, and nothing of it is ever queued."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EBADSLT, EMLINK, ENOENT, EOPNOTSUPP, ESHUTDOWN, ETIMEDOUT

import pytest
from broker_world import refused
from native_mail import inbox_of, look
from native_world import (
    NO_FLAGS,
    OWNER,
    SECOND,
    STRANGER,
    World,
    errno_of,
    running_world,
)
from waiting_scene import Scene

from kdbus_core import Connection
from kdbus_core.abi import MessageFlag
from kdbus_core.connection import Limits
from kdbus_core.message import Vec
from kdbus_core.synchronous import SyncCall


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


# Exactly one outcome


ENDS: dict[Callable[[Scene], None], str] = {
    Scene.answer: "#8",
    Scene.die: "EPIPE",
    Scene.leave: "EPIPE",
    Scene.throw_away: "EPIPE",
    Scene.let_pass: "ETIMEDOUT",
    Scene.cancel: "ECANCELED",
    Scene.cancel_one: "ECANCELED",
    Scene.hang_up: "ESHUTDOWN",
    Scene.break_off: "ESHUTDOWN",
}


@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("first", ENDS)
def test_a_call_has_one_outcome_whatever_comes_later(
    world: World, first: Callable[[Scene], None], is_read: bool
) -> None:
    if is_read and first is Scene.throw_away:
        return
    scene = Scene(world, is_read=is_read)
    assert scene.waiter.outcomes == []
    first(scene)
    assert scene.waiter.outcomes == [ENDS[first]]
    for end in ENDS:
        if scene.caller.active:
            assert world.read(scene.caller) == []
        errno_of(lambda end=end: end(scene))  # type: ignore[misc]
    assert scene.waiter.outcomes == [ENDS[first]]
    world.assert_idle(scene.caller, scene.replier)


@pytest.mark.parametrize("end", [Scene.let_pass, Scene.cancel])
def test_a_reply_to_somebody_who_has_given_up_finds_no_request(
    world: World, end: Callable[[Scene], None]
) -> None:
    scene = Scene(world, is_read=True)
    end(scene)
    with refused(EBADSLT):
        scene.answer()
    assert world.read(scene.caller) == []


def test_a_reply_that_came_in_the_same_instant_wins_over_the_deadline(world: World) -> None:
    scene = Scene(world)
    world.clock.now += SECOND
    scene.answer()
    scene.let_pass()
    assert scene.waiter.outcomes == ["#8"]


# The reply


def test_a_reply_lies_in_the_callers_pool_and_never_in_its_queue(world: World) -> None:
    ready: list[None] = []
    caller = world.connect(on_ready=lambda: ready.append(None))
    replier = world.connect()
    done: list[tuple[int, int, bool]] = []
    world.call(caller, replier, 7, on_done=lambda call: done.append(call.take(world.install)))
    world.take(replier)
    world.reply(replier, caller, 7, 8, Vec(b"answer"))
    ((offset, size, incomplete),) = done
    assert not incomplete
    assert not ready
    assert not inbox_of(caller).readable
    mail = look(caller, offset, size)
    assert (mail.src, mail.last, mail.payload) == (replier.id, 7, b"answer\0\0")
    world.assert_idle(caller)
    inbox_of(caller).pool.free(offset)
    assert inbox_of(caller).pool.busy == 0


def test_a_reply_can_be_taken_after_the_call_is_done(world: World) -> None:
    caller, replier = world.connect_many(2)
    call = world.bus.call(caller, world.message(replier, 7, flags=MessageFlag.EXPECT_REPLY, timeout_ns=2**62))
    world.take(replier)
    states = [call.done]
    world.reply(replier, caller, 7, 8, world.fds("a"))
    assert [*states, call.done, call.errno] == [False, True, 0]
    assert inbox_of(caller).quota.shares
    offset, _, _ = call.take(world.install)
    assert world.installed == ["a"]
    inbox_of(caller).pool.free(offset)
    world.assert_idle(caller)


def test_a_reply_that_nobody_takes_goes_with_the_caller(world: World) -> None:
    caller, replier = world.connect_many(2)
    world.bus.call(caller, world.message(replier, 7, flags=MessageFlag.EXPECT_REPLY, timeout_ns=2**62))
    world.take(replier)
    world.reply(replier, caller, 7, 8, world.fds("a"))
    world.bus.disconnect(caller)
    world.assert_idle(caller, replier)
    world.assert_files_closed()


def test_files_of_a_reply_are_installed(world: World) -> None:
    scene = Scene(world, is_read=True)
    world.reply(scene.replier, scene.caller, 7, 8, world.fds("a", "b"), world.memfd("m"))
    assert scene.waiter.outcomes == ["#8"]
    assert sorted(world.installed) == ["a", "b", "m"]
    world.assert_files_closed()


def test_files_of_a_reply_that_find_no_room_in_the_table_are_missed(world: World) -> None:
    scene = Scene(world, is_read=True)
    world.has_room_for_files = False
    world.reply(scene.replier, scene.caller, 7, 8, world.fds("a"))
    assert scene.waiter.outcomes == ["#8 incomplete"]
    world.assert_files_closed()


def test_files_for_a_caller_that_accepts_none_end_the_call_for_both(world: World) -> None:
    caller, replier = world.connect(flags=NO_FLAGS), world.connect()
    waiter = world.call(caller, replier, 7)
    world.take(replier)
    assert errno_of(lambda: world.reply(replier, caller, 7, 8, world.fds("a"))) == "ECOMM"
    assert waiter.outcomes == ["EREMOTEIO"]
    with refused(EBADSLT):
        world.reply(replier, caller, 7, 8)
    world.assert_idle(caller, replier)
    world.assert_files_closed()


@pytest.mark.parametrize(
    ("obstacle", "errno"), [(World.use_up_quota, "ENOBUFS"), (World.use_up_pool, "EXFULL")]
)
def test_a_reply_that_finds_no_room_ends_the_call_for_both(
    world: World, obstacle: Callable[[World, Connection], Callable[[], None]], errno: str
) -> None:
    scene = Scene(world, is_read=True)
    remove = obstacle(world, scene.caller)
    reply = world.message(scene.caller, 8, world.memfd("m"), reply_to=7)
    assert errno_of(lambda: world.bus.send(scene.replier, reply)) == errno
    assert scene.waiter.outcomes == [errno]
    with refused(EBADSLT):
        scene.answer()
    remove()
    world.assert_idle(scene.caller, scene.replier)
    world.assert_files_closed()


def test_a_reply_is_charged_to_the_replier_until_it_is_taken(world: World) -> None:
    caller, replier = world.connect(OWNER), world.connect(STRANGER)
    charged: list[list[int | None]] = []

    def on_done(call: SyncCall) -> None:
        charged.append([user.uid for user in caller.quota.shares])
        offset, _, _ = call.take(world.install)
        charged.append([user.uid for user in caller.quota.shares])
        inbox_of(caller).pool.free(offset)

    world.call(caller, replier, 7, on_done=on_done)
    world.reply(replier, caller, 7, 8)
    assert charged == [[2000], []]


# Deadlines


@pytest.mark.parametrize("wait", [0, -1])
def test_a_call_whose_deadline_has_passed_is_not_sent(world: World, wait: int) -> None:
    caller, replier = world.connect_many(2)
    with refused(ETIMEDOUT):
        world.call(caller, replier, 7, world.fds("a"), wait=wait)
    assert world.read(replier) == []
    world.assert_idle(caller, replier)
    world.assert_files_closed()


def test_a_call_needs_no_slot_for_bad_news(world: World) -> None:
    caller, replier = world.connect_many(2)
    world.use_up_pool(caller)
    waiter = world.call(caller, replier, 7)
    assert inbox_of(caller).reserved == 0
    world.bus.disconnect(replier)
    assert waiter.outcomes == ["EPIPE"]


def test_calls_and_requests_share_the_room(world: World) -> None:
    caller, replier = world.connect(limits=Limits(outstanding_requests=2)), world.connect()
    world.request(caller, replier, 1)
    waiter = world.call(caller, replier, 2)
    with refused(EMLINK):
        world.call(caller, replier, 3)
    assert list(caller.calls) == [waiter.call]


# Cancelling


def test_cancelling_ends_all_calls_with_that_cookie_and_no_others(world: World) -> None:
    caller, other, replier = world.connect_many(3)
    waiters = [world.call(caller, replier, cookie) for cookie in (7, 7, 8)]
    theirs = world.call(other, replier, 7)
    world.bus.cancel(caller, 7)
    outcomes = [waiter.outcomes for waiter in (*waiters, theirs)]
    assert outcomes == [["ECANCELED"], ["ECANCELED"], [], []]
    with refused(ENOENT):
        world.bus.cancel(caller, 7)


def test_what_nobody_waits_for_cannot_be_cancelled(world: World) -> None:
    caller, replier = world.connect_many(2)
    world.request(caller, replier, 7)
    with refused(ENOENT):
        world.bus.cancel(caller, 7)
    world.reply(replier, caller, 7, 8)
    assert world.read(caller) == ["#8"]


@pytest.mark.parametrize("kind", ["monitor", "activator", "policy holder"])
def test_special_connections_neither_call_nor_cancel(world: World, kind: str) -> None:
    special, replier = world.connect_kind(kind), world.connect()
    with refused(EOPNOTSUPP):
        world.call(special, replier, 7, world.fds("a"))
    with refused(EOPNOTSUPP):
        world.bus.cancel(special, 7)
    world.assert_files_closed()


def test_who_has_gone_neither_calls_nor_cancels(world: World) -> None:
    gone, replier = world.connect_many(2)
    world.bus.disconnect(gone)
    with refused(ESHUTDOWN):
        world.call(gone, replier, 7, world.fds("a"))
    with refused(ESHUTDOWN):
        world.bus.cancel(gone, 7)
    world.assert_files_closed()


# Oneself


def test_one_may_call_oneself_and_answer(world: World) -> None:
    me = world.connect()
    waiter = world.call(me, me, 7)
    assert world.read(me) == ["#7"]
    world.reply(me, me, 7, 8)
    assert waiter.outcomes == ["#8"]


def test_who_calls_itself_and_goes_is_told_that_it_has_gone(world: World) -> None:
    me = world.connect()
    waiter = world.call(me, me, 7)
    world.bus.disconnect(me)
    assert waiter.outcomes == ["ESHUTDOWN"]
    world.assert_idle(me)
