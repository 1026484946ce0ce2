"""A bus with native peers only, served in this process, and programs that connect to it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any, Protocol

import pytest

from busproxy.native import DBusError, NativeBus
from kdbus_core import Credentials, Domain, MakeFlag, Process
from kdbus_core.transport.server import NodeServer

PREFIX = "org.freedesktop.DBus.Error."


class Connect(Protocol):
    """Connects one more program, which is disconnected at the end of the test."""

    async def __call__(self) -> NativeBus:
        """The program's connection."""


class Served:
    """A domain with one bus and its server; `node` is the bus' node."""

    def __init__(self, directory: Path) -> None:
        self.domain = Domain(os.urandom, time.monotonic_ns, time.time_ns)
        loop = asyncio.get_running_loop()
        self.server = NodeServer(self.domain, directory, loop, logging.getLogger("server"))
        owner = Process.of(Credentials(uid=os.geteuid(), gid=os.getegid(), pid=os.getpid()))
        self.bus = self.domain.make_bus(f"{os.geteuid()}-native", owner, MakeFlag(0))
        self.node = directory / self.bus.name / "bus"

    def close(self) -> None:
        self.server.close()
        self.domain.close()


async def refusal(coroutine: Any) -> tuple[str, str]:
    """The error that something ends with: its name without the usual prefix, and its text."""
    with pytest.raises(DBusError) as caught:
        await coroutine
    return caught.value.name.removeprefix(PREFIX), caught.value.text
