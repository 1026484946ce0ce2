"""Serials for cookies that cannot be serials: never two requests under one, and none kept for nothing."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busproxy.bridge.surrogates import MAX_KEPT, MAX_SERIAL, Surrogates, as_serial
from kdbus_core import Connection


class Sender:
    """As much of a connection as surrogates look at."""

    active = True


class Client:
    """Surrogates, and the requests that are open."""

    def __init__(self) -> None:
        self.open: set[tuple[Connection, int]] = set()
        self.surrogates = Surrogates(lambda sender, cookie: (sender, cookie) in self.open)

    def request(self, sender: Connection, cookie: int) -> int:
        self.open.add((sender, cookie))
        return self.surrogates.serial(sender, cookie)

    def answer(self, sender: Connection, serial: int) -> int:
        cookie = self.surrogates.cookie(sender, serial)
        self.open.remove((sender, cookie))
        self.surrogates.forget(sender, serial)
        return cookie


def sender() -> Connection:
    return cast(Connection, Sender())


@pytest.mark.parametrize(
    ("cookie", "serial"),
    [(1, 1), (MAX_SERIAL, MAX_SERIAL), (0, MAX_SERIAL), (1 << 32, MAX_SERIAL), ((1 << 32) + 5, 5)],
)
def test_a_message_nobody_refers_to_has_any_serial_but_zero(cookie: int, serial: int) -> None:
    assert as_serial(cookie) == serial


def test_a_cookie_that_can_be_a_serial_is_one() -> None:
    client, one = Client(), sender()
    assert [client.request(one, cookie) for cookie in (1, 77, MAX_SERIAL)] == [1, 77, MAX_SERIAL]
    assert len(client.surrogates) == 0


def test_a_cookie_in_use_is_no_surrogate_and_the_other_way_round() -> None:
    client, one = Client(), sender()
    assert client.request(one, MAX_SERIAL) == MAX_SERIAL
    surrogate = client.request(one, 1 << 32)
    assert surrogate == MAX_SERIAL - 1
    other = client.request(one, surrogate)
    assert other not in (surrogate, MAX_SERIAL)
    assert client.answer(one, surrogate) == 1 << 32
    assert client.answer(one, other) == surrogate
    assert client.answer(one, MAX_SERIAL) == MAX_SERIAL
    assert len(client.surrogates) == 0


def test_nobody_is_answered_by_anothers_surrogate() -> None:
    client, one, other = Client(), sender(), sender()
    surrogate = client.request(one, 1 << 32)
    assert client.surrogates.cookie(other, surrogate) == surrogate
    client.surrogates.forget(other, surrogate)
    assert client.answer(one, surrogate) == 1 << 32


def test_requests_that_ended_without_an_answer_do_not_pile_up() -> None:
    client, one, gone = Client(), sender(), sender()
    kept = client.request(one, 1 << 33)
    for number in range(5 * MAX_KEPT):
        client.request(gone if number % 2 else one, (1 << 34) + number)
        client.open = {(one, 1 << 33), (gone, (1 << 34) + 1)}
        if number == 1:
            cast(Sender, gone).active = False
    assert len(client.surrogates) <= MAX_KEPT
    assert client.answer(one, kept) == 1 << 33


def test_many_open_requests_are_not_looked_at_again_with_each_new_one() -> None:
    client, one = Client(), sender()
    looks = 0

    def is_open(sender: Connection, cookie: int) -> bool:
        nonlocal looks
        looks += 1
        return (sender, cookie) in client.open

    client.surrogates = Surrogates(is_open)
    for number in range(8 * MAX_KEPT):
        client.request(one, (1 << 32) + number)
    assert len(client.surrogates) == 8 * MAX_KEPT
    assert looks < 4 * 8 * MAX_KEPT


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([1, 2, MAX_SERIAL, MAX_SERIAL - 1, MAX_SERIAL - 2, 1 << 32, (1 << 64) - 1]),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_every_open_request_has_a_serial_of_its_own(steps: list[tuple[int, int, bool]]) -> None:
    """And what answers it finds its cookie, whatever else was asked and answered in between."""
    client, senders = Client(), [sender() for _ in range(3)]
    given_out: dict[tuple[int, int], int] = {}
    for who, cookie, is_request in steps:
        key = who, cookie
        if is_request and key not in given_out:
            serial = client.request(senders[who], cookie)
            assert 0 < serial <= MAX_SERIAL
            assert serial not in {s for (w, _), s in given_out.items() if w == who}
            given_out[key] = serial
        elif not is_request and key in given_out:
            assert client.answer(senders[who], given_out.pop(key)) == cookie
    for (who, cookie), serial in given_out.items():
        assert client.answer(senders[who], serial) == cookie
    assert len(client.surrogates) == 0
