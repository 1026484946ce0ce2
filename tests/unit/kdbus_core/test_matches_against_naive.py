"""Matches come to what a plain restatement of the rules comes to.

The judge below looks at one rule after the other, without merging or filing anything. Small vocabularies make
rules and messages meet often; the receivers must be right before and after some of the entries have gone, and
in the end nothing may be left.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbus_core.abi import DST_BROADCAST, DST_NAME, MATCH_ANY, ItemType
from kdbus_core.connection import Connection
from kdbus_core.matches import (
    BloomMask,
    DstIdMatch,
    Filter,
    IdMatch,
    IdNotice,
    Matches,
    MatchRule,
    NameMatch,
    NameNotice,
)
from kdbus_core.names import QUEUE
from kdbus_core.notifications import IdAdd, IdRemove, NameChange

NAMES = ["org.example.A", "org.example.B"]
# Four connections in each example; ids follow from their order.
IDS = [2, 3, 4, 5]
Told = NameChange | IdAdd | IdRemove


@dataclass(frozen=True)
class Message:
    sender: Connection
    filter: Filter
    dst_id: int


@dataclass(frozen=True)
class Installed:
    """An entry of the connection with this index; `removed` ones go before the second half of the test."""

    owner: int
    cookie: int
    rules: tuple[MatchRule, ...]
    removed: bool


def contains(filter: bytes, mask: bytes) -> bool:
    return all(have & want == want for have, want in zip(filter, mask, strict=True))


def passes_message(rule: MatchRule, message: Message) -> bool:
    match rule:
        case BloomMask(generations):
            generation = min(message.filter.generation, len(generations) - 1)
            return contains(message.filter.bits, generations[generation])
        case NameMatch(name):
            entry = message.sender.endpoint.bus.names.entry(name)
            return entry is not None and entry.queue[0].connection is message.sender
        case IdMatch(id):
            return id in (message.sender.id, MATCH_ANY)
        case DstIdMatch(id):
            return id in (message.dst_id, MATCH_ANY)
        case _:
            return False


def passes_notification(rule: MatchRule, told: Told) -> bool:
    match rule, told:
        case IdNotice(ItemType.ID_ADD, id), IdAdd(connection):
            return id in (connection.id, MATCH_ANY)
        case IdNotice(ItemType.ID_REMOVE, id), IdRemove(connection):
            return id in (connection.id, MATCH_ANY)
        case NameNotice(type, old_id, new_id, name), NameChange():
            kind = ItemType.NAME_CHANGE
            if told.old is None:
                kind = ItemType.NAME_ADD
            if told.new is None:
                kind = ItemType.NAME_REMOVE
            old = told.old.id if told.old else 0
            new = told.new.id if told.new else 0
            return (
                type == kind
                and old_id in (old, MATCH_ANY)
                and new_id in (new, MATCH_ANY)
                and name in (None, told.name)
            )
        case _:
            return False


# Two bytes with few bits, so that a filter often contains a mask.
bytes_of_bits = st.builds(
    lambda one, other: bytes([one, other]),
    st.sampled_from([0, 0, 1, 2, 3, 128]),
    st.sampled_from([0, 4, 255]),
)
ids = st.sampled_from([MATCH_ANY, MATCH_ANY, 0, *IDS])
names = st.sampled_from(NAMES)
blooms = st.builds(BloomMask, st.lists(bytes_of_bits, min_size=1, max_size=3).map(tuple))
message_rules = st.one_of(
    blooms, st.builds(NameMatch, names), st.builds(IdMatch, ids), st.builds(DstIdMatch, ids)
)
name_notices = st.builds(
    NameNotice,
    st.sampled_from([ItemType.NAME_ADD, ItemType.NAME_REMOVE, ItemType.NAME_CHANGE]),
    ids,
    ids,
    st.one_of(st.none(), names),
)
id_notices = st.builds(IdNotice, st.sampled_from([ItemType.ID_ADD, ItemType.ID_REMOVE]), ids)
rule_sets = st.one_of(
    st.lists(message_rules, max_size=4),
    st.lists(blooms, min_size=1, max_size=1),
    st.lists(name_notices, max_size=2),
    st.lists(id_notices, max_size=2),
    st.lists(st.one_of(message_rules, name_notices, id_notices), max_size=3),
).map(tuple)
entries = st.lists(
    st.builds(Installed, st.integers(0, 3), st.integers(0, 5), rule_sets, st.booleans()), max_size=25
)
filters = st.builds(
    Filter,
    st.sampled_from([0, 1, 2, 3, 2**64 - 1]),
    st.builds(lambda *both: bytes(both), *[st.sampled_from([0, 1, 3, 7, 131, 255])] * 2),
)
# For each name who owns it, and who waits for it.
ownerships = st.fixed_dictionaries({name: st.lists(st.integers(0, 3), unique=True) for name in NAMES})
# Of a change of name the old owner and the new, not both nobody.
changes = st.tuples(st.sampled_from([None, 0, 1]), st.sampled_from([None, 1, 2])).filter(
    lambda pair: pair != (None, None)
)


@settings(max_examples=300, deadline=None)
@given(
    installed=entries,
    messages=st.lists(
        st.tuples(st.integers(0, 3), filters, st.sampled_from([DST_BROADCAST, DST_NAME, *IDS])), max_size=4
    ),
    ownership=ownerships,
    change=changes,
    name=names,
    is_many=st.booleans(),
)
def test_receivers_are_those_whose_rules_pass(
    installed: list[Installed],
    messages: list[tuple[int, Filter, int]],
    ownership: dict[str, list[int]],
    change: tuple[int | None, int | None],
    name: str,
    is_many: bool,
) -> None:
    world = World()
    connections = world.connect_many(4)
    assert [connection.id for connection in connections] == IDS
    matches = Matches()
    for owned, queue in ownership.items():
        for index in queue:
            world.bus.name_acquire(connections[index], owned, QUEUE)
    if is_many:
        # More entries than are looked at one by one, none of which ever passes.
        for connection in connections:
            for _ in range(33):
                matches.add(connection, 99, [IdMatch(77)])
    for entry in installed:
        matches.add(connections[entry.owner], entry.cookie, entry.rules)

    old, new = (None if index is None else connections[index] for index in change)
    told: list[Told] = [NameChange(name, old, 0, new, 0), IdAdd(connections[0]), IdRemove(connections[1])]

    def check(present: list[Installed]) -> None:
        for index, filter, dst_id in messages:
            message = Message(connections[index], filter, dst_id)
            passing = {
                entry.owner for entry in present if all(passes_message(rule, message) for rule in entry.rules)
            }
            expected = [connection for i, connection in enumerate(connections) if i in passing]
            assert matches.recipients(message.sender, filter, dst_id) == expected
            for connection in connections:
                wanted = matches.wants(connection, message.sender, filter, dst_id)
                assert wanted == (connection in expected)
        for notification in told:
            passing = {
                entry.owner
                for entry in present
                if all(passes_notification(rule, notification) for rule in entry.rules)
            }
            assert matches.notified(notification) == [connections[i] for i in sorted(passing)]

    check(installed)
    gone = {(entry.owner, entry.cookie) for entry in installed if entry.removed}
    for owner, cookie in gone:
        count = sum(1 for entry in installed if (entry.owner, entry.cookie) == (owner, cookie))
        assert matches.remove(connections[owner], cookie) == count
    check([entry for entry in installed if (entry.owner, entry.cookie) not in gone])
    for connection in connections:
        matches.disconnect(connection)
        assert connection.match_count == 0
        assert not connection.matches
    assert not matches
    assert matches.index_size == 0
