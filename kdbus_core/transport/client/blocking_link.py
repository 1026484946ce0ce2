"""A link for threads: whoever waits reads, for all who wait.

Several threads may use a link at the same time.  One of those that wait for an
answer is the *reader*: it waits at the socket and gives every answer to whom it
is for.  When it has its own, another one takes over.  A thread that is alone is
always the reader and pays nothing for the others.

Sending never waits with the answers unread: when the socket is full, what has
been answered is read first, because the server takes no further request from
somebody who does not take its answers.

The link may be closed at any time, by any thread and in a signal handler.  Who
is *inside* is noted before it looks whether the link is closed, and the last one
to leave a closed link closes the descriptors, so no number is ever used that
belongs to somebody else by then.

A signal handler may raise at any instruction.  So who is inside and who reads is
said by tokens that are taken back where they are found, not by counters and
locks, which would not tell whether one had just been taken.  Nearly always it
raises while something is waited for, and then nothing is lost.  If an answer
is *in hand* just then, nobody knows what has become of it, and the link ends.
"""

from __future__ import annotations

import select
import socket
from _thread import LockType, allocate_lock
from array import array
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from errno import EBADF, ECONNRESET
from threading import RLock
from typing import Any, TypeVar

from kdbus_core.abi import Command
from kdbus_core.errors import KdbusError
from kdbus_core.transport.client.building import build_free
from kdbus_core.transport.client.link import Link
from kdbus_core.transport.client.operations import Operation, name_of

T = TypeVar("T")

READ_EVERY = 32
"""After how many posted messages it is looked whether any of them failed."""
_CHECK_MS = 50
"""How long one who cannot send trusts another thread to read."""
_LOOK_AGAIN_S = 1.0
"""How long one who follows a reader trusts it to say so when something has been read."""
_SEND_FLAGS = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
_RIGHTS = int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS)
_SEND = int(Command.SEND)
_FREE = int(Command.FREE)


class BlockingLink(Link):
    """A link whose commands wait; `on_closed` is called once, when nobody is inside any more."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.on_closed: Callable[[], None] | None = None
        self._open = [sock]
        """What is still to be closed; who takes it out closes it."""
        self._inside: set[object] = set()
        self._reading: object | None = None
        self._answers = select.poll()
        self._answers.register(self.fileno, select.POLLIN)
        self._in_hand = False
        self._choosing = RLock()
        self._gates: deque[LockType] = deque()
        self._posted = 0
        self._ready: select.poll | None = None

    def on_forked(self) -> None:
        """This is the child's copy: none of the threads that were inside is here."""
        super().on_forked()
        self._inside.clear()
        self._gates.clear()
        self._choosing = RLock()
        self._reading = None
        self._in_hand = False

    def enter(self, token: object) -> None:
        """Begin to use the descriptors, until `leave`; EBADF, ECONNRESET once there is nothing to use."""
        self._inside.add(token)
        if self.closed:
            raise KdbusError(EBADF, "the handle is closed")
        if self.error is not None:
            raise self.gone(self.error)

    def leave(self, token: object) -> None:
        """End using them; also for who has not been let in."""
        self._inside.discard(token)
        if self.closed and not self._inside:
            self._dispose()

    def close(self) -> None:
        """End the link: who waits gets ECONNRESET.  Twice is as good as once."""
        self.closed = True
        if not self._inside:
            self._dispose()
        else:
            self._shut_down()

    def _shut_down(self) -> None:
        """Wake whoever waits at the socket."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def _dispose(self) -> None:
        try:
            sock = self._open.pop()
        except IndexError:  # somebody else does
            return
        self.die(KdbusError(EBADF, "the handle is closed"))
        sock.close()
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed()

    # Commands

    def perform(self, operation: Operation[T]) -> T:
        """Send a request and wait for its answer."""
        id = 0
        try:
            self.enter(operation)
            if len(self._frees) > 1:
                self._flush_frees()
            id, packet = self.begin(operation)  # type: ignore[arg-type]  # what it results in is its own
            self._send(packet, operation)
            if operation.owned:
                operation.close_owned()
            if not operation.done:
                self._wait_for(operation)
        except KdbusError:  # it was not sent
            self._pending.pop(id, None)
            operation.withdraw()
            raise
        except BaseException:
            operation.close_owned()
            operation.abandon()
            raise
        finally:
            self._inside.discard(operation)
            if self.closed:
                self.leave(operation)
        return operation.outcome()

    def post(self, cookie: int, operation: Operation[Any]) -> None:
        """Send a SEND without waiting for its answer."""
        id = 0
        try:
            self.enter(operation)
            if len(self._frees) > 1:
                self._flush_frees()
            id, packet = self.begin_post(cookie, operation.body, operation.flags)
            self._send(packet, operation)
            self._posted += 1
            if self._posted >= READ_EVERY:
                self._posted = 0
                self._read_available(operation)
        except KdbusError:
            self._pending.pop(id, None)
            raise
        finally:
            self._inside.discard(operation)
            operation.close_owned()
            if self.closed:
                self.leave(operation)

    def fire(self, number: int, body: bytes) -> None:
        """Send a request whose answer is of no interest, if there is room for it."""
        token = object()
        try:
            self.enter(token)
            self.socket.send(self.build_quiet(number, body), _SEND_FLAGS)
        except (KdbusError, OSError):
            pass
        finally:
            self._inside.discard(token)
            if self.closed:
                self.leave(token)

    def free_now(self, offset: int) -> None:
        """Give a slice back at once, or where there is no room with the next command."""
        self._frees.append(offset)
        self.flush()

    def flush(self) -> None:
        """Send what was put off, as far as there is room."""
        if not self._frees:
            return
        token = object()
        try:
            self.enter(token)
            self._flush_frees()
        except KdbusError:  # with the link all slices have gone
            pass
        finally:
            self._inside.discard(token)
            if self.closed:
                self.leave(token)

    def _flush_frees(self) -> None:
        while True:
            try:
                offset = self._frees.popleft()
            except IndexError:
                return
            try:
                self.socket.send(self.build_quiet(_FREE, build_free(offset)), _SEND_FLAGS)
            except BlockingIOError:
                self._frees.appendleft(offset)
                return
            except OSError:  # the link has ended, and with it all slices
                return

    # Sending

    def _send(self, packet: bytes, operation: Operation[Any]) -> None:
        """Send a packet, whatever has to be read before there is room; KdbusError when it cannot be."""
        fds = operation.fds
        while True:
            try:
                if fds:
                    self.socket.sendmsg([packet], [(*_RIGHTS, array("i", fds))], _SEND_FLAGS)
                else:
                    self.socket.send(packet, _SEND_FLAGS)
                return
            except BlockingIOError:
                packet = self.detach(packet)
                self._make_room(operation)
            except OSError as error:
                self.detach(packet)
                self._read_available(operation)  # the other end is closed perhaps, and has said why
                raise self.explain(error, name_of(operation.number)) from error

    def _make_room(self, token: object) -> None:
        """Wait until something more can be sent, reading what is answered meanwhile."""
        try:
            is_reader = self._try_to_read(token)
            poll = select.poll()
            poll.register(self.fileno, select.POLLOUT | (select.POLLIN if is_reader else 0))
            # Somebody else reads, and may stop at any time.
            events = poll.poll(None if is_reader else _CHECK_MS)
            if is_reader and events and events[0][1] & ~select.POLLOUT:
                self._take()
        finally:
            self._stop_reading(token)

    # Reading

    def _try_to_read(self, token: object) -> bool:
        """Become the reader, if there is none who is inside, until `_stop_reading`."""
        is_lost = False
        with self._choosing:
            if self._reading is None or self._reading not in self._inside:
                is_lost, self._in_hand = self._in_hand, False
                self._reading = token
        if is_lost:
            self._lose()
        return self._reading is token

    def _stop_reading(self, token: object) -> None:
        """If this is the reader, let another one be it."""
        with self._choosing:
            if self._reading is not token:
                return
            is_lost, self._in_hand = self._in_hand, False
            self._reading = None
        if is_lost:
            self._lose()
        if self._gates:
            self._open_gates()

    def _lose(self) -> None:
        """An answer was in hand when an exception came."""
        self.die(KdbusError(ECONNRESET, "an exception came while an answer was read"))
        self._shut_down()

    def _wait_for(self, operation: Operation[T]) -> None:
        try:
            while not operation.done:
                if self.error is not None:
                    # Whoever had it in hand may be gone, so this does not wait for being told.
                    self.die(self.error)
                    operation.abandon()
                    operation.fail(self.gone(self.error))
                elif self._try_to_read(operation):
                    while not operation.done and self.error is None:
                        self._answers.poll()
                        self._take()
                else:
                    self._follow(operation)
        finally:
            if self._reading is operation:
                self._stop_reading(operation)

    def _follow(self, operation: Operation[T]) -> None:
        """Wait until the reader has read something, or stops."""
        gate = allocate_lock()
        gate.acquire()
        self._gates.append(gate)
        if not operation.done and self._reading is not None:
            # A handler's exception may have kept a reader from opening the gate.
            gate.acquire(timeout=_LOOK_AGAIN_S)

    def _open_gates(self) -> None:
        """Let all who follow look whether they have their answer."""
        while True:
            try:
                self._gates.popleft().release()
            except IndexError:
                return

    def _take(self) -> None:
        """Read the packet that is there; only the reader does."""
        self._in_hand = True
        self.dispatch(self.receive())
        self._in_hand = False
        if self._gates:
            self._open_gates()

    def _read_available(self, token: object) -> None:
        """Read what is there, unless somebody else is reading."""
        try:
            if self._try_to_read(token):
                while self.error is None and self._answers.poll(0):
                    self._take()
        finally:
            self._stop_reading(token)

    # Waiting

    def wait(self, event_fd: int, timeout_ms: float | None) -> bool:
        """Until a descriptor is readable or the link has ended; False after so many milliseconds."""
        self.flush()
        token = object()
        try:
            self.enter(token)
            poll = select.poll()
            poll.register(event_fd, select.POLLIN)
            poll.register(self.fileno, 0)
            return bool(poll.poll(timeout_ms))
        finally:
            self._inside.discard(token)
            if self.closed:
                self.leave(token)

    def may_receive(self, event_fd: int) -> bool:
        """Whether a descriptor is readable or the link has ended now, as far as can be known at once."""
        token = object()
        try:
            self.enter(token)
            ready = self._ready
            if ready is None:
                ready = select.poll()
                ready.register(event_fd, select.POLLIN)
                ready.register(self.fileno, 0)
                self._ready = ready
            return bool(ready.poll(0))
        except RuntimeError:  # another thread is looking
            return True
        finally:
            self._inside.discard(token)
            if self.closed:
                self.leave(token)
