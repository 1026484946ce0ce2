"""The proxy's own connections to the remote broker, by what they are for.

There is one for each legacy client, which carries that client's credentials, one for each service that can be
started, one that watches names and connections come and go, and while somebody monitors one that sees
everything.  A `Link` owns the client connection and closes it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbus_core.connection import Connection
    from kdbus_core.transport.client import Connection as RemoteConnection


class Role(Enum):
    """What a link is for."""

    WATCHER = auto()
    CLIENT = auto()
    ACTIVATOR = auto()
    MONITOR = auto()


class Link:
    """One connection of ours; `local` is what it looks like on this side, None for those nobody here sees.

    `last` is the place in the bus' order of what was read from it last.  `cookies` are those of its matches,
    unless it `takes_all` signals because there were too many.
    `on_ready` is an activator's: what waits there is left alone until somebody takes the name over.
    """

    __slots__ = ("cookies", "last", "local", "on_ready", "remote", "role", "takes_all")

    def __init__(
        self,
        role: Role,
        remote: RemoteConnection,
        *,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.role = role
        self.remote = remote
        self.local: Connection | None = None
        self.on_ready = on_ready
        self.cookies: set[int] = set()
        self.takes_all = False
        self.last = 0

    @property
    def id(self) -> int:
        """The id of the connection on the remote bus, and so here."""
        return self.remote.id

    def close(self) -> None:
        """Leave the bus; what is still queued is lost, and those who wait for an answer hear of it."""
        self.remote.close()

    def __repr__(self) -> str:
        return f"Link({self.role.name}, {self.remote.id})"
