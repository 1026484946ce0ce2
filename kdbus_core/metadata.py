"""Who is behind a connection, and what is told of it to whom.

A `Process` is what was known of whoever opened a handle when it did.  It is
frozen: nothing is looked up again later, so neither a decision nor an answer
taken from it can be raced.  What is unknown is None and is left out of every
answer; it is never zero, because zero is root.

There are fourteen kinds of metadata, one bit of a mask each.  Which kinds go
along with a message depends on what the sender grants and the receiver asks
(`attach_mask`); CONN_INFO tells what was asked for and is granted.  Ids are
kept as the initial namespaces have them and told as the reader's have them.
(see `translation`).

A bus owner (a compatibility proxy) may put other credentials on a connection
it makes: the *faked* ones.  Those, and nothing else, answer CONN_INFO: with a
message of such a connection nothing of any process is told, and they never
decide anything in the broker's own policy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from errno import EINVAL
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from kdbus_core.abi import ATTACH_ALL, ATTACH_ANY, UNSET_ID, AttachFlag, ItemType, MakeFlag
from kdbus_core.errors import KdbusError
from kdbus_core.items import build_owned_name_item, build_string_item
from kdbus_core.names import PRIMARY
from kdbus_core.namespaces import (
    INITIAL_PID_NAMESPACE,
    INITIAL_USER_NAMESPACE,
    Extent,
    PidNamespace,
    UserNamespace,
)
from kdbus_core.policy import may_see_name
from kdbus_core.translation import build_process_items

if TYPE_CHECKING:
    from kdbus_core.connection import Connection

__all__ = [
    "INITIAL_PID_NAMESPACE",
    "INITIAL_USER_NAMESPACE",
    "AsSent",
    "Audit",
    "Caps",
    "ConnectionInfo",
    "Credentials",
    "Creds",
    "Extent",
    "Origin",
    "PidNamespace",
    "Pids",
    "Process",
    "Snapshot",
    "Stamp",
    "UserNamespace",
    "as_credentials",
    "as_sent",
    "as_snapshot",
    "attach_mask",
    "connection_items",
    "message_items",
    "notification_items",
    "parse_attach_flags",
    "process_items",
]

_TIMESTAMP = int(AttachFlag.TIMESTAMP)
_NAMES = int(AttachFlag.NAMES)
_CONN_DESCRIPTION = int(AttachFlag.CONN_DESCRIPTION)
_OF_PROCESS = ATTACH_ALL & ~(_TIMESTAMP | _NAMES | _CONN_DESCRIPTION)
_IMPLICIT = (
    _TIMESTAMP | _NAMES | _CONN_DESCRIPTION | int(AttachFlag.AUXGROUPS | AttachFlag.CREDS | AttachFlag.PIDS)
)
_IN_PROC = ATTACH_ALL & ~_IMPLICIT
_FINAL_METADATA = int(MakeFlag.FINAL_METADATA)

_TIMESTAMP_ITEM = Struct("=5Q")

_MAX_TOLD = 64
"""For how many different masks and readers a process keeps what they are told."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Connection-time credentials; `uid` and `gid` are the effective ids.

    `groups` are the supplementary groups as the kernel reports them.  `label`
    is the security label without a trailing NUL.  `pidfd` refers to the
    process; it belongs to the transport that made the connection, which
    closes it when the connection has gone.
    """

    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    groups: tuple[int, ...] | None = None
    label: bytes | None = None
    pidfd: int | None = None


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """The answer to CONN_INFO: what may be known about a connection."""

    id: int
    flags: int
    credentials: Credentials
    names: tuple[str, ...]
    description: str


class Creds(NamedTuple):
    """Real, effective, saved and file system ids; UNSET_ID where unknown."""

    uid: int = UNSET_ID
    euid: int = UNSET_ID
    suid: int = UNSET_ID
    fsuid: int = UNSET_ID
    gid: int = UNSET_ID
    egid: int = UNSET_ID
    sgid: int = UNSET_ID
    fsgid: int = UNSET_ID


class Pids(NamedTuple):
    """Process, thread and parent process; 0 where unknown or invisible."""

    pid: int = 0
    tid: int = 0
    ppid: int = 0


class Caps(NamedTuple):
    """Capability sets: bit n is capability n, and `last_cap` the last one there is."""

    last_cap: int
    inheritable: int
    permitted: int
    effective: int
    bounding: int


class Audit(NamedTuple):
    """Audit session and login uid; UNSET_ID where there is none."""

    sessionid: int
    loginuid: int


class Stamp(NamedTuple):
    """When a message was sent: its number on the bus, and nanoseconds of two clocks."""

    seqnum: int
    monotonic_ns: int
    realtime_ns: int


class AsSent(NamedTuple):
    """What can change of a sender afterwards, kept with what may move: its mask, names and their flags."""

    attach_send: int
    names: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of a process, ids as the initial namespaces have them; None is unknown.

    Strings are without their NUL; of `cmdline` only the first argument is ever told, because an item's
    string ends at its first NUL.
    """

    creds: Creds | None = None
    pids: Pids | None = None
    auxgroups: tuple[int, ...] | None = None
    tid_comm: bytes | None = None
    pid_comm: bytes | None = None
    exe: bytes | None = None
    cmdline: bytes | None = None
    cgroup: bytes | None = None
    caps: Caps | None = None
    seclabel: bytes | None = None
    audit: Audit | None = None


class View(NamedTuple):
    """How a process sees ids, pids and files: everything that what it is told depends on."""

    user_namespace: UserNamespace | None
    pid_namespace: PidNamespace | None
    root: Hashable | None


_OF_SNAPSHOT = Credentials()


@dataclass(frozen=True, eq=False, slots=True)
class Process:
    """Who opened a handle; the same process is the same object.

    A namespace or root (any identity of the root directory) of None is one that is not known.  `pids_in`
    has the pids in further pid namespaces than the initial one; in those it does not have the process is
    invisible.  `privileged` says that it may act as the owner of everything in the domain
    (CAP_IPC_OWNER).  `credentials` are what decisions are taken on, those of the snapshot if not given.
    """

    snapshot: Snapshot
    user_namespace: UserNamespace | None = INITIAL_USER_NAMESPACE
    pid_namespace: PidNamespace | None = INITIAL_PID_NAMESPACE
    root: Hashable | None = "/"
    pids_in: Mapping[PidNamespace, Pids] = field(default_factory=dict)
    privileged: bool = False
    credentials: Credentials = _OF_SNAPSHOT
    view: View = field(init=False, repr=False)
    told: dict[object, bytes] = field(init=False, repr=False, default_factory=dict)
    """Items of the snapshot as they were told, by mask and reader; see `process_items`."""

    def __post_init__(self) -> None:
        if self.credentials is _OF_SNAPSHOT:
            object.__setattr__(self, "credentials", as_credentials(self.snapshot))
        object.__setattr__(self, "view", View(self.user_namespace, self.pid_namespace, self.root))

    @classmethod
    def of(cls, credentials: Credentials, *, privileged: bool = False) -> Process:
        """A process in the initial namespaces of which nothing but these credentials is known."""
        return cls(as_snapshot(credentials), privileged=privileged, credentials=credentials)

    @property
    def real_uid(self) -> int | None:
        """The real uid, or the effective one where that is not known: whom everything is charged to."""
        creds = self.snapshot.creds
        if creds is None or creds.uid == UNSET_ID:
            return self.credentials.uid
        return creds.uid

    def pids_seen_in(self, namespace: PidNamespace) -> Pids:
        """Its pids as that namespace has them, all 0 where it is invisible or they are unknown."""
        if namespace is INITIAL_PID_NAMESPACE:
            return self.snapshot.pids or Pids()
        return self.pids_in.get(namespace, Pids())


Origin = Callable[[], "Process | None"]
"""Finds out which process sends a message; None when that cannot be known any more."""


def as_snapshot(known: Credentials | Snapshot) -> Snapshot:
    """Credentials as a snapshot: of the ids only the effective ones are set, of the pids the process."""
    if isinstance(known, Snapshot):
        return known
    creds = None
    if known.uid is not None or known.gid is not None:
        creds = Creds(
            euid=UNSET_ID if known.uid is None else known.uid,
            egid=UNSET_ID if known.gid is None else known.gid,
        )
    return Snapshot(
        creds=creds,
        pids=None if known.pid is None else Pids(known.pid),
        auxgroups=known.groups,
        seclabel=known.label,
    )


def as_credentials(known: Credentials | Snapshot) -> Credentials:
    """A snapshot as credentials: its effective ids, process, groups and label."""
    if isinstance(known, Credentials):
        return known
    creds = known.creds or Creds()
    return Credentials(
        uid=None if creds.euid == UNSET_ID else creds.euid,
        gid=None if creds.egid == UNSET_ID else creds.egid,
        pid=(known.pids.pid or None) if known.pids is not None else None,
        groups=known.auxgroups,
        label=known.seclabel,
    )


# Masks


def parse_attach_flags(value: int) -> int:
    """Attach flags as somebody gave them: 2^64-1 are all, EINVAL for those there are not."""
    if value == ATTACH_ANY:
        return ATTACH_ALL
    if value & ~ATTACH_ALL:
        raise KdbusError(EINVAL, f"unknown attach flags {value & ~ATTACH_ALL:#x}")
    return value


def attach_mask(sender: Connection, receiver: Connection, sent: AsSent | None = None) -> int:
    """Which metadata goes along with a message, granted now or when it was sent.

    By consent: what the sender grants and the receiver asks for.  On a bus made with FINAL_METADATA the
    sender cannot withhold who it is, nor what the receiver could read in /proc anyway.
    """
    granted = sender.attach_send if sent is None else sent.attach_send
    # With every message: an enumeration's own operators take ten times as long as those of a number.
    if int(receiver.endpoint.bus.flags) & _FINAL_METADATA:
        granted |= _IMPLICIT
        # Looking into /proc is the dearer question, so it comes last.
        if receiver.attach_recv & _IN_PROC & ~granted and _may_read_proc(receiver.process, sender.process):
            granted |= _IN_PROC
    return granted & receiver.attach_recv


def _may_read_proc(reader: Process, subject: Process) -> bool:
    if reader is subject:
        return True
    namespace = reader.pid_namespace
    if namespace is None:
        return False
    pid = subject.pids_seen_in(namespace).pid
    if pid == 0:
        return False
    return (
        namespace.hide_pid < 1
        or pid == reader.pids_seen_in(namespace).pid
        or reader.credentials.gid == namespace.pid_gid
    )


# What is told, in the order in which it is told: the process, names, description, time.


def as_sent(sender: Connection) -> AsSent:
    """What is to be told of a sender with a message of now, whoever gets it later."""
    return AsSent(sender.attach_send, tuple(_primary_names(sender)) if sender.names else ())


def message_items(
    sender: Connection,
    receiver: Connection,
    stamp: Stamp,
    sent: AsSent | None = None,
    origin: Origin | None = None,
) -> bytes:
    """The metadata of a message for one receiver: items with their padding.

    `sent` is what was true of the sender, for a message that reaches its receiver later than it was sent.
    `origin` is asked for the process only where something of it is to be told.
    """
    mask = attach_mask(sender, receiver, sent)
    if not mask:
        return b""
    items = _connection_items(sender, receiver, mask, sent)
    if sender.faked is None:
        process = sender.process
        if origin is not None and mask & _OF_PROCESS:
            process = origin() or process
        items = process_items(process.snapshot, process, receiver.process, mask) + items
    return items + notification_items(stamp) if mask & _TIMESTAMP else items


def notification_items(stamp: Stamp) -> bytes:
    """The metadata of a notification: when it was, whatever the receiver asks for."""
    return _TIMESTAMP_ITEM.pack(_TIMESTAMP_ITEM.size, ItemType.TIMESTAMP, *stamp)


def connection_items(subject: Connection, reader: Connection, mask: int) -> bytes:
    """What CONN_INFO tells: of what is asked for all that the subject grants now.

    The process is as it was when the handle was opened, or exactly what was faked of it; names and
    description are as they are now.
    """
    mask &= subject.attach_send
    process = subject.process
    snapshot = process.snapshot if subject.faked is None else as_snapshot(subject.faked)
    return process_items(snapshot, process, reader.process, mask) + _connection_items(subject, reader, mask)


def process_items(snapshot: Snapshot, origin: Process, reader: Process, mask: int) -> bytes:
    """CREDS to AUDIT of a snapshot that is `origin`'s own, or that it faked, as the reader sees them.

    Nothing that this is made of ever changes, so `origin` keeps the items of its own snapshot.
    """
    mask &= _OF_PROCESS
    if not mask:
        return b""
    if snapshot is not origin.snapshot:
        return build_process_items(snapshot, origin, reader, mask)
    # A process may be told of itself what others in the same unknown namespace may not.
    key: object = mask if reader is origin else (mask, reader.view)
    items = origin.told.get(key)
    if items is None:
        if len(origin.told) >= _MAX_TOLD:
            origin.told.clear()
        items = origin.told[key] = build_process_items(snapshot, origin, reader, mask)
    return items


def _connection_items(
    subject: Connection, reader: Connection, mask: int, sent: AsSent | None = None
) -> bytes:
    items = b""
    if mask & _NAMES:
        names = _primary_names(subject) if sent is None else sent.names
        items = b"".join(
            _owned_name_item(flags, name)
            for name, flags in names
            if reader.endpoint.policy is None or may_see_name(reader, name)
        )
    if mask & _CONN_DESCRIPTION and subject.description:
        items += _description_item(subject.description)
    return items


def _primary_names(subject: Connection) -> Iterable[tuple[str, int]]:
    return [(name, mine.flags) for name, mine in subject.names.items() if mine.flags & PRIMARY]


# The same few names and descriptions go out with every message.
_owned_name_item = lru_cache(maxsize=1024)(build_owned_name_item)


@lru_cache(maxsize=1024)
def _description_item(description: str) -> bytes:
    return build_string_item(ItemType.CONN_DESCRIPTION, description)
