"""Matches: which rules pass for which message and notification, and that nothing is kept of what has gone."""

from __future__ import annotations

from collections.abc import Iterable
from errno import EBADSLT

import pytest
from broker_world import World, refused

from kdbus_core.abi import DST_BROADCAST, DST_NAME, MATCH_ANY, ItemType
from kdbus_core.bloom_index import MANY
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

NAME = "org.example.A"
OTHER = "org.example.B"
ADD, REMOVE, CHANGE = ItemType.NAME_ADD, ItemType.NAME_REMOVE, ItemType.NAME_CHANGE
ANY = MATCH_ANY
SIZE = 64


def bits(values: dict[int, int] | None = None) -> bytes:
    """A mask or filter with these bytes set, the others 0."""
    data = bytearray(SIZE)
    for index, value in (values or {}).items():
        data[index] = value
    return bytes(data)


EMPTY = Filter(0, bits())


class Scene:
    """A listener that installs entries, a sender, somebody else, and the matches between them."""

    def __init__(self) -> None:
        self.world = World()
        self.matches = Matches()
        self.listener, self.sender, self.other = self.world.connect_many(3)
        self._cookie = 0

    def listen(self, *rules: MatchRule, connection: Connection | None = None) -> int:
        """Install an entry under a new cookie."""
        self._cookie += 1
        self.matches.add(connection or self.listener, self._cookie, rules)
        return self._cookie

    def hears(self, filter: Filter = EMPTY, dst_id: int = DST_BROADCAST) -> bool:
        """Whether the listener gets this signal; both ways to ask must agree."""
        wanted = self.matches.wants(self.listener, self.sender, filter, dst_id)
        assert (self.listener in self.matches.recipients(self.sender, filter, dst_id)) == wanted
        return wanted

    def is_told(self, notification: NameChange | IdAdd | IdRemove) -> bool:
        """Whether the listener, and nobody else, gets this notification."""
        told = self.matches.notified(notification)
        assert told in ([], [self.listener])
        return bool(told)

    def change(
        self, old: Connection | None = None, new: Connection | None = None, name: str = NAME
    ) -> NameChange:
        return NameChange(name, old, 0, new, 0)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def notifications(scene: Scene) -> Iterable[NameChange | IdAdd | IdRemove]:
    """One of each kind."""
    return (
        scene.change(None, scene.sender),
        scene.change(scene.sender, None),
        scene.change(scene.sender, scene.other),
        IdAdd(scene.sender),
        IdRemove(scene.sender),
    )


class TestBloomMasks:
    def test_a_filter_passes_a_mask_that_it_contains(self, scene: Scene) -> None:
        scene.listen(BloomMask((bits({0: 0x01}),)))
        assert scene.hears(Filter(0, bits({0: 0x03})))

    def test_a_filter_does_not_pass_a_mask_that_has_more(self, scene: Scene) -> None:
        scene.listen(BloomMask((bits({0: 0x03}),)))
        assert not scene.hears(Filter(0, bits({0: 0x01})))

    def test_a_mask_without_bits_is_in_every_filter(self, scene: Scene) -> None:
        scene.listen(BloomMask((bits(),)))
        assert scene.hears(EMPTY)
        assert scene.hears(Filter(7, b"\xff" * SIZE))

    def test_a_full_mask_is_in_a_full_filter_alone(self, scene: Scene) -> None:
        scene.listen(BloomMask((b"\xff" * SIZE,)))
        assert scene.hears(Filter(0, b"\xff" * SIZE))
        assert not scene.hears(Filter(0, b"\xff" * (SIZE - 1) + b"\x7f"))

    @pytest.mark.parametrize(
        ("generation", "values", "passes"),
        [
            (0, {}, False),
            (0, {0: 0x55, 63: 0x80}, True),
            (0, {0: 0xFF, 8: 0xFF, 63: 0xFF}, True),
            (1, {0: 0xFF, 8: 0xFF, 63: 0xFF}, False),
            (1, {0: 0xFF, 8: 0xFF, 63: 0xFF, 1: 0xAA, 9: 0x02}, True),
            (1, {1: 0xAA, 9: 0x02}, True),
            (2, {1: 0xAA, 9: 0x02}, True),
            (2**64 - 1, {0: 0x55, 63: 0x80}, False),
            (2**64 - 1, {1: 0xAA, 9: 0x02}, True),
        ],
    )
    def test_the_mask_of_the_filters_generation_counts_or_the_last(
        self, scene: Scene, generation: int, values: dict[int, int], *, passes: bool
    ) -> None:
        scene.listen(BloomMask((bits({0: 0x55, 63: 0x80}), bits({1: 0xAA, 9: 0x02}))))
        assert scene.hears(Filter(generation, bits(values))) == passes

    def test_several_masks_must_all_be_in_the_filter(self, scene: Scene) -> None:
        scene.listen(BloomMask((bits({0: 1}),)), BloomMask((bits({1: 1}), bits({2: 1}))))
        assert scene.hears(Filter(0, bits({0: 1, 1: 1})))
        assert not scene.hears(Filter(0, bits({1: 1})))
        assert not scene.hears(Filter(1, bits({0: 1, 1: 1})))
        assert scene.hears(Filter(1, bits({0: 1, 2: 1})))

    def test_generations_that_repeat_the_one_before_change_nothing(self, scene: Scene) -> None:
        scene.listen(BloomMask((bits({0: 1}), bits({1: 1}), bits({1: 1}), bits({1: 1}))))
        for generation in (1, 2, 3, 4):
            assert scene.hears(Filter(generation, bits({1: 1})))
            assert not scene.hears(Filter(generation, bits({0: 1})))

    def test_generations_that_repeat_the_one_before_take_no_room(self, scene: Scene) -> None:
        once = scene.listen(BloomMask((bits({0: 1}),)))
        size = scene.matches.index_size
        scene.matches.remove(scene.listener, once)
        scene.listen(BloomMask((bits({0: 1}),) * 5))
        assert scene.matches.index_size == size

    @pytest.mark.parametrize("count", [MANY, MANY + 1, SIZE])
    def test_it_does_not_matter_how_many_generations_a_mask_has(self, scene: Scene, count: int) -> None:
        cookie = scene.listen(BloomMask(tuple(bits({generation: 1}) for generation in range(count))))
        for generation in (0, 1, count - 2, count - 1, count, 2**64 - 1):
            right = min(generation, count - 1)
            assert scene.hears(Filter(generation, bits({right: 3})))
            assert not scene.hears(Filter(generation, bits(dict.fromkeys(range(right), 1))))
        scene.matches.remove(scene.listener, cookie)
        assert not scene.hears(Filter(0, b"\xff" * SIZE))
        assert scene.matches.index_size == 0

    def test_masks_of_many_generations_take_no_room_for_each(self, scene: Scene) -> None:
        for first in range(10):
            generations = (bits({(first + n) % SIZE: 1 + n % 255}) for n in range(500))
            scene.listen(BloomMask(tuple(generations)))
        assert scene.matches.index_size == 1
        (index,) = scene.matches._messages.values()
        assert len(index._long) == 10

    def test_the_bytes_of_all_masks_are_counted_while_they_are_there(self, scene: Scene) -> None:
        cookies = [
            scene.listen(BloomMask((bits(),) * 3), BloomMask((bits({1: 1}),)), IdMatch(ANY)),
            scene.listen(BloomMask((bits(),)), IdNotice(ItemType.ID_ADD, ANY)),  # passes for nothing
            scene.listen(IdMatch(ANY)),
        ]
        for cookie, left in zip(cookies, (SIZE, 0, 0), strict=True):
            assert scene.listener.mask_bytes > left or not left
            scene.matches.remove(scene.listener, cookie)
            assert scene.listener.mask_bytes == left


class TestSenders:
    def test_an_id_is_the_senders(self, scene: Scene) -> None:
        scene.listen(IdMatch(scene.sender.id))
        assert scene.hears()

    def test_another_id_is_not(self, scene: Scene) -> None:
        scene.listen(IdMatch(scene.other.id))
        assert not scene.hears()

    def test_any_id_is(self, scene: Scene) -> None:
        scene.listen(IdMatch(ANY))
        assert scene.hears()

    def test_the_id_of_nobody_is_no_wildcard(self, scene: Scene) -> None:
        scene.listen(IdMatch(0))
        assert not scene.hears()

    def test_a_name_is_the_owners(self, scene: Scene) -> None:
        scene.world.bus.name_acquire(scene.sender, NAME, 0)
        scene.listen(NameMatch(NAME))
        assert scene.hears()

    def test_a_name_is_not_theirs_who_queue_for_it(self, scene: Scene) -> None:
        scene.world.bus.name_acquire(scene.other, NAME, 0)
        scene.world.bus.name_acquire(scene.sender, NAME, QUEUE)
        scene.listen(NameMatch(NAME))
        assert not scene.hears()
        scene.world.bus.name_release(scene.other, NAME)
        assert scene.hears()

    def test_a_name_is_no_longer_theirs_who_gave_it_back(self, scene: Scene) -> None:
        scene.world.bus.name_acquire(scene.sender, NAME, 0)
        scene.listen(NameMatch(NAME))
        scene.world.bus.name_release(scene.sender, NAME)
        assert not scene.hears()

    def test_several_names_must_all_be_owned(self, scene: Scene) -> None:
        scene.world.bus.name_acquire(scene.sender, NAME, 0)
        scene.listen(NameMatch(NAME), NameMatch(OTHER), NameMatch(NAME))
        assert not scene.hears()
        scene.world.bus.name_acquire(scene.sender, OTHER, 0)
        assert scene.hears()


class TestDestinations:
    @pytest.mark.parametrize(
        ("wanted", "dst_id", "passes"),
        [
            (ANY, DST_BROADCAST, True),
            (ANY, 7, True),
            (ANY, DST_NAME, True),
            (7, 7, True),
            (7, 8, False),
            (7, DST_BROADCAST, False),
            (7, DST_NAME, False),
            (0, DST_NAME, True),
            (0, DST_BROADCAST, False),
        ],
    )
    def test_the_destination_is_the_headers(
        self, scene: Scene, wanted: int, dst_id: int, *, passes: bool
    ) -> None:
        scene.listen(DstIdMatch(wanted))
        assert scene.hears(EMPTY, dst_id) == passes


class TestEntries:
    def test_without_rules_an_entry_passes_for_everything(self, scene: Scene) -> None:
        scene.listen()
        assert scene.hears()
        assert scene.hears(Filter(3, b"\xff" * SIZE), scene.other.id)
        assert all(scene.is_told(notification) for notification in notifications(scene))

    def test_all_rules_of_an_entry_must_pass(self, scene: Scene) -> None:
        scene.world.bus.name_acquire(scene.sender, NAME, 0)
        rules = (IdMatch(scene.sender.id), NameMatch(NAME), DstIdMatch(9), BloomMask((bits({5: 1}),)))
        scene.listen(*rules)
        passing = Filter(0, bits({5: 1}))
        assert scene.hears(passing, 9)
        assert not scene.hears(passing, 8)
        assert not scene.hears(EMPTY, 9)
        scene.world.bus.name_release(scene.sender, NAME)
        assert not scene.hears(passing, 9)

    def test_a_name_and_a_destination_must_both_be_right(self, scene: Scene) -> None:
        scene.world.bus.name_acquire(scene.sender, NAME, 0)
        scene.listen(NameMatch(NAME), DstIdMatch(9))
        assert scene.hears(EMPTY, 9)
        assert not scene.hears(EMPTY, 8)

    @pytest.mark.parametrize(
        "rules",
        [
            (IdMatch(2), IdMatch(3)),
            (DstIdMatch(2), DstIdMatch(3)),
            (IdMatch(ANY), IdNotice(ItemType.ID_ADD, ANY)),
            (IdNotice(ItemType.ID_ADD, ANY), IdMatch(ANY)),
            (BloomMask((bits(),)), NameNotice(CHANGE, ANY, ANY, None)),
            (NameNotice(ADD, ANY, ANY, None), NameNotice(CHANGE, ANY, ANY, None)),
            (IdNotice(ItemType.ID_ADD, ANY), IdNotice(ItemType.ID_REMOVE, ANY)),
            (NameNotice(ADD, ANY, ANY, NAME), NameNotice(ADD, ANY, ANY, OTHER)),
            (NameNotice(ADD, 1, ANY, None), NameNotice(ADD, 2, ANY, None)),
            (NameNotice(ADD, ANY, 1, None), NameNotice(ADD, ANY, 2, None)),
            (IdNotice(ItemType.ID_ADD, 2), IdNotice(ItemType.ID_ADD, 3)),
        ],
    )
    def test_rules_that_contradict_each_other_pass_for_nothing_and_are_filed_nowhere(
        self, scene: Scene, rules: tuple[MatchRule, ...]
    ) -> None:
        cookie = scene.listen(*rules)
        assert not scene.hears()
        assert not any(scene.is_told(notification) for notification in notifications(scene))
        assert scene.matches.index_size == 0
        assert scene.matches
        assert scene.matches.remove(scene.listener, cookie) == 1
        assert not scene.matches

    def test_rules_that_say_the_same_twice_pass(self, scene: Scene) -> None:
        scene.listen(IdMatch(scene.sender.id), IdMatch(ANY), IdMatch(scene.sender.id))
        assert scene.hears()

    def test_one_passing_entry_is_enough(self, scene: Scene) -> None:
        scene.listen(IdMatch(scene.other.id))
        scene.listen(IdMatch(scene.sender.id))
        assert scene.hears()

    def test_a_message_rule_does_not_pass_for_notifications(self, scene: Scene) -> None:
        scene.listen(IdMatch(ANY))
        assert not any(scene.is_told(notification) for notification in notifications(scene))

    def test_a_notification_rule_does_not_pass_for_messages(self, scene: Scene) -> None:
        scene.listen(IdNotice(ItemType.ID_ADD, ANY))
        assert not scene.hears()


class TestRecipients:
    def test_they_come_once_each_by_ascending_id(self, scene: Scene) -> None:
        for connection in (scene.other, scene.listener, scene.sender):
            scene.listen(connection=connection)
            scene.listen(IdMatch(scene.sender.id), connection=connection)
            scene.listen(BloomMask((bits({1: 1}),)), connection=connection)
        found = scene.matches.recipients(scene.sender, Filter(0, bits({1: 3})), DST_BROADCAST)
        assert found == [scene.listener, scene.sender, scene.other]

    def test_nobody_has_asked(self, scene: Scene) -> None:
        assert scene.matches.recipients(scene.sender, EMPTY, DST_BROADCAST) == []
        assert scene.matches.notified(IdAdd(scene.sender)) == []

    def test_those_told_come_once_each_by_ascending_id(self, scene: Scene) -> None:
        for connection in (scene.other, scene.listener):
            scene.listen(connection=connection)
            scene.listen(IdNotice(ItemType.ID_ADD, ANY), connection=connection)
        assert scene.matches.notified(IdAdd(scene.sender)) == [scene.listener, scene.other]

    def test_what_others_want_is_not_what_one_wants(self, scene: Scene) -> None:
        scene.listen(connection=scene.other)
        assert not scene.hears()

    @pytest.mark.parametrize("count", [32, 33])
    def test_it_does_not_matter_how_many_entries_one_has(self, scene: Scene, count: int) -> None:
        scene.listen(connection=scene.other)
        for _ in range(count - 2):
            scene.listen(IdMatch(scene.other.id))
        scene.listen(IdNotice(ItemType.ID_ADD, ANY))
        last = scene.listen(IdMatch(scene.sender.id), DstIdMatch(9), BloomMask((bits({1: 1}),)))
        assert scene.listener.match_count == count
        assert scene.hears(Filter(0, bits({1: 1})), 9)
        assert not scene.hears(Filter(0, bits({1: 1})), 8)
        assert not scene.hears(EMPTY, 9)
        scene.matches.remove(scene.listener, last)
        assert not scene.hears(Filter(0, bits({1: 1})), 9)


class TestNotifications:
    @pytest.mark.parametrize("type", [ItemType.ID_ADD, ItemType.ID_REMOVE])
    def test_an_id_or_any_is_told_of_its_kind(self, scene: Scene, type: ItemType) -> None:
        for wanted in (ANY, scene.sender.id, scene.other.id, 0):
            cookie = scene.listen(IdNotice(type, wanted))
            passes = wanted in (ANY, scene.sender.id)
            assert scene.is_told(IdAdd(scene.sender)) == (passes and type == ItemType.ID_ADD)
            assert scene.is_told(IdRemove(scene.sender)) == (passes and type == ItemType.ID_REMOVE)
            scene.matches.remove(scene.listener, cookie)

    @pytest.mark.parametrize("type", [ADD, REMOVE, CHANGE])
    def test_a_name_rule_is_told_of_its_kind_alone(self, scene: Scene, type: ItemType) -> None:
        scene.listen(NameNotice(type, ANY, ANY, None))
        told = [scene.is_told(notification) for notification in notifications(scene)]
        assert told == [type == ADD, type == REMOVE, type == CHANGE, False, False]

    @pytest.mark.parametrize("name", [None, NAME, OTHER])
    def test_a_name_must_be_the_one_asked_for(self, scene: Scene, name: str | None) -> None:
        scene.listen(NameNotice(ADD, ANY, ANY, name))
        assert scene.is_told(scene.change(None, scene.sender)) == (name != OTHER)

    @pytest.mark.parametrize(
        ("old", "new", "passes"),
        [
            (ANY, ANY, True),
            ("sender", ANY, True),
            (ANY, "other", True),
            ("sender", "other", True),
            ("other", "sender", False),
            ("other", ANY, False),
            (ANY, "sender", False),
            (0, ANY, False),
            (ANY, 0, False),
        ],
    )
    def test_the_owners_must_be_those_asked_for(
        self, scene: Scene, old: int | str, new: int | str, *, passes: bool
    ) -> None:
        old_id, new_id = (getattr(scene, end).id if isinstance(end, str) else end for end in (old, new))
        scene.listen(NameNotice(CHANGE, old_id, new_id, None))
        assert scene.is_told(scene.change(scene.sender, scene.other)) == passes

    def test_nobody_is_id_0(self, scene: Scene) -> None:
        scene.listen(NameNotice(ADD, 0, scene.sender.id, NAME))
        assert scene.is_told(scene.change(None, scene.sender))
        assert not scene.is_told(scene.change(None, scene.other))
        scene.matches.disconnect(scene.listener)
        scene.listen(NameNotice(REMOVE, scene.sender.id, 0, NAME))
        assert scene.is_told(scene.change(scene.sender, None))

    @pytest.mark.parametrize("rules", [(), (IdNotice(ItemType.ID_ADD, ANY),)])
    def test_equal_entries_of_one_connection_are_one_place(
        self, scene: Scene, rules: tuple[MatchRule, ...]
    ) -> None:
        cookies = [scene.listen(*rules) for _ in range(100)]
        (wanting,) = scene.matches._notices.values()
        assert list(wanting) == [scene.listener]
        scene.listen(*rules, connection=scene.other)
        assert list(wanting) == [scene.listener, scene.other]
        scene.matches.disconnect(scene.other)
        for cookie in cookies:
            assert scene.is_told(IdAdd(scene.sender))
            scene.matches.remove(scene.listener, cookie)
        assert not scene.is_told(IdAdd(scene.sender))
        assert scene.matches.index_size == 0

    def test_rules_of_one_kind_are_all_to_pass(self, scene: Scene) -> None:
        sender, other = scene.sender, scene.other
        scene.listen(
            NameNotice(CHANGE, sender.id, ANY, None),
            NameNotice(CHANGE, ANY, other.id, NAME),
            NameNotice(CHANGE, ANY, ANY, None),
        )
        assert scene.is_told(scene.change(sender, other))
        assert not scene.is_told(scene.change(sender, other, OTHER))
        assert not scene.is_told(scene.change(other, sender))


class TestRemoval:
    RULES: tuple[tuple[MatchRule, ...], ...] = (
        (),
        (IdMatch(7),),
        (NameMatch(NAME),),
        (DstIdMatch(7),),
        (BloomMask((bits({0: 1}),)),),
        (BloomMask((bits({0: 1}), bits({1: 1}))),),
        (IdMatch(7), BloomMask((bits({0: 1}),))),
        (IdNotice(ItemType.ID_ADD, 7),),
        (NameNotice(ADD, ANY, ANY, NAME),),
        (IdMatch(7), IdNotice(ItemType.ID_ADD, 7)),
    )

    @pytest.mark.parametrize("rules", RULES)
    def test_nothing_is_left_of_an_entry(self, scene: Scene, rules: tuple[MatchRule, ...]) -> None:
        cookie = scene.listen(*rules)
        assert scene.matches
        assert scene.listener.match_count == 1
        assert scene.matches.remove(scene.listener, cookie) == 1
        assert not scene.matches
        assert scene.matches.index_size == 0
        assert scene.listener.match_count == 0
        assert not scene.listener.matches

    @pytest.mark.parametrize("rules", RULES)
    def test_an_equal_entry_stays(self, scene: Scene, rules: tuple[MatchRule, ...]) -> None:
        gone = scene.listen(*rules)
        size = scene.matches.index_size
        scene.listen(*rules)
        scene.matches.remove(scene.listener, gone)
        assert scene.matches
        assert scene.matches.index_size == size

    def test_all_entries_of_a_cookie_go(self, scene: Scene) -> None:
        for rules in self.RULES:
            scene.matches.add(scene.listener, 5, rules)
        scene.matches.add(scene.listener, 6, ())
        assert scene.matches.remove(scene.listener, 5) == len(self.RULES)
        assert scene.listener.match_count == 1
        assert scene.hears()

    def test_a_cookie_without_entries_is_refused(self, scene: Scene) -> None:
        cookie = scene.listen()
        with refused(EBADSLT):
            scene.matches.remove(scene.listener, cookie + 1)
        with refused(EBADSLT):
            scene.matches.remove(scene.other, cookie)
        assert scene.hears()

    def test_nothing_is_left_of_a_connection(self, scene: Scene) -> None:
        for connection in (scene.listener, scene.other):
            for rules in self.RULES:
                scene.listen(*rules, connection=connection)
        scene.matches.disconnect(scene.listener)
        assert not scene.hears()
        assert scene.listener.match_count == 0
        assert scene.matches.recipients(scene.sender, EMPTY, DST_BROADCAST) == [scene.other]
        scene.matches.disconnect(scene.other)
        assert not scene.matches
        assert scene.matches.index_size == 0
