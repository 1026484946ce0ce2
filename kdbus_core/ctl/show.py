"""What kdbusctl prints: columns for people, JSON for programs, and payloads as far as they can be read.

Whatever came from others is printed so that it cannot move the cursor or change colours.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

PREVIEW = 48
"""Bytes of a payload that are shown where there is no room for all of it."""


def print_json(value: object, out: TextIO, *, indent: int | None = 2) -> None:
    """Print one JSON document; on one line where `indent` is None."""
    out.write(json.dumps(value, indent=indent, allow_nan=False) + "\n")
    out.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], out: TextIO) -> None:
    """Print rows below their headings, each column as wide as it has to be.

    On a terminal lines end at its edge, as wrapped ones cannot be read; anywhere else nothing is cut off.
    """
    room = shutil.get_terminal_size().columns if out.isatty() else None
    cells = [list(columns)] + [[word(value) for value in row] for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        out.write(_fit(line.rstrip(), room) + "\n")
    out.flush()


def _fit(line: str, room: int | None) -> str:
    return line if room is None or len(line) <= room else f"{line[: room - 1]}…"


def print_record(record: Mapping[str, object], out: TextIO) -> None:
    """Print keys and values, one below the other; what is unknown is left out."""
    shown = {key.replace("_", " "): word(value) for key, value in record.items() if value is not None}
    width = max((len(key) for key in shown), default=0)
    for key, value in shown.items():
        out.write(f"{key:<{width}}  {value}\n")
    out.flush()


def word(value: object) -> str:
    """A value in one cell; "-" is nothing."""
    if value is None or value == "" or value == [] or value == ():
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={word(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(word(one) for one in value)
    return printable(str(value))


def printable(text: str) -> str:
    """Text on one line in which everything that a terminal would obey is written out."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def size(count: int) -> str:
    """A number of bytes, exact up to 10 KiB."""
    if count < 10 * 1024:
        return f"{count} B"
    scaled = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        scaled /= 1024
        if scaled < 1024 or unit == "GiB":
            break
    return f"{scaled:.1f} {unit}"


def preview(payload: bytes, limit: int = PREVIEW) -> str:
    """The beginning of a payload: as text where most of it is text, else in hexadecimal."""
    head = payload[:limit]
    more = "…" if len(payload) > limit else ""
    if sum(0x20 <= byte < 0x7F for byte in head) * 2 >= len(head):
        return '"' + "".join(chr(byte) if 0x20 <= byte < 0x7F else "·" for byte in head) + f'"{more}'
    return head.hex(" ", -4) + more


def hex_dump(payload: bytes) -> Iterable[str]:
    """A payload in lines of sixteen bytes: offset, bytes, and what of them is ASCII."""
    for offset in range(0, len(payload), 16):
        row = payload[offset : offset + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        yield f"{offset:08x}  {row.hex(' ', -1):<47}  {text}"
