"""Processes and their credentials, and what is told with a message and by CONN_INFO."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from errno import EINVAL
from struct import pack
from typing import Any

import pytest
from broker_world import refused
from metadata_world import ALICE, BOB, KNOWN, STAMP, Town, a_process, decode, types

from kdbus_core import Connection
from kdbus_core.abi import ATTACH_ALL, UNSET_ID, AttachFlag, ItemType, MakeFlag
from kdbus_core.metadata import (
    Audit,
    Credentials,
    Creds,
    Pids,
    Process,
    Snapshot,
    as_credentials,
    as_snapshot,
    connection_items,
    message_items,
    notification_items,
    parse_attach_flags,
    process_items,
)
from kdbus_core.names import ALLOW_REPLACEMENT, PRIMARY, QUEUE, REPLACE_EXISTING
from kdbus_core.namespaces import (
    INITIAL_PID_NAMESPACE,
    INITIAL_USER_NAMESPACE,
    Extent,
    PidNamespace,
    UserNamespace,
)

NAME = "org.example.Name"
ALL_ITEMS = [
    ItemType.CREDS,
    ItemType.PIDS,
    ItemType.AUXGROUPS,
    ItemType.TID_COMM,
    ItemType.PID_COMM,
    ItemType.EXE,
    ItemType.CMDLINE,
    ItemType.CGROUP,
    ItemType.CAPS,
    ItemType.SECLABEL,
    ItemType.AUDIT,
    ItemType.OWNED_NAME,
    ItemType.CONN_DESCRIPTION,
    ItemType.TIMESTAMP,
]
TIME = (ItemType.TIMESTAMP, pack("=3Q", *STAMP))


def owned(flags: int, name: str) -> tuple[ItemType, bytes]:
    return ItemType.OWNED_NAME, pack("=Q", flags) + name.encode() + b"\0"


# Credentials, snapshots, processes


@pytest.mark.parametrize(
    ("credentials", "snapshot"),
    [
        (Credentials(), Snapshot()),
        (Credentials(uid=0), Snapshot(creds=Creds(euid=0))),
        (Credentials(gid=0), Snapshot(creds=Creds(egid=0))),
        (Credentials(pid=5), Snapshot(pids=Pids(5, 0, 0))),
        (Credentials(groups=()), Snapshot(auxgroups=())),
        (Credentials(label=b""), Snapshot(seclabel=b"")),
        (
            Credentials(uid=1, gid=2, pid=3, groups=(4, 5), label=b"l"),
            Snapshot(creds=Creds(euid=1, egid=2), pids=Pids(3, 0, 0), auxgroups=(4, 5), seclabel=b"l"),
        ),
    ],
)
def test_credentials_and_snapshots_say_the_same(credentials: Credentials, snapshot: Snapshot) -> None:
    assert as_snapshot(credentials) == snapshot
    assert as_credentials(snapshot) == credentials


def test_the_credentials_of_a_snapshot_are_its_effective_ids() -> None:
    assert as_credentials(KNOWN) == Credentials(1002, 2002, 301, (2101, 2102, 2103), b"alice_t")
    assert as_credentials(Snapshot(pids=Pids(0, 9, 9))).pid is None


def test_a_descriptor_of_the_process_is_no_part_of_a_snapshot() -> None:
    assert as_snapshot(Credentials(pidfd=7)) == Snapshot()


def test_what_is_right_already_stays_the_same_object() -> None:
    credentials = Credentials(pidfd=7)
    assert as_credentials(credentials) is credentials
    assert as_snapshot(KNOWN) is KNOWN


def test_an_unknown_id_is_not_that_of_root() -> None:
    creds = as_snapshot(Credentials(uid=5)).creds
    assert creds == (UNSET_ID, 5, UNSET_ID, UNSET_ID, UNSET_ID, UNSET_ID, UNSET_ID, UNSET_ID)


def test_a_process_of_credentials_keeps_them() -> None:
    credentials = Credentials(uid=5, pid=6, pidfd=7)
    process = Process.of(credentials)
    assert process.credentials is credentials
    assert process.snapshot == Snapshot(creds=Creds(euid=5), pids=Pids(6))
    assert not process.privileged
    assert Process.of(credentials, privileged=True).privileged


def test_a_process_of_a_snapshot_decides_with_its_effective_ids() -> None:
    assert ALICE.credentials == as_credentials(KNOWN)
    assert a_process(credentials=Credentials(uid=8)).credentials == Credentials(uid=8)


def test_no_credentials_are_credentials_too() -> None:
    assert a_process(credentials=Credentials()).credentials == Credentials()


@pytest.mark.parametrize(
    ("process", "uid"),
    [
        (ALICE, 1001),
        (Process.of(Credentials(uid=5)), 5),
        (Process.of(Credentials(gid=5)), None),
        (Process.of(Credentials()), None),
        (Process(Snapshot(creds=Creds(uid=0, euid=5))), 0),
    ],
)
def test_everything_is_charged_to_the_real_uid(process: Process, uid: int | None) -> None:
    assert process.real_uid == uid


def test_a_process_is_frozen_and_equals_only_itself() -> None:
    with pytest.raises(FrozenInstanceError):
        ALICE.snapshot = Snapshot()  # type: ignore[misc]  # what must not be done
    assert Process.of(BOB.credentials) != BOB


# Flags


@pytest.mark.parametrize("value", [0, AttachFlag.CREDS, ATTACH_ALL])
def test_known_attach_flags_are_taken(value: int) -> None:
    assert parse_attach_flags(value) == value


def test_all_bits_set_means_all_there_are() -> None:
    assert parse_attach_flags(2**64 - 1) == ATTACH_ALL


@pytest.mark.parametrize("value", [ATTACH_ALL + 1, 1 << 63, 2**64 - 2, ATTACH_ALL | 1 << 20])
def test_unknown_attach_flags_are_refused(value: int) -> None:
    with refused(EINVAL):
        parse_attach_flags(value)


# Messages


def test_everything_goes_along_in_the_one_order() -> None:
    town = Town()
    sender, receiver = town.connect(description="a sender"), town.connect(BOB)
    town.names.acquire(sender, NAME, 0)
    items = decode(message_items(sender, receiver, STAMP))
    assert [type for type, _ in items] == ALL_ITEMS
    assert items[-3:] == [
        owned(PRIMARY, NAME),
        (ItemType.CONN_DESCRIPTION, b"a sender\0"),
        TIME,
    ]


@pytest.mark.parametrize("type", ALL_ITEMS)
def test_each_kind_goes_along_alone(type: ItemType) -> None:
    town = Town()
    mask = 1 << type - ItemType.TIMESTAMP
    sender, receiver = town.connect(description="a sender"), town.connect(BOB, attach_recv=mask)
    town.names.acquire(sender, NAME, 0)
    assert types(message_items(sender, receiver, STAMP)) == [type]


def test_nothing_goes_along_when_nothing_is_asked_for() -> None:
    town = Town()
    assert message_items(town.connect(description="a"), town.connect(BOB, attach_recv=0), STAMP) == b""


def test_without_names_and_description_there_are_no_items_for_them() -> None:
    town = Town()
    sender = town.connect(attach_send=AttachFlag.NAMES | AttachFlag.CONN_DESCRIPTION)
    assert message_items(sender, town.connect(BOB), STAMP) == b""


def test_only_names_it_owns_now_go_along_with_their_flags() -> None:
    town = Town()
    names = town.names
    other, sender, receiver = town.connect(), town.connect(attach_send=AttachFlag.NAMES), town.connect(BOB)
    names.acquire(other, "org.example.Taken", ALLOW_REPLACEMENT)
    names.acquire(sender, "org.example.Taken", QUEUE)
    assert message_items(sender, receiver, STAMP) == b""
    names.acquire(sender, NAME, ALLOW_REPLACEMENT)
    assert decode(message_items(sender, receiver, STAMP)) == [owned(PRIMARY | ALLOW_REPLACEMENT, NAME)]
    names.acquire(sender, NAME, 0)
    names.acquire(sender, "org.example.Taken", REPLACE_EXISTING)
    assert decode(message_items(sender, receiver, STAMP)) == [
        owned(PRIMARY, "org.example.Taken"),
        owned(PRIMARY, NAME),
    ]
    names.release(sender, NAME)
    assert decode(message_items(sender, receiver, STAMP)) == [owned(PRIMARY, "org.example.Taken")]


def test_each_message_has_its_own_time() -> None:
    town = Town()
    sender, receiver = town.connect(attach_send=AttachFlag.TIMESTAMP), town.connect(BOB)
    assert decode(message_items(sender, receiver, STAMP)) == [TIME]
    later = STAMP._replace(seqnum=8)
    assert decode(message_items(sender, receiver, later)) == [(ItemType.TIMESTAMP, pack("=3Q", *later))]


@pytest.mark.parametrize("faked", [Credentials(uid=77, pid=78, label=b"x"), KNOWN, Credentials(), Snapshot()])
@pytest.mark.parametrize("flags", [MakeFlag(0), MakeFlag.FINAL_METADATA])
def test_with_messages_of_a_faked_connection_nothing_of_any_process_goes_along(
    faked: Credentials | Snapshot, flags: MakeFlag
) -> None:
    town = Town(flags=flags)
    sender, receiver = town.connect(faked=faked, description="a proxy"), town.connect(BOB)
    town.names.acquire(sender, NAME, 0)
    items = message_items(sender, receiver, STAMP)
    assert types(items) == [ItemType.OWNED_NAME, ItemType.CONN_DESCRIPTION, ItemType.TIMESTAMP]


def test_a_notification_tells_the_time_and_nothing_else() -> None:
    assert decode(notification_items(STAMP)) == [TIME]


# What was told before is not made again, and is still right


def test_each_reader_is_told_in_its_own_terms() -> None:
    users = UserNamespace(INITIAL_USER_NAMESPACE, (Extent(0, 1002, 1),), ())
    pids = PidNamespace(INITIAL_PID_NAMESPACE)
    town = Town()
    mask = int(AttachFlag.CREDS | AttachFlag.PIDS | AttachFlag.EXE)
    sender = town.connect(a_process(pids_in={pids: Pids(1, 2, 0)}), attach_send=mask)
    as_it_is = {
        ItemType.CREDS: pack("=8Q", *KNOWN.creds or ()),
        ItemType.PIDS: pack("=3Q", 301, 302, 300),
        ItemType.EXE: b"/usr/bin/alice\0",
    }
    as_root = {ItemType.CREDS: pack("=8Q", 65534, 0, *[65534] * 6)}
    as_init = {ItemType.PIDS: pack("=3Q", 1, 2, 0)}
    without_path = {type: payload for type, payload in as_it_is.items() if type is not ItemType.EXE}
    readers = [
        (BOB, as_it_is),
        (a_process(user_namespace=users), as_it_is | as_root),
        (a_process(pid_namespace=pids), as_it_is | as_init),
        (a_process(root="/elsewhere"), without_path),
        (a_process(user_namespace=users, pid_namespace=pids), as_it_is | as_root | as_init),
    ]
    for process, expected in readers * 2:
        assert dict(decode(message_items(sender, town.connect(process), STAMP))) == expected


def test_a_process_in_an_unknown_namespace_reads_more_of_itself_than_others_there() -> None:
    process, other = a_process(user_namespace=None), a_process(user_namespace=None)
    for _ in range(2):
        assert types(process_items(KNOWN, process, process, AttachFlag.CREDS)) == [ItemType.CREDS]
        assert process_items(KNOWN, process, other, AttachFlag.CREDS) == b""


def test_readers_with_the_same_view_share_what_is_told() -> None:
    process = a_process()
    first = process_items(KNOWN, process, Process.of(Credentials(uid=1)), ATTACH_ALL)
    assert process_items(KNOWN, process, Process.of(Credentials(uid=2)), ATTACH_ALL) is first


def test_what_was_told_does_not_pile_up() -> None:
    process = a_process()
    for root in range(1000):
        assert process_items(KNOWN, process, a_process(root=root), AttachFlag.PIDS)
    assert len(process.told) <= 64


def test_what_was_faked_is_not_taken_for_the_process() -> None:
    process = a_process()
    true = process_items(KNOWN, process, BOB, AttachFlag.PIDS)
    faked = process_items(Snapshot(pids=Pids(9)), process, BOB, AttachFlag.PIDS)
    assert decode(faked) == [(ItemType.PIDS, pack("=3Q", 9, 0, 0))]
    assert process_items(KNOWN, process, BOB, AttachFlag.PIDS) == true != faked


# CONN_INFO


def told(subject: Connection, reader: Process, mask: int) -> bytes:
    return connection_items(subject, Town().connect(process=reader), mask)


def test_all_that_is_asked_for_and_granted_is_told_but_never_a_time() -> None:
    town = Town()
    subject = town.connect(description="a subject")
    town.names.acquire(subject, NAME, 0)
    assert types(told(subject, BOB, ATTACH_ALL)) == ALL_ITEMS[:-1]
    assert told(subject, BOB, AttachFlag.TIMESTAMP) == b""
    assert types(told(subject, BOB, AttachFlag.EXE | AttachFlag.NAMES)) == [
        ItemType.EXE,
        ItemType.OWNED_NAME,
    ]


@pytest.mark.parametrize("flags", [MakeFlag(0), MakeFlag.FINAL_METADATA])
def test_nothing_is_told_that_is_not_granted_at_the_moment(flags: MakeFlag) -> None:
    subject = Town(flags=flags).connect(description="a subject", attach_send=0)
    assert told(subject, BOB, ATTACH_ALL) == b""
    subject.attach_send = int(AttachFlag.PIDS)
    assert types(told(subject, BOB, ATTACH_ALL)) == [ItemType.PIDS]


@pytest.mark.parametrize(
    ("faked", "expected"),
    [
        ({}, []),
        ({"pids": Pids(9)}, [ItemType.PIDS]),
        ({"seclabel": b"x"}, [ItemType.SECLABEL]),
        ({"creds": Creds(euid=9), "auxgroups": ()}, [ItemType.CREDS, ItemType.AUXGROUPS]),
        ({"audit": Audit(1, 2)}, [ItemType.AUDIT]),
    ],
)
def test_exactly_what_was_faked_is_told(faked: dict[str, Any], expected: list[ItemType]) -> None:
    subject = Town().connect(faked=Snapshot(**faked), description="a proxy")
    assert types(told(subject, BOB, ATTACH_ALL)) == [*expected, ItemType.CONN_DESCRIPTION]


def test_faked_values_are_told_as_they_were_given() -> None:
    subject = Town().connect(faked=Credentials(uid=0, gid=77, pid=78, groups=(79,), label=b"label"))
    unset = UNSET_ID
    assert decode(told(subject, BOB, ATTACH_ALL)) == [
        (ItemType.CREDS, pack("=8Q", unset, 0, unset, unset, unset, 77, unset, unset)),
        (ItemType.PIDS, pack("=3Q", 78, 0, 0)),
        (ItemType.AUXGROUPS, pack("=Q", 79)),
        (ItemType.SECLABEL, b"label\0"),
    ]


def test_faked_ids_are_told_as_the_reader_has_them() -> None:
    reader = a_process(user_namespace=UserNamespace(INITIAL_USER_NAMESPACE, (Extent(0, 77, 1),), ()))
    subject = Town().connect(faked=Snapshot(creds=unset_but(euid=77, egid=78)))
    ((_, payload),) = decode(told(subject, reader, ATTACH_ALL))
    assert payload == pack("=8Q", *unset_but(euid=0, egid=65534))


def unset_but(**ids: int) -> Creds:
    return Creds()._replace(**ids)


def test_the_process_is_told_as_it_was_and_the_names_as_they_are() -> None:
    town = Town()
    subject = town.connect(attach_send=AttachFlag.NAMES | AttachFlag.PID_COMM)
    before = told(subject, BOB, ATTACH_ALL)
    town.names.acquire(subject, NAME, 0)
    assert told(subject, BOB, ATTACH_ALL).startswith(before)
    assert decode(told(subject, BOB, ATTACH_ALL))[1:] == [owned(PRIMARY, NAME)]


def test_an_activator_is_told_of_with_its_name_while_nobody_owns_it() -> None:
    town = Town()
    activator = town.connect_activator(NAME)
    assert types(told(activator, BOB, AttachFlag.NAMES)) == [ItemType.OWNED_NAME]
    town.names.acquire(town.connect(), NAME, 0)
    assert told(activator, BOB, AttachFlag.NAMES) == b""
