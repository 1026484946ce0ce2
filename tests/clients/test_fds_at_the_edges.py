"""File descriptors where they are easily lost, kept or multiplied: glued to the handshake, sent in pieces,
held with a call that waits, handed out with every answer.

A descriptor that arrives is recognised by its inode; those that must not stay are counted in the bus's
process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bus import BUSPROXYD, Bus, selected_kinds
from support.control import frozen, running_bus
from support.gate import Gate
from support.raw import (
    DRIVER,
    DRIVER_PATH,
    METHOD_CALL,
    NO_REPLY_EXPECTED,
    Message,
    RawClient,
    build_message,
    connect_address,
)

pytestmark = pytest.mark.program("dbus-daemon")

CHILD_EXITED = "org.freedesktop.DBus.Error.Spawn.ChildExited"
GATED = "com.example.Gated"

kinds = pytest.mark.parametrize("kind", selected_kinds())


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """One service that waits."""
    with Gate(tmp_path) as gate:
        gate.offer(GATED)
        yield gate


@pytest.fixture
def pipe() -> Iterator[int]:
    """A descriptor to send."""
    reader, writer = os.pipe()
    yield reader
    os.close(reader)
    os.close(writer)


def driver_call(member: str, serial: int, signature: str = "", *arguments: object) -> Message:
    fields = {"path": DRIVER_PATH, "interface": DRIVER, "member": member, "destination": DRIVER}
    if signature:
        fields["signature"] = signature
    return Message(METHOD_CALL, 0, serial, fields, list(arguments))


def call_with_fds(destination: str, count: int) -> Message:
    fields = {"path": "/", "interface": "a.b", "member": "M", "destination": destination, "unix_fds": count}
    return Message(METHOD_CALL, NO_REPLY_EXPECTED, 1000, fields)


# On their way in


def test_descriptors_right_behind_the_handshake_arrive(busproxyd: Bus, pipe: int) -> None:
    """One read may end the handshake and bring the first messages with what belongs to them."""
    uid = str(os.getuid()).encode().hex().encode()
    with busproxyd.connect() as target, connect_address(busproxyd.address) as sock:
        sock.settimeout(20)
        sock.sendall(b"\0AUTH EXTERNAL " + uid + b"\r\nNEGOTIATE_UNIX_FD\r\n")
        answer = b""
        while b"AGREE_UNIX_FD\r\n" not in answer:
            answer += sock.recv(4096)
        with frozen(busproxyd):
            sock.sendall(b"BEGIN\r\n" + build_message(driver_call("Hello", 1)))
            message = build_message(call_with_fds(target.unique_name, 1))
            socket.send_fds(sock, [message], [pipe])
        assert target.receive().member == "M"
        (received,) = target.take_fds(1)
        inode = os.fstat(received).st_ino
        os.close(received)
    assert inode == os.fstat(pipe).st_ino


@kinds
def test_more_descriptors_than_can_travel_at_once_end_the_sender_alone(kind: str, pipe: int) -> None:
    """In pieces any number comes in, and no number of pieces gets them out again."""
    with (
        running_bus(kind, extra='<limit name="max_message_unix_fds">4096</limit>') as bus,
        bus.connect() as target,
    ):
        before = bus.count_fds_besides()
        with bus.connect() as offender:
            message = build_message(call_with_fds(target.unique_name, 300))
            offender.send_bytes(message[:20], [pipe] * 200)
            offender.send_bytes(message[20:], [pipe] * 100)
            assert offender.probe() == [None]
        assert target.sync() == []
        assert bus.settle_fds(before) == before


# While their message waits


def starts_with_fds(caller: RawClient, pipe: int) -> list[int]:
    """Ask five times for the start of a service, with ten descriptors each; returns the serials."""
    serials = []
    for _ in range(5):
        message = driver_call("StartServiceByName", 0, "su", GATED, 0)
        message.fields["unix_fds"] = 10
        serials.append(caller.send(message, [pipe] * 10))
    assert caller.sync() == []
    return serials


@kinds
def test_descriptors_of_callers_go_when_the_start_fails(kind: str, gate: Gate, pipe: int) -> None:
    with running_bus(kind, servicedir=gate.services) as bus, bus.connect() as caller:
        before = bus.count_fds_besides()
        serials = starts_with_fds(caller, pipe)
        gate.fail()
        answers = [caller.receive() for _ in serials]
        assert [answer.fields["reply_serial"] for answer in answers] == serials
        assert {answer.error_name for answer in answers} == {CHILD_EXITED}
        assert bus.settle_fds(before) == before


@kinds
def test_descriptors_of_callers_go_when_the_service_comes(kind: str, gate: Gate, pipe: int) -> None:
    with (
        running_bus(kind, servicedir=gate.services) as bus,
        bus.connect() as caller,
        bus.connect() as other,
    ):
        other.send_call("StartServiceByName", "su", GATED, 0)
        before = bus.count_fds_besides()
        serials = starts_with_fds(caller, pipe)
        other.call("RequestName", "su", GATED, 0)
        assert [caller.receive().body for _ in serials] == [[1]] * len(serials)
        assert bus.settle_fds(before) <= before


def test_descriptors_of_callers_go_with_the_caller(gate: Gate, pipe: int) -> None:
    """Where dbus-daemon keeps them until the start has ended."""
    with running_bus(BUSPROXYD, servicedir=gate.services) as bus, bus.connect() as other:
        other.send_call("StartServiceByName", "su", GATED, 0)
        before = bus.count_fds_besides()
        with bus.connect() as caller:
            starts_with_fds(caller, pipe)
        other.wait_for_name_lost(caller.unique_name)
        assert bus.settle_fds(before) == before


# On their way out


def test_asking_for_credentials_without_reading_costs_no_descriptors(busproxyd: Bus) -> None:
    """Each answer carries the process's descriptor, and all of them the same."""
    with busproxyd.connect() as sleeper, busproxyd.connect() as other:
        before = busproxyd.count_fds()
        for _ in range(40):
            calls = [
                build_message(driver_call("GetConnectionCredentials", serial, "s", other.unique_name))
                for serial in range(1, 51)
            ]
            sleeper.send_bytes(b"".join(calls))
            other.sync()
        assert busproxyd.count_fds() == before
