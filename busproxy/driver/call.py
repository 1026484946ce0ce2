"""A method call to the driver, and how it is refused.

Handlers get a `Call` and return the values of the reply, or `None` when they
have answered, or will answer, on their own.  `MethodError` is how they refuse;
it becomes an error reply.  The tables in which the methods stand are made of
`Method`s, one module per interface or subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from busproxy.wire.marshal import unmarshal

if TYPE_CHECKING:
    from busproxy.driver import Driver
    from busproxy.incoming import Incoming
    from busproxy.peer import Peer
    from kdbus_core.connection import Connection

ERROR_PREFIX = "org.freedesktop.DBus.Error."


class MethodError(Exception):
    """The call is refused: `name` without the common prefix, `text` for people."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, text)
        self.name = ERROR_PREFIX + name
        self.text = text


class Call:
    """One call; `arguments` are unmarshalled when first asked for."""

    __slots__ = ("driver", "message", "peer")

    def __init__(self, driver: Driver, message: Incoming) -> None:
        self.driver = driver
        self.message = message
        self.peer: Peer = message.peer

    @property
    def serial(self) -> int:
        return self.message.serial

    @property
    def arguments(self) -> list[Any]:
        header = self.message.header
        return unmarshal(
            header.signature, self.message.data, self.message.body, self.message.end, header.little_endian
        )

    @property
    def connection(self) -> Connection:
        """The caller's connection; every method but Hello has one."""
        assert self.peer.connection is not None
        return self.peer.connection


Handler = Callable[[Call], Sequence[Any] | None]


@dataclass(frozen=True, slots=True)
class Method:
    """A row of a method table.

    `anywhere` methods answer on every object path, as dbus-daemon's do for
    the sake of old clients; `privileged` ones only to root and to the user
    the daemon runs as.
    """

    name: str
    arguments: str
    results: str
    handler: Handler
    anywhere: bool = True
    privileged: bool = False


class Interface(NamedTuple):
    """An interface and its methods; most exist at the canonical object path only."""

    methods: dict[str, Method]
    anywhere: bool = False
