"""The conversations that kdbus' benchmarks measured, as a check that they go on and on; nothing is timed."""

from __future__ import annotations

from struct import pack

import pytest
from support.kdbus import Client, World, layout

NAME = "com.example.benchmark"
PAYLOAD = bytes(range(256)) * 32  # 8 KiB
STAMP_SIZE = 8
ROUNDS = 60


def converse(sender: Client, receiver: Client, *, with_memfd: bool) -> int:
    """Send and receive 8 KiB, and 8 bytes in a memfd, again and again; returns how many arrived."""
    count = 0
    for number in range(ROUNDS):
        items = [sender.vec(PAYLOAD)]
        stamp = pack("=Q", number)
        memfd = sender.task.open_memfd(stamp)
        if with_memfd:
            items.append(layout.memfd(memfd, STAMP_SIZE))
        sender.send_items(*items, dst=receiver, cookie=number)
        sender.task.close(memfd)
        message = receiver.recv_poll(0)
        assert message.cookie == number
        assert message.payload == PAYLOAD + (stamp if with_memfd else b"")
        assert message.offset == 0  # everything before was freed
        message.close_fds()
        count += 1
    return count


@pytest.mark.parametrize("with_memfd", [True, False])
@pytest.mark.parametrize("recv_mask", [layout.ATTACH_ALL, 0], ids=["metadata", "bare"])
def test_messages_go_to_and_fro_without_end(world: World, recv_mask: int, *, with_memfd: bool) -> None:
    receiver, sender = world.connect(world.task(), attach_recv=recv_mask), world.connect(world.task())
    for client in (receiver, sender):
        client.add_match_empty()
    receiver.name_acquire(NAME)
    open_before = [client.task.fds() for client in (receiver, sender)]
    assert converse(sender, receiver, with_memfd=with_memfd) > 1
    assert [client.task.fds() for client in (receiver, sender)] == open_before
    assert receiver.pool.busy == 0


def test_a_receiver_that_asks_for_nothing_is_told_nothing(world: World) -> None:
    receiver, sender = world.connect(attach_recv=0), world.connect()
    receiver.name_acquire(NAME)
    sender.send_items(sender.vec(PAYLOAD), dst=receiver)
    message = receiver.recv()
    assert message.metadata_kinds == []
    assert message.msg_size == layout.MSG_SIZE + 32 + len(PAYLOAD)  # header, one PAYLOAD_OFF, payload


def test_a_queue_that_is_filled_and_emptied_again_and_again_stays_as_it_was(world: World) -> None:
    receiver, sender = world.connect(attach_recv=0), world.connect()
    for _ in range(3):
        for number in range(ROUNDS):
            sender.send_items(sender.vec(PAYLOAD), dst=receiver, cookie=number)
        assert [message.cookie for message in receiver.drain()] == list(range(ROUNDS))
        assert receiver.pool.busy == 0
