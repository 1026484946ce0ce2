"""Type signatures: which ones are valid, how they split, how their types align.

A signature is a sequence of complete types (specification, "Type System"). It is valid when every bracket
closes what it opened, arrays have an element type, structs are not empty, dict entries stand directly in an
array with a basic key and one value, and the nesting limits hold.

The limits are libdbus': 255 type codes; 32 nested structs; 32 nested dict entries; 32 arrays *in a row*. The
specification limits the nesting of arrays as a whole, libdbus starts to count anew at each other type code,
so that "a(a(i))" has no two arrays in a row. What such a type may really nest is limited by the depth of the
value (see `body`).
"""

from __future__ import annotations

from functools import lru_cache

from busproxy.wire.errors import ProtocolError

__all__ = [
    "BASIC_TYPES",
    "FIXED_SIZES",
    "MAX_NESTING",
    "MAX_SIGNATURE_LENGTH",
    "alignment_of",
    "complete_types",
    "is_single_complete_type",
    "split_types",
    "validate_signature",
]

MAX_SIGNATURE_LENGTH = 255
MAX_NESTING = 32

FIXED_SIZES = {"y": 1, "b": 4, "n": 2, "q": 2, "i": 4, "u": 4, "x": 8, "t": 8, "d": 8, "h": 4}
"""Size in bytes of each type whose values all have one size; it is their alignment too."""

BASIC_TYPES = frozenset("ybnqiuxtdhsog")
"""The types that may be the key of a dict entry."""

_ALIGNMENTS = {**FIXED_SIZES, "s": 4, "o": 4, "g": 1, "v": 1, "a": 4, "(": 8, "{": 8}
_VALUE_TYPES = BASIC_TYPES | {"v"}


def alignment_of(type_char: str) -> int:
    """Return the alignment of a type, given the first character of its signature ('(', '{' for brackets)."""
    return _ALIGNMENTS[type_char]


@lru_cache(maxsize=1024)
def validate_signature(text: str) -> None:
    """Raise `ProtocolError` if libdbus would not take this signature; its offset counts within the signature.

    Bytes from the wire are to be decoded as Latin-1: what is not ASCII is no type code, whatever it is.
    """
    if len(text) > MAX_SIGNATURE_LENGTH:
        raise ProtocolError("signature longer than 255 bytes", MAX_SIGNATURE_LENGTH)
    opened: list[str] = []
    counts = [0]
    arrays = 0
    last = ""
    for at, code in enumerate(text):
        if last == "{" and code not in BASIC_TYPES:
            raise ProtocolError("dict entry key of a type that is not basic in signature", at)
        if code == "a":
            arrays += 1
            if arrays > MAX_NESTING:
                raise ProtocolError("more than 32 nested arrays in signature", at)
        elif code in _VALUE_TYPES:
            counts[-1] += 1
            arrays = 0
        elif code in "({":
            if code == "{" and last != "a":
                raise ProtocolError("dict entry outside an array in signature", at)
            opened.append(code)
            if opened.count(code) > MAX_NESTING:
                kind = "structs" if code == "(" else "dict entries"
                raise ProtocolError(f"more than 32 nested {kind} in signature", at)
            counts.append(0)
            arrays = 0
        elif code in ")}":
            if not opened or opened.pop() != ("(" if code == ")" else "{"):
                raise ProtocolError(f"{code!r} closes nothing in signature", at)
            if last == "a":
                raise ProtocolError("array without an element type in signature", at)
            members = counts.pop()
            if code == ")" and members == 0:
                raise ProtocolError("empty struct in signature", at)
            if code == "}" and members != 2:
                raise ProtocolError("dict entry without exactly a key and a value in signature", at)
            counts[-1] += 1
        else:
            raise ProtocolError(f"unknown type code {code!r} in signature", at)
        last = code
    if last == "a":
        raise ProtocolError("array without an element type in signature", len(text))
    if opened:
        raise ProtocolError(f"{opened[-1]!r} is never closed in signature", len(text))


def split_types(text: str) -> tuple[str, ...]:
    """Split a signature that is known to be valid into its complete types."""
    types = []
    start = 0
    depth = 0
    for at, code in enumerate(text):
        if code in "({":
            depth += 1
        elif code in ")}":
            depth -= 1
        if depth == 0 and code != "a":
            types.append(text[start : at + 1])
            start = at + 1
    return tuple(types)


@lru_cache(maxsize=1024)
def complete_types(text: str) -> tuple[str, ...]:
    """Split a signature into its complete types; raise `ProtocolError` if it is not valid."""
    validate_signature(text)
    return split_types(text)


def is_single_complete_type(text: str) -> bool:
    """Tell whether this is valid and exactly one complete type, as a variant's signature must be."""
    try:
        return len(complete_types(text)) == 1
    except ProtocolError:
        return False
