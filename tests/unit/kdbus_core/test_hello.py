"""HELLO: what is checked, in which order, and that a connection that is refused never was there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from errno import EINVAL
from typing import Any

import pytest
from broker_world import refused
from native_mail import inbox_of
from native_world import (
    EVERY_NOTICE,
    NAME,
    NO_FLAGS,
    OWNER,
    ROOT,
    STRANGER,
    World,
    errno_of,
    running_world,
)

from kdbus_core import Credentials
from kdbus_core.abi import (
    ATTACH_ALL,
    MAX_CONNECTIONS_PER_USER,
    PAGE_SIZE,
    UNSET_ID,
    AccessLevel,
    AccessType,
    AttachFlag,
    HelloFlag,
)
from kdbus_core.endpoint import Endpoint
from kdbus_core.metadata import Creds, Pids, Process, Snapshot
from kdbus_core.policy import Access
from kdbus_core.pool import Pool

MONITOR, ACTIVATOR, HOLDER = HelloFlag.MONITOR, HelloFlag.ACTIVATOR, HelloFlag.POLICY_HOLDER
OTHER_NAME = "org.example.Other"
UNKNOWN = 1 << 40
FAKED = Snapshot(creds=Creds(3000, 3001, 3002, 3003, 0, 0, 0, 0), pids=Pids(77))
WORLD_TALKS = Access(AccessType.WORLD, 0, AccessLevel.TALK)


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


Hello = Mapping[str, Any]
Refusal = tuple[str, Hello]


def refusals(world: World, endpoint: Endpoint) -> list[Refusal]:
    """Every reason to refuse a HELLO, in the order in which they are looked for."""
    world.connect(flags=ACTIVATOR, name=NAME)
    world.connect(flags=HOLDER, name=OTHER_NAME)
    wrong = Access(9, 0, AccessLevel.TALK)
    return [
        ("EINVAL", {"flags": MONITOR | ACTIVATOR, "name": NAME}),
        ("EINVAL", {"flags": HOLDER | ACTIVATOR, "name": NAME}),
        ("EINVAL", {"flags": HOLDER | MONITOR, "name": NAME}),
        ("EINVAL", {"name": NAME}),
        ("EINVAL", {"flags": MONITOR, "name": NAME}),
        ("EINVAL", {"flags": ACTIVATOR}),
        ("EINVAL", {"flags": HOLDER}),
        ("EINVAL", {"flags": ACTIVATOR, "name": "nodots"}),
        ("EINVAL", {"flags": ACTIVATOR, "name": "org.example.*"}),
        ("EINVAL", {"flags": HOLDER, "name": "org.*.example"}),
        ("EINVAL", {"flags": HOLDER, "name": ".*"}),
        ("EOPNOTSUPP", {"flags": MONITOR, "endpoint": endpoint}),
        ("EPERM", {"flags": MONITOR, "process": STRANGER}),
        ("EPERM", {"flags": ACTIVATOR, "name": NAME, "process": STRANGER}),
        ("EPERM", {"flags": HOLDER, "name": NAME, "endpoint": endpoint}),
        ("EPERM", {"faked": FAKED, "process": STRANGER}),
        ("EPERM", {"faked": FAKED, "endpoint": endpoint}),
        ("EINVAL", {"attach_send": UNKNOWN}),
        ("EINVAL", {"attach_recv": UNKNOWN}),
        ("EEXIST", {"flags": ACTIVATOR, "name": NAME}),
        ("EINVAL", {"flags": HOLDER, "name": "org.example.New", "accesses": [wrong]}),
        ("EINVAL", {"flags": ACTIVATOR, "name": "org.example.New", "accesses": [wrong]}),
        ("EEXIST", {"flags": HOLDER, "name": NAME}),
        ("EEXIST", {"flags": HOLDER, "name": OTHER_NAME}),
        ("EEXIST", {"flags": ACTIVATOR, "name": OTHER_NAME}),
    ]


def test_a_connection_that_is_refused_never_was_there(world: World) -> None:
    endpoint = world.bus.make_endpoint("1000-door", OWNER)
    wanted = refusals(world, endpoint)
    listener, monitor = world.connect(), world.connect_kind("monitor")
    world.listen(listener, *EVERY_NOTICE)
    before = _traces(world)
    for errno, hello in wanted:
        assert errno_of(lambda hello=hello: world.connect(**hello)) == errno, hello  # type: ignore[misc]
        assert _traces(world) == before
    assert world.read(listener) == world.read(monitor) == []


def _traces(world: World) -> tuple[object, ...]:
    bus = world.bus
    return (
        list(bus.connections),
        list(bus.monitors),
        [entry.name for entry in bus.names.entries()],
        len(bus.policy),
        {uid: user.connections for uid, user in world.domain._users.items()},
        bus.route_generation,
        bus.audience_generation,
    )


ORDERED: list[tuple[str, Callable[[Endpoint], Hello]]] = [
    ("EINVAL", lambda _: {"flags": MONITOR | HOLDER}),
    ("EOPNOTSUPP", lambda endpoint: {"flags": MONITOR, "endpoint": endpoint}),
    ("EPERM", lambda _: {"flags": MONITOR, "process": STRANGER}),
    ("EINVAL", lambda _: {"attach_send": UNKNOWN}),
    ("ECONNREFUSED", lambda _: {"attach_send": 0}),
    ("EMFILE", lambda _: {"process": Process.of(Credentials(uid=1), privileged=True)}),
]


@pytest.mark.parametrize("first", range(len(ORDERED)))
def test_the_first_of_several_faults_counts(first: int) -> None:
    world = World()
    world.bus.required = AttachFlag.PIDS
    endpoint = world.bus.make_endpoint("1000-door", OWNER)
    process = Process.of(Credentials(uid=1), privileged=True)
    for _ in range(MAX_CONNECTIONS_PER_USER):
        world.connect(process, attach_send=ATTACH_ALL, pages=1)
    hello: dict[str, Any] = {"attach_send": ATTACH_ALL}
    for _, fault in reversed(ORDERED[first:]):
        hello |= fault(endpoint)
    assert errno_of(lambda: world.connect(**hello)) == ORDERED[first][0]
    assert len(world.bus.connections) == MAX_CONNECTIONS_PER_USER
    world.end()


def test_unknown_metadata_is_found_in_what_is_sent_before_what_is_received(world: World) -> None:
    with pytest.raises(Exception, match=f"{UNKNOWN:#x}"):
        world.connect(attach_send=UNKNOWN, attach_recv=UNKNOWN << 1)


def test_a_refused_hello_may_use_up_a_number_but_never_gives_one_out_twice(world: World) -> None:
    first = world.connect()
    for _ in range(3):
        assert errno_of(lambda: world.connect(attach_send=UNKNOWN)) == "EINVAL"
    assert world.connect().id > first.id


# What is made


def test_a_native_connection_is_what_it_asked_to_be(world: World) -> None:
    connection = world.bus.hello(
        world.bus.endpoint,
        OWNER,
        pool=Pool(4 * PAGE_SIZE),
        flags=HelloFlag.ACCEPT_FD,
        attach_send=2**64 - 1,
        attach_recv=AttachFlag.PIDS,
        description="a-service",
    )
    assert connection.is_ordinary
    assert connection.is_owner
    assert (connection.attach_send, connection.attach_recv) == (ATTACH_ALL, AttachFlag.PIDS)
    assert connection.description == "a-service"
    assert connection.process is OWNER
    assert connection.credentials is OWNER.credentials
    assert inbox_of(connection).pool.size == 4 * PAGE_SIZE
    assert connection.quota is inbox_of(connection).quota
    assert connection.quota.capacity == 2 * PAGE_SIZE
    assert repr(connection) == f"Connection({connection.id})"


@pytest.mark.parametrize(
    ("kind", "is_announced"),
    [("ordinary", True), ("activator", True), ("policy holder", True), ("monitor", False)],
)
def test_a_connection_of_each_kind_is_told_from_the_others(
    world: World, kind: str, is_announced: bool
) -> None:
    listener = world.connect()
    world.bus.match_add(listener, 0, [EVERY_NOTICE[0]])
    connection = world.connect_kind(kind)
    assert {
        "ordinary": connection.is_ordinary,
        "activator": connection.is_activator,
        "policy holder": connection.is_policy_holder,
        "monitor": connection.is_monitor,
    } == {name: name == kind for name in ("ordinary", "activator", "policy holder", "monitor")}
    assert world.read(listener) == ([f"ID_ADD {connection.id}"] if is_announced else [])
    assert world.bus.monitors == ([connection] if kind == "monitor" else [])


def test_a_native_monitor_has_no_subscription(world: World) -> None:
    monitor = world.connect_kind("monitor")
    assert monitor.match_count == 0
    assert not world.bus.subscriptions.has_monitors


def test_only_a_policy_holder_may_have_a_wildcard(world: World) -> None:
    holder = world.connect(flags=HOLDER, name="org.example.*", accesses=[WORLD_TALKS])
    assert world.bus.policy.level(STRANGER.credentials, "org.example.Any") == AccessLevel.TALK
    assert not holder.names
    world.bus.disconnect(holder)
    assert len(world.bus.policy) == 0


def test_what_an_activator_grants_lasts_as_long_as_it_does(world: World) -> None:
    activator = world.connect(flags=ACTIVATOR, name=NAME, accesses=[WORLD_TALKS])
    stranger = world.connect(STRANGER)
    world.send(stranger, NAME, 7)
    world.bus.disconnect(activator)
    assert errno_of(lambda: world.send(stranger, NAME, 8)) == "ESRCH"
    assert len(world.bus.policy) == 0


def test_the_metadata_a_bus_requires_is_required_of_native_connections(world: World) -> None:
    world.bus.required = AttachFlag.PIDS
    assert errno_of(lambda: world.connect(attach_send=AttachFlag.CREDS)) == "ECONNREFUSED"
    assert world.connect(attach_send=AttachFlag.CREDS | AttachFlag.PIDS).active
    world.bus.disconnect(world.bus.hello(world.bus.endpoint, OWNER))


def test_nobody_connects_to_what_has_gone() -> None:
    world = World()
    endpoint = world.bus.make_endpoint("1000-door", OWNER)
    endpoint.close()
    assert errno_of(lambda: world.connect(endpoint=endpoint)) == "ESHUTDOWN"
    world.bus.close()
    assert errno_of(world.connect) == "ESHUTDOWN"
    world.end()


# Who is charged


@pytest.mark.parametrize(
    ("process", "faked", "uid"),
    [
        (OWNER, None, 1000),
        (OWNER, FAKED, 1000),
        (ROOT, FAKED, 3000),
        (ROOT, Snapshot(pids=Pids(77)), 0),
        (ROOT, Snapshot(creds=Creds()), 0),
        (ROOT, Snapshot(creds=Creds(euid=3000)), 3000),
        (OWNER, Snapshot(creds=Creds(euid=3000)), 1000),
        (Process(Snapshot(creds=Creds(uid=5, euid=1000))), None, 5),
    ],
)
def test_the_real_user_is_charged_unless_the_privileged_speak_for_another(
    world: World, process: Process, faked: Snapshot | None, uid: int
) -> None:
    assert Creds().uid == UNSET_ID
    connection = world.connect(process, faked=faked)
    assert (connection.user.uid, connection.user.connections) == (uid, 1)


def test_everybody_on_a_custom_endpoint_counts_as_one(world: World) -> None:
    endpoint, other = (world.bus.make_endpoint(f"1000-{name}", OWNER) for name in ("a", "b"))
    connections = [world.connect(process, endpoint=endpoint) for process in (OWNER, STRANGER, ROOT)]
    assert {connection.user for connection in connections} == {endpoint.user}
    assert not any(connection.is_owner for connection in connections)
    assert world.connect(STRANGER, endpoint=other).user is other.user
    assert not world.domain._users


def test_a_user_has_1024_connections(world: World) -> None:
    connections = [world.connect(STRANGER, pages=1) for _ in range(MAX_CONNECTIONS_PER_USER)]
    assert errno_of(lambda: world.connect(STRANGER)) == "EMFILE"
    world.connect(OWNER)
    world.bus.disconnect(connections[0])
    world.connect(STRANGER, flags=NO_FLAGS)


@pytest.mark.parametrize("description", ["a service", "-a", "x" * 64, "dé"])
def test_a_description_is_a_name_as_nodes_have(world: World, description: str) -> None:
    with refused(EINVAL):
        world.bus.hello(world.bus.endpoint, OWNER, pool=Pool(PAGE_SIZE), description=description)
