"""Processes, connections and a bus for tests of what is told about whom.

`ALICE` is a process of which everything is known, every value different. A `Town` is a bus she made.
`decode` judges the form of items: sizes, and padding that is zero.
"""

from __future__ import annotations

from typing import Any

from broker_world import Recorder, zeros

from kdbus_core import Connection, Credentials, Domain, Endpoint
from kdbus_core.abi import ATTACH_ALL, INFO, ITEM_HEADER, HelloFlag, ItemType, MakeFlag, align
from kdbus_core.metadata import Audit, Caps, Creds, Pids, Process, Snapshot, Stamp

STAMP = Stamp(7, 1_000_000_001, 2_000_000_002)

KNOWN = Snapshot(
    creds=Creds(1001, 1002, 1003, 1004, 2001, 2002, 2003, 2004),
    pids=Pids(301, 302, 300),
    auxgroups=(2101, 2102, 2103),
    tid_comm=b"worker",
    pid_comm=b"alice",
    exe=b"/usr/bin/alice",
    cmdline=b"/usr/bin/alice\0--verbose\0",
    cgroup=b"/user.slice/alice.scope",
    caps=Caps(40, 1 << 3, 1 << 3 | 1 << 40, 1 << 33, (1 << 41) - 1),
    seclabel=b"alice_t",
    audit=Audit(17, 1002),
)
"""Every kind of metadata there is, no id twice."""

Items = list[tuple[ItemType, bytes]]


def a_process(**what: Any) -> Process:
    """A process of which everything is known, in the initial namespaces unless told otherwise."""
    return Process(**{"snapshot": KNOWN} | what)


ALICE = a_process()
BOB = Process.of(Credentials(uid=1500, gid=2500, pid=400))


class Town:
    """A bus with a custom endpoint whose policy shows nothing at first."""

    def __init__(
        self,
        *,
        flags: MakeFlag = MakeFlag(0),  # noqa: B008 - a constant
        creator: Process = ALICE,
        creator_mask: int = ATTACH_ALL,
    ) -> None:
        uid = creator.credentials.uid
        self.bus = Domain(zeros).make_bus(f"{uid}-town", creator, flags, creator_mask=creator_mask)
        self.names = self.bus.names
        self.custom_endpoint = self.bus.make_endpoint(f"{uid}-custom", creator, MakeFlag.ACCESS_WORLD)

    def connect(
        self,
        process: Process = ALICE,
        *,
        endpoint: Endpoint | None = None,
        flags: HelloFlag = HelloFlag(0),  # noqa: B008 - a constant
        faked: Credentials | Snapshot | None = None,
        name: str | None = None,
        description: str = "",
        attach_send: int = ATTACH_ALL,
        attach_recv: int = ATTACH_ALL,
    ) -> Connection:
        return self.bus.hello(
            endpoint or self.bus.endpoint,
            process,
            sink=Recorder([]),
            flags=flags,
            faked=faked,
            name=name,
            description=description,
            attach_send=attach_send,
            attach_recv=attach_recv,
        )

    def connect_activator(self, name: str) -> Connection:
        return self.connect(flags=HelloFlag.ACTIVATOR, name=name)


def decode(items: bytes) -> Items:
    """The items one after the other: type and payload."""
    decoded = []
    offset = 0
    while offset < len(items):
        size, type = ITEM_HEADER.unpack_from(items, offset)
        assert ITEM_HEADER.size <= size <= len(items) - offset
        end = offset + align(size)
        assert items[offset + size : end] == bytes(align(size) - size), "padding is zero"
        decoded.append((ItemType(type), items[offset + ITEM_HEADER.size : offset + size]))
        offset = end
    assert offset == len(items)
    return decoded


def types(items: bytes) -> list[ItemType]:
    return [type for type, _ in decode(items)]


def decode_records(records: bytes) -> list[tuple[int, int, Items]]:
    """Records one after the other: id, flags and items."""
    decoded = []
    offset = 0
    while offset < len(records):
        size, id, flags = INFO.unpack_from(records, offset)
        assert size % 8 == 0
        assert INFO.size <= size <= len(records) - offset
        decoded.append((id, flags, decode(records[offset + INFO.size : offset + size])))
        offset += size
    assert offset == len(records)
    return decoded
