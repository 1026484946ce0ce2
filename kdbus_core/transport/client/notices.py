"""Notifications: what the broker itself says, as typed values.

Those about names and ids come to whoever has asked for them with a match, those
about replies to whoever waits for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EBADMSG

from kdbus_core.abi import MSG, ItemType, NameFlag
from kdbus_core.errors import KdbusError
from kdbus_core.items import ID_NOTICE, NAME_NOTICE
from kdbus_core.transport.client.records import walk


@dataclass(frozen=True, slots=True)
class NameChanged:
    """A name has a new owner (`kind` NAME_ADD, NAME_REMOVE or NAME_CHANGE); id 0 is nobody."""

    kind: ItemType
    name: str
    old_id: int
    old_flags: NameFlag
    new_id: int
    new_flags: NameFlag


@dataclass(frozen=True, slots=True)
class IdChanged:
    """A connection has come or gone (`kind` ID_ADD or ID_REMOVE)."""

    kind: ItemType
    id: int
    flags: int


@dataclass(frozen=True, slots=True)
class ReplyDead:
    """Whoever owed the answer to the request with this cookie has gone."""

    cookie: int


@dataclass(frozen=True, slots=True)
class ReplyTimeout:
    """The request with this cookie has not been answered in time."""

    cookie: int


Notification = NameChanged | IdChanged | ReplyDead | ReplyTimeout


def parse_notification(message: bytes, cookie_reply: int) -> Notification | None:
    """What the items of the broker's message say; None for what there is no type for, EBADMSG."""
    for item in walk(message, MSG.size):
        payload = item.payload
        match item.type:
            case ItemType.NAME_ADD | ItemType.NAME_REMOVE | ItemType.NAME_CHANGE:
                if len(payload) < NAME_NOTICE.size:
                    raise KdbusError(EBADMSG, f"a notification of {len(payload)} bytes")
                old_id, old_flags, new_id, new_flags = NAME_NOTICE.unpack_from(payload)
                name = payload[NAME_NOTICE.size :].partition(b"\0")[0].decode("latin-1")
                kind = ItemType(item.type)
                return NameChanged(kind, name, old_id, NameFlag(old_flags), new_id, NameFlag(new_flags))
            case ItemType.ID_ADD | ItemType.ID_REMOVE:
                if len(payload) != ID_NOTICE.size:
                    raise KdbusError(EBADMSG, f"a notification of {len(payload)} bytes")
                return IdChanged(ItemType(item.type), *ID_NOTICE.unpack(payload))
            case ItemType.REPLY_DEAD:
                return ReplyDead(cookie_reply)
            case ItemType.REPLY_TIMEOUT:
                return ReplyTimeout(cookie_reply)
    return None
