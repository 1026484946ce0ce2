"""Whatever happens to an inbox, it holds what a plain list of its messages says, and what that costs.

The naive inbox knows of each message only who sent it, how large it is and what comes with it, and adds it
all up again after each step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from inbox_world import (
    FakeMessage,
    FakeTracker,
    Table,
    assert_holds_nothing,
    content,
    errno_of,
    make_inbox,
    parcel,
)

from kdbus_core.abi import PAGE_SIZE
from kdbus_core.inbox import SLOT_SIZE, Entry, Inbox
from kdbus_core.quota import User

NAMES = (0, 0, 1, 2)


@dataclass(eq=False)
class Waiting:
    """A message that waits in one of two inboxes."""

    content: bytes
    user: User
    priority: int
    name_id: int
    fds: int
    message: FakeMessage
    tracker: FakeTracker
    size: int
    peeked: bool = False


def messages(items: Iterable[Entry | Waiting]) -> list[object]:
    """What tells one message from another; each has one of its own."""
    return [item.message for item in items]


class InboxMachine(RuleBasedStateMachine):
    """Two inboxes between which names move, each with a naive list of what is in it."""

    @initialize()
    def make(self) -> None:
        self.users = [User(uid) for uid in range(3)]
        self.inboxes = [
            make_inbox(4 * PAGE_SIZE, capacity=2 * PAGE_SIZE, max_messages=6, max_fds=3) for _ in range(2)
        ]
        self.lists: list[list[Waiting]] = [[], []]
        self.slots = [0, 0]
        self.lost = [0, 0]
        self.received: list[list[int]] = [[], []]
        self.messages: list[FakeMessage] = []
        self.left: list[FakeTracker] = []
        self.serial = count()

    which = st.integers(0, 1)

    def _new(self, size: int, user: int, priority: int, name_id: int, fds: int) -> Waiting:
        message = FakeMessage()
        self.messages.append(message)
        text = b"%08d" % next(self.serial) + bytes(size)
        whole = -(-(len(text) + 4 * fds) // 8) * 8
        return Waiting(text, self.users[user], priority, name_id, fds, message, FakeTracker(), whole)

    @rule(
        which=which,
        size=st.one_of(st.integers(0, 64), st.integers(0, 2000)),
        user=st.integers(0, 2),
        priority=st.integers(-2, 2),
        name_id=st.sampled_from(NAMES),
        fds=st.integers(0, 2),
    )
    def push(self, which: int, size: int, user: int, priority: int, name_id: int, fds: int) -> None:
        new = self._new(size, user, priority, name_id, fds)
        errno = errno_of(
            lambda: self.inboxes[which].push(
                parcel(new.content, message=new.message, fds=fds),
                new.user,
                priority=priority,
                name_id=name_id,
                tracker=new.tracker.tracker,
            )
        )
        if not errno:
            self.lists[which].append(new)

    @rule(which=which)
    def reserve(self, which: int) -> None:
        if not errno_of(self.inboxes[which].reserve):
            self.slots[which] += 1

    @rule(which=which, use=st.booleans())
    def use_or_give_back_a_slot(self, which: int, use: bool) -> None:
        if not self.slots[which]:
            return
        self.slots[which] -= 1
        if not use:
            self.inboxes[which].unreserve()
            return
        new = self._new(SLOT_SIZE - 8, 0, 0, 0, 0)
        entry = self.inboxes[which].push_reserved(parcel(new.content, message=new.message), new.user)
        entry.tracker = new.tracker.tracker
        self.lists[which].append(new)

    def _pick(self, which: int, priority: int | None) -> tuple[Entry, Waiting] | None:
        """What is received next, if both agree on it."""
        waiting = self.lists[which]
        if priority is not None:
            waiting = [one for one in waiting if one.priority <= priority]
        expected = min(
            waiting, key=lambda one: one.priority if priority is not None else 0, default=None
        )  # the first of equals
        entry = self.inboxes[which].head(priority)
        assert (entry is None) is (expected is None)
        if entry is None or expected is None:
            return None
        assert messages([entry]) == messages([expected])
        return entry, expected

    priorities = st.one_of(st.none(), st.integers(-3, 2))

    @rule(which=which, priority=priorities, room=st.integers(0, 3))
    def take(self, which: int, priority: int | None, room: int) -> None:
        picked = self._pick(which, priority)
        if picked is None:
            return
        entry, waiting = picked
        offset, size, incomplete = self.inboxes[which].take(entry, Table(room).install, accept_fds=True)
        assert content(self.inboxes[which], offset, size).startswith(waiting.content)
        assert incomplete is (room < waiting.fds)
        if not waiting.peeked:
            self.received[which].append(offset)
        self._gone(which, waiting)

    @rule(which=which, priority=priorities)
    def peek(self, which: int, priority: int | None) -> None:
        picked = self._pick(which, priority)
        if picked is None:
            return
        entry, waiting = picked
        offset, size = self.inboxes[which].peek(entry)
        assert content(self.inboxes[which], offset, size).startswith(waiting.content)
        if not waiting.peeked:
            waiting.peeked = True
            self.received[which].append(offset)

    @rule(which=which, priority=priorities)
    def discard(self, which: int, priority: int | None) -> None:
        picked = self._pick(which, priority)
        if picked is not None:
            self.inboxes[which].discard(picked[0])
            self._gone(which, picked[1])

    def _gone(self, which: int, waiting: Waiting) -> None:
        self.lists[which].remove(waiting)
        self.left.append(waiting.tracker)

    @precondition(lambda self: any(self.received))
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from([which for which in (0, 1) if self.received[which]]))
        offset = data.draw(st.sampled_from(self.received[which]))
        self.received[which].remove(offset)
        self.inboxes[which].pool.free(offset)
        for entry, waiting in zip(self.inboxes[which], self.lists[which], strict=True):
            if entry.slice.offset == offset:
                waiting.peeked = False

    @rule(which=which, name_id=st.integers(1, 2))
    def hand_over(self, which: int, name_id: int) -> None:
        old, new = self.inboxes[which], self.inboxes[1 - which]
        moving = [waiting for waiting in self.lists[which] if waiting.name_id == name_id]
        entries = old.extract(name_id)
        for entry, waiting in zip(entries, moving, strict=True):
            composed = parcel(waiting.content, message=waiting.message, fds=waiting.fds)
            if old.hand_over(entry, new, composed):
                self.lists[which].remove(waiting)
                self.lists[1 - which].append(waiting)
                waiting.peeked = False
            else:
                self._gone(which, waiting)
                self.lost[1 - which] += 1

    @invariant()
    def everything_waits_where_it_should(self) -> None:
        for inbox, waiting, lost in zip(self.inboxes, self.lists, self.lost, strict=True):
            assert messages(inbox) == messages(waiting)
            assert (len(inbox), inbox.lost) == (len(waiting), lost)

    @invariant()
    def everything_is_charged_once(self) -> None:
        for inbox, waiting in zip(self.inboxes, self.lists, strict=True):
            quota = inbox.quota
            assert quota.shares.keys() == {one.user for one in waiting}
            for user, share in quota.shares.items():
                own = [one for one in waiting if one.user is user]
                assert share.memory == sum(one.size for one in own)
                assert share.messages == len(own)
                assert share.fds == sum(one.fds for one in own)

    @invariant()
    def everything_is_held_once(self) -> None:
        waiting = [*self.lists[0], *self.lists[1]]
        assert sum(message.holders for message in self.messages) == len(waiting)
        assert all(one.message.holders == 1 and one.tracker.dequeued == 0 for one in waiting)
        assert all(tracker.dequeued == 1 for tracker in self.left)

    @invariant()
    def the_pool_keeps_what_somebody_has_and_nothing_else(self) -> None:
        for which, inbox in enumerate(self.inboxes):
            busy = {slice_.offset for slice_ in inbox.pool.slices() if slice_.is_busy}
            queued = {entry.slice.offset for entry in inbox}
            assert busy >= queued | set(self.received[which])
            assert len(busy) == len(queued | set(self.received[which])) + self.slots[which]

    def teardown(self) -> None:
        for which, inbox in enumerate(self.inboxes):
            self._close(inbox, self.lists[which], self.received[which])

    def _close(self, inbox: Inbox, waiting: list[Waiting], received: list[int]) -> None:
        assert messages(inbox.close()) == messages(waiting)
        assert [one.tracker.dequeued for one in waiting] == [1] * len(waiting)
        for offset in received:
            inbox.pool.free(offset)
        assert_holds_nothing(inbox, *(one.message for one in waiting))


TestInbox = InboxMachine.TestCase
TestInbox.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
