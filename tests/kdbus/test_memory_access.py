"""Addresses in commands and messages: what cannot be read or written is EFAULT, and nothing has happened."""

from __future__ import annotations

from errno import EAGAIN, EFAULT

import pytest
from support.kdbus import Client, World, layout, refused
from support.kdbus.layout import vec_at

KERNEL = 0xFFFFFFFF81000000


@pytest.fixture
def pair(world: World) -> tuple[Client, Client]:
    return world.connect(), world.connect()


@pytest.mark.parametrize("address", [1, 4096, KERNEL, 2**64 - 8], ids=hex)
def test_a_vector_nowhere_is_refused(pair: tuple[Client, Client], address: int) -> None:
    sender, receiver = pair
    with refused(EFAULT):
        sender.send_items(sender.vec(b"readable"), vec_at(address, 8), dst=receiver)
    with refused(EAGAIN):
        receiver.recv()


def test_a_vector_that_ends_outside_is_refused(pair: tuple[Client, Client]) -> None:
    sender, receiver = pair
    address = sender.task.memory.allocate(b"12345678")
    for start, size in ((address, 9), (address + 1, 8), (address - 1, 8)):
        with refused(EFAULT):
            sender.send_items(vec_at(start, size), dst=receiver)
    sender.send_items(vec_at(address + 1, 7), dst=receiver)
    assert receiver.recv().payload == b"2345678"


def test_a_refused_vector_leaves_nothing_charged(pair: tuple[Client, Client]) -> None:
    sender, receiver = pair
    for _ in range(300):
        with refused(EFAULT):
            sender.send_items(vec_at(KERNEL, 8), dst=receiver)
    sender.send(receiver)
    assert len(receiver.drain()) == 1


def test_files_of_a_refused_message_are_let_go(pair: tuple[Client, Client]) -> None:
    sender, receiver = pair
    null, memfd = sender.task.open_null(), sender.task.open_memfd(8)
    with refused(EFAULT):
        sender.send_items(layout.fds([null]), layout.memfd(memfd, 8), vec_at(KERNEL, 8), dst=receiver)
    for fd in (null, memfd):
        assert sender.task.description(fd).references == 1


def test_a_command_that_cannot_be_read_is_refused(pair: tuple[Client, Client]) -> None:
    for command in (layout.NAME_ACQUIRE, layout.SEND, layout.RECV, layout.LIST, layout.FREE):
        for address in (0, KERNEL, 2**64 - 8):
            with refused(EFAULT):
                pair[0].ioctl(command.request, address)


def test_every_command_has_to_be_aligned(pair: tuple[Client, Client]) -> None:
    sender, _ = pair
    address = sender.task.memory.allocate(layout.RECV.build(0, 64, {}) + bytes(8))
    for offset in range(1, 8):
        with refused(EFAULT):
            sender.ioctl(layout.RECV.request, address + offset)
