"""What kind of file a descriptor refers to, found out without asking whoever provides the file.

A client may pass a file of a file system that it serves itself, and then what is done to the file takes as
long as the client likes: looking at its attributes, polling it, and even closing it, because that flushes.
So nothing in here calls a file system; the questions are answered by the descriptor's own part of the
kernel.  What cannot be told apart from such a file counts as one.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
from contextlib import suppress

from kdbus_core.caller import FileKind

F_GETPIPE_SZ = 1032
"""linux/fcntl.h; in Python's fcntl for some versions only.  It is for pipes and FIFOs, wherever they lie."""
MAX_QUICK_MEMORY = 64 << 20
"""Bytes of shared memory that are given back in no time."""

_POLLABLE = frozenset({b"anon_inode:[eventfd]", b"anon_inode:[timerfd]", b"anon_inode:[pidfd]"})
_HARMLESS = _POLLABLE | {b"anon_inode:[eventpoll]"}
_PIDFD = b"pidfd:["
_BLOCK = 512


def file_kind(fd: int) -> FileKind:
    """What it is, as far as passing it on is concerned."""
    if is_path(fd):
        return FileKind.PATH
    return FileKind.UNIX_SOCKET if socket_family(fd) == socket.AF_UNIX else FileKind.ORDINARY


def is_path(fd: int) -> bool:
    """Whether it was opened with O_PATH."""
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH != 0


def memory_seals(fd: int) -> int | None:
    """The SEAL_* bits of shared memory, None of any other file."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return None


def socket_family(fd: int) -> int | None:
    """The AF_* of a socket, None of any other file."""
    # The object only borrows the descriptor, and the family it is given is not looked at.
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
    except OSError:
        return None
    try:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
    except OSError:
        return None
    finally:
        sock.detach()


def is_pipe(fd: int) -> bool:
    """Whether it is a pipe or a FIFO."""
    try:
        fcntl.fcntl(fd, F_GETPIPE_SZ)
    except OSError:
        return False
    return True


def is_pollable(fd: int) -> bool:
    """Whether it can be waited for without harm: sockets, pipes, FIFOs, eventfds, timerfds and pidfds.

    An epoll set is none: to poll it is to poll all that is in it.
    """
    if is_path(fd):
        return False
    if socket_family(fd) is None and not is_pipe(fd):
        name = _name(fd)
        if name not in _POLLABLE and not name.startswith(_PIDFD):
            return False
    with suppress(OSError), select.epoll() as probe:
        probe.register(fd, select.EPOLLIN)
        return True
    return False


def closes_at_once(fd: int) -> bool:
    """Whether close(2) takes no time, also when it is the last to close the file.

    Not those of file systems, which may flush; not sockets, which may linger, and those of AF_UNIX may
    contain any files; and not very much memory.
    """
    if memory_seals(fd) is not None:
        return os.fstat(fd).st_blocks * _BLOCK <= MAX_QUICK_MEMORY
    if is_path(fd) or is_pipe(fd):
        return True
    name = _name(fd)
    return name in _HARMLESS or name.startswith(_PIDFD)


def _name(fd: int) -> bytes:
    """What /proc calls it; paths begin with a slash, so nothing that has one passes for anything else."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}".encode())
    except OSError:
        return b""
