"""Whatever native and local connections do, each request between them has exactly one outcome.

Both kinds ask and answer, go, take names with and without an activator, refuse and run out of room. The
machine notes what was asked and what everybody got to hear of it.
"""

from __future__ import annotations

from collections import Counter
from errno import EBADMSG, ENOBUFS

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from local_world import Local
from native_mail import inbox_of
from native_world import SECOND, World, bulk, errno_of

from kdbus_core import Connection
from kdbus_core.abi import HelloFlag, MessageFlag
from kdbus_core.message import MessageItem
from kdbus_core.replies import Tracker

NAMES = ("org.example.A", "org.example.B")
ACTIVATOR = HelloFlag.ACTIVATOR | HelloFlag.ACCEPT_FD
WAITS = st.sampled_from([0, SECOND, 3 * SECOND])
PARTS = st.lists(st.sampled_from(["file", 10, 3000]), max_size=2, unique=True)


class MixedMachine(RuleBasedStateMachine):
    """A bus with up to four connections of each kind, and activators."""

    @initialize()
    def start(self) -> None:
        self.world = World()
        self.bus = self.world.bus
        self.locals: list[Local] = [Local(self.world), Local(self.world)]
        self.natives: list[Connection] = [self.world.connect(), self.world.connect()]
        self.last_cookie = 0
        self.asked: dict[int, Connection] = {}
        self.heard: Counter[int] = Counter()
        self.answers: dict[int, int] = {}

    # Picking

    def _connections(self) -> list[Connection]:
        return [*(local.connection for local in self.locals), *self.natives]

    def _pick(self, data: st.DataObject) -> Connection:
        return data.draw(st.sampled_from(self._connections()), label="connection")

    def _target(self, data: st.DataObject, sender: Connection) -> Connection | str:
        """Local connections do not reach each other this way."""
        name = data.draw(st.sampled_from([None, *NAMES]), label="name")
        if name is not None:
            entry = self.bus.names.entry(name)
            holder = None if entry is None or entry.holder is None else entry.holder.connection
            if holder is None or sender.inbox is not None or holder.inbox is not None:
                return name
        return data.draw(st.sampled_from(self.natives if sender.inbox is None else self._connections()))

    def _items(self, parts: list[str | int]) -> list[MessageItem]:
        return [self.world.fds("file") if isinstance(part, str) else bulk(part) for part in parts]

    def _cookie(self) -> int:
        self.last_cookie += 1
        return self.last_cookie

    # Connections and names

    @precondition(lambda self: len(self.locals) < 4)
    @rule()
    def connect_local(self) -> None:
        self.locals.append(Local(self.world))

    @precondition(lambda self: len(self.natives) < 4)
    @rule(pages=st.sampled_from([2, 64]), flags=st.sampled_from([HelloFlag(0), HelloFlag.ACCEPT_FD]))
    def connect_native(self, pages: int, flags: HelloFlag) -> None:
        self.natives.append(self.world.connect(pages=pages, flags=flags))

    @rule(name=st.sampled_from(NAMES))
    def connect_activator(self, name: str) -> None:
        errno_of(lambda: self.world.connect(flags=ACTIVATOR, name=name))

    @rule(name=st.sampled_from(NAMES))
    def disconnect_activator(self, name: str) -> None:
        entry = self.bus.names.entry(name)
        if entry is not None and entry.activator is not None:
            self.bus.disconnect(entry.activator.connection)

    @precondition(lambda self: len(self.locals) > 1)
    @rule(data=st.data())
    def disconnect_local(self, data: st.DataObject) -> None:
        local = data.draw(st.sampled_from(self.locals))
        self._listen(local)
        self.locals.remove(local)
        local.leave()
        assert not local.log

    @precondition(lambda self: len(self.natives) > 1)
    @rule(data=st.data())
    def disconnect_native(self, data: st.DataObject) -> None:
        native = data.draw(st.sampled_from(self.natives))
        self.natives.remove(native)
        self.bus.disconnect(native)

    @rule(data=st.data(), name=st.sampled_from(NAMES), flags=st.integers(0, 7))
    def acquire(self, data: st.DataObject, name: str, flags: int) -> None:
        errno_of(lambda: self.bus.name_acquire(self._pick(data), name, flags))

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def release(self, data: st.DataObject, name: str) -> None:
        errno_of(lambda: self.bus.name_release(self._pick(data), name))

    @rule(data=st.data(), errno=st.sampled_from([0, 0, ENOBUFS, EBADMSG]))
    def change_mood(self, data: st.DataObject, errno: int) -> None:
        data.draw(st.sampled_from(self.locals)).refuses = errno

    # Messages

    @rule(data=st.data(), parts=PARTS, flags=st.sampled_from([0, MessageFlag.SIGNAL]))
    def send(self, data: st.DataObject, parts: list[str | int], flags: int) -> None:
        sender = self._pick(data)
        to, items = self._target(data, sender), self._items(parts)
        errno_of(lambda: self.bus.send(sender, self.world.message(to, self._cookie(), *items, flags=flags)))

    @rule(data=st.data(), parts=PARTS, wait=WAITS)
    def request(self, data: st.DataObject, parts: list[str | int], wait: int) -> None:
        sender = self._pick(data)
        to, items, cookie = self._target(data, sender), self._items(parts), self._cookie()
        deadline = 0 if sender.inbox is None and not wait else self.world.clock.now + wait
        message = self.world.message(to, cookie, *items, flags=MessageFlag.EXPECT_REPLY, timeout_ns=deadline)
        if not errno_of(lambda: self.bus.send(sender, message)):
            self.asked[cookie] = sender

    @rule(data=st.data(), parts=PARTS)
    def reply(self, data: st.DataObject, parts: list[str | int]) -> None:
        owed = [
            (replier, tracker)
            for replier in self._connections()
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

    @rule(wait=st.sampled_from([SECOND // 2, SECOND]))
    def pass_time(self, wait: int) -> None:
        self.world.pass_time(wait)

    # Receiving

    @rule(data=st.data())
    def receive(self, data: st.DataObject) -> None:
        self._receive(data.draw(st.sampled_from(self.natives)))

    def _receive(self, native: Connection) -> bool:
        mail, _, _ = self.world.receive(native)
        if mail is None:
            return False
        is_answer = mail.last and self.answers.get(mail.cookie) == mail.last
        if is_answer or mail.words.startswith("REPLY_"):
            self.heard[mail.last] += 1
        return True

    def _listen(self, local: Local) -> None:
        for words in local.read():
            kind, _, cookie = words.rpartition("#")
            if kind:
                self.heard[int(cookie)] += 1
            elif int(cookie) in self.answers:
                self.heard[self.answers[int(cookie)]] += 1

    # What always holds

    @invariant()
    def accounts_add_up(self) -> None:
        for local in self.locals:
            self._listen(local)
        for connection in self._connections():
            trackers = [tracker for window in connection.requests.values() for tracker in window.tracked()]
            assert connection.outstanding >= len(trackers)
            assert all(isinstance(tracker, Tracker) and tracker.is_open for tracker in trackers)
            if connection.inbox is not None:
                assert connection.inbox.reserved == len(trackers)
            else:
                assert not any(tracker.reserved for tracker in trackers)

    @invariant()
    def nobody_hears_twice(self) -> None:
        assert all(count == 1 for count in self.heard.values())

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        # What has no deadline ends with whoever owes the answer.
        self.world.pass_time(100 * SECOND)
        for native in self.natives:
            while self._receive(native):
                pass
        self.accounts_add_up()
        for cookie, requester in self.asked.items():
            is_open = any(cookie in window.trackers for window in requester.requests.values())
            expected = 0 if is_open or not requester.active else 1
            assert self.heard[cookie] == expected or not requester.active, cookie
            assert not (is_open and requester.inbox is not None), cookie
        self.nobody_hears_twice()
        for native in self.natives:
            assert len(inbox_of(native)) == 0
            assert not native.quota.shares
        self.world.end()
        assert not self.bus.delivery._handed


TestMixedRequests = MixedMachine.TestCase
TestMixedRequests.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
