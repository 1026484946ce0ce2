"""What is known of a domain: all of it where we may ask the broker, else what everybody can find out.

`load_state` gives the record of `kdbus_core.inspection`.  Who is not the domain's owner gets an *outline* of
the same shape with fewer keys: nodes are those in the directory, connections and names those that LIST and
CONN_INFO tell on each bus that lets us in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from errno import EACCES, EPERM
from typing import Any

from kdbus_core.abi import ListFlag, NameFlag
from kdbus_core.ctl.places import DEFAULT_ENDPOINT, Place
from kdbus_core.errors import KdbusError
from kdbus_core.inspection import kind_word, snapshot_record
from kdbus_core.transport.client import Connection, Info, open_node

Record = dict[str, Any]

_SMALL_POOL = 1 << 20
_EVERYTHING = ListFlag.UNIQUE | ListFlag.NAMES | ListFlag.ACTIVATORS | ListFlag.QUEUED


def load_state(place: Place) -> Record:
    """The state of a domain, or its outline; `is_outline` says which."""
    try:
        with open_node(place.control) as handle:
            return {"is_outline": False, **handle.inspect()}
    except KdbusError as error:
        if error.errno not in (EPERM, EACCES):
            raise
    return {"is_outline": True, **_outline(place)}


def all_domains(state: Record) -> Iterator[tuple[str, Record]]:
    """The domain and all in it, each with its name seen from the outermost one ("/" for that itself)."""
    waiting = [("", state)]
    while waiting:
        name, domain = waiting.pop(0)
        yield name or "/", domain
        waiting += [(f"{name}/{inner['name']}", inner) for inner in domain["domains"]]


def closed_buses(state: Record, bus: str | None) -> list[str]:
    """The buses of an outline, or that one of them, that did not let us in."""
    return [one["name"] for one in state["buses"] if one["is_closed"] and bus in (None, one["name"])]


def _outline(place: Place) -> Record:
    return {
        "name": place.directory.name if place.name else "",
        "buses": [_outline_bus(place, bus) for bus in place.buses()],
        "domains": [_outline(inner) for inner in place.inner()],
    }


def _outline_bus(place: Place, bus: str) -> Record:
    record: Record = {
        "name": bus,
        "endpoints": [
            {"name": name, "is_default": name == DEFAULT_ENDPOINT} for name in place.endpoints(bus)
        ],
        "names": [],
        "connections": [],
        "is_closed": False,
    }
    try:
        with (
            open_node(place.node(bus)) as handle,
            handle.hello(pool_size=_SMALL_POOL, description="kdbusctl") as connection,
        ):
            _add_what_is_told(record, connection)
    except KdbusError as error:
        if error.errno not in (EPERM, EACCES):
            raise
        record["is_closed"] = True
    return record


def _add_what_is_told(record: Record, connection: Connection) -> None:
    record["bloom"] = {"size": connection.bloom.size, "n_hash": connection.bloom.n_hash}
    with suppress(KdbusError):  # what its creator withholds
        record["creator"] = describe(connection.creator_info())
    listed = connection.list(_EVERYTHING)
    record["names"] = _names_of(listed)
    for info in listed:
        if info.id == connection.id:
            continue
        try:
            told = connection.info(info.id)
        except KdbusError:
            continue  # it has gone in the meantime
        record["connections"].append(describe_connection(told, info))


def describe(info: Info) -> Record:
    """What is told of a process, in the words of the inspection."""
    return snapshot_record(info.metadata.snapshot)


def describe_connection(told: Info, listed: Info | None = None) -> Record:
    """What CONN_INFO tells of a connection, with all places at names that LIST tells."""
    return {
        "id": told.id,
        "kind": kind_word(told.flags),
        "description": told.description or "",
        "credentials": describe(told),
        "names": [
            {"name": name, "flags": _flag_words(flags)} for name, flags in (listed or told).names.items()
        ],
    }


def _names_of(listed: list[Info]) -> list[Record]:
    """The names that connections have, wait for or offer; who waits is there by id, not by turn."""
    names: dict[str, Record] = {}
    for info in listed:
        for name, flags in info.names.items():
            entry = names.setdefault(name, {"name": name, "owner": None, "activator": None, "queue": []})
            if flags & NameFlag.ACTIVATOR:
                entry["activator"] = info.id
                continue
            place = {"connection": info.id, "flags": _flag_words(flags)}
            if flags & NameFlag.IN_QUEUE:
                entry["queue"].append(place)
            else:
                entry["owner"] = info.id
                entry["queue"].insert(0, place)
    return [names[name] for name in sorted(names)]


def _flag_words(flags: NameFlag) -> list[str]:
    return [(flag.name or "").lower().replace("_", " ") for flag in flags]
