"""Native and legacy programs that call each other on one bus: every type, every error, every flag.

The services are processes; the callers are raw clients and native peers. What a caller finds must not depend
on which kind its callee is of, as far as the two have words for the same things.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.mixed import EMBEDDED, KINDS, MixedBus, MixedBuses
from support.native_peer import NativePeer
from support.native_programs import start_native
from support.native_wire import SEND, Wire
from support.programs import Child
from support.raw import (
    ALLOW_INTERACTIVE,
    ERROR,
    METHOD_CALL,
    METHOD_RETURN,
    NO_AUTO_START,
    NO_REPLY_EXPECTED,
    Message,
    RawClient,
)
from support.services import INTERFACE, NEXT, PATH, start_service

from busproxy.native.messages import build_message, read_message
from kdbus_core.abi import HelloFlag, MessageFlag
from kdbus_core.errors import KdbusError
from kdbus_core.transport.client import ReplyDead, ReplyTimeout

NATIVE_SERVICE = "com.example.Native"
PREFIX = "org.freedesktop.DBus.Error."

ECHOES: list[tuple[str, str, list[Any]]] = [
    ("EchoByte", "y", [200]),
    ("EchoBoolean", "b", [True]),
    ("EchoInt16", "n", [-300]),
    ("EchoUint16", "q", [60000]),
    ("EchoInt32", "i", [-70000]),
    ("EchoUint32", "u", [4000000000]),
    ("EchoInt64", "x", [-(2**60)]),
    ("EchoUint64", "t", [2**63]),
    ("EchoDouble", "d", [0.125]),
    ("EchoString", "s", ["Grüße ✓"]),
    ("EchoString", "s", [""]),
    ("EchoObjectPath", "o", ["/a/b"]),
    ("EchoSignature", "g", ["a{sv}"]),
    ("EchoVariant", "v", [("as", ["x", "y"])]),
    ("EchoVariant", "v", [("v", ("(yv)", (7, ("t", 2**40))))]),
    ("EchoBytes", "ay", [bytes(range(256))]),
    ("EchoBytes", "ay", [b""]),
    ("EchoStrings", "as", [["a", "", "b" * 300]]),
    ("EchoStrings", "as", [[]]),
    ("EchoDict", "a{sv}", [{"k": ("u", 7), "l": ("ad", [0.5, -2.0]), "m": ("a{sv}", {"n": ("b", False)})}]),
    ("EchoDict", "a{sv}", [{}]),
    ("EchoStruct", "(isad)", [(1, "x", [0.5, 1.5])]),
    ("EchoSeveral", "ysa(ib)", [1, "x", [(3, True), (-4, False)]]),
    ("Nothing", "", []),
]


@pytest.fixture(scope="module")
def buses() -> Iterator[MixedBuses]:
    with MixedBuses() as buses:
        yield buses


@pytest.fixture(params=KINDS)
def mixed(request: pytest.FixtureRequest, buses: MixedBuses) -> MixedBus:
    return buses[request.param]


@pytest.fixture
def native_service(mixed: MixedBus, buses: MixedBuses) -> Child:
    return buses.program(mixed, start_native_service)


def start_native_service(mixed: MixedBus) -> Child:
    return start_native(mixed, "service.py", NATIVE_SERVICE)


@pytest.fixture
def legacy_service(mixed: MixedBus, buses: MixedBuses) -> Child:
    return buses.program(mixed, start_legacy_service)


def start_legacy_service(mixed: MixedBus) -> Child:
    return start_service(mixed.legacy, NEXT)


@pytest.fixture
def native(mixed: MixedBus) -> Iterator[NativePeer]:
    with mixed.join() as peer:
        yield peer


@pytest.fixture
def legacy(mixed: MixedBus) -> Iterator[RawClient]:
    with mixed.connect() as client:
        yield client


def call(
    caller: RawClient, destination: str, member: str, signature: str = "", *values: Any, **how: Any
) -> Any:
    """A legacy client's call of the service; its reply."""
    how = {"path": PATH, "interface": INTERFACE, **how}
    return caller.reply(member, signature, *values, destination=destination, **how)


def ask(
    peer: NativePeer, destination: str, member: str, signature: str = "", *values: Any, **how: Any
) -> Any:
    """A native peer's call of the service; what answers it."""
    return peer.call(destination, member, signature, *values, **{"path": PATH, "interface": INTERFACE, **how})


def reply_to(message: Message, signature: str = "", *body: Any, order: str = "l", **fields: Any) -> Message:
    """A legacy client's reply to a call."""
    fields = {"reply_serial": message.serial, "destination": message.fields["sender"], **fields}
    if signature:
        fields["signature"] = signature
    kind = ERROR if "error_name" in fields else METHOD_RETURN
    return Message(kind, NO_REPLY_EXPECTED, 0, fields, list(body), order)


def error_of(message: Message) -> tuple[str, Any]:
    assert message.type == ERROR, message
    return message.fields["error_name"].removeprefix(PREFIX), message.body[0] if message.body else None


# Every type


@pytest.mark.parametrize("order", ["l", "B"])
@pytest.mark.usefixtures("native_service")
def test_a_legacy_client_of_either_byte_order_gets_every_type_back_from_a_native_service(
    legacy: RawClient, order: str
) -> None:
    for member, signature, values in ECHOES:
        reply = call(legacy, NATIVE_SERVICE, member, signature, *values, order=order)
        assert (reply.type, reply.fields.get("signature", ""), reply.body) == (
            METHOD_RETURN,
            signature,
            values,
        )


@pytest.mark.usefixtures("legacy_service")
def test_a_native_client_gets_every_type_back_from_a_legacy_service(native: NativePeer) -> None:
    for member, signature, values in ECHOES:
        reply = ask(native, NEXT, member, signature, *values)
        assert (reply.type, reply.signature, list(reply.values)) == (METHOD_RETURN, signature, values)


@pytest.mark.usefixtures("native_service")
def test_a_native_client_gets_every_type_back_from_a_native_service(native: NativePeer) -> None:
    for member, signature, values in ECHOES:
        reply = ask(native, NATIVE_SERVICE, member, signature, *values)
        assert (reply.type, reply.signature, list(reply.values)) == (METHOD_RETURN, signature, values)


@pytest.mark.parametrize("order", ["l", "B"])
def test_a_legacy_callee_may_answer_in_either_byte_order(
    native: NativePeer, legacy: RawClient, order: str
) -> None:
    for _, signature, values in ECHOES:
        native.post(legacy.unique_name, "M", signature, *values)
        received = legacy.receive()
        assert received.body == values
        legacy.send(reply_to(received, signature, *values, order=order))
        reply = native.receive_message()
        assert (reply.signature, list(reply.values)) == (signature, values)


@pytest.mark.usefixtures("native_service", "legacy_service")
def test_a_call_may_go_from_one_kind_to_the_other_and_on(legacy: RawClient, native: NativePeer) -> None:
    assert call(legacy, NATIVE_SERVICE, "Forward", "ss", NEXT, "on").body == ["on"]
    assert call(legacy, NATIVE_SERVICE, "Forward", "ss", NATIVE_SERVICE, "itself").body == ["itself"]
    assert ask(native, NATIVE_SERVICE, "Forward", "ss", NEXT, "on").values == ("on",)


def test_everything_in_the_header_arrives(legacy: RawClient, native: NativePeer) -> None:
    legacy.send_call("M", "s", "x", destination=native.unique_name, path="/p/q", interface="i.j")
    received = native.receive_message()
    assert (received.path, received.interface, received.member) == ("/p/q", "i.j", "M")
    assert (received.sender, received.destination) == (legacy.unique_name, native.unique_name)
    native.post(legacy.unique_name, "N", "u", 7, path="/r", interface="k.l")
    assert legacy.receive().describe() == {
        "type": "call",
        "flags": 0,
        "is_reply": False,
        "destination": legacy.unique_name,
        "interface": "k.l",
        "member": "N",
        "path": "/r",
        "sender": native.unique_name,
        "signature": "u",
        "body": [7],
    }


def test_a_call_by_a_well_known_name_says_so(legacy: RawClient, native: NativePeer) -> None:
    native.acquire("com.example.Said")
    legacy.send_call("M", destination="com.example.Said")
    assert native.receive_message().destination == "com.example.Said"
    native.release("com.example.Said")
    legacy.reply("RequestName", "su", "com.example.Said", 0)
    legacy.sync()
    native.post("com.example.Said", "M")
    assert legacy.receive().fields["destination"] == "com.example.Said"
    legacy.reply("ReleaseName", "s", "com.example.Said")


def test_a_call_without_an_interface_has_none(legacy: RawClient, native: NativePeer) -> None:
    legacy.send_call("M", destination=native.unique_name, interface=None)
    assert native.receive_message().interface is None
    native.post(legacy.unique_name, "M", interface=None)
    assert "interface" not in legacy.receive().fields


# Flags


@pytest.mark.parametrize("flags", range(8))
def test_flags_of_a_call_are_seen_by_the_other_kind(
    legacy: RawClient, native: NativePeer, flags: int
) -> None:
    legacy.send_call("M", destination=native.unique_name, flags=flags)
    assert native.receive_message().flags == flags
    native.post(legacy.unique_name, "M", flags=flags)
    assert legacy.receive().flags == flags


def test_flags_are_those_that_the_broker_goes_by(mixed: MixedBus, legacy: RawClient) -> None:
    expected = {
        0: MessageFlag.EXPECT_REPLY,
        NO_REPLY_EXPECTED: MessageFlag(0),
        NO_AUTO_START: MessageFlag.EXPECT_REPLY | MessageFlag.NO_AUTO_START,
        ALLOW_INTERACTIVE: MessageFlag.EXPECT_REPLY,
    }
    with mixed.join() as native:
        for flags, kdbus_flags in expected.items():
            legacy.send_call("M", destination=native.unique_name, flags=flags)
            legacy.sync()
            with native.connection.receive() as received:  # type: ignore[union-attr]  # it is there: see sync
                assert received.flags == kdbus_flags


@pytest.mark.usefixtures("native_service", "legacy_service")
def test_a_call_that_wants_no_reply_gets_none_from_the_other_kind(
    legacy: RawClient, native: NativePeer
) -> None:
    how: dict[str, Any] = {"destination": NATIVE_SERVICE, "path": PATH, "interface": INTERFACE}
    legacy.send_call("EchoString", "s", "x", flags=NO_REPLY_EXPECTED, **how)
    legacy.send_call("NoSuchMethod", flags=NO_REPLY_EXPECTED, **how)
    assert [message.body for message in legacy.call("EchoString", "s", "y", **how)] == [["y"]]
    assert legacy.sync() == []
    native.post(NEXT, "EchoString", "s", "x", path=PATH, interface=INTERFACE, flags=NO_REPLY_EXPECTED)
    native.post(NEXT, "NoSuchMethod", path=PATH, interface=INTERFACE, flags=NO_REPLY_EXPECTED)
    assert ask(native, NEXT, "EchoString", "s", "y").values == ("y",)
    assert native.drain() == []


def test_a_native_cookie_that_is_no_serial_comes_back_in_the_reply(
    legacy: RawClient, native: NativePeer
) -> None:
    cookies = [2**64 - 1, 2**32, 2**32 + 1, 1, 2**32 - 1]
    received = []
    for cookie in cookies:
        native.post(legacy.unique_name, "M", "t", cookie, cookie=cookie)
        received.append(legacy.receive())
    assert len({message.serial for message in received}) == len(cookies)
    for message in reversed(received):
        legacy.send(reply_to(message, "t", message.body[0]))
    replies = [native.receive_message() for _ in cookies]
    assert [(reply.reply_cookie, reply.values[0]) for reply in replies] == [
        (cookie, cookie) for cookie in reversed(cookies)
    ]


# Errors as a legacy caller sees them


def test_a_native_that_is_gone_is_what_a_client_is_that_is_gone(mixed: MixedBus, legacy: RawClient) -> None:
    with mixed.join() as native, mixed.connect() as client:
        gone = (native.unique_name, client.unique_name)
    for name in gone:
        legacy.wait_for_name_lost(name)
    for flags in (0, NO_AUTO_START):
        ours, theirs = (
            error_of(legacy.reply("M", destination=name, path="/a", interface="a.b", flags=flags))
            for name in gone
        )
        assert ours[0] == theirs[0]
        assert ours[1].replace(gone[0], "X") == theirs[1].replace(gone[1], "X")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"path": "/no/such/path"}, "UnknownObject"),
        ({"interface": "no.such.interface"}, "UnknownInterface"),
        ({"member": "NoSuchMethod"}, "UnknownMethod"),
        ({"signature": "u", "values": [7]}, "InvalidArgs"),
    ],
)
@pytest.mark.usefixtures("native_service")
def test_what_a_native_service_does_not_have_is_an_error_of_the_specification(
    legacy: RawClient, how: dict[str, Any], expected: str
) -> None:
    how = {"member": "Nothing", "signature": "", "values": [], **how}
    member, signature, values = how.pop("member"), how.pop("signature"), how.pop("values")
    assert error_of(call(legacy, NATIVE_SERVICE, member, signature, *values, **how))[0] == expected


@pytest.mark.usefixtures("native_service")
def test_an_error_of_a_native_service_arrives_as_it_is(legacy: RawClient) -> None:
    reply = call(legacy, NATIVE_SERVICE, "Fail", "s", "on purpose ✓")
    assert error_of(reply) == ("com.example.Error.Failed", "on purpose ✓")
    assert reply.fields["sender"] == legacy.reply("GetNameOwner", "s", NATIVE_SERVICE).body[0]


def test_a_native_that_goes_without_an_answer_is_no_reply(mixed: MixedBus, legacy: RawClient) -> None:
    with mixed.join() as native:
        serials = [legacy.send_call("M", destination=native.unique_name) for _ in range(3)]
        for _ in serials:
            native.receive_message()
    replies = [legacy.receive() for _ in serials]
    assert [reply.fields["reply_serial"] for reply in replies] == serials
    assert [error_of(reply) for reply in replies] == [
        ("NoReply", "Message recipient disconnected from message bus without replying")
    ] * 3
    assert legacy.sync() == []


def test_a_native_that_takes_nothing_fills_up_and_the_bus_goes_on(mixed: MixedBus, legacy: RawClient) -> None:
    payload = bytes(20_000)
    with mixed.join(pool_size=1 << 20) as native, mixed.connect() as other:
        while True:
            serial = legacy.send_call("M", "ay", payload, destination=native.unique_name)
            messages = legacy.sync()
            if messages:
                break
        (refused,) = messages
        assert refused.fields["reply_serial"] == serial
        name, text = error_of(refused)
        assert name == "LimitsExceeded"
        assert text.startswith("Rejected: destination has a full message queue")
        assert native.unique_name in text
        assert other.sync() == []
        assert len(native.drain()) >= 2
        legacy.send_call("M", "ay", payload, destination=native.unique_name)
        legacy.sync()
        assert len(native.drain()) == 1


# Errors as a native caller sees them


def errno_of(peer: NativePeer, destination: str, **how: Any) -> str:
    """The name of the errno with which a call is refused."""
    with pytest.raises(KdbusError) as caught:
        peer.post(destination, "M", **how)
    return errno.errorcode[caught.value.errno]


def test_names_and_ids_that_nobody_has_are_errnos(mixed: MixedBus, native: NativePeer) -> None:
    assert errno_of(native, "com.example.Nobody") == "ESRCH"
    assert errno_of(native, "com.example.Nobody", flags=NO_AUTO_START) == "ESRCH"
    assert errno_of(native, ":1.999999") == "ENXIO"
    with mixed.connect() as client, mixed.connect() as witness:
        client.reply("RequestName", "su", "com.example.Going", 0)
        client.close()
        witness.wait_for_name_lost(client.unique_name)
    assert errno_of(native, client.unique_name) == "ENXIO"
    assert errno_of(native, "com.example.Going") == "ESRCH"


def test_an_errno_of_an_error_reply_is_none(native: NativePeer, legacy: RawClient) -> None:
    native.post(legacy.unique_name, "M")
    received = legacy.receive()
    legacy.send(reply_to(received, "su", "why", 5, error_name="com.example.Error.Odd"))
    reply = native.receive_message()
    assert (reply.type, reply.error_name, reply.values) == (ERROR, "com.example.Error.Odd", ("why", 5))


def test_a_client_that_goes_without_an_answer_is_a_dead_reply(mixed: MixedBus, native: NativePeer) -> None:
    with mixed.connect() as client:
        cookies = [native.post(client.unique_name, "M") for _ in range(3)]
        for _ in cookies:
            assert client.receive().member == "M"
    assert [native.receive() for _ in cookies] == [ReplyDead(cookie) for cookie in cookies]
    assert native.drain() == []


def test_a_client_that_is_silent_is_a_timeout(native: NativePeer, legacy: RawClient) -> None:
    cookie = native.post(legacy.unique_name, "M", timeout_ns=time.monotonic_ns() + 20_000_000)
    late = legacy.receive()
    assert native.receive() == ReplyTimeout(cookie)
    legacy.send(reply_to(late, "s", "late"))
    legacy.sync()
    assert native.drain() == []


def test_a_synchronous_call_ends_with_the_reply_or_an_errno(mixed: MixedBus, native: NativePeer) -> None:
    def ask_for(cookie: int, timeout_s: float) -> Any:
        outgoing = build_message(
            METHOD_CALL, cookie, "", (), path="/a", member="M", destination=client.unique_name
        )
        deadline = time.monotonic_ns() + int(timeout_s * 1e9)
        with native.connection.call(
            outgoing.payload,
            destination=int(client.unique_name.removeprefix(":1.")),
            cookie=cookie,
            timeout_ns=deadline,
        ) as received:
            return read_message(received).values

    with mixed.connect() as client:

        def serve() -> None:
            client.send(reply_to(client.receive(), "s", "there"))
            client.receive()  # and does not answer
            client.receive()
            client.close()

        server = threading.Thread(target=serve)
        server.start()
        try:
            assert ask_for(1, 30.0) == ("there",)
            with pytest.raises(KdbusError) as late:
                ask_for(2, 0.02)
            with pytest.raises(KdbusError) as dead:
                ask_for(3, 30.0)
        finally:
            server.join()
    assert (late.value.errno, dead.value.errno) == (errno.ETIMEDOUT, errno.EPIPE)


def test_a_reply_to_a_native_that_has_gone_is_as_one_to_a_client_that_has_gone(
    mixed: MixedBus, legacy: RawClient
) -> None:
    with mixed.connect() as client:
        client.send_call("M", destination=legacy.unique_name)
        calls = [legacy.receive()]
    outgoing = build_message(METHOD_CALL, 1, "", (), path="/a", member="M", destination=legacy.unique_name)
    payload = b"".join(outgoing.parts)
    with Wire(mixed.node) as wire:
        wire.hello()
        body = wire.build_send(
            payload,
            to=int(legacy.unique_name.removeprefix(":1.")),
            flags=int(MessageFlag.EXPECT_REPLY),
            timeout_or_reply=time.monotonic_ns() + 30_000_000_000,
            sync=True,
        )
        wire.post(SEND, body)  # and waits
        calls.append(legacy.receive())
    outcomes = []
    for call in calls:
        legacy.wait_for_name_lost(call.fields["sender"])
        legacy.send(reply_to(call, "s", "late"))
        outcomes.append([message.error_name for message in legacy.sync()])
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("payload", [b"nonsense", b"", bytes(100)])
def test_what_is_no_dbus_message_reaches_no_client(
    mixed: MixedBus, native: NativePeer, legacy: RawClient, payload: bytes
) -> None:
    target = int(legacy.unique_name.removeprefix(":1."))
    if mixed.kind == EMBEDDED:
        with pytest.raises(KdbusError) as caught:
            native.connection.send(payload, destination=target)
        assert caught.value.errno == errno.EBADMSG
    else:  # the broker does not look into messages; the proxy does
        native.connection.send(payload, destination=target)
        flags, timeout_ns = MessageFlag.EXPECT_REPLY, time.monotonic_ns() + 30_000_000_000
        native.connection.send(payload, destination=target, cookie=5, flags=flags, timeout_ns=timeout_ns)
        reply = native.receive_message()
        assert (reply.error_name, reply.reply_cookie) == (PREFIX + "InconsistentMessage", 5)
    assert legacy.sync() == []


# Who is who


@pytest.mark.usefixtures("native_service")
def test_a_native_service_learns_who_its_legacy_caller_is(legacy: RawClient) -> None:
    assert call(legacy, NATIVE_SERVICE, "Caller").body == [legacy.unique_name, os.geteuid()]


def test_a_legacy_client_learns_who_a_native_is(
    mixed: MixedBus, legacy: RawClient, native_service: Child
) -> None:
    pid = native_service.process.pid
    assert legacy.reply("GetConnectionUnixUser", "s", NATIVE_SERVICE).body == [os.geteuid()]
    assert legacy.reply("GetConnectionUnixProcessID", "s", NATIVE_SERVICE).body == [pid]
    (credentials,) = legacy.reply("GetConnectionCredentials", "s", NATIVE_SERVICE).body
    fds = legacy.take_fds(1 if "ProcessFD" in credentials else 0)
    for fd in fds:
        pidfd = Path(f"/proc/self/fdinfo/{fd}").read_text()
        assert f"\nPid:\t{pid}\n" in pidfd
        os.close(fd)
    credentials.pop("ProcessFD", None)
    with mixed.connect() as other:
        (reference,) = other.reply("GetConnectionCredentials", "s", other.unique_name).body
        for fd in other.take_fds(1):
            os.close(fd)
    reference.pop("ProcessFD", None)
    assert credentials == {**reference, "ProcessID": ("u", pid)}


def test_natives_and_clients_are_in_the_lists_of_both(
    mixed: MixedBus, legacy: RawClient, native: NativePeer
) -> None:
    with mixed.join(flags=HelloFlag.ACCEPT_FD | HelloFlag.MONITOR) as monitor:
        assert {legacy.unique_name, native.unique_name} <= set(legacy.reply("ListNames").body[0])
        assert monitor.unique_name not in legacy.reply("ListNames").body[0]
    ids = {info.id for info in native.connection.list()}
    assert {native.id, int(legacy.unique_name.removeprefix(":1."))} <= ids
