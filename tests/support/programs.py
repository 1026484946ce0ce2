"""The real programs: which there are, which Debian package has them, how they run on a bus.

`find_program` answers with a command or None; a name with the prefix `python:` is a module of the system's
own Python. `run` is for programs that end by themselves, `Child` for those that go on: it collects both
output streams line by line and wakes whoever waits for a line. Every process is ended by its own id.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Self

from support.bus import Bus

SYSTEM_PYTHON = "/usr/bin/python3"
INSTALLED_TESTS = "/usr/lib/dbus-1.0/debug-build/libexec/installed-tests/dbus"
PATIENCE_SECONDS = 30.0

PACKAGES = {
    "busctl": "systemd",
    "systemd-analyze": "systemd",
    "setpriv": "util-linux",
    "gdbus": "libglib2.0-bin",
    "dbus-daemon": "dbus-daemon",
    "dbus-send": "dbus-bin",
    "dbus-monitor": "dbus-bin",
    "dbus-test-tool": "dbus-tests",
    "installed-dbus-tests": "dbus-tests",
    "qdbus": "qdbus-qt5",
    "python:dbus": "python3-dbus",
    "python:gi": "python3-gi",
}
"""Each program that tests may ask for, and the Debian package that provides it."""

CANDIDATES = {
    "qdbus": (
        "/usr/lib/qt6/bin/qdbus",
        "/usr/lib/qt5/bin/qdbus",
        "qdbus6",
        "qdbus-qt6",
        "qdbus-qt5",
    ),
    "installed-dbus-tests": (f"{INSTALLED_TESTS}/test-dbus-daemon",),
}


@cache
def find_program(name: str) -> str | None:
    """The command for a program, or None when this machine does not have it."""
    if name not in PACKAGES:
        raise ValueError(f"no package is known for {name!r}; add it to PACKAGES")
    kind, _, module = name.partition(":")
    if kind == "python":
        if not os.access(SYSTEM_PYTHON, os.X_OK):
            return None
        statement = f"import {module}"
        tried = subprocess.run([SYSTEM_PYTHON, "-c", statement], capture_output=True, check=False)
        return SYSTEM_PYTHON if tried.returncode == 0 else None
    for candidate in CANDIDATES.get(name, (name,)):
        if found := shutil.which(candidate):
            return found
    return None


def require_program(name: str) -> str:
    """The command for a program that a marker has already made sure of."""
    command = find_program(name)
    if command is None:
        raise AssertionError(f"{name} is missing although the test is not marked with it")
    return command


@dataclass(frozen=True)
class Outcome:
    """What a program left behind."""

    status: int
    stdout_bytes: bytes
    stderr: str

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode(errors="replace")

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()


def run(
    bus: Bus,
    *arguments: str,
    status: int | None = 0,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a program on the bus to its end; an exit status other than `status` (None: any) fails."""
    command = [require_program(arguments[0]) if arguments[0] in PACKAGES else arguments[0], *arguments[1:]]
    done = subprocess.run(
        command,
        env=bus.environment | dict(environment or {}),
        input=None if stdin is None else stdin.encode(),
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    outcome = Outcome(done.returncode, done.stdout, done.stderr.decode(errors="replace"))
    if status is not None and outcome.status != status:
        raise AssertionError(f"on {bus.kind}, {' '.join(command)} ended with {outcome}")
    return outcome


class Child:
    """A program that runs beside the test; use as a context manager, which ends it."""

    def __init__(
        self,
        bus: Bus,
        *arguments: str,
        label: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        command = [
            require_program(arguments[0]) if arguments[0] in PACKAGES else arguments[0],
            *arguments[1:],
        ]
        self.name = os.path.basename(command[0])
        self.bus = bus
        self.process = subprocess.Popen(
            command,
            env=bus.environment | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if label is not None:
            bus.labels[self.process.pid] = label
        self._changed = threading.Condition()
        self._output = {"stdout": b"", "stderr": b""}
        self._open = set(self._output)
        self._readers = [
            threading.Thread(target=self._read, args=(name,), name=f"{self.name} {name}")
            for name in self._output
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        stream = getattr(self.process, name)
        while chunk := os.read(stream.fileno(), 65536):
            with self._changed:
                self._output[name] += chunk
                self._changed.notify_all()
        with self._changed:
            self._open.discard(name)
            self._changed.notify_all()

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stdout_bytes(self) -> bytes:
        with self._changed:
            return self._output["stdout"]

    @property
    def stderr(self) -> str:
        with self._changed:
            return self._output["stderr"].decode(errors="replace")

    def wait_for(self, pattern: str, *, count: int = 1) -> re.Match[str]:
        """Wait until a regular expression matches either stream `count` times; returns the last match."""
        compiled = re.compile(pattern, re.MULTILINE)
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._changed:
            while True:
                for data in self._output.values():
                    found = list(compiled.finditer(data.decode(errors="replace")))
                    if len(found) >= count:
                        return found[count - 1]
                if not self._open or not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(
                        f"on {self.bus.kind}, {self.name} did not write {pattern!r}; it wrote {self._output}"
                    )

    def wait_for_bytes(self, count: int) -> bytes:
        """Wait until standard output has at least `count` bytes; returns all of it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._changed:
            while len(self._output["stdout"]) < count:
                if not self._open or not self._changed.wait(deadline - time.monotonic()):
                    raise AssertionError(
                        f"{self.name} wrote {len(self._output['stdout'])} bytes, not {count}"
                    )
            return self._output["stdout"]

    def wait(self, patience: float = PATIENCE_SECONDS) -> Outcome:
        """Wait until the program ends by itself."""
        status = self.process.wait(patience)
        self._finish()
        return Outcome(status, self.stdout_bytes, self.stderr)

    def stop(self, signal_number: int = signal.SIGTERM) -> Outcome:
        """End the program by its id, if it has not ended; returns what it left."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
            try:
                self.process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                self._finish()
                raise AssertionError(f"{self.name} ignored signal {signal_number}") from None
        self._finish()
        return Outcome(self.process.returncode, self.stdout_bytes, self.stderr)

    def _finish(self) -> None:
        for reader in self._readers:
            reader.join(PATIENCE_SECONDS)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def missing_packages(names: Sequence[str]) -> dict[str, str]:
    """Of these programs, those that are missing, with their Debian packages."""
    return {name: PACKAGES[name] for name in names if find_program(name) is None}
