"""Two hundred clients at once, in a few processes, that call each other without a pause and without an error.

The normal run is bounded by a number of calls; with BUSPROXY_SOAK=1 the same goes on for a minute.
Afterwards the bus must hold no more fds than before.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import programs
from support.bus import Bus
from support.programs import Child
from support.raw import SIGNAL, Message

pytestmark = pytest.mark.program("dbus-daemon")

CLIENTS = 200
PROCESSES = 4
CALLS_OF_EACH = 100
SOAK_SECONDS = 60
SWARM = Path(programs.__file__).with_name("swarm.py")


def run_swarm(bus: Bus, measure: str, patience: float) -> list[dict[str, Any]]:
    """Start all processes of the swarm, let them go together, and return what each reports."""
    share = CLIENTS // PROCESSES
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                Child(bus, sys.executable, str(SWARM), str(first), str(share), str(CLIENTS), measure)
            )
            for first in range(0, CLIENTS, share)
        ]
        for child in children:
            child.wait_for(r"^ready$")
        with bus.connect() as starter:
            starter.send(
                Message(SIGNAL, fields={"path": "/swarm", "interface": "com.example.Swarm", "member": "Go"})
            )
            starter.sync()
        outcomes = [child.wait(patience) for child in children]
    for outcome in outcomes:
        assert outcome.status == 0, outcome.stderr
    return [json.loads(outcome.lines[-1]) for outcome in outcomes]


@pytest.mark.usefixtures("no_fd_leak")
def test_two_hundred_clients_call_each_other(bus: Bus) -> None:
    reports = run_swarm(bus, f"calls:{CALLS_OF_EACH}", 60)
    assert [report["wrong"] for report in reports] == [[]] * PROCESSES
    assert sum(report["calls"] for report in reports) == CLIENTS * CALLS_OF_EACH
    assert [report["signals"] for report in reports] == [[CLIENTS]] * PROCESSES


@pytest.mark.slow
@pytest.mark.timeout(SOAK_SECONDS + 120)
@pytest.mark.skipif(os.environ.get("BUSPROXY_SOAK") != "1", reason="takes a minute: BUSPROXY_SOAK=1 runs it")
@pytest.mark.usefixtures("no_fd_leak")
def test_two_hundred_clients_call_each_other_for_a_minute(bus: Bus) -> None:
    reports = run_swarm(bus, f"seconds:{SOAK_SECONDS}", SOAK_SECONDS + 60)
    assert [report["wrong"] for report in reports] == [[]] * PROCESSES
    assert all(report["calls"] > CLIENTS for report in reports)
    assert [report["signals"] for report in reports] == [[CLIENTS]] * PROCESSES
