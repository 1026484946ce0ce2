"""Reading what the broker wrote: items are walked and judged one by one, and known payloads decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import unpack, unpack_from
from typing import NamedTuple

from .layout import METADATA_ORDER, ItemType, align


class Item(NamedTuple):
    """An item that was read: `type`, payload without header and padding, and where the payload begins."""

    type: ItemType
    data: bytes
    at: int


class Creds(NamedTuple):
    """The payload of CREDS."""

    uid: int
    euid: int
    suid: int
    fsuid: int
    gid: int
    egid: int
    sgid: int
    fsgid: int


class Pids(NamedTuple):
    """The payload of PIDS."""

    pid: int
    tid: int
    ppid: int


class Caps(NamedTuple):
    """The payload of CAPS; bit n of a set is capability n."""

    last_cap: int
    inheritable: int
    permitted: int
    effective: int
    bounding: int


class Timestamp(NamedTuple):
    """The payload of TIMESTAMP."""

    seqnum: int
    monotonic_ns: int
    realtime_ns: int


STRINGS = {
    ItemType.DST_NAME,
    ItemType.MAKE_NAME,
    ItemType.NAME,
    ItemType.TID_COMM,
    ItemType.PID_COMM,
    ItemType.EXE,
    ItemType.CMDLINE,
    ItemType.CGROUP,
    ItemType.SECLABEL,
    ItemType.CONN_DESCRIPTION,
}
LENGTHS = {
    ItemType.PAYLOAD_OFF: 16,
    ItemType.PAYLOAD_MEMFD: 24,
    ItemType.BLOOM_PARAMETER: 16,
    ItemType.TIMESTAMP: 24,
    ItemType.CREDS: 64,
    ItemType.PIDS: 24,
    ItemType.AUDIT: 8,
    ItemType.ID_ADD: 16,
    ItemType.ID_REMOVE: 16,
    ItemType.REPLY_TIMEOUT: 0,
    ItemType.REPLY_DEAD: 0,
}


def walk(raw: bytes, start: int, end: int) -> Iterator[Item]:
    """The items between two offsets; anything that is not exactly right fails."""
    at = start
    while at < end:
        assert at % 8 == 0, f"an item at {at}"
        assert at + 16 <= end, f"half an item at {at}"
        size, kind = unpack_from("=2Q", raw, at)
        assert 16 <= size <= end - at, f"an item of {size} bytes at {at}, with {end - at} left"
        data = raw[at + 16 : at + size]
        check_payload(ItemType(kind), data)
        yield Item(ItemType(kind), data, at + 16)
        at += align(size)
    assert at - end < 8, f"items end at {at}, not at {end}"


def check_payload(kind: ItemType, data: bytes) -> None:
    """Fail unless a payload has the shape that its type demands."""
    if kind in STRINGS:
        assert data.endswith(b"\0"), kind.name
        assert data.count(b"\0") == 1, kind.name
    elif kind in LENGTHS:
        assert len(data) == LENGTHS[kind], kind.name
    elif kind == ItemType.OWNED_NAME:
        assert data[8:].endswith(b"\0")
        assert data[8:].count(b"\0") == 1
    elif kind == ItemType.AUXGROUPS:
        assert len(data) % 8 == 0
    elif kind == ItemType.FDS:
        assert len(data) % 4 == 0
    elif kind == ItemType.CAPS:
        (last_cap,) = unpack_from("=I", data)
        assert len(data) == 4 + 4 * 4 * (last_cap // 32 + 1)
    elif kind in (ItemType.NAME_ADD, ItemType.NAME_REMOVE, ItemType.NAME_CHANGE):
        assert data[32:].endswith(b"\0")
        assert data[32:].count(b"\0") == 1
    else:
        assert kind == ItemType.BLOOM_FILTER, f"{kind.name} in something the broker wrote"
        assert len(data) >= 8


def check_metadata_order(kinds: Sequence[ItemType]) -> None:
    """Metadata stands after everything else, in the one order there is."""
    places = [METADATA_ORDER.index(kind) if kind in METADATA_ORDER else -1 for kind in kinds]
    assert places == sorted(places), [kind.name for kind in kinds]


def parse_caps(data: bytes) -> Caps:
    (last_cap,) = unpack_from("=I", data)
    words = last_cap // 32 + 1
    sets = unpack_from(f"={4 * words}I", data, 4)
    values = [
        sum(word << 32 * index for index, word in enumerate(sets[n * words : (n + 1) * words]))
        for n in range(4)
    ]
    return Caps(last_cap, *values)


def parse_numbers(data: bytes) -> tuple[int, ...]:
    """The payload as an array of 64-bit integers."""
    return unpack(f"={len(data) // 8}Q", data)
