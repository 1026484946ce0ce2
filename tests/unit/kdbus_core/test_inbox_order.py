"""In which order messages are received: by their turn, or by priority."""

from __future__ import annotations

import pytest
from inbox_world import assert_holds_nothing, drain, make_inbox, parcel, take

from kdbus_core.inbox import COMPACT_AT
from kdbus_core.quota import User


@pytest.fixture
def user() -> User:
    return User(1000)


def test_the_lowest_number_is_the_most_urgent_and_the_oldest_first_among_equals(user: User) -> None:
    inbox = make_inbox()
    for priority in (25, -600, 10, -35, -100, 20, -15, -800, -150, 10, -800, -10):
        inbox.push(parcel(), user, priority=priority)
    answers: list[int | str] = []
    for wanted in (-200, -100, -400, -400, 10, 10):
        entry = inbox.head(wanted)
        if entry is None:
            answers.append("EAGAIN")
        else:
            answers.append(entry.priority)
            take(inbox, entry)
    assert answers == [-800, -800, -600, "EAGAIN", -150, -100]
    first = inbox.head()
    assert first is not None
    assert first.priority == 25


def test_among_equals_the_oldest_comes_first(user: User) -> None:
    inbox = make_inbox()
    entries = [inbox.push(parcel(), user, priority=priority) for priority in (1, 0, 1, 0, 1)]
    assert drain(inbox, 1) == [entries[index] for index in (1, 3, 0, 2, 4)]
    assert_holds_nothing(inbox)


@pytest.mark.parametrize(("wanted", "found"), [(-1, False), (0, True), (1, True)])
def test_a_priority_is_found_up_to_the_one_asked_for(wanted: int, found: bool, user: User) -> None:
    inbox = make_inbox()
    inbox.push(parcel(), user)
    assert (inbox.head(wanted) is not None) is found


def test_in_an_empty_inbox_nothing_is_urgent() -> None:
    assert make_inbox().head(1 << 62) is None


def test_what_arrives_after_somebody_asked_by_priority_is_found_as_well(user: User) -> None:
    inbox = make_inbox()
    inbox.push(parcel(), user, priority=5)
    assert inbox.head(4) is None
    urgent = inbox.push(parcel(), user, priority=4)
    assert inbox.head(4) is urgent


def test_what_left_by_its_turn_is_not_found_by_priority(user: User) -> None:
    inbox = make_inbox()
    first, second, third = (inbox.push(parcel(), user, priority=priority) for priority in (1, 2, 3))
    assert inbox.head(9) is first
    take(inbox, first)
    inbox.discard(second)
    assert inbox.head(9) is third
    take(inbox, third)
    assert inbox.head(9) is None
    assert_holds_nothing(inbox)


def test_an_order_by_priority_that_nobody_asks_for_again_is_forgotten(user: User) -> None:
    inbox = make_inbox()
    waiting = [inbox.push(parcel(), user, priority=number) for number in range(2)]
    assert inbox.head(9) is waiting[0]
    for number in range(10 * COMPACT_AT):
        waiting.append(inbox.push(parcel(), user, priority=number % 7))
        take(inbox, waiting.pop(0))
        assert len(inbox._urgent or ()) <= COMPACT_AT
    expected = sorted(waiting, key=lambda entry: (entry.priority, entry.number))
    assert drain(inbox, 9) == expected
