"""Whole native messages: a GVariant of the type (yyyyuta{tv}v), format version 2.

Byte order, type, flags, the version, zero, the cookie of 64 bits, the header fields by number, and the body,
a variant with the struct of all arguments:

    16 fixed bytes | fields | padding to 8 | body | NUL, its signature in parentheses | end of the fields

The end of the fields, counted from the message's start, is in the last 1, 2, 4 or 8 bytes, by the length of
the whole. Fields have the numbers of dbus1. The reply serial is a cookie (t); a signature field is wrong,
since the body tells it; a field of an unknown number means nothing, yet has to be well-formed. Native
messages have the byte order of the machine; either one is read.

A message may lie in several pieces, as it came; how it is cut means nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any

from busproxy.wire.body import MAX_ARRAY_LENGTH
from busproxy.wire.errors import ProtocolError
from busproxy.wire.gvariant import NATIVE_LITTLE_ENDIAN, bulk_array, decode, gvariant_body_to_dbus1
from busproxy.wire.gvariant_fields import FIXED_LENGTH, build_fields, parse_fields
from busproxy.wire.gvariant_layout import ZEROS, offset_size, word_size
from busproxy.wire.header import MAX_MESSAGE_LENGTH
from busproxy.wire.signatures import MAX_SIGNATURE_LENGTH, validate_signature

__all__ = [
    "VERSION",
    "GVariantMessage",
    "Piece",
    "build_gvariant",
    "parse_gvariant",
]

VERSION = 2
"""The protocol version in the header of a native message."""

Piece = bytes | bytearray | memoryview

_FIXED = {True: Struct("<4B4xQ"), False: Struct(">4B4xQ")}
_U64 = {True: Struct("<Q"), False: Struct(">Q")}
_U32 = {True: Struct("<I"), False: Struct(">I")}
_LITTLE, _BIG = b"lB"
_IS_LITTLE_ENDIAN = {_LITTLE: True, _BIG: False}

# How much of the end of a message can be of interest: NUL, parentheses, signature, one offset.
_LONGEST_ENDING = 1 + 2 + MAX_SIGNATURE_LENGTH + 8

# A message in pieces up to this size is joined before it is looked at: that costs less than the pieces do.
_SMALL = 65536


class GVariantMessage:
    """A native message, its header judged and its body not yet.

    It refers to the payload it was parsed from, which must stay as it is while the message is in use.
    """

    __slots__ = (
        "_body_end",
        "_body_start",
        "_pieces",
        "cookie",
        "destination",
        "error_name",
        "flags",
        "interface",
        "length",
        "little_endian",
        "member",
        "path",
        "reply_cookie",
        "sender",
        "signature",
        "type",
        "unix_fds",
    )

    _pieces: Sequence[Piece]
    _body_start: int
    _body_end: int
    little_endian: bool
    """The byte order of its numbers."""
    type: int
    """A `MessageType` or an unknown one, 1 to 255."""
    flags: int
    cookie: int
    """1 to 2**64 - 1."""
    reply_cookie: int
    """The cookie of the message that this one answers; 0 if absent."""
    path: str | None
    interface: str | None
    member: str | None
    error_name: str | None
    destination: str | None
    sender: str | None
    """What the message says of its sender: never to be believed."""
    unix_fds: int
    """How many descriptors it says come along: whether they do, only their receiver knows."""
    signature: str
    """Of the body, without the parentheses; '' for a body without arguments."""
    length: int
    """Of the whole message, in bytes."""

    def values(self) -> list[Any]:
        """Return the arguments, as `unmarshal` does; raises `ProtocolError` if the body is not valid."""
        data, start, end = self._body()
        try:
            return decode(self.signature, data, start, end, self.little_endian, fd_count=self.unix_fds)
        except ProtocolError as error:
            raise ProtocolError(error.reason, error.offset - start + self._body_start) from None

    def dbus1_body(self, *, little_endian: bool = NATIVE_LITTLE_ENDIAN) -> list[Piece]:
        """Return the dbus1 body in pieces, some of which may be views of the payload.

        Raises `ProtocolError` if the body is not valid.
        """
        bulk = bulk_array(self.signature) if self.little_endian == little_endian else None
        if bulk is None:
            return [self._convert_body(little_endian)]
        length = self._body_end - self._body_start
        if length % bulk.size:
            raise ProtocolError("value of a wrong size", self._body_start)
        if length > MAX_ARRAY_LENGTH:
            raise ProtocolError("array longer than 64 MiB", self._body_start)
        start_of_array = _U32[little_endian].pack(length) + ZEROS[bulk.start - 4]
        return [start_of_array, *_cut(self._pieces, self._body_start, self._body_end)]

    def _convert_body(self, little_endian: bool) -> bytearray:
        data, start, end = self._body()
        try:
            return gvariant_body_to_dbus1(
                self.signature,
                data,
                start,
                end,
                self.little_endian,
                to_little_endian=little_endian,
                fd_count=self.unix_fds,
            )
        except ProtocolError as error:
            raise ProtocolError(error.reason, error.offset - start + self._body_start) from None

    def _body(self) -> tuple[bytes, int, int]:
        """Return data and where in them the body begins and ends."""
        pieces = self._pieces
        if len(pieces) == 1 and isinstance(pieces[0], bytes):
            return pieces[0], self._body_start, self._body_end
        body = b"".join(_cut(pieces, self._body_start, self._body_end))
        return body, 0, len(body)


def _cut(pieces: Sequence[Piece], start: int, end: int) -> list[memoryview]:
    """Return the bytes from `start` to `end` of all pieces in a row, without a copy."""
    found = []
    at = 0
    for piece in pieces:
        size = len(piece)
        if at < end and at + size > start:
            found.append(memoryview(piece)[max(0, start - at) : end - at])
        at += size
    return found


def parse_gvariant(data: Piece | Sequence[Piece]) -> GVariantMessage:
    """Return the native message that these bytes, or these pieces in a row, are. The body is not judged.

    Memoryviews are of bytes. Raises `ProtocolError`, with an offset into the message, if they are no message
    of version 2, are longer than 128 MiB, or have header fields that libdbus would not take of dbus1.
    """
    pieces = (data,) if isinstance(data, bytes | bytearray | memoryview) else data
    length = sum([len(piece) for piece in pieces])
    if length > MAX_MESSAGE_LENGTH:
        raise ProtocolError("message longer than 128 MiB", MAX_MESSAGE_LENGTH)
    if length < FIXED_LENGTH + 1:
        raise ProtocolError("message without a header", length)
    if length <= _SMALL and not isinstance(data, bytes):
        pieces = (b"".join(pieces),)
    head = _bytes(pieces, 0, FIXED_LENGTH)
    little_endian = _IS_LITTLE_ENDIAN.get(head[0])
    if little_endian is None:
        raise ProtocolError("byte order mark other than 'l' and 'B'", 0)
    _, type_, flags, version, cookie = _FIXED[little_endian].unpack(head)
    if version != VERSION:
        raise ProtocolError(f"protocol version {version}", 3)
    if type_ == 0:
        raise ProtocolError("message type 0", 1)
    if cookie == 0:
        raise ProtocolError("cookie 0", 8)

    ending = _bytes(pieces, max(0, length - _LONGEST_ENDING), length)
    word = word_size(length)
    fields_end = int.from_bytes(ending[-word:], "little")
    body_start = (fields_end + 7) & -8
    if fields_end < FIXED_LENGTH or body_start > length - word:
        raise ProtocolError("header fields that do not end in the message", length - word)
    if offset_size(length - word, 1) != word:
        raise ProtocolError("framing offset larger than it need be", length - word)
    nul = ending.rfind(0, 0, -word)
    if nul < 0 or length - len(ending) + nul < body_start:
        raise ProtocolError("body without a signature", length - word)
    signature = ending[nul + 1 : -word].decode("latin-1")
    if signature[:1] != "(" or signature[-1:] != ")":
        raise ProtocolError("body that is not a struct", length - len(ending) + nul + 1)
    try:
        validate_signature(signature[1:-1])
    except ProtocolError as error:
        raise ProtocolError(error.reason, length - len(ending) + nul + 2 + error.offset) from None

    fields = _bytes(pieces, FIXED_LENGTH, body_start)
    if fields_end != body_start and fields[fields_end - body_start :] != ZEROS[body_start - fields_end]:
        raise ProtocolError("padding that is not zero after the header fields", fields_end)
    found = parse_fields(fields[: fields_end - FIXED_LENGTH], type_, little_endian)

    message = GVariantMessage()
    message._pieces = pieces
    message._body_start = body_start
    message._body_end = length - len(ending) + nul
    message.little_endian = little_endian
    message.type = type_
    message.flags = flags
    message.cookie = cookie
    message.signature = signature[1:-1]
    message.length = length
    (
        message.path,
        message.interface,
        message.member,
        message.error_name,
        message.destination,
        message.sender,
        message.reply_cookie,
        message.unix_fds,
    ) = found
    return message


def _bytes(pieces: Sequence[Piece], start: int, end: int) -> bytes:
    if len(pieces) == 1:
        return bytes(pieces[0][start:end])
    return b"".join(_cut(pieces, start, end))


def build_gvariant(
    type: int,
    cookie: int,
    *,
    flags: int = 0,
    path: str | None = None,
    interface: str | None = None,
    member: str | None = None,
    error_name: str | None = None,
    destination: str | None = None,
    reply_cookie: int = 0,
    signature: str = "",
    body: Piece = b"\0",
    unix_fds: int = 0,
    little_endian: bool = NATIVE_LITTLE_ENDIAN,
) -> tuple[Piece, Piece, Piece]:
    """Return a native message as (header and fields, body, signature and ending).

    `body` is the GVariant struct of the arguments (`gvariant.encode`) in the byte order of the message.
    Fields that are None or 0 are left out. The caller answers for what it says: that names are valid, that
    the fields its type needs are there, and that the body has that signature. Raises `ProtocolError`, not
    fatal, if the message would be longer than 128 MiB.
    """
    fields, fields_end = build_fields(
        path, interface, member, error_name, destination, reply_cookie, unix_fds, little_endian
    )
    mark = _LITTLE if little_endian else _BIG
    start = _FIXED[little_endian].pack(mark, type, flags, VERSION, cookie) + fields
    ending = b"\0(" + signature.encode("ascii") + b")"
    size = len(start) + len(body) + len(ending)
    word = offset_size(size, 1)
    if size + word > MAX_MESSAGE_LENGTH:
        raise ProtocolError("message longer than 128 MiB in GVariant", MAX_MESSAGE_LENGTH, fatal=False)
    return start, body, ending + fields_end.to_bytes(word, "little")
