"""Who is at the other end of a socket: what the kernel tells, and what is left unknown."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from busproxy.credentials import PeerUnknown, peer_credentials
from kdbus_core.metadata import Credentials

MANY_GROUPS = tuple(range(70_000, 70_400))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@contextmanager
def somebody_else(groups: tuple[int, ...], uid: int, gid: int) -> Iterator[None]:
    """Be another user for a moment; root may come back."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setresgid(gid, gid, 0)
    os.setresuid(uid, uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(before)


def credentials_of_client(groups: tuple[int, ...], uid: int, gid: int) -> Credentials:
    """What the kernel says of a client that connects with these ids."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("")  # an abstract name of the kernel's choice
        listener.listen()
        with somebody_else(groups, uid, gid):
            client.connect(listener.getsockname())
        sock, _ = listener.accept()
        with sock:
            return peer_credentials(sock)


def close_pidfd(credentials: Credentials) -> None:
    if credentials.pidfd is not None:
        os.close(credentials.pidfd)


def test_a_peer_is_this_process_if_it_made_the_pair(pair: tuple[socket.socket, socket.socket]) -> None:
    credentials = peer_credentials(pair[0])
    close_pidfd(credentials)
    assert credentials.pid == os.getpid()
    assert (credentials.uid, credentials.gid) == (os.geteuid(), os.getegid())
    assert credentials.groups is not None
    assert set(credentials.groups) == set(os.getgroups())


def test_the_pidfd_is_the_peers_and_is_closed_on_exec(pair: tuple[socket.socket, socket.socket]) -> None:
    credentials = peer_credentials(pair[0])
    if credentials.pidfd is None:
        pytest.skip("this kernel has no SO_PEERPIDFD")
    assert not os.get_inheritable(credentials.pidfd)
    with open(f"/proc/self/fdinfo/{credentials.pidfd}") as info:
        pids = [line.split()[1] for line in info if line.startswith("Pid:")]
    os.close(credentials.pidfd)
    assert pids == [str(os.getpid())]


def test_a_label_has_no_zero_at_its_end(pair: tuple[socket.socket, socket.socket]) -> None:
    credentials = peer_credentials(pair[0])
    close_pidfd(credentials)
    assert credentials.label is None or (credentials.label and not credentials.label.endswith(b"\0"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_another_user_is_seen_with_its_own_ids_and_groups() -> None:
    credentials = credentials_of_client((4, 24), 65534, 65533)
    close_pidfd(credentials)
    assert (credentials.pid, credentials.uid, credentials.gid) == (os.getpid(), 65534, 65533)
    assert credentials.groups == (4, 24)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_more_groups_than_getsockopt_returns_are_all_seen() -> None:
    credentials = credentials_of_client(MANY_GROUPS, 65534, 65533)
    close_pidfd(credentials)
    assert credentials.groups == MANY_GROUPS


def test_a_socket_that_knows_no_peer_is_refused_and_never_root() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(PeerUnknown):
        peer_credentials(sock)
