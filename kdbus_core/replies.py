"""Open requests: who owes an answer to whom.

Between a requester and a replier there is at most one `Window`; it holds the
cookies of the requests that were delivered and not yet answered, each with
its deadline (nanoseconds of a monotonic clock, 0 for none).  A reply takes
its cookie out of the window; that is the only thing that lets it through.

Every request has exactly one outcome: a reply, REPLY_DEAD when the replier
goes, REPLY_TIMEOUT when its deadline passes, or nothing any more because the
requester itself went.  Both ends know their windows, so either can go away in
time proportional to its own open requests.

A window is what a sender's fast path keeps at hand: opening and taking a
request are one dictionary operation each.
"""

from __future__ import annotations

from errno import EBADSLT, EMLINK
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from kdbus_core.errors import KdbusError

if TYPE_CHECKING:
    from kdbus_core.connection import Connection

COMPACT_AT = 1024
"""Deadlines from which on those of answered requests are thrown out now and then."""


class Window(dict[int, int]):
    """Open requests from one connection to another: cookie → deadline."""

    __slots__ = ("replier", "requester")

    def __init__(self, requester: Connection, replier: Connection) -> None:
        super().__init__()
        self.requester = requester
        self.replier = replier


class Replies:
    """All windows of a bus, and the deadlines in them."""

    def __init__(self) -> None:
        self._deadlines: list[tuple[int, int, Window, int]] = []
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
        """Remember a delivered request; EMLINK when too many are outstanding."""
        requester = window.requester
        if requester.outstanding >= requester.limits.outstanding_requests:
            raise KdbusError(EMLINK, f"{requester.outstanding} requests are outstanding")
        if cookie not in window:
            requester.outstanding += 1
        window[cookie] = deadline
        if deadline:
            self._counter += 1
            heappush(self._deadlines, (deadline, self._counter, window, cookie))
            if len(self._deadlines) >= self._compact_at:
                self._compact()

    def _compact(self) -> None:
        """Throw out the deadlines of requests that have been answered."""
        heap = [entry for entry in self._deadlines if entry[2].get(entry[3]) == entry[0]]
        heapify(heap)
        self._deadlines = heap
        self._compact_at = max(COMPACT_AT, 2 * len(heap))

    def is_open(self, requester: Connection, replier: Connection, cookie: int) -> bool:
        """Whether `replier` owes `requester` an answer to this request."""
        window = requester.requests.get(replier)
        return window is not None and cookie in window

    def take(self, requester: Connection, replier: Connection, cookie: int) -> None:
        """Close a request because its reply goes through; EBADSLT when there is none."""
        window = requester.requests.get(replier)
        if window is None or window.pop(cookie, None) is None:
            raise KdbusError(EBADSLT, f"no open request {cookie} from {requester.id} to {replier.id}")
        requester.outstanding -= 1

    def next_deadline(self) -> int | None:
        """The earliest moment at which `expire` has something to do."""
        heap = self._deadlines
        while heap and heap[0][2].get(heap[0][3]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def expire(self, now: int) -> list[tuple[Connection, int]]:
        """Close the requests whose deadline has passed; returns (requester, cookie)."""
        expired = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            _, _, window, cookie = heappop(self._deadlines)
            del window[cookie]
            window.requester.outstanding -= 1
            expired.append((window.requester, cookie))
        return expired

    def disconnect(self, connection: Connection) -> list[tuple[Connection, int]]:
        """Close every window of a connection that goes away.

        Returns the requests that nobody will answer any more, as (requester,
        cookie) in the order in which they were opened per requester.
        """
        for replier, window in connection.requests.items():
            del replier.duties[connection]
            window.clear()
        connection.requests.clear()
        connection.outstanding = 0
        dead: list[tuple[Connection, int]] = []
        for requester, window in connection.duties.items():
            del requester.requests[connection]
            requester.outstanding -= len(window)
            dead.extend((requester, cookie) for cookie in window)
            window.clear()
        connection.duties.clear()
        return dead
