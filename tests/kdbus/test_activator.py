"""Activators: they stand in for a name until somebody owns it, and hand over what came meanwhile."""

from __future__ import annotations

from errno import EAGAIN, EBADSLT, EEXIST, ENXIO, EOPNOTSUPP, EPERM, EPIPE, ESRCH, ETIMEDOUT

import pytest
from support.kdbus import NOBODY, OWNER_UID, Client, ItemType, List, Msg, Name, World, layout, refused
from support.kdbus.layout import OWN, TALK, USER, WORLD, access

NAME, PRIVATE = "foo.test.activator", "foo.priv.activator"
COOKIE = 0xDEADBEEF
VISIBLE = Name.ACTIVATOR | Name.PRIMARY
SHADOWED = Name.ACTIVATOR | Name.IN_QUEUE
REPLACE = Name.REPLACE_EXISTING


@pytest.fixture
def activator(world: World) -> Client:
    return world.connect_activator(NAME, access(USER, OWN, OWNER_UID), access(WORLD, TALK))


@pytest.fixture
def conn(world: World) -> Client:
    client = world.connect()
    client.add_match_empty()
    return client


# Standing in


def test_an_activator_hands_over_what_was_sent_to_its_name(
    world: World, activator: Client, conn: Client
) -> None:
    assert conn.list_names() == {(activator.id, NAME, VISIBLE)}
    conn.send(name=NAME, cookie=COOKIE)
    assert (activator.is_readable, conn.is_readable) == (True, False)
    assert conn.list_names(List.NAMES) == set()
    assert conn.name_acquire(NAME, REPLACE) == Name.PRIMARY | Name.ACQUIRED
    assert conn.list_names(List.NAMES) == {(conn.id, NAME, Name.PRIMARY)}
    assert conn.list_names() == {(conn.id, NAME, Name.PRIMARY), (activator.id, NAME, SHADOWED)}
    assert (activator.is_readable, conn.is_readable) == (False, True)
    message = conn.recv()
    assert (message.cookie, message.src_id, message.dst_id) == (COOKIE, conn.id, 0)
    assert message.dropped == 0
    with refused(EAGAIN):
        activator.recv()


def test_a_name_with_only_an_activator_is_taken_without_replacing(activator: Client, conn: Client) -> None:
    assert conn.name_acquire(NAME) == Name.PRIMARY | Name.ACQUIRED


def test_the_activator_has_the_name_again_when_its_owner_goes(
    world: World, activator: Client, conn: Client
) -> None:
    owner = world.connect()
    owner.name_acquire(NAME)
    for cookie in (1, 2, 3):
        conn.send_small(name=NAME, cookie=cookie)
    assert owner.recv().cookie == 1
    owner.close()
    assert conn.list_names() == {(activator.id, NAME, VISIBLE)}
    conn.send_small(name=NAME, cookie=4)
    assert [message.cookie for message in activator.drain()] == [2, 3, 4]


def test_only_what_was_sent_to_the_name_moves(world: World, activator: Client, conn: Client) -> None:
    owner, sender = world.connect(), world.connect()
    other = world.connect_activator("foo.test.other")
    sender.send_small(name="foo.test.other", cookie=1)
    sender.send_small(name=NAME, cookie=2)
    owner.name_acquire(NAME)
    sender.send_small(owner, cookie=3)
    sender.send_small(name=NAME, cookie=4)
    owner.name_release(NAME)
    assert [message.cookie for message in owner.drain()] == [3]
    assert [message.cookie for message in activator.drain()] == [2, 4]
    assert [message.cookie for message in other.drain()] == [1]


def test_changes_between_an_activator_and_owners_are_told_with_their_flags(
    world: World, conn: Client
) -> None:
    for kind in (ItemType.NAME_ADD, ItemType.NAME_CHANGE, ItemType.NAME_REMOVE):
        conn.add_match_name(kind, NAME)
    activator = world.connect_activator(NAME)
    owner = world.connect()
    owner.name_acquire(NAME)
    owner.name_release(NAME)
    activator.close()
    changes = [(*notice.change, *notice.change_flags) for notice in conn.drain()]
    assert changes == [
        (ItemType.NAME_ADD, NAME, 0, activator.id, 0, VISIBLE),
        (ItemType.NAME_CHANGE, NAME, activator.id, owner.id, VISIBLE, Name.PRIMARY),
        (ItemType.NAME_CHANGE, NAME, owner.id, activator.id, Name.PRIMARY, VISIBLE),
        (ItemType.NAME_REMOVE, NAME, activator.id, 0, VISIBLE, 0),
    ]


def test_an_activator_of_an_owned_name_comes_and_goes_silently(world: World, conn: Client) -> None:
    owner = world.connect()
    owner.name_acquire(NAME)
    for kind in (ItemType.NAME_ADD, ItemType.NAME_CHANGE, ItemType.NAME_REMOVE):
        conn.add_match_name(kind)
    activator = world.connect_activator(NAME)
    assert conn.list_names(List.ACTIVATORS) == {(activator.id, NAME, SHADOWED)}
    activator.close()
    with refused(EAGAIN):
        conn.recv()


def test_a_name_has_one_activator(world: World, activator: Client) -> None:
    with refused(EEXIST):
        world.connect_activator(NAME)


def test_an_activator_may_read_its_messages_itself(activator: Client, conn: Client) -> None:
    conn.send(name=NAME, cookie=COOKIE)
    assert activator.recv().cookie == COOKIE
    conn.name_acquire(NAME)
    with refused(EAGAIN):
        conn.recv()


def test_without_activator_and_owner_there_is_nobody(activator: Client, conn: Client) -> None:
    activator.close()
    with refused(ESRCH):
        conn.send(name=NAME)


def test_an_activator_does_nothing_but_wait(activator: Client, conn: Client) -> None:
    for command in (layout.SEND, layout.BYEBYE, layout.NAME_ACQUIRE, layout.MATCH_ADD, layout.MSG_CANCEL):
        with refused(EOPNOTSUPP):
            activator.command(command)
    conn.broadcast()
    with refused(EAGAIN):
        activator.recv()


# Calls


def test_a_call_to_an_activator_is_answered_by_whoever_takes_the_name(
    world: World, activator: Client, conn: Client
) -> None:
    call = conn.call(name=NAME, cookie=COOKIE)
    conn.send_small(name=NAME, cookie=COOKIE + 1, flags=Msg.EXPECT_REPLY, timeout_ms=5000)
    assert activator.is_readable
    service = world.connect()
    service.name_acquire(NAME)
    assert [message.cookie for message in service.drain()] == [COOKIE, COOKIE + 1]
    for cookie in (COOKIE, COOKIE + 1):
        service.reply(conn, cookie)
        with refused(EBADSLT):
            service.reply(conn, cookie)
    assert call.result().src_id == service.id
    assert conn.recv().cookie_reply == COOKIE + 1


def test_a_call_to_an_activator_ends_when_that_goes(activator: Client, conn: Client) -> None:
    call = conn.call(name=NAME, cookie=COOKIE)
    activator.close()
    with refused(EPIPE):
        call.result()
    with refused(EAGAIN):
        conn.recv()


def test_who_takes_a_name_does_not_owe_answers_to_himself(
    world: World, activator: Client, conn: Client
) -> None:
    conn.send_small(name=NAME, cookie=COOKIE, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    conn.name_acquire(NAME)
    assert conn.recv().cookie == COOKIE
    with refused(EBADSLT):
        conn.reply(conn, COOKIE)
    world.advance(100)
    (notice,) = conn.drain()
    assert (notice.kind, notice.cookie_reply) == (ItemType.REPLY_TIMEOUT, COOKIE)


def test_an_owner_who_gives_a_name_back_owes_no_more_answers_to_what_was_sent_to_it(
    world: World, activator: Client, conn: Client
) -> None:
    owner = world.connect()
    owner.name_acquire(NAME)
    conn.send_small(name=NAME, cookie=1, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    conn.send_small(owner, cookie=2, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    owner.name_release(NAME)
    with refused(EBADSLT):
        owner.reply(conn, 1)
    owner.reply(conn, 2)
    assert conn.recv().cookie_reply == 2
    activator.close()
    (notice,) = conn.drain()
    assert (notice.kind, notice.cookie_reply) == (ItemType.REPLY_DEAD, 1)
    assert [message.cookie for message in owner.drain()] == [2]


def test_a_request_that_does_not_fit_the_new_owner_times_out(
    world: World, activator: Client, conn: Client
) -> None:
    call = conn.call(name=NAME, cookie=COOKIE, timeout_ms=100)
    conn.send(name=NAME, cookie=COOKIE + 1, flags=Msg.EXPECT_REPLY, timeout_ms=200)
    tiny = world.connect(pool_size=layout.PAGE)
    tiny.name_acquire(NAME)
    with refused(EAGAIN) as refusal:
        tiny.recv()
    assert refusal.answer["dropped_msgs"] == 2
    assert not call.is_done
    world.advance(200)
    with refused(ETIMEDOUT):
        call.result()
    assert [(notice.kind, notice.cookie_reply) for notice in conn.drain()] == [
        (ItemType.REPLY_TIMEOUT, COOKIE + 1)
    ]


def test_a_message_with_descriptors_is_lost_on_an_owner_that_takes_none(
    world: World, activator: Client, conn: Client
) -> None:
    to_name = layout.string(ItemType.DST_NAME, NAME)
    conn.send_items(to_name, layout.fds([conn.task.open_null()]), cookie=1)
    conn.send_items(to_name, cookie=2)
    owner = world.connect(accept_fd=False)
    owner.name_acquire(NAME)
    message = owner.recv()
    assert (message.cookie, message.dropped) == (2, 1)


def test_a_message_that_was_only_seen_moves_and_its_slice_stays(
    world: World, activator: Client, conn: Client
) -> None:
    conn.send_small(name=NAME, cookie=COOKIE)
    seen = activator.peek()
    conn.name_acquire(NAME)
    assert conn.recv().cookie == COOKIE
    assert activator.read_pool(seen.offset, seen.msg_size) == seen.raw
    activator.free(seen.offset)


# Policy


class Scene:
    """An activator whose name only the bus owner may use; a service and a client of his, and a stranger."""

    def __init__(self, world: World) -> None:
        self.activator = world.connect_activator(
            PRIVATE, access(USER, OWN, OWNER_UID), access(USER, TALK, OWNER_UID)
        )
        self.service, self.client = world.connect(), world.connect()
        self.stranger = world.connect(world.task(NOBODY))


@pytest.fixture
def scene(world: World) -> Scene:
    return Scene(world)


def test_a_stranger_starts_nothing(scene: Scene) -> None:
    with refused(ENXIO):
        scene.stranger.send(scene.activator)
    with refused(EPERM):
        scene.stranger.send(name=PRIVATE)
    with refused(ETIMEDOUT):
        scene.activator.recv_poll(100)


def test_a_message_to_a_name_one_is_about_to_own_waits_for_oneself(scene: Scene) -> None:
    scene.service.send(name=PRIVATE, cookie=1)
    assert scene.activator.is_readable
    with refused(EPERM):
        scene.stranger.name_acquire(PRIVATE, REPLACE)
    scene.service.name_acquire(PRIVATE, REPLACE)
    message = scene.service.recv_poll(100)
    assert (message.cookie, message.src_id) == (1, scene.service.id)


def test_an_activators_policy_is_for_the_owner_of_its_name_as_well(scene: Scene) -> None:
    scene.service.name_acquire(PRIVATE, REPLACE)
    with refused(EPERM):
        scene.stranger.send(name=PRIVATE)
    with refused(ETIMEDOUT):
        scene.service.recv_poll(100)
    scene.client.send(name=PRIVATE, cookie=2)
    assert scene.service.recv_poll(100).cookie == 2


def test_an_activators_policy_goes_with_it(world: World, scene: Scene) -> None:
    scene.service.name_acquire(PRIVATE, REPLACE)
    scene.activator.close()
    with refused(EPERM):
        scene.stranger.send(name=PRIVATE)
    with refused(ETIMEDOUT):
        scene.service.recv_poll(100)
    scene.client.send(name=PRIVATE, cookie=3)
    assert scene.service.recv_poll(100).cookie == 3

    world.connect_holder(PRIVATE, access(WORLD, TALK))
    scene.stranger.send(name=PRIVATE, cookie=4)
    assert scene.service.recv_poll(100).cookie == 4
    with refused(EPERM):
        scene.stranger.name_acquire(PRIVATE, REPLACE)


def test_an_activators_policy_opens_the_activator_and_not_another_connection(
    world: World, activator: Client
) -> None:
    stranger, service = world.connect(world.task(NOBODY)), world.connect()
    stranger.send_small(name=NAME, cookie=1)
    with refused(EPERM):
        stranger.send_small(service)
    service.name_acquire(NAME)
    stranger.send_small(service, cookie=2)
    assert [message.cookie for message in service.drain()] == [1, 2]
