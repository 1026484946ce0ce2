"""Matches: what a connection hears of, by who comes and goes, by names and by filters."""

from __future__ import annotations

from errno import EAGAIN, EBADSLT, EDOM, EINVAL, EMFILE, ESHUTDOWN
from struct import pack

import pytest
from support.kdbus import Client, ItemType, Name, World, layout, refused
from support.kdbus.layout import (
    ANY,
    DST_BROADCAST,
    MATCH_REPLACE,
    bits,
    bloom_mask,
    id_rule,
    name_rule,
    number,
)

COOKIE = 0xDEAFBEEFDEADDEAD
NAME = "foo.bla.blaz"
ID_ADD, ID_REMOVE = ItemType.ID_ADD, ItemType.ID_REMOVE
NAME_ADD, NAME_REMOVE, NAME_CHANGE = ItemType.NAME_ADD, ItemType.NAME_REMOVE, ItemType.NAME_CHANGE


@pytest.fixture
def conn(world: World) -> Client:
    return world.connect()


# Who comes and goes


def test_an_arrival_is_heard_of(world: World, conn: Client) -> None:
    conn.add_match_id(ID_ADD, cookie=COOKIE)
    other = world.connect()
    notice = conn.recv()
    assert notice.kinds == [ID_ADD, ItemType.TIMESTAMP]
    assert notice.arrival == (ID_ADD, other.id)
    assert (notice.src_id, notice.cookie, notice.priority) == (0, 0, 0)
    other.close()
    with refused(EAGAIN):
        conn.recv()


def test_the_departure_of_one_connection_is_heard_of(world: World, conn: Client) -> None:
    one, another = world.connect(), world.connect()
    conn.add_match_id(ID_REMOVE, one.id)
    another.close()
    with refused(EAGAIN):
        conn.recv()
    one.close()
    assert conn.recv().arrival == (ID_REMOVE, one.id)


def test_a_match_is_replaced(world: World, conn: Client) -> None:
    conn.add_match_id(ID_ADD, cookie=COOKIE)
    other = world.connect()
    assert conn.recv().arrival == (ID_ADD, other.id)
    conn.add_match(id_rule(ID_REMOVE), cookie=COOKIE, flags=MATCH_REPLACE)
    other = world.connect()
    with refused(EAGAIN):
        conn.recv()
    other.close()
    assert conn.recv().arrival == (ID_REMOVE, other.id)


def test_replacing_takes_all_entries_of_the_cookie_and_needs_none(world: World, conn: Client) -> None:
    conn.add_match_id(ID_ADD, cookie=1)
    conn.add_match_id(ID_REMOVE, cookie=1)
    conn.add_match_id(ID_ADD, cookie=2)
    conn.add_match(name_rule(NAME_ADD), cookie=1, flags=MATCH_REPLACE)
    conn.add_match(name_rule(NAME_REMOVE), cookie=3, flags=MATCH_REPLACE)
    other = world.connect()
    other.name_acquire(NAME)
    other.close()
    assert [notice.kind for notice in conn.drain()] == [ID_ADD, NAME_ADD, NAME_REMOVE]


# Names


def test_a_name_that_is_acquired_is_heard_of_by_its_owner_too(conn: Client) -> None:
    payload = pack("=4Q", ANY, 0, ANY, 0) + NAME.encode() + b"\0"
    conn.add_match(layout.item(NAME_ADD, payload, pad=False))  # nothing after the last item
    conn.name_acquire(NAME)
    notice = conn.recv()
    assert notice.change == (NAME_ADD, NAME, 0, conn.id)
    assert notice.change_flags == (0, Name.PRIMARY)


def test_a_name_that_is_released_is_heard_of(conn: Client) -> None:
    conn.name_acquire(NAME)
    conn.add_match_name(NAME_REMOVE, NAME)
    conn.name_release(NAME)
    notice = conn.recv()
    assert notice.change == (NAME_REMOVE, NAME, conn.id, 0)
    assert notice.change_flags == (Name.PRIMARY, 0)


def test_a_name_that_changes_hands_is_heard_of(world: World, conn: Client) -> None:
    conn.name_acquire(NAME)
    conn.add_match_name(NAME_CHANGE, NAME)
    other = world.connect()
    assert other.name_acquire(NAME, Name.QUEUE) & Name.IN_QUEUE
    with refused(EAGAIN):
        conn.recv()
    conn.name_release(NAME)
    notice = conn.recv()
    assert notice.change == (NAME_CHANGE, NAME, conn.id, other.id)
    assert notice.change_flags == (Name.PRIMARY, Name.PRIMARY | Name.QUEUE)


@pytest.mark.parametrize(
    ("kind", "old", "new", "name", "hears"),
    [
        pytest.param(NAME_ADD, ANY, ANY, None, True, id="any name"),
        pytest.param(NAME_ADD, 0, ANY, NAME, True, id="nobody before is 0"),
        pytest.param(NAME_ADD, ANY, "me", NAME, True, id="its new owner"),
        pytest.param(NAME_ADD, ANY, 0, NAME, False, id="0 is not any"),
        pytest.param(NAME_ADD, 1, ANY, NAME, False, id="another old owner"),
        pytest.param(NAME_ADD, ANY, 1, NAME, False, id="another new owner"),
        pytest.param(NAME_ADD, ANY, ANY, "foo.bla", False, id="another name"),
        pytest.param(NAME_ADD, ANY, ANY, "foo.bla.blazz", False, id="a longer name"),
        pytest.param(NAME_REMOVE, ANY, ANY, NAME, False, id="another kind"),
        pytest.param(NAME_CHANGE, ANY, ANY, NAME, False, id="a third kind"),
    ],
)
def test_a_rule_for_a_name_says_who_and_which(
    conn: Client, kind: ItemType, old: int, new: int | str, name: str | None, *, hears: bool
) -> None:
    new_id = new if isinstance(new, int) else conn.id
    conn.add_match(name_rule(kind, name, old=old, new=new_id))
    conn.name_acquire(NAME)
    assert conn.is_readable == hears
    conn.drain()


# Filters


GENERATION_0 = bits({0: 0x55, 63: 0x80})
GENERATION_1 = bits({1: 0xAA, 9: 0x02})
WIDE = {0: 0xFF, 8: 0xFF, 63: 0xFF}
WIDER = WIDE | {1: 0xAA, 9: 0x02}


@pytest.mark.parametrize(
    ("field", "generation", "hears"),
    [
        pytest.param(bits({}), 0, False, id="nothing"),
        pytest.param(GENERATION_0, 0, True, id="the mask"),
        pytest.param(bits(WIDE), 0, True, id="more than the mask"),
        pytest.param(bits(WIDE), 1, False, id="the same of the next generation"),
        pytest.param(bits(WIDER), 1, True, id="more than the next generation's mask"),
        pytest.param(bits(WIDER), 7, True, id="of a generation that is yet to come"),
        pytest.param(GENERATION_0, 7, False, id="an older mask is not for a later generation"),
        pytest.param(bits({0: 0x54, 63: 0x80}), 0, False, id="a bit less than the mask"),
        pytest.param(bits({0: 0x55, 63: 0x7F}), 0, False, id="all but the last bit of the mask"),
    ],
)
def test_a_filter_has_to_have_all_bits_of_the_mask(
    world: World, conn: Client, field: bytes, generation: int, *, hears: bool
) -> None:
    conn.add_match(bloom_mask(GENERATION_0, GENERATION_1))
    for dst in (DST_BROADCAST, conn):
        world.connect().signal(dst=dst, bits=field, generation=generation, cookie=5)
        if hears:
            assert conn.recv().cookie == 5
        with refused(EAGAIN):
            conn.recv()


def test_a_mask_of_zeros_lets_everything_through_and_one_of_ones_only_ones(
    world: World, conn: Client
) -> None:
    other, ones = world.connect(), bytes([0xFF] * 64)
    conn.add_match(bloom_mask(bits({})))
    other.add_match(bloom_mask(ones))
    sender = world.connect()
    for cookie, field in enumerate((bits({}), GENERATION_0, ones)):
        sender.signal(bits=field, cookie=cookie)
    assert [message.cookie for message in conn.drain()] == [0, 1, 2]
    assert [message.cookie for message in other.drain()] == [2]


@pytest.mark.parametrize("size", [0, 8, 63, 65, 96])
def test_a_mask_is_made_of_filters_of_the_bus(conn: Client, size: int) -> None:
    with refused(EDOM):
        conn.add_match(bloom_mask(bytes(size)))


# Senders and receivers


def test_messages_are_told_apart_by_their_senders(world: World, conn: Client) -> None:
    one, another = world.connect(), world.connect()
    conn.add_match(number(ItemType.ID, one.id))
    for sender in (one, another):
        sender.broadcast()
    assert [message.src_id for message in conn.drain()] == [one.id]


def test_messages_are_told_apart_by_the_names_of_their_senders(world: World, conn: Client) -> None:
    one, another = world.connect(), world.connect()
    conn.add_match(layout.name(NAME))
    one.broadcast(1)
    one.name_acquire(NAME)
    another.name_acquire(NAME, Name.QUEUE)
    for sender, cookie in ((one, 2), (another, 3)):
        sender.broadcast(cookie)
    one.name_release(NAME)
    for sender, cookie in ((one, 4), (another, 5)):
        sender.broadcast(cookie)
    assert [message.cookie for message in conn.drain()] == [2, 5]


def test_a_signal_to_one_connection_needs_a_match_there(world: World, conn: Client) -> None:
    sender, other = world.connect(), world.connect()
    for cookie, rule in ((0, None), (1, conn.id), (2, other.id), (3, ANY)):
        if rule is not None:
            conn.add_match(number(ItemType.DST_ID, rule), cookie=7, flags=MATCH_REPLACE)
        sender.signal(dst=conn, cookie=cookie)
    assert [message.cookie for message in conn.drain()] == [1, 3]


# Entries


def test_a_match_without_rules_lets_everything_through(world: World, conn: Client) -> None:
    conn.add_match()
    other = world.connect()
    other.name_acquire(NAME)
    other.broadcast(1)
    other.close()
    kinds = [message.kind for message in conn.drain()]
    assert kinds == [ID_ADD, NAME_ADD, ItemType.PAYLOAD_OFF, NAME_REMOVE, ID_REMOVE]


def test_all_rules_of_a_match_have_to_hold_and_one_match_of_several(world: World, conn: Client) -> None:
    one, another = world.connect(), world.connect()
    mask = bloom_mask(GENERATION_0)
    conn.add_match(number(ItemType.ID, one.id), mask)
    conn.add_match(number(ItemType.ID, another.id), mask, cookie=1)
    conn.add_match(number(ItemType.ID, another.id), cookie=1)
    for cookie, (sender, field) in enumerate(
        ((one, GENERATION_0), (one, GENERATION_1), (another, GENERATION_0), (another, GENERATION_1))
    ):
        sender.signal(bits=field, cookie=cookie)
    assert [message.cookie for message in conn.drain()] == [0, 2, 3]


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param([number(ItemType.ID, ANY), id_rule(ID_ADD)], id="messages and notifications"),
        pytest.param([id_rule(ID_ADD), id_rule(ID_REMOVE)], id="two kinds of notifications"),
        pytest.param([name_rule(NAME_ADD), name_rule(NAME_REMOVE)], id="two kinds about names"),
        pytest.param([number(ItemType.DST_ID, ANY), name_rule(NAME_ADD)], id="receivers and names"),
    ],
)
def test_what_no_message_can_be_at_once_lets_nothing_through(
    world: World, conn: Client, rules: list[bytes]
) -> None:
    conn.add_match(*rules)
    other = world.connect()
    other.name_acquire(NAME)
    other.broadcast()
    other.close()
    with refused(EAGAIN):
        conn.recv()


def test_a_match_is_removed_by_its_cookie_with_all_that_have_it(world: World, conn: Client) -> None:
    for cookie in (1, 1, 2):
        conn.add_match_id(ID_ADD, cookie=cookie)
    conn.remove_match(1)
    world.connect()
    conn.recv()
    conn.remove_match(2)
    world.connect()
    with refused(EAGAIN):
        conn.recv()
    for cookie in (1, 2, 3):
        with refused(EBADSLT):
            conn.remove_match(cookie)


def test_a_malformed_name_is_refused_in_a_rule_for_senders_only(conn: Client) -> None:
    with refused(EINVAL):
        conn.add_match(layout.name("nodots"))
    conn.add_match(name_rule(NAME_ADD, "nodots"))


def test_a_connection_has_4096_matches(conn: Client) -> None:
    for cookie in range(4096):
        conn.add_match_id(ID_ADD, cookie=cookie)
    with refused(EMFILE):
        conn.add_match_id(ID_ADD, cookie=5000)
    conn.add_match(id_rule(ID_REMOVE), cookie=7, flags=MATCH_REPLACE)
    with refused(EMFILE):
        conn.add_match(id_rule(ID_REMOVE), cookie=5000, flags=MATCH_REPLACE)


def test_to_negotiate_about_rules_is_no_rule(world: World, conn: Client) -> None:
    answer = conn.command(
        layout.MATCH_ADD, layout.negotiate(ItemType.ID, ItemType.FDS), id_rule(ID_ADD), cookie=COOKIE
    )
    assert answer.items[16:32] == pack("=2Q", ItemType.ID, 0)
    world.connect()
    assert conn.recv().kind == ID_ADD
    conn.remove_match(COOKIE)


def test_who_has_left_hears_nothing(world: World, conn: Client) -> None:
    conn.add_match()
    conn.byebye()
    world.connect().broadcast()
    with refused(ESHUTDOWN):
        conn.recv()
