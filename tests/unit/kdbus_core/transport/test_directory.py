"""Nodes as files: where they lie, with which mode and owner, and what is left of them."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.nodes import UID, connect_to, count_fds

from kdbus_core.abi import MakeFlag
from kdbus_core.domain import Domain
from kdbus_core.endpoint import Endpoint
from kdbus_core.metadata import Credentials, Process
from kdbus_core.transport.directory import NodeDirectory

GID = os.getegid()
OWN = Process.of(Credentials(uid=UID, gid=GID), privileged=True)
OTHER = Process.of(Credentials(uid=12345, gid=23456))
GROUP, WORLD = MakeFlag.ACCESS_GROUP, MakeFlag.ACCESS_WORLD
NAME = f"{UID}-bus"


@pytest.fixture
def domain() -> Iterator[Domain]:
    domain = Domain(os.urandom, time.monotonic_ns, time.time_ns, owner=OWN.credentials)
    yield domain
    domain.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nodes"


@pytest.fixture
def directory(domain: Domain, path: Path) -> Iterator[NodeDirectory]:
    directory = NodeDirectory(path, domain)
    yield directory
    directory.close()


def make_endpoint(domain: Domain, access: MakeFlag, maker: Process = OWN) -> Endpoint:
    uid = maker.credentials.uid
    return domain.make_bus(f"{uid}-bus", maker, access).endpoint


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def can_connect(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        connect_to(sock, path)
    return True


# Where they lie


def test_the_control_node_lies_in_the_directory(directory: NodeDirectory, domain: Domain) -> None:
    directory.make(domain)
    assert can_connect(directory.path / "control")


def test_a_bus_is_a_directory_with_its_endpoints(directory: NodeDirectory, domain: Domain) -> None:
    bus = domain.make_bus(NAME, OWN)
    directory.make(bus.endpoint)
    directory.make(bus.make_endpoint(f"{UID}-door", OWN))
    assert can_connect(directory.path / NAME / "bus")
    assert can_connect(directory.path / NAME / f"ep.{UID}-door")


def test_a_domain_in_the_domain_is_the_same_again(directory: NodeDirectory, domain: Domain) -> None:
    inner = domain.make_domain("inner", OWN)
    innermost = inner.make_domain("innermost", OWN)
    directory.make(innermost.make_bus(NAME, OWN).endpoint)
    directory.make(innermost)
    place = directory.path / "domains" / "inner" / "domains" / "innermost"
    assert can_connect(place / "control")
    assert can_connect(place / NAME / "bus")


def test_nothing_but_finished_nodes_lies_there(directory: NodeDirectory, domain: Domain) -> None:
    directory.make(domain)
    directory.make(make_endpoint(domain, WORLD))
    assert sorted(os.listdir(directory.path)) == [".lock", NAME, "control"]
    assert os.listdir(directory.path / NAME) == ["bus"]


def test_directories_can_be_looked_into_whatever_the_umask_is(domain: Domain, path: Path) -> None:
    before = os.umask(0o077)
    try:
        directory = NodeDirectory(path, domain)
        directory.make(make_endpoint(domain, WORLD))
    finally:
        os.umask(before)
    assert mode(path) == mode(path / NAME) == 0o755
    assert mode(path / NAME / "bus") == 0o666
    directory.close()


def test_a_path_may_be_longer_than_an_address(domain: Domain, tmp_path: Path) -> None:
    path = tmp_path / ("d" * 60) / ("e" * 60)
    path.parent.mkdir()
    directory = NodeDirectory(path, domain)
    directory.make(domain)
    assert can_connect(path / "control")
    directory.close()


# Modes and owners


@pytest.mark.parametrize(
    ("access", "expected"),
    [(MakeFlag(0), 0o600), (GROUP, 0o660), (WORLD, 0o666), (GROUP | WORLD, 0o666)],
)
def test_the_mode_of_a_node_is_its_access(
    directory: NodeDirectory, domain: Domain, access: MakeFlag, expected: int
) -> None:
    file = directory.make(make_endpoint(domain, access))
    assert mode(file.path) == expected
    assert file.is_enforced


def test_without_a_known_group_the_group_gets_nothing(directory: NodeDirectory, domain: Domain) -> None:
    maker = Process.of(Credentials(uid=UID))
    assert mode(directory.make(make_endpoint(domain, GROUP, maker)).path) == 0o600


@pytest.mark.root
@pytest.mark.skipif(UID != 0, reason="only root gives files away")
def test_a_node_belongs_to_its_maker(directory: NodeDirectory, domain: Domain) -> None:
    file = directory.make(make_endpoint(domain, GROUP, OTHER))
    status = file.path.lstat()
    assert (status.st_uid, status.st_gid) == (12345, 23456)
    assert file.is_enforced


def test_where_a_file_cannot_be_given_away_the_broker_decides(
    directory: NodeDirectory, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "not yours")

    monkeypatch.setattr(os, "chown", refuse)
    file = directory.make(make_endpoint(domain, MakeFlag(0), OTHER))
    assert mode(file.path) == 0o666
    assert not file.is_enforced


def test_a_custom_endpoint_does_not_open_a_closed_bus(directory: NodeDirectory, domain: Domain) -> None:
    bus = domain.make_bus(NAME, OWN)
    assert not directory.make(bus.make_endpoint(f"{UID}-door", OWN, WORLD)).is_enforced


# What goes


def test_a_bus_that_goes_takes_its_directory_along(directory: NodeDirectory, domain: Domain) -> None:
    bus = domain.make_bus(NAME, OWN)
    door = bus.make_endpoint(f"{UID}-door", OWN)
    directory.make(bus.endpoint)
    directory.make(door)
    directory.remove(bus.endpoint)
    assert os.listdir(directory.path / NAME) == [f"ep.{UID}-door"]
    directory.remove(door)
    assert os.listdir(directory.path) == [".lock"]


def test_the_last_domain_takes_the_directory_of_domains_along(
    directory: NodeDirectory, domain: Domain
) -> None:
    inner = [domain.make_domain(name, OWN) for name in ("a", "b")]
    for one in inner:
        directory.make(one)
    directory.remove(inner[0])
    assert os.listdir(directory.path / "domains") == ["b"]
    directory.remove(inner[1])
    assert os.listdir(directory.path) == [".lock"]


def test_removing_what_is_not_there_does_nothing(directory: NodeDirectory, domain: Domain) -> None:
    directory.remove(domain)


def test_closing_removes_everything_and_closes_every_descriptor(domain: Domain, path: Path) -> None:
    before = count_fds()
    directory = NodeDirectory(path, domain)
    directory.make(domain)
    directory.make(make_endpoint(domain, WORLD))
    directory.close()
    assert not path.exists()
    assert count_fds() == before


def test_a_directory_that_was_there_stays(domain: Domain, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    NodeDirectory(tmp_path, domain).close()
    assert os.listdir(tmp_path) == ["mine"]


def test_what_cannot_be_made_leaves_nothing(
    directory: NodeDirectory, domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "full")

    endpoint = make_endpoint(domain, WORLD)
    before = count_fds()
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="full"):
        directory.make(endpoint)
    assert os.listdir(directory.path) == [".lock"]
    assert count_fds() == before


# Two servers, and one that has died


def test_a_directory_has_one_server(directory: NodeDirectory, domain: Domain, path: Path) -> None:
    directory.make(domain)
    before = count_fds()
    with pytest.raises(BlockingIOError, match="another server"):
        NodeDirectory(path, domain)
    assert can_connect(path / "control")
    assert count_fds() == before


def test_after_a_server_comes_another(domain: Domain, path: Path) -> None:
    for _ in range(2):
        directory = NodeDirectory(path, domain)
        directory.make(domain)
        assert can_connect(path / "control")
        directory.close()


def test_a_lock_that_was_removed_meanwhile_is_none(
    domain: Domain, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server before this one closes between the opening and the locking of its file."""
    real = fcntl.flock
    removals: list[int] = []

    def flock(fd: int, operation: int) -> None:
        if not removals:
            os.unlink(path / ".lock")
            removals.append(fd)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    directory = NodeDirectory(path, domain)
    with pytest.raises(BlockingIOError):
        NodeDirectory(path, domain)
    directory.close()


def bind(path: Path) -> None:
    """Leave a socket there; the directory's descriptor is a way to it that is short enough for an address."""
    directory = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


@pytest.fixture
def dead(path: Path) -> Path:
    """A directory whose server has died."""
    for place in (path, path / "domains" / "inner"):
        (place / NAME).mkdir(parents=True)
        for name in ("control", ".control", f"{NAME}/bus", f"{NAME}/ep.{UID}-door", f"{NAME}/.bus"):
            bind(place / name)
    (path / ".lock").touch()
    return path


def test_what_a_dead_server_has_left_is_removed(dead: Path, domain: Domain) -> None:
    directory = NodeDirectory(dead, domain)
    assert os.listdir(dead) == [".lock"]
    directory.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: (path / NAME / "notes").write_text("precious"),
        lambda path: (path / NAME / "ep.notes").write_text("precious"),
        lambda path: (path / "notes").write_text("precious"),
        lambda path: (path / "not-a-bus").mkdir(),
    ],
)
def test_what_is_not_a_servers_stays(dead: Path, domain: Domain, make: Callable[[Path], object]) -> None:
    make(dead)
    directory = NodeDirectory(dead, domain)
    assert len(os.listdir(dead)) == 2
    directory.close()


def test_a_link_is_not_followed(dead: Path, domain: Domain, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (dead / NAME).rename(elsewhere)
    (dead / NAME).symlink_to(elsewhere)
    directory = NodeDirectory(dead, domain)
    assert (elsewhere / "bus").is_socket()
    directory.close()


def test_without_a_lock_nothing_is_taken_for_left_behind(dead: Path, domain: Domain) -> None:
    (dead / ".lock").unlink()
    directory = NodeDirectory(dead, domain)
    assert (dead / "control").is_socket()
    directory.close()
