"""A request as the memory and the descriptors of a caller."""

from __future__ import annotations

import os
from errno import EFAULT

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nodes import count_fds

from kdbus_core.errors import KdbusError
from kdbus_core.transport.files import OpenFile
from kdbus_core.transport.performing import Performing
from kdbus_core.transport.protocol import MAX_FDS, apply_patches

SIZE = 32


def request(body: bytes = bytes(SIZE), files: list[OpenFile] | None = None) -> Performing:
    performing = Performing(lambda *_: None)
    performing.begin(1, memoryview(body))
    performing.put_in(memoryview(body), files)
    return performing


WRITES = st.lists(
    st.integers(0, SIZE).flatmap(
        lambda address: st.tuples(st.just(address), st.binary(max_size=SIZE - address))
    ),
    max_size=8,
)


@given(WRITES, st.booleans())
def test_patches_make_the_memory_what_it_would_have_become(
    writes: list[tuple[int, bytes]], waits: bool
) -> None:
    performing = request()
    if waits:
        performing.wait()
    memory, patched = bytearray(SIZE), bytearray(SIZE)
    for address, data in writes:
        memory[address : address + len(data)] = data
        performing.write(address, data)
    apply_patches(patched, performing.patches)
    assert patched == memory


@pytest.mark.parametrize(("address", "size"), [(0, 33), (32, 1), (33, 0), (-1, 1), (1 << 64, 8)])
def test_there_is_nothing_outside_of_the_body(address: int, size: int) -> None:
    performing = request()
    with pytest.raises(KdbusError) as read:
        performing.read(address, size)
    with pytest.raises(KdbusError) as written:
        performing.write(address, bytes(size))
    assert read.value.errno == written.value.errno == EFAULT


def test_a_request_that_waits_has_let_its_packet_go() -> None:
    read_end, write_end = os.pipe()
    performing = request(files=[OpenFile(write_end)])
    performing.wait()
    assert os.read(read_end, 1) == b""
    os.close(read_end)
    with pytest.raises(KdbusError):
        performing.read(0, 8)
    performing.close()


def test_a_file_belongs_to_whoever_asked_and_to_the_request() -> None:
    before = count_fds()
    performing = request(files=[OpenFile(os.dup(0))])
    first, second = performing.file(0), performing.file(0)
    assert performing.file(1) is None
    assert performing.file(-1) is None
    performing.close()
    assert first is not None
    assert second is not None
    first.close()
    assert count_fds() == before + 1
    second.close()
    assert count_fds() == before


def test_an_answer_has_room_for_so_many_descriptors() -> None:
    before = count_fds()
    performing = request()
    file = OpenFile(os.dup(0))
    assert [performing.install(file) for _ in range(MAX_FDS + 1)] == [*range(MAX_FDS), -1]
    file.close()
    performing.close()
    assert count_fds() == before


def test_it_can_be_used_again() -> None:
    performing = request()
    performing.write(0, b"x")
    performing.close()
    performing.begin(2, memoryview(bytes(8)))
    assert performing.patches == []
    assert performing.id == 2
