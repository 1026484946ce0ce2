"""dbus-next on both buses: calls of every type, errors, signals, properties, names, an own service, fds.

The scenarios are those of `support/client_asyncio.py`; each asserts for itself what must be true on any bus.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.scripts import run_script
from support.services import start_service

pytestmark = pytest.mark.program("dbus-daemon")

SCENARIOS = [
    "calls",
    "large",
    "concurrent",
    "errors",
    "signals",
    "properties",
    "names",
    "credentials",
    "export",
    "fds",
    "disconnect",
]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_of_dbus_next_has_the_same_result(compare: Comparison, name: str) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus):
            return run_script(bus, "client_asyncio.py", "dbus_next", name)

    compare(scenario)
