"""A sender that waits for the reply to its message, as SEND with SYNC_REPLY does.

The call is handed to its maker at once and may already be done then.  It ends
exactly once: with the reply (errno 0), or with the errno that the waiting
sender gets.  The reply is put into the caller's pool and handed over there and
then; it is never queued.  Whatever ends the call closes its request, so that a
late reply finds none.  Its maker hears of the end when the command that caused
it has been told to everybody else.

`interrupt` is what a signal does to a system call: the caller comes back with
EINTR, but the request stays open, and nobody is ever told that it timed out.
The same SEND, made again, waits on instead of sending once more; if the request
has ended in between, it gets what there is to get.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import ECANCELED, EINTR, ESHUTDOWN, ETIMEDOUT
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbus_core.caller import File
    from kdbus_core.connection import Connection
    from kdbus_core.inbox import Entry
    from kdbus_core.message import Message
    from kdbus_core.order import Order
    from kdbus_core.replies import Replies, Tracker

OnDone = Callable[["SyncCall"], None]


class SyncCall:
    """One synchronous call; `errno` is 0 for a reply and valid once `done`.

    While it waits, or is interrupted, it is one of its sender's `calls`.
    `outcome` is how the request of an interrupted call has ended, None while
    it has not; that is kept until the deadline of its message.
    """

    __slots__ = (
        "_entry",
        "_kept",
        "_order",
        "_replies",
        "cookie",
        "deadline",
        "destination",
        "done",
        "errno",
        "is_interrupted",
        "on_done",
        "outcome",
        "sender",
        "tracker",
    )

    def __init__(
        self, replies: Replies, order: Order, sender: Connection, message: Message, on_done: OnDone | None
    ) -> None:
        self._replies = replies
        self._order = order
        self._entry: Entry | None = None
        self._kept: Tracker | None = None
        self.sender = sender
        self.cookie = message.cookie
        self.destination = message.dst_id, message.dst_name
        self.deadline = message.timeout_ns
        self.on_done = on_done
        self.tracker: Tracker | None = None
        self.done = False
        self.errno = 0
        self.is_interrupted = False
        self.outcome: int | None = None

    def wait(self, tracker: Tracker) -> None:
        """The request is on its way."""
        self.tracker = tracker
        self.sender.calls[self] = None

    def withdraw(self) -> None:
        """The request could not be delivered after all."""
        self.tracker = None
        self.sender.calls.pop(self, None)

    # How it ends

    def answer(self, entry: Entry) -> None:
        """End with this reply, which lies in the sender's pool."""
        self._entry = entry
        self._settle(0)

    def fail(self, errno: int) -> None:
        """End because the reply could not be delivered."""
        self._settle(errno)

    def lose(self, errno: int) -> None:
        """End because the request was closed without a reply."""
        self._settle(errno)

    def cancel(self, errno: int = ECANCELED) -> None:
        """Give up waiting; a reply that is already there wins."""
        if self.is_interrupted:
            self.forget()
        else:
            self._settle(errno)

    def interrupt(self) -> None:
        """Give up waiting for now (EINTR); the request stays open."""
        if not self.done:
            self.is_interrupted = True
            self._finish(EINTR)

    def is_repeated_by(self, call: SyncCall) -> bool:
        """Whether that one is the same SEND as this one, which was interrupted."""
        return self.is_interrupted and (self.cookie, self.destination) == (call.cookie, call.destination)

    def resume(self, call: SyncCall) -> None:
        """Let the same SEND, made again, go on where this one was interrupted."""
        del self.sender.calls[self]
        tracker, self.tracker = self.tracker, None
        if tracker is not None:
            tracker.waiter = call
            call.deadline = self.deadline
            call.wait(tracker)
            return
        assert self.outcome is not None
        self._let_go()
        call._entry, self._entry = self._entry, None
        call._finish(self.outcome)

    def _settle(self, errno: int) -> None:
        """The request has ended; the first end counts."""
        tracker, self.tracker = self.tracker, None
        if tracker is not None:
            self._replies.close(tracker)
        if not self.is_interrupted:
            self.sender.calls.pop(self, None)
            self._finish(errno)
        elif errno == ETIMEDOUT:
            self.forget()  # the same SEND would be too late as well
        elif self.outcome is None:
            assert tracker is not None
            kept = [call for call in self.sender.calls if call.outcome is not None]
            if len(kept) >= self.sender.limits.outstanding_requests:
                kept[0].forget()
            self.outcome = errno
            self._kept = tracker
            tracker.keep()

    def _let_go(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.is_kept = False

    def _finish(self, errno: int) -> None:
        if not self.done:
            self.done = True
            self.errno = errno
            if self.on_done is not None:
                self._order.call_later(self._tell)

    def _tell(self) -> None:
        on_done, self.on_done = self.on_done, None
        if not self.errno and not self.sender.active:
            self.errno = ESHUTDOWN  # its pool has gone, and the reply with it
        if on_done is not None:
            on_done(self)

    def forget(self) -> None:
        """Nobody will come back to an interrupted call."""
        self.sender.calls.pop(self, None)
        tracker, self.tracker = self.tracker, None
        if tracker is not None:
            self._replies.close(tracker)
        self._let_go()
        entry, self._entry = self._entry, None
        if entry is not None:
            assert self.sender.inbox is not None
            self.sender.inbox.discard(entry)

    # The reply

    def take(self, install: Callable[[File], int]) -> tuple[int, int, bool]:
        """Hand the reply over: offset and size in the pool, and whether a descriptor could not be installed.

        Once, by `on_done` or right after a call that was done at once.
        """
        entry, self._entry = self._entry, None
        assert entry is not None, "there is no reply to take"
        inbox = self.sender.inbox
        assert inbox is not None
        return inbox.take(entry, install, accept_fds=True)
