"""Bodies and items of commands: values of the library as the broker reads them.

What cannot be said at all, such as a name with letters that no name has, is
EINVAL here as it would be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from errno import EINVAL

from kdbus_core.abi import CMD, CMD_FREE, ItemType
from kdbus_core.errors import KdbusError
from kdbus_core.items import ACCESS, ID_NOTICE, NAME_NOTICE, build_item, build_numbers_item, build_string_item
from kdbus_core.matches import BloomMask, DstIdMatch, IdMatch, IdNotice, MatchRule, NameMatch
from kdbus_core.policy import Access, PolicyEntry


def build_text(type: ItemType, text: str) -> bytes:
    """An item with a string; EINVAL for one that has other letters than one byte each."""
    try:
        return build_string_item(type, text)
    except UnicodeEncodeError as error:
        raise KdbusError(EINVAL, f"{text!r} cannot be a name") from error


def build_simple(items: Iterable[bytes] = (), flags: int = 0) -> bytes:
    """The body of a command whose struct is no more than the fields all have."""
    rest = b"".join(items)
    return CMD.pack(CMD.size + len(rest), flags, 0) + rest


def build_free(offset: int) -> bytes:
    """The body of a FREE."""
    return CMD_FREE.pack(CMD_FREE.size, 0, 0, offset)


def build_accesses(accesses: Iterable[Access]) -> Iterable[bytes]:
    """POLICY_ACCESS items."""
    for access in accesses:
        yield build_item(ItemType.POLICY_ACCESS, ACCESS.pack(access.type, access.level, access.id))


def build_policy(policy: Sequence[PolicyEntry]) -> Iterable[bytes]:
    """NAME items, each followed by its accesses."""
    for entry in policy:
        yield build_text(ItemType.NAME, entry.name)
        yield from build_accesses(entry.accesses)


def build_rule(rule: MatchRule) -> bytes:
    """One rule of a match as an item."""
    match rule:
        case BloomMask(generations):
            return build_item(ItemType.BLOOM_MASK, b"".join(generations))
        case IdMatch(id):
            return build_numbers_item(ItemType.ID, id)
        case DstIdMatch(id):
            return build_numbers_item(ItemType.DST_ID, id)
        case NameMatch(name):
            return build_text(ItemType.NAME, name)
        case IdNotice(type, id):
            return build_item(type, ID_NOTICE.pack(id, 0))
        case _:
            about = b"" if rule.name is None else rule.name.encode("latin-1", "replace") + b"\0"
            return build_item(rule.type, NAME_NOTICE.pack(rule.old_id, 0, rule.new_id, 0) + about)
