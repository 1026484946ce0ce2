"""What several commands are refused with: handles in the wrong state, and bytes that are no command.

For each command there is an attempt that would be done. Each test spoils it in one way.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADFD, EFAULT, EINVAL, EOPNOTSUPP
from struct import pack
from typing import NamedTuple

import pytest
from support.kdbus import Answer, Client, ItemType, Recv, World, layout, refused
from support.kdbus.layout import ANY, MAX_COMMAND_SIZE, POOL_SIZE, SEE, WORLD, access

from .errno_provoking import LAYOUTS, provokes
from .errno_rows import COMMANDS, CONNECTED, NEEDY, ORDINARY

NAME = "foo.bar"
KERNEL = 0xFFFFFFFF81000000


class Attempt(NamedTuple):
    """A command that nothing is wrong with."""

    client: Client
    items: tuple[bytes, ...] = ()
    fields: dict[str, int] = {}  # noqa: RUF012 - never changed
    flags: int = 0


def node_name(name: str) -> bytes:
    return layout.string(ItemType.MAKE_NAME, name)


def make_bus(world: World) -> Attempt:
    return Attempt(world.open_control(), (node_name("1000-blah"), layout.bloom_parameter()))


def make_domain(world: World) -> Attempt:
    return Attempt(world.open_control(world.task(0, privileged=True)), (node_name("blah"),))


def make_endpoint(world: World) -> Attempt:
    return Attempt(world.open(), (node_name("1000-blah"),))


def update_endpoint(world: World) -> Attempt:
    maker, _ = world.make_endpoint("1000-blah")
    return Attempt(maker, (layout.name(NAME), access(WORLD, SEE)))


def hello(world: World) -> Attempt:
    description = layout.string(ItemType.CONN_DESCRIPTION, "somebody")
    return Attempt(world.open(), (description,), {"pool_size": POOL_SIZE})


def update(world: World) -> Attempt:
    return Attempt(world.connect(), (layout.number(ItemType.ATTACH_FLAGS_SEND, 0),))


def byebye(world: World) -> Attempt:
    return Attempt(world.connect())


def free(world: World) -> Attempt:
    return Attempt(world.connect(), fields={"offset": POOL_SIZE})


def conn_info(world: World) -> Attempt:
    client = world.connect()
    client.name_acquire(NAME)
    return Attempt(client, (layout.name(NAME),))


def creator_info(world: World) -> Attempt:
    return Attempt(world.connect())


def list_(world: World) -> Attempt:
    return Attempt(world.connect())


def send(world: World) -> Attempt:
    client = world.connect()
    address = client.task.memory.allocate(client.build_message(dst=client))
    cancel = layout.cancel_fd(client.task.open_eventfd())
    return Attempt(client, (cancel,), {"msg_address": address})


def recv(world: World) -> Attempt:
    client = world.connect()
    client.send_small(client)
    return Attempt(client, flags=Recv.DROP)


def msg_cancel(world: World) -> Attempt:
    client = world.connect()
    client.call(world.connect(), cookie=7)
    return Attempt(client, fields={"cookie": 7})


def name_acquire(world: World) -> Attempt:
    return Attempt(world.connect(), (layout.name(NAME),))


def name_release(world: World) -> Attempt:
    client = world.connect()
    client.name_acquire(NAME)
    return Attempt(client, (layout.name(NAME),))


def match_add(world: World) -> Attempt:
    return Attempt(world.connect(), (layout.number(ItemType.ID, ANY),))


def match_remove(world: World) -> Attempt:
    client = world.connect()
    client.add_match(cookie=7)
    return Attempt(client, fields={"cookie": 7})


MAKERS: tuple[Callable[[World], Attempt], ...] = (
    make_bus,
    make_domain,
    make_endpoint,
    update_endpoint,
    hello,
    update,
    byebye,
    free,
    conn_info,
    creator_info,
    list_,
    send,
    recv,
    msg_cancel,
    name_acquire,
    name_release,
    match_add,
    match_remove,
)
ATTEMPTS = dict(zip(COMMANDS, MAKERS, strict=True))
FOREIGN = [layout.item(0), layout.item(99), layout.item(ItemType.TIMESTAMP, bytes(24))]
REPEATABLE = ("ENDPOINT_UPDATE", "MATCH_ADD")
"""The commands whose items, but for NEGOTIATE, may all be repeated."""


def attempt(world: World, command: str, *more: bytes, flags: int = 0, size: int | None = None) -> Answer:
    """Issue the command, with more items, more flags or another size than it has."""
    good = ATTEMPTS[command](world)
    return repeat(good, command, *good.items, *more, flags=flags, size=size)


def repeat(good: Attempt, command: str, *items: bytes, flags: int = 0, size: int | None = None) -> Answer:
    """Issue the command with these items."""
    return good.client.command(
        LAYOUTS[command], *items, task=None, flags=good.flags | flags, size=size, **good.fields
    )


def build(good: Attempt, command: str) -> bytes:
    """The bytes of the command."""
    items = b"".join(good.items)
    form = LAYOUTS[command]
    return form.build(good.flags, form.size + len(items), good.fields) + items


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_spoilt_is_done(world: World, command: str) -> None:
    good = ATTEMPTS[command](world)
    answer = repeat(good, command, *good.items)
    if command == "HELLO":
        good.client.finish_hello(answer, POOL_SIZE)
    elif command in ("CONN_INFO", "BUS_CREATOR_INFO"):
        good.client.unfreed.add(answer["offset"])
    elif command == "SEND":
        good.client.drop()


# The handle


@provokes("ioctl", "ENOTTY", "the request is not the number of a command")
@pytest.mark.parametrize("request_number", [0, 0x40189502, 0x5401, layout.encode_request(3, 24, 0)])
def test_no_such_command(world: World, request_number: int) -> None:
    world.open().ioctl(request_number, 8)


@provokes(COMMANDS, "EBADFD", "the handle is in a state that does not take the command")
def test_not_for_this_handle(world: World, command: str) -> None:
    root = world.task(0, privileged=True)
    domain_owner = world.open_control(root)
    domain_owner.domain_make("blah")
    endpoint_owner, _ = world.make_endpoint("1000-foo")
    handles = (
        (world.open_control(root), ("BUS_MAKE", "DOMAIN_MAKE")),
        (world.open(), ("HELLO", "ENDPOINT_MAKE")),
        (endpoint_owner, ("ENDPOINT_UPDATE",)),
        (world.connect(), CONNECTED),
        (domain_owner, ()),
    )
    for handle, takes in handles:
        if command not in takes:
            with refused(EBADFD):
                handle.ioctl(LAYOUTS[command].request, 1)
    world.maker.ioctl(LAYOUTS[command].request, 1)


@provokes(COMMANDS, "ESHUTDOWN", "the domain, bus or endpoint underneath has gone")
def test_what_is_underneath_has_gone(world: World, command: str) -> None:
    good = ATTEMPTS[command](world)
    world.domain.close()
    repeat(good, command, *good.items)


@provokes(CONNECTED, "ESHUTDOWN", "the connection has said BYEBYE")
def test_after_byebye(world: World, command: str) -> None:
    good = ATTEMPTS[command](world)
    good.client.drain()
    good.client.byebye()
    repeat(good, command, *good.items)


@provokes(ORDINARY, "EOPNOTSUPP", "the connection is a monitor, an activator or a policy holder")
def test_not_for_special_connections(world: World, command: str) -> None:
    monitor, holder = world.connect_monitor(), world.connect_holder("a.b")
    for special in (monitor, holder):
        with refused(EOPNOTSUPP):
            special.ioctl(LAYOUTS[command].request, 1)
    world.connect_activator("c.d").ioctl(LAYOUTS[command].request, 1)


# The struct


@provokes(COMMANDS, "EFAULT", "the address is no multiple of 8")
@pytest.mark.parametrize("offset", [1, 4, 7])
def test_an_address_between(world: World, command: str, offset: int) -> None:
    good = ATTEMPTS[command](world)
    address = good.client.task.memory.allocate(bytes(offset) + build(good, command))
    good.client.ioctl(LAYOUTS[command].request, address + offset)


@provokes(COMMANDS, "EFAULT", "not all of the struct and its items can be read")
def test_a_struct_that_is_not_there(world: World, command: str) -> None:
    good = ATTEMPTS[command](world)
    request, raw = LAYOUTS[command].request, build(good, command)
    for address in (0, 4096, KERNEL, 2**64 - 8, good.client.task.memory.allocate(raw[:-1])):
        with refused(EFAULT):
            good.client.ioctl(request, address)
    good.client.ioctl(request, good.client.task.memory.allocate(raw[:8]))


@provokes(COMMANDS, "EINVAL", "size is less than that of the struct")
@pytest.mark.parametrize("missing", [1, 8, None])
def test_a_small_size(world: World, command: str, missing: int | None) -> None:
    size = LAYOUTS[command].size
    attempt(world, command, size=0 if missing is None else size - missing)


@provokes(COMMANDS, "EMSGSIZE", "size is more than 32 KiB")
@pytest.mark.parametrize("size", [MAX_COMMAND_SIZE + 1, 2**64 - 1])
def test_a_large_size(world: World, command: str, size: int) -> None:
    attempt(world, command, bytes(MAX_COMMAND_SIZE), size=size)


@provokes(COMMANDS, "EFAULT", "the struct cannot be written")
def test_a_struct_that_is_read_only(world: World, command: str) -> None:
    good = ATTEMPTS[command](world)
    address = good.client.task.memory.allocate(build(good, command), read_only=True)
    good.client.ioctl(LAYOUTS[command].request, address)


@provokes(COMMANDS, "EINVAL", "unknown flags")
@pytest.mark.parametrize("flag", [1 << 4, 1 << 31, 1 << 62])
def test_an_unknown_flag(world: World, command: str, flag: int) -> None:
    attempt(world, command, flags=flag)


# The items


@provokes(COMMANDS, "EINVAL", "an item ends before its header does, or behind the command")
@pytest.mark.parametrize("size", [0, 15, 17, 2**64 - 1])
def test_an_item_of_a_wrong_size(world: World, command: str, size: int) -> None:
    attempt(world, command, pack("=2Q", size, ItemType.NEGOTIATE))


@provokes(COMMANDS, "EINVAL", "an item that the command does not take")
@pytest.mark.parametrize("foreign", FOREIGN, ids=["0", "99", "TIMESTAMP"])
def test_an_item_of_a_wrong_type(world: World, command: str, foreign: bytes) -> None:
    attempt(world, command, foreign)


@provokes(COMMANDS, "EINVAL", "the array of NEGOTIATE is no multiple of 8 bytes")
def test_half_a_number_to_negotiate(world: World, command: str) -> None:
    attempt(world, command, layout.item(ItemType.NEGOTIATE, bytes(12)))


@provokes(COMMANDS, "EINVAL", "an item that may be there once is there twice")
def test_an_item_twice(world: World, command: str) -> None:
    good = ATTEMPTS[command](world)
    for item in good.items if command not in REPEATABLE else ():
        with refused(EINVAL):
            repeat(good, command, *good.items, item)
    repeat(good, command, *good.items, layout.negotiate(), layout.negotiate())


@provokes(COMMANDS, "EINVAL", "bytes behind the last item")
def test_something_behind_the_items(world: World, command: str) -> None:
    attempt(world, command, bytes(8))


@provokes(NEEDY, "EINVAL", "an item that has to be there is missing")
def test_an_item_too_few(world: World, command: str) -> None:
    good = ATTEMPTS[command](world)
    for index in range(1, len(good.items)):
        with refused(EINVAL):
            repeat(good, command, *good.items[:index])
    repeat(good, command, *good.items[1:])
