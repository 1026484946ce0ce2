"""Synchronous calls that are interrupted or cancelled.

What a signal interrupts is waited for again by the same SEND once more, as a restarted system call does:
the message is not sent a second time, and the deadline stays what it was. What is cancelled, by a
descriptor that becomes readable or by MSG_CANCEL, is over.
"""

from __future__ import annotations

from errno import EAGAIN, EBADF, EBADSLT, ECANCELED, EINTR, EINVAL, ENOENT, ENXIO, EPIPE, ETIMEDOUT

import pytest
from support.kdbus import Client, Pending, World, layout, refused

COOKIE = 0x1234ABCD5678EEFF


@pytest.fixture
def callee(world: World) -> Client:
    return world.connect()


@pytest.fixture
def caller(world: World) -> Client:
    return world.connect(world.task())


def interrupt(call: Pending) -> None:
    """A signal ends the wait, but not the request."""
    call.interrupt()
    with refused(EINTR):
        call.result()


# Interrupted


def test_an_interrupted_call_is_resumed_not_sent_again_and_keeps_its_deadline(
    world: World, caller: Client, callee: Client
) -> None:
    call = caller.call(callee, cookie=COOKIE, timeout_ms=100)
    assert callee.recv_poll(100).cookie == COOKIE
    interrupt(call)
    world.advance(60)
    resumed = caller.call(callee, cookie=COOKIE, timeout_ms=40)
    world.advance(39)
    assert not resumed.is_done
    world.advance(1)
    with refused(ETIMEDOUT):
        resumed.result()
    with refused(ETIMEDOUT):
        callee.recv_poll(100)
    with refused(EAGAIN):
        caller.recv()


def test_a_resumed_call_gets_the_reply(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE)
    callee.recv()
    interrupt(call)
    resumed = caller.call(callee, cookie=COOKIE)
    assert not resumed.is_done
    callee.reply(caller, COOKIE)
    assert resumed.result().cookie_reply == COOKIE
    with refused(EBADSLT):
        callee.reply(caller, COOKIE)
    with refused(EAGAIN):
        callee.recv()


def test_a_call_can_be_interrupted_again_and_again(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE)
    for _ in range(5):
        interrupt(call)
        call = caller.call(callee, cookie=COOKIE)
    assert [message.cookie for message in callee.drain()] == [COOKIE]
    callee.reply(caller, COOKIE)
    call.result()


def test_a_call_that_is_not_resumed_never_causes_a_notification(
    world: World, caller: Client, callee: Client
) -> None:
    interrupt(caller.call(callee, cookie=COOKIE, timeout_ms=100))
    world.advance(1000)
    with refused(EAGAIN):
        caller.recv()
    with refused(EBADSLT):
        callee.reply(caller, COOKIE)
    callee.recv()


def test_a_call_that_is_resumed_after_its_deadline_has_timed_out(
    world: World, caller: Client, callee: Client
) -> None:
    interrupt(caller.call(callee, cookie=COOKIE, timeout_ms=100))
    world.advance(100)
    with refused(ETIMEDOUT):
        caller.call(callee, cookie=COOKIE, timeout_ms=0)
    assert len(callee.drain()) == 1


def test_another_send_is_not_the_interrupted_one(caller: Client, callee: Client) -> None:
    interrupt(caller.call(callee, cookie=COOKIE))
    other = caller.call(callee, cookie=COOKIE + 1)
    assert [message.cookie for message in callee.drain()] == [COOKIE, COOKIE + 1]
    callee.reply(caller, COOKIE + 1)
    other.result()


def test_a_waiting_call_is_not_resumed_by_another_of_its_cookie(caller: Client, callee: Client) -> None:
    calls = [caller.call(callee, cookie=COOKIE) for _ in range(2)]
    assert [message.cookie for message in callee.drain()] == [COOKIE] * 2
    for _ in calls:
        callee.reply(caller, COOKIE)
    for call in calls:
        call.result()


def test_a_reply_while_nobody_waits_is_kept_for_the_resumption(caller: Client, callee: Client) -> None:
    interrupt(caller.call(callee, cookie=COOKIE))
    callee.reply(caller, COOKIE)
    with refused(EAGAIN):
        caller.recv()
    assert caller.call(callee, cookie=COOKIE).result().cookie_reply == COOKIE
    assert len(callee.drain()) == 1


def test_a_callee_that_dies_in_between_breaks_the_call(caller: Client, callee: Client) -> None:
    interrupt(caller.call(callee, cookie=COOKIE))
    callee.close()
    with refused(EAGAIN):
        caller.recv()
    with refused(EPIPE):
        caller.call(callee, cookie=COOKIE).result()


def test_a_request_that_is_dropped_in_between_is_not_sent_again(caller: Client, callee: Client) -> None:
    interrupt(caller.call(callee, cookie=COOKIE))
    callee.drop()
    with refused(EPIPE):
        caller.call(callee, cookie=COOKIE).result()
    with refused(EAGAIN):
        callee.recv()


def test_a_callee_that_dies_after_the_resumption_breaks_the_call(caller: Client, callee: Client) -> None:
    interrupt(caller.call(callee, cookie=COOKIE))
    resumed = caller.call(callee, cookie=COOKIE)
    callee.close()
    with refused(EPIPE):
        resumed.result()


def test_an_interrupted_caller_can_leave(caller: Client, callee: Client) -> None:
    interrupt(caller.call(callee, cookie=COOKIE))
    caller.byebye()
    with refused(ENXIO):
        callee.reply(caller, COOKIE)


def test_an_interrupted_call_with_a_cancel_fd_lets_go_of_it(caller: Client, callee: Client) -> None:
    eventfd = caller.task.open_eventfd()
    interrupt(caller.call(callee, cookie=COOKIE, cancel_fd=eventfd))
    description = caller.task.description(eventfd)
    assert (description.references, description.watchers) == (1, [])
    resumed = caller.call(callee, cookie=COOKIE, cancel_fd=eventfd)
    caller.task.signal(eventfd)
    with refused(ECANCELED):
        resumed.result()
    assert len(callee.drain()) == 1


# Cancelled by a descriptor


def test_a_descriptor_that_becomes_readable_cancels_the_call(caller: Client, callee: Client) -> None:
    eventfd = caller.task.open_eventfd()
    call = caller.call(callee, cookie=COOKIE, cancel_fd=eventfd)
    assert callee.recv_poll(100).cookie == COOKIE
    assert not call.is_done
    caller.task.signal(eventfd)
    with refused(ECANCELED):
        call.result()
    with refused(EBADSLT):
        callee.reply(caller, COOKIE)
    with refused(EAGAIN):
        caller.recv()


def test_a_descriptor_that_never_becomes_readable_cancels_nothing(caller: Client, callee: Client) -> None:
    eventfd = caller.task.open_eventfd()
    call = caller.call(callee, cookie=COOKIE, cancel_fd=eventfd)
    assert callee.recv_poll(100).cookie == COOKIE
    callee.reply(caller, COOKIE)
    assert call.result().cookie_reply == COOKIE
    assert caller.task.description(eventfd).references == 1


def test_a_descriptor_that_is_readable_already_cancels_at_once_what_has_been_sent(
    caller: Client, callee: Client
) -> None:
    eventfd = caller.task.open_eventfd()
    caller.task.signal(eventfd)
    with refused(ECANCELED):
        caller.call(callee, cookie=COOKIE, cancel_fd=eventfd)
    assert callee.recv().cookie == COOKIE
    with refused(EBADSLT):
        callee.reply(caller, COOKIE)


def test_one_descriptor_cancels_several_calls(caller: Client, callee: Client) -> None:
    eventfd = caller.task.open_eventfd()
    calls = [caller.call(callee, cookie=cookie, cancel_fd=eventfd) for cookie in (1, 2)]
    untouched = caller.call(callee, cookie=3)
    caller.task.signal(eventfd)
    for call in calls:
        with refused(ECANCELED):
            call.result()
    callee.reply(caller, 3)
    untouched.result()


@pytest.mark.parametrize("what_came_first", ["reply", "deadline"])
def test_what_has_ended_is_not_cancelled(
    world: World, caller: Client, callee: Client, what_came_first: str
) -> None:
    eventfd = caller.task.open_eventfd()
    call = caller.call(callee, cookie=COOKIE, cancel_fd=eventfd, timeout_ms=100)
    if what_came_first == "reply":
        callee.reply(caller, COOKIE)
        caller.task.signal(eventfd)
        call.result()
    else:
        world.advance(100)
        caller.task.signal(eventfd)
        with refused(ETIMEDOUT):
            call.result()


def test_the_descriptor_that_cancels_may_be_closed_meanwhile(caller: Client, callee: Client) -> None:
    eventfd = caller.task.open_eventfd()
    description = caller.task.description(eventfd)
    call = caller.call(callee, cookie=COOKIE, cancel_fd=eventfd)
    caller.task.close(eventfd)
    description.signal()
    with refused(ECANCELED):
        call.result()
    assert description.references == 0


def test_a_descriptor_that_cannot_be_waited_for_is_refused(caller: Client, callee: Client) -> None:
    for fd, errno in ((caller.task.open_null(), EINVAL), (99, EBADF), (-1, EBADF)):
        with refused(errno):
            caller.call(callee, cookie=COOKIE, cancel_fd=fd)
    with refused(EAGAIN):
        callee.recv()


def test_a_descriptor_to_cancel_is_checked_where_nothing_waits_too(caller: Client, callee: Client) -> None:
    with refused(EBADF):
        caller.send_items(dst=callee, command_items=(layout.cancel_fd(99),))
    eventfd = caller.task.open_eventfd()
    caller.send_items(dst=callee, command_items=(layout.cancel_fd(eventfd),))
    assert caller.task.description(eventfd).references == 1
    callee.recv()


# Cancelled by its cookie


def test_msg_cancel_ends_the_call_with_that_cookie(caller: Client, callee: Client) -> None:
    call, other = (caller.call(callee, cookie=cookie) for cookie in (COOKIE, COOKIE + 1))
    caller.msg_cancel(COOKIE)
    with refused(ECANCELED):
        call.result()
    assert not other.is_done
    with refused(EBADSLT):
        callee.reply(caller, COOKIE)
    callee.reply(caller, COOKIE + 1)
    other.result()
    with refused(EAGAIN):
        caller.recv()


def test_msg_cancel_ends_all_calls_with_that_cookie(world: World, caller: Client, callee: Client) -> None:
    calls = [caller.call(to, cookie=COOKIE) for to in (callee, world.connect(), callee)]
    caller.msg_cancel(COOKIE)
    for call in calls:
        with refused(ECANCELED):
            call.result()


def test_there_is_nothing_to_cancel_but_what_waits(world: World, caller: Client, callee: Client) -> None:
    with refused(ENOENT):
        caller.msg_cancel(COOKIE)
    caller.send_small(callee, cookie=COOKIE, flags=1, timeout_ms=5000)
    with refused(ENOENT):  # that one nobody waits for
        caller.msg_cancel(COOKIE)
    call = caller.call(callee, cookie=COOKIE + 1)
    with refused(ENOENT):  # and that one is somebody else's
        callee.msg_cancel(COOKIE + 1)
    callee.reply(caller, COOKIE + 1)
    with refused(ENOENT):
        caller.msg_cancel(COOKIE + 1)
    call.result()
