"""Numbers and layouts of the kdbus interface, written down a second time for the tests.

Nothing here comes from `kdbus_core.abi`: a mistake there has to show as a refused command or as a message
that cannot be read. Offsets are counted in bytes from the start of a struct; integers are in the machine's
byte order. The builders make items for commands; `pad=False` leaves out the last item's tail padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, IntFlag
from struct import pack

ANY = 2**64 - 1
DST_BROADCAST = 2**64 - 1
NEGOTIATE = 1 << 63
UNSET_ID = 2**32 - 1
OVERFLOW_ID = 65534
ZERO_FILL = 2**64 - 1
PAYLOAD_KERNEL = 0
PAYLOAD_DBUS = 0x4442757344427573

PAGE = 4096
MAX_COMMAND_SIZE = 32 * 1024
MAX_VEC_PAYLOAD = 2 * 1024 * 1024
POOL_SIZE = 16 * 1024 * 1024
BLOOM_SIZE = 64
CANARY = 0xFEEDFACECAFEBEEF
"""What stands in `return_flags` before a command."""

F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 1, 2, 4, 8
F_SEAL_ALL = 15

POLLIN, POLLOUT, POLLERR, POLLHUP, POLLRDNORM, POLLWRNORM = 0x1, 0x4, 0x8, 0x10, 0x40, 0x100


class Layout:
    """A command: its request number, the size of the struct, and where each field after the prefix is."""

    def __init__(self, request: int, size: int, **fields: int | tuple[int, str]) -> None:
        self.request = request
        self.size = size
        self.fields: dict[str, tuple[int, str]] = {
            name: (at, "=Q") if isinstance(at, int) else at for name, at in fields.items()
        }

    def build(self, flags: int, size: int, values: dict[str, int]) -> bytes:
        """The struct; what is not given is zero."""
        raw = bytearray(self.size)
        raw[0:24] = pack("=3Q", size, flags, CANARY)
        for name, value in values.items():
            at, code = self.fields[name]
            raw[at : at + 8] = pack(code, value)
        return bytes(raw)


def encode_request(direction: int, size: int, number: int) -> int:
    """A request number as ioctl(2) wants it; direction 1 is W, 2 is R, 3 is both."""
    return direction << 30 | size << 16 | 0x95 << 8 | number


BUS_MAKE = Layout(0x40189500, 24)
DOMAIN_MAKE = Layout(0x40189501, 24)
ENDPOINT_MAKE = Layout(0x40189510, 24)
ENDPOINT_UPDATE = Layout(0x40189511, 24)
HELLO = Layout(
    0xC0609580,
    96,
    attach_flags_send=24,
    attach_flags_recv=32,
    bus_flags=40,
    id=48,
    pool_size=56,
    offset=64,
    items_size=72,
)
UPDATE = Layout(0x40189581, 24)
BYEBYE = Layout(0x40189582, 24)
FREE = Layout(0x40209583, 32, offset=24)
CONN_INFO = Layout(0x80389584, 56, id=24, attach_flags=32, offset=40, info_size=48)
BUS_CREATOR_INFO = Layout(0x80389585, 56, id=24, attach_flags=32, offset=40, info_size=48)
LIST = Layout(0x80289586, 40, offset=24, list_size=32)
SEND = Layout(0x40389590, 56, msg_address=24, offset=32, msg_size=40, msg_return_flags=48)
RECV = Layout(
    0x80409591, 64, priority=(24, "=q"), dropped_msgs=32, offset=40, msg_size=48, msg_return_flags=56
)
MSG_CANCEL = Layout(0x40209592, 32, cookie=24)
NAME_ACQUIRE = Layout(0x401895A0, 24)
NAME_RELEASE = Layout(0x401895A1, 24)
MATCH_ADD = Layout(0x402095B0, 32, cookie=24)
MATCH_REMOVE = Layout(0x402095B1, 32, cookie=24)

MSG_SIZE = 64
INFO_SIZE = 24


class ItemType(IntEnum):
    """Kinds of items."""

    NEGOTIATE = 1
    PAYLOAD_VEC = 2
    PAYLOAD_OFF = 3
    PAYLOAD_MEMFD = 4
    FDS = 5
    CANCEL_FD = 6
    BLOOM_PARAMETER = 7
    BLOOM_FILTER = 8
    BLOOM_MASK = 9
    DST_NAME = 10
    MAKE_NAME = 11
    ATTACH_FLAGS_SEND = 12
    ATTACH_FLAGS_RECV = 13
    ID = 14
    NAME = 15
    DST_ID = 16
    TIMESTAMP = 0x1000
    CREDS = 0x1001
    PIDS = 0x1002
    AUXGROUPS = 0x1003
    OWNED_NAME = 0x1004
    TID_COMM = 0x1005
    PID_COMM = 0x1006
    EXE = 0x1007
    CMDLINE = 0x1008
    CGROUP = 0x1009
    CAPS = 0x100A
    SECLABEL = 0x100B
    AUDIT = 0x100C
    CONN_DESCRIPTION = 0x100D
    POLICY_ACCESS = 0x2000
    NAME_ADD = 0x8000
    NAME_REMOVE = 0x8001
    NAME_CHANGE = 0x8002
    ID_ADD = 0x8003
    ID_REMOVE = 0x8004
    REPLY_TIMEOUT = 0x8005
    REPLY_DEAD = 0x8006


METADATA_ORDER = (
    ItemType.CREDS,
    ItemType.PIDS,
    ItemType.AUXGROUPS,
    ItemType.TID_COMM,
    ItemType.PID_COMM,
    ItemType.EXE,
    ItemType.CMDLINE,
    ItemType.CGROUP,
    ItemType.CAPS,
    ItemType.SECLABEL,
    ItemType.AUDIT,
    ItemType.OWNED_NAME,
    ItemType.CONN_DESCRIPTION,
    ItemType.TIMESTAMP,
)


class Make(IntFlag):
    """Flags of BUS_MAKE and ENDPOINT_MAKE."""

    ACCESS_GROUP = 1
    ACCESS_WORLD = 2
    FINAL_METADATA = 4


class Hello(IntFlag):
    """Flags of HELLO."""

    ACCEPT_FD = 1
    ACTIVATOR = 2
    POLICY_HOLDER = 4
    MONITOR = 8


class Msg(IntFlag):
    """Flags of a message."""

    EXPECT_REPLY = 1
    NO_AUTO_START = 2
    SIGNAL = 4


SYNC_REPLY = 1


class Recv(IntFlag):
    """Flags of RECV."""

    PEEK = 1
    DROP = 2
    USE_PRIORITY = 4


INCOMPLETE_FDS = 1
DROPPED_MSGS = 2


class List(IntFlag):
    """Flags of LIST."""

    UNIQUE = 1
    NAMES = 2
    ACTIVATORS = 4
    QUEUED = 8


LIST_ALL = List.UNIQUE | List.NAMES | List.ACTIVATORS | List.QUEUED
MATCH_REPLACE = 1


class Name(IntFlag):
    """Flags of a name's owner."""

    REPLACE_EXISTING = 1
    ALLOW_REPLACEMENT = 2
    QUEUE = 4
    IN_QUEUE = 8
    ACTIVATOR = 16
    PRIMARY = 32
    ACQUIRED = 64


class Attach(IntFlag):
    """Kinds of metadata."""

    TIMESTAMP = 1 << 0
    CREDS = 1 << 1
    PIDS = 1 << 2
    AUXGROUPS = 1 << 3
    NAMES = 1 << 4
    TID_COMM = 1 << 5
    PID_COMM = 1 << 6
    EXE = 1 << 7
    CMDLINE = 1 << 8
    CGROUP = 1 << 9
    CAPS = 1 << 10
    SECLABEL = 1 << 11
    AUDIT = 1 << 12
    CONN_DESCRIPTION = 1 << 13


ATTACH_ALL = 0x3FFF

USER, GROUP, WORLD = 1, 2, 3
SEE, TALK, OWN = 0, 1, 2


# Building items


def align(size: int) -> int:
    """The next multiple of 8."""
    return -(-size // 8) * 8


def item(kind: int, payload: bytes = b"", *, pad: bool = True) -> bytes:
    """One item; its size counts header and payload, not the padding after it."""
    raw = pack("=2Q", 16 + len(payload), kind) + payload
    return raw.ljust(align(len(raw)), b"\0") if pad else raw


def string(kind: int, text: str | bytes, *, pad: bool = True) -> bytes:
    """An item with a string and its NUL."""
    raw = text.encode() if isinstance(text, str) else text
    return item(kind, raw + b"\0", pad=pad)


def number(kind: int, value: int) -> bytes:
    """An item with one integer: ID, DST_ID, ATTACH_FLAGS_…"""
    return item(kind, pack("=Q", value))


def name(text: str | bytes) -> bytes:
    return string(ItemType.NAME, text)


def vec_at(address: int, size: int) -> bytes:
    """PAYLOAD_VEC; address 0 means so many zeros."""
    return item(ItemType.PAYLOAD_VEC, pack("=2Q", size, address))


def memfd(fd: int, size: int, start: int = 0) -> bytes:
    return item(ItemType.PAYLOAD_MEMFD, pack("=2QiI", start, size, fd, 0))


def fds(numbers: Iterable[int]) -> bytes:
    return item(ItemType.FDS, b"".join(pack("=i", fd) for fd in numbers))


def cancel_fd(fd: int) -> bytes:
    return item(ItemType.CANCEL_FD, pack("=i", fd))


def bloom_parameter(size: int = BLOOM_SIZE, n_hash: int = 1) -> bytes:
    return item(ItemType.BLOOM_PARAMETER, pack("=2Q", size, n_hash))


def bloom_filter(bits: bytes = bytes(BLOOM_SIZE), generation: int = 0) -> bytes:
    return item(ItemType.BLOOM_FILTER, pack("=Q", generation) + bits)


def bloom_mask(*generations: bytes) -> bytes:
    return item(ItemType.BLOOM_MASK, b"".join(generations))


def bits(at: dict[int, int], size: int = BLOOM_SIZE) -> bytes:
    """A bloom field that is zero but for these bytes: {position: value}."""
    field = bytearray(size)
    for position, value in at.items():
        field[position] = value
    return bytes(field)


def access(kind: int, level: int, id: int = 0) -> bytes:
    """POLICY_ACCESS: USER, GROUP or WORLD; SEE, TALK or OWN; whom."""
    return item(ItemType.POLICY_ACCESS, pack("=3Q", kind, level, id))


def creds(uid: int, euid: int, suid: int, fsuid: int, gid: int, egid: int, sgid: int, fsgid: int) -> bytes:
    return item(ItemType.CREDS, pack("=8Q", uid, euid, suid, fsuid, gid, egid, sgid, fsgid))


def pids(pid: int, tid: int = 0, ppid: int = 0) -> bytes:
    return item(ItemType.PIDS, pack("=3Q", pid, tid, ppid))


def negotiate(*kinds: int) -> bytes:
    return item(ItemType.NEGOTIATE, pack(f"={len(kinds)}Q", *kinds))


def id_rule(kind: int, id: int = ANY, flags: int = 0) -> bytes:
    """An ID_ADD or ID_REMOVE rule."""
    return item(kind, pack("=2Q", id, flags))


def name_rule(kind: int, name: str | None = None, *, old: int = ANY, new: int = ANY) -> bytes:
    """A NAME_ADD, NAME_REMOVE or NAME_CHANGE rule; without a name it is for any."""
    return item(kind, pack("=4Q", old, 0, new, 0) + (name.encode() + b"\0" if name is not None else b""))
