"""BYEBYE: a connection leaves once its queue is empty, and only once."""

from __future__ import annotations

from errno import EBADFD, EBUSY, ENXIO, EOPNOTSUPP, ESHUTDOWN

import pytest
from support.kdbus import Client, ItemType, World, layout, refused
from support.kdbus.layout import POLLERR, POLLHUP, SEE, access


@pytest.fixture
def pair(world: World) -> tuple[Client, Client]:
    """Two connections with empty matches."""
    first, second = world.connect(), world.connect()
    first.add_match_empty()
    second.add_match_empty()
    return first, second


def test_who_has_not_read_everything_cannot_leave(pair: tuple[Client, Client]) -> None:
    first, second = pair
    first.broadcast()
    with refused(EBUSY):
        second.byebye()
    message = second.recv(keep=True)
    second.free(message.offset)
    second.byebye()


def test_who_has_left_cannot_leave_again(pair: tuple[Client, Client]) -> None:
    _, second = pair
    second.byebye()
    with refused(ESHUTDOWN):
        second.byebye()


def test_a_refused_byebye_changes_nothing(world: World, pair: tuple[Client, Client]) -> None:
    first, second = pair
    second.name_acquire("foo.bar")
    first.broadcast(cookie=1)
    with refused(EBUSY):
        second.byebye()
    first.send(name="foo.bar", cookie=2)
    assert [message.cookie for message in second.drain()] == [1, 2]


def test_after_byebye_every_command_finds_the_connection_gone(pair: tuple[Client, Client]) -> None:
    first, second = pair
    second.byebye()
    for command in (layout.RECV, layout.LIST, layout.FREE, layout.UPDATE, layout.CONN_INFO):
        with refused(ESHUTDOWN):
            second.command(command)
    with refused(EBADFD):
        second.command(layout.ENDPOINT_UPDATE)
    with refused(ENXIO):
        first.send(second)
    assert second.poll() == POLLERR | POLLHUP


def test_the_pool_stays_mapped_after_byebye(pair: tuple[Client, Client]) -> None:
    first, second = pair
    first.send(second, cookie=7)
    message = second.recv(keep=True)
    second.byebye()
    assert second.read_pool(message.offset, message.msg_size) == message.raw


def test_others_are_told_that_a_connection_left(world: World, pair: tuple[Client, Client]) -> None:
    first, second = pair
    first.add_match_id(ItemType.ID_REMOVE)
    second.byebye()
    assert first.recv().arrival == (ItemType.ID_REMOVE, second.id)


def test_a_special_connection_just_closes(world: World) -> None:
    for client in (
        world.connect_monitor(),
        world.connect_activator("foo.bar"),
        world.connect_holder("foo.baz", access(layout.USER, SEE, 1)),
    ):
        with refused(EOPNOTSUPP):
            client.byebye()
