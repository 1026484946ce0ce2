"""Items: how they are walked, what their payloads must look like, how they are built."""

from __future__ import annotations

from errno import EBADF, EINVAL, ENAMETOOLONG

import pytest
from handle_world import refused

from kdbus_core.abi import ITEM_HEADER, ItemType
from kdbus_core.errors import KdbusError
from kdbus_core.items import (
    MEMFD,
    NAME_NOTICE,
    VEC,
    Item,
    build_item,
    build_numbers_item,
    build_owned_name_item,
    build_string_item,
    iterate_items,
    validate_item,
)


def walk(data: bytes, start: int = 0) -> list[tuple[int, bytes]]:
    return [(item.type, item.payload) for item in iterate_items(data, start)]


def test_items_come_in_order_without_their_padding() -> None:
    data = build_item(3, b"abc") + build_item(4, b"") + build_item(5, bytes(8))
    assert walk(data) == [(3, b"abc"), (4, b""), (5, bytes(8))]


def test_an_item_knows_where_it_stood() -> None:
    data = bytes(24) + build_item(3, b"abc") + build_item(4, b"")
    assert [item.offset for item in iterate_items(data, 24)] == [24, 48]


def test_the_last_item_may_lack_its_padding() -> None:
    data = build_item(3, b"abc") + build_item(4, b"abc")[:-5]
    assert walk(data) == [(3, b"abc"), (4, b"abc")]


def test_the_last_item_may_have_part_of_its_padding() -> None:
    assert walk(build_item(4, b"abc")[:-2]) == [(4, b"abc")]


def test_no_items_are_fine() -> None:
    assert walk(bytes(24), 24) == []


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(ITEM_HEADER.pack(15, 3), id="smaller than its header"),
        pytest.param(ITEM_HEADER.pack(0, 3), id="of no size"),
        pytest.param(ITEM_HEADER.pack(17, 3), id="longer than the area"),
        pytest.param(ITEM_HEADER.pack((1 << 64) - 1, 3), id="so long that its end wraps"),
        pytest.param(ITEM_HEADER.pack((1 << 64) - 8, 3) + bytes(64), id="so long that the next one wraps"),
        pytest.param(bytes(8), id="an area shorter than a header"),
        pytest.param(b"x", id="one byte"),
        pytest.param(build_item(3, b"") + bytes(8), id="something after the last item"),
        pytest.param(build_item(3, b"abc") + bytes(1), id="a byte after the last item's padding"),
        pytest.param(build_item(3, b"")[:-1], id="a header cut short"),
    ],
)
def test_broken_bounds_are_invalid(data: bytes) -> None:
    with refused(EINVAL):
        walk(data)


def test_what_comes_before_a_broken_item_is_seen_first() -> None:
    items = iterate_items(build_item(3, b"") + ITEM_HEADER.pack(1, 4), 0)
    assert next(items).type == 3
    with refused(EINVAL):
        next(items)


NOTICE = bytes(NAME_NOTICE.size)


@pytest.mark.parametrize(
    ("type", "payload"),
    [
        (ItemType.NEGOTIATE, b""),
        (ItemType.NEGOTIATE, bytes(16)),
        (ItemType.PAYLOAD_VEC, VEC.pack(1, 0)),
        (ItemType.PAYLOAD_OFF, VEC.pack(1, 0)),
        (ItemType.PAYLOAD_MEMFD, MEMFD.pack(0, 1, 0, 7)),
        (ItemType.FDS, b""),
        (ItemType.FDS, bytes(12)),
        (ItemType.CANCEL_FD, bytes(4)),
        (ItemType.BLOOM_PARAMETER, bytes(16)),
        (ItemType.BLOOM_FILTER, bytes(8)),
        (ItemType.BLOOM_MASK, b""),
        (ItemType.DST_NAME, b"\0"),
        (ItemType.DST_NAME, b"\xff\0"),
        (ItemType.MAKE_NAME, b"1000-a.b_C\0"),
        (ItemType.MAKE_NAME, b"x" * 63 + b"\0"),
        (ItemType.ATTACH_FLAGS_SEND, bytes(8)),
        (ItemType.ATTACH_FLAGS_RECV, bytes(8)),
        (ItemType.ID, bytes(8)),
        (ItemType.NAME, b"whatever it is\0"),
        (ItemType.DST_ID, bytes(8)),
        (ItemType.TIMESTAMP, bytes(24)),
        (ItemType.CREDS, bytes(64)),
        (ItemType.PIDS, bytes(24)),
        (ItemType.AUXGROUPS, bytes(16)),
        (ItemType.AUXGROUPS, b""),
        (ItemType.OWNED_NAME, b"anything"),
        (ItemType.SECLABEL, b"label\0"),
        (ItemType.CAPS, bytes(36)),
        (ItemType.AUDIT, bytes(8)),
        (ItemType.CONN_DESCRIPTION, b"a\0"),
        (ItemType.POLICY_ACCESS, bytes(24)),
        (ItemType.NAME_ADD, NOTICE),
        (ItemType.NAME_REMOVE, NOTICE + b"a.b\0"),
        (ItemType.NAME_CHANGE, NOTICE + b"\0"),
        (ItemType.ID_ADD, bytes(16)),
        (ItemType.ID_REMOVE, bytes(16)),
        (ItemType.REPLY_TIMEOUT, b""),
        (ItemType.REPLY_DEAD, b""),
    ],
)
def test_a_payload_of_the_right_form_is_accepted(type: ItemType, payload: bytes) -> None:
    validate_item(Item(type, payload, 0))


@pytest.mark.parametrize(
    ("type", "payload"),
    [
        (ItemType.NEGOTIATE, bytes(9)),
        (ItemType.PAYLOAD_VEC, VEC.pack(0, 8)),
        (ItemType.PAYLOAD_VEC, bytes(15)),
        (ItemType.PAYLOAD_VEC, bytes(17)),
        (ItemType.PAYLOAD_MEMFD, MEMFD.pack(0, 0, 3, 0)),
        (ItemType.PAYLOAD_MEMFD, bytes(20)),
        (ItemType.PAYLOAD_MEMFD, MEMFD.pack(0, 0, -1, 0)),
        (ItemType.FDS, bytes(5)),
        (ItemType.CANCEL_FD, bytes(8)),
        (ItemType.CANCEL_FD, b""),
        (ItemType.BLOOM_PARAMETER, bytes(15)),
        (ItemType.BLOOM_FILTER, bytes(7)),
        (ItemType.DST_NAME, b""),
        (ItemType.DST_NAME, b"a.b"),
        (ItemType.DST_NAME, b"a.b\0\0"),
        (ItemType.NAME, b"a\0b\0"),
        (ItemType.NAME, b"\0\0"),
        (ItemType.MAKE_NAME, b""),
        (ItemType.MAKE_NAME, b"\0"),
        (ItemType.MAKE_NAME, b"ab"),
        (ItemType.MAKE_NAME, b"x" * 64),
        (ItemType.MAKE_NAME, b"-a\0"),
        (ItemType.MAKE_NAME, b"a-\0"),
        (ItemType.MAKE_NAME, b".a\0"),
        (ItemType.MAKE_NAME, b"a.\0"),
        (ItemType.MAKE_NAME, b"-\0"),
        (ItemType.MAKE_NAME, b"a@b\0"),
        (ItemType.MAKE_NAME, b"a\0b\0"),
        (ItemType.MAKE_NAME, b"a\xe4b\0"),
        (ItemType.MAKE_NAME, b"a\n\0"),
        (ItemType.CONN_DESCRIPTION, b"a/b\0"),
        (ItemType.ATTACH_FLAGS_SEND, bytes(4)),
        (ItemType.ID, bytes(9)),
        (ItemType.TIMESTAMP, bytes(8)),
        (ItemType.CREDS, bytes(63)),
        (ItemType.PIDS, bytes(16)),
        (ItemType.PIDS, bytes(32)),
        (ItemType.AUXGROUPS, bytes(4)),
        (ItemType.CAPS, bytes(3)),
        (ItemType.SECLABEL, b"label"),
        (ItemType.POLICY_ACCESS, bytes(25)),
        (ItemType.NAME_ADD, NOTICE[:-1]),
        (ItemType.NAME_CHANGE, NOTICE + b"a.b"),
        (ItemType.NAME_REMOVE, NOTICE + b"a\0b\0"),
        (ItemType.ID_ADD, bytes(8)),
        (ItemType.REPLY_DEAD, b"x"),
        (0, b""),
        (0x4000, b""),
        ((1 << 64) - 1, b""),
    ],
)
def test_a_payload_of_the_wrong_form_is_invalid(type: int, payload: bytes) -> None:
    with refused(EINVAL):
        validate_item(Item(type, payload, 0))


@pytest.mark.parametrize("type", [ItemType.MAKE_NAME, ItemType.CONN_DESCRIPTION])
@pytest.mark.parametrize("payload", [b"x" * 64 + b"\0", bytes(65), b"x" * 3000])
def test_a_node_name_of_more_than_63_bytes_is_too_long_whatever_is_in_it(
    type: ItemType, payload: bytes
) -> None:
    with refused(ENAMETOOLONG):
        validate_item(Item(type, payload, 0))


def test_memory_behind_a_negative_descriptor_is_not_open() -> None:
    with refused(EBADF):
        validate_item(Item(ItemType.PAYLOAD_MEMFD, MEMFD.pack(0, 8, -1, 0), 0))


@pytest.mark.parametrize("type", list(ItemType))
def test_every_type_of_item_is_judged(type: ItemType) -> None:
    """No type falls through to "there are no such items", which EINVAL for an odd payload could hide."""
    accepted = (b"", bytes(4), bytes(8), bytes(16), bytes(24), bytes(64), NOTICE, b"a\0", VEC.pack(1, 0))
    assert any(is_valid(Item(type, payload, 0)) for payload in [*accepted, MEMFD.pack(0, 1, 0, 0)])


def is_valid(item: Item) -> bool:
    try:
        validate_item(item)
    except KdbusError:
        return False
    return True


def test_a_number_and_a_string_are_read_from_a_payload() -> None:
    assert Item(ItemType.ID, (1 << 63).to_bytes(8, "little"), 0).number == 1 << 63
    assert Item(ItemType.NAME, b"a.b\0", 0).string == "a.b"


def test_a_string_of_any_bytes_can_be_read_and_built_again() -> None:
    raw = bytes(range(1, 256))
    text = Item(ItemType.NAME, raw + b"\0", 0).string
    assert build_string_item(ItemType.NAME, text) == build_string_item(ItemType.NAME, raw)


@pytest.mark.parametrize("length", range(10))
def test_a_built_item_is_padded_but_says_its_own_size(length: int) -> None:
    item = build_item(ItemType.BLOOM_MASK, b"x" * length)
    assert len(item) % 8 == 0
    assert len(item) - 16 - length < 8
    assert ITEM_HEADER.unpack_from(item) == (16 + length, ItemType.BLOOM_MASK)
    assert item[16:].rstrip(b"\0") == b"x" * length


def test_numbers_and_owned_names_are_built() -> None:
    assert walk(build_numbers_item(ItemType.PIDS, 1, 2, 3)) == [
        (ItemType.PIDS, b"".join(number.to_bytes(8, "little") for number in (1, 2, 3)))
    ]
    assert walk(build_owned_name_item(36, "a.b")) == [
        (ItemType.OWNED_NAME, bytes([36, *bytes(7)]) + b"a.b\0")
    ]
