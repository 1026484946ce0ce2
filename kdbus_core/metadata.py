"""Who is behind a connection.

Credentials are what the transport could prove when the connection was made.
They are frozen: nothing is looked up again later, so a decision taken on them
cannot be raced.  What is unknown is None and is left out of every answer; it
is never zero, because zero is root.

A bus owner (a compatibility proxy) may put another process's credentials on a
connection it makes: the *faked* ones.  Those answer CONN_INFO and nothing
else: they are never attached to a message and never decide anything in the
broker's own policy.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Credentials:
    """Connection-time credentials; `uid` and `gid` are the effective ids.

    `groups` are the supplementary groups as the kernel reports them.  `label`
    is the security label without a trailing NUL.  `pidfd` refers to the
    process; it belongs to the transport that made the connection, which
    closes it when the connection has gone.
    """

    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    groups: tuple[int, ...] | None = None
    label: bytes | None = None
    pidfd: int | None = None


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """The answer to CONN_INFO: what may be known about a connection."""

    id: int
    flags: int
    credentials: Credentials
    names: tuple[str, ...]
    description: str
