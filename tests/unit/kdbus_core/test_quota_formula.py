"""The pool share rule, restated step by step and compared with `Quota` whatever users do."""

from __future__ import annotations

from collections import Counter
from errno import EMFILE, ENOBUFS

import pytest
from broker_world import refused
from hypothesis import given
from hypothesis import strategies as st

from kdbus_core.abi import DEFAULT_POOL_SIZE, MAX_IN_FLIGHT_FDS, MAX_QUEUED_MESSAGES, MAX_VEC_PAYLOAD
from kdbus_core.errors import KdbusError
from kdbus_core.quota import Quota, User

KIB = 1024
U32_MAX = 2**32 - 1


class Account:
    """What the restated rule knows of one receiver: each message that waits, as (user, size, fds)."""

    def __init__(self, pool_size: int) -> None:
        self.pool_size = pool_size
        self.waiting: list[tuple[int, int, int]] = []

    def refusal(self, user: int, size: int, fds: int) -> int:
        """0 if the message fits, else the errno; in the order in which kdbus asks."""
        mine = [message for message in self.waiting if message[0] == user]
        available = self.pool_size // 2
        accounted = sum(size for _, size, _ in self.waiting)
        if available < accounted:
            return ENOBUFS
        own = sum(size for _, size, _ in mine)
        share = (available - accounted + own) // 3
        if share < own or share - own < size or own + size > U32_MAX:
            return ENOBUFS
        if len(mine) >= MAX_QUEUED_MESSAGES:
            return ENOBUFS
        if sum(fds for _, _, fds in mine) + fds > MAX_IN_FLIGHT_FDS:
            return EMFILE
        return 0


def quota_of(pool_size: int) -> Quota:
    return Quota(pool_size // 2, MAX_QUEUED_MESSAGES, MAX_IN_FLIGHT_FDS)


def attempt(quota: Quota, user: User, size: int, fds: int = 0) -> int:
    try:
        quota.charge(user, size, fds)
    except KdbusError as error:
        return error.errno
    return 0


def assert_same(quota: Quota, account: Account, users: list[User]) -> None:
    sizes: Counter[int] = Counter()
    fds: Counter[int] = Counter()
    for user, size, count in account.waiting:
        sizes[user] += size
        fds[user] += count
    held = {user: (share.memory, share.messages, share.fds) for user, share in quota.shares.items()}
    messages = Counter(user for user, _, _ in account.waiting)
    assert held == {users[user]: (sizes[user], count, fds[user]) for user, count in messages.items()}
    assert quota.total_memory == sum(sizes.values())
    assert quota.total_messages == len(account.waiting)
    assert quota.total_fds == sum(fds.values())
    assert [user.charged for user in users] == [int(number in messages) for number in range(len(users))]


def histories(users: int) -> st.SearchStrategy[list[tuple[str, int, int, int]]]:
    """Messages of so many users, releases of the n-th one that waits, and what is put in without asking."""
    who = st.integers(0, users - 1)
    size = st.sampled_from([0, 8, 64, 320, 1000]) | st.integers(0, 4000)
    fds = st.sampled_from([0, 0, 0, 1, 9, 16, 17])
    return st.lists(
        st.one_of(
            st.tuples(st.just("send"), who, size, fds),
            st.tuples(st.just("send"), who, size, fds),
            st.tuples(st.just("release"), st.integers(0, 50), st.just(0), st.just(0)),
            st.tuples(st.just("force"), who, size, st.just(0)),
        ),
        max_size=50,
    )


@pytest.mark.parametrize("users", [2, 3, 7])
@given(data=st.data(), pool_size=st.sampled_from([0, 1, 4096, 8192, 65536]))
def test_a_message_fits_exactly_when_the_rule_says_so(
    users: int, data: st.DataObject, pool_size: int
) -> None:
    accounts = [User(uid) for uid in range(users)]
    quota, account = quota_of(pool_size), Account(pool_size)
    for kind, number, size, fds in data.draw(histories(users)):
        match kind:
            case "send":
                expected = account.refusal(number, size, fds)
                assert attempt(quota, accounts[number], size, fds) == expected
                if not expected:
                    account.waiting.append((number, size, fds))
            case "force":
                quota.force(accounts[number], size, fds)
                account.waiting.append((number, size, fds))
            case _ if account.waiting:
                user, size, fds = account.waiting.pop(number % len(account.waiting))
                quota.refund(accounts[user], size, fds)
        assert_same(quota, account, accounts)


def test_the_number_of_messages_is_limited_for_each_user() -> None:
    quota, account = quota_of(DEFAULT_POOL_SIZE), Account(DEFAULT_POOL_SIZE)
    users = [User(uid) for uid in range(2)]
    for number in range(2 * MAX_QUEUED_MESSAGES + 20):
        user = int(number % 3 == 0)
        expected = account.refusal(user, 64, 0)
        assert attempt(quota, users[user], 64) == expected
        if not expected:
            account.waiting.append((user, 64, 0))
    assert quota.shares[users[0]].messages == MAX_QUEUED_MESSAGES > quota.shares[users[1]].messages


@given(st.integers(0, 3 * U32_MAX), st.integers(0, 3 * U32_MAX))
def test_in_the_largest_pools_a_share_still_ends_at_32_bits(own: int, size: int) -> None:
    pool_size = 2**40
    quota, account = quota_of(pool_size), Account(pool_size)
    user = User(0)
    quota.force(user, own)
    account.waiting.append((0, own, 0))
    assert attempt(quota, user, size) == account.refusal(0, size, 0)


@pytest.mark.parametrize(("size", "errno"), [(U32_MAX, 0), (U32_MAX + 1, ENOBUFS)])
def test_a_share_ends_at_32_bits_to_the_byte(size: int, errno: int) -> None:
    assert attempt(quota_of(2**40), User(0), size) == errno


# Figures for a pool of 16 MiB


def fill(quota: Quota, user: User, size: int) -> int:
    count = 0
    while not attempt(quota, user, size):
        count += 1
    return count


def test_the_first_user_may_hold_2796202_bytes() -> None:
    for size, errno in ((2_796_202, 0), (2_796_203, ENOBUFS)):
        assert attempt(quota_of(DEFAULT_POOL_SIZE), User(0), size) == errno


def test_the_first_user_may_hold_one_largest_message_and_not_two() -> None:
    quota = quota_of(DEFAULT_POOL_SIZE)
    assert fill(quota, User(0), MAX_VEC_PAYLOAD + 200) == 1


def test_users_in_a_row_with_messages_of_32_kib_hold_ever_fewer() -> None:
    quota = quota_of(DEFAULT_POOL_SIZE)
    assert [fill(quota, User(uid), 32 * KIB) for uid in range(6)] == [85, 57, 38, 25, 17, 11]


def test_messages_of_131_kilobytes_fit_21_times() -> None:
    assert fill(quota_of(DEFAULT_POOL_SIZE), User(0), 131_600) == 21


def test_a_small_message_still_passes_beside_one_of_the_largest() -> None:
    quota = quota_of(DEFAULT_POOL_SIZE)
    user = User(0)
    quota.charge(user, MAX_VEC_PAYLOAD + 200)
    quota.charge(user, 131_600)


def test_whoever_has_read_a_message_makes_room_for_as_much() -> None:
    quota = quota_of(DEFAULT_POOL_SIZE)
    user = User(0)
    count = fill(quota, user, 32 * KIB)
    quota.refund(user, 32 * KIB)
    assert fill(quota, user, 32 * KIB) == 1
    assert quota.shares[user].messages == count


def test_a_user_with_no_message_waiting_is_refused_where_none_may_wait() -> None:
    with refused(ENOBUFS):
        Quota(1000, 0, 16).charge(User(0), 1)
