"""Negotiation: a caller learns which flags and items a command takes, and nothing is done.

With the highest bit in its flags a command overwrites them with those that it knows. The items of a
NEGOTIATE list that it does not know become 0, with that bit or without.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import (
    EAGAIN,
    EBADFD,
    EBADSLT,
    EFAULT,
    EINVAL,
    EMSGSIZE,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    ESHUTDOWN,
    ESRCH,
)
from struct import unpack_from
from typing import NamedTuple

import pytest
from support.kdbus import NOBODY, Client, ItemType, Msg, World, layout, refused
from support.kdbus.layout import NEGOTIATE, Layout, item, negotiate, string

NAME = "foo.bar.baz"
EVERY_TYPE = [int(kind) for kind in ItemType] + [99, 2**64 - 1]


class Case(NamedTuple):
    """A command, the handle that takes it, and what it knows."""

    layout: Layout
    handle: str
    flags: int
    items: tuple[ItemType, ...]


MAKE_NAME, NAME_ITEM, ACCESS = ItemType.MAKE_NAME, ItemType.NAME, ItemType.POLICY_ACCESS
ATTACH = (ItemType.ATTACH_FLAGS_SEND, ItemType.ATTACH_FLAGS_RECV)
IDENTITY = (ItemType.CREDS, ItemType.PIDS, ItemType.AUXGROUPS, ItemType.SECLABEL)
RULES = (
    ItemType.BLOOM_MASK,
    NAME_ITEM,
    ItemType.ID,
    ItemType.DST_ID,
    ItemType.NAME_ADD,
    ItemType.NAME_REMOVE,
    ItemType.NAME_CHANGE,
    ItemType.ID_ADD,
    ItemType.ID_REMOVE,
)
CASES = {
    "BUS_MAKE": Case(layout.BUS_MAKE, "control", 7, (MAKE_NAME, ItemType.BLOOM_PARAMETER, *ATTACH)),
    "DOMAIN_MAKE": Case(layout.DOMAIN_MAKE, "control", 3, (MAKE_NAME,)),
    "ENDPOINT_MAKE": Case(layout.ENDPOINT_MAKE, "endpoint", 3, (MAKE_NAME,)),
    "ENDPOINT_UPDATE": Case(layout.ENDPOINT_UPDATE, "endpoint owner", 0, (NAME_ITEM, ACCESS)),
    "HELLO": Case(layout.HELLO, "endpoint", 15, (NAME_ITEM, *IDENTITY, ItemType.CONN_DESCRIPTION, ACCESS)),
    "UPDATE": Case(layout.UPDATE, "connection", 0, (*ATTACH, NAME_ITEM, ACCESS)),
    "BYEBYE": Case(layout.BYEBYE, "connection", 0, ()),
    "FREE": Case(layout.FREE, "connection", 0, ()),
    "CONN_INFO": Case(layout.CONN_INFO, "connection", 0, (NAME_ITEM,)),
    "BUS_CREATOR_INFO": Case(layout.BUS_CREATOR_INFO, "connection", 0, ()),
    "LIST": Case(layout.LIST, "connection", 15, ()),
    "SEND": Case(layout.SEND, "connection", 1, (ItemType.CANCEL_FD,)),
    "RECV": Case(layout.RECV, "connection", 7, ()),
    "MSG_CANCEL": Case(layout.MSG_CANCEL, "connection", 0, ()),
    "NAME_ACQUIRE": Case(layout.NAME_ACQUIRE, "connection", 7, (NAME_ITEM,)),
    "NAME_RELEASE": Case(layout.NAME_RELEASE, "connection", 0, (NAME_ITEM,)),
    "MATCH_ADD": Case(layout.MATCH_ADD, "connection", 1, RULES),
    "MATCH_REMOVE": Case(layout.MATCH_REMOVE, "connection", 0, ()),
}
ALL_CASES = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
MESSAGE_FLAGS = 7
MESSAGE_ITEMS = (
    ItemType.PAYLOAD_VEC,
    ItemType.PAYLOAD_MEMFD,
    ItemType.FDS,
    ItemType.BLOOM_FILTER,
    ItemType.DST_NAME,
)


@pytest.fixture
def handle(world: World) -> Callable[[str], Client]:
    """Opens a handle of the kind that a case needs."""

    def make(kind: str) -> Client:
        match kind:
            case "control":
                return world.open_control(world.task(privileged=True))
            case "endpoint":
                return world.open()
            case "endpoint owner":
                return world.make_endpoint("1000-custom")[0]
            case _:
                return world.connect()

    return make


def known_of(case: Case) -> list[int]:
    """The list of every type as the command of a case leaves it."""
    return known_among(EVERY_TYPE, case.items)


def known_among(asked: list[int], known: tuple[ItemType, ...]) -> list[int]:
    return [kind if kind in (ItemType.NEGOTIATE, *known) else 0 for kind in asked]


def negotiated(raw: bytes, at: int = 0, count: int = len(EVERY_TYPE)) -> list[int]:
    """The list in the NEGOTIATE item at an offset."""
    return list(unpack_from(f"={count}Q", raw, at + 16))


# Every command


@ALL_CASES
def test_a_command_tells_which_flags_it_takes(handle: Callable[[str], Client], case: Case) -> None:
    answer = handle(case.handle).command(case.layout, flags=NEGOTIATE)
    assert answer["flags"] == case.flags
    assert answer["return_flags"] == 0


@ALL_CASES
def test_a_command_tells_which_items_it_takes(handle: Callable[[str], Client], case: Case) -> None:
    answer = handle(case.handle).command(case.layout, negotiate(*EVERY_TYPE), flags=NEGOTIATE)
    assert negotiated(answer.items) == known_of(case)
    assert answer["flags"] == case.flags


@ALL_CASES
def test_flags_may_be_asked_for_together_with_known_ones(handle: Callable[[str], Client], case: Case) -> None:
    answer = handle(case.handle).command(case.layout, flags=NEGOTIATE | case.flags)
    assert answer["flags"] == case.flags


@ALL_CASES
def test_a_flag_that_is_unknown_is_refused_while_negotiating(
    handle: Callable[[str], Client], case: Case
) -> None:
    client = handle(case.handle)
    for flag in (1 << 5, 1 << 32, 1 << 62):
        with refused(EINVAL) as refusal:
            client.command(case.layout, flags=NEGOTIATE | flag)
        assert refusal.answer["flags"] == NEGOTIATE | flag


@ALL_CASES
def test_items_that_are_wrong_are_refused_while_negotiating(
    handle: Callable[[str], Client], case: Case
) -> None:
    client = handle(case.handle)
    wrong = [
        item(99),  # unknown
        item(ItemType.NEGOTIATE, bytes(4)),
        negotiate(1) + negotiate(1),
        bytes(16),  # of no size
        negotiate(1)[:-1] + bytes(9),  # something after the items
        negotiate(1) + bytes(8),
    ]
    for items in wrong:
        with refused(EINVAL):
            client.command(case.layout, items, flags=NEGOTIATE)


@ALL_CASES
def test_the_size_is_checked_while_negotiating(handle: Callable[[str], Client], case: Case) -> None:
    client = handle(case.handle)
    for size, errno in ((case.layout.size - 1, EINVAL), (0, EINVAL), (32769, EMSGSIZE)):
        with refused(errno):
            client.command(case.layout, size=size, flags=NEGOTIATE)


@ALL_CASES
def test_a_list_may_be_empty(handle: Callable[[str], Client], case: Case) -> None:
    answer = handle(case.handle).command(case.layout, negotiate(), flags=NEGOTIATE)
    assert answer.items == negotiate()


@ALL_CASES
def test_a_list_is_answered_in_its_own_order(handle: Callable[[str], Client], case: Case) -> None:
    asked = [*reversed(EVERY_TYPE), 0, 1, 1, 15, 15]
    answer = handle(case.handle).command(case.layout, negotiate(*asked), flags=NEGOTIATE)
    assert negotiated(answer.items, count=len(asked)) == known_among(asked, case.items)


@ALL_CASES
def test_after_negotiating_a_handle_is_what_it_was(handle: Callable[[str], Client], case: Case) -> None:
    client = handle(case.handle)
    state = client.handle.state
    for _ in range(2):
        client.command(case.layout, negotiate(*EVERY_TYPE), flags=NEGOTIATE)
        assert client.handle.state is state


# Nothing is done


def test_negotiating_makes_nothing(world: World) -> None:
    control, endpoint = world.open_control(), world.open()
    named = string(ItemType.MAKE_NAME, "1000-made")
    control.command(layout.BUS_MAKE, named, layout.bloom_parameter(), flags=NEGOTIATE)
    endpoint.command(layout.ENDPOINT_MAKE, named, flags=NEGOTIATE)
    watcher = world.connect()
    watcher.add_match()
    answer = endpoint.command(layout.HELLO, flags=NEGOTIATE, pool_size=layout.PAGE)
    assert (answer["id"], answer["offset"]) == (0, 0)
    assert list(world.domain.buses) == [world.bus.name]
    assert list(world.bus.endpoints) == ["bus"]
    assert not watcher.is_readable
    # and the handles can still become something
    control.bus_make(name="1000-made")
    endpoint.hello()


def test_negotiating_on_a_connection_does_nothing(world: World) -> None:
    client = world.connect()
    client.add_match_empty()
    client.send_small(client, cookie=1)
    before = client.pool.busy
    id_any = layout.number(ItemType.ID, layout.ANY)
    client.command(layout.BYEBYE, flags=NEGOTIATE)
    client.command(layout.LIST, flags=NEGOTIATE | layout.LIST_ALL)
    client.command(layout.CONN_INFO, flags=NEGOTIATE, id=client.id)
    client.command(layout.BUS_CREATOR_INFO, flags=NEGOTIATE)
    client.command(layout.NAME_ACQUIRE, layout.name(NAME), flags=NEGOTIATE)
    client.command(layout.MATCH_ADD, id_any, flags=NEGOTIATE, cookie=5)
    client.command(layout.MATCH_REMOVE, flags=NEGOTIATE, cookie=0)
    client.command(layout.UPDATE, layout.number(ItemType.ATTACH_FLAGS_RECV, 0), flags=NEGOTIATE)
    client.command(layout.RECV, flags=NEGOTIATE)
    assert client.pool.busy == before
    with refused(EBADSLT):
        client.remove_match(5)
    client.remove_match(0)
    assert client.list_names() == set()
    message = client.recv()
    assert message.cookie == 1
    assert message.metadata_kinds
    client.command(layout.NAME_RELEASE, layout.name(NAME), flags=NEGOTIATE)
    with refused(ESRCH):
        client.name_release(NAME)


def test_a_kept_slice_is_not_freed_by_negotiating(world: World) -> None:
    client = world.connect()
    client.list_records(keep=True)
    (offset,) = client.unfreed
    client.command(layout.FREE, flags=NEGOTIATE, offset=offset)
    client.free(offset)
    with refused(ENXIO):
        client.free(offset)


def test_an_endpoint_keeps_its_policy_while_negotiating(world: World) -> None:
    see = layout.access(layout.WORLD, layout.SEE)
    endpoint, node = world.make_endpoint("1000-custom", layout.name(NAME), see)
    world.connect().name_acquire(NAME)
    client = world.connect(node=node)
    endpoint.command(layout.ENDPOINT_UPDATE, flags=NEGOTIATE)
    assert len(client.list_names()) == 1
    endpoint.command(layout.ENDPOINT_UPDATE)
    assert len(client.list_names()) == 0


def test_what_fails_otherwise_succeeds_as_a_negotiation(world: World) -> None:
    client = world.connect()
    for command in (layout.CONN_INFO, layout.RECV, layout.MATCH_REMOVE, layout.MSG_CANCEL):
        client.command(command, flags=NEGOTIATE)
    client.command(layout.FREE, flags=NEGOTIATE, offset=12345)
    client.command(layout.NAME_RELEASE, flags=NEGOTIATE)
    world.open().command(layout.HELLO, flags=NEGOTIATE)  # a pool of no size


# Who may


def test_who_may_not_use_a_command_may_not_negotiate_it(world: World) -> None:
    monitor = world.connect_monitor()
    for command in (layout.SEND, layout.NAME_ACQUIRE, layout.MATCH_ADD, layout.BYEBYE):
        with refused(EOPNOTSUPP):
            monitor.command(command, flags=NEGOTIATE)
    with refused(EBADFD):
        monitor.command(layout.HELLO, flags=NEGOTIATE)
    gone = world.connect()
    gone.byebye()
    with refused(ESHUTDOWN):
        gone.command(layout.LIST, flags=NEGOTIATE)
    with refused(EPERM):
        world.open(task=world.task(NOBODY)).command(layout.ENDPOINT_MAKE, flags=NEGOTIATE)


# NEGOTIATE alone


def test_a_list_alone_is_answered_and_the_command_done(world: World) -> None:
    client = world.connect()
    answer = client.command(layout.NAME_ACQUIRE, negotiate(*EVERY_TYPE), layout.name(NAME))
    assert negotiated(answer.items) == known_of(CASES["NAME_ACQUIRE"])
    assert answer.items.endswith(layout.name(NAME))
    assert answer["return_flags"] == 96
    assert answer["flags"] == 0
    assert client.list_names() == {(client.id, NAME, 32)}


def test_a_list_may_stand_between_the_items(world: World) -> None:
    control = world.open_control()
    named = string(ItemType.MAKE_NAME, "1000-made")
    answer = control.command(
        layout.BUS_MAKE, named, negotiate(*EVERY_TYPE), layout.bloom_parameter(), flags=0
    )
    assert negotiated(answer.items, len(named)) == known_of(CASES["BUS_MAKE"])
    assert "1000-made" in world.domain.buses


def test_a_list_alone_does_not_do_without_what_has_to_be_there(world: World) -> None:
    with refused(EINVAL) as refusal:
        world.connect().command(layout.NAME_ACQUIRE, negotiate(*EVERY_TYPE))
    assert negotiated(refusal.answer.items) == known_of(CASES["NAME_ACQUIRE"])


def test_a_list_alone_in_hello_connects(world: World) -> None:
    client = world.open()
    answer = client.command(layout.HELLO, negotiate(*EVERY_TYPE), pool_size=layout.PAGE)
    client.finish_hello(answer, layout.PAGE)
    assert negotiated(answer.items) == known_of(CASES["HELLO"])
    assert client.list_ids() == [client.id]


def test_a_list_in_a_match_is_no_rule(world: World) -> None:
    client, other = world.connect(), world.connect()
    client.command(layout.MATCH_ADD, negotiate(*EVERY_TYPE), layout.id_rule(ItemType.ID_ADD), cookie=1)
    third = world.connect()
    assert client.recv().arrival == (ItemType.ID_ADD, third.id)
    other.broadcast()
    assert not client.is_readable
    client.remove_match(1)
    client.command(layout.MATCH_ADD, negotiate(), cookie=2)  # a match without rules
    other.broadcast()
    assert not client.recv().is_notification
    client.remove_match(2)


def test_a_list_alone_in_a_command_that_fails_is_still_answered(world: World) -> None:
    with refused(EAGAIN) as refusal:
        world.connect().command(layout.RECV, negotiate(*EVERY_TYPE))
    assert negotiated(refusal.answer.items) == known_of(CASES["RECV"])


# SEND: two levels


class Sent(NamedTuple):
    """What a SEND left in the caller's memory."""

    flags: int
    items: bytes
    message: bytes


def send_raw(client: Client, message: bytes, *items: bytes, flags: int = 0) -> Sent:
    address = client.task.memory.allocate(message)
    answer = client.command(layout.SEND, *items, flags=flags, msg_address=address)
    return Sent(answer["flags"], answer.items, client.task.read(address, len(message)))


def message_flags(raw: bytes) -> int:
    (flags,) = unpack_from("=Q", raw, 8)
    assert isinstance(flags, int)
    return flags


def test_send_negotiates_without_a_message(world: World) -> None:
    client = world.connect()
    answer = client.command(layout.SEND, flags=NEGOTIATE, msg_address=0)
    assert answer["flags"] == layout.SYNC_REPLY
    with refused(EFAULT):
        client.command(layout.SEND, msg_address=0)


def test_send_negotiates_the_message_too(world: World) -> None:
    client = world.connect()
    message = client.build_message(negotiate(*EVERY_TYPE), dst=client, flags=NEGOTIATE)
    sent = send_raw(client, message, negotiate(*EVERY_TYPE), flags=NEGOTIATE)
    assert sent.flags == layout.SYNC_REPLY
    assert negotiated(sent.items) == known_of(CASES["SEND"])
    assert message_flags(sent.message) == MESSAGE_FLAGS
    assert negotiated(sent.message, layout.MSG_SIZE) == known_among(EVERY_TYPE, MESSAGE_ITEMS)
    assert not client.is_readable


def test_a_message_that_does_not_negotiate_stays_as_it_is_and_is_not_sent(world: World) -> None:
    client = world.connect()
    message = client.build_message(client.vec(b"payload."), dst=client, flags=Msg.NO_AUTO_START)
    sent = send_raw(client, message, flags=NEGOTIATE)
    assert sent.flags == layout.SYNC_REPLY
    assert sent.message == message
    assert not client.is_readable


def test_a_list_in_the_message_is_answered_while_the_command_negotiates(world: World) -> None:
    client = world.connect()
    message = client.build_message(negotiate(*EVERY_TYPE), dst=client)
    sent = send_raw(client, message, flags=NEGOTIATE)
    assert message_flags(sent.message) == 0
    assert negotiated(sent.message, layout.MSG_SIZE) == known_among(EVERY_TYPE, MESSAGE_ITEMS)
    assert not client.is_readable


def test_a_message_alone_cannot_negotiate(world: World) -> None:
    client = world.connect()
    with refused(EINVAL):
        send_raw(client, client.build_message(dst=client, flags=NEGOTIATE))
    assert not client.is_readable


def test_a_list_alone_in_a_message_is_answered_and_the_message_sent(world: World) -> None:
    client = world.connect()
    payload = client.vec(b"payload.")
    message = client.build_message(payload, negotiate(*EVERY_TYPE), dst=client, cookie=7)
    sent = send_raw(client, message, negotiate(*EVERY_TYPE))
    assert negotiated(sent.items) == known_of(CASES["SEND"])
    assert negotiated(sent.message, layout.MSG_SIZE + len(payload)) == known_among(EVERY_TYPE, MESSAGE_ITEMS)
    assert sent.message[: layout.MSG_SIZE] == message[: layout.MSG_SIZE]
    received = client.recv()
    assert (received.cookie, received.payload) == (7, b"payload.")
    assert ItemType.NEGOTIATE not in received.kinds


def test_a_message_that_is_wrong_is_refused_while_negotiating(world: World) -> None:
    client = world.connect()
    wrong = [
        (EINVAL, client.build_message(item(99), flags=NEGOTIATE)),
        (EINVAL, client.build_message(flags=NEGOTIATE | 8)),
        (EINVAL, client.build_message(bytes(16), flags=NEGOTIATE)),
        (EINVAL, client.build_message(size=63, flags=NEGOTIATE)),
        (EMSGSIZE, client.build_message(size=32769, flags=NEGOTIATE)),
        (EINVAL, client.build_message(layout.vec_at(0, 0), flags=NEGOTIATE)),
    ]
    for errno, message in wrong:
        with refused(errno):
            send_raw(client, message, flags=NEGOTIATE)
    with refused(EFAULT):
        client.command(layout.SEND, flags=NEGOTIATE, msg_address=0x10)


def test_what_a_message_says_does_not_matter_while_negotiating(world: World) -> None:
    client = world.connect()
    message = client.build_message(dst=9999, src=77, payload_type=0, flags=NEGOTIATE)
    assert message_flags(send_raw(client, message, flags=NEGOTIATE).message) == MESSAGE_FLAGS
    closed = layout.cancel_fd(99)
    client.command(layout.SEND, closed, flags=NEGOTIATE, msg_address=0)
