"""The one order in which everybody learns of changes.

What a command causes is reported here and told at its end, one notification
after the other.  What telling one causes waits for its turn behind those that
were reported before, so nobody sees two changes in another order than
anybody else does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbus_core.notifications import Notification


class Order:
    """Notifications that are still to be told, to be handed to `tell` one by one."""

    __slots__ = ("_depth", "_is_telling", "_pending", "_tell")

    def __init__(self, tell: Callable[[Notification], None]) -> None:
        self._tell = tell
        self._pending: deque[Notification] = deque()
        self._depth = 0
        self._is_telling = False

    @property
    def is_idle(self) -> bool:
        """Whether no command is under way and nothing is left to tell."""
        return not self._pending and not self._depth and not self._is_telling

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
        self._pending.append(notification)
        self._flush()

    def forget(self) -> None:
        """Drop what was not told yet: there is nobody left."""
        self._pending.clear()

    def _flush(self) -> None:
        if self._depth or self._is_telling:
            return
        pending = self._pending
        self._is_telling = True
        try:
            while pending:
                self._tell(pending.popleft())
        finally:
            self._is_telling = False
