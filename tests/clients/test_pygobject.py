"""GLib's GDBus through PyGObject on both buses: calls, owning and watching names, proxies, signals, fds."""

from __future__ import annotations

from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.scripts import run_script
from support.services import GDBUS, start_service

pytestmark = pytest.mark.program("python:gi", "dbus-daemon")


@pytest.mark.parametrize("name", ["calls", "proxy", "fds"])
def test_a_scenario_with_a_gdbus_service_has_the_same_result(compare: Comparison, name: str) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus, GDBUS):
            return run_script(bus, "client_pygobject.py", name, system_python=True)

    compare(scenario)


@pytest.mark.parametrize("name", ["own_name", "watch_name", "signals", "peer_credentials"])
def test_a_scenario_among_gdbus_clients_has_the_same_result(compare: Comparison, name: str) -> None:
    compare(lambda bus: run_script(bus, "client_pygobject.py", name, system_python=True))
