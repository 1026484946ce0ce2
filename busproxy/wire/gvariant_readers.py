"""From GVariant to a D-Bus body: a reader for each type, built once and kept.

A *reader* converts one value whose extent is known: it gets the data, where the value begins (aligned) and
ends, the output so far and the depth the value is nested at, and appends the value as a D-Bus body has it,
padding in front. Data and output begin at an index that counts as a multiple of 8.

Only *normal form* is taken: every value as its writer would have written it. GVariant itself gives a default
value to what is not; but for some types D-Bus has no such value, and who sends offsets that overlap or go
back and forth wants the reader to do more work than there are bytes. In normal form children follow each
other, so that the work is linear, and what is read and written again is the same bytes. Beyond that hold the
rules of D-Bus (see `body`): valid signatures, 64 levels of nesting, arrays of up to 64 MiB; and descriptors
are indexes into what came along.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from busproxy.wire.body import MAX_ARRAY_LENGTH, MAX_DEPTH
from busproxy.wire.errors import ProtocolError
from busproxy.wire.gvariant_checks import (
    Output,
    Reader,
    boolean_error,
    check_utf8,
    depth_error,
    fd_error,
    length_error,
    minimal_error,
    missing_error,
    offset_error,
    padding_error,
    size_error,
    string_error,
)
from busproxy.wire.gvariant_elements import Elements, build_fixed_conversion
from busproxy.wire.gvariant_layout import ZEROS, bracket_depth, fixed_type, layout_of, offset_size, word_size
from busproxy.wire.names import is_object_path
from busproxy.wire.signatures import FIXED_SIZES, alignment_of, split_types, validate_signature

__all__ = ["Readers"]

_PACK_U32 = {True: Struct("<I").pack, False: Struct(">I").pack}
_PACK_U32_INTO = {True: Struct("<I").pack_into, False: Struct(">I").pack_into}
_READ_U32 = {True: Struct("<I").unpack_from, False: Struct(">I").unpack_from}
_ORDER = {True: "<", False: ">"}

# A hostile peer can invent signatures without end; these bound what is remembered of them.
_MOST_VARIANT_SIGNATURES = 512
_LONGEST_KEPT_VARIANT_SIGNATURE = 64


class Readers:
    """All readers from one byte order to another, built on demand."""

    __slots__ = ("_by_code", "_by_signature", "_elements", "_orders", "_pack_u32", "_pack_u32_into", "_swaps")

    def __init__(self, *, source_little_endian: bool, little_endian: bool) -> None:
        self._orders = (_ORDER[source_little_endian], _ORDER[little_endian])
        self._swaps = source_little_endian != little_endian
        self._pack_u32 = _PACK_U32[little_endian]
        self._pack_u32_into = _PACK_U32_INTO[little_endian]
        self._elements = Elements(self._orders, self.reader)
        self._by_signature: dict[bytes, tuple[Reader, bytes]] = {}
        by_code: dict[str, Reader] = {code: self._build_number(size) for code, size in FIXED_SIZES.items()}
        by_code["y"] = _read_byte
        by_code["b"] = _build_boolean(self._pack_u32)
        by_code["h"] = self._build_fd(_READ_U32[source_little_endian])
        by_code["s"] = self._build_string()
        by_code["o"] = self._build_object_path()
        by_code["g"] = _read_signature
        by_code["v"] = self._build_variant()
        self._by_code = by_code

    def reader(self, type_: str) -> Reader:
        """Return the reader for a complete type that is known to be valid, or for the struct of a body."""
        if len(type_) == 1:
            return self._by_code[type_]
        if type_[0] == "a":
            return self._build_array(type_[1:])
        if type_ == "()":
            return _read_unit
        if layout_of(type_).size:
            return self._build_fixed_struct(type_)
        return self._build_struct(split_types(type_[1:-1]))

    def _build_number(self, size: int) -> Reader:
        mask = size - 1
        step = -1 if self._swaps else 1

        def read_number(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
            if stop - start != size:
                raise size_error(start)
            if len(out) & mask:
                out += ZEROS[-len(out) & mask]
            out += data[start:stop][::step]

        return read_number

    def _build_fd(self, read_u32: Callable[..., tuple[int]]) -> Reader:
        read_number = self._build_number(4)

        def read_fd(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
            if stop - start == 4 and read_u32(data, start)[0] >= out.fd_count:
                raise fd_error(start)
            read_number(data, start, stop, out, depth)

        return read_fd

    def _build_string(self) -> Reader:
        pack_u32 = self._pack_u32

        def read_string(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
            if start == stop or data.find(0, start, stop) != stop - 1:
                raise string_error(data, start, stop)
            text = data[start:stop]
            if not text.isascii():
                check_utf8(text, start)
            if len(out) & 3:
                out += ZEROS[-len(out) & 3]
            out += pack_u32(stop - start - 1) + text

        return read_string

    def _build_object_path(self) -> Reader:
        pack_u32 = self._pack_u32

        def read_object_path(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
            if start == stop or data.find(0, start, stop) != stop - 1:
                raise string_error(data, start, stop)
            text = data[start:stop]
            if not is_object_path(text[:-1].decode("latin-1")):
                raise ProtocolError("invalid object path", start)
            if len(out) & 3:
                out += ZEROS[-len(out) & 3]
            out += pack_u32(stop - start - 1) + text

        return read_object_path

    def _build_variant(self) -> Reader:
        by_signature = self._by_signature
        remember = self._remember

        def read_variant(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
            if depth >= MAX_DEPTH:
                raise depth_error(start)
            end = data.rfind(0, start, stop)
            if end < 0:
                raise ProtocolError("variant without a signature", start)
            signature = data[end + 1 : stop]
            known = by_signature.get(signature)
            read, opening = remember(signature, end + 1) if known is None else known
            out += opening
            read(data, start, end, out, depth + 1)

        return read_variant

    def _remember(self, signature: bytes, at: int) -> tuple[Reader, bytes]:
        """Return the reader of a variant's content and what precedes the content in a D-Bus body."""
        text = signature.decode("latin-1")
        try:
            validate_signature(text)
        except ProtocolError as error:
            raise ProtocolError(f"{error.reason} of a variant", at + error.offset) from None
        if len(split_types(text)) != 1:
            raise ProtocolError("variant signature that is not one complete type", at)
        entry = self.reader(text), bytes((len(signature),)) + signature + b"\0"
        if len(signature) <= _LONGEST_KEPT_VARIANT_SIGNATURE:
            if len(self._by_signature) >= _MOST_VARIANT_SIGNATURES:
                self._by_signature.clear()
            self._by_signature[signature] = entry
        return entry

    def _build_struct(self, members: tuple[str, ...]) -> Reader:
        steps: list[tuple[int, int, bool, Reader]] = []
        for member in members:
            layout = layout_of(member)
            steps.append((layout.alignment - 1, layout.size, not layout.size, self.reader(member)))
        *first, (last_mask, last_size, _, read_last) = steps
        framed = sum(is_framed for _, _, is_framed, _ in first)
        if framed == len(first) == 1:
            return _build_pair(first[0][3], last_mask, last_size, read_last)

        def read_struct(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
            if depth >= MAX_DEPTH:
                raise depth_error(start)
            depth += 1
            if len(out) & 7:
                out += ZEROS[-len(out) & 7]
            word = word_size(stop - start)
            contents = stop - word * framed
            if contents < start:
                raise missing_error(start)
            if word > 1 and offset_size(contents - start, framed) != word:
                raise minimal_error(contents)
            pos = start
            next_offset = stop
            for mask, size, is_framed, read in first:
                if (pos - start) & mask:
                    at = pos + (start - pos & mask)
                    if data[pos:at] != ZEROS[at - pos]:
                        raise padding_error(pos)
                    pos = at
                if is_framed:
                    next_offset -= word
                    end = start + int.from_bytes(data[next_offset : next_offset + word], "little")
                else:
                    end = pos + size
                if not pos <= end <= contents:
                    raise offset_error(pos)
                read(data, pos, end, out, depth)
                pos = end
            if (pos - start) & last_mask:
                at = pos + (start - pos & last_mask)
                if data[pos:at] != ZEROS[at - pos]:
                    raise padding_error(pos)
                pos = at
            if pos > contents or (last_size and contents - pos != last_size):
                raise size_error(pos)
            read_last(data, pos, contents, out, depth)

        return read_struct

    def _build_fixed_struct(self, type_: str) -> Reader:
        fixed = fixed_type(type_)
        size = fixed.size
        deepest_start = MAX_DEPTH - bracket_depth(type_)
        convert = build_fixed_conversion(self._orders, fixed)

        def read_fixed_struct(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
            if stop - start != size:
                raise size_error(start)
            if depth > deepest_start:
                raise depth_error(start)
            if len(out) & 7:
                out += ZEROS[-len(out) & 7]
            out += convert(data, start, out.fd_count)

        return read_fixed_struct

    def _build_array(self, element: str) -> Reader:
        pack_u32_into = self._pack_u32_into
        target_mask = alignment_of(element[0]) - 1
        read_elements = self._elements.reader(element)

        def read_array(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
            if len(out) & 3:
                out += ZEROS[-len(out) & 3]
            at = len(out)
            out += ZEROS[4 + (-(at + 4) & target_mask)]
            if start == stop:
                return
            first = len(out)
            read_elements(data, start, stop, out, depth)
            length = len(out) - first
            if length > MAX_ARRAY_LENGTH:
                raise length_error(start)
            pack_u32_into(out, at, length)

        return read_array


def _read_byte(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
    if stop - start != 1:
        raise size_error(start)
    out.append(data[start])


def _read_unit(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
    if data[start:stop] != b"\0":
        raise ProtocolError("empty struct that is not one zero byte", start)


def _read_signature(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
    if start == stop or data.find(0, start, stop) != stop - 1:
        raise string_error(data, start, stop)
    text = data[start:stop]
    try:
        validate_signature(text[:-1].decode("latin-1"))
    except ProtocolError as error:
        raise ProtocolError(error.reason, start + error.offset) from None
    out.append(len(text) - 1)
    out += text


def _build_boolean(pack_u32: Callable[[int], bytes]) -> Reader:
    def read_boolean(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
        if stop - start != 1:
            raise size_error(start)
        if data[start] > 1:
            raise boolean_error(start)
        if len(out) & 3:
            out += ZEROS[-len(out) & 3]
        out += pack_u32(data[start])

    return read_boolean


def _build_pair(read_first: Reader, mask: int, size: int, read_last: Reader) -> Reader:
    """A struct of two members of which the first is variable; dict entries are such. `size` is the last's."""

    def read_pair(data: bytes, start: int, stop: int, out: Output, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise depth_error(start)
        length = stop - start
        if 0 < length <= 0xFF:
            contents = stop - 1
            end = start + data[contents]
        else:
            word = word_size(length)
            contents = stop - word
            if contents < start:
                raise missing_error(start)
            if offset_size(contents - start, 1) != word:
                raise minimal_error(contents)
            end = start + int.from_bytes(data[contents:stop], "little")
        pos = end + (start - end & mask)
        if pos > contents:
            raise offset_error(contents)
        if pos != end and data[end:pos] != ZEROS[pos - end]:
            raise padding_error(end)
        if size and contents - pos != size:
            raise size_error(pos)
        if len(out) & 7:
            out += ZEROS[-len(out) & 7]
        read_first(data, start, end, out, depth + 1)
        read_last(data, pos, contents, out, depth + 1)

    return read_pair
