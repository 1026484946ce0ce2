"""Running buses that native programs connect to: `kdbusd`, and `busproxyd --native`.

Both are started in a directory of their own and stopped by their own pid.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.bus import BUSPROXYD, Bus, start_bus
from support.kdbusd import Kdbusd

OPEN_BUS = """
access = "world"
[[bus]]
name = "{uid}-test"
access = "world"
"""


@dataclass(frozen=True)
class NativeBus:
    """A bus with the default endpoint `node` in the domain `directory`; `legacy` serves classic clients."""

    directory: Path
    node: Path
    pid: int
    legacy: Bus | None = None


@contextlib.contextmanager
def running_kdbusd() -> Iterator[NativeBus]:
    """A broker of its own."""
    daemon = Kdbusd(OPEN_BUS)
    try:
        (node,) = daemon.directory.glob("*/bus")
        yield NativeBus(daemon.directory, node, daemon.pid)
    finally:
        daemon.stop()


@contextlib.contextmanager
def running_native_proxy() -> Iterator[NativeBus]:
    """The broker inside of the proxy."""
    bus = start_bus(BUSPROXYD, arguments=["--native={directory}/native"])
    try:
        directory = bus.directory / "native"
        (node,) = directory.glob("*/bus")
        yield NativeBus(directory, node, bus.pid, bus)
    finally:
        bus.stop()


NATIVE_BUSES = {"kdbusd": running_kdbusd, "busproxyd": running_native_proxy}
