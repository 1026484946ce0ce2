"""Framing and headers: what is read from a valid one, and where an invalid one is refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from busproxy.wire.errors import ProtocolError
from busproxy.wire.header import (
    MAX_ARRAY_LENGTH,
    MAX_MESSAGE_LENGTH,
    Header,
    HeaderField,
    MessageType,
    fields_with_sender,
    message_length,
    parse_header,
)
from busproxy.wire.marshal import marshal, unmarshal
from busproxy.wire.message import build_message

PATH = (1, ("o", "/a"))
INTERFACE = (2, ("s", "a.b"))
MEMBER = (3, ("s", "Get"))
ERROR_NAME = (4, ("s", "a.Error"))
REPLY_SERIAL = (5, ("u", 9))
SENDER = (7, ("s", ":1.2"))


def build_raw(
    *fields: Any,
    type_: int = 1,
    serial: int = 1,
    version: int = 1,
    little_endian: bool = True,
    body: bytes = b"",
) -> bytes:
    """A message with whatever fields, in their order."""
    mark = ord("l") if little_endian else ord("B")
    values = [mark, type_, 0, version, len(body), serial, list(fields)]
    header = marshal("yyyyuua(yv)", values, little_endian=little_endian)
    return header + bytes(-len(header) % 8) + body


def refusal(message: bytes) -> tuple[str, int]:
    data = b"\xee" * 3 + message + b"\xee" * 9
    with pytest.raises(ProtocolError) as caught:
        parse_header(data, 3)
    assert caught.value.fatal
    return caught.value.reason, caught.value.offset


def fixed(*, mark: str = "l", version: int = 1, body: int = 0, fields: int = 0) -> bytes:
    return struct.pack("<BBBBIII" if mark == "l" else ">BBBBIII", ord(mark), 1, 0, version, body, 1, fields)


@pytest.mark.parametrize("mark", ["l", "B"])
def test_the_length_is_that_of_padded_header_and_body(mark: str) -> None:
    assert message_length(b"\xee" * 5 + fixed(mark=mark, body=3, fields=9), 5) == 16 + 16 + 3


@pytest.mark.parametrize(
    ("start", "offset"),
    [
        (fixed(mark="x"), 0),
        (fixed(mark="L"), 0),
        (fixed(version=2), 3),
        (fixed(version=0), 3),
        (fixed(body=MAX_MESSAGE_LENGTH - 15), 4),
        (fixed(body=2**32 - 1), 4),
        (fixed(fields=MAX_ARRAY_LENGTH + 1), 12),
        (fixed(fields=2**32 - 1), 12),
        (fixed(fields=MAX_ARRAY_LENGTH, body=MAX_ARRAY_LENGTH - 15), 4),
    ],
)
def test_what_cannot_begin_a_message_is_refused(start: bytes, offset: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        message_length(start, 0)
    assert caught.value.offset == offset


def test_the_largest_message_is_a_message() -> None:
    assert message_length(fixed(body=MAX_MESSAGE_LENGTH - 16), 0) == MAX_MESSAGE_LENGTH
    assert message_length(fixed(fields=MAX_ARRAY_LENGTH), 0) == MAX_ARRAY_LENGTH + 16


@pytest.mark.parametrize("little_endian", [True, False])
@pytest.mark.parametrize("buffer", [bytes, bytearray])
def test_every_field_is_read(buffer: type[bytes] | type[bytearray], little_endian: bool) -> None:
    message = build_message(
        3,
        77,
        flags=5,
        path="/a/b",
        interface="a.b",
        member="Get",
        error_name="a.Error",
        reply_serial=2**32 - 1,
        destination="a.c",
        sender=":1.2",
        signature="su",
        body=b"12345",
        unix_fds=2,
        little_endian=little_endian,
    )
    header = parse_header(buffer(b"\xee" + message), 1)
    assert header.little_endian is little_endian
    assert (header.type, header.flags, header.serial, header.body_length) == (MessageType.ERROR, 5, 77, 5)
    assert (header.path, header.interface, header.member) == ("/a/b", "a.b", "Get")
    assert (header.error_name, header.destination, header.sender) == ("a.Error", "a.c", ":1.2")
    assert (header.reply_serial, header.signature, header.unix_fds) == (2**32 - 1, "su", 2)
    assert header.length + header.body_length == len(message)


def test_absent_fields_are_none_zero_or_empty() -> None:
    header = parse_header(build_raw(type_=200))
    assert (header.path, header.interface, header.member, header.error_name) == (None,) * 4
    assert (header.destination, header.sender, header.sender_span) == (None,) * 3
    assert (header.reply_serial, header.reply_serial_at, header.unix_fds, header.signature) == (0, 0, 0, "")
    assert (header.fields_length, header.length) == (0, 16)


def test_the_reply_serial_is_where_it_says() -> None:
    message = build_raw((6, ("s", "a.b")), REPLY_SERIAL, type_=2)
    header = parse_header(message)
    assert struct.unpack_from("<I", message, header.reply_serial_at) == (9,)


def test_the_span_of_the_sender_runs_from_its_code_to_its_nul() -> None:
    message = build_raw(PATH, SENDER, MEMBER)
    span = parse_header(b"\xee" + message, 1).sender_span
    assert span is not None
    assert message[slice(*span)] == b"\x07\x01s\0\x04\0\0\0:1.2\0"


@pytest.mark.parametrize(
    ("type_", "needed"),
    [
        (1, [PATH, MEMBER]),
        (2, [REPLY_SERIAL]),
        (3, [ERROR_NAME, REPLY_SERIAL]),
        (4, [PATH, INTERFACE, MEMBER]),
    ],
)
def test_each_type_needs_its_fields_and_no_others(type_: int, needed: list[Any]) -> None:
    parse_header(build_raw(*needed, type_=type_))
    for missing in needed:
        message = build_raw(*(field for field in needed if field is not missing), type_=type_)
        reason, _ = refusal(message)
        assert reason.startswith(f"message of type {type_} without ")


@pytest.mark.parametrize("type_", [5, 255])
def test_an_unknown_type_needs_no_field(type_: int) -> None:
    assert parse_header(build_raw(type_=type_)).type == type_


def test_type_and_serial_are_not_0() -> None:
    assert refusal(build_raw(type_=0)) == ("message type 0", 1)
    assert refusal(build_raw(type_=9, serial=0)) == ("serial 0", 8)
    assert refusal(build_raw(type_=9, version=2)) == ("protocol version 2", 3)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ((0, ("s", "x")), "header field code 0"),
        ((1, ("s", "/a")), "header field 1 of a wrong type"),
        ((2, ("o", "/a")), "header field 2 of a wrong type"),
        ((5, ("i", 1)), "header field 5 of a wrong type"),
        ((5, ("u", 0)), "reply serial 0"),
        ((8, ("s", "u")), "header field 8 of a wrong type"),
        ((9, ("t", 1)), "header field 9 of a wrong type"),
        ((10, ("u", 1)), "header field 10 of a wrong type"),
        ((6, ("v", ("s", "a.b"))), "header field 6 of a wrong type"),
        ((2, ("s", "a")), "invalid interface name"),
        ((3, ("s", "a.b")), "invalid member name"),
        ((4, ("s", "a")), "invalid error name"),
        ((6, ("s", "a")), "invalid destination"),
        ((7, ("s", "a..b")), "invalid sender"),
        ((7, ("s", "\u00e9.a")), "invalid sender"),
        ((1, ("o", "/org/freedesktop/DBus/Local")), "reserved object path"),
        ((1, ("o", "/org/freedesktop/DBus/Locale")), "reserved object path"),
        ((2, ("s", "org.freedesktop.DBus.Local")), "reserved interface name"),
        ((2, ("s", "org.freedesktop.DBus.Locale")), "reserved interface name"),
    ],
)
def test_a_known_field_has_its_type_and_a_fit_value(field: Any, reason: str) -> None:
    assert refusal(build_raw(field, type_=9))[0] == reason


@pytest.mark.parametrize("code", range(1, 11))
def test_a_known_field_appears_once(code: int) -> None:
    path, number = ("o", "/a"), ("u", 1)
    values = {1: path, 3: ("s", "a"), 5: number, 8: ("g", ""), 9: number, 10: path}
    field = (code, values.get(code, ("s", "a.b")))
    parse_header(build_raw(field, type_=9))
    assert refusal(build_raw(field, field, type_=9))[0] == f"header field {code} appears twice"


def test_an_invalid_path_or_signature_is_refused_in_its_field() -> None:
    path = build_raw(PATH, type_=9).replace(b"/a\0", b"a/\0")
    assert refusal(path) == ("invalid object path", 24)
    signature = build_raw((8, ("g", "ai")), type_=9).replace(b"ai\0", b"ia\0")
    assert refusal(signature) == ("array without an element type in signature", 16 + 5 + 2)
    instance = build_raw((10, ("o", "/a")), type_=9).replace(b"/a\0", b"a/\0")
    assert refusal(instance) == ("invalid object path", 24)


def test_unknown_fields_may_repeat_and_hold_anything_valid() -> None:
    unknown = (HeaderField.CONTAINER_INSTANCE + 1, ("a{sv}", {"a": ("(ii)", (1, 2))}))
    header = parse_header(build_raw(unknown, PATH, unknown, MEMBER, (255, ("y", 1))))
    assert (header.path, header.member) == ("/a", "Get")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x01b\0\x01\0\0\0", b"\x01b\0\x02\0\0\0"),
        (b"\x01b\0", b"\x01z\0"),
        (b"\x01b\0", b"\x01s\0"),
        (b"\x01b\0", b"\x01b\x01"),
    ],
)
def test_unknown_fields_must_be_well_formed(old: bytes, new: bytes) -> None:
    message = build_raw((99, ("b", True)), type_=9)
    assert old in message
    refusal(message.replace(old, new))


def test_an_unknown_field_nests_two_levels_less_than_a_body() -> None:
    for count, valid in ((62, True), (63, False)):
        field = b"\x63" + b"\x01v\0" * (count - 1) + b"\x01y\0\x05"
        message = fixed(fields=len(field)) + field + bytes(-len(field) % 8)
        message = message[:1] + b"\x09" + message[2:]
        if valid:
            parse_header(message)
        else:
            assert refusal(message)[0] == "more than 64 levels of nesting"


def test_padding_between_and_after_fields_is_zero() -> None:
    message = bytearray(build_raw(PATH, MEMBER))
    first_end = 16 + 4 + 4 + 3
    for at in (first_end, len(message) - 1):
        damaged = message.copy()
        damaged[at] = 1
        reason, offset = refusal(bytes(damaged))
        assert reason.startswith("padding that is not zero")
        assert offset <= at


@pytest.mark.parametrize("change", [-1, -4, -8, 1, 4, 8])
def test_the_array_ends_where_a_field_ends(change: int) -> None:
    message = bytearray(build_raw(PATH, MEMBER, body=bytes(32)))
    (length,) = struct.unpack_from("<I", message, 12)
    struct.pack_into("<I", message, 12, length + change)
    _, offset = refusal(bytes(message))
    assert offset <= len(message)


def test_a_string_of_a_field_stays_within_the_array() -> None:
    message = build_raw((6, ("s", "a.b")), type_=9)
    refusal(message.replace(struct.pack("<I", 3), struct.pack("<I", 300)))
    refusal(message.replace(b"a.b\0", b"a.bc"))


def stamped(message: bytes, *, sender: str = ":1.42") -> bytes:
    """The message as the bus would send it on."""
    header = parse_header(b"\xee" + message, 1)
    length, fields = fields_with_sender(b"\xee" + message, 1, header, sender)
    order = "<I" if header.little_endian else ">I"
    return message[:12] + struct.pack(order, length) + fields + message[header.length :]


def fields_of(message: bytes) -> list[Any]:
    header: Header = parse_header(message)
    fields = unmarshal("yyyyuua(yv)", message, 0, 16 + header.fields_length, header.little_endian)[6]
    assert isinstance(fields, list)
    return fields


@pytest.mark.parametrize("little_endian", [True, False])
def test_our_sender_stands_behind_the_old_fields(little_endian: bool) -> None:
    message = build_raw(PATH, MEMBER, little_endian=little_endian, body=b"body")
    result = stamped(message)
    assert fields_of(result) == [PATH, MEMBER, (7, ("s", ":1.42"))]
    assert result[16:].startswith(message[16 : parse_header(message).length])
    assert result.endswith(b"body")
    assert message_length(result, 0) == len(result)


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_a_sender_of_the_peer_is_replaced_wherever_it_stands(position: int) -> None:
    others = [PATH, (99, ("(sy)", ("x", 1))), MEMBER]
    forged = (7, ("s", "org.example.Forged" + "x" * position))
    message = build_raw(*others[:position], forged, *others[position:], body=b"body")
    result = stamped(message)
    assert fields_of(result) == [*others, (7, ("s", ":1.42"))]
    assert b"Forged" not in result
    assert message_length(result, 0) == len(result)


def test_a_message_without_fields_gets_a_sender() -> None:
    assert fields_of(stamped(build_raw(type_=9))) == [(7, ("s", ":1.42"))]
