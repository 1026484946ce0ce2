"""One request while it is performed: the packet as the memory and the descriptors of a caller.

The body of the request is the memory.  Reading copies out of the packet; writing is remembered as patches
for the answer.  The files of the packet belong to the request until it ends; a command that wants one gets a
reference of its own.  What the broker installs becomes a descriptor of the answer, and its reference belongs
to the request until the answer is sent.

A request that has to wait keeps nothing of the packet but the size of its body: what a synchronous SEND
needed of it has been read by then, and only its result is still to be written.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT
from functools import partial
from typing import TYPE_CHECKING, cast

from kdbus_core.errors import KdbusError
from kdbus_core.transport.protocol import MAX_FDS

if TYPE_CHECKING:
    from kdbus_core.caller import File
    from kdbus_core.transport.files import OpenFile


class Performing:
    """A request as the caller of a command; after `close` it can be the next one.

    `patches` are what was written, address and bytes, in the order in which they are to be applied, and
    `installed` the descriptors of the answer.  `on_done` says to whoever performs the request, together with
    it, that its synchronous call has ended.
    """

    __slots__ = ("_files", "_memory", "_size", "id", "installed", "is_quiet", "on_done", "patches")

    def __init__(self, on_done: Callable[[Performing, int], None]) -> None:
        self.on_done: Callable[[int], None] = partial(on_done, self)
        self._memory: memoryview | None = None
        self._size = 0
        self._files: list[OpenFile] = []
        self.id = 0
        self.is_quiet = False
        self.patches: list[tuple[int, bytes]] = []
        self.installed: list[OpenFile] = []

    def begin(self, id: int, body: memoryview) -> None:
        """Take in a request, as yet without descriptors."""
        self.id = id
        self.is_quiet = False
        self._memory = body
        self._size = len(body)

    def put_in(self, body: memoryview, files: list[OpenFile] | None = None) -> None:
        """What the memory is, and the files of the descriptors, which belong to the request from now on."""
        self._memory = body
        self._size = len(body)
        if files:
            self._files = files

    def wait(self) -> None:
        """Let go of the packet: from now on there is only a result to come."""
        self._memory = None
        self._close_received()

    def close(self) -> None:
        """Give back all files; what was written is forgotten."""
        self._memory = None
        if self._files:
            self._close_received()
        if self.installed:
            close_files(self.take_installed())
        if self.patches:
            self.patches = []

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a body nor a file."""
        return not self._size and not self._files

    def take_installed(self) -> list[OpenFile]:
        """The files whose descriptors go with the answer; they are whose who takes them."""
        installed, self.installed = self.installed, []
        return installed

    def _close_received(self) -> None:
        files, self._files = self._files, []
        close_files(files)

    # As a caller (`kdbus_core.caller.Caller`)

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the body; EFAULT."""
        memory, end = self._memory, address + size
        if memory is None or address < 0 or end > self._size:
            raise KdbusError(EFAULT, f"{size} bytes at {address:#x} of a body of {self._size}")
        return memory[address:end].tobytes()

    def write(self, address: int, data: bytes) -> None:
        """Remember bytes for the answer; EFAULT."""
        end = address + len(data)
        if address < 0 or end > self._size:
            raise KdbusError(EFAULT, f"{len(data)} bytes at {address:#x} of a body of {self._size}")
        patches = self.patches
        if patches:
            at, earlier = patches[-1]
            if at == address and len(earlier) <= len(data):
                patches.pop()  # nothing of it remains
        elif self._memory is not None and self._memory[address:end] == data:
            return  # as the caller has it
        patches.append((address, data))

    def file(self, fd: int) -> File | None:
        """A reference to the file of a descriptor of the packet; None where there is none."""
        return self._files[fd].duplicate() if 0 <= fd < len(self._files) else None

    def install(self, file: File) -> int:
        """The index of a further descriptor of the answer; -1 where there is no room for it."""
        if len(self.installed) >= MAX_FDS:
            return -1
        # Files only come in by a packet, or from a proxy in this process that makes them alike.
        self.installed.append(cast("OpenFile", file.duplicate()))
        return len(self.installed) - 1


def close_files(files: list[OpenFile]) -> None:
    """Give up references to files."""
    for file in files:
        file.close()
