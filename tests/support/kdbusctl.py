"""`kdbusctl` in tests: the program on a daemon, run to its end or beside the test, as us or as nobody.

Whoever is looked at is connected from the test's own process, so that its pid and uid are known.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from kdbus_core.ctl import listing, making, messages, monitor, show, state, talk
from kdbus_core.ctl.command import main
from kdbus_core.transport.client import Connection, open_node
from support.bus import REPOSITORY, clean_environment
from support.kdbusd import PATIENCE, Kdbusd

UID = os.geteuid()
NOBODY = 65534
NAME = "org.example.Echo"
OFFERED = "org.example.Offered"
BUS = f"{UID}-test"
POOL = 1 << 20

CONFIG = f"""
[[bus]]
name = "{{uid}}-test"
access = "world"
[[bus.policy]]
name = "{NAME}"
own = ["user:{UID}"]
talk = ["world"]
[[bus.endpoint]]
name = "{{uid}}-narrow"
[[bus.endpoint.policy]]
name = "org.example.*"
see = ["group:3"]
"""

LOADED = (listing, making, messages, monitor, show, state, talk)
"""What kdbusctl loads when it needs it, and could not as somebody who may not read our files."""


class Ctl:
    """kdbusctl on one domain."""

    def __init__(self, daemon: Kdbusd) -> None:
        self.daemon = daemon
        self.started: list[subprocess.Popen[bytes]] = []

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "kdbus_core.ctl", *words]

    @property
    def environment(self) -> dict[str, str]:
        environment = clean_environment(self.daemon.home)
        environment.update(PYTHONPATH=str(REPOSITORY), KDBUS_DIRECTORY=str(self.daemon.directory))
        return environment

    def run(self, *words: str, status: int = 0, input: bytes | None = None) -> tuple[str, str]:
        """Run to the end; what it said on standard output and standard error."""
        done = subprocess.run(
            self.command(*words),
            env=self.environment,
            cwd="/",
            capture_output=True,
            timeout=PATIENCE * 2,
            check=False,
            input=input,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == status, f"status {done.returncode}:\n{out}\n{err}"
        return out, err

    def run_into(self, out: IO[bytes], *words: str) -> tuple[int, str]:
        """Run to the end with another standard output; exit status, and what it said on standard error."""
        done = subprocess.run(
            self.command(*words),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            timeout=PATIENCE * 2,
            check=False,
        )
        return done.returncode, done.stderr.decode()

    def run_as_nobody(self, *words: str, status: int = 0) -> tuple[str, str]:
        """The same as another user, who need not be able to read the interpreter's files: in a fork."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if pid == 0:
                _become_nobody_and_run([f"--directory={self.daemon.directory}", *words], out, err)
            _, found = os.waitpid(pid, 0)
            out.seek(0)
            err.seek(0)
            said = out.read().decode(), err.read().decode()
        assert os.waitstatus_to_exitcode(found) == status, "\n".join(said)
        return said

    def json(self, *words: str) -> Any:
        out, err = self.run(*words, "--json")
        assert err == ""
        return json.loads(out)

    def json_as_nobody(self, *words: str) -> Any:
        out, err = self.run_as_nobody(*words, "--json")
        assert err == ""
        return json.loads(out)

    def rows(self, *words: str) -> list[list[str]]:
        """The table that is printed, split at its columns."""
        lines = self.run(*words)[0].splitlines()
        starts = [found.start() for found in re.finditer(r"(?:^|(?<=  ))\S", lines[0])]
        ends = [*starts[1:], None]
        return [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines]

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start something that goes on until it is ended; the fixture sees to it that it is."""
        process = subprocess.Popen(
            self.command(*words),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """End what is still there."""
        for process in self.started:
            with process:
                if process.poll() is None:
                    process.kill()


def _become_nobody_and_run(words: list[str], out: IO[bytes], err: IO[bytes]) -> NoReturn:
    status = 70
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        with open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            status = main(words)
    except BaseException:
        err.write(traceback.format_exc().encode())
        err.flush()
    finally:
        os._exit(status)


def read_line(process: subprocess.Popen[bytes]) -> str:
    """The next line of its output; fails with its standard error when there is none."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], PATIENCE)
    line = process.stdout.readline() if readable else b""
    if not line:
        process.kill()
        raise AssertionError(f"it said nothing, but: {process.communicate()[1].decode()}")
    return line.decode().rstrip("\n")


def interrupt(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGINT) -> int:
    """Interrupt it; its exit status."""
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    return process.returncode


def running_daemon() -> Iterator[Kdbusd]:
    """One daemon with the configuration, for a fixture."""
    daemon = Kdbusd(CONFIG)
    try:
        yield daemon
        daemon.stop()
    finally:
        daemon.discard()


def controlling(daemon: Kdbusd) -> Iterator[Ctl]:
    """kdbusctl on a daemon, for a fixture; nothing that it has started is left."""
    ctl = Ctl(daemon)
    try:
        yield ctl
    finally:
        ctl.end()


def connect(daemon: Kdbusd, endpoint: str = "bus", **more: Any) -> Connection:
    """A connection to the configured bus."""
    with open_node(daemon.node(BUS, endpoint)) as handle:
        return handle.hello(pool_size=POOL, **more)
