"""The hot path in one process: what goes out is what came in, with the true sender and nothing else changed.

The world of `support.proxy` routes real messages between socket pairs. Each test of forwarding sends a
message twice, so that it sees both the full way and the flow's way, and compares bytes. `relay` is tested on
buffers cut at every place; the table of flows on its bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from support.proxy import World
from support.raw import (
    ERROR,
    METHOD_CALL,
    METHOD_RETURN,
    NO_REPLY_EXPECTED,
    SIGNAL,
    Message,
    build_message,
    parse_message,
)

from busproxy import flows
from busproxy.flows import LARGE_BODY, FlowTable, relay
from busproxy.policy.config import Limits
from busproxy.wire.errors import ProtocolError
from kdbus_core.errors import KdbusError

ORDERS = ["l", "B"]


@pytest.fixture
def world() -> Iterator[World]:
    """A bus with a sender and two others."""
    with World() as world:
        for label in ("sender", "first", "second"):
            world.join(label)
        world.collect()
        yield world


def call(destination: str, signature: str = "", *body: Any, **options: Any) -> Message:
    fields = {"path": "/a", "interface": "a.b", "member": "M", "destination": destination}
    if signature:
        fields["signature"] = signature
    fields.update(options.pop("fields", {}))
    return Message(METHOD_CALL, fields=fields, body=list(body), **options)


def signal(signature: str = "", *body: Any, **options: Any) -> Message:
    fields = {"path": "/a", "interface": "a.b", "member": "S"}
    if signature:
        fields["signature"] = signature
    return Message(SIGNAL, fields=fields, body=list(body), **options)


def with_sender(message: bytes, sender: str) -> bytes:
    """The message with a sender field appended to its header: what the bus may change, and all of it."""
    order = "<" if message[:1] == b"l" else ">"
    (length,) = struct.unpack_from(order + "I", message, 12)
    body = 16 + (length + 7 & -8)
    fields = message[16 : 16 + length]
    fields += bytes(-len(fields) & 7)
    fields += b"\x07\x01s\0" + struct.pack(order + "I", len(sender)) + sender.encode() + b"\0"
    padded = fields + bytes(-len(fields) & 7)
    return message[:12] + struct.pack(order + "I", len(fields)) + padded + message[body:]


def reply_serial_of(message: bytes) -> int:
    parsed = parse_message(message)
    assert parsed is not None
    return int(parsed[0].fields["reply_serial"])


BODIES: dict[str, tuple[str, list[Any]]] = {
    "no body": ("", []),
    "fixed size": ("ut", [7, 1 << 60]),
    "a string": ("s", ["text"]),
    "containers": ("a{sv}(is)", [{"k": ("as", ["x", "y"])}, (1, "z")]),
    "an empty array of structs": ("a(tt)", [[]]),
    "64 KiB": ("ay", [b"\xaa" * 65536]),
    "just below a large body": ("ay", [b"b" * (LARGE_BODY - 5)]),
    "just a large body": ("ay", [b"b" * (LARGE_BODY - 4)]),
    "a megabyte": ("ay", [b"c" * 1_000_000]),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("body", BODIES)
def test_a_call_is_forwarded_byte_for_byte(world: World, order: str, body: str) -> None:
    signature, values = BODIES[body]
    for serial in (11, 0x01020304, 0xFFFFFFFF):
        sent = build_message(call(world["first"].unique_name, signature, *values, order=order, serial=serial))
        world["sender"].send_bytes(sent)
        assert world["first"].frames() == [with_sender(sent, world["sender"].unique_name)]
    assert len(world["sender"].peer.flows) == 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("body", BODIES)
def test_a_broadcast_reaches_every_subscriber_byte_for_byte(world: World, order: str, body: str) -> None:
    signature, values = BODIES[body]
    for label in ("first", "second"):
        world[label].add_match("type='signal',interface='a.b'")
    for serial in (11, 0xFFFFFFFF):
        sent = build_message(signal(signature, *values, order=order, serial=serial))
        world["sender"].send_bytes(sent)
        expected = with_sender(sent, world["sender"].unique_name)
        assert world["first"].frames() == [expected]
        assert world["second"].frames() == [expected]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", [METHOD_RETURN, ERROR], ids=["return", "error"])
@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("body", ["no body", "a string", "a megabyte"])
def test_replies_keep_their_own_reply_serial(
    world: World, order: str, kind: int, place: str, body: str
) -> None:
    signature, values = BODIES[body]
    serials = [world["first"].send(call(world["sender"].unique_name)) for _ in range(4)]
    for serial in reversed(serials):
        fields: dict[Any, Any] = {"destination": world["first"].unique_name}
        if kind == ERROR:
            fields["error_name"] = "a.b.Error"
        if signature:
            fields["signature"] = signature
        number = {"reply_serial": serial}
        fields = {**number, **fields} if place == "first" else {**fields, **number}
        sent = build_message(Message(kind, 0, 77, fields, list(values), order))
        world["sender"].send_bytes(sent)
        (got,) = [frame for frame in world["first"].frames() if frame[1] == kind]
        assert got == with_sender(sent, world["sender"].unique_name)
        assert reply_serial_of(got) == serial
    assert len(world["sender"].peer.flows) == 1
    assert world["first"].connection.outstanding == 0


def test_replies_of_two_layouts_are_not_taken_for_each_other(world: World) -> None:
    """The same length of the header fields, the reply serial at different places."""
    destination = world["first"].unique_name
    layouts = (
        lambda serial: {"reply_serial": serial, "destination": destination, 200: ("u", 5)},
        lambda serial: {200: ("u", 5), "destination": destination, "reply_serial": serial},
    )
    serials = [world["first"].send(call(world["sender"].unique_name)) for _ in range(8)]
    for index, serial in enumerate(serials):
        sent = build_message(Message(METHOD_RETURN, 0, 9, layouts[index % 2](serial)))
        world["sender"].send_bytes(sent)
        assert world["first"].frames() == [with_sender(sent, world["sender"].unique_name)]


def test_a_forged_sender_is_replaced_every_time(world: World) -> None:
    for _ in range(3):
        world["sender"].send(call(world["first"].unique_name, fields={"sender": "com.example.Forged"}))
        (message,) = world["first"].messages()
        assert message.fields["sender"] == world["sender"].unique_name
        assert list(message.fields) == ["path", "interface", "member", "destination", "sender"]


def test_flags_and_unknown_fields_are_kept(world: World) -> None:
    for _ in range(2):
        sent = build_message(
            call(
                world["first"].unique_name,
                flags=0xE0 | NO_REPLY_EXPECTED,
                serial=world["sender"].next_serial(),
                fields={111: ("s", "kept")},
            )
        )
        world["sender"].send_bytes(sent)
        assert world["first"].frames() == [with_sender(sent, world["sender"].unique_name)]


def test_flows_differ_by_every_header_field(world: World) -> None:
    to = world["first"].unique_name
    variants = [
        call(to),
        call(to, "s", "x"),
        call(to, flags=NO_REPLY_EXPECTED),
        call(to, order="B"),
        call(to, fields={"member": "N"}),
        call(to, fields={"path": "/b"}),
        call(to, fields={"interface": "a.c"}),
        call(world["second"].unique_name),
        call(to, fields={111: ("y", 1)}),
    ]
    for _ in range(2):
        for variant in variants:
            variant.serial = 0
            world["sender"].send(variant)
    assert len(world["sender"].peer.flows) == len(variants)
    assert [message.fields["member"] for message in world["first"].messages()].count("N") == 2
    assert len(world["second"].messages()) == 2


def test_bodies_of_different_length_share_a_flow(world: World) -> None:
    for text in ("", "a", "bc" * 1000, "d" * 100_000):
        world["sender"].send(call(world["first"].unique_name, "s", text))
    assert [message.body[0] for message in world["first"].messages()] == ["", "a", "bc" * 1000, "d" * 100_000]
    assert len(world["sender"].peer.flows) == 1


# What a flow must not let through


def spoil(message: Message, at_end: int, byte: int) -> bytes:
    data = bytearray(build_message(message))
    data[-at_end] = byte
    return bytes(data)


@pytest.mark.parametrize("kind", ["unicast", "broadcast"])
@pytest.mark.parametrize("warm", [False, True], ids=["at first", "in a flow"])
def test_an_invalid_body_is_refused_with_its_offset(world: World, kind: str, *, warm: bool) -> None:
    world["first"].add_match("type='signal'")

    def make(text: str) -> Message:
        message = call(world["first"].unique_name, "s", text) if kind == "unicast" else signal("s", text)
        message.serial = world["sender"].next_serial()
        return message

    if warm:
        for _ in range(3):
            world["sender"].send(make("fine"))
    world.collect()
    bad = spoil(make("fine"), 3, 0xFF)
    peer = world["sender"].peer
    with pytest.raises(ProtocolError) as raised:
        relay(peer, bad)
    assert raised.value.offset == len(bad) - 3
    assert world["first"].frames() == []


def test_serial_0_is_refused_in_a_flow(world: World) -> None:
    message = call(world["first"].unique_name, flags=NO_REPLY_EXPECTED)
    for _ in range(3):
        world["sender"].send(Message(METHOD_CALL, message.flags, 0, dict(message.fields)))
    world.collect()
    world["sender"].send_bytes(build_message(message))
    assert world["sender"].peer.closed
    assert [m.member for m in world["first"].messages()] == []


def test_a_serial_that_is_still_outstanding_is_refused_and_the_first_call_stays(world: World) -> None:
    to = world["first"].unique_name
    for serial in (5, 6, 5):
        world["sender"].send(call(to, serial=serial))
    assert [message.serial for message in world["first"].messages()] == [5, 6]
    (error,) = world["sender"].messages()
    assert error.error_name == "org.freedesktop.DBus.Error.AccessDenied"
    assert world["sender"].connection.outstanding == 2


def test_the_limit_on_outstanding_calls_holds_in_a_flow() -> None:
    with World(limits=Limits(max_replies_per_connection=5)) as world:
        for label in ("sender", "first"):
            world.join(label)
        world.collect()
        for _ in range(8):
            world["sender"].send(call(world["first"].unique_name))
        assert len(world["first"].messages()) == 5
        errors = [message.error_name for message in world["sender"].messages()]
        assert errors == ["org.freedesktop.DBus.Error.LimitsExceeded"] * 3


def test_a_reply_nobody_waits_for_closes_no_other_request(world: World) -> None:
    serial = world["first"].send(call(world["sender"].unique_name))
    for number in (serial, serial, serial + 1):
        fields = {"destination": world["first"].unique_name, "reply_serial": number}
        world["sender"].send(Message(METHOD_RETURN, fields=fields))
    assert world["first"].connection.outstanding == 0


def test_a_call_to_a_client_that_does_not_read_is_charged_and_at_last_refused() -> None:
    with World(limits=Limits(max_outgoing_bytes=300_000)) as world:
        for label in ("sender", "first"):
            world.join(label)
        world.collect()
        sent = 0
        while not (errors := world["sender"].messages()):
            world["sender"].send(call(world["first"].unique_name, "ay", b"x" * 10_000, flags=0))
            sent += 1
            assert sent < 1000
        assert errors[0].error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
        assert 0 < world["first"].peer.quota.total_memory <= 300_000
        assert len(world["first"].messages()) == sent - 1
        assert world["first"].peer.quota.total_memory == 0
        assert not world["first"].peer.quota.shares
        assert world["sender"].connection.outstanding == sent - 1


def test_a_subscriber_that_does_not_read_loses_broadcasts_and_the_others_get_all() -> None:
    with World(limits=Limits(max_outgoing_bytes=300_000)) as world:
        for label in ("sender", "first", "second"):
            world.join(label)
        for label in ("first", "second"):
            world[label].add_match("type='signal',interface='a.b'")
        world.collect()
        got = 0
        for _ in range(100):
            world["sender"].send(signal("ay", b"x" * 10_000))
            got += len(world["second"].messages())
        assert got == 100
        late = len(world["first"].messages())
        assert 0 < late < 100
        assert world.router.lost_broadcasts == 100 - late
        assert world["first"].peer.quota.total_memory == 0


# Cutting a stream into messages


@pytest.mark.parametrize("step", [1, 3, 16, 17, 100, 1000])
def test_what_comes_in_pieces_is_dealt_with_as_if_it_had_come_at_once(world: World, step: int) -> None:
    to = world["first"].unique_name
    messages = [
        build_message(call(to, "s", "x" * index, serial=index + 100, order="lB"[index % 2]))
        for index in range(12)
    ]
    stream = b"".join(messages)
    for start in range(0, len(stream), step):
        world["sender"].send_bytes(stream[start : start + step])
    sender = world["sender"].unique_name
    assert world["first"].frames() == [with_sender(message, sender) for message in messages]


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 300_000, 3_000_000])
def test_messages_around_and_beyond_the_size_of_a_read_arrive(world: World, size: int) -> None:
    to = world["first"].unique_name
    expected = []
    stream = b""
    for index in range(3):
        sent = build_message(call(to, "ay", bytes([index]) * size, serial=50 + index))
        expected.append(with_sender(sent, world["sender"].unique_name))
        stream += sent
    world["sender"].send_bytes(stream)
    assert world["first"].frames() == expected


def test_relay_leaves_an_incomplete_message_to_the_next_time(world: World) -> None:
    whole, second = (
        build_message(call(world["first"].unique_name, serial=serial, flags=NO_REPLY_EXPECTED))
        for serial in (9, 10)
    )
    for cut in range(len(second)):
        assert relay(world["sender"].peer, whole + second[:cut]) == len(whole)


@pytest.mark.parametrize("is_whole", [False, True], ids=["bytes", "bytearray"])
def test_relay_takes_what_is_read_and_what_is_collected(world: World, *, is_whole: bool) -> None:
    data = build_message(call(world["first"].unique_name, serial=9, flags=NO_REPLY_EXPECTED))
    for _ in range(2):
        assert relay(world["sender"].peer, bytearray(data) if is_whole else data) == len(data)
    world.poller.flush()
    assert len(world["first"].messages()) == 2


def test_relay_stops_at_a_message_that_closes_the_peer(world: World) -> None:
    world["sender"].become_monitor("member='Never'")
    data = b"".join(build_message(call(world["first"].unique_name, serial=n)) for n in (1, 2))
    assert relay(world["sender"].peer, data) == len(data)
    assert world["sender"].peer.closed
    assert [m for m in world["first"].messages() if m.type == METHOD_CALL] == []


def test_messages_before_a_broken_one_are_delivered(world: World) -> None:
    good = build_message(call(world["first"].unique_name, serial=3))
    world["sender"].send_bytes(good + good[:8] + bytes(4) + good[12:])
    assert [m.serial for m in world["first"].messages() if m.type == METHOD_CALL] == [3]
    assert world["sender"].peer.closed


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("cut", [16, None], ids=["announced", "complete"])
def test_a_message_larger_than_allowed_is_refused_when_it_is_announced(order: str, cut: int | None) -> None:
    with World(limits=Limits(max_message_size=5000)) as world:
        for label in ("sender", "first"):
            world.join(label)
        world.collect()
        just = build_message(call(world["first"].unique_name, "ay", b"x" * 4800, order=order, serial=2))
        assert len(just) <= 5000
        assert relay(world["sender"].peer, just) == len(just)
        larger = build_message(call(world["first"].unique_name, "ay", b"x" * 5000, order=order, serial=3))
        with pytest.raises(ProtocolError):
            relay(world["sender"].peer, larger[:cut])


@pytest.mark.parametrize("mark", [b"\0", b"L", b"b", b"X", b"\xff"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_byte_order_mark_that_is_none_is_refused(world: World, order: str, mark: bytes) -> None:
    data = mark + build_message(call(world["first"].unique_name, serial=2, order=order))[1:]
    with pytest.raises(ProtocolError) as raised:
        relay(world["sender"].peer, data)
    assert raised.value.offset == 0
    world.poller.flush()
    assert world["first"].frames() == []


# The table


def test_the_table_drops_its_oldest_flows(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "MAX_FLOWS", 16)
    for number in range(100):
        world["sender"].send(call(world["first"].unique_name, fields={"member": f"M{number}"}))
        assert len(world["sender"].peer.flows) <= 16
    routed = world.router.routed
    world["sender"].send(call(world["first"].unique_name, fields={"member": "M99"}))
    assert world.router.routed == routed
    world["sender"].send(call(world["first"].unique_name, fields={"member": "M1"}))
    assert world.router.routed == routed + 1


def test_replies_of_ever_new_layouts_do_not_fill_the_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "MAX_FLOWS", 16)
    table = world["sender"].peer.flows
    for number in range(100):
        fields: dict[Any, Any] = {
            200: ("ay", bytes(8 * number)),
            "reply_serial": 1,
            "destination": world["first"].unique_name,
        }
        world["sender"].send(Message(METHOD_RETURN, fields=fields))
    assert len(table) <= 16
    assert len(table.reply_layouts) <= 16


def test_headers_of_great_length_do_not_fill_the_memory(world: World) -> None:
    """A flow keeps its header: what a client can make the bus keep must be far less than what it may send."""
    table: FlowTable = world["sender"].peer.flows
    for number in range(40):
        fields = {200: ("ay", bytes([number]) * 500_000)}
        world["sender"].send(call(world["first"].unique_name, fields=fields, flags=NO_REPLY_EXPECTED))
        world.collect()
    assert sum(map(len, table.plain)) < 4_000_000


def test_a_peer_that_goes_takes_its_flows_along(world: World) -> None:
    table = world["sender"].peer.flows
    world["sender"].send(call(world["first"].unique_name))
    assert len(table) == 1
    world["sender"].leave()
    assert len(table) == 0


def test_a_world_that_ends_holds_nothing(world: World) -> None:
    for label in ("first", "second"):
        world[label].add_match("type='signal'")
    world["first"].request_name("com.example.Name")
    for _ in range(3):
        world["sender"].send(call("com.example.Name"))
        world["sender"].send(signal())
    for label in ("sender", "first", "second"):
        world[label].leave()
    assert not world.bus.connections
    assert len(world.bus.names) == 0
    assert not world.router.peers
    assert world.router.incomplete == 0
    with pytest.raises(KdbusError):
        world.bus.resolve(name="com.example.Name")
