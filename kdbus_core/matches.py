"""Matches: which connections a signal or a notification goes to, by kdbus's rules.

A connection installs *entries* under cookies of its choice.  An entry is a set
of rules that must all pass, and one passing entry is enough.  Rules speak of a
user's message (its bloom filter, its sender's id and names, the destination in
its header) or of one kind of notification; neither sort passes for the other,
so an entry that mixes them passes for nothing, and an entry without rules
passes for everything.

Rules of one entry are merged when it is added: what is left is one sender, one
destination, some names and one mask, or one notification.  Entries for messages
are filed under the sender's id, else a name, else the destination, each of
which has an index of masks; entries for notifications under exactly what they
ask for.  So an entry that cannot pass costs nothing where sender, destination or
notification decide, and little where the mask does (see `bloom_index`), however
many there are; and one whose rules contradict each other is filed nowhere.

An entry belongs to its connection (`Connection.matches`), and what is filed
here goes when it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from errno import EBADSLT
from itertools import product
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, NamedTuple

from kdbus_core.abi import MATCH_ANY, ItemType
from kdbus_core.bloom_index import MaskIndex
from kdbus_core.errors import KdbusError
from kdbus_core.names import PRIMARY
from kdbus_core.notifications import IdAdd, IdRemove, NameChange

if TYPE_CHECKING:
    from kdbus_core.connection import Connection


class Filter(NamedTuple):
    """A signal's bloom filter: `bits` in the bus' filter size, made for masks of `generation` (from 0)."""

    generation: int
    bits: bytes


@dataclass(frozen=True, slots=True)
class BloomMask:
    """The filter contains the mask of its generation, or the last one when it is newer than that.

    At least one generation, oldest first, each in the bus' filter size.
    """

    generations: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class IdMatch:
    """The sender has this id; MATCH_ANY is everyone's."""

    id: int


@dataclass(frozen=True, slots=True)
class NameMatch:
    """The sender owns this name and does not merely queue for it."""

    name: str


@dataclass(frozen=True, slots=True)
class DstIdMatch:
    """The header's destination is this id; MATCH_ANY is any, a broadcast included."""

    id: int


@dataclass(frozen=True, slots=True)
class IdNotice:
    """A connection has come (ID_ADD) or gone (ID_REMOVE), the one with this id or MATCH_ANY."""

    type: ItemType
    id: int


@dataclass(frozen=True, slots=True)
class NameNotice:
    """A name has changed hands, as NAME_ADD, NAME_REMOVE or NAME_CHANGE says.

    An id is a connection's, 0 for nobody or MATCH_ANY; the name None is any.
    """

    type: ItemType
    old_id: int
    new_id: int
    name: str | None


MatchRule = BloomMask | IdMatch | NameMatch | DstIdMatch | IdNotice | NameNotice

_NO_ID = -1
"""The id of nothing that a rule could mean."""
_NO_MASK = (0,)
"""What every filter contains."""

_NAME_ADD = int(ItemType.NAME_ADD)
_NAME_REMOVE = int(ItemType.NAME_REMOVE)
_NAME_CHANGE = int(ItemType.NAME_CHANGE)
_ID_ADD = int(ItemType.ID_ADD)
_ID_REMOVE = int(ItemType.ID_REMOVE)

# What an entry asks of a notification: type, old id (or the id), new id, name.
# Type 0 is an entry without rules; it is the whole of what that asks for.
_Notice = tuple[int, int, int, str | None]

_ANY_NOTICE: _Notice = (0, MATCH_ANY, MATCH_ANY, None)

_by_id: Callable[[Connection], int] = attrgetter("id")


def _owns(connection: Connection, name: str) -> bool:
    mine = connection.names.get(name)
    return mine is not None and bool(mine.flags & PRIMARY)


_Key = tuple[Literal["any", "source", "name", "destination"], int | str]
"""Where an entry for messages is filed."""

_ANY_KEY: _Key = ("any", 0)

REMEMBERED = 1024
"""For how many filters it is remembered which of the entries that ask for no sender pass."""


class _Message(NamedTuple):
    """What an entry asks of a message; the masks are integers, oldest generation first."""

    source: int = MATCH_ANY
    destination: int = MATCH_ANY
    names: tuple[str, ...] = ()
    masks: tuple[int, ...] = _NO_MASK

    @property
    def key(self) -> _Key:
        """The most selective of the conditions other than the mask."""
        if self.source != MATCH_ANY:
            return "source", self.source
        if self.names:
            return "name", self.names[0]
        if self.destination != MATCH_ANY:
            return "destination", self.destination
        return _ANY_KEY

    def comes_from(self, sender: Connection, dst_id: int) -> bool:
        """Whether sender and destination are the ones asked for."""
        return (
            self.source in (MATCH_ANY, sender.id)
            and self.destination in (MATCH_ANY, dst_id)
            and all(_owns(sender, name) for name in self.names)
        )

    def is_contained(self, generation: int, bits: int) -> bool:
        """Whether a filter contains the mask."""
        mask = self.masks[min(generation, len(self.masks) - 1)]
        return mask & bits == mask


def _both_ids(one: int, other: int) -> int:
    """What is meant by both, _NO_ID when nothing is."""
    if one in (MATCH_ANY, other):
        return other
    return one if other == MATCH_ANY else _NO_ID


def _both_masks(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    """The mask that a filter contains if it contains both; as few generations as will do."""
    if len(one) == len(other) == 1:
        return (one[0] | other[0],)
    masks = [
        one[min(generation, len(one) - 1)] | other[min(generation, len(other) - 1)]
        for generation in range(max(len(one), len(other)))
    ]
    while len(masks) > 1 and masks[-1] == masks[-2]:
        masks.pop()
    return tuple(masks)


def _merge_message(rules: Sequence[MatchRule]) -> _Message | None:
    """What the rules ask of a message, None when no message passes."""
    source = destination = MATCH_ANY
    names: dict[str, None] = {}
    masks: tuple[int, ...] = _NO_MASK
    for rule in rules:
        match rule:
            case BloomMask():
                uploaded = tuple(int.from_bytes(mask, "little") for mask in rule.generations)
                masks = _both_masks(masks, uploaded)
            case IdMatch():
                source = _both_ids(source, rule.id)
            case DstIdMatch():
                destination = _both_ids(destination, rule.id)
            case NameMatch():
                names[rule.name] = None
            case _:
                return None
        if _NO_ID in (source, destination):
            return None
    return _Message(source, destination, tuple(names), masks)


def _merge_notice(rules: Sequence[MatchRule]) -> _Notice | None:
    """What the rules ask of a notification, None when none passes."""
    merged = _ANY_NOTICE
    for rule in rules:
        match rule:
            case IdNotice():
                asked: _Notice = (int(rule.type), rule.id, MATCH_ANY, None)
            case NameNotice():
                asked = (int(rule.type), rule.old_id, rule.new_id, rule.name)
            case _:
                return None
        old_id, new_id = _both_ids(merged[1], asked[1]), _both_ids(merged[2], asked[2])
        if merged[0] not in (0, asked[0]) or _NO_ID in (old_id, new_id):
            return None
        if None not in (merged[3], asked[3]) and merged[3] != asked[3]:
            return None
        merged = (asked[0], old_id, new_id, merged[3] if asked[3] is None else asked[3])
    return merged


def _passing_notices(notification: NameChange | IdAdd | IdRemove) -> Iterator[_Notice]:
    """Everything that can be asked for and that this notification is."""
    yield _ANY_NOTICE
    if isinstance(notification, NameChange):
        old_id = 0 if notification.old is None else notification.old.id
        new_id = 0 if notification.new is None else notification.new.id
        type = _NAME_CHANGE
        if notification.old is None:
            type = _NAME_ADD
        elif notification.new is None:
            type = _NAME_REMOVE
        yield from product((type,), (old_id, MATCH_ANY), (new_id, MATCH_ANY), (notification.name, None))
        return
    type = _ID_ADD if isinstance(notification, IdAdd) else _ID_REMOVE
    yield type, notification.connection.id, MATCH_ANY, None
    yield type, MATCH_ANY, MATCH_ANY, None


def count_mask_bytes(rules: Sequence[MatchRule]) -> int:
    """The bytes of all masks, every generation counted."""
    return sum(
        len(generation) for rule in rules if isinstance(rule, BloomMask) for generation in rule.generations
    )


class Entry:
    """The rules of one entry, merged; `message` and `notice` are None where nothing can pass."""

    __slots__ = ("connection", "is_settled", "mask_bytes", "message", "notice")

    def __init__(self, connection: Connection, rules: Sequence[MatchRule]) -> None:
        self.connection = connection
        self.mask_bytes = count_mask_bytes(rules)
        self.message = message = _merge_message(rules)
        self.notice = _merge_notice(rules)
        # Whether a message found by the first of sender, name and destination, and by mask, passes as it is.
        self.is_settled = message is None or (
            (message.source != MATCH_ANY) + (message.destination != MATCH_ANY) + len(message.names) < 2
        )


class Matches:
    """All entries of a bus; true when there are any."""

    def __init__(self) -> None:
        self._count = 0
        self._messages: dict[_Key, MaskIndex[Entry]] = {}
        self._notices: dict[_Notice, dict[Connection, int]] = {}

    def __bool__(self) -> bool:
        return self._count > 0

    @property
    def takes_messages(self) -> bool:
        """Whether any entry lets messages through, not only notifications."""
        return bool(self._messages)

    @property
    def index_size(self) -> int:
        """How many places there are in which entries are filed, 0 for none; looks at all of them."""
        return len(self._notices) + sum(1 + len(index) for index in self._messages.values())

    def add(self, connection: Connection, cookie: int, rules: Sequence[MatchRule]) -> None:
        """Install an entry (MATCH_ADD); several may have the same cookie.

        Limits, sizes of masks and names have been checked.
        """
        entry = Entry(connection, rules)
        connection.matches.setdefault(cookie, []).append(entry)
        connection.match_count += 1
        connection.mask_bytes += entry.mask_bytes
        self._count += 1
        if entry.message is not None:
            key = entry.message.key
            index = self._messages.get(key)
            if index is None:
                index = self._messages[key] = MaskIndex(remembers=REMEMBERED if key == _ANY_KEY else 0)
            index.add(entry.message.masks, entry)
        if entry.notice is not None:
            wanting = self._notices.setdefault(entry.notice, {})
            wanting[connection] = wanting.get(connection, 0) + 1

    def remove(self, connection: Connection, cookie: int) -> int:
        """Remove all entries under a cookie (MATCH_REMOVE); how many, EBADSLT when there is none."""
        entries = connection.matches.pop(cookie, None)
        if entries is None:
            raise KdbusError(EBADSLT, f"connection {connection.id} has no match {cookie}")
        connection.match_count -= len(entries)
        connection.mask_bytes -= sum(entry.mask_bytes for entry in entries)
        self._count -= len(entries)
        for entry in entries:
            if entry.message is not None:
                key = entry.message.key
                index = self._messages[key]
                index.remove(entry.message.masks, entry)
                if not index:
                    del self._messages[key]
            if entry.notice is not None:
                same = self._notices[entry.notice]
                same[connection] -= 1
                if not same[connection]:
                    del same[connection]
                if not same:
                    del self._notices[entry.notice]
        return len(entries)

    def disconnect(self, connection: Connection) -> None:
        """Remove all entries of a connection."""
        for cookie in list(connection.matches):
            self.remove(connection, cookie)

    def recipients(self, sender: Connection, filter: Filter, dst_id: int) -> list[Connection]:
        """Who wants a signal, each once, by ascending id; the sender may be among them.

        `dst_id` is as in the header: 0 where the destination is a name, DST_BROADCAST for everybody.
        """
        found: set[Connection] = set()
        for entries in self._passing(sender, filter, dst_id):
            for entry in entries:
                if entry.connection not in found and self._is_for(entry, sender, dst_id):
                    found.add(entry.connection)
        return sorted(found, key=_by_id)

    def wants(self, connection: Connection, sender: Connection, filter: Filter, dst_id: int) -> bool:
        """Whether a connection wants a signal that is sent to it."""
        bits = int.from_bytes(filter.bits, "little")
        return any(
            entry.message is not None
            and entry.message.is_contained(filter.generation, bits)
            and entry.message.comes_from(sender, dst_id)
            for entries in connection.matches.values()
            for entry in entries
        )

    def notified(self, notification: NameChange | IdAdd | IdRemove) -> list[Connection]:
        """Who wants a notification, each once, by ascending id."""
        found = {
            connection for key in _passing_notices(notification) for connection in self._notices.get(key, ())
        }
        return sorted(found, key=_by_id)

    def _passing(self, sender: Connection, filter: Filter, dst_id: int) -> Iterator[Iterable[Entry]]:
        """Entries that pass as far as the index knows, none twice."""
        generation = filter.generation
        bits = int.from_bytes(filter.bits, "little")
        keys: list[_Key] = [_ANY_KEY, ("source", sender.id), ("destination", dst_id)]
        keys.extend(("name", name) for name, mine in sender.names.items() if mine.flags & PRIMARY)
        for key in keys:
            index = self._messages.get(key)
            if index is not None:
                yield from index.find(generation, bits)

    @staticmethod
    def _is_for(entry: Entry, sender: Connection, dst_id: int) -> bool:
        message = entry.message
        return entry.is_settled or (message is not None and message.comes_from(sender, dst_id))
