"""Whole messages, for those that the bus itself sends.

Fields stand in the order in which dbus-daemon's own messages have them: path, destination, interface,
member, error name, reply serial, signature, sender, unix fds; but a signal's destination follows its member.
No reader may depend on that; it makes captures of two buses comparable byte for byte.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from busproxy.wire.header import HeaderField, MessageType

__all__ = ["build_message"]

_FIXED = {True: struct.Struct("<BBBBIII").pack, False: struct.Struct(">BBBBIII").pack}
_U32 = {True: struct.Struct("<I").pack, False: struct.Struct(">I").pack}
_LITTLE, _BIG = b"lB"
_REPLY_SERIAL_FIELD = bytes((HeaderField.REPLY_SERIAL, 1, 0x75, 0))
_UNIX_FDS_FIELD = bytes((HeaderField.UNIX_FDS, 1, 0x75, 0))


def build_message(
    type: int,
    serial: int,
    *,
    flags: int = 0,
    path: str | None = None,
    interface: str | None = None,
    member: str | None = None,
    error_name: str | None = None,
    reply_serial: int = 0,
    destination: str | None = None,
    sender: str | None = None,
    signature: str = "",
    body: bytes = b"",
    unix_fds: int = 0,
    little_endian: bool = True,
) -> bytes:
    """Return the bytes of a message. Fields that are None, 0 or '' are left out.

    The caller answers for what it says: that names are valid, that the fields its type needs are there, and
    that the body fits its signature and byte order.
    """
    fields = [_text_field(HeaderField.PATH, path, little_endian)] if path is not None else []
    if destination is not None and type != MessageType.SIGNAL:
        fields.append(_text_field(HeaderField.DESTINATION, destination, little_endian))
    if interface is not None:
        fields.append(_text_field(HeaderField.INTERFACE, interface, little_endian))
    if member is not None:
        fields.append(_text_field(HeaderField.MEMBER, member, little_endian))
    if destination is not None and type == MessageType.SIGNAL:
        fields.append(_text_field(HeaderField.DESTINATION, destination, little_endian))
    if error_name is not None:
        fields.append(_text_field(HeaderField.ERROR_NAME, error_name, little_endian))
    if reply_serial:
        fields.append((_REPLY_SERIAL_FIELD + _U32[little_endian](reply_serial), 0))
    if signature:
        fields.append(_signature_field(signature))
    if sender is not None:
        fields.append(_text_field(HeaderField.SENDER, sender, little_endian))
    if unix_fds:
        fields.append((_UNIX_FDS_FIELD + _U32[little_endian](unix_fds), 0))
    array = b"".join([field for field, _ in fields])
    length = len(array) - fields[-1][1]
    mark = _LITTLE if little_endian else _BIG
    return _FIXED[little_endian](mark, type, flags, 1, len(body), serial, length) + array + body


@lru_cache(maxsize=4096)
def _text_field(code: HeaderField, text: str, little_endian: bool) -> tuple[bytes, int]:
    """A header field, padded to 8 bytes so that the next may follow, and how much of it is padding."""
    value = text.encode("ascii")
    kind = b"o" if code == HeaderField.PATH else b"s"
    field = bytes((code, 1)) + kind + b"\0" + _U32[little_endian](len(value)) + value + b"\0"
    padding = -len(field) & 7
    return field + bytes(padding), padding


@lru_cache(maxsize=256)
def _signature_field(signature: str) -> tuple[bytes, int]:
    field = bytes((HeaderField.SIGNATURE, 1, 0x67, 0, len(signature))) + signature.encode("ascii") + b"\0"
    padding = -len(field) & 7
    return field + bytes(padding), padding
