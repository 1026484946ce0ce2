"""UPDATE: what a connection grants and asks for can change, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable
from errno import E2BIG, EINVAL, EOPNOTSUPP, EPERM

import pytest
from support.kdbus import NOBODY, Attach, Client, ItemType, Make, World, layout, refused
from support.kdbus.layout import ATTACH_ALL, SEE, TALK, WORLD, access

TIMESTAMP = Attach.TIMESTAMP


@pytest.fixture
def pair(world: World) -> tuple[Client, Client]:
    """A sender and a receiver."""
    return world.connect(), world.connect()


def kinds_told(sender: Client, receiver: Client) -> list[ItemType]:
    sender.send_small(receiver)
    return receiver.recv().metadata_kinds


def test_a_receiver_no_longer_gets_what_it_no_longer_asks_for(pair: tuple[Client, Client]) -> None:
    sender, receiver = pair
    assert ItemType.TIMESTAMP in kinds_told(sender, receiver)
    before = kinds_told(sender, receiver)
    receiver.update_attach_flags(recv=ATTACH_ALL & ~TIMESTAMP)
    assert kinds_told(sender, receiver) == before[:-1]
    receiver.update_attach_flags(recv=ATTACH_ALL)
    assert kinds_told(sender, receiver) == before


@pytest.mark.parametrize("mask", [ATTACH_ALL + 1, 1 << 63, 2**64 - 2])
def test_unknown_metadata_is_refused(pair: tuple[Client, Client], mask: int) -> None:
    with refused(EINVAL):
        pair[0].update_attach_flags(send=mask)
    with refused(EINVAL):
        pair[0].update_attach_flags(recv=mask)


def test_2_to_the_64_minus_1_means_all(pair: tuple[Client, Client]) -> None:
    sender, receiver = pair
    before = kinds_told(sender, receiver)
    for client in pair:
        client.update_attach_flags(send=0, recv=0)
    assert kinds_told(sender, receiver) == []
    sender.update_attach_flags(send=2**64 - 1)
    receiver.update_attach_flags(recv=2**64 - 1)
    assert kinds_told(sender, receiver) == before


def test_a_sender_grants_what_it_likes(pair: tuple[Client, Client]) -> None:
    sender, receiver = pair
    sender.update_attach_flags(send=Attach.CREDS | Attach.EXE)
    assert kinds_told(sender, receiver) == [ItemType.CREDS, ItemType.EXE]
    receiver.update_attach_flags(recv=Attach.CREDS | Attach.PIDS)
    assert kinds_told(sender, receiver) == [ItemType.CREDS]


def test_on_a_bus_with_the_final_formula_a_sender_cannot_withhold_what_can_be_read_anyway(
    world: World,
) -> None:
    world.make_bus("1000-final", flags=Make.ACCESS_WORLD | Make.FINAL_METADATA)
    node = world.find_endpoint(bus="1000-final")
    sender, receiver = world.connect(node=node), world.connect(node=node)
    before = kinds_told(sender, receiver)
    sender.update_attach_flags(send=0)
    assert kinds_told(sender, receiver) == before
    receiver.update_attach_flags(recv=Attach.CREDS)
    assert kinds_told(sender, receiver) == [ItemType.CREDS]


def test_what_was_queued_before_is_not_changed(pair: tuple[Client, Client]) -> None:
    sender, receiver = pair
    sender.send_small(receiver)
    receiver.update_attach_flags(recv=0)
    assert receiver.recv().has(ItemType.TIMESTAMP)


def test_an_update_that_is_half_wrong_changes_nothing(pair: tuple[Client, Client]) -> None:
    sender, receiver = pair
    before = kinds_told(sender, receiver)
    with refused(EINVAL):
        sender.update_attach_flags(send=0, recv=ATTACH_ALL + 1)
    with refused(EINVAL):
        receiver.update_attach_flags(send=ATTACH_ALL + 1, recv=0)
    with refused(EOPNOTSUPP):
        receiver.update(layout.number(ItemType.ATTACH_FLAGS_RECV, 0), layout.name("a.b"))
    assert kinds_told(sender, receiver) == before


def test_an_update_with_nothing_in_it_does_nothing(world: World) -> None:
    for client in (
        world.connect(),
        world.connect_monitor(),
        world.connect_activator("a.b"),
        world.connect_holder("a.c"),
    ):
        client.update()


def test_an_item_comes_once(pair: tuple[Client, Client]) -> None:
    mask = layout.number(ItemType.ATTACH_FLAGS_SEND, 0)
    with refused(EINVAL):
        pair[0].update(mask, mask)
    with refused(EINVAL):
        pair[0].command(layout.UPDATE, mask, flags=1)


SEND = layout.number(ItemType.ATTACH_FLAGS_SEND, 0)
RECV = layout.number(ItemType.ATTACH_FLAGS_RECV, 0)
POLICY = layout.name("a.b") + access(WORLD, SEE)
ITEMS = {"send": SEND, "recv": RECV, "policy": POLICY}


@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        ("ordinary", {"send", "recv"}),
        ("monitor", {"send", "recv"}),
        ("activator", {"recv"}),
        ("holder", {"policy"}),
    ],
)
def test_what_can_be_updated_depends_on_the_kind_of_connection(
    world: World, kind: str, allowed: set[str], item: str
) -> None:
    makers: dict[str, Callable[[], Client]] = {
        "ordinary": world.connect,
        "monitor": world.connect_monitor,
        "activator": lambda: world.connect_activator("a.b"),
        "holder": lambda: world.connect_holder("a.b"),
    }
    client = makers[kind]()
    if item in allowed:
        client.update(ITEMS[item])
    else:
        with refused(EOPNOTSUPP):
            client.update(ITEMS[item])


@pytest.mark.parametrize(
    ("items", "errno"),
    [
        pytest.param([layout.name("a.b"), layout.name("a.c")], E2BIG, id="two names"),
        pytest.param([access(WORLD, SEE), layout.name("a.b")], EINVAL, id="an access before the name"),
        pytest.param([layout.name("nodots")], EINVAL, id="a bad name"),
        pytest.param([layout.name("a.*.c")], EINVAL, id="a bad wildcard"),
        pytest.param([layout.name("a.b"), access(0, SEE)], EINVAL, id="a bad kind of access"),
        pytest.param([layout.name("a.b"), access(WORLD, 3)], EINVAL, id="a bad level"),
    ],
)
def test_a_bad_policy_is_refused_and_the_old_one_stays(world: World, items: list[bytes], errno: int) -> None:
    owner, stranger = world.connect(), world.connect(world.task(NOBODY))
    owner.name_acquire("a.b")
    holder = world.connect_holder("a.b", access(WORLD, TALK))
    with refused(errno):
        holder.update(*items)
    stranger.send_small(owner)
    assert len(owner.drain()) == 1
    holder.update(layout.name("a.b"))
    with refused(EPERM):
        stranger.send_small(owner)
