"""dbus-python (libdbus with GLib's main loop) on both buses: calls, names, signals, watches, fds."""

from __future__ import annotations

from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.scripts import run_script
from support.services import PYTHON, start_service

pytestmark = pytest.mark.program("python:dbus", "python:gi", "dbus-daemon")


@pytest.mark.parametrize("name", ["calls", "errors", "properties", "asynchronous", "fds"])
def test_a_scenario_with_a_libdbus_service_has_the_same_result(compare: Comparison, name: str) -> None:
    def scenario(bus: Bus) -> Any:
        with start_service(bus, PYTHON):
            return run_script(bus, "client_python_dbus.py", name, system_python=True)

    compare(scenario)


@pytest.mark.parametrize("name", ["names", "signals", "sender_by_name", "owner_watch"])
def test_a_scenario_among_libdbus_clients_has_the_same_result(compare: Comparison, name: str) -> None:
    compare(lambda bus: run_script(bus, "client_python_dbus.py", name, system_python=True))
