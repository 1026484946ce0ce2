"""The SASL server beside dbus-daemon's: the same bytes, cut in many ways, must get the same answers.

dbus-daemon runs privately with all mechanisms on; GUIDs and what is random in cookie challenges are left out
of the comparison. How a conversation ended is made visible: one that goes on is asked one more question, one
that has begun is greeted with Hello, and one that our server has given up must be closed by dbus-daemon too.
"""

from __future__ import annotations

import os
import pwd
import random
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from hashlib import sha1
from itertools import pairwise
from pathlib import Path

import pytest
from support.bus import DBUS_DAEMON, Bus, start_bus
from support.programs import require_program
from support.raw import DRIVER, DRIVER_PATH, METHOD_CALL, Message, build_message, parse_message

from busproxy.transport.keyring import Keyring
from busproxy.wire.sasl import MECHANISMS, SaslServer

pytestmark = pytest.mark.program("dbus-daemon")

PATIENCE_SECONDS = 20.0
GUID = "0123456789abcdef0123456789abcdef"
CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={directory}/socket</listen>
  <allow_anonymous/>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""
PROBE = b"CANCEL and then\r\n"
HELLO = build_message(
    Message(
        METHOD_CALL,
        0,
        1,
        {"path": DRIVER_PATH, "interface": DRIVER, "member": "Hello", "destination": DRIVER},
    )
)

ME = str(os.getuid()).encode().hex()
OTHER = str(os.getuid() + 1).encode().hex()


def line(*words: str | bytes) -> bytes:
    return b" ".join(word if isinstance(word, bytes) else word.encode() for word in words) + b"\r\n"


def external(identity: str | bytes) -> bytes:
    return line("AUTH EXTERNAL", (identity if isinstance(identity, bytes) else identity.encode()).hex())


BEGUN = {
    "libdbus": line("AUTH EXTERNAL", ME) + line("NEGOTIATE_UNIX_FD") + line("BEGIN"),
    "sd-bus": line("AUTH EXTERNAL") + line("DATA") + line("NEGOTIATE_UNIX_FD") + line("BEGIN"),
    "gdbus": line("AUTH") + line("AUTH EXTERNAL") + line("DATA") + line("NEGOTIATE_UNIX_FD") + line("BEGIN"),
    "ruby-dbus": line("AUTH EXTERNAL", OTHER)
    + line("AUTH DBUS_COOKIE_SHA1")
    + line("AUTH NTLM")
    + line("AUTH EXTERNAL")
    + line("DATA")
    + line("BEGIN"),
    "no fds": line("AUTH EXTERNAL", ME) + line("BEGIN"),
    "fds twice": line("AUTH EXTERNAL", ME) + line("NEGOTIATE_UNIX_FD") * 2 + line("BEGIN"),
    "anonymous": line("AUTH ANONYMOUS") + line("BEGIN"),
    "anonymous with trace": line("AUTH ANONYMOUS", b"me@here".hex())
    + line("NEGOTIATE_UNIX_FD")
    + line("BEGIN"),
    "second thoughts": line("AUTH EXTERNAL", ME)
    + line("CANCEL")
    + line("AUTH EXTERNAL")
    + line("DATA")
    + line("BEGIN"),
    "asked twice": line("AUTH EXTERNAL")
    + line("DATA")
    + line("CANCEL")
    + line("AUTH EXTERNAL")
    + line("DATA")
    + line("BEGIN"),
    "an error after OK": line("AUTH EXTERNAL", ME)
    + line("ERROR")
    + line("AUTH EXTERNAL", ME)
    + line("BEGIN"),
    "begin with words": line("AUTH EXTERNAL", ME) + line("BEGIN the", "beguine"),
    "identity in data": line("AUTH EXTERNAL") + line("DATA", ME) + line("BEGIN"),
    "bad hex first": line("AUTH EXTERNAL 0x")
    + line("AUTH EXTERNAL")
    + line("DATA zz")
    + line("DATA")
    + line("BEGIN"),
}
OPEN = {
    "list": line("AUTH"),
    "list with blanks": line("AUTH \t"),
    "identity in octal": external("0" + oct(os.getuid())[2:]),
    "identity in hex": external(hex(os.getuid())),
    "identity with a sign": external(f" +{os.getuid()}"),
    "negative identity": external(f"-{(1 << 64) - os.getuid()}"),
    "identity minus zero": external("-0"),
    "identity minus one": external("-1"),
    "identity beyond 64 bits": external(str((1 << 64) + os.getuid())),
    "identity beyond 32 bits": external(str((1 << 32) + os.getuid())),
    "identity with a blank": external(f"{os.getuid()} "),
    "identity with NUL": external(f"{os.getuid()}\0"),
    "identity with a letter": external(f"{os.getuid()}x"),
    "unknown user": external("nobody-of-that-name"),
    "upper-case hex": line("AUTH EXTERNAL", b"jurgen\xfc".hex().upper()),
    "odd digits": line("AUTH EXTERNAL 3") + line("AUTH EXTERNAL 303"),
    "wrong identity": line("AUTH EXTERNAL", OTHER) + line("AUTH EXTERNAL") + line("DATA", OTHER),
    "spare blanks": line("AUTH \t EXTERNAL\t\t" + ME),
    "blank at the end": line("AUTH EXTERNAL", ME + " "),
    "two identities": line("AUTH EXTERNAL", ME, ME),
    "lower case": line("auth external") + line("AUTH external"),
    "blank first": line(" AUTH"),
    "empty lines": line() * 5,
    "newlines only": b"AUTH\nAUTH\n\r\n",
    "carriage returns": b"AUTH\r\r\n\rAUTH\r\n",
    "not ascii": line(b"AUTH \x80") + line(b"A\0UTH") + line(b"\xff"),
    "server's words": line("OK", GUID) + line("REJECTED") + line("AGREE_UNIX_FD"),
    "all before auth": line("DATA") + line("CANCEL") + line("NEGOTIATE_UNIX_FD") + line("ERROR") + line("X"),
    "all during auth": line("AUTH EXTERNAL")
    + line("AUTH")
    + line("NEGOTIATE_UNIX_FD")
    + line("X")
    + line("DATA zz"),
    "all after auth": line("AUTH EXTERNAL", ME)
    + line("AUTH EXTERNAL")
    + line("DATA")
    + line("X")
    + line("ERROR"),
    "cancel during": line("AUTH EXTERNAL") + line("CANCEL") + line("DATA"),
    "error during": line("AUTH EXTERNAL") + line("ERROR no") + line("DATA"),
    "anonymous with bad utf-8": line("AUTH ANONYMOUS ff")
    + line("AUTH ANONYMOUS 00")
    + line("AUTH ANONYMOUS eda080"),
    "anonymous with bad hex": line("AUTH ANONYMOUS f") + line("AUTH ANONYMOUS g"),
    "cookie of nobody": line("AUTH DBUS_COOKIE_SHA1") + line("AUTH DBUS_COOKIE_SHA1", OTHER),
    "cookie of an unknown user": line("AUTH DBUS_COOKIE_SHA1", b"nobody-of-that-name".hex()),
    "five rejections": line("AUTH") * 5,
    "errors are no rejections": line("X") * 20,
}
CLOSED = {
    "six rejections": line("AUTH") * 6,
    "more than six rejections": line("AUTH EXTERNAL", OTHER) * 9,
    "begin before auth": line("BEGIN"),
    "begin after a rejection": line("AUTH") + line("BEGIN") + line("AUTH"),
    "begin during auth": line("AUTH EXTERNAL") + line("BEGIN"),
    "begin after a cancel": line("AUTH EXTERNAL", ME) + line("CANCEL") + line("BEGIN"),
}
FLOODS = {
    "a line of 16 KiB": b"X" * (16 * 1024) + b"\r\n",
    "a line without end": b"X" * 20_000,
    "16 KiB of answers": line() * 2000,
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    # Its cookies shall not go to the keyring of the user who runs the tests.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        bus = start_bus(DBUS_DAEMON, config=CONFIG)
        try:
            yield bus
        finally:
            bus.stop()


def connect(bus: Bus) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE_SECONDS)
    client.connect(str(bus.directory / "socket"))
    return client


def receive_all(client: socket.socket) -> bytes:
    """Everything up to the end of the stream, also when it is a hard one."""
    received = bytearray()
    with suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            received += chunk
    return bytes(received)


def send_all(client: socket.socket, pieces: list[bytes]) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        for piece in pieces:
            client.sendall(piece)


def ask_dbus_daemon(bus: Bus, pieces: list[bytes], *, wait_for_end: bool) -> bytes:
    """The whole answer; unless dbus-daemon is to close by itself, it is told that nothing more will come."""
    with closing(connect(bus)) as client:
        send_all(client, pieces)
        if not wait_for_end:
            with suppress(OSError):
                client.shutdown(socket.SHUT_WR)
        return receive_all(client)


class NoCookies:
    """Stands for the keyring where no conversation gets as far as a challenge."""

    context = "org_freedesktop_general"
    uid = os.getuid()

    def choose_cookie(self) -> int:
        raise AssertionError("no conversation here gets that far")

    def cookie_secret(self, cookie_id: int) -> str | None:
        raise AssertionError("no conversation here gets that far")

    def new_challenge(self) -> str:
        raise AssertionError("no conversation here gets that far")


def look_up_user(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def make_server() -> SaslServer:
    return SaslServer(
        guid=GUID,
        mechanisms=MECHANISMS,
        peer_uid=os.getuid(),
        resolve_user=look_up_user,
        cookies=NoCookies(),
    )


def without_guid(answer: bytes) -> bytes:
    return re.sub(rb"OK [0-9a-f]{32}\r\n", b"OK <guid>\r\n", answer)


def cut(data: bytes, how: str) -> list[bytes]:
    if how == "whole":
        return [data]
    if how == "bytes":
        return [data[index : index + 1] for index in range(len(data))]
    if how == "lines":
        return [data[:1], *data[1:].splitlines(keepends=True)]
    chance = random.Random(how)
    borders = sorted({0, len(data), *(chance.randrange(len(data)) for _ in range(6))})
    return [data[start:end] for start, end in pairwise(borders)]


CUTS = ("whole", "bytes", "lines", "at random", "at random again")


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("name", OPEN)
def test_a_conversation_that_goes_on(daemon: Bus, name: str, how: str) -> None:
    pieces = cut(b"\0" + OPEN[name] + PROBE, how)
    server = make_server()
    expected = b"".join(map(server.feed, pieces))
    assert server.failed is None
    assert not server.begun
    assert without_guid(ask_dbus_daemon(daemon, pieces, wait_for_end=False)) == without_guid(expected)


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("name", BEGUN)
def test_a_conversation_that_begins(daemon: Bus, name: str, how: str) -> None:
    pieces = cut(b"\0" + BEGUN[name] + HELLO, how)
    server = make_server()
    expected = without_guid(b"".join(map(server.feed, pieces)))
    assert server.leftover == HELLO
    with closing(connect(daemon)) as client:
        send_all(client, pieces)
        answer = b""
        while parse_message(messages := without_guid(answer)[len(expected) :]) is None:
            chunk = client.recv(65536)
            assert chunk, "dbus-daemon closed the connection"
            answer += chunk
    assert without_guid(answer)[: len(expected)] == expected
    parsed = parse_message(messages)
    assert parsed is not None
    assert parsed[0].fields["reply_serial"] == 1
    assert parsed[0].error_name is None


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("name", CLOSED)
def test_a_conversation_that_is_closed(daemon: Bus, name: str, how: str) -> None:
    pieces = cut(b"\0" + CLOSED[name], how)
    server = make_server()
    expected = b"".join(map(server.feed, pieces))
    assert server.failed is not None
    assert without_guid(ask_dbus_daemon(daemon, pieces, wait_for_end=True)) == without_guid(expected)


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_closed_at_the_same_byte(daemon: Bus, name: str) -> None:
    data = b"\0" + FLOODS[name]
    server = make_server()
    expected = server.feed(data)
    assert server.failed is not None
    assert ask_dbus_daemon(daemon, [data], wait_for_end=True) == expected


@pytest.mark.parametrize("first", [b"X", b"AUTH EXTERNAL\r\n", b"\r\n"])
def test_without_nul_there_is_no_conversation(daemon: Bus, first: bytes) -> None:
    server = make_server()
    assert server.feed(first) == b""
    assert server.failed is not None
    assert ask_dbus_daemon(daemon, [first], wait_for_end=True) == b""


def test_our_keyring_reads_the_cookies_of_dbus_daemon(daemon: Bus) -> None:
    with closing(connect(daemon)) as client:
        client.sendall(b"\0" + line("AUTH DBUS_COOKIE_SHA1", ME))
        reader = client.makefile("rb")
        with closing(reader):
            word, data = reader.readline().split()
            context, cookie_id, challenge = bytes.fromhex(data.decode()).decode().split()
            assert word == b"DATA"
            keyring = Keyring(Path(os.environ["HOME"], ".dbus-keyrings"), context=context)
            assert keyring.choose_cookie() == int(cookie_id), "a fresh cookie is used again"
            secret = keyring.cookie_secret(int(cookie_id))
            answer = sha1(f"{challenge}:c0ffee:{secret}".encode()).hexdigest()
            client.sendall(line("DATA", f"c0ffee {answer}".encode().hex()))
            assert re.fullmatch(rb"OK [0-9a-f]{32}\r\n", reader.readline())


@pytest.mark.program("dbus-send")
def test_dbus_send_answers_our_cookie_challenge(tmp_path: Path) -> None:
    server = SaslServer(
        guid=GUID,
        mechanisms=("DBUS_COOKIE_SHA1",),
        peer_uid=os.getuid(),
        resolve_user=look_up_user,
        cookies=Keyring(tmp_path / ".dbus-keyrings"),
    )

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with closing(connection):
            connection.settimeout(PATIENCE_SECONDS)
            while not server.begun and server.failed is None and (data := connection.recv(65536)):
                connection.sendall(server.feed(data))

    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.settimeout(PATIENCE_SECONDS)
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        command = [
            require_program("dbus-send"),
            f"--bus=unix:path={tmp_path}/socket",
            "/",
            "com.example.I.Member",
        ]
        environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        subprocess.run(command, env=environment, capture_output=True, check=False, timeout=PATIENCE_SECONDS)
        thread.join()
    assert server.begun, list(server.log)
    assert (server.mechanism, server.uid) == ("DBUS_COOKIE_SHA1", os.getuid())
