"""A pool in shared memory: the broker writes, the receiver maps the same pages for reading.

The order of three steps makes the pool unwritable for everybody but the
broker: it maps the memory for writing, then seals it against further writing
of any kind, against shrinking and growing, and against the removal of seals;
and only then is there a descriptor for somebody else, opened for reading.  The
seal stays with the memory, whichever way it is opened again, by whomever.

The pages appear as they are written.  Nobody can make them go again, because
the same seal that keeps a receiver from writing keeps the broker from punching
holes; a pool therefore takes as much memory as it ever needed at once.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys

from kdbus_core.caller import SEAL_GROW, SEAL_SEAL, SEAL_SHRINK

SEAL_FUTURE_WRITE = 0x10
"""F_SEAL_FUTURE_WRITE, Linux ≥ 5.1: mappings that exist stay writable, and there are no new ones."""
POOL_SEALS = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW | SEAL_FUTURE_WRITE


class SharedMemory:
    """The memory of one pool; see `kdbus_core.pool.Memory`.  The session closes it, after the connection."""

    __slots__ = ("_export", "_map", "is_sealed", "size")

    def __init__(self, size: int) -> None:
        """Memory of `size` bytes, a multiple of the page size; OSError when there is none.

        `is_sealed` says whether the kernel knows the seal against writing; without it only the descriptor's
        own mode and that of the memory keep others from it.
        """
        self.size = size
        self._export = -1
        fd = os.memfd_create("kdbus-pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            self._map = _map_for_writing(fd, size)
            try:
                self.is_sealed = _seal(fd)
                self._export = _reopen_for_reading(fd)
            except BaseException:
                self._map.close()
                raise
        finally:
            os.close(fd)

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes there; IndexError outside of the pool."""
        self._map[offset : offset + len(data)] = data

    def read(self, offset: int, size: int) -> bytes:
        """The bytes that are there."""
        return self._map[offset : offset + size]

    def trim(self) -> None:
        """Nothing: the seal forbids to punch holes, and receivers may still look at what they freed."""

    def export_fd(self) -> int:
        """The descriptor for the receiver, which can only be mapped for reading; it can be taken once.

        Whoever takes it closes it.
        """
        fd, self._export = self._export, -1
        assert fd >= 0, "the descriptor of this pool has been taken"
        return fd

    def close(self) -> None:
        """Give back what the broker has of it; what the receiver has mapped stays.  Twice is fine."""
        self._map.close()
        fd, self._export = self._export, -1
        if fd >= 0:
            os.close(fd)


def _map_for_writing(fd: int, size: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, trackfd=False)
    return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def _seal(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, POOL_SEALS)
    except OSError:
        # A kernel without that seal; nobody but the broker's own user may open the memory, and only to read.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, POOL_SEALS & ~SEAL_FUTURE_WRITE)
        os.fchmod(fd, 0o400)
        return False
    return True


def _reopen_for_reading(fd: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
