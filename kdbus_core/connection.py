"""A connected handle: the identity that owns names, subscribes and is sent to.

A connection belongs to one endpoint of one bus.  It is made by `Bus.hello`
and ended by `Bus.disconnect`; in between it is active.  What is delivered to
it leaves through its `Sink`, which whoever made the connection provides.

`requests` and `duties` are the two ends of the reply windows (see `replies`):
whom this connection waits for, and who waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kdbus_core import abi
from kdbus_core.abi import HelloFlag
from kdbus_core.metadata import Credentials
from kdbus_core.quota import Quota, User

if TYPE_CHECKING:
    from kdbus_core.endpoint import Endpoint
    from kdbus_core.names import Ownership
    from kdbus_core.notifications import ReplyDead, ReplyTimeout
    from kdbus_core.replies import Window
    from kdbus_core.subscriptions import Entry


class Sink(Protocol):
    """Where a connection's own notifications go."""

    def on_reply_lost(self, notification: ReplyDead | ReplyTimeout) -> None:
        """A request of this connection has ended without a reply."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one connection: counts, except `pool_size` (bytes)."""

    names: int = abi.MAX_NAMES
    matches: int = abi.MAX_MATCHES
    outstanding_requests: int = abi.MAX_OUTSTANDING_REQUESTS
    queued_messages: int = abi.MAX_QUEUED_MESSAGES
    in_flight_fds: int = abi.MAX_IN_FLIGHT_FDS
    pool_size: int = abi.DEFAULT_POOL_SIZE


class Connection:
    """One connection; `id` is unique in its domain and never used again."""

    __slots__ = (
        "active",
        "credentials",
        "description",
        "duties",
        "endpoint",
        "faked",
        "flags",
        "id",
        "is_activator",
        "is_monitor",
        "limits",
        "match_count",
        "matches",
        "names",
        "outstanding",
        "quota",
        "requests",
        "sink",
        "subscriptions",
        "user",
    )

    def __init__(
        self,
        id: int,
        endpoint: Endpoint,
        sink: Sink,
        *,
        flags: HelloFlag,
        credentials: Credentials,
        faked: Credentials | None,
        user: User,
        description: str,
        limits: Limits,
        quota: Quota | None,
    ) -> None:
        self.id = id
        self.endpoint = endpoint
        self.sink = sink
        self.flags = flags
        # Asked for with every message, so kept ready.
        self.is_activator = bool(flags & HelloFlag.ACTIVATOR)
        self.is_monitor = bool(flags & HelloFlag.MONITOR)
        self.credentials = credentials
        self.faked = faked
        self.user = user
        self.description = description
        self.limits = limits
        self.active = True
        self.names: dict[str, Ownership] = {}
        self.subscriptions: dict[int, list[Entry]] = {}
        self.match_count = 0
        self.requests: dict[Connection, Window] = {}
        self.duties: dict[Connection, Window] = {}
        self.outstanding = 0
        self.quota = quota or Quota(limits.pool_size // 2, limits.queued_messages, limits.in_flight_fds)

    def __repr__(self) -> str:
        return f"Connection({self.id})"
