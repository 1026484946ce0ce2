"""Messages as they lie in a pool: what is read of them, who has their memory, and what is not believed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import EBADF, EBADMSG
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbus_core.abi import MSG, PAYLOAD_DBUS, ZERO_FILL, ItemType, MessageFlag, NameFlag
from kdbus_core.errors import KdbusError
from kdbus_core.items import build_item, build_numbers_item, build_string_item
from kdbus_core.matches import Filter
from kdbus_core.message import Zeros
from kdbus_core.metadata import Stamp
from kdbus_core.transport.client.notices import IdChanged, NameChanged, ReplyDead, ReplyTimeout
from kdbus_core.transport.client.pool import COPY_LIMIT, PoolView
from kdbus_core.transport.client.received import Received, SealedMemory
from kdbus_core.transport.files import make_memfd

POOL_SIZE = 1 << 20
AT = 4096
"""Where in the pool the messages of these tests lie."""


class Pool:
    """A pool that the test writes."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("pool", os.MFD_CLOEXEC)
        os.truncate(self.fd, POOL_SIZE)
        self.soon: list[int] = []
        self.now: list[int] = []
        self.view = PoolView(self.fd, POOL_SIZE, self.soon.append, self.now.append)

    @property
    def freed(self) -> list[int]:
        return self.soon + self.now

    def put(self, data: bytes) -> int:
        """Put a slice into the pool; its size."""
        data += bytes(-len(data) % 8)
        os.pwrite(self.fd, data, AT)
        return len(data)

    def receive(self, data: bytes, fds: list[int] | None = None, *, is_peeked: bool = False) -> Received:
        size = self.put(data)
        return Received(self.view, AT, size, fds=[] if fds is None else fds, is_peeked=is_peeked)

    def refuse(self, data: bytes, fds: list[int] | None = None) -> None:
        """A message that cannot be read, and whose slice is given back."""
        before = len(self.freed)
        with pytest.raises(KdbusError) as refusal:
            self.receive(data, fds)
        assert refusal.value.errno == EBADMSG
        assert self.freed[before:] == [AT]


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.view.close()
    os.close(pool.fd)


def build(
    *items: bytes,
    payload: bytes = b"",
    flags: int = 0,
    dst: int = 7,
    src: int = 5,
    type: int = PAYLOAD_DBUS,
    cookie: int = 3,
    last: int = 0,
    size: int | None = None,
) -> bytes:
    tail = b"".join(items)
    size = MSG.size + len(tail) if size is None else size
    return MSG.pack(size, flags, -2, dst, src, type, cookie, last) + tail + payload


def off(size: int, offset: int) -> bytes:
    return build_numbers_item(ItemType.PAYLOAD_OFF, size, offset)


def memfd_item(start: int, size: int, index: int) -> bytes:
    return build_item(ItemType.PAYLOAD_MEMFD, pack("=2QiI", start, size, index, 0))


def fds_item(*indices: int) -> bytes:
    return build_item(ItemType.FDS, pack(f"={len(indices)}i", *indices))


ONE_PART = 64 + 32
"""Where payload begins behind one PAYLOAD_OFF."""


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def sealed(data: bytes) -> int:
    return make_memfd(data, name="test", sealed=True)


# What is read


def test_a_header_is_read(pool: Pool) -> None:
    with pool.receive(build(last=9)) as received:
        assert (received.sender, received.destination, received.cookie) == (5, 7, 3)
        assert (received.priority, received.payload_type, received.flags) == (-2, PAYLOAD_DBUS, 0)
        assert (received.cookie_reply, received.timeout_ns) == (9, 0)
        assert received.parts == []
        assert received.payload == b""


def test_the_last_field_of_a_request_is_its_deadline(pool: Pool) -> None:
    with pool.receive(build(last=9, flags=MessageFlag.EXPECT_REPLY)) as received:
        assert (received.cookie_reply, received.timeout_ns) == (0, 9)
        assert received.expects_reply


def test_parts_follow_each_other_as_the_sender_gave_them(pool: Pool) -> None:
    start = 64 + 3 * 32
    items = (off(3, start), off(2, ZERO_FILL), off(4, start + 3))
    with pool.receive(build(*items, payload=b"abcdefg")) as received:
        assert [bytes(part) for part in received.parts] == [b"abc", b"\0\0", b"defg"]
        assert received.payload == b"abc\0\0defg"
        assert received.payload_size == 9
        assert received.pieces[1] == Zeros(2)


def test_a_small_message_is_copied_and_its_slice_is_free_at_once(pool: Pool) -> None:
    received = pool.receive(build(off(5, ONE_PART), payload=b"hello"))
    assert pool.soon == [AT]
    pool.put(b"X" * 200)
    assert received.payload == b"hello"
    received.close()
    assert pool.freed == [AT]
    assert received.payload == b"hello"


def test_a_large_message_stays_in_the_pool_until_it_is_closed(pool: Pool) -> None:
    payload = os.urandom(COPY_LIMIT)
    received = pool.receive(build(off(len(payload), ONE_PART), payload=payload))
    assert pool.freed == []
    assert received.parts[0] == payload
    assert received.payload == payload
    received.close()
    received.close()
    assert pool.now == [AT]
    assert received.cookie == 3
    with pytest.raises(ValueError, match="released"):
        _ = received.payload


def test_a_message_that_was_only_peeked_at_is_copied_and_leaves_its_slice_alone(pool: Pool) -> None:
    payload = os.urandom(COPY_LIMIT)
    received = pool.receive(build(off(len(payload), ONE_PART), payload=payload), is_peeked=True)
    pool.put(b"X" * len(payload))
    assert received.payload == payload
    received.close()
    assert pool.freed == []


def test_a_view_that_outlives_its_message_and_the_pool_does_no_harm(pool: Pool) -> None:
    payload = os.urandom(COPY_LIMIT)
    received = pool.receive(build(off(len(payload), ONE_PART), payload=payload))
    view = received.parts[0][10:20]
    received.close()
    pool.view.close()
    assert view == payload[10:20]


def test_sealed_memory_is_mapped_and_not_copied(pool: Pool) -> None:
    fd = sealed(b"0123456789")
    fds = [fd]
    with pool.receive(build(memfd_item(2, 5, 0)), fds) as received:
        assert fds == [-1]
        assert received.pieces == [SealedMemory(fd, 2, 5)]
        assert received.payload == b"23456"
        assert received.parts[0].readonly
    assert not is_open(fd)


def test_sealed_memory_cannot_be_looked_at_after_the_message(pool: Pool) -> None:
    received = pool.receive(build(memfd_item(0, 5, 0)), [sealed(b"01234")])
    received.close()
    with pytest.raises(KdbusError) as refusal:
        _ = received.payload
    assert refusal.value.errno == EBADF


def test_memory_that_can_still_change_is_not_mapped(pool: Pool) -> None:
    fd = make_memfd(b"01234", name="test", sealed=False)
    with pool.receive(build(memfd_item(0, 5, 0)), [fd]) as received, pytest.raises(KdbusError):
        _ = received.parts


def test_descriptors_belong_to_the_message(pool: Pool) -> None:
    ends = list(os.pipe())
    with pool.receive(build(fds_item(1, 0)), list(ends)) as received:
        assert received.fds == (ends[1], ends[0])
        assert not received.incomplete
    assert not any(map(is_open, ends))


def test_descriptors_that_were_taken_outlive_the_message(pool: Pool) -> None:
    ends = list(os.pipe())
    with pool.receive(build(fds_item(0, 1)), list(ends)) as received:
        taken = received.take_fds()
        assert received.fds == ()
    assert all(map(is_open, taken))
    for fd in taken:
        os.close(fd)


def test_a_descriptor_that_was_not_installed_is_missing(pool: Pool) -> None:
    with pool.receive(build(fds_item(-1))) as received:
        assert received.fds == (-1,)


def test_a_descriptor_that_did_not_get_through_is_missing_and_said_to_be(pool: Pool) -> None:
    with pool.receive(build(fds_item(0))) as received:
        assert received.fds == (-1,)
        assert received.incomplete


def test_the_name_and_the_filter_it_was_sent_with_are_told(pool: Pool) -> None:
    items = (
        build_item(ItemType.BLOOM_FILTER, pack("=Q", 4) + b"12345678"),
        build_string_item(ItemType.DST_NAME, "com.example.Name"),
    )
    with pool.receive(build(*items, flags=MessageFlag.SIGNAL)) as received:
        assert received.dst_name == "com.example.Name"
        assert received.filter == Filter(4, b"12345678")
        assert received.is_signal


def test_metadata_is_told_even_after_the_message_was_closed(pool: Pool) -> None:
    payload = os.urandom(COPY_LIMIT)
    items = (
        off(len(payload), ONE_PART + 40),
        build_numbers_item(ItemType.TIMESTAMP, 1, 2, 3),
    )
    received = pool.receive(build(*items, payload=payload))
    received.close()
    assert received.metadata.timestamp == Stamp(1, 2, 3)
    assert received.metadata.creds is None


def notice(type: ItemType, name: str, *numbers: int) -> bytes:
    return build_item(type, pack("=4Q", *numbers) + name.encode() + b"\0")


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (
            notice(ItemType.NAME_CHANGE, "com.example.A", 1, 32, 2, 33),
            NameChanged(
                ItemType.NAME_CHANGE,
                "com.example.A",
                1,
                NameFlag.PRIMARY,
                2,
                NameFlag.PRIMARY | NameFlag.REPLACE_EXISTING,
            ),
        ),
        (build_numbers_item(ItemType.ID_ADD, 4, 1), IdChanged(ItemType.ID_ADD, 4, 1)),
        (build_numbers_item(ItemType.ID_REMOVE, 4, 1), IdChanged(ItemType.ID_REMOVE, 4, 1)),
        (build_item(ItemType.REPLY_DEAD, b""), ReplyDead(17)),
        (build_item(ItemType.REPLY_TIMEOUT, b""), ReplyTimeout(17)),
    ],
)
def test_notifications_have_a_type(pool: Pool, item: bytes, expected: object) -> None:
    with pool.receive(build(item, src=0, type=0, last=17)) as received:
        assert received.notification == expected


def test_nobody_but_the_broker_notifies(pool: Pool) -> None:
    with pool.receive(build(build_numbers_item(ItemType.ID_ADD, 4, 1), type=0)) as received:
        assert received.notification is None


def test_one_that_is_not_closed_is_reported_and_its_slice_given_back(pool: Pool) -> None:
    payload = os.urandom(COPY_LIMIT)
    received = pool.receive(build(off(len(payload), ONE_PART), payload=payload))
    with pytest.warns(ResourceWarning, match="not closed"):
        del received
    assert pool.now == [AT]


# What is not believed


@pytest.mark.parametrize(
    "message",
    [
        build()[:56],
        build(size=0),
        build(size=56),
        build(size=72),
        build(size=1 << 63),
        build(off(5, ONE_PART), payload=b"hell"[:4], size=ONE_PART - 4),
        build(pack("=2Q", 15, ItemType.PAYLOAD_OFF)),
        build(pack("=2Q", 1 << 62, ItemType.PAYLOAD_OFF) + bytes(16)),
        build(build_item(ItemType.PAYLOAD_OFF, bytes(8))),
        build(off(5, 0), payload=b"hello"),
        build(off(5, ONE_PART - 8), payload=b"hello"),
        build(off(9, ONE_PART), payload=b"hello"),
        build(off(1 << 63, ONE_PART), payload=b"hello"),
        build(off(8, (1 << 64) - 8), payload=b"hello"),
        build(off(1 << 40, ZERO_FILL)),
        build(build_item(ItemType.PAYLOAD_MEMFD, bytes(16))),
        build(build_item(ItemType.FDS, bytes(3))),
    ],
)
def test_a_message_that_contradicts_its_slice_is_refused(pool: Pool, message: bytes) -> None:
    pool.refuse(message)


def test_a_descriptor_belongs_to_one_item_only(pool: Pool) -> None:
    ends = list(os.pipe())
    pool.refuse(build(fds_item(0, 0)), list(ends))
    assert [is_open(fd) for fd in ends] == [False, True]  # the answer closes what was not taken
    os.close(ends[1])


@pytest.mark.parametrize(("offset", "size"), [(POOL_SIZE - 64, 128), (1 << 63, 64), (0, 1 << 63)])
def test_a_slice_outside_of_the_pool_is_refused(pool: Pool, offset: int, size: int) -> None:
    with pytest.raises(KdbusError) as refusal:
        Received(pool.view, offset, size, fds=[])
    assert refusal.value.errno == EBADMSG


@given(
    body=st.binary(max_size=200),
    size=st.one_of(st.integers(0, 300), st.integers(0, (1 << 64) - 1)),
    flags=st.sampled_from([0, 1, 4]),
)
def test_whatever_lies_in_a_slice_it_is_a_message_or_refused(body: bytes, size: int, flags: int) -> None:
    pool = Pool()
    try:
        data = MSG.pack(size, flags, 0, 1, 0, 0, 1, 0) + body
        slice_size = pool.put(data)
        try:
            received = Received(pool.view, AT, slice_size, fds=[])
        except KdbusError as error:
            assert error.errno == EBADMSG  # noqa: PT017 - being refused is right as well
            return
        with received:
            for look in ("payload", "metadata", "notification", "filter", "fds", "pieces"):
                try:
                    getattr(received, look)
                except KdbusError as error:
                    assert error.errno in (EBADMSG, EBADF)  # noqa: PT017 - either is right
    finally:
        pool.view.close()
        os.close(pool.fd)
