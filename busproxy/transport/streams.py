"""A peer's socket: what comes in, what goes out, and what has to wait.

Reading takes everything the socket has in one `recvmsg` and hands it on.  A
message known to be longer than what was read is collected in a buffer of its
own, so that no byte is copied more than once.

Writing is by turns of the loop: senders append parts to `out` (the fast path
does so without a call) and put the stream on the poller's list; at the end of
the turn everything leaves in one system call.  What the socket does not take
becomes `backlog`: only then it is charged, part by part, to the users who
sent it, and only then the stream waits for the socket.  From there on
`blocked` tells senders to ask the quota first.

`out_marks` says from which part on which user is the sender.  Descriptors are
attached to the part they travel with and are released when it has been sent
or will never be.
"""

from __future__ import annotations

import socket
from array import array
from collections import deque
from errno import ECONNRESET, EPIPE, ETOOMANYREFS
from typing import TYPE_CHECKING, Protocol

from busproxy.transport.fds import FdSet, close_all

if TYPE_CHECKING:
    from busproxy.transport.poller import Poller
    from kdbus_core.quota import Quota, User

READ_SIZE = 120 * 1024
"""Bytes taken from a socket at a time; the share of one peer in a turn.

Just below the size from which the C library maps fresh pages for each buffer, which would cost
several times what the read does.
"""

MAX_PARTS = 512
"""Parts handed to the kernel in one call; its own limit (IOV_MAX) is 1024."""

MAX_FDS = 253
"""File descriptors that can travel at once: SCM_MAX_FD of Linux."""

_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_FDS * 4)

Part = bytes | bytearray | memoryview


class Receiver(Protocol):
    """Whose socket this is."""

    def on_data(self, data: bytes | bytearray, fds: list[int]) -> None:
        """Bytes were read; the receiver owns `fds` now."""

    def on_lost(self, reason: str) -> None:
        """The socket cannot be used any more; the receiver must close it."""

    def on_failure(self, error: Exception) -> None:
        """Dealing with this client has failed in a way that nobody foresaw; the receiver must close it."""


class _Waiting:
    """A part that the socket has not taken yet, and who pays for it."""

    __slots__ = ("data", "fd_count", "fds", "size", "user")

    def __init__(self, data: Part, user: User, fds: FdSet | None) -> None:
        self.data = memoryview(data)
        self.size = len(self.data)
        self.user = user
        self.fds = fds
        self.fd_count = len(fds) if fds is not None else 0


class Stream:
    """One non-blocking stream socket and its queue."""

    __slots__ = (
        "_backlog",
        "_filled",
        "_filling",
        "_quota",
        "_receiver",
        "_recvmsg",
        "_send",
        "_wanted",
        "blocked",
        "closed",
        "deferred",
        "fd",
        "has_large",
        "out",
        "out_fds",
        "out_marks",
        "poller",
        "sock",
        "source",
        "touched",
    )

    def __init__(self, sock: socket.socket, poller: Poller, receiver: Receiver, quota: Quota) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.poller = poller
        self._receiver = receiver
        self._quota = quota
        self._send = sock.send
        self._recvmsg = sock.recvmsg
        self.out: list[Part] = []
        self.out_marks: list[tuple[int, User]] = []
        self.out_fds: list[tuple[int, FdSet]] = []
        self.source: User | None = None
        self.has_large = False
        self.touched = False
        self.blocked = False
        self.closed = False
        self.deferred = False
        self._backlog: deque[_Waiting] = deque()
        self._filling: bytearray | None = None
        self._filled = 0
        self._wanted = 0
        poller.add(self)

    # Reading

    def on_readable(self) -> None:
        """Read once and hand on what came."""
        try:
            if self._filling is not None:
                self._fill(self._filling)
                return
            data, ancillary, flags, _ = self._recvmsg(READ_SIZE, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._receiver.on_lost(error.strerror or str(error))
            return
        fds = _take_fds(ancillary) if ancillary else []
        if flags & socket.MSG_CTRUNC:
            close_all(fds)
            self._receiver.on_lost("file descriptors were lost in transit")
        elif data:
            self._receiver.on_data(data, fds)
        else:
            close_all(fds)
            self._receiver.on_lost("end of stream")

    def defer(self) -> None:
        """Call the receiver again in the next round, without reading more until then."""
        self.deferred = True
        self.poller.deferred.append(self)

    def resume(self) -> None:
        """The next round has come."""
        self.deferred = False
        if not self.closed:
            self._receiver.on_data(b"", [])

    def collect(self, start: bytes | bytearray, size: int) -> None:
        """Collect one message of `size` bytes that begins with `start`.

        The receiver gets exactly that message as a bytearray when it is whole.
        The buffer grows with what comes, not with what was announced.
        """
        self._filling = bytearray(start)
        self._filled = len(start)
        self._wanted = size
        self._grow(self._filling)

    def _grow(self, buffer: bytearray) -> None:
        size = min(self._wanted, max(2 * len(buffer), READ_SIZE))
        buffer.extend(bytes(size - len(buffer)))

    def _fill(self, buffer: bytearray) -> None:
        with memoryview(buffer)[self._filled :] as view:
            count, ancillary, flags, _ = self.sock.recvmsg_into(
                [view], _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
            )
        fds = _take_fds(ancillary) if ancillary else []
        if flags & socket.MSG_CTRUNC:
            close_all(fds)
            self._receiver.on_lost("file descriptors were lost in transit")
            return
        if not count:
            close_all(fds)
            self._receiver.on_lost("end of stream")
            return
        self._filled += count
        if self._filled == self._wanted:
            self._filling = None
            self._receiver.on_data(buffer, fds)
            return
        if self._filled == len(buffer):
            self._grow(buffer)
        if fds:
            self._receiver.on_data(b"", fds)

    # Writing

    def mark(self, user: User) -> None:
        """Say that the parts appended from now on were sent by `user`."""
        self.source = user
        self.out_marks.append((len(self.out), user))

    def push(self, data: Part, user: User, fds: FdSet | None = None) -> None:
        """Queue one message; asks the quota when the socket is behind.

        Holds `fds` on its own.  Raises KdbusError (ENOBUFS, EMFILE) when
        `user` has too much waiting here already.
        """
        if self.closed:
            return
        if self.blocked:
            self._quota.charge(user, len(data), len(fds) if fds is not None else 0)
            self._backlog.append(_Waiting(data, user, fds.hold() if fds is not None else None))
            return
        if self.source is not user:
            self.mark(user)
        if fds is not None:
            self.out_fds.append((len(self.out), fds.hold()))
        self.out.append(data)
        if not self.touched:
            self.touched = True
            self.poller.touch(self)

    def flush(self) -> None:
        """Send what was queued during this turn."""
        self.touched = False
        out = self.out
        if not out or self.closed:
            return
        sent = size = 0
        if self.out_fds or self.blocked:
            self._stash(0)
            self.on_writable()
            return
        try:
            if self.has_large:
                size = sum(map(len, out))
                sent = self.sock.sendmsg(out[:MAX_PARTS])
            else:
                data = out[0] if len(out) == 1 else b"".join(out)
                size = len(data)
                sent = self._send(data)
        except (BlockingIOError, InterruptedError):
            sent, size = 0, 1
        except OSError as error:
            self._on_send_error(error)
            return
        if sent == size:
            out.clear()
            self.out_marks.clear()
            self.source = None
            self.has_large = False
        else:
            self._stash(sent)
            self.on_writable()

    def _on_send_error(self, error: OSError) -> None:
        """A client that reads no more may have sent something before it went: only reading tells its end."""
        if error.errno not in (EPIPE, ECONNRESET):
            self._receiver.on_lost(error.strerror or str(error))
            return
        self._drop_all()
        if self.blocked:
            self.blocked = False
            self.poller.want_readable(self)

    def _drop_all(self) -> None:
        """Let go of everything that waits to be sent."""
        for _, fds in self.out_fds:
            fds.release()
        while self._backlog:
            self._drop(self._backlog.popleft())
        self.out.clear()
        self.out_marks.clear()
        self.out_fds.clear()
        self.source = None
        self.has_large = False

    def _stash(self, sent: int) -> None:
        """Move what is left of `out` after `sent` bytes to the backlog, charged."""
        out = self.out
        fds = dict(self.out_fds)
        ends = [index for index, _ in self.out_marks[1:]] + [len(out)]
        for (start, user), end in zip(self.out_marks, ends, strict=True):
            run: list[Part] = []
            for index in range(start, end):
                part = out[index]
                if sent >= len(part):
                    sent -= len(part)
                    continue
                rest = memoryview(part)[sent:] if sent else part
                sent = 0
                if index in fds:
                    self._wait(run, user, None)
                    self._wait([rest], user, fds[index])
                    run = []
                else:
                    run.append(rest)
            self._wait(run, user, None)
        out.clear()
        self.out_marks.clear()
        self.out_fds.clear()
        self.source = None
        self.has_large = False

    def _wait(self, parts: list[Part], user: User, fds: FdSet | None) -> None:
        if parts:
            waiting = _Waiting(parts[0] if len(parts) == 1 else b"".join(parts), user, fds)
            self._quota.force(user, waiting.size, waiting.fd_count)
            self._backlog.append(waiting)

    def on_writable(self) -> None:
        """Send from the backlog what the socket takes; wait for it when there is more."""
        backlog = self._backlog
        try:
            while backlog:
                first = backlog[0]
                if first.fds is not None:
                    if not self._send_fds(first, first.fds):
                        continue
                else:
                    batch: list[memoryview] = []
                    for waiting in backlog:
                        if waiting.fds is not None or len(batch) == MAX_PARTS:
                            break
                        batch.append(waiting.data)
                    self._consume(self.sock.sendmsg(batch))
        except (BlockingIOError, InterruptedError):
            if not self.blocked:
                self.blocked = True
                self.poller.want_writable(self)
            return
        except OSError as error:
            self._on_send_error(error)
            return
        if self.blocked:
            self.blocked = False
            self.poller.want_readable(self)

    def _send_fds(self, first: _Waiting, fds: FdSet) -> bool:
        """Send a part with its descriptors; False when the kernel will not have them."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds.fds))
        try:
            count = self.sock.sendmsg([first.data], [rights])
        except OSError as error:
            if error.errno != ETOOMANYREFS:
                raise
            # Too many descriptors in flight for this user: the message cannot
            # be delivered; what follows still can.
            self._drop(self._backlog.popleft())
            return False
        fds.release()
        first.fds = None
        self._consume(count)
        return True

    def _consume(self, count: int) -> None:
        backlog = self._backlog
        while count:
            waiting = backlog[0]
            size = len(waiting.data)
            if count < size:
                waiting.data = waiting.data[count:]
                return
            count -= size
            backlog.popleft()
            self._drop(waiting)

    def _drop(self, waiting: _Waiting) -> None:
        self._quota.refund(waiting.user, waiting.size, waiting.fd_count)
        if waiting.fds is not None:
            waiting.fds.release()
            waiting.fds = None

    def fail(self, error: Exception) -> None:
        """Have the client thrown out because of a bug of ours."""
        self._receiver.on_failure(error)

    @property
    def collected(self) -> int:
        """Bytes of an incomplete message that is being collected."""
        return self._filled if self._filling is not None else 0

    def close(self) -> None:
        """Close the socket and let go of everything that waits."""
        if self.closed:
            return
        self.closed = True
        self.poller.remove(self)
        self.sock.close()
        self._drop_all()
        self._filling = None


def _take_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return fds.tolist()
