"""Packets as bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbus_core.transport.protocol import (
    Answer,
    FramingError,
    Request,
    apply_patches,
    build_answer,
    build_request,
    parse_answer,
    parse_request,
)

NUMBERS = st.integers(0, (1 << 64) - 1)
PATCHES = st.lists(st.tuples(NUMBERS, st.binary(max_size=40)), max_size=5)


@given(NUMBERS, NUMBERS, NUMBERS, st.binary(max_size=100))
def test_a_request_is_read_as_it_was_built(number: int, id: int, flags: int, body: bytes) -> None:
    assert parse_request(build_request(number, id, body, flags)) == Request(number, id, flags, body)


@given(NUMBERS, st.integers(0, (1 << 32) - 1), PATCHES)
def test_an_answer_is_read_as_it_was_built(id: int, errno: int, patches: list[tuple[int, bytes]]) -> None:
    assert parse_answer(build_answer(id, errno, patches)) == Answer(id, errno, patches)


@given(PATCHES)
def test_every_answer_is_a_multiple_of_eight(patches: list[tuple[int, bytes]]) -> None:
    assert len(build_answer(1, 0, patches)) % 8 == 0


def test_a_request_needs_its_header() -> None:
    with pytest.raises(FramingError):
        parse_request(bytes(23))


@pytest.mark.parametrize("cut", range(16))
def test_an_answer_needs_its_header(cut: int) -> None:
    with pytest.raises(FramingError):
        parse_answer(bytes(cut))


def test_an_answer_ends_with_its_last_patch() -> None:
    with pytest.raises(FramingError):
        parse_answer(build_answer(1, 0, [(0, b"12345678")]) + bytes(8))


@pytest.mark.parametrize("missing", [8, 16, 24])
def test_an_answer_has_all_its_patches(missing: int) -> None:
    with pytest.raises(FramingError):
        parse_answer(build_answer(1, 0, [(0, b"12345678")])[:-missing])


def test_a_patch_that_is_longer_than_the_packet_is_refused() -> None:
    with pytest.raises(FramingError):
        parse_answer(struct.pack("=QII2Q", 1, 0, 1, 0, 1 << 63))


def test_patches_are_applied_in_their_order() -> None:
    memory = bytearray(b"abcdefgh")
    apply_patches(memory, [(0, b"1234"), (2, b"xy")])
    assert memory == b"12xyefgh"


def test_a_patch_does_not_reach_outside_of_the_memory() -> None:
    with pytest.raises(FramingError):
        apply_patches(bytearray(8), [(7, b"12")])
