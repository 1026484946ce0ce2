"""An open node: what every handle has, whatever it becomes, and the commands that make things.

Every command's bytes are put into the task's memory, its address is given to `Handle.ioctl`, and the struct
is read back. Nothing may be written but the struct, and `return_flags` has to be.
"""

from __future__ import annotations

from copy import copy
from struct import unpack_from
from typing import TYPE_CHECKING, Protocol, Self

from kdbus_core.caller import FileKind
from kdbus_core.errors import KdbusError
from kdbus_core.handle import Handle

from . import layout
from .layout import POLLIN, ItemType, Layout
from .refusal import Answer, Refused
from .task import OpenFile, Task

if TYPE_CHECKING:
    from kdbus_core.connection import Connection
    from kdbus_core.domain import Domain
    from kdbus_core.endpoint import Endpoint

    from .world import World


class Call(Protocol):
    """A synchronous SEND as the handle gives it."""

    @property
    def done(self) -> bool: ...

    @property
    def errno(self) -> int: ...

    def interrupt(self) -> None: ...


class OpenNode:
    """One open handle of a task; `fd` is its descriptor."""

    def __init__(self, world: World, task: Task, node: Domain | Endpoint) -> None:
        self.world = world
        self.task = task
        self.node = node
        try:
            self.handle = Handle(node, task.process)
        except KdbusError as error:
            raise Refused(error) from None
        self.fd = task.open(OpenFile(FileKind.BUS_HANDLE, pollable=True, on_release=self.handle.close))
        self.is_open = True

    # What all commands have in common

    def ioctl(self, request: int, address: int, *, task: Task | None = None) -> Call | None:
        """The bare system call."""
        assert self.is_open, "the descriptor is closed"
        try:
            return self.handle.ioctl(task or self.task, request, address)
        except KdbusError as error:
            raise Refused(error) from None

    def command(
        self,
        layout_: Layout,
        *items: bytes,
        flags: int = 0,
        size: int | None = None,
        task: Task | None = None,
        **fields: int,
    ) -> Answer:
        """Any command; `size` is what the struct says of itself when that shall be wrong."""
        task = task or self.task
        tail = b"".join(items)
        struct = layout_.build(flags, layout_.size + len(tail) if size is None else size, fields)
        address = task.memory.allocate(struct + tail)
        try:
            call = self.ioctl(layout_.request, address, task=task)
            assert call is None, "this command does not wait"
        except Refused as error:
            error.answer = Answer(layout_, task.read(address, len(struct) + len(tail)))
            raise
        else:
            answer = Answer(layout_, task.read(address, len(struct) + len(tail)))
        finally:
            task.memory.release(address)
        negotiates = flags & layout.NEGOTIATE or ItemType.NEGOTIATE in item_types(tail)
        assert negotiates or answer.items == tail, "the items of a command are the caller's"
        assert answer["size"] == (len(struct) + len(tail) if size is None else size)
        assert negotiates or answer["flags"] == flags
        assert negotiates or answer["return_flags"] != layout.CANARY, "return_flags was not written"
        return answer

    def share(self, task: Task) -> Self:
        """The same open handle in another task, as after fork or when the descriptor was passed on."""
        other = copy(self)
        other.task = task
        other.fd = task.adopt(self.task, self.fd)
        return other

    def close(self) -> None:
        """Close this descriptor; the last one of a handle ends what the handle stands for."""
        assert self.is_open
        self.is_open = False
        self.task.close(self.fd)

    @property
    def connection(self) -> Connection:
        """The broker's object; for checks of what cannot be seen from outside."""
        connection = self.handle.connection
        assert connection is not None
        return connection

    def poll(self) -> int:
        return int(self.handle.poll())

    @property
    def is_readable(self) -> bool:
        return bool(self.poll() & POLLIN)

    # Making things

    def bus_make(
        self, *items: bytes, name: str | bytes | None = None, bloom: bytes | None = None, flags: int = 0
    ) -> Answer:
        """BUS_MAKE with a 64-byte bloom parameter unless another is given."""
        named = (layout.string(ItemType.MAKE_NAME, name),) if name is not None else ()
        bloom = layout.bloom_parameter() if bloom is None else bloom
        return self.command(layout.BUS_MAKE, *named, bloom, *items, flags=flags)

    def domain_make(self, name: str, flags: int = 0) -> Answer:
        return self.command(layout.DOMAIN_MAKE, layout.string(ItemType.MAKE_NAME, name), flags=flags)

    def endpoint_make(self, name: str, flags: int = 0) -> Answer:
        return self.command(layout.ENDPOINT_MAKE, layout.string(ItemType.MAKE_NAME, name), flags=flags)

    def endpoint_update(self, *items: bytes) -> Answer:
        """ENDPOINT_UPDATE; each NAME is followed by its accesses."""
        return self.command(layout.ENDPOINT_UPDATE, *items)


def item_types(raw: bytes) -> list[int]:
    """The types of well-formed items, as far as they are well-formed."""
    kinds = []
    at = 0
    while at + 16 <= len(raw):
        size, kind = unpack_from("=2Q", raw, at)
        kinds.append(kind)
        if size < 16:
            break
        at += layout.align(size)
    return kinds
