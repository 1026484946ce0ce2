"""What a message is as the bytes of a SEND: read back as the broker would, descriptors included."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EINVAL, EMFILE
from typing import Any

import pytest

from kdbus_core.abi import (
    CMD_SEND,
    DST_BROADCAST,
    MAX_MEMFDS,
    MAX_VEC_PAYLOAD,
    MSG,
    PAYLOAD_DBUS,
    ItemType,
    MessageFlag,
    SendFlag,
)
from kdbus_core.caller import SEALS_REQUIRED
from kdbus_core.errors import KdbusError
from kdbus_core.items import FD, MEMFD, VEC, Item, iterate_items, validate_item
from kdbus_core.matches import Filter
from kdbus_core.message import Zeros
from kdbus_core.transport.client.operations import close_fds
from kdbus_core.transport.client.received import SealedMemory
from kdbus_core.transport.client.sending import MAX_PARTS, MEMFD_THRESHOLD, Draft, build_send
from kdbus_core.transport.files import make_memfd, memory_seals, read_memfd
from kdbus_core.transport.protocol import CARRIED, MAX_FDS, MAX_INLINE


@dataclass
class Sent:
    """A SEND as the broker reads it."""

    header: tuple[int, ...]
    command: tuple[int, ...]
    command_items: list[Item]
    items: list[Item]
    payload: list[bytes | Zeros]
    memory: bytes

    @property
    def kinds(self) -> list[ItemType]:
        return [ItemType(item.type) for item in self.items]


def read(draft: Draft) -> Sent:
    """Read a draft as the broker would; its own descriptors are closed."""
    memory = draft.body
    fds = list(draft.fds)
    try:
        assert len(memory) <= MAX_INLINE
        if draft.flags & CARRIED:
            carrier = fds.pop()
            memory += read_memfd(carrier, 0, os.fstat(carrier).st_size)
        command = CMD_SEND.unpack_from(memory)
        address = command[3]
        assert address % 8 == 0
        header = MSG.unpack_from(memory, address)
        message = memory[address : address + header[0]]
        items = list(iterate_items(message, MSG.size))
        payload: list[bytes | Zeros] = []
        for item in items:
            validate_item(item)
            if item.type == ItemType.PAYLOAD_VEC:
                size, start = VEC.unpack(item.payload)
                assert start + size <= len(memory)
                payload.append(memory[start : start + size] if start else Zeros(size))
            elif item.type == ItemType.PAYLOAD_MEMFD:
                start, size, index, _ = MEMFD.unpack(item.payload)
                assert (memory_seals(fds[index]) or 0) & SEALS_REQUIRED == SEALS_REQUIRED
                payload.append(read_memfd(fds[index], start, size))
        command_items = list(iterate_items(memory[: command[0]], CMD_SEND.size))
        return Sent(header, command, command_items, items, payload, memory)
    finally:
        close_fds(draft.owned)


def sent(parts: Any, destination: int | str | None = 7, **options: Any) -> Sent:
    return read(build_send(parts, destination, **options))


def joined(payload: Sequence[bytes | Zeros]) -> bytes:
    return b"".join(bytes(part.size) if isinstance(part, Zeros) else part for part in payload)


def test_a_short_message_is_one_part_in_the_packet() -> None:
    draft = build_send(b"hello", 7, cookie=3)
    assert (draft.fds, draft.owned, draft.flags) == ((), (), 0)
    message = read(draft)
    assert message.payload == [b"hello"]
    assert message.header[1:] == (0, 0, 7, 0, PAYLOAD_DBUS, 3, 0)
    assert message.command == (CMD_SEND.size, 0, 0, CMD_SEND.size, 0, 0, 0)


def test_everything_that_is_said_of_a_message_is_in_its_header() -> None:
    message = sent(
        b"x",
        flags=MessageFlag.NO_AUTO_START,
        priority=-5,
        payload_type=9,
        cookie=1 << 63,
        cookie_reply=12,
    )
    assert message.header[1:] == (MessageFlag.NO_AUTO_START, -5, 7, 0, 9, 1 << 63, 12)


def test_a_request_has_its_deadline_in_place_of_a_cookie() -> None:
    assert sent(b"x", flags=MessageFlag.EXPECT_REPLY, timeout_ns=55).header[-1] == 55


def test_a_call_expects_a_reply() -> None:
    message = sent(b"x", is_sync=True, timeout_ns=55)
    assert message.header[1] == MessageFlag.EXPECT_REPLY
    assert message.command[1] == SendFlag.SYNC_REPLY


@pytest.mark.parametrize("parts", [b"x", [b"x", b"y"]])
def test_a_name_is_an_item(parts: Any) -> None:
    message = sent(parts, "com.example.Name")
    assert message.header[3] == 0
    (name,) = (item.string for item in message.items if item.type == ItemType.DST_NAME)
    assert name == "com.example.Name"
    assert joined(message.payload) == b"".join(parts) if isinstance(parts, list) else parts


def test_a_name_may_have_to_belong_to_an_id() -> None:
    message = sent(b"x", "com.example.Name", dst_id=4)
    assert message.header[3] == 4
    assert ItemType.DST_NAME in message.kinds


def test_a_filter_makes_it_a_signal() -> None:
    message = sent(b"x", None, filter=Filter(2, bytes(64)))
    assert message.header[1] == MessageFlag.SIGNAL
    assert message.header[3] == DST_BROADCAST
    (item,) = (item for item in message.items if item.type == ItemType.BLOOM_FILTER)
    assert item.payload == b"\2" + bytes(7) + bytes(64)


@pytest.mark.parametrize(
    "part",
    [
        bytearray(b"abcdefgh"),
        memoryview(b"abcdefgh"),
        memoryview(b"abcdefgh").cast("I"),
        memoryview(b"hgfedcba")[::-1],
    ],
)
def test_anything_that_has_bytes_is_a_part(part: Any) -> None:
    assert sent([part]).payload == [b"abcdefgh"]
    assert joined(sent(part).payload) == b"abcdefgh"


def test_parts_keep_their_order_and_empty_ones_are_left_out() -> None:
    fd = make_memfd(b"memory", name="test", sealed=True)
    try:
        message = sent([b"a", b"", Zeros(3), SealedMemory(fd, 1, 2), b"bc", Zeros(0), SealedMemory(fd, 0, 0)])
    finally:
        os.close(fd)
    assert message.payload == [b"a", Zeros(3), b"em", b"bc"]


def test_there_may_be_no_payload() -> None:
    assert sent(b"").kinds == []
    assert sent([]).kinds == []


@pytest.mark.parametrize("size", [MAX_INLINE - 200, MAX_INLINE, MAX_INLINE + 1, MEMFD_THRESHOLD - 1])
@pytest.mark.parametrize("destination", [7, "com.example.Name"])
def test_what_does_not_fit_into_a_packet_is_carried(size: int, destination: int | str) -> None:
    payload = os.urandom(size)
    draft = build_send(payload, destination)
    assert bool(draft.flags & CARRIED) == (size >= MAX_INLINE)
    assert len(draft.owned) == (size >= MAX_INLINE)
    message = read(draft)
    assert ItemType.PAYLOAD_VEC in message.kinds
    assert joined(message.payload) == payload


def test_what_is_large_is_sealed_memory() -> None:
    payload = os.urandom(MEMFD_THRESHOLD)
    draft = build_send([b"head", payload, b"tail"], 7)
    assert not draft.flags & CARRIED
    message = read(draft)
    assert message.kinds == [ItemType.PAYLOAD_VEC, ItemType.PAYLOAD_MEMFD, ItemType.PAYLOAD_VEC]
    assert joined(message.payload) == b"head" + payload + b"tail"


def test_of_a_broadcast_only_what_cannot_go_otherwise_is_sealed_memory() -> None:
    filter = Filter(0, bytes(64))
    assert ItemType.PAYLOAD_MEMFD not in sent(bytes(MAX_VEC_PAYLOAD), None, filter=filter).kinds
    assert ItemType.PAYLOAD_MEMFD in sent(bytes(MAX_VEC_PAYLOAD + 1), None, filter=filter).kinds


def test_many_parts_that_are_too_much_together_go_together() -> None:
    parts = [os.urandom(MEMFD_THRESHOLD - 1) for _ in range(5)]
    message = sent([parts[0], parts[1], Zeros(8), *parts[2:]])
    assert message.kinds == [ItemType.PAYLOAD_MEMFD, ItemType.PAYLOAD_VEC, ItemType.PAYLOAD_MEMFD]
    assert joined(message.payload) == b"".join((*parts[:2], bytes(8), *parts[2:]))


def test_more_large_parts_than_a_message_has_memory_for_go_together() -> None:
    parts = [bytes([index]) * MEMFD_THRESHOLD for index in range(MAX_MEMFDS + 1)]
    message = sent(parts)
    assert len(message.items) == 1
    assert joined(message.payload) == b"".join(parts)


def test_more_parts_than_a_command_has_room_for_go_together() -> None:
    parts = [bytes([index % 256]) for index in range(MAX_PARTS + 1)]
    message = sent(parts)
    assert len(message.items) == 1
    assert joined(message.payload) == b"".join(parts)


def test_descriptors_are_indices_and_stay_the_callers() -> None:
    ends = os.pipe()
    try:
        fd = make_memfd(b"memory", name="test", sealed=True)
        draft = build_send(
            [SealedMemory(fd, 0, 6)], 7, fds=ends, is_sync=True, timeout_ns=1, cancel_fd=ends[0]
        )
        assert draft.fds == (*ends, fd, ends[0])
        assert draft.owned == ()
        message = read(draft)
        os.close(fd)
        (fds,) = (item for item in message.items if item.type == ItemType.FDS)
        assert list(FD.iter_unpack(fds.payload)) == [(0,), (1,)]
        (cancel,) = message.command_items
        assert (cancel.type, FD.unpack(cancel.payload)) == (ItemType.CANCEL_FD, (3,))
    finally:
        close_fds(ends)


def test_more_descriptors_than_a_packet_takes_are_refused_and_nothing_is_left() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(KdbusError) as refusal:
        build_send(bytes(MAX_INLINE), 7, fds=[0] * MAX_FDS)
    assert refusal.value.errno == EMFILE
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"cookie": 1 << 64},
        {"cookie": -1},
        {"priority": 1 << 63},
        {"destination": -1},
        {"destination": "com.example.\u20ac"},
        {"timeout_ns": 5, "cookie_reply": 5},
    ],
)
@pytest.mark.parametrize("parts", [b"x", bytes(MAX_INLINE), [b"x", b"y"]])
def test_what_cannot_be_said_is_refused_and_nothing_is_left(parts: Any, wrong: dict[str, Any]) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(KdbusError) as refusal:
        build_send(parts, **{"destination": 7, **wrong})
    assert refusal.value.errno == EINVAL
    assert os.listdir("/proc/self/fd") == before
