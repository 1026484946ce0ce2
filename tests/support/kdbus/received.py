"""What the broker wrote into a pool, decoded as strictly as a wary client would.

`Received` is a message, `Info` a record of LIST, CONN_INFO or BUS_CREATOR_INFO. Both copy what they were made
from, so that the slice can be given back at once. Decoding fails on anything out of place: an item that
does not fill its area, metadata out of order, payload that is not where PAYLOAD_OFF should say it is.
"""

from __future__ import annotations

from struct import unpack, unpack_from
from typing import TYPE_CHECKING

from . import decode, layout
from .decode import Caps, Creds, Item, Pids, Timestamp
from .layout import ZERO_FILL, ItemType, align

if TYPE_CHECKING:
    from .task import Task


class Items:
    """Something that has items."""

    items: list[Item]

    @property
    def kinds(self) -> list[ItemType]:
        """The types of all items, in order."""
        return [item.type for item in self.items]

    def all(self, kind: ItemType) -> list[bytes]:
        """The payloads of all items of a type."""
        return [item.data for item in self.items if item.type == kind]

    def has(self, kind: ItemType) -> bool:
        return any(item.type == kind for item in self.items)

    def one(self, kind: ItemType) -> bytes:
        """The payload of the only item of a type."""
        (data,) = self.all(kind)
        return data

    def text(self, kind: ItemType) -> str:
        """The string of the only item of a type."""
        return self.one(kind)[:-1].decode()

    @property
    def creds(self) -> Creds:
        return Creds(*decode.parse_numbers(self.one(ItemType.CREDS)))

    @property
    def pids(self) -> Pids:
        return Pids(*decode.parse_numbers(self.one(ItemType.PIDS)))

    @property
    def auxgroups(self) -> tuple[int, ...]:
        return decode.parse_numbers(self.one(ItemType.AUXGROUPS))

    @property
    def caps(self) -> Caps:
        return decode.parse_caps(self.one(ItemType.CAPS))

    @property
    def audit(self) -> tuple[int, int]:
        """sessionid, loginuid."""
        sessionid, loginuid = unpack("=2I", self.one(ItemType.AUDIT))
        return sessionid, loginuid

    @property
    def names(self) -> list[tuple[str, int]]:
        """Owned names with their flags."""
        return [(data[8:-1].decode(), unpack_from("=Q", data)[0]) for data in self.all(ItemType.OWNED_NAME)]

    @property
    def description(self) -> str:
        return self.text(ItemType.CONN_DESCRIPTION)

    @property
    def metadata_kinds(self) -> list[ItemType]:
        """The types of the metadata items, in order."""
        return [kind for kind in self.kinds if kind in layout.METADATA_ORDER]


class Info(Items):
    """A record: whose it is (`id`), their flags, and what is told of them."""

    def __init__(self, raw: bytes) -> None:
        header: tuple[int, ...] = unpack_from("=3Q", raw)
        self.size, self.id, self.flags = header
        assert self.size == len(raw)
        self.items = list(decode.walk(raw, layout.INFO_SIZE, self.size))
        decode.check_metadata_order(self.kinds)


def parse_infos(raw: bytes) -> list[Info]:
    """The records of LIST: one after the other, each at a multiple of 8."""
    infos = []
    at = 0
    while at < len(raw):
        (size,) = unpack_from("=Q", raw, at)
        assert layout.INFO_SIZE <= size <= len(raw) - at
        infos.append(Info(raw[at : at + size]))
        at += align(size)
    assert at - len(raw) < 8
    return infos


class Received(Items):
    """A message out of a pool.

    `offset`, `msg_size` and `return_flags` are what RECV (or a synchronous SEND) said; `dropped` is the lost
    counter. The other attributes are the header's; `cookie_reply` is the field that is `timeout_ns` in a
    message with EXPECT_REPLY.
    """

    def __init__(
        self, raw: bytes, task: Task, *, offset: int = 0, return_flags: int = 0, dropped: int = 0
    ) -> None:
        self.raw = raw
        self.task = task
        self.offset = offset
        self.msg_size = len(raw)
        self.return_flags = return_flags
        self.dropped = dropped
        header: tuple[int, ...] = unpack_from("=2Qq5Q", raw)
        (
            self.size,
            self.flags,
            self.priority,
            self.dst_id,
            self.src_id,
            self.payload_type,
            self.cookie,
            self.cookie_reply,
        ) = header
        assert offset % 8 == 0
        assert len(raw) % 8 == 0, f"a slice of {len(raw)} bytes"
        assert layout.MSG_SIZE <= self.size <= len(raw)
        self.items = list(decode.walk(raw, layout.MSG_SIZE, self.size))
        decode.check_metadata_order(self.kinds)
        self.payload_offsets = self._check_payload()

    @property
    def timeout_ns(self) -> int:
        return self.cookie_reply

    def _check_payload(self) -> list[int]:
        """Fail unless the parts of the payload follow each other after the items; returns their offsets."""
        at = align(self.size)
        offsets = []
        for kind, data, _ in self.items:
            if kind == ItemType.PAYLOAD_OFF:
                size, offset = unpack("=2Q", data)
                offsets.append(offset)
                if offset == ZERO_FILL:
                    assert not any(self.raw[at : at + size % 8])
                    at += size % 8
                else:
                    assert offset == at, f"payload is said to be at {offset} and should be at {at}"
                    at += size
            elif kind == ItemType.PAYLOAD_MEMFD:
                _, size = unpack_from("=2Q", data)
                assert not any(self.raw[at : at + size % 8])
                at += size % 8
        assert align(at) == len(self.raw), f"payload ends at {at} in a slice of {len(self.raw)} bytes"
        return offsets

    @property
    def payload(self) -> bytes:
        """All payload as one stream: stored bytes, zeros, and what memfds hold."""
        parts = []
        for kind, data, _ in self.items:
            if kind == ItemType.PAYLOAD_OFF:
                size, offset = unpack("=2Q", data)
                parts.append(bytes(size) if offset == ZERO_FILL else self.raw[offset : offset + size])
            elif kind == ItemType.PAYLOAD_MEMFD:
                start, size, fd = unpack_from("=2Qi", data)
                parts.append(self.task.content(fd)[start : start + size])
        return b"".join(parts)

    @property
    def fds(self) -> list[int]:
        """The descriptors of FDS, -1 where none was installed."""
        return [fd for data in self.all(ItemType.FDS) for fd in unpack(f"={len(data) // 4}i", data)]

    @property
    def memfds(self) -> list[int]:
        return [unpack_from("=i", data, 16)[0] for data in self.all(ItemType.PAYLOAD_MEMFD)]

    def close_fds(self) -> None:
        """Close every descriptor that came with the message."""
        for fd in self.fds + self.memfds:
            if fd >= 0:
                self.task.close(fd)

    @property
    def timestamp(self) -> Timestamp:
        return Timestamp(*decode.parse_numbers(self.one(ItemType.TIMESTAMP)))

    @property
    def is_notification(self) -> bool:
        return self.payload_type == layout.PAYLOAD_KERNEL

    @property
    def kind(self) -> ItemType:
        """The type of the first item: what a notification is about."""
        return self.items[0].type

    @property
    def change(self) -> tuple[ItemType, str, int, int]:
        """A NAME_* notification as (type, name, old id, new id)."""
        old, _, new, _ = unpack_from("=4Q", self.items[0].data)
        return self.kind, self.items[0].data[32:-1].decode(), old, new

    @property
    def change_flags(self) -> tuple[int, int]:
        """Of a NAME_* notification: the old owner's flags and the new one's."""
        _, old_flags, _, new_flags = unpack_from("=4Q", self.items[0].data)
        return old_flags, new_flags

    @property
    def arrival(self) -> tuple[ItemType, int]:
        """An ID_* notification as (type, id)."""
        (id,) = unpack_from("=Q", self.items[0].data)
        return self.kind, id
