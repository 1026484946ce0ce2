"""Clients that claim to be more than they are: systemd without its name, or somebody without having said who.

A report that a unit has failed ends the start of a service, so it counts from the owner of systemd's name
alone. An anonymous client is on the bus, and yet nobody: no privileged call is for it, and no user is found
behind its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.bus import BUSPROXYD, Bus, build_session_config, selected_kinds
from support.compare import Comparison
from support.control import running_bus
from support.gate import Gate
from support.raw import METHOD_CALL, SIGNAL, Message, RawClient

pytestmark = pytest.mark.program("dbus-daemon")

ERRORS = "org.freedesktop.DBus.Error."
SYSTEMD = "org.freedesktop.systemd1"
GATED, UNIT = "com.example.Gated", "example-gated.service"


def comparison(**options: Any) -> Iterator[Comparison]:
    """All selected buses, started with these options."""
    with ExitStack() as stack:
        yield Comparison([stack.enter_context(running_bus(kind, **options)) for kind in selected_kinds()])


# Failures of units


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Path]:
    """A directory with one service that is a unit, too, and waits."""
    with Gate(tmp_path) as gate:
        gate.offer(GATED, unit=UNIT)
        yield gate.services


@pytest.fixture
def starting(services: Path) -> Iterator[Bus]:
    """A bus of ours that offers the service; dbus-daemon hears of units with `--systemd-activation` only."""
    with running_bus(BUSPROXYD, servicedir=services) as bus:
        yield bus


def call_service(client: RawClient) -> int:
    return client.send_call("M", destination=GATED, path="/", interface="a.b")


def report_failure(client: RawClient, error_name: str = "com.example.Error") -> None:
    """Say, as systemd would, that the unit has failed."""
    fields = {
        "path": "/org/freedesktop/DBus",
        "interface": f"{SYSTEMD}.Activator",
        "member": "ActivationFailure",
        "destination": "org.freedesktop.DBus",
        "signature": "sss",
    }
    client.send(Message(SIGNAL, fields=fields, body=[UNIT, error_name, "It has failed"]))


def arrived(client: RawClient) -> list[int]:
    """Acquire the service's name; returns the serials of the calls that were held for it."""
    received = client.call("RequestName", "su", GATED, 0) + client.sync()
    return [message.serial for message in received if message.type == METHOD_CALL]


@pytest.mark.parametrize("hello", [False, True], ids=["before Hello", "after Hello"])
@pytest.mark.parametrize("owned", [False, True], ids=["no systemd", "another is systemd"])
def test_nobody_else_can_report_for_systemd(starting: Bus, *, hello: bool, owned: bool) -> None:
    with starting.connect() as caller, starting.connect() as systemd:
        if owned:
            systemd.call("RequestName", "su", SYSTEMD, 0)
        serial = call_service(caller)
        caller.sync()
        with starting.connect(hello=hello) as impostor:
            report_failure(impostor)
            assert impostor.receive().error_name == f"{ERRORS}AccessDenied"
        assert caller.sync() == []
        assert arrived(systemd) == [serial]


def test_the_owner_of_systemds_name_is_believed(starting: Bus) -> None:
    with starting.connect() as caller, starting.connect() as systemd:
        systemd.call("RequestName", "su", SYSTEMD, 0)
        serial = call_service(caller)
        caller.sync()
        report_failure(systemd)
        systemd.sync()
        (answer,) = caller.sync()
        assert (answer.error_name, answer.body) == ("com.example.Error", ["It has failed"])
        assert answer.fields["reply_serial"] == serial
        assert arrived(systemd) == []


@pytest.mark.parametrize(
    "name", ["évil", "", "nodots", "a..b", "a." + "b" * 300], ids=["letters", "empty", "one", "gap", "long"]
)
def test_a_failure_with_a_nonsense_name_is_a_plain_failure(starting: Bus, name: str) -> None:
    with starting.connect() as systemd, starting.connect() as caller:
        systemd.call("RequestName", "su", SYSTEMD, 0)
        serials = {call_service(caller), caller.send_call("StartServiceByName", "su", GATED, 0)}
        caller.sync()
        report_failure(systemd, name)
        assert systemd.sync() == []
        answers = caller.sync()
        assert {answer.error_name for answer in answers} == {f"{ERRORS}Failed"}
        assert {answer.fields["reply_serial"] for answer in answers} == serials
    assert "Traceback" not in starting.stderr_text()


# Anonymous clients


class AnonymousClient(RawClient):
    """A client that says nothing of who it is."""

    def _authenticate(self, *, negotiate_fds: bool) -> None:
        self.socket.sendall(b"\0AUTH ANONYMOUS\r\n")
        assert self._read_line().startswith("OK ")
        self.socket.sendall(b"BEGIN\r\n")


@pytest.fixture
def for_anybody() -> Iterator[Comparison]:
    """Buses that let anonymous clients in."""
    config = build_session_config(Path("{directory}"), extra="<allow_anonymous/>\n")
    yield from comparison(config=config.replace("<auth>", "<auth>ANONYMOUS</auth>\n  <auth>"))


PRIVILEGED: dict[str, Callable[[RawClient], Message]] = {
    "UpdateActivationEnvironment": lambda client: client.reply("UpdateActivationEnvironment", "a{ss}", {}),
    "BecomeMonitor": lambda client: client.reply(
        "BecomeMonitor", "asu", [], 0, interface="org.freedesktop.DBus.Monitoring"
    ),
}


@pytest.mark.parametrize("member", PRIVILEGED)
def test_an_anonymous_client_has_no_privileges(for_anybody: Comparison, member: str) -> None:
    def scenario(bus: Bus) -> Any:
        with AnonymousClient(bus.address) as nobody, bus.connect() as somebody:
            assert PRIVILEGED[member](somebody).error_name is None
            return PRIVILEGED[member](nobody).error_name

    assert for_anybody(scenario) == f"{ERRORS}AccessDenied"


def test_an_anonymous_client_has_no_user(for_anybody: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with AnonymousClient(bus.address) as nobody, bus.connect() as somebody:
            name = nobody.unique_name
            known = somebody.reply("GetConnectionCredentials", "s", name).body[0]
            assert not {"UnixUserID", "UnixGroupIDs", "WindowsSID"} & set(known)
            return somebody.reply("GetConnectionUnixUser", "s", name).error_name

    assert for_anybody(scenario) == f"{ERRORS}Failed"


def test_an_anonymous_client_talks_to_others(for_anybody: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with AnonymousClient(bus.address) as nobody, bus.connect() as somebody:
            nobody.send_call("M", "s", "text", destination=somebody.unique_name, path="/", interface="a.b")
            return somebody.receive().body

    assert for_anybody(scenario) == ["text"]
