"""A bus of another broker, as the proxy uses it: `--core`.

`RemoteBus` takes the place of the embedded bus, for the same router, driver and activation.  Each legacy
client has a native connection of its own there, made with the client's credentials, whose id is its unique
name.  Commands are round trips, as they were when the broker was in the kernel.  A message between two
clients of this proxy does not leave it: windows, subscriptions, quota and flows are what they are on a bus of
our own.

What others do is news (see `news`).  After each command that has consequences the news is told before the
command returns, so clients see a change, the signals about it and the reply in the order they have on an
embedded bus.  Names are mirrored (see `mirror`), messages of others come by way of `mail`.

Each client's match rules are entries of its own connection there, so that only those signals come here that
somebody may want; the exact rules are those of this bus.

When the broker goes away the proxy has to (see `gone`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from errno import E2BIG, EADDRINUSE, EAGAIN, EBADSLT, EEXIST, EMFILE, ENXIO, EOPNOTSUPP, ESRCH
from pathlib import Path
from typing import TYPE_CHECKING

from busproxy.core.broker import ENDED, Broker
from busproxy.core.links import Link, Role
from busproxy.core.mail import Letter, Mail
from busproxy.core.mirror import NameMirror
from busproxy.core.news import News
from busproxy.core.outgoing import send_message
from busproxy.match_entries import own_signal_entries, rule_entries
from busproxy.router import peer_of
from kdbus_core.abi import DST_BROADCAST, MAX_CONNECTIONS_PER_USER, HelloFlag, MakeFlag, NameFlag, ReceiveFlag
from kdbus_core.bus import Bus
from kdbus_core.connection import Connection, Limits, Sink
from kdbus_core.delivery import Received
from kdbus_core.domain import Domain
from kdbus_core.endpoint import Endpoint
from kdbus_core.errors import KdbusError
from kdbus_core.matches import BloomMask
from kdbus_core.metadata import (
    ConnectionInfo,
    Credentials,
    Creds,
    Process,
    Snapshot,
    as_credentials,
    as_snapshot,
)
from kdbus_core.names import ACQUIRED, PRIMARY, REPLACE_EXISTING
from kdbus_core.notifications import NameChange, Notification
from kdbus_core.order import Order
from kdbus_core.quota import Quota, User
from kdbus_core.subscriptions import Rule

if TYPE_CHECKING:
    from kdbus_core.caller import File
    from kdbus_core.matches import Filter, MatchRule
    from kdbus_core.message import Message
    from kdbus_core.policy import Access
    from kdbus_core.pool import Pool
    from kdbus_core.transport import client

_OWN_SIGNALS = 0
"""The cookie of the entries with which a client gets signals that are sent to it."""

_NO_FLAGS = HelloFlag(0)
_ANY_RULE = Rule()
_ACCESS = MakeFlag.ACCESS_GROUP | MakeFlag.ACCESS_WORLD


def _spoken_for(known: Credentials | Snapshot) -> Snapshot:
    """Whom a client's connection speaks for.

    Somebody of whom nothing is known has to be said to be nobody: without a word he would be us.
    """
    snapshot = as_snapshot(known)
    return Snapshot(creds=Creds()) if snapshot == Snapshot() else snapshot


def _ignore(notification: Notification) -> None:
    """Nobody on this side has a queue of the broker's."""


class RemoteBus(Bus):
    """The bus whose endpoint is at `path`.

    `on_lost` is told of a client whose connection somebody else has ended.

    Raises KdbusError: ENOENT, ECONNREFUSED or EACCES when there is none that can be connected to, EPERM when
    this process is not an owner of it.
    """

    def __init__(self, path: Path, log: logging.Logger) -> None:
        own = Credentials(uid=os.geteuid(), gid=os.getegid(), pid=os.getpid())
        self._log = log
        self._broker = Broker(path, own, log)
        watcher = self._broker.watcher
        super().__init__(
            Domain(os.urandom, time.monotonic_ns, time.time_ns),
            path.parent.name,
            0,
            watcher.id128,
            Process.of(own),
            MakeFlag(watcher.bus_flags) & _ACCESS,
            watcher.bloom,
            0,
            0,
        )
        self.domain.buses[self.name] = self
        self.links: dict[Connection, Link] = {}
        self.mail = Mail(self, log)
        self.news = News(self, self._broker, log)
        self.names: NameMirror = NameMirror(self.news.on_name_change)
        self.order = Order(_ignore, self._tell)
        self.on_lost: Callable[[Connection], None] = lambda connection: None
        self._monitor: Link | None = None
        try:
            self.news.start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the remote bus with everybody; nobody is told of anything any more."""
        if not self.active:
            return
        self.active = False
        links = [*self.links.values(), *([self._monitor] if self._monitor is not None else ())]
        self.links.clear()
        self.news.close()
        self.mail.close()
        for link in links:
            link.close()
        self._broker.close()
        del self.domain.buses[self.name]

    def fileno(self) -> int:
        """A descriptor that is readable while there is something to `drain`."""
        return self.news.intake.fileno()

    def drain(self) -> None:
        """Tell everything that has happened on the bus so far."""
        self.news.drain()

    # Connections

    def hello(
        self,
        endpoint: Endpoint,
        process: Process,
        *,
        sink: Sink | None = None,
        pool: Pool | Callable[[], Pool] | None = None,
        on_ready: Callable[[], None] | None = None,
        flags: HelloFlag = _NO_FLAGS,
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
        """Make the connection of a client, or with ACTIVATOR one that offers a service; see `Bus.hello`.

        Pools are the broker's business.  Where somebody else offers a service already, or the broker takes no
        more connections, ours is unknown to it; what our own clients send to it starts the service all the
        same.
        """
        self._check_active()
        user = account or self.domain.user(process.real_uid)
        if max_connections is not None and user.connections >= max_connections:
            user.settle()
            raise KdbusError(EMFILE, f"uid {user.uid} has {user.connections} connections")
        role = Role.ACTIVATOR if flags & HelloFlag.ACTIVATOR else Role.CLIENT
        link: Link | None = None
        try:
            remote = self._broker.connect(
                flags=flags,
                description=description,
                name=name,
                accesses=accesses,
                faked=None if faked is None else _spoken_for(faked),
            )
            link = Link(role, remote, on_ready=on_ready)
            if role is Role.CLIENT:
                for rules in own_signal_entries(link.id):
                    self._broker.ask(remote.match_add, _OWN_SIGNALS, rules)
        except KdbusError as error:
            if role is Role.ACTIVATOR and error.errno == EMFILE:
                self._log.warning("strangers cannot start %s: %s", name, error)
            elif role is Role.CLIENT or error.errno != EEXIST:
                if link is not None:
                    link.close()
                user.settle()
                raise
        size = limits.pool_size if pool is None or callable(pool) else pool.size
        connection = Connection(
            0 if link is None else link.id,
            endpoint,
            process,
            flags=flags,
            faked=faked,
            user=user,
            is_owner=True,
            sink=sink,
            description=description,
            attach_send=attach_send,
            attach_recv=attach_recv,
            limits=limits,
            quota=quota or Quota(size // 2, limits.queued_messages, limits.in_flight_fds),
        )
        user.connections += 1
        if link is not None:
            self.links[connection] = link
            self.news.join(link, connection)
        return connection

    def disconnect(self, connection: Connection) -> None:
        """End a connection of ours; see `Bus.disconnect`."""
        if not connection.active:
            return
        if not connection.id:  # an activator that the broker does not know
            connection.active = False
            connection.user.disconnect()
            return
        link = self.links.pop(connection, None)
        if link is not None:
            if self._broker.gone:
                self.news.part(link)
            else:
                self.mail.renounce(link, connection)
                self.news.leave(link, connection)
        self.end(connection)  # if the broker has not told
        self._review_monitor()

    def end(self, connection: Connection) -> None:
        """A connection is there no more, whosever it was."""
        super().disconnect(connection)

    def become_monitor(self, connection: Connection, rules: Sequence[Rule] = (_ANY_RULE,)) -> None:
        """Turn a client into a monitor; see `Bus.become_monitor`.  Its connection to the broker ends."""
        self._check_ordinary(connection)
        self._broker.check()
        link = self.links.pop(connection)
        self.mail.renounce(link, connection)
        self.news.retire(link, connection)
        for cookie, rule in enumerate(rules):
            self.subscriptions.add(connection, cookie, rule)
            self._on_subscription_change(connection, rule)
        self._review_monitor()

    def retire(self, connection: Connection) -> None:
        """A client is said to have gone, and is a monitor from now on."""
        self._retire(connection)
        connection.become(connection.flags | HelloFlag.MONITOR)
        self.monitors.append(connection)

    def _review_monitor(self) -> None:
        """See everything while somebody here listens to what others send each other, and only then."""
        wanted = self.subscriptions.has_listeners and not self._broker.gone
        if wanted and self._monitor is None:
            flags = HelloFlag.MONITOR | HelloFlag.ACCEPT_FD
            try:
                remote = self._broker.connect(flags=flags, description="busproxy-monitor")
            except KdbusError as error:  # perhaps there will be room when this is asked the next time
                self._log.warning("what others send each other is not seen: %s", error)
                return
            self._monitor = Link(Role.MONITOR, remote)
            self.news.intake.add(self._monitor)
        elif not wanted and self._monitor is not None:
            monitor, self._monitor = self._monitor, None
            self.news.part(monitor)

    def connection_info(self, *, id: int | None = None, name: str | None = None) -> ConnectionInfo:
        """What may be known of a connection; a stranger's is asked for.  See `Bus.connection_info`."""
        connection = None
        if name is not None:
            entry = self.names.entry(name)
            connection = None if entry is None or entry.holder is None else entry.holder.connection
        elif id is not None:
            connection = self.connections.get(id)
        if connection is None or connection.sink is not None:
            return super().connection_info(id=id, name=name)
        return self.ask_about(connection)

    def ask_about(self, stranger: Connection) -> ConnectionInfo:
        """What the broker knows of a stranger; nothing if it has just gone."""
        try:
            info = self._broker.ask(self._broker.watcher.info, stranger.id)
        except KdbusError as error:
            if error.errno != ENXIO:
                raise
            return ConnectionInfo(stranger.id, int(stranger.flags), Credentials(), (), "")
        return ConnectionInfo(
            info.id,
            info.flags,
            as_credentials(info.metadata.snapshot),
            tuple(name for name, flags in info.names.items() if flags & PRIMARY),
            info.description or "",
        )

    def _remote(self, connection: Connection) -> client.Connection:
        """The connection that one of ours has there."""
        self._broker.check()
        return self.links[connection].remote

    # Names

    def name_acquire(self, connection: Connection, name: str, flags: int) -> int:
        """NAME_ACQUIRE there; how many names a client may have is decided here too (E2BIG)."""
        self._check_ordinary(connection)
        if name not in connection.names and len(connection.names) >= connection.limits.names:
            raise KdbusError(E2BIG, f"connection {connection.id} has {len(connection.names)} names")
        try:
            result = int(self._broker.ask(self._remote(connection).name_acquire, name, NameFlag(flags)))
        finally:
            self.news.catch_up()
        if connection.active:
            is_next = bool(flags & REPLACE_EXISTING)  # as the broker has it for those who speak for others
            self.names.settle(connection, name, result & ~ACQUIRED, is_next=is_next)
        return result

    def name_release(self, connection: Connection, name: str) -> None:
        """NAME_RELEASE there; a name that was taken away just before is as good as released.

        So is one whose client's connection has ended there.
        """
        if self._broker.gone or not connection.active:
            return
        self._check_ordinary(connection)
        has_place = name in connection.names
        if peer_of(connection).closed:
            self.mail.renounce(self.links[connection], connection)
        with self.news.releasing(connection, name):
            try:
                self._broker.ask(self._remote(connection).name_release, name)
            except KdbusError as error:
                if error.errno not in ENDED and (not has_place or error.errno not in (ESRCH, EADDRINUSE)):
                    raise
            finally:
                self.news.catch_up()
            self.names.leave(connection, name)

    def owners(self, name: str) -> list[Connection]:
        """Who owns a name and who waits for it; which strangers wait is not announced, so it is asked."""
        if self.news.strangers:
            self.news.refresh(name)
        return super().owners(name)

    def report_name_change(self, change: NameChange) -> None:
        """A name has got another holder."""
        self._on_name_change(change)

    # Subscriptions

    def subscribe(self, connection: Connection, cookie: int, rule: Rule) -> None:
        """Subscribe here, and there to what strangers send.

        A client may have more rules than the broker lets it: from there on it is sent every signal.
        """
        self._check_ordinary(connection)
        self._check_match_count(connection)
        self._broker.check()
        link = self.links[connection]
        if not link.takes_all:
            # NameOwnerChanged is made here, of what the watcher is told.
            self._add_entries(link, cookie, rule_entries(self.bloom, rule, notifications=False))
        super().subscribe(connection, cookie, rule)
        if rule.eavesdrop:
            self._review_monitor()

    def _add_entries(self, link: Link, cookie: int, entries: Sequence[Sequence[MatchRule]]) -> None:
        try:
            for entry in entries:
                self._broker.ask(link.remote.match_add, cookie, entry)
                link.cookies.add(cookie)
        except KdbusError as error:
            self._remove_entries(link, cookie)
            if error.errno != EMFILE:
                raise
            everything = BloomMask((bytes(self.bloom.size),))
            self._broker.ask(link.remote.match_add, _OWN_SIGNALS, [everything], replace=True)
            link.takes_all = True

    def _remove_entries(self, link: Link, cookie: int) -> None:
        if cookie in link.cookies:
            link.cookies.remove(cookie)
            self._broker.ask(link.remote.match_remove, cookie)

    def unsubscribe(self, connection: Connection, cookie: int) -> None:
        """Drop what is subscribed under a cookie; EBADSLT when there is nothing."""
        self._broker.check()
        super().unsubscribe(connection, cookie)
        link = self.links.get(connection)  # a monitor has none
        if link is not None:
            self._remove_entries(link, cookie)
        self._review_monitor()

    # Strangers who listen

    @property
    def has_native_listeners(self) -> bool:
        """Whether there is anybody on the bus who is not a client of this proxy."""
        return bool(self.news.strangers)

    @property
    def has_native_monitors(self) -> bool:
        """Monitors are not announced, and do not see what our clients send each other."""
        return False

    def is_awaited(self, sender: Connection, filter: Filter) -> bool:
        """Who waits for a signal only the broker knows."""
        return bool(self.news.strangers)

    def show_to_native_monitors(self, sender: Connection, message: Message) -> None:
        """What our clients send each other stays here."""
        message.release()

    def bring(self, connection: Connection, until: int) -> None:
        """What comes with a name is brought in its turn; see `mail`."""

    # Messages

    def send(self, connection: Connection, message: Message) -> None:
        """Send a client's message to a stranger, or a signal to all of them.  The message is used up.

        The limit on open requests is ours as well as the broker's: EMLINK.
        """
        try:
            self._check_ordinary(connection)
            remote = self._remote(connection)
            if message.dst_id == DST_BROADCAST:
                self._broker.ask(send_message, remote, message)
            elif message.expects_reply:
                self._request(remote, connection, message)
            elif message.cookie_reply:
                self._reply(remote, connection, message)
            else:
                self._broker.ask(send_message, remote, message)
        finally:
            message.release()

    def _request(self, remote: client.Connection, connection: Connection, message: Message) -> None:
        receiver = self.resolve(id=message.dst_id, name=message.dst_name)
        tracker = self.replies.track(connection, receiver, message.cookie, 0)
        tracker.on_dequeued()
        try:
            self._broker.ask(send_message, remote, message)
        except BaseException:
            self.replies.close(tracker)
            raise

    def _reply(self, remote: client.Connection, connection: Connection, message: Message) -> None:
        try:
            self._broker.ask(send_message, remote, message)
        except KdbusError as error:
            if error.errno != EBADSLT:
                raise  # the request stays open, and may yet be answered
            self._close_request(connection, message)
            raise
        self._close_request(connection, message)

    def _close_request(self, replier: Connection, message: Message) -> None:
        requester = self.connections.get(message.dst_id)
        if requester is not None and self.replies.is_open(requester, replier, message.cookie_reply):
            self.replies.take(requester, replier, message.cookie_reply)

    def receive(
        self, connection: Connection, flags: int, priority: int, install: Callable[[File], int]
    ) -> Received:
        """RECV with DROP, of what waits for a service that will not come; EAGAIN when there is nothing.

        Everything else that is received comes by itself.
        """
        if not flags & ReceiveFlag.DROP:
            raise KdbusError(EOPNOTSUPP, "what is received comes by itself")
        link = self.links.get(connection)
        if link is None or not self._broker.ask(link.remote.drop):
            return Received(EAGAIN, 0, 0, 0)
        return Received(0, 0, 0, 0)

    def _tell(self, notification: Notification | Letter) -> None:
        if isinstance(notification, Letter):
            self.mail.tell(notification)
        else:
            super()._tell(notification)


__all__ = ["RemoteBus"]
