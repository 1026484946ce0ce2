"""What kdbusctl reads of a D-Bus message; the proxy, which has code of its own for that, writes them here."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busproxy.remarshal import build_gvariant
from busproxy.wire.gvariant import encode
from kdbus_core.ctl.payload import MAX_DECODED, Payload, read_payload

FIELDS = {
    "path": "/org/example",
    "interface": "org.example.Iface",
    "member": "Frobnicate",
    "destination": "org.example.Service",
}

Value = tuple[str, Any, Any]
"""A type, a value of it as the proxy has it, and as JSON has it."""


def message(signature: str, values: list[Any], *, little_endian: bool = True, **fields: Any) -> bytes:
    """A method call as it is on a kdbus bus."""
    chosen = FIELDS | fields
    body = encode(signature, values, little_endian=little_endian)
    parts = build_gvariant(1, 7, signature=signature, body=body, little_endian=little_endian, **chosen)
    return b"".join(parts)


def read(data: bytes) -> Payload:
    payload = read_payload([data])
    assert payload is not None
    return payload


# Header


def test_header_and_arguments_are_read() -> None:
    expected = Payload("method call", FIELDS, "su", ["hello", 7])
    assert read(message("su", ["hello", 7])) == expected


def test_a_message_may_have_no_arguments() -> None:
    assert read(message("", [])) == Payload("method call", FIELDS, "", [])


def test_fields_of_all_kinds_of_messages_are_read() -> None:
    reply = b"".join(build_gvariant(3, 9, reply_cookie=1 << 40, error_name="org.example.Bad", unix_fds=2))
    expected = {"reply_cookie": 1 << 40, "error_name": "org.example.Bad", "fds": 2}
    assert read(reply) == Payload("error", expected, "", [])
    signal = b"".join(build_gvariant(4, 9, path="/a", interface="a.b", member="C"))
    assert read(signal).type == "signal"


@pytest.mark.parametrize("size", [0, 1, 100, 130, 200, 250, 255, 256, 300, 60_000])
@pytest.mark.parametrize("little_endian", [True, False])
def test_offsets_are_as_wide_as_the_message_needs(size: int, *, little_endian: bool) -> None:
    text = "x" * size
    payload = read(message("sus", [text, 7, "y"], little_endian=little_endian))
    assert (payload.fields, payload.arguments) == (FIELDS, [text, 7, "y"])


def test_of_a_long_message_the_arguments_are_not_read() -> None:
    assert read(message("say", ["x", bytes(MAX_DECODED)])) == Payload("method call", FIELDS, "say", None)


def test_it_does_not_matter_where_a_payload_is_cut() -> None:
    data = message("sau", ["hello", [1, 2, 3]])
    whole = read(data)
    for place in range(len(data)):
        assert read_payload([data[:place], memoryview(data)[place:]]) == whole
    assert read_payload([data[place : place + 1] for place in range(len(data))]) == whole


# Arguments


@pytest.mark.parametrize(
    ("signature", "value", "told"),
    [
        ("b", True, True),
        ("y", 255, 255),
        ("n", -2, -2),
        ("t", (1 << 64) - 1, (1 << 64) - 1),
        ("d", 0.5, 0.5),
        ("d", float("inf"), "inf"),
        ("h", 1, 1),
        ("o", "/a/b", "/a/b"),
        ("g", "a{sv}", "a{sv}"),
        ("ay", b"\x01\x02", [1, 2]),
        ("as", [], []),
        ("as", ["", "b"], ["", "b"]),
        ("aau", [[1], [], [2, 3]], [[1], [], [2, 3]]),
        ("(yv)", (1, ("s", "x")), [1, {"type": "s", "data": "x"}]),
        ("a{sv}", {"k": ("u", 7)}, {"k": {"type": "u", "data": 7}}),
        ("a{yb}", {5: True}, [[5, True]]),
        ("v", ("v", ("(ii)", (1, 2))), {"type": "v", "data": {"type": "(ii)", "data": [1, 2]}}),
    ],
)
def test_arguments_are_as_json_has_them(signature: str, value: Any, told: Any) -> None:
    arguments = read(message(signature, [value])).arguments
    assert arguments == [told]
    assert json.loads(json.dumps(arguments, allow_nan=False)) == [told]


def array_of(element: Value, count: int) -> Value:
    type, value, told = element
    return f"a{type}", bytes([value] * count) if type == "y" else [value] * count, [told] * count


def struct_of(members: list[Value]) -> Value:
    types, values, told = zip(*members, strict=True)
    return f"({''.join(types)})", tuple(values), list(told)


def variant_of(inner: Value) -> Value:
    type, value, told = inner
    return "v", (type, value), {"type": type, "data": told}


def dictionary_of(key: str, inner: Value) -> Value:
    type, value, told = inner
    return f"a{{s{type}}}", {key: value}, {key: told}


SIMPLE = st.sampled_from(
    [("y", 7), ("b", False), ("n", -3), ("u", 9), ("x", -1), ("t", 2), ("d", 1.5), ("s", "text"), ("o", "/")]
).map(lambda pair: (*pair, pair[1]))


def nested(inner: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    return st.one_of(
        st.builds(array_of, inner, st.integers(0, 5)),
        st.builds(struct_of, st.lists(inner, min_size=1, max_size=4)),
        st.builds(variant_of, inner),
        st.builds(dictionary_of, st.text("abc", max_size=300), inner),
    )


VALUES: st.SearchStrategy[Value] = st.recursive(SIMPLE, nested, max_leaves=12)


@given(arguments=st.lists(VALUES, max_size=4), little_endian=st.booleans())
def test_any_arguments_are_read_as_they_were_written(arguments: list[Value], *, little_endian: bool) -> None:
    signature = "".join(type for type, _, _ in arguments)
    data = message(signature, [value for _, value, _ in arguments], little_endian=little_endian)
    if len(data) <= MAX_DECODED:
        assert read(data) == Payload("method call", FIELDS, signature, [told for _, _, told in arguments])


# What is no message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        bytes(200),
        b"l\1\0\1" + bytes(100),  # version 1
        message("s", ["x"])[:-1],
        message("s", ["x"])[:-4] + b"\0)s(\x90",
        b"l\1\0\2" + bytes(12) + b"\0()\x10",  # complete, but see the type below
    ],
)
def test_what_is_no_message_is_left_alone(data: bytes) -> None:
    payload = read_payload([data])
    assert payload is None or payload == Payload("method call", {}, "", [])


def test_a_header_field_of_another_type_makes_no_message() -> None:
    data = message("", [])
    assert read_payload([data.replace(b"/org/example\0\0o", b"/org/example\0\0s")]) is None


@pytest.mark.parametrize("type", ["(" * 250 + ")" * 250, "a" * 400 + "y", "a{", "(", "aa", "a{ss"])
def test_a_type_that_makes_no_sense_makes_no_message(type: str) -> None:
    start = b"l\1\0\2" + bytes(12)
    data = start + bytes(8) + b"\0" + type.encode()
    for width in (1, 2):
        assert read_payload([data + len(start).to_bytes(width, "little")]) is None


@given(seed=st.integers(0, 1 << 32))
def test_nothing_that_comes_is_more_than_no_message(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(message("sa{sv}(yas)", ["x", {"k": ("au", [1, 2])}, (1, ["a", "b"])]))
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] = chance.choice(
            [0, 1, 0x28, 0x61, 0x7B, 0xFF, chance.randrange(256)]
        )
    payload = read_payload([bytes(data[: chance.randint(0, len(data))] if seed % 3 == 0 else data)])
    assert payload is None or json.dumps(payload.arguments, allow_nan=False)
