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

A bus ends with the handle that made it: its endpoints go, then everybody on
it, and every later command is refused with ESHUTDOWN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from errno import (
    E2BIG,
    EADDRNOTAVAIL,
    EBUSY,
    ECONNREFUSED,
    EEXIST,
    EINVAL,
    EMFILE,
    ENOENT,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EPIPE,
    EREMCHG,
    ESHUTDOWN,
    ESRCH,
    ETIMEDOUT,
)
from typing import TYPE_CHECKING

from kdbus_core.abi import MAX_CONNECTIONS_PER_USER, MAX_MASK_BYTES, HelloFlag, MakeFlag
from kdbus_core.admission import check_kind, check_rights, resolve_account
from kdbus_core.connection import Connection, Gateway, Limits, Sink
from kdbus_core.delivery import Delivery, Received
from kdbus_core.endpoint import DEFAULT_NAME, Endpoint
from kdbus_core.errors import KdbusError
from kdbus_core.inbox import Inbox
from kdbus_core.matches import Matches, MatchRule, count_mask_bytes
from kdbus_core.metadata import (
    ConnectionInfo,
    Credentials,
    Process,
    Snapshot,
    as_credentials,
    parse_attach_flags,
)
from kdbus_core.names import PRIMARY, NameRegistry
from kdbus_core.node import check_own_name, is_valid_node_name
from kdbus_core.notifications import (
    IdAdd,
    IdRemove,
    NameChange,
    Notification,
    ReplyDead,
    ReplyTimeout,
)
from kdbus_core.order import Order
from kdbus_core.policy import Access, PolicyDatabase, PolicyEntry, may_own, may_see_name
from kdbus_core.pool import Pool
from kdbus_core.quota import Quota, User
from kdbus_core.replies import Replies
from kdbus_core.shared import SharedBus, granted_credentials
from kdbus_core.subscriptions import Rule, Subscriptions
from kdbus_core.synchronous import OnDone, SyncCall

if TYPE_CHECKING:
    from kdbus_core.caller import File
    from kdbus_core.domain import Bloom, Domain
    from kdbus_core.message import Message

Observer = Callable[[Notification], None]


class Bus(SharedBus):
    """One bus of a domain; commands are its methods.

    `creator_mask` says which metadata of its creator can be asked for,
    `required` which metadata everybody who connects has to grant.
    """

    def __init__(
        self,
        domain: Domain,
        name: str,
        id: int,
        id128: bytes,
        creator: Process,
        flags: MakeFlag,
        bloom: Bloom,
        creator_mask: int,
        required: int,
    ) -> None:
        self.domain = domain
        self.name = name
        self.id = id
        self.id128 = id128
        self.creator = creator
        self.owner = creator.credentials
        self.flags = flags
        self.bloom = bloom
        self.creator_mask = creator_mask
        self.required = required
        self.active = True
        self.kernel_user = User(None)  # whom the bus' own messages are charged to
        self.endpoint = Endpoint(self, DEFAULT_NAME, self.owner, flags)
        self.endpoints = {DEFAULT_NAME: self.endpoint}
        self.connections: dict[int, Connection] = {}
        self.monitors: list[Connection] = []
        self.policy = PolicyDatabase()
        self.names = NameRegistry(self._on_name_change, may_own)
        self.matches = Matches()
        self.subscriptions = Subscriptions()
        self.replies = Replies()
        self.delivery = Delivery(self)
        self.observers: list[Observer] = []
        self.gateway: Gateway | None = None
        self.route_generation = 0
        self.audience_generation = 0
        self.order = Order(self.delivery.notify, self._tell)

    # The bus and its endpoints

    def make_endpoint(self, name: str, maker: Process, access: MakeFlag = MakeFlag(0)) -> Endpoint:  # noqa: B008 - a constant
        """Make a custom endpoint (ENDPOINT_MAKE).

        Only owners may (EPERM); the name starts with the maker's uid and a
        dash (EINVAL) and is not in use (EEXIST).
        """
        self._check_active()
        if not self.endpoint.is_owner(maker):
            raise KdbusError(EPERM, "only an owner of the bus makes endpoints")
        check_own_name(name, maker.credentials)
        if name in self.endpoints:
            raise KdbusError(EEXIST, f"there is an endpoint '{name}'")
        endpoint = self.endpoints[name] = Endpoint(self, name, maker.credentials, access)
        self.domain.nodes.on_made(endpoint)
        return endpoint

    def close(self) -> None:
        """End the bus: its endpoints and everybody on them."""
        if not self.active:
            return
        self.active = False
        with self.transaction():
            for endpoint in list(self.endpoints.values()):
                endpoint.close()
            self.order.forget()
            del self.domain.buses[self.name]

    def _check_active(self) -> None:
        if not self.active:
            raise KdbusError(ESHUTDOWN, f"bus '{self.name}' has gone")

    # Connections

    def hello(
        self,
        endpoint: Endpoint,
        process: Process,
        *,
        sink: Sink | None = None,
        pool: Pool | Callable[[], Pool] | None = None,
        on_ready: Callable[[], None] | None = None,
        flags: HelloFlag = HelloFlag(0),  # noqa: B008 - a constant
        attach_send: int = 0,
        attach_recv: int = 0,
        faked: Credentials | Snapshot | None = None,
        description: str = "",
        name: str | None = None,
        accesses: Iterable[Access] = (),
        limits: Limits = Limits(),  # noqa: B008 - a constant
        quota: Quota | None = None,
        account: User | None = None,
        max_connections: int | None = MAX_CONNECTIONS_PER_USER,
        id: int | None = None,
    ) -> Connection:
        """Make a connection (HELLO): a native one with a `pool`, else a local one with a `sink`.

        A pool may be a function that makes it once everything else is right.
        `process` opened the handle; `faked` are the credentials it speaks for,
        which only an owner of the bus may give.  `name` and `accesses` are an
        activator's or a policy holder's.  `on_ready` is called when a native
        connection has something to receive; it must not issue commands.

        The connection is charged to its endpoint's account, to the user it
        speaks for, or to the one who opened it; a proxy may name another
        `account` and a `quota` that its transport already accounts with.
        `max_connections` limits the connections of that user; None does not.
        `id` is one that the connection has from another broker.

        Raises EINVAL, EOPNOTSUPP, EPERM, ECONNREFUSED, EMFILE, EEXIST, ESHUTDOWN
        in the order of kdbus; nothing is announced before all is checked.
        """
        self._check_active()
        if not endpoint.active:
            raise KdbusError(ESHUTDOWN, f"endpoint '{endpoint.name}' has gone")
        if flags or name is not None:
            check_kind(endpoint, flags, name)
        is_owner = endpoint.is_owner(process)
        check_rights(flags, faked, is_owner=is_owner)
        attach_send = parse_attach_flags(attach_send)
        attach_recv = parse_attach_flags(attach_recv)
        if pool is not None and description and not is_valid_node_name(description):
            raise KdbusError(EINVAL, f"'{description}' is not a description")
        if pool is not None and self.required & ~attach_send:
            raise KdbusError(ECONNREFUSED, f"the bus requires metadata {self.required:#x}")
        if id is None:
            id = self.domain.next_id()
        user = account or resolve_account(endpoint, process, faked, is_local=pool is None)
        if max_connections is not None and user.connections >= max_connections:
            user.settle()
            raise KdbusError(EMFILE, f"uid {user.uid} has {user.connections} connections")
        try:
            if name is not None and flags & HelloFlag.ACTIVATOR:
                self._check_offer(name)
            if pool is not None and not isinstance(pool, Pool):
                pool = pool()
            if quota is None:
                size = limits.pool_size if pool is None else pool.size
                quota = Quota(size // 2, limits.queued_messages, limits.in_flight_fds)
            connection = Connection(
                id,
                endpoint,
                process,
                flags=flags,
                faked=faked,
                user=user,
                is_owner=is_owner,
                sink=sink,
                inbox=None if pool is None else Inbox(pool, quota, on_ready),
                description=description,
                attach_send=attach_send,
                attach_recv=attach_recv,
                limits=limits,
                quota=quota,
            )
            if name is not None:
                self.policy.replace(connection, [PolicyEntry(name, tuple(accesses))])
        except KdbusError:
            user.settle()
            raise
        self._link(connection, name)
        return connection

    def _link(self, connection: Connection, name: str | None) -> None:
        connection.user.connections += 1
        self.connections[connection.id] = connection
        if connection.is_monitor:
            self.audience_generation += 1
            self.monitors.append(connection)
            if connection.inbox is None:
                self.subscriptions.add(connection, 0, Rule())  # a monitor sees everything
            self.route_generation += 1
        elif connection.is_activator and name is not None:
            with self.transaction():
                self.order.report(IdAdd(connection))
                self.names.offer(connection, name)
        else:
            self.order.report(IdAdd(connection))

    def _check_offer(self, name: str) -> None:
        entry = self.names.entry(name)
        if entry is not None and entry.activator is not None:
            raise KdbusError(EEXIST, f"'{name}' has an activator")

    def update(
        self,
        connection: Connection,
        *,
        attach_send: int | None = None,
        attach_recv: int | None = None,
        policy: Sequence[PolicyEntry] | None = None,
    ) -> None:
        """Change metadata masks or a policy holder's policy (UPDATE).

        EOPNOTSUPP for what a connection of this kind does not have, EINVAL for
        unknown bits or a send mask without what the bus requires, E2BIG for
        more than one name, EEXIST for a name somebody else has a policy for.
        """
        self._check_connected(connection)
        if attach_send is not None:
            if not (connection.is_ordinary or connection.is_monitor):
                raise KdbusError(EOPNOTSUPP, f"connection {connection.id} sends nothing")
            attach_send = parse_attach_flags(attach_send)
            if connection.inbox is not None and self.required & ~attach_send:
                raise KdbusError(EINVAL, f"the bus requires metadata {self.required:#x}")
        if attach_recv is not None:
            if connection.is_policy_holder:
                raise KdbusError(EOPNOTSUPP, f"connection {connection.id} receives nothing")
            attach_recv = parse_attach_flags(attach_recv)
        if policy is not None:
            if not connection.is_policy_holder:
                raise KdbusError(EOPNOTSUPP, f"connection {connection.id} holds no policy")
            if len(policy) > 1:
                raise KdbusError(E2BIG, "a policy holder has one name")
            self.policy.replace(connection, policy)
        if attach_send is not None:
            connection.attach_send = attach_send
        if attach_recv is not None:
            connection.attach_recv = attach_recv

    def byebye(self, connection: Connection) -> None:
        """Leave in good order (BYEBYE): EBUSY while something is queued."""
        self._check_ordinary(connection)
        if connection.inbox is not None and len(connection.inbox):
            raise KdbusError(EBUSY, f"{len(connection.inbox)} messages wait for connection {connection.id}")
        self.disconnect(connection)

    def disconnect(self, connection: Connection) -> None:
        """End a connection: names, matches and requests go, others are told.

        The order is fixed: names are handed on, then the connection is said to
        be gone, then those who waited for its replies learn of it.
        """
        if not connection.active:
            return
        connection.active = False
        with self.transaction():
            for call in list(connection.calls):
                call.cancel(ESHUTDOWN)
            self._retire(connection, announce=not connection.is_monitor)
            del self.connections[connection.id]
            if connection.is_monitor:
                self.monitors.remove(connection)
            if connection.inbox is not None:
                connection.inbox.close()
            connection.user.disconnect()

    def become_monitor(self, connection: Connection, rules: Sequence[Rule] = (Rule(),)) -> None:
        """Turn a local connection into a monitor of what matches any of `rules`.

        It is said to be gone, loses its names, subscriptions and open requests,
        and sees what others send from now on; no kdbus command does this, the
        D-Bus method BecomeMonitor asks for it.  EOPNOTSUPP for a special connection.
        """
        self._check_ordinary(connection)
        if connection.inbox is not None:
            raise KdbusError(EOPNOTSUPP, f"connection {connection.id} is a native one")
        with self.transaction():
            self.order.report(IdRemove(connection, int(connection.flags)))
            self._retire(connection)
            connection.become(connection.flags | HelloFlag.MONITOR)
            self.monitors.append(connection)
        # It does not watch its own going: that was told before it listens.
        for cookie, rule in enumerate(rules):
            self.subscriptions.add(connection, cookie, rule)
            self._on_subscription_change(connection, rule)

    @staticmethod
    def _check_connected(connection: Connection) -> None:
        if not connection.active:
            raise KdbusError(ESHUTDOWN, f"connection {connection.id} has gone")

    def _check_ordinary(self, connection: Connection) -> None:
        self._check_connected(connection)
        if not connection.is_ordinary:
            raise KdbusError(EOPNOTSUPP, f"connection {connection.id} is not an ordinary one")

    def _retire(self, connection: Connection, *, announce: bool = False) -> None:
        """Take a connection out of everything that others see of it."""
        self.names.disconnect(connection)
        self.policy.remove(connection)
        self.matches.disconnect(connection)
        self.subscriptions.disconnect(connection)
        if announce:
            self.order.report(IdRemove(connection))
        for lost in self.replies.disconnect(connection):
            self.delivery.on_lost(lost, EPIPE)
        self.route_generation += 1
        self.audience_generation += 1

    def connection_info(self, *, id: int | None = None, name: str | None = None) -> ConnectionInfo:
        """What may be known of a connection (CONN_INFO), asked for by id or by name.

        Faked credentials, where there are any, are the answer, and of a native
        connection what it grants.  Raises EINVAL without either, ENXIO for an
        unknown id, ESRCH for a name that nobody has, or not the connection with
        that id.
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
        known = connection.credentials if connection.faked is None else as_credentials(connection.faked)
        return ConnectionInfo(
            connection.id,
            int(connection.flags),
            known if connection.inbox is None else granted_credentials(known, connection.attach_send),
            tuple(name for name, mine in connection.names.items() if mine.flags & PRIMARY),
            connection.description,
        )

    # Names

    def name_acquire(self, connection: Connection, name: str, flags: int) -> int:
        """NAME_ACQUIRE; see `NameRegistry.acquire`.  EPERM without the right to own the name."""
        self._check_ordinary(connection)
        with self.transaction():
            return self.names.acquire(connection, name, flags)

    def name_release(self, connection: Connection, name: str) -> None:
        """NAME_RELEASE; see `NameRegistry.release`.  ESRCH also for a name the connection may not see."""
        self._check_ordinary(connection)
        if name not in connection.names and not may_see_name(connection, name):
            raise KdbusError(ESRCH, f"nobody owns '{name}'")
        with self.transaction():
            self.names.release(connection, name)

    def owners(self, name: str) -> list[Connection]:
        """Who owns a name, and behind it who waits for it, in this order."""
        entry = self.names.entry(name)
        return [] if entry is None else [place.connection for place in entry.queue]

    # Matches and subscriptions

    def match_add(
        self, connection: Connection, cookie: int, rules: Sequence[MatchRule], *, replace: bool = False
    ) -> None:
        """MATCH_ADD: receive what all of `rules` let through; EMFILE for too many, or too large masks.

        `replace` removes what stands under the cookie first.
        """
        self._check_ordinary(connection)
        listened = self.has_native_listeners
        try:
            if replace and cookie in connection.matches:
                self.matches.remove(connection, cookie)
            self._check_match_count(connection)
            if connection.mask_bytes + count_mask_bytes(rules) > MAX_MASK_BYTES:
                raise KdbusError(
                    EMFILE, f"connection {connection.id} has masks of {connection.mask_bytes} bytes"
                )
            self.matches.add(connection, cookie, rules)
        finally:
            self._on_match_change(listened=listened)

    def match_remove(self, connection: Connection, cookie: int) -> None:
        """MATCH_REMOVE: drop all entries under a cookie; EBADSLT when there is none."""
        self._check_ordinary(connection)
        listened = self.has_native_listeners
        self.matches.remove(connection, cookie)
        self._on_match_change(listened=listened)

    def _on_match_change(self, *, listened: bool) -> None:
        """Whether natives listen at all is what the way of a local broadcast depends on."""
        if self.has_native_listeners is not listened:
            self.audience_generation += 1

    def subscribe(self, connection: Connection, cookie: int, rule: Rule) -> None:
        """Have a local connection receive what an exact rule lets through; EMFILE when there are too many."""
        self._check_ordinary(connection)
        self._check_match_count(connection)
        self.subscriptions.add(connection, cookie, rule)
        self._on_subscription_change(connection, rule)

    def unsubscribe(self, connection: Connection, cookie: int) -> None:
        """Drop what is subscribed under a cookie; EBADSLT when there is nothing."""
        self._check_ordinary(connection)
        for rule in self.subscriptions.remove(connection, cookie):
            self._on_subscription_change(connection, rule)

    @staticmethod
    def _check_match_count(connection: Connection) -> None:
        if connection.match_count >= connection.limits.matches:
            raise KdbusError(EMFILE, f"connection {connection.id} has {connection.match_count} matches")

    def _on_subscription_change(self, connection: Connection, rule: Rule) -> None:
        self.audience_generation += 1
        if rule.eavesdrop or connection.is_monitor:
            self.route_generation += 1

    # Messages

    def send(self, connection: Connection, message: Message) -> None:
        """SEND without waiting; see `Delivery.send`.  The message is used up.

        What a local connection sends this way is for natives; its requests may have no deadline (0).
        """
        try:
            self._check_ordinary(connection)
            self.delivery.send(connection, message)
        finally:
            message.release()

    def send_seen(self, connection: Connection, message: Message) -> None:
        """SEND of what monitors were shown when it came; it had to wait for its receiver."""
        self.delivery.seen = message
        try:
            self.send(connection, message)
        finally:
            self.delivery.seen = None

    def call(self, connection: Connection, message: Message, on_done: OnDone | None = None) -> SyncCall:
        """SEND that waits for the reply; see `Delivery.call`.  The message is used up."""
        try:
            self._check_ordinary(connection)
            return self.delivery.call(connection, message, on_done)
        finally:
            message.release()

    def cancel(self, connection: Connection, cookie: int) -> None:
        """End the synchronous calls with this cookie (MSG_CANCEL): ENOENT when there is none."""
        self._check_ordinary(connection)
        calls = [call for call in connection.calls if call.cookie == cookie and not call.is_interrupted]
        if not calls:
            raise KdbusError(ENOENT, f"connection {connection.id} does not wait for {cookie}")
        with self.transaction():
            for call in calls:
                call.cancel()

    def receive(
        self, connection: Connection, flags: int, priority: int, install: Callable[[File], int]
    ) -> Received:
        """RECV; see `Delivery.receive`."""
        self._check_connected(connection)
        if connection.is_policy_holder:
            raise KdbusError(EOPNOTSUPP, f"connection {connection.id} receives nothing")
        return self.delivery.receive(connection, flags, priority, install)

    # Destinations and replies

    def resolve(self, *, id: int = 0, name: str | None = None, auto_start: bool = True) -> Connection:
        """The connection a message to this destination goes to.

        A name leads to its owner, else to its activator.  With both, the owner
        has to be that connection.  Raises ESRCH, ENXIO, EREMCHG, EADDRNOTAVAIL.
        """
        if name is None:
            connection = self.connections.get(id)
            if connection is None or not connection.is_ordinary:
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
        with self.transaction():
            for lost in self.replies.expire(now):
                self.delivery.on_lost(lost, ETIMEDOUT)

    def invalidate(self) -> None:
        """Have everybody ask again who remembers where messages go: rules outside the bus have changed."""
        self.route_generation += 1
        self.audience_generation += 1

    # Notifications

    def _on_name_change(self, change: NameChange) -> None:
        self.route_generation += 1
        self.audience_generation += 1
        old, new = change.old, change.new
        if old is not None and new is not None and (old.is_activator or new.is_activator):
            self.delivery.hand_over(old, new, change.name_id)
        self.order.report(change)

    def transaction(self) -> AbstractContextManager[None]:
        """Hold notifications back until the end: what happens in here is one command."""
        return self.order.transaction()

    def _tell(self, notification: Notification) -> None:
        match notification:
            case ReplyDead() | ReplyTimeout():
                requester = notification.requester
                if requester.active and requester.sink is not None:
                    requester.sink.on_reply_lost(notification)
            case _:
                for observer in self.observers:
                    observer(notification)
