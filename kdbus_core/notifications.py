"""What the bus tells its connections about others.

A command may cause notifications; they are collected while it runs and are
delivered, in order, before the command returns and so before any message of a
later command.  Connections are referred to as objects; None stands for the
identifier 0, "nobody".  Observers are told of every name and connection
change; REPLY_DEAD and REPLY_TIMEOUT go to the requester alone.

In a pool a notification is a message of sender 0 and payload type 0 with one
item that says it all, and a timestamp.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kdbus_core.abi import DST_BROADCAST, MSG, PAYLOAD_KERNEL, SRC_KERNEL, ItemType, MessageFlag
from kdbus_core.inbox import Parcel
from kdbus_core.items import NAME_NOTICE, build_item, build_numbers_item

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
    name_id: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class IdAdd:
    """A connection became active."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class IdRemove:
    """A connection that had been active has gone; `flags` are those it had, if it has others now."""

    connection: Connection
    flags: int | None = field(default=None, compare=False)


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


def _build_item(notification: Notification) -> bytes:
    match notification:
        case NameChange(name, old, old_flags, new, new_flags):
            if old is None:
                type = ItemType.NAME_ADD
            elif new is None:
                type = ItemType.NAME_REMOVE
            else:
                type = ItemType.NAME_CHANGE
            owners = NAME_NOTICE.pack(
                0 if old is None else old.id, old_flags, 0 if new is None else new.id, new_flags
            )
            return build_item(type, owners + name.encode("ascii") + b"\0")
        case IdAdd(connection):
            return build_numbers_item(ItemType.ID_ADD, connection.id, connection.flags)
        case IdRemove(connection, flags):
            return build_numbers_item(
                ItemType.ID_REMOVE, connection.id, connection.flags if flags is None else flags
            )
        case ReplyDead():
            return build_item(ItemType.REPLY_DEAD, b"")
        case ReplyTimeout():
            return build_item(ItemType.REPLY_TIMEOUT, b"")


def build_notification(notification: Notification, metadata: bytes) -> Parcel:
    """A notification as it goes into a pool, with these metadata items (a timestamp)."""
    match notification:
        case ReplyDead(requester, cookie) | ReplyTimeout(requester, cookie):
            flags, destination, cookie_reply = 0, requester.id, cookie
        case _:
            flags, destination, cookie_reply = int(MessageFlag.SIGNAL), DST_BROADCAST, 0
    item = _build_item(notification)
    size = MSG.size + len(item) + len(metadata)
    header = MSG.pack(size, flags, 0, destination, SRC_KERNEL, PAYLOAD_KERNEL, 0, cookie_reply)
    return Parcel((header, item, metadata), size)
