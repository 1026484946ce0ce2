"""What is told of somebody: records and metadata, as typed values and copies."""

from __future__ import annotations

from errno import EBADMSG
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbus_core.abi import INFO, ItemType, NameFlag
from kdbus_core.errors import KdbusError
from kdbus_core.items import (
    build_item,
    build_numbers_item,
    build_owned_name_item,
    build_string_item,
)
from kdbus_core.metadata import Audit, Caps, Creds, Pids, Snapshot, Stamp
from kdbus_core.transport.client.records import parse_metadata, parse_records


def record(id: int, *items: bytes, flags: int = 0) -> bytes:
    tail = b"".join(items)
    return INFO.pack(INFO.size + len(tail), id, flags) + tail


def test_every_kind_of_metadata_has_its_type() -> None:
    data = b"".join(
        [
            build_numbers_item(ItemType.CREDS, *range(8)),
            build_numbers_item(ItemType.PIDS, 1, 2, 3),
            build_numbers_item(ItemType.AUXGROUPS, 4, 5),
            build_string_item(ItemType.TID_COMM, b"thread"),
            build_string_item(ItemType.PID_COMM, b"process"),
            build_string_item(ItemType.EXE, b"/bin/\xff"),
            build_string_item(ItemType.CMDLINE, b"argument"),
            build_string_item(ItemType.CGROUP, b"/slice"),
            build_item(ItemType.CAPS, pack("=I8I", 40, 1, 0, 2, 0, 3, 1, 4, 0)),
            build_string_item(ItemType.SECLABEL, b"label"),
            build_item(ItemType.AUDIT, pack("=2I", 6, 7)),
            build_owned_name_item(int(NameFlag.PRIMARY), "com.example.A"),
            build_owned_name_item(int(NameFlag.IN_QUEUE), "com.example.B"),
            build_string_item(ItemType.CONN_DESCRIPTION, "me"),
            build_numbers_item(ItemType.TIMESTAMP, 8, 9, 10),
        ]
    )
    metadata = parse_metadata(data, 0)
    assert metadata.timestamp == Stamp(8, 9, 10)
    assert metadata.names == {"com.example.A": NameFlag.PRIMARY, "com.example.B": NameFlag.IN_QUEUE}
    assert metadata.description == "me"
    assert metadata.snapshot == Snapshot(
        creds=Creds(*range(8)),
        pids=Pids(1, 2, 3),
        auxgroups=(4, 5),
        tid_comm=b"thread",
        pid_comm=b"process",
        exe=b"/bin/\xff",
        cmdline=b"argument",
        cgroup=b"/slice",
        caps=Caps(40, 1, 2, 3 | 1 << 32, 4),
        seclabel=b"label",
        audit=Audit(6, 7),
    )


def test_what_is_not_told_is_none_and_never_zero() -> None:
    metadata = parse_metadata(b"", 0)
    assert metadata.snapshot == Snapshot()
    assert (metadata.timestamp, metadata.description, metadata.names) == (None, None, {})


def test_records_of_one_connection_are_put_together() -> None:
    data = b"".join(
        [
            record(1, build_owned_name_item(32, "com.example.A"), flags=1),
            record(2),
            record(1, build_owned_name_item(8, "com.example.B"), flags=1),
        ]
    )
    first, second = parse_records(data)
    assert (first.id, first.flags) == (1, 1)
    assert first.names == {"com.example.A": NameFlag.PRIMARY, "com.example.B": NameFlag.IN_QUEUE}
    assert (second.id, second.names) == (2, {})


def test_a_bus_tells_its_name() -> None:
    (info,) = parse_records(record(1, build_string_item(ItemType.MAKE_NAME, "0-system")))
    assert info.bus_name == "0-system"


@pytest.mark.parametrize(
    "data",
    [
        record(1)[:20],
        pack("=3Q", 23, 1, 0),
        pack("=3Q", 25, 1, 0),
        record(1) + bytes(8),
        record(1, pack("=2Q", 99, ItemType.NAME)),
        record(1, build_item(ItemType.CREDS, bytes(63))),
        record(1, build_item(ItemType.OWNED_NAME, bytes(7))),
        record(1, build_item(ItemType.CAPS, bytes(3))),
        record(1, build_item(ItemType.CAPS, pack("=I", 40))),
        record(1, build_item(ItemType.CAPS, pack("=I", 0xFFFFFFFF))),
    ],
)
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(KdbusError) as refusal:
        parse_records(data)
    assert refusal.value.errno == EBADMSG


@given(st.binary(max_size=200), st.integers(24, 200))
def test_whatever_the_bytes_are_they_are_records_or_refused(data: bytes, size: int) -> None:
    for bytes_ in (data, INFO.pack(size, 1, 0) + data):
        try:
            parse_records(bytes_)
        except KdbusError as error:
            assert error.errno == EBADMSG  # noqa: PT017 - being no records is right as well
