"""UPDATE, MATCH_ADD, MATCH_REMOVE and name commands of native connections."""

from __future__ import annotations

from collections.abc import Iterator
from errno import E2BIG, EBADSLT, EEXIST, EINVAL, EMFILE, EOPNOTSUPP, EPERM, ESRCH
from typing import Any

import pytest
from broker_world import refused
from native_world import NAME, OWNER, STRANGER, World, errno_of, everything, running_world

from kdbus_core.abi import ATTACH_ALL, ATTACH_ANY, AccessLevel, AccessType, AttachFlag, HelloFlag
from kdbus_core.connection import Limits
from kdbus_core.matches import IdMatch
from kdbus_core.names import ACQUIRED, PRIMARY
from kdbus_core.policy import Access, PolicyEntry

OTHER_NAME = "org.example.Other"
UNKNOWN = 1 << 20
TALK = (Access(AccessType.WORLD, 0, AccessLevel.TALK),)
OWN = (Access(AccessType.WORLD, 0, AccessLevel.OWN),)
KINDS = ["ordinary", "monitor", "activator", "policy holder"]


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


# UPDATE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"attach_send": 1}, {"ordinary", "monitor"}),
        ({"attach_recv": 1}, {"ordinary", "monitor", "activator"}),
        ({"policy": []}, {"policy holder"}),
        ({"attach_send": 1, "attach_recv": 1}, {"ordinary", "monitor"}),
        ({}, set(KINDS)),
    ],
)
def test_each_kind_of_connection_updates_what_it_has(
    world: World, kind: str, change: dict[str, Any], allowed: set[str]
) -> None:
    connection = world.connect_kind(kind)
    errno = errno_of(lambda: world.bus.update(connection, **change))
    assert errno == ("" if kind in allowed else "EOPNOTSUPP")


def test_masks_are_changed_and_everything_is_all(world: World) -> None:
    connection = world.connect()
    world.bus.update(connection, attach_send=ATTACH_ANY, attach_recv=AttachFlag.PIDS)
    assert (connection.attach_send, connection.attach_recv) == (ATTACH_ALL, AttachFlag.PIDS)
    world.bus.update(connection, attach_send=0)
    assert (connection.attach_send, connection.attach_recv) == (0, AttachFlag.PIDS)
    world.bus.update(connection, attach_recv=0)
    assert (connection.attach_send, connection.attach_recv) == (0, 0)


@pytest.mark.parametrize(
    "change", [{"attach_send": UNKNOWN}, {"attach_recv": UNKNOWN}, {"attach_send": 1, "attach_recv": UNKNOWN}]
)
def test_masks_with_unknown_bits_change_nothing(world: World, change: dict[str, Any]) -> None:
    connection = world.connect(attach_send=2, attach_recv=4)
    with refused(EINVAL):
        world.bus.update(connection, **change)
    assert (connection.attach_send, connection.attach_recv) == (2, 4)


def test_what_the_bus_requires_cannot_be_taken_back(world: World) -> None:
    world.bus.required = AttachFlag.PIDS
    connection = world.connect(attach_send=ATTACH_ALL)
    with refused(EINVAL):
        world.bus.update(connection, attach_send=AttachFlag.CREDS, attach_recv=1)
    assert (connection.attach_send, connection.attach_recv) == (ATTACH_ALL, 0)
    world.bus.update(connection, attach_send=AttachFlag.PIDS, attach_recv=1)
    assert (connection.attach_send, connection.attach_recv) == (AttachFlag.PIDS, 1)


def test_a_new_mask_counts_for_the_next_message(world: World) -> None:
    sender, receiver = world.connect(attach_send=AttachFlag.PIDS), world.connect()
    world.send(sender, receiver, 1)
    world.bus.update(receiver, attach_recv=AttachFlag.PIDS)
    world.send(sender, receiver, 2)
    assert [len(world.take(receiver).items) for _ in range(2)] == [0, 1]


def test_a_policy_holder_may_change_its_name_and_its_rules(world: World) -> None:
    holder = world.connect(flags=HelloFlag.POLICY_HOLDER, name=NAME, accesses=TALK)
    level = world.bus.policy.level
    world.bus.update(holder, policy=[PolicyEntry(OTHER_NAME, OWN)])
    assert (level(STRANGER.credentials, NAME), level(STRANGER.credentials, OTHER_NAME)) == (None, 2)
    world.bus.update(holder, policy=[PolicyEntry(OTHER_NAME, ())])
    assert (level(STRANGER.credentials, OTHER_NAME), len(world.bus.policy)) == (None, 1)
    world.bus.update(holder, policy=[])
    assert len(world.bus.policy) == 0


def test_a_policy_that_is_refused_changes_nothing(world: World) -> None:
    holder = world.connect(flags=HelloFlag.POLICY_HOLDER, name=NAME, accesses=TALK)
    world.connect(flags=HelloFlag.POLICY_HOLDER, name=OTHER_NAME)
    with refused(E2BIG):
        world.bus.update(holder, policy=[PolicyEntry(NAME, ()), PolicyEntry("org.example.New", ())])
    with refused(EEXIST):
        world.bus.update(holder, policy=[PolicyEntry(OTHER_NAME, ())])
    with refused(EINVAL):
        world.bus.update(holder, policy=[PolicyEntry("nodots", ())])
    assert world.bus.policy.level(STRANGER.credentials, NAME) == AccessLevel.TALK


# Matches


def test_what_is_under_a_cookie_goes_together(world: World) -> None:
    me, sender = world.connect_many(2)
    for cookie in (7, 7, 8):
        world.bus.match_add(me, cookie, [everything()])
    assert me.match_count == 3
    world.bus.match_remove(me, 7)
    assert me.match_count == 1
    world.signal(sender, None, 1)
    world.bus.match_remove(me, 8)
    world.signal(sender, None, 2)
    assert world.read(me) == ["#1"]


def test_what_is_not_there_cannot_be_removed(world: World) -> None:
    me, other = world.connect_many(2)
    world.bus.match_add(other, 7, [])
    with refused(EBADSLT):
        world.bus.match_remove(me, 7)
    world.bus.match_remove(other, 7)
    with refused(EBADSLT):
        world.bus.match_remove(other, 7)


def test_a_match_may_take_the_place_of_all_under_its_cookie(world: World) -> None:
    me, sender, other = world.connect_many(3)
    for _ in range(2):
        world.bus.match_add(me, 7, [everything()])
    world.bus.match_add(me, 7, [IdMatch(other.id)], replace=True)
    world.bus.match_add(me, 8, [IdMatch(other.id)], replace=True)
    assert me.match_count == 2
    world.signal(sender, None, 1)
    world.signal(other, None, 2)
    assert world.read(me) == ["#2"]


def test_a_connection_has_so_many_matches_and_subscriptions_together(world: World) -> None:
    me = world.connect(limits=Limits(matches=2))
    world.bus.match_add(me, 1, [])
    world.bus.match_add(me, 2, [everything()])
    with refused(EMFILE):
        world.bus.match_add(me, 3, [])
    assert (me.match_count, list(me.matches)) == (2, [1, 2])
    world.bus.match_add(me, 2, [], replace=True)
    with refused(EMFILE):
        world.bus.match_add(me, 3, [], replace=True)
    world.bus.match_remove(me, 1)
    world.bus.match_add(me, 3, [])


def test_a_connection_has_4096_matches(world: World) -> None:
    me = world.connect()
    for cookie in range(4096):
        world.bus.match_add(me, cookie, [])
    with refused(EMFILE):
        world.bus.match_add(me, 4096, [])


@pytest.mark.parametrize("kind", ["monitor", "activator", "policy holder"])
def test_special_connections_have_neither_matches_nor_names_of_their_own(world: World, kind: str) -> None:
    special = world.connect_kind(kind)
    bus = world.bus
    for command in (
        lambda: bus.match_add(special, 0, []),
        lambda: bus.match_remove(special, 0),
        lambda: bus.name_acquire(special, OTHER_NAME, 0),
        lambda: bus.name_release(special, NAME),
    ):
        with refused(EOPNOTSUPP):
            command()
    assert special.match_count == 0


# Names


def test_a_stranger_owns_what_policy_lets_it_own(world: World) -> None:
    stranger = world.connect(STRANGER)
    world.bus.name_acquire(world.connect(), NAME, 0)
    for name in (NAME, OTHER_NAME):
        with refused(EPERM):  # whether somebody owns it is not told
            world.bus.name_acquire(stranger, name, 0)
    with refused(EINVAL):
        world.bus.name_acquire(stranger, "nodots", 0)
    world.connect(flags=HelloFlag.POLICY_HOLDER, name=OTHER_NAME, accesses=OWN)
    assert world.bus.name_acquire(stranger, OTHER_NAME, 0) == PRIMARY | ACQUIRED
    assert stranger.names.keys() == {OTHER_NAME}


def test_nothing_comes_of_a_name_that_was_refused(world: World) -> None:
    stranger = world.connect(STRANGER)
    with refused(EPERM):
        world.bus.name_acquire(stranger, NAME, 0)
    assert world.bus.names.entry(NAME) is None
    with refused(ESRCH):
        world.bus.name_release(stranger, NAME)


def test_even_the_owner_of_the_bus_needs_the_policy_of_a_custom_endpoint(world: World) -> None:
    door = world.bus.make_endpoint("1000-door", OWNER)
    inside = world.connect(endpoint=door)
    with refused(EPERM):
        world.bus.name_acquire(inside, NAME, 0)
    door.update_policy([PolicyEntry(NAME, OWN)])
    with refused(EPERM):
        world.bus.name_acquire(inside, NAME, 0)
    world.connect(flags=HelloFlag.POLICY_HOLDER, name=NAME, accesses=OWN)
    world.bus.name_acquire(inside, NAME, 0)
