"""What maps say of a namespace that cannot be looked at: exactly what follows from them."""

from __future__ import annotations

import pytest

from kdbus_core.abi import UNSET_ID
from kdbus_core.metadata import Extent
from kdbus_core.transport.id_maps import IdMaps, are_surely_own, mapped, parse_map, translate

EVERY = ((0, 0, UNSET_ID),)
"""As on a machine without containers."""
PRIVATE = ((0, 100000, 65536),)
ROOTLESS = ((0, 1000, 1), (1, 100000, 65536))
PARTLY_THE_SAME = ((0, 0, 65536),)
SWAPPED = ((0, 1, 1), (1, 0, 1))

Raw = tuple[tuple[int, int, int], ...]


def maps(uids: Raw, gids: Raw | None = None) -> IdMaps:
    uid_map, gid_map = (tuple(Extent(*one) for one in raw) for raw in (uids, uids if gids is None else gids))
    return IdMaps(uid_map, gid_map)


@pytest.mark.parametrize(
    ("own", "theirs", "is_own", "is_known"),
    [
        pytest.param(EVERY, EVERY, False, True, id="ours or one that changes no id"),
        pytest.param(EVERY, PRIVATE, False, True, id="inside ours"),
        pytest.param(EVERY, (), False, True, id="inside ours, nobody has an id"),
        pytest.param(PRIVATE, PRIVATE, True, False, id="ours, for nobody else has such ids outside"),
        pytest.param(ROOTLESS, ROOTLESS, True, False, id="ours, by one of its extents"),
        pytest.param(PRIVATE, ((0, 500, 10),), False, True, id="inside our container"),
        pytest.param(PRIVATE, ((0, 65530, 10),), False, False, id="goes on where ours has ended"),
        pytest.param(ROOTLESS, ((0, 0, 2),), False, False, id="across two extents of ours"),
        pytest.param(PRIVATE, ((0, UNSET_ID, UNSET_ID),), False, False, id="around ours"),
        pytest.param(PRIVATE, ((0, 0, 10), (10, UNSET_ID, 5)), False, False, id="partly beside ours"),
        pytest.param(PRIVATE, ((0, 100000, 10),), False, False, id="ids that ours has not"),
        pytest.param(PARTLY_THE_SAME, PARTLY_THE_SAME, False, True, id="ours or one with all its ids"),
        pytest.param(PARTLY_THE_SAME, EVERY, False, False, id="around ours, beginning with the same id"),
        pytest.param(SWAPPED, SWAPPED, False, False, id="ours, or one that swaps once more"),
        pytest.param(SWAPPED, ((0, 0, 1),), False, True, id="inside the one that swaps"),
        pytest.param((), (), False, True, id="ours has no ids either"),
    ],
)
def test_only_what_is_certain_is_said(own: Raw, theirs: Raw, *, is_own: bool, is_known: bool) -> None:
    assert are_surely_own(maps(theirs), maps(own)) is is_own
    assert translate(maps(theirs), maps(own)) is is_known


def test_one_of_two_maps_can_be_the_proof() -> None:
    assert are_surely_own(maps(EVERY, PRIVATE), maps(EVERY, PRIVATE))
    assert are_surely_own(maps(PRIVATE, EVERY), maps(PRIVATE, EVERY))
    assert not are_surely_own(maps(PRIVATE, EVERY), maps(PRIVATE, PRIVATE))


def test_both_maps_have_to_be_certain() -> None:
    inside, beside = ((0, 500, 10),), ((0, 100000, 10),)
    assert translate(maps(inside, inside), maps(PRIVATE))
    assert not translate(maps(inside, beside), maps(PRIVATE))
    assert not translate(maps(beside, inside), maps(PRIVATE))


def test_a_map_is_read_line_by_line() -> None:
    data = b"         0       1000          1\n         1 4294967295         10\n"
    assert parse_map(data) == (Extent(0, 1000, 1), Extent(1, UNSET_ID, 10))
    assert parse_map(b"") == ()


def test_what_has_no_ids_here_can_be_left_out() -> None:
    assert mapped((Extent(0, 1000, 1), Extent(1, UNSET_ID, 10))) == (Extent(0, 1000, 1),)
