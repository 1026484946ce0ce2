"""From the bytes of a message to a message that can be delivered.

The checks stand in the order of kdbus' table: the header, then each item as
it comes, then the message as a whole, then the files behind its descriptors,
and last the payload is read.  A message that passes may still be refused by
its receiver; it will never be malformed.

References to files are taken one by one and belong to this module until the
message has them; a message that is refused half-way gives them all back.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import (
    E2BIG,
    EBADF,
    EBADMSG,
    EDESTADDRREQ,
    EDOM,
    EFAULT,
    EINVAL,
    EMEDIUMTYPE,
    EMFILE,
    EMSGSIZE,
    ENOTUNIQ,
    EOPNOTSUPP,
    ETXTBSY,
)
from typing import TYPE_CHECKING, NamedTuple

from kdbus_core.abi import (
    DST_BROADCAST,
    DST_NAME,
    MAX_FDS,
    MAX_MEMFDS,
    MAX_VEC_PAYLOAD,
    PAYLOAD_KERNEL,
    ItemType,
    MessageFlag,
)
from kdbus_core.caller import SEALS_REQUIRED, Caller, File, FileKind
from kdbus_core.commands.forms import Arguments, is_in_memory, read_memory
from kdbus_core.errors import KdbusError
from kdbus_core.items import FD, MEMFD, NUMBER, VEC, Item
from kdbus_core.matches import Filter
from kdbus_core.message import DstName, Fds, Memfd, Message, MessageItem, Vec, Zeros
from kdbus_core.names import is_valid_name

if TYPE_CHECKING:
    from kdbus_core.connection import Connection

_EXPECT_REPLY = int(MessageFlag.EXPECT_REPLY)
_SIGNAL = int(MessageFlag.SIGNAL)
_LIMIT = 1 << 64


class _Header(NamedTuple):
    """The fields of a message after its flags; `timeout_or_reply` is a deadline or the cookie replied to."""

    priority: int
    dst_id: int
    src_id: int
    payload_type: int
    cookie: int
    timeout_or_reply: int


def build_message(connection: Connection, caller: Caller, draft: Arguments, *, is_sync: bool) -> Message:
    """The message of a draft, which holds the files it needs; the errnos are those of kdbus' table."""
    header = _Header(*draft.fields)
    _check_header(header, draft.flags, connection.id, is_sync=is_sync)
    _check_items(draft.items, header, connection.endpoint.bus.bloom.size)
    _check_whole(draft, header)
    files = _Files(caller)
    try:
        staged = [files.resolve(item) for item in draft.items]
        items = [
            _read_vec(caller, item) if resolved is None else resolved
            for item, resolved in zip(draft.items, staged, strict=True)
        ]
        expects_reply = draft.flags & _EXPECT_REPLY
        return Message(
            items,
            flags=draft.flags,
            priority=header.priority,
            dst_id=header.dst_id,
            payload_type=header.payload_type,
            cookie=header.cookie,
            timeout_ns=header.timeout_or_reply if expects_reply else 0,
            cookie_reply=0 if expects_reply else header.timeout_or_reply,
        )
    except BaseException:
        files.close()
        raise


def _check_header(header: _Header, flags: int, own_id: int, *, is_sync: bool) -> None:
    is_signal = flags & _SIGNAL
    expects_reply = flags & _EXPECT_REPLY
    is_broadcast = header.dst_id == DST_BROADCAST
    if header.src_id not in (0, own_id):
        raise KdbusError(EINVAL, f"connection {own_id} cannot send as {header.src_id}")
    if header.payload_type == PAYLOAD_KERNEL:
        raise KdbusError(EINVAL, "only the broker sends this type of payload")
    if is_broadcast and not is_signal:
        raise KdbusError(EBADMSG, "only a signal can be broadcast")
    if is_broadcast and header.timeout_or_reply:
        raise KdbusError(ENOTUNIQ, "a broadcast neither expects a reply nor is one")
    if expects_reply and not header.timeout_or_reply:
        raise KdbusError(EINVAL, "a reply is expected but until no time")
    if expects_reply and is_signal:
        raise KdbusError(ENOTUNIQ, "a signal does not expect a reply")
    if is_sync and not expects_reply:
        raise KdbusError(EINVAL, "a synchronous call expects a reply")
    if is_signal and header.timeout_or_reply:
        raise KdbusError(EINVAL, "a signal is not a reply")


def _check_items(items: Sequence[Item], header: _Header, bloom_size: int) -> None:
    """Each item by itself and together with those before it; the first that fails decides."""
    payload = memfds = 0
    for item in items:
        match item.type:
            case ItemType.PAYLOAD_VEC:
                size, address = VEC.unpack(item.payload)
                payload += size
                _check_vec(address, size, payload)
            case ItemType.PAYLOAD_MEMFD:
                memfds += 1
                _check_memfd(item, memfds)
            case ItemType.FDS:
                if len(item.payload) // FD.size > MAX_FDS:
                    raise KdbusError(EMFILE, f"more than {MAX_FDS} descriptors")
            case ItemType.BLOOM_FILTER:
                _check_filter(len(item.payload) - NUMBER.size, bloom_size)
            case _:
                _check_dst_name(item.string, header.dst_id)


def _check_vec(address: int, size: int, total: int) -> None:
    if total > MAX_VEC_PAYLOAD:
        raise KdbusError(EMSGSIZE, f"a payload of {total} bytes where {MAX_VEC_PAYLOAD} are allowed")
    if address and not is_in_memory(address, size):
        raise KdbusError(EFAULT, f"{size} bytes at {address:#x} are not the caller's")


def _check_memfd(item: Item, count: int) -> None:
    start, size, _, _ = MEMFD.unpack(item.payload)
    if start + size >= _LIMIT:
        raise KdbusError(EMSGSIZE, f"{size} bytes from {start} do not fit into any file")
    if count > MAX_MEMFDS:
        raise KdbusError(E2BIG, f"more than {MAX_MEMFDS} payloads in shared memory")


def _check_filter(size: int, bloom_size: int) -> None:
    if size % 8:
        raise KdbusError(EFAULT, f"a bloom filter of {size} bytes")
    if size != bloom_size:
        raise KdbusError(EDOM, f"a bloom filter of {size} bytes where the bus has {bloom_size}")


def _check_dst_name(name: str, dst_id: int) -> None:
    if not is_valid_name(name):
        raise KdbusError(EINVAL, f"{name!r} is not a well-known name")
    if dst_id == DST_BROADCAST:
        raise KdbusError(EBADMSG, "a broadcast is not for a name")


def _check_whole(draft: Arguments, header: _Header) -> None:
    is_signal = bool(draft.flags & _SIGNAL)
    if is_signal != (draft.find(ItemType.BLOOM_FILTER) is not None):
        raise KdbusError(EBADMSG, "signals, and nothing else, have a bloom filter")
    if header.dst_id == DST_NAME and draft.find(ItemType.DST_NAME) is None:
        raise KdbusError(EDESTADDRREQ, "neither an id nor a name to send to")
    fds = draft.find(ItemType.FDS)
    if header.dst_id == DST_BROADCAST and fds is not None and fds.payload:
        raise KdbusError(ENOTUNIQ, "descriptors cannot be broadcast")


def _read_vec(caller: Caller, item: Item) -> Vec | Zeros:
    size, address = VEC.unpack(item.payload)
    return Vec(read_memory(caller, address, size)) if address else Zeros(size)


# Files


class _Files:
    """The references taken for one message, until the message has them."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._held: list[File] = []

    def close(self) -> None:
        """Give all references back."""
        for file in self._held:
            file.close()
        self._held.clear()

    def resolve(self, item: Item) -> MessageItem | None:
        """The item with its files; None for payload that is yet to be read."""
        match item.type:
            case ItemType.PAYLOAD_VEC:
                return None
            case ItemType.PAYLOAD_MEMFD:
                start, size, fd, _ = MEMFD.unpack(item.payload)
                return Memfd(start, size, self._take_memory(fd, start + size))
            case ItemType.FDS:
                return Fds(tuple(self._take(fd) for (fd,) in FD.iter_unpack(item.payload)))
            case ItemType.BLOOM_FILTER:
                generation: int = NUMBER.unpack_from(item.payload)[0]
                return Filter(generation, item.payload[NUMBER.size :])
            case _:
                return DstName(item.string)

    def _hold(self, fd: int) -> File:
        file = open_file(self._caller, fd)
        self._held.append(file)
        return file

    def _take(self, fd: int) -> File:
        """A file to hand over: EBADF, and EOPNOTSUPP for what could carry files itself."""
        file = self._hold(fd)
        if file.kind in (FileKind.BUS_HANDLE, FileKind.UNIX_SOCKET):
            raise KdbusError(EOPNOTSUPP, f"descriptor {fd} is a {file.kind.name.lower()}")
        return file

    def _take_memory(self, fd: int, end: int) -> File:
        """Sealed memory of at least `end` bytes: EBADF, EMEDIUMTYPE, ETXTBSY, EFAULT."""
        file = self._hold(fd)
        if file.seals is None:
            raise KdbusError(EMEDIUMTYPE, f"descriptor {fd} is not shared memory")
        if file.seals & SEALS_REQUIRED != SEALS_REQUIRED:
            raise KdbusError(ETXTBSY, f"the shared memory behind descriptor {fd} can still change")
        if end > file.size:
            raise KdbusError(EFAULT, f"{end} bytes where descriptor {fd} has {file.size}")
        return file


def open_file(caller: Caller, fd: int) -> File:
    """A new reference to the file behind a descriptor; EBADF when it is not open."""
    file = caller.file(fd) if fd >= 0 else None
    if file is None:
        raise KdbusError(EBADF, f"descriptor {fd} is not open")
    return file
