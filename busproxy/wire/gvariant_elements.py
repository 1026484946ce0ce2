"""From GVariant to a D-Bus body: the elements of an array, all of them at once.

An array of numbers is moved as a whole, turned where the byte orders differ; structs of numbers one by one,
where they do not lie alike in both formats; all else is read by the reader of the element's type. Here is
also where too much is refused before it is read: an offset of one byte may stand for an element that takes
eight in a D-Bus body.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from struct import Struct

from busproxy.wire.body import MAX_ARRAY_LENGTH, MAX_DEPTH
from busproxy.wire.gvariant_checks import (
    Output,
    Reader,
    boolean_error,
    check_utf8,
    depth_error,
    fd_error,
    length_error,
    message_error,
    offset_error,
    padding_error,
    read_ends,
    size_error,
    string_error,
)
from busproxy.wire.gvariant_layout import ZEROS, FixedType, array_code, bracket_depth, fixed_type, layout_of

__all__ = ["MAX_OUTPUT", "Elements", "build_fixed_conversion"]

MAX_OUTPUT = 134217728
"""Longest body; a message with it is longer than a message may be."""

_IS_BIG_ENDIAN = sys.byteorder == "big"

# How far elements are apart in a D-Bus array at the least: too many are refused before they are read.
_LEAST_STRIDES = {"s": 8, "o": 8, "g": 2, "v": 4, "a": 4, "(": 8, "{": 8}


class Elements:
    """Readers for the elements of arrays from one byte order to another, given as prefixes of `struct`.

    `build_reader` gives the reader of one value of a type.
    """

    __slots__ = ("_build_reader", "_orders", "_pack_u32", "_swaps")

    def __init__(self, orders: tuple[str, str], build_reader: Callable[[str], Reader]) -> None:
        self._orders = orders
        self._swaps = orders[0] != orders[1]
        self._pack_u32 = Struct(orders[1] + "I").pack
        self._build_reader = build_reader

    def reader(self, element: str) -> Reader:
        """Return what reads the elements of an array that is not empty."""
        layout = layout_of(element)
        if element == "s":
            return self._build_strings()
        if not layout.size:
            return _build_variable_elements(
                layout.alignment - 1, _LEAST_STRIDES[element[0]], self._build_reader(element)
            )
        if element == "b":
            return _build_booleans(3 if self._orders[1] == ">" else 0)
        if element == "h":
            return self._build_fds()
        if len(element) == 1:
            return self._build_numbers(layout.size, layout.size, MAX_DEPTH)
        fixed = fixed_type(element)
        # The element is a level as well.
        deepest_start = MAX_DEPTH - 1 - bracket_depth(element)
        is_plain = fixed.is_alike and not fixed.has_gaps and not fixed.fds
        if is_plain and (fixed.width or not self._swaps):
            return self._build_numbers(fixed.width, fixed.size, deepest_start)
        return self._build_fixed_elements(fixed, deepest_start)

    def _build_numbers(self, width: int, size: int, deepest_start: int) -> Reader:
        """Elements of `size` bytes that lie alike in both formats: numbers of `width` bytes, nothing else."""
        code = array_code(width) if self._swaps and width > 1 else ""

        def read_numbers(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
            if (stop - start) % size:
                raise size_error(start)
            if depth > deepest_start:
                raise depth_error(start)
            if stop - start > MAX_ARRAY_LENGTH:
                raise length_error(start)
            if code:
                numbers = array(code)
                numbers.frombytes(memoryview(data)[start:stop])
                numbers.byteswap()
                out += memoryview(numbers).cast("B")
            else:
                out += memoryview(data)[start:stop]

        return read_numbers

    def _build_strings(self) -> Reader:
        pack_u32 = self._pack_u32

        def read_strings(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
            if depth >= MAX_DEPTH:
                raise depth_error(start)
            find = data.find
            ends = read_ends(data, start, stop)
            if (len(ends) - 1) * _LEAST_STRIDES["s"] > MAX_ARRAY_LENGTH:
                raise length_error(start)
            contents = start + ends[-1]
            pos = start
            for offset in ends:
                end = start + offset
                if not pos < end <= contents:
                    raise offset_error(pos)
                if find(0, pos, end) != end - 1:
                    raise string_error(data, pos, end)
                text = data[pos:end]
                if not text.isascii():
                    check_utf8(text, pos)
                size = len(out)
                if size > MAX_OUTPUT:
                    raise message_error(pos)
                out += ZEROS[-size & 3] + pack_u32(end - pos - 1) + text
                pos = end

        return read_strings

    def _build_fds(self) -> Reader:
        swaps_to_native = (self._orders[0] == ">") != _IS_BIG_ENDIAN
        read_numbers = self._build_numbers(4, 4, MAX_DEPTH)

        def read_fds(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
            if (stop - start) % 4 == 0:
                numbers = array(array_code(4), data[start:stop])
                if swaps_to_native:
                    numbers.byteswap()
                if max(numbers) >= out.fd_count:
                    raise fd_error(start)
            read_numbers(data, start, stop, out, depth)

        return read_fds

    def _build_fixed_elements(self, fixed: FixedType, deepest_start: int) -> Reader:
        size = fixed.size
        stride = (fixed.dbus1_size + 7) & -8
        gap = ZEROS[stride - fixed.dbus1_size]
        convert = build_fixed_conversion(self._orders, fixed)

        def read_fixed_elements(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
            count, rest = divmod(stop - start, size)
            if rest:
                raise size_error(start)
            if depth > deepest_start:
                raise depth_error(start)
            if count * stride - len(gap) > MAX_ARRAY_LENGTH:
                raise length_error(start)
            fd_count = out.fd_count
            last = stop - size
            for at in range(start, last, size):
                out += convert(data, at, fd_count) + gap
            out += convert(data, last, fd_count)

        return read_fixed_elements


def build_fixed_conversion(orders: tuple[str, str], fixed: FixedType) -> Callable[[bytes, int, int], bytes]:
    """Return what converts a struct of fixed size, given where it begins and how many descriptors there are.

    `orders` are the prefixes of the byte orders from which and to which it does.
    """
    source, target = orders
    pattern = Struct(source + fixed.gvariant)
    unpack, pack_again = pattern.unpack_from, pattern.pack
    pack = Struct(target + fixed.dbus1).pack
    size, booleans, fds, has_gaps = fixed.size, fixed.booleans, fixed.fds, fixed.has_gaps

    def convert(data: bytes, start: int, fd_count: int) -> bytes:
        values = unpack(data, start)
        if has_gaps and pack_again(*values) != data[start : start + size]:
            raise padding_error(start)
        for index in booleans:
            if values[index] > 1:
                raise boolean_error(start)
        for index in fds:
            if values[index] >= fd_count:
                raise fd_error(start)
        return pack(*values)

    return convert


def _build_booleans(lowest: int) -> Reader:
    def read_booleans(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
        if (stop - start) * 4 > MAX_ARRAY_LENGTH:
            raise length_error(start)
        values = data[start:stop]
        if values.strip(b"\0\1"):
            raise boolean_error(start)
        numbers = bytearray(4 * len(values))
        numbers[lowest::4] = values
        out += numbers

    return read_booleans


def _build_variable_elements(mask: int, least_stride: int, read: Reader) -> Reader:
    def read_variable_elements(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise depth_error(start)
        depth += 1
        ends = read_ends(data, start, stop)
        if (len(ends) - 1) * least_stride > MAX_ARRAY_LENGTH:
            raise length_error(start)
        pos = start
        contents = start + ends[-1]
        for offset in ends:
            end = start + offset
            if (pos - start) & mask:
                at = pos + (start - pos & mask)
                if data[pos:at] != ZEROS[at - pos]:
                    raise padding_error(pos)
                pos = at
            if not pos <= end <= contents:
                raise offset_error(pos)
            if len(out) > MAX_OUTPUT:
                raise message_error(pos)
            read(data, pos, end, out, depth)
            pos = end

    return read_variable_elements
