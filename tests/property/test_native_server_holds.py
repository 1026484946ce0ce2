"""Whatever clients send over real sockets, the server holds: nobody else is harmed, and nothing is left.

What is checked after each step is in `native_session.py`. More examples than a test run has time for:
KDBUS_FUZZ_EXAMPLES=2000; guided by coverage: tests/fuzz/fuzz_native.py.
"""

from __future__ import annotations

import os
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kdbus_session import cut_steps
from native_session import run_session

EXAMPLES = int(os.environ.get("KDBUS_FUZZ_EXAMPLES", "60"))

profile = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@profile
@given(st.lists(st.binary(min_size=20, max_size=160), min_size=1, max_size=15))
def test_whatever_is_sent_nobody_is_harmed_and_nothing_is_left(steps: list[bytes]) -> None:
    run_session(steps)


@profile
@given(st.binary(max_size=1500))
def test_one_run_of_bytes_is_as_good_as_steps(data: bytes) -> None:
    run_session(cut_steps(data))


def test_what_is_sent_by_chance_gets_through_often_enough_to_mean_something() -> None:
    chance = random.Random(1)
    outcomes: set[str] = set()
    for _ in range(40):
        outcomes |= run_session([chance.randbytes(chance.randrange(40, 160)) for _ in range(30)])
    done = {outcome.partition(":")[0] for outcome in outcomes if outcome.endswith(": done")}
    assert done >= {"HELLO", "SEND", "RECV", "LIST", "CONN_INFO", "FREE", "NAME_ACQUIRE", "MATCH_ADD"}
    refused = {outcome.partition(": ")[2] for outcome in outcomes if outcome.startswith("SEND")}
    assert refused >= {"EBADF", "EMEDIUMTYPE", "EINVAL", "EPERM", "EFAULT"}
