"""Messages: what arrives is what was sent, and who may answer whom."""

from __future__ import annotations

from errno import (
    EADDRNOTAVAIL,
    EAGAIN,
    EBADMSG,
    EBADSLT,
    EDESTADDRREQ,
    EDOM,
    EFAULT,
    EINVAL,
    EMSGSIZE,
    ENOTUNIQ,
    ENXIO,
    EOPNOTSUPP,
    EREMCHG,
    ESRCH,
)

import pytest
from support.kdbus import STANDARD_PAYLOAD, Client, ItemType, Msg, World, layout, refused
from support.kdbus.layout import DST_BROADCAST, PAYLOAD_DBUS, ZERO_FILL, bloom_filter, string, vec_at

COOKIE = 0x1234ABCD5678EEFF
NAME = "foo.bar.baz"
TO_NAME = string(ItemType.DST_NAME, NAME)
SIGNAL, EXPECT_REPLY, NO_AUTO_START = Msg.SIGNAL, Msg.EXPECT_REPLY, Msg.NO_AUTO_START


@pytest.fixture
def pair(world: World) -> tuple[Client, Client]:
    """A sender and another connection, both with empty matches."""
    sender, other = world.connect(), world.connect()
    sender.add_match_empty()
    other.add_match_empty()
    return sender, other


# What arrives


def test_a_broadcast_reaches_everybody_who_matches_the_sender_too(pair: tuple[Client, Client]) -> None:
    for client in pair:
        assert not client.is_readable
    pair[0].broadcast(COOKIE)
    for client in pair:
        assert client.recv().cookie == COOKIE


def test_a_message_arrives_as_it_was_sent(world: World, pair: tuple[Client, Client]) -> None:
    sender, other = pair
    sender.send(other, cookie=COOKIE, priority=-5, timeout_ms=100, flags=EXPECT_REPLY)
    message = other.recv()
    assert message.payload == STANDARD_PAYLOAD + bytes(16)
    assert message.flags == EXPECT_REPLY
    assert message.priority == -5
    assert (message.src_id, message.dst_id) == (sender.id, other.id)
    assert message.payload_type == PAYLOAD_DBUS
    assert message.timeout_ns == world.monotonic_ns + 100_000_000


def test_a_message_to_a_name_keeps_the_name_and_the_id_as_sent(pair: tuple[Client, Client]) -> None:
    sender, other = pair
    other.name_acquire(NAME)
    sender.send_small(name=NAME)
    sender.send_small(other, name=NAME)
    by_name, pinned = other.drain()
    assert (by_name.dst_id, pinned.dst_id) == (0, other.id)
    assert by_name.kinds[0] == ItemType.DST_NAME
    assert by_name.text(ItemType.DST_NAME) == NAME


def test_a_filter_stays_in_the_message(pair: tuple[Client, Client]) -> None:
    sender, other = pair
    sender.signal(generation=3, cookie=1)
    assert other.recv().one(ItemType.BLOOM_FILTER) == (3).to_bytes(8, "little") + bytes(64)


@pytest.mark.parametrize("size", [1, 5, 8, 13, 4096, 2 * 1024 * 1024])
def test_a_vector_of_zeros_is_told_and_not_stored(pair: tuple[Client, Client], size: int) -> None:
    sender, other = pair
    around = (sender.vec(b"ab"), sender.vec(b"cd")) if size < 2**21 else (b"", b"")
    sender.send_items(around[0], vec_at(0, size), around[1], dst=other)
    message = other.recv()
    assert ZERO_FILL in message.payload_offsets
    assert message.payload.strip(b"abcd") == bytes(size)
    assert message.msg_size < 1000


def test_a_message_tells_when_it_was_sent_and_in_which_order(
    world: World, pair: tuple[Client, Client]
) -> None:
    sender, other = pair
    sender.broadcast()
    world.advance(5)
    sender.send_small(other)
    ours, (first, second) = sender.recv(), other.drain()
    assert ours.timestamp == first.timestamp
    assert second.timestamp.seqnum > first.timestamp.seqnum
    assert second.timestamp.monotonic_ns - first.timestamp.monotonic_ns == 5_000_000
    assert second.timestamp.realtime_ns == world.realtime_ns


def test_a_connection_can_send_to_itself(pair: tuple[Client, Client]) -> None:
    sender, _ = pair
    sender.send(sender, cookie=COOKIE)
    assert sender.recv().cookie == COOKIE


def test_a_slice_is_given_back(pair: tuple[Client, Client]) -> None:
    sender, other = pair
    sender.send(other)
    message = other.recv(keep=True)
    other.free(message.offset)
    with refused(ENXIO):
        other.free(message.offset)


def test_a_slice_that_was_not_handed_out_cannot_be_given_back(pair: tuple[Client, Client]) -> None:
    sender, other = pair
    sender.send(other, cookie=COOKIE)
    (offset,) = (entry.slice.offset for entry in other.connection.inbox or ())
    with refused(ENXIO):
        other.free(offset)
    assert other.recv().offset == offset


def test_a_moved_message_tells_what_was_true_when_it_was_sent(
    world: World, pair: tuple[Client, Client]
) -> None:
    sender, other = pair
    world.connect_activator(NAME)
    sender.name_acquire("x.sender")
    sender.send_small(name=NAME)
    sent_at = world.monotonic_ns
    sender.name_release("x.sender")
    sender.name_acquire("x.later")
    world.advance(5)
    other.name_acquire(NAME)
    message = other.recv()
    assert message.names == [("x.sender", 32)]
    assert message.timestamp.monotonic_ns == sent_at


def test_messages_are_received_in_order(pair: tuple[Client, Client]) -> None:
    sender, other = pair
    for cookie in range(5):
        sender.send_small(other, cookie=cookie, priority=-cookie)
    assert [message.cookie for message in other.drain()] == [0, 1, 2, 3, 4]


# Requests and replies


def test_a_request_needs_a_deadline(pair: tuple[Client, Client]) -> None:
    with refused(EINVAL):
        pair[0].send(pair[1], flags=EXPECT_REPLY)


def test_a_reply_to_nothing_is_refused(pair: tuple[Client, Client]) -> None:
    sender, other = pair
    with refused(EBADSLT):
        other.reply(sender, 0xABCDEF)


def test_a_request_is_answered_once_and_by_its_addressee(world: World, pair: tuple[Client, Client]) -> None:
    sender, other = pair
    third = world.connect()
    sender.send_small(other, cookie=COOKIE, flags=EXPECT_REPLY, timeout_ms=100)
    with refused(EBADSLT):
        third.reply(sender, COOKIE)
    with refused(EBADSLT):
        other.reply(third, COOKIE)
    with refused(EBADSLT):
        other.reply(sender, ~COOKIE & 2**64 - 1)
    other.reply(sender, COOKIE)
    assert sender.recv().cookie_reply == COOKIE
    with refused(EBADSLT):
        other.reply(sender, COOKIE)
    other.recv()


# What is refused, in the order of the checks


def test_refusals_of_the_message_itself(world: World, pair: tuple[Client, Client]) -> None:
    sender, other = pair
    vec = sender.vec(b"payload.")
    cases: list[tuple[str, int, bytes]] = [
        ("somebody else's id as source", EINVAL, sender.build_message(vec, dst=other, src=other.id)),
        ("no payload type", EINVAL, sender.build_message(vec, dst=other, payload_type=0)),
        ("a broadcast that is no signal", EBADMSG, sender.build_message(vec, dst=DST_BROADCAST)),
        (
            "a broadcast that is a reply",
            ENOTUNIQ,
            sender.build_message(bloom_filter(), dst=DST_BROADCAST, flags=SIGNAL, cookie_reply=1),
        ),
        (
            "a signal that expects a reply",
            ENOTUNIQ,
            sender.build_message(
                bloom_filter(), dst=other, flags=SIGNAL | EXPECT_REPLY, deadline_ns=world.monotonic_ns + 1
            ),
        ),
        (
            "a signal that is a reply",
            EINVAL,
            sender.build_message(bloom_filter(), dst=other, flags=SIGNAL, cookie_reply=1),
        ),
        ("too much payload", EMSGSIZE, sender.build_message(vec_at(0, 2**21), vec, dst=other)),
        ("an overflow", EMSGSIZE, sender.build_message(vec_at(0, 2**64 - 1), vec, dst=other)),
        (
            "a filter with half a word",
            EFAULT,
            sender.build_message(bloom_filter(bytes(60)), dst=other, flags=SIGNAL),
        ),
        (
            "a filter of the wrong size",
            EDOM,
            sender.build_message(bloom_filter(bytes(32)), dst=other, flags=SIGNAL),
        ),
        ("a malformed name", EINVAL, sender.build_message(string(ItemType.DST_NAME, "foo"), vec)),
        (
            "a broadcast to a name",
            EBADMSG,
            sender.build_message(TO_NAME, bloom_filter(), dst=DST_BROADCAST, flags=SIGNAL),
        ),
        ("a signal without a filter", EBADMSG, sender.build_message(vec, dst=other, flags=SIGNAL)),
        ("a filter in what is no signal", EBADMSG, sender.build_message(bloom_filter(), dst=other)),
        ("nobody", EDESTADDRREQ, sender.build_message(vec)),
        ("a name nobody has", ESRCH, sender.build_message(TO_NAME, vec)),
        ("an id nobody has", ENXIO, sender.build_message(vec, dst=999)),
        ("an unknown flag", EINVAL, sender.build_message(vec, dst=other, flags=8)),
        ("two names", EINVAL, sender.build_message(TO_NAME, TO_NAME, vec)),
        ("an item of a reader", EINVAL, sender.build_message(layout.item(3, bytes(16)), dst=other)),
        ("an item cut short", EINVAL, sender.build_message(vec[:-8], dst=other)),
        ("an item of no size", EINVAL, sender.build_message(bytes(16), dst=other)),
        ("something after the items", EINVAL, sender.build_message(vec, bytes(8), dst=other)),
    ]
    for what, errno, message in cases:
        with refused(errno):
            try:
                sender.send_message(message)
            except Exception as error:
                error.add_note(what)
                raise
    for client in pair:
        with refused(EAGAIN):
            client.recv()


def test_the_size_of_a_message_is_checked(pair: tuple[Client, Client]) -> None:
    sender, other = pair
    for size, errno in ((0, EINVAL), (63, EINVAL), (32769, EMSGSIZE), (2**63, EMSGSIZE), (72, EFAULT)):
        with refused(errno):
            sender.send_message(sender.build_message(dst=other, size=size))


def test_a_message_that_cannot_be_read_is_refused(pair: tuple[Client, Client]) -> None:
    sender, _ = pair
    for address in (0, 8, sender.task.memory.allocate(bytes(72)) + 1):
        with refused(EFAULT):
            sender.command(layout.SEND, msg_address=address)


def test_only_a_call_waits(pair: tuple[Client, Client]) -> None:
    sender, other = pair
    with refused(EINVAL):
        sender.send_items(dst=other, command_flags=layout.SYNC_REPLY)


def test_a_name_and_an_id_have_to_be_the_same_connection(pair: tuple[Client, Client]) -> None:
    sender, other = pair
    other.name_acquire(NAME)
    with refused(EREMCHG):
        sender.send_small(sender, name=NAME)


def test_nothing_is_started_for_who_does_not_want_it(world: World, pair: tuple[Client, Client]) -> None:
    sender, _ = pair
    activator = world.connect_activator(NAME)
    with refused(EADDRNOTAVAIL):
        sender.send_small(name=NAME, flags=NO_AUTO_START)
    assert not activator.is_readable
    sender.send_small(name=NAME, cookie=COOKIE)
    assert activator.recv().cookie == COOKIE


def test_special_connections_are_not_addressed_by_id(world: World, pair: tuple[Client, Client]) -> None:
    sender, _ = pair
    specials = [world.connect_activator(NAME), world.connect_holder("foo.held"), world.connect_monitor()]
    for special in specials:
        with refused(ENXIO):
            sender.send_small(special)
    for special in specials:
        with refused(EOPNOTSUPP):
            special.send_small(sender)
