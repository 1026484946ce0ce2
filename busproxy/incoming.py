"""A message that a peer has sent, checked, and not yet delivered.

It refers to the buffer it was read into.  Whoever keeps it longer than the
round makes a copy of its own (`kept`), and is a holder of its descriptors.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from busproxy.wire.header import fields_with_sender

if TYPE_CHECKING:
    from busproxy.peer import Peer
    from busproxy.transport.fds import FdSet
    from busproxy.wire.header import Header

_U32 = {True: Struct("<I").pack, False: Struct(">I").pack}


class Incoming:
    """A checked message that a peer has sent: data[start:end], body from `body`.

    The header may be that of an earlier message of the same flow; only `serial`
    and the lengths are this one's own.
    """

    __slots__ = ("body", "data", "end", "fds", "header", "peer", "serial", "start")

    def __init__(
        self,
        peer: Peer,
        header: Header,
        data: bytes | bytearray,
        start: int,
        end: int,
        fds: FdSet | None,
        serial: int,
    ) -> None:
        self.peer = peer
        self.header = header
        self.serial = serial
        self.data = data
        self.start = start
        self.body = start + header.length
        self.end = end
        self.fds = fds

    def tail(self, sender: str) -> bytes:
        """The outgoing header from its field length on."""
        length, fields = fields_with_sender(self.data, self.start, self.header, sender)
        return _U32[self.header.little_endian](length) + fields

    def with_sender(self, sender: str) -> bytes:
        """The whole message as receivers get it."""
        start = self.start
        return b"".join((self.data[start : start + 12], self.tail(sender), self.data[self.body : self.end]))

    @property
    def size(self) -> int:
        """Its length in bytes, header included."""
        return self.end - self.start

    @property
    def fd_count(self) -> int:
        return len(self.fds) if self.fds is not None else 0

    def kept(self) -> Incoming:
        """The message on its own, so that it does not keep a whole read buffer alive."""
        data = bytes(self.data[self.start : self.end])
        fds = self.fds.hold() if self.fds is not None else None
        return Incoming(self.peer, self.header, data, 0, len(data), fds, self.serial)
