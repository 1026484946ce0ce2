"""Pools in shared memory: the broker writes, and nobody else ever can."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest
from support.children import open_fds

from kdbus_core.pool import Pool
from kdbus_core.transport import memory as memory_module
from kdbus_core.transport.memory import SharedMemory

SIZE = 64 * 1024


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    before = open_fds()
    memory = SharedMemory(SIZE)
    yield memory
    memory.close()
    assert open_fds() == before


@pytest.fixture
def received(memory: SharedMemory) -> Iterator[int]:
    """The descriptor that a receiver gets."""
    fd = memory.export_fd()
    yield fd
    os.close(fd)


def reopen(fd: int, flags: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def needs_seal(memory: SharedMemory) -> None:
    if not memory.is_sealed:
        pytest.skip("the kernel has no F_SEAL_FUTURE_WRITE")


def test_the_receiver_sees_what_the_broker_writes(memory: SharedMemory, received: int) -> None:
    with mmap.mmap(received, SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        memory.write(SIZE - 5, b"12345")
        assert view[SIZE - 5 :] == b"12345"


def test_the_broker_reads_what_it_wrote(memory: SharedMemory) -> None:
    memory.write(4090, b"across pages")
    assert memory.read(4090, 12) == b"across pages"


def test_memory_is_zero_at_first(memory: SharedMemory) -> None:
    assert memory.read(0, SIZE) == bytes(SIZE)


def test_nothing_is_written_past_the_end(memory: SharedMemory) -> None:
    with pytest.raises(IndexError):
        memory.write(SIZE - 2, b"123")


@pytest.mark.parametrize("protection", [mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE])
def test_the_received_descriptor_cannot_be_mapped_for_writing(received: int, protection: int) -> None:
    with pytest.raises(PermissionError):
        mmap.mmap(received, SIZE, mmap.MAP_SHARED, protection)


def test_a_descriptor_opened_again_for_writing_cannot_be_mapped_for_writing(
    memory: SharedMemory, received: int
) -> None:
    needs_seal(memory)
    fd = reopen(received, os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(fd)


def test_a_descriptor_opened_again_for_writing_cannot_be_written_to(
    memory: SharedMemory, received: int
) -> None:
    needs_seal(memory)
    fd = reopen(received, os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 2 * SIZE)
    finally:
        os.close(fd)


def test_the_seals_cannot_be_changed(memory: SharedMemory, received: int) -> None:
    needs_seal(memory)
    fd = reopen(received, os.O_RDWR)
    try:
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & memory_module.POOL_SEALS == memory_module.POOL_SEALS
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    finally:
        os.close(fd)


def test_the_received_descriptor_is_for_reading_and_closes_at_exec(received: int) -> None:
    assert fcntl.fcntl(received, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    assert fcntl.fcntl(received, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_without_the_seal_the_received_descriptor_is_still_for_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A seal that no kernel knows, in place of one that this kernel does not.
    monkeypatch.setattr(memory_module, "POOL_SEALS", memory_module.POOL_SEALS | 0x40000000)
    monkeypatch.setattr(memory_module, "SEAL_FUTURE_WRITE", 0x40000000)
    memory = SharedMemory(SIZE)
    fd = memory.export_fd()
    try:
        assert not memory.is_sealed
        with pytest.raises(PermissionError):
            mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        assert os.fstat(fd).st_mode & 0o777 == 0o400
    finally:
        os.close(fd)
        memory.close()


def test_what_the_receiver_has_mapped_outlives_the_broker_s_side() -> None:
    memory = SharedMemory(SIZE)
    fd = memory.export_fd()
    with mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        memory.write(0, b"last words")
        memory.close()
        memory.close()
        os.close(fd)
        assert view[:10] == b"last words"


def test_a_pool_of_shared_memory_is_a_pool(memory: SharedMemory, received: int) -> None:
    pool = Pool(SIZE, memory)
    slice_ = pool.store((b"one ", b"two"), 7)
    with mmap.mmap(received, SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        assert view[slice_.offset : slice_.offset + 7] == b"one two"
    pool.release(slice_)
    assert pool.busy == 0


def test_memory_that_cannot_be_had_leaves_nothing_behind() -> None:
    before = open_fds()
    with pytest.raises((OSError, OverflowError, ValueError)) as refused:
        SharedMemory(1 << 62)
    assert not isinstance(refused.value, OSError) or refused.value.errno in (
        errno.ENOMEM,
        errno.EFBIG,
        errno.EINVAL,
    )
    assert open_fds() == before
