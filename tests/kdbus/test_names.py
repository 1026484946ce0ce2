"""Well-known names: who gets one, who waits, who takes over, and what everybody is told of it."""

from __future__ import annotations

from errno import E2BIG, EADDRINUSE, EAGAIN, EEXIST, EINVAL, EPERM, ESRCH

import pytest
from support.kdbus import NOBODY, Client, ItemType, List, Name, World, layout, refused
from support.kdbus.layout import OWN, USER, access

NAME = "foo.bla.blaz"
PRIMARY, ACQUIRED, QUEUE, IN_QUEUE = Name.PRIMARY, Name.ACQUIRED, Name.QUEUE, Name.IN_QUEUE
ALLOW, REPLACE = Name.ALLOW_REPLACEMENT, Name.REPLACE_EXISTING
LISTED = List.NAMES | List.ACTIVATORS | List.QUEUED


@pytest.fixture
def pair(world: World) -> tuple[Client, Client]:
    return world.connect(), world.connect()


def listen(client: Client) -> None:
    """Hear of every change of a name's owner."""
    for kind in (ItemType.NAME_ADD, ItemType.NAME_REMOVE, ItemType.NAME_CHANGE):
        client.add_match_name(kind)


# Basics


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(".bla.blaz", id="a dot first"),
        pytest.param("foo", id="one element"),
        pytest.param("foo.bla.bl.*", id="a wildcard"),
        pytest.param("foo.bla.", id="a dot last"),
        pytest.param("foo..bla", id="an empty element"),
        pytest.param("foo.1bla", id="a digit first"),
        pytest.param("1foo.bla", id="a digit first of all"),
        pytest.param(":1.5", id="a unique name"),
        pytest.param("foo.bl a", id="a space"),
        pytest.param(b"foo.bl\xe4", id="a letter of Latin-1"),
        pytest.param(b"", id="nothing"),
        pytest.param("foo." + "x" * 252, id="256 bytes"),
    ],
)
def test_an_invalid_name_is_neither_acquired_nor_found(world: World, name: str | bytes) -> None:
    client = world.connect()
    with refused(EINVAL):
        client.name_acquire(name)
    if name:
        with refused(ESRCH):
            client.name_release(name)


@pytest.mark.parametrize("name", ["a.b", "foo.-b_r9", "_foo.bar-", "foo." + "x" * 251])
def test_a_valid_name_is_acquired(world: World, name: str) -> None:
    client = world.connect()
    assert client.name_acquire(name) == PRIMARY | ACQUIRED
    assert client.list_names(LISTED) == {(client.id, name, PRIMARY)}


def test_a_released_name_is_gone(world: World) -> None:
    client = world.connect()
    client.name_acquire(NAME)
    client.name_release(NAME)
    assert client.list_names(LISTED) == set()
    with refused(ESRCH):
        client.name_release(NAME)


def test_a_name_of_somebody_else_is_not_released(pair: tuple[Client, Client]) -> None:
    pair[0].name_acquire("foo.bar.xxx")
    with refused(EADDRINUSE):
        pair[1].name_release("foo.bar.xxx")


def test_the_name_is_mandatory(world: World) -> None:
    client = world.connect()
    for command in (layout.NAME_ACQUIRE, layout.NAME_RELEASE):
        with refused(EINVAL):
            client.command(command)
        with refused(EINVAL):
            client.command(command, layout.name(NAME), layout.name(NAME))


@pytest.mark.parametrize("flag", [IN_QUEUE, Name.ACTIVATOR, PRIMARY, ACQUIRED, 128])
def test_flags_that_are_only_ever_returned_are_refused(world: World, flag: int) -> None:
    with refused(EINVAL):
        world.connect().name_acquire(NAME, flag)


def test_owning_needs_policy_and_it_is_asked_before_anything_else(world: World) -> None:
    stranger = world.connect(world.task(NOBODY))
    owner = world.connect()
    with refused(EPERM):
        stranger.name_acquire(NAME)
    owner.name_acquire(NAME)
    with refused(EPERM):
        stranger.name_acquire(NAME)
    world.connect_holder(NAME, access(USER, OWN, NOBODY))
    with refused(EEXIST):
        stranger.name_acquire(NAME)


def test_a_connection_has_256_names_those_it_waits_for_included(pair: tuple[Client, Client]) -> None:
    first, second = pair
    second.name_acquire("x.queued")
    assert first.name_acquire("x.queued", QUEUE) & IN_QUEUE
    for count in range(255):
        first.name_acquire(f"x.n{count}")
    with refused(E2BIG):
        first.name_acquire("x.more")
    first.name_acquire("x.n1", ALLOW)  # it has that one
    first.name_release("x.queued")
    first.name_acquire("x.more")


def test_names_go_with_their_connection(world: World, pair: tuple[Client, Client]) -> None:
    first, second = pair
    first.name_acquire(NAME)
    first.name_acquire("foo.other")
    listen(second)
    first.close()
    assert [message.change[:2] for message in second.drain()] == [
        (ItemType.NAME_REMOVE, NAME),
        (ItemType.NAME_REMOVE, "foo.other"),
    ]


# Conflict


def test_a_name_that_is_taken_is_refused(pair: tuple[Client, Client]) -> None:
    first, second = pair
    first.name_acquire(NAME)
    assert first.list_names(LISTED) == {(first.id, NAME, PRIMARY)}
    with refused(EEXIST):
        second.name_acquire(NAME)


@pytest.mark.parametrize(("owner_flags", "flags"), [(0, REPLACE), (ALLOW, 0), (ALLOW, ALLOW)])
def test_replacing_takes_the_will_of_both(pair: tuple[Client, Client], owner_flags: int, flags: int) -> None:
    first, second = pair
    first.name_acquire(NAME, owner_flags)
    with refused(EEXIST) as refusal:
        second.name_acquire(NAME, flags)
    assert refusal.answer["return_flags"] & (PRIMARY | IN_QUEUE | ACQUIRED) == 0


# Queue


def test_the_one_who_waits_gets_the_name(pair: tuple[Client, Client]) -> None:
    first, second = pair
    first.name_acquire(NAME)
    assert second.name_acquire(NAME, QUEUE) == QUEUE | IN_QUEUE | ACQUIRED
    assert first.list_names(LISTED) == {(first.id, NAME, 32), (second.id, NAME, 12)}
    first.name_release(NAME)
    assert first.list_names(LISTED) == {(second.id, NAME, 36)}


def test_asking_again_keeps_the_place_in_the_queue_and_changes_the_flags(world: World) -> None:
    owner, first, second = (world.connect() for _ in range(3))
    owner.name_acquire(NAME)
    first.name_acquire(NAME, QUEUE)
    second.name_acquire(NAME, QUEUE)
    assert first.name_acquire(NAME, QUEUE | ALLOW) == QUEUE | ALLOW | IN_QUEUE
    owner.name_release(NAME)
    assert owner.list_names(LISTED) == {
        (first.id, NAME, PRIMARY | QUEUE | ALLOW),
        (second.id, NAME, QUEUE | IN_QUEUE),
    }


def test_asking_again_without_queue_leaves_it(pair: tuple[Client, Client]) -> None:
    first, second = pair
    first.name_acquire(NAME)
    second.name_acquire(NAME, QUEUE)
    assert second.name_acquire(NAME, ALLOW) == ALLOW
    assert first.list_names(LISTED) == {(first.id, NAME, PRIMARY)}


def test_leaving_the_queue_is_silent(world: World, pair: tuple[Client, Client]) -> None:
    first, second = pair
    first.name_acquire(NAME)
    second.name_acquire(NAME, QUEUE)
    listen(first)
    second.name_release(NAME)
    with refused(EAGAIN):
        first.recv()
    with refused(EADDRINUSE):
        second.name_release(NAME)


# Takeover


def test_who_allows_it_is_replaced(pair: tuple[Client, Client]) -> None:
    first, second = pair
    first.name_acquire(NAME, ALLOW)
    assert first.list_names(LISTED) == {(first.id, NAME, 34)}
    assert second.name_acquire(NAME, REPLACE) == PRIMARY | ACQUIRED
    assert first.list_names(LISTED) == {(second.id, NAME, 32)}


def test_a_replaced_owner_who_waits_is_second_in_line(world: World) -> None:
    first, waiting, second = (world.connect() for _ in range(3))
    first.name_acquire(NAME, ALLOW | QUEUE)
    waiting.name_acquire(NAME, QUEUE)
    second.name_acquire(NAME, REPLACE)
    assert (first.id, NAME, ALLOW | QUEUE | IN_QUEUE) in first.list_names(LISTED)
    second.name_release(NAME)
    assert first.list_names(LISTED) == {
        (first.id, NAME, PRIMARY | ALLOW | QUEUE),
        (waiting.id, NAME, QUEUE | IN_QUEUE),
    }


def test_one_who_waits_can_take_over(pair: tuple[Client, Client]) -> None:
    first, second = pair
    first.name_acquire(NAME, ALLOW)
    second.name_acquire(NAME, QUEUE)
    assert second.name_acquire(NAME, REPLACE | QUEUE) == PRIMARY | QUEUE | ACQUIRED
    assert first.list_names(LISTED) == {(second.id, NAME, PRIMARY | QUEUE)}


# What others are told


def test_every_change_of_the_owner_is_told_with_flags(world: World, pair: tuple[Client, Client]) -> None:
    first, second = pair
    listener = world.connect()
    listen(listener)
    first.name_acquire(NAME, ALLOW)
    second.name_acquire(NAME, REPLACE | QUEUE)
    first.name_acquire(NAME, QUEUE)
    second.name_release(NAME)
    first.name_release(NAME)
    told = [(message.change, message.change_flags) for message in listener.drain()]
    assert told == [
        ((ItemType.NAME_ADD, NAME, 0, first.id), (0, PRIMARY | ALLOW)),
        ((ItemType.NAME_CHANGE, NAME, first.id, second.id), (PRIMARY | ALLOW, PRIMARY | QUEUE)),
        ((ItemType.NAME_CHANGE, NAME, second.id, first.id), (PRIMARY | QUEUE, PRIMARY | QUEUE)),
        ((ItemType.NAME_REMOVE, NAME, first.id, 0), (PRIMARY | QUEUE, 0)),
    ]


def test_what_changes_nothing_is_not_told(world: World, pair: tuple[Client, Client]) -> None:
    first, second = pair
    first.name_acquire(NAME)
    listen(first)
    first.name_acquire(NAME, ALLOW | QUEUE)
    second.name_acquire(NAME, QUEUE)
    second.name_acquire(NAME, QUEUE | ALLOW)
    with refused(EADDRINUSE):
        world.connect().name_release(NAME)
    with refused(EAGAIN):
        first.recv()


def test_the_owner_itself_is_told(world: World) -> None:
    client = world.connect()
    listen(client)
    client.name_acquire(NAME)
    message = client.recv()
    assert message.change == (ItemType.NAME_ADD, NAME, 0, client.id)
    assert (message.src_id, message.dst_id, message.payload_type) == (0, layout.DST_BROADCAST, 0)
    assert (message.cookie, message.priority) == (0, 0)
    assert message.flags == 4  # SIGNAL
    assert message.kinds == [ItemType.NAME_ADD, ItemType.TIMESTAMP]
