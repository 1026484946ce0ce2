"""Requests that were made through a name: who owes the answer when the name changes hands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from errno import EBADSLT

import pytest
from broker_world import refused
from native_world import NAME, NO_FLAGS, OWNER, World, running_world

from kdbus_core import Connection
from kdbus_core.names import QUEUE

OTHER_NAME = "org.example.Other"


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


def take_name(world: World, connection: Connection) -> None:
    world.bus.name_acquire(connection, NAME, 0)


def test_the_new_owner_answers_what_was_asked_of_the_name(world: World) -> None:
    world.connect_activator()
    sender, service = world.connect_many(2)
    world.request(sender, NAME, 1)
    waiter = world.call(sender, NAME, 2)
    take_name(world, service)
    world.reply(service, sender, 1, 11)
    world.reply(service, sender, 2, 12)
    assert world.read(sender) == ["#11"]
    assert waiter.outcomes == ["#12"]
    assert world.read(service) == ["#1", "#2"]
    world.assert_idle(sender, service)


@pytest.mark.parametrize(
    ("end", "words", "errno"),
    [
        ("death", "REPLY_DEAD #1", "EPIPE"),
        ("drop", "REPLY_DEAD #1", "EPIPE"),
        ("deadline", "REPLY_TIMEOUT #1", "ETIMEDOUT"),
    ],
)
def test_what_was_asked_of_a_name_has_one_outcome_with_its_new_owner(
    world: World, end: str, words: str, errno: str
) -> None:
    activator, sender, service = world.connect_activator(), world.connect(), world.connect()
    world.request(sender, NAME, 1)
    waiter = world.call(sender, NAME, 2)
    take_name(world, service)
    world.bus.disconnect(activator)
    assert world.read(sender) == waiter.outcomes == []
    if end == "death":
        world.bus.disconnect(service)
    elif end == "drop":
        world.drop(service)
        world.drop(service)
    else:
        world.pass_time()
    assert world.read(sender) == [words]
    assert waiter.outcomes == [errno]
    if service.active:
        world.bus.disconnect(service)
    world.pass_time()
    assert world.read(sender) == []
    assert waiter.outcomes == [errno]
    world.assert_idle(sender, service)


def test_after_the_owners_death_the_next_one_answers_even_what_was_read(world: World) -> None:
    world.connect_activator()
    sender, first, second = world.connect_many(3)
    take_name(world, first)
    for cookie in (1, 2):
        world.request(sender, NAME, cookie)
    world.request(sender, first, 3)
    world.take(first)
    world.bus.disconnect(first)
    assert world.read(sender) == ["REPLY_DEAD #3"]
    take_name(world, second)
    assert world.read(second) == ["#2"]
    for cookie in (1, 2):
        world.reply(second, sender, cookie, 10 + cookie)
    assert world.read(sender) == ["#11", "#12"]


def test_without_an_activator_what_was_asked_of_a_name_dies_with_its_owner(world: World) -> None:
    sender, service, next_one = world.connect_many(3)
    take_name(world, service)
    world.bus.name_acquire(next_one, NAME, QUEUE)
    world.request(sender, NAME, 1)
    waiter = world.call(sender, NAME, 2)
    world.bus.disconnect(service)
    assert world.read(sender) == ["REPLY_DEAD #1"]
    assert waiter.outcomes == ["EPIPE"]
    assert world.read(next_one) == []


def test_what_somebody_asked_of_the_name_it_takes_itself_is_not_its_own_to_answer(world: World) -> None:
    world.connect_activator()
    service = world.connect()
    world.request(service, NAME, 7)
    take_name(world, service)
    assert world.read(service) == ["#7"]
    with refused(EBADSLT):
        world.reply(service, service, 7, 8)
    world.pass_time()
    assert world.read(service) == ["REPLY_TIMEOUT #7"]
    world.assert_idle(service)


def test_what_somebody_asked_of_the_name_it_takes_itself_may_be_thrown_away(world: World) -> None:
    activator, service = world.connect_activator(), world.connect()
    world.request(service, NAME, 7)
    take_name(world, service)
    world.drop(service)
    world.bus.disconnect(activator)
    assert world.read(service) == ["REPLY_DEAD #7"]
    world.assert_idle(service)


def test_a_call_of_its_own_name_that_goes_back_ends_with_the_caller(world: World) -> None:
    activator, service = world.connect_activator(), world.connect()
    take_name(world, service)
    waiter = world.call(service, NAME, 7)
    world.bus.disconnect(service)
    assert waiter.outcomes == ["ESHUTDOWN"]
    assert world.read(activator) == ["#7"]
    world.assert_idle(activator, service)


@pytest.mark.parametrize(
    "obstacle", [World.use_up_pool, World.use_up_quota, lambda world, service: lambda: None]
)
def test_a_request_that_is_lost_on_the_way_still_has_one_outcome(
    world: World, obstacle: Callable[[World, Connection], Callable[[], None]]
) -> None:
    world.connect_activator()
    sender, service = world.connect(), world.connect(flags=NO_FLAGS)
    world.request(sender, NAME, 7, world.fds("a"))
    waiter = world.call(sender, NAME, 8, world.fds("b"))
    remove = obstacle(world, service)
    take_name(world, service)
    remove()
    assert world.read(service) == ["lost 2"]
    world.assert_files_closed()
    world.pass_time()
    assert world.read(sender) == ["REPLY_TIMEOUT #7"]
    assert waiter.outcomes == ["ETIMEDOUT"]
    world.bus.disconnect(service)
    world.assert_idle(sender, service)


def test_what_is_lost_on_the_way_dies_with_the_new_receiver(world: World) -> None:
    world.connect_activator()
    sender, service = world.connect(), world.connect(flags=NO_FLAGS)
    waiter = world.call(sender, NAME, 8, world.fds("b"))
    take_name(world, service)
    world.bus.name_release(service, NAME)
    take_name(world, service)
    world.bus.disconnect(service)
    assert waiter.outcomes == []  # the activator owes it again
    world.pass_time()
    assert waiter.outcomes == ["ETIMEDOUT"]


def test_an_activator_hands_over_nothing_to_a_connection_of_a_proxy(world: World) -> None:
    activator, sender = world.connect_activator(), world.connect()
    world.request(sender, NAME, 7)
    local = world.bus.hello(world.bus.endpoint, OWNER)
    take_name(world, local)
    assert world.read(activator) == ["#7"]
    world.bus.disconnect(activator)
    assert world.read(sender) == ["REPLY_DEAD #7"]
    world.bus.disconnect(local)
