"""The command line of kdbusctl: verbs, their arguments, and what becomes of what goes wrong.

The exit status is 0 when what was asked for has been done, 1 when the broker refused it or it cannot be had
(the reason is on standard error), and 2 when the command line was wrong.  Who reads the output and has seen
enough is no error to speak of.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

from kdbus_core import __version__
from kdbus_core.abi import PAYLOAD_DBUS, AccessLevel
from kdbus_core.ctl.places import Place, Problem, find_domain
from kdbus_core.ctl.refusals import explain
from kdbus_core.ctl.show import printable
from kdbus_core.daemon.directory import default_directory
from kdbus_core.domain import Bloom
from kdbus_core.errors import KdbusError

NAME = "kdbusctl"
FAILED = 1

_LISTS = {
    "domains": "the domain and those in it",
    "buses": "buses, and what they were made with",
    "endpoints": "endpoints of buses, and who gets in",
    "connections": "who is connected: credentials, queue, pool, names",
    "names": "well-known names: owner, who waits, activator",
    "matches": "what connections have asked to receive",
    "policy": "who may see, talk to and own which names",
}

_UNTIL_INTERRUPTED = frozenset({"monitor", "make-bus", "make-endpoint"})
"""Verbs that are to be ended, and have done what was asked for then."""


_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Interrupted(Exception):
    """Somebody wants the program to end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `kdbusctl`; returns the exit status."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:
        return _fail("standard output is closed")
    if isinstance(sys.stdout, TextIOWrapper):  # not every terminal has every character
        sys.stdout.reconfigure(errors="replace")
    try:
        for number in _ENDING:
            signal.signal(number, _interrupt)
        verb: Callable[[argparse.Namespace, Place], None] = options.run
        verb(options, find_domain(options.directory, options.domain))
    except _Interrupted:
        return 0 if options.verb in _UNTIL_INTERRUPTED else FAILED
    except Problem as problem:
        return _fail(str(problem))
    except KdbusError as error:
        return _fail(explain(error, _subject_of(options)))
    except BrokenPipeError:  # who read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _fail(
            f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        )
    return 0


def _interrupt(*_: object) -> NoReturn:
    for number in _ENDING:  # once is enough, and the end is near
        signal.signal(number, signal.SIG_IGN)
    raise _Interrupted


def _fail(why: str) -> int:
    print(f"{NAME}: {why}", file=sys.stderr)
    return FAILED


def _subject_of(options: argparse.Namespace) -> str | None:
    """Whom or what a verb is about."""
    for name in ("destination", "subject", "name"):
        if (subject := getattr(options, name, None)) is not None:
            return printable(_with_uid(subject))
    return None


def _with_uid(name: str) -> str:
    return name.replace("{uid}", str(os.geteuid()))


# Verbs


def _list(options: argparse.Namespace, place: Place) -> None:
    from kdbus_core.ctl.listing import LISTINGS, Chosen, list_records
    from kdbus_core.ctl.show import print_json, print_table
    from kdbus_core.ctl.state import closed_buses, load_state

    bus = getattr(options, "bus", None)
    if bus is not None:
        place.node(bus)
    state = load_state(place)
    records = list_records(options.verb, state, Chosen(bus, getattr(options, "connection", None)))
    if options.json:
        print_json(records, sys.stdout)
        return
    listing = LISTINGS[options.verb]
    print_table(listing.columns, [listing.cells(record) for record in records], sys.stdout)
    if state["is_outline"]:
        print(f"{NAME}: not the owner of the domain, this is what everybody can see", file=sys.stderr)
        for name in closed_buses(state, bus):
            print(f"{NAME}: bus {name} does not let us in", file=sys.stderr)


def _monitor(options: argparse.Namespace, place: Place) -> None:
    from kdbus_core.ctl.monitor import monitor

    monitor(_node(options, place), sys.stdout, as_json=options.json, count=options.count)


def _make_bus(options: argparse.Namespace, place: Place) -> None:
    from kdbus_core.ctl.making import METADATA, make_bus

    unknown = [word for word in options.required if word not in METADATA]
    if unknown:
        raise Problem(f"{unknown[0]!r} is no metadata; there are {', '.join(METADATA)}")
    make_bus(
        place,
        _with_uid(options.name),
        sys.stdout,
        access=options.access,
        bloom=Bloom(options.bloom_size, options.bloom_hashes),
        required=options.required,
        as_json=options.json,
    )


def _make_endpoint(options: argparse.Namespace, place: Place) -> None:
    from kdbus_core.ctl.making import make_endpoint, parse_policy

    make_endpoint(
        place,
        options.bus,
        _with_uid(options.name),
        sys.stdout,
        access=options.access,
        policy=parse_policy(options.grants),
        as_json=options.json,
    )


def _talk(options: argparse.Namespace, place: Place) -> None:
    from kdbus_core.ctl.talk import Letter, talk

    payload = options.payload.encode("utf-8", "surrogateescape") if options.payload else b""
    if options.file is not None:
        payload = sys.stdin.buffer.read() if str(options.file) == "-" else options.file.read_bytes()
    letter = Letter(options.destination, options.kind, payload, options.type, options.timeout)
    talk(_node(options, place), letter, sys.stdout, as_json=options.json, is_raw=options.raw)


def _info(options: argparse.Namespace, place: Place) -> None:
    from kdbus_core.ctl.talk import info

    info(_node(options, place), options.subject, sys.stdout, as_json=options.json)


def _node(options: argparse.Namespace, place: Place) -> Path:
    return place.node(*place.resolve(options.bus))


# The command line


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Understand a command line; ends the program (SystemExit) after --help, and with 2 if it is wrong."""
    directory = default_directory(os.environ, os.geteuid())
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    common.add_argument("--directory", type=Path, metavar="DIR", help=f"the domain (default: {directory})")
    common.add_argument("--domain", metavar="NAME", help="a domain in it, as A or A/B")
    common.add_argument("--json", action="store_true", help="print JSON")
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Look at a kdbus domain, and try things on its buses.",
        epilog="KDBUS_DIRECTORY in the environment is another default for --directory. Tables end at the "
        "edge of a terminal; through a pipe they are complete, and JSON says more. The exit status is 1 when "
        "something was refused or cannot be had, 2 when the command line was wrong.",
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(
        verb: str, help: str, run: Callable[[argparse.Namespace, Place], None]
    ) -> argparse.ArgumentParser:
        words = verbs.add_parser(verb, help=help, description=help, parents=[common], allow_abbrev=False)
        words.set_defaults(run=run)
        return words

    for verb, help in _LISTS.items():
        words = add(verb, help, _list)
        if verb != "domains":
            words.add_argument("bus", nargs="?", metavar="BUS", help="only of this bus")
        if verb in ("connections", "matches"):
            words.add_argument("--connection", type=_count, metavar="ID", help="only of this connection")
    _add_node(words := add("info", "who made the bus, or who a connection is", _info))
    words.add_argument("subject", nargs="?", metavar="ID|NAME", help="a connection (default: the bus itself)")
    _add_node(words := add("monitor", "show everything that is said on a bus", _monitor))
    words.add_argument("--count", type=_count, metavar="N", help="end after so many messages")
    words = add("make-bus", "make a bus that is there until this program ends", _make_bus)
    words.add_argument("name", metavar="NAME", help="its name; {uid} stands for our uid")
    _add_access(words)
    words.add_argument("--bloom-size", type=_count, default=Bloom().size, metavar="BYTES", help="of filters")
    words.add_argument(
        "--bloom-hashes", type=_count, default=Bloom().n_hash, metavar="N", help="bits a string sets"
    )
    words.add_argument(
        "--required", action="append", default=[], metavar="KIND", help="metadata that everybody has to tell"
    )
    words = add(
        "make-endpoint", "make a custom endpoint that is there until this program ends", _make_endpoint
    )
    words.add_argument("bus", metavar="BUS", help="the bus that it leads to")
    words.add_argument("name", metavar="NAME", help="its name; {uid} stands for our uid")
    _add_access(words)
    for level in AccessLevel:
        words.add_argument(
            f"--{level.name.lower()}",
            action="append",
            dest="grants",
            default=[],
            type=partial(_grant, level),
            metavar="NAME=WHOM",
            help="WHOM: world, user:NAME, user:UID, group:NAME, group:GID",
        )
    _add_talk(add("talk", "send a message, and print the reply", _talk))
    options = parser.parse_args(arguments)
    options.json = getattr(options, "json", False)
    options.domain = getattr(options, "domain", "")
    options.directory = getattr(options, "directory", directory)
    if options.directory is None:
        parser.error("no --directory given, and neither KDBUS_DIRECTORY nor XDG_RUNTIME_DIR is set")
    return options


def _add_node(words: argparse.ArgumentParser) -> None:
    words.add_argument(
        "--bus", metavar="BUS[/ENDPOINT]", help="where to connect (default: the only bus that there is)"
    )


def _add_access(words: argparse.ArgumentParser) -> None:
    words.add_argument(
        "--access", choices=("owner", "group", "world"), default="owner", help="who else may connect"
    )


def _add_talk(words: argparse.ArgumentParser) -> None:
    _add_node(words)
    words.add_argument("destination", metavar="ID|NAME|*", help="who gets it; * is everybody, for signals")
    kinds = words.add_mutually_exclusive_group()
    for kind, help in (
        ("call", "wait for the reply (default)"),
        ("signal", "send a signal"),
        ("message", "send a message that wants no reply"),
    ):
        kinds.add_argument(
            f"--{kind}", dest="kind", action="store_const", const=kind, default="call", help=help
        )
    content = words.add_mutually_exclusive_group()
    content.add_argument("--payload", metavar="TEXT", help="what to send")
    content.add_argument("--file", type=Path, metavar="FILE", help="what to send; - is standard input")
    words.add_argument("--type", type=_number, default=PAYLOAD_DBUS, help="payload type (default: D-Bus)")
    words.add_argument(
        "--timeout", type=_seconds, default=25.0, metavar="SECONDS", help="for the reply (default: 25)"
    )
    words.add_argument("--raw", action="store_true", help="print the reply's payload as it is")


def _grant(level: AccessLevel, text: str) -> tuple[AccessLevel, str]:
    return level, text


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _number(text: str) -> int:
    number = int(text, 0)
    if not 0 < number < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text} is no 64-bit number above 0")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and a day")
    return seconds
