"""Wildcards in policies: they grant, for one level, and an exact entry is the last word on its name."""

from __future__ import annotations

from errno import EEXIST, EINVAL, EPERM, ESRCH

import pytest
from support.kdbus import NOBODY, Client, ItemType, List, Name, Refused, World, refused
from support.kdbus.layout import GROUP, OWN, SEE, TALK, USER, WORLD, access, name, string

MALFORMED = ["*", ".*", "a.*.b", "*.a", "a.b*", "a..*", "a.**", "a.*.*", "1.*", "a.1.*", "a*.b"]


@pytest.fixture
def stranger(world: World) -> Client:
    return world.connect(world.task(NOBODY))


def owns(client: Client, wanted: str) -> bool:
    """Whether a client is allowed to own a name; it gives it back."""
    try:
        client.name_acquire(wanted)
    except Refused as error:
        if error.errno != EPERM:
            raise
        return False
    client.name_release(wanted)
    return True


@pytest.mark.parametrize(
    ("wildcard", "wanted", "is_covered"),
    [
        ("a.b.*", "a.b.c", True),
        ("a.b.*", "a.b.cc-d_e", True),
        ("a.b.*", "a.b", False),
        ("a.b.*", "a.b.c.d", False),
        ("a.b.*", "a.bc", False),
        ("a.b.*", "a.bc.d", False),
        ("a.b.*", "a.c.b", False),
        ("a.b.*", "x.a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.*", "b.a", False),
        ("a.b.c.d.e.*", "a.b.c.d.e.f", True),
        ("a.b.c.d.e.*", "a.b.c.d.e", False),
    ],
)
def test_a_wildcard_covers_exactly_one_level(
    world: World, stranger: Client, wildcard: str, wanted: str, is_covered: bool
) -> None:
    world.connect_holder(wildcard, access(WORLD, OWN))
    assert owns(stranger, wanted) == is_covered


@pytest.mark.parametrize(
    ("kind", "id", "allowed"),
    [
        (USER, 2000, True),
        (USER, 2001, False),
        (GROUP, 3000, True),
        (GROUP, 4000, True),
        (GROUP, 4001, False),
        (WORLD, 77, True),
    ],
)
def test_a_wildcard_grants_to_whom_it_says(world: World, kind: int, id: int, allowed: bool) -> None:
    client = world.connect(world.task(2000, 3000, groups=(5, 4000, 6)))
    world.connect_holder("a.b.*", access(kind, OWN, id))
    assert owns(client, "a.b.c") == allowed


@pytest.mark.parametrize(("level", "allowed"), [(SEE, False), (TALK, True), (OWN, True)])
def test_a_wildcard_lets_talk(world: World, stranger: Client, level: int, allowed: bool) -> None:
    world.connect_holder("a.b.*", access(WORLD, level))
    service = world.connect()
    service.name_acquire("a.b.c")
    if allowed:
        stranger.send_small(name="a.b.c")
        stranger.send_small(service)
        assert len(service.drain()) == 2
    else:
        with refused(EPERM):
            stranger.send_small(name="a.b.c")
    assert owns(stranger, "a.b.d") == (level == OWN)


def test_the_highest_of_several_accesses_counts(world: World, stranger: Client) -> None:
    world.connect_holder("a.b.*", access(WORLD, SEE), access(USER, OWN, NOBODY), access(WORLD, TALK))
    assert owns(stranger, "a.b.c")


# Exact entries


@pytest.mark.parametrize(
    "exact", [(), (access(WORLD, SEE),), (access(WORLD, TALK),), (access(USER, OWN, 1),)]
)
def test_an_exact_entry_is_all_there_is_to_say_about_a_name(
    world: World, stranger: Client, exact: tuple[bytes, ...]
) -> None:
    world.connect_holder("a.b.*", access(WORLD, OWN))
    holder = world.connect_holder("a.b.c", *exact)
    assert not owns(stranger, "a.b.c")
    assert owns(stranger, "a.b.d")
    holder.close()
    assert owns(stranger, "a.b.c")


def test_an_exact_entry_may_grant_more(world: World, stranger: Client) -> None:
    world.connect_holder("a.b.*", access(WORLD, SEE))
    world.connect_holder("a.b.c", access(WORLD, OWN))
    assert owns(stranger, "a.b.c")
    assert not owns(stranger, "a.b.d")


def test_an_exact_entry_takes_back_what_a_wildcard_lets_talk(world: World, stranger: Client) -> None:
    world.connect_holder("a.b.*", access(WORLD, TALK))
    service = world.connect()
    service.name_acquire("a.b.c")
    stranger.send_small(service)
    holder = world.connect_holder("a.b.c")
    with refused(EPERM):
        stranger.send_small(service)
    service.name_acquire("a.b.d")  # one name that it may talk to opens all of it
    stranger.send_small(name="a.b.c")
    holder.close()
    service.name_release("a.b.d")
    stranger.send_small(name="a.b.c")
    assert len(service.drain()) == 3


def test_the_policy_of_an_activator_is_an_exact_entry(world: World, stranger: Client) -> None:
    world.connect_holder("a.b.*", access(WORLD, OWN))
    world.connect_activator("a.b.c", access(WORLD, TALK))
    assert not owns(stranger, "a.b.c")


# Changes


def test_a_wildcard_ends_with_its_holder(world: World, stranger: Client) -> None:
    holder = world.connect_holder("a.b.*", access(WORLD, OWN))
    assert owns(stranger, "a.b.c")
    holder.close()
    assert not owns(stranger, "a.b.c")


def test_a_name_once_acquired_is_kept(world: World, stranger: Client) -> None:
    holder = world.connect_holder("a.b.*", access(WORLD, OWN))
    stranger.name_acquire("a.b.c", Name.ALLOW_REPLACEMENT)
    holder.close()
    assert (stranger.id, "a.b.c", 34) in stranger.list_names()
    with refused(EPERM):
        stranger.name_acquire("a.b.c")


def test_an_update_changes_what_the_next_command_may(world: World, stranger: Client) -> None:
    holder = world.connect_holder("a.b.*", access(WORLD, OWN))
    holder.update_policy("a.b.*")
    assert not owns(stranger, "a.b.c")
    holder.update_policy("a.b.*", access(USER, OWN, NOBODY))
    assert owns(stranger, "a.b.c")
    holder.update_policy("a.b", access(WORLD, OWN))
    assert not owns(stranger, "a.b.c")
    assert owns(stranger, "a.b")


@pytest.mark.parametrize("wildcard", MALFORMED)
def test_a_wildcard_that_is_none_is_refused(world: World, stranger: Client, wildcard: str) -> None:
    with refused(EINVAL):
        world.connect_holder(wildcard, access(WORLD, OWN))
    holder = world.connect_holder("a.b.*", access(WORLD, OWN))
    with refused(EINVAL):
        holder.update_policy(wildcard, access(WORLD, OWN))
    assert owns(stranger, "a.b.c")
    endpoint = world.open()
    endpoint.endpoint_make("1000-custom")
    with refused(EINVAL):
        endpoint.endpoint_update(name(wildcard))


def test_a_wildcard_may_be_as_long_as_a_name(world: World, stranger: Client) -> None:
    stem = "a." + "b" * 251
    world.connect_holder(stem + ".*", access(WORLD, OWN))
    assert owns(stranger, stem + ".c")
    with refused(EINVAL):
        world.connect_holder(stem + "b.*", access(WORLD, OWN))


# Where there are none


def test_nobody_owns_a_wildcard_or_sends_to_one(world: World, stranger: Client) -> None:
    world.connect_holder("a.b.*", access(WORLD, OWN))
    for client in (stranger, world.connect()):
        with refused(EINVAL):
            client.name_acquire("a.b.*")
        with refused(ESRCH):
            client.name_release("a.b.*")
        with refused(EINVAL):
            client.send_items(string(ItemType.DST_NAME, "a.b.*"))
        with refused(EINVAL):
            client.add_match(name("a.b.*"))
        with refused(ESRCH):
            client.conn_info(name="a.b.*")


def test_an_activator_has_no_wildcard(world: World) -> None:
    watcher = world.connect()
    watcher.add_match()
    with refused(EINVAL):
        world.connect_activator("a.b.*", access(WORLD, OWN))
    assert not watcher.is_readable
    world.connect_holder("a.b.*").close()


# Collisions


def test_a_name_and_wildcards_around_it_do_not_collide(world: World) -> None:
    for pattern in ("a.b", "a.*", "a.b.*", "a.b.c", "a.b.c.*"):
        world.connect_holder(pattern, access(WORLD, OWN))
    for pattern in ("a.b", "a.*", "a.b.*", "a.b.c", "a.b.c.*"):
        with refused(EEXIST):
            world.connect_holder(pattern)


def test_a_refused_collision_leaves_the_old_policy(world: World, stranger: Client) -> None:
    world.connect_holder("a.b.*")
    holder = world.connect_holder("a.c.*", access(WORLD, OWN))
    with refused(EEXIST):
        holder.update_policy("a.b.*", access(WORLD, OWN))
    assert owns(stranger, "a.c.d")
    assert not owns(stranger, "a.b.d")


# Custom endpoints


def test_a_wildcard_of_an_endpoint_narrows_what_can_be_owned(world: World) -> None:
    endpoint, node = world.make_endpoint("1000-custom", name("a.b.*"), access(WORLD, OWN))
    client = world.connect(world.task(NOBODY), node=node)
    with refused(EPERM):
        client.name_acquire("a.b.c")  # the bus says nothing
    world.connect_holder("a.*", access(WORLD, OWN))
    world.connect_holder("a.b.*", access(WORLD, OWN))
    assert owns(client, "a.b.c")
    assert not owns(client, "a.c")
    endpoint.endpoint_update(name("a.b.*"), access(WORLD, OWN), name("a.b.c"))
    assert not owns(client, "a.b.c")
    assert owns(client, "a.b.d")


def test_a_wildcard_of_an_endpoint_shows_names(world: World) -> None:
    _, node = world.make_endpoint("1000-custom", name("a.b.*"), access(WORLD, SEE))
    service = world.connect()
    for owned in ("a.b.c", "a.b", "a.b.c.d", "a.b.e"):
        service.name_acquire(owned)
    client = world.connect(world.task(NOBODY), node=node)
    assert {listed for _, listed, _ in client.list_names(List.NAMES)} == {"a.b.c", "a.b.e"}
    assert client.conn_info(name="a.b.c").id == service.id
    for hidden in ("a.b", "a.b.c.d"):
        with refused(ESRCH):
            client.conn_info(name=hidden)


def test_a_wildcard_of_an_endpoint_lets_notifications_through(world: World) -> None:
    _, node = world.make_endpoint("1000-custom", name("a.b.*"), access(WORLD, SEE))
    client = world.connect(world.task(NOBODY), node=node)
    client.add_match_name(ItemType.NAME_ADD)
    service = world.connect()
    for owned in ("a.b", "a.b.c", "a.b.c.d"):
        service.name_acquire(owned)
    assert [message.change[1] for message in client.drain()] == ["a.b.c"]


def test_a_wildcard_of_an_endpoint_lets_talk(world: World) -> None:
    endpoint, node = world.make_endpoint("1000-custom", name("a.b.*"), access(WORLD, TALK))
    service = world.connect()
    service.name_acquire("a.b.c")
    client = world.connect(node=node)  # of the same uid, so the bus has nothing against it
    client.send_small(name="a.b.c", cookie=1)
    endpoint.endpoint_update(name("a.b.*"), access(WORLD, TALK), name("a.b.c"), access(WORLD, SEE))
    with refused(EPERM):
        client.send_small(name="a.b.c")
    assert [message.cookie for message in service.drain()] == [1]


def test_an_upload_with_the_same_wildcard_twice_is_refused(world: World) -> None:
    endpoint, node = world.make_endpoint("1000-custom", name("a.b.*"), access(WORLD, SEE))
    with refused(EEXIST):
        endpoint.endpoint_update(name("a.c.*"), name("a.b"), name("a.c.*"))
    world.connect().name_acquire("a.b.c")
    client = world.connect(node=node)
    assert {listed for _, listed, _ in client.list_names()} == {"a.b.c"}
    endpoint.endpoint_update(name("a.b.c"), name("a.b.*"), name("a.b"), name("a.*"))
    assert client.list_names() == set()
