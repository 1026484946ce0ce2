"""Reading what may never come: nobody waits long, and whoever caused it is not asked again for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from kdbus_core.transport import patience as patience_module
from kdbus_core.transport.patience import MAX_STUCK, Lateness, Patience, other_threads

DEADLINE = 30


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """Something that can be read only when it is opened; `close` waits for those who are in it."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._left = threading.Semaphore(0)
        self._count = 0

    def read(self) -> str:
        self._count += 1
        assert self._opened.wait(DEADLINE)
        self._left.release()
        return "late"

    def open(self) -> None:
        self._opened.set()
        for _ in range(self._count):
            assert self._left.acquire(timeout=DEADLINE)
        self._count = 0


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def patience(clock: Clock) -> Patience:
    return Patience(Lateness(limit_s=0.01, barred_s=60, clock=clock))


def generous() -> Patience:
    return Patience(Lateness(limit_s=DEADLINE))


def wait_until_unstuck(patience: Patience) -> None:
    freed = threading.Event()
    for _ in range(DEADLINE * 100):
        if not patience.stuck:
            return
        freed.wait(0.01)
    raise AssertionError("a thread is still late")


def test_what_is_read_in_time_is_told() -> None:
    assert generous().ask(lambda: 42, "somebody") == 42


def test_one_thread_after_another_reads_with_the_same_one() -> None:
    patience = generous()
    names = {patience.ask(threading.get_ident, "somebody") for _ in range(20)}
    assert len(names) == 1
    assert names != {threading.get_ident()}


def test_what_cannot_be_read_is_nothing() -> None:
    def read() -> int:
        raise ProcessLookupError

    patience = generous()
    assert patience.ask(read, "somebody") is None
    assert patience.ask(lambda: 1, "somebody") == 1


def test_a_bug_is_told_to_whoever_asks() -> None:
    def read() -> int:
        raise ValueError("a bug")

    patience = generous()
    with pytest.raises(ValueError, match="a bug"):
        patience.ask(read, "somebody")
    assert patience.ask(lambda: 1, "somebody") == 1


def test_nobody_waits_for_what_does_not_come(patience: Patience, gate: Gate) -> None:
    assert patience.ask(gate.read, "slow") is None
    assert patience.stuck == 1
    gate.open()
    wait_until_unstuck(patience)


def test_whoever_was_late_is_not_asked_for_a_while(patience: Patience, gate: Gate, clock: Clock) -> None:
    assert patience.ask(gate.read, "slow") is None
    patience.lateness.limit_s = DEADLINE
    assert patience.ask(lambda: 1, "slow") is None
    assert patience.ask(lambda: 1, "other") == 1
    clock.now += 60
    assert patience.ask(lambda: 1, "slow") == 1


def test_an_answer_that_comes_late_does_not_end_the_while(patience: Patience, gate: Gate) -> None:
    assert patience.ask(gate.read, "slow") is None
    gate.open()
    wait_until_unstuck(patience)
    patience.lateness.limit_s = DEADLINE
    assert patience.ask(lambda: 1, "slow") is None


def test_there_is_an_end_to_how_many_are_waited_for(patience: Patience, gate: Gate, clock: Clock) -> None:
    for number in range(MAX_STUCK):
        assert patience.ask(gate.read, number) is None
    clock.now += 60
    patience.lateness.limit_s = DEADLINE
    assert patience.stuck == MAX_STUCK
    assert patience.ask(lambda: 1, "other") is None
    gate.open()
    wait_until_unstuck(patience)
    assert patience.ask(lambda: 1, "other") == 1


def test_a_thread_that_nothing_is_asked_of_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module, "IDLE_S", 0.001)
    patience = generous()
    thread = patience.ask(threading.current_thread, "somebody")
    assert thread is not None
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert patience.ask(lambda: 2, "somebody") == 2


def test_its_threads_are_not_counted_among_the_others() -> None:
    before = other_threads()
    assert generous().ask(other_threads, "somebody") == before


# Who was late


def test_with_each_user_who_was_late_all_others_are_waited_for_half_as_long(clock: Clock) -> None:
    lateness = Lateness(limit_s=8.0, barred_s=60, clock=clock)
    limits = []
    for uid in range(5):
        limits.append(lateness.limit(uid))
        lateness.note(uid)
    assert limits == [8.0, 4.0, 2.0, 1.0, 0.5]
    assert [lateness.limit(uid) for uid in range(5)] == [0.0] * 5


def test_who_was_late_is_forgotten_after_a_while(clock: Clock) -> None:
    lateness = Lateness(limit_s=8.0, barred_s=60, clock=clock)
    lateness.note("first")
    clock.now += 59
    lateness.note("second")
    assert lateness.limit("other") == 2.0
    clock.now += 1
    assert lateness.limit("first") == lateness.limit("other") == 4.0
    clock.now += 59
    assert lateness.limit("second") == 8.0


def test_when_too_many_were_late_nobody_is_waited_for(clock: Clock) -> None:
    lateness = Lateness(limit_s=8.0, barred_s=60, clock=clock)
    for uid in range(100):
        lateness.note(uid)
    assert lateness.limit("other") == 0.0
