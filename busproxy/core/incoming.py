"""What the remote broker has for us, read in the one order of the bus.

Each of our connections has a queue of its own, but there is one order of everything that happens on a bus,
and clients are to see that.  Every message and notification carries its number in it (TIMESTAMP).  So all
queues are read before anything that was in them is told, and it is told by these numbers.

Reading takes time, in which more comes.  What has a number up to N is known to be complete when all queues
were read once more after N was seen; what is above waits for the next time (`is_behind`).  A message without
a number, because its sender does not grant it, comes right after what its own queue gave before.

The intake owns its epoll set.  Links and what they give belong to whoever added them.
"""

from __future__ import annotations

import select
from collections import deque
from dataclasses import dataclass
from errno import EBADMSG, ECONNRESET
from typing import TYPE_CHECKING

from busproxy.core.links import Link, Role
from kdbus_core.errors import KdbusError
from kdbus_core.message import DstName, Fds, Message, MessageItem, Vec
from kdbus_core.transport.files import OpenFile

if TYPE_CHECKING:
    from kdbus_core.transport.client import Notification, Received

_READABLE = select.EPOLLIN
_ONCE_EACH = select.EPOLLIN | select.EPOLLET
_NOTHING = 0  # hang-ups and errors are reported all the same

MAX_AT_ONCE = 512
"""Messages read from one connection before the others have their turn."""

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
        """Whether something was read that cannot be told before there was another reading."""
        return bool(self._held)

    def take(self) -> Arrival | None:
        """The next of what may be told."""
        return self._ready.popleft() if self._ready else None

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to read; False when there was not."""
        return bool(self._epoll.poll(seconds, 1))

    def read(self) -> None:
        """Read all queues; raises KdbusError, ECONNRESET or ESHUTDOWN when the broker has gone."""
        bound = self._pass()
        if not self._held:
            return
        complete = max(arrival.sequence for arrival in self._held)
        bound = min(bound, self._pass())
        bound = min(bound, complete)
        self._held.sort(key=_in_order)
        count = 0
        while count < len(self._held) and self._held[count].sequence <= bound:
            count += 1
        self._ready.extend(self._held[:count])
        del self._held[:count]

    def _pass(self) -> int:
        """Read everything once; returns up to which number that is all there was."""
        bound = _NEVER
        for fd, event in self._epoll.poll(0):
            link = self._links.get(fd)
            if link is None:
                if fd == self._lifeline and event:
                    raise KdbusError(ECONNRESET, "the broker has closed the connection")
            elif link.role is Role.ACTIVATOR:
                if link.on_ready is not None:
                    link.on_ready()
            elif not self._empty(link):
                bound = min(bound, link.last)
        return bound

    def _empty(self, link: Link) -> bool:
        """Read one queue; False when there is still more in it."""
        remote = link.remote
        lost = remote.lost
        try:
            for _ in range(MAX_AT_ONCE):
                try:
                    received = remote.receive()
                except KdbusError as error:
                    if error.errno != EBADMSG:
                        raise
                    self.lost += 1  # it has gone all the same
                    continue
                if received is None:
                    return True
                self._take(link, received)
            return False
        finally:
            if remote.lost != lost:
                self.lost += remote.lost - lost
                if link.role is Role.WATCHER:
                    self.is_blind = True

    def _take(self, link: Link, received: Received) -> None:
        try:
            with received:
                self._held.append(self._arrival(link, received))
        except KdbusError:  # its payload cannot be looked at
            self.lost += 1

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

    The descriptors are the message's from now on.
    """
    items: list[MessageItem] = []
    for part in received.parts:
        items.append(Vec(bytes(part)))
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


__all__ = ["Arrival", "Intake", "copy_message"]
