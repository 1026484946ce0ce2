"""D-Bus bodies in GVariant, the format of native messages: bytes to bytes, and values to bytes and back.

A native body is one struct of all arguments: the signature "su" becomes the type "(su)", no arguments the
unit "()", which is one zero byte. Numbers have the byte order of the message, either one. Bodies are
converted from bytes to bytes, by converters that are built once for each signature; values take the way
through a D-Bus body, so that there is one set of rules for what is valid. Python values are those of
`marshal`.

A conversion copies the contents once. For a body that is nothing but one array of numbers (ay, ad, a(tt) …)
and stays in its byte order there is nothing to convert: `bulk_array` tells where its elements begin.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from busproxy.wire.gvariant_checks import Output, Reader
from busproxy.wire.gvariant_layout import fixed_type, layout_of
from busproxy.wire.gvariant_readers import Readers
from busproxy.wire.gvariant_writers import Writer, Writers
from busproxy.wire.marshal import marshal, unmarshal
from busproxy.wire.signatures import alignment_of, complete_types

__all__ = [
    "NATIVE_LITTLE_ENDIAN",
    "BulkArray",
    "bulk_array",
    "dbus1_body_to_gvariant",
    "decode",
    "encode",
    "gvariant_body_to_dbus1",
]

NATIVE_LITTLE_ENDIAN = sys.byteorder == "little"
"""The byte order of this machine, which native messages have."""

_ORDERS = tuple((source, target) for source in (True, False) for target in (True, False))
_WRITERS = {
    (source, target): Writers(source_little_endian=source, little_endian=target) for source, target in _ORDERS
}
_READERS = {
    (source, target): Readers(source_little_endian=source, little_endian=target) for source, target in _ORDERS
}

# Converters of longer signatures are built each time, in half a millisecond at most: a hostile peer can
# invent signatures without end, and those of 255 codes take a hundred kilobytes each.
_LONGEST_KEPT_SIGNATURE = 64

# A body's struct is no level of nesting of its own: its members are at depth 0.
_DEPTH_OF_BODY = -1


def _writer(signature: str, source_little_endian: bool, little_endian: bool) -> Writer:
    types = complete_types(signature)
    writers = _WRITERS[source_little_endian, little_endian]
    if len(types) == 1 and not layout_of(types[0]).size:
        return writers.writer(types[0])  # a struct of one variable member is that member
    return writers.writer(f"({signature})")


def _reader(signature: str, source_little_endian: bool, little_endian: bool) -> tuple[Reader, int]:
    """Return what reads a body, and the depth at which it has to begin."""
    types = complete_types(signature)
    readers = _READERS[source_little_endian, little_endian]
    if len(types) == 1 and not layout_of(types[0]).size:
        return readers.reader(types[0]), 0
    return readers.reader(f"({signature})"), _DEPTH_OF_BODY


_kept_writer = lru_cache(maxsize=512)(_writer)
_kept_reader = lru_cache(maxsize=512)(_reader)


def dbus1_body_to_gvariant(
    signature: str,
    data: bytes | bytearray | memoryview,
    start: int,
    end: int,
    little_endian: bool,
    *,
    to_little_endian: bool = NATIVE_LITTLE_ENDIAN,
) -> bytearray:
    """Return the GVariant struct of a D-Bus body `data[start:end]` of that signature and byte order.

    The body must be valid (`body_checker`); with another one the result is meaningless, or `ValueError` is
    raised. `ProtocolError` is raised for an invalid signature. Every result is in normal form. It may be up
    to some four times longer than the body: whether that is too long for a message is the caller's question.
    """
    find = _kept_writer if len(signature) <= _LONGEST_KEPT_SIGNATURE else _writer
    write = find(signature, little_endian, to_little_endian)
    body = (
        data if type(data) is bytes and not start and end == len(data) else bytes(memoryview(data)[start:end])
    )
    out = bytearray()
    try:
        write(body, 0, out)
    except (IndexError, struct.error, UnicodeDecodeError, KeyError) as error:
        raise ValueError(f"not a body of signature {signature!r}") from error
    return out


def gvariant_body_to_dbus1(
    signature: str,
    data: bytes,
    start: int,
    end: int,
    little_endian: bool,
    *,
    to_little_endian: bool = NATIVE_LITTLE_ENDIAN,
    fd_count: int = 0,
) -> bytearray:
    """Return the D-Bus body of a GVariant struct `data[start:end]` of that signature and byte order.

    `fd_count` is the number of descriptors that come along. What is returned is valid (`body_checker`).
    Raises `ProtocolError`, with an offset into `data`, for all that is not in normal form or breaks a rule of
    D-Bus: text that is not UTF-8 or holds a NUL, an invalid object path or signature, more than 64 levels of
    nesting, an array of more than 64 MiB, an index of a descriptor that did not come along.
    """
    find = _kept_reader if len(signature) <= _LONGEST_KEPT_SIGNATURE else _reader
    read, depth = find(signature, little_endian, to_little_endian)
    out = Output()
    out.fd_count = fd_count
    read(data, start, end, out, depth)
    return out


class BulkArray(NamedTuple):
    """A body of one array whose elements are the same bytes in both formats."""

    start: int
    """Where the elements begin in a D-Bus body; in GVariant they are all there is."""
    size: int
    """Of an element: a length that is not a multiple of it is wrong."""


@lru_cache(maxsize=512)
def bulk_array(signature: str) -> BulkArray | None:
    """Return how a body of that signature is nothing but numbers, None if it is anything else.

    That holds while the byte order stays. Arrays of booleans and of descriptors are not meant: their elements
    have to be looked at. Raises `ProtocolError` for an invalid signature.
    """
    if len(complete_types(signature)) != 1 or signature[0] != "a":
        return None
    element = signature[1:]
    size = layout_of(element).size
    if not size or element in "bh":
        return None
    if len(element) > 1:
        fixed = fixed_type(element)
        if not fixed.is_alike or fixed.has_gaps or fixed.fds:
            return None
    return BulkArray(max(4, alignment_of(element[0])), size)


def encode(
    signature: str, values: Sequence[Any], little_endian: bool = NATIVE_LITTLE_ENDIAN
) -> bytes | bytearray:
    """Return the GVariant struct that holds one value for each complete type of the signature.

    Raises what `marshal` raises.
    """
    body = marshal(signature, values, little_endian)
    return dbus1_body_to_gvariant(
        signature, body, 0, len(body), little_endian, to_little_endian=little_endian
    )


def decode(
    signature: str,
    data: bytes,
    start: int,
    end: int,
    little_endian: bool = NATIVE_LITTLE_ENDIAN,
    *,
    fd_count: int = 0,
) -> list[Any]:
    """Return the values of a GVariant struct `data[start:end]`.

    Raises `ProtocolError` as `gvariant_body_to_dbus1` does.
    """
    body = gvariant_body_to_dbus1(
        signature, data, start, end, little_endian, to_little_endian=little_endian, fd_count=fd_count
    )
    return unmarshal(signature, body, 0, len(body), little_endian)
