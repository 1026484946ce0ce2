"""Requests and replies that do not get through, and that nothing is left of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from native_mail import inbox_of
from native_world import (
    NAME,
    NO_FLAGS,
    STRANGER,
    World,
    bulk,
    errno_of,
    running_world,
)

from kdbus_core import Connection
from kdbus_core.abi import MessageFlag
from kdbus_core.connection import Limits


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


# Replies that do not fit


def _no_quota(world: World, requester: Connection) -> Callable[[], None]:
    return world.use_up_quota(requester)


def _no_pool(world: World, requester: Connection) -> Callable[[], None]:
    return world.use_up_pool(requester)


@pytest.mark.parametrize(("obstacle", "errno"), [(_no_quota, "ENOBUFS"), (_no_pool, "EXFULL")])
def test_a_reply_that_finds_no_room_can_be_sent_again(
    world: World, obstacle: Callable[[World, Connection], Callable[[], None]], errno: str
) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7)
    world.take(replier)
    remove = obstacle(world, requester)
    for _ in range(2):
        assert errno_of(lambda: world.reply(replier, requester, 7, 8, world.memfd("m"))) == errno
        world.assert_files_closed()
    remove()
    world.reply(replier, requester, 7, 8)
    assert world.read(requester) == ["#8"]
    world.assert_idle(requester, replier)


def test_a_reply_with_files_nobody_accepts_can_be_sent_without_them(world: World) -> None:
    requester, replier = world.connect(flags=NO_FLAGS), world.connect()
    world.request(requester, replier, 7)
    assert errno_of(lambda: world.reply(replier, requester, 7, 8, world.fds("a"))) == "ECOMM"
    world.reply(replier, requester, 7, 9)
    assert world.read(requester) == ["#9"]


def test_a_reply_that_found_no_room_and_is_not_sent_again_times_out(world: World) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7)
    remove = world.use_up_quota(requester)
    assert errno_of(lambda: world.reply(replier, requester, 7, 8)) == "ENOBUFS"
    world.pass_time()
    remove()
    assert world.read(requester) == ["REPLY_TIMEOUT #7"]


# Requests that do not arrive


def _nobody(world: World) -> tuple[Connection | str, Connection, int]:
    receiver = world.connect()
    world.bus.disconnect(receiver)
    return receiver, receiver, 0


def _no_name(world: World) -> tuple[Connection | str, Connection, int]:
    return NAME, world.connect(), 0


def _other_owner(world: World) -> tuple[Connection | str, Connection, int]:
    receiver, other = world.connect_many(2)
    world.bus.name_acquire(receiver, NAME, 0)
    return NAME, receiver, other.id


def _accepts_no_files(world: World) -> tuple[Connection | str, Connection, int]:
    receiver = world.connect(flags=NO_FLAGS)
    return receiver, receiver, 0


def _full_quota(world: World) -> tuple[Connection | str, Connection, int]:
    receiver = world.connect()
    world.use_up_quota(receiver)
    return receiver, receiver, 0


def _full_pool(world: World) -> tuple[Connection | str, Connection, int]:
    receiver = world.connect()
    world.use_up_pool(receiver)
    return receiver, receiver, 0


def _too_many_files(world: World) -> tuple[Connection | str, Connection, int]:
    receiver = world.connect(limits=Limits(in_flight_fds=0))
    return receiver, receiver, 0


REFUSALS: dict[Callable[[World], tuple[Connection | str, Connection, int]], str] = {
    _nobody: "ENXIO",
    _no_name: "ESRCH",
    _other_owner: "EREMCHG",
    _accepts_no_files: "ECOMM",
    _full_quota: "ENOBUFS",
    _full_pool: "EXFULL",
    _too_many_files: "EMFILE",
}


@pytest.mark.parametrize("kind", ["message", "request", "call"])
@pytest.mark.parametrize("make", REFUSALS)
def test_what_does_not_arrive_leaves_nothing_behind(
    make: Callable[[World], tuple[Connection | str, Connection, int]], kind: str
) -> None:
    world = World()
    sender = world.connect()
    to, receiver, dst_id = make(world)
    busy, charged = inbox_of(receiver).pool.busy, receiver.quota.total_memory
    flags = 0 if kind == "message" else MessageFlag.EXPECT_REPLY
    message = world.message(
        to, 7, world.fds("a", "b"), world.memfd("m"), bulk(100), flags=flags, dst_id=dst_id, timeout_ns=2**62
    )

    def send() -> None:
        if kind == "call":
            world.bus.call(sender, message)
        else:
            world.bus.send(sender, message)

    assert errno_of(send) == REFUSALS[make]
    world.assert_idle(sender)
    world.assert_files_closed()
    assert (inbox_of(receiver).pool.busy, receiver.quota.total_memory) == (busy, charged)
    assert len(inbox_of(receiver)) == 0
    assert inbox_of(receiver).lost == 0
    assert world.bus.replies.next_deadline() is None


def test_a_stranger_asks_nobody_who_does_not_let_it(world: World) -> None:
    stranger, receiver, monitor = world.connect(STRANGER), world.connect(), world.connect_kind("monitor")
    assert errno_of(lambda: world.request(stranger, receiver, 7, world.fds("a"))) == "EPERM"
    assert errno_of(lambda: world.call(stranger, receiver, 7, world.fds("a"))) == "EPERM"
    assert world.read(receiver) == world.read(monitor) == []
    world.assert_idle(stranger, receiver)
    world.assert_files_closed()
