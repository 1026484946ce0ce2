"""The pool of a connection: where slices lie, who has them, and what a receiver may free."""

from __future__ import annotations

from errno import EINVAL, ENXIO, EXFULL

import pytest
from broker_world import refused

from kdbus_core.abi import PAGE_SIZE
from kdbus_core.pool import CHUNK_SIZE, LazyMemory, Pool, Slice


def layout(pool: Pool) -> list[tuple[int, int, bool]]:
    """Offset, size and whether it is busy, of all slices."""
    return [(slice_.offset, slice_.size, slice_.is_busy) for slice_ in pool.slices()]


def received(pool: Pool, size: int) -> Slice:
    """A slice that only the receiver has."""
    slice_ = pool.allocate(size)
    pool.publish(slice_)
    pool.release(slice_)
    return slice_


def held(pool: Pool, *sizes: int) -> list[Slice]:
    return [pool.allocate(size) for size in sizes]


EMPTY = [(0, PAGE_SIZE, False)]


# Making one


@pytest.mark.parametrize("size", [0, 1, PAGE_SIZE - 1, PAGE_SIZE + 8, -PAGE_SIZE])
def test_a_pool_is_a_number_of_pages(size: int) -> None:
    with refused(EINVAL):
        Pool(size)


def test_a_new_pool_is_one_free_slice() -> None:
    pool = Pool(PAGE_SIZE)
    assert layout(pool) == EMPTY
    assert (pool.size, pool.busy) == (PAGE_SIZE, 0)


# Allocating


def test_the_first_slice_begins_at_the_beginning() -> None:
    pool = Pool(PAGE_SIZE)
    slice_ = pool.allocate(32)
    assert (slice_.offset, slice_.size) == (0, 32)
    assert (slice_.is_held, slice_.is_published) == (True, False)
    assert layout(pool) == [(0, 32, True), (32, PAGE_SIZE - 32, False)]


@pytest.mark.parametrize(("size", "rounded"), [(1, 8), (7, 8), (8, 8), (9, 16), (120, 120)])
def test_sizes_are_rounded_up_to_eight(size: int, rounded: int) -> None:
    pool = Pool(PAGE_SIZE)
    assert pool.allocate(size).size == rounded
    assert pool.busy == rounded


def test_a_slice_can_be_the_whole_pool() -> None:
    pool = Pool(PAGE_SIZE)
    pool.allocate(PAGE_SIZE)
    assert layout(pool) == [(0, PAGE_SIZE, True)]


@pytest.mark.parametrize("size", [PAGE_SIZE + 1, 2 * PAGE_SIZE, 1 << 70])
def test_what_is_larger_than_the_pool_finds_no_room(size: int) -> None:
    pool = Pool(PAGE_SIZE)
    with refused(EXFULL):
        pool.allocate(size)
    assert layout(pool) == EMPTY


def test_a_full_pool_has_no_room_for_anything() -> None:
    pool = Pool(PAGE_SIZE)
    pool.allocate(PAGE_SIZE)
    with refused(EXFULL):
        pool.allocate(1)


def test_free_bytes_that_do_not_lie_together_are_no_room() -> None:
    pool = Pool(PAGE_SIZE)
    first, _, third, _ = held(pool, 1024, 1024, 1024, 1024)
    pool.release(first)
    pool.release(third)
    with refused(EXFULL):
        pool.allocate(1025)
    assert pool.busy == 2048


def test_the_smallest_free_slice_that_is_large_enough_is_taken() -> None:
    pool = Pool(PAGE_SIZE)
    slices = held(pool, 256, 8, 64, 8, 128, 8)
    for slice_ in slices[::2]:
        pool.release(slice_)
    places = [pool.allocate(size).offset for size in (65, 64, 129, 257)]
    assert places == [slices[4].offset, slices[2].offset, slices[0].offset, 472]


def test_what_is_left_over_stays_free_behind_the_slice() -> None:
    pool = Pool(PAGE_SIZE)
    first, second = held(pool, 256, PAGE_SIZE - 256)
    pool.release(first)
    pool.allocate(200)
    assert layout(pool) == [(0, 200, True), (200, 56, False), (256, PAGE_SIZE - 256, True)]
    assert second.is_busy


def test_nothing_is_no_slice() -> None:
    with pytest.raises(AssertionError):
        Pool(PAGE_SIZE).allocate(0)


# Giving back


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_neighbours_merge_in_whatever_order_they_become_free(order: tuple[int, int, int]) -> None:
    pool = Pool(PAGE_SIZE)
    slices = held(pool, 64, 128, 256)
    for index in order:
        pool.release(slices[index])
    assert layout(pool) == EMPTY
    assert pool.busy == 0
    assert pool.allocate(PAGE_SIZE).offset == 0


def test_a_slice_between_busy_ones_becomes_free_alone() -> None:
    pool = Pool(PAGE_SIZE)
    _, middle, _ = held(pool, 64, 128, 256)
    pool.release(middle)
    assert layout(pool)[:3] == [(0, 64, True), (64, 128, False), (192, 256, True)]


def test_several_free_slices_of_one_size_are_all_found_again() -> None:
    pool = Pool(PAGE_SIZE)
    slices = held(pool, *[64] * 64)
    for slice_ in slices[::2]:
        pool.release(slice_)
    again = {pool.allocate(64).offset for _ in range(32)}
    assert again == {slice_.offset for slice_ in slices[::2]}
    with refused(EXFULL):
        pool.allocate(1)


def test_a_published_slice_outlives_the_brokers_interest() -> None:
    pool = Pool(PAGE_SIZE)
    slice_ = received(pool, 64)
    assert (slice_.is_held, slice_.is_published) == (False, True)
    assert pool.busy == 64
    pool.free(slice_.offset)
    assert layout(pool) == EMPTY


def test_a_slice_the_receiver_freed_outlives_that_while_the_broker_holds_it() -> None:
    pool = Pool(PAGE_SIZE)
    slice_ = pool.allocate(64)
    pool.publish(slice_)
    pool.free(0)
    assert (slice_.is_held, slice_.is_published) == (True, False)
    assert pool.busy == 64
    pool.release(slice_)
    assert layout(pool) == EMPTY


def test_publishing_twice_is_undone_by_freeing_once() -> None:
    pool = Pool(PAGE_SIZE)
    slice_ = pool.allocate(64)
    pool.publish(slice_)
    pool.publish(slice_)
    pool.release(slice_)
    pool.free(0)
    assert layout(pool) == EMPTY


def test_a_slice_can_be_published_again_after_it_was_freed() -> None:
    pool = Pool(PAGE_SIZE)
    slice_ = pool.allocate(64)
    pool.publish(slice_)
    pool.free(0)
    pool.publish(slice_)
    pool.release(slice_)
    assert pool.busy == 64


def test_what_nobody_holds_can_neither_be_released_nor_published_nor_written() -> None:
    pool = Pool(PAGE_SIZE)
    slice_ = received(pool, 64)
    with pytest.raises(AssertionError):
        pool.release(slice_)
    with pytest.raises(AssertionError):
        pool.publish(slice_)
    with pytest.raises(AssertionError):
        pool.write(slice_, 0, b"x")


# FREE


@pytest.mark.parametrize("offset", [0, 8, 64, PAGE_SIZE - 8, PAGE_SIZE + 1, 1 << 63])
def test_in_an_empty_pool_there_is_nothing_to_free(offset: int) -> None:
    with refused(ENXIO):
        Pool(PAGE_SIZE).free(offset)


def test_the_offset_of_empty_answers_may_be_freed_any_number_of_times() -> None:
    pool = Pool(PAGE_SIZE)
    pool.free(PAGE_SIZE)
    pool.free(PAGE_SIZE)
    assert layout(pool) == EMPTY


def test_only_the_exact_beginning_of_a_slice_frees_it() -> None:
    pool = Pool(PAGE_SIZE)
    slice_ = received(pool, 64)
    for offset in (1, 8, 63, 64):
        with refused(ENXIO):
            pool.free(offset)
    pool.free(slice_.offset)


def test_a_slice_is_freed_once() -> None:
    pool = Pool(PAGE_SIZE)
    received(pool, 64)
    pool.free(0)
    with refused(ENXIO):
        pool.free(0)


def test_a_slice_that_is_still_held_is_freed_once_too() -> None:
    pool = Pool(PAGE_SIZE)
    pool.publish(pool.allocate(64))
    pool.free(0)
    with refused(ENXIO):
        pool.free(0)


def test_what_was_never_published_is_not_the_receivers_to_free() -> None:
    pool = Pool(PAGE_SIZE)
    pool.allocate(64)
    with refused(ENXIO):
        pool.free(0)
    assert pool.busy == 64


# Content


def test_what_is_written_into_a_slice_lies_at_its_offset() -> None:
    pool = Pool(PAGE_SIZE)
    _, slice_ = held(pool, 64, 32)
    pool.write(slice_, 8, b"content")
    assert pool.memory.read(64, 24) == bytes(8) + b"content" + bytes(9)


@pytest.mark.parametrize(("position", "data"), [(-1, b"x"), (8, b"x"), (1, bytes(8)), (0, bytes(9))])
def test_a_write_never_leaves_its_slice(position: int, data: bytes) -> None:
    pool = Pool(PAGE_SIZE)
    slice_ = pool.allocate(8)
    with pytest.raises(AssertionError):
        pool.write(slice_, position, data)


def test_chunks_are_stored_one_after_another() -> None:
    pool = Pool(PAGE_SIZE)
    slice_ = pool.store((b"one", b"", b"two"), 6)
    assert slice_.is_held
    assert pool.memory.read(slice_.offset, slice_.size) == b"onetwo\0\0"


class BrokenMemory(LazyMemory):
    """Memory that refuses to be written once a number of writes is used up."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.writes = writes

    def write(self, offset: int, data: bytes) -> None:
        if not self.writes:
            raise OSError("broken")
        self.writes -= 1
        super().write(offset, data)


def test_what_cannot_be_written_takes_no_slice() -> None:
    pool = Pool(PAGE_SIZE, BrokenMemory(writes=0))
    with pytest.raises(OSError, match="broken"):
        pool.store((b"one", b"two"), 6)
    assert layout(pool) == EMPTY


def test_the_content_of_a_freed_slice_is_not_cleared() -> None:
    pool = Pool(PAGE_SIZE)
    pool.answer(b"a secret of the receiver alone")
    pool.free(0)
    assert pool.memory.read(0, 8) == b"a secret"


# Answers


def test_an_answer_is_the_receivers_until_it_frees_it() -> None:
    pool = Pool(PAGE_SIZE)
    assert pool.answer(b"first") == (0, 8)
    assert pool.answer(b"second one") == (8, 16)
    assert pool.memory.read(0, 24) == b"first\0\0\0second one" + bytes(6)
    assert [slice_.is_held for slice_ in pool.slices()] == [False, False, False]
    pool.free(0)
    pool.free(8)
    assert layout(pool) == EMPTY


def test_an_empty_answer_takes_no_slice() -> None:
    pool = Pool(PAGE_SIZE)
    offset, size = pool.answer(b"")
    assert (offset, size) == (PAGE_SIZE, 0)
    assert layout(pool) == EMPTY
    pool.free(offset)


def test_an_answer_that_finds_no_room_changes_nothing() -> None:
    pool = Pool(PAGE_SIZE)
    pool.allocate(PAGE_SIZE - 8)
    with refused(EXFULL):
        pool.answer(bytes(9))
    assert pool.busy == PAGE_SIZE - 8
    assert pool.answer(bytes(8)) == (PAGE_SIZE - 8, 8)


# Memory


def test_memory_that_was_never_written_is_zero_and_takes_no_room() -> None:
    memory = LazyMemory()
    assert memory.read(12345, 3 * CHUNK_SIZE) == bytes(3 * CHUNK_SIZE)
    assert len(memory) == 0


def test_memory_takes_room_where_it_was_written() -> None:
    memory = LazyMemory()
    memory.write(5 * CHUNK_SIZE, b"x")
    memory.write(5 * CHUNK_SIZE + 1, b"y")
    assert len(memory) == CHUNK_SIZE
    assert memory.read(5 * CHUNK_SIZE - 1, 4) == b"\0xy\0"


def test_a_write_may_span_any_number_of_chunks() -> None:
    memory = LazyMemory()
    data = bytes(range(256)) * (2 * CHUNK_SIZE // 256) + b"end"
    memory.write(CHUNK_SIZE - 1, data)
    assert memory.read(CHUNK_SIZE - 1, len(data)) == data
    assert memory.read(0, CHUNK_SIZE) == bytes(CHUNK_SIZE - 1) + b"\0"
    assert memory.read(3 * CHUNK_SIZE - 2, 5) == data[2 * CHUNK_SIZE - 1 : 2 * CHUNK_SIZE + 3] + b"\0"


def test_writing_nothing_takes_no_room() -> None:
    memory = LazyMemory()
    memory.write(0, b"")
    assert memory.read(0, 0) == b""
    assert len(memory) == 0


@pytest.mark.parametrize(
    ("is_held", "is_published", "text"),
    [
        (False, False, "<free slice 8+16>"),
        (True, False, "<held slice 8+16>"),
        (True, True, "<held published slice 8+16>"),
    ],
)
def test_a_slice_says_who_has_it(is_held: bool, is_published: bool, text: str) -> None:
    slice_ = Slice(8, 16)
    slice_.is_held, slice_.is_published = is_held, is_published
    assert repr(slice_) == text
