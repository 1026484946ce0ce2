"""The policy database: what is accepted, what an upload replaces, and what it grants to whom."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EEXIST, EINVAL

import pytest
from broker_world import refused
from hypothesis import given
from hypothesis import strategies as st

from kdbus_core.abi import UNSET_ID, AccessLevel, AccessType
from kdbus_core.metadata import Credentials
from kdbus_core.policy import Access, PolicyDatabase, PolicyEntry, is_valid_policy_name, is_wildcard

SEE, TALK, OWN = AccessLevel.SEE, AccessLevel.TALK, AccessLevel.OWN
USER, GROUP, WORLD = AccessType.USER, AccessType.GROUP, AccessType.WORLD

ALICE = Credentials(uid=1000, gid=100, groups=(7, 8))
ANYBODY = Credentials()


def entry(name: str, *accesses: tuple[int, int, int]) -> PolicyEntry:
    return PolicyEntry(name, tuple(Access(*access) for access in accesses))


def open_to_all(name: str, level: int = OWN) -> PolicyEntry:
    return entry(name, (WORLD, 0, level))


def database(*entries: PolicyEntry) -> PolicyDatabase:
    made = PolicyDatabase()
    made.replace("somebody", entries)
    return made


def levels(policy: PolicyDatabase, *names: str) -> list[int | None]:
    return [policy.level(ANYBODY, name) for name in names]


# What is in it


def test_all_entries_are_told_by_name_with_whose_they_are() -> None:
    policy = database(open_to_all("com.b"), open_to_all("com.a.*", TALK))
    policy.replace("other", [entry("com.a"), entry("com.b.*", (GROUP, 5, SEE))])
    assert list(policy.entries()) == [
        (entry("com.a"), "other"),
        (open_to_all("com.a.*", TALK), "somebody"),
        (open_to_all("com.b"), "somebody"),
        (entry("com.b.*", (GROUP, 5, SEE)), "other"),
    ]
    policy.remove("somebody")
    assert [found.name for found, _ in policy.entries()] == ["com.a", "com.b.*"]


def test_of_several_accesses_of_the_same_the_highest_is_told() -> None:
    of_users = [(USER, 7, SEE), (USER, 3, OWN), (USER, 7, TALK)]
    given = [(GROUP, 9, TALK), *of_users, (WORLD, 5, SEE), (GROUP, 9, SEE)]
    ((found, _),) = database(entry("com.a", *given)).entries()
    assert found == entry("com.a", (WORLD, 0, SEE), (USER, 3, OWN), (USER, 7, TALK), (GROUP, 9, TALK))


# Names


@pytest.mark.parametrize(
    ("name", "is_valid"),
    [
        ("com.example", True),
        ("a.-b._c.d9", True),
        ("com.example.*", True),
        ("com.*", True),
        ("a." + "b" * 253, True),
        ("a." + "b" * 252 + ".*", False),
        ("a." + "b" * 251 + ".*", True),
        ("example", False),
        (".example.a", False),
        (".example.*", False),
        ("com..*", False),
        ("com.9a.*", False),
        ("*", False),
        (".*", False),
        ("", False),
        ("com.*.a", False),
        ("com.a*", False),
        ("com.**", False),
        ("com.*.*", False),
        ("*.com", False),
        ("com.exämple", False),
        ("com.exämple.*", False),
        (":1.5", False),
    ],
)
def test_an_entry_is_for_a_name_or_for_those_below_one(name: str, is_valid: bool) -> None:
    assert is_valid_policy_name(name) is is_valid
    policy = PolicyDatabase()
    if is_valid:
        policy.replace("somebody", [open_to_all(name)])
        assert len(policy) == 1
    else:
        with refused(EINVAL):
            policy.replace("somebody", [open_to_all(name)])
        assert len(policy) == 0


def test_a_wildcard_is_told_by_its_last_element() -> None:
    assert [is_wildcard(name) for name in ("a.*", "a.b", "a.b*")] == [True, False, False]


# Accesses


@pytest.mark.parametrize(
    "access",
    [
        (0, 1, OWN),
        (4, 1, OWN),
        (USER, 1, -1),
        (USER, 1, 3),
        (WORLD, 1, 3),
        (USER, -1, SEE),
        (USER, UNSET_ID, SEE),
        (GROUP, UNSET_ID, SEE),
        (GROUP, 2**32, SEE),
    ],
)
def test_an_access_that_makes_no_sense_is_refused(access: tuple[int, int, int]) -> None:
    policy = database(open_to_all("a.kept"))
    with refused(EINVAL):
        policy.replace("somebody", [open_to_all("a.b"), entry("a.c", (WORLD, 0, SEE), access)])
    assert levels(policy, "a.kept", "a.b", "a.c") == [OWN, None, None]


def test_the_id_of_an_access_for_everybody_means_nothing() -> None:
    policy = database(entry("a.b", (WORLD, 2**64 - 1, TALK)))
    assert policy.level(ANYBODY, "a.b") == TALK


@pytest.mark.parametrize("level", list(AccessLevel))
@pytest.mark.parametrize(
    ("type", "id", "applies"),
    [
        (USER, 1000, True),
        (USER, 100, False),
        (USER, 7, False),
        (GROUP, 100, True),
        (GROUP, 7, True),
        (GROUP, 8, True),
        (GROUP, 1000, False),
        (WORLD, 5, True),
    ],
)
def test_an_access_is_for_an_effective_uid_or_gid_or_a_further_group_or_everybody(
    type: int, id: int, applies: bool, level: AccessLevel
) -> None:
    assert database(entry("a.b", (type, id, level))).level(ALICE, "a.b") == (level if applies else None)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
@pytest.mark.parametrize(
    ("accesses", "level"),
    [
        ([(USER, 1000, SEE), (USER, 1000, OWN), (USER, 1000, TALK)], OWN),
        ([(WORLD, 0, TALK), (USER, 1000, SEE)], TALK),
        ([(WORLD, 0, SEE), (WORLD, 0, TALK)], TALK),
        ([(WORLD, 0, SEE), (USER, 1000, TALK), (GROUP, 100, OWN)], OWN),
        ([(WORLD, 0, SEE), (GROUP, 7, TALK), (GROUP, 8, OWN)], OWN),
        ([(GROUP, 7, TALK), (GROUP, 100, SEE)], TALK),
        ([(USER, 1, OWN), (USER, 2, OWN), (USER, 1000, OWN), (USER, 3, OWN)], OWN),
        ([(USER, 0, OWN), (USER, 1, TALK), (USER, 1000, SEE), (USER, 3, TALK)], SEE),
        ([(USER, 0, OWN), (GROUP, 0, OWN)], None),
        ([], None),
    ],
)
def test_of_several_accesses_the_highest_that_applies_counts(
    accesses: list[tuple[int, int, int]], level: int | None, order: slice
) -> None:
    assert database(entry("a.b", *accesses[order])).level(ALICE, "a.b") == level


@pytest.mark.parametrize("credentials", [Credentials(), Credentials(groups=())])
def test_ids_that_are_not_known_equal_none_of_an_access(credentials: Credentials) -> None:
    policy = database(entry("a.b", *((type, id, OWN) for type in (USER, GROUP) for id in (0, 65534))))
    assert policy.level(credentials, "a.b") is None


def test_an_id_that_is_known_counts_even_if_the_others_are_not() -> None:
    policy = database(entry("a.b", (USER, 0, OWN), (GROUP, 0, TALK)))
    assert policy.level(Credentials(uid=0), "a.b") == OWN
    assert policy.level(Credentials(gid=0), "a.b") == TALK
    assert policy.level(Credentials(groups=(5, 0)), "a.b") == TALK


def test_a_level_contains_those_below_it() -> None:
    policy = database(open_to_all("a.b", TALK))
    assert [policy.allows(ANYBODY, "a.b", level) for level in (SEE, TALK, OWN)] == [True, True, False]
    assert not policy.allows(ANYBODY, "a.c", SEE)


# Wildcards


def test_a_wildcard_covers_the_names_one_element_below_it() -> None:
    policy = database(open_to_all("a.b.*", TALK))
    covered, others = ["a.b.c", "a.b._"], ["a.b", "a.b.c.d", "a.c", "a.bb.c", "a"]
    assert levels(policy, *covered) == [TALK, TALK]
    assert levels(policy, *others) == [None] * len(others)


@pytest.mark.parametrize("accesses", [[], [(WORLD, 0, SEE)], [(USER, 1, OWN)]])
def test_an_exact_entry_is_all_there_is_to_say_about_a_name(accesses: list[tuple[int, int, int]]) -> None:
    policy = database(open_to_all("a.b.*"), entry("a.b.c", *accesses))
    assert policy.level(ANYBODY, "a.b.c") == (SEE if (WORLD, 0, SEE) in accesses else None)
    assert policy.level(ANYBODY, "a.b.d") == OWN


def test_only_the_nearest_wildcard_counts() -> None:
    policy = database(open_to_all("a.*", OWN), open_to_all("a.b.*", SEE))
    assert levels(policy, "a.b", "a.b.c") == [OWN, SEE]


# Uploads


def test_an_upload_replaces_all_that_its_owner_had_and_nothing_of_others() -> None:
    policy = PolicyDatabase()
    policy.replace("first", [open_to_all("a.a"), open_to_all("a.b", SEE), open_to_all("a.c.*")])
    policy.replace("second", [open_to_all("b.a")])
    policy.replace("first", [open_to_all("a.b", TALK), open_to_all("a.d.*")])
    assert levels(policy, "a.a", "a.b", "a.c.x", "a.d.x", "b.a") == [None, TALK, None, OWN, OWN]
    assert len(policy) == 3


def test_an_entry_without_accesses_takes_the_name_and_grants_nothing() -> None:
    policy = database(entry("a.b"))
    assert policy.level(ANYBODY, "a.b") is None
    with refused(EEXIST):
        policy.replace("somebody else", [open_to_all("a.b")])


def test_an_empty_upload_leaves_nothing() -> None:
    policy = database(open_to_all("a.b"))
    policy.replace("somebody", [])
    assert len(policy) == 0
    assert policy.level(ANYBODY, "a.b") is None
    assert not policy._owned


def test_entries_of_who_goes_go_and_make_room() -> None:
    policy = database(open_to_all("a.b"), open_to_all("a.b.*"))
    policy.replace("somebody else", [open_to_all("c.d")])
    policy.remove("somebody")
    policy.remove("somebody")
    policy.remove("nobody")
    assert levels(policy, "a.b", "a.b.c", "c.d") == [None, None, OWN]
    policy.replace("somebody else", [open_to_all("a.b"), open_to_all("a.b.*")])
    policy.remove("somebody else")
    assert not any((policy._names, policy._wildcards, policy._owners, policy._owned))


@pytest.mark.parametrize("name", ["a.b", "a.b.*"])
def test_a_name_has_one_entry_whoever_it_belongs_to(name: str) -> None:
    policy = database(open_to_all(name, SEE))
    policy.replace("other", [open_to_all("c.d")])
    with refused(EEXIST):
        policy.replace("other", [open_to_all("e.f"), open_to_all(name)])
    assert levels(policy, name.replace("*", "x"), "c.d", "e.f") == [SEE, OWN, None]


@pytest.mark.parametrize("name", ["a.b", "a.b.*"])
def test_an_upload_has_one_entry_for_a_name(name: str) -> None:
    policy = database(open_to_all(name, SEE))
    with refused(EEXIST):
        policy.replace("somebody", [open_to_all(name), open_to_all("e.f"), open_to_all(name)])
    assert levels(policy, name.replace("*", "x"), "e.f") == [SEE, None]


def test_a_name_and_the_wildcards_around_it_do_not_collide() -> None:
    policy = PolicyDatabase()
    names = ["a.b", "a.b.*", "a.*", "a.b.c", "a.b.c.*"]
    for name in names:
        policy.replace(name, [open_to_all(name)])
    assert len(policy) == len(names)
    database(*map(open_to_all, names))


def test_two_holders_take_turns_with_names_and_wildcards() -> None:
    policy = PolicyDatabase()
    see = (USER, 1000, SEE)
    for holder, name, errno in [
        ("A", "com.example.a", 0),
        ("B", "com.example.a", EEXIST),
        ("B", "com.example.a.*", 0),
        ("A", "com.example.a.*", EEXIST),
        ("A", "com.example.*", 0),
        ("B", "com.example.a", 0),
        ("B", "com.example.*", EEXIST),
        ("B", ".example.*", EINVAL),
        ("B", "example", EINVAL),
    ]:
        if errno:
            with refused(errno):
                policy.replace(holder, [entry(name, see)])
        else:
            policy.replace(holder, [entry(name, see)])
    assert policy.level(ALICE, "com.example.a") == SEE
    assert policy.level(ALICE, "com.example.b") == SEE
    assert policy.level(ALICE, "com.example.a.b") is None


# Cost


class CountedName(str):
    """A name that counts how often it is compared with another one."""

    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        CountedName.comparisons += 1
        return str.__eq__(self, other)


def test_what_a_question_costs_does_not_depend_on_the_number_of_entries() -> None:
    policy = PolicyDatabase()
    for number in range(2000):
        policy.replace(number, [open_to_all(f"a.b{number}"), open_to_all(f"a.b{number}.*")])
    CountedName.comparisons = 0
    for number in range(100):
        assert policy.level(ANYBODY, CountedName(f"a.b{number}")) == OWN
    assert CountedName.comparisons <= 200


# Compared with a search through everything

NAMES = ["a.b", "a.c", "a.b.c", "a.b.d", "a.b.c.d"]
accesses = st.tuples(
    st.sampled_from([USER, GROUP, WORLD]), st.integers(0, 2), st.sampled_from([SEE, TALK, OWN])
)
uploads = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.lists(
            st.tuples(st.sampled_from([*NAMES, "a.*", "a.b.*"]), st.lists(accesses, max_size=3)), max_size=3
        ),
    ),
    max_size=8,
)
ids = st.none() | st.integers(0, 2)


@given(uploads, ids, ids, st.none() | st.lists(st.integers(0, 2), max_size=2).map(tuple))
def test_any_uploads_grant_what_a_search_through_them_finds(
    history: list[tuple[int, list[tuple[str, list[tuple[int, int, int]]]]]],
    uid: int | None,
    gid: int | None,
    groups: tuple[int, ...] | None,
) -> None:
    policy = PolicyDatabase()
    kept: dict[int, list[tuple[str, list[tuple[int, int, int]]]]] = {}
    for owner, upload in history:
        names = [name for name, _ in upload]
        taken = {name for other, entries in kept.items() if other != owner for name, _ in entries}
        if len(set(names)) < len(names) or taken & set(names):
            with refused(EEXIST):
                policy.replace(owner, [entry(name, *granted) for name, granted in upload])
        else:
            policy.replace(owner, [entry(name, *granted) for name, granted in upload])
            kept[owner] = upload
    everything = dict(item for entries in kept.values() for item in entries)
    assert len(policy) == len(everything)
    for name in NAMES:
        granted = everything.get(name, everything.get(".".join([*name.split(".")[:-1], "*"]), []))
        found = [level for access in granted if (level := level_for(access, uid, gid, groups)) is not None]
        assert policy.level(Credentials(uid=uid, gid=gid, groups=groups), name) == max(found, default=None)


def level_for(
    access: tuple[int, int, int], uid: int | None, gid: int | None, groups: Sequence[int] | None
) -> int | None:
    type, id, level = access
    applies = {USER: uid == id, GROUP: gid == id or id in (groups or ()), WORLD: True}
    return level if applies[AccessType(type)] else None
