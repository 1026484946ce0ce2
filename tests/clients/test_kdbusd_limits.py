"""The limits in `kdbusd`'s configuration, as its clients meet them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import E2BIG, EINVAL, EMFILE, EMLINK, ENOBUFS

import pytest
from support.kdbusd import PATIENCE, Kdbusd

from kdbus_core.abi import MessageFlag
from kdbus_core.errors import KdbusError
from kdbus_core.transport.client import Connection, open_node

BUS = f"{os.geteuid()}-test"
POOL = 1 << 20

Use = Callable[[Connection, int], object]


@contextmanager
def limited(limit: str, value: int) -> Iterator[Kdbusd]:
    """A daemon with one bus and one limit."""
    daemon = Kdbusd(f'limits = {{ {limit} = {value} }}\n[[bus]]\nname = "{BUS}"\n')
    try:
        yield daemon
        daemon.stop()
    finally:
        daemon.discard()


def connect(daemon: Kdbusd, pool_size: int = POOL) -> Connection:
    with open_node(daemon.node(BUS)) as handle:
        return handle.hello(pool_size=pool_size)


def errno_of(command: Callable[[], object]) -> int:
    with pytest.raises(KdbusError) as refused:
        command()
    return refused.value.errno


def ask(connection: Connection, number: int) -> None:
    """A request of a connection to itself that stays open."""
    connection.send(
        b"?",
        destination=connection.id,
        cookie=number,
        flags=MessageFlag.EXPECT_REPLY,
        timeout_ns=time.monotonic_ns() + int(PATIENCE * 1e9),
    )


def test_pools_are_limited() -> None:
    with limited("max_pool_size", POOL) as daemon:
        assert errno_of(lambda: connect(daemon, 2 * POOL)) == EINVAL
        connect(daemon).close()


@pytest.mark.parametrize("limit", ["connections_per_user", "handles_per_user"])
def test_connections_are_limited(limit: str) -> None:
    with limited(limit, 2) as daemon, connect(daemon) as one, connect(daemon) as other:
        assert one.id != other.id
        assert errno_of(lambda: connect(daemon)) == EMFILE


def test_all_handles_are_limited() -> None:
    with limited("handles", 1) as daemon, connect(daemon), pytest.raises(KdbusError, match="ENFILE"):
        connect(daemon)


@pytest.mark.parametrize(
    ("limit", "errno", "use"),
    [
        ("names_per_connection", E2BIG, lambda one, number: one.name_acquire(f"org.example.N{number}")),
        ("matches_per_connection", EMFILE, lambda one, number: one.match_add(number, [])),
        ("requests_per_connection", EMLINK, ask),
        ("waiting_messages_per_user", ENOBUFS, lambda one, _: one.send(b"x", destination=one.id)),
        ("waiting_fds_per_user", EMFILE, lambda one, _: one.send(b"x", destination=one.id, fds=[0])),
    ],
)
def test_what_a_connection_has_is_limited(limit: str, errno: int, use: Use) -> None:
    with limited(limit, 2) as daemon, connect(daemon) as connection:
        use(connection, 1)
        use(connection, 2)
        assert errno_of(lambda: use(connection, 3)) == errno


def test_an_open_file_on_its_way_counts_until_it_is_received() -> None:
    with limited("open_files_per_user", 1) as daemon, connect(daemon) as connection:
        connection.send(b"x", destination=connection.id, fds=[0])
        assert errno_of(lambda: connection.send(b"x", destination=connection.id, fds=[0])) == EMFILE
        received = connection.receive()
        assert received is not None
        received.close()
        connection.send(b"x", destination=connection.id, fds=[0])
