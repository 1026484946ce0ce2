"""A bus: connections, names, matches and open requests, and the order of things.

The bus is where a command changes something.  Whatever it causes is collected
as notifications and delivered before the command returns, so that there is
one total order: nobody sees a later message before the change that an earlier
command made.

Senders keep what they learned about a destination (see the proxy's flows).
Two counters tell them when to ask again: `route_generation` changes whenever
a message that was routed before might go elsewhere now (an owner changed, a
connection went, somebody listens in), `audience_generation` whenever the
receivers of a broadcast might differ.  A change that is not counted is a bug.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import EADDRNOTAVAIL, EINVAL, EMFILE, ENXIO, EOPNOTSUPP, EPERM, EREMCHG, ESHUTDOWN, ESRCH
from typing import TYPE_CHECKING

from kdbus_core.abi import HelloFlag, MakeFlag
from kdbus_core.connection import Connection, Limits, Sink
from kdbus_core.endpoint import DEFAULT_NAME, Endpoint
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import ConnectionInfo, Credentials
from kdbus_core.names import PRIMARY, NameRegistry
from kdbus_core.notifications import (
    IdAdd,
    IdRemove,
    NameChange,
    Notification,
    ReplyDead,
    ReplyTimeout,
)
from kdbus_core.quota import Quota, User
from kdbus_core.replies import Replies
from kdbus_core.subscriptions import Rule, Subscriptions

if TYPE_CHECKING:
    from kdbus_core.domain import Domain

Observer = Callable[[Notification], None]


class Bus:
    """One bus of a domain; commands are its methods."""

    def __init__(
        self, domain: Domain, name: str, id: int, id128: bytes, owner: Credentials, access: MakeFlag
    ) -> None:
        self.domain = domain
        self.name = name
        self.id = id
        self.id128 = id128
        self.owner = owner
        self.kernel_user = User(None)  # whom the bus' own messages are charged to
        self.endpoint = Endpoint(self, DEFAULT_NAME, access)
        self.connections: dict[int, Connection] = {}
        self.monitors: list[Connection] = []
        self.names = NameRegistry(self._on_name_change)
        self.subscriptions = Subscriptions()
        self.replies = Replies()
        self.observers: list[Observer] = []
        self.route_generation = 0
        self.audience_generation = 0
        self._pending: deque[Notification] = deque()
        self._depth = 0
        self._flushing = False

    # Connections

    def hello(
        self,
        endpoint: Endpoint,
        sink: Sink,
        credentials: Credentials,
        *,
        faked: Credentials | None = None,
        privileged: bool = False,
        flags: HelloFlag = HelloFlag(0),  # noqa: B008 - a constant
        description: str = "",
        limits: Limits = Limits(),  # noqa: B008 - a constant
        quota: Quota | None = None,
        account: User | None = None,
        max_connections: int | None = None,
    ) -> Connection:
        """Make a connection (HELLO).

        `credentials` are those of the process that connects; `faked` are those
        it speaks for, which only an owner of the bus may do (EPERM).  The
        connection is charged to the user it speaks for, or to another
        `account`.  A `quota` that the transport already accounts with can be
        handed over.  `max_connections` limits that user's connections (EMFILE).
        """
        if flags & HelloFlag.ACTIVATOR and flags & HelloFlag.MONITOR:
            raise KdbusError(EINVAL, "a connection is of one kind")
        owner = endpoint.is_owner(credentials, privileged=privileged)
        if faked is not None and not owner:
            raise KdbusError(EPERM, "only an owner of the bus may speak for others")
        if flags and flags & (HelloFlag.ACTIVATOR | HelloFlag.MONITOR) and not owner:
            raise KdbusError(EPERM, "only an owner of the bus may be a monitor or an activator")
        uid = credentials.uid
        if faked is not None and faked.uid is not None:
            uid = faked.uid
        user = account or self.domain.user(uid)
        if max_connections is not None and user.connections >= max_connections:
            user.settle()
            raise KdbusError(EMFILE, f"uid {user.uid} has {user.connections} connections")
        connection = Connection(
            self.domain.next_id(),
            endpoint,
            sink,
            flags=flags,
            credentials=credentials,
            faked=faked,
            user=user,
            description=description,
            limits=limits,
            quota=quota,
        )
        user.connections += 1
        self.connections[connection.id] = connection
        self.audience_generation += 1
        if connection.is_monitor:
            self.monitors.append(connection)
            self.subscriptions.add(connection, 0, Rule())  # a monitor sees everything
            self.route_generation += 1
        else:
            self._report(IdAdd(connection))
        return connection

    def disconnect(self, connection: Connection) -> None:
        """End a connection: names, matches and requests go, others are told.

        The order is fixed: names are handed on, then the connection is said to
        be gone, then those who waited for its replies learn of it.
        """
        if not connection.active:
            return
        connection.active = False
        with self.transaction():
            self._retire(connection, announce=not connection.is_monitor)
            del self.connections[connection.id]
            if connection.is_monitor:
                self.monitors.remove(connection)
            connection.user.disconnect()

    def become_monitor(self, connection: Connection, rules: Sequence[Rule] = (Rule(),)) -> None:
        """Turn an ordinary connection into a monitor of what matches any of `rules`.

        It is said to be gone, loses its names, matches and open requests, and
        sees what others send from now on; no kdbus command does this, the D-Bus
        method BecomeMonitor asks for it.  EOPNOTSUPP for a special connection.
        """
        self._check_ordinary(connection)
        with self.transaction():
            self._pending.append(IdRemove(connection))
            self._retire(connection)
            connection.flags |= HelloFlag.MONITOR
            connection.is_monitor = True
            self.monitors.append(connection)
        # It does not watch its own going: that was told before it listens.
        for cookie, rule in enumerate(rules):
            self.subscriptions.add(connection, cookie, rule)
            self._on_match_change(connection, rule)

    @staticmethod
    def _check_ordinary(connection: Connection) -> None:
        if not connection.active:
            raise KdbusError(ESHUTDOWN, f"connection {connection.id} has gone")
        if connection.is_monitor or connection.is_activator:
            raise KdbusError(EOPNOTSUPP, f"connection {connection.id} is a monitor or an activator")

    def _retire(self, connection: Connection, *, announce: bool = False) -> None:
        """Take a connection out of everything that others see of it."""
        self.names.disconnect(connection)
        self.subscriptions.disconnect(connection)
        if announce:
            self._pending.append(IdRemove(connection))
        for requester, cookie in self.replies.disconnect(connection):
            self._pending.append(ReplyDead(requester, cookie))
        self.route_generation += 1
        self.audience_generation += 1

    def connection_info(self, *, id: int | None = None, name: str | None = None) -> ConnectionInfo:
        """What may be known of a connection (CONN_INFO), asked for by id or by name.

        Faked credentials, where there are any, are the answer.  Raises EINVAL
        without either, ENXIO for an unknown id, ESRCH for a name that nobody
        has, or not the connection with that id.
        """
        if id is None and name is None:
            raise KdbusError(EINVAL, "neither an id nor a name")
        connection: Connection | None
        if name is not None:
            entry = self.names.entry(name)
            holder = entry.holder if entry is not None else None
            if holder is None or (id is not None and holder.connection.id != id):
                raise KdbusError(ESRCH, f"nobody, or somebody else, owns '{name}'")
            connection = holder.connection
        else:
            connection = self.connections.get(id or 0)
            if connection is None:
                raise KdbusError(ENXIO, f"no connection {id}")
        return ConnectionInfo(
            connection.id,
            int(connection.flags),
            connection.faked or connection.credentials,
            tuple(name for name, mine in connection.names.items() if mine.flags & PRIMARY),
            connection.description,
        )

    # Names

    def name_acquire(self, connection: Connection, name: str, flags: int) -> int:
        """NAME_ACQUIRE; see `NameRegistry.acquire`."""
        self._check_ordinary(connection)
        with self.transaction():
            return self.names.acquire(connection, name, flags)

    def name_release(self, connection: Connection, name: str) -> None:
        """NAME_RELEASE; see `NameRegistry.release`."""
        self._check_ordinary(connection)
        with self.transaction():
            self.names.release(connection, name)

    def name_offer(self, connection: Connection, name: str) -> None:
        """Make an activator stand in for a name; see `NameRegistry.offer`."""
        if not connection.active:
            raise KdbusError(ESHUTDOWN, f"connection {connection.id} has gone")
        if not connection.is_activator:
            raise KdbusError(EOPNOTSUPP, f"connection {connection.id} is no activator")
        with self.transaction():
            self.names.offer(connection, name)

    # Subscriptions

    def subscribe(self, connection: Connection, cookie: int, rule: Rule) -> None:
        """MATCH_ADD: subscribe under a cookie; EMFILE when there are too many."""
        self._check_ordinary(connection)
        if connection.match_count >= connection.limits.matches:
            raise KdbusError(EMFILE, f"connection {connection.id} has {connection.match_count} matches")
        self.subscriptions.add(connection, cookie, rule)
        self._on_match_change(connection, rule)

    def unsubscribe(self, connection: Connection, cookie: int) -> None:
        """MATCH_REMOVE: drop what is subscribed under a cookie; EBADSLT when there is nothing."""
        for rule in self.subscriptions.remove(connection, cookie):
            self._on_match_change(connection, rule)

    def _on_match_change(self, connection: Connection, rule: Rule) -> None:
        self.audience_generation += 1
        if rule.eavesdrop or connection.is_monitor:
            self.route_generation += 1

    # Destinations and replies

    def resolve(self, *, id: int = 0, name: str | None = None, auto_start: bool = True) -> Connection:
        """The connection a message to this destination goes to.

        A name leads to its owner, else to its activator.  With both, the owner
        has to be that connection.  Raises ESRCH, ENXIO, EREMCHG, EADDRNOTAVAIL.
        """
        if name is None:
            connection = self.connections.get(id)
            if connection is None or connection.is_monitor or connection.is_activator:
                raise KdbusError(ENXIO, f"no connection {id}")
            return connection
        entry = self.names.entry(name)
        holder = entry.holder if entry is not None else None
        if holder is None:
            raise KdbusError(ESRCH, f"nobody owns '{name}'")
        if id and holder.connection.id != id:
            raise KdbusError(EREMCHG, f"'{name}' is owned by {holder.connection.id}, not {id}")
        if not auto_start and holder.connection.is_activator:
            raise KdbusError(EADDRNOTAVAIL, f"'{name}' is not running")
        return holder.connection

    def expire_replies(self, now: int) -> None:
        """Tell the requesters whose deadline has passed (nanoseconds)."""
        for requester, cookie in self.replies.expire(now):
            self._pending.append(ReplyTimeout(requester, cookie))
        self._flush()

    def invalidate(self) -> None:
        """Have everybody ask again who remembers where messages go: rules outside the bus have changed."""
        self.route_generation += 1
        self.audience_generation += 1

    # Notifications

    def _on_name_change(self, change: NameChange) -> None:
        self.route_generation += 1
        self.audience_generation += 1
        self._report(change)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold notifications back until the end: what happens in here is one command."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self._flush()

    def _report(self, notification: Notification) -> None:
        self._pending.append(notification)
        self._flush()

    def _flush(self) -> None:
        # What an observer causes waits for its turn, so that all observers see one order.
        if self._depth or self._flushing:
            return
        pending = self._pending
        self._flushing = True
        try:
            while pending:
                self._deliver(pending.popleft())
        finally:
            self._flushing = False

    def _deliver(self, notification: Notification) -> None:
        match notification:
            case ReplyDead() | ReplyTimeout():
                if notification.requester.active:
                    notification.requester.sink.on_reply_lost(notification)
            case _:
                for observer in self.observers:
                    observer(notification)
