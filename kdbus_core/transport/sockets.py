"""One packet out, one packet in, with its descriptors.

Sockets are SOCK_SEQPACKET: a packet is sent and received whole.  Descriptors that are received belong to
the caller from the moment they are returned; those that are sent stay with the caller.  What cannot be
handed over (a packet that was too long, descriptors that did not all fit) is closed here, so that none is
ever left without an owner.

A `PacketReader` keeps its buffer and learns who sent each packet; `receive_packet` does with less.
"""

from __future__ import annotations

import os
import socket
import threading
from array import array
from collections.abc import Iterable, Sequence
from errno import EMSGSIZE

from kdbus_core.transport.protocol import MAX_FDS, MAX_PACKET

SCM_CREDENTIALS = 2
_SCM_RIGHTS = socket.SCM_RIGHTS
_SOL_SOCKET = socket.SOL_SOCKET
UCRED_SIZE = 12
_CONTROL_SPACE = socket.CMSG_SPACE(MAX_FDS * 4) + socket.CMSG_SPACE(UCRED_SIZE)
# As numbers: an enumeration's own operators take ten times as long, with every packet.
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_TRUNCATED = int(socket.MSG_TRUNC)
_CONTROL_TRUNCATED = int(socket.MSG_CTRUNC)

_of_thread = threading.local()


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)


def send_packet(sock: socket.socket, data: bytes | Sequence[bytes], fds: Sequence[int] = ()) -> None:
    """Send one packet, all of it; the descriptors stay the caller's.

    Raises BlockingIOError when a non-blocking socket has no room, other OSErrors as the kernel has them
    (EPIPE: the other end has gone; EMSGSIZE: longer than the socket's send buffer).
    """
    parts = (data,) if isinstance(data, bytes) else data
    if fds:
        sock.sendmsg(parts, [(_SOL_SOCKET, _SCM_RIGHTS, array("i", fds))], _NOSIGNAL)
    elif len(parts) == 1:
        sock.send(parts[0], _NOSIGNAL)
    else:
        sock.sendmsg(parts, (), _NOSIGNAL)


def receive_packet(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    """One packet and the descriptors that came with it, which are the caller's; None at the end.

    A packet without a byte is taken for the end.  Raises BlockingIOError when a non-blocking socket has
    nothing, EMSGSIZE when the packet or its descriptors did not fit (they are closed), other OSErrors as
    the kernel has them.
    """
    reader: PacketReader | None = getattr(_of_thread, "reader", None)
    if reader is None:
        reader = _of_thread.reader = PacketReader()
    size = reader.receive(sock)
    fds = reader.take_fds()
    if reader.is_cut:
        close_all(fds)
        raise OSError(EMSGSIZE, "a packet, or its descriptors, did not fit")
    if not size:
        close_all(fds)
        return None
    return bytes(reader.view[:size]), fds


class PacketReader:
    """Reads packets of any number of sockets, one at a time, into `view`; the next one overwrites it.

    After `receive`, `sender` is what the kernel said of who sent the packet (a struct ucred; empty unless the
    socket has SO_PASSCRED).  A packet that did not fit is cut off: `is_too_long`; where not all of its
    descriptors could be had, which is so when this process is out of them, `lacks_fds`.
    """

    __slots__ = ("_fds", "has_fds", "is_too_long", "lacks_fds", "sender", "view")

    def __init__(self, *, size: int = MAX_PACKET) -> None:
        self.view = memoryview(bytearray(size))
        self.sender = b""
        self.is_too_long = False
        self.lacks_fds = False
        self.has_fds = False
        """Whether descriptors came with the packet, all of them or not."""
        self._fds: list[int] = []

    @property
    def is_cut(self) -> bool:
        """Whether anything of the packet is missing."""
        return self.is_too_long or self.lacks_fds

    def receive(self, sock: socket.socket) -> int:
        """Read one packet; its bytes, 0 at the end.  Raises BlockingIOError and other OSErrors."""
        if self._fds:  # nobody took those of the packet before
            close_all(self.take_fds())
        size, ancillary, flags, _ = sock.recvmsg_into((self.view,), _CONTROL_SPACE, _CLOEXEC)
        self.sender = b""
        for level, type, data in ancillary:
            if type == SCM_CREDENTIALS:
                self.sender = data
            elif type == _SCM_RIGHTS and level == _SOL_SOCKET:
                self._fds += array("i", data[: len(data) & ~3])
        self.is_too_long = flags & _TRUNCATED != 0
        self.lacks_fds = flags & _CONTROL_TRUNCATED != 0
        self.has_fds = self.lacks_fds or bool(self._fds)
        return size

    def take_fds(self) -> list[int]:
        """The descriptors of the packet that was read last; they are the caller's from now on."""
        fds = self._fds
        if fds:
            self._fds = []
        return fds
