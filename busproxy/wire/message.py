"""Whole messages, for those that the bus itself sends.

Fields stand in the order in which dbus-daemon's own messages have them: path, destination, interface,
member, error name, reply serial, signature, sender, unix fds; but a signal's destination follows its member.
No reader may depend on that; it makes captures of two buses comparable byte for byte.
"""

from __future__ import annotations

import struct

from busproxy.wire.header import HeaderField, MessageType

__all__ = ["build_message"]

_FIXED = {True: struct.Struct("<BBBBIII").pack, False: struct.Struct(">BBBBIII").pack}
_U32 = {True: struct.Struct("<I").pack, False: struct.Struct(">I").pack}


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
    u32 = _U32[little_endian]
    fields = bytearray()

    def add_text(code: HeaderField, text: str | None) -> None:
        if text is not None:
            value = text.encode("ascii")
            fields.extend(bytes(-len(fields) & 7))
            fields.extend((code, 1, 0x6F if code == HeaderField.PATH else 0x73, 0))
            fields.extend(u32(len(value)))
            fields.extend(value)
            fields.append(0)

    def add_number(code: HeaderField, number: int) -> None:
        if number:
            fields.extend(bytes(-len(fields) & 7))
            fields.extend((code, 1, 0x75, 0))
            fields.extend(u32(number))

    add_text(HeaderField.PATH, path)
    if type != MessageType.SIGNAL:
        add_text(HeaderField.DESTINATION, destination)
    add_text(HeaderField.INTERFACE, interface)
    add_text(HeaderField.MEMBER, member)
    if type == MessageType.SIGNAL:
        add_text(HeaderField.DESTINATION, destination)
    add_text(HeaderField.ERROR_NAME, error_name)
    add_number(HeaderField.REPLY_SERIAL, reply_serial)
    if signature:
        fields.extend(bytes(-len(fields) & 7))
        fields.extend((HeaderField.SIGNATURE, 1, 0x67, 0, len(signature)))
        fields.extend(signature.encode("ascii"))
        fields.append(0)
    add_text(HeaderField.SENDER, sender)
    add_number(HeaderField.UNIX_FDS, unix_fds)

    mark = ord("l") if little_endian else ord("B")
    fixed = _FIXED[little_endian](mark, type, flags, 1, len(body), serial, len(fields))
    return fixed + bytes(fields) + bytes(-len(fields) & 7) + body
