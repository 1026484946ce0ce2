"""Messages as their receiver has them.

A message lies in a slice of the pool until the slice is freed.  Small ones, up
to `COPY_LIMIT` bytes, are copied out as a whole and their slice is free again at
once; of a larger one only header and items are copied, and the payload stays
where it is until the message is closed.  Payload in sealed memory is mapped
when it is looked at, and never copied.

Everything that a message says of itself was checked against the slice before
anybody can see it: no size, offset or descriptor in it leads anywhere else.

A `Received` owns its slice, its mappings and its descriptors, and gives them up
exactly once: in `close`, or, of descriptors, to whoever takes them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import EBADF, EBADMSG
from typing import NamedTuple

from kdbus_core.abi import (
    ITEM_HEADER,
    MAX_VEC_PAYLOAD,
    MSG,
    PAYLOAD_KERNEL,
    SRC_KERNEL,
    ZERO_FILL,
    ItemType,
    MessageFlag,
)
from kdbus_core.errors import KdbusError
from kdbus_core.items import FD, MEMFD, NUMBER, VEC
from kdbus_core.matches import Filter
from kdbus_core.message import Zeros
from kdbus_core.transport.client.notices import Notification, parse_notification
from kdbus_core.transport.client.operations import close_fds
from kdbus_core.transport.client.pool import COPY_LIMIT, PoolView
from kdbus_core.transport.client.records import Metadata, parse_metadata, walk
from kdbus_core.transport.files import map_sealed

_EXPECT_REPLY = int(MessageFlag.EXPECT_REPLY)
_PAYLOAD_OFF = int(ItemType.PAYLOAD_OFF)
_PAYLOAD_MEMFD = int(ItemType.PAYLOAD_MEMFD)
_FDS = int(ItemType.FDS)
_DST_NAME = int(ItemType.DST_NAME)
_HEADER_SIZE = ITEM_HEADER.size
_NO_SLICE = -1

_forks = 0
"""How many forks have led to this process; a message from before one has its slice for the parent to free."""


def _on_forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_on_forked)


class SealedMemory(NamedTuple):
    """`size` bytes from `start` of a sealed memfd, passed on without a copy; the descriptor is borrowed."""

    fd: int
    start: int
    size: int


Part = bytes | bytearray | memoryview | SealedMemory | Zeros
"""A part of a payload that is to be sent."""


class _Stored(NamedTuple):
    """Payload in the slice."""

    offset: int
    size: int


class _Layout:
    """What the items of a message say, checked: payload, descriptors, the destination's name."""

    __slots__ = ("dst_name", "fds", "lacks", "memfds", "pieces")

    def __init__(self) -> None:
        self.pieces: list[_Stored | SealedMemory | Zeros] = []
        self.fds: tuple[int, ...] = ()
        self.memfds: list[int] = []
        self.dst_name: str | None = None
        self.lacks = False


def _malformed(why: str) -> KdbusError:
    return KdbusError(EBADMSG, f"a message cannot be read: {why}")


def _parse_items(head: bytes, end: int, slice_size: int, fds: list[int], layout: _Layout) -> None:
    """Read the items of a message up to `end`; the descriptors they speak of are taken out of `fds`."""
    at = MSG.size
    zeros = 0
    while at < end:
        if end - at < _HEADER_SIZE:
            raise _malformed(f"{end - at} bytes after the last item")
        size, kind = ITEM_HEADER.unpack_from(head, at)
        if not _HEADER_SIZE <= size <= end - at:
            raise _malformed(f"an item of {size} bytes where {end - at} are left")
        start = at + _HEADER_SIZE
        if kind == _PAYLOAD_OFF:
            if size != _HEADER_SIZE + VEC.size:
                raise _malformed(f"a payload item of {size} bytes")
            length, offset = VEC.unpack_from(head, start)
            if offset == ZERO_FILL:
                zeros += length
                if zeros > MAX_VEC_PAYLOAD:
                    raise _malformed(f"{zeros} bytes that are zero")
                layout.pieces.append(Zeros(length))
            elif offset < end or length > slice_size or offset > slice_size - length:
                raise _malformed(f"{length} bytes at {offset} of {slice_size} are not payload")
            else:
                layout.pieces.append(_Stored(offset, length))
        elif kind == _PAYLOAD_MEMFD:
            if size != _HEADER_SIZE + MEMFD.size:
                raise _malformed(f"a payload item of {size} bytes")
            first, length, index, _ = MEMFD.unpack_from(head, start)
            fd = _take_fd(fds, index, layout)
            layout.memfds.append(fd)
            layout.pieces.append(SealedMemory(fd, first, length))
        elif kind == _FDS:
            if size % FD.size or layout.fds:
                raise _malformed(f"descriptors in {size - _HEADER_SIZE} bytes")
            # One by one into the layout, so that none is lost where a later one is wrong.
            for (index,) in FD.iter_unpack(head[start : at + size]):
                layout.fds += (_take_fd(fds, index, layout),)
        elif kind == _DST_NAME:
            layout.dst_name = head[start : at + size].partition(b"\0")[0].decode("latin-1")
        at += size + (-size % 8)


def _take_fd(fds: list[int], index: int, layout: _Layout) -> int:
    """The descriptor with this index; -1 where none was installed, or it did not get through."""
    if index < 0:
        return -1
    if index >= len(fds):
        layout.lacks = True
        return -1
    fd = fds[index]
    if fd < 0:
        raise _malformed(f"descriptor {index} is there twice")
    fds[index] = -1
    return fd


class Received:
    """A message; a context manager, closed at its end.

    `sender` is the id of the connection it came from (0: the broker), `destination` the id in its header.
    `cookie_reply` is 0 where there is none, `timeout_ns` (monotonic clock) where no reply is expected.
    `lost` messages were lost before it.  `incomplete` says that descriptors could not be had; -1 stands
    for each of them in `fds`.  After `close`, what was copied stays; views of the payload do not.
    """

    __slots__ = (
        "_data",
        "_forks",
        "_head",
        "_layout",
        "_metadata",
        "_offset",
        "_parts",
        "_pool",
        "cookie",
        "cookie_reply",
        "destination",
        "flags",
        "incomplete",
        "lost",
        "payload_type",
        "priority",
        "sender",
        "timeout_ns",
    )

    def __init__(
        self,
        pool: PoolView,
        offset: int,
        size: int,
        *,
        fds: list[int],
        incomplete: bool = False,
        lost: int = 0,
        is_peeked: bool = False,
    ) -> None:
        """Read the message in a slice, which is the message's then, but for one that was only peeked at.

        So are the descriptors it speaks of: they are taken out of `fds`, where -1 stays.  Raises EBADMSG
        when it cannot be read; then all that it had is given up again.
        """
        self._pool = pool
        self._offset = _NO_SLICE
        self._layout = layout = _Layout()
        self._parts: list[memoryview] | None = None
        self._metadata: Metadata | None = None
        pool.check(offset, size)
        try:
            if size < MSG.size:
                raise _malformed(f"it has {size} bytes")
            if size <= COPY_LIMIT:
                self._data: bytes | memoryview = pool.view[offset : offset + size].tobytes()
                self._head = head = self._data
                end, *fields = MSG.unpack_from(head)
            else:
                self._data = pool.view[offset : offset + size]
                end, *fields = MSG.unpack_from(self._data)
                if is_peeked:
                    self._data = self._data.tobytes()
                self._head = head = bytes(self._data[:end])
            if not MSG.size <= end <= size:
                raise _malformed(f"{end} bytes in a slice of {size}")
            self.flags, self.priority, self.destination, self.sender, self.payload_type, self.cookie, last = (
                fields
            )
            if end > MSG.size:
                _parse_items(head, end, size, fds, layout)
        except BaseException:
            if not is_peeked:
                pool.free(offset, size)
            self._close_fds()
            raise
        if isinstance(self._data, memoryview):
            self._offset = offset
            self._forks = _forks
        elif not is_peeked:
            pool.free(offset, size)
        expects_reply = self.flags & _EXPECT_REPLY
        self.timeout_ns: int = last if expects_reply else 0
        self.cookie_reply: int = 0 if expects_reply else last
        self.lost = lost
        self.incomplete = incomplete or layout.lacks

    def __enter__(self) -> Received:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        try:
            layout = self._layout
        except AttributeError:  # it never was
            return
        if self._offset != _NO_SLICE or layout.memfds or any(fd >= 0 for fd in layout.fds):
            if self._offset == _NO_SLICE or self._forks == _forks:
                _warn(f"{self!r} was not closed", ResourceWarning, source=self)
            self.close()

    def __repr__(self) -> str:
        cookie = getattr(self, "cookie", None)
        return f"<message {cookie} from {getattr(self, 'sender', None)}>"

    def close(self) -> None:
        """Give the slice back and close what was not taken; twice is as good as once."""
        parts, self._parts = self._parts, None
        for part in parts or ():
            with suppress(BufferError):  # who exports it lets it go
                part.release()
        self._close_fds()
        offset, self._offset = self._offset, _NO_SLICE
        if offset != _NO_SLICE:
            assert isinstance(self._data, memoryview)
            size = len(self._data)
            self._data.release()
            if self._forks == _forks:
                self._pool.free(offset, size)

    def _close_fds(self) -> None:
        layout = self._layout
        fds, layout.fds = layout.fds, ()
        memfds, layout.memfds = layout.memfds, []
        if memfds:
            layout.pieces = [
                piece._replace(fd=-1) if isinstance(piece, SealedMemory) else piece for piece in layout.pieces
            ]
        close_fds(memfds)
        close_fds(fds)

    # What it carries

    @property
    def dst_name(self) -> str | None:
        """The well-known name it was sent to."""
        return self._layout.dst_name

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors handed over, closed with the message; -1 for one that could not be had."""
        return self._layout.fds

    def take_fds(self) -> tuple[int, ...]:
        """The descriptors handed over, which are the caller's from now on."""
        fds, self._layout.fds = self._layout.fds, ()
        return fds

    @property
    def pieces(self) -> Sequence[memoryview | SealedMemory | Zeros]:
        """The payload without looking into it: sealed memory as such, so that it can be sent on."""
        return [self._view(*piece) if isinstance(piece, _Stored) else piece for piece in self._layout.pieces]

    @property
    def parts(self) -> list[memoryview]:
        """The parts of the payload; EBADF for sealed memory that there is no descriptor of."""
        if self._parts is None:
            self._parts = [self._look_at(piece) for piece in self._layout.pieces]
        return self._parts

    @property
    def payload(self) -> bytes:
        """All of the payload as one copy."""
        pieces = self._layout.pieces
        if len(pieces) == 1 and isinstance(piece := pieces[0], _Stored):
            offset, size = piece
            return bytes(self._data[offset : offset + size])
        return b"".join(self.parts)

    @property
    def payload_size(self) -> int:
        """Bytes of the payload."""
        return sum(piece.size for piece in self._layout.pieces)

    def _look_at(self, piece: _Stored | SealedMemory | Zeros) -> memoryview:
        match piece:
            case SealedMemory():
                return self._map(piece)
            case Zeros(size):
                return memoryview(bytes(size))
            case _:
                return self._view(*piece)

    def _view(self, offset: int, size: int) -> memoryview:
        return memoryview(self._data)[offset : offset + size]

    @staticmethod
    def _map(piece: SealedMemory) -> memoryview:
        if piece.fd < 0:
            raise KdbusError(EBADF, "there is no descriptor of this payload")
        try:
            return map_sealed(piece.fd, piece.start, piece.size)
        except OSError as error:
            raise KdbusError(error.errno or EBADMSG, f"payload cannot be mapped: {error}") from error

    # What is told with it

    @property
    def metadata(self) -> Metadata:
        """What is told of the sender; EBADMSG."""
        if self._metadata is None:
            self._metadata = parse_metadata(self._items, MSG.size)
        return self._metadata

    @property
    def _items(self) -> bytes:
        """Header and items."""
        size: int = NUMBER.unpack_from(self._head)[0]
        return self._head if size == len(self._head) else self._head[:size]

    @property
    def is_signal(self) -> bool:
        """Whether it is a signal or a broadcast notification."""
        return bool(self.flags & MessageFlag.SIGNAL)

    @property
    def expects_reply(self) -> bool:
        """Whether its sender waits for a reply."""
        return bool(self.flags & _EXPECT_REPLY)

    @property
    def filter(self) -> Filter | None:
        """The bloom filter of a signal."""
        for item in walk(self._items, MSG.size):
            if item.type == ItemType.BLOOM_FILTER and len(item.payload) > NUMBER.size:
                return Filter(NUMBER.unpack_from(item.payload)[0], item.payload[NUMBER.size :])
        return None

    @property
    def notification(self) -> Notification | None:
        """What the broker says; None for a message of a connection, or of a kind there is no type for."""
        if self.sender != SRC_KERNEL or self.payload_type != PAYLOAD_KERNEL:
            return None
        return parse_notification(self._items, self.cookie_reply)
