"""A message that is to be sent, as the bytes of a SEND.

The command, the message with its items, and payload lie one after the other in
the body.  Small payload goes along in the packet, more of it in a memfd that
carries the rest of the body, and what is large travels as a sealed memfd of its
own, which the receiver maps.  What the parts are cut into may change on
the way; all of them together, in their order, is the payload.

Parts that nobody else may see changing are copied once: into the packet or
into the memfd.  `SealedMemory` is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL, EMFILE
from functools import lru_cache
from itertools import groupby
from struct import Struct
from struct import error as StructError
from typing import NamedTuple, TypedDict

from kdbus_core.abi import (
    CMD_SEND,
    DST_BROADCAST,
    ITEM_HEADER,
    MAX_MEMFDS,
    MAX_VEC_PAYLOAD,
    MSG,
    PAYLOAD_DBUS,
    ItemType,
    MessageFlag,
    SendFlag,
    align,
)
from kdbus_core.errors import KdbusError
from kdbus_core.items import FD, MEMFD, NUMBER, VEC, build_item, build_string_item
from kdbus_core.matches import Filter
from kdbus_core.message import Zeros
from kdbus_core.transport.client.operations import close_fds
from kdbus_core.transport.client.received import Part, SealedMemory
from kdbus_core.transport.files import make_memfd
from kdbus_core.transport.protocol import CARRIED, MAX_FDS, MAX_INLINE

MEMFD_THRESHOLD = 512 * 1024
"""Bytes of a part from which on it travels as sealed memory; of a broadcast only what cannot go otherwise."""
MAX_PARTS = 512
"""More parts than this are put together, so that the items fit into a command."""

_HEAD = Struct("=3Q4Q2Qq5Q")
"""The struct of SEND and that of the message."""
_PLAIN = Struct("=3Q4Q2Qq5Q4Q")
"""Both, and one PAYLOAD_VEC."""
_VEC_ITEM = Struct("=4Q")
_VEC_SIZE = ITEM_HEADER.size + VEC.size
_PAYLOAD_VEC = int(ItemType.PAYLOAD_VEC)
_EXPECT_REPLY = int(MessageFlag.EXPECT_REPLY)
_SYNC_REPLY = int(SendFlag.SYNC_REPLY)
_CANCEL_ITEM_SIZE = align(ITEM_HEADER.size + FD.size)


class SendOptions(TypedDict, total=False):
    """What else is said of a message; all of it may be left out."""

    cookie: int
    """Its number; 0 (the default) takes the connection's next one."""
    flags: MessageFlag
    """EXPECT_REPLY and NO_AUTO_START; SIGNAL is implied by a filter, EXPECT_REPLY by a call."""
    payload_type: int
    """Any but 0; PAYLOAD_DBUS by default."""
    cookie_reply: int
    """The request that this answers."""
    timeout_ns: int
    """Of the monotonic clock (time.monotonic_ns), until when a reply is waited for."""
    priority: int
    """The lower, the more urgent; of receivers that ask by priority."""
    filter: Filter | None
    """The bloom filter that makes it a signal."""
    fds: Sequence[int]
    """Descriptors to hand over, borrowed until it is sent."""
    dst_id: int
    """With a name as the destination: who has to own it (else EREMCHG)."""


class Draft(NamedTuple):
    """A SEND ready to go: body, descriptors, those among them that are its own, flags of the request."""

    body: bytes
    fds: tuple[int, ...]
    owned: tuple[int, ...]
    flags: int
    cookie: int


@lru_cache(maxsize=1024)
def _name_item(name: str) -> bytes:
    return build_string_item(ItemType.DST_NAME, name)


def build_send(
    parts: Sequence[Part] | bytes | bytearray | memoryview,
    destination: int | str | None,
    *,
    cookie: int = 0,
    is_sync: bool = False,
    cancel_fd: int | None = None,
    flags: int = 0,
    payload_type: int = PAYLOAD_DBUS,
    cookie_reply: int = 0,
    timeout_ns: int = 0,
    priority: int = 0,
    filter: Filter | None = None,
    fds: Sequence[int] = (),
    dst_id: int = 0,
) -> Draft:
    """A SEND of this payload to an id, a name or (None) everybody; EINVAL for a number that does not fit."""
    name = b""
    if destination is None:
        dst_id = DST_BROADCAST
    elif isinstance(destination, str):
        name = _build_name(destination)
    else:
        dst_id = int(destination)
    if filter is not None:
        flags |= MessageFlag.SIGNAL
    if is_sync:
        flags |= _EXPECT_REPLY
    if timeout_ns and cookie_reply:
        raise KdbusError(EINVAL, "a message that expects a reply cannot be one")
    header = (int(flags), priority, dst_id, 0, payload_type, cookie, timeout_ns or cookie_reply)
    try:
        if isinstance(parts, bytes) and not fds and filter is None and cancel_fd is None:
            size = len(parts)
            if 0 < size <= MAX_INLINE - _PLAIN.size - len(name):
                return Draft(_build_plain(parts, name, header, is_sync=is_sync), (), (), 0, cookie)
        if isinstance(parts, bytes | bytearray | memoryview):
            parts = (parts,)
        return _build(
            parts, name, header, is_sync=is_sync, cancel_fd=cancel_fd, filter=filter, fds=tuple(fds)
        )
    except StructError as error:
        raise KdbusError(EINVAL, f"the header of a message: {error}") from error


def _build_name(name: str) -> bytes:
    try:
        return _name_item(name)
    except UnicodeEncodeError as error:
        raise KdbusError(EINVAL, f"{name!r} is not a well-known name") from error


_Header = tuple[int, int, int, int, int, int, int]
"""Of a message what follows its size."""


def _build_plain(payload: bytes, name: bytes, header: _Header, *, is_sync: bool) -> bytes:
    """The body of what nearly all messages are: one short payload and nothing else."""
    length = len(payload)
    items = _VEC_SIZE + len(name)
    if name:
        vec = _VEC_ITEM.pack(_VEC_SIZE, _PAYLOAD_VEC, length, _HEAD.size + items)
        return b"".join((_pack_head(items, header, is_sync=is_sync), name, vec, payload))
    return (
        _PLAIN.pack(
            CMD_SEND.size,
            _SYNC_REPLY if is_sync else 0,
            0,
            CMD_SEND.size,
            0,
            0,
            0,
            MSG.size + items,
            *header,
            _VEC_SIZE,
            _PAYLOAD_VEC,
            length,
            _PLAIN.size,
        )
        + payload
    )


def _pack_head(items: int, header: _Header, *, is_sync: bool) -> bytes:
    flags = _SYNC_REPLY if is_sync else 0
    return _HEAD.pack(CMD_SEND.size, flags, 0, CMD_SEND.size, 0, 0, 0, MSG.size + items, *header)


def _build(
    parts: Sequence[Part],
    name: bytes,
    header: _Header,
    *,
    is_sync: bool,
    cancel_fd: int | None,
    filter: Filter | None,
    fds: tuple[int, ...],
) -> Draft:
    """The general case: any parts, descriptors, a filter, something that cancels."""
    owned: list[int] = []
    try:
        parts = _place(parts, owned, is_broadcast=header[2] == DST_BROADCAST)
        sent = list(fds)
        items = [] if filter is None else [_build_filter(filter)]
        items.append(name)
        vecs: list[int] = []  # where in `items` the address of stored payload is to be put
        stored: list[bytes | bytearray | memoryview] = []
        for part in parts:
            match part:
                case SealedMemory(fd, start, size):
                    items.append(build_item(ItemType.PAYLOAD_MEMFD, MEMFD.pack(start, size, len(sent), 0)))
                    sent.append(fd)
                case Zeros(size):
                    items.append(_VEC_ITEM.pack(_VEC_SIZE, _PAYLOAD_VEC, size, 0))
                case _:
                    vecs.append(len(items))
                    items.append(b"")
                    stored.append(part)
        if fds:
            items.append(build_item(ItemType.FDS, b"".join(FD.pack(index) for index in range(len(fds)))))
        cancel = b""
        if cancel_fd is not None:
            cancel = build_item(ItemType.CANCEL_FD, FD.pack(len(sent)))
            sent.append(cancel_fd)
        items_size = sum(map(len, items)) + _VEC_SIZE * len(vecs)
        address = CMD_SEND.size + len(cancel) + MSG.size + items_size
        for index, data in zip(vecs, stored, strict=True):
            items[index] = _VEC_ITEM.pack(_VEC_SIZE, _PAYLOAD_VEC, len(data), address)
            address += len(data)
        message = CMD_SEND.size + len(cancel)
        command = CMD_SEND.pack(message, _SYNC_REPLY if is_sync else 0, 0, message, 0, 0, 0)
        head = b"".join((command, cancel, MSG.pack(MSG.size + items_size, *header), *items))
        flags = 0
        if address <= MAX_INLINE:
            head = b"".join((head, *stored))
        elif stored:
            owned.append(_make_memfd(stored, sealed=False))
            sent.append(owned[-1])
            flags = CARRIED
        if len(sent) > MAX_FDS:
            raise KdbusError(EMFILE, f"{len(sent)} descriptors where {MAX_FDS} go with a packet")
        return Draft(head, tuple(sent), tuple(owned), flags, header[5])
    except BaseException:
        close_fds(owned)
        raise


def _build_filter(filter: Filter) -> bytes:
    return build_item(ItemType.BLOOM_FILTER, NUMBER.pack(filter.generation) + filter.bits)


def _make_memfd(chunks: Sequence[bytes | bytearray | memoryview], *, sealed: bool) -> int:
    try:
        return make_memfd(chunks, name="kdbus-payload", sealed=sealed)  # type: ignore[arg-type]
    except OSError as error:
        raise KdbusError(error.errno or EINVAL, f"no memory for a payload: {error}") from error


# Where the parts go


def _length(part: Part) -> int:
    """Bytes of a part that go through the broker's memory, 0 for those of sealed memory."""
    if isinstance(part, SealedMemory):
        return 0
    return part.size if isinstance(part, Zeros) else len(part)


def _place(parts: Sequence[Part], owned: list[int], *, is_broadcast: bool) -> list[Part]:
    """The parts, flat and none of them empty, with what is large in sealed memory that `owned` gets."""
    threshold = MAX_VEC_PAYLOAD + 1 if is_broadcast else MEMFD_THRESHOLD
    flat = [_flatten(part) if isinstance(part, memoryview) else part for part in parts]
    flat = [part for part in flat if (part.size if isinstance(part, SealedMemory | Zeros) else len(part))]
    sealed = sum(isinstance(part, SealedMemory) or _is_large(part, threshold) for part in flat)
    through = sum(_length(part) for part in flat if not _is_large(part, threshold))
    if through <= MAX_VEC_PAYLOAD and sealed <= MAX_MEMFDS and len(flat) <= MAX_PARTS:
        return [_seal((part,), owned) if _is_large(part, threshold) else part for part in flat]  # type: ignore[arg-type]
    # Too many or too much in small pieces: whatever lies side by side goes together.
    placed: list[Part] = []
    for is_data, group in groupby(flat, lambda part: not isinstance(part, SealedMemory | Zeros)):
        if is_data:
            placed.append(_seal(list(group), owned))  # type: ignore[arg-type]
        else:
            placed += group
    return placed


def _flatten(view: memoryview) -> Part:
    """The bytes behind a view of whatever shape."""
    if view.ndim == 1 and view.itemsize == 1 and view.c_contiguous:
        return view
    return view.cast("B") if view.c_contiguous else view.tobytes()


def _is_large(part: Part, threshold: int) -> bool:
    return not isinstance(part, SealedMemory | Zeros) and len(part) >= threshold


def _seal(chunks: Sequence[bytes | bytearray | memoryview], owned: list[int]) -> SealedMemory:
    owned.append(_make_memfd(chunks, sealed=True))
    return SealedMemory(owned[-1], 0, sum(map(len, chunks)))
