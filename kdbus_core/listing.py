"""Who is on a bus: the records that answer LIST, CONN_INFO and BUS_CREATOR_INFO.

A record is its size, an id and flags, and items; its size is a multiple of 8,
so records follow each other without a gap.  What a reader may not see looks to
it as if it were not there: on a custom endpoint the names its policy hides and
the connections without a name it shows, and everywhere the monitors, of which
only a monitor itself can be told.
"""

from __future__ import annotations

from errno import EINVAL, ENXIO, ESRCH, EXFULL
from typing import TYPE_CHECKING

from kdbus_core.abi import INFO, ItemType, ListFlag
from kdbus_core.errors import KdbusError
from kdbus_core.items import build_owned_name_item, build_string_item
from kdbus_core.metadata import connection_items, parse_attach_flags, process_items
from kdbus_core.names import ACTIVATOR, IN_QUEUE
from kdbus_core.policy import may_see, may_see_name

if TYPE_CHECKING:
    from kdbus_core.bus import Bus
    from kdbus_core.connection import Connection

_LISTS_UNIQUE = int(ListFlag.UNIQUE)
_LISTS_NAMES = int(ListFlag.NAMES)
_LISTS_ACTIVATORS = int(ListFlag.ACTIVATORS)
_LISTS_QUEUED = int(ListFlag.QUEUED)


def connection_record(bus: Bus, reader: Connection, *, id: int, name: str | None, mask: int) -> bytes:
    """What is known of a connection (CONN_INFO): the owner of a name, else the one with that id.

    A name leads to its owner, else to its activator.  Of the metadata in `mask` what the connection grants
    is told.  Raises EINVAL (unknown bits in `mask`; neither id nor name), ESRCH (nobody visible owns the
    name, or not the connection with that id), ENXIO (no visible connection has the id).
    """
    mask = parse_attach_flags(mask)
    if name is not None:
        subject = _resolve_name(bus, reader, name, id)
    elif id:
        subject = _resolve_id(bus, reader, id)
    else:
        raise KdbusError(EINVAL, "neither an id nor a name")
    return _record(subject.id, subject.flags, connection_items(subject, reader, mask))


def creator_record(bus: Bus, reader: Connection, mask: int) -> bytes:
    """What is known of whoever made the bus (BUS_CREATOR_INFO): the name of the bus, then metadata.

    Of the metadata in `mask` what the creator granted is told.  Raises EINVAL (unknown bits in `mask`).
    """
    mask = parse_attach_flags(mask) & bus.creator_mask
    name = build_string_item(ItemType.MAKE_NAME, bus.name)
    known = process_items(bus.creator.snapshot, bus.creator, reader.process, mask)
    return _record(bus.id, bus.flags, name + known)


def list_records(bus: Bus, reader: Connection, flags: int, room: int) -> bytes:
    """A record for each place at a name that is asked for (LIST); with UNIQUE also for who has none.

    NAMES asks for owners, QUEUED for who waits and ACTIVATORS for who offers to start one.  Connections come
    in the order of their ids, and their names as they came by them; empty when there is nothing to list.
    EXFULL as soon as there is more than `room` bytes.
    """
    records: list[bytes] = []
    size = 0
    for connection in bus.connections.values():
        if connection.is_monitor:
            continue
        listed = [
            _record(connection.id, connection.flags, build_owned_name_item(mine.flags, name))
            for name, mine in connection.names.items()
            if flags & _lister_of(mine.flags) and may_see_name(reader, name)
        ]
        if not listed and flags & _LISTS_UNIQUE and may_see(reader, connection):
            listed.append(_record(connection.id, connection.flags, b""))
        records += listed
        size += sum(map(len, listed))
        if size > room:
            raise KdbusError(EXFULL, f"the list takes more than {room} bytes")
    return b"".join(records)


def _resolve_name(bus: Bus, reader: Connection, name: str, id: int) -> Connection:
    entry = bus.names.entry(name)
    holder = entry.holder if entry is not None else None
    if holder is None or not may_see_name(reader, name):
        raise KdbusError(ESRCH, f"nobody owns '{name}'")
    if id and holder.connection.id != id:
        raise KdbusError(ESRCH, f"'{name}' is not owned by connection {id}")
    return holder.connection


def _resolve_id(bus: Bus, reader: Connection, id: int) -> Connection:
    connection = bus.connections.get(id)
    if connection is None or not may_see(reader, connection):
        raise KdbusError(ENXIO, f"no connection {id}")
    if connection.is_monitor and connection is not reader:
        raise KdbusError(ENXIO, f"no connection {id}")
    return connection


def _lister_of(name_flags: int) -> int:
    """The flag of LIST that asks for a place at a name with these flags."""
    if name_flags & ACTIVATOR:
        return _LISTS_ACTIVATORS
    return _LISTS_QUEUED if name_flags & IN_QUEUE else _LISTS_NAMES


def _record(id: int, flags: int, items: bytes) -> bytes:
    return INFO.pack(INFO.size + len(items), id, flags) + items
