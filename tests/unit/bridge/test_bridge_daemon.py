"""`busproxyd --native DIR` as a process: the directory, its end, and a conversation between both kinds."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bus import BUSPROXYD, REPOSITORY, Bus, build_session_config, command_line, start_bus
from support.raw import METHOD_CALL, METHOD_RETURN, NO_REPLY_EXPECTED, Message, RawClient

from busproxy.native import DBusError, connect
from busproxy.options import Options, UsageError, parse_options

NAME = "org.example.Echo"
PATIENCE_SECONDS = 30.0


@pytest.fixture(params=["asyncio", "uvloop"])
def bus(request: pytest.FixtureRequest) -> Iterator[Bus]:
    """A bus open to native peers, with either loop."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    bus = start_bus(BUSPROXYD, arguments=["--native={directory}/native", f"--loop={request.param}"])
    yield bus
    bus.stop()


def node_of(bus: Bus) -> Path:
    (node,) = bus.directory.glob("native/*/bus")
    return node


def run_to_its_end(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A daemon that cannot start."""
    with tempfile.TemporaryDirectory(prefix="bus-") as directory:
        config = Path(directory) / "bus.conf"
        config.write_text(build_session_config(Path(directory)))
        return subprocess.run(
            command_line(BUSPROXYD, [f"--config-file={config}", "--nofork", *arguments]),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )


# Options


def parse(*words: str) -> Options:
    return parse_options(["--session", *words], find_config=lambda kind: f"/etc/{kind}.conf")


@pytest.mark.parametrize("words", [["--native=/run/native"], ["--native", "/run/native"]])
def test_the_directory_stands_after_equals_or_in_the_next_word(words: list[str]) -> None:
    assert parse(*words).native == "/run/native"
    assert parse().native is None


def test_a_relative_directory_is_where_the_daemon_was_started() -> None:
    assert parse("--native=here").native == os.path.join(os.getcwd(), "here")


@pytest.mark.parametrize("words", [["--native"], ["--native="], ["--native=/a", "--native=/b"]])
def test_native_peers_need_one_directory(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(*words)


# The directory


def test_the_bus_is_found_by_its_name_and_its_node_is_its_owners(bus: Bus) -> None:
    node = node_of(bus)
    assert node.parent.name == f"{os.getuid()}-session"
    assert node.is_socket()
    assert node.stat().st_mode & 0o777 == 0o600
    assert str(node) in bus.stderr_text()


def test_two_daemons_do_not_share_a_directory(bus: Bus) -> None:
    ended = run_to_its_end(f"--native={bus.directory}/native")
    assert ended.returncode == 1
    assert "is open to native peers of another bus" in ended.stderr
    assert node_of(bus).is_socket()


def test_a_directory_that_cannot_be_made_is_a_clear_error() -> None:
    ended = run_to_its_end("--native=/proc/nowhere")
    assert ended.returncode == 1
    assert 'Cannot open "/proc/nowhere" to native peers' in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_daemon_without_native_peers_loads_nothing_for_them() -> None:
    code = (
        "import sys, busproxy.daemon.bus\n"
        "for name in ('bridge', 'remarshal', 'match_entries'):\n"
        "    assert 'busproxy.' + name not in sys.modules, name\n"
        "assert not any(name.startswith('kdbus_core.transport') for name in sys.modules)\n"
    )
    subprocess.run([*command_line(BUSPROXYD, [])[:1], "-c", code], cwd=REPOSITORY, check=True, timeout=60)


def test_nothing_is_left_in_the_directory_and_peers_are_told_of_the_end() -> None:
    bus = start_bus(BUSPROXYD, arguments=["--native={directory}/native"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as handle, bus.connect() as client:
        handle.connect(str(node_of(bus)))
        handle.settimeout(PATIENCE_SECONDS)
        client.sync()
        directory = bus.directory / "native"
        bus.process.terminate()
        assert bus.process.wait(PATIENCE_SECONDS) == 0
        assert not list(directory.glob("**/*")) or not directory.exists()
        assert handle.recv(1) == b""
        bus._discard()


# A conversation


class LegacyEcho:
    """A classic client that answers calls with what it was called with, in a thread of its own."""

    def __init__(self, bus: Bus) -> None:
        self.client = RawClient(bus.address)
        self.client.reply("RequestName", "su", NAME, 4)

    def serve_one(self) -> str:
        while True:
            message = self.client.receive()
            if message.type == METHOD_CALL:
                break
        fields = {
            "destination": message.fields["sender"],
            "reply_serial": message.serial,
            "signature": message.fields["signature"],
        }
        self.client.send(Message(METHOD_RETURN, flags=NO_REPLY_EXPECTED, fields=fields, body=message.body))
        return str(message.fields["sender"])


async def ask_legacy(node: str, echo: LegacyEcho) -> None:
    async with await connect(node) as native:
        serving = asyncio.get_running_loop().run_in_executor(None, echo.serve_one)
        values = await native.call(NAME, "/", "org.example.Echo", "Echo", "sau", "text", [1, 2, 3])
        assert list(values) == ["text", [1, 2, 3]]
        assert await serving == native.unique_name


def test_a_native_program_calls_a_classic_one(bus: Bus) -> None:
    echo = LegacyEcho(bus)
    try:
        asyncio.run(asyncio.wait_for(ask_legacy(str(node_of(bus)), echo), PATIENCE_SECONDS))
    finally:
        echo.client.close()


async def serve_legacy(node: str, bus: Bus) -> None:
    def echo(text: str) -> str:
        if not text:
            raise DBusError("org.example.Error.Empty", "nothing to say")
        return text

    def ask() -> list[Any]:
        with RawClient(bus.address) as client:
            answers = []
            for text in ("text", ""):
                serial = client.send(
                    Message(
                        METHOD_CALL,
                        fields={
                            "path": "/echo",
                            "interface": "org.example.Echo",
                            "member": "Echo",
                            "destination": NAME,
                            "signature": "s",
                        },
                        body=[text],
                    )
                )
                *_, reply = client.until_reply(serial)
                answers.append((reply.error_name, reply.body))
            return answers

    async with await connect(node) as native:
        native.export("/echo", "org.example.Echo", {"Echo": ("s", "s", echo)})
        await native.request_name(NAME)
        answers = await asyncio.get_running_loop().run_in_executor(None, ask)
    assert answers == [(None, ["text"]), ("org.example.Error.Empty", ["nothing to say"])]


def test_a_classic_program_calls_a_native_one(bus: Bus) -> None:
    asyncio.run(asyncio.wait_for(serve_legacy(str(node_of(bus)), bus), PATIENCE_SECONDS))
