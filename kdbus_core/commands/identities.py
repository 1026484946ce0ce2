"""Items that speak of users and processes: policies, and credentials somebody speaks for.

Ids in them mean what they mean to whoever opened the handle.  They are
translated to the initial namespaces here, where they come in, so that inside
the broker an id means one thing.  One that does not exist in the opener's
namespace, or whose namespace is not known, is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from errno import E2BIG, EINVAL
from struct import Struct

from kdbus_core.abi import UNSET_ID, AccessLevel, AccessType, ItemType
from kdbus_core.errors import KdbusError
from kdbus_core.items import ACCESS, NUMBER, Item
from kdbus_core.metadata import INITIAL_PID_NAMESPACE, Creds, Pids, Process, Snapshot
from kdbus_core.policy import Access, PolicyEntry, is_valid_policy_name

_CREDS = Struct("=8Q")
_PIDS = Struct("=3Q")
_FAKED_ITEMS = frozenset({ItemType.CREDS, ItemType.PIDS, ItemType.AUXGROUPS, ItemType.SECLABEL})


def parse_policy(
    items: Iterable[Item], process: Process, *, max_names: int | None = None
) -> list[PolicyEntry]:
    """The policy entries among items: each NAME begins one, and the accesses that follow belong to it.

    Raises EINVAL for a bad name, an access before the first name and whatever `parse_access` refuses, and
    E2BIG when there are more than `max_names` names; the first item that is wrong decides.
    """
    entries: list[tuple[str, list[Access]]] = []
    for item in items:
        if item.type == ItemType.NAME:
            if max_names is not None and len(entries) >= max_names:
                raise KdbusError(E2BIG, f"policies for more than {max_names} names")
            if not is_valid_policy_name(item.string):
                raise KdbusError(EINVAL, f"{item.string!r} is neither a well-known name nor a wildcard")
            entries.append((item.string, []))
        elif item.type == ItemType.POLICY_ACCESS:
            if not entries:
                raise KdbusError(EINVAL, "a policy access before any name")
            entries[-1][1].append(parse_access(item, process))
    return [PolicyEntry(name, tuple(accesses)) for name, accesses in entries]


def parse_access(item: Item, process: Process) -> Access:
    """One POLICY_ACCESS; EINVAL for an unknown type or level and for a user or group that does not exist."""
    type, level, id = ACCESS.unpack(item.payload)
    if level > AccessLevel.OWN:
        raise KdbusError(EINVAL, f"there is no access level {level}")
    match type:
        case AccessType.USER:
            return Access(type, _initial_uid(process, id), level)
        case AccessType.GROUP:
            return Access(type, _initial_gid(process, id), level)
        case AccessType.WORLD:
            return Access(type, 0, level)
        case _:
            raise KdbusError(EINVAL, f"there is no access type {type}")


def parse_faked(items: Iterable[Item], process: Process) -> Snapshot | None:
    """The credentials that somebody speaks for, None when there are no items that say so.

    In CREDS 2^32-1 is an id that is not known, in PIDS 0; any other has to exist (EINVAL).
    """
    faked: dict[int, bytes] = {item.type: item.payload for item in items if item.type in _FAKED_ITEMS}
    if not faked:
        return None
    creds = faked.get(ItemType.CREDS)
    pids = faked.get(ItemType.PIDS)
    groups = faked.get(ItemType.AUXGROUPS)
    label = faked.get(ItemType.SECLABEL)
    return Snapshot(
        creds=None if creds is None else _parse_creds(creds, process),
        pids=None if pids is None else _parse_pids(pids, process),
        auxgroups=None
        if groups is None
        else tuple(_initial_gid(process, gid) for (gid,) in NUMBER.iter_unpack(groups)),
        seclabel=None if label is None else label[:-1],
    )


def _parse_creds(payload: bytes, process: Process) -> Creds:
    ids = _CREDS.unpack(payload)
    return Creds(
        *(uid if uid == UNSET_ID else _initial_uid(process, uid) for uid in ids[:4]),
        *(gid if gid == UNSET_ID else _initial_gid(process, gid) for gid in ids[4:]),
    )


def _parse_pids(payload: bytes, process: Process) -> Pids:
    """Of processes in another pid namespace than the initial one, the broker knows the opener alone."""
    pids = _PIDS.unpack(payload)
    if any(pid >= 1 << 31 for pid in pids):
        raise KdbusError(EINVAL, f"{pids} are not process ids")
    namespace = process.pid_namespace
    if namespace is INITIAL_PID_NAMESPACE or not any(pids):
        return Pids(*pids)
    if namespace is None or process.snapshot.pids is None:
        raise KdbusError(EINVAL, f"nothing is known of the processes {pids}")
    own = process.pids_seen_in(namespace)
    known = dict(zip(own, process.snapshot.pids, strict=True))
    known[0] = 0
    if not known.keys() >= set(pids):
        raise KdbusError(EINVAL, f"nothing is known of the processes {pids}")
    return Pids(*(known[pid] for pid in pids))


def _initial_uid(process: Process, uid: int) -> int:
    namespace = process.user_namespace
    initial = None if namespace is None else namespace.to_initial_uid(uid)
    if initial is None:
        raise KdbusError(EINVAL, f"there is no uid {uid}")
    return initial


def _initial_gid(process: Process, gid: int) -> int:
    namespace = process.user_namespace
    initial = None if namespace is None else namespace.to_initial_gid(gid)
    if initial is None:
        raise KdbusError(EINVAL, f"there is no gid {gid}")
    return initial
