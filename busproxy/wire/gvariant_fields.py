"""The header fields of a native message: an array a{tv}, and the same fields in a dbus1 header.

What is said in them is taken if libdbus would take the same of dbus1 (`parse_header` judges). Fields of an
unknown number mean nothing, yet have to be well-formed. Peers repeat their headers, and so what was made of
short ones is remembered; of long ones it is not, which keeps a hostile peer from filling the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from busproxy.wire.errors import ProtocolError
from busproxy.wire.gvariant import NATIVE_LITTLE_ENDIAN, gvariant_body_to_dbus1
from busproxy.wire.gvariant_checks import read_ends
from busproxy.wire.gvariant_layout import ZEROS, build_offsets
from busproxy.wire.header import HeaderField, MessageType, parse_header
from busproxy.wire.names import MAX_NAME_LENGTH

__all__ = [
    "DBUS1_FIXED",
    "FIXED_LENGTH",
    "Dbus1Fields",
    "Fields",
    "build_dbus1_fields",
    "build_fields",
    "parse_fields",
]

FIXED_LENGTH = 16
"""What stands before the fields, in native messages and in dbus1."""

_U64 = {True: Struct("<Q"), False: Struct(">Q")}
_U32 = {True: Struct("<I"), False: Struct(">I")}
_LITTLE, _BIG = b"lB"

# What is remembered is no longer than this.
_LONGEST_KEPT_FIELDS = 512
_LONGEST_KEPT_PATH = 255

# What stands behind the value of a field: for texts their NUL, then the NUL and type of the variant.
_ENDINGS: dict[int, bytes] = {
    HeaderField.PATH: b"\0\0o",
    HeaderField.INTERFACE: b"\0\0s",
    HeaderField.MEMBER: b"\0\0s",
    HeaderField.ERROR_NAME: b"\0\0s",
    HeaderField.REPLY_SERIAL: b"\0t",
    HeaderField.DESTINATION: b"\0\0s",
    HeaderField.SENDER: b"\0\0s",
    HeaderField.UNIX_FDS: b"\0u",
}
_NUMBERS: dict[bool, dict[int, Struct]] = {
    order: {HeaderField.REPLY_SERIAL: _U64[order], HeaderField.UNIX_FDS: _U32[order]}
    for order in (True, False)
}

DBUS1_FIXED = {True: Struct("<4B3I"), False: Struct(">4B3I")}
"""The fixed part of a dbus1 header."""


class Fields(NamedTuple):
    """The header fields of a native message, found valid."""

    path: str | None
    interface: str | None
    member: str | None
    error_name: str | None
    destination: str | None
    sender: str | None
    reply_cookie: int
    unix_fds: int


def parse_fields(data: bytes, type_: int, little_endian: bool) -> Fields:
    """Return the fields in an array a{tv}, without padding behind it, of a message of this type.

    Raises `ProtocolError`, with an offset into the message.
    """
    if len(data) > _LONGEST_KEPT_FIELDS:
        return _parse_fields(data, type_, little_endian)
    return _kept_fields(data, type_, little_endian)


def _parse_fields(fields: bytes, type_: int, little_endian: bool) -> Fields:
    """Return the fields in an array a{tv} without its padding, for a message of this type."""
    texts: dict[int, str] = {}
    numbers: dict[int, int] = {}
    read_u64 = _U64[little_endian].unpack_from
    end = 0
    try:
        ends = read_ends(fields, 0, len(fields)) if fields else ()
    except ProtocolError as error:
        raise ProtocolError(error.reason, FIXED_LENGTH + error.offset) from None
    for stop in ends:
        at = (end + 7) & -8
        if stop < at + 8:
            raise ProtocolError("header field that ends where it must not", FIXED_LENGTH + at)
        if fields[end:at] != ZEROS[at - end]:
            raise ProtocolError("padding that is not zero between header fields", FIXED_LENGTH + end)
        code: int = read_u64(fields, at)[0]
        at += 8
        end = stop
        expected = _ENDINGS.get(code)
        if expected is None:
            if code == 0 or code == HeaderField.SIGNATURE:
                raise ProtocolError(f"header field {code}", FIXED_LENGTH + at - 8)
            _check_variant(fields, at, stop, little_endian)
            continue
        if code in texts or code in numbers:
            raise ProtocolError(f"header field {code} appears twice", FIXED_LENGTH + at - 8)
        length = stop - at - len(expected)
        if length < 0 or fields[at + length : stop] != expected:
            raise ProtocolError(f"header field {code} of a wrong type", FIXED_LENGTH + at)
        number = _NUMBERS[little_endian].get(code)
        if number is None:
            if length > MAX_NAME_LENGTH and code != HeaderField.PATH:
                raise ProtocolError("name longer than 255 bytes", FIXED_LENGTH + at)
            # Names and paths are ASCII: whatever else these bytes are, their check refuses it.
            texts[code] = fields[at : at + length].decode("latin-1")
            continue
        if length != number.size:
            raise ProtocolError(f"header field {code} of a wrong size", FIXED_LENGTH + at)
        numbers[code] = number.unpack_from(fields, at)[0]
    reply_cookie = numbers.get(HeaderField.REPLY_SERIAL)
    if reply_cookie == 0:
        raise ProtocolError("reply cookie 0", FIXED_LENGTH)
    judge = _kept_judgements if len(fields) <= _LONGEST_KEPT_FIELDS else _judge_fields
    judge(type_, reply_cookie is not None, tuple(texts.items()))
    return Fields(
        texts.get(HeaderField.PATH),
        texts.get(HeaderField.INTERFACE),
        texts.get(HeaderField.MEMBER),
        texts.get(HeaderField.ERROR_NAME),
        texts.get(HeaderField.DESTINATION),
        texts.get(HeaderField.SENDER),
        reply_cookie or 0,
        numbers.get(HeaderField.UNIX_FDS, 0),
    )


def _check_variant(fields: bytes, start: int, stop: int, little_endian: bool) -> None:
    """Raise `ProtocolError` unless this is a variant; what is a descriptor in it nobody will ask."""
    try:
        gvariant_body_to_dbus1("v", fields, start, stop, little_endian, fd_count=1 << 32)
    except ProtocolError as error:
        raise ProtocolError(error.reason, FIXED_LENGTH + error.offset) from None


def _judge_fields(type_: int, has_reply_serial: bool, texts: tuple[tuple[int, str], ...]) -> None:
    """Raise `ProtocolError` unless libdbus takes these fields in a message of this type."""
    given = dict(texts)
    try:
        fields = _build_dbus1_fields(
            type_,
            given.get(HeaderField.PATH),
            given.get(HeaderField.INTERFACE),
            given.get(HeaderField.MEMBER),
            given.get(HeaderField.ERROR_NAME),
            given.get(HeaderField.DESTINATION),
            given.get(HeaderField.SENDER),
            "",
            0,
            has_reply_serial,
            NATIVE_LITTLE_ENDIAN,
        )
        mark = _LITTLE if NATIVE_LITTLE_ENDIAN else _BIG
        start = DBUS1_FIXED[NATIVE_LITTLE_ENDIAN].pack(mark, type_, 0, 1, 0, 1, fields.length)
        parse_header(start + fields.data)
    except UnicodeEncodeError:
        raise ProtocolError("header field that is not ASCII", FIXED_LENGTH) from None
    except ProtocolError as error:
        raise ProtocolError(f"{error.reason} in header fields", FIXED_LENGTH) from None


_kept_fields = lru_cache(maxsize=1024)(_parse_fields)
_kept_judgements = lru_cache(maxsize=1024)(_judge_fields)


def build_fields(
    path: str | None,
    interface: str | None,
    member: str | None,
    error_name: str | None,
    destination: str | None,
    reply_cookie: int,
    unix_fds: int,
    little_endian: bool,
) -> tuple[bytes, int]:
    """Return the array a{tv} of a message, padded to 8, and where in the message it ends before that.

    What is None or 0 is left out.
    """
    is_kept = not reply_cookie and (path is None or len(path) <= _LONGEST_KEPT_PATH)
    build = _kept_built_fields if is_kept else _build_fields
    return build(path, interface, member, error_name, destination, reply_cookie, unix_fds, little_endian)


def _build_fields(
    path: str | None,
    interface: str | None,
    member: str | None,
    error_name: str | None,
    destination: str | None,
    reply_cookie: int,
    unix_fds: int,
    little_endian: bool,
) -> tuple[bytes, int]:
    u64 = _U64[little_endian].pack
    fields: list[tuple[int, bytes]] = []
    if path is not None:
        fields.append((HeaderField.PATH, path.encode("ascii")))
    if destination is not None:
        fields.append((HeaderField.DESTINATION, destination.encode("ascii")))
    if interface is not None:
        fields.append((HeaderField.INTERFACE, interface.encode("ascii")))
    if member is not None:
        fields.append((HeaderField.MEMBER, member.encode("ascii")))
    if error_name is not None:
        fields.append((HeaderField.ERROR_NAME, error_name.encode("ascii")))
    if reply_cookie:
        fields.append((HeaderField.REPLY_SERIAL, u64(reply_cookie)))
    if unix_fds:
        fields.append((HeaderField.UNIX_FDS, _U32[little_endian].pack(unix_fds)))
    out = bytearray()
    ends: list[int] = []
    for code, value in fields:
        out += ZEROS[-len(out) & 7] + u64(code) + value + _ENDINGS[code]
        ends.append(len(out))
    out += build_offsets(len(out), ends)
    end = FIXED_LENGTH + len(out)
    return bytes(out + ZEROS[-end & 7]), end


_kept_built_fields = lru_cache(maxsize=1024)(_build_fields)


# The same fields in dbus1


class Dbus1Fields(NamedTuple):
    """Everything of a dbus1 header behind its fixed part, but for the number of a reply serial."""

    data: bytes
    """With the padding up to the body."""
    length: int
    """Without it."""
    reply_serial_at: int
    """Where in `data` the reply serial is, which is 1; 0 if there is none."""


def build_dbus1_fields(
    type_: int,
    path: str | None,
    interface: str | None,
    member: str | None,
    error_name: str | None,
    destination: str | None,
    sender: str | None,
    signature: str,
    unix_fds: int,
    has_reply_serial: bool,
    little_endian: bool,
) -> Dbus1Fields:
    """Return the fields in the order of `build_message`; `UnicodeEncodeError` for what is not ASCII.

    What is None, 0 or '' is left out.
    """
    build = _build_dbus1_fields if path is not None and len(path) > _LONGEST_KEPT_PATH else _kept_dbus1_fields
    return build(
        type_,
        path,
        interface,
        member,
        error_name,
        destination,
        sender,
        signature,
        unix_fds,
        has_reply_serial,
        little_endian,
    )


def _build_dbus1_fields(
    type_: int,
    path: str | None,
    interface: str | None,
    member: str | None,
    error_name: str | None,
    destination: str | None,
    sender: str | None,
    signature: str,
    unix_fds: int,
    has_reply_serial: bool,
    little_endian: bool,
) -> Dbus1Fields:
    pack_u32 = _U32[little_endian].pack
    order = (
        (HeaderField.PATH, path),
        (HeaderField.DESTINATION, destination if type_ != MessageType.SIGNAL else None),
        (HeaderField.INTERFACE, interface),
        (HeaderField.MEMBER, member),
        (HeaderField.DESTINATION, destination if type_ == MessageType.SIGNAL else None),
        (HeaderField.ERROR_NAME, error_name),
    )
    out = bytearray()
    for code, text in order:
        if text is not None:
            out += _text_field(len(out), code, text, pack_u32)
    reply_serial_at = 0
    if has_reply_serial:
        out += ZEROS[-len(out) & 7] + bytes((HeaderField.REPLY_SERIAL, 1, 0x75, 0)) + pack_u32(1)
        reply_serial_at = len(out) - 4
    if signature:
        value = signature.encode("ascii")
        out += ZEROS[-len(out) & 7] + bytes((HeaderField.SIGNATURE, 1, 0x67, 0, len(value))) + value + b"\0"
    if sender is not None:
        out += _text_field(len(out), HeaderField.SENDER, sender, pack_u32)
    if unix_fds:
        out += ZEROS[-len(out) & 7] + bytes((HeaderField.UNIX_FDS, 1, 0x75, 0)) + pack_u32(unix_fds)
    length = len(out)
    return Dbus1Fields(bytes(out + ZEROS[-length & 7]), length, reply_serial_at)


_kept_dbus1_fields = lru_cache(maxsize=1024)(_build_dbus1_fields)


def _text_field(at: int, code: int, text: str, pack_u32: Callable[[int], bytes]) -> bytes:
    """Return a field that follows `at` bytes of others."""
    value = text.encode("ascii")
    kind = b"o\0" if code == HeaderField.PATH else b"s\0"
    return ZEROS[-at & 7] + bytes((code, 1)) + kind + pack_u32(len(value)) + value + b"\0"
