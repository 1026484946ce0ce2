"""The D-Bus project's own tests of its daemon, as Debian installs them, run against each bus.

The programs start a daemon themselves: the one DBUS_TEST_DAEMON names, here a script that executes the bus
in question. Each test case is a pytest of its own. Cases that no released dbus-daemon passes, or that need
what the machine does not allow, are listed or skip themselves with their reason; the list of cases is
compared with what the programs offer, so that none is forgotten.
"""

from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.bus import DBUS_DAEMON, REPOSITORY, clean_environment, command_line, selected_kinds
from support.programs import INSTALLED_TESTS, SYSTEM_PYTHON

from clients.known_differences import FAILING_INSTALLED_CASES

pytestmark = pytest.mark.program("installed-dbus-tests", "dbus-daemon")

CASE_SECONDS = 20
FAILING_CASE_SECONDS = 4

CASES = {
    "test-dbus-daemon": [
        "/creds",
        "/processid",
        "/unix-runtime-is-default",
        "/echo/session",
        "/echo/limited",
        "/no-reply/disconnect",
        "/no-reply/timeout",
        "/canonical-path/uae",
        "/limits/max-completed-connections",
        "/limits/max-connections-per-user",
        "/limits/max-replies-per-connection",
        "/limits/max-match-rules-per-connection",
        "/limits/max-names-per-connection",
        "/limits/pending-fd-timeout",
        "/match/remove/fails",
        "/match/remove/succeeds",
        "/peer/ping",
        "/peer/get-machine-id",
        "/properties/get-invalid-iface",
        "/properties/get-invalid-path",
        "/properties/get-invalid",
        "/properties/get-all-invalid-iface",
        "/properties/get-all-invalid-path",
        "/properties/set-invalid-iface",
        "/properties/set-invalid-path",
        "/properties/set-invalid",
        "/properties/set",
        "/properties/features",
        "/policy/count-fds",
        "/fd-limit/session",
        "/fd-limit/system",
        "/activation/forking",
        "/system-policy/allow-signals",
        "/system-policy/send-destination/prefix",
    ],
    "test-dbus-daemon-eavesdrop": [
        "/eavedrop/match_keyword/broadcast",
        "/eavedrop/match_keyword/unicast_to_receiver",
        "/eavedrop/match_keyword/unicast_to_sender",
    ],
    "test-monitor": [
        "/monitor/invalid",
        "/monitor/become",
        "/monitor/broadcast",
        "/monitor/forbidden-broadcast",
        "/monitor/unicast-signal",
        "/monitor/forbidden",
        "/monitor/method-call",
        "/monitor/forbidden-method",
        "/monitor/forbidden-reply",
        "/monitor/dbus-daemon",
        "/monitor/selective",
        "/monitor/well-known-destination",
        "/monitor/unique-destination",
        "/monitor/wildcard",
        "/monitor/no-rule",
        "/monitor/eavesdrop",
        "/monitor/no-eavesdrop",
        "/monitor/activation",
    ],
    "test-header-fields": [
        "/message/weird-header-field/none",
        "/message/weird-header-field/append",
        "/message/weird-header-field/change",
        "/message/weird-header-field/prepend",
        "/message/weird-header-field/multi",
    ],
    "test-sd-activation": [
        "/sd-activation/activation",
        "/sd-activation/uae",
        "/sd-activation/deny-send/com.example.SendDenied",
        "/sd-activation/deny-send/com.example.SendPrefixDenied",
        "/sd-activation/deny-send/com.example.SendPrefixDenied.internal",
        "/sd-activation/deny-receive/com.example.ReceiveDenied",
        "/sd-activation/transient-services/later",
        "/sd-activation/transient-services/in-advance",
    ],
    "test-uid-permissions": [
        "/uid-permissions/uae/other",
        "/uid-permissions/monitor/root",
        "/uid-permissions/monitor/messagebus",
        "/uid-permissions/monitor/other",
    ],
}

LEFT_OUT = {
    "test-dbus-daemon": {
        "/properties/interfaces": "wants the Verbose interface, which only a debug build of dbus-daemon has",
        "/properties/get-all": "wants the Verbose interface, which only a debug build of dbus-daemon has",
    },
}

ALL_CASES = [(program, case) for program, cases in CASES.items() for case in cases]


@pytest.fixture(params=selected_kinds())
def daemon_script(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A script that executes the bus, in a directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="bus-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        runtime = directory / "runtime"
        runtime.mkdir(mode=0o700)
        command = command_line(request.param, [])
        if request.param != DBUS_DAEMON and not reachable_by_all(sys.executable):
            command[0] = SYSTEM_PYTHON
        script = directory / "daemon"
        script.write_text(
            "#!/bin/sh\n"
            f"PYTHONPATH={shlex.quote(str(REPOSITORY))}\nexport PYTHONPATH\n"
            f'exec {shlex.join(command)} "$@"\n'
        )
        script.chmod(0o755)
        yield script


def reachable_by_all(path: str) -> bool:
    """Whether any user may execute that program: some tests start the bus as another user."""
    resolved = Path(path).resolve()
    return all(entry.stat().st_mode & stat.S_IXOTH for entry in (resolved, *resolved.parents))


def environment_for(script: Path) -> dict[str, str]:
    """What the test programs read: which daemon, which data, which directory for runtime files."""
    return clean_environment(script.parent / "runtime") | {
        "DBUS_TEST_DAEMON": str(script),
        "DBUS_TEST_DATA": f"{INSTALLED_TESTS}/data",
        "TMPDIR": "/tmp",
    }


@pytest.mark.parametrize(("program", "case"), ALL_CASES, ids=lambda value: value.strip("/"))
def test_an_installed_test_case_passes(
    daemon_script: Path, program: str, case: str, request: pytest.FixtureRequest
) -> None:
    seconds = CASE_SECONDS
    expected_failure = FAILING_INSTALLED_CASES.get(case)
    if expected_failure is not None and request.node.callspec.params["daemon_script"] != DBUS_DAEMON:
        request.applymarker(pytest.mark.xfail(reason=expected_failure, strict=True))
        seconds = FAILING_CASE_SECONDS
    with tempfile.TemporaryFile("w+") as output_file:
        process = subprocess.Popen(
            [f"{INSTALLED_TESTS}/{program}", "--tap", "-p", case],
            env=environment_for(daemon_script),
            stdin=subprocess.DEVNULL,
            stdout=output_file,
            stderr=output_file,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            end_group(process.pid)
            process.wait()
        output_file.seek(0)
        output = output_file.read()
    results = [line for line in output.splitlines() if line.startswith(("ok ", "not ok ", "Bail out!"))]
    if process.returncode != 0 or len(results) != 1 or not results[0].startswith("ok "):
        pytest.fail(output, pytrace=False)
    _, skipped, reason = results[0].partition("# SKIP ")
    if skipped:
        pytest.skip(reason)


def end_group(leader: int) -> None:
    """End what the test program has left behind; it and its children are a group of their own."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


@pytest.mark.parametrize("program", CASES)
def test_no_case_is_forgotten(program: str) -> None:
    listed = subprocess.run(
        [f"{INSTALLED_TESTS}/{program}", "-l"],
        env=clean_environment(Path("/tmp")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CASE_SECONDS,
        check=True,
    ).stdout
    lines = (line.removeprefix("# ") for line in listed.splitlines())  # newer GLib lists them as comments
    offered = {line for line in lines if line.startswith("/")}
    assert offered == {*CASES[program], *LEFT_OUT.get(program, {})}
