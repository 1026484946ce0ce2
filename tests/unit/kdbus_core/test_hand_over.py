"""Messages that follow a name from its activator to an owner and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from native_mail import inbox_of, look
from native_world import NAME, NO_FLAGS, OWNER, STRANGER, World, bulk, errno_of, everything, running_world

from kdbus_core import Connection
from kdbus_core.abi import AccessLevel, AccessType, AttachFlag, HelloFlag, ItemType, ReceiveFlag
from kdbus_core.message import Vec
from kdbus_core.names import ALLOW_REPLACEMENT, QUEUE, REPLACE_EXISTING
from kdbus_core.policy import Access

OTHER_NAME = "org.example.Other"


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


def take_name(world: World, connection: Connection) -> None:
    world.bus.name_acquire(connection, NAME, 0)


# To the owner


def test_what_waits_for_a_name_goes_to_whoever_takes_it_and_nothing_else(world: World) -> None:
    activator, sender, service = world.connect_activator(), world.connect(), world.connect()
    world.send(sender, service, 1)
    for cookie in (2, 3):
        world.send(sender, NAME, cookie)
    take_name(world, service)
    world.send(sender, NAME, 4)
    assert world.read(service) == ["#1", "#2", "#3", "#4"]
    assert world.read(activator) == []
    world.assert_idle(activator, service)


def test_a_message_arrives_with_all_it_had(world: World) -> None:
    world.connect_activator()
    sender, service = world.connect_many(2)
    world.send(sender, NAME, 7, Vec(b"hello"), world.fds("a"), world.memfd("m"), priority=-4)
    take_name(world, service)
    world.send(sender, NAME, 8)
    mail, _, _ = world.receive(service, ReceiveFlag.USE_PRIORITY, -4)
    assert mail is not None
    assert (mail.src, mail.dst, mail.cookie, mail.priority) == (sender.id, 0, 7, -4)
    assert mail.payload == b"hello\0\0\0"
    assert mail.item(ItemType.DST_NAME).string == NAME
    assert world.installed == ["m", "a"]
    world.assert_idle(world.connect())


def test_what_the_activator_has_read_stays_read(world: World) -> None:
    activator, sender, service = world.connect_activator(), world.connect(), world.connect()
    for cookie in (1, 2, 3):
        world.send(sender, NAME, cookie)
    world.take(activator)
    world.drop(activator)
    take_name(world, service)
    assert world.read(service) == ["#3"]
    assert world.read(activator) == []


def test_what_the_activator_has_looked_at_goes_and_can_still_be_looked_at(world: World) -> None:
    activator, sender, service = world.connect_activator(), world.connect(), world.connect()
    world.send(sender, NAME, 7, Vec(b"contents"))
    seen, _, _ = world.receive(activator, ReceiveFlag.PEEK)
    assert seen is not None
    take_name(world, service)
    world.assert_idle(activator)
    assert look(activator, 0, inbox_of(activator).pool.busy).payload == b"contents"
    inbox_of(activator).pool.free(0)
    assert inbox_of(activator).pool.busy == 0
    assert world.read(service) == ["#7"]


def test_only_messages_to_this_name_go(world: World) -> None:
    activator, other = world.connect_activator(), world.connect_activator(OTHER_NAME)
    sender, service = world.connect_many(2)
    world.send(sender, NAME, 1)
    world.send(sender, OTHER_NAME, 2)
    take_name(world, service)
    assert [world.read(connection) for connection in (activator, other, service)] == [[], ["#2"], ["#1"]]


def test_a_message_that_waits_for_a_name_tells_who_sent_it_as_it_was_then(world: World) -> None:
    wanted = AttachFlag.NAMES
    world.connect(flags=HelloFlag.ACTIVATOR, name=NAME, attach_recv=wanted)
    sender, service = world.connect(attach_send=wanted), world.connect(attach_recv=wanted)
    world.bus.name_acquire(sender, "org.example.Before", 0)
    world.send(sender, NAME, 7)
    world.bus.name_release(sender, "org.example.Before")
    world.bus.name_acquire(sender, "org.example.After", 0)
    take_name(world, service)
    assert world.take(service).item(ItemType.OWNED_NAME).payload[8:-1] == b"org.example.Before"


def test_a_message_of_somebody_who_has_gone_arrives(world: World) -> None:
    world.connect_activator()
    sender, service = world.connect(OWNER, attach_send=AttachFlag.PIDS), world.connect()
    world.send(sender, NAME, 7, world.fds("a"))
    world.bus.disconnect(sender)
    take_name(world, service)
    assert world.read(service) == ["#7"]
    world.assert_files_closed()


def test_each_sender_is_charged_at_the_new_receiver(world: World) -> None:
    activator, service = world.connect_activator(), world.connect()
    first, second = world.connect(OWNER), world.connect(STRANGER)
    world.send(first, NAME, 1)
    world.bus.policy.remove(activator)
    world.connect(
        flags=HelloFlag.POLICY_HOLDER,
        name=NAME,
        accesses=[Access(AccessType.WORLD, 0, AccessLevel.TALK)],
    )
    world.send(second, NAME, 2)
    take_name(world, service)
    assert {user.uid for user in service.quota.shares} == {1000, 2000}
    assert not activator.quota.shares
    assert world.read(service) == ["#1", "#2"]


def test_the_news_of_the_name_comes_after_what_waited_for_it(world: World) -> None:
    activator, sender, service = world.connect_activator(), world.connect(), world.connect()
    world.bus.match_add(service, 1, [])
    world.send(sender, NAME, 7)
    take_name(world, service)
    assert world.read(service) == ["#7", f"NAME_CHANGE {NAME} {activator.id}→{service.id}"]


# What does not arrive


def test_what_finds_no_room_is_lost_for_the_new_receiver(world: World) -> None:
    world.connect_activator()
    sender, service = world.connect(), world.connect(pages=1)
    world.send(sender, NAME, 1, world.memfd("m"))
    world.send(sender, NAME, 2, world.fds("a"), bulk(5000))
    world.send(sender, NAME, 3)
    take_name(world, service)
    assert world.read(service) == ["lost 1", "#1", "#3"]
    world.assert_files_closed()


def test_what_carries_files_is_lost_for_whoever_accepts_none(world: World) -> None:
    activator, sender, service = world.connect_activator(), world.connect(), world.connect(flags=NO_FLAGS)
    world.send(sender, NAME, 1, world.fds("a"))
    world.send(sender, NAME, 2, world.memfd("m"))
    take_name(world, service)
    assert world.read(service) == ["lost 1", "#2"]
    assert world.installed == ["m"]
    world.assert_idle(activator)
    world.assert_files_closed()


def test_an_owner_that_has_no_room_does_not_keep_anybody_from_taking_the_name(world: World) -> None:
    activator, sender, service = world.connect_activator(), world.connect(), world.connect()
    free = world.use_up_pool(service)
    for cookie in range(3):
        world.send(sender, NAME, cookie)
    assert errno_of(lambda: take_name(world, service)) == ""
    free()
    assert world.read(service) == ["lost 3"]
    world.assert_idle(activator, service)


# And back


def test_what_the_owner_leaves_unread_goes_back_and_to_the_next_one(world: World) -> None:
    activator, sender, first, second = world.connect_activator(), *world.connect_many(3)
    for cookie in (1, 2, 3):
        world.send(sender, NAME, cookie)
    take_name(world, first)
    world.send(sender, first, 4)
    world.take(first)
    world.bus.name_release(first, NAME)
    assert len(inbox_of(activator)) == 2
    world.send(sender, NAME, 5)
    take_name(world, second)
    assert world.read(first) == ["#4"]
    assert world.read(second) == ["#2", "#3", "#5"]
    assert world.read(activator) == []


def test_what_the_owner_has_not_read_goes_back_when_it_goes(world: World) -> None:
    activator, sender, service = world.connect_activator(), world.connect(), world.connect()
    take_name(world, service)
    world.send(sender, NAME, 1, world.fds("a"))
    world.send(sender, service, 2, world.fds("b"))
    world.bus.disconnect(service)
    assert world.read(activator) == ["#1"]
    assert world.installed == ["a"]
    world.assert_idle(activator, service)
    world.assert_files_closed()


def test_a_signal_to_a_name_goes_along_whoever_wants_it(world: World) -> None:
    activator, sender, first, second = world.connect_activator(), *world.connect_many(3)
    take_name(world, first)
    world.listen(first, everything())
    world.signal(sender, NAME, 1, world.memfd("m"))
    world.signal(sender, None, 2)
    world.bus.name_release(first, NAME)
    assert world.read(first) == ["#2"]
    assert len(inbox_of(activator)) == 1
    take_name(world, second)
    assert world.read(second) == ["#1"]
    world.assert_files_closed()


def test_nothing_goes_from_one_owner_to_another(world: World) -> None:
    world.connect_activator()
    sender, first, second = world.connect_many(3)
    world.bus.name_acquire(first, NAME, ALLOW_REPLACEMENT | QUEUE)
    world.send(sender, NAME, 1)
    world.bus.name_acquire(second, NAME, REPLACE_EXISTING)
    world.send(sender, NAME, 2)
    world.bus.name_release(second, NAME)
    assert world.read(first) == ["#1"]
    assert world.read(second) == ["#2"]


def test_what_was_sent_to_an_earlier_life_of_a_name_stays(world: World) -> None:
    sender, first, second = world.connect_many(3)
    take_name(world, first)
    world.send(sender, NAME, 1)
    world.bus.name_release(first, NAME)
    activator = world.connect_activator()
    take_name(world, second)
    assert [world.read(connection) for connection in (first, activator, second)] == [["#1"], [], []]


def test_what_waits_for_a_name_goes_with_its_activator(world: World) -> None:
    activator, sender, service = world.connect_activator(), world.connect(), world.connect()
    world.send(sender, NAME, 1, world.fds("a"))
    world.request(sender, NAME, 2)
    waiter = world.call(sender, NAME, 3)
    world.bus.disconnect(activator)
    assert world.read(sender) == ["REPLY_DEAD #2"]
    assert waiter.outcomes == ["EPIPE"]
    take_name(world, service)
    assert world.read(service) == []
    world.assert_idle(activator, sender)
    world.assert_files_closed()


def test_a_message_that_goes_to_a_later_activator_tells_who_sent_it_as_it_was_then(world: World) -> None:
    owner, sender = world.connect(), world.connect(attach_send=AttachFlag.NAMES)
    take_name(world, owner)
    world.send(sender, NAME, 1)
    activator = world.connect(flags=HelloFlag.ACTIVATOR, name=NAME, attach_recv=AttachFlag.NAMES)
    world.bus.name_acquire(sender, OTHER_NAME, 0)
    world.bus.name_release(owner, NAME)
    mail = world.take(activator)
    assert [item.type for item in mail.items] == [ItemType.DST_NAME]
