"""A domain behind real sockets, served by a loop in a thread of its own, and clients that know only bytes.

A `RawClient` builds packets with `struct` and nothing of the client library, so it can break every rule. What
it waits for has a deadline, after which the test fails. `NodeWorld` owns everything it has made; a test that
ends well leaves no descriptor behind (`count_fds`).
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import resource
import select
import socket
import struct
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import errorcode
from pathlib import Path
from typing import TypeVar

from kdbus_core.abi import Command, ItemType, MakeFlag
from kdbus_core.domain import Domain
from kdbus_core.metadata import Credentials
from kdbus_core.transport.server import NodeServer, ServerLimits

T = TypeVar("T")

PATIENCE_S = 20.0
POOL_SIZE = 1 << 20
BLOOM_SIZE = 64
PAYLOAD_DBUS = 0x4442757344427573
EVERYTHING = (1 << 64) - 1
UID = os.geteuid()
BUS_NAME = f"{UID}-bus"

_STRUCT_SIZES = {
    Command.HELLO: 96,
    Command.SEND: 56,
    Command.RECV: 64,
    Command.FREE: 32,
    Command.CONN_INFO: 56,
    Command.BUS_CREATOR_INFO: 56,
    Command.LIST: 40,
    Command.MATCH_ADD: 32,
    Command.MATCH_REMOVE: 32,
    Command.MSG_CANCEL: 32,
}


# Bytes


def item(type: int, payload: bytes) -> bytes:
    return struct.pack("=2Q", 16 + len(payload), type) + payload + bytes(-len(payload) % 8)


def string_item(type: int, text: str) -> bytes:
    return item(type, text.encode() + b"\0")


def fds_item(*fds: int) -> bytes:
    return item(ItemType.FDS, struct.pack(f"={len(fds)}i", *fds))


def vec_item(size: int, address: int) -> bytes:
    return item(ItemType.PAYLOAD_VEC, struct.pack("=2Q", size, address))


def memfd_item(fd: int, size: int, start: int = 0) -> bytes:
    return item(ItemType.PAYLOAD_MEMFD, struct.pack("=2QiI", start, size, fd, 0))


def command(number: Command, *fields: int, flags: int = 0, items: Iterable[bytes] = ()) -> bytes:
    """A command's struct with its items; fields that are not given are 0."""
    rest = b"".join(items)
    size = _STRUCT_SIZES.get(number, 24)
    head = struct.pack(f"={3 + len(fields)}Q", size + len(rest), flags, 0, *fields)
    return head.ljust(size, b"\0") + rest


def send_body(
    payload: bytes = b"",
    *,
    dst_id: int = 0,
    flags: int = 0,
    cookie: int = 1,
    timeout_or_reply: int = 0,
    items: Iterable[bytes] = (),
    send_flags: int = 0,
    send_items: Iterable[bytes] = (),
) -> bytes:
    """The body of a SEND: the command, the message behind it, the payload behind that."""
    send = list(send_items)
    address = 56 + sum(map(len, send))
    rest = b"".join(items)
    size = 64 + len(rest) + (32 if payload else 0)
    if payload:
        rest += vec_item(len(payload), address + size)
    message = struct.pack("=8Q", size, flags, 0, dst_id, 0, PAYLOAD_DBUS, cookie, timeout_or_reply)
    return command(Command.SEND, address, flags=send_flags, items=send) + message + rest + payload


@dataclass
class Answer:
    """An answer as it came; `memory` is the request's body as the broker has left it."""

    id: int
    errno: int
    patches: list[tuple[int, bytes]]
    fds: list[int]
    memory: bytes = b""

    def number(self, offset: int) -> int:
        value: int = struct.unpack_from("=Q", self.memory, offset)[0]
        return value


def parse_answer(packet: bytes, fds: list[int]) -> Answer:
    id, errno, count = struct.unpack_from("=QII", packet)
    patches, at = [], 16
    for _ in range(count):
        address, length = struct.unpack_from("=2Q", packet, at)
        patches.append((address, packet[at + 16 : at + 16 + length]))
        at += 16 + (length + 7 & ~7)
    assert at == len(packet), "an answer is as long as it says"
    return Answer(id, errno, patches, fds)


# Clients


def connect_to(sock: socket.socket, path: Path) -> None:
    """Connect to a path of any length."""
    fd = os.open(path.parent, os.O_PATH)
    try:
        sock.connect(f"/proc/self/fd/{fd}/{path.name}")
    finally:
        os.close(fd)


class RawClient:
    """One handle, spoken to in bytes."""

    def __init__(self, path: str | Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE_S)
        self.fds: list[int] = []
        self.id = 0
        self.ready = -1
        self._last_request = 0
        self._pool: mmap.mmap | None = None
        try:
            connect_to(self.sock, Path(path))
        except BaseException:
            self.sock.close()
            raise

    def close(self) -> None:
        self.sock.close()
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        while self.fds:
            os.close(self.fds.pop())

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send_packet(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        self.sock.sendmsg([packet], rights)

    def post(
        self,
        number: int,
        body: bytes = b"",
        *,
        fds: Sequence[int] = (),
        flags: int = 0,
        id: int | None = None,
    ) -> int:
        """Send a request and do not wait; its id."""
        self._last_request += 1
        id = self._last_request if id is None else id
        self.send_packet(struct.pack("=3Q", number, id, flags) + body, fds)
        return id

    def take(self) -> Answer | None:
        """The next answer; None at the end of the handle."""
        while True:
            try:
                packet, ancillary, flags, _ = self.sock.recvmsg(1 << 18, 2048)
                break
            except ConnectionResetError:
                continue
        fds = array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        self.fds += fds
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        return parse_answer(packet, list(fds)) if packet else None

    def request(self, number: int, body: bytes = b"", *, fds: Sequence[int] = (), flags: int = 0) -> Answer:
        """Send a request and take its answer."""
        id = self.post(number, body, fds=fds, flags=flags)
        answer = self.take()
        assert answer is not None, "the handle has been closed"
        assert answer.id == id, f"answer {answer.id} instead of {id}"
        memory = bytearray(body)
        for address, data in answer.patches:
            assert address + len(data) <= len(memory), "a patch outside of the body"
            memory[address : address + len(data)] = data
        answer.memory = bytes(memory)
        return answer

    def run(self, number: Command, *fields: int, flags: int = 0, items: Iterable[bytes] = ()) -> Answer:
        """Perform a command that has to succeed."""
        answer = self.request(number, command(number, *fields, flags=flags, items=items))
        assert not answer.errno, errorcode[answer.errno]
        return answer

    # Commands

    def hello(
        self,
        *,
        flags: int = 1,
        attach_send: int = EVERYTHING,
        attach_recv: int = 0,
        pool_size: int = POOL_SIZE,
        items: Iterable[bytes] = (),
    ) -> Answer:
        answer = self.run(Command.HELLO, attach_send, attach_recv, 0, 0, pool_size, flags=flags, items=items)
        self.id = answer.number(48)
        pool, self.ready = answer.fds
        self._pool = mmap.mmap(pool, pool_size, mmap.MAP_SHARED, mmap.PROT_READ)
        self.run(Command.FREE, answer.number(64))
        return answer

    def send(self, payload: bytes = b"", *, fds: Sequence[int] = (), **fields: object) -> Answer:
        return self.request(Command.SEND, send_body(payload, **fields), fds=fds)  # type: ignore[arg-type]

    def receive(self, *, flags: int = 0) -> tuple[Answer, bytes]:
        """RECV: the answer, and what lies in the pool."""
        answer = self.request(Command.RECV, command(Command.RECV, flags=flags))
        return answer, self.read_pool(answer.number(40), answer.number(48)) if not answer.errno else b""

    def read_pool(self, offset: int, size: int) -> bytes:
        assert self._pool is not None
        return self._pool[offset : offset + size]

    def is_ready(self, timeout_s: float = 0) -> bool:
        poller = select.poll()
        poller.register(self.ready, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def wait_ready(self) -> None:
        assert self.is_ready(PATIENCE_S), "nothing to receive"

    def assert_ended(self) -> None:
        """Nothing but the end comes."""
        assert self.take() is None


def items_of(message: bytes) -> list[tuple[int, bytes]]:
    """The items of a message, or of a record with that header size."""
    size = struct.unpack_from("=Q", message)[0]
    found, at = [], 64
    while at < size:
        length, type = struct.unpack_from("=2Q", message, at)
        found.append((type, message[at + 16 : at + length]))
        at += length + 7 & ~7
    return found


# The world


@dataclass
class _Log(logging.Handler):
    records: list[logging.LogRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    __hash__ = object.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class NodeWorld:
    """A domain with a server; ended by `close`."""

    def __init__(
        self,
        path: Path,
        *,
        limits: ServerLimits = ServerLimits(),  # noqa: B008 - a constant
        random_bytes: Callable[[int], bytes] = os.urandom,
        owner: Credentials = Credentials(uid=UID, gid=os.getegid()),  # noqa: B008 - a constant
        make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self.path = path
        self.domain = Domain(random_bytes, time.monotonic_ns, time.time_ns, owner=owner)
        self._handler = _Log()
        log = logging.Logger("nodes", logging.WARNING)
        log.addHandler(self._handler)
        self._clients: list[RawClient] = []
        self.loop = make_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        try:
            self.server = self.run(lambda: NodeServer(self.domain, path, self.loop, log, limits=limits))
        except BaseException:
            self._end_loop()
            raise

    def run(self, function: Callable[[], T]) -> T:
        """What a function gives in the loop's thread."""
        result: Future[T] = Future()

        def call() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        self.loop.call_soon_threadsafe(call)
        return result.result(PATIENCE_S)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Let the loop go on until something is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.run(condition):
            assert time.monotonic() < deadline, "it never came to that"

    @property
    def warnings(self) -> list[str]:
        return [record.getMessage() for record in self._handler.records]

    def forget_warnings(self) -> None:
        self._handler.records.clear()

    def connect(self, *parts: str) -> RawClient:
        """A handle of a node, by its path in the directory."""
        client = RawClient(self.path.joinpath(*parts))
        self._clients.append(client)
        return client

    def make_bus(
        self, name: str = BUS_NAME, *, flags: int = MakeFlag.ACCESS_WORLD, n_hash: int = 1
    ) -> RawClient:
        owner = self.connect("control")
        parameter = item(ItemType.BLOOM_PARAMETER, struct.pack("=2Q", BLOOM_SIZE, n_hash))
        owner.run(Command.BUS_MAKE, flags=flags, items=[string_item(ItemType.MAKE_NAME, name), parameter])
        return owner

    def hello(self, bus: str = BUS_NAME, **options: object) -> RawClient:
        client = self.connect(bus, "bus")
        client.hello(**options)  # type: ignore[arg-type]
        return client

    def settle(self) -> None:
        """Have the server see that the clients which are closed have gone."""
        self.wait_until(
            lambda: self.server.handles <= sum(client.sock.fileno() >= 0 for client in self._clients)
        )

    def close_clients(self) -> None:
        for client in self._clients:
            client.close()
        self.wait_until(lambda: self.server.handles == 0)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        try:
            self.run(self._close)
        finally:
            self._end_loop()

    def _close(self) -> None:
        self.server.close()
        self.domain.close()
        assert len(self.server.files) == 0, "files that nobody has closed"

    def _end_loop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()


def count_fds() -> int:
    """Open descriptors of this process, the one that looks not counted."""
    return len(os.listdir("/proc/self/fd")) - 1


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """This process cannot open anything in here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    filling: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    try:
        try:
            while True:
                filling.append(os.dup(0))
        except OSError:
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in filling:
            os.close(fd)
