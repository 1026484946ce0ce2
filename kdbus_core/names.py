"""The name registry of a bus: who owns which well-known name, who waits for it.

An entry exists while somebody owns the name, queues for it or offers to start
it.  Its queue is ordered and the head is the primary owner; an activator
stands beside the queue and is what the name leads to when the queue is empty.
Flags are kept as kdbus keeps them: of what the caller asked for only
ALLOW_REPLACEMENT and QUEUE, and PRIMARY or IN_QUEUE for where the owner stands.

Every change of a primary owner is reported to the bus as a `NameChange`
before the method returns, and nothing else is reported.  An owner's entry in
`Connection.names` and its place in the queue come and go together.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import E2BIG, EADDRINUSE, EEXIST, EINVAL, EPERM, ESRCH
from typing import TYPE_CHECKING

from kdbus_core.abi import MAX_NAME_LENGTH, NAME_ACQUIRE_FLAGS, NAME_SAVED_FLAGS, NameFlag
from kdbus_core.errors import KdbusError
from kdbus_core.notifications import NameChange

if TYPE_CHECKING:
    from kdbus_core.connection import Connection

_ELEMENT_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")

PRIMARY = int(NameFlag.PRIMARY)
IN_QUEUE = int(NameFlag.IN_QUEUE)
ACTIVATOR = int(NameFlag.ACTIVATOR)
ACQUIRED = int(NameFlag.ACQUIRED)
QUEUE = int(NameFlag.QUEUE)
ALLOW_REPLACEMENT = int(NameFlag.ALLOW_REPLACEMENT)
REPLACE_EXISTING = int(NameFlag.REPLACE_EXISTING)
_ACQUIRE_FLAGS = int(NAME_ACQUIRE_FLAGS)
_SAVED_FLAGS = int(NAME_SAVED_FLAGS)


def is_valid_name(name: str) -> bool:
    """Whether this is a well-known name: two elements or more, ASCII, 255 bytes at most."""
    if len(name) > MAX_NAME_LENGTH:
        return False
    elements = name.split(".")
    return len(elements) > 1 and all(
        element and not element[0].isdigit() and _ELEMENT_CHARACTERS.issuperset(element)
        for element in elements
    )


class Ownership:
    """One connection's place at one name."""

    __slots__ = ("connection", "entry", "flags")

    def __init__(self, entry: NameEntry, connection: Connection, flags: int) -> None:
        self.entry = entry
        self.connection = connection
        self.flags = flags


class NameEntry:
    """A name, its queue of owners (the head owns it) and its activator."""

    __slots__ = ("activator", "name", "name_id", "queue")

    def __init__(self, name: str, name_id: int) -> None:
        self.name = name
        self.name_id = name_id
        self.queue: list[Ownership] = []
        self.activator: Ownership | None = None

    @property
    def holder(self) -> Ownership | None:
        """What the name leads to: its primary owner, else its activator."""
        return self.queue[0] if self.queue else self.activator


class NameRegistry:
    """All names of one bus.

    `may_own` is the policy's answer whether somebody may have a name.
    `replacers_first` decides where somebody waits who wanted to replace the
    owner and may not: kdbus appends, dbus-daemon puts it next in line.  Who
    speaks for somebody else is a proxy's D-Bus client and waits as those do.
    """

    def __init__(
        self, report: Callable[[NameChange], None], may_own: Callable[[Connection, str], bool]
    ) -> None:
        self.replacers_first = False
        self._may_own = may_own
        self._entries: dict[str, NameEntry] = {}
        self._report = report
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, name: str) -> NameEntry | None:
        """The entry of a name that somebody owns or offers."""
        return self._entries.get(name)

    def owner(self, name: str) -> Connection | None:
        """The primary owner; an activator is none."""
        entry = self._entries.get(name)
        return entry.queue[0].connection if entry is not None and entry.queue else None

    def entries(self) -> list[NameEntry]:
        """All entries, in the order in which they came into being."""
        return list(self._entries.values())

    def acquire(self, connection: Connection, name: str, flags: int) -> int:
        """Ask for a name (NAME_ACQUIRE); returns the owner's flags.

        PRIMARY in the result means that the caller owns the name now, IN_QUEUE
        that it waits, neither that it left the queue.  ACQUIRED means that this
        call changed something.  Raises EINVAL, EPERM, E2BIG, EEXIST.
        """
        if flags & ~_ACQUIRE_FLAGS:
            raise KdbusError(EINVAL, f"unknown flags {flags:#x}")
        if not is_valid_name(name):
            raise KdbusError(EINVAL, f"'{name}' is not a well-known name")
        if not self._may_own(connection, name):
            raise KdbusError(EPERM, f"connection {connection.id} may not own '{name}'")
        entry = self._entries.get(name)
        mine = connection.names.get(name)
        if mine is None and len(connection.names) >= connection.limits.names:
            raise KdbusError(E2BIG, f"connection {connection.id} has {len(connection.names)} names")
        saved = flags & _SAVED_FLAGS
        if entry is None:
            entry = self._make(name)
        if not entry.queue:
            return self._take_free_name(entry, connection, saved)
        primary = entry.queue[0]
        if primary is mine:
            mine.flags = saved | PRIMARY
            return mine.flags
        if flags & REPLACE_EXISTING and primary.flags & ALLOW_REPLACEMENT:
            return self._replace(entry, primary, mine, connection, saved)
        if flags & QUEUE:
            acquired = 0
            if mine is None:
                mine = self._append(entry, connection, 0)
                acquired = ACQUIRED
            mine.flags = saved | IN_QUEUE
            if flags & REPLACE_EXISTING and (self.replacers_first or connection.faked is not None):
                entry.queue.remove(mine)
                entry.queue.insert(1, mine)
            return mine.flags | acquired
        if mine is not None:
            self._remove(entry, mine)
            return saved
        raise KdbusError(EEXIST, f"'{name}' is owned by connection {primary.connection.id}")

    def release(self, connection: Connection, name: str) -> None:
        """Give a name or a place in its queue back (NAME_RELEASE).

        Raises ESRCH when nobody has the name, EADDRINUSE when only others do.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise KdbusError(ESRCH, f"nobody owns '{name}'")
        mine = connection.names.get(name)
        if mine is None:
            raise KdbusError(EADDRINUSE, f"connection {connection.id} does not own '{name}'")
        self._leave(entry, mine)

    def offer(self, connection: Connection, name: str) -> NameEntry:
        """Make `connection` the activator of a name; EEXIST when there is one already."""
        if not is_valid_name(name):
            raise KdbusError(EINVAL, f"'{name}' is not a well-known name")
        entry = self._entries.get(name)
        if entry is None:
            entry = self._make(name)
        if entry.activator is not None:
            raise KdbusError(EEXIST, f"'{name}' has an activator")
        flags = ACTIVATOR | (IN_QUEUE if entry.queue else PRIMARY)
        entry.activator = connection.names[name] = Ownership(entry, connection, flags)
        if not entry.queue:
            self._report(NameChange(name, None, 0, connection, flags, entry.name_id))
        return entry

    def disconnect(self, connection: Connection) -> None:
        """Give back everything a connection has, in the order it came by it."""
        for ownership in list(connection.names.values()):
            self._leave(ownership.entry, ownership)

    def _make(self, name: str) -> NameEntry:
        self._last_id += 1
        entry = self._entries[name] = NameEntry(name, self._last_id)
        return entry

    def _append(self, entry: NameEntry, connection: Connection, flags: int) -> Ownership:
        mine = connection.names[entry.name] = Ownership(entry, connection, flags)
        entry.queue.append(mine)
        return mine

    def _remove(self, entry: NameEntry, ownership: Ownership) -> None:
        entry.queue.remove(ownership)
        del ownership.connection.names[entry.name]

    def _take_free_name(self, entry: NameEntry, connection: Connection, saved: int) -> int:
        mine = self._append(entry, connection, saved | PRIMARY)
        activator = entry.activator
        if activator is None:
            self._report(NameChange(entry.name, None, 0, connection, mine.flags, entry.name_id))
        else:
            old_flags = activator.flags
            activator.flags = ACTIVATOR | IN_QUEUE
            self._report(
                NameChange(entry.name, activator.connection, old_flags, connection, mine.flags, entry.name_id)
            )
        return mine.flags | ACQUIRED

    def _replace(
        self, entry: NameEntry, primary: Ownership, mine: Ownership | None, connection: Connection, saved: int
    ) -> int:
        old_flags = primary.flags
        if mine is not None:
            entry.queue.remove(mine)
            mine.flags = saved | PRIMARY
        else:
            mine = connection.names[entry.name] = Ownership(entry, connection, saved | PRIMARY)
        entry.queue.insert(0, mine)
        if primary.flags & QUEUE:
            primary.flags = primary.flags & ~PRIMARY | IN_QUEUE
        else:
            self._remove(entry, primary)
        self._report(
            NameChange(entry.name, primary.connection, old_flags, connection, mine.flags, entry.name_id)
        )
        return mine.flags | ACQUIRED

    def _leave(self, entry: NameEntry, mine: Ownership) -> None:
        name, connection = entry.name, mine.connection
        if mine is entry.activator:
            entry.activator = None
            del connection.names[name]
            if not entry.queue:
                del self._entries[name]
                self._report(NameChange(name, connection, mine.flags, None, 0, entry.name_id))
            return
        was_primary = entry.queue[0] is mine
        self._remove(entry, mine)
        if not was_primary:
            return
        heir = entry.holder
        if heir is None:
            del self._entries[name]
            self._report(NameChange(name, connection, mine.flags, None, 0, entry.name_id))
            return
        heir.flags = heir.flags & ~IN_QUEUE | PRIMARY
        self._report(NameChange(name, connection, mine.flags, heir.connection, heir.flags, entry.name_id))
