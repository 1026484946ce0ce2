"""Messages of legacy clients and of native ones, made from each other: dbus1 ↔ GVariant.

What a native message looks like says `wire.gvariant_message`. What a legacy client is given is always a
message that libdbus takes; what a native peer is given is in normal form. Who sent a message the broker
knows: what the message says of it is left out in the one direction and passed over in the other. All flags
are kept, header fields that nobody knows are not. A dbus1 message whose fields stand in the order of
`build_message` comes back byte for byte.

Copies of a body: a lone array of numbers in the right byte order is copied once, when the pieces of the
message are joined, and not at all by who takes the pieces (`to_gvariant_parts`). Any other is copied into
the converter (if it is not on its own in a `bytes`), by it, and when the pieces are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from busproxy.wire.errors import ProtocolError
from busproxy.wire.gvariant import NATIVE_LITTLE_ENDIAN, bulk_array, dbus1_body_to_gvariant
from busproxy.wire.gvariant_fields import DBUS1_FIXED, FIXED_LENGTH, build_dbus1_fields
from busproxy.wire.gvariant_message import GVariantMessage, Piece, build_gvariant, parse_gvariant
from busproxy.wire.header import (
    MAX_ARRAY_LENGTH,
    MAX_MESSAGE_LENGTH,
    NO_AUTO_START,
    NO_REPLY_EXPECTED,
    Header,
    MessageType,
)
from kdbus_core.abi import MessageFlag

__all__ = [
    "GVariantMessage",
    "Piece",
    "build_gvariant",
    "contradiction",
    "from_gvariant",
    "message_flags",
    "parse_gvariant",
    "to_gvariant",
    "to_gvariant_parts",
]

_U32 = {True: Struct("<I"), False: Struct(">I")}
_LITTLE, _BIG = b"lB"


def from_gvariant(
    message: GVariantMessage | Piece | Sequence[Piece],
    *,
    sender: str | None,
    destination: str | None = None,
    serial: int | None = None,
    reply_serial: int | None = None,
    little_endian: bool = NATIVE_LITTLE_ENDIAN,
) -> bytes:
    """Return the dbus1 message that says what a native message says, from this sender.

    `destination` None leaves the message's own. `serial` and `reply_serial` None are its cookies:
    `ValueError` if they are more than 32 bits have room for, for that is no fault of the native peer. The
    fields stand in the order of `build_message`.

    Raises `ProtocolError`, with an offset into the native message, if it is not well-formed or breaks a rule
    of D-Bus, or if either form of it is longer than 128 MiB (EBADMSG to the sender). Whether as many
    descriptors came along as it says (`GVariantMessage.unix_fds`) is for the caller to compare.
    """
    if not isinstance(message, GVariantMessage):
        message = parse_gvariant(message)
    if serial is None:
        serial = message.cookie
    if reply_serial is None:
        reply_serial = message.reply_cookie
    if not 0 < serial < 1 << 32 or not 0 <= reply_serial < 1 << 32:
        raise ValueError(f"serial {serial} or reply serial {reply_serial} out of range")
    body: list[Piece] = message.dbus1_body(little_endian=little_endian)
    fields, length, reply_serial_at = build_dbus1_fields(
        message.type,
        message.path,
        message.interface,
        message.member,
        message.error_name,
        message.destination if destination is None else destination,
        sender,
        message.signature,
        message.unix_fds,
        reply_serial != 0,
        little_endian,
    )
    if reply_serial_at:
        patched = bytearray(fields)
        _U32[little_endian].pack_into(patched, reply_serial_at, reply_serial)
        fields = bytes(patched)
    body_length = sum([len(piece) for piece in body])
    if length > MAX_ARRAY_LENGTH:
        raise ProtocolError("array of header fields longer than 64 MiB", FIXED_LENGTH)
    if FIXED_LENGTH + len(fields) + body_length > MAX_MESSAGE_LENGTH:
        raise ProtocolError("message longer than 128 MiB", message.length)
    mark = _LITTLE if little_endian else _BIG
    start = DBUS1_FIXED[little_endian].pack(mark, message.type, message.flags, 1, body_length, serial, length)
    return b"".join((start, fields, *body))


def to_gvariant(
    header: Header,
    body: Piece,
    *,
    cookie: int | None = None,
    reply_cookie: int | None = None,
    destination: str | None = None,
    little_endian: bool = NATIVE_LITTLE_ENDIAN,
) -> bytes:
    """Return the native message that says what a dbus1 message says, in one piece.

    As `to_gvariant_parts`, with one more copy.
    """
    return b"".join(
        to_gvariant_parts(
            header,
            body,
            cookie=cookie,
            reply_cookie=reply_cookie,
            destination=destination,
            little_endian=little_endian,
        )
    )


def to_gvariant_parts(
    header: Header,
    body: Piece,
    *,
    cookie: int | None = None,
    reply_cookie: int | None = None,
    destination: str | None = None,
    little_endian: bool = NATIVE_LITTLE_ENDIAN,
) -> tuple[Piece, Piece, Piece]:
    """Return a native message as (header and fields, body, signature and ending), to be sent in a row.

    `body` are the bytes of the dbus1 body, which must be valid for the header's signature (`body_checker`);
    `ValueError` may be raised if they are not. The body returned may be a view of them. `cookie`,
    `reply_cookie` and `destination` None are those of the header; the cookies are 1 to 2**64 - 1, a reply
    cookie of 0 is left out. The sender is left out.

    Raises `ProtocolError`, not fatal, if the native message would be longer than 128 MiB: some bodies take
    more room in GVariant.
    """
    signature = header.signature
    contents: Piece
    bulk = bulk_array(signature) if header.little_endian == little_endian else None
    if bulk is None:
        contents = dbus1_body_to_gvariant(
            signature, body, 0, len(body), header.little_endian, to_little_endian=little_endian
        )
    else:
        contents = memoryview(body)[bulk.start :]
    return build_gvariant(
        header.type,
        header.serial if cookie is None else cookie,
        flags=header.flags,
        path=header.path,
        interface=header.interface,
        member=header.member,
        error_name=header.error_name,
        destination=header.destination if destination is None else destination,
        reply_cookie=header.reply_serial if reply_cookie is None else reply_cookie,
        signature=signature,
        body=contents,
        unix_fds=header.unix_fds,
        little_endian=little_endian,
    )


def message_flags(message: Header | GVariantMessage) -> MessageFlag:
    """Return the broker's flags of a message.

    A reply is expected of a method call without NO_REPLY_EXPECTED and of nothing else: other messages mostly
    carry that flag, but need not.
    """
    flags = MessageFlag(0)
    if message.type == MessageType.METHOD_CALL and not message.flags & NO_REPLY_EXPECTED:
        flags |= MessageFlag.EXPECT_REPLY
    if message.flags & NO_AUTO_START:
        flags |= MessageFlag.NO_AUTO_START
    if message.type == MessageType.SIGNAL:
        flags |= MessageFlag.SIGNAL
    return flags


def contradiction(message: GVariantMessage, *, cookie: int, flags: int, cookie_reply: int) -> str | None:
    """Return in what a native message and what the broker was told with it disagree, None if they agree.

    `flags`, `cookie` and `cookie_reply` (0 where a reply is expected) are those of the SEND command. Who
    receives such a message must drop it: policy and reply tracking have judged something else.
    """
    if message.cookie != cookie:
        return f"cookie {message.cookie} in the message and {cookie} beside it"
    if message.reply_cookie != cookie_reply:
        return f"reply cookie {message.reply_cookie} in the message and {cookie_reply} beside it"
    if wrong := message_flags(message) ^ MessageFlag(flags):
        return f"flags {wrong!r} not as in the message"
    return None
