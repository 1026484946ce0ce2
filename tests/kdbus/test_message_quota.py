"""How much may wait for a receiver: memory and messages, each user's share, and who is told what was lost."""

from __future__ import annotations

from errno import EAGAIN, EMLINK, ENOBUFS, ENXIO
from functools import partial

import pytest
from support.kdbus import NOBODY, Client, ItemType, Msg, Name, World, layout, refused, repeat_until
from support.kdbus.layout import DROPPED_MSGS, MAX_VEC_PAYLOAD, OWN, POOL_SIZE, TALK, USER, WORLD, access

NAME = "foo.test.activator"
MAX_QUEUED = 256
STANDARD_FITS = 21
"""Standard messages of one user in a pool of 16 MiB: a third of its half."""


def fill(sender: Client, receiver: Client | int = 0, *, name: str | None = None, errno: int = ENOBUFS) -> int:
    """Send standard messages until one is refused; returns how many were not."""
    return repeat_until(errno, lambda: sender.send(receiver, name=name))


def send_empty(sender: Client, receiver: Client, count: int) -> None:
    """Send messages that are nothing but their header."""
    for _ in range(count):
        sender.send_items(dst=receiver)


# Names that move


@pytest.fixture
def trio(world: World) -> tuple[Client, Client, Client]:
    """An activator, a connection that may own its name, and a sender."""
    activator = world.connect_activator(NAME, access(USER, OWN, world.owner.uid))
    return activator, world.connect(), world.connect()


def test_an_activator_has_a_quota(trio: tuple[Client, Client, Client]) -> None:
    activator, other, sender = trio
    assert len(sender.list_records()) == 3
    assert fill(sender, name=NAME) == STANDARD_FITS
    with refused(ENXIO):
        sender.send(activator)
    with refused(ENOBUFS):  # of the same user
        other.send(name=NAME)
    sender.broadcast()
    assert activator.recv().dropped == 0
    assert len(activator.drain()) == STANDARD_FITS - 1


def test_messages_that_do_not_fit_the_new_owner_are_lost_and_counted(
    trio: tuple[Client, Client, Client],
) -> None:
    activator, owner, sender = trio
    waiting = fill(sender, name=NAME)
    fill(sender, owner)
    assert owner.recv().dropped == 0
    assert owner.name_acquire(NAME, Name.REPLACE_EXISTING) & Name.PRIMARY
    assert not activator.is_readable
    assert owner.recv().dropped == waiting - 1  # room was for one
    owner.name_release(NAME)
    assert activator.recv().src_id == sender.id
    with refused(EAGAIN):
        activator.recv()


def test_the_number_of_messages_is_limited_for_moved_ones_too(trio: tuple[Client, Client, Client]) -> None:
    activator, owner, sender = trio
    for _ in range(5):
        sender.send(name=NAME)
    send_empty(sender, owner, MAX_QUEUED)
    with refused(ENOBUFS):
        send_empty(sender, owner, 1)
    owner.name_acquire(NAME, Name.REPLACE_EXISTING)
    assert owner.recv().dropped == 5
    assert [message.dropped for message in owner.drain()] == [0] * (MAX_QUEUED - 1)
    assert not activator.is_readable


# Notifications


def test_notifications_have_a_quota_of_their_own(world: World) -> None:
    reader, other = world.connect(), world.connect()
    reader.add_match_id(ItemType.ID_ADD)
    reader.add_match_id(ItemType.ID_REMOVE)
    for _ in range(MAX_QUEUED // 2):
        world.connect().close()
    other.send(reader)
    other.close()
    world.connect().close()
    first = reader.command(layout.RECV)
    assert first["return_flags"] == DROPPED_MSGS
    assert first["dropped_msgs"] == 3
    reader.take_message(first, reader.task, keep=False)
    rest = [reader.recv() for _ in range(MAX_QUEUED)]
    assert [message.dropped for message in rest] == [0] * MAX_QUEUED
    assert [message.is_notification for message in rest] == [True] * 255 + [False]
    with refused(EAGAIN):
        reader.recv()


def test_a_queue_that_lost_everything_is_readable_until_it_said_so(world: World) -> None:
    reader = world.connect(pool_size=layout.PAGE)
    reader.add_match_empty()
    world.connect().broadcast()
    assert reader.poll() & layout.POLLIN
    with refused(EAGAIN) as refusal:
        reader.recv()
    assert (refusal.answer["dropped_msgs"], refusal.answer["return_flags"]) == (1, DROPPED_MSGS)
    assert not reader.is_readable
    with refused(EAGAIN) as refusal:
        reader.recv()
    assert (refusal.answer["dropped_msgs"], refusal.answer["return_flags"]) == (0, 0)


def test_a_timeout_is_told_even_where_nothing_else_fits(world: World) -> None:
    requester, replier = world.connect(), world.connect()
    requester.send_small(replier, cookie=7, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    requester.add_match_id(ItemType.ID_ADD)
    requester.add_match_id(ItemType.ID_REMOVE)
    for _ in range(MAX_QUEUED // 2 + 1):
        world.connect().close()
    world.advance(100)
    received = requester.drain()
    assert len(received) == MAX_QUEUED + 1
    assert (received[-1].kind, received[-1].cookie_reply) == (ItemType.REPLY_TIMEOUT, 7)


# Memory


def test_a_large_message_leaves_room_for_small_ones_of_the_same_user(world: World) -> None:
    first, second, receiver = (world.connect() for _ in range(3))
    large = first.vec(bytes(MAX_VEC_PAYLOAD))
    first.send_items(large, dst=receiver)
    with refused(ENOBUFS):
        first.send_items(large, dst=receiver)
    second.send(receiver)
    assert [message.src_id for message in receiver.drain()] == [first.id, second.id]


def test_users_who_come_later_get_a_third_of_what_is_left(world: World) -> None:
    receiver = world.connect(attach_recv=0)
    receiver.name_acquire("foo.bar")
    world.connect_holder("foo.bar", access(WORLD, TALK))
    counts = []
    for uid in range(2000, 2006):
        sender = world.connect(world.task(uid))
        send = partial(sender.send_items, sender.vec(bytes(32 * 1024 - 64 - 32)), dst=receiver)
        counts.append(repeat_until(ENOBUFS, send))
    assert counts == [85, 57, 38, 25, 17, 11]


def test_who_is_privileged_has_the_same_quota(world: World) -> None:
    receiver = world.connect()
    assert fill(world.connect(world.task(0, privileged=True)), receiver) == STANDARD_FITS


def test_what_was_received_is_not_counted(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    for _ in range(3):
        assert fill(sender, receiver) == STANDARD_FITS
        for _ in range(STANDARD_FITS):
            receiver.recv(keep=True)


def test_all_that_is_charged_is_given_back(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    empty = receiver.pool.busy
    assert fill(sender, receiver) == STANDARD_FITS
    receiver.drain()
    assert receiver.pool.busy == empty
    assert POOL_SIZE - empty > 0
    assert fill(sender, receiver) == STANDARD_FITS


# Requests


def test_a_connection_has_128_requests_outstanding(world: World) -> None:
    requester = world.connect()
    peers = [world.connect() for _ in range(9)]
    for peer in peers[:8]:
        for cookie in range(16):
            requester.send(peer, cookie=cookie, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    with refused(EMLINK):
        requester.send(peers[8], flags=Msg.EXPECT_REPLY, timeout_ms=100)
    assert not peers[8].is_readable
    requester.send(peers[8])


def test_a_request_is_outstanding_until_it_is_over_and_received(world: World) -> None:
    requester, peer, other = (world.connect() for _ in range(3))
    for cookie in range(128):
        requester.send_small(peer, cookie=cookie, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    world.advance(100)
    assert [message.cookie_reply for message in requester.drain()] == list(range(128))
    with refused(EMLINK):
        requester.send_small(other, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    peer.recv()
    requester.send_small(other, flags=Msg.EXPECT_REPLY, timeout_ms=100)


# Count


def test_256_messages_of_one_user_wait(world: World) -> None:
    receiver, sender = world.connect(), world.connect()
    for _ in range(2):
        send_empty(sender, receiver, MAX_QUEUED)
        with refused(ENOBUFS):
            send_empty(sender, receiver, 1)
        with refused(ENOBUFS):
            sender.send(receiver)
        assert len(receiver.drain()) == MAX_QUEUED


def test_one_users_messages_do_not_count_for_another(world: World) -> None:
    receiver, sender = world.connect(), world.connect()
    receiver.name_acquire("foo.bar")
    world.connect_holder("foo.bar", access(WORLD, TALK))
    send_empty(sender, receiver, MAX_QUEUED)
    world.connect(world.task(NOBODY)).send(receiver)
    assert len(receiver.drain()) == MAX_QUEUED + 1
