"""From a D-Bus body to GVariant: a writer for each type, built once and kept.

A *writer* converts one value: it gets the body, the position where the value may begin (before its padding)
and the output so far, appends the value with the padding in front of it, and returns the position behind the
value in the body. Body and output begin at an index that counts as a multiple of 8. Nothing is decoded:
numbers are bytes, turned where the byte orders differ, and an array of numbers is moved as a whole.

The body must be valid for its signature (`body_checker`); its nesting, which is the depth of recursion here,
is then bounded, and what is written is in normal form.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from struct import Struct

from busproxy.wire.gvariant_layout import (
    ZEROS,
    array_code,
    build_offsets,
    fixed_type,
    layout_of,
)
from busproxy.wire.signatures import FIXED_SIZES, alignment_of, split_types

__all__ = ["Writer", "Writers"]

Writer = Callable[[bytes, int, bytearray], int]
_Elements = Callable[[bytes, int, int, bytearray], None]

_READ_U32 = {True: Struct("<I").unpack_from, False: Struct(">I").unpack_from}
_ORDER = {True: "<", False: ">"}

# A hostile peer can invent signatures without end; these bound what is remembered of them.
_MOST_VARIANT_SIGNATURES = 512
_LONGEST_KEPT_VARIANT_SIGNATURE = 64


class Writers:
    """All writers from one byte order to another, built on demand."""

    __slots__ = ("_by_code", "_by_signature", "_orders", "_read_u32", "_swaps")

    def __init__(self, *, source_little_endian: bool, little_endian: bool) -> None:
        self._orders = (_ORDER[source_little_endian], _ORDER[little_endian])
        self._swaps = source_little_endian != little_endian
        self._read_u32 = _READ_U32[source_little_endian]
        self._by_signature: dict[bytes, tuple[Writer, bytes]] = {}
        by_code: dict[str, Writer] = {code: self._build_number(size) for code, size in FIXED_SIZES.items()}
        by_code["y"] = _write_byte
        by_code["b"] = _build_boolean(0 if source_little_endian else 3)
        by_code["s"] = by_code["o"] = self._build_string()
        by_code["g"] = _write_signature
        by_code["v"] = self._build_variant()
        self._by_code = by_code

    def writer(self, type_: str) -> Writer:
        """Return the writer for a complete type that is known to be valid, or for the struct of a body."""
        if len(type_) == 1:
            return self._by_code[type_]
        if type_[0] == "a":
            return self._build_array(type_[1:])
        if type_ == "()":
            return _write_unit
        layout = layout_of(type_)
        if layout.size:
            return self._build_fixed_struct(type_, layout.alignment)
        return self._build_struct(split_types(type_[1:-1]), layout.alignment)

    def _build_number(self, size: int) -> Writer:
        mask = size - 1

        def write_number(data: bytes, pos: int, out: bytearray) -> int:
            pos = (pos + mask) & ~mask
            if len(out) & mask:
                out += ZEROS[-len(out) & mask]
            stop = pos + size
            out += data[pos:stop]
            return stop

        def write_swapped_number(data: bytes, pos: int, out: bytearray) -> int:
            pos = (pos + mask) & ~mask
            if len(out) & mask:
                out += ZEROS[-len(out) & mask]
            stop = pos + size
            out += data[pos:stop][::-1]
            return stop

        return write_swapped_number if self._swaps else write_number

    def _build_string(self) -> Writer:
        read_u32 = self._read_u32

        def write_string(data: bytes, pos: int, out: bytearray) -> int:
            pos = (pos + 3) & -4
            stop: int = pos + 5 + read_u32(data, pos)[0]
            out += data[pos + 4 : stop]
            return stop

        return write_string

    def _build_variant(self) -> Writer:
        by_signature = self._by_signature
        remember = self._remember

        def write_variant(data: bytes, pos: int, out: bytearray) -> int:
            stop = pos + 1 + data[pos]
            signature = data[pos + 1 : stop]
            known = by_signature.get(signature)
            write, ending = remember(signature) if known is None else known
            if len(out) & 7:
                out += ZEROS[-len(out) & 7]
            pos = write(data, stop + 1, out)
            out += ending
            return pos

        return write_variant

    def _remember(self, signature: bytes) -> tuple[Writer, bytes]:
        """Return the writer of a variant's content and what follows the content."""
        entry = self.writer(signature.decode("ascii")), b"\0" + signature
        if len(signature) <= _LONGEST_KEPT_VARIANT_SIGNATURE:
            if len(self._by_signature) >= _MOST_VARIANT_SIGNATURES:
                self._by_signature.clear()
            self._by_signature[signature] = entry
        return entry

    def _build_struct(self, members: tuple[str, ...], alignment: int) -> Writer:
        mask = alignment - 1
        # The last one ends where the struct ends, and so needs no offset.
        steps = tuple((self.writer(member), not layout_of(member).size) for member in members[:-1])
        last = self.writer(members[-1])
        if len(steps) == 1:
            return _build_pair(mask, steps[0], last)

        def write_struct(data: bytes, pos: int, out: bytearray) -> int:
            pos = (pos + 7) & -8
            if len(out) & mask:
                out += ZEROS[-len(out) & mask]
            start = len(out)
            ends: list[int] = []
            for write, is_framed in steps:
                pos = write(data, pos, out)
                if is_framed:
                    ends.append(len(out) - start)
            pos = last(data, pos, out)
            if ends:
                ends.reverse()
                out += build_offsets(len(out) - start, ends)
            return pos

        return write_struct

    def _build_fixed_struct(self, type_: str, alignment: int) -> Writer:
        mask = alignment - 1
        fixed = fixed_type(type_)
        source, target = self._orders
        unpack = Struct(source + fixed.dbus1).unpack_from
        pack = Struct(target + fixed.gvariant).pack
        size = fixed.dbus1_size

        def write_fixed_struct(data: bytes, pos: int, out: bytearray) -> int:
            pos = (pos + 7) & -8
            if len(out) & mask:
                out += ZEROS[-len(out) & mask]
            out += pack(*unpack(data, pos))
            return pos + size

        return write_fixed_struct

    def _build_array(self, element: str) -> Writer:
        read_u32 = self._read_u32
        mask = layout_of(element).alignment - 1
        source_mask = alignment_of(element[0]) - 1
        write_elements = self._build_elements(element)

        def write_array(data: bytes, pos: int, out: bytearray) -> int:
            pos = (pos + 3) & -4
            length: int = read_u32(data, pos)[0]
            pos = (pos + 4 + source_mask) & ~source_mask
            if len(out) & mask:
                out += ZEROS[-len(out) & mask]
            stop = pos + length
            if length:
                write_elements(data, pos, stop, out)
            return stop

        return write_array

    def _build_elements(self, element: str) -> _Elements:
        """Return what writes the elements of an array that has some, and their offsets."""
        if element in "so":
            return self._build_strings()
        if not layout_of(element).size:
            return _build_variable_elements(self.writer(element))
        if element == "b":
            return _build_booleans(0 if self._orders[0] == "<" else 3)
        if len(element) == 1:
            return self._build_numbers(FIXED_SIZES[element])
        fixed = fixed_type(element)
        if fixed.is_alike and not self._swaps:
            return _build_alike_elements(fixed.size - fixed.dbus1_size)
        if fixed.is_alike and not fixed.has_gaps and fixed.width:
            return self._build_numbers(fixed.width)
        return self._build_fixed_elements(element)

    def _build_numbers(self, size: int) -> _Elements:
        if not self._swaps or size == 1:
            return _build_alike_elements(0)
        code = array_code(size)

        def write_swapped_numbers(data: bytes, pos: int, stop: int, out: bytearray) -> None:
            numbers = array(code)
            numbers.frombytes(memoryview(data)[pos:stop])
            numbers.byteswap()
            out += memoryview(numbers).cast("B")

        return write_swapped_numbers

    def _build_fixed_elements(self, element: str) -> _Elements:
        fixed = fixed_type(element)
        source, target = self._orders
        unpack = Struct(source + fixed.dbus1).unpack_from
        pack = Struct(target + fixed.gvariant).pack
        stride = (fixed.dbus1_size + 7) & -8

        def write_fixed_elements(data: bytes, pos: int, stop: int, out: bytearray) -> None:
            for at in range(pos, stop, stride):
                out += pack(*unpack(data, at))

        return write_fixed_elements

    def _build_strings(self) -> _Elements:
        read_u32 = self._read_u32

        def write_strings(data: bytes, pos: int, stop: int, out: bytearray) -> None:
            start = len(out)
            ends = array("I")
            add = ends.append
            while pos < stop:
                pos = (pos + 3) & -4
                end = pos + 5 + read_u32(data, pos)[0]
                out += data[pos + 4 : end]
                add(len(out) - start)
                pos = end
            out += build_offsets(len(out) - start, ends)

        return write_strings


def _write_byte(data: bytes, pos: int, out: bytearray) -> int:
    out.append(data[pos])
    return pos + 1


def _write_unit(data: bytes, pos: int, out: bytearray) -> int:
    out.append(0)
    return pos


def _write_signature(data: bytes, pos: int, out: bytearray) -> int:
    stop = pos + 2 + data[pos]
    out += data[pos + 1 : stop]
    return stop


def _build_boolean(lowest: int) -> Writer:
    def write_boolean(data: bytes, pos: int, out: bytearray) -> int:
        pos = (pos + 3) & -4
        out.append(data[pos + lowest])
        return pos + 4

    return write_boolean


def _build_pair(mask: int, step: tuple[Writer, bool], last: Writer) -> Writer:
    """A struct of two members, of which at least one is variable; dict entries are such."""
    first, is_framed = step

    def write_pair(data: bytes, pos: int, out: bytearray) -> int:
        if len(out) & mask:
            out += ZEROS[-len(out) & mask]
        start = len(out)
        pos = first(data, (pos + 7) & -8, out)
        end = len(out) - start
        pos = last(data, pos, out)
        if is_framed:
            size = len(out) - start
            if size < 0xFF:
                out.append(end)
            else:
                out += build_offsets(size, [end])
        return pos

    return write_pair


def _build_variable_elements(write: Writer) -> _Elements:
    def write_variable_elements(data: bytes, pos: int, stop: int, out: bytearray) -> None:
        start = len(out)
        ends = array("I")
        add = ends.append
        while pos < stop:
            pos = write(data, pos, out)
            add(len(out) - start)
        out += build_offsets(len(out) - start, ends)

    return write_variable_elements


def _build_alike_elements(padding: int) -> _Elements:
    """Elements that lie alike in both formats; the last one of a D-Bus array lacks its padding."""
    zeros = bytes(padding)

    def write_alike_elements(data: bytes, pos: int, stop: int, out: bytearray) -> None:
        out += memoryview(data)[pos:stop]
        if zeros:
            out += zeros

    return write_alike_elements


def _build_booleans(lowest: int) -> _Elements:
    def write_booleans(data: bytes, pos: int, stop: int, out: bytearray) -> None:
        out += data[pos + lowest : stop : 4]

    return write_booleans
