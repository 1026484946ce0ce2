"""User and pid namespaces: what an id or a pid means to whom.

The broker keeps every uid, gid and pid as its own namespaces, the *initial*
ones, have it, and translates when it tells somebody about it.  A user
namespace is known by its maps, as /proc/PID/uid_map shows them: each extent
says which ids of the parent a run of ids is.  An id that no extent covers
does not exist in the namespace.  A pid namespace has no map: who is visible
in it, and under which pid, is known of each process (`Process.pids_in`).

Two namespaces are the same when they are the same object; whoever finds out
about namespaces makes one object for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdbus_core.abi import UNSET_ID


@dataclass(frozen=True, slots=True)
class Extent:
    """`count` ids from `inside` on are the ids from `outside` on in the parent namespace."""

    inside: int
    outside: int
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class UserNamespace:
    """A user namespace; `owner` is the effective uid, in the initial namespace, of whoever made it.

    `parent` is None for the initial one, and where it is not known where a namespace lies: then its maps are
    those to the initial one, and only ids can be told to who lives there.
    """

    parent: UserNamespace | None
    uid_map: tuple[Extent, ...]
    gid_map: tuple[Extent, ...]
    owner: int = 0

    def to_initial_uid(self, uid: int) -> int | None:
        """The uid that is `uid` in here, as the initial namespace has it; None when there is none."""
        mapped: int | None = uid
        for namespace in self.lineage():
            mapped = _to_parent(namespace.uid_map, mapped)
        return mapped

    def to_initial_gid(self, gid: int) -> int | None:
        """The same of a gid."""
        mapped: int | None = gid
        for namespace in self.lineage():
            mapped = _to_parent(namespace.gid_map, mapped)
        return mapped

    def from_initial_uid(self, uid: int) -> int | None:
        """What a uid of the initial namespace is in here; None when it does not exist in here."""
        mapped: int | None = uid
        for namespace in reversed(self.lineage()):
            mapped = _from_parent(namespace.uid_map, mapped)
        return mapped

    def from_initial_gid(self, gid: int) -> int | None:
        """The same of a gid."""
        mapped: int | None = gid
        for namespace in reversed(self.lineage()):
            mapped = _from_parent(namespace.gid_map, mapped)
        return mapped

    def lineage(self) -> list[UserNamespace]:
        """This namespace, its parent and so on up to the initial one."""
        lineage = []
        namespace: UserNamespace | None = self
        while namespace is not None:
            lineage.append(namespace)
            namespace = namespace.parent
        return lineage

    def is_descendant_of(self, other: UserNamespace) -> bool:
        """Whether `other` is the parent of this namespace, or its parent's and so on; nobody is its own."""
        return other in self.lineage()[1:]


@dataclass(frozen=True, eq=False, slots=True)
class PidNamespace:
    """A pid namespace, with how its /proc is mounted.

    `hide_pid` is the mount option of that name: from 1 on a process may look into the processes of others
    only with `pid_gid` (a gid of the initial namespace) as its effective gid.
    """

    parent: PidNamespace | None = None
    hide_pid: int = 0
    pid_gid: int = 0


_EVERY_ID = (Extent(0, 0, UNSET_ID),)

INITIAL_USER_NAMESPACE = UserNamespace(None, _EVERY_ID, _EVERY_ID)
INITIAL_PID_NAMESPACE = PidNamespace()


def _to_parent(extents: Sequence[Extent], id: int | None) -> int | None:
    if id is None:
        return None
    for extent in extents:
        if extent.inside <= id < extent.inside + extent.count:
            return extent.outside + id - extent.inside
    return None


def _from_parent(extents: Sequence[Extent], id: int | None) -> int | None:
    if id is None:
        return None
    for extent in extents:
        if extent.outside <= id < extent.outside + extent.count:
            return extent.inside + id - extent.outside
    return None
