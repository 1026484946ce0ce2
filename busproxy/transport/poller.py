"""All peers' sockets in one epoll set, drained in one callback of the loop.

With many peers a loop callback per socket costs more than a message does.  So
the sockets are in an epoll set of their own whose descriptor is registered
with asyncio, which keeps what is rare: accepting, timers, signals, children.

A drain serves every ready socket once (each reads at most its share), then
sends everything that was queued on the way, and looks again as long as there
is something, for a bounded number of rounds, so that the loop gets its turn.
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from busproxy.transport.streams import Stream

_READ = select.EPOLLIN
_READ_WRITE = select.EPOLLIN | select.EPOLLOUT
_FAILED = select.EPOLLHUP | select.EPOLLERR

MAX_EVENTS = 512
MAX_ROUNDS = 32


class Poller:
    """The epoll set of one daemon, nested in its loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._streams: dict[int, Stream] = {}
        self.touched: list[Stream] = []
        self._draining = False
        self._flush_scheduled = False
        loop.add_reader(self._epoll.fileno(), self._drain)

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def add(self, stream: Stream) -> None:
        self._streams[stream.fd] = stream
        self._epoll.register(stream.fd, _READ)

    def remove(self, stream: Stream) -> None:
        self._epoll.unregister(stream.fd)
        del self._streams[stream.fd]

    def want_writable(self, stream: Stream) -> None:
        self._epoll.modify(stream.fd, _READ_WRITE)

    def want_readable(self, stream: Stream) -> None:
        self._epoll.modify(stream.fd, _READ)

    def touch(self, stream: Stream) -> None:
        """Have a stream flushed at the end of this turn."""
        self.touched.append(stream)
        if not self._draining and not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what was queued during this turn."""
        self._flush_scheduled = False
        touched = self.touched
        while touched:
            touched.pop().flush()

    def _drain(self) -> None:
        streams = self._streams
        touched = self.touched
        poll = self._epoll.poll
        self._draining = True
        try:
            for _ in range(MAX_ROUNDS):
                events = poll(0, MAX_EVENTS)
                if not events:
                    break
                for fd, event in events:
                    stream = streams.get(fd)
                    if stream is None:
                        continue
                    if event & _READ or event & _FAILED:
                        stream.on_readable()
                        if stream.closed:
                            continue
                    if event & select.EPOLLOUT:
                        stream.on_writable()
                while touched:
                    touched.pop().flush()
        finally:
            self._draining = False
