"""The end of a connection, an endpoint, a bus and a domain while everything is pending: nothing stays."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBUSY, ENXIO, EOPNOTSUPP, ESHUTDOWN, ESRCH

import pytest
from broker_world import refused
from native_mail import Waiter, inbox_of
from native_world import (
    EVERY_NOTICE,
    NAME,
    OWNER,
    STRANGER,
    World,
    errno_of,
    everything,
)

from kdbus_core import Connection
from kdbus_core.abi import AccessLevel, AccessType, HelloFlag, MakeFlag
from kdbus_core.names import QUEUE
from kdbus_core.policy import Access, PolicyEntry
from kdbus_core.quota import User
from kdbus_core.synchronous import SyncCall

OTHER_NAME = "org.example.Other"


class Busy:
    """A bus on which everything is pending; those who came through the door are `inside`."""

    def __init__(self) -> None:
        self.world = world = World()
        self.bus = world.bus
        self.door = self.bus.make_endpoint("1000-door", OWNER, MakeFlag.ACCESS_WORLD)
        talks = (Access(AccessType.WORLD, 0, AccessLevel.OWN),)
        self.door.update_policy([PolicyEntry(NAME, talks), PolicyEntry(OTHER_NAME, talks)])
        self.holder = world.connect(flags=HelloFlag.POLICY_HOLDER, name=OTHER_NAME, accesses=talks)
        self.activator = world.connect_activator()
        self.monitor = world.connect_kind("monitor")
        self.outside, self.service = world.connect_many(2)
        self.inside, self.helper = (world.connect(STRANGER, endpoint=self.door) for _ in range(2))
        self.waiters: dict[str, Waiter] = {}
        self._fill()

    def _fill(self) -> None:
        world, bus = self.world, self.bus
        bus.name_acquire(self.inside, OTHER_NAME, 0)
        bus.name_acquire(self.service, NAME, 0)
        bus.name_acquire(self.outside, NAME, QUEUE)
        world.listen(self.outside, everything(), *EVERY_NOTICE)
        world.listen(self.inside, everything(), *EVERY_NOTICE)
        for receiver in (self.inside, self.service):
            world.send(self.outside, receiver, 1, world.fds("a"), world.memfd("m"))
            world.request(self.outside, receiver, 2, world.fds("b"))
            world.signal(self.outside, None, 3, world.memfd("n"))
        world.request(self.inside, self.inside, 4)
        world.request(self.outside, NAME, 5, world.fds("c"))
        for label, sender, to in (
            ("in", self.outside, self.inside),
            ("out", self.outside, self.service),
            ("name", self.outside, NAME),
            ("self", self.inside, self.inside),
        ):
            self.waiters[label] = world.call(sender, to, 6, world.fds(label))

    def outcomes(self) -> dict[str, list[str]]:
        return {label: waiter.outcomes for label, waiter in self.waiters.items()}


def close_bus(busy: Busy) -> None:
    busy.bus.close()


def close_domain(busy: Busy) -> None:
    busy.world.domain.close()


def close_everything_one_by_one(busy: Busy) -> None:
    for connection in reversed(list(busy.bus.connections.values())):
        busy.bus.disconnect(connection)
    busy.bus.close()


@pytest.mark.parametrize("close", [close_bus, close_domain, close_everything_one_by_one])
def test_after_the_end_nothing_is_left_of_a_busy_bus(close: Callable[[Busy], None]) -> None:
    busy = Busy()
    close(busy)
    assert all(outcomes in (["EPIPE"], ["ESHUTDOWN"]) for outcomes in busy.outcomes().values())
    busy.world.assert_files_closed()
    close(busy)
    busy.world.end()


def test_a_busy_endpoint_takes_along_who_came_through_it_and_nobody_else() -> None:
    busy = Busy()
    world, bus = busy.world, busy.bus
    world.read(busy.outside)
    busy.door.close()
    assert not busy.door.active
    assert bus.endpoints == {"bus": bus.endpoint}
    assert set(bus.connections.values()) == {
        busy.holder,
        busy.activator,
        busy.monitor,
        busy.outside,
        busy.service,
    }
    assert busy.outcomes() == {"in": ["EPIPE"], "out": [], "name": [], "self": ["ESHUTDOWN"]}
    assert world.read(busy.outside) == [
        f"NAME_REMOVE {OTHER_NAME} {busy.inside.id}→0",
        f"ID_REMOVE {busy.inside.id}",
        "REPLY_DEAD #2",
        f"ID_REMOVE {busy.helper.id}",
    ]
    world.assert_idle(busy.inside, busy.helper)
    busy.door.close()
    world.end()


def test_a_busy_connection_leaves_nothing_and_each_who_waited_is_told_once() -> None:
    busy = Busy()
    world = busy.world
    world.read(busy.outside)
    world.bus.disconnect(busy.service)
    heir = busy.outside
    assert world.read(heir) == [
        f"NAME_CHANGE {NAME} {busy.service.id}→{heir.id}",
        f"ID_REMOVE {busy.service.id}",
        "REPLY_DEAD #2",
        "REPLY_DEAD #5",
    ]
    assert busy.outcomes() == {"in": [], "out": ["EPIPE"], "name": ["EPIPE"], "self": []}
    world.assert_idle(busy.service)
    world.bus.disconnect(busy.service)
    world.pass_time()
    assert [word for word in world.read(heir) if "#" in word] == ["REPLY_TIMEOUT #2"]  # of the one inside
    world.end()


def test_what_has_gone_does_not_count_its_losses() -> None:
    world = World()
    connection = world.connect()
    inbox_of(connection).on_lost()
    world.bus.disconnect(connection)
    assert not inbox_of(connection).readable
    world.end()


# Commands to what has gone


def commands(world: World, gone: Connection) -> list[Callable[[], object]]:
    bus = world.bus
    return [
        lambda: bus.name_acquire(gone, NAME, 0),
        lambda: bus.name_release(gone, NAME),
        lambda: bus.match_add(gone, 0, []),
        lambda: bus.match_remove(gone, 0),
        lambda: bus.update(gone, attach_recv=0),
        lambda: bus.update(gone),
        lambda: bus.byebye(gone),
        lambda: world.receive(gone),
        lambda: world.signal(gone, None, 1),
        lambda: world.call(gone, gone, 1),
        lambda: bus.cancel(gone, 1),
    ]


@pytest.mark.parametrize("kind", ["ordinary", "monitor", "activator", "policy holder"])
def test_who_has_gone_is_shut_down_whatever_it_asks(kind: str) -> None:
    world = World()
    gone = world.connect_kind(kind)
    world.bus.disconnect(gone)
    for command in commands(world, gone):
        assert errno_of(command) == "ESHUTDOWN"
    world.end()


def test_a_bus_that_has_gone_makes_nothing_more() -> None:
    world = World()
    world.bus.close()
    with refused(ESHUTDOWN):
        world.bus.make_endpoint("1000-door", OWNER)
    with refused(ESHUTDOWN):
        world.connect()
    world.end()


# BYEBYE


def test_who_has_read_everything_may_leave() -> None:
    world = World()
    leaver, other = world.connect_many(2)
    world.listen(other, *EVERY_NOTICE)
    world.send(other, leaver, 1)
    with refused(EBUSY):
        world.bus.byebye(leaver)
    assert leaver.id in world.bus.connections
    world.read(leaver)
    world.bus.byebye(leaver)
    assert leaver.id not in world.bus.connections
    assert world.read(other) == [f"ID_REMOVE {leaver.id}"]
    with refused(ESHUTDOWN):
        world.bus.byebye(leaver)
    world.end()


def test_losses_keep_nobody_from_leaving() -> None:
    world = World()
    leaver = world.connect()
    inbox_of(leaver).on_lost()
    world.bus.byebye(leaver)
    world.end()


def test_a_connection_of_a_proxy_may_leave_at_any_time() -> None:
    world = World()
    local = world.bus.hello(world.bus.endpoint, OWNER)
    world.bus.byebye(local)
    assert not local.active
    world.end()


@pytest.mark.parametrize("kind", ["monitor", "activator", "policy holder"])
def test_special_connections_do_not_say_byebye(kind: str) -> None:
    world = World()
    special = world.connect_kind(kind)
    with refused(EOPNOTSUPP):
        world.bus.byebye(special)
    assert special.active
    world.end()


# The order of things


def test_others_hear_of_names_then_of_the_connection_then_of_their_requests() -> None:
    world = World()
    gone, heir, caller = world.connect_many(3)
    activator = world.connect_activator("org.example.Started")
    for name in ("org.example.Started", OTHER_NAME, NAME):
        world.bus.name_acquire(gone, name, 0)
    world.bus.name_acquire(heir, NAME, QUEUE)
    world.listen(caller, *EVERY_NOTICE)
    monitor = world.connect_kind("monitor")
    for cookie in (1, 2):
        world.request(caller, gone, cookie)
    world.read(monitor)
    world.bus.disconnect(gone)
    expected = [
        f"NAME_CHANGE org.example.Started {gone.id}→{activator.id}",
        f"NAME_REMOVE {OTHER_NAME} {gone.id}→0",
        f"NAME_CHANGE {NAME} {gone.id}→{heir.id}",
        f"ID_REMOVE {gone.id}",
        "REPLY_DEAD #1",
        "REPLY_DEAD #2",
    ]
    assert world.read(caller) == expected
    assert world.read(monitor) == expected
    world.end()


def test_who_is_told_of_a_death_finds_nobody_there() -> None:
    world = World()
    gone, other = world.connect_many(2)
    world.bus.name_acquire(gone, NAME, 0)
    found: list[str] = []

    def look(_: object) -> None:
        found.append(errno_of(lambda: world.send(other, gone, 1)))
        found.append(errno_of(lambda: world.send(other, NAME, 1)))

    world.bus.observers.append(look)
    world.bus.disconnect(gone)
    world.bus.observers.clear()
    assert found == ["ENXIO", "ESRCH"] * 2
    world.end()


ENDS_OF_A_CALLER: list[Callable[[World, Connection], None]] = [
    lambda world, caller: world.bus.disconnect(caller),
    lambda world, caller: world.bus.close(),
    lambda world, caller: world.domain.close(),
]


@pytest.mark.parametrize("end", ENDS_OF_A_CALLER)
def test_a_caller_that_is_woken_may_end_itself_and_the_bus(end: Callable[[World, Connection], None]) -> None:
    world = World()
    caller, replier, third = world.connect_many(3)
    outcomes: list[int] = []

    def on_done(call: SyncCall) -> None:
        outcomes.append(call.errno)
        end(world, caller)

    world.call(caller, replier, 7, on_done=on_done)
    world.call(caller, replier, 8, on_done=on_done)
    for sender in (caller, third):
        world.request(sender, replier, 9)
    world.bus.disconnect(replier)
    assert len(outcomes) == 2
    world.end()


def test_a_bus_in_the_domain_is_forgotten_and_its_name_is_free() -> None:
    world = World()
    first = world.bus
    first.close()
    first.close()
    assert world.domain.buses == {}
    world.bus = world.domain.make_bus("1000-native", OWNER)
    assert world.bus.id > first.id
    world.end()


def test_the_kernel_is_charged_for_what_the_bus_says_itself() -> None:
    world = World()
    caller, replier = world.connect_many(2)
    world.listen(caller, EVERY_NOTICE[0])
    world.request(caller, replier, 7)
    world.bus.disconnect(replier)
    world.connect()
    charged: list[User] = list(caller.quota.shares)
    assert charged == [world.bus.kernel_user]
    assert caller.quota.shares[world.bus.kernel_user].messages == 2
    world.read(caller)
    assert not world.bus.kernel_user.charged
    with refused(ENXIO):
        world.send(caller, replier, 1)
    with refused(ESRCH):
        world.send(caller, NAME, 1)
    world.end()
