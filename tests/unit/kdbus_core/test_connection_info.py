"""What may be known about a connection, and whose credentials answer for it."""

from __future__ import annotations

from errno import EINVAL, ENXIO, EPERM, ESRCH

import pytest
from broker_world import OWNER, STRANGER, World, refused

from kdbus_core import Credentials
from kdbus_core.abi import HelloFlag
from kdbus_core.metadata import ConnectionInfo, Process
from kdbus_core.names import ALLOW_REPLACEMENT, QUEUE, REPLACE_EXISTING

NAME = "org.example.Name"


def test_everything_is_told_of_a_connection() -> None:
    world = World()
    connection = world.connect(OWNER, flags=HelloFlag.ACCEPT_FD, description="a client")
    world.bus.name_acquire(connection, NAME, 0)
    expected = ConnectionInfo(connection.id, 1, OWNER, (NAME,), "a client")
    assert world.bus.connection_info(id=connection.id) == expected
    assert world.bus.connection_info(name=NAME) == expected
    stranger = world.connect(STRANGER)
    assert world.bus.connection_info(id=stranger.id) == ConnectionInfo(stranger.id, 0, STRANGER, (), "")


@pytest.mark.parametrize(
    "faked",
    [
        Credentials(uid=3000, gid=3001, pid=77, groups=(3001, 5), label=b"label", pidfd=9),
        Credentials(uid=0),
        Credentials(pid=77),
        Credentials(label=b"label"),
        Credentials(),
    ],
)
def test_faked_credentials_are_told_exactly_and_the_true_ones_not_at_all(faked: Credentials) -> None:
    world = World()
    connection = world.connect(faked=faked)
    assert world.bus.connection_info(id=connection.id).credentials == faked
    assert connection.credentials == OWNER


def test_faked_credentials_make_nobody_an_owner() -> None:
    world = World()
    connection = world.connect(faked=Credentials(uid=3000))
    assert connection.is_owner
    assert not world.bus.endpoint.is_owner(Process.of(Credentials(uid=3000)))
    with refused(EPERM):
        world.connect(STRANGER, faked=OWNER)


def test_what_is_unknown_is_left_out_and_never_zero() -> None:
    world = World()
    connection = world.connect(Credentials(uid=5))
    credentials = world.bus.connection_info(id=connection.id).credentials
    assert (credentials.gid, credentials.pid, credentials.groups) == (None, None, None)
    assert (credentials.label, credentials.pidfd) == (None, None)


def test_only_names_that_are_owned_are_told_in_the_order_they_came() -> None:
    world = World()
    other, connection = world.connect_many(2)
    world.bus.name_acquire(other, "org.example.Taken", ALLOW_REPLACEMENT)
    world.bus.name_acquire(connection, "org.example.Taken", QUEUE)
    world.bus.name_acquire(connection, "org.example.Z", 0)
    world.bus.name_acquire(connection, "org.example.A", 0)
    assert world.bus.connection_info(id=connection.id).names == ("org.example.Z", "org.example.A")
    world.bus.name_acquire(connection, "org.example.Taken", REPLACE_EXISTING)
    assert set(world.bus.connection_info(id=connection.id).names) == {
        "org.example.Taken",
        "org.example.Z",
        "org.example.A",
    }
    assert world.bus.connection_info(id=other.id).names == ()


def test_a_name_tells_of_its_owner_and_without_one_of_its_activator() -> None:
    world = World()
    activator = world.connect_activator(NAME)
    assert world.bus.connection_info(name=NAME).id == activator.id
    assert world.bus.connection_info(name=NAME).flags == HelloFlag.ACTIVATOR
    owner = world.connect()
    world.bus.name_acquire(owner, NAME, 0)
    assert world.bus.connection_info(name=NAME).id == owner.id
    assert world.bus.connection_info(id=activator.id).names == ()


def test_monitors_are_told_of_by_number() -> None:
    world = World()
    monitor = world.connect_monitor()
    assert world.bus.connection_info(id=monitor.id).flags == HelloFlag.MONITOR


def test_a_connection_that_became_a_monitor_is_told_of_as_one() -> None:
    world = World()
    watcher = world.connect(flags=HelloFlag.ACCEPT_FD)
    world.bus.name_acquire(watcher, NAME, 0)
    world.bus.become_monitor(watcher)
    info = world.bus.connection_info(id=watcher.id)
    assert info.flags == HelloFlag.ACCEPT_FD | HelloFlag.MONITOR
    assert info.names == ()


def test_with_a_name_and_a_number_the_owner_has_to_have_that_number() -> None:
    world = World()
    owner, other = world.connect_many(2)
    activator = world.connect_activator("org.example.Offered")
    world.bus.name_acquire(owner, NAME, 0)
    world.bus.name_acquire(other, NAME, QUEUE)
    assert world.bus.connection_info(id=owner.id, name=NAME).id == owner.id
    assert world.bus.connection_info(id=activator.id, name="org.example.Offered").id == activator.id
    for id in (other.id, activator.id, 0, 2**64 - 1):
        with refused(ESRCH):
            world.bus.connection_info(id=id, name=NAME)
    with refused(ESRCH):
        world.bus.connection_info(id=owner.id, name="org.example.Nobody")


def test_without_a_name_and_a_number_there_is_nobody_to_ask_for() -> None:
    world = World()
    world.connect()
    with refused(EINVAL):
        world.bus.connection_info()


def test_of_nobody_nothing_is_told() -> None:
    world = World()
    (gone,) = world.connect_many(1)
    world.bus.disconnect(gone)
    for id in (0, gone.id, world.bus.id, 2**64 - 1):
        with refused(ENXIO):
            world.bus.connection_info(id=id)
    for name in (NAME, "", "not a name", ":1.2"):
        with refused(ESRCH):
            world.bus.connection_info(name=name)
