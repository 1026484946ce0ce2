"""Who sends a message through a handle: asked for while it is being sent, and never later.

Only some messages need to know, so the answer is looked for when it is asked for.  A message may move on
to another receiver long after its sender has changed or gone; what was not found out while it was being
sent cannot be known any more then.  Messages share one `Origin` until somebody asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbus_core.transport.processes import UCRED, make_origin

if TYPE_CHECKING:
    from kdbus_core.metadata import Process


class _Asked:
    """An `Origin` (see `kdbus_core.metadata`) that can be answered only between `Sending.begin` and `end`."""

    __slots__ = ("_sending", "found", "is_answered")

    def __init__(self, sending: Sending) -> None:
        self._sending: Sending | None = sending
        self.found: Process | None = None
        self.is_answered = False

    def __call__(self) -> Process | None:
        if not self.is_answered and self._sending is not None and self._sending.is_under_way:
            self.found = self._sending.find()
            self.is_answered = True
            self._sending = None
        return self.found


class Sending:
    """The messages that are sent through one handle, one after another."""

    __slots__ = ("_opener", "_ucred", "is_under_way", "origin")

    def __init__(self, opener: Process) -> None:
        self._opener = opener
        self._ucred = b""
        self.is_under_way = False
        self.origin = _Asked(self)

    def begin(self, ucred: bytes) -> None:
        """A message is being sent, by the process that the kernel says (a struct ucred, or nothing)."""
        self._ucred = ucred
        self.is_under_way = True

    def end(self) -> None:
        """It has been sent."""
        self.is_under_way = False
        if self.origin.is_answered:
            self.origin = _Asked(self)

    def find(self) -> Process | None:
        """Who sends the message that is under way; None when that cannot be known."""
        ucred = UCRED.unpack(self._ucred) if self._ucred else None
        return make_origin(self._opener, self._opener.credentials.pidfd, ucred)()
