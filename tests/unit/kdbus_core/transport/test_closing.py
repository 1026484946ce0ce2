"""Closing what takes as long as its owner likes: nobody waits for it, and its owner pays until it is done."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from support.children import open_fds

from kdbus_core.errors import KdbusError
from kdbus_core.transport import closing as closing_module
from kdbus_core.transport.closing import MAX_LINES, Closer, close_quietly
from kdbus_core.transport.files import FileAccounts, OpenFile
from kdbus_core.transport.patience import Lateness, other_threads

DEADLINE = 30
LINGER_S = 3600


class Lingering:
    """Sockets that linger when they are closed, until `release`."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._readers: list[socket.socket] = []

    def make(self) -> int:
        """The only descriptor of a socket whose data nobody reads."""
        sock = socket.create_connection(self._listener.getsockname())
        self._readers.append(self._listener.accept()[0])
        sock.setblocking(False)  # noqa: FBT003 - not our signature
        with suppress(BlockingIOError):
            while True:
                sock.send(bytes(1 << 16))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, LINGER_S))
        return sock.detach()

    def release(self) -> None:
        """Reset the connections, which ends the lingering."""
        while self._readers:
            reader = self._readers.pop()
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            reader.close()

    def close(self) -> None:
        self.release()
        self._listener.close()


@pytest.fixture
def lingering() -> Iterator[Lingering]:
    before = open_fds()
    lingering = Lingering()
    yield lingering
    lingering.close()
    wait_until(lambda: open_fds() == before)


class Counter:
    """Counts what was closed late."""

    def __init__(self) -> None:
        self._closed = threading.Semaphore(0)

    def add(self) -> None:
        self._closed.release()

    def wait(self) -> None:
        assert self._closed.acquire(timeout=DEADLINE)

    @property
    def is_zero(self) -> bool:
        return not self._closed.acquire(blocking=False)


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(DEADLINE * 100):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to that")


def impatient() -> Closer:
    return Closer(Lateness(limit_s=0.01))


def patient() -> Closer:
    return Closer(Lateness(limit_s=DEADLINE))


def never() -> None:
    raise AssertionError("this was closed in time")


def null() -> int:
    return os.open("/dev/null", os.O_RDWR)


@pytest.mark.parametrize("make", [null, lambda: os.eventfd(0), lambda: socket.socket().detach()])
def test_what_takes_no_time_has_been_closed_when_it_is_said(make: Callable[[], int]) -> None:
    before = open_fds()
    fd = make()
    assert patient().close(fd, "somebody", never)
    assert open_fds() == before


def test_what_lingers_is_not_waited_for(lingering: Lingering) -> None:
    closed = Counter()
    assert not impatient().close(lingering.make(), "slow", closed.add)
    assert closed.is_zero
    lingering.release()
    closed.wait()


def test_whoever_was_late_is_not_waited_for_any_more(lingering: Lingering) -> None:
    lateness, closed = Lateness(limit_s=0.01), Counter()
    closer = Closer(lateness)
    assert not closer.close(lingering.make(), "slow", closed.add)
    lateness.limit_s = DEADLINE
    assert not closer.close(null(), "slow", closed.add)
    lingering.release()
    closed.wait()
    closed.wait()


def test_others_are_not_held_up(lingering: Lingering) -> None:
    lateness, closed = Lateness(limit_s=0.01), Counter()
    closer = Closer(lateness)
    assert not closer.close(lingering.make(), "slow", closed.add)
    lateness.limit_s = DEADLINE
    assert closer.close(null(), "other", never)
    assert closer.close(os.eventfd(0), "slow", never)
    lingering.release()
    closed.wait()


def test_too_many_users_share_a_thread(lingering: Lingering) -> None:
    closer, closed = impatient(), Counter()
    threads = threading.active_count()
    for uid in range(MAX_LINES + 6):
        assert not closer.close(lingering.make(), uid, closed.add)
    assert threading.active_count() <= threads + MAX_LINES + 1
    lingering.release()
    for _ in range(MAX_LINES + 6):
        closed.wait()


def test_a_thread_that_has_nothing_to_close_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing_module, "IDLE_S", 0.001)
    closer = patient()
    names = [thread.name for thread in threading.enumerate()].count("closing")
    assert closer.close(null(), "somebody", never)
    wait_until(lambda: [thread.name for thread in threading.enumerate()].count("closing") <= names)
    assert closer.close(null(), "somebody", never)


def test_its_threads_are_not_counted_among_the_others() -> None:
    before = other_threads()
    assert patient().close(null(), "somebody", never)
    assert other_threads() == before


def test_where_no_thread_can_be_started_it_is_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    before = open_fds()
    assert patient().close(null(), "somebody", never)
    assert open_fds() == before


def test_what_the_file_system_says_at_the_end_is_nobody_s_business(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "it could not be written")

    fd = null()
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail)
        close_quietly(fd)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        close_quietly(fd)


# Who pays


def test_what_is_still_being_closed_is_charged(lingering: Lingering) -> None:
    loop = asyncio.new_event_loop()
    accounts = FileAccounts(loop, 4, impatient())
    OpenFile(lingering.make(), accounts.charge(1000)).close()
    assert accounts.held_by(1000) == 1
    lingering.release()

    async def settle() -> None:
        while accounts.held_by(1000):
            await asyncio.sleep(0)

    loop.run_until_complete(asyncio.wait_for(settle(), DEADLINE))
    loop.close()


def test_who_is_over_the_limit_pays_for_what_is_closed_for_it(lingering: Lingering) -> None:
    loop = asyncio.new_event_loop()
    accounts = FileAccounts(loop, 2, impatient())
    with pytest.raises(KdbusError):
        accounts.receive([lingering.make() for _ in range(3)], 1000)
    assert accounts.held_by(1000) == 3
    assert accounts.is_overdrawn(1000)
    assert not accounts.is_overdrawn(1001)
    lingering.release()

    async def settle() -> None:
        while accounts.is_overdrawn(1000) or len(accounts):
            await asyncio.sleep(0)

    loop.run_until_complete(asyncio.wait_for(settle(), DEADLINE))
    loop.close()


def test_what_is_closed_after_its_loop_is_nobody_s_any_more(lingering: Lingering) -> None:
    loop = asyncio.new_event_loop()
    accounts = FileAccounts(loop, 4, impatient())
    OpenFile(lingering.make(), accounts.charge(1000)).close()
    loop.close()
    lingering.release()
