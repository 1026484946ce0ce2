"""Any bytes at all, to handles in every state: done or refused as the tables say, and nobody is harmed.

What is checked after each command is in `kdbus_session.py`, the tables are in `kdbus_errnos.py`. More
examples than a test run has time for: KDBUS_FUZZ_EXAMPLES=20000; guided by coverage:
tests/fuzz/fuzz_handle.py.
"""

from __future__ import annotations

import os
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kdbus_errnos import LAYOUTS
from kdbus_session import Session, cut_steps, run_session
from support.kdbus import layout

EXAMPLES = int(os.environ.get("KDBUS_FUZZ_EXAMPLES", "120"))
HANDLES = 19

profile = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
steps = st.lists(st.binary(min_size=40, max_size=160), min_size=1, max_size=12)
handles = st.integers(0, HANDLES - 1)
numbers = st.sampled_from([command.request for command in LAYOUTS.values()])
words = st.one_of(
    st.sampled_from([0, 1, 8, 16, 24, 64, 4096, layout.NEGOTIATE, 2**31, 2**63 - 1, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
).map(lambda number: number.to_bytes(8, "little"))


@profile
@given(steps)
def test_commands_with_anything_wrong_in_them_harm_nobody(steps: list[bytes]) -> None:
    run_session(steps)


@profile
@given(handles, st.one_of(numbers, st.integers(0, 2**32 - 1)), st.binary(max_size=300), st.integers(0, 12))
def test_bytes_that_mean_nothing_are_refused_as_the_tables_say(
    handle: int, request: int, data: bytes, address: int
) -> None:
    session = Session()
    session.say(handle, request, data, address)
    session.finish()


@profile
@given(st.lists(st.tuples(handles, numbers, st.lists(words, max_size=20), st.booleans()), max_size=8))
def test_words_in_place_of_structs_and_items_harm_nobody(
    commands: list[tuple[int, int, list[bytes], bool]],
) -> None:
    session = Session()
    for handle, request, content, has_size in commands:
        data = b"".join(content)
        if has_size:  # so that it is not refused for that already
            data = (len(data) + 24).to_bytes(8, "little") + bytes(16) + data
        session.say(handle, request, data)
    session.finish()


@profile
@given(st.binary(max_size=1500))
def test_one_run_of_bytes_is_as_good_as_steps(data: bytes) -> None:
    run_session(cut_steps(data))


def test_a_session_has_a_handle_in_every_state() -> None:
    session = Session()
    assert len(session.actors) == HANDLES
    session.finish()


def test_what_is_said_by_chance_gets_through_often_enough_to_mean_something() -> None:
    chance = random.Random(1)
    outcomes: set[str] = set()
    for _ in range(120):
        session = Session()
        session.run([chance.randbytes(chance.randrange(40, 160)) for _ in range(25)])
        outcomes |= session.outcomes
    results: dict[str, set[str]] = {}
    for outcome in outcomes:
        command, _, result = outcome.partition(": ")[2].partition(" -> ")
        results.setdefault(command, set()).add(result)
    for command in LAYOUTS:
        assert "done" in results[command], command
    assert results["SEND"] >= {"waits", "EBADSLT", "ENXIO", "EPERM", "ESRCH", "EBADF", "EMEDIUMTYPE"}
