"""The remote bus' name registry as far as it is known here.

Who owns a name is announced, and what is announced is always right.  Who waits for a name is not: of this
proxy's own clients it is known, because only their own commands, whose results are told here, and changes of
owner move them; of others it is found out when somebody asks (`refresh`).

Nothing is decided here.  Each announcement is reported as the registry of a bus would have done it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kdbus_core.names import (
    ACTIVATOR,
    IN_QUEUE,
    PRIMARY,
    QUEUE,
    NameEntry,
    NameRegistry,
    Ownership,
)
from kdbus_core.notifications import NameChange

if TYPE_CHECKING:
    from kdbus_core.connection import Connection


class Place(NamedTuple):
    """Somebody's place at a name, as the broker lists it."""

    connection: Connection
    flags: int


class NameMirror(NameRegistry):
    """Names of a bus that is somewhere else; asked like any registry, and told what has happened."""

    def __init__(self, report: Callable[[NameChange], None]) -> None:
        super().__init__(report, lambda connection, name: True)

    # What is announced

    def change(
        self,
        name: str,
        old: Connection | None,
        old_flags: int,
        new: Connection | None,
        new_flags: int,
        *,
        has_left: bool,
    ) -> None:
        """A name has got another holder, and this is reported.

        `has_left` says that the old one gave the name up, and did not have it taken away.
        """
        entry = self._entries.get(name) or self._make(name)
        if old is not None:
            self._unseat(entry, old, old_flags, has_left=has_left or new is None)
        if new is not None:
            self._seat(entry, new, new_flags)
        self._tidy(entry)
        self._report(NameChange(name, old, old_flags, new, new_flags, entry.name_id))

    def _unseat(self, entry: NameEntry, old: Connection, flags: int, *, has_left: bool) -> None:
        mine = old.names.get(entry.name)
        if mine is None:
            return
        if flags & ACTIVATOR:
            mine.flags = ACTIVATOR | IN_QUEUE
            if has_left:
                self._forget(mine)
        elif has_left or not flags & QUEUE:
            self._forget(mine)
        else:
            mine.flags = flags & ~PRIMARY | IN_QUEUE

    def _seat(self, entry: NameEntry, new: Connection, flags: int) -> None:
        mine = new.names.get(entry.name)
        if mine is None:
            mine = new.names[entry.name] = Ownership(entry, new, flags)
        elif mine is not entry.activator:
            entry.queue.remove(mine)
        mine.flags = flags
        if flags & ACTIVATOR:
            entry.activator = mine
        else:
            entry.queue.insert(0, mine)

    # What the commands of our own clients have led to

    def settle(self, connection: Connection, name: str, flags: int, *, is_next: bool = False) -> None:
        """A client's NAME_ACQUIRE has given it these flags, and what was announced has been taken in.

        `is_next`: it waits next in line, else behind everybody if it did not wait before.
        """
        mine = connection.names.get(name)
        if flags & (PRIMARY | IN_QUEUE) == 0:
            self.leave(connection, name)
        elif mine is not None and mine.flags & PRIMARY:
            if flags & PRIMARY:
                mine.flags = flags
        elif flags & IN_QUEUE:
            entry = self._entries.get(name) or self._make(name)
            if mine is None:
                mine = self._append(entry, connection, 0)
            mine.flags = flags
            if is_next and entry.queue[0] is not mine:
                entry.queue.remove(mine)
                entry.queue.insert(1, mine)

    def leave(self, connection: Connection, name: str) -> None:
        """A client does not wait for a name any more."""
        mine = connection.names.get(name)
        if mine is not None and not mine.flags & PRIMARY:
            entry = mine.entry
            self._forget(mine)
            self._tidy(entry)

    def disconnect(self, connection: Connection) -> None:
        """A connection has gone, and what it owned has been announced before."""
        for mine in list(connection.names.values()):
            self._forget(mine)
            self._tidy(mine.entry)

    # What is listed

    def load(self, name: str, places: Iterable[Place]) -> None:
        """Take over who stands at a name, without a report; those who wait stand in this order."""
        entry = self._entries.get(name) or self._make(name)
        places = list(places)
        listed = {place.connection for place in places}
        for mine in (*entry.queue, *([entry.activator] if entry.activator is not None else ())):
            if mine.connection not in listed:
                self._forget(mine)
        entry.queue.clear()
        for connection, flags in places:
            mine = connection.names.get(name)
            if mine is None:
                mine = connection.names[name] = Ownership(entry, connection, flags)
            mine.flags = flags
            if flags & ACTIVATOR:
                entry.activator = mine
            elif flags & PRIMARY:
                entry.queue.insert(0, mine)
            else:
                entry.queue.append(mine)
        self._tidy(entry)

    def refresh(self, name: str, places: Iterable[Place], order: Sequence[int] = ()) -> None:
        """Have a name's queue contain exactly these, those first whose ids are in `order`.

        Without one, who was known to wait keeps its place before the others.
        """
        entry = self._entries.get(name)
        ids = order or ([] if entry is None else [mine.connection.id for mine in entry.queue])
        places_in = {id: at for at, id in enumerate(ids)}
        self.load(name, sorted(places, key=lambda place: places_in.get(place.connection.id, len(ids))))

    # Keeping both ends together

    def _forget(self, mine: Ownership) -> None:
        entry = mine.entry
        if mine is entry.activator:
            entry.activator = None
        else:
            entry.queue.remove(mine)
        del mine.connection.names[entry.name]

    def _tidy(self, entry: NameEntry) -> None:
        if not entry.queue and entry.activator is None and self._entries.get(entry.name) is entry:
            del self._entries[entry.name]
