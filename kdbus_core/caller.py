"""The thread that issues a command, as the broker sees it: memory and file descriptors.

A command is an address; what stands there is read from the caller's memory,
and results are written back to it.  Descriptors in a command are numbers in
the caller's table; the broker asks for the open files behind them and puts
new ones in.  Both ends are supplied by the transport, so that nothing in the
broker touches a real descriptor or a foreign address space.

A `File` is one reference to an open file.  Whoever holds it closes it, exactly
once: `Caller.file` and `File.duplicate` give a new reference to the one who
asks; `Caller.install` borrows the one it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

SEAL_SEAL = 1
SEAL_SHRINK = 2
SEAL_GROW = 4
SEAL_WRITE = 8
SEALS_REQUIRED = SEAL_SEAL | SEAL_SHRINK | SEAL_GROW | SEAL_WRITE
"""Shared memory with all of these can never change again, so it may be passed on as a payload."""


class FileKind(Enum):
    """What kind of open file it is, as far as passing it on is concerned."""

    ORDINARY = auto()
    PATH = auto()
    """Opened with O_PATH: only a place in the file system, whatever it is that lies there."""
    UNIX_SOCKET = auto()
    BUS_HANDLE = auto()
    """A handle of this broker, whichever node it was opened at."""


class File(Protocol):
    """One reference to an open file; whoever holds it closes it."""

    @property
    def kind(self) -> FileKind: ...

    @property
    def seals(self) -> int | None:
        """The SEAL_* bits; None when it is not shared memory."""

    @property
    def size(self) -> int:
        """Bytes, of shared memory."""

    @property
    def pollable(self) -> bool:
        """Whether it can be waited for."""

    def duplicate(self) -> File:
        """A further reference to the same open file."""

    def close(self) -> None:
        """Give up this reference."""

    def watch(self, on_readable: Callable[[], None]) -> Callable[[], None]:
        """Have `on_readable` called once when there is something to read, at once if there already is.

        Returns a function that stops watching; calling it later, or twice, does nothing.
        """


class Caller(Protocol):
    """Memory and descriptors of the thread that issues a command."""

    def read(self, address: int, size: int) -> bytes:
        """Exactly that many bytes of the caller's memory; EFAULT where any of it cannot be read."""

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into the caller's memory; EFAULT where any of it cannot be written."""

    def file(self, fd: int) -> File | None:
        """A new reference to the file behind a descriptor; None when it is not open."""

    def install(self, file: File) -> int:
        """The number of a new descriptor for a duplicate of this file; -1 when the table is full."""
