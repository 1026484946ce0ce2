"""busctl (sd-bus) on both buses: listing, introspecting, calling, properties, watching, capturing.

sd-bus pipelines its whole handshake and sets flags that others do not; its monitor and capture stand on
BecomeMonitor. The service it talks to is the dbus-next one.
"""

from __future__ import annotations

import signal
import struct
from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.programs import Child, run
from support.raw import Message, parse_message
from support.services import INTERFACE, NEXT, PATH, start_service

pytestmark = pytest.mark.program("busctl", "dbus-daemon")

DRIVER = "org.freedesktop.DBus"
DRIVER_PATH = "/org/freedesktop/DBus"

ECHOES = [
    ("EchoByte", "y", "200"),
    ("EchoBoolean", "b", "true"),
    ("EchoInt16", "n", "-300"),
    ("EchoUint16", "q", "60000"),
    ("EchoInt32", "i", "-70000"),
    ("EchoUint32", "u", "4000000000"),
    ("EchoInt64", "x", "-5000000000"),
    ("EchoUint64", "t", "18000000000000000000"),
    ("EchoDouble", "d", "0.125"),
    ("EchoString", "s", "Grüße"),
    ("EchoObjectPath", "o", "/a/b"),
    ("EchoSignature", "g", "a{sv}"),
    ("EchoVariant", "v", "as", "2", "x", "y"),
    ("EchoBytes", "ay", "3", "1", "2", "255"),
    ("EchoStrings", "as", "2", "one", "two"),
    ("EchoStrings", "as", "0"),
    ("EchoDict", "a{sv}", "2", "a", "i", "1", "b", "s", "two"),
    ("EchoStruct", "(isad)", "1", "x", "2", "0.5", "1.5"),
    ("EchoSeveral", "ysa(ib)", "1", "x", "2", "3", "true", "4", "false"),
]


@pytest.mark.parametrize("arguments", ECHOES, ids=lambda echo: " ".join(echo).replace("/", "|"))
def test_a_call_is_answered_alike(compare: Comparison, arguments: tuple[str, ...]) -> None:
    def scenario(bus: Bus) -> str:
        with start_service(bus):
            return run(bus, "busctl", "--user", "--", "call", NEXT, PATH, INTERFACE, *arguments).stdout

    assert compare(scenario)


def list_rows(text: str) -> list[list[str]]:
    """busctl's table of names; the bus's own process has another name on each bus by nature."""
    rows = [line.split() for line in text.splitlines()]
    for row in rows:
        if row[0] == DRIVER:
            row[2] = "<bus process>"
    return rows


def test_list_shows_names_owners_and_processes(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus), Child(bus, "busctl", "--user", "list", label="busctl") as listing:
            rows = list_rows(listing.wait().stdout)
        assert any(row[0] == NEXT for row in rows)
        return rows

    compare(scenario)


def test_tree_shows_the_services_objects(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus):
            trees = [run(bus, "busctl", "--user", "tree", name).stdout for name in (NEXT, DRIVER)]
        assert PATH in trees[0]
        return trees

    compare(scenario)


def test_introspect_shows_interfaces_and_values(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus):
            return [
                run(bus, "busctl", "--user", "introspect", NEXT, PATH).stdout,
                run(bus, "busctl", "--user", "introspect", DRIVER, DRIVER_PATH).stdout,
                run(bus, "busctl", "--user", "--xml-interface", "introspect", NEXT, PATH).stdout,
                run(bus, "busctl", "--user", "introspect", NEXT, PATH, INTERFACE).stdout,
            ]

    results = compare(scenario)
    assert ".EchoString" in results[0]
    assert ".Hello" in results[1]


def test_properties_are_read_and_set(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus):
            text = (NEXT, PATH, INTERFACE, "Text")
            results = [
                run(bus, "busctl", "--user", "get-property", *text, "Count").stdout,
                run(bus, "busctl", "--user", "set-property", *text, "s", "changed").stdout,
                run(bus, "busctl", "--user", "get-property", *text).stdout,
                run(
                    bus,
                    "busctl",
                    "--user",
                    "set-property",
                    NEXT,
                    PATH,
                    INTERFACE,
                    "Count",
                    "u",
                    "1",
                    status=1,
                ).stderr,
                run(bus, "busctl", "--user", "get-property", DRIVER, DRIVER_PATH, DRIVER, "Features").stdout,
                run(
                    bus, "busctl", "--user", "get-property", DRIVER, DRIVER_PATH, DRIVER, "None", status=1
                ).stderr,
            ]
        assert results[2] == 's "changed"\n'
        return results

    compare(scenario)


ERRORS = {
    "nobody": ["call", "com.example.Nobody", "/", "com.example.I", "M"],
    "nobody, no auto-start": ["--auto-start=no", "call", "com.example.Nobody", "/", "com.example.I", "M"],
    "unknown method": ["call", DRIVER, DRIVER_PATH, DRIVER, "NoSuchMethod"],
    "unknown interface": ["call", DRIVER, DRIVER_PATH, "com.example.I", "M"],
    "wrong type": ["call", DRIVER, DRIVER_PATH, DRIVER, "GetNameOwner", "i", "1"],
    "service error": ["call", NEXT, PATH, INTERFACE, "Fail", "s", "on purpose"],
    "status of nobody": ["status", "com.example.Nobody"],
    "tree of nobody": ["tree", "com.example.Nobody"],
    "introspect nobody": ["introspect", "com.example.Nobody", "/"],
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_shown_alike(compare: Comparison, error: str) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus):
            outcome = run(bus, "busctl", "--user", *ERRORS[error], status=None)
        assert outcome.stderr or outcome.status
        return [outcome.status, outcome.stdout, outcome.stderr]

    compare(scenario)


def test_status_shows_the_credentials_of_a_service(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus) as service:
            bus.labels[service.process.pid] = "service"
            lines = run(bus, "busctl", "--user", "status", NEXT).lines
            assert f"PID={service.process.pid}" in lines
            return [line for line in lines if not line.startswith("CommandLine=")]

    compare(scenario)


def test_status_of_the_bus_shows_its_address_and_id(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        lines = run(bus, "busctl", "--user", "status").lines
        assert f"BusID={bus.guid}" in lines
        return [line for line in lines if line.startswith(("Bus", "UID=", "EUID=", "GID="))]

    compare(scenario)


def monitor_ready(bus: Bus, *arguments: str) -> Child:
    """A busctl that has become a monitor: the bus has taken its unique name from it."""
    with bus.connect() as observer:
        observer.call("AddMatch", "s", f"sender='{DRIVER}',member='NameOwnerChanged',arg2=''")
        child = Child(bus, "busctl", "--user", *arguments, label="busctl")
        try:
            while observer.receive().member != "NameOwnerChanged":
                pass
        except BaseException:
            child.stop()
            raise
        return child


def send_from(bus: Bus) -> None:
    """What the monitors watch: a call with its reply, an error, and a signal at the end."""
    run(bus, "busctl", "--user", "call", NEXT, PATH, INTERFACE, "EchoStruct", "(isad)", "1", "x", "1", "0.5")
    run(bus, "busctl", "--user", "call", NEXT, PATH, INTERFACE, "Fail", "s", "on purpose", status=1)
    run(bus, "busctl", "--user", "emit", "/end", "com.example.I", "End", "s", "the end")


def test_monitor_prints_every_message_of_a_conversation(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus), monitor_ready(bus, "monitor") as monitor:
            send_from(bus)
            monitor.wait_for("the end")
            monitor.wait_for(r"Member=NameOwnerChanged", count=4)
            text = monitor.stop(signal.SIGINT).stdout
        return conversation(text)

    blocks = compare(scenario)
    assert any("Member=EchoStruct" in line for block in blocks for line in block)
    assert any("ErrorName=com.example.Error.Failed" in line for block in blocks for line in block)


def conversation(text: str) -> list[list[str]]:
    """The monitor's blocks, one per message, up to the last one the scenario makes, without what counts or
    ticks.
    """
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith(("‣", ">")):
            blocks.append([])
        if not blocks:
            continue
        words = [
            word
            for word in line.split("  ")
            if word.strip() and not word.strip().startswith(("Cookie", "Timestamp", "ReplyCookie"))
        ]
        blocks[-1].append("  ".join(word.strip() for word in words))
    end = next(index for index, block in enumerate(blocks) if any("the end" in line for line in block))
    return blocks[: end + 1]


def test_monitor_of_one_service_leaves_out_the_others(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus), monitor_ready(bus, "monitor", NEXT) as monitor:
            run(bus, "busctl", "--user", "emit", "/other", "com.example.I", "Other", "s", "not watched")
            run(bus, "busctl", "--user", "call", NEXT, PATH, INTERFACE, "Say", "s", "the end")
            monitor.wait_for(r"Member=Said[\s\S]*the end")
            text = monitor.stop(signal.SIGINT).stdout
        assert "not watched" not in text
        return sorted(conversation(text))

    compare(scenario)


def test_emit_reaches_a_subscriber(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as subscriber:
            subscriber.call("AddMatch", "s", "interface='com.example.I'")
            run(bus, "busctl", "--user", "emit", "/a", "com.example.I", "S", "sa{si}", "x", "1", "k", "7")
            run(
                bus,
                "busctl",
                "--user",
                f"--destination={subscriber.unique_name}",
                "emit",
                "/a",
                "com.example.J",
                "T",
            )
            return [subscriber.receive().describe(), subscriber.receive().describe()]

    broadcast, unicast = compare(scenario)
    assert broadcast["body"] == ["x", {"k": 7}]
    assert "destination" in unicast


def parse_capture(data: bytes) -> list[Message]:
    """The messages in a pcap (version 2.4) or pcapng file of link type D-Bus (231)."""
    packets = parse_pcapng(data) if data[:4] == b"\x0a\x0d\x0d\x0a" else parse_pcap(data)
    messages = []
    for packet in packets:
        parsed = parse_message(packet)
        assert parsed is not None
        message, length = parsed
        assert length == len(packet)
        messages.append(message)
    return messages


def parse_pcap(data: bytes) -> list[bytes]:
    magic, major, minor, _, _, _, link = struct.unpack_from("=IHHiIII", data)
    assert magic in (0xA1B2C3D4, 0xA1B23C4D)
    assert (major, minor, link) == (2, 4, 231)
    packets = []
    offset = 24
    while offset + 16 <= len(data):
        _, _, captured, original = struct.unpack_from("=IIII", data, offset)
        assert captured == original
        packets.append(data[offset + 16 : offset + 16 + captured])
        offset += 16 + captured
    return packets


def parse_pcapng(data: bytes) -> list[bytes]:
    packets = []
    offset = 0
    while offset + 12 <= len(data):
        kind, length = struct.unpack_from("=II", data, offset)
        if kind == 1:
            assert struct.unpack_from("=H", data, offset + 8) == (231,)
        if kind == 6:
            captured, original = struct.unpack_from("=II", data, offset + 20)
            assert captured == original
            packets.append(data[offset + 28 : offset + 28 + captured])
        offset += length
    return packets


def test_capture_writes_the_messages_as_they_were_sent(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus), monitor_ready(bus, "capture") as capture:
            send_from(bus)
            capture.wait_for("the end")
            messages = parse_capture(capture.stop(signal.SIGINT).stdout_bytes)
        end = next(index for index, message in enumerate(messages) if message.body == ["the end"])
        return [message.describe() for message in messages[: end + 1]]

    messages = compare(scenario)
    assert any(message.get("member") == "EchoStruct" for message in messages)
