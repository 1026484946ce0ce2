"""What is wrong with a message: why SEND refuses it before it looks for a receiver."""

from __future__ import annotations

from struct import pack

import pytest
from support.kdbus import Client, ItemType, Msg, World, layout
from support.kdbus.layout import (
    DST_BROADCAST,
    F_SEAL_ALL,
    F_SEAL_GROW,
    F_SEAL_SEAL,
    F_SEAL_SHRINK,
    F_SEAL_WRITE,
    MAX_COMMAND_SIZE,
    MAX_VEC_PAYLOAD,
    MSG_SIZE,
    NEGOTIATE,
    SYNC_REPLY,
    bloom_filter,
    fds,
    memfd,
    string,
    vec_at,
)

from .errno_provoking import provokes

KERNEL = 0xFFFFFFFF81000000
FREE_NAME = string(ItemType.DST_NAME, "nobody.has.this")
BAD_NAMES = ["", "foo", "foo..bar", "foo.*", "1foo.bar", "foo.1bar", ":1.5", "f." + "o" * 254, b"foo.\xe4"]


@pytest.fixture
def client(world: World) -> Client:
    """Somebody who sends, to nobody but itself."""
    return world.connect()


def send_items(client: Client, *items: bytes) -> None:
    client.send_items(*items, dst=client)


# The command and the bytes of the message


@provokes("SEND", "EINVAL", "the payload of CANCEL_FD has the wrong form")
@pytest.mark.parametrize("size", [0, 8])
def test_a_canceller_of_a_wrong_form(client: Client, size: int) -> None:
    client.send_items(dst=client, command_items=[layout.item(ItemType.CANCEL_FD, bytes(size))])


@provokes("SEND", "EFAULT", "msg_address is 0, no multiple of 8, or not all of the message can be read")
@pytest.mark.parametrize("where", ["null", "odd", "nowhere", "kernel", "top", "half", "header"])
def test_a_message_that_is_not_there(client: Client, where: str) -> None:
    memory = client.task.memory
    message = client.build_message(client.vec(b"payload."), dst=client)
    addresses = {
        "null": 0,
        "odd": memory.allocate(b"\0\0\0\0" + message) + 4,
        "nowhere": 4096,
        "kernel": KERNEL,
        "top": 2**64 - 8,
        "half": memory.allocate(message[:-8]),
        "header": memory.allocate(message[:8]),
    }
    client.command(layout.SEND, msg_address=addresses[where])


@provokes("SEND", "EINVAL", "the message is smaller than its header")
@pytest.mark.parametrize("size", [0, 8, MSG_SIZE - 8, MSG_SIZE - 1])
def test_a_message_smaller_than_its_header(client: Client, size: int) -> None:
    client.send_message(client.build_message(dst=client, size=size))


@provokes("SEND", "EMSGSIZE", "the message is larger than 32 KiB")
@pytest.mark.parametrize("size", [MAX_COMMAND_SIZE + 1, 2**64 - 1])
def test_a_message_larger_than_32_kib(client: Client, size: int) -> None:
    client.send_message(client.build_message(bytes(MAX_COMMAND_SIZE), dst=client, size=size))


@provokes("SEND", "EINVAL", "unknown flags in the message")
@pytest.mark.parametrize("flag", [1 << 3, 1 << 31, 1 << 62])
def test_a_message_with_an_unknown_flag(client: Client, flag: int) -> None:
    client.send_items(dst=client, flags=flag)


@provokes("SEND", "EINVAL", "an item of the message ends before its header does, or behind the message")
@pytest.mark.parametrize("size", [0, 15, 17, 2**64 - 1])
def test_a_message_with_an_item_of_a_wrong_size(client: Client, size: int) -> None:
    send_items(client, pack("=2Q", size, ItemType.FDS))


@provokes("SEND", "EINVAL", "an item in the message that messages do not take")
@pytest.mark.parametrize(
    "item",
    [
        layout.item(0),
        layout.item(99),
        layout.item(ItemType.PAYLOAD_OFF, pack("=2Q", 8, 64)),
        layout.cancel_fd(0),
        layout.name("foo.bar"),
        layout.creds(*[1000] * 8),
        layout.item(ItemType.REPLY_DEAD),
    ],
    ids=["0", "99", "PAYLOAD_OFF", "CANCEL_FD", "NAME", "CREDS", "REPLY_DEAD"],
)
def test_a_message_with_an_item_of_a_wrong_type(client: Client, item: bytes) -> None:
    send_items(client, item)


@provokes("SEND", "EINVAL", "the payload of an item in the message has the wrong form")
@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (ItemType.NEGOTIATE, bytes(4)),
        (ItemType.PAYLOAD_VEC, pack("=Q", 8)),
        (ItemType.PAYLOAD_VEC, pack("=3Q", 8, 0, 0)),
        (ItemType.PAYLOAD_MEMFD, pack("=2Q", 0, 8)),
        (ItemType.PAYLOAD_MEMFD, pack("=4Q", 0, 8, 0, 0)),
        (ItemType.FDS, bytes(6)),
        (ItemType.BLOOM_FILTER, bytes(7)),
        (ItemType.DST_NAME, b""),
        (ItemType.DST_NAME, b"foo.bar"),
        (ItemType.DST_NAME, b"foo\0bar\0"),
    ],
)
def test_a_message_with_an_item_of_a_wrong_form(client: Client, kind: int, payload: bytes) -> None:
    send_items(client, layout.item(kind, payload))


@provokes("SEND", "EINVAL", "PAYLOAD_VEC or PAYLOAD_MEMFD of size 0")
@pytest.mark.parametrize("kind", ["vec", "zeros", "memfd"])
def test_an_empty_payload(client: Client, kind: str) -> None:
    items = {"vec": client.vec(b""), "zeros": vec_at(0, 0), "memfd": memfd(client.task.open_memfd(), 0)}
    send_items(client, items[kind])


@provokes("SEND", "EBADF", "PAYLOAD_MEMFD with a negative descriptor")
@pytest.mark.parametrize("fd", [-1, -(2**31)])
def test_a_negative_memfd(client: Client, fd: int) -> None:
    send_items(client, memfd(fd, 8))


@provokes("SEND", "EINVAL", "a second FDS, BLOOM_FILTER or DST_NAME")
@pytest.mark.parametrize(
    "item", [fds([]), bloom_filter(), FREE_NAME], ids=["FDS", "BLOOM_FILTER", "DST_NAME"]
)
def test_a_message_with_an_item_twice(client: Client, item: bytes) -> None:
    flags = Msg.SIGNAL if item == bloom_filter() else 0
    client.send_items(item, item, dst=client, flags=flags)


@provokes("SEND", "EINVAL", "bytes behind the last item of the message")
@pytest.mark.parametrize("count", [1, 8, 15])
def test_something_behind_the_items_of_a_message(client: Client, count: int) -> None:
    send_items(client, fds([]), bytes(count))


@provokes("SEND", "EINVAL", "NEGOTIATE in the flags of the message, but not in those of the command")
def test_a_message_that_negotiates_alone(client: Client) -> None:
    client.send_items(dst=client, flags=NEGOTIATE)


# What cancels


@provokes("SEND", "EBADF", "CANCEL_FD is not open")
@pytest.mark.parametrize("flags", [0, SYNC_REPLY])
@pytest.mark.parametrize("fd", [-1, 999])
def test_a_closed_canceller(client: Client, flags: int, fd: int) -> None:
    client.send_items(
        dst=client,
        flags=Msg.EXPECT_REPLY,
        timeout_ms=100,
        command_items=[layout.cancel_fd(fd)],
        command_flags=flags,
    )


@provokes("SEND", "EINVAL", "CANCEL_FD cannot be polled")
def test_a_canceller_that_cannot_be_polled(client: Client) -> None:
    client.call(client, cancel_fd=client.task.open_null())


# The header


@provokes("SEND", "EINVAL", "src_id is neither 0 nor the sender's")
@pytest.mark.parametrize("src", [9999, 2**64 - 1])
def test_the_id_of_somebody_else(client: Client, src: int) -> None:
    client.send_items(dst=client, src=src)


@provokes("SEND", "EINVAL", "payload_type is 0, that of notifications")
def test_the_payload_of_a_notification(client: Client) -> None:
    client.send_items(dst=client, payload_type=0)


@provokes("SEND", "EBADMSG", "a broadcast without SIGNAL")
def test_a_broadcast_that_is_no_signal(client: Client) -> None:
    client.send_items(dst=DST_BROADCAST)


@provokes("SEND", "ENOTUNIQ", "a broadcast with timeout_ns or cookie_reply")
@pytest.mark.parametrize("flags", [0, Msg.EXPECT_REPLY])
def test_a_broadcast_that_asks_or_answers(client: Client, flags: int) -> None:
    client.send_items(bloom_filter(), dst=DST_BROADCAST, flags=Msg.SIGNAL | flags, cookie_reply=7)


@provokes("SEND", "EINVAL", "EXPECT_REPLY without timeout_ns")
@pytest.mark.parametrize("flags", [0, SYNC_REPLY])
def test_a_request_without_a_deadline(client: Client, flags: int) -> None:
    client.send_items(dst=client, flags=Msg.EXPECT_REPLY, command_flags=flags)


@provokes("SEND", "ENOTUNIQ", "EXPECT_REPLY and SIGNAL together")
def test_a_signal_that_asks(client: Client) -> None:
    client.send_items(bloom_filter(), dst=client, flags=Msg.EXPECT_REPLY | Msg.SIGNAL, timeout_ms=100)


@provokes("SEND", "EINVAL", "SYNC_REPLY without EXPECT_REPLY")
def test_a_call_that_does_not_ask(client: Client) -> None:
    client.send_items(dst=client, command_flags=SYNC_REPLY)


@provokes("SEND", "EINVAL", "SIGNAL with cookie_reply")
def test_a_signal_that_answers(client: Client) -> None:
    client.send_items(bloom_filter(), dst=client, flags=Msg.SIGNAL, cookie_reply=7)


# The items


@provokes("SEND", "EMSGSIZE", "all PAYLOAD_VEC together are larger than 2 MiB")
@pytest.mark.parametrize(
    "sizes", [(MAX_VEC_PAYLOAD + 1,), (MAX_VEC_PAYLOAD, 1), (2**63, 2**63), (2**64 - 1,), (8, 2**64 - 8)]
)
def test_more_than_2_mib(client: Client, sizes: tuple[int, ...]) -> None:
    send_items(client, *(vec_at(0, size) for size in sizes))


@provokes("SEND", "EFAULT", "PAYLOAD_VEC where no process has memory")
@pytest.mark.parametrize("address", [KERNEL, 2**63 - 7, 2**63, 2**64 - 8])
def test_payload_above_all_memory(client: Client, address: int) -> None:
    # Seen before what comes later in the message, other than memory that just cannot be read.
    send_items(client, vec_at(address, 8), string(ItemType.DST_NAME, "foo..bar"))


@provokes("SEND", "EMSGSIZE", "start and size of PAYLOAD_MEMFD add up to more than 64 bits")
@pytest.mark.parametrize(("start", "size"), [(1, 2**64 - 1), (2**64 - 8, 8), (2**63, 2**63)])
def test_a_memfd_beyond_64_bits(client: Client, start: int, size: int) -> None:
    send_items(client, memfd(client.task.open_memfd(), size, start))


@provokes("SEND", "E2BIG", "more than 16 PAYLOAD_MEMFD")
def test_17_memfds(client: Client) -> None:
    send_items(client, *[memfd(client.task.open_memfd(), 8)] * 17)


@provokes("SEND", "EMFILE", "FDS with more than 16 descriptors")
@pytest.mark.parametrize("count", [17, 253])
def test_17_descriptors(client: Client, count: int) -> None:
    send_items(client, fds([client.task.open_null()] * count))


@provokes("SEND", "EFAULT", "the bits of BLOOM_FILTER are no multiple of 8 bytes")
@pytest.mark.parametrize("size", [1, 60, 68])
def test_a_filter_of_half_a_word(client: Client, size: int) -> None:
    client.signal(bits=bytes(size))


@provokes("SEND", "EDOM", "BLOOM_FILTER is not of the bus' filter size")
@pytest.mark.parametrize("size", [0, 8, 56, 72, 128])
def test_a_filter_of_another_size(client: Client, size: int) -> None:
    client.send_items(bloom_filter(bytes(size)), dst=DST_BROADCAST, flags=Msg.SIGNAL)


@provokes("SEND", "EINVAL", "DST_NAME is not a well-known name")
@pytest.mark.parametrize("name", BAD_NAMES)
def test_to_no_name(client: Client, name: str | bytes) -> None:
    client.send_small(name=name)


@provokes("SEND", "EBADMSG", "DST_NAME in a broadcast")
def test_a_broadcast_to_a_name(client: Client) -> None:
    client.signal(FREE_NAME)


# The message as a whole


@provokes("SEND", "EBADMSG", "SIGNAL without BLOOM_FILTER, or BLOOM_FILTER without SIGNAL")
@pytest.mark.parametrize("what", ["broadcast", "signal", "filter"])
def test_a_signal_or_a_filter_alone(client: Client, what: str) -> None:
    items = [bloom_filter()] if what == "filter" else []
    flags = 0 if what == "filter" else Msg.SIGNAL
    client.send_items(*items, dst=DST_BROADCAST if what == "broadcast" else client, flags=flags)


@provokes("SEND", "EDESTADDRREQ", "dst_id is 0 and there is no DST_NAME")
@pytest.mark.parametrize("flags", [0, Msg.SIGNAL])
def test_to_nobody(client: Client, flags: int) -> None:
    client.send_items(*[bloom_filter()] * bool(flags), flags=flags)


@provokes("SEND", "ENOTUNIQ", "FDS in a broadcast")
def test_a_broadcast_with_descriptors(client: Client) -> None:
    client.signal(fds([client.task.open_null()]))


# Descriptors and memory


@provokes("SEND", "EBADF", "a descriptor in FDS is negative or not open")
@pytest.mark.parametrize("fd", [-1, -(2**31), 999])
def test_a_closed_descriptor(client: Client, fd: int) -> None:
    send_items(client, fds([client.task.open_null(), fd]))


@provokes("SEND", "EOPNOTSUPP", "a descriptor in FDS is a handle of the broker or a unix socket")
@pytest.mark.parametrize("kind", ["connection", "control", "endpoint", "socket"])
def test_a_descriptor_that_could_carry_others(world: World, client: Client, kind: str) -> None:
    match kind:
        case "connection":
            fd = client.fd
        case "control":
            fd = world.open_control(client.task).fd
        case "endpoint":
            fd = world.open(task=client.task).fd
        case _:
            fd = client.task.open_socket()
    send_items(client, fds([client.task.open_path(), fd]))


@provokes("SEND", "EBADF", "the descriptor in PAYLOAD_MEMFD is not open")
def test_a_closed_memfd(client: Client) -> None:
    send_items(client, memfd(999, 8))


@provokes("SEND", "EMEDIUMTYPE", "the descriptor in PAYLOAD_MEMFD is not shared memory")
@pytest.mark.parametrize("kind", ["null", "path", "socket", "eventfd"])
def test_a_memfd_that_is_none(client: Client, kind: str) -> None:
    task = client.task
    open_file = {
        "null": task.open_null,
        "path": task.open_path,
        "socket": task.open_socket,
        "eventfd": task.open_eventfd,
    }[kind]
    send_items(client, memfd(open_file(), 8))


@provokes("SEND", "ETXTBSY", "the shared memory in PAYLOAD_MEMFD is not sealed against every change")
@pytest.mark.parametrize("missing", [F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_ALL])
def test_a_memfd_that_can_change(client: Client, missing: int) -> None:
    send_items(client, memfd(client.task.open_memfd(seals=F_SEAL_ALL & ~missing), 8))


@provokes("SEND", "EFAULT", "PAYLOAD_MEMFD reaches behind the end of its file")
@pytest.mark.parametrize(("start", "size"), [(0, 9), (8, 1), (4, 5), (0, 2**64 - 1)])
def test_a_memfd_that_is_too_short(client: Client, start: int, size: int) -> None:
    send_items(client, memfd(client.task.open_memfd(b"contents"), size, start))


@provokes("SEND", "EFAULT", "PAYLOAD_VEC cannot be read")
@pytest.mark.parametrize(("shift", "size"), [(-(2**20), 8), (1, 8), (0, 9), (-1, 8)])
def test_payload_that_cannot_be_read(client: Client, shift: int, size: int) -> None:
    address = client.task.memory.allocate(b"contents")
    send_items(client, vec_at(address + shift, size))
