"""What the bus itself answers, to the letter: every driver call with good, bad and odd arguments.

The calls come from the raw client, so that nothing a library does stands between; what is compared is all
that a client can see of a reply: type, flags, fields, error name and text, signature, body. None of the
calls leaves anything behind on the bus.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.raw import DRIVER, NO_REPLY_EXPECTED

pytestmark = pytest.mark.program("dbus-daemon")

PROPERTIES = "org.freedesktop.DBus.Properties"
PEER = "org.freedesktop.DBus.Peer"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
MONITORING = "org.freedesktop.DBus.Monitoring"
STATS = "org.freedesktop.DBus.Debug.Stats"
VERBOSE = "org.freedesktop.DBus.Verbose"
NOBODY = "com.example.Nobody"

Call = tuple[str, str, list[Any], dict[str, Any]]


def call(member: str, signature: str = "", *arguments: Any, **options: Any) -> Call:
    """One row of the table: what `RawClient.call` takes."""
    return member, signature, list(arguments), options


def rows() -> dict[str, Call]:
    """All calls that leave nothing behind, by a name that says what is odd about them."""
    table = {
        "GetId": call("GetId"),
        "GetId with an argument": call("GetId", "s", "x"),
        "GetId without interface": call("GetId", interface=None),
        "GetId on another path": call("GetId", path="/com/example"),
        "GetId on the root path": call("GetId", path="/"),
        "GetId in big-endian": call("GetId", order="B"),
        "GetId of another interface": call("GetId", interface=PEER),
        "ListNames": call("ListNames"),
        "ListNames with an argument": call("ListNames", "u", 1),
        "ListActivatableNames": call("ListActivatableNames"),
        "NameHasOwner of nobody": call("NameHasOwner", "s", NOBODY),
        "NameHasOwner of the driver": call("NameHasOwner", "s", DRIVER),
        "NameHasOwner of no name": call("NameHasOwner", "s", "not a name"),
        "NameHasOwner of an empty name": call("NameHasOwner", "s", ""),
        "NameHasOwner without argument": call("NameHasOwner"),
        "NameHasOwner of a number": call("NameHasOwner", "u", 5),
        "NameHasOwner of two names": call("NameHasOwner", "ss", NOBODY, NOBODY),
        "RequestName without flags": call("RequestName", "s", NOBODY),
        "RequestName of no name": call("RequestName", "su", "x", 0),
        "RequestName of an empty name": call("RequestName", "su", "", 0),
        "RequestName of a unique name": call("RequestName", "su", ":1.99", 0),
        "RequestName of the driver's name": call("RequestName", "su", DRIVER, 0),
        "RequestName of a name that is too long": call("RequestName", "su", "a." + "b" * 254, 0),
        "ReleaseName of nobody": call("ReleaseName", "s", NOBODY),
        "ReleaseName of no name": call("ReleaseName", "s", ".x"),
        "ReleaseName of a unique name": call("ReleaseName", "s", ":1.99"),
        "ReleaseName of the driver's name": call("ReleaseName", "s", DRIVER),
        "ReleaseName without argument": call("ReleaseName"),
        "ListQueuedOwners without argument": call("ListQueuedOwners"),
        "Hello again": call("Hello"),
        "StartServiceByName of nobody": call("StartServiceByName", "su", NOBODY, 0),
        "StartServiceByName of the driver": call("StartServiceByName", "su", DRIVER, 0),
        "StartServiceByName of no name": call("StartServiceByName", "su", "..", 0),
        "StartServiceByName with unknown flags": call("StartServiceByName", "su", NOBODY, 0xFFFF),
        "StartServiceByName without flags": call("StartServiceByName", "s", NOBODY),
        "UpdateActivationEnvironment": call("UpdateActivationEnvironment", "a{ss}", {"A": "b"}),
        "UpdateActivationEnvironment of nothing": call("UpdateActivationEnvironment", "a{ss}", {}),
        "UpdateActivationEnvironment of variants": call("UpdateActivationEnvironment", "a{sv}", {}),
        "UpdateActivationEnvironment on another path": call(
            "UpdateActivationEnvironment", "a{ss}", {"A": "b"}, path="/com/example"
        ),
        "UpdateActivationEnvironment of an odd name": call(
            "UpdateActivationEnvironment", "a{ss}", {"A=": "b"}
        ),
        "UpdateActivationEnvironment of an empty name": call(
            "UpdateActivationEnvironment", "a{ss}", {"": "b"}
        ),
        "ReloadConfig": call("ReloadConfig"),
        "ReloadConfig with an argument": call("ReloadConfig", "s", ""),
        "no such method": call("NoSuchMethod"),
        "no such method with an argument": call("NoSuchMethod", "s", "x"),
        "no such method without interface": call("NoSuchMethod", interface=None),
        "no such method on another path": call("NoSuchMethod", path="/com/example"),
        "no such interface": call("GetId", interface="com.example.NoSuchInterface"),
        "no such interface on another path": call("M", interface="com.example.I", path="/com/example"),
        "Verbose.EnableVerbose": call("EnableVerbose", interface=VERBOSE),
        "Ping": call("Ping", interface=PEER),
        "Ping on another path": call("Ping", interface=PEER, path="/com/example"),
        "Ping with an argument": call("Ping", "s", "x", interface=PEER),
        "Ping without interface": call("Ping", interface=None),
        "Ping without destination": call("Ping", interface=PEER, destination=None),
        "GetMachineId": call("GetMachineId", interface=PEER),
        "GetMachineId on the root path": call("GetMachineId", interface=PEER, path="/"),
        "GetMachineId with an argument": call("GetMachineId", "s", "x", interface=PEER),
        "GetMachineId without destination": call("GetMachineId", interface=PEER, destination=None),
        "no such method of Peer": call("Pong", interface=PEER),
        "no destination": call("GetId", destination=None),
        "no destination, no interface": call("GetId", destination=None, interface=None),
        "Introspect with an argument": call("Introspect", "s", "x", interface=INTROSPECTABLE),
        "Get of a bad type": call("Get", "su", DRIVER, 1, interface=PROPERTIES),
        "Get without property": call("Get", "s", DRIVER, interface=PROPERTIES),
        "GetAll without interface": call("GetAll", interface=PROPERTIES),
        "Set without value": call("Set", "ss", DRIVER, "Features", interface=PROPERTIES),
        "no such method of Properties": call("Got", "ss", DRIVER, "Features", interface=PROPERTIES),
        "BecomeMonitor without flags": call("BecomeMonitor", "as", [], interface=MONITORING),
        "BecomeMonitor with flags": call("BecomeMonitor", "asu", [], 1, interface=MONITORING),
        "BecomeMonitor with a bad rule": call("BecomeMonitor", "asu", ["nonsense"], 0, interface=MONITORING),
        "BecomeMonitor with one bad rule of two": call(
            "BecomeMonitor", "asu", ["type='signal'", "arg99='x'"], 0, interface=MONITORING
        ),
        "BecomeMonitor on another path": call(
            "BecomeMonitor", "asu", [], 0, interface=MONITORING, path="/com/example"
        ),
        "GetStats with an argument": call("GetStats", "s", "x", interface=STATS),
        "GetConnectionStats of nobody": call("GetConnectionStats", "s", NOBODY, interface=STATS),
        "GetConnectionStats of the driver": call("GetConnectionStats", "s", DRIVER, interface=STATS),
        "a call to nobody": call("M", destination=NOBODY, interface="com.example.I"),
        "a call to nobody without auto-start": call(
            "M", destination=NOBODY, interface="com.example.I", flags=2
        ),
        "a call to a unique name nobody has": call("M", destination=":1.4711", interface="com.example.I"),
        "a call to an odd unique name": call("M", destination=":odd.name", interface="com.example.I"),
        "a call to the driver with unknown flags": call("GetId", flags=0xF4),
    }
    for member in (
        "GetNameOwner",
        "ListQueuedOwners",
        "GetConnectionUnixUser",
        "GetConnectionUnixProcessID",
        "GetConnectionCredentials",
        "GetAdtAuditSessionData",
        "GetConnectionSELinuxSecurityContext",
    ):
        table[f"{member} of nobody"] = call(member, "s", NOBODY)
        table[f"{member} of a unique name nobody has"] = call(member, "s", ":1.4711")
        table[f"{member} of no name"] = call(member, "s", "no name")
        table[f"{member} of an empty name"] = call(member, "s", "")
        table[f"{member} of the driver"] = call(member, "s", DRIVER)
        table[f"{member} of a number"] = call(member, "i", 7)
        table[f"{member} without argument"] = call(member)
        table[f"{member} of an object path"] = call(member, "o", "/a")
    for interface in (
        DRIVER,
        PEER,
        MONITORING,
        STATS,
        PROPERTIES,
        INTROSPECTABLE,
        "",
        "com.example.I",
        "nonsense",
    ):
        for path in ("/org/freedesktop/DBus", "/", "/com/example"):
            options = {"interface": PROPERTIES, "path": path}
            table[f"GetAll of {interface!r} on {path}"] = call("GetAll", "s", interface, **options)
            table[f"Get of {interface!r} Features on {path}"] = call(
                "Get", "ss", interface, "Features", **options
            )
    for name in ("Features", "Interfaces", "NoSuchProperty", "", "not a name"):
        table[f"Get of {name!r}"] = call("Get", "ss", DRIVER, name, interface=PROPERTIES)
        table[f"Set of {name!r}"] = call("Set", "ssv", DRIVER, name, ("s", "x"), interface=PROPERTIES)
        table[f"Set of {name!r} of an unknown interface"] = call(
            "Set", "ssv", "com.example.I", name, ("s", "x"), interface=PROPERTIES
        )
        table[f"Set of {name!r} on another path"] = call(
            "Set", "ssv", DRIVER, name, ("s", "x"), interface=PROPERTIES, path="/com/example"
        )
    return table


ROWS = rows()


@pytest.mark.parametrize("row", ROWS)
def test_the_driver_answers_a_call_alike(compare_shared: Comparison, row: str) -> None:
    member, signature, arguments, options = ROWS[row]

    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            bus.labels[client.pid] = "client"
            messages = client.call(member, signature, *arguments, **options)
            reply = messages[-1]
            if member in ("ListNames",):
                reply.body[0] = sorted(set(reply.body[0]) & {DRIVER, client.unique_name})
            return [message.describe() for message in messages + client.sync()]

    compare_shared(scenario)


@pytest.mark.parametrize("row", [name for name in ROWS if name not in ("BecomeMonitor with flags",)])
def test_a_driver_call_that_wants_no_reply_is_treated_alike(compare_shared: Comparison, row: str) -> None:
    member, signature, arguments, options = ROWS[row]

    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            client.send_call(member, signature, *arguments, **options | {"flags": NO_REPLY_EXPECTED})
            return [message.describe() for message in client.sync()]

    compare_shared(scenario)
