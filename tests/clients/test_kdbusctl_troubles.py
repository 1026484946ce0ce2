"""What `kdbusctl` says, and how it ends, when something is wrong or goes away."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.children import needs_root
from support.kdbusctl import (
    BUS,
    CONFIG,
    NOBODY,
    UID,
    Ctl,
    connect,
    controlling,
    read_line,
    running_daemon,
)
from support.kdbusd import PATIENCE, Kdbusd

from kdbus_core import __version__
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


@pytest.mark.parametrize("words", [("connections",), ("monitor",), ("names", "--json")])
def test_output_that_cannot_be_written_is_told(ctl: Ctl, words: Sequence[str]) -> None:
    with open("/dev/full", "wb") as full:
        assert ctl.run_into(full, *words) == (1, "kdbusctl: No space left on device\n")


@pytest.mark.parametrize("words", [("connections",), ("monitor",), ("names", "--json"), ("make-bus", "x")])
def test_without_an_output_nothing_is_done(ctl: Ctl, words: Sequence[str]) -> None:
    shell = shutil.which("sh")
    assert shell is not None
    command = shlex.join(ctl.command(*words))
    done = subprocess.run(
        [shell, "-c", f"{command} >&-"], env=ctl.environment, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (1, b"kdbusctl: standard output is closed\n")


def test_a_bus_that_goes_is_told_to_who_monitors_it(ctl: Ctl, daemon: Kdbusd) -> None:
    with open_node(daemon.control) as handle:
        handle.make_bus(f"{UID}-brief")
        process = ctl.start("monitor", "--bus", f"{UID}-brief")
        read_line(process)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (1, b"kdbusctl: the bus has gone\n")


def test_a_bus_that_goes_is_told_to_who_holds_an_endpoint_of_it(ctl: Ctl, daemon: Kdbusd) -> None:
    with open_node(daemon.control) as handle:
        handle.make_bus(f"{UID}-brief")
        process = ctl.start("make-endpoint", f"{UID}-brief", "{uid}-ours")
        read_line(process)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (1, b"kdbusctl: the bus has gone\n")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("talk", "org.example.Nobody"), "nobody has the name org.example.Nobody (ESRCH)"),
        (("talk", "4000000"), "there is no connection 4000000 that takes messages (ENXIO)"),
        (("info", "org.example.Nobody"), "nobody has the name org.example.Nobody (ESRCH)"),
        (("info", "4000000"), "there is no connection 4000000 (ENXIO)"),
        (("info", "0"), "0 is no id of a connection"),
        (("info", "9" * 30), f"{'9' * 30} is no id of a connection"),
        (("talk", str((1 << 64) - 1)), f"{(1 << 64) - 1} is no id of a connection"),
        (("info", "\u0663"), "'\u0663' is neither an id nor a well-known name"),
        (("talk", "nodots"), "'nodots' is neither an id nor a well-known name"),
        (("talk", "*"), "only a signal can go to everybody"),
        (("make-bus", "nobodys"), f"'nobodys' is no name for something of uid {UID}: it begins with {UID}- "),
        (("make-bus", "{uid}-test"), f"there is a bus {BUS} already (EEXIST)"),
        (("make-bus", "{uid}-a", "--bloom-size=7"), "filters have from 8 to 4096 bytes, a multiple of 8, "),
        (("make-bus", "{uid}-a", "--required=shoes"), "'shoes' is no metadata; there are timestamp, "),
        (("make-endpoint", BUS, "{uid}-narrow"), f"there is an endpoint {UID}-narrow already (EEXIST)"),
        (("make-endpoint", BUS, "x"), "'x' is no name for something of uid "),
        (("make-endpoint", BUS, "{uid}-a", "--own=a.b"), "'a.b' is not NAME=WHOM"),
        (("make-endpoint", BUS, "{uid}-a", "--own=a=world"), "'a' is neither a well-known name nor "),
        (("make-endpoint", BUS, "{uid}-a", "--own=a.b=you"), "'you' is none of world, user:NAME, "),
        (("make-endpoint", BUS, "{uid}-a", "--own=a.b=user:"), "there is no user ''"),
        (("make-endpoint", BUS, "{uid}-a", "--see=a.b=group:4294967295"), "4294967295 is no id of a group"),
        (("make-endpoint", "0-nothing", "{uid}-a"), "there is no bus 0-nothing in "),
    ],
)
def test_what_cannot_be_is_told_in_words(ctl: Ctl, words: Sequence[str], why: str) -> None:
    out, err = ctl.run(*words, status=1)
    assert out == ""
    assert err.startswith(f"kdbusctl: {why}")
    assert err.count("\n") == 1


@needs_root
def test_others_are_told_why_they_may_not(ctl: Ctl, connection: Connection) -> None:
    _, err = ctl.run_as_nobody("make-endpoint", BUS, "{uid}-a", status=1)
    assert err == f"kdbusctl: uid {NOBODY} does not own this bus, and only owners make endpoints (EPERM)\n"
    _, err = ctl.run_as_nobody("talk", str(connection.id), status=1)
    assert err == f"kdbusctl: uid {NOBODY} may not talk to {connection.id} (EPERM)\n"


@needs_root
def test_others_are_told_which_buses_are_closed_to_them(ctl: Ctl, daemon: Kdbusd) -> None:
    with open_node(daemon.control) as handle:
        handle.make_bus(f"{UID}-closed")
        _, err = ctl.run_as_nobody("connections")
        assert err.splitlines()[1:] == [f"kdbusctl: bus {UID}-closed does not let us in"]
        assert len(ctl.run_as_nobody("connections", BUS)[1].splitlines()) == 1


def test_who_monitors_and_is_no_longer_listened_to_ends(ctl: Ctl, daemon: Kdbusd) -> None:
    process = ctl.start("monitor")
    read_line(process)
    assert process.stdout is not None
    process.stdout.close()
    connect(daemon).close()
    assert process.wait(PATIENCE) == 1
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_it_says_which_version_it_is(ctl: Ctl) -> None:
    assert ctl.run("--version") == (f"kdbusctl {__version__}\n", "")
