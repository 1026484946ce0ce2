"""What the daemon has from whoever starts it: streams, limits, a terminal, an event loop.

It prints where it was asked to although it goes into the background, it keeps for itself what it does to its
own limits, and what is typed at the terminal of a `busproxy run` is for the command. Each test starts the
daemon with the command line it is about, in a directory of its own.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from support.bus import (
    BUSPROXYD,
    REPOSITORY,
    build_session_config,
    clean_environment,
    command_line,
    selected_kinds,
)
from support.raw import METHOD_RETURN, Message, RawClient

pytestmark = pytest.mark.program("dbus-daemon")

PATIENCE_SECONDS = 20.0

kinds = pytest.mark.parametrize("kind", selected_kinds())


class Place:
    """A directory with a configuration to start daemons on; ends what was started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.services = path / "services"
        self.services.mkdir()
        self.config = f"--config-file={path / 'bus.conf'}"
        (path / "bus.conf").write_text(build_session_config(path, servicedir=self.services))
        self.environment = {**clean_environment(path), "PYTHONPATH": str(REPOSITORY)}
        self._processes: list[subprocess.Popen[str]] = []
        self._pids: list[int] = []

    def start(self, command: Sequence[str], *, own_session: bool = False) -> subprocess.Popen[str]:
        """Start a program with pipes for its standard input and output."""
        process = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=own_session,
        )
        self._processes.append(process)
        return process

    def adopt(self, pid: int) -> None:
        """End this process, too."""
        self._pids.append(pid)

    def offer(self, name: str, command: str) -> None:
        text = f"[D-BUS Service]\nName={name}\nExec={command}\n"
        (self.services / f"{name}.service").write_text(text)

    def clean_up(self) -> None:
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.kill()
            process.communicate()


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="bus-") as path:
        place = Place(Path(path))
        try:
            yield place
        finally:
            place.clean_up()


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line that the process writes."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], PATIENCE_SECONDS)[0], "nothing was written"
    return process.stdout.readline().strip()


def find_daemon(address: str) -> int:
    """The process id of the bus at an address, as the bus gives it."""
    with RawClient(address) as client:
        return int(client.reply("GetConnectionUnixProcessID", "s", "org.freedesktop.DBus").body[0])


# Streams


@kinds
@pytest.mark.parametrize("what", ["address", "pid"])
def test_a_daemon_in_the_background_prints_to_standard_output(place: Place, kind: str, what: str) -> None:
    process = place.start(command_line(kind, [place.config, "--fork", f"--print-{what}"]))
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    with RawClient(f"unix:path={place.path}/socket") as client:
        daemon = client.reply("GetConnectionUnixProcessID", "s", "org.freedesktop.DBus").body[0]
        place.adopt(daemon)
        expected = str(daemon) if what == "pid" else f"unix:path={place.path}/socket,guid={client.guid}"
    assert (process.returncode, output) == (0, f"{expected}\n")
    assert os.readlink(f"/proc/{daemon}/fd/1") == "/dev/null"


# Limits


@kinds
def test_a_service_starts_with_the_limits_that_the_bus_was_started_with(place: Place, kind: str) -> None:
    limits = place.path / "limits"
    place.offer("com.example.Limits", f"/bin/sh -c 'ulimit -Sn > {limits}; ulimit -Hn >> {limits}; exit 1'")
    restrict = ["/bin/sh", "-c", 'ulimit -Sn 300 && ulimit -Hn 3000 && exec "$@"', "sh"]
    bus = place.start([*restrict, *command_line(kind, [place.config, "--nofork", "--print-address"])])
    with RawClient(read_line(bus)) as client:
        answer = client.reply("StartServiceByName", "su", "com.example.Limits", 0)
    assert answer.error_name == "org.freedesktop.DBus.Error.Spawn.ChildExited"
    assert limits.read_text().split() == ["300", "3000"]


# The terminal


COMMAND = """\
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print(os.environ["DBUS_SESSION_BUS_ADDRESS"], flush=True)
print(signal.Signals(signal.sigwait([signal.SIGINT])).name, flush=True)
sys.stdin.read()
raise SystemExit(7)
"""


def test_what_is_typed_at_the_terminal_is_for_the_command_and_not_the_bus(place: Place) -> None:
    """A command that lives through Ctrl-C, or cleans up first, still has its bus."""
    run = [sys.executable, "-m", "busproxy.cli", "run", place.config, "--", sys.executable, "-c", COMMAND]
    process = place.start(run, own_session=True)
    address = read_line(process)
    daemon = find_daemon(address)
    place.adopt(daemon)
    with RawClient(address) as client:
        os.killpg(process.pid, signal.SIGINT)
        assert read_line(process) == "SIGINT"
        for _ in range(100):
            assert client.sync() == []
        assert find_daemon(address) == daemon
        process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 7
        assert client.probe() == [None]


# The event loop


SERVICE = f"""\
import os, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from support.raw import METHOD_CALL, METHOD_RETURN, Message, RawClient

with RawClient(os.environ["DBUS_STARTER_ADDRESS"]) as client:
    client.reply("RequestName", "su", "com.example.Service", 0)
    while (message := client.receive()).type != METHOD_CALL:
        pass
    fields = {{"reply_serial": message.serial, "destination": message.fields["sender"], "signature": "s"}}
    client.send(Message(METHOD_RETURN, fields=fields, body=["from the service"]))
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_the_bus_runs_on_either_event_loop(place: Place, loop: str) -> None:
    """Clients' sockets, processes and signals come to the bus by the loop."""
    if loop == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not installed")
    (place.path / "service.py").write_text(SERVICE)
    place.offer("com.example.Service", f"{sys.executable} {place.path}/service.py")
    place.offer("com.example.Failing", "/bin/false")
    bus = place.start(
        command_line(BUSPROXYD, [place.config, "--nofork", f"--loop={loop}", "--print-address"])
    )
    address = read_line(bus)
    with RawClient(address) as caller, RawClient(address) as callee:
        serial = caller.send_call("M", "s", "text", destination=callee.unique_name, interface="a.b")
        asked = callee.receive()
        assert (asked.serial, asked.body) == (serial, ["text"])
        fields = {"reply_serial": serial, "destination": caller.unique_name}
        callee.send(Message(METHOD_RETURN, fields=fields))
        assert caller.receive().fields["reply_serial"] == serial
        assert caller.reply("M", destination="com.example.Service", interface="a.b").body == [
            "from the service"
        ]
        failed = caller.reply("StartServiceByName", "su", "com.example.Failing", 0)
        assert failed.error_name == "org.freedesktop.DBus.Error.Spawn.ChildExited"
        bus.send_signal(signal.SIGTERM)
        assert bus.wait(PATIENCE_SECONDS) == 0
        assert callee.probe() == [None]
    assert not (place.path / "socket").exists()
