"""Legacy and native clients whose process is somebody else: other ids, other namespaces.

The kernel tells a bus who has connected a socket, whoever uses it later. So a child in whatever state a
test has put it connects, and passes the connected socket on; the test says what is to be said on it. Nothing
has to be installed where the child is, and what the bus may know of it is exactly what the kernel knows.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from pathlib import Path

from support.children import Child, Meeting
from support.raw import PATIENCE_SECONDS, RawClient

SO_PEERSEC = 31


class AdoptedClient(RawClient):
    """A legacy client on a socket that somebody else has connected."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(PATIENCE_SECONDS)
        self.guid = ""
        self.unique_name = ""
        self._serial = 0
        self._data = b""
        self._pending = []
        self._fds = []
        try:
            self._authenticate(negotiate_fds=True)
            self.unique_name = self.call("Hello")[-1].body[0]
            self.sync()
        except BaseException:
            self.close()
            raise

    def _authenticate(self, *, negotiate_fds: bool) -> None:
        """Be whoever the kernel says we are."""
        self.socket.sendall(b"\0AUTH EXTERNAL\r\n")
        assert self._read_line() == "DATA"
        self.socket.sendall(b"DATA\r\n")
        word, _, self.guid = self._read_line().partition(" ")
        assert word == "OK", word
        if negotiate_fds:
            self.socket.sendall(b"NEGOTIATE_UNIX_FD\r\n")
            assert self._read_line() == "AGREE_UNIX_FD"
        self.socket.sendall(b"BEGIN\r\n")


class Adoption:
    """A child, and a way for the sockets that it connects."""

    def __init__(self, meeting: Meeting, child: Child) -> None:
        self._ours = meeting.meet(child)
        self._child = child

    @property
    def label(self) -> bytes | None:
        """The child's security label as the kernel tells it, None where it tells none."""
        with suppress(OSError):
            data = self._ours.getsockopt(socket.SOL_SOCKET, SO_PEERSEC, 4096)
            return data.rstrip(b"\0") or None
        return None

    @property
    def ids(self) -> tuple[int, int, int]:
        """Pid, uid and gid as the kernel tells them here."""
        data = self._ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, gid = struct.unpack("iii", data)
        return pid, uid, gid

    def connect(self, path: str | Path) -> socket.socket:
        """A stream socket that the child itself has connected."""
        self._child.run(
            "legacy = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)\n"
            f"legacy.connect({str(path)!r})\n"
            "socket.send_fds(sock, [b'x'], [legacy.fileno()])\n"
            "legacy.close()"
        )
        return self.receive()

    def receive(self) -> socket.socket:
        """The next socket that comes from the child."""
        _, ancillary, _, _ = self._ours.recvmsg(1, 256, socket.MSG_CMSG_CLOEXEC)
        (data,) = [data for _, kind, data in ancillary if kind == socket.SCM_RIGHTS]
        return socket.socket(fileno=struct.unpack("i", data)[0])
