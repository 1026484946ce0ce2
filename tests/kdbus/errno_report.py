"""Writes docs/errors.md: what is refused with which errno, and the test that shows it.

`python -m tests.kdbus.errno_report`, in the environment of the tests and from the top of the checkout, writes
the document anew; `test_errnos.py` fails while it is not what would be written. Everything in it comes from
`errno_rows` and from the tests that `errno_provoking` knows once their modules are imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from .errno_provoking import PROVOKED, Provoked  # noqa: E402 - it needs the path
from .errno_rows import (  # noqa: E402
    COMMANDS,
    CONNECTED,
    MANUAL,
    ROWS,
    UNREACHABLE,
    Absent,
    Row,
    is_shared,
)

DOCUMENT = TESTS.parent / "docs" / "errors.md"

INTRODUCTION = """\
# Errors

What a system call on a handle of the broker fails with, and when. Rows stand in the order of kdbus' checks,
as far as there is one; items are checked one after the other, and the first that is wrong decides. Every row
has a test in `tests/kdbus/` that ends in exactly this refusal. poll(2) has no errno: a handle that is not
connected, or whose connection has gone, is POLLERR and POLLHUP.

This file is generated (`python -m tests.kdbus.errno_report`); the table is `tests/kdbus/errno_rows.py`.
"""
SHARED = """\
Every command checks these, or those that are named, before its own. What is told before anything is read
comes before EFAULT, though, and what the payload of an item looks like is checked with the item. The message
inside SEND is checked like a command; its rows are with SEND.
"""
OTHERS = {"open": "Opening a node", "mmap": "Mapping a pool", "ioctl": "Any request"}


def load_tests() -> list[Provoked]:
    """Every row with its test, once all modules with such tests are imported."""
    for module in sorted(Path(__file__).parent.glob("test_errnos_*.py")):
        import_module(f".{module.stem}", __package__)
    return PROVOKED


def render() -> str:
    """The whole document."""
    tests = {provoked.row: provoked.test for provoked in load_tests()}
    shared = [row for row in ROWS if is_shared(row)]
    parts = [INTRODUCTION]
    for operation, title in OTHERS.items():
        parts.append(f"## {title}\n\n{_conditions(_rows_of(operation), tests)}")
    parts.append(f"## Several commands\n\n{SHARED}\n{_conditions(shared, tests)}")
    for command in COMMANDS:
        common = sorted({row.errno for row in shared if command in row.operations})
        own = _conditions(_rows_of(command), tests)
        parts.append(f"## {command}\n\nThe shared {', '.join(common)}, and its own:\n\n{own}")
    parts.append(f"## Not reachable\n\nForeseen in kdbus, and never seen here.\n\n{_absent(UNREACHABLE)}")
    parts.append(
        "## Only in the manual\n\nWhat kdbus' manual pages say, and what its code and this broker do.\n\n"
        + _absent(MANUAL)
    )
    return "\n".join(parts)


def _rows_of(operation: str) -> list[Row]:
    """The rows that are its own."""
    return [row for row in ROWS if row.operations == (operation,)]


def _conditions(rows: Iterable[Row], tests: Mapping[Row, str]) -> str:
    lines = [(row.errno, _when(row), f"`{tests[row]}`" if row in tests else "none") for row in rows]
    return _table(("errno", "when", "test"), lines)


def _when(row: Row) -> str:
    """The condition, with the commands that share it if they are not all."""
    if not is_shared(row) or row.operations == COMMANDS:
        return row.when
    whose = "commands of a connection" if row.operations == CONNECTED else ", ".join(row.operations)
    return f"{row.when} ({whose})"


def _absent(entries: Iterable[Absent]) -> str:
    return _table(("command", "errno", "when", "instead"), entries)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    ruler = ["---"] * len(head)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ruler, *lines))


if __name__ == "__main__":
    DOCUMENT.write_text(render())
