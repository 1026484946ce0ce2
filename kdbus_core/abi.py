"""Numbers of the kdbus interface: commands, structs, items, flags and limits, one table each.

The values are those of the final kernel interface, so that what is logged,
listed or sent to a native peer means the same everywhere.  Two commands are
ours for compatibility with its first version, DOMAIN_MAKE and MSG_CANCEL; and
so are the make flag FINAL_METADATA, and AUXGROUPS as an item of HELLO.

All integers are 64 bit in the machine's byte order unless a struct says
otherwise; every command and item begins at a multiple of 8.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

DST_NAME = 0
SRC_KERNEL = 0
DST_BROADCAST = (1 << 64) - 1
MATCH_ANY = DST_BROADCAST
UNSET_ID = (1 << 32) - 1
"""A uid or gid that is not known, in CREDS and AUDIT."""
OVERFLOW_ID = 65534
"""What a uid or gid is to somebody in whose user namespace it does not exist."""
PAYLOAD_KERNEL = 0
PAYLOAD_DBUS = 0x4442757344427573
ZERO_FILL = (1 << 64) - 1
"""The offset in PAYLOAD_OFF of bytes that are all zero and are not stored."""


class Command(IntEnum):
    """A request number as ioctl(2) took it: direction, size of the struct, magic 0x95, number."""

    BUS_MAKE = 0x40189500
    DOMAIN_MAKE = 0x40189501
    ENDPOINT_MAKE = 0x40189510
    ENDPOINT_UPDATE = 0x40189511
    HELLO = 0xC0609580
    UPDATE = 0x40189581
    BYEBYE = 0x40189582
    FREE = 0x40209583
    CONN_INFO = 0x80389584
    BUS_CREATOR_INFO = 0x80389585
    LIST = 0x80289586
    SEND = 0x40389590
    RECV = 0x80409591
    MSG_CANCEL = 0x40209592
    NAME_ACQUIRE = 0x401895A0
    NAME_RELEASE = 0x401895A1
    MATCH_ADD = 0x402095B0
    MATCH_REMOVE = 0x402095B1


# Structs: what precedes the items. Each begins with size, flags, return_flags.

CMD = Struct("=3Q")
CMD_HELLO = Struct("=3Q7Q16s")
"""attach_flags_send, attach_flags_recv, bus_flags, id, pool_size, offset, items_size, id128."""
CMD_SEND = Struct("=3Q4Q")  # msg_address, reply: offset, msg_size, return_flags
CMD_RECV = Struct("=3QqQ3Q")  # priority, dropped_msgs, msg: offset, msg_size, return_flags
CMD_FREE = Struct("=3QQ")  # offset
CMD_INFO = Struct("=3Q4Q")  # id, attach_flags, offset, info_size
CMD_LIST = Struct("=3Q2Q")  # offset, list_size
CMD_MATCH = Struct("=3QQ")  # cookie; MSG_CANCEL has the same
MSG = Struct("=2Qq5Q")
"""size, flags, priority, dst_id, src_id, payload_type, cookie, and timeout_ns or cookie_reply."""
INFO = Struct("=3Q")
"""A record of LIST, CONN_INFO and BUS_CREATOR_INFO: size, id, flags; items follow."""
ITEM_HEADER = Struct("=2Q")
"""size (this header included, padding excluded), type."""


class ItemType(IntEnum):
    """Kinds of items in commands, messages and records."""

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


NEGOTIATE = 1 << 63
"""In the flags of any command or message: write back what is supported and do nothing."""


class MakeFlag(IntFlag):
    """Who, besides the owner, may open a node; and which metadata a bus delivers."""

    ACCESS_GROUP = 1
    ACCESS_WORLD = 2
    FINAL_METADATA = 4
    """Of a bus: attach metadata by the final kernel's formula instead of by consent."""


class HelloFlag(IntFlag):
    """What a connection is, as asked for by HELLO."""

    ACCEPT_FD = 1
    ACTIVATOR = 2
    POLICY_HOLDER = 4
    MONITOR = 8


class MessageFlag(IntFlag):
    """Flags of a message."""

    EXPECT_REPLY = 1
    NO_AUTO_START = 2
    SIGNAL = 4


class SendFlag(IntFlag):
    """Flags of SEND."""

    SYNC_REPLY = 1


class ReceiveFlag(IntFlag):
    """Flags of RECV."""

    PEEK = 1
    DROP = 2
    USE_PRIORITY = 4


class ReceiveReturnFlag(IntFlag):
    """What RECV says of a message (INCOMPLETE_FDS) and of the queue (DROPPED_MSGS)."""

    INCOMPLETE_FDS = 1
    DROPPED_MSGS = 2


class ListFlag(IntFlag):
    """What LIST lists."""

    UNIQUE = 1
    NAMES = 2
    ACTIVATORS = 4
    QUEUED = 8


class MatchFlag(IntFlag):
    """Flags of MATCH_ADD."""

    REPLACE = 1


class NameFlag(IntFlag):
    """Flags of a name's owner; the last four are only ever returned."""

    REPLACE_EXISTING = 1
    ALLOW_REPLACEMENT = 2
    QUEUE = 4
    IN_QUEUE = 8
    ACTIVATOR = 16
    PRIMARY = 32
    ACQUIRED = 64


NAME_ACQUIRE_FLAGS = NameFlag.REPLACE_EXISTING | NameFlag.ALLOW_REPLACEMENT | NameFlag.QUEUE
NAME_SAVED_FLAGS = NameFlag.ALLOW_REPLACEMENT | NameFlag.QUEUE


class AccessType(IntEnum):
    """Whom a policy access is for."""

    USER = 1
    GROUP = 2
    WORLD = 3


class AccessLevel(IntEnum):
    """What a policy access allows; each level contains those below it."""

    SEE = 0
    TALK = 1
    OWN = 2


class AttachFlag(IntFlag):
    """Kinds of metadata; bit n is the item 0x1000 + n."""

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
ATTACH_ANY = (1 << 64) - 1
"""Accepted wherever attach flags are, as all of them."""

# Limits of a bus that is used as the kernel's was; a proxied connection brings
# its own, taken from the bus configuration (`Limits`).
MAX_COMMAND_SIZE = 32 * 1024
MAX_VEC_PAYLOAD = 2 * 1024 * 1024
MAX_MEMFDS = 16
MAX_FDS = 16
MIN_BLOOM_SIZE = 8
MAX_BLOOM_SIZE = 4096
MAX_NAMES = 256
MAX_MATCHES = 4096
MAX_MASK_BYTES = MAX_MATCHES * MAX_BLOOM_SIZE
"""Of all bloom masks of one connection: as much as so many masks of the largest size."""
MAX_OUTSTANDING_REQUESTS = 128
MAX_CONNECTIONS_PER_USER = 1024
MAX_BUSES_PER_USER = 16
MAX_QUEUED_MESSAGES = 256
MAX_IN_FLIGHT_FDS = 16
MAX_NAME_LENGTH = 255
MAX_NODE_NAME_LENGTH = 63
DEFAULT_POOL_SIZE = 16 * 1024 * 1024
MAX_POOL_SIZE = 1024 * 1024 * 1024
PAGE_SIZE = 4096
"""Pool sizes are multiples of this."""


def align(size: int) -> int:
    """The next multiple of 8."""
    return (size + 7) & ~7
