"""What the broker's benchmark is made of: a bus, connections, programs that use handles, bloom filters.

Everybody is the bus' owner, as on a session bus. The clocks only count, so that every run sees the same
times, and what they cost is what a host's clocks cost. Pools are in the broker's own memory, since the
memory of a transport is not what is measured.

Masks and filters are made as clients make them from match rules and signals: a few strings each, eight bits
a string. All of them come from a seeded generator.
"""

from collections.abc import Iterable
from errno import EFAULT
from functools import cache
from hashlib import blake2b
from itertools import count
from random import Random

from kdbus_core import Bus, Connection, Domain, KdbusError
from kdbus_core.abi import ATTACH_ALL, CMD_HELLO, PAGE_SIZE, Command, ItemType, MakeFlag
from kdbus_core.caller import File
from kdbus_core.connection import Limits
from kdbus_core.handle import Handle
from kdbus_core.inbox import Inbox
from kdbus_core.items import build_string_item
from kdbus_core.matches import BloomMask, Filter
from kdbus_core.metadata import Audit, Caps, Creds, Pids, Process, Snapshot
from kdbus_core.pool import Pool

POOL_SIZE = 256 * PAGE_SIZE
DESCRIPTION = "bench"
_NO_LIMIT = 1 << 32
_LIMITS = Limits(names=_NO_LIMIT, matches=_NO_LIMIT)

_MICROSECOND_NS = 1000
_START_NS = 1_000_000_000
FAR_AWAY_NS = 1 << 62
"""A deadline that does not pass."""

_BLOOM_SIZE = 64
_HASHES = 8
_BLOOM_BITS = _BLOOM_SIZE * 8 - 1


# The bus and who is on it


def make_bus() -> Bus:
    """A bus of uid 1000 in a domain whose clocks go on by a microsecond each time they are read."""
    monotonic = count(_START_NS, _MICROSECOND_NS).__next__
    realtime = count(_START_NS, _MICROSECOND_NS).__next__
    return Domain(bytes, monotonic, realtime).make_bus("1000-bench", make_process(1), MakeFlag.ACCESS_WORLD)


def make_process(pid: int) -> Process:
    """A process of uid 1000 of which everything is known."""
    return Process(
        Snapshot(
            creds=Creds(*[1000] * 8),
            pids=Pids(pid, pid, 1),
            auxgroups=(4, 24, 27, 1000),
            tid_comm=b"worker",
            pid_comm=b"program",
            exe=b"/usr/libexec/program",
            cmdline=b"/usr/libexec/program",
            cgroup=b"/user.slice/user-1000.slice/session-1.scope",
            caps=Caps(40, 0, 0, 0, (1 << 41) - 1),
            seclabel=b"unconfined",
            audit=Audit(1, 1000),
        )
    )


def attach_mask(*, metadata: bool) -> int:
    """All metadata or none."""
    return ATTACH_ALL if metadata else 0


def connect(bus: Bus, process: Process | None = None, *, metadata: bool = False) -> Connection:
    """A native connection without limits on names and matches; with metadata it grants and asks for all."""
    mask = attach_mask(metadata=metadata)
    return bus.hello(
        bus.endpoint,
        process or bus.creator,
        pool=Pool(POOL_SIZE),
        attach_send=mask,
        attach_recv=mask,
        description=DESCRIPTION,
        limits=_LIMITS,
        max_connections=None,
    )


def inbox_of(connection: Connection) -> Inbox:
    """The inbox that every native connection has."""
    assert connection.inbox is not None
    return connection.inbox


def check_idle(connections: Iterable[Connection]) -> None:
    """Nothing waits anywhere, nothing was lost, and everything was freed."""
    for connection in connections:
        inbox = inbox_of(connection)
        assert len(inbox) == 0
        assert inbox.lost == 0
        assert inbox.pool.busy == 0
        assert connection.outstanding == 0


def install_nothing(file: File) -> int:
    """Nobody here hands over files."""
    raise AssertionError(f"{file} came from nowhere")


# Programs that use handles


class Program:
    """A caller with one piece of memory, in which what it `put` lies one after another, and a handle."""

    BASE = 0x10000

    def __init__(self, bus: Bus, process: Process) -> None:
        self.memory = bytearray()
        self.handle = Handle(bus.endpoint, process)

    def put(self, data: bytes) -> int:
        """Lay bytes at the next multiple of 8; their address."""
        address = self.BASE + len(self.memory)
        self.memory += data + bytes(-len(data) % 8)
        return address

    def read(self, address: int, size: int) -> bytes:
        start = address - self.BASE
        if start < 0 or start + size > len(self.memory):
            raise KdbusError(EFAULT, f"nothing lies at {address:#x}")
        return bytes(self.memory[start : start + size])

    def write(self, address: int, data: bytes) -> None:
        start = address - self.BASE
        if start < 0 or start + len(data) > len(self.memory):
            raise KdbusError(EFAULT, f"nothing lies at {address:#x}")
        self.memory[start : start + len(data)] = data

    def file(self, fd: int) -> None:
        """It has no descriptors."""

    def install(self, file: File) -> int:
        return install_nothing(file)

    @property
    def connection(self) -> Connection:
        """What it is once it has said hello."""
        assert self.handle.connection is not None
        return self.handle.connection

    def hello(self, *, metadata: bool) -> None:
        """Connect, and free what HELLO puts into the pool."""
        mask = attach_mask(metadata=metadata)
        items = build_string_item(ItemType.CONN_DESCRIPTION, DESCRIPTION)
        size = CMD_HELLO.size + len(items)
        command = CMD_HELLO.pack(size, 0, 0, mask, mask, 0, 0, POOL_SIZE, 0, 0, bytes(16))
        self.handle.ioctl(self, Command.HELLO, self.put(command + items))
        inbox_of(self.connection).pool.free(0)


# Bloom filters


@cache
def _bits_of(text: str) -> int:
    digest = blake2b(text.encode(), digest_size=2 * _HASHES).digest()
    bits = 0
    for index in range(_HASHES):
        bits |= 1 << (int.from_bytes(digest[2 * index : 2 * index + 2], "little") & _BLOOM_BITS)
    return bits


def _build_bits(strings: Iterable[str]) -> bytes:
    bits = 0
    for text in strings:
        bits |= _bits_of(text)
    return bits.to_bytes(_BLOOM_SIZE, "little")


def make_mask(*strings: str) -> BloomMask:
    """The mask of a rule that asks for these strings."""
    return BloomMask((_build_bits(strings),))


def make_filter(*strings: str) -> Filter:
    """The filter of a signal that has these strings."""
    return Filter(0, _build_bits(strings))


INTERFACE = "interface:org.example.Bench"
MEMBER = "member:Changed"
PATH = "path:/org/example/bench"


def make_signal(number: int, argument: int | None = None) -> Filter:
    """The filter of one of many similar signals, with the strings that senders put into it."""
    argument = number if argument is None else argument
    return make_filter(
        "message-type:signal",
        INTERFACE,
        MEMBER,
        f"{PATH}/{number}",
        "path-slash-prefix:/org/example",
        "path-slash-prefix:/org/example/bench",
        f"path-slash-prefix:/org/example/bench/{number}",
        f"arg0:argument{argument}",
    )


def make_foreign_mask(random: Random) -> BloomMask:
    """What somebody asks for who does not want these signals: one to four strings that they do not have."""
    strings = (
        f"interface:org.example.Interface{random.randrange(2000)}",
        f"member:Member{random.randrange(3000)}",
        f"path:/org/example/object/{random.randrange(100_000)}",
        f"arg0:value{random.randrange(100_000)}",
        f"path-slash-prefix:/org/example/tree{random.randrange(5000)}",
    )
    return make_mask(*random.sample(strings, random.randint(1, 4)))
