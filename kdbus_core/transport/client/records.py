"""What the broker tells of somebody: metadata of a message, and records of LIST and the INFO commands.

Everything in here is a copy; nothing refers to the pool.  What the broker does
not tell is None (of names: an empty dict), never zero.  Ids are as the reader's
namespaces have them.  Strings of processes are bytes without their NUL,
because they need not be text; names and descriptions are text.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from errno import EBADMSG
from struct import Struct
from typing import Any

from kdbus_core.abi import INFO, ItemType, NameFlag, align
from kdbus_core.errors import KdbusError
from kdbus_core.items import HEADER_SIZE, NUMBER, Item, iterate_items
from kdbus_core.metadata import Audit, Caps, Creds, Pids, Snapshot, Stamp

_CREDS = Struct("=8Q")
_PIDS = Struct("=3Q")
_STAMP = Struct("=3Q")
_AUDIT = Struct("=2I")
_WORD = Struct("=I")


@dataclass(slots=True)
class Metadata:
    """What is told of a sender or connection; times in nanoseconds, names with their flags."""

    timestamp: Stamp | None = None
    creds: Creds | None = None
    pids: Pids | None = None
    auxgroups: tuple[int, ...] | None = None
    names: dict[str, NameFlag] = field(default_factory=dict)
    tid_comm: bytes | None = None
    pid_comm: bytes | None = None
    exe: bytes | None = None
    cmdline: bytes | None = None
    cgroup: bytes | None = None
    caps: Caps | None = None
    seclabel: bytes | None = None
    audit: Audit | None = None
    description: str | None = None

    @property
    def snapshot(self) -> Snapshot:
        """What of it is told of a process, as HELLO takes it for somebody else (`faked`)."""
        return Snapshot(
            creds=self.creds,
            pids=self.pids,
            auxgroups=self.auxgroups,
            tid_comm=self.tid_comm,
            pid_comm=self.pid_comm,
            exe=self.exe,
            cmdline=self.cmdline,
            cgroup=self.cgroup,
            caps=self.caps,
            seclabel=self.seclabel,
            audit=self.audit,
        )


@dataclass(slots=True)
class Info:
    """A connection as LIST and CONN_INFO tell it, or the bus and its creator (BUS_CREATOR_INFO).

    `flags` are those of its HELLO, or the bus' make flags; `bus_name` is told of a bus alone.
    """

    id: int
    flags: int
    metadata: Metadata
    bus_name: str | None = None

    @property
    def names(self) -> dict[str, NameFlag]:
        """Names that it owns, waits for or activates, with flags that say which."""
        return self.metadata.names

    @property
    def description(self) -> str | None:
        """What it calls itself."""
        return self.metadata.description


def _string(payload: bytes) -> bytes:
    return payload.partition(b"\0")[0]


def _caps(payload: bytes) -> Caps:
    last_cap: int = _WORD.unpack_from(payload)[0]
    count = last_cap // 32 + 1
    if len(payload) != _WORD.size * (1 + 4 * count):
        raise KdbusError(EBADMSG, f"{len(payload)} bytes of capabilities up to {last_cap}")
    words = Struct(f"={4 * count}I").unpack_from(payload, _WORD.size)
    sets = (
        sum(word << 32 * place for place, word in enumerate(words[start : start + count]))
        for start in range(0, 4 * count, count)
    )
    return Caps(last_cap, *sets)


_PARSERS: dict[int, tuple[str, Callable[[bytes], Any]]] = {
    ItemType.TIMESTAMP: ("timestamp", lambda payload: Stamp(*_STAMP.unpack(payload))),
    ItemType.CREDS: ("creds", lambda payload: Creds(*_CREDS.unpack(payload))),
    ItemType.PIDS: ("pids", lambda payload: Pids(*_PIDS.unpack(payload))),
    ItemType.AUXGROUPS: ("auxgroups", lambda payload: tuple(gid for (gid,) in NUMBER.iter_unpack(payload))),
    ItemType.TID_COMM: ("tid_comm", _string),
    ItemType.PID_COMM: ("pid_comm", _string),
    ItemType.EXE: ("exe", _string),
    ItemType.CMDLINE: ("cmdline", _string),
    ItemType.CGROUP: ("cgroup", _string),
    ItemType.CAPS: ("caps", _caps),
    ItemType.SECLABEL: ("seclabel", _string),
    ItemType.AUDIT: ("audit", lambda payload: Audit(*_AUDIT.unpack(payload))),
    ItemType.CONN_DESCRIPTION: ("description", lambda payload: _string(payload).decode("latin-1")),
}


def walk(data: bytes, start: int) -> Iterator[Item]:
    """The items from `start` to the end; EBADMSG where they are not items."""
    try:
        yield from iterate_items(data, start)
    except KdbusError as error:
        raise KdbusError(EBADMSG, error.why) from error


def add_metadata(metadata: Metadata, item: Item) -> None:
    """Note what an item tells, if it is metadata; EBADMSG for one that has not the form of its type."""
    try:
        if item.type == ItemType.OWNED_NAME:
            flags: int = NUMBER.unpack_from(item.payload)[0]
            metadata.names[_string(item.payload[NUMBER.size :]).decode("latin-1")] = NameFlag(flags)
            return
        known = _PARSERS.get(item.type)
        if known is not None:
            attribute, parse = known
            setattr(metadata, attribute, parse(item.payload))
    except struct.error as error:
        raise KdbusError(EBADMSG, f"an item of type {item.type:#x} with {len(item.payload)} bytes") from error


def parse_metadata(data: bytes, start: int) -> Metadata:
    """What the items from `start` tell of somebody."""
    metadata = Metadata()
    for item in walk(data, start):
        add_metadata(metadata, item)
    return metadata


def parse_records(data: bytes) -> list[Info]:
    """Records one after the other; what several say of one connection is put together.  EBADMSG."""
    found: dict[int, Info] = {}
    at = 0
    while len(data) - at >= INFO.size:
        size, id, flags = INFO.unpack_from(data, at)
        if not INFO.size <= size <= len(data) - at:
            raise KdbusError(EBADMSG, f"a record of {size} bytes where {len(data) - at} are left")
        info = found.get(id)
        if info is None:
            info = found[id] = Info(id, flags, Metadata())
        for item in walk(data[at : at + size], INFO.size):
            if item.type == ItemType.MAKE_NAME:
                info.bus_name = _string(item.payload).decode("latin-1")
            else:
                add_metadata(info.metadata, item)
        at += align(size)
    if at < len(data):
        raise KdbusError(EBADMSG, f"{len(data) - at} bytes after the last record")
    return list(found.values())


def parse_first(data: bytes, type: ItemType, layout: Struct) -> tuple[int, ...]:
    """The numbers in the first item of an answer, which has to be of this type and form; EBADMSG."""
    for item in walk(data, 0):
        if item.type != type or len(item.payload) != layout.size:
            break
        return layout.unpack(item.payload)
    raise KdbusError(EBADMSG, f"no {type.name} in {len(data) - HEADER_SIZE} bytes of an answer")
