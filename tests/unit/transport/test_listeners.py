"""Addresses become sockets that clients can connect to, and go without a trace."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from busproxy.transport.listeners import (
    Listener,
    ListenError,
    advertised_address,
    generate_guid,
    open_listeners,
)
from busproxy.wire.address import AddressError, parse_addresses

Open = Callable[..., list[Listener]]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Open addresses with GUIDs that count from 1; everything is closed afterwards."""
    numbers = itertools.count(1)
    everything: list[Listener] = []

    def open_all(*addresses: str, **options: object) -> list[Listener]:
        listeners = open_listeners(addresses, guid_factory=lambda: f"{next(numbers):032x}", **options)  # type: ignore[arg-type]
        everything.extend(listeners)
        return listeners

    yield open_all
    for listener in everything:
        listener.close()


@pytest.fixture(autouse=True)
def no_fd_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


@pytest.fixture
def socket_dir() -> Iterator[str]:
    """A directory with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="bus-") as path:
        yield path


def connect(listener: Listener) -> None:
    """Connect as a client would that knows nothing but the advertised address."""
    (address,) = parse_addresses(listener.address)
    name = address.params.get("path") or "\0" + address.params["abstract"]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(name)
        accepted, _ = listener.sock.accept()
        accepted.close()


def guid(number: int) -> str:
    return f",guid={number:032x}"


def listening_socket(name: str) -> int:
    """A descriptor as a service manager leaves it: listening, blocking, inheritable."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(name)
    sock.listen()
    sock.set_inheritable(True)
    return sock.detach()


def test_a_path_can_be_connected_to_by_everybody(opened: Open, socket_dir: str) -> None:
    path = f"{socket_dir}/bus"
    (listener,) = opened(f"unix:path={path}")
    assert listener.address == f"unix:path={path}{guid(1)}"
    assert listener.guid == f"{1:032x}"
    assert listener.path_to_unlink == path
    assert listener.mode == stat.S_IMODE(os.lstat(path).st_mode) == 0o777
    connect(listener)


def test_an_abstract_name_leaves_no_file(opened: Open, socket_dir: str) -> None:
    (listener,) = opened(f"unix:abstract={socket_dir}/bus")
    assert listener.address == f"unix:abstract={socket_dir}/bus{guid(1)}"
    assert (listener.path_to_unlink, listener.mode) == (None, None)
    assert os.listdir(socket_dir) == []
    connect(listener)


@pytest.mark.parametrize("kind", ["dir", "tmpdir"])
def test_a_directory_gets_a_socket_with_a_name_of_its_own(opened: Open, socket_dir: str, kind: str) -> None:
    first, second = opened(f"unix:{kind}={socket_dir};unix:{kind}={socket_dir}/")
    names = sorted(os.listdir(socket_dir))
    assert len(names) == 2
    assert all(name.startswith("dbus-") and len(name) == 15 for name in names)
    for listener in (first, second):
        assert listener.address.startswith(f"unix:path={socket_dir}/dbus-")
        connect(listener)


def test_the_runtime_directory_gets_the_users_bus(opened: Open, socket_dir: str) -> None:
    (listener,) = opened("unix:runtime=yes", runtime_dir=socket_dir)
    assert listener.address == f"unix:path={socket_dir}/bus{guid(1)}"
    connect(listener)


@pytest.mark.parametrize("runtime_dir", [None, ""])
def test_without_a_runtime_directory_there_is_no_users_bus(opened: Open, runtime_dir: str | None) -> None:
    with pytest.raises(ListenError, match="XDG_RUNTIME_DIR is not set"):
        opened("unix:runtime=yes", runtime_dir=runtime_dir)


def test_special_characters_in_a_path_are_escaped_in_the_address(opened: Open, socket_dir: str) -> None:
    (listener,) = opened(f"unix:path={socket_dir}/a%20b%2c")
    assert os.listdir(socket_dir) == ["a b,"]
    assert listener.address == f"unix:path={socket_dir}/a%20b%2c{guid(1)}"


def test_a_guid_in_the_configured_address_is_replaced(opened: Open, socket_dir: str) -> None:
    (listener,) = opened(f"unix:path={socket_dir}/bus,guid=0123")
    assert listener.address == f"unix:path={socket_dir}/bus{guid(1)}"


def test_sockets_do_not_block_and_are_not_inherited(opened: Open, socket_dir: str) -> None:
    for listener in opened(f"unix:path={socket_dir}/bus;unix:abstract={socket_dir}/bus"):
        assert not listener.sock.getblocking()
        assert not listener.sock.get_inheritable()
        with pytest.raises(BlockingIOError):
            listener.sock.accept()


def test_every_listener_has_its_own_guid_and_the_last_address_comes_first(
    opened: Open, socket_dir: str
) -> None:
    listeners = opened(f"unix:path={socket_dir}/a;unix:path={socket_dir}/b", f"unix:path={socket_dir}/c")
    assert advertised_address(listeners) == (
        f"unix:path={socket_dir}/c{guid(3)};unix:path={socket_dir}/a{guid(1)};unix:path={socket_dir}/b{guid(2)}"
    )


def test_generated_guids_are_32_lower_case_hexadecimal_digits() -> None:
    first, second = generate_guid(), generate_guid()
    assert first != second
    assert len(first) == 32
    assert set(first) <= set("0123456789abcdef")


# Socket files that are there already, and their removal.


def test_a_socket_file_left_behind_is_replaced(opened: Open, socket_dir: str) -> None:
    os.close(listening_socket(f"{socket_dir}/bus"))
    (listener,) = opened(f"unix:path={socket_dir}/bus")
    connect(listener)


def test_a_file_that_is_no_socket_is_never_replaced(opened: Open, socket_dir: str) -> None:
    path = Path(socket_dir, "bus")
    path.write_text("precious")
    with pytest.raises(ListenError, match="already in use"):
        opened(f"unix:path={path}")
    assert path.read_text() == "precious"


def test_closing_removes_the_socket_file(opened: Open, socket_dir: str) -> None:
    (listener,) = opened(f"unix:path={socket_dir}/bus")
    listener.close()
    assert os.listdir(socket_dir) == []


def test_closing_twice_does_nothing(opened: Open, socket_dir: str) -> None:
    (listener,) = opened(f"unix:path={socket_dir}/bus")
    listener.close()
    Path(socket_dir, "bus").touch()
    listener.close()
    assert os.listdir(socket_dir) == ["bus"]


def test_closing_leaves_the_socket_of_a_successor_alone(opened: Open, socket_dir: str) -> None:
    (old,) = opened(f"unix:path={socket_dir}/bus")
    (new,) = opened(f"unix:path={socket_dir}/bus")
    old.close()
    connect(new)


def test_a_relative_path_is_found_for_removal_after_a_change_of_directory(
    opened: Open, socket_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(socket_dir)
    (listener,) = opened("unix:path=bus")
    assert listener.address == f"unix:path=bus{guid(1)}"
    monkeypatch.chdir("/")
    listener.close()
    assert os.listdir(socket_dir) == []


# Inherited sockets.


def test_inherited_sockets_are_listened_on_and_their_files_stay(opened: Open, socket_dir: str) -> None:
    fds = [(listening_socket(f"{socket_dir}/a"), "one"), (listening_socket(f"\0{socket_dir}/b"), "two")]
    listeners = opened("systemd:", inherited_fds=fds)
    assert [listener.address for listener in listeners] == [
        f"unix:path={socket_dir}/a{guid(1)}",
        f"unix:abstract={socket_dir}/b{guid(2)}",
    ]
    for listener in listeners:
        assert not listener.sock.get_inheritable()
        assert not listener.sock.getblocking()
        connect(listener)
        listener.close()
    assert os.listdir(socket_dir) == ["a"]


def test_without_inherited_sockets_systemd_cannot_be_listened_on(opened: Open) -> None:
    with pytest.raises(ListenError, match="no socket was inherited"):
        opened("systemd:")


def test_inherited_sockets_nobody_asks_for_stay_the_callers(opened: Open, socket_dir: str) -> None:
    fd = listening_socket(f"{socket_dir}/a")
    opened(f"unix:path={socket_dir}/bus", inherited_fds=[(fd, "one")])
    os.fstat(fd)
    os.close(fd)


def unsuitable_fds(directory: str) -> dict[str, Callable[[], int]]:
    def make(family: int, kind: int, name: object = None, *, listen: bool = False) -> int:
        sock = socket.socket(family, kind)
        if name is not None:
            sock.bind(name)  # type: ignore[arg-type]
        if listen:
            sock.listen()
        return sock.detach()

    return {
        "is no socket": lambda: os.open("/dev/null", os.O_RDONLY),
        "does not listen": lambda: make(socket.AF_UNIX, socket.SOCK_STREAM, f"{directory}/x"),
        "is not a unix stream socket": lambda: make(socket.AF_UNIX, socket.SOCK_DGRAM),
        "is not a unix stream": lambda: make(
            socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0), listen=True
        ),
    }


@pytest.mark.parametrize("reason", list(unsuitable_fds("")))
def test_an_unsuitable_inherited_descriptor_is_refused_and_all_are_closed(
    opened: Open, socket_dir: str, reason: str
) -> None:
    fds = [
        (listening_socket(f"{socket_dir}/a"), "good"),
        (unsuitable_fds(socket_dir)[reason](), "bad"),
        (listening_socket(f"{socket_dir}/b"), "good"),
    ]
    with pytest.raises(ListenError, match=rf"\(bad\) {reason}"):
        opened("systemd:", inherited_fds=fds)
    for fd, _ in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


# Addresses that cannot be listened on.


@pytest.mark.parametrize(
    "address",
    ["tcp:host=127.0.0.1", "nonce-tcp:host=127.0.0.1", "launchd:env=X", "autolaunch:", "unixexec:path=/x"],
)
def test_other_transports_are_refused_by_name(opened: Open, address: str) -> None:
    transport = address.split(":")[0]
    with pytest.raises(ListenError, match=f"the {transport} transport is not offered here"):
        opened(address)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("bogus:", 'unknown transport "bogus"'),
        ("unix:", "needs exactly one of"),
        ("unix:path=/nonexistent,abstract=x", "path and abstract"),
        ("unix:runtime=no", 'only value for runtime is "yes"'),
        ("unix:path=/nonexistent/bus", "No such file or directory"),
        ("unix:path=/nonexistent%00x", "null"),
        (f"unix:path=/{'a' * 99}", "more than 99 bytes"),
        (f"unix:abstract={'a' * 99}", "more than 98 bytes"),
    ],
)
def test_an_impossible_address_is_refused_with_address_and_reason(
    opened: Open, address: str, reason: str
) -> None:
    with pytest.raises(ListenError, match=reason) as refusal:
        opened(address)
    assert str(refusal.value).startswith(address)


@pytest.mark.parametrize("text", ["", "nonsense", "unix:path"])
def test_text_that_is_no_address_is_refused(opened: Open, text: str) -> None:
    with pytest.raises(AddressError):
        opened(text)


def test_an_abstract_name_in_use_is_refused(opened: Open, socket_dir: str) -> None:
    opened(f"unix:abstract={socket_dir}")
    with pytest.raises(ListenError, match="already in use"):
        opened(f"unix:abstract={socket_dir}")


def test_an_alternative_that_fails_is_skipped_and_reported(opened: Open, socket_dir: str) -> None:
    skipped: list[str] = []
    address = f"tcp:port=1;unix:path={socket_dir}/bus;unix:path=/nonexistent/bus"
    (listener,) = opened(address, on_skipped=skipped.append)
    connect(listener)
    assert [reason.split(": ")[0] for reason in skipped] == ["tcp:port=1", "unix:path=/nonexistent/bus"]


def test_a_failure_closes_what_was_open_already(opened: Open, socket_dir: str) -> None:
    with pytest.raises(ListenError):
        opened(f"unix:path={socket_dir}/a", "unix:path=/nonexistent/bus")
    assert os.listdir(socket_dir) == []


def test_a_malformed_address_is_found_before_anything_is_opened(opened: Open, socket_dir: str) -> None:
    os.close(listening_socket(f"{socket_dir}/a"))
    with pytest.raises(AddressError):
        opened(f"unix:path={socket_dir}/a", "nonsense")
    assert os.listdir(socket_dir) == ["a"]


# The same by dbus-daemon.

DAEMON = shutil.which("dbus-daemon")


@pytest.mark.program("dbus-daemon")
@pytest.mark.parametrize(
    "address",
    [
        "unix:path={}/bus",
        "unix:path={}/a%20b",
        "unix:abstract={}/bus",
        "unix:runtime=yes",
        "unix:path={}/bus,guid=0123",
        "unix:path=/nonexistent/bus;unix:path={}/bus",
        "bogus:;unix:path={}/bus;",
    ],
)
def test_dbus_daemon_advertises_the_same_address(opened: Open, socket_dir: str, address: str) -> None:
    assert DAEMON is not None
    text = address.format(socket_dir)
    process = subprocess.Popen(
        [DAEMON, "--session", "--nofork", "--print-address", f"--address={text}"],
        env={**os.environ, "XDG_RUNTIME_DIR": socket_dir},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    theirs = process.stdout.readline().strip()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    (listener,) = opened(text, runtime_dir=socket_dir)
    assert listener.address.rpartition(",guid=")[0] == theirs.rpartition(",guid=")[0]
