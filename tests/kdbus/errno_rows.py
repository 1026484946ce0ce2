"""Everything that can be refused, as data: which errno each command gives, and when.

`ROWS` has a row for each condition under which a system call on a handle fails. A row is for one operation,
or for several that share a check; operations are the commands, and in lower case what else can be done with
a node: `open`, `mmap`, and `ioctl` with a number that is no command. Each row has exactly one test, which is
tied to it by `errno_provoking.provokes`. Rows stand in the order in which the broker checks, as far as there
is one; delivery and the ends of a synchronous call come last.

`REFERENCE` is written down apart from the rows: for each operation the errnos that the tables of the
interface give it. What those tables give but nothing can provoke is in `UNREACHABLE`, with the reason;
`MANUAL` is what kdbus' manual pages promised and its code never did.
"""

from __future__ import annotations

from typing import NamedTuple

COMMANDS = (
    "BUS_MAKE",
    "DOMAIN_MAKE",
    "ENDPOINT_MAKE",
    "ENDPOINT_UPDATE",
    "HELLO",
    "UPDATE",
    "BYEBYE",
    "FREE",
    "CONN_INFO",
    "BUS_CREATOR_INFO",
    "LIST",
    "SEND",
    "RECV",
    "MSG_CANCEL",
    "NAME_ACQUIRE",
    "NAME_RELEASE",
    "MATCH_ADD",
    "MATCH_REMOVE",
)
CONNECTED = COMMANDS[5:]
"""The commands of a connection."""
ORDINARY = ("BYEBYE", "SEND", "MSG_CANCEL", "NAME_ACQUIRE", "NAME_RELEASE", "MATCH_ADD", "MATCH_REMOVE")
"""The commands of ordinary connections only."""
NEEDY = ("BUS_MAKE", "DOMAIN_MAKE", "ENDPOINT_MAKE", "NAME_ACQUIRE", "NAME_RELEASE")
"""The commands with items that have to be there."""


class Row(NamedTuple):
    """One condition: `operations` fail with `errno` (by name) `when` it holds."""

    operations: tuple[str, ...]
    errno: str
    when: str


class Absent(NamedTuple):
    """An errno that is never seen: for which condition it was foreseen, and why it does not come."""

    operation: str
    errno: str
    when: str
    why: str


def _rows(operations: str | tuple[str, ...], *table: tuple[str, str]) -> list[Row]:
    """The rows of one operation, or of several."""
    several = (operations,) if isinstance(operations, str) else operations
    return [Row(several, errno, when) for errno, when in table]


ROWS = [
    *_rows(
        "open",
        ("ESHUTDOWN", "the domain, bus or endpoint has gone"),
        ("EACCES", "the mode of the node, or of its bus, does not let the process in"),
    ),
    *_rows(
        "mmap",
        ("EBADFD", "the handle is not connected"),
        ("EPERM", "the mapping would be writable"),
        ("EFAULT", "more is to be mapped than the pool has"),
    ),
    *_rows(
        "ioctl",
        ("ENOTTY", "the request is not the number of a command"),
    ),
    *_rows(
        COMMANDS,
        ("EBADFD", "the handle is in a state that does not take the command"),
        ("ESHUTDOWN", "the domain, bus or endpoint underneath has gone"),
    ),
    *_rows(
        CONNECTED,
        ("ESHUTDOWN", "the connection has said BYEBYE"),
    ),
    *_rows(
        ORDINARY,
        ("EOPNOTSUPP", "the connection is a monitor, an activator or a policy holder"),
    ),
    *_rows(
        COMMANDS,
        ("EFAULT", "the address is no multiple of 8"),
        ("EFAULT", "not all of the struct and its items can be read"),
        ("EINVAL", "size is less than that of the struct"),
        ("EMSGSIZE", "size is more than 32 KiB"),
        ("EFAULT", "the struct cannot be written"),
        ("EINVAL", "unknown flags"),
        ("EINVAL", "an item ends before its header does, or behind the command"),
        ("EINVAL", "an item that the command does not take"),
        ("EINVAL", "the array of NEGOTIATE is no multiple of 8 bytes"),
        ("EINVAL", "an item that may be there once is there twice"),
        ("EINVAL", "bytes behind the last item"),
    ),
    *_rows(
        NEEDY,
        ("EINVAL", "an item that has to be there is missing"),
    ),
    *_rows(
        "BUS_MAKE",
        ("EINVAL", "the payload of MAKE_NAME, BLOOM_PARAMETER or ATTACH_FLAGS has the wrong form"),
        ("ENAMETOOLONG", "MAKE_NAME has more than 63 bytes"),
        (
            "EINVAL",
            "filters of less than 8 or more than 4096 bytes, of no multiple of 8, or without hashes",
        ),
        ("EINVAL", "unknown bits in ATTACH_FLAGS_SEND or ATTACH_FLAGS_RECV"),
        ("EINVAL", "the name does not begin with the maker's uid and a dash"),
        ("EINVAL", "the maker has no uid in the domain"),
        ("EEXIST", "the domain has a bus of this name"),
        ("EMFILE", "the maker's real uid has 16 buses"),
    ),
    *_rows(
        "DOMAIN_MAKE",
        ("EPERM", "the opener is not privileged; told before anything is read"),
        ("EINVAL", "MAKE_NAME is not the name of a node"),
        ("ENAMETOOLONG", "MAKE_NAME has more than 63 bytes"),
        ("EEXIST", "the domain has a domain of this name"),
    ),
    *_rows(
        "ENDPOINT_MAKE",
        ("EPERM", "the opener does not own the bus; told before anything is read"),
        ("EPERM", "the handle is one of a custom endpoint; told before anything is read"),
        ("EINVAL", "MAKE_NAME is not the name of a node"),
        ("ENAMETOOLONG", "MAKE_NAME has more than 63 bytes"),
        ("EINVAL", "the name does not begin with the maker's uid and a dash"),
        ("EEXIST", "the bus has an endpoint of this name"),
    ),
    *_rows(
        "ENDPOINT_UPDATE",
        ("EINVAL", "the payload of NAME or POLICY_ACCESS has the wrong form"),
        ("EINVAL", "POLICY_ACCESS before the first NAME"),
        ("EINVAL", "NAME is neither a well-known name nor a wildcard"),
        ("EINVAL", "an unknown type or level of access"),
        ("EINVAL", "access for a uid or gid that the opener's namespace does not have"),
        ("EEXIST", "a name is there twice"),
    ),
    *_rows(
        "HELLO",
        ("EINVAL", "the payload of an item has the wrong form"),
        ("ENAMETOOLONG", "CONN_DESCRIPTION has more than 63 bytes"),
        ("EINVAL", "pool_size is 0, no multiple of the page size, or above what the domain allows"),
        ("EINVAL", "more than one of ACTIVATOR, POLICY_HOLDER and MONITOR"),
        ("EINVAL", "NAME without ACTIVATOR or POLICY_HOLDER"),
        ("EINVAL", "ACTIVATOR or POLICY_HOLDER without NAME"),
        ("EINVAL", "NAME is not a well-known name"),
        ("EINVAL", "NAME is a wildcard, of an activator"),
        ("EOPNOTSUPP", "MONITOR on a custom endpoint"),
        ("EPERM", "ACTIVATOR, POLICY_HOLDER or MONITOR by somebody who does not own the bus"),
        ("EPERM", "CREDS, PIDS, SECLABEL or AUXGROUPS by somebody who does not own the bus"),
        ("EINVAL", "unknown bits in attach_flags_send or attach_flags_recv"),
        ("ECONNREFUSED", "attach_flags_send does not grant what the bus requires"),
        ("EINVAL", "CREDS, PIDS or AUXGROUPS with ids that the opener's namespaces do not have"),
        ("EMFILE", "the user has 1024 connections"),
        ("EEXIST", "the name has an activator"),
        ("ENOMEM", "the host has no memory for the pool"),
        ("EINVAL", "POLICY_ACCESS before NAME"),
        ("EINVAL", "POLICY_ACCESS of an unknown type or level, or for an id that does not exist"),
        ("EEXIST", "somebody else has a policy for the name"),
    ),
    *_rows(
        "UPDATE",
        ("EINVAL", "the payload of an item has the wrong form"),
        ("EOPNOTSUPP", "ATTACH_FLAGS_SEND by an activator or a policy holder"),
        ("EINVAL", "unknown bits in ATTACH_FLAGS_SEND or ATTACH_FLAGS_RECV"),
        ("EINVAL", "ATTACH_FLAGS_SEND does not grant what the bus requires"),
        ("EOPNOTSUPP", "ATTACH_FLAGS_RECV by a policy holder"),
        ("EOPNOTSUPP", "NAME or POLICY_ACCESS by anybody but a policy holder"),
        ("E2BIG", "more than one NAME"),
        ("EINVAL", "POLICY_ACCESS before NAME"),
        ("EINVAL", "NAME is neither a well-known name nor a wildcard"),
        ("EINVAL", "POLICY_ACCESS of an unknown type or level, or for an id that does not exist"),
        ("EEXIST", "somebody else has a policy for the name"),
    ),
    *_rows(
        "BYEBYE",
        ("EBUSY", "something is queued"),
    ),
    *_rows(
        "FREE",
        ("ENXIO", "no slice begins there that the connection was given and has not freed"),
    ),
    *_rows(
        "CONN_INFO",
        ("EINVAL", "the payload of NAME has the wrong form"),
        ("EINVAL", "unknown bits in attach_flags"),
        ("EINVAL", "neither an id nor NAME"),
        ("ESRCH", "nobody owns the name, well-formed or not"),
        ("ESRCH", "the custom endpoint does not show the name"),
        ("ESRCH", "the owner of the name does not have the id"),
        ("ENXIO", "nobody has the id"),
        ("ENXIO", "the id is another connection's that monitors"),
        ("ENXIO", "the custom endpoint shows no name of the connection"),
        ("EXFULL", "the pool has no room for the answer"),
    ),
    *_rows(
        "BUS_CREATOR_INFO",
        ("EINVAL", "unknown bits in attach_flags"),
        ("EXFULL", "the pool has no room for the answer"),
    ),
    *_rows(
        "LIST",
        ("EXFULL", "the pool has no room for the answer"),
    ),
    *_rows(
        "SEND",
        # The command, the message as bytes
        ("EINVAL", "the payload of CANCEL_FD has the wrong form"),
        ("EFAULT", "msg_address is 0, no multiple of 8, or not all of the message can be read"),
        ("EINVAL", "the message is smaller than its header"),
        ("EMSGSIZE", "the message is larger than 32 KiB"),
        ("EINVAL", "unknown flags in the message"),
        ("EINVAL", "an item of the message ends before its header does, or behind the message"),
        ("EINVAL", "an item in the message that messages do not take"),
        ("EINVAL", "the payload of an item in the message has the wrong form"),
        ("EINVAL", "PAYLOAD_VEC or PAYLOAD_MEMFD of size 0"),
        ("EBADF", "PAYLOAD_MEMFD with a negative descriptor"),
        ("EINVAL", "a second FDS, BLOOM_FILTER or DST_NAME"),
        ("EINVAL", "bytes behind the last item of the message"),
        ("EINVAL", "NEGOTIATE in the flags of the message, but not in those of the command"),
        # What the message says
        ("EBADF", "CANCEL_FD is not open"),
        ("EINVAL", "CANCEL_FD cannot be polled"),
        ("EINVAL", "src_id is neither 0 nor the sender's"),
        ("EINVAL", "payload_type is 0, that of notifications"),
        ("EBADMSG", "a broadcast without SIGNAL"),
        ("ENOTUNIQ", "a broadcast with timeout_ns or cookie_reply"),
        ("EINVAL", "EXPECT_REPLY without timeout_ns"),
        ("ENOTUNIQ", "EXPECT_REPLY and SIGNAL together"),
        ("EINVAL", "SYNC_REPLY without EXPECT_REPLY"),
        ("EINVAL", "SIGNAL with cookie_reply"),
        ("EMSGSIZE", "all PAYLOAD_VEC together are larger than 2 MiB"),
        ("EFAULT", "PAYLOAD_VEC where no process has memory"),
        ("EMSGSIZE", "start and size of PAYLOAD_MEMFD add up to more than 64 bits"),
        ("E2BIG", "more than 16 PAYLOAD_MEMFD"),
        ("EMFILE", "FDS with more than 16 descriptors"),
        ("EFAULT", "the bits of BLOOM_FILTER are no multiple of 8 bytes"),
        ("EDOM", "BLOOM_FILTER is not of the bus' filter size"),
        ("EINVAL", "DST_NAME is not a well-known name"),
        ("EBADMSG", "DST_NAME in a broadcast"),
        ("EBADMSG", "SIGNAL without BLOOM_FILTER, or BLOOM_FILTER without SIGNAL"),
        ("EDESTADDRREQ", "dst_id is 0 and there is no DST_NAME"),
        ("ENOTUNIQ", "FDS in a broadcast"),
        ("EBADF", "a descriptor in FDS is negative or not open"),
        ("EOPNOTSUPP", "a descriptor in FDS is a handle of the broker or a unix socket"),
        ("EBADF", "the descriptor in PAYLOAD_MEMFD is not open"),
        ("EMEDIUMTYPE", "the descriptor in PAYLOAD_MEMFD is not shared memory"),
        ("ETXTBSY", "the shared memory in PAYLOAD_MEMFD is not sealed against every change"),
        ("EFAULT", "PAYLOAD_MEMFD reaches behind the end of its file"),
        ("EFAULT", "PAYLOAD_VEC cannot be read"),
        # Delivery
        ("ETIMEDOUT", "SYNC_REPLY and a deadline that has passed; nothing is sent"),
        ("ESRCH", "DST_NAME has neither an owner nor an activator"),
        ("EREMCHG", "DST_NAME is owned by another connection than dst_id"),
        ("EADDRNOTAVAIL", "NO_AUTO_START, and DST_NAME has only an activator"),
        ("ENXIO", "nobody has the id dst_id"),
        ("ENXIO", "dst_id is a monitor, an activator or a policy holder"),
        ("EPERM", "no policy lets the sender talk to the receiver"),
        ("EMLINK", "the sender has 128 requests outstanding"),
        ("EXFULL", "EXPECT_REPLY, and the sender's pool has no room to say that no reply will come"),
        ("EBADSLT", "a reply without an open request of the receiver to the sender with this cookie"),
        ("ECOMM", "FDS, and the receiver did not say ACCEPT_FD"),
        ("ENOBUFS", "the sender's user would have more than its share of the receiver's pool"),
        ("ENOBUFS", "the sender's user has 256 messages waiting at the receiver"),
        ("EMFILE", "the sender's user would have more than 16 descriptors waiting at the receiver"),
        ("EXFULL", "the receiver's pool has no free slice as large as the message"),
        # How a synchronous call ends, other than with a reply
        ("ETIMEDOUT", "SYNC_REPLY and the deadline passes"),
        ("ECANCELED", "SYNC_REPLY and CANCEL_FD becomes readable"),
        ("ECANCELED", "SYNC_REPLY and MSG_CANCEL names the cookie"),
        ("EINTR", "SYNC_REPLY and a signal ends the wait; the same SEND again goes on waiting"),
        ("ESHUTDOWN", "SYNC_REPLY and the caller's own connection ends"),
        ("EPIPE", "SYNC_REPLY and the replier ends, or drops the request"),
        ("EREMOTEIO", "SYNC_REPLY and the reply has FDS, but the caller did not say ACCEPT_FD"),
        ("ENOBUFS", "SYNC_REPLY and the reply is beyond the replier's share of the caller's pool"),
        (
            "EMFILE",
            "SYNC_REPLY and the reply would be beyond 16 waiting descriptors of the replier's user",
        ),
        ("EXFULL", "SYNC_REPLY and the caller's pool has no free slice as large as the reply"),
        ("EFAULT", "SYNC_REPLY and the place of the result can no longer be written"),
    ),
    *_rows(
        "RECV",
        ("EOPNOTSUPP", "the connection is a policy holder"),
        ("EINVAL", "DROP and USE_PRIORITY together"),
        ("EAGAIN", "nothing is queued"),
        ("EAGAIN", "USE_PRIORITY, and nothing queued is as urgent"),
    ),
    *_rows(
        "MSG_CANCEL",
        ("ENOENT", "no synchronous call of the connection waits with the cookie"),
    ),
    *_rows(
        "NAME_ACQUIRE",
        ("EINVAL", "IN_QUEUE, ACTIVATOR, PRIMARY or ACQUIRED, which are only returned"),
        ("EINVAL", "the payload of NAME has the wrong form"),
        ("EINVAL", "NAME is not a well-known name"),
        ("EPERM", "no policy lets the connection own the name, whether or not it is there"),
        ("E2BIG", "the connection owns or waits for 256 names"),
        ("EEXIST", "somebody else owns the name, cannot be replaced, and QUEUE is not set"),
    ),
    *_rows(
        "NAME_RELEASE",
        ("EINVAL", "the payload of NAME has the wrong form"),
        ("ESRCH", "nobody has the name, well-formed or not"),
        ("EADDRINUSE", "only others own or wait for the name"),
    ),
    *_rows(
        "MATCH_ADD",
        ("EINVAL", "the payload of an item has the wrong form"),
        ("EDOM", "BLOOM_MASK is empty or no multiple of the bus' filter size"),
        ("EINVAL", "NAME is not a well-known name"),
        ("EMFILE", "the connection has 4096 matches"),
        ("EMFILE", "the masks of the connection would have more than 16 MiB"),
    ),
    *_rows(
        "MATCH_REMOVE",
        ("EBADSLT", "there is no match with the cookie"),
    ),
]


def is_shared(row: Row) -> bool:
    """Whether several operations have this row."""
    return len(row.operations) > 1


_ANY = "EBADFD ESHUTDOWN EFAULT EINVAL EMSGSIZE "
REFERENCE: dict[str, set[str]] = {
    operation: set(errnos.split())
    for operation, errnos in {
        "open": "ESHUTDOWN EACCES",
        "mmap": "EBADFD EPERM EFAULT",
        "ioctl": "ENOTTY",
        "BUS_MAKE": _ANY + "ENAMETOOLONG EEXIST EMFILE",
        "DOMAIN_MAKE": _ANY + "EPERM ENAMETOOLONG EEXIST",
        "ENDPOINT_MAKE": _ANY + "EPERM ENAMETOOLONG EEXIST",
        "ENDPOINT_UPDATE": _ANY + "EEXIST",
        "HELLO": _ANY + "ENAMETOOLONG EOPNOTSUPP EPERM ECONNREFUSED EMFILE EEXIST ENOMEM E2BIG",
        "UPDATE": _ANY + "EOPNOTSUPP E2BIG EEXIST",
        "BYEBYE": _ANY + "EOPNOTSUPP EBUSY",
        "FREE": _ANY + "EOPNOTSUPP ENXIO",
        "CONN_INFO": _ANY + "ESRCH ENXIO EXFULL",
        "BUS_CREATOR_INFO": _ANY + "EXFULL",
        "LIST": _ANY + "EXFULL",
        "SEND": _ANY
        + "EOPNOTSUPP EBADF EBADMSG ENOTUNIQ E2BIG EMFILE EDOM EDESTADDRREQ EMEDIUMTYPE ETXTBSY EEXIST "
        + "ESRCH EREMCHG EADDRNOTAVAIL ENXIO EPERM EMLINK ECOMM ENOBUFS EXFULL EBADSLT "
        + "ETIMEDOUT EPIPE EREMOTEIO ECANCELED EINTR",
        "RECV": _ANY + "EOPNOTSUPP EAGAIN",
        "MSG_CANCEL": _ANY + "EOPNOTSUPP ENOENT",
        "NAME_ACQUIRE": _ANY + "EOPNOTSUPP EPERM E2BIG EEXIST",
        "NAME_RELEASE": _ANY + "EOPNOTSUPP ESRCH EADDRINUSE",
        "MATCH_ADD": _ANY + "EOPNOTSUPP EDOM EMFILE",
        "MATCH_REMOVE": _ANY + "EOPNOTSUPP EBADSLT",
    }.items()
}
"""The errnos that the tables of the interface give each operation."""

UNREACHABLE = [
    Absent("HELLO", "E2BIG", "more than one NAME", "a second NAME is refused while items are read: EINVAL"),
    Absent("HELLO", "EPERM", "an activator may not own its name", "only owners of the bus make activators"),
    Absent("HELLO", "ESHUTDOWN", "the endpoint goes during HELLO", "a command is atomic"),
    Absent("FREE", "EOPNOTSUPP", "by a policy holder", "who is given slices can free them"),
    Absent("SEND", "EEXIST", "FDS, BLOOM_FILTER or DST_NAME twice", "refused while items are read: EINVAL"),
    Absent("SEND", "ENXIO", "the receiver goes during SEND", "a command is atomic"),
    Absent("SEND", "ENXIO", "a reply in the instant in which the call ends", "a command is atomic: EBADSLT"),
    Absent("SEND", "ENOBUFS", "4 GiB of one user wait at a receiver", "256 messages do not come to that"),
]
NEVER = {("HELLO", "E2BIG"), ("FREE", "EOPNOTSUPP"), ("SEND", "EEXIST")}
"""Of these the operation and its errno: nothing at all provokes it. The others have further conditions."""
MANUAL = [
    Absent("BUS_MAKE", "EBADMSG", "an item that has to be there is missing", "EINVAL"),
    Absent("HELLO", "EFAULT", "pool_size is 0 or no multiple of the page size", "EINVAL"),
    Absent("CONN_INFO", "ENOBUFS", "the pool has no room for the answer", "EXFULL"),
    Absent("every command", "EPROTO", "negotiation", "done, and returns 0"),
    Absent("every command", "ENOTTY", "a command that the handle does not take", "EBADFD"),
]
