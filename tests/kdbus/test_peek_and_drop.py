"""Ways to receive that are not the plain one: looking, throwing away, and being told of what was lost."""

from __future__ import annotations

from errno import EAGAIN, EBADSLT, EBUSY, EINVAL, ENOBUFS, ENXIO, EPIPE

import pytest
from support.kdbus import Client, ItemType, Msg, Recv, World, layout, refused
from support.kdbus.layout import DROPPED_MSGS, POLLIN, fds, memfd

NAME = "foo.bar.baz"
PEEK, DROP, USE_PRIORITY = Recv.PEEK, Recv.DROP, Recv.USE_PRIORITY


@pytest.fixture
def sender(world: World) -> Client:
    return world.connect(world.task())


@pytest.fixture
def receiver(world: World) -> Client:
    return world.connect(world.task())


@pytest.fixture
def lossy(world: World, sender: Client) -> Client:
    """A connection with an empty queue that has lost two broadcasts."""
    client = world.connect(pool_size=layout.PAGE)
    client.add_match_empty()
    for _ in range(2):
        sender.broadcast()
    return client


def send_files(sender: Client, receiver: Client) -> tuple[int, int]:
    """Send one descriptor and one memfd, and close them; returns the numbers they had."""
    null, memory = sender.task.open_null(), sender.task.open_memfd(b"contents")
    sender.send_items(fds([null]), memfd(memory, 8), dst=receiver, cookie=1)
    sender.task.close(null)
    sender.task.close(memory)
    return null, memory


# PEEK


def test_what_was_looked_at_stays(sender: Client, receiver: Client) -> None:
    for cookie in (1, 2):
        sender.send(receiver, cookie=cookie)
    offsets = set()
    for _ in range(3):
        message = receiver.peek()
        assert message.cookie == 1
        offsets.add(message.offset)
    assert receiver.poll() & POLLIN
    received = receiver.recv()
    assert {received.offset} == offsets
    assert received.cookie == 1
    with refused(ENXIO):  # freed once, whatever it was published for
        receiver.free(received.offset)
    assert receiver.recv().cookie == 2


def test_what_was_looked_at_may_be_freed_and_is_still_there(sender: Client, receiver: Client) -> None:
    sender.send_small(receiver, payload=b"something")
    peeked = receiver.peek(keep=False)
    with refused(ENXIO):
        receiver.free(peeked.offset)
    again = receiver.peek(keep=False)
    received = receiver.recv()
    assert (again.offset, received.offset) == (peeked.offset, peeked.offset)
    assert received.raw == again.raw == peeked.raw
    assert received.payload == b"something"


def test_looking_installs_no_descriptors(sender: Client, receiver: Client) -> None:
    send_files(sender, receiver)
    before = receiver.task.fds()
    for _ in range(3):
        message = receiver.peek()
        assert (message.fds, message.memfds) == ([-1], [-1])
        assert message.return_flags == 0
        assert receiver.task.fds() == before
    received = receiver.recv()
    assert received.offset == message.offset
    assert sorted(before + received.fds + received.memfds) == receiver.task.fds()
    assert received.payload == b"contents"
    received.close_fds()
    assert receiver.task.fds() == before


def test_looking_does_not_need_room_for_descriptors(world: World, sender: Client) -> None:
    receiver = world.connect(world.task(max_fds=1))
    send_files(sender, receiver)
    assert receiver.peek().return_flags == 0
    received = receiver.recv()
    assert received.return_flags == layout.INCOMPLETE_FDS
    assert (received.fds, received.memfds) == ([-1], [-1])


def test_who_sent_what_is_only_looked_at_remains_charged(sender: Client, receiver: Client) -> None:
    for _ in range(256):
        sender.send_items(dst=receiver)
    receiver.peek()
    with refused(ENOBUFS):
        sender.send_items(dst=receiver)
    receiver.recv()
    sender.send_items(dst=receiver)


def test_who_has_only_looked_cannot_say_goodbye(sender: Client, receiver: Client) -> None:
    sender.send_small(receiver)
    receiver.peek()
    with refused(EBUSY):
        receiver.byebye()
    receiver.recv()
    receiver.byebye()


def test_looking_can_be_by_priority(sender: Client, receiver: Client) -> None:
    for cookie, priority in enumerate([5, -3, 0, -3]):
        sender.send_small(receiver, cookie=cookie, priority=priority)
    for _ in range(2):
        assert receiver.recv(flags=PEEK | USE_PRIORITY, priority=0, keep=True).cookie == 1
    assert receiver.recv(flags=PEEK | USE_PRIORITY, priority=-3, keep=True).cookie == 1
    with refused(EAGAIN):
        receiver.recv(flags=PEEK | USE_PRIORITY, priority=-4)
    assert receiver.peek().cookie == 0
    assert receiver.recv(flags=USE_PRIORITY, priority=0).cookie == 1
    assert receiver.recv(flags=USE_PRIORITY, priority=0).cookie == 3
    assert [message.cookie for message in receiver.drain()] == [0, 2]


def test_with_nothing_there_is_nothing_to_look_at(receiver: Client) -> None:
    with refused(EAGAIN):
        receiver.peek()


def test_a_request_that_was_looked_at_is_still_to_be_answered(sender: Client, receiver: Client) -> None:
    sender.send_small(receiver, cookie=5, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    assert receiver.peek().cookie == 5
    assert not sender.is_readable
    receiver.reply(sender, 5)
    assert sender.recv().cookie_reply == 5
    receiver.recv()


def test_notifications_can_be_looked_at(world: World, receiver: Client) -> None:
    receiver.add_match_id(ItemType.ID_ADD)
    other = world.connect()
    assert receiver.peek().arrival == (ItemType.ID_ADD, other.id)
    assert receiver.recv().arrival == (ItemType.ID_ADD, other.id)


def test_a_monitor_that_looks_gets_no_descriptors(world: World, sender: Client, receiver: Client) -> None:
    monitor = world.connect_monitor(world.task())
    send_files(sender, receiver)
    before = monitor.task.fds()
    message = monitor.peek()
    assert (message.fds, message.memfds) == ([-1], [-1])
    assert monitor.task.fds() == before
    monitor.recv().close_fds()
    receiver.recv().close_fds()


def test_a_slice_that_was_looked_at_survives_its_message(sender: Client, receiver: Client) -> None:
    sender.send_small(receiver, payload=b"first...")
    peeked = receiver.peek()
    receiver.drop()
    sender.send_small(receiver, payload=b"second..")
    assert receiver.read_pool(peeked.offset, peeked.msg_size) == peeked.raw
    assert receiver.recv().offset != peeked.offset
    receiver.free(peeked.offset)
    with refused(ENXIO):
        receiver.free(peeked.offset)


# DROP


def test_the_first_message_is_thrown_away(sender: Client, receiver: Client) -> None:
    for cookie, priority in enumerate([5, -3, 0]):
        sender.send_small(receiver, cookie=cookie, priority=priority)
    receiver.drop()
    assert [message.cookie for message in receiver.drain()] == [1, 2]


def test_with_nothing_there_is_nothing_to_throw_away(receiver: Client) -> None:
    with refused(EAGAIN) as refusal:
        receiver.drop()
    assert (refusal.answer["dropped_msgs"], refusal.answer["msg_size"]) == (0, 0)


def test_what_is_thrown_away_gives_everything_back(sender: Client, receiver: Client) -> None:
    free = receiver.pool.busy
    for _ in range(256):
        sender.send_items(dst=receiver)
    for _ in range(256):
        receiver.drop()
    assert receiver.pool.busy == free
    for _ in range(256):
        sender.send_items(dst=receiver)


def test_files_are_thrown_away_with_their_message(world: World, sender: Client, receiver: Client) -> None:
    null, memory = sender.task.open_null(), sender.task.open_memfd(b"contents")
    files = [sender.task.description(fd) for fd in (null, memory)]
    sender.send_items(fds([null]), memfd(memory, 8), dst=receiver)
    sender.task.close(null)
    sender.task.close(memory)
    assert [file.references for file in files] == [1, 1]
    before = receiver.task.fds()
    receiver.drop()
    assert [file.references for file in files] == [0, 0]
    assert receiver.task.fds() == before


def test_descriptors_thrown_away_are_no_longer_on_their_way(sender: Client, receiver: Client) -> None:
    nulls = [sender.task.open_null() for _ in range(16)]
    for _ in range(3):
        sender.send_items(fds(nulls), dst=receiver)
        receiver.drop()


def test_looking_and_throwing_away_is_throwing_away(sender: Client, receiver: Client) -> None:
    for cookie in (1, 2):
        sender.send_small(receiver, cookie=cookie)
    answer = receiver.command(layout.RECV, flags=PEEK | DROP)
    assert (answer["offset"], answer["msg_size"]) == (receiver.pool_size, 0)
    assert [message.cookie for message in receiver.drain()] == [2]


def test_who_asked_is_told_that_the_request_was_thrown_away(sender: Client, receiver: Client) -> None:
    sender.send_small(receiver, cookie=5, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    receiver.drop()
    message = sender.recv()
    assert (message.kind, message.cookie_reply) == (ItemType.REPLY_DEAD, 5)
    assert (message.src_id, message.dst_id, message.flags) == (0, sender.id, 0)


def test_after_that_there_is_nothing_to_answer_and_no_deadline(
    world: World, sender: Client, receiver: Client
) -> None:
    sender.send_small(receiver, cookie=5, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    receiver.drop()
    with refused(EBADSLT):
        receiver.reply(sender, 5)
    world.advance(200)
    assert [message.kind for message in sender.drain()] == [ItemType.REPLY_DEAD]


def test_who_waits_is_told_that_the_request_was_thrown_away(sender: Client, receiver: Client) -> None:
    call = sender.call(receiver, cookie=5)
    receiver.drop()
    with refused(EPIPE):
        call.result()
    assert not sender.is_readable


def test_who_gave_up_is_not_told_again(world: World, sender: Client, receiver: Client) -> None:
    sender.send_small(receiver, cookie=5, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    world.advance(100)
    receiver.drop()
    assert [message.kind for message in sender.drain()] == [ItemType.REPLY_TIMEOUT]


def test_who_was_answered_is_not_told(sender: Client, receiver: Client) -> None:
    sender.send_small(receiver, cookie=5, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    receiver.reply(sender, 5)
    receiver.drop()
    assert [message.cookie_reply for message in sender.drain()] == [5]


def test_a_monitor_throws_away_for_itself(world: World, sender: Client, receiver: Client) -> None:
    monitor = world.connect_monitor()
    sender.send_small(receiver, cookie=5, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    monitor.drop()
    assert not sender.is_readable
    assert receiver.recv().cookie == 5


def test_an_activator_may_throw_away(world: World, sender: Client) -> None:
    activator = world.connect_activator(NAME)
    sender.send_small(name=NAME, cookie=5, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    activator.drop()
    assert sender.recv().kind == ItemType.REPLY_DEAD


# What does not go together


def test_what_is_thrown_away_is_not_chosen_by_priority(sender: Client, receiver: Client) -> None:
    sender.send_small(receiver, cookie=1)
    for flags in (DROP | USE_PRIORITY, DROP | USE_PRIORITY | PEEK):
        with refused(EINVAL):
            receiver.command(layout.RECV, flags=flags)
    assert receiver.recv().cookie == 1


def test_a_command_that_is_wrong_does_not_report_what_was_lost(lossy: Client) -> None:
    for flags in (DROP | USE_PRIORITY, 8):
        with refused(EINVAL) as refusal:
            lossy.command(layout.RECV, flags=flags)
        assert refusal.answer["return_flags"] == 0
    with refused(EAGAIN) as refusal:
        lossy.recv()
    assert refusal.answer["dropped_msgs"] == 2


# What was lost


@pytest.mark.parametrize("flags", [0, PEEK, DROP, USE_PRIORITY, PEEK | USE_PRIORITY, PEEK | DROP])
def test_an_empty_queue_reports_what_was_lost_once(lossy: Client, flags: int) -> None:
    assert lossy.poll() & POLLIN
    with refused(EAGAIN) as refusal:
        lossy.command(layout.RECV, flags=flags)
    assert (refusal.answer["dropped_msgs"], refusal.answer["return_flags"]) == (2, DROPPED_MSGS)
    assert not lossy.is_readable
    with refused(EAGAIN) as refusal:
        lossy.command(layout.RECV, flags=flags)
    assert (refusal.answer["dropped_msgs"], refusal.answer["return_flags"]) == (0, 0)


@pytest.mark.parametrize("flags", [0, PEEK, DROP, USE_PRIORITY, PEEK | USE_PRIORITY])
def test_what_was_lost_is_reported_with_the_next_message(sender: Client, lossy: Client, flags: int) -> None:
    sender.send_small(lossy, priority=-1)
    answer = lossy.command(layout.RECV, flags=flags)
    assert (answer["dropped_msgs"], answer["return_flags"]) == (2, DROPPED_MSGS)
    if not flags & DROP:
        lossy.take_message(answer, lossy.task, keep=False)
    if flags & PEEK:
        assert lossy.recv().dropped == 0
    with refused(EAGAIN) as refusal:
        lossy.recv()
    assert refusal.answer["dropped_msgs"] == 0


def test_who_asks_for_something_more_urgent_is_told_too(sender: Client, lossy: Client) -> None:
    sender.send_small(lossy, priority=5)
    with refused(EAGAIN) as refusal:
        lossy.recv(flags=USE_PRIORITY, priority=4)
    assert (refusal.answer["dropped_msgs"], refusal.answer["return_flags"]) == (2, DROPPED_MSGS)
    assert lossy.recv().dropped == 0


def test_what_was_lost_does_not_keep_from_saying_goodbye(lossy: Client) -> None:
    lossy.byebye()


def test_a_message_refused_to_its_sender_is_not_lost(sender: Client, lossy: Client) -> None:
    with refused(ENOBUFS):
        sender.send(lossy)
    with refused(EAGAIN) as refusal:
        lossy.recv()
    assert refusal.answer["dropped_msgs"] == 2
