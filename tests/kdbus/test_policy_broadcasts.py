"""Broadcasts between users, once there are names and policies: the receiver's right to talk decides.

The bus belongs to uid 1000; 65534 and 65533 are strangers. What is heard without any policy is among the
tests of policy between users.
"""

from __future__ import annotations

from errno import EAGAIN, EPERM, ETIMEDOUT

import pytest
from support.kdbus import NOBODY, OWNER_UID, Task, World, refused
from support.kdbus.layout import OWN, TALK, USER, WORLD, access

from .encounters import exchange_broadcasts, send_by_id

OTHER = 65533
NOT_DELIVERED = (ETIMEDOUT, EPERM)
OWNER_HEARS = (0, ETIMEDOUT)
BOTH_HEAR = (0, 0)
NOBODY_HEARS = (ETIMEDOUT, ETIMEDOUT)
BROADCAST_A, BROADCAST_B = "com.example.broadcastA", "com.example.broadcastB"


@pytest.fixture
def nobody(world: World) -> Task:
    return world.task(NOBODY)


@pytest.fixture
def other(world: World) -> Task:
    return world.task(OTHER)


class Scene:
    """Two owners of a name each, with empty matches, and the holders of their policies."""

    def __init__(self, world: World) -> None:
        self.holder_a, self.holder_b = (
            world.connect_holder(name, access(USER, OWN, OWNER_UID)) for name in (BROADCAST_A, BROADCAST_B)
        )
        self.owner_a, self.owner_b = world.connect(), world.connect()
        self.owners = (self.owner_a, self.owner_b)
        for owner, name in zip(self.owners, (BROADCAST_A, BROADCAST_B), strict=True):
            owner.name_acquire(name)
            owner.add_match_empty()


@pytest.fixture
def scene(world: World) -> Scene:
    return Scene(world)


def test_a_name_without_policy_opens_nothing(world: World, nobody: Task, other: Task) -> None:
    owner = world.connect()
    owner.name_acquire(BROADCAST_A)
    assert send_by_id(owner, nobody) == NOT_DELIVERED
    owner.add_match_empty()
    assert exchange_broadcasts(owner, nobody) == OWNER_HEARS
    assert exchange_broadcasts(owner, nobody, peer_task=world.task(NOBODY)) == BOTH_HEAR
    assert exchange_broadcasts(owner, nobody, peer_task=other) == NOBODY_HEARS


def test_owners_hear_each_other_and_themselves(scene: Scene) -> None:
    scene.owner_a.broadcast(1)
    for owner in scene.owners:
        (message,) = owner.drain()
        assert (message.cookie, message.src_id) == (1, scene.owner_a.id)


def test_a_strangers_broadcast_reaches_his_own_kind_and_owners_if_they_listen(
    world: World, scene: Scene, nobody: Task
) -> None:
    scene.owner_b.name_release(BROADCAST_B)
    scene.holder_b.update_policy(BROADCAST_B, access(WORLD, OWN))
    sender, listening, not_listening = (world.connect(world.task(NOBODY)) for _ in range(3))
    sender.name_acquire(BROADCAST_B)
    listening.add_match_empty()
    sender.broadcast(2)
    for client in (listening, *scene.owners):
        (message,) = client.drain()
        assert (message.cookie, message.src_id) == (2, sender.id)
    with refused(ETIMEDOUT):
        not_listening.recv_poll(100)


def test_owners_hear_what_strangers_do_not_hear_of_each_other(
    scene: Scene, nobody: Task, other: Task
) -> None:
    assert exchange_broadcasts(scene.owner_a, nobody, peer_task=other) == NOBODY_HEARS
    for owner in scene.owners:
        for _ in range(2):
            owner.recv()
        with refused(EAGAIN):
            owner.recv()


def test_who_may_talk_to_a_name_hears_the_broadcasts_of_its_owner(scene: Scene, nobody: Task) -> None:
    scene.holder_a.update_policy(BROADCAST_A, access(WORLD, TALK))
    assert exchange_broadcasts(scene.owner_a, nobody) == BOTH_HEAR


def test_the_receivers_right_to_talk_counts_and_not_the_senders(
    world: World, scene: Scene, nobody: Task, other: Task
) -> None:
    scene.owner_b.name_release(BROADCAST_B)
    scene.holder_b.update_policy(BROADCAST_B, access(USER, OWN, NOBODY), access(USER, TALK, OTHER))
    named, nameless = world.connect(nobody), world.connect(other)
    named.name_acquire(BROADCAST_B)
    for client in (named, nameless):
        client.add_match_empty()
    named.broadcast(1)
    nameless.broadcast(2)
    assert [message.cookie for message in nameless.drain()] == [1, 2]
    assert [message.cookie for message in named.drain()] == [1]


def test_an_owner_hears_a_stranger_with_a_name_whether_he_has_one_himself_or_not(
    world: World, scene: Scene, nobody: Task
) -> None:
    scene.owner_b.name_release(BROADCAST_B)
    scene.holder_b.update_policy(BROADCAST_B, access(WORLD, OWN))
    stranger = world.connect(nobody)
    stranger.name_acquire(BROADCAST_B)
    stranger.broadcast(1)
    scene.owner_a.name_release(BROADCAST_A)
    stranger.broadcast(2)
    assert [message.cookie for message in scene.owner_a.drain()] == [1, 2]
