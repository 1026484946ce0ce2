"""Who is at the other end of a unix socket, as the kernel knows it.

Everything is taken once, when the socket is accepted, from the socket itself:
SO_PEERCRED, SO_PEERGROUPS, SO_PEERSEC and SO_PEERPIDFD.  Nothing is read from
/proc and nothing the client says is believed.  What the kernel does not tell
is None.  Without SO_PEERCRED there is no client: `PeerUnknown`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

from kdbus_core.metadata import Credentials

# Not all of these are in the socket module of every supported Python.
SO_PEERSEC = 31
SO_PEERGROUPS = 59
SO_PEERPIDFD = 77

_UCRED = struct.Struct("iII")
_UNSET = 0xFFFFFFFF
_OPTION_SIZE = 1024  # the most that socket.getsockopt returns


class PeerUnknown(Exception):
    """The kernel does not say who the peer is."""


def peer_credentials(sock: socket.socket) -> Credentials:
    """The peer's credentials at the time it connected.

    The caller owns `Credentials.pidfd`.  Raises PeerUnknown.
    """
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError as error:
        raise PeerUnknown(error.strerror) from error
    pid, uid, gid = _UCRED.unpack(raw)
    if uid == _UNSET:
        raise PeerUnknown("the peer's uid is not known here")
    return Credentials(
        uid=uid,
        gid=gid if gid != _UNSET else None,
        pid=pid if pid > 0 else None,
        groups=_peer_groups(sock),
        label=_peer_label(sock),
        pidfd=_peer_pidfd(sock),
    )


def _peer_groups(sock: socket.socket) -> tuple[int, ...] | None:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _OPTION_SIZE)
    except OSError as error:
        if error.errno != errno.ERANGE:
            return None
        raw = _many_groups(sock)
    return struct.unpack(f"{len(raw) // 4}I", raw)


def _many_groups(sock: socket.socket) -> bytes:
    """SO_PEERGROUPS of a process with more groups than getsockopt() returns."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = ctypes.c_uint32(65536 * 4)  # NGROUPS_MAX
    buffer = ctypes.create_string_buffer(size.value)
    if libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, buffer, ctypes.byref(size)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer.raw[: size.value]


def _peer_label(sock: socket.socket) -> bytes | None:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, SO_PEERSEC, _OPTION_SIZE).rstrip(b"\0") or None
    except OSError:
        return None


def _peer_pidfd(sock: socket.socket) -> int | None:
    try:
        fd = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError:
        return None
    os.set_inheritable(fd, False)  # noqa: FBT003 - not our signature
    return fd
