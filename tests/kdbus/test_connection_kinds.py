"""Kinds of connections: who may make them, what they may change, and what they are to others."""

from __future__ import annotations

from errno import E2BIG, EAGAIN, EEXIST, EINVAL, ENXIO, EOPNOTSUPP, EPERM

import pytest
from support.kdbus import NOBODY, Hello, ItemType, Refused, World, layout, refused
from support.kdbus.layout import (
    OWN,
    PAGE,
    WORLD,
    access,
    creds,
    name,
    number,
    string,
)

from .handle_tables import NAME, Cell, make, read_table

UPDATES = """
                  ordinary   monitor    activator  holder
send-mask         ok         ok         EOPNOTSUPP EOPNOTSUPP
receive-mask      ok         ok         ok         EOPNOTSUPP
policy            EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP ok
access-alone      EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EINVAL
bad-policy        EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EINVAL
two-names         EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP E2BIG
bad-send-mask     EINVAL     EINVAL     EOPNOTSUPP EOPNOTSUPP
bad-receive-mask  EINVAL     EINVAL     EINVAL     EOPNOTSUPP
both-masks        ok         ok         EOPNOTSUPP EOPNOTSUPP
masks-and-policy  EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP
nothing           ok         ok         ok         ok
"""
UPDATE_ITEMS = {
    "send-mask": number(ItemType.ATTACH_FLAGS_SEND, 1),
    "receive-mask": number(ItemType.ATTACH_FLAGS_RECV, 1),
    "policy": name(NAME) + access(WORLD, OWN),
    "access-alone": access(WORLD, OWN),
    "bad-policy": name("foo"),
    "two-names": name("a.b") + name("a.c"),
    "bad-send-mask": number(ItemType.ATTACH_FLAGS_SEND, 1 << 14),
    "bad-receive-mask": number(ItemType.ATTACH_FLAGS_RECV, 1 << 14),
    "both-masks": number(ItemType.ATTACH_FLAGS_SEND, 1) + number(ItemType.ATTACH_FLAGS_RECV, 1),
    "masks-and-policy": number(ItemType.ATTACH_FLAGS_RECV, 1) + name(NAME),
    "nothing": b"",
}


KINDS = ["ordinary", "monitor", "activator", "holder"]


# HELLO: which kind, in the order of the checks


HELLOS: list[tuple[str, int, int, bytes, int, bool, int]] = [
    # what, errno, flags, items, pool size, on the custom endpoint, uid
    ("a pool of no size", EINVAL, Hello.MONITOR, b"", 0, True, NOBODY),
    ("half a page", EINVAL, Hello.MONITOR, b"", PAGE // 2, True, NOBODY),
    ("two kinds", EINVAL, Hello.MONITOR | Hello.ACTIVATOR, name(NAME), PAGE, True, NOBODY),
    ("two kinds with a name", EINVAL, Hello.POLICY_HOLDER | Hello.ACTIVATOR, name(NAME), PAGE, False, 1000),
    ("all kinds", EINVAL, 14, name(NAME), PAGE, False, 1000),
    ("a name for nothing", EINVAL, 0, name(NAME), PAGE, False, NOBODY),
    ("a monitor's name", EINVAL, Hello.MONITOR, name(NAME), PAGE, True, NOBODY),
    ("an activator of nothing", EINVAL, Hello.ACTIVATOR, b"", PAGE, False, NOBODY),
    ("a holder of nothing", EINVAL, Hello.POLICY_HOLDER, access(WORLD, OWN), PAGE, False, NOBODY),
    ("a malformed name", EINVAL, Hello.ACTIVATOR, name("foo"), PAGE, False, NOBODY),
    ("an activator of a wildcard", EINVAL, Hello.ACTIVATOR, name("a.*"), PAGE, False, 1000),
    ("a monitor on a custom endpoint", EOPNOTSUPP, Hello.MONITOR, b"", PAGE, True, 1000),
    ("a stranger's one", EOPNOTSUPP, Hello.MONITOR, creds(*[0] * 8), PAGE, True, NOBODY),
    ("an activator on a custom endpoint", EPERM, Hello.ACTIVATOR, name(NAME), PAGE, True, 1000),
    ("a holder on a custom endpoint", EPERM, Hello.POLICY_HOLDER, name(NAME), PAGE, True, 1000),
    ("a stranger's monitor", EPERM, Hello.MONITOR, b"", PAGE, False, NOBODY),
    ("a stranger's activator", EPERM, Hello.ACTIVATOR, name(NAME), PAGE, False, NOBODY),
    ("a stranger's holder", EPERM, Hello.POLICY_HOLDER, name(NAME), PAGE, False, NOBODY),
    ("a stranger's fakes", EPERM, 0, creds(*[1 << 40] * 8), PAGE, False, NOBODY),
    ("fakes on a custom endpoint", EPERM, 0, creds(*[0] * 8), PAGE, True, 1000),
    ("fakes that are wrong", EINVAL, 0, creds(*[1 << 40] * 8), PAGE, False, 1000),
    ("an unknown flag", EINVAL, 16, b"", PAGE, False, 1000),
    ("two names", EINVAL, Hello.POLICY_HOLDER, name("a.b") + name("a.c"), PAGE, False, 1000),
    ("access before a name", EINVAL, Hello.POLICY_HOLDER, access(WORLD, OWN) + name(NAME), PAGE, False, 1000),
    ("an access of no kind", EINVAL, Hello.POLICY_HOLDER, name(NAME) + access(9, OWN), PAGE, False, 1000),
    ("an access of no level", EINVAL, Hello.POLICY_HOLDER, name(NAME) + access(WORLD, 9), PAGE, False, 1000),
    ("a malformed description", EINVAL, 0, string(ItemType.CONN_DESCRIPTION, "-"), PAGE, False, 1000),
]


@pytest.mark.parametrize("case", HELLOS, ids=lambda case: case[0])
def test_a_hello_is_refused_and_nobody_hears_of_it(
    world: World, case: tuple[str, int, int, bytes, int, bool, int]
) -> None:
    _, errno, flags, items, pool_size, is_custom, uid = case
    _, node = world.make_endpoint("1000-custom")
    watcher, monitor = world.connect(), world.connect_monitor()
    watcher.add_match()
    task = world.owner if uid == world.owner.uid else world.task(uid)
    handle = world.open(node if is_custom else None, task)
    before = len(watcher.list_records())
    with refused(errno):
        handle.command(layout.HELLO, items, flags=flags, pool_size=pool_size)
    for reader in (watcher, monitor):
        with refused(EAGAIN):
            reader.recv()
    assert len(watcher.list_records()) == before
    handle.hello()


def test_wrong_masks_are_told_after_who_may_and_before_which_ids(world: World) -> None:
    wrong = 1 << 20
    with refused(EPERM):
        world.connect(world.task(NOBODY), flags=Hello.MONITOR, attach_send=wrong)
    for options in ({"attach_send": wrong}, {"attach_recv": wrong}):
        with refused(EINVAL):
            world.connect(None, **options)  # type: ignore[arg-type] # only numbers
    world.connect_holder("a.b")
    with refused(EINVAL):
        world.connect(None, name("a.b"), flags=Hello.POLICY_HOLDER, attach_recv=wrong)


def test_a_collision_is_told_last_and_leaves_nothing(world: World) -> None:
    world.connect_holder("a.b", access(WORLD, OWN))
    watcher = world.connect()
    watcher.add_match()
    for flags in (Hello.POLICY_HOLDER, Hello.ACTIVATOR):
        with refused(EEXIST):
            world.connect(None, name("a.b"), flags=flags)
    assert not watcher.is_readable
    assert watcher.list_names() == set()


def test_accesses_of_an_ordinary_connection_are_ignored(world: World) -> None:
    for flags in (0, Hello.MONITOR):
        world.connect(None, access(WORLD, OWN), flags=flags)
    with refused(EPERM):
        world.connect(world.task(NOBODY)).name_acquire(NAME)


# UPDATE


@pytest.mark.parametrize("cell", list(read_table(UPDATES)), ids=str)
def test_what_can_be_updated_depends_on_the_kind(world: World, cell: Cell) -> None:
    client = make(world, cell.column)
    items = UPDATE_ITEMS[cell.row]
    if cell.errno:
        with refused(cell.errno):
            client.update(items)
    else:
        client.update(items)


def test_a_refused_update_changes_nothing(world: World) -> None:
    sender, client = world.connect(), world.connect()
    with refused(EOPNOTSUPP):
        client.update(number(ItemType.ATTACH_FLAGS_RECV, 0), name(NAME))
    sender.send_small(client)
    assert len(client.recv().metadata_kinds) > 10
    holder = world.connect_holder(NAME, access(WORLD, OWN))
    with refused(E2BIG):
        holder.update(name("a.b"), name("a.c"))
    with refused(EINVAL):
        holder.update(name("a.b"), access(7, OWN))
    world.connect(world.task(NOBODY)).name_acquire(NAME)


# What a kind of connection is to others


EXPECTED = {
    #            announced, listed, addressable by id, found by id
    "ordinary": (True, True, True, True),
    "monitor": (False, False, False, False),
    "activator": (True, True, False, True),
    "holder": (True, True, False, True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_of_connection_is_to_others(world: World, kind: str) -> None:
    other = world.connect()
    other.add_match_id(ItemType.ID_ADD)
    other.add_match_id(ItemType.ID_REMOVE, cookie=1)
    client = make(world, kind)
    announced = [message.arrival for message in other.drain()] == [(ItemType.ID_ADD, client.id)]
    listed = client.id in other.list_ids()
    try:
        other.send_small(client)
        addressable = True
        client.recv()
    except Refused as error:
        if error.errno != ENXIO:
            raise
        addressable = False
    try:
        found = other.conn_info(client).id == client.id
    except Refused as error:
        if error.errno != ENXIO:
            raise
        found = False
    assert (announced, listed, addressable, found) == EXPECTED[kind]
    client.close()
    assert [message.arrival for message in other.drain()] == [(ItemType.ID_REMOVE, client.id)] * announced


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_connection_asks_and_frees(world: World, kind: str) -> None:
    client, other = make(world, kind), world.connect()
    assert other.id in client.list_ids()
    assert client.conn_info(other).id == other.id
    assert client.creator_info().id == world.bus.id
    client.list_records(keep=True)
    client.free(client.unfreed.pop())
    client.free(client.pool_size)
    with refused(ENXIO):
        client.free(0)


@pytest.mark.parametrize("kind", KINDS)
def test_who_receives_what(world: World, kind: str) -> None:
    client, sender, other = make(world, kind), world.connect(), world.connect()
    if kind == "ordinary":
        client.add_match_empty()
    if kind == "monitor":
        client.drain()
    sender.signal(cookie=1)
    sender.send_small(other, cookie=2)
    if kind == "activator":
        sender.send_small(name=NAME, cookie=3)
    if kind == "holder":
        assert not client.is_readable
        return
    assert [message.cookie for message in client.drain()] == {
        "ordinary": [1],
        "monitor": [1, 2],
        "activator": [3],
    }[kind]


def test_ids_are_counted_for_the_whole_domain(world: World) -> None:
    """The first bus has 1; a HELLO that fails late has used one up."""
    assert world.bus.id == 1
    ids = [world.connect().id for _ in range(3)]
    assert ids == [2, 3, 4]
    world.make_bus("1000-other")
    assert world.domain.buses["1000-other"].id == 5
    world.connect_activator("a.b").close()
    assert world.connect(node=world.find_endpoint(bus="1000-other")).id == 7
