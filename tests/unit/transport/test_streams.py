"""A stream's socket and queue: order, partial writes, who is charged, and descriptors that are closed once.

Each test has a socket pair whose one end is a `Stream` in a poller of its own; the other end is the client.
Rounds are served by hand, so nothing is waited for. Every test ends with the same check: when the client has
read everything or the stream is closed, nothing is charged and no descriptor is left open.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from support.proxy import count_own_fds

from busproxy.transport.fds import FdSet
from busproxy.transport.poller import Poller
from busproxy.transport.streams import MAX_PARTS, READ_SIZE, Stream
from kdbus_core.errors import KdbusError
from kdbus_core.quota import Quota, User

ALICE, BOB = User(1), User(2)
CAPACITY = 64 * 1024 * 1024


class Owner:
    """Receives what the stream reports, and closes it when told of its loss, as a peer does."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.received: list[bytes | bytearray] = []
        self.fds: list[int] = []
        self.lost: list[str] = []

    def on_data(self, data: bytes | bytearray, fds: list[int]) -> None:
        self.received.append(data)
        self.fds += fds

    def on_lost(self, reason: str) -> None:
        self.lost.append(reason)
        assert self.stream is not None
        self.stream.close()

    def on_failure(self, error: Exception) -> None:
        raise error


class Line:
    """A stream, its client's socket, and what is needed to serve them."""

    def __init__(self, *, capacity: int = CAPACITY, max_fds: int = 1000, sock: Any = None) -> None:
        self.poller = Poller()
        self.quota = Quota(capacity, 1 << 30, max_fds)
        self.owner = Owner()
        ours, self.client = socket.socketpair()
        if sock is not None:
            ours = sock(fileno=ours.detach())
        ours.settimeout(0)
        self.client.settimeout(0)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.stream = self.owner.stream = Stream(ours, self.poller, self.owner, self.quota)

    def serve(self) -> None:
        self.poller.serve(self.poller.epoll.poll(0))

    def read(self) -> bytes:
        """Everything the client gets, the stream being served in between."""
        data = b""
        while True:
            try:
                chunk = self.client.recv(1 << 20)
            except BlockingIOError:
                self.serve()
                try:
                    chunk = self.client.recv(1 << 20)
                except BlockingIOError:
                    return data
            if not chunk:
                return data
            data += chunk

    def read_with_fds(self) -> tuple[bytes, list[int]]:
        """As `read`, with the descriptors that came; they are the caller's."""
        data, received = b"", list[int]()
        while True:
            try:
                chunk, fds, _, _ = socket.recv_fds(self.client, 1 << 20, 253)
            except BlockingIOError:
                before = len(data)
                self.serve()
                try:
                    chunk, fds, _, _ = socket.recv_fds(self.client, 1 << 20, 253)
                except BlockingIOError:
                    return data, received
                assert len(data) == before
            data += chunk
            received += fds

    def holds_nothing(self) -> bool:
        return self.quota.total_memory == 0 and self.quota.total_fds == 0 and not self.quota.shares

    def close(self) -> None:
        self.stream.close()
        self.client.close()
        for fd in self.owner.fds:
            os.close(fd)
        self.poller.close()


@pytest.fixture(autouse=True)
def no_fd_is_left() -> Iterator[None]:
    before = count_own_fds()
    yield
    assert count_own_fds() == before


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()
    assert line.holds_nothing()


def open_pipes(count: int) -> list[int]:
    """Descriptors for an FdSet to own."""
    fds = []
    for _ in range(count):
        reader, writer = os.pipe()
        os.close(writer)
        fds.append(reader)
    return fds


def inodes(fds: list[int]) -> list[int]:
    return [os.fstat(fd).st_ino for fd in fds]


# Writing


def test_what_was_queued_leaves_at_the_end_of_the_turn(line: Line) -> None:
    line.stream.push(b"one", ALICE)
    with pytest.raises(BlockingIOError):
        line.client.recv(10)
    line.poller.flush()
    assert line.client.recv(10) == b"one"


def test_messages_of_a_turn_leave_in_order(line: Line) -> None:
    for index in range(50):
        line.stream.push(b"%02d" % index, ALICE if index % 3 else BOB)
    line.poller.flush()
    assert line.read() == b"".join(b"%02d" % index for index in range(50))


def test_a_stream_is_listed_once_however_much_is_queued(line: Line) -> None:
    for _ in range(5):
        line.stream.push(b"x", ALICE)
    assert line.poller.touched == [line.stream]


def test_nothing_is_charged_for_what_the_socket_takes_at_once(line: Line) -> None:
    line.stream.push(b"x" * 100, ALICE)
    line.poller.flush()
    assert line.holds_nothing()
    assert not line.stream.blocked


def test_what_the_socket_does_not_take_follows_when_the_client_reads(line: Line) -> None:
    sent = os.urandom(1_000_000)
    line.stream.push(sent, ALICE)
    line.poller.flush()
    was_blocked = line.stream.blocked
    assert line.read() == sent
    assert (was_blocked, line.stream.blocked) == (True, False)
    assert line.holds_nothing()


def test_parts_queued_while_blocked_follow_in_order(line: Line) -> None:
    parts = [os.urandom(30_000) for _ in range(40)]
    for part in parts:
        line.stream.push(part, ALICE)
        line.poller.flush()
    assert line.read() == b"".join(parts)
    assert line.holds_nothing()


def test_a_stream_that_was_blocked_takes_the_fast_way_again(line: Line) -> None:
    for turn in range(3):
        line.stream.push(bytes([turn]) * 500_000, ALICE)
        line.poller.flush()
        assert line.stream.blocked
        assert line.read() == bytes([turn]) * 500_000
        line.stream.push(b"after", ALICE)
        assert line.stream.out == [b"after"]
        line.poller.flush()
        assert line.read() == b"after"


def test_large_parts_are_sent_where_they_lie_and_in_order(line: Line) -> None:
    body = os.urandom(300_000)
    line.stream.mark(ALICE)
    line.stream.out += (b"head", b"tail", memoryview(body))
    line.stream.has_large = True
    line.stream.push(b"next", ALICE)
    line.poller.flush()
    assert line.read() == b"headtail" + body + b"next"
    assert line.holds_nothing()


def test_more_parts_than_one_call_takes_all_leave(line: Line) -> None:
    count = 3 * MAX_PARTS + 7
    line.stream.mark(ALICE)
    line.stream.out += [b"%05d" % index for index in range(count)]
    line.stream.has_large = True
    line.poller.touch(line.stream)
    line.poller.flush()
    assert line.read() == b"".join(b"%05d" % index for index in range(count))
    assert line.holds_nothing()


def test_closing_forgets_what_waits(line: Line) -> None:
    line.stream.push(b"x" * 1_000_000, ALICE)
    line.poller.flush()
    line.stream.push(b"y" * 1_000, BOB)
    assert line.quota.total_memory > 0
    line.stream.close()
    assert line.holds_nothing()


def test_what_is_pushed_after_closing_goes_nowhere(line: Line) -> None:
    line.stream.close()
    line.stream.push(b"x", ALICE)
    assert line.stream.out == []
    assert line.poller.touched == []


def test_closing_before_the_end_of_the_turn_sends_nothing(line: Line) -> None:
    line.stream.push(b"x", ALICE)
    line.stream.close()
    line.poller.flush()
    assert line.client.recv(10) == b""


def test_writing_to_a_client_that_has_gone_drops_what_waits_and_reading_tells_the_end(line: Line) -> None:
    line.client.send(b"last words")
    line.client.close()
    line.stream.push(b"x", ALICE)
    line.poller.flush()
    assert (line.owner.lost, line.stream.closed) == ([], False)
    assert line.holds_nothing()
    line.serve()
    line.serve()
    assert line.owner.received == [b"last words"]
    assert line.owner.lost == ["end of stream"]
    assert line.stream.closed


def test_a_backlog_of_a_client_that_has_gone_is_refunded(line: Line) -> None:
    line.stream.push(b"x" * 1_000_000, ALICE)
    line.poller.flush()
    line.client.close()
    line.serve()
    assert len(line.owner.lost) == 1
    assert line.holds_nothing()


# Accounting


def test_each_sender_is_charged_for_its_own_parts(line: Line) -> None:
    line.stream.push(b"f" * 500_000, ALICE)
    line.stream.push(b"a" * 1_000, ALICE)
    line.stream.push(b"b" * 20_000, BOB)
    line.stream.push(b"c" * 300, ALICE)
    line.poller.flush()
    taken = len(line.client.recv(1 << 20, socket.MSG_PEEK))
    assert line.quota.shares[BOB].memory == 20_000
    assert line.quota.shares[ALICE].memory == 501_300 - taken
    assert line.quota.total_memory == 521_300 - taken
    assert line.read() == b"f" * 500_000 + b"a" * 1_000 + b"b" * 20_000 + b"c" * 300
    assert line.holds_nothing()


def test_parts_of_the_fast_path_are_charged_to_the_marked_sender(line: Line) -> None:
    for user, letter in ((ALICE, b"a"), (BOB, b"b"), (ALICE, b"c")):
        if line.stream.source is not user:
            line.stream.mark(user)
        line.stream.out += (letter * 10, letter * 40_000)
        if not line.stream.touched:
            line.stream.touched = True
            line.poller.touch(line.stream)
    line.poller.flush()
    taken = len(line.client.recv(1 << 20, socket.MSG_PEEK))
    assert line.quota.shares[BOB].memory == 40_010
    assert line.quota.shares[ALICE].memory == 80_020 - taken


def test_marks_of_one_turn_do_not_reach_into_the_next(line: Line) -> None:
    line.stream.push(b"a", ALICE)
    line.poller.flush()
    line.stream.push(b"b" * 500_000, BOB)
    line.poller.flush()
    assert set(line.quota.shares) == {BOB}


def test_a_charge_stays_until_the_whole_part_has_left(line: Line) -> None:
    line.stream.push(b"x" * 1_000_000, ALICE)
    line.poller.flush()
    charged = line.quota.total_memory
    line.client.recv(2048)
    line.serve()
    assert line.quota.total_memory == charged
    line.read()
    assert line.holds_nothing()


def test_a_sender_with_too_much_waiting_is_refused_and_nothing_is_queued() -> None:
    with closing(Line(capacity=300_000)) as line:
        line.stream.push(b"x" * 80_000, ALICE)
        line.poller.flush()
        waiting = line.quota.total_memory
        with pytest.raises(KdbusError) as raised:
            line.stream.push(b"y" * 100_000, ALICE)
        assert raised.value.errno == errno.ENOBUFS
        assert line.quota.total_memory == waiting
        assert line.read() == b"x" * 80_000
        assert line.holds_nothing()


def test_one_senders_full_share_leaves_room_for_another() -> None:
    with closing(Line(capacity=300_000)) as line:
        line.stream.push(b"x" * 100_000, ALICE)
        line.poller.flush()
        with pytest.raises(KdbusError):
            line.stream.push(b"y" * 20_000, ALICE)
        line.stream.push(b"z" * 20_000, BOB)
        assert line.read() == b"x" * 100_000 + b"z" * 20_000
        assert line.holds_nothing()


def test_too_many_waiting_descriptors_are_refused_and_stay_the_callers() -> None:
    with closing(Line(max_fds=3)) as line:
        line.stream.push(b"x" * 500_000, ALICE)
        line.poller.flush()
        fds = FdSet(open_pipes(4))
        with pytest.raises(KdbusError) as raised:
            line.stream.push(b"y", ALICE, fds)
        assert raised.value.errno == errno.EMFILE
        assert len(inodes(fds.fds)) == 4
        fds.release()
        line.read()
        assert line.holds_nothing()


# Descriptors


def test_descriptors_arrive_with_their_message(line: Line) -> None:
    fds = FdSet(open_pipes(3))
    wanted = inodes(fds.fds)
    line.stream.push(b"before", ALICE)
    line.stream.push(b"with", ALICE, fds)
    line.stream.push(b"after", ALICE)
    fds.release()
    line.poller.flush()
    data, received = line.read_with_fds()
    assert data == b"beforewithafter"
    assert inodes(received) == wanted
    line.owner.fds += received


def test_descriptors_are_closed_when_their_last_holder_has_sent_them(line: Line) -> None:
    with closing(Line()) as other:
        before = count_own_fds()
        fds = FdSet(open_pipes(2))
        for stream in (line.stream, other.stream):
            stream.push(b"x", ALICE, fds)
        fds.release()
        assert count_own_fds() == before + 2
        line.poller.flush()
        assert count_own_fds() == before + 2
        other.poller.flush()
        assert count_own_fds() == before
        for each in (line, other):
            data, received = each.read_with_fds()
            each.owner.fds += received
            assert (data, len(received)) == (b"x", 2)


def test_descriptors_of_a_message_that_leaves_in_pieces_are_sent_once(line: Line) -> None:
    before = count_own_fds()
    fds = FdSet(open_pipes(5))
    body = os.urandom(400_000)
    line.stream.push(body, ALICE, fds)
    fds.release()
    line.poller.flush()
    assert line.stream.blocked
    assert count_own_fds() == before
    data, received = line.read_with_fds()
    assert data == body
    assert len(received) == 5
    line.owner.fds += received
    assert line.holds_nothing()


def test_descriptors_that_wait_are_sent_in_their_turn(line: Line) -> None:
    line.stream.push(b"x" * 300_000, BOB)
    line.poller.flush()
    wanted = []
    for index in range(4):
        fds = FdSet(open_pipes(index + 1))
        wanted += inodes(fds.fds)
        line.stream.push(b"m%d" % index, ALICE, fds)
        line.stream.push(b"-", BOB)
        fds.release()
    assert line.quota.shares[ALICE].fds == 10
    data, received = line.read_with_fds()
    assert data == b"x" * 300_000 + b"m0-m1-m2-m3-"
    assert inodes(received) == wanted
    line.owner.fds += received
    assert line.holds_nothing()


@pytest.mark.parametrize("blocked", [False, True], ids=["queued", "in the backlog"])
def test_descriptors_that_will_never_leave_are_closed(line: Line, *, blocked: bool) -> None:
    before = count_own_fds()
    if blocked:
        line.stream.push(b"x" * 500_000, ALICE)
        line.poller.flush()
    fds = FdSet(open_pipes(3))
    line.stream.push(b"y", ALICE, fds)
    fds.release()
    line.stream.close()
    assert count_own_fds() == before - 1  # the socket itself


class RefusesDescriptors(socket.socket):
    """A socket of a user who has too many descriptors in flight."""

    def sendmsg(self, buffers: Any, ancdata: Any = (), *rest: Any) -> int:
        if ancdata:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return super().sendmsg(buffers, ancdata, *rest)


def test_a_message_whose_descriptors_the_kernel_refuses_is_dropped_and_the_next_arrives() -> None:
    with closing(Line(sock=RefusesDescriptors)) as line:
        before = count_own_fds()
        fds = FdSet(open_pipes(2))
        line.stream.push(b"lost", ALICE, fds)
        line.stream.push(b"next", ALICE)
        fds.release()
        line.poller.flush()
        assert line.read() == b"next"
        assert count_own_fds() == before
        assert line.holds_nothing()


# Reading


def test_what_the_client_writes_is_handed_on(line: Line) -> None:
    line.client.send(b"hello")
    line.serve()
    assert line.owner.received == [b"hello"]


def test_one_round_takes_no_more_than_a_share(line: Line) -> None:
    line.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * READ_SIZE)
    while True:
        try:
            line.client.send(b"x" * 65536)
        except BlockingIOError:
            break
    line.serve()
    assert 0 < sum(map(len, line.owner.received)) <= READ_SIZE


def test_descriptors_belong_to_the_receiver_once_read(line: Line) -> None:
    pipes = open_pipes(2)
    socket.send_fds(line.client, [b"x"], pipes)
    line.serve()
    assert inodes(line.owner.fds) == inodes(pipes)
    assert all(not os.get_inheritable(fd) for fd in line.owner.fds)
    for fd in pipes:
        os.close(fd)


def test_the_end_of_the_stream_is_reported_once(line: Line) -> None:
    line.client.close()
    line.serve()
    line.serve()
    assert line.owner.lost == ["end of stream"]


def test_bytes_before_the_end_of_the_stream_are_handed_on_first(line: Line) -> None:
    line.client.send(b"last words")
    line.client.close()
    line.serve()
    line.serve()
    assert line.owner.received == [b"last words"]
    assert line.owner.lost == ["end of stream"]


def test_a_collected_message_comes_as_exactly_that_message(line: Line) -> None:
    message, following = os.urandom(150_000), b"the next one"
    line.stream.collect(message[:1000], len(message))
    rest = memoryview(message[1000:] + following)
    while rest:
        try:
            rest = rest[line.client.send(rest) :]
        except BlockingIOError:
            line.serve()
    for _ in range(50):
        line.serve()
    assert [bytes(data) for data in line.owner.received if data] == [message, following]
    assert type(line.owner.received[0]) is bytearray


@pytest.mark.parametrize("step", [1, 7, 4096])
def test_a_message_is_collected_from_pieces_of_any_size(line: Line, step: int) -> None:
    message = os.urandom(20 * step + 3)
    line.stream.collect(message[:1], len(message))
    for start in range(1, len(message), step):
        line.client.send(message[start : start + step])
        line.serve()
    assert [bytes(data) for data in line.owner.received] == [message]


def test_descriptors_that_come_while_collecting_are_handed_on(line: Line) -> None:
    pipes = open_pipes(2)
    line.stream.collect(b"0", 9)
    socket.send_fds(line.client, [b"1234"], pipes[:1])
    line.serve()
    assert len(line.owner.fds) == 1
    socket.send_fds(line.client, [b"5678"], pipes[1:])
    line.serve()
    assert inodes(line.owner.fds) == inodes(pipes)
    assert [bytes(data) for data in line.owner.received if data] == [b"012345678"]
    for fd in pipes:
        os.close(fd)


def test_a_client_that_goes_while_a_message_is_collected_is_lost(line: Line) -> None:
    line.stream.collect(b"0", 1000)
    line.client.send(b"some more")
    line.client.close()
    line.serve()
    line.serve()
    assert line.owner.received == []
    assert line.owner.lost == ["end of stream"]


def test_an_announced_length_costs_no_memory_before_the_bytes_come(line: Line) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        before = int(file.read().split()[1])
    line.stream.collect(b"l", 100 * 1024 * 1024)
    with open("/proc/self/statm", encoding="ascii") as file:
        grown = (int(file.read().split()[1]) - before) * os.sysconf("SC_PAGE_SIZE")
    assert grown < 4 * 1024 * 1024
