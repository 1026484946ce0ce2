"""A session: one accepted socket, and the handle behind it, from the first packet to the last.

The session reads packets, performs them one after another on its handle and answers each.  A synchronous
SEND that waits is put aside until it ends; others go on.  What the client does not take is never piled up:
while an answer waits for room the session reads nothing, so there are never more answers than there
are calls that may wait.

Who owns what: the session owns the socket, the pool's memory, what tells the client that something is there
(`Ready`) and the opener's pidfd, and closes them after the handle.  The descriptors of a packet belong to the
reader until they are taken, then to the request (`Performing`), and those of an answer to it until they
are sent.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from array import array
from collections import deque
from contextlib import suppress
from errno import (
    E2BIG,
    EBADF,
    EBADFD,
    EINVAL,
    EMEDIUMTYPE,
    EMFILE,
    ENOBUFS,
    ENOMEM,
    EPERM,
    EPROTO,
    ESHUTDOWN,
    ETOOMANYREFS,
)
from fcntl import ioctl
from termios import FIONREAD
from typing import TYPE_CHECKING, NamedTuple

from kdbus_core.abi import Command
from kdbus_core.domain import Domain
from kdbus_core.errors import KdbusError
from kdbus_core.handle import Handle, HandleState
from kdbus_core.inspection import inspect
from kdbus_core.transport.files import OpenFile, make_memfd, memory_seals, read_memfd
from kdbus_core.transport.memory import SharedMemory
from kdbus_core.transport.performing import Performing, close_files
from kdbus_core.transport.protocol import (
    ANSWER,
    CARRIED,
    FREEING,
    INSPECT,
    KNOWN_FLAGS,
    MAX_CARRIED,
    OFFSET,
    QUIET,
    REFUSED,
    REQUEST,
    build_answer,
)
from kdbus_core.transport.ready import Ready
from kdbus_core.transport.sending import Sending

if TYPE_CHECKING:
    from kdbus_core.connection import Connection
    from kdbus_core.endpoint import Endpoint
    from kdbus_core.inbox import Inbox
    from kdbus_core.metadata import Process
    from kdbus_core.transport.deadlines import Deadlines
    from kdbus_core.transport.server import NodeServer

PACKETS_PER_TURN = 16
"""Requests that one handle has performed before others get their turn."""
RETRY_DELAY = 0.05
"""Seconds until an answer is sent again for which the kernel had no room."""

_HELLO = int(Command.HELLO)
_SEND = int(Command.SEND)
_RECV = int(Command.RECV)
_BYEBYE = int(Command.BYEBYE)
_HEADER_SIZE = REQUEST.size
_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_NO_ROOM_NOW = frozenset({ETOOMANYREFS, ENOBUFS, ENOMEM})


class _Answer(NamedTuple):
    """An answer that could not be sent yet; it owns `files`."""

    data: bytes
    files: list[OpenFile]


class Session:
    """One open handle of a client; made by the server, ended by `close`."""

    __slots__ = (
        "_answers",
        "_deadlines",
        "_inbox",
        "_is_deaf",
        "_log",
        "_loop",
        "_memory",
        "_performing",
        "_ready",
        "_retry",
        "_sending",
        "_server",
        "_sock",
        "_waiting",
        "connection",
        "handle",
        "is_closed",
        "process",
        "uid",
    )

    def __init__(
        self,
        server: NodeServer,
        sock: socket.socket,
        node: Domain | Endpoint,
        process: Process,
        *,
        uid: int,
        is_admitted: bool,
    ) -> None:
        """Open a node for whoever is behind a socket: ESHUTDOWN, EACCES, and nothing has been taken over.

        Else the socket and the process' pidfd are the session's from now on.
        """
        self._server = server
        self._loop = server.loop
        self._log = server.log
        self._sock = sock
        self._performing = Performing(self._on_done)
        self._sending = Sending(process)
        self._answers: deque[_Answer] = deque()
        self._waiting: dict[int, Performing] = {}
        self._memory: SharedMemory | None = None
        self._inbox: Inbox | None = None
        self._ready: Ready | None = None
        self._is_deaf = False
        self._retry: asyncio.TimerHandle | None = None
        self._deadlines: Deadlines | None = None
        self.connection: Connection | None = None
        self.is_closed = False
        self.process = process
        self.uid = uid
        self.handle = Handle(
            node, process, make_memory=self._make_memory, on_ready=self.on_ready, is_admitted=is_admitted
        )
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def close(self) -> None:
        """End the handle and everything that is kept for it."""
        if self.is_closed:
            return
        self.is_closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        if self._retry is not None:
            self._retry.cancel()
        try:
            self.handle.close()  # calls that wait end here
        finally:
            self._close_socket()
            self._performing.close()
            for performing in self._waiting.values():
                performing.close()
            self._waiting.clear()
            while self._answers:
                close_files(self._answers.popleft().files)
            self._close_pool()
            if self.process.credentials.pidfd is not None:
                os.close(self.process.credentials.pidfd)
            self._server.on_closed(self)

    def _close_socket(self) -> None:
        """Close the socket; what is in packets that nobody has read may take long to close with it."""
        fd = self._sock.detach()
        if int.from_bytes(ioctl(fd, FIONREAD, bytes(4)), sys.byteorder):
            self._server.files.closer.close(fd, self.uid, _nobody_waits)
        else:
            os.close(fd)

    # The pool, and whether there is something in it

    def _make_memory(self, size: int) -> SharedMemory:
        """Memory of the pool that HELLO asks for, and its ready descriptor; OSError."""
        self._memory = memory = SharedMemory(size)
        self._ready = Ready()
        return memory

    def _close_pool(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
        ready, self._ready = self._ready, None
        if ready is not None:
            ready.close()

    def _on_hello(self, performing: Performing) -> None:
        """HELLO has been performed: hand out the pool, or drop what there is of it."""
        if self.connection is not None:
            return  # another one, which was refused
        connection = self.handle.connection
        if connection is None:
            self._close_pool()
            return
        assert self._memory is not None
        assert self._ready is not None
        self.connection = connection
        self._inbox = connection.inbox
        self._deadlines = self._server.deadlines(connection.endpoint.bus)
        self._server.on_connected(self, connection)
        performing.installed.append(OpenFile(self._memory.export_fd()))
        performing.installed.append(OpenFile(self._ready.take_fd()))

    def on_ready(self) -> None:
        """There is something to receive, or nothing any more for ever: make the descriptor readable."""
        ready = self._ready
        if ready is not None and not ready.is_set:
            ready.set()

    def review_ready(self) -> None:
        """The queue may have become empty: the descriptor is readable for as long as there is something."""
        ready = self._ready
        if ready is not None and ready.is_set:
            assert self._inbox is not None
            assert self.connection is not None
            if self.connection.active and not self._inbox.readable:
                ready.clear()

    # Requests

    def _on_readable(self) -> None:
        reader, sock = self._server.reader, self._sock
        try:
            for _ in range(PACKETS_PER_TURN):
                if self._answers or self.is_closed:
                    return
                try:
                    size = reader.receive(sock)
                except BlockingIOError:
                    return
                except ConnectionResetError:
                    continue  # it went without reading everything; what it had sent is still there
                if not size:
                    self._drop_fds()
                    self.close()
                    return
                if size < _HEADER_SIZE or reader.is_too_long:
                    self._fail(f"a packet of {size} bytes{' and more' if reader.is_too_long else ''}")
                    return
                self._perform(size)
        except Exception:  # a bug must cost one client, never the bus
            self._log.exception("a handle of uid %d is closed", self.uid)
            self.close()

    def _perform(self, size: int) -> None:
        reader = self._server.reader
        view = reader.view
        number, id, flags = REQUEST.unpack_from(view)
        if id == REFUSED or id in self._waiting:
            self._fail(f"a request with the id {id}, which is not free")
            return
        performing = self._performing
        performing.begin(id, view[_HEADER_SIZE:size])
        errno = 0
        try:
            if flags or reader.has_fds:
                self._unpack(performing, flags, view[_HEADER_SIZE:size])
            if number == _SEND:
                self._sending.begin(reader.sender)
                try:
                    if self.handle.ioctl(
                        performing, _SEND, 0, performing.on_done, origin=self._sending.origin
                    ):
                        self._put_aside(performing)
                        return
                finally:
                    self._sending.end()
                if self._deadlines is not None:
                    self._deadlines.review()
            elif number == INSPECT:
                self._inspect(performing)
            else:
                self.handle.ioctl(performing, number, 0)
        except KdbusError as error:
            errno = error.errno
        if number == _RECV:
            self.review_ready()
        elif number == _HELLO:
            self._on_hello(performing)
        elif number == _BYEBYE and self.connection is not None and not self.connection.active:
            self.on_ready()
        self._answer(performing, errno)

    def _unpack(self, performing: Performing, flags: int, body: memoryview) -> None:
        """What is out of the ordinary about a packet: flags, descriptors."""
        performing.is_quiet = bool(flags & QUIET)
        fds = self._server.reader.take_fds()
        try:
            if flags & ~KNOWN_FLAGS:
                raise KdbusError(EINVAL, f"flags {flags:#x}")
            if flags & FREEING:
                body = self._free(body)
            if self._server.reader.lacks_fds:
                raise KdbusError(EMFILE, "not all descriptors could be received")
            if flags & CARRIED:
                if not fds:
                    raise KdbusError(EBADF, "no descriptor carries the rest of the body")
                carrier = fds.pop()
                try:
                    body = _carried(body, carrier)
                finally:
                    self._server.files.close([carrier], self.uid)
        except BaseException:
            self._server.files.close(fds, self.uid)
            raise
        performing.put_in(body, self._server.files.receive(fds, self.uid) if fds else None)

    def _free(self, body: memoryview) -> memoryview:
        """Give back the slice before a body, if there is one to give back; returns the body."""
        if len(body) < OFFSET.size:
            raise KdbusError(EINVAL, "no slice to be freed before the body")
        if self._inbox is not None:
            with suppress(KdbusError):
                self._inbox.pool.free(OFFSET.unpack_from(body)[0])
        return body[OFFSET.size :]

    def _put_aside(self, performing: Performing) -> None:
        """A call waits; its answer comes when it has ended."""
        performing.wait()
        self._waiting[performing.id] = performing
        self._performing = Performing(self._on_done)
        assert self._deadlines is not None
        self._deadlines.review()

    def _on_done(self, performing: Performing, errno: int) -> None:
        """A call that has waited is over, in the middle of whatever somebody else has asked for."""
        try:
            del self._waiting[performing.id]
            if self.is_closed:
                performing.close()
            else:
                self._answer(performing, errno)
        except Exception:  # as above, and not the other one
            self._log.exception("a handle of uid %d is closed", self.uid)
            self._loop.call_soon_threadsafe(self.close)

    def _inspect(self, performing: Performing) -> None:
        node = self.handle.node
        if not isinstance(node, Domain) or self.handle.state is not HandleState.NONE:
            raise KdbusError(EBADFD, "only a fresh handle of a control node can be asked that")
        if not node.active:
            raise KdbusError(ESHUTDOWN, "the domain has gone")
        uid = self.process.credentials.uid
        if not self.process.privileged and (uid is None or uid != node.owner.uid):
            raise KdbusError(EPERM, "the state of a domain is for its owner")
        if not performing.is_empty:
            raise KdbusError(EINVAL, "INSPECT takes neither a body nor descriptors")
        text = json.dumps(inspect(node), separators=(",", ":")).encode()
        try:
            fd = make_memfd(text, name="kdbus-inspect", sealed=True)
        except OSError as error:
            raise KdbusError(EMFILE if error.errno == EMFILE else ENOMEM, f"no memory: {error}") from error
        os.lseek(fd, 0, os.SEEK_SET)
        performing.installed.append(OpenFile(fd))

    def _fail(self, why: str) -> None:
        """What came is no packet, so nothing that follows can be relied on."""
        self._log.warning("uid %d does not keep to the protocol: %s; its handle is closed", self.uid, why)
        self._drop_fds()
        refuse(self._sock, EPROTO)
        self.close()

    def _drop_fds(self) -> None:
        """Nobody wants the descriptors of the packet that was read last."""
        self._server.files.close(self._server.reader.take_fds(), self.uid)

    # Answers

    def _answer(self, performing: Performing, errno: int) -> None:
        files = performing.take_installed() if performing.installed else []
        if performing.is_quiet and not errno and not files:
            performing.close()
            return
        data = build_answer(performing.id, errno, performing.patches)
        performing.close()  # first: what the command does not need has been closed when it is answered
        if self._answers or not self._transmit(data, files):
            self._hold_back(_Answer(data, files))

    def _transmit(self, data: bytes, files: list[OpenFile]) -> bool:
        """Send an answer and let go of its files; False, and nothing has happened, while there is no room."""
        if not self._is_deaf:
            try:
                if files:
                    fds = array("i", [file.fileno() for file in files])
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
                    self._sock.sendmsg((data,), rights, _NOSIGNAL)
                else:
                    self._sock.send(data, _NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _NO_ROOM_NOW:
                    self._log.warning("an answer to uid %d has to wait: %s", self.uid, error.strerror)
                    # It may be in a round of another poller, which has to give the loop its turn.
                    self._loop.call_soon_threadsafe(self._retry_later)
                    return False
                # The client has gone, or takes no answers. What it has sent before still counts.
                self._is_deaf = True
        close_files(files)
        return True

    def _hold_back(self, answer: _Answer) -> None:
        """Keep an answer until there is room, and read nothing until then."""
        self._answers.append(answer)
        if len(self._answers) == 1:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.add_writer(self._sock.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        while self._answers:
            if not self._transmit(*self._answers[0]):
                return
            self._answers.popleft()
        self._loop.remove_writer(self._sock.fileno())
        self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _retry_later(self) -> None:
        if not self.is_closed and self._retry is None:
            self._loop.remove_writer(self._sock.fileno())
            self._retry = self._loop.call_later(RETRY_DELAY, self._on_retry)

    def _on_retry(self) -> None:
        self._retry = None
        if self._answers:
            self._loop.add_writer(self._sock.fileno(), self._on_writable)


def refuse(sock: socket.socket, errno: int) -> None:
    """Tell a client, if it can be told, why its handle is closed; the socket stays the caller's."""
    with suppress(OSError):
        sock.send(ANSWER.pack(REFUSED, errno, 0), _NOSIGNAL | socket.MSG_DONTWAIT)


def _nobody_waits() -> None:
    """It is closed, late."""


def _carried(body: memoryview, fd: int) -> memoryview:
    """A body with what a descriptor carries of it: EMEDIUMTYPE, E2BIG, EFAULT, ENOMEM."""
    try:
        if memory_seals(fd) is None:
            raise KdbusError(EMEDIUMTYPE, "what carries the rest of the body is not shared memory")
        size = os.fstat(fd).st_size
        if len(body) + size > MAX_CARRIED:
            raise KdbusError(E2BIG, f"a body of {len(body) + size} bytes where {MAX_CARRIED} are allowed")
        carried = read_memfd(fd, 0, size)
        return memoryview(b"".join((body, carried)) if body else carried)
    except MemoryError as error:
        raise KdbusError(ENOMEM, f"no memory for a body of {len(body) + size} bytes") from error
