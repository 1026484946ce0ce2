"""`busproxyd` as a process: its command line, files, signals and limits.

Each test starts the daemon with a configuration of its own in a directory of its own, and ends it by its
pid. What it waits for is always an event: a line on a pipe, a datagram of the notification protocol, the end
of a process. Where dbus-daemon has the same behaviour the test runs on both.
"""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.bus import BUSPROXYD, DBUS_DAEMON, REPOSITORY, clean_environment, command_line, selected_kinds
from support.raw import Disconnected, RawClient, connect_address

PATIENCE_SECONDS = 20.0

OPEN_POLICY = '<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>'

pytestmark = pytest.mark.program("dbus-daemon")

kinds = pytest.mark.parametrize("kind", selected_kinds())


@dataclass
class Place:
    """A directory to run daemons in, the file they read, and the processes that are to be gone at the end."""

    path: Path
    pids: list[int] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        return self.path / "socket"

    @property
    def pidfile(self) -> Path:
        return self.path / "pid"

    @property
    def config(self) -> Path:
        return self.path / "bus.conf"

    def configure(
        self,
        *elements: str,
        listen: Sequence[str] = ("unix:path={path}/socket",),
        pidfile: bool = False,
        policy: str = OPEN_POLICY,
    ) -> None:
        """Write the configuration: an open session bus with these elements in addition."""
        lines = [f"<listen>{text.replace('{path}', str(self.path))}</listen>" for text in listen]
        if pidfile:
            lines.append(f"<pidfile>{self.pidfile}</pidfile>")
        self.config.write_text(
            "\n".join(
                [
                    "<busconfig>",
                    "<type>session</type>",
                    "<auth>EXTERNAL</auth>",
                    *lines,
                    *elements,
                    f'<policy context="default">{policy}</policy>',
                    "</busconfig>",
                ]
            )
        )

    @property
    def stderr(self) -> str:
        return (self.path / "stderr").read_text(errors="replace")

    def launch(
        self,
        kind: str,
        *options: str,
        pass_fds: Sequence[int] = (),
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        stdout: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a daemon on this configuration, its standard error going to the file `stderr`."""
        full = {**clean_environment(self.path), "PYTHONPATH": str(REPOSITORY), **(environment or {})}
        with (self.path / "stderr").open("ab") as stderr:
            process = subprocess.Popen(
                [*prefix, *command_line(kind, [f"--config-file={self.config}", *options])],
                env=full,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if stdout is None else stdout,
                stderr=stderr,
                pass_fds=pass_fds,
            )
        self.processes.append(process)
        return process

    def start(self, kind: str, *options: str, **rest: Any) -> tuple[subprocess.Popen[bytes], str]:
        """Start a daemon in the foreground and wait until it serves; returns its address.

        The printed address alone is too early: dbus-daemon prints it before it writes its pid file and
        installs its signal handlers.
        """
        reader, writer = os.pipe()
        try:
            process = self.launch(
                kind, "--nofork", f"--print-address={writer}", *options, pass_fds=[writer], **rest
            )
        finally:
            os.close(writer)
        address = read_to_end(reader).strip()
        assert address, self.stderr
        ask(address.partition(";")[0])
        return process, address

    def run(self, kind: str, *options: str, **rest: Any) -> int:
        """Run a daemon that is to end by itself; returns its status."""
        return self.launch(kind, *options, **rest).wait(PATIENCE_SECONDS)

    def clean_up(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="bus-") as path:
        place = Place(Path(path))
        place.configure()
        try:
            yield place
        finally:
            place.clean_up()


def read_to_end(fd: int) -> str:
    """All text until the other end of a pipe is closed; closes this one."""
    data = b""
    try:
        while True:
            ready, _, _ = select.select([fd], [], [], PATIENCE_SECONDS)
            assert ready, f"nothing came after {data!r}"
            chunk = os.read(fd, 4096)
            if not chunk:
                return data.decode()
            data += chunk
    finally:
        os.close(fd)


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
    """End a daemon by its pid; returns its status."""
    process.send_signal(number)
    return process.wait(PATIENCE_SECONDS)


def wait_until_gone(pid: int) -> None:
    """Wait for the end of a process that is not our child."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], PATIENCE_SECONDS)[0], f"process {pid} goes on"
    finally:
        os.close(pidfd)


class Manager:
    """The service manager's end of the notification protocol."""

    def __init__(self, directory: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.address = str(directory / "notify")
        self.socket.bind(self.address)

    def next(self) -> str:
        return self.socket.recv(4096).decode()


@pytest.fixture
def manager(place: Place) -> Iterator[Manager]:
    manager = Manager(place.path)
    yield manager
    manager.socket.close()


def ask(address: str) -> str:
    """The bus's id, asked for at this address."""
    with RawClient(address) as client:
        return str(client.reply("GetId").body[0])


# The command line


@kinds
def test_version_and_nothing_else(place: Place, kind: str) -> None:
    done = subprocess.run(
        command_line(kind, ["--version"]),
        capture_output=True,
        text=True,
        check=True,
        cwd=place.path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert re.search(r"\d+\.\d+", done.stdout)
    assert done.stderr == ""


def test_introspect_prints_what_the_bus_answers(place: Place) -> None:
    printed = subprocess.run(
        command_line(BUSPROXYD, ["--introspect"]), capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    process, address = place.start(BUSPROXYD)
    with RawClient(address) as client:
        reply = client.reply("Introspect", interface="org.freedesktop.DBus.Introspectable")
    assert printed.stdout.strip() == reply.body[0].strip()
    assert end(process) == 0


@kinds
def test_address_and_pid_go_to_the_descriptors_they_are_asked_for(place: Place, kind: str) -> None:
    readers, writers = zip(os.pipe(), os.pipe(), strict=True)
    process = place.launch(
        kind, "--nofork", f"--print-address={writers[0]}", f"--print-pid={writers[1]}", pass_fds=writers
    )
    for fd in writers:
        os.close(fd)
    address, pid = (read_to_end(fd) for fd in readers)
    assert re.fullmatch(rf"unix:path={place.socket},guid=[0-9a-f]{{32}}\n", address)
    assert pid == f"{process.pid}\n"
    assert ask(address.strip())  # only then dbus-daemon knows what to do on a signal
    assert end(process) == 0


@kinds
def test_address_and_pid_go_to_standard_output_without_a_descriptor(place: Place, kind: str) -> None:
    reader, writer = os.pipe()
    process = place.launch(kind, "--print-address", "--nofork", "--print-pid", "--nosyslog", stdout=writer)
    os.close(writer)
    with os.fdopen(reader) as output:
        address = output.readline().strip()
        assert output.readline() == f"{process.pid}\n"
    assert ask(address)
    assert end(process) == 0


@kinds
def test_an_address_on_the_command_line_replaces_those_of_the_file(place: Place, kind: str) -> None:
    other = place.path / "other"
    process, address = place.start(kind, f"--address=unix:path={other}")
    assert address.startswith(f"unix:path={other},guid=")
    assert ask(address)
    assert not place.socket.exists()
    assert end(process) == 0
    assert not other.exists()


@kinds
def test_a_configuration_that_is_not_there_ends_the_start(place: Place, kind: str) -> None:
    place.config.unlink()
    assert place.run(kind, "--nofork") == 1
    assert str(place.config) in place.stderr


@kinds
def test_a_broken_configuration_ends_the_start_and_is_explained(place: Place, kind: str) -> None:
    place.config.write_text("<busconfig>\n<nonsense/>\n</busconfig>\n")
    assert place.run(kind, "--nofork") == 1
    assert "nonsense" in place.stderr


# Addresses


@kinds
def test_it_listens_on_several_addresses_at_once(place: Place, kind: str) -> None:
    name = f"bus-{os.getpid()}-{place.path.name}"
    place.configure(
        listen=["unix:path={path}/socket", f"unix:abstract={name}", "unix:dir={path}", "unix:tmpdir={path}"]
    )
    process, printed = place.start(kind)
    addresses = printed.split(";")
    assert len(addresses) == 4
    assert len({ask(address) for address in addresses}) == 1
    for address in addresses:
        with RawClient(address) as client:
            assert address.endswith(f"guid={client.guid}")
    assert end(process) == 0
    assert not list(place.path.glob("dbus-*"))
    assert not place.socket.exists()
    with pytest.raises(ConnectionRefusedError):
        connect_address(f"unix:abstract={name}")


@kinds
def test_runtime_is_the_bus_in_the_users_runtime_directory(place: Place, kind: str) -> None:
    place.configure(listen=["unix:runtime=yes"])
    process, address = place.start(kind)
    assert address.startswith(f"unix:path={place.path / 'bus'},guid=")
    assert ask(address)
    assert end(process) == 0
    assert not (place.path / "bus").exists()


EXEC_WITH_SOCKETS = """
import os, sys
printed, *listening = [os.dup2(int(fd), 100 + number) for number, fd in enumerate(sys.argv[1].split(","))]
for position, fd in enumerate(listening):
    os.dup2(fd, 3 + position)
os.dup2(printed, 3 + len(listening))
os.closerange(4 + len(listening), 200)
os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), str(len(listening))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def test_systemd_hands_its_sockets_over(place: Place) -> None:
    place.configure(listen=["systemd:"])
    with ExitStack() as stack:
        listeners = []
        for number in range(2):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(place.path / f"inherited{number}"))
            listener.listen()
            listeners.append(listener)
        early = stack.enter_context(socket.socket(socket.AF_UNIX))
        early.connect(str(place.path / "inherited1"))
        reader, writer = os.pipe()
        fds = [writer, *(listener.fileno() for listener in listeners)]
        process = place.launch(
            BUSPROXYD,
            "--nofork",
            "--print-address=5",
            prefix=[sys.executable, "-c", EXEC_WITH_SOCKETS, ",".join(map(str, fds))],
            pass_fds=fds,
        )
        os.close(writer)
        printed = read_to_end(reader).strip()
        addresses = printed.split(";")
        assert [address.partition(",")[0] for address in addresses] == [
            f"unix:path={place.path}/inherited{number}" for number in range(2)
        ]
        assert len({ask(address) for address in addresses}) == 1
        early.settimeout(PATIENCE_SECONDS)
        early.sendall(b"\0AUTH EXTERNAL\r\nDATA\r\n")
        assert early.recv(10).startswith(b"DATA")
        assert end(process) == 0
    assert (place.path / "inherited0").exists(), "the socket file belongs to whoever made it"


# In the background


@kinds
def test_fork_returns_when_the_bus_is_ready(place: Place, kind: str) -> None:
    place.configure(pidfile=True)
    readers, writers = zip(os.pipe(), os.pipe(), strict=True)
    process = place.launch(
        kind, "--fork", f"--print-address={writers[0]}", f"--print-pid={writers[1]}", pass_fds=writers
    )
    for fd in writers:
        os.close(fd)
    assert process.wait(PATIENCE_SECONDS) == 0
    assert ask(f"unix:path={place.socket}")
    address, pid = (read_to_end(fd) for fd in readers)
    place.pids.append(int(pid))
    assert address.startswith(f"unix:path={place.socket},guid=")
    assert place.pidfile.read_text() == pid
    assert int(pid) != process.pid
    os.kill(int(pid), signal.SIGTERM)
    wait_until_gone(int(pid))
    assert not place.pidfile.exists()
    assert not place.socket.exists()


@kinds
def test_fork_leaves_the_terminal_and_the_directory(place: Place, kind: str) -> None:
    reader, writer = os.pipe()
    process = place.launch(kind, "--fork", f"--print-pid={writer}", pass_fds=[writer])
    os.close(writer)
    assert process.wait(PATIENCE_SECONDS) == 0
    pid = int(read_to_end(reader))
    place.pids.append(pid)
    assert os.getsid(pid) != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    os.kill(pid, signal.SIGTERM)
    wait_until_gone(pid)


@kinds
def test_a_start_in_the_background_that_fails_says_so(place: Place, kind: str) -> None:
    place.configure(listen=["unix:path={path}/missing/socket"])
    assert place.run(kind, "--fork") != 0
    assert place.stderr


def test_a_pid_file_that_cannot_be_written_ends_a_start_in_the_background(place: Place) -> None:
    place.configure(f"<pidfile>{place.path}/missing/pid</pidfile>")
    assert place.run(BUSPROXYD, "--fork") != 0
    assert "missing/pid" in place.stderr
    assert not place.socket.exists()


@kinds
def test_nopidfile_leaves_the_pid_file_out(place: Place, kind: str) -> None:
    place.configure(pidfile=True)
    process, address = place.start(kind, "--nopidfile")
    assert not place.pidfile.exists()
    assert ask(address)
    assert end(process) == 0


@kinds
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_and_what_it_made_is_gone(place: Place, kind: str, number: int) -> None:
    if kind == DBUS_DAEMON and number == signal.SIGINT:
        pytest.skip("dbus-daemon dies of SIGINT")
    place.configure(pidfile=True)
    process, address = place.start(kind)
    with RawClient(address) as client:
        assert place.pidfile.read_text() == f"{process.pid}\n"
        assert end(process, number) == 0
        with pytest.raises((Disconnected, ConnectionResetError)):
            client.receive()
    assert not place.pidfile.exists()
    assert not place.socket.exists()


@kinds
def test_a_second_daemon_is_refused_and_the_first_stays_reachable(place: Place, kind: str) -> None:
    place.configure(pidfile=True)
    process, address = place.start(kind)
    assert place.run(kind, "--nofork") == 1
    assert f'The pid file "{place.pidfile}" exists' in place.stderr
    assert place.pidfile.read_text() == f"{process.pid}\n"
    assert ask(address)
    assert end(process) == 0


# Notifications and reload


def test_the_service_manager_is_told_of_each_phase(place: Place, manager: Manager) -> None:
    process, address = place.start(BUSPROXYD, environment={"NOTIFY_SOCKET": manager.address})
    assert "READY=1" in manager.next()
    process.send_signal(signal.SIGHUP)
    assert re.search(r"^RELOADING=1\nMONOTONIC_USEC=\d+$", manager.next())
    assert "READY=1" in manager.next()
    assert ask(address)
    assert end(process) == 0
    assert "STOPPING=1" in manager.next()


def reload(process: subprocess.Popen[bytes], manager: Manager) -> None:
    process.send_signal(signal.SIGHUP)
    assert "RELOADING=1" in manager.next()
    assert "READY=1" in manager.next()


def accepted_rules(address: str) -> int:
    """How many match rules a new client may add, at most 9."""
    with RawClient(address) as client:
        replies = [client.reply("AddMatch", "s", f"member='M{number}'") for number in range(9)]
        return [reply.error_name for reply in replies].count(None)


def test_a_reload_applies_changed_limits(place: Place, manager: Manager) -> None:
    limit = '<limit name="max_match_rules_per_connection">{}</limit>'
    place.configure(limit.format(3))
    process, address = place.start(BUSPROXYD, environment={"NOTIFY_SOCKET": manager.address})
    manager.next()
    assert accepted_rules(address) == 3
    with RawClient(address) as old:
        place.configure(limit.format(5))
        reload(process, manager)
        assert accepted_rules(address) == 5
        assert old.sync() == []
    assert end(process) == 0


@pytest.mark.parametrize("broken", ["<busconfig>\n<nonsense/>\n</busconfig>", "<busconfig>", ""])
def test_a_broken_file_keeps_the_old_configuration(place: Place, manager: Manager, broken: str) -> None:
    place.configure('<limit name="max_match_rules_per_connection">3</limit>')
    process, address = place.start(BUSPROXYD, environment={"NOTIFY_SOCKET": manager.address})
    manager.next()
    place.config.write_text(broken)
    reload(process, manager)
    (line,) = place.stderr.splitlines()
    assert re.search(rf"not reloaded: {re.escape(str(place.config))}:\d+: ", line)
    assert accepted_rules(address) == 3
    assert end(process) == 0


def test_a_missing_file_keeps_the_old_configuration(place: Place, manager: Manager) -> None:
    process, address = place.start(BUSPROXYD, environment={"NOTIFY_SOCKET": manager.address})
    manager.next()
    place.config.unlink()
    reload(process, manager)
    assert str(place.config) in place.stderr
    assert ask(address)
    assert end(process) == 0


def test_a_reply_timeout_that_a_reload_brings_counts_for_calls_that_were_made_before(
    place: Place, manager: Manager
) -> None:
    """The same call again and again, so that only a flow that has learnt of the reload gets it right."""
    process, address = place.start(BUSPROXYD, environment={"NOTIFY_SOCKET": manager.address})
    manager.next()
    with RawClient(address) as caller, RawClient(address) as callee:
        for _ in range(3):
            caller.send_call("M", destination=callee.unique_name, interface="a.b")
        caller.sync()
        place.configure('<limit name="reply_timeout">50</limit>')
        reload(process, manager)
        serial = caller.send_call("M", destination=callee.unique_name, interface="a.b")
        *_, reply = caller.until_reply(serial)
        assert reply.error_name == "org.freedesktop.DBus.Error.NoReply"
    assert end(process) == 0


@kinds
def test_a_reload_asked_for_by_a_client_answers_when_it_is_done(place: Place, kind: str) -> None:
    process, address = place.start(kind)
    with RawClient(address) as client:
        assert client.reply("ReloadConfig").error_name is None
        place.config.write_text("<busconfig>\n<nonsense/>\n</busconfig>")
        assert client.reply("ReloadConfig").error_name is not None
        assert client.sync() == []
    assert end(process) == 0


def test_a_policy_that_is_not_enforced_is_said_once(place: Place) -> None:
    place.configure(
        policy='<allow send_destination="*"/><allow own="*"/>\n<deny send_destination="com.example.Secret"/>'
        '\n<deny own="com.example.Other"/>'
    )
    process, address = place.start(BUSPROXYD)
    assert ask(address)
    assert end(process) == 0
    (line,) = place.stderr.splitlines()
    assert "not enforced" in line
    assert re.search(rf"{re.escape(str(place.config))}:\d+", line)


def test_an_open_policy_needs_no_warning(place: Place) -> None:
    process, address = place.start(BUSPROXYD)
    assert ask(address)
    assert end(process) == 0
    assert place.stderr == ""


# Without descriptors


def limited(count: int) -> list[str]:
    """A command that runs another one with at most that many descriptors."""
    return ["/bin/sh", "-c", f'ulimit -n {count}; exec "$@"', "sh"]


@pytest.fixture
def starved(place: Place) -> tuple[subprocess.Popen[bytes], str]:
    """A daemon that may have 40 descriptors."""
    place.configure('<limit name="max_incomplete_connections">1000</limit>')
    return place.start(BUSPROXYD, prefix=limited(40))


def flood(address: str, stack: ExitStack) -> list[socket.socket]:
    return [stack.enter_context(connect_address(address)) for _ in range(80)]


def wait_for_line(place: Place, client: RawClient, pattern: str) -> None:
    """Wait, by round trips with the bus, until its log says something."""
    for _ in range(20_000):
        if re.search(pattern, place.stderr):
            return
        client.sync()
    raise AssertionError(place.stderr)


def test_a_flood_of_clients_does_not_end_the_bus(
    place: Place, starved: tuple[subprocess.Popen[bytes], str]
) -> None:
    process, address = starved
    with RawClient(address) as first, RawClient(address) as second:
        with ExitStack() as stack:
            flood(address, stack)
            wait_for_line(place, first, "cannot accept")
            serial = first.send_call("M", destination=second.unique_name, interface="a.b")
            assert second.receive().serial == serial
            assert process.poll() is None
        assert ask(address)
        assert first.sync() == []
    assert ask(address)
    assert end(process) == 0


def test_calls_that_need_a_descriptor_are_refused_when_there_is_none(
    place: Place, starved: tuple[subprocess.Popen[bytes], str]
) -> None:
    process, address = starved
    with RawClient(address) as first:
        with ExitStack() as stack:
            flood(address, stack)
            wait_for_line(place, first, "cannot accept")
            reply = first.reply("GetConnectionCredentials", "s", first.unique_name)
            assert reply.error_name is None or reply.error_name.startswith("org.freedesktop.DBus.Error.")
            assert first.reply("ReloadConfig").fields["reply_serial"]
            assert first.reply("GetMachineId", interface="org.freedesktop.DBus.Peer").fields["reply_serial"]
        assert ask(address)
        for fd in first.take_fds(1):
            os.close(fd)
    assert "Traceback" not in place.stderr
    assert end(process) == 0


# The type of the bus


@kinds
@pytest.mark.parametrize("type", ["my bus", "a/b", "ends-", "x" * 80], ids=["blank", "slash", "dash", "long"])
def test_a_type_may_be_any_text(place: Place, kind: str, type: str) -> None:
    text = place.config.read_text()
    place.config.write_text(text.replace("<type>session</type>", f"<type>{type}</type>"))
    assert type in place.config.read_text()
    process, address = place.start(kind)
    assert ask(address)
    assert end(process) == 0
