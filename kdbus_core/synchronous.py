"""A sender that waits for the reply to its message, as SEND with SYNC_REPLY does.

The call is handed to its maker at once and may already be done then.  It ends
exactly once: with the reply (errno 0), or with the errno that the waiting
sender gets.  The reply is put into the caller's pool and handed over there and
then; it is never queued.  Whatever ends the call closes its request, so that a
late reply finds none.

`interrupt` is what a signal does to a system call: the caller comes back with
EINTR while the request stays open, without ever being told of a timeout; the
same SEND, made again, waits on instead of sending once more.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import ECANCELED, EINTR
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbus_core.caller import File
    from kdbus_core.connection import Connection
    from kdbus_core.inbox import Entry
    from kdbus_core.replies import Replies, Tracker

OnDone = Callable[["SyncCall"], None]


class SyncCall:
    """One synchronous call; `errno` is 0 for a reply and valid once `done`."""

    __slots__ = ("_entry", "_replies", "cookie", "done", "errno", "on_done", "sender", "tracker")

    def __init__(self, replies: Replies, sender: Connection, cookie: int, on_done: OnDone | None) -> None:
        self._replies = replies
        self._entry: Entry | None = None
        self.sender = sender
        self.cookie = cookie
        self.on_done = on_done
        self.tracker: Tracker | None = None
        self.done = False
        self.errno = 0

    def wait(self, tracker: Tracker) -> None:
        """The request is on its way."""
        self.tracker = tracker
        self.sender.calls[self] = None

    def withdraw(self) -> None:
        """The request could not be delivered after all."""
        self.tracker = None
        self.sender.calls.pop(self, None)

    def answer(self, entry: Entry) -> None:
        """End with this reply, which lies in the sender's pool."""
        self._entry = entry
        self.finish(0)

    def take(self, install: Callable[[File], int]) -> tuple[int, int, bool]:
        """Hand the reply over: offset and size in the pool, and whether a descriptor could not be installed.

        Once, by `on_done` or right after a call that was done at once.
        """
        entry, self._entry = self._entry, None
        assert entry is not None, "there is no reply to take"
        inbox = self.sender.inbox
        assert inbox is not None
        return inbox.take(entry, install, accept_fds=True)

    def finish(self, errno: int) -> None:
        """End with this errno; the first end counts."""
        if self.done:
            return
        self.done = True
        self.errno = errno
        self.sender.calls.pop(self, None)
        tracker, self.tracker = self.tracker, None
        if tracker is not None:
            self._replies.close(tracker)
        if self.on_done is not None:
            self.on_done(self)

    def cancel(self, errno: int = ECANCELED) -> None:
        """Give up waiting; a reply that is already there wins."""
        self.finish(errno)

    def lose(self, errno: int) -> None:
        """End because the request was closed without a reply."""
        self.tracker = None
        self.finish(errno)

    def interrupt(self) -> None:
        """Give up waiting for now (EINTR); the request stays open."""
        self.lose(EINTR)
