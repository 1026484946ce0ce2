"""Who may own, talk to and see which names.

A `PolicyDatabase` holds entries: a name, or a wildcard for all names one
element below it, with the accesses it grants.  A bus has one, filled by its
policy holders and activators; every custom endpoint has one of its own, which
can only take away.  An entry belongs to whoever uploaded it, and an upload
replaces everything its owner had before, or nothing.  A name has one entry in
a database, whoever it belongs to, and so has a wildcard; they do not collide
with each other.

An exact entry is all there is to say about a name, even if a wildcard would
grant more.  Of several accesses that apply to somebody the highest counts.
Unknown ids equal nothing.

Decisions are taken on the credentials that were frozen when a handle was
opened, each time anew: an upload takes effect with the next message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from errno import EEXIST, EINVAL
from typing import TYPE_CHECKING, NamedTuple

from kdbus_core.abi import UNSET_ID, AccessLevel, AccessType
from kdbus_core.errors import KdbusError
from kdbus_core.names import IN_QUEUE, is_valid_name

if TYPE_CHECKING:
    from kdbus_core.connection import Connection
    from kdbus_core.metadata import Credentials

SEE = int(AccessLevel.SEE)
TALK = int(AccessLevel.TALK)
OWN = int(AccessLevel.OWN)
_NOTHING = SEE - 1
_USER = int(AccessType.USER)
_GROUP = int(AccessType.GROUP)
_WORLD = int(AccessType.WORLD)
_WILDCARD = ".*"


class Access(NamedTuple):
    """What somebody may do: an `AccessType`, an `AccessLevel`, and a uid or gid in the initial namespace.

    Of WORLD the id means nothing.
    """

    type: int
    id: int
    level: int


class PolicyEntry(NamedTuple):
    """The accesses to a name, or to all names one element below it if it ends in ".*"."""

    name: str
    accesses: tuple[Access, ...]


def is_wildcard(name: str) -> bool:
    """Whether the name of an entry stands for the names below it."""
    return name.endswith(_WILDCARD)


def is_valid_policy_name(name: str) -> bool:
    """Whether this is a well-known name, or would be one with an element in place of a final "*"."""
    return is_valid_name(f"{name[:-1]}_" if is_wildcard(name) else name)


class _Grants:
    """The accesses of one entry, by whom they are for."""

    __slots__ = ("groups", "users", "world")

    def __init__(self, accesses: Iterable[Access]) -> None:
        self.world = _NOTHING
        self.users: dict[int, int] = {}
        self.groups: dict[int, int] = {}
        for type, id, level in accesses:
            if not SEE <= level <= OWN:
                raise KdbusError(EINVAL, f"there is no access level {level}")
            if type == _WORLD:
                self.world = max(self.world, level)
                continue
            if type == _USER:
                levels = self.users
            elif type == _GROUP:
                levels = self.groups
            else:
                raise KdbusError(EINVAL, f"there is no access type {type}")
            if not 0 <= id < UNSET_ID:
                raise KdbusError(EINVAL, f"{id} is no uid or gid")
            levels[id] = max(levels.get(id, _NOTHING), level)

    def level(self, credentials: Credentials) -> int:
        level = self.world
        if self.users and credentials.uid is not None:
            level = max(level, self.users.get(credentials.uid, _NOTHING))
        groups = self.groups
        if groups:
            if credentials.gid is not None:
                level = max(level, groups.get(credentials.gid, _NOTHING))
            for gid in credentials.groups or ():
                level = max(level, groups.get(gid, _NOTHING))
        return level

    def accesses(self) -> Iterator[Access]:
        """The highest level that everybody, a user or a group has; ids in ascending order."""
        if self.world != _NOTHING:
            yield Access(_WORLD, 0, self.world)
        for type, levels in ((_USER, self.users), (_GROUP, self.groups)):
            for id, level in sorted(levels.items()):
                yield Access(type, id, level)


class PolicyDatabase:
    """Entries of several owners; what a question costs does not depend on how many there are."""

    __slots__ = ("_names", "_owned", "_owners", "_wildcards")

    def __init__(self) -> None:
        self._names: dict[str, _Grants] = {}
        self._wildcards: dict[str, _Grants] = {}  # by the name above those they cover
        self._owners: dict[str, object] = {}
        self._owned: dict[object, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def entries(self) -> Iterator[tuple[PolicyEntry, object]]:
        """All entries by name, each with its owner; of several accesses of the same somebody the highest."""
        for name, owner in sorted(self._owners.items(), key=lambda owned: owned[0]):
            is_below = is_wildcard(name)
            grants = self._wildcards[name.removesuffix(_WILDCARD)] if is_below else self._names[name]
            yield PolicyEntry(name, tuple(grants.accesses())), owner

    def replace(self, owner: object, entries: Sequence[PolicyEntry]) -> None:
        """Make these the entries of `owner`, instead of all it had.

        All or nothing: EINVAL for a bad name or access, EEXIST for a name that
        is among them twice or that another owner has.
        """
        built = [_build(entry) for entry in entries]
        seen: set[str] = set()
        for name, _ in built:
            if name in seen or self._owners.get(name, owner) is not owner:
                raise KdbusError(EEXIST, f"there is an entry for '{name}' already")
            seen.add(name)
        self.remove(owner)
        for name, grants in built:
            self._owners[name] = owner
            if is_wildcard(name):
                self._wildcards[name.removesuffix(_WILDCARD)] = grants
            else:
                self._names[name] = grants
        if built:
            self._owned[owner] = tuple(name for name, _ in built)

    def remove(self, owner: object) -> None:
        """Take out all entries of `owner`, if it has any."""
        for name in self._owned.pop(owner, ()):
            del self._owners[name]
            if is_wildcard(name):
                del self._wildcards[name.removesuffix(_WILDCARD)]
            else:
                del self._names[name]

    def level(self, credentials: Credentials, name: str) -> int | None:
        """The highest `AccessLevel` that somebody has on a name; None for none at all."""
        grants = self._names.get(name)
        if grants is None:
            grants = self._wildcards.get(name.rpartition(".")[0])
            if grants is None:
                return None
        level = grants.level(credentials)
        return None if level == _NOTHING else level

    def allows(self, credentials: Credentials, name: str, level: int) -> bool:
        """Whether somebody has at least this level on a name."""
        granted = self.level(credentials, name)
        return granted is not None and granted >= level

    def allows_any(self, credentials: Credentials, target: Connection, level: int) -> bool:
        """Whether somebody has at least this level on one of the names that lead to `target`."""
        return any(
            not place.flags & IN_QUEUE and self.allows(credentials, name, level)
            for name, place in target.names.items()
        )


def _build(entry: PolicyEntry) -> tuple[str, _Grants]:
    if not is_valid_policy_name(entry.name):
        raise KdbusError(EINVAL, f"'{entry.name}' is neither a well-known name nor a wildcard")
    return entry.name, _Grants(entry.accesses)


def may_own(connection: Connection, name: str) -> bool:
    """Whether a connection may acquire a name."""
    own_policy = connection.endpoint.policy
    if own_policy is not None and not own_policy.allows(connection.credentials, name, OWN):
        return False
    if connection.is_owner:
        return True
    return connection.endpoint.bus.policy.allows(connection.credentials, name, OWN)


def may_talk(sender: Connection, receiver: Connection) -> bool:
    """Whether a connection may send to another one, by whichever of its names or by its id.

    TALK on one of the receiver's names opens all of it.  An owner of the bus
    talks to everybody, and everybody to those whose real uid is their own.
    """
    if sender.is_owner:  # never on a custom endpoint
        return True
    credentials = sender.credentials
    own_policy = sender.endpoint.policy
    if own_policy is not None and not own_policy.allows_any(credentials, receiver, TALK):
        return False
    if credentials.uid is not None and credentials.uid == receiver.process.real_uid:
        return True
    return sender.endpoint.bus.policy.allows_any(credentials, receiver, TALK)


def may_see_name(connection: Connection, name: str) -> bool:
    """Whether a connection may learn that there is such a name; on the default endpoint everybody may."""
    own_policy = connection.endpoint.policy
    return own_policy is None or own_policy.allows(connection.credentials, name, SEE)


def may_see(connection: Connection, other: Connection) -> bool:
    """Whether a connection may learn of another one: on a custom endpoint, if it sees one of its names."""
    own_policy = connection.endpoint.policy
    return own_policy is None or own_policy.allows_any(connection.credentials, other, SEE)
