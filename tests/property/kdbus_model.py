"""A second set of books, kept from outside: who was sent what, who owes an answer, how each request ended.

A `Ledger` watches a bus through a monitor, which sees everything in the one order there is, and through the
queues of all others. After each command `Ledger.settle` reads what happened and says whether it fits what was
done: every request that ended did so once and as it had to, every notification that was due came and no
other, each queue has what was sent to it in the order of the bus, and only what was received has left.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from errno import ECANCELED, EINTR, EPIPE, ESHUTDOWN, ETIMEDOUT

from kdbus_books import check_books, inbox_of
from support.kdbus import Client, ItemType, Pending, Received, World
from support.kdbus.task import Reference

from kdbus_core.bus import Bus
from kdbus_core.connection import Connection

NOTICES = {ItemType.NAME_ADD, ItemType.NAME_REMOVE, ItemType.NAME_CHANGE}


@dataclass(eq=False)
class Waiting:
    """A message in a queue; `seqnum` is its place in the order of the bus."""

    number: int
    seqnum: int
    priority: int
    cookie: int
    src_id: int
    offset: int
    is_peeked: bool = False


@dataclass(eq=False)
class Peer:
    """A connection, what waits for it and what it was given and has not freed."""

    client: Client
    kind: str
    queue: list[Waiting] = field(default_factory=list)
    last_seqnum: int = 0

    def __repr__(self) -> str:
        return f"{self.kind} {self.id}, {len(self.queue)} waiting"

    @property
    def id(self) -> int:
        return self.client.id

    @property
    def connection(self) -> Connection:
        return self.client.connection


@dataclass(eq=False)
class Request:
    """A request that was delivered and has had no outcome yet; `pending` is the call of who waits for it."""

    number: int
    requester: Peer
    replier: Peer
    cookie: int
    deadline: int
    sent_to: tuple[str, int] | None
    seqnum: int
    pending: Pending | None
    canceller: Reference | None = None
    is_interrupted: bool = False


class Ledger:
    """The books of one bus."""

    def __init__(self, world: World, bus: Bus) -> None:
        self.world = world
        self.bus = bus
        self.peers: dict[int, Peer] = {}
        self.requests: list[Request] = []
        self.outcomes: Counter[int] = Counter()
        self.notices: deque[tuple[ItemType, int, int]] = deque()
        """Reply notifications that are due: type, requester, cookie."""
        self.ends: dict[Request, int] = {}
        """Calls that end with the command under way, and how."""
        self.kept: list[tuple[Peer, int, int, int]] = []
        """How requests of interrupted calls have ended: whose, which cookie, the errno, and the deadline."""
        self.holders: dict[str, int] = {}
        self.name_ids: Counter[str] = Counter()
        """How often each name has come into being: a name that had gone is another one when it is back."""
        self.announced: set[int] = set()
        self.last_seqnum = 0
        self.last_request = 0
        self.stream: list[Received] = []
        self.monitor = Peer(world.connect_monitor(), "monitor")
        self._moves: list[tuple[int, int]] = []

    # What was done

    def open(
        self,
        requester: Peer,
        replier: Peer,
        cookie: int,
        deadline: int,
        *,
        name: str | None,
        seqnum: int,
        pending: Pending | None = None,
        canceller: Reference | None = None,
    ) -> Request:
        """A request was delivered."""
        self.last_request += 1
        sent_to = None if name is None else (name, self.name_ids[name])
        request = Request(
            self.last_request, requester, replier, cookie, deadline, sent_to, seqnum, pending, canceller
        )
        self.requests.append(request)
        return request

    def find(self, requester: Peer, replier: Peer, cookie: int) -> Request | None:
        """The request that an answer is for: the newest."""
        found = [one for one in self.requests if (one.requester, one.replier) == (requester, replier)]
        return next((one for one in reversed(found) if one.cookie == cookie), None)

    def end(self, request: Request, errno: int, notice: ItemType | None = None) -> None:
        """A request has its outcome: a notification, or for who waits an errno."""
        self.requests.remove(request)
        self.outcomes[request.number] += 1
        if request.pending is not None:
            if not request.is_interrupted:
                self.ends[request] = errno
            elif errno not in (ETIMEDOUT, ESHUTDOWN):
                self.kept.append((request.requester, request.cookie, errno, request.deadline))
        elif notice is not None:
            self.notices.append((notice, request.requester.id, request.cookie))

    def expire(self) -> None:
        """Time has passed."""
        due = [one for one in self.requests if one.deadline <= self.world.monotonic_ns]
        for request in sorted(due, key=lambda one: (one.deadline, one.number)):
            self.end(request, ETIMEDOUT, ItemType.REPLY_TIMEOUT)
        self.kept = [one for one in self.kept if one[3] > self.world.monotonic_ns]

    def interrupt(self, request: Request) -> None:
        """The caller came back; the request stays open and nobody will be told how it ends."""
        self.ends[request] = EINTR
        request.is_interrupted = True

    def cancel(self, requester: Peer, cookie: int) -> int:
        """MSG_CANCEL; returns how many calls that ends."""
        calls = [
            one
            for one in self.requests
            if one.requester is requester and one.cookie == cookie and one.pending and not one.is_interrupted
        ]
        for request in calls:
            self.end(request, ECANCELED)
        return len(calls)

    def drop(self, peer: Peer, waiting: Waiting) -> None:
        """A message was thrown away unread."""
        peer.queue.remove(waiting)
        for request in [one for one in self.requests if one.seqnum == waiting.seqnum]:
            if peer is not self.monitor:
                self.end(request, EPIPE, ItemType.REPLY_DEAD)

    def leave(self, peer: Peer) -> None:
        """A connection ends: its own calls first."""
        for request in [one for one in self.requests if one.requester is peer]:
            self.end(request, ESHUTDOWN)

    # What happened

    def settle(self) -> list[Received]:
        """Read everything that is new, and judge it; returns what the monitor saw."""
        stream = self.stream = self.monitor.client.drain()
        self._moves.clear()
        for message in stream:
            message.close_fds()
            assert not message.dropped
            assert message.timestamp.seqnum > self.last_seqnum, "the order of the bus goes backwards"
            self.last_seqnum = message.timestamp.seqnum
            if message.is_notification:
                self._judge_notification(message)
        assert not self.notices, "a request has ended and its sender was not told"
        self._judge_calls()
        self._judge_queues()
        self._judge_who_is_there()
        check_books(self.world, [one.canceller for one in self._waiting_calls() if one.canceller is not None])
        assert all(count == 1 for count in self.outcomes.values())
        return stream

    def user_messages(self) -> list[Received]:
        """What the last command sent, as the monitor saw it."""
        return [message for message in self.stream if not message.is_notification]

    def _waiting_calls(self) -> list[Request]:
        return [one for one in self.requests if one.pending is not None and not one.is_interrupted]

    def _judge_notification(self, message: Received) -> None:
        assert message.src_id == 0
        kind = message.kind
        if kind in NOTICES:
            self._judge_name_change(message)
        elif kind == ItemType.ID_ADD:
            id = message.arrival[1]
            assert id not in self.announced
            self.announced.add(id)
        elif kind == ItemType.ID_REMOVE:
            id = message.arrival[1]
            self.announced.remove(id)
            self._end_duties(self.peers.pop(id))
        else:
            assert self.notices, f"nobody was to be told of a {kind.name}"
            assert (kind, message.dst_id, message.cookie_reply) == self.notices.popleft()

    def _judge_name_change(self, message: Received) -> None:
        kind, name, old, new = message.change
        assert self.holders.get(name, 0) == old
        assert old != new
        expected = ItemType.NAME_ADD if not old else ItemType.NAME_REMOVE if not new else ItemType.NAME_CHANGE
        assert kind == expected
        if new:
            self.holders[name] = new
            self.name_ids[name] += not old
        else:
            del self.holders[name]
        if old and new and "activator" in (self.peers[old].kind, self.peers[new].kind):
            self._moves.append((old, new))
            self._repoint(name, self.peers[old], self.peers[new])

    def _repoint(self, name: str, old: Peer, new: Peer) -> None:
        for request in self.requests:
            is_moved = request.replier is old and request.sent_to == (name, self.name_ids[name])
            if is_moved and request.requester not in (old, new):
                request.replier = new

    def _end_duties(self, gone: Peer) -> None:
        self.leave(gone)
        for request in [one for one in self.requests if one.replier is gone]:
            self.end(request, EPIPE, ItemType.REPLY_DEAD)

    def _judge_calls(self) -> None:
        """Calls that had to end have ended, as they had to; the others wait."""
        for request, errno in self.ends.items():
            assert request.pending is not None
            assert request.pending.is_done
            assert request.pending.call is not None
            assert request.pending.call.errno == errno
        for request in self._waiting_calls():
            assert request.pending is not None
            assert not request.pending.is_done
        self.ends.clear()

    def _judge_queues(self) -> None:
        seen = {message.timestamp.seqnum for message in self.stream}
        left: set[int] = set()
        for peer in self.peers.values():
            numbers = {entry.number for entry in inbox_of(peer.connection)}
            gone = [waiting for waiting in peer.queue if waiting.number not in numbers]
            if gone:
                assert any(old == peer.id for old, _ in self._moves), "messages have left their queue"
            left |= {waiting.seqnum for waiting in gone}
            peer.queue = [waiting for waiting in peer.queue if waiting.number in numbers]
        for peer in self.peers.values():
            known = {waiting.number for waiting in peer.queue}
            for entry in inbox_of(peer.connection):
                if entry.number not in known:
                    piece = entry.slice
                    raw = peer.client.pool.memory.read(piece.offset, piece.size)
                    self._judge_arrival(peer, entry.number, piece.offset, raw, seen, left)
            assert [waiting.number for waiting in peer.queue] == sorted(
                waiting.number for waiting in peer.queue
            )
            seqnums = [waiting.seqnum for waiting in peer.queue]
            assert len(set(seqnums)) == len(seqnums), "a message was delivered twice"

    def _judge_arrival(
        self, peer: Peer, number: int, offset: int, raw: bytes, seen: set[int], left: set[int]
    ) -> None:
        message = Received(raw, peer.client.task, offset=offset)
        seqnum = message.timestamp.seqnum
        if seqnum in seen:
            assert seqnum > peer.last_seqnum, "a queue is not in the order of the bus"
            peer.last_seqnum = seqnum
        else:
            assert seqnum in left or any(new == peer.id for _, new in self._moves)
        peer.queue.append(Waiting(number, seqnum, message.priority, message.cookie, message.src_id, offset))

    def _judge_who_is_there(self) -> None:
        live = {id: peer for id, peer in self.bus.connections.items() if not peer.is_monitor}
        assert live.keys() == self.peers.keys() == self.announced
        holders = {entry.name: entry.holder for entry in self.bus.names.entries()}
        assert self.holders == {name: place.connection.id for name, place in holders.items() if place}
        # Whoever owes an answer here owes it there, and nobody else does.
        mine = Counter((one.requester.id, one.replier.id, one.cookie) for one in self.requests)
        theirs = Counter(
            (requester.id, replier.id, tracker.cookie)
            for requester in live.values()
            for replier, window in requester.requests.items()
            for tracker in window.tracked()
        )
        assert mine == theirs
