"""The command line of kdbusd."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbus_core import __version__
from kdbus_core.daemon.directory import default_directory
from kdbus_core.daemon.loop import KINDS


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for; `config` and `ready_fd` are None where nothing was."""

    directory: Path
    config: Path | None
    ready_fd: int | None
    loop: str


def parse_options(arguments: Sequence[str], environ: Mapping[str, str], uid: int) -> Options:
    """Understand a command line; ends the program (SystemExit) after --help, and with 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="kdbusd",
        description="Host a kdbus domain: buses and endpoints as a directory of sockets.",
        epilog="SIGHUP reads the configuration again, SIGTERM and SIGINT end the domain.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    default = default_directory(environ, uid)
    parser.add_argument(
        "--directory",
        type=Path,
        default=default,
        help=f"where the sockets are (default: {default or 'none, XDG_RUNTIME_DIR is not set'})",
    )
    parser.add_argument("--config", type=Path, help="buses to provide (default: none; clients make them)")
    parser.add_argument(
        "--print-ready-fd",
        type=int,
        metavar="FD",
        help="write the directory and a newline to this descriptor once clients can connect, and close it",
    )
    parser.add_argument("--loop", choices=KINDS, default=KINDS[0], help="event loop (default: %(default)s)")
    found = parser.parse_args(arguments)
    if found.directory is None:
        parser.error("no --directory given, and there is no default without XDG_RUNTIME_DIR")
    if found.print_ready_fd is not None and found.print_ready_fd < 0:
        parser.error("--print-ready-fd needs the number of an open descriptor")
    config = None if found.config is None else found.config.absolute()
    return Options(found.directory.absolute(), config, found.print_ready_fd, found.loop)
