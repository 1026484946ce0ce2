"""Reading what a client can hold up for as long as it likes, without waiting that long.

Some files of /proc are made, while they are read, of what the process decides:
its command line comes out of its own memory, which may be mapped from a file
system that it serves itself, and so may its root directory be.  A client that
does not answer must not hold up the broker.

So these are read by a thread, and only so long is waited for it.  A thread
that is late is left alone with what it waits for, and for a while nothing of
that kind is asked of the user who caused it.  The thread ends when nothing has
been asked for a moment.

Whoever has many uids could be late with each of them.  So with each user who
is late all others are waited for half as long, until that is forgotten:
altogether the broker waits at most twice as long as for one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TypeVar

T = TypeVar("T")

LIMIT_S = 1.0
"""How long is waited for an answer; so much more than it takes that only ill will takes it."""
BARRED_S = 300.0
"""How long nothing is asked of whoever was late."""
MAX_STUCK = 16
"""Threads that may be late at the same time; then nobody is asked."""
_MAX_BARRED = 64
"""Users who are remembered; with so many of them, nobody is waited for anyway."""
IDLE_S = 1.0
"""How long a thread stays that nothing is asked of."""


class OwnThread(threading.Thread):
    """A thread that waits for clients, so that nothing else has to."""


def other_threads() -> int:
    """How many threads of Python this process has, but for those that wait for clients."""
    return sum(not isinstance(thread, OwnThread) for thread in threading.enumerate())


class Lateness:
    """Who was late, and how long is waited for whom, by any thread; `limit_s`, `barred_s` in seconds."""

    def __init__(
        self, limit_s: float = LIMIT_S, barred_s: float = BARRED_S, clock: Callable[[], float] = monotonic
    ) -> None:
        self.limit_s = limit_s
        self.barred_s = barred_s
        self._clock = clock
        self._barred: dict[Hashable, float] = {}
        self._lock = threading.Lock()

    def limit(self, of: Hashable) -> float:
        """Seconds to wait now; 0 for whoever was late, and for everybody when too many were."""
        with self._lock:
            if not self._barred:
                return self.limit_s
            now = self._clock()
            self._barred = {one: until for one, until in self._barred.items() if now < until}
            late = len(self._barred)
            return 0.0 if of in self._barred or late >= _MAX_BARRED else self.limit_s / 2**late

    def note(self, of: Hashable) -> None:
        """`of` was late."""
        with self._lock:
            self._barred[of] = self._clock() + self.barred_s


class _Task:
    __slots__ = ("done", "error", "read", "result")

    def __init__(self, read: Callable[[], object]) -> None:
        self.read = read
        self.result: object = None
        self.error: Exception | None = None
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self.result = self.read()
        except OSError:
            pass  # the same as nothing there
        except Exception as error:
            self.error = error


class _Reader:
    """A thread that reads one thing after another; what its lock guards says whether it goes on."""

    __slots__ = ("_is_abandoned", "_is_over", "_lock", "_on_freed", "_tasks")

    def __init__(self, on_freed: Callable[[], None]) -> None:
        self._tasks: SimpleQueue[_Task] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_over = False
        self._is_abandoned = False
        self._on_freed = on_freed
        OwnThread(target=self._run, name="patience", daemon=True).start()

    def submit(self, task: _Task) -> bool:
        """Have something read; False when the thread has ended."""
        with self._lock:
            if not self._is_over:
                self._tasks.put(task)
            return not self._is_over

    def abandon(self, task: _Task) -> bool:
        """Have no more read and `on_freed` called, unless this has been read after all."""
        with self._lock:
            self._is_abandoned = not task.done.is_set()
            return self._is_abandoned

    def _run(self) -> None:
        while not self._is_over:
            try:
                task = self._tasks.get(timeout=IDLE_S)
            except Empty:
                with self._lock:
                    self._is_over = self._tasks.empty()
                continue
            task.run()
            with self._lock:
                task.done.set()
                self._is_over = self._is_abandoned
        if self._is_abandoned:
            self._on_freed()


class Patience:
    """Reads for whoever asks, from any thread.

    `stuck` counts the threads that are late now, `lateness` says how long is waited.
    """

    def __init__(self, lateness: Lateness | None = None) -> None:
        self.lateness = Lateness() if lateness is None else lateness
        self.stuck = 0
        self._idle: list[_Reader] = []
        self._lock = threading.Lock()

    def ask(self, read: Callable[[], T], of: Hashable) -> T | None:
        """What `read` returns; None when it raises OSError, takes too long, or `of` was late before.

        `read` runs in another thread, maybe for much longer: it must not use what the caller closes.
        """
        limit = self.lateness.limit(of)
        if self.stuck >= MAX_STUCK or not limit:
            return None
        task = _Task(read)
        try:
            reader = self._submit(task)
        except RuntimeError:  # no thread can be started
            return None
        if task.done.wait(limit) or not reader.abandon(task):
            self._idle.append(reader)
            if task.error is not None:
                raise task.error
            return task.result  # type: ignore[return-value]  # it is what `read` returned
        self.lateness.note(of)
        with self._lock:
            self.stuck += 1
        return None

    def _submit(self, task: _Task) -> _Reader:
        while True:
            try:
                reader = self._idle.pop()
            except IndexError:
                reader = _Reader(self._on_freed)
            if reader.submit(task):
                return reader

    def _on_freed(self) -> None:
        with self._lock:
            self.stuck -= 1
