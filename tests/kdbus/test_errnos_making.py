"""What opening a node, mapping a pool and the commands that make things are refused with."""

from __future__ import annotations

import pytest
from support.kdbus import Client, Make, Task, World, layout
from support.kdbus.layout import (
    ATTACH_ALL,
    PAGE,
    POOL_SIZE,
    SEE,
    USER,
    WORLD,
    ItemType,
    access,
    bloom_parameter,
)

from kdbus_core.metadata import INITIAL_USER_NAMESPACE, Extent, Snapshot, UserNamespace

from .errno_provoking import provokes

NAME = "foo.bar"
NODE = "1000-blah"
LONG = NODE.ljust(64, "x")
BAD_NODE_NAMES: list[str | bytes] = ["", "-a", "a-", ".a", "a.", "a/b", "a b", b"\xe4", b"a\0b"]
ONLY_1000 = UserNamespace(INITIAL_USER_NAMESPACE, (Extent(0, 1000, 1),), (Extent(0, 1000, 1),), 1000)


def node_name(name: str | bytes) -> bytes:
    return layout.string(ItemType.MAKE_NAME, name)


@pytest.fixture
def control(world: World) -> Client:
    """Of somebody who may make domains."""
    return world.open_control(world.task(0, privileged=True))


# Nodes and pools


@provokes("open", "ESHUTDOWN", "the domain, bus or endpoint has gone")
@pytest.mark.parametrize("what", ["domain", "bus", "endpoint"])
def test_opening_what_has_gone(world: World, what: str) -> None:
    maker, custom = world.make_endpoint(NODE)
    match what:
        case "domain":
            world.domain.close()
            world.open_control()
        case "bus":
            world.maker.close()
            world.open()
        case _:
            maker.close()
            world.open(custom)


@provokes("open", "EACCES", "the mode of the node, or of its bus, does not let the process in")
@pytest.mark.parametrize(
    ("bus_flags", "endpoint_flags", "gid"),
    [
        (0, Make.ACCESS_WORLD, 1000),
        (Make.ACCESS_WORLD, 0, 1000),
        (Make.ACCESS_WORLD, Make.ACCESS_GROUP, 2000),
    ],
)
def test_opening_what_is_not_for_everybody(
    world: World, bus_flags: int, endpoint_flags: int, gid: int
) -> None:
    world.make_bus(NODE, flags=bus_flags)
    world.open(world.find_endpoint(bus=NODE)).endpoint_make("1000-custom", endpoint_flags)
    world.open(world.find_endpoint("1000-custom", bus=NODE), world.task(2000, gid))


@provokes("mmap", "EBADFD", "the handle is not connected")
@pytest.mark.parametrize("writable", [False, True])
def test_mapping_without_hello(world: World, writable: bool) -> None:
    world.open().handle.map_pool(PAGE, writable=writable)


@provokes("mmap", "EPERM", "the mapping would be writable")
@pytest.mark.parametrize("length", [PAGE, POOL_SIZE + PAGE])
def test_mapping_for_writing(world: World, length: int) -> None:
    world.connect().handle.map_pool(length, writable=True)


@provokes("mmap", "EFAULT", "more is to be mapped than the pool has")
def test_mapping_more_than_there_is(world: World) -> None:
    world.connect(pool_size=PAGE).handle.map_pool(PAGE + 1, writable=False)


# BUS_MAKE


@provokes(
    "BUS_MAKE", "EINVAL", "the payload of MAKE_NAME, BLOOM_PARAMETER or ATTACH_FLAGS has the wrong form"
)
@pytest.mark.parametrize(
    "items",
    [
        *([node_name(name), bloom_parameter()] for name in BAD_NODE_NAMES),
        [layout.item(ItemType.MAKE_NAME, NODE.encode()), bloom_parameter()],
        [node_name(NODE), layout.item(ItemType.BLOOM_PARAMETER, bytes(24))],
        [node_name(NODE), bloom_parameter(), layout.item(ItemType.ATTACH_FLAGS_SEND, bytes(4))],
        [node_name(NODE), bloom_parameter(), layout.item(ItemType.ATTACH_FLAGS_RECV, bytes(16))],
    ],
    ids=range(13),
)
def test_a_bus_of_wrong_items(world: World, items: list[bytes]) -> None:
    world.open_control().command(layout.BUS_MAKE, *items)


@provokes("BUS_MAKE", "ENAMETOOLONG", "MAKE_NAME has more than 63 bytes")
def test_a_bus_of_a_long_name(world: World) -> None:
    world.open_control().bus_make(name=LONG)


@provokes(
    "BUS_MAKE",
    "EINVAL",
    "filters of less than 8 or more than 4096 bytes, of no multiple of 8, or without hashes",
)
@pytest.mark.parametrize("bloom", [(0, 1), (4, 1), (12, 1), (4104, 1), (2**64 - 8, 1), (64, 0)])
def test_a_bus_of_wrong_filters(world: World, bloom: tuple[int, int]) -> None:
    world.make_bus(NODE, bloom=bloom_parameter(*bloom))


@provokes("BUS_MAKE", "EINVAL", "unknown bits in ATTACH_FLAGS_SEND or ATTACH_FLAGS_RECV")
@pytest.mark.parametrize(("told", "required"), [(ATTACH_ALL + 1, 0), (0, ATTACH_ALL + 1), (2**64 - 2, 0)])
def test_a_bus_of_unknown_metadata(world: World, told: int, required: int) -> None:
    world.make_bus(NODE, creator_mask=told, required=required)


@provokes("BUS_MAKE", "EINVAL", "the name does not begin with the maker's uid and a dash")
@pytest.mark.parametrize("name", ["blah", "1001-blah", "01000-blah", "10001-blah", "1000_blah", "1000"])
def test_a_bus_of_somebody_elses_name(world: World, name: str) -> None:
    world.make_bus(name)


@provokes("BUS_MAKE", "EINVAL", "the maker has no uid in the domain")
@pytest.mark.parametrize("name", [NODE, "None-blah", "65534-blah", "4294967295-blah"])
def test_a_bus_of_nobody_known(world: World, name: str) -> None:
    world.make_bus(name, world.task(snapshot=Snapshot()))


@provokes("BUS_MAKE", "EEXIST", "the domain has a bus of this name")
def test_a_bus_twice(world: World) -> None:
    world.make_bus(NODE)
    world.make_bus(NODE)


@provokes("BUS_MAKE", "EMFILE", "the maker's real uid has 16 buses")
def test_a_seventeenth_bus(world: World) -> None:
    for count in range(15):  # and the one that the world has
        world.make_bus(f"{NODE}-{count}")
    world.make_bus(NODE)


# DOMAIN_MAKE


@provokes("DOMAIN_MAKE", "EPERM", "the opener is not privileged; told before anything is read")
@pytest.mark.parametrize("uid", [1000, 0])
def test_a_domain_of_the_unprivileged(world: World, uid: int) -> None:
    world.open_control(world.task(uid)).ioctl(layout.DOMAIN_MAKE.request, 1)


@provokes("DOMAIN_MAKE", "EINVAL", "MAKE_NAME is not the name of a node")
@pytest.mark.parametrize("name", BAD_NODE_NAMES)
def test_a_domain_of_no_name(control: Client, name: str | bytes) -> None:
    control.command(layout.DOMAIN_MAKE, node_name(name))


@provokes("DOMAIN_MAKE", "ENAMETOOLONG", "MAKE_NAME has more than 63 bytes")
def test_a_domain_of_a_long_name(control: Client) -> None:
    control.domain_make(LONG)


@provokes("DOMAIN_MAKE", "EEXIST", "the domain has a domain of this name")
def test_a_domain_twice(world: World, control: Client) -> None:
    world.open_control(control.task).domain_make(NODE)
    control.domain_make(NODE)


# ENDPOINT_MAKE


@provokes("ENDPOINT_MAKE", "EPERM", "the opener does not own the bus; told before anything is read")
def test_an_endpoint_of_a_stranger(world: World) -> None:
    world.open(task=world.task(2000)).ioctl(layout.ENDPOINT_MAKE.request, 1)


@provokes("ENDPOINT_MAKE", "EPERM", "the handle is one of a custom endpoint; told before anything is read")
@pytest.mark.parametrize("privileged", [False, True])
def test_an_endpoint_of_an_endpoint(world: World, privileged: bool) -> None:
    _, custom = world.make_endpoint(NODE)
    world.open(custom, world.task(privileged=privileged)).ioctl(layout.ENDPOINT_MAKE.request, 1)


@provokes("ENDPOINT_MAKE", "EINVAL", "MAKE_NAME is not the name of a node")
@pytest.mark.parametrize("name", ["", "1000-", "1000-a.", "1000-a/b", b"1000-\xe4", b"1000-a\0b"])
def test_an_endpoint_of_no_name(world: World, name: str | bytes) -> None:
    world.open().command(layout.ENDPOINT_MAKE, node_name(name))


@provokes("ENDPOINT_MAKE", "ENAMETOOLONG", "MAKE_NAME has more than 63 bytes")
def test_an_endpoint_of_a_long_name(world: World) -> None:
    world.make_endpoint(LONG)


@provokes("ENDPOINT_MAKE", "EINVAL", "the name does not begin with the maker's uid and a dash")
@pytest.mark.parametrize("name", ["blah", "bus", "2000-blah", "01000-blah", "10001-blah", "1000"])
def test_an_endpoint_of_somebody_elses_name(world: World, name: str) -> None:
    world.make_endpoint(name)


@provokes("ENDPOINT_MAKE", "EEXIST", "the bus has an endpoint of this name")
def test_an_endpoint_twice(world: World) -> None:
    world.make_endpoint(NODE)
    world.make_endpoint(NODE)


# ENDPOINT_UPDATE


@provokes("ENDPOINT_UPDATE", "EINVAL", "the payload of NAME or POLICY_ACCESS has the wrong form")
@pytest.mark.parametrize(
    "item",
    [
        layout.item(ItemType.NAME),
        layout.item(ItemType.NAME, b"foo.bar"),
        layout.item(ItemType.NAME, b"foo\0bar\0"),
        layout.item(ItemType.POLICY_ACCESS, bytes(16)),
        layout.item(ItemType.POLICY_ACCESS, bytes(32)),
    ],
    ids=range(5),
)
def test_an_endpoint_policy_of_wrong_items(world: World, item: bytes) -> None:
    world.make_endpoint(NODE, layout.name(NAME), item)


@provokes("ENDPOINT_UPDATE", "EINVAL", "POLICY_ACCESS before the first NAME")
def test_an_endpoint_policy_for_nothing(world: World) -> None:
    world.make_endpoint(NODE, access(WORLD, SEE), layout.name(NAME))


@provokes("ENDPOINT_UPDATE", "EINVAL", "NAME is neither a well-known name nor a wildcard")
@pytest.mark.parametrize("name", ["foo", "foo..bar", "foo.*.bar", "foo.b*", "*", ".*", "1foo.bar", ":1.5"])
def test_an_endpoint_policy_for_no_name(world: World, name: str) -> None:
    world.make_endpoint(NODE, layout.name(name))


@provokes("ENDPOINT_UPDATE", "EINVAL", "an unknown type or level of access")
@pytest.mark.parametrize(
    ("kind", "level"), [(0, SEE), (4, SEE), (WORLD, 3), (2**64 - 1, SEE), (USER, 2**64 - 1)]
)
def test_an_endpoint_policy_of_unknown_access(world: World, kind: int, level: int) -> None:
    world.make_endpoint(NODE, layout.name(NAME), access(kind, level))


@provokes("ENDPOINT_UPDATE", "EINVAL", "access for a uid or gid that the opener's namespace does not have")
@pytest.mark.parametrize("kind", [layout.USER, layout.GROUP])
@pytest.mark.parametrize("where", ["inside", "initial"])
def test_an_endpoint_policy_for_nobody(world: World, kind: int, where: str) -> None:
    task: Task | None = world.task(user_namespace=ONLY_1000) if where == "inside" else None
    world.make_endpoint(NODE, layout.name(NAME), access(kind, SEE, 7 if task else 2**32 - 1), task=task)


@provokes("ENDPOINT_UPDATE", "EEXIST", "a name is there twice")
@pytest.mark.parametrize("name", [NAME, "foo.*"])
def test_an_endpoint_policy_with_a_name_twice(world: World, name: str) -> None:
    world.make_endpoint(NODE, layout.name(name), access(WORLD, SEE), layout.name(name))
