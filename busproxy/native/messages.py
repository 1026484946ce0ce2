"""Messages of a native D-Bus program: made of values, and values again.

On the bus a message is GVariant (`wire.gvariant_message`), said twice over: what the broker decides on, such
as cookie and flags, stands in the SEND as well and has to agree. A `Message` is one that came, or a
notification of the broker told as the signal that D-Bus knows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from busproxy.match_entries import FilterArguments
from busproxy.native.values import Descriptor, put_files, take_files
from busproxy.remarshal import build_gvariant, contradiction, parse_gvariant
from busproxy.wire.errors import ProtocolError
from busproxy.wire.gvariant import encode
from busproxy.wire.gvariant_message import Piece
from busproxy.wire.header import NO_REPLY_EXPECTED, MessageType
from busproxy.wire.names import (
    is_bus_name,
    is_error_name,
    is_interface_name,
    is_member_name,
    is_object_path,
)
from busproxy.wire.signatures import complete_types
from kdbus_core.abi import PAYLOAD_DBUS
from kdbus_core.transport.client import Received

__all__ = ["Message", "Outgoing", "build_message", "filter_arguments", "read_message", "unique_name"]

_JOINED = 65536
"""Bytes of a payload up to which it is looked at in one piece."""

_CHECKS = {
    "path": is_object_path,
    "interface": is_interface_name,
    "member": is_member_name,
    "error_name": is_error_name,
    "destination": is_bus_name,
}


def unique_name(id: int) -> str:
    """The D-Bus name of a connection."""
    return f":1.{id}"


@dataclass(slots=True)
class Message:
    """A message that came; what it does not say is None, '' or ().

    `sender` is true, whatever the message says of it. `sender_names` are the well-known names that the sender
    owned when it sent this, as far as it lets us know. `values` are as `wire.marshal` has them, and a
    `Descriptor` for each h.
    """

    type: int
    sender: str
    flags: int = 0
    cookie: int = 0
    reply_cookie: int = 0
    path: str | None = None
    interface: str | None = None
    member: str | None = None
    error_name: str | None = None
    destination: str | None = None
    signature: str = ""
    values: tuple[Any, ...] = ()
    sender_names: Collection[str] = ()
    files: Sequence[Descriptor] = field(default=(), repr=False)

    @property
    def expects_reply(self) -> bool:
        """Whether it is a call that wants an answer."""
        return self.type == MessageType.METHOD_CALL and not self.flags & NO_REPLY_EXPECTED

    def close(self) -> None:
        """Close the descriptors that nobody has taken."""
        for file in self.files:
            file.close()


def read_message(received: Received) -> Message:
    """What was received, as values; takes the descriptors. `ProtocolError` when it is no D-Bus message."""
    if received.payload_type != PAYLOAD_DBUS:
        raise ProtocolError(f"payload of type {received.payload_type:#x}", 0)
    data: Piece | Sequence[Piece]
    data = received.payload if received.payload_size <= _JOINED else received.parts
    parsed = parse_gvariant(data)
    wrong = contradiction(
        parsed, cookie=received.cookie, flags=received.flags, cookie_reply=received.cookie_reply
    )
    if wrong is not None:
        raise ProtocolError(wrong, 0)
    if parsed.unix_fds != len(received.fds):
        raise ProtocolError(f"{len(received.fds)} descriptors, and {parsed.unix_fds} in the message", 0)
    if any(fd < 0 for fd in received.fds):
        raise ProtocolError("descriptors that this process has no room for", 0)
    values: Sequence[Any] = parsed.values()
    files = [Descriptor(fd) for fd in received.take_fds()]
    try:
        values = tuple(put_files(parsed.signature, values, files)) if files else tuple(values)
    except ValueError as error:
        for file in files:
            file.close()
        raise ProtocolError(str(error), 0) from error
    return Message(
        parsed.type,
        unique_name(received.sender),
        parsed.flags,
        parsed.cookie,
        parsed.reply_cookie,
        parsed.path,
        parsed.interface,
        parsed.member,
        parsed.error_name,
        received.dst_name or parsed.destination,
        parsed.signature,
        values,
        received.metadata.names,
        files,
    )


class Outgoing(NamedTuple):
    """A message that is to be sent: its payload, and the descriptors, which are borrowed."""

    parts: tuple[Piece, Piece, Piece]
    fds: list[int]

    @property
    def payload(self) -> bytes | Sequence[Piece]:
        """In one piece where it is small, else without another copy of what is large."""
        return b"".join(self.parts) if sum(map(len, self.parts)) <= _JOINED else self.parts


def build_message(
    type: int,
    cookie: int,
    signature: str,
    values: Sequence[Any],
    *,
    flags: int = 0,
    path: str | None = None,
    interface: str | None = None,
    member: str | None = None,
    error_name: str | None = None,
    destination: str | None = None,
    reply_cookie: int = 0,
) -> Outgoing:
    """A message with these values; `ValueError`, `TypeError` for what D-Bus does not have."""
    for what, name in (
        ("path", path),
        ("interface", interface),
        ("member", member),
        ("error_name", error_name),
        ("destination", destination),
    ):
        if name is not None and not _CHECKS[what](name):
            raise ValueError(f"{name!r} is not a valid {what.replace('_', ' ')}")
    indexed, fds = take_files(signature, values)
    try:
        parts = build_gvariant(
            type,
            cookie,
            flags=flags,
            path=path,
            interface=interface,
            member=member,
            error_name=error_name,
            destination=destination,
            reply_cookie=reply_cookie,
            signature=signature,
            body=encode(signature, indexed),
            unix_fds=len(fds),
        )
    except ProtocolError as error:
        raise ValueError(error.reason) from error
    return Outgoing(parts, fds)


def filter_arguments(signature: str, values: Sequence[Any]) -> FilterArguments:
    """What of a signal's values goes into its filter."""
    return [
        (type_, value) if type_ in ("s", "o", "g", "as", "ao", "ag") else None
        for type_, value in zip(complete_types(signature), values, strict=True)
    ]
