"""The header of a message: framing, the fixed part, the array of fields.

A header is 16 fixed bytes, of which the last four are the length of the array of fields, then the array (a
struct of a code and a variant per field), then zeros up to a multiple of 8, where the body starts. All
offsets count from the first byte of the message, so that they stay true when the buffer moves; alignment
counts from there too, for messages follow each other in a stream without padding.

Accepted is what libdbus accepts. That is stricter than the specification in two places, marked below (the
retired field 10 has a type, reserved names are prefixes), and as tolerant elsewhere: unknown message types
need no field at all, unknown flags and fields mean nothing, though the value of an unknown field must be
well-formed. The number of fds is not compared with what came along: only the socket's owner knows that.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from busproxy.wire.body import MAX_ARRAY_LENGTH, Data, variant_step
from busproxy.wire.errors import ProtocolError
from busproxy.wire.names import (
    is_bus_name,
    is_error_name,
    is_interface_name,
    is_member_name,
    is_object_path,
)
from busproxy.wire.signatures import validate_signature

__all__ = [
    "ALLOW_INTERACTIVE_AUTHORIZATION",
    "MAX_ARRAY_LENGTH",
    "MAX_MESSAGE_LENGTH",
    "NO_AUTO_START",
    "NO_REPLY_EXPECTED",
    "Header",
    "HeaderField",
    "MessageType",
    "fields_with_sender",
    "message_length",
    "parse_header",
]

MAX_MESSAGE_LENGTH = 134217728
"""Longest message, in bytes, header and body together."""

NO_REPLY_EXPECTED = 1
NO_AUTO_START = 2
ALLOW_INTERACTIVE_AUTHORIZATION = 4


class MessageType(IntEnum):
    """The message types the specification knows; others are valid and to be ignored."""

    METHOD_CALL = 1
    METHOD_RETURN = 2
    ERROR = 3
    SIGNAL = 4


class HeaderField(IntEnum):
    """The header fields libdbus knows; others are valid and to be ignored."""

    PATH = 1
    INTERFACE = 2
    MEMBER = 3
    ERROR_NAME = 4
    REPLY_SERIAL = 5
    DESTINATION = 6
    SENDER = 7
    SIGNATURE = 8
    UNIX_FDS = 9
    CONTAINER_INSTANCE = 10  # no longer in the specification, yet libdbus checks its type


_LITTLE_ENDIAN = ord("l")
_BIG_ENDIAN = ord("B")
_FIXED_LENGTH = 16

_FIXED = {True: struct.Struct("<BBBBIII").unpack_from, False: struct.Struct(">BBBBIII").unpack_from}
_LENGTHS = {
    _LITTLE_ENDIAN: struct.Struct("<4xI4xI").unpack_from,
    _BIG_ENDIAN: struct.Struct(">4xI4xI").unpack_from,
}
_READ_U32 = {True: struct.Struct("<I").unpack_from, False: struct.Struct(">I").unpack_from}
_U32 = {True: struct.Struct("<I").pack, False: struct.Struct(">I").pack}
_VARIANT_STEP = {order: variant_step(little_endian=order) for order in (True, False)}

# Inside the array (1), its element (2), where libdbus checks the variants of unknown fields.
_DEPTH_OF_FIELD = 2

# What follows the code of each known field: the signature of its variant, length and NUL included.
_STRING = b"\x01s\x00"
_OBJECT_PATH = b"\x01o\x00"
_SIGNATURE = b"\x01g\x00"
_UINT32 = b"\x01u\x00"
_TYPES = (
    b"",
    _OBJECT_PATH,
    _STRING,
    _STRING,
    _STRING,
    _UINT32,
    _STRING,
    _STRING,
    _SIGNATURE,
    _UINT32,
    _OBJECT_PATH,
)
_LAST_KNOWN_FIELD = len(_TYPES) - 1

# libdbus compares these as prefixes, and so refuses "org.freedesktop.DBus.Locale" as well.
_LOCAL_PATH = "/org/freedesktop/DBus/Local"
_LOCAL_INTERFACE = "org.freedesktop.DBus.Local"


class Header:
    """A valid header, taken apart. Offsets count from the start of the message."""

    __slots__ = (
        "body_length",
        "destination",
        "error_name",
        "fields_length",
        "flags",
        "interface",
        "length",
        "little_endian",
        "member",
        "path",
        "reply_serial",
        "reply_serial_at",
        "sender",
        "sender_span",
        "serial",
        "signature",
        "type",
        "unix_fds",
    )

    little_endian: bool
    type: int
    """A `MessageType` or an unknown one, 1 to 255."""
    flags: int
    body_length: int
    serial: int
    fields_length: int
    """Length of the array of fields, without the padding that follows it."""
    length: int
    """Where the body starts."""
    path: str | None
    interface: str | None
    member: str | None
    error_name: str | None
    destination: str | None
    sender: str | None
    """What the peer wrote: to be replaced, never to be believed."""
    reply_serial: int
    """0 if absent."""
    reply_serial_at: int
    """Offset of the four bytes of the reply serial; 0 if absent."""
    signature: str
    """'' if absent."""
    unix_fds: int
    sender_span: tuple[int, int] | None
    """Where the sender's field is: its first byte and the end of its value."""

    def __init__(self) -> None:
        self.path = None
        self.interface = None
        self.member = None
        self.error_name = None
        self.destination = None
        self.sender = None
        self.reply_serial = 0
        self.reply_serial_at = 0
        self.signature = ""
        self.unix_fds = 0
        self.sender_span = None


def message_length(data: Data, start: int) -> int:
    """Return the length of the message that starts at `start`, from its first 16 bytes, which must be there.

    Raises `ProtocolError` if they cannot be the beginning of a message. The rest of the header is not judged.
    """
    read_lengths = _LENGTHS.get(data[start])
    if read_lengths is None:
        raise ProtocolError("byte order mark other than 'l' and 'B'", 0)
    if data[start + 3] != 1:
        raise ProtocolError(f"protocol version {data[start + 3]}", 3)
    body_length, fields_length = read_lengths(data, start)
    length: int = _FIXED_LENGTH + ((fields_length + 7) & -8) + body_length
    # Above 64 MiB the fields are invalid whatever they hold; there is no reason to wait for all of them.
    if fields_length > MAX_ARRAY_LENGTH:
        raise ProtocolError("array of header fields longer than 64 MiB", 12)
    if length > MAX_MESSAGE_LENGTH:
        raise ProtocolError("message longer than 128 MiB", 4)
    return length


def parse_header(data: Data, start: int = 0) -> Header:
    """Return the header of the message that starts at `start`.

    The whole header must be there and its lengths acceptable (`message_length`). Raises `ProtocolError` if
    libdbus would not take the header; whether the body fits its signature is for `body_checker` to tell.
    """
    if data[start] not in _LENGTHS:
        raise ProtocolError("byte order mark other than 'l' and 'B'", 0)
    little_endian = data[start] == _LITTLE_ENDIAN
    header = Header()
    header.little_endian = little_endian
    _, type_, flags, version, body_length, serial, fields_length = _FIXED[little_endian](data, start)
    if version != 1:
        raise ProtocolError(f"protocol version {version}", 3)
    if type_ == 0:
        raise ProtocolError("message type 0", 1)
    if serial == 0:
        raise ProtocolError("serial 0", 8)
    header.type = type_
    header.flags = flags
    header.body_length = body_length
    header.serial = serial
    header.fields_length = fields_length
    end = _FIXED_LENGTH + fields_length
    header.length = (end + 7) & -8
    fields = bytes(memoryview(data)[start : start + end])  # index = offset, and nothing behind the end
    if data[start + end : start + header.length] != bytes(header.length - end):
        raise ProtocolError("padding that is not zero after the header fields", end)
    try:
        pos = _parse_fields(header, fields)
    except (IndexError, struct.error):
        pos = 0
    except ProtocolError as error:
        if error.offset <= end:
            raise
        pos = 0
    if pos != end:
        raise ProtocolError("header field that crosses the end of the array", end)
    _require_fields(header)
    return header


def _parse_fields(header: Header, fields: bytes) -> int:
    """Take in all fields and return where they end; that is the end of the data unless a field crosses it."""
    little_endian = header.little_endian
    read_u32 = _READ_U32[little_endian]
    check_variant = _VARIANT_STEP[little_endian]
    end = len(fields)
    seen = 0
    pos = _FIXED_LENGTH
    while pos < end:
        if pos & 7:
            at = (pos + 7) & -8
            if any(fields[pos:at]):
                raise ProtocolError("padding that is not zero between header fields", pos)
            pos = at
        code = fields[pos]
        if code > _LAST_KNOWN_FIELD:
            pos = check_variant(fields, pos + 1, _DEPTH_OF_FIELD)
            continue
        if code == 0:
            raise ProtocolError("header field code 0", pos)
        # A variant of another type may be well-formed or not: the field is wrong in both cases.
        type_ = _TYPES[code]
        if fields[pos + 1 : pos + 4] != type_:
            raise ProtocolError(f"header field {code} of a wrong type", pos + 1)
        if seen >> code & 1:
            raise ProtocolError(f"header field {code} appears twice", pos)
        seen |= 1 << code
        at = pos + 4
        if type_ is _UINT32:
            number = read_u32(fields, at)[0]
            if code == HeaderField.UNIX_FDS:
                header.unix_fds = number
            else:
                if number == 0:
                    raise ProtocolError("reply serial 0", at)
                header.reply_serial = number
                header.reply_serial_at = at
            pos = at + 4
            continue
        if type_ is _SIGNATURE:
            at += 1
            stop = at + fields[at - 1]
        else:
            at += 4
            stop = at + read_u32(fields, at - 4)[0]
        if fields[stop]:
            raise ProtocolError(f"header field {code} without a terminating NUL", stop)
        # Names, paths and signatures are ASCII: whatever else these bytes are, their check refuses it.
        _take_text(header, code, fields[at:stop].decode("latin-1"), at)
        if code == HeaderField.SENDER:
            header.sender_span = (pos, stop + 1)
        pos = stop + 1
    return pos


def _take_text(header: Header, code: int, text: str, at: int) -> None:
    match code:
        case HeaderField.PATH:
            if not is_object_path(text):
                raise ProtocolError("invalid object path", at)
            if text.startswith(_LOCAL_PATH):
                raise ProtocolError("reserved object path", at)
            header.path = text
        case HeaderField.INTERFACE:
            if not is_interface_name(text):
                raise ProtocolError("invalid interface name", at)
            if text.startswith(_LOCAL_INTERFACE):
                raise ProtocolError("reserved interface name", at)
            header.interface = text
        case HeaderField.MEMBER:
            if not is_member_name(text):
                raise ProtocolError("invalid member name", at)
            header.member = text
        case HeaderField.ERROR_NAME:
            if not is_error_name(text):
                raise ProtocolError("invalid error name", at)
            header.error_name = text
        case HeaderField.DESTINATION:
            if not is_bus_name(text):
                raise ProtocolError("invalid destination", at)
            header.destination = text
        case HeaderField.SENDER:
            if not is_bus_name(text):
                raise ProtocolError("invalid sender", at)
            header.sender = text
        case HeaderField.SIGNATURE:
            try:
                validate_signature(text)
            except ProtocolError as error:
                raise ProtocolError(error.reason, at + error.offset) from None
            header.signature = text
        case HeaderField.CONTAINER_INSTANCE:
            if not is_object_path(text):
                raise ProtocolError("invalid object path", at)


def _require_fields(header: Header) -> None:
    """Raise unless the fields are there that a message of this type must have."""
    type_ = header.type
    missing = ""
    if type_ == MessageType.METHOD_CALL or type_ == MessageType.SIGNAL:
        if header.path is None:
            missing = "path"
        elif header.member is None:
            missing = "member"
        elif type_ == MessageType.SIGNAL and header.interface is None:
            missing = "interface"
    elif type_ == MessageType.METHOD_RETURN or type_ == MessageType.ERROR:
        if not header.reply_serial:
            missing = "reply serial"
        elif type_ == MessageType.ERROR and header.error_name is None:
            missing = "error name"
    if missing:
        raise ProtocolError(f"message of type {type_} without {missing}", header.length)


def fields_with_sender(data: Data, start: int, header: Header, sender: str) -> tuple[int, bytes]:
    """Return the fields of a message with `sender` as its only sender: (length of the array, its bytes).

    The bytes are those from offset 16 to the body, padding included; the length does not count the padding.
    A sender that the peer wrote is left out, ours stands at the end, all other fields stay byte for byte.
    Fields begin at multiples of 8, so that cutting one out with its padding keeps the others aligned.
    """
    first = start + _FIXED_LENGTH
    end = first + header.fields_length
    span = header.sender_span
    if span is None:
        kept = bytes(data[first:end])
    else:
        after = start + ((span[1] + 7) & -8)
        kept = bytes(data[first : start + span[0]]) + bytes(data[after:end])
    name = sender.encode("ascii")
    field = b"\x07\x01s\x00" + _U32[header.little_endian](len(name)) + name + b"\x00"
    fields = kept + bytes(-len(kept) & 7) + field
    return len(fields), fields + bytes(-len(fields) & 7)
