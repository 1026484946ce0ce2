"""Synchronous calls when several things happen at once: the first counts, and a reply that is there wins.

There is one thread, so "at the same time" is every order there is.
"""

from __future__ import annotations

from errno import (
    EBADF,
    EBADSLT,
    ECANCELED,
    EINTR,
    EINVAL,
    ENOENT,
    ENXIO,
    EPERM,
    ESRCH,
    ETIMEDOUT,
)

import pytest
from support.kdbus import NOBODY, Client, Msg, Pending, World, refused
from support.kdbus.layout import SYNC_REPLY, cancel_fd, fds

COOKIE = 0xC0FFEE
Pair = tuple[Client, Client]


@pytest.fixture
def pair(world: World) -> Pair:
    """A caller and a replier, each with a task of its own."""
    return world.connect(world.task()), world.connect(world.task())


def answer(replier: Client, caller: Client, cookie: int = COOKIE) -> None:
    replier.reply(caller, cookie, replier.vec(b"an answer"))


def is_answered(call: Pending) -> bool:
    return call.result().payload == b"an answer"


# Reply and deadline


def test_a_reply_just_before_the_deadline_wins(world: World, pair: Pair) -> None:
    caller, replier = pair
    call = caller.call(replier, cookie=COOKIE, timeout_ms=100)
    world.advance(99.999999)
    assert not call.is_done
    answer(replier, caller)
    world.advance(1000)
    assert is_answered(call)
    assert not caller.is_readable
    replier.recv()


def test_a_reply_that_is_there_wins_over_a_deadline_not_yet_noticed(world: World, pair: Pair) -> None:
    caller, replier = pair
    call = caller.call(replier, cookie=COOKIE, timeout_ms=100)
    world.monotonic_ns += 100_000_000  # it has passed, but nobody has looked at the clock
    answer(replier, caller)
    world.advance(0)
    assert is_answered(call)
    assert not caller.is_readable
    replier.recv()


def test_a_deadline_that_was_noticed_wins(world: World, pair: Pair) -> None:
    caller, replier = pair
    call = caller.call(replier, cookie=COOKIE, timeout_ms=100)
    world.advance(100)
    with refused(EBADSLT):
        answer(replier, caller)
    with refused(ETIMEDOUT):
        call.result()
    assert not caller.is_readable
    assert replier.recv().cookie == COOKIE


@pytest.mark.parametrize("offset", [0, -1, -1000])
def test_a_deadline_in_the_past_sends_nothing(world: World, pair: Pair, offset: int) -> None:
    caller, replier = pair
    message = caller.build_message(
        dst=replier, flags=Msg.EXPECT_REPLY, deadline_ns=world.monotonic_ns + offset
    )
    with refused(ETIMEDOUT):
        caller.send_message(message, flags=SYNC_REPLY)
    assert not replier.is_readable
    assert caller.connection.outstanding == 0


def test_the_deadline_is_of_the_call_and_not_of_the_queue(world: World, pair: Pair) -> None:
    """What has timed out is still received, and answering it is too late."""
    caller, replier = pair
    calls = [caller.call(replier, cookie=cookie, timeout_ms=cookie * 10) for cookie in (1, 2, 3)]
    world.advance(20)
    assert [call.is_done for call in calls] == [True, True, False]
    assert [message.cookie for message in replier.drain()] == [1, 2, 3]
    for cookie in (1, 2):
        with refused(EBADSLT):
            answer(replier, caller, cookie)
    answer(replier, caller, 3)
    for call in calls[:2]:
        with refused(ETIMEDOUT):
            call.result()
    assert is_answered(calls[2])


# Reply and cancellation


def test_a_cancelled_call_ends_and_a_reply_is_too_late(pair: Pair) -> None:
    caller, replier = pair
    fd = caller.task.open_eventfd()
    call = caller.call(replier, cookie=COOKIE, cancel_fd=fd)
    assert not call.is_done
    caller.task.signal(fd)
    with refused(EBADSLT):
        answer(replier, caller)
    with refused(ECANCELED):
        call.result()
    assert not caller.is_readable
    replier.recv()


def test_cancelling_after_the_reply_changes_nothing(pair: Pair) -> None:
    caller, replier = pair
    fd = caller.task.open_eventfd()
    call = caller.call(replier, cookie=COOKIE, cancel_fd=fd)
    answer(replier, caller)
    caller.task.signal(fd)
    assert is_answered(call)
    with refused(ENOENT):
        caller.msg_cancel(COOKIE)
    replier.recv()


def test_a_canceller_that_is_readable_already_cancels_at_once(pair: Pair) -> None:
    caller, replier = pair
    fd = caller.task.open_eventfd()
    caller.task.signal(fd)
    with refused(ECANCELED):
        caller.call(replier, cookie=COOKIE, cancel_fd=fd)
    assert replier.recv().cookie == COOKIE  # it was sent all the same
    with refused(EBADSLT):
        answer(replier, caller)


def test_one_canceller_ends_every_call_that_has_it(pair: Pair) -> None:
    caller, replier = pair
    fds_ = [caller.task.open_eventfd() for _ in range(2)]
    calls = [caller.call(replier, cookie=n, cancel_fd=fds_[n % 2]) for n in range(1, 6)]
    caller.task.signal(fds_[1])
    assert [call.is_done for call in calls] == [True, False, True, False, True]
    for call in calls[::2]:
        with refused(ECANCELED):
            call.result()
    for cookie in (2, 4):
        answer(replier, caller, cookie)
    assert all(is_answered(call) for call in calls[1::2])
    replier.drain()


def test_a_canceller_is_held_while_the_call_waits_and_no_longer(pair: Pair) -> None:
    caller, replier = pair
    fd = caller.task.open_eventfd()
    eventfd = caller.task.description(fd)
    call = caller.call(replier, cookie=COOKIE, cancel_fd=fd)
    caller.task.close(fd)
    assert (eventfd.references, len(eventfd.watchers)) == (1, 1)
    answer(replier, caller)
    assert (eventfd.references, eventfd.watchers) == (0, [])
    assert is_answered(call)
    replier.recv()


@pytest.mark.parametrize("refusal", ["closed", "not pollable", "nobody", "wrong", "not allowed"])
def test_a_refused_call_lets_go_of_its_canceller(world: World, pair: Pair, refusal: str) -> None:
    caller, replier = pair
    fd = caller.task.open_eventfd()
    eventfd = caller.task.description(fd)
    match refusal:
        case "closed":
            with refused(EBADF):
                caller.call(replier, cancel_fd=999)
        case "not pollable":
            with refused(EINVAL):
                caller.call(replier, cancel_fd=caller.task.open_null())
        case "nobody":
            with refused(ENXIO):
                caller.call(9999, cancel_fd=fd)
            with refused(ESRCH):
                caller.call(name="foo.bar", cancel_fd=fd)
        case "wrong":
            with refused(EINVAL):
                caller.call(replier, cancel_fd=fd, flags=64)
        case _:
            stranger = world.connect(world.task(NOBODY))
            own = stranger.task.open_eventfd()
            with refused(EPERM):
                stranger.call(replier, cancel_fd=own)
            assert stranger.task.description(own).references == 1
    assert (eventfd.references, eventfd.watchers) == (1, [])
    assert not replier.is_readable


def test_a_message_that_does_not_wait_has_no_use_for_a_canceller(pair: Pair) -> None:
    caller, replier = pair
    fd = caller.task.open_eventfd()
    caller.send_items(dst=replier, cookie=1, command_items=[cancel_fd(fd)])
    assert caller.task.description(fd).references == 1
    with refused(EBADF):
        caller.send_items(dst=replier, command_items=[cancel_fd(999)])
    assert [message.cookie for message in replier.drain()] == [1]


def test_calls_can_be_cancelled_by_their_cookie(world: World, pair: Pair) -> None:
    caller, replier = pair
    calls = [caller.call(replier, cookie=cookie) for cookie in (1, 2, 1)]
    other = world.connect()
    with refused(ENOENT):
        other.msg_cancel(1)  # another's calls are none of its business
    caller.msg_cancel(1)
    assert [call.is_done for call in calls] == [True, False, True]
    for call in (calls[0], calls[2]):
        with refused(ECANCELED):
            call.result()
    with refused(ENOENT):
        caller.msg_cancel(1)
    answer(replier, caller, 2)
    assert is_answered(calls[1])
    replier.drain()


def test_an_asynchronous_request_cannot_be_cancelled(pair: Pair) -> None:
    caller, replier = pair
    caller.send_small(replier, cookie=COOKIE, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    with refused(ENOENT):
        caller.msg_cancel(COOKIE)
    answer(replier, caller)
    caller.recv()
    replier.recv()


# Interruption


def test_an_interrupted_call_is_resumed_and_not_sent_again(world: World, pair: Pair) -> None:
    caller, replier = pair
    call = caller.call(replier, cookie=COOKIE, timeout_ms=100)
    call.interrupt()
    with refused(EINTR):
        call.result()
    world.advance(40)
    again = caller.call(replier, cookie=COOKIE, timeout_ms=60)
    assert [message.cookie for message in replier.drain()] == [COOKIE]
    answer(replier, caller)
    assert is_answered(again)


def test_a_resumed_call_keeps_its_deadline(world: World, pair: Pair) -> None:
    caller, replier = pair
    call = caller.call(replier, cookie=COOKIE, timeout_ms=100)
    call.interrupt()
    with refused(EINTR):
        call.result()
    again = caller.call(replier, cookie=COOKIE, timeout_ms=100000)
    world.advance(100)
    with refused(ETIMEDOUT):
        again.result()
    assert len(replier.drain()) == 1


def test_an_interrupted_call_can_be_answered_and_finds_the_reply_when_it_goes_on(pair: Pair) -> None:
    caller, replier = pair
    call = caller.call(replier, cookie=COOKIE, timeout_ms=100)
    call.interrupt()
    with refused(EINTR):
        call.result()
    answer(replier, caller)
    assert not caller.is_readable
    with refused(EBADSLT):
        answer(replier, caller)
    assert is_answered(caller.call(replier, cookie=COOKIE, timeout_ms=100))
    assert [message.cookie for message in replier.drain()] == [COOKIE]


def test_an_interrupted_call_that_never_goes_on_leaves_nothing(pair: Pair) -> None:
    """The reply is with the caller until it goes; that nothing is held then is checked at the end."""
    caller, replier = pair
    call = caller.call(replier, cookie=COOKIE, timeout_ms=100)
    call.interrupt()
    with refused(EINTR):
        call.result()
    file = replier.task.open_null()
    replier.reply(caller, COOKIE, fds([file]))
    replier.recv()
    caller.close()
    assert replier.task.description(file).references == 1


def test_an_interrupted_call_never_becomes_a_notification(world: World, pair: Pair) -> None:
    caller, replier = pair
    for end in ("deadline", "death"):
        call = caller.call(replier, cookie=COOKIE, timeout_ms=100)
        call.interrupt()
        with refused(EINTR):
            call.result()
        if end == "deadline":
            world.advance(100)
        else:
            replier.close()
        assert not caller.is_readable
    assert caller.connection.outstanding == 0


def test_an_interruption_after_the_reply_changes_nothing(pair: Pair) -> None:
    caller, replier = pair
    call = caller.call(replier, cookie=COOKIE)
    answer(replier, caller)
    call.interrupt()
    assert is_answered(call)
    replier.recv()
