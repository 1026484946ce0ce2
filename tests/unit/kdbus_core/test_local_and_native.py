"""Messages between native and local connections: where they go, how requests end, who listens."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EBADMSG, EMFILE, ENOBUFS

import pytest
from broker_world import refused
from local_world import CLIENT, Listeners, Local
from native_world import (
    EVERY_NOTICE,
    NAME,
    OWNER,
    SECOND,
    STRANGER,
    World,
    bulk,
    errno_of,
    everything,
    running_world,
)

from kdbus_core.abi import ATTACH_ALL, AccessLevel, AccessType, HelloFlag, ItemType, MessageFlag
from kdbus_core.connection import Limits
from kdbus_core.matches import BloomMask, Filter
from kdbus_core.message import Vec
from kdbus_core.policy import Access
from kdbus_core.replies import Tracker

MONITOR = HelloFlag.MONITOR | HelloFlag.ACCEPT_FD


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


# From native to local


def test_a_message_to_a_local_connection_reaches_its_sink(world: World) -> None:
    native, local = world.connect(), Local(world)
    world.bus.name_acquire(local.connection, NAME, 0)
    world.send(native, local.connection, 1)
    world.send(native, NAME, 2, Vec(b"hello"))
    (_, named) = local.messages
    assert (named.dst_name, named.parts) == (NAME, (Vec(b"hello"),))
    assert local.read() == ["#1", "#2"]


def test_the_files_of_a_message_are_those_it_was_given(world: World) -> None:
    native, local = world.connect(), Local(world)
    fds = world.fds("a", "b")
    message = world.message(local.connection, 1, world.memfd("m"), fds)
    message.hold()
    world.bus.send(native, message)
    assert local.messages == [message]
    assert message.files == fds.files
    assert not any(file.is_closed for file in fds.files)  # type: ignore[attr-defined]
    message.release()


@pytest.mark.parametrize("errno", [ENOBUFS, EMFILE, EBADMSG])
def test_what_a_local_connection_refuses_its_sender_is_refused(world: World, errno: int) -> None:
    native, local = world.connect(), Local(world)
    local.refuses = errno
    with refused(errno):
        world.send(native, local.connection, 1, world.fds("a"))
    with refused(errno):
        world.request(native, local.connection, 2)
    with refused(errno):
        world.call(native, local.connection, 3)
    world.assert_idle(native)
    local.assert_idle()
    world.assert_files_closed()


def test_a_signal_reaches_a_local_connection_without_a_match(world: World) -> None:
    native, local = world.connect(), Local(world)
    world.signal(native, local.connection, 1)
    assert local.read() == ["#1"]


def test_a_signal_that_finds_no_room_is_nobodys_fault(world: World) -> None:
    native, local = world.connect(), Local(world)
    local.refuses = ENOBUFS
    world.signal(native, local.connection, 1)
    local.refuses = EBADMSG
    with refused(EBADMSG):
        world.signal(native, local.connection, 2)


def test_whoever_may_not_talk_to_a_local_connection_does_not(world: World) -> None:
    stranger, local = world.connect(STRANGER), Local(world)
    world.bus.name_acquire(local.connection, NAME, 0)
    assert errno_of(lambda: world.send(stranger, NAME, 1)) == "EPERM"
    assert errno_of(lambda: world.request(stranger, local.connection, 2)) == "EPERM"
    world.connect(
        flags=HelloFlag.POLICY_HOLDER,
        name=NAME,
        accesses=[Access(AccessType.USER, 2000, AccessLevel.TALK)],
    )
    world.request(stranger, local.connection, 3)
    assert local.read() == ["#3"]


def test_a_connection_without_sink_and_pool_receives_nothing(world: World) -> None:
    native = world.connect()
    nobody = world.bus.hello(world.bus.endpoint, OWNER)
    assert errno_of(lambda: world.send(native, nobody, 1)) == "ENXIO"


# Requests of natives


def test_a_reply_of_a_local_connection_ends_the_request(world: World) -> None:
    native, local = world.connect(), Local(world)
    world.request(native, local.connection, 7)
    tracker = world.bus.replies.find(native, local.connection, 7)
    assert isinstance(tracker, Tracker)
    assert not tracker.is_queued
    world.reply(local.connection, native, 7, 1)
    assert world.read(native) == ["#1"]
    assert errno_of(lambda: world.reply(local.connection, native, 7, 2)) == "EBADSLT"
    world.assert_idle(native)


def test_a_local_connection_answers_a_call_that_waits(world: World) -> None:
    native, local = world.connect(), Local(world)
    waiter = world.call(native, local.connection, 7)
    assert waiter.outcomes == []
    world.reply(local.connection, native, 7, 1)
    assert waiter.outcomes == ["#1"]
    assert world.read(native) == []


def test_the_death_of_a_local_connection_ends_what_it_owes(world: World) -> None:
    native, local = world.connect(), Local(world)
    world.request(native, local.connection, 1)
    waiter = world.call(native, local.connection, 2)
    local.leave()
    assert world.read(native) == ["REPLY_DEAD #1"]
    assert waiter.outcomes == ["EPIPE"]
    world.assert_idle(native)


def test_a_deadline_ends_a_request_to_a_local_connection(world: World) -> None:
    native, local = world.connect(), Local(world)
    world.request(native, local.connection, 1)
    waiter = world.call(native, local.connection, 2)
    world.pass_time()
    assert world.read(native) == ["REPLY_TIMEOUT #1"]
    assert waiter.outcomes == ["ETIMEDOUT"]
    local.assert_idle()


def test_a_request_that_is_late_already_ends_at_once(world: World) -> None:
    native, local = world.connect(), Local(world)
    world.request(native, local.connection, 1, wait=0)
    assert local.read() == ["#1"]
    assert world.read(native) == ["REPLY_TIMEOUT #1"]


def test_the_requester_goes_and_its_request_with_it(world: World) -> None:
    native, local = world.connect(), Local(world)
    world.request(native, local.connection, 1)
    world.bus.disconnect(native)
    local.assert_idle()
    assert errno_of(lambda: world.reply(local.connection, native, 1, 1)) == "ENXIO"


def test_a_local_connection_that_becomes_a_monitor_owes_nothing_any_more(world: World) -> None:
    native, local = world.connect(), Local(world)
    world.request(native, local.connection, 1)
    world.bus.become_monitor(local.connection)
    assert world.read(native) == ["REPLY_DEAD #1"]
    assert errno_of(lambda: world.send(native, local.connection, 2)) == "ENXIO"


def test_a_reply_that_finds_no_room_leaves_the_request_open(world: World) -> None:
    native, local = world.connect(), Local(world)
    world.request(native, local.connection, 1)
    refund = world.use_up_quota(native, local.connection.user)
    assert errno_of(lambda: world.reply(local.connection, native, 1, 2)) == "ENOBUFS"
    refund()
    world.reply(local.connection, native, 1, 3)
    assert world.read(native) == ["#3"]


# Requests of local connections


def test_a_natives_reply_reaches_the_local_requester(world: World) -> None:
    local, native = Local(world), world.connect()
    local.ask(native, 7)
    assert world.read(native) == ["#7"]
    world.reply(native, local.connection, 7, 1)
    (message,) = local.messages
    assert message.cookie_reply == 7
    assert local.read() == ["#1"]
    local.assert_idle()


def test_a_request_without_a_deadline_is_never_late(world: World) -> None:
    local, native = Local(world), world.connect()
    local.ask(native, 7)
    assert world.bus.replies.next_deadline() is None
    world.pass_time(10**6 * SECOND)
    assert local.read() == []
    world.reply(native, local.connection, 7, 1)
    assert local.read() == ["#1"]


def test_a_deadline_ends_a_local_request(world: World) -> None:
    local, native = Local(world), world.connect()
    local.ask(native, 7, timeout_ns=world.clock.now + SECOND)
    world.pass_time()
    assert local.read() == ["REPLY_TIMEOUT #7"]
    assert errno_of(lambda: world.reply(native, local.connection, 7, 1)) == "EBADSLT"
    world.read(native)
    local.assert_idle()


@pytest.mark.parametrize("is_read", [False, True])
def test_the_death_of_a_native_ends_what_it_owes(world: World, is_read: bool) -> None:
    local, native = Local(world), world.connect()
    local.ask(native, 7)
    if is_read:
        world.read(native)
    world.bus.disconnect(native)
    assert local.read() == ["REPLY_DEAD #7"]
    local.assert_idle()


def test_a_native_that_throws_a_request_away_ends_it(world: World) -> None:
    local, native = Local(world), world.connect()
    local.ask(native, 7)
    world.drop(native)
    assert local.read() == ["REPLY_DEAD #7"]


def test_a_local_requester_reserves_no_room_anywhere(world: World) -> None:
    local, native = Local(world), world.connect()
    for cookie in range(1, 20):
        local.ask(native, cookie)
    assert world.read(native) == [f"#{cookie}" for cookie in range(1, 20)]
    local.leave()
    world.assert_idle(native)


def test_a_local_requester_has_as_many_requests_open_as_it_may(world: World) -> None:
    local, native = Local(world, limits=Limits(outstanding_requests=2)), world.connect()
    local.ask(native, 1)
    local.ask(native, 2)
    assert errno_of(lambda: local.ask(native, 3)) == "EMLINK"
    world.read(native)
    world.reply(native, local.connection, 1, 1)
    local.ask(native, 4)
    local.leave()


def test_a_reply_that_a_local_requester_refuses_leaves_the_request_open(world: World) -> None:
    local, native = Local(world), world.connect()
    local.ask(native, 7)
    local.refuses = ENOBUFS
    with refused(ENOBUFS):
        world.reply(native, local.connection, 7, 1)
    local.refuses = 0
    world.reply(native, local.connection, 7, 2)
    assert local.read() == ["#2"]
    world.read(native)


def test_plain_requests_and_tracked_ones_do_not_mix(world: World) -> None:
    """Two local connections have a window of their own way; a native's requests stand beside it."""
    one, other, native = Local(world), Local(world), world.connect()
    replies = world.bus.replies
    replies.open(replies.window(one.connection, other.connection), 7)
    one.ask(native, 7)
    assert one.connection.outstanding == 2
    world.bus.disconnect(native)
    assert one.read() == ["REPLY_DEAD #7"]
    assert replies.is_open(one.connection, other.connection, 7)
    other.leave()
    assert one.read() == ["REPLY_DEAD #7"]


# What is charged, and what is told


def test_messages_are_charged_to_the_client_a_local_connection_speaks_for(world: World) -> None:
    local, native = Local(world), world.connect(pages=4)
    user = world.domain.user(5000)
    assert local.connection.user is user
    with refused(ENOBUFS):
        for cookie in range(1, 100):
            world.send(local.connection, native, cookie, bulk(1000))
    assert set(native.quota.shares) == {user}
    world.read(native)
    assert not native.quota.shares


def test_nothing_of_any_process_is_told_of_who_speaks_for_another(world: World) -> None:
    local, native = Local(world), world.connect(attach_recv=ATTACH_ALL)
    world.send(local.connection, native, 1)
    assert [item.type for item in world.take(native).items] == [ItemType.TIMESTAMP]
    assert world.bus.connection_info(id=local.connection.id).credentials == CLIENT


# Who listens


def test_a_local_broadcast_reaches_natives_and_is_not_shown_to_the_gateway(world: World) -> None:
    listeners = Listeners(world)
    local, other, native = Local(world), Local(world), world.listen(world.connect(), everything())
    other.listen_in()
    world.signal(local.connection, None, 1)
    assert world.read(native) == ["#1"]
    assert listeners.shown == []
    assert other.read() == []


def test_a_natives_broadcast_is_shown_to_the_gateway_once(world: World) -> None:
    listeners = Listeners(world)
    native = world.connect()
    world.listen(world.connect(), everything())
    world.signal(native, None, 1)
    assert listeners.shown == [f"#1 from {native.id}"]


def test_unicasts_of_natives_are_shown_while_somebody_listens_in(world: World) -> None:
    listeners = Listeners(world)
    one, other, local, ear = world.connect(), world.connect(), Local(world), Local(world)
    world.send(one, other, 1)
    assert listeners.shown == []
    ear.listen_in()
    world.send(one, other, 2)
    world.request(one, local.connection, 3)
    world.request(one, other, 4)
    world.reply(other, one, 4, 5)
    world.signal(one, other, 6)
    waiter = world.call(one, other, 7)
    world.reply(other, one, 7, 8)
    assert waiter.outcomes == ["#8"]
    assert listeners.shown == [
        f"#2 from {one.id} to {other.id}",
        f"#3 from {one.id} to {local.connection.id}",
        f"#4 from {one.id} to {other.id}",
        f"#5 from {other.id} to {one.id}",
        f"#6 from {one.id} to {other.id}",
        f"#7 from {one.id} to {other.id}",
        f"#8 from {other.id} to {one.id}",
    ]
    world.bus.unsubscribe(ear.connection, 1)
    world.send(one, other, 9)
    assert len(listeners.shown) == 7


def test_what_is_refused_before_it_is_sent_is_not_shown(world: World) -> None:
    listeners = Listeners(world)
    native, stranger, ear = world.connect(), world.connect(STRANGER), Local(world)
    ear.listen_in()
    assert errno_of(lambda: world.send(stranger, native, 1)) == "EPERM"
    assert errno_of(lambda: world.reply(native, stranger, 9, 2)) == "EBADSLT"
    assert listeners.shown == []


def test_what_local_connections_send_to_natives_is_not_shown_to_the_gateway(world: World) -> None:
    listeners = Listeners(world)
    local, ear, native = Local(world), Local(world), world.connect()
    ear.listen_in()
    local.ask(native, 1)
    assert listeners.shown == []
    world.read(native)


def test_native_monitors_see_what_passes_between_both_kinds(world: World) -> None:
    local, native, monitor = Local(world), world.connect(), world.connect(flags=MONITOR)
    local.ask(native, 1)
    world.reply(native, local.connection, 1, 2)
    world.request(native, local.connection, 3)
    world.reply(local.connection, native, 3, 4)
    world.signal(local.connection, None, 5)
    world.signal(native, local.connection, 6)
    assert world.read(monitor) == ["#1", "#2", "#3", "#4", "#5", "#6"]
    world.read(native)


def test_native_monitors_can_be_shown_what_local_connections_send_each_other(world: World) -> None:
    local, other, native, monitor = Local(world), Local(world), world.connect(), world.connect(flags=MONITOR)
    world.bus.show_to_native_monitors(local.connection, world.message(other.connection, 1, world.fds("a")))
    assert world.read(monitor) == ["#1"]
    assert world.read(native) == other.read() == []
    world.assert_files_closed()


def listeners_of(world: World) -> tuple[bool, bool]:
    """Whether natives get broadcasts, and whether there are native monitors."""
    return world.bus.has_native_listeners, world.bus.has_native_monitors


def test_a_monitor_shows_in_the_properties_that_say_who_listens(world: World) -> None:
    assert listeners_of(world)[0] is False
    assert listeners_of(world)[1] is False
    monitor = world.connect(flags=MONITOR)
    assert listeners_of(world)[0] is True
    assert listeners_of(world)[1] is True
    world.bus.disconnect(monitor)
    assert listeners_of(world)[0] is False
    local = Local(world)
    world.bus.become_monitor(local.connection)
    assert listeners_of(world)[1] is False


# Generations


def test_the_first_and_the_last_native_match_change_the_audiences(world: World) -> None:
    native, other = world.connect(), world.connect()
    bus = world.bus

    start = bus.audience_generation
    bus.match_add(native, 1, [everything()])
    first = bus.audience_generation
    assert first != start
    assert listeners_of(world)[0] is True
    bus.match_add(other, 1, [everything()])
    bus.match_remove(native, 1)
    assert bus.audience_generation == first
    bus.match_remove(other, 1)
    assert bus.audience_generation != first
    assert listeners_of(world)[0] is False
    bus.match_add(native, 1, [everything()])
    before = bus.audience_generation
    bus.disconnect(native)
    assert bus.audience_generation != before


def test_a_match_of_notifications_alone_changes_nothing_for_messages(world: World) -> None:
    native = world.connect()
    before = world.bus.audience_generation
    world.listen(native, *EVERY_NOTICE)
    assert world.bus.audience_generation == before
    assert listeners_of(world)[0] is False


def test_a_replaced_match_that_is_refused_is_counted(world: World) -> None:
    """The old one has gone even if the new one is too much."""
    native = world.connect(limits=Limits(matches=1))
    world.bus.match_add(native, 1, [everything()])
    native.limits = Limits(matches=0)
    before = world.bus.audience_generation
    assert errno_of(lambda: world.bus.match_add(native, 1, [everything()], replace=True)) == "EMFILE"
    assert listeners_of(world)[0] is False
    assert world.bus.audience_generation != before


def test_a_native_monitor_changes_routes_and_audiences(world: World) -> None:
    bus = world.bus
    before = bus.route_generation, bus.audience_generation
    monitor = world.connect(flags=MONITOR)
    during = bus.route_generation, bus.audience_generation
    assert during[0] != before[0]
    assert during[1] != before[1]
    bus.disconnect(monitor)
    assert bus.route_generation != during[0]
    assert bus.audience_generation != during[1]


def test_whether_a_broadcast_is_awaited_is_known_before_it_is_built(world: World) -> None:
    local, native = Local(world), world.connect()
    some, other = Filter(0, b"\1" + bytes(63)), Filter(0, b"\2" + bytes(63))
    assert not world.bus.is_awaited(local.connection, some)
    world.bus.match_add(native, 1, [BloomMask((some.bits,))])
    assert world.bus.is_awaited(local.connection, some)
    assert not world.bus.is_awaited(local.connection, other)
    world.connect(flags=MONITOR)
    assert world.bus.is_awaited(local.connection, other)


def test_flags_of_a_message_are_as_they_were_sent(world: World) -> None:
    native, local = world.connect(), Local(world)
    world.send(native, local.connection, 1, flags=MessageFlag.NO_AUTO_START)
    assert local.messages[0].flags == MessageFlag.NO_AUTO_START
