"""`busproxy`: what a person does with buses.

One module per verb; a verb is loaded when it is called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from busproxy import __version__

USAGE = """\
usage: busproxy run [--config-file=FILE] [--native] [--] COMMAND [ARGUMENT …]
       busproxy --version | --help

run    start a private session bus, run COMMAND on it, end the bus with it;
       the exit status is the command's; with --native, native kdbus programs
       get onto the bus too: KDBUS_DIRECTORY says where
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `busproxy`; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    match words:
        case ["--version"]:
            print(f"busproxy {__version__}")
            return 0
        case ["--help" | "-h"]:
            print(USAGE, end="")
            return 0
        case ["run", *rest]:
            from busproxy.cli.run import run

            return run(rest)
        case _:
            print(USAGE, end="", file=sys.stderr)
            return 2
