"""Tracked requests in any history, compared with a list, oldest first, that is searched from its end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from reply_world import ReplyWorld, tracked

from kdbus_core.connection import Connection
from kdbus_core.replies import Lost, Tracker

steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("track"), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2), st.integers(0, 6)
        ),
        st.tuples(st.just("answer"), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)),
        st.tuples(st.sampled_from(["close", "fail", "dequeue"]), st.integers(0, 30)),
        st.tuples(st.just("repoint"), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)),
        st.tuples(st.just("expire"), st.integers(0, 3)),
        st.tuples(st.just("disconnect"), st.integers(0, 3)),
    ),
    max_size=40,
)


@given(steps)
def test_in_any_history_each_request_ends_once_and_everything_adds_up(
    history: list[tuple[str, int] | tuple[str, int, int, int] | tuple[str, int, int, int, int]],
) -> None:
    world = ReplyWorld()
    parties = world.parties(4)
    every: list[Tracker] = []
    alive: list[Tracker] = []
    repliers: dict[Tracker, Connection] = {}
    now = 0

    def end(expected: list[Tracker], lost: list[Lost]) -> None:
        assert lost == tracked(expected)
        alive[:] = [tracker for tracker in alive if tracker not in expected]

    for step in history:
        match step:
            case ("track", requester, replier, cookie, wait):
                deadline = now + wait if wait else 0
                tracker = world.replies.track(
                    parties[requester], parties[replier], cookie, deadline, name_id=cookie
                )
                every.append(tracker)
                alive.append(tracker)
                repliers[tracker] = parties[replier]
            case ("answer", requester, replier, cookie):
                found = world.replies.find(parties[requester], parties[replier], cookie)
                ends = (parties[requester], parties[replier], cookie)
                matching = [t for t in alive if (t.requester, repliers[t], t.cookie) == ends]
                assert found is (matching[-1] if matching else None)
                if isinstance(found, Tracker):
                    world.replies.close(found)
                    alive.remove(found)
            case (("close" | "fail" | "dequeue") as kind, number) if number < len(every):
                tracker = every[number]
                was_open = tracker in alive
                if kind == "dequeue":
                    tracker.on_dequeued()
                elif kind == "close":
                    assert world.replies.close(tracker) is was_open
                else:
                    assert (world.replies.fail(tracker) is not None) is was_open
                if kind != "dequeue" and was_open:
                    alive.remove(tracker)
            case ("repoint", old, new, name_id):
                world.replies.repoint(parties[old], parties[new], name_id)
                for tracker in alive:
                    is_through_name = repliers[tracker] is parties[old] and tracker.name_id == name_id
                    if is_through_name and tracker.requester not in (parties[old], parties[new]):
                        repliers[tracker] = parties[new]
            case ("expire", wait):
                now += wait
                due = [t for t in alive if t.deadline and t.deadline <= now]
                end(sorted(due, key=lambda t: t.deadline), world.replies.expire(now))
            case ("disconnect", number):
                gone = parties[number]
                own = [t for t in alive if t.requester is gone]
                orphans = [t for t in alive if repliers[t] is gone and t.requester is not gone]
                end(orphans, world.replies.disconnect(gone))
                end(own, tracked(own))
                for tracker in own:
                    tracker.on_dequeued()
        assert [t for t in every if t.is_open] == alive
        assert all(t.replier is repliers[t] for t in alive)
        deadlines = [t.deadline for t in alive if t.deadline]
        assert world.replies.next_deadline() == min(deadlines, default=None)
        for party in parties:
            counting = [t for t in every if t.requester is party and (t.is_open or t.is_queued)]
            assert party.outstanding == len(counting)
            held = [t for window in party.duties.values() for t in window.tracked()]
            assert sorted(held, key=lambda t: t.number) == [t for t in alive if repliers[t] is party]
