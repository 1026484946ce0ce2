"""A simulated process: memory, file descriptors and credentials of whoever issues commands.

A `Task` is a `kdbus_core.caller.Caller`. Its memory is a set of regions with gaps between them, so that one
byte too many is EFAULT. Its descriptors are numbers in a table, lowest free number first; each stands for a
`Reference` to an `OpenFile`. The `Ledger` of a world knows every open file, so that a reference which
somebody forgot to close is found; closing one twice fails at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from errno import EBADF, EFAULT

from kdbus_core.caller import FileKind
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import Process

from . import layout

FIRST_ADDRESS = 0x100000
GAP = 4096
MEMFD_SIZE = 1024 * 1024


class Memory:
    """Regions of bytes at made-up addresses."""

    def __init__(self) -> None:
        self._next = FIRST_ADDRESS
        self._starts: list[int] = []
        self._regions: dict[int, bytearray] = {}
        self._read_only: set[int] = set()

    def allocate(self, content: bytes | int, *, read_only: bool = False) -> int:
        """A new region with this content, or of so many zeros; returns its address, a multiple of 8."""
        region = bytearray(content)
        address = self._next
        self._next += layout.align(len(region)) + GAP
        self._starts.append(address)
        self._regions[address] = region
        if read_only:
            self._read_only.add(address)
        return address

    def release(self, address: int) -> None:
        """Make a region unreadable again."""
        self._starts.remove(address)
        del self._regions[address]
        self._read_only.discard(address)

    def _find(self, address: int, size: int) -> tuple[int, bytearray]:
        at = bisect_right(self._starts, address) - 1
        if at >= 0:
            start = self._starts[at]
            region = self._regions[start]
            if address + size <= start + len(region):
                return start, region
        raise KdbusError(EFAULT, f"{size} bytes at {address:#x} are outside the memory")

    def read(self, address: int, size: int) -> bytes:
        start, region = self._find(address, size)
        return bytes(memoryview(region)[address - start : address - start + size])

    def write(self, address: int, data: bytes) -> None:
        start, region = self._find(address, len(data))
        if start in self._read_only:
            raise KdbusError(EFAULT, f"{address:#x} is read-only")
        region[address - start : address - start + len(data)] = data


class Pipe:
    """What is in a pipe, and whether anybody can still write."""

    def __init__(self) -> None:
        self.content = b""
        self.has_writer = True

    def hang_up(self) -> None:
        self.has_writer = False


class OpenFile:
    """An open file description; `references` are the descriptors and holders it has."""

    def __init__(
        self,
        kind: FileKind = FileKind.ORDINARY,
        *,
        content: bytes = b"",
        seals: int | None = None,
        pollable: bool = False,
        pipe: Pipe | None = None,
        on_release: Callable[[], None] | None = None,
    ) -> None:
        self.kind = kind
        self.content = content
        self.seals = seals
        self.pollable = pollable
        self.pipe = pipe
        self.on_release = on_release
        self.references = 0
        self.is_readable = False
        self.watchers: list[Callable[[], None]] = []

    def signal(self) -> None:
        """Become readable, and say so to everybody who watches."""
        self.is_readable = True
        while self.watchers:
            self.watchers.pop(0)()


class Reference:
    """One reference to an open file (`kdbus_core.caller.File`)."""

    def __init__(self, description: OpenFile) -> None:
        self.description = description
        self.is_open = True
        description.references += 1

    @property
    def kind(self) -> FileKind:
        return self.description.kind

    @property
    def seals(self) -> int | None:
        return self.description.seals

    @property
    def size(self) -> int:
        return len(self.description.content)

    @property
    def pollable(self) -> bool:
        return self.description.pollable

    def duplicate(self) -> Reference:
        assert self.is_open, "a closed file is duplicated"
        return Reference(self.description)

    def close(self) -> None:
        assert self.is_open, "a file is closed twice"
        self.is_open = False
        self.description.references -= 1
        if not self.description.references and self.description.on_release is not None:
            self.description.on_release()

    def watch(self, on_readable: Callable[[], None]) -> Callable[[], None]:
        assert self.is_open, "a closed file is watched"
        if self.description.is_readable:
            on_readable()
            return lambda: None
        watchers = self.description.watchers
        # A wrapper of its own, so that two who watch with the same function are told apart.
        watcher = lambda: on_readable()  # noqa: E731 - see above
        watchers.append(watcher)

        def stop() -> None:
            if watcher in watchers:
                watchers.remove(watcher)

        return stop


class Ledger:
    """Every open file of a world."""

    def __init__(self) -> None:
        self.files: list[OpenFile] = []

    def add(self, file: OpenFile) -> OpenFile:
        self.files.append(file)
        return file

    def open_files(self) -> list[OpenFile]:
        return [file for file in self.files if file.references]


class Task:
    """A process that issues commands; `process` is what the broker knows of it."""

    def __init__(self, ledger: Ledger, process: Process, *, max_fds: int = 1024) -> None:
        self.process = process
        self.memory = Memory()
        self.max_fds = max_fds
        self._ledger = ledger
        self._fds: dict[int, Reference] = {}
        self._constants: dict[bytes, int] = {}

    def __repr__(self) -> str:
        return f"Task(uid={self.uid}, pid={self.pid})"

    @property
    def uid(self) -> int:
        """The effective uid."""
        uid = self.process.credentials.uid
        assert uid is not None
        return uid

    @property
    def gid(self) -> int:
        """The effective gid."""
        gid = self.process.credentials.gid
        assert gid is not None
        return gid

    @property
    def pid(self) -> int:
        pid = self.process.credentials.pid
        assert pid is not None
        return pid

    # What the broker uses

    def read(self, address: int, size: int) -> bytes:
        return self.memory.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        self.memory.write(address, data)

    def file(self, fd: int) -> Reference | None:
        reference = self._fds.get(fd)
        return None if reference is None else reference.duplicate()

    def install(self, file: object) -> int:
        assert isinstance(file, Reference)
        if len(self._fds) >= self.max_fds:
            return -1
        return self._install(file.duplicate())

    # What tests use

    def constant(self, content: bytes) -> int:
        """The address of these bytes, which stay where they are."""
        if content not in self._constants:
            self._constants[content] = self.memory.allocate(content, read_only=True)
        return self._constants[content]

    def _install(self, reference: Reference) -> int:
        fd = 0
        while fd in self._fds:
            fd += 1
        self._fds[fd] = reference
        return fd

    def open(self, description: OpenFile) -> int:
        """A descriptor for an open file of any kind."""
        return self._install(Reference(self._ledger.add(description)))

    def open_null(self) -> int:
        """What /dev/null is: an ordinary file that cannot be polled."""
        return self.open(OpenFile())

    def open_path(self) -> int:
        return self.open(OpenFile(FileKind.PATH))

    def open_socket(self) -> int:
        return self.open(OpenFile(FileKind.UNIX_SOCKET, pollable=True))

    def open_memfd(self, content: bytes | int = MEMFD_SIZE, seals: int | None = layout.F_SEAL_ALL) -> int:
        """Sealed shared memory with this content, or of so many zeros; `seals` None is an ordinary file."""
        return self.open(OpenFile(content=bytes(content), seals=seals))

    def open_eventfd(self) -> int:
        return self.open(OpenFile(pollable=True))

    def open_pipe(self) -> tuple[int, int]:
        """The read end and the write end."""
        pipe = Pipe()
        reader = self.open(OpenFile(pollable=True, pipe=pipe))
        return reader, self.open(OpenFile(pollable=True, pipe=pipe, on_release=pipe.hang_up))

    def fds(self) -> list[int]:
        """The numbers of all open descriptors."""
        return sorted(self._fds)

    def description(self, fd: int) -> OpenFile:
        """What a descriptor stands for; EBADF as a KeyError would say it."""
        reference = self._fds.get(fd)
        if reference is None:
            raise OSError(EBADF, f"descriptor {fd} is not open")
        return reference.description

    def adopt(self, other: Task, fd: int) -> int:
        """A descriptor for what another task's descriptor stands for, as after fork."""
        return self._install(other._fds[fd].duplicate())

    def signal(self, fd: int) -> None:
        """Make a descriptor readable."""
        self.description(fd).signal()

    def write_to(self, fd: int, data: bytes) -> None:
        pipe = self.description(fd).pipe
        assert pipe is not None
        pipe.content += data

    def read_from(self, fd: int, size: int) -> bytes:
        """Read a pipe; no bytes are the end of the file."""
        pipe = self.description(fd).pipe
        assert pipe is not None
        data, pipe.content = pipe.content[:size], pipe.content[size:]
        assert data or not pipe.has_writer, "reading would wait"
        return data

    def content(self, fd: int) -> bytes:
        """What is in a file."""
        return self.description(fd).content

    def close(self, fd: int) -> None:
        self._fds.pop(fd).close()

    def exit(self) -> None:
        """Close every descriptor."""
        for fd in self.fds():
            self.close(fd)
