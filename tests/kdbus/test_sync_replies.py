"""Synchronous calls: what the two ends get, what is in the reply, and what a call takes while it waits."""

from __future__ import annotations

from errno import (
    EAGAIN,
    EBADSLT,
    EBUSY,
    ECOMM,
    EINVAL,
    EMLINK,
    ENXIO,
    EPIPE,
    EREMOTEIO,
    ESHUTDOWN,
    ETIMEDOUT,
)

import pytest
from support.kdbus import Client, ItemType, Msg, Pending, World, refused
from support.kdbus.layout import INCOMPLETE_FDS, POLLIN, SYNC_REPLY, fds, memfd

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


# Both ends


def test_a_caller_that_says_goodbye_ends_its_calls(pair: Pair) -> None:
    caller, replier = pair
    calls = [caller.call(replier, cookie=cookie) for cookie in (1, 2)]
    caller.byebye()
    for call in calls:
        assert call.is_done
        with refused(ESHUTDOWN):
            call.result()
    with refused(ENXIO):
        answer(replier, caller, 1)
    replier.drain()


def test_a_replier_that_says_goodbye_ends_the_calls_to_it(pair: Pair) -> None:
    caller, replier = pair
    call = caller.call(replier, cookie=COOKIE)
    with refused(EBUSY):
        replier.byebye()
    assert not call.is_done
    replier.recv()
    replier.byebye()
    with refused(EPIPE):
        call.result()


def test_a_reply_before_the_replier_dies_counts(pair: Pair) -> None:
    caller, replier = pair
    call = caller.call(replier, cookie=COOKIE)
    answer(replier, caller)
    replier.close()
    assert is_answered(call)


def test_a_call_to_oneself_ends_with_oneself(pair: Pair) -> None:
    caller, _ = pair
    call = caller.call(caller, cookie=COOKIE)
    answer(caller, caller)
    assert is_answered(call)
    second = caller.call(caller, cookie=2)
    caller.drain()
    caller.byebye()
    with refused(ESHUTDOWN):
        second.result()


@pytest.mark.parametrize("first", ["caller", "replier"])
def test_two_goodbyes_of_which_one_is_first(pair: Pair, first: str) -> None:
    caller, replier = pair
    call = caller.call(replier, cookie=COOKIE)
    replier.recv()
    for client in (caller, replier) if first == "caller" else (replier, caller):
        client.byebye()
        with refused(ESHUTDOWN):
            client.byebye()
    with refused(ESHUTDOWN if first == "caller" else EPIPE):
        call.result()


def test_closing_a_descriptor_that_is_shared_does_not_end_a_call(world: World, pair: Pair) -> None:
    caller, replier = pair
    child = caller.share(world.task())
    call = caller.call(replier, cookie=COOKIE, task=caller.task)
    child.close()
    assert not call.is_done
    answer(replier, caller)
    assert is_answered(call)
    replier.recv()


# The reply


def test_a_reply_is_never_in_the_queue(pair: Pair) -> None:
    caller, replier = pair
    call = caller.call(replier, cookie=COOKIE)
    replier.recv()
    answer(replier, caller)
    assert not caller.poll() & POLLIN
    with refused(EAGAIN):
        caller.recv()
    reply = call.result(keep=True)
    assert (reply.src_id, reply.dst_id, reply.cookie_reply) == (replier.id, caller.id, COOKIE)
    caller.free(reply.offset)
    with refused(ENXIO):
        caller.free(reply.offset)


def test_replies_are_told_apart_by_their_cookies(pair: Pair) -> None:
    caller, replier = pair
    calls = {cookie: caller.call(replier, cookie=cookie) for cookie in (5, 6, 7)}
    for cookie in (6, 7, 5):
        replier.reply(caller, cookie, replier.vec(b"%d......." % cookie))
    for cookie, call in calls.items():
        assert call.result().payload == b"%d......." % cookie
    replier.drain()


def test_of_calls_with_one_cookie_the_newest_is_answered_first(pair: Pair) -> None:
    caller, replier = pair
    first, second = (caller.call(replier, cookie=COOKIE) for _ in range(2))
    answer(replier, caller)
    assert (first.is_done, second.is_done) == (False, True)
    answer(replier, caller)
    assert is_answered(first)
    assert is_answered(second)
    replier.drain()


def test_a_call_and_a_request_with_one_cookie(world: World, pair: Pair) -> None:
    caller, replier = pair
    call = caller.call(replier, cookie=COOKIE)
    caller.send_small(replier, cookie=COOKIE, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    answer(replier, caller)
    assert not call.is_done
    assert caller.recv().cookie_reply == COOKIE
    answer(replier, caller)
    assert is_answered(call)
    replier.drain()


def test_files_of_a_reply_are_installed(pair: Pair) -> None:
    caller, replier = pair
    before = caller.task.fds()
    call = caller.call(replier, cookie=COOKIE)
    items = (fds([replier.task.open_null()]), memfd(replier.task.open_memfd(b"contents"), 8))
    replier.reply(caller, COOKIE, *items)
    reply = call.result()
    assert reply.payload == b"contents"
    assert sorted(before + reply.fds + reply.memfds) == caller.task.fds()
    assert reply.return_flags == 0
    replier.recv()


def test_files_that_find_no_room_are_told(world: World, pair: Pair) -> None:
    _, replier = pair
    caller = world.connect(world.task(max_fds=1))
    call = caller.call(replier, cookie=COOKIE)
    replier.reply(caller, COOKIE, fds([replier.task.open_null()]))
    reply = call.result()
    assert (reply.fds, reply.return_flags) == ([-1], INCOMPLETE_FDS)
    replier.recv()


def test_memory_in_a_reply_goes_to_everybody(world: World, pair: Pair) -> None:
    _, replier = pair
    caller = world.connect(accept_fd=False)
    call = caller.call(replier, cookie=1)
    replier.reply(caller, 1, memfd(replier.task.open_memfd(b"contents"), 8))
    assert call.result().payload == b"contents"
    call = caller.call(replier, cookie=2)
    with refused(ECOMM):
        replier.reply(caller, 2, fds([replier.task.open_null()]))
    with refused(EREMOTEIO):
        call.result()
    with refused(EBADSLT):
        answer(replier, caller, 2)
    replier.drain()


# What it takes


def test_a_call_is_one_of_128_requests(pair: Pair) -> None:
    caller, replier = pair
    calls = [caller.call(replier, caller.vec(b"small"), cookie=cookie) for cookie in range(1, 129)]
    with refused(EMLINK):
        caller.call(replier, caller.vec(b"small"), cookie=129)
    replier.drain()
    answer(replier, caller, 64)
    assert is_answered(calls[63])
    more = caller.call(replier, caller.vec(b"small"), cookie=129)
    caller.byebye()
    for call in (*calls[:63], *calls[64:], more):
        with refused(ESHUTDOWN):
            call.result()


def test_a_call_that_cannot_wait_is_none(pair: Pair) -> None:
    caller, replier = pair
    with refused(EINVAL):
        caller.send_items(dst=replier, command_flags=SYNC_REPLY)
    with refused(EINVAL):
        caller.send_items(dst=replier, flags=Msg.EXPECT_REPLY, command_flags=SYNC_REPLY)
    assert not replier.is_readable


def test_a_monitor_sees_a_call_that_timed_out_before_its_reply_was_refused(world: World, pair: Pair) -> None:
    caller, replier = pair
    monitor = world.connect_monitor()
    call = caller.call(replier, cookie=COOKIE, timeout_ms=100)
    world.advance(100)
    with refused(EBADSLT):
        answer(replier, caller)
    with refused(ETIMEDOUT):
        call.result()
    assert [(m.cookie, m.is_notification) for m in monitor.drain()] == [(COOKIE, False)]
    replier.recv()


def test_the_pool_of_a_caller_is_as_before(world: World, pair: Pair) -> None:
    caller, replier = pair
    before = caller.pool.busy
    for end in range(3):
        call = caller.call(replier, cookie=COOKIE, timeout_ms=100)
        if end == 0:
            answer(replier, caller)
            call.result()
        elif end == 1:
            world.advance(100)
        else:
            replier.drop()
            replier.drop()
            replier.drop()
        if end:
            with refused(ETIMEDOUT if end == 1 else EPIPE):
                call.result()
        assert caller.pool.busy == before
    assert caller.connection.outstanding == 0
    assert ItemType.REPLY_DEAD not in [message.kind for message in caller.drain()]
