"""Who gets a name and who waits for it: every outcome of NAME_ACQUIRE, its flags, and what others hear."""

from __future__ import annotations

from errno import E2BIG, EADDRINUSE, EEXIST, EINVAL, EOPNOTSUPP, EPERM, ESRCH

import pytest
from support.kdbus import NOBODY, Client, ItemType, List, Name, World, layout, refused
from support.kdbus.layout import OWN, USER, WORLD, access

NAME = "foo.bar.baz"
REPLACE, ALLOW, QUEUE, IN_QUEUE = (
    int(flag) for flag in (Name.REPLACE_EXISTING, Name.ALLOW_REPLACEMENT, Name.QUEUE, Name.IN_QUEUE)
)
ACTIVATOR, PRIMARY, ACQUIRED = (int(flag) for flag in (Name.ACTIVATOR, Name.PRIMARY, Name.ACQUIRED))
Trio = tuple[Client, Client, Client]
Change = tuple[tuple[ItemType, str, int, int], tuple[int, int]]


@pytest.fixture
def trio(world: World) -> Trio:
    return world.connect(), world.connect(), world.connect()


@pytest.fixture
def watcher(world: World) -> Client:
    """A connection that hears of every name."""
    client = world.connect()
    for kind in (ItemType.NAME_ADD, ItemType.NAME_REMOVE, ItemType.NAME_CHANGE):
        client.add_match_name(kind)
    return client


def heard(watcher: Client) -> list[Change]:
    """What was told of names, with the flags of the old and the new owner."""
    return [(message.change, message.change_flags) for message in watcher.drain()]


def added(new: Client, flags: int) -> Change:
    return (ItemType.NAME_ADD, NAME, 0, new.id), (0, flags)


def removed(old: Client, flags: int) -> Change:
    return (ItemType.NAME_REMOVE, NAME, old.id, 0), (flags, 0)


def changed(old: Client, old_flags: int, new: Client, new_flags: int) -> Change:
    return (ItemType.NAME_CHANGE, NAME, old.id, new.id), (old_flags, new_flags)


def order(of: Client, members: Trio | tuple[Client, ...]) -> list[int]:
    """The queue of the name, found out by letting one after the other go."""
    clients = {client.id: client for client in members}
    owners = []
    while holders := [id for id, _, flags in of.list_names() if flags & PRIMARY]:
        (owner,) = holders
        owners.append(owner)
        clients[owner].name_release(NAME)
    return owners


# The table


@pytest.mark.parametrize(
    ("asked", "flags"),
    [
        (0, 0),
        (ALLOW, ALLOW),
        (QUEUE, QUEUE),
        (ALLOW | QUEUE, ALLOW | QUEUE),
        (REPLACE, 0),
        (REPLACE | ALLOW | QUEUE, ALLOW | QUEUE),
    ],
)
def test_a_free_name_is_taken(trio: Trio, watcher: Client, asked: int, flags: int) -> None:
    first, _, _ = trio
    assert first.name_acquire(NAME, asked) == flags | PRIMARY | ACQUIRED
    assert first.list_names() == {(first.id, NAME, flags | PRIMARY)}
    assert heard(watcher) == [added(first, flags | PRIMARY)]


@pytest.mark.parametrize("asked", [0, ALLOW, QUEUE, REPLACE, ALLOW | QUEUE, REPLACE | ALLOW | QUEUE])
@pytest.mark.parametrize("before", [0, ALLOW, QUEUE, ALLOW | QUEUE])
def test_an_owner_that_asks_again_changes_its_flags(
    trio: Trio, watcher: Client, before: int, asked: int
) -> None:
    first, _, _ = trio
    first.name_acquire(NAME, before)
    heard(watcher)
    assert first.name_acquire(NAME, asked) == asked & ~REPLACE | PRIMARY
    assert first.list_names() == {(first.id, NAME, asked & ~REPLACE | PRIMARY)}
    assert heard(watcher) == []


@pytest.mark.parametrize("asked", [QUEUE, QUEUE | ALLOW, QUEUE | REPLACE])
def test_who_queues_waits(trio: Trio, watcher: Client, asked: int) -> None:
    first, second, _ = trio
    first.name_acquire(NAME)
    heard(watcher)
    saved = asked & ~REPLACE
    assert second.name_acquire(NAME, asked) == saved | IN_QUEUE | ACQUIRED
    assert second.list_names() == {(first.id, NAME, PRIMARY), (second.id, NAME, saved | IN_QUEUE)}
    assert heard(watcher) == []


def test_who_waits_and_asks_again_changes_its_flags(trio: Trio, watcher: Client) -> None:
    first, second, _ = trio
    first.name_acquire(NAME)
    second.name_acquire(NAME, QUEUE)
    assert second.name_acquire(NAME, QUEUE | ALLOW) == QUEUE | ALLOW | IN_QUEUE
    assert (second.id, NAME, QUEUE | ALLOW | IN_QUEUE) in second.list_names()
    first.name_release(NAME)
    assert (second.id, NAME, QUEUE | ALLOW | PRIMARY) in second.list_names()


def test_who_waits_and_asks_again_keeps_its_place(trio: Trio) -> None:
    first, second, third = trio
    first.name_acquire(NAME)
    for client in (second, third, second, third, second):
        client.name_acquire(NAME, QUEUE)
    assert order(first, trio) == [first.id, second.id, third.id]


def test_who_waits_and_asks_without_queueing_leaves(trio: Trio, watcher: Client) -> None:
    first, second, _ = trio
    first.name_acquire(NAME)
    second.name_acquire(NAME, QUEUE)
    heard(watcher)
    assert second.name_acquire(NAME) == 0
    assert second.list_names() == {(first.id, NAME, PRIMARY)}
    with refused(EADDRINUSE):
        second.name_release(NAME)
    with refused(EEXIST):
        second.name_acquire(NAME)
    assert heard(watcher) == []
    assert order(first, trio) == [first.id]


def test_who_leaves_a_queue_is_told_only_what_would_be_saved(trio: Trio) -> None:
    first, second, _ = trio
    first.name_acquire(NAME)
    second.name_acquire(NAME, QUEUE)
    assert second.name_acquire(NAME, ALLOW | REPLACE) == ALLOW


@pytest.mark.parametrize("asked", [0, ALLOW, REPLACE, REPLACE | ALLOW])
def test_who_does_not_queue_does_not_get_an_owned_name(trio: Trio, watcher: Client, asked: int) -> None:
    first, second, _ = trio
    first.name_acquire(NAME)
    heard(watcher)
    with refused(EEXIST):
        second.name_acquire(NAME, asked)
    assert second.list_names() == {(first.id, NAME, PRIMARY)}
    assert heard(watcher) == []


def test_an_owner_that_allows_it_is_not_replaced_by_who_does_not_ask(trio: Trio) -> None:
    first, second, third = trio
    first.name_acquire(NAME, ALLOW)
    with refused(EEXIST):
        second.name_acquire(NAME)
    assert third.name_acquire(NAME, QUEUE) == QUEUE | IN_QUEUE | ACQUIRED


@pytest.mark.parametrize("asked", [REPLACE, REPLACE | ALLOW, REPLACE | QUEUE])
def test_a_replaced_owner_that_does_not_queue_has_lost_the_name(
    trio: Trio, watcher: Client, asked: int
) -> None:
    first, second, _ = trio
    first.name_acquire(NAME, ALLOW)
    heard(watcher)
    saved = asked & ~REPLACE
    assert second.name_acquire(NAME, asked) == saved | PRIMARY | ACQUIRED
    assert second.list_names() == {(second.id, NAME, saved | PRIMARY)}
    assert heard(watcher) == [changed(first, ALLOW | PRIMARY, second, saved | PRIMARY)]


def test_a_replaced_owner_that_queues_is_next_in_line(world: World, trio: Trio, watcher: Client) -> None:
    first, second, third = trio
    first.name_acquire(NAME, ALLOW | QUEUE)
    second.name_acquire(NAME, QUEUE)
    heard(watcher)
    assert third.name_acquire(NAME, REPLACE) == PRIMARY | ACQUIRED
    assert third.list_names() == {
        (third.id, NAME, PRIMARY),
        (first.id, NAME, ALLOW | QUEUE | IN_QUEUE),
        (second.id, NAME, QUEUE | IN_QUEUE),
    }
    assert heard(watcher) == [changed(first, ALLOW | QUEUE | PRIMARY, third, PRIMARY)]
    assert order(world.connect(), trio) == [third.id, first.id, second.id]
    assert heard(watcher) == [
        changed(third, PRIMARY, first, ALLOW | QUEUE | PRIMARY),
        changed(first, ALLOW | QUEUE | PRIMARY, second, QUEUE | PRIMARY),
        removed(second, QUEUE | PRIMARY),
    ]


def test_who_waits_can_replace_the_owner(world: World, trio: Trio, watcher: Client) -> None:
    first, second, third = trio
    first.name_acquire(NAME, ALLOW | QUEUE)
    for client in (second, third):
        client.name_acquire(NAME, QUEUE)
    heard(watcher)
    assert third.name_acquire(NAME, REPLACE | QUEUE) == QUEUE | PRIMARY | ACQUIRED
    assert heard(watcher) == [changed(first, ALLOW | QUEUE | PRIMARY, third, QUEUE | PRIMARY)]
    assert order(world.connect(), trio) == [third.id, first.id, second.id]


def test_replacements_go_back_and_forth(trio: Trio, watcher: Client) -> None:
    first, second, _ = trio
    for client in (first, second, first, second):
        assert client.name_acquire(NAME, REPLACE | ALLOW | QUEUE) == ALLOW | QUEUE | PRIMARY | ACQUIRED
    both = ALLOW | QUEUE | PRIMARY
    assert heard(watcher)[1:] == [
        changed(first, both, second, both),
        changed(second, both, first, both),
        changed(first, both, second, both),
    ]
    assert second.list_names() == {(second.id, NAME, both), (first.id, NAME, ALLOW | QUEUE | IN_QUEUE)}


def test_what_was_not_allowed_before_may_be_later(trio: Trio) -> None:
    first, second, _ = trio
    first.name_acquire(NAME)
    with refused(EEXIST):
        second.name_acquire(NAME, REPLACE)
    first.name_acquire(NAME, ALLOW)
    second.name_acquire(NAME, REPLACE)
    with refused(EADDRINUSE):
        first.name_release(NAME)


def test_replacing_is_not_remembered(trio: Trio) -> None:
    """Who queued with REPLACE_EXISTING does not replace an owner that allows it afterwards."""
    first, second, _ = trio
    first.name_acquire(NAME)
    second.name_acquire(NAME, QUEUE | REPLACE)
    first.name_acquire(NAME, ALLOW)
    assert (first.id, NAME, ALLOW | PRIMARY) in first.list_names()


def test_who_waits_is_replaced_as_it_asked(trio: Trio) -> None:
    """The flags of who waits count once it owns the name."""
    first, second, third = trio
    first.name_acquire(NAME)
    second.name_acquire(NAME, QUEUE | ALLOW)
    first.name_release(NAME)
    assert third.name_acquire(NAME, REPLACE) == PRIMARY | ACQUIRED
    assert (second.id, NAME, QUEUE | ALLOW | IN_QUEUE) in third.list_names()


# Leaving


def test_who_waits_leaves_silently(trio: Trio, watcher: Client) -> None:
    first, second, third = trio
    first.name_acquire(NAME)
    for client in (second, third):
        client.name_acquire(NAME, QUEUE)
    heard(watcher)
    second.name_release(NAME)
    assert heard(watcher) == []
    with refused(EADDRINUSE):
        second.name_release(NAME)
    assert order(first, trio) == [first.id, third.id]


def test_who_waits_disconnects_silently(trio: Trio, watcher: Client) -> None:
    first, second, third = trio
    first.name_acquire(NAME)
    for client in (second, third):
        client.name_acquire(NAME, QUEUE)
    heard(watcher)
    second.byebye()
    assert heard(watcher) == []
    first.close()
    assert heard(watcher) == [changed(first, PRIMARY, third, QUEUE | PRIMARY)]


def test_an_owner_disconnects_in_the_order_in_which_it_came_by_its_names(world: World) -> None:
    owner, watcher = world.connect(), world.connect()
    wanted = ["z.z", "a.a", "m.m"]
    for name in wanted:
        owner.name_acquire(name)
    watcher.add_match_name(ItemType.NAME_REMOVE)
    watcher.add_match_id(ItemType.ID_REMOVE)
    owner.close()
    *names, gone = watcher.drain()
    assert [message.change[1] for message in names] == wanted
    assert gone.arrival == (ItemType.ID_REMOVE, owner.id)


def test_a_name_is_released_once(trio: Trio) -> None:
    first, second, _ = trio
    first.name_acquire(NAME)
    with refused(EADDRINUSE):
        second.name_release(NAME)
    first.name_release(NAME)
    with refused(ESRCH):
        first.name_release(NAME)


# Activators


def test_an_activator_shows_where_it_stands(world: World, trio: Trio, watcher: Client) -> None:
    first, second, _ = trio
    activator = world.connect_activator(NAME)
    visible, shadowed = ACTIVATOR | PRIMARY, ACTIVATOR | IN_QUEUE
    assert first.list_names() == {(activator.id, NAME, visible)}
    assert first.name_acquire(NAME, QUEUE) == QUEUE | PRIMARY | ACQUIRED
    assert first.list_names() == {(activator.id, NAME, shadowed), (first.id, NAME, QUEUE | PRIMARY)}
    second.name_acquire(NAME, QUEUE)
    first.name_release(NAME)
    second.name_release(NAME)
    assert first.list_names() == {(activator.id, NAME, visible)}
    activator.close()
    owner = QUEUE | PRIMARY
    assert heard(watcher) == [
        added(activator, visible),
        changed(activator, visible, first, owner),
        changed(first, owner, second, owner),
        changed(second, owner, activator, visible),
        removed(activator, visible),
    ]


def test_an_activator_of_an_owned_name_comes_and_goes_silently(
    world: World, trio: Trio, watcher: Client
) -> None:
    first, _, _ = trio
    first.name_acquire(NAME)
    heard(watcher)
    activator = world.connect_activator(NAME)
    assert (activator.id, NAME, ACTIVATOR | IN_QUEUE) in first.list_names(List.ACTIVATORS)
    activator.close()
    assert heard(watcher) == []


def test_an_activator_is_no_owner_to_replace(world: World, trio: Trio) -> None:
    first, second, _ = trio
    world.connect_activator(NAME)
    assert first.name_acquire(NAME) == PRIMARY | ACQUIRED
    with refused(EEXIST):
        second.name_acquire(NAME, REPLACE)


def test_a_replaced_owner_does_not_get_behind_an_activator(world: World, trio: Trio) -> None:
    first, second, _ = trio
    activator = world.connect_activator(NAME)
    first.name_acquire(NAME, ALLOW | QUEUE)
    second.name_acquire(NAME, REPLACE)
    assert (activator.id, NAME, ACTIVATOR | IN_QUEUE) in first.list_names()
    second.name_release(NAME)
    assert (first.id, NAME, ALLOW | QUEUE | PRIMARY) in first.list_names()


def test_a_name_has_one_activator(world: World, trio: Trio) -> None:
    first, _, _ = trio
    world.connect_activator(NAME)
    for _ in range(2):
        with refused(EEXIST):
            world.connect_activator(NAME)
        first.name_acquire(NAME)


# Asking


@pytest.mark.parametrize("flag", [IN_QUEUE, ACTIVATOR, PRIMARY, ACQUIRED, 128, 1 << 40])
def test_flags_that_only_tell_cannot_be_given(trio: Trio, flag: int) -> None:
    with refused(EINVAL):
        trio[0].name_acquire(NAME, flag)
    assert trio[0].list_names() == set()


@pytest.mark.parametrize(
    "wrong",
    ["", "foo", ".foo.bar", "foo.bar.", "foo..bar", "foo.1bar", "foo.b\xe4r", "foo bar.baz", "foo.bar.*",
     ":1.5", "foo/bar.baz", "a." + "b" * 254, b"a.\xc4", b"a.\xff"],
)  # fmt: skip
def test_a_name_has_to_be_a_name(trio: Trio, wrong: str | bytes) -> None:
    with refused(EINVAL):
        trio[0].name_acquire(wrong)
    with refused(ESRCH):
        trio[0].name_release(wrong)


@pytest.mark.parametrize("good", ["a.b", "_a._b", "-a.-b", "A9.z-_8", "a." + "b" * 253, "a" + ".b" * 127])
def test_what_is_a_name(trio: Trio, good: str) -> None:
    assert trio[0].name_acquire(good) == PRIMARY | ACQUIRED


def test_who_may_not_own_a_name_does_not_learn_of_it(world: World, trio: Trio) -> None:
    stranger = world.connect(world.task(NOBODY))
    with refused(EPERM):
        stranger.name_acquire(NAME)
    trio[0].name_acquire(NAME)
    for flags in (0, QUEUE, REPLACE):
        with refused(EPERM):
            stranger.name_acquire(NAME, flags)
    with refused(EINVAL):
        stranger.name_acquire("foo")


def test_rights_are_asked_for_before_room(world: World) -> None:
    world.connect_holder("foo.*", access(USER, OWN, NOBODY))
    stranger = world.connect(world.task(NOBODY))
    for number in range(256):
        stranger.name_acquire(f"foo.n{number}")
    with refused(EPERM):
        stranger.name_acquire("bar.n")
    with refused(E2BIG):
        stranger.name_acquire("foo.m")
    assert stranger.name_acquire("foo.n5", QUEUE) == QUEUE | PRIMARY


def test_rights_are_asked_for_again_each_time(world: World) -> None:
    holder = world.connect_holder(NAME, access(WORLD, OWN))
    stranger = world.connect(world.task(NOBODY))
    stranger.name_acquire(NAME)
    holder.update_policy(NAME)
    with refused(EPERM):
        stranger.name_acquire(NAME, ALLOW)
    assert (stranger.id, NAME, PRIMARY) in stranger.list_names()
    stranger.name_release(NAME)


def test_special_connections_have_no_names_to_acquire(world: World) -> None:
    for special in (
        world.connect_monitor(),
        world.connect_activator("a.b"),
        world.connect_holder("a.c"),
    ):
        with refused(EOPNOTSUPP):
            special.name_acquire(NAME)
        with refused(EOPNOTSUPP):
            special.name_release("a.b")
    with refused(EINVAL):
        world.connect().command(layout.NAME_ACQUIRE)
