"""Requests that nobody waits for: each is answered or reported lost, once, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EBADSLT, EMLINK, ENXIO, EPERM
from struct import error as StructError

import pytest
from broker_world import refused
from native_mail import inbox_of
from native_world import (
    NAME,
    OWNER,
    SECOND,
    STRANGER,
    World,
    errno_of,
    running_world,
)

from kdbus_core import Connection
from kdbus_core.abi import DST_NAME, ItemType, MessageFlag
from kdbus_core.connection import Limits
from kdbus_core.delivery import Delivery
from kdbus_core.message import Message, Vec
from kdbus_core.pool import LazyMemory


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


# Exactly one outcome


def answer(world: World, requester: Connection, replier: Connection) -> None:
    world.reply(replier, requester, 7, 8)


def die(world: World, requester: Connection, replier: Connection) -> None:
    world.bus.disconnect(replier)


def leave(world: World, requester: Connection, replier: Connection) -> None:
    world.read(replier)
    world.bus.byebye(replier)


def throw_away(world: World, requester: Connection, replier: Connection) -> None:
    world.drop(replier)


def let_pass(world: World, requester: Connection, replier: Connection) -> None:
    world.pass_time()


End = Callable[[World, Connection, Connection], None]
ENDS: dict[End, str] = {
    answer: "#8",
    die: "REPLY_DEAD #7",
    leave: "REPLY_DEAD #7",
    throw_away: "REPLY_DEAD #7",
    let_pass: "REPLY_TIMEOUT #7",
}
CASES = [
    (first, later, is_read)
    for first in ENDS
    for later in ENDS
    for is_read in (False, True)
    if not (is_read and first is throw_away)
]


@pytest.mark.parametrize(("first", "later", "is_read"), CASES)
def test_a_request_has_one_outcome_whatever_comes_later(
    world: World, first: End, later: End, is_read: bool
) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7)
    if is_read:
        assert world.read(replier) == ["#7"]
    first(world, requester, replier)
    assert world.read(requester) == [ENDS[first]]
    errno_of(lambda: later(world, requester, replier))
    for end in ENDS:
        errno_of(lambda end=end: end(world, requester, replier))  # type: ignore[misc]
    assert world.read(requester) == []
    world.assert_idle(requester, replier)


@pytest.mark.parametrize("is_read", [False, True])
def test_requests_of_a_connection_that_goes_end_in_silence(world: World, is_read: bool) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7)
    if is_read:
        world.read(replier)
    world.bus.disconnect(requester)
    world.pass_time()
    with refused(ENXIO):
        world.reply(replier, requester, 7, 8)
    assert world.read(replier) == ([] if is_read else ["#7"])
    world.assert_idle(requester, replier)


def test_a_requester_that_has_gone_is_not_told_when_its_request_is_thrown_away(world: World) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7)
    world.bus.disconnect(requester)
    world.drop(replier)
    world.assert_idle(requester, replier)


def test_a_request_that_timed_out_unread_can_be_dropped_without_a_word(world: World) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7)
    world.pass_time()
    world.drop(replier)
    assert world.read(requester) == ["REPLY_TIMEOUT #7"]


def test_each_of_several_requests_is_lost_in_the_order_in_which_they_were_made(world: World) -> None:
    requester, replier, other = world.connect_many(3)
    for cookie in (3, 1, 2):
        world.request(requester, replier, cookie)
    world.request(other, replier, 9)
    world.take(replier)
    world.bus.disconnect(replier)
    assert world.read(requester) == ["REPLY_DEAD #3", "REPLY_DEAD #1", "REPLY_DEAD #2"]
    assert world.read(other) == ["REPLY_DEAD #9"]


def test_dropping_one_request_leaves_the_others_open(world: World) -> None:
    requester, replier = world.connect_many(2)
    for cookie in (1, 2):
        world.request(requester, replier, cookie)
    world.drop(replier)
    assert world.read(requester) == ["REPLY_DEAD #1"]
    world.reply(replier, requester, 2, 12)
    assert world.read(requester) == ["#12"]


def test_a_lost_reply_is_said_by_the_bus_itself(world: World) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7, priority=-5)
    world.bus.disconnect(replier)
    mail = world.take(requester)
    assert (mail.src, mail.dst, mail.payload_type, mail.cookie, mail.flags) == (0, requester.id, 0, 0, 0)
    assert (mail.last, mail.priority) == (7, 0)
    assert [item.type for item in mail.items] == [ItemType.REPLY_DEAD, ItemType.TIMESTAMP]
    assert mail.items[0].payload == b""


# Deadlines


def test_a_request_is_open_until_its_deadline(world: World) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7)
    world.pass_time(SECOND - 1)
    assert world.read(requester) == []
    world.pass_time(1)
    assert world.read(requester) == ["REPLY_TIMEOUT #7"]


@pytest.mark.parametrize("wait", [0, -SECOND])
def test_a_request_that_is_late_already_is_delivered_and_lost_at_once(world: World, wait: int) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7, wait=wait)
    assert world.read(requester) == ["REPLY_TIMEOUT #7"]
    assert world.read(replier) == ["#7"]
    with refused(EBADSLT):
        world.reply(replier, requester, 7, 8)


def test_a_request_without_deadline_waits_for_ever(world: World) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7, wait=-world.clock.now)
    world.pass_time(2**62)
    assert world.read(requester) == []
    world.reply(replier, requester, 7, 8)
    assert world.read(requester) == ["#8"]


def test_the_deadline_stands_in_the_request_and_the_cookie_in_the_reply(world: World) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7)
    mail = world.take(replier)
    assert (mail.flags, mail.last) == (MessageFlag.EXPECT_REPLY, world.clock.now + SECOND)
    world.reply(replier, requester, 7, 8, Vec(b"answer"))
    mail = world.take(requester)
    assert (mail.src, mail.dst, mail.flags, mail.cookie, mail.last) == (replier.id, requester.id, 0, 8, 7)
    assert mail.payload == b"answer\0\0"


# Whose reply it is


@pytest.mark.parametrize("cookie", [0, 6, 8, 2**64 - 1])
def test_a_reply_needs_a_request_with_its_cookie(world: World, cookie: int) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7)
    if cookie:
        with refused(EBADSLT):
            world.reply(replier, requester, cookie, 9)
    else:
        world.reply(replier, requester, cookie, 9)  # is none, but a message like any other
    assert world.read(requester) == ([] if cookie else ["#9"])
    world.reply(replier, requester, 7, 8)
    assert world.read(requester) == ["#8"]


def test_only_the_one_who_was_asked_replies_and_only_to_the_one_who_asked(world: World) -> None:
    requester, replier, other = world.connect_many(3)
    world.request(requester, replier, 7)
    for sender, receiver in ((other, requester), (replier, other), (requester, replier)):
        with refused(EBADSLT):
            world.reply(sender, receiver, 7, 9)
    world.reply(replier, requester, 7, 8)
    assert [world.read(connection) for connection in (requester, replier, other)] == [["#8"], ["#7"], []]


def test_a_request_lets_one_reply_through_where_policy_lets_nothing(world: World) -> None:
    requester, replier = world.connect(OWNER), world.connect(STRANGER)
    world.request(requester, replier, 7)
    with refused(EPERM):
        world.send(replier, requester, 5)
    world.reply(replier, requester, 7, 8)
    with refused(EBADSLT):
        world.reply(replier, requester, 7, 9)
    assert world.read(requester) == ["#8"]


def test_a_reply_may_be_sent_to_a_name_of_the_requester(world: World) -> None:
    requester, replier, other = world.connect_many(3)
    world.bus.name_acquire(requester, NAME, 0)
    world.bus.name_acquire(other, "org.example.Other", 0)
    world.request(requester, replier, 7)
    with refused(EBADSLT):
        world.reply(replier, "org.example.Other", 7, 9)
    world.reply(replier, NAME, 7, 8)
    mail = world.take(requester)
    assert (mail.words, mail.dst) == ("#8", DST_NAME)
    assert mail.item(ItemType.DST_NAME).string == NAME


def test_of_requests_with_one_cookie_the_newest_is_answered_first(world: World) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7, wait=5 * SECOND)
    world.request(requester, replier, 7, wait=1 * SECOND)
    world.reply(replier, requester, 7, 8)
    world.pass_time(4 * SECOND)
    assert world.read(requester) == ["#8"]
    world.reply(replier, requester, 7, 9)
    assert world.read(requester) == ["#9"]
    with refused(EBADSLT):
        world.reply(replier, requester, 7, 10)


def test_one_may_ask_oneself(world: World) -> None:
    (me,) = world.connect_many(1)
    world.request(me, me, 7)
    assert world.read(me) == ["#7"]
    world.reply(me, me, 7, 8)
    assert world.read(me) == ["#8"]
    world.request(me, me, 9)
    world.drop(me)
    assert world.read(me) == ["REPLY_DEAD #9"]
    world.assert_idle(me)


def test_who_has_asked_itself_goes_in_silence(world: World) -> None:
    me = world.connect()
    world.request(me, me, 7)
    world.bus.disconnect(me)
    world.assert_idle(me)


# What is lost is said even where there is no room


@pytest.mark.parametrize("end", [die, throw_away, let_pass])
def test_a_loss_is_said_to_whoever_has_neither_pool_nor_quota_left(world: World, end: End) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7)
    world.use_up_pool(requester)
    refunds = [world.use_up_quota(requester, user) for user in (world.bus.kernel_user, replier.user)]
    end(world, requester, replier)
    assert world.read(requester) == [ENDS[end]]
    for refund in refunds:
        refund()


def test_all_losses_are_said_however_many(world: World) -> None:
    requester, replier = world.connect_many(2)
    for cookie in range(128):
        world.request(requester, replier, cookie)
        world.take(replier)
    assert inbox_of(requester).reserved == 128
    world.use_up_pool(requester)
    world.bus.disconnect(replier)
    assert world.read(requester) == [f"REPLY_DEAD #{cookie}" for cookie in range(128)]
    world.assert_idle(requester)


def test_who_has_no_room_for_bad_news_asks_nothing(world: World) -> None:
    requester, replier = world.connect_many(2)
    free = world.use_up_pool(requester)
    assert errno_of(lambda: world.request(requester, replier, 7, world.fds("a"))) == "EXFULL"
    world.assert_idle(requester, replier)
    world.assert_files_closed()
    world.send(requester, replier, 1)
    free()
    world.request(requester, replier, 7)
    assert world.read(replier) == ["#1", "#7"]


def test_an_answered_request_gives_its_slot_back(world: World) -> None:
    requester, replier = world.connect_many(2)
    for _ in range(3):
        world.request(requester, replier, 7)
        assert inbox_of(requester).reserved == 1
        world.reply(replier, requester, 7, 8)
        assert inbox_of(requester).reserved == 0
    assert world.read(requester) == ["#8"] * 3


# What breaks half-way


@pytest.mark.parametrize("ask", [World.request, World.call])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("owner", "step"), [(Delivery, "_next_stamp"), (Message, "compose"), (LazyMemory, "write")]
)
def test_whatever_is_raised_in_the_middle_of_a_request_leaves_nothing_of_it(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    step: str,
    error: type[BaseException],
    ask: Callable[..., object],
) -> None:
    requester, replier = world.connect(limits=Limits(outstanding_requests=1)), world.connect()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail)
        with pytest.raises(error):
            ask(world, requester, replier, 7, world.fds("a"))
    world.assert_idle(requester, replier)
    world.assert_files_closed()
    assert world.bus.replies.next_deadline() is None
    world.request(requester, replier, 7)
    assert world.read(replier) == ["#7"]


def test_a_request_that_no_bytes_can_say_leaves_nothing(world: World) -> None:
    requester, replier = world.connect_many(2)
    with pytest.raises(StructError):
        world.request(requester, replier, 7, priority=1 << 63)
    world.assert_idle(requester, replier)


# How many


def test_a_connection_has_128_requests_open(world: World) -> None:
    requester, replier, other = world.connect_many(3)
    for cookie in range(64):
        world.request(requester, replier, cookie)
        world.request(requester, other, cookie)
    with refused(EMLINK):
        world.request(requester, replier, 64)
    world.reply(replier, requester, 63, 1)
    with refused(EMLINK):  # its message is still unread
        world.request(requester, replier, 64)
    assert len(world.read(replier)) == 64
    world.request(requester, replier, 64)
    world.request(other, replier, 64)


def test_a_request_that_timed_out_takes_room_until_it_is_read(world: World) -> None:
    requester = world.connect(limits=Limits(outstanding_requests=1))
    replier = world.connect()
    world.request(requester, replier, 1)
    world.pass_time()
    with refused(EMLINK):
        world.request(requester, replier, 2)
    world.drop(replier)
    world.request(requester, replier, 2)
    assert world.read(requester) == ["REPLY_TIMEOUT #1"]
