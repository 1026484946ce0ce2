"""Private message buses for tests: dbus-daemon or busproxyd, started and ended as one thing.

A `Bus` owns its process, its short directory under the system's temporary directory (socket paths are limited
to 107 bytes) and everything in it. Both kinds get the same configuration file and the same command line, so a
difference in results is a difference of the buses. Readiness is the address on the pipe, never a delay;
`stop` ends the process by its id and insists that it went with status 0.

With BUSPROXY_TEST_CORE=1 every busproxyd runs in split mode, in front of a broker of its own.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from support.raw import RawClient

if TYPE_CHECKING:
    from support.kdbusd import Kdbusd

DBUS_DAEMON = "dbus-daemon"
BUSPROXYD = "busproxyd"
KINDS = (DBUS_DAEMON, BUSPROXYD)

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
STOP_SECONDS = 15.0
SETTLE_SECONDS = 10.0

SESSION_LIMITS = {
    "max_incoming_bytes": 1_000_000_000,
    "max_incoming_unix_fds": 250_000_000,
    "max_outgoing_bytes": 1_000_000_000,
    "max_outgoing_unix_fds": 250_000_000,
    "max_message_size": 1_000_000_000,
    "service_start_timeout": 120_000,
    "auth_timeout": 240_000,
    "pending_fd_timeout": 150_000,
    "max_completed_connections": 100_000,
    "max_incomplete_connections": 10_000,
    "max_connections_per_user": 100_000,
    "max_pending_service_starts": 10_000,
    "max_names_per_connection": 50_000,
    "max_match_rules_per_connection": 50_000,
    "max_replies_per_connection": 50_000,
}
"""The limits of the stock session configuration, as both buses get them."""


def selected_kinds() -> tuple[str, ...]:
    """The buses to test: both, or those that BUSES (names with commas) asks for."""
    wanted = os.environ.get("BUSES", ",".join(KINDS)).split(",")
    unknown = [kind for kind in wanted if kind not in KINDS]
    if unknown:
        raise ValueError(f"BUSES names no bus that is known here: {unknown}; known: {list(KINDS)}")
    return tuple(kind for kind in KINDS if kind in wanted)


def is_split(arguments: Sequence[str]) -> bool:
    """Whether busproxyd is to run in front of a broker of its own, unless it is told which bus it is for."""
    chosen = any(argument.startswith(("--core", "--native")) for argument in arguments)
    return os.environ.get("BUSPROXY_TEST_CORE") == "1" and not chosen


CORE_BUS = f"{os.geteuid()}-test"


def start_core() -> Kdbusd:
    """A broker with one bus that everybody may connect to."""
    from support.kdbusd import Kdbusd

    return Kdbusd(f'[[bus]]\nname = "{CORE_BUS}"\naccess = "world"\n')


def build_session_config(directory: Path, *, servicedir: Path | None = None, extra: str = "") -> str:
    """An open session configuration with one `unix:path` socket in `directory` and EXTERNAL only."""
    limits = "\n".join(f'  <limit name="{name}">{value}</limit>' for name, value in SESSION_LIMITS.items())
    services = "" if servicedir is None else f"  <servicedir>{escape(str(servicedir))}</servicedir>\n"
    return f"""<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={escape(str(directory / "socket"))}</listen>
  <auth>EXTERNAL</auth>
{services}  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
{limits}
{extra}</busconfig>
"""


def command_line(kind: str, options: Sequence[str]) -> list[str]:
    """The command that starts a bus of that kind; both take the same options."""
    if kind == DBUS_DAEMON:
        return [DBUS_DAEMON, *options]
    return [sys.executable, "-m", "busproxy.daemon", *options]


def clean_environment(directory: Path) -> dict[str, str]:
    """An environment in which no other bus can be found by accident and output is not translated."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DBUS_", "XDG_", "LC_", "LISTEN_", "NOTIFY_", "PYTEST_"))
        and name not in ("DISPLAY", "LANGUAGE")
    }
    environment.update(LC_ALL="C.UTF-8", XDG_RUNTIME_DIR=str(directory), TZ="UTC")
    return environment


@dataclass
class Bus:
    """A running bus; made by `start_bus` only."""

    kind: str
    directory: Path
    process: subprocess.Popen[bytes]
    address: str = ""
    labels: dict[int, str] = field(default_factory=dict)
    """Process ids that results may contain, and what to call them when comparing."""
    core: Kdbusd | None = None
    """In split mode the broker, which ends with the bus."""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def guid(self) -> str:
        """The GUID in the printed address."""
        return self.address.partition("guid=")[2].partition(",")[0]

    @property
    def environment(self) -> dict[str, str]:
        """The environment for a program that shall find this bus, and no other, as its session bus."""
        environment = clean_environment(self.directory)
        environment["DBUS_SESSION_BUS_ADDRESS"] = self.address
        return environment

    def stderr_text(self) -> str:
        """What the bus has written to its standard error so far."""
        return (self.directory / "stderr").read_text(errors="replace")

    def connect(self, *, hello: bool = True) -> RawClient:
        """A new raw client; the caller closes it."""
        return RawClient(self.address, hello=hello)

    def count_fds(self) -> int:
        """How many file descriptors the bus's process holds now."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def count_fds_besides(self) -> int:
        """How many fds the bus holds that are not there for this very question's client.

        A round trip comes first: a bus that has answered is in its main loop and has opened what it needs.
        """
        with self.connect() as client:
            client.sync()
            return self.count_fds() - 1

    def settle_fds(self, expected: int) -> int:
        """The fd count once it has come down to `expected`, or what it still is after a long while.

        Round trips with the bus are the clock: each gives it a turn to notice sockets that were closed.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        with self.connect() as client:
            client.sync()
            while self.count_fds() - 1 > expected and time.monotonic() < deadline:
                client.sync()
            return self.count_fds() - 1

    def stop(self) -> None:
        """End the process by its id; it must go by itself, with status 0, in good time."""
        try:
            if self.process.poll() is not None:
                raise AssertionError(
                    f"{self.kind} ended early with status {self.process.returncode}:\n{self.stderr_text()}"
                )
            self.process.send_signal(signal.SIGTERM)
            try:
                status = self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired as stuck:
                raise AssertionError(f"{self.kind} ignored SIGTERM:\n{self.stderr_text()}") from stuck
            if status != 0:
                raise AssertionError(f"{self.kind} ended with status {status}:\n{self.stderr_text()}")
        finally:
            self._discard()

    def _discard(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.core is not None:
            self.core.stop()


def start_bus(
    kind: str,
    *,
    config: str | None = None,
    servicedir: Path | None = None,
    extra: str = "",
    arguments: Sequence[str] = (),
) -> Bus:
    """Start a bus and wait for its address.

    `config` replaces the whole configuration; otherwise it is the open session one with `servicedir` and the
    XML elements in `extra`. In `config` and `arguments` `{directory}` stands for the bus's own directory.
    """
    return launch_bus(kind, config=config, servicedir=servicedir, extra=extra, arguments=arguments).ready()


@dataclass
class LaunchedBus:
    """A bus that was started and has not yet said its address; several can come up side by side."""

    bus: Bus
    address_fd: int

    def ready(self) -> Bus:
        """Wait for the address line; a bus that ends or says nothing fails with its standard error."""
        deadline = time.monotonic() + START_SECONDS
        text = b""
        try:
            while not text.endswith(b"\n"):
                remaining = max(0.0, deadline - time.monotonic())
                readable, _, _ = select.select([self.address_fd], [], [], remaining)
                chunk = os.read(self.address_fd, 4096) if readable else b""
                if not chunk:
                    stderr = self.bus.stderr_text()
                    self.bus._discard()
                    raise AssertionError(f"{self.bus.kind} gave no address:\n{stderr}")
                text += chunk
        finally:
            os.close(self.address_fd)
        self.bus.address = text.decode().strip()
        return self.bus


def launch_bus(
    kind: str,
    *,
    config: str | None = None,
    servicedir: Path | None = None,
    extra: str = "",
    arguments: Sequence[str] = (),
) -> LaunchedBus:
    """Start a bus without waiting for it; call `ready` on the result."""
    directory = Path(tempfile.mkdtemp(prefix="bus-"))
    text = (
        build_session_config(directory, servicedir=servicedir, extra=extra)
        if config is None
        else config.replace("{directory}", str(directory))
    )
    config_file = directory / "bus.conf"
    config_file.write_text(text)
    reader, writer = os.pipe()
    environment = clean_environment(directory)
    environment["PYTHONPATH"] = str(REPOSITORY)
    options = [f"--config-file={config_file}", "--nofork", f"--print-address={writer}"]
    options += [argument.replace("{directory}", str(directory)) for argument in arguments]
    core = start_core() if kind == BUSPROXYD and is_split(arguments) else None
    if core is not None:
        options.append(f"--core={core.node(CORE_BUS)}")
    try:
        with (directory / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                command_line(kind, options),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=[writer],
            )
    except BaseException:
        os.close(reader)
        shutil.rmtree(directory)
        if core is not None:
            core.discard()
        raise
    finally:
        os.close(writer)
    bus = Bus(kind, directory, process, core=core)
    bus.labels[process.pid] = "bus"
    return LaunchedBus(bus, reader)
