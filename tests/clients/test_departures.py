"""A client that goes without reading: what it had said before counts, in order, and then it is gone.

Programs that send something and exit at once are common, and they read none of the answers that the bus has
for them. That the bus cannot write to them any more must not make it overlook what they wrote. The bus is
held still until such a client has said everything and gone.
"""

from __future__ import annotations

import socket
from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.control import frozen
from support.raw import (
    DRIVER,
    DRIVER_PATH,
    METHOD_CALL,
    SIGNAL,
    Message,
    RawClient,
    build_message,
)

pytestmark = pytest.mark.program("dbus-daemon")

INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"

SEND_BUFFER = 400_000
"""Bytes; room for all that a client says while the bus does not read, where the system allows it."""

SIGNALS = 1800
"""More than the bus takes in one read, and less than a socket holds."""


def build_calls(client: RawClient, count: int, interface: str, member: str) -> bytes:
    """Calls to the driver."""
    fields = {"path": DRIVER_PATH, "interface": interface, "member": member, "destination": DRIVER}
    return b"".join(
        build_message(Message(METHOD_CALL, 0, client.next_serial(), fields)) for _ in range(count)
    )


def build_signals(client: RawClient, count: int) -> bytes:
    """Numbered signals."""
    fields = {"path": "/", "interface": "a.b", "member": "S", "signature": "us"}
    return b"".join(
        build_message(Message(SIGNAL, 0, client.next_serial(), fields, [number, "x" * 20]))
        for number in range(count)
    )


def listen(listener: RawClient, leaver: RawClient) -> None:
    listener.call("AddMatch", "s", "type='signal',interface='a.b'")
    listener.call("AddMatch", "s", f"member='NameOwnerChanged',arg0='{leaver.unique_name}'")


def heard(listener: RawClient) -> list[Any]:
    """The numbers of the signals that come before the sender is seen to go."""
    numbers = []
    while (message := listener.receive()).member == "S":
        numbers.append(message.body[0])
    assert message.member == "NameOwnerChanged"
    assert listener.sync() == []
    return numbers


def test_everything_a_client_said_before_it_went_arrives(compare_shared: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as listener, bus.connect() as leaver:
            leaver.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            listen(listener, leaver)
            words = build_calls(leaver, 5, DRIVER, "GetId") + build_signals(leaver, SIGNALS)
            with frozen(bus):
                leaver.send_bytes(words)
                leaver.close()
            return heard(listener)

    assert compare_shared(scenario) == list(range(SIGNALS))


def test_it_arrives_though_answers_have_piled_up_for_the_client(busproxyd: Bus) -> None:
    """Where dbus-daemon forgets it all."""
    with busproxyd.connect() as listener, busproxyd.connect() as leaver:
        leaver.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        listen(listener, leaver)
        leaver.send_bytes(build_calls(leaver, 200, INTROSPECTABLE, "Introspect"))
        listener.sync()
        with frozen(busproxyd):
            leaver.send_bytes(build_signals(leaver, SIGNALS))
            leaver.close()
        assert heard(listener) == list(range(SIGNALS))


def test_nothing_of_such_a_client_is_left(busproxyd: Bus) -> None:
    before = busproxyd.count_fds_besides()
    with busproxyd.connect() as watcher, busproxyd.connect() as leaver:
        words = build_calls(leaver, 300, INTROSPECTABLE, "Introspect")
        with frozen(busproxyd):
            leaver.send_bytes(words)
            leaver.close()
        watcher.wait_for_name_lost(leaver.unique_name)
    assert busproxyd.settle_fds(before) == before
    assert busproxyd.stderr_text() == ""
