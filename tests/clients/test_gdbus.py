"""The gdbus tool (GLib's GDBus) on both buses: call, introspect, emit, monitor, wait.

GDBus opens with a bare AUTH, expects NameAcquired right after Hello, and watches names with matches on
NameOwnerChanged. The service is the one written with GDBus where this machine has PyGObject's package.
"""

from __future__ import annotations

import signal
from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.programs import Child, run
from support.services import GDBUS, INTERFACE, NEXT, PATH, start_service

pytestmark = pytest.mark.program("gdbus", "dbus-daemon")

DRIVER = ["--dest", "org.freedesktop.DBus", "--object-path", "/org/freedesktop/DBus"]
SERVICE = ["--dest", NEXT, "--object-path", PATH]

CALLS = {
    "list names": [*DRIVER, "--method", "org.freedesktop.DBus.ListNames"],
    "machine id": [*DRIVER, "--method", "org.freedesktop.DBus.Peer.GetMachineId"],
    "ping": [*SERVICE, "--method", "org.freedesktop.DBus.Peer.Ping"],
    "byte": [*SERVICE, "--method", f"{INTERFACE}.EchoByte", "200"],
    "boolean": [*SERVICE, "--method", f"{INTERFACE}.EchoBoolean", "true"],
    "int16": [*SERVICE, "--method", f"{INTERFACE}.EchoInt16", "--", "-5"],
    "uint64": [*SERVICE, "--method", f"{INTERFACE}.EchoUint64", "18000000000000000000"],
    "double": [*SERVICE, "--method", f"{INTERFACE}.EchoDouble", "2.5"],
    "string": [*SERVICE, "--method", f"{INTERFACE}.EchoString", "Grüße"],
    "path": [*SERVICE, "--method", f"{INTERFACE}.EchoObjectPath", "/a/b"],
    "signature": [*SERVICE, "--method", f"{INTERFACE}.EchoSignature", "a{sv}"],
    "variant": [*SERVICE, "--method", f"{INTERFACE}.EchoVariant", "<(1, 'two', [<true>])>"],
    "bytes": [*SERVICE, "--method", f"{INTERFACE}.EchoBytes", "[byte 1, 2, 255]"],
    "strings": [*SERVICE, "--method", f"{INTERFACE}.EchoStrings", "['a', 'b']"],
    "dict": [*SERVICE, "--method", f"{INTERFACE}.EchoDict", "{'a': <1>, 'b': <'x'>}"],
    "struct": [*SERVICE, "--method", f"{INTERFACE}.EchoStruct", "(1, 'x', [0.5, 1.5])"],
    "several": [*SERVICE, "--method", f"{INTERFACE}.EchoSeveral", "1", "x", "[(1, true)]"],
    "nothing": [*SERVICE, "--method", f"{INTERFACE}.Nothing"],
    "properties": [*SERVICE, "--method", "org.freedesktop.DBus.Properties.GetAll", INTERFACE],
}

FAILURES = {
    "nobody": ["--dest", "com.example.Nobody", "--object-path", "/", "--method", "com.example.I.M"],
    "unknown method": [*DRIVER, "--method", "org.freedesktop.DBus.NoSuchMethod"],
    "no owner": [*DRIVER, "--method", "org.freedesktop.DBus.GetNameOwner", "com.example.Nobody"],
    "service error": [*SERVICE, "--method", f"{INTERFACE}.Fail", "on purpose"],
    "wrong type": [*DRIVER, "--method", "org.freedesktop.DBus.GetNameOwner", "5"],
    "another interface": [*SERVICE, "--method", "com.example.I.M"],
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_answered_alike(compare: Comparison, name: str) -> None:
    def scenario(bus: Bus) -> str:
        with start_service(bus):
            return run(bus, "gdbus", "call", "--session", *CALLS[name]).stdout

    assert compare(scenario)


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_is_shown_alike(compare: Comparison, name: str) -> None:
    def scenario(bus: Bus) -> str:
        with start_service(bus):
            return run(bus, "gdbus", "call", "--session", *FAILURES[name], status=1).stderr

    assert "Error" in compare(scenario)


@pytest.mark.program("python:gi")
def test_a_gdbus_service_is_introspected_and_called(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        target = ["--session", "--dest", GDBUS, "--object-path", PATH]
        with start_service(bus, GDBUS):
            return [
                run(bus, "gdbus", "introspect", *target).stdout,
                run(bus, "gdbus", "introspect", *target, "--xml").stdout,
                run(bus, "gdbus", "introspect", *target, "--only-properties").stdout,
                run(bus, "gdbus", "call", *target, "--method", f"{INTERFACE}.EchoString", "x").stdout,
            ]

    results = compare(scenario)
    assert "EchoString" in results[0]
    assert results[3] == "('x',)\n"


@pytest.mark.parametrize("target", [SERVICE, DRIVER], ids=["service", "driver"])
def test_introspect_prints_the_same_tree(compare: Comparison, target: list[str]) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus):
            return [
                run(bus, "gdbus", "introspect", "--session", *target).stdout,
                run(bus, "gdbus", "introspect", "--session", *target[:3], "/", "--recurse").stdout,
            ]

    assert "interface" in compare(scenario)[0]


def test_emit_reaches_subscribers_and_a_single_addressee(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        emit = ["gdbus", "emit", "--session", "--object-path", "/a", "--signal", "com.example.I.S"]
        with bus.connect() as subscriber, bus.connect() as addressee:
            subscriber.call("AddMatch", "s", "interface='com.example.I'")
            run(bus, *emit, "'x'", "{'k': <uint32 7>}")
            run(bus, *emit, "--dest", addressee.unique_name, "'for you'")
            return [subscriber.receive().describe(), addressee.receive().describe()]

    broadcast, unicast = compare(scenario)
    assert broadcast["body"][0] == "x"
    assert unicast["body"] == ["for you"]


def test_monitor_prints_a_services_signals_and_its_end(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with (
            start_service(bus) as service,
            Child(bus, "gdbus", "monitor", "--session", "--dest", NEXT) as monitor,
        ):
            monitor.wait_for(r"is owned by")
            run(bus, "gdbus", "call", "--session", *SERVICE, "--method", f"{INTERFACE}.Say", "hello")
            monitor.wait_for(r"Said \('hello'")
            service.stop()
            monitor.wait_for(r"does not have an owner")
            return monitor.stop(signal.SIGINT).stdout

    assert "Said ('hello',)" in compare(scenario)


def test_monitor_of_one_object_prints_only_its_signals(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with (
            start_service(bus),
            Child(bus, "gdbus", "monitor", "--session", "--dest", NEXT, "--object-path", PATH) as monitor,
        ):
            monitor.wait_for(r"is owned by")
            change = "org.freedesktop.DBus.Properties.Set"
            run(bus, "gdbus", "call", "--session", *SERVICE, "--method", change, INTERFACE, "Text", "<'new'>")
            monitor.wait_for(r"PropertiesChanged")
            return monitor.stop(signal.SIGINT).stdout

    assert "PropertiesChanged" in compare(scenario)


def test_wait_ends_when_the_name_appears(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with (
            bus.connect() as observer,
            Child(bus, "gdbus", "wait", "--session", "--timeout", "25", NEXT) as waiting,
        ):
            wait_for_rule(observer, NEXT)
            with start_service(bus):
                outcome = waiting.wait()
        assert outcome.status == 0
        return [outcome.stdout, outcome.stderr]

    compare(scenario)


def wait_for_rule(observer: Any, text: str) -> None:
    """Wait until some client has a match rule with that text; the bus's own statistics tell."""
    stats = "org.freedesktop.DBus.Debug.Stats"
    while True:
        rules = observer.reply("GetAllMatchRules", interface=stats).body[0]
        if any(
            text in rule for owner, owned in rules.items() if owner != observer.unique_name for rule in owned
        ):
            return


def test_wait_for_a_name_that_is_there_ends_at_once(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus):
            outcome = run(bus, "gdbus", "wait", "--session", NEXT)
        return [outcome.stdout, outcome.stderr]

    compare(scenario)


def test_wait_for_a_name_that_never_comes_times_out(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        outcome = run(bus, "gdbus", "wait", "--session", "--timeout", "1", "com.example.Never", status=1)
        return [outcome.stdout, outcome.stderr]

    compare(scenario)
