"""Conversations with the bus beyond single calls: the first words, strays, serials, credentials, answers.

The client is the raw one, so that nothing a library does stands between; what is compared is all that a
client can see of each message. Single calls of the driver are in `test_driver_calls`, names in
`test_driver_names`.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.raw import (
    DRIVER,
    ERROR,
    METHOD_CALL,
    METHOD_RETURN,
    NO_REPLY_EXPECTED,
    SIGNAL,
    Message,
    RawClient,
)

pytestmark = pytest.mark.program("dbus-daemon")

PEER = "org.freedesktop.DBus.Peer"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
STATS = "org.freedesktop.DBus.Debug.Stats"
NOBODY = "com.example.Nobody"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/org",
        "/org/freedesktop",
        "/org/freedesktop/DBus",
        "/org/freedesktop/DBus/Sub",
        "/com/example",
    ],
)
def test_introspection_shows_the_same_object(compare_shared: Comparison, path: str) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            reply = client.reply("Introspect", interface=INTROSPECTABLE, path=path)
        if reply.type != METHOD_RETURN:
            return reply.describe()
        return [line.strip() for line in reply.body[0].splitlines()]

    compare_shared(scenario)


def test_credentials_are_those_of_the_client_that_is_asked_about(compare_shared: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client, bus.connect() as other:
            bus.labels[client.pid] = "client"
            results = []
            for member in (
                "GetConnectionUnixUser",
                "GetConnectionUnixProcessID",
                "GetConnectionCredentials",
                "GetAdtAuditSessionData",
                "GetConnectionSELinuxSecurityContext",
            ):
                reply = other.reply(member, "s", client.unique_name)
                results.append(reply.describe())
            return results

    results = compare_shared(scenario)
    assert results[1]["body"] == ["<pid of client>"]


def test_statistics_name_the_same_figures(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            client.call("AddMatch", "s", "type='signal'")
            bus_figures = client.reply("GetStats", interface=STATS).body[0]
            own_figures = client.reply("GetConnectionStats", "s", client.unique_name, interface=STATS).body[0]
            rules = client.reply("GetAllMatchRules", interface=STATS)
        return [
            {name: signature for name, (signature, _) in bus_figures.items()},
            {name: signature for name, (signature, _) in own_figures.items()},
            own_figures["UniqueName"],
            own_figures["MatchRules"],
            own_figures["BusNames"],
            bus_figures["ActiveConnections"],
            rules.describe(),
        ]

    compare(scenario)


def test_a_client_that_calls_before_hello_is_treated_alike(compare_shared: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect(hello=False) as client:
            return survivors(client)

    compare_shared(scenario)


def test_a_client_that_sends_a_signal_before_hello_is_treated_alike(compare_shared: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect(hello=False) as client:
            client.send(Message(SIGNAL, fields={"path": "/", "interface": "a.b", "member": "S"}))
            return survivors(client)

    compare_shared(scenario)


HELLO_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without interface": {"interface": None},
    "on another path": {"path": "/com/example"},
    "without reply": {"flags": NO_REPLY_EXPECTED},
    "in big-endian": {"order": "B"},
}


@pytest.mark.parametrize("variant", HELLO_VARIANTS)
def test_hello_is_followed_by_name_acquired(compare_shared: Comparison, variant: str) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect(hello=False) as client:
            client.send_call("Hello", **HELLO_VARIANTS[variant])
            return [message.describe() for message in client.sync()]

    compare_shared(scenario)


def test_driver_serials_count_from_one_per_client(compare_shared: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect(hello=False) as client, bus.connect():
            messages = client.call("Hello") + client.call("GetId") + client.call("NoSuchMethod")
            messages += client.call("AddMatch", "s", "arg64='x'")
            client.send_call("Ping", interface=PEER, flags=NO_REPLY_EXPECTED)
            messages += client.call("GetId")
            return [(message.serial, message.brief()) for message in messages]

    compare_shared(scenario)


def stray_messages() -> dict[str, Message]:
    """Messages to the driver, or to nobody, that ask for nothing."""
    return {
        "a return to the driver": Message(METHOD_RETURN, fields={"destination": DRIVER, "reply_serial": 99}),
        "an error to the driver": Message(
            ERROR, fields={"destination": DRIVER, "reply_serial": 99, "error_name": "a.b.C"}
        ),
        "a signal to the driver": Message(
            SIGNAL, fields={"path": "/", "interface": "a.b", "member": "S", "destination": DRIVER}
        ),
        "a return to nobody": Message(METHOD_RETURN, fields={"destination": NOBODY, "reply_serial": 99}),
        "a signal to nobody": Message(
            SIGNAL, fields={"path": "/", "interface": "a.b", "member": "S", "destination": NOBODY}
        ),
        "a return to no destination": Message(METHOD_RETURN, fields={"reply_serial": 99}),
        "an error to no destination": Message(ERROR, fields={"reply_serial": 99, "error_name": "a.b.C"}),
        "a call to no destination": Message(
            METHOD_CALL, fields={"path": "/", "interface": "a.b", "member": "M"}
        ),
        "a message of an unknown type": Message(5, fields={"destination": DRIVER}),
        "a message of an unknown type to nobody": Message(77, fields={"destination": NOBODY}),
        "a message of an unknown type to all": Message(77),
    }


@pytest.mark.parametrize("stray", stray_messages())
def test_a_stray_message_is_treated_alike(compare_shared: Comparison, stray: str) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client, bus.connect() as other:
            other.call("AddMatch", "s", "interface='a.b'")
            client.send(stray_messages()[stray])
            return survivors(client) + [message.describe() for message in other.sync()]

    compare_shared(scenario)


def survivors(client: RawClient) -> list[Any]:
    """What the bus says to the client up to the answer to one more call, or that it hung up."""
    return ["closed" if message is None else message.describe() for message in client.probe()]


def unreplied_answers() -> dict[str, Message]:
    """Answers between two clients of which none was asked for; the destination is filled in by the test."""
    return {
        "a return nobody asked for": Message(METHOD_RETURN, fields={"reply_serial": 1}),
        "an error nobody asked for": Message(ERROR, fields={"reply_serial": 1, "error_name": "a.b.C"}),
        "a return for a serial never used": Message(METHOD_RETURN, fields={"reply_serial": 0xFFFFFFFF}),
        "a message of an unknown type": Message(42),
    }


@pytest.mark.parametrize("answer", unreplied_answers())
def test_an_answer_nobody_asked_for_is_treated_alike(compare_shared: Comparison, answer: str) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client, bus.connect() as other:
            message = unreplied_answers()[answer]
            message.fields["destination"] = other.unique_name
            client.send(message)
            received = [message.describe() for message in client.sync()]
            return [received, [message.describe() for message in other.sync()]]

    compare_shared(scenario)


def test_a_call_whose_callee_goes_away_is_answered_for_it(compare_shared: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as caller:
            with bus.connect() as callee:
                serial = caller.send_call("M", destination=callee.unique_name, interface="a.b", path="/")
                received = [message.describe() for message in [callee.receive()]]
            return [received, [message.describe() for message in caller.until_reply(serial)]]

    compare_shared(scenario)


def test_a_reply_is_delivered_once(compare_shared: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as caller, bus.connect() as callee:
            serial = caller.send_call("M", destination=callee.unique_name, interface="a.b", path="/")
            received = callee.receive()
            for text in ("first", "second"):
                callee.send(
                    Message(
                        METHOD_RETURN,
                        fields={
                            "reply_serial": serial,
                            "destination": received.fields["sender"],
                            "signature": "s",
                        },
                        body=[text],
                    )
                )
            callee_saw = callee.sync()
            return [message.describe() for message in callee_saw + caller.sync()]

    compare_shared(scenario)


def test_a_forged_sender_is_replaced_by_the_true_one(compare_shared: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client, bus.connect() as other:
            client.send(
                Message(
                    SIGNAL,
                    fields={
                        "sender": DRIVER,
                        "path": "/",
                        "interface": "a.b",
                        "member": "S",
                        "destination": other.unique_name,
                    },
                )
            )
            client.sync()
            (received,) = other.sync()
            assert received.fields["sender"] == client.unique_name
            return received.describe()

    compare_shared(scenario)
