"""A pool does what a naive one does that looks at everything again for each question.

The naive pool is a list of pieces in order of their offsets. It does not say which of several equally small
free pieces is to be taken; it follows the pool there, after it has made sure that it was one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from errno import ENXIO, EXFULL

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kdbus_core.abi import PAGE_SIZE
from kdbus_core.errors import KdbusError
from kdbus_core.pool import Pool, Slice


@dataclass(frozen=True)
class Piece:
    """One piece of the naive pool."""

    offset: int
    size: int
    held: bool = False
    published: bool = False

    @property
    def free(self) -> bool:
        return not self.held and not self.published


def errno_of(command: Callable[[], object]) -> int:
    """0, or the errno it is refused with."""
    try:
        command()
    except KdbusError as error:
        return error.errno
    return 0


class NaivePool:
    """Pieces by ascending offset; each change goes through all of them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pieces = [Piece(0, size)]

    def allocate(self, size: int, offset: int | None) -> int:
        """Take this place, unless it is none of the best; returns the errno."""
        size = -(-size // 8) * 8
        fitting = [piece for piece in self.pieces if piece.free and piece.size >= size]
        if not fitting:
            return EXFULL
        best = min(piece.size for piece in fitting)
        [taken] = [piece for piece in fitting if piece.size == best and piece.offset == offset]
        index = self.pieces.index(taken)
        parts = [Piece(taken.offset, size, held=True)]
        if best > size:
            parts.append(Piece(taken.offset + size, best - size))
        self.pieces[index : index + 1] = parts
        return 0

    def change(self, offset: int, *, held: bool | None = None, published: bool | None = None) -> None:
        for index, piece in enumerate(self.pieces):
            if piece.offset == offset:
                if held is not None:
                    piece = replace(piece, held=held)
                if published is not None:
                    piece = replace(piece, published=published)
                self.pieces[index] = piece
        merged: list[Piece] = []
        for piece in self.pieces:
            if merged and merged[-1].free and piece.free:
                merged[-1] = Piece(merged[-1].offset, merged[-1].size + piece.size)
            else:
                merged.append(piece)
        self.pieces = merged

    def free(self, offset: int) -> int:
        if offset == self.size:
            return 0
        if not any(piece.offset == offset and piece.published for piece in self.pieces):
            return ENXIO
        self.change(offset, published=False)
        return 0


class PoolMachine(RuleBasedStateMachine):
    """The same commands for both; after each of them they look the same."""

    @initialize(pages=st.integers(1, 3))
    def make(self, pages: int) -> None:
        self.pool = Pool(pages * PAGE_SIZE)
        self.naive = NaivePool(pages * PAGE_SIZE)
        self.held: list[Slice] = []

    @rule(size=st.one_of(st.integers(1, 200), st.sampled_from([512, 1024, 2048]), st.integers(1, 13000)))
    def allocate(self, size: int) -> None:
        before = len(self.held)
        errno = errno_of(lambda: self.held.append(self.pool.allocate(size)))
        place = self.held[-1].offset if len(self.held) > before else None
        assert errno == self.naive.allocate(size, place)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        slice_ = data.draw(st.sampled_from(self.held))
        self.pool.publish(slice_)
        self.naive.change(slice_.offset, published=True)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slice_ = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(slice_)
        self.naive.change(slice_.offset, held=False)

    @rule(data=st.data(), shift=st.sampled_from([0] * 10 + [1, 8, -8]))
    def free(self, data: st.DataObject, shift: int) -> None:
        offsets = [piece.offset for piece in self.naive.pieces]
        offset = data.draw(st.sampled_from([*offsets, self.pool.size])) + shift
        assert errno_of(lambda: self.pool.free(offset)) == self.naive.free(offset)

    @invariant()
    def looks_the_same(self) -> None:
        slices = list(self.pool.slices())
        assert [
            Piece(slice_.offset, slice_.size, slice_.is_held, slice_.is_published) for slice_ in slices
        ] == self.naive.pieces
        assert self.pool.busy == sum(piece.size for piece in self.naive.pieces if not piece.free)

    @invariant()
    def tiles_the_pool(self) -> None:
        ends = [0]
        for slice_ in self.pool.slices():
            assert slice_.offset == ends[-1]
            assert slice_.size > 0
            assert slice_.size % 8 == 0
            ends.append(slice_.offset + slice_.size)
        assert ends[-1] == self.pool.size

    def teardown(self) -> None:
        for slice_ in self.held:
            self.pool.release(slice_)
        for slice_ in list(self.pool.slices()):
            if slice_.is_published:
                self.pool.free(slice_.offset)
        assert [(slice_.offset, slice_.size, slice_.is_busy) for slice_ in self.pool.slices()] == [
            (0, self.pool.size, False)
        ]
        assert self.pool.busy == 0


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
