"""A domain: numbers, names of buses, and the users' accounts."""

from __future__ import annotations

from errno import EEXIST, EINVAL, EMFILE

import pytest
from broker_world import OWNER, STRANGER, World, refused, zeros

from kdbus_core import Credentials, Domain
from kdbus_core.abi import MakeFlag
from kdbus_core.metadata import Process


def test_buses_and_connections_are_numbered_from_one_counter() -> None:
    world = World()
    first = world.connect()
    other_bus = world.domain.make_bus("1000-other", Process.of(OWNER))
    second = world.connect()
    assert (world.bus.id, first.id, other_bus.id, second.id) == (1, 2, 3, 4)


def test_a_bus_is_found_under_its_name() -> None:
    domain = Domain(zeros)
    bus = domain.make_bus("1000-test", Process.of(OWNER), MakeFlag.ACCESS_GROUP)
    assert domain.buses == {"1000-test": bus}
    assert (bus.name, bus.owner, bus.domain) == ("1000-test", OWNER, domain)
    assert bus.endpoint.name == "bus"
    assert bus.endpoint.access == MakeFlag.ACCESS_GROUP
    assert bus.endpoint.is_default


def test_a_bus_may_be_entered_by_its_owner_alone_unless_told_otherwise() -> None:
    assert Domain(zeros).make_bus("1000-test", Process.of(OWNER)).endpoint.access == MakeFlag(0)


@pytest.mark.parametrize(
    "name", ["test", "1000", "1000-", "1000test", "2000-test", "01000-test", "1000-a/b", ""]
)
def test_a_bus_is_named_after_its_maker(name: str) -> None:
    domain = Domain(zeros)
    with refused(EINVAL):
        domain.make_bus(name, Process.of(OWNER))
    assert not domain.buses


@pytest.mark.parametrize("name", ["None-test", "-test", "0-test", "1000-test"])
def test_who_is_unknown_makes_no_bus(name: str) -> None:
    domain = Domain(zeros)
    with refused(EINVAL):
        domain.make_bus(name, Process.of(Credentials(pid=4711)))
    assert not domain.buses


def test_two_buses_have_two_names() -> None:
    world = World()
    with refused(EEXIST):
        world.domain.make_bus("1000-test", Process.of(OWNER))
    assert world.domain.buses == {"1000-test": world.bus}


def test_a_user_has_sixteen_buses() -> None:
    domain = Domain(zeros)
    for number in range(16):
        domain.make_bus(f"1000-{number}", Process.of(OWNER))
    with refused(EMFILE):
        domain.make_bus("1000-more", Process.of(OWNER))
    assert "1000-more" not in domain.buses
    domain.make_bus("2000-more", Process.of(STRANGER))


@pytest.mark.parametrize("byte", [0x00, 0xFF, 0xA5])
def test_a_bus_has_a_random_uuid(byte: int) -> None:
    asked: list[int] = []

    def random_bytes(count: int) -> bytes:
        asked.append(count)
        return bytes([byte]) * count

    id128 = Domain(random_bytes).make_bus("1000-test", Process.of(OWNER)).id128
    assert asked == [16]
    assert len(id128) == 16
    assert id128[6] >> 4 == 4
    assert id128[8] >> 6 == 0b10
    assert id128[:6] + id128[7:8] + id128[9:] == bytes([byte]) * 14
    assert id128[6] & 0x0F == byte & 0x0F
    assert id128[8] & 0x3F == byte & 0x3F


def test_each_uid_has_one_account_and_the_unknown_have_one_together() -> None:
    domain = Domain(zeros)
    assert domain.user(1) is domain.user(1)
    assert domain.user(1) is not domain.user(2)
    assert domain.user(None) is domain.user(None)
    assert domain.user(None) is not domain.user(0)
    assert repr(domain.user(7)) == "User(7)"


def test_an_account_is_kept_while_it_has_connections() -> None:
    world = World()
    connection, last = world.connect(STRANGER), world.connect(STRANGER)
    account = connection.user
    world.bus.disconnect(connection)
    account.settle()
    assert world.domain.user(2000) is last.user is account
    world.bus.disconnect(last)
    assert world.domain.user(2000) is not account


def test_an_account_is_kept_while_something_of_it_waits_anywhere() -> None:
    world = World()
    first, second = world.connect_many(2)
    sender = world.connect(STRANGER)
    account = sender.user
    first.quota.charge(account, 100)
    second.quota.charge(account, 100)
    world.bus.disconnect(sender)
    first.quota.refund(account, 100)
    assert world.domain.user(2000) is account
    second.quota.refund(account, 100)
    assert world.domain._users == {1000: first.user}


def test_an_account_is_kept_for_its_connections_when_nothing_of_it_waits_any_more() -> None:
    world = World()
    receiver, sender = world.connect(), world.connect(STRANGER)
    receiver.quota.charge(sender.user, 100)
    receiver.quota.refund(sender.user, 100)
    assert world.domain.user(2000) is sender.user


def test_an_account_that_was_forgotten_does_not_take_its_successor_along() -> None:
    world = World()
    receiver, sender = world.connect(), world.connect(STRANGER)
    forgotten = sender.user
    world.bus.disconnect(sender)
    successor = world.connect(STRANGER).user
    assert successor is not forgotten
    receiver.quota.force(forgotten, 100)
    receiver.quota.refund(forgotten, 100)
    assert world.domain.user(2000) is successor


def test_the_account_of_the_unknown_is_not_the_one_of_the_bus_itself() -> None:
    world = World()
    assert world.connect(Credentials()).user is not world.bus.kernel_user
