"""What `kdbusctl` does on a real kdbusd: make buses and endpoints, talk, monitor."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.kdbusctl import (
    BUS,
    NAME,
    POOL,
    UID,
    Ctl,
    connect,
    controlling,
    interrupt,
    read_line,
    running_daemon,
)
from support.kdbusd import PATIENCE, Kdbusd

from busproxy.remarshal import build_gvariant
from busproxy.wire.gvariant import encode
from kdbus_core.errors import KdbusError
from kdbus_core.matches import BloomMask
from kdbus_core.transport.client import Connection, open_node


@pytest.fixture(scope="module")
def daemon() -> Iterator[Kdbusd]:
    """One daemon for all; each test connects anew."""
    yield from running_daemon()


@pytest.fixture
def ctl(daemon: Kdbusd) -> Iterator[Ctl]:
    yield from controlling(daemon)


@pytest.fixture
def connection(daemon: Kdbusd) -> Iterator[Connection]:
    """Somebody to look at."""
    with connect(daemon, description="looked-at") as connection:
        yield connection


def dbus_message(type: int, signature: str, values: list[Any], **fields: Any) -> bytes:
    """A D-Bus message as services on a bus send it."""
    body = encode(signature, values)
    return b"".join(build_gvariant(type, 1, signature=signature, body=body, **fields))


# Making


def test_a_bus_is_there_as_long_as_the_program(ctl: Ctl, daemon: Kdbusd) -> None:
    process = ctl.start("make-bus", "{uid}-mine", "--access=group", "--bloom-size=16", "--required=creds")
    node = daemon.node(f"{UID}-mine")
    assert read_line(process) == str(node)
    assert node.stat().st_mode & 0o777 == 0o660
    with open_node(node) as handle, handle.hello(pool_size=POOL) as connection:
        assert connection.bloom.size == 16
        assert interrupt(process) == 0
        assert connection.wait(PATIENCE)
        with pytest.raises(KdbusError, match="ESHUTDOWN"):
            connection.receive()
    assert not node.exists()


def test_an_endpoint_is_there_as_long_as_the_program(ctl: Ctl, daemon: Kdbusd) -> None:
    words = (f"--own={NAME}=user:{UID}", "--talk=org.example.*=world")
    process = ctl.start("make-endpoint", BUS, "{uid}-ours", "--json", *words)
    node = daemon.node(BUS, f"ep.{UID}-ours")
    assert json.loads(read_line(process)) == {"node": str(node)}
    with connect(daemon, f"ep.{UID}-ours") as connection:
        connection.name_acquire(NAME)
        with pytest.raises(KdbusError, match="EPERM"):
            connection.name_acquire("org.example.Other")
    assert interrupt(process, signal.SIGTERM) == 0


# Talking


class Echo(threading.Thread):
    """Answers one call, with its payload turned round unless there is another answer."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.heard: list[tuple[bytes, bool]] = []
        self.answer: bytes | None = None

    def run(self) -> None:
        assert self.connection.wait(PATIENCE)
        message = self.connection.receive()
        assert message is not None
        with message:
            self.heard.append((message.payload, message.is_signal))
            if message.expects_reply:
                answer = message.payload[::-1] if self.answer is None else self.answer
                self.connection.send(answer, destination=message.sender, cookie_reply=message.cookie)


@pytest.fixture
def echo(connection: Connection) -> Iterator[Echo]:
    """Somebody with a name who answers."""
    connection.name_acquire(NAME)
    thread = Echo(connection)
    thread.start()
    yield thread
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_call_prints_its_reply(ctl: Ctl, echo: Echo) -> None:
    out, _ = ctl.run("talk", NAME, "--payload=hello")
    assert out == f"reply from {echo.connection.id}: 5 B\nolleh\n"


def test_what_is_no_text_is_printed_in_hexadecimal(ctl: Ctl, echo: Echo) -> None:
    out, _ = ctl.run("talk", str(echo.connection.id), "--call", "--file=-", input=b"\x01\x02")
    assert out.splitlines()[1].startswith("00000000  02 01 ")


def test_a_reply_can_be_had_as_it_is(ctl: Ctl, echo: Echo, tmp_path: Path) -> None:
    file = tmp_path / "payload"
    file.write_bytes(b"abc\n")
    assert ctl.run("talk", NAME, f"--file={file}", "--raw")[0] == "\ncba"
    assert echo.heard == [(b"abc\n", False)]


def test_a_reply_can_be_had_as_json(ctl: Ctl, echo: Echo) -> None:
    reply = ctl.json("talk", NAME, "--payload=hello")
    assert (reply["kind"], reply["sender"], reply["size"]) == ("reply", echo.connection.id, 5)
    assert bytes.fromhex(reply["payload"]) == b"olleh"


def test_a_message_wants_no_reply(ctl: Ctl, echo: Echo) -> None:
    assert ctl.run("talk", NAME, "--message", "--payload=x") == ("", "")
    echo.join(PATIENCE)
    assert echo.heard == [(b"x", False)]


def test_a_signal_reaches_everybody_who_listens(ctl: Ctl, daemon: Kdbusd) -> None:
    with connect(daemon) as listener:
        listener.match_add(1, [BloomMask((b"\xff" * listener.bloom.size,))])
        ctl.run("talk", "*", "--signal", "--payload=all of you")
        assert listener.wait(PATIENCE)
        message = listener.receive()
        assert message is not None
        with message:
            assert (message.is_signal, message.payload) == (True, b"all of you")


def test_a_call_that_nobody_answers_ends(ctl: Ctl, connection: Connection) -> None:
    _, err = ctl.run("talk", str(connection.id), "--timeout=0.05", status=1)
    assert err == "kdbusctl: no reply within 0.05 seconds\n"


def test_whom_to_talk_to_may_be_said_as_d_bus_says_it(ctl: Ctl, echo: Echo) -> None:
    assert ctl.run("talk", f":1.{echo.connection.id}", "--payload=hello")[0].endswith("\nolleh\n")


def test_a_reply_of_d_bus_is_told_as_one(ctl: Ctl, echo: Echo) -> None:
    echo.answer = dbus_message(2, "sa{sv}", ["done", {"k": ("u", 7)}])
    out, _ = ctl.run("talk", NAME, "--payload=x")
    head, reply = out.splitlines()
    assert head == f"reply from {echo.connection.id}: {len(echo.answer)} B"
    assert reply == '("done", {"k": {"type": "u", "data": 7}})'


# Monitoring


def test_a_monitor_prints_a_line_for_each_message(ctl: Ctl, daemon: Kdbusd, connection: Connection) -> None:
    watching = ctl.start("monitor", "--bus", BUS)
    assert read_line(watching) == f"monitoring {daemon.node(BUS)}"
    with connect(daemon) as sender:
        assert re.fullmatch(rf"[\d:.]+ #\d+  connected id={sender.id}", read_line(watching))
        sender.name_acquire(NAME)
        assert f"name added name={NAME} old_id=0 new_id={sender.id}" in read_line(watching)
        cookie = sender.send(b"hello\n", destination=connection.id)
        line = read_line(watching)
        said = f"message {sender.id} ({NAME}) → {connection.id}  cookie {cookie}  6 B  "
        assert line.endswith(f'{said}"hello·"')
    assert interrupt(watching) == 0


def test_a_monitor_prints_json_and_ends_after_a_count(
    ctl: Ctl, daemon: Kdbusd, connection: Connection
) -> None:
    watching = ctl.start("monitor", "--json", "--count=2")
    assert json.loads(read_line(watching))["kind"] == "monitoring"
    with connect(daemon) as sender:
        told = json.loads(read_line(watching))
        assert told["notification"] == {"type": "connected", "id": sender.id}
        sender.send([b"\x00", b"\x01"], destination=connection.id, priority=-3)
        told = json.loads(read_line(watching))
        assert (told["kind"], told["sender"], told["destination"]) == ("message", sender.id, connection.id)
        assert (told["payload"], told["size"], told["priority"]) == ("0001", 2, -3)
        assert told["sender_process"]["pid"] == os.getpid()
    watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 0


def test_a_monitor_reads_d_bus(ctl: Ctl, daemon: Kdbusd, connection: Connection) -> None:
    call = {"path": "/a", "interface": "org.example.Iface", "member": "Frobnicate"}
    with connect(daemon) as sender:
        watching, as_json = ctl.start("monitor"), ctl.start("monitor", "--json")
        assert read_line(watching).startswith("monitoring ")
        assert json.loads(read_line(as_json))["kind"] == "monitoring"
        payload = dbus_message(1, "su", ["caf\xe9\x9b\n", 7], **call)
        sender.send(payload, destination=connection.id)
        said = r'/a org.example.Iface.Frobnicate("caf\u00e9\u009b\n", 7)'
        assert read_line(watching).endswith(f"  {len(payload)} B  {said}")
        told = json.loads(read_line(as_json))
        arguments = {"signature": "su", "arguments": ["caf\xe9\x9b\n", 7]}
        assert told["dbus"] == {"type": "method call", **call, **arguments}
        assert bytes.fromhex(told["payload"]) == payload
        sender.send(dbus_message(3, "", [], error_name="org.example.Bad"), destination=connection.id)
        assert read_line(watching).endswith("  error org.example.Bad()")
        sender.send(dbus_message(4, "ay", [bytes(1000)], **call), destination=connection.id)
        assert read_line(watching).endswith("0, 0,…)")


def test_a_monitor_tells_the_size_of_what_is_too_long_to_be_read(
    ctl: Ctl, daemon: Kdbusd, connection: Connection
) -> None:
    with connect(daemon) as sender:
        watching = ctl.start("monitor")
        assert read_line(watching).startswith("monitoring ")
        sender.send(dbus_message(4, "ay", [bytes(100_000)], path="/a", member="M"), destination=connection.id)
        assert read_line(watching).endswith("  97.7 KiB  /a M(ay …)")
