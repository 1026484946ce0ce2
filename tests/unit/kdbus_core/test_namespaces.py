"""What an id means in which user namespace."""

from __future__ import annotations

import pytest

from kdbus_core.abi import UNSET_ID
from kdbus_core.namespaces import INITIAL_USER_NAMESPACE, Extent, UserNamespace

# Root inside is 100000 outside; 1000 to 1009 are themselves; gids are mapped elsewhere.
CONTAINER = UserNamespace(
    INITIAL_USER_NAMESPACE,
    uid_map=(Extent(0, 100_000, 1000), Extent(1000, 1000, 10)),
    gid_map=(Extent(0, 200_000, 1000),),
    owner=1000,
)
# Ids 0 to 4 are the container's 10 to 14, and 5 is one that the container itself does not have.
NESTED = UserNamespace(
    CONTAINER, uid_map=(Extent(0, 10, 5), Extent(5, 5000, 1)), gid_map=(Extent(0, 10, 5),), owner=100_000
)
UNMAPPED = UserNamespace(INITIAL_USER_NAMESPACE, (), ())

MAPPED_UIDS = [
    (INITIAL_USER_NAMESPACE, 0, 0),
    (INITIAL_USER_NAMESPACE, UNSET_ID - 1, UNSET_ID - 1),
    (CONTAINER, 0, 100_000),
    (CONTAINER, 999, 100_999),
    (CONTAINER, 1000, 1000),
    (CONTAINER, 1009, 1009),
    (NESTED, 0, 100_010),
    (NESTED, 4, 100_014),
]
MAPPED_GIDS = [
    (INITIAL_USER_NAMESPACE, 0, 0),
    (CONTAINER, 0, 200_000),
    (CONTAINER, 999, 200_999),
    (NESTED, 4, 200_014),
]


@pytest.mark.parametrize(("namespace", "inside", "outside"), MAPPED_UIDS)
def test_a_mapped_uid_is_found_both_ways(namespace: UserNamespace, inside: int, outside: int) -> None:
    assert namespace.to_initial_uid(inside) == outside
    assert namespace.from_initial_uid(outside) == inside


@pytest.mark.parametrize(("namespace", "inside", "outside"), MAPPED_GIDS)
def test_a_mapped_gid_is_found_both_ways(namespace: UserNamespace, inside: int, outside: int) -> None:
    assert namespace.to_initial_gid(inside) == outside
    assert namespace.from_initial_gid(outside) == inside


@pytest.mark.parametrize(
    ("namespace", "inside"),
    [
        (INITIAL_USER_NAMESPACE, UNSET_ID),
        (INITIAL_USER_NAMESPACE, -1),
        (CONTAINER, 1010),
        (CONTAINER, UNSET_ID),
        (NESTED, 5),
        (NESTED, 6),
        (UNMAPPED, 0),
    ],
)
def test_an_id_that_no_extent_covers_is_nobody(namespace: UserNamespace, inside: int) -> None:
    assert namespace.to_initial_uid(inside) is None
    assert namespace.to_initial_gid(inside) is None


@pytest.mark.parametrize(
    ("namespace", "outside"),
    [
        (INITIAL_USER_NAMESPACE, UNSET_ID),
        (CONTAINER, 0),
        (CONTAINER, 99_999),
        (CONTAINER, 1010),
        (NESTED, 100_009),
        (NESTED, 100_015),
        (NESTED, 5000),
        (UNMAPPED, 0),
    ],
)
def test_who_is_not_mapped_does_not_exist_inside(namespace: UserNamespace, outside: int) -> None:
    assert namespace.from_initial_uid(outside) is None
    assert namespace.from_initial_gid(outside) is None


def test_a_namespace_descends_from_those_above_it_and_from_nothing_else() -> None:
    assert NESTED.is_descendant_of(CONTAINER)
    assert NESTED.is_descendant_of(INITIAL_USER_NAMESPACE)
    assert CONTAINER.is_descendant_of(INITIAL_USER_NAMESPACE)
    assert not CONTAINER.is_descendant_of(NESTED)
    assert not CONTAINER.is_descendant_of(CONTAINER)
    assert not NESTED.is_descendant_of(UNMAPPED)
    assert not INITIAL_USER_NAMESPACE.is_descendant_of(CONTAINER)


def test_the_lineage_of_a_namespace_ends_with_the_initial_one() -> None:
    assert NESTED.lineage() == [NESTED, CONTAINER, INITIAL_USER_NAMESPACE]
    assert INITIAL_USER_NAMESPACE.lineage() == [INITIAL_USER_NAMESPACE]


def test_namespaces_with_the_same_maps_are_not_the_same() -> None:
    twin = UserNamespace(CONTAINER.parent, CONTAINER.uid_map, CONTAINER.gid_map, CONTAINER.owner)
    assert twin != CONTAINER
    assert not NESTED.is_descendant_of(twin)
