"""Nodes: which names they may have, and who opens them."""

from __future__ import annotations

from errno import EINVAL

import pytest
from broker_world import OWNER, STRANGER, refused

from kdbus_core import Credentials
from kdbus_core.abi import MakeFlag
from kdbus_core.metadata import Process
from kdbus_core.node import check_own_name, is_valid_node_name, may_open

NOBODY, GROUP, WORLD = MakeFlag(0), MakeFlag.ACCESS_GROUP, MakeFlag.ACCESS_WORLD


@pytest.mark.parametrize("name", ["a", "0", "_", "bus", "1000-user", "a.b", "a-.b", "_a_", "a" * 63])
def test_these_are_names_of_nodes(name: str) -> None:
    assert is_valid_node_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "-", ".", "..", "-a", "a-", ".a", "a.", "a/b", "a b", "a\0", "a\n", "\u00e4", "\u0661", "a" * 64],
)
def test_these_are_not_names_of_nodes(name: str) -> None:
    assert not is_valid_node_name(name)


@pytest.mark.parametrize("name", ["1000-a", "1000--a", "1000-1000-a"])
def test_a_name_begins_with_its_makers_number_and_a_dash(name: str) -> None:
    check_own_name(name, OWNER)


@pytest.mark.parametrize("name", ["a", "1000", "1000-", "1000a", "01000-a", "2000-a", "100-a", "1000-a/b"])
def test_a_name_that_is_not_its_makers_is_invalid(name: str) -> None:
    with refused(EINVAL):
        check_own_name(name, OWNER)


@pytest.mark.parametrize("name", ["None-a", "-a", "0-a"])
def test_who_is_unknown_has_no_names(name: str) -> None:
    with refused(EINVAL):
        check_own_name(name, Credentials(gid=0))


@pytest.mark.parametrize(
    ("opener", "access", "expected"),
    [
        (OWNER, NOBODY, True),
        (STRANGER, NOBODY, False),
        (STRANGER, WORLD, True),
        (STRANGER, WORLD | GROUP, True),
        (STRANGER, GROUP, False),
        (Credentials(uid=2000, gid=1000), NOBODY, False),
        (Credentials(uid=2000, gid=1000), GROUP, True),
        (Credentials(uid=2000, gid=2000, groups=(5, 1000)), GROUP, True),
        (Credentials(uid=2000, gid=2000, groups=(5,)), GROUP, False),
        (Credentials(uid=0, gid=0), GROUP, False),
        (Credentials(), NOBODY, False),
        (Credentials(), GROUP, False),
        (Credentials(), WORLD, True),
    ],
)
def test_who_opens_a_node(opener: Credentials, access: MakeFlag, expected: bool) -> None:
    assert may_open(Process.of(opener), OWNER, access) is expected


def test_the_privileged_open_every_node() -> None:
    assert may_open(Process.of(STRANGER, privileged=True), OWNER, NOBODY)
    assert may_open(Process.of(Credentials(), privileged=True), Credentials(), NOBODY)


@pytest.mark.parametrize("access", [NOBODY, GROUP])
def test_the_unknown_are_not_all_the_same(access: MakeFlag) -> None:
    assert not may_open(Process.of(Credentials()), Credentials(), access)
    assert not may_open(Process.of(STRANGER), Credentials(), access)
