"""From the bytes of a message to a message that can be delivered.

The checks stand in the order of kdbus' table: the header, then each item as
it comes, then the message as a whole, then the files behind its descriptors,
and last the payload is read.  A message that passes may still be refused by
its receiver; it will never be malformed.

References to files are taken one by one and belong to this module until the
message has them; a message that is refused half-way gives them all back.
"""

from __future__ import annotations

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
from kdbus_core.commands.forms import Arguments, Items, is_in_memory, read_memory
from kdbus_core.errors import KdbusError
from kdbus_core.items import FD, MEMFD, NUMBER, VEC, Item
from kdbus_core.matches import Filter
from kdbus_core.message import DstName, Fds, Layout, Memfd, Message, MessageItem, Vec, Zeros
from kdbus_core.names import is_valid_name

if TYPE_CHECKING:
    from kdbus_core.connection import Connection

_EXPECT_REPLY = int(MessageFlag.EXPECT_REPLY)
_SIGNAL = int(MessageFlag.SIGNAL)
_LIMIT = 1 << 64


class _Plan:
    """What the items of a message ask for, checked; all of it follows from their bytes and where it goes.

    A step is what an item has become already, size and address of payload that is to be read, or an item
    with descriptors.  `layout` is how the message will lie in pools, once the first one has been made.
    """

    __slots__ = ("has_fds", "has_filter", "has_name", "layout", "needs_files", "steps")

    def __init__(self, steps: list[MessageItem | _Place | Item]) -> None:
        self.steps = tuple(steps)
        self.has_filter = any(isinstance(step, Filter) for step in steps)
        self.has_name = any(isinstance(step, DstName) for step in steps)
        self.needs_files = any(isinstance(step, Item) for step in steps)
        self.has_fds = any(
            isinstance(step, Item) and step.type == ItemType.FDS and step.payload for step in steps
        )
        self.layout: Layout | None = None


class _Place(NamedTuple):
    """Payload in the caller's memory."""

    size: int
    address: int


def build_message(connection: Connection, caller: Caller, draft: Arguments, *, is_sync: bool) -> Message:
    """The message of a draft, which holds the files it needs; the errnos are those of kdbus' table."""
    priority, dst_id, src_id, payload_type, cookie, timeout_or_reply = draft.fields
    flags = draft.flags
    if src_id and src_id != connection.id:
        raise KdbusError(EINVAL, f"connection {connection.id} cannot send as {src_id}")
    _check_header(flags, dst_id, payload_type, timeout_or_reply, is_sync=is_sync)
    plan = _find_plan(draft.content, connection.endpoint.bus.bloom.size, is_broadcast=dst_id == DST_BROADCAST)
    _check_whole(plan, flags, dst_id)
    files = _Files(caller) if plan.needs_files else None
    try:
        steps = plan.steps if files is None else [files.resolve(step) for step in plan.steps]
        items: list[MessageItem] = [
            _read(caller, step) if isinstance(step, _Place) else step  # type: ignore[misc]  # no Item is left
            for step in steps
        ]
        expects_reply = flags & _EXPECT_REPLY
        message = Message(
            items,
            flags=flags,
            priority=priority,
            dst_id=dst_id,
            payload_type=payload_type,
            cookie=cookie,
            timeout_ns=timeout_or_reply if expects_reply else 0,
            cookie_reply=0 if expects_reply else timeout_or_reply,
            layout=plan.layout,
        )
        plan.layout = message.layout
        return message
    except BaseException:
        if files is not None:
            files.close()
        raise


def _check_header(
    flags: int, dst_id: int, payload_type: int, timeout_or_reply: int, *, is_sync: bool
) -> None:
    is_signal = flags & _SIGNAL
    expects_reply = flags & _EXPECT_REPLY
    is_broadcast = dst_id == DST_BROADCAST
    if payload_type == PAYLOAD_KERNEL:
        raise KdbusError(EINVAL, "only the broker sends this type of payload")
    if is_broadcast and not is_signal:
        raise KdbusError(EBADMSG, "only a signal can be broadcast")
    if is_broadcast and timeout_or_reply:
        raise KdbusError(ENOTUNIQ, "a broadcast neither expects a reply nor is one")
    if expects_reply and not timeout_or_reply:
        raise KdbusError(EINVAL, "a reply is expected but until no time")
    if expects_reply and is_signal:
        raise KdbusError(ENOTUNIQ, "a signal does not expect a reply")
    if is_sync and not expects_reply:
        raise KdbusError(EINVAL, "a synchronous call expects a reply")
    if is_signal and timeout_or_reply:
        raise KdbusError(EINVAL, "a signal is not a reply")


def _find_plan(content: Items, bloom_size: int, *, is_broadcast: bool) -> _Plan:
    """The plan for items, which is made once for all messages with the same ones."""
    # A filter is right for one size only, so there are no more than two.
    key = is_broadcast, bloom_size if ItemType.BLOOM_FILTER in content.types else 0
    plan: _Plan | None = content.found.get(key)
    if plan is None:
        plan = content.found[key] = _make_plan(content, bloom_size, is_broadcast=is_broadcast)
    return plan


def _make_plan(content: Items, bloom_size: int, *, is_broadcast: bool) -> _Plan:
    """Each item by itself and together with those before it; the first that fails decides."""
    payload = memfds = 0
    steps: list[MessageItem | _Place | Item] = []
    for item in content.all:
        match item.type:
            case ItemType.PAYLOAD_VEC:
                size, address = VEC.unpack(item.payload)
                payload += size
                _check_vec(address, size, payload)
                steps.append(_Place(size, address) if address else Zeros(size))
            case ItemType.PAYLOAD_MEMFD:
                memfds += 1
                _check_memfd(item, memfds)
                steps.append(item)
            case ItemType.FDS:
                if len(item.payload) // FD.size > MAX_FDS:
                    raise KdbusError(EMFILE, f"more than {MAX_FDS} descriptors")
                steps.append(item)
            case ItemType.BLOOM_FILTER:
                _check_filter(len(item.payload) - NUMBER.size, bloom_size)
                generation: int = NUMBER.unpack_from(item.payload)[0]
                steps.append(Filter(generation, item.payload[NUMBER.size :]))
            case _:
                _check_dst_name(item.string, is_broadcast=is_broadcast)
                steps.append(DstName(item.string))
    return _Plan(steps)


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


def _check_dst_name(name: str, *, is_broadcast: bool) -> None:
    if not is_valid_name(name):
        raise KdbusError(EINVAL, f"{name!r} is not a well-known name")
    if is_broadcast:
        raise KdbusError(EBADMSG, "a broadcast is not for a name")


def _check_whole(plan: _Plan, flags: int, dst_id: int) -> None:
    if (flags & _SIGNAL != 0) != plan.has_filter:
        raise KdbusError(EBADMSG, "signals, and nothing else, have a bloom filter")
    if dst_id == DST_NAME and not plan.has_name:
        raise KdbusError(EDESTADDRREQ, "neither an id nor a name to send to")
    if dst_id == DST_BROADCAST and plan.has_fds:
        raise KdbusError(ENOTUNIQ, "descriptors cannot be broadcast")


def _read(caller: Caller, place: _Place) -> Vec:
    return Vec(read_memory(caller, place.address, place.size))


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

    def resolve(self, step: MessageItem | _Place | Item) -> MessageItem | _Place:
        """An item with its files; what has none is as it was."""
        if not isinstance(step, Item):
            return step
        if step.type == ItemType.PAYLOAD_MEMFD:
            start, size, fd, _ = MEMFD.unpack(step.payload)
            return Memfd(start, size, self._take_memory(fd, start + size))
        return Fds(tuple(self._take(fd) for (fd,) in FD.iter_unpack(step.payload)))

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
        seals = file.seals
        if seals is None:
            raise KdbusError(EMEDIUMTYPE, f"descriptor {fd} is not shared memory")
        if seals & SEALS_REQUIRED != SEALS_REQUIRED:
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
