"""SEND without waiting: what arrives, what the receiver refuses, what is written back, negotiation."""

from __future__ import annotations

from errno import (
    EADDRNOTAVAIL,
    EBADF,
    EBADSLT,
    ECOMM,
    EDESTADDRREQ,
    EFAULT,
    EINVAL,
    EMLINK,
    EMSGSIZE,
    ENOBUFS,
    ENXIO,
    EPERM,
    EREMCHG,
    ESRCH,
)
from typing import TypedDict

import pytest
from caller_world import OpenFile, sealed_memory
from handle_world import (
    ACTIVATOR,
    BLOOM_SIZE,
    NAME,
    POOL_SIZE,
    STRANGER,
    Client,
    HandleWorld,
    bloom_filter,
    build_command,
    build_message,
    cancel_item,
    fds_item,
    memfd_item,
    name_item,
    negotiate_item,
    refused,
    vec_item,
)

from kdbus_core.abi import (
    DST_BROADCAST,
    MAX_COMMAND_SIZE,
    MAX_OUTSTANDING_REQUESTS,
    MAX_VEC_PAYLOAD,
    NEGOTIATE,
    Command,
    ItemType,
    MessageFlag,
    SendFlag,
)
from kdbus_core.items import NUMBER, VEC, Item

EXPECT_REPLY = int(MessageFlag.EXPECT_REPLY)
NO_AUTO_START = int(MessageFlag.NO_AUTO_START)
SIGNAL = int(MessageFlag.SIGNAL)
SYNC_REPLY = int(SendFlag.SYNC_REPLY)
LATER = 1 << 60
SELF = -1
"""Stands for the sender's own id in the tables below."""


class Fields(TypedDict, total=False):
    """Of a message's header."""

    flags: int
    dst_id: int
    src_id: int
    payload_type: int
    timeout_or_reply: int


def dst_name(name: str = NAME) -> bytes:
    return name_item(name, ItemType.DST_NAME)


FILTER = bloom_filter()

# What arrives


def test_payload_arrives_in_the_order_of_its_items() -> None:
    client = HandleWorld().connect()
    address = client.thread.put(b"firstsecond")
    client.send(
        build_message(dst_id=client.id, items=[vec_item(5, address), vec_item(13), vec_item(6, address + 5)])
    )
    received = client.receive()
    data = client.read_pool(received.offset, received.size)

    def bytes_of(item: Item) -> bytes:
        size, offset = VEC.unpack(item.payload)
        return bytes(size) if offset == (1 << 64) - 1 else data[offset : offset + size]

    assert [bytes_of(item) for item in received.items] == [b"first", bytes(13), b"second"]


def test_payload_of_2_mib_is_sent() -> None:
    client = HandleWorld().connect(pool_size=16 << 20)
    address = client.thread.put(bytes(MAX_VEC_PAYLOAD))
    client.send(build_message(dst_id=client.id, items=[vec_item(MAX_VEC_PAYLOAD, address)]))
    assert client.receive().size > MAX_VEC_PAYLOAD


def test_all_fields_of_the_header_arrive() -> None:
    client = HandleWorld().connect()
    client.send(
        build_message(
            dst_id=client.id,
            flags=EXPECT_REPLY | NO_AUTO_START,
            priority=-(1 << 63),
            cookie=(1 << 64) - 1,
            timeout_or_reply=LATER,
            items=[negotiate_item(1, 2)],
        )
    )
    received = client.receive()
    assert received.header[1:] == (
        EXPECT_REPLY | NO_AUTO_START,
        -(1 << 63),
        client.id,
        client.id,
        0x4442757344427573,
        (1 << 64) - 1,
        LATER,
    )
    assert received.items == []


def test_a_signal_to_one_connection_keeps_its_filter() -> None:
    client = HandleWorld().connect()
    client.run(Command.MATCH_ADD)
    client.send(
        build_message(dst_id=client.id, flags=SIGNAL, items=[bloom_filter(b"\7" * BLOOM_SIZE, generation=9)])
    )
    assert client.receive().item(ItemType.BLOOM_FILTER).payload == NUMBER.pack(9) + b"\7" * BLOOM_SIZE


def test_a_broadcast_may_have_an_empty_list_of_descriptors_and_memory() -> None:
    client = HandleWorld().connect()
    client.run(Command.MATCH_ADD)
    memfd = client.thread.open(sealed_memory())
    client.send(
        build_message(dst_id=DST_BROADCAST, flags=SIGNAL, items=[FILTER, fds_item(), memfd_item(memfd)])
    )
    assert client.receive().item(ItemType.PAYLOAD_MEMFD)


@pytest.mark.parametrize("items", [[], [fds_item()]])
def test_a_message_without_anything_in_it_is_sent(items: list[bytes]) -> None:
    client = HandleWorld().connect()
    client.send(build_message(dst_id=client.id, items=items))
    client.receive()


def test_a_name_leads_to_its_owner() -> None:
    world = HandleWorld()
    sender, owner = world.connect(), world.connect()
    owner.run(Command.NAME_ACQUIRE, items=[name_item(NAME)])
    for dst_id in (0, owner.id):
        sender.send(build_message(dst_id=dst_id, items=[dst_name()]))
        received = owner.receive()
        assert (received.header[3], received.item(ItemType.DST_NAME).string) == (dst_id, NAME)


def test_a_reply_goes_to_who_asked_and_only_once() -> None:
    world = HandleWorld()
    asker, answerer = world.connect(), world.connect()
    asker.send(build_message(dst_id=answerer.id, flags=EXPECT_REPLY, cookie=5, timeout_or_reply=LATER))
    reply = build_message(dst_id=asker.id, cookie=6, timeout_or_reply=5)
    answerer.send(reply)
    received = asker.receive()
    assert (received.cookie, received.header[7]) == (6, 5)
    with refused(EBADSLT):
        answerer.send(reply)


# What the receiver refuses

DELIVERIES: dict[str, tuple[Fields, list[bytes], int]] = {
    "an unknown name": (Fields(), [dst_name("a.b")], ESRCH),
    "a name of somebody else": (Fields(dst_id=SELF), [dst_name()], EREMCHG),
    "a name that is not running": (
        Fields(flags=NO_AUTO_START),
        [dst_name("com.example.idle")],
        EADDRNOTAVAIL,
    ),
    "an unknown id": (Fields(dst_id=99), [], ENXIO),
    "a reply nobody waits for": (Fields(dst_id=SELF, timeout_or_reply=1), [], EBADSLT),
    "descriptors to one without": (Fields(), [dst_name()], ECOMM),
}


@pytest.mark.parametrize("case", DELIVERIES)
def test_what_cannot_be_delivered_leaves_no_file_behind(case: str) -> None:
    fields, items, errno = DELIVERIES[case]
    world = HandleWorld()
    world.connect(flags=0).run(Command.NAME_ACQUIRE, items=[name_item(NAME)])
    world.connect(flags=ACTIVATOR, items=[name_item("com.example.idle")])
    client = world.connect()
    if fields.get("dst_id") == SELF:
        fields = Fields(**{**fields, "dst_id": client.id})
    pipe, memory = OpenFile(), sealed_memory()
    files = [fds_item(client.thread.open(pipe)), memfd_item(client.thread.open(memory))]
    with refused(errno):
        client.send(build_message(**fields, items=[*items, *files]))
    client.thread.assert_no_reference_left(pipe, memory)


def test_a_stranger_may_not_talk_to_just_anybody() -> None:
    world = HandleWorld()
    owner = world.connect()
    with refused(EPERM):
        world.connect(STRANGER).send(build_message(dst_id=owner.id))


def test_a_full_receiver_refuses() -> None:
    client = HandleWorld().connect(pool_size=4096)
    with refused(ENOBUFS):
        client.send(build_message(dst_id=client.id, items=[vec_item(4096, client.thread.put(bytes(4096)))]))


def test_a_sender_has_128_requests() -> None:
    client = HandleWorld().connect()
    request = build_message(dst_id=client.id, flags=EXPECT_REPLY, timeout_or_reply=LATER)
    for _ in range(MAX_OUTSTANDING_REQUESTS):
        client.send(request)
    with refused(EMLINK):
        client.send(request)


# The command


def test_nothing_is_said_to_lie_in_the_pool_after_a_send() -> None:
    client = HandleWorld().connect()
    address = client.thread.put(build_message(dst_id=client.id))
    answer = client.run(Command.SEND, address, 1, 2, 3)
    assert answer.fields == (address, POOL_SIZE, 0, 0)


def test_a_message_is_not_sent_where_that_cannot_be_said() -> None:
    client = HandleWorld().connect()
    pipe = OpenFile()
    message = client.thread.put(build_message(dst_id=client.id, items=[fds_item(client.thread.open(pipe))]))
    address = client.thread.put(build_command(Command.SEND, message))
    client.thread.protect(address + 32, 24)
    with refused(EFAULT):
        client.handle.ioctl(client.thread, Command.SEND, address)
    assert client.busy == 0
    client.thread.assert_no_reference_left(pipe)


@pytest.mark.parametrize("address", [0, 8, 4, 1 << 63, (1 << 64) - 8])
def test_a_message_that_is_nowhere_is_a_fault(address: int) -> None:
    with refused(EFAULT):
        HandleWorld().connect().run(Command.SEND, address)


def test_a_message_has_at_most_32_kib_of_items() -> None:
    client = HandleWorld().connect()
    items = [vec_item(1)] * ((MAX_COMMAND_SIZE - 64) // 32)
    client.send(build_message(dst_id=client.id, items=items))
    with refused(EMSGSIZE):
        client.send(build_message(dst_id=client.id, items=[*items, vec_item(1)]))


def test_the_command_is_judged_before_the_message() -> None:
    client = HandleWorld().connect()
    with refused(EINVAL):
        client.run(Command.SEND, 4, flags=2)
    with refused(EINVAL):
        client.run(Command.SEND, 4, items=[fds_item()])


def test_the_message_is_judged_before_the_canceller_and_the_canceller_before_its_header() -> None:
    client = HandleWorld().connect()
    regular = OpenFile(pollable=False)
    fd = client.thread.open(regular)
    bad_header = build_message(payload_type=0, dst_id=DST_BROADCAST)
    with refused(EFAULT):
        client.run(Command.SEND, 4, items=[cancel_item(99)])
    for canceller in (99, -1):
        with refused(EBADF):
            client.send(bad_header, items=[cancel_item(canceller)])
    with refused(EINVAL):
        client.send(build_message(dst_id=DST_BROADCAST), items=[cancel_item(fd)])
    client.thread.assert_no_reference_left(regular)


def test_a_canceller_of_a_message_nobody_waits_for_is_let_go() -> None:
    client = HandleWorld().connect()
    event = OpenFile()
    item = cancel_item(client.thread.open(event))
    client.send(build_message(dst_id=client.id), items=[item])
    with refused(ENXIO):
        client.send(build_message(dst_id=99), items=[item])
    with refused(EDESTADDRREQ):
        client.send(build_message(), items=[item])
    client.thread.assert_no_reference_left(event)


# Negotiation on two levels


def message_flags(client: Client, address: int) -> int:
    return int(NUMBER.unpack(client.thread.read(address + 8, 8))[0])


def test_a_command_negotiates_alone() -> None:
    client = HandleWorld().connect()
    answer = client.run(Command.SEND, 0, flags=NEGOTIATE, items=[negotiate_item(ItemType.CANCEL_FD, 99)])
    assert NUMBER.unpack_from(answer.data, 8) == (SYNC_REPLY,)
    assert answer.data[-16:] == NUMBER.pack(ItemType.CANCEL_FD) + NUMBER.pack(0)


def test_a_command_and_its_message_negotiate_together_and_nothing_is_sent() -> None:
    client = HandleWorld().connect()
    message = client.thread.put(
        build_message(
            flags=NEGOTIATE, dst_id=client.id, items=[negotiate_item(ItemType.FDS, ItemType.PAYLOAD_OFF)]
        )
    )
    client.run(Command.SEND, message, flags=NEGOTIATE)
    assert message_flags(client, message) == EXPECT_REPLY | NO_AUTO_START | SIGNAL
    assert client.thread.read(message + 64 + 16, 16) == NUMBER.pack(ItemType.FDS) + NUMBER.pack(0)
    assert client.busy == 0


def test_a_command_that_negotiates_still_judges_its_message() -> None:
    client = HandleWorld().connect()
    message = client.thread.put(build_message(dst_id=client.id, items=[negotiate_item(99)]))
    client.run(Command.SEND, message, flags=NEGOTIATE)
    assert message_flags(client, message) == 0
    assert client.thread.read(message + 64 + 16, 8) == bytes(8)
    assert client.busy == 0
    with refused(EINVAL):
        client.run(Command.SEND, client.thread.put(build_message(flags=8)), flags=NEGOTIATE)
    with refused(EFAULT):
        client.run(Command.SEND, 8, flags=NEGOTIATE)


def test_a_message_does_not_negotiate_while_its_command_sends() -> None:
    client = HandleWorld().connect()
    with refused(EINVAL):
        client.send(build_message(flags=NEGOTIATE, dst_id=client.id))
    assert client.busy == 0
