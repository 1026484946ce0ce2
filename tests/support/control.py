"""Holding a bus still, and reading what it has worked, so that a test need not race it or measure time.

A bus that is `frozen` finds everything that clients did meanwhile at once, in one round of its loop: that is
how a test makes sure that one client's flood and another one's call compete. `cpu_seconds` compares two
amounts of work of the same process; it knows nothing of the machine's speed or of who else is running.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.bus import Bus, start_bus


@contextmanager
def running_bus(
    kind: str, *, config: str | None = None, servicedir: Path | None = None, extra: str = ""
) -> Iterator[Bus]:
    """As `start_bus`, for the time of a with statement."""
    bus = start_bus(kind, config=config, servicedir=servicedir, extra=extra)
    try:
        yield bus
    finally:
        bus.stop()


@contextmanager
def frozen(bus: Bus) -> Iterator[None]:
    """The bus does nothing meanwhile, and has stopped when this begins."""
    os.kill(bus.pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, bus.pid, os.WSTOPPED)
        yield
    finally:
        os.kill(bus.pid, signal.SIGCONT)


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has used, all threads together, to the nanosecond."""
    # clock_getcpuclockid(3), which Python lacks: the kernel's number of a process's clock.
    return time.clock_gettime((~pid << 3) | 2)
