"""What the readers of GVariant share: their output, the reasons to refuse a value, the ends of elements.

A refusal is a `ProtocolError` whose offset is an index into the data read. Reasons are the same wherever they
are found, so that a sender is told the same for the same fault.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence

from busproxy.wire.errors import ProtocolError
from busproxy.wire.gvariant_layout import array_code, offset_size, word_size

__all__ = [
    "Output",
    "Reader",
    "boolean_error",
    "check_utf8",
    "depth_error",
    "fd_error",
    "length_error",
    "message_error",
    "minimal_error",
    "missing_error",
    "offset_error",
    "padding_error",
    "read_ends",
    "size_error",
    "string_error",
]

_IS_BIG_ENDIAN = sys.byteorder == "big"


class Output(bytearray):
    """A body that grows, and what its contents are judged by."""

    __slots__ = ("fd_count",)

    fd_count: int
    """How many descriptors come along: every index must be smaller."""


Reader = Callable[[bytes, int, int, Output, int], None]
"""Data, where a value begins and ends in them, what it is appended to, and the depth it is nested at."""


def size_error(at: int) -> ProtocolError:
    return ProtocolError("value of a wrong size", at)


def offset_error(at: int) -> ProtocolError:
    return ProtocolError("framing offset that is not in order", at)


def depth_error(at: int) -> ProtocolError:
    return ProtocolError("more than 64 levels of nesting", at)


def padding_error(at: int) -> ProtocolError:
    return ProtocolError("padding that is not zero", at)


def length_error(at: int) -> ProtocolError:
    return ProtocolError("array longer than 64 MiB", at)


def message_error(at: int) -> ProtocolError:
    return ProtocolError("message longer than 128 MiB", at)


def boolean_error(at: int) -> ProtocolError:
    return ProtocolError("boolean other than 0 and 1", at)


def fd_error(at: int) -> ProtocolError:
    return ProtocolError("index of a descriptor that did not come along", at)


def string_error(data: bytes, start: int, stop: int) -> ProtocolError:
    """Say what is wrong with a string whose first NUL is not its last byte."""
    if start == stop or data[stop - 1]:
        return ProtocolError("string without a terminating NUL", max(start, stop - 1))
    return ProtocolError("NUL inside a string", data.find(0, start, stop))


def missing_error(at: int) -> ProtocolError:
    return ProtocolError("struct too short for its framing offsets", at)


def minimal_error(at: int) -> ProtocolError:
    return ProtocolError("framing offsets larger than they need be", at)


def check_utf8(text: bytes, start: int) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("invalid UTF-8 in string", start + error.start) from None


def read_ends(data: bytes, start: int, stop: int) -> Sequence[int]:
    """Return the ends of the elements of an array that is not empty; only the last of them is checked."""
    size = stop - start
    if size <= 0xFF:
        last = data[stop - 1]
        if last >= size:
            raise offset_error(stop - 1)
        return data[start + last : stop]
    word = word_size(size)
    last = int.from_bytes(data[stop - word : stop], "little")
    count, rest = divmod(size - last, word)
    if count < 1 or rest:
        raise offset_error(stop - word)
    if offset_size(last, count) != word:
        raise minimal_error(start + last)
    ends = array(array_code(word), data[start + last : stop])
    if _IS_BIG_ENDIAN:
        ends.byteswap()
    return ends
