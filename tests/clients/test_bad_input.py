"""Bad input of every kind: the offender is treated as dbus-daemon treats it, and nobody else notices.

Each scenario runs between two checks: that the bus holds as many fds afterwards as before, and that a
well-behaved pair of clients still talks. On `busproxyd` the log is read, too: one line for an offender that
was thrown out, with the reason, and with the offset if it was a message; no line for one that merely went.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from support.bus import BUSPROXYD, Bus, start_bus
from support.compare import Comparison
from support.proxy import resident_bytes
from support.raw import (
    ERROR,
    METHOD_CALL,
    METHOD_RETURN,
    NO_REPLY_EXPECTED,
    SIGNAL,
    Message,
    RawClient,
    build_message,
    connect_address,
)

pytestmark = pytest.mark.program("dbus-daemon")

LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"


def exchange(caller: RawClient, callee: RawClient) -> None:
    """One call and its reply between two clients, nothing else coming in between."""
    serial = caller.send_call("Ask", "s", "question", destination=callee.unique_name, interface="a.b")
    asked = callee.receive()
    assert (asked.member, asked.body, asked.serial) == ("Ask", ["question"], serial)
    fields = {"destination": caller.unique_name, "reply_serial": serial, "signature": "s"}
    callee.send(Message(METHOD_RETURN, fields=fields, body=["answer"]))
    assert caller.receive().body == ["answer"]


class Watch:
    """What the bus has logged since the scenario began."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._start = len(bus.stderr_text())

    @property
    def lines(self) -> list[str]:
        return self._bus.stderr_text()[self._start :].splitlines()

    def says_once(self, reason: str) -> None:
        """On `busproxyd`: exactly one line, and it gives the reason (a regular expression)."""
        if self._bus.kind == BUSPROXYD:
            assert len(self.lines) == 1, self.lines
            assert re.search(reason, self.lines[0]), self.lines[0]

    def says_nothing(self) -> None:
        if self._bus.kind == BUSPROXYD:
            assert self.lines == []


@contextmanager
def others_unharmed(bus: Bus) -> Iterator[Watch]:
    """Around a scenario: two others talk before and after; afterwards nothing of the scenario is left."""
    before = bus.count_fds_besides()
    watch = Watch(bus)
    with bus.connect() as caller, bus.connect() as callee:
        exchange(caller, callee)
        yield watch
        exchange(caller, callee)
        assert caller.sync() == callee.sync() == []
    assert bus.settle_fds(before) == before
    assert bus.process.poll() is None


def outcome(client: RawClient) -> list[Any]:
    """What a client gets until a call of its own is answered, or until it is thrown out."""
    return ["disconnected" if message is None else message.describe() for message in client.probe()]


def is_thrown_out(sock: socket.socket) -> bool:
    """Read to the end of the stream; an end that does not come is a failure of the test."""
    with suppress(ConnectionResetError):
        while sock.recv(65536):
            pass
    return True


def plain_call(destination: str, **changes: Any) -> Message:
    fields: dict[Any, Any] = {
        "path": "/a",
        "interface": "a.b",
        "member": "M",
        "destination": destination,
        "signature": "s",
        **changes,
    }
    return Message(
        METHOD_CALL, 0, 1000, {name: value for name, value in fields.items() if value is not None}, ["text"]
    )


def patched(data: bytes, at: int, new: bytes) -> bytes:
    at %= len(data)
    return data[:at] + new + data[at + len(new) :]


def added(data: bytes, at: int, difference: int) -> bytes:
    """The message with a number in its header changed."""
    (number,) = struct.unpack_from("<I", data, at)
    return patched(data, at, struct.pack("<I", number + difference))


def with_body(destination: str, signature: str, body: bytes) -> bytes:
    """A call with these very bytes as body."""
    fields = {"path": "/", "interface": "a.b", "member": "M", "destination": destination}
    header = build_message(Message(METHOD_CALL, 0, 1000, {**fields, "signature": "ay"}, [b""]))[:-4]
    header = header.replace(b"\x01g\0\x02ay\0", b"\x01g\0\x02" + signature.encode() + b"\0")
    return patched(header, 4, struct.pack("<I", len(body))) + body


STRING = struct.pack("<I", 4) + b"text\0"

BAD_MESSAGES: dict[str, Callable[[str], bytes]] = {
    "no byte order mark": lambda to: patched(build_message(plain_call(to)), 0, b"x"),
    "no byte order mark, lengths in big-endian": lambda to: patched(
        build_message(Message(METHOD_CALL, 0, 1000, plain_call(to).fields, ["text"], "B")), 0, b"x"
    ),
    "the other byte order mark": lambda to: patched(build_message(plain_call(to)), 0, b"B"),
    "protocol version 2": lambda to: patched(build_message(plain_call(to)), 3, b"\x02"),
    "message type 0": lambda to: patched(build_message(plain_call(to)), 1, b"\0"),
    "serial 0": lambda to: patched(build_message(plain_call(to)), 8, bytes(4)),
    "a body length that is too short": lambda to: added(build_message(plain_call(to)), 4, -1),
    "a body length that is too long": lambda to: added(build_message(plain_call(to)), 4, 8),
    "a length of fields that is too short": lambda to: added(build_message(plain_call(to)), 12, -8),
    "a length of fields that is too long": lambda to: added(build_message(plain_call(to)), 12, 8),
    "more than 128 MiB": lambda to: patched(
        build_message(plain_call(to)), 4, struct.pack("<I", 128 * 1024 * 1024)
    ),
    "the largest numbers": lambda to: patched(build_message(plain_call(to)), 4, b"\xff" * 12),
    "bad UTF-8": lambda to: patched(build_message(plain_call(to)), -3, b"\xff"),
    "overlong UTF-8": lambda to: patched(build_message(plain_call(to)), -4, b"\xc0\xaf"),
    "a surrogate in UTF-8": lambda to: patched(build_message(plain_call(to)), -5, b"\xed\xa0\x80"),
    "NUL inside a string": lambda to: patched(build_message(plain_call(to)), -3, b"\0"),
    "a string without NUL": lambda to: patched(build_message(plain_call(to)), -1, b"x"),
    "a string longer than the body": lambda to: with_body(to, "ss", struct.pack("<I", 0xFFFFFFFF) + b"x\0"),
    "one string too few": lambda to: with_body(to, "ss", STRING),
    "bytes behind the last value": lambda to: with_body(to, "su", STRING + bytes(3) + bytes(8)),
    "padding that is not zero": lambda to: with_body(to, "su", STRING + b"\1\0\0" + bytes(4)),
    "a boolean of 2": lambda to: with_body(to, "bb", struct.pack("<II", 1, 2)),
    "an array longer than the body": lambda to: with_body(to, "ay", struct.pack("<I", 1000) + b"x"),
    "an array of more than 64 MiB": lambda to: with_body(to, "ay", struct.pack("<I", 1 << 27)),
    "an array that ends inside an element": lambda to: with_body(to, "au", struct.pack("<I", 6) + bytes(6)),
    "an object path with a slash at the end": lambda to: with_body(to, "oo", struct.pack("<I", 3) + b"/a/\0"),
    "an empty object path": lambda to: with_body(to, "oo", struct.pack("<I", 0) + b"\0"),
    "a signature that is none": lambda to: with_body(to, "gg", b"\x01z\0\x00\0"),
    "a variant of two types": lambda to: with_body(to, "vy", b"\x02yy\0\x01\x02\x03"),
    "a variant of an open struct": lambda to: with_body(to, "vy", b"\x01(\0\0\0\0\0\0"),
    "variants nested too deeply": lambda to: with_body(to, "vy", b"\x01v\0" * 70 + b"\x01y\0\x05\x05"),
    "no path": lambda to: build_message(plain_call(to, path=None)),
    "no member": lambda to: build_message(plain_call(to, member=None)),
    "a signal without interface": lambda to: build_message(
        Message(SIGNAL, 0, 1000, {"path": "/a", "member": "S"})
    ),
    "a reply to nothing": lambda to: build_message(Message(METHOD_RETURN, 0, 1000, {"destination": to})),
    "a reply to serial 0": lambda to: build_message(
        Message(METHOD_RETURN, 0, 1000, {"destination": to, "reply_serial": 0})
    ),
    "an error without name": lambda to: build_message(
        Message(ERROR, 0, 1000, {"destination": to, "reply_serial": 7})
    ),
    "a path that is none": lambda to: build_message(plain_call(to, path="a")),
    "a member that is none": lambda to: build_message(plain_call(to, member="1M")),
    "an interface that is none": lambda to: build_message(plain_call(to, interface="ab")),
    "a destination that is none": lambda to: build_message(plain_call("1.2.3")),
    "a sender that is none": lambda to: build_message(plain_call(to, sender="::")),
    "a name of 256 bytes": lambda to: build_message(plain_call("a." + "b" * 254)),
    "a signature of the fields that is none": lambda to: build_message(plain_call(to)).replace(
        b"\x01g\0\x01s\0", b"\x01g\0\x01{\0"
    ),
    "the reserved interface": lambda to: build_message(
        plain_call(to, interface="org.freedesktop.DBus.Local")
    ),
    "the reserved path": lambda to: build_message(plain_call(to, path="/org/freedesktop/DBus/Local")),
    "a signal of the reserved interface": lambda to: build_message(
        Message(
            SIGNAL,
            0,
            1000,
            {
                "path": "/org/freedesktop/DBus/Local",
                "interface": "org.freedesktop.DBus.Local",
                "member": "Disconnected",
            },
        )
    ),
    "a field twice": lambda to: build_message(
        Message(METHOD_CALL, 0, 1000, {"path": "/a", "member": "M", 3: ("s", "N"), "destination": to})
    ),
    "a field of a wrong type": lambda to: build_message(
        Message(METHOD_CALL, 0, 1000, {"path": "/a", 3: ("o", "/M"), "destination": to})
    ),
    "field code 0": lambda to: build_message(
        Message(METHOD_CALL, 0, 1000, {0: ("y", 1), "path": "/a", "member": "M", "destination": to})
    ),
    "noise": lambda to: bytes(range(1, 256)),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_an_invalid_message_ends_the_connection_of_its_sender(compare_shared: Comparison, case: str) -> None:
    def scenario(bus: Bus) -> Any:
        with others_unharmed(bus) as watch, bus.connect() as offender, bus.connect() as target:
            offender.send_bytes(BAD_MESSAGES[case](target.unique_name))
            found = [outcome(offender), outcome(target)[:-1]]
            assert found == [["disconnected"], []]
            watch.says_once(
                rf"disconnecting {re.escape(offender.unique_name)} .*: invalid message: .* at offset \d+"
            )
            return found

    compare_shared(scenario)


TOLERATED: dict[str, Callable[[str], Message]] = {
    "a forged sender": lambda to: plain_call(to, sender="com.example.Forged"),
    "the bus as sender": lambda to: plain_call(to, sender="org.freedesktop.DBus"),
    "unknown flags": lambda to: Message(METHOD_CALL, 0xF8, 1000, plain_call(to).fields, ["t"]),
    "an unknown type": lambda to: Message(9, 0, 1000, plain_call(to).fields, ["t"]),
    "an unknown type to nobody": lambda to: Message(9, 0, 1000, {"path": "/", "member": "M"}),
    "an unknown type to the bus": lambda to: Message(
        255, 0, 1000, {"path": "/", "member": "GetId", "destination": "org.freedesktop.DBus"}
    ),
    "a reply nobody waits for": lambda to: Message(
        METHOD_RETURN, 0, 1000, {"destination": to, "reply_serial": 4711}
    ),
    "an interface that only begins like the driver's": lambda to: plain_call(
        "org.freedesktop.DBus", interface="org.freedesktop.DBusser"
    ),
    "a call to an owner of an endless unique name": lambda to: Message(
        METHOD_CALL,
        0,
        1000,
        {
            "path": "/org/freedesktop/DBus",
            "interface": "org.freedesktop.DBus",
            "member": "GetNameOwner",
            "destination": "org.freedesktop.DBus",
            "signature": "s",
        },
        [":1." + "9" * 5000],
    ),
    "a call to a unique name beyond all numbers": lambda to: plain_call(":1." + "9" * 250),
}


def test_fields_of_more_than_64_mib_are_not_waited_for(busproxyd: Bus) -> None:
    with others_unharmed(busproxyd) as watch, busproxyd.connect() as offender:
        data = build_message(plain_call(offender.unique_name))
        offender.send_bytes(patched(data, 12, struct.pack("<I", 64 * 1024 * 1024 + 1)))
        assert outcome(offender) == ["disconnected"]
        watch.says_once(r"invalid message: array of header fields longer than 64 MiB at offset 12")


def test_an_unknown_field_is_kept(busproxyd: Bus) -> None:
    with others_unharmed(busproxyd) as watch, busproxyd.connect() as sender, busproxyd.connect() as target:
        message = plain_call(target.unique_name)
        message.fields[77] = ("s", "kept")
        sender.send(message)
        assert target.receive().fields[77] == ("s", "kept")
        watch.says_nothing()


@pytest.mark.parametrize("case", TOLERATED)
def test_an_odd_message_with_an_intact_frame_is_treated_alike(compare_shared: Comparison, case: str) -> None:
    def scenario(bus: Bus) -> Any:
        with others_unharmed(bus) as watch, bus.connect() as sender, bus.connect() as target:
            sender.send(TOLERATED[case](target.unique_name))
            found = [outcome(sender), outcome(target)]
            assert "disconnected" not in found[0] + found[1]
            watch.says_nothing()
            return found

    compare_shared(scenario)


@pytest.mark.parametrize("case", ["bad UTF-8", "serial 0", "a body length that is too short"])
def test_an_invalid_message_after_many_good_ones_of_its_kind_is_no_better(
    compare_shared: Comparison, case: str
) -> None:
    def scenario(bus: Bus) -> Any:
        with others_unharmed(bus) as watch, bus.connect() as offender, bus.connect() as target:
            good = plain_call(target.unique_name)
            for serial in range(1, 6):
                good.serial = serial
                offender.send(good)
            offender.send_bytes(BAD_MESSAGES[case](target.unique_name))
            assert outcome(offender) == ["disconnected"]
            watch.says_once(r"invalid message: .* at offset \d+")
            return [message.serial for message in target.sync()]

    assert compare_shared(scenario) == [1, 2, 3, 4, 5]


# Before there is a connection


BAD_BEGINNINGS: dict[str, tuple[bytes, str]] = {
    "no NUL": (b"GET / HTTP/1.0\r\n\r\n", "authentication failed"),
    "a message": (build_message(plain_call("org.freedesktop.DBus")), "authentication failed"),
    "BEGIN at once": (b"\0BEGIN\r\n", "authentication failed"),
    "a line without end": (b"\0" + b"A" * 100_000, "authentication failed"),
    "rejections without end": (b"\0" + b"AUTH NONSENSE\r\n" * 1000, "authentication failed"),
    "somebody else's uid, for ever": (
        b"\0" + b"AUTH EXTERNAL 3939393939\r\n" * 1000,
        "authentication failed",
    ),
    "BEGIN after a rejection": (b"\0AUTH NONSENSE\r\nBEGIN\r\n", "authentication failed"),
    "noise after BEGIN": (b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n" + b"\xff" * 64, "invalid message"),
    "SASL after BEGIN": (
        b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n",
        "invalid message",
    ),
}


@pytest.mark.parametrize("case", BAD_BEGINNINGS)
def test_a_client_that_begins_badly_is_thrown_out(compare_shared: Comparison, case: str) -> None:
    data, reason = BAD_BEGINNINGS[case]

    def scenario(bus: Bus) -> Any:
        with others_unharmed(bus) as watch, connect_address(bus.address) as sock:
            sock.settimeout(20)
            with suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data)
            assert is_thrown_out(sock)
            watch.says_once(
                rf"disconnecting new client \(pid {os.getpid()}, uid {os.getuid()}\): {reason}: .+"
            )
            return "disconnected"

    compare_shared(scenario)


@pytest.mark.parametrize("kind", [METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL])
def test_a_message_to_another_client_before_hello_ends_the_connection(
    compare_shared: Comparison, kind: int
) -> None:
    def scenario(bus: Bus) -> Any:
        with others_unharmed(bus) as watch, bus.connect(hello=False) as early, bus.connect() as target:
            fields: dict[Any, Any] = {"destination": target.unique_name}
            if kind in (METHOD_CALL, SIGNAL):
                fields |= {"path": "/", "interface": "a.b", "member": "M"}
            else:
                fields |= {"reply_serial": 1, "error_name": "a.b.C"} if kind == ERROR else {"reply_serial": 1}
            early.send(Message(kind, fields=fields))
            found = [outcome(early), outcome(target)[:-1]]
            assert found == [["disconnected"], []]
            watch.says_once("a message before Hello")
            return found

    compare_shared(scenario)


def test_a_monitor_that_sends_is_thrown_out(compare_shared: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with others_unharmed(bus) as watch, bus.connect() as monitor:
            monitor.call(
                "BecomeMonitor", "asu", ["member='Never'"], 0, interface="org.freedesktop.DBus.Monitoring"
            )
            found = outcome(monitor)
            watch.says_once("monitor")
            return found[-1]

    assert compare_shared(scenario) == "disconnected"


# Descriptors


def open_pipes(stack: ExitStack, count: int) -> list[int]:
    fds = []
    for _ in range(count):
        reader, writer = os.pipe()
        os.close(writer)
        stack.callback(os.close, reader)
        fds.append(reader)
    return fds


BAD_FDS: dict[str, tuple[bool, int, int, str]] = {
    # negotiated, announced, sent, what the log says
    "nobody negotiated them": (False, 1, 1, "without having negotiated"),
    "more than allowed": (True, 17, 17, "more than 16 file descriptors"),
    "as many as a message can carry": (True, 253, 253, "more than 16 file descriptors"),
    "announced and not sent": (True, 1, 0, r"1 file descriptors announced, 0 came at offset \d+"),
    "announced beyond all numbers": (True, 0xFFFFFFFF, 0, r"announced, 0 came at offset \d+"),
    "fewer sent than announced": (True, 3, 2, r"3 file descriptors announced, 2 came at offset \d+"),
}


@pytest.mark.parametrize("case", BAD_FDS)
def test_bad_descriptors_end_the_connection(compare_shared: Comparison, case: str) -> None:
    negotiated, announced, sent, reason = BAD_FDS[case]

    def scenario(bus: Bus) -> Any:
        with ExitStack() as stack, others_unharmed(bus) as watch:
            with RawClient(bus.address, negotiate_fds=negotiated) as offender, bus.connect() as target:
                message = plain_call(target.unique_name)
                if announced:
                    message.fields["unix_fds"] = announced
                offender.send(message, open_pipes(stack, sent))
                found = [outcome(offender), outcome(target)[:-1]]
            assert found == [["disconnected"], []]
            watch.says_once(reason)
            return found

    compare_shared(scenario)


def test_descriptors_that_nobody_negotiated_or_announced_are_treated_alike(
    compare_shared: Comparison,
) -> None:
    def scenario(bus: Bus) -> Any:
        with (
            ExitStack() as stack,
            others_unharmed(bus),
            RawClient(bus.address, negotiate_fds=False) as sender,
            bus.connect() as target,
        ):
            sender.send(plain_call(target.unique_name), open_pipes(stack, 1))
            return [outcome(sender), outcome(target)]

    compare_shared(scenario)


# Going away at the wrong moment


def first_words(bus: Bus, target: RawClient) -> bytes:
    """Everything a client says from its first byte to the end of its first call to another."""
    hello = Message(
        METHOD_CALL,
        0,
        1,
        {
            "path": "/org/freedesktop/DBus",
            "interface": "org.freedesktop.DBus",
            "member": "Hello",
            "destination": "org.freedesktop.DBus",
        },
    )
    call = Message(
        METHOD_CALL,
        NO_REPLY_EXPECTED,
        2,
        {
            "path": "/a",
            "interface": "a.b",
            "member": "M",
            "destination": target.unique_name,
            "signature": "s",
        },
        ["text"],
    )
    return (
        b"\0AUTH EXTERNAL "
        + str(os.getuid()).encode().hex().encode()
        + b"\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"
        + build_message(hello)
        + build_message(call)
    )


def test_a_client_may_vanish_after_any_byte(shared_buses: list[Bus]) -> None:
    for bus in shared_buses:
        with others_unharmed(bus) as watch, bus.connect() as target:
            words = first_words(bus, target)
            names = len(target.reply("ListNames").body[0])
            for length in range(len(words) + 1):
                with connect_address(bus.address) as sock:
                    sock.sendall(words[:length])
            target.sync()
            while len(target.reply("ListNames").body[0]) > names:
                pass
            assert [message.member for message in target.sync() if message.type == METHOD_CALL] in ([], ["M"])
            watch.says_nothing()


def test_a_client_may_send_every_byte_alone(shared_buses: list[Bus]) -> None:
    for bus in shared_buses:
        with others_unharmed(bus) as watch, bus.connect() as target:
            with connect_address(bus.address) as sock:
                sock.settimeout(20)
                for byte in first_words(bus, target):
                    sock.send(bytes([byte]))
                received = target.receive()
                assert (received.member, received.body) == ("M", ["text"])
            watch.says_nothing()


def test_a_client_may_vanish_inside_a_large_message(shared_buses: list[Bus]) -> None:
    for bus in shared_buses:
        with others_unharmed(bus) as watch, bus.connect() as target:
            message = plain_call(target.unique_name, signature="ay")
            message.body = [b"x" * 2_000_000]
            data = build_message(message)
            for length in (15, 16, 17, 65_535, 70_000, 300_000, len(data) - 1):
                with bus.connect() as client:
                    client.send_bytes(data[:length])
            watch.says_nothing()
            assert [m for m in target.sync() if m.type == METHOD_CALL] == []


@pytest.mark.parametrize("how", ["writing", "both"])
def test_a_half_closed_socket_ends_the_connection(compare_shared: Comparison, how: str) -> None:
    direction = socket.SHUT_WR if how == "writing" else socket.SHUT_RDWR

    def scenario(bus: Bus) -> Any:
        with others_unharmed(bus) as watch, bus.connect() as watcher, bus.connect() as client:
            client.socket.shutdown(direction)
            watcher.wait_for_name_lost(client.unique_name)
            watch.says_nothing()
            return "gone"

    compare_shared(scenario)


def test_a_client_that_has_closed_its_ears_is_still_heard(compare_shared: Comparison) -> None:
    """Its answers are lost, what it says is not."""

    def scenario(bus: Bus) -> Any:
        with others_unharmed(bus) as watch, bus.connect() as listener, bus.connect() as client:
            client.socket.shutdown(socket.SHUT_RD)
            client.send_call("GetId")
            fields = {"path": "/", "interface": "a.b", "member": "M", "destination": listener.unique_name}
            client.send(Message(SIGNAL, fields=fields))
            heard = listener.receive().brief()
            watch.says_nothing()
            return heard

    assert compare_shared(scenario)


# Those who want too much


def test_an_announced_length_costs_the_bus_no_memory() -> None:
    bus = start_bus(BUSPROXYD)
    try:
        with others_unharmed(bus) as watch, ExitStack() as stack:
            before = resident_bytes(bus.pid)
            for _ in range(4):
                client = stack.enter_context(bus.connect())
                client.send_bytes(
                    patched(
                        build_message(plain_call(client.unique_name)), 4, struct.pack("<I", 100 * 1024 * 1024)
                    )
                )
            with bus.connect() as other:
                other.sync()
            assert resident_bytes(bus.pid) - before < 50 * 1024 * 1024
            watch.says_nothing()
    finally:
        bus.stop()


@pytest.fixture(params=["call", "call without reply", "signal"])
def flood(request: pytest.FixtureRequest) -> Callable[[str], Message]:
    """What the flood is made of."""

    def make(destination: str) -> Message:
        fields = {**plain_call(destination).fields, "signature": "ay"}
        kind = SIGNAL if request.param == "signal" else METHOD_CALL
        flags = NO_REPLY_EXPECTED if request.param == "call without reply" else 0
        return Message(kind, flags, 0, fields, [b"x" * 20_000])

    return make


def test_a_client_that_does_not_read_holds_nobody_up(flood: Callable[[str], Message]) -> None:
    limit = 3_000_000
    bus = start_bus(BUSPROXYD, extra=f'<limit name="max_outgoing_bytes">{limit}</limit>')
    try:
        with others_unharmed(bus) as watch, bus.connect() as sender, bus.connect() as sleeper:
            with bus.connect() as caller, bus.connect() as callee:
                exchange(caller, callee)
                before = resident_bytes(bus.pid)
                answers: list[Message] = []
                for _ in range(10):
                    for _ in range(50):
                        sender.send(flood(sleeper.unique_name))
                    answers += sender.sync()
                    exchange(caller, callee)
                assert resident_bytes(bus.pid) - before < 3 * limit + 10_000_000
                assert {answer.error_name for answer in answers} == {LIMITS_EXCEEDED}
                arrived = [message for message in sleeper.sync() if message.member == "M"]
                assert len(arrived) + len(answers) == 500
                assert arrived
                assert answers
                assert all(message.body == [b"x" * 20_000] for message in arrived)
                assert [m.serial for m in arrived] == sorted(m.serial for m in arrived)
                sender.send(flood(sleeper.unique_name))
                assert sleeper.receive().member == "M"
            watch.says_nothing()
    finally:
        bus.stop()


def test_a_client_that_asks_without_reading_the_answers_costs_bounded_memory() -> None:
    limit = 1_000_000
    bus = start_bus(BUSPROXYD, extra=f'<limit name="max_outgoing_bytes">{limit}</limit>')
    try:
        with others_unharmed(bus), bus.connect() as sleeper, bus.connect() as other:
            before = resident_bytes(bus.pid)
            request = Message(
                METHOD_CALL,
                fields={
                    "path": "/org/freedesktop/DBus",
                    "interface": "org.freedesktop.DBus.Introspectable",
                    "member": "Introspect",
                    "destination": "org.freedesktop.DBus",
                },
            )
            for _ in range(3000):
                request.serial = sleeper.next_serial()
                sleeper.send(request)
            other.sync()
            assert resident_bytes(bus.pid) - before < 3 * limit + 10_000_000
    finally:
        bus.stop()


def test_subscribers_that_do_not_read_lose_signals_and_others_get_all() -> None:
    bus = start_bus(BUSPROXYD, extra='<limit name="max_outgoing_bytes">1000000</limit>')
    try:
        with others_unharmed(bus) as watch, ExitStack() as stack:
            emitter, reader, *sleepers = [stack.enter_context(bus.connect()) for _ in range(6)]
            for client in (reader, *sleepers):
                client.call("AddMatch", "s", "interface='a.b'")
            fields = {"path": "/", "interface": "a.b", "member": "S", "signature": "uay"}
            for number in range(200):
                emitter.send(Message(SIGNAL, fields=fields, body=[number, b"x" * 20_000]))
                assert reader.receive().body[0] == number
            for sleeper in sleepers:
                numbers = [message.body[0] for message in sleeper.sync() if message.member == "S"]
                assert 0 < len(numbers) < 200
                assert numbers == sorted(numbers)
            watch.says_nothing()
    finally:
        bus.stop()
