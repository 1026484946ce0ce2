"""jeepney on both buses, blocking and with asyncio: calls, names, signals, serving, routing, fds."""

from __future__ import annotations

from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.scripts import run_script
from support.services import start_service

pytestmark = pytest.mark.program("dbus-daemon")

SCENARIOS = [
    (kind, name)
    for kind in ("blocking", "asyncio")
    for name in ("calls", "names", "signals", "serve", "router")
]


@pytest.mark.parametrize(("kind", "name"), [*SCENARIOS, ("blocking", "fds")])
def test_a_scenario_of_jeepney_has_the_same_result(compare: Comparison, kind: str, name: str) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus):
            return run_script(bus, "client_jeepney.py", kind, name)

    compare(scenario)
