"""Files that come with a message: which are installed when, and what stands where their numbers belong."""

from __future__ import annotations

import pytest
from inbox_world import FakeMessage, Table, assert_holds_nothing, make_inbox, numbers, parcel

from kdbus_core.quota import User

# What a receiver with room for so many more files sees of two files (a, b) and two pieces of memory (A, B),
# which are installed first: the numbers in the places of a, b, A, B; whether it is incomplete; what is open.
RECEIVED = [
    (True, 100, [12, 13, 10, 11], False, "ABab"),
    (False, 100, [-1, -1, 10, 11], False, "AB"),
    (True, 3, [12, -1, 10, 11], True, "ABa"),
    (True, 1, [-1, -1, 10, -1], True, "A"),
    (False, 1, [-1, -1, 10, -1], True, "A"),
    (True, 0, [-1, -1, -1, -1], True, ""),
    (False, 2, [-1, -1, 10, 11], False, "AB"),
]


@pytest.mark.parametrize(("accept_fds", "room", "seen", "missing", "files"), RECEIVED)
def test_memory_is_always_installed_and_files_where_they_are_accepted(
    accept_fds: bool, room: int, seen: list[int], missing: bool, files: str
) -> None:
    inbox, table, message = make_inbox(), Table(room), FakeMessage()
    entry = inbox.push(parcel(fds=2, memfds=2, message=message), User(0))
    offset, _, incomplete = inbox.take(entry, table.install, accept_fds=accept_fds)
    assert numbers(inbox, offset, 4) == seen
    assert incomplete is missing
    assert "".join(table.files.values()) == files
    inbox.pool.free(offset)
    assert_holds_nothing(inbox, message)


def test_one_missing_file_is_missing_even_if_later_ones_find_room() -> None:
    inbox, answers = make_inbox(), iter([10, -1, 11])
    entry = inbox.push(parcel(fds=3), User(0))
    offset, _, incomplete = inbox.take(entry, lambda _: next(answers), accept_fds=True)
    assert numbers(inbox, offset, 3) == [10, -1, 11]
    assert incomplete


def test_where_nothing_can_be_installed_nothing_is_missing() -> None:
    inbox = make_inbox()
    offset, _, incomplete = inbox.take(inbox.push(parcel(fds=2, memfds=2), User(0)), None, accept_fds=True)
    assert numbers(inbox, offset, 4) == [-1] * 4
    assert not incomplete


def test_peeking_installs_nothing() -> None:
    inbox, table = make_inbox(), Table()
    entry = inbox.push(parcel(fds=2, memfds=2), User(0))
    for _ in range(2):
        offset, _ = inbox.peek(entry)
        assert numbers(inbox, offset, 4) == [-1] * 4
    again, _, _ = inbox.take(entry, table.install, accept_fds=True)
    assert again == offset
    assert numbers(inbox, offset, 4) == [12, 13, 10, 11]


def test_numbers_touch_nothing_but_their_places() -> None:
    inbox = make_inbox()
    before, entry, after = (inbox.push(parcel(b"content.", fds=1), User(0)) for _ in range(3))
    inbox.take(entry, Table().install, accept_fds=True)
    for other in (before, after):
        assert inbox.pool.memory.read(other.slice.offset, 16) == b"content.\xff\xff\xff\xff" + bytes(4)
    assert inbox.pool.memory.read(entry.slice.offset, 8) == b"content."


def test_files_are_needed_until_they_have_been_installed() -> None:
    inbox, message, table = make_inbox(), FakeMessage(), Table()
    holders = []

    def install(file: object) -> int:
        holders.append(message.holders)
        return table.install(file)

    inbox.take(inbox.push(parcel(fds=1, memfds=1, message=message), User(0)), install, accept_fds=True)
    assert holders == [1, 1]
    assert message.holders == 0


def test_a_message_for_several_receivers_is_held_by_each() -> None:
    message, inboxes = FakeMessage(), [make_inbox() for _ in range(3)]
    entries = [inbox.push(parcel(fds=1, message=message), User(0)) for inbox in inboxes]
    assert message.holders == 3
    for inbox, entry in zip(inboxes, entries, strict=True):
        inbox.discard(entry)
    for inbox in inboxes:
        assert_holds_nothing(inbox, message)


def test_descriptors_are_in_flight_until_the_message_leaves_the_queue() -> None:
    inbox, user = make_inbox(max_fds=4), User(0)
    entry = inbox.push(parcel(fds=3), user)
    inbox.push(parcel(memfds=5), user)
    assert inbox.quota.total_fds == 3
    inbox.peek(entry)
    assert inbox.quota.total_fds == 3
    inbox.take(entry, Table(0).install, accept_fds=True)
    assert inbox.quota.total_fds == 0


# The reply of a synchronous call


def test_a_reply_that_was_staged_is_charged_but_not_found() -> None:
    inbox, user, message = make_inbox(), User(0), FakeMessage()
    inbox.stage(parcel(b"the reply", message=message), user)
    assert inbox.quota.shares[user].memory == 16
    assert message.holders == 1
    assert (len(inbox), list(inbox), inbox.readable) == (0, [], False)
    assert inbox.head() is None
    assert inbox.head(1 << 62) is None


def test_a_staged_reply_is_taken_like_any_message() -> None:
    inbox, table, message = make_inbox(), Table(), FakeMessage()
    waiting = inbox.push(parcel(), User(0))
    entry = inbox.stage(parcel(fds=1, message=message), User(0))
    offset, _, incomplete = inbox.take(entry, table.install, accept_fds=True)
    assert not incomplete
    assert numbers(inbox, offset, 1) == [10]
    assert list(inbox) == [waiting]
    inbox.discard(waiting)
    inbox.pool.free(offset)
    assert_holds_nothing(inbox, message)


def test_a_staged_reply_may_be_discarded() -> None:
    inbox, message = make_inbox(), FakeMessage()
    inbox.discard(inbox.stage(parcel(fds=1, message=message), User(0)))
    assert_holds_nothing(inbox, message)
