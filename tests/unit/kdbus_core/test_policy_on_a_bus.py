"""Decisions about connections of a bus: what holders and endpoints upload, and what ends with them."""

from __future__ import annotations

from errno import EEXIST, EPERM

from broker_world import OWNER, STRANGER, World, refused

from kdbus_core.abi import AccessLevel, AccessType, HelloFlag, NameFlag
from kdbus_core.connection import Connection
from kdbus_core.metadata import Credentials, Process
from kdbus_core.policy import Access, PolicyEntry, may_own, may_see, may_see_name, may_talk

THIRD = Credentials(uid=3000, gid=3000)


def everybody(level: AccessLevel) -> tuple[Access, ...]:
    return (Access(AccessType.WORLD, 0, level),)


def hold(world: World, name: str, *accesses: Access) -> Connection:
    """A policy holder for one name."""
    holder = world.connect(flags=HelloFlag.POLICY_HOLDER, name=name)
    world.bus.update(holder, policy=[PolicyEntry(name, accesses)])
    return holder


def test_without_policy_strangers_neither_own_nor_talk() -> None:
    world = World()
    owner, stranger, third = (world.connect(credentials) for credentials in (OWNER, STRANGER, THIRD))
    world.bus.name_acquire(owner, "a.b", 0)
    with refused(EPERM):
        world.bus.name_acquire(stranger, "a.c", 0)
    with refused(EPERM):
        world.bus.name_acquire(stranger, "a.b", 0)
    assert not may_talk(stranger, owner)
    assert not may_talk(stranger, third)
    assert may_talk(owner, stranger)
    assert may_talk(stranger, world.connect(STRANGER))
    assert may_see_name(stranger, "a.b")
    assert may_see(stranger, owner)


def test_what_a_holder_grants_lasts_as_long_as_the_holder() -> None:
    world = World()
    owner, stranger = world.connect(), world.connect(STRANGER)
    holder = hold(world, "a.b", *everybody(AccessLevel.TALK))
    assert not may_talk(stranger, owner)
    world.bus.name_acquire(owner, "a.b", 0)
    assert may_talk(stranger, owner)
    world.bus.update(holder, policy=[PolicyEntry("a.b", ())])
    assert not may_talk(stranger, owner)
    world.bus.update(holder, policy=[PolicyEntry("a.*", everybody(AccessLevel.OWN))])
    assert may_talk(stranger, owner)
    assert may_own(stranger, "a.c")
    world.bus.disconnect(holder)
    assert not may_talk(stranger, owner)
    assert not may_own(stranger, "a.c")
    assert len(world.bus.policy) == 0


def test_a_name_that_was_acquired_is_not_taken_back_with_its_policy() -> None:
    world = World()
    stranger = world.connect(STRANGER)
    holder = hold(world, "a.b", Access(AccessType.USER, 2000, AccessLevel.OWN))
    world.bus.name_acquire(stranger, "a.b", 0)
    world.bus.disconnect(holder)
    assert world.bus.names.owner("a.b") is stranger


def test_an_activator_and_a_holder_do_not_share_a_name() -> None:
    world = World()
    hold(world, "a.b", *everybody(AccessLevel.TALK))
    with refused(EEXIST):
        world.connect_activator("a.b")
    assert world.bus.names.entry("a.b") is None
    hold(world, "a.b.*")


def test_a_queued_connection_is_opened_when_the_name_comes_to_it() -> None:
    world = World()
    owner, heir, stranger = world.connect(), world.connect(), world.connect(STRANGER)
    hold(world, "a.b", *everybody(AccessLevel.TALK))
    world.bus.name_acquire(owner, "a.b", 0)
    world.bus.name_acquire(heir, "a.b", NameFlag.QUEUE)
    assert [may_talk(stranger, connection) for connection in (owner, heir)] == [True, False]
    world.bus.name_release(owner, "a.b")
    assert [may_talk(stranger, connection) for connection in (owner, heir)] == [False, True]


def test_on_a_custom_endpoint_even_the_owner_of_the_bus_needs_both_policies() -> None:
    world = World()
    endpoint = world.bus.make_endpoint(f"{OWNER.uid}-custom", Process.of(OWNER))
    service, client = world.connect(), world.connect(endpoint=endpoint)
    world.bus.name_acquire(service, "a.b", 0)
    assert not client.is_owner
    assert not may_talk(client, service)
    assert not may_see(client, service)
    assert not may_see_name(client, "a.b")
    endpoint.update_policy([PolicyEntry("a.*", everybody(AccessLevel.OWN))])
    assert may_talk(client, service)
    assert may_see(client, service)
    assert may_see_name(client, "a.c")
    assert not may_own(client, "a.c")
    hold(world, "a.c", *everybody(AccessLevel.OWN))
    assert may_own(client, "a.c")
    endpoint.update_policy([])
    assert not may_talk(client, service)
    assert not may_own(client, "a.c")
