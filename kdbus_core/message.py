"""One message in flight: what the sender gave, and how it lies in a receiver's pool.

A message is a header, items in the sender's order, and payload.  It is staged
once: the payload items are rewritten to offsets, descriptors get empty slots.
For each receiver the metadata that this receiver may have is put between the
items and the payload (`compose`):

    header | sender's items | metadata items | padding | payload bytes

Payload parts lie back to back.  Zero bytes and sealed memory are not stored,
only as many bytes as keep the alignment of what follows.

A message owns the references of its files: it is held by whoever still has to
deliver it, and the last one to let go closes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from kdbus_core.abi import (
    ITEM_HEADER,
    MSG,
    PAYLOAD_DBUS,
    ZERO_FILL,
    ItemType,
    MessageFlag,
    align,
)
from kdbus_core.caller import File
from kdbus_core.inbox import Parcel
from kdbus_core.items import FD, MEMFD, NUMBER, VEC, build_item, build_string_item
from kdbus_core.matches import Filter
from kdbus_core.metadata import AsSent, Origin, Stamp

if TYPE_CHECKING:
    from kdbus_core.connection import Connection

NO_FD = -1
_PAYLOAD_OFF = Struct("=4Q")
"""A whole item PAYLOAD_OFF: size and type, then size and offset of the payload."""
_PAYLOAD_OFF_HEADER = (_PAYLOAD_OFF.size, int(ItemType.PAYLOAD_OFF))
_OFFSET_IN_ITEM = ITEM_HEADER.size + NUMBER.size
_EXPECT_REPLY = int(MessageFlag.EXPECT_REPLY)
_SIGNAL = int(MessageFlag.SIGNAL)


class Vec(NamedTuple):
    """Payload bytes."""

    data: bytes


class Zeros(NamedTuple):
    """Payload that is `size` zero bytes."""

    size: int


class Memfd(NamedTuple):
    """Payload in sealed memory: `size` bytes from `start`."""

    start: int
    size: int
    file: File


@dataclass(frozen=True, slots=True)
class Fds:
    """Files that are handed over."""

    files: tuple[File, ...]


class DstName(NamedTuple):
    """The well-known name a message is for."""

    name: str


MessageItem = Vec | Zeros | Memfd | Fds | DstName | Filter


class Message:
    """A message with one holder, whoever made it; sizes in bytes, `timeout_ns` of the monotonic clock.

    `fd_count` counts the files that are handed over; memory in the payload is
    not among them.  `parts` are the payload's.  `sender` and `stamp`, its place in the bus' order, are given
    when it is sent; `sent` is what was true of the sender then, if the message may move on.  `origin` finds
    out which process sends it, None for the one that the sender is.
    """

    __slots__ = (
        "_fd_slots",
        "_holders",
        "_items",
        "_memfd_slots",
        "_offsets",
        "_padded_payload",
        "_payload",
        "_payload_size",
        "cookie",
        "cookie_reply",
        "dst_id",
        "dst_name",
        "fd_count",
        "filter",
        "flags",
        "origin",
        "parts",
        "payload_type",
        "priority",
        "sender",
        "sent",
        "stamp",
        "timeout_ns",
    )

    def __init__(
        self,
        items: Sequence[MessageItem],
        *,
        flags: int = 0,
        priority: int = 0,
        dst_id: int = 0,
        payload_type: int = PAYLOAD_DBUS,
        cookie: int = 0,
        timeout_ns: int = 0,
        cookie_reply: int = 0,
    ) -> None:
        self.flags = flags
        self.priority = priority
        self.dst_id = dst_id
        self.dst_name: str | None = None
        self.payload_type = payload_type
        self.cookie = cookie
        self.timeout_ns = timeout_ns
        self.cookie_reply = cookie_reply
        self.sender: Connection | None = None
        self.stamp = Stamp(0, 0, 0)
        self.sent: AsSent | None = None
        self.origin: Origin | None = None
        self.filter: Filter | None = None
        self.fd_count = 0
        self._holders = 1
        self._stage(items)

    @property
    def expects_reply(self) -> bool:
        return bool(self.flags & _EXPECT_REPLY)

    @property
    def files(self) -> tuple[File, ...]:
        """What is handed over, in its order; the message owns them."""
        return tuple(file for _, file in self._fd_slots)

    @property
    def is_signal(self) -> bool:
        return bool(self.flags & _SIGNAL)

    def hold(self) -> None:
        """Be one more who needs the files."""
        self._holders += 1

    def release(self) -> None:
        """Need the files no longer; the last one closes them."""
        self._holders -= 1
        if self._holders:
            return
        for _, file in self._fd_slots:
            file.close()
        for _, file in self._memfd_slots:
            file.close()

    def _stage(self, items: Sequence[MessageItem]) -> None:
        staged: list[bytes] = []
        payload: list[bytes] = []
        # Where an offset has to be filled in, and which one from the payload's beginning.
        offsets: list[tuple[int, int]] = []
        fd_slots: list[tuple[int, File]] = []
        memfd_slots: list[tuple[int, File]] = []
        parts: list[Vec | Zeros | Memfd] = []
        at, end = MSG.size, 0
        for item in items:
            # Nearly all items are these; a case would look at its class and its fields first.
            if isinstance(item, Vec):
                size = len(item.data)
                parts.append(item)
                offsets.append((at - MSG.size + _OFFSET_IN_ITEM, end))
                payload.append(item.data)
                end += size
                staged.append(_PAYLOAD_OFF.pack(*_PAYLOAD_OFF_HEADER, size, 0))
                at += _PAYLOAD_OFF.size
                continue
            match item:
                case Zeros(size):
                    parts.append(item)
                    payload.append(bytes(size % 8))
                    end += size % 8
                    built = build_item(ItemType.PAYLOAD_OFF, VEC.pack(size, ZERO_FILL))
                case Memfd(start, size, file):
                    parts.append(item)
                    memfd_slots.append((at + ITEM_HEADER.size + 16, file))
                    payload.append(bytes(size % 8))
                    end += size % 8
                    built = build_item(ItemType.PAYLOAD_MEMFD, MEMFD.pack(start, size, NO_FD, 0))
                case Fds(files):
                    self.fd_count += len(files)
                    fd_slots.extend(
                        (at + ITEM_HEADER.size + FD.size * index, file) for index, file in enumerate(files)
                    )
                    built = build_item(ItemType.FDS, FD.pack(NO_FD) * len(files))
                case DstName(name):
                    self.dst_name = name
                    built = build_string_item(ItemType.DST_NAME, name)
                case Filter(generation, bits):
                    self.filter = item
                    built = build_item(ItemType.BLOOM_FILTER, NUMBER.pack(generation) + bits)
            staged.append(built)
            at += len(built)
        self._items = b"".join(staged)
        self._payload = tuple(part for part in payload if part)
        self._payload_size = end
        self._padded_payload = (*self._payload, bytes(-end % 8)) if end % 8 else self._payload
        self._offsets = tuple(offsets)
        self._fd_slots = tuple(fd_slots)
        self._memfd_slots = tuple(memfd_slots)
        self.parts = tuple(parts)

    def compose(self, metadata: bytes) -> Parcel:
        """The message as it goes into a pool, with these metadata items."""
        items = self._items
        size = MSG.size + len(items) + len(metadata)  # metadata is padded: items are a multiple of 8
        if self._offsets:
            patched = bytearray(items)
            for at, offset in self._offsets:
                NUMBER.pack_into(patched, at, size + offset)
            items = bytes(patched)
        header = MSG.pack(
            size,
            self.flags,
            self.priority,
            self.dst_id,
            0 if self.sender is None else self.sender.id,
            self.payload_type,
            self.cookie,
            self.timeout_ns if self.flags & _EXPECT_REPLY else self.cookie_reply,
        )
        return Parcel(
            (header, items, metadata, *self._padded_payload),
            align(size + self._payload_size),
            message=self,
            fds=self._fd_slots,
            memfds=self._memfd_slots,
            fd_count=self.fd_count,
        )
