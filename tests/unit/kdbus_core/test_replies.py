"""Open requests: what lets a reply through, and the one outcome that every request has."""

from __future__ import annotations

from errno import EBADSLT, EMLINK

import pytest
from broker_world import World, assert_refers_to_nothing, kinds, refused

from kdbus_core.connection import Limits
from kdbus_core.notifications import IdAdd, IdRemove, ReplyDead, ReplyTimeout
from kdbus_core.replies import COMPACT_AT

# Windows


def test_between_two_connections_there_is_one_window_each_way() -> None:
    world = World()
    a, b = world.connect_many(2)
    replies = world.bus.replies
    assert replies.window(a, b) is replies.window(a, b)
    assert replies.window(a, b) is not replies.window(b, a)
    assert a.requests == {b: replies.window(a, b)}
    assert b.duties == {a: replies.window(a, b)}
    assert (replies.window(a, b).requester, replies.window(a, b).replier) == (a, b)


def test_a_window_alone_is_no_open_request() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.bus.replies.window(a, b)
    assert not world.bus.replies.is_open(a, b, 1)
    assert a.outstanding == 0


def test_a_request_is_open_for_its_two_ends_and_its_cookie_only() -> None:
    world = World()
    a, b, c = world.connect_many(3)
    world.open_request(a, b, 5)
    replies = world.bus.replies
    assert replies.is_open(a, b, 5)
    assert not replies.is_open(b, a, 5)
    assert not replies.is_open(a, c, 5)
    assert not replies.is_open(a, b, 6)


@pytest.mark.parametrize("cookie", [0, 1, 2**64 - 1])
@pytest.mark.parametrize("deadline", [0, 10])
def test_a_reply_goes_through_once(cookie: int, deadline: int) -> None:
    world = World()
    a, b = world.connect_many(2)
    world.open_request(a, b, cookie, deadline)
    assert a.outstanding == 1
    world.bus.replies.take(a, b, cookie)
    assert a.outstanding == 0
    assert not world.bus.replies.is_open(a, b, cookie)
    with refused(EBADSLT):
        world.bus.replies.take(a, b, cookie)
    assert a.outstanding == 0


def test_a_reply_that_nobody_waits_for_is_refused() -> None:
    world = World()
    a, b, c = world.connect_many(3)
    replies = world.bus.replies
    with refused(EBADSLT):
        replies.take(a, b, 1)
    world.open_request(a, b, 1)
    with refused(EBADSLT):
        replies.take(a, b, 2)
    with refused(EBADSLT):
        replies.take(b, a, 1)
    with refused(EBADSLT):
        replies.take(a, c, 1)
    assert replies.is_open(a, b, 1)
    assert a.outstanding == 1


def test_replies_may_come_in_any_order() -> None:
    world = World()
    a, b = world.connect_many(2)
    for cookie in (1, 2, 3):
        world.open_request(a, b, cookie)
    for cookie in (2, 3, 1):
        world.bus.replies.take(a, b, cookie)
    assert a.outstanding == 0


def test_the_same_cookie_may_be_used_towards_different_repliers() -> None:
    world = World()
    a, b, c = world.connect_many(3)
    world.open_request(a, b, 1)
    world.open_request(a, c, 1)
    assert a.outstanding == 2
    world.bus.replies.take(a, b, 1)
    assert world.bus.replies.is_open(a, c, 1)


def test_a_cookie_that_is_open_already_is_counted_once() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.open_request(a, b, 1)
    world.open_request(a, b, 1)
    assert a.outstanding == 1
    world.bus.replies.take(a, b, 1)
    assert a.outstanding == 0


# The limit


def test_requests_beyond_the_limit_are_refused_whoever_they_are_for() -> None:
    world = World()
    a = world.connect(limits=Limits(outstanding_requests=2))
    b, c = world.connect_many(2)
    world.open_request(a, b, 1)
    world.open_request(a, c, 2)
    with refused(EMLINK):
        world.open_request(a, c, 3, 10)
    assert a.outstanding == 2
    assert not world.bus.replies.is_open(a, c, 3)
    assert world.bus.replies.next_deadline() is None
    world.bus.replies.take(a, b, 1)
    world.open_request(a, c, 3)


def test_the_limit_is_the_requesters_and_counts_no_duties() -> None:
    world = World()
    a = world.connect(limits=Limits(outstanding_requests=1))
    b = world.connect(limits=Limits(outstanding_requests=9))
    for cookie in range(9):
        world.open_request(b, a, cookie)
    world.open_request(a, b, 1)
    assert (a.outstanding, b.outstanding) == (1, 9)


def test_sixteen_requests_to_each_of_eight_peers_are_the_most_unless_told_otherwise() -> None:
    world = World()
    requester, *repliers = world.connect_many(10)
    for cookie in range(16):
        for replier in repliers[:8]:
            world.open_request(requester, replier, cookie)
    with refused(EMLINK):
        world.open_request(requester, repliers[8], 99)
    assert requester.outstanding == 128


# Deadlines


def test_a_request_ends_at_its_deadline_and_not_before() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.open_request(a, b, 5, 100)
    assert world.bus.replies.next_deadline() == 100
    world.bus.expire_replies(99)
    assert not world.news
    world.bus.expire_replies(100)
    assert world.take_news() == [ReplyTimeout(a, 5)]
    assert a.outstanding == 0
    assert not world.bus.replies.is_open(a, b, 5)
    assert world.bus.replies.next_deadline() is None


def test_a_deadline_that_has_already_passed_ends_the_request_at_once() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.bus.expire_replies(1000)
    world.open_request(a, b, 5, 1)
    world.bus.expire_replies(1000)
    assert world.take_news() == [ReplyTimeout(a, 5)]


def test_deadlines_pass_in_their_own_order_and_equal_ones_in_the_order_of_requests() -> None:
    world = World()
    a, b, c = world.connect_many(3)
    world.open_request(a, b, 1, 30)
    world.open_request(b, c, 9, 20)
    world.open_request(a, c, 8, 20)
    world.open_request(a, b, 2, 10)
    world.open_request(a, b, 3, 40)
    world.bus.expire_replies(30)
    ended = [(a, 2), (b, 9), (a, 8), (a, 1)]
    assert world.take_news() == [ReplyTimeout(requester, cookie) for requester, cookie in ended]
    assert world.bus.replies.next_deadline() == 40


def test_a_request_without_deadline_waits_for_ever() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.open_request(a, b, 1)
    assert world.bus.replies.next_deadline() is None
    world.bus.expire_replies(2**63)
    assert world.bus.replies.is_open(a, b, 1)
    assert not world.news


def test_a_request_that_was_answered_does_not_time_out() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.open_request(a, b, 1, 10)
    world.open_request(a, b, 2, 20)
    world.bus.replies.take(a, b, 1)
    assert world.bus.replies.next_deadline() == 20
    world.bus.expire_replies(15)
    assert not world.news


def test_a_cookie_used_again_has_its_new_deadline() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.open_request(a, b, 1, 10)
    world.bus.replies.take(a, b, 1)
    world.open_request(a, b, 1, 30)
    world.bus.expire_replies(29)
    assert not world.news
    world.bus.expire_replies(30)
    assert world.take_news() == [ReplyTimeout(a, 1)]


def test_a_cookie_used_again_with_the_same_deadline_times_out_once() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.open_request(a, b, 1, 10)
    world.bus.replies.take(a, b, 1)
    world.open_request(a, b, 1, 10)
    world.bus.expire_replies(10)
    assert world.take_news() == [ReplyTimeout(a, 1)]
    assert a.outstanding == 0


def test_a_cookie_used_again_without_deadline_does_not_inherit_the_old_one() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.open_request(a, b, 1, 10)
    world.bus.replies.take(a, b, 1)
    world.open_request(a, b, 1)
    assert world.bus.replies.next_deadline() is None
    world.bus.expire_replies(10)
    assert not world.news


def test_deadlines_of_answered_requests_do_not_pile_up() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.open_request(a, b, 0, 10)
    most = 0
    for cookie in range(1, 4 * COMPACT_AT):
        world.open_request(a, b, cookie, 10 + cookie)
        world.bus.replies.take(a, b, cookie)
        most = max(most, len(world.bus.replies._deadlines))
    assert most <= COMPACT_AT
    assert world.bus.replies.next_deadline() == 10
    world.bus.expire_replies(2**63)
    assert world.take_news() == [ReplyTimeout(a, 0)]


def test_deadlines_of_requests_whose_ends_have_gone_do_not_pile_up() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.open_request(a, b, 0, 10)
    most = 0
    for deadline in range(11, 11 + 2 * COMPACT_AT):
        (gone,) = world.connect_many(1)
        world.open_request(gone, b, 1, deadline)
        world.open_request(a, gone, 1, deadline)
        world.bus.disconnect(gone)
        most = max(most, len(world.bus.replies._deadlines))
    assert most <= COMPACT_AT


def test_deadlines_of_open_requests_survive_many_answered_ones_in_their_order() -> None:
    world = World()
    count = 2 * COMPACT_AT
    a = world.connect(limits=Limits(outstanding_requests=count))
    b, c = world.connect_many(2)
    order = [(cookie * 1237) % count for cookie in range(count)]
    for cookie in order:
        world.open_request(a, b, cookie, 10 + cookie // 2)
        world.open_request(c, b, cookie, 10 + cookie)
        world.bus.replies.take(c, b, cookie)
    assert len(world.bus.replies._deadlines) <= 2 * count
    expected = sorted(order, key=lambda cookie: cookie // 2)
    world.bus.expire_replies(10 + count)
    assert world.take_news() == [ReplyTimeout(a, cookie) for cookie in expected]
    assert a.outstanding == 0
    assert not world.bus.replies._deadlines


# Death of either side


def test_those_who_waited_for_a_connection_learn_that_it_has_gone() -> None:
    world = World()
    a, b, gone = world.connect_many(3)
    world.open_request(b, gone, 7)
    world.open_request(a, gone, 2, 10)
    world.open_request(a, b, 3)
    world.open_request(a, gone, 1)
    world.bus.disconnect(gone)
    expected = [IdRemove(gone), ReplyDead(b, 7), ReplyDead(a, 2), ReplyDead(a, 1)]
    assert world.take_news() == expected
    assert (a.outstanding, b.outstanding) == (1, 0)
    assert a.requests.keys() == {b}
    assert_refers_to_nothing(gone)


def test_a_request_that_ended_with_its_replier_does_not_time_out_later() -> None:
    world = World()
    a, gone = world.connect_many(2)
    world.open_request(a, gone, 1, 10)
    world.bus.disconnect(gone)
    world.news.clear()
    world.bus.expire_replies(10)
    assert not world.news
    assert world.bus.replies.next_deadline() is None


def test_a_request_that_timed_out_is_not_dead_later() -> None:
    world = World()
    a, gone = world.connect_many(2)
    world.open_request(a, gone, 1, 10)
    world.bus.expire_replies(10)
    world.news.clear()
    world.bus.disconnect(gone)
    assert world.take_news() == [IdRemove(gone)]


def test_a_request_that_was_answered_is_not_dead_later() -> None:
    world = World()
    a, gone = world.connect_many(2)
    world.open_request(a, gone, 1)
    world.bus.replies.take(a, gone, 1)
    world.bus.disconnect(gone)
    assert world.take_news() == [IdRemove(gone)]


def test_requests_of_a_connection_that_goes_are_dropped_in_silence() -> None:
    world = World()
    gone, b, c = world.connect_many(3)
    world.open_request(gone, b, 1, 10)
    world.open_request(gone, c, 2)
    world.open_request(b, c, 3)
    world.bus.disconnect(gone)
    assert world.take_news() == [IdRemove(gone)]
    with refused(EBADSLT):
        world.bus.replies.take(gone, b, 1)
    assert not b.duties
    assert c.duties.keys() == {b}
    world.bus.expire_replies(10)
    assert not world.news
    assert_refers_to_nothing(gone)


def test_of_two_that_wait_for_each_other_the_one_that_stays_is_told() -> None:
    world = World()
    a, gone = world.connect_many(2)
    world.open_request(a, gone, 1)
    world.open_request(gone, a, 2)
    world.bus.disconnect(gone)
    assert world.take_news() == [IdRemove(gone), ReplyDead(a, 1)]
    assert not a.duties
    assert a.outstanding == 0


def test_who_becomes_a_monitor_answers_and_asks_no_more() -> None:
    world = World()
    a, watcher = world.connect_many(2)
    world.open_request(a, watcher, 1)
    world.open_request(watcher, a, 2)
    world.bus.become_monitor(watcher)
    assert world.take_news() == [IdRemove(watcher), ReplyDead(a, 1)]
    assert (a.outstanding, watcher.outstanding) == (0, 0)
    assert not a.duties


def test_of_two_that_go_in_one_command_neither_is_told() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.open_request(a, b, 1)
    with world.bus.transaction():
        world.bus.disconnect(b)
        world.bus.disconnect(a)
    assert kinds(world.take_news()) == [IdRemove, IdRemove]


def test_who_has_gone_is_not_told_of_a_deadline_that_passed_in_the_same_command() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.open_request(a, b, 1, 10)
    with world.bus.transaction():
        world.bus.expire_replies(10)
        world.bus.disconnect(a)
    assert world.take_news() == [IdRemove(a)]


# Oneself


def test_a_connection_may_call_itself_and_answer() -> None:
    world = World()
    (me,) = world.connect_many(1)
    world.open_request(me, me, 1)
    assert me.outstanding == 1
    world.bus.replies.take(me, me, 1)
    assert me.outstanding == 0


def test_a_call_to_oneself_times_out_like_any_other() -> None:
    world = World()
    (me,) = world.connect_many(1)
    world.open_request(me, me, 1, 10)
    world.bus.expire_replies(10)
    assert world.take_news() == [ReplyTimeout(me, 1)]


def test_a_call_to_oneself_ends_in_silence_with_the_connection() -> None:
    world = World()
    (me,) = world.connect_many(1)
    other = world.connect()
    world.open_request(me, me, 1, 10)
    world.open_request(other, me, 2)
    world.news.clear()
    world.bus.disconnect(me)
    assert world.take_news() == [IdRemove(me), ReplyDead(other, 2)]
    assert_refers_to_nothing(me)


def test_a_call_to_oneself_ends_in_silence_when_one_becomes_a_monitor() -> None:
    world = World()
    me = world.connect()
    assert kinds(world.take_news()) == [IdAdd]
    world.open_request(me, me, 1)
    world.bus.become_monitor(me)
    assert world.take_news() == [IdRemove(me)]
    assert (me.outstanding, me.requests, me.duties) == (0, {}, {})
