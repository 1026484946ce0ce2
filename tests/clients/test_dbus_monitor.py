"""dbus-monitor on both buses: rules, output forms, and what a monitor is allowed.

dbus-monitor becomes a monitor through BecomeMonitor and prints all that the bus handles; the end of a
scenario is a signal of its own, so nothing is cut off and nothing waits for time to pass.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.normalise import without_serials
from support.programs import Child, Outcome, run
from support.raw import DRIVER, Message, parse_message
from support.services import INTERFACE, NEXT, PATH, start_service

from clients.test_busctl import parse_pcap

pytestmark = pytest.mark.program("dbus-monitor", "dbus-send", "dbus-daemon")


def watch(
    bus: Bus, *arguments: str, end: str = "the end", calls: Sequence[Sequence[str]] | None = None
) -> Outcome:
    """Run dbus-monitor around a conversation with the service that ends with a signal."""
    conversation = calls if calls is not None else CONVERSATION
    with bus.connect() as observer:
        observer.call("AddMatch", "s", f"sender='{DRIVER}',member='NameOwnerChanged',arg2=''")
        with start_service(bus), Child(bus, "dbus-monitor", *arguments, label="monitor") as monitor:
            while observer.receive().member != "NameOwnerChanged":
                pass
            for call in conversation:
                run(bus, "dbus-send", *call, status=None)
            run(bus, "dbus-send", "--type=signal", "/end", "com.example.I.End", f"string:{end}")
            monitor.wait_for(end if "--profile" not in arguments else "com.example.I\tEnd")
            return monitor.stop(signal.SIGINT)


CONVERSATION = [
    ["--print-reply", f"--dest={NEXT}", PATH, f"{INTERFACE}.EchoStrings", "array:string:a,b"],
    ["--print-reply", f"--dest={NEXT}", PATH, f"{INTERFACE}.Fail", "string:on purpose"],
    ["--print-reply", "--dest=com.example.Nobody", "/", "com.example.I.M"],
    ["--print-reply", f"--dest={DRIVER}", "/org/freedesktop/DBus", f"{DRIVER}.NameHasOwner", "string:a.b"],
    ["--type=signal", "/a", "com.example.I.S", "variant:int32:5", "dict:string:boolean:x,true"],
]


def printed(outcome: Outcome) -> list[str]:
    """The monitor's text up to the end signal, without times and message numbers."""
    text = without_serials(re.sub(r"\btime=\d+\.\d+ ", "", outcome.stdout))
    head, found, _ = text.partition('   string "the end"')
    assert found
    return head.splitlines()


def test_everything_is_printed_in_the_same_order(compare: Comparison) -> None:
    lines = compare(lambda bus: printed(watch(bus, "--session")))
    assert any("member=EchoStrings" in line for line in lines)
    assert any("error_name=com.example.Error.Failed" in line for line in lines)


@pytest.mark.parametrize(
    "rule",
    [
        "type='signal'",
        "interface='com.example.I'",
        f"destination='{NEXT}'",
        f"sender='{DRIVER}',type='error'",
        "type='method_call',member='Hello'",
        "path_namespace='/com'",
        "member='NameOwnerChanged'",
        "arg0='a.b'",
        "type='error'",
        "type='method_return'",
    ],
)
def test_a_rule_selects_the_same_messages(compare: Comparison, rule: str) -> None:
    lines = compare(lambda bus: printed(watch(bus, "--session", rule, "member='End'")))
    assert len(lines) > 1


def test_a_profile_has_one_line_for_each_message(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        lines = watch(bus, "--session", "--profile").lines
        rows = [line.split("\t") for line in lines if not line.startswith("#")]
        end = next(index for index, row in enumerate(rows) if row[-1] == "End")
        return [[row[0], *row[3:]] for row in rows[: end + 1]]

    rows = compare(scenario)
    assert {row[0] for row in rows} >= {"mc", "mr", "sig", "err"}


def described(messages: list[Message]) -> list[Any]:
    """Messages up to the end signal, for comparing."""
    end = next(index for index, message in enumerate(messages) if message.body == ["the end"])
    return [message.describe() for message in messages[: end + 1]]


def test_binary_output_is_the_messages_byte_for_byte(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        data = watch(bus, "--session", "--binary").stdout_bytes
        messages = []
        while parsed := parse_message(data):
            messages.append(parsed[0])
            data = data[parsed[1] :]
        return described(messages)

    assert compare(scenario)[-1]["member"] == "End"


def test_pcap_output_is_a_capture_of_the_messages(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        messages = []
        for packet in parse_pcap(watch(bus, "--session", "--pcap").stdout_bytes):
            parsed = parse_message(packet)
            assert parsed is not None
            messages.append(parsed[0])
            if parsed[0].member == "End":
                break  # it was ended while it wrote what followed
        return described(messages)

    assert compare(scenario)[-1]["member"] == "End"


def test_a_bad_rule_is_refused_alike(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        outcome = run(bus, "dbus-monitor", "--session", "nonsense", status=1)
        return [outcome.stdout, outcome.stderr]

    assert "nonsense" not in compare(scenario)[0]


def test_a_monitor_that_sends_is_cut_off(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            before = client.call(
                "BecomeMonitor", "asu", ["member='End'"], 0, interface="org.freedesktop.DBus.Monitoring"
            )
            after = client.probe()
            return [[message.describe() for message in before], [m and m.describe() for m in after]]

    assert compare(scenario)[1][-1] is None


def test_a_monitor_gives_up_its_names(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client, bus.connect() as observer:
            for name in ("com.example.B", "com.example.A"):
                client.call("RequestName", "su", name, 0)
            observer.call("RequestName", "su", "com.example.B", 0)
            observer.call("AddMatch", "s", "member='NameOwnerChanged'")
            serial = client.send_call(
                "BecomeMonitor",
                "asu",
                ["member='NoneLikeThis'"],
                0,
                interface="org.freedesktop.DBus.Monitoring",
            )
            messages = list(client.until_reply(serial))
            observer.wait_for_name_lost(client.unique_name)
            observer.send(
                Message(
                    4,
                    fields={"path": "/", "interface": "a.b", "member": "NoneLikeThis"},
                )
            )
            while messages[-1].member != "NoneLikeThis":
                messages.append(client.receive())
            return [
                [message.brief() for message in messages],
                [message.brief() for message in observer.sync()],
            ]

    compare(scenario)
