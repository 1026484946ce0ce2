"""Our verdict on any message is libdbus' verdict.

Messages are drawn from a random generator that hypothesis controls (so that it can shrink what fails): first
a valid message of any type, byte order, fields and body; then, for most, damage of one of the kinds below.
`LIBDBUS_EXAMPLES` in the environment asks for more examples than the few seconds' worth of a normal run.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libdbus import LIBRARY, bytes_needed, judge

import busproxy.wire.marshal as marshal_module
from busproxy.wire.body import body_checker, string_arguments, trivial_body_length
from busproxy.wire.errors import ProtocolError
from busproxy.wire.header import Header, fields_with_sender, message_length, parse_header
from busproxy.wire.marshal import marshal, unmarshal
from busproxy.wire.signatures import complete_types

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="needs libdbus-1.so.3 (Debian package libdbus-1-3)")

EXAMPLES = int(os.environ.get("LIBDBUS_EXAMPLES", "400"))
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
randoms = st.randoms(use_true_random=False)

TEXTS = ["", "a", "Z\u00fcrich", "\u65e5", "\U0001f600", "\ufffe", "x" * 40, "org.a", ":1.5", "\x7f", "a\nb"]
PATHS = ["/", "/a", "/a/b_0", "/org/freedesktop/DBus", "/org/freedesktop/DBus/Loca", "/" + "p" * 300]
RESERVED_PATHS = ["/org/freedesktop/DBus/Local" + end for end in ("", "e", "/a")]
NAMES = [
    "a.b", "org.example.Editor", "a-b.c", "a", "", ".a.b", "a..b", "a.b.", "a.0b", "_._", "0.a", "a.b-c",
    ":1.5", ":", ":a", ":.1", ":1..2", ":1.", ":0.a-b", "a.b\n", "a b.c", "\u00e9.a", "a.b:", "-a.-",
    "org.freedesktop.DBus.Local", "org.freedesktop.DBus.Locale", "org.freedesktop.DBus", "a." * 127 + "b",
    "a." * 127 + "bc",
]  # fmt: skip
SIGNATURES = ["", "s", "a{sv}", "(ii)", "aai", "a{s(uv)}", "a" * 32 + "y", "(" * 32 + "y" + ")" * 32]
BASICS = "ybnqiuxtdhsog"
INTEGERS = {"y": 8, "n": -15, "q": 16, "i": -31, "u": 32, "x": -63, "t": 64, "h": 32}
FIELD_TYPES = {1: "o", 2: "s", 3: "s", 4: "s", 5: "u", 6: "s", 7: "s", 8: "g", 9: "u", 10: "o"}
GOOD_NAMES = {2: "org.example.Face", 3: "Member", 4: "org.example.Error", 6: "org.example", 7: ":1.7"}
NEEDED = {1: (1, 3), 2: (5,), 3: (4, 5), 4: (1, 2, 3)}


def draw_type(random: Random, depth: int = 0) -> str:
    kind = random.randrange(10 if depth < 4 else 5)
    if kind < 5:
        return random.choice(BASICS)
    if kind == 5:
        return "v"
    if kind == 6:
        return "(" + "".join(draw_type(random, depth + 1) for _ in range(random.randint(1, 3))) + ")"
    if kind == 7:
        return "a{" + random.choice(BASICS) + draw_type(random, depth + 1) + "}"
    return "a" + draw_type(random, depth + 1)


def draw_value(random: Random, type_: str, depth: int = 0) -> Any:
    code = type_[0]
    if code in INTEGERS:
        bits = INTEGERS[code]
        return random.choice([0, 1, random.randrange(2 ** abs(bits)), -1 if bits < 0 else 2**bits - 1])
    match code:
        case "b":
            return random.random() < 0.5
        case "d":
            return random.choice([0.0, -1.5, 1e300])
        case "s":
            return random.choice(TEXTS)
        case "o":
            return random.choice(PATHS)
        case "g":
            return random.choice(SIGNATURES)
        case "v":
            inner = draw_type(random, depth + 2) if depth < 6 else "y"
            return inner, draw_value(random, inner, depth + 1)
        case "(" | "{":
            return tuple(draw_value(random, member, depth + 1) for member in complete_types(type_[1:-1]))
    count = random.choice([0, 1, 1, 2, 3])
    if type_[1] == "{":
        key, value = complete_types(type_[2:-1])
        return {draw_value(random, key, depth): draw_value(random, value, depth + 1) for _ in range(count)}
    return [draw_value(random, type_[1:], depth + 1) for _ in range(count)]


def draw_deep(random: Random) -> tuple[str, Any]:
    """A value nested about as deep as may be, by variants and containers in turn."""
    type_ = random.choice(["y", "as", "a{ss}", "au", "a(uu)", "a((uu))", "(s)", "(ss)", "a{yv}", "aav"])
    value = draw_value(random, type_, depth=9)
    containers = ["v"] * random.choice([1, 9]) + ["(v)", "av", "a{sv}"]
    levels = 0
    most = random.randint(55, 66)
    while levels < most:
        kind = random.choice(containers)
        content = (type_, value)
        value = {"v": content, "(v)": (content,), "av": [content], "a{sv}": {"k": content}}[kind]
        levels += {"v": 1, "(v)": 2, "av": 2, "a{sv}": 3}[kind]
        type_ = kind
    return type_, value


def draw_limit_signature(random: Random) -> str:
    """A type at the edge of what may be nested, of all kinds of brackets, or of what may be written."""
    arrays, structs, entries = (random.choice([0, 1, 31, 32, 33]) for _ in range(3))
    match random.randrange(4):
        case 0:
            return "a" * arrays + "(" * structs + "a{y" * entries + "y" + "}" * entries + ")" * structs
        case 1:
            return "a{s" * entries + "a" * arrays + "(" * structs + "y" + ")" * structs + "}" * entries
        case 2:
            return "(a" * structs + "y" + ")" * structs
        case _:
            return "y" * random.choice([253, 254, 255])


def draw_body(random: Random, *, little_endian: bool) -> tuple[str, bytes]:
    kind = random.randrange(8)
    if kind == 0:
        return "", b""
    while True:
        if kind == 1:
            type_, value = draw_deep(random)
            types, values = [type_], [value]
        else:
            types = [draw_type(random) for _ in range(random.randint(1, 4))]
            values = [draw_value(random, type_) for type_ in types]
        try:
            return "".join(types), marshal("".join(types), values, little_endian=little_endian)
        except ValueError:  # too deep, or too long a signature: for damage to bring about
            kind = 2


def draw_message(random: Random, *, sound: bool) -> bytes:
    """A message that is valid if `sound`, else one that may have unfit fields."""
    little_endian = random.random() < 0.5
    type_ = random.choice([1, 1, 2, 3, 4, 4, random.randrange(5, 256)])
    signature, body = draw_body(random, little_endian=little_endian)
    codes = {*NEEDED.get(type_, ()), *(code for code in FIELD_TYPES if random.random() < 0.3)} - {8}
    fields = [(code, (FIELD_TYPES[code], draw_field(random, code, sound=sound))) for code in codes]
    if signature or random.random() < 0.2:
        fields.append((8, ("g", signature)))
    for _ in range(random.choice([0, 0, 1, 2])):
        unknown = draw_type(random)
        fields.append((random.randrange(11, 256), (unknown, draw_value(random, unknown))))
    random.shuffle(fields)
    if not sound:
        spoil_fields(random, fields)
    serial = random.choice([1, 7, 2**32 - 1])
    mark = b"l" if little_endian else b"B"
    head = [mark[0], type_, random.randrange(256), 1, len(body), serial, fields]
    header = marshal("yyyyuua(yv)", head, little_endian=little_endian)
    return pad(header) + body


def draw_field(random: Random, code: int, *, sound: bool) -> Any:
    match FIELD_TYPES[code]:
        case "u":
            return random.choice([0, 3]) if code == 9 or not sound else random.choice([1, 2**32 - 1])
        case "o":
            return random.choice(PATHS if sound or random.random() < 0.7 else RESERVED_PATHS)
        case _:
            return GOOD_NAMES[code] if sound or random.random() < 0.5 else random.choice(NAMES)


def spoil_fields(random: Random, fields: list[Any]) -> None:
    if not fields:
        return
    at = random.randrange(len(fields))
    match random.randrange(6):
        case 0:
            del fields[at]
        case 1:
            fields.append(fields[at])
        case 2:
            wrong = draw_type(random)
            fields[at] = (fields[at][0], (wrong, draw_value(random, wrong)))
        case 3:
            fields[at] = (random.choice([0, *range(1, 13), 255]), fields[at][1])
        case 4:
            fields.append((random.randrange(1, 11), random.choice(fields)[1]))


def pad(header: bytes) -> bytes:
    return header + bytes(-len(header) % 8)


def flip_bit(random: Random, message: bytearray) -> None:
    message[random.randrange(len(message))] ^= 1 << random.randrange(8)


def set_byte(random: Random, message: bytearray) -> None:
    telling = b"\x00\x01\x02\x04\x08\x7f\x80\xc0\xed\xf4\xff/.:lBasvgo(){}ybnuqixtdh"
    message[random.randrange(len(message))] = random.choice(telling)


def change_length(random: Random, message: bytearray) -> None:
    at = random.randrange(len(message) // 4) * 4
    order = "<I" if message[0] == ord("l") else ">I"
    if at + 4 > len(message):
        return
    (old,) = struct.unpack_from(order, message, at)
    near = [old + 1, old - 1, old + 4, old - 4, old + 8, old * 2]
    new = random.choice([*near, 0, 2**26, 2**26 + 1, 2**27, 2**32 - 1])
    struct.pack_into(order, message, at, new % 2**32)


def shift(random: Random, message: bytearray, *, insert: bool) -> None:
    """Insert or delete bytes, and often set the header's lengths right so that the inside is looked at."""
    at = random.randrange(len(message))
    count = random.choice([1, 2, 4, 8])
    order = "<I" if message[0] == ord("l") else ">I"
    fields_end = 16 + struct.unpack_from(order, message, 12)[0]
    if insert:
        message[at:at] = bytes(count) if random.random() < 0.7 else random.randbytes(count)
    else:
        count = -min(count, len(message) - at)
        del message[at : at - count]
    if len(message) >= 16 and at >= 16 and random.random() < 0.7:
        place = 12 if at < fields_end else 4
        old = struct.unpack_from(order, message, place)[0]
        struct.pack_into(order, message, place, (old + count) % 2**32)


def swap(random: Random, message: bytearray) -> None:
    """Exchange two stretches of equal length, as when fields change places."""
    count = random.choice([1, 4, 8, 16])
    words = len(message) // count
    if words < 2:
        return
    one, other = (random.randrange(words) * count for _ in range(2))
    first, second = message[one : one + count], message[other : other + count]
    message[one : one + count], message[other : other + count] = second, first


def truncate(random: Random, message: bytearray) -> None:
    del message[random.randrange(len(message)) :]


DAMAGES: list[Callable[[Random, bytearray], None]] = [
    flip_bit,
    set_byte,
    set_byte,
    change_length,
    change_length,
    swap,
    truncate,
    lambda random, message: shift(random, message, insert=True),
    lambda random, message: shift(random, message, insert=False),
]


def draw_damaged(random: Random) -> bytes:
    message = bytearray(draw_message(random, sound=random.random() < 0.7))
    for _ in range(random.choice([0, 1, 1, 1, 2, 4])):
        if len(message) >= 16:
            random.choice(DAMAGES)(random, message)
    return bytes(message)


def check_message(data: bytes | bytearray, start: int) -> tuple[Header, int]:
    """Check all of a message as the bus does; `data` goes on behind it."""
    length = message_length(data, start)
    header = parse_header(data, start)
    try:
        body_checker(header.signature, header.little_endian)(data, start + header.length, start + length)
    except ProtocolError as error:
        error.offset += header.length
        raise
    return header, length


def refusal_of(data: bytes | bytearray, start: int) -> ProtocolError | None:
    try:
        check_message(data, start)
    except ProtocolError as error:
        return error
    return None


def assert_same_verdict(message: bytes, start: int) -> None:
    """Compare the verdicts on what may be a message, lying for us at some place of a longer buffer."""
    if len(message) < 16:
        return
    buffer = b"\xa5" * start + message + b"\x5a" * 24
    needed = bytes_needed(message)
    try:
        length = message_length(buffer, start)
    except ProtocolError:
        whole = 0 < needed <= len(message)
        assert not whole or not judge(message[:needed]).accepted
        # A version or a length of the fields that no complete message can make good is refused early.
        assert needed == -1 or message[3] != 1 or needed > 2**26
        return
    assert length == needed
    if length > len(message):
        return
    verdict = judge(message[:length])
    refusal = refusal_of(buffer if start % 2 else bytearray(buffer), start)
    assert (refusal is None) == verdict.accepted, f"{verdict}; here: {refusal or 'accepted'}"
    assert refusal is None or 0 <= refusal.offset <= length


@many
@given(randoms)
def test_a_sound_message_is_accepted_by_both(random: Random) -> None:
    message = draw_message(random, sound=True)
    assert judge(message).accepted, judge(message)
    assert check_message(message, 0)[1] == len(message)


@many
@given(randoms, st.integers(0, 9))
def test_the_verdict_on_a_damaged_message_is_the_same(random: Random, start: int) -> None:
    assert_same_verdict(draw_damaged(random), start)


@many
@given(randoms)
def test_the_verdict_on_deep_nesting_is_the_same(random: Random) -> None:
    with patch.object(marshal_module, "MAX_DEPTH", 1000):
        type_, value = draw_deep(random)
        if random.random() < 0.5:
            head = [ord("l"), 9, 0, 1, 0, 1, [(200, (type_, value))]]
            message = pad(marshal("yyyyuua(yv)", head))
        else:
            body = marshal(type_, [value])
            head = [ord("l"), 9, 0, 1, len(body), 1, [(8, ("g", type_))]]
            message = pad(marshal("yyyyuua(yv)", head)) + body
    assert_same_verdict(message, 3)


@many
@given(randoms, st.text(alphabet="ybsvaia(){}oh", max_size=8))
def test_the_verdict_on_a_signature_is_the_same(random: Random, insertion: str) -> None:
    valid = random.choice([draw_type, draw_limit_signature])(random)
    at = random.randrange(len(valid) + 1)
    signature = (valid[:at] + insertion + valid[at + random.choice([0, 0, 1, 2]) :])[:255]
    length = len(signature)
    field = bytes((200, 1)) + b"g\0" + bytes((length,)) + signature.encode() + b"\0"
    head = struct.pack("<BBBBIII", ord("l"), 9, 0, 1, 0, 1, len(field))
    message = pad(head + field)
    try:
        complete_types(signature)
    except ProtocolError:
        assert not judge(message).accepted
    else:
        assert judge(message).accepted


@many
@given(st.text("a0_-.:/\u00e9", max_size=12) | st.sampled_from(NAMES), st.sampled_from([1, 2, 3, 4, 6, 7]))
def test_the_verdict_on_a_name_is_the_same(name: str, code: int) -> None:
    value = name.encode()
    type_ = b"o" if code == 1 else b"s"
    field = bytes((code, 1)) + type_ + b"\0" + struct.pack("<I", len(value)) + value + b"\0"
    message = pad(struct.pack("<BBBBIII", ord("l"), 9, 0, 1, 0, 1, len(field)) + field)
    assert_same_verdict(message, 0)


@many
@given(randoms)
def test_a_message_with_our_sender_is_valid_and_has_that_sender_only(random: Random) -> None:
    message = draw_message(random, sound=True)
    header, length = check_message(message, 0)
    fields_length, fields = fields_with_sender(message, 0, header, ":1.4711")
    order = "<I" if header.little_endian else ">I"
    stamped = message[:12] + struct.pack(order, fields_length) + fields + message[header.length : length]
    verdict = judge(stamped)
    assert verdict.accepted, verdict
    assert verdict.sender == ":1.4711" or header.unix_fds
    after, _ = check_message(stamped, 0)
    assert after.sender == ":1.4711"
    ignored = {"sender", "sender_span", "fields_length", "length", "reply_serial_at"}
    for name in set(Header.__slots__) - ignored:
        assert getattr(after, name) == getattr(header, name), name


@many
@given(randoms)
def test_values_survive_being_marshalled(random: Random) -> None:
    little_endian = random.random() < 0.5
    signature, body = draw_body(random, little_endian=little_endian)
    values = unmarshal(signature, b"\xff" * 3 + body + b"\xff", 3, 3 + len(body), little_endian)
    assert marshal(signature, values, little_endian=little_endian) == body


@many
@given(randoms)
def test_string_arguments_are_those_of_the_values(random: Random) -> None:
    little_endian = random.random() < 0.5
    signature, body = draw_body(random, little_endian=little_endian)
    values = unmarshal(signature, body, 0, len(body), little_endian)
    expected = [
        (type_, value) if type_ in ("s", "o", "g") else None
        for type_, value in zip(complete_types(signature), values, strict=True)
    ]
    data = b"\xff" * 5 + body + b"\xff" * 8
    assert string_arguments(signature, little_endian, data, 5, 5 + len(body), 64) == expected


@many
@given(randoms)
def test_a_trivial_length_means_that_any_bytes_will_do(random: Random) -> None:
    types = ["y", "n", "u", "t", "(uu)", "(ty)", "b", "d"]
    signature = "".join(random.choice(types) for _ in range(random.randint(1, 4)))
    length = trivial_body_length(signature)
    if length is None:
        return
    head = [ord("l"), 9, 0, 1, length, 1, [(8, ("g", signature))]]
    header = marshal("yyyyuua(yv)", head)
    message = pad(header) + random.randbytes(length)
    assert judge(message).accepted
    check_message(message, 0)
