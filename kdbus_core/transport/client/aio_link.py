"""A link in an event loop: answers are read as they come, requests wait in line where there is no room.

The loop is any with `add_reader` and `add_writer` (asyncio's own, uvloop).  A
request that finds the socket full waits behind those before it, and whoever
made it waits with it: that is the back-pressure.  Who stops waiting takes a
request back that was not sent yet; of one that was sent the answer is disposed
of when it comes.
"""

from __future__ import annotations

import asyncio
import socket
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from errno import EBADF, ECHILD, ECONNRESET
from functools import partial
from typing import Any, TypeVar

from kdbus_core.abi import Command
from kdbus_core.errors import KdbusError
from kdbus_core.transport.client.building import build_free
from kdbus_core.transport.client.link import Link
from kdbus_core.transport.client.operations import Operation, name_of

T = TypeVar("T")

READ_LIMIT = 64
"""Packets read at once before others in the loop have their turn."""
_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_FREE = int(Command.FREE)
_RIGHTS = socket.SOL_SOCKET, socket.SCM_RIGHTS


class _Waiting:
    """A request that found no room: `sent` is done when it is out, or never will be for `error`."""

    __slots__ = ("error", "fds", "id", "number", "packet", "sent")

    def __init__(
        self, id: int, packet: bytes, fds: Sequence[int], number: int, sent: asyncio.Future[None]
    ) -> None:
        self.id = id
        self.packet = packet
        self.fds = fds
        self.number = number
        self.sent = sent
        self.error: KdbusError | None = None


class AioLink(Link):
    """A link of one event loop; `on_closed` is called once, when it is closed."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(sock)
        self.loop = loop
        self.on_closed: Callable[[], None] | None = None
        self._line: deque[_Waiting] = deque()
        self._waiters: dict[int, set[asyncio.Future[None]]] = {}
        self._is_reading = True
        loop.add_reader(self.fileno, self._on_readable)

    def on_forked(self) -> None:
        """This is the child's copy, and the loop is the parent's."""
        super().on_forked()
        self.error = KdbusError(ECHILD, "the event loop is that of the parent process")

    def check(self) -> None:
        """EBADF, ECONNRESET once there is nothing to use."""
        if self.closed:
            raise KdbusError(EBADF, "the handle is closed")
        if self.error is not None:
            raise self.gone(self.error)

    @property
    def is_settled(self) -> bool:
        """Whether nothing that was asked for can still bring a message, so the ready descriptor is right."""
        return not self._line and super().is_settled

    def close(self) -> None:
        """End the link: who waits gets ECONNRESET.  Twice is as good as once."""
        if self.closed:
            return
        self.closed = True
        self.die(KdbusError(ECONNRESET, "the handle was closed"))
        self.socket.close()
        on_closed, self.on_closed = self.on_closed, None
        if on_closed is not None:
            on_closed()

    def die(self, error: KdbusError) -> None:
        """Nothing will be answered any more; everybody who waits for anything is woken."""
        if not self.loop.is_closed() and not self.is_forked:  # or the loop of the parent would forget it
            if self._is_reading:
                self.loop.remove_reader(self.fileno)
            if self._line:
                self.loop.remove_writer(self.fileno)
            for fd in self._waiters:
                self.loop.remove_reader(fd)
        self._is_reading = False
        super().die(error)
        line, self._line = self._line, deque()
        for waiting in line:
            waiting.error = self.gone(error)
            _wake(waiting.sent)
        waiters, self._waiters = self._waiters, {}
        for futures in waiters.values():
            for future in futures:
                _wake(future)

    # Commands

    async def perform(self, operation: Operation[T]) -> T:
        """Send a request and wait for its answer."""
        try:
            self.check()
        except KdbusError:
            operation.withdraw()
            raise
        if len(self._frees) > 1:
            self._flush_frees()
        id, packet = self.begin(operation)  # type: ignore[arg-type]  # what it results in is its own
        try:
            await self._send(id, packet, operation.fds, operation.number)
        except BaseException:
            if self._pending.get(id) is operation:  # it is out, and will be answered
                operation.close_owned()
                operation.abandon()
            else:
                operation.withdraw()
            raise
        if operation.owned:
            operation.close_owned()
        if not operation.done:
            future = self.loop.create_future()
            operation.on_done = partial(_wake, future)
            try:
                await future
            except BaseException:
                operation.abandon()
                raise
        return operation.outcome()

    async def post(self, cookie: int, operation: Operation[Any]) -> None:
        """Send a SEND without waiting for its answer."""
        try:
            self.check()
            if len(self._frees) > 1:
                self._flush_frees()
            id, packet = self.begin_post(cookie, operation.body, operation.flags)
            await self._send(id, packet, operation.fds, operation.number)
        finally:
            operation.close_owned()

    def fire(self, number: int, body: bytes) -> None:
        """Send a request whose answer is of no interest, if not now then when there is room."""
        if self.error is not None:
            return
        id = self._next_id()
        packet = self.build_quiet(number, body)
        if self._line:
            self._stand_in_line(id, packet, (), number)
            return
        try:
            self.socket.send(packet, _NOSIGNAL)
        except BlockingIOError:
            self._stand_in_line(id, packet, (), number)
        except OSError:  # the end of the link is told to those who wait
            pass

    def free_now(self, offset: int) -> None:
        """Give a slice back at once, or where there is no room as soon as there is."""
        self._frees.append(offset)
        self.flush()

    def flush(self) -> None:
        """Send what was put off, as far as there is room."""
        if self._frees and self.error is None:
            self._flush_frees()

    def _flush_frees(self) -> None:
        frees = self._frees
        while frees and not self._line:
            packet = self.build_quiet(_FREE, build_free(frees[0]))
            try:
                self.socket.send(packet, _NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:  # the link has ended, and with it all slices
                frees.clear()
                return
            frees.popleft()

    # Sending

    async def _send(self, id: int, packet: bytes, fds: Sequence[int], number: int) -> None:
        """Send a request; one that is not sent is awaited no longer."""
        if not self._line:
            try:
                self._send_now(packet, fds)
                return
            except BlockingIOError:
                pass
            except OSError as error:
                self._pending.pop(id, None)
                self.detach(packet)
                self._on_readable()  # the other end is closed perhaps, and has said why
                raise self.explain(error, name_of(number)) from error
        waiting = self._stand_in_line(id, self.detach(packet), fds, number)
        try:
            await waiting.sent
        except asyncio.CancelledError:
            if waiting in self._line:
                self._pending.pop(id, None)
                self._line.remove(waiting)
                self._leave_line()
            raise
        if waiting.error is not None:
            self._pending.pop(id, None)
            raise waiting.error

    def _send_now(self, packet: bytes, fds: Sequence[int]) -> None:
        if fds:
            self.socket.sendmsg([packet], [(*_RIGHTS, array("i", fds))], _NOSIGNAL)
        else:
            self.socket.send(packet, _NOSIGNAL)

    def _stand_in_line(self, id: int, packet: bytes, fds: Sequence[int], number: int) -> _Waiting:
        waiting = _Waiting(id, packet, fds, number, self.loop.create_future())
        if not self._line:
            self.loop.add_writer(self.fileno, self._on_writable)
        self._line.append(waiting)
        return waiting

    def _leave_line(self) -> None:
        if not self._line and not self.loop.is_closed() and self.error is None:
            self.loop.remove_writer(self.fileno)

    def _on_writable(self) -> None:
        line = self._line
        while line:
            waiting = line[0]
            try:
                self._send_now(waiting.packet, waiting.fds)
            except BlockingIOError:
                return
            except OSError as error:
                waiting.error = self.explain(error, name_of(waiting.number))
            line.popleft()
            _wake(waiting.sent)
        self._leave_line()
        self.flush()

    # Reading

    def _on_readable(self) -> None:
        for _ in range(READ_LIMIT):
            if self.error is not None:
                return
            try:
                size = self.receive()
            except BlockingIOError:
                return
            self.dispatch(size)

    # Waiting

    async def wait(self, fd: int) -> None:
        """Until a descriptor is readable or the link has ended."""
        self.flush()
        self.check()
        future = self.loop.create_future()
        futures = self._waiters.get(fd)
        if futures is None:
            futures = self._waiters[fd] = set()
            self.loop.add_reader(fd, self._on_event, fd)
        futures.add(future)
        try:
            await future
        finally:
            futures.discard(future)
            if not futures and self._waiters.get(fd) is futures:
                del self._waiters[fd]
                if not self.loop.is_closed() and not self.is_forked:
                    self.loop.remove_reader(fd)

    def _on_event(self, fd: int) -> None:
        self.loop.remove_reader(fd)
        for future in self._waiters.pop(fd, ()):
            _wake(future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
