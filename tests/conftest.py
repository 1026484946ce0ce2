"""Fixtures and rules that all tests share: buses to run on, programs they need, what the report says.

A test names the programs it needs with `@pytest.mark.program(...)`; without them it is skipped, and the end
of the run says plainly what was skipped and which Debian package would help. Where CI is set to `true` a
missing program is a failure. Buses belong to fixtures: they are ended, and seen to end well, whatever the
test does; a failed test's report carries what its buses wrote to standard error.

What hypothesis tries is the same in every run, however slow the machine, so that a run says something about
the change it is made for; with BUSPROXY_EXPLORE=1 (`make deep`) it goes new ways.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

pytest.register_assert_rewrite("support")

settings.register_profile(
    "same everywhere",
    deadline=None,
    derandomize=os.environ.get("BUSPROXY_EXPLORE") != "1",
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.load_profile("same everywhere")

from support.bus import BUSPROXYD, DBUS_DAEMON, Bus, launch_bus, selected_kinds, start_bus  # noqa: E402
from support.compare import Comparison  # noqa: E402
from support.programs import missing_packages  # noqa: E402

RUNNING: list[Bus] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    names = {name for marker in item.iter_markers("program") for name in marker.args}
    if missing := missing_packages(sorted(names)):
        programs = ", ".join(f"{name} (Debian package {package})" for name, package in missing.items())
        if os.environ.get("CI") == "true":
            pytest.fail(f"needs {programs}, and nothing may be skipped where CI=true", pytrace=False)
        pytest.skip(f"needs {programs}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for bus in RUNNING:
            report.sections.append((f"standard error of {bus.kind} [{bus.pid}]", bus.stderr_text()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "Debian package" in reason:
            needs = reason.removeprefix("Skipped: needs ")
            missing[needs] = missing.get(needs, 0) + 1
    if missing:
        terminalreporter.section("skipped because a program is missing")
        for needs, count in sorted(missing.items()):
            terminalreporter.line(f"{count} tests need {needs}")


def run_bus(kind: str, *, servicedir: Path | None = None) -> Iterator[Bus]:
    """A bus for the time of a fixture."""
    bus = start_bus(kind, servicedir=servicedir)
    RUNNING.append(bus)
    try:
        yield bus
    finally:
        RUNNING.remove(bus)
        bus.stop()


def run_buses() -> Iterator[list[Bus]]:
    """All selected buses at once for the time of a fixture."""
    launched = [launch_bus(kind) for kind in selected_kinds()]
    buses: list[Bus] = []
    errors: list[AssertionError] = []
    for starting in launched:
        try:
            buses.append(starting.ready())
        except AssertionError as error:
            errors.append(error)
    RUNNING.extend(buses)
    try:
        if errors:
            raise errors[0]
        yield buses
    finally:
        for bus in buses:
            RUNNING.remove(bus)
        stop_all(buses)


def stop_all(buses: list[Bus]) -> None:
    """Stop every bus, also when one of them does not go well; then fail with what was wrong."""
    errors: list[AssertionError] = []
    for bus in buses:
        try:
            bus.stop()
        except AssertionError as error:
            errors.append(error)
    if errors:
        raise errors[0]


@pytest.fixture
def dbus_daemon() -> Iterator[Bus]:
    """A private dbus-daemon."""
    yield from run_bus(DBUS_DAEMON)


@pytest.fixture
def busproxyd() -> Iterator[Bus]:
    """A private busproxyd."""
    yield from run_bus(BUSPROXYD)


@pytest.fixture(params=selected_kinds())
def bus(request: pytest.FixtureRequest) -> Iterator[Bus]:
    """A private bus of each selected kind in turn."""
    yield from run_bus(request.param)


@pytest.fixture
def both() -> Iterator[list[Bus]]:
    """One private bus of each selected kind, side by side."""
    yield from run_buses()


@pytest.fixture(scope="module")
def shared_buses() -> Iterator[list[Bus]]:
    """As `both`, one pair for a module: for tests that leave nothing behind on the bus."""
    yield from run_buses()


@pytest.fixture
def compare(request: pytest.FixtureRequest, both: list[Bus]) -> Comparison:
    """Runs a scenario on a fresh bus of each kind and compares the results."""
    return comparison(request, both)


@pytest.fixture
def compare_shared(request: pytest.FixtureRequest, shared_buses: list[Bus]) -> Comparison:
    """Runs a scenario on the module's buses and compares the results."""
    return comparison(request, shared_buses)


def comparison(request: pytest.FixtureRequest, buses: list[Bus]) -> Comparison:
    """A comparison on these buses with what is known to differ in the requesting test."""
    from clients.known_differences import find_difference

    return Comparison(buses, find_difference(request.node.name))


@pytest.fixture
def no_fd_leak(bus: Bus) -> Iterator[None]:
    """Checks, after the test, that the bus holds no more fds than before its clients came."""
    before = bus.count_fds_besides()
    yield
    assert bus.settle_fds(before) == before
