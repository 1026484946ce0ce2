"""What can be polled or closed without waiting: known without asking whoever provides the file."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.children import open_fds

from kdbus_core.transport import file_kinds
from kdbus_core.transport.file_kinds import closes_at_once, is_pipe, is_pollable, socket_family


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


def pipe() -> int:
    read_end, write_end = os.pipe()
    os.close(write_end)
    return read_end


def epoll() -> int:
    with select.epoll() as one:
        return os.dup(one.fileno())


def unix_socket() -> int:
    return socket.socket(socket.AF_UNIX).detach()


def inet_socket() -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()


def null() -> int:
    return os.open("/dev/null", os.O_RDWR)


def root() -> int:
    return os.open("/", os.O_RDONLY | os.O_DIRECTORY)


def path() -> int:
    return os.open("/", os.O_PATH)


def memory() -> int:
    return os.memfd_create("memory")


def proc() -> int:
    return os.open("/proc/self/mounts", os.O_RDONLY)


@pytest.mark.parametrize(
    ("make", "pollable", "at_once"),
    [
        (pipe, True, True),
        (lambda: os.eventfd(0), True, True),
        (lambda: os.pidfd_open(os.getpid()), True, True),
        (unix_socket, True, False),
        (inet_socket, True, False),
        (epoll, False, True),
        (null, False, False),
        (root, False, False),
        (path, False, True),
        (memory, False, True),
        (proc, False, False),
    ],
)
def test_only_what_is_surely_harmless_counts_as_such(
    make: Callable[[], int], *, pollable: bool, at_once: bool
) -> None:
    fd = make()
    assert is_pollable(fd) is pollable
    assert closes_at_once(fd) is at_once
    os.close(fd)


def test_a_fifo_is_a_pipe_wherever_it_lies(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    fd = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert is_pipe(fd)
    assert is_pollable(fd)
    assert closes_at_once(fd)
    os.close(fd)


def test_a_file_that_is_called_like_something_harmless_is_not(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "anon_inode:[eventfd]", os.O_RDWR | os.O_CREAT)
    assert not is_pollable(fd)
    os.close(fd)


def test_much_memory_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_kinds, "MAX_QUICK_MEMORY", 8192)
    fd = os.memfd_create("much")
    os.ftruncate(fd, 1 << 30)  # that there is none of
    assert closes_at_once(fd)
    os.write(fd, bytes(16384))
    assert not closes_at_once(fd)
    os.close(fd)


def test_a_socket_tells_its_family() -> None:
    unix, inet, other = unix_socket(), inet_socket(), pipe()
    assert (socket_family(unix), socket_family(inet), socket_family(other)) == (
        socket.AF_UNIX,
        socket.AF_INET,
        None,
    )
    for fd in (unix, inet, other):
        os.close(fd)
