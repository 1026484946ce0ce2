"""Fixtures of tests with native programs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from unit.native.native_programs import Connect, Served

from busproxy.native import NativeBus, connect


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A bus that is served in this process; the test fails if descriptors are left behind."""
    before = set(os.listdir("/proc/self/fd"))
    served = Served(tmp_path / "domain")
    try:
        async with asyncio.timeout(60):
            yield served
    finally:
        served.close()
    await asyncio.sleep(0)
    left = set(os.listdir("/proc/self/fd")) - before
    assert len(left) <= 1, left  # the one with which the directory was just read


@pytest.fixture
async def join(served: Served) -> AsyncIterator[Connect]:
    """Connects one more program to the bus."""
    async with AsyncExitStack() as programs:

        async def join() -> NativeBus:
            return await programs.enter_async_context(await connect(served.node))

        yield join
