"""The message inside a SEND: every check in its order, and which files and memory it may carry."""

from __future__ import annotations

from collections.abc import Callable
from errno import (
    E2BIG,
    EBADF,
    EBADMSG,
    EDESTADDRREQ,
    EDOM,
    EFAULT,
    EINVAL,
    EMEDIUMTYPE,
    EMFILE,
    EMSGSIZE,
    ENOTUNIQ,
    EOPNOTSUPP,
    ETXTBSY,
)
from typing import TypedDict

import pytest
from caller_world import OpenFile, sealed_memory
from handle_world import (
    BLOOM_SIZE,
    NAME,
    HandleWorld,
    bloom_filter,
    build_message,
    fds_item,
    memfd_item,
    name_item,
    refused,
    vec_item,
)

from kdbus_core.abi import (
    DST_BROADCAST,
    MAX_VEC_PAYLOAD,
    ItemType,
    MessageFlag,
    SendFlag,
)
from kdbus_core.caller import SEAL_GROW, SEAL_SEAL, SEAL_SHRINK, SEAL_WRITE, SEALS_REQUIRED, FileKind
from kdbus_core.items import VEC, build_item

EXPECT_REPLY = int(MessageFlag.EXPECT_REPLY)
NO_AUTO_START = int(MessageFlag.NO_AUTO_START)
SIGNAL = int(MessageFlag.SIGNAL)
SYNC_REPLY = int(SendFlag.SYNC_REPLY)
LATER = 1 << 60


class Fields(TypedDict, total=False):
    """Of a message's header."""

    flags: int
    dst_id: int
    src_id: int
    payload_type: int
    timeout_or_reply: int


def dst_name(name: str = NAME) -> bytes:
    return name_item(name, ItemType.DST_NAME)


def filter_of(size: int) -> bytes:
    return build_item(ItemType.BLOOM_FILTER, bytes(8 + size))


FILTER = bloom_filter()
WELL = vec_item(8)
TOO_MUCH = vec_item(MAX_VEC_PAYLOAD + 1)
FAR = vec_item(8, 1 << 63)
WRAPPING_MEMFD = memfd_item(0, size=(1 << 64) - 1, start=1)
MANY_MEMFDS = memfd_item(0) * 17
MANY_FDS = fds_item(*range(17))
ODD_FILTER = filter_of(BLOOM_SIZE + 1)
OTHER_FILTER = filter_of(BLOOM_SIZE + 8)
BAD_NAME = dst_name("noname")

# What is wrong with a message's header, in the order in which it is looked at. Each case has something wrong
# that is looked at later, too, so that it also shows the order.
HEADERS: dict[str, tuple[Fields, int, int]] = {
    "from somebody else, of the broker's type": (Fields(src_id=77, payload_type=0), 0, EINVAL),
    "of the broker's type, broadcast without being a signal": (
        Fields(payload_type=0, dst_id=DST_BROADCAST),
        0,
        EINVAL,
    ),
    "broadcast without being a signal, as a reply": (
        Fields(dst_id=DST_BROADCAST, timeout_or_reply=1),
        0,
        EBADMSG,
    ),
    "broadcast request": (
        Fields(dst_id=DST_BROADCAST, flags=SIGNAL | EXPECT_REPLY, timeout_or_reply=1),
        0,
        ENOTUNIQ,
    ),
    "broadcast reply": (Fields(dst_id=DST_BROADCAST, flags=SIGNAL, timeout_or_reply=1), 0, ENOTUNIQ),
    "signal that expects a reply until no time": (Fields(flags=SIGNAL | EXPECT_REPLY), 0, EINVAL),
    "signal that expects a reply": (
        Fields(flags=SIGNAL | EXPECT_REPLY, timeout_or_reply=LATER),
        SYNC_REPLY,
        ENOTUNIQ,
    ),
    "synchronous without expecting a reply": (Fields(timeout_or_reply=1), SYNC_REPLY, EINVAL),
    "synchronous signal": (Fields(flags=SIGNAL), SYNC_REPLY, EINVAL),
    "signal that is a reply": (Fields(flags=SIGNAL, timeout_or_reply=1), 0, EINVAL),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_is_judged_before_items(case: str) -> None:
    fields, flags, errno = HEADERS[case]
    client = HandleWorld().connect()
    with refused(errno):
        client.send(build_message(**fields, items=[TOO_MUCH]), flags=flags)


def test_a_header_may_say_who_sends_or_not() -> None:
    client = HandleWorld().connect()
    for src_id in (0, client.id):
        client.send(build_message(dst_id=client.id, src_id=src_id))
        assert client.receive().header[4] == client.id
    with refused(EINVAL):
        client.send(build_message(dst_id=client.id, src_id=client.id + 1))


@pytest.mark.parametrize("payload_type", [1, (1 << 64) - 1])
def test_any_type_of_payload_but_the_brokers_own_is_sent(payload_type: int) -> None:
    client = HandleWorld().connect()
    client.send(build_message(dst_id=client.id, payload_type=payload_type))
    assert client.receive().header[5] == payload_type


# Items in their order: the first that fails decides.
ITEMS = {
    "too much payload": ([TOO_MUCH, FAR], EMSGSIZE),
    "too much payload together": ([vec_item(MAX_VEC_PAYLOAD), WELL], EMSGSIZE),
    "payload whose sum wraps": ([vec_item((1 << 64) - 1), vec_item(1)], EMSGSIZE),
    "payload that is nobody's memory": ([FAR, TOO_MUCH], EFAULT),
    "payload whose end is nobody's memory": ([vec_item(8, (1 << 63) - 7)], EFAULT),
    "payload whose end wraps": ([vec_item(8, (1 << 64) - 4)], EFAULT),
    "payload that is too much and nobody's": ([vec_item(MAX_VEC_PAYLOAD + 1, 1 << 63)], EMSGSIZE),
    "memory whose end wraps": ([WRAPPING_MEMFD, FAR], EMSGSIZE),
    "a 17th memory whose end wraps": ([memfd_item(0) * 16 + WRAPPING_MEMFD], EMSGSIZE),
    "17 memories": ([MANY_MEMFDS, FAR], E2BIG),
    "17 descriptors": ([MANY_FDS, FAR], EMFILE),
    "a filter of an odd size": ([ODD_FILTER, FAR], EFAULT),
    "a filter of another size": ([OTHER_FILTER, FAR], EDOM),
    "a filter of no size": ([filter_of(0)], EDOM),
    "no name": ([BAD_NAME, FAR], EINVAL),
    "a wildcard": ([dst_name("a.*")], EINVAL),
    "a name beyond ASCII": ([dst_name("com.ex\xe4mple")], EINVAL),
    "an empty name": ([dst_name("")], EINVAL),
    "descriptors before memories": ([MANY_FDS, MANY_MEMFDS], EMFILE),
    "memories before descriptors": ([MANY_MEMFDS, MANY_FDS], E2BIG),
    "no name before too much": ([BAD_NAME, TOO_MUCH], EINVAL),
    "too much before no name": ([TOO_MUCH, BAD_NAME], EMSGSIZE),
    "a payload of nothing": ([vec_item(0, 8)], EINVAL),
    "memory of nothing": ([memfd_item(3, size=0)], EINVAL),
    "memory behind no descriptor": ([memfd_item(-1)], EBADF),
    "an offset": ([build_item(ItemType.PAYLOAD_OFF, VEC.pack(8, 0))], EINVAL),
    "two filters": ([FILTER, FILTER], EINVAL),
    "two names": ([dst_name(), dst_name()], EINVAL),
    "two lists of descriptors": ([fds_item(), fds_item()], EINVAL),
    "metadata": ([build_item(ItemType.TIMESTAMP, bytes(24))], EINVAL),
}


@pytest.mark.parametrize("case", ITEMS)
def test_items_are_judged_in_their_order_before_the_message_as_a_whole(case: str) -> None:
    items, errno = ITEMS[case]
    with refused(errno):
        HandleWorld().connect().send(build_message(items=items))


def test_a_broadcast_to_a_name_is_found_at_the_name() -> None:
    client = HandleWorld().connect()
    broadcast = Fields(dst_id=DST_BROADCAST, flags=SIGNAL)
    for items, errno in (
        ([dst_name(), TOO_MUCH], EBADMSG),
        ([TOO_MUCH, dst_name()], EMSGSIZE),
        ([BAD_NAME], EINVAL),
    ):
        with refused(errno):
            client.send(build_message(**broadcast, items=items))


WHOLES: dict[str, tuple[Fields, list[bytes], int]] = {
    "a signal without a filter, without destination": (Fields(flags=SIGNAL), [], EBADMSG),
    "a filter without a signal, without destination": (Fields(), [FILTER], EBADMSG),
    "a broadcast without a filter": (Fields(dst_id=DST_BROADCAST, flags=SIGNAL), [fds_item(99)], EBADMSG),
    "without destination": (Fields(), [fds_item(99)], EDESTADDRREQ),
    "a signal without destination": (Fields(flags=SIGNAL), [FILTER, fds_item(99)], EDESTADDRREQ),
    "a broadcast of descriptors": (
        Fields(dst_id=DST_BROADCAST, flags=SIGNAL),
        [FILTER, fds_item(99)],
        ENOTUNIQ,
    ),
}


@pytest.mark.parametrize("case", WHOLES)
def test_a_message_as_a_whole_is_judged_before_its_descriptors(case: str) -> None:
    fields, items, errno = WHOLES[case]
    with refused(errno):
        HandleWorld().connect().send(build_message(**fields, items=items))


# Descriptors

KINDS_OF_FILES: dict[str, Callable[[], OpenFile | None]] = {
    "pipe": OpenFile,
    "path": lambda: OpenFile(kind=FileKind.PATH),
    "socket": lambda: OpenFile(kind=FileKind.UNIX_SOCKET),
    "handle": lambda: OpenFile(kind=FileKind.BUS_HANDLE),
    "memory": sealed_memory,
    "closed": lambda: None,
}


@pytest.mark.parametrize(
    ("kind", "errno"),
    [
        ("pipe", 0),
        ("path", 0),
        ("memory", 0),
        ("socket", EOPNOTSUPP),
        ("handle", EOPNOTSUPP),
        ("closed", EBADF),
    ],
)
def test_what_can_be_handed_over(kind: str, errno: int) -> None:
    client = HandleWorld().connect()
    first, file = OpenFile(), KINDS_OF_FILES[kind]()
    fds = [client.thread.open(first), 99 if file is None else client.thread.open(file)]
    message = build_message(dst_id=client.id, items=[fds_item(*fds)])
    if not errno:
        client.send(message)
        assert client.receive().item(ItemType.FDS)
        return
    with refused(errno):
        client.send(message)
    client.thread.assert_no_reference_left(*(file for file in (first, file) if file is not None))


@pytest.mark.parametrize("fd", [-1, -(1 << 31), (1 << 31) - 1, 0])
def test_a_number_that_is_not_open_is_bad(fd: int) -> None:
    client = HandleWorld().connect()
    with refused(EBADF):
        client.send(build_message(dst_id=client.id, items=[fds_item(fd)]))


UNSEALED = [SEALS_REQUIRED & ~seal for seal in (SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE)] + [0]


@pytest.mark.parametrize(
    ("file", "size", "start", "errno"),
    [
        (OpenFile(), 8, 0, EMEDIUMTYPE),
        (OpenFile(kind=FileKind.UNIX_SOCKET), 8, 0, EMEDIUMTYPE),
        *((OpenFile(seals=seals, size=16), 99, 99, ETXTBSY) for seals in UNSEALED),
        (OpenFile(seals=SEALS_REQUIRED, size=16), 17, 0, EFAULT),
        (OpenFile(seals=SEALS_REQUIRED, size=16), 1, 16, EFAULT),
        (OpenFile(seals=SEALS_REQUIRED, size=16), (1 << 64) - 2, 1, EFAULT),
        (OpenFile(seals=SEALS_REQUIRED, size=16), 16, 0, 0),
        (OpenFile(seals=SEALS_REQUIRED | 32, size=16), 1, 15, 0),
    ],
)
def test_which_memory_can_be_payload(file: OpenFile, size: int, start: int, errno: int) -> None:
    client = HandleWorld().connect()
    fd = client.thread.open(file)
    message = build_message(dst_id=client.id, items=[memfd_item(fd, size, start)])
    if errno:
        with refused(errno):
            client.send(message)
    else:
        client.send(message)
        client.receive()
        client.thread.close(fd + 1)  # what was installed
    client.thread.assert_no_reference_left(file)


def test_descriptors_are_judged_in_the_order_of_their_items() -> None:
    client = HandleWorld().connect()
    socket = client.thread.open(OpenFile(kind=FileKind.UNIX_SOCKET))
    pipe = client.thread.open(OpenFile())
    for items, errno in (
        ([fds_item(socket), memfd_item(pipe)], EOPNOTSUPP),
        ([memfd_item(pipe), fds_item(socket)], EMEDIUMTYPE),
        ([memfd_item(98), fds_item(socket)], EBADF),
        ([fds_item(pipe, 98), memfd_item(pipe)], EBADF),
    ):
        with refused(errno):
            client.send(build_message(dst_id=client.id, items=items))


def test_descriptors_are_judged_before_the_payload_is_read() -> None:
    client = HandleWorld().connect()
    with refused(EBADF):
        client.send(build_message(dst_id=client.id, items=[vec_item(8, 8), fds_item(99)]))


@pytest.mark.parametrize("address", [8, 1, (1 << 63) - 8])
def test_payload_that_cannot_be_read_is_a_fault_and_closes_the_files(address: int) -> None:
    client = HandleWorld().connect()
    pipe, memory = OpenFile(), sealed_memory()
    items = [
        fds_item(client.thread.open(pipe)),
        memfd_item(client.thread.open(memory)),
        vec_item(8, address),
    ]
    with refused(EFAULT):
        client.send(build_message(dst_id=client.id, items=items))
    client.thread.assert_no_reference_left(pipe, memory)


def test_16_files_and_16_memories_are_sent_together() -> None:
    client = HandleWorld().connect()
    file, memory = OpenFile(), sealed_memory()
    fds, memfd = [client.thread.open(file) for _ in range(16)], client.thread.open(memory)
    client.send(build_message(dst_id=client.id, items=[memfd_item(memfd) * 16, fds_item(*fds)]))
    assert (file.references, memory.references) == (32, 17)
    client.receive()
    assert len(client.thread.fds) == 17 + 32
    client.thread.assert_no_reference_left(file, memory)
