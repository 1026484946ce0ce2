"""Items: the typed records inside commands, messages and answers.

An item is a header of two 64-bit numbers, its size (header included, padding
excluded) and its type, and then its payload.  The next one begins at the next
multiple of 8, so only the last may lack padding.

What comes from a caller is walked once and each item is judged where it
stands: its bounds, whether the command takes it, its own form, whether it may
come again.  So of several faults the first in the buffer is the one that is
reported.  Payloads stay bytes; a string is one that holds exactly one NUL,
at its end.

What goes to a caller is built with the encoders at the end, padding included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from errno import EBADF, EINVAL, ENAMETOOLONG
from struct import Struct
from typing import NamedTuple

from kdbus_core.abi import ITEM_HEADER, MAX_NODE_NAME_LENGTH, ItemType, align
from kdbus_core.errors import KdbusError

HEADER_SIZE = ITEM_HEADER.size
VEC = Struct("=2Q")
"""PAYLOAD_VEC: size, address; PAYLOAD_OFF: size, offset."""
MEMFD = Struct("=2QiI")
"""PAYLOAD_MEMFD: start, size, fd, padding."""
FD = Struct("=i")
"""CANCEL_FD, and one of FDS."""
BLOOM_PARAMETER = Struct("=2Q")
"""size, n_hash."""
NAME_NOTICE = Struct("=4Q")
"""NAME_ADD, NAME_REMOVE, NAME_CHANGE: old id, old flags, new id, new flags; a name follows."""
ID_NOTICE = Struct("=2Q")
"""ID_ADD, ID_REMOVE: id, flags."""
ACCESS = Struct("=3Q")
"""POLICY_ACCESS: type, level, id."""
NUMBER = Struct("=Q")

_NODE_NAME = re.compile(rb"[A-Za-z0-9_](?:[-.A-Za-z0-9_]*[A-Za-z0-9_])?")


class Item(NamedTuple):
    """One item as it stood in a buffer."""

    type: int
    payload: bytes
    offset: int
    """Of its header, from the start of the buffer."""

    @property
    def number(self) -> int:
        """The payload of an item that is one 64-bit number."""
        return int(NUMBER.unpack(self.payload)[0])

    @property
    def string(self) -> str:
        """The payload of a string item without its NUL, one character a byte whatever the byte is.

        So no caller's bytes are beyond reading: what is not ASCII fails where names are judged, or is
        a name that nobody has.
        """
        return self.payload[:-1].decode("latin-1")


def iterate_items(data: bytes, start: int) -> Iterator[Item]:
    """Walk the items from `start` to the end of a buffer.

    Raises EINVAL at the item whose bounds are broken, or when the walk does not end where the area ends.
    """
    end = len(data)
    offset = start
    while end - offset >= HEADER_SIZE:
        size, type = ITEM_HEADER.unpack_from(data, offset)
        if not HEADER_SIZE <= size <= end - offset:
            raise KdbusError(EINVAL, f"the item at {offset} says it has {size} bytes of {end - offset}")
        yield Item(type, data[offset + HEADER_SIZE : offset + size], offset)
        offset += align(size)
    if offset != start + align(end - start):
        raise KdbusError(EINVAL, f"{end - offset} bytes after the last item are not an item")


# What the payload of a type must look like, whichever command it is in.


def _anything(payload: bytes) -> None:
    pass


def _exactly(size: int) -> Callable[[bytes], None]:
    def check(payload: bytes) -> None:
        if len(payload) != size:
            raise KdbusError(EINVAL, f"{len(payload)} bytes where {size} are needed")

    return check


def _at_least(size: int) -> Callable[[bytes], None]:
    def check(payload: bytes) -> None:
        if len(payload) < size:
            raise KdbusError(EINVAL, f"{len(payload)} bytes where {size} or more are needed")

    return check


def _multiple_of(size: int) -> Callable[[bytes], None]:
    def check(payload: bytes) -> None:
        if len(payload) % size:
            raise KdbusError(EINVAL, f"{len(payload)} bytes are no multiple of {size}")

    return check


def _string(payload: bytes) -> None:
    if not payload or payload.find(0) != len(payload) - 1:
        raise KdbusError(EINVAL, "a string has exactly one NUL, at its end")


def _node_name(payload: bytes) -> None:
    if len(payload) < 2:
        raise KdbusError(EINVAL, "an empty name")
    if len(payload) > MAX_NODE_NAME_LENGTH + 1:
        raise KdbusError(ENAMETOOLONG, f"a name of more than {MAX_NODE_NAME_LENGTH} bytes")
    _string(payload)
    if _NODE_NAME.fullmatch(payload, 0, len(payload) - 1) is None:
        raise KdbusError(EINVAL, f"{payload[:-1]!r} is not a name")


def _vec(payload: bytes) -> None:
    if len(payload) != VEC.size:
        raise KdbusError(EINVAL, f"a payload of {len(payload)} bytes where {VEC.size} are needed")
    if VEC.unpack(payload)[0] == 0:
        raise KdbusError(EINVAL, "an empty payload")


def _memfd(payload: bytes) -> None:
    if len(payload) != MEMFD.size:
        raise KdbusError(EINVAL, f"a payload of {len(payload)} bytes where {MEMFD.size} are needed")
    _, size, fd, _ = MEMFD.unpack(payload)
    if size == 0:
        raise KdbusError(EINVAL, "an empty payload")
    if fd < 0:
        raise KdbusError(EBADF, f"{fd} is not a descriptor")


def _name_notice(payload: bytes) -> None:
    if len(payload) < NAME_NOTICE.size:
        raise KdbusError(EINVAL, f"{len(payload)} bytes where {NAME_NOTICE.size} or more are needed")
    if len(payload) > NAME_NOTICE.size:
        _string(payload[NAME_NOTICE.size :])


_VALIDATORS: dict[int, Callable[[bytes], None]] = {
    ItemType.NEGOTIATE: _multiple_of(8),
    ItemType.PAYLOAD_VEC: _vec,
    ItemType.PAYLOAD_OFF: _vec,
    ItemType.PAYLOAD_MEMFD: _memfd,
    ItemType.FDS: _multiple_of(4),
    ItemType.CANCEL_FD: _exactly(FD.size),
    ItemType.BLOOM_PARAMETER: _exactly(BLOOM_PARAMETER.size),
    ItemType.BLOOM_FILTER: _at_least(8),
    ItemType.BLOOM_MASK: _anything,
    ItemType.DST_NAME: _string,
    ItemType.MAKE_NAME: _node_name,
    ItemType.ATTACH_FLAGS_SEND: _exactly(8),
    ItemType.ATTACH_FLAGS_RECV: _exactly(8),
    ItemType.ID: _exactly(8),
    ItemType.NAME: _string,
    ItemType.DST_ID: _exactly(8),
    ItemType.TIMESTAMP: _exactly(24),
    ItemType.CREDS: _exactly(64),
    ItemType.PIDS: _exactly(24),
    ItemType.AUXGROUPS: _multiple_of(8),
    ItemType.OWNED_NAME: _anything,
    ItemType.TID_COMM: _string,
    ItemType.PID_COMM: _string,
    ItemType.EXE: _string,
    ItemType.CMDLINE: _string,
    ItemType.CGROUP: _string,
    ItemType.CAPS: _at_least(4),
    ItemType.SECLABEL: _string,
    ItemType.AUDIT: _exactly(8),
    ItemType.CONN_DESCRIPTION: _node_name,
    ItemType.POLICY_ACCESS: _exactly(ACCESS.size),
    ItemType.NAME_ADD: _name_notice,
    ItemType.NAME_REMOVE: _name_notice,
    ItemType.NAME_CHANGE: _name_notice,
    ItemType.ID_ADD: _exactly(ID_NOTICE.size),
    ItemType.ID_REMOVE: _exactly(ID_NOTICE.size),
    ItemType.REPLY_TIMEOUT: _exactly(0),
    ItemType.REPLY_DEAD: _exactly(0),
}


def validate_item(item: Item) -> None:
    """Whether an item of a known type has the form of its type.

    Raises EINVAL, ENAMETOOLONG (node names and descriptions), EBADF (a memfd below zero); a type that no
    command knows is the caller's to refuse and raises EINVAL too.
    """
    check = _VALIDATORS.get(item.type)
    if check is None:
        raise KdbusError(EINVAL, f"there are no items of type {item.type:#x}")
    check(item.payload)


def build_item(type: int, payload: bytes) -> bytes:
    """An item with its padding."""
    size = HEADER_SIZE + len(payload)
    return ITEM_HEADER.pack(size, type) + payload + bytes(-size % 8)


def build_string_item(type: int, text: str | bytes) -> bytes:
    """An item whose payload is a string and its NUL."""
    raw = text.encode("latin-1") if isinstance(text, str) else text
    return build_item(type, raw + b"\0")


def build_numbers_item(type: int, *numbers: int) -> bytes:
    """An item whose payload is 64-bit numbers."""
    return build_item(type, Struct(f"={len(numbers)}Q").pack(*numbers))


def build_owned_name_item(flags: int, name: str) -> bytes:
    """OWNED_NAME: the flags somebody has a name with, and the name."""
    return build_item(ItemType.OWNED_NAME, NUMBER.pack(flags) + name.encode("latin-1") + b"\0")
