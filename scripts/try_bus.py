"""Show that the session bus works, with real clients, in a few lines; then hand it to the user.

`make run` starts this on a fresh bus. One dbus-next client owns a name and exports an object; a second one
calls it and gets its signal; then those of busctl, gdbus and dbus-send that are installed call it as well,
and a native kdbus program. Whatever goes wrong is said in a line and gives status 1.

With a terminal on both sides a shell follows on the same bus, on which the object stays; its status is not
ours, because a person may well leave a shell after a command that failed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from dbus_next import DBusError, Message
from dbus_next.aio import MessageBus
from greeter import INTERFACE, NAME, PATH, Greeter

from busproxy.native import connect

PATIENCE_SECONDS = 30.0
DRIVER = "org.freedesktop.DBus"
METHOD = f"{INTERFACE}.Greet"

CALL = [NAME, PATH, INTERFACE, "Greet"]
PROGRAMS = {
    "busctl": ["busctl", "--user", "--no-pager", "call", *CALL, "s", "busctl"],
    "gdbus": ["gdbus", "call", "--session", "-d", NAME, "-o", PATH, "-m", METHOD, "gdbus"],
    "dbus-send": [
        "dbus-send",
        "--session",
        "--print-reply",
        f"--dest={NAME}",
        PATH,
        METHOD,
        "string:dbus-send",
    ],
}
"""Programs that may be installed, and how each of them greets with its own name."""

SUGGESTIONS = {
    "busctl": f"busctl --user introspect {NAME} {PATH}",
    "gdbus": f"gdbus call --session --dest {NAME} --object-path {PATH} --method {METHOD} you",
    "dbus-send": f"dbus-send --session --print-reply --dest={NAME} {PATH} {METHOD} string:you",
}
"""What a user may try, the best first."""


class TrialError(Exception):
    """The bus did not do what it has to; the text says what."""


def say(who: str, text: str) -> None:
    """One line of the report."""
    print(f"  {who:<10}{text}", flush=True)


def check(expected: str, got: str, who: str) -> None:
    """Raise TrialError where a client got something else than it should."""
    if expected not in got:
        raise TrialError(f"{who} got {got!r} instead of {expected!r}")


async def describe_bus(client: MessageBus) -> str:
    """The process that answers as the bus."""
    question = Message(
        destination=DRIVER,
        path="/org/freedesktop/DBus",
        interface=DRIVER,
        member="GetConnectionUnixProcessID",
        signature="s",
        body=[DRIVER],
    )
    reply = await client.call(question)
    if reply is None or not reply.body:
        raise TrialError(f"the bus did not say which process it is: {reply}")
    pid = reply.body[0]
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return f"process {pid}, {' '.join(words).strip()}"


async def try_dbus_next(service: MessageBus, client: MessageBus) -> None:
    """Own a name, export an object, call it from another connection, get its signal there."""
    service.export(PATH, Greeter())
    await service.request_name(NAME)
    say("dbus-next", f"{service.unique_name} owns the name {NAME} and exports {PATH}")
    proxy: Any = client.get_proxy_object(NAME, PATH, await client.introspect(NAME, PATH))
    greeter = proxy.get_interface(INTERFACE)
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_greeted(who: str) -> None:
        if not heard.done():
            heard.set_result(who)

    greeter.on_greeted(on_greeted)
    # The rule for the signal is sent without waiting for its answer; another call's answer comes after it.
    await client.introspect(DRIVER, "/org/freedesktop/DBus")
    answer = await greeter.call_greet("dbus-next")
    check("Hello, dbus-next!", answer, "dbus-next")
    say("dbus-next", f"{client.unique_name} called Greet, the answer: {answer}")
    signalled = await heard
    check("dbus-next", signalled, "the signal's receiver")
    say("dbus-next", f"{client.unique_name} got the signal Greeted({signalled!r})")


async def try_programs() -> None:
    """Call the object with every program that is installed."""
    for name, command in PROGRAMS.items():
        if shutil.which(name) is None:
            say(name, "is not installed, not tried")
            continue
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        text = output.decode(errors="replace").strip()
        if process.returncode:
            raise TrialError(f"{name} ended with status {process.returncode}: {text}")
        check(f"Hello, {name}!", text, name)
        say(name, f"called Greet, the answer: {text.splitlines()[-1].strip()}")


async def try_native() -> None:
    """Call the object from the native side, where this bus has one."""
    directory = os.environ.get("KDBUS_DIRECTORY")
    if directory is None:
        return
    (node,) = Path(directory).glob("*/bus")
    async with await connect(node) as bus:
        (answer,) = await bus.call(NAME, PATH, INTERFACE, "Greet", "s", "native")
        check("Hello, native!", answer, "the native client")
        say("native", f"{bus.unique_name} called Greet by way of {node}, the answer: {answer}")


async def run_shell() -> None:
    """A shell on this bus until the user leaves it; the object goes on answering."""
    shell = os.environ.get("SHELL") or shutil.which("sh") or "/bin/sh"
    if shutil.which(shell) is None:
        shell = "/bin/sh"
    installed = [text for name, text in SUGGESTIONS.items() if shutil.which(name)]
    print("\nThis is a shell on that bus; the greeter stays. Leave with `exit` or Ctrl-D: the bus ends too.")
    print(f"Try: {installed[0] if installed else 'python -m dbus_next --help'}", flush=True)
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    # Ctrl-C in the shell is meant for what runs there.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = await asyncio.create_subprocess_exec(
        shell, env={**os.environ, "PATH": path}, preexec_fn=allow_interrupts
    )
    await process.wait()


def allow_interrupts() -> None:
    """In the child: undo what this process ignores and exec would keep ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def within(seconds: float, work: Awaitable[None]) -> None:
    """Wait for work, but not for ever."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        raise TrialError(f"no answer for {seconds:g} seconds") from None


async def main() -> int:
    """The whole trial; returns the exit status."""
    if "DBUS_SESSION_BUS_ADDRESS" not in os.environ:
        print("There is no session bus here: start this with `busproxy run`.", file=sys.stderr)
        return 2

    async def trial() -> None:
        await service.connect()
        await client.connect()
        print(f"A bus is up at {os.environ['DBUS_SESSION_BUS_ADDRESS']}")
        say("the bus", await describe_bus(client))
        await try_dbus_next(service, client)
        await try_programs()
        await try_native()

    service, client = MessageBus(), MessageBus()
    try:
        await within(PATIENCE_SECONDS, trial())
        print("It works.", flush=True)
        if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
            await run_shell()
    except (TrialError, DBusError, OSError, EOFError) as error:
        print(f"The bus does not work: {error or type(error).__name__}", file=sys.stderr)
        return 1
    finally:
        client.disconnect()
        service.disconnect()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
