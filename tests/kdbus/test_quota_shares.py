"""Each user's share of a receiver: the formula, against a model of it that knows nothing of the broker.

Sizes are chosen so that the model can predict them: a message without metadata is its header, and if it has
payload an item of 32 bytes and the payload, rounded up to 8.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EAGAIN, EMFILE, ENOBUFS, EXFULL, errorcode
from fractions import Fraction
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.kdbus import NOBODY, Client, ItemType, Msg, Refused, World, layout, refused, repeat_until
from support.kdbus.layout import PAGE, TALK, WORLD, access, align, fds

NAME = "foo.bar.baz"
OVERHEAD = layout.MSG_SIZE + 32
MAX_MESSAGES, MAX_FDS = 256, 16


class Model:
    """What kdbus' pool share rule says, written down from its description; `free` is kept in bytes."""

    def __init__(self, pool_size: int) -> None:
        self.pool_size = pool_size
        self.queue: deque[tuple[int, int, int]] = deque()
        self.memory: Counter[int] = Counter()
        self.messages: Counter[int] = Counter()
        self.fds: Counter[int] = Counter()
        self.busy: dict[int, int] = {}
        """Slices by their offsets."""
        self.offsets: deque[int] = deque()

    def send(self, user: int, size: int, count: int = 0) -> int:
        """The errno of a message of so many bytes with so many descriptors; 0 if it is queued."""
        half, waiting, own = self.pool_size // 2, sum(self.memory.values()), self.memory[user]
        if half < waiting:
            return ENOBUFS
        share = (half - waiting + own) // 3
        if share < own or share - own < size:
            return ENOBUFS
        if self.messages[user] >= MAX_MESSAGES:
            return ENOBUFS
        if self.fds[user] + count > MAX_FDS:
            return EMFILE
        if self.smallest_gap(size) is None:
            return EXFULL
        self.queue.append((user, size, count))
        self.memory[user] += size
        self.messages[user] += 1
        self.fds[user] += count
        return 0

    def place(self, size: int, offset: int) -> None:
        """The message that was sent last lies there; of several gaps of one size any is right."""
        assert self.gaps()[offset] == self.smallest_gap(size)
        self.busy[offset] = size
        self.offsets.append(offset)

    def gaps(self) -> dict[int, int]:
        """What is free, by where it begins."""
        gaps = {}
        at = 0
        for offset, length in [*sorted(self.busy.items()), (self.pool_size, 0)]:
            if offset > at:
                gaps[at] = offset - at
            at = offset + length
        return gaps

    def smallest_gap(self, size: int) -> int | None:
        """The size of the smallest gap that is large enough."""
        return min((length for length in self.gaps().values() if length >= size), default=None)

    def receive(self) -> int:
        """The oldest message leaves the queue; its slice stays until it is freed."""
        user, size, count = self.queue.popleft()
        self.memory[user] -= size
        self.messages[user] -= 1
        self.fds[user] -= count
        return self.offsets.popleft()


@contextmanager
def empty_afterwards() -> Iterator[World]:
    """A world for one example of a property."""
    world = World()
    yield world
    world.tear_down()


def make_receiver(world: World, pool_size: int) -> Client:
    """A connection that everybody may send to, and that asks for no metadata."""
    world.connect_holder(NAME, access(WORLD, TALK))
    receiver = world.connect(pool_size=pool_size, attach_recv=0, task=world.task())
    receiver.name_acquire(NAME)
    return receiver


def make_senders(world: World, count: int) -> list[Client]:
    return [world.connect(world.task(2000 + number)) for number in range(count)]


def send(sender: Client, receiver: Client, size: int) -> int:
    """Send a message that takes exactly so many bytes in the pool; returns the errno, 0 for none."""
    assert size % 8 == 0
    items = [sender.vec(bytes(size - OVERHEAD))] if size > layout.MSG_SIZE else []
    try:
        sender.send_items(*items, dst=receiver)
    except Refused as error:
        return error.errno
    return 0


def send_as_predicted(sender: Client, receiver: Client, model: Model, user: int, size: int) -> None:
    """Send a message; the broker has to do with it what the model says."""
    predicted = model.send(user, size)
    assert told(send(sender, receiver, size)) == told(predicted)
    if not predicted:
        (offset,) = {piece.offset for piece in receiver.pool.slices() if piece.is_busy} - model.busy.keys()
        model.place(size, offset)


def told(errno: int) -> str:
    return errorcode.get(errno, "success")


# The formula


@pytest.mark.parametrize("pool_size", [PAGE, 2 * PAGE, 16 * PAGE, 2**20, 16 * 2**20])
def test_one_user_may_fill_a_third_of_the_half(world: World, pool_size: int) -> None:
    """While nobody else waits, what a user has is not taken from its own share."""
    receiver = make_receiver(world, pool_size)
    (sender,) = make_senders(world, 1)
    limit = min(pool_size // 2 // 3 // 8 * 8, layout.MAX_VEC_PAYLOAD + OVERHEAD)
    if pool_size < 2**24:
        assert send(sender, receiver, limit + 8) == ENOBUFS
    assert send(sender, receiver, limit) == 0
    if pool_size < 2**24:
        assert send(sender, receiver, layout.MSG_SIZE) == ENOBUFS
    receiver.recv()
    assert send(sender, receiver, limit) == 0


def test_of_two_users_the_second_gets_a_third_of_the_rest(world: World) -> None:
    receiver = make_receiver(world, 2**20)
    first, second = make_senders(world, 2)
    half = 2**19
    share = half // 3 // 8 * 8
    assert send(first, receiver, share) == 0
    rest = (half - share) // 3 // 8 * 8
    assert send(second, receiver, rest + 8) == ENOBUFS
    assert send(second, receiver, rest) == 0
    assert send(second, receiver, layout.MSG_SIZE) == ENOBUFS
    assert send(first, receiver, layout.MSG_SIZE) == ENOBUFS


@pytest.mark.parametrize("users", [1, 2, 3, 7])
def test_users_that_come_one_after_the_other_get_a_third_of_what_is_left(world: World, users: int) -> None:
    pool_size = 2**20
    receiver = make_receiver(world, pool_size)
    left = Fraction(pool_size, 2)
    for sender in make_senders(world, users):
        payload = sender.vec(bytes(1024 - OVERHEAD))
        count = repeat_until(ENOBUFS, partial(sender.send_items, payload, dst=receiver))
        assert count == left // 3 // 1024
        left -= count * 1024


@pytest.mark.parametrize("users", [2, 3, 5])
def test_users_that_take_turns_get_equal_shares(world: World, users: int) -> None:
    receiver = make_receiver(world, 2**20)
    senders = make_senders(world, users)
    sent: Counter[int] = Counter()
    done: set[int] = set()
    while len(done) < users:
        for number, sender in enumerate(senders):
            if number not in done:
                if send(sender, receiver, 1024):
                    done.add(number)
                else:
                    sent[number] += 1
    assert max(sent.values()) - min(sent.values()) <= 1
    assert sum(sent.values()) * 1024 <= 2**19


SIZES = (
    st.one_of(st.integers(layout.MSG_SIZE // 8, 40), st.integers(layout.MSG_SIZE // 8, 400))
    .map(lambda words: words * 8)
    .filter(lambda size: size == layout.MSG_SIZE or size > OVERHEAD)
)
SENDS = st.tuples(st.just("send"), st.integers(0, 4), SIZES)
KEEPS = st.tuples(st.just("keep"), st.just(0), st.just(0))
STEPS = st.lists(
    st.one_of(
        SENDS,
        SENDS,
        KEEPS,
        KEEPS,
        st.tuples(st.just("receive"), st.just(0), st.just(0)),
        st.tuples(st.just("free"), st.integers(0, 100), st.just(0)),
        st.tuples(st.just("drop"), st.just(0), st.just(0)),
    ),
    min_size=20,
    max_size=100,
)


@pytest.mark.parametrize("users", [1, 2, 3, 5])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, pages=st.integers(1, 3), occupied=st.integers(0, 8))
def test_every_message_is_judged_as_the_formula_says(
    users: int, steps: list[tuple[str, int, int]], pages: int, occupied: int
) -> None:
    with empty_afterwards() as world:
        receiver = make_receiver(world, pages * PAGE)
        senders = make_senders(world, users)
        model = Model(pages * PAGE)
        kept: list[int] = []
        for _ in range(occupied * pages):  # of 8 parts of the pool so many are the receiver's
            send_as_predicted(senders[0], receiver, model, 0, 512)
            kept.append(model.receive())
            assert receiver.recv(keep=True).offset == kept[-1]
        for step, number, size in steps:
            match step:
                case "send":
                    user = number % users
                    send_as_predicted(senders[user], receiver, model, user, size)
                case "receive" if model.queue:
                    offset = model.receive()
                    assert receiver.recv().offset == offset
                    del model.busy[offset]
                case "keep" if model.queue:
                    offset = model.receive()
                    assert receiver.recv(keep=True).offset == offset
                    kept.append(offset)
                case "free" if kept:
                    offset = kept.pop(number % len(kept))
                    receiver.free(offset)
                    del model.busy[offset]
                case "drop" if model.queue:
                    offset = model.receive()
                    receiver.drop()
                    del model.busy[offset]
                case _:
                    pass
            assert receiver.pool.busy == sum(model.busy.values())
        assert len(receiver.drain()) == len(model.queue)


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(
        st.one_of(st.tuples(st.integers(0, 2), st.integers(0, 16)), st.tuples(st.just(-1), st.just(0))),
        min_size=10,
        max_size=60,
    )
)
def test_descriptors_on_their_way_are_counted_like_that(steps: list[tuple[int, int]]) -> None:
    with empty_afterwards() as world:
        receiver = make_receiver(world, 2**20)
        senders = [world.connect(task) for task in (world.task(2000 + n) for n in range(3))]
        nulls = [sender.task.open_null() for sender in senders]
        model = Model(2**20)
        for user, count in steps:
            if user >= 0:
                size = layout.MSG_SIZE + align(16 + 4 * count)
                try:
                    senders[user].send_items(fds([nulls[user]] * count), dst=receiver)
                    errno = 0
                except Refused as error:
                    errno = error.errno
                assert told(errno) == told(model.send(user, size, count))
                if not errno:
                    model.offsets.append(0)  # the pool is large enough
            elif model.queue:
                model.receive()
                receiver.recv().close_fds()
        for message in receiver.drain():
            message.close_fds()


# Release


def test_what_was_received_counts_no_more_even_while_it_is_kept(world: World) -> None:
    receiver = make_receiver(world, 64 * PAGE)
    (sender,) = make_senders(world, 1)
    share = 32 * PAGE // 3 // 8 * 8
    for _ in range(3):
        assert send(sender, receiver, share) == 0
        assert send(sender, receiver, layout.MSG_SIZE) == ENOBUFS
        receiver.recv(keep=True)


@pytest.mark.parametrize("way", ["receive", "drop", "move", "peek and receive"])
def test_whichever_way_a_message_leaves_its_share_is_given_back(world: World, way: str) -> None:
    receiver = make_receiver(world, 16 * PAGE)
    world.connect().name_acquire("some.other")
    (sender,) = make_senders(world, 1)
    share = 8 * PAGE // 3 // 8 * 8
    assert send(sender, receiver, share) == 0
    match way:
        case "receive":
            receiver.recv()
        case "drop":
            receiver.drop()
        case "peek and receive":
            receiver.peek()
            receiver.recv()
        case _:
            receiver.name_release(NAME)
            activator = world.connect(None, layout.name("foo.bar.moved"), access(WORLD, TALK), flags=2)
            receiver.name_acquire("foo.bar.moved")
            receiver.recv()
            to_name = layout.string(ItemType.DST_NAME, "foo.bar.moved")
            sender.send_items(to_name, sender.vec(bytes(share - OVERHEAD - 32)), cookie=1)
            receiver.name_release("foo.bar.moved")
            assert activator.recv().cookie == 1
            receiver.name_acquire("foo.bar.moved")
    assert not receiver.connection.quota.shares
    assert send(sender, receiver, share) == 0


def test_who_disconnects_leaves_its_messages_charged(world: World) -> None:
    receiver = make_receiver(world, 16 * PAGE)
    task = world.task(2000)
    first = world.connect(task)
    share = 8 * PAGE // 3 // 8 * 8
    assert send(first, receiver, share) == 0
    first.close()
    second = world.connect(task)
    assert send(second, receiver, layout.MSG_SIZE) == ENOBUFS
    receiver.recv()
    assert send(second, receiver, share) == 0


def test_connections_of_one_user_share(world: World) -> None:
    receiver = make_receiver(world, 16 * PAGE)
    first, second = (world.connect(world.task(2000)) for _ in range(2))
    share = 8 * PAGE // 3 // 8 * 8
    assert send(first, receiver, share) == 0
    assert send(second, receiver, layout.MSG_SIZE) == ENOBUFS


# Roll-back


def test_a_pool_that_the_receiver_fills_leaves_nothing_charged(world: World) -> None:
    """EXFULL for hundreds of times would use up any share, were it not given back."""
    receiver = make_receiver(world, PAGE)
    sender, other = make_senders(world, 2)
    for _ in range(PAGE // 512):
        assert send(sender, receiver, 512) == 0
        receiver.recv(keep=True)
    for _ in range(2 * MAX_MESSAGES):
        assert send(sender, receiver, layout.MSG_SIZE) == EXFULL
    assert not receiver.connection.quota.shares
    assert not receiver.is_readable
    receiver.free(0)
    assert send(sender, receiver, 520) == EXFULL
    assert send(sender, receiver, 512) == 0
    receiver.recv()
    for _ in range(512 // layout.MSG_SIZE):
        assert send(other, receiver, layout.MSG_SIZE) == 0
    assert send(other, receiver, layout.MSG_SIZE) == EXFULL
    receiver.drain()


def test_a_request_that_did_not_fit_is_rolled_back_too(world: World) -> None:
    receiver = make_receiver(world, PAGE)
    (sender,) = make_senders(world, 1)
    for _ in range(PAGE // 512):
        assert send(sender, receiver, 512) == 0
        receiver.recv(keep=True)
    null = sender.task.open_null()
    before = sender.pool.busy
    for cookie in range(2 * MAX_MESSAGES):
        with refused(EXFULL):
            sender.send_items(
                fds([null] * MAX_FDS), dst=receiver, cookie=cookie, flags=Msg.EXPECT_REPLY, timeout_ms=100
            )
    assert sender.connection.outstanding == 0
    assert sender.pool.busy == before
    assert sender.task.description(null).references == 1
    world.advance(1000)
    assert not sender.is_readable
    receiver.free(512)
    sender.send_items(fds([null] * MAX_FDS), dst=receiver)
    receiver.recv().close_fds()


def test_a_reply_that_did_not_fit_is_rolled_back_too(world: World) -> None:
    requester = make_receiver(world, PAGE)
    (replier,) = make_senders(world, 1)
    requester.send_small(replier, cookie=1, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    call = requester.call(replier, cookie=2, timeout_ms=100)
    filler = world.connect(world.task(NOBODY))
    with refused(EXFULL):
        for _ in range(100):
            filler.send_items(filler.vec(bytes(200)), dst=requester)
            requester.recv(keep=True)
    with refused(EXFULL):
        for _ in range(100):
            filler.send_items(dst=requester)
            requester.recv(keep=True)
    for _ in range(MAX_MESSAGES + 1):
        with refused(EXFULL):
            replier.reply(requester, 1, replier.vec(b"x" * 100))
    with refused(EXFULL):
        replier.reply(requester, 2, replier.vec(b"x" * 100))
    with refused(EXFULL):  # it is the caller's pool, so it is told
        call.result()
    assert not requester.connection.quota.shares
    for offset in list(requester.unfreed):
        requester.free(offset)
    replier.reply(requester, 1, replier.vec(b"x" * 100))
    assert requester.recv().cookie_reply == 1
    replier.drain()


def test_a_broadcast_that_did_not_fit_is_rolled_back_too(world: World) -> None:
    receiver = make_receiver(world, PAGE)
    receiver.add_match_empty()
    sender = world.connect(receiver.task)
    with refused(EXFULL):
        for _ in range(100):
            sender.send_items(dst=receiver)
            receiver.recv(keep=True)
    for _ in range(MAX_MESSAGES + 5):
        sender.signal()
    assert not receiver.connection.quota.shares
    for offset in list(receiver.unfreed):
        receiver.free(offset)
    sender.signal(cookie=7)
    message = receiver.recv()
    assert (message.cookie, message.dropped) == (7, MAX_MESSAGES + 5)


# Whose


def test_a_synchronous_reply_is_charged_until_it_is_handed_over(world: World) -> None:
    caller = make_receiver(world, 16 * PAGE)
    (replier,) = make_senders(world, 1)
    share = 8 * PAGE // 3 // 8 * 8
    for _ in range(3):
        call = caller.call(replier, cookie=1)
        replier.recv()
        replier.reply(caller, 1, replier.vec(bytes(share - OVERHEAD)))
        assert not caller.connection.quota.shares
        call.result()


def test_a_synchronous_reply_beyond_the_share_is_told_to_both(world: World) -> None:
    caller = make_receiver(world, 16 * PAGE)
    (replier,) = make_senders(world, 1)
    share = 8 * PAGE // 3 // 8 * 8
    call = caller.call(replier, cookie=1)
    replier.recv()
    with refused(ENOBUFS):
        replier.reply(caller, 1, replier.vec(bytes(share - OVERHEAD + 8)))
    with refused(ENOBUFS):
        call.result()


def test_notifications_have_a_share_of_their_own(world: World) -> None:
    receiver = make_receiver(world, 16 * PAGE)
    receiver.add_match_id(ItemType.ID_ADD)
    (sender,) = make_senders(world, 1)
    receiver.drain()
    share = 8 * PAGE // 3 // 8 * 8
    assert send(sender, receiver, share) == 0
    first = world.connect()
    messages = receiver.drain()
    assert messages[-1].arrival == (ItemType.ID_ADD, first.id)


def test_monitors_charge_in_their_own_pool(world: World) -> None:
    receiver = make_receiver(world, 16 * PAGE)
    monitor = world.connect(None, flags=layout.Hello.MONITOR, pool_size=PAGE, attach_recv=0)
    (sender,) = make_senders(world, 1)
    monitor.drain()
    for _ in range(20):
        assert send(sender, receiver, 1024) == 0
        receiver.recv()
    with refused(EAGAIN) as refusal:
        monitor.recv()
    assert refusal.answer["dropped_msgs"] == 20  # a third of 2048 is less
