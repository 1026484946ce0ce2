"""A legacy client's life: handshake, Hello, messages, gone.

A peer is one accepted socket.  It authenticates (`wire.sasl`), says Hello and
thereby gets a connection of the broker that carries its own credentials, and
then sends messages until either side closes.  A peer that breaks the protocol
is disconnected with one line in the log that says what was wrong and where;
nobody else notices.

The peer owns its stream, the descriptors that were received but belong to no
complete message yet, and its credentials' pidfd.  Everything is given back in
`close`, which is where every way of going ends.
"""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import replace
from enum import Enum, auto
from typing import TYPE_CHECKING

from busproxy.flows import FlowTable, relay
from busproxy.transport.fds import FdSet, close_all
from busproxy.transport.streams import MAX_FDS, Stream
from busproxy.wire.errors import ProtocolError
from busproxy.wire.header import message_length
from busproxy.wire.sasl import SaslServer
from kdbus_core.metadata import Credentials
from kdbus_core.quota import Quota, User

if TYPE_CHECKING:
    import asyncio

    from busproxy.bridge.surrogates import Surrogates
    from busproxy.router import Router
    from busproxy.wire.match_rules import MatchRule
    from kdbus_core.connection import Connection
    from kdbus_core.message import Message
    from kdbus_core.notifications import ReplyDead, ReplyTimeout

COLLECT_SIZE = 64 * 1024
"""Messages longer than this (bytes) are collected in a buffer of their own when they come in pieces."""


class Phase(Enum):
    """Where a peer stands."""

    HANDSHAKE = auto()
    REGISTERING = auto()  # authenticated, Hello has not been said
    ACTIVE = auto()
    MONITOR = auto()
    CLOSED = auto()


class Subscription:
    """A match rule of a peer; equal rules share one, counted."""

    __slots__ = ("cookie", "count")

    def __init__(self, cookie: int) -> None:
        self.cookie = cookie
        self.count = 1


class Peer:
    """One client."""

    __slots__ = (
        "_deadline",
        "_fds",
        "_fds_deadline",
        "_last_cookie",
        "_partial",
        "_sasl",
        "closed",
        "connection",
        "credentials",
        "driver_serial",
        "flows",
        "max_message_size",
        "messages_received",
        "peak_incoming_bytes",
        "peak_incoming_fds",
        "peak_names",
        "peak_rules",
        "phase",
        "pidfd",
        "quota",
        "router",
        "rules",
        "stream",
        "subscriptions",
        "surrogates",
        "unique_name",
        "unix_fds",
        "user",
    )

    def __init__(
        self,
        sock: socket.socket,
        router: Router,
        credentials: Credentials,
        sasl: SaslServer,
        user: User,
        quota: Quota,
    ) -> None:
        self.router = router
        self.credentials = credentials
        self.user = user
        self.quota = quota
        self.pidfd = FdSet([credentials.pidfd]) if credentials.pidfd is not None else None
        self.phase = Phase.HANDSHAKE
        self.closed = False
        self.connection: Connection | None = None
        self.unique_name = ""
        self.unix_fds = False
        self.driver_serial = 0
        self.messages_received = 0
        self.max_message_size = router.limits.max_message_size
        self.flows = FlowTable()
        self.subscriptions: dict[MatchRule, Subscription] = {}
        self.surrogates: Surrogates | None = None
        self.rules = 0
        self.peak_rules = 0
        self.peak_names = 1
        self.peak_incoming_bytes = 0
        self.peak_incoming_fds = 0
        self._last_cookie = 0
        self._sasl: SaslServer | None = sasl
        self._partial: bytes | bytearray = b""
        self._fds: deque[int] = deque()
        self._deadline: asyncio.TimerHandle | None = None
        self._fds_deadline: asyncio.TimerHandle | None = None
        self.stream = Stream(sock, router.poller, self, quota)
        timeout = router.limits.auth_timeout / 1000
        self._deadline = router.call_later(timeout, self._on_slow_start)

    def __repr__(self) -> str:
        return f"Peer({self.description})"

    @property
    def description(self) -> str:
        """The peer as the log names it."""
        pid, uid = self.credentials.pid, self.credentials.uid
        who = f"pid {'unknown' if pid is None else pid}, uid {uid}"
        return f"{self.unique_name} ({who})" if self.unique_name else f"new client ({who})"

    @property
    def incoming_bytes(self) -> int:
        """Bytes of a message that has not come completely."""
        return len(self._partial) + self.stream.collected

    @property
    def incoming_fds(self) -> int:
        """Descriptors whose message has not come completely."""
        return len(self._fds)

    # What the stream reports

    def on_data(self, data: bytes | bytearray, fds: list[int]) -> None:
        """Deal with bytes of the client; see `streams.Receiver`."""
        if fds:
            self._keep_fds(fds)
            if self.closed:
                return
        if self._partial:
            data = self._partial + data
            self._partial = b""
        if self._sasl is not None:
            data = self._handshake(self._sasl, data)
        try:
            consumed = relay(self, data) if data else 0
            if self.closed:
                return
            rest = len(data) - consumed
            if rest >= 16:
                size = message_length(data, consumed)
                if size <= rest:
                    self.stream.defer()  # a whole message: its turn is in the next round
                elif size > COLLECT_SIZE:
                    self.stream.collect(data[consumed:], size)
                    rest = 0
                    self.peak_incoming_bytes = max(self.peak_incoming_bytes, size)
            if rest:
                self._partial = bytes(data[consumed:])
                self.peak_incoming_bytes = max(self.peak_incoming_bytes, rest)
        except ProtocolError as error:
            self.disconnect(f"invalid message: {error}")
            return
        if self._fds or self._fds_deadline is not None:
            self._watch_fds()

    def on_lost(self, reason: str) -> None:
        """The socket has failed or the client has closed it."""
        if self.phase is Phase.HANDSHAKE and self._sasl is not None and self._sasl.failed:
            reason = self._sasl.failed
        self.router.log.debug("%s: %s", self.description, reason)
        self.close()

    def on_failure(self, error: Exception) -> None:
        """A bug of ours: this client has to go, the bus goes on."""
        self.router.log.error("internal error with %s", self.description, exc_info=error)
        self.close()

    # Handshake

    def _handshake(self, sasl: SaslServer, data: bytes | bytearray) -> bytes:
        if self.stream.blocked:
            self.disconnect("the answers of the handshake are not read")
            return b""
        answer = sasl.feed(bytes(data))
        if not (sasl.begun and sasl.leftover):
            close_all(self._fds)  # descriptors have no meaning before the first message
            self._fds.clear()
        if answer:
            self.stream.push(answer, self.router.bus.kernel_user)
        if sasl.failed is not None:
            self.stream.flush()
            self.disconnect(f"authentication failed: {sasl.failed}")
            return b""
        if not sasl.begun:
            return b""
        if not self.router.admits(self, sasl.uid):
            self.disconnect("the policy does not let this user connect")
            return b""
        if sasl.uid is None:
            # An anonymous client has a process, but is nobody.
            self.credentials = replace(self.credentials, uid=None, gid=None, groups=None)
        self._sasl = None
        self.unix_fds = sasl.unix_fds
        self.phase = Phase.REGISTERING
        return sasl.leftover

    def _on_slow_start(self) -> None:
        self.disconnect(f"no Hello within {self.router.limits.auth_timeout} ms")

    def activate(self, connection: Connection, unique_name: str) -> None:
        """Hello was said: the client is on the bus now."""
        self.connection = connection
        self.user = connection.user
        self.unique_name = unique_name
        self.phase = Phase.ACTIVE
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # Descriptors

    def _keep_fds(self, fds: list[int]) -> None:
        if not self.unix_fds and self._sasl is None:
            close_all(fds)  # as if they had never been sent
            return
        self._fds.extend(fds)
        self.peak_incoming_fds = max(self.peak_incoming_fds, len(self._fds))
        limit = min(self.router.limits.max_message_unix_fds, MAX_FDS)
        if len(self._fds) > limit:
            self.disconnect(f"more than {limit} file descriptors at once")

    def take_fds(self, count: int) -> FdSet | None:
        """The descriptors of the message at hand; the caller is their holder."""
        if not count:
            return None
        if not self.unix_fds:
            raise ProtocolError("file descriptors announced without having negotiated them", 16)
        if count > len(self._fds):
            raise ProtocolError(f"{count} file descriptors announced, {len(self._fds)} came", 16)
        return FdSet([self._fds.popleft() for _ in range(count)])

    def _watch_fds(self) -> None:
        """Descriptors may not lie about without their message for long."""
        if self._fds_deadline is not None and not self._fds:
            self._fds_deadline.cancel()
            self._fds_deadline = None
        elif self._fds_deadline is None and self._fds:
            timeout = self.router.limits.pending_fd_timeout
            reason = f"file descriptors without their message for {timeout} ms"
            self._fds_deadline = self.router.call_later(timeout / 1000, lambda: self.disconnect(reason))

    # Sending

    def next_serial(self) -> int:
        """The serial of the next message that the driver makes for this peer."""
        self.driver_serial = self.driver_serial % 0xFFFFFFFF + 1
        return self.driver_serial

    def next_cookie(self) -> int:
        """A cookie for a subscription, not used before."""
        self._last_cookie += 1
        return self._last_cookie

    def on_reply_lost(self, notification: ReplyDead | ReplyTimeout) -> None:
        """A call of this peer will not be answered; see `kdbus_core.Sink`."""
        self.router.on_reply_lost(self, notification)

    def on_message(self, sender: Connection, message: Message) -> None:
        """A native connection has sent this peer a message; see `kdbus_core.Sink`."""
        self.router.bridge.deliver(self, sender, message)

    # Going

    def disconnect(self, reason: str) -> None:
        """Throw the client out, and say why in the log."""
        if self.closed:
            return
        self.router.log.warning("disconnecting %s: %s", self.description, reason)
        self.close()

    def close(self) -> None:
        """Give everything back and leave the bus."""
        if self.closed:
            return
        self.closed = True
        self.stream.close()
        close_all(self._fds)
        self._fds.clear()
        for timer in (self._deadline, self._fds_deadline):
            if timer is not None:
                timer.cancel()
        self._deadline = self._fds_deadline = None
        self._partial = b""
        self.flows.clear()
        self.router.on_closed(self)
        self.phase = Phase.CLOSED
        if self.pidfd is not None:
            self.pidfd.release()
