"""The index of masks finds what a search through all of them finds, keeps nothing, and does little."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbus_core.bloom_index import FEW, LEAF_SIZE, MANY, MaskIndex, MaskTrie

WIDTH = 12
# Among few bits masks share much, so that they part in every way there is.
masks = st.one_of(st.integers(0, 2**6 - 1), st.integers(0, 2**WIDTH - 1))


def found(trie: MaskTrie[int], filter: int) -> list[int]:
    return sorted(value for values in trie.find(filter) for value in values)


def trie_of(masks: Sequence[int]) -> MaskTrie[int]:
    """Every mask with its place in the sequence as the value."""
    trie: MaskTrie[int] = MaskTrie()
    for value, mask in enumerate(masks):
        trie.add(mask, value)
    return trie


# Masks that part late, early, nowhere, and where one is the beginning of another.
SHAPES = {
    "one bit each": [1 << bit for bit in range(WIDTH)],
    "each the beginning of the next": [(1 << bit) - 1 for bit in range(WIDTH + 1)],
    "the same beginning": [0b1111 | rest << 4 for rest in range(20)],
    "the same end": [0b1111 << 8 | rest for rest in range(20)],
    "equal": [0b1010] * (2 * FEW),
    "equal and a few others": [0b1010] * (2 * FEW) + [0b1010 | 1 << bit for bit in range(WIDTH)],
    "a beginning that turns out shorter": [0b1110000 | 1 << bit for bit in range(7, 12)]
    + [0b10010000, 0b10000],
    "one bit first and then without it": [0b1 | 2 << bit for bit in range(8)] + [0b10, 0b100, 0b10000],
    "one higher bit first and then without it": [0b100 | 8 << bit for bit in range(8)] + [8, 24, 0b10],
    "nothing": [0] * 3 + list(range(LEAF_SIZE + 2)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_whatever_the_masks_look_like_those_contained_are_found(shape: str) -> None:
    given_masks = SHAPES[shape]
    trie = trie_of(given_masks)
    for filter in range(2**WIDTH):
        assert found(trie, filter) == [
            value for value, mask in enumerate(given_masks) if mask & filter == mask
        ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_whatever_goes_first_the_rest_is_found_and_nothing_stays_behind(shape: str, seed: int) -> None:
    given_masks = SHAPES[shape]
    trie = trie_of(given_masks)
    rest = dict(enumerate(given_masks))
    order = list(rest)
    random.Random(seed).shuffle(order)
    for gone in order:
        trie.remove(rest.pop(gone), gone)
        assert found(trie, 2**WIDTH - 1) == sorted(rest)
        for filter in given_masks:
            assert found(trie, filter) == sorted(v for v, mask in rest.items() if mask & filter == mask)
        assert len(trie) <= 2 * len(set(rest.values()))
        assert bool(trie) == bool(rest)
    assert len(trie) == 0


@given(st.lists(st.tuples(masks, st.booleans()), max_size=60), st.lists(masks, max_size=8))
def test_after_any_coming_and_going_those_contained_are_found(
    history: list[tuple[int, bool]], filters: list[int]
) -> None:
    trie: MaskTrie[int] = MaskTrie()
    present: dict[int, int] = {}
    for value, (mask, goes) in enumerate(history):
        if goes and present:
            gone = min(present, key=lambda known: (present[known] ^ mask, known))
            trie.remove(present.pop(gone), gone)
        else:
            trie.add(mask, value)
            present[value] = mask
        for filter in (mask, *filters):
            assert found(trie, filter) == sorted(v for v, m in present.items() if m & filter == m)
    assert len(trie) <= 2 * len(set(present.values()))
    for value, mask in present.items():
        trie.remove(mask, value)
    assert len(trie) == 0


@pytest.mark.parametrize("others", [[], [1], [1, 1], [1] * (FEW + 1), [1, 2, 3, 4, 5, 6, 7, 8]])
@pytest.mark.parametrize("mask", [1, 9])
def test_what_is_not_there_cannot_be_removed(others: list[int], mask: int) -> None:
    trie = trie_of(others)
    with pytest.raises(KeyError):
        trie.remove(mask, 99)
    assert found(trie, 15) == list(range(len(others)))


def test_masks_that_part_late_do_not_make_a_node_for_each_bit() -> None:
    shared = (1 << 4000) - 1
    trie = trie_of([shared | 1 << 4000 + bit for bit in range(100)])
    assert len(trie) <= 101


class CountingMask(int):
    """A mask that counts how often one like it was compared with a filter."""

    compared = 0

    def __and__(self, other: int) -> int:
        CountingMask.compared += 1
        return int(self) & other


def mask_of(strings: int, random: random.Random) -> int:
    """What that many strings put into a mask of 512 bits, 8 each."""
    bits = 0
    for _ in range(8 * strings):
        bits |= 1 << random.randrange(512)
    return bits


def test_few_of_many_masks_are_compared_with_a_filter() -> None:
    chance = random.Random(1)
    count, filters = 20_000, 20
    trie: MaskTrie[int] = MaskTrie()
    for value in range(count):
        trie.add(CountingMask(mask_of(chance.randint(1, 4), chance)), value)
    CountingMask.compared = 0
    for _ in range(filters):
        trie.find(mask_of(8, chance))
    assert CountingMask.compared / filters < count / 50


def test_masks_that_lack_what_all_in_a_branch_have_are_not_looked_at() -> None:
    trie: MaskTrie[int] = MaskTrie()
    for value in range(1000):
        trie.add(CountingMask(1 << 20 | value), value)
    CountingMask.compared = 0
    assert trie.find((1 << 20) - 1) == []
    assert CountingMask.compared == 0


class TestGenerations:
    def test_a_filter_is_compared_with_its_generation_or_the_last(self) -> None:
        index: MaskIndex[str] = MaskIndex()
        index.add((1,), "one")
        index.add((2, 4), "two")
        index.add((8, 16, 32), "three")
        assert [
            sorted(value for values in index.find(generation, filter) for value in values)
            for generation, filter in [
                (0, 1),
                (5, 1),
                (0, 10),
                (0, 4),
                (1, 20),
                (2, 36),
                (2**64 - 1, 36),
                (2, 16),
            ]
        ] == [
            ["one"],
            ["one"],
            ["three", "two"],
            [],
            ["three", "two"],
            ["three", "two"],
            ["three", "two"],
            [],
        ]

    def test_nothing_is_left(self) -> None:
        index: MaskIndex[str] = MaskIndex()
        assert not index
        index.add((1, 2), "a")
        index.add((1, 2), "b")
        index.add((1,), "c")
        assert len(index) == 3
        index.remove((1, 2), "a")
        index.remove((1, 2), "b")
        assert len(index) == 1
        assert index
        index.remove((1,), "c")
        assert len(index) == 0
        assert not index


class TestManyGenerations:
    """Masks of more generations than have tries."""

    @staticmethod
    def long(count: int = MANY + 1, first: int = 0) -> tuple[int, ...]:
        """So many generations, each with a bit of its own."""
        return tuple(1 << first + generation for generation in range(count))

    @pytest.mark.parametrize("count", [MANY, MANY + 1, 3 * MANY])
    def test_a_filter_is_compared_with_its_generation_or_the_last(self, count: int) -> None:
        index: MaskIndex[str] = MaskIndex()
        index.add(self.long(count), "value")
        for generation in (*range(count + 2), 2**64 - 1):
            wanted = 1 << min(generation, count - 1)
            assert [list(values) for values in index.find(generation, wanted)] == [["value"]]
            assert [list(values) for values in index.find(generation, 1 << 500 | wanted)] == [["value"]]
            assert index.find(generation, (1 << count) - 1 ^ wanted) == []

    def test_equal_ones_and_short_ones_are_found_beside_each_other(self) -> None:
        index: MaskIndex[str] = MaskIndex()
        for value in ("a", "b"):
            index.add(self.long(), value)
        index.add((1,), "short")
        index.add(self.long(first=1), "other")
        assert sorted(value for values in index.find(0, 1) for value in values) == ["a", "b", "short"]

    def test_only_the_one_that_is_removed_goes(self) -> None:
        index: MaskIndex[str] = MaskIndex()
        for value in ("a", "b"):
            index.add(self.long(), value)
        index.remove(self.long(), "a")
        assert [list(values) for values in index.find(0, 1)] == [["b"]]
        assert index
        index.remove(self.long(), "b")
        assert index.find(0, 1) == []
        assert not index

    def test_what_is_not_there_cannot_be_removed(self) -> None:
        index: MaskIndex[str] = MaskIndex()
        index.add(self.long(), "a")
        with pytest.raises(KeyError):
            index.remove(self.long(), "b")
        assert index

    @pytest.mark.parametrize("count", [MANY + 1, 500])
    def test_they_take_one_place_each_however_many_generations_there_are(self, count: int) -> None:
        index: MaskIndex[int] = MaskIndex()
        for value in range(10):
            index.add(self.long(count, first=value), value)
        assert len(index._long) == 10
        assert len(index) == 0, "there is no node for them"
        for value in range(10):
            index.remove(self.long(count, first=value), value)
        assert not index._long

    def test_lengths_of_which_there_are_many_make_no_tries(self) -> None:
        index: MaskIndex[int] = MaskIndex()
        for count in range(1, 100):
            index.add(self.long(count), count)
        assert len(index._tries) == MANY
        assert len(index) <= MANY * (MANY + 1) // 2
        assert sorted(value for values in index.find(0, 1) for value in values) == list(range(1, 100))


class TestWhatIsRemembered:
    def test_a_filter_that_comes_again_is_not_looked_up_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        index: MaskIndex[str] = MaskIndex(remembers=2)
        searched: list[int] = []
        search = MaskIndex._search

        def count(self: MaskIndex[str], generation: int, filter: int) -> list[Iterable[str]]:
            searched.append(filter)
            return search(self, generation, filter)

        monkeypatch.setattr(MaskIndex, "_search", count)
        index.add((1,), "a")
        for filter in (1, 1, 3, 1, 3):
            assert [[*group] for group in index.find(0, filter)] == [["a"]]
        assert searched == [1, 3]
        index.find(0, 5)
        index.find(0, 1)
        assert searched == [1, 3, 5, 1]

    def test_what_comes_or_goes_is_seen_at_once(self) -> None:
        index: MaskIndex[str] = MaskIndex(remembers=8)
        assert index.find(0, 3) == []
        index.add((1,), "a")
        index.add((1, 2, 3, 4, 5), "many")
        assert sorted(value for group in index.find(0, 3) for value in group) == ["a", "many"]
        index.remove((1,), "a")
        index.remove((1, 2, 3, 4, 5), "many")
        assert index.find(0, 3) == []

    def test_each_generation_is_remembered_for_itself(self) -> None:
        index: MaskIndex[str] = MaskIndex(remembers=8)
        index.add((1, 2), "a")
        assert [bool(index.find(generation, 1)) for generation in (0, 1, 0)] == [True, False, True]
