"""Synchronous calls: a SEND that returns with the reply, or with the reason why there is none."""

from __future__ import annotations

from errno import (
    EAGAIN,
    EBADSLT,
    EMLINK,
    ENOBUFS,
    ENXIO,
    EPERM,
    EPIPE,
    ETIMEDOUT,
    EXFULL,
)

import pytest
from support.kdbus import STANDARD_FIRST, Client, ItemType, Msg, World, layout, refused, repeat_until

COOKIE = 0x1234ABCD5678EEFF
WRONG = ~COOKIE & 2**64 - 1


@pytest.fixture
def callee(world: World) -> Client:
    return world.connect(world.task())


@pytest.fixture
def caller(world: World) -> Client:
    return world.connect(world.task())


def serve(callee: Client, caller: Client) -> None:
    """Receive one call and answer it."""
    message = callee.recv_poll(100)
    callee.reply(caller, message.cookie)


# With a reply


def test_a_call_returns_with_its_reply(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE)
    request = callee.recv_poll(3000)
    assert (request.cookie, request.src_id) == (COOKIE, caller.id)
    assert request.flags == Msg.EXPECT_REPLY
    with refused(EBADSLT):
        callee.reply(caller, WRONG)
    assert not call.is_done
    callee.reply(caller, COOKIE)
    reply = call.result()
    assert (reply.src_id, reply.dst_id, reply.cookie_reply) == (callee.id, caller.id, COOKIE)
    assert reply.payload == STANDARD_FIRST


def test_a_reply_to_a_call_is_never_queued(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE)
    serve(callee, caller)
    assert call.is_done
    assert not caller.is_readable
    with refused(EAGAIN):
        caller.recv()
    call.result()


def test_the_slice_of_a_reply_is_the_callers_to_free(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE)
    serve(callee, caller)
    reply = call.result(keep=True)
    assert reply.offset == 0  # nothing else is in the pool
    caller.free(reply.offset)
    with refused(ENXIO):
        caller.free(reply.offset)


def test_a_call_is_answered_once(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE)
    serve(callee, caller)
    with refused(EBADSLT):
        callee.reply(caller, COOKIE)
    call.result()


def test_only_the_callee_answers(world: World, caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE)
    for stranger in (world.connect(), caller):
        with refused(EBADSLT):
            stranger.reply(caller, COOKIE)
    assert not call.is_done
    serve(callee, caller)
    call.result()


def test_a_call_can_be_to_a_name_and_answered_to_a_name(caller: Client, callee: Client) -> None:
    callee.name_acquire("foo.callee")
    caller.name_acquire("foo.caller")
    call = caller.call(name="foo.callee", cookie=COOKIE)
    callee.recv()
    callee.send_small(name="foo.caller", cookie_reply=COOKIE)
    assert call.result().text(ItemType.DST_NAME) == "foo.caller"


def test_calls_of_one_connection_wait_side_by_side(caller: Client, callee: Client) -> None:
    calls = [caller.call(callee, cookie=cookie) for cookie in (1, 2, 3)]
    for cookie in (2, 3, 1):
        callee.reply(caller, cookie)
    for cookie, call in enumerate(calls, 1):
        assert call.result().cookie_reply == cookie
    assert len(callee.drain()) == 3


def test_of_two_calls_with_one_cookie_the_newer_is_answered_first(caller: Client, callee: Client) -> None:
    older, newer = (caller.call(callee, cookie=COOKIE) for _ in range(2))
    callee.reply(caller, COOKIE)
    assert (older.is_done, newer.is_done) == (False, True)
    callee.reply(caller, COOKIE)
    for call in (older, newer):
        call.result()


def test_a_call_to_oneself_is_answered_by_oneself(caller: Client) -> None:
    call = caller.call(caller, cookie=COOKIE)
    serve(caller, caller)
    assert call.result().src_id == caller.id


def test_a_call_can_have_the_cookie_0_but_a_reply_to_it_is_a_message(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=0, timeout_ms=100)
    callee.reply(caller, 0, cookie=5)
    assert not call.is_done
    assert caller.recv().cookie == 5
    caller.world.advance(100)
    with refused(ETIMEDOUT):
        call.result()


def test_the_descriptors_of_a_reply_are_installed(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE)
    callee.recv()
    task = callee.task
    callee.reply(
        caller, COOKIE, layout.fds([task.open_null()]), layout.memfd(task.open_memfd(b"memfd..."), 8)
    )
    reply = call.result()
    assert reply.fds[0] >= 0
    assert reply.payload == b"memfd..."
    assert reply.return_flags == 0


def test_a_reply_whose_descriptors_do_not_fit_says_so(world: World, callee: Client) -> None:
    caller = world.connect(world.task(max_fds=1))
    call = caller.call(callee, cookie=COOKIE)
    callee.reply(caller, COOKIE, layout.fds([callee.task.open_null()]))
    reply = call.result()
    assert reply.fds == [-1]
    assert reply.return_flags == layout.INCOMPLETE_FDS


def test_the_window_of_a_call_needs_no_policy(world: World, callee: Client) -> None:
    world.connect_holder("foo.callee", layout.access(layout.WORLD, layout.TALK))
    callee.name_acquire("foo.callee")
    stranger = world.connect(world.task(65534))
    call = stranger.call(name="foo.callee", cookie=COOKIE)
    serve(callee, stranger)
    call.result()


def test_a_stranger_answers_who_may_not_be_talked_to(world: World, caller: Client) -> None:
    stranger = world.connect(world.task(65534))
    call = caller.call(stranger, cookie=COOKIE)
    stranger.recv()
    with refused(EPERM):
        stranger.send_small(caller)
    stranger.reply(caller, COOKIE)
    call.result()
    with refused(EBADSLT):
        stranger.reply(caller, COOKIE)


# Without


def test_a_call_whose_deadline_has_passed_is_not_sent(world: World, caller: Client, callee: Client) -> None:
    for timeout in (0, -1):
        with refused(ETIMEDOUT):
            caller.call(callee, cookie=COOKIE, timeout_ms=timeout)
    with refused(EAGAIN):
        callee.recv()


def test_a_call_ends_at_its_deadline_and_without_a_notification(
    world: World, caller: Client, callee: Client
) -> None:
    call = caller.call(callee, cookie=COOKIE, timeout_ms=100)
    world.advance(99)
    assert not call.is_done
    world.advance(1)
    with refused(ETIMEDOUT):
        call.result()
    with refused(EBADSLT):
        callee.reply(caller, COOKIE)
    with refused(EAGAIN):
        caller.recv()
    assert callee.recv().cookie == COOKIE


def test_a_reply_just_in_time_wins(world: World, caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE, timeout_ms=100)
    callee.reply(caller, COOKIE)
    world.advance(100)
    assert call.result().cookie_reply == COOKIE


def test_a_callee_that_closes_breaks_the_call(world: World, callee: Client) -> None:
    shared = world.connect()
    shared.add_match_empty()
    child = shared.share(world.task())
    callee.broadcast(COOKIE)
    heard = child.recv_poll(100)
    assert (heard.cookie, heard.src_id) == (COOKIE, callee.id)
    call = child.call(heard.src_id, cookie=COOKIE + 1)
    assert callee.recv_poll(100).cookie == COOKIE + 1
    callee.close()
    with refused(EPIPE):
        call.result()
    with refused(EAGAIN):
        child.recv()


def test_a_callee_that_closes_without_having_read_breaks_the_call_once(
    caller: Client, callee: Client
) -> None:
    call = caller.call(callee, cookie=COOKIE)
    callee.close()
    with refused(EPIPE):
        call.result()
    with refused(EAGAIN):
        caller.recv()


def test_a_callee_that_drops_the_request_breaks_the_call(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE)
    callee.drop()
    with refused(EPIPE):
        call.result()
    with refused(EBADSLT):
        callee.reply(caller, COOKIE)
    with refused(EAGAIN):
        caller.recv()


def test_a_reply_beyond_the_callers_quota_ends_the_call_with_that(world: World, callee: Client) -> None:
    caller = world.connect(pool_size=layout.PAGE)
    call = caller.call(callee, cookie=COOKIE)
    with refused(ENOBUFS):
        callee.reply(caller, COOKIE)
    with refused(ENOBUFS):
        call.result()
    with refused(EBADSLT):
        callee.reply(caller, COOKIE, callee.vec(b"small"))


def test_a_reply_that_finds_no_room_in_the_callers_pool_ends_the_call_with_that(
    world: World, callee: Client
) -> None:
    caller = world.connect(pool_size=2 * layout.PAGE)
    kept = []

    def fill() -> None:
        callee.send_small(caller)
        kept.append(caller.recv(keep=True))

    call = caller.call(callee, cookie=COOKIE)
    repeat_until(EXFULL, fill)  # what was received is not counted, but takes up room
    with refused(EXFULL):
        callee.reply(caller, COOKIE, callee.vec(b"small"))
    with refused(EXFULL):
        call.result()
    for message in kept:
        caller.free(message.offset)


def test_a_reply_that_was_handed_over_is_no_longer_counted(caller: Client, callee: Client) -> None:
    kept = []
    for _ in range(30):  # 21 of this size may be queued
        call = caller.call(callee, cookie=COOKIE)
        serve(callee, caller)
        kept.append(call.result(keep=True))
    for reply in kept:
        caller.free(reply.offset)


def test_calls_count_as_outstanding_requests(world: World, caller: Client, callee: Client) -> None:
    calls = [caller.call(callee, callee.vec(b"x"), cookie=cookie) for cookie in range(1, 129)]
    with refused(EMLINK):
        caller.call(callee, callee.vec(b"x"), cookie=129)
    assert len(callee.drain()) == 128
    callee.reply(caller, 1)
    last = caller.call(callee, callee.vec(b"x"), cookie=129)
    world.advance(5000)
    calls.pop(0).result()
    for call in (*calls, last):
        with refused(ETIMEDOUT):
            call.result()
    callee.recv()


def test_a_call_that_cannot_be_delivered_does_not_wait(world: World, caller: Client) -> None:
    tiny = world.connect(pool_size=layout.PAGE)
    with refused(ENOBUFS):
        caller.call(tiny, cookie=COOKIE)
    with refused(ENXIO):
        caller.call(99999, cookie=COOKIE)
    with refused(EBADSLT):
        tiny.reply(caller, COOKIE, tiny.vec(b"x"))
