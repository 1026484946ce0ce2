"""BUS_MAKE, DOMAIN_MAKE, ENDPOINT_MAKE, ENDPOINT_UPDATE: what a handle can make and own."""

from __future__ import annotations

from errno import (
    EBADFD,
    EEXIST,
    EINVAL,
    EMFILE,
    ENAMETOOLONG,
    EPERM,
    ESHUTDOWN,
    ESRCH,
)

import pytest
from handle_world import (
    NAME,
    OWNER_UID,
    ROOT,
    STRANGER,
    Client,
    HandleWorld,
    access_item,
    bloom_parameter,
    name_item,
    refused,
)

from kdbus_core.abi import (
    MAX_BUSES_PER_USER,
    NEGOTIATE,
    AccessLevel,
    AccessType,
    Command,
    ItemType,
    MakeFlag,
)
from kdbus_core.handle import Handle, HandleState
from kdbus_core.items import build_item, build_numbers_item

MAKE_NAME = ItemType.MAKE_NAME


def make_domain(client: Client, name: str = "inner") -> None:
    client.run(Command.DOMAIN_MAKE, items=[name_item(name, MAKE_NAME)])


# BUS_MAKE


def test_a_bus_lives_as_long_as_the_handle_that_made_it() -> None:
    world = HandleWorld()
    other = world.connect()
    world.maker.handle.close()
    assert not world.domain.buses
    with refused(ESHUTDOWN):
        other.run(Command.LIST)


def test_a_failed_or_negotiated_bus_make_leaves_the_handle_fresh() -> None:
    world = HandleWorld()
    client = world.open(world.domain)
    for name in ("foo", f"{OWNER_UID}-blah@123", f"{OWNER_UID}-blah-", f"{OWNER_UID + 1}-bus"):
        with refused(EINVAL):
            world.make_bus(client, name)
    with refused(EEXIST):
        world.make_bus(client)
    client.run(Command.BUS_MAKE, flags=NEGOTIATE)
    assert client.is_in(HandleState.NONE)
    world.make_bus(client, f"{OWNER_UID}-other")
    assert client.is_in(HandleState.BUS_OWNER)
    with refused(EBADFD):
        world.make_bus(client, f"{OWNER_UID}-another")


@pytest.mark.parametrize(
    ("size", "n_hash"), [(0, 1), (7, 1), (9, 1), (4104, 1), (64, 0), ((1 << 64) - 8, 1), (12, 1)]
)
def test_bloom_parameters_must_be_sensible(size: int, n_hash: int) -> None:
    world = HandleWorld()
    items = [name_item(f"{OWNER_UID}-x", MAKE_NAME), bloom_parameter(size, n_hash)]
    with refused(EINVAL):
        world.open(world.domain).run(Command.BUS_MAKE, items=items)


@pytest.mark.parametrize(("size", "n_hash"), [(8, 1), (4096, (1 << 64) - 1)])
def test_the_largest_and_smallest_bloom_parameters_are_fine(size: int, n_hash: int) -> None:
    world = HandleWorld()
    items = [name_item(f"{OWNER_UID}-x", MAKE_NAME), bloom_parameter(size, n_hash)]
    world.open(world.domain).run(Command.BUS_MAKE, items=items)
    assert world.domain.buses[f"{OWNER_UID}-x"].bloom == (size, n_hash)


@pytest.mark.parametrize("missing", [MAKE_NAME, ItemType.BLOOM_PARAMETER])
def test_a_bus_needs_a_name_and_bloom_parameters(missing: ItemType) -> None:
    world = HandleWorld()
    items = {MAKE_NAME: name_item(f"{OWNER_UID}-x", MAKE_NAME), ItemType.BLOOM_PARAMETER: bloom_parameter()}
    del items[missing]
    with refused(EINVAL):
        world.open(world.domain).run(Command.BUS_MAKE, items=items.values())


@pytest.mark.parametrize("type", [ItemType.ATTACH_FLAGS_SEND, ItemType.ATTACH_FLAGS_RECV])
def test_unknown_metadata_of_a_bus_is_invalid(type: ItemType) -> None:
    world = HandleWorld()
    with refused(EINVAL):
        world.make_bus(world.open(world.domain), f"{OWNER_UID}-x", items=[build_numbers_item(type, 0x4000)])


def test_a_bus_has_the_masks_and_flags_it_was_made_with() -> None:
    world = HandleWorld()
    flags = MakeFlag.ACCESS_GROUP | MakeFlag.FINAL_METADATA
    world.make_bus(
        world.open(world.domain),
        f"{OWNER_UID}-x",
        flags=flags,
        items=[
            build_numbers_item(ItemType.ATTACH_FLAGS_SEND, (1 << 64) - 1),
            build_numbers_item(ItemType.ATTACH_FLAGS_RECV, 5),
        ],
    )
    bus = world.domain.buses[f"{OWNER_UID}-x"]
    assert (bus.creator_mask, bus.required, bus.flags) == (0x3FFF, 5, flags)


def test_a_bus_name_may_have_63_bytes() -> None:
    world = HandleWorld()
    world.make_bus(world.open(world.domain), f"{OWNER_UID}-" + "x" * 58)
    with refused(ENAMETOOLONG):
        world.make_bus(world.open(world.domain), f"{OWNER_UID}-" + "x" * 59)


def test_one_user_has_16_buses() -> None:
    world = HandleWorld()
    for number in range(1, MAX_BUSES_PER_USER):
        world.make_bus(world.open(world.domain), f"{OWNER_UID}-{number}")
    with refused(EMFILE):
        world.make_bus(world.open(world.domain), f"{OWNER_UID}-x")


# DOMAIN_MAKE


def test_a_domain_lives_as_long_as_the_handle_that_made_it() -> None:
    world = HandleWorld()
    client = world.open(world.domain, ROOT)
    make_domain(client)
    assert client.is_in(HandleState.DOMAIN_OWNER)
    inner = world.domain.domains["inner"]
    fresh = Client(Handle(inner, ROOT))
    client.handle.close()
    assert not world.domain.domains
    with refused(ESHUTDOWN):
        make_domain(fresh)


def test_only_the_privileged_make_domains_whatever_they_ask() -> None:
    world = HandleWorld()
    client = world.open(world.domain)
    with refused(EPERM):
        client.ioctl(Command.DOMAIN_MAKE, bytes(8))
    with refused(EPERM):
        client.run(Command.DOMAIN_MAKE, flags=NEGOTIATE)


def test_a_domain_needs_a_name_of_its_own() -> None:
    world = HandleWorld()
    first, second = world.open(world.domain, ROOT), world.open(world.domain, ROOT)
    make_domain(first)
    with refused(EEXIST):
        make_domain(second)
    with refused(EINVAL):
        second.run(Command.DOMAIN_MAKE)
    with refused(ENAMETOOLONG):
        make_domain(second, "x" * 64)
    assert second.is_in(HandleState.NONE)


def test_who_may_open_a_domain_is_said_when_it_is_made() -> None:
    world = HandleWorld()
    world.open(world.domain, ROOT).run(
        Command.DOMAIN_MAKE, flags=MakeFlag.ACCESS_WORLD, items=[name_item("inner", MAKE_NAME)]
    )
    Handle(world.domain.domains["inner"], STRANGER)


# ENDPOINT_MAKE and ENDPOINT_UPDATE


def test_an_endpoint_lives_as_long_as_the_handle_that_made_it() -> None:
    world = HandleWorld()
    maker, endpoint = world.make_endpoint()
    assert maker.is_in(HandleState.EP_OWNER)
    client = world.connect(STRANGER, node=endpoint)
    maker.handle.close()
    assert list(world.bus.endpoints) == ["bus"]
    with refused(ESHUTDOWN):
        client.run(Command.LIST)


def test_only_owners_make_endpoints_whatever_they_ask() -> None:
    world = HandleWorld()
    _, endpoint = world.make_endpoint()
    for client in (world.open(process=STRANGER), world.open(endpoint), world.open(endpoint, ROOT)):
        with refused(EPERM):
            client.ioctl(Command.ENDPOINT_MAKE, bytes(8))


@pytest.mark.parametrize(
    ("name", "errno"),
    [
        (f"{OWNER_UID}-" + "x" * 63, ENAMETOOLONG),
        (f"{OWNER_UID + 1}-foobar", EINVAL),
        ("foobar", EINVAL),
        (f"{OWNER_UID}-door", EEXIST),
    ],
)
def test_an_endpoint_needs_a_name_of_its_maker(name: str, errno: int) -> None:
    world = HandleWorld()
    world.make_endpoint()
    client = world.open()
    with refused(errno):
        client.run(Command.ENDPOINT_MAKE, items=[name_item(name, MAKE_NAME)])
    assert client.is_in(HandleState.NONE)


def test_a_privileged_maker_puts_its_own_uid_before_the_name() -> None:
    world = HandleWorld()
    world.open(process=ROOT).run(Command.ENDPOINT_MAKE, items=[name_item("0-door", MAKE_NAME)])
    assert "0-door" in world.bus.endpoints


def see(client: Client, name: str = NAME) -> None:
    client.run(Command.CONN_INFO, items=[name_item(name)])


def test_an_endpoint_shows_what_its_policy_shows_and_an_update_replaces_all_of_it() -> None:
    world = HandleWorld()
    maker, endpoint = world.make_endpoint()
    owner, guest = world.connect(), world.connect(STRANGER, node=endpoint)
    owner.run(Command.NAME_ACQUIRE, items=[name_item(NAME)])
    owner.run(Command.NAME_ACQUIRE, items=[name_item("com.example.second")])
    with refused(ESRCH):
        see(guest)
    world_may_see = access_item(AccessType.WORLD, AccessLevel.SEE)
    maker.run(
        Command.ENDPOINT_UPDATE,
        items=[name_item(NAME), world_may_see, name_item("com.example.second"), world_may_see],
    )
    see(guest)
    see(guest, "com.example.second")
    maker.run(Command.ENDPOINT_UPDATE, items=[name_item(NAME), world_may_see])
    with refused(ESRCH):
        see(guest, "com.example.second")
    maker.run(Command.ENDPOINT_UPDATE)
    with refused(ESRCH):
        see(guest)


@pytest.mark.parametrize(
    ("items", "errno"),
    [
        ([access_item(AccessType.WORLD, 0)], EINVAL),
        ([name_item("noname")], EINVAL),
        ([name_item("com.example.n\xe4me")], EINVAL),
        ([name_item(NAME), access_item(0, 0)], EINVAL),
        ([name_item(NAME), access_item(4, 0)], EINVAL),
        ([name_item(NAME), access_item(AccessType.WORLD, 3)], EINVAL),
        ([name_item(NAME), access_item(AccessType.USER, 0, 1 << 40)], EINVAL),
        ([name_item(NAME), access_item(AccessType.GROUP, 0, (1 << 32) - 1)], EINVAL),
        ([name_item(NAME), name_item(NAME)], EEXIST),
        ([name_item(NAME), access_item(AccessType.WORLD, 0), build_item(ItemType.NAME, b"x")], EINVAL),
    ],
)
def test_a_bad_endpoint_policy_changes_nothing(items: list[bytes], errno: int) -> None:
    world = HandleWorld()
    maker, endpoint = world.make_endpoint()
    guest = world.connect(STRANGER, node=endpoint)
    world.connect().run(Command.NAME_ACQUIRE, items=[name_item(NAME)])
    maker.run(Command.ENDPOINT_UPDATE, items=[name_item(NAME), access_item(AccessType.USER, 0, 2000)])
    with refused(errno):
        maker.run(Command.ENDPOINT_UPDATE, items=items)
    see(guest)


def test_an_endpoint_policy_may_have_wildcards() -> None:
    world = HandleWorld()
    maker, endpoint = world.make_endpoint()
    guest = world.connect(STRANGER, node=endpoint)
    world.connect().run(Command.NAME_ACQUIRE, items=[name_item(NAME)])
    maker.run(Command.ENDPOINT_UPDATE, items=[name_item("com.example.*"), access_item(AccessType.WORLD, 0)])
    see(guest)
