"""Bloom filters: how strings become bits that a broker can compare without knowing the strings.

A signal says what is in it as a set of *tags*, such as "member:NameOwnerChanged"; each tag sets a few bits
of the signal's filter. Who wants signals gives a mask made of the tags that all of them must have. Whatever
has the tags has the bits, so a mask never misses; it passes too much at times, and whoever receives looks at
the message itself.

Which bits a tag sets is an agreement of all programs on a bus (the broker takes no part in it), the one that
sd-bus made for kdbus: SipHash-2-4 with the keys below, a new key whenever the 8 bytes of a hash are used up;
an index takes as many bytes as it needs, the first one highest, and is cut to the filter's size. Bits are
numbered from the lowest of the first byte, so that a filter is a little-endian integer.

Hashing is what costs, and most tags of a text are prefixes of it. A hash absorbs a text word by word, so one
pass over the text serves all of its prefixes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from kdbus_core.domain import Bloom

__all__ = ["all_bits", "siphash", "tag_bits", "to_bytes"]

_KEYS = tuple(
    bytes.fromhex(key)
    for key in (
        "b9660bf0467047c18875c49c54b9bd15",
        "aaa154a2e0714b39bfe1dd2e9fc54a3b",
        "63fdaebecd824812a16e4126cbfaa0c8",
        "23be452932d2462d82035228fe3717f5",
        "563bbfee5a4f4339afaa9408dff0fc10",
        "3180c873c7ea46d3aa25750f9e4c0929",
        "7df7184b7ba444d5853c06e06553966d",
        "f277e96f93b54e719a0c34883925bf35",
    )
)
_HASH_LENGTH = 8
_U64 = (1 << 64) - 1

_State = tuple[int, int, int, int]


def _initial_state(key: bytes) -> _State:
    low, high = struct.unpack("<2Q", key)
    return (
        low ^ 0x736F6D6570736575,
        high ^ 0x646F72616E646F6D,
        low ^ 0x6C7967656E657261,
        high ^ 0x7465646279746573,
    )


_INITIAL_STATES = tuple(_initial_state(key) for key in _KEYS)


def _mix(a: int, b: int, c: int, d: int) -> _State:
    """One round."""
    a = a + b & _U64
    b = (b << 13 & _U64 | b >> 51) ^ a
    a = a << 32 & _U64 | a >> 32
    c = c + d & _U64
    d = (d << 16 & _U64 | d >> 48) ^ c
    a = a + d & _U64
    d = (d << 21 & _U64 | d >> 43) ^ a
    c = c + b & _U64
    b = (b << 17 & _U64 | b >> 47) ^ c
    return a, b, c << 32 & _U64 | c >> 32, d


def _absorb(state: _State, word: int) -> _State:
    a, b, c, d = state
    a, b, c, d = _mix(*_mix(a, b, c, d ^ word))
    return a ^ word, b, c, d


def _finish(state: _State, last_word: int) -> int:
    """The hash, given the state before the last word: the rest of the text and, highest, its length."""
    a, b, c, d = _absorb(state, last_word)
    a, b, c, d = _mix(*_mix(*_mix(*_mix(a, b, c ^ 0xFF, d))))
    return a ^ b ^ c ^ d


def _prefix_hashes(state: _State, text: bytes, lengths: Sequence[int]) -> Iterator[int]:
    """The hashes of the first so many bytes of a text; the lengths do not fall."""
    absorbed = 0
    for length in lengths:
        whole = length & -8
        while absorbed < whole:
            state = _absorb(state, int.from_bytes(text[absorbed : absorbed + 8], "little"))
            absorbed += 8
        rest = int.from_bytes(text[whole:length], "little")
        yield _finish(state, (length & 0xFF) << 56 | rest)


def siphash(key: bytes, text: bytes) -> int:
    """SipHash-2-4 of a text, with a key of 16 bytes; read in little-endian order it is the usual 8 bytes."""
    return next(_prefix_hashes(_initial_state(key), text, (len(text),)))


class _Plan(NamedTuple):
    """How hashes become indexes: `width` bytes each, cut by `mask`; how many of each key's hash."""

    width: int
    mask: int
    indexes: tuple[int, ...]


@lru_cache(maxsize=64)
def _plan(bloom: Bloom) -> _Plan | None:
    """None for parameters that there are not enough keys for."""
    bits = bloom.size * 8
    width = (bits.bit_length() + 6) // 8
    if bloom.n_hash * width > len(_KEYS) * _HASH_LENGTH:
        return None
    each = _HASH_LENGTH // width
    full, rest = divmod(bloom.n_hash, each)
    return _Plan(width, bits - 1, (each,) * full + ((rest,) if rest else ()))


def tag_bits(bloom: Bloom, text: bytes, lengths: Sequence[int] | None = None) -> int:
    """The bits that a tag sets; with `lengths` (ascending) those of its prefixes of so many bytes.

    On a bus whose parameters ask for more hashes than there are keys for (indexes of more than 64 bytes
    together) a tag has no bits: masks are empty there, and nothing is sorted out.
    """
    plan = _plan(bloom)
    if plan is None:
        return 0
    width, mask, indexes = plan
    if lengths is None:
        lengths = (len(text),)
    found = 0
    for state, count in zip(_INITIAL_STATES, indexes, strict=False):
        for hashed in _prefix_hashes(state, text, lengths):
            taken = hashed.to_bytes(_HASH_LENGTH, "little")
            for at in range(0, count * width, width):
                found |= 1 << (int.from_bytes(taken[at : at + width], "big") & mask)
    return found


def all_bits(bloom: Bloom) -> int:
    """The filter that contains every mask."""
    return (1 << bloom.size * 8) - 1


def to_bytes(bloom: Bloom, bits: int) -> bytes:
    """A filter or mask as the broker takes it."""
    return bits.to_bytes(bloom.size, "little")
