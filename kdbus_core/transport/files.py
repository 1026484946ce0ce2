"""Open files as the broker holds them: who has to close them, and whom they are charged to.

A descriptor that comes in with a packet is wrapped at once.  From then on it
belongs to a *descriptor* object that several references (`OpenFile`) share, so
a message that is queued a hundred times costs one number of the server's
table; the last reference to be closed closes it.  Each reference is closed
exactly once.

Every user has an account: what comes from a user is charged to it until it is
closed, so that nobody fills the table of descriptors that everybody's
connections need.  The charge is taken before there is an object and given back
by the same call that closes the descriptor.

A client chooses what it passes, so nothing here waits for a file: only shared
memory is ever read, because no other process can hold that up; files are
watched, never read, to learn whether something is there; and what came from a
client is closed with patience (see `closing`).  What is still being closed is
charged like what is open.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import select
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from errno import EFAULT, EMEDIUMTYPE, EMFILE, ETXTBSY
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

from kdbus_core.caller import SEALS_REQUIRED, FileKind
from kdbus_core.errors import KdbusError
from kdbus_core.transport.closing import Closer, close_quietly
from kdbus_core.transport.file_kinds import file_kind, is_pollable, memory_seals

__all__ = [
    "Account",
    "FileAccounts",
    "OpenFile",
    "default_limit",
    "file_kind",
    "make_memfd",
    "map_sealed",
    "memory_seals",
    "read_memfd",
]

MAX_FILES_PER_USER = 16384
"""Unless a quarter of the server's descriptors is less."""

_POLL_IN = select.POLLIN | select.POLLRDNORM
_MAX_WRITE = 1 << 30
_IOV_MAX = 1024


class Account:
    """What one user has open here; made by `FileAccounts`, gone when it holds nothing."""

    __slots__ = ("_accounts", "held", "uid")

    def __init__(self, accounts: FileAccounts, uid: int | None) -> None:
        self._accounts = accounts
        self.uid = uid
        self.held = 0

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where files of this account are watched."""
        return self._accounts.loop

    def charge(self) -> None:
        """Count one file more; EMFILE at the limit."""
        self._accounts.charge(self.uid)

    def refund(self) -> None:
        """Count one file less."""
        self._accounts.refund(self)

    def close(self, fd: int) -> None:
        """Close a descriptor that has been charged, and count one less when it is closed."""
        if self._accounts.closer.close(fd, self.uid, self._on_closed_late):
            self.refund()

    def _on_closed_late(self) -> None:
        """In another thread; RuntimeError when nobody counts any more."""
        self.loop.call_soon_threadsafe(self.refund)


class FileAccounts:
    """The accounts of all users.

    `loop` watches the files, and it is its thread that everything is called in; `limit_per_user` is a
    number of open files; `closer` closes them.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit_per_user: int | None = None, closer: Closer | None = None
    ) -> None:
        self.loop = loop
        self.closer = Closer() if closer is None else closer
        self.limit_per_user = default_limit() if limit_per_user is None else limit_per_user
        self._accounts: dict[int | None, Account] = {}

    def charge(self, uid: int | None) -> Account:
        """Count one open file of a user; KdbusError(EMFILE) at the limit.

        Whoever gets the account refunds it once for every charge; an `OpenFile` made with it does so.  All
        whose uid is None share an account.
        """
        account = self._account(uid)
        if account.held >= self.limit_per_user:
            raise KdbusError(EMFILE, f"uid {uid} has {account.held} files open here")
        account.held += 1
        self._accounts[uid] = account
        return account

    def _account(self, uid: int | None) -> Account:
        account = self._accounts.get(uid)
        return Account(self, uid) if account is None else account

    def refund(self, account: Account) -> None:
        """Count one open file less."""
        assert account.held > 0
        account.held -= 1
        if not account.held:
            del self._accounts[account.uid]

    def receive(self, fds: Iterable[int], uid: int | None) -> list[OpenFile]:
        """Take over the descriptors of a packet; EMFILE closes them all."""
        received = list(fds)
        account = self._account(uid)
        if account.held + len(received) > self.limit_per_user:
            self.close(received, uid)
            raise KdbusError(EMFILE, f"uid {uid} has {account.held} files open here")
        return [OpenFile(fd, self.charge(uid)) for fd in received]

    def close(self, fds: Iterable[int], uid: int | None) -> None:
        """Close descriptors of a packet that nobody wants.

        While that takes time they are charged, even beyond the limit: see `is_overdrawn`.
        """
        for fd in fds:
            account = self._account(uid)
            account.held += 1
            self._accounts[uid] = account
            account.close(fd)

    def is_overdrawn(self, uid: int | None) -> bool:
        """Whether a user has more open than it may, so that no packet of it should be received any more."""
        return self.held_by(uid) > self.limit_per_user

    def held_by(self, uid: int | None) -> int:
        """How many files of a user are open."""
        account = self._accounts.get(uid)
        return 0 if account is None else account.held

    def __len__(self) -> int:
        """How many files are open, whoever they belong to."""
        return sum(account.held for account in self._accounts.values())


def default_limit() -> int:
    """Open files of one user: MAX_FILES_PER_USER, or a quarter of what this process may have open."""
    soft = getrlimit(RLIMIT_NOFILE)[0]
    return MAX_FILES_PER_USER if soft == RLIM_INFINITY else min(MAX_FILES_PER_USER, soft // 4)


class _Descriptor:
    """Owns a descriptor and its charge for as long as references to it are left."""

    __slots__ = ("_references", "account", "fd", "loop")

    def __init__(self, fd: int, account: Account | None, loop: asyncio.AbstractEventLoop | None) -> None:
        self.fd = fd
        self.account = account
        self.loop = account.loop if loop is None and account is not None else loop
        self._references = 0

    def hold(self) -> None:
        self._references += 1

    def release(self) -> None:
        self._references -= 1
        if self._references:
            return
        if self.account is None:
            close_quietly(self.fd)
        else:
            self.account.close(self.fd)


class OpenFile:
    """One reference to an open file; see `kdbus_core.caller.File`."""

    __slots__ = ("_descriptor",)

    def __init__(
        self, fd: int, account: Account | None = None, *, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        """Take over a descriptor that has been charged to `account`; it is closed with the last reference.

        `loop` watches it, that of the account if not given.
        """
        self._descriptor: _Descriptor | None = _Descriptor(fd, account, loop)
        self._descriptor.hold()

    def fileno(self) -> int:
        """The descriptor, borrowed: it stays open while any reference does.  ValueError when closed."""
        return self._open.fd

    @property
    def is_closed(self) -> bool:
        """Whether this reference has been given up."""
        return self._descriptor is None

    @property
    def _open(self) -> _Descriptor:
        if self._descriptor is None:
            raise ValueError("this reference to a file has been closed")
        return self._descriptor

    @property
    def kind(self) -> FileKind:
        """What it is, as far as passing it on is concerned; a native handle is a UNIX_SOCKET too."""
        return file_kind(self.fileno())

    @property
    def seals(self) -> int | None:
        """The SEAL_* bits; None when it is not shared memory."""
        return memory_seals(self.fileno())

    @property
    def size(self) -> int:
        """Bytes, of shared memory."""
        return os.fstat(self.fileno()).st_size

    @property
    def pollable(self) -> bool:
        """Whether it can be waited for, and without harm: sockets, pipes, eventfds, timerfds, pidfds."""
        return is_pollable(self.fileno())

    def duplicate(self) -> OpenFile:
        """A further reference to the same open file, which takes no further descriptor."""
        twin = object.__new__(OpenFile)
        twin._descriptor = self._open
        twin._descriptor.hold()
        return twin

    def close(self) -> None:
        """Give up this reference, once."""
        descriptor, self._descriptor = self._descriptor, None
        assert descriptor is not None, "this reference has been closed already"
        descriptor.release()

    def watch(self, on_readable: Callable[[], None]) -> Callable[[], None]:
        """Have `on_readable` called once when there is something to read, at once if there already is.

        Returns a function that stops watching; it may be called at any time and more than once.  A file
        that only hangs up has nothing to read and is forgotten.  Where there is no descriptor left to watch
        with, the file counts as readable: whoever waits for it then does not wait for ever.
        """
        descriptor = self._open
        assert descriptor.loop is not None, "a file without a loop cannot be watched"
        if _is_readable(descriptor.fd):
            on_readable()
            return _do_nothing
        try:
            return _Watch(descriptor, descriptor.loop, on_readable).stop
        except (OSError, KdbusError):
            on_readable()
            return _do_nothing

    def __repr__(self) -> str:
        state = "closed" if self._descriptor is None else f"fd {self._descriptor.fd}"
        return f"<OpenFile {state}>"


class _Watch:
    """Owns a duplicate of the descriptor, because a loop knows only one reader for each number."""

    __slots__ = ("_account", "_fd", "_loop", "_on_readable")

    def __init__(
        self, descriptor: _Descriptor, loop: asyncio.AbstractEventLoop, on_readable: Callable[[], None]
    ) -> None:
        self._account = descriptor.account
        self._loop = loop
        self._on_readable = on_readable
        if self._account is not None:
            self._account.charge()
        try:
            self._fd = fcntl.fcntl(descriptor.fd, fcntl.F_DUPFD_CLOEXEC, 0)
        except OSError:
            self._refund()
            raise
        try:
            loop.add_reader(self._fd, self._on_event)
        except BaseException:
            os.close(self._fd)
            self._refund()
            raise

    def _on_event(self) -> None:
        is_readable = _is_readable(self._fd)
        self.stop()
        if is_readable:
            self._on_readable()

    def stop(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(fd)
        os.close(fd)
        self._refund()

    def _refund(self) -> None:
        if self._account is not None:
            self._account.refund()


def _do_nothing() -> None:
    """Stop what is not going on."""


def _is_readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, _POLL_IN)
    return any(events & _POLL_IN for _, events in poller.poll(0))


# Shared memory


def make_memfd(data: bytes | memoryview | Sequence[bytes | memoryview], *, name: str, sealed: bool) -> int:
    """New shared memory with these bytes; the caller owns the descriptor.

    `sealed`: it can never change again, as a payload requires.  OSError where there is no memory or no
    descriptor for it.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _write_all(fd, [data] if isinstance(data, bytes | bytearray | memoryview) else data)
        if sealed:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS_REQUIRED)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write_all(fd: int, chunks: Sequence[bytes | memoryview]) -> None:
    for first in range(0, len(chunks), _IOV_MAX):
        batch = chunks[first : first + _IOV_MAX]
        written = os.writev(fd, batch)
        for chunk in batch:
            view = memoryview(chunk).cast("B")
            skipped = min(written, len(view))
            written -= skipped
            while skipped < len(view):
                skipped += os.write(fd, view[skipped : skipped + _MAX_WRITE])


def read_memfd(fd: int, start: int, size: int) -> bytes:
    """So many bytes of shared memory, which may change or shrink meanwhile without harm.

    KdbusError(EMEDIUMTYPE) when it is no shared memory, because reading from anything else may take as
    long as its owner likes; EFAULT when it ends before.
    """
    if memory_seals(fd) is None:
        raise KdbusError(EMEDIUMTYPE, "what is to be read is not shared memory")
    if start < 0 or size < 0 or start + size > os.fstat(fd).st_size:
        raise KdbusError(EFAULT, f"shared memory ends before {start + size} bytes")
    chunks = []
    with suppress(OSError):
        while size > 0:
            chunk = os.pread(fd, size, start)
            if not chunk:
                break
            chunks.append(chunk)
            start += len(chunk)
            size -= len(chunk)
    if size:
        raise KdbusError(EFAULT, f"shared memory cannot be read at {start}")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def map_sealed(fd: int, start: int, size: int) -> memoryview:
    """So many bytes of sealed shared memory, without a copy; the view keeps the mapping, not `fd`.

    KdbusError(EMEDIUMTYPE) when it is no shared memory, ETXTBSY when it can still change (a view of memory
    that shrinks would end the process), EFAULT when it ends before; OSError when it cannot be mapped.
    """
    seals = memory_seals(fd)
    if seals is None:
        raise KdbusError(EMEDIUMTYPE, "what is to be mapped is not shared memory")
    if seals & SEALS_REQUIRED != SEALS_REQUIRED:
        raise KdbusError(ETXTBSY, "the shared memory to be mapped can still change")
    if start < 0 or size < 0 or start + size > os.fstat(fd).st_size:
        raise KdbusError(EFAULT, f"shared memory ends before {start + size} bytes")
    if not size:
        return memoryview(b"")
    skipped = start % mmap.ALLOCATIONGRANULARITY
    mapping = mmap.mmap(fd, skipped + size, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=start - skipped)
    return memoryview(mapping)[skipped : skipped + size]
