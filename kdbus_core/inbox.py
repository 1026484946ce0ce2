"""What waits for a native connection: its queue, and what each message in it costs.

A message that arrives is charged to the user who sent it, gets a slice of the
receiver's pool and is written there at once; what remains in the queue is an
`Entry`.  It holds the slice and the message, whose files are needed when it is
read.  Whichever way an entry leaves, its charge, slice and message are given
back and the tracker of its request is told, each exactly once.  A slice that
was published stays until the receiver frees it.

Some entries are *apart* from the queue: they are charged and composed like all
others, but the receiver does not find them.  These are the reply of a
synchronous call, until the caller takes it, and what is on its way to another
connection together with the name it was sent to.

A reply notification must never get lost, so for each request that may need
one a slot is reserved: a slice that is large enough, allocated beforehand.

What could not be put in, and about which nobody else is told, is counted as
lost; until that was reported the inbox is readable, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from kdbus_core.abi import ITEM_HEADER, MSG, align
from kdbus_core.errors import KdbusError
from kdbus_core.pool import Pool, Slice
from kdbus_core.quota import Quota, User

if TYPE_CHECKING:
    from kdbus_core.caller import File
    from kdbus_core.message import Message
    from kdbus_core.replies import Tracker

SLOT_SIZE = MSG.size + ITEM_HEADER.size + ITEM_HEADER.size + 24
"""Bytes of a reply notification: header, an item without content, TIMESTAMP."""
COMPACT_AT = 64
"""Entries by priority from which on those that have left are thrown out now and then."""

_FD = Struct("=i")


class Parcel(NamedTuple):
    """A message composed for one receiver.

    `chunks` lie one after another in `size` bytes.  `fds` and `memfds` say where
    in them a descriptor's number (32 bit) belongs, and which file it is for; until
    a file is installed, -1 stands there.  `fd_count` counts what is charged as
    file descriptors in flight, which memory in the payload is not.  `message` owns
    the files; a parcel without files needs none.
    """

    chunks: tuple[bytes, ...]
    size: int
    message: Message | None = None
    fds: tuple[tuple[int, File], ...] = ()
    memfds: tuple[tuple[int, File], ...] = ()
    fd_count: int = 0


class Entry:
    """One message that waits.  `user` is charged for it, `name_id` is the name it was sent to (0: none).

    `tracker` is that of the request it carries.  An entry holds its message
    from the beginning until it leaves the inbox.
    """

    __slots__ = (
        "fd_count",
        "fds",
        "memfds",
        "message",
        "name_id",
        "number",
        "priority",
        "slice",
        "tracker",
        "user",
    )

    def __init__(
        self, number: int, parcel: Parcel, slice_: Slice, user: User, priority: int, name_id: int
    ) -> None:
        self.number = number
        self.message = parcel.message
        self.fds = parcel.fds
        self.memfds = parcel.memfds
        self.fd_count = parcel.fd_count
        self.slice = slice_
        self.user = user
        self.priority = priority
        self.name_id = name_id
        self.tracker: Tracker | None = None
        if self.message is not None:
            self.message.hold()

    def __repr__(self) -> str:
        return f"<entry {self.number} of {self.user} in {self.slice}>"


class Inbox:
    """The queue of a connection that receives into `pool`; iterating gives its entries in order of arrival.

    `on_ready` is called after each message that was queued, and each that was
    lost.  `lost` counts those that were lost since it was last reported.
    """

    __slots__ = (
        "_apart",
        "_is_closed",
        "_last_number",
        "_queue",
        "_slots",
        "_urgent",
        "lost",
        "on_ready",
        "pool",
        "quota",
    )

    def __init__(self, pool: Pool, quota: Quota, on_ready: Callable[[], None] | None = None) -> None:
        self.pool = pool
        self.quota = quota
        self.on_ready = on_ready
        self.lost = 0
        # Ordered by links: in a plain dict every removal at the front makes it longer to find the new front.
        self._queue: OrderedDict[int, Entry] = OrderedDict()
        self._apart: dict[int, Entry] = {}
        # A heap of (priority, number), of entries that may have left; None until somebody asks by priority.
        self._urgent: list[tuple[int, int]] | None = None
        self._last_number = 0
        self._slots: list[Slice] = []
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._queue.values()))

    @property
    def readable(self) -> bool:
        """Whether RECV has something to give or to report."""
        return bool(self._queue) or self.lost > 0

    @property
    def reserved(self) -> int:
        """How many slots for reply notifications there are."""
        return len(self._slots)

    # Putting in

    def push(
        self,
        parcel: Parcel,
        user: User,
        *,
        priority: int = 0,
        name_id: int = 0,
        tracker: Tracker | None = None,
    ) -> Entry:
        """Queue a message and charge it to `user`.

        Raises ENOBUFS and EMFILE (see `Quota.charge`), and EXFULL when the pool
        has no room; then nothing has changed.
        """
        entry = self._compose(parcel, user, priority, name_id)
        entry.tracker = tracker
        self._append(entry)
        return entry

    def stage(self, parcel: Parcel, user: User) -> Entry:
        """Like `push`, but apart from the queue, where RECV never sees it; ended by `take` or `discard`."""
        entry = self._compose(parcel, user)
        self._apart[entry.number] = entry
        return entry

    def reserve(self) -> None:
        """Reserve a slot for one reply notification; EXFULL."""
        assert not self._is_closed
        self._slots.append(self.pool.allocate(SLOT_SIZE))

    def unreserve(self) -> None:
        """Give back one slot, for a request that got its reply; does nothing once the inbox is closed."""
        if not self._is_closed:
            self.pool.release(self._slots.pop())

    def push_reserved(self, parcel: Parcel, user: User) -> Entry:
        """Queue a reply notification in a slot, which is thereby used up; is never refused."""
        slice_ = self._slots[-1]
        self.pool.fill(slice_, parcel.chunks)
        self._slots.pop()
        self.quota.force(user, slice_.size, parcel.fd_count)
        entry = self._make_entry(parcel, slice_, user)
        self._append(entry)
        return entry

    def on_lost(self) -> None:
        """A message for this connection could not be put in, and nobody else is told."""
        self.lost += 1
        self._call_ready()

    def take_lost(self) -> int:
        """How many were lost since the last time (RECV reports it, whatever else its result is)."""
        lost, self.lost = self.lost, 0
        return lost

    def _compose(self, parcel: Parcel, user: User, priority: int = 0, name_id: int = 0) -> Entry:
        assert not self._is_closed
        size = align(parcel.size)
        self.quota.charge(user, size, parcel.fd_count)
        try:
            slice_ = self.pool.store(parcel.chunks, size)
        except BaseException:
            self.quota.refund(user, size, parcel.fd_count)
            raise
        return self._make_entry(parcel, slice_, user, priority, name_id)

    def _make_entry(
        self, parcel: Parcel, slice_: Slice, user: User, priority: int = 0, name_id: int = 0
    ) -> Entry:
        self._last_number += 1
        return Entry(self._last_number, parcel, slice_, user, priority, name_id)

    def _append(self, entry: Entry) -> None:
        urgent = self._urgent
        if urgent is not None:
            if len(urgent) >= COMPACT_AT and len(urgent) > 2 * len(self._queue):
                self._urgent = None  # mostly of entries that have left; made anew when asked for
            else:
                heappush(urgent, (entry.priority, entry.number))
        self._queue[entry.number] = entry
        self._call_ready()

    def _call_ready(self) -> None:
        if self.on_ready is not None:
            self.on_ready()

    # Looking

    def head(self, priority: int | None = None) -> Entry | None:
        """The entry that RECV gives next; None when there is none.

        It is the oldest one, or, with `priority`, the oldest of those with the
        lowest number, unless that is above `priority`.
        """
        queue = self._queue
        if priority is None:
            return next(iter(queue.values()), None)
        if self._urgent is None:
            self._urgent = [(entry.priority, entry.number) for entry in queue.values()]
            heapify(self._urgent)
        urgent = self._urgent
        while urgent and urgent[0][1] not in queue:
            heappop(urgent)
        if not urgent or urgent[0][0] > priority:
            return None
        return queue[urgent[0][1]]

    def peek(self, entry: Entry) -> tuple[int, int]:
        """Publish an entry that stays where it is; returns offset and size of its slice.

        No descriptor is installed: the receiver sees -1 in all their places.
        """
        self.pool.publish(entry.slice)
        return entry.slice.offset, entry.slice.size

    # Taking out

    def take(
        self, entry: Entry, install: Callable[[File], int] | None, *, accept_fds: bool
    ) -> tuple[int, int, bool]:
        """Hand an entry to the receiver; returns offset and size of its slice, and whether a file is missing.

        `install` gives the number of a new descriptor for a file, or -1 when
        the receiver's table is full; that file is lost for it, and is missing.
        Memory in the payload is always installed, other files where the receiver
        accepts them.  With None for `install` nothing is, and nothing is missing.
        """
        slice_ = entry.slice
        self.pool.publish(slice_)
        is_complete = True
        if install is not None:
            for position, file in (*entry.memfds, *entry.fds) if accept_fds else entry.memfds:
                number = install(file)
                self.pool.write(slice_, position, _FD.pack(number))
                is_complete = is_complete and number >= 0
        self._end(entry)
        return slice_.offset, slice_.size, not is_complete

    def discard(self, entry: Entry) -> None:
        """Drop an entry; its slice stays for a receiver that has peeked at it."""
        self._end(entry)

    def extract(self, name_id: int) -> list[Entry]:
        """Set apart, in order of arrival, what was sent to a name that now leads to somebody else.

        The receiver no longer finds these entries, but until each has been ended
        by `hand_over` or `discard` it stays charged here: the account of a user
        who has nothing but a message on its way is not settled.  What was sent
        to an id (name_id 0) is never extracted.
        """
        assert name_id
        extracted = [entry for entry in self._queue.values() if entry.name_id == name_id]
        for entry in extracted:
            self._apart[entry.number] = self._queue.pop(entry.number)
        return extracted

    def hand_over(self, entry: Entry, to: Inbox, parcel: Parcel) -> bool:
        """Queue an extracted entry in another inbox, with the parcel that was composed for that one.

        It is charged there to the user who sent it, and takes its tracker along.
        If it finds no room it is dropped, and the other inbox counts it as lost.
        Returns whether it arrived.
        """
        try:
            to.push(parcel, entry.user, priority=entry.priority, name_id=entry.name_id, tracker=entry.tracker)
        except KdbusError:
            self._end(entry)
            to.on_lost()
            return False
        entry.tracker = None
        self._end(entry)
        return True

    def close(self) -> list[Entry]:
        """Drop everything and give back all slots, for good.

        Returns the entries with requests that nobody has read, in order of arrival.
        """
        unread = [entry for entry in self._queue.values() if entry.tracker is not None]
        for entry in (*self._queue.values(), *self._apart.values()):
            self._end(entry)
        while self._slots:
            self.pool.release(self._slots.pop())
        self.lost = 0
        self._is_closed = True
        return unread

    def _end(self, entry: Entry) -> None:
        """An entry leaves: all that is kept for it is given back."""
        number = entry.number
        home = self._apart if number in self._apart else self._queue
        assert home.get(number) is entry
        del home[number]
        if not self._queue:
            self._urgent = None
        self.quota.refund(entry.user, entry.slice.size, entry.fd_count)
        self.pool.release(entry.slice)
        if entry.message is not None:
            entry.message.release()
        if entry.tracker is not None:
            entry.tracker.on_dequeued()
