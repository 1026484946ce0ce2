"""The smallest client of the native protocol, written from docs/native-protocol.md and nothing else.

It shares no code with the library and no names with the broker: numbers stand here as the document has them,
so that whatever this client can do, a program in another language can. It blocks, sends one request at a
time unless told otherwise, and reads answers in whatever order they come.
"""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import select
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BUS_MAKE, DOMAIN_MAKE, ENDPOINT_MAKE, ENDPOINT_UPDATE = 0x40189500, 0x40189501, 0x40189510, 0x40189511
HELLO, UPDATE, BYEBYE, FREE = 0xC0609580, 0x40189581, 0x40189582, 0x40209583
CONN_INFO, BUS_CREATOR_INFO, LIST = 0x80389584, 0x80389585, 0x80289586
SEND, RECV, MSG_CANCEL = 0x40389590, 0x80409591, 0x40209592
NAME_ACQUIRE, NAME_RELEASE = 0x401895A0, 0x401895A1
MATCH_ADD, MATCH_REMOVE = 0x402095B0, 0x402095B1
INSPECT = 0x801095F0

CARRIED, QUIET, FREEING = 1, 2, 4
REFUSED = EVERYBODY = ANY = 2**64 - 1
DBUS = 0x4442757344427573
DEADLINE_S = 30.0


def item(kind: int, payload: bytes) -> bytes:
    """An item with its padding."""
    size = 16 + len(payload)
    return struct.pack("=QQ", size, kind) + payload + bytes(-size % 8)


def text_item(kind: int, text: str) -> bytes:
    return item(kind, text.encode() + b"\0")


def command(flags: int, fields: bytes, *items: bytes) -> bytes:
    """A command's struct with what stands between its first three fields and its items."""
    rest = fields + b"".join(items)
    return struct.pack("=QQQ", 24 + len(rest), flags, 0) + rest


def parse_items(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Types and payloads of the items from there to the end."""
    while at < len(data):
        size, kind = struct.unpack_from("=QQ", data, at)
        assert size >= 16, f"an item of {size} bytes at {at}"
        yield kind, data[at + 16 : at + size]
        at += (size + 7) & ~7


class Refused(OSError):
    """An answer with an errno; `memory` is the body with what came back."""

    def __init__(self, errno: int, memory: bytes) -> None:
        super().__init__(errno, os.strerror(errno))
        self.memory = memory


@dataclass
class Answer:
    """What a request has brought: the body as it is afterwards, and descriptors."""

    errno: int
    memory: bytes
    fds: list[int]

    def number(self, at: int) -> int:
        return int(struct.unpack_from("=Q", self.memory, at)[0])


@dataclass
class Letter:
    """A message as it lay in the pool; its descriptors belong to whoever has it."""

    flags: int
    destination: int
    sender: int
    payload_type: int
    cookie: int
    reply_to: int
    payload: bytes
    fds: list[int]
    items: list[tuple[int, bytes]] = field(default_factory=list)

    def find(self, kind: int) -> bytes | None:
        return next((payload for found, payload in self.items if found == kind), None)


class Wire:
    """One handle: connect is open, close is close."""

    def __init__(self, node: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(DEADLINE_S)
        try:
            self.socket.connect(str(node))
        except OSError:
            self.socket.close()
            raise
        self._last_id = 0
        self._bodies: dict[int, bytes] = {}
        self._answers: dict[int, Answer] = {}
        self.id = 0
        self.pool_size = 0
        self.bloom = (0, 0)
        self._pool: mmap.mmap | None = None
        self.pool_fd = self.event_fd = -1

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()
        if self._pool is not None:
            self._pool.close()
            os.close(self.pool_fd)
            os.close(self.event_fd)
            self._pool = None
        for answer in self._answers.values():
            for fd in answer.fds:
                os.close(fd)

    # Requests and answers

    def post(
        self,
        number: int,
        body: bytes = b"",
        fds: Sequence[int] = (),
        *,
        flags: int = 0,
        freed: int | None = None,
    ) -> int:
        """Send a request, and with it the offset of a slice that is not needed any more; return its id."""
        self._last_id += 1
        self._bodies[self._last_id] = body
        if freed is None:
            packet = struct.pack("=QQQ", number, self._last_id, flags) + body
        else:
            packet = struct.pack("=4Q", number, self._last_id, flags | FREEING, freed) + body
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([packet], control)
        return self._last_id

    def post_carried(self, number: int, body: bytes, carried: bytes, fds: Sequence[int] = ()) -> int:
        """The same with a body that goes on in shared memory."""
        memory = os.memfd_create("carried")
        try:
            os.write(memory, carried)
            id = self.post(number, body, [*fds, memory], flags=CARRIED)
        finally:
            os.close(memory)
        self._bodies[id] = body + carried
        return id

    def take(self, id: int) -> Answer:
        """The answer to a request, whatever else is answered before it."""
        while id not in self._answers:
            self._read()
        return self._answers.pop(id)

    def _read(self) -> None:
        data, control, _, _ = self.socket.recvmsg(
            1 << 18, socket.CMSG_SPACE(4 * 253), socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            raise ConnectionResetError("end of file")
        fds = array.array("i")
        for level, kind, payload in control:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            fds.frombytes(payload)
        id, errno, patches = struct.unpack_from("=QII", data)
        if id == REFUSED:
            raise Refused(errno, b"")
        memory = bytearray(self._bodies.pop(id))
        at = 16
        for _ in range(patches):
            address, length = struct.unpack_from("=QQ", data, at)
            assert address + length <= len(memory), "a patch reaches outside of the body"
            memory[address : address + length] = data[at + 16 : at + 16 + length]
            at += 16 + ((length + 7) & ~7)
        assert at == len(data), "the patches do not end where the packet does"
        self._answers[id] = Answer(errno, bytes(memory), list(fds))

    def ask(self, number: int, body: bytes = b"", fds: Sequence[int] = ()) -> Answer:
        """Send a request and wait for its success; Refused otherwise."""
        return self.expect(self.post(number, body, fds))

    def expect(self, id: int) -> Answer:
        answer = self.take(id)
        if answer.errno:
            for fd in answer.fds:
                os.close(fd)
            raise Refused(answer.errno, answer.memory)
        return answer

    # Commands

    def make_bus(self, name: str, *, access: int = 2, bloom: tuple[int, int] = (64, 8)) -> None:
        self.ask(BUS_MAKE, command(access, b"", text_item(11, name), item(7, struct.pack("=QQ", *bloom))))

    def make_endpoint(self, name: str, *, access: int = 2) -> None:
        self.ask(ENDPOINT_MAKE, command(access, b"", text_item(11, name)))

    def set_policy(self, entries: Mapping[str, Sequence[tuple[int, int, int]]]) -> None:
        """ENDPOINT_UPDATE; of each name who (1 user, 2 group, 3 world), level and id."""
        items = []
        for name, accesses in entries.items():
            items.append(text_item(15, name))
            items += [item(0x2000, struct.pack("=QQQ", *access)) for access in accesses]
        self.ask(ENDPOINT_UPDATE, command(0, b"", *items))

    def hello(
        self,
        *items: bytes,
        flags: int = 1,
        attach_send: int = 0x3FFF,
        attach_recv: int = 0,
        pool_size: int = 1 << 24,
    ) -> Answer:
        fields = struct.pack("=7Q", attach_send, attach_recv, 0, 0, pool_size, 0, 0) + bytes(16)
        answer = self.ask(HELLO, command(flags, fields, *items))
        self.pool_fd, self.event_fd = answer.fds
        self._pool = mmap.mmap(self.pool_fd, pool_size, mmap.MAP_SHARED, mmap.PROT_READ)
        self.pool_size = pool_size
        self.id = answer.number(48)
        ((kind, payload),) = parse_items(self.take_slice(answer.number(64), answer.number(72)), 0)
        assert kind == 7
        self.bloom = struct.unpack("=QQ", payload)
        return answer

    def take_slice(self, offset: int, size: int) -> bytes:
        """What lies in the pool there, which is free afterwards."""
        assert self._pool is not None
        data = self._pool[offset : offset + size]
        self.ask(FREE, command(0, struct.pack("=Q", offset)))
        return data

    def build_send(
        self,
        payload: bytes = b"",
        *items: bytes,
        to: int | str = 0,
        flags: int = 0,
        cookie: int = 1,
        timeout_or_reply: int = 0,
        sync: bool = False,
    ) -> bytes:
        """The body of a SEND: command, message, payload."""
        parts = list(items)
        if isinstance(to, str):
            parts.append(text_item(10, to))
        vec_size = 32 if payload else 0
        size = 64 + sum(map(len, parts)) + vec_size
        if payload:
            parts.append(item(2, struct.pack("=QQ", len(payload), 56 + size)))
        message = struct.pack(
            "=QQqQQQQQ", size, flags, 0, 0 if isinstance(to, str) else to, 0, DBUS, cookie, timeout_or_reply
        )
        return command(int(sync), struct.pack("=4Q", 56, 0, 0, 0)) + message + b"".join(parts) + payload

    def send(self, payload: bytes = b"", *items: bytes, fds: Sequence[int] = (), **how: int | str) -> None:
        self.ask(SEND, self.build_send(payload, *items, **how), fds)  # type: ignore[arg-type]  # see there

    def receive(self, *, flags: int = 0) -> Letter:
        """RECV, read and freed; Refused with EAGAIN when there is nothing."""
        answer = self.ask(RECV, command(flags, struct.pack("=q4Q", 0, 0, 0, 0, 0)))
        return self.read_letter(answer, 40)

    def wait_readable(self) -> None:
        """Wait until there is something to receive, or the connection has ended."""
        readable, _, _ = select.select([self.event_fd], [], [], DEADLINE_S)
        assert readable, "nothing has come"

    def wait(self) -> Letter:
        """The next message, which is waited for."""
        self.wait_readable()
        return self.receive()

    def is_readable(self) -> bool:
        return bool(select.select([self.event_fd], [], [], 0)[0])

    def read_letter(self, answer: Answer, at: int) -> Letter:
        """The message whose offset and size stand there in an answer."""
        data = self.take_slice(answer.number(at), answer.number(at + 8))
        size, flags, _, destination, sender, payload_type, cookie, last = struct.unpack_from(
            "=QQqQQQQQ", data
        )
        payload = b""
        fds: list[int] = []
        items = list(parse_items(data[:size], 64))
        left = dict(enumerate(answer.fds))
        for kind, content in items:
            if kind == 3:
                length, offset = struct.unpack("=QQ", content)
                payload += bytes(length) if offset == ANY else data[offset : offset + length]
            elif kind == 4:
                start, length, index, _ = struct.unpack("=QQiI", content)
                fd = left.pop(index)
                payload += os.pread(fd, length, start)
                os.close(fd)
            elif kind == 5:
                fds += [left.pop(index) for index in array.array("i", content)]
        assert not left, "descriptors that no item names"
        return Letter(flags, destination, sender, payload_type, cookie, last, payload, fds, items)

    def records(self, answer: Answer, at: int) -> list[tuple[int, int, list[tuple[int, bytes]]]]:
        """The records of LIST, CONN_INFO or BUS_CREATOR_INFO: ids, flags and items."""
        data = self.take_slice(answer.number(at), answer.number(at + 8))
        found = []
        position = 0
        while position < len(data):
            size, id, flags = struct.unpack_from("=QQQ", data, position)
            found.append((id, flags, list(parse_items(data[position : position + size], 24))))
            position += size
        return found

    def info(self, id: int, mask: int = 0x3FFF) -> list[tuple[int, bytes]]:
        """What CONN_INFO tells of a connection."""
        answer = self.ask(CONN_INFO, command(0, struct.pack("=4Q", id, mask, 0, 0)))
        ((_, _, items),) = self.records(answer, 40)
        return items

    def list(self, flags: int = 3) -> list[tuple[int, int, list[tuple[int, bytes]]]]:
        return self.records(self.ask(LIST, command(flags, struct.pack("=2Q", 0, 0))), 24)

    def acquire(self, name: str, flags: int = 0) -> int:
        return self.ask(NAME_ACQUIRE, command(flags, b"", text_item(15, name))).number(16)

    def match(self, cookie: int, *items: bytes) -> None:
        self.ask(MATCH_ADD, command(0, struct.pack("=Q", cookie), *items))


@contextlib.contextmanager
def connected(node: Path, *items: bytes, **how: int) -> Iterator[Wire]:
    """A connection to that endpoint."""
    with Wire(node) as wire:
        wire.hello(*items, **how)
        yield wire
