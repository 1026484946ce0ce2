"""A message as the broker's own code has it, sent by a connection of another broker.

A request without a deadline gets one that never passes: kdbus knows no request without, and legacy clients
wait as long as they like.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from kdbus_core.abi import DST_BROADCAST, MessageFlag
from kdbus_core.message import Memfd, Message, Vec, Zeros
from kdbus_core.transport.client import SealedMemory

if TYPE_CHECKING:
    from kdbus_core.caller import File
    from kdbus_core.transport.client import Connection, Part
    from kdbus_core.transport.files import OpenFile

FOREVER_NS = 100 * 365 * 24 * 3600 * 10**9
"""How far away the deadline of a request is that has none (nanoseconds)."""


def send_message(remote: Connection, message: Message) -> None:
    """SEND a message, whose files are borrowed; raises KdbusError."""
    timeout_ns = 0
    if message.expects_reply:
        timeout_ns = message.timeout_ns or time.monotonic_ns() + FOREVER_NS
    destination: int | str | None = message.dst_name or message.dst_id
    if message.dst_id == DST_BROADCAST:
        destination = None
    remote.send(
        list(_parts(message)),
        destination=destination,
        cookie=message.cookie,
        flags=MessageFlag(message.flags),
        payload_type=message.payload_type,
        cookie_reply=0 if message.expects_reply else message.cookie_reply,
        timeout_ns=timeout_ns,
        priority=message.priority,
        filter=message.filter,
        fds=[_descriptor(file) for file in message.files],
        dst_id=message.dst_id if message.dst_name is not None else 0,
    )


def _parts(message: Message) -> Iterator[Part]:
    for part in message.parts:
        match part:
            case Vec(data):
                yield data
            case Zeros():
                yield part
            case Memfd(start, size, file):
                yield SealedMemory(_descriptor(file), start, size)


def _descriptor(file: File) -> int:
    """What the proxy sends comes from real sockets, and so do its files."""
    return cast("OpenFile", file).fileno()
