"""Processes that use a broker through handles: commands as bytes, and what they leave in memory.

A `Client` is a handle and a thread that uses it; a `HandleWorld` is a domain with one bus, reached through
handles alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import errorcode
from struct import Struct
from typing import Any

import pytest
from caller_world import Thread

from kdbus_core import abi
from kdbus_core.abi import Command, HelloFlag, ItemType, MakeFlag
from kdbus_core.domain import Domain
from kdbus_core.endpoint import Endpoint
from kdbus_core.errors import KdbusError
from kdbus_core.handle import Handle, HandleState
from kdbus_core.items import (
    ACCESS,
    BLOOM_PARAMETER,
    FD,
    MEMFD,
    NUMBER,
    VEC,
    Item,
    build_item,
    build_numbers_item,
    build_string_item,
    iterate_items,
)
from kdbus_core.metadata import Credentials, Process
from kdbus_core.synchronous import SyncCall

OWNER_UID = 1000
OWNER = Process.of(Credentials(uid=OWNER_UID, gid=1000, pid=4711))
STRANGER = Process.of(Credentials(uid=2000, gid=2000, pid=4712))
ROOT = Process.of(Credentials(uid=0, gid=0, pid=1), privileged=True)

BLOOM_SIZE = 64
POOL_SIZE = 1 << 20
EVERYTHING = (1 << 64) - 1
MONITOR = HelloFlag.MONITOR
ACTIVATOR = HelloFlag.ACTIVATOR
POLICY_HOLDER = HelloFlag.POLICY_HOLDER
NAME = "com.example.name"


# Commands


def build_command(
    command: Command, *fields: int | bytes, flags: int = 0, items: Iterable[bytes] = ()
) -> bytes:
    """The bytes of a command; fields that are not given are 0."""
    struct = abi_struct(command)
    rest = b"".join(items)
    given = list(fields)
    blank = struct.unpack(bytes(struct.size))
    padded = (struct.size + len(rest), flags, 0, *given, *blank[3 + len(given) :])
    head: bytes = struct.pack(*padded)
    return head + rest


def abi_struct(command: Command) -> Struct:
    return {
        Command.HELLO: abi.CMD_HELLO,
        Command.SEND: abi.CMD_SEND,
        Command.RECV: abi.CMD_RECV,
        Command.FREE: abi.CMD_FREE,
        Command.CONN_INFO: abi.CMD_INFO,
        Command.BUS_CREATOR_INFO: abi.CMD_INFO,
        Command.LIST: abi.CMD_LIST,
        Command.MATCH_ADD: abi.CMD_MATCH,
        Command.MATCH_REMOVE: abi.CMD_MATCH,
        Command.MSG_CANCEL: abi.CMD_MATCH,
    }.get(command, abi.CMD)


def name_item(name: str, type: ItemType = ItemType.NAME) -> bytes:
    return build_string_item(type, name)


def bloom_parameter(size: int = BLOOM_SIZE, n_hash: int = 1) -> bytes:
    return build_item(ItemType.BLOOM_PARAMETER, BLOOM_PARAMETER.pack(size, n_hash))


def bloom_filter(bits: bytes = bytes(BLOOM_SIZE), generation: int = 0) -> bytes:
    return build_item(ItemType.BLOOM_FILTER, NUMBER.pack(generation) + bits)


def access_item(type: int, level: int, id: int = 0) -> bytes:
    return build_item(ItemType.POLICY_ACCESS, ACCESS.pack(type, level, id))


def fds_item(*fds: int) -> bytes:
    return build_item(ItemType.FDS, b"".join(FD.pack(fd) for fd in fds))


def memfd_item(fd: int, size: int = 8, start: int = 0) -> bytes:
    return build_item(ItemType.PAYLOAD_MEMFD, MEMFD.pack(start, size, fd, 0))


def vec_item(size: int, address: int = 0) -> bytes:
    return build_item(ItemType.PAYLOAD_VEC, VEC.pack(size, address))


def cancel_item(fd: int) -> bytes:
    return build_item(ItemType.CANCEL_FD, FD.pack(fd))


def negotiate_item(*types: int) -> bytes:
    return build_numbers_item(ItemType.NEGOTIATE, *types)


def build_message(
    *,
    items: Iterable[bytes] = (),
    flags: int = 0,
    priority: int = 0,
    dst_id: int = 0,
    src_id: int = 0,
    payload_type: int = abi.PAYLOAD_DBUS,
    cookie: int = 0,
    timeout_or_reply: int = 0,
) -> bytes:
    rest = b"".join(items)
    header = abi.MSG.pack(
        abi.MSG.size + len(rest), flags, priority, dst_id, src_id, payload_type, cookie, timeout_or_reply
    )
    return header + rest


@dataclass
class Answer:
    """What a successful command left in its struct; the fields are those after the three of every command."""

    data: bytes
    return_flags: int
    fields: tuple[Any, ...]


@dataclass
class Received:
    """A message as it lies in a pool."""

    offset: int
    size: int
    header: tuple[int, ...]
    items: list[Item]

    @property
    def cookie(self) -> int:
        return self.header[6]

    def item(self, type: ItemType) -> Item:
        return next(item for item in self.items if item.type == type)


class Client:
    """A handle and a thread that uses it."""

    def __init__(self, handle: Handle, thread: Thread | None = None) -> None:
        self.handle = handle
        self.thread = thread or Thread()
        self.address = 0  # of the latest command
        self.pending: SyncCall | None = None

    def ioctl(self, command: Command, data: bytes, on_done: Callable[[int], None] | None = None) -> Answer:
        """Issue a command that lies in a block of its own; what is written back is the answer."""
        self.address = self.thread.put(data)
        self.pending = self.handle.ioctl(self.thread, command, self.address, on_done)
        return self.answer(command, len(data))

    def answer(self, command: Command, size: int | None = None) -> Answer:
        """What lies in the struct of the latest command."""
        struct = abi_struct(command)
        data = self.thread.read(self.address, size or struct.size)
        _, _, return_flags, *fields = struct.unpack_from(data)
        return Answer(data, return_flags, tuple(fields))

    def run(
        self, command: Command, *fields: int | bytes, flags: int = 0, items: Iterable[bytes] = ()
    ) -> Answer:
        return self.ioctl(command, build_command(command, *fields, flags=flags, items=items))

    def hello(
        self,
        *,
        flags: int = HelloFlag.ACCEPT_FD,
        attach_send: int = EVERYTHING,
        attach_recv: int = 0,
        pool_size: int = POOL_SIZE,
        items: Iterable[bytes] = (),
    ) -> Answer:
        return self.run(Command.HELLO, attach_send, attach_recv, 0, 0, pool_size, flags=flags, items=items)

    def is_in(self, state: HandleState) -> bool:
        return self.handle.state is state

    @property
    def id(self) -> int:
        assert self.handle.connection is not None
        return self.handle.connection.id

    def send(
        self,
        message: bytes,
        *,
        flags: int = 0,
        items: Iterable[bytes] = (),
        on_done: Callable[[int], None] | None = None,
    ) -> Answer:
        """SEND a message that lies in a block of its own."""
        address = self.thread.put(message)
        command = build_command(Command.SEND, address, flags=flags, items=items)
        return self.ioctl(Command.SEND, command, on_done)

    def receive(self, flags: int = 0, priority: int = 0) -> Received:
        """RECV, and read what it says."""
        _, _, offset, size, _ = self.run(Command.RECV, priority, flags=flags).fields
        return self.read_message(offset, size)

    def read_message(self, offset: int, size: int) -> Received:
        data = self.read_pool(offset, size)
        header = abi.MSG.unpack_from(data)
        return Received(offset, size, header, list(iterate_items(data[: header[0]], abi.MSG.size)))

    def read_pool(self, offset: int, size: int) -> bytes:
        assert self.handle.connection is not None
        assert self.handle.connection.inbox is not None
        return self.handle.connection.inbox.pool.memory.read(offset, size)

    def free(self, offset: int) -> None:
        self.run(Command.FREE, offset)

    @property
    def busy(self) -> int:
        """Bytes of the pool that are not free."""
        assert self.handle.connection is not None
        assert self.handle.connection.inbox is not None
        return self.handle.connection.inbox.pool.busy


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


class HandleWorld:
    """A domain with one bus of uid 1000; bus id 1, so that the first connection has id 2."""

    def __init__(self, *, bus_items: Iterable[bytes] = (), access: MakeFlag = MakeFlag.ACCESS_WORLD) -> None:
        self.clock = Clock()
        self.domain = Domain(bytes, self.clock, self.clock)
        self.maker = self.open(self.domain)
        self.make_bus(self.maker, items=bus_items, flags=access)
        self.bus = self.domain.buses[f"{OWNER_UID}-bus"]
        assert self.maker.handle.state is HandleState.BUS_OWNER

    def open(self, node: Domain | Endpoint | None = None, process: Process = OWNER) -> Client:
        """A fresh handle, of the bus' default endpoint unless told otherwise."""
        return Client(Handle(node or self.bus.endpoint, process))

    @staticmethod
    def make_bus(
        client: Client, name: str = f"{OWNER_UID}-bus", *, items: Iterable[bytes] = (), flags: int = 0
    ) -> Answer:
        everything = (name_item(name, ItemType.MAKE_NAME), bloom_parameter(), *items)
        return client.run(Command.BUS_MAKE, flags=flags, items=everything)

    def make_endpoint(self, name: str = f"{OWNER_UID}-door") -> tuple[Client, Endpoint]:
        """A custom endpoint for everybody, and the handle that made it."""
        maker = self.open()
        maker.run(
            Command.ENDPOINT_MAKE,
            flags=MakeFlag.ACCESS_WORLD,
            items=[name_item(name, ItemType.MAKE_NAME)],
        )
        return maker, self.bus.endpoints[name]

    def connect(
        self,
        process: Process = OWNER,
        *,
        node: Endpoint | None = None,
        flags: int = HelloFlag.ACCEPT_FD,
        attach_send: int = EVERYTHING,
        attach_recv: int = 0,
        pool_size: int = POOL_SIZE,
        items: Iterable[bytes] = (),
    ) -> Client:
        """A connection whose pool is empty."""
        client = self.open(node, process)
        client.hello(
            flags=flags, attach_send=attach_send, attach_recv=attach_recv, pool_size=pool_size, items=items
        )
        client.free(0)
        return client

    def connect_kind(self, kind: str) -> Client:
        """A connection of one of the four kinds, by its name."""
        flags = {"ordinary": 0, "monitor": MONITOR, "activator": ACTIVATOR, "policy holder": POLICY_HOLDER}
        named = kind in ("activator", "policy holder")
        return self.connect(flags=flags[kind], items=[name_item(NAME)] if named else ())


@contextmanager
def refused(errno: int) -> Iterator[None]:
    """What happens in here is refused with exactly this errno."""
    with pytest.raises(KdbusError) as caught:
        yield
    assert errorcode[caught.value.errno] == errorcode[errno]
