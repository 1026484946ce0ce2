"""File descriptors that travel with a message.

A descriptor has one owner at any time.  Received descriptors belong to the
peer's stream until the message they came with is complete; then they belong
to an `FdSet`, which everybody who still has to send it holds.  The last
holder to let go closes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that nobody wants; they must not be used afterwards."""
    for fd in fds:
        os.close(fd)


class FdSet:
    """The descriptors of one message, shared by those who will send it."""

    __slots__ = ("_holders", "fds")

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds
        self._holders = 1

    def __len__(self) -> int:
        return len(self.fds)

    def hold(self) -> FdSet:
        """Become one more holder."""
        self._holders += 1
        return self

    def release(self) -> None:
        """Stop being a holder; the last one closes."""
        self._holders -= 1
        if not self._holders:
            close_all(self.fds)
            self.fds = []
