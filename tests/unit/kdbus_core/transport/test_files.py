"""Open files: one owner each, what kind they are, whom they are charged to, and when they can be read."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from resource import RLIM_INFINITY

import pytest
from support.children import open_fds

from kdbus_core.caller import SEALS_REQUIRED, File, FileKind
from kdbus_core.errors import KdbusError
from kdbus_core.transport import files as files_module
from kdbus_core.transport.files import (
    FileAccounts,
    OpenFile,
    make_memfd,
    map_sealed,
    memory_seals,
    read_memfd,
)

DEADLINE = 30


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


class Tmp:
    """A file of each kind, made by name."""

    @staticmethod
    def make(kind: str) -> int:
        match kind:
            case "pipe":
                read_end, write_end = os.pipe()
                os.close(write_end)
                return read_end
            case "eventfd":
                return os.eventfd(0)
            case "unix stream" | "unix datagram":
                type_ = socket.SOCK_STREAM if kind == "unix stream" else socket.SOCK_DGRAM
                one, other = socket.socketpair(socket.AF_UNIX, type_)
                other.close()
                return one.detach()
            case "listening unix socket":
                return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).detach()
            case "udp socket":
                return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()
            case "regular file":
                with tempfile.TemporaryFile() as file:
                    return os.dup(file.fileno())
            case "directory":
                return os.open("/", os.O_RDONLY | os.O_DIRECTORY)
            case "path":
                return os.open("/", os.O_PATH)
            case "path of a socket":
                with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as sock:
                    sock.bind(f"{directory}/socket")
                    return os.open(f"{directory}/socket", os.O_PATH)
            case "null device":
                return os.open("/dev/null", os.O_RDWR)
            case _:
                return make_memfd(b"data", name=kind, sealed=kind == "sealed memory")


# Kinds


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        ("pipe", FileKind.ORDINARY),
        ("eventfd", FileKind.ORDINARY),
        ("unix stream", FileKind.UNIX_SOCKET),
        ("unix datagram", FileKind.UNIX_SOCKET),
        ("listening unix socket", FileKind.UNIX_SOCKET),
        ("udp socket", FileKind.ORDINARY),
        ("regular file", FileKind.ORDINARY),
        ("directory", FileKind.ORDINARY),
        ("path", FileKind.PATH),
        ("path of a socket", FileKind.PATH),
        ("sealed memory", FileKind.ORDINARY),
    ],
)
def test_a_file_is_of_a_kind(made: str, kind: FileKind) -> None:
    file = OpenFile(Tmp.make(made))
    assert file.kind is kind
    file.close()


@pytest.mark.parametrize(
    ("made", "pollable"),
    [
        ("pipe", True),
        ("eventfd", True),
        ("unix stream", True),
        ("regular file", False),
        ("directory", False),
        ("path", False),
        ("sealed memory", False),
    ],
)
def test_a_file_is_pollable_or_not(made: str, pollable: bool) -> None:
    file = OpenFile(Tmp.make(made))
    assert file.pollable is pollable
    file.close()


@pytest.mark.parametrize("made", ["pipe", "regular file", "udp socket", "path", "null device"])
def test_what_is_no_shared_memory_has_no_seals(made: str) -> None:
    # Where temporary files lie in memory they are shared memory, which cannot be sealed.
    file = OpenFile(Tmp.make(made))
    assert file.seals in ((None, 1) if made == "regular file" else (None,))
    file.close()


def test_memory_tells_its_seals_and_size() -> None:
    sealed, unsealed = (OpenFile(Tmp.make(kind)) for kind in ("sealed memory", "unsealed memory"))
    seals = sealed.seals
    assert seals is not None
    assert seals & SEALS_REQUIRED == SEALS_REQUIRED
    assert unsealed.seals == 0
    assert sealed.size == unsealed.size == 4
    sealed.close()
    unsealed.close()


# References


def test_an_open_file_is_a_file_of_the_broker() -> None:
    file: File = OpenFile(Tmp.make("pipe"))
    file.duplicate().close()
    file.close()


def test_the_last_reference_closes_the_descriptor() -> None:
    fd = Tmp.make("pipe")
    first = OpenFile(fd)
    second = first.duplicate()
    first.close()
    assert is_open(fd)
    assert second.fileno() == fd
    second.close()
    assert not is_open(fd)


def test_a_duplicate_takes_no_further_descriptor() -> None:
    file = OpenFile(Tmp.make("pipe"))
    before = open_fds()
    twin = file.duplicate()
    assert open_fds() == before
    twin.close()
    file.close()


def test_a_reference_is_closed_once() -> None:
    file = OpenFile(Tmp.make("pipe"))
    twin = file.duplicate()
    file.close()
    with pytest.raises(AssertionError):
        file.close()
    assert file.is_closed
    assert is_open(twin.fileno())
    twin.close()


def test_a_closed_reference_has_no_descriptor() -> None:
    file = OpenFile(Tmp.make("pipe"))
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.fileno()
    with pytest.raises(ValueError, match="closed"):
        file.duplicate()


# Accounts


def test_a_file_is_charged_until_its_last_reference_is_closed(loop: asyncio.AbstractEventLoop) -> None:
    accounts = FileAccounts(loop, 4)
    file = OpenFile(Tmp.make("pipe"), accounts.charge(1000))
    twin = file.duplicate()
    file.close()
    assert accounts.held_by(1000) == len(accounts) == 1
    twin.close()
    assert accounts.held_by(1000) == len(accounts) == 0


def test_nobody_has_more_open_than_the_limit(loop: asyncio.AbstractEventLoop) -> None:
    accounts = FileAccounts(loop, 2)
    held = [accounts.charge(1000) for _ in range(2)]
    with pytest.raises(KdbusError) as refused:
        accounts.charge(1000)
    assert refused.value.errno == errno.EMFILE
    accounts.charge(1001).refund()
    held.pop().refund()
    accounts.charge(1000)
    for account in (*held, *held):
        account.refund()
    assert len(accounts) == 0


def test_descriptors_are_taken_over_together(loop: asyncio.AbstractEventLoop) -> None:
    accounts = FileAccounts(loop, 3)
    fds = [Tmp.make("pipe") for _ in range(3)]
    taken = accounts.receive(fds, 1000)
    assert [file.fileno() for file in taken] == fds
    for file in taken:
        file.close()
    assert len(accounts) == 0


def test_descriptors_over_the_limit_are_all_closed(loop: asyncio.AbstractEventLoop) -> None:
    accounts = FileAccounts(loop, 2)
    fds = [Tmp.make("pipe") for _ in range(3)]
    with pytest.raises(KdbusError) as refused:
        accounts.receive(fds, 1000)
    assert refused.value.errno == errno.EMFILE
    assert not any(is_open(fd) for fd in fds)
    assert len(accounts) == 0


def test_one_user_gets_a_quarter_of_all_descriptors_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "getrlimit", lambda _: (1024, 4096))
    assert files_module.default_limit() == 256
    monkeypatch.setattr(files_module, "getrlimit", lambda _: (1 << 20, 1 << 20))
    assert files_module.default_limit() == files_module.MAX_FILES_PER_USER
    monkeypatch.setattr(files_module, "getrlimit", lambda _: (RLIM_INFINITY, RLIM_INFINITY))
    assert files_module.default_limit() == files_module.MAX_FILES_PER_USER


# Watching


class Watched:
    """A pipe whose read end is watched, and the write end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        read_end, self.write_end = os.pipe()
        self.loop = loop
        self.accounts = FileAccounts(loop, 16)
        self.file = OpenFile(read_end, self.accounts.charge(1000))
        self.told: list[str] = []

    def watch(self, name: str) -> Callable[[], None]:
        return self.file.watch(lambda: self.told.append(name))

    def write(self) -> None:
        os.write(self.write_end, b"x")

    def turn(self) -> None:
        """Let everything happen that is due."""

        async def turns() -> None:
            for _ in range(3):
                await asyncio.sleep(0)

        self.loop.run_until_complete(asyncio.wait_for(turns(), DEADLINE))

    def close(self) -> None:
        os.close(self.write_end)
        self.file.close()
        assert len(self.accounts) == 0


@pytest.fixture
def watched(loop: asyncio.AbstractEventLoop) -> Iterator[Watched]:
    watched = Watched(loop)
    yield watched
    watched.close()


def test_whoever_watches_is_told_once(watched: Watched) -> None:
    watched.watch("a")
    watched.turn()
    assert watched.told == []
    watched.write()
    watched.turn()
    watched.write()
    watched.turn()
    assert watched.told == ["a"]


def test_what_is_there_already_is_told_at_once(watched: Watched) -> None:
    watched.write()
    stop = watched.watch("a")
    assert watched.told == ["a"]
    stop()
    watched.turn()
    assert watched.told == ["a"]


def test_two_watch_the_same_file(watched: Watched) -> None:
    watched.watch("a")
    watched.watch("b")
    watched.write()
    watched.turn()
    assert sorted(watched.told) == ["a", "b"]


def test_whoever_has_stopped_is_not_told_and_the_other_is(watched: Watched) -> None:
    stop = watched.watch("a")
    watched.watch("b")
    stop()
    stop()
    watched.write()
    watched.turn()
    assert watched.told == ["b"]
    stop()


def test_a_file_is_watched_after_its_reference_was_closed(loop: asyncio.AbstractEventLoop) -> None:
    watched = Watched(loop)
    twin = watched.file.duplicate()
    stop = twin.watch(lambda: watched.told.append("a"))
    twin.close()
    watched.write()
    watched.turn()
    assert watched.told == ["a"]
    stop()
    watched.close()


def test_a_watch_is_charged_while_it_lasts(watched: Watched) -> None:
    stop = watched.watch("a")
    assert watched.accounts.held_by(1000) == 2
    stop()
    assert watched.accounts.held_by(1000) == 1
    watched.watch("b")
    watched.write()
    watched.turn()
    assert watched.accounts.held_by(1000) == 1


def test_what_nobody_has_room_to_watch_counts_as_readable(watched: Watched) -> None:
    watched.accounts.limit_per_user = 1
    stop = watched.watch("a")
    assert watched.told == ["a"]
    stop()
    assert watched.accounts.held_by(1000) == 1


def test_a_file_that_only_hangs_up_is_forgotten(loop: asyncio.AbstractEventLoop) -> None:
    watched = Watched(loop)
    watched.watch("a")
    os.close(watched.write_end)
    watched.turn()
    assert watched.told == []
    assert watched.accounts.held_by(1000) == 1
    watched.write_end = Tmp.make("eventfd")
    watched.close()


def test_watching_stops_after_its_loop_was_closed() -> None:
    loop = asyncio.new_event_loop()
    watched = Watched(loop)
    stop = watched.watch("a")
    loop.close()
    stop()
    watched.close()


# Shared memory


@pytest.mark.parametrize("data", [b"", b"one", [b"one", b"", memoryview(b"two")], [b"x"] * 3000])
@pytest.mark.parametrize("sealed", [False, True])
def test_memory_has_what_it_was_made_of(data: bytes | list[bytes], sealed: bool) -> None:
    fd = make_memfd(data, name="test", sealed=sealed)
    expected = data if isinstance(data, bytes) else b"".join(data)
    assert read_memfd(fd, 0, len(expected)) == expected
    assert (memory_seals(fd) or 0) & SEALS_REQUIRED == (SEALS_REQUIRED if sealed else 0)
    os.close(fd)


def test_sealed_memory_cannot_be_written() -> None:
    fd = make_memfd(b"data", name="test", sealed=True)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


@pytest.mark.parametrize(("start", "size"), [(0, 10000), (4095, 2), (4097, 100), (9999, 1), (10000, 0)])
def test_sealed_memory_is_seen_without_a_copy(start: int, size: int) -> None:
    data = os.urandom(10000)
    fd = make_memfd(data, name="test", sealed=True)
    view = map_sealed(fd, start, size)
    assert read_memfd(fd, start, size) == data[start : start + size]
    os.close(fd)
    assert view == data[start : start + size]
    assert view.readonly
    del view


@pytest.mark.parametrize("read", [read_memfd, map_sealed])
@pytest.mark.parametrize(("start", "size"), [(0, 5), (4, 1), (5, 0), (-1, 2), (1, -1)])
def test_memory_is_not_read_outside(read: Callable[[int, int, int], object], start: int, size: int) -> None:
    fd = make_memfd(b"data", name="test", sealed=True)
    with pytest.raises(KdbusError) as refused:
        read(fd, start, size)
    assert refused.value.errno == errno.EFAULT
    os.close(fd)


@pytest.mark.parametrize("read", [read_memfd, map_sealed])
@pytest.mark.parametrize("made", ["pipe", "null device", "eventfd", "path"])
def test_nothing_is_read_that_is_no_shared_memory(read: Callable[[int, int, int], object], made: str) -> None:
    fd = Tmp.make(made)
    with pytest.raises(KdbusError) as refused:
        read(fd, 0, 0)
    assert refused.value.errno == errno.EMEDIUMTYPE
    os.close(fd)


def test_memory_that_may_shrink_is_not_mapped() -> None:
    fd = make_memfd(b"data", name="test", sealed=False)
    with pytest.raises(KdbusError) as refused:
        map_sealed(fd, 0, 4)
    assert refused.value.errno == errno.ETXTBSY
    os.close(fd)


def test_memory_that_cannot_be_read_is_refused() -> None:
    fd = make_memfd(b"data", name="test", sealed=False)
    write_only = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    with pytest.raises(KdbusError) as refused:
        read_memfd(write_only, 0, 4)
    assert refused.value.errno == errno.EFAULT
    os.close(fd)
    os.close(write_only)
