"""Policy between users: who owns what, who talks to whom, and whose broadcasts reach whom.

The bus belongs to uid 1000; 65534 and 65533 are strangers. Credentials are those of whoever opened a handle,
so where a program would drop its privileges here another task opens one, and a handle that is passed on stays
what it was.
"""

from __future__ import annotations

from errno import EINVAL, ENOTUNIQ, EOPNOTSUPP, EPERM, ETIMEDOUT

import pytest
from support.kdbus import NOBODY, OWNER_UID, Client, Hello, Msg, Task, World, layout, refused
from support.kdbus.layout import DST_BROADCAST, GROUP, OWN, SEE, TALK, USER, WORLD, access

from kdbus_core.metadata import Creds

from .encounters import exchange_broadcasts, send_by_id

A, B, C = "com.example.a", "com.example.b", "com.example.c"
OTHER = 65533
NOT_DELIVERED = (ETIMEDOUT, EPERM)
OWNER_HEARS = (0, ETIMEDOUT)
BOTH_HEAR = (0, 0)
NOBODY_HEARS = (ETIMEDOUT, ETIMEDOUT)


@pytest.fixture
def nobody(world: World) -> Task:
    return world.task(NOBODY)


@pytest.fixture
def other(world: World) -> Task:
    return world.task(OTHER)


@pytest.fixture
def conn(world: World) -> Client:
    """A connection of the bus owner."""
    return world.connect()


# Before any policy


def test_without_policy_a_stranger_owns_nothing(world: World, nobody: Task) -> None:
    with refused(EPERM):
        world.connect(nobody).name_acquire(A)


def test_without_policy_a_stranger_sends_to_nobody(conn: Client, nobody: Task) -> None:
    assert send_by_id(conn, nobody) == NOT_DELIVERED


def test_a_broadcast_of_a_stranger_expects_no_reply_either(world: World, conn: Client, nobody: Task) -> None:
    conn.add_match_empty()
    with refused(ENOTUNIQ):
        world.connect(nobody).send(DST_BROADCAST, flags=Msg.EXPECT_REPLY, timeout_ms=5000)
    assert not conn.is_readable


def test_an_owner_hears_the_broadcasts_of_strangers_who_do_not_hear_his(conn: Client, nobody: Task) -> None:
    conn.add_match_empty()
    assert exchange_broadcasts(conn, nobody) == OWNER_HEARS


def test_those_of_one_user_hear_each_other(world: World, conn: Client, nobody: Task) -> None:
    assert exchange_broadcasts(conn, nobody, peer_task=world.task(NOBODY)) == BOTH_HEAR


def test_strangers_do_not_hear_each_other(conn: Client, nobody: Task, other: Task) -> None:
    assert exchange_broadcasts(conn, nobody, peer_task=other) == NOBODY_HEARS
    assert exchange_broadcasts(conn, other, peer_task=nobody) == NOBODY_HEARS


# Holders: who owns a name


@pytest.fixture
def holder(world: World) -> Client:
    """A policy holder for A that grants nothing."""
    return world.connect_holder(A)


def test_a_stranger_holds_no_policy(world: World, nobody: Task) -> None:
    with refused(EPERM):
        world.connect_holder(A, task=nobody)


def test_an_empty_policy_grants_nothing_to_strangers_and_takes_nothing_from_owners(
    world: World, conn: Client, holder: Client, nobody: Task
) -> None:
    second = world.connect()
    second.name_acquire(B)
    conn.name_acquire(A)
    conn.close()
    with refused(EPERM):
        world.connect(nobody).name_acquire(A)
    second.name_acquire(A)


def test_an_ordinary_connection_has_no_policy_to_update(world: World, nobody: Task, holder: Client) -> None:
    with refused(EOPNOTSUPP):
        world.connect(nobody).update_policy(A, access(WORLD, OWN))


@pytest.mark.parametrize(
    ("accesses", "may"),
    [
        pytest.param([access(WORLD, OWN)], True, id="everybody"),
        pytest.param([access(GROUP, OWN, NOBODY)], True, id="his group"),
        pytest.param([access(GROUP, OWN, 1)], False, id="another group"),
        pytest.param([access(USER, OWN, NOBODY)], True, id="he"),
        pytest.param([access(USER, OWN, 1)], False, id="another user"),
        pytest.param(
            [access(GROUP, SEE, NOBODY), access(USER, TALK, NOBODY), access(WORLD, TALK), access(WORLD, SEE)],
            False,
            id="less than owning",
        ),
        pytest.param([access(USER, OWN, uid) for uid in (1, 2, NOBODY, 3, 4)], True, id="he in the middle"),
    ],
)
def test_a_stranger_owns_what_is_granted(
    world: World, holder: Client, nobody: Task, accesses: list[bytes], *, may: bool
) -> None:
    holder.update_policy(A, *accesses)
    client = world.connect(nobody)
    if may:
        client.name_acquire(A)
        client.name_release(A)
        holder.update_policy(A)  # cleared
    with refused(EPERM):
        client.name_acquire(A)


def test_a_supplementary_group_counts_as_well(world: World, holder: Client) -> None:
    holder.update_policy(A, access(GROUP, OWN, 42))
    world.connect(world.task(NOBODY, groups=(7, 42))).name_acquire(A)
    with refused(EPERM):
        world.connect(world.task(NOBODY, groups=(7, 43))).name_acquire(A)


def test_of_several_ids_the_effective_ones_count(world: World, holder: Client) -> None:
    ids = Creds(1, 2, 3, 4, 5, 6, 7, 8)
    client = world.connect(world.task(2, creds=ids))
    for kind, id in ((USER, 1), (USER, 3), (USER, 4), (GROUP, 5), (GROUP, 7), (GROUP, 8)):
        holder.update_policy(A, access(kind, OWN, id))
        with refused(EPERM):
            client.name_acquire(A)
    for kind, id in ((USER, 2), (GROUP, 6)):
        holder.update_policy(A, access(kind, OWN, id))
        client.name_acquire(A)
        client.name_release(A)


def test_a_name_that_is_owned_stays_owned_when_its_policy_goes(
    world: World, holder: Client, nobody: Task
) -> None:
    client = world.connect(nobody)
    holder.update_policy(A, access(WORLD, OWN))
    client.name_acquire(A)
    holder.close()
    assert (client.id, A, 32) in client.list_names()


# Talking


@pytest.fixture
def service(world: World) -> Client:
    """The owner of B, a connection of the bus owner."""
    client = world.connect()
    client.name_acquire(B)
    return client


def delivered(sender: Client, receiver: Client, name: str) -> None:
    """A message to a name arrives."""
    sender.send(name=name, cookie=77)
    message = receiver.recv_poll(100)
    assert (message.src_id, message.cookie) == (sender.id, 77)


def test_an_owner_talks_to_everybody(world: World, service: Client) -> None:
    delivered(world.connect(), service, B)


def test_a_stranger_talks_to_nobody(world: World, service: Client, nobody: Task) -> None:
    stranger = world.connect(nobody)
    with refused(EPERM):
        stranger.send(name=B)
    with refused(EPERM):
        stranger.send(service)
    assert not service.is_readable


def test_those_of_one_user_talk_to_each_other(world: World, holder: Client, nobody: Task) -> None:
    holder.update_policy(C, access(USER, OWN, NOBODY))
    owner = world.connect(nobody)
    owner.name_acquire(C)
    delivered(world.connect(world.task(NOBODY)), owner, C)


@pytest.mark.parametrize(
    ("accesses", "may"),
    [
        pytest.param([access(USER, TALK, NOBODY)], True, id="he"),
        pytest.param([access(GROUP, TALK, NOBODY)], True, id="his group"),
        pytest.param([access(WORLD, TALK)], True, id="everybody"),
        pytest.param([access(WORLD, OWN)], True, id="who owns talks"),
        pytest.param([access(WORLD, SEE)], False, id="who sees does not talk"),
        pytest.param(
            [
                access(USER, OWN, 0),
                access(USER, TALK, 1),
                access(USER, SEE, NOBODY),
                access(USER, TALK, 3),
                access(USER, TALK, 4),
            ],
            False,
            id="others",
        ),
    ],
)
def test_a_stranger_talks_to_whom_he_may(
    world: World, holder: Client, service: Client, nobody: Task, accesses: list[bytes], *, may: bool
) -> None:
    holder.update_policy(B, *accesses)
    stranger = world.connect(nobody)
    if may:
        delivered(stranger, service, B)
    else:
        with refused(EPERM):
            stranger.send(name=B)
        assert not service.is_readable


def test_one_name_opens_the_whole_connection(
    world: World, holder: Client, service: Client, nobody: Task
) -> None:
    service.name_acquire(C)
    holder.update_policy(B, access(WORLD, TALK))
    delivered(world.connect(nobody), service, C)
    assert send_by_id(service, nobody) == (0, 0)


def test_a_name_that_is_only_waited_for_opens_nothing(
    world: World, holder: Client, service: Client, nobody: Task
) -> None:
    waiting = world.connect()
    waiting.name_acquire(B, 4)
    holder.update_policy(B, access(WORLD, TALK))
    assert send_by_id(waiting, nobody) == NOT_DELIVERED


def test_talking_one_way_is_not_talking_the_other_way(
    world: World, holder: Client, nobody: Task, other: Task
) -> None:
    holder.update_policy(C, access(USER, OWN, NOBODY), access(WORLD, TALK))
    owner, client = world.connect(nobody), world.connect(other)
    owner.name_acquire(C)
    delivered(client, owner, C)
    with refused(EPERM):
        owner.send(client)


def test_the_real_user_of_the_receiver_is_who_its_own_user_talks_to(world: World) -> None:
    receiver = world.connect(world.task(7, creds=Creds(5, 7, 7, 7, 7, 7, 7, 7)))
    assert send_by_id(receiver, world.task(5)) == (0, 0)
    assert send_by_id(receiver, world.task(7)) == NOT_DELIVERED


@pytest.mark.parametrize(
    ("uid", "privileged", "may"), [(OWNER_UID, False, True), (0, True, True), (0, False, False)]
)
def test_an_owner_is_the_user_who_made_the_bus_or_privileged(
    world: World, conn: Client, nobody: Task, uid: int, *, privileged: bool, may: bool
) -> None:
    stranger = world.connect(nobody)
    assert send_by_id(stranger, world.task(uid, privileged=privileged)) == ((0, 0) if may else NOT_DELIVERED)


def test_a_policy_that_is_cleared_through_an_inherited_handle_is_cleared(
    world: World, holder: Client, service: Client, nobody: Task
) -> None:
    holder.update_policy(B, access(WORLD, TALK))
    stranger = world.connect(nobody)
    delivered(stranger, service, B)
    holder.share(nobody).update_policy(B)
    with refused(EPERM):
        stranger.send(name=B)
    assert not service.is_readable


def test_a_policy_goes_with_the_last_reference_to_its_holder(
    world: World, conn: Client, nobody: Task
) -> None:
    second = world.connect_holder(C, access(WORLD, OWN))
    conn.name_acquire(C)
    inherited = second.share(nobody)
    second.close()
    stranger = world.connect(nobody)
    delivered(stranger, conn, C)
    inherited.close()
    with refused(EPERM):
        stranger.send(name=C)
    assert not conn.is_readable


def test_a_handle_that_is_passed_on_keeps_the_rights_of_who_opened_it(
    world: World, conn: Client, service: Client, nobody: Task
) -> None:
    conn.share(nobody).send(service)
    service.recv()
    with refused(EPERM):
        world.connect(nobody).share(world.owner).send(service)
    with refused(EPERM):
        world.open(task=nobody).share(world.owner).hello(flags=Hello.MONITOR)


def test_ids_in_a_policy_are_those_of_whoever_uploads_it(holder: Client) -> None:
    for kind in (USER, GROUP):
        with refused(EINVAL):  # 2^32-1 is no id anywhere
            holder.update_policy(A, access(kind, OWN, layout.UNSET_ID))
