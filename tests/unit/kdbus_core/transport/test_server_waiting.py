"""Requests that wait, answers that nobody takes, and the descriptor that says whether something is there."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from errno import ECANCELED, EINVAL, ENOENT, EPIPE, ESHUTDOWN, ETIMEDOUT, ETOOMANYREFS
from pathlib import Path

import pytest
from support.nodes import (
    POOL_SIZE,
    Answer,
    NodeWorld,
    RawClient,
    command,
    count_fds,
    fds_item,
    item,
    items_of,
    send_body,
    string_item,
)

from kdbus_core.abi import Command, ItemType

QUIET = 2
NAME = "org.example.Name"
FAR = 1 << 62


@pytest.fixture
def world(tmp_path: Path) -> Iterator[NodeWorld]:
    world = NodeWorld(tmp_path / "n")
    try:
        yield world
    finally:
        world.close()


@pytest.fixture
def owner(world: NodeWorld) -> RawClient:
    return world.make_bus()


@pytest.fixture
def client(world: NodeWorld, owner: RawClient) -> RawClient:
    return world.hello()


@pytest.fixture
def service(world: NodeWorld, owner: RawClient) -> RawClient:
    return world.hello()


def call(
    client: RawClient,
    dst_id: int,
    *,
    cookie: int = 1,
    deadline: int = FAR,
    cancel: tuple[int, ...] = (),
) -> int:
    """Post a synchronous SEND; `cancel` is the descriptor that cancels it, if any."""
    items = [item(ItemType.CANCEL_FD, struct.pack("=i", 0))] if cancel else []
    body = send_body(
        b"call",
        dst_id=dst_id,
        flags=1,
        cookie=cookie,
        timeout_or_reply=deadline,
        send_flags=1,
        send_items=items,
    )
    return client.post(Command.SEND, body, fds=cancel)


def take(client: RawClient) -> Answer:
    answer = client.take()
    assert answer is not None
    return answer


def accept_call(service: RawClient) -> tuple[int, int]:
    """Receive a request; who it is from, and its cookie."""
    service.wait_ready()
    answer, message = service.receive()
    service.run(Command.FREE, answer.number(40))
    source, _, cookie = struct.unpack_from("=3Q", message, 32)
    return source, cookie


# Synchronous calls


def test_a_call_is_answered_with_the_place_of_its_reply(client: RawClient, service: RawClient) -> None:
    id = call(client, service.id)
    source, cookie = accept_call(service)
    assert service.send(b"reply", dst_id=source, timeout_or_reply=cookie).errno == 0
    answer = take(client)
    assert (answer.id, answer.errno) == (id, 0)
    ((address, data),) = [patch for patch in answer.patches if patch[0] == 32][-1:]
    offset, size, flags = struct.unpack("=3Q", data)
    assert client.read_pool(offset, size).rstrip(b"\0").endswith(b"reply")
    assert (address, flags) == (32, 0)
    client.run(Command.FREE, offset)


def test_other_requests_go_on_while_a_call_waits(client: RawClient, service: RawClient) -> None:
    first = call(client, service.id, cookie=1)
    second = call(client, service.id, cookie=2)
    client.run(Command.FREE, POOL_SIZE)
    source, _ = accept_call(service)
    accept_call(service)
    for cookie, id in ((2, second), (1, first)):
        service.send(b"reply", dst_id=source, timeout_or_reply=cookie)
        assert take(client).id == id


def test_descriptors_of_a_reply_come_with_the_answer(client: RawClient, service: RawClient) -> None:
    call(client, service.id)
    source, cookie = accept_call(service)
    read_end, write_end = os.pipe()
    client.fds += [read_end, write_end]
    reply = send_body(dst_id=source, timeout_or_reply=cookie, items=[fds_item(0)])
    assert service.request(Command.SEND, reply, fds=[write_end]).errno == 0
    answer = take(client)
    os.write(answer.fds[0], b"x")
    assert os.read(read_end, 1) == b"x"
    offset, size, _ = struct.unpack("=3Q", answer.patches[-1][1])
    assert dict(items_of(client.read_pool(offset, size)))[ItemType.FDS] == struct.pack("=i", 0)


def test_a_call_ends_at_its_deadline_and_not_before(client: RawClient, service: RawClient) -> None:
    deadline = time.monotonic_ns() + 50_000_000
    call(client, service.id, deadline=deadline)
    assert take(client).errno == ETIMEDOUT
    assert time.monotonic_ns() >= deadline


def test_the_earliest_deadline_comes_first(client: RawClient, service: RawClient) -> None:
    now = time.monotonic_ns()
    ids = [call(client, service.id, cookie=n, deadline=now + n * 30_000_000) for n in (3, 1, 2)]
    assert [take(client).id for _ in range(3)] == [ids[1], ids[2], ids[0]]


def test_a_deadline_far_away_does_not_delay_a_near_one(client: RawClient, service: RawClient) -> None:
    call(client, service.id, cookie=1, deadline=FAR)
    near = call(client, service.id, cookie=2, deadline=time.monotonic_ns() + 50_000_000)
    answer = take(client)
    assert (answer.id, answer.errno) == (near, ETIMEDOUT)


def test_a_call_whose_deadline_has_passed_is_refused(client: RawClient, service: RawClient) -> None:
    call(client, service.id, deadline=1)
    assert take(client).errno == ETIMEDOUT
    assert not service.is_ready()


def test_a_request_that_does_not_wait_has_its_deadline_too(client: RawClient, service: RawClient) -> None:
    deadline = time.monotonic_ns() + 50_000_000
    assert client.send(b"x", dst_id=service.id, flags=1, timeout_or_reply=deadline).errno == 0
    client.wait_ready()
    assert time.monotonic_ns() >= deadline
    _, message = client.receive()
    assert items_of(message)[0] == (ItemType.REPLY_TIMEOUT, b"")


def test_a_call_is_cancelled_by_its_cookie(client: RawClient, service: RawClient) -> None:
    id = call(client, service.id, cookie=77)
    cancelling = client.post(Command.MSG_CANCEL, command(Command.MSG_CANCEL, 77))
    answers = {answer.id: answer.errno for answer in (take(client), take(client))}
    assert answers == {id: ECANCELED, cancelling: 0}
    assert client.request(Command.MSG_CANCEL, command(Command.MSG_CANCEL, 77)).errno == ENOENT


def test_a_call_is_cancelled_by_its_descriptor(client: RawClient, service: RawClient) -> None:
    canceller = os.eventfd(0)
    client.fds.append(canceller)
    before = count_fds()
    call(client, service.id, cancel=(canceller,))
    accept_call(service)
    os.eventfd_write(canceller, 1)
    assert take(client).errno == ECANCELED
    client.run(Command.FREE, POOL_SIZE)
    assert count_fds() == before


def test_a_descriptor_that_is_readable_already_cancels_at_once(client: RawClient, service: RawClient) -> None:
    canceller = os.eventfd(1)
    client.fds.append(canceller)
    call(client, service.id, cancel=(canceller,))
    assert take(client).errno == ECANCELED


def test_a_descriptor_that_cannot_be_waited_for_is_refused(
    client: RawClient, service: RawClient, tmp_path: Path
) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    client.fds.append(fd)
    call(client, service.id, cancel=(fd,))
    assert take(client).errno == EINVAL


def test_a_call_ends_with_the_one_that_should_answer(client: RawClient, service: RawClient) -> None:
    call(client, service.id)
    accept_call(service)
    service.close()
    assert take(client).errno == EPIPE


def test_a_call_ends_with_the_bus(client: RawClient, service: RawClient, owner: RawClient) -> None:
    call(client, service.id)
    accept_call(service)
    owner.close()
    assert take(client).errno == ESHUTDOWN


def test_a_client_may_go_while_it_waits(world: NodeWorld, service: RawClient) -> None:
    before = count_fds()
    client = world.hello()
    canceller = os.eventfd(0)
    call(client, service.id, cancel=(canceller,))
    source, cookie = accept_call(service)
    client.close()
    os.close(canceller)
    world.settle()
    assert service.send(b"late", dst_id=source, timeout_or_reply=cookie).errno != 0
    assert count_fds() == before


def test_half_closing_is_closing(world: NodeWorld, client: RawClient, service: RawClient) -> None:
    call(client, service.id)
    client.sock.shutdown(socket.SHUT_WR)
    client.assert_ended()
    world.wait_until(lambda: world.server.handles == 2)


# What is sent before the end


def test_what_was_sent_before_the_end_is_performed(client: RawClient, service: RawClient) -> None:
    for cookie in range(1, 41):
        client.post(Command.SEND, send_body(b"x", dst_id=service.id, cookie=cookie), flags=QUIET)
    client.close()
    received: list[int] = []
    while len(received) < 40:
        service.wait_ready()
        received.append(accept_call(service)[1])
    assert received == list(range(1, 41))


def test_answers_that_were_not_taken_do_not_keep_requests_from_being_performed(
    client: RawClient, service: RawClient
) -> None:
    for cookie in range(1, 41):
        client.post(Command.SEND, send_body(b"x", dst_id=service.id, cookie=cookie))
    client.close()
    assert [accept_call(service)[1] for _ in range(40)] == list(range(1, 41))


# Answers that nobody takes


def flood(client: RawClient, body: bytes) -> int:
    """Send requests until there is no more room; how many."""
    client.sock.setblocking(False)  # noqa: FBT003 - not our signature
    sent = 0
    poller = select.poll()
    poller.register(client.sock, select.POLLOUT)
    # The server stops reading when its answers find no room; what is sent then fills the other direction.
    while poller.poll(500):
        try:
            client.post(Command.FREE, body)
            sent += 1
        except BlockingIOError:
            continue
    client.sock.settimeout(20)
    return sent


def test_a_client_that_takes_no_answers_is_read_no_further(world: NodeWorld, client: RawClient) -> None:
    sent = flood(client, command(Command.FREE, POOL_SIZE))
    assert world.hello().id, "others go on"
    for id in range(client._last_request - sent + 1, client._last_request + 1):
        assert take(client).id == id
    client.run(Command.FREE, POOL_SIZE)


def test_a_client_that_takes_no_answers_can_be_closed(world: NodeWorld, owner: RawClient) -> None:
    before = count_fds()
    client = world.hello()
    flood(client, command(Command.FREE, POOL_SIZE))
    client.close()
    world.settle()
    assert count_fds() == before


def test_descriptors_of_answers_that_nobody_takes_are_closed(world: NodeWorld, service: RawClient) -> None:
    before = count_fds()
    client = world.hello()
    read_end, write_end = os.pipe()
    assert client.send(fds=[write_end], dst_id=client.id, items=[fds_item(0)]).errno == 0
    os.close(write_end)
    client.post(Command.RECV, command(Command.RECV))
    client.close()
    assert os.read(read_end, 1) == b""
    os.close(read_end)
    world.settle()
    assert count_fds() == before


def test_a_reply_for_a_client_that_takes_no_answers_waits_with_the_others(
    world: NodeWorld, client: RawClient, service: RawClient
) -> None:
    waiting = call(client, service.id)
    source, cookie = accept_call(service)
    sent = flood(client, command(Command.FREE, POOL_SIZE))
    assert service.send(b"reply", dst_id=source, timeout_or_reply=cookie).errno == 0
    ids = [take(client).id for _ in range(sent + 1)]
    assert sorted(ids) == [waiting, *range(waiting + 1, waiting + 1 + sent)]


class Crowded:
    """A socket of whose descriptors the kernel has too many under way, the first few times."""

    def __init__(self, sock: socket.socket, times: int) -> None:
        self._sock = sock
        self.times = times

    def sendmsg(self, *arguments: object) -> object:
        self.times -= 1
        if self.times >= 0:
            raise OSError(ETOOMANYREFS, "too many references")
        return self._sock.sendmsg(*arguments)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)


def test_descriptors_that_cannot_be_sent_yet_are_sent_later(
    world: NodeWorld, client: RawClient, service: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdbus_core.transport.session.RETRY_DELAY", 0.02)
    assert service.request(Command.SEND, send_body(dst_id=client.id, items=[fds_item(0)]), fds=[0]).errno == 0
    connection = world.run(lambda: world.domain.buses[f"{os.geteuid()}-bus"].connections[client.id])

    def crowd() -> Crowded:
        session = world.server._connected[connection]
        session._sock = crowded = Crowded(session._sock, 3)  # type: ignore[assignment]
        return crowded

    crowded = world.run(crowd)
    client.post(Command.RECV, command(Command.RECV))
    behind = client.post(Command.FREE, command(Command.FREE, POOL_SIZE))
    assert len(take(client).fds) == 1
    assert take(client).id == behind
    assert crowded.times == -1
    assert len(world.warnings) == 3


def test_a_client_may_go_while_its_descriptors_cannot_be_sent(
    world: NodeWorld, client: RawClient, service: RawClient
) -> None:
    before = world.run(count_fds)
    assert service.request(Command.SEND, send_body(dst_id=client.id, items=[fds_item(0)]), fds=[0]).errno == 0
    connection = world.run(lambda: world.domain.buses[f"{os.geteuid()}-bus"].connections[client.id])

    def crowd() -> None:
        session = world.server._connected[connection]
        session._sock = Crowded(session._sock, 1 << 30)  # type: ignore[assignment]

    world.run(crowd)
    client.post(Command.RECV, command(Command.RECV))
    world.wait_until(lambda: bool(world.warnings))
    world.run(lambda: world.server._connected[connection].close())
    client.assert_ended()
    assert world.run(count_fds) < before


# The ready descriptor


def test_the_descriptor_is_readable_exactly_while_something_waits(
    client: RawClient, service: RawClient
) -> None:
    assert not client.is_ready()
    for _ in range(2):
        assert service.send(b"x", dst_id=client.id).errno == 0
    for _ in range(2):
        assert client.is_ready()
        client.receive()
    assert not client.is_ready()


def test_peeking_leaves_it_readable_and_dropping_does_not(client: RawClient, service: RawClient) -> None:
    service.send(b"x", dst_id=client.id)
    client.receive(flags=1)
    assert client.is_ready()
    client.request(Command.RECV, command(Command.RECV, flags=2))
    assert not client.is_ready()


def test_it_is_readable_while_a_loss_is_to_be_reported(client: RawClient, service: RawClient) -> None:
    bloom = item(ItemType.BLOOM_FILTER, bytes(8 + 64))
    client.run(Command.MATCH_ADD, 1)
    for _ in range(30):
        service.send(bytes(60_000), dst_id=(1 << 64) - 1, flags=4, items=[bloom])
    received = lost = 0
    while client.is_ready():
        answer, _ = client.receive()
        lost += answer.number(32)
        received += not answer.errno
        if not answer.errno:
            client.run(Command.FREE, answer.number(40))
    assert lost
    assert received + lost == 30


def test_it_cannot_be_read_or_emptied(client: RawClient, service: RawClient) -> None:
    service.send(b"x", dst_id=client.id)
    with pytest.raises(OSError, match="Invalid argument"):
        os.read(client.ready, 8)
    with pytest.raises(OSError, match="Invalid argument"):
        os.write(client.ready, bytes(8))
    assert client.is_ready()


def test_it_is_readable_when_the_bus_has_gone(client: RawClient, owner: RawClient) -> None:
    assert not client.is_ready()
    owner.close()
    client.wait_ready()
    assert client.request(Command.RECV, command(Command.RECV)).errno == ESHUTDOWN
    assert client.is_ready()


def test_it_says_no_more_when_what_waits_moves_to_another(world: NodeWorld, client: RawClient) -> None:
    activator = world.connect(f"{os.geteuid()}-bus", "bus")
    activator.hello(flags=2 | 1, items=[string_item(ItemType.NAME, NAME)])
    name = [string_item(ItemType.DST_NAME, NAME)]
    assert client.send(b"x", items=name).errno == 0
    assert activator.is_ready()
    owner = world.hello()
    owner.run(Command.NAME_ACQUIRE, items=[string_item(ItemType.NAME, NAME)])
    assert owner.is_ready()
    assert not activator.is_ready()
    owner.run(Command.NAME_RELEASE, items=[string_item(ItemType.NAME, NAME)])
    assert activator.is_ready()


def test_a_reply_that_is_waited_for_does_not_make_it_readable(client: RawClient, service: RawClient) -> None:
    call(client, service.id)
    source, cookie = accept_call(service)
    service.send(b"reply", dst_id=source, timeout_or_reply=cookie)
    assert take(client).errno == 0
    assert not client.is_ready()


def test_fifty_in_a_row_come_in_their_order(client: RawClient, service: RawClient) -> None:
    for cookie in range(1, 51):
        client.post(Command.SEND, send_body(b"x", dst_id=service.id, cookie=cookie))
    for _ in range(50):
        assert take(client).errno == 0
    assert [accept_call(service)[1] for _ in range(50)] == list(range(1, 51))
