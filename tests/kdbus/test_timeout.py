"""Deadlines of requests: who waits for a reply hears when there will be none, once and in time."""

from __future__ import annotations

from errno import EAGAIN, EBADSLT

import pytest
from support.kdbus import Client, ItemType, Msg, Received, World, refused
from support.kdbus.layout import PAYLOAD_KERNEL

COOKIE = 0xDEADBEEF
EXPECT_REPLY = Msg.EXPECT_REPLY


@pytest.fixture
def replier(world: World) -> Client:
    return world.connect()


@pytest.fixture
def requester(world: World) -> Client:
    return world.connect()


def assert_timeout(notice: Received, requester: Client, cookie: int) -> None:
    """It is the news that a request has timed out."""
    assert notice.kinds == [ItemType.REPLY_TIMEOUT, ItemType.TIMESTAMP]
    assert notice.payload_type == PAYLOAD_KERNEL
    assert (notice.src_id, notice.dst_id) == (0, requester.id)
    assert notice.cookie_reply == cookie
    assert (notice.cookie, notice.flags, notice.priority) == (0, 0, 0)


def test_each_request_times_out_at_its_own_deadline(world: World, requester: Client, replier: Client) -> None:
    for n in range(4):
        requester.send(replier, cookie=COOKIE + n, flags=EXPECT_REPLY, timeout_ms=100 * (n + 1))
    for n in range(4):
        world.advance(99)
        assert not requester.is_readable
        world.advance(1)
        notice = requester.recv(keep=True)
        assert_timeout(notice, requester, COOKIE + n)
        requester.free(notice.offset)
        with refused(EAGAIN):
            requester.recv()


def test_timeouts_come_in_the_order_of_the_deadlines(
    world: World, requester: Client, replier: Client
) -> None:
    for timeout in (400, 100, 300, 200):
        requester.send_small(replier, cookie=timeout, flags=EXPECT_REPLY, timeout_ms=timeout)
    world.advance(1000)
    assert [notice.cookie_reply for notice in requester.drain()] == [100, 200, 300, 400]


def test_a_timeout_is_told_whatever_metadata_is_asked_for(world: World, replier: Client) -> None:
    requester = world.connect(attach_recv=0)
    requester.send_small(replier, cookie=COOKIE, flags=EXPECT_REPLY, timeout_ms=100)
    world.advance(100)
    notice = requester.recv()
    assert_timeout(notice, requester, COOKIE)
    assert notice.timestamp.monotonic_ns == world.monotonic_ns


def test_a_request_whose_deadline_has_passed_is_delivered_and_times_out_at_once(
    world: World, requester: Client, replier: Client
) -> None:
    requester.send_items(dst=replier, cookie=COOKIE, flags=EXPECT_REPLY, deadline_ns=world.monotonic_ns - 1)
    assert replier.recv().cookie == COOKIE
    assert_timeout(requester.recv(), requester, COOKIE)
    with refused(EBADSLT):
        replier.reply(requester, COOKIE)


def test_a_reply_in_time_is_all_that_is_heard(world: World, requester: Client, replier: Client) -> None:
    requester.send_small(replier, cookie=COOKIE, flags=EXPECT_REPLY, timeout_ms=100)
    replier.recv()
    world.advance(99)
    replier.reply(requester, COOKIE)
    world.advance(1000)
    (reply,) = requester.drain()
    assert (reply.src_id, reply.cookie_reply) == (replier.id, COOKIE)


def test_a_reply_after_the_deadline_is_refused(world: World, requester: Client, replier: Client) -> None:
    requester.send_small(replier, cookie=COOKIE, flags=EXPECT_REPLY, timeout_ms=100)
    world.advance(100)
    with refused(EBADSLT):
        replier.reply(requester, COOKIE)
    assert_timeout(requester.recv(), requester, COOKIE)
    with refused(EAGAIN):
        requester.recv()


def test_who_timed_out_does_not_die_as_well(world: World, requester: Client, replier: Client) -> None:
    requester.send_small(replier, cookie=COOKIE, flags=EXPECT_REPLY, timeout_ms=100)
    world.advance(100)
    replier.close()  # the request is still unread
    assert [notice.kind for notice in requester.drain()] == [ItemType.REPLY_TIMEOUT]


def test_a_dropped_request_does_not_time_out_as_well(
    world: World, requester: Client, replier: Client
) -> None:
    requester.send_small(replier, cookie=COOKIE, flags=EXPECT_REPLY, timeout_ms=100)
    replier.drop()
    world.advance(100)
    (notice,) = requester.drain()
    assert (notice.kind, notice.cookie_reply) == (ItemType.REPLY_DEAD, COOKIE)


def test_who_has_gone_is_told_nothing(world: World, requester: Client, replier: Client) -> None:
    requester.send_small(replier, cookie=COOKIE, flags=EXPECT_REPLY, timeout_ms=100)
    requester.byebye()
    world.advance(100)
    assert [message.cookie for message in replier.drain()] == [COOKIE]


def test_a_message_that_expects_no_reply_never_times_out(
    world: World, requester: Client, replier: Client
) -> None:
    requester.send(replier, cookie=COOKIE)
    world.advance(1_000_000)
    assert not requester.is_readable
