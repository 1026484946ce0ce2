"""What the bus tells its connections about others.

A command may cause notifications; they are collected while it runs and are
delivered, in order, before the command returns and so before any message of a
later command.  Connections are referred to as objects; None stands for the
identifier 0, "nobody".  Observers are told of every name and connection
change; REPLY_DEAD and REPLY_TIMEOUT go to the requester alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbus_core.connection import Connection


@dataclass(frozen=True, slots=True)
class NameChange:
    """NAME_ADD (no old owner), NAME_REMOVE (no new one) or NAME_CHANGE."""

    name: str
    old: Connection | None
    old_flags: int
    new: Connection | None
    new_flags: int


@dataclass(frozen=True, slots=True)
class IdAdd:
    """A connection became active."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class IdRemove:
    """A connection that had been active has gone."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class ReplyDead:
    """The connection that owed `requester` an answer to `cookie` has gone."""

    requester: Connection
    cookie: int


@dataclass(frozen=True, slots=True)
class ReplyTimeout:
    """The deadline of `requester`'s request `cookie` has passed."""

    requester: Connection
    cookie: int


Notification = NameChange | IdAdd | IdRemove | ReplyDead | ReplyTimeout
