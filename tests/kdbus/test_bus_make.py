"""BUS_MAKE: a bus comes into being under a name of its maker's, once a handle, and lives as long as that."""

from __future__ import annotations

from errno import EBADFD, EEXIST, EINVAL, EMFILE, ENAMETOOLONG, ENOTTY, ESHUTDOWN
from struct import pack

import pytest
from support.kdbus import ItemType, Make, World, layout, refused
from support.kdbus.layout import ATTACH_ALL, bloom_parameter

from kdbus_core.metadata import Creds

NAME = "1000-blah"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("foo", id="no uid"),
        pytest.param("1000-blah@123", id="a strange character"),
        pytest.param("1000-blah-", id="a dash at the end"),
        pytest.param("1000-blah.", id="a dot at the end"),
        pytest.param("1000_blah", id="no dash after the uid"),
        pytest.param("1001-blah", id="another uid"),
        pytest.param("01000-blah", id="a uid with a zero"),
        pytest.param("10001-blah", id="a longer uid"),
        pytest.param("1000-blah/x", id="a slash"),
        pytest.param(b"1000-bl\xe4h", id="a letter of Latin-1"),
        pytest.param(b"1000-bl\0ah", id="two NULs"),
    ],
)
def test_a_name_that_is_not_the_makers_is_refused(world: World, name: str | bytes) -> None:
    with refused(EINVAL):
        world.open_control().bus_make(name=name)


def test_the_empty_name_is_refused(world: World) -> None:
    with refused(EINVAL):
        world.open_control().command(
            layout.BUS_MAKE, bloom_parameter(), layout.string(ItemType.MAKE_NAME, b"")
        )


def test_a_name_without_its_nul_is_refused(world: World) -> None:
    with refused(EINVAL):
        world.open_control().command(
            layout.BUS_MAKE, bloom_parameter(), layout.item(ItemType.MAKE_NAME, NAME.encode())
        )


def test_a_name_of_63_bytes_is_the_longest(world: World) -> None:
    world.open_control().bus_make(name=NAME.ljust(63, "x"))
    with refused(ENAMETOOLONG):
        world.open_control().bus_make(name=NAME.ljust(64, "x"))


def test_a_handle_can_be_used_after_its_bus_was_refused(world: World) -> None:
    control = world.open_control()
    for name in ("foo", "1000-blah@123", "1000-blah-"):
        with refused(EINVAL):
            control.bus_make(name=name)
    control.bus_make(name=NAME)
    assert NAME in world.domain.buses


def test_a_name_is_taken_once_and_the_loser_may_try_another(world: World) -> None:
    first, second = world.open_control(), world.open_control()
    first.bus_make(name=NAME)
    with refused(EEXIST):
        second.bus_make(name=NAME)
    second.bus_make(name=f"{NAME}-2")


def test_a_handle_makes_one_bus(world: World) -> None:
    control = world.open_control()
    control.bus_make(name=NAME)
    with refused(EBADFD):
        control.bus_make(name=f"{NAME}-2")


def test_a_new_bus_has_its_default_endpoint(world: World) -> None:
    world.open_control().bus_make(name=NAME)
    assert world.find_endpoint("bus", bus=NAME).is_default


def test_the_creator_info_of_a_bus_starts_with_its_name(world: World) -> None:
    world.make_bus(NAME)
    client = world.connect(node=world.find_endpoint(bus=NAME))
    info = client.creator_info(ATTACH_ALL)
    assert info.kinds[0] == ItemType.MAKE_NAME
    assert info.text(ItemType.MAKE_NAME) == NAME
    assert info.flags == Make.ACCESS_WORLD


def test_the_slice_of_a_creator_info_is_given_back_once(world: World) -> None:
    client = world.connect()
    answer = client.command(layout.BUS_CREATOR_INFO, attach_flags=ATTACH_ALL)
    client.unfreed.add(answer["offset"])
    client.free(answer["offset"])
    with refused(6):  # ENXIO
        client.free(answer["offset"])


def test_the_first_bus_of_a_domain_has_the_first_number(world: World) -> None:
    assert world.connect().creator_info(0).id == 1


@pytest.mark.parametrize(
    "bloom",
    [
        pytest.param((0, 1), id="no bytes"),
        pytest.param((4, 1), id="less than 8"),
        pytest.param((12, 1), id="no multiple of 8"),
        pytest.param((4104, 1), id="more than 4096"),
        pytest.param((64, 0), id="no hashes"),
    ],
)
def test_bad_bloom_parameters_are_refused(world: World, bloom: tuple[int, int]) -> None:
    with refused(EINVAL):
        world.open_control().bus_make(name=NAME, bloom=bloom_parameter(*bloom))


@pytest.mark.parametrize("bloom", [(8, 1), (4096, 2**64 - 1)])
def test_bloom_parameters_at_their_limits_are_taken(world: World, bloom: tuple[int, int]) -> None:
    world.make_bus(NAME, bloom=bloom_parameter(*bloom))
    client = world.open(world.find_endpoint(bus=NAME))
    answer = client.hello(keep=True)
    assert client.read_pool(answer["offset"], 32) == pack("=4Q", 32, 7, *bloom)
    client.free(answer["offset"])


@pytest.mark.parametrize(
    "items",
    [
        pytest.param([bloom_parameter()], id="no name"),
        pytest.param([layout.string(ItemType.MAKE_NAME, NAME)], id="no bloom parameters"),
        pytest.param([layout.string(ItemType.MAKE_NAME, NAME)] * 2 + [bloom_parameter()], id="two names"),
        pytest.param(
            [layout.string(ItemType.MAKE_NAME, NAME), bloom_parameter(), layout.name("a.b")],
            id="an item of another command",
        ),
        pytest.param(
            [
                layout.string(ItemType.MAKE_NAME, NAME),
                bloom_parameter(),
                layout.number(ItemType.ATTACH_FLAGS_SEND, ATTACH_ALL + 1),
            ],
            id="unknown metadata",
        ),
    ],
)
def test_wrong_items_are_refused(world: World, items: list[bytes]) -> None:
    with refused(EINVAL):
        world.open_control().command(layout.BUS_MAKE, *items)


def test_an_unknown_flag_is_refused(world: World) -> None:
    with refused(EINVAL):
        world.open_control().bus_make(name=NAME, flags=1 << 20)


def test_a_user_has_16_buses(world: World) -> None:
    for count in range(15):  # and the one that the world has
        world.make_bus(f"{NAME}-{count}")
    control = world.open_control()
    with refused(EMFILE):
        control.bus_make(name=NAME)
    world.make_bus("2000-blah", world.task(2000))
    world.maker.close()
    control.bus_make(name=NAME)


def test_buses_are_named_by_the_effective_uid_and_counted_for_the_real_one(world: World) -> None:
    setuid = world.task(2000, creds=Creds(1000, 2000, 2000, 2000, 1000, 2000, 2000, 2000))
    with refused(EINVAL):
        world.make_bus(NAME, setuid)
    for count in range(15):
        world.make_bus(f"2000-blah-{count}", setuid)
    with refused(EMFILE):
        world.make_bus("1000-more")
    with refused(EMFILE):
        world.make_bus("2000-more", setuid)
    world.make_bus("2000-more", world.task(2000))


def test_a_bus_ends_with_its_handle(world: World) -> None:
    maker = world.make_bus(NAME)
    node = world.find_endpoint(bus=NAME)
    client = world.connect(node=node)
    maker.close()
    assert NAME not in world.domain.buses
    assert client.poll() == layout.POLLERR | layout.POLLHUP
    with refused(ESHUTDOWN):
        client.list_records()
    with refused(ESHUTDOWN):
        world.open(node)


def test_a_control_node_takes_no_other_known_command(world: World) -> None:
    control = world.open_control()
    for command in (layout.HELLO, layout.SEND, layout.LIST, layout.ENDPOINT_MAKE):
        with refused(EBADFD):
            control.command(command)


def test_an_unknown_command_is_none_at_all(world: World) -> None:
    control = world.open_control()
    address = world.owner.memory.allocate(64)
    with refused(ENOTTY):
        control.ioctl(layout.encode_request(1, 24, 0x7F), address)
