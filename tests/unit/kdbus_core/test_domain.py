"""A domain: numbers, names of buses, and the users' accounts."""

from __future__ import annotations

from errno import EEXIST, EINVAL, EMFILE, EPERM, ESHUTDOWN

import pytest
from broker_world import OWNER, STRANGER, World, refused, zeros

from kdbus_core import Credentials, Domain, Message, MessageFlag, Pool, SyncCall
from kdbus_core.abi import ATTACH_ALL, ATTACH_ANY, AttachFlag, MakeFlag
from kdbus_core.domain import Bloom
from kdbus_core.metadata import Creds, Process, Snapshot


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


# What a bus is made of


@pytest.mark.parametrize("bloom", [Bloom(8, 1), Bloom(64, 8), Bloom(4096, 2**63)])
def test_a_bus_has_the_bloom_parameters_it_was_made_with(bloom: Bloom) -> None:
    assert Domain(zeros).make_bus("1000-test", Process.of(OWNER), bloom=bloom).bloom == bloom


@pytest.mark.parametrize("size", [0, 1, 7, 12, 4097, 4104])
def test_a_bloom_filter_has_a_sensible_size(size: int) -> None:
    domain = Domain(zeros)
    with refused(EINVAL):
        domain.make_bus("1000-test", Process.of(OWNER), bloom=Bloom(size, 1))
    with refused(EINVAL):
        domain.make_bus("1000-test", Process.of(OWNER), bloom=Bloom(64, 0))
    assert not domain.buses


def test_a_bus_has_the_masks_it_was_made_with() -> None:
    domain, owner = Domain(zeros), Process.of(OWNER)
    plain = domain.make_bus("1000-plain", owner)
    assert (plain.creator_mask, plain.required, plain.creator) == (0, 0, owner)
    bus = domain.make_bus("1000-test", owner, creator_mask=ATTACH_ANY, required=AttachFlag.PIDS)
    assert (bus.creator_mask, bus.required) == (ATTACH_ALL, AttachFlag.PIDS)
    for creator_mask, required in ((1 << 14, 0), (0, 1 << 14)):
        with refused(EINVAL):
            domain.make_bus("1000-other", owner, creator_mask=creator_mask, required=required)


def test_buses_are_counted_by_the_real_uid_and_named_by_the_effective_one() -> None:
    domain = Domain(zeros)
    maker = Process(Snapshot(creds=Creds(uid=5, euid=1000)))
    for number in range(16):
        domain.make_bus(f"1000-{number}", maker)
    with refused(EMFILE):
        domain.make_bus("1000-more", maker)
    domain.make_bus("1000-more", Process.of(OWNER))


def test_faults_of_a_bus_are_found_in_order() -> None:
    domain, owner = Domain(zeros), Process.of(OWNER)
    for number in range(16):
        domain.make_bus(f"1000-{number}", owner)
    with refused(EINVAL):
        domain.make_bus("1000-0", owner, creator_mask=1 << 14)
    with refused(EEXIST):
        domain.make_bus("1000-0", owner)
    with refused(EMFILE):
        domain.make_bus("1000-16", owner)
    domain.buses["1000-0"].close()
    domain.make_bus("1000-16", owner)


def test_clocks_of_a_domain_are_its_own() -> None:
    domain = Domain(zeros, lambda: 5, lambda: 6)
    assert (domain.monotonic(), domain.realtime()) == (5, 6)
    assert (Domain(zeros).monotonic(), Domain(zeros).realtime()) == (0, 0)


# Domains in domains

ROOT = Process.of(Credentials(uid=0, gid=0), privileged=True)


def test_a_domain_in_a_domain_has_numbers_and_accounts_of_its_own() -> None:
    world = World()
    inner = world.domain.make_domain("guest", ROOT, MakeFlag.ACCESS_GROUP)
    assert world.domain.domains == {"guest": inner}
    assert (inner.name, inner.parent, inner.owner, inner.access) == (
        "guest",
        world.domain,
        ROOT.credentials,
        MakeFlag.ACCESS_GROUP,
    )
    bus = inner.make_bus("1000-test", Process.of(OWNER))
    assert bus.id == world.bus.id == 1
    assert inner.user(1000) is not world.domain.user(1000)


def test_only_the_privileged_make_domains() -> None:
    domain = Domain(zeros)
    with refused(EPERM):
        domain.make_domain("not a name", Process.of(OWNER))
    with refused(EINVAL):
        domain.make_domain("not a name", ROOT)
    domain.make_domain("guest", ROOT)
    with refused(EEXIST):
        domain.make_domain("guest", ROOT)


def test_a_domain_takes_along_all_that_is_in_it() -> None:
    world = World()
    inner = world.domain.make_domain("guest", ROOT)
    bus = inner.make_bus("1000-test", Process.of(OWNER))
    connection = world.connect()
    for domain in (inner, world.domain):
        domain.close()
        domain.close()
    things = (inner, world.domain, bus, world.bus, connection)
    assert not any(thing.active for thing in things)
    assert not any((inner.buses, world.domain.buses, world.domain.domains))
    for domain in (inner, world.domain):
        with refused(ESHUTDOWN):
            domain.make_bus("1000-more", Process.of(OWNER))
        with refused(ESHUTDOWN):
            domain.make_domain("more", ROOT)


def test_an_outer_domain_takes_along_the_inner_ones() -> None:
    outer = Domain(zeros)
    inner = outer.make_domain("guest", ROOT)
    innermost = inner.make_domain("guest", ROOT)
    outer.close()
    assert not any(domain.active for domain in (outer, inner, innermost))
    assert not any((outer.domains, inner.domains))


@pytest.mark.parametrize(
    ("access", "expected"),
    [(MakeFlag(0), False), (MakeFlag.ACCESS_GROUP, False), (MakeFlag.ACCESS_WORLD, True)],
)
def test_a_domain_says_who_opens_its_control_node(access: MakeFlag, expected: bool) -> None:
    domain = Domain(zeros).make_domain("guest", ROOT, access)
    assert domain.may_open(Process.of(OWNER)) is expected
    assert domain.may_open(ROOT)


def test_the_control_node_of_the_outermost_domain_is_open_to_all() -> None:
    assert Domain(zeros).may_open(Process.of(Credentials()))


def test_a_callback_that_fails_does_not_keep_a_domain_open() -> None:
    domain = Domain(zeros)
    root = Process.of(OWNER, privileged=True)
    inner = domain.make_domain("inner", root)
    buses = [where.make_bus("1000-test", Process.of(OWNER)) for where in (domain, inner)]
    buses.append(domain.make_bus("1000-other", Process.of(OWNER)))

    def fail(call: SyncCall) -> None:
        raise RuntimeError

    for bus in buses:
        caller, callee = (bus.hello(bus.endpoint, bus.creator, pool=Pool(4096)) for _ in range(2))
        message = Message([], flags=MessageFlag.EXPECT_REPLY, dst_id=callee.id, cookie=1, timeout_ns=1)
        bus.call(caller, message, fail)
    with pytest.raises(RuntimeError):
        domain.close()
    assert not domain.buses
    assert not domain.domains
    assert not any(bus.active for bus in buses)
