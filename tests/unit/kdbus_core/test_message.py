"""Messages: how they lie in a pool, and whose their files are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from native_mail import Mail, SomeFile

from kdbus_core.abi import MSG, PAYLOAD_DBUS, ZERO_FILL, ItemType, MessageFlag
from kdbus_core.inbox import Parcel
from kdbus_core.items import MEMFD, VEC, build_item, build_string_item
from kdbus_core.matches import Filter
from kdbus_core.message import DstName, Fds, Memfd, Message, MessageItem, Vec, Zeros

METADATA = build_string_item(ItemType.CONN_DESCRIPTION, "a client")
FILTER = Filter(3, bytes(range(8)))


def lie(parcel: Parcel) -> bytes:
    """The bytes as they lie in a pool."""
    data = b"".join(parcel.chunks)
    assert len(data) == parcel.size
    assert len(data) % 8 == 0
    return data


def compose(*items: MessageItem, metadata: bytes = b"") -> Mail:
    return Mail(lie(Message(items).compose(metadata)))


def places(mail: Mail) -> list[tuple[int, int]]:
    """Size and offset of each PAYLOAD_OFF item, offsets from the start of the message."""
    return [VEC.unpack(item.payload) for item in mail.items if item.type == ItemType.PAYLOAD_OFF]


def parts(data: bytes) -> list[bytes]:
    """The payload that the items of a message lead to."""
    return [
        bytes(size) if offset == ZERO_FILL else data[offset : offset + size]
        for size, offset in places(Mail(data))
    ]


# The header


def test_a_message_without_items_is_its_header() -> None:
    data = lie(Message([]).compose(b""))
    assert data == MSG.pack(64, 0, 0, 0, 0, PAYLOAD_DBUS, 0, 0)


def test_the_header_says_what_was_sent() -> None:
    message = Message(
        [], flags=4, priority=-7, dst_id=2**64 - 1, payload_type=9, cookie=2**64 - 2, cookie_reply=11
    )
    mail = Mail(lie(message.compose(b"")))
    assert (mail.flags, mail.priority, mail.dst, mail.payload_type) == (4, -7, 2**64 - 1, 9)
    assert (mail.cookie, mail.last) == (2**64 - 2, 11)


@pytest.mark.parametrize(("flags", "last"), [(0, 11), (MessageFlag.EXPECT_REPLY, 22), (4, 11), (5, 22)])
def test_the_last_field_is_a_deadline_or_the_cookie_that_is_answered(flags: int, last: int) -> None:
    message = Message([], flags=flags, timeout_ns=22, cookie_reply=11)
    assert Mail(lie(message.compose(b""))).last == last
    assert message.expects_reply is bool(flags & 1)
    assert message.is_signal is bool(flags & 4)


# Items and payload


def test_items_stay_in_order_and_metadata_comes_after_them() -> None:
    file = SomeFile("a")
    mail = compose(
        DstName("org.example.Name"),
        Vec(b"one"),
        Fds((file, file)),
        Memfd(16, 8, file),
        FILTER,
        metadata=METADATA,
    )
    assert [item.type for item in mail.items] == [
        ItemType.DST_NAME,
        ItemType.PAYLOAD_OFF,
        ItemType.FDS,
        ItemType.PAYLOAD_MEMFD,
        ItemType.BLOOM_FILTER,
        ItemType.CONN_DESCRIPTION,
    ]
    assert mail.item(ItemType.DST_NAME).string == "org.example.Name"
    assert mail.item(ItemType.FDS).payload == b"\xff" * 8
    assert mail.item(ItemType.PAYLOAD_MEMFD).payload == MEMFD.pack(16, 8, -1, 0)
    assert mail.item(ItemType.BLOOM_FILTER).payload == bytes([3, *bytes(7), *range(8)])
    assert mail.item(ItemType.CONN_DESCRIPTION).string == "a client"


PAYLOADS: list[Sequence[MessageItem]] = [
    [],
    [Vec(b"x")],
    [Vec(b"12345678")],
    [Vec(b"abc"), Vec(b"defgh"), Vec(b"i")],
    [Zeros(3), Vec(b"abc")],
    [Vec(b"abc"), Zeros(16), Vec(b"d")],
    [Vec(b"abc"), Zeros(21), Vec(b"defgh"), Zeros(1)],
    [Zeros(4096)],
    [Vec(b"a"), DstName("a.b"), FILTER, Vec(b"bcd")],
]


@pytest.mark.parametrize("items", PAYLOADS)
@pytest.mark.parametrize("metadata", [b"", METADATA])
def test_every_part_of_the_payload_is_found_where_its_item_says(
    items: Sequence[MessageItem], metadata: bytes
) -> None:
    expected = [
        item.data if isinstance(item, Vec) else bytes(item.size)
        for item in items
        if isinstance(item, Vec | Zeros)
    ]
    assert parts(lie(Message(items).compose(metadata))) == expected


@pytest.mark.parametrize(
    ("items", "stored"),
    [
        ([Vec(b"abc"), Vec(b"de")], b"abcde\0\0\0"),
        ([Vec(b"abcdefgh")], b"abcdefgh"),
        ([Vec(b"a"), Zeros(8), Vec(b"b")], b"ab\0\0\0\0\0\0"),
        ([Vec(b"a"), Zeros(10), Vec(b"b")], b"a\0\0b\0\0\0\0"),
        ([Zeros(2**40 + 5)], bytes(8)),
        ([Zeros(2**40)], b""),
        ([Vec(b"a"), Memfd(0, 19, SomeFile("m")), Vec(b"b")], b"a\0\0\0b\0\0\0"),
        ([Memfd(3, 16, SomeFile("m")), Vec(b"b")], b"b" + bytes(7)),
    ],
)
def test_of_zeros_and_memory_only_what_keeps_the_alignment_is_stored(
    items: Sequence[MessageItem], stored: bytes
) -> None:
    data = lie(Message(items).compose(b""))
    assert Mail(data).payload == stored


def test_receivers_with_different_metadata_find_the_same_payload() -> None:
    message = Message([Vec(b"abc"), Vec(b"def")])
    for metadata in (b"", METADATA, METADATA * 3):
        assert parts(lie(message.compose(metadata))) == [b"abc", b"def"]


# Files


def test_places_of_descriptors_are_those_of_their_files() -> None:
    files = [SomeFile(label) for label in "abm"]
    message = Message([Vec(b"x"), Fds((files[0], files[1])), Memfd(0, 8, files[2])])
    parcel = message.compose(METADATA)
    data = lie(parcel)
    assert [file for _, file in (*parcel.fds, *parcel.memfds)] == files
    for position, _ in (*parcel.fds, *parcel.memfds):
        assert data[position : position + 4] == b"\xff" * 4
    fds = data.index(build_item(ItemType.FDS, b"\xff" * 8))
    assert [position for position, _ in parcel.fds] == [fds + 16, fds + 20]
    assert [position for position, _ in parcel.memfds] == [fds + 24 + 16 + 16]


def test_files_are_counted_and_memory_is_not() -> None:
    files = [SomeFile(label) for label in "abcm"]
    message = Message([Fds((files[0],)), Memfd(0, 8, files[3]), Fds(()), Fds((files[1], files[2]))])
    assert message.fd_count == message.compose(b"").fd_count == 3
    assert message.compose(b"").message is message


def test_the_last_holder_closes_all_files_once() -> None:
    files = [SomeFile(label) for label in "abm"]
    message = Message([Fds((files[0], files[1])), Memfd(0, 8, files[2])])
    message.hold()
    message.hold()
    for _ in range(2):
        message.release()
        assert not any(file.is_closed for file in files)
    message.release()
    assert all(file.is_closed for file in files)


def test_a_message_knows_its_name_and_its_filter() -> None:
    message = Message([DstName("a.b"), FILTER])
    assert (message.dst_name, message.filter) == ("a.b", FILTER)
    assert (Message([]).dst_name, Message([]).filter) == (None, None)
