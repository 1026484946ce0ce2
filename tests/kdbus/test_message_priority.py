"""RECV by priority: the most urgent first, equally urgent ones in order, and a limit to what is asked for."""

from __future__ import annotations

from errno import EAGAIN, EINVAL

import pytest
from support.kdbus import Client, ItemType, Recv, World, refused

PRIORITIES = (25, -600, 10, -35, -100, 20, -15, -800, -150, 10, -800, -10)


@pytest.fixture
def receiver(world: World) -> Client:
    """A connection with messages of all priorities."""
    sender, receiver = world.connect(), world.connect()
    for cookie, priority in enumerate(PRIORITIES):
        sender.send(receiver, priority=priority, cookie=cookie)
    return receiver


def urgent(client: Client, priority: int) -> tuple[int, int]:
    """Priority and cookie of the most urgent message up to a priority."""
    message = client.recv(flags=Recv.USE_PRIORITY, priority=priority)
    return message.priority, message.cookie


def test_the_most_urgent_message_comes_first(receiver: Client) -> None:
    assert urgent(receiver, -200) == (-800, 7)
    assert urgent(receiver, -100) == (-800, 10)
    assert urgent(receiver, -400) == (-600, 1)
    with refused(EAGAIN):
        urgent(receiver, -400)
    assert urgent(receiver, 10) == (-150, 8)
    assert urgent(receiver, 10) == (-100, 4)
    assert receiver.recv().priority == 25


def test_without_the_flag_priority_means_nothing(receiver: Client) -> None:
    received = [receiver.recv(priority=-1000).priority for _ in PRIORITIES]
    assert received == list(PRIORITIES)


def test_messages_of_the_same_priority_keep_their_order(receiver: Client) -> None:
    received = [urgent(receiver, 2**63 - 1) for _ in PRIORITIES]
    assert received == sorted((priority, cookie) for cookie, priority in enumerate(PRIORITIES))


def test_a_message_of_exactly_the_priority_asked_for_is_given(receiver: Client) -> None:
    assert urgent(receiver, -800) == (-800, 7)


def test_notifications_have_priority_0(world: World) -> None:
    client = world.connect()
    client.add_match_name(ItemType.NAME_ADD)
    client.name_acquire("foo.bar")
    with refused(EAGAIN):
        urgent(client, -1)
    assert urgent(client, 0) == (0, 0)


def test_priority_does_not_go_with_drop(receiver: Client) -> None:
    with refused(EINVAL):
        receiver.recv(flags=Recv.USE_PRIORITY | Recv.DROP)


def test_peeking_by_priority_gives_what_receiving_gives(receiver: Client) -> None:
    flags = Recv.USE_PRIORITY | Recv.PEEK
    peeked = receiver.recv(flags=flags, priority=0, keep=True)
    received = receiver.recv(flags=Recv.USE_PRIORITY, priority=0)
    assert (peeked.offset, peeked.cookie) == (received.offset, received.cookie) == (peeked.offset, 7)
