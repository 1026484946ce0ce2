"""How a process is described to a reader who may live in other namespaces.

One function for each kind of metadata makes its item, from the ids of the
initial namespaces into those of the reader:

- in a namespace that is known, an id that does not exist in there is told as
  the overflow id, an invisible process as pid 0 and its login uid as unset;
- which namespaces the process itself lives in matters for its capabilities
  alone, because ids are those of the initial ones; of a process in a pid
  namespace that is not known, the pids further in count as invisible;
- what needs a namespace or a root that is not known is left out: a guess would
  be somebody else.  Only to itself a process is described even then, as the
  broker has it.  Of some user namespaces only the ids are known, and not where
  they lie, so in there nothing is said of capabilities;
- the path of the executable is for readers with the same root, that of the
  control group for those in the same user and pid namespace, because nobody
  could say what they are elsewhere;
- other strings, and the session id, are told as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING

from kdbus_core.abi import OVERFLOW_ID, UNSET_ID, AttachFlag, ItemType
from kdbus_core.items import build_item, build_numbers_item, build_string_item
from kdbus_core.namespaces import (
    INITIAL_PID_NAMESPACE,
    INITIAL_USER_NAMESPACE,
    PidNamespace,
    UserNamespace,
)

if TYPE_CHECKING:
    from kdbus_core.metadata import Caps, Process, Snapshot

_AUDIT = Struct("=2I")
"""AUDIT: sessionid, loginuid."""


def build_process_items(snapshot: Snapshot, origin: Process, reader: Process, mask: int) -> bytes:
    """CREDS to AUDIT of a snapshot that is `origin`'s own, or that it faked, as the reader sees them."""
    return b"".join(
        item
        for kind, build in _BUILDERS.items()
        if mask & kind and (item := build(snapshot, origin, reader)) is not None
    )


# One item each. None: unknown, or not to be told to this reader.


def _user_namespace_for(origin: Process, reader: Process) -> UserNamespace | None:
    """Whose ids are told: the reader's; to itself, where that is not known, ours."""
    if origin is reader:
        return reader.user_namespace or INITIAL_USER_NAMESPACE
    return reader.user_namespace


def _placed(namespace: UserNamespace | None) -> UserNamespace | None:
    """A namespace of which it is known in which others it lies, and so which one it is; else None."""
    if namespace is None or namespace.lineage()[-1] is not INITIAL_USER_NAMESPACE:
        return None
    return namespace


def _uid(namespace: UserNamespace, uid: int, unmapped: int = OVERFLOW_ID) -> int:
    if uid == UNSET_ID:
        return UNSET_ID
    mapped = namespace.from_initial_uid(uid)
    return unmapped if mapped is None else mapped


def _gid(namespace: UserNamespace, gid: int) -> int:
    if gid == UNSET_ID:
        return UNSET_ID
    mapped = namespace.from_initial_gid(gid)
    return OVERFLOW_ID if mapped is None else mapped


def _creds_item(snapshot: Snapshot, origin: Process, reader: Process) -> bytes | None:
    namespace = _user_namespace_for(origin, reader)
    creds = snapshot.creds
    if creds is None or namespace is None:
        return None
    uids = (_uid(namespace, uid) for uid in creds[:4])
    gids = (_gid(namespace, gid) for gid in creds[4:])
    return build_numbers_item(ItemType.CREDS, *uids, *gids)


def _pids_item(snapshot: Snapshot, origin: Process, reader: Process) -> bytes | None:
    namespace = reader.pid_namespace
    if origin is not reader and namespace is None:
        return None
    pids: tuple[int, ...] | None = snapshot.pids
    if pids is not None and namespace is not None and namespace is not INITIAL_PID_NAMESPACE:
        is_faked = snapshot is not origin.snapshot
        pids = _faked_pids_in(namespace, pids, origin) if is_faked else origin.pids_seen_in(namespace)
    return None if pids is None else build_numbers_item(ItemType.PIDS, *pids)


def _faked_pids_in(namespace: PidNamespace, pids: tuple[int, ...], origin: Process) -> tuple[int, ...] | None:
    """Of the pids that a process faked, the broker knows in a further namespace only those of itself."""
    known = dict(zip(origin.snapshot.pids or (), origin.pids_seen_in(namespace), strict=False))
    known[0] = 0
    return tuple(known[pid] for pid in pids) if known.keys() >= set(pids) else None


def _auxgroups_item(snapshot: Snapshot, origin: Process, reader: Process) -> bytes | None:
    namespace = _user_namespace_for(origin, reader)
    groups = snapshot.auxgroups
    if groups is None or namespace is None:
        return None
    return build_numbers_item(ItemType.AUXGROUPS, *(_gid(namespace, gid) for gid in groups))


def _string_item(type: ItemType, text: bytes | None) -> bytes | None:
    return None if text is None else build_string_item(type, text.partition(b"\0")[0])


def _exe_item(snapshot: Snapshot, origin: Process, reader: Process) -> bytes | None:
    if origin is not reader and (reader.root is None or origin.root != reader.root):
        return None
    return _string_item(ItemType.EXE, snapshot.exe)


def _cgroup_item(snapshot: Snapshot, origin: Process, reader: Process) -> bytes | None:
    # A path nobody can translate would show what is outside of the reader's container.
    if origin is not reader and (
        _placed(reader.user_namespace) is None
        or reader.pid_namespace is None
        or origin.user_namespace is not reader.user_namespace
        or origin.pid_namespace is not reader.pid_namespace
    ):
        return None
    return _string_item(ItemType.CGROUP, snapshot.cgroup)


def _caps_item(snapshot: Snapshot, origin: Process, reader: Process) -> bytes | None:
    caps = snapshot.caps
    if caps is None:
        return None
    words = caps.last_cap // 32 + 1
    sets: tuple[int, ...] = caps[1:]
    if origin is not reader:
        namespace = _placed(reader.user_namespace)
        if namespace is None or _placed(origin.user_namespace) is None:
            return None
        sets = _caps_in(namespace, origin, snapshot, caps, words)
    return build_item(
        ItemType.CAPS,
        Struct(f"=I{4 * words}I").pack(
            caps.last_cap,
            *(one >> 32 * word & 0xFFFFFFFF for one in sets for word in range(words)),
        ),
    )


def _caps_in(
    namespace: UserNamespace, origin: Process, snapshot: Snapshot, caps: Caps, words: int
) -> tuple[int, ...]:
    """The four sets as they count in a namespace.

    They count where the process is and further in; who made a namespace may do everything in there; and
    anywhere else capabilities mean nothing.
    """
    lineage = namespace.lineage()
    if origin.user_namespace not in lineage:
        return (0, 0, 0, 0)
    further_in = lineage[: lineage.index(origin.user_namespace)]
    if snapshot.creds is not None and any(one.owner == snapshot.creds.euid for one in further_in):
        every = (1 << 32 * words) - 1
        return (0, every, every, every)
    return caps[1:]


def _audit_item(snapshot: Snapshot, origin: Process, reader: Process) -> bytes | None:
    namespace = _user_namespace_for(origin, reader)
    audit = snapshot.audit
    if audit is None or namespace is None:
        return None
    loginuid = _uid(namespace, audit.loginuid, unmapped=UNSET_ID)
    return build_item(ItemType.AUDIT, _AUDIT.pack(audit.sessionid, loginuid))


_BUILDERS: dict[int, Callable[[Snapshot, Process, Process], bytes | None]] = {
    int(AttachFlag.CREDS): _creds_item,
    int(AttachFlag.PIDS): _pids_item,
    int(AttachFlag.AUXGROUPS): _auxgroups_item,
    int(AttachFlag.TID_COMM): lambda snapshot, *_: _string_item(ItemType.TID_COMM, snapshot.tid_comm),
    int(AttachFlag.PID_COMM): lambda snapshot, *_: _string_item(ItemType.PID_COMM, snapshot.pid_comm),
    int(AttachFlag.EXE): _exe_item,
    int(AttachFlag.CMDLINE): lambda snapshot, *_: _string_item(ItemType.CMDLINE, snapshot.cmdline),
    int(AttachFlag.CGROUP): _cgroup_item,
    int(AttachFlag.CAPS): _caps_item,
    int(AttachFlag.SECLABEL): lambda snapshot, *_: _string_item(ItemType.SECLABEL, snapshot.seclabel),
    int(AttachFlag.AUDIT): _audit_item,
}
"""In the order in which they are told."""
