"""Services that the bus starts: by a message, by StartServiceByName, and all the ways in which that fails.

The services are real programs, written with the raw client: they own the name they were started for, keep a
list of every call they get, and end when the bus does. Every scenario runs on both buses with the same
service files and is compared, error names and texts included.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bus import Bus, selected_kinds, start_bus
from support.compare import Comparison
from support.raw import (
    DRIVER,
    METHOD_CALL,
    METHOD_RETURN,
    NO_AUTO_START,
    NO_REPLY_EXPECTED,
    SIGNAL,
    Message,
    RawClient,
)

pytestmark = pytest.mark.program("dbus-daemon")

TESTS = Path(__file__).resolve().parents[1]
INTERFACE = "com.example.Service"

SERVICE = f"""
import os, sys
sys.path.insert(0, {str(TESTS)!r})
from support.raw import METHOD_CALL, METHOD_RETURN, NO_REPLY_EXPECTED, Disconnected, Message, RawClient

client = RawClient(os.environ["DBUS_STARTER_ADDRESS"])
if sys.argv[2:] == ["never"]:
    client.sync()
    open(os.environ["XDG_RUNTIME_DIR"] + "/never", "w").write(str(os.getpid()))
elif sys.argv[2:] == ["gated"]:
    client.wait_for_name("com.example.Gate")
if sys.argv[2:] != ["never"]:
    client.reply("RequestName", "su", sys.argv[1], 0)
received = []
try:
    while True:
        message = client.receive()
        if message.fields.get("interface") != "{INTERFACE}":
            continue
        received.append(message.body[0] if message.body else "")
        if message.type != METHOD_CALL or message.flags & NO_REPLY_EXPECTED:
            continue
        signature, body = "as", [list(received)]
        if message.member == "Environment":
            signature, body = "s", [os.environ.get(message.body[0], "<unset>")]
        elif message.member == "Pid":
            signature, body = "u", [os.getpid()]
        sender = message.fields["sender"]
        fields = {{"reply_serial": message.serial, "destination": sender, "signature": signature}}
        client.send(Message(METHOD_RETURN, fields=fields, body=body))
        if message.member == "Quit":
            break
except Disconnected:
    pass
"""

SERVICES = {
    "com.example.Echo": "{python} {script} com.example.Echo",
    "com.example.Gated": "{python} {script} com.example.Gated gated",
    "com.example.Never": "{python} {script} com.example.Never never",
    "com.example.Missing": "/nonexistent/program",
    "com.example.Directory": "/tmp",
    "com.example.Quotes": "/bin/sh -c 'unclosed",
    "com.example.Exit0": "/bin/true",
    "com.example.Exit1": "/bin/false",
    "com.example.Exit7": "/bin/sh -c 'exit 7'",
    "com.example.Killed": "/bin/sh -c 'kill -9 $$'",
}


@pytest.fixture
def service_directory(tmp_path: Path) -> Path:
    """The services as a directory of .service files."""
    directory = tmp_path / "services"
    directory.mkdir()
    script = tmp_path / "service.py"
    script.write_text(SERVICE)
    for name, command in SERVICES.items():
        write_service(directory, name, command.format(python=sys.executable, script=script))
    return directory


def write_service(directory: Path, name: str, command: str, *, file_name: str | None = None) -> None:
    text = f"[D-BUS Service]\nName={name}\nExec={command}\n"
    (directory / f"{file_name or name}.service").write_text(text)


def run_buses(service_directory: Path, extra: str = "") -> Iterator[list[Bus]]:
    buses: list[Bus] = []
    try:
        for kind in selected_kinds():
            buses.append(start_bus(kind, servicedir=service_directory, extra=extra))
        yield buses
    finally:
        for bus in buses:
            bus.stop()


@pytest.fixture
def buses(service_directory: Path) -> Iterator[list[Bus]]:
    """Both buses, with the same services to offer."""
    yield from run_buses(service_directory)


@pytest.fixture
def impatient_buses(service_directory: Path) -> Iterator[list[Bus]]:
    """Both buses; a service has half a second to start."""
    yield from run_buses(service_directory, '<limit name="service_start_timeout">500</limit>')


@pytest.fixture
def same(buses: list[Bus]) -> Comparison:
    return Comparison(buses)


def call_service(client: RawClient, name: str, member: str = "Call", *arguments: Any, flags: int = 0) -> int:
    signature = "s" * len(arguments)
    return client.send_call(
        member, signature, *arguments, destination=name, path="/", interface=INTERFACE, flags=flags
    )


def reply_to(client: RawClient, serial: int) -> Message:
    *_, reply = client.until_reply(serial)
    return reply


def replies_to(client: RawClient, serials: list[int]) -> list[Message]:
    """The replies to several calls, by the order of the calls, whatever order they come in."""
    found: dict[int, Message] = {}
    while len(found) < len(serials):
        message = client.receive()
        if message.fields.get("reply_serial") in serials:
            found[message.fields["reply_serial"]] = message
    return [found[serial] for serial in serials]


def calls_on_acquiring(client: RawClient, name: str) -> list[Message]:
    """Acquire a name; returns the calls that were held for it."""
    received = client.call("RequestName", "su", name, 0) + client.sync()
    return [message for message in received if message.type == METHOD_CALL]


def shown(reply: Message) -> Any:
    """A reply as it is compared: an error with its text."""
    return [reply.error_name, reply.body]


# Starting


def test_a_call_starts_the_service_and_is_answered(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            return shown(reply_to(client, call_service(client, "com.example.Echo", "Call", "first")))

    assert same(scenario) == [None, [["first"]]]


def test_held_messages_come_in_order_and_before_later_ones(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as one, bus.connect() as two:
            for number in range(6):
                client = (one, two)[number % 2]
                call_service(client, "com.example.Gated", "Call", f"held {number}", flags=NO_REPLY_EXPECTED)
                client.sync()
            assert not one.reply("NameHasOwner", "s", "com.example.Gated").body[0]
            one.call("RequestName", "su", "com.example.Gate", 0)
            two.wait_for_name("com.example.Gated")
            return shown(reply_to(two, call_service(two, "com.example.Gated", "Call", "later")))

    assert same(scenario) == [None, [[*(f"held {number}" for number in range(6)), "later"]]]


def test_a_held_signal_is_delivered(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            fields = {
                "path": "/",
                "interface": INTERFACE,
                "member": "Signal",
                "destination": "com.example.Echo",
                "signature": "s",
            }
            client.send(Message(SIGNAL, fields=fields, body=["signal"]))
            return shown(reply_to(client, call_service(client, "com.example.Echo", "Call", "call")))

    assert same(scenario) == [None, [["signal", "call"]]]


def test_a_message_that_forbids_it_starts_nothing(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            serial = call_service(client, "com.example.Echo", "Call", flags=NO_AUTO_START)
            reply = reply_to(client, serial)
            return [shown(reply), client.reply("NameHasOwner", "s", "com.example.Echo").body]

    assert same(scenario)[0][0] == "org.freedesktop.DBus.Error.NameHasNoOwner"


def test_a_running_service_gets_also_what_forbids_a_start(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            reply_to(client, call_service(client, "com.example.Echo"))
            serial = call_service(client, "com.example.Echo", "Call", "x", flags=NO_AUTO_START)
            return shown(reply_to(client, serial))

    assert same(scenario) == [None, [["", "x"]]]


def test_a_service_that_has_ended_is_started_anew(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            first = reply_to(client, call_service(client, "com.example.Echo", "Pid")).body
            reply_to(client, call_service(client, "com.example.Echo", "Quit"))
            client.wait_for_name_lost("com.example.Echo")
            second = reply_to(client, call_service(client, "com.example.Echo", "Pid")).body
            return first != second

    assert same(scenario) is True


def test_one_start_serves_everybody_who_waits(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as one, bus.connect() as two:
            serials = [
                (client, call_service(client, "com.example.Echo", "Pid")) for client in (one, two, one)
            ]
            pids = {reply_to(client, serial).body[0] for client, serial in serials}
            return len(pids)

    assert same(scenario) == 1


def test_start_service_by_name_says_what_it_did(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            return [
                shown(client.reply("StartServiceByName", "su", name, 0))
                for name in ("com.example.Echo", "com.example.Echo", "com.example.Nobody", DRIVER, "nonsense")
            ]

    results = same(scenario)
    assert [result[1] for result in results[:2]] == [[1], [2]]
    assert results[2][0] == "org.freedesktop.DBus.Error.ServiceUnknown"


def test_two_who_ask_for_the_same_start_are_both_answered(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as one, bus.connect() as two:
            serials = [
                (client, client.send_call("StartServiceByName", "su", "com.example.Gated", 0))
                for client in (one, two)
            ]
            two.reply("GetId")
            one.call("RequestName", "su", "com.example.Gate", 0)
            return [reply_to(client, serial).body for client, serial in serials]

    assert same(scenario) == [[1], [1]]


def test_what_is_offered_is_listed(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            return sorted(client.reply("ListActivatableNames").body[0])

    assert same(scenario) == sorted([*SERVICES, DRIVER])


def test_any_client_may_be_the_service(same: Comparison) -> None:
    """The name counts, not the process: the held call goes to whoever acquires it."""

    def scenario(bus: Bus) -> Any:
        with bus.connect() as caller, bus.connect() as other:
            serial = call_service(caller, "com.example.Gated", "Call", "x")
            caller.sync()
            (held,) = calls_on_acquiring(other, "com.example.Gated")
            fields = {"reply_serial": held.serial, "destination": caller.unique_name}
            other.send(Message(METHOD_RETURN, fields=fields))
            return [held.body, held.fields["destination"], shown(reply_to(caller, serial))]

    assert same(scenario) == [["x"], "com.example.Gated", [None, []]]


# Failing


FAILURES = [name for name in SERVICES if name.rpartition(".")[2] not in ("Echo", "Gated", "Never", "Exit0")]


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("way", ["call", "StartServiceByName", "both"])
def test_a_start_that_fails_is_explained_to_everybody_who_waits(
    same: Comparison, name: str, way: str
) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            serials = []
            if way != "call":
                serials.append(client.send_call("StartServiceByName", "su", name, 0))
            if way != "StartServiceByName":
                serials.append(call_service(client, name))
            return [shown(reply) for reply in replies_to(client, serials)]

    for error_name, _ in same(scenario):
        assert error_name.startswith("org.freedesktop.DBus.Error.")


def test_a_failed_start_can_be_tried_again(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            return [shown(reply_to(client, call_service(client, "com.example.Exit1"))) for _ in range(3)]

    results = same(scenario)
    assert results[0] == results[1] == results[2]


def test_nobody_is_told_of_a_failed_start_who_did_not_ask(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client, bus.connect() as other:
            reply_to(client, call_service(client, "com.example.Exit1"))
            serial = call_service(client, "com.example.Exit7", "Call", flags=NO_REPLY_EXPECTED)
            asked = client.reply("StartServiceByName", "su", "com.example.Exit7", 0)
            return [
                shown(asked),
                [shown(m) for m in client.sync() if m.fields.get("reply_serial") == serial],
                [message.describe() for message in other.sync()],
            ]

    same(scenario)


@pytest.mark.parametrize("name", ["com.example.Never", "com.example.Exit0"])
def test_a_service_that_does_not_come_in_time_is_given_up(impatient_buses: list[Bus], name: str) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            serials = [
                call_service(client, name),
                client.send_call("StartServiceByName", "su", name, 0),
                call_service(client, name),
            ]
            return [shown(reply) for reply in replies_to(client, serials)]

    results = Comparison(impatient_buses)(scenario)
    assert {result[0] for result in results} == {"org.freedesktop.DBus.Error.TimedOut"} or name.endswith("0")


def test_the_process_of_a_service_that_was_given_up_is_ended(impatient_buses: list[Bus]) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client, bus.connect() as watcher:
            watcher.call("AddMatch", "s", "member='NameOwnerChanged'")
            serial = call_service(client, "com.example.Never")
            while not (bus.directory / "never").exists():
                watcher.sync()
            text = ""
            while not text:
                text = (bus.directory / "never").read_text()
            pidfd = os.pidfd_open(int(text))
            try:
                error = reply_to(client, serial).error_name
                return [error, bool(select.select([pidfd], [], [], 5)[0])]
            finally:
                os.close(pidfd)

    assert Comparison(impatient_buses)(scenario) == ["org.freedesktop.DBus.Error.TimedOut", True]


# Going away meanwhile


def test_a_caller_that_vanishes_leaves_nothing_behind(buses: list[Bus]) -> None:
    for bus in buses:
        before = bus.count_fds_besides()
        with bus.connect() as other:
            with bus.connect() as caller:
                reader, writer = os.pipe()
                fields = {
                    "path": "/",
                    "interface": INTERFACE,
                    "member": "Call",
                    "destination": "com.example.Gated",
                    "signature": "s",
                    "unix_fds": 1,
                }
                caller.send(Message(METHOD_CALL, fields=fields, body=["vanished"]), [reader])
                os.close(reader)
                os.close(writer)
                caller.send_call("StartServiceByName", "su", "com.example.Gated", 0)
                caller.sync()
            other.wait_for_name_lost(caller.unique_name)
            call_service(other, "com.example.Gated", "Call", "kept", flags=NO_REPLY_EXPECTED)
            other.call("RequestName", "su", "com.example.Gate", 0)
            other.wait_for_name("com.example.Gated")
            serial = call_service(other, "com.example.Gated", "Quit", "last")
            assert reply_to(other, serial).body == [["kept", "last"]]
            other.wait_for_name_lost("com.example.Gated")
        assert bus.settle_fds(before) == before


def test_descriptors_of_a_held_message_arrive(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as caller, bus.connect() as other:
            reader, writer = os.pipe()
            wanted = os.fstat(reader).st_ino
            fields = {
                "path": "/",
                "interface": INTERFACE,
                "member": "Call",
                "destination": "com.example.Gated",
                "signature": "h",
                "unix_fds": 1,
            }
            caller.send(Message(METHOD_CALL, fields=fields, body=[0]), [reader])
            os.close(reader)
            os.close(writer)
            caller.sync()
            calls_on_acquiring(other, "com.example.Gated")
            (received,) = other.take_fds(1)
            arrived = os.fstat(received).st_ino
            os.close(received)
            return arrived == wanted

    assert same(scenario) is True


# The environment


def test_a_service_knows_which_bus_has_started_it(buses: list[Bus]) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            values = {
                name: reply_to(client, call_service(client, "com.example.Echo", "Environment", name)).body[0]
                for name in (
                    "DBUS_STARTER_ADDRESS",
                    "DBUS_STARTER_BUS_TYPE",
                    "DBUS_SESSION_BUS_ADDRESS",
                    "DBUS_SYSTEM_BUS_ADDRESS",
                    "LISTEN_FDS",
                    "TZ",
                )
            }
        assert values["DBUS_STARTER_ADDRESS"] == bus.address
        return values

    Comparison(buses)(scenario)


def test_a_service_gets_no_descriptors_of_the_bus(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            pid = reply_to(client, call_service(client, "com.example.Echo", "Pid")).body[0]
            inside = os.listdir(f"/proc/{pid}/fd")
            targets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in inside if int(fd) < 3}
            assert len(inside) == 4, "the three standard ones and its connection"
            return "/dev/null" in targets

    assert same(scenario) is True


def test_the_environment_for_services_can_be_updated(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            update = {"EXAMPLE_VARIABLE": "new value", "TZ": "Europe/Vienna"}
            answer = client.reply("UpdateActivationEnvironment", "a{ss}", update)
            values = [
                reply_to(client, call_service(client, "com.example.Echo", "Environment", name)).body[0]
                for name in update
            ]
            return [shown(answer), values]

    assert same(scenario) == [[None, []], ["new value", "Europe/Vienna"]]


def test_variables_that_no_environment_can_hold_do_not_stop_services(same: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            client.reply("UpdateActivationEnvironment", "a{ss}", {"": "nameless"})
            client.reply("UpdateActivationEnvironment", "a{ss}", {"A=B": "equals"})
            return shown(reply_to(client, call_service(client, "com.example.Echo", "Call", "x")))

    assert same(scenario) == [None, [["x"]]]


# Service files that come, go or are wrong


@pytest.mark.parametrize("name", ["nonsense", "", ":1.5", "com..example", DRIVER, "com.example.1"])
def test_a_service_file_with_a_useless_name_does_no_harm(service_directory: Path, name: str) -> None:
    write_service(service_directory, name, "/bin/true", file_name="useless")

    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            return shown(reply_to(client, call_service(client, "com.example.Echo", "Call", "x")))

    for buses in run_buses(service_directory):
        assert Comparison(buses)(scenario) == [None, [["x"]]]


def test_a_new_service_is_found_after_a_reload(same: Comparison, service_directory: Path) -> None:
    def scenario(bus: Bus) -> Any:
        (service_directory / "com.example.Late.service").unlink(missing_ok=True)
        with bus.connect() as client:
            client.call("ReloadConfig")
            client.call("AddMatch", "s", "member='ActivatableServicesChanged'")
            before = "com.example.Late" in client.reply("ListActivatableNames").body[0]
            write_service(service_directory, "com.example.Late", "/bin/false")
            client.call("ReloadConfig")
            after = "com.example.Late" in client.reply("ListActivatableNames").body[0]
            error = shown(reply_to(client, call_service(client, "com.example.Late")))
            return [before, after, error]

    results = same(scenario)
    assert results[:2] == [False, True]


def test_a_service_file_that_goes_and_comes_back_while_its_service_starts(
    same: Comparison, service_directory: Path
) -> None:
    def scenario(bus: Bus) -> Any:
        write_service(service_directory, "com.example.Back", SERVICES["com.example.Exit0"])
        with bus.connect() as caller, bus.connect() as other:
            other.call("ReloadConfig")
            serial = call_service(caller, "com.example.Back", "Call", "held")
            caller.sync()
            (service_directory / "com.example.Back.service").unlink()
            other.call("ReloadConfig")
            write_service(service_directory, "com.example.Back", SERVICES["com.example.Exit0"])
            other.call("ReloadConfig")
            held = calls_on_acquiring(other, "com.example.Back")
            for message in held:
                fields = {"reply_serial": message.serial, "destination": caller.unique_name}
                other.send(Message(METHOD_RETURN, fields=fields))
            return [len(held), shown(reply_to(caller, serial)) if held else None, bool(caller.reply("GetId"))]

    assert same(scenario)[0] == 1


def test_too_many_starts_at_once_are_refused(service_directory: Path) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            first = call_service(client, "com.example.Gated")
            second = reply_to(client, call_service(client, "com.example.Echo"))
            client.call("RequestName", "su", "com.example.Gate", 0)
            return [shown(second), shown(reply_to(client, first))]

    extra = '<limit name="max_pending_service_starts">1</limit>'
    for buses in run_buses(service_directory, extra):
        assert Comparison(buses)(scenario)[0][0] == "org.freedesktop.DBus.Error.LimitsExceeded"
