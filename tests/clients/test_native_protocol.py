"""What docs/native-protocol.md says is so: checked with a client that has been written from it alone.

Every test runs on `kdbusd` and on `busproxyd --native`, which a native program cannot tell apart.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from support.native_buses import NATIVE_BUSES, NativeBus
from support.native_wire import (
    ANY,
    BYEBYE,
    CARRIED,
    EVERYBODY,
    FREE,
    HELLO,
    INSPECT,
    MSG_CANCEL,
    QUIET,
    RECV,
    SEND,
    Refused,
    Wire,
    command,
    connected,
    item,
    text_item,
)

MINUTE_NS = 60 * 10**9
EXPECT_REPLY, SIGNAL = 1, 4


@pytest.fixture(scope="module", params=NATIVE_BUSES)
def bus(request: pytest.FixtureRequest) -> Iterator[NativeBus]:
    with NATIVE_BUSES[request.param]() as running:
        yield running


def deadline() -> int:
    return time.monotonic_ns() + MINUTE_NS


def filter_item() -> bytes:
    return item(8, struct.pack("=Q", 0) + b"\xff" * 64)


def test_a_hello_has_an_id_a_pool_and_the_parameters_of_the_bus(bus: NativeBus) -> None:
    with connected(bus.node) as one, connected(bus.node) as other:
        assert 0 < one.id < other.id
        assert one.bloom == (64, 8)


def test_a_message_arrives_with_its_true_sender(bus: NativeBus) -> None:
    with connected(bus.node) as one, connected(bus.node) as other:
        one.send(b"hello", to=other.id, cookie=7)
        letter = other.wait()
    assert (letter.sender, letter.destination, letter.cookie, letter.payload) == (
        one.id,
        other.id,
        7,
        b"hello",
    )


def test_descriptor_1_is_readable_exactly_while_there_is_something(bus: NativeBus) -> None:
    with connected(bus.node) as one, connected(bus.node) as other:
        assert not other.is_readable()
        one.send(b"a", to=other.id)
        one.send(b"b", to=other.id)
        assert other.wait().payload == b"a"
        assert other.is_readable()
        assert other.wait().payload == b"b"
        assert not other.is_readable()
        with pytest.raises(Refused) as refused:
            other.receive()
    assert refused.value.errno == errno.EAGAIN


def test_a_pool_cannot_be_mapped_for_writing(bus: NativeBus) -> None:
    with connected(bus.node) as wire:
        with pytest.raises(PermissionError):
            mmap.mmap(wire.pool_fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        for change in (lambda: os.pwrite(wire.pool_fd, b"x", 0), lambda: os.ftruncate(wire.pool_fd, 1 << 25)):
            with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument|not permitted"):
                change()


def test_a_pool_cannot_be_written_through_another_open_file_either(bus: NativeBus) -> None:
    with connected(bus.node) as wire, contextlib.ExitStack() as stack:
        try:
            fd = os.open(f"/proc/self/fd/{wire.pool_fd}", os.O_RDWR)
        except OSError:
            return  # so it cannot
        stack.callback(os.close, fd)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)


def test_a_synchronous_call_is_answered_with_the_reply(bus: NativeBus) -> None:
    with connected(bus.node) as one, connected(bus.node) as other:
        body = one.build_send(
            b"?", to=other.id, flags=EXPECT_REPLY, cookie=3, timeout_or_reply=deadline(), sync=True
        )
        id = one.post(SEND, body)
        assert other.wait().cookie == 3
        other.send(b"!", to=one.id, cookie=9, timeout_or_reply=3)
        reply = one.read_letter(one.expect(id), 32)
        assert (reply.payload, reply.reply_to, reply.sender) == (b"!", 3, other.id)


def test_other_requests_are_answered_while_a_synchronous_call_waits(bus: NativeBus) -> None:
    with connected(bus.node) as one, connected(bus.node) as other:
        body = one.build_send(
            to=other.id, flags=EXPECT_REPLY, cookie=3, timeout_or_reply=deadline(), sync=True
        )
        id = one.post(SEND, body)
        assert one.acquire("org.example.Meanwhile") & 32
        one.ask(MSG_CANCEL, command(0, struct.pack("=Q", 3)))
        with pytest.raises(Refused) as refused:
            one.expect(id)
    assert refused.value.errno == errno.ECANCELED


def test_a_call_ends_when_the_other_one_goes(bus: NativeBus) -> None:
    with connected(bus.node) as one:
        with connected(bus.node) as other:
            body = one.build_send(
                to=other.id, flags=EXPECT_REPLY, cookie=3, timeout_or_reply=deadline(), sync=True
            )
            id = one.post(SEND, body)
            other.wait()
        with pytest.raises(Refused) as refused:
            one.expect(id)
    assert refused.value.errno == errno.EPIPE


def test_an_asynchronous_request_ends_with_a_notification(bus: NativeBus) -> None:
    with connected(bus.node) as one:
        with connected(bus.node) as other:
            one.send(to=other.id, flags=EXPECT_REPLY, cookie=3, timeout_or_reply=deadline())
            other.wait()
        letter = one.wait()
    assert (letter.sender, letter.payload_type, letter.reply_to) == (0, 0, 3)
    assert letter.find(0x8006) == b""


def test_a_deadline_ends_a_call(bus: NativeBus) -> None:
    with connected(bus.node) as one, connected(bus.node) as other:
        soon = time.monotonic_ns() + 10**7
        body = one.build_send(to=other.id, flags=EXPECT_REPLY, cookie=3, timeout_or_reply=soon, sync=True)
        with pytest.raises(Refused) as refused:
            one.ask(SEND, body)
    assert refused.value.errno == errno.ETIMEDOUT


def test_a_file_that_becomes_readable_cancels_a_call(bus: NativeBus) -> None:
    reader, writer = os.pipe()
    with connected(bus.node) as one, connected(bus.node) as other:
        message = one.build_send(
            to=other.id, flags=EXPECT_REPLY, cookie=3, timeout_or_reply=deadline(), sync=True
        )[56:]
        cancel = item(6, struct.pack("=i", 0))
        body = command(1, struct.pack("=4Q", 56 + len(cancel), 0, 0, 0), cancel) + message
        id = one.post(SEND, body, [reader])
        other.wait()
        os.write(writer, b"x")
        with pytest.raises(Refused) as refused:
            one.expect(id)
    os.close(reader)
    os.close(writer)
    assert refused.value.errno == errno.ECANCELED


def test_what_is_carried_continues_the_body(bus: NativeBus) -> None:
    payload = os.urandom(1 << 20)
    with connected(bus.node) as one, connected(bus.node) as other:
        body = one.build_send(payload, to=other.id)
        one.expect(one.post_carried(SEND, body[: -len(payload)], payload))
        assert other.wait().payload == payload


def test_a_payload_of_no_address_is_zeros(bus: NativeBus) -> None:
    zeros = item(2, struct.pack("=QQ", 100, 0))
    with connected(bus.node) as one, connected(bus.node) as other:
        one.send(b"", zeros, to=other.id)
        assert other.wait().payload == bytes(100)


def sealed_memory(data: bytes, seals: int = 15) -> int:
    import fcntl

    fd = os.memfd_create("payload", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_sealed_memory_is_passed_on_and_other_memory_is_not(bus: NativeBus) -> None:
    payload = os.urandom(3 << 20)
    memory = item(4, struct.pack("=QQiI", 0, len(payload), 0, 0))
    with connected(bus.node) as one, connected(bus.node) as other:
        sealed, unsealed = sealed_memory(payload), sealed_memory(payload, 0)
        try:
            one.send(b"", memory, to=other.id, fds=[sealed])
            assert other.wait().payload == payload
            with pytest.raises(Refused) as refused:
                one.send(b"", memory, to=other.id, fds=[unsealed])
        finally:
            os.close(sealed)
            os.close(unsealed)
    assert refused.value.errno == errno.ETXTBSY


def test_descriptors_are_handed_over(bus: NativeBus) -> None:
    reader, writer = os.pipe()
    with connected(bus.node) as one, connected(bus.node) as other:
        one.send(b"fd", item(5, struct.pack("=i", 0)), to=other.id, fds=[writer])
        os.close(writer)
        (received,) = other.wait().fds
        os.write(received, b"through")
        os.close(received)
    assert os.read(reader, 100) == b"through"
    os.close(reader)


def test_sockets_are_not_handed_over(bus: NativeBus) -> None:
    ends = socket.socketpair()
    with connected(bus.node) as one, connected(bus.node) as other, pytest.raises(Refused) as refused:
        one.send(b"", item(5, struct.pack("=i", 0)), to=other.id, fds=[ends[0].fileno()])
    for end in ends:
        end.close()
    assert refused.value.errno == errno.EOPNOTSUPP


def test_a_number_without_a_descriptor_is_refused(bus: NativeBus) -> None:
    with connected(bus.node) as one, connected(bus.node) as other, pytest.raises(Refused) as refused:
        one.send(b"", item(5, struct.pack("=i", 0)), to=other.id)
    assert refused.value.errno == errno.EBADF


def test_a_broadcast_reaches_whoever_has_a_match_for_it(bus: NativeBus) -> None:
    with connected(bus.node) as one, connected(bus.node) as other, connected(bus.node) as third:
        other.match(1, item(9, bytes([1]) + bytes(63)))
        third.match(1, item(14, struct.pack("=Q", ANY - 1)))  # nobody has this id
        one.send(b"news", filter_item(), to=EVERYBODY, flags=SIGNAL)
        assert other.wait().payload == b"news"
        assert not third.is_readable()


def test_notifications_tell_of_names_and_connections(bus: NativeBus) -> None:
    with connected(bus.node) as watcher:
        watcher.match(1, item(0x8000, struct.pack("=4Q", ANY, 0, ANY, 0)))
        watcher.match(2, item(0x8004, struct.pack("=2Q", ANY, 0)))
        with connected(bus.node) as other:
            other.acquire("org.example.Noted")
        added = watcher.wait()
        gone = watcher.wait()
    content = added.find(0x8000)
    assert content is not None
    assert struct.unpack_from("=4Q", content)[2] == other.id
    assert content[32:] == b"org.example.Noted\0"
    assert gone.find(0x8004) == struct.pack("=2Q", other.id, 1)


def test_metadata_goes_along_where_granted_and_asked_for(bus: NativeBus) -> None:
    with (
        connected(bus.node, text_item(0x100D, "asker"), attach_recv=0x3FFF) as asker,
        connected(bus.node, attach_send=0) as silent,
        connected(bus.node, text_item(0x100D, "open")) as frank,
    ):
        frank.send(b"", to=asker.id)
        silent.send(b"", to=asker.id)
        told, withheld = asker.wait(), asker.wait()
    pids, creds = told.find(0x1002), told.find(0x1001)
    assert pids is not None
    assert creds is not None
    assert struct.unpack_from("=Q", pids)[0] == os.getpid()
    assert struct.unpack("=8Q", creds) == (*os.getresuid(), os.geteuid(), *os.getresgid(), os.getegid())
    assert told.find(0x100D) == b"open\0"
    assert withheld.items == []


def test_info_and_list_tell_who_is_there(bus: NativeBus) -> None:
    with connected(bus.node) as one, connected(bus.node) as other:
        other.acquire("org.example.Listed")
        info = dict(one.info(other.id))
        listed = one.list(2)
    assert struct.unpack_from("=Q", info[0x1002])[0] == os.getpid()
    assert [(id, content[8:]) for id, _, items in listed for _, content in items] == [
        (other.id, b"org.example.Listed\0")
    ]


def test_a_connection_that_says_goodbye_is_told_so_from_then_on(bus: NativeBus) -> None:
    with connected(bus.node) as wire:
        wire.ask(BYEBYE, command(0, b""))
        assert wire.is_readable()
        with pytest.raises(Refused) as refused:
            wire.receive()
    assert refused.value.errno == errno.ESHUTDOWN


def test_a_custom_endpoint_lives_as_long_as_its_handle_and_has_its_policy(bus: NativeBus) -> None:
    name = f"{os.getuid()}-narrow"
    path = bus.node.parent / f"ep.{name}"
    with connected(bus.node) as service, Wire(bus.node) as maker:
        service.acquire("org.example.Seen")
        service.acquire("org.example.Hidden")
        maker.make_endpoint(name)
        maker.set_policy({"org.example.Seen": [(3, 0, 0)]})
        with connected(path) as guest:
            names = {content[8:-1] for _, _, items in guest.list(2) for _, content in items}
            assert names == {b"org.example.Seen"}
            maker.close()
            guest.wait_readable()
            assert not path.exists()
            with pytest.raises(Refused) as refused:
                guest.list(2)
    assert refused.value.errno == errno.ESHUTDOWN


def test_a_bus_lives_as_long_as_the_handle_that_made_it(bus: NativeBus) -> None:
    name = f"{os.getuid()}-made"
    node = bus.directory / name / "bus"
    with Wire(bus.directory / "control") as maker:
        maker.make_bus(name, access=0)
        assert node.stat().st_mode & 0o777 == 0o600
        with connected(node) as one, connected(node) as other:
            one.send(b"here", to=other.id)
            assert other.wait().payload == b"here"
            maker.close()
            one.wait_readable()
            assert not node.exists()
            with pytest.raises(Refused) as refused:
                one.list()
    assert refused.value.errno == errno.ESHUTDOWN


def test_inspect_gives_json_to_the_owner(bus: NativeBus) -> None:
    import json

    with Wire(bus.directory / "control") as wire:
        (memory,) = wire.ask(INSPECT).fds
        state = json.loads(os.pread(memory, 1 << 20, 0))
        os.close(memory)
    assert isinstance(state, dict)


# What is wrong


def test_an_unknown_command_is_refused_and_the_handle_lives(bus: NativeBus) -> None:
    with Wire(bus.node) as wire:
        with pytest.raises(Refused) as refused:
            wire.ask(0xDEADBEEF)
        assert refused.value.errno == errno.ENOTTY
        wire.hello()


def test_unknown_flags_of_a_packet_are_refused(bus: NativeBus) -> None:
    with Wire(bus.node) as wire:
        id = wire.post(HELLO, b"", flags=1 << 40)
        with pytest.raises(Refused) as refused:
            wire.expect(id)
    assert refused.value.errno == errno.EINVAL


def test_carrying_nothing_is_refused(bus: NativeBus) -> None:
    with Wire(bus.node) as wire:
        id = wire.post(HELLO, b"", flags=CARRIED)
        with pytest.raises(Refused) as refused:
            wire.expect(id)
    assert refused.value.errno == errno.EBADF


def test_carrying_what_is_no_memory_is_refused(bus: NativeBus) -> None:
    reader, writer = os.pipe()
    with Wire(bus.node) as wire:
        id = wire.post(HELLO, b"", [reader], flags=CARRIED)
        with pytest.raises(Refused) as refused:
            wire.expect(id)
    os.close(reader)
    os.close(writer)
    assert refused.value.errno == errno.EMEDIUMTYPE


def test_a_packet_that_is_none_costs_the_handle_and_nobody_else(bus: NativeBus) -> None:
    with connected(bus.node) as other, Wire(bus.node) as wire:
        wire.socket.send(b"short")
        with pytest.raises(Refused) as refused:
            wire.take(1)
        assert other.list()
    assert refused.value.errno == errno.EPROTO


def test_an_address_outside_of_the_body_is_refused(bus: NativeBus) -> None:
    with connected(bus.node) as one:
        outside = item(2, struct.pack("=QQ", 100, 1 << 40))
        with pytest.raises(Refused) as refused:
            one.send(b"", outside, to=one.id)
    assert refused.value.errno == errno.EFAULT


def test_quiet_requests_are_answered_only_when_they_are_refused(bus: NativeBus) -> None:
    with connected(bus.node) as one, connected(bus.node) as other:
        for number in range(5):
            one.post(SEND, one.build_send(b"%d" % number, to=other.id), flags=QUIET)
        bad = one.post(SEND, one.build_send(b"", to=EVERYBODY - 1), flags=QUIET)
        good = one.post(RECV, command(0, struct.pack("=q4Q", 0, 0, 0, 0, 0)))
        assert one.take(bad).errno == errno.ENXIO
        assert one.take(good).errno == errno.EAGAIN
        assert [other.wait().payload for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_slice_can_be_freed_with_any_request(bus: NativeBus) -> None:
    again = command(0, struct.pack("=q4Q", 0, 0, 0, 0, 0))
    with connected(bus.node) as one, connected(bus.node) as other:
        one.send(b"x", to=other.id)
        offset = other.ask(RECV, again).number(40)
        assert other.take(other.post(RECV, again, freed=offset)).errno == errno.EAGAIN
        with pytest.raises(Refused) as refused:
            other.ask(FREE, command(0, struct.pack("=Q", offset)))
        assert refused.value.errno == errno.ENXIO
        assert other.take(other.post(RECV, again, freed=offset)).errno == errno.EAGAIN  # nobody is told


def test_what_was_freed_cannot_be_freed_again(bus: NativeBus) -> None:
    with connected(bus.node) as one, connected(bus.node) as other:
        one.send(b"x", to=other.id)
        answer = other.ask(RECV, command(0, struct.pack("=q4Q", 0, 0, 0, 0, 0)))
        other.read_letter(answer, 40)
        with pytest.raises(Refused) as refused:
            other.ask(FREE, command(0, struct.pack("=Q", answer.number(40))))
    assert refused.value.errno == errno.ENXIO
