"""A domain behind real sockets, to which any bytes and descriptors may be sent.

`NativeSession.run` takes steps, each a run of bytes that decides what is done next: a packet on any handle,
in order or broken, with descriptors of any kind; answers taken or left; handles opened, half closed, closed;
shared memory that shrinks meanwhile. The server runs in this thread: its loop is turned between the steps, so
that the same bytes do the same. What must hold, whatever was done:

- nothing is raised in the server, nothing is logged as an error;
- answers are answers: of a request that is under way, within its memory, with an errno;
- the books of all buses add up;
- two bystanders on the same bus ask and answer as ever.

At the end everybody goes, and nothing may be left: no handle, no connection, no account, no descriptor.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import select
import socket
import struct
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import EAGAIN, errorcode
from pathlib import Path

from kdbus_books import check_bus, check_users, domains_below, entries_of
from kdbus_choices import Choices
from kdbus_errnos import LAYOUTS
from kdbus_grammar import Scene, build_command, spoil
from support.kdbus import layout
from support.nodes import command, item, parse_answer, send_body, string_item

from kdbus_core.abi import Command, ItemType, MakeFlag
from kdbus_core.caller import SEALS_REQUIRED
from kdbus_core.connection import Connection
from kdbus_core.domain import Domain
from kdbus_core.metadata import Credentials
from kdbus_core.transport.server import NodeServer, ServerLimits

PATIENCE_S = 30.0
UID = os.geteuid()
BUS = f"{UID}-bus"
CUSTOM = f"{UID}-custom"
POOL_SIZE = 1 << 16
MAX_ACTORS = 8
HANDLES_PER_USER = 14
FILES_PER_USER = 60
PLACED_AT = 2048
"""Where in the body lies what a command points to."""
REFUSED = (1 << 64) - 1
INSPECT = 0x801095F0
CARRIED, QUIET, FREEING = 1, 2, 4
LINGER = struct.pack("=ii", 1, 1000)

_NAMES = {int(one): one.name for one in Command}
_FRESH = ("HELLO", "BUS_MAKE", "ENDPOINT_MAKE", "DOMAIN_MAKE", "ENDPOINT_UPDATE")
_CONNECTED = (*["SEND"] * 8, *["RECV"] * 4, *(name for name in LAYOUTS if name not in _FRESH))

Kind = Callable[["NativeSession"], int]


class _Records(logging.Handler):
    """What the server says; an error is a failure."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.warnings.append(record.getMessage())
        if record.levelno >= logging.ERROR:
            self.errors.append(logging.Formatter().format(record))


class Peer:
    """One handle of a client that does not wait for anything."""

    def __init__(self, path: Path, label: str) -> None:
        self.label = label
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)  # noqa: FBT003 - not our signature
        self.last_request = 0
        self.pending: dict[int, tuple[int, bytes]] = {}
        self.odd_ids = {0}
        """Those that more than one request may have had."""
        self.id = 0
        self.cookies: list[int] = []
        self.offsets: set[int] = set()
        self.answers: list[tuple[int, int, bytes]] = []
        """Those taken: number of the command, errno, memory."""
        self.outcomes: set[str] = set()
        self.is_ended = False
        try:
            self.sock.connect(str(path))
        except BaseException:
            self.sock.close()
            raise

    def close(self) -> None:
        self.sock.close()

    def repeat_id(self) -> int:
        """An id that may be in use already."""
        self.odd_ids.add(self.last_request)
        return self.last_request

    def send(self, packet: bytes, fds: Iterable[int] = ()) -> bool:
        """Send bytes as a packet; False when there is no room, or nobody to read it."""
        numbers = array("i", fds)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else []
        try:
            self.sock.sendmsg([packet], rights)
        except OSError:
            return False
        return True

    def post(
        self,
        number: int,
        body: bytes,
        *,
        fds: Iterable[int] = (),
        flags: int = 0,
        memory: bytes | None = None,
    ) -> bool:
        """Send a request; `memory` is all of its body when a part is carried."""
        self.last_request += 1
        id = self.last_request
        if not self.send(struct.pack("=3Q", number, id, flags) + body, fds):
            return False
        self.pending[id] = (number, body if memory is None else memory)
        return True

    def take(self) -> bool:
        """Take one answer and look whether it is one; False when there is none."""
        try:
            packet, ancillary, flags, _ = self.sock.recvmsg(1 << 18, 2048, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return True
        except OSError:
            return False
        fds = array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        for fd in fds:
            os.close(fd)
        if not packet:
            self.is_ended = True
            return False
        assert not flags & socket.MSG_TRUNC
        self._check(packet, list(fds))
        return True

    def _check(self, packet: bytes, fds: list[int]) -> None:
        answer = parse_answer(packet, fds)
        assert answer.errno in errorcode or not answer.errno
        if answer.id == REFUSED:
            assert answer.errno
            assert not answer.patches
            return
        if answer.id in self.odd_ids:
            return
        number, body = self.pending.pop(answer.id)
        memory = bytearray(body)
        for address, data in answer.patches:
            assert address + len(data) <= len(memory), "a patch outside of the body"
            memory[address : address + len(data)] = data
        self.answers.append((number, answer.errno, bytes(memory)))
        outcome = errorcode[answer.errno] if answer.errno else "done"
        self.outcomes.add(f"{_NAMES.get(number, 'something else')}: {outcome}")
        if not answer.errno:
            self._learn(number, bytes(memory))

    def _learn(self, number: int, memory: bytes) -> None:
        """What later commands can be about."""
        match number:
            case Command.HELLO:
                self.id = struct.unpack_from("=Q", memory, 48)[0]
                self.offsets.add(struct.unpack_from("=Q", memory, 64)[0])
            case Command.RECV | Command.CONN_INFO | Command.BUS_CREATOR_INFO:
                self.offsets.add(struct.unpack_from("=Q", memory, 40)[0])
            case Command.LIST:
                self.offsets.add(struct.unpack_from("=Q", memory, 24)[0])
            case _:
                pass


class NativeSession:
    """One domain with its server, the handles, and whoever does what the bytes say."""

    def __init__(self) -> None:
        self._owned = ExitStack()
        self.fds_before = open_fds()
        self.journal: list[str] = []
        self.outcomes: set[str] = set()
        self.path = Path(self._owned.enter_context(tempfile.TemporaryDirectory(prefix="n-")))
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._on_loop_exception)
        self._records = _Records()
        log = logging.Logger("native", logging.WARNING)
        log.addHandler(self._records)
        owner = Credentials(uid=UID, gid=os.getegid())
        self.domain = Domain(bytes, time.monotonic_ns, time.time_ns, owner=owner)
        limits = ServerLimits(handles_per_user=HANDLES_PER_USER, open_files_per_user=FILES_PER_USER)
        self.server = NodeServer(self.domain, self.path, self.loop, log, limits=limits)
        self.actors: list[Peer] = []
        self.mine: list[int] = []
        """Descriptors that are kept for a while: memory that may shrink, files that may become readable."""
        self.cookie = 1 << 40
        self.steps = 0
        self.owner = Peer(self.path / "control", "the owner")
        parameter = item(ItemType.BLOOM_PARAMETER, struct.pack("=2Q", layout.BLOOM_SIZE, 1))
        self._perform(
            self.owner,
            Command.BUS_MAKE,
            flags=MakeFlag.ACCESS_WORLD,
            items=[string_item(ItemType.MAKE_NAME, BUS), parameter],
        )
        self.custom = Peer(self.path / BUS / "bus", "the owner of the custom endpoint")
        self._perform(
            self.custom,
            Command.ENDPOINT_MAKE,
            flags=MakeFlag.ACCESS_WORLD,
            items=[string_item(ItemType.MAKE_NAME, CUSTOM)],
        )
        self.caller, self.callee = self._connect("the caller"), self._connect("the callee")
        self.actors += [self._connect(label, attach=layout.ANY) for label in ("A", "B", "C")]
        for peer in self.actors:
            peer.outcomes = self.outcomes

    def _connect(self, label: str, *, attach: int = 0) -> Peer:
        peer = Peer(self.path / BUS / "bus", label)
        self._perform(peer, Command.HELLO, attach, attach, 0, 0, 1 << 20, flags=1)
        self._free(peer)
        return peer

    # The server

    def _on_loop_exception(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self._records.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    def turn(self, count: int = 1) -> None:
        """Let the server do what there is to do."""
        for _ in range(count):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def turn_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"it never came to that: {what}"
            self.turn()

    def _perform(
        self, peer: Peer, number: Command, *fields: int, flags: int = 0, items: Iterable[bytes] = ()
    ) -> tuple[int, bytes]:
        """A command of somebody who waits for the answer: errno and memory."""
        return self._ask(peer, number, command(number, *fields, flags=flags, items=items))

    def _ask(self, peer: Peer, number: int, body: bytes) -> tuple[int, bytes]:
        peer.answers.clear()
        assert peer.post(number, body), f"{peer.label} cannot send"
        self.turn_until(lambda: (peer.take() and bool(peer.answers)) or peer.is_ended, "an answer")
        assert peer.answers, f"{peer.label} has been closed"
        _, errno, memory = peer.answers.pop()
        return errno, memory

    def _free(self, peer: Peer) -> None:
        for offset in peer.offsets:
            self._perform(peer, Command.FREE, offset)
        peer.offsets.clear()

    # Running

    def run(self, steps: Iterable[bytes]) -> None:
        """All of it, the end included."""
        with self._ending():
            for step in steps:
                self.step(step)
            self.finish()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            said = ["what the server said:", *self._records.warnings]
            error.add_note("\n".join([*said, "what was done:", *self.journal]))
            raise
        finally:
            self._give_up()

    def _give_up(self) -> None:
        """Whatever has happened, keep nothing for the next one."""
        for peer in (*self.actors, self.owner, self.custom, self.caller, self.callee):
            peer.close()
        for fd in self.mine:
            os.close(fd)
        self.mine.clear()
        if not self.loop.is_closed():
            with suppress(Exception):
                self.server.close()
            self.loop.close()
        self._owned.close()

    def step(self, data: bytes) -> None:
        """One step, and what must hold after it."""
        choices = Choices(data)
        if not self.actors:
            self._open(choices)
        actions: tuple[Callable[[Choices], None], ...] = (
            *(self._fitting_command,) * 16,
            self._broken_packet,
            self._any_bytes,
            self._burst,
            self._take,
            self._take,
            self._touch_files,
            self._open,
            self._open,
            self._close,
        )
        choices.pick(actions)(choices)
        self.turn(choices.pick((1, 0, 2, 3)))
        self.steps += 1
        self.check()

    # Steps

    def _open(self, choices: Choices) -> None:
        """Connect, say HELLO or not, and go on without waiting."""
        if len(self.actors) >= MAX_ACTORS:
            return
        place = choices.pick(((BUS, "bus"), (BUS, "bus"), ("control",), (BUS, f"ep.{CUSTOM}")))
        label = f"{len(self.journal)} at {'/'.join(place)}"
        try:
            peer = Peer(self.path.joinpath(*place), label)
        except OSError as error:
            if error.errno != EAGAIN:  # so many wait already
                raise
            return
        self.journal.append(f"{label} is opened")
        self.actors.append(peer)
        peer.outcomes = self.outcomes
        if place[0] == BUS and not choices.once_in(6):
            flags = choices.pick((1, 1, 1, 0, 8, 9))
            size = choices.number() if choices.once_in(12) else POOL_SIZE
            masks = (layout.ANY, choices.pick((layout.ANY, 0)))
            peer.post(Command.HELLO, command(Command.HELLO, *masks, 0, 0, size, flags=flags))
            if not choices.once_in(4):
                self.turn(2)
                peer.take()

    def _fitting_command(self, choices: Choices) -> None:
        """A command, mostly right, in its own packet or with a part carried."""
        peer = choices.pick(self.actors)
        if not peer.id:
            name = choices.pick(_FRESH)
        else:
            name = choices.pick(_CONNECTED if not choices.once_in(24) else _FRESH)
        kinds = [choices.pick(_KINDS) for _ in range(choices.pick((0, 0, 0, 1, 2, 4)))]
        placed = bytearray()

        def place(content: bytes) -> int:
            address = PLACED_AT + len(placed)
            placed.extend(content + bytes(-len(content) % 8))
            return address

        numbers = list(range(len(kinds)))
        constant = place(bytes(range(256)))
        scene = Scene(
            now=time.monotonic_ns(),
            ids=[*self._ids(), 2, 3],
            peers=[*self._ids(), 2, 3],
            own_id=peer.id,
            own_cookies=peer.cookies,
            duties=[(id, cookie) for id in self._ids() for cookie in range(5)],
            fds=numbers,
            memfds=[number for number in numbers if kinds[number] is _sealed],
            events=[number for number in numbers if kinds[number] in (_event, _pipe, _readable)],
            offsets=sorted(peer.offsets),
            addresses=[constant, constant + 3, 0],
            place=place,
        )
        body = spoil(choices, build_command(choices, scene, name))
        if placed:
            body = body.ljust(PLACED_AT, b"\0") + placed
        self._send(choices, peer, name, LAYOUTS[name].request, body, kinds)
        if not choices.once_in(4):  # and mostly looks what came of it
            self.turn(2)
            peer.take()

    def _ids(self) -> list[int]:
        return [peer.id for peer in self.actors if peer.id]

    def _send(
        self, choices: Choices, peer: Peer, name: str, number: int, body: bytes, kinds: list[Kind]
    ) -> None:
        flags = choices.pick((0, 0, 0, 0, 0, QUIET, CARRIED, CARRIED | QUIET, FREEING, 1 << 63))
        fds = [kind(self) for kind in kinds]
        sent = body
        if flags & FREEING and not choices.once_in(6):
            sent = struct.pack("=Q", choices.pick([*sorted(peer.offsets), 0])) + body
        if flags & CARRIED and not choices.once_in(6):
            cut = choices.below(len(body) + 1)
            sent = body[:cut]
            memory = self._memory(body[cut:])
            fds.append(memory)
            if choices.once_in(3):  # by now, or when it is read, it has become something else
                with suppress(OSError):
                    os.ftruncate(memory, choices.pick((0, 1, len(body) * 2, 5 << 20, 1 << 40)))
        is_sent = peer.post(
            number,
            sent,
            fds=fds,
            flags=flags,
            memory=bytes(len(body) + (8 << 20)) if flags & CARRIED else body,
        )
        self.journal.append(
            f"{peer.label}: {name} {body[:400].hex()} flags {flags:#x}"
            f" with {[kind.__name__ for kind in kinds]}{'' if is_sent else ' cannot be sent'}"
        )
        for fd, kind in zip(fds, [*kinds, _unsealed], strict=False):
            if kind is not _handle and len(self.mine) < 10 and choices.once_in(4):
                self.mine.append(fd)
            else:
                os.close(fd)

    @staticmethod
    def _memory(content: bytes) -> int:
        fd = os.memfd_create("carried", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, content)
        return fd

    def _broken_packet(self, choices: Choices) -> None:
        """Not a packet: too short, of the wrong id, far too long, with far too many descriptors."""
        peer = choices.pick(self.actors)
        kind = choices.pick(_KINDS)
        match choices.below(6):
            case 0:
                packet, count = choices.blob(23), choices.below(3)
            case 1:
                packet, count = b"", choices.below(2)
            case 2:
                packet, count = struct.pack("=3Q", 0, choices.pick((REFUSED, peer.repeat_id())), 0), 0
            case 3:
                packet, count = bytes(choices.pick((200_000, 100_000))), 1
            case 4:
                packet, count = struct.pack("=3Q", INSPECT, peer.repeat_id(), 0), choices.below(2)
            case _:
                packet, count = (
                    struct.pack("=3Q", choices.number(), peer.repeat_id(), 0),
                    choices.pick((253, 100, 61)),
                )
        self.journal.append(f"{peer.label}: {len(packet)} bytes, {count} descriptors of {kind.__name__}")
        fds = [kind(self) for _ in range(min(count, 3))]
        peer.send(packet, [fds[number % 3] for number in range(count)] if fds else [])
        for fd in fds:
            os.close(fd)

    def _any_bytes(self, choices: Choices) -> None:
        peer = choices.pick(self.actors)
        number = (
            choices.number()
            if choices.once_in(4)
            else choices.pick([one.request for one in LAYOUTS.values()])
        )
        kinds = [choices.pick(_KINDS) for _ in range(choices.below(3))]
        self._send(choices, peer, f"{number:#x}", number, choices.blob(200), kinds)

    def _burst(self, choices: Choices) -> None:
        """Many at once, which nobody may ever take the answers of."""
        peer = choices.pick(self.actors)
        count = choices.pick((20, 60, 300))
        flags = choices.pick((1, 0))
        to = choices.pick([*self._ids(), 2])
        body = choices.pick(
            (
                command(Command.RECV),
                command(Command.LIST, flags=1),
                send_body(b"x" * 100, dst_id=to),
                send_body(
                    b"x",
                    dst_id=to,
                    flags=1,
                    timeout_or_reply=time.monotonic_ns() + 10**12,
                    send_flags=flags,
                ),
            )
        )
        size = struct.unpack_from("=Q", body)[0]
        number = {64: Command.RECV, 40: Command.LIST}.get(size, Command.SEND)
        sent = sum(peer.post(number, body) for _ in range(count))
        self.journal.append(f"{peer.label}: {sent} times {number.name} to {to}, flags {flags}")

    def _take(self, choices: Choices) -> None:
        """Take answers, all or a few."""
        peer = choices.pick(self.actors)
        for _ in range(choices.pick((1000, 1, 5))):
            if not peer.take():
                break
        if peer.is_ended:
            self.journal.append(f"{peer.label} has been closed")
            peer.close()
            self.actors.remove(peer)

    def _touch_files(self, choices: Choices) -> None:
        """Files that were passed shrink, become readable, hang up."""
        if self.mine:
            fd = choices.pick(self.mine)
            with suppress(OSError):
                os.ftruncate(fd, choices.pick((0, 1, 1 << 20)))
            with suppress(OSError):
                os.write(fd, (1).to_bytes(8, "little"))
            if choices.once_in(2):
                self.mine.remove(fd)
                os.close(fd)

    def _close(self, choices: Choices) -> None:
        peer = choices.pick(self.actors)
        if choices.once_in(3):
            how = choices.pick((socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR))
            self.journal.append(f"{peer.label} is shut down: {how}")
            with suppress(OSError):
                peer.sock.shutdown(how)
        else:
            self.journal.append(f"{peer.label} is closed")
            self.actors.remove(peer)
            peer.close()

    # What must hold

    def check(self) -> None:
        """Nothing was raised, the books add up, the bystanders talk."""
        assert not self._records.errors, "\n".join(self._records.errors)
        for domain in domains_below(self.domain):
            for bus in domain.buses.values():
                if bus.order.is_idle:
                    check_bus(bus)
            check_users(domain)
        self._talk()

    def _talk(self) -> None:
        """A bystander asks, the other answers; what others have sent them is passed over."""
        self.cookie += 1
        deadline = time.monotonic_ns() + 10**11
        body = send_body(b"?", dst_id=self.callee.id, flags=1, cookie=self.cookie, timeout_or_reply=deadline)
        self._expect(self.caller, body)
        self._receive(self.callee, self.caller)
        self._expect(self.callee, send_body(b"!", dst_id=self.caller.id, timeout_or_reply=self.cookie))
        self._receive(self.caller, self.callee)

    def _expect(self, peer: Peer, body: bytes) -> None:
        errno, _ = self._ask(peer, Command.SEND, body)
        assert not errno, f"{peer.label} cannot send: {errorcode[errno]}"

    def _receive(self, receiver: Peer, sender: Peer) -> None:
        """RECV until the sender's comes, and free all of it."""
        while True:
            before = self._queued(receiver)
            errno, _ = self._perform(receiver, Command.RECV)
            assert not errno, f"{receiver.label} has nothing to receive: {errorcode[errno]}"
            self._free(receiver)
            source = before[0] if before else 0
            if source == sender.id:
                return

    def _queued(self, peer: Peer) -> list[int]:
        connection = self._connection(peer)
        return [
            0 if entry.message is None or entry.message.sender is None else entry.message.sender.id
            for entry in entries_of(connection)
        ]

    def _connection(self, peer: Peer) -> Connection:
        return self.domain.buses[BUS].connections[peer.id]

    # The end

    def finish(self) -> None:
        """Everybody goes, some of them without a look at what is there for them; nothing may be left."""
        for peer in self.actors[::2]:
            self.turn(2)
            while peer.take():
                pass
        for peer in self.actors:
            peer.close()
        self.actors.clear()
        for fd in self.mine:
            os.close(fd)
        self.mine.clear()
        self.turn_until(lambda: self.server.handles == 4, "the handles of others end")
        self.check()
        assert set(self.domain.buses) == {BUS}
        bus = self.domain.buses[BUS]
        assert set(bus.endpoints) == {"bus", CUSTOM}
        assert set(bus.connections) == {self.caller.id, self.callee.id}
        for peer in (self.caller, self.callee):
            while self._queued(peer):
                self._perform(peer, Command.RECV)
                self._free(peer)
        self.turn_until(lambda: not len(self.server.files), "files are closed")
        for peer in (self.caller, self.callee, self.custom, self.owner):
            peer.close()
        self.turn_until(lambda: self.server.handles == 0, "all handles end")
        assert not self._records.errors, "\n".join(self._records.errors)
        assert not self.domain.buses
        assert not self.domain.domains
        assert not self.domain._users
        self.server.close()
        self.domain.close()
        assert sorted(os.listdir(self.path)) in ([], [".lock"])
        self.loop.close()
        self._owned.close()
        left = open_fds() - self.fds_before
        assert not left, f"left open: {sorted(left)}"


# Descriptors of every kind; what they are made of stays behind or goes with them


def _sealed(_: NativeSession) -> int:
    fd = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, bytes(4096))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS_REQUIRED)
    return fd


def _unsealed(_: NativeSession) -> int:
    fd = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, bytes(4096))
    return fd


def _sparse(_: NativeSession) -> int:
    fd = os.memfd_create("sparse", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 40)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS_REQUIRED)
    return fd


def _event(_: NativeSession) -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def _readable(_: NativeSession) -> int:
    """One that is readable already."""
    return os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def _pipe(_: NativeSession) -> int:
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.close(write_end)
    return read_end


def _null(_: NativeSession) -> int:
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def _directory(_: NativeSession) -> int:
    return os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _path(_: NativeSession) -> int:
    return os.open("/proc/self/exe", os.O_PATH | os.O_CLOEXEC)


def _regular(_: NativeSession) -> int:
    return os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)


def _unix_socket(_: NativeSession) -> int:
    one, other = socket.socketpair()
    other.close()
    return one.detach()


def _full_of_files(_: NativeSession) -> int:
    """A socket in which another one waits, which contains that socket: nobody ever takes them out."""
    one, other = socket.socketpair()
    with other:
        socket.send_fds(other, [b"x"], [one.fileno(), other.fileno()])
    return one.detach()


def _inet_socket(_: NativeSession) -> int:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    return sock.detach()


def _epoll(_: NativeSession) -> int:
    with select.epoll() as epoll:
        return os.dup(epoll.fileno())


def _handle(session: NativeSession) -> int:
    """A handle of somebody who reads: one that waits unread in its own socket would never end."""
    return os.dup(session.caller.sock.fileno())


_KINDS: tuple[Kind, ...] = (
    _sealed,
    _event,
    _unsealed,
    _sparse,
    _readable,
    _pipe,
    _null,
    _directory,
    _path,
    _regular,
    _unix_socket,
    _full_of_files,
    _inet_socket,
    _epoll,
    _handle,
)


def open_fds() -> set[int]:
    """The descriptors of this process, but for the one it looks with."""
    here = {int(name) for name in os.listdir("/proc/self/fd")}
    return {fd for fd in here if os.path.lexists(f"/proc/self/fd/{fd}")}


def run_session(steps: Iterable[bytes]) -> frozenset[str]:
    """A session of its own for these steps; returns which outcomes it had."""
    session = NativeSession()
    session.run(steps)
    return frozenset(session.outcomes)
