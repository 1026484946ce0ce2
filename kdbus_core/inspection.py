"""The state of a domain as plain values: what kdbusctl shows and INSPECT answers with.

`inspect` looks and changes nothing.  What it gives consists of dictionaries, lists, strings, numbers,
booleans and None, so it is JSON as it stands.  It is for the owner of the domain: nothing is hidden, neither
monitors nor names that an endpoint's policy hides, and ids are those of the initial namespaces.

What is unknown of a process is not there; it is never zero.  Where an id may be anything, it is None.

A connection can have thousands of matches, so the long tables (matches, subscriptions, open requests) share
`max_records` among all of the domain.  Once they are used up a table stops, and its `left_out` says how many
records are missing.

This module knows the inside of matches, because nobody else needs them spelled out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntFlag
from typing import TYPE_CHECKING

from kdbus_core.abi import (
    MATCH_ANY,
    UNSET_ID,
    AccessLevel,
    AccessType,
    AttachFlag,
    HelloFlag,
    ItemType,
    MakeFlag,
    NameFlag,
)
from kdbus_core.metadata import Creds, Snapshot, as_snapshot

if TYPE_CHECKING:
    from kdbus_core.bus import Bus
    from kdbus_core.connection import Connection
    from kdbus_core.domain import Domain
    from kdbus_core.endpoint import Endpoint
    from kdbus_core.matches import Entry as MatchEntry
    from kdbus_core.metadata import Credentials, Process
    from kdbus_core.names import NameEntry
    from kdbus_core.policy import Access, PolicyDatabase
    from kdbus_core.quota import User
    from kdbus_core.subscriptions import Rule

Record = dict[str, object]

FORMAT = 1
"""Changes when something that was there means something else; new keys do not change it."""
MAX_RECORDS = 20_000
_MASK_BYTES_PER_RECORD = 256


class _Room:
    """How many records of long tables may still be written out; a long record counts as several."""

    def __init__(self, records: int) -> None:
        self.records = records

    def table(
        self, records: Iterator[Record], total: int, count: Callable[[Record], int] | None = None
    ) -> Record:
        """As many records as there is room for, of the `total` that there are."""
        listed: list[Record] = []
        while self.records > 0 and (record := next(records, None)) is not None:
            listed.append(record)
            self.records -= 1 if count is None else count(record)
        return {"total": total, "left_out": total - len(listed), "records": listed}


def inspect(domain: Domain, *, max_records: int = MAX_RECORDS) -> Record:
    """Everything about a domain and the domains in it, as values that JSON has."""
    return {"format": FORMAT, **_domain(domain, _Room(max_records))}


def _domain(domain: Domain, room: _Room) -> Record:
    return {
        "name": domain.name,
        "owner": _ids(domain.owner),
        "access": access_word(domain.access),
        "max_pool_size": domain.max_pool_size,
        "max_connections_per_user": domain.max_connections_per_user,
        "monotonic_ns": domain.monotonic(),
        "buses": [_bus(bus, room) for bus in domain.buses.values()],
        "domains": [_domain(inner, room) for inner in domain.domains.values()],
    }


def access_word(flags: int) -> str:
    """Who, besides the owner, may open a node: `owner` (nobody), `group` or `world`."""
    if flags & MakeFlag.ACCESS_WORLD:
        return "world"
    return "group" if flags & MakeFlag.ACCESS_GROUP else "owner"


# A bus


def _bus(bus: Bus, room: _Room) -> Record:
    accounts = {bus.kernel_user: "the bus"}
    for endpoint in bus.endpoints.values():
        if endpoint.user is not None:
            accounts[endpoint.user] = f"endpoint {endpoint.name}"
    return {
        "name": bus.name,
        "id": bus.id,
        "id128": bus.id128.hex(),
        "owner": _ids(bus.owner),
        "creator": _process(bus.creator),
        "access": access_word(bus.flags),
        "final_metadata": bool(bus.flags & MakeFlag.FINAL_METADATA),
        "bloom": {"size": bus.bloom.size, "n_hash": bus.bloom.n_hash},
        "creator_metadata": _attach(bus.creator_mask),
        "required_metadata": _attach(bus.required),
        "endpoints": [_endpoint(endpoint) for endpoint in bus.endpoints.values()],
        "policy": _policy(bus.policy),
        "names": [_name(entry) for entry in sorted(bus.names.entries(), key=lambda entry: entry.name)],
        "connections": [_connection(one, accounts, room) for one in bus.connections.values()],
    }


def _endpoint(endpoint: Endpoint) -> Record:
    connections = endpoint.bus.connections.values()
    return {
        "name": endpoint.name,
        "is_default": endpoint.is_default,
        "owner": _ids(endpoint.owner),
        "access": access_word(endpoint.access),
        "connections": sum(connection.endpoint is endpoint for connection in connections),
        "policy": None if endpoint.policy is None else _policy(endpoint.policy),
    }


def _policy(database: PolicyDatabase) -> list[Record]:
    """All entries, by name; `holder` is the connection that an entry belongs to, None where it is none's."""
    return [
        {
            "name": entry.name,
            "holder": getattr(owner, "id", None),
            "accesses": [_access(access) for access in entry.accesses],
        }
        for entry, owner in database.entries()
    ]


def _access(access: Access) -> Record:
    type = AccessType(access.type)
    id = None if type is AccessType.WORLD else access.id
    return {"type": _word(type.name), "id": id, "level": _word(AccessLevel(access.level).name)}


def _name(entry: NameEntry) -> Record:
    activator = entry.activator
    return {
        "name": entry.name,
        "owner": entry.queue[0].connection.id if entry.queue else None,
        "activator": None if activator is None else activator.connection.id,
        "queue": [
            {"connection": place.connection.id, "flags": _flags(NameFlag(place.flags))}
            for place in entry.queue
        ],
    }


# A connection


def _connection(connection: Connection, accounts: dict[User, str], room: _Room) -> Record:
    is_faked = connection.faked is not None
    record: Record = {
        "id": connection.id,
        "kind": kind_word(connection.flags),
        "is_native": connection.inbox is not None,
        "is_owner": connection.is_owner,
        "endpoint": connection.endpoint.name,
        "accepts_fds": connection.accepts_fds,
        "description": connection.description,
        "is_faked": is_faked,
        "credentials": _process(connection.process)
        if connection.faked is None
        else snapshot_record(as_snapshot(connection.faked)),
        "account": _account(connection.user, accounts),
        "attach_send": _attach(connection.attach_send),
        "attach_recv": _attach(connection.attach_recv),
        "names": [
            {"name": name, "flags": _flags(NameFlag(place.flags))} for name, place in connection.names.items()
        ],
        "queue": _queue(connection, accounts),
        "pool": None,
        "waiting_calls": len(connection.calls),
        "outstanding": connection.outstanding,
        "limits": {
            "names": connection.limits.names,
            "matches": connection.limits.matches,
            "outstanding": connection.limits.outstanding_requests,
        },
    }
    if is_faked:
        record["opened_by"] = _process(connection.process)
    if connection.inbox is not None:
        pool = connection.inbox.pool
        record["pool"] = {"size": pool.size, "used": pool.busy, "reserved_slots": connection.inbox.reserved}
    requests = connection.requests.values()
    total = sum(len(window) + sum(1 for _ in window.tracked()) for window in requests)
    record["requests"] = room.table(_requests(connection), total)
    record["owes"] = [
        {"to": requester.id, "requests": count}
        for requester, window in connection.duties.items()
        if (count := len(window) + sum(1 for _ in window.tracked()))
    ]
    bloom_size = connection.endpoint.bus.bloom.size
    total = sum(len(entries) for entries in connection.matches.values())
    record["matches"] = room.table(_matches(connection, bloom_size), total, _count_match)
    total = sum(len(entries) for entries in connection.subscriptions.values())
    record["subscriptions"] = room.table(_subscriptions(connection), total)
    return record


def kind_word(flags: int) -> str:
    """What kind of connection HELLO made with these flags."""
    if flags & HelloFlag.ACTIVATOR:
        return "activator"
    if flags & HelloFlag.POLICY_HOLDER:
        return "policy holder"
    return "monitor" if flags & HelloFlag.MONITOR else "ordinary"


def _account(user: User, accounts: dict[User, str]) -> Record:
    """Who pays: a uid, or the bus or an endpoint; neither where the uid is unknown."""
    return {"uid": user.uid, "of": accounts.get(user)}


def _queue(connection: Connection, accounts: dict[User, str]) -> Record:
    """What waits: of a local connection what its socket has not taken."""
    quota, inbox = connection.quota, connection.inbox
    return {
        "messages": quota.total_messages if inbox is None else len(inbox),
        "bytes": quota.total_memory,
        "fds": quota.total_fds,
        "lost": 0 if inbox is None else inbox.lost,
        "capacity": quota.capacity,
        "max_messages_of_a_user": quota.max_messages,
        "max_fds_of_a_user": quota.max_fds,
        "peak_bytes": quota.peak_memory,
        "peak_fds": quota.peak_fds,
        "users": [
            {
                **_account(user, accounts),
                "messages": share.messages,
                "bytes": share.memory,
                "fds": share.fds,
            }
            for user, share in quota.shares.items()
        ],
    }


def _requests(connection: Connection) -> Iterator[Record]:
    """What it waits for; a deadline is in nanoseconds of the domain's monotonic clock, None for none."""
    for replier, window in connection.requests.items():
        for cookie, deadline in window.items():
            yield {"to": replier.id, "cookie": cookie, "deadline_ns": deadline or None, "is_waiting": False}
        for tracker in window.tracked():
            yield {
                "to": replier.id,
                "cookie": tracker.cookie,
                "deadline_ns": tracker.deadline or None,
                "is_waiting": tracker.waiter is not None,
            }


# Matches and subscriptions


def _matches(connection: Connection, bloom_size: int) -> Iterator[Record]:
    for cookie, entries in connection.matches.items():
        for entry in entries:
            yield {"cookie": cookie, **_match(entry, bloom_size)}


def _count_match(match: Record) -> int:
    """How many records a match counts as: masks can be long."""
    message = match["message"]
    if not isinstance(message, dict):
        return 1
    return 1 + sum(len(mask) // 2 for mask in message["masks"]) // _MASK_BYTES_PER_RECORD


def _match(entry: MatchEntry, bloom_size: int) -> Record:
    """What an entry asks of a message and of a notification; None where nothing can pass.

    Masks, oldest generation first, are in hexadecimal without the zeros at their ends.
    """
    message: Record | None = None
    if entry.message is not None:
        source, destination, names, masks = entry.message
        message = {
            "sender": _any_id(source),
            "sender_names": list(names),
            "destination": _any_id(destination),
            "masks": [mask.to_bytes(bloom_size, "little").rstrip(b"\0").hex() for mask in masks],
        }
    notification: Record | None = None
    if entry.notice is not None:
        type, old_id, new_id, name = entry.notice
        if type == 0:
            notification = {"type": None}
        elif type in (ItemType.ID_ADD, ItemType.ID_REMOVE):
            notification = {"type": _word(ItemType(type).name), "id": _any_id(old_id)}
        else:
            notification = {
                "type": _word(ItemType(type).name),
                "name": name,
                "old_id": _any_id(old_id),
                "new_id": _any_id(new_id),
            }
    return {"message": message, "notification": notification}


def _any_id(id: int) -> int | None:
    return None if id == MATCH_ANY else id


def _subscriptions(connection: Connection) -> Iterator[Record]:
    for cookie, entries in connection.subscriptions.items():
        for entry in entries:
            yield {"cookie": cookie, **_rule(entry.rule)}


def _rule(rule: Rule) -> Record:
    """An exact rule; what it does not ask for is not there."""
    asked: Record = {
        "message_type": rule.message_type,
        "sender": rule.sender,
        "interface": rule.interface,
        "member": rule.member,
        "path": rule.path,
        "path_namespace": rule.path_namespace,
        "destination": rule.destination,
        "arguments": [
            {"index": test.index, "kind": test.kind, "value": test.value} for test in rule.arguments
        ]
        or None,
        "eavesdrop": rule.eavesdrop or None,
    }
    return {key: value for key, value in asked.items() if value is not None}


# Processes


def _ids(credentials: Credentials) -> Record:
    return {"uid": credentials.uid, "gid": credentials.gid}


def _process(process: Process) -> Record:
    return {**snapshot_record(process.snapshot), "is_privileged": process.privileged}


def snapshot_record(snapshot: Snapshot) -> Record:
    """What is known of a process: ids as the initial namespaces have them, capability sets in hexadecimal."""
    known: Record = {}
    if snapshot.creds is not None:
        values = zip(Creds._fields, snapshot.creds, strict=True)
        known |= {name: value for name, value in values if value != UNSET_ID}
    if snapshot.pids is not None:
        known |= {name: value for name, value in snapshot.pids._asdict().items() if value}
    if snapshot.auxgroups is not None:
        known["groups"] = list(snapshot.auxgroups)
    for name in ("tid_comm", "pid_comm", "exe", "cmdline", "cgroup", "seclabel"):
        text: bytes | None = getattr(snapshot, name)
        if text is not None:
            known[name] = text.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "backslashreplace")
    if snapshot.caps is not None:
        last_cap, *sets = snapshot.caps
        names = ("inheritable", "permitted", "effective", "bounding")
        known["caps"] = {
            "last_cap": last_cap,
            **{name: f"{bits:x}" for name, bits in zip(names, sets, strict=True)},
        }
    if snapshot.audit is not None:
        values = zip(("sessionid", "loginuid"), snapshot.audit, strict=True)
        known |= {name: value for name, value in values if value != UNSET_ID}
    return known


# Words


def _word(name: str) -> str:
    return name.lower().replace("_", " ")


def _flags(flags: IntFlag) -> list[str]:
    return [_word(flag.name or "") for flag in flags]


def _attach(mask: int) -> list[str]:
    return [(flag.name or "").lower() for flag in AttachFlag(mask)]
