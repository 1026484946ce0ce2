"""News for the service manager: what is sent where, and that nobody need listen."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbus_core.daemon.notify import Notifier


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """Where a service manager listens; `getsockname` is its path."""
    with (
        tempfile.TemporaryDirectory(prefix="kd-") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(f"{directory}/notify")
        listener.settimeout(10)
        yield listener


def test_each_piece_of_news_is_a_datagram(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready()
    notifier.reloading(1_234_567)
    notifier.stopping()
    assert [manager.recv(100) for _ in range(3)] == [
        b"READY=1",
        b"RELOADING=1\nMONOTONIC_USEC=1234",
        b"STOPPING=1",
    ]


def test_a_service_manager_may_have_an_abstract_name() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("")  # the kernel chooses one
        listener.settimeout(10)
        name: bytes = listener.getsockname()
        Notifier({"NOTIFY_SOCKET": "@" + name[1:].decode()}).ready()
        assert listener.recv(100) == b"READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}])
def test_without_a_service_manager_nothing_happens(environ: dict[str, str]) -> None:
    Notifier(environ).ready()


def test_a_service_manager_that_has_gone_is_no_error(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
