"""Any sequence of sends, calls, replies, losses and endings gives each request exactly one outcome.

The machine keeps its own book of what was asked and how it ended, reads everything that arrives, and after
each command looks whether slots, charges and open requests add up. In the end nothing may be left.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from native_mail import Mail, Waiter, inbox_of, look
from native_world import NO_FLAGS, OWNER, ROOT, SECOND, STRANGER, World, bulk, errno_of, everything

from kdbus_core import Connection
from kdbus_core.abi import HelloFlag, MessageFlag, ReceiveFlag
from kdbus_core.message import MessageItem
from kdbus_core.metadata import Process
from kdbus_core.synchronous import SyncCall

NAMES = ("org.example.A", "org.example.B")
ACCEPT_FD, ACTIVATOR, MONITOR = HelloFlag.ACCEPT_FD, HelloFlag.ACTIVATOR, HelloFlag.MONITOR
PROCESSES = st.sampled_from([OWNER, STRANGER, ROOT])
PAGES = st.sampled_from([1, 64])
WAITS = st.sampled_from([0, SECOND, 3 * SECOND])
PARTS = st.lists(st.sampled_from(["file", "memory", 10, 700, 3000]), max_size=2, unique=True)


class NativeMachine(RuleBasedStateMachine):
    """A bus with up to eight native connections."""

    @initialize()
    def start(self) -> None:
        self.world = World()
        self.bus = self.world.bus
        self.last_cookie = 0
        self.requests: dict[int, Connection] = {}
        self.outcomes: Counter[int] = Counter()
        self.answers: dict[int, int] = {}  # cookie of a reply → cookie of its request
        self.waiters: dict[int, tuple[Connection, Waiter]] = {}
        for _ in range(3):
            self.world.connect(OWNER)

    # Picking

    def _pick(self, data: st.DataObject, *, ordinary: bool = True) -> Connection:
        if not any(connection.is_ordinary for connection in self.bus.connections.values()):
            self.world.connect()
        among = [each for each in self.bus.connections.values() if each.is_ordinary or not ordinary]
        return data.draw(st.sampled_from(among), label="connection")

    def _destination(self, data: st.DataObject) -> Connection | str:
        name = data.draw(st.sampled_from([None, *NAMES]), label="name")
        return self._pick(data) if name is None else name

    def _items(self, parts: list[str | int]) -> list[MessageItem]:
        made: list[MessageItem] = []
        for part in parts:
            if isinstance(part, int):
                made.append(bulk(part))
            else:
                made.append(self.world.fds("file") if part == "file" else self.world.memfd("memory"))
        return made

    def _cookie(self) -> int:
        self.last_cookie += 1
        return self.last_cookie

    def _note(self, connection: Connection, mail: Mail) -> None:
        """What a requester has received may be how one of its requests ended."""
        if connection.is_monitor:
            return
        if mail.words.startswith("REPLY_"):
            self.outcomes[mail.last] += 1
        elif mail.payload_type and mail.cookie in self.answers:
            self.outcomes[self.answers[mail.cookie]] += 1

    # Connections and names

    @precondition(lambda self: len(self.bus.connections) < 8)
    @rule(
        process=st.sampled_from([OWNER, STRANGER, ROOT]),
        flags=st.sampled_from([NO_FLAGS, ACCEPT_FD]),
        pages=PAGES,
    )
    def connect(self, process: Process, flags: HelloFlag, pages: int) -> None:
        self.world.connect(process, flags=flags, pages=pages)

    @precondition(lambda self: len(self.bus.connections) < 8)
    @rule(name=st.sampled_from([None, *NAMES]), flags=st.sampled_from([NO_FLAGS, ACCEPT_FD]), pages=PAGES)
    def connect_special(self, name: str | None, flags: HelloFlag, pages: int) -> None:
        kind = MONITOR if name is None else ACTIVATOR
        errno_of(lambda: self.world.connect(flags=flags | kind, name=name, pages=pages))

    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        self.bus.disconnect(self._pick(data, ordinary=False))

    @rule(data=st.data())
    def byebye(self, data: st.DataObject) -> None:
        connection = self._pick(data)
        assert errno_of(lambda: self.bus.byebye(connection)) in ("", "EBUSY")

    @rule(data=st.data(), name=st.sampled_from(NAMES), flags=st.integers(0, 7))
    def acquire(self, data: st.DataObject, name: str, flags: int) -> None:
        connection = self._pick(data)
        errno_of(lambda: self.bus.name_acquire(connection, name, flags))

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def release(self, data: st.DataObject, name: str) -> None:
        connection = self._pick(data)
        errno_of(lambda: self.bus.name_release(connection, name))

    @rule(data=st.data())
    def listen(self, data: st.DataObject) -> None:
        connection = self._pick(data)
        self.bus.match_add(connection, 1, [everything()] if data.draw(st.booleans()) else [], replace=True)

    # Messages

    @rule(data=st.data(), parts=PARTS, flags=st.sampled_from([0, MessageFlag.SIGNAL]))
    def send(self, data: st.DataObject, parts: list[str | int], flags: int) -> None:
        sender, to, items = self._pick(data), self._destination(data), self._items(parts)
        errno_of(lambda: self.bus.send(sender, self.world.message(to, self._cookie(), *items, flags=flags)))

    @rule(data=st.data())
    def broadcast(self, data: st.DataObject) -> None:
        self.world.signal(self._pick(data), None, self._cookie(), bulk(300))

    @rule(data=st.data(), parts=PARTS, wait=WAITS)
    def request(self, data: st.DataObject, parts: list[str | int], wait: int) -> None:
        sender, to, items = self._pick(data), self._destination(data), self._items(parts)
        cookie = self._cookie()
        if not errno_of(lambda: self.world.request(sender, to, cookie, *items, wait=wait)):
            self.requests[cookie] = sender

    @rule(data=st.data(), parts=PARTS, wait=WAITS)
    def call(self, data: st.DataObject, parts: list[str | int], wait: int) -> None:
        sender, to, items = self._pick(data), self._destination(data), self._items(parts)
        cookie, waiters = self._cookie(), []
        if not errno_of(lambda: waiters.append(self.world.call(sender, to, cookie, *items, wait=wait))):
            self.waiters[cookie] = (sender, waiters[0])

    @rule(data=st.data(), parts=PARTS)
    def reply(self, data: st.DataObject, parts: list[str | int]) -> None:
        owed = [
            (replier, tracker)
            for replier in self.bus.connections.values()
            if replier.is_ordinary
            for window in replier.duties.values()
            for tracker in window.tracked()
        ]
        if not owed:
            return
        replier, tracker = data.draw(st.sampled_from(owed), label="owed")
        cookie, items = self._cookie(), self._items(parts)
        self.answers[cookie] = tracker.cookie
        if errno_of(lambda: self.world.reply(replier, tracker.requester, tracker.cookie, cookie, *items)):
            del self.answers[cookie]

    @precondition(lambda self: self.waiters)
    @rule(data=st.data(), interrupt=st.booleans())
    def give_up(self, data: st.DataObject, interrupt: bool) -> None:
        cookie = data.draw(st.sampled_from(list(self.waiters)), label="call")
        sender, waiter = self.waiters[cookie]
        if not interrupt:
            errno_of(lambda: self.bus.cancel(sender, cookie))
        elif not waiter.outcomes:
            waiter.interrupt()

    @rule(wait=st.sampled_from([SECOND // 2, SECOND]))
    def pass_time(self, wait: int) -> None:
        self.world.pass_time(wait)

    # Receiving

    @rule(data=st.data(), flags=st.sampled_from([0, 0, 0, ReceiveFlag.PEEK, ReceiveFlag.USE_PRIORITY]))
    def receive(self, data: st.DataObject, flags: int) -> None:
        connection = self._pick(data, ordinary=False)
        mail, _, _ = self.world.receive(connection, flags)
        if mail is not None and flags != ReceiveFlag.PEEK:
            self._note(connection, mail)

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        connection = self._pick(data, ordinary=False)
        head = inbox_of(connection).head()
        if head is not None:
            self._note(connection, look(connection, head.slice.offset, head.slice.size))
        self.world.drop(connection)

    # What always holds

    @invariant()
    def slots_charges_and_requests_add_up(self) -> None:
        for connection in self.bus.connections.values():
            inbox = inbox_of(connection)
            waiting = [*inbox, *inbox._apart.values()]
            assert connection.quota.total_memory == sum(entry.slice.size for entry in waiting)
            trackers = [tracker for window in connection.requests.values() for tracker in window.tracked()]
            assert inbox.reserved == sum(not isinstance(tracker.waiter, SyncCall) for tracker in trackers)
            assert inbox.reserved == sum(tracker.reserved for tracker in trackers)
            assert connection.outstanding >= len(trackers)
            for call in connection.calls:
                assert call.done is call.is_interrupted
                assert (call.tracker in trackers) is (call.outcome is None)

    @invariant()
    def nobody_is_told_twice(self) -> None:
        assert all(len(waiter.outcomes) <= 1 for _, waiter in self.waiters.values())
        assert all(count == 1 for count in self.outcomes.values())

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.pass_time(100 * SECOND)
        for connection in self.bus.connections.values():
            while (mail := self.world.receive(connection)[0]) is not None:
                self._note(connection, mail)
        for cookie, requester in self.requests.items():
            assert self.outcomes[cookie] == 1 or not requester.active, cookie
        for connection in self.bus.connections.values():
            for call in list(connection.calls):
                assert call.is_interrupted
                call.cancel()
        assert all(len(waiter.outcomes) == 1 for _, waiter in self.waiters.values())
        self.nobody_is_told_twice()
        self.world.assert_idle(*self.bus.connections.values())
        self.world.end()


TestNativeRequests = NativeMachine.TestCase
TestNativeRequests.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
