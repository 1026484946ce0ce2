"""The verbs that list: domains, buses, endpoints, connections, names, matches, policy.

Each is a function from the state of a domain to records (what --json prints), and columns made of those.
Columns show what fits in a line; JSON has everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kdbus_core.ctl.places import Problem
from kdbus_core.ctl.show import size
from kdbus_core.ctl.state import Record, all_domains


class Chosen(NamedTuple):
    """Of what somebody wants to know: one bus or all of them, one connection or all of them."""

    bus: str | None
    connection: int | None


Rows = Iterator[Record]


class Listing(NamedTuple):
    """A verb: its records, its columns, and one cell per column of a record.

    `needs_inspection` says that nothing of it can be found out without the right to INSPECT.
    """

    records: Callable[[Record, Chosen], Rows]
    columns: Sequence[str]
    cells: Callable[[Record], Sequence[object]]
    needs_inspection: bool = False


def _buses(state: Record, chosen: Chosen) -> Rows:
    for bus in state["buses"]:
        if chosen.bus is None or bus["name"] == chosen.bus:
            yield bus


def _of_buses(key: str) -> Callable[[Record, Chosen], Rows]:
    """The records under a key of each chosen bus, with the bus they are of."""

    def records(state: Record, chosen: Chosen) -> Rows:
        for bus in _buses(state, chosen):
            for record in bus[key]:
                if key != "connections" or chosen.connection in (None, record["id"]):
                    yield {"bus": bus["name"], **record}

    return records


def _domain_records(state: Record, _: Chosen) -> Rows:
    for path, domain in all_domains(state):
        yield {
            "domain": path,
            "owner": domain.get("owner"),
            "access": domain.get("access"),
            "max_pool_size": domain.get("max_pool_size"),
            "max_connections_per_user": domain.get("max_connections_per_user"),
            "buses": [bus["name"] for bus in domain["buses"]],
        }


def _domain_cells(record: Record) -> Sequence[object]:
    return record["domain"], _uid(record["owner"]), record["access"], record["buses"]


def _bus_records(state: Record, chosen: Chosen) -> Rows:
    for bus in _buses(state, chosen):
        counts = {key: len(bus[key]) for key in ("connections", "names", "endpoints")}
        yield {**{key: value for key, value in bus.items() if key != "policy"}, **counts}


def _bus_cells(record: Record) -> Sequence[object]:
    bloom = record.get("bloom")
    return (
        record["name"],
        _uid(record.get("owner")),
        record.get("access"),
        "closed to us" if record.get("is_closed") else record["connections"],
        record["names"],
        record["endpoints"],
        bloom and f"{bloom['size']}/{bloom['n_hash']}",
        record.get("required_metadata"),
        record.get("id128"),
    )


def _endpoint_cells(record: Record) -> Sequence[object]:
    policy = record.get("policy")
    return (
        record["bus"],
        record["name"],
        _uid(record.get("owner")),
        record.get("access"),
        record.get("connections"),
        None if policy is None else len(policy),
    )


def _connection_cells(record: Record) -> Sequence[object]:
    known = record["credentials"]
    queue, pool, matches = record.get("queue"), record.get("pool"), record.get("matches")
    kind = record["kind"]
    if record.get("is_native") is False:
        kind += " (proxied)"
    elif record.get("is_faked"):
        kind += " (faked)"
    return (
        record["bus"],
        record["id"],
        kind,
        record.get("endpoint"),
        known.get("euid", known.get("uid")),
        known.get("pid"),
        known.get("pid_comm", known.get("tid_comm")),
        [place["name"] for place in record["names"]],
        queue and _queue_cell(queue),
        pool and f"{size(pool['used'])}/{size(pool['size'])}",
        matches and matches["total"] + record["subscriptions"]["total"],
        record.get("outstanding"),
        record["description"],
    )


def _queue_cell(queue: Record) -> str:
    text = str(queue["messages"])
    if queue["bytes"]:
        text += f" ({size(queue['bytes'])})"
    return f"{text}, {queue['lost']} lost" if queue["lost"] else text


def _name_cells(record: Record) -> Sequence[object]:
    waiting = [place["connection"] for place in record["queue"] if place["connection"] != record["owner"]]
    return record["bus"], record["name"], record["owner"], waiting, record["activator"]


def _match_records(state: Record, chosen: Chosen) -> Rows:
    """One record for each rule; of a table that was cut off the last one says how many are missing."""
    for connection in _of_buses("connections")(state, chosen):
        of = {"bus": connection["bus"], "connection": connection["id"]}
        for key in ("matches", "subscriptions"):
            table = connection[key]
            kind = {"kind": "match" if key == "matches" else "subscription"}
            for record in table["records"]:
                yield {**of, **kind, **record}
            if table["left_out"]:
                yield {**of, **kind, "left_out": table["left_out"]}


def _match_cells(record: Record) -> Sequence[object]:
    head = record["bus"], record["connection"], record.get("cookie")
    if "left_out" in record:
        return *head, f"({record['left_out']} more)"
    if record["kind"] == "subscription":
        rule = {key: value for key, value in record.items() if key not in _OF_MATCH}
        arguments = rule.pop("arguments", ())
        rule |= {f"arg{one['index']}{_ARGUMENT_KINDS[one['kind']]}": one["value"] for one in arguments}
        return *head, rule or "everything"
    asked = [_message_words(record["message"]), _notice_words(record["notification"])]
    return *head, "; or ".join(filter(None, asked)) or "nothing can pass"


_OF_MATCH = ("bus", "connection", "kind", "cookie")
_ARGUMENT_KINDS = {"string": "", "path": "path", "namespace": "namespace"}


def _message_words(message: Record | None) -> str:
    if message is None:
        return ""
    words = [f"sender={message['sender']}"] if message["sender"] is not None else []
    words += [f"sender={name}" for name in message["sender_names"]]
    if message["destination"] is not None:
        words.append(f"destination={message['destination']}")
    if any(message["masks"]):
        bits = [bin(int(mask or "0", 16)).count("1") for mask in message["masks"]]
        words.append(f"mask={'/'.join(map(str, bits))} bits")
    return "message " + (" ".join(words) or "of any kind")


def _notice_words(notice: Record | None) -> str:
    if notice is None:
        return ""
    if notice["type"] is None:
        return "any notification"
    words = [f"{key}={value}" for key, value in notice.items() if key != "type" and value is not None]
    return " ".join([f"notification {notice['type']}", *words])


def _policy_records(state: Record, chosen: Chosen) -> Rows:
    for bus in _buses(state, chosen):
        for entry in bus["policy"]:
            yield {"bus": bus["name"], "endpoint": None, **entry}
        for endpoint in bus["endpoints"]:
            for entry in endpoint["policy"] or ():
                yield {"bus": bus["name"], "endpoint": endpoint["name"], **entry}


def _policy_cells(record: Record) -> Sequence[object]:
    levels = [
        f"{access['level']} {access['type']}" + ("" if access["id"] is None else f" {access['id']}")
        for access in record["accesses"]
    ]
    if record["endpoint"] is None and record["holder"] is None:
        return record["bus"], None, record["name"], "configuration", levels
    return record["bus"], record["endpoint"], record["name"], record["holder"], levels


def _uid(owner: Any) -> object:
    return owner and owner["uid"]


LISTINGS: dict[str, Listing] = {
    "domains": Listing(_domain_records, ("DOMAIN", "OWNER", "ACCESS", "BUSES"), _domain_cells),
    "buses": Listing(
        _bus_records,
        ("BUS", "OWNER", "ACCESS", "CONNECTIONS", "NAMES", "ENDPOINTS", "BLOOM", "REQUIRED", "ID128"),
        _bus_cells,
    ),
    "endpoints": Listing(
        _of_buses("endpoints"),
        ("BUS", "ENDPOINT", "OWNER", "ACCESS", "CONNECTIONS", "POLICY"),
        _endpoint_cells,
    ),
    "connections": Listing(
        _of_buses("connections"),
        (
            "BUS",
            "ID",
            "KIND",
            "ENDPOINT",
            "UID",
            "PID",
            "COMM",
            "NAMES",
            "QUEUE",
            "POOL",
            "MATCHES",
            "REQUESTS",
            "DESCRIPTION",
        ),
        _connection_cells,
    ),
    "names": Listing(_of_buses("names"), ("BUS", "NAME", "OWNER", "WAITING", "ACTIVATOR"), _name_cells),
    "matches": Listing(
        _match_records, ("BUS", "CONNECTION", "COOKIE", "RULE"), _match_cells, needs_inspection=True
    ),
    "policy": Listing(
        _policy_records,
        ("BUS", "ENDPOINT", "NAME", "HOLDER", "GRANTS"),
        _policy_cells,
        needs_inspection=True,
    ),
}
"""The verbs, by name."""


def list_records(verb: str, state: Record, chosen: Chosen) -> list[Record]:
    """The records of a verb; Problem where they cannot be known."""
    listing = LISTINGS[verb]
    if listing.needs_inspection and state["is_outline"]:
        raise Problem(f"{verb} are told to the owner of the domain only")
    return list(listing.records(state, chosen))
