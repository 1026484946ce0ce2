"""What the bus says of itself: how it lies in a pool, and who gets it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from native_mail import Mail, inbox_of
from native_world import (
    EVERY_NOTICE,
    NAME,
    OWNER,
    SECOND,
    STRANGER,
    World,
    everything,
    running_world,
)

from kdbus_core.abi import (
    DST_BROADCAST,
    AccessLevel,
    AccessType,
    HelloFlag,
    ItemType,
    MakeFlag,
    MessageFlag,
)
from kdbus_core.inbox import SLOT_SIZE
from kdbus_core.items import ID_NOTICE, NAME_NOTICE
from kdbus_core.matches import IdNotice, NameNotice
from kdbus_core.metadata import Stamp, notification_items
from kdbus_core.names import ALLOW_REPLACEMENT, PRIMARY, QUEUE, REPLACE_EXISTING
from kdbus_core.notifications import (
    IdAdd,
    IdRemove,
    NameChange,
    Notification,
    ReplyDead,
    ReplyTimeout,
    build_notification,
)
from kdbus_core.policy import Access, PolicyEntry

STAMP = notification_items(Stamp(5, 6, 7))


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


# How it lies in a pool


def build(notification: Notification) -> Mail:
    parcel = build_notification(notification, STAMP)
    data = b"".join(parcel.chunks)
    assert len(data) == parcel.size
    assert len(data) % 8 == 0
    assert (parcel.message, parcel.fds, parcel.memfds, parcel.fd_count) == (None, (), (), 0)
    mail = Mail(data)
    assert (mail.src, mail.payload_type, mail.cookie, mail.priority, mail.payload) == (0, 0, 0, 0, b"")
    assert [item.type for item in mail.items[1:]] == [ItemType.TIMESTAMP]
    return mail


def test_a_name_that_changes_hands_is_told_with_both_ends(world: World) -> None:
    old, new = world.connect_many(2)
    changes = {
        ItemType.NAME_ADD: (NameChange(NAME, None, 0, new, 34), (0, 0, new.id, 34)),
        ItemType.NAME_REMOVE: (NameChange(NAME, old, 32, None, 0), (old.id, 32, 0, 0)),
        ItemType.NAME_CHANGE: (NameChange(NAME, old, 32, new, 34), (old.id, 32, new.id, 34)),
    }
    for type, (change, owners) in changes.items():
        mail = build(change)
        assert (mail.dst, mail.flags, mail.last) == (DST_BROADCAST, MessageFlag.SIGNAL, 0)
        assert mail.items[0].type == type
        payload = mail.items[0].payload
        assert NAME_NOTICE.unpack_from(payload) == owners
        assert payload[NAME_NOTICE.size :] == NAME.encode() + b"\0"


def test_a_connection_that_comes_or_goes_is_told_with_its_flags(world: World) -> None:
    connection = world.connect(flags=HelloFlag.ACCEPT_FD | HelloFlag.ACTIVATOR, name=NAME)
    notices: dict[ItemType, Notification] = {
        ItemType.ID_ADD: IdAdd(connection),
        ItemType.ID_REMOVE: IdRemove(connection),
    }
    for type, notification in notices.items():
        mail = build(notification)
        assert (mail.dst, mail.flags, mail.last) == (DST_BROADCAST, MessageFlag.SIGNAL, 0)
        assert (mail.items[0].type, ID_NOTICE.unpack(mail.items[0].payload)) == (type, (connection.id, 3))


def test_a_lost_reply_is_told_with_the_cookie_of_the_request_and_fits_into_a_slot(world: World) -> None:
    requester = world.connect()
    notices: dict[ItemType, Notification] = {
        ItemType.REPLY_DEAD: ReplyDead(requester, 7),
        ItemType.REPLY_TIMEOUT: ReplyTimeout(requester, 7),
    }
    for type, notification in notices.items():
        mail = build(notification)
        assert (mail.dst, mail.flags, mail.last) == (requester.id, 0, 7)
        assert (mail.items[0].type, mail.items[0].payload) == (type, b"")
        assert build_notification(notification, STAMP).size == SLOT_SIZE


def test_changes_are_equal_whichever_life_of_a_name_they_are_of(world: World) -> None:
    owner = world.connect()
    assert NameChange(NAME, None, 0, owner, 32, 1) == NameChange(NAME, None, 0, owner, 32, 2)


# Who gets it


def test_who_wants_to_know_is_told_in_order(world: World) -> None:
    listener = world.listen(world.connect(), *EVERY_NOTICE)
    first, second = world.connect_many(2)
    world.bus.name_acquire(first, NAME, ALLOW_REPLACEMENT)
    world.bus.name_acquire(second, NAME, REPLACE_EXISTING)
    world.bus.name_acquire(first, NAME, QUEUE)
    world.bus.name_release(second, NAME)
    world.bus.disconnect(first)
    assert world.read(listener) == [
        f"ID_ADD {first.id}",
        f"ID_ADD {second.id}",
        f"NAME_ADD {NAME} 0→{first.id}",
        f"NAME_CHANGE {NAME} {first.id}→{second.id}",
        f"NAME_CHANGE {NAME} {second.id}→{first.id}",
        f"NAME_REMOVE {NAME} {first.id}→0",
        f"ID_REMOVE {first.id}",
    ]


def test_who_wants_nothing_or_messages_only_is_told_nothing(world: World) -> None:
    deaf, listener = world.connect(), world.listen(world.connect(), everything())
    world.bus.name_acquire(world.connect(), NAME, 0)
    assert world.read(deaf) == world.read(listener) == []


def test_who_wants_everything_is_told_of_its_own_names_but_not_of_itself(world: World) -> None:
    me = world.connect()
    world.bus.match_add(me, 0, [])
    world.bus.name_acquire(me, NAME, 0)
    assert world.read(me) == [f"NAME_ADD {NAME} 0→{me.id}"]


def test_a_notice_may_be_asked_for_by_name_and_owner(world: World) -> None:
    owner = world.connect()
    listener = world.listen(
        world.connect(),
        NameNotice(ItemType.NAME_ADD, 0, owner.id, "org.example.A"),
        IdNotice(ItemType.ID_REMOVE, owner.id),
    )
    other = world.connect()
    for connection, name in ((owner, NAME), (other, "org.example.B"), (owner, "org.example.A")):
        world.bus.name_acquire(connection, name, 0)
    world.bus.disconnect(other)
    world.bus.disconnect(owner)
    assert world.read(listener) == [f"NAME_ADD org.example.A 0→{owner.id}", f"ID_REMOVE {owner.id}"]


def test_each_listener_is_told_once_however_many_entries_match(world: World) -> None:
    listener = world.listen(world.connect(), EVERY_NOTICE[0], EVERY_NOTICE[0])
    world.bus.match_add(listener, 9, [])
    connection = world.connect()
    assert world.read(listener) == [f"ID_ADD {connection.id}"]


def test_a_monitor_is_told_everything_and_first(world: World) -> None:
    order: list[str] = []
    listener = world.connect(on_ready=lambda: order.append("listener"))
    world.listen(listener, *EVERY_NOTICE)
    world.connect(flags=HelloFlag.MONITOR, on_ready=lambda: order.append("monitor"))
    requester, replier = world.connect_many(2)
    assert order == ["monitor", "listener"] * 2
    order.clear()
    monitor = world.bus.monitors[0]
    world.read(monitor)
    world.request(requester, replier, 7)
    world.pass_time()
    assert world.read(monitor) == ["#7", "REPLY_TIMEOUT #7"]


def test_without_a_listener_a_monitor_is_told_still(world: World) -> None:
    monitor = world.connect_kind("monitor")
    connection = world.connect()
    assert world.read(monitor) == [f"ID_ADD {connection.id}"]


def test_monitors_come_and_go_in_silence(world: World) -> None:
    listener = world.listen(world.connect(), *EVERY_NOTICE)
    first = world.connect_kind("monitor")
    second = world.connect_kind("monitor")
    world.bus.disconnect(second)
    assert world.read(listener) == world.read(first) == []
    assert world.bus.monitors == [first]


def test_activators_and_holders_are_announced_like_others(world: World) -> None:
    listener = world.listen(world.connect(), *EVERY_NOTICE)
    activator = world.connect_activator()
    holder = world.connect(flags=HelloFlag.POLICY_HOLDER, name="org.example.Held")
    world.bus.disconnect(holder)
    world.bus.disconnect(activator)
    assert world.read(listener) == [
        f"ID_ADD {activator.id}",
        f"NAME_ADD {NAME} 0→{activator.id}",
        f"ID_ADD {holder.id}",
        f"ID_REMOVE {holder.id}",
        f"NAME_REMOVE {NAME} {activator.id}→0",
        f"ID_REMOVE {activator.id}",
    ]


def test_on_a_custom_endpoint_all_connections_and_only_visible_names_are_told(world: World) -> None:
    door = world.bus.make_endpoint("1000-door", OWNER, MakeFlag.ACCESS_WORLD)
    seen = Access(AccessType.WORLD, 0, AccessLevel.SEE)
    door.update_policy([PolicyEntry(NAME, (seen,))])
    listener = world.listen(world.connect(STRANGER, endpoint=door), *EVERY_NOTICE)
    owner = world.connect()
    for name in ("org.example.Hidden", NAME):
        world.bus.name_acquire(owner, name, 0)
    world.bus.disconnect(owner)
    assert world.read(listener) == [
        f"ID_ADD {owner.id}",
        f"NAME_ADD {NAME} 0→{owner.id}",
        f"NAME_REMOVE {NAME} {owner.id}→0",
        f"ID_REMOVE {owner.id}",
    ]


def test_what_finds_no_room_is_lost_for_that_listener_or_monitor_alone(world: World) -> None:
    full, listener = world.connect_many(2)
    for connection in (full, listener):
        world.listen(connection, EVERY_NOTICE[0])
    monitor = world.connect_kind("monitor")
    frees = [world.use_up_pool(connection) for connection in (full, monitor)]
    refund = world.use_up_quota(full)
    first = world.connect()
    requester, replier = first, listener
    world.request(requester, replier, 7)
    world.pass_time()
    for undo in (*frees, refund):
        undo()
    second = world.connect()
    assert world.read(full) == ["lost 1", f"ID_ADD {second.id}"]
    assert world.read(monitor) == ["lost 3", f"ID_ADD {second.id}"]
    assert world.read(listener) == [f"ID_ADD {first.id}", "#7", f"ID_ADD {second.id}"]
    assert world.read(requester) == ["REPLY_TIMEOUT #7"]


def test_a_listener_holds_256_notices(world: World) -> None:
    listener = world.listen(world.connect(), EVERY_NOTICE[0])
    for _ in range(258):
        world.connect(STRANGER, pages=1)
    assert len(inbox_of(listener)) == 256
    assert world.read(listener)[0] == "lost 2"


def test_a_listener_that_went_in_the_same_command_is_not_told(world: World) -> None:
    listener = world.listen(world.connect(), *EVERY_NOTICE)
    with world.bus.transaction():
        world.connect()
        world.bus.disconnect(listener)
    world.assert_idle(listener)


def test_a_listener_that_goes_when_the_bus_tells_somebody_else_is_not_told(world: World) -> None:
    listener = world.connect()
    world.bus.match_add(listener, 0, [])
    local = world.bus.hello(world.bus.endpoint, OWNER)
    world.bus.match_add(local, 0, [])
    world.bus.observers.append(lambda _: world.bus.disconnect(listener))
    with world.bus.transaction():
        world.connect()
        world.connect()
    world.bus.observers.clear()
    assert not listener.active
    world.bus.disconnect(local)


def test_a_requester_that_went_in_the_same_command_is_not_told(world: World) -> None:
    requester, replier = world.connect_many(2)
    monitor = world.connect_kind("monitor")
    world.request(requester, replier, 7)
    world.clock.now += SECOND
    with world.bus.transaction():
        world.bus.expire_replies(world.clock.now)
        world.bus.disconnect(requester)
    assert world.read(replier) == ["#7"]
    world.assert_idle(requester)
    assert world.read(monitor) == ["#7", "REPLY_TIMEOUT #7", f"ID_REMOVE {requester.id}"]


def test_what_a_command_causes_comes_before_what_is_sent_later(world: World) -> None:
    listener = world.listen(world.connect(), *EVERY_NOTICE)
    owner, sender = world.connect_many(2)
    world.read(listener)
    assert world.bus.name_acquire(owner, NAME, 0) & PRIMARY
    world.send(sender, listener, 1)
    world.bus.disconnect(sender)
    world.send(owner, listener, 2)
    assert world.read(listener) == [
        f"NAME_ADD {NAME} 0→{owner.id}",
        "#1",
        f"ID_REMOVE {sender.id}",
        "#2",
    ]


def test_a_notice_has_a_place_among_the_messages(world: World) -> None:
    monitor = world.connect_kind("monitor")
    sender = world.connect()
    replier = world.connect()
    world.request(sender, replier, 7)
    world.pass_time()
    stamps = []
    while (got := world.receive(monitor)[0]) is not None:
        stamps += [
            int.from_bytes(item.payload[:8], "little")
            for item in got.items
            if item.type == ItemType.TIMESTAMP
        ]
    assert stamps == sorted(set(stamps))
    assert len(stamps) == 3
