"""Who is at the other end of a socket, as a `Process` of the broker.

There are two sources.  The socket says who connected: SO_PEERCRED,
SO_PEERGROUPS, SO_PEERSEC and SO_PEERPIDFD were fixed when it did and are true
whatever happens later.  /proc says all the rest, but as it is now.  So nothing
from /proc counts unless the pidfd shows that the process is still the one that
connected, and its effective ids are still those of the socket; otherwise all
of that is left unset.  Nothing the client says is believed.

On a kernel without SO_PEERPIDFD (Linux < 6.5) the pidfd is opened by the pid,
and then the groups have to be the same ones, too.

Who sends a message may be another process than the one that connected, because
a handle can be inherited or passed on.  The kernel writes the sender's pid and
ids on each packet (SCM_CREDENTIALS), and only when somebody wants to know is
that process looked at (`make_origin`).
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from dataclasses import replace
from errno import ENOPROTOOPT, ERANGE
from typing import NamedTuple

from kdbus_core.abi import UNSET_ID
from kdbus_core.metadata import Credentials, Creds, Origin, Pids, Process, Snapshot, as_credentials
from kdbus_core.transport.facts import Facts, ProcessReader, default_reader
from kdbus_core.transport.proc import is_alive

# asm-generic/socket.h; not all of these are in the socket module of every supported Python.
SO_PEERSEC = 31
SO_PEERGROUPS = 59
SO_PEERPIDFD = 77

UCRED = struct.Struct("=iII")
"""struct ucred: pid, uid, gid."""
_OPTION_SIZE = 1024  # the most that socket.getsockopt returns
_MAX_GROUPS = 65536


class PeerUnknown(Exception):
    """The kernel does not say who the peer is."""


# What the socket says


def peer_credentials(sock: socket.socket) -> Credentials:
    """The peer's credentials when it connected, without a pidfd; PeerUnknown."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        pid, uid, gid = UCRED.unpack(raw)
    except (OSError, struct.error) as error:
        raise PeerUnknown(f"no SO_PEERCRED: {error}") from error
    if uid == UNSET_ID:
        raise PeerUnknown("the peer's uid is not known here")
    return Credentials(
        uid=uid,
        gid=None if gid == UNSET_ID else gid,
        pid=pid if pid > 0 else None,
        groups=_peer_groups(sock),
        label=_peer_label(sock),
    )


def _peer_groups(sock: socket.socket) -> tuple[int, ...] | None:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _OPTION_SIZE)
    except OSError as error:
        if error.errno != ERANGE:
            return None
        many = _many_groups(sock)
        if many is None:
            return None
        raw = many
    return struct.unpack(f"={len(raw) // 4}I", raw)


def _many_groups(sock: socket.socket) -> bytes | None:
    """SO_PEERGROUPS of a process with more groups than socket.getsockopt() returns."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_uint32(_MAX_GROUPS * 4)
    buffer = ctypes.create_string_buffer(size.value)
    if libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, buffer, ctypes.byref(size)):
        return None
    return buffer.raw[: size.value]


def _peer_label(sock: socket.socket) -> bytes | None:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERSEC, _OPTION_SIZE).rstrip(b"\0") or None
    except OSError:
        return None


def _peer_pidfd(sock: socket.socket, pid: int | None) -> tuple[int | None, bool]:
    """A pidfd of the peer, and whether the kernel vouches that it is the peer's."""
    try:
        fd = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno != ENOPROTOOPT or pid is None:
            return None, False
        return open_pidfd(pid), False
    os.set_inheritable(fd, False)  # noqa: FBT003 - not our signature
    return fd, True


def open_pidfd(pid: int) -> int | None:
    """A pidfd of whichever process has this pid now, which the caller owns."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


# Both together


def read_process(sock: socket.socket, reader: ProcessReader | None = None) -> Process:
    """Whoever connected this socket, or made the pair; PeerUnknown.

    The caller owns `credentials.pidfd` of the process.
    """
    credentials = peer_credentials(sock)
    pid = credentials.pid
    pidfd, is_vouched = _peer_pidfd(sock, pid)
    facts = None
    try:
        if pid is not None and pidfd is not None:
            facts = (reader or default_reader()).read(pid, pidfd)
            if facts is not None and not _is_as_connected(facts, credentials, is_vouched=is_vouched):
                facts = None
    except BaseException:
        if pidfd is not None:
            os.close(pidfd)
        raise
    if facts is None and not is_vouched and pidfd is not None:
        os.close(pidfd)  # who knows whose it is
        pidfd = None
    credentials = replace(credentials, pidfd=pidfd)
    if facts is None:
        return _of_socket(credentials)
    groups = facts.status.groups if credentials.groups is None else credentials.groups
    snapshot = facts.snapshot(groups=groups, label=credentials.label or facts.label)
    return _of_facts(facts, snapshot, credentials)


def _is_as_connected(facts: Facts, credentials: Credentials, *, is_vouched: bool) -> bool:
    """Whether a process still has the ids that it connected with, as far as these are known."""
    status = facts.status
    if (status.uids[1], status.gids[1]) != (credentials.uid, credentials.gid):
        return False
    return is_vouched or status.groups == credentials.groups


def _of_socket(credentials: Credentials) -> Process:
    """A process of which nothing is known but what the socket says."""
    snapshot = Snapshot(
        creds=Creds(
            euid=UNSET_ID if credentials.uid is None else credentials.uid,
            egid=UNSET_ID if credentials.gid is None else credentials.gid,
        ),
        pids=None if credentials.pid is None else Pids(credentials.pid),
        auxgroups=credentials.groups,
        seclabel=credentials.label,
    )
    return Process(snapshot, None, None, None, credentials=credentials)


def _of_facts(facts: Facts, snapshot: Snapshot, credentials: Credentials) -> Process:
    return Process(
        snapshot,
        facts.user_namespace,
        facts.pid_namespace,
        facts.root,
        facts.pids_in,
        privileged=facts.privileged,
        credentials=credentials,
    )


# Who sends


class Ucred(NamedTuple):
    """Who sent a packet, as the kernel wrote it there; the ids are the real ones.

    A process may have other ids of its own written there, and whoever has the capabilities for it, in the
    namespace where it counts, those of others.
    """

    pid: int
    uid: int
    gid: int


def make_origin(
    opener: Process,
    opener_pidfd: int | None,
    ucred: bytes | tuple[int, int, int] | None,
    reader: ProcessReader | None = None,
) -> Origin:
    """Finds out who sends the packet with these credentials, when it is asked for the first time.

    `ucred` is pid, uid and gid, or the struct as it came with the packet; empty or None where none came.
    To be asked while `opener_pidfd` is open and the message is being sent: later the process may be
    something else.  It answers with the opener itself where nothing has changed since; with a process of
    its own where something has, or where another one has the handle; with one of which nothing is known
    where that cannot be verified; and with None, which stands for the opener as it was, when the opener
    has ended since it sent.
    """
    if isinstance(ucred, bytes):
        ucred = UCRED.unpack(ucred) if len(ucred) == UCRED.size else None
    return _Origin(opener, opener_pidfd, None if ucred is None else Ucred(*ucred), reader)


class _Origin:
    __slots__ = ("_found", "_is_found", "_opener", "_opener_pidfd", "_reader", "_ucred")

    def __init__(
        self,
        opener: Process,
        opener_pidfd: int | None,
        ucred: Ucred | None,
        reader: ProcessReader | None,
    ) -> None:
        self._opener = opener
        self._opener_pidfd = opener_pidfd
        self._ucred = ucred
        self._reader = reader
        self._is_found = False
        self._found: Process | None = None

    def __call__(self) -> Process | None:
        if not self._is_found:
            self._is_found = True
            try:
                self._found = self._find()
            except OSError:  # no descriptor left to look with
                self._found = unknown_process()
        return self._found

    def _find(self) -> Process | None:
        ucred, opener = self._ucred, self._opener
        if ucred is None:
            return unknown_process()
        if self._opener_pidfd is not None and ucred.pid == opener.credentials.pid:
            facts = self._read(ucred, self._opener_pidfd)
            if facts is None and not is_alive(self._opener_pidfd) and _may_have_sent(opener, ucred):
                return None
        else:
            pidfd = open_pidfd(ucred.pid) if ucred.pid > 0 else None
            if pidfd is None:
                return unknown_process()
            try:
                facts = self._read(ucred, pidfd)
            finally:
                os.close(pidfd)
        if facts is None:
            return unknown_process()
        snapshot = facts.snapshot(groups=facts.status.groups, label=facts.label)
        sender = _of_facts(facts, snapshot, as_credentials(snapshot))
        return opener if _is_described_alike(opener, sender) else sender

    def _read(self, ucred: Ucred, pidfd: int) -> Facts | None:
        """What is known of the sender; None unless the ids on the packet are among those it has."""
        facts = (self._reader or default_reader()).read(ucred.pid, pidfd)
        if facts is None:
            return None
        status = facts.status
        return facts if ucred.uid in status.uids[:3] and ucred.gid in status.gids[:3] else None


def unknown_process() -> Process:
    """A process of which nothing is known, nor told."""
    return Process(Snapshot(), None, None, None)


def _may_have_sent(opener: Process, ucred: Ucred) -> bool:
    creds = opener.snapshot.creds
    return creds is not None and ucred.uid in creds[:3] and ucred.gid in creds[4:7]


def _is_described_alike(one: Process, other: Process) -> bool:
    return (
        one.snapshot == other.snapshot
        and one.view == other.view
        and one.pids_in == other.pids_in
        and one.privileged == other.privileged
    )
