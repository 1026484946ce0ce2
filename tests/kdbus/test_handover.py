"""Names that go from an activator to an owner and back, and what waits for them and who answers it."""

from __future__ import annotations

from errno import EAGAIN, ENOBUFS, ENXIO

import pytest
from support.kdbus import NOBODY, Client, ItemType, Msg, Name, World, layout, refused
from support.kdbus.layout import TALK, WORLD, access, bloom_filter, fds, string

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


# There and back


def test_what_waits_goes_to_the_new_owner_in_order(cast: Cast) -> None:
    activator, service, client = cast
    for cookie, priority in enumerate([3, -5, 0, 9]):
        client.send_small(name=NAME, cookie=cookie, priority=priority)
    assert activator.poll() & layout.POLLIN
    service.name_acquire(NAME)
    assert not activator.is_readable
    assert service.recv(flags=layout.Recv.USE_PRIORITY, priority=0).cookie == 1
    messages = service.drain()
    assert [(m.cookie, m.priority, m.src_id, m.dst_id) for m in messages] == [
        (0, 3, client.id, 0),
        (2, 0, client.id, 0),
        (3, 9, client.id, 0),
    ]
    assert messages[0].text(ItemType.DST_NAME) == NAME


def test_what_was_moved_comes_after_what_waited_already(cast: Cast) -> None:
    _, service, client = cast
    client.send_small(name=NAME, cookie=1)
    client.send_small(service, cookie=2)
    service.name_acquire(NAME)
    client.send_small(name=NAME, cookie=3)
    assert cookies(service) == [2, 1, 3]


def test_a_queue_that_was_partly_read_goes_back(cast: Cast) -> None:
    activator, service, client = cast
    for cookie in range(6):
        client.send_small(name=NAME, cookie=cookie)
    service.name_acquire(NAME)
    assert [service.recv().cookie for _ in range(2)] == [0, 1]
    client.send_small(name=NAME, cookie=6)
    service.name_release(NAME)
    assert not service.is_readable
    assert activator.recv().cookie == 2  # what the activator takes nobody gets
    service.name_acquire(NAME)
    assert cookies(service) == [3, 4, 5, 6]
    assert not activator.is_readable


def test_what_was_sent_to_an_id_or_another_name_stays(cast: Cast) -> None:
    activator, service, client = cast
    service.name_acquire(NAME)
    service.name_acquire(OTHER_NAME)
    client.send_small(service, cookie=1)
    client.send_small(name=NAME, cookie=2)
    client.send_small(name=OTHER_NAME, cookie=3)
    client.send_small(service, name=NAME, cookie=4)  # to a name, with the id pinned
    service.name_release(NAME)
    assert cookies(service) == [1, 3]
    assert cookies(activator) == [2, 4]


def test_a_service_that_disconnects_gives_back_what_it_has_not_read(cast: Cast) -> None:
    activator, service, client = cast
    service.name_acquire(NAME)
    for cookie in range(3):
        client.send_small(name=NAME, cookie=cookie)
    service.recv()
    service.close()
    assert cookies(activator) == [1, 2]


def test_between_two_owners_nothing_is_moved(world: World, cast: Cast) -> None:
    activator, service, client = cast
    other = world.connect()
    service.name_acquire(NAME, Name.ALLOW_REPLACEMENT)
    client.send_small(name=NAME, cookie=1)
    other.name_acquire(NAME, Name.REPLACE_EXISTING)
    client.send_small(name=NAME, cookie=2)
    assert cookies(service) == [1]
    assert cookies(other) == [2]
    assert not activator.is_readable


def test_what_a_former_owner_kept_does_not_go_back(world: World, cast: Cast) -> None:
    """The messages of an owner that was replaced belong to it, even when the name returns."""
    activator, service, client = cast
    other = world.connect()
    service.name_acquire(NAME, Name.ALLOW_REPLACEMENT)
    client.send_small(name=NAME, cookie=1)
    other.name_acquire(NAME, Name.REPLACE_EXISTING)
    client.send_small(name=NAME, cookie=2)
    other.name_release(NAME)
    assert cookies(activator) == [2]
    assert cookies(service) == [1]


def test_names_are_told_apart(world: World, cast: Cast) -> None:
    activator, service, client = cast
    other = world.connect_activator(OTHER_NAME)
    client.send_small(name=NAME, cookie=1)
    client.send_small(name=OTHER_NAME, cookie=2)
    service.name_acquire(OTHER_NAME)
    assert cookies(service) == [2]
    assert cookies(activator) == [1]
    assert not other.is_readable


def test_a_name_that_is_made_again_is_another_one(world: World, cast: Cast) -> None:
    """An owner without activator keeps its messages; a later activator has no claim on them."""
    _, service, client = cast
    service.name_acquire(OTHER_NAME)
    client.send_small(name=OTHER_NAME, cookie=1)
    service.name_release(OTHER_NAME)
    late = world.connect_activator(OTHER_NAME)
    service.name_acquire(OTHER_NAME)
    service.name_release(OTHER_NAME)
    assert not late.is_readable
    assert cookies(service) == [1]


def test_an_activator_that_comes_later_gets_what_the_owner_leaves(world: World, cast: Cast) -> None:
    _, service, client = cast
    service.name_acquire(OTHER_NAME)
    late = world.connect_activator(OTHER_NAME)
    client.send_small(name=OTHER_NAME, cookie=1)
    service.name_release(OTHER_NAME)
    assert cookies(late) == [1]


def test_a_signal_to_a_name_goes_back_with_it(cast: Cast) -> None:
    activator, service, client = cast
    service.add_match_empty()
    service.name_acquire(NAME)
    to_name = string(ItemType.DST_NAME, NAME)
    client.send_items(to_name, bloom_filter(), cookie=1, flags=Msg.SIGNAL)
    client.signal(dst=service, cookie=2)
    service.name_release(NAME)
    assert cookies(service) == [2]
    assert cookies(activator) == [1]


def test_messages_are_moved_whole(cast: Cast) -> None:
    activator, service, client = cast
    null = client.task.open_null()
    client.send_items(
        string(ItemType.DST_NAME, NAME),
        client.vec(b"payload"),
        fds([null]),
        layout.memfd(client.task.open_memfd(b"contents"), 8),
        layout.vec_at(0, 5),
        cookie=7,
        priority=-3,
    )
    peeked = activator.peek()
    service.name_acquire(NAME)
    moved = service.recv()
    assert moved.payload == b"payload" + b"contents" + bytes(5)
    assert [fd >= 0 for fd in moved.fds] == [True]
    assert service.task.description(moved.fds[0]) is client.task.description(null)
    assert (moved.cookie, moved.priority, moved.kinds) == (7, -3, peeked.kinds)
    assert moved.timestamp == peeked.timestamp
    assert moved.creds == peeked.creds
    moved.close_fds()


def test_what_is_moved_tells_what_its_new_receiver_asks(world: World, cast: Cast) -> None:
    activator, _, client = cast
    service = world.connect(attach_recv=layout.Attach.TIMESTAMP)
    client.send_small(name=NAME)
    assert ItemType.CREDS in activator.peek().metadata_kinds
    service.name_acquire(NAME)
    assert service.recv().metadata_kinds == [ItemType.TIMESTAMP]


# PEEK


def test_a_message_that_was_looked_at_is_moved_and_its_slice_stays(cast: Cast) -> None:
    activator, service, client = cast
    client.send_small(name=NAME, cookie=1, payload=b"to look at")
    peeked = activator.peek()
    service.name_acquire(NAME)
    with refused(EAGAIN):
        activator.recv()
    assert activator.read_pool(peeked.offset, peeked.msg_size) == peeked.raw
    moved = service.recv()
    assert (moved.cookie, moved.payload) == (1, b"to look at")
    activator.free(peeked.offset)
    with refused(ENXIO):
        activator.free(peeked.offset)


def test_a_message_that_was_looked_at_at_both_ends(cast: Cast) -> None:
    activator, service, client = cast
    client.send_small(name=NAME, cookie=1)
    first = activator.peek()
    service.name_acquire(NAME)
    second = service.peek()
    service.name_release(NAME)
    third = activator.recv()
    assert {first.cookie, second.cookie, third.cookie} == {1}
    assert third.offset != first.offset  # the old slice is still the activator's
    activator.free(first.offset)
    service.free(second.offset)


def test_a_message_that_was_not_looked_at_leaves_no_slice(cast: Cast) -> None:
    activator, service, client = cast
    before = activator.pool.busy
    client.send(name=NAME)
    assert activator.pool.busy > before
    service.name_acquire(NAME)
    assert activator.pool.busy == before
    service.recv()


# No room


def test_what_is_moved_is_charged_to_its_sender(world: World, cast: Cast) -> None:
    activator, service, client = cast
    stranger = world.connect(world.task(NOBODY))
    for _ in range(200):
        stranger.send_items(string(ItemType.DST_NAME, NAME))
    for _ in range(100):
        client.send_items(dst=service)
    service.name_acquire(NAME)
    for _ in range(56):
        stranger.send_items(dst=service)
    with refused(ENOBUFS):
        stranger.send_items(dst=service)
    for _ in range(156):
        client.send_items(dst=service)
    with refused(ENOBUFS):
        client.send_items(dst=service)
    assert len(service.drain()) == 512
    assert not activator.connection.quota.shares


def test_what_does_not_fit_is_lost_and_later_messages_are_not(world: World, cast: Cast) -> None:
    activator, _, client = cast
    service = world.connect(pool_size=layout.PAGE, attach_recv=0)
    for cookie, size in enumerate([100, 3000, 200, 3000]):
        client.send_small(name=NAME, cookie=cookie, payload=bytes(size))
    service.name_acquire(NAME)
    assert not activator.is_readable
    first, second = service.drain()
    assert (first.cookie, first.dropped) == (0, 2)
    assert (second.cookie, second.dropped) == (2, 0)


def test_descriptors_are_lost_with_an_owner_that_takes_none(world: World, cast: Cast) -> None:
    _, _, client = cast
    service = world.connect(accept_fd=False)
    null = client.task.open_null()
    client.send_items(string(ItemType.DST_NAME, NAME), fds([null]), cookie=1)
    client.send_small(name=NAME, cookie=2)
    service.name_acquire(NAME)
    assert client.task.description(null).references == 1
    message = service.recv()
    assert (message.cookie, message.dropped) == (2, 1)


def test_a_request_that_got_lost_on_the_way_times_out(world: World, cast: Cast) -> None:
    _, _, client = cast
    service = world.connect(pool_size=layout.PAGE, attach_recv=0)
    client.send_small(name=NAME, cookie=5, flags=EXPECT_REPLY, timeout_ms=100, payload=bytes(layout.PAGE))
    service.name_acquire(NAME)
    assert not client.is_readable
    world.advance(100)
    (message,) = client.drain()
    assert (message.kind, message.cookie_reply) == (ItemType.REPLY_TIMEOUT, 5)
    service.drain()
    assert client.connection.outstanding == 0
