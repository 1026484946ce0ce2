"""What waits with an activator when a local connection takes the name, and what stays when that goes."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EBADMSG, ENOBUFS

import pytest
from local_world import Local
from native_mail import inbox_of
from native_world import NAME, World, errno_of, running_world

from kdbus_core.message import Message
from kdbus_core.names import ALLOW_REPLACEMENT, QUEUE, REPLACE_EXISTING
from kdbus_core.notifications import NameChange, Notification


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


def take_name(world: World, local: Local, flags: int = 0) -> None:
    world.bus.name_acquire(local.connection, NAME, flags)


def test_what_waits_for_a_name_goes_to_the_local_owner_and_nothing_else(world: World) -> None:
    activator, native, local = world.connect_activator(), world.connect(), Local(world)
    world.send(native, local.connection, 1)
    for cookie in (2, 3):
        world.send(native, NAME, cookie)
    take_name(world, local)
    world.send(native, NAME, 4)
    assert local.read() == ["#1", "#2", "#3", "#4"]
    world.assert_idle(activator)


def test_everybody_knows_of_the_owner_before_it_gets_what_waited(world: World) -> None:
    world.connect_activator()
    native, local = world.connect(), Local(world)
    world.send(native, NAME, 1)
    order: list[str] = []

    def observe(notification: Notification) -> None:
        assert isinstance(notification, NameChange)
        order.append("told")
        assert local.log == []

    world.bus.observers.append(observe)
    take_name(world, local)
    world.bus.observers.clear()
    assert order == ["told"]
    assert local.read() == ["#1"]


def test_an_observer_may_fetch_what_came_before_something_of_its_own(world: World) -> None:
    world.connect_activator()
    native, local = world.connect(), Local(world)
    for cookie in range(1, 3):
        world.send(native, NAME, cookie)
    middle = world.bus.sequence
    world.send(native, NAME, 3)

    def observe(notification: Notification) -> None:
        world.bus.bring(local.connection, middle)
        local.log.append("own")

    world.bus.observers.append(observe)
    take_name(world, local)
    world.bus.observers.clear()
    assert local.read() == ["#1", "#2", "own", "#3"]


def test_the_duty_to_answer_goes_along(world: World) -> None:
    activator, native, local = world.connect_activator(), world.connect(), Local(world)
    world.request(native, NAME, 1)
    waiter = world.call(native, NAME, 2)
    take_name(world, local)
    assert errno_of(lambda: world.reply(activator, native, 1, 3)) == "EOPNOTSUPP"
    world.reply(local.connection, native, 1, 4)
    world.reply(local.connection, native, 2, 5)
    assert world.read(native) == ["#4"]
    assert waiter.outcomes == ["#5"]
    world.assert_idle(native, activator)


def test_files_go_along_and_are_closed_once(world: World) -> None:
    world.connect_activator()
    native, local = world.connect(), Local(world)
    world.send(native, NAME, 1, world.fds("a"), world.memfd("m"))
    seen: list[int] = []
    original = local.on_message

    def take(sender: object, message: Message) -> None:
        seen.append(len(message.files))
        assert not any(file.is_closed for file in message.files)  # type: ignore[attr-defined]
        original(message.sender, message)  # type: ignore[arg-type]

    local.on_message = take  # type: ignore[method-assign]
    take_name(world, local)
    assert seen == [1]
    world.assert_files_closed()


@pytest.mark.parametrize("errno", [ENOBUFS, EBADMSG])
def test_what_the_owner_does_not_take_is_lost_and_its_request_dead(world: World, errno: int) -> None:
    activator, native, local = world.connect_activator(), world.connect(), Local(world)
    world.request(native, NAME, 1, world.fds("a"))
    waiter = world.call(native, NAME, 2)
    world.send(native, NAME, 3)
    local.refuses = errno
    take_name(world, local)
    assert local.read() == []
    assert world.read(native) == ["REPLY_DEAD #1"]
    assert waiter.outcomes == ["EPIPE"]
    local.assert_idle()
    world.assert_idle(native, activator)


def test_an_owner_that_goes_at_once_leaves_nobody_waiting(world: World) -> None:
    activator, native, local = world.connect_activator(), world.connect(), Local(world)
    world.request(native, NAME, 1)

    def observe(notification: Notification) -> None:
        if isinstance(notification, NameChange) and notification.new is local.connection:
            local.leave()

    world.bus.observers.append(observe)
    take_name(world, local)
    world.bus.observers.clear()
    assert local.read() == []
    assert world.read(native) == ["REPLY_DEAD #1"]
    world.assert_idle(activator, native)


def test_a_requester_that_has_gone_is_not_waited_for(world: World) -> None:
    world.connect_activator()
    native, local = world.connect(), Local(world)
    world.request(native, NAME, 1)
    world.bus.disconnect(native)
    take_name(world, local)
    assert local.read() == ["#1"]
    local.assert_idle()


def test_a_deadline_that_passes_while_it_waits_is_told_once(world: World) -> None:
    world.connect_activator()
    native, local = world.connect(), Local(world)
    world.request(native, NAME, 1)
    world.pass_time()
    take_name(world, local)
    assert local.read() == ["#1"]
    assert world.read(native) == ["REPLY_TIMEOUT #1"]
    assert errno_of(lambda: world.reply(local.connection, native, 1, 2)) == "EBADSLT"


def test_an_owner_that_gives_the_name_back_still_owes_its_answers(world: World) -> None:
    """A local connection has got everything; there is nothing that the activator could hand on."""
    activator, native, local = world.connect_activator(), world.connect(), Local(world)
    take_name(world, local)
    world.request(native, NAME, 1)
    world.bus.name_release(local.connection, NAME)
    assert len(inbox_of(activator)) == 0
    world.reply(local.connection, native, 1, 2)
    assert world.read(native) == ["#2"]


def test_an_owner_that_dies_with_the_name_is_dead_to_those_who_wait(world: World) -> None:
    activator, native, local = world.connect_activator(), world.connect(), Local(world)
    take_name(world, local)
    world.request(native, NAME, 1)
    local.leave()
    assert world.read(native) == ["REPLY_DEAD #1"]
    world.assert_idle(native, activator)


def test_what_a_native_owner_has_not_read_reaches_a_local_one_by_way_of_the_activator(world: World) -> None:
    world.connect_activator()
    sender, owner, local = world.connect(), world.connect(), Local(world)
    world.bus.name_acquire(owner, NAME, 0)
    world.request(sender, NAME, 1)
    world.bus.disconnect(owner)
    take_name(world, local)
    assert local.read() == ["#1"]
    world.reply(local.connection, sender, 1, 2)
    assert world.read(sender) == ["#2"]


def test_between_owners_nothing_moves(world: World) -> None:
    native, owner, local = world.connect(), world.connect(), Local(world)
    world.bus.name_acquire(owner, NAME, ALLOW_REPLACEMENT | QUEUE)
    world.request(native, NAME, 1)
    take_name(world, local, REPLACE_EXISTING)
    assert local.read() == []
    assert world.read(owner) == ["#1"]
    world.reply(owner, native, 1, 2)
    assert world.read(native) == ["#2"]


def test_a_local_request_waits_with_an_activator_like_a_natives(world: World) -> None:
    activator, client, service = world.connect_activator(), Local(world), Local(world)
    client.ask(NAME, 7)
    take_name(world, service)
    (message,) = service.messages
    assert message.sender is client.connection
    world.reply(service.connection, client.connection, 7, 8)
    assert client.read() == ["#8"]
    world.assert_idle(activator)
    client.assert_idle()


def test_an_activator_that_goes_ends_what_waits_for_local_requesters_too(world: World) -> None:
    activator, client = world.connect_activator(), Local(world)
    client.ask(NAME, 7)
    world.bus.disconnect(activator)
    assert client.read() == ["REPLY_DEAD #7"]
