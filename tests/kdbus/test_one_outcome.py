"""A request has exactly one outcome, whatever happens to whom and in which order.

It is a reply, REPLY_DEAD, REPLY_TIMEOUT, the errno of a synchronous call, or nothing when its sender has
gone.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import (
    EAGAIN,
    EBADSLT,
    ECANCELED,
    ECOMM,
    EMLINK,
    ENOBUFS,
    ENXIO,
    EPERM,
    EPIPE,
    ESRCH,
    ETIMEDOUT,
    EXFULL,
)
from itertools import permutations

import pytest
from support.kdbus import NOBODY, Client, ItemType, Msg, Refused, World, layout, refused
from support.kdbus.layout import PAYLOAD_KERNEL, fds

COOKIE = 0xC0FFEE
NAME = "foo.bar.baz"
DEAD, TIMEOUT = ItemType.REPLY_DEAD, ItemType.REPLY_TIMEOUT
Pair = tuple[Client, Client]


@pytest.fixture
def pair(world: World) -> Pair:
    """A requester and a replier, each with a task of its own."""
    return world.connect(world.task()), world.connect(world.task())


def ask(requester: Client, replier: Client, cookie: int = COOKIE, timeout_ms: int = 100) -> None:
    requester.send_small(replier, cookie=cookie, flags=Msg.EXPECT_REPLY, timeout_ms=timeout_ms)


def answer(replier: Client, requester: Client, cookie: int = COOKIE) -> None:
    replier.reply(requester, cookie, replier.vec(b"an answer"))


def outcomes(requester: Client) -> list[tuple[ItemType | None, int]]:
    """What the requester was told: the kind of notification, None for a reply, with the cookie."""
    return [(m.kind if m.is_notification else None, m.cookie_reply) for m in requester.drain()]


# The callee dies


@pytest.mark.parametrize("is_read", [False, True])
@pytest.mark.parametrize("is_peeked", [False, True])
def test_a_callee_that_dies_is_told_once(pair: Pair, is_read: bool, is_peeked: bool) -> None:
    requester, replier = pair
    ask(requester, replier)
    if is_peeked:
        replier.peek()
    if is_read:
        replier.recv()
    replier.close()
    message = requester.recv()
    assert (message.kind, message.cookie_reply, message.payload_type) == (DEAD, COOKIE, PAYLOAD_KERNEL)
    assert (message.src_id, message.dst_id, message.cookie, message.flags) == (0, requester.id, 0, 0)
    with refused(EAGAIN):
        requester.recv()


@pytest.mark.parametrize("is_read", [False, True])
def test_a_waiting_caller_is_told_once_and_gets_no_message(pair: Pair, is_read: bool) -> None:
    requester, replier = pair
    call = requester.call(replier, cookie=COOKIE)
    if is_read:
        replier.recv()
    replier.close()
    with refused(EPIPE):
        call.result()
    assert not requester.is_readable


def test_a_callee_that_says_goodbye_is_dead_too(pair: Pair) -> None:
    requester, replier = pair
    ask(requester, replier)
    call = requester.call(replier, cookie=1)
    assert len(replier.drain()) == 2
    replier.byebye()
    assert outcomes(requester) == [(DEAD, COOKIE)]
    with refused(EPIPE):
        call.result()


def test_every_request_has_its_own_outcome(pair: Pair) -> None:
    requester, replier = pair
    for cookie in range(20):
        ask(requester, replier, cookie)
    for _ in range(7):
        replier.recv()
    for cookie in (3, 12):
        answer(replier, requester, cookie)
    replier.close()
    rest = [cookie for cookie in range(20) if cookie not in (3, 12)]
    assert outcomes(requester) == [(None, 3), (None, 12), *((DEAD, cookie) for cookie in rest)]


def test_requests_of_one_cookie_have_one_outcome_each(pair: Pair) -> None:
    requester, replier = pair
    for _ in range(3):
        ask(requester, replier)
    answer(replier, requester)
    replier.close()
    assert outcomes(requester) == [(None, COOKIE), (DEAD, COOKIE), (DEAD, COOKIE)]


def test_a_death_is_told_after_it_was_announced(world: World, pair: Pair) -> None:
    requester, replier = pair
    requester.add_match_id(ItemType.ID_REMOVE)
    requester.add_match_name(ItemType.NAME_REMOVE)
    replier.name_acquire(NAME)
    ask(requester, replier)
    replier.close()
    kinds = [message.kind for message in requester.drain()]
    assert kinds == [ItemType.NAME_REMOVE, ItemType.ID_REMOVE, DEAD]


def test_a_death_is_told_to_each_requester(world: World, pair: Pair) -> None:
    _, replier = pair
    requesters = [world.connect() for _ in range(4)]
    for cookie, requester in enumerate(requesters):
        ask(requester, replier, cookie)
    replier.close()
    assert [outcomes(requester) for requester in requesters] == [[(DEAD, cookie)] for cookie in range(4)]


def test_who_asks_itself_and_dies_hurts_nobody(pair: Pair) -> None:
    requester, _ = pair
    ask(requester, requester)
    requester.call(requester, cookie=1)
    requester.close()


# Time


def test_a_deadline_is_told_once_and_not_before(world: World, pair: Pair) -> None:
    requester, replier = pair
    ask(requester, replier, timeout_ms=100)
    world.advance(99)
    assert not requester.is_readable
    world.advance(1)
    message = requester.recv()
    assert (message.kind, message.cookie_reply, message.dst_id) == (TIMEOUT, COOKIE, requester.id)
    world.advance(1000)
    assert not requester.is_readable


def test_a_deadline_in_the_past_is_told_at_once_and_the_message_sent(world: World, pair: Pair) -> None:
    requester, replier = pair
    for cookie, deadline in enumerate((1, world.monotonic_ns - 1, world.monotonic_ns), 1):
        requester.send_items(dst=replier, cookie=cookie, flags=Msg.EXPECT_REPLY, deadline_ns=deadline)
        assert outcomes(requester) == [(TIMEOUT, cookie)]
        assert replier.recv().cookie == cookie
        with refused(EBADSLT):
            answer(replier, requester, cookie)


def test_deadlines_are_told_in_their_order(world: World, pair: Pair) -> None:
    requester, replier = pair
    for cookie, timeout in enumerate([300, 100, 400, 200, 100]):
        ask(requester, replier, cookie, timeout)
    world.advance(350)
    assert [cookie for _, cookie in outcomes(requester)] == [1, 4, 3, 0]
    world.advance(50)
    assert outcomes(requester) == [(TIMEOUT, 2)]


def test_a_deadline_beyond_all_time_does_not_pass(world: World, pair: Pair) -> None:
    requester, replier = pair
    requester.send_items(dst=replier, cookie=1, flags=Msg.EXPECT_REPLY, deadline_ns=2**64 - 1)
    world.advance(10**9)
    assert not requester.is_readable
    answer(replier, requester, 1)
    assert outcomes(requester) == [(None, 1)]


# Whatever comes first


EVENTS = ["answer", "drop", "deadline", "death"]
FIRST = {"answer": None, "drop": DEAD, "deadline": TIMEOUT, "death": DEAD}


def happen(world: World, requester: Client, replier: Client, event: str) -> None:
    match event:
        case "answer":
            answer(replier, requester)
        case "drop":
            replier.drop()
        case "deadline":
            world.advance(100)
        case _:
            replier.close()


@pytest.mark.parametrize("events", list(permutations(EVENTS)), ids=" ".join)
def test_the_first_of_all_that_can_happen_counts(world: World, pair: Pair, events: tuple[str, ...]) -> None:
    requester, replier = pair
    ask(requester, replier)
    for event in events:
        if replier.is_open:
            try:
                happen(world, requester, replier, event)
            except Refused as error:
                if (event, error.errno) != ("answer", EBADSLT) or event == events[0]:
                    raise
    assert outcomes(requester) == [(FIRST[events[0]], COOKIE)]
    assert requester.connection.outstanding == 0


SYNC_ERRNO = {"answer": 0, "drop": EPIPE, "deadline": ETIMEDOUT, "death": EPIPE, "cancel": ECANCELED}


@pytest.mark.parametrize("events", list(permutations([*EVENTS, "cancel"], 3)), ids=" ".join)
def test_the_first_of_all_that_can_happen_ends_a_call(
    world: World, pair: Pair, events: tuple[str, ...]
) -> None:
    requester, replier = pair
    fd = requester.task.open_eventfd()
    call = requester.call(replier, cookie=COOKIE, timeout_ms=100, cancel_fd=fd)
    for event in events:
        if event == "cancel":
            requester.task.signal(fd)
        elif replier.is_open:
            try:
                happen(world, requester, replier, event)
            except Refused as error:
                if (event, error.errno) != ("answer", EBADSLT) or event == events[0]:
                    raise
        assert call.is_done
    errno = SYNC_ERRNO[events[0]]
    if errno:
        with refused(errno):
            call.result()
    else:
        assert call.result().payload == b"an answer"
    assert not requester.is_readable
    if replier.is_open:
        replier.drain()
    assert requester.connection.outstanding == 0


# The requester goes


def test_a_requester_that_goes_is_told_nothing_and_its_reply_has_nowhere_to_go(pair: Pair) -> None:
    requester, replier = pair
    ask(requester, replier)
    requester.close()
    assert replier.recv().cookie == COOKIE  # what was sent stays sent
    with refused(ENXIO):
        answer(replier, requester)
    assert not replier.is_readable


def test_a_requester_that_goes_leaves_others_alone(world: World, pair: Pair) -> None:
    requester, replier = pair
    other = world.connect()
    ask(requester, replier)
    ask(other, replier)
    requester.close()
    answer(replier, other)
    assert outcomes(other) == [(None, COOKIE)]
    replier.drain()


def test_a_requester_that_says_goodbye_lets_go_of_its_requests(world: World, pair: Pair) -> None:
    requester, replier = pair
    ask(requester, replier)
    requester.byebye()
    world.advance(1000)
    replier.close()


# What is not an outcome


def test_a_reply_that_is_refused_leaves_the_request_open(world: World, pair: Pair) -> None:
    requester, replier = pair
    deaf = world.connect(accept_fd=False)
    ask(deaf, replier)
    null = fds([replier.task.open_null()])
    for _ in range(2):
        with refused(ECOMM):
            replier.reply(deaf, COOKIE, null)
    answer(replier, deaf)
    assert outcomes(deaf) == [(None, COOKIE)]
    ask(requester, replier)
    for _ in range(256):
        world.connect(replier.task).send_items(dst=requester)
    with refused(ENOBUFS):
        answer(replier, requester)
    requester.drain()
    answer(replier, requester)
    assert outcomes(requester) == [(None, COOKIE)]
    replier.drain()


def test_a_reply_that_never_got_through_ends_with_the_deadline(world: World, pair: Pair) -> None:
    _, replier = pair
    requester = world.connect(pool_size=layout.PAGE)
    ask(requester, replier)
    with refused(ENOBUFS):
        replier.reply(requester, COOKIE)
    world.advance(100)
    assert outcomes(requester) == [(TIMEOUT, COOKIE)]


def test_a_message_from_somebody_else_is_no_reply(world: World, pair: Pair) -> None:
    requester, replier = pair
    ask(requester, replier)
    replier.send_small(requester, cookie=COOKIE)
    for wrong in (COOKIE + 1, 2**64 - 1):
        with refused(EBADSLT):
            answer(replier, requester, wrong)
    with refused(EBADSLT):
        answer(world.connect(), requester)
    answer(replier, requester)
    assert [message.cookie_reply for message in requester.drain()] == [0, COOKIE]


def test_a_request_that_was_refused_is_none(world: World, pair: Pair) -> None:
    requester, replier = pair
    stranger = world.connect(world.task(NOBODY))
    small = world.connect(pool_size=layout.PAGE)
    refusals: list[tuple[Client, int, Callable[[], object]]] = [
        (stranger, EPERM, lambda: ask(stranger, replier)),
        (requester, ENXIO, lambda: requester.send_items(dst=9999, flags=Msg.EXPECT_REPLY, timeout_ms=5)),
        (
            requester,
            ESRCH,
            lambda: requester.send_small(name=NAME, flags=Msg.EXPECT_REPLY, timeout_ms=5),
        ),
        (
            requester,
            ENOBUFS,
            lambda: requester.send(small, flags=Msg.EXPECT_REPLY, timeout_ms=5),
        ),
    ]
    for client, errno, command in refusals:
        with refused(errno):
            command()
        assert client.connection.outstanding == 0
    world.advance(1000)
    for client in (requester, stranger, small):
        assert not client.is_readable


def test_a_request_that_was_refused_leaves_no_window(world: World, pair: Pair) -> None:
    requester, _ = pair
    replier = world.connect(pool_size=layout.PAGE)
    with refused(ENOBUFS):
        requester.send(replier, cookie=COOKIE, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    with refused(EBADSLT):
        answer(replier, requester)


# It is told even where nothing fits


def test_an_outcome_is_told_to_a_full_queue(world: World, pair: Pair) -> None:
    _, replier = pair
    requester = world.connect(pool_size=layout.PAGE)
    ask(requester, replier, 1)
    ask(requester, replier, 2)
    sender = world.connect(world.task(0, privileged=True))
    with refused(ENOBUFS):
        for _ in range(1000):
            sender.send_items(dst=requester)
    world.advance(50)
    replier.recv()
    replier.drop()
    world.advance(50)
    told = [message for message in requester.drain() if message.is_notification]
    assert [(message.kind, message.cookie_reply) for message in told] == [(DEAD, 2), (TIMEOUT, 1)]


def test_an_outcome_is_told_when_the_whole_pool_is_the_receivers(world: World, pair: Pair) -> None:
    _, replier = pair
    requester = world.connect(pool_size=layout.PAGE)
    ask(requester, replier)
    with refused(EXFULL):
        for _ in range(1000):
            requester.creator_info(keep=True)
    replier.close()
    assert outcomes(requester) == [(DEAD, COOKIE)]


def test_every_request_that_can_be_outstanding_is_told(world: World, pair: Pair) -> None:
    requester, replier = pair
    for cookie in range(128):
        ask(requester, replier, cookie)
    with refused(EMLINK):
        ask(requester, replier, 128)
    requester.add_match_id(ItemType.ID_ADD)
    for _ in range(300):
        world.connect().close()
    replier.close()
    told = [message for message in requester.drain() if message.kind == DEAD]
    assert [message.cookie_reply for message in told] == list(range(128))


# What does not ask is told nothing


def test_a_plain_message_has_no_outcome(world: World, pair: Pair) -> None:
    sender, receiver = pair
    sender.send_small(receiver)
    receiver.drop()
    sender.send_small(receiver)
    receiver.close()
    world.advance(1000)
    assert not sender.is_readable
