"""Monitors: nobody notices them, they see everything, and do nothing."""

from __future__ import annotations

from errno import EAGAIN, ENXIO, EOPNOTSUPP, EPERM, ESRCH

import pytest
from support.kdbus import NOBODY, Attach, Client, Hello, ItemType, Msg, World, layout, refused
from support.kdbus.layout import DST_BROADCAST, PAYLOAD_KERNEL

COOKIE = 0xDEADBEEF


@pytest.fixture
def watcher(world: World) -> Client:
    """A connection that hears who comes and goes."""
    client = world.connect()
    client.add_match_id(ItemType.ID_ADD)
    client.add_match_id(ItemType.ID_REMOVE)
    return client


@pytest.fixture
def monitor(world: World, watcher: Client) -> Client:
    return world.connect_monitor()


def test_a_monitor_comes_unseen(watcher: Client, monitor: Client) -> None:
    with refused(EAGAIN):
        watcher.recv()


def test_a_monitor_goes_unseen(watcher: Client, monitor: Client) -> None:
    monitor.close()
    with refused(EAGAIN):
        watcher.recv()


def test_a_monitor_owns_no_names(monitor: Client) -> None:
    with refused(EOPNOTSUPP):
        monitor.name_acquire("foo.bar.baz")
    with refused(EOPNOTSUPP):
        monitor.name_release("foo.bar.baz")


def test_a_monitor_has_no_matches(monitor: Client) -> None:
    with refused(EOPNOTSUPP):
        monitor.add_match_empty()
    with refused(EOPNOTSUPP):
        monitor.remove_match(0)


def test_a_monitor_sends_nothing(world: World, monitor: Client) -> None:
    with refused(EOPNOTSUPP):
        monitor.send(world.connect())


def test_what_a_connection_may_not_do_is_told_before_anything_is_read(monitor: Client) -> None:
    for command in (layout.NAME_ACQUIRE, layout.MATCH_ADD, layout.SEND, layout.BYEBYE):
        with refused(EOPNOTSUPP):
            monitor.ioctl(command.request, 1)


def test_a_monitor_sees_what_is_sent_to_others(world: World, watcher: Client, monitor: Client) -> None:
    sender = world.connect()
    monitor.drain()
    watcher.drain()
    sender.send(watcher, cookie=COOKIE)
    ours, theirs = watcher.recv(), monitor.recv()
    assert ours.cookie == theirs.cookie == COOKIE
    assert theirs.dst_id == watcher.id
    assert theirs.payload == ours.payload


def test_a_monitor_sees_broadcasts_that_nobody_else_hears(world: World, monitor: Client) -> None:
    world.connect().broadcast(cookie=COOKIE)
    assert [m.cookie for m in monitor.drain() if not m.is_notification] == [COOKIE]


def test_a_monitor_sees_notifications(world: World, monitor: Client) -> None:
    client = world.connect()
    client.name_acquire("foo.bar")
    added, named = monitor.drain()
    assert added.arrival == (ItemType.ID_ADD, client.id)
    assert named.change == (ItemType.NAME_ADD, "foo.bar", 0, client.id)
    assert added.payload_type == PAYLOAD_KERNEL
    assert added.dst_id == DST_BROADCAST


def test_a_monitor_sees_signals_that_their_addressee_does_not_want(
    world: World, watcher: Client, monitor: Client
) -> None:
    sender = world.connect()
    watcher.drain()
    monitor.drain()
    sender.signal(dst=watcher, cookie=COOKIE)
    assert monitor.recv().cookie == COOKIE
    with refused(EAGAIN):
        watcher.recv()


def test_a_monitor_sees_synchronous_calls_and_replies(world: World, watcher: Client, monitor: Client) -> None:
    caller = world.connect()
    watcher.drain()
    monitor.drain()
    call = caller.call(watcher, cookie=COOKIE)
    watcher.recv()
    watcher.reply(caller, COOKIE)
    call.result()
    request, reply = monitor.drain()
    assert request.flags & Msg.EXPECT_REPLY
    assert (reply.src_id, reply.cookie_reply) == (watcher.id, COOKIE)


def test_a_monitor_does_not_see_what_was_refused(world: World, watcher: Client, monitor: Client) -> None:
    stranger = world.connect(world.task(NOBODY))
    monitor.drain()
    with refused(EPERM):
        stranger.send(watcher)
    with refused(ENXIO):
        stranger.send(12345)
    with refused(ESRCH):
        stranger.send(name="foo.bar")
    with refused(EAGAIN):
        monitor.recv()


def test_a_monitor_may_change_what_it_asks_of_messages(world: World, monitor: Client) -> None:
    sender = world.connect()
    monitor.drain()
    sender.broadcast()
    assert monitor.recv().has(ItemType.TIMESTAMP)
    monitor.update_attach_flags(recv=0)
    sender.broadcast()
    assert monitor.recv().metadata_kinds == []
    monitor.update_attach_flags(recv=Attach.TIMESTAMP | Attach.CREDS)
    sender.broadcast()
    assert monitor.recv().metadata_kinds == [ItemType.CREDS, ItemType.TIMESTAMP]


def test_only_an_owner_monitors(world: World) -> None:
    with refused(EPERM):
        world.connect(world.task(NOBODY), flags=Hello.MONITOR)


def test_a_monitor_is_neither_listed_nor_found_nor_sent_to(
    world: World, watcher: Client, monitor: Client
) -> None:
    assert watcher.list_ids() == [watcher.id]
    with refused(ENXIO):
        watcher.conn_info(monitor)
    with refused(ENXIO):
        watcher.send(monitor)
    assert monitor.conn_info(monitor).id == monitor.id


def test_a_monitor_gets_descriptors_only_if_it_takes_them(world: World) -> None:
    taking = world.connect_monitor()
    not_taking = world.connect(flags=Hello.MONITOR, accept_fd=False)
    sender, receiver = world.connect(world.task()), world.connect(world.task())
    for client in (taking, not_taking):
        client.drain()
    sender.send_items(layout.fds([sender.task.open_null()]), dst=receiver)
    assert taking.recv().fds[0] >= 0
    assert not_taking.recv().fds == [-1]
    assert receiver.recv().fds[0] >= 0


def test_a_full_monitor_loses_messages_and_nobody_else_notices(world: World) -> None:
    sender, receiver = world.connect(), world.connect()
    monitor = world.connect(flags=Hello.MONITOR, pool_size=layout.PAGE)
    for _ in range(3):
        sender.send(receiver)
        receiver.recv()
    with refused(EAGAIN) as refusal:
        monitor.recv()
    assert refusal.answer["dropped_msgs"] == 3
    assert refusal.answer["return_flags"] & layout.DROPPED_MSGS
    assert not monitor.is_readable
