"""A private kdbusd for tests: a domain in a short directory of its own, started and ended as one thing.

Readiness is the line on a pipe, never a delay.  Signals have their answer too: a reload is over when the
notification socket says so.  `stop` ends the process by its id and insists that it went with status 0 and
left no file behind.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from support.bus import REPOSITORY, clean_environment

PATIENCE = 30.0
"""Seconds for what takes no time on a fast machine."""


class Kdbusd:
    """A running kdbusd; `home` is its place, `directory` the domain in it."""

    def __init__(
        self,
        config: str | None = None,
        *,
        options: Sequence[str] = (),
        home: Path | None = None,
        is_ready: bool = True,
        wrapper: Sequence[str] = (),
    ) -> None:
        """Start with the text of a configuration; wait until it is ready, unless that is not expected.

        With the `home` of another one, which has to end later, it gets the same directory.  A `wrapper` is
        a command that becomes what it is given, as setpriv does.
        """
        self._owns_home = home is None
        self.home = Path(tempfile.mkdtemp(prefix="kd-")) if home is None else home
        self.home.chmod(0o755)  # others may be let in
        self.directory = self.home / "k"
        self.config = self.home / "kdbusd.toml"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.settimeout(PATIENCE)
        notify_path = self.home / f"notify-{os.urandom(4).hex()}"
        self._notify.bind(str(notify_path))
        program = [*wrapper, sys.executable, "-m", "kdbus_core.daemon"]
        words = [*program, f"--directory={self.directory}", *options]
        if config is not None:
            self.config.write_text(config)
            words.append(f"--config={self.config}")
        reader, writer = os.pipe()
        environment = clean_environment(self.home)
        environment.update(PYTHONPATH=str(REPOSITORY), NOTIFY_SOCKET=str(notify_path))
        self._stderr_path = self.home / f"stderr-{os.urandom(4).hex()}"
        try:
            with self._stderr_path.open("wb") as stderr:
                self.process = subprocess.Popen(
                    [*words, f"--print-ready-fd={writer}"],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    pass_fds=[writer],
                )
        finally:
            os.close(writer)
        with open(reader, "rb", buffering=0) as ready:
            if is_ready:
                self._wait_ready(ready.fileno())

    def _wait_ready(self, fd: int) -> None:
        deadline = time.monotonic() + PATIENCE
        text = b""
        while not text.endswith(b"\n"):
            readable, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(fd, 4096) if readable else b""
            if not chunk:
                said = self.stderr()
                self.discard()
                raise AssertionError(f"kdbusd was not ready:\n{said}")
            text += chunk
        assert text.decode().strip() == str(self.directory)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def control(self) -> Path:
        return self.directory / "control"

    def node(self, bus: str, endpoint: str = "bus") -> Path:
        """The socket of an endpoint."""
        return self.directory / bus / endpoint

    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return self._stderr_path.read_text(errors="replace")

    def news(self) -> str:
        """The next that it tells its service manager."""
        return self._notify.recv(4096).decode()

    def reload(self, config: str) -> None:
        """Have it read another configuration, and wait until it has."""
        self.config.write_text(config)
        self.process.send_signal(signal.SIGHUP)
        while not self.news().startswith("RELOADING=1"):
            pass
        assert self.news() == "READY=1"

    def count_fds(self) -> int:
        """How many descriptors it holds now."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def wait(self) -> int:
        """Its exit status, once it has ended by itself."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"kdbusd did not end:\n{self.stderr()}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it with a signal; it goes with status 0 and takes its files along."""
        try:
            if self.process.poll() is not None:
                raise AssertionError(f"kdbusd ended early:\n{self.stderr()}")
            self.process.send_signal(number)
            status = self.wait()
            assert status == 0, f"kdbusd ended with status {status}:\n{self.stderr()}"
            assert not list(self.directory.rglob("*")), f"left behind: {sorted(self.directory.rglob('*'))}"
        finally:
            self.discard()

    def kill(self) -> None:
        """End it without a chance to clean up; the directory stays."""
        self.process.kill()
        self.process.wait()

    def discard(self) -> None:
        """Give everything up, whatever became of it."""
        if self.process.poll() is None:
            self.kill()
        self._notify.close()
        if self._owns_home:
            shutil.rmtree(self.home, ignore_errors=True)
