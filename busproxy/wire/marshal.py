"""Values to body bytes and back, for the few bodies the bus itself writes or reads.

Python values stand for D-Bus values like this: int for all integers and fds (an index), float for d, bool
for b, str for s, o and g; a list (or tuple) for an array, bytes for ay, a dict for an array of dict entries,
a tuple (or list) for a struct, and for a variant the pair (signature, value).

What is written is valid by construction: whatever would make a body that `body_checker` refuses raises
`ValueError` (a wrong value) or `TypeError` (a value of the wrong type). Only valid bodies may be read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from busproxy.wire.body import MAX_ARRAY_LENGTH, MAX_DEPTH, Data
from busproxy.wire.errors import ProtocolError
from busproxy.wire.names import is_object_path
from busproxy.wire.signatures import (
    FIXED_SIZES,
    alignment_of,
    complete_types,
    split_types,
    validate_signature,
)

__all__ = ["marshal", "unmarshal"]

_FORMATS = dict(zip("ybnqiuxtdh", "BIhHiIqQdI", strict=True))
_FIXED = {
    order: {code: struct.Struct(prefix + format_) for code, format_ in _FORMATS.items()}
    for order, prefix in ((True, "<"), (False, ">"))
}
_READ: dict[bool, dict[str, Callable[..., tuple[Any, ...]]]] = {
    order: {code: format_.unpack_from for code, format_ in formats.items()}
    for order, formats in _FIXED.items()
}


def marshal(signature: str, values: Sequence[Any], little_endian: bool = True) -> bytes:
    """Return the body that holds one value for each complete type of the signature.

    Raises `ValueError` for an invalid signature, too few or too many values, or a value that is out of range
    or breaks a rule of its type; `TypeError` for a value of a wrong Python type.
    """
    types = _types_of(signature)
    if len(types) != len(values):
        raise ValueError(f"{len(values)} values for signature {signature!r}")
    writer = _Writer(_FIXED[little_endian])
    for type_, value in zip(types, values, strict=True):
        writer.write(type_, value, 0)
    return bytes(writer.body)


def _types_of(signature: str) -> tuple[str, ...]:
    try:
        return complete_types(signature)
    except ProtocolError as error:
        raise ValueError(f"invalid signature {signature!r}: {error}") from None


class _Writer:
    """A body that grows; depth counts as in `body`."""

    __slots__ = ("_fixed", "body")

    def __init__(self, fixed: dict[str, struct.Struct]) -> None:
        self.body = bytearray()
        self._fixed = fixed

    def write(self, type_: str, value: Any, depth: int) -> None:
        code = type_[0]
        if code in "so":
            self._write_text(code, value)
        elif code in FIXED_SIZES:
            self._write_fixed(code, value)
        elif code == "a":
            self._write_array(type_[1:], value, depth)
        elif code == "v":
            self._write_variant(value, depth)
        elif code == "g":
            self._write_signature(value)
        else:
            self._write_struct(_members(type_), value, depth)

    def _align(self, alignment: int) -> None:
        self.body += bytes(-len(self.body) & (alignment - 1))

    def _write_fixed(self, code: str, value: Any) -> None:
        if code == "b":
            if value is not True and value is not False:
                raise TypeError(f"{value!r} is not a bool")
        elif not isinstance(value, (int, float) if code == "d" else int):
            raise TypeError(f"{value!r} is not of type {code!r}")
        self._align(FIXED_SIZES[code])
        try:
            self.body += self._fixed[code].pack(value)
        except (struct.error, OverflowError):
            raise ValueError(f"{value!r} is out of range for type {code!r}") from None

    def _write_text(self, code: str, value: Any) -> None:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is not a str")
        if code == "o" and not is_object_path(value):
            raise ValueError(f"{value!r} is not an object path")
        if "\0" in value:
            raise ValueError(f"{value!r} holds a NUL")
        text = value.encode()
        self._align(4)
        self.body += self._fixed["u"].pack(len(text)) + text + b"\0"

    def _write_signature(self, value: Any) -> None:
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is not a str")
        try:
            validate_signature(value)
        except ProtocolError as error:
            raise ValueError(f"invalid signature {value!r}: {error}") from None
        self.body += bytes((len(value),)) + value.encode("ascii") + b"\0"

    def _write_variant(self, value: Any, depth: int) -> None:
        if not isinstance(value, tuple) or len(value) != 2:
            raise TypeError(f"{value!r} is not a pair of signature and value")
        signature, content = value
        if len(_types_of(signature)) != 1:
            raise ValueError(f"variant signature {signature!r} is not one complete type")
        self._write_signature(signature)
        self.write(signature, content, _below(depth))

    def _write_struct(self, members: tuple[str, ...], value: Any, depth: int) -> None:
        if not isinstance(value, tuple | list):
            raise TypeError(f"{value!r} is not a tuple")
        if len(members) != len(value):
            raise ValueError(f"{len(value)} values for a struct of {len(members)}")
        depth = _below(depth)
        self._align(8)
        for member, item in zip(members, value, strict=True):
            self.write(member, item, depth)

    def _write_array(self, element: str, value: Any, depth: int) -> None:
        body = self.body
        self._align(4)
        at = len(body)
        body += bytes(4)
        self._align(alignment_of(element[0]))
        first = len(body)
        if element == "y" and isinstance(value, bytes | bytearray | memoryview):
            body += value
        else:
            for item in _elements(element, value):
                self.write(element, item, depth if element in FIXED_SIZES else _below(depth))
        length = len(body) - first
        if length > MAX_ARRAY_LENGTH:
            raise ValueError("array longer than 64 MiB")
        self._fixed["u"].pack_into(body, at, length)


def _below(depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise ValueError("more than 64 levels of nesting")
    return depth + 1


def _elements(element: str, value: Any) -> Iterable[Any]:
    if element[0] == "{":
        if not isinstance(value, Mapping):
            raise TypeError(f"{value!r} is not a dict")
        return value.items()
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r} is not a list")
    return value


@lru_cache(maxsize=512)
def _members(type_: str) -> tuple[str, ...]:
    return split_types(type_[1:-1])


def unmarshal(signature: str, data: Data, start: int, end: int, little_endian: bool) -> list[Any]:
    """Return the values of a body `data[start:end]` that is known to be valid for its signature."""
    reader = _Reader(bytes(memoryview(data)[start:end]), _READ[little_endian])
    return [reader.read(type_) for type_ in complete_types(signature)]


class _Reader:
    """A position in a valid body."""

    __slots__ = ("_body", "_fixed", "_pos")

    def __init__(self, body: bytes, fixed: dict[str, Callable[..., tuple[Any, ...]]]) -> None:
        self._body = body
        self._fixed = fixed
        self._pos = 0

    def read(self, type_: str) -> Any:
        code = type_[0]
        if code in "so":
            return self._read_text(self._read_fixed("u"))
        if code in FIXED_SIZES:
            number = self._read_fixed(code)
            return bool(number) if code == "b" else number
        if code == "a":
            return self._read_array(type_[1:])
        if code == "v":
            signature = self._read_text(self._read_fixed("y"))
            return signature, self.read(signature)
        if code == "g":
            return self._read_text(self._read_fixed("y"))
        self._align(8)
        return tuple(self.read(member) for member in _members(type_))

    def _align(self, alignment: int) -> None:
        self._pos += -self._pos & (alignment - 1)

    def _read_fixed(self, code: str) -> Any:
        size = FIXED_SIZES[code]
        at = self._pos + (-self._pos & (size - 1))
        self._pos = at + size
        return self._fixed[code](self._body, at)[0]

    def _read_text(self, length: int) -> str:
        start = self._pos
        self._pos = start + length + 1
        return self._body[start : start + length].decode()

    def _read_array(self, element: str) -> bytes | list[Any] | dict[Any, Any]:
        length = self._read_fixed("u")
        self._align(alignment_of(element[0]))
        end = self._pos + length
        if element == "y":
            start = self._pos
            self._pos = end
            return self._body[start:end]
        items = []
        while self._pos < end:
            items.append(self.read(element))
        return dict(items) if element[0] == "{" else items
