"""Processes by the dozen: one that has everything loaded, and forks a worker whenever it is asked to.

Run as a program with a socket as its standard input. Each request is a packet with a worker's name and its
arguments, and the descriptor that the worker's reports go to; the answer is its pid. A pid stays the
worker's until `reap` is asked for, so whoever kills it kills nobody else.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from support.bus import REPOSITORY

PATIENCE_SECONDS = 40.0


class Worker:
    """A forked process; its reports are one JSON value a line."""

    def __init__(self, nursery: Nursery, pid: int, reports: int) -> None:
        self.pid = pid
        self._nursery = nursery
        self._reports = reports
        self._data = b""
        self._is_reaped = False

    def report(self) -> Any:
        """The next report; `EOFError` when the worker has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\n" not in self._data:
            readable, _, _ = select.select([self._reports], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"worker {self.pid} says nothing"
            chunk = os.read(self._reports, 65536)
            if not chunk:
                raise EOFError
            self._data += chunk
        line, _, self._data = self._data.partition(b"\n")
        value = json.loads(line)
        if isinstance(value, dict) and "failed" in value:
            raise AssertionError(f"worker {self.pid} has failed:\n{value['failed']}")
        return value

    def reports(self) -> Iterator[Any]:
        """All reports up to its end."""
        with suppress(EOFError):
            while True:
                yield self.report()

    def kill(self) -> None:
        """End it on the spot."""
        os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Wait for its end; its status as waitpid(2) has it."""
        self._is_reaped = True
        os.close(self._reports)
        return int(self._nursery.ask({"reap": self.pid}))

    def discard(self) -> None:
        """Be rid of it, whatever state it is in."""
        if not self._is_reaped:
            self.kill()
            self.reap()


class Nursery:
    """The process that forks; ends with its `with` block, and so do its workers."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE_SECONDS)
        environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "support.native_programs.nursery"],
                stdin=theirs.fileno(),
                env=environment,
            )
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.discard()
        self._socket.close()
        self._process.wait(PATIENCE_SECONDS)

    def ask(self, request: Any, fds: tuple[int, ...] = ()) -> Any:
        """One request and its answer."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], list(fds))
        return json.loads(self._socket.recv(4096))

    def start(self, worker: str, **arguments: Any) -> Worker:
        """Fork a worker."""
        reader, writer = os.pipe()
        try:
            pid = self.ask({"run": worker, "arguments": arguments}, (writer,))
        finally:
            os.close(writer)
        started = Worker(self, pid, reader)
        self._workers.append(started)
        return started


def _work(name: str, arguments: dict[str, Any], reports: int) -> None:
    from support.native_programs.workers import WORKERS

    def report(value: Any) -> None:
        data = json.dumps(value).encode() + b"\n"
        while data:
            data = data[os.write(reports, data) :]

    try:
        WORKERS[name](report, **arguments)
    except BaseException:
        report({"failed": traceback.format_exc()})


def main() -> None:
    """Fork workers until nobody asks any more."""
    import support.native_programs.workers  # noqa: F401 - loaded here, for all who are forked

    requests = socket.socket(fileno=os.dup(0))
    gc.freeze()
    while True:
        data, fds, _, _ = socket.recv_fds(requests, 65536, 1)
        if not data:
            return
        request = json.loads(data)
        if "reap" in request:
            _, status = os.waitpid(request["reap"], 0)
            requests.send(json.dumps(status).encode())
            continue
        pid = os.fork()
        if pid == 0:
            try:
                requests.close()
                _work(request["run"], request["arguments"], fds[0])
            finally:
                os._exit(0)
        os.close(fds[0])
        requests.send(json.dumps(pid).encode())


if __name__ == "__main__":
    main()
