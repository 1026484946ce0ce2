"""All peers' sockets in one epoll set, served without a callback of the loop for each.

With many peers a loop callback per socket costs more than a message does, and
so does going through the loop for every message.  So peers' sockets are served
right where the daemon waits.  There are two ways to put that into a loop:

- asyncio's own loop takes a selector: `LoopSelector` keeps the loop's
  descriptors in the same epoll set, serves peers inside `select` and returns
  to the loop only for what the loop is for (clients arriving, timers, signals,
  children).
- a loop that brings its own waiting (uvloop) watches the epoll set itself as
  one descriptor and drains it in one callback (`nest_in`).

Either way a round serves every ready socket once (each reads at most its
share), then sends everything that was queued on the way.
"""

from __future__ import annotations

import contextlib
import select
import selectors
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from busproxy.transport.streams import Stream

_READ = select.EPOLLIN
_WRITE = select.EPOLLOUT
_FAILED = select.EPOLLHUP | select.EPOLLERR
_READABLE = _READ | _FAILED

MAX_EVENTS = 512

MAX_DRAIN = 0.01
"""Seconds of a drain before a loop that is not ours gets its turn."""


class Poller:
    """The epoll set of one daemon, and the streams to flush at the end of a round.

    `before_round` is called before the streams of a round are served; what it queues leaves with the round.
    """

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.touched: list[Stream] = []
        self.deferred: list[Stream] = []
        self.before_round: Callable[[], None] | None = None
        self._streams: dict[int, Stream] = {}
        self._serving = False
        self._hurried = False
        self._schedule: Callable[[Callable[[], None]], object] | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say which loop this poller serves in; what is queued outside a round is flushed by it."""
        self._schedule = loop.call_soon

    def nest_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Be one descriptor of a loop that has its own way of waiting."""
        self.attach(loop)
        loop.add_reader(self.epoll.fileno(), self._drain)

    def close(self) -> None:
        self.epoll.close()

    # Streams

    def add(self, stream: Stream) -> None:
        self.epoll.register(stream.fd, _READ)
        self._streams[stream.fd] = stream

    def remove(self, stream: Stream) -> None:
        self.epoll.unregister(stream.fd)
        del self._streams[stream.fd]

    def want_writable(self, stream: Stream) -> None:
        self.epoll.modify(stream.fd, _READ | _WRITE)

    def want_readable(self, stream: Stream) -> None:
        self.epoll.modify(stream.fd, _READ)

    def hurry(self) -> None:
        """Something was scheduled on the loop: it must get its turn after this round."""
        self._hurried = True

    def touch(self, stream: Stream) -> None:
        """Have a stream flushed at the end of this round, or soon if none is under way."""
        if not self._serving and not self.touched and self._schedule is not None:
            self._hurried = True
            self._schedule(self.flush)
        self.touched.append(stream)

    def flush(self) -> None:
        """Send what was queued."""
        touched = self.touched
        while touched:
            stream = touched.pop()
            try:
                stream.flush()
            except Exception as error:  # a bug must cost one client, never the bus
                stream.fail(error)

    # Rounds

    def serve(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """One round: deal with the ready streams and flush; returns the events that are not ours."""
        streams = self._streams
        foreign: list[tuple[int, int]] = []
        self._serving = True
        try:
            if self.before_round is not None:
                self.before_round()
            deferred, self.deferred = self.deferred, []
            for fd, event in events:
                stream = streams.get(fd)
                if stream is None:
                    foreign.append((fd, event))
                    continue
                try:
                    if event & _READABLE and not stream.deferred:
                        stream.on_readable()
                        if stream.closed:
                            continue
                    if event & _WRITE:
                        stream.on_writable()
                except Exception as error:  # a bug must cost one client, never the bus
                    stream.fail(error)
            if deferred:
                self._resume(deferred)
            self.flush()
        finally:
            self._serving = False
        return foreign

    @staticmethod
    def _resume(deferred: list[Stream]) -> None:
        for stream in deferred:
            try:
                stream.resume()
            except Exception as error:  # as above
                stream.fail(error)

    def wait(self, timeout: float | None) -> list[tuple[int, int]]:
        """Serve streams until something else is ready, the time (seconds) is over or the loop is wanted."""
        poll = self.epoll.poll
        deadline = None if timeout is None or timeout <= 0 else time.monotonic() + timeout
        self._hurried = False
        while True:
            events = poll(0 if self.deferred else timeout, MAX_EVENTS)
            if not events and not self.deferred:
                return []
            foreign = self.serve(events)
            if foreign or self._hurried or timeout == 0:
                return foreign
            if deadline is not None:
                timeout = deadline - time.monotonic()
                if timeout <= 0:
                    return []

    def _drain(self) -> None:
        end = time.monotonic() + MAX_DRAIN
        self._hurried = False
        while True:
            events = self.epoll.poll(0, MAX_EVENTS)
            if not events and not self.deferred:
                return
            self.serve(events)
            if self._hurried or time.monotonic() >= end:
                if self.deferred and self._schedule is not None:
                    self._schedule(self._drain)
                return


class LoopSelector(selectors.BaseSelector):
    """The poller as the selector of asyncio's loop."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = _descriptor(fileobj)
        if fd in self._keys:
            raise KeyError(f"descriptor {fd} is registered already")
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        self._poller.epoll.register(fd, _mask(events))
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = self._keys.pop(_descriptor(fileobj))
        with contextlib.suppress(OSError):  # closed before: the kernel has forgotten it already
            self._poller.epoll.unregister(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fd = _descriptor(fileobj)
        key = self._keys[fd] = selectors.SelectorKey(fileobj, fd, events, data)
        self._poller.epoll.modify(fd, _mask(events))
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None:
            timeout = max(timeout, 0)
        ready = []
        for fd, event in self._poller.wait(timeout):
            key = self._keys.get(fd)
            if key is not None:
                happened = 0
                if event & ~_WRITE:
                    happened |= selectors.EVENT_READ
                if event & ~_READ:
                    happened |= selectors.EVENT_WRITE
                ready.append((key, happened & key.events))
        return ready

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys[_descriptor(fileobj)]

    def close(self) -> None:
        self._keys.clear()
        self._poller.close()


def _descriptor(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())


def _mask(events: int) -> int:
    return (_READ if events & selectors.EVENT_READ else 0) | (_WRITE if events & selectors.EVENT_WRITE else 0)
