"""Match rules: the texts that AddMatch, RemoveMatch and BecomeMonitor take, as values.

A rule is a conjunction of conditions on one message. What a text means, and the words in which a bad one is
refused, follow dbus-daemon, whose reading is looser than the specification's in places that clients lean on:

- a value ends at the comma outside quotes, so white space after it belongs to it; before a key it is skipped;
- '...' quotes everything, and outside quotes a backslash escapes a quote mark and nothing else;
- an empty key ends the rule, and so does the sixteenth component: the rest of the text is not looked at;
- argument numbers are read as strtoul(3) does with base 0 ("arg0x1" is arg1, "arg010" is arg8).

Two rules are equal when they ask for the same components, whatever the spelling; RemoveMatch goes by that.
(dbus-daemon itself forgets to compare the values of two `path_namespace` rules and removes the wrong one.)
`format_match_rule` gives the canonical spelling, which parses back to an equal rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from busproxy.wire.names import (
    is_bus_name,
    is_interface_name,
    is_member_name,
    is_namespace,
    is_object_path,
)

__all__ = [
    "LIMITS_EXCEEDED",
    "MATCH_RULE_INVALID",
    "MAX_ARG_NUMBER",
    "MAX_RULE_LENGTH",
    "ArgMatch",
    "MatchRule",
    "MatchRuleError",
    "format_match_rule",
    "parse_match_rule",
]

MATCH_RULE_INVALID: Final = "org.freedesktop.DBus.Error.MatchRuleInvalid"
LIMITS_EXCEEDED: Final = "org.freedesktop.DBus.Error.LimitsExceeded"

MAX_RULE_LENGTH: Final = 1024
"""Longest rule text dbus-daemon reads, in bytes of UTF-8."""
MAX_ARG_NUMBER: Final = 63
"""Highest N of `argN`."""

_MAX_COMPONENTS: Final = 16
_WHITE: Final = " \t\n\r"
_MESSAGE_TYPES: Final = {"method_call": 1, "method_return": 2, "error": 3, "signal": 4}
_MESSAGE_TYPE_NAMES: Final = {number: name for name, number in _MESSAGE_TYPES.items()}
_UNSIGNED: Final = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_UNSIGNED_LIMIT: Final = 1 << 64

ArgKind = Literal["string", "path", "namespace"]


class MatchRuleError(ValueError):
    """The text is no match rule; `str()` of this is the text of the error reply.

    `error_name` is the D-Bus error to answer with: `MATCH_RULE_INVALID` or `LIMITS_EXCEEDED`.
    """

    error_name: str

    def __init__(self, text: str, error_name: str = MATCH_RULE_INVALID) -> None:
        super().__init__(text)
        self.error_name = error_name


@dataclass(frozen=True, slots=True)
class ArgMatch:
    """A condition on argument `index` (0..63) of the body: `argN`, `argNpath` or `arg0namespace`."""

    index: int
    kind: ArgKind
    value: str


@dataclass(frozen=True, slots=True)
class MatchRule:
    """The conditions of one rule; None (or no entry in `args`) stands for "anything".

    `type` is a message type number, 1..4. `path` and `path_namespace` are never both set. `args` is sorted by
    index, each index at most once.
    """

    type: int | None = None
    sender: str | None = None
    interface: str | None = None
    member: str | None = None
    path: str | None = None
    path_namespace: str | None = None
    destination: str | None = None
    eavesdrop: bool = False
    args: tuple[ArgMatch, ...] = ()


def parse_match_rule(text: str, max_length: int = MAX_RULE_LENGTH) -> MatchRule:
    """Parse the text of a rule. Raise `MatchRuleError` with dbus-daemon's words when it will not do.

    `max_length` counts bytes of UTF-8.
    """
    length = len(text.encode("utf-8", "surrogatepass"))
    if length > max_length:
        raise MatchRuleError(f"Match rule text is {length} bytes, maximum is {max_length}", LIMITS_EXCEEDED)

    message_type: int | None = None
    eavesdrop = False
    names: dict[str, str] = {}
    args: dict[int, ArgMatch] = {}
    # Every component is cut out before the first is judged: a missing quote at the end wins over a bad name
    # at the start.
    for key, value in list(_split_components(text)):
        if key == "type":
            if message_type is not None:
                raise MatchRuleError("Key type specified twice in match rule\n")
            message_type = _MESSAGE_TYPES.get(value)
            if message_type is None:
                raise MatchRuleError(f"Invalid message type ({value}) in match rule\n")
        elif key in _NAME_KEYS:
            _add_name(names, key, value)
        elif key == "eavesdrop":
            # Not refused twice: monitors put one before the rule of their user.
            if value not in ("true", "false"):
                raise MatchRuleError(f"eavesdrop='{value}' is invalid, it should be 'true' or 'false'\n")
            eavesdrop = value == "true"
        elif key.startswith("arg"):
            arg = _parse_arg(key, value)
            if arg.index in args:
                raise MatchRuleError(f"Argument {key} matched more than once in match rule\n")
            args[arg.index] = arg
        else:
            raise MatchRuleError(f'Unknown key "{key}" in match rule')

    return MatchRule(
        type=message_type,
        sender=names.get("sender"),
        interface=names.get("interface"),
        member=names.get("member"),
        path=names.get("path"),
        path_namespace=names.get("path_namespace"),
        destination=names.get("destination"),
        eavesdrop=eavesdrop,
        args=tuple(args[index] for index in sorted(args)),
    )


def format_match_rule(rule: MatchRule) -> str:
    """Give the canonical text of a rule, as Debug.Stats.GetAllMatchRules shows it."""
    parts: list[str] = []
    if rule.type is not None:
        parts.append(_format_component("type", _MESSAGE_TYPE_NAMES[rule.type]))
    for key, value in (
        ("interface", rule.interface),
        ("member", rule.member),
        ("path", rule.path),
        ("path_namespace", rule.path_namespace),
        ("sender", rule.sender),
        ("destination", rule.destination),
    ):
        if value is not None:
            parts.append(_format_component(key, value))
    if rule.eavesdrop:
        parts.append(_format_component("eavesdrop", "true"))
    for arg in rule.args:
        suffix = "" if arg.kind == "string" else arg.kind
        parts.append(_format_component(f"arg{arg.index}{suffix}", arg.value))
    return ",".join(parts)


def _format_component(key: str, value: str) -> str:
    quoted = value.replace("'", "'\\''")
    return f"{key}='{quoted}'"


_NAME_KEYS: Final = {
    "sender": (is_bus_name, "Sender name"),
    "interface": (is_interface_name, "Interface name"),
    "member": (is_member_name, "Member name"),
    "path": (is_object_path, "Path"),
    "path_namespace": (is_object_path, "Path"),
    "destination": (is_bus_name, "Destination name"),
}


def _add_name(names: dict[str, str], key: str, value: str) -> None:
    is_valid, label = _NAME_KEYS[key]
    if key in ("path", "path_namespace"):
        if "path" in names or "path_namespace" in names:
            raise MatchRuleError("path or path_namespace specified twice in match rule\n")
    elif key in names:
        raise MatchRuleError(f"Key {key} specified twice in match rule\n")
    if not is_valid(value):
        raise MatchRuleError(f"{label} '{value}' is invalid\n")
    names[key] = value


def _parse_arg(key: str, value: str) -> ArgMatch:
    example = "Should be 'arg0' or 'arg7' for example.\n"
    if key == "arg":
        raise MatchRuleError(
            f"Key '{key}' in match rule starts with 'arg' but lacks an arg number. {example}"
        )
    parsed = _parse_unsigned(key, 3)
    if parsed is None:
        raise MatchRuleError(
            f"Key '{key}' in match rule starts with 'arg' but could not parse arg number. {example}"
        )
    index, end = parsed
    kind: ArgKind
    if end == len(key):
        kind = "string"
    elif key[end:] == "path":
        kind = "path"
    elif key == "arg0namespace":
        kind = "namespace"
        if not is_namespace(value):
            raise MatchRuleError(f"arg0namespace='{value}' is not a valid prefix of a bus name")
    else:
        raise MatchRuleError(
            f"Key '{key}' in match rule contains junk after argument number ({index}). "
            f"Only 'arg{index}path' (for example) or 'arg0namespace' are valid"
        )
    if index > MAX_ARG_NUMBER:
        raise MatchRuleError(
            f"Key '{key}' in match rule has arg number {index} but the maximum is {MAX_ARG_NUMBER}.\n"
        )
    return ArgMatch(index, kind, value)


def _parse_unsigned(text: str, start: int) -> tuple[int, int] | None:
    """Read a number at `start` as strtoul(3) does with base 0; give it and the index after it."""
    match = _UNSIGNED.match(text, start)
    if match is None:
        return None
    sign, digits = match.groups()
    if digits[:2] in ("0x", "0X"):
        number = int(digits, 16)
    elif digits.startswith("0"):
        number = int(digits, 8)
    elif len(digits) > 20:
        # Longer than 2**64; int() of thousands of digits is slow and, past a limit, refused.
        return None
    else:
        number = int(digits)
    if number >= _UNSIGNED_LIMIT:
        return None
    return (-number if sign == "-" else number) % _UNSIGNED_LIMIT, match.end()


def _split_components(text: str) -> Iterator[tuple[str, str]]:
    """Cut the text into (key, value); the values are without their quotes."""
    position = 0
    for _ in range(_MAX_COMPONENTS):
        key, position = _split_key(text, position)
        if not key:
            return
        value, position = _split_value(text, position)
        yield key, value


def _split_key(text: str, position: int) -> tuple[str, int]:
    """Give the key at `position` and the index after its '='; an empty key at the end of the rule."""
    end = len(text)
    while position < end and text[position] in _WHITE:
        position += 1
    start = position
    while position < end and text[position] != "=" and text[position] not in _WHITE:
        position += 1
    key = text[start:position]
    if not key:
        return "", position
    while position < end and text[position] in _WHITE:
        position += 1
    if position == end or text[position] != "=":
        raise MatchRuleError("Match rule has a key with no subsequent '=' character")
    return key, position + 1


def _split_value(text: str, position: int) -> tuple[str, int]:
    """Give the value at `position` without its quotes, and the index after the comma that ends it."""
    pieces: list[str] = []
    end = len(text)
    while position < end:
        char = text[position]
        position += 1
        if char == ",":
            break
        if char == "'":
            closing = text.find("'", position)
            if closing < 0:
                raise MatchRuleError("Unbalanced quotation marks in match rule")
            pieces.append(text[position:closing])
            position = closing + 1
        elif char == "\\" and position < end:
            escaped = text[position]
            position += 1
            pieces.append("'" if escaped == "'" else "\\" + escaped)
        else:
            pieces.append(char)
    return "".join(pieces), position
