"""Who answers what was asked of a name that has gone from an activator to an owner, or back."""

from __future__ import annotations

from errno import EBADSLT, EPIPE, ETIMEDOUT

import pytest
from support.kdbus import NOBODY, Client, ItemType, Msg, Name, World, refused
from support.kdbus.layout import TALK, USER, WORLD, access

NAME = "foo.test.activator"
OTHER_NAME = "foo.test.other"
EXPECT_REPLY = Msg.EXPECT_REPLY
Cast = tuple[Client, Client, Client]


@pytest.fixture
def cast(world: World) -> Cast:
    """An activator, a service that takes over, and a client; each with a task of its own."""
    activator = world.connect_activator(NAME, access(WORLD, TALK), task=world.task())
    return activator, world.connect(world.task()), world.connect(world.task())


def cookies(client: Client) -> list[int]:
    return [message.cookie for message in client.drain()]


def ask(client: Client, cookie: int, *, name: str = NAME, timeout_ms: int = 100) -> None:
    client.send_small(name=name, cookie=cookie, flags=EXPECT_REPLY, timeout_ms=timeout_ms)


# Who answers


def test_the_new_owner_answers_what_was_asked_of_the_activator(cast: Cast) -> None:
    activator, service, client = cast
    ask(client, 5)
    service.name_acquire(NAME)
    assert service.recv().cookie == 5
    service.reply(client, 5)
    reply = client.recv()
    assert (reply.src_id, reply.cookie_reply) == (service.id, 5)
    with refused(EBADSLT):
        service.reply(client, 5)
    activator.close()
    assert not client.is_readable


def test_the_new_owner_answers_a_synchronous_call(cast: Cast) -> None:
    _, service, client = cast
    call = client.call(name=NAME, cookie=5)
    service.name_acquire(NAME)
    assert service.recv().cookie == 5
    assert not call.is_done
    service.reply(client, 5)
    assert call.result().src_id == service.id


def test_a_call_that_moved_can_time_out(world: World, cast: Cast) -> None:
    _, service, client = cast
    call = client.call(name=NAME, cookie=5, timeout_ms=100)
    service.name_acquire(NAME)
    world.advance(100)
    with refused(ETIMEDOUT):
        call.result()
    with refused(EBADSLT):
        service.reply(client, 5)
    service.drain()


def test_the_end_of_the_new_owner_without_activator_is_the_end_of_the_request(cast: Cast) -> None:
    activator, service, client = cast
    ask(client, 5)
    call = client.call(name=NAME, cookie=6)
    service.name_acquire(NAME)
    activator.close()
    assert not client.is_readable
    service.close()
    assert [message.kind for message in client.drain()] == [ItemType.REPLY_DEAD]
    with refused(EPIPE):
        call.result()


def test_the_duty_goes_back_with_the_name(cast: Cast) -> None:
    activator, service, client = cast
    ask(client, 5)
    service.name_acquire(NAME)
    service.name_release(NAME)
    with refused(EBADSLT):
        service.reply(client, 5)
    service.name_acquire(NAME)
    service.reply(client, 5)
    assert client.recv().cookie_reply == 5
    assert cookies(service) == [5]
    assert not activator.is_readable


def test_a_service_that_dies_leaves_its_requests_to_the_activator(world: World, cast: Cast) -> None:
    """Those that came through the name; the next service may answer even what was read already."""
    activator, service, client = cast
    service.name_acquire(NAME)
    ask(client, 5)
    ask(client, 6)
    client.send_small(service, cookie=7, flags=EXPECT_REPLY, timeout_ms=100)
    assert service.recv().cookie == 5
    service.close()
    lost = client.recv()
    assert (lost.kind, lost.cookie_reply) == (ItemType.REPLY_DEAD, 7)
    heir = world.connect()
    heir.name_acquire(NAME)
    assert cookies(heir) == [6]
    for cookie in (6, 5):
        heir.reply(client, cookie)
    assert [message.cookie_reply for message in client.drain()] == [6, 5]
    assert not activator.is_readable


def test_what_was_asked_of_the_id_stays_with_the_connection(cast: Cast) -> None:
    _, service, client = cast
    service.name_acquire(NAME)
    client.send_small(service, cookie=5, flags=EXPECT_REPLY, timeout_ms=100)
    service.name_release(NAME)
    service.reply(client, 5)
    assert client.recv().cookie_reply == 5
    service.recv()


def test_between_two_owners_the_duty_stays(world: World, cast: Cast) -> None:
    _, service, client = cast
    other = world.connect()
    service.name_acquire(NAME, Name.ALLOW_REPLACEMENT)
    ask(client, 5)
    other.name_acquire(NAME, Name.REPLACE_EXISTING)
    with refused(EBADSLT):
        other.reply(client, 5)
    service.reply(client, 5)
    assert client.recv().cookie_reply == 5
    service.recv()


def test_duties_of_equal_cookies_keep_their_order(cast: Cast) -> None:
    """The newest of several requests with one cookie is answered first, wherever it was sent."""
    _, service, client = cast
    client.send_small(service, cookie=5, flags=EXPECT_REPLY, timeout_ms=100)
    ask(client, 5, timeout_ms=200)
    service.name_acquire(NAME)
    service.reply(client, 5)
    service.name_release(NAME)
    service.reply(client, 5)  # by id, so it has stayed
    with refused(EBADSLT):
        service.reply(client, 5)
    assert len(client.drain()) == 2
    assert cookies(service) == [5]


def test_requests_to_an_activator_count_until_they_are_read(cast: Cast) -> None:
    _, service, client = cast
    for cookie in range(1, 129):
        ask(client, cookie)
    assert client.connection.outstanding == 128
    service.name_acquire(NAME)
    assert client.connection.outstanding == 128
    for cookie in range(1, 129):
        service.reply(client, cookie, service.vec(b"done"))
    client.drain()
    assert client.connection.outstanding == 128
    service.drain()
    assert client.connection.outstanding == 0


def test_who_asks_itself_through_its_activator(cast: Cast) -> None:
    """The request moves; who may answer it does not, because it is one of the two involved."""
    activator, service, _ = cast
    ask(service, 5)
    service.name_acquire(NAME)
    assert service.recv().cookie == 5
    with refused(EBADSLT):
        service.reply(service, 5)
    activator.close()
    assert service.recv().kind == ItemType.REPLY_DEAD


def test_policy_is_not_asked_again_when_a_message_moves(world: World, cast: Cast) -> None:
    activator, service, _ = cast
    stranger = world.connect(world.task(NOBODY))
    ask(stranger, 5)
    activator.close()
    assert stranger.recv().kind == ItemType.REPLY_DEAD
    again = world.connect_activator(NAME, access(USER, TALK, NOBODY))
    ask(stranger, 6)
    service.name_acquire(NAME)
    again.close()
    assert service.recv().cookie == 6
    service.reply(stranger, 6)
    assert stranger.recv().cookie_reply == 6


def test_an_activator_that_goes_takes_its_queue_along(cast: Cast) -> None:
    activator, service, client = cast
    ask(client, 5)
    call = client.call(name=NAME, cookie=6)
    client.send_small(name=NAME, cookie=7)
    activator.close()
    assert [(m.kind, m.cookie_reply) for m in client.drain()] == [(ItemType.REPLY_DEAD, 5)]
    with refused(EPIPE):
        call.result()
    service.name_acquire(NAME)
    assert not service.is_readable
