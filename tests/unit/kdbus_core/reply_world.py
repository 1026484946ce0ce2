"""Parties that owe each other answers, without a bus around them.

A `Party` has just what windows are kept on. What tests see of the requests is what anybody could: who
waits for whom, how much of its room a requester has used, and what was lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import cast

from kdbus_core.connection import Connection, Limits
from kdbus_core.replies import Lost, Replies, Tracker, Window
from kdbus_core.synchronous import SyncCall


class Party:
    """What is kept of open requests on a connection."""

    def __init__(self, id: int, limits: Limits) -> None:
        self.id = id
        self.limits = limits
        self.requests: dict[Connection, Window] = {}
        self.duties: dict[Connection, Window] = {}
        self.outstanding = 0

    def __repr__(self) -> str:
        return f"Party({self.id})"


class ReplyWorld:
    """Parties, and the requests between them."""

    def __init__(self) -> None:
        self.replies = Replies()
        self._ids = count(1)

    def party(self, *, limit: int = 128) -> Connection:
        """Somebody with room for so many requests."""
        return cast(Connection, Party(next(self._ids), Limits(outstanding_requests=limit)))

    def parties(self, number: int) -> list[Connection]:
        return [self.party() for _ in range(number)]

    def open(self, requester: Connection, replier: Connection, cookie: int, deadline: int = 0) -> None:
        """A plain request."""
        self.replies.open(self.replies.window(requester, replier), cookie, deadline)

    def track(
        self,
        requester: Connection,
        replier: Connection,
        cookie: int,
        deadline: int = 0,
        *,
        name_id: int = 0,
        waiter: SyncCall | None = None,
    ) -> Tracker:
        """A tracked request whose message has been read already."""
        tracker = self.replies.track(requester, replier, cookie, deadline, name_id=name_id, waiter=waiter)
        tracker.on_dequeued()
        return tracker


def plain(*requests: tuple[Connection, int]) -> list[Lost]:
    """Plain requests as they are reported when they are lost."""
    return [Lost(requester, cookie, None) for requester, cookie in requests]


def tracked(trackers: Iterable[Tracker]) -> list[Lost]:
    """Tracked requests as they are reported when they are lost."""
    return [Lost(tracker.requester, tracker.cookie, tracker) for tracker in trackers]


def assert_owes_nothing(party: Connection) -> None:
    """Nobody waits for it, and it waits for nobody."""
    assert not party.requests
    assert not party.duties
    assert party.outstanding == 0
