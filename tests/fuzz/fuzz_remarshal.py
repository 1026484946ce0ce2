"""Any bytes at all as a message to convert: `python -m tests.fuzz.fuzz_remarshal [--seconds N] [CORPUS]`.

The first byte of an input says what the others are: a native message, a native body behind its signature, or
a dbus1 message. Whatever they are, they are refused as a `ProtocolError` with an offset that lies in them, or
they are taken; and then what they are converted to is valid, no longer than what is in them allows, and
converted back it is what it was.

With atheris (the extra `fuzz`) the inputs are chosen by what they cover of `busproxy`; inputs worth keeping
are kept in the directory CORPUS, a temporary one unless it is given. Without atheris they come from a seeded
mutator that goes on from what was refused for a new reason. `--replay HEX` does one input again. The exit
status is 0 when nothing was found.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

MAX_INPUT = 4096
KEPT = 1000
"""Inputs that the mutator goes on from."""

MOST_GROWTH = 20
"""A byte of GVariant is at most so many in a dbus1 body: an offset may be all there is of an empty array."""

SIGNATURES = (
    "",
    "s",
    "a{sv}",
    "ybnqiuxtdsogh",
    "a(ss)v",
    "aasaay",
    "a(yx)a(bh)ab",
    "(ayas)s",
    "a{oa{sv}}as",
    "vvv",
    "(((s)))ag",
    "ah(yay)d",
)


def has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


def perform(data: bytes) -> str:
    """Convert this input; returns the outcome in words."""
    from busproxy.wire.errors import ProtocolError

    if not data:
        return "nothing"
    perform_one = (perform_native, perform_body, perform_legacy)[data[0] % 3]
    try:
        return perform_one(data[1:])
    except ProtocolError as error:
        fault = error
    assert 0 <= fault.offset <= len(data) + 16, f"{fault} in {len(data)} bytes"
    return re.sub(r"\d+|'.*'", "_", fault.reason)


def perform_native(data: bytes) -> str:
    from busproxy.remarshal import from_gvariant, parse_gvariant, to_gvariant_parts
    from busproxy.wire.body import body_checker
    from busproxy.wire.header import message_length, parse_header

    message = parse_gvariant(data)
    reply_serial = 7 if message.reply_cookie else 0
    for little_endian in (True, False):
        made = from_gvariant(
            message, sender=":1.1", serial=1, reply_serial=reply_serial, little_endian=little_endian
        )
        assert len(made) < MOST_GROWTH * len(data) + 200
        assert message_length(made, 0) == len(made)
        header = parse_header(made)
        body_checker(header.signature, little_endian)(made, header.length, len(made))
        _, body, ending = to_gvariant_parts(
            header, memoryview(made)[header.length :], little_endian=message.little_endian
        )
        assert bytes(body) + bytes(ending[: len(header.signature) + 3]) in data
    half = len(data) // 2
    pieces = [memoryview(data)[:half], memoryview(data)[half:]]
    again = from_gvariant(
        pieces, sender=":1.1", serial=1, reply_serial=reply_serial, little_endian=little_endian
    )
    assert again == made
    message.values()
    return f"message of {message.signature[:1]!r}"


def perform_body(data: bytes) -> str:
    from busproxy.wire.body import body_checker
    from busproxy.wire.gvariant import dbus1_body_to_gvariant, gvariant_body_to_dbus1

    signature, _, native = data.partition(b"\0")
    text = signature.decode("latin-1")
    for source in (True, False):
        for target in (True, False):
            body = bytes(
                gvariant_body_to_dbus1(
                    text, native, 0, len(native), source, to_little_endian=target, fd_count=1
                )
            )
            assert len(body) < MOST_GROWTH * len(native) + 8 * len(text) + 200
            body_checker(text, target)(body, 0, len(body))
            back = dbus1_body_to_gvariant(text, body, 0, len(body), target, to_little_endian=source)
            assert back == native
    return f"body of {text[:1]!r}"


def perform_legacy(data: bytes) -> str:
    from busproxy.remarshal import from_gvariant, parse_gvariant, to_gvariant
    from busproxy.wire.body import body_checker
    from busproxy.wire.header import message_length, parse_header

    if len(data) < 16 or message_length(data, 0) != len(data):
        return "no dbus1 message"
    header = parse_header(data)
    body_checker(header.signature, header.little_endian)(data, header.length, len(data))
    native = to_gvariant(header, data[header.length :])
    message = parse_gvariant(native)
    if re.search("[hv]", header.signature) and header.unix_fds < 1 << 31:
        return "dbus1 message whose descriptors may be missing"
    made = from_gvariant(native, sender=header.sender, little_endian=header.little_endian)
    other = parse_header(made)
    assert made[other.length :] == data[header.length :]
    for name in ("type", "flags", "serial", "path", "interface", "member", "error_name", "destination"):
        assert getattr(other, name) == getattr(header, name), name
    assert (other.reply_serial, other.unix_fds) == (header.reply_serial, header.unix_fds)
    return f"dbus1 message of {message.signature[:1]!r}"


def seed_inputs(chance: random.Random, count: int) -> list[bytes]:
    """Inputs of all kinds that are right in every detail."""
    from busproxy.remarshal import to_gvariant_parts
    from busproxy.wire.header import parse_header
    from busproxy.wire.marshal import marshal
    from busproxy.wire.message import build_message
    from busproxy.wire.signatures import complete_types

    inputs = []
    for _ in range(count):
        signature = chance.choice(SIGNATURES)
        little_endian = chance.random() < 0.8
        values = [any_value(chance, type_, 0) for type_ in complete_types(signature)]
        message = build_message(
            chance.randrange(1, 5),
            chance.randrange(1, 1 << 32),
            flags=chance.randrange(8),
            path="/a/b",
            interface="a.b",
            member="M",
            error_name="a.b.Error",
            reply_serial=1,
            destination=chance.choice((None, ":1.5", "a.b")),
            sender=":1.1",
            signature=signature,
            body=marshal(signature, values, little_endian),
            unix_fds=1,
            little_endian=little_endian,
        )
        header = parse_header(message)
        parts = to_gvariant_parts(header, message[header.length :], little_endian=chance.random() < 0.8)
        native, body = b"".join(parts), bytes(parts[1])
        kind = chance.randrange(3)
        rest = (native, signature.encode() + b"\0" + body, message)[kind]
        inputs.append(bytes((kind,)) + rest)
    return inputs


def any_value(chance: random.Random, type_: str, depth: int) -> object:
    """A value of a complete type, as `marshal` takes it."""
    from busproxy.wire.signatures import split_types

    match type_[0]:
        case "b":
            return chance.random() < 0.5
        case "d":
            return chance.random()
        case "s":
            return chance.choice(("", "text", "\u00e9\u4e2d", "long " * 60))
        case "o":
            return chance.choice(("/", "/a", "/com/example/Object"))
        case "g":
            return chance.choice(SIGNATURES)
        case "v":
            inner = chance.choice(("y", "s", "v", "as", "(yx)", "a{sv}", "ab") if depth < 4 else ("y", "h"))
            return inner, any_value(chance, inner, depth + 1)
        case "a" if type_ == "ay":
            return chance.randbytes(chance.randrange(20))
        case "a" if type_[1] == "{":
            key, value = split_types(type_[2:-1])
            return {
                any_value(chance, key, depth): any_value(chance, value, depth)
                for _ in range(chance.randrange(4))
            }
        case "a":
            return [any_value(chance, type_[1:], depth + 1) for _ in range(chance.randrange(4))]
        case "(":
            return tuple(any_value(chance, member, depth) for member in split_types(type_[1:-1]))
        case "h":
            return 0
        case _:
            return chance.randrange(100)


# Guided by coverage


def fuzz_guided(seconds: float, seed: int, corpus: Path | None) -> int:
    """Have atheris choose; it ends the process itself when it finds something."""
    import atheris

    with atheris.instrument_imports(include=["busproxy"]):
        import busproxy.remarshal  # noqa: F401 - what is imported now is instrumented

    started = time.monotonic()
    executions = 0

    def test_one(data: bytes) -> None:
        nonlocal executions
        try:
            perform(data)
        except BaseException as error:
            traceback.print_exception(error)
            print(f"the input: {data.hex()}", file=sys.stderr)
            raise
        executions += 1
        if executions % 100_000 == 0:
            print(f"{executions} messages in {time.monotonic() - started:.0f} s", flush=True)

    arguments = [
        sys.argv[0],
        f"-max_total_time={max(1, int(seconds))}",
        f"-max_len={MAX_INPUT}",
        f"-seed={seed % (1 << 31) or 1}",
        "-timeout=30",
        "-print_final_stats=1",
    ]
    inputs = Path(tempfile.mkdtemp(prefix="fuzz-remarshal-")) if corpus is None else corpus
    inputs.mkdir(parents=True, exist_ok=True)
    if not any(inputs.iterdir()):
        for number, data in enumerate(seed_inputs(random.Random(seed), 200)):
            (inputs / f"seed-{number}").write_bytes(data)
    print(f"seed {seed}; inputs are kept in {inputs}", flush=True)
    arguments += [f"-artifact_prefix={inputs}/found-", str(inputs)]
    atheris.Setup(arguments, test_one)
    atheris.Fuzz()
    return 0


# Guided by outcomes


def mutate(chance: random.Random, inputs: Sequence[bytes]) -> bytes:
    """An input made from one or two others; mostly near its end, where the offsets are."""
    data = bytearray(chance.choice(inputs))
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data) + 1)
        if chance.random() < 0.4:
            at = max(0, len(data) - chance.randrange(1, 20))
        match chance.randrange(6):
            case 0:
                data[at : at + 1] = chance.randbytes(1)
            case 1:
                data[at : at + 1] = bytes((chance.choice((0, 1, 2, 8, 40, 41, 118, 127, 128, 254, 255)),))
            case 2:
                data[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 3:
                del data[at : at + chance.randrange(1, 9)]
            case 4:
                other = chance.choice(inputs)
                start = chance.randrange(len(other) + 1)
                data[at:at] = other[start : start + 60]
            case _:
                data[at:at] = data[at : at + chance.randrange(1, 60)] * chance.randrange(1, 20)
    return bytes(data[:MAX_INPUT])


def fuzz_by_chance(seconds: float, seed: int) -> int:
    """Mutate what reached something new; returns the exit status."""
    chance = random.Random(seed)
    kept = seed_inputs(chance, 200)
    for data in kept:
        outcome = perform(data)
        assert " of '" in outcome or "missing" in outcome, f"{outcome}: {data.hex()}"
    known: set[str] = set()
    executions = taken = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(chance, kept)
        try:
            outcome = perform(data)
        except Exception as error:
            traceback.print_exception(error)
            print(f"seed {seed}, message {executions}: {data.hex()}", file=sys.stderr)
            return 1
        executions += 1
        if is_taken := " of '" in outcome:
            taken += 1
        if outcome not in known or (is_taken and chance.random() < 0.01):
            known.add(outcome)
            kept.append(data)
            del kept[:-KEPT]
    print(
        f"{executions} messages in {seconds:g} s with seed {seed}, {taken} of them taken,"
        f" {len(known)} outcomes: nothing was harmed"
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fuzz_remarshal", description="Convert what may or may not be messages."
    )
    parser.add_argument(
        "corpus", nargs="?", type=Path, help="a directory to start from and to keep inputs in"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run")
    parser.add_argument("--by-chance", action="store_true", help="do without atheris")
    parser.add_argument("--replay", metavar="HEX", help="do this one input")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        print(perform(bytes.fromhex(options.replay)))
        return 0
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    if options.by_chance:
        return fuzz_by_chance(options.seconds, seed)
    if not has_atheris():
        print("atheris is not installed (pip install '.[fuzz]'): fuzzing by chance instead", file=sys.stderr)
        return fuzz_by_chance(options.seconds, seed)
    return fuzz_guided(options.seconds, seed, options.corpus)


if __name__ == "__main__":
    sys.exit(main())
