"""Messages that the bus itself sends."""

from __future__ import annotations

from typing import Any

import pytest

from busproxy.wire.header import MessageType, message_length, parse_header
from busproxy.wire.marshal import marshal, unmarshal
from busproxy.wire.message import build_message


def codes_of(message: bytes) -> list[int]:
    header = parse_header(message)
    fields = unmarshal("yyyyuua(yv)", message, 0, 16 + header.fields_length, header.little_endian)[6]
    return [code for code, _ in fields]


@pytest.mark.parametrize("little_endian", [True, False])
def test_a_built_message_is_valid_and_says_what_it_was_told(little_endian: bool) -> None:
    body = marshal("s", ["hello"], little_endian=little_endian)
    message = build_message(
        MessageType.METHOD_CALL,
        5,
        flags=1,
        path="/a",
        interface="a.b",
        member="Get",
        destination="a.c",
        signature="s",
        body=body,
        little_endian=little_endian,
    )
    assert message_length(message, 0) == len(message)
    header = parse_header(message)
    assert (header.type, header.serial, header.flags, header.path) == (1, 5, 1, "/a")
    assert (header.interface, header.member, header.destination) == ("a.b", "Get", "a.c")
    assert header.signature == "s"
    assert message[header.length :] == body


def test_fields_that_were_not_given_are_not_there() -> None:
    expected = bytes.fromhex("6c020001 00000000 01000000 08000000 05017500 03000000")
    assert build_message(2, 1, reply_serial=3) == expected


DRIVER: dict[str, Any] = {
    "destination": ":1.0",
    "sender": "org.freedesktop.DBus",
    "signature": "s",
    "body": bytes(5),
}


def test_fields_of_a_reply_stand_as_dbus_daemon_puts_them() -> None:
    assert codes_of(build_message(2, 1, reply_serial=1, **DRIVER)) == [6, 5, 8, 7]


def test_fields_of_an_error_stand_as_dbus_daemon_puts_them() -> None:
    assert codes_of(build_message(3, 1, reply_serial=1, error_name="a.b", **DRIVER)) == [6, 4, 5, 8, 7]


def test_fields_of_a_signal_stand_as_dbus_daemon_puts_them() -> None:
    message = build_message(4, 1, path="/a", interface="a.b", member="Get", **DRIVER)
    assert codes_of(message) == [1, 2, 3, 6, 8, 7]


def test_fields_of_a_call_stand_as_libdbus_puts_them() -> None:
    message = build_message(1, 1, path="/a", interface="a.b", member="Get", destination="a.b", unix_fds=1)
    assert codes_of(message) == [1, 6, 2, 3, 9]
