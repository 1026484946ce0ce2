"""Small native programs that tests run as processes, beside the legacy ones of `support`."""

from __future__ import annotations

import sys
from pathlib import Path

from support.bus import REPOSITORY
from support.mixed import MixedBus
from support.programs import Child


def start_native(mixed: MixedBus, program: str, *arguments: str) -> Child:
    """Start a program of this package at the bus' node and wait until it is ready; end it with `stop`."""
    child = Child(
        mixed.legacy,
        sys.executable,
        str(Path(__file__).with_name(program)),
        str(mixed.node),
        *arguments,
        environment={"PYTHONPATH": str(REPOSITORY)},
    )
    try:
        child.wait_for(r"^ready$")
    except BaseException:
        child.stop()
        raise
    return child
