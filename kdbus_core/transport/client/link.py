"""One socket of a node: requests on their way out, answers on their way in.

What is common to both halves of the library is here: which request an answer
is for, what is posted without waiting, and the end of the link.  How one sends
when there is no room, and who reads, is up to the halves.

A *posted* request is one nobody waits for: a FREE, or a message sent with
`post`.  The broker answers it only when it fails.  So that nothing has to be
kept for those that succeed, the id of a posted message holds its cookie.

The broker need not be asked for a message that is not there: the ready
descriptor says so.  But it says nothing of what is still on its way, so whoever
has asked for something that may bring a message to itself has to ask.

A slice that is given back goes with the next request, in the same packet
(FREEING), unless that finds no room; then it has a packet of its own.

A link ends when it is closed or when the server has gone; everybody who waits
then gets ECONNRESET, and a later command EBADF or ECONNRESET.

A process that forks keeps what it waits for, what it has received and what it
was about to give back: nothing that its child closes or forgets is taken from
it.  The child has a copy of the descriptors.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from errno import (
    EACCES,
    EAGAIN,
    EBADF,
    EBADMSG,
    ECONNREFUSED,
    ECONNRESET,
    ENAMETOOLONG,
    ENOTCONN,
    EPIPE,
)
from itertools import count
from pathlib import Path
from struct import Struct
from weakref import WeakSet

from kdbus_core.abi import Command
from kdbus_core.errors import KdbusError
from kdbus_core.transport.client.operations import Answer, Awaited, Operation, check, close_fds
from kdbus_core.transport.protocol import ANSWER, FREEING, MAX_INLINE, OFFSET, QUIET, REFUSED, REQUEST
from kdbus_core.transport.sockets import PacketReader

ErrorHandler = Callable[[int, KdbusError], None]

_POSTED = 1 << 63
_COOKIE_LIMIT = 1 << 32
_SEQUENCE_MASK = (1 << 30) - 1
"""Of the id of a posted message: one bit says so, then a number, then the cookie in 32 bits."""
_SEND = int(Command.SEND)
_GONE = frozenset({EPIPE, ECONNRESET, ENOTCONN})
_FREEING_REQUEST = Struct(REQUEST.format + OFFSET.format[1:])
MAX_PATH = 107
"""Bytes of the address of a socket."""


class Posted:
    """What waits for the answer to a posted message whose cookie is too large for an id."""

    def __init__(self, link: Link, cookie: int) -> None:
        self._link = link
        self._cookie = cookie

    def resolve(self, answer: Answer) -> None:
        """It may have failed."""
        answer.close()
        self._link.report(self._cookie, answer.errno)

    def fail(self, error: KdbusError) -> None:
        """The end of the link is told to everybody who asks."""


class Link:
    """The socket of a handle, which it owns; `error` says why there will be no further command."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.fileno = sock.fileno()
        self.error: KdbusError | None = None
        self.closed = False
        self.is_forked = False
        """Whether it is the copy of one that was opened before a fork."""
        self.on_error: ErrorHandler | None = None
        self.unreported: KdbusError | None = None
        """The first failure of a posted message that nobody was told of."""
        self._reader = PacketReader(size=MAX_INLINE)
        self._pending: dict[int, Awaited] = {}
        self._next_id = count(1).__next__
        self._frees: deque[int] = deque()
        # What was posted may bring something to ourselves, until a request with a higher id is answered.
        self._echo = 0
        _links.add(self)

    def on_forked(self) -> None:
        """This is the child's copy: what is waited for and still to be given back is the parent's affair."""
        self.is_forked = True
        self._pending.clear()
        self._frees.clear()

    def free(self, offset: int) -> None:
        """Give a slice back: with the next command, so that this waits for nothing."""
        self._frees.append(offset)

    def free_now(self, offset: int) -> None:
        """Give a slice back at once, or where there is no room as soon as there is."""
        raise NotImplementedError

    def close(self) -> None:
        """End the link: who waits gets ECONNRESET.  Twice is as good as once."""
        raise NotImplementedError

    # Out

    def begin(self, operation: Operation[object]) -> tuple[int, bytes]:
        """The id and the packet of a request, whose answer will be awaited."""
        id = self._next_id()
        self._pending[id] = operation
        return id, self._build(operation.number, id, operation.flags, operation.body)

    def begin_post(self, cookie: int, body: bytes, flags: int) -> tuple[int, bytes]:
        """The id and the packet of a SEND that is answered only if it fails."""
        id = self._next_id()
        if cookie < _COOKIE_LIMIT:
            id = _POSTED | (id & _SEQUENCE_MASK) << 32 | cookie
            flags |= QUIET
        else:
            self._pending[id] = Posted(self, cookie)
        return id, self._build(_SEND, id, flags, body)

    def _build(self, number: int, id: int, flags: int, body: bytes) -> bytes:
        """The packet of a request, which takes along a slice that is to be given back."""
        try:
            offset = self._frees.popleft()
        except IndexError:
            return REQUEST.pack(number, id, flags) + body
        return _FREEING_REQUEST.pack(number, id, flags | FREEING, offset) + body

    def detach(self, packet: bytes) -> bytes:
        """A packet that has not been sent, without the slice it would have taken along."""
        number, id, flags = REQUEST.unpack_from(packet)
        if not flags & FREEING:
            return packet
        self._frees.append(OFFSET.unpack_from(packet, REQUEST.size)[0])
        return REQUEST.pack(number, id, flags & ~FREEING) + packet[_FREEING_REQUEST.size :]

    def expect_echo(self) -> None:
        """What was posted just now may bring a message to whoever posted it."""
        self._echo = self._next_id()

    @property
    def is_settled(self) -> bool:
        """Whether nothing that was asked for can still bring a message, so the ready descriptor is right."""
        return not self._pending and not self._echo

    def build_quiet(self, number: int, body: bytes) -> bytes:
        """The packet of a request that is answered only if it fails, which is of no interest."""
        return REQUEST.pack(number, self._next_id(), QUIET) + body

    def explain(self, error: OSError, operation: str) -> KdbusError:
        """What is told of a packet that could not be sent."""
        if self.closed:
            return KdbusError(EBADF, "the handle is closed")
        if self.error is not None:
            return self.gone(self.error)
        if error.errno in _GONE:
            return KdbusError(ECONNRESET, "the server has gone")
        return KdbusError(error.errno or EBADMSG, f"{operation} could not be sent: {error.strerror}")

    # In

    def receive(self) -> int:
        """Read a packet; 0 at the end.  Raises BlockingIOError of a socket that does not wait."""
        try:
            return self._reader.receive(self.socket)
        except BlockingIOError:
            raise
        except ConnectionResetError:
            pass  # what the other end said before it closed may still be there
        except OSError:
            return 0
        try:
            return self._reader.receive(self.socket)
        except BlockingIOError:
            raise
        except OSError:
            return 0

    def dispatch(self, size: int) -> None:
        """Give what was read last to whom it is for; 0 bytes are the end."""
        if not size:
            why = "the handle was closed" if self.closed else "the server has gone"
            self.die(KdbusError(ECONNRESET, why))
            return
        reader = self._reader
        fds = reader.take_fds()
        if size < ANSWER.size or reader.is_too_long:
            close_fds(fds)
            self.die(KdbusError(EBADMSG, f"an answer of {size} bytes is none"))
            return
        id, errno, patches = ANSWER.unpack_from(reader.view)
        awaited = self._pending.pop(id, None)
        if awaited is not None:
            if self._echo < id:
                self._echo = 0
            packet = bytes(reader.view[:size]) if patches else b""
            awaited.resolve(Answer(errno, patches, packet, fds, is_truncated=reader.lacks_fds))
            return
        close_fds(fds)
        if id == REFUSED:
            self.die(KdbusError(errno or EACCES, f"the server refuses the handle: {os.strerror(errno)}"))
        elif id & _POSTED:
            self.report(id & (_COOKIE_LIMIT - 1), errno)

    def report(self, cookie: int, errno: int) -> None:
        """Tell of a posted message that failed."""
        if not errno:
            return
        try:
            check(Answer(errno, 0, b"", []), _SEND)
        except KdbusError as error:
            if self.on_error is not None:
                self.on_error(cookie, error)
            elif self.unreported is None:
                self.unreported = error

    def take_unreported(self) -> None:
        """Raise what nobody was told of."""
        error, self.unreported = self.unreported, None
        if error is not None:
            raise error

    def die(self, error: KdbusError) -> None:
        """Nothing will be answered any more."""
        if self.error is None:
            self.error = error
        while self._pending:
            try:
                _, awaited = self._pending.popitem()
            except KeyError:  # another thread was faster
                return
            awaited.fail(self.gone(error))

    @staticmethod
    def gone(error: KdbusError) -> KdbusError:
        """Why the link has ended, as an error of its own for each who is told."""
        return KdbusError(error.errno, error.why)


_links: WeakSet[Link] = WeakSet()


def _on_forked() -> None:
    for link in list(_links):
        link.on_forked()


os.register_at_fork(after_in_child=_on_forked)


def open_socket(path: str | os.PathLike[str], *, blocking: bool) -> socket.socket:
    """A connected socket of a node; OSError, and BlockingIOError where it would have to wait."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(blocking)
        _connect(sock, os.fspath(path))
        return sock
    except BaseException:
        sock.close()
        raise


def _connect(sock: socket.socket, path: str) -> None:
    if len(os.fsencode(path)) <= MAX_PATH:
        sock.connect(path)
        return
    # An address has less room than a path may need; the directory's descriptor is a short way to it.
    directory = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = Path(path).name
        if len(os.fsencode(name)) > MAX_PATH - 24:
            raise OSError(ENAMETOOLONG, os.strerror(ENAMETOOLONG), path)
        sock.connect(f"/proc/self/fd/{directory}/{name}")
    finally:
        os.close(directory)


def explain_open(path: str | os.PathLike[str], error: OSError) -> KdbusError:
    """What is told of a node that could not be opened."""
    reason = "nobody serves it" if error.errno == ECONNREFUSED else error.strerror
    return KdbusError(error.errno or EAGAIN, f"cannot open {os.fspath(path)}: {reason}")
