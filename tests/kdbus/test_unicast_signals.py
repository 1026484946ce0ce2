"""Signals to one connection: it has to want them, and to be allowed to talk to who sends them.

What is not wanted or not allowed vanishes without a word, but monitors see it. A signal that was wanted and
found no room is counted at its receiver.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EADDRNOTAVAIL, EAGAIN, EBADMSG, EINVAL, ENOBUFS, ENOTUNIQ, ENXIO, EPERM, EREMCHG, ESRCH

import pytest
from support.kdbus import NOBODY, Client, ItemType, Msg, World, layout, refused
from support.kdbus.layout import ANY, DROPPED_MSGS, OWN, SEE, TALK, WORLD, access, bloom_filter, name, string

from kdbus_core.metadata import Creds

NAME = "foo.bar.baz"
TO_NAME = string(ItemType.DST_NAME, NAME)


def dst_id_rule(id: int) -> bytes:
    return layout.number(ItemType.DST_ID, id)


@pytest.fixture
def sender(world: World) -> Client:
    return world.connect()


@pytest.fixture
def target(world: World) -> Client:
    return world.connect()


@pytest.fixture
def stranger(world: World) -> Client:
    """A connection of somebody who does not own the bus, and wants every signal."""
    client = world.connect(world.task(NOBODY))
    client.add_match_empty()
    return client


def cookies(client: Client) -> list[int]:
    """What waits for a client; nothing of it may have been lost."""
    messages = client.drain()
    assert [message.dropped for message in messages] == [0] * len(messages)
    return [message.cookie for message in messages]


# Wanted


def test_a_signal_that_nobody_asked_for_vanishes(sender: Client, target: Client) -> None:
    sender.signal(dst=target)
    assert not target.is_readable
    with refused(EAGAIN) as refusal:
        target.recv()
    assert refusal.answer["dropped_msgs"] == 0


def test_a_signal_arrives_as_it_was_sent(sender: Client, target: Client) -> None:
    target.add_match_empty()
    sender.signal(sender.vec(b"a signal"), dst=target, bits=b"\7" * 64, generation=2, cookie=9)
    message = target.recv()
    assert (message.flags, message.cookie, message.payload) == (Msg.SIGNAL, 9, b"a signal")
    assert (message.src_id, message.dst_id, message.cookie_reply) == (sender.id, target.id, 0)
    assert message.one(ItemType.BLOOM_FILTER) == (2).to_bytes(8, "little") + b"\7" * 64


def test_a_match_for_notifications_does_not_ask_for_signals(sender: Client, target: Client) -> None:
    target.add_match_id(ItemType.ID_ADD)
    target.add_match_name(ItemType.NAME_ADD)
    sender.signal(dst=target)
    assert not target.is_readable


def test_others_who_would_want_a_signal_do_not_get_it(world: World, sender: Client, target: Client) -> None:
    other = world.connect()
    for client in (sender, target, other):
        client.add_match()
    sender.signal(dst=target, cookie=1)
    assert [m.cookie for m in target.drain() if not m.is_notification] == [1]
    assert not other.is_readable
    assert not sender.is_readable


def test_a_signal_arrives_once_however_many_matches_want_it(sender: Client, target: Client) -> None:
    for cookie in range(5):
        target.add_match_empty()
        target.add_match(dst_id_rule(target.id), cookie=cookie)
    sender.signal(dst=target, cookie=1)
    assert cookies(target) == [1]


@pytest.mark.parametrize(("bit", "arrives"), [(0x03, True), (0x01, True), (0x02, False), (0x00, False)])
def test_the_filter_of_a_signal_has_to_contain_the_mask(
    sender: Client, target: Client, bit: int, arrives: bool
) -> None:
    target.add_match(layout.bloom_mask(layout.bits({5: 0x01})))
    sender.signal(dst=target, bits=layout.bits({5: bit}), cookie=1)
    assert cookies(target) == [1] * arrives


def test_a_signal_from_the_wrong_sender_is_not_wanted(world: World, sender: Client, target: Client) -> None:
    target.add_match(layout.number(ItemType.ID, sender.id))
    world.connect().signal(dst=target, cookie=1)
    sender.signal(dst=target, cookie=2)
    assert cookies(target) == [2]


def test_a_signal_can_be_sent_to_oneself(sender: Client) -> None:
    sender.signal(dst=sender, cookie=1)
    assert not sender.is_readable
    sender.add_match(dst_id_rule(sender.id))
    sender.signal(dst=sender, cookie=2)
    assert cookies(sender) == [2]


def test_a_message_that_is_no_signal_needs_no_match(sender: Client, target: Client) -> None:
    sender.send_small(target, cookie=1)
    assert cookies(target) == [1]


# By whom it is addressed


def by_id(sender: Client, target: Client) -> None:
    sender.signal(dst=target, cookie=1)


def by_name(sender: Client, target: Client) -> None:
    sender.signal(TO_NAME, dst=0, cookie=1)


def by_both(sender: Client, target: Client) -> None:
    sender.signal(TO_NAME, dst=target, cookie=1)


def to_everybody(sender: Client, target: Client) -> None:
    sender.signal(cookie=1)


@pytest.mark.parametrize(
    ("rule", "signal", "arrives"),
    [
        ("own", by_id, True),
        ("own", by_name, False),
        ("own", by_both, True),
        ("own", to_everybody, False),
        ("none", by_id, False),
        ("none", by_name, True),
        ("none", by_both, False),
        ("none", to_everybody, False),
        ("any", by_id, True),
        ("any", by_name, True),
        ("any", by_both, True),
        ("any", to_everybody, True),
        ("other", by_id, False),
        ("other", by_name, False),
        ("other", by_both, False),
        ("other", to_everybody, False),
    ],
)
def test_a_match_can_ask_for_the_id_that_a_signal_is_addressed_to(
    sender: Client, target: Client, rule: str, signal: Callable[[Client, Client], None], arrives: bool
) -> None:
    target.name_acquire(NAME)
    wanted = {"own": target.id, "none": 0, "any": ANY, "other": sender.id}[rule]
    target.add_match(dst_id_rule(wanted))
    signal(sender, target)
    assert cookies(target) == [1] * arrives


@pytest.mark.parametrize("signal", [by_id, by_name, by_both])
def test_a_signal_is_addressed_like_any_message(
    sender: Client, target: Client, signal: Callable[[Client, Client], None]
) -> None:
    target.name_acquire(NAME)
    target.add_match_empty()
    signal(sender, target)
    message = target.recv()
    assert message.dst_id == (0 if signal is by_name else target.id)
    assert message.has(ItemType.DST_NAME) == (signal is not by_id)


def test_a_signal_to_nobody_is_refused(world: World, sender: Client, target: Client) -> None:
    with refused(ENXIO):
        sender.signal(dst=9999)
    with refused(ESRCH):
        sender.signal(TO_NAME, dst=0)
    target.name_acquire(NAME)
    with refused(EREMCHG):
        sender.signal(TO_NAME, dst=sender)
    world.connect_activator("foo.activated")
    with refused(EADDRNOTAVAIL):
        sender.send_items(
            string(ItemType.DST_NAME, "foo.activated"), bloom_filter(), flags=Msg.SIGNAL | Msg.NO_AUTO_START
        )


def test_special_connections_are_not_sent_signals_by_id(world: World, sender: Client) -> None:
    for special in (world.connect_activator(NAME), world.connect_holder("a.b"), world.connect_monitor()):
        with refused(ENXIO):
            sender.signal(dst=special)


def test_a_signal_to_a_name_that_only_an_activator_has_starts_nothing(world: World, sender: Client) -> None:
    activator = world.connect_activator(NAME)
    sender.signal(TO_NAME, dst=0)
    assert not activator.is_readable


def test_a_signal_is_neither_a_request_nor_a_reply_and_has_a_filter(sender: Client, target: Client) -> None:
    with refused(ENOTUNIQ):
        sender.send_items(bloom_filter(), dst=target, flags=Msg.SIGNAL | Msg.EXPECT_REPLY, timeout_ms=5)
    with refused(EINVAL):
        sender.send_items(bloom_filter(), dst=target, flags=Msg.SIGNAL, cookie_reply=5)
    with refused(EBADMSG):
        sender.send_items(dst=target, flags=Msg.SIGNAL)
    with refused(EBADMSG):
        sender.send_items(bloom_filter(), dst=target)


# Allowed: it is the receiver who has to be allowed to talk to the sender


def test_an_owner_gets_the_signals_of_strangers(target: Client, stranger: Client) -> None:
    target.add_match_empty()
    stranger.signal(dst=target, cookie=1)
    assert cookies(target) == [1]


def test_a_stranger_does_not_get_the_signals_of_an_owner(sender: Client, stranger: Client) -> None:
    sender.signal(dst=stranger)
    assert not stranger.is_readable
    sender.send_small(stranger, cookie=1)  # what is no signal is judged the other way round
    assert cookies(stranger) == [1]


def test_strangers_get_signals_of_their_own_uid(world: World, stranger: Client) -> None:
    world.connect(world.task(NOBODY)).signal(dst=stranger, cookie=1)
    world.connect(world.task(NOBODY - 1)).signal(dst=stranger, cookie=2)
    assert cookies(stranger) == [1]


@pytest.mark.parametrize(("level", "arrives"), [(SEE, False), (TALK, True), (OWN, True)])
def test_who_may_talk_to_a_name_gets_the_signals_of_its_owner(
    world: World, sender: Client, stranger: Client, level: int, arrives: bool
) -> None:
    world.connect_holder(NAME, access(WORLD, level))
    sender.signal(dst=stranger, cookie=1)
    sender.name_acquire(NAME)
    sender.signal(dst=stranger, cookie=2)
    sender.name_release(NAME)
    sender.signal(dst=stranger, cookie=3)
    assert cookies(stranger) == [2] * arrives


def test_what_the_sender_may_does_not_count(world: World, sender: Client, stranger: Client) -> None:
    world.connect_holder(NAME, access(WORLD, OWN))
    stranger.name_acquire(NAME)  # the sender may talk to it, not it to the sender
    sender.signal(dst=stranger)
    assert not stranger.is_readable


def test_a_broadcast_is_judged_in_the_same_way(
    world: World, sender: Client, target: Client, stranger: Client
) -> None:
    target.add_match_empty()
    sender.signal(cookie=1)
    stranger.signal(cookie=2)
    world.connect_holder(NAME, access(WORLD, TALK))
    sender.name_acquire(NAME)
    sender.signal(cookie=3)
    assert cookies(target) == [1, 2, 3]
    assert cookies(stranger) == [2, 3]


def test_whom_one_talks_to_is_the_real_uid(world: World) -> None:
    """Who talks is the effective one."""
    setuid = world.task(creds=Creds(2000, 3000, 4000, 4000, 5, 5, 5, 5))
    mixed = world.connect(setuid)
    mixed.add_match_empty()
    real, effective = (world.connect(world.task(uid)) for uid in (2000, 3000))
    real.send_small(mixed, cookie=1)
    with refused(EPERM):
        effective.send_small(mixed)
    mixed.send_small(effective)
    with refused(EPERM):
        mixed.send_small(real)
    real.signal(dst=mixed, cookie=2)
    effective.signal(dst=mixed, cookie=3)
    assert cookies(mixed) == [1, 3]
    effective.recv()


def test_a_name_that_is_only_waited_for_opens_nothing(
    world: World, sender: Client, target: Client, stranger: Client
) -> None:
    world.connect_holder(NAME, access(WORLD, TALK))
    target.name_acquire(NAME)
    sender.name_acquire(NAME, layout.Name.QUEUE)
    sender.signal(dst=stranger)
    assert not stranger.is_readable


def test_on_a_custom_endpoint_its_policy_has_to_let_the_sender_be_talked_to(
    world: World, sender: Client
) -> None:
    endpoint, node = world.make_endpoint("1000-custom")
    receiver = world.connect(node=node)
    receiver.add_match_empty()
    sender.name_acquire(NAME)
    sender.signal(dst=receiver, cookie=1)
    endpoint.endpoint_update(name(NAME), access(WORLD, SEE))
    sender.signal(dst=receiver, cookie=2)
    endpoint.endpoint_update(name(NAME), access(WORLD, TALK))
    sender.signal(dst=receiver, cookie=3)
    assert cookies(receiver) == [3]


# Monitors


def test_monitors_see_what_vanishes(world: World, sender: Client, target: Client, stranger: Client) -> None:
    monitor = world.connect_monitor()
    sender.signal(dst=target, cookie=1)  # not wanted
    sender.signal(dst=stranger, cookie=2)  # not allowed
    world.connect_activator(NAME)
    monitor.drain()
    sender.signal(TO_NAME, dst=0, cookie=3)  # an activator wants none
    assert cookies(monitor) == [3]
    assert not target.is_readable
    assert not stranger.is_readable


def test_monitors_see_unwanted_and_forbidden_signals_with_their_addressee(
    world: World, sender: Client, target: Client, stranger: Client
) -> None:
    monitor = world.connect_monitor()
    sender.signal(dst=target, cookie=1)
    sender.signal(dst=stranger, cookie=2)
    assert [(m.cookie, m.src_id, m.dst_id) for m in monitor.drain()] == [
        (1, sender.id, target.id),
        (2, sender.id, stranger.id),
    ]


def test_monitors_do_not_see_signals_to_nobody(world: World, sender: Client) -> None:
    monitor = world.connect_monitor()
    with refused(ENXIO):
        sender.signal(dst=9999)
    with refused(ESRCH):
        sender.signal(TO_NAME, dst=0)
    assert not monitor.is_readable


# No room


def test_a_signal_that_finds_no_room_is_counted_and_its_sender_not_told(world: World, sender: Client) -> None:
    target = world.connect(pool_size=layout.PAGE)
    target.add_match_empty()
    for _ in range(3):
        sender.signal(sender.vec(bytes(layout.PAGE)), dst=target)
    assert target.is_readable
    with refused(EAGAIN) as refusal:
        target.recv()
    assert (refusal.answer["dropped_msgs"], refusal.answer["return_flags"]) == (3, DROPPED_MSGS)


def test_a_signal_with_descriptors_for_who_takes_none_is_lost(world: World, sender: Client) -> None:
    target = world.connect(accept_fd=False)
    target.add_match_empty()
    sender.signal(layout.fds([sender.task.open_null()]), dst=target)
    with refused(EAGAIN) as refusal:
        target.recv()
    assert refusal.answer["dropped_msgs"] == 1


def test_a_signal_to_one_may_carry_descriptors(sender: Client, target: Client) -> None:
    target.add_match_empty()
    sender.signal(layout.fds([sender.task.open_null()]), dst=target)
    message = target.recv()
    assert len(message.fds) == 1
    assert message.fds[0] >= 0
    message.close_fds()


def test_signals_are_charged_to_their_sender(sender: Client, target: Client) -> None:
    target.add_match_empty()
    for _ in range(256):
        sender.signal(dst=target)
    with refused(ENOBUFS):
        sender.send_items(dst=target)
    sender.signal(dst=target)
    messages = target.drain()
    assert (len(messages), messages[0].dropped) == (256, 1)


def test_what_was_not_wanted_is_neither_charged_nor_lost(sender: Client, target: Client) -> None:
    for _ in range(300):
        sender.signal(dst=target)
    sender.send_small(target, cookie=1)
    assert cookies(target) == [1]
