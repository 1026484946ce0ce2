"""Endpoints: who makes them, who enters, who counts as an owner there, and their policy."""

from __future__ import annotations

from errno import EEXIST, EINVAL, EPERM, ESHUTDOWN

import pytest
from broker_world import OWNER, STRANGER, World, refused

from kdbus_core import Credentials
from kdbus_core.abi import AccessLevel, AccessType, MakeFlag
from kdbus_core.metadata import Creds, Process, Snapshot
from kdbus_core.policy import Access, PolicyEntry

ROOT = Process.of(Credentials(uid=0, gid=0), privileged=True)
ACCESS_WORLD = MakeFlag.ACCESS_WORLD
NAME = "org.example.Name"
SEEN = PolicyEntry(NAME, (Access(AccessType.WORLD, 0, AccessLevel.SEE),))


# Who counts as an owner


@pytest.mark.parametrize(
    ("uid", "privileged", "expected"),
    [(1000, False, True), (2000, False, False), (0, False, False), (2000, True, True), (None, False, False)],
)
def test_who_is_an_owner(uid: int | None, privileged: bool, expected: bool) -> None:
    endpoint = World().bus.endpoint
    assert endpoint.is_owner(Process.of(Credentials(uid=uid), privileged=privileged)) is expected


@pytest.mark.parametrize(("creds", "expected"), [((5, 1000), True), ((1000, 5), False)])
def test_the_effective_uid_makes_an_owner(creds: tuple[int, int], expected: bool) -> None:
    real, effective = creds
    process = Process(Snapshot(creds=Creds(uid=real, euid=effective)))
    assert World().bus.endpoint.is_owner(process) is expected


def test_on_a_bus_whose_owner_is_unknown_nobody_unknown_is_an_owner() -> None:
    bus = World().bus
    bus.owner = Credentials()
    assert not bus.endpoint.is_owner(Process.of(Credentials()))


def test_nobody_is_an_owner_on_a_custom_endpoint() -> None:
    world = World()
    door = world.bus.make_endpoint("1000-door", Process.of(OWNER))
    assert not any(door.is_owner(process) for process in (Process.of(OWNER), ROOT))


# Who enters


@pytest.mark.parametrize(
    ("of_bus", "of_endpoint", "expected"),
    [(0, 0, False), (0, ACCESS_WORLD, False), (ACCESS_WORLD, 0, False), (ACCESS_WORLD, ACCESS_WORLD, True)],
)
def test_a_stranger_needs_to_get_into_the_bus_and_the_endpoint(
    of_bus: int, of_endpoint: int, expected: bool
) -> None:
    world = World()
    bus = world.domain.make_bus("1000-other", Process.of(OWNER), MakeFlag(of_bus))
    door = bus.make_endpoint("1000-door", Process.of(OWNER), MakeFlag(of_endpoint))
    assert door.may_open(Process.of(STRANGER)) is expected
    assert door.may_open(Process.of(OWNER))
    assert door.may_open(ROOT)


def test_a_default_endpoint_lets_in_whom_the_bus_lets_in() -> None:
    world = World()
    closed = world.bus.endpoint
    opened = world.domain.make_bus("1000-other", Process.of(OWNER), ACCESS_WORLD).endpoint
    assert (closed.may_open(Process.of(STRANGER)), opened.may_open(Process.of(STRANGER))) == (False, True)


def test_the_owner_of_the_bus_does_not_get_into_what_somebody_else_made() -> None:
    world = World()
    door = world.bus.make_endpoint("0-door", ROOT)
    assert door.owner is ROOT.credentials
    assert not door.may_open(Process.of(OWNER))
    assert door.may_open(ROOT)


# Making and ending


def test_an_endpoint_is_found_under_its_name() -> None:
    world = World()
    door = world.bus.make_endpoint("1000-door", Process.of(OWNER), MakeFlag.ACCESS_GROUP)
    assert world.bus.endpoints == {"bus": world.bus.endpoint, "1000-door": door}
    assert (door.bus, door.owner, door.access) == (world.bus, OWNER, MakeFlag.ACCESS_GROUP)
    assert (door.is_default, world.bus.endpoint.is_default) == (False, True)
    assert (world.bus.endpoint.policy, world.bus.endpoint.user) == (None, None)
    assert repr(door) == "Endpoint(1000-test/1000-door)"


@pytest.mark.parametrize(
    ("maker", "name", "errno"),
    [
        (Process.of(STRANGER), "2000-door", EPERM),
        (Process.of(STRANGER), "nonsense", EPERM),
        (Process.of(Credentials()), "None-door", EPERM),
        (Process.of(OWNER), "door", EINVAL),
        (Process.of(OWNER), "2000-door", EINVAL),
        (ROOT, "1000-other", EINVAL),
        (Process.of(Credentials(), privileged=True), "None-door", EINVAL),
        (Process.of(OWNER), "1000-door", EEXIST),
    ],
)
def test_an_endpoint_that_may_not_be_made_is_not(maker: Process, name: str, errno: int) -> None:
    world = World()
    door = world.bus.make_endpoint("1000-door", Process.of(OWNER))
    with refused(errno):
        world.bus.make_endpoint(name, maker)
    assert world.bus.endpoints == {"bus": world.bus.endpoint, "1000-door": door}


def test_the_name_of_an_endpoint_that_has_gone_is_free() -> None:
    world = World()
    door = world.bus.make_endpoint("1000-door", Process.of(OWNER))
    door.close()
    door.close()
    assert world.bus.make_endpoint("1000-door", Process.of(OWNER)) is not door
    with refused(ESHUTDOWN):
        world.connect(endpoint=door)


def test_an_endpoint_ends_with_its_bus_and_so_do_its_connections() -> None:
    world = World()
    door = world.bus.make_endpoint("1000-door", Process.of(OWNER))
    connections = [world.connect(endpoint=door), world.connect()]
    world.bus.close()
    assert not door.active
    assert not world.bus.endpoint.active
    assert not any(connection.active for connection in connections)
    assert not world.bus.endpoints


# Policy


def test_a_new_endpoint_shows_nothing() -> None:
    door = World().bus.make_endpoint("1000-door", Process.of(OWNER))
    assert door.policy is not None
    assert door.policy.level(OWNER, NAME) is None


def test_a_new_policy_replaces_the_old_one_or_nothing_changes() -> None:
    door = World().bus.make_endpoint("1000-door", Process.of(OWNER))
    assert door.policy is not None
    door.update_policy([SEEN])
    with refused(EEXIST):
        door.update_policy([PolicyEntry("org.example.Other", ()), SEEN, SEEN])
    with refused(EINVAL):
        door.update_policy([PolicyEntry("org.example.Other", ()), PolicyEntry("nodots", ())])
    assert door.policy.level(STRANGER, NAME) == AccessLevel.SEE
    assert len(door.policy) == 1
    door.update_policy([])
    assert len(door.policy) == 0


def test_two_endpoints_and_the_bus_have_policies_of_their_own() -> None:
    world = World()
    doors = [world.bus.make_endpoint(f"1000-{name}", Process.of(OWNER)) for name in ("a", "b")]
    for door in doors:
        door.update_policy([SEEN])
    assert len(world.bus.policy) == 0


def test_an_endpoint_that_has_gone_takes_no_policy() -> None:
    door = World().bus.make_endpoint("1000-door", Process.of(OWNER))
    door.close()
    with refused(ESHUTDOWN):
        door.update_policy([])
