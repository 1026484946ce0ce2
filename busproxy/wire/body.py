"""Is a message body what its signature says? A validator for each signature, built once and kept.

A *step* checks one value: it gets the body, the position where the value may begin (before its padding) and
the depth it is nested at, and returns the position behind the value. Steps of containers call the steps of
their contents, so that a signature becomes a tree of closures that has no decision left to take but those on
the data. Steps work on a copy of the body that begins at index 0: alignment is then a property of the index,
and reading too far is an `IndexError` or a `struct.error`, caught once at the top, not tested everywhere.
Inside an array nothing tests for the array's end either: a value that crosses it makes the positions differ.

The verdict is libdbus' verdict (its limit on depth: 64 levels, where a struct, a variant and each element of
an array that is not of a fixed basic type are a level). Offsets in errors count from the start of the body.
A unix fd is an index that only its receiver looks up: here any 32-bit number is valid.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from functools import lru_cache

from busproxy.wire.errors import ProtocolError
from busproxy.wire.signatures import (
    BASIC_TYPES,
    FIXED_SIZES,
    alignment_of,
    complete_types,
    split_types,
    validate_signature,
)

__all__ = [
    "MAX_ARRAY_LENGTH",
    "MAX_DEPTH",
    "body_checker",
    "string_arguments",
    "trivial_body_length",
    "variant_step",
]

MAX_ARRAY_LENGTH = 67108864
"""Longest array, in bytes of its elements without the padding in front of the first."""
MAX_DEPTH = 64
"""Most levels a value may be nested."""

Data = bytes | bytearray
Step = Callable[[Data, int, int], int]
BodyChecker = Callable[[Data, int, int], None]

_ZEROS = tuple(bytes(count) for count in range(8))
_READ_U32 = {True: struct.Struct("<I").unpack_from, False: struct.Struct(">I").unpack_from}

# Possessive repetition: a path of millions of elements must not leave as many states to come back to.
_match_object_path = re.compile(rb"/|(?:/[A-Za-z0-9_]++)++").fullmatch

# A hostile peer can invent signatures without end; these bound what is remembered of them.
_MOST_VARIANT_SIGNATURES = 512
_LONGEST_KEPT_VARIANT_SIGNATURE = 64


def _padding_error(data: Data, start: int, stop: int) -> ProtocolError:
    """Say what is wrong with padding that is not as many zeros as lie between two positions."""
    if stop > len(data):
        return ProtocolError("value longer than what is left", start)
    return ProtocolError("padding that is not zero", start)


def _depth_error(at: int) -> ProtocolError:
    return ProtocolError("more than 64 levels of nesting", at)


def _string_error(data: Data, start: int, stop: int) -> ProtocolError:
    """Say what is wrong with a string whose first NUL is not at `stop`."""
    if stop >= len(data):
        return ProtocolError("string longer than what is left", start - 4)
    if data[stop]:
        return ProtocolError("string without a terminating NUL", stop)
    return ProtocolError("NUL inside a string", data.find(0, start))


def _check_utf8(text: Data, start: int) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("invalid UTF-8 in string", start + error.start) from None


def _unpadded_size(type_: str) -> int | None:
    """Size of a type all of whose values are valid (fixed, no bool, no padding inside), None for others."""
    if type_[0] not in "({":
        return None if type_ == "b" else FIXED_SIZES.get(type_)
    return _unpadded_sum(split_types(type_[1:-1]))


def _unpadded_sum(types: tuple[str, ...]) -> int | None:
    total = 0
    for type_ in types:
        size = _unpadded_size(type_)
        if size is None or total % alignment_of(type_[0]):
            return None
        total += size
    return total


def _bracket_depth(type_: str) -> int:
    """How many structs and dict entries lie in each other at the deepest place."""
    depth = deepest = 0
    for code in type_:
        if code in "({":
            depth += 1
            deepest = max(deepest, depth)
        elif code in ")}":
            depth -= 1
    return deepest


def _build_fixed(size: int) -> Step:
    mask = size - 1

    def check_fixed(data: Data, pos: int, depth: int) -> int:
        if pos & mask:
            at = (pos + mask) & ~mask
            if data[pos:at] != _ZEROS[at - pos]:
                raise _padding_error(data, pos, at)
            pos = at
        return pos + size

    return check_fixed


def _check_byte(data: Data, pos: int, depth: int) -> int:
    return pos + 1


def _check_signature(data: Data, pos: int, depth: int) -> int:
    start = pos + 1
    stop = start + data[pos]
    if data[stop]:
        raise ProtocolError("signature without a terminating NUL", stop)
    try:
        validate_signature(data[start:stop].decode("latin-1"))
    except ProtocolError as error:
        raise ProtocolError(error.reason, start + error.offset) from None
    return stop + 1


class _Steps:
    """All steps of one byte order, built on demand."""

    __slots__ = ("_by_code", "_by_signature", "_read_u32")

    def __init__(self, read_u32: Callable[..., tuple[int]]) -> None:
        self._read_u32 = read_u32
        self._by_signature: dict[bytes, Step] = {}
        by_code: dict[int, Step] = {}
        self._by_code = by_code
        for code, size in FIXED_SIZES.items():
            by_code[ord(code)] = _build_fixed(size)
        by_code[ord("y")] = _check_byte
        by_code[ord("b")] = self._build_bool()
        by_code[ord("s")] = self._build_string()
        by_code[ord("o")] = self._build_object_path()
        by_code[ord("g")] = _check_signature
        by_code[ord("v")] = self._build_variant()

    def step(self, type_: str) -> Step:
        """Return the step for a complete type that is known to be valid."""
        if len(type_) == 1:
            return self._by_code[ord(type_)]
        if type_[0] == "a":
            return self._build_array(type_[1:])
        members = split_types(type_[1:-1])
        if members.count("s") == len(members):
            return self._build_struct_of_strings(len(members))
        return self._build_struct(tuple(self.step(member) for member in members))

    def _step_of_variant(self, signature: bytes, at: int) -> Step:
        """Return the step for the content of a variant whose signature, at offset `at`, is not known yet."""
        text = signature.decode("latin-1")
        try:
            validate_signature(text)
        except ProtocolError as error:
            raise ProtocolError(f"{error.reason} of a variant", at + error.offset) from None
        if len(split_types(text)) != 1:
            raise ProtocolError("variant signature that is not one complete type", at)
        step = self.step(text)
        if len(signature) <= _LONGEST_KEPT_VARIANT_SIGNATURE:
            if len(self._by_signature) >= _MOST_VARIANT_SIGNATURES:
                self._by_signature.clear()
            self._by_signature[signature] = step
        return step

    def _build_bool(self) -> Step:
        read_u32 = self._read_u32

        def check_bool(data: Data, pos: int, depth: int) -> int:
            if pos & 3:
                at = (pos + 3) & -4
                if data[pos:at] != _ZEROS[at - pos]:
                    raise _padding_error(data, pos, at)
                pos = at
            if read_u32(data, pos)[0] > 1:
                raise ProtocolError("boolean other than 0 and 1", pos)
            return pos + 4

        return check_bool

    def _build_string(self) -> Step:
        read_u32 = self._read_u32

        def check_string(data: Data, pos: int, depth: int) -> int:
            if pos & 3:
                at = (pos + 3) & -4
                if data[pos:at] != _ZEROS[at - pos]:
                    raise _padding_error(data, pos, at)
                pos = at
            stop = pos + 4 + read_u32(data, pos)[0]
            pos += 4
            # One search for the first NUL tells that it ends inside the body, with a NUL, and holds none.
            if data.find(0, pos) != stop:
                raise _string_error(data, pos, stop)
            text = data[pos:stop]
            if not text.isascii():
                _check_utf8(text, pos)
            return stop + 1

        return check_string

    def _build_object_path(self) -> Step:
        read_u32 = self._read_u32

        def check_object_path(data: Data, pos: int, depth: int) -> int:
            if pos & 3:
                at = (pos + 3) & -4
                if data[pos:at] != _ZEROS[at - pos]:
                    raise _padding_error(data, pos, at)
                pos = at
            stop = pos + 4 + read_u32(data, pos)[0]
            pos += 4
            if data.find(0, pos) != stop:
                raise _string_error(data, pos, stop)
            if _match_object_path(data, pos, stop) is None:
                raise ProtocolError("invalid object path", pos)
            return stop + 1

        return check_object_path

    def _build_variant(self) -> Step:
        by_code = self._by_code
        by_signature = self._by_signature
        step_of_variant = self._step_of_variant

        def check_variant(data: Data, pos: int, depth: int) -> int:
            if depth >= MAX_DEPTH:
                raise _depth_error(pos)
            length = data[pos]
            if length == 1:
                step = by_code.get(data[pos + 1])
                if step is None:
                    raise ProtocolError("variant signature that is not one complete type", pos + 1)
                if data[pos + 2]:
                    raise ProtocolError("variant signature without a terminating NUL", pos + 2)
                return step(data, pos + 3, depth + 1)
            stop = pos + 1 + length
            if data[stop]:
                raise ProtocolError("variant signature without a terminating NUL", stop)
            signature = bytes(data[pos + 1 : stop])
            step = by_signature.get(signature)
            if step is None:
                step = step_of_variant(signature, pos + 1)
            return step(data, stop + 1, depth + 1)

        return check_variant

    def _build_struct(self, members: tuple[Step, ...]) -> Step:
        def check_struct(data: Data, pos: int, depth: int) -> int:
            if depth >= MAX_DEPTH:
                raise _depth_error(pos)
            if pos & 7:
                at = (pos + 7) & -8
                if data[pos:at] != _ZEROS[at - pos]:
                    raise _padding_error(data, pos, at)
                pos = at
            depth += 1
            for member in members:
                pos = member(data, pos, depth)
            return pos

        return check_struct

    def _build_struct_of_strings(self, count: int) -> Step:
        read_u32 = self._read_u32
        members = range(count)

        def check_struct_of_strings(data: Data, pos: int, depth: int) -> int:
            if depth >= MAX_DEPTH:
                raise _depth_error(pos)
            if pos & 7:
                at = (pos + 7) & -8
                if data[pos:at] != _ZEROS[at - pos]:
                    raise _padding_error(data, pos, at)
                pos = at
            for _ in members:
                if pos & 3:
                    at = (pos + 3) & -4
                    if data[pos:at] != _ZEROS[at - pos]:
                        raise _padding_error(data, pos, at)
                    pos = at
                stop = pos + 4 + read_u32(data, pos)[0]
                pos += 4
                if data.find(0, pos) != stop:
                    raise _string_error(data, pos, stop)
                text = data[pos:stop]
                if not text.isascii():
                    _check_utf8(text, pos)
                pos = stop + 1
            return pos

        return check_struct_of_strings

    def _build_array(self, element: str) -> Step:
        read_u32 = self._read_u32
        mask = alignment_of(element[0]) - 1
        check_elements = self._build_elements(element)

        def check_array(data: Data, pos: int, depth: int) -> int:
            if pos & 3:
                at = (pos + 3) & -4
                if data[pos:at] != _ZEROS[at - pos]:
                    raise _padding_error(data, pos, at)
                pos = at
            length = read_u32(data, pos)[0]
            pos += 4
            if pos & mask:
                at = (pos + mask) & ~mask
                if data[pos:at] != _ZEROS[at - pos]:
                    raise _padding_error(data, pos, at)
                pos = at
            if not length:
                return pos
            stop = pos + length
            if stop > len(data):
                raise ProtocolError("array longer than what is left", pos)
            if length > MAX_ARRAY_LENGTH:
                raise ProtocolError("array longer than 64 MiB", pos)
            if check_elements(data, pos, stop, depth) != stop:
                raise ProtocolError("array whose elements do not end where its length says", stop)
            return stop

        return check_array

    def _build_elements(self, element: str) -> Callable[[Data, int, int, int], int]:
        """Return what checks the elements of an array from its first to its end, and says where they end."""
        size = _unpadded_size(element)
        if size is not None and (size % 8 == 0 or len(element) == 1):
            return self._build_fixed_elements(size, _bracket_depth(element))
        if element == "b":
            return self._build_bools()
        if element == "s":
            return self._build_strings()
        if element[0] == "{" and element[1] == "s":
            return self._build_string_keyed(self.step(element[2:-1]))
        step = self.step(element)

        def check_elements(data: Data, pos: int, stop: int, depth: int) -> int:
            if depth >= MAX_DEPTH:
                raise _depth_error(pos)
            depth += 1
            while pos < stop:
                pos = step(data, pos, depth)
            return pos

        return check_elements

    def _build_fixed_elements(self, size: int, brackets: int) -> Callable[[Data, int, int, int], int]:
        deepest_start = MAX_DEPTH - 1 - brackets if brackets else MAX_DEPTH

        def check_fixed_elements(data: Data, pos: int, stop: int, depth: int) -> int:
            if depth > deepest_start:
                raise _depth_error(pos)
            return stop - (stop - pos) % size

        return check_fixed_elements

    def _build_bools(self) -> Callable[[Data, int, int, int], int]:
        read_u32 = self._read_u32

        def check_bools(data: Data, pos: int, stop: int, depth: int) -> int:
            while pos < stop:
                if read_u32(data, pos)[0] > 1:
                    raise ProtocolError("boolean other than 0 and 1", pos)
                pos += 4
            return pos

        return check_bools

    def _build_strings(self) -> Callable[[Data, int, int, int], int]:
        read_u32 = self._read_u32

        def check_strings(data: Data, pos: int, stop: int, depth: int) -> int:
            if depth >= MAX_DEPTH:
                raise _depth_error(pos)
            while pos < stop:
                if pos & 3:
                    at = (pos + 3) & -4
                    if data[pos:at] != _ZEROS[at - pos]:
                        raise _padding_error(data, pos, at)
                    pos = at
                end = pos + 4 + read_u32(data, pos)[0]
                pos += 4
                if data.find(0, pos) != end:
                    raise _string_error(data, pos, end)
                text = data[pos:end]
                if not text.isascii():
                    _check_utf8(text, pos)
                pos = end + 1
            return pos

        return check_strings

    def _build_string_keyed(self, value: Step) -> Callable[[Data, int, int, int], int]:
        read_u32 = self._read_u32

        def check_string_keyed(data: Data, pos: int, stop: int, depth: int) -> int:
            depth += 2  # the element and, in it, the dict entry
            if depth > MAX_DEPTH:
                raise _depth_error(pos)
            while pos < stop:
                if pos & 7:
                    at = (pos + 7) & -8
                    if data[pos:at] != _ZEROS[at - pos]:
                        raise _padding_error(data, pos, at)
                    pos = at
                end = pos + 4 + read_u32(data, pos)[0]
                pos += 4
                if data.find(0, pos) != end:
                    raise _string_error(data, pos, end)
                text = data[pos:end]
                if not text.isascii():
                    _check_utf8(text, pos)
                pos = value(data, end + 1, depth)
            return pos

        return check_string_keyed


_STEPS = {order: _Steps(read_u32) for order, read_u32 in _READ_U32.items()}


def variant_step(*, little_endian: bool) -> Step:
    """Return the step that checks a variant, for whoever finds variants elsewhere than in a body.

    Its data begins at index 0; where it ends too early the step raises `IndexError` or `struct.error`, or
    returns a position behind its end. Depth is that of what contains the variant.
    """
    return _STEPS[little_endian].step("v")


def trivial_body_length(signature: str) -> int | None:
    """Return the length of a body if every body of that length and signature is valid.

    None where there is something to look at: padding, booleans, anything of variable length.
    """
    return _unpadded_sum(complete_types(signature))


@lru_cache(maxsize=512)
def body_checker(signature: str, little_endian: bool) -> BodyChecker:
    """Return the validator for bodies of a signature: `check(data, start, end)` judges `data[start:end]`.

    It returns None or raises `ProtocolError`, whose offset counts from `start`. `start` is taken to be
    8-aligned in the message, wherever it lies in `data`. A signature that is invalid raises `ProtocolError`
    here, with an offset into the signature.
    """
    types = complete_types(signature)
    exact = _unpadded_sum(types)
    if exact is not None:
        return _build_length_check(exact)
    check = _build_body_check(tuple(_STEPS[little_endian].step(type_) for type_ in types))
    if len(types) == 1 and signature[0] == "a":
        size = _unpadded_size(signature[1:])
        if size is not None and (size % 8 == 0 or len(signature) == 2):
            return _build_lone_array_check(size, alignment_of(signature[1]), _READ_U32[little_endian], check)
    return check


def _build_length_check(exact: int) -> BodyChecker:
    def check_length(data: Data, start: int, end: int) -> None:
        if end - start != exact:
            problem = "body shorter" if end - start < exact else "body longer"
            raise ProtocolError(f"{problem} than its signature says", min(end - start, exact))

    return check_length


def _build_body_check(steps: tuple[Step, ...]) -> BodyChecker:
    def check_body(data: Data, start: int, end: int) -> None:
        body = data[start:end]
        pos = 0
        try:
            for step in steps:
                pos = step(body, pos, 0)
        except (IndexError, struct.error):
            pos = len(body) + 1
        except ProtocolError as error:
            if error.offset <= len(body):
                raise
            pos = error.offset  # behind the end there is nothing to find fault with
        if pos != len(body):
            problem = "body shorter" if pos > len(body) else "body longer"
            raise ProtocolError(f"{problem} than its signature says", min(pos, len(body)))

    return check_body


def _build_lone_array_check(
    size: int, alignment: int, read_u32: Callable[..., tuple[int]], check_body: BodyChecker
) -> BodyChecker:
    """Accept a body that is one array of fixed values without a copy, for it may be large."""
    first = max(alignment, 4)
    padding = bytes(first - 4)

    def check_lone_array(data: Data, start: int, end: int) -> None:
        length = end - start - first
        if (
            0 <= length <= MAX_ARRAY_LENGTH
            and read_u32(data, start)[0] == length
            and length % size == 0
            and data[start + 4 : start + first] == padding
        ):
            return
        check_body(data, start, end)  # says what is wrong

    return check_lone_array


def string_arguments(
    signature: str, little_endian: bool, data: Data, start: int, end: int, count: int
) -> list[tuple[str, str] | None]:
    """Return the first `count` arguments of a valid body `data[start:end]`, as far as they are strings.

    One entry per argument: (type code, text) for the types s, o and g, None for every other type. The list is
    shorter where the body has fewer arguments. `count` is at most 64, as in match rules.
    """
    read_u32 = _READ_U32[little_endian]
    body: Data | None = None
    found: list[tuple[str, str] | None] = []
    pos = start
    for type_ in complete_types(signature)[:count]:
        if pos >= end:
            break
        code = type_[0]
        if code in "so":
            pos += (start - pos) & 3
            stop = pos + 4 + read_u32(data, pos)[0]
            found.append((code, data[pos + 4 : stop].decode()))
            pos = stop + 1
            continue
        if code == "g":
            stop = pos + 1 + data[pos]
            found.append((code, data[pos + 1 : stop].decode()))
            pos = stop + 1
            continue
        found.append(None)
        if code in BASIC_TYPES:
            size = FIXED_SIZES[code]
            pos += ((start - pos) & (size - 1)) + size
        elif code == "a":
            pos += (start - pos) & 3
            length = read_u32(data, pos)[0]
            pos += 4
            pos += ((start - pos) & (alignment_of(type_[1]) - 1)) + length
        else:
            if body is None:
                body = data[start:end]
            pos = start + _STEPS[little_endian].step(type_)(body, pos - start, 0)
    return found
