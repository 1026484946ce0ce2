"""Services that neither come up nor fail until the test says so.

A `Gate` owns a directory of service files and a pipe in it. The services are shells that wait for a line
from the pipe and then exit with status 1: `fail` sends one line, for one start. Whoever acquires a service's
name itself ends the wait with success. Once the gate is closed no service waits any longer.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self


class Gate:
    """The services in `services`; use as a context manager, around the life of the bus."""

    def __init__(self, directory: Path) -> None:
        self.services = directory / "services"
        self.services.mkdir()
        self._pipe = directory / "gate"
        os.mkfifo(self._pipe)
        self._fd = os.open(self._pipe, os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # In this order: who opens the pipe too late finds none, who has it open reads its end.
        self._pipe.unlink()
        os.close(self._fd)

    def offer(self, name: str, *, unit: str | None = None) -> None:
        """Add a service, with a systemd unit if one is given; for a bus that has yet to start."""
        lines = ["[D-BUS Service]", f"Name={name}", f"Exec=/bin/sh -c 'read line < {self._pipe}; exit 1'"]
        if unit is not None:
            lines.append(f"SystemdService={unit}")
        (self.services / f"{name}.service").write_text("\n".join(lines) + "\n")

    def fail(self) -> None:
        """Let one service that was started, or will be, exit."""
        os.write(self._fd, b"\n")
