"""What happens on the remote bus, told here as if it had happened here.

The watcher is told of every name and every connection.  What it reads is applied to the mirror (names,
connections) and reported, one thing after the other, between the messages that were sent in between.  After
each of our own commands this is done before the command returns (`drain`).

A connection of ours joins when the news says so, and leaves in the same way: everybody sees the one order.
Those of others are *strangers*: connections without a sink.

The watcher's queue has room for so much; when the bus changes faster than we read, everything is looked at
again and the difference is told (`resync`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from busproxy.core.incoming import Arrival, Intake
from busproxy.core.links import Link, Role
from busproxy.core.mirror import Place
from kdbus_core.abi import MATCH_ANY, HelloFlag, ItemType, ListFlag
from kdbus_core.connection import Connection, Limits
from kdbus_core.errors import KdbusError
from kdbus_core.matches import IdNotice, MatchRule, NameNotice
from kdbus_core.message import Message
from kdbus_core.metadata import Credentials, Process
from kdbus_core.names import ACTIVATOR, IN_QUEUE, PRIMARY
from kdbus_core.notifications import IdAdd, IdRemove, NameChange, ReplyDead, ReplyTimeout
from kdbus_core.quota import Quota, User
from kdbus_core.transport import client

if TYPE_CHECKING:
    from busproxy.core.broker import Broker
    from busproxy.core.remote import RemoteBus

PATIENCE = 30.0
"""Seconds after which the broker should have told what it has done."""

MAX_ROUNDS = 64
"""Readings after which a command does not wait any longer for the end of what others send."""

MAX_LOOKS = 8
"""How often the queue of a name is looked at that has moved meanwhile."""

_EVERYTHING = ListFlag.UNIQUE | ListFlag.NAMES | ListFlag.ACTIVATORS | ListFlag.QUEUED
_KINDS = int(HelloFlag.ACCEPT_FD | HelloFlag.ACTIVATOR | HelloFlag.POLICY_HOLDER | HelloFlag.MONITOR)
_STRANGERS_LIMITS = Limits(outstanding_requests=1 << 62)  # the broker's business


class News:
    """The watcher and all that is read; `strangers` are the ordinary connections that are not ours."""

    def __init__(self, bus: RemoteBus, broker: Broker, log: logging.Logger) -> None:
        self.intake = Intake()
        self.strangers: dict[Connection, None] = {}
        self.schedule: Callable[[], None] = lambda: None
        self._bus = bus
        self._broker = broker
        self._log = log
        self._watcher = Link(Role.WATCHER, broker.watcher)
        self._unknown_user = User(None)
        self._joining: dict[int, Connection] = {}
        self._leaving: Connection | None = None
        self._releasing: tuple[Connection, str] | None = None
        self._retiring: Connection | None = None
        self._withheld: list[NameChange] = []
        self._last_id = 0
        self.intake.add(self._watcher)

    def start(self) -> None:
        """Begin to watch, and take over everything that is there."""
        for cookie, rule in enumerate(_watched()):
            self._broker.ask(self._watcher.remote.match_add, cookie, [rule])
        for name, places in self._look()[0].items():
            self._bus.names.load(name, places)
        self.catch_up()

    def close(self) -> None:
        """Read no more."""
        self.intake.close()

    # Reading

    def drain(self) -> None:
        """Tell what has happened so far, and have the rest of it told soon if that is much."""
        if not self._drain():
            self.schedule()

    def catch_up(self) -> None:
        """Tell everything that has happened so far: a command has, and is not to return before."""
        for _ in range(MAX_ROUNDS):
            if self._drain():
                return
        self.schedule()

    def _drain(self) -> bool:
        """Read once, and tell what may be told; False when there is more."""
        if self._broker.gone:
            return True
        self._broker.ask(self.intake.read)
        while (arrival := self.intake.take()) is not None:
            try:
                self._apply(arrival)
            except Exception:  # a bug must cost a piece of news, never those behind it
                self._log.exception("internal error with what the broker has told")
        if self.intake.is_behind:
            return False
        self._on_quiet()
        return True

    def _on_quiet(self) -> None:
        self._bus.mail.on_quiet()
        while (link := self.intake.take_awake()) is not None:
            if link.on_ready is not None:
                link.on_ready()
        if self.intake.lost:
            self._bus.mail.lost += self.intake.lost
            self._log.debug("%d messages of the bus found no room", self.intake.lost)
            self.intake.lost = 0
        if self.intake.is_blind:
            self.intake.is_blind = False
            self._log.warning(
                "the bus has changed faster than it could be watched: looking at all of it again"
            )
            self.resync()

    def _apply(self, arrival: Arrival) -> None:
        content, link = arrival.content, arrival.link
        if isinstance(content, Message):
            self._bus.mail.on_message(arrival, content)
            return
        match content:
            case client.ReplyDead(cookie):
                self._bus.mail.on_request_lost(link, cookie, ReplyDead)
            case client.ReplyTimeout(cookie):
                self._bus.mail.on_request_lost(link, cookie, ReplyTimeout)
            case _ if link.role is not Role.WATCHER:
                pass  # monitors hear it too
            case client.NameChanged(_, name, old_id, old_flags, new_id, new_flags):
                self._on_name(name, old_id, int(old_flags), new_id, int(new_flags))
            case client.IdChanged(ItemType.ID_ADD, id, flags):
                self._on_id_added(id, flags)
            case client.IdChanged(_, id, _):
                self._on_id_removed(id)

    # Our own connections

    def join(self, link: Link, connection: Connection) -> None:
        """One of ours is on the remote bus: have it on this one in its turn, which is before this returns."""
        link.local = connection
        self._joining[link.id] = connection
        self.intake.add(link)
        self.catch_up()
        if self._joining.pop(link.id, None) is not None:  # the news was lost
            self._adopt(connection)

    def _adopt(self, connection: Connection) -> None:
        self._bus.connections[connection.id] = connection
        self._last_id = max(self._last_id, connection.id)
        self._bus.order.report(IdAdd(connection))

    def part(self, link: Link) -> None:
        """Close a link and forget what was read from it."""
        self.intake.remove(link)
        self._bus.mail.forget(link)
        link.close()

    def leave(self, link: Link, connection: Connection) -> None:
        """Close a link and wait until it is told that the connection has gone."""
        outer, self._leaving = self._leaving, connection
        try:
            self.part(link)
            self._wait_until_gone(connection)
        finally:
            self._leaving = outer

    def _wait_until_gone(self, connection: Connection) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            self.drain()
            if not connection.active or connection.is_monitor:
                return
            rest = deadline - time.monotonic()
            if rest <= 0 or not (self.intake.is_behind or self.intake.wait(rest)):
                self._log.warning("it is not told that connection %d has gone", connection.id)
                return

    def retire(self, link: Link, connection: Connection) -> None:
        """One of ours becomes a monitor: it leaves, and is said to have gone before its names are."""
        self._retiring = connection
        try:
            self.leave(link, connection)
            if self._retiring is not None:  # the news was lost
                self._on_retired(connection)
        finally:
            self._retiring = None

    def _on_retired(self, connection: Connection) -> None:
        self._retiring = None
        withheld, self._withheld = self._withheld, []
        with self._bus.transaction():
            self._bus.order.report(IdRemove(connection, int(connection.flags)))
            for change in withheld:
                self._bus.report_name_change(change)
            self._bus.retire(connection)

    @contextmanager
    def releasing(self, connection: Connection, name: str) -> Iterator[None]:
        """What is told in here of this client losing this name has come about by its own will."""
        outer, self._releasing = self._releasing, (connection, name)
        try:
            yield
        finally:
            self._releasing = outer

    # Connections

    def _on_id_added(self, id: int, flags: int) -> None:
        connection = self._joining.pop(id, None)
        if connection is not None:
            self._adopt(connection)
        elif id not in self._bus.connections and id != self._watcher.id:
            self._add_stranger(id, flags)

    def _on_id_removed(self, id: int) -> None:
        connection = self._bus.connections.get(id)
        if connection is None:
            return
        if connection is self._retiring:
            self._on_retired(connection)
            return
        self._bus.mail.on_stranger_gone(connection)
        if connection in self.strangers:
            del self.strangers[connection]
            if not self.strangers:
                self._bus.audience_generation += 1
        link = self._bus.links.pop(connection, None)
        self._bus.end(connection)
        if link is not None:  # somebody else has ended it
            self.part(link)
            if connection.sink is not None:
                self._bus.on_lost(connection)

    def _add_stranger(self, id: int, flags: int) -> Connection:
        stranger = self._make_stranger(id, flags)
        stranger.user.connections += 1
        self._bus.connections[id] = stranger
        self._last_id = max(self._last_id, id)
        if stranger.is_ordinary:
            if not self.strangers:
                self._bus.audience_generation += 1
            self.strangers[stranger] = None
        self._bus.order.report(IdAdd(stranger))
        return stranger

    def _make_stranger(self, id: int, flags: int) -> Connection:
        return Connection(
            id,
            self._bus.endpoint,
            Process.of(Credentials()),
            flags=HelloFlag(flags & _KINDS),
            faked=None,
            user=self._unknown_user,
            is_owner=False,
            limits=_STRANGERS_LIMITS,
            quota=Quota(0, 0, 0),
        )

    def stranger(self, id: int) -> Connection:
        """Who has sent something, with the account that it is charged to; who has gone is on no list."""
        connection = self._bus.connections.get(id)
        if connection is None:
            if id > self._last_id:
                connection = self._add_stranger(id, 0)
            else:
                connection = self._make_stranger(id, 0)
                connection.active = False
        if connection.user is self._unknown_user and connection.active:
            user = self._bus.domain.user(self._uid_of(connection))
            user.connections += 1
            self._unknown_user.connections -= 1
            connection.user = user
        return connection

    def _uid_of(self, stranger: Connection) -> int | None:
        try:
            return self._bus.ask_about(stranger).credentials.uid
        except KdbusError as error:
            self._log.debug("connection %d is charged to nobody: %s", stranger.id, error)
            return None

    # Names

    def _on_name(self, name: str, old_id: int, old_flags: int, new_id: int, new_flags: int) -> None:
        old = self._holder(old_id, old_flags)
        new = self._holder(new_id, new_flags)
        entry = self._bus.names.entry(name)
        if new is (None if entry is None or entry.holder is None else entry.holder.connection):
            return  # that was seen when we looked
        has_left = False
        if old is not None and not old_flags & ACTIVATOR:
            # Our clients give a name up by a command of ours; whatever else moves them is a replacement.
            has_left = old.sink is None or old is self._leaving or (old, name) == self._releasing
        self._bus.names.change(name, old, old_flags, new, new_flags, has_left=has_left)

    def _holder(self, id: int, name_flags: int) -> Connection | None:
        if not id:
            return None
        connection = self._bus.connections.get(id)
        if connection is None and id > self._last_id and id not in self._joining:
            connection = self._add_stranger(id, int(HelloFlag.ACTIVATOR) if name_flags & ACTIVATOR else 0)
        return connection

    def on_name_change(self, change: NameChange) -> None:
        """The mirror has taken in that a name has got another holder."""
        if self._retiring is not None and change.old is self._retiring:
            self._withheld.append(change)
            return
        self._bus.report_name_change(change)
        self._bus.mail.on_name_change(change)

    def refresh(self, name: str) -> None:
        """Find out which strangers wait for a name; nothing, if it does not stay with its owner meanwhile."""
        for _ in range(MAX_LOOKS):
            places = self._look()[0].get(name, [])
            self.catch_up()
            holder = next((place.connection for place in places if place.flags & PRIMARY), None)
            if holder is not None and holder is self._bus.names.owner(name):
                self._take_queue(name, places)
                return

    def _take_queue(self, name: str, places: list[Place]) -> None:
        waiting = [place.connection for place in places if place.flags & (IN_QUEUE | ACTIVATOR) == IN_QUEUE]
        order: list[int] = []
        if len(waiting) > 1 and not self.strangers.keys().isdisjoint(waiting):
            order = self._broker.queue(name)
        self._bus.names.refresh(name, places, order)

    # All of it

    def _look(self) -> tuple[dict[str, list[Place]], set[int]]:
        """Who stands at which name now, and who is there at all; new connections are taken in."""
        found: dict[str, list[Place]] = {}
        present: set[int] = set()
        for info in self._broker.ask(self._watcher.remote.list, _EVERYTHING):
            present.add(info.id)
            self._on_id_added(info.id, info.flags)
            connection = self._bus.connections.get(info.id)
            if connection is not None:
                for name, flags in info.names.items():
                    found.setdefault(name, []).append(Place(connection, int(flags)))
        return found, present

    def resync(self) -> None:
        """Look at everybody and every name, and tell what is different from what is known."""
        found, present = self._look()
        for name in dict.fromkeys((*(entry.name for entry in self._bus.names.entries()), *found)):
            self._compare(name, found.get(name, []))
        for connection in list(self._bus.connections.values()):
            if connection.id not in present and not connection.is_monitor:
                self._on_id_removed(connection.id)

    def _compare(self, name: str, places: list[Place]) -> None:
        entry = self._bus.names.entry(name)
        before = None if entry is None else entry.holder
        after = next((place for place in places if place.flags & PRIMARY), None)
        old = None if before is None else before.connection
        new = None if after is None else after.connection
        if old is not new:
            old_flags = 0 if before is None else before.flags
            new_flags = 0 if after is None else after.flags
            self._bus.names.change(name, old, old_flags, new, new_flags, has_left=False)
        if places:
            self._bus.names.refresh(name, places)


def _watched() -> Iterator[MatchRule]:
    """Everything that is announced of names and connections."""
    for type in (ItemType.NAME_ADD, ItemType.NAME_REMOVE, ItemType.NAME_CHANGE):
        yield NameNotice(type, MATCH_ANY, MATCH_ANY, None)
    for type in (ItemType.ID_ADD, ItemType.ID_REMOVE):
        yield IdNotice(type, MATCH_ANY)
