"""D-Bus marshalling for the raw test client: values ↔ bytes by signature, either byte order.

A value of type `v` is a pair (signature, value), a struct a tuple or list, a dict an ordinary dict on
writing and on reading. The writer checks nothing beyond what `struct` does, so tests can build what is not
allowed; the reader raises `ValueError` where padding is not zero or a boolean is neither 0 nor 1.
"""

from __future__ import annotations

import struct
from typing import Any

FIXED = {
    "y": ("B", 1),
    "b": ("I", 4),
    "n": ("h", 2),
    "q": ("H", 2),
    "i": ("i", 4),
    "u": ("I", 4),
    "x": ("q", 8),
    "t": ("Q", 8),
    "d": ("d", 8),
    "h": ("I", 4),
}
ALIGNMENT = {"s": 4, "o": 4, "g": 1, "a": 4, "v": 1, "(": 8, "{": 8} | {
    code: size for code, (_, size) in FIXED.items()
}


def split_signature(signature: str) -> list[str]:
    """The complete types of a signature, in order."""
    types = []
    start = 0
    while start < len(signature):
        end = _type_end(signature, start)
        types.append(signature[start:end])
        start = end
    return types


def _type_end(signature: str, start: int) -> int:
    match signature[start]:
        case "a":
            return _type_end(signature, start + 1)
        case "(" | "{":
            closing = ")" if signature[start] == "(" else "}"
            position = start + 1
            while signature[position] != closing:
                position = _type_end(signature, position)
            return position + 1
        case _:
            return start + 1


class Writer:
    """Bytes under construction; offsets count from the writer's own start."""

    def __init__(self, order: str) -> None:
        self.data = bytearray()
        self._prefix = "<" if order == "l" else ">"

    def pad(self, alignment: int) -> None:
        self.data += bytes(-len(self.data) % alignment)

    def write_all(self, signature: str, values: list[Any]) -> None:
        """Write one value for each complete type."""
        for kind, value in zip(split_signature(signature), values, strict=True):
            self.write(kind, value)

    def write(self, kind: str, value: Any) -> None:
        """Write one value of one complete type."""
        first = kind[0]
        self.pad(ALIGNMENT[first])
        if first in FIXED:
            self.data += struct.pack(self._prefix + FIXED[first][0], value)
            return
        match first:
            case "s" | "o":
                raw = value if isinstance(value, bytes) else value.encode()
                self.data += struct.pack(self._prefix + "I", len(raw)) + raw + b"\0"
            case "g":
                raw = value.encode()
                self.data += bytes([len(raw)]) + raw + b"\0"
            case "v":
                self.write("g", value[0])
                self.write(value[0], value[1])
            case "(" | "{":
                self.write_all(kind[1:-1], list(value))
            case _:
                self._write_array(kind[1:], value)

    def _write_array(self, element: str, value: Any) -> None:
        position = len(self.data)
        self.data += bytes(4)
        self.pad(ALIGNMENT[element[0]])
        start = len(self.data)
        if isinstance(value, bytes):
            self.data += value
        else:
            for item in value.items() if isinstance(value, dict) else value:
                self.write(element, item)
        struct.pack_into(self._prefix + "I", self.data, position, len(self.data) - start)


class Reader:
    """A cursor over bytes."""

    def __init__(self, data: bytes, order: str) -> None:
        if order not in "lB":
            raise ValueError(f"byte order {order!r}")
        self._data = data
        self._prefix = "<" if order == "l" else ">"
        self.offset = 0

    def _align(self, alignment: int) -> None:
        end = self.offset + -self.offset % alignment
        if any(self._data[self.offset : end]):
            raise ValueError(f"padding at {self.offset} is not zero")
        self.offset = end

    def _take(self, count: int) -> bytes:
        taken = self._data[self.offset : self.offset + count]
        if len(taken) != count:
            raise ValueError(f"data ends at {len(self._data)}, {count} bytes wanted at {self.offset}")
        self.offset += count
        return taken

    def read_all(self, signature: str) -> list[Any]:
        """One value for each complete type."""
        return [self.read(kind) for kind in split_signature(signature)]

    def read(self, kind: str) -> Any:
        """The next value, of one complete type."""
        first = kind[0]
        self._align(ALIGNMENT[first])
        if first in FIXED:
            code, size = FIXED[first]
            (value,) = struct.unpack(self._prefix + code, self._take(size))
            if first == "b":
                if value > 1:
                    raise ValueError(f"boolean {value}")
                return bool(value)
            return value
        match first:
            case "s" | "o":
                text = self._take(self.read("u") + 1)
                return text[:-1].decode()
            case "g":
                return self._take(self.read("y") + 1)[:-1].decode("ascii")
            case "v":
                signature = self.read("g")
                return (signature, self.read(signature))
            case "(" | "{":
                return tuple(self.read_all(kind[1:-1]))
            case _:
                return self._read_array(kind[1:])

    def _read_array(self, element: str) -> Any:
        length = self.read("u")
        self._align(ALIGNMENT[element[0]])
        if element == "y":
            return self._take(length)
        end = self.offset + length
        items = []
        while self.offset < end:
            items.append(self.read(element))
        if self.offset != end:
            raise ValueError(f"array ends at {end}, its last element at {self.offset}")
        return dict(items) if element[0] == "{" else items
