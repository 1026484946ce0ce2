"""Where a message goes that no flow knows yet.

The router parses and checks a message in full, asks the broker for its
destination or its audience, opens or takes the reply window, and keeps what
it found out as a flow.  Then the flow itself delivers, so that the first
message of a kind and the thousandth take the same way.  What a flow cannot do
(descriptors, a receiver that is behind, a reply that nobody asked for) is
done here, message by message.  To and from native connections messages go by
way of the bridge, which is there once it is needed.

Refusals are answered with dbus-daemon's error names and texts.  Monitors see
a message before anything is decided about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from errno import EADDRNOTAVAIL, EMLINK
from functools import cached_property
from typing import TYPE_CHECKING, cast

from busproxy.flows import BroadcastFlow, Flow, UnicastFlow, audience_of
from busproxy.incoming import Incoming
from busproxy.peer import Peer, Phase
from busproxy.transport.fds import FdSet
from busproxy.transport.streams import Stream
from busproxy.wire.body import body_checker, trivial_body_length
from busproxy.wire.errors import ProtocolError
from busproxy.wire.header import (
    NO_AUTO_START,
    NO_REPLY_EXPECTED,
    MessageType,
    parse_header,
)
from kdbus_core.connection import Limits as ConnectionLimits
from kdbus_core.errors import KdbusError
from kdbus_core.notifications import ReplyDead, ReplyTimeout
from kdbus_core.quota import User
from kdbus_core.subscriptions import Audience, Envelope

if TYPE_CHECKING:
    import asyncio
    import logging

    from busproxy.activation.activator import Activation
    from busproxy.bridge import Bridge
    from busproxy.driver import Driver
    from busproxy.policy.config import ConnectPolicy, Limits
    from busproxy.transport.poller import Poller
    from kdbus_core.bus import Bus
    from kdbus_core.connection import Connection
    from kdbus_core.message import Message

DRIVER_NAME = "org.freedesktop.DBus"
UNIQUE_PREFIX = ":1."
UNLIMITED = 1 << 30  # messages: bytes and descriptors are what is limited

ACCESS_DENIED = "org.freedesktop.DBus.Error.AccessDenied"
LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"
NAME_HAS_NO_OWNER = "org.freedesktop.DBus.Error.NameHasNoOwner"
NO_REPLY = "org.freedesktop.DBus.Error.NoReply"
NOT_SUPPORTED = "org.freedesktop.DBus.Error.NotSupported"

_REPLIES = (MessageType.METHOD_RETURN, MessageType.ERROR)

UNKNOWN_TYPE_ERROR = ACCESS_DENIED
UNKNOWN_TYPE_TEXT = "Message bus will not accept messages of unknown type\n"

_TYPE_NAMES = {1: "method_call", 2: "method_return", 3: "error", 4: "signal"}


def connection_id(unique_name: str) -> int | None:
    """The connection that a unique name of ours means; None for any other name."""
    digits = unique_name.removeprefix(UNIQUE_PREFIX)
    if digits == unique_name or not digits.isdecimal() or not digits.isascii() or len(digits) > 20:
        return None
    return int(digits) if digits == "0" or digits[0] != "0" else None


def is_client(connection: Connection) -> bool:
    """Whether a connection is that of a client of this proxy, and no native one."""
    return connection.sink is not None


def peer_of(connection: Connection) -> Peer:
    """The client behind a proxied connection."""
    return cast(Peer, connection.sink)


class Router:
    """Routing for all peers of one bus, and its gateway (see `kdbus_core.Gateway`).

    `driver` and `activation` are set by whoever puts the daemon together; they
    need the router themselves.
    """

    driver: Driver
    activation: Activation

    def __init__(
        self,
        bus: Bus,
        poller: Poller,
        loop: asyncio.AbstractEventLoop,
        log: logging.Logger,
        limits: Limits,
        connect_policy: ConnectPolicy,
        owner_uid: int,
    ) -> None:
        self.bus = bus
        self.poller = poller
        self.loop = loop
        self.log = log
        self.limits = limits
        self.connect_policy = connect_policy
        self.owner_uid = owner_uid
        self.peers: set[Peer] = set()
        self.incomplete = 0
        self.lost_broadcasts = 0
        self.on_incomplete_change: Callable[[], None] = lambda: None
        self._reply_timer: asyncio.TimerHandle | None = None
        bus.gateway = self

    # Native connections

    @cached_property
    def bridge(self) -> Bridge:
        """The way to and from native connections; not there on a bus without any, which starts quicker."""
        from busproxy.bridge import Bridge

        return Bridge(self)

    def on_broadcast(self, sender: Connection, message: Message) -> None:
        """A native connection has sent a signal to everybody."""
        self.bridge.on_broadcast(sender, message)

    def on_unicast(self, sender: Connection, message: Message, receiver: Connection) -> None:
        """A native connection has sent something to somebody, and there are clients who listen in."""
        self.bridge.on_unicast(sender, message, receiver)

    def on_hand_over(self, name: str, owner: Connection, sequence: int) -> None:
        """A native owner gets what natives had sent to its name: in between comes what clients had sent."""
        self.activation.on_hand_over(name, owner, sequence)

    # What peers need

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Have something done in `delay` seconds."""
        self.poller.hurry()
        return self.loop.call_later(delay, callback)

    def admits(self, peer: Peer, uid: int | None) -> bool:
        """Whether an authenticated client may use this bus at all."""
        if uid is None:
            return True  # anonymous, which the configuration has to allow first
        groups: Sequence[int] = peer.credentials.groups or ()
        if peer.credentials.gid is not None:
            groups = (peer.credentials.gid, *groups)
        return self.connect_policy.may_connect(uid, groups, self.owner_uid)

    def on_accepted(self, peer: Peer) -> None:
        """A client has connected."""
        self.peers.add(peer)
        self.incomplete += 1
        self.on_incomplete_change()

    def on_activated(self) -> None:
        """A client has said Hello."""
        self.incomplete -= 1
        self.on_incomplete_change()

    def on_closed(self, peer: Peer) -> None:
        """A client has gone: its connection ends, whoever cares is told."""
        self.peers.discard(peer)
        if peer.connection is None:
            peer.user.settle()
            self.incomplete -= 1
            self.on_incomplete_change()
            return
        self.activation.on_disconnected(peer)
        # As dbus-daemon does it: the name acquired last goes first.
        for name in reversed(list(peer.connection.names)):
            self.bus.name_release(peer.connection, name)
        self.bus.disconnect(peer.connection)

    def on_reply_lost(self, peer: Peer, lost: ReplyDead | ReplyTimeout) -> None:
        """Tell a caller that there will be no reply."""
        text = (
            "Message recipient disconnected from message bus without replying"
            if isinstance(lost, ReplyDead)
            else "Message did not receive a reply (timeout by message bus)"
        )
        self.driver.send_no_reply(peer, lost.cookie, NO_REPLY, text)

    @property
    def active(self) -> int:
        """How many clients have said Hello."""
        return len(self.peers) - self.incomplete

    def apply(self, limits: Limits, connect_policy: ConnectPolicy) -> None:
        """Go on with another configuration, for those who are connected too."""
        self.limits = limits
        self.connect_policy = connect_policy
        connection_limits = self.connection_limits()
        for peer in self.peers:
            peer.max_message_size = limits.max_message_size
            peer.quota.capacity = limits.max_outgoing_bytes
            peer.quota.max_fds = limits.max_outgoing_unix_fds
            if peer.connection is not None:
                peer.connection.limits = connection_limits
        self.bus.invalidate()

    def connection_limits(self) -> ConnectionLimits:
        """A client's limits in the broker's terms."""
        limits = self.limits
        return ConnectionLimits(
            # The unique name counts for dbus-daemon, not for the broker.
            names=limits.max_names_per_connection - 1,
            matches=limits.max_match_rules_per_connection,
            outstanding_requests=limits.max_replies_per_connection,
            queued_messages=UNLIMITED,
            in_flight_fds=limits.max_outgoing_unix_fds,
            pool_size=2 * limits.max_outgoing_bytes,
        )

    # Routing

    def route(self, peer: Peer, data: bytes | bytearray, start: int, end: int) -> None:
        """Deal with the message at data[start:end]; raises ProtocolError."""
        header = parse_header(data, start)
        if header.length + header.body_length != end - start:
            raise ProtocolError("lengths do not add up", 4)
        try:
            body_checker(header.signature, header.little_endian)(data, start + header.length, end)
        except ProtocolError as error:
            error.offset += header.length
            raise
        fds = peer.take_fds(header.unix_fds)
        try:
            self._dispatch(Incoming(peer, header, data, start, end, fds, header.serial))
        finally:
            if fds is not None:
                fds.release()

    def _dispatch(self, message: Incoming) -> None:
        peer, header = message.peer, message.header
        if peer.phase is Phase.MONITOR:
            peer.disconnect("a monitor must not send messages")
            return
        if header.destination is None and header.type != MessageType.SIGNAL:
            # dbus-daemon's library takes these for itself, even before Hello.
            self.driver.answer_for_itself(message)
            return
        if header.destination == DRIVER_NAME:
            self._to_driver(message)
            return
        if peer.connection is None:
            peer.disconnect("a message before Hello")
            return
        if header.destination is None:
            self._broadcast(message, peer.connection)
        else:
            self._unicast(message, peer.connection, header.destination)

    def _envelope(self, message: Incoming, destination: Connection | None, *, to_driver: bool) -> Envelope:
        header = message.header
        return Envelope(
            header.type,
            sender=message.peer.connection,
            destination=destination,
            to_driver=to_driver,
            path=header.path,
            interface=header.interface,
            member=header.member,
        )

    def _to_driver(self, message: Incoming) -> None:
        """Monitors see a call first, eavesdroppers when it has been carried out, as with dbus-daemon."""
        peer, subscriptions = message.peer, self.bus.subscriptions
        if peer.connection is not None:
            self.show_to_monitors(message, to_driver=True)
        if self.driver.on_message(message) and peer.connection is not None and not peer.closed:
            envelope = self._envelope(message, None, to_driver=True)
            self._copy(message, subscriptions.eavesdropper_audience(envelope), peer.user)

    def show_to_monitors(self, message: Incoming, *, to_driver: bool) -> None:
        """Show monitors a message to the driver, or one that does not reach anybody, or not yet.

        Its sender has a name by now.
        """
        sender = message.peer.connection
        if self.bus.has_native_monitors and sender is not None:
            self.bridge.show(message, sender, None)
        if self.bus.subscriptions.has_monitors:
            envelope = self._envelope(message, None, to_driver=to_driver)
            self._copy(message, self.bus.subscriptions.monitor_audience(envelope), message.peer.user)

    def _copy(self, message: Incoming, audience: Audience, user: User, but: Connection | None = None) -> None:
        header = message.header
        receivers = audience_of(
            audience, header.signature, header.little_endian, message.data, message.body, message.end
        )
        receivers = [receiver for receiver in receivers if receiver is not but]
        if receivers:
            self.copy_to(receivers, message.with_sender(message.peer.unique_name), user, message.fds)

    # Broadcasts

    def _broadcast(self, message: Incoming, sender: Connection) -> None:
        header = message.header
        audience = self.bus.subscriptions.broadcast_audience(self._envelope(message, None, to_driver=False))
        if message.fds is not None:
            self._copy(message, audience, sender.user)
            if self.bus.has_native_monitors:
                self.bridge.show(message, sender, None)  # for others kdbus has no such broadcasts
            return
        local = BroadcastFlow(
            self.bus,
            audience,
            tuple(peer_of(receiver).stream for receiver in audience.always),
            sender.user,
            message.tail(message.peer.unique_name),
            signature=header.signature,
            little_endian=header.little_endian,
            checker=body_checker(header.signature, header.little_endian),
            body_length=trivial_body_length(header.signature),
        )
        flow: Flow = local
        if self.bus.has_native_listeners:
            from busproxy.bridge.flows import SharedBroadcastFlow

            flow = SharedBroadcastFlow(self.bridge, header, sender, local)
        if header.sender_span is None:
            message.peer.flows.add(flow, message.data, message.start, message.body, 0)
        flow.forward(
            message.peer,
            message.data,
            message.start,
            message.body,
            message.end,
            message.serial,
            is_checked=True,
        )

    def copy_to(
        self, receivers: Iterable[Connection], message: bytes, user: User, fds: FdSet | None = None
    ) -> None:
        """Give a finished message to each receiver that can take it."""
        for receiver in receivers:
            peer = peer_of(receiver)
            if fds is None or peer.unix_fds:
                self.push_or_lose(peer.stream, message, user, fds)

    def push_or_lose(self, stream: Stream, message: bytes, user: User, fds: FdSet | None = None) -> None:
        """Queue a copy; one that finds no room is lost and counted."""
        try:
            stream.push(message, user, fds)
        except KdbusError:
            self.lost_broadcasts += 1

    # Unicasts

    def _unicast(self, message: Incoming, sender: Connection, destination: str) -> None:
        header = message.header
        auto_start = not header.flags & NO_AUTO_START
        try:
            if destination[0] == ":":
                id = connection_id(destination)
                receiver = self.bus.resolve(id=id if id is not None else -1)
            else:
                receiver = self.bus.resolve(name=destination, auto_start=auto_start)
        except KdbusError as error:
            self.show_to_monitors(message, to_driver=False)
            if auto_start and error.errno != EADDRNOTAVAIL:
                self.activation.start_or_refuse(message, destination)
            else:
                self.driver.refuse(message, NAME_HAS_NO_OWNER, f'Name "{destination}" does not exist')
            return
        if receiver.is_activator and self.activation.has(receiver):
            self.activation.start_for(message, destination)
            self.show_to_monitors(message, to_driver=False)
            return
        self.deliver(message, sender, receiver)

    def deliver(
        self, message: Incoming, sender: Connection, receiver: Connection, *, was_held: bool = False
    ) -> None:
        """Bring a message to its receiver, and make a flow of it where it can be one.

        Monitors have seen one that `was_held` when it came.
        """
        peer, header = message.peer, message.header
        if header.type > MessageType.SIGNAL:
            self.show_to_monitors(message, to_driver=False)
            self.driver.refuse(message, UNKNOWN_TYPE_ERROR, UNKNOWN_TYPE_TEXT)
            return
        if not is_client(receiver):
            self._deliver_natively(message, sender, receiver, was_held=was_held)
            return
        stream = peer_of(receiver).stream
        replies = self.bus.replies
        expects_reply = header.type == MessageType.METHOD_CALL and not header.flags & NO_REPLY_EXPECTED
        requests = replies.window(sender, receiver) if expects_reply else None
        # A reply is known by its type; a reply serial in anything else means nothing.
        reply_serial_at = header.reply_serial_at if header.type in _REPLIES else 0
        duties = replies.window(receiver, sender) if reply_serial_at else None
        others = self._listeners(message, receiver, was_held=was_held)
        is_watched = self.bus.has_native_monitors
        if is_watched and not was_held:
            self.bridge.show(message, sender, receiver)
        if (
            not is_watched
            and message.fds is None
            and others is None
            and not was_held
            and header.sender_span is None
            and not (expects_reply and self.limits.reply_timeout)
        ):
            flow = UnicastFlow(
                self.bus,
                stream,
                sender.user,
                message.tail(peer.unique_name),
                little_endian=header.little_endian,
                checker=body_checker(header.signature, header.little_endian),
                body_length=trivial_body_length(header.signature),
                requests=requests,
                duties=duties,
                reply_serial_at=reply_serial_at,
            )
            peer.flows.add(flow, message.data, message.start, message.body, reply_serial_at)
            if flow.forward(
                peer, message.data, message.start, message.body, message.end, message.serial, is_checked=True
            ):
                return
        self._deliver_singly(message, sender, receiver, others)

    def _listeners(self, message: Incoming, receiver: Connection, *, was_held: bool) -> Audience | None:
        """Which clients see a message beside its receiver, as far as its header says; None for nobody."""
        envelope = self._envelope(message, receiver, to_driver=False)
        subscriptions = self.bus.subscriptions
        others = (
            subscriptions.eavesdropper_audience(envelope)
            if was_held
            else subscriptions.unicast_audience(envelope)
        )
        return others if others.always or others.argument_count else None

    def _deliver_natively(
        self, message: Incoming, sender: Connection, receiver: Connection, *, was_held: bool
    ) -> None:
        """Bring a message to a native receiver, and keep the way there where the next may go it too."""
        header = message.header
        others = self._listeners(message, receiver, was_held=was_held)
        if others is not None:
            self._copy(message, others, sender.user)
        elif (
            message.fds is None and not was_held and not receiver.is_activator and header.sender_span is None
        ):
            from busproxy.bridge.flows import NativeFlow

            reply_serial_at = header.reply_serial_at if header.type in _REPLIES else 0
            flow = NativeFlow(self.bridge, header, sender, receiver, reply_serial_at)
            message.peer.flows.add(flow, message.data, message.start, message.body, reply_serial_at)
        self.bridge.send(message, sender, receiver, was_held=was_held)

    def _deliver_singly(
        self, message: Incoming, sender: Connection, receiver: Connection, others: Audience | None
    ) -> None:
        """Deliver what a flow has left to us, with an answer for every refusal."""
        header = message.header
        if others is not None:
            self._copy(message, others, sender.user, but=receiver)
        peer = peer_of(receiver)
        refusal: tuple[str, str] | None = None
        expects_reply = header.type == MessageType.METHOD_CALL and not header.flags & NO_REPLY_EXPECTED
        replies = self.bus.replies
        if message.fds is not None and not peer.unix_fds:
            refusal = (
                NOT_SUPPORTED,
                "Tried to send message with Unix file descriptors"
                "to a client that doesn't support that.",  # as dbus-daemon spells it
            )
        elif expects_reply and replies.is_open(sender, receiver, message.serial):
            refusal = (
                ACCESS_DENIED,
                "Message has the same reply serial as a currently-outstanding existing method call",
            )
        if refusal is not None:
            self.driver.refuse(message, *refusal)
            return
        requested = header.type in _REPLIES and replies.is_open(receiver, sender, header.reply_serial)
        try:
            if expects_reply:
                replies.open(replies.window(sender, receiver), message.serial, self.reply_deadline())
            peer.stream.push(message.with_sender(message.peer.unique_name), sender.user, message.fds)
            if requested:
                replies.take(receiver, sender, header.reply_serial)
        except KdbusError as error:
            if error.errno == EMLINK:
                text = "The maximum number of pending replies per connection has been reached"
            else:  # ENOBUFS or EMFILE
                if expects_reply:
                    replies.take(sender, receiver, message.serial)
                text = self._full_queue(message, receiver)
            self.driver.refuse(message, LIMITS_EXCEEDED, text)

    def _full_queue(self, message: Incoming, receiver: Connection) -> str:
        header = message.header
        return (
            "Rejected: destination has a full message queue; "
            f'type="{_TYPE_NAMES[header.type]}", sender="{message.peer.unique_name}" '
            f'interface="{header.interface or "(unset)"}" member="{header.member or "(unset)"}" '
            f'error name="{header.error_name or "(unset)"}" '
            f'destination="{UNIQUE_PREFIX}{receiver.id}"'
        )

    # Deadlines of replies

    def reply_deadline(self) -> int:
        """When a call of now has to be answered, nanoseconds of the monotonic clock; 0 for no deadline."""
        timeout = self.limits.reply_timeout
        if not timeout:
            return 0
        if self._reply_timer is None:
            self._reply_timer = self.call_later(timeout / 1000, self._expire_replies)
        return self._now() + timeout * 1_000_000

    def _now(self) -> int:
        return int(self.loop.time() * 1_000_000_000)

    def _expire_replies(self) -> None:
        self.bus.expire_replies(self._now())
        following = self.bus.replies.next_deadline()
        self._reply_timer = (
            None
            if following is None
            else self.call_later(max(0, following - self._now()) / 1e9, self._expire_replies)
        )
