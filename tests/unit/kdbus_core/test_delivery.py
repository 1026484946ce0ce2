"""How messages get into queues: unicasts, signals, broadcasts, what monitors see, and RECV."""

from __future__ import annotations

from collections.abc import Iterator
from errno import ENOBUFS, ENXIO, EOPNOTSUPP, EPERM, EREMCHG, ESHUTDOWN

import pytest
from broker_world import refused
from native_mail import inbox_of
from native_world import (
    NAME,
    OTHER,
    OWNER,
    ROOT,
    SECOND,
    STRANGER,
    World,
    bulk,
    errno_of,
    everything,
    running_world,
)

from kdbus_core.abi import (
    AccessLevel,
    AccessType,
    AttachFlag,
    HelloFlag,
    ItemType,
    MessageFlag,
    ReceiveFlag,
)
from kdbus_core.connection import Limits
from kdbus_core.message import Vec
from kdbus_core.policy import Access, PolicyEntry

PEEK, DROP, USE_PRIORITY = ReceiveFlag.PEEK, ReceiveFlag.DROP, ReceiveFlag.USE_PRIORITY
EVERYBODY_TALKS = (Access(AccessType.WORLD, 0, AccessLevel.TALK),)
SIGNAL = MessageFlag.SIGNAL


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


# Unicasts


def test_a_message_arrives_as_it_was_sent(world: World) -> None:
    sender, receiver = world.connect_many(2)
    world.send(sender, receiver, 7, Vec(b"hello"), priority=-3)
    mail = world.take(receiver)
    assert (mail.src, mail.dst, mail.cookie, mail.priority, mail.last) == (sender.id, receiver.id, 7, -3, 0)
    assert mail.payload == b"hello\0\0\0"
    assert world.read(sender) == []


def test_messages_arrive_in_order_from_whomever(world: World) -> None:
    first, second, receiver = world.connect_many(3)
    for cookie, sender in enumerate((first, second, second, first, receiver)):
        world.send(sender, receiver, cookie)
    assert world.read(receiver) == ["#0", "#1", "#2", "#3", "#4"]


@pytest.mark.parametrize("is_pinned", [False, True])
def test_a_message_to_a_name_keeps_its_destination_as_it_was_sent(world: World, is_pinned: bool) -> None:
    sender, receiver = world.connect_many(2)
    world.bus.name_acquire(receiver, NAME, 0)
    dst_id = receiver.id if is_pinned else 0
    world.send(sender, NAME, 7, dst_id=dst_id)
    mail = world.take(receiver)
    assert (mail.words, mail.dst) == ("#7", dst_id)
    assert mail.item(ItemType.DST_NAME).string == NAME


def test_a_message_to_a_name_that_somebody_else_owns_is_refused(world: World) -> None:
    sender, receiver, other = world.connect_many(3)
    world.bus.name_acquire(receiver, NAME, 0)
    with refused(EREMCHG):
        world.send(sender, NAME, 7, dst_id=other.id)
    assert world.read(receiver) == world.read(other) == []


def test_an_activator_gets_what_is_sent_to_its_name_unless_nothing_shall_be_started(world: World) -> None:
    activator, sender = world.connect_activator(), world.connect()
    world.send(sender, NAME, 7)
    flags = MessageFlag.NO_AUTO_START
    assert errno_of(lambda: world.send(sender, NAME, 8, flags=flags)) == "EADDRNOTAVAIL"
    assert world.read(activator) == ["#7"]


@pytest.mark.parametrize("kind", ["monitor", "activator", "policy holder"])
def test_special_connections_neither_send_nor_are_sent_to_by_number(world: World, kind: str) -> None:
    special, other = world.connect_kind(kind), world.connect()
    with refused(EOPNOTSUPP):
        world.send(special, other, 7, world.fds("a"))
    with refused(ENXIO):
        world.send(other, special, 7, world.fds("a"))
    world.assert_files_closed()


def test_who_has_gone_neither_sends_nor_receives(world: World) -> None:
    gone, other = world.connect_many(2)
    world.send(other, gone, 1)
    world.bus.disconnect(gone)
    with refused(ESHUTDOWN):
        world.send(gone, other, 7, world.fds("a"))
    with refused(ESHUTDOWN):
        world.receive(gone)
    with refused(ENXIO):
        world.send(other, gone, 7)
    world.assert_files_closed()


def test_a_local_connection_is_not_sent_to(world: World) -> None:
    sender = world.connect()
    local = world.bus.hello(world.bus.endpoint, OWNER)
    world.bus.name_acquire(local, NAME, 0)
    for to in (local, NAME):
        with refused(ENXIO):
            world.send(sender, to, 7)
    world.bus.disconnect(local)


def test_a_stranger_needs_a_policy_to_send(world: World) -> None:
    stranger, receiver = world.connect(STRANGER), world.connect()
    world.bus.name_acquire(receiver, NAME, 0)
    with refused(EPERM):
        world.send(stranger, receiver, 7, world.fds("a"))
    world.assert_files_closed()
    world.connect(flags=HelloFlag.POLICY_HOLDER, name=NAME, accesses=EVERYBODY_TALKS)
    world.send(stranger, receiver, 8)
    world.send(stranger, NAME, 9)
    assert world.read(receiver) == ["#8", "#9"]


def test_the_same_user_and_the_privileged_need_none(world: World) -> None:
    first, second, root = world.connect(STRANGER), world.connect(STRANGER), world.connect(ROOT)
    world.send(first, second, 1)
    world.send(root, second, 2)
    assert world.read(second) == ["#1", "#2"]


def test_what_was_refused_can_be_sent_when_there_is_room(world: World) -> None:
    sender, receiver = world.connect(), world.connect(pages=1)
    world.send(sender, receiver, 1, bulk(400))
    with refused(ENOBUFS):
        world.send(sender, receiver, 2, bulk(400))
    assert inbox_of(receiver).lost == 0
    assert world.read(receiver) == ["#1"]
    world.send(sender, receiver, 2, bulk(400))
    assert world.read(receiver) == ["#2"]


def test_of_two_users_one_does_not_use_up_the_others_share(world: World) -> None:
    first, second, receiver = world.connect(OWNER), world.connect(ROOT), world.connect(pages=1)
    world.send(first, receiver, 1, bulk(400))
    assert errno_of(lambda: world.send(first, receiver, 2, bulk(300))) == "ENOBUFS"
    world.send(second, receiver, 3, bulk(300))
    assert world.read(receiver) == ["#1", "#3"]


def test_messages_of_one_user_are_counted(world: World) -> None:
    sender, receiver = world.connect_many(2)
    for cookie in range(256):
        world.send(sender, receiver, cookie)
    with refused(ENOBUFS):
        world.send(sender, receiver, 256)
    world.take(receiver)
    world.send(sender, receiver, 256)


def test_what_came_from_somebody_who_has_gone_is_still_charged_to_its_user(world: World) -> None:
    sender, receiver = world.connect(STRANGER), world.connect(STRANGER)
    other = world.connect(ROOT)
    world.send(sender, receiver, 1)
    world.send(other, receiver, 2)
    world.bus.disconnect(other)
    assert {user.uid for user in receiver.quota.shares} == {2000, 0}
    assert world.read(receiver) == ["#1", "#2"]
    assert world.domain._users.keys() == {2000}


# Monitors


def test_a_monitor_sees_everything_that_is_sent_in_order(world: World) -> None:
    sender, receiver = world.connect_many(2)
    monitor = world.connect_kind("monitor")
    world.send(sender, receiver, 1)
    world.request(sender, receiver, 2)
    world.reply(receiver, sender, 2, 3)
    world.signal(sender, None, 4)
    world.signal(sender, receiver, 5)  # which does not want it
    waiter = world.call(sender, receiver, 6)
    world.reply(receiver, sender, 6, 7)
    assert world.read(monitor) == ["#1", "#2", "#3", "#4", "#5", "#6", "#7"]
    assert waiter.outcomes == ["#7"]


def test_a_monitor_sees_what_finds_no_room_but_not_what_is_refused(world: World) -> None:
    sender, receiver, stranger = world.connect(), world.connect(), world.connect(STRANGER)
    monitor = world.connect_kind("monitor")
    world.use_up_pool(receiver)
    assert errno_of(lambda: world.send(sender, receiver, 1, world.fds("a"))) == "EXFULL"
    assert errno_of(lambda: world.send(stranger, receiver, 2)) == "EPERM"
    assert errno_of(lambda: world.send(sender, NAME, 3)) == "ESRCH"
    assert errno_of(lambda: world.reply(sender, receiver, 5, 4)) == "EBADSLT"
    assert world.read(monitor) == ["#1"]
    world.assert_files_closed()


def test_what_finds_no_room_at_a_monitor_is_lost_for_it_alone(world: World) -> None:
    sender, receiver = world.connect_many(2)
    monitor = world.connect_kind("monitor")
    free = world.use_up_pool(monitor)
    world.send(sender, receiver, 1)
    free()
    world.send(sender, receiver, 2)
    assert world.read(monitor) == ["lost 1", "#2"]
    assert world.read(receiver) == ["#1", "#2"]


def test_what_a_monitor_throws_away_is_not_missed(world: World) -> None:
    sender, receiver = world.connect_many(2)
    monitor = world.connect_kind("monitor")
    world.request(sender, receiver, 1)
    world.drop(monitor)
    world.reply(receiver, sender, 1, 2)
    assert world.read(sender) == ["#2"]
    assert world.read(monitor) == ["#2"]


def test_a_monitor_of_a_proxy_has_no_queue(world: World) -> None:
    sender, receiver = world.connect_many(2)
    local = world.bus.hello(world.bus.endpoint, OWNER, flags=HelloFlag.MONITOR)
    world.send(sender, receiver, 1)
    assert local.inbox is None
    assert world.read(receiver) == ["#1"]


# Metadata, and the order of messages


def test_all_receivers_of_a_message_see_one_stamp_and_stamps_rise(world: World) -> None:
    wanted = AttachFlag.TIMESTAMP
    sender = world.connect(attach_send=wanted)
    listeners = [world.connect(attach_recv=wanted) for _ in range(2)]
    for listener in listeners:
        world.listen(listener, everything())
    stamps: list[tuple[bytes, bytes]] = []
    for cookie in range(3):
        world.signal(sender, None, cookie)
        world.clock.now += SECOND
        first, second = (world.take(listener).item(ItemType.TIMESTAMP).payload for listener in listeners)
        stamps.append((first, second))
    assert all(first == second for first, second in stamps)
    numbers = [int.from_bytes(first[:8], "little") for first, _ in stamps]
    times = [int.from_bytes(first[8:16], "little") for first, _ in stamps]
    assert numbers == sorted(set(numbers))
    assert times == [(1000 + second) * SECOND for second in range(3)]


def test_whatever_is_sent_has_a_place_of_its_own_in_one_order(world: World) -> None:
    sender, receiver = (world.connect(attach_send=AttachFlag.TIMESTAMP) for _ in range(2))
    monitor = world.connect(flags=HelloFlag.MONITOR, attach_recv=AttachFlag.TIMESTAMP)
    world.send(sender, receiver, 1)
    world.request(sender, receiver, 2)
    world.reply(receiver, sender, 2, 3)
    world.signal(sender, None, 4)
    world.signal(sender, receiver, 5)
    world.call(sender, receiver, 6)
    world.reply(receiver, sender, 6, 7)
    world.bus.disconnect(receiver)
    numbers = []
    while (mail := world.receive(monitor)[0]) is not None:
        numbers.append(int.from_bytes(mail.item(ItemType.TIMESTAMP).payload[:8], "little"))
    assert len(numbers) == 8
    assert numbers == list(range(numbers[0], numbers[0] + 8))


def test_each_receiver_gets_the_metadata_it_asked_for(world: World) -> None:
    sender = world.connect(attach_send=AttachFlag.CREDS | AttachFlag.PIDS)
    receiver = world.connect(attach_recv=AttachFlag.CREDS | AttachFlag.TIMESTAMP)
    monitor = world.connect(flags=HelloFlag.MONITOR, attach_recv=AttachFlag.PIDS)
    world.send(sender, receiver, 7, Vec(b"x"))
    assert [item.type for item in world.take(receiver).items] == [ItemType.PAYLOAD_OFF, ItemType.CREDS]
    assert [item.type for item in world.take(monitor).items] == [ItemType.PAYLOAD_OFF, ItemType.PIDS]


# Custom endpoints


def test_everybody_on_a_custom_endpoint_is_charged_together(world: World) -> None:
    endpoint = world.bus.make_endpoint("1000-door", OWNER)
    endpoint.update_policy([PolicyEntry(NAME, EVERYBODY_TALKS)])
    receiver = world.connect(STRANGER, limits=Limits(queued_messages=1))
    world.connect(
        flags=HelloFlag.POLICY_HOLDER,
        name=NAME,
        accesses=[Access(AccessType.WORLD, 0, AccessLevel.OWN)],
    )
    world.bus.name_acquire(receiver, NAME, 0)
    first = world.connect(STRANGER, endpoint=endpoint)
    second = world.connect(OTHER, endpoint=endpoint)
    third = world.connect(STRANGER)
    world.send(first, receiver, 1)
    assert errno_of(lambda: world.send(second, receiver, 2)) == "ENOBUFS"
    world.send(third, receiver, 3)
    assert world.read(receiver) == ["#1", "#3"]
