"""One packet out, one packet in, and who has its descriptors."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest
from support.nodes import count_fds, no_descriptors_left

from kdbus_core.transport.protocol import MAX_FDS, MAX_PACKET
from kdbus_core.transport.sockets import PacketReader, close_all, receive_packet, send_packet


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        far.settimeout(0)
        yield near, far


@pytest.fixture
def small() -> PacketReader:
    return PacketReader(size=16)


Pair = tuple[socket.socket, socket.socket]


def test_a_packet_arrives_whole(pair: Pair) -> None:
    send_packet(pair[0], b"one")
    send_packet(pair[0], [b"t", b"wo"])
    assert receive_packet(pair[1]) == (b"one", [])
    assert receive_packet(pair[1]) == (b"two", [])


def test_descriptors_come_with_their_packet_and_are_the_receivers(pair: Pair) -> None:
    before = count_fds()
    read_end, write_end = os.pipe()
    send_packet(pair[0], b"pipe", [write_end])
    received = receive_packet(pair[1])
    assert received is not None
    (copy,) = received[1]
    os.write(copy, b"x")
    assert os.read(read_end, 1) == b"x"
    assert not os.get_inheritable(copy)
    close_all([copy, read_end, write_end])
    assert count_fds() == before


def test_as_many_descriptors_arrive_as_the_kernel_passes(pair: Pair) -> None:
    before = count_fds()
    send_packet(pair[0], b"many", [0] * MAX_FDS)
    received = receive_packet(pair[1])
    assert received is not None
    assert len(received[1]) == MAX_FDS
    close_all(received[1])
    assert count_fds() == before


def test_the_end_is_none(pair: Pair) -> None:
    pair[0].close()
    assert receive_packet(pair[1]) is None


def test_an_empty_packet_counts_as_the_end_and_its_descriptors_are_closed(pair: Pair) -> None:
    before = count_fds()
    send_packet(pair[0], b"", [0, 1])
    assert receive_packet(pair[1]) is None
    assert count_fds() == before


def test_nothing_there_is_told(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        receive_packet(pair[1])


def test_the_longest_packet_is_received(pair: Pair) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_PACKET)
    if pair[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < MAX_PACKET + 32:
        pytest.skip("this system has no socket buffers of that size")
    send_packet(pair[0], bytes(MAX_PACKET))
    assert receive_packet(pair[1]) == (bytes(MAX_PACKET), [])


def test_a_packet_that_is_too_long_is_marked_and_its_descriptors_can_be_taken(
    pair: Pair, small: PacketReader
) -> None:
    before = count_fds()
    send_packet(pair[0], bytes(17), [0])
    assert small.receive(pair[1]) == 16
    assert small.is_too_long
    close_all(small.take_fds())
    send_packet(pair[0], bytes(16))
    assert small.receive(pair[1]) == 16
    assert not small.is_cut
    assert count_fds() == before


def test_descriptors_that_nobody_takes_are_closed_with_the_next_packet(
    pair: Pair, small: PacketReader
) -> None:
    before = count_fds()
    send_packet(pair[0], b"first", [0, 1])
    send_packet(pair[0], b"second")
    small.receive(pair[1])
    assert count_fds() == before + 2
    small.receive(pair[1])
    assert count_fds() == before


def test_descriptors_that_cannot_be_had_are_told(pair: Pair, small: PacketReader) -> None:
    send_packet(pair[0], b"more", [0] * 20)
    before = count_fds()
    with no_descriptors_left():
        assert small.receive(pair[1]) == 4
    assert small.lacks_fds
    close_all(small.take_fds())
    assert count_fds() == before


def test_the_kernel_says_who_sent_a_packet(pair: Pair, small: PacketReader) -> None:
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    send_packet(pair[0], b"me")
    small.receive(pair[1])
    assert struct.unpack("=iII", small.sender) == (os.getpid(), os.geteuid(), os.getegid())


def test_without_being_asked_the_kernel_says_nothing(pair: Pair, small: PacketReader) -> None:
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    send_packet(pair[0], b"me")
    small.receive(pair[1])
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    send_packet(pair[0], b"somebody")
    small.receive(pair[1])
    assert small.sender == b""
