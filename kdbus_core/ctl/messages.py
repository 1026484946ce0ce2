"""A received message in words: a record with everything, and one line for people.

What is a D-Bus message is told as one, with its member and arguments; of any other payload the beginning.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, assert_never

from kdbus_core.abi import DST_BROADCAST, PAYLOAD_DBUS, ItemType
from kdbus_core.ctl.payload import Payload, read_payload
from kdbus_core.ctl.show import PREVIEW, preview, printable, size
from kdbus_core.inspection import snapshot_record
from kdbus_core.transport.client import IdChanged, NameChanged, Received, ReplyDead, ReplyTimeout

Record = dict[str, Any]

_ROOM = 120
"""Characters of the arguments of a D-Bus message in a line."""

_KINDS = {
    ItemType.NAME_ADD: "name added",
    ItemType.NAME_REMOVE: "name removed",
    ItemType.NAME_CHANGE: "name changed",
    ItemType.ID_ADD: "connected",
    ItemType.ID_REMOVE: "disconnected",
}


def message_record(message: Received, *, limit: int | None = None) -> Record:
    """All that a message says; of the payload `limit` bytes, all if that is None, in hexadecimal."""
    metadata = message.metadata
    record: Record = {
        "kind": _kind(message),
        "sender": message.sender,
        "destination": None if message.destination == DST_BROADCAST else message.destination,
        "destination_name": message.dst_name,
        "cookie": message.cookie,
        "cookie_reply": message.cookie_reply or None,
        "timeout_ns": message.timeout_ns or None,
        "priority": message.priority,
        "payload_type": "dbus" if message.payload_type == PAYLOAD_DBUS else message.payload_type,
        "size": message.payload_size,
        "fds": len(message.fds),
        "lost": message.lost,
        "sender_names": list(metadata.names),
        "sender_description": metadata.description,
        "sender_process": snapshot_record(metadata.snapshot),
    }
    if metadata.timestamp is not None:
        record["seqnum"], record["monotonic_ns"], record["realtime_ns"] = metadata.timestamp
    if (told := _notification(message)) is not None:
        record["notification"] = told
    else:
        found = dbus_payload(message)
        record["dbus"] = found and {
            "type": found.type,
            **found.fields,
            "signature": found.signature,
            "arguments": found.arguments,
        }
        record["payload"] = beginning(message, message.payload_size if limit is None else limit).hex()
    return record


def beginning(message: Received, limit: int) -> bytes:
    """The first bytes of a payload, without a copy of the rest."""
    found = b""
    for part in message.parts:
        if len(found) >= limit:
            break
        found += bytes(part[: limit - len(found)])
    return found


def message_line(message: Received) -> str:
    """Time, number, kind, who to whom, cookies, size and the beginning of the payload."""
    metadata = message.metadata
    words = []
    if metadata.timestamp is not None:
        seconds, nanoseconds = divmod(metadata.timestamp.realtime_ns, 10**9)
        time = datetime.fromtimestamp(seconds).strftime("%H:%M:%S")
        words.append(f"{time}.{nanoseconds // 1000:06} #{metadata.timestamp.seqnum}")
    if message.lost:
        words.append(f"({message.lost} lost)")
    told = _notification(message)
    if told is not None:
        words.append(
            " ".join(f"{key}={value}" if key != "type" else str(value) for key, value in told.items())
        )
        return "  ".join(words)
    words.append(f"{_kind(message)} {_sender_word(message)} → {_destination_word(message)}")
    words.append(f"cookie {message.cookie}")
    if message.cookie_reply:
        words.append(f"reply to {message.cookie_reply}")
    words.append(size(message.payload_size))
    if message.fds:
        words.append(f"{len(message.fds)} fds")
    if (found := dbus_payload(message)) is not None:
        words.append(dbus_words(found))
    elif message.payload_size:
        words.append(preview(beginning(message, PREVIEW + 1)))
    return "  ".join(words)


def dbus_payload(message: Received) -> Payload | None:
    """The D-Bus message that a message is, None if it is none."""
    return read_payload(message.parts) if message.payload_type == PAYLOAD_DBUS else None


def dbus_words(payload: Payload) -> str:
    """Object, member and arguments, these as far as there is room."""
    fields = payload.fields
    words = ["error"] if payload.type == "error" else []
    if "path" in fields:
        words.append(printable(fields["path"]))
    names = (fields.get(key) for key in ("interface", "member", "error_name"))
    words.append(printable(".".join(filter(None, names))) + _argument_words(payload))
    return " ".join(words)


def _argument_words(payload: Payload) -> str:
    if payload.arguments is None:
        return f"({printable(payload.signature)} …)"
    text = ", ".join(json.dumps(argument) for argument in payload.arguments)
    return f"({text})" if len(text) <= _ROOM else f"({text[:_ROOM]}…)"


def _kind(message: Received) -> str:
    if not message.sender:
        return "notification"
    if message.is_signal:
        return "signal"
    if message.expects_reply:
        return "call"
    return "reply" if message.cookie_reply else "message"


def _sender_word(message: Received) -> str:
    name = next(iter(message.metadata.names), None)
    return str(message.sender) if name is None else f"{message.sender} ({name})"


def _destination_word(message: Received) -> str:
    if message.dst_name is not None:
        name = printable(message.dst_name)
        return f"{name} ({message.destination})" if message.destination else name
    return "everybody" if message.destination == DST_BROADCAST else str(message.destination)


def _notification(message: Received) -> Record | None:
    """What the broker says; None for what a connection says."""
    notification = message.notification
    match notification:
        case None:
            return None
        case NameChanged():
            return {
                "type": _KINDS[notification.kind],
                "name": printable(notification.name),
                "old_id": notification.old_id,
                "new_id": notification.new_id,
            }
        case IdChanged():
            return {"type": _KINDS[notification.kind], "id": notification.id}
        case ReplyDead():
            return {"type": "reply dead", "cookie": notification.cookie}
        case ReplyTimeout():
            return {"type": "reply timeout", "cookie": notification.cookie}
        case _:
            assert_never(notification)
