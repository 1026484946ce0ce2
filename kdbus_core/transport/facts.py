"""All that /proc says of a process, read at one time, for as long as it is surely that process.

`ProcessReader.read` takes everything there is in one go and then asks the
pidfd whether the process is still there.  If it is, its pid was nobody else's
while all that was read; if not, nothing that was read counts.

What the process could hold up is read with patience, see there, unless it is
one that could as well kill the broker; the rest is made by the kernel alone.
What is unset is None, never zero, and never a guess:
a process in an unknown user namespace is not privileged, whatever its
capabilities are in there, and where there are several threads it is not known
which one it was.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

from kdbus_core.metadata import (
    INITIAL_PID_NAMESPACE,
    INITIAL_USER_NAMESPACE,
    Audit,
    Creds,
    PidNamespace,
    Pids,
    Snapshot,
    UserNamespace,
)
from kdbus_core.transport.namespace_finder import NamespaceFinder, pids_in
from kdbus_core.transport.patience import Patience, other_threads
from kdbus_core.transport.proc import ProcessDirectory, Status, caps_of, is_alive, shows_own_pids

CAP_IPC_OWNER = 15
"""Whoever has this capability in the broker's user namespace is privileged."""


@dataclass(slots=True)
class Facts:
    """All that /proc says of one process at one time."""

    pid: int
    status: Status
    comm: bytes | None
    exe: bytes | None
    cgroup: bytes | None
    label: bytes | None
    audit: Audit | None
    user_namespace: UserNamespace | None
    pid_namespace: PidNamespace | None
    pids_in: dict[PidNamespace, Pids]
    cmdline: bytes | None = None
    root: tuple[int, int] | None = None

    @property
    def is_at_home(self) -> bool:
        """Whether it lives where the broker lives."""
        return self.user_namespace is INITIAL_USER_NAMESPACE and self.pid_namespace is INITIAL_PID_NAMESPACE

    @property
    def privileged(self) -> bool:
        """CAP_IPC_OWNER is effective in the broker's own user namespace."""
        return (
            self.user_namespace is INITIAL_USER_NAMESPACE and self.status.effective >> CAP_IPC_OWNER & 1 == 1
        )

    def snapshot(self, *, groups: tuple[int, ...], label: bytes | None) -> Snapshot:
        """What is told of the process; its groups and label may be known better."""
        status = self.status
        # Which thread it was is known only where there is no other.
        is_single = status.threads == 1
        return Snapshot(
            creds=Creds(*status.uids, *status.gids),
            pids=Pids(self.pid, self.pid if is_single else 0, status.ppid),
            auxgroups=groups,
            tid_comm=self.comm if is_single else None,
            pid_comm=self.comm,
            exe=self.exe,
            cmdline=self.cmdline,
            cgroup=self.cgroup,
            caps=caps_of(status),
            seclabel=label,
            audit=self.audit,
        )


class ProcessReader:
    """Reads /proc; the namespaces it finds are the same objects for all that it reads."""

    def __init__(self, finder: NamespaceFinder | None = None, patience: Patience | None = None) -> None:
        self.finder = NamespaceFinder() if finder is None else finder
        self.patience = Patience() if patience is None else patience

    def read(self, pid: int, pidfd: int) -> Facts | None:
        """All about the process behind a pidfd, whose pid this was; None when it has ended or is hidden."""
        if not shows_own_pids():
            return None
        try:
            directory = ProcessDirectory(pid)
        except OSError:
            return None
        with directory:
            status = directory.status()
            if status is None:
                return None
            if pid == os.getpid():
                status = status._replace(threads=other_threads())  # a client in the broker's own process
            user_namespace = self.finder.user_namespace(directory)
            pid_namespace = self.finder.pid_namespace(directory)
            facts = Facts(
                pid=pid,
                status=status,
                comm=directory.name(),
                exe=directory.link("exe"),
                cgroup=directory.control_group(),
                label=directory.label(),
                audit=directory.audit(),
                user_namespace=user_namespace,
                pid_namespace=pid_namespace,
                pids_in=pids_in(pid_namespace, status, directory),
            )
            # Whoever could kill the broker needs no such way to hold it up.
            if facts.is_at_home and {*status.uids} <= {0, os.geteuid()}:
                facts.cmdline, facts.root = _read_slowly(directory)
            else:
                slow = self.patience.ask(lambda: _read_slowly_again(pid), status.uids[0])
                facts.cmdline, facts.root = slow or (None, None)
        # Had the pid become another's, this one would have ended by now.
        return facts if is_alive(pidfd) else None


_Slow = tuple[bytes | None, tuple[int, int] | None]


def _read_slowly(directory: ProcessDirectory) -> _Slow:
    """The command line and the identity of the root directory, which the process can hold up."""
    return directory.command_line(), directory.identity("root")


def _read_slowly_again(pid: int) -> _Slow:
    """The same for a thread, which may be at it when the broker has closed the directory it has."""
    with ProcessDirectory(pid) as directory:
        return _read_slowly(directory)


@cache
def default_reader() -> ProcessReader:
    """The one that all sockets of this process share."""
    return ProcessReader()
