"""Sockets taken over from the service manager, and news sent to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from busproxy.transport import systemd
from busproxy.transport.systemd import InheritedFdError, Notifier, take_listen_fds

PID = 4711


@pytest.fixture
def inherited(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Two neighbouring descriptors that stand where systemd puts the first ones."""
    base = 300
    fds = [base, base + 1]
    source = os.open("/dev/null", os.O_RDONLY)
    for fd in fds:
        os.dup2(source, fd, inheritable=True)
    os.close(source)
    monkeypatch.setattr(systemd, "FIRST_INHERITED_FD", base)
    yield fds
    for fd in fds:
        os.close(fd)


def environment(**variables: str) -> dict[str, str]:
    return {"PATH": "/bin", "LISTEN_PID": str(PID), **variables}


def test_without_the_variables_nothing_is_inherited() -> None:
    assert take_listen_fds({"PATH": "/bin"}, PID) == []


def test_descriptors_come_with_their_names_and_are_closed_on_exec(inherited: list[int]) -> None:
    environ = environment(LISTEN_FDS="2", LISTEN_FDNAMES="one:two")
    assert take_listen_fds(environ, PID) == [(inherited[0], "one"), (inherited[1], "two")]
    assert not any(os.get_inheritable(fd) for fd in inherited)


def test_the_variables_are_taken_away(inherited: list[int]) -> None:
    environ = environment(LISTEN_FDS="1", LISTEN_FDNAMES="one", LISTEN_PIDFDID="7")
    take_listen_fds(environ, PID)
    assert environ == {"PATH": "/bin"}
    assert take_listen_fds(environ, PID) == []


def test_descriptors_without_names_are_called_unknown(inherited: list[int]) -> None:
    assert [name for _, name in take_listen_fds(environment(LISTEN_FDS="2"), PID)] == ["unknown", "unknown"]


def test_descriptors_for_another_process_are_left_alone_but_the_variables_go(inherited: list[int]) -> None:
    environ = environment(LISTEN_FDS="2")
    assert take_listen_fds(environ, PID + 1) == []
    assert environ == {"PATH": "/bin"}
    assert all(os.get_inheritable(fd) for fd in inherited)


def test_no_descriptors_is_no_error() -> None:
    assert take_listen_fds(environment(LISTEN_FDS="0"), PID) == []


@pytest.mark.parametrize("text", ["", "two", "-1", "1 ", "99999999999"])
def test_a_count_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InheritedFdError, match="LISTEN_FDS"):
        take_listen_fds(environment(LISTEN_FDS=text), PID)


def test_a_process_id_that_is_no_number_is_refused() -> None:
    with pytest.raises(InheritedFdError, match="LISTEN_PID"):
        take_listen_fds({"LISTEN_PID": "me", "LISTEN_FDS": "1"}, PID)


def test_the_wrong_number_of_names_is_refused(inherited: list[int]) -> None:
    with pytest.raises(InheritedFdError, match="1 names for 2"):
        take_listen_fds(environment(LISTEN_FDS="2", LISTEN_FDNAMES="one"), PID)


def test_a_descriptor_that_is_not_open_is_refused_and_the_others_stay_as_they_are(
    inherited: list[int],
) -> None:
    with pytest.raises(InheritedFdError, match="302 is not open"):
        take_listen_fds(environment(LISTEN_FDS="3"), PID)
    assert all(os.get_inheritable(fd) for fd in inherited)


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A service manager's socket, and what NOTIFY_SOCKET says about it."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        if request.param == "path":
            sock.bind(path)
            yield sock, path
        else:
            sock.bind(f"\0{path}")
            yield sock, f"@{path}"


def test_each_notification_arrives_as_one_datagram(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    for sent, expected in [
        (notifier.ready(), b"READY=1"),
        (notifier.status("12 peers,\n3 names"), b"STATUS=12 peers, 3 names"),
        (notifier.reloading(123456), b"RELOADING=1\nMONOTONIC_USEC=123456"),
        (notifier.stopping(), b"STOPPING=1"),
    ]:
        assert sent
        assert sock.recv(1000) == expected


@pytest.mark.parametrize(
    "address", [None, "", "relative", "vsock:2:1234", "/nonexistent/notify", "@nobody/there"]
)
def test_without_a_service_manager_a_notification_is_quietly_dropped(address: str | None) -> None:
    notifier = Notifier({} if address is None else {"NOTIFY_SOCKET": address})
    assert not notifier.ready()
    assert not notifier.status("alone")
