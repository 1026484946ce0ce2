"""GLib's GVariant as an oracle: what a value is in bytes, and which bytes are in normal form.

As a program, run by the system's Python, it answers questions: a line of JSON each, a line of JSON back,
until its input ends. As a module it starts that program (`Oracle`) and needs nothing of PyGObject itself.

Values are those of `busproxy.wire.marshal` in JSON: a float is its 64 bits as an integer, bytes are a string
of hexadecimal digits, a dict is a list of pairs, a variant a pair of signature and value.
"""

from __future__ import annotations

import importlib
import json
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

SYSTEM_PYTHON = "/usr/bin/python3"

MESSAGE_TYPE = "(yyyyuta{tv}v)"


def split_types(signature: str) -> list[str]:
    """The complete types of a valid signature."""
    types = []
    start = depth = 0
    for at, code in enumerate(signature):
        depth += (code in "({") - (code in ")}")
        if depth == 0 and code != "a":
            types.append(signature[start : at + 1])
            start = at + 1
    return types


# The side of the tests


def to_json(type_: str, value: Any) -> Any:
    """A value of `marshal` in JSON."""
    match type_[0]:
        case "d":
            return struct.unpack("<Q", struct.pack("<d", value))[0]
        case "v":
            return [value[0], to_json(*value)]
        case "a":
            if type_ == "ay":
                return bytes(value).hex()
            items = value.items() if isinstance(value, Mapping) else value
            return [to_json(type_[1:], item) for item in items]
        case "(" | "{":
            return [
                to_json(member, item) for member, item in zip(split_types(type_[1:-1]), value, strict=True)
            ]
        case _:
            return value


class Oracle:
    """The program at work; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _ask(self, *question: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the oracle has ended"
        return json.loads(answer)

    def build(self, type_: str, value: Any, *, little_endian: bool) -> bytes:
        """The value of that GVariant type in bytes."""
        return bytes.fromhex(self._ask("build", type_, to_json(type_, value), little_endian))

    def build_body(self, signature: str, values: Sequence[Any], *, little_endian: bool) -> bytes:
        """The struct of all arguments."""
        members = [to_json(type_, value) for type_, value in zip(split_types(signature), values, strict=True)]
        return bytes.fromhex(self._ask("build", f"({signature})", members, little_endian))

    def build_message(
        self,
        head: Sequence[int],
        fields: Sequence[tuple[int, tuple[str, Any]]],
        signature: str,
        values: Sequence[Any],
        *,
        little_endian: bool,
    ) -> bytes:
        """A whole message: `head` are the type, the flags and the cookie."""
        type_, flags, cookie = head
        mark = ord("l" if little_endian else "B")
        body = [to_json(member, value) for member, value in zip(split_types(signature), values, strict=True)]
        message = [mark, type_, flags, 2, 0, cookie, fields, [f"({signature})", body]]
        return bytes.fromhex(self._ask("build", MESSAGE_TYPE, message, little_endian))

    def is_normal(self, type_: str, data: bytes) -> bool:
        """Whether these bytes are in normal form for this type; the byte order does not matter."""
        return bool(self._ask("is_normal", type_, data.hex()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        status = self._process.wait(30)
        self._process.stdout.close()
        assert error is not None or status == 0, f"the oracle ended with {status}"


# The side of the oracle


def answer_questions() -> None:
    gi = importlib.import_module("gi")
    gi.require_version("GLib", "2.0")
    glib = importlib.import_module("gi.repository.GLib")
    variant = glib.Variant
    makers = {
        "y": variant.new_byte,
        "b": variant.new_boolean,
        "n": variant.new_int16,
        "q": variant.new_uint16,
        "i": variant.new_int32,
        "u": variant.new_uint32,
        "x": variant.new_int64,
        "t": variant.new_uint64,
        "h": variant.new_handle,
        "s": variant.new_string,
        "o": variant.new_object_path,
        "g": variant.new_signature,
    }

    def take(type_: str, data: bytes) -> Any:
        is_trusted = False
        return variant.new_from_bytes(glib.VariantType(type_), glib.Bytes(data), is_trusted)

    def make(type_: str, value: Any) -> Any:
        match type_[0]:
            case "d":
                # Its bits, for GLib's own function takes a float, which may lose some of them on the way.
                return take("d", struct.pack("=Q", value))
            case "v":
                return variant.new_variant(make(*value))
            case "a":
                if type_ == "ay":
                    return take("ay", bytes.fromhex(value))
                builder = glib.VariantBuilder(glib.VariantType(type_))
                for item in value:
                    builder.add_value(make(type_[1:], item))
                return builder.end()
            case "(" | "{":
                builder = glib.VariantBuilder(glib.VariantType(type_))
                for member, item in zip(split_types(type_[1:-1]), value, strict=True):
                    builder.add_value(make(member, item))
                return builder.end()
            case "h":
                return makers["h"](value - (1 << 32) if value >> 31 else value)
            case code:
                return makers[code](value)

    native = sys.byteorder == "little"
    for line in sys.stdin:
        match json.loads(line):
            case ["build", type_, value, little_endian]:
                made = make(type_, value)
                if little_endian != native:
                    made = made.byteswap()
                answer: Any = made.get_data_as_bytes().get_data().hex()
            case ["is_normal", type_, data]:
                answer = take(type_, bytes.fromhex(data)).is_normal_form()
            case question:
                raise ValueError(f"nobody can answer {question}")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    answer_questions()
