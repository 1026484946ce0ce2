"""RECV: which message comes, where it lies, what was lost before it, and whose its files are."""

from __future__ import annotations

from errno import (
    EAGAIN,
    EFAULT,
    EINVAL,
)

import pytest
from caller_world import OpenFile, sealed_memory
from handle_world import (
    ACTIVATOR,
    EVERYTHING,
    NAME,
    POOL_SIZE,
    Client,
    HandleWorld,
    bloom_filter,
    build_command,
    build_message,
    fds_item,
    memfd_item,
    name_item,
    refused,
    vec_item,
)

from kdbus_core.abi import (
    DST_BROADCAST,
    Command,
    ItemType,
    MessageFlag,
    ReceiveFlag,
    ReceiveReturnFlag,
)
from kdbus_core.items import FD, Item

PEEK, DROP, USE_PRIORITY = ReceiveFlag
DROPPED_MSGS = ReceiveReturnFlag.DROPPED_MSGS
INCOMPLETE_FDS = ReceiveReturnFlag.INCOMPLETE_FDS
BROADCAST = build_message(dst_id=DST_BROADCAST, flags=MessageFlag.SIGNAL, items=[bloom_filter()])


def match(client: Client, *rules: bytes, cookie: int = 1, flags: int = 0) -> None:
    client.run(Command.MATCH_ADD, cookie, flags=flags, items=rules)


def test_a_message_is_received_once_and_lies_in_the_pool() -> None:
    world = HandleWorld()
    sender, receiver = world.connect(), world.connect()
    sender.send(build_message(dst_id=receiver.id, cookie=7))
    answer = receiver.run(Command.RECV, 0, EVERYTHING, EVERYTHING, EVERYTHING, EVERYTHING)
    assert answer.fields == (0, 0, 0, 64, 0)
    assert answer.return_flags == 0
    assert receiver.read_message(0, 64).header[3:7] == (receiver.id, sender.id, 0x4442757344427573, 7)
    with refused(EAGAIN):
        receiver.run(Command.RECV)


def test_a_message_that_is_peeked_at_stays() -> None:
    client = HandleWorld().connect()
    client.send(build_message(dst_id=client.id))
    peeked = [client.receive(PEEK).offset for _ in range(2)]
    assert [client.receive().offset] * 2 == peeked
    client.free(peeked[0])
    assert client.busy == 0


@pytest.mark.parametrize("flags", [DROP, DROP | PEEK])
def test_a_dropped_message_is_gone_and_lies_nowhere(flags: int) -> None:
    client = HandleWorld().connect()
    client.send(build_message(dst_id=client.id))
    assert client.run(Command.RECV, flags=flags).fields == (0, 0, POOL_SIZE, 0, 0)
    assert client.busy == 0
    with refused(EAGAIN):
        client.run(Command.RECV)


def test_the_most_urgent_message_is_received_if_it_is_urgent_enough() -> None:
    client = HandleWorld().connect()
    for cookie, priority in enumerate([25, -600, 10]):
        client.send(build_message(dst_id=client.id, cookie=cookie, priority=priority))
    assert client.receive(USE_PRIORITY, -200).cookie == 1
    with refused(EAGAIN):
        client.receive(USE_PRIORITY, 9)
    assert client.receive(USE_PRIORITY, 10).cookie == 2
    assert client.receive(0, -1000).cookie == 0


def test_what_is_dropped_is_not_chosen_by_priority() -> None:
    client = HandleWorld().connect()
    client.send(build_message(dst_id=client.id))
    for flags in (DROP | USE_PRIORITY, DROP | USE_PRIORITY | PEEK, 8):
        with refused(EINVAL):
            client.run(Command.RECV, flags=flags)
    client.receive()


def lose_one(world: HandleWorld) -> Client:
    """A connection that has lost a broadcast."""
    sender, receiver = world.connect(), world.connect(pool_size=4096)
    match(receiver)
    vec = vec_item(4096, sender.thread.put(bytes(4096)))
    sender.send(build_message(dst_id=DST_BROADCAST, flags=MessageFlag.SIGNAL, items=[vec, bloom_filter()]))
    return receiver


def test_what_was_lost_is_told_once_with_a_message() -> None:
    receiver = lose_one(HandleWorld())
    receiver.send(build_message(dst_id=receiver.id))
    answer = receiver.run(Command.RECV)
    assert (answer.return_flags, answer.fields[1]) == (DROPPED_MSGS, 1)
    receiver.send(build_message(dst_id=receiver.id))
    answer = receiver.run(Command.RECV)
    assert (answer.return_flags, answer.fields[1]) == (0, 0)


def test_what_was_lost_is_told_when_there_is_no_message() -> None:
    receiver = lose_one(HandleWorld())
    with refused(EAGAIN):
        receiver.run(Command.RECV)
    answer = receiver.answer(Command.RECV)
    assert (answer.return_flags, answer.fields[1]) == (DROPPED_MSGS, 1)
    with refused(EAGAIN):
        receiver.run(Command.RECV)
    assert receiver.answer(Command.RECV).return_flags == 0


def test_what_was_lost_is_told_when_a_message_is_dropped_but_not_by_a_refused_command() -> None:
    receiver = lose_one(HandleWorld())
    receiver.send(build_message(dst_id=receiver.id))
    with refused(EINVAL):
        receiver.run(Command.RECV, flags=DROP | USE_PRIORITY)
    answer = receiver.run(Command.RECV, flags=DROP)
    assert (answer.return_flags, answer.fields[1]) == (DROPPED_MSGS, 1)


@pytest.mark.parametrize("position", range(32, 64, 8))
def test_a_message_is_not_taken_where_its_place_cannot_be_told(position: int) -> None:
    client = HandleWorld().connect()
    client.send(build_message(dst_id=client.id, cookie=5))
    address = client.thread.put(build_command(Command.RECV))
    client.thread.protect(address + position, 8)
    with refused(EFAULT):
        client.handle.ioctl(client.thread, Command.RECV, address)
    assert client.receive().cookie == 5


def fd_of(received_item: Item, offset: int = 0) -> int:
    return int(FD.unpack_from(received_item.payload, offset)[0])


def test_files_are_installed_when_a_message_is_received() -> None:
    world = HandleWorld()
    sender, receiver = world.connect(), world.connect()
    pipe, memory = OpenFile(), sealed_memory()
    items = [fds_item(sender.thread.open(pipe)), memfd_item(sender.thread.open(memory))]
    sender.send(build_message(dst_id=receiver.id, items=items))
    peeked = receiver.receive(PEEK)
    assert fd_of(peeked.item(ItemType.FDS)) == fd_of(peeked.item(ItemType.PAYLOAD_MEMFD), 16) == -1
    received = receiver.receive()
    files = [
        receiver.thread.fds[fd_of(received.item(ItemType.FDS))].file,
        receiver.thread.fds[fd_of(received.item(ItemType.PAYLOAD_MEMFD), 16)].file,
    ]
    assert files == [pipe, memory]
    assert (pipe.references, memory.references) == (2, 2)


def test_files_that_do_not_fit_into_the_table_are_lost_and_that_is_said() -> None:
    world = HandleWorld()
    sender, receiver = world.connect(), world.connect()
    pipe = OpenFile()
    sender.send(build_message(dst_id=receiver.id, items=[fds_item(sender.thread.open(pipe))]))
    receiver.thread.max_fds = 0
    answer = receiver.run(Command.RECV)
    assert answer.fields[4] == INCOMPLETE_FDS
    assert pipe.references == 1


@pytest.mark.parametrize("end", ["drop", "close"])
def test_files_nobody_receives_are_closed(end: str) -> None:
    world = HandleWorld()
    sender, receiver = world.connect(), world.connect()
    pipe = OpenFile()
    sender.send(build_message(dst_id=receiver.id, items=[fds_item(sender.thread.open(pipe))]))
    if end == "drop":
        receiver.run(Command.RECV, flags=DROP)
    else:
        receiver.handle.close()
    sender.thread.assert_no_reference_left(pipe)


def test_an_activator_consumes_what_it_receives() -> None:
    world = HandleWorld()
    activator = world.connect(flags=ACTIVATOR, items=[name_item(NAME)])
    sender = world.connect()
    sender.send(build_message(cookie=4, items=[name_item(NAME, ItemType.DST_NAME)]))
    assert activator.receive().cookie == 4
    with refused(EAGAIN):
        activator.receive()


def test_a_monitor_sees_broadcasts_nobody_gets() -> None:
    world = HandleWorld()
    monitor = world.connect_kind("monitor")
    world.connect().send(BROADCAST)
    assert monitor.receive().header[3] == DST_BROADCAST
