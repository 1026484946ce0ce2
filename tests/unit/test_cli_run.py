"""`busproxy run` as a program: the command's environment and status, the bus's life around it, wrong words.

The commands are small Python programs that tell what they see. Where the bus matters they wait for the end of
their standard input, so that the test can look at the bus meanwhile.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from support.bus import REPOSITORY, build_session_config, clean_environment
from support.raw import RawClient

RUN = [sys.executable, "-m", "busproxy.cli", "run"]
NODES = """\
import os, pathlib
directory = pathlib.Path(os.environ["KDBUS_DIRECTORY"])
print(sorted(str(node.relative_to(directory)) for node in directory.rglob("*") if node.is_socket()))
print(directory)
"""
PATIENCE_SECONDS = 30.0

SHOW = "import json, os, sys; json.dump([dict(os.environ), sys.argv[1:]], sys.stdout)"
WAIT = "import os, sys; print(os.environ['DBUS_SESSION_BUS_ADDRESS'], flush=True); sys.stdin.read()"
TELL_SIGNAL = """\
import signal
signals = signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
print("ready", flush=True)
print(signal.Signals(signal.sigwait(signals)).name)
raise SystemExit(7)
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="run-") as path:
        yield Path(path)


@pytest.fixture
def config(directory: Path) -> str:
    """The option that names an open session configuration, its socket in the test's directory."""
    file = directory / "bus.conf"
    file.write_text(build_session_config(directory))
    return f"--config-file={file}"


@pytest.fixture
def environment(directory: Path) -> dict[str, str]:
    return clean_environment(directory) | {"PYTHONPATH": str(REPOSITORY)}


def run(
    words: Sequence[str], environment: Mapping[str, str], **changes: str
) -> subprocess.CompletedProcess[str]:
    """`busproxy run` with these words, to its end."""
    return subprocess.run(
        [*RUN, *words],
        env={**environment, **changes},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def python(code: str, *arguments: str) -> list[str]:
    """The words of a command that runs some Python."""
    return [sys.executable, "-c", code, *arguments]


def show(words: Sequence[str], environment: Mapping[str, str], **changes: str) -> dict[str, str]:
    """The environment that the command of `busproxy run` gets."""
    done = run([*words, *python(SHOW)], environment, **changes)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)[0]
    return found


class Running:
    """A `busproxy run` that goes on beside the test."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [*RUN, *words],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def read_line(self) -> str:
        """The next line that the command writes."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE_SECONDS)
        assert readable, "nothing was written in good time"
        return self.process.stdout.readline().strip()

    def end(self) -> int:
        """Close standard input, which ends the command unless it has ended; gives our program's status."""
        self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode


@pytest.fixture
def start(config: str, environment: dict[str, str]) -> Iterator[Callable[[str], Running]]:
    """Starts `busproxy run` with some Python as its command."""
    started: list[Running] = []

    def start_running(code: str) -> Running:
        started.append(Running([config, "--", *python(code)], environment))
        return started[-1]

    yield start_running
    for running in started:
        running.process.terminate()
        running.end()


def find_daemon(address: str) -> int:
    """The process id of the bus at an address, as the bus gives it."""
    with RawClient(address) as client:
        pid = client.reply("GetConnectionUnixProcessID", "s", "org.freedesktop.DBus").body[0]
    assert isinstance(pid, int)
    return pid


# The command's environment


def test_a_client_can_use_the_bus_at_the_address_the_command_gets(start: Callable[[str], Running]) -> None:
    running = start(WAIT)
    with RawClient(running.read_line()) as client:
        assert client.reply("NameHasOwner", "s", client.unique_name).body == [True]
    assert running.end() == 0


def test_the_bus_is_a_new_one_and_not_the_one_around_it(config: str, environment: dict[str, str]) -> None:
    found = show([config], environment, DBUS_SESSION_BUS_ADDRESS="unix:path=/nonexistent")
    assert found["DBUS_SESSION_BUS_ADDRESS"].startswith(
        f"unix:path={environment['XDG_RUNTIME_DIR']}/socket,guid="
    )


@pytest.mark.parametrize(
    "name",
    ["DBUS_SESSION_BUS_PID", "DBUS_SESSION_BUS_WINDOWID", "DBUS_STARTER_ADDRESS", "DBUS_STARTER_BUS_TYPE"],
)
def test_what_was_said_of_another_bus_is_taken_away(
    config: str, environment: dict[str, str], name: str
) -> None:
    assert name not in show([config], environment, **{name: "1"})


def test_the_rest_of_the_environment_is_kept(config: str, environment: dict[str, str]) -> None:
    found = show([config], environment, EXAMPLE="kept")
    assert found.pop("DBUS_SESSION_BUS_ADDRESS")
    assert found == environment | {"EXAMPLE": "kept"}


# The command line


@pytest.mark.parametrize("separator", [[], ["--"]])
def test_the_commands_own_options_are_left_to_it(
    config: str, environment: dict[str, str], separator: list[str]
) -> None:
    done = run([config, *separator, *python(SHOW, "--config-file=x", "--", "-y")], environment)
    assert json.loads(done.stdout)[1] == ["--config-file=x", "--", "-y"]


def test_the_configuration_may_be_the_next_word(config: str, environment: dict[str, str]) -> None:
    option, _, file = config.partition("=")
    found = show([option, file], environment)
    assert found["DBUS_SESSION_BUS_ADDRESS"].startswith(f"unix:path={environment['XDG_RUNTIME_DIR']}/socket,")


def test_without_a_configuration_it_is_a_session_bus(environment: dict[str, str]) -> None:
    assert show([], environment)["DBUS_SESSION_BUS_ADDRESS"].startswith("unix:")


def test_no_command_is_a_mistake(config: str, environment: dict[str, str]) -> None:
    done = run([config, "--"], environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no command" in done.stderr


def test_an_unknown_option_is_a_mistake(environment: dict[str, str]) -> None:
    done = run(["--frobnicate", "true"], environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--frobnicate" in done.stderr


# The status


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_the_status_is_the_commands(config: str, environment: dict[str, str], status: int) -> None:
    assert run([config, *python(f"raise SystemExit({status})")], environment).returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_a_command_that_a_signal_ended_gives_its_number_and_128(
    config: str, environment: dict[str, str], number: signal.Signals
) -> None:
    done = run([config, *python(f"import os; os.kill(os.getpid(), {number:d})")], environment)
    assert done.returncode == 128 + number


def test_a_command_that_does_not_exist_gives_127(config: str, environment: dict[str, str]) -> None:
    done = run([config, "no-such-command"], environment)
    assert done.returncode == 127
    assert "no-such-command: No such file or directory" in done.stderr


def test_a_command_that_cannot_be_executed_gives_126(
    config: str, environment: dict[str, str], directory: Path
) -> None:
    file = directory / "plain"
    file.write_text("text")
    done = run([config, str(file)], environment)
    assert done.returncode == 126
    assert f"{file}: Permission denied" in done.stderr


@pytest.mark.parametrize(
    "text", [None, "<busconfig>", "<busconfig/>"], ids=["missing", "broken", "no address"]
)
def test_without_a_bus_the_command_does_not_run(
    environment: dict[str, str], directory: Path, text: str | None
) -> None:
    file = directory / "other.conf"
    if text is not None:
        file.write_text(text)
    done = run([f"--config-file={file}", *python("print('ran')")], environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Failed to start message bus" in done.stderr
    assert "did not start" in done.stderr


# Native programs


def test_native_programs_find_the_bus_if_they_are_to(config: str, environment: dict[str, str]) -> None:
    done = run([config, "--native", *python(NODES)], environment)
    nodes, directory = done.stdout.splitlines()
    assert nodes == str([f"{os.geteuid()}-session/bus", "control"])
    assert not Path(directory).exists()


def test_otherwise_they_find_none(config: str, environment: dict[str, str]) -> None:
    assert "KDBUS_DIRECTORY" not in show([config], environment, KDBUS_DIRECTORY="/elsewhere")


# The life of the bus


def test_the_bus_ends_with_the_command(start: Callable[[str], Running], directory: Path) -> None:
    running = start(WAIT)
    daemon = find_daemon(running.read_line())
    assert running.end() == 0
    assert not Path(f"/proc/{daemon}").exists()
    assert not (directory / "socket").exists()


def test_the_bus_ends_though_a_client_stays(start: Callable[[str], Running], directory: Path) -> None:
    running = start(WAIT)
    with RawClient(running.read_line()) as client:
        assert running.end() == 0
        assert client.probe() == [None]
    assert not (directory / "socket").exists()


def test_the_bus_ends_when_the_command_cannot_be_started(
    config: str, environment: dict[str, str], directory: Path
) -> None:
    run([config, "no-such-command"], environment)
    assert sorted(path.name for path in directory.iterdir() if path.is_socket()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_goes_to_the_command_whose_status_counts(
    start: Callable[[str], Running], directory: Path, number: signal.Signals
) -> None:
    running = start(TELL_SIGNAL)
    assert running.read_line() == "ready"
    running.process.send_signal(number)
    assert running.read_line() == number.name
    assert running.end() == 7
    assert not (directory / "socket").exists()
