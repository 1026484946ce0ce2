"""The name registry: what an ACQUIRE leads to, who inherits a name, and what is reported of it."""

from __future__ import annotations

from errno import E2BIG, EEXIST, EINVAL

import pytest
from broker_world import World, refused

from kdbus_core.connection import Limits
from kdbus_core.metadata import Credentials
from kdbus_core.names import (
    ACQUIRED,
    ACTIVATOR,
    ALLOW_REPLACEMENT,
    IN_QUEUE,
    PRIMARY,
    QUEUE,
    REPLACE_EXISTING,
    is_valid_name,
)
from kdbus_core.notifications import NameChange

NAME = "org.example.Name"
ALL = ALLOW_REPLACEMENT | QUEUE | REPLACE_EXISTING


# ACQUIRE of a name that nobody owns


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        (0, PRIMARY),
        (REPLACE_EXISTING, PRIMARY),
        (ALLOW_REPLACEMENT, ALLOW_REPLACEMENT | PRIMARY),
        (QUEUE, QUEUE | PRIMARY),
        (ALL, ALLOW_REPLACEMENT | QUEUE | PRIMARY),
    ],
)
def test_a_free_name_goes_to_who_asks_and_only_two_flags_are_kept(asked: int, stored: int) -> None:
    world = World()
    (me,) = world.connect_many(1)
    assert world.bus.name_acquire(me, NAME, asked) == stored | ACQUIRED
    assert world.queue(NAME) == [(me, stored)]
    assert world.take_news() == [NameChange(NAME, None, 0, me, stored)]


@pytest.mark.parametrize("asked", [0, REPLACE_EXISTING, QUEUE, ALL])
def test_a_name_that_is_only_offered_is_free(asked: int) -> None:
    world = World()
    activator = world.connect_activator(NAME)
    (me,) = world.connect_many(1)
    stored = asked & ~REPLACE_EXISTING | PRIMARY
    assert world.bus.name_acquire(me, NAME, asked) == stored | ACQUIRED
    assert world.take_news() == [NameChange(NAME, activator, ACTIVATOR | PRIMARY, me, stored)]
    assert activator.names[NAME].flags == ACTIVATOR | IN_QUEUE
    assert world.queue(NAME) == [(me, stored)]


# ACQUIRE of one's own name


@pytest.mark.parametrize("before", [0, QUEUE, ALLOW_REPLACEMENT])
@pytest.mark.parametrize("after", [0, REPLACE_EXISTING, ALLOW_REPLACEMENT, QUEUE])
def test_the_owner_who_asks_again_changes_its_flags_and_nothing_else(before: int, after: int) -> None:
    world = World()
    (me,) = world.connect_many(1)
    world.bus.name_acquire(me, NAME, before)
    world.news.clear()
    stored = after & ~REPLACE_EXISTING | PRIMARY
    assert world.bus.name_acquire(me, NAME, after) == stored
    assert world.queue(NAME) == [(me, stored)]
    assert not world.news


# ACQUIRE by replacing


def test_replacing_an_owner_that_does_not_queue_removes_it() -> None:
    world = World()
    old, new = world.connect_many(2)
    world.bus.name_acquire(old, NAME, ALLOW_REPLACEMENT)
    world.news.clear()
    assert world.bus.name_acquire(new, NAME, REPLACE_EXISTING) == PRIMARY | ACQUIRED
    assert world.queue(NAME) == [(new, PRIMARY)]
    assert NAME not in old.names
    assert world.take_news() == [NameChange(NAME, old, ALLOW_REPLACEMENT | PRIMARY, new, PRIMARY)]


def test_replacing_an_owner_that_queues_puts_it_second() -> None:
    world = World()
    old, waiting, new = world.connect_many(3)
    world.bus.name_acquire(old, NAME, ALLOW_REPLACEMENT | QUEUE)
    world.bus.name_acquire(waiting, NAME, QUEUE)
    world.news.clear()
    world.bus.name_acquire(new, NAME, REPLACE_EXISTING | QUEUE)
    assert world.queue(NAME) == [
        (new, QUEUE | PRIMARY),
        (old, ALLOW_REPLACEMENT | QUEUE | IN_QUEUE),
        (waiting, QUEUE | IN_QUEUE),
    ]
    change = NameChange(NAME, old, ALLOW_REPLACEMENT | QUEUE | PRIMARY, new, QUEUE | PRIMARY)
    assert world.take_news() == [change]


@pytest.mark.parametrize("old_queues", [True, False])
def test_who_waits_may_replace_and_jumps_to_the_head(old_queues: bool) -> None:
    world = World()
    old, first, second = world.connect_many(3)
    world.bus.name_acquire(old, NAME, ALLOW_REPLACEMENT | (QUEUE if old_queues else 0))
    world.bus.name_acquire(first, NAME, QUEUE)
    world.bus.name_acquire(second, NAME, QUEUE)
    world.news.clear()
    assert world.bus.name_acquire(second, NAME, REPLACE_EXISTING) == PRIMARY | ACQUIRED
    behind = [(old, ALLOW_REPLACEMENT | QUEUE | IN_QUEUE)] if old_queues else []
    assert world.queue(NAME) == [(second, PRIMARY), *behind, (first, QUEUE | IN_QUEUE)]
    assert (NAME in old.names) is old_queues
    assert len(world.take_news()) == 1


def test_only_the_flags_the_owner_has_now_say_whether_it_can_be_replaced() -> None:
    world = World()
    me, other = world.connect_many(2)
    world.bus.name_acquire(me, NAME, ALLOW_REPLACEMENT)
    world.bus.name_acquire(me, NAME, 0)
    with refused(EEXIST):
        world.bus.name_acquire(other, NAME, REPLACE_EXISTING)


def test_what_was_asked_for_while_waiting_counts_once_the_name_is_owned() -> None:
    world = World()
    first, second, third = world.connect_many(3)
    world.bus.name_acquire(first, NAME, 0)
    world.bus.name_acquire(second, NAME, QUEUE | ALLOW_REPLACEMENT)
    with refused(EEXIST):
        world.bus.name_acquire(third, NAME, REPLACE_EXISTING)
    world.bus.name_release(first, NAME)
    assert world.bus.name_acquire(third, NAME, REPLACE_EXISTING) & PRIMARY
    assert [owner for owner, _ in world.queue(NAME)] == [third, second]


def test_the_wish_to_replace_is_forgotten_after_the_call() -> None:
    world = World()
    owner, waiting = world.connect_many(2)
    world.bus.name_acquire(owner, NAME, 0)
    world.bus.name_acquire(waiting, NAME, QUEUE | REPLACE_EXISTING)
    world.bus.name_acquire(owner, NAME, ALLOW_REPLACEMENT)
    assert world.bus.names.owner(NAME) is owner


def test_a_replaced_owner_comes_back_when_the_new_one_leaves() -> None:
    world = World()
    old, new = world.connect_many(2)
    world.bus.name_acquire(old, NAME, ALLOW_REPLACEMENT | QUEUE)
    world.bus.name_acquire(new, NAME, REPLACE_EXISTING)
    world.news.clear()
    world.bus.name_release(new, NAME)
    flags = ALLOW_REPLACEMENT | QUEUE | PRIMARY
    assert world.take_news() == [NameChange(NAME, new, PRIMARY, old, flags)]


# ACQUIRE of a name that stays with another


@pytest.mark.parametrize(
    ("owner_flags", "asked"),
    [
        (0, QUEUE),
        (0, QUEUE | REPLACE_EXISTING),
        (ALLOW_REPLACEMENT, QUEUE),
        (0, QUEUE | ALLOW_REPLACEMENT),
        (QUEUE, QUEUE | REPLACE_EXISTING | ALLOW_REPLACEMENT),
    ],
)
def test_who_would_queue_and_cannot_replace_is_appended_in_silence(owner_flags: int, asked: int) -> None:
    world = World()
    owner, earlier, me = world.connect_many(3)
    world.bus.name_acquire(owner, NAME, owner_flags)
    world.bus.name_acquire(earlier, NAME, QUEUE)
    world.news.clear()
    stored = asked & ~REPLACE_EXISTING | IN_QUEUE
    assert world.bus.name_acquire(me, NAME, asked) == stored | ACQUIRED
    assert world.queue(NAME)[1:] == [(earlier, QUEUE | IN_QUEUE), (me, stored)]
    assert not world.news


def test_who_waits_and_asks_again_keeps_its_place_and_changes_its_flags() -> None:
    world = World()
    owner, me, later = world.connect_many(3)
    world.bus.name_acquire(owner, NAME, 0)
    world.bus.name_acquire(me, NAME, QUEUE)
    world.bus.name_acquire(later, NAME, QUEUE)
    world.news.clear()
    stored = QUEUE | ALLOW_REPLACEMENT | IN_QUEUE
    assert world.bus.name_acquire(me, NAME, QUEUE | ALLOW_REPLACEMENT) == stored
    assert world.queue(NAME)[1:] == [(me, stored), (later, QUEUE | IN_QUEUE)]
    assert not world.news


@pytest.mark.parametrize("asked", [0, ALLOW_REPLACEMENT, REPLACE_EXISTING])
def test_who_waits_and_would_no_longer_queue_leaves_in_silence(asked: int) -> None:
    world = World()
    owner, me = world.connect_many(2)
    world.bus.name_acquire(owner, NAME, 0)
    world.bus.name_acquire(me, NAME, QUEUE)
    world.news.clear()
    assert world.bus.name_acquire(me, NAME, asked) == asked & ALLOW_REPLACEMENT
    assert world.queue(NAME) == [(owner, PRIMARY)]
    assert NAME not in me.names
    assert not world.news


@pytest.mark.parametrize(
    ("owner_flags", "asked"),
    [
        (0, 0),
        (0, REPLACE_EXISTING),
        (ALLOW_REPLACEMENT, 0),
        (ALLOW_REPLACEMENT | QUEUE, ALLOW_REPLACEMENT),
        (QUEUE, REPLACE_EXISTING | ALLOW_REPLACEMENT),
    ],
)
def test_who_neither_queues_nor_can_replace_is_refused(owner_flags: int, asked: int) -> None:
    world = World()
    owner, me = world.connect_many(2)
    world.bus.name_acquire(owner, NAME, owner_flags)
    world.news.clear()
    with refused(EEXIST):
        world.bus.name_acquire(me, NAME, asked)
    assert world.queue(NAME) == [(owner, owner_flags | PRIMARY)]
    assert not me.names
    assert not world.news


# Where dbus-daemon lets wait who wanted to replace


@pytest.mark.parametrize("owner_flags", [0, QUEUE])
def test_who_may_not_replace_is_next_in_line_where_replacers_come_first(owner_flags: int) -> None:
    world = World()
    world.bus.names.replacers_first = True
    owner, earlier, me = world.connect_many(3)
    world.bus.name_acquire(owner, NAME, owner_flags)
    world.bus.name_acquire(earlier, NAME, QUEUE)
    world.news.clear()
    flags = QUEUE | IN_QUEUE
    assert world.bus.name_acquire(me, NAME, QUEUE | REPLACE_EXISTING) == flags | ACQUIRED
    assert world.queue(NAME) == [(owner, owner_flags | PRIMARY), (me, flags), (earlier, flags)]
    assert not world.news


def test_who_waits_and_may_not_replace_moves_up_where_replacers_come_first() -> None:
    world = World()
    world.bus.names.replacers_first = True
    owner, first, second, me = world.connect_many(4)
    for connection in (owner, first, second, me):
        world.bus.name_acquire(connection, NAME, QUEUE)
    asked = QUEUE | REPLACE_EXISTING | ALLOW_REPLACEMENT
    stored = QUEUE | ALLOW_REPLACEMENT | IN_QUEUE
    assert world.bus.name_acquire(me, NAME, asked) == stored
    assert [connection for connection, _ in world.queue(NAME)] == [owner, me, first, second]
    assert me.names[NAME].flags == stored


def test_the_first_who_waits_keeps_its_place_where_replacers_come_first() -> None:
    world = World()
    world.bus.names.replacers_first = True
    owner, me = world.connect_many(2)
    for connection in (owner, me):
        world.bus.name_acquire(connection, NAME, QUEUE)
    world.bus.name_acquire(me, NAME, QUEUE | REPLACE_EXISTING)
    assert [connection for connection, _ in world.queue(NAME)] == [owner, me]


def test_who_only_queues_is_appended_where_replacers_come_first() -> None:
    world = World()
    world.bus.names.replacers_first = True
    owner, earlier, me = world.connect_many(3)
    for connection in (owner, earlier, me):
        world.bus.name_acquire(connection, NAME, QUEUE)
    assert [connection for connection, _ in world.queue(NAME)] == [owner, earlier, me]


@pytest.mark.parametrize("wanted", [QUEUE, QUEUE | REPLACE_EXISTING])
def test_who_speaks_for_somebody_waits_as_with_dbus_daemon_on_every_bus(wanted: int) -> None:
    world = World()
    owner, earlier = world.connect_many(2)
    client = world.connect(faked=Credentials(uid=4711))
    for connection in (owner, earlier):
        world.bus.name_acquire(connection, NAME, QUEUE)
    world.bus.name_acquire(client, NAME, wanted)
    expected = [owner, client, earlier] if wanted & REPLACE_EXISTING else [owner, earlier, client]
    assert [connection for connection, _ in world.queue(NAME)] == expected


# Refusals of ACQUIRE


@pytest.mark.parametrize("flags", [IN_QUEUE, ACTIVATOR, PRIMARY, ACQUIRED, 1 << 7, 1 << 63, QUEUE | PRIMARY])
def test_flags_that_cannot_be_asked_for_are_refused(flags: int) -> None:
    world = World()
    (me,) = world.connect_many(1)
    with refused(EINVAL):
        world.bus.name_acquire(me, NAME, flags)
    assert len(world.bus.names) == 0


def test_an_invalid_name_is_refused() -> None:
    world = World()
    (me,) = world.connect_many(1)
    with refused(EINVAL):
        world.bus.name_acquire(me, ":1.2", 0)
    assert len(world.bus.names) == 0


def test_owned_names_and_places_in_queues_count_against_the_limit() -> None:
    world = World()
    other = world.connect()
    me = world.connect(limits=Limits(names=2))
    world.bus.name_acquire(other, "org.example.Taken", 0)
    world.bus.name_acquire(me, "org.example.Mine", 0)
    world.bus.name_acquire(me, "org.example.Taken", QUEUE)
    world.news.clear()
    with refused(E2BIG):
        world.bus.name_acquire(me, "org.example.Third", 0)
    assert world.bus.names.entry("org.example.Third") is None
    assert not world.news


def test_the_limit_lets_through_who_already_stands_at_the_name() -> None:
    world = World()
    me = world.connect(limits=Limits(names=1))
    world.bus.name_acquire(me, NAME, 0)
    assert world.bus.name_acquire(me, NAME, QUEUE) == QUEUE | PRIMARY


def test_a_released_name_makes_room_for_another() -> None:
    world = World()
    me = world.connect(limits=Limits(names=1))
    world.bus.name_acquire(me, NAME, 0)
    world.bus.name_release(me, NAME)
    assert world.bus.name_acquire(me, "org.example.Other", 0) & PRIMARY


def test_a_connection_has_256_names_unless_told_otherwise() -> None:
    world = World()
    (me,) = world.connect_many(1)
    for number in range(256):
        world.bus.name_acquire(me, f"org.example.N{number}", 0)
    with refused(E2BIG):
        world.bus.name_acquire(me, NAME, 0)


# Entries


def test_a_name_gets_a_new_number_each_time_it_comes_into_being() -> None:
    world = World()
    (me,) = world.connect_many(1)
    numbers = []
    for _ in range(2):
        world.bus.name_acquire(me, NAME, 0)
        entry = world.bus.names.entry(NAME)
        assert entry is not None
        numbers.append(entry.name_id)
        world.bus.name_release(me, NAME)
    assert numbers[0] < numbers[1]


def test_a_name_that_changes_hands_keeps_its_number() -> None:
    world = World()
    first, second = world.connect_many(2)
    world.bus.name_acquire(first, NAME, 0)
    world.bus.name_acquire(second, NAME, QUEUE)
    before = world.bus.names.entry(NAME)
    world.bus.name_release(first, NAME)
    assert world.bus.names.entry(NAME) is before


def test_a_name_that_nobody_has_has_no_owner_and_no_entry() -> None:
    world = World()
    assert world.bus.names.owner(NAME) is None
    assert world.bus.names.entry(NAME) is None


def test_entries_are_listed_in_the_order_in_which_they_came_into_being() -> None:
    world = World()
    (me,) = world.connect_many(1)
    world.bus.name_acquire(me, "org.example.B", 0)
    world.connect_activator("org.example.A")
    world.bus.name_acquire(me, "org.example.A", 0)
    world.bus.name_acquire(me, "org.example.C", 0)
    listed = [entry.name for entry in world.bus.names.entries()]
    assert listed == ["org.example.B", "org.example.A", "org.example.C"]
    assert len(world.bus.names) == 3


def test_the_flags_have_the_published_numbers() -> None:
    world = World()
    first, second, third = world.connect_many(3)
    world.bus.name_acquire(first, "org.example.Plain", 0)
    assert world.queue("org.example.Plain")[0][1] == 32
    world.bus.name_acquire(first, NAME, ALLOW_REPLACEMENT)
    assert world.queue(NAME)[0][1] == 34
    world.bus.name_acquire(second, NAME, QUEUE)
    assert world.queue(NAME)[1][1] == 12
    world.bus.name_release(first, NAME)
    assert world.queue(NAME) == [(second, 36)]
    with refused(EEXIST):
        world.bus.name_acquire(third, NAME, 0)


# Spelling


@pytest.mark.parametrize(
    "name",
    ["a.b", "org.example.Name", "_._", "-a.-b", "a1.b2", "a-b.c_d", "A.Z", "a." + "b" * 253],
)
def test_these_are_well_known_names(name: str) -> None:
    assert is_valid_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a",
        ".",
        ".a",
        "a.",
        "a..b",
        "a.1b",
        "1a.b",
        ":1.2",
        "a.b:c",
        "a.b c",
        "a.b\0",
        "a.b\n",
        "a.*",
        "a/b.c",
        "a.\u00e4",
        "a.\u0661",
        "a.b\u00b2",
        "a." + "b" * 254,
    ],
)
def test_these_are_not_well_known_names(name: str) -> None:
    assert not is_valid_name(name)
