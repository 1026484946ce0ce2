"""Decisions read from bytes: one generator serves hypothesis, a coverage-guided fuzzer and plain chance.

When the bytes are used up every further decision is the first there is: short inputs are simple ones, and
shrinking an input simplifies what it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

INTERESTING = (
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    17,
    24,
    63,
    64,
    4095,
    4096,
    32767,
    32768,
    32769,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 63) - 8,
    (1 << 63) - 1,
    1 << 63,
    (1 << 63) + 1,
    (1 << 64) - 4096,
    (1 << 64) - 16,
    (1 << 64) - 8,
    (1 << 64) - 2,
    (1 << 64) - 1,
)
"""64-bit numbers at which something might be different."""


class Choices:
    """A run of decisions; `is_exhausted` once there are no bytes left to decide with."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_exhausted(self) -> bool:
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        """Exactly that many bytes, zeros where there are no more."""
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece.ljust(count, b"\0")

    def below(self, limit: int) -> int:
        """A number from 0 on."""
        size = 1 if limit <= 256 else 2 if limit <= 65536 else 8
        return int.from_bytes(self.take(size), "little") % limit

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def once_in(self, count: int) -> bool:
        """Whether something rare happens; never when there are no bytes left."""
        return self.below(count) == count - 1

    def number(self) -> int:
        """Any 64-bit number, mostly an odd one out."""
        if self.once_in(4):
            return int.from_bytes(self.take(8), "little")
        return self.pick(INTERESTING)

    def blob(self, limit: int) -> bytes:
        """Up to that many bytes."""
        return self.take(self.below(limit + 1))
