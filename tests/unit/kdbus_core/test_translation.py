"""How a process is described, and what of it to whom."""

from __future__ import annotations

import sys
from dataclasses import replace
from struct import pack
from typing import Any

import pytest
from metadata_world import ALICE, BOB, KNOWN, Items, a_process, decode, types

from kdbus_core.abi import ATTACH_ALL, OVERFLOW_ID, UNSET_ID, AttachFlag, ItemType
from kdbus_core.metadata import Audit, Caps, Creds, Pids, Process, Snapshot
from kdbus_core.namespaces import (
    INITIAL_PID_NAMESPACE,
    INITIAL_USER_NAMESPACE,
    Extent,
    PidNamespace,
    UserNamespace,
)
from kdbus_core.translation import build_process_items

EVERYTHING = (
    (AttachFlag.CREDS, ItemType.CREDS, pack("=8Q", 1001, 1002, 1003, 1004, 2001, 2002, 2003, 2004)),
    (AttachFlag.PIDS, ItemType.PIDS, pack("=3Q", 301, 302, 300)),
    (AttachFlag.AUXGROUPS, ItemType.AUXGROUPS, pack("=3Q", 2101, 2102, 2103)),
    (AttachFlag.TID_COMM, ItemType.TID_COMM, b"worker\0"),
    (AttachFlag.PID_COMM, ItemType.PID_COMM, b"alice\0"),
    (AttachFlag.EXE, ItemType.EXE, b"/usr/bin/alice\0"),
    (AttachFlag.CMDLINE, ItemType.CMDLINE, b"/usr/bin/alice\0"),
    (AttachFlag.CGROUP, ItemType.CGROUP, b"/user.slice/alice.scope\0"),
    (
        AttachFlag.CAPS,
        ItemType.CAPS,
        pack("=I8I", 40, 1 << 3, 0, 1 << 3, 1 << 8, 0, 1 << 1, 0xFFFFFFFF, 0x1FF),
    ),
    (AttachFlag.SECLABEL, ItemType.SECLABEL, b"alice_t\0"),
    (AttachFlag.AUDIT, ItemType.AUDIT, pack("=2I", 17, 1002)),
)

# Inside, ALICE's real, saved and file system uid are 1, 3 and 4, and her effective and login uid is nobody's;
# of her gids it has the effective one, and of her groups the first.
CONTAINER = UserNamespace(
    INITIAL_USER_NAMESPACE,
    uid_map=(Extent(1, 1001, 1), Extent(3, 1003, 2)),
    gid_map=(Extent(2, 2002, 1), Extent(0, 2101, 1)),
    owner=9000,
)
PID_CONTAINER = PidNamespace(INITIAL_PID_NAMESPACE)


def told(
    reader: Process, kind: AttachFlag, *, origin: Process = ALICE, snapshot: Snapshot | None = None
) -> bytes | None:
    """The payload of one kind of metadata; None when it was left out."""
    items = decode(build_process_items(snapshot or origin.snapshot, origin, reader, kind))
    if not items:
        return None
    ((type, payload),) = items
    assert type == 0x1000 + kind.bit_length() - 1
    return payload


def test_everything_is_told_in_the_one_order() -> None:
    expected: Items = [(type, payload) for _, type, payload in EVERYTHING]
    assert decode(build_process_items(KNOWN, ALICE, BOB, ATTACH_ALL)) == expected


@pytest.mark.parametrize(("kind", "type", "payload"), EVERYTHING)
def test_each_kind_is_told_alone(kind: AttachFlag, type: ItemType, payload: bytes) -> None:
    assert decode(build_process_items(KNOWN, ALICE, BOB, kind)) == [(type, payload)]


def test_what_is_unknown_is_left_out() -> None:
    nobody = Process(Snapshot())
    assert build_process_items(nobody.snapshot, nobody, BOB, ATTACH_ALL) == b""


def test_no_groups_are_an_item_and_unknown_groups_are_none() -> None:
    alone = a_process(snapshot=replace(KNOWN, auxgroups=()))
    assert told(BOB, AttachFlag.AUXGROUPS, origin=alone) == b""
    unknown = a_process(snapshot=replace(KNOWN, auxgroups=None))
    assert told(BOB, AttachFlag.AUXGROUPS, origin=unknown) is None


@pytest.mark.parametrize("kind", ["tid_comm", "pid_comm", "exe", "cmdline", "cgroup", "seclabel"])
def test_a_string_ends_at_its_first_nul(kind: str) -> None:
    known: dict[str, Any] = {kind: b"one\0two\0"}
    origin = a_process(snapshot=Snapshot(**known))
    assert told(BOB, AttachFlag[kind.upper()], origin=origin) == b"one\0"


def test_an_empty_string_is_told() -> None:
    origin = a_process(snapshot=replace(KNOWN, pid_comm=b""))
    assert told(BOB, AttachFlag.PID_COMM, origin=origin) == b"\0"


# User namespaces


def test_ids_are_told_as_the_reader_has_them_and_the_rest_as_overflow() -> None:
    reader = a_process(user_namespace=CONTAINER)
    gone = OVERFLOW_ID
    assert told(reader, AttachFlag.CREDS) == pack("=8Q", 1, gone, 3, 4, gone, 2, gone, gone)
    assert told(reader, AttachFlag.AUXGROUPS) == pack("=3Q", 0, gone, gone)


def test_ids_do_not_depend_on_the_namespace_of_whom_they_are_told_of() -> None:
    origin = a_process(user_namespace=CONTAINER)
    assert told(BOB, AttachFlag.CREDS, origin=origin) == told(BOB, AttachFlag.CREDS)
    assert told(BOB, AttachFlag.AUXGROUPS, origin=origin) == told(BOB, AttachFlag.AUXGROUPS)


@pytest.mark.parametrize("namespace", [INITIAL_USER_NAMESPACE, CONTAINER])
def test_an_unset_id_is_unset_everywhere(namespace: UserNamespace) -> None:
    origin = a_process(snapshot=Snapshot(creds=Creds(), audit=Audit(UNSET_ID, UNSET_ID)))
    reader = a_process(user_namespace=namespace)
    assert told(reader, AttachFlag.CREDS, origin=origin) == pack("=8Q", *[UNSET_ID] * 8)
    assert told(reader, AttachFlag.AUDIT, origin=origin) == pack("=2I", UNSET_ID, UNSET_ID)


def test_an_unmapped_login_uid_is_unset() -> None:
    reader = a_process(user_namespace=CONTAINER)
    assert told(reader, AttachFlag.AUDIT) == pack("=2I", 17, UNSET_ID)
    origin = a_process(snapshot=replace(KNOWN, audit=Audit(17, 1003)))
    assert told(reader, AttachFlag.AUDIT, origin=origin) == pack("=2I", 17, 3)


# Capabilities

SIBLING = UserNamespace(INITIAL_USER_NAMESPACE, (), ())
INNER = UserNamespace(CONTAINER, (), (), owner=9001)
ALICES = UserNamespace(INITIAL_USER_NAMESPACE, (), (), owner=1002)
INSIDE_ALICES = UserNamespace(ALICES, (), (), owner=9002)
VERBATIM = EVERYTHING[8][2]
EVERY_CAPABILITY = pack("=I8I", 40, 0, 0, *[0xFFFFFFFF] * 6)
NO_CAPABILITY = pack("=I8I", 40, *[0] * 8)


@pytest.mark.parametrize(
    ("home", "reader", "expected"),
    [
        pytest.param(INITIAL_USER_NAMESPACE, INITIAL_USER_NAMESPACE, VERBATIM, id="same"),
        pytest.param(CONTAINER, CONTAINER, VERBATIM, id="same container"),
        pytest.param(INITIAL_USER_NAMESPACE, CONTAINER, VERBATIM, id="further in"),
        pytest.param(INITIAL_USER_NAMESPACE, INNER, VERBATIM, id="further in by two"),
        pytest.param(CONTAINER, INITIAL_USER_NAMESPACE, NO_CAPABILITY, id="further out"),
        pytest.param(CONTAINER, SIBLING, NO_CAPABILITY, id="beside"),
        pytest.param(INITIAL_USER_NAMESPACE, ALICES, EVERY_CAPABILITY, id="in one she made"),
        pytest.param(
            INITIAL_USER_NAMESPACE, INSIDE_ALICES, EVERY_CAPABILITY, id="in one inside one she made"
        ),
        pytest.param(ALICES, ALICES, VERBATIM, id="she is in the one she made"),
        pytest.param(ALICES, INITIAL_USER_NAMESPACE, NO_CAPABILITY, id="outside of the one she made"),
        pytest.param(CONTAINER, ALICES, NO_CAPABILITY, id="beside, in one with her uid as owner"),
    ],
)
def test_capabilities_count_where_the_process_is_and_further_in(
    home: UserNamespace, reader: UserNamespace, expected: bytes
) -> None:
    origin = a_process(user_namespace=home)
    assert told(a_process(user_namespace=reader), AttachFlag.CAPS, origin=origin) == expected


def test_nobody_made_a_namespace_whose_uid_is_unknown() -> None:
    origin = a_process(snapshot=replace(KNOWN, creds=None))
    assert told(a_process(user_namespace=ALICES), AttachFlag.CAPS, origin=origin) == VERBATIM


@pytest.mark.parametrize(("last_cap", "words"), [(0, 1), (31, 1), (32, 2), (40, 2), (63, 2), (64, 3)])
def test_capability_sets_have_as_many_words_as_the_last_capability_needs(last_cap: int, words: int) -> None:
    every = (1 << last_cap + 1) - 1
    origin = a_process(snapshot=Snapshot(caps=Caps(last_cap, every, 0, every, 1)))
    sets = [word for one in (every, 0, every, 1) for word in split(one, words)]
    assert told(BOB, AttachFlag.CAPS, origin=origin) == pack(f"=I{4 * words}I", last_cap, *sets)


def split(value: int, words: int) -> list[int]:
    raw = value.to_bytes(4 * words, "little")
    return [int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)]


def test_numbers_are_in_the_order_of_the_machine() -> None:
    pids = told(BOB, AttachFlag.PIDS)
    assert pids is not None
    assert int.from_bytes(pids[:8], sys.byteorder) == 301


# Pid namespaces


def test_pids_are_told_as_the_reader_has_them() -> None:
    origin = a_process(pid_namespace=PID_CONTAINER, pids_in={PID_CONTAINER: Pids(1, 2, 0)})
    inside = a_process(pid_namespace=PID_CONTAINER)
    assert told(inside, AttachFlag.PIDS, origin=origin) == pack("=3Q", 1, 2, 0)
    assert told(BOB, AttachFlag.PIDS, origin=origin) == pack("=3Q", 301, 302, 300)
    assert told(origin, AttachFlag.PIDS, origin=origin) == pack("=3Q", 1, 2, 0)


def test_pids_that_are_unknown_are_left_out_everywhere() -> None:
    origin = a_process(snapshot=replace(KNOWN, pids=None))
    assert told(BOB, AttachFlag.PIDS, origin=origin) is None
    assert told(a_process(pid_namespace=PID_CONTAINER), AttachFlag.PIDS, origin=origin) is None


def test_an_invisible_process_has_pids_of_zero() -> None:
    inside = a_process(pid_namespace=PID_CONTAINER)
    assert told(inside, AttachFlag.PIDS) == pack("=3Q", 0, 0, 0)


def test_a_faked_pid_is_told_as_it_is_in_the_initial_namespace() -> None:
    faked = Snapshot(pids=Pids(55))
    inside = a_process(pid_namespace=PID_CONTAINER, pids_in={PID_CONTAINER: Pids(1, 2, 0)})
    assert told(BOB, AttachFlag.PIDS, snapshot=faked) == pack("=3Q", 55, 0, 0)
    assert told(BOB, AttachFlag.PIDS, snapshot=faked, origin=inside) == pack("=3Q", 55, 0, 0)


def test_in_another_namespace_a_faked_pid_is_told_only_if_it_is_known_there() -> None:
    inside = a_process(pid_namespace=PID_CONTAINER, pids_in={PID_CONTAINER: Pids(1, 2, 0)})
    neighbour = a_process(pid_namespace=PID_CONTAINER)
    known, unknown, unset = (
        Snapshot(pids=Pids(301, 0, 300)),
        Snapshot(pids=Pids(301, 55)),
        Snapshot(pids=Pids()),
    )
    for reader in (inside, neighbour):
        assert told(reader, AttachFlag.PIDS, snapshot=known, origin=inside) == pack("=3Q", 1, 0, 0)
        assert told(reader, AttachFlag.PIDS, snapshot=unknown, origin=inside) is None
        assert told(reader, AttachFlag.PIDS, snapshot=unset, origin=inside) == pack("=3Q", 0, 0, 0)
    # Of who is invisible there it is known that it is.
    assert told(neighbour, AttachFlag.PIDS, snapshot=known, origin=ALICE) == pack("=3Q", 0, 0, 0)
    nobody = Process(Snapshot())
    assert told(neighbour, AttachFlag.PIDS, snapshot=unset, origin=nobody) == pack("=3Q", 0, 0, 0)
    assert told(neighbour, AttachFlag.PIDS, snapshot=known, origin=nobody) is None


def test_a_faked_pid_is_told_wherever_it_was_faked() -> None:
    faked, nowhere = Snapshot(pids=Pids(55)), a_process(pid_namespace=None)
    assert told(nowhere, AttachFlag.PIDS, snapshot=faked, origin=nowhere) == pack("=3Q", 55, 0, 0)
    assert told(BOB, AttachFlag.PIDS, snapshot=faked, origin=nowhere) == pack("=3Q", 55, 0, 0)
    assert told(a_process(pid_namespace=None), AttachFlag.PIDS, snapshot=faked, origin=nowhere) is None


# What cannot be translated

RAW = [ItemType.TID_COMM, ItemType.PID_COMM, ItemType.CMDLINE, ItemType.SECLABEL]

# Of these the ids are known; whether it is one namespace, and where it lies, is not.
IDS_ALONE = UserNamespace(None, CONTAINER.uid_map, CONTAINER.gid_map, owner=1002)


def kinds_but(*left_out: ItemType) -> list[ItemType]:
    return [type for _, type, _ in EVERYTHING if type not in left_out]


@pytest.mark.parametrize(
    ("where", "left_out"),
    [
        (
            {"user_namespace": None},
            {ItemType.CREDS, ItemType.AUXGROUPS, ItemType.CGROUP, ItemType.CAPS, ItemType.AUDIT},
        ),
        ({"pid_namespace": None}, {ItemType.PIDS, ItemType.CGROUP}),
        ({"root": None}, {ItemType.EXE}),
    ],
)
def test_what_an_unknown_namespace_of_the_reader_has_to_translate_is_told_to_nobody_but_itself(
    where: dict[str, None], left_out: set[ItemType]
) -> None:
    unknown, another = a_process(**where), a_process(**where)
    assert types(build_process_items(KNOWN, ALICE, unknown, ATTACH_ALL)) == kinds_but(*left_out)
    assert types(build_process_items(KNOWN, unknown, another, ATTACH_ALL)) == kinds_but(*left_out)
    itself = build_process_items(KNOWN, unknown, unknown, ATTACH_ALL)
    assert decode(itself) == [(type, payload) for _, type, payload in EVERYTHING]


@pytest.mark.parametrize(
    ("where", "left_out"),
    [
        ({"user_namespace": None}, {ItemType.CAPS, ItemType.CGROUP}),
        ({"pid_namespace": None}, {ItemType.CGROUP}),
        ({"root": None}, {ItemType.EXE}),
    ],
)
def test_of_who_lives_in_an_unknown_namespace_only_what_depends_on_it_is_left_out(
    where: dict[str, None], left_out: set[ItemType]
) -> None:
    items = build_process_items(KNOWN, a_process(**where), ALICE, ATTACH_ALL)
    assert decode(items) == [(type, payload) for _, type, payload in EVERYTHING if type not in left_out]


def test_ids_of_who_lives_in_an_unknown_namespace_are_told_as_the_reader_has_them() -> None:
    unknown, inside = a_process(user_namespace=None), a_process(user_namespace=CONTAINER)
    for kind in (AttachFlag.CREDS, AttachFlag.AUXGROUPS, AttachFlag.AUDIT):
        assert told(inside, kind, origin=unknown) == told(inside, kind)


def test_who_lives_in_an_unknown_pid_namespace_is_invisible_but_in_the_initial_one() -> None:
    unknown, inside = a_process(pid_namespace=None), a_process(pid_namespace=PID_CONTAINER)
    assert told(inside, AttachFlag.PIDS, origin=unknown) == pack("=3Q", 0, 0, 0)
    assert told(BOB, AttachFlag.PIDS, origin=unknown) == pack("=3Q", 301, 302, 300)


def test_to_a_reader_of_whose_namespace_only_the_ids_are_known_ids_are_told() -> None:
    reader, inside = a_process(user_namespace=IDS_ALONE), a_process(user_namespace=CONTAINER)
    assert types(build_process_items(KNOWN, ALICE, reader, ATTACH_ALL)) == kinds_but(
        ItemType.CAPS, ItemType.CGROUP
    )
    for kind in (AttachFlag.CREDS, AttachFlag.AUXGROUPS, AttachFlag.AUDIT):
        assert told(reader, kind) == told(inside, kind)


@pytest.mark.parametrize("kind", [AttachFlag.CAPS, AttachFlag.CGROUP])
def test_where_only_ids_are_known_nobody_says_it_is_the_same_namespace(kind: AttachFlag) -> None:
    one, other = a_process(user_namespace=IDS_ALONE), a_process(user_namespace=IDS_ALONE)
    assert told(other, kind, origin=one) is None
    assert told(BOB, kind, origin=one) is None
    assert told(one, kind, origin=one) == next(payload for flag, _, payload in EVERYTHING if flag is kind)


def test_the_executable_is_told_to_those_with_the_same_root() -> None:
    here, there = a_process(root=("dev", 5)), a_process(root=("dev", 6))
    assert told(a_process(root=("dev", 5)), AttachFlag.EXE, origin=here) == b"/usr/bin/alice\0"
    assert told(there, AttachFlag.EXE, origin=here) is None


@pytest.mark.parametrize("where", [{"user_namespace": CONTAINER}, {"pid_namespace": PID_CONTAINER}])
def test_the_control_group_is_told_to_those_in_the_same_namespaces(
    where: dict[str, UserNamespace] | dict[str, PidNamespace],
) -> None:
    outside, inside, neighbour = a_process(), a_process(**where), a_process(**where)
    assert told(inside, AttachFlag.CGROUP, origin=outside) is None
    assert told(outside, AttachFlag.CGROUP, origin=inside) is None
    assert told(neighbour, AttachFlag.CGROUP, origin=inside) == b"/user.slice/alice.scope\0"


def test_strings_without_a_place_are_told_everywhere() -> None:
    far = a_process(user_namespace=SIBLING, pid_namespace=PID_CONTAINER, root="/elsewhere")
    items = build_process_items(KNOWN, ALICE, far, ATTACH_ALL)
    assert [(type, payload) for type, payload in decode(items) if type in RAW] == [
        (type, payload) for _, type, payload in EVERYTHING if type in RAW
    ]
