"""Closing what clients have passed without waiting for it.

close(2) can take as long as somebody else likes: a socket lingers until its
data are sent, a file is flushed by whoever serves its file system.  A client
can pass such a file and let the broker be the last to close it.

So what may take long is closed by a thread, one after another for each user,
and only so long is waited for it as it takes where nobody means ill.  What is
late is left to the thread; whoever caused it is then waited for no more for a
while.  Nothing is ever given up: until it is closed, the user is charged for
it, and so keeps nobody but itself from passing on more.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from errno import EBADF
from queue import Empty, SimpleQueue

from kdbus_core.transport.file_kinds import closes_at_once
from kdbus_core.transport.patience import IDLE_S, Lateness, OwnThread

MAX_LINES = 64
"""Users who have a thread of their own; the others share one."""
_EVERYBODY_ELSE = object()


def close_quietly(fd: int) -> None:
    """Close a descriptor, whatever the file system says of what it had still to write."""
    try:
        os.close(fd)
    except OSError as error:
        if error.errno == EBADF:  # somebody else has closed what was ours
            raise


class _Closing:
    """One descriptor on its way; its lock decides who has to be told."""

    __slots__ = ("_fd", "_is_closed", "_lock", "_on_closed", "done")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._is_closed = False
        self._on_closed: Callable[[], None] | None = None
        self.done = threading.Event()

    def run(self) -> None:
        close_quietly(self._fd)
        with self._lock:
            self._is_closed = True
        self.done.set()
        if self._on_closed is not None:
            self._on_closed()

    def leave(self, on_closed: Callable[[], None]) -> bool:
        """Have `on_closed` called when it is closed; False when it has been closed already."""
        with self._lock:
            if not self._is_closed:
                self._on_closed = on_closed
            return not self._is_closed


class _Line:
    """A thread that closes one thing after another, until there has been nothing for a moment."""

    __slots__ = ("_is_over", "_lock", "_queue")

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Closing] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_over = False
        OwnThread(target=self._run, name="closing", daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Whether the thread has ended."""
        return self._is_over

    def submit(self, closing: _Closing) -> bool:
        """Have something closed; False when the thread has ended."""
        with self._lock:
            if not self._is_over:
                self._queue.put(closing)
            return not self._is_over

    def _run(self) -> None:
        while not self._is_over:
            try:
                closing = self._queue.get(timeout=IDLE_S)
            except Empty:
                with self._lock:
                    self._is_over = self._queue.empty()
                continue
            # What is told when it is closed may find that nobody listens any more.
            with suppress(RuntimeError):
                closing.run()


class Closer:
    """Closes descriptors for one thread; `lateness` says how long it waits."""

    def __init__(self, lateness: Lateness | None = None) -> None:
        self._lateness = Lateness() if lateness is None else lateness
        self._lines: dict[Hashable, _Line] = {}

    def close(self, fd: int, of: Hashable, on_closed: Callable[[], None]) -> bool:
        """Close what came from `of`, and whether that is done.

        If not, `on_closed` is called from another thread when it is.
        """
        if closes_at_once(fd):
            close_quietly(fd)
            return True
        closing = _Closing(fd)
        try:
            self._submit(closing, of)
        except RuntimeError:  # no thread can be started
            close_quietly(fd)
            return True
        limit = self._lateness.limit(of)
        if limit and closing.done.wait(limit):
            return True
        if not closing.leave(on_closed):
            return True
        if limit:
            self._lateness.note(of)
        return False

    def _submit(self, closing: _Closing, of: Hashable) -> None:
        if of not in self._lines and len(self._lines) >= MAX_LINES:
            self._lines = {one: line for one, line in self._lines.items() if not line.is_over}
            if len(self._lines) >= MAX_LINES:
                of = _EVERYBODY_ELSE
        line = self._lines.get(of)
        while line is None or not line.submit(closing):
            line = self._lines[of] = _Line()
