"""What the broker's refusals mean to the person who has asked for something.

The broker answers with an errno and nothing else.  What it means depends on the command and on whom it was
about; the table has what people meet.  Anything else is told as the client library tells it.
"""

from __future__ import annotations

import os
from errno import (
    E2BIG,
    EBADMSG,
    ECONNREFUSED,
    ECONNRESET,
    EEXIST,
    EMFILE,
    EMSGSIZE,
    ENOBUFS,
    ENOENT,
    ENXIO,
    EPERM,
    ESHUTDOWN,
    ESRCH,
    EXFULL,
    errorcode,
)

from kdbus_core.errors import KdbusError

_GONE = {ECONNRESET: "the broker has gone", ESHUTDOWN: "the bus has gone"}

_EVERYWHERE = {
    ECONNREFUSED: "nobody serves this domain",
    ENOENT: "nobody serves this domain",
    EMFILE: "uid {uid} has as many connections, or other handles, as it may",
}

_BY_COMMAND = {
    ("SEND", ESRCH): "nobody has the name {subject}",
    ("SEND", ENXIO): "there is no connection {subject} that takes messages",
    ("SEND", EPERM): "uid {uid} may not talk to {subject}",
    ("SEND", EBADMSG): "{subject} takes D-Bus messages only, which the payload is not",
    ("SEND", ENOBUFS): "too much of uid {uid} waits for {subject}",
    ("SEND", EXFULL): "{subject} has no room for the message",
    ("SEND", EMSGSIZE): "the message is too long",
    ("SEND", E2BIG): "the message is too long",
    ("CONN_INFO", ESRCH): "nobody has the name {subject}",
    ("CONN_INFO", ENXIO): "there is no connection {subject}",
    ("BUS_MAKE", EEXIST): "there is a bus {subject} already",
    ("BUS_MAKE", EMFILE): "uid {uid} has as many buses as it may",
    ("ENDPOINT_MAKE", EEXIST): "there is an endpoint {subject} already",
    ("ENDPOINT_MAKE", EPERM): "uid {uid} does not own this bus, and only owners make endpoints",
}
"""By what the reason of an error begins with."""


def explain(error: KdbusError, subject: str | None) -> str:
    """Why something was refused that was about `subject`."""
    if error.errno in _GONE:
        return _GONE[error.errno]
    command = error.why.partition(":")[0]
    sentence = _BY_COMMAND.get((command, error.errno)) or _EVERYWHERE.get(error.errno)
    if sentence is None:
        return str(error)
    told = sentence.format(uid=os.geteuid(), subject=subject)
    return f"{told} ({errorcode[error.errno]})"
