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
_NO_STAMP = Stamp(0, 0, 0)


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


class Layout:
    """How a message lies in a pool, which follows from the sizes of what it carries and not from the content.

    `items` are those of the sender with empty slots: `offsets` says where in them the place of a payload
    belongs, which is so many bytes after the payload's beginning; `fd_slots` and `memfd_slots` say
    where in the message, in the order of its files.  `payload_size` is without the padding at its end.
    """

    __slots__ = (
        "dst_name",
        "fd_slots",
        "filter",
        "items",
        "memfd_slots",
        "offsets",
        "padding",
        "payload_size",
    )

    def __init__(self, items: Sequence[MessageItem]) -> None:
        self.dst_name: str | None = None
        self.filter: Filter | None = None
        staged: list[bytes] = []
        offsets: list[tuple[int, int]] = []
        fd_slots: list[int] = []
        memfd_slots: list[int] = []
        at, end = MSG.size, 0
        for item in items:
            # Nearly all items are these; a case would look at its class and its fields first.
            if isinstance(item, Vec):
                offsets.append((at - MSG.size + _OFFSET_IN_ITEM, end))
                staged.append(_PAYLOAD_OFF.pack(*_PAYLOAD_OFF_HEADER, len(item.data), 0))
                at += _PAYLOAD_OFF.size
                end += len(item.data)
                continue
            match item:
                case Zeros(size):
                    end += size % 8
                    built = build_item(ItemType.PAYLOAD_OFF, VEC.pack(size, ZERO_FILL))
                case Memfd(start, size):
                    memfd_slots.append(at + ITEM_HEADER.size + 16)
                    end += size % 8
                    built = build_item(ItemType.PAYLOAD_MEMFD, MEMFD.pack(start, size, NO_FD, 0))
                case Fds(files):
                    fd_slots.extend(at + ITEM_HEADER.size + FD.size * index for index in range(len(files)))
                    built = build_item(ItemType.FDS, FD.pack(NO_FD) * len(files))
                case DstName(name):
                    self.dst_name = name
                    built = build_string_item(ItemType.DST_NAME, name)
                case Filter(generation, bits):
                    self.filter = item
                    built = build_item(ItemType.BLOOM_FILTER, NUMBER.pack(generation) + bits)
            staged.append(built)
            at += len(built)
        self.items = b"".join(staged)
        self.offsets = tuple(offsets)
        self.fd_slots = tuple(fd_slots)
        self.memfd_slots = tuple(memfd_slots)
        self.payload_size = end
        self.padding = bytes(-end % 8)

    def place(self, start: int) -> bytes:
        """The items of a message whose payload begins so many bytes after its own beginning."""
        if not self.offsets:
            return self.items
        placed = bytearray(self.items)
        for at, offset in self.offsets:
            NUMBER.pack_into(placed, at, start + offset)
        return bytes(placed)


class Message:
    """A message with one holder, whoever made it; sizes in bytes, `timeout_ns` of the monotonic clock.

    `fd_count` counts the files that are handed over; memory in the payload is
    not among them.  `parts` are the payload's.  `sender` and `stamp`, its place in the bus' order, are given
    when it is sent; `sent` is what was true of the sender then, if the message may move on.  `origin` finds
    out which process sends it, None for the one that the sender is.  `layout` may be that of an earlier
    message with items alike.
    """

    __slots__ = (
        "_holders",
        "_memfds",
        "_payload",
        "cookie",
        "cookie_reply",
        "dst_id",
        "dst_name",
        "fd_count",
        "files",
        "filter",
        "flags",
        "layout",
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
        layout: Layout | None = None,
    ) -> None:
        if layout is None:
            layout = Layout(items)
        self.layout = layout
        self.flags = flags
        self.priority = priority
        self.dst_id = dst_id
        self.dst_name = layout.dst_name
        self.payload_type = payload_type
        self.cookie = cookie
        self.timeout_ns = timeout_ns
        self.cookie_reply = cookie_reply
        self.sender: Connection | None = None
        self.stamp = _NO_STAMP
        self.sent: AsSent | None = None
        self.origin: Origin | None = None
        self.filter = layout.filter
        self._holders = 1
        self.files: tuple[File, ...] = ()
        """What is handed over, in its order; the message owns them."""
        self._memfds: tuple[File, ...] = ()
        parts: list[Vec | Zeros | Memfd] = []
        payload: list[bytes] = []
        for item in items:
            if isinstance(item, Vec):
                parts.append(item)
                payload.append(item.data)
            elif isinstance(item, Zeros | Memfd):
                parts.append(item)
                payload.append(bytes(item.size % 8))
                if isinstance(item, Memfd):
                    self._memfds += (item.file,)
            elif isinstance(item, Fds):
                self.files += item.files
        self.fd_count = len(self.files)
        self.parts = tuple(parts)
        payload.append(layout.padding)
        self._payload = payload

    @property
    def expects_reply(self) -> bool:
        return bool(self.flags & _EXPECT_REPLY)

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
        for file in self.files:
            file.close()
        for file in self._memfds:
            file.close()

    def compose(self, metadata: bytes) -> Parcel:
        """The message as it goes into a pool, with these metadata items."""
        layout = self.layout
        size = MSG.size + len(layout.items) + len(metadata)  # metadata is padded: items are a multiple of 8
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
            (header, layout.place(size), metadata, *self._payload),
            align(size + layout.payload_size),
            message=self,
            fds=tuple(zip(layout.fd_slots, self.files, strict=True)) if self.files else (),
            memfds=tuple(zip(layout.memfd_slots, self._memfds, strict=True)) if self._memfds else (),
            fd_count=self.fd_count,
        )
