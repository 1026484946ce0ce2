"""`busproxy run`: a private bus for one command, as dbus-run-session does it.

The bus is a `busproxyd` of its own; the command finds it through the usual
environment variables.  When the command has ended, or cannot be started, the
bus is ended too, whatever the command left behind on it.  Signals that would
end this program are passed on to the command.

With `--native` native programs get onto the same bus: the command finds the
directory of its sockets in KDBUS_DIRECTORY, as `kdbusctl` does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from types import FrameType

NOT_FOUND = 127
NOT_EXECUTABLE = 126

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


class BusError(Exception):
    """The bus did not start; the daemon has said why on standard error."""


@contextlib.contextmanager
def private_bus(config: Sequence[str]) -> Iterator[str]:
    """A bus for as long as the context lasts; gives its address."""
    receive, send = os.pipe()
    with open(receive, encoding="utf-8") as answer:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "busproxy.daemon", *config, "--nofork", f"--print-address={send}"],
            pass_fds=(send,),
            stdin=subprocess.DEVNULL,
            process_group=0,  # what is typed at the terminal is for the command
        )
        os.close(send)
        try:
            address = answer.readline().strip()
            if not address:
                raise BusError
            yield address
        finally:
            daemon.terminate()
            daemon.wait()


def exit_status(returncode: int) -> int:
    """A child's status as a shell gives it: 128 and the signal's number if one ended it."""
    return 128 - returncode if returncode < 0 else returncode


def _run_command(command: Sequence[str], address: str, directory: str | None) -> int:
    environment = {
        **os.environ,
        "DBUS_SESSION_BUS_ADDRESS": address,
    }
    environment.pop("KDBUS_DIRECTORY", None)
    if directory is not None:
        environment["KDBUS_DIRECTORY"] = directory
    for name in ("DBUS_SESSION_BUS_PID", "DBUS_SESSION_BUS_WINDOWID", "DBUS_STARTER_ADDRESS"):
        environment.pop(name, None)
    environment.pop("DBUS_STARTER_BUS_TYPE", None)
    try:
        child = subprocess.Popen(command, env=environment)
    except FileNotFoundError as error:
        print(f"busproxy: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND
    except OSError as error:
        print(f"busproxy: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_EXECUTABLE

    def pass_on(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        return exit_status(child.wait())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(words: Sequence[str]) -> int:
    """`busproxy run`: returns the command's exit status."""
    rest = list(words)
    config = ["--session"]
    is_native = False
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--config-file="):
            config = [word]
        elif word == "--config-file" and rest:
            config = [f"--config-file={rest.pop(0)}"]
        elif word == "--native":
            is_native = True
        else:
            print(f"busproxy run: unknown option {word}", file=sys.stderr)
            return 2
    if not rest:
        print("busproxy run: no command given", file=sys.stderr)
        return 2
    try:
        with contextlib.ExitStack() as stack:
            directory = None
            if is_native:
                place = stack.enter_context(tempfile.TemporaryDirectory(prefix="busproxy-"))
                directory = os.path.join(place, "kdbus")
                config.append(f"--native={directory}")
            address = stack.enter_context(private_bus(config))
            return _run_command(rest, address, directory)
    except BusError:
        print("busproxy run: the bus did not start", file=sys.stderr)
        return 1
