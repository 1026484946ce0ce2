"""Messages that the bus itself sends.

Each carries the driver as sender and the next serial of its receiver, wants
no reply, and is shown to monitors.  They are charged to nobody's share; a
receiver that does not read has only itself to wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack_into
from typing import TYPE_CHECKING, Any

from busproxy.router import peer_of
from busproxy.transport.fds import FdSet
from busproxy.wire.body import string_arguments
from busproxy.wire.header import NO_REPLY_EXPECTED, MessageType
from busproxy.wire.marshal import marshal
from busproxy.wire.message import build_message
from kdbus_core.errors import KdbusError
from kdbus_core.subscriptions import Audience, Envelope

if TYPE_CHECKING:
    from busproxy.peer import Peer
    from busproxy.router import Router

DRIVER_NAME = "org.freedesktop.DBus"
DRIVER_PATH = "/org/freedesktop/DBus"
DRIVER_INTERFACE = "org.freedesktop.DBus"
NOT_YET_ACTIVE = ":not.active.yet"

LITTLE_ENDIAN = True
_SERIAL_AT = 8


class Outbox:
    """Builds and sends the driver's messages."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def send_reply(
        self,
        peer: Peer,
        reply_serial: int,
        signature: str,
        values: Sequence[Any],
        fds: FdSet | None = None,
    ) -> None:
        """Answer a call."""
        body = marshal(signature, values)
        message = build_message(
            MessageType.METHOD_RETURN,
            peer.next_serial(),
            flags=NO_REPLY_EXPECTED,
            destination=peer.unique_name or NOT_YET_ACTIVE,
            reply_serial=reply_serial,
            signature=signature,
            sender=DRIVER_NAME,
            body=body,
            unix_fds=len(fds) if fds is not None else 0,
        )
        self._send(peer, message, Envelope(MessageType.METHOD_RETURN), signature, body, fds)

    def send_error(self, peer: Peer, reply_serial: int, name: str, text: str) -> None:
        """Refuse a call, or another message that the sender should know about."""
        body = marshal("s", (text,))
        message = build_message(
            MessageType.ERROR,
            peer.next_serial(),
            flags=NO_REPLY_EXPECTED,
            destination=peer.unique_name or NOT_YET_ACTIVE,
            error_name=name,
            reply_serial=reply_serial,
            signature="s",
            sender=DRIVER_NAME,
            body=body,
        )
        self._send(peer, message, Envelope(MessageType.ERROR), "s", body)

    def send_bare(
        self, peer: Peer, reply_serial: int, *, error_name: str | None, signature: str, values: Sequence[Any]
    ) -> None:
        """Answer a message that had no destination: the answer has none either, and no sender."""
        message = build_message(
            MessageType.ERROR if error_name else MessageType.METHOD_RETURN,
            peer.next_serial(),
            flags=NO_REPLY_EXPECTED,
            error_name=error_name,
            reply_serial=reply_serial,
            signature=signature,
            body=marshal(signature, values),
        )
        self._push(peer, message)

    def send_signal(
        self,
        peer: Peer | None,
        member: str,
        signature: str,
        values: Sequence[Any],
        *,
        interface: str = DRIVER_INTERFACE,
        destination: str | None = None,
        is_new: bool = True,
    ) -> None:
        """Send a signal to one peer, addressed to its unique name or to another `destination`.

        Without a peer it is only shown to monitors; they do not see again what is not new.
        """
        body = marshal(signature, values)
        message = build_message(
            MessageType.SIGNAL,
            peer.next_serial() if peer is not None else 1,
            flags=NO_REPLY_EXPECTED,
            path=DRIVER_PATH,
            interface=interface,
            member=member,
            destination=destination or (peer.unique_name if peer is not None else None),
            signature=signature,
            sender=DRIVER_NAME,
            body=body,
        )
        if is_new:
            envelope = Envelope(MessageType.SIGNAL, path=DRIVER_PATH, interface=interface, member=member)
            self._show(peer, message, envelope, signature, body)
        if peer is not None:
            self._push(peer, message)

    def send_call(
        self,
        peer: Peer,
        path: str,
        interface: str,
        member: str,
        signature: str,
        values: Sequence[Any],
        *,
        destination: str | None = None,
    ) -> None:
        """Call a method of a peer and want no answer."""
        body = marshal(signature, values)
        message = build_message(
            MessageType.METHOD_CALL,
            peer.next_serial(),
            flags=NO_REPLY_EXPECTED,
            path=path,
            interface=interface,
            member=member,
            destination=destination or peer.unique_name,
            signature=signature,
            sender=DRIVER_NAME,
            body=body,
        )
        envelope = Envelope(MessageType.METHOD_CALL, path=path, interface=interface, member=member)
        self._send(peer, message, envelope, signature, body)

    def broadcast(self, member: str, signature: str, values: Sequence[Any]) -> None:
        """Send a signal to everybody who subscribed to it."""
        envelope = Envelope(MessageType.SIGNAL, path=DRIVER_PATH, interface=DRIVER_INTERFACE, member=member)
        audience = self._router.bus.subscriptions.broadcast_audience(envelope)
        if not audience.always and not audience.argument_count:
            return
        body = marshal(signature, values)
        message = build_message(
            MessageType.SIGNAL,
            1,
            flags=NO_REPLY_EXPECTED,
            path=DRIVER_PATH,
            interface=DRIVER_INTERFACE,
            member=member,
            signature=signature,
            sender=DRIVER_NAME,
            body=body,
        )
        for peer in self._audience(audience, signature, body):
            self._push(peer, _with_serial(message, peer.next_serial()))

    def _send(
        self,
        peer: Peer,
        message: bytes,
        envelope: Envelope,
        signature: str,
        body: bytes,
        fds: FdSet | None = None,
    ) -> None:
        self._show(peer, message, envelope, signature, body, fds)
        self._push(peer, message, fds)

    def _show(
        self,
        peer: Peer | None,
        message: bytes,
        envelope: Envelope,
        signature: str,
        body: bytes,
        fds: FdSet | None = None,
    ) -> None:
        subscriptions = self._router.bus.subscriptions
        if subscriptions.has_monitors:
            envelope.destination = peer.connection if peer is not None else None
            for monitor in self._audience(subscriptions.monitor_audience(envelope), signature, body):
                if fds is None or monitor.unix_fds:
                    self._push(monitor, message, fds)

    def _audience(self, audience: Audience, signature: str, body: bytes) -> list[Peer]:
        count = audience.argument_count
        arguments = string_arguments(signature, LITTLE_ENDIAN, body, 0, len(body), count) if count else ()
        return [peer_of(receiver) for receiver in audience.receivers(arguments)]

    def _push(self, peer: Peer, message: bytes, fds: FdSet | None = None) -> None:
        try:
            peer.stream.push(message, self._router.bus.kernel_user, fds)
        except KdbusError as error:
            # It asks and asks and does not read: whatever it asked for is lost.
            self._router.log.debug("an answer to %s is lost: %s", peer.description, error)


def _with_serial(message: bytes, serial: int) -> bytes:
    patched = bytearray(message)
    pack_into("<I", patched, _SERIAL_AT, serial)
    return bytes(patched)
