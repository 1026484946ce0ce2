"""Match rules of D-Bus as match entries of the broker, and the filters of the signals they are for.

The broker does not read messages. A signal carries a bloom filter of what is in it (`message_filter`), and a
rule becomes entries (`rule_entries`), each a mask and whatever else the broker knows of a message: the
sender's id or name, the destination's id. Entries let through everything the exact rule
(`kdbus_core.subscriptions`) lets through and some more, so who receives goes by the exact rule afterwards:

- of the arguments only those that are equal to a text or below a name can be in a mask; `argNpath` holds in
  two directions, of which a filter knows one, and is left to the exact rule;
- a destination is an id or, where a signal was sent to a name, 0; the name itself is left to the exact rule;
- a rule of another type than signal, or about messages that nobody can send, becomes nothing.

What the bus itself says of names is no message but a notification. A rule that would hold for a
NameOwnerChanged of `org.freedesktop.DBus` asks for those as well, by further entries under the same cookie.

The tags are those of sd-bus: each header field, each leading argument that is a string, path or signature,
and for paths and arguments everything they are below of. No tag is longer than the longest rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from busproxy.bloom import all_bits, tag_bits, to_bytes
from busproxy.wire.header import MessageType
from busproxy.wire.match_rules import MAX_RULE_LENGTH
from busproxy.wire.match_rules import MatchRule as WireRule
from busproxy.wire.names import is_well_known_name
from kdbus_core.abi import DST_NAME, MATCH_ANY, ItemType
from kdbus_core.domain import Bloom
from kdbus_core.matches import (
    BloomMask,
    DstIdMatch,
    Filter,
    IdMatch,
    IdNotice,
    MatchRule,
    NameMatch,
    NameNotice,
)
from kdbus_core.subscriptions import DRIVER, ArgumentTest, Rule

__all__ = [
    "MAX_FILTER_COST",
    "NOBODY",
    "FilterArguments",
    "connection_id",
    "core_rule",
    "message_filter",
    "own_signal_entries",
    "rule_entries",
    "rule_mask",
]

DRIVER_NAME = "org.freedesktop.DBus"
DRIVER_PATH = "/org/freedesktop/DBus"
DRIVER_INTERFACE = "org.freedesktop.DBus"
NAME_OWNER_CHANGED = "NameOwnerChanged"

# Nothing can be sent with these (`wire.header`).
_LOCAL_PATH = "/org/freedesktop/DBus/Local"
_LOCAL_INTERFACE = "org.freedesktop.DBus.Local"

NOBODY = -1
"""In a rule: a unique name that the bus never gives to anybody."""

FilterArguments = Sequence[tuple[str, str | Sequence[str]] | None]
"""The arguments of a message, in order: type code and text of a string, path or signature; type and elements
of an array of those; None for anything else. `wire.body.string_arguments` gives the former."""

MAX_ARGUMENTS = 64
MAX_FILTER_COST = 1024
"""Most work for one filter, in units of hashing 8 bytes: a few milliseconds. A message that would take more
has the filter that contains every mask."""

_MAX_TAG_VALUE = MAX_RULE_LENGTH
_MAX_REMEMBERED = 255
_COST_OF_A_TAG = 4
_UNIQUE_PREFIX = ":1."
_TYPE_NAMES = {
    MessageType.METHOD_CALL: "method_call",
    MessageType.METHOD_RETURN: "method_return",
    MessageType.ERROR: "error",
    MessageType.SIGNAL: "signal",
}


# Rules of clients as rules of the broker


def connection_id(unique_name: str) -> int | None:
    """The connection that a unique name of the bus means; None for any other name."""
    digits = unique_name.removeprefix(_UNIQUE_PREFIX)
    if digits == unique_name or not digits.isdecimal() or not digits.isascii() or len(digits) > 20:
        return None
    return int(digits) if digits == "0" or digits[0] != "0" else None


def _who(name: str | None) -> int | str | None:
    if name is None or name[0] != ":":
        return DRIVER if name == DRIVER_NAME else name
    id = connection_id(name)
    return NOBODY if id is None or not 0 < id < MATCH_ANY else id


def core_rule(rule: WireRule) -> Rule:
    """A client's match rule in the broker's terms."""
    return Rule(
        message_type=rule.type,
        sender=_who(rule.sender),
        interface=rule.interface,
        member=rule.member,
        path=rule.path,
        path_namespace=rule.path_namespace,
        destination=_who(rule.destination),
        arguments=tuple(ArgumentTest(arg.index, arg.kind, arg.value) for arg in rule.args),
        eavesdrop=rule.eavesdrop,
    )


# Filters


def message_filter(
    bloom: Bloom,
    *,
    message_type: int = MessageType.SIGNAL,
    path: str | None = None,
    interface: str | None = None,
    member: str | None = None,
    arguments: FilterArguments = (),
) -> Filter:
    """The filter of a signal; `arguments` are its leading ones, at most 64 count."""
    arguments = arguments[:MAX_ARGUMENTS]
    cost = 0 if path is None else _cost(path)
    for argument in arguments:
        if argument is not None:
            _, text = argument
            cost += _cost(text) if isinstance(text, str) else sum(map(_cost, text))
    if cost > MAX_FILTER_COST:
        return Filter(0, to_bytes(bloom, all_bits(bloom)))
    bits = _header_bits(bloom, message_type, interface, member)
    if path is not None:
        bits |= _remembered_bits(bloom, "path", path)
    for index, argument in enumerate(arguments):
        if argument is None:
            continue
        _, text = argument
        if isinstance(text, str):
            bits |= _remembered_bits(bloom, _ARGUMENTS[index], text)
        else:
            for element in text:
                bits |= _plain_bits(bloom, _ARGUMENTS[index] + "-has", element)
    return Filter(0, to_bytes(bloom, bits))


_ARGUMENTS = tuple(f"arg{index}" for index in range(MAX_ARGUMENTS))


def _cost(text: str) -> int:
    """What hashing all tags of a text would cost, remembered or not."""
    if len(text) > _MAX_TAG_VALUE:
        text = text[:_MAX_TAG_VALUE]
    separators = text.count("/") + text.count(".")
    return len(text) * 3 // 8 + (3 + 2 * separators) * _COST_OF_A_TAG


@lru_cache(maxsize=1024)
def _header_bits(bloom: Bloom, message_type: int, interface: str | None, member: str | None) -> int:
    bits = 0
    name = _TYPE_NAMES.get(MessageType(message_type)) if 1 <= message_type <= 4 else None
    for key, text in (("message-type", name), ("interface", interface), ("member", member)):
        if text is not None:
            bits |= _plain_bits(bloom, key, text)
    return bits


def _remembered_bits(bloom: Bloom, key: str, text: str) -> int:
    """Long texts are not kept: they would fill the memory, and hardly come again."""
    if len(text) > _MAX_REMEMBERED:
        return _text_bits(bloom, key, text)
    return _short_text_bits(bloom, key, text)


def _text_bits(bloom: Bloom, key: str, text: str) -> int:
    """All bits of a path or an argument: of itself, and of what it is below of."""
    bits = _plain_bits(bloom, key, text) | _prefix_bits(bloom, f"{key}-slash-prefix", text, b"/")
    if key != "path":
        bits |= _prefix_bits(bloom, f"{key}-dot-prefix", text, b".")
    return bits


_short_text_bits = lru_cache(maxsize=4096)(_text_bits)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _plain_bits(bloom: Bloom, key: str, text: str) -> int:
    """The bits of one tag; none for what is longer than any rule."""
    value = _encode(text)
    return tag_bits(bloom, _encode(key) + b":" + value) if len(value) <= _MAX_TAG_VALUE else 0


def _prefix_bits(bloom: Bloom, key: str, text: str, separator: bytes) -> int:
    """The bits of a text and of its prefixes, up to each separator with and without that."""
    tag = _encode(key) + b":"
    value = _encode(text)
    lengths = [at for at in _prefix_lengths(value, separator) if at <= _MAX_TAG_VALUE]
    return tag_bits(bloom, tag + value[:_MAX_TAG_VALUE], [len(tag) + length for length in lengths])


def _prefix_lengths(value: bytes, separator: bytes) -> Iterator[int]:
    longest = 0
    at = value.find(separator)
    while 0 <= at < _MAX_TAG_VALUE:
        if at > longest:
            yield at
        yield (longest := at + 1)
        at = value.find(separator, at + 1)
    if len(value) > longest or not value:
        yield len(value)


# Masks and entries


def rule_mask(bloom: Bloom, rule: Rule) -> int:
    """The bits that the filter of every message has for which the rule holds."""
    bits = _header_bits(bloom, rule.message_type or 0, rule.interface, rule.member)
    if rule.path is not None:
        bits |= _plain_bits(bloom, "path", rule.path)
    if rule.path_namespace not in (None, "/"):  # everything is below "/", and not everybody says so
        bits |= _plain_bits(bloom, "path-slash-prefix", rule.path_namespace or "")
    for test in rule.arguments:
        if test.index >= MAX_ARGUMENTS:
            continue
        if test.kind == "string":
            bits |= _plain_bits(bloom, _ARGUMENTS[test.index], test.value)
        elif test.kind == "namespace":
            bits |= _plain_bits(bloom, f"{_ARGUMENTS[test.index]}-dot-prefix", test.value)
    return bits


def rule_entries(bloom: Bloom, rule: Rule, *, notifications: bool = True) -> list[list[MatchRule]]:
    """The entries of a rule: one MATCH_ADD each, all under the cookie by which the rule is removed.

    No entry: the rule holds for nothing that matches decide on. `notifications` says whether the name changes
    it speaks of are wanted too. A rule with a destination is of use only to that connection itself: others'
    messages are not to be had by matches. Whether a rule eavesdrops makes no difference.
    """
    entries = _message_entries(bloom, rule)
    notices = list(_notices(rule)) if notifications else []
    if notices == _EVERY_NOTICE and entries == [[BloomMask((bytes(bloom.size),))]]:
        return [[]]  # everything: that is what an entry without rules is for
    return entries + [[notice] for notice in notices]


def own_signal_entries(id: int) -> list[list[MatchRule]]:
    """The entries with which a connection gets every signal sent to it, by its id or by any of its names."""
    return [[DstIdMatch(id)], [DstIdMatch(DST_NAME)]]


def _message_entries(bloom: Bloom, rule: Rule) -> list[list[MatchRule]]:
    if rule.message_type not in (None, MessageType.SIGNAL):
        return []
    if rule.sender in (DRIVER, NOBODY) or rule.destination in (DRIVER, NOBODY):
        return []
    if (rule.interface or "").startswith(_LOCAL_INTERFACE):
        return []
    if (rule.path or rule.path_namespace or "").startswith(_LOCAL_PATH):
        return []
    mask = rule_mask(bloom, rule)
    rules: list[MatchRule] = []
    if isinstance(rule.sender, str):
        rules.append(NameMatch(rule.sender))
    elif rule.sender is not None:
        rules.append(IdMatch(rule.sender))
    if mask or not rules:
        rules.append(BloomMask((to_bytes(bloom, mask),)))
    if isinstance(rule.destination, int):
        return [[DstIdMatch(id), *rules] for id in (rule.destination, DST_NAME)]
    return [rules]


# Notifications

_EVERY_NOTICE: list[MatchRule] = [
    IdNotice(ItemType.ID_ADD, MATCH_ANY),
    IdNotice(ItemType.ID_REMOVE, MATCH_ANY),
    NameNotice(ItemType.NAME_ADD, MATCH_ANY, MATCH_ANY, None),
    NameNotice(ItemType.NAME_REMOVE, MATCH_ANY, MATCH_ANY, None),
    NameNotice(ItemType.NAME_CHANGE, MATCH_ANY, MATCH_ANY, None),
]


def _notices(rule: Rule) -> Iterator[MatchRule]:
    """The notifications that become a NameOwnerChanged(name, old owner, new owner) the rule may hold for.

    An owner is "" for nobody, and an activator is nobody: so it may be any id where a name changes hands.
    """
    wanted = _wanted_change(rule)
    if wanted is None:
        return
    name, old, new = wanted
    if name is None or name[:1] == ":":
        if old in (None, "") and (id := _one_id(name, new)) is not None:
            yield IdNotice(ItemType.ID_ADD, id)
        if new in (None, "") and (id := _one_id(name, old)) is not None:
            yield IdNotice(ItemType.ID_REMOVE, id)
    if name is None or is_well_known_name(name):
        old_id, new_id = _one_id(old or None), _one_id(new or None)
        if old_id is None or new_id is None:
            return
        if old in (None, "") and new != "":
            yield NameNotice(ItemType.NAME_ADD, MATCH_ANY, new_id, name)
        if new in (None, "") and old != "":
            yield NameNotice(ItemType.NAME_REMOVE, old_id, MATCH_ANY, name)
        if old != "" or new != "":
            yield NameNotice(ItemType.NAME_CHANGE, old_id, new_id, name)


def _wanted_change(rule: Rule) -> tuple[str | None, str | None, str | None] | None:
    """The arguments of NameOwnerChanged as far as the rule fixes them; None when it holds for no such signal.

    Names and owners have no "/", so that a test for a path is one for equality.
    """
    if (
        rule.message_type not in (None, MessageType.SIGNAL)
        or rule.sender not in (None, DRIVER)
        or rule.interface not in (None, DRIVER_INTERFACE)
        or rule.member not in (None, NAME_OWNER_CHANGED)
        or rule.path not in (None, DRIVER_PATH)
        or rule.destination is not None
        or not _is_in_namespace(DRIVER_PATH, rule.path_namespace)
    ):
        return None
    wanted: list[str | None] = [None, None, None]
    for test in rule.arguments:
        if test.index > 2:
            return None
        if test.kind != "namespace":
            if wanted[test.index] not in (None, test.value):
                return None
            wanted[test.index] = test.value
    return wanted[0], wanted[1], wanted[2]


def _is_in_namespace(path: str, namespace: str | None) -> bool:
    return namespace in (None, "/", path) or path.startswith(f"{namespace}/")


def _one_id(*owners: str | None) -> int | None:
    """The one connection that all of these unique names mean, MATCH_ANY without any; None: there is none."""
    ids = {_who(owner) if owner else NOBODY for owner in owners if owner is not None}
    if not ids:
        return MATCH_ANY
    id = ids.pop()
    return id if not ids and isinstance(id, int) and id not in (NOBODY, DRIVER) else None
