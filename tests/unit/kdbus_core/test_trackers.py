"""Tracked requests: which one a reply answers, how long each counts, and that each ends exactly once."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADSLT, EMLINK
from typing import cast

import pytest
from broker_world import refused
from reply_world import ReplyWorld, assert_owes_nothing, plain, tracked

from kdbus_core.replies import COMPACT_AT, Lost
from kdbus_core.synchronous import SyncCall

# Which request a reply answers


@pytest.mark.parametrize("cookie", [0, 1, 2**64 - 1])
def test_a_request_is_found_by_its_two_ends_and_its_cookie_only(cookie: int) -> None:
    world = ReplyWorld()
    a, b, c = world.parties(3)
    tracker = world.track(a, b, cookie, name_id=3)
    found = world.replies.find
    assert found(a, b, cookie) is tracker
    assert [found(b, a, cookie), found(a, c, cookie), found(a, b, 5)] == [None] * 3
    assert world.replies.is_open(a, b, cookie)
    assert (tracker.requester, tracker.replier, tracker.cookie, tracker.name_id) == (a, b, cookie, 3)


def test_of_requests_with_one_cookie_the_newest_is_found_until_it_is_closed() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    trackers = [world.track(a, b, 7) for _ in range(3)]
    while trackers:
        assert world.replies.find(a, b, 7) is trackers[-1]
        world.replies.close(trackers.pop())
    assert world.replies.find(a, b, 7) is None


@pytest.mark.parametrize("middle", [0, 1])
def test_an_older_request_can_end_below_a_newer_one_with_its_cookie(middle: int) -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    trackers = [world.track(a, b, 7) for _ in range(4)]
    world.replies.close(trackers.pop(middle))
    while trackers:
        assert world.replies.find(a, b, 7) is trackers[-1]
        world.replies.close(trackers.pop())
    assert world.replies.find(a, b, 7) is None


def test_a_reply_may_be_taken_without_looking_at_the_request() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    first, second = world.track(a, b, 1), world.track(a, b, 1)
    for tracker in (second, first):
        assert tracker.is_open
        world.replies.take(a, b, 1)
        assert not tracker.is_open
    with refused(EBADSLT):
        world.replies.take(a, b, 1)
    assert a.outstanding == 0


def test_plain_and_tracked_requests_with_one_cookie_do_not_disturb_each_other() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    world.open(a, b, 1, 30)
    tracker = world.track(a, b, 1, 20)
    assert world.replies.window(a, b) == {1: 30}
    assert world.replies.find(a, b, 1) is tracker
    world.replies.take(a, b, 1)
    assert world.replies.find(a, b, 1) == 30
    assert a.outstanding == 1
    assert world.replies.expire(30) == plain((a, 1))


def test_a_plain_request_is_found_as_its_deadline_even_if_that_is_none() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    world.open(a, b, 1)
    assert world.replies.find(a, b, 1) == 0


# How long a request counts


def test_a_request_counts_until_it_is_answered_and_its_message_is_read() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    read_first, answered_first = (world.replies.track(a, b, cookie, 0) for cookie in (1, 2))
    counts = [a.outstanding]
    steps: list[Callable[[], object]] = [
        read_first.on_dequeued,
        lambda: world.replies.close(read_first),
        lambda: world.replies.close(answered_first),
        answered_first.on_dequeued,
    ]
    for step in steps:
        step()
        counts.append(a.outstanding)
    assert counts == [2, 2, 1, 1, 0]


def test_a_request_that_timed_out_unread_still_takes_room() -> None:
    world = ReplyWorld()
    a, b = world.party(limit=1), world.party()
    tracker = world.replies.track(a, b, 1, 10)
    assert world.replies.expire(10) == tracked([tracker])
    with refused(EMLINK):
        world.replies.track(a, b, 2, 20)
    tracker.on_dequeued()
    world.replies.track(a, b, 2, 20)


def test_what_was_refused_leaves_nothing_behind() -> None:
    world = ReplyWorld()
    a, b = world.party(limit=1), world.party()
    world.track(a, b, 1, 10)
    with refused(EMLINK):
        world.replies.track(a, b, 1, 5)
    assert a.outstanding == 1
    assert world.replies.next_deadline() == 10


@pytest.mark.parametrize("closes_first", [False, True])
def test_a_request_that_could_not_be_delivered_is_undone(closes_first: bool) -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    older = world.replies.track(a, b, 1, 50)
    tracker = world.replies.track(a, b, 1, 10)
    steps: list[Callable[[], object]] = [lambda: world.replies.close(tracker), tracker.on_dequeued]
    for step in steps if closes_first else reversed(steps):
        step()
    assert world.replies.find(a, b, 1) is older
    assert a.outstanding == 1
    assert world.replies.next_deadline() == 50


def test_leaving_a_queue_twice_counts_once() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    other = world.track(a, b, 2)
    tracker = world.track(a, b, 1)
    world.replies.close(tracker)
    tracker.on_dequeued()
    tracker.on_dequeued()
    assert a.outstanding == 1
    assert other.is_open


def test_plain_and_tracked_requests_share_the_room() -> None:
    world = ReplyWorld()
    a, b = world.party(limit=2), world.party()
    world.open(a, b, 1)
    world.track(a, b, 1)
    with refused(EMLINK):
        world.track(a, b, 2)
    with refused(EMLINK):
        world.open(a, b, 2)


# One outcome each


def test_only_the_first_end_of_a_request_counts() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    tracker = world.track(a, b, 1, 10)
    assert world.replies.close(tracker)
    assert not world.replies.close(tracker)
    assert world.replies.fail(tracker) is None
    assert world.replies.expire(10) == []
    assert world.replies.disconnect(b) == []
    assert a.outstanding == 0


def test_a_request_that_is_thrown_away_unread_is_lost_once() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    older, newer = world.replies.track(a, b, 1, 10), world.replies.track(a, b, 1, 10)
    older.on_dequeued()
    assert world.replies.fail(older) == Lost(a, 1, older)
    assert world.replies.find(a, b, 1) is newer
    assert world.replies.expire(10) == tracked([newer])
    newer.on_dequeued()
    assert world.replies.fail(newer) is None
    assert a.outstanding == 0


def test_requests_are_lost_at_their_deadline_and_not_before() -> None:
    world = ReplyWorld()
    a, b, c = world.parties(3)
    late, first, forever = world.track(a, b, 1, 30), world.track(c, b, 1, 20), world.track(a, c, 2)
    second, hidden = world.track(a, b, 1, 20), world.track(a, b, 1, 20)
    world.open(a, c, 9, 20)
    assert world.replies.next_deadline() == 20
    assert world.replies.expire(19) == []
    assert world.replies.expire(20) == [*tracked([first, second, hidden]), *plain((a, 9))]
    assert world.replies.find(a, b, 1) is late
    assert world.replies.expire(2**63) == tracked([late])
    assert forever.is_open
    assert (a.outstanding, c.outstanding) == (1, 0)


def test_who_goes_leaves_requests_lost_in_the_order_in_which_they_were_opened() -> None:
    world = ReplyWorld()
    a, b, gone = world.parties(3)
    trackers = [world.track(b, gone, 7), world.track(a, gone, 2, 10), world.track(a, gone, 1)]
    kept = world.track(a, b, 3)
    trackers += [world.track(b, gone, 7), world.track(a, gone, 2)]
    world.open(a, gone, 9)
    assert world.replies.disconnect(gone) == [*plain((a, 9)), *tracked(trackers)]
    assert (a.outstanding, b.outstanding) == (1, 0)
    assert not any(tracker.is_open for tracker in trackers)
    assert kept.is_open
    assert a.requests.keys() == {b}
    assert_owes_nothing(gone)
    assert world.replies.expire(10) == []


def test_what_who_goes_has_not_read_counts_until_its_queue_is_discarded() -> None:
    world = ReplyWorld()
    a, gone = world.parties(2)
    tracker = world.replies.track(a, gone, 1, 0)
    assert world.replies.disconnect(gone) == tracked([tracker])
    assert a.outstanding == 1
    tracker.on_dequeued()
    assert a.outstanding == 0


def test_requests_of_who_goes_end_in_silence_and_count_no_more() -> None:
    world = ReplyWorld()
    gone, b = world.parties(2)
    unread, read = world.replies.track(gone, b, 1, 10), world.track(gone, b, 1, 10)
    assert world.replies.disconnect(gone) == []
    assert not unread.is_open
    assert not read.is_open
    assert_owes_nothing(gone)
    assert not b.duties
    unread.on_dequeued()
    assert gone.outstanding == 0
    assert world.replies.expire(10) == []
    assert world.replies.fail(unread) is None


def test_a_request_that_ended_unread_counts_beyond_the_end_of_who_made_it() -> None:
    world = ReplyWorld()
    gone, b = world.parties(2)
    tracker = world.replies.track(gone, b, 1, 10)
    world.replies.expire(10)
    world.replies.disconnect(gone)
    assert gone.outstanding == 1
    tracker.on_dequeued()
    assert gone.outstanding == 0


def test_a_call_to_oneself_ends_in_silence_with_the_connection() -> None:
    world = ReplyWorld()
    me, other = world.parties(2)
    world.replies.track(me, me, 1, 10)
    waiting = world.track(other, me, 2)
    assert world.replies.disconnect(me) == tracked([waiting])
    assert_owes_nothing(me)


def test_of_two_that_go_one_after_the_other_only_the_first_is_missed() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    first, second = world.track(a, b, 1), world.track(b, a, 1)
    assert world.replies.disconnect(b) == tracked([first])
    assert world.replies.disconnect(a) == []
    assert not second.is_open


def test_whoever_waits_for_a_reply_is_handed_on_with_the_loss() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    call, again = cast(SyncCall, "a call"), cast(SyncCall, "the same call again")
    tracker = world.track(a, b, 1, 10, waiter=call)
    assert tracker.waiter is call
    tracker.waiter = again
    (lost,) = world.replies.expire(10)
    assert lost.tracker is not None
    assert lost.tracker.waiter is again


def test_a_request_that_nobody_waits_for_says_so() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    tracker = world.track(a, b, 1)
    assert tracker.waiter is None
    assert not tracker.reserved
    assert "cookie 1" in repr(tracker)


# Deadlines


def test_deadlines_of_requests_that_have_ended_do_not_pile_up() -> None:
    world = ReplyWorld()
    a, b = world.parties(2)
    kept = world.track(a, b, 0, 10)
    world.open(a, b, 0, 11)
    most = 0
    for number in range(1, 2 * COMPACT_AT):
        world.replies.close(world.track(a, b, 0, 10 + number))
        world.open(a, b, number, 10 + number)
        world.replies.take(a, b, number)
        most = max(most, len(world.replies._deadlines))
    assert most <= COMPACT_AT
    assert world.replies.expire(2**62) == [*tracked([kept]), *plain((a, 0))]


def test_deadlines_of_open_requests_survive_many_that_have_ended() -> None:
    world = ReplyWorld()
    count = COMPACT_AT
    a, b = world.party(limit=count), world.party()
    trackers = []
    for number in range(count):
        trackers.append(world.track(a, b, number % 7, 10 + (number * 619) % count))
        world.replies.close(world.track(b, a, number, 10 + number))
    expected = sorted(trackers, key=lambda tracker: tracker.deadline)
    assert world.replies.expire(10 + count) == tracked(expected)
    assert not world.replies._deadlines


# A name that goes to somebody else


def test_requests_made_through_a_name_go_with_it() -> None:
    world = ReplyWorld()
    a, old, new = world.parties(3)
    through_name, through_other, by_id = (world.track(a, old, 1, name_id=id) for id in (5, 6, 0))
    world.replies.repoint(old, new, 5)
    assert world.replies.find(a, new, 1) is through_name
    assert through_name.replier is new
    assert world.replies.find(a, old, 1) is by_id
    world.replies.close(by_id)
    assert world.replies.find(a, old, 1) is through_other
    assert a.outstanding == 2


def test_only_requests_whose_message_was_not_read_go_with_a_name_if_that_is_asked_for() -> None:
    world = ReplyWorld()
    a, old, new = world.parties(3)
    read = world.track(a, old, 1, name_id=5)
    unread = world.replies.track(a, old, 2, 0, name_id=5)
    world.replies.repoint(old, new, 5, only_unread=True)
    assert (read.replier, unread.replier) == (old, new)
    assert world.replies.find(a, old, 1) is read


def test_requests_of_the_two_between_whom_a_name_goes_stay_where_they_are() -> None:
    world = ReplyWorld()
    a, old, new = world.parties(3)
    own, others = world.track(old, old, 1, name_id=5), world.track(new, old, 1, name_id=5)
    moved = world.track(a, old, 1, name_id=5)
    world.replies.repoint(old, new, 5)
    assert world.replies.find(old, old, 1) is own
    assert world.replies.find(new, old, 1) is others
    assert moved.replier is new
    assert world.replies.disconnect(old) == tracked([others])


def test_requests_that_go_with_a_name_keep_their_order_among_those_that_are_there() -> None:
    world = ReplyWorld()
    a, old, new = world.parties(3)
    trackers = [world.track(a, (old, new)[number % 2], 1, name_id=5) for number in range(5)]
    world.replies.repoint(old, new, 5)
    while trackers:
        assert world.replies.find(a, new, 1) is trackers[-1]
        world.replies.close(trackers.pop())


def test_a_request_that_went_with_a_name_is_lost_with_its_new_replier() -> None:
    world = ReplyWorld()
    a, b, old, new = world.parties(4)
    first = world.track(a, old, 1, 10, name_id=5)
    second = world.track(b, new, 1, name_id=5)
    third = world.track(a, old, 2, 10, name_id=5)
    world.replies.repoint(old, new, 5)
    assert world.replies.disconnect(old) == []
    assert world.replies.disconnect(new) == tracked([first, second, third])
    assert world.replies.expire(10) == []


def test_a_request_that_went_with_a_name_times_out_once() -> None:
    world = ReplyWorld()
    a, old, new = world.parties(3)
    tracker = world.track(a, old, 1, 10, name_id=5)
    world.replies.repoint(old, new, 5)
    world.replies.repoint(new, old, 5)
    assert world.replies.expire(10) == tracked([tracker])
    assert (a.outstanding, world.replies.find(a, old, 1), world.replies.find(a, new, 1)) == (0, None, None)


def test_plain_requests_do_not_go_with_a_name() -> None:
    world = ReplyWorld()
    a, old, new = world.parties(3)
    world.open(a, old, 1)
    world.replies.repoint(old, new, 0)
    assert world.replies.is_open(a, old, 1)
    assert not world.replies.is_open(a, new, 1)
