"""For tests of the client library: a domain served by a thread, and a server that does what a test wants.

`Served` is a real `NodeServer` in another thread's loop. `Script` is the other end of a link: it reads
requests and answers them as it is told, so that a test sees what goes over the socket and says what no broker
would.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from kdbus_core.abi import AttachFlag
from kdbus_core.domain import Domain
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import Credentials
from kdbus_core.transport.client import Connection, open_node
from kdbus_core.transport.protocol import FREEING, MAX_PACKET, OFFSET, REQUEST, build_answer
from kdbus_core.transport.server import NodeServer

T = TypeVar("T")

DEADLINE_S = 20.0
"""How long a test waits for something that has to happen."""
TOLD = int(AttachFlag.TIMESTAMP | AttachFlag.NAMES | AttachFlag.CONN_DESCRIPTION)
BUS = f"{os.getuid()}-test"


def open_fds() -> dict[int, str]:
    """The descriptors of this process, and what they are."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


class Served:
    """A domain in a directory, with one bus; the server runs in a thread until `stop`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="server")
        self._thread.start()
        self._ready.result(DEADLINE_S)
        self.owner = open_node(self.control)
        self.owner.make_bus(BUS)

    @property
    def control(self) -> Path:
        return self.directory / "control"

    @property
    def bus(self) -> Path:
        return self.directory / BUS / "bus"

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        try:
            owner = Credentials(uid=os.getuid(), gid=os.getgid())
            self.domain = Domain(os.urandom, time.monotonic_ns, time.time_ns, owner=owner)
            self.server = NodeServer(self.domain, self.directory, self.loop, logging.getLogger("served"))
        except BaseException as error:
            self._ready.set_exception(error)
            raise
        self._ready.set_result(None)
        await self._end.wait()
        self.server.close()
        self.domain.close()

    def do(self, what: Callable[[], T]) -> T:
        """Do something in the server's thread, between two commands."""

        async def run() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(DEADLINE_S)

    def stop(self) -> None:
        """End the server; twice is as good as once."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._end.set)
            self._thread.join(DEADLINE_S)
            assert not self._thread.is_alive()

    def close(self) -> None:
        self.owner.close()
        self.stop()

    def connect(
        self, *, attach_recv: int = TOLD, pool_size: int = 1 << 20, description: str = ""
    ) -> Connection:
        with open_node(self.bus) as node:
            return node.hello(attach_recv=attach_recv, pool_size=pool_size, description=description)

    def queued(self, connection: int) -> int:
        """How many messages wait for a connection."""

        def count() -> int:
            inbox = self.domain.buses[BUS].connections[connection].inbox
            assert inbox is not None
            return len(inbox)

        return self.do(count)

    def pool_use(self, connection: int) -> int:
        """Bytes of a connection's pool in slices that were not freed."""

        def busy() -> int:
            inbox = self.domain.buses[BUS].connections[connection].inbox
            assert inbox is not None
            return inbox.pool.busy

        return self.do(busy)

    def open_calls(self, connection: int) -> int:
        """How many synchronous calls of a connection wait."""
        return self.do(lambda: len(self.domain.buses[BUS].connections[connection].calls))


@contextmanager
def served(directory: Path) -> Iterator[Served]:
    """A served domain that leaves no descriptor behind."""
    before = open_fds()
    world = Served(directory / "nodes")
    try:
        yield world
    finally:
        world.close()
    assert open_fds() == before


class Request(NamedTuple):
    """A request as a script reads it; the descriptors are the script's to close."""

    number: int
    id: int
    flags: int
    body: bytes
    fds: list[int]
    freed: int | None = None
    """The slice that is given back with it."""


class Script:
    """The other end of a link, played by the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(DEADLINE_S)

    def read(self) -> Request:
        """The next request."""
        data, ancillary, _, _ = self.socket.recvmsg(MAX_PACKET, socket.CMSG_SPACE(4 * 253))
        fds: list[int] = []
        for _, _, raw in ancillary:
            fds += array("i", raw)
        assert data, "the client has closed"
        number, id, flags = REQUEST.unpack_from(data)
        body, freed = data[REQUEST.size :], None
        if flags & FREEING:
            (freed,) = OFFSET.unpack_from(body)
            flags, body = flags & ~FREEING, body[OFFSET.size :]
        return Request(number, id, flags, body, fds, freed)

    def answer(
        self,
        request: Request | int,
        errno: int = 0,
        patches: Sequence[tuple[int, bytes]] = (),
        fds: Sequence[int] = (),
    ) -> None:
        """Answer a request; the descriptors stay the test's."""
        id = request if isinstance(request, int) else request.id
        self.send(build_answer(id, errno, patches), fds)

    def send(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        """Send any packet."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        self.socket.sendmsg([packet], rights)


@contextmanager
def script() -> Iterator[tuple[Script, socket.socket]]:
    """A script, and the socket of the client that talks to it (which is the client's to close)."""
    before = open_fds()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        try:
            yield Script(ours), theirs
        finally:
            theirs.close()
    assert open_fds() == before


@contextmanager
def refused(*errnos: int) -> Iterator[None]:
    """A command in here has to be refused with one of these."""
    try:
        yield
    except KdbusError as error:
        assert error.errno in errnos, error  # noqa: PT017 - what else there is to say of it
    else:
        raise AssertionError(f"not refused with {errnos}")


def in_thread(what: Callable[[], T]) -> Future[T]:
    """Do something in another thread, which ends with it."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(what())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="test").start()
    return future


def until(holds: Callable[[], bool]) -> None:
    """Wait until something that another thread brings about holds."""
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        os.sched_yield()
