"""D-Bus messages on a kdbus bus, read as far as people want to see them.

On such a bus a payload of the D-Bus type is one GVariant value of the type (yyyyuta{tv}v): byte order,
message type, flags, version (2) and an unused number, the cookie, the header fields by number, and the body,
a structure of the arguments.  `read_payload` reads the header, and the arguments where there are not too
many bytes of them.  Whatever is not well formed is no D-Bus message here: then people see bytes.

GVariant in short: values lie at multiples of their alignment; where those of no fixed size end is told by
offsets at the end of what contains them, as wide as its size requires and always little endian; a variant is
a value, a zero byte, and its type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple

MAX_DECODED = 64 * 1024
"""Bytes of header fields, and of a body, beyond which they are not read."""

_TYPES = {1: "method call", 2: "method return", 3: "error", 4: "signal"}
_FIELDS = {
    1: ("path", "o"),
    2: ("interface", "s"),
    3: ("member", "s"),
    4: ("error_name", "s"),
    5: ("reply_cookie", "tu"),
    6: ("destination", "s"),
    7: ("sender", "s"),
    9: ("fds", "u"),
}
"""Names of header fields, and the types that they may have."""
_ORDERS = {ord("l"): "<", ord("B"): ">"}
_FIELDS_START = 16
_MAX_DEPTH = 64
_MAX_TYPE = 512
_NUMBERS = {
    "y": "B",
    "b": "B",
    "n": "h",
    "q": "H",
    "i": "i",
    "u": "I",
    "x": "q",
    "t": "Q",
    "d": "d",
    "h": "i",
}
_STRINGS = frozenset("sog")
_STRUCTS = {
    (order, type): Struct(order + letter) for order in _ORDERS.values() for type, letter in _NUMBERS.items()
}


class Payload(NamedTuple):
    """A D-Bus message: `fields` by name, and the arguments as JSON has them, None where they were not read.

    Of the arguments a variant is {"type": …, "data": …}, a dictionary with keys other than strings a list of
    pairs, and a number that JSON does not have a string.
    """

    type: str
    fields: dict[str, Any]
    signature: str
    arguments: list[Any] | None


class _Malformed(ValueError):
    """Not a value of its type."""


def read_payload(parts: Sequence[memoryview | bytes]) -> Payload | None:
    """The D-Bus message that a payload is; None if it is none."""
    size = sum(len(part) for part in parts)
    head = _cut(parts, 0, _FIELDS_START)
    if len(head) < _FIELDS_START or head[3] != 2 or head[0] not in _ORDERS or head[1] not in _TYPES:
        return None
    reader = _Reader(_ORDERS[head[0]])
    width = _offset_width(size)
    end = size - width
    fields_end = int.from_bytes(_cut(parts, end, size), "little")
    body_start = _align(fields_end, 8)
    if not _FIELDS_START <= fields_end <= body_start <= end or fields_end - _FIELDS_START > MAX_DECODED:
        return None
    try:
        fields = _fields(reader.read("a{tv}", _cut(parts, _FIELDS_START, fields_end), 0))
        if end - body_start <= MAX_DECODED:
            body = reader.read("v", _cut(parts, body_start, end), 0)
            type, arguments = body["type"], body["data"]
        else:
            type = _type_of(_cut(parts, max(body_start, end - _MAX_TYPE), end))[1]
            arguments = None
        if type[0] != "(":
            return None
        return Payload(_TYPES[head[1]], fields, type[1:-1], arguments)
    except (_Malformed, StructError, UnicodeDecodeError):
        return None


def _fields(entries: list[Any]) -> dict[str, Any]:
    fields = {}
    for number, value in entries:
        name, types = _FIELDS.get(number, ("", ""))
        if not name:
            continue
        if value["type"] not in types:
            raise _Malformed("a header field of the wrong type")
        fields[name] = value["data"]
    return fields


def _type_of(variant: bytes) -> tuple[bytes, str]:
    """Value and type of a variant."""
    value, is_found, type = variant.rpartition(b"\0")
    name = type.decode("ascii")
    if not is_found or not name or _end_of_type(name, 0) != len(name):
        raise _Malformed("a variant without a type")
    return value, name


def _cut(parts: Sequence[memoryview | bytes], start: int, end: int) -> bytes:
    """A range of a payload, of which there may be less."""
    found = []
    for part in parts:
        found.append(bytes(part[max(0, start) : max(0, end)]))
        start -= len(part)
        end -= len(part)
    return b"".join(found)


class _Reader:
    """Reads values in one byte order; `_Malformed` for what is none of its type."""

    def __init__(self, order: str) -> None:
        self.order = order

    def read(self, type: str, data: bytes, depth: int) -> Any:
        """A value of a type that fills these bytes."""
        if depth > _MAX_DEPTH:
            raise _Malformed("nested too deeply")
        kind = type[0]
        if kind in _NUMBERS:
            (number,) = _STRUCTS[self.order, kind].unpack(data)
            if kind == "b":
                return bool(number)
            return str(number) if kind == "d" and not math.isfinite(number) else number
        if kind in _STRINGS:
            if data[-1:] != b"\0" or b"\0" in data[:-1]:
                raise _Malformed("a string without an end")
            return data[:-1].decode("utf-8")
        if kind == "v":
            value, inner = _type_of(data)
            return {"type": inner, "data": self.read(inner, value, depth + 1)}
        if kind == "a":
            return self._array(type[1:], data, depth + 1)
        return list(self._members(type, data, depth + 1))

    def _array(self, type: str, data: bytes, depth: int) -> Any:
        values = [self.read(type, piece, depth) for piece in self._elements(type, data)]
        if type[0] == "{" and type[1] in _STRINGS:
            return dict(values)
        return values

    def _elements(self, type: str, data: bytes) -> Iterator[bytes]:
        size = _fixed_size(type)
        if size is not None:
            if len(data) % size:
                raise _Malformed("an array of broken elements")
            for start in range(0, len(data), size):
                yield data[start : start + size]
            return
        if not data:
            return
        width, alignment = _offset_width(len(data)), _alignment(type)
        table = self._offset(data, len(data) - width, width)
        start = 0
        if table > len(data) - width or (len(data) - table) % width:
            raise _Malformed("an array whose offsets lead nowhere")
        for place in range(table, len(data), width):
            end = self._offset(data, place, width)
            if not start <= end <= table:
                raise _Malformed("an element out of its array")
            yield data[start:end]
            start = _align(end, alignment)

    def _members(self, type: str, data: bytes, depth: int) -> Iterator[Any]:
        members = list(_split(type[1:-1]))
        if not members:
            if data != b"\0":
                raise _Malformed("no empty structure")
            return
        width = _offset_width(len(data))
        tail = len(data)
        start = 0
        is_fixed = _fixed_size(type) is not None
        for index, member in enumerate(members):
            start = _align(start, _alignment(member))
            size = _fixed_size(member)
            if size is not None:
                end = start + size
            elif index == len(members) - 1:
                end = tail
            else:
                tail -= width
                end = self._offset(data, tail, width)
            if not 0 <= start <= end <= tail:
                raise _Malformed("a member out of its structure")
            yield self.read(member, data[start:end], depth)
            start = end
        if start != tail and not is_fixed:
            raise _Malformed("more than the members")

    @staticmethod
    def _offset(data: bytes, place: int, width: int) -> int:
        if place < 0:
            raise _Malformed("no room for an offset")
        return int.from_bytes(data[place : place + width], "little")


# Types


def _split(types: str) -> Iterator[str]:
    """The single types that are written one after the other."""
    start = 0
    while start < len(types):
        end = _end_of_type(types, start)
        yield types[start:end]
        start = end


def _end_of_type(types: str, start: int, depth: int = 0) -> int:
    if len(types) > _MAX_TYPE or depth > _MAX_DEPTH:
        raise _Malformed("too long a type")
    while types[start : start + 1] == "a":
        start += 1
    kind = types[start : start + 1]
    if kind and (kind in _NUMBERS or kind in _STRINGS or kind == "v"):
        return start + 1
    closing = {"(": ")", "{": "}"}.get(kind)
    if closing is None:
        raise _Malformed("no type")
    start += 1
    count = 0
    while types[start : start + 1] != closing:
        start = _end_of_type(types, start, depth + 1)
        count += 1
    if closing == "}" and count != 2:
        raise _Malformed("no dictionary entry")
    return start + 1


def _alignment(type: str) -> int:
    kind = type.lstrip("a")[0]
    if kind in "({":
        return max((_alignment(member) for member in _split(type.lstrip("a")[1:-1])), default=1)
    if kind == "v":
        return 8
    return _STRUCTS["<", kind].size if kind in _NUMBERS else 1


def _fixed_size(type: str) -> int | None:
    """Bytes of each value of a type, None where they differ."""
    kind = type[0]
    if kind in _NUMBERS:
        return _STRUCTS["<", kind].size
    if kind not in "({":
        return None
    size = 0
    for member in _split(type[1:-1]):
        inner = _fixed_size(member)
        if inner is None:
            return None
        size = _align(size, _alignment(member)) + inner
    return _align(size, _alignment(type)) or 1


def _align(place: int, alignment: int) -> int:
    return (place + alignment - 1) // alignment * alignment


def _offset_width(size: int) -> int:
    """Bytes of an offset in a container of that size."""
    for width in (1, 2, 4):
        if size < 1 << 8 * width:
            return width
    return 8
