"""`kdbusctl talk` and `info`: send somebody a message and see what comes back; ask who somebody is.

A destination is an id, a well-known name, or `*` for everybody (signals only).  The payload is sent as it is
given, so a service that speaks D-Bus takes only what is one of its messages.
"""

from __future__ import annotations

import sys
import time
from errno import EPIPE, ETIMEDOUT
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from kdbus_core.abi import ATTACH_ALL, MessageFlag
from kdbus_core.ctl.messages import message_record
from kdbus_core.ctl.places import Problem
from kdbus_core.ctl.show import hex_dump, print_json, print_record, size
from kdbus_core.ctl.state import describe, describe_connection
from kdbus_core.errors import KdbusError
from kdbus_core.inspection import access_word
from kdbus_core.matches import Filter
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
                letter.payload, destination=_single(letter.destination), payload_type=letter.payload_type
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
            told = connection.info(id=int(subject)) if subject.isdecimal() else connection.info(name=subject)
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


def _single(destination: str) -> int | str:
    return int(destination) if destination.isdecimal() else destination


def _signal(connection: Connection, letter: Letter) -> None:
    """Send a signal with a filter that contains every mask: whoever matches signals at all gets it."""
    connection.send(
        letter.payload,
        destination=None if letter.destination == EVERYBODY else _single(letter.destination),
        flags=MessageFlag.SIGNAL,
        filter=Filter(0, b"\xff" * connection.bloom.size),
        payload_type=letter.payload_type,
    )


def _call(connection: Connection, letter: Letter) -> Received:
    deadline = time.monotonic_ns() + int(letter.timeout * 1e9)
    try:
        return connection.call(
            letter.payload,
            destination=_single(letter.destination),
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
    if text.isprintable() and "\N{REPLACEMENT CHARACTER}" not in text:
        out.write(text + "\n" if text else "")
    else:
        out.writelines(f"{line}\n" for line in hex_dump(payload))
    out.flush()
