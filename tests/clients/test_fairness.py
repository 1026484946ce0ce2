"""What one client does must not cost the others: neither their turn nor memory nor the bus's patience.

Where a turn is at stake, the bus is held still until the greedy client and the modest one have both written;
the modest one's answer has to come while the greedy one's work is not done, which a message at the end of
that work tells. Where work is at stake, two amounts of the bus's own processor time are compared. Nothing
here depends on how fast the machine is.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.bus import BUSPROXYD, Bus, selected_kinds
from support.control import cpu_seconds, frozen, running_bus
from support.gate import Gate
from support.raw import (
    DRIVER,
    DRIVER_PATH,
    METHOD_CALL,
    NO_REPLY_EXPECTED,
    SIGNAL,
    Message,
    RawClient,
    build_message,
    connect_address,
)

pytestmark = pytest.mark.program("dbus-daemon")

LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"
CHILD_EXITED = "org.freedesktop.DBus.Error.Spawn.ChildExited"
GATED = "com.example.Gated"

kinds = pytest.mark.parametrize("kind", selected_kinds())


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """One service that waits."""
    with Gate(tmp_path) as gate:
        gate.offer(GATED)
        yield gate


def build_many(client: RawClient, count: int, message: Message) -> bytes:
    """The same message many times, each with a serial of its own."""
    parts = []
    for _ in range(count):
        message.serial = client.next_serial()
        parts.append(build_message(message))
    return b"".join(parts)


def driver_call(member: str, interface: str = DRIVER, **fields: Any) -> Message:
    return Message(
        METHOD_CALL,
        fields={
            "path": DRIVER_PATH,
            "interface": interface,
            "member": member,
            "destination": DRIVER,
            **fields,
        },
    )


# Turns


@kinds
def test_expensive_calls_of_one_client_leave_others_their_turn(kind: str) -> None:
    with running_bus(kind) as bus, bus.connect() as greedy, bus.connect() as modest:
        for number in range(1000):
            rule = f"type='signal',interface='com.example.Interface{number}'"
            greedy.send_call("AddMatch", "s", rule, flags=NO_REPLY_EXPECTED)
        greedy.sync()
        costly = driver_call("GetAllMatchRules", "org.freedesktop.DBus.Debug.Stats")
        done = Message(
            SIGNAL,
            fields={"path": "/", "interface": "a.b", "member": "Done", "destination": modest.unique_name},
        )
        flood = build_many(greedy, 100, costly) + build_many(greedy, 1, done)
        with frozen(bus):
            greedy.send_bytes(flood)
            serial = modest.send_call("GetId")
        before_answer = list(modest.until_reply(serial))[:-1]
        assert [message.member for message in before_answer] == []
        assert modest.receive().member == "Done"


def test_a_path_of_very_many_elements_costs_no_more_with_a_namespace_rule(busproxyd: Bus) -> None:
    """The work for a path must not grow with the square of its elements."""
    fields = {"path": "/a" * 40_000, "interface": "a.b", "member": "S"}
    with busproxyd.connect() as emitter, busproxyd.connect() as listener:

        def work_of_one_signal() -> float:
            before = cpu_seconds(busproxyd.pid)
            emitter.send(Message(SIGNAL, fields=fields))
            emitter.sync()
            return cpu_seconds(busproxyd.pid) - before

        work_of_one_signal()
        plain = work_of_one_signal()
        listener.call("AddMatch", "s", "type='signal',path_namespace='/a/a'")
        assert work_of_one_signal() < 20 * plain
        assert listener.receive().fields["path"] == fields["path"]


def test_a_client_with_very_many_held_messages_leaves_quickly(gate: Gate) -> None:
    """Letting go of what is held for a client costs no more than holding it did."""
    held = Message(SIGNAL, fields={"path": "/", "interface": "a.b", "member": "S", "destination": GATED})
    with (
        running_bus(BUSPROXYD, servicedir=gate.services) as bus,
        bus.connect() as patient,
        bus.connect() as watcher,
    ):
        patient.send_bytes(build_many(patient, 5000, held))
        patient.sync()
        with bus.connect() as leaver:
            begin = cpu_seconds(bus.pid)
            leaver.send_bytes(build_many(leaver, 5000, held))
            leaver.sync()
            waiting = cpu_seconds(bus.pid)
        watcher.wait_for_name_lost(leaver.unique_name)
        assert cpu_seconds(bus.pid) - waiting < waiting - begin


# Room


def charged_call(size: int) -> Message:
    """StartServiceByName, made large by a header field that nobody knows."""
    message = driver_call("StartServiceByName", signature="su")
    message.fields[200] = ("s", "x" * size)
    message.body = [GATED, 0]
    return message


def test_callers_that_wait_for_a_service_have_bounded_room(gate: Gate) -> None:
    room, size, count = 1_000_000, 50_000, 60
    extra = f'<limit name="max_outgoing_bytes">{room}</limit>'
    with running_bus(BUSPROXYD, servicedir=gate.services, extra=extra) as bus, bus.connect() as caller:
        waiting = []
        for _ in range(2):
            answers: list[Message] = []
            for _ in range(count):
                caller.send(charged_call(size))
                answers += caller.sync()
            assert {answer.error_name for answer in answers} == {LIMITS_EXCEEDED}
            waiting.append(count - len(answers))
            gate.fail()
            failed = [caller.receive().error_name for _ in range(waiting[-1])]
            assert set(failed) == {CHILD_EXITED}
        assert 0 < waiting[0] * size <= room
        assert waiting[1] == waiting[0], "what has failed takes no room"


def test_a_caller_that_leaves_frees_the_room_it_took(gate: Gate) -> None:
    extra = '<limit name="max_outgoing_bytes">1000000</limit>'
    with running_bus(BUSPROXYD, servicedir=gate.services, extra=extra) as bus, bus.connect() as other:
        other.send_call("StartServiceByName", "su", GATED, 0)
        for _ in range(3):
            with bus.connect() as caller:
                caller.send(charged_call(200_000))
                assert caller.sync() == []
                caller.send(charged_call(200_000))
                assert [answer.error_name for answer in caller.sync()] == [LIMITS_EXCEEDED]
            other.wait_for_name_lost(caller.unique_name)


def ask_without_reading(flooder: socket.socket, other: RawClient) -> None:
    """Say what is no command, 40 000 times; the bus answers each, and gets the time to."""
    flooder.sendall(b"\0")
    for _ in range(200):
        flooder.sendall(b"NONE\r\n" * 200)
        other.sync()


def test_handshake_answers_that_nobody_reads_end_the_connection(busproxyd: Bus) -> None:
    with busproxyd.connect() as other, connect_address(busproxyd.address) as flooder:
        flooder.settimeout(20)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            ask_without_reading(flooder, other)
    assert re.search(r"disconnecting new client .*answers of the handshake", busproxyd.stderr_text())


@kinds
def test_service_files_do_not_count_as_connections_of_the_owner(kind: str, gate: Gate) -> None:
    for number in range(10):
        gate.offer(f"com.example.Other{number}")
    extra = '<limit name="max_connections_per_user">3</limit>'
    with running_bus(kind, servicedir=gate.services, extra=extra) as bus, ExitStack() as stack:
        clients = [stack.enter_context(bus.connect(hello=False)) for _ in range(4)]
        answers = [client.call("Hello")[-1].error_name for client in clients]
        assert answers == [None, None, None, LIMITS_EXCEEDED]
