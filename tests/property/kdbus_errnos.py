"""What each command may be refused with, written down from the tables of the interface.

`ERRNOS` is every errno that a command has; nothing else may ever come out of it. `early_refusal` says which
one it has to be when a command is refused before anything but its struct's first words has been looked at:
those checks have one order, and are the same for all commands.
"""

from __future__ import annotations

from enum import Enum, auto
from errno import (
    E2BIG,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EAGAIN,
    EBADF,
    EBADFD,
    EBADMSG,
    EBADSLT,
    EBUSY,
    ECANCELED,
    ECOMM,
    ECONNREFUSED,
    EDESTADDRREQ,
    EDOM,
    EEXIST,
    EFAULT,
    EINTR,
    EINVAL,
    EMEDIUMTYPE,
    EMFILE,
    EMLINK,
    EMSGSIZE,
    ENAMETOOLONG,
    ENOBUFS,
    ENOENT,
    ENOTTY,
    ENOTUNIQ,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EPIPE,
    EREMCHG,
    EREMOTEIO,
    ESHUTDOWN,
    ESRCH,
    ETIMEDOUT,
    ETXTBSY,
    EXFULL,
)
from sys import byteorder

from support.kdbus import layout
from support.kdbus.layout import Layout


class Kind(Enum):
    """What a handle is, as far as the commands it takes go."""

    CONTROL = auto()
    OWNER = auto()
    """Of a bus or a domain: it takes nothing more."""
    ENDPOINT = auto()
    ENDPOINT_OWNER = auto()
    ORDINARY = auto()
    MONITOR = auto()
    ACTIVATOR = auto()
    HOLDER = auto()


CONNECTED = {Kind.ORDINARY, Kind.MONITOR, Kind.ACTIVATOR, Kind.HOLDER}

LAYOUTS: dict[str, Layout] = {
    "BUS_MAKE": layout.BUS_MAKE,
    "DOMAIN_MAKE": layout.DOMAIN_MAKE,
    "ENDPOINT_MAKE": layout.ENDPOINT_MAKE,
    "ENDPOINT_UPDATE": layout.ENDPOINT_UPDATE,
    "HELLO": layout.HELLO,
    "UPDATE": layout.UPDATE,
    "BYEBYE": layout.BYEBYE,
    "FREE": layout.FREE,
    "CONN_INFO": layout.CONN_INFO,
    "BUS_CREATOR_INFO": layout.BUS_CREATOR_INFO,
    "LIST": layout.LIST,
    "SEND": layout.SEND,
    "RECV": layout.RECV,
    "MSG_CANCEL": layout.MSG_CANCEL,
    "NAME_ACQUIRE": layout.NAME_ACQUIRE,
    "NAME_RELEASE": layout.NAME_RELEASE,
    "MATCH_ADD": layout.MATCH_ADD,
    "MATCH_REMOVE": layout.MATCH_REMOVE,
}
NAMES = {command.request: name for name, command in LAYOUTS.items()}

FLAGS = {
    "BUS_MAKE": 1 | 2 | 4,
    "DOMAIN_MAKE": 1 | 2,
    "ENDPOINT_MAKE": 1 | 2,
    "HELLO": 1 | 2 | 4 | 8,
    "LIST": 1 | 2 | 4 | 8,
    "SEND": 1,
    "RECV": 1 | 2 | 4,
    "NAME_ACQUIRE": 1 | 2 | 4,
    "MATCH_ADD": 1,
}
"""The flags a command takes besides NEGOTIATE; none where it is not here."""

_ANY = {EBADFD, ESHUTDOWN, EFAULT, EINVAL, EMSGSIZE}
_ORDINARY_ONLY = {"BYEBYE", "SEND", "MSG_CANCEL", "NAME_ACQUIRE", "NAME_RELEASE", "MATCH_ADD", "MATCH_REMOVE"}

SYNC_ENDS = {ETIMEDOUT, EPIPE, EREMOTEIO, ECANCELED, EINTR, ESHUTDOWN, ENOBUFS, EMFILE, EXFULL, EFAULT}
"""How a synchronous call that waits may end, besides with a reply."""
_SYNC_ONLY = {ETIMEDOUT, EPIPE, EREMOTEIO, ECANCELED, EINTR}

ERRNOS: dict[str, set[int]] = {
    "BUS_MAKE": _ANY | {ENAMETOOLONG, EEXIST, EMFILE},
    "DOMAIN_MAKE": _ANY | {EPERM, ENAMETOOLONG, EEXIST},
    "ENDPOINT_MAKE": _ANY | {EPERM, ENAMETOOLONG, EEXIST},
    "ENDPOINT_UPDATE": _ANY | {EEXIST},
    "HELLO": _ANY | {ENAMETOOLONG, EOPNOTSUPP, EPERM, ECONNREFUSED, EMFILE, EEXIST, E2BIG},
    "UPDATE": _ANY | {EOPNOTSUPP, E2BIG, EEXIST},
    "BYEBYE": _ANY | {EOPNOTSUPP, EBUSY},
    "FREE": _ANY | {ENXIO},
    "CONN_INFO": _ANY | {ESRCH, ENXIO, EXFULL},
    "BUS_CREATOR_INFO": _ANY | {EXFULL},
    "LIST": _ANY | {EXFULL},
    "SEND": _ANY
    | {EOPNOTSUPP, EBADF, EBADMSG, ENOTUNIQ, E2BIG, EMFILE, EDOM, EDESTADDRREQ, EMEDIUMTYPE, ETXTBSY}
    | {ESRCH, EREMCHG, EADDRNOTAVAIL, ENXIO, EPERM, EMLINK, ECOMM, ENOBUFS, EXFULL, EBADSLT}
    | _SYNC_ONLY,
    "RECV": _ANY | {EOPNOTSUPP, EAGAIN},
    "MSG_CANCEL": _ANY | {EOPNOTSUPP, ENOENT},
    "NAME_ACQUIRE": _ANY | {EOPNOTSUPP, EPERM, E2BIG, EEXIST},
    "NAME_RELEASE": _ANY | {EOPNOTSUPP, ESRCH, EADDRINUSE},
    "MATCH_ADD": _ANY | {EOPNOTSUPP, EDOM, EMFILE},
    "MATCH_REMOVE": _ANY | {EOPNOTSUPP, EBADSLT},
}


def allowed_errnos(name: str, flags: int) -> set[int]:
    """Everything a command with these flags may be refused with."""
    if name == "SEND" and not flags & layout.SYNC_REPLY:
        return ERRNOS[name] - _SYNC_ONLY
    return ERRNOS[name]


def _accepts(kind: Kind, name: str) -> bool:
    match kind:
        case Kind.CONTROL:
            return name in ("BUS_MAKE", "DOMAIN_MAKE")
        case Kind.OWNER:
            return False
        case Kind.ENDPOINT:
            return name in ("HELLO", "ENDPOINT_MAKE")
        case Kind.ENDPOINT_OWNER:
            return name == "ENDPOINT_UPDATE"
        case _:
            return name not in ("BUS_MAKE", "DOMAIN_MAKE", "HELLO", "ENDPOINT_MAKE", "ENDPOINT_UPDATE")


def early_refusal(
    request: int, kind: Kind, *, has_gone: bool, may_make: bool, address: int, readable: bytes, writable: bool
) -> int | None:
    """The errno of a command that does not get as far as its items; None for one that does.

    `may_make` is whether the handle may make domains or endpoints; `readable` is what can be read from the
    address on, and `writable` whether the struct can be written back.
    """
    name = NAMES.get(request)
    if name is None:
        return ENOTTY
    if not _accepts(kind, name):
        return EBADFD
    if has_gone:
        return ESHUTDOWN
    if name in ("ENDPOINT_MAKE", "DOMAIN_MAKE") and not may_make:
        return EPERM
    if kind is not Kind.ORDINARY and kind in CONNECTED and name in _ORDINARY_ONLY:
        return EOPNOTSUPP
    if kind is Kind.HOLDER and name == "RECV":
        return EOPNOTSUPP
    if address % 8 or len(readable) < 8:
        return EFAULT
    size = int.from_bytes(readable[:8], byteorder)
    if size < LAYOUTS[name].size:
        return EINVAL
    if size > layout.MAX_COMMAND_SIZE:
        return EMSGSIZE
    if size > len(readable) or not writable:
        return EFAULT
    flags = int.from_bytes(readable[8:16], byteorder)
    if flags & ~(FLAGS.get(name, 0) | layout.NEGOTIATE):
        return EINVAL
    return None
