"""A native connection's message on its way to clients: read, judged, and made dbus1.

It is read once, whoever gets it, and made dbus1 once for all who get it with
the same serials; a client is given either byte order.  What a native peer has
written is never believed: the message has to be a valid one of D-Bus that says
what the broker was told with it, because policy and requests were judged by
that.  Everything else is EBADMSG.

Payload in shared memory is mapped, not copied; it is sealed, so it cannot change
while it is read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from errno import EBADMSG, EMFILE, EMSGSIZE, ENOMEM
from typing import TYPE_CHECKING, Protocol, cast

from busproxy.flows import audience_of
from busproxy.remarshal import GVariantMessage, contradiction, from_gvariant, parse_gvariant
from busproxy.transport.fds import FdSet, close_all
from busproxy.wire.errors import ProtocolError
from busproxy.wire.header import MAX_MESSAGE_LENGTH, MessageType
from kdbus_core.abi import PAYLOAD_DBUS
from kdbus_core.errors import KdbusError
from kdbus_core.message import Memfd, Message, Vec, Zeros
from kdbus_core.subscriptions import Envelope

if TYPE_CHECKING:
    from busproxy.remarshal import Piece
    from kdbus_core.caller import File
    from kdbus_core.connection import Connection
    from kdbus_core.subscriptions import Audience

UNIQUE_PREFIX = ":1."

_REPLIES = (MessageType.METHOD_RETURN, MessageType.ERROR)
_BODY_LENGTH_AT = slice(4, 8)
_LITTLE_ENDIAN = ord("l")


class _HasDescriptor(Protocol):
    def fileno(self) -> int: ...


def unique_name(connection: Connection) -> str:
    """The unique name of a connection, of whichever kind."""
    return f"{UNIQUE_PREFIX}{connection.id}"


class NativeMessage:
    """A native connection's message as clients may get it, read and judged once."""

    __slots__ = ("_data", "_destination", "_sender", "_serials", "message", "parsed")

    def __init__(self, sender: Connection, message: Message, destination: str | None) -> None:
        """KdbusError with EBADMSG for what is no D-Bus message, EMSGSIZE for what is too long for one."""
        self.message = message
        self._sender = unique_name(sender)
        self._destination = destination
        self._serials = (0, 0)
        self._data = b""
        self.parsed = _parse(message)
        if destination is None and self.parsed.destination is not None:
            raise KdbusError(EBADMSG, f"a message to everybody says it is for '{self.parsed.destination}'")

    def dbus1(self, serial: int, reply_serial: int) -> bytes:
        """The message as dbus1; EBADMSG when its body is not valid."""
        if self._serials != (serial, reply_serial):
            try:
                self._data = from_gvariant(
                    self.parsed,
                    sender=self._sender,
                    destination=self._destination,
                    serial=serial,
                    reply_serial=reply_serial,
                )
            except ProtocolError as error:
                raise _not_dbus(error) from error
            self._serials = (serial, reply_serial)
        return self._data

    def envelope(self, sender: Connection, receiver: Connection | None) -> Envelope:
        parsed = self.parsed
        return Envelope(
            parsed.type,
            sender=sender,
            destination=receiver,
            path=parsed.path,
            interface=parsed.interface,
            member=parsed.member,
        )

    def receivers(self, audience: Audience, data: bytes) -> list[Connection]:
        """Those of an audience whose rules hold for the message, which is `data` as dbus1."""
        is_little = data[0] == _LITTLE_ENDIAN
        length = int.from_bytes(data[_BODY_LENGTH_AT], "little" if is_little else "big")
        body = len(data) - length
        return audience_of(audience, self.parsed.signature, is_little, data, body, len(data))


def _not_dbus(error: ProtocolError) -> KdbusError:
    return KdbusError(EBADMSG, f"no valid D-Bus message: {error}")


def _parse(message: Message) -> GVariantMessage:
    if message.payload_type != PAYLOAD_DBUS:
        raise KdbusError(EBADMSG, f"payload of type {message.payload_type:#x} is no D-Bus message")
    if sum([_size(part) for part in message.parts]) > MAX_MESSAGE_LENGTH:
        raise KdbusError(EMSGSIZE, "no D-Bus message is that long")
    try:
        parsed = parse_gvariant([_bytes_of(part) for part in message.parts])
    except ProtocolError as error:
        raise _not_dbus(error) from error
    flaw = contradiction(
        parsed, cookie=message.cookie, flags=int(message.flags), cookie_reply=message.cookie_reply
    )
    if flaw is None and parsed.unix_fds != message.fd_count:
        flaw = f"{parsed.unix_fds} file descriptors announced, {message.fd_count} came"
    if flaw is None and parsed.type > MessageType.SIGNAL:
        flaw = f"message of the unknown type {parsed.type}"
    if flaw is None and (parsed.type in _REPLIES) is not bool(message.cookie_reply):
        flaw = "a reply that answers nothing, or an answer that is no reply"
    if flaw is not None:
        raise KdbusError(EBADMSG, flaw)
    return parsed


def _size(part: Vec | Zeros | Memfd) -> int:
    return len(part.data) if isinstance(part, Vec) else part.size


def _bytes_of(part: Vec | Zeros | Memfd) -> Piece:
    if isinstance(part, Vec):
        return part.data
    if isinstance(part, Zeros):
        return bytes(part.size)
    from kdbus_core.transport.files import map_sealed

    try:
        return map_sealed(cast(_HasDescriptor, part.file).fileno(), part.start, part.size)
    except OSError as error:
        raise KdbusError(ENOMEM, f"shared memory cannot be mapped: {error.strerror}") from error


def duplicate_files(files: Sequence[File]) -> FdSet | None:
    """Descriptors for the files of a native message; the caller is their holder.  EMFILE."""
    if not files:
        return None
    fds: list[int] = []
    try:
        for file in files:
            fds.append(os.dup(cast(_HasDescriptor, file).fileno()))
    except OSError as error:
        close_all(fds)
        raise KdbusError(EMFILE, f"no descriptor left: {error.strerror}") from error
    return FdSet(fds)
