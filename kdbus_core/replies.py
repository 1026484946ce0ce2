"""Open requests: who owes an answer to whom.

Between a requester and a replier there is at most one `Window`; it holds the
requests that were delivered and not yet answered.  A reply takes its request
out of the window; that is the only thing that lets it through.

There are two kinds of requests, and they never get in each other's way:

- a *plain* one is a cookie with a deadline (nanoseconds of a monotonic clock,
  0 for none): calls between two proxied peers.  A window is what a sender's
  fast path keeps at hand: opening and taking a plain request are one
  dictionary operation each.
- a *tracked* one is a `Tracker`.  Cookies may be used again while they are
  open, and the newest request is the one that is answered; it can be waited
  for, and it moves with a name to whoever takes the name over.

Every request has exactly one outcome: a reply, the death of the replier, its
deadline, being cancelled, or nothing any more because the requester itself
went.  What ends without a reply is reported as `Lost`, once.  Both ends know
their windows, so either can go away in time proportional to its own open
requests.

A requester has so many requests outstanding and no more.  A plain one counts
while it is open; a tracked one also while its message waits in a queue, so
that nobody fills a queue with requests that have timed out.
"""

from __future__ import annotations

from collections.abc import Iterator
from errno import EBADSLT, EMLINK
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

from kdbus_core.errors import KdbusError

if TYPE_CHECKING:
    from kdbus_core.connection import Connection
    from kdbus_core.synchronous import SyncCall

COMPACT_AT = 1024
"""Deadlines from which on those of ended requests are thrown out now and then."""


class Tracker:
    """One tracked request, made by `Replies.track`.

    `number` is its place in the order in which all requests were opened, and
    `previous` the next older open request with the same two ends and cookie.
    `name_id` is the name the request was sent to, 0 if it was sent to an id.

    `waiter` is the synchronous call that gets the reply, or hears that there is
    none; it may be replaced by another one while the request is open.
    `reserved` belongs to whoever delivers: whether room is kept in the
    requester's pool for the news that the request is lost.
    """

    __slots__ = (
        "cookie",
        "deadline",
        "is_counted",
        "is_kept",
        "is_open",
        "is_queued",
        "name_id",
        "number",
        "previous",
        "replier",
        "requester",
        "reserved",
        "waiter",
    )

    def __init__(
        self,
        requester: Connection,
        replier: Connection,
        cookie: int,
        deadline: int,
        number: int,
        name_id: int,
        waiter: SyncCall | None,
    ) -> None:
        self.requester = requester
        self.replier = replier
        self.cookie = cookie
        self.deadline = deadline
        self.number = number
        self.name_id = name_id
        self.waiter = waiter
        self.previous: Tracker | None = None
        self.reserved = False
        self.is_open = True
        self.is_queued = True  # at once, or it is undone at once
        self.is_counted = True
        self.is_kept = False

    def keep(self) -> None:
        """It has ended, but until its deadline somebody who was interrupted may come for its outcome."""
        self.is_kept = True

    def on_dequeued(self) -> None:
        """The request's message has left its queue, or will never get into one."""
        self.is_queued = False
        self.settle()

    def settle(self) -> None:
        """Count the request no more, unless it is open or its message waits."""
        if self.is_counted and not self.is_open and not self.is_queued:
            self.uncount()

    def uncount(self) -> None:
        """Count the request no more."""
        self.is_counted = False
        self.requester.outstanding -= 1

    def __repr__(self) -> str:
        return f"Tracker({self.requester} → {self.replier}, cookie {self.cookie})"


class Lost(NamedTuple):
    """A request that ended without a reply; a plain one has no tracker."""

    requester: Connection
    cookie: int
    tracker: Tracker | None


class Window(dict[int, int]):
    """Open requests from one connection to another.

    The dictionary itself holds the plain ones, cookie → deadline; `trackers`
    the tracked ones, cookie → the newest of that cookie.
    """

    __slots__ = ("replier", "requester", "trackers")

    def __init__(self, requester: Connection, replier: Connection) -> None:
        super().__init__()
        self.requester = requester
        self.replier = replier
        self.trackers: dict[int, Tracker] = {}

    def tracked(self) -> Iterator[Tracker]:
        """All open tracked requests."""
        for newest in self.trackers.values():
            tracker: Tracker | None = newest
            while tracker is not None:
                yield tracker
                tracker = tracker.previous

    def link(self, tracker: Tracker) -> None:
        """Take in a request, below those of its cookie that are newer."""
        newer: Tracker | None = None
        older = self.trackers.get(tracker.cookie)
        while older is not None and older.number > tracker.number:
            newer, older = older, older.previous
        tracker.previous = older
        if newer is None:
            self.trackers[tracker.cookie] = tracker
        else:
            newer.previous = tracker

    def unlink(self, tracker: Tracker) -> None:
        """Take out a request; those of its cookie that are older remain."""
        newer = self.trackers[tracker.cookie]
        older, tracker.previous = tracker.previous, None
        if newer is not tracker:
            while newer.previous is not tracker:
                assert newer.previous is not None, f"{tracker} is not in this window"
                newer = newer.previous
            newer.previous = older
        elif older is not None:
            self.trackers[tracker.cookie] = older
        else:
            del self.trackers[tracker.cookie]


class Replies:
    """All windows of a bus, and the deadlines in them."""

    def __init__(self) -> None:
        self._deadlines: list[tuple[int, int, Window | Tracker, int]] = []
        self._counter = 0
        self._compact_at = COMPACT_AT

    def window(self, requester: Connection, replier: Connection) -> Window:
        """The window between two connections, made when first asked for."""
        window = requester.requests.get(replier)
        if window is None:
            window = requester.requests[replier] = Window(requester, replier)
            replier.duties[requester] = window
        return window

    def open(self, window: Window, cookie: int, deadline: int = 0) -> None:
        """Remember a delivered plain request; EMLINK when too many are outstanding."""
        requester = window.requester
        self._check_room(requester)
        if cookie not in window:
            requester.outstanding += 1
        window[cookie] = deadline
        if deadline:
            self._counter += 1
            self._remember(deadline, self._counter, window, cookie)

    def track(
        self,
        requester: Connection,
        replier: Connection,
        cookie: int,
        deadline: int,
        *,
        name_id: int = 0,
        waiter: SyncCall | None = None,
    ) -> Tracker:
        """Remember a request before it is delivered; EMLINK when too many are outstanding.

        A deadline of 0 is none.  The request counts until it is closed and its
        message has left the queue (`Tracker.on_dequeued`); when the message
        cannot be put into one, doing both at once undoes this.
        """
        self._check_room(requester)
        self._counter += 1
        tracker = Tracker(requester, replier, cookie, deadline, self._counter, name_id, waiter)
        self.window(requester, replier).link(tracker)
        requester.outstanding += 1
        if deadline:
            self._remember(deadline, tracker.number, tracker, cookie)
        return tracker

    def find(self, requester: Connection, replier: Connection, cookie: int) -> int | Tracker | None:
        """The request that a reply with this cookie answers, the newest if there are several.

        For a plain one its deadline, which may be 0; None if there is none.
        """
        window = requester.requests.get(replier)
        if window is None:
            return None
        tracker = window.trackers.get(cookie)
        return window.get(cookie) if tracker is None else tracker

    def is_open(self, requester: Connection, replier: Connection, cookie: int) -> bool:
        """Whether `replier` owes `requester` an answer to this request."""
        return self.find(requester, replier, cookie) is not None

    def take(self, requester: Connection, replier: Connection, cookie: int) -> None:
        """Close a request because its reply goes through; EBADSLT when there is none."""
        found = self.find(requester, replier, cookie)
        if found is None:
            raise KdbusError(EBADSLT, f"no open request {cookie} from {requester.id} to {replier.id}")
        if isinstance(found, Tracker):
            self.close(found)
        else:
            del requester.requests[replier][cookie]
            requester.outstanding -= 1

    def close(self, tracker: Tracker) -> bool:
        """End a tracked request without a word: answered, cancelled, or never delivered.

        Returns whether it was still open; the first end counts.
        """
        if not tracker.is_open:
            return False
        tracker.requester.requests[tracker.replier].unlink(tracker)
        tracker.is_open = False
        tracker.settle()
        return True

    def fail(self, tracker: Tracker) -> Lost | None:
        """End the one request whose message the replier has thrown away; None when it had ended before."""
        return Lost(tracker.requester, tracker.cookie, tracker) if self.close(tracker) else None

    def repoint(self, old: Connection, new: Connection, name_id: int, *, only_unread: bool = False) -> None:
        """Have `new` owe what `old` owes for requests to a name that goes from one to the other.

        Requests of the two themselves stay where they are, and so do plain ones; with `only_unread` also
        those whose message `old` has taken out of its queue.
        """
        for requester, window in list(old.duties.items()):
            if requester is old or requester is new:
                continue
            for tracker in list(window.tracked()):
                if tracker.name_id != name_id or (only_unread and not tracker.is_queued):
                    continue
                window.unlink(tracker)
                tracker.replier = new
                self.window(requester, new).link(tracker)

    def next_deadline(self) -> int | None:
        """The earliest moment at which `expire` has something to do."""
        heap = self._deadlines
        while heap and not _is_due(heap[0]):
            heappop(heap)
        return heap[0][0] if heap else None

    def expire(self, now: int) -> list[Lost]:
        """Close the requests whose deadline has passed.

        Returns them in the order of their deadlines, equal ones in that of their opening.
        """
        lost = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            _, _, held, cookie = heappop(self._deadlines)
            if isinstance(held, Window):
                del held[cookie]
                held.requester.outstanding -= 1
                lost.append(Lost(held.requester, cookie, None))
            elif held.is_kept:
                assert held.waiter is not None
                held.waiter.forget()
            else:
                self.close(held)
                lost.append(Lost(held.requester, held.cookie, held))
        return lost

    def disconnect(self, connection: Connection) -> list[Lost]:
        """Close every window of a connection that goes away.

        Its own requests end without a word.  Returns those that nobody will
        answer any more: plain ones in the order in which they were opened per
        requester, then tracked ones in the order in which they were opened.
        """
        for replier, window in connection.requests.items():
            del replier.duties[connection]
            connection.outstanding -= len(window)
            window.clear()
            for tracker in _end(window):
                tracker.uncount()
        connection.requests.clear()
        lost: list[Lost] = []
        orphans: list[Tracker] = []
        for requester, window in connection.duties.items():
            del requester.requests[connection]
            requester.outstanding -= len(window)
            lost.extend(Lost(requester, cookie, None) for cookie in window)
            window.clear()
            orphans += _end(window)
        connection.duties.clear()
        orphans.sort(key=lambda tracker: tracker.number)
        for tracker in orphans:
            tracker.settle()
            lost.append(Lost(tracker.requester, tracker.cookie, tracker))
        return lost

    @staticmethod
    def _check_room(requester: Connection) -> None:
        if requester.outstanding >= requester.limits.outstanding_requests:
            raise KdbusError(EMLINK, f"{requester.outstanding} requests are outstanding")

    def _remember(self, deadline: int, number: int, held: Window | Tracker, cookie: int) -> None:
        heappush(self._deadlines, (deadline, number, held, cookie))
        if len(self._deadlines) >= self._compact_at:
            self._compact()

    def _compact(self) -> None:
        """Throw out the deadlines of requests that have ended."""
        heap = [entry for entry in self._deadlines if _is_due(entry)]
        heapify(heap)
        self._deadlines = heap
        self._compact_at = max(COMPACT_AT, 2 * len(heap))


def _is_due(entry: tuple[int, int, Window | Tracker, int]) -> bool:
    """Whether the request of a deadline still waits for it."""
    deadline, _, held, cookie = entry
    if isinstance(held, Tracker):
        return held.is_open or held.is_kept
    return held.get(cookie) == deadline


def _end(window: Window) -> list[Tracker]:
    """Close all tracked requests of a window that goes, as yet counted as before."""
    ended = list(window.tracked())
    window.trackers.clear()
    for tracker in ended:
        tracker.is_open = False
        tracker.previous = None
    return ended
