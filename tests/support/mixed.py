"""A bus with native and legacy peers on it, in both of its forms, and what it holds.

`embedded` is `busproxyd --native`: broker and proxy are one process. `split` is `busproxyd --core` in front
of a kdbusd. To the peers they are the same bus, so a test gets both. `Holdings` is what a bus has because of
its peers; it has to be the same again when they have gone, and `settle` waits for that with round trips as
its clock.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kdbus_core.transport.client import open_node
from support.bus import BUSPROXYD, Bus, start_bus
from support.kdbusd import Kdbusd
from support.native_peer import NativePeer
from support.programs import Child
from support.raw import RawClient

EMBEDDED, SPLIT = "embedded", "split"
KINDS = (EMBEDDED, SPLIT)
PATIENCE_SECONDS = 30.0

OPEN_TO_ALL = '<policy context="default"><allow user="*"/></policy>'
"""A session bus lets in nobody but its owner, unless it is told to."""

_CORE_CONFIG = f'[[bus]]\nname = "{os.geteuid()}-mixed"\naccess = "world"\n'


@dataclass(frozen=True)
class Holdings:
    """What there is on account of the peers: descriptors of each process, connections, names."""

    fds: tuple[int, ...]
    connections: int
    names: int

    def is_within(self, other: Holdings) -> bool:
        """Whether it is that, or that without descriptors that were still to be closed."""
        return (self.connections, self.names) == (other.connections, other.names) and all(
            mine <= theirs for mine, theirs in zip(self.fds, other.fds, strict=True)
        )


@dataclass(frozen=True)
class MixedBus:
    """A running bus; `node` is where natives connect, `legacy` what classic clients find."""

    kind: str
    node: Path
    legacy: Bus
    pids: tuple[int, ...]

    @property
    def control(self) -> Path:
        return self.node.parents[1] / "control"

    def connect(self, *, negotiate_fds: bool = True) -> RawClient:
        """A legacy client; the caller closes it."""
        return RawClient(self.legacy.address, negotiate_fds=negotiate_fds)

    def join(self, **hello: Any) -> NativePeer:
        """A native peer; the caller closes it."""
        return NativePeer(self.node, **hello)

    def inspect(self) -> dict[str, Any]:
        """What INSPECT says of the bus."""
        with open_node(self.control) as handle:
            (bus,) = handle.inspect()["buses"]
        assert isinstance(bus, dict)
        return bus

    def holdings(self) -> Holdings:
        """What it holds now, besides what is there for this question's own client."""
        with self.connect() as client:
            client.sync()  # whoever has answered is in its main loop, and has opened what it needs
            state = self.inspect()
            client.sync()
            counts = tuple(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids)
            return Holdings(counts, len(state["connections"]) - 1, len(state["names"]))

    def settle(self, expected: Holdings) -> Holdings:
        """What it holds once that is what was expected, or what it still holds after a long while."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (holdings := self.holdings()).is_within(expected) and time.monotonic() < deadline:
            pass
        return holdings

    @contextlib.contextmanager
    def nothing_left(self) -> Iterator[None]:
        """Around what peers do: when they have gone there is what was there before."""
        before = self.settled()
        yield
        after = self.settle(before)
        assert after.is_within(before), f"before {before}, after {after}"

    def settled(self) -> Holdings:
        """What it holds when nobody is about to go any more."""
        last = self.holdings()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (holdings := self.holdings()) != last:
            assert time.monotonic() < deadline, f"the bus does not come to rest: {last}, {holdings}"
            last = holdings
        return last


@contextlib.contextmanager
def running_mixed_bus(kind: str, *, servicedir: Path | None = None, extra: str = "") -> Iterator[MixedBus]:
    """A bus of that kind; who runs it is its owner."""
    if kind == EMBEDDED:
        bus = start_bus(
            BUSPROXYD, arguments=["--native={directory}/native"], servicedir=servicedir, extra=extra
        )
        try:
            (node,) = (bus.directory / "native").glob("*/bus")
            yield MixedBus(kind, node, bus, (bus.pid,))
        finally:
            bus.stop()
        return
    core = Kdbusd(_CORE_CONFIG)
    try:
        (node,) = core.directory.glob("*/bus")
        bus = start_bus(BUSPROXYD, arguments=[f"--core={node}"], servicedir=servicedir, extra=extra)
        try:
            yield MixedBus(kind, node, bus, (core.pid, bus.pid))
        finally:
            bus.stop()
    finally:
        core.stop()


class MixedBuses:
    """A bus of each kind for the tests of a module, each started when it is first asked for.

    In whatever order the tests come, there is one of each, with what was started on it.
    """

    def __init__(self, *, servicedir: Path | None = None, extra: str = "") -> None:
        self._servicedir = servicedir
        self._extra = extra
        self._stack = contextlib.ExitStack()
        self._buses: dict[str, MixedBus] = {}
        self._programs: dict[tuple[str, Any], Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __getitem__(self, kind: str) -> MixedBus:
        if kind not in self._buses:
            running = running_mixed_bus(kind, servicedir=self._servicedir, extra=self._extra)
            self._buses[kind] = self._stack.enter_context(running)
        return self._buses[kind]

    def program(self, mixed: MixedBus, start: Callable[[MixedBus], Child]) -> Child:
        """What that starts on a bus, running from the first time on."""
        key = (mixed.kind, start)
        if key not in self._programs:
            self._programs[key] = self._stack.enter_context(start(mixed))
        return self._programs[key]
