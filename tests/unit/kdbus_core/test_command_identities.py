"""Ids in items: translated from the namespaces of whoever opened the handle."""

from __future__ import annotations

from errno import E2BIG, EINVAL

import pytest
from handle_world import NAME, access_item, name_item, refused

from kdbus_core.abi import UNSET_ID, AccessLevel, AccessType, ItemType
from kdbus_core.commands.identities import parse_faked, parse_policy
from kdbus_core.items import Item, build_item, build_numbers_item, iterate_items
from kdbus_core.metadata import (
    INITIAL_USER_NAMESPACE,
    Creds,
    Extent,
    PidNamespace,
    Pids,
    Process,
    Snapshot,
    UserNamespace,
)
from kdbus_core.policy import Access, PolicyEntry

SEE, TALK, OWN = AccessLevel
USER, GROUP, WORLD = AccessType

OUTSIDE = Process(Snapshot())
CONTAINER = UserNamespace(
    parent=INITIAL_USER_NAMESPACE,
    uid_map=(Extent(0, 100_000, 1000),),
    gid_map=(Extent(0, 200_000, 1000),),
    owner=1000,
)
INSIDE = Process(Snapshot(), user_namespace=CONTAINER)
NOWHERE = Process(Snapshot(), user_namespace=None, pid_namespace=None)


def items(*built: bytes) -> list[Item]:
    return list(iterate_items(b"".join(built), 0))


# Policies


def test_accesses_belong_to_the_name_before_them() -> None:
    parsed = parse_policy(
        items(
            name_item("a.b"),
            access_item(USER, TALK, 5),
            access_item(GROUP, SEE, 6),
            name_item("a.*"),
            name_item("c.d"),
            access_item(WORLD, OWN, 7),
        ),
        OUTSIDE,
    )
    assert parsed == [
        PolicyEntry("a.b", (Access(USER, 5, TALK), Access(GROUP, 6, SEE))),
        PolicyEntry("a.*", ()),
        PolicyEntry("c.d", (Access(WORLD, 0, OWN),)),
    ]


def test_other_items_are_not_looked_at() -> None:
    assert parse_policy(items(build_numbers_item(ItemType.ATTACH_FLAGS_SEND, 1)), OUTSIDE) == []


def test_ids_are_those_of_the_namespace_they_come_from() -> None:
    (entry,) = parse_policy(
        items(name_item(NAME), access_item(USER, SEE, 7), access_item(GROUP, SEE, 7)), INSIDE
    )
    assert [access.id for access in entry.accesses] == [100_007, 200_007]


@pytest.mark.parametrize("type", [USER, GROUP])
@pytest.mark.parametrize("id", [1000, 100_007, UNSET_ID, 1 << 32, (1 << 64) - 1])
def test_an_id_that_does_not_exist_in_the_namespace_is_invalid(type: int, id: int) -> None:
    with refused(EINVAL):
        parse_policy(items(name_item(NAME), access_item(type, SEE, id)), INSIDE)


@pytest.mark.parametrize("type", [USER, GROUP])
def test_no_id_exists_in_a_namespace_that_is_not_known(type: int) -> None:
    with refused(EINVAL):
        parse_policy(items(name_item(NAME), access_item(type, SEE, 0)), NOWHERE)


def test_the_id_of_everybody_means_nothing() -> None:
    parse_policy(items(name_item(NAME), access_item(WORLD, SEE, (1 << 64) - 1)), NOWHERE)


@pytest.mark.parametrize(
    ("built", "errno"),
    [
        pytest.param([name_item("a.b"), name_item("c.d")], E2BIG, id="a second name"),
        pytest.param([name_item("a.b"), name_item("nonsense")], E2BIG, id="whatever it is"),
        pytest.param([name_item("nonsense"), name_item("c.d")], EINVAL, id="a bad first name"),
        pytest.param([access_item(WORLD, SEE), name_item("a.b"), name_item("c.d")], EINVAL, id="no name"),
        pytest.param(
            [name_item("a.b"), access_item(9, SEE), name_item("c.d")], EINVAL, id="a type before that"
        ),
        pytest.param(
            [name_item("a.b"), access_item(WORLD, 9), name_item("c.d")], EINVAL, id="a level before that"
        ),
    ],
)
def test_the_first_item_that_is_wrong_decides(built: list[bytes], errno: int) -> None:
    with refused(errno):
        parse_policy(items(*built), OUTSIDE, max_names=1)


# Faked credentials


def test_nothing_is_faked_without_items_that_say_so() -> None:
    assert parse_faked(items(name_item(NAME)), OUTSIDE) is None


def test_faked_ids_are_translated_and_unknown_ones_stay_unknown() -> None:
    creds = build_numbers_item(ItemType.CREDS, 1, 2, UNSET_ID, 3, 4, 5, 6, UNSET_ID)
    groups = build_numbers_item(ItemType.AUXGROUPS, 7)
    assert parse_faked(items(creds, groups), INSIDE) == Snapshot(
        creds=Creds(100_001, 100_002, UNSET_ID, 100_003, 200_004, 200_005, 200_006, UNSET_ID),
        auxgroups=(200_007,),
    )


def test_unknown_ids_need_no_namespace() -> None:
    creds = build_numbers_item(ItemType.CREDS, *[UNSET_ID] * 8)
    pids = build_numbers_item(ItemType.PIDS, 0, 0, 0)
    assert parse_faked(items(creds, pids), NOWHERE) == Snapshot(creds=Creds(), pids=Pids())


@pytest.mark.parametrize("position", range(8))
@pytest.mark.parametrize("id", [1000, UNSET_ID + 1])
def test_each_faked_id_must_exist(position: int, id: int) -> None:
    ids = [0] * 8
    ids[position] = id
    with refused(EINVAL):
        parse_faked(items(build_numbers_item(ItemType.CREDS, *ids)), INSIDE)


def test_a_label_and_no_groups_are_taken_as_they_are() -> None:
    built = items(build_item(ItemType.SECLABEL, b"\xff\0"), build_item(ItemType.AUXGROUPS, b""))
    assert parse_faked(built, NOWHERE) == Snapshot(seclabel=b"\xff", auxgroups=())


def test_in_the_initial_namespace_any_pid_may_be_faked() -> None:
    pids = build_numbers_item(ItemType.PIDS, 1, (1 << 31) - 1, 0)
    assert parse_faked(items(pids), OUTSIDE) == Snapshot(pids=Pids(1, (1 << 31) - 1, 0))


INNER = PidNamespace()
CONTAINED = Process(Snapshot(pids=Pids(500, 501, 1)), pid_namespace=INNER, pids_in={INNER: Pids(5, 6, 0)})


def test_in_another_pid_namespace_a_process_may_fake_its_own_pids() -> None:
    pids = build_numbers_item(ItemType.PIDS, 5, 6, 0)
    assert parse_faked(items(pids), CONTAINED) == Snapshot(pids=Pids(500, 501, 0))


@pytest.mark.parametrize(
    "process", [CONTAINED, NOWHERE, Process(Snapshot(), pid_namespace=INNER)], ids=["in", "no", "un"]
)
def test_of_other_pids_there_nothing_is_known(process: Process) -> None:
    with refused(EINVAL):
        parse_faked(items(build_numbers_item(ItemType.PIDS, 7, 0, 0)), process)
