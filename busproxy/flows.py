"""The hot path: messages that look like an earlier one go where that one went.

A flow is all messages of one peer that share every header field but serial,
reply serial and body length.  The first message of a flow is parsed, checked
and routed in full; what was found out is kept as a `Flow` under the header's
own bytes.  For the next one it remains to compare a generation number, check
the body, patch serial and lengths into the outgoing header and append it to
the receiver's queue.

A flow is never trusted when the bus has changed: each kind compares the
generation it was made for (see `kdbus_core.bus`) and returns False, upon
which the message is routed in full again.  False is also the answer to
everything out of the ordinary: a receiver that is behind, a reply nobody
waits for, a serial already in use.

`relay` cuts a buffer into messages.  It trusts lengths only as far as they
lie within the limits; all other checks of the header were made on the flow's
first message, whose bytes were the same.
"""

from __future__ import annotations

from struct import Struct
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from busproxy.wire.body import string_arguments
from busproxy.wire.errors import ProtocolError
from busproxy.wire.header import message_length

if TYPE_CHECKING:
    from collections.abc import Callable

    from busproxy.peer import Peer
    from busproxy.transport.streams import Stream
    from kdbus_core.bus import Bus
    from kdbus_core.connection import Connection
    from kdbus_core.quota import User
    from kdbus_core.replies import Window
    from kdbus_core.subscriptions import Audience

    BodyChecker = Callable[[bytes | bytearray, int, int], None]

LARGE_BODY = 16 * 1024
"""From this size on (bytes) a body is handed to the kernel where it lies instead of being joined."""

MAX_FLOWS = 1024
"""Flows kept of a peer's calls and signals, of which the oldest quarter goes when there are more, and of
its replies, which are all forgotten then."""

MAX_HEADER = 4096
"""Messages with longer headers (bytes) are routed one by one, for a flow keeps its header."""

MAX_SHARE = 0.005
"""Seconds of a round that one peer's messages may take, those that flows forward not counted."""

_LITTLE_ENDIAN = ord("l")
_REPLIES = (2, 3)

_lengths_little = Struct("<III").unpack_from
_lengths_big = Struct(">III").unpack_from
_u32_little = Struct("<I").unpack_from
_u32_big = Struct(">I").unpack_from


class Flow(Protocol):
    """How to deal with one more message like the first one; `is_costly` if it is not just passed on."""

    is_costly: bool

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
        """Deal with the message at data[start:end]; False: it has to be routed in full.

        The body of the flow's first message was checked before there was a flow.
        """


class FlowTable:
    """The flows of one peer, by header.

    A reply's key leaves its reply serial out; where that stands is remembered
    by the length of the header fields, and each such place has a table of its
    own, so that the bytes left out are always the reply serial.
    """

    __slots__ = ("_replies", "plain", "reply_layouts")

    def __init__(self) -> None:
        self.plain: dict[bytes, Flow] = {}
        self.reply_layouts: dict[bytes, tuple[int, dict[bytes, Flow]]] = {}
        self._replies: dict[int, dict[bytes, Flow]] = {}

    def __len__(self) -> int:
        return len(self.plain) + sum(map(len, self._replies.values()))

    def add(self, flow: Flow, data: bytes | bytearray, start: int, body: int, reply_serial_at: int) -> None:
        """Keep a flow for messages with this header, unless that is too long."""
        if body - start > MAX_HEADER:
            return
        if not reply_serial_at:
            table = self.plain
            key = data[start : start + 4] + data[start + 12 : body]
        else:
            at = start + reply_serial_at
            if len(self) - len(self.plain) >= MAX_FLOWS or len(self.reply_layouts) >= MAX_FLOWS:
                self._replies.clear()
                self.reply_layouts.clear()
            table = self._replies.setdefault(reply_serial_at, {})
            self.reply_layouts[bytes(data[start + 12 : start + 16])] = (reply_serial_at, table)
            key = data[start : start + 4] + data[start + 12 : at] + data[at + 4 : body]
        if len(table) >= MAX_FLOWS:
            for oldest in list(table)[: MAX_FLOWS // 4]:
                del table[oldest]
        table[bytes(key)] = flow

    def clear(self) -> None:
        """Forget everything."""
        self.plain.clear()
        self._replies.clear()
        self.reply_layouts.clear()


class UnicastFlow:
    """Calls, replies and signals to one connection.

    `tail` is the outgoing header from its field length on, with the true
    sender.  `requests` is the reply window that a call opens, `duties` the one
    that a reply takes from.  `others` are eavesdroppers and monitors.
    """

    __slots__ = (
        "_body_length",
        "_bus",
        "_checker",
        "_duties",
        "_generation",
        "_reply_serial_at",
        "_requests",
        "_stream",
        "_tail",
        "_unpack",
        "_user",
    )

    is_costly = False

    def __init__(
        self,
        bus: Bus,
        stream: Stream,
        user: User,
        tail: bytes,
        *,
        little_endian: bool,
        checker: BodyChecker,
        body_length: int | None,
        requests: Window | None,
        duties: Window | None,
        reply_serial_at: int,
    ) -> None:
        self._bus = bus
        self._generation = bus.route_generation
        self._stream = stream
        self._user = user
        self._tail = tail
        self._unpack = _u32_little if little_endian else _u32_big
        self._checker = checker
        self._body_length = -1 if body_length is None else body_length
        self._requests = requests
        self._duties = duties
        self._reply_serial_at = reply_serial_at

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
        stream = self._stream
        if self._generation != self._bus.route_generation or stream.blocked:
            return False
        size = end - body
        if size != self._body_length and not is_checked:
            self._checker(data, body, end)
        window = self._requests
        if window is not None:
            requester = window.requester
            if serial in window or requester.outstanding >= requester.limits.outstanding_requests:
                return False
            window[serial] = 0
            requester.outstanding += 1
            tail = self._tail
        elif (window := self._duties) is not None:
            at = self._reply_serial_at
            if window.pop(self._unpack(data, start + at)[0], None) is None:
                return False
            window.requester.outstanding -= 1
            tail = self._tail[: at - 12] + data[start + at : start + at + 4] + self._tail[at - 8 :]
        else:
            tail = self._tail
        user = self._user
        if stream.source is not user:
            stream.mark(user)
        if size < LARGE_BODY:
            stream.out += (data[start : start + 12], tail, data[body:end])
        else:
            stream.out += (data[start : start + 12], tail, memoryview(data)[body:end])
            stream.has_large = True
        if not stream.touched:
            stream.touched = True
            stream.poller.touched.append(stream)
        return True


class BroadcastFlow:
    """Signals to whoever has subscribed."""

    __slots__ = (
        "_audience",
        "_body_length",
        "_bus",
        "_checker",
        "_generation",
        "_little_endian",
        "_signature",
        "_streams",
        "_tail",
        "_user",
    )

    is_costly = False

    def __init__(
        self,
        bus: Bus,
        audience: Audience,
        streams: tuple[Stream, ...],
        user: User,
        tail: bytes,
        *,
        signature: str,
        little_endian: bool,
        checker: BodyChecker,
        body_length: int | None,
    ) -> None:
        self._bus = bus
        self._generation = bus.audience_generation
        self._audience = audience
        self._streams = streams
        self._user = user
        self._tail = tail
        self._signature = signature
        self._little_endian = little_endian
        self._checker = checker
        self._body_length = -1 if body_length is None else body_length

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
        if end - body != self._body_length and not is_checked:
            self._checker(data, body, end)
        audience = self._audience
        if audience.argument_count:
            receivers = audience_of(audience, self._signature, self._little_endian, data, body, end)
            if receivers:
                message = b"".join((data[start : start + 12], self._tail, data[body:end]))
                peer.router.copy_to(receivers, message, self._user)
            return True
        streams = self._streams
        if not streams:
            return True
        message = b"".join((data[start : start + 12], self._tail, data[body:end]))
        user = self._user
        touched = peer.stream.poller.touched
        for stream in streams:
            if stream.blocked:
                peer.router.push_or_lose(stream, message, user)
                continue
            if stream.source is not user:
                stream.mark(user)
            stream.out.append(message)
            if not stream.touched:
                stream.touched = True
                touched.append(stream)
        return True


def audience_of(
    audience: Audience, signature: str, little_endian: bool, data: bytes | bytearray, body: int, end: int
) -> list[Connection]:
    """The receivers of a message whose (checked) body is data[body:end]."""
    if not audience.argument_count:
        return list(audience.always)
    arguments = string_arguments(signature, little_endian, data, body, end, audience.argument_count)
    return list(audience.receivers(arguments))


def relay(peer: Peer, data: bytes | bytearray) -> int:
    """Deal with every whole message in `data`; returns how many bytes that were.

    Whoever asks for much work gets a bounded time: whole messages may be left
    over, for the next round.  Raises ProtocolError where the peer broke the
    rules; what came before has been dealt with.
    """
    size = len(data)
    route = peer.router.route
    max_size = peer.max_message_size
    flows = peer.flows
    plain = flows.plain
    layouts = flows.reply_layouts
    is_whole = type(data) is bytearray  # one collected message: its slices cannot be dictionary keys
    start = 0
    deadline = monotonic() + MAX_SHARE
    while size - start >= 16:
        if data[start] == _LITTLE_ENDIAN:
            body_length, serial, fields_length = _lengths_little(data, start + 4)
        else:
            body_length, serial, fields_length = _lengths_big(data, start + 4)
        body = start + 16 + (fields_length + 7 & -8)
        end = body + body_length
        if end > size:
            if message_length(data, start) > max_size:
                raise ProtocolError(f"message of {end - start} bytes, {max_size} are allowed", 4)
            break
        if end - start > max_size:
            raise ProtocolError(f"message of {end - start} bytes, {max_size} are allowed", 4)
        head = data[start : start + 4]
        kind = head[1]
        flow: Flow | None
        if is_whole:
            flow = None
        elif kind in _REPLIES:
            layout = layouts.get(data[start + 12 : start + 16])  # type: ignore[arg-type]
            if layout is None:
                flow = None
            else:
                at = start + layout[0]
                flow = layout[1].get(head + data[start + 12 : at] + data[at + 4 : body])  # type: ignore[arg-type]
        else:
            flow = plain.get(head + data[start + 12 : body])  # type: ignore[arg-type]
        try:
            done = flow is not None and serial != 0 and flow.forward(peer, data, start, body, end, serial)
        except ProtocolError:
            done = False  # `route` finds it again and says where in the message
        if not done:
            route(peer, data, start, end)
            if peer.closed:
                return size
        peer.messages_received += 1
        start = end
        if (not done or flow.is_costly) and monotonic() > deadline:  # type: ignore[union-attr]
            break
    return start
