"""What an errno of the broker is to a D-Bus client: the error that dbus-daemon would give in that situation.

A refusal of the broker is one number for many situations, and a client knows error names and, when it is
shown to people, texts. `send_error` speaks of a message that was refused, `command_error` of everything else
one can ask of the broker. Both have an answer for every number: what nobody thought of is "Failed".
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from kdbus_core.errors import KdbusError

__all__ = ["ErrorReply", "Refused", "command_error", "send_error"]

_PREFIX: Final = "org.freedesktop.DBus.Error."

ACCESS_DENIED: Final = _PREFIX + "AccessDenied"
ADDRESS_IN_USE: Final = _PREFIX + "AddressInUse"
DISCONNECTED: Final = _PREFIX + "Disconnected"
FAILED: Final = _PREFIX + "Failed"
FILE_EXISTS: Final = _PREFIX + "FileExists"
INCONSISTENT_MESSAGE: Final = _PREFIX + "InconsistentMessage"
INVALID_ARGS: Final = _PREFIX + "InvalidArgs"
LIMITS_EXCEEDED: Final = _PREFIX + "LimitsExceeded"
MATCH_RULE_NOT_FOUND: Final = _PREFIX + "MatchRuleNotFound"
NAME_HAS_NO_OWNER: Final = _PREFIX + "NameHasNoOwner"
NO_MEMORY: Final = _PREFIX + "NoMemory"
NO_REPLY: Final = _PREFIX + "NoReply"
NOT_SUPPORTED: Final = _PREFIX + "NotSupported"
SERVICE_UNKNOWN: Final = _PREFIX + "ServiceUnknown"

_TYPE_NAMES: Final = {1: "method_call", 2: "method_return", 3: "error", 4: "signal"}


class ErrorReply(NamedTuple):
    """Name and text of an error."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that was refused, as far as the texts speak of it.

    `destination` is what it was addressed to; `receiver` the unique name of who would have got it, where that
    is known. `auto_start` is that NO_AUTO_START is not set.
    """

    type: int = 1
    sender: str | None = None
    destination: str | None = None
    receiver: str | None = None
    interface: str | None = None
    member: str | None = None
    error_name: str | None = None
    auto_start: bool = True


def send_error(error: KdbusError | int, message: Refused) -> ErrorReply:
    """What the sender of a message is told: by SEND's errno, or that of a request which got no reply."""
    number = error if isinstance(error, int) else error.errno
    row = _SENDING.get(number)
    if row is None:
        return command_error(error)
    return row(message)


def command_error(error: KdbusError | int) -> ErrorReply:
    """What who issued another command is told; the text is the broker's reason, where it gave one."""
    number = error if isinstance(error, int) else error.errno
    name = _COMMANDS.get(number, FAILED)
    if isinstance(error, KdbusError) and error.why:
        return ErrorReply(name, error.why[:1].upper() + error.why[1:])
    return ErrorReply(name, _TEXTS.get(number, "The message bus has refused"))


# Texts. Those of dbus-daemon are spelled as dbus-daemon spells them.


def _nobody(message: Refused) -> ErrorReply:
    if message.auto_start:
        return ErrorReply(
            SERVICE_UNKNOWN, f"The name {message.destination} was not provided by any .service files"
        )
    return _not_running(message)


def _not_running(message: Refused) -> ErrorReply:
    return ErrorReply(NAME_HAS_NO_OWNER, f'Name "{message.destination}" does not exist')


def _moved(message: Refused) -> ErrorReply:
    return ErrorReply(NAME_HAS_NO_OWNER, f'Name "{message.destination}" has another owner')


def _description(message: Refused) -> str:
    return (
        f'type="{_TYPE_NAMES.get(message.type, message.type)}", sender="{message.sender or "(unset)"}" '
        f'interface="{message.interface or "(unset)"}" member="{message.member or "(unset)"}" '
        f'error name="{message.error_name or "(unset)"}"'
    )


def _full(message: Refused) -> ErrorReply:
    destination = message.receiver or message.destination or "(unset)"
    return ErrorReply(
        LIMITS_EXCEEDED,
        "Rejected: destination has a full message queue; "
        f'{_description(message)} destination="{destination}"',
    )


def _denied(message: Refused) -> ErrorReply:
    return ErrorReply(
        ACCESS_DENIED,
        f"Rejected send message, 0 matched rules; {_description(message)} "
        f'requested_reply="0" destination="{message.destination or "(unset)"}"',
    )


def _fixed(name: str, text: str) -> Callable[[Refused], ErrorReply]:
    reply = ErrorReply(name, text)
    return lambda message: reply


_SENDING: Final[Mapping[int, Callable[[Refused], ErrorReply]]] = {
    # Nobody is there
    errno.ESRCH: _nobody,
    errno.ENXIO: _nobody,
    errno.EADDRNOTAVAIL: _not_running,
    errno.EREMCHG: _moved,
    # Too much
    errno.ENOBUFS: _full,
    errno.EXFULL: _full,
    errno.EMFILE: _full,
    errno.EMLINK: _fixed(
        LIMITS_EXCEEDED, "The maximum number of pending replies per connection has been reached"
    ),
    errno.EMSGSIZE: _fixed(LIMITS_EXCEEDED, "The message is too large for its destination"),
    errno.E2BIG: _fixed(LIMITS_EXCEEDED, "The message has too many parts"),
    errno.ENOMEM: _fixed(NO_MEMORY, "Not enough memory"),
    # Not allowed, or not possible
    errno.EPERM: _denied,
    errno.EBADSLT: _denied,
    errno.ECOMM: _fixed(
        NOT_SUPPORTED,
        "Tried to send message with Unix file descriptorsto a client that doesn't support that.",
    ),
    errno.EOPNOTSUPP: _fixed(NOT_SUPPORTED, "A native peer cannot be sent sockets or connections to a bus"),
    errno.ENOTUNIQ: _fixed(NOT_SUPPORTED, "A signal to everybody cannot carry Unix file descriptors"),
    errno.EREMOTEIO: _fixed(
        NOT_SUPPORTED, "The reply has Unix file descriptors, which the caller does not take"
    ),
    errno.EBADMSG: _fixed(INCONSISTENT_MESSAGE, "The message is not well-formed"),
    # No reply
    errno.EPIPE: _fixed(NO_REPLY, "Message recipient disconnected from message bus without replying"),
    errno.ETIMEDOUT: _fixed(NO_REPLY, "Message did not receive a reply (timeout by message bus)"),
    errno.ECANCELED: _fixed(NO_REPLY, "The caller does not wait for a reply any more"),
    errno.ESHUTDOWN: _fixed(DISCONNECTED, "Connection is closed"),
    errno.ECONNRESET: _fixed(DISCONNECTED, "Connection is closed"),
}

_COMMANDS: Final[Mapping[int, str]] = {
    errno.EPERM: ACCESS_DENIED,
    errno.EACCES: ACCESS_DENIED,
    errno.EINVAL: INVALID_ARGS,
    errno.EDOM: INVALID_ARGS,
    errno.ENAMETOOLONG: INVALID_ARGS,
    errno.ESRCH: NAME_HAS_NO_OWNER,
    errno.ENXIO: NAME_HAS_NO_OWNER,
    errno.EADDRINUSE: ADDRESS_IN_USE,
    errno.EBADSLT: MATCH_RULE_NOT_FOUND,
    errno.EEXIST: FILE_EXISTS,
    errno.E2BIG: LIMITS_EXCEEDED,
    errno.EMFILE: LIMITS_EXCEEDED,
    errno.EMLINK: LIMITS_EXCEEDED,
    errno.ENFILE: LIMITS_EXCEEDED,
    errno.ENOBUFS: LIMITS_EXCEEDED,
    errno.EXFULL: LIMITS_EXCEEDED,
    errno.EMSGSIZE: LIMITS_EXCEEDED,
    errno.ENOMEM: NO_MEMORY,
    errno.ENOSPC: NO_MEMORY,
    errno.EBADMSG: INCONSISTENT_MESSAGE,
    errno.EOPNOTSUPP: NOT_SUPPORTED,
    errno.ENOTTY: NOT_SUPPORTED,
    errno.ETIMEDOUT: NO_REPLY,
    errno.EPIPE: NO_REPLY,
    errno.ESHUTDOWN: DISCONNECTED,
    errno.ECONNRESET: DISCONNECTED,
}

_TEXTS: Final[Mapping[int, str]] = {
    errno.ESHUTDOWN: "Connection is closed",
    errno.ECONNRESET: "Connection is closed",
    errno.ENOMEM: "Not enough memory",
}
