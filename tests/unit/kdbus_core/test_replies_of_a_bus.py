"""Open requests when a bus does something: who is told that there will be no reply, and after what."""

from __future__ import annotations

from broker_world import World, assert_refers_to_nothing, kinds

from kdbus_core.notifications import IdAdd, IdRemove, ReplyDead, ReplyTimeout


def test_a_requester_is_told_when_its_deadline_has_passed() -> None:
    world = World()
    a, b = world.connect_many(2)
    world.open_request(a, b, 5, 100)
    world.bus.expire_replies(99)
    assert not world.news
    world.bus.expire_replies(100)
    assert world.take_news() == [ReplyTimeout(a, 5)]


def test_those_who_waited_for_a_connection_learn_that_it_has_gone_after_it_has() -> None:
    world = World()
    a, b, gone = world.connect_many(3)
    world.open_request(b, gone, 7)
    world.open_request(a, gone, 2, 10)
    world.open_request(a, b, 3)
    world.open_request(a, gone, 1)
    world.bus.disconnect(gone)
    expected = [IdRemove(gone), ReplyDead(b, 7), ReplyDead(a, 2), ReplyDead(a, 1)]
    assert world.take_news() == expected
    assert_refers_to_nothing(gone)


def test_requests_of_a_connection_that_goes_are_dropped_in_silence() -> None:
    world = World()
    gone, b = world.connect_many(2)
    world.open_request(gone, b, 1, 10)
    world.bus.disconnect(gone)
    world.bus.expire_replies(10)
    assert world.take_news() == [IdRemove(gone)]
    assert_refers_to_nothing(gone)


def test_of_two_that_wait_for_each_other_the_one_that_stays_is_told() -> None:
    world = World()
    a, gone = world.connect_many(2)
    world.open_request(a, gone, 1)
    world.open_request(gone, a, 2)
    world.bus.disconnect(gone)
    assert world.take_news() == [IdRemove(gone), ReplyDead(a, 1)]


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


def test_a_call_to_oneself_ends_in_silence_with_the_connection() -> None:
    world = World()
    me, other = world.connect_many(2)
    world.open_request(me, me, 1, 10)
    world.open_request(other, me, 2)
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
