"""The memory a connection receives into, cut into slices.

Slices tile a pool without gaps from its beginning to its end.  Each one is
free or busy; two free ones never lie side by side, because a slice that
becomes free merges with free neighbours.  The smallest free slice that is
large enough is taken, from its beginning, and what is left over stays free
behind it.  Nothing is ever moved, so fragmentation is the receiver's affair.

A busy slice has at most two owners.  The broker *holds* it while it composes
or queues what lies in it; the receiver has it once it is *published* to it, and
gives it back with FREE.  When neither has it any more it is free.

Free slices are found by size: a sorted list of the sizes that occur, and for
each of them the slices of that size.  There are few different sizes even where
there are many slices, since the free slices together are no larger than the
pool, so allocating and freeing take the same time in a full pool as in an
empty one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from errno import EINVAL, ENXIO, EXFULL
from typing import Protocol

from kdbus_core.abi import PAGE_SIZE, align
from kdbus_core.errors import KdbusError

CHUNK_SIZE = 64 * 1024
"""Bytes that `LazyMemory` provides at once."""
KEPT_CHUNKS = 4
"""How many of them it keeps when the pool is empty."""
JOIN_LIMIT = 16 * 1024
"""Up to this many bytes a slice is written at once: copying its chunks costs less than a write of each."""


class Memory(Protocol):
    """What a pool consists of; the receiver sees the same bytes."""

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes there."""

    def read(self, offset: int, size: int) -> bytes:
        """The bytes that are there."""

    def trim(self) -> None:
        """The pool is empty: what is there is of no use to anybody, and its room may be given back."""


class LazyMemory:
    """Memory that takes room only where something was written; elsewhere it is zero."""

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes there."""
        index, start = divmod(offset, CHUNK_SIZE)
        end = start + len(data)
        if end <= CHUNK_SIZE and (whole := self._chunks.get(index)) is not None:
            whole[start:end] = data
            return
        view = memoryview(data)
        while view:
            index, start = divmod(offset, CHUNK_SIZE)
            part = view[: CHUNK_SIZE - start]
            chunk = self._chunks.get(index)
            if chunk is None:
                chunk = self._chunks[index] = bytearray(CHUNK_SIZE)
            chunk[start : start + len(part)] = part
            offset += len(part)
            view = view[len(part) :]

    def read(self, offset: int, size: int) -> bytes:
        """The bytes that are there."""
        parts = []
        while size > 0:
            index, start = divmod(offset, CHUNK_SIZE)
            count = min(size, CHUNK_SIZE - start)
            chunk = self._chunks.get(index)
            parts.append(bytes(count) if chunk is None else chunk[start : start + count])
            offset += count
            size -= count
        return b"".join(parts)

    def trim(self) -> None:
        """Keep no more than a little room for what comes next."""
        if len(self._chunks) > KEPT_CHUNKS:
            self._chunks = {index: self._chunks[index] for index in list(self._chunks)[:KEPT_CHUNKS]}

    def __len__(self) -> int:
        """Bytes that it takes."""
        return len(self._chunks) * CHUNK_SIZE


class Slice:
    """A piece of a pool: `offset` and `size` in bytes, both multiples of 8."""

    __slots__ = ("_after", "_before", "is_held", "is_published", "offset", "size")

    _after: Slice
    _before: Slice

    def __init__(self, offset: int, size: int) -> None:
        self.offset = offset
        self.size = size
        self.is_held = False
        self.is_published = False

    @property
    def is_busy(self) -> bool:
        """Whether the broker or the receiver has it."""
        return self.is_held or self.is_published

    def __repr__(self) -> str:
        owners = ("held " if self.is_held else "") + ("published " if self.is_published else "")
        return f"<{owners or 'free '}slice {self.offset}+{self.size}>"


class Pool:
    """A pool of `size` bytes, a multiple of PAGE_SIZE (EINVAL).  `busy` counts the bytes in busy slices."""

    __slots__ = ("_busy", "_edge", "_free", "_sizes", "busy", "memory", "size")

    def __init__(self, size: int, memory: Memory | None = None) -> None:
        if size <= 0 or size % PAGE_SIZE:
            raise KdbusError(EINVAL, f"a pool of {size} bytes is no multiple of {PAGE_SIZE}")
        self.size = size
        self.memory: Memory = LazyMemory() if memory is None else memory
        self.busy = 0
        self._busy: dict[int, Slice] = {}
        self._sizes: list[int] = []
        self._free: dict[int, dict[int, Slice]] = {}
        # Before the first slice and after the last one; never free, so that nothing merges with it.
        self._edge = edge = Slice(size, 0)
        edge.is_held = True
        whole = Slice(0, size)
        edge._before = edge._after = whole
        whole._before = whole._after = edge
        self._put_in(whole)

    def slices(self) -> Iterator[Slice]:
        """All slices, free ones too, by ascending offset."""
        slice_ = self._edge._after
        while slice_ is not self._edge:
            yield slice_
            slice_ = slice_._after

    def allocate(self, size: int) -> Slice:
        """A slice of `size` bytes (> 0), rounded up to 8, held by the broker.

        EXFULL when no free slice is large enough.
        """
        assert size > 0
        size = align(size)
        index = bisect_left(self._sizes, size)
        if index == len(self._sizes):
            raise KdbusError(EXFULL, f"no {size} bytes in a row are free in this pool")
        found = self._sizes[index]
        shelf = self._free[found]
        offset, slice_ = shelf.popitem()
        if not shelf:
            del self._free[found]
            del self._sizes[index]
        if found > size:
            rest = Slice(offset + size, found - size)
            rest._before = slice_
            rest._after = slice_._after
            slice_._after._before = rest
            slice_._after = rest
            slice_.size = size
            self._put_in(rest)
        slice_.is_held = True
        self._busy[offset] = slice_
        self.busy += size
        return slice_

    def write(self, slice_: Slice, position: int, data: bytes) -> None:
        """Put bytes into a slice the broker holds, `position` bytes from its beginning."""
        assert slice_.is_held
        assert 0 <= position <= slice_.size - len(data)
        self.memory.write(slice_.offset + position, data)

    def store(self, chunks: Sequence[bytes], size: int) -> Slice:
        """A new slice of `size` bytes, held by the broker, with these chunks one after another; EXFULL."""
        slice_ = self.allocate(size)
        try:
            self.fill(slice_, chunks)
        except BaseException:
            self.release(slice_)
            raise
        return slice_

    def fill(self, slice_: Slice, chunks: Sequence[bytes]) -> None:
        """Put chunks one after another into a slice the broker holds, from its beginning."""
        if slice_.size <= JOIN_LIMIT:
            self.write(slice_, 0, b"".join(chunks))
            return
        position = 0
        for chunk in chunks:
            self.write(slice_, position, chunk)
            position += len(chunk)

    def publish(self, slice_: Slice) -> None:
        """Let the receiver have a slice the broker holds, until FREE; twice is as good as once."""
        assert slice_.is_held
        slice_.is_published = True

    def release(self, slice_: Slice) -> None:
        """The broker needs the slice no longer."""
        assert slice_.is_held
        slice_.is_held = False
        if not slice_.is_published:
            self._reclaim(slice_)

    def free(self, offset: int) -> None:
        """The receiver needs a slice no longer (FREE).

        The size of the pool is the offset of empty answers: nothing happens.
        Raises ENXIO unless a published slice begins there.
        """
        if offset == self.size:
            return
        slice_ = self._busy.get(offset)
        if slice_ is None or not slice_.is_published:
            raise KdbusError(ENXIO, f"no slice to free at {offset}")
        slice_.is_published = False
        if not slice_.is_held:
            self._reclaim(slice_)

    def answer(self, data: bytes) -> tuple[int, int]:
        """Publish the answer of a command; returns its offset and the slice's size.

        An empty answer takes no slice and is (size of the pool, 0).  EXFULL
        when there is no room.
        """
        if not data:
            return self.size, 0
        slice_ = self.store((data,), len(data))
        self.publish(slice_)
        self.release(slice_)
        return slice_.offset, slice_.size

    def _reclaim(self, slice_: Slice) -> None:
        """Make a slice free that nobody has any more, together with free neighbours."""
        del self._busy[slice_.offset]
        self.busy -= slice_.size
        after = slice_._after
        if not after.is_busy:
            self._take_out(after)
            self._absorb(slice_, after)
        before = slice_._before
        if not before.is_busy:
            self._take_out(before)
            self._absorb(before, slice_)
            slice_ = before
        self._put_in(slice_)
        if not self.busy:
            self.memory.trim()

    @staticmethod
    def _absorb(slice_: Slice, after: Slice) -> None:
        slice_.size += after.size
        slice_._after = after._after
        after._after._before = slice_

    def _put_in(self, slice_: Slice) -> None:
        shelf = self._free.get(slice_.size)
        if shelf is None:
            self._free[slice_.size] = {slice_.offset: slice_}
            insort(self._sizes, slice_.size)
        else:
            shelf[slice_.offset] = slice_

    def _take_out(self, slice_: Slice) -> None:
        shelf = self._free[slice_.size]
        del shelf[slice_.offset]
        if not shelf:
            del self._free[slice_.size]
            del self._sizes[bisect_left(self._sizes, slice_.size)]
