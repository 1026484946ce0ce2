"""Programs that people use, unchanged, with a native service on the bus; and a native program with theirs.

What a library's client finds must not depend on which kind its callee is of: its scenarios run against the
native service and against the library's own, on the same bus, and have to end the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from support.mixed import KINDS, MixedBus, MixedBuses
from support.native_peer import NativePeer
from support.native_programs import start_native
from support.programs import Child, run
from support.scripts import run_script
from support.services import GDBUS, INTERFACE, NEXT, PATH, start_service

NATIVE_SERVICE = "com.example.Native"


@pytest.fixture(scope="module")
def buses() -> Iterator[MixedBuses]:
    with MixedBuses() as buses:
        yield buses


@pytest.fixture(params=KINDS)
def mixed(request: pytest.FixtureRequest, buses: MixedBuses) -> MixedBus:
    return buses[request.param]


@pytest.fixture
def native_service(mixed: MixedBus, buses: MixedBuses) -> Child:
    return buses.program(mixed, start_native_service)


def start_native_service(mixed: MixedBus) -> Child:
    return start_native(mixed, "service.py", NATIVE_SERVICE)


def with_both(mixed: MixedBus, name: str, run_scenario: Callable[[], Any]) -> list[Any]:
    """What a scenario finds with the native service under a name, and with the library's own."""
    starts: list[Callable[[], AbstractContextManager[Child]]] = [
        lambda: start_native(mixed, "service.py", name),
        lambda: start_service(mixed.legacy, name),
    ]
    results = []
    for start in starts:
        with start():
            results.append(run_scenario())
        with mixed.connect() as witness:
            witness.wait_for_name_lost(name)
    return results


@pytest.mark.parametrize("scenario", ["calls", "concurrent", "fds"])
def test_dbus_next_cannot_tell_a_native_service_from_its_own(mixed: MixedBus, scenario: str) -> None:
    ours, theirs = with_both(
        mixed, NEXT, lambda: run_script(mixed.legacy, "client_asyncio.py", "dbus_next", scenario)
    )
    assert ours == theirs


@pytest.mark.program("python:gi")
@pytest.mark.parametrize("scenario", ["calls", "fds"])
def test_gdbus_cannot_tell_a_native_service_from_its_own(mixed: MixedBus, scenario: str) -> None:
    ours, theirs = with_both(
        mixed,
        GDBUS,
        lambda: run_script(mixed.legacy, "client_pygobject.py", scenario, system_python=True),
    )
    if scenario == "calls":
        for place in (5, 6):  # each library has its own words for what is not there
            assert [found[place][0] for found in (ours, theirs)] == ["error", "error"]
            ours[place] = theirs[place] = None
    assert ours == theirs


@pytest.mark.program("dbus-send")
@pytest.mark.usefixtures("native_service")
def test_dbus_send_calls_a_native_service(mixed: MixedBus) -> None:
    words = ["dbus-send", "--session", "--print-reply=literal", f"--dest={NATIVE_SERVICE}", PATH]
    assert run(mixed.legacy, *words, f"{INTERFACE}.EchoString", "string:x y").stdout.strip() == "x y"
    failed = run(mixed.legacy, *words, f"{INTERFACE}.Fail", "string:no", status=1)
    assert failed.stderr.strip() == "Error com.example.Error.Failed: no"


@pytest.mark.program("gdbus")
@pytest.mark.usefixtures("native_service")
def test_gdbus_finds_its_way_through_a_native_service(mixed: MixedBus) -> None:
    words = ["gdbus", "call", "--session", f"--dest={NATIVE_SERVICE}", f"--object-path={PATH}"]
    called = run(mixed.legacy, *words, f"--method={INTERFACE}.EchoDict", "{'k': <uint32 7>}")
    assert called.stdout.strip() == "({'k': <uint32 7>},)"
    described = run(
        mixed.legacy, "gdbus", "introspect", "--session", f"--dest={NATIVE_SERVICE}", f"--object-path={PATH}"
    )
    assert f"interface {INTERFACE}" in described.stdout


@pytest.mark.program("busctl")
@pytest.mark.usefixtures("native_service")
def test_busctl_calls_a_native_service_and_shows_who_it_is(mixed: MixedBus, native_service: Child) -> None:
    words = ["busctl", f"--address={mixed.legacy.address}"]
    where = [NATIVE_SERVICE, PATH, INTERFACE]
    called = run(mixed.legacy, *words, "call", *where, "EchoStrings", "as", "2", "a", "b")
    assert called.stdout.strip() == 'as 2 "a" "b"'
    got = run(mixed.legacy, *words, "get-property", *where, "Count")
    assert got.stdout.strip() == "u 7"
    listed = run(mixed.legacy, *words, "list", "--no-legend").stdout
    (line,) = [line for line in listed.splitlines() if line.startswith(f"{NATIVE_SERVICE} ")]
    assert line.split()[1] == str(native_service.process.pid)


@pytest.mark.program("python:gi")
def test_a_native_program_talks_to_a_gdbus_service(mixed: MixedBus) -> None:
    def ask(native: NativePeer, name: str, member: str, *arguments: Any, **how: Any) -> Any:
        return native.call(name, member, *arguments, **{"path": PATH, "interface": INTERFACE, **how})

    with start_service(mixed.legacy, GDBUS), mixed.join() as native:
        assert ask(native, GDBUS, "EchoDict", "a{sv}", {"k": ("u", 7)}).values == ({"k": ("u", 7)},)
        assert ask(native, GDBUS, "EchoStruct", "(isad)", (1, "x", [0.5])).values == ((1, "x", [0.5]),)
        reply = ask(native, GDBUS, "Fail", "s", "on purpose")
        assert (reply.error_name, reply.values) == ("com.example.Error.Failed", ("on purpose",))
        how = {"interface": "org.freedesktop.DBus.Properties"}
        assert ask(native, GDBUS, "Get", "ss", INTERFACE, "Count", **how).values == (("u", 7),)
