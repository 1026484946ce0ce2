"""Messages between dbus1 and GVariant: header fields, flags, cookies, limits, and what is refused."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from busproxy import remarshal
from busproxy.remarshal import (
    GVariantMessage,
    build_gvariant,
    contradiction,
    from_gvariant,
    message_flags,
    parse_gvariant,
    to_gvariant,
    to_gvariant_parts,
)
from busproxy.wire import gvariant_fields, gvariant_message
from busproxy.wire.errors import ProtocolError
from busproxy.wire.gvariant import encode
from busproxy.wire.header import (
    ALLOW_INTERACTIVE_AUTHORIZATION,
    NO_AUTO_START,
    NO_REPLY_EXPECTED,
    Header,
    MessageType,
    parse_header,
)
from busproxy.wire.marshal import marshal
from busproxy.wire.message import build_message
from kdbus_core.abi import MessageFlag

CALL: dict[str, Any] = {
    "path": "/com/example",
    "interface": "com.example.Interface",
    "member": "Frobnicate",
    "destination": "com.example.Service",
}

# A call by hand: Frobnicate("hi", 7) with cookie 5, little endian.
CALL_BYTES = b"".join(
    (
        b"l\1\4\2",
        bytes(4),
        struct.pack("<Q", 5),
        struct.pack("<Q", 1) + b"/com/example\0\0o" + bytes(1),
        struct.pack("<Q", 6) + b"com.example.Service\0\0s" + bytes(2),
        struct.pack("<Q", 2) + b"com.example.Interface\0\0s",
        struct.pack("<Q", 3) + b"Frobnicate\0\0s",
        bytes((23, 54, 88, 109)),
        bytes(7),
        b"hi\0" + bytes(1) + struct.pack("<I", 7) + b"\3",
        b"\0(su)",
        bytes((16 + 113,)),
    )
)


def legacy(
    type_: int = MessageType.METHOD_CALL, serial: int = 5, **given: Any
) -> tuple[Header, bytes, bytes]:
    """A dbus1 message: header, body, all of it."""
    fields: dict[str, Any] = dict(CALL) if type_ == MessageType.METHOD_CALL else {}
    values = given.pop("values", [])
    fields |= given
    body = marshal(fields.get("signature", ""), values, fields.get("little_endian", True))
    message = build_message(type_, serial, body=body, **fields)
    header = parse_header(message)
    return header, message[header.length :], message


def native(type_: int = MessageType.METHOD_CALL, cookie: int = 5, **given: Any) -> bytes:
    """A native message in one piece."""
    fields: dict[str, Any] = dict(CALL) if type_ == MessageType.METHOD_CALL else {}
    return b"".join(build_gvariant(type_, cookie, **(fields | given)))


def with_fields(*fields: tuple[int, str, Any], type_: int = 5) -> bytes:
    """A native message without arguments, with any header fields."""
    entries = {code: (signature, value) for code, signature, value in fields}
    array = bytes(encode("a{tv}", [entries], little_endian=True))
    return assemble(array, type_)


def assemble(array: bytes, type_: int = 5) -> bytes:
    start = bytes((ord("l"), type_, 0, 2)) + bytes(4) + struct.pack("<Q", 1) + array
    padded = start + bytes(-len(start) % 8)
    word = 1 if len(padded) < 250 else 2
    return padded + b"\0\0()" + len(start).to_bytes(word, "little")


def refusal(data: bytes | list[memoryview]) -> str:
    """Why this is no native message; it has to be refused."""
    with pytest.raises(ProtocolError) as caught:
        from_gvariant(data, sender=":1.1")
    return caught.value.reason


# What stands where


def test_a_call_is_written_as_the_format_says() -> None:
    header, body, _ = legacy(
        signature="su", values=["hi", 7], flags=ALLOW_INTERACTIVE_AUTHORIZATION, sender=":1.9"
    )
    assert to_gvariant(header, body, little_endian=True) == CALL_BYTES


def test_a_call_is_read_as_the_format_says() -> None:
    message = parse_gvariant(CALL_BYTES)
    assert (message.type, message.flags, message.cookie) == (1, ALLOW_INTERACTIVE_AUTHORIZATION, 5)
    assert {name: getattr(message, name) for name in CALL} == CALL
    assert (message.error_name, message.sender, message.reply_cookie, message.unix_fds) == (None, None, 0, 0)
    assert (message.signature, message.values(), message.length) == ("su", ["hi", 7], len(CALL_BYTES))


def test_the_parts_of_a_message_are_its_head_its_body_and_its_ending() -> None:
    header, body, _ = legacy(signature="su", values=["hi", 7], flags=ALLOW_INTERACTIVE_AUTHORIZATION)
    head, contents, ending = to_gvariant_parts(header, body, little_endian=True)
    assert bytes(head) + bytes(contents) + bytes(ending) == CALL_BYTES
    assert len(head) % 8 == 0
    assert bytes(contents) == b"hi\0\0\7\0\0\0\3"
    assert bytes(ending) == b"\0(su)\x81"


def test_no_arguments_are_a_unit() -> None:
    header, body, message = legacy(sender=":1.9")
    made = to_gvariant(header, body)
    assert made[-5:-1] == b"\0\0()"
    assert parse_gvariant(made).signature == ""
    assert from_gvariant(made, sender=":1.9") == message


def test_a_message_that_needs_no_field_may_have_none() -> None:
    made = assemble(b"")
    assert parse_gvariant(made).signature == ""
    assert from_gvariant(made, sender=None, little_endian=True) == b"l\5\0\1\0\0\0\0\1\0\0\0\0\0\0\0"


def test_an_object_path_may_be_long() -> None:
    header, body, message = legacy(path="/" + "x" * 100_000, sender=":1.9", signature="s", values=["a"])
    made = to_gvariant(header, body)
    assert from_gvariant(made, sender=":1.9") == message


# Sender, destination, flags, numbers


def test_the_sender_is_left_out_of_a_native_message() -> None:
    header, body, _ = legacy(sender=":1.9")
    made = to_gvariant(header, body)
    assert b":1.9" not in made
    assert parse_gvariant(made).sender is None


def test_what_a_native_peer_says_of_its_sender_is_not_believed() -> None:
    made = with_fields((7, "s", "org.freedesktop.DBus"))
    assert parse_gvariant(made).sender == "org.freedesktop.DBus"
    assert parse_header(from_gvariant(made, sender=":1.3")).sender == ":1.3"


def test_a_destination_may_be_given() -> None:
    header, body, _ = legacy()
    made = to_gvariant(header, body, destination=":1.5")
    assert parse_gvariant(made).destination == ":1.5"
    assert parse_header(from_gvariant(made, sender=":1.3")).destination == ":1.5"
    assert parse_header(from_gvariant(made, sender=":1.3", destination="a.b")).destination == "a.b"


@pytest.mark.parametrize(
    "flags",
    [0, NO_REPLY_EXPECTED, NO_AUTO_START, ALLOW_INTERACTIVE_AUTHORIZATION, 7, 0x80],
)
def test_flags_are_kept_in_both_directions(flags: int) -> None:
    header, body, _ = legacy(flags=flags)
    made = to_gvariant(header, body)
    assert parse_gvariant(made).flags == flags
    assert parse_header(from_gvariant(made, sender=":1.3")).flags == flags


def test_cookies_have_64_bits_and_serials_are_given_instead() -> None:
    header, body, _ = legacy(MessageType.METHOD_RETURN, reply_serial=8, destination=":1.2")
    made = to_gvariant(header, body, cookie=1 << 63, reply_cookie=(1 << 64) - 1)
    message = parse_gvariant(made)
    assert (message.cookie, message.reply_cookie) == (1 << 63, (1 << 64) - 1)
    back = parse_header(from_gvariant(message, sender=":1.3", serial=3, reply_serial=4))
    assert (back.serial, back.reply_serial) == (3, 4)


@pytest.mark.parametrize("numbers", [{}, {"serial": 1}, {"serial": 1 << 32, "reply_serial": 1}])
def test_a_cookie_too_large_for_dbus1_is_the_callers_affair(numbers: dict[str, Any]) -> None:
    made = native(MessageType.METHOD_RETURN, 1 << 32, reply_cookie=1 << 32)
    with pytest.raises(ValueError, match="out of range"):
        from_gvariant(made, sender=":1.3", **numbers)


def test_a_message_with_its_fields_in_another_order_keeps_their_meaning() -> None:
    made = with_fields((3, "s", "Member"), (9, "u", 2), (1, "o", "/a"), (2, "s", "a.b"), type_=4)
    header = parse_header(from_gvariant(made, sender=":1.3"))
    assert (header.path, header.interface, header.member, header.unix_fds) == ("/a", "a.b", "Member", 2)


def test_fields_that_nobody_knows_are_left_out() -> None:
    made = with_fields((3, "s", "Member"), (77, "a(ii)", [(1, 2)]), (1 << 40, "v", ("y", 1)))
    made = from_gvariant(made, sender=":1.3")
    assert made == build_message(5, 1, member="Member", sender=":1.3")


def test_a_native_message_of_the_other_byte_order_is_read() -> None:
    _, _, message = legacy(sender=":1.9", signature="sua{sv}", values=["hi", 7, {"k": ("q", 258)}])
    header = parse_header(message)
    made = to_gvariant(header, message[header.length :], little_endian=False)
    assert made[0] == ord("B")
    assert from_gvariant(made, sender=":1.9", little_endian=True) == message


# What the broker is told


@pytest.mark.parametrize(
    ("type_", "flags", "expected"),
    [
        (MessageType.METHOD_CALL, 0, MessageFlag.EXPECT_REPLY),
        (MessageType.METHOD_CALL, NO_REPLY_EXPECTED, MessageFlag(0)),
        (MessageType.METHOD_CALL, NO_AUTO_START, MessageFlag.EXPECT_REPLY | MessageFlag.NO_AUTO_START),
        (MessageType.METHOD_RETURN, 0, MessageFlag(0)),
        (MessageType.ERROR, NO_REPLY_EXPECTED, MessageFlag(0)),
        (MessageType.SIGNAL, 0, MessageFlag.SIGNAL),
        (MessageType.SIGNAL, 7, MessageFlag.SIGNAL | MessageFlag.NO_AUTO_START),
        (9, 0, MessageFlag(0)),
    ],
)
def test_the_flags_for_the_broker_follow_type_and_flags(
    type_: int, flags: int, expected: MessageFlag
) -> None:
    message = GVariantMessage()
    message.type, message.flags = type_, flags
    assert message_flags(message) == expected


@pytest.mark.parametrize(
    ("beside", "problem"),
    [
        ({}, None),
        ({"cookie": 4}, "cookie 5 in the message and 4 beside it"),
        ({"cookie_reply": 1}, "reply cookie 0 in the message and 1 beside it"),
        ({"flags": 0}, "flags <MessageFlag.EXPECT_REPLY: 1> not as in the message"),
        ({"flags": 3}, "flags <MessageFlag.NO_AUTO_START: 2> not as in the message"),
    ],
)
def test_a_message_must_say_what_the_broker_was_told(beside: dict[str, int], problem: str | None) -> None:
    message = parse_gvariant(native())
    told = {"cookie": 5, "flags": 1, "cookie_reply": 0} | beside
    assert contradiction(message, **told) == problem


# What is refused


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: b"", "message without a header"),
        (lambda data: data[:16], "message without a header"),
        (lambda data: b"x" + data[1:], "byte order mark other than 'l' and 'B'"),
        (lambda data: data[:1] + b"\0" + data[2:], "message type 0"),
        (lambda data: data[:3] + b"\1" + data[4:], "protocol version 1"),
        (lambda data: data[:8] + bytes(8) + data[16:], "cookie 0"),
        (lambda data: data[:-1] + b"\x0f", "header fields that do not end in the message"),
        (lambda data: data[:-1] + b"\xff", "header fields that do not end in the message"),
        (lambda data: data[:136] + b"\xff" * 300 + struct.pack("<H", 129), "body without a signature"),
        (lambda data: data[:-6] + b"\0s\x81", "body that is not a struct"),
        (lambda data: data[:-6] + b"\0(\x81", "body that is not a struct"),
        (lambda data: data[:-6] + b"\0\x81", "body that is not a struct"),
        (lambda data: data[:-6] + b"\0(u)(s)\x81", "')' closes nothing in signature"),
        (lambda data: data[:-6] + b"\0(my)\x81", "unknown type code 'm' in signature"),
        (lambda data: data[:-6] + b"\0(())\x81", "empty struct in signature"),
        (lambda data: data[:-6] + b"\0(s)\x81", "string without a terminating NUL"),
        (lambda data: data[:130] + b"\1" + data[131:], "padding that is not zero after the header fields"),
        (lambda data: data[:39] + b"\1" + data[40:], "padding that is not zero between header fields"),
    ],
)
def test_a_malformed_message_is_refused(spoil: Callable[[bytes], bytes], reason: str) -> None:
    assert refusal(spoil(CALL_BYTES)) == reason


def test_an_end_of_the_fields_in_more_bytes_than_it_needs_is_refused() -> None:
    made = native(signature="ay", body=bytes(255 - 142))
    assert len(made) == 255
    assert from_gvariant(made, sender=":1.1")
    assert refusal(made + b"\0") == "framing offset larger than it need be"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([(0, "s", "x")], "header field 0"),
        ([(8, "g", "s")], "header field 8"),
        ([(1, "s", "/a")], "header field 1 of a wrong type"),
        ([(3, "as", ["x"])], "header field 3 of a wrong type"),
        ([(5, "u", 1)], "header field 5 of a wrong type"),
        ([(9, "t", 1)], "header field 9 of a wrong type"),
        ([(5, "t", 0)], "reply cookie 0"),
        ([(1, "o", "/org/freedesktop/DBus/Local")], "reserved object path in header fields"),
        ([(2, "s", "org.freedesktop.DBus.Local")], "reserved interface name in header fields"),
        ([(2, "s", "a")], "invalid interface name in header fields"),
        ([(2, "s", "a." + "b" * 300)], "name longer than 255 bytes"),
        ([(3, "s", "a.b")], "invalid member name in header fields"),
        ([(3, "s", "\u00e9")], "header field that is not ASCII"),
        ([(6, "s", "a b")], "invalid destination in header fields"),
        ([(7, "s", "")], "invalid sender in header fields"),
        ([(4, "s", "x")], "invalid error name in header fields"),
    ],
)
def test_header_fields_that_libdbus_would_not_take_are_refused(
    fields: list[tuple[int, str, Any]], reason: str
) -> None:
    assert refusal(with_fields(*fields)) == reason


@pytest.mark.parametrize(
    ("type_", "fields", "missing"),
    [
        (1, [(1, "o", "/a")], "member"),
        (1, [(3, "s", "M")], "path"),
        (4, [(1, "o", "/a"), (3, "s", "M")], "interface"),
        (2, [(6, "s", ":1.1")], "reply serial"),
        (3, [(5, "t", 1)], "error name"),
    ],
)
def test_a_message_without_what_its_type_needs_is_refused(
    type_: int, fields: list[tuple[int, str, Any]], missing: str
) -> None:
    assert (
        refusal(with_fields(*fields, type_=type_))
        == f"message of type {type_} without {missing} in header fields"
    )


def test_a_field_that_appears_twice_is_refused() -> None:
    field = struct.pack("<Q", 3) + b"M\0\0s" + bytes(4)
    assert refusal(assemble(field + field[:12] + bytes((12, 28)))) == "header field 3 appears twice"


def test_an_unknown_field_must_be_well_formed() -> None:
    field = struct.pack("<Q", 77) + b"\xff\xff\0s"
    assert refusal(assemble(field + bytes((len(field),)))) == "string without a terminating NUL"


def test_an_index_of_a_descriptor_beyond_those_that_come_along_is_refused() -> None:
    body = struct.pack("<I", 1)
    made = native(signature="h", body=body, unix_fds=2, little_endian=True)
    assert from_gvariant(made, sender=":1.1")
    made = native(signature="h", body=body, unix_fds=1, little_endian=True)
    assert refusal(made) == "index of a descriptor that did not come along"


def test_a_signature_of_255_bytes_is_the_longest() -> None:
    made = native(signature="y" * 255, body=bytes(255))
    assert parse_gvariant(made).signature == "y" * 255
    assert "signature" in refusal(native(signature="y" * 256, body=bytes(256)))


# Limits and large bodies


def test_messages_above_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gvariant_message, "MAX_MESSAGE_LENGTH", 1000)
    assert refusal(bytes(1001)) == "message longer than 128 MiB"
    header, body, _ = legacy(signature="ay", values=[bytes(990)])
    with pytest.raises(ProtocolError, match="in GVariant") as caught:
        to_gvariant(header, body)
    assert not caught.value.fatal


def test_what_is_too_long_only_in_dbus1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = native(signature="as", body=bytes(encode("as", [[""] * 200])))
    assert from_gvariant(made, sender=":1.1")
    monkeypatch.setattr(remarshal, "MAX_MESSAGE_LENGTH", 1000)
    assert refusal(made) == "message longer than 128 MiB"


@pytest.mark.parametrize(("signature", "size"), [("ay", 1), ("ad", 8), ("a(qqu)", 8)])
def test_a_lone_array_must_have_whole_elements_and_not_too_many(
    monkeypatch: pytest.MonkeyPatch, signature: str, size: int
) -> None:
    made = native(signature=signature, body=bytes(80))
    header = parse_header(from_gvariant(made, sender=":1.1"))
    assert header.body_length == (80 + 4 if size == 1 else 80 + 8)
    if size > 1:
        assert refusal(native(signature=signature, body=bytes(81))) == "value of a wrong size"
    monkeypatch.setattr(gvariant_message, "MAX_ARRAY_LENGTH", 79)
    assert refusal(made) == "array longer than 64 MiB"


def test_a_large_message_in_pieces_is_not_joined_first() -> None:
    size = 4 << 20
    pieces = [bytes(piece) for piece in build_gvariant(1, 5, **CALL, signature="ay", body=bytes(size))]
    views = [memoryview(piece) for piece in pieces]
    expected = from_gvariant(b"".join(pieces), sender=":1.1")
    tracemalloc.start()
    try:
        made = from_gvariant(views, sender=":1.1")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made == expected
    assert size < peak < 1.5 * size


def test_a_large_array_is_not_copied_into_the_parts() -> None:
    header, body, _ = legacy(signature="ay", values=[bytes(1 << 20)])
    _, contents, _ = to_gvariant_parts(header, body)
    assert isinstance(contents, memoryview)
    assert contents.obj is body


def test_long_fields_are_not_remembered() -> None:
    before = gvariant_fields._kept_fields.cache_info().currsize
    for number in range(3):
        made = native(path="/" + "x" * 5000 + str(number))
        from_gvariant(made, sender=":1.1")
    assert gvariant_fields._kept_fields.cache_info().currsize == before
