"""Clients that pass what takes as long to close as they like: nobody else waits for it.

A TCP socket that lingers stands for all of it. The client lets go of it while the server cannot run, so that
the server is the last who has it.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from errno import EMEDIUMTYPE, EMFILE, ENOTTY
from pathlib import Path

import pytest
from support.nodes import (
    NodeWorld,
    RawClient,
    command,
    fds_item,
    send_body,
)

from kdbus_core.abi import Command
from kdbus_core.transport.server import ServerLimits

LINGER_S = 600
CARRIED = 1


class Lingering:
    """A socket that lingers when the last who has it closes it, until `release`."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.sock = socket.create_connection(listener.getsockname())
        self._reader = listener.accept()[0]
        listener.close()
        self.sock.setblocking(False)  # noqa: FBT003 - not our signature
        with suppress(BlockingIOError):
            while True:
                self.sock.send(bytes(1 << 16))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, LINGER_S))

    def give(
        self, world: NodeWorld, client: RawClient, number: int, body: bytes = b"", flags: int = 0
    ) -> None:
        """Pass it, and let go of it before the server can have taken it."""

        def pass_on() -> None:
            client.post(number, body, fds=[self.sock.fileno()], flags=flags)
            self.sock.close()

        world.run(pass_on)

    def release(self) -> None:
        """Reset the connection, which ends the lingering."""
        self._reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        self._reader.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[NodeWorld]:
    world = NodeWorld(tmp_path / "n", limits=ServerLimits(open_files_per_user=8))
    world.make_bus()
    yield world
    world.wait_until(lambda: not len(world.server.files))
    world.close()


@pytest.fixture
def lingering(world: NodeWorld) -> Iterator[Lingering]:
    lingering = Lingering()
    yield lingering
    lingering.release()


def assert_served(client: RawClient) -> None:
    """It is answered long before anything has lingered."""
    started = time.monotonic()
    answer = client.run(Command.CONN_INFO, client.id, 1)
    client.run(Command.FREE, answer.number(40))
    assert time.monotonic() - started < LINGER_S / 30


def take_errno(client: RawClient) -> int:
    answer = client.take()
    assert answer is not None
    return answer.errno


def test_a_file_that_the_command_does_not_need_holds_nobody_up(
    world: NodeWorld, lingering: Lingering
) -> None:
    client, other = world.hello(), world.hello()
    lingering.give(world, client, 0)
    assert take_errno(client) == ENOTTY
    assert_served(other)
    assert world.run(lambda: len(world.server.files)) == 1


def test_a_file_of_a_message_that_is_dropped_holds_nobody_up(world: NodeWorld, lingering: Lingering) -> None:
    client, other = world.hello(), world.hello()
    lingering.give(world, client, Command.SEND, send_body(dst_id=client.id, items=[fds_item(0)]))
    assert take_errno(client) == 0
    assert client.request(Command.RECV, command(Command.RECV, flags=2)).errno == 0
    assert_served(other)


def test_files_of_a_client_that_has_gone_hold_nobody_up(world: NodeWorld, lingering: Lingering) -> None:
    client, other = world.hello(), world.hello()
    lingering.give(world, client, Command.SEND, send_body(dst_id=client.id, items=[fds_item(0)]))
    client.close()
    world.settle()
    assert_served(other)


def test_what_should_carry_a_body_and_cannot_holds_nobody_up(world: NodeWorld, lingering: Lingering) -> None:
    client, other = world.hello(), world.hello()
    lingering.give(world, client, Command.SEND, flags=CARRIED)
    assert take_errno(client) == EMEDIUMTYPE
    assert_served(other)


def test_files_in_packets_that_nobody_reads_any_more_hold_nobody_up(
    world: NodeWorld, lingering: Lingering
) -> None:
    client, other = world.hello(), world.hello()

    def pass_on() -> None:
        client.sock.send(b"no packet")
        client.post(0, fds=[lingering.sock.fileno()])
        lingering.sock.close()

    world.run(pass_on)
    assert client.take() is not None  # that it was none
    assert_served(other)
    assert_served(other)


def test_whoever_has_such_files_may_pass_no_more_than_anybody(world: NodeWorld) -> None:
    client, other = world.hello(), world.hello()
    held = [Lingering() for _ in range(9)]
    for one in held[:8]:
        one.give(world, client, 0)
        assert take_errno(client) == ENOTTY
    held[8].give(world, client, 0)
    assert take_errno(client) == EMFILE
    assert_served(other)
    for one in held:
        one.release()
    world.wait_until(lambda: not len(world.server.files))
    null = os.open("/dev/null", os.O_RDONLY)
    assert client.request(0, fds=[null]).errno == ENOTTY
    os.close(null)
