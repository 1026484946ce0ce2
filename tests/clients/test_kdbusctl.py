"""What `kdbusctl` lists of a real kdbusd, in columns and as JSON, with and without the owner's rights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.children import needs_root
from support.kdbusctl import (
    BUS,
    NAME,
    NOBODY,
    OFFERED,
    UID,
    Ctl,
    connect,
    controlling,
    running_daemon,
)
from support.kdbusd import Kdbusd

from kdbus_core.abi import MATCH_ANY, HelloFlag, ItemType, NameFlag
from kdbus_core.matches import BloomMask, IdMatch, NameNotice
from kdbus_core.policy import Access
from kdbus_core.transport.client import Connection, open_node


@pytest.fixture(scope="module")
def daemon() -> Iterator[Kdbusd]:
    """One daemon for all; each test connects anew."""
    yield from running_daemon()


@pytest.fixture
def ctl(daemon: Kdbusd) -> Iterator[Ctl]:
    yield from controlling(daemon)


@pytest.fixture
def connection(daemon: Kdbusd) -> Iterator[Connection]:
    """Somebody to look at."""
    with connect(daemon, description="looked-at") as connection:
        yield connection


# Lists


def test_domains_are_listed(ctl: Ctl) -> None:
    assert ctl.rows("domains") == [["DOMAIN", "OWNER", "ACCESS", "BUSES"], ["/", str(UID), "world", BUS]]
    (domain,) = ctl.json("domains")
    assert (domain["domain"], domain["buses"]) == ("/", [BUS])


@needs_root
def test_a_domain_within_is_listed_and_can_be_gone_into(ctl: Ctl, daemon: Kdbusd) -> None:
    with open_node(daemon.control) as handle, ExitStack() as stack:
        handle.make_domain("inner")
        inner = stack.enter_context(open_node(daemon.directory / "domains" / "inner" / "control"))
        inner.make_bus(f"{UID}-within")
        assert [domain["domain"] for domain in ctl.json("domains")] == ["/", "/inner"]
        assert [bus["name"] for bus in ctl.json("buses", "--domain=inner")] == [f"{UID}-within"]


def test_buses_are_listed(ctl: Ctl, connection: Connection) -> None:
    header, row = ctl.rows("buses")
    assert dict(zip(header, row, strict=True)) == {
        "BUS": BUS,
        "OWNER": str(UID),
        "ACCESS": "world",
        "CONNECTIONS": "1",
        "NAMES": "0",
        "ENDPOINTS": "2",
        "BLOOM": "64/8",
        "REQUIRED": "-",
        "ID128": connection.id128.hex(),
    }
    (bus,) = ctl.json("buses")
    assert (bus["name"], bus["connections"], bus["creator"]["euid"]) == (BUS, 1, UID)


def test_endpoints_are_listed(ctl: Ctl, connection: Connection) -> None:
    assert connection.id
    assert ctl.rows("endpoints", BUS)[1:] == [
        [BUS, "bus", str(UID), "world", "1", "-"],
        [BUS, f"{UID}-narrow", str(UID), "owner", "0", "1"],
    ]
    assert [endpoint["name"] for endpoint in ctl.json("endpoints")] == ["bus", f"{UID}-narrow"]


def test_connections_are_listed_with_who_they_are_and_what_waits(
    ctl: Ctl, daemon: Kdbusd, connection: Connection
) -> None:
    connection.name_acquire(NAME)
    connection.match_add(1, [IdMatch(1)])
    with connect(daemon) as sender:
        sender.send(b"x" * 1000, destination=connection.id)
        header, *rows = ctl.rows("connections")
        (cells,) = [dict(zip(header, row, strict=True)) for row in rows if row[1] == str(connection.id)]
        assert (cells["BUS"], cells["KIND"], cells["ENDPOINT"]) == (BUS, "ordinary", "bus")
        assert (cells["UID"], cells["PID"]) == (str(UID), str(os.getpid()))
        assert cells["QUEUE"].startswith("1 (1")
        assert cells["POOL"].endswith("/1.0 MiB")
        assert (cells["MATCHES"], cells["NAMES"], cells["DESCRIPTION"]) == ("1", NAME, "looked-at")
        (record,) = ctl.json("connections", BUS, f"--connection={connection.id}")
        assert (record["bus"], record["queue"]["messages"]) == (BUS, 1)
        assert record["credentials"]["pid"] == os.getpid()


def test_a_connection_that_speaks_for_somebody_says_so(ctl: Ctl, daemon: Kdbusd) -> None:
    from kdbus_core.metadata import Creds, Pids, Snapshot

    with connect(daemon, faked=Snapshot(creds=Creds(uid=5, euid=6), pids=Pids(77))) as faked:
        (record,) = ctl.json("connections", f"--connection={faked.id}")
        assert (record["is_faked"], record["credentials"]) == (True, {"uid": 5, "euid": 6, "pid": 77})
        assert record["opened_by"]["pid"] == os.getpid()
        (_, row) = ctl.rows("connections")
        assert (row[2], row[4], row[5]) == ("ordinary (faked)", "6", "77")


def test_names_are_listed_with_who_waits(ctl: Ctl, daemon: Kdbusd, connection: Connection) -> None:
    connection.name_acquire(OFFERED)
    with connect(daemon, flags=HelloFlag.ACTIVATOR, name=OFFERED) as activator, connect(daemon) as other:
        other.name_acquire(OFFERED, NameFlag.QUEUE)
        assert ctl.rows("names") == [
            ["BUS", "NAME", "OWNER", "WAITING", "ACTIVATOR"],
            [BUS, OFFERED, str(connection.id), str(other.id), str(activator.id)],
        ]
        (record,) = ctl.json("names")
        assert [place["connection"] for place in record["queue"]] == [connection.id, other.id]


def test_matches_are_listed_as_they_read(ctl: Ctl, connection: Connection) -> None:
    mask = BloomMask((b"\x07" + bytes(connection.bloom.size - 1),))
    connection.match_add(1, [mask, IdMatch(9)])
    connection.match_add(2, [NameNotice(ItemType.NAME_ADD, MATCH_ANY, MATCH_ANY, NAME)])
    connection.match_add(3, [])
    connection.match_add(4, [IdMatch(1), IdMatch(2)])
    id = str(connection.id)
    assert ctl.rows("matches")[1:] == [
        [BUS, id, "1", "message sender=9 mask=3 bits"],
        [BUS, id, "2", f"notification name add name={NAME}"],
        [BUS, id, "3", "message of any kind; or any notification"],
        [BUS, id, "4", "nothing can pass"],
    ]
    assert [match["cookie"] for match in ctl.json("matches", BUS)] == [1, 2, 3, 4]
    assert ctl.json("matches", f"--connection={connection.id + 1}") == []


def test_policy_is_listed_with_who_holds_it(ctl: Ctl, daemon: Kdbusd) -> None:
    everybody = [Access(3, 0, 1)]
    with connect(
        daemon, flags=HelloFlag.POLICY_HOLDER, name="org.example.Held", accesses=everybody
    ) as holder:
        assert ctl.rows("policy")[1:] == [
            [BUS, "-", NAME, "configuration", f"talk world, own user {UID}"],
            [BUS, "-", "org.example.Held", str(holder.id), "talk world"],
            [BUS, f"{UID}-narrow", "org.example.*", "-", "see group 3"],
        ]
    first, *_ = ctl.json("policy", BUS)
    assert first["accesses"][1] == {"type": "user", "id": UID, "level": "own"}


# One thing


def test_a_connection_is_described_by_id_or_name(ctl: Ctl, connection: Connection) -> None:
    connection.name_acquire(NAME)
    by_id = ctl.json("info", str(connection.id))
    assert by_id == ctl.json("info", NAME)
    assert (by_id["id"], by_id["description"], by_id["credentials"]["pid"]) == (
        connection.id,
        "looked-at",
        os.getpid(),
    )
    out, _ = ctl.run("info", NAME)
    assert re.search(rf"^pid +{os.getpid()}$", out, re.MULTILINE)
    assert re.search(rf"^names +{NAME}$", out, re.MULTILINE)


def test_the_bus_is_described(ctl: Ctl, connection: Connection) -> None:
    record = ctl.json("info", "--bus", BUS)
    assert (record["bus"], record["access"]) == (BUS, "world")
    assert record["id128"] == connection.id128.hex()
    assert re.search(rf"^bus +{BUS}$", ctl.run("info")[0], re.MULTILINE)


# Others than the owner


@needs_root
def test_others_see_what_list_and_info_tell(ctl: Ctl, connection: Connection) -> None:
    connection.name_acquire(NAME)
    (record,) = ctl.json_as_nobody("connections")
    assert (record["id"], record["description"]) == (connection.id, "looked-at")
    assert record["credentials"]["pid"] == os.getpid()
    (name,) = ctl.json_as_nobody("names")
    assert (name["name"], name["owner"]) == (NAME, connection.id)
    assert [endpoint["name"] for endpoint in ctl.json_as_nobody("endpoints")] == ["bus", f"{UID}-narrow"]
    out, err = ctl.run_as_nobody("buses")
    assert BUS in out
    assert "not the owner of the domain" in err


@needs_root
@pytest.mark.parametrize("verb", ["matches", "policy"])
def test_others_are_told_what_they_may_not_know(ctl: Ctl, verb: str) -> None:
    out, err = ctl.run_as_nobody(verb, status=1)
    assert (out, err) == ("", f"kdbusctl: {verb} are told to the owner of the domain only\n")


@needs_root
def test_others_do_not_monitor(ctl: Ctl) -> None:
    _, err = ctl.run_as_nobody("monitor", status=1)
    assert err == f"kdbusctl: uid {NOBODY} does not own this bus, and only owners monitor it\n"


@needs_root
def test_a_bus_that_is_closed_to_us_says_so(ctl: Ctl, daemon: Kdbusd) -> None:
    with open_node(daemon.control) as handle:
        handle.make_bus(f"{UID}-closed")
        records = {bus["name"]: bus["is_closed"] for bus in ctl.json_as_nobody("buses")}
        assert records == {BUS: False, f"{UID}-closed": True}
        assert "closed to us" in ctl.run_as_nobody("buses")[0]
