"""Signatures, values for them, and whole dbus1 messages, for hypothesis to choose from.

Values are those of `busproxy.wire.marshal`. Descriptors are indexes below `FD_COUNT`, which every message
says to carry.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from busproxy.wire.header import Header, MessageType, parse_header
from busproxy.wire.marshal import marshal
from busproxy.wire.message import build_message
from busproxy.wire.signatures import split_types

FD_COUNT = 4

_RANGES = {
    "y": (0, 0xFF),
    "n": (-0x8000, 0x7FFF),
    "q": (0, 0xFFFF),
    "i": (-(1 << 31), (1 << 31) - 1),
    "u": (0, (1 << 32) - 1),
    "x": (-(1 << 63), (1 << 63) - 1),
    "t": (0, (1 << 64) - 1),
    "h": (0, FD_COUNT - 1),
}

_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
_PATHS = st.sampled_from(("/", "/a", "/com/example/Object_1", "/" + "x" * 300))

BASIC = st.sampled_from("ybnqiuxtdsogh")


def _containers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        inner.map(lambda type_: f"a{type_}"),
        st.lists(inner, min_size=1, max_size=4).map(lambda types: f"({''.join(types)})"),
        st.tuples(BASIC, inner).map(lambda entry: f"a{{{entry[0]}{entry[1]}}}"),
    )


TYPES = st.recursive(BASIC | st.just("v"), _containers, max_leaves=6)
SIGNATURES = st.lists(TYPES, max_size=4).map("".join)


@st.composite
def values_of(draw: st.DrawFn, type_: str, depth: int = 0) -> Any:
    """A value of that complete type."""
    match type_[0]:
        case "b":
            return draw(st.booleans())
        case "d":
            return draw(st.floats())
        case "s":
            return draw(_TEXT | st.just("long " * 60))
        case "o":
            return draw(_PATHS)
        case "g":
            return draw(SIGNATURES)
        case "v":
            inner = draw(TYPES if depth < 2 else BASIC)
            return inner, draw(values_of(inner, depth + 1))
        case "a" if type_ == "ay":
            return draw(st.binary(max_size=20) | st.just(bytes(range(256)) * 2))
        case "a" if type_[1] == "{":
            key, value = split_types(type_[2:-1])
            return draw(st.dictionaries(values_of(key), values_of(value, depth), max_size=3))
        case "a":
            return draw(st.lists(values_of(type_[1:], depth), max_size=4))
        case "(":
            return tuple(draw(values_of(member, depth)) for member in split_types(type_[1:-1]))
        case code:
            return draw(st.integers(*_RANGES[code]))


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, list[Any]]:
    """A signature and its values."""
    signature = draw(SIGNATURES)
    return signature, [draw(values_of(type_)) for type_ in split_types(signature)]


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """What `build_message` needs for a valid message, but for signature and body."""
    type_ = draw(st.sampled_from((*MessageType, 5, 255)))
    fields: dict[str, Any] = {
        "type": int(type_),
        "serial": draw(st.integers(1, 0xFFFFFFFF)),
        "flags": draw(st.integers(0, 255)),
        "destination": draw(st.sampled_from((None, ":1.7", "com.example.Service"))),
        "sender": draw(st.sampled_from((None, ":1.42", "org.freedesktop.DBus"))),
        "unix_fds": draw(st.sampled_from((0, FD_COUNT))),
    }
    if type_ in (MessageType.METHOD_CALL, MessageType.SIGNAL) or draw(st.booleans()):
        fields["path"] = draw(_PATHS)
        fields["member"] = "Frobnicate"
        if type_ == MessageType.SIGNAL or draw(st.booleans()):
            fields["interface"] = "com.example.Interface"
    if type_ not in list(MessageType):
        fields["unix_fds"] = FD_COUNT  # it needs no field, but `build_message` needs one
    if type_ in (MessageType.METHOD_RETURN, MessageType.ERROR) or draw(st.booleans()):
        fields["reply_serial"] = draw(st.integers(1, 0xFFFFFFFF))
    if type_ == MessageType.ERROR:
        fields["error_name"] = "com.example.Error"
    return fields


def build(fields: dict[str, Any], signature: str, values: list[Any], *, little_endian: bool) -> bytes:
    """The dbus1 message."""
    body = marshal(signature, values, little_endian)
    return build_message(**fields, signature=signature, body=body, little_endian=little_endian)


def cut(message: bytes) -> tuple[Header, bytes]:
    """A dbus1 message as its header and its body."""
    header = parse_header(message)
    return header, message[header.length :]
