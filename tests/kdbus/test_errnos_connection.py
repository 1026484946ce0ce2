"""What a connection is refused: slices to free, questions, names, matches, receiving, cancelling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.kdbus import Client, ItemType, Msg, Name, Recv, World, layout
from support.kdbus.layout import ATTACH_ALL, BLOOM_SIZE, LIST_ALL, MATCH_REPLACE, PAGE, WORLD, access

from .errno_provoking import provokes

NAME = "foo.bar"
BAD_NAMES = ["foo", "foo..bar", "foo.*", "*", "1foo.bar", "foo.1bar", ":1.5", "f." + "o" * 254, b"foo.\xe4"]
BAD_STRINGS = [b"", b"foo.bar", b"foo\0bar\0"]


@pytest.fixture
def client(world: World) -> Client:
    return world.connect()


def fill_pool(world: World, ask: Callable[[Client], object]) -> None:
    """Ask again and again, without freeing the answers."""
    client = world.connect(pool_size=PAGE)
    for _ in range(PAGE):
        ask(client)


# FREE


@provokes("FREE", "ENXIO", "no slice begins there that the connection was given and has not freed")
@pytest.mark.parametrize("where", ["nowhere", "inside", "queued", "freed", "beyond", "odd"])
def test_freeing_what_is_not_the_clients(client: Client, where: str) -> None:
    client.send_small(client)
    offset = 0
    if where in ("freed", "inside"):
        offset = client.recv(keep=True).offset
    if where == "freed":
        client.free(offset)
    shift = {"nowhere": 8 * PAGE, "inside": 8, "beyond": client.pool_size + 8, "odd": 3}
    client.free(offset + shift.get(where, 0))


# CONN_INFO, BUS_CREATOR_INFO, LIST


@provokes("CONN_INFO", "EINVAL", "the payload of NAME has the wrong form")
@pytest.mark.parametrize("text", BAD_STRINGS)
def test_asking_for_no_string(client: Client, text: bytes) -> None:
    client.command(layout.CONN_INFO, layout.item(ItemType.NAME, text), id=client.id)


@provokes("CONN_INFO", "EINVAL", "unknown bits in attach_flags")
@pytest.mark.parametrize("mask", [ATTACH_ALL + 1, 2**64 - 2])
def test_asking_for_unknown_metadata(client: Client, mask: int) -> None:
    client.conn_info(client, mask=mask)


@provokes("CONN_INFO", "EINVAL", "neither an id nor NAME")
def test_asking_for_nobody(client: Client) -> None:
    client.conn_info()


@provokes("CONN_INFO", "ESRCH", "nobody owns the name, well-formed or not")
@pytest.mark.parametrize("name", [NAME, "", *BAD_NAMES])
def test_asking_for_the_owner_of_a_free_name(client: Client, name: str | bytes) -> None:
    client.conn_info(name=name)


@provokes("CONN_INFO", "ESRCH", "the custom endpoint does not show the name")
def test_asking_for_the_owner_of_a_hidden_name(world: World, client: Client) -> None:
    client.name_acquire(NAME)
    _, custom = world.make_endpoint("1000-blah", layout.name("foo.baz"), access(WORLD, layout.SEE))
    world.connect(node=custom).conn_info(name=NAME)


@provokes("CONN_INFO", "ESRCH", "the owner of the name does not have the id")
def test_asking_for_another_owner(world: World, client: Client) -> None:
    client.name_acquire(NAME)
    client.conn_info(world.connect(), name=NAME)


@provokes("CONN_INFO", "ENXIO", "nobody has the id")
@pytest.mark.parametrize("id", [9999, 2**64 - 1])
def test_asking_for_an_id_of_nobody(client: Client, id: int) -> None:
    client.conn_info(id)


@provokes("CONN_INFO", "ENXIO", "the id is another connection's that monitors")
def test_asking_for_a_monitor(world: World, client: Client) -> None:
    client.conn_info(world.connect_monitor())


@provokes("CONN_INFO", "ENXIO", "the custom endpoint shows no name of the connection")
@pytest.mark.parametrize("names", [0, 1])
def test_asking_for_somebody_hidden(world: World, client: Client, names: int) -> None:
    if names:
        client.name_acquire(NAME)
    _, custom = world.make_endpoint("1000-blah", layout.name("foo.baz"), access(WORLD, layout.SEE))
    world.connect(node=custom).conn_info(client)


@provokes("CONN_INFO", "EXFULL", "the pool has no room for the answer")
def test_asking_with_a_full_pool(world: World) -> None:
    fill_pool(world, lambda client: client.conn_info(client, keep=True))


@provokes("BUS_CREATOR_INFO", "EINVAL", "unknown bits in attach_flags")
@pytest.mark.parametrize("mask", [ATTACH_ALL + 1, 2**64 - 2])
def test_asking_for_unknown_metadata_of_the_creator(client: Client, mask: int) -> None:
    client.creator_info(mask)


@provokes("BUS_CREATOR_INFO", "EXFULL", "the pool has no room for the answer")
def test_asking_for_the_creator_with_a_full_pool(world: World) -> None:
    fill_pool(world, lambda client: client.creator_info(keep=True))


@provokes("LIST", "EXFULL", "the pool has no room for the answer")
def test_listing_with_a_full_pool(world: World) -> None:
    fill_pool(world, lambda client: client.list_records(LIST_ALL, keep=True))


# RECV, MSG_CANCEL


@provokes("RECV", "EOPNOTSUPP", "the connection is a policy holder")
def test_receiving_as_a_policy_holder(world: World) -> None:
    world.connect_holder(NAME).ioctl(layout.RECV.request, 1)


@provokes("RECV", "EINVAL", "DROP and USE_PRIORITY together")
@pytest.mark.parametrize("more", [0, Recv.PEEK])
@pytest.mark.parametrize("queued", [0, 1])
def test_dropping_by_priority(client: Client, more: int, queued: int) -> None:
    if queued:
        client.send_small(client)
    client.recv(flags=Recv.DROP | Recv.USE_PRIORITY | more)


@provokes("RECV", "EAGAIN", "nothing is queued")
@pytest.mark.parametrize("flags", [0, Recv.PEEK, Recv.DROP, Recv.USE_PRIORITY])
@pytest.mark.parametrize("kind", ["ordinary", "monitor", "activator"])
def test_receiving_nothing(world: World, flags: int, kind: str) -> None:
    match kind:
        case "ordinary":
            client = world.connect()
        case "monitor":
            client = world.connect_monitor()
        case _:
            client = world.connect_activator(NAME)
    client.recv(flags=flags)


@provokes("RECV", "EAGAIN", "USE_PRIORITY, and nothing queued is as urgent")
@pytest.mark.parametrize("priority", [4, 0, -(2**63)])
def test_receiving_nothing_urgent(client: Client, priority: int) -> None:
    client.send_small(client, priority=5)
    client.recv(flags=Recv.USE_PRIORITY, priority=priority)


@provokes("MSG_CANCEL", "ENOENT", "no synchronous call of the connection waits with the cookie")
@pytest.mark.parametrize("what", ["nothing", "another cookie", "another connection", "asynchronous", "over"])
def test_cancelling_what_does_not_wait(world: World, client: Client, what: str) -> None:
    callee = world.connect()
    match what:
        case "another cookie":
            client.call(callee, cookie=8)
        case "another connection":
            callee.call(client, cookie=7)
        case "asynchronous":
            client.send_small(callee, cookie=7, flags=Msg.EXPECT_REPLY, timeout_ms=100)
        case "over":
            client.call(callee, cookie=7, timeout_ms=100)
            world.advance(100)
    client.msg_cancel(7)


# NAME_ACQUIRE, NAME_RELEASE


@provokes("NAME_ACQUIRE", "EINVAL", "IN_QUEUE, ACTIVATOR, PRIMARY or ACQUIRED, which are only returned")
@pytest.mark.parametrize("flag", [Name.IN_QUEUE, Name.ACTIVATOR, Name.PRIMARY, Name.ACQUIRED])
def test_acquiring_with_a_returned_flag(client: Client, flag: int) -> None:
    client.name_acquire(NAME, flag)


@provokes("NAME_ACQUIRE", "EINVAL", "the payload of NAME has the wrong form")
@pytest.mark.parametrize("text", BAD_STRINGS)
def test_acquiring_no_string(client: Client, text: bytes) -> None:
    client.command(layout.NAME_ACQUIRE, layout.item(ItemType.NAME, text))


@provokes("NAME_ACQUIRE", "EINVAL", "NAME is not a well-known name")
@pytest.mark.parametrize("name", ["", *BAD_NAMES])
def test_acquiring_no_name(client: Client, name: str | bytes) -> None:
    client.name_acquire(name)


@provokes("NAME_ACQUIRE", "EPERM", "no policy lets the connection own the name, whether or not it is there")
@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("where", ["default", "custom", "custom only"])
def test_acquiring_what_is_not_allowed(world: World, client: Client, owned: bool, where: str) -> None:
    if owned:
        client.name_acquire(NAME)
    level = layout.OWN if where == "custom" else layout.TALK
    world.connect_holder(NAME, access(WORLD, level))
    if where == "default":
        world.connect(world.task(2000)).name_acquire(NAME)
    level = layout.OWN if where == "custom only" else layout.TALK
    _, custom = world.make_endpoint("1000-blah", layout.name(NAME), access(WORLD, level))
    world.connect(node=custom).name_acquire(NAME)


@provokes("NAME_ACQUIRE", "E2BIG", "the connection owns or waits for 256 names")
def test_acquiring_one_too_many(world: World, client: Client) -> None:
    world.connect().name_acquire("foo.queued")
    client.name_acquire("foo.queued", Name.QUEUE)
    for count in range(255):
        client.name_acquire(f"foo.bar{count}")
    client.name_acquire(NAME)


@provokes("NAME_ACQUIRE", "EEXIST", "somebody else owns the name, cannot be replaced, and QUEUE is not set")
@pytest.mark.parametrize(
    ("theirs", "mine"), [(0, 0), (0, Name.REPLACE_EXISTING), (Name.ALLOW_REPLACEMENT, 0)]
)
def test_acquiring_what_is_owned(world: World, client: Client, theirs: int, mine: int) -> None:
    world.connect().name_acquire(NAME, theirs)
    client.name_acquire(NAME, mine | Name.ALLOW_REPLACEMENT)


@provokes("NAME_RELEASE", "EINVAL", "the payload of NAME has the wrong form")
@pytest.mark.parametrize("text", BAD_STRINGS)
def test_releasing_no_string(client: Client, text: bytes) -> None:
    client.command(layout.NAME_RELEASE, layout.item(ItemType.NAME, text))


@provokes("NAME_RELEASE", "ESRCH", "nobody has the name, well-formed or not")
@pytest.mark.parametrize("name", [NAME, "", *BAD_NAMES])
def test_releasing_a_free_name(client: Client, name: str | bytes) -> None:
    client.name_release(name)


@provokes("NAME_RELEASE", "EADDRINUSE", "only others own or wait for the name")
@pytest.mark.parametrize("by", ["owner", "activator"])
def test_releasing_somebody_elses_name(world: World, client: Client, by: str) -> None:
    if by == "owner":
        world.connect().name_acquire(NAME)
    else:
        world.connect_activator(NAME)
    client.name_release(NAME)


# MATCH_ADD, MATCH_REMOVE


@provokes("MATCH_ADD", "EINVAL", "the payload of an item has the wrong form")
@pytest.mark.parametrize(
    "item",
    [
        *(layout.item(ItemType.NAME, text) for text in BAD_STRINGS),
        layout.item(ItemType.ID, bytes(4)),
        layout.item(ItemType.DST_ID, bytes(16)),
        layout.item(ItemType.ID_ADD, bytes(8)),
        layout.item(ItemType.ID_REMOVE, bytes(24)),
        layout.item(ItemType.NAME_ADD, bytes(24)),
        layout.item(ItemType.NAME_REMOVE, bytes(32) + b"foo.bar"),
        layout.item(ItemType.NAME_CHANGE, bytes(32) + b"foo\0bar\0"),
    ],
    ids=range(10),
)
def test_matching_wrong_items(client: Client, item: bytes) -> None:
    client.add_match(item)


@provokes("MATCH_ADD", "EDOM", "BLOOM_MASK is empty or no multiple of the bus' filter size")
@pytest.mark.parametrize("size", [0, 8, BLOOM_SIZE - 8, BLOOM_SIZE + 8, BLOOM_SIZE * 3 // 2])
def test_matching_another_size(client: Client, size: int) -> None:
    client.add_match(layout.bloom_mask(bytes(size)))


@provokes("MATCH_ADD", "EINVAL", "NAME is not a well-known name")
@pytest.mark.parametrize("name", ["", *BAD_NAMES])
def test_matching_no_name(client: Client, name: str | bytes) -> None:
    client.add_match(layout.name(name))


@provokes("MATCH_ADD", "EMFILE", "the connection has 4096 matches")
@pytest.mark.parametrize("flags", [0, MATCH_REPLACE])
def test_matching_too_much(client: Client, flags: int) -> None:
    for cookie in range(4096):
        client.add_match(cookie=cookie)
    client.add_match(cookie=4096, flags=flags)


@provokes("MATCH_ADD", "EMFILE", "the masks of the connection would have more than 16 MiB")
def test_matching_with_too_much(client: Client) -> None:
    mask = layout.bloom_mask(*[bytes(layout.BLOOM_SIZE)] * 500)
    for cookie in range(2**24 // (500 * layout.BLOOM_SIZE)):
        client.add_match(mask, cookie=cookie)
    client.add_match(mask, cookie=4096)


@provokes("MATCH_REMOVE", "EBADSLT", "there is no match with the cookie")
@pytest.mark.parametrize("what", ["nothing", "another cookie", "another connection", "removed"])
def test_removing_what_is_not_matched(world: World, client: Client, what: str) -> None:
    match what:
        case "another cookie":
            client.add_match(cookie=8)
        case "another connection":
            world.connect().add_match(cookie=7)
        case "removed":
            client.add_match(cookie=7)
            client.remove_match(7)
    client.remove_match(7)
