"""The receiver's side of a pool, and memory that comes as a descriptor.

A pool is memory that the broker writes and this process can only read.  What
lies in a slice of it stays there until the slice is freed, which the broker is
told without waiting for it: small slices with the next command, because that
costs least, and at once those that others might miss.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from errno import EBADMSG

from kdbus_core.errors import KdbusError

COPY_LIMIT = 16 * 1024
"""Bytes of a slice up to which it is copied out of the pool instead of being held."""


class PoolView:
    """A pool as its receiver sees it.  Owns the mapping."""

    __slots__ = ("_free_now", "_free_soon", "_map", "size", "view")

    def __init__(
        self, fd: int, size: int, free_soon: Callable[[int], None], free_now: Callable[[int], None]
    ) -> None:
        """Map `size` bytes of the memory behind `fd`, which stays the caller's; OSError."""
        self._map: mmap.mmap | None = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        self.view = memoryview(self._map)
        self.size = size
        self._free_soon = free_soon
        self._free_now = free_now

    def free(self, offset: int, size: int) -> None:
        """Give back a slice: at once if others might miss it, else with the next command."""
        if size <= COPY_LIMIT and size * 16 <= self.size:
            self._free_soon(offset)
        else:
            self._free_now(offset)

    def read(self, offset: int, size: int) -> bytes:
        """A copy of what lies there; EBADMSG when that is not in the pool."""
        self.check(offset, size)
        return self.view[offset : offset + size].tobytes()

    def take(self, offset: int, size: int) -> bytes:
        """The answer that lies there, whose slice is given back; an empty one has none."""
        if not size:
            return b""
        data = self.read(offset, size)
        self.free(offset, size)
        return data

    def check(self, offset: int, size: int) -> None:
        """EBADMSG unless so many bytes lie there."""
        if size > self.size or offset > self.size - size:
            raise KdbusError(EBADMSG, f"{size} bytes at {offset} are not in a pool of {self.size}")

    def close(self) -> None:
        """Let go of the memory; it stays mapped for as long as somebody still looks at a part of it."""
        self.view.release()
        pool, self._map = self._map, None
        if pool is not None:
            with suppress(BufferError):  # the last view of a message closes it
                pool.close()


def read_all(fd: int) -> bytes:
    """Everything in a memfd; OSError."""
    size = os.fstat(fd).st_size
    chunks: list[bytes] = []
    at = 0
    while at < size:
        chunk = os.pread(fd, size - at, at)
        if not chunk:
            break
        chunks.append(chunk)
        at += len(chunk)
    return b"".join(chunks)
