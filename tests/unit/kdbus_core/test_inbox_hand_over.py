"""Messages that were sent to a name and follow it to whom it leads now."""

from __future__ import annotations

import pytest
from inbox_world import (
    FakeMessage,
    FakeTracker,
    Table,
    assert_holds_nothing,
    content,
    drain,
    make_inbox,
    numbers,
    parcel,
    take,
)

from kdbus_core.abi import PAGE_SIZE
from kdbus_core.inbox import Inbox
from kdbus_core.quota import User

NAME, OTHER_NAME = 7, 8


def move(old: Inbox, new: Inbox, name_id: int = NAME) -> list[bool]:
    """Hand over everything for a name, composed anew and a little larger."""
    return [
        old.hand_over(entry, new, parcel(b"composed anew!", message=_message(entry)))
        for entry in old.extract(name_id)
    ]


def _message(entry: object) -> FakeMessage | None:
    message = getattr(entry, "message", None)
    return message if isinstance(message, FakeMessage) else None


def test_what_was_sent_to_the_name_moves_in_order_and_nothing_else() -> None:
    old, new, user = make_inbox(), make_inbox(), User(0)
    entries = [old.push(parcel(), user, name_id=name_id) for name_id in (NAME, 0, OTHER_NAME, NAME)]
    assert old.extract(NAME) == [entries[0], entries[3]]
    assert list(old) == [entries[1], entries[2]]
    for number, entry in enumerate((entries[0], entries[3])):
        assert old.hand_over(entry, new, parcel(b"number %d" % number))
    assert [content(new, entry.slice.offset, 8) for entry in new] == [b"number 0", b"number 1"]
    drain(old)
    drain(new)
    assert_holds_nothing(old)
    assert_holds_nothing(new)


def test_messages_that_were_sent_to_an_id_are_nobodys_to_extract() -> None:
    with pytest.raises(AssertionError):
        make_inbox().extract(0)


def test_where_nothing_was_sent_to_the_name_nothing_is_extracted() -> None:
    inbox = make_inbox()
    inbox.push(parcel(), User(0), name_id=OTHER_NAME)
    assert inbox.extract(NAME) == []
    assert len(inbox) == 1


def test_an_entry_keeps_its_place_among_priorities_its_name_and_its_sender() -> None:
    old, new, user = make_inbox(), make_inbox(), User(0)
    for priority in (5, -5, 0):
        old.push(parcel(), user, priority=priority, name_id=NAME)
    assert move(old, new) == [True] * 3
    assert [entry.name_id for entry in new] == [NAME] * 3
    assert [entry.priority for entry in drain(new, 9)] == [-5, 0, 5]
    assert_holds_nothing(old)


def test_extracted_messages_are_not_found_by_priority() -> None:
    inbox = make_inbox()
    inbox.push(parcel(), User(0), priority=-1, name_id=NAME)
    other = inbox.push(parcel(), User(0))
    assert inbox.head(0) is not other
    [entry] = inbox.extract(NAME)
    assert inbox.head(0) is other
    inbox.discard(entry)


def test_the_sender_is_charged_where_its_message_is_now() -> None:
    old, new, user = make_inbox(), make_inbox(), User(0)
    old.push(parcel(fds=2), user, name_id=NAME)
    [entry] = old.extract(NAME)
    assert old.quota.total_messages == 1
    old.hand_over(entry, new, parcel(bytes(24), fds=2))
    assert not old.quota.shares
    share = new.quota.shares[user]
    assert (share.memory, share.messages, share.fds) == (32, 1, 2)
    assert user.charged == 1


def test_the_account_of_a_sender_who_has_gone_is_not_settled_on_the_way() -> None:
    settled: list[User] = []
    old, new, user = make_inbox(), make_inbox(), User(0, settled.append)
    old.push(parcel(), user, name_id=NAME)
    move(old, new)
    assert settled == []
    drain(new)
    assert settled == [user]


def test_files_follow_their_message() -> None:
    old, new, message, table = make_inbox(), make_inbox(), FakeMessage(), Table()
    old.push(parcel(fds=1, message=message), User(0), name_id=NAME)
    [entry] = old.extract(NAME)
    old.hand_over(entry, new, parcel(fds=1, message=message))
    assert message.holders == 1
    [moved] = new
    offset, _, _ = new.take(moved, table.install, accept_fds=True)
    assert numbers(new, offset, 1) == [10]
    new.pool.free(offset)
    assert_holds_nothing(old, message)
    assert_holds_nothing(new, message)


def test_a_tracker_follows_its_request_and_hears_of_its_reading_only() -> None:
    old, new, tracker = make_inbox(), make_inbox(), FakeTracker()
    old.push(parcel(), User(0), name_id=NAME, tracker=tracker.tracker)
    move(old, new)
    [moved] = new
    assert moved.tracker is tracker.tracker
    assert tracker.dequeued == 0
    take(new, moved)
    assert tracker.dequeued == 1
    assert old.close() == []
    assert tracker.dequeued == 1


def test_a_message_may_go_there_and_back_again() -> None:
    activator, owner, tracker, message = make_inbox(), make_inbox(), FakeTracker(), FakeMessage()
    activator.push(parcel(message=message), User(0), name_id=NAME, tracker=tracker.tracker)
    move(activator, owner)
    move(owner, activator)
    assert_holds_nothing(owner)
    assert (message.holders, tracker.dequeued) == (1, 0)
    drain(activator)
    assert_holds_nothing(activator, message)
    assert tracker.dequeued == 1


@pytest.mark.parametrize(
    ("capacity", "size"), [(0, 16 * PAGE_SIZE), (1 << 30, PAGE_SIZE)], ids=["quota", "pool"]
)
def test_what_finds_no_room_is_lost_for_the_new_receiver(capacity: int, size: int) -> None:
    ready: list[bool] = []
    old = make_inbox()
    new = make_inbox(size, capacity=capacity, on_ready=lambda: ready.append(True))
    new.pool.allocate(PAGE_SIZE)
    message, tracker = FakeMessage(), FakeTracker()
    for _ in range(2):
        old.push(parcel(message=message), User(0), name_id=NAME, tracker=tracker.tracker)
    assert move(old, new) == [False, False]
    assert (len(new), new.lost, len(ready)) == (0, 2, 2)
    assert not new.quota.shares
    assert tracker.dequeued == 2
    assert_holds_nothing(old, message)


def test_what_was_lost_on_the_way_does_not_keep_later_messages_back() -> None:
    old, new, user = make_inbox(), make_inbox(capacity=100), User(0)
    for _ in range(3):
        old.push(parcel(), user, name_id=NAME)
    sizes = iter((16, 64, 16))
    arrived = [old.hand_over(entry, new, parcel(bytes(next(sizes)))) for entry in old.extract(NAME)]
    assert arrived == [True, False, True]
    assert (len(new), new.lost) == (2, 1)


def test_the_old_slice_is_freed_unless_its_receiver_peeked_at_it() -> None:
    old, new, user = make_inbox(), make_inbox(), User(0)
    peeked, freed, unseen = (old.push(parcel(), user, name_id=NAME) for _ in range(3))
    place = old.peek(peeked)
    old.pool.free(old.peek(freed)[0])
    move(old, new)
    assert not unseen.slice.is_busy
    assert not freed.slice.is_busy
    assert peeked.slice.is_published
    old.pool.free(place[0])
    assert_holds_nothing(old)


def test_an_inbox_that_closes_keeps_nothing_of_what_is_on_its_way() -> None:
    inbox, message, tracker = make_inbox(), FakeMessage(), FakeTracker()
    inbox.push(parcel(message=message), User(0), name_id=NAME, tracker=tracker.tracker)
    inbox.extract(NAME)
    assert inbox.close() == []
    assert tracker.dequeued == 1
    assert_holds_nothing(inbox, message)
