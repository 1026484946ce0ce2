"""The fast path of clients' messages that native connections get, or may get.

As in `flows`, a header that was parsed, judged and routed once is not looked at
again as long as the bus has not changed.  What is left to do for each message is
to check its body and to convert it, which is much more than passing it on; so
these flows count as costly ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from busproxy.incoming import Incoming
from busproxy.wire.body import body_checker

if TYPE_CHECKING:
    from busproxy.bridge.crossing import Bridge
    from busproxy.flows import BroadcastFlow
    from busproxy.peer import Peer
    from busproxy.wire.header import Header
    from kdbus_core.connection import Connection


class NativeFlow:
    """Messages of a client to one native connection; see `flows.Flow`."""

    __slots__ = (
        "_bridge",
        "_bus",
        "_check",
        "_generation",
        "_header",
        "_receiver",
        "_reply_serial_at",
        "_sender",
    )

    is_costly = True

    def __init__(
        self, bridge: Bridge, header: Header, sender: Connection, receiver: Connection, reply_serial_at: int
    ) -> None:
        self._bridge = bridge
        self._bus = receiver.endpoint.bus
        self._generation = self._bus.route_generation
        self._header = header
        self._sender = sender
        self._receiver = receiver
        self._reply_serial_at = reply_serial_at
        self._check = body_checker(header.signature, header.little_endian)

    def forward(
        self,
        peer: Peer,
        data: bytes | bytearray,
        start: int,
        body: int,
        end: int,
        serial: int,
        is_checked: bool = False,
    ) -> bool:
        if self._generation != self._bus.route_generation:
            return False
        if not is_checked:
            self._check(data, body, end)
        header, reply_serial = self._header, None
        if at := self._reply_serial_at:
            order: Literal["little", "big"] = "little" if header.little_endian else "big"
            reply_serial = int.from_bytes(data[start + at : start + at + 4], order)
            if not reply_serial:
                return False
        message = Incoming(peer, header, data, start, end, None, serial)
        self._bridge.send(message, self._sender, self._receiver, reply_serial)
        return True


class SharedBroadcastFlow:
    """Signals that natives may want too; see `flows.Flow`."""

    __slots__ = ("_bridge", "_bus", "_check", "_generation", "_header", "_local", "_sender")

    is_costly = True

    def __init__(self, bridge: Bridge, header: Header, sender: Connection, local: BroadcastFlow) -> None:
        self._bridge = bridge
        self._bus = sender.endpoint.bus
        self._generation = self._bus.audience_generation
        self._header = header
        self._sender = sender
        self._local = local
        self._check = body_checker(header.signature, header.little_endian)

    def forward(
        self,
        peer: Peer,
        data: bytes | bytearray,
        start: int,
        body: int,
        end: int,
        serial: int,
        is_checked: bool = False,
    ) -> bool:
        if self._generation != self._bus.audience_generation:
            return False
        if not is_checked:
            self._check(data, body, end)
        message = Incoming(peer, self._header, data, start, end, None, serial)
        self._bridge.broadcast(message, self._sender)
        return self._local.forward(peer, data, start, body, end, serial, is_checked=True)
