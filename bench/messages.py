"""Message bytes, built once and patched, and just enough framing to count what comes back.

A load loop never marshals: it takes a finished message from here and overwrites its serial in place, which is
why the offsets of the serial and (in replies built here) of the reply serial are constants. Everything is in
the machine's byte order; the buses measured run on the same machine and answer in it.

`build_*` and `parse_fields` serve the preparation and the first message of each kind; `FRAMING` and
`frame_length` are what the loops use for every message.
"""

import struct
import sys

ENDIAN_MARK = ord("l") if sys.byteorder == "little" else ord("B")

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
NO_REPLY_EXPECTED = 1

PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE = range(1, 9)

#: Bytes before the array of header fields, its length included.
FIXED_LENGTH = 16
SERIAL_OFFSET = 8
#: Holds for messages of `build_reply`, which puts that field first.
REPLY_SERIAL_OFFSET = 20

#: Message type, body length, serial, length of the header fields; at the start of a message.
FRAMING = struct.Struct("=xBxxIII")
UINT32 = struct.Struct("=I")

_FIELD_TYPES = {
    PATH: "o",
    INTERFACE: "s",
    MEMBER: "s",
    ERROR_NAME: "s",
    REPLY_SERIAL: "u",
    DESTINATION: "s",
    SENDER: "s",
    SIGNATURE: "g",
}


class BadMessageError(Exception):
    """A message from the bus that this module cannot read."""


def _pad(data: bytearray, alignment: int) -> None:
    data.extend(bytes(-len(data) % alignment))


def _build(
    kind: int, flags: int, fields: list[tuple[int, str | int]], signature: str, body: bytes
) -> bytearray:
    if signature:
        fields = [*fields, (SIGNATURE, signature)]
    array = bytearray()
    for code, value in fields:
        _pad(array, 8)
        type_code = _FIELD_TYPES[code]
        array += bytes((code, 1)) + type_code.encode() + b"\0"
        if isinstance(value, int):
            array += UINT32.pack(value)
        elif type_code == "g":
            array += bytes((len(value),)) + value.encode() + b"\0"
        else:
            text = value.encode()
            array += UINT32.pack(len(text)) + text + b"\0"
    message = bytearray((ENDIAN_MARK, kind, flags, 1))
    message += struct.pack("=III", len(body), 1, len(array))
    message += array
    _pad(message, 8)
    message += body
    return message


def build_call(
    destination: str, path: str, interface: str, member: str, *, signature: str = "", body: bytes = b""
) -> bytearray:
    """A method call with serial 1."""
    fields: list[tuple[int, str | int]] = [
        (PATH, path),
        (DESTINATION, destination),
        (INTERFACE, interface),
        (MEMBER, member),
    ]
    return _build(CALL, 0, fields, signature, body)


def build_reply(destination: str, *, signature: str = "", body: bytes = b"") -> bytearray:
    """A method return with serial 1, for the call with serial 1; both are there to be patched."""
    fields: list[tuple[int, str | int]] = [(REPLY_SERIAL, 1), (DESTINATION, destination)]
    return _build(RETURN, NO_REPLY_EXPECTED, fields, signature, body)


def build_signal(path: str, interface: str, member: str) -> bytearray:
    """A broadcast signal without a body, with serial 1."""
    return _build(
        SIGNAL, NO_REPLY_EXPECTED, [(PATH, path), (INTERFACE, interface), (MEMBER, member)], "", b""
    )


def build_strings(*values: str) -> bytes:
    """A body of strings."""
    body = bytearray()
    for value in values:
        _pad(body, 4)
        text = value.encode()
        body += UINT32.pack(len(text)) + text + b"\0"
    return bytes(body)


def build_bytes(total: int) -> bytes:
    """A body of signature `ay` that is `total` bytes long, the array's length included (`total` ≥ 4)."""
    return UINT32.pack(total - 4) + bytes(total - 4)


def frame_length(data: bytes | bytearray | memoryview, offset: int = 0) -> int:
    """Length of the message at `offset`, whose first 16 bytes are there."""
    _, body_length, _, fields_length = FRAMING.unpack_from(data, offset)
    return int(FIXED_LENGTH + (fields_length + 7 & ~7) + body_length)


def parse_fields(message: bytes) -> dict[int, str | int]:
    """The header fields of a whole message; BadMessageError when it is in the other byte order or broken."""
    if message[0] != ENDIAN_MARK:
        raise BadMessageError(f"byte order mark {message[0]:#04x}")
    fields: dict[int, str | int] = {}
    offset = FIXED_LENGTH
    try:
        end = FIXED_LENGTH + FRAMING.unpack_from(message)[3]
        while offset < end:
            offset += -offset % 8
            code, signature_length, type_code = message[offset : offset + 3]
            offset += 4
            if signature_length != 1:
                raise BadMessageError(f"header field {code} is not of a basic type")
            if type_code == ord("u"):
                fields[code] = UINT32.unpack_from(message, offset)[0]
                offset += 4
                continue
            if type_code == ord("g"):
                length = message[offset]
                offset += 1
            else:
                length = UINT32.unpack_from(message, offset)[0]
                offset += 4
            fields[code] = message[offset : offset + length].decode()
            offset += length + 1
    except (struct.error, ValueError, IndexError) as error:
        raise BadMessageError(f"header field at byte {offset}: {error}") from error
    return fields


def parse_string(message: bytes) -> str:
    """The string a body begins with."""
    start = FIXED_LENGTH + (FRAMING.unpack_from(message)[3] + 7 & ~7)
    (length,) = UINT32.unpack_from(message, start)
    return message[start + 4 : start + 4 + length].decode()
