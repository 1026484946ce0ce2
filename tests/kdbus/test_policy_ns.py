"""Policy in a crowd and across user namespaces: being root in a namespace of one's own is being nobody."""

from __future__ import annotations

from errno import EEXIST, EINVAL, ENOBUFS, EPERM, ETIMEDOUT, EXFULL
from random import Random

import pytest
from support.kdbus import NOBODY, OWNER_UID, Client, ItemType, Name, Refused, Task, World, refused
from support.kdbus.layout import GROUP, OWN, TALK, USER, WORLD, access

from kdbus_core.metadata import INITIAL_USER_NAMESPACE, Extent, UserNamespace

from .encounters import send_by_id

NAME = "foo.test.policy-test"
CROWD = 63
OWNED_BY_OWNER = access(USER, OWN, OWNER_UID)


def make_namespace(uid: int = NOBODY, owner: int = NOBODY) -> UserNamespace:
    """A user namespace in which that uid, and nobody else, is root."""
    only = (Extent(0, uid, 1),)
    return UserNamespace(INITIAL_USER_NAMESPACE, only, only, owner)


@pytest.fixture
def nobody(world: World) -> Task:
    return world.task(NOBODY)


@pytest.fixture
def conn(world: World) -> Client:
    """A connection of the bus owner with an empty match."""
    client = world.connect()
    client.add_match_empty()
    return client


@pytest.fixture
def holder(world: World) -> Client:
    return world.connect_holder(NAME, OWNED_BY_OWNER, access(WORLD, TALK))


@pytest.fixture
def service(conn: Client, holder: Client) -> Client:
    """The owner of the name, to whom everybody may talk."""
    conn.name_acquire(NAME)
    return conn


def test_without_policy_a_stranger_is_not_heard(conn: Client, nobody: Task) -> None:
    assert send_by_id(conn, nobody) == (ETIMEDOUT, EPERM)


def test_an_activator_for_a_name_whose_policy_is_held_is_refused(
    world: World, conn: Client, holder: Client
) -> None:
    for kind in (ItemType.ID_ADD, ItemType.ID_REMOVE):
        conn.add_match_id(kind)
    for kind in (ItemType.NAME_ADD, ItemType.NAME_REMOVE):
        conn.add_match_name(kind)
    with refused(EEXIST):
        world.connect_activator(NAME, OWNED_BY_OWNER, access(WORLD, TALK))
    assert not conn.is_readable  # nobody saw it come
    assert conn.list_names() == set()
    assert conn.name_acquire(NAME) & Name.PRIMARY


# A crowd


def send_one(client: Client) -> bool:
    """Send to the name; whether there was room for it."""
    try:
        client.send(name=NAME, cookie=client.id)
    except Refused as error:
        assert error.errno in (ENOBUFS, EXFULL)  # noqa: PT017 - either will do
        return False
    return True


def recv_one(client: Client, received: list[int]) -> None:
    if client.is_readable:
        message = client.recv()
        message.close_fds()
        received.append(message.cookie)


def test_a_crowd_that_takes_turns_with_its_receivers_is_heard(world: World, service: Client) -> None:
    crowd = [world.connect() for _ in range(CROWD)]
    received: list[int] = []
    for client in crowd:
        assert send_one(client)
        recv_one(service, received)
    assert received == [client.id for client in crowd]


def test_of_a_crowd_that_comes_at_once_as_many_are_heard_as_fit(world: World, service: Client) -> None:
    crowd = [world.connect() for _ in range(CROWD)]
    sent = [client.id for client in crowd if send_one(client)]
    assert len(sent) >= 16
    received: list[int] = []
    for _ in range(CROWD):
        recv_one(service, received)
    assert received == sent
    assert not service.is_readable


@pytest.mark.parametrize("seed", range(5))
def test_in_whatever_order_a_crowd_and_its_receivers_come_nothing_is_lost(
    world: World, service: Client, seed: int
) -> None:
    crowd = [world.connect(world.task(uid)) for uid in (OWNER_UID, NOBODY, 65533) for _ in range(CROWD // 3)]
    steps: list[Client | None] = [*crowd, *[None] * CROWD]
    Random(seed).shuffle(steps)
    sent: list[int] = []
    received: list[int] = []
    for step in steps:
        if step is None:
            recv_one(service, received)
        elif send_one(step):
            sent.append(step.id)
    received += [message.cookie for message in service.drain()]
    assert received == sent
    assert len(sent) >= 16


def test_everybody_lists_the_crowd(world: World, service: Client, nobody: Task) -> None:
    for _ in range(CROWD):
        world.connect()
    stranger = world.connect(nobody)
    connected = sorted(client.id for client in world.clients if client is not world.maker)
    for client in (service, stranger):
        assert client.list_ids() == connected
        assert client.list_names() == {(service.id, NAME, Name.PRIMARY)}


# Policy


def test_a_stranger_with_the_right_to_talk_is_heard_and_an_owner_needs_none(
    world: World, service: Client, nobody: Task
) -> None:
    assert send_by_id(service, nobody) == (0, 0)
    stranger = world.connect(nobody)
    service.send(stranger, cookie=5)
    assert stranger.recv_poll(100).cookie == 5


def test_rights_of_somebody_else_are_no_rights(
    world: World, service: Client, holder: Client, nobody: Task
) -> None:
    holder.update_policy(NAME, access(USER, TALK, OWNER_UID))
    for _ in range(CROWD):
        client = world.connect(nobody)
        with refused(EPERM):
            client.send(name=NAME)
        client.close()
    assert send_by_id(service, nobody) == (ETIMEDOUT, EPERM)


# User namespaces


def test_root_in_a_namespace_of_his_own_has_no_more_rights(
    world: World, service: Client, holder: Client
) -> None:
    root_inside = world.task(NOBODY, user_namespace=make_namespace())
    holder.update_policy(NAME, access(USER, TALK, OWNER_UID))
    client = world.connect(root_inside)
    with refused(EPERM):
        client.send(name=NAME)
    with refused(EPERM):
        client.name_acquire("foo.test.other")
    with refused(EPERM):
        world.connect_holder("foo.test.other", task=root_inside)
    with refused(ETIMEDOUT):
        service.recv_poll(100)


def test_a_policy_for_root_is_not_for_root_of_a_namespace(
    world: World, service: Client, holder: Client
) -> None:
    holder.update_policy(NAME, access(USER, TALK, 0), access(GROUP, TALK, 0))
    root_inside = world.task(NOBODY, user_namespace=make_namespace())
    assert send_by_id(service, root_inside) == (ETIMEDOUT, EPERM)
    assert send_by_id(service, world.task(0)) == (0, 0)
    holder.update_policy(NAME, access(USER, TALK, NOBODY))
    assert send_by_id(service, root_inside) == (0, 0)


def test_an_owner_in_a_namespace_says_who_in_the_ids_of_that(world: World, nobody: Task) -> None:
    ids = (Extent(0, OWNER_UID, 1), Extent(5, NOBODY, 1))
    inside = world.task(
        OWNER_UID, user_namespace=UserNamespace(INITIAL_USER_NAMESPACE, ids, ids, owner=OWNER_UID)
    )
    holder = world.connect_holder(NAME, task=inside)
    for kind in (USER, GROUP):
        with refused(EINVAL):  # there is no such id inside
            holder.update_policy(NAME, access(kind, OWN, NOBODY))
    for kind in (USER, GROUP):
        holder.update_policy(NAME, access(kind, OWN, 5))
        with refused(EPERM):
            world.connect(world.task(5)).name_acquire(NAME)
        client = world.connect(nobody)
        client.name_acquire(NAME)
        client.close()
