"""The deadlines of a bus' requests, kept with one timer of the loop.

The timer is set for the earliest deadline.  Most requests are answered long before, and their deadlines
mostly come in the order in which they were made, so the timer is hardly ever set: only when a deadline
comes before the one it waits for, and when it has gone off.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbus_core.bus import Bus

_NEVER = 1 << 127
_MAX_DELAY = 24 * 3600.0
"""Seconds; loops do not wait as long as there are deadlines."""


class Deadlines:
    """The timer of one bus, whose clock is the loop's (CLOCK_MONOTONIC)."""

    __slots__ = ("_bus", "_loop", "_set_for", "_timer")

    def __init__(self, bus: Bus, loop: asyncio.AbstractEventLoop) -> None:
        self._bus = bus
        self._loop = loop
        self._set_for = _NEVER
        self._timer: asyncio.TimerHandle | None = None

    def review(self) -> None:
        """There may be a deadline that is earlier than all others."""
        deadline = self._bus.replies.next_deadline()
        if deadline is not None and deadline < self._set_for:
            self._set(deadline)

    def close(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, deadline: int) -> None:
        self.close()
        self._set_for = deadline
        delay = (deadline - self._bus.domain.monotonic()) / 1e9
        self._timer = self._loop.call_later(min(max(delay, 0.0), _MAX_DELAY), self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._set_for = _NEVER
        try:
            self._bus.expire_replies(self._bus.domain.monotonic())
        finally:
            self.review()
