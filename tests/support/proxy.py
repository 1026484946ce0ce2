"""The proxy in one piece inside the test: broker, router, driver and peers over socket pairs, no daemon.

This is the one module of `support` that imports the packages under test: it puts together what the daemon
puts together, so that a test can look at flows, quotas and streams while messages pass through real sockets.
Its clients and their messages are those of `raw`. Nothing waits: `World.settle` serves every socket until
none has anything left, so what a test sees afterwards is all that will happen.

A `World` owns its loop, its poller and every client's socket; `close` ends them all. A world made with
`flows=False` forgets its flows before every message: it is the bus without a fast path that the one with a
fast path has to agree with.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, cast

from busproxy.activation.activator import Activation
from busproxy.activation.launcher import Launcher
from busproxy.activation.service_files import ServiceFile
from busproxy.driver import Driver
from busproxy.peer import Peer
from busproxy.policy.config import ConnectPolicy, ConnectRule, Limits
from busproxy.router import Router
from busproxy.transport.loop import new_event_loop
from busproxy.wire.sasl import SaslServer
from kdbus_core.connection import Connection
from kdbus_core.domain import Domain
from kdbus_core.metadata import Credentials, Process
from kdbus_core.quota import Quota
from support.raw import DRIVER, DRIVER_PATH, METHOD_CALL, Message, build_message, parse_message

OWNER_UID = 1000
GUID = "0123456789abcdef0123456789abcdef"


def message_lengths(data: bytes) -> Iterator[int]:
    """The lengths of the whole messages in `data`, one after the other."""
    start = 0
    while len(data) - start >= 16:
        order = "little" if data[start : start + 1] == b"l" else "big"
        numbers = [
            int.from_bytes(data[start + at : start + at + 4], order)  # type: ignore[arg-type]
            for at in (4, 12)
        ]
        length = 16 + (numbers[1] + 7 & -8) + numbers[0]
        if len(data) - start < length:
            return
        yield length
        start += length


class Host:
    """What the driver asks of the daemon around it."""

    guid = GUID
    pid = 4711
    uid = OWNER_UID
    has_selinux = False
    pidfd = None

    def machine_id(self) -> str:
        return GUID

    def reload(self) -> None:
        raise ValueError("there is no configuration")


class PatientLauncher:
    """Services come up when the test makes a client own their name, never by themselves."""

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self.launched: list[str] = []

    async def launch(self, service: ServiceFile) -> None:
        self.launched.append(service.name)
        await asyncio.get_running_loop().create_future()


class CountingRouter(Router):
    """Counts the messages that no flow has dealt with."""

    routed = 0

    def route(self, peer: Peer, data: bytes | bytearray, start: int, end: int) -> None:
        self.routed += 1
        super().route(peer, data, start, end)


class World:
    """One bus and its clients, by label."""

    def __init__(self, *, flows: bool = True, limits: Limits | None = None) -> None:
        self.flows = flows
        self.loop, self.poller = new_event_loop("asyncio")
        self.log = logging.getLogger("tests.world")
        self.log.propagate = False
        self.domain = Domain(os.urandom)
        self.bus = self.domain.make_bus(
            f"{OWNER_UID}-test", Process.of(Credentials(uid=OWNER_UID, gid=OWNER_UID, pid=1))
        )
        everybody = ConnectPolicy(default=[ConnectRule(True, None, None, "test:1")])  # noqa: FBT003 - as in a file
        self.limits = limits or Limits()
        self.router = CountingRouter(
            self.bus, self.poller, self.loop, self.log, self.limits, everybody, OWNER_UID
        )
        self.driver = Driver(self.router, Host())
        self.launcher = PatientLauncher()
        self.activation = Activation(self.router, cast(Launcher, self.launcher), lambda: None, systemd=False)
        self.clients: dict[str, Client] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, label: str) -> Client:
        return self.clients[label]

    def offer(self, *names: str) -> None:
        """Make exactly these names activatable."""
        self.activation.load({name: ServiceFile("test.service", name, "service") for name in names})

    def join(self, label: str, *, uid: int = OWNER_UID, negotiate_fds: bool = True) -> Client:
        """A new client that has said Hello; who had the label before is closed."""
        if label in self.clients:
            self.clients[label].close()
        client = self.clients[label] = Client(self, label, uid)
        client.say_hello(negotiate_fds=negotiate_fds)
        return client

    def settle(self) -> None:
        """Serve every socket, and give the loop its turn, until nothing is left to do."""
        while True:
            events = self.poller.epoll.poll(0)
            if not events:
                break
            self.poller.serve(events)
        self.loop.run_until_complete(asyncio.sleep(0))

    def collect(self) -> dict[str, list[Message]]:
        """What every client has received since it last looked, by label."""
        return {label: client.messages() for label, client in self.clients.items()}

    def forget_flows(self) -> None:
        for peer in self.router.peers:
            peer.flows.clear()

    def close(self) -> None:
        self.bus.observers.clear()
        self.activation.close()
        for peer in list(self.router.peers):
            peer.close()
        for client in self.clients.values():
            client.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


class Client:
    """The far end of a peer's socket pair."""

    def __init__(self, world: World, label: str, uid: int) -> None:
        self.world = world
        self.label = label
        self.unique_name = ""
        self.fds: list[int] = []
        self._serial = 0
        self._data = b""
        ours, self.socket = socket.socketpair()
        ours.settimeout(0)
        self.socket.settimeout(0)
        limits = world.limits
        sasl = SaslServer(
            guid=GUID, mechanisms=("EXTERNAL",), peer_uid=uid, resolve_user=lambda name: None, cookies=None
        )
        self.peer = Peer(
            ours,
            world.router,
            Credentials(uid=uid, gid=uid, pid=os.getpid()),
            sasl,
            world.domain.user(uid),
            Quota(limits.max_outgoing_bytes, 1 << 30, limits.max_outgoing_unix_fds),
        )
        world.router.on_accepted(self.peer)

    def say_hello(self, *, negotiate_fds: bool) -> None:
        negotiation = b"NEGOTIATE_UNIX_FD\r\n" if negotiate_fds else b""
        self.send_bytes(b"\0AUTH EXTERNAL\r\nDATA\r\n" + negotiation + b"BEGIN\r\n")
        answers = self._read().split(b"\r\n")
        assert answers[-2].startswith(b"AGREE_UNIX_FD" if negotiate_fds else b"OK"), answers
        self._data = b""
        self.unique_name = self.call("Hello").body[0]

    @property
    def connection(self) -> Connection:
        """The broker's connection of this client."""
        assert self.peer.connection is not None
        return self.peer.connection

    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def send_bytes(self, data: bytes, fds: list[int] | None = None) -> None:
        """Send bytes as they are, the fds with the first, and let the bus deal with all of them."""
        if not self.world.flows:
            self.world.forget_flows()
        view = memoryview(data)
        with suppress(BrokenPipeError, ConnectionResetError):
            if fds:
                view = view[socket.send_fds(self.socket, [view], fds) :]
            while view:
                try:
                    view = view[self.socket.send(view) :]
                except BlockingIOError:
                    self.world.settle()
        self.world.settle()

    def send(self, message: Message, fds: list[int] | None = None) -> int:
        """Send a message, with the next serial unless it has one; returns the serial."""
        message.serial = message.serial or self.next_serial()
        self.send_bytes(build_message(message), fds)
        return message.serial

    def call(self, member: str, signature: str = "", *arguments: Any, **fields: Any) -> Message:
        """Call the driver and return the reply; what else came stays for `messages`."""
        serial = self.send(
            Message(
                METHOD_CALL,
                fields={
                    "path": DRIVER_PATH,
                    "interface": DRIVER,
                    "member": member,
                    "destination": DRIVER,
                    **({"signature": signature} if signature else {}),
                    **fields,
                },
                body=list(arguments),
            )
        )
        kept: list[bytes] = []
        reply = None
        for frame in self.frames():
            parsed = parse_message(frame)
            assert parsed is not None
            if parsed[0].fields.get("reply_serial") == serial and parsed[0].fields.get("sender") == DRIVER:
                reply = parsed[0]
            else:
                kept.append(frame)
        self._data = b"".join(kept) + self._data
        assert reply is not None, f"{self.label} got no reply to {member}"
        return reply

    def request_name(self, name: str, flags: int = 0) -> int:
        return int(self.call("RequestName", "su", name, flags).body[0])

    def release_name(self, name: str) -> int:
        return int(self.call("ReleaseName", "s", name).body[0])

    def add_match(self, rule: str) -> None:
        assert self.call("AddMatch", "s", rule).error_name is None

    def remove_match(self, rule: str) -> None:
        assert self.call("RemoveMatch", "s", rule).error_name is None

    def become_monitor(self, *rules: str) -> None:
        interface = "org.freedesktop.DBus.Monitoring"
        assert self.call("BecomeMonitor", "asu", list(rules), 0, interface=interface).error_name is None

    def leave(self) -> None:
        """Close the socket; the bus notices."""
        self.socket.close()
        self.world.settle()

    def _read(self) -> bytes:
        self.world.settle()
        while self.socket.fileno() >= 0:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(
                    1 << 20, socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, ConnectionResetError):
                break
            if not data:
                break
            for _, _, content in ancillary:
                numbers = array.array("i")
                numbers.frombytes(content)
                self.fds.extend(numbers)
            self._data += data
            self.world.settle()
        return self._data

    def frames(self) -> list[bytes]:
        """The bytes of every message that has arrived and was not yet taken."""
        data = self._read()
        found = []
        for length in message_lengths(data):
            found.append(data[:length])
            data = data[length:]
        self._data = data
        return found

    def messages(self) -> list[Message]:
        """Every message that has arrived and was not yet taken."""
        parsed = [parse_message(frame) for frame in self.frames()]
        return [item[0] for item in parsed if item is not None]

    def close(self) -> None:
        """Close the socket and every fd that was received."""
        self.socket.close()
        while self.fds:
            os.close(self.fds.pop())


def count_own_fds() -> int:
    """How many file descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def resident_bytes(pid: int) -> int:
    """The memory (bytes) that a process has in use."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
