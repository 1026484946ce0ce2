"""Room for waiting messages: how much of it a user may take, and that every charge is given back."""

from __future__ import annotations

from errno import EMFILE, ENOBUFS
from fractions import Fraction
from math import floor
from random import Random

import pytest
from broker_world import STRANGER, World, refused
from hypothesis import given
from hypothesis import strategies as st

from kdbus_core.connection import Limits
from kdbus_core.errors import KdbusError
from kdbus_core.quota import Quota, User

KIB = 1024
MIB = 1024 * KIB
MANY = 1 << 30


def attempt(quota: Quota, user: User, size: int, fds: int = 0) -> int:
    """Charge one message; returns 0 or the errno of the refusal."""
    try:
        quota.charge(user, size, fds)
    except KdbusError as error:
        return error.errno
    return 0


def fill(quota: Quota, user: User, size: int) -> int:
    """Charge messages of one size until one is refused for want of room; returns how many went in."""
    count = 0
    while (errno := attempt(quota, user, size)) == 0:
        count += 1
    assert errno == ENOBUFS
    return count


def state(quota: Quota) -> tuple[object, ...]:
    shares = {user: (share.memory, share.messages, share.fds) for user, share in quota.shares.items()}
    return shares, quota.total_memory, quota.total_messages, quota.total_fds


# Memory


def test_users_who_come_one_after_another_fill_ever_smaller_thirds() -> None:
    quota = Quota(8 * MIB, MANY, 16)
    assert [fill(quota, User(uid), 32 * KIB) for uid in range(6)] == [85, 57, 38, 25, 17, 11]


def test_of_the_room_that_is_left_each_newcomer_gets_a_third() -> None:
    capacity = 3**9
    quota = Quota(capacity, MANY, 16)
    shares = [Fraction(fill(quota, User(uid), 1), capacity) for uid in range(5)]
    assert shares == [Fraction(2**n, 3 ** (n + 1)) for n in range(5)]


def test_the_first_user_may_hold_one_message_of_two_mebibytes_and_no_second() -> None:
    quota = World().connect().quota
    user = User(0)
    quota.charge(user, 2 * MIB)
    with refused(ENOBUFS):
        quota.charge(user, 2 * MIB)
    quota.charge(User(1), 131 * KIB)


@pytest.mark.parametrize(("size", "fits"), [(2_796_202, True), (2_796_203, False)])
def test_the_first_users_third_is_exact_to_the_byte(size: int, fits: bool) -> None:
    quota = Quota(8 * MIB, MANY, 16)
    if fits:
        quota.charge(User(0), size)
        assert quota.total_memory == size
    else:
        with refused(ENOBUFS):
            quota.charge(User(0), size)
        assert not quota.shares


def test_what_a_user_holds_counts_as_free_for_itself() -> None:
    quota = Quota(900, MANY, 16)
    user = User(0)
    for _ in range(3):
        quota.charge(user, 100)
    with refused(ENOBUFS):
        quota.charge(user, 1)
    quota.refund(user, 100)
    quota.charge(user, 100)


def test_what_others_hold_makes_the_share_smaller() -> None:
    quota = Quota(900, MANY, 16)
    first, second = User(0), User(1)
    quota.charge(first, 300)
    with refused(ENOBUFS):
        quota.charge(second, 201)
    quota.charge(second, 200)
    with refused(ENOBUFS):
        quota.charge(second, 1)


def test_a_user_whose_share_shrank_below_what_it_holds_gets_nothing_more() -> None:
    quota = Quota(900, MANY, 16)
    first, second = User(0), User(1)
    quota.charge(first, 300)
    quota.charge(second, 100)
    with refused(ENOBUFS):
        quota.charge(first, 0)


def test_a_message_without_bytes_needs_no_room() -> None:
    quota = Quota(0, MANY, 16)
    quota.charge(User(0), 0)
    with refused(ENOBUFS):
        quota.charge(User(0), 1)


def test_what_was_forced_in_beyond_the_capacity_keeps_everything_else_out() -> None:
    quota = Quota(100, MANY, 16)
    first, second = User(0), User(1)
    quota.force(first, 101)
    for user in (first, second):
        with refused(ENOBUFS):
            quota.charge(user, 0)
    quota.refund(first, 101)
    quota.charge(second, 33)


def test_room_that_is_filled_exactly_is_not_overfull() -> None:
    quota = Quota(100, MANY, 16)
    quota.force(User(0), 100)
    quota.charge(User(1), 0)


@given(
    capacity=st.integers(0, 2000),
    others=st.integers(0, 2000),
    own=st.integers(0, 2000),
    size=st.integers(0, 2000),
)
def test_a_charge_fits_exactly_when_the_formula_says_so(
    capacity: int, others: int, own: int, size: int
) -> None:
    quota = Quota(capacity, MANY, 16)
    quota.force(User(1), others)
    user = User(0)
    quota.force(user, own)
    share = floor(Fraction(capacity - (others + own) + own, 3))
    fits = capacity >= others + own and share >= own and share - own >= size
    before = state(quota)
    assert attempt(quota, user, size) == (0 if fits else ENOBUFS)
    if fits:
        assert quota.total_memory == others + own + size
    else:
        assert state(quota) == before


# Messages and file descriptors


def test_a_user_has_256_messages_waiting_however_small_they_are() -> None:
    quota = World().connect().quota
    user = User(0)
    for _ in range(256):
        quota.charge(user, 64)
    with refused(ENOBUFS):
        quota.charge(user, 64)
    quota.charge(User(1), 64)
    quota.refund(user, 64)
    quota.charge(user, 64)


def test_a_user_has_sixteen_descriptors_waiting() -> None:
    quota = World().connect().quota
    user = User(0)
    quota.charge(user, 8, 10)
    quota.charge(user, 8, 6)
    with refused(EMFILE):
        quota.charge(user, 8, 1)
    quota.charge(user, 8)
    quota.charge(User(1), 8, 16)
    quota.refund(user, 8, 6)
    quota.charge(user, 8, 1)


def test_one_message_with_too_many_descriptors_is_refused() -> None:
    quota = Quota(MIB, MANY, 16)
    with refused(EMFILE):
        quota.charge(User(0), 8, 17)
    assert not quota.shares
    assert quota.total_fds == 0


def test_want_of_room_is_said_before_want_of_descriptors() -> None:
    quota = Quota(300, 1, 1)
    user = User(0)
    with refused(ENOBUFS):
        quota.charge(user, 101, 2)
    quota.charge(user, 1)
    with refused(ENOBUFS):
        quota.charge(user, 1, 2)


# Accounts


def test_a_connection_offers_half_of_its_pool() -> None:
    world = World()
    quota = world.connect(limits=Limits(pool_size=1001, queued_messages=7, in_flight_fds=3)).quota
    assert (quota.capacity, quota.max_messages, quota.max_fds) == (500, 7, 3)


def test_a_connection_may_bring_the_quota_that_its_transport_already_keeps() -> None:
    quota = Quota(10, 1, 0)
    assert World().connect(quota=quota).quota is quota


def test_connections_of_one_uid_share_an_account() -> None:
    world = World()
    receiver, first, second = world.connect_many(3)
    stranger = world.connect(STRANGER)
    receiver.quota.charge(first.user, 2 * MIB)
    with refused(ENOBUFS):
        receiver.quota.charge(second.user, 2 * MIB)
    receiver.quota.charge(stranger.user, MIB)


def test_reconnecting_does_not_refill_a_share() -> None:
    world = World()
    receiver, sender = world.connect(), world.connect(STRANGER)
    receiver.quota.charge(sender.user, 2 * MIB)
    world.bus.disconnect(sender)
    again = world.connect(STRANGER)
    assert again.user is sender.user
    with refused(ENOBUFS):
        receiver.quota.charge(again.user, 2 * MIB)
    receiver.quota.refund(sender.user, 2 * MIB)
    receiver.quota.charge(again.user, 2 * MIB)


def test_an_account_counts_the_receivers_where_something_of_it_waits() -> None:
    user = User(0)
    first, second = Quota(900, MANY, 16), Quota(900, MANY, 16)
    counts = [user.charged]
    for quota in (first, first, second):
        quota.charge(user, 10)
        counts.append(user.charged)
    for quota in (first, second, first):
        quota.refund(user, 10)
        counts.append(user.charged)
    assert counts == [0, 1, 1, 2, 2, 1, 0]


def test_what_is_refused_leaves_no_trace_in_an_account() -> None:
    user = User(0)
    quota = Quota(900, MANY, 16)
    with refused(ENOBUFS):
        quota.charge(user, 301)
    with refused(EMFILE):
        quota.charge(user, 1, 17)
    assert user.charged == 0


def test_an_account_is_settled_once_it_has_neither_connections_nor_charges() -> None:
    settled: list[User] = []
    user = User(0, settled.append)
    quota = Quota(900, MANY, 16)
    user.connections = 2
    quota.charge(user, 10)
    user.disconnect()
    user.disconnect()
    assert not settled
    quota.refund(user, 10)
    assert settled == [user]
    user.connections = 1
    quota.charge(user, 10)
    quota.refund(user, 10)
    assert settled == [user]
    user.disconnect()
    assert settled == [user, user]


def test_an_account_that_nobody_keeps_settles_in_silence() -> None:
    user = User(None)
    user.connections = 1
    user.disconnect()
    assert (user.connections, user.charged) == (0, 0)


def test_an_account_with_nothing_waiting_does_not_exist() -> None:
    quota = Quota(900, MANY, 16)
    user = User(0)
    quota.charge(user, 100, 2)
    quota.charge(user, 0, 0)
    quota.refund(user, 100, 2)
    assert user in quota.shares
    quota.refund(user, 0, 0)
    assert state(quota) == ({}, 0, 0, 0)


def test_the_most_that_ever_waited_is_remembered() -> None:
    quota = Quota(900, MANY, 16)
    first, second = User(0), User(1)
    quota.charge(first, 100, 2)
    quota.charge(second, 50, 3)
    quota.refund(first, 100, 2)
    quota.charge(second, 20)
    quota.refund(second, 50, 3)
    quota.refund(second, 20)
    assert (quota.peak_memory, quota.peak_fds) == (150, 5)


def test_what_is_refused_never_waited() -> None:
    quota = Quota(900, MANY, 16)
    with refused(ENOBUFS):
        quota.charge(User(0), 301, 1)
    assert (quota.peak_memory, quota.peak_fds) == (0, 0)


def test_giving_back_what_was_never_taken_is_a_bug() -> None:
    quota = Quota(900, MANY, 16)
    with pytest.raises(KeyError):
        quota.refund(User(0), 1)


@pytest.mark.parametrize(("size", "fds"), [(99, 2), (101, 2), (100, 1), (100, 3)])
def test_giving_back_more_or_less_than_was_taken_is_a_bug(size: int, fds: int) -> None:
    quota = Quota(900, MANY, 16)
    user = User(0)
    quota.charge(user, 100, 2)
    with pytest.raises(AssertionError):
        quota.refund(user, size, fds)


charges = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 400), st.integers(0, 3)), max_size=30)


@given(wanted=charges, random=st.randoms(use_true_random=False))
def test_a_refund_mirrors_its_charge_in_whatever_order_messages_leave(
    wanted: list[tuple[int, int, int]], random: Random
) -> None:
    quota = Quota(2000, 6, 8)
    users = [User(uid) for uid in range(4)]
    waiting: list[tuple[User, int, int]] = []
    for number, size, fds in wanted:
        before = state(quota)
        if attempt(quota, users[number], size, fds):
            assert state(quota) == before
        else:
            waiting.append((users[number], size, fds))
    while waiting:
        assert quota.total_memory == sum(size for _, size, _ in waiting)
        assert quota.total_messages == len(waiting)
        assert quota.total_fds == sum(fds for _, _, fds in waiting)
        assert quota.shares.keys() == {user for user, _, _ in waiting}
        for user, share in quota.shares.items():
            mine = [(size, fds) for owner, size, fds in waiting if owner is user]
            assert share.messages == len(mine) <= 6
            assert share.memory == sum(size for size, _ in mine)
            assert share.fds == sum(fds for _, fds in mine) <= 8
        quota.refund(*waiting.pop(random.randrange(len(waiting))))
    assert state(quota) == ({}, 0, 0, 0)
