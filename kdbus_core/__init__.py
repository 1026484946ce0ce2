"""A user-space broker with kdbus semantics, as pure logic.

Domains hold buses, buses hold endpoints and connections.  A connection owns
well-known names, subscribes with matches, sends messages and is told about
what happens to others by notifications.  Nothing in here touches a socket, a
clock or a file: time, randomness and credentials come in as parameters, what
goes out leaves through each connection's `Sink`.
"""

from kdbus_core.bus import Bus
from kdbus_core.connection import Connection, Sink
from kdbus_core.domain import Domain
from kdbus_core.endpoint import Endpoint
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import Credentials

__all__ = ["Bus", "Connection", "Credentials", "Domain", "Endpoint", "KdbusError", "Sink"]
