"""One process as /proc shows it, and only that one.

A pid is a number that another process may have a moment later.  So /proc/PID
is opened once, and everything is read through that descriptor: it stays with
the process it was opened for, and once that has gone nothing can be read
through it.  Whether it was opened for the right one is known by a pidfd: when
the process that the pidfd refers to is still alive after all has been read,
nobody else can have had its number in the meantime.

What cannot be read is None, for whatever reason: the process has gone, the
kernel lacks it, or the broker may not.  Ids and pids are as the broker's own
namespaces have them.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from kdbus_core.metadata import Audit, Caps

PAGE_SIZE = 4096
"""As much of a command line as kdbus took."""
_CHUNK = 65536
_MAX_FILE = 4 << 20  # a status with 65536 groups has less than one

_SERVICE_MANAGERS = b"name=systemd"
_Ids = tuple[int, int, int, int]


class Status(NamedTuple):
    """What is taken from /proc/PID/status; ids are real, effective, saved, file system.

    `pids` has the process' pid in the broker's pid namespace, then in the next one further in, and so on.
    """

    uids: _Ids
    gids: _Ids
    groups: tuple[int, ...]
    ppid: int
    pids: tuple[int, ...]
    threads: int
    inheritable: int
    permitted: int
    effective: int
    bounding: int


class ProcessDirectory:
    """/proc/PID, opened; `close` it."""

    __slots__ = ("_fd",)

    def __init__(self, pid: int) -> None:
        """OSError when there is no such process, or it is hidden."""
        self._fd = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Read nothing more."""
        os.close(self._fd)

    def __enter__(self) -> ProcessDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, name: str) -> int:
        """A descriptor for reading, which the caller owns; OSError."""
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)

    def read(self, name: str, limit: int = _MAX_FILE) -> bytes | None:
        """What a file has, `limit` bytes at most."""
        try:
            fd = self.open(name)
        except OSError:
            return None
        try:
            data = os.read(fd, min(limit, _CHUNK))
            while data and len(data) < limit and (more := os.read(fd, min(limit - len(data), _CHUNK))):
                data += more
            return data
        except OSError:
            return None
        finally:
            os.close(fd)

    def link(self, name: str) -> bytes | None:
        """Where a link leads, as the kernel says."""
        try:
            return os.readlink(name.encode(), dir_fd=self._fd)
        except OSError:
            return None

    def identity(self, name: str) -> tuple[int, int] | None:
        """Device and inode of what a link leads to."""
        try:
            found = os.stat(name, dir_fd=self._fd)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def status(self) -> Status | None:
        """/proc/PID/status."""
        data = self.read("status")
        return None if data is None else parse_status(data)

    def name(self, of: str = "comm") -> bytes | None:
        """The name of the process, without the line end."""
        data = self.read(of)
        return None if data is None else data.removesuffix(b"\n")

    def command_line(self) -> bytes | None:
        """The arguments, each but the last with its NUL; None where there are none.

        Read from the memory of the process, which may take as long as that likes: see `patience`.
        """
        data = self.read("cmdline", PAGE_SIZE)
        return data.removesuffix(b"\0") if data else None

    def control_group(self) -> bytes | None:
        """The control group."""
        data = self.read("cgroup")
        return None if data is None else parse_control_group(data)

    def label(self) -> bytes | None:
        """The security label, without a trailing NUL or line end."""
        data = self.read("attr/current")
        return data.rstrip(b"\0\n") or None if data else None

    def audit(self) -> Audit | None:
        """Audit session and login uid; UNSET_ID in them where there is none."""
        try:
            return Audit(int(self.read("sessionid") or b""), int(self.read("loginuid") or b""))
        except ValueError:
            return None


def parse_status(data: bytes) -> Status | None:
    """The content of /proc/PID/status; None when something that matters is missing in it."""
    fields = {}
    for line in data.splitlines():
        name, _, value = line.partition(b":")
        fields[name] = value
    try:
        pids = fields.get(b"NStgid") or fields[b"Tgid"]
        uids, gids = _numbers(fields[b"Uid"]), _numbers(fields[b"Gid"])
        return Status(
            uids=(uids[0], uids[1], uids[2], uids[3]),
            gids=(gids[0], gids[1], gids[2], gids[3]),
            groups=_numbers(fields[b"Groups"]),
            ppid=int(fields[b"PPid"]),
            pids=_numbers(pids),
            threads=int(fields[b"Threads"]),
            inheritable=int(fields[b"CapInh"], 16),
            permitted=int(fields[b"CapPrm"], 16),
            effective=int(fields[b"CapEff"], 16),
            bounding=int(fields[b"CapBnd"], 16),
        )
    except (KeyError, IndexError, ValueError):
        return None


def _numbers(value: bytes) -> tuple[int, ...]:
    return tuple(map(int, value.split()))


def parse_control_group(data: bytes) -> bytes | None:
    """The path that says what a process belongs to, of the content of /proc/PID/cgroup.

    There may be many hierarchies.  kdbus told the path in the first one, which a service manager made for
    itself; where there is none such that is now the unified one, and else the first of the others.
    """
    paths: dict[bytes, bytes] = {}
    first: tuple[int, bytes] | None = None
    for line in data.splitlines():
        number, _, rest = line.partition(b":")
        controllers, colon, path = rest.partition(b":")
        if not colon or not number.isdigit():
            continue
        paths[controllers] = path
        if first is None or int(number) < first[0]:
            first = int(number), path
    for controllers in (_SERVICE_MANAGERS, b""):
        if controllers in paths:
            return paths[controllers]
    return None if first is None else first[1]


def caps_of(status: Status) -> Caps | None:
    """The capability sets; None when it is not known which capabilities there are."""
    last = last_cap()
    if last is None:
        return None
    return Caps(last, status.inheritable, status.permitted, status.effective, status.bounding)


@cache
def last_cap() -> int | None:
    """The number of the last capability that the kernel knows."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


@cache
def shows_own_pids() -> bool:
    """Whether /proc is there and shows pids as the broker's own pid namespace has them."""
    with suppress(OSError), open("/proc/self/status", "rb") as file:
        status = parse_status(file.read())
        return status is not None and status.pids == (os.getpid(),)
    return False


def is_alive(pidfd: int) -> bool:
    """Whether the process has not ended; one that waits to be reaped has."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    try:
        return not poller.poll(0)
    except OSError:
        return False
