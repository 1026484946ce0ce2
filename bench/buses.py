"""The buses that can be measured: how each is started on a private socket, and ended.

Every bus gets a directory of its own with a configuration file of the same content: session type, EXTERNAL
authentication, everything allowed, the session bus's high limits, no services to activate. `start` returns
when a client has been answered; from then on the `RunningBus` owns the directory and the processes, and
knows which of them do the bus's work (for dbus-broker the launcher and the broker). They are ended by their
pidfds, so that no stranger with a recycled id is hit; the kernel ends them when the benchmark itself is
killed.
"""

import contextlib
import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import launch_broker, processes
from bench.client import BusError, Connection
from bench.messages import BadMessageError

_START_TIMEOUT_S = 15.0
_END_TIMEOUT_S = 5.0

_LIMITS = {
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


class StartError(Exception):
    """The bus cannot run here; the text says why."""


@dataclass(frozen=True, slots=True)
class RunningBus:
    """A bus that answers on `address` (a socket path); the CPU time and memory of `pids` count."""

    name: str
    address: str
    pids: tuple[int, ...]
    directory: Path

    def cpu_ns(self) -> int:
        """CPU time of the bus so far; ProcessLookupError when a process of it is gone."""
        return sum(processes.cpu_ns(pid) for pid in self.pids)

    def rss_kib(self) -> int:
        """Resident memory of the bus."""
        return sum(processes.rss_kib(pid) for pid in self.pids)

    def last_words(self) -> str:
        """The last line the bus wrote to stderr, or nothing."""
        return _last_line(self.directory)


@dataclass(frozen=True, slots=True)
class BusKind:
    """A bus by name: how to start it, and how to ask it for its version."""

    name: str
    start: Callable[[], AbstractContextManager[RunningBus]]
    version_command: tuple[str, ...]

    def version(self) -> str:
        """What the program says about its version, in a line."""
        try:
            answer = subprocess.run(
                self.version_command, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        return next(iter(answer.stdout.splitlines()), "unknown").strip()


def build_config(socket_path: str) -> str:
    """The configuration every bus gets: an open session bus that listens on `socket_path`."""
    limits = "\n".join(f'  <limit name="{name}">{value}</limit>' for name, value in _LIMITS.items())
    return f"""<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <keep_umask/>
  <listen>unix:path={socket_path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
{limits}
</busconfig>
"""


@contextmanager
def _private_directory() -> Iterator[tuple[Path, str]]:
    """A temporary directory with the configuration in it: (directory, path of the socket to be)."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        address = str(directory / "bus")
        (directory / "config.xml").write_text(build_config(address))
        yield directory, address


@contextmanager
def running(
    command: list[str], directory: Path, *, pass_fds: tuple[int, ...]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command`; on leaving, end it and the children it has then, and wait until all are gone."""
    with open(directory / "stderr", "wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            pass_fds=pass_fds,
            preexec_fn=processes.end_with_parent,
        )
    try:
        yield process
    finally:
        with contextlib.ExitStack() as handles:
            child_handles = []
            for pid in processes.children(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    child_handles.append(os.pidfd_open(pid))
                    handles.callback(os.close, child_handles[-1])
            process.terminate()
            try:
                process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for handle in child_handles:
                _end(handle)


def _end(handle: int) -> None:
    """Wait until the process behind a pidfd has ended; kill it when it takes too long."""
    if not select.select([handle], [], [], _END_TIMEOUT_S)[0]:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)


def _last_line(directory: Path) -> str:
    lines = (directory / "stderr").read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _greet(address: str) -> None:
    """Be a client once."""
    try:
        connection = Connection(address)
    except (OSError, BusError, BadMessageError) as error:
        raise StartError(f"it does not answer a client ({error})") from error
    connection.close()


@contextmanager
def start_daemon(name: str, command: tuple[str, ...]) -> Iterator[RunningBus]:
    """A bus that takes dbus-daemon's command line."""
    ours, theirs = socket.socketpair()
    # dbus-daemon closes the descriptor after printing to it: one for the address, one for the pid.
    with ours, theirs, theirs.dup() as second, _private_directory() as (directory, address):
        arguments = (
            f"--config-file={directory / 'config.xml'}",
            "--nofork",
            f"--print-address={theirs.fileno()}",
            f"--print-pid={second.fileno()}",
        )
        with running([*command, *arguments], directory, pass_fds=(theirs.fileno(), second.fileno())):
            theirs.close()
            second.close()
            pid = _read_announced_pid(ours, directory)
            _greet(address)
            yield RunningBus(name, address, (pid, *processes.children(pid)), directory)


def _read_announced_pid(announced: socket.socket, directory: Path) -> int:
    """The process id from what a bus prints: its address and its pid, a line each, in either order."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    text = b""
    while text.count(b"\n") < 2:
        announced.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            more = announced.recv(4096)
        except TimeoutError:
            raise StartError(f"it did not start within {_START_TIMEOUT_S:.0f} s") from None
        if not more:
            raise StartError(_last_line(directory) or "it ended at once and said nothing")
        text += more
    for line in text.split():
        if line.isdigit():
            return int(line)
    raise StartError(f"it announced no process id: {text.decode(errors='replace')!r}")


@contextmanager
def _start_dbus_broker() -> Iterator[RunningBus]:
    """dbus-broker behind its own launcher, with the listening socket and the journal provided from here."""
    for program in (launch_broker.LAUNCHER, "dbus-broker"):
        if shutil.which(program) is None:
            raise StartError(f"{program} is not installed")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with journal, listener, _private_directory() as (directory, address):
        listener.bind(address)
        listener.listen(4096)
        command = [
            sys.executable,
            launch_broker.__file__,
            str(listener.fileno()),
            str(journal.fileno()),
            f"unix:path={address}",
            str(directory / "config.xml"),
        ]
        with running(command, directory, pass_fds=(listener.fileno(), journal.fileno())) as process:
            # A client that waits at a socket nobody serves any more must see the end of it.
            listener.close()
            try:
                _greet(address)
            except StartError as error:
                reason = _last_line(directory) or _read_journal(journal)
                raise StartError(reason or str(error)) from error
            _read_journal(journal)
            brokers = processes.children(process.pid)
            if not brokers:
                raise StartError("its launcher runs no broker")
            yield RunningBus("dbus-broker", address, (process.pid, *brokers), directory)


def _read_journal(journal: socket.socket) -> str:
    """Take everything out of the journal's socket; the last message."""
    last = ""
    while True:
        try:
            entry = journal.recv(65536, socket.MSG_DONTWAIT)
        except OSError:
            return last
        for line in entry.decode(errors="replace").split("\n"):
            if line.startswith("MESSAGE="):
                last = line.removeprefix("MESSAGE=")


@contextmanager
def _start_dbus_daemon() -> Iterator[RunningBus]:
    if shutil.which("dbus-daemon") is None:
        raise StartError("dbus-daemon is not installed")
    with start_daemon("dbus-daemon", ("dbus-daemon",)) as bus:
        yield bus


BUSPROXYD = (sys.executable, "-m", "busproxy.daemon")


@contextmanager
def _start_busproxyd() -> Iterator[RunningBus]:
    try:
        found = importlib.util.find_spec("busproxy.daemon")
    except ImportError:
        found = None
    if found is None:
        raise StartError(f"{sys.executable} has no module busproxy.daemon; run from a checkout or install it")
    with start_daemon("busproxyd", BUSPROXYD) as bus:
        yield bus


#: In the order in which they are measured and shown.
KINDS = {
    kind.name: kind
    for kind in (
        BusKind("dbus-daemon", _start_dbus_daemon, ("dbus-daemon", "--version")),
        BusKind("dbus-broker", _start_dbus_broker, ("dbus-broker", "--version")),
        BusKind("busproxyd", _start_busproxyd, (*BUSPROXYD, "--version")),
    )
}


def find_available(names: list[str]) -> tuple[list[BusKind], dict[str, str]]:
    """Start and end each bus once: those that run, and the reasons of those that do not, by name."""
    available, left_out = [], {}
    for name in names:
        try:
            with KINDS[name].start():
                available.append(KINDS[name])
        except StartError as error:
            left_out[name] = str(error)
    return available, left_out
