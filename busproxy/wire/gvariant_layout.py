"""How values lie in GVariant, beside how they lie in a D-Bus body.

GVariant aligns a value to the largest alignment in its type, not to 8 for every struct; a boolean is one
byte; strings have no length. A type is of *fixed size* or not: fixed are numbers, booleans, descriptors and
structs of nothing else, which are padded to a multiple of their alignment. Whatever is variable ends where
its container ends or where the container says: by *framing offsets*, the ends of its variable children
counted from its own start, in one to eight bytes each, as few as can count the container including the
offsets. They are little endian whatever the numbers are. An array has one for each element, in order; a
struct has one for each variable member but the last, in reverse; containers of fixed-size contents have none.

All types here are valid D-Bus types: no maybe types, no unit but the whole body.
"""

from __future__ import annotations

import sys
from array import array
from functools import lru_cache
from typing import NamedTuple

from busproxy.wire.signatures import FIXED_SIZES, alignment_of, split_types

__all__ = [
    "ZEROS",
    "FixedType",
    "Layout",
    "array_code",
    "bracket_depth",
    "build_offsets",
    "fixed_type",
    "layout_of",
    "offset_size",
    "word_size",
]

ZEROS = tuple(bytes(count) for count in range(9))
"""So many zero bytes, up to 8."""

_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
_SIZES = {**FIXED_SIZES, "b": 1}
_VARIABLE_ALIGNMENTS = {"s": 1, "o": 1, "g": 1, "v": 8}


class Layout(NamedTuple):
    """Alignment and size of a type in GVariant; the size is 0 where values differ in size."""

    alignment: int
    size: int


@lru_cache(maxsize=1024)
def layout_of(type_: str) -> Layout:
    """Return the layout of one complete type."""
    code = type_[0]
    if code == "a":
        return Layout(layout_of(type_[1:]).alignment, 0)
    if code in "({":
        return _layout_of_struct(split_types(type_[1:-1]))
    if code in _VARIABLE_ALIGNMENTS:
        return Layout(_VARIABLE_ALIGNMENTS[code], 0)
    return Layout(_SIZES[code], _SIZES[code])


def _layout_of_struct(members: tuple[str, ...]) -> Layout:
    alignment = 1
    end = 0
    fixed = True
    for member in members:
        layout = layout_of(member)
        alignment = max(alignment, layout.alignment)
        fixed = fixed and layout.size > 0
        end = _up(end, layout.alignment) + layout.size
    return Layout(alignment, max(_up(end, alignment), 1) if fixed else 0)


def _up(position: int, alignment: int) -> int:
    return (position + alignment - 1) & -alignment


class FixedType(NamedTuple):
    """A struct of fixed size in both formats, as formats for the `struct` module without a byte order.

    Every number is unsigned: nothing is computed with them, and a float keeps every bit.
    """

    gvariant: str
    dbus1: str
    size: int
    """In GVariant, with the padding at its end."""
    dbus1_size: int
    """In a D-Bus body, without padding behind it."""
    booleans: tuple[int, ...]
    """Which of the numbers are booleans."""
    fds: tuple[int, ...]
    """Which of the numbers are indexes of descriptors."""
    is_alike: bool
    """All numbers have the same size and place in both formats, and so do elements of an array."""
    has_gaps: bool
    """There is padding between or behind the numbers in GVariant."""
    width: int
    """The size of every number, 0 where they differ."""


@lru_cache(maxsize=512)
def fixed_type(type_: str) -> FixedType:
    """Return the two layouts of a struct or dict entry whose layout has a size."""
    codes: list[str] = []
    places: list[int] = []
    dbus1_places: list[int] = []
    _place(type_, 0, codes, places)
    end = _place_dbus1(type_, 0, codes=[], places=dbus1_places)
    size = layout_of(type_).size
    sizes = [_SIZES[code] for code in codes]
    dbus1_sizes = [FIXED_SIZES[code] for code in codes]
    return FixedType(
        gvariant=_format(places, sizes, size),
        dbus1=_format(dbus1_places, dbus1_sizes, end),
        size=size,
        dbus1_size=end,
        booleans=tuple(index for index, code in enumerate(codes) if code == "b"),
        fds=tuple(index for index, code in enumerate(codes) if code == "h"),
        is_alike=places == dbus1_places and sizes == dbus1_sizes and size == _up(end, 8),
        has_gaps=sum(sizes) != size,
        width=sizes[0] if len(set(sizes)) == 1 else 0,
    )


def _place(type_: str, at: int, codes: list[str], places: list[int]) -> int:
    """Note where the numbers of a value that may begin at `at` lie in GVariant; return its end."""
    layout = layout_of(type_)
    at = _up(at, layout.alignment)
    if type_[0] not in "({":
        codes.append(type_)
        places.append(at)
        return at + layout.size
    for member in split_types(type_[1:-1]):
        at = _place(member, at, codes, places)
    return _up(at, layout.alignment)


def _place_dbus1(type_: str, at: int, codes: list[str], places: list[int]) -> int:
    at = _up(at, alignment_of(type_[0]))
    if type_[0] not in "({":
        codes.append(type_)
        places.append(at)
        return at + FIXED_SIZES[type_]
    for member in split_types(type_[1:-1]):
        at = _place_dbus1(member, at, codes, places)
    return at


def _format(places: list[int], sizes: list[int], end: int) -> str:
    parts = []
    at = 0
    for place, size in zip(places, sizes, strict=True):
        parts.append(f"{place - at}x" if place > at else "")
        parts.append(_CODES[size])
        at = place + size
    parts.append(f"{end - at}x" if end > at else "")
    return "".join(parts)


def bracket_depth(type_: str) -> int:
    """How many structs and dict entries lie in each other at the deepest place."""
    depth = deepest = 0
    for code in type_:
        if code in "({":
            depth += 1
            deepest = max(deepest, depth)
        elif code in ")}":
            depth -= 1
    return deepest


# Framing offsets


def word_size(size: int) -> int:
    """Return the size of a framing offset in a container of that size, in bytes."""
    if size <= 0xFF:
        return 1
    if size <= 0xFFFF:
        return 2
    return 4 if size <= 0xFFFFFFFF else 8


def offset_size(size: int, count: int) -> int:
    """Return the smallest size in which `count` offsets can stand behind `size` bytes of content."""
    if size + count <= 0xFF:
        return 1
    if size + 2 * count <= 0xFFFF:
        return 2
    return 4 if size + 4 * count <= 0xFFFFFFFF else 8


def array_code(size: int) -> str:
    """Return the code of the `array` module for unsigned numbers of 1, 2, 4 or 8 bytes."""
    return _ARRAY_CODES[size]


def _array_codes() -> dict[int, str]:
    """C says little about the sizes of its types."""
    return {array(code).itemsize: code for code in "BHQLI"}


_ARRAY_CODES = _array_codes()
_IS_BIG_ENDIAN = sys.byteorder == "big"


def build_offsets(size: int, ends: array[int] | list[int]) -> bytes:
    """Return the framing offsets behind `size` bytes of content, in the order given."""
    if size + len(ends) <= 0xFF:
        return bytes(list(ends))
    words = array(_ARRAY_CODES[offset_size(size, len(ends))], ends)
    if _IS_BIG_ENDIAN:
        words.byteswap()
    return words.tobytes()
