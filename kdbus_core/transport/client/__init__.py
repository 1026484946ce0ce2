"""The client library: a program's side of the native protocol.

`open_node` opens a node and gives a `Handle`; `Handle.hello` makes it a
`Connection`, which sends and receives, owns names, asks for signals and asks
questions.  What is received is a `Received`, what is told of others an `Info`
or `Metadata`; both are plain values.  Everything that is refused is a
`KdbusError` with an errno of the interface.

The names here are the blocking half; `kdbus_core.transport.client.aio` has
the same ones for asyncio.
"""

from kdbus_core.errors import KdbusError
from kdbus_core.transport.client.blocking import Connection, Handle, open_node
from kdbus_core.transport.client.commands import DEFAULT_CALL_TIMEOUT_NS, LIST_ALL
from kdbus_core.transport.client.handle_commands import Supported
from kdbus_core.transport.client.notices import IdChanged, NameChanged, Notification, ReplyDead, ReplyTimeout
from kdbus_core.transport.client.received import Part, Received, SealedMemory
from kdbus_core.transport.client.records import Info, Metadata
from kdbus_core.transport.client.sending import MEMFD_THRESHOLD, SendOptions

__all__ = [
    "DEFAULT_CALL_TIMEOUT_NS",
    "LIST_ALL",
    "MEMFD_THRESHOLD",
    "Connection",
    "Handle",
    "IdChanged",
    "Info",
    "KdbusError",
    "Metadata",
    "NameChanged",
    "Notification",
    "Part",
    "Received",
    "ReplyDead",
    "ReplyTimeout",
    "SealedMemory",
    "SendOptions",
    "Supported",
    "open_node",
]
