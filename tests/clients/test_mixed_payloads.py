"""What is large or a file, from one kind of peer to the other; and services started by the other kind.

Large payloads are compared by their hashes. Files are the same files at the other end, unix sockets do not go
to natives, and however it ends the bus holds no more than before.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.mixed import KINDS, MixedBus, MixedBuses
from support.native_peer import Mail, NativePeer, take_files
from support.raw import (
    ERROR,
    METHOD_CALL,
    METHOD_RETURN,
    NO_AUTO_START,
    NO_REPLY_EXPECTED,
    SIGNAL,
    Message,
    RawClient,
    build_message,
)
from support.services import INTERFACE, PATH

from busproxy.native.messages import Message as NativeMessage
from kdbus_core.errors import KdbusError
from kdbus_core.transport.client import ReplyDead

MIB = 1 << 20
LARGEST = 64 * MIB
"""Bytes of the longest array that D-Bus has."""

PREFIX = "org.freedesktop.DBus.Error."
ACTIVATED = "com.example.Activated"
FAILING = "com.example.Failing"
GATED, GATE = "com.example.Gated", "com.example.Gate"

SERVICE = """
import os, sys
sys.path.insert(0, {tests!r})
from support.raw import METHOD_CALL, METHOD_RETURN, NO_REPLY_EXPECTED, Disconnected, Message, RawClient

client = RawClient(os.environ["DBUS_STARTER_ADDRESS"])
if sys.argv[2:]:
    client.wait_for_name(sys.argv[2])
client.reply("RequestName", "su", sys.argv[1], 0)
try:
    while True:
        message = client.receive()
        if message.type != METHOD_CALL or message.fields.get("interface") != "com.example.Service":
            continue
        if not message.flags & NO_REPLY_EXPECTED:
            fields = {{"reply_serial": message.serial, "destination": message.fields["sender"]}}
            fields["signature"] = "su"
            body = [message.fields["destination"], os.getpid()]
            client.send(Message(METHOD_RETURN, NO_REPLY_EXPECTED, 0, fields, body))
        if message.member == "Quit":
            break
except Disconnected:
    pass
"""


@pytest.fixture(scope="module")
def buses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedBuses]:
    directory = tmp_path_factory.mktemp("services")
    script = directory / "service.py"
    script.write_text(SERVICE.format(tests=str(Path(__file__).resolve().parents[1])))
    for name, command in (
        (ACTIVATED, f"{sys.executable} {script} {ACTIVATED}"),
        (GATED, f"{sys.executable} {script} {GATED} {GATE}"),
        (FAILING, "/bin/false"),
    ):
        text = f"[D-BUS Service]\nName={name}\nExec={command}\n"
        (directory / f"{name}.service").write_text(text)
    with MixedBuses(servicedir=directory) as buses:
        yield buses


@pytest.fixture(params=KINDS)
def mixed(request: pytest.FixtureRequest, buses: MixedBuses) -> MixedBus:
    return buses[request.param]


@pytest.fixture
def native(mixed: MixedBus) -> Iterator[NativePeer]:
    with mixed.join() as peer:
        yield peer


@pytest.fixture
def legacy(mixed: MixedBus) -> Iterator[RawClient]:
    with mixed.connect() as client:
        yield client


# Large payloads


@cache
def payload_of(seed: int, size: int) -> bytes:
    """Bytes that repeat, but not where a page, a read or a part of a message begins anew."""
    period = min(size, MIB + 1)
    return (Random(seed).randbytes(period) * (size // period + 1))[:size]


def digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def send_large(client: RawClient, message: Message, payload: bytes) -> None:
    """Send a message whose body is one array of bytes, without copying it about."""
    message.serial = client.next_serial()
    message.fields["signature"] = "ay"
    message.body = [b""]
    head = bytearray(build_message(message))
    order = "<" if message.order == "l" else ">"
    struct.pack_into(f"{order}I", head, 4, 4 + len(payload))
    struct.pack_into(f"{order}I", head, len(head) - 4, len(payload))
    client.socket.sendall(head)
    client.socket.sendall(payload)


def receive_large(client: RawClient, size: int) -> tuple[bytes, memoryview]:
    """The next message, which has to have so many bytes in one array: its header, and them."""
    buffer = bytearray(client._data)
    client._data = b""
    while len(buffer) < 16:
        buffer += client.socket.recv(16)
    body, _, fields = struct.unpack_from("<III", buffer, 4)
    assert body == size + 4
    head = (16 + fields + 7) & ~7
    data = bytearray(head + body)
    data[: len(buffer)] = buffer
    view = memoryview(data)
    at = len(buffer)
    while at < len(data):
        count = client.socket.recv_into(view[at:])
        assert count
        at += count
    assert struct.unpack_from("<I", data, head) == (size,)
    return bytes(data[:head]), view[head + 4 :]


@pytest.mark.parametrize("size", [100_000, LARGEST])
def test_a_native_sends_a_client_a_large_call_and_gets_a_large_reply(
    native: NativePeer, legacy: RawClient, size: int
) -> None:
    there, back = payload_of(1, size), payload_of(2, size)
    native.post(legacy.unique_name, "M", "ay", there)
    head, received = receive_large(legacy, size)
    assert digest(received) == digest(there)
    serial = struct.unpack_from("<I", head, 8)[0]
    fields = {"reply_serial": serial, "destination": native.unique_name}
    send_large(legacy, Message(METHOD_RETURN, NO_REPLY_EXPECTED, fields=fields), back)
    assert digest(native.receive_message().values[0]) == digest(back)


@pytest.mark.parametrize("size", [100_000, LARGEST])
def test_a_client_sends_a_native_a_large_call_and_gets_a_large_reply(
    native: NativePeer, legacy: RawClient, size: int
) -> None:
    there, back = payload_of(2, size), payload_of(1, size)
    fields = {"path": "/a", "member": "M", "destination": native.unique_name}
    send_large(legacy, Message(METHOD_CALL, fields=fields), there)
    call = native.receive_message()
    assert digest(call.values[0]) == digest(there)
    native.answer(call, "ay", back)
    _, received = receive_large(legacy, size)
    assert digest(received) == digest(back)


def test_a_big_endian_client_sends_a_native_a_large_signal(native: NativePeer, legacy: RawClient) -> None:
    data = payload_of(1, 2 * MIB)
    fields = {"path": "/a", "interface": "a.b", "member": "M", "destination": native.unique_name}
    send_large(legacy, Message(SIGNAL, NO_REPLY_EXPECTED, fields=fields, order="B"), data)
    assert digest(native.receive_message().values[0]) == digest(data)


def test_natives_send_each_other_what_is_large(mixed: MixedBus, native: NativePeer) -> None:
    data = payload_of(1, LARGEST)
    with mixed.join() as other:
        native.post(other.unique_name, "M", "ay", data)
        call = other.receive_message()
        assert digest(call.values[0]) == digest(data)
        other.answer(call, "ay", call.values[0])
        assert digest(native.receive_message().values[0]) == digest(data)


def test_what_is_too_large_for_a_pool_is_refused_or_goes_round_it(mixed: MixedBus, legacy: RawClient) -> None:
    """A small pool takes large messages all the same, because they travel as memory of their own."""
    data = payload_of(1, 8 * MIB)
    with mixed.join(pool_size=1 << 16) as native:
        fields = {"path": "/a", "member": "M", "destination": native.unique_name}
        send_large(legacy, Message(METHOD_CALL, fields=fields), data)
        assert digest(native.receive_message().values[0]) == digest(data)


def test_large_payloads_leave_nothing(mixed: MixedBus) -> None:
    data = payload_of(1, 4 * MIB)
    with mixed.nothing_left(), mixed.join() as native, mixed.connect() as legacy:
        native.post(legacy.unique_name, "Unread", "ay", data)
        fields = {"path": "/a", "member": "Unread", "destination": native.unique_name}
        send_large(legacy, Message(METHOD_CALL, fields=fields), data)


# Files


@pytest.fixture
def files() -> Iterator[list[int]]:
    """Four pipes' ends to read from, each with something of its own in it."""
    with ExitStack() as stack:
        fds = []
        for number in range(4):
            reader, writer = os.pipe()
            stack.callback(os.close, reader)
            os.write(writer, b"%d" % number)
            os.close(writer)
            fds.append(reader)
        yield fds


def identities(fds: list[int]) -> list[tuple[int, int]]:
    return [(status.st_dev, status.st_ino) for status in map(os.fstat, fds)]


def close_after(fds: list[int]) -> list[tuple[int, int]]:
    """Which files these are; closes them."""
    found = identities(fds)
    for fd in fds:
        os.close(fd)
    return found


@pytest.mark.parametrize("count", [1, 4])
def test_files_go_from_a_native_to_a_client(mixed: MixedBus, files: list[int], count: int) -> None:
    with mixed.nothing_left(), mixed.join() as native, mixed.connect() as legacy:
        native.post(legacy.unique_name, "M", "h" * count, *files[:count])
        received = legacy.receive()
        assert (received.body, received.fds) == (list(range(count)), count)
        assert close_after(legacy.take_fds(count)) == identities(files[:count])


@pytest.mark.parametrize("count", [1, 4])
def test_files_go_from_a_client_to_a_native(mixed: MixedBus, files: list[int], count: int) -> None:
    with mixed.nothing_left(), mixed.join() as native, mixed.connect() as legacy:
        numbers = list(range(count))
        legacy.send_call("M", "h" * count, *numbers, destination=native.unique_name, fds=files[:count])
        call = native.receive_message()
        assert [value.fileno() for value in call.values] == [file.fileno() for file in call.files]
        assert close_after(take_files(call)) == identities(files[:count])


def test_files_come_with_replies_both_ways(mixed: MixedBus, files: list[int]) -> None:
    with mixed.nothing_left(), mixed.join() as native, mixed.connect() as legacy:
        legacy.send_call("M", destination=native.unique_name)
        native.answer(native.receive_message(), "sh", "file", files[0])
        reply = legacy.receive()
        assert reply.body == ["file", 0]
        assert close_after(legacy.take_fds(1)) == identities(files[:1])
        native.post(legacy.unique_name, "M")
        fields = {
            "reply_serial": legacy.receive().serial,
            "destination": native.unique_name,
            "signature": "ha{sv}",
            "unix_fds": 2,
        }
        body = [1, {"file": ("h", 0)}]
        legacy.send(Message(METHOD_RETURN, NO_REPLY_EXPECTED, fields=fields, body=body), files[1:3])
        answer = native.receive_message()
        first, second = answer.values[0].fileno(), answer.values[1]["file"][1].fileno()
        assert identities([second, first]) == identities(files[1:3])
        answer.close()


def test_files_come_with_signals_to_one(mixed: MixedBus, files: list[int]) -> None:
    with mixed.nothing_left(), mixed.join() as native, mixed.connect() as legacy:
        native.emit("S", "h", files[0], destination=legacy.unique_name)
        assert legacy.receive().fds == 1
        assert close_after(legacy.take_fds(1)) == identities(files[:1])
        fields = {
            "path": "/a",
            "interface": "a.b",
            "member": "S",
            "destination": native.unique_name,
            "signature": "h",
            "unix_fds": 1,
        }
        legacy.send(Message(SIGNAL, NO_REPLY_EXPECTED, fields=fields, body=[0]), files[:1])
        assert close_after(take_files(native.receive_message())) == identities(files[:1])


def test_a_socket_does_not_go_to_a_native(mixed: MixedBus, files: list[int]) -> None:
    with mixed.nothing_left(), mixed.join() as native, mixed.connect() as legacy:
        one, other = socket.socketpair()
        with one, other:
            refused = legacy.reply(
                "M", "hh", 0, 1, destination=native.unique_name, path="/a", fds=[files[0], one.fileno()]
            )
        assert refused.type == ERROR
        assert refused.error_name == PREFIX + "NotSupported"
        legacy.sync()
        assert native.drain() == []


def test_a_socket_does_not_go_from_a_native(mixed: MixedBus) -> None:
    with mixed.nothing_left(), mixed.join() as native, mixed.connect() as legacy:
        one, other = socket.socketpair()
        with one, other, pytest.raises(KdbusError) as caught:
            native.post(legacy.unique_name, "M", "h", one.fileno())
        assert caught.value.errno == errno.EOPNOTSUPP
        assert legacy.sync() == []


def test_an_inet_socket_goes_both_ways(mixed: MixedBus) -> None:
    with mixed.nothing_left(), mixed.join() as native, mixed.connect() as legacy, socket.socket() as inet:
        native.post(legacy.unique_name, "M", "h", inet.fileno())
        assert legacy.receive().fds == 1
        assert close_after(legacy.take_fds(1)) == identities([inet.fileno()])
        legacy.send_call("M", "h", 0, destination=native.unique_name, fds=[inet.fileno()])
        assert close_after(take_files(native.receive_message())) == identities([inet.fileno()])


def test_a_client_that_takes_no_files_gets_none(mixed: MixedBus, files: list[int]) -> None:
    with mixed.nothing_left(), mixed.join() as native, mixed.connect(negotiate_fds=False) as legacy:
        with pytest.raises(KdbusError) as caught:
            native.post(legacy.unique_name, "M", "h", files[0])
        assert caught.value.errno == errno.ECOMM
        assert legacy.sync() == []


def test_files_that_nobody_reads_are_closed(mixed: MixedBus, files: list[int]) -> None:
    with mixed.nothing_left(), mixed.join() as native, mixed.connect() as legacy:
        for _ in range(5):
            native.post(legacy.unique_name, "M", "hh", files[0], files[1])
            legacy.send_call("M", "hh", 0, 1, destination=native.unique_name, fds=files[:2])
        legacy.sync()


# Services that are started


def call_service(native: NativePeer, name: str, **how: Any) -> Mail:
    return native.call(name, "Hello", path=PATH, interface=INTERFACE, **how)


def quit_service(mixed: MixedBus, native: NativePeer) -> None:
    native.call(ACTIVATED, "Quit", path=PATH, interface=INTERFACE)
    with mixed.connect() as witness:
        witness.wait_for_name_lost(ACTIVATED)


def test_a_natives_call_starts_a_legacy_service(mixed: MixedBus, native: NativePeer) -> None:
    first = call_service(native, ACTIVATED)
    assert isinstance(first, NativeMessage)
    name, pid = first.values
    assert name == ACTIVATED
    second = call_service(native, ACTIVATED)
    assert isinstance(second, NativeMessage)
    assert second.values == (ACTIVATED, pid)
    quit_service(mixed, native)


def test_calls_of_both_kinds_wait_for_the_same_service_in_their_order(
    mixed: MixedBus, native: NativePeer, legacy: RawClient
) -> None:
    how: dict[str, Any] = {"path": PATH, "interface": INTERFACE}
    cookies = [native.post(ACTIVATED, "Hello", **how)]
    serials = [legacy.send_call("Hello", destination=ACTIVATED, **how)]
    cookies.append(native.post(ACTIVATED, "Hello", **how))
    serials.append(legacy.send_call("Hello", destination=ACTIVATED, **how))
    natives = [native.receive_message() for _ in cookies]
    clients = [legacy.receive() for _ in serials]
    assert [reply.reply_cookie for reply in natives] == cookies
    assert [reply.fields["reply_serial"] for reply in clients] == serials
    pids = {reply.values[1] for reply in natives} | {reply.body[1] for reply in clients}
    assert len(pids) == 1
    quit_service(mixed, native)


def test_a_call_that_starts_nothing_is_refused(native: NativePeer) -> None:
    with pytest.raises(KdbusError) as caught:
        call_service(native, ACTIVATED, flags=NO_AUTO_START)
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_service_that_does_not_start_ends_the_calls_of_both_kinds(
    native: NativePeer, legacy: RawClient
) -> None:
    serial = legacy.send_call("Hello", destination=FAILING, path=PATH, interface=INTERFACE)
    answer = call_service(native, FAILING)
    assert isinstance(answer, ReplyDead)
    refused = legacy.receive()
    assert refused.fields["reply_serial"] == serial
    assert refused.error_name == PREFIX + "Spawn.ChildExited"


def test_a_native_may_own_the_name_of_a_legacy_service(
    mixed: MixedBus, native: NativePeer, legacy: RawClient
) -> None:
    native.acquire(ACTIVATED)
    legacy.send_call("Hello", destination=ACTIVATED, path=PATH, interface=INTERFACE)
    native.answer(native.receive_message(), "s", "native")
    assert legacy.receive().body == ["native"]
    native.release(ACTIVATED)


def test_what_waits_for_a_service_goes_to_a_native_that_takes_its_name(
    mixed: MixedBus, native: NativePeer, legacy: RawClient
) -> None:
    """A name that can be started is anybody's until the service has it."""
    how: dict[str, Any] = {"path": PATH, "interface": INTERFACE}
    with mixed.join() as caller:
        cookie = caller.post(GATED, "Hello", **how)
        serial = legacy.send_call("Hello", destination=GATED, **how)
        legacy.sync()
        native.acquire(GATED)
        for _ in range(2):
            native.answer(native.receive_message(), "s", "native")
        reply = caller.receive_message()
        assert (reply.reply_cookie, reply.values) == (cookie, ("native",))
        answer = legacy.receive()
        assert (answer.fields["reply_serial"], answer.body) == (serial, ["native"])
        native.acquire(GATE)
        while len(legacy.reply("ListQueuedOwners", "s", GATED).body[0]) < 2:
            pass  # it is about to ask for the name
        native.release(GATED)
        caller.call(GATED, "Quit", **how)
    with mixed.connect() as witness:
        witness.wait_for_name_lost(GATED)
