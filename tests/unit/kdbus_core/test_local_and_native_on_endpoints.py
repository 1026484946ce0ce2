"""A native connection on a custom endpoint beside local ones: its policy decides what it sees of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from local_world import Local
from native_world import EVERY_NOTICE, NAME, OWNER, World, errno_of, everything, running_world

from kdbus_core import Connection, Endpoint
from kdbus_core.abi import ATTACH_ALL, AccessLevel, AccessType, ItemType
from kdbus_core.matches import MatchRule
from kdbus_core.policy import Access, PolicyEntry


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


class Inside:
    """A native connection on an endpoint of its own, which shows nothing yet."""

    def __init__(self, world: World, *rules: MatchRule) -> None:
        self.world = world
        self.endpoint: Endpoint = world.bus.make_endpoint("1000-inside", OWNER)
        self.connection: Connection = world.connect(endpoint=self.endpoint, attach_recv=ATTACH_ALL)
        world.listen(self.connection, *rules)

    def allow(self, level: AccessLevel | None, name: str = NAME) -> None:
        entries: Sequence[PolicyEntry] = ()
        if level is not None:
            entries = [PolicyEntry(name, (Access(AccessType.WORLD, 0, level),))]
        self.endpoint.update_policy(entries)

    def read(self) -> list[str]:
        return self.world.read(self.connection)


def named(world: World) -> Local:
    local = Local(world)
    world.bus.name_acquire(local.connection, NAME, 0)
    return local


@pytest.mark.parametrize("level", [None, AccessLevel.SEE])
def test_who_may_not_talk_to_a_local_connection_sends_it_nothing(
    world: World, level: AccessLevel | None
) -> None:
    local, inside = named(world), Inside(world)
    inside.allow(level)
    for to in (NAME, local.connection):
        assert errno_of(partial(world.send, inside.connection, to, 1)) == "EPERM"
        assert errno_of(partial(world.request, inside.connection, to, 2)) == "EPERM"
        assert errno_of(partial(world.call, inside.connection, to, 3)) == "EPERM"
    assert local.read() == []
    world.assert_idle(inside.connection)
    inside.allow(AccessLevel.TALK)
    world.request(inside.connection, NAME, 4)
    inside.allow(None)
    assert errno_of(lambda: world.request(inside.connection, NAME, 5)) == "EPERM"
    world.reply(local.connection, inside.connection, 4, 6)
    assert (local.read(), inside.read()) == (["#4"], ["#6"])


def test_signals_of_local_connections_are_for_who_may_talk_to_them(world: World) -> None:
    local, inside = named(world), Inside(world, everything())
    for level, heard in [(None, []), (AccessLevel.SEE, []), (AccessLevel.TALK, ["#1", "#2"])]:
        inside.allow(level)
        world.signal(local.connection, None, 1)
        world.signal(local.connection, inside.connection, 2)
        assert inside.read() == heard


def test_the_names_of_local_connections_are_hidden(world: World) -> None:
    inside = Inside(world, *EVERY_NOTICE)
    inside.allow(AccessLevel.SEE, "org.example.Other")
    local = named(world)
    local.ask(inside.connection, 1)
    mail = world.take(inside.connection)  # that somebody is there is no secret, as in the kernel
    assert mail.words == f"ID_ADD {local.connection.id}"
    mail = world.take(inside.connection)
    assert mail.words == "#1"
    assert ItemType.OWNED_NAME not in {item.type for item in mail.items}
    world.bus.name_release(local.connection, NAME)
    assert inside.read() == []
    inside.allow(AccessLevel.SEE)
    world.bus.name_acquire(local.connection, NAME, 0)
    assert inside.read() == [f"NAME_ADD {NAME} 0→{local.connection.id}"]


def test_a_local_call_into_an_endpoint_is_answered(world: World) -> None:
    local, inside = Local(world), Inside(world)
    local.ask(inside.connection, 1)
    assert inside.read() == ["#1"]
    world.reply(inside.connection, local.connection, 1, 2)
    assert local.read() == ["#2"]


def test_the_end_of_an_endpoint_ends_requests_both_ways(world: World) -> None:
    local, inside = named(world), Inside(world)
    inside.allow(AccessLevel.TALK)
    local.ask(inside.connection, 1)
    world.request(inside.connection, NAME, 2)
    inside.endpoint.close()
    assert local.read() == ["#2", "REPLY_DEAD #1"]
    local.assert_idle()
    assert errno_of(lambda: world.reply(local.connection, inside.connection, 2, 3)) == "ENXIO"
