"""What ties a row of `errno_rows` to the test that provokes it.

    @provokes("MATCH_REMOVE", "EBADSLT", "there is no match with the cookie")
    def test_removing_what_is_not_there(world: World) -> None:
        world.connect().remove_match(7)

The test ends in the refusal and does not catch it. `provokes` looks up the row, notes whose test it is, and
checks that the test ended with exactly this errno, and that the last system call that any handle refused
with it was this operation. What the handles do is watched where they are entered: opening, `ioctl`, the end
of a synchronous call that `ioctl` left waiting, `map_pool`.

A row of several operations has a test with a parameter `command`, which is run once for each of them.
"""

from __future__ import annotations

import errno as errno_numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import NamedTuple

import pytest
from support.kdbus import Refused, layout

from kdbus_core.caller import Caller
from kdbus_core.domain import Domain
from kdbus_core.endpoint import Endpoint
from kdbus_core.errors import KdbusError
from kdbus_core.handle import Handle
from kdbus_core.metadata import Process
from kdbus_core.pool import Pool
from kdbus_core.synchronous import SyncCall

from .errno_rows import COMMANDS, ROWS, Row, is_shared

Test = Callable[..., None]
LAYOUTS: dict[str, layout.Layout] = {name: getattr(layout, name) for name in COMMANDS}
_NAMES = {command.request: name for name, command in LAYOUTS.items()}


class Provoked(NamedTuple):
    """A row and its test, as "file::function"."""

    row: Row
    test: str


class Refusal(NamedTuple):
    """A system call that failed."""

    operation: str
    errno: int


PROVOKED: list[Provoked] = []


def provokes(operations: str | tuple[str, ...], errno: str, when: str) -> Callable[[Test], Test]:
    """Make a test that of this row; LookupError if there is none."""
    row = Row((operations,) if isinstance(operations, str) else operations, errno, when)
    if row not in ROWS:
        raise LookupError(f"no row says so: {row}")
    expected = int(getattr(errno_numbers, errno))

    def decorate(test: Test) -> Test:
        PROVOKED.append(Provoked(row, f"{Path(test.__code__.co_filename).name}::{test.__name__}"))

        @wraps(test)
        def check(**arguments: object) -> None:
            operation = arguments["command"] if is_shared(row) else row.operations[0]
            with watch_handles() as refusals, pytest.raises((Refused, KdbusError)) as ended:
                test(**arguments)
            assert isinstance(ended.value, Refused | KdbusError)
            assert ended.value.errno == expected, f"{errno} of {operation} expected, got {ended.value}"
            alike = [refusal.operation for refusal in refusals if refusal.errno == expected]
            assert alike[-1:] == [operation], f"{errno} of {operation} expected, refused: {refusals}"

        if is_shared(row):
            return pytest.mark.parametrize("command", row.operations)(check)
        return check

    return decorate


@contextmanager
def watch_handles() -> Iterator[list[Refusal]]:
    """Every system call that fails meanwhile, in order."""
    refusals: list[Refusal] = []
    open_, ioctl, map_pool = Handle.__init__, Handle.ioctl, Handle.map_pool

    @contextmanager
    def watched(operation: str) -> Iterator[None]:
        try:
            yield
        except KdbusError as error:
            refusals.append(Refusal(operation, error.errno))
            raise

    def watched_open(self: Handle, node: Domain | Endpoint, process: Process) -> None:
        with watched("open"):
            open_(self, node, process)

    def watched_ioctl(self: Handle, caller: Caller, request: int, address: int) -> SyncCall | None:
        operation = _NAMES.get(request, "ioctl")

        def on_done(errno: int) -> None:
            if errno:
                refusals.append(Refusal(operation, errno))

        with watched(operation):
            return ioctl(self, caller, request, address, on_done)

    def watched_map_pool(self: Handle, length: int, *, writable: bool) -> Pool:
        with watched("mmap"):
            return map_pool(self, length, writable=writable)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handle, "__init__", watched_open)
        patch.setattr(Handle, "ioctl", watched_ioctl)
        patch.setattr(Handle, "map_pool", watched_map_pool)
        yield refusals
