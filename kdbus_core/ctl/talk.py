"""`kdbusctl talk` and `info`: send somebody a message and see what comes back; ask who somebody is.

A destination is an id (`:1.5` is 5), a well-known name, or `*` for everybody (signals only).  The payload is
sent as it is given, so a service that speaks D-Bus takes only what is one of its messages.
"""

from __future__ import annotations

import sys
import time
from errno import EPIPE, ETIMEDOUT
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from kdbus_core.abi import ATTACH_ALL, DST_BROADCAST, MessageFlag
from kdbus_core.ctl.messages import dbus_payload, dbus_words, message_record
from kdbus_core.ctl.places import Problem
from kdbus_core.ctl.show import hex_dump, print_json, print_record, size
from kdbus_core.ctl.state import describe, describe_connection
from kdbus_core.errors import KdbusError
from kdbus_core.inspection import access_word
from kdbus_core.matches import Filter
from kdbus_core.names import is_valid_name
from kdbus_core.transport.client import Connection, Received, open_node

EVERYBODY = "*"
_POOL = 16 << 20


class Letter(NamedTuple):
    """What is to be sent: `kind` is `call`, `signal` or `message`; the timeout is in seconds."""

    destination: str
    kind: str
    payload: bytes
    payload_type: int
    timeout: float


def talk(node: Path, letter: Letter, out: TextIO, *, as_json: bool, is_raw: bool) -> None:
    """Send a message; of a call print the reply.  Raises KdbusError, Problem."""
    with _connect(node) as connection:
        if letter.kind == "signal":
            _signal(connection, letter)
        elif letter.destination == EVERYBODY:
            raise Problem("only a signal can go to everybody")
        elif letter.kind == "call":
            with _call(connection, letter) as reply:
                _print_reply(reply, out, as_json=as_json, is_raw=is_raw)
        else:
            connection.send(
                letter.payload,
                destination=parse_subject(letter.destination),
                payload_type=letter.payload_type,
            )


def info(node: Path, subject: str | None, out: TextIO, *, as_json: bool) -> None:
    """Print what is told of a connection, by id or name, or of the bus and its creator; KdbusError."""
    with _connect(node) as connection:
        record: dict[str, Any]
        if subject is None:
            creator = connection.creator_info(ATTACH_ALL)
            record = {
                "bus": creator.bus_name,
                "id": creator.id,
                "id128": connection.id128.hex(),
                "access": access_word(creator.flags),
                "bloom": {"size": connection.bloom.size, "n_hash": connection.bloom.n_hash},
                "creator": describe(creator),
            }
        else:
            whom = parse_subject(subject)
            told = connection.info(id=whom) if isinstance(whom, int) else connection.info(name=whom)
            record = describe_connection(told)
            if not as_json:
                record["names"] = [place["name"] for place in record["names"]]
        if as_json:
            print_json(record, out)
        else:
            inner = record.pop("creator" if subject is None else "credentials")
            print_record({**record, **inner}, out)


def _connect(node: Path) -> Connection:
    with open_node(node) as handle:
        return handle.hello(pool_size=_POOL, attach_recv=ATTACH_ALL, description="kdbusctl")


def parse_subject(text: str) -> int | str:
    """Whom somebody means: an id, also as D-Bus writes it (`:1.ID`), or a well-known name; Problem."""
    number = text.removeprefix(":1.")
    if number.isascii() and number.isdecimal():
        if not 0 < int(number) < DST_BROADCAST:
            raise Problem(f"{number} is no id of a connection")
        return int(number)
    if not is_valid_name(text):
        raise Problem(f"{text!r} is neither an id nor a well-known name")
    return text


def _signal(connection: Connection, letter: Letter) -> None:
    """Send a signal with a filter that contains every mask: whoever matches signals at all gets it."""
    connection.send(
        letter.payload,
        destination=None if letter.destination == EVERYBODY else parse_subject(letter.destination),
        flags=MessageFlag.SIGNAL,
        filter=Filter(0, b"\xff" * connection.bloom.size),
        payload_type=letter.payload_type,
    )


def _call(connection: Connection, letter: Letter) -> Received:
    deadline = time.monotonic_ns() + int(letter.timeout * 1e9)
    try:
        return connection.call(
            letter.payload,
            destination=parse_subject(letter.destination),
            timeout_ns=deadline,
            payload_type=letter.payload_type,
        )
    except KdbusError as error:
        if error.errno == ETIMEDOUT:
            raise Problem(f"no reply within {letter.timeout:g} seconds") from error
        if error.errno == EPIPE:
            raise Problem(f"{letter.destination} went without a reply") from error
        raise


def _print_reply(reply: Received, out: TextIO, *, as_json: bool, is_raw: bool) -> None:
    if as_json:
        print_json(message_record(reply), out)
        return
    payload = reply.payload
    if is_raw:
        sys.stdout.buffer.write(payload)
        sys.stdout.buffer.flush()
        return
    fds = f", {len(reply.fds)} fds" if reply.fds else ""
    out.write(f"reply from {reply.sender}: {size(len(payload))}{fds}\n")
    text = payload.decode("utf-8", "replace")
    if (found := dbus_payload(reply)) is not None:
        out.write(dbus_words(found) + "\n")
    elif text.isprintable() and "\N{REPLACEMENT CHARACTER}" not in text:
        out.write(text + "\n" if text else "")
    else:
        out.writelines(f"{line}\n" for line in hex_dump(payload))
    out.flush()
