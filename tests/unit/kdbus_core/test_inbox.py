"""An inbox: what waits in which order, what it costs, and that everything is given back once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from inbox_world import (
    FakeMessage,
    FakeTracker,
    assert_holds_nothing,
    content,
    drain,
    errno_of,
    make_inbox,
    parcel,
    take,
)

from kdbus_core.abi import PAGE_SIZE
from kdbus_core.inbox import Inbox, Parcel
from kdbus_core.pool import LazyMemory
from kdbus_core.quota import User

ALICE = 1000


@pytest.fixture
def user() -> User:
    return User(ALICE)


# In and out


def test_what_was_pushed_is_taken_from_the_pool(user: User) -> None:
    inbox = make_inbox()
    entry = inbox.push(parcel(b"hello, world"), user)
    assert inbox.head() is entry
    offset, size, incomplete = inbox.take(entry, None, accept_fds=False)
    assert content(inbox, offset, size) == b"hello, world\0\0\0\0"
    assert not incomplete
    assert inbox.head() is None
    inbox.pool.free(offset)
    assert_holds_nothing(inbox)


def test_messages_are_received_in_the_order_in_which_they_arrived(user: User) -> None:
    inbox = make_inbox()
    entries = [inbox.push(parcel(), user) for _ in range(5)]
    assert list(inbox) == entries
    assert drain(inbox) == entries
    assert_holds_nothing(inbox)


def test_an_entry_may_leave_from_the_middle(user: User) -> None:
    inbox = make_inbox()
    first, second, third = (inbox.push(parcel(), user) for _ in range(3))
    inbox.discard(second)
    assert list(inbox) == [first, third]
    assert drain(inbox) == [first, third]


def test_what_was_taken_is_the_receivers_and_no_longer_charged(user: User) -> None:
    inbox = make_inbox()
    offset, size, _ = inbox.take(inbox.push(parcel(bytes(64)), user), None, accept_fds=False)
    assert not inbox.quota.shares
    assert inbox.pool.busy == size == 64
    inbox.pool.free(offset)
    assert_holds_nothing(inbox)


def test_what_was_discarded_is_gone(user: User) -> None:
    inbox = make_inbox()
    entry = inbox.push(parcel(), user)
    inbox.discard(entry)
    assert errno_of(lambda: inbox.pool.free(entry.slice.offset)) == "ENXIO"
    assert_holds_nothing(inbox)


def test_an_entry_leaves_once(user: User) -> None:
    inbox = make_inbox()
    entry = inbox.push(parcel(), user)
    inbox.discard(entry)
    with pytest.raises(AssertionError):
        inbox.discard(entry)
    with pytest.raises(AssertionError):
        inbox.take(entry, None, accept_fds=False)
    with pytest.raises(AssertionError):
        inbox.peek(entry)
    assert_holds_nothing(inbox)


def test_an_entry_leaves_by_its_own_inbox(user: User) -> None:
    inbox, other = make_inbox(), make_inbox()
    entry = inbox.push(parcel(), user)
    other.push(parcel(), user)
    with pytest.raises(AssertionError):
        other.discard(entry)
    assert (len(inbox), len(other)) == (1, 1)


def test_an_entry_knows_what_it_was_pushed_with(user: User) -> None:
    tracker = FakeTracker().tracker
    entry = make_inbox().push(parcel(), user, priority=-3, name_id=7, tracker=tracker)
    assert (entry.user, entry.priority, entry.name_id, entry.tracker) == (user, -3, 7, tracker)
    assert repr(entry) == "<entry 1 of User(1000) in <held slice 0+8>>"


def test_a_tracker_hears_once_that_its_request_has_left(user: User) -> None:
    inbox = make_inbox()
    taken, discarded = FakeTracker(), FakeTracker()
    first = inbox.push(parcel(), user, tracker=taken.tracker)
    second = inbox.push(parcel(), user, tracker=discarded.tracker)
    inbox.peek(first)
    assert (taken.dequeued, discarded.dequeued) == (0, 0)
    take(inbox, first)
    assert (taken.dequeued, discarded.dequeued) == (1, 0)
    inbox.discard(second)
    assert (taken.dequeued, discarded.dequeued) == (1, 1)


@pytest.mark.parametrize("leave", [take, Inbox.discard])
def test_a_message_is_held_while_it_waits(leave: Callable[..., object], user: User) -> None:
    inbox, message = make_inbox(), FakeMessage()
    entry = inbox.push(parcel(message=message), user)
    assert message.holders == 1
    leave(inbox, entry)
    assert_holds_nothing(inbox, message)


# Charging


def test_the_whole_slice_is_charged_and_the_descriptors_in_flight(user: User) -> None:
    inbox = make_inbox()
    inbox.push(parcel(bytes(9), fds=2, memfds=3), user)
    share = inbox.quota.shares[user]
    assert (share.memory, share.messages, share.fds) == (32, 1, 2)


@pytest.mark.parametrize(
    ("limits", "parcels", "errno"),
    [
        ({"capacity": 300}, [parcel(bytes(104))], "ENOBUFS"),
        ({"max_messages": 2}, [parcel(), parcel(), parcel()], "ENOBUFS"),
        ({"max_fds": 3}, [parcel(fds=2), parcel(fds=2)], "EMFILE"),
        ({"size": PAGE_SIZE}, [parcel(bytes(2048)), parcel(bytes(2056))], "EXFULL"),
    ],
)
def test_what_is_refused_leaves_no_trace(
    limits: dict[str, int], parcels: list[Parcel], errno: str, user: User
) -> None:
    inbox = make_inbox(limits.pop("size", 16 * PAGE_SIZE), **limits)  # type: ignore[arg-type]  # only integers
    for fitting in parcels[:-1]:
        inbox.push(fitting, user)
    quota, message = inbox.quota, FakeMessage()
    refused = parcels[-1]._replace(message=message)  # type: ignore[arg-type]  # a stand-in
    before = (len(inbox), inbox.pool.busy, quota.total_memory, quota.total_messages, quota.total_fds)
    assert errno_of(lambda: inbox.push(refused, user)) == errno
    assert errno_of(lambda: inbox.stage(refused, user)) == errno
    after = (len(inbox), inbox.pool.busy, quota.total_memory, quota.total_messages, quota.total_fds)
    assert before == after
    drain(inbox)
    assert_holds_nothing(inbox, message)


def test_a_full_pool_leaves_no_account_behind(user: User) -> None:
    inbox = make_inbox(PAGE_SIZE)
    inbox.pool.allocate(PAGE_SIZE)
    assert errno_of(lambda: inbox.push(parcel(), user)) == "EXFULL"
    assert not inbox.quota.shares
    assert user.charged == 0


def test_what_cannot_be_written_is_not_charged(user: User) -> None:
    class BrokenMemory(LazyMemory):
        def write(self, offset: int, data: bytes) -> None:
            raise OSError("broken")

    inbox, message = make_inbox(memory=BrokenMemory()), FakeMessage()
    with pytest.raises(OSError, match="broken"):
        inbox.push(parcel(message=message), user)
    assert_holds_nothing(inbox, message)


# Lost messages, and who is told


def test_the_lost_counter_is_reported_once() -> None:
    inbox = make_inbox()
    inbox.on_lost()
    inbox.on_lost()
    assert inbox.lost == 2
    assert (inbox.take_lost(), inbox.take_lost()) == (2, 0)


def test_an_inbox_is_readable_while_something_waits_or_was_lost(user: User) -> None:
    inbox = make_inbox()
    seen = [inbox.readable]
    entry = inbox.push(parcel(), user)
    seen.append(inbox.readable)
    inbox.on_lost()
    inbox.discard(entry)
    seen.append(inbox.readable)
    inbox.take_lost()
    seen.append(inbox.readable)
    assert seen == [False, True, True, False]


def test_the_receiver_is_told_when_there_is_something_to_read(user: User) -> None:
    told: list[tuple[int, int]] = []
    inbox = make_inbox(on_ready=lambda: told.append((len(inbox), inbox.lost)))
    inbox.push(parcel(), user)
    inbox.reserve()
    inbox.push_reserved(parcel(), user)
    inbox.stage(parcel(), user)
    inbox.on_lost()
    assert told == [(1, 0), (2, 0), (2, 1)]


# PEEK


def test_what_was_peeked_at_is_later_taken_from_the_same_place(user: User) -> None:
    inbox = make_inbox()
    entry = inbox.push(parcel(b"peek a boo"), user)
    place = inbox.peek(entry)
    assert inbox.peek(entry) == place
    assert inbox.head() is entry
    assert content(inbox, *place)[:10] == b"peek a boo"
    assert inbox.take(entry, None, accept_fds=False) == (*place, False)
    inbox.pool.free(place[0])
    assert_holds_nothing(inbox)


def test_peeking_costs_the_sender_nothing_and_spares_it_nothing(user: User) -> None:
    inbox = make_inbox()
    entry = inbox.push(parcel(), user)
    inbox.peek(entry)
    assert inbox.quota.shares[user].memory == 8
    inbox.discard(entry)
    assert not inbox.quota.shares


def test_a_slice_freed_after_peeking_stays_for_the_queue(user: User) -> None:
    inbox = make_inbox()
    entry = inbox.push(parcel(), user)
    offset, size = inbox.peek(entry)
    inbox.pool.free(offset)
    assert inbox.pool.busy == size
    assert take(inbox, entry) == (offset, size)
    assert_holds_nothing(inbox)


def test_what_is_discarded_after_peeking_stays_until_it_is_freed(user: User) -> None:
    inbox = make_inbox()
    entry = inbox.push(parcel(), user)
    offset, size = inbox.peek(entry)
    inbox.discard(entry)
    assert inbox.pool.busy == size
    inbox.pool.free(offset)
    assert_holds_nothing(inbox)


# Closing


def test_closing_drops_everything_and_tells_what_was_not_read(user: User) -> None:
    inbox, message = make_inbox(), FakeMessage()
    trackers = [FakeTracker() for _ in range(2)]
    read = inbox.push(parcel(), user, tracker=FakeTracker().tracker)
    requests = []
    for tracker in trackers:
        inbox.push(parcel(message=message, fds=1), user)
        requests.append(inbox.push(parcel(message=message), user, tracker=tracker.tracker))
    inbox.stage(parcel(message=message), user)
    inbox.reserve()
    inbox.on_lost()
    take(inbox, read)
    assert inbox.close() == requests
    assert [tracker.dequeued for tracker in trackers] == [1, 1]
    assert not inbox.readable
    assert_holds_nothing(inbox, message)


def test_what_the_receiver_has_survives_the_closing(user: User) -> None:
    inbox = make_inbox()
    offset, size = inbox.peek(inbox.push(parcel(), user))
    assert inbox.close() == []
    assert inbox.pool.busy == size
    inbox.pool.free(offset)
    assert_holds_nothing(inbox)


def test_a_closed_inbox_may_be_closed_again_and_takes_nothing(user: User) -> None:
    inbox = make_inbox()
    inbox.close()
    assert inbox.close() == []
    with pytest.raises(AssertionError):
        inbox.push(parcel(), user)
    with pytest.raises(AssertionError):
        inbox.reserve()
    assert_holds_nothing(inbox)
