"""What holds of every message on its way between dbus1 and GVariant, and of whatever somebody sends instead.

Where it has to be known what GVariant is, GLib says so (`support.gvariant_oracle`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remarshal_values import FD_COUNT, bodies, build, cut, messages
from support.gvariant_oracle import MESSAGE_TYPE, Oracle

from busproxy.remarshal import (
    from_gvariant,
    parse_gvariant,
    to_gvariant,
    to_gvariant_parts,
)
from busproxy.wire.body import body_checker
from busproxy.wire.errors import ProtocolError
from busproxy.wire.gvariant import (
    NATIVE_LITTLE_ENDIAN,
    dbus1_body_to_gvariant,
    decode,
    encode,
    gvariant_body_to_dbus1,
)
from busproxy.wire.header import message_length, parse_header
from busproxy.wire.marshal import marshal, unmarshal

ORDERS = st.booleans()

# What D-Bus refuses and GVariant does not mind: types that D-Bus has not, and what a message carries. And
# GLib takes no bytes at all for a struct of empty arrays, which it would never write like that.
ONLY_DBUS = re.compile(
    r"signature|nesting|descriptor|longer than|header field \d|in header fields|not ASCII|cookie"
    r"|message type|protocol version|byte order mark|body that is not a struct|message without a header"
    r"|too short for its framing offsets"
)


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as oracle:
        yield oracle


@given(messages(), bodies(), ORDERS, ORDERS)
def test_a_message_comes_back_byte_for_byte(
    fields: dict[str, Any], body: tuple[str, list[Any]], order: bool, native_order: bool
) -> None:
    fields["unix_fds"] = FD_COUNT
    message = build(fields, *body, little_endian=order)
    header, contents = cut(message)
    native = to_gvariant(header, contents, little_endian=native_order)
    assert from_gvariant(native, sender=fields["sender"], little_endian=order) == message


@given(messages(), bodies(), ORDERS, st.lists(st.integers(0, 400), max_size=6))
def test_how_a_native_message_is_cut_into_pieces_means_nothing(
    fields: dict[str, Any], body: tuple[str, list[Any]], order: bool, places: list[int]
) -> None:
    fields["unix_fds"] = FD_COUNT
    header, contents = cut(build(fields, *body, little_endian=order))
    native = to_gvariant(header, contents)
    ends = sorted({min(place, len(native)) for place in places} | {0, len(native)})
    pieces = [memoryview(native)[start:end] for start, end in pairwise(ends)]
    whole = from_gvariant(native, sender=":1.1")
    assert from_gvariant(pieces, sender=":1.1") == whole
    assert from_gvariant(to_gvariant_parts(header, contents), sender=":1.1") == whole


@given(bodies(), ORDERS, ORDERS)
def test_a_body_may_change_its_byte_order_on_the_way(
    body: tuple[str, list[Any]], order: bool, native_order: bool
) -> None:
    signature, values = body
    there = marshal(signature, values, order)
    turned = marshal(signature, values, not order)
    native = dbus1_body_to_gvariant(signature, there, 0, len(there), order, to_little_endian=native_order)
    back = gvariant_body_to_dbus1(
        signature,
        bytes(native),
        0,
        len(native),
        native_order,
        to_little_endian=not order,
        fd_count=FD_COUNT,
    )
    assert back == turned


@given(bodies(), ORDERS)
def test_values_come_back_from_gvariant_as_from_a_dbus_body(body: tuple[str, list[Any]], order: bool) -> None:
    signature, values = body
    native = bytes(encode(signature, values, order))
    plain = marshal(signature, values, order)
    expected = unmarshal(signature, plain, 0, len(plain), order)
    found = decode(signature, native, 0, len(native), order, fd_count=FD_COUNT)
    assert marshal(signature, found, order) == plain
    assert repr(found) == repr(expected)


@given(bodies(), ORDERS, st.integers(0, 3), st.integers(0, 3))
def test_a_body_may_lie_anywhere_in_its_data(
    body: tuple[str, list[Any]], order: bool, before: int, behind: int
) -> None:
    signature, values = body
    plain = marshal(signature, values, order)
    native = dbus1_body_to_gvariant(signature, plain, 0, len(plain), order)
    padded = bytearray(b"\xff" * 8 * before) + plain + b"\xff" * behind
    start = 8 * before
    assert dbus1_body_to_gvariant(signature, padded, start, start + len(plain), order) == native
    data = b"\xff" * start + native + b"\xff" * behind
    back = gvariant_body_to_dbus1(
        signature,
        data,
        start,
        start + len(native),
        NATIVE_LITTLE_ENDIAN,
        to_little_endian=order,
        fd_count=FD_COUNT,
    )
    assert back == plain


@pytest.mark.program("python:gi")
@given(bodies(), ORDERS, ORDERS)
def test_a_body_is_what_glib_makes_of_its_values(
    oracle: Oracle, body: tuple[str, list[Any]], order: bool, native_order: bool
) -> None:
    signature, values = body
    plain = marshal(signature, values, order)
    made = dbus1_body_to_gvariant(signature, plain, 0, len(plain), order, to_little_endian=native_order)
    assert made == oracle.build_body(signature, values, little_endian=native_order)


@pytest.mark.program("python:gi")
@given(messages(), bodies(), ORDERS, ORDERS)
def test_a_message_is_what_glib_makes_of_it(
    oracle: Oracle, fields: dict[str, Any], body: tuple[str, list[Any]], order: bool, native_order: bool
) -> None:
    header, contents = cut(build(fields, *body, little_endian=order))
    made = to_gvariant(header, contents, cookie=1 << 40, little_endian=native_order)
    array = [
        (code, (type_, value))
        for code, type_, value in (
            (1, "o", header.path),
            (6, "s", header.destination),
            (2, "s", header.interface),
            (3, "s", header.member),
            (4, "s", header.error_name),
            (5, "t", header.reply_serial or None),
            (9, "u", header.unix_fds or None),
        )
        if value is not None
    ]
    head = (header.type, header.flags, 1 << 40)
    assert made == oracle.build_message(head, array, *body, little_endian=native_order)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A native message with up to four of its bytes changed, taken out or put in."""
    fields, body = draw(messages()), draw(bodies())
    fields["unix_fds"] = FD_COUNT
    header, contents = cut(build(fields, *body, little_endian=True))
    data = bytearray(to_gvariant(header, contents, little_endian=draw(ORDERS)))
    for _ in range(draw(st.integers(1, 4))):
        # Most of what can go wrong is at the ends: the offsets.
        at = draw(st.integers(0, len(data) - 1)) if draw(st.booleans()) else -draw(st.integers(1, 24))
        match draw(st.integers(0, 3)):
            case 0:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                data[at] = draw(st.sampled_from((0, 1, 2, 8, 0x28, 0x7F, 0x80, 0xFF)))
            case 2:
                del data[at : at + draw(st.integers(1, 8)) or None]
            case _:
                data[at:at] = draw(st.binary(min_size=1, max_size=9))
        if len(data) < 32:
            break
    return bytes(data)


def find_fault(native: bytes) -> ProtocolError | None:
    """Why these bytes are no message, None if they are one."""
    try:
        parse_gvariant(native).dbus1_body()
    except ProtocolError as error:
        return error
    return None


@settings(max_examples=300)
@given(spoilt(), ORDERS)
def test_a_spoilt_message_is_refused_or_still_a_message(native: bytes, order: bool) -> None:
    if fault := find_fault(native):
        assert 0 <= fault.offset <= len(native)
        return
    message = parse_gvariant(native)
    reply_serial = 5 if message.reply_cookie else 0
    made = from_gvariant(message, sender=":1.1", serial=7, reply_serial=reply_serial, little_endian=order)
    assert message_length(made, 0) == len(made)
    header = parse_header(made)
    body_checker(header.signature, header.little_endian)(made, header.length, len(made))
    _, body, ending = to_gvariant_parts(
        header, memoryview(made)[header.length :], little_endian=message.little_endian
    )
    assert bytes(body) + bytes(ending[: len(header.signature) + 3]) in native


@pytest.mark.program("python:gi")
@settings(max_examples=300)
@given(spoilt())
def test_what_is_taken_is_in_normal_form_and_what_is_not_is_refused(oracle: Oracle, native: bytes) -> None:
    fault = find_fault(native)
    if fault is None or not ONLY_DBUS.search(fault.reason):
        assert oracle.is_normal(MESSAGE_TYPE, native) == (fault is None), fault


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    assert find_fault(b"l\1\0\2\0\0\0\0\1\0\0\0\0\0\0\0" + data)
