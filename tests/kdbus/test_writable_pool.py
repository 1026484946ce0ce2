"""The pool is written by the broker alone: who receives into it maps it for reading."""

from __future__ import annotations

from errno import EBADFD, EFAULT, EPERM

import pytest
from support.kdbus import Client, World
from support.kdbus.layout import PAGE, POOL_SIZE

from kdbus_core.errors import KdbusError


def map_pool(client: Client, length: int, *, writable: bool = False) -> int:
    """mmap(2) of the handle: 0 or the errno."""
    try:
        client.handle.map_pool(length, writable=writable)
    except KdbusError as error:
        return error.errno
    return 0


@pytest.mark.parametrize("length", [8, PAGE, POOL_SIZE, POOL_SIZE + PAGE])
def test_a_pool_is_never_mapped_for_writing(world: World, length: int) -> None:
    assert map_pool(world.connect(), length, writable=True) == EPERM


@pytest.mark.parametrize("length", [8, PAGE, POOL_SIZE])
def test_a_pool_is_mapped_for_reading(world: World, length: int) -> None:
    assert map_pool(world.connect(), length) == 0


@pytest.mark.parametrize("length", [POOL_SIZE + 1, POOL_SIZE + PAGE])
def test_no_more_than_the_pool_is_mapped(world: World, length: int) -> None:
    assert map_pool(world.connect(), length) == EFAULT


def test_before_hello_there_is_no_pool(world: World) -> None:
    for writable in (False, True):
        assert map_pool(world.open(), PAGE, writable=writable) == EBADFD
        assert map_pool(world.open_control(), PAGE, writable=writable) == EBADFD


def test_what_is_read_from_a_pool_cannot_be_written_to(world: World) -> None:
    sender, client = world.connect(), world.connect()
    sender.send_small(client, payload=b"unharmed")
    seen = memoryview(client.pool.memory.read(0, client.pool_size))
    assert seen.readonly
    with pytest.raises(TypeError):
        seen[0] = 1
    assert client.recv().payload == b"unharmed"


def test_everybody_who_says_hello_has_a_pool_to_read(world: World) -> None:
    for special in (
        world.connect_monitor(),
        world.connect_activator("foo.bar"),
        world.connect_holder("foo.baz"),
    ):
        assert map_pool(special, POOL_SIZE) == 0
        assert map_pool(special, POOL_SIZE, writable=True) == EPERM
