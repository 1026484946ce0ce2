"""A user-space broker with kdbus semantics, as pure logic.

Domains hold buses, buses hold endpoints and connections.  A connection owns
well-known names, adds matches, sends messages and is told about what happens
to others by notifications.  Nothing in here touches a socket, a clock or a
file: time, randomness, credentials and a caller's memory come in as
parameters; what goes out lies in a connection's pool, or leaves through the
`Sink` of a connection that a proxy has made.

`Handle` takes commands as bytes, as the kernel's ioctls did; `Bus` has the same
commands as methods.
"""

from kdbus_core.abi import AttachFlag, Command, HelloFlag, ListFlag, MakeFlag, MessageFlag, NameFlag
from kdbus_core.bus import Bus
from kdbus_core.caller import Caller, File, FileKind
from kdbus_core.connection import Connection, Gateway, Limits, Sink
from kdbus_core.domain import Bloom, Domain
from kdbus_core.endpoint import Endpoint
from kdbus_core.errors import KdbusError
from kdbus_core.handle import Handle, HandleState, PollFlag
from kdbus_core.matches import BloomMask, DstIdMatch, Filter, IdMatch, IdNotice, NameMatch, NameNotice
from kdbus_core.message import DstName, Fds, Memfd, Message, Vec, Zeros
from kdbus_core.metadata import Credentials, Process, Snapshot
from kdbus_core.policy import Access, PolicyEntry
from kdbus_core.pool import Memory, Pool
from kdbus_core.synchronous import SyncCall

__version__ = "0.1.0"

__all__ = [
    "Access",
    "AttachFlag",
    "Bloom",
    "BloomMask",
    "Bus",
    "Caller",
    "Command",
    "Connection",
    "Credentials",
    "Domain",
    "DstIdMatch",
    "DstName",
    "Endpoint",
    "Fds",
    "File",
    "FileKind",
    "Filter",
    "Gateway",
    "Handle",
    "HandleState",
    "HelloFlag",
    "IdMatch",
    "IdNotice",
    "KdbusError",
    "Limits",
    "ListFlag",
    "MakeFlag",
    "Memfd",
    "Memory",
    "Message",
    "MessageFlag",
    "NameFlag",
    "NameMatch",
    "NameNotice",
    "PolicyEntry",
    "PollFlag",
    "Pool",
    "Process",
    "Sink",
    "Snapshot",
    "SyncCall",
    "Vec",
    "Zeros",
]
