"""`kdbusctl` against a real kdbusd: each verb in columns and as JSON, with and without the owner's rights.

Whoever is looked at is connected from the test's own process, so that its pid and uid are known.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NoReturn

import pytest
from support.bus import REPOSITORY, clean_environment
from support.kdbusd import PATIENCE, Kdbusd

from kdbus_core.abi import MATCH_ANY, HelloFlag, ItemType, NameFlag
from kdbus_core.ctl import listing, making, messages, monitor, show, state, talk
from kdbus_core.ctl.command import main
from kdbus_core.errors import KdbusError
from kdbus_core.matches import BloomMask, IdMatch, NameNotice
from kdbus_core.policy import Access
from kdbus_core.transport.client import Connection, open_node

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

needs_root = pytest.mark.skipif(UID != 0, reason="only root can run a program as somebody else")


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


@pytest.fixture(scope="module")
def daemon() -> Iterator[Kdbusd]:
    """One daemon for all; each test connects anew."""
    daemon = Kdbusd(CONFIG)
    try:
        yield daemon
        daemon.stop()
    finally:
        daemon.discard()


@pytest.fixture
def ctl(daemon: Kdbusd) -> Iterator[Ctl]:
    ctl = Ctl(daemon)
    yield ctl
    ctl.end()


@pytest.fixture
def connection(daemon: Kdbusd) -> Iterator[Connection]:
    """Somebody to look at."""
    with connect(daemon, description="looked-at") as connection:
        yield connection


def connect(daemon: Kdbusd, endpoint: str = "bus", **more: Any) -> Connection:
    with open_node(daemon.node(BUS, endpoint)) as handle:
        return handle.hello(pool_size=POOL, **more)


# Lists


def test_domains_are_listed(ctl: Ctl) -> None:
    assert ctl.rows("domains") == [["DOMAIN", "OWNER", "ACCESS", "BUSES"], ["/", str(UID), "world", BUS]]
    (domain,) = ctl.json("domains")
    assert (domain["domain"], domain["buses"]) == ("/", [BUS])


@needs_root
def test_a_domain_within_is_listed_and_can_be_gone_into(ctl: Ctl, daemon: Kdbusd) -> None:
    with open_node(daemon.control) as handle, ExitStack() as stack:
        handle.make_domain("inner")
        inner = stack.enter_context(open_node(daemon.directory / "domains" / "inner" / "control"))
        inner.make_bus(f"{UID}-within")
        assert [domain["domain"] for domain in ctl.json("domains")] == ["/", "/inner"]
        assert [bus["name"] for bus in ctl.json("buses", "--domain=inner")] == [f"{UID}-within"]


def test_buses_are_listed(ctl: Ctl, connection: Connection) -> None:
    header, row = ctl.rows("buses")
    assert dict(zip(header, row, strict=True)) == {
        "BUS": BUS,
        "OWNER": str(UID),
        "ACCESS": "world",
        "CONNECTIONS": "1",
        "NAMES": "0",
        "ENDPOINTS": "2",
        "BLOOM": "64/8",
        "REQUIRED": "-",
        "ID128": connection.id128.hex(),
    }
    (bus,) = ctl.json("buses")
    assert (bus["name"], bus["connections"], bus["creator"]["euid"]) == (BUS, 1, UID)


def test_endpoints_are_listed(ctl: Ctl, connection: Connection) -> None:
    assert connection.id
    assert ctl.rows("endpoints", BUS)[1:] == [
        [BUS, "bus", str(UID), "world", "1", "-"],
        [BUS, f"{UID}-narrow", str(UID), "owner", "0", "1"],
    ]
    assert [endpoint["name"] for endpoint in ctl.json("endpoints")] == ["bus", f"{UID}-narrow"]


def test_connections_are_listed_with_who_they_are_and_what_waits(
    ctl: Ctl, daemon: Kdbusd, connection: Connection
) -> None:
    connection.name_acquire(NAME)
    connection.match_add(1, [IdMatch(1)])
    with connect(daemon) as sender:
        sender.send(b"x" * 1000, destination=connection.id)
        header, *rows = ctl.rows("connections")
        (cells,) = [dict(zip(header, row, strict=True)) for row in rows if row[1] == str(connection.id)]
        assert (cells["BUS"], cells["KIND"], cells["ENDPOINT"]) == (BUS, "ordinary", "bus")
        assert (cells["UID"], cells["PID"]) == (str(UID), str(os.getpid()))
        assert cells["QUEUE"].startswith("1 (1")
        assert cells["POOL"].endswith("/1.0 MiB")
        assert (cells["MATCHES"], cells["NAMES"], cells["DESCRIPTION"]) == ("1", NAME, "looked-at")
        (record,) = ctl.json("connections", BUS, f"--connection={connection.id}")
        assert (record["bus"], record["queue"]["messages"]) == (BUS, 1)
        assert record["credentials"]["pid"] == os.getpid()


def test_a_connection_that_speaks_for_somebody_says_so(ctl: Ctl, daemon: Kdbusd) -> None:
    from kdbus_core.metadata import Creds, Pids, Snapshot

    with connect(daemon, faked=Snapshot(creds=Creds(uid=5, euid=6), pids=Pids(77))) as faked:
        (record,) = ctl.json("connections", f"--connection={faked.id}")
        assert (record["is_faked"], record["credentials"]) == (True, {"uid": 5, "euid": 6, "pid": 77})
        assert record["opened_by"]["pid"] == os.getpid()
        (_, row) = ctl.rows("connections")
        assert (row[2], row[4], row[5]) == ("ordinary (faked)", "6", "77")


def test_names_are_listed_with_who_waits(ctl: Ctl, daemon: Kdbusd, connection: Connection) -> None:
    connection.name_acquire(OFFERED)
    with connect(daemon, flags=HelloFlag.ACTIVATOR, name=OFFERED) as activator, connect(daemon) as other:
        other.name_acquire(OFFERED, NameFlag.QUEUE)
        assert ctl.rows("names") == [
            ["BUS", "NAME", "OWNER", "WAITING", "ACTIVATOR"],
            [BUS, OFFERED, str(connection.id), str(other.id), str(activator.id)],
        ]
        (record,) = ctl.json("names")
        assert [place["connection"] for place in record["queue"]] == [connection.id, other.id]


def test_matches_are_listed_as_they_read(ctl: Ctl, connection: Connection) -> None:
    mask = BloomMask((b"\x07" + bytes(connection.bloom.size - 1),))
    connection.match_add(1, [mask, IdMatch(9)])
    connection.match_add(2, [NameNotice(ItemType.NAME_ADD, MATCH_ANY, MATCH_ANY, NAME)])
    connection.match_add(3, [])
    connection.match_add(4, [IdMatch(1), IdMatch(2)])
    id = str(connection.id)
    assert ctl.rows("matches")[1:] == [
        [BUS, id, "1", "message sender=9 mask=3 bits"],
        [BUS, id, "2", f"notification name add name={NAME}"],
        [BUS, id, "3", "message of any kind; or any notification"],
        [BUS, id, "4", "nothing can pass"],
    ]
    assert [match["cookie"] for match in ctl.json("matches", BUS)] == [1, 2, 3, 4]
    assert ctl.json("matches", f"--connection={connection.id + 1}") == []


def test_policy_is_listed_with_who_holds_it(ctl: Ctl, daemon: Kdbusd) -> None:
    everybody = [Access(3, 0, 1)]
    with connect(
        daemon, flags=HelloFlag.POLICY_HOLDER, name="org.example.Held", accesses=everybody
    ) as holder:
        assert ctl.rows("policy")[1:] == [
            [BUS, "-", NAME, "configuration", f"talk world, own user {UID}"],
            [BUS, "-", "org.example.Held", str(holder.id), "talk world"],
            [BUS, f"{UID}-narrow", "org.example.*", "-", "see group 3"],
        ]
    first, *_ = ctl.json("policy", BUS)
    assert first["accesses"][1] == {"type": "user", "id": UID, "level": "own"}


# One thing


def test_a_connection_is_described_by_id_or_name(ctl: Ctl, connection: Connection) -> None:
    connection.name_acquire(NAME)
    by_id = ctl.json("info", str(connection.id))
    assert by_id == ctl.json("info", NAME)
    assert (by_id["id"], by_id["description"], by_id["credentials"]["pid"]) == (
        connection.id,
        "looked-at",
        os.getpid(),
    )
    out, _ = ctl.run("info", NAME)
    assert re.search(rf"^pid +{os.getpid()}$", out, re.MULTILINE)
    assert re.search(rf"^names +{NAME}$", out, re.MULTILINE)


def test_the_bus_is_described(ctl: Ctl, connection: Connection) -> None:
    record = ctl.json("info", "--bus", BUS)
    assert (record["bus"], record["access"]) == (BUS, "world")
    assert record["id128"] == connection.id128.hex()
    assert re.search(rf"^bus +{BUS}$", ctl.run("info")[0], re.MULTILINE)


# Others than the owner


@needs_root
def test_others_see_what_list_and_info_tell(ctl: Ctl, connection: Connection) -> None:
    connection.name_acquire(NAME)
    (record,) = ctl.json_as_nobody("connections")
    assert (record["id"], record["description"]) == (connection.id, "looked-at")
    assert record["credentials"]["pid"] == os.getpid()
    (name,) = ctl.json_as_nobody("names")
    assert (name["name"], name["owner"]) == (NAME, connection.id)
    assert [endpoint["name"] for endpoint in ctl.json_as_nobody("endpoints")] == ["bus", f"{UID}-narrow"]
    out, err = ctl.run_as_nobody("buses")
    assert BUS in out
    assert "not the owner of the domain" in err


@needs_root
@pytest.mark.parametrize("verb", ["matches", "policy"])
def test_others_are_told_what_they_may_not_know(ctl: Ctl, verb: str) -> None:
    out, err = ctl.run_as_nobody(verb, status=1)
    assert (out, err) == ("", f"kdbusctl: {verb} are told to the owner of the domain only\n")


@needs_root
def test_others_do_not_monitor(ctl: Ctl) -> None:
    _, err = ctl.run_as_nobody("monitor", status=1)
    assert err == f"kdbusctl: uid {NOBODY} does not own this bus, and only owners monitor it\n"


@needs_root
def test_a_bus_that_is_closed_to_us_says_so(ctl: Ctl, daemon: Kdbusd) -> None:
    with open_node(daemon.control) as handle:
        handle.make_bus(f"{UID}-closed")
        records = {bus["name"]: bus["is_closed"] for bus in ctl.json_as_nobody("buses")}
        assert records == {BUS: False, f"{UID}-closed": True}
        assert "closed to us" in ctl.run_as_nobody("buses")[0]


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


def test_what_the_broker_refuses_is_told_with_its_errno(ctl: Ctl) -> None:
    _, err = ctl.run("make-bus", "nobodys-name", status=1)
    assert err.startswith("kdbusctl: EINVAL: ")


# Talking


class Echo(threading.Thread):
    """Answers one call with its payload, turned round."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.heard: list[tuple[bytes, bool]] = []

    def run(self) -> None:
        assert self.connection.wait(PATIENCE)
        message = self.connection.receive()
        assert message is not None
        with message:
            self.heard.append((message.payload, message.is_signal))
            if message.expects_reply:
                self.connection.send(
                    message.payload[::-1], destination=message.sender, cookie_reply=message.cookie
                )


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


def test_nobody_to_talk_to_is_told(ctl: Ctl) -> None:
    assert ctl.run("talk", "org.example.Nobody", status=1)[1].startswith("kdbusctl: ESRCH: ")
    assert ctl.run("talk", "*", status=1)[1] == "kdbusctl: only a signal can go to everybody\n"


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


# What goes wrong


@pytest.mark.parametrize(
    "words", [(), ("nonsense",), ("names", "a", "b"), ("talk",), ("talk", "x", "--timeout=0")]
)
def test_a_wrong_command_line_ends_with_2(ctl: Ctl, words: Sequence[str]) -> None:
    assert "usage: kdbusctl" in ctl.run(*words, status=2)[1]


def test_a_domain_or_bus_that_is_not_there_ends_with_1(ctl: Ctl, tmp_path: Path) -> None:
    _, err = ctl.run("buses", f"--directory={tmp_path}", status=1)
    assert err == f"kdbusctl: there is no domain in {tmp_path}: no control node\n"
    assert ctl.run("names", "0-nothing", status=1)[1].startswith("kdbusctl: there is no bus 0-nothing in ")
    assert ctl.run("talk", "1", "--bus=0-nothing", status=1)[1].startswith("kdbusctl: there is no bus")


def test_a_dead_broker_is_told() -> None:
    daemon = Kdbusd()
    try:
        daemon.kill()
        assert "nobody serves this domain" in Ctl(daemon).run("buses", status=1)[1]
    finally:
        daemon.discard()


@pytest.mark.parametrize("words", [("monitor",), ("make-bus", "{uid}-mine")])
def test_who_waits_is_told_that_the_broker_has_gone(words: Sequence[str]) -> None:
    daemon = Kdbusd(CONFIG)
    ctl = Ctl(daemon)
    try:
        process = ctl.start(*words)
        read_line(process)
        daemon.stop()
        _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (1, b"kdbusctl: the broker has gone\n")
    finally:
        ctl.end()
        daemon.discard()


def test_a_reader_that_has_seen_enough_is_no_error(ctl: Ctl) -> None:
    shell = shutil.which("sh")
    assert shell is not None
    pipeline = f"{sys.executable} -m kdbus_core.ctl connections --json | true"
    done = subprocess.run(
        [shell, "-c", pipeline], env=ctl.environment, capture_output=True, timeout=60, check=False
    )
    assert done.stderr == b""
