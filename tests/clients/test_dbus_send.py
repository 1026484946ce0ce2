"""dbus-send on both buses: every argument type, replies, errors, signals and options.

dbus-send is libdbus in its simplest form; it talks here to the dbus-next service and to the bus itself.
"""

from __future__ import annotations

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.programs import Child, run
from support.services import INTERFACE, NEXT, PATH, start_service

pytestmark = pytest.mark.program("dbus-send", "dbus-daemon")

DRIVER = ("--dest=org.freedesktop.DBus", "/org/freedesktop/DBus")

ARGUMENTS = [
    ("EchoByte", ["byte:200"]),
    ("EchoBoolean", ["boolean:true"]),
    ("EchoInt16", ["int16:-12345"]),
    ("EchoUint16", ["uint16:54321"]),
    ("EchoInt32", ["int32:-2000000000"]),
    ("EchoUint32", ["uint32:4000000000"]),
    ("EchoInt64", ["int64:-9000000000000000000"]),
    ("EchoUint64", ["uint64:18000000000000000000"]),
    ("EchoDouble", ["double:2.5"]),
    ("EchoString", ["string:Grüße ✓"]),
    ("EchoString", ["string:"]),
    ("EchoObjectPath", ["objpath:/a/b"]),
    ("EchoVariant", ["variant:int32:-5"]),
    ("EchoVariant", ["variant:string:x"]),
    ("EchoBytes", ["array:byte:1,2,255"]),
    ("EchoStrings", ["array:string:a,b,c"]),
    ("Nothing", []),
]


@pytest.mark.parametrize(("member", "arguments"), ARGUMENTS, ids=lambda value: str(value).replace("/", "|"))
def test_a_call_with_each_argument_type_is_answered_alike(
    compare: Comparison, member: str, arguments: list[str]
) -> None:
    def scenario(bus: Bus) -> str:
        with start_service(bus):
            outcome = run(
                bus,
                "dbus-send",
                "--print-reply=literal",
                f"--dest={NEXT}",
                PATH,
                f"{INTERFACE}.{member}",
                *arguments,
            )
        return outcome.stdout

    compare(scenario)


def test_print_reply_shows_who_answered_whom(compare: Comparison) -> None:
    def scenario(bus: Bus) -> list[str]:
        with start_service(bus):
            outcome = run(
                bus,
                "dbus-send",
                "--print-reply",
                f"--dest={NEXT}",
                PATH,
                f"{INTERFACE}.EchoString",
                "string:x",
            )
        assert '   string "x"' in outcome.lines
        first, *rest = outcome.lines
        return [first.partition(" time=")[0], first.partition(" sender=")[2], *rest]

    compare(scenario)


DRIVER_CALLS = {
    "list-names": ("ListNames", []),
    "get-id": ("GetId", []),
    "list-activatable": ("ListActivatableNames", []),
    "owner-of-driver": ("GetNameOwner", ["string:org.freedesktop.DBus"]),
    "has-owner": ("NameHasOwner", ["string:com.example.Nobody"]),
    "user-of-driver": ("GetConnectionUnixUser", ["string:org.freedesktop.DBus"]),
    "request-name": ("RequestName", ["string:com.example.Mine", "uint32:0"]),
    "update-environment": ("UpdateActivationEnvironment", ["dict:string:string:A,b"]),
    "reload": ("ReloadConfig", []),
}


@pytest.mark.parametrize("call", DRIVER_CALLS)
def test_the_bus_answers_dbus_send(compare: Comparison, call: str) -> None:
    member, arguments = DRIVER_CALLS[call]

    def scenario(bus: Bus) -> str:
        return run(
            bus, "dbus-send", "--print-reply=literal", *DRIVER, f"org.freedesktop.DBus.{member}", *arguments
        ).stdout

    compare(scenario)


FAILING_CALLS = {
    "start-driver": [
        *DRIVER,
        "org.freedesktop.DBus.StartServiceByName",
        "string:org.freedesktop.DBus",
        "uint32:0",
    ],
    "unknown-name": ["--dest=com.example.Nobody", "/", "com.example.I.M"],
    "unknown-unique-name": ["--dest=:1.4711", "/", "com.example.I.M"],
    "unknown-method": [*DRIVER, "org.freedesktop.DBus.NoSuchMethod"],
    "unknown-interface": [*DRIVER, "com.example.NoSuchInterface.M"],
    "wrong-arguments": [*DRIVER, "org.freedesktop.DBus.GetNameOwner", "int32:1"],
    "no-arguments": [*DRIVER, "org.freedesktop.DBus.GetNameOwner"],
    "no-owner": [*DRIVER, "org.freedesktop.DBus.GetNameOwner", "string:com.example.Nobody"],
    "invalid-name": [*DRIVER, "org.freedesktop.DBus.RequestName", "string:x", "uint32:0"],
    "unique-name-request": [*DRIVER, "org.freedesktop.DBus.RequestName", "string::1.5", "uint32:0"],
    "driver-name-request": [
        *DRIVER,
        "org.freedesktop.DBus.RequestName",
        "string:org.freedesktop.DBus",
        "uint32:0",
    ],
    "service-error": [f"--dest={NEXT}", PATH, f"{INTERFACE}.Fail", "string:on purpose"],
    "service-unknown-method": [f"--dest={NEXT}", PATH, f"{INTERFACE}.NoSuchMethod"],
}


@pytest.mark.parametrize("call", FAILING_CALLS)
def test_an_error_reaches_dbus_send_with_the_same_name_and_text(compare: Comparison, call: str) -> None:
    def scenario(bus: Bus) -> str:
        with start_service(bus):
            outcome = run(bus, "dbus-send", "--print-reply", *FAILING_CALLS[call], status=1)
        assert outcome.stderr.startswith("Error ")
        return outcome.stderr

    compare(scenario)


@pytest.mark.program("dbus-test-tool")
def test_a_reply_timeout_ends_the_wait_for_a_silent_service(compare: Comparison) -> None:
    def scenario(bus: Bus) -> str:
        with bus.connect() as observer, Child(bus, "dbus-test-tool", "black-hole", "--name=com.example.Hole"):
            observer.wait_for_name("com.example.Hole")
            return run(
                bus,
                "dbus-send",
                "--print-reply",
                "--reply-timeout=100",
                "--dest=com.example.Hole",
                "/",
                "com.example.I.M",
                status=1,
            ).stderr

    compare(scenario)


def test_a_signal_from_dbus_send_reaches_a_subscriber(compare: Comparison) -> None:
    def scenario(bus: Bus) -> list[object]:
        with bus.connect() as subscriber:
            subscriber.call("AddMatch", "s", "type='signal',interface='com.example.I'")
            run(bus, "dbus-send", "--type=signal", "/a", "com.example.I.S", "string:x", "array:int32:1,2")
            return [subscriber.receive().describe()]

    (message,) = compare(scenario)
    assert message["body"] == ["x", [1, 2]]


def test_a_call_with_a_destination_and_without_reply_arrives(compare: Comparison) -> None:
    def scenario(bus: Bus) -> list[object]:
        with bus.connect() as receiver:
            run(
                bus,
                "dbus-send",
                "--type=method_call",
                f"--dest={receiver.unique_name}",
                "/a",
                "com.example.I.M",
                "dict:string:int32:a,1,b,2",
            )
            return [receiver.receive().describe()]

    (message,) = compare(scenario)
    assert message["body"] == [{"a": 1, "b": 2}]
