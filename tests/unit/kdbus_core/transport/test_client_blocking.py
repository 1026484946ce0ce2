"""The blocking half on a real broker: every command, payloads of every size, and what they leave behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from errno import (
    EBADF,
    EBADFD,
    EBADSLT,
    EBUSY,
    ECANCELED,
    ECONNRESET,
    EDOM,
    EINVAL,
    ENOENT,
    ENXIO,
    EPERM,
    EPIPE,
    ESHUTDOWN,
    ESRCH,
    ETIMEDOUT,
    ETXTBSY,
)
from functools import partial
from pathlib import Path

import pytest
from client_world import BUS, DEADLINE_S, Served, in_thread, open_fds, refused, served, until

from kdbus_core.abi import (
    ATTACH_ALL,
    MATCH_ANY,
    NAME_ACQUIRE_FLAGS,
    AccessLevel,
    AccessType,
    AttachFlag,
    Command,
    HelloFlag,
    ItemType,
    ListFlag,
    MakeFlag,
    MessageFlag,
    NameFlag,
    ReceiveFlag,
)
from kdbus_core.domain import Bloom
from kdbus_core.matches import BloomMask, DstIdMatch, Filter, IdMatch, IdNotice, NameMatch, NameNotice
from kdbus_core.message import Zeros
from kdbus_core.metadata import Creds, Pids, Snapshot
from kdbus_core.policy import Access, PolicyEntry
from kdbus_core.transport.client import Connection, Received, SealedMemory, open_node
from kdbus_core.transport.client.notices import IdChanged, NameChanged, ReplyDead, ReplyTimeout
from kdbus_core.transport.files import make_memfd

MIB = 1 << 20
SECOND_NS = 1_000_000_000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path) as world:
        yield world


@pytest.fixture
def alice(world: Served) -> Iterator[Connection]:
    with world.connect(description="alice") as connection:
        yield connection


@pytest.fixture
def bob(world: Served) -> Iterator[Connection]:
    with world.connect(description="bob") as connection:
        yield connection


def receive(connection: Connection) -> Received:
    """The next message, which has to come."""
    assert connection.wait(DEADLINE_S)
    received = connection.receive()
    assert received is not None
    return received


# Handles


def test_what_a_command_takes_can_be_asked(world: Served) -> None:
    with open_node(world.control) as node:
        supported = node.supported(Command.BUS_MAKE)
        assert supported.flags == MakeFlag.ACCESS_GROUP | MakeFlag.ACCESS_WORLD | MakeFlag.FINAL_METADATA
        assert {ItemType.MAKE_NAME, ItemType.BLOOM_PARAMETER} <= supported.items
        assert ItemType.DST_NAME not in supported.items
        with refused(EBADFD):
            node.supported(Command.HELLO)


@pytest.mark.parametrize(
    "command", [command for command in Command if command >> 8 & 0xFF and command & 0xFF >= 0x81]
)
def test_what_a_connection_takes_can_be_asked(alice: Connection, command: Command) -> None:
    flags = alice.supported(command).flags
    if command is Command.NAME_ACQUIRE:
        assert flags == NAME_ACQUIRE_FLAGS


def test_a_bus_is_made_and_goes_with_its_handle(world: Served) -> None:
    name = f"{os.getuid()}-other"
    with open_node(world.control) as node:
        node.make_bus(name, access=MakeFlag.ACCESS_WORLD, bloom=Bloom(32, 1), creator_mask=1, required=4)
        with open_node(world.directory / name / "bus") as bus:
            connection = bus.hello()
        assert connection.bloom == Bloom(32, 1)
        assert connection.bus_flags == MakeFlag.ACCESS_WORLD
        assert connection.creator_info().bus_name == name
    with connection:
        assert connection.wait(DEADLINE_S)
        with refused(ESHUTDOWN):
            connection.list()
        with refused(ESHUTDOWN):
            connection.receive()
    with refused(ENOENT):
        open_node(world.directory / name / "bus")


def test_an_endpoint_has_a_policy_of_its_own(world: Served, alice: Connection) -> None:
    alice.name_acquire("com.example.Alice")
    with open_node(world.bus) as node:
        node.make_endpoint(f"{os.getuid()}-private", access=MakeFlag.ACCESS_WORLD)
        with (
            open_node(world.directory / BUS / f"ep.{os.getuid()}-private") as endpoint,
            endpoint.hello() as guest,
        ):
            with refused(ESRCH):
                guest.info(name="com.example.Alice")
            see = Access(AccessType.WORLD, 0, AccessLevel.SEE)
            node.update_endpoint([PolicyEntry("com.example.Alice", (see,))])
            assert guest.info(name="com.example.Alice").id == alice.id
            with refused(EPERM):
                guest.send(b"x", destination=alice.id)


def test_a_handle_is_consumed_by_hello(world: Served) -> None:
    with open_node(world.bus) as node, node.hello() as connection:
        assert node.closed
        node.close()
        assert connection.list()
        with refused(EBADF):
            node.hello()


def test_a_hello_that_is_refused_leaves_the_handle_as_it_was(world: Served) -> None:
    with open_node(world.bus) as node:
        with refused(EINVAL):
            node.hello(pool_size=5)
        with node.hello():
            pass


def test_an_owner_speaks_for_others(world: Served, alice: Connection) -> None:
    faked = Snapshot(
        creds=Creds(1, 2, 3, 4, 5, 6, 7, 8), pids=Pids(os.getpid()), auxgroups=(9,), seclabel=b"them"
    )
    with open_node(world.bus) as node, node.hello(faked=faked) as connection:
        told = alice.info(connection.id).metadata
        assert (told.creds, told.auxgroups, told.seclabel) == (faked.creds, faked.auxgroups, faked.seclabel)
        assert told.exe is None


def test_the_state_of_the_domain_can_be_read(world: Served) -> None:
    with open_node(world.control) as node:
        assert BUS in str(node.inspect())


def test_activators_and_policy_holders_say_hello_with_a_policy(world: Served, alice: Connection) -> None:
    accesses = [Access(AccessType.WORLD, 0, AccessLevel.TALK)]
    with (
        open_node(world.bus) as node,
        node.hello(flags=HelloFlag.ACTIVATOR, name="com.example.Lazy", accesses=accesses) as activator,
    ):
        alice.send(b"wake up", destination="com.example.Lazy")
        with receive(activator) as message:
            assert message.dst_name == "com.example.Lazy"
    with (
        open_node(world.bus) as node,
        node.hello(flags=HelloFlag.POLICY_HOLDER, name="com.example.Kept") as holder,
    ):
        holder.update(policy=[PolicyEntry("com.example.Kept", tuple(accesses))])


# Messages


def test_a_message_arrives_with_what_is_told_of_its_sender(alice: Connection, bob: Connection) -> None:
    bob.name_acquire("com.example.Bob")
    cookie = bob.send(b"hello", destination=alice.id, priority=-3)
    assert cookie == 1
    with receive(alice) as message:
        assert (message.sender, message.destination, message.cookie) == (bob.id, alice.id, cookie)
        assert (message.payload, message.priority, message.lost) == (b"hello", -3, 0)
        assert message.metadata.names == {"com.example.Bob": NameFlag.PRIMARY}
        assert message.metadata.description == "bob"
        stamp = message.metadata.timestamp
        assert stamp is not None
        assert stamp.monotonic_ns <= time.monotonic_ns()
    assert alice.receive() is None


def test_everything_can_be_told_of_a_sender(world: Served, bob: Connection) -> None:
    with world.connect(attach_recv=ATTACH_ALL) as carol:
        bob.send(b"hello", destination=carol.id)
        with receive(carol) as message:
            told = message.metadata
    assert told.creds is not None
    assert told.creds.euid == os.geteuid()
    assert told.pids is not None
    assert told.pids.pid == os.getpid()
    assert told.auxgroups is not None
    assert set(told.auxgroups) == set(os.getgroups())
    assert told.exe == os.readlink("/proc/self/exe").encode()


def test_cookies_count_up_unless_they_are_given(alice: Connection, bob: Connection) -> None:
    assert [bob.send(b"x", destination=alice.id) for _ in range(3)] == [1, 2, 3]
    assert bob.send(b"x", destination=alice.id, cookie=77) == 77
    assert bob.send(b"x", destination=alice.id) == 4


@pytest.mark.parametrize("size", [1, 7, 4096, 20_000, 64 * 1024, 300_000, 512 * 1024, 2 * MIB])
def test_payloads_of_any_size_arrive(world: Served, alice: Connection, size: int) -> None:
    payload = os.urandom(size)
    with world.connect(pool_size=4 * MIB) as carol:
        alice.send([b"<", payload, Zeros(5), b">"], destination=carol.id)
        with receive(carol) as message:
            assert message.payload == b"<" + payload + bytes(5) + b">"
            assert message.payload_size == size + 7


@pytest.mark.slow
def test_sixty_four_mebibytes_arrive_as_a_view_and_can_be_sent_on(alice: Connection, bob: Connection) -> None:
    payload = os.urandom(MIB) * 64
    bob.send(payload, destination=alice.id)
    with receive(alice) as message:
        (piece,) = message.pieces
        assert isinstance(piece, SealedMemory)
        (view,) = message.parts
        assert view == payload
        alice.send([piece], destination=bob.id)
    with receive(bob) as message:
        assert message.parts[0][-MIB:] == payload[-MIB:]


def test_sealed_memory_is_passed_on_with_its_offset(alice: Connection, bob: Connection) -> None:
    fd = make_memfd(b"0123456789" * 1000, name="test", sealed=True)
    bob.send([b"a", SealedMemory(fd, 5001, 3), b"b"], destination=alice.id)
    os.close(fd)
    with receive(alice) as message:
        assert message.payload == b"a123b"


def test_memory_that_can_still_change_is_refused(alice: Connection, bob: Connection) -> None:
    fd = make_memfd(b"0123456789", name="test", sealed=False)
    with refused(ETXTBSY):
        bob.send([SealedMemory(fd, 0, 3)], destination=alice.id)
    os.close(fd)


def test_descriptors_are_handed_over(alice: Connection, bob: Connection) -> None:
    reader, writer = os.pipe()
    bob.send(b"take this", destination=alice.id, fds=[reader])
    os.write(writer, b"through the pipe")
    with receive(alice) as message:
        assert os.read(message.fds[0], 100) == b"through the pipe"
        assert not os.get_inheritable(message.fds[0])
    os.close(reader)
    os.close(writer)


def test_small_messages_leave_the_pool_with_the_next_command(
    world: Served, alice: Connection, bob: Connection
) -> None:
    for _ in range(3):
        bob.send(b"x", destination=alice.id)
        receive(alice).close()
    assert alice.receive() is None
    alice.list()
    alice.wait(0)
    assert world.pool_use(alice.id) == 0


def test_a_large_message_leaves_the_pool_when_it_is_closed(
    world: Served, alice: Connection, bob: Connection
) -> None:
    bob.send(bytes(100_000), destination=alice.id)
    message = receive(alice)
    assert world.pool_use(alice.id) > 100_000
    message.close()
    until(lambda: world.pool_use(alice.id) < 100_000)


def test_a_signal_reaches_who_asked_for_it(alice: Connection, bob: Connection) -> None:
    bits = b"\x0f" + bytes(63)
    alice.match_add(4, [BloomMask((b"\x03" + bytes(63),)), IdMatch(bob.id)])
    alice.match_add(5, [NameMatch("com.example.Nobody")])
    alice.match_add(6, [DstIdMatch(alice.id)])
    bob.send(b"news", destination=None, filter=Filter(0, bits))
    with receive(alice) as message:
        assert message.payload == b"news"
        assert message.is_signal
        assert message.filter == Filter(0, bits)
    alice.match_remove(4)
    bob.send(b"news", destination=None, filter=Filter(0, bits))
    assert alice.receive() is None
    with refused(EBADSLT):
        alice.match_remove(4)
    with refused(EDOM):
        alice.match_add(4, [BloomMask((b"short",))])


def test_a_match_can_be_replaced(alice: Connection, bob: Connection) -> None:
    alice.match_add(1, [IdMatch(bob.id)])
    alice.match_add(1, [IdMatch(MATCH_ANY - 1)], replace=True)
    bob.send(b"", destination=None, filter=Filter(0, bytes(64)))
    assert alice.receive() is None


def test_a_broadcast_of_more_than_the_broker_copies_arrives(alice: Connection, bob: Connection) -> None:
    payload = os.urandom(2 * MIB + 1)
    alice.match_add(1, [IdMatch(MATCH_ANY)])
    bob.send(payload, destination=None, filter=Filter(0, bytes(64)))
    with receive(alice) as message:
        assert message.payload == payload


def test_messages_are_peeked_at_dropped_and_taken_by_priority(
    world: Served, alice: Connection, bob: Connection
) -> None:
    for text, priority in ((b"first", 5), (b"second", -5), (b"third", 0)):
        bob.send(text, destination=alice.id, priority=priority)
    for _ in range(2):
        peeked = alice.receive(flags=ReceiveFlag.PEEK)
        assert peeked is not None
        assert peeked.payload == b"first"
    urgent = alice.receive(flags=ReceiveFlag.USE_PRIORITY, priority=0)
    assert urgent is not None
    assert urgent.payload == b"second"
    assert alice.drop()
    assert receive(alice).payload == b"third"
    assert not alice.drop()
    assert alice.receive(flags=ReceiveFlag.DROP) is None
    alice.wait(0)
    alice.list()
    alice.wait(0)
    assert world.pool_use(alice.id) == 0


def test_a_message_that_was_peeked_at_is_received_whole(alice: Connection, bob: Connection) -> None:
    """What was peeked at is freed before it is received, and what is received is not."""
    payload = os.urandom(100_000)
    for _ in range(5):
        bob.send(payload, destination=alice.id)
        peeked = alice.receive(flags=ReceiveFlag.PEEK)
        message = receive(alice)
        bob.send(bytes(100_000), destination=alice.id)
        assert message.payload == payload
        assert peeked is not None
        assert peeked.payload == payload
        message.close()
        receive(alice).close()


def test_lost_messages_are_counted(world: Served, bob: Connection) -> None:
    with world.connect(pool_size=64 * 1024) as small:
        small.match_add(1, [IdMatch(MATCH_ANY)])
        for _ in range(30):
            bob.send(bytes(3000), destination=None, filter=Filter(0, bytes(64)))
        with receive(small) as message:
            lost = message.lost
        assert lost > 0
        received = 1
        while (further := small.receive()) is not None:
            assert further.lost == 0
            received += 1
        assert lost + received == 30
        assert small.lost == lost


@pytest.mark.parametrize("text", ["", "\u20ac", "a" * 300, "no-dots"])
def test_a_name_that_is_none_is_refused(alice: Connection, text: str) -> None:
    with refused(EINVAL):
        alice.send(b"x", destination=text)
    with refused(EINVAL):
        alice.name_acquire(text)


# Calls


def answer(connection: Connection, *replies: bytes) -> None:
    for reply in replies:
        with receive(connection) as request:
            connection.send(reply, destination=request.sender, cookie_reply=request.cookie)


def test_a_call_returns_the_reply(world: Served, alice: Connection, bob: Connection) -> None:
    reply = os.urandom(100_000)
    answering = in_thread(lambda: answer(alice, b"short", reply))
    with bob.call(b"?", destination=alice.id) as message:
        assert (message.payload, message.sender, message.cookie_reply) == (b"short", alice.id, 1)
    with bob.call(b"?", destination=alice.id) as message:
        assert message.parts[0] == reply
    answering.result(DEADLINE_S)
    assert bob.receive() is None
    until(lambda: world.pool_use(bob.id) == 0)


def test_a_reply_brings_descriptors(alice: Connection, bob: Connection) -> None:
    reader, writer = os.pipe()

    def reply() -> None:
        with receive(alice) as request:
            alice.send(b"", destination=request.sender, cookie_reply=request.cookie, fds=[reader])

    answering = in_thread(reply)
    with bob.call(b"?", destination=alice.id) as message:
        os.write(writer, b"x")
        assert os.read(message.fds[0], 1) == b"x"
    answering.result(DEADLINE_S)
    os.close(reader)
    os.close(writer)


def test_a_call_ends_at_its_deadline(alice: Connection, bob: Connection) -> None:
    with refused(ETIMEDOUT):
        bob.call(b"?", destination=alice.id, timeout_ns=time.monotonic_ns() + 1_000_000)


def test_a_call_ends_when_the_other_one_goes(world: Served, bob: Connection) -> None:
    with world.connect() as carol:
        call = in_thread(lambda: bob.call(b"?", destination=carol.id))
        receive(carol).close()
    with refused(EPIPE):
        call.result(DEADLINE_S)


def test_a_call_is_cancelled_by_its_cookie(world: Served, alice: Connection, bob: Connection) -> None:
    call = in_thread(lambda: bob.call(b"?", destination=alice.id, cookie=55))
    until(lambda: world.open_calls(bob.id) == 1)
    bob.cancel(55)
    with refused(ECANCELED):
        call.result(DEADLINE_S)
    with refused(ENOENT):
        bob.cancel(55)


def test_a_call_is_cancelled_by_a_descriptor(world: Served, alice: Connection, bob: Connection) -> None:
    event = os.eventfd(0, os.EFD_CLOEXEC)
    call = in_thread(lambda: bob.call(b"?", destination=alice.id, cancel_fd=event))
    until(lambda: world.open_calls(bob.id) == 1)
    os.eventfd_write(event, 1)
    with refused(ECANCELED):
        call.result(DEADLINE_S)
    os.close(event)


def test_while_one_thread_calls_others_go_on(alice: Connection, bob: Connection) -> None:
    call = in_thread(lambda: bob.call(b"?", destination=alice.id))
    with receive(alice) as request:
        assert [info.id for info in bob.list(ListFlag.UNIQUE)] == [alice.id, bob.id]
        bob.send(b"meanwhile", destination=bob.id)
        assert receive(bob).payload == b"meanwhile"
        alice.send(b"!", destination=request.sender, cookie_reply=request.cookie)
    assert call.result(DEADLINE_S).payload == b"!"


def test_many_threads_call_on_one_connection(alice: Connection, bob: Connection) -> None:
    count, threads = 50, 6

    def call_often(number: int) -> None:
        for index in range(count):
            text = f"{number}.{index}".encode() * (1 + index * 20)
            with bob.call(text, destination=alice.id) as message:
                assert message.payload == text

    def echo() -> None:
        for _ in range(count * threads):
            with receive(alice) as request:
                alice.send(request.payload, destination=request.sender, cookie_reply=request.cookie)

    echoing = in_thread(echo)
    calling = [in_thread(partial(call_often, number)) for number in range(threads)]
    for call in calling:
        call.result(DEADLINE_S)
    echoing.result(DEADLINE_S)


def test_an_asynchronous_request_is_told_what_became_of_it(world: Served, alice: Connection) -> None:
    with world.connect() as carol:
        soon = time.monotonic_ns() + SECOND_NS * 1000
        dead = alice.send(b"?", destination=carol.id, flags=MessageFlag.EXPECT_REPLY, timeout_ns=soon)
    with receive(alice) as message:
        assert message.notification == ReplyDead(dead)
    with world.connect() as carol:
        now = time.monotonic_ns() + 1_000_000
        late = alice.send(b"?", destination=carol.id, flags=MessageFlag.EXPECT_REPLY, timeout_ns=now)
        with receive(alice) as message:
            assert message.notification == ReplyTimeout(late)


# Posting


def test_posted_messages_arrive_in_order(alice: Connection, bob: Connection) -> None:
    for index in range(100):
        bob.post(str(index).encode(), destination=alice.id)
    bob.drain()
    for index in range(100):
        with receive(alice) as message:
            assert message.payload == str(index).encode()


def test_posted_messages_may_have_descriptors_and_be_large(alice: Connection, bob: Connection) -> None:
    reader, writer = os.pipe()
    payload = os.urandom(MIB)
    bob.post(payload, destination=alice.id, fds=[reader])
    with receive(alice) as message:
        assert message.payload == payload
        assert message.fds[0] not in (reader, writer)
    os.close(reader)
    os.close(writer)


def test_a_posted_message_that_is_refused_is_told_of(bob: Connection) -> None:
    told: list[tuple[int, int]] = []
    bob.on_error = lambda cookie, error: told.append((cookie, error.errno))
    bob.post(b"x", destination=999)
    bob.post(b"x", destination=bob.id)
    bob.post(b"x", destination="com.example.Nobody")
    bob.drain()
    assert told == [(1, ENXIO), (3, ESRCH)]


# Names, questions, notifications


def test_names_are_acquired_queued_for_and_released(alice: Connection, bob: Connection) -> None:
    assert alice.name_acquire("com.example.A") == NameFlag.PRIMARY | NameFlag.ACQUIRED
    assert bob.name_acquire("com.example.A", NameFlag.QUEUE) & NameFlag.IN_QUEUE
    listed = {info.id: info.names for info in alice.list()}
    assert listed[alice.id] == {"com.example.A": NameFlag.PRIMARY}
    assert listed[bob.id] == {"com.example.A": NameFlag.IN_QUEUE | NameFlag.QUEUE}
    alice.name_release("com.example.A")
    assert alice.info(name="com.example.A").id == bob.id
    with refused(ESRCH):
        alice.name_release("com.example.B")


def test_changes_are_notified(world: Served, alice: Connection) -> None:
    alice.match_add(1, [NameNotice(ItemType.NAME_ADD, 0, MATCH_ANY, None)])
    alice.match_add(1, [IdNotice(ItemType.ID_REMOVE, MATCH_ANY)])
    with world.connect() as carol:
        carol.name_acquire("com.example.Carol")
    with receive(alice) as first, receive(alice) as second:
        assert first.notification == NameChanged(
            ItemType.NAME_ADD, "com.example.Carol", 0, NameFlag(0), carol.id, NameFlag.PRIMARY
        )
        assert second.notification == IdChanged(ItemType.ID_REMOVE, carol.id, HelloFlag.ACCEPT_FD)


def test_a_connection_is_described(alice: Connection, bob: Connection) -> None:
    told = alice.info(bob.id)
    assert (told.id, told.flags, told.description) == (bob.id, HelloFlag.ACCEPT_FD, "bob")
    assert told.metadata.creds is not None
    assert told.metadata.creds.euid == os.geteuid()
    assert told.metadata.pids is not None
    assert told.metadata.pids.pid == os.getpid()
    assert alice.info(bob.id, attach=AttachFlag.CREDS).metadata.pids is None
    with refused(ENXIO):
        alice.info(999)
    with refused(EINVAL):
        alice.info()


def test_what_is_told_of_us_can_be_changed(alice: Connection, bob: Connection) -> None:
    bob.update(attach_send=int(AttachFlag.PIDS))
    told = alice.info(bob.id).metadata
    assert (told.creds, told.description) == (None, None)
    alice.update(attach_recv=int(AttachFlag.TIMESTAMP | AttachFlag.CONN_DESCRIPTION))


# The end


def test_byebye_wants_everything_received(alice: Connection, bob: Connection) -> None:
    bob.send(b"x", destination=alice.id)
    with refused(EBUSY):
        alice.byebye()
    receive(alice).close()
    alice.byebye()
    with refused(ESHUTDOWN):
        alice.list()
    assert alice.wait(0)


def test_iterating_ends_when_the_connection_is_closed(alice: Connection, bob: Connection) -> None:
    seen: list[bytes] = []

    def read_all() -> None:
        for message in alice:
            with message:
                seen.append(message.payload)

    reading = in_thread(read_all)
    bob.send(b"one", destination=alice.id)
    bob.send(b"two", destination=alice.id)
    until(lambda: len(seen) == 2)
    alice.close()
    reading.result(DEADLINE_S)
    assert seen == [b"one", b"two"]


def test_when_the_server_goes_everybody_is_told(world: Served, alice: Connection, bob: Connection) -> None:
    call = in_thread(lambda: bob.call(b"?", destination=alice.id))
    until(lambda: world.open_calls(bob.id) == 1)
    receive(alice).close()
    waiting = in_thread(alice.wait)
    world.stop()
    with refused(ECONNRESET, EPIPE, ESHUTDOWN):
        call.result(DEADLINE_S)  # whichever of the two goes first
    waiting.result(DEADLINE_S)
    with refused(ECONNRESET):
        alice.receive()
    with refused(ECONNRESET):
        bob.send(b"x", destination=alice.id)


def test_messages_may_be_read_and_closed_after_the_connection(alice: Connection, bob: Connection) -> None:
    payload = os.urandom(100_000)
    bob.send(payload, destination=alice.id)
    message = receive(alice)
    alice.close()
    assert message.payload == payload
    message.close()


def test_waiting_ends_at_its_deadline(alice: Connection) -> None:
    assert not alice.wait(0)
    assert not alice.wait(0.001)
    assert not alice.wait(-5)


def test_nothing_stays_open_whatever_was_received(world: Served, bob: Connection) -> None:
    before = world.do(open_fds)
    with world.connect() as carol:
        ends = os.pipe()
        bob.send([bytes(MIB), b"x"], destination=carol.id, fds=ends)
        bob.send(b"x", destination=carol.id, fds=ends)
        bob.send(b"never read", destination=carol.id, fds=ends)
        for fd in ends:
            os.close(fd)
        receive(carol).close()
        with receive(carol) as message:
            for fd in message.take_fds():
                os.close(fd)
    until(lambda: world.do(lambda: carol.id not in world.domain.buses[BUS].connections))
    assert world.do(open_fds) == before
