"""What each packet may be and what comes of it: docs/native-protocol.md, rule by rule, over real sockets."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator
from errno import (
    E2BIG,
    EBADF,
    EBADFD,
    EFAULT,
    EINVAL,
    EMEDIUMTYPE,
    EMFILE,
    ENOTTY,
    ENXIO,
    EOPNOTSUPP,
    EPROTO,
    ESHUTDOWN,
    ETXTBSY,
)
from pathlib import Path

import pytest
from support.nodes import (
    BUS_NAME,
    EVERYTHING,
    POOL_SIZE,
    UID,
    NodeWorld,
    RawClient,
    command,
    count_fds,
    fds_item,
    item,
    items_of,
    memfd_item,
    send_body,
    string_item,
)

from kdbus_core.abi import Command, ItemType
from kdbus_core.transport.files import make_memfd
from kdbus_core.transport.server import ServerLimits

CARRIED, QUIET, FREEING = 1, 2, 4
REFUSED = (1 << 64) - 1
MAX_CARRIED = 4259840
DEADLINE_MS = 20_000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[NodeWorld]:
    world = NodeWorld(tmp_path / "n")
    try:
        world.make_bus()
        yield world
    finally:
        world.close()


@pytest.fixture
def client(world: NodeWorld) -> RawClient:
    return world.hello()


@pytest.fixture
def other(world: NodeWorld) -> RawClient:
    return world.hello()


def hello_body(**changes: int) -> bytes:
    fields = {"attach_send": EVERYTHING, "attach_recv": 0, "bus_flags": 0, "id": 0, "pool_size": POOL_SIZE}
    fields |= changes
    return command(Command.HELLO, *fields.values())


# Packets that are none


@pytest.mark.parametrize("packet", [bytes(1), bytes(8), bytes(23)])
def test_a_packet_without_a_header_costs_the_handle(
    world: NodeWorld, client: RawClient, packet: bytes
) -> None:
    client.send_packet(packet)
    answer = client.take()
    assert answer is not None
    assert (answer.id, answer.errno) == (REFUSED, EPROTO)
    client.assert_ended()
    assert len(world.warnings) == 1
    assert str(UID) in world.warnings[0]


@pytest.mark.parametrize("packet", [b"", bytes(8)])
def test_descriptors_of_what_is_no_packet_are_closed_with_the_handle(
    client: RawClient, packet: bytes
) -> None:
    read_end, write_end = os.pipe()
    client.fds.append(read_end)
    client.send_packet(packet, [write_end])
    os.close(write_end)
    while client.take() is not None:
        pass
    poller = select.poll()
    poller.register(read_end, 0)
    assert poller.poll(DEADLINE_MS) == [(read_end, select.POLLHUP)]


def test_a_packet_that_is_too_long_costs_the_handle(world: NodeWorld, client: RawClient) -> None:
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 300_000:
        pytest.skip("this system has no socket buffers of that size")
    client.send_packet(bytes(262145), [0])
    answer = client.take()
    assert answer is not None
    assert (answer.id, answer.errno) == (REFUSED, EPROTO)
    client.assert_ended()


def test_the_longest_packet_is_read(client: RawClient) -> None:
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    if client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 300_000:
        pytest.skip("this system has no socket buffers of that size")
    body = command(Command.FREE, POOL_SIZE).ljust(262144 - 24)
    assert client.request(Command.FREE, body).errno == 0


def test_an_empty_packet_is_close(world: NodeWorld, client: RawClient) -> None:
    before = count_fds()
    client.send_packet(b"", [0, 1])
    client.assert_ended()
    assert world.warnings == []
    world.wait_until(lambda: count_fds() < before)


def test_the_id_of_a_request_in_flight_costs_the_handle(
    world: NodeWorld, client: RawClient, other: RawClient
) -> None:
    client.post(Command.SEND, call_body(other.id), id=5)
    client.post(Command.FREE, command(Command.FREE, POOL_SIZE), id=5)
    answer = client.take()
    assert answer is not None
    assert (answer.id, answer.errno) == (REFUSED, EPROTO)
    client.assert_ended()


def test_the_id_of_refusals_costs_the_handle(client: RawClient) -> None:
    client.post(Command.FREE, command(Command.FREE, POOL_SIZE), id=REFUSED)
    answer = client.take()
    assert answer is not None
    assert (answer.id, answer.errno) == (REFUSED, EPROTO)
    client.assert_ended()


def test_an_id_may_be_used_again_when_it_was_answered(client: RawClient) -> None:
    for _ in range(2):
        client.post(Command.FREE, command(Command.FREE, POOL_SIZE), id=7)
        answer = client.take()
        assert answer is not None
        assert (answer.id, answer.errno) == (7, 0)


def call_body(dst_id: int, *, cookie: int = 1, deadline: int = 1 << 62) -> bytes:
    return send_body(b"call", dst_id=dst_id, flags=1, cookie=cookie, timeout_or_reply=deadline, send_flags=1)


# Requests that are refused


@pytest.mark.parametrize("flags", [8, 1 << 63, 15])
def test_unknown_flags_are_refused(client: RawClient, flags: int) -> None:
    body = command(Command.FREE, POOL_SIZE)
    assert client.request(Command.FREE, body, flags=flags, fds=[0]).errno == EINVAL
    assert client.request(Command.FREE, body).errno == 0


@pytest.mark.parametrize("number", [0, 1, 0x40189502, 1 << 63])
def test_what_is_no_command_is_refused(client: RawClient, number: int) -> None:
    assert client.request(number, bytes(24)).errno == ENOTTY


def test_descriptors_that_the_broker_cannot_take_cost_the_request(tmp_path: Path) -> None:
    world = NodeWorld(tmp_path / "n", limits=ServerLimits(open_files_per_user=2))
    try:
        world.make_bus()
        client = world.hello()
        before = count_fds()
        assert client.request(Command.FREE, command(Command.FREE, POOL_SIZE), fds=[0] * 3).errno == EMFILE
        assert client.request(Command.FREE, command(Command.FREE, POOL_SIZE), fds=[0] * 2).errno == 0
        assert count_fds() == before
    finally:
        world.close()


@pytest.mark.parametrize("fd_count", [1, 2, 253])
def test_descriptors_that_nobody_needs_are_closed(client: RawClient, fd_count: int) -> None:
    before = count_fds()
    assert client.request(Command.FREE, command(Command.FREE, POOL_SIZE), fds=[0] * fd_count).errno == 0
    assert client.request(Command.FREE, command(Command.FREE, 8), fds=[0] * fd_count).errno == ENXIO
    assert client.request(0, b"", fds=[0] * fd_count).errno == ENOTTY
    assert count_fds() == before


# The body is the memory


def test_without_a_body_there_is_no_memory(client: RawClient) -> None:
    assert client.request(Command.FREE).errno == EFAULT


@pytest.mark.parametrize("size", [8, 16, 24, 31])
def test_a_struct_that_is_cut_off_is_not_there(client: RawClient, size: int) -> None:
    assert client.request(Command.FREE, command(Command.FREE, POOL_SIZE)[:size]).errno == EFAULT


@pytest.mark.parametrize("address", [57, 1 << 20, (1 << 64) - 8, 1 << 63])
def test_a_message_outside_of_the_body_is_not_there(client: RawClient, address: int) -> None:
    assert client.request(Command.SEND, command(Command.SEND, address)).errno == EFAULT


@pytest.mark.parametrize("address", [1, 149, 1 << 40, (1 << 64) - 4])
def test_a_payload_outside_of_the_body_is_not_there(client: RawClient, address: int) -> None:
    vec = item(ItemType.PAYLOAD_VEC, struct.pack("=2Q", 8, address))
    body = send_body(dst_id=client.id, items=[vec]) + bytes(4)
    expected = 0 if address == 1 else EFAULT
    assert client.request(Command.SEND, body).errno == expected


def test_an_address_of_zero_is_zeros(client: RawClient) -> None:
    vec = item(ItemType.PAYLOAD_VEC, struct.pack("=2Q", 1000, 0))
    assert client.request(Command.SEND, send_body(dst_id=client.id, items=[vec])).errno == 0
    _, message = client.receive()
    assert items_of(message) == [(ItemType.PAYLOAD_OFF, struct.pack("=2Q", 1000, EVERYTHING))]


def test_what_the_broker_writes_comes_back_as_patches(client: RawClient) -> None:
    answer = client.request(Command.SEND, send_body(b"x", dst_id=client.id))
    assert answer.patches == [(32, struct.pack("=3Q", POOL_SIZE, 0, 0))]


def test_bytes_that_stay_as_they_were_are_left_out(client: RawClient) -> None:
    assert client.request(Command.FREE, command(Command.FREE, POOL_SIZE)).patches == []


def test_returned_flags_are_overwritten(client: RawClient) -> None:
    body = bytearray(command(Command.FREE, POOL_SIZE))
    body[16:24] = b"\xff" * 8
    answer = client.request(Command.FREE, bytes(body))
    assert answer.number(16) == 0


def test_a_refused_command_has_patches_too(client: RawClient) -> None:
    body = bytearray(command(Command.RECV))
    body[16:64] = b"\xff" * 48
    body[24:32] = bytes(8)
    answer = client.request(Command.RECV, bytes(body))
    assert answer.errno != 0
    assert answer.number(16) == answer.number(32) == 0
    assert answer.number(40) == POOL_SIZE


def test_overlapping_structs_end_as_they_would_in_memory(client: RawClient) -> None:
    body = bytearray(command(Command.SEND, 0, flags=1 << 63))
    answer = client.request(Command.SEND, bytes(body))
    assert answer.number(8) == 1
    assert answer.errno == 0


def test_flags_are_negotiated(client: RawClient) -> None:
    known = item(ItemType.NEGOTIATE, struct.pack("=2Q", ItemType.CANCEL_FD, 0x7777))
    body = command(Command.SEND, 0, flags=1 << 63, items=[known])
    answer = client.request(Command.SEND, body)
    assert answer.number(8) == 1
    assert struct.unpack_from("=2Q", answer.memory, 56 + 16) == (ItemType.CANCEL_FD, 0)


# Bodies that are carried


def memory(data: bytes, *, sealed: bool = False) -> int:
    return make_memfd(data, name="body", sealed=sealed)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("cut", [0, 56, 100, 152])
def test_a_memfd_continues_the_body(client: RawClient, cut: int, sealed: bool) -> None:
    payload = os.urandom(100_000)
    body = send_body(payload, dst_id=client.id)
    fd = memory(body[cut:], sealed=sealed)
    before = count_fds()
    client.post(Command.SEND, body[:cut], fds=[fd], flags=CARRIED)
    answer = client.take()
    assert answer is not None
    assert answer.errno == 0
    assert client.receive()[1][-len(payload) :] == payload
    assert count_fds() == before
    os.close(fd)


def test_a_memfd_is_read_from_its_beginning(client: RawClient) -> None:
    body = send_body(b"payload", dst_id=client.id)
    fd = memory(body)
    os.lseek(fd, 30, os.SEEK_SET)
    client.post(Command.SEND, fds=[fd], flags=CARRIED)
    answer = client.take()
    assert answer is not None
    assert answer.errno == 0
    os.close(fd)


def test_only_the_last_descriptor_carries_and_it_has_no_number(client: RawClient) -> None:
    fd = memory(b"")
    body = send_body(dst_id=client.id, items=[fds_item(0)])
    assert client.request(Command.SEND, body, fds=[0, fd], flags=CARRIED).errno == 0
    body = send_body(dst_id=client.id, items=[fds_item(1)])
    assert client.request(Command.SEND, body, fds=[0, fd], flags=CARRIED).errno == EBADF
    os.close(fd)


def test_something_has_to_carry(client: RawClient) -> None:
    assert client.request(Command.FREE, command(Command.FREE, POOL_SIZE), flags=CARRIED).errno == EBADF


@pytest.mark.parametrize("kind", ["pipe", "file", "directory", "device"])
def test_only_shared_memory_carries(client: RawClient, kind: str, tmp_path: Path) -> None:
    fds = {
        "pipe": lambda: os.pipe()[0],
        "file": lambda: os.open(tmp_path, os.O_TMPFILE | os.O_RDWR),
        "directory": lambda: os.open(tmp_path, os.O_RDONLY),
        "device": lambda: os.open("/dev/zero", os.O_RDONLY),
    }
    fd = fds[kind]()
    client.fds.append(fd)
    if kind == "file" and os.fstatvfs(fd).f_namemax and is_shared_memory(fd):
        pytest.skip("files of this directory are shared memory")
    body = command(Command.FREE, POOL_SIZE)
    assert client.request(Command.FREE, body, fds=[fd], flags=CARRIED).errno == EMEDIUMTYPE


def is_shared_memory(fd: int) -> bool:
    from kdbus_core.transport.files import memory_seals

    return memory_seals(fd) is not None


@pytest.mark.parametrize(("excess", "errno"), [(0, 0), (1, E2BIG)])
def test_a_body_has_its_limit(client: RawClient, excess: int, errno: int) -> None:
    body = command(Command.FREE, POOL_SIZE)
    fd = os.memfd_create("large")
    os.ftruncate(fd, MAX_CARRIED - len(body) + excess)
    before = count_fds()
    assert client.request(Command.FREE, body, fds=[fd], flags=CARRIED).errno == errno
    assert count_fds() == before
    os.close(fd)


# Quiet requests


def test_a_quiet_success_is_not_answered(client: RawClient) -> None:
    body = command(Command.FREE, POOL_SIZE)
    client.post(Command.FREE, body, flags=QUIET)
    assert client.request(Command.FREE, body).errno == 0


def test_a_quiet_refusal_is_answered(client: RawClient) -> None:
    assert client.request(Command.FREE, command(Command.FREE, 8), flags=QUIET).errno == ENXIO


def test_a_quiet_success_that_brings_descriptors_is_answered(world: NodeWorld) -> None:
    client = world.connect(BUS_NAME, "bus")
    assert len(client.request(Command.HELLO, hello_body(), flags=QUIET).fds) == 2


def test_quiet_requests_are_performed_in_their_order(client: RawClient, other: RawClient) -> None:
    for cookie in range(1, 31):
        client.post(Command.SEND, send_body(b"x", dst_id=other.id, cookie=cookie), flags=QUIET)
    client.run(Command.FREE, POOL_SIZE)
    cookies = [struct.unpack_from("=Q", other.receive()[1], 48)[0] for _ in range(30)]
    assert cookies == list(range(1, 31))


# A slice is freed with the next request


def errno_of(client: RawClient) -> int:
    """What the next answer says."""
    answer = client.take()
    assert answer is not None
    return answer.errno


def freeing(offset: int, body: bytes) -> bytes:
    return struct.pack("=Q", offset) + body


def received_at(client: RawClient) -> int:
    """Where a message lies that the client has sent to itself and received."""
    client.send(b"x", dst_id=client.id)
    return client.receive()[0].number(40)


def test_a_slice_is_freed_before_the_request_it_goes_with(client: RawClient) -> None:
    offset = received_at(client)
    client.post(Command.FREE, freeing(offset, command(Command.FREE, offset)), flags=FREEING)
    assert errno_of(client) == ENXIO


@pytest.mark.parametrize(("number", "flags", "fds"), [(1, 0, []), (Command.FREE, CARRIED, [0])])
def test_a_slice_is_freed_whatever_becomes_of_the_request(
    client: RawClient, number: int, flags: int, fds: list[int]
) -> None:
    offset = received_at(client)
    client.post(number, freeing(offset, b""), flags=flags | FREEING, fds=fds)
    assert errno_of(client) in (ENOTTY, EMEDIUMTYPE)
    assert client.request(Command.FREE, command(Command.FREE, offset)).errno == ENXIO


@pytest.mark.parametrize("offset", [8, POOL_SIZE, (1 << 64) - 1])
def test_where_there_is_no_slice_nothing_is_freed_and_the_request_performed(
    client: RawClient, offset: int
) -> None:
    kept = received_at(client)
    client.post(Command.FREE, freeing(offset, command(Command.FREE, kept)), flags=FREEING)
    assert errno_of(client) == 0


def test_a_message_that_waits_cannot_be_freed(client: RawClient, other: RawClient) -> None:
    other.send(b"waits", dst_id=client.id)
    client.post(Command.FREE, freeing(0, command(Command.FREE, POOL_SIZE)), flags=FREEING)
    assert errno_of(client) == 0
    assert client.receive()[1].endswith(b"waits\0\0\0")


def test_what_is_left_of_the_body_is_the_memory(client: RawClient) -> None:
    offset = received_at(client)
    fd = make_memfd(b"carried!", name="test", sealed=False)
    client.fds.append(fd)
    body = send_body(b"carried!", dst_id=client.id)
    client.post(Command.SEND, freeing(offset, body[:-8]), flags=FREEING | CARRIED, fds=[fd])
    assert errno_of(client) == 0
    assert client.receive()[1].endswith(b"carried!")


@pytest.mark.parametrize("size", [0, 7])
def test_a_slice_that_is_not_said_is_refused(client: RawClient, size: int) -> None:
    assert client.request(Command.FREE, bytes(size), flags=FREEING).errno == EINVAL


def test_a_fresh_handle_has_nothing_to_free(world: NodeWorld) -> None:
    client = world.connect(BUS_NAME, "bus")
    client.post(Command.HELLO, freeing(0, hello_body()), flags=FREEING)
    assert errno_of(client) == 0


# Descriptors


def test_descriptors_of_a_message_are_those_of_the_answer(client: RawClient, other: RawClient) -> None:
    read_end, write_end = os.pipe()
    client.fds += [read_end, write_end]
    body = send_body(dst_id=other.id, items=[fds_item(1, 0, 1)])
    assert client.request(Command.SEND, body, fds=[read_end, write_end]).errno == 0
    answer, message = other.receive()
    numbers = struct.unpack("=3i", dict(items_of(message))[ItemType.FDS])
    assert numbers == (0, 1, 2)
    os.write(answer.fds[numbers[0]], b"x")
    os.write(answer.fds[numbers[2]], b"y")
    assert os.read(answer.fds[numbers[1]], 2) == b"xy"


@pytest.mark.parametrize("number", [1, 2, 100])
def test_a_number_that_is_not_in_the_packet_is_not_open(client: RawClient, number: int) -> None:
    before = count_fds()
    body = send_body(dst_id=client.id, items=[fds_item(number)])
    assert client.request(Command.SEND, body, fds=[0]).errno == EBADF
    assert count_fds() == before


def test_a_negative_number_is_not_open(client: RawClient) -> None:
    body = send_body(dst_id=client.id, items=[fds_item(-1)])
    assert client.request(Command.SEND, body, fds=[0]).errno == EBADF


def test_handles_are_not_passed_on(client: RawClient) -> None:
    body = send_body(dst_id=client.id, items=[fds_item(0)])
    assert client.request(Command.SEND, body, fds=[client.sock.fileno()]).errno == EOPNOTSUPP


def test_sealed_memory_is_passed_on_as_it_is(client: RawClient, other: RawClient) -> None:
    fd = memory(b"sealed payload", sealed=True)
    client.fds.append(fd)
    body = send_body(dst_id=other.id, items=[memfd_item(0, 7, start=7)])
    assert client.request(Command.SEND, body, fds=[fd]).errno == 0
    answer, message = other.receive()
    start, size, number, _ = struct.unpack("=2QiI", dict(items_of(message))[ItemType.PAYLOAD_MEMFD])
    assert os.pread(answer.fds[number], size, start) == b"payload"
    assert os.fstat(answer.fds[number]).st_ino == os.fstat(fd).st_ino


def test_memory_that_can_change_is_refused(client: RawClient) -> None:
    fd = memory(b"unsealed")
    client.fds.append(fd)
    body = send_body(dst_id=client.id, items=[memfd_item(0, 8)])
    assert client.request(Command.SEND, body, fds=[fd]).errno == ETXTBSY


def test_descriptors_that_wait_are_closed_with_the_receiver(
    world: NodeWorld, client: RawClient, other: RawClient
) -> None:
    read_end, write_end = os.pipe()
    body = send_body(dst_id=other.id, items=[fds_item(0)])
    assert client.request(Command.SEND, body, fds=[write_end]).errno == 0
    os.close(write_end)
    other.close()
    assert os.read(read_end, 1) == b"", "the end of the pipe"
    os.close(read_end)


def test_peek_installs_no_descriptor(client: RawClient) -> None:
    assert client.request(Command.SEND, send_body(dst_id=client.id, items=[fds_item(0)]), fds=[0]).errno == 0
    answer, message = client.receive(flags=1)
    assert answer.fds == []
    assert dict(items_of(message))[ItemType.FDS] == struct.pack("=i", -1)
    assert len(client.receive()[0].fds) == 1


# Handles


def test_a_fresh_handle_takes_only_what_makes_it_something(world: NodeWorld) -> None:
    client = world.connect(BUS_NAME, "bus")
    assert client.request(Command.RECV, command(Command.RECV)).errno == EBADFD
    assert client.request(Command.SEND, send_body(b"x", dst_id=1)).errno == EBADFD
    client.hello()
    assert client.request(Command.HELLO, hello_body()).errno == EBADFD


def test_a_refused_hello_leaves_the_handle_fresh_and_nothing_open(world: NodeWorld) -> None:
    client = world.connect(BUS_NAME, "bus")
    assert client.request(Command.FREE, bytes(32)).errno == EBADFD
    before = count_fds()
    assert client.request(Command.HELLO, hello_body(pool_size=1)).errno == EINVAL
    activator = command(Command.HELLO, EVERYTHING, 0, 0, 0, POOL_SIZE, flags=2)
    assert client.request(Command.HELLO, activator).errno == EINVAL
    bad = [
        string_item(ItemType.NAME, "org.example.A"),
        item(ItemType.POLICY_ACCESS, struct.pack("=3Q", 9, 0, 0)),
    ]
    holder = command(Command.HELLO, EVERYTHING, 0, 0, 0, POOL_SIZE, flags=4, items=bad)
    assert client.request(Command.HELLO, holder).errno == EINVAL
    assert count_fds() == before
    client.hello()


def test_a_negotiating_hello_makes_nothing(world: NodeWorld) -> None:
    client = world.connect(BUS_NAME, "bus")
    answer = client.request(Command.HELLO, command(Command.HELLO, 0, 0, 0, 0, POOL_SIZE, flags=1 << 63))
    assert answer.errno == 0
    assert answer.number(8) == 15
    assert answer.fds == []
    client.hello()


def test_commands_after_byebye_are_shut_down(client: RawClient) -> None:
    client.run(Command.BYEBYE)
    assert client.is_ready()
    assert client.request(Command.RECV, command(Command.RECV)).errno == ESHUTDOWN
    assert client.is_ready()
