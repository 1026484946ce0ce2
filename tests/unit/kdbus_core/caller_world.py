"""Threads that issue commands: memory, descriptors, and files that count who refers to them.

The memory of a `Thread` consists of the blocks it has put somewhere; nothing lies between them, so whoever
reads or writes past one gets EFAULT. Its descriptors refer to `OpenFile`s: a test that ends with
`assert_no_reference_left` has shown that the broker kept none and closed none twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EFAULT

from kdbus_core.caller import SEALS_REQUIRED, File, FileKind
from kdbus_core.errors import KdbusError

# Files


@dataclass(eq=False)
class OpenFile:
    """What descriptors and references refer to; `readable` calls whoever watches."""

    kind: FileKind = FileKind.ORDINARY
    seals: int | None = None
    size: int = 0
    pollable: bool = True
    references: int = 0
    watchers: list[Callable[[], None]] = field(default_factory=list)
    is_readable: bool = False

    def become_readable(self) -> None:
        self.is_readable = True
        for watcher in list(self.watchers):
            watcher()

    def refer(self) -> Reference:
        self.references += 1
        return Reference(self)


def sealed_memory(size: int = 4096) -> OpenFile:
    return OpenFile(seals=SEALS_REQUIRED, size=size, pollable=False)


class Reference:
    """One reference to an open file."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self.is_closed = False

    @property
    def kind(self) -> FileKind:
        return self.file.kind

    @property
    def seals(self) -> int | None:
        return self.file.seals

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def pollable(self) -> bool:
        return self.file.pollable

    def duplicate(self) -> Reference:
        assert not self.is_closed
        return self.file.refer()

    def close(self) -> None:
        assert not self.is_closed, "closed twice"
        self.is_closed = True
        self.file.references -= 1

    def watch(self, on_readable: Callable[[], None]) -> Callable[[], None]:
        assert not self.is_closed
        watchers = self.file.watchers
        watchers.append(on_readable)
        if self.file.is_readable:
            on_readable()

        def stop() -> None:
            if on_readable in watchers:
                watchers.remove(on_readable)

        return stop


# Memory


@dataclass
class Block:
    address: int
    data: bytearray
    is_writable: bool = True


class Thread:
    """A caller: blocks of memory and a table of descriptors; `max_fds` is how many it may have."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.fds: dict[int, Reference] = {}
        self.max_fds = 1024
        self.protected: list[tuple[int, int]] = []
        self._next_address = 0x10000

    def put(self, data: bytes, *, writable: bool = True) -> int:
        """Lay these bytes somewhere, at a multiple of 8; returns the address."""
        address = self._next_address
        self.blocks.append(Block(address, bytearray(data), writable))
        self._next_address = (address + len(data) + 4096) & ~7
        return address

    def _block(self, address: int, size: int) -> Block:
        for block in reversed(self.blocks):
            if block.address <= address and address + size <= block.address + len(block.data):
                return block
        raise KdbusError(EFAULT, f"nothing lies at {address:#x}")

    def read(self, address: int, size: int) -> bytes:
        block = self._block(address, size)
        start = address - block.address
        return bytes(block.data[start : start + size])

    def protect(self, address: int, size: int) -> None:
        """From now on nothing can be written there."""
        self.protected.append((address, address + size))

    def write(self, address: int, data: bytes) -> None:
        block = self._block(address, len(data))
        is_protected = any(address < end and start < address + len(data) for start, end in self.protected)
        if is_protected or not block.is_writable:
            raise KdbusError(EFAULT, f"{address:#x} is read-only")
        start = address - block.address
        block.data[start : start + len(data)] = data

    def open(self, file: OpenFile) -> int:
        """A new descriptor for a file."""
        fd = next(fd for fd in range(3, 5000) if fd not in self.fds)
        self.fds[fd] = file.refer()
        return fd

    def close(self, fd: int) -> None:
        self.fds.pop(fd).close()

    def file(self, fd: int) -> File | None:
        reference = self.fds.get(fd)
        return None if reference is None else reference.duplicate()

    def install(self, file: File) -> int:
        if len(self.fds) >= self.max_fds:
            return -1
        assert isinstance(file, Reference)
        assert not file.is_closed
        return self.open(file.file)

    def assert_no_reference_left(self, *files: OpenFile) -> None:
        """Nobody but the tables of descriptors of this thread refers to these files."""
        for file in files:
            in_table = sum(reference.file is file for reference in self.fds.values())
            assert file.references == in_table
            assert not file.watchers
