"""FREE: a slice is given back once, by its exact beginning, and only by who was given it."""

from __future__ import annotations

from errno import EAGAIN, ENXIO

import pytest
from support.kdbus import Client, List, Recv, World, layout, refused
from support.kdbus.layout import SEE, WORLD, access


@pytest.fixture
def client(world: World) -> Client:
    return world.connect()


def test_where_no_slice_is_there_is_nothing_to_free(client: Client) -> None:
    for offset in (0, 8, client.pool_size + 1, client.pool_size + 8, client.pool_size - 8, 2**64 - 8):
        with refused(ENXIO):
            client.free(offset)


def test_an_empty_answer_takes_no_room(client: Client) -> None:
    for _ in range(2):
        answer = client.command(layout.LIST, flags=List.QUEUED)
        assert (answer["offset"], answer["list_size"]) == (client.pool_size, 0)


def test_the_slice_of_an_empty_answer_is_freed_as_often_as_one_likes(client: Client) -> None:
    for _ in range(3):
        client.free(client.pool_size)


def test_an_answer_is_freed_once(client: Client) -> None:
    answer = client.command(layout.LIST, flags=List.UNIQUE)
    assert answer["offset"] == 0
    client.unfreed.add(0)
    client.free(0)
    with refused(ENXIO):
        client.free(0)


def test_a_slice_is_freed_by_its_beginning(world: World, client: Client) -> None:
    world.connect().send_small(client)
    message = client.recv(keep=True)
    for inside in (8, message.msg_size - 8, message.msg_size):
        with refused(ENXIO):
            client.free(message.offset + inside)
    client.free(message.offset)


def test_a_message_that_was_not_received_is_not_freed(world: World, client: Client) -> None:
    world.connect().send_small(client, cookie=7)
    with refused(ENXIO):
        client.free(0)  # where it lies
    message = client.recv()
    assert (message.offset, message.cookie) == (0, 7)


def test_a_message_that_was_seen_may_be_freed_and_stays(world: World, client: Client) -> None:
    world.connect().send_small(client, cookie=7)
    peeked = client.peek()
    client.free(peeked.offset)
    with refused(ENXIO):
        client.free(peeked.offset)
    received = client.recv(keep=True)
    assert (received.offset, received.raw) == (peeked.offset, peeked.raw)
    client.free(received.offset)
    with refused(EAGAIN):
        client.recv()


def test_a_dropped_message_leaves_nothing_to_free(world: World, client: Client) -> None:
    world.connect().send_small(client)
    client.recv(flags=Recv.PEEK, keep=True)
    client.drop()
    client.free(0)  # what was seen is the client's until it says so
    with refused(ENXIO):
        client.free(0)


def test_freed_room_is_used_again(world: World, client: Client) -> None:
    sender = world.connect()
    offsets = set()
    for _ in range(300):
        sender.send(client)
        message = client.recv()
        offsets.add(message.offset)
        message.close_fds()
    assert offsets == {0}


def test_everybody_who_is_given_slices_can_free_them(world: World) -> None:
    for special in (
        world.connect_monitor(),
        world.connect_activator("foo.bar", access(WORLD, SEE)),
        world.connect_holder("foo.baz", access(WORLD, SEE)),
    ):
        assert special.list_records(List.UNIQUE, keep=True)
        (offset,) = special.unfreed
        special.free(offset)
        with refused(ENXIO):
            special.free(offset)
