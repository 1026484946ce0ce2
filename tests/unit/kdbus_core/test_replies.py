"""Plain requests: what lets a reply through, and the one outcome that every request has."""

from __future__ import annotations

from errno import EBADSLT, EMLINK

import pytest
from broker_world import refused
from reply_world import ReplyWorld, assert_owes_nothing, plain

from kdbus_core.replies import COMPACT_AT

# Windows


def test_between_two_connections_there_is_one_window_each_way() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    replies = world.replies
    assert replies.window(a, b) is replies.window(a, b)
    assert replies.window(a, b) is not replies.window(b, a)
    assert a.requests == {b: replies.window(a, b)}
    assert b.duties == {a: replies.window(a, b)}
    assert (replies.window(a, b).requester, replies.window(a, b).replier) == (a, b)


def test_a_window_alone_is_no_open_request() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    world.replies.window(a, b)
    assert not world.replies.is_open(a, b, 1)
    assert a.outstanding == 0


def test_a_request_is_open_for_its_two_ends_and_its_cookie_only() -> None:
    world = ReplyWorld()
    a, b, c = world.parties(3)
    world.open(a, b, 5)
    replies = world.replies
    assert replies.is_open(a, b, 5)
    assert not replies.is_open(b, a, 5)
    assert not replies.is_open(a, c, 5)
    assert not replies.is_open(a, b, 6)


@pytest.mark.parametrize("cookie", [0, 1, 2**64 - 1])
@pytest.mark.parametrize("deadline", [0, 10])
def test_a_reply_goes_through_once(cookie: int, deadline: int) -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    world.open(a, b, cookie, deadline)
    assert a.outstanding == 1
    world.replies.take(a, b, cookie)
    assert a.outstanding == 0
    assert not world.replies.is_open(a, b, cookie)
    with refused(EBADSLT):
        world.replies.take(a, b, cookie)
    assert a.outstanding == 0


def test_a_reply_that_nobody_waits_for_is_refused() -> None:
    world = ReplyWorld()
    a, b, c = world.parties(3)
    replies = world.replies
    with refused(EBADSLT):
        replies.take(a, b, 1)
    world.open(a, b, 1)
    with refused(EBADSLT):
        replies.take(a, b, 2)
    with refused(EBADSLT):
        replies.take(b, a, 1)
    with refused(EBADSLT):
        replies.take(a, c, 1)
    assert replies.is_open(a, b, 1)
    assert a.outstanding == 1


def test_replies_may_come_in_any_order() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    for cookie in (1, 2, 3):
        world.open(a, b, cookie)
    for cookie in (2, 3, 1):
        world.replies.take(a, b, cookie)
    assert a.outstanding == 0


def test_the_same_cookie_may_be_used_towards_different_repliers() -> None:
    world = ReplyWorld()
    a, b, c = world.parties(3)
    world.open(a, b, 1)
    world.open(a, c, 1)
    assert a.outstanding == 2
    world.replies.take(a, b, 1)
    assert world.replies.is_open(a, c, 1)


def test_a_cookie_that_is_open_already_is_counted_once() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    world.open(a, b, 1)
    world.open(a, b, 1)
    assert a.outstanding == 1
    world.replies.take(a, b, 1)
    assert a.outstanding == 0


# The limit


def test_requests_beyond_the_limit_are_refused_whoever_they_are_for() -> None:
    world = ReplyWorld()
    a = world.party(limit=2)
    b, c = world.parties(2)
    world.open(a, b, 1)
    world.open(a, c, 2)
    with refused(EMLINK):
        world.open(a, c, 3, 10)
    assert a.outstanding == 2
    assert not world.replies.is_open(a, c, 3)
    assert world.replies.next_deadline() is None
    world.replies.take(a, b, 1)
    world.open(a, c, 3)


def test_the_limit_is_the_requesters_and_counts_no_duties() -> None:
    world = ReplyWorld()
    a = world.party(limit=1)
    b = world.party(limit=9)
    for cookie in range(9):
        world.open(b, a, cookie)
    world.open(a, b, 1)
    assert (a.outstanding, b.outstanding) == (1, 9)


def test_sixteen_requests_to_each_of_eight_peers_are_the_most_unless_told_otherwise() -> None:
    world = ReplyWorld()
    requester, *repliers = world.parties(10)
    for cookie in range(16):
        for replier in repliers[:8]:
            world.open(requester, replier, cookie)
    with refused(EMLINK):
        world.open(requester, repliers[8], 99)
    assert requester.outstanding == 128


# Deadlines


def test_a_request_ends_at_its_deadline_and_not_before() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    world.open(a, b, 5, 100)
    assert world.replies.next_deadline() == 100
    assert world.replies.expire(99) == []
    assert world.replies.expire(100) == plain((a, 5))
    assert a.outstanding == 0
    assert not world.replies.is_open(a, b, 5)
    assert world.replies.next_deadline() is None


def test_a_deadline_that_has_already_passed_ends_the_request_at_once() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    assert world.replies.expire(1000) == []
    world.open(a, b, 5, 1)
    assert world.replies.expire(1000) == plain((a, 5))


def test_deadlines_pass_in_their_own_order_and_equal_ones_in_the_order_of_requests() -> None:
    world = ReplyWorld()
    a, b, c = world.parties(3)
    world.open(a, b, 1, 30)
    world.open(b, c, 9, 20)
    world.open(a, c, 8, 20)
    world.open(a, b, 2, 10)
    world.open(a, b, 3, 40)
    assert world.replies.expire(30) == plain((a, 2), (b, 9), (a, 8), (a, 1))
    assert world.replies.next_deadline() == 40


def test_a_request_without_deadline_waits_for_ever() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    world.open(a, b, 1)
    assert world.replies.next_deadline() is None
    assert world.replies.expire(2**63) == []
    assert world.replies.is_open(a, b, 1)


def test_a_request_that_was_answered_does_not_time_out() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    world.open(a, b, 1, 10)
    world.open(a, b, 2, 20)
    world.replies.take(a, b, 1)
    assert world.replies.next_deadline() == 20
    assert world.replies.expire(15) == []


def test_a_cookie_used_again_has_its_new_deadline() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    world.open(a, b, 1, 10)
    world.replies.take(a, b, 1)
    world.open(a, b, 1, 30)
    assert world.replies.expire(29) == []
    assert world.replies.expire(30) == plain((a, 1))


def test_a_cookie_used_again_with_the_same_deadline_times_out_once() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    world.open(a, b, 1, 10)
    world.replies.take(a, b, 1)
    world.open(a, b, 1, 10)
    assert world.replies.expire(10) == plain((a, 1))
    assert a.outstanding == 0


def test_a_cookie_used_again_without_deadline_does_not_inherit_the_old_one() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    world.open(a, b, 1, 10)
    world.replies.take(a, b, 1)
    world.open(a, b, 1)
    assert world.replies.next_deadline() is None
    assert world.replies.expire(10) == []


def test_deadlines_of_answered_requests_do_not_pile_up() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    world.open(a, b, 0, 10)
    most = 0
    for cookie in range(1, 4 * COMPACT_AT):
        world.open(a, b, cookie, 10 + cookie)
        world.replies.take(a, b, cookie)
        most = max(most, len(world.replies._deadlines))
    assert most <= COMPACT_AT
    assert world.replies.next_deadline() == 10
    assert world.replies.expire(2**63) == plain((a, 0))


def test_deadlines_of_requests_whose_ends_have_gone_do_not_pile_up() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    world.open(a, b, 0, 10)
    most = 0
    for deadline in range(11, 11 + 2 * COMPACT_AT):
        (gone,) = world.parties(1)
        world.open(gone, b, 1, deadline)
        world.open(a, gone, 1, deadline)
        world.replies.disconnect(gone)
        most = max(most, len(world.replies._deadlines))
    assert most <= COMPACT_AT


def test_deadlines_of_open_requests_survive_many_answered_ones_in_their_order() -> None:
    world = ReplyWorld()
    count = 2 * COMPACT_AT
    a = world.party(limit=count)
    b, c = world.parties(2)
    order = [(cookie * 1237) % count for cookie in range(count)]
    for cookie in order:
        world.open(a, b, cookie, 10 + cookie // 2)
        world.open(c, b, cookie, 10 + cookie)
        world.replies.take(c, b, cookie)
    assert len(world.replies._deadlines) <= 2 * count
    expected = sorted(order, key=lambda cookie: cookie // 2)
    assert world.replies.expire(10 + count) == plain(*((a, cookie) for cookie in expected))
    assert a.outstanding == 0
    assert not world.replies._deadlines


# Death of either side


def test_those_who_waited_for_a_connection_learn_that_it_has_gone() -> None:
    world = ReplyWorld()
    a, b, gone = world.parties(3)
    world.open(b, gone, 7)
    world.open(a, gone, 2, 10)
    world.open(a, b, 3)
    world.open(a, gone, 1)
    assert world.replies.disconnect(gone) == plain((b, 7), (a, 2), (a, 1))
    assert (a.outstanding, b.outstanding) == (1, 0)
    assert a.requests.keys() == {b}
    assert_owes_nothing(gone)


def test_a_request_that_ended_with_its_replier_does_not_time_out_later() -> None:
    world = ReplyWorld()
    a, gone = world.parties(2)
    world.open(a, gone, 1, 10)
    assert world.replies.disconnect(gone) == plain((a, 1))
    assert world.replies.expire(10) == []
    assert world.replies.next_deadline() is None


def test_a_request_that_timed_out_is_not_dead_later() -> None:
    world = ReplyWorld()
    a, gone = world.parties(2)
    world.open(a, gone, 1, 10)
    assert world.replies.expire(10) == plain((a, 1))
    assert world.replies.disconnect(gone) == []


def test_a_request_that_was_answered_is_not_dead_later() -> None:
    world = ReplyWorld()
    a, gone = world.parties(2)
    world.open(a, gone, 1)
    world.replies.take(a, gone, 1)
    assert world.replies.disconnect(gone) == []


def test_requests_of_a_connection_that_goes_are_dropped_in_silence() -> None:
    world = ReplyWorld()
    gone, b, c = world.parties(3)
    world.open(gone, b, 1, 10)
    world.open(gone, c, 2)
    world.open(b, c, 3)
    assert world.replies.disconnect(gone) == []
    with refused(EBADSLT):
        world.replies.take(gone, b, 1)
    assert not b.duties
    assert c.duties.keys() == {b}
    assert world.replies.expire(10) == []
    assert_owes_nothing(gone)


def test_of_two_that_wait_for_each_other_the_one_that_stays_is_told() -> None:
    world = ReplyWorld()
    a, gone = world.parties(2)
    world.open(a, gone, 1)
    world.open(gone, a, 2)
    assert world.replies.disconnect(gone) == plain((a, 1))
    assert not a.duties
    assert a.outstanding == 0


# Oneself


def test_a_connection_may_call_itself_and_answer() -> None:
    world = ReplyWorld()
    (me,) = world.parties(1)
    world.open(me, me, 1)
    assert me.outstanding == 1
    world.replies.take(me, me, 1)
    assert me.outstanding == 0


def test_a_call_to_oneself_times_out_like_any_other() -> None:
    world = ReplyWorld()
    (me,) = world.parties(1)
    world.open(me, me, 1, 10)
    assert world.replies.expire(10) == plain((me, 1))


def test_a_call_to_oneself_ends_in_silence_with_the_connection() -> None:
    world = ReplyWorld()
    (me,) = world.parties(1)
    other = world.party()
    world.open(me, me, 1, 10)
    world.open(other, me, 2)
    assert world.replies.disconnect(me) == plain((other, 2))
    assert_owes_nothing(me)
