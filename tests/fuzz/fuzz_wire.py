"""A mutation fuzzer against a live daemon: `python -m tests.fuzz.fuzz_wire --seconds N [--seed S]`.

Every round takes a conversation that is right (handshake, Hello, calls of every kind), spoils its bytes in a
few places, sends it in pieces of any size, now and then with descriptors, and goes. Three things must hold
whatever was sent: the daemon lives, two well-behaved clients still talk, and when all offenders are gone the
daemon has as many descriptors as before. Beyond that nothing of what the daemon says to an offender is
judged, but its log must not speak of an internal error.

A run is bounded by its seconds and repeats itself under the same seed; a failure prints the seed, the round
and the bytes (hexadecimal) that preceded it, and ends with status 1.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.bus import BUSPROXYD, Bus, start_bus
from support.raw import (
    DRIVER,
    DRIVER_PATH,
    ERROR,
    METHOD_CALL,
    METHOD_RETURN,
    SIGNAL,
    Message,
    RawClient,
    build_message,
    connect_address,
)

REMEMBERED = 5
"""Conversations that a failure shows; the last is not always the guilty one."""

CHECK_EVERY = 25
"""Rounds between two checks that the others still talk."""

INTERESTING = (
    0,
    1,
    7,
    8,
    255,
    256,
    0x7FFF,
    0xFFFF,
    1 << 26,
    (1 << 26) + 1,
    1 << 27,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)

HANDSHAKES = (
    b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n",
    b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n",
    b"\0AUTH\r\nAUTH EXTERNAL %b\r\nCANCEL\r\nAUTH EXTERNAL %b\r\nBEGIN\r\n".replace(
        b"%b", str(os.getuid()).encode().hex().encode()
    ),
)

DRIVER_CALLS: tuple[tuple[str, str, list[Any]], ...] = (
    ("RequestName", "su", ["com.example.Fuzz", 7]),
    ("ReleaseName", "s", ["com.example.Fuzz"]),
    ("AddMatch", "s", ["type='signal',arg0='x',path_namespace='/a',sender='com.example.Fuzz'"]),
    ("RemoveMatch", "s", ["type='signal',arg0='x',path_namespace='/a',sender='com.example.Fuzz'"]),
    ("GetNameOwner", "s", [":1.1"]),
    ("GetConnectionCredentials", "s", [":1.1"]),
    ("ListQueuedOwners", "s", ["com.example.Fuzz"]),
    ("StartServiceByName", "su", ["com.example.Nobody", 0]),
    ("UpdateActivationEnvironment", "a{ss}", [{"NAME": "value"}]),
    ("ListNames", "", []),
)

BODIES: tuple[tuple[str, list[Any]], ...] = (
    ("", []),
    ("s", ["text \u00e9\u4e2d"]),
    ("a{sv}", [{"k": ("as", ["x", ""]), "l": ("(ib)", (1, True))}]),
    ("vvv", [("v", ("v", ("y", 1))), ("ao", ["/", "/a/b"]), ("g", "a{sv}")]),
    ("ybnqiuxtdsogh", [1, True, -2, 3, -4, 5, -6, 7, 8.5, "s", "/o", "as", 0]),
    ("a(ta(ss))", [[(1, [("a", "b")]), (2, [])]]),
    ("ay", [bytes(range(256)) * 8]),
)


def conversation(chance: random.Random, victim: str) -> bytes:
    """A client's words from its first byte on, right in every detail."""
    serial = 0

    def message(kind: int, fields: dict[Any, Any], signature: str, body: Sequence[Any]) -> bytes:
        nonlocal serial
        serial += 1
        if signature:
            fields["signature"] = signature
        return build_message(
            Message(kind, chance.choice((0, 1, 2)), serial, fields, list(body), chance.choice("lB"))
        )

    def driver_call(member: str, signature: str, body: Sequence[Any]) -> bytes:
        fields = {"path": DRIVER_PATH, "interface": DRIVER, "member": member, "destination": DRIVER}
        return message(METHOD_CALL, fields, signature, body)

    fields: dict[Any, Any]
    parts = [chance.choice(HANDSHAKES), driver_call("Hello", "", ())]
    for _ in range(chance.randrange(1, 12)):
        signature, body = chance.choice(BODIES)
        match chance.randrange(5):
            case 0:
                parts.append(driver_call(*chance.choice(DRIVER_CALLS)))
            case 1:
                fields = {"path": "/a/b", "interface": "a.b", "member": "M", "destination": victim}
                parts += [message(METHOD_CALL, dict(fields), signature, body) for _ in range(3)]
            case 2:
                parts.append(
                    message(SIGNAL, {"path": "/a", "interface": "a.b", "member": "S"}, signature, body)
                )
            case 3:
                fields = {"destination": victim, "reply_serial": chance.randrange(1, 9)}
                parts.append(message(METHOD_RETURN, fields, signature, body))
            case _:
                fields = {"destination": victim, "reply_serial": 3, "error_name": "a.b.Error"}
                parts.append(message(ERROR, fields, signature, body))
    return b"".join(parts)


def flip_bit(chance: random.Random, data: bytearray) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def set_byte(chance: random.Random, data: bytearray) -> None:
    data[chance.randrange(len(data))] = chance.choice((0, 1, 0x7F, 0x80, 0xC0, 0xFF, chance.randrange(256)))


def set_number(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(0, max(1, len(data) - 4))
    data[at : at + 4] = struct.pack(chance.choice("<>") + "I", chance.choice(INTERESTING))


def cut_out(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.randrange(1, 16)]


def put_in(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data))
    data[at:at] = chance.randbytes(chance.randrange(1, 16))


def repeat(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data))
    piece = data[at : at + chance.randrange(1, 200)]
    data[at:at] = piece * chance.randrange(1, 4)


def swell(chance: random.Random, data: bytearray) -> None:
    at = chance.randrange(len(data))
    data[at:at] = bytes([chance.choice(b"9./a\0")]) * chance.choice((300, 5000, 70_000))


def truncate(chance: random.Random, data: bytearray) -> None:
    del data[chance.randrange(1, len(data)) :]


MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    flip_bit,
    set_byte,
    set_number,
    cut_out,
    put_in,
    repeat,
    swell,
    truncate,
)


def mutated(chance: random.Random, data: bytes) -> bytes:
    """The bytes spoilt in up to four places, mostly behind the handshake; sometimes in none."""
    start = data.index(b"BEGIN\r\n") + 7 if chance.random() < 0.9 else 0
    tail = bytearray(data[start:])
    for _ in range(chance.randrange(5)):
        if tail:
            chance.choice(MUTATIONS)(chance, tail)
    return data[:start] + bytes(tail)


def long_argument(chance: random.Random) -> bytes:
    """A driver call, right in its frame, whose string is longer or odder than any name."""
    member = chance.choice(
        ("GetNameOwner", "NameHasOwner", "AddMatch", "GetConnectionUnixUser", "ListQueuedOwners")
    )
    text = chance.choice(
        (":1." + "9" * 5000, "", ":", ":1.", "a" * 70_000, "sender=':1." + "1" * 250 + "'", "\u0660")
    )
    fields = {
        "path": DRIVER_PATH,
        "interface": DRIVER,
        "member": member,
        "destination": DRIVER,
        "signature": "s",
    }
    return build_message(Message(METHOD_CALL, 0, 90, fields, [text]))


def offend(bus: Bus, chance: random.Random, data: bytes) -> None:
    """Be a client that says these bytes, in pieces, and goes, after reading or not."""
    with connect_address(bus.address) as sock:
        sock.settimeout(5)
        with suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            view = memoryview(data)
            while view:
                size = chance.choice((1, 3, 16, 100, 1000, len(view)))
                if chance.random() < 0.02:
                    reader, writer = os.pipe()
                    try:
                        count = chance.randrange(1, 20)
                        sent = _send_fds(sock, view[:size], [reader] * count)
                    finally:
                        os.close(reader)
                        os.close(writer)
                    view = view[sent:]
                else:
                    view = view[sock.send(view[:size]) :]
            if chance.random() < 0.3:
                sock.settimeout(0.01)
                sock.recv(65536)


def _send_fds(sock: socket.socket, data: memoryview, fds: list[int]) -> int:
    return socket.send_fds(sock, [data], fds)


def check_others(caller: RawClient, callee: RawClient) -> None:
    """The two talk; what strangers have sent them is passed over."""
    serial = caller.send_call("Ask", destination=callee.unique_name, interface="a.b")
    asked = callee.receive()
    while asked.fields.get("sender") != caller.unique_name:
        asked = callee.receive()
    callee.send(Message(METHOD_RETURN, fields={"destination": caller.unique_name, "reply_serial": serial}))
    for message in caller.until_reply(serial):
        if message.fields.get("sender") == callee.unique_name:
            assert message.type == METHOD_RETURN
    for client in (caller, callee):
        for fd in client.take_fds(1 << 20):
            os.close(fd)


def fuzz(seconds: float, seed: int) -> int:
    """Run for so long; returns the exit status."""
    chance = random.Random(seed)
    recent: deque[bytes] = deque(maxlen=REMEMBERED)
    bus = start_bus(BUSPROXYD)
    rounds = 0
    try:
        before = bus.count_fds_besides()
        end = time.monotonic() + seconds
        with bus.connect() as caller, bus.connect() as callee:
            while time.monotonic() < end:
                data = conversation(chance, callee.unique_name)
                if chance.random() < 0.1:
                    data += long_argument(chance)
                data = mutated(chance, data)
                recent.append(data)
                offend(bus, chance, data)
                rounds += 1
                if rounds % CHECK_EVERY == 0:
                    check_others(caller, callee)
                    check_log(bus)
            check_others(caller, callee)
        check_log(bus)
        left = bus.settle_fds(before) - before
        assert not left, f"{left} descriptors were left behind"
        bus.stop()
    except Exception as error:
        print(f"seed {seed}, round {rounds}: {error!r}", file=sys.stderr)
        for data in recent:
            print(data.hex(), file=sys.stderr)
        with suppress(OSError):
            print(bus.stderr_text()[-5000:], file=sys.stderr)
        with suppress(AssertionError, OSError):
            bus.stop()
        return 1
    print(f"{rounds} conversations in {seconds:g} s with seed {seed}: nothing was harmed")
    return 0


def check_log(bus: Bus) -> None:
    assert "internal error" not in bus.stderr_text(), "the daemon speaks of an internal error"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fuzz_wire", description="Send a live busproxyd what it must survive."
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    return fuzz(options.seconds, seed)


if __name__ == "__main__":
    sys.exit(main())
