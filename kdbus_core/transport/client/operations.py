"""One command on its way: what is asked, what comes back, and what happens if nobody waits any longer.

An `Operation` is made complete before it is sent: number and body of the
request, the descriptors that go along, and `finish`, which makes a result of
the answer.  `finish` runs where the answer is read, in the order of the
answers, whoever waits for it.  So everything that depends on that order, such as
what was lost and which slices are ours, is never out of step.

An operation ends once: with a result, or with an error.  Who stops waiting
abandons it; when its answer comes after all, its result is disposed of, so
that neither a slice nor a descriptor is left without an owner.

Descriptors: `fds` are borrowed from the caller until the request is sent,
`owned` (those among them that were made for this request) are closed then.  The
descriptors of an answer belong to the `Answer` until `finish` takes them; what
it leaves is closed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import EBADMSG, EMFILE, EPIPE
from functools import partial
from threading import RLock
from typing import Generic, Protocol, TypeVar

from kdbus_core.abi import Command, align
from kdbus_core.errors import KdbusError
from kdbus_core.transport.protocol import ANSWER, PATCH

T = TypeVar("T")

_settling = RLock()
"""Held for the moment in which it is decided who has the result of an operation."""


class Answer:
    """An answer as it was received; `packet` is all of it.  Without a packet it is the end of the link.

    `is_truncated` says that descriptors were lost on the way because this process can have no more.
    """

    __slots__ = ("count", "errno", "fds", "is_truncated", "packet")

    def __init__(
        self, errno: int, count: int, packet: bytes, fds: list[int], *, is_truncated: bool = False
    ) -> None:
        self.errno = errno
        self.count = count
        self.packet = packet
        self.fds = fds
        self.is_truncated = is_truncated

    def apply(self, memory: bytearray) -> bytearray:
        """Put what the broker wrote into the caller's memory, as far as `memory` reaches; EBADMSG."""
        packet = self.packet
        at = ANSWER.size
        for _ in range(self.count):
            if at + PATCH.size > len(packet):
                raise KdbusError(EBADMSG, f"an answer of {len(packet)} bytes lacks a patch at {at}")
            address, length = PATCH.unpack_from(packet, at)
            at += PATCH.size
            if length > len(packet) - at:
                raise KdbusError(EBADMSG, f"a patch of {length} bytes at {at} of {len(packet)}")
            if address < len(memory):
                room = min(length, len(memory) - address)
                memory[address : address + room] = packet[at : at + room]
            at += align(length)
        return memory

    def take_fds(self) -> list[int]:
        """The descriptors, which are the caller's from now on."""
        fds, self.fds = self.fds, []
        return fds

    def close(self) -> None:
        """Close the descriptors nobody took."""
        close_fds(self.take_fds())


def close_fds(fds: Sequence[int]) -> None:
    """Close all of these, whatever closing one of them says; -1 stands for none."""
    for fd in fds:
        if fd >= 0:
            with suppress(OSError):  # it is gone all the same
                os.close(fd)


def check(answer: Answer, number: int) -> None:
    """Raise what a command was refused with."""
    if answer.errno:
        raise KdbusError(answer.errno, f"{name_of(number)}: {os.strerror(answer.errno)}")


def name_of(number: int) -> str:
    """What a request is called in messages."""
    try:
        return Command(number).name
    except ValueError:
        return f"request {number:#x}"


class Awaited(Protocol):
    """Something that an answer is for."""

    def resolve(self, answer: Answer) -> None:
        """The answer is there, or (ends with an error) will never be."""

    def fail(self, error: KdbusError) -> None:
        """There will be no answer."""


class Ignored:
    """What waits for the answers nobody is interested in."""

    def resolve(self, answer: Answer) -> None:
        """Nothing is kept."""
        if answer.fds:
            answer.close()

    def fail(self, error: KdbusError) -> None:
        """Nothing is lost."""


IGNORED = Ignored()


class Operation(Generic[T]):
    """A command whose answer `finish` turns into a T; `dispose` gives up a T that nobody wants."""

    __slots__ = (
        "_abandoned",
        "_dispose",
        "_finish",
        "_result",
        "body",
        "done",
        "error",
        "fds",
        "flags",
        "number",
        "on_done",
        "owned",
        "was_sent",
    )

    def __init__(
        self,
        number: int,
        body: bytes,
        finish: Callable[[Answer], T],
        *,
        fds: Sequence[int] = (),
        owned: Sequence[int] = (),
        flags: int = 0,
        dispose: Callable[[T], None] | None = None,
    ) -> None:
        self.number = number
        self.body = body
        self.fds = fds
        self.owned = owned
        self.flags = flags
        self.was_sent = True
        """Whether it is on its way, as far as is known."""
        self.done = False
        self.error: KdbusError | None = None
        self.on_done: Callable[[], None] | None = None
        self._finish = finish
        self._dispose = dispose
        self._result: T | None = None
        self._abandoned = False

    def close_owned(self) -> None:
        """Close what was made for the request alone; it has been sent, or never will be."""
        owned, self.owned = self.owned, ()
        if owned:
            close_fds(owned)

    def withdraw(self) -> None:
        """It was never sent, and will not be."""
        self.was_sent = False
        self.close_owned()

    def resolve(self, answer: Answer) -> None:
        """Make the result of the answer."""
        try:
            result = self._finish(answer)
        except KdbusError as error:
            self.fail(error)
        except BaseException:
            self.fail(KdbusError(EPIPE, f"{name_of(self.number)}: the answer was lost"))
            raise
        else:
            with _settling:
                abandoned = self._abandoned
                if not abandoned:
                    self._result = result
                self.done = True
            if abandoned:
                self._throw_away(result)
            elif self.on_done is not None:
                self.on_done()
        finally:
            if answer.fds:
                answer.close()

    def fail(self, error: KdbusError) -> None:
        """End with an error."""
        # Without the way it took: that would keep what it failed on, and this.
        self.error = error.with_traceback(None)
        self.done = True
        if self.on_done is not None and not self._abandoned:
            self.on_done()

    def abandon(self) -> None:
        """Nobody will ask for the result."""
        with _settling:
            was_abandoned, self._abandoned = self._abandoned, True
            result, self._result = self._result, None
        if result is not None and not was_abandoned:
            self._throw_away(result)

    def outcome(self) -> T:
        """The result of an operation that is done, or what it was refused with raised; asked for once."""
        assert self.done
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # which refers to this frame now
        result: T = self._result  # type: ignore[assignment]  # it is a T once done without error
        return result

    def _throw_away(self, result: T) -> None:
        if self._dispose is not None:
            self._dispose(result)


def truncated(number: int) -> KdbusError:
    """What a result is refused with whose descriptors did not get through."""
    return KdbusError(EMFILE, f"{name_of(number)}: this process has no room for more descriptors")


def _nothing(number: int, answer: Answer) -> None:
    check(answer, number)


def plain(command: Command, body: bytes) -> Operation[None]:
    """An operation with no other result than that it is done."""
    return Operation(command, body, partial(_nothing, command))
