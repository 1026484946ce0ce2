"""Between legacy clients and native connections: every message that one kind sends the other.

To the broker both kinds are connections; what differs is the form of a message.
A client's message stays dbus1 until it reaches a native receiver or monitor, a
native one's stays GVariant until it reaches a client: nothing is converted that
nobody of the other kind gets, and nothing twice.

- Legacy to native: the router has checked the message and knows its receiver.
  `send`, `broadcast` and `show` build the native form and hand it to the bus,
  which keeps policy, requests and quota; a refusal becomes the error that
  dbus-daemon would give.
- Native to legacy: the bus has judged everything and calls. `deliver` is for the
  one addressee, who may refuse; `on_broadcast` and `on_unicast` are for those
  who have subscribed or listen in.

A message that contradicts what the broker was told with it, or that is no D-Bus
message at all, reaches no client: whoever addressed it to one gets EBADMSG.

Descriptors are duplicated at the crossing: a native message owns its files, a
legacy one an `FdSet`, and each closes its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from errno import EBADMSG, EBADSLT, ECOMM, EMFILE, EMSGSIZE, ENOBUFS, ENOMEM, EOPNOTSUPP
from typing import TYPE_CHECKING

from busproxy.bridge.native_message import NativeMessage, duplicate_files, unique_name
from busproxy.bridge.surrogates import Surrogates, as_serial
from busproxy.errno_names import Refused, send_error
from busproxy.flows import LARGE_BODY
from busproxy.incoming import Incoming
from busproxy.match_entries import MAX_ARGUMENTS, message_filter
from busproxy.remarshal import message_flags, to_gvariant_parts
from busproxy.router import connection_id, peer_of
from busproxy.transport.fds import FdSet
from busproxy.wire.body import string_arguments
from busproxy.wire.errors import ProtocolError
from busproxy.wire.header import (
    NO_AUTO_START,
    NO_REPLY_EXPECTED,
    MessageType,
)
from kdbus_core.abi import DST_BROADCAST, MAX_FDS, MessageFlag
from kdbus_core.caller import FileKind
from kdbus_core.errors import KdbusError
from kdbus_core.message import DstName, Fds, Memfd, Message, MessageItem, Vec
from kdbus_core.subscriptions import EMPTY_AUDIENCE

if TYPE_CHECKING:
    from busproxy.peer import Peer
    from busproxy.remarshal import Piece
    from busproxy.router import Router
    from busproxy.wire.header import Header
    from kdbus_core.connection import Connection
    from kdbus_core.matches import Filter
    from kdbus_core.transport.files import OpenFile

UNIQUE_PREFIX = ":1."
ACCESS_DENIED = "org.freedesktop.DBus.Error.AccessDenied"
LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"

MEMFD_THRESHOLD = 512 * 1024
"""Native messages from this size on (bytes) travel as sealed memory, outside the receiver's pool."""

_REPLIES = (int(MessageType.METHOD_RETURN), int(MessageType.ERROR))
# As numbers: an enumeration's own operators take ten times as long, with every message.
_EXPECT_REPLY = int(MessageFlag.EXPECT_REPLY)
_SIGNAL = int(MessageFlag.SIGNAL)


class Bridge:
    """What crosses between the clients of a router and the native connections of its bus."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._bus = router.bus
        # What listeners were shown of a message that is about to reach its addressee.
        self._shown: NativeMessage | None = None

    # From native connections

    def deliver(self, peer: Peer, sender: Connection, message: Message) -> None:
        """Give a client what was sent to it; see `kdbus_core.Sink.on_message`."""
        shown, self._shown = self._shown, None
        try:
            self._deliver(peer, sender, message, shown)
        except KdbusError as error:
            if message.is_signal and error.errno != EBADMSG:
                self._router.lost_broadcasts += 1  # the sender is not told of those
            raise

    def _deliver(self, peer: Peer, sender: Connection, message: Message, shown: NativeMessage | None) -> None:
        connection = peer.connection
        assert connection is not None
        if message.fd_count and not peer.unix_fds:
            raise KdbusError(ECOMM, f"{peer.unique_name} has not negotiated file descriptors")
        native = shown
        if native is None or native.message is not message:
            native = NativeMessage(sender, message, message.dst_name or peer.unique_name)
        data = native.dbus1(self._serial(peer, sender, native), message.cookie_reply)
        _check_size(peer, len(data))
        fds = duplicate_files(message.files)
        try:
            peer.stream.push(data, sender.user, fds)
        finally:
            if fds is not None:
                fds.release()

    def _serial(self, peer: Peer, sender: Connection, native: NativeMessage) -> int:
        """The serial under which a client gets a message; as few as possible are given out."""
        cookie = native.message.cookie
        if not native.message.expects_reply:
            return as_serial(cookie)
        if peer.surrogates is None:
            if cookie == as_serial(cookie):
                return cookie
            connection, replies = peer.connection, self._bus.replies
            assert connection is not None
            peer.surrogates = Surrogates(lambda sender, cookie: replies.is_open(sender, connection, cookie))
        return peer.surrogates.serial(sender, cookie)

    def on_broadcast(self, sender: Connection, message: Message) -> None:
        """See `kdbus_core.Gateway`: clients get it whose rules hold for it."""
        if not self._router.peers:
            return
        try:
            native = NativeMessage(sender, message, None)
            audience = self._bus.subscriptions.broadcast_audience(native.envelope(sender, None))
            if audience is EMPTY_AUDIENCE:
                return
            data = native.dbus1(as_serial(message.cookie), 0)
        except KdbusError as error:
            self._router.log.debug("a signal of %s is nothing for clients: %s", unique_name(sender), error)
            return
        receivers = self._with_room(native.receivers(audience, data), len(data))
        if receivers:
            self._router.copy_to(receivers, data, sender.user)

    def on_unicast(self, sender: Connection, message: Message, receiver: Connection) -> None:
        """See `kdbus_core.Gateway`: clients see it who listen to what others send."""
        try:
            native = NativeMessage(sender, message, message.dst_name or unique_name(receiver))
            envelope = native.envelope(sender, receiver)
            audience = self._bus.subscriptions.unicast_audience(envelope)
            if audience is EMPTY_AUDIENCE:
                return
            data = native.dbus1(
                as_serial(message.cookie), as_serial(message.cookie_reply) if message.cookie_reply else 0
            )
            receivers = [other for other in native.receivers(audience, data) if other is not receiver]
            receivers = self._with_room(receivers, len(data))
            fds = duplicate_files(message.files) if receivers else None
        except KdbusError as error:
            self._router.log.debug("a message of %s is nothing for clients: %s", unique_name(sender), error)
            return
        try:
            self._router.copy_to(receivers, data, sender.user, fds)
        finally:
            if fds is not None:
                fds.release()
        if receiver.sink is not None:
            self._shown = native

    def _with_room(self, receivers: list[Connection], size: int) -> list[Connection]:
        """Those who can be given a copy; it is lost for the others, and counted."""
        if size < LARGE_BODY:
            return receivers
        able: list[Connection] = []
        for receiver in receivers:
            try:
                _check_size(peer_of(receiver), size)
            except KdbusError:
                self._router.lost_broadcasts += 1
            else:
                able.append(receiver)
        return able

    # From clients

    def send(
        self,
        message: Incoming,
        sender: Connection,
        receiver: Connection,
        reply_serial: int | None = None,
        *,
        was_held: bool = False,
    ) -> None:
        """Bring a client's message to a native connection; its sender is told of a refusal.

        `reply_serial` is not the header's where that is of another message.  Monitors have seen one that
        `was_held` when it came.
        """
        header, peer, bus = message.header, message.peer, self._bus
        reply_cookie = 0
        if header.type in _REPLIES:
            serial = header.reply_serial if reply_serial is None else reply_serial
            surrogates = peer.surrogates
            reply_cookie = serial if surrogates is None else surrogates.cookie(receiver, serial)
        elif _expects_reply(header) and bus.replies.is_open(sender, receiver, message.serial):
            self._router.driver.refuse(
                message,
                ACCESS_DENIED,
                "Message has the same reply serial as a currently-outstanding existing method call",
            )
            return
        if message.fd_count > MAX_FDS:
            text = f"A native peer takes no more than {MAX_FDS} file descriptors with a message"
            self._router.driver.refuse(message, LIMITS_EXCEEDED, text)
            return
        try:
            native = self._build(message, receiver, reply_cookie)
            if was_held:
                bus.send_seen(sender, native)
            else:
                bus.send(sender, native)
        except KdbusError as error:
            # A reply that nobody waits for is no fault of who sends it: the request may just have timed out.
            # Between clients, too, there is no word about it.
            if error.errno != EBADSLT:
                self._refuse(message, receiver, error)
            return
        if reply_cookie and peer.surrogates is not None:
            peer.surrogates.forget(receiver, serial)

    def broadcast(self, message: Incoming, sender: Connection) -> None:
        """Bring a client's signal, without descriptors, to the natives whose matches let it through."""
        filter = self._filter(message)
        if not self._bus.is_awaited(sender, filter):
            return
        try:
            self._bus.send(sender, self._build(message, None, 0, filter))
        except KdbusError as error:
            self._router.lost_broadcasts += 1
            self._router.log.debug("a signal of %s is lost: %s", message.peer.unique_name, error)

    def show(self, message: Incoming, sender: Connection, receiver: Connection | None) -> None:
        """Show native monitors what a client sends to another one, to the driver, or to nobody.

        What the driver sends they do not see: it is no connection that a message could come from, and what it
        says of names and lost replies the broker tells them itself.
        """
        header = message.header
        reply_cookie = header.reply_serial if header.type in _REPLIES else 0
        try:
            native = self._build(message, receiver, reply_cookie, is_shown=True)
        except KdbusError as error:
            self._router.log.debug("a message of %s cannot be shown: %s", message.peer.unique_name, error)
            return
        self._bus.show_to_native_monitors(sender, native)

    def _build(
        self,
        message: Incoming,
        receiver: Connection | None,
        reply_cookie: int,
        filter: Filter | None = None,
        *,
        is_shown: bool = False,
    ) -> Message:
        """The native form of a client's message: to a receiver, to whom its destination says, or to all."""
        header = message.header
        flags = int(message_flags(header))
        items: list[MessageItem] = self._payload(message, reply_cookie)
        if flags & _SIGNAL:
            items.append(filter or self._filter(message))
        destination, id = header.destination, 0 if receiver is None else receiver.id
        if destination is None:
            id = DST_BROADCAST
        elif destination[0] == ":" and receiver is None:
            id = connection_id(destination) or 0
        elif destination[0] != ":" and (header.type not in _REPLIES or receiver is None):
            items.append(DstName(destination))
            id = 0
        if message.fds is not None:
            try:
                items.append(Fds(_open_files(message.fds)))
            except KdbusError:
                if not is_shown:
                    _close_memory(items)
                    raise
        return Message(
            items,
            flags=flags,
            dst_id=id,
            cookie=message.serial,
            timeout_ns=self._router.reply_deadline() if flags & _EXPECT_REPLY else 0,
            cookie_reply=reply_cookie,
        )

    def _payload(self, message: Incoming, reply_cookie: int) -> list[MessageItem]:
        body: Piece
        if message.end - message.body < LARGE_BODY:
            body = message.data[message.body : message.end]
        else:
            body = memoryview(message.data)[message.body : message.end]
        try:
            parts = to_gvariant_parts(message.header, body, cookie=message.serial, reply_cookie=reply_cookie)
        except ProtocolError as error:
            raise KdbusError(EMSGSIZE, str(error)) from error
        size = sum([len(part) for part in parts])
        if size < MEMFD_THRESHOLD:
            return [Vec(b"".join(parts))]
        from kdbus_core.transport.files import OpenFile, make_memfd

        try:
            fd = make_memfd([memoryview(part) for part in parts], name="dbus-message", sealed=True)
        except OSError as error:
            raise KdbusError(ENOMEM, f"no shared memory for {size} bytes: {error.strerror}") from error
        return [Memfd(0, size, OpenFile(fd))]

    def _filter(self, message: Incoming) -> Filter:
        header = message.header
        arguments = string_arguments(
            header.signature, header.little_endian, message.data, message.body, message.end, MAX_ARGUMENTS
        )
        return message_filter(
            self._bus.bloom,
            path=header.path,
            interface=header.interface,
            member=header.member,
            arguments=arguments,
        )

    def _refuse(self, message: Incoming, receiver: Connection, error: KdbusError) -> None:
        header = message.header
        refused = Refused(
            type=header.type,
            sender=message.peer.unique_name,
            destination=header.destination,
            receiver=unique_name(receiver),
            interface=header.interface,
            member=header.member,
            error_name=header.error_name,
            auto_start=not header.flags & NO_AUTO_START,
        )
        self._router.driver.refuse(message, *send_error(error, refused))


def _check_size(peer: Peer, size: int) -> None:
    """Whether a client may be given one more message of this size: EMSGSIZE, ENOBUFS.

    A stream asks for room only once its socket is behind.  The socket gets its chance when the loop has its
    turn; until then nobody may pile up much more than what the client may have waiting.
    """
    if size > peer.max_message_size:
        raise KdbusError(EMSGSIZE, f"{size} bytes where {peer.max_message_size} are allowed")
    stream = peer.stream
    if size >= LARGE_BODY and not stream.blocked:
        queued = sum(map(len, stream.out))
        if queued > peer.quota.capacity // 3:
            raise KdbusError(ENOBUFS, f"{queued} bytes are about to be sent to {peer.unique_name}")


def _expects_reply(header: Header) -> bool:
    return header.type == MessageType.METHOD_CALL and not header.flags & NO_REPLY_EXPECTED


def _open_files(fds: FdSet) -> tuple[OpenFile, ...]:
    """Files for a native message, which owns them: EOPNOTSUPP for unix sockets, EMFILE."""
    from kdbus_core.transport.files import OpenFile

    files: list[OpenFile] = []
    try:
        for fd in fds.fds:
            file = OpenFile(os.dup(fd))
            files.append(file)
            if file.kind is FileKind.UNIX_SOCKET:
                raise KdbusError(EOPNOTSUPP, "unix sockets are not passed to native peers")
    except (KdbusError, OSError) as error:
        for file in files:
            file.close()
        if isinstance(error, KdbusError):
            raise
        raise KdbusError(EMFILE, f"no descriptor left: {error.strerror}") from error
    return tuple(files)


def _close_memory(items: Sequence[MessageItem]) -> None:
    for item in items:
        if isinstance(item, Memfd):
            item.file.close()
