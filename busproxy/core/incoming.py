"""What the remote broker has for us, read in the one order of the bus.

Each of our connections has a queue of its own, but there is one order of everything that happens on a bus,
and clients are to see that.  Every message and notification carries its number in it (TIMESTAMP).  So all
queues are read before anything that was in them is told, and it is told by these numbers.

What is read is not anybody's yet to whom it could be charged, and clients have to be sent one large message
before there is room for the next.  So no queue is read further, for now, than a number of messages, of bytes
or of descriptors, and payload in sealed memory stays in it; the rest waits at the broker.

Reading takes time, in which more comes.  What has a number up to N is known to be complete when all queues
were read once more after N was seen; what is above waits for the next time (`is_behind`).  A message without
a number, because its sender does not grant it, comes right after what its own queue gave before.

The intake owns its epoll set.  Links and what they give belong to whoever added them.
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from errno import EBADMSG, ECONNRESET, EMFILE
from typing import TYPE_CHECKING

from busproxy.core.links import Link, Role
from kdbus_core.errors import KdbusError
from kdbus_core.message import DstName, Fds, Memfd, Message, MessageItem, Vec, Zeros
from kdbus_core.transport.client import SealedMemory
from kdbus_core.transport.files import OpenFile

if TYPE_CHECKING:
    from kdbus_core.transport.client import Notification, Received

_READABLE = select.EPOLLIN
_ONCE_EACH = select.EPOLLIN | select.EPOLLET
_NOTHING = 0  # hang-ups and errors are reported all the same

MAX_AT_ONCE = 512
"""Messages read from one connection before the others have their turn."""

MAX_FDS_AT_ONCE = 16
"""Descriptors, those of sealed memory among them, after which a connection is read no further for now."""

MAX_BYTES_AT_ONCE = 1024 * 1024
"""Bytes of payload after which a connection is read no further for now."""

_NEVER = 1 << 64


@dataclass(slots=True)
class Arrival:
    """Something that was read: a notification, or a message and the id of its sender."""

    sequence: int
    link: Link
    content: Notification | Message
    sender: int = 0
    is_numbered: bool = True

    def drop(self) -> None:
        """Nobody will take it."""
        if isinstance(self.content, Message):
            self.content.release()


class Intake:
    """The queues of all links, read together."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._links: dict[int, Link] = {}
        self._lifeline = -1
        self._held: list[Arrival] = []
        self._ready: deque[Arrival] = deque()
        self._awake: dict[Link, None] = {}
        self._is_cut = False  # there is more in a queue than was read of it
        self.lost = 0  # how many messages and notifications found no room in a pool
        self.is_blind = False  # some of them were the watcher's

    def fileno(self) -> int:
        """A descriptor that is readable while there is something to read."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Drop what was not taken."""
        for arrival in (*self._ready, *self._held):
            arrival.drop()
        self._ready.clear()
        self._held.clear()
        self._awake.clear()
        self._links.clear()
        self._epoll.close()

    def add(self, link: Link) -> None:
        """Read this link's queue from now on; the watcher's own end is everybody's."""
        fd = link.remote.fileno()
        self._epoll.register(fd, _ONCE_EACH if link.role is Role.ACTIVATOR else _READABLE)
        self._links[fd] = link
        if link.role is Role.WATCHER:
            self._lifeline = link.remote.socket_fileno()
            self._epoll.register(self._lifeline, _NOTHING)

    def remove(self, link: Link) -> None:
        """Read it no more, and forget what was read and not taken."""
        fd = link.remote.fileno()
        if self._links.pop(fd, None) is None:
            return
        self._epoll.unregister(fd)
        self._awake.pop(link, None)
        for arrival in self._ready:
            if arrival.link is link:
                arrival.drop()
        for arrival in self._held:
            if arrival.link is link:
                arrival.drop()
        self._ready = deque(arrival for arrival in self._ready if arrival.link is not link)
        self._held = [arrival for arrival in self._held if arrival.link is not link]

    @property
    def is_behind(self) -> bool:
        """Whether there is more to tell, for which there has to be another reading first."""
        return bool(self._held) or self._is_cut

    def take(self) -> Arrival | None:
        """The next of what may be told."""
        return self._ready.popleft() if self._ready else None

    def take_awake(self) -> Link | None:
        """The next activator that something was sent to."""
        for link in self._awake:
            del self._awake[link]
            return link
        return None

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to read; False when there was not."""
        return bool(self._epoll.poll(seconds, 1))

    def read(self) -> None:
        """Read all queues; raises KdbusError, ECONNRESET or ESHUTDOWN when the broker has gone."""
        bound = self._pass()
        self._is_cut = bound != _NEVER
        if not self._held:
            return
        complete = max(arrival.sequence for arrival in self._held)
        following = self._pass()
        self._is_cut = following != _NEVER
        bound = min(bound, following, complete)
        self._held.sort(key=_in_order)
        count = 0
        while count < len(self._held) and self._held[count].sequence <= bound:
            count += 1
        self._ready.extend(self._held[:count])
        del self._held[:count]

    def _pass(self) -> int:
        """Read everything once; returns up to which number that is all there was."""
        bound = _NEVER
        for fd, event in self._epoll.poll(0, len(self._links) + 1):
            link = self._links.get(fd)
            if link is None:
                if fd == self._lifeline and event:
                    raise KdbusError(ECONNRESET, "the broker has closed the connection")
            elif link.role is Role.ACTIVATOR:
                self._awake[link] = None
            elif not self._empty(link):
                bound = min(bound, link.last)
        return bound

    def _empty(self, link: Link) -> bool:
        """Read one queue; False when there may be more in it."""
        remote = link.remote
        lost = remote.lost
        size = fds = 0
        try:
            for _ in range(MAX_AT_ONCE):
                try:
                    received = remote.receive()
                except KdbusError as error:
                    if error.errno == EBADMSG:
                        self.lost += 1  # it has gone all the same
                        continue
                    if link.role is Role.WATCHER:
                        raise
                    self._give_up(link)
                    return True
                if received is None:
                    return True
                size += received.payload_size
                fds += self._take(link, received)
                if fds >= MAX_FDS_AT_ONCE or size >= MAX_BYTES_AT_ONCE:
                    break
            return False
        finally:
            if remote.lost != lost:
                self.lost += remote.lost - lost
                if link.role is Role.WATCHER:
                    self.is_blind = True

    def _give_up(self, link: Link) -> None:
        """Nothing can be received there any more; that it has ended is what the watcher will be told."""
        fd = link.remote.fileno()
        del self._links[fd]
        self._epoll.unregister(fd)
        with suppress(OSError), socket.socket(fileno=os.dup(link.remote.socket_fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)

    def _take(self, link: Link, received: Received) -> int:
        """Take over what was read; how many descriptors came with it."""
        with received:
            try:
                arrival = self._arrival(link, received)
            except KdbusError:  # it cannot be made sense of
                self.lost += 1
                return 0
        self._held.append(arrival)
        content = arrival.content
        if not isinstance(content, Message):
            return 0
        return content.fd_count + sum(isinstance(part, Memfd) for part in content.parts)

    def _arrival(self, link: Link, received: Received) -> Arrival:
        stamp = received.metadata.timestamp
        if stamp is not None:
            link.last = stamp.seqnum
        notification = received.notification
        if notification is not None:
            return Arrival(link.last, link, notification)
        message = copy_message(received)
        return Arrival(link.last, link, message, received.sender, stamp is not None)


def _in_order(arrival: Arrival) -> tuple[int, bool, bool]:
    """By number; of the same number the watcher's first, then the monitor's, which sees it first."""
    return arrival.sequence, arrival.link.role is not Role.WATCHER, arrival.link.role is not Role.MONITOR


def copy_message(received: Received) -> Message:
    """A received message as it was sent, on its own: nothing in it refers to the pool.  EBADMSG.

    The descriptors are the message's from now on.  Without one for its payload it has none, which is no
    message for anybody; but whoever waits for an answer can be told.
    """
    items: list[MessageItem] = []
    try:
        for piece in received.pieces:
            items.append(_copy_piece(piece))
    except KdbusError:
        for item in items:
            if isinstance(item, Memfd):
                item.file.close()
        items.clear()
    if received.dst_name is not None:
        items.append(DstName(received.dst_name))
    filter = received.filter
    if filter is not None:
        items.append(filter)
    if received.fds:
        items.append(Fds(tuple(OpenFile(fd) for fd in received.take_fds() if fd >= 0)))
    return Message(
        items,
        flags=received.flags,
        priority=received.priority,
        dst_id=received.destination,
        payload_type=received.payload_type,
        cookie=received.cookie,
        timeout_ns=received.timeout_ns,
        cookie_reply=received.cookie_reply,
    )


def _copy_piece(piece: memoryview | SealedMemory | Zeros) -> Vec | Zeros | Memfd:
    match piece:
        case SealedMemory(fd, start, size):
            try:
                return Memfd(start, size, OpenFile(os.dup(fd)))
            except OSError as error:
                raise KdbusError(EMFILE, f"no descriptor for a payload: {error.strerror}") from error
        case Zeros():
            return piece
        case _:
            return Vec(bytes(piece))


__all__ = ["Arrival", "Intake", "copy_message"]
