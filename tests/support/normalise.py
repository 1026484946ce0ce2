"""Taking out of results what two runs of the same scenario may differ in, and nothing else.

A `Normaliser` replaces unique connection names by their order of appearance (so who is who stays visible),
known process ids by their labels, the bus's GUID, other 32-digit ids, addresses, the bus's directory and
clock times. It works on text and, value by value, on lists, tuples and dicts. The machine id is the same on
both buses and stays. One normaliser serves one scenario on one bus; its numbering is its only state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

UNIQUE_NAME = re.compile(r":1\.\d+(?!\d)")
HEX_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
CLOCK = re.compile(r"(?<!\d)\d{9,10}\.\d{1,6}(?!\d)")
WEEKDAY_TIME = re.compile(r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) \d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? [A-Z]+")


def read_machine_id() -> str:
    """This machine's id as the buses know it; empty when it has none."""
    for candidate in (Path("/var/lib/dbus/machine-id"), Path("/etc/machine-id")):
        if candidate.exists():
            return candidate.read_text().strip()
    return ""


class Normaliser:
    """One scenario's renaming; `labels` maps process ids to words."""

    def __init__(self, *, address: str, directory: Path, labels: Mapping[int, str]) -> None:
        self._fixed = [
            (address, "<address>"),
            (address.partition(",guid=")[0], "<address>"),
            (str(directory), "<dir>"),
        ]
        self._labels = labels
        self._names: dict[str, str] = {}
        self._machine_id = read_machine_id()

    def __call__(self, value: Any) -> Any:
        """The value with every string and every known process id in it replaced."""
        match value:
            case str():
                return self.text(value)
            case bool():
                return value
            case int():
                return f"<pid of {self._labels[value]}>" if value in self._labels else value
            case list():
                return [self(item) for item in value]
            case tuple():
                return tuple(self(item) for item in value)
            case dict():
                return {self(key): self(item) for key, item in value.items()}
            case _:
                return value

    def text(self, text: str) -> str:
        for found, shown in self._fixed:
            text = text.replace(found, shown)
        text = UNIQUE_NAME.sub(self._rename, text)
        text = HEX_ID.sub(self._replace_id, text)
        text = WEEKDAY_TIME.sub("<time>", text)
        text = CLOCK.sub("<time>", text)
        for pid, label in self._labels.items():
            text = re.sub(rf"(?<![\w.]){pid}(?![\w.])", f"<pid of {label}>", text)
        return text

    def _rename(self, found: re.Match[str]) -> str:
        return self._names.setdefault(found[0], f":U{len(self._names) + 1}")

    def _replace_id(self, found: re.Match[str]) -> str:
        return found[0] if found[0] == self._machine_id else "<id>"


def without_serials(text: str) -> str:
    """dbus-monitor's output without message numbers."""
    return re.sub(r"\b(reply_serial|serial)=\d+", r"\1=<n>", text)
