"""A connected handle: the identity that owns names, subscribes and is sent to.

A connection belongs to one endpoint of one bus.  It is made by `Bus.hello`
and ended by `Bus.disconnect`; in between it is active.  There are two ways to
be connected:

- a *native* connection has an `inbox`: messages are put into its pool, and
  matches (bloom masks, ids, names) decide which broadcasts it gets;
- a *local* connection is made by a proxy in the same process.  It has no
  pool; what concerns it alone, and what native connections send to it, leaves
  through its `sink`, and subscriptions (exact rules) decide what it gets.

`requests` and `duties` are the two ends of the reply windows (see `replies`):
whom this connection waits for, and who waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kdbus_core import abi
from kdbus_core.abi import HelloFlag
from kdbus_core.quota import Quota, User

if TYPE_CHECKING:
    from kdbus_core.endpoint import Endpoint
    from kdbus_core.inbox import Inbox
    from kdbus_core.matches import Entry as MatchEntry
    from kdbus_core.message import Message
    from kdbus_core.metadata import Credentials, Process, Snapshot
    from kdbus_core.names import Ownership
    from kdbus_core.notifications import ReplyDead, ReplyTimeout
    from kdbus_core.replies import Window
    from kdbus_core.subscriptions import Entry
    from kdbus_core.synchronous import SyncCall

# As numbers: an enumeration's own operators take ten times as long, with every connection.
_ACCEPT_FD = int(HelloFlag.ACCEPT_FD)
_ACTIVATOR = int(HelloFlag.ACTIVATOR)
_MONITOR = int(HelloFlag.MONITOR)
_POLICY_HOLDER = int(HelloFlag.POLICY_HOLDER)


class Sink(Protocol):
    """Where a local connection's own notifications go, and what native connections send to it."""

    def on_reply_lost(self, notification: ReplyDead | ReplyTimeout) -> None:
        """A request of this connection has ended without a reply."""

    def on_message(self, sender: Connection, message: Message) -> None:
        """Take a native connection's message, or refuse it with a KdbusError, which the sender gets.

        Refusals are those of an inbox: ENOBUFS, EMFILE, ECOMM (no descriptors wanted), and EBADMSG for
        what is no D-Bus message.  Whoever needs the message's files for longer holds the message.
        """


class Gateway(Protocol):
    """What shows native connections' messages to those local ones that listen."""

    def on_broadcast(self, sender: Connection, message: Message) -> None:
        """A native connection has sent a signal to everybody."""

    def on_unicast(self, sender: Connection, message: Message, receiver: Connection) -> None:
        """A native connection has sent something to one other, of whichever kind."""

    def on_hand_over(self, name: str, owner: Connection, sequence: int) -> None:
        """A native owner of a name is about to get the message with that number, which has waited for it.

        Whoever keeps something older for the name sends that now.
        """


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
    """One connection; `id` is unique in its domain and never used again.

    `credentials` and `process` are those of whoever opened the handle, frozen
    at that moment; `faked` are those it speaks for.
    """

    __slots__ = (
        "accepts_fds",
        "active",
        "attach_recv",
        "attach_send",
        "calls",
        "credentials",
        "description",
        "duties",
        "endpoint",
        "faked",
        "flags",
        "id",
        "inbox",
        "is_activator",
        "is_monitor",
        "is_ordinary",
        "is_owner",
        "is_policy_holder",
        "limits",
        "mask_bytes",
        "match_count",
        "matches",
        "names",
        "outstanding",
        "process",
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
        process: Process,
        *,
        flags: HelloFlag,
        faked: Credentials | Snapshot | None,
        user: User,
        is_owner: bool,
        sink: Sink | None = None,
        inbox: Inbox | None = None,
        description: str = "",
        attach_send: int = 0,
        attach_recv: int = 0,
        limits: Limits = Limits(),
        quota: Quota,
    ) -> None:
        self.id = id
        self.endpoint = endpoint
        self.process = process
        self.credentials = process.credentials
        self.faked = faked
        self.is_owner = is_owner
        self.sink = sink
        self.inbox = inbox
        self.user = user
        self.description = description
        self.attach_send = attach_send
        self.attach_recv = attach_recv
        self.limits = limits
        self.active = True
        self.names: dict[str, Ownership] = {}
        self.matches: dict[int, list[MatchEntry]] = {}
        self.subscriptions: dict[int, list[Entry]] = {}
        self.match_count = 0  # of both kinds
        self.mask_bytes = 0
        self.requests: dict[Connection, Window] = {}
        self.duties: dict[Connection, Window] = {}
        self.outstanding = 0
        self.calls: dict[SyncCall, None] = {}  # synchronous calls that wait, in order
        self.quota = quota
        self.become(flags)

    def become(self, flags: HelloFlag) -> None:
        """Take these flags; what is asked for with every message is kept ready."""
        self.flags = flags
        bits = int(flags)
        self.accepts_fds = bool(bits & _ACCEPT_FD)
        self.is_activator = bool(bits & _ACTIVATOR)
        self.is_monitor = bool(bits & _MONITOR)
        self.is_policy_holder = bool(bits & _POLICY_HOLDER)
        self.is_ordinary = not (self.is_activator or self.is_monitor or self.is_policy_holder)

    def __repr__(self) -> str:
        return f"Connection({self.id})"
