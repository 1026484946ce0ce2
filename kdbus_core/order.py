"""The one order in which everybody learns of changes.

What a command causes is reported here and told at its end.  All of it goes to
those who have a queue before anybody is called who might act on it, so that
what they then do or send comes after it; what telling causes waits behind what
was reported before, so nobody sees two changes in another order than anybody
else does.  Callbacks that end a wait come last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbus_core.notifications import Notification

Tell = Callable[["Notification"], None]


class Order:
    """Notifications that are still to be told: to be queued with `enqueue` first, then told with `tell`."""

    __slots__ = ("_depth", "_enqueue", "_enqueued", "_is_telling", "_later", "_reported", "_tell")

    def __init__(self, enqueue: Tell, tell: Tell) -> None:
        self._enqueue = enqueue
        self._tell = tell
        self._reported: deque[Notification] = deque()
        self._enqueued: deque[Notification] = deque()
        self._later: deque[Callable[[], None]] = deque()
        self._depth = 0
        self._is_telling = False

    @property
    def is_idle(self) -> bool:
        """Whether no command is under way and nothing is left to tell."""
        return not (self._depth or self._is_telling or self._reported or self._enqueued or self._later)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold notifications back until the end: what happens in here is one command."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self._flush()

    def report(self, notification: Notification) -> None:
        """Tell this at the end of the command that is under way, else now."""
        self._reported.append(notification)
        self._flush()

    def call_later(self, callback: Callable[[], None]) -> None:
        """Call this when everything that was reported has been told."""
        self._later.append(callback)
        self._flush()

    def forget(self) -> None:
        """Drop what was not told yet: there is nobody left."""
        self._reported.clear()

    def _flush(self) -> None:
        if self._depth:
            return
        # Also for a command that a callback issues: its news is queued before it returns.
        while self._reported:
            notification = self._reported.popleft()
            self._enqueue(notification)
            self._enqueued.append(notification)
        if self._is_telling:
            return
        self._is_telling = True
        try:
            while True:
                if self._enqueued:
                    self._tell(self._enqueued.popleft())
                elif self._later:
                    self._later.popleft()()
                else:
                    return
        finally:
            self._is_telling = False
            if self._enqueued or self._later:
                self._flush()  # one that fails keeps nothing from the others
