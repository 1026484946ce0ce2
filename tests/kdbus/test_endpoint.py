"""Custom endpoints: made by owners, closed to everything their policy does not open."""

from __future__ import annotations

from errno import (
    EACCES,
    EAGAIN,
    EEXIST,
    EINVAL,
    ENAMETOOLONG,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    ESHUTDOWN,
    ESRCH,
)

import pytest
from support.kdbus import NOBODY, Client, Hello, ItemType, Make, World, layout, refused
from support.kdbus.layout import ANY, OWN, SEE, TALK, WORLD, access

NAME = "foo.bar.baz"


@pytest.fixture
def ep(world: World) -> tuple[Client, Client, Client]:
    """The maker of a custom endpoint and two connections on it, of which the first listens."""
    maker, node = world.make_endpoint("1000-foo")
    reader = world.connect(node=node)
    reader.add_match_id(ItemType.ID_ADD, cookie=1)
    reader.add_match_id(ItemType.ID_REMOVE, cookie=2)
    reader.add_match_name(ItemType.NAME_ADD, NAME, cookie=3)
    return maker, reader, world.connect(node=node)


# Making one


def test_a_name_of_more_than_63_bytes_is_too_long(world: World) -> None:
    world.open().endpoint_make("1000-".ljust(63, "X"))
    with refused(ENAMETOOLONG):
        world.open().endpoint_make("1000-".ljust(64, "X"))


@pytest.mark.parametrize("name", ["1001-foobar", "foobar", "1000foobar"])
def test_the_name_starts_with_the_makers_uid(world: World, name: str) -> None:
    with refused(EINVAL):
        world.open().endpoint_make(name)


def test_a_name_is_taken_once(world: World) -> None:
    world.open().endpoint_make("1000-foo")
    with refused(EEXIST):
        world.open().endpoint_make("1000-foo")


def test_only_an_owner_makes_endpoints(world: World) -> None:
    with refused(EPERM):
        world.open(task=world.task(NOBODY)).endpoint_make("65534-foo")


def test_who_may_not_make_an_endpoint_is_told_before_anything_is_read(world: World) -> None:
    with refused(EPERM):
        world.open(task=world.task(NOBODY)).ioctl(layout.ENDPOINT_MAKE.request, 8)


def test_a_custom_endpoint_makes_no_others(world: World) -> None:
    _, node = world.make_endpoint("1000-foo")
    with refused(EPERM):
        world.open(node).endpoint_make("1000-bar")


def test_the_privileged_make_endpoints_of_other_peoples_buses(world: World) -> None:
    world.open(task=world.task(0, privileged=True)).endpoint_make("0-foo")


def test_policy_is_not_part_of_making(world: World) -> None:
    with refused(EINVAL):
        world.open().command(
            layout.ENDPOINT_MAKE, layout.string(ItemType.MAKE_NAME, "1000-foo"), layout.name(NAME)
        )


@pytest.mark.parametrize(
    ("flags", "uid", "gid", "groups", "may"),
    [
        pytest.param(0, NOBODY, NOBODY, (), False, id="nobody else"),
        pytest.param(0, NOBODY, 1000, (), False, id="not even the group"),
        pytest.param(Make.ACCESS_GROUP, NOBODY, NOBODY, (), False, id="not everybody"),
        pytest.param(Make.ACCESS_GROUP, NOBODY, 1000, (), True, id="the group"),
        pytest.param(Make.ACCESS_GROUP, NOBODY, NOBODY, (5, 1000), True, id="a supplementary group"),
        pytest.param(Make.ACCESS_WORLD, NOBODY, NOBODY, (), True, id="everybody"),
        pytest.param(0, 1000, 5, (), True, id="the owner"),
    ],
)
def test_file_modes_decide_who_connects(
    world: World, flags: int, uid: int, gid: int, groups: tuple[int, ...], may: bool
) -> None:
    _, node = world.make_endpoint("1000-apps", flags=flags)
    task = world.task(uid, gid, groups=groups)
    if may:
        world.connect(task, node=node)
    else:
        with refused(EACCES):
            world.open(node, task)


@pytest.mark.parametrize(
    ("flags", "gid", "may"),
    [(0, 1000, False), (Make.ACCESS_GROUP, 1000, True), (Make.ACCESS_GROUP, 5, False)],
)
def test_no_endpoint_is_more_open_than_its_bus(world: World, flags: int, gid: int, *, may: bool) -> None:
    world.make_bus("1000-closed", flags=flags)
    maker = world.open(world.find_endpoint(bus="1000-closed"))
    maker.endpoint_make("1000-open", Make.ACCESS_WORLD)
    node = world.find_endpoint("1000-open", bus="1000-closed")
    task = world.task(NOBODY, gid)
    if may:
        world.connect(task, node=node)
    else:
        with refused(EACCES):
            world.open(node, task)


def test_an_endpoint_ends_with_its_handle(world: World) -> None:
    maker, node = world.make_endpoint("1000-foo")
    inside, outside = world.connect(node=node), world.connect()
    outside.add_match_id(ItemType.ID_REMOVE)
    maker.close()
    assert outside.recv().arrival == (ItemType.ID_REMOVE, inside.id)
    with refused(ESHUTDOWN):
        inside.list_records()
    with refused(ESHUTDOWN):
        world.open(node)
    world.open().endpoint_make("1000-foo")


# What is seen through it


def test_there_are_no_monitors_on_it(world: World) -> None:
    _, node = world.make_endpoint("1000-foo")
    with refused(EOPNOTSUPP):
        world.connect(node=node, flags=Hello.MONITOR)


@pytest.mark.parametrize("flags", [Hello.ACTIVATOR, Hello.POLICY_HOLDER])
def test_nobody_on_it_is_an_owner(world: World, flags: int) -> None:
    _, node = world.make_endpoint("1000-foo")
    with refused(EPERM):
        world.connect(None, layout.name(NAME), node=node, flags=flags)
    with refused(EPERM):
        world.connect(None, layout.pids(1), node=node)


def test_connections_are_seen_to_come(ep: tuple[Client, Client, Client]) -> None:
    _, reader, other = ep
    assert reader.recv().arrival == (ItemType.ID_ADD, other.id)


def test_names_that_its_policy_does_not_show_do_not_exist(
    world: World, ep: tuple[Client, Client, Client]
) -> None:
    _, reader, other = ep
    reader.drain()
    other.add_match_name(ItemType.NAME_ADD, NAME)
    outside = world.connect()
    reader.drain()
    outside.name_acquire(NAME)
    with refused(EAGAIN):
        other.recv()
    with refused(EAGAIN):
        reader.recv()
    outside.name_release(NAME)
    with refused(EAGAIN):
        reader.recv()


def test_connections_without_a_visible_name_cannot_be_asked_about(
    world: World, ep: tuple[Client, Client, Client]
) -> None:
    _, _, other = ep
    outside = world.connect()
    outside.name_acquire(NAME)
    for name in (NAME, "random.crappy.name"):
        with refused(ESRCH):
            other.conn_info(name=name)
    for id in (outside.id, 0x0FFFFFFFFFFFFFFF):
        with refused(ENXIO):
            other.conn_info(id)


def test_what_its_policy_shows_is_there(world: World, ep: tuple[Client, Client, Client]) -> None:
    maker, reader, other = ep
    outside = world.connect()
    other.add_match_name(ItemType.NAME_ADD, NAME)
    maker.endpoint_update(layout.name(NAME), access(WORLD, SEE))
    reader.drain()
    outside.name_acquire(NAME)
    for client in (other, reader):
        assert client.recv().change == (ItemType.NAME_ADD, NAME, 0, outside.id)
    assert other.conn_info(name=NAME).id == outside.id
    assert other.conn_info(outside).id == outside.id


# Its policy


def test_an_update_replaces_the_whole_policy(world: World, ep: tuple[Client, Client, Client]) -> None:
    maker, _, other = ep
    outside = world.connect()
    outside.name_acquire(NAME)
    maker.endpoint_update(layout.name(NAME), access(WORLD, SEE))
    maker.endpoint_update(layout.name("other.name"), access(WORLD, SEE))
    with refused(ESRCH):
        other.conn_info(name=NAME)
    maker.endpoint_update(layout.name(NAME), access(WORLD, SEE))
    maker.endpoint_update()
    with refused(ESRCH):
        other.conn_info(name=NAME)


@pytest.mark.parametrize(
    ("items", "errno"),
    [
        pytest.param([access(WORLD, SEE)], EINVAL, id="access before a name"),
        pytest.param([layout.name("nodots")], EINVAL, id="a bad name"),
        pytest.param([layout.name(NAME), access(4, SEE)], EINVAL, id="an unknown kind of access"),
        pytest.param([layout.name(NAME), access(WORLD, 3)], EINVAL, id="an unknown level"),
        pytest.param([layout.name(NAME), layout.name(NAME)], EEXIST, id="a name twice"),
    ],
)
def test_a_bad_update_changes_nothing(
    world: World, ep: tuple[Client, Client, Client], items: list[bytes], errno: int
) -> None:
    maker, _, other = ep
    outside = world.connect()
    outside.name_acquire(NAME)
    maker.endpoint_update(layout.name(NAME), access(WORLD, SEE))
    with refused(errno):
        maker.endpoint_update(*items)
    assert other.conn_info(name=NAME).id == outside.id


def test_endpoint_update_takes_no_flags(ep: tuple[Client, Client, Client]) -> None:
    with refused(EINVAL):
        ep[0].command(layout.ENDPOINT_UPDATE, flags=1)


def test_owning_a_name_through_it_needs_its_policy(ep: tuple[Client, Client, Client]) -> None:
    maker, _, other = ep
    with refused(EPERM):
        other.name_acquire(NAME)
    maker.endpoint_update(layout.name(NAME), access(WORLD, TALK))
    with refused(EPERM):
        other.name_acquire(NAME)
    maker.endpoint_update(layout.name(NAME), access(WORLD, OWN))
    with refused(EPERM):  # nobody on a custom endpoint is an owner, and the bus says nothing of the name
        other.name_acquire(NAME)


def test_owning_a_name_through_it_needs_the_policy_of_the_bus_as_well(
    world: World, ep: tuple[Client, Client, Client]
) -> None:
    maker, _, other = ep
    world.connect_holder(NAME, access(WORLD, OWN))
    maker.endpoint_update(layout.name(NAME), access(WORLD, OWN))
    other.name_acquire(NAME)


def test_talking_through_it_needs_a_name_that_its_policy_lets_talk_to(
    world: World, ep: tuple[Client, Client, Client]
) -> None:
    maker, _, other = ep
    outside = world.connect()
    outside.name_acquire(NAME)
    for policy in ([], [layout.name(NAME), access(WORLD, SEE)]):
        maker.endpoint_update(*policy)
        with refused(EPERM):
            other.send_small(outside)
    maker.endpoint_update(layout.name(NAME), access(WORLD, TALK))
    other.send_small(outside, cookie=1)
    other.send_small(name=NAME, cookie=2)
    assert [message.cookie for message in outside.drain()] == [1, 2]


def test_everybody_on_it_is_charged_to_one_account(world: World) -> None:
    _, node = world.make_endpoint("1000-foo")
    inside = [world.connect(world.task(uid), node=node) for uid in (1000, 2000)]
    users = {client.connection.user for client in inside}
    assert len(users) == 1
    assert world.connect(world.task(2000)).connection.user not in users


def test_a_hidden_owner_is_hidden_from_matches_by_id_too(
    world: World, ep: tuple[Client, Client, Client]
) -> None:
    _, reader, _ = ep
    reader.drain()
    outside = world.connect()
    assert reader.recv().arrival == (ItemType.ID_ADD, outside.id)  # ids are no secret
    reader.add_match(layout.name_rule(ItemType.NAME_ADD, old=ANY, new=outside.id))
    outside.name_acquire(NAME)
    with refused(EAGAIN):
        reader.recv()
