"""qdbus (QtDBus) on both buses: listing services, objects and methods, calling, properties.

QtDBus is libdbus with a thread of its own; it watches the owner of every service it talks to.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.programs import run
from support.services import INTERFACE, NEXT, PATH, start_service

pytestmark = pytest.mark.program("qdbus", "dbus-daemon")

DRIVER = "org.freedesktop.DBus"

COMMANDS = {
    "the bus's objects": [DRIVER],
    "the service's objects": [NEXT],
    "the service's methods": [NEXT, PATH],
    "a call": [NEXT, PATH, f"{INTERFACE}.EchoString", "Grüße"],
    "a call with a number": [NEXT, PATH, f"{INTERFACE}.EchoInt32", "-5"],
    "a call with a boolean": [NEXT, PATH, f"{INTERFACE}.EchoBoolean", "true"],
    "a call with a list": [NEXT, PATH, f"{INTERFACE}.EchoStrings", "(", "a", "b", ")"],
    "a call without result": [NEXT, PATH, f"{INTERFACE}.Nothing"],
    "a property": [NEXT, PATH, f"{INTERFACE}.Text"],
    "a bus property": [DRIVER, "/org/freedesktop/DBus", f"{DRIVER}.Features"],
    "the bus's id": [DRIVER, "/org/freedesktop/DBus", f"{DRIVER}.GetId"],
    "names": [DRIVER, "/org/freedesktop/DBus", f"{DRIVER}.NameHasOwner", NEXT],
    "literal output": ["--literal", NEXT, PATH, f"{INTERFACE}.EchoStrings", "(", "a", "b", ")"],
}

FAILURES = {
    "the bus's methods": [DRIVER, "/org/freedesktop/DBus"],
    "nobody": ["com.example.Nobody"],
    "nobody's object": ["com.example.Nobody", "/"],
    "an error": [NEXT, PATH, f"{INTERFACE}.Fail", "on purpose"],
    "no such method": [NEXT, PATH, f"{INTERFACE}.NoSuchMethod"],
    "no such bus method": [DRIVER, "/", f"{DRIVER}.NoSuchMethod"],
    "no owner": [DRIVER, "/", f"{DRIVER}.GetNameOwner", "com.example.Nobody"],
}


def run_qdbus(bus: Bus, *arguments: str, status: int | None = 0) -> Any:
    """Run qdbus; returns its status and output."""
    outcome = run(bus, "qdbus", *arguments, status=status)
    return [outcome.status, outcome.stdout, outcome.stderr]


def test_services_are_listed_alike(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus):
            return run_qdbus(bus)

    assert NEXT in compare(scenario)[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_same_result(compare: Comparison, name: str) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus):
            return run_qdbus(bus, *COMMANDS[name])

    compare(scenario)


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_shown_alike(compare: Comparison, name: str) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus):
            result = run_qdbus(bus, *FAILURES[name], status=None)
        assert result[0] != 0
        return result

    compare(scenario)


def test_a_property_is_set(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        setter = "org.freedesktop.DBus.Properties.Set"
        with start_service(bus):
            return [
                run_qdbus(bus, NEXT, PATH, setter, INTERFACE, "Text", "new"),
                run_qdbus(bus, NEXT, PATH, f"{INTERFACE}.Text"),
            ]

    assert compare(scenario)[1][1] == "new\n"
