"""dbus-test-tool on both buses: its echo service, its load generator, its black hole."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.programs import Child, run

pytestmark = pytest.mark.program("dbus-test-tool", "dbus-send", "dbus-daemon")

ECHO = "com.example.Echo"


def service(bus: Bus, kind: str, *options: str) -> Child:
    """A service of the tool's that has its name."""
    child = Child(bus, "dbus-test-tool", kind, f"--name={ECHO}", *options)
    try:
        with bus.connect() as observer:
            observer.wait_for_name(ECHO)
    except BaseException:
        child.stop()
        raise
    return child


def test_echo_answers_every_call(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with service(bus, "echo"):
            call = ["dbus-send", "--print-reply=literal", f"--dest={ECHO}"]
            return [
                run(bus, *call, "/", "com.example.Spam").stdout,
                run(bus, *call, "/any/path", "any.interface.Method", "string:x").stdout,
            ]

    compare(scenario)


@pytest.mark.parametrize(
    "options",
    [
        ["--count=200", "--queue=1"],
        ["--count=2000", "--queue=64"],
        ["--count=500", "--queue=16", "--payload=" + "x" * 4096],
        ["--count=200", "--no-reply"],
        ["--count=200", "--flood"],
        ["--count=200", "--queue=8", "--bytes"],
        ["--count=200", "--queue=8", "--empty"],
        ["--count=50", "--queue=8", "--messages-per-conn=5"],
    ],
    ids=lambda options: " ".join(option[:24] for option in options),
)
def test_spam_gets_all_its_replies(compare: Comparison, options: list[str]) -> None:
    def scenario(bus: Bus) -> Any:
        with service(bus, "echo"):
            outcome = run(bus, "dbus-test-tool", "spam", f"--dest={ECHO}", *options)
        return [re.sub(r"\d+\.\d+|\d+ msec", "<time>", outcome.stdout), outcome.stderr]

    compare(scenario)


def test_spam_to_a_black_hole_ends_without_replies(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with service(bus, "black-hole"):
            outcome = run(
                bus, "dbus-test-tool", "spam", f"--dest={ECHO}", "--count=100", "--no-reply", "--flood"
            )
        return [re.sub(r"\d+\.\d+|\d+ msec", "<time>", outcome.stdout), outcome.stderr]

    compare(scenario)


def test_a_call_to_a_black_hole_fails_when_it_goes_away(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as caller:
            hole = service(bus, "black-hole")
            with hole:
                serial = caller.send_call("M", destination=ECHO, path="/", interface="a.b")
                caller.sync()
            return [message.describe() for message in caller.until_reply(serial)]

    assert compare(scenario)[-1]["error_name"] == "org.freedesktop.DBus.Error.NoReply"


def test_a_black_hole_that_reads_nothing_does_not_hold_up_others(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with service(bus, "black-hole", "--no-read"), bus.connect() as caller, bus.connect() as other:
            for _ in range(200):
                caller.send_call("M", "s", "x" * 4096, destination=ECHO, path="/", interface="a.b", flags=1)
            return [other.reply("Ping", interface="org.freedesktop.DBus.Peer").describe(), caller.sync()]

    compare(scenario)
