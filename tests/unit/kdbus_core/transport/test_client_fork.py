"""A process that forks keeps what it has, whatever the child does with its copies."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import ECHILD
from pathlib import Path

import pytest
from client_world import BUS, DEADLINE_S, Served, in_thread, refused, served, until

from kdbus_core.transport.client import aio, open_node
from kdbus_core.transport.client.pool import COPY_LIMIT


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path) as world:
        yield world


def in_child(what: Callable[[], object]) -> None:
    """Do something in a child, where it must not fail."""
    pid = os.fork()
    if not pid:
        try:
            what()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_child_that_closes_its_copy_takes_nothing_from_who_waits(world: Served) -> None:
    with world.connect() as connection:
        waiting = in_thread(lambda: connection.wait(DEADLINE_S))
        until(lambda: bool(connection._link._inside))
        in_child(connection.close)
        connection.send(b"still here", destination=connection.id)
        assert waiting.result(DEADLINE_S)
        message = connection.receive()
        assert message is not None
        assert message.payload == b"still here"


def test_a_child_gives_back_nothing_that_its_parent_looks_at(world: Served) -> None:
    with world.connect() as connection:
        connection.send(b"x" * (COPY_LIMIT + 1), destination=connection.id)
        message = connection.receive()
        assert message is not None
        connection.drain()
        in_use = world.pool_use(connection.id)
        in_child(message.close)
        connection.drain()
        assert world.pool_use(connection.id) == in_use
        message.close()
        connection.drain()
        assert not world.pool_use(connection.id)


def test_what_is_still_to_be_given_back_is_given_back_once(world: Served) -> None:
    with world.connect() as connection:
        connection.send(b"first", destination=connection.id)
        first = connection.receive()
        assert first is not None
        in_child(connection.drain)
        assert world.pool_use(connection.id)
        connection.drain()
        assert not world.pool_use(connection.id)


def test_a_child_may_use_what_its_parent_leaves_to_it(world: Served) -> None:
    with world.connect() as connection:
        waiting = in_thread(lambda: connection.wait(DEADLINE_S))
        until(lambda: bool(connection._link._inside))

        def use() -> None:
            connection.send(b"to myself", destination=connection.id)
            message = connection.receive()
            assert message is not None
            assert message.payload == b"to myself"

        in_child(use)
        connection.send(b"x", destination=connection.id)
        assert waiting.result(DEADLINE_S)


def test_a_child_can_open_connections_of_its_own(world: Served) -> None:
    with world.connect() as connection:

        def use() -> None:
            with open_node(world.bus) as node, node.hello() as own:
                own.send(b"from a child", destination=connection.id)

        in_child(use)
        message = connection.receive()
        assert message is not None
        assert message.payload == b"from a child"


def test_a_loop_goes_on_when_a_child_uses_and_closes_its_copy(tmp_path: Path) -> None:
    def use(connection: aio.Connection) -> None:
        with refused(ECHILD), suppress(StopIteration):
            connection.drain().send(None)
        connection.close()

    async def scene(world: Served) -> None:
        async with (
            await aio.open_node(world.directory / BUS / "bus") as node,
            await node.hello() as connection,
        ):
            waiting = asyncio.create_task(connection.wait())
            await asyncio.sleep(0)
            in_child(lambda: use(connection))
            await connection.send(b"x", destination=connection.id)
            assert await asyncio.wait_for(waiting, DEADLINE_S)

    with served(tmp_path) as world:
        asyncio.run(asyncio.wait_for(scene(world), DEADLINE_S))
