"""Taking out of results what two runs of the same scenario may differ in, and nothing else.

A `Normaliser` replaces unique connection names by their order of appearance (so who is who stays visible),
the bus's GUID, other 32-digit ids, addresses, the bus's directory and clock times. It works on text and,
value by value, on lists, tuples and dicts. The machine id is the same on both buses and stays. One
normaliser serves one scenario on one bus; its numbering is its only state.

`name_pids` replaces known process ids by their labels. Any small number may be somebody's process id, so it
looks at both results at once: a number is a process id where both have one of the same label.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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
    """One scenario's renaming."""

    def __init__(self, *, address: str, directory: Path) -> None:
        self._fixed = [
            (address, "<address>"),
            (address.partition(",guid=")[0], "<address>"),
            (str(directory), "<dir>"),
        ]
        self._names: dict[str, str] = {}
        self._machine_id = read_machine_id()

    def __call__(self, value: Any) -> Any:
        """The value with every string in it normalised."""
        match value:
            case str():
                return self.text(value)
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
        return CLOCK.sub("<time>", text)

    def _rename(self, found: re.Match[str]) -> str:
        return self._names.setdefault(found[0], f":U{len(self._names) + 1}")

    def _replace_id(self, found: re.Match[str]) -> str:
        return found[0] if found[0] == self._machine_id else "<id>"


Labels = Mapping[int, str]
"""What process ids are called."""

NUMBER = re.compile(r"(?<![\w.])\d+(?![\w.])")


def name_pids(one: Any, labels: Labels, other: Any, other_labels: Labels) -> tuple[Any, Any]:
    """Two results with their process ids replaced by labels.

    Where the two have another shape it cannot be told which numbers are process ids; all that may be are.
    """

    def name_all(ones: Iterable[Any], others: Iterable[Any]) -> tuple[list[Any], list[Any]]:
        pairs = [name_pids(a, labels, b, other_labels) for a, b in zip(ones, others, strict=True)]
        return [a for a, _ in pairs], [b for _, b in pairs]

    match one, other:
        case (bool(), _) | (_, bool()):
            pass
        case int(), int():
            label = labels.get(one)
            if label is not None and label == other_labels.get(other):
                return (f"<pid of {label}>",) * 2
        case str(), str() if len(numbers := NUMBER.findall(one)) == len(NUMBER.findall(other)):
            texts = name_all(map(int, numbers), map(int, NUMBER.findall(other)))
            return _with_numbers(one, texts[0]), _with_numbers(other, texts[1])
        case (list(), list()) | (tuple(), tuple()) if len(one) == len(other):
            ones, others = name_all(one, other)
            return type(one)(ones), type(other)(others)
        case dict(), dict() if len(one) == len(other):
            keys, values = name_all(one, other), name_all(one.values(), other.values())
            return dict(zip(keys[0], values[0], strict=True)), dict(zip(keys[1], values[1], strict=True))
        case _ if one is not other:
            alone = name_pids(one, labels, one, labels)[0]
            return alone, name_pids(other, other_labels, other, other_labels)[1]
    return one, other


def _with_numbers(text: str, names: Sequence[Any]) -> str:
    """The text with its numbers replaced where they have names."""
    replaced = iter(names)

    def replace(found: re.Match[str]) -> str:
        name = next(replaced)
        return name if isinstance(name, str) else found[0]

    return NUMBER.sub(replace, text)


def without_serials(text: str) -> str:
    """dbus-monitor's output without message numbers."""
    return re.sub(r"\b(reply_serial|serial)=\d+", r"\1=<n>", text)
