"""Which namespaces a process lives in: one object for each namespace, as long as anybody uses it.

A namespace is known by its inode, which the kernel gives to another one when
it has gone.  So each object keeps a descriptor of its namespace: while there is
an object there is the namespace, and no other can pass for it.  The broker's
own namespaces are the *initial* ones, whatever lies outside of them.

A user namespace is described by its maps, and those can be read only through a
process in it.  The kernel gives them as the ids of the broker's namespace; they
are converted to those of the parent.  For a parent, a process is looked for
among the ancestors of the one that is asked for; where none is in it, as when
a sandbox has unshared twice, that namespace is left out, and its child counts
as a child of the next one that is known.  Ids are right all the same, only
that capabilities over the one left out are told to nobody.

A namespace that is not inside the broker's own is not known: nobody could say
there what the broker's ids are.

Of a process that the broker may not trace (another user's, when the broker is
not privileged, or one that is not dumpable) the links that say where it lives
cannot be read.  Its maps can, and mostly they say what ids are in there, see
`id_maps`; and a process that /proc gives one pid lives in the pid namespace
that /proc is of.
"""

from __future__ import annotations

import array
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from weakref import WeakValueDictionary, finalize

from kdbus_core.abi import UNSET_ID
from kdbus_core.metadata import Pids
from kdbus_core.namespaces import (
    INITIAL_PID_NAMESPACE,
    INITIAL_USER_NAMESPACE,
    PidNamespace,
    UserNamespace,
)
from kdbus_core.transport.id_maps import (
    IdMaps,
    Map,
    are_surely_own,
    mapped,
    parse_map,
    seen_from,
    translate,
)
from kdbus_core.transport.proc import ProcessDirectory, Status, shows_own_pids

# linux/nsfs.h; not in any module of Python.
NS_GET_PARENT = 0xB702
NS_GET_OWNER_UID = 0xB704

MAX_ANCESTORS = 32
"""How many ancestors of a process are looked at; as deep as namespaces can lie in each other."""

_Identity = tuple[int, int]


class _FoundUserNamespace(UserNamespace):
    """One that can be referred to weakly."""

    __slots__ = ("__weakref__",)


class _FoundPidNamespace(PidNamespace):
    """One that can be referred to weakly."""

    __slots__ = ("__weakref__",)


class NamespaceFinder:
    """Finds the namespaces of processes; those of the process that makes it are the initial ones."""

    def __init__(self) -> None:
        self._own_user = _own("ns/user")
        self._own_pid = _own("ns/pid")
        self._user_namespaces: WeakValueDictionary[_Identity, _FoundUserNamespace] = WeakValueDictionary()
        self._pid_namespaces: WeakValueDictionary[_Identity, _FoundPidNamespace] = WeakValueDictionary()
        self._maps: WeakValueDictionary[IdMaps, _FoundUserNamespace] = WeakValueDictionary()
        self._own_maps: IdMaps | None = None

    def user_namespace(self, directory: ProcessDirectory) -> UserNamespace | None:
        """The user namespace of a process; None when it cannot be known.

        One without a parent, other than the initial one, says only what ids are in there; processes for
        which it is the same object need not live in the same one.
        """
        identity = directory.identity("ns/user")
        if identity is None:
            return self._by_its_maps(directory)
        if self._own_user is None:
            return None
        if identity == self._own_user:
            return INITIAL_USER_NAMESPACE
        known = self._user_namespaces.get(identity)
        if known is not None and _is_complete(known):
            return known
        with ExitStack() as owned, suppress(OSError):
            lineage = _open_lineage(directory, "ns/user", self._own_user, owned)
            namespace: UserNamespace = INITIAL_USER_NAMESPACE
            for identity, fd in reversed(lineage[1:]):
                namespace = self._user_namespaces.get(identity) or (
                    self._find_user_namespace(namespace, identity, fd, directory) or namespace
                )
            if lineage:  # else it has moved on
                identity, fd = lineage[0]
                return self._make_user_namespace(namespace, identity, fd, directory)
        return None

    def _by_its_maps(self, directory: ProcessDirectory) -> UserNamespace | None:
        """What its maps say of the namespace of a process that may not be traced.

        A process that goes into another one meanwhile, with both halves of two, deceives only itself: it
        is told what ids are in there, and nobody else.
        """
        own, maps = self._read_own_maps(), _read_maps(directory)
        if own is None or maps is None:
            return None
        if are_surely_own(maps, own):
            return INITIAL_USER_NAMESPACE
        if not translate(maps, own):
            return None
        namespace = self._maps.get(maps)
        if namespace is None:
            namespace = self._maps[maps] = _FoundUserNamespace(None, *maps, owner=UNSET_ID)
        return namespace

    def _read_own_maps(self) -> IdMaps | None:
        if self._own_maps is None or not all(self._own_maps):
            with suppress(OSError), ProcessDirectory(os.getpid()) as directory:
                self._own_maps = _read_maps(directory)
        return self._own_maps

    def _find_user_namespace(
        self, parent: UserNamespace, identity: _Identity, fd: int, descendant: ProcessDirectory
    ) -> UserNamespace | None:
        """A namespace around the one of a process; None when none of its ancestors lives there."""
        for ancestor in _ancestors(descendant):
            if ancestor.identity("ns/user") == identity:
                return self._make_user_namespace(parent, identity, fd, ancestor)
        return None

    def _make_user_namespace(
        self, parent: UserNamespace, identity: _Identity, fd: int, member: ProcessDirectory
    ) -> UserNamespace | None:
        maps = _read_maps(member)
        # It may have moved on; what belongs together was read while it was in the same one.
        if maps is None or member.identity("ns/user") != identity:
            return None
        uid_map = seen_from(parent.from_initial_uid, mapped(maps.uids))
        gid_map = seen_from(parent.from_initial_gid, mapped(maps.gids))
        known = self._user_namespaces.get(identity)
        if known is not None and (known.uid_map, known.gid_map) == (uid_map, gid_map):
            return known
        namespace = _FoundUserNamespace(parent, uid_map, gid_map, _owner_uid(fd))
        _pin(namespace, fd)
        self._user_namespaces[identity] = namespace
        return namespace

    def pid_namespace(self, directory: ProcessDirectory) -> PidNamespace | None:
        """The pid namespace of a process; None when it cannot be known.

        Nobody's view is restricted by it: which processes a /proc hides is decided by each mount of it.
        """
        identity = directory.identity("ns/pid")
        if identity is None:
            status = directory.status()
            is_ours = status is not None and len(status.pids) == 1 and shows_own_pids()
            return INITIAL_PID_NAMESPACE if is_ours else None
        if self._own_pid is None:
            return None
        if identity == self._own_pid:
            return INITIAL_PID_NAMESPACE
        known = self._pid_namespaces.get(identity)
        if known is not None:
            return known
        with ExitStack() as owned, suppress(OSError):
            namespace: PidNamespace = INITIAL_PID_NAMESPACE
            for identity, fd in reversed(_open_lineage(directory, "ns/pid", self._own_pid, owned)):
                found = self._pid_namespaces.get(identity)
                if found is None:
                    found = _FoundPidNamespace(namespace)
                    _pin(found, fd)
                    self._pid_namespaces[identity] = found
                namespace = found
            return namespace
        return None

    def __len__(self) -> int:
        """How many namespaces are in use besides the initial ones."""
        return len(self._user_namespaces) + len(self._pid_namespaces) + len(self._maps)


def pids_in(
    namespace: PidNamespace | None, status: Status, directory: ProcessDirectory
) -> dict[PidNamespace, Pids]:
    """The pids of a process in each pid namespace it is in, but for the initial one."""
    further_in: list[PidNamespace] = []
    while namespace is not None and namespace is not INITIAL_PID_NAMESPACE:
        further_in.insert(0, namespace)
        namespace = namespace.parent
    if not further_in or len(further_in) != len(status.pids) - 1:
        return {}
    parents = _parent_pids(status.ppid, directory)
    return {
        one: Pids(pid, pid if status.threads == 1 else 0, parents[level] if level < len(parents) else 0)
        for level, (one, pid) in enumerate(zip(further_in, status.pids[1:], strict=True), 1)
    }


def _parent_pids(ppid: int, directory: ProcessDirectory) -> tuple[int, ...]:
    """The parent's pid in each namespace it is in, which are the outermost of its child's."""
    try:
        parent = ProcessDirectory(ppid)
    except OSError:
        return ()
    with parent:
        status = parent.status()
        now = directory.status()
    # As long as it is the parent it has its number.
    return status.pids if status is not None and now is not None and now.ppid == ppid else ()


def _ancestors(directory: ProcessDirectory) -> Iterator[ProcessDirectory]:
    status = directory.status()
    for _ in range(MAX_ANCESTORS):
        if status is None or not status.ppid:
            return
        try:
            ancestor = ProcessDirectory(status.ppid)
        except OSError:
            return
        with ancestor:
            yield ancestor
            status = ancestor.status()


def _own(name: str) -> _Identity | None:
    try:
        with ProcessDirectory(os.getpid()) as directory:
            return directory.identity(name)
    except OSError:
        return None


def _open_lineage(
    directory: ProcessDirectory, name: str, own: _Identity, owned: ExitStack
) -> list[tuple[_Identity, int]]:
    """A namespace, its parent and so on, up to the broker's own, which is not among them.

    OSError when it is not inside the broker's own.  `owned` closes the descriptors.
    """
    lineage: list[tuple[_Identity, int]] = []
    fd = directory.open(name)
    while True:
        owned.callback(os.close, fd)
        status = os.fstat(fd)
        identity = status.st_dev, status.st_ino
        if identity == own:
            return lineage
        lineage.append((identity, fd))
        fd = fcntl.ioctl(fd, NS_GET_PARENT)


def _owner_uid(fd: int) -> int:
    uid = array.array("I", [UNSET_ID])
    fcntl.ioctl(fd, NS_GET_OWNER_UID, uid)
    return uid[0]


def _pin(namespace: UserNamespace | PidNamespace, fd: int) -> None:
    """Keep the namespace, and so its inode's number, for as long as there is the object."""
    finalize(namespace, os.close, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)).atexit = False


# Maps


def _is_complete(namespace: UserNamespace) -> bool:
    """Whether its maps can change no more: each is written once, some time after the namespace is made."""
    return bool(namespace.uid_map and namespace.gid_map)


def _read_maps(member: ProcessDirectory) -> IdMaps | None:
    uids, gids = _read_map(member, "uid_map"), _read_map(member, "gid_map")
    return None if uids is None or gids is None else IdMaps(uids, gids)


def _read_map(member: ProcessDirectory, name: str) -> Map | None:
    data = member.read(name)
    return None if data is None else parse_map(data)
