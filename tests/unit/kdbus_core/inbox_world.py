"""Stand-ins for tests of an inbox: messages that count their holders, trackers that count what they are told.

An inbox asks nothing else of a message and of a tracker. `assert_holds_nothing` is the judge: it looks into
every place where an inbox could have kept something of what has left it.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import errorcode
from struct import Struct
from typing import cast

from kdbus_core.abi import PAGE_SIZE
from kdbus_core.caller import FileKind
from kdbus_core.errors import KdbusError
from kdbus_core.inbox import Entry, Inbox, Parcel
from kdbus_core.message import Message
from kdbus_core.pool import Memory, Pool
from kdbus_core.quota import Quota
from kdbus_core.replies import Tracker

MANY = 1 << 30
FD = Struct("=i")


class FakeFile:
    """An open file that nobody ever reads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kind = FileKind.ORDINARY
        self.seals: int | None = None
        self.size = 0
        self.pollable = False

    def duplicate(self) -> FakeFile:
        raise AssertionError("an inbox installs files and does not copy them")

    def close(self) -> None:
        raise AssertionError("files belong to their message")

    def watch(self, on_readable: Callable[[], None]) -> Callable[[], None]:
        raise AssertionError(f"nobody waits for {self.name}: {on_readable}")


class FakeMessage:
    """Counts its holders."""

    def __init__(self) -> None:
        self.holders = 0

    def hold(self) -> None:
        self.holders += 1

    def release(self) -> None:
        assert self.holders
        self.holders -= 1


class FakeTracker:
    """Counts how often it heard that its request has left a queue."""

    def __init__(self) -> None:
        self.dequeued = 0

    def on_dequeued(self) -> None:
        self.dequeued += 1

    @property
    def tracker(self) -> Tracker:
        """This, as what an inbox takes it for."""
        return cast(Tracker, self)


class Table:
    """A receiver's table of descriptors with room for so many more."""

    def __init__(self, room: int = 100, first: int = 10) -> None:
        self.files: dict[int, str] = {}
        self._room = room
        self._first = first

    def install(self, file: object) -> int:
        assert isinstance(file, FakeFile)
        if len(self.files) >= self._room:
            return -1
        number = self._first + len(self.files)
        self.files[number] = file.name
        return number


def make_inbox(
    size: int = 16 * PAGE_SIZE,
    *,
    capacity: int = MANY,
    max_messages: int = MANY,
    max_fds: int = 16,
    memory: Memory | None = None,
    on_ready: Callable[[], None] | None = None,
) -> Inbox:
    """An empty inbox with a quota that is in nobody's way unless told otherwise."""
    return Inbox(Pool(size, memory), Quota(capacity, max_messages, max_fds), on_ready)


def parcel(
    content: bytes = b"message.", *, message: FakeMessage | None = None, fds: int = 0, memfds: int = 0
) -> Parcel:
    """Content, then a place for each descriptor with -1 in it: files a, b, … and memory A, B, …"""
    places = [
        (len(content) + FD.size * index, FakeFile(chr(first + number)))
        for index, (first, number) in enumerate(
            [(ord("a"), number) for number in range(fds)] + [(ord("A"), number) for number in range(memfds)]
        )
    ]
    chunks = (content, FD.pack(-1) * (fds + memfds))
    return Parcel(
        chunks,
        -(-sum(map(len, chunks)) // 8) * 8,
        message=cast(Message, message),
        fds=tuple(places[:fds]),
        memfds=tuple(places[fds:]),
        fd_count=fds,
    )


def content(inbox: Inbox, offset: int, size: int) -> bytes:
    """What the receiver sees there."""
    return inbox.pool.memory.read(offset, size)


def numbers(inbox: Inbox, offset: int, count: int) -> list[int]:
    """That many descriptors' numbers behind the content of a standard parcel."""
    return [number for (number,) in FD.iter_unpack(content(inbox, offset + 8, count * FD.size))]


def take(inbox: Inbox, entry: Entry) -> tuple[int, int]:
    """Hand over an entry without files, and free its slice."""
    offset, size, incomplete = inbox.take(entry, None, accept_fds=True)
    assert not incomplete
    inbox.pool.free(offset)
    return offset, size


def drain(inbox: Inbox, priority: int | None = None) -> list[Entry]:
    """All entries in the order in which they are received."""
    entries = []
    while (entry := inbox.head(priority)) is not None:
        take(inbox, entry)
        entries.append(entry)
    return entries


def errno_of(command: Callable[[], object]) -> str:
    """The name of the errno it is refused with, or nothing."""
    try:
        command()
    except KdbusError as error:
        return errorcode[error.errno]
    return ""


def assert_holds_nothing(inbox: Inbox, *messages: FakeMessage) -> None:
    """Neither the inbox nor its pool nor its quota keeps anything of anybody."""
    assert len(inbox) == 0
    assert not inbox._apart
    assert inbox.reserved == 0
    assert not inbox._urgent
    assert inbox.pool.busy == 0
    assert len(list(inbox.pool.slices())) == 1
    quota = inbox.quota
    assert not quota.shares
    assert (quota.total_memory, quota.total_messages, quota.total_fds) == (0, 0, 0)
    assert [message.holders for message in messages] == [0] * len(messages)
