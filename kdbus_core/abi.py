"""Numbers of the kdbus interface: flags, identifiers and limits, one table each.

The values are those of the final kernel interface, so that what is logged,
listed or sent to a native peer means the same everywhere.  Connection and
message numbers are 64 bit unsigned.
"""

from enum import IntFlag

DST_NAME = 0
SRC_KERNEL = 0
DST_BROADCAST = (1 << 64) - 1
MATCH_ANY = DST_BROADCAST


class HelloFlag(IntFlag):
    """What a connection is, as asked for by HELLO."""

    ACCEPT_FD = 1
    ACTIVATOR = 2
    POLICY_HOLDER = 4
    MONITOR = 8


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


class AttachFlag(IntFlag):
    """Kinds of metadata that CONN_INFO can be asked for and messages can carry."""

    TIMESTAMP = 1 << 0
    CREDS = 1 << 1
    PIDS = 1 << 2
    AUXGROUPS = 1 << 3
    NAMES = 1 << 4
    SECLABEL = 1 << 11
    CONN_DESCRIPTION = 1 << 13


class MakeFlag(IntFlag):
    """Who, besides the owner, may open a node."""

    ACCESS_GROUP = 1
    ACCESS_WORLD = 2


# Limits of a bus that is used as the kernel's was; a proxied connection brings
# its own, taken from the bus configuration (`Limits`).
MAX_NAMES = 256
MAX_MATCHES = 4096
MAX_OUTSTANDING_REQUESTS = 128
MAX_CONNECTIONS_PER_USER = 1024
MAX_BUSES_PER_USER = 16
MAX_QUEUED_MESSAGES = 256
MAX_IN_FLIGHT_FDS = 16
MAX_NAME_LENGTH = 255
MAX_NODE_NAME_LENGTH = 63
DEFAULT_POOL_SIZE = 16 * 1024 * 1024
