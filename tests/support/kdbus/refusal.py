"""How a refused command shows in a test.

Every method of the test client returns what the command gives or raises `Refused`. `with refused(EINVAL):`
says that the command inside has to be refused with exactly this errno; what it gives has `.answer`, the
struct as the broker wrote it back, once the block is left.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import errorcode
from struct import unpack_from
from types import TracebackType

from kdbus_core.errors import KdbusError

from .layout import Layout


class Answer:
    """A command's struct and items after the command: `answer["offset"]`, `answer["return_flags"]`."""

    def __init__(self, layout: Layout, raw: bytes) -> None:
        self.layout = layout
        self.raw = raw

    def __getitem__(self, field: str) -> int:
        if field in PREFIX:
            at, code = PREFIX[field], "=Q"
        else:
            at, code = self.layout.fields[field]
        (value,) = unpack_from(code, self.raw, at)
        assert isinstance(value, int)
        return value

    @property
    def items(self) -> bytes:
        """The items, which only negotiation changes."""
        return self.raw[self.layout.size :]


PREFIX = {"size": 0, "flags": 8, "return_flags": 16}


class Refused(Exception):
    """A command failed with this errno."""

    def __init__(self, error: KdbusError, answer: Answer | None = None) -> None:
        super().__init__(str(error))
        self.errno = error.errno
        self.answer = answer


class refused:
    """The command inside has to be refused with exactly this errno."""

    def __init__(self, errno: int) -> None:
        self.errno = errno
        self._answer: Answer | None = None

    def __enter__(self) -> refused:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        expected = errorcode[self.errno]
        if error is None:
            raise AssertionError(f"not refused, expected {expected}")
        if not isinstance(error, Refused):
            return False
        assert error.errno == self.errno, f"expected {expected}, got {error}"
        self._answer = error.answer
        return True

    @property
    def answer(self) -> Answer:
        assert self._answer is not None
        return self._answer


def repeat_until(errno: int, command: Callable[[], object], *, limit: int = 1000) -> int:
    """Do a command until it is refused with this errno; returns how often it was not."""
    for count in range(limit):
        try:
            command()
        except Refused as error:
            if error.errno != errno:
                raise
            return count
    raise AssertionError(f"done {limit} times without {errorcode[errno]}")
