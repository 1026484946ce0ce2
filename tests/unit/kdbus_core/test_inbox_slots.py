"""Slots for reply notifications: reserved beforehand, so that none is ever refused or lost."""

from __future__ import annotations

import pytest
from inbox_world import assert_holds_nothing, content, errno_of, make_inbox, parcel, take

from kdbus_core.abi import PAGE_SIZE
from kdbus_core.inbox import SLOT_SIZE, Parcel
from kdbus_core.quota import User


@pytest.fixture
def user() -> User:
    return User(1000)


def notification() -> Parcel:
    return parcel(bytes(range(SLOT_SIZE)))


def test_a_slot_has_room_for_header_item_and_timestamp() -> None:
    assert SLOT_SIZE == 64 + 16 + 40


def test_a_reserved_slot_is_there_even_when_the_pool_is_full(user: User) -> None:
    inbox = make_inbox(PAGE_SIZE, capacity=0)
    inbox.reserve()
    inbox.pool.allocate(PAGE_SIZE - SLOT_SIZE)
    assert errno_of(lambda: inbox.push(notification(), user)) == "ENOBUFS"
    assert errno_of(inbox.reserve) == "EXFULL"
    entry = inbox.push_reserved(notification(), user)
    assert (inbox.reserved, inbox.head()) == (0, entry)
    offset, size, _ = inbox.take(entry, None, accept_fds=False)
    assert content(inbox, offset, size) == bytes(range(SLOT_SIZE))


def test_a_reserved_slot_costs_nobody_anything_until_it_is_used(user: User) -> None:
    inbox = make_inbox()
    inbox.reserve()
    assert not inbox.quota.shares
    entry = inbox.push_reserved(notification(), user)
    share = inbox.quota.shares[user]
    assert (share.memory, share.messages, share.fds) == (SLOT_SIZE, 1, 0)
    take(inbox, entry)
    assert_holds_nothing(inbox)


def test_each_slot_is_used_or_given_back(user: User) -> None:
    inbox = make_inbox()
    for _ in range(3):
        inbox.reserve()
    inbox.unreserve()
    inbox.discard(inbox.push_reserved(notification(), user))
    assert inbox.reserved == 1
    assert inbox.pool.busy == SLOT_SIZE
    inbox.unreserve()
    assert_holds_nothing(inbox)


def test_without_a_reservation_there_is_no_slot(user: User) -> None:
    inbox = make_inbox()
    with pytest.raises(IndexError):
        inbox.push_reserved(notification(), user)
    with pytest.raises(IndexError):
        inbox.unreserve()


def test_what_is_too_large_for_a_slot_is_a_bug_that_costs_nothing(user: User) -> None:
    inbox = make_inbox()
    inbox.reserve()
    with pytest.raises(AssertionError):
        inbox.push_reserved(parcel(bytes(SLOT_SIZE + 1)), user)
    assert (inbox.reserved, len(inbox)) == (1, 0)
    assert not inbox.quota.shares


def test_a_closed_inbox_has_no_slots_to_give_back() -> None:
    inbox = make_inbox()
    inbox.reserve()
    inbox.close()
    inbox.unreserve()
    assert_holds_nothing(inbox)
