"""What HELLO, UPDATE and BYEBYE are refused with."""

from __future__ import annotations

from errno import ENOMEM
from struct import pack

import pytest
from support.kdbus import Client, Hello, ItemType, World, layout
from support.kdbus.layout import ATTACH_ALL, GROUP, PAGE, SEE, TALK, UNSET_ID, USER, WORLD, access

from kdbus_core.metadata import INITIAL_USER_NAMESPACE, Extent, PidNamespace, UserNamespace
from kdbus_core.pool import Memory

from .errno_provoking import provokes

NAME = "foo.bar"
BUS = "1000-strict"
STRANGER = 2000
ONLY_1000 = UserNamespace(INITIAL_USER_NAMESPACE, (Extent(0, 1000, 1),), (Extent(0, 1000, 1),), 1000)
BAD_NAMES = ["foo", "foo..bar", "foo.*.bar", "foo.b*", "*", ".*", "1foo.bar", ":1.5", "f." + "o" * 254]
BAD_STRINGS = [b"", b"foo.bar", b"foo\0bar\0"]
BAD_ACCESSES = [
    access(0, SEE),
    access(4, SEE),
    access(WORLD, 3),
    access(USER, SEE, UNSET_ID),
    access(GROUP, SEE, 2**32),
]
FAKED = {
    "CREDS": layout.creds(*[1000] * 8),
    "PIDS": layout.pids(1),
    "SECLABEL": layout.string(ItemType.SECLABEL, "label"),
    "AUXGROUPS": layout.item(ItemType.AUXGROUPS, pack("=Q", 1000)),
}


@pytest.fixture
def activator(world: World) -> Client:
    return world.connect_activator(NAME)


@pytest.fixture
def holder(world: World) -> Client:
    return world.connect_holder(NAME)


def connect_strictly(world: World, attach_send: int) -> Client:
    """To a bus that wants to know everybody's pids."""
    world.make_bus(BUS, required=layout.Attach.PIDS)
    return world.connect(node=world.find_endpoint(bus=BUS), attach_send=attach_send)


# HELLO


@provokes("HELLO", "EINVAL", "the payload of an item has the wrong form")
@pytest.mark.parametrize(
    "item",
    [
        *(
            layout.item(ItemType.CONN_DESCRIPTION, text)
            for text in (b"-a\0", b"a b\0", b"a", b"a\0b\0", b"\0")
        ),
        *(layout.item(ItemType.SECLABEL, text) for text in BAD_STRINGS),
        layout.item(ItemType.CREDS, bytes(56)),
        layout.item(ItemType.CREDS, bytes(72)),
        layout.item(ItemType.PIDS, bytes(16)),
        layout.item(ItemType.PIDS, bytes(32)),
        layout.item(ItemType.AUXGROUPS, bytes(4)),
        layout.item(ItemType.POLICY_ACCESS, bytes(16)),
        layout.item(ItemType.POLICY_ACCESS, bytes(32)),
    ],
    ids=range(15),
)
def test_hello_with_wrong_items(world: World, item: bytes) -> None:
    world.connect(None, item, description=None)


@provokes("HELLO", "ENAMETOOLONG", "CONN_DESCRIPTION has more than 63 bytes")
def test_hello_with_a_long_description(world: World) -> None:
    world.connect(description="x" * 64)


@provokes("HELLO", "EINVAL", "pool_size is 0, no multiple of the page size, or above what the domain allows")
@pytest.mark.parametrize("size", [0, 1, PAGE - 8, PAGE + 8, 2**30 + PAGE, 2**64 - PAGE, 2**64 - 8])
def test_hello_with_half_a_page_or_too_many(world: World, size: int) -> None:
    world.connect(pool_size=size)


@provokes("HELLO", "EINVAL", "more than one of ACTIVATOR, POLICY_HOLDER and MONITOR")
@pytest.mark.parametrize("flags", [3, 5, 6, 7])
def test_hello_of_two_kinds(world: World, flags: int) -> None:
    named = () if flags == 5 else (layout.name(NAME),)
    world.connect(None, *named, flags=flags << 1)


@provokes("HELLO", "EINVAL", "NAME without ACTIVATOR or POLICY_HOLDER")
@pytest.mark.parametrize("flags", [0, Hello.MONITOR])
def test_hello_with_a_name(world: World, flags: int) -> None:
    world.connect(None, layout.name(NAME), flags=flags)


@provokes("HELLO", "EINVAL", "ACTIVATOR or POLICY_HOLDER without NAME")
@pytest.mark.parametrize("flags", [Hello.ACTIVATOR, Hello.POLICY_HOLDER])
def test_hello_without_a_name(world: World, flags: int) -> None:
    world.connect(flags=flags)


@provokes("HELLO", "EINVAL", "NAME is not a well-known name")
@pytest.mark.parametrize("flags", [Hello.ACTIVATOR, Hello.POLICY_HOLDER])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_hello_with_no_name(world: World, flags: int, name: str) -> None:
    world.connect(None, layout.name(name), flags=flags)


@provokes("HELLO", "EINVAL", "NAME is a wildcard, of an activator")
def test_hello_of_an_activator_for_many_names(world: World) -> None:
    world.connect_activator("foo.*")


@provokes("HELLO", "EOPNOTSUPP", "MONITOR on a custom endpoint")
@pytest.mark.parametrize("uid", [1000, STRANGER])
def test_hello_of_a_monitor_on_a_custom_endpoint(world: World, uid: int) -> None:
    _, custom = world.make_endpoint("1000-blah")
    world.connect(world.task(uid), node=custom, flags=Hello.MONITOR)


@provokes("HELLO", "EPERM", "ACTIVATOR, POLICY_HOLDER or MONITOR by somebody who does not own the bus")
@pytest.mark.parametrize("flags", [Hello.ACTIVATOR, Hello.POLICY_HOLDER, Hello.MONITOR])
def test_hello_of_a_stranger_who_is_special(world: World, flags: int) -> None:
    named = () if flags == Hello.MONITOR else (layout.name(NAME),)
    world.connect(world.task(STRANGER), *named, flags=flags)


@provokes("HELLO", "EPERM", "CREDS, PIDS, SECLABEL or AUXGROUPS by somebody who does not own the bus")
@pytest.mark.parametrize("kind", FAKED)
@pytest.mark.parametrize("where", ["default", "custom"])
def test_hello_of_a_stranger_who_speaks_for_others(world: World, kind: str, where: str) -> None:
    if where == "default":
        world.connect(world.task(STRANGER), FAKED[kind])
    _, custom = world.make_endpoint("1000-blah")
    world.connect(None, FAKED[kind], node=custom)


@provokes("HELLO", "EINVAL", "unknown bits in attach_flags_send or attach_flags_recv")
@pytest.mark.parametrize(("send", "recv"), [(ATTACH_ALL + 1, 0), (0, ATTACH_ALL + 1), (0, 2**64 - 2)])
def test_hello_with_unknown_metadata(world: World, send: int, recv: int) -> None:
    world.connect(attach_send=send, attach_recv=recv)


@provokes("HELLO", "ECONNREFUSED", "attach_flags_send does not grant what the bus requires")
def test_hello_that_keeps_a_secret(world: World) -> None:
    connect_strictly(world, ATTACH_ALL & ~layout.Attach.PIDS)


@provokes("HELLO", "EINVAL", "CREDS, PIDS or AUXGROUPS with ids that the opener's namespaces do not have")
@pytest.mark.parametrize(
    "item",
    [
        layout.creds(7, 0, 0, 0, 0, 0, 0, 0),
        layout.creds(0, 0, 0, 0, 0, 0, 0, 7),
        layout.creds(2**32, *[UNSET_ID] * 7),
        layout.pids(99),
        layout.pids(2**31),
        layout.item(ItemType.AUXGROUPS, pack("=2Q", 0, 7)),
        layout.item(ItemType.AUXGROUPS, pack("=Q", UNSET_ID)),
    ],
    ids=range(7),
)
def test_hello_for_nobody(world: World, item: bytes) -> None:
    inside = world.task(user_namespace=ONLY_1000, pid_namespace=PidNamespace(None))
    world.connect(inside, item)


@provokes("HELLO", "EMFILE", "the user has 1024 connections")
def test_hello_of_one_too_many(world: World) -> None:
    task = world.task(max_fds=2000)
    for _ in range(1024):
        world.connect(task, pool_size=PAGE)
    world.connect(task, pool_size=PAGE)


@provokes("HELLO", "ENOMEM", "the host has no memory for the pool")
@pytest.mark.parametrize("error", [OSError(ENOMEM, "no memory"), MemoryError(), OverflowError()])
def test_hello_without_memory(world: World, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def make_memory(size: int) -> Memory:
        raise error

    client = world.open()
    monkeypatch.setattr(client.handle, "_make_memory", make_memory)
    client.command(layout.HELLO, pool_size=PAGE)


@provokes("HELLO", "EEXIST", "the name has an activator")
@pytest.mark.parametrize("owned", [False, True])
def test_hello_of_a_second_activator(world: World, activator: Client, owned: bool) -> None:
    if owned:
        world.connect().name_acquire(NAME)
    world.connect_activator(NAME)


@provokes("HELLO", "EINVAL", "POLICY_ACCESS before NAME")
@pytest.mark.parametrize("flags", [Hello.ACTIVATOR, Hello.POLICY_HOLDER])
def test_hello_with_an_access_to_nothing(world: World, flags: int) -> None:
    world.connect(None, access(WORLD, SEE), layout.name(NAME), flags=flags)


@provokes("HELLO", "EINVAL", "POLICY_ACCESS of an unknown type or level, or for an id that does not exist")
@pytest.mark.parametrize("flags", [Hello.ACTIVATOR, Hello.POLICY_HOLDER])
@pytest.mark.parametrize("item", BAD_ACCESSES, ids=range(5))
def test_hello_with_an_unknown_access(world: World, flags: int, item: bytes) -> None:
    world.connect(None, layout.name(NAME), access(WORLD, SEE), item, flags=flags)


@provokes("HELLO", "EEXIST", "somebody else has a policy for the name")
@pytest.mark.parametrize("flags", [Hello.ACTIVATOR, Hello.POLICY_HOLDER])
def test_hello_for_a_name_that_has_a_policy(world: World, holder: Client, flags: int) -> None:
    world.connect(None, layout.name(NAME), access(WORLD, SEE), flags=flags)


# UPDATE


@provokes("UPDATE", "EINVAL", "the payload of an item has the wrong form")
@pytest.mark.parametrize(
    "item",
    [
        layout.item(ItemType.ATTACH_FLAGS_SEND, bytes(4)),
        layout.item(ItemType.ATTACH_FLAGS_RECV, bytes(16)),
        *(layout.item(ItemType.NAME, text) for text in BAD_STRINGS),
        layout.item(ItemType.POLICY_ACCESS, bytes(16)),
    ],
    ids=range(6),
)
def test_an_update_with_wrong_items(world: World, item: bytes) -> None:
    world.connect().update(item)


@provokes("UPDATE", "EOPNOTSUPP", "ATTACH_FLAGS_SEND by an activator or a policy holder")
@pytest.mark.parametrize("kind", ["activator", "holder"])
def test_an_update_of_what_is_never_sent(request: pytest.FixtureRequest, kind: str) -> None:
    request.getfixturevalue(kind).update_attach_flags(send=0)


@provokes("UPDATE", "EINVAL", "unknown bits in ATTACH_FLAGS_SEND or ATTACH_FLAGS_RECV")
@pytest.mark.parametrize(("send", "recv"), [(ATTACH_ALL + 1, None), (None, ATTACH_ALL + 1), (0, 2**64 - 2)])
def test_an_update_with_unknown_metadata(world: World, send: int | None, recv: int | None) -> None:
    world.connect().update_attach_flags(send, recv)


@provokes("UPDATE", "EINVAL", "ATTACH_FLAGS_SEND does not grant what the bus requires")
def test_an_update_that_keeps_a_secret(world: World) -> None:
    connect_strictly(world, ATTACH_ALL).update_attach_flags(send=ATTACH_ALL & ~layout.Attach.PIDS)


@provokes("UPDATE", "EOPNOTSUPP", "ATTACH_FLAGS_RECV by a policy holder")
def test_an_update_of_what_is_never_received(holder: Client) -> None:
    holder.update_attach_flags(recv=0)


@provokes("UPDATE", "EOPNOTSUPP", "NAME or POLICY_ACCESS by anybody but a policy holder")
@pytest.mark.parametrize("kind", ["ordinary", "monitor", "activator"])
@pytest.mark.parametrize("items", [[layout.name(NAME)], [access(WORLD, TALK)]], ids=["NAME", "POLICY_ACCESS"])
def test_an_update_of_no_policy(world: World, kind: str, items: list[bytes]) -> None:
    match kind:
        case "ordinary":
            client = world.connect()
        case "monitor":
            client = world.connect_monitor()
        case _:
            client = world.connect_activator(NAME)
    client.update(*items)


@provokes("UPDATE", "E2BIG", "more than one NAME")
@pytest.mark.parametrize("name", [NAME, "foo.baz", "foo.*"])
def test_an_update_of_two_names(holder: Client, name: str) -> None:
    holder.update(layout.name(NAME), access(WORLD, TALK), layout.name(name))


@provokes("UPDATE", "EINVAL", "POLICY_ACCESS before NAME")
@pytest.mark.parametrize("names", [0, 1])
def test_an_update_with_an_access_to_nothing(holder: Client, names: int) -> None:
    holder.update(access(WORLD, TALK), *[layout.name(NAME)] * names)


@provokes("UPDATE", "EINVAL", "NAME is neither a well-known name nor a wildcard")
@pytest.mark.parametrize("name", BAD_NAMES)
def test_an_update_for_no_name(holder: Client, name: str) -> None:
    holder.update_policy(name, access(WORLD, TALK))


@provokes("UPDATE", "EINVAL", "POLICY_ACCESS of an unknown type or level, or for an id that does not exist")
@pytest.mark.parametrize("item", BAD_ACCESSES, ids=range(5))
def test_an_update_with_an_unknown_access(holder: Client, item: bytes) -> None:
    holder.update_policy(NAME, access(WORLD, TALK), item)


@provokes("UPDATE", "EEXIST", "somebody else has a policy for the name")
@pytest.mark.parametrize("kind", ["activator", "holder"])
def test_an_update_for_a_name_that_has_a_policy(world: World, holder: Client, kind: str) -> None:
    if kind == "holder":
        world.connect_holder("foo.baz", access(WORLD, TALK))
    else:
        world.connect_activator("foo.baz", access(WORLD, TALK))
    holder.update_policy("foo.baz")


# BYEBYE


@provokes("BYEBYE", "EBUSY", "something is queued")
def test_leaving_with_mail(world: World) -> None:
    client = world.connect()
    client.send_small(client)
    client.byebye()
