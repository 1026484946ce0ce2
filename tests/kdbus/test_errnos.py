"""Every errno has a test that provokes it, and docs/errors.md tells which."""

from __future__ import annotations

import errno as errno_numbers
from collections import Counter
from errno import EBADSLT, EINVAL

import pytest
from support.kdbus import World

from . import errno_provoking
from .errno_provoking import LAYOUTS, provokes
from .errno_report import DOCUMENT, OTHERS, load_tests, render
from .errno_rows import COMMANDS, MANUAL, NEVER, REFERENCE, ROWS, UNREACHABLE

EBADSLT_ROW = ("MATCH_REMOVE", "EBADSLT", "there is no match with the cookie")
SHARED_ROW = (COMMANDS, "EINVAL", "unknown flags")


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests made in here are nobody's."""
    load_tests()
    monkeypatch.setattr(errno_provoking, "PROVOKED", [])


def test_no_row_is_there_twice() -> None:
    assert [row for row, count in Counter(ROWS).items() if count > 1] == []


def test_every_row_has_exactly_one_test() -> None:
    tests = Counter(provoked.row for provoked in load_tests())
    assert {row: tests[row] for row in ROWS if tests[row] != 1} == {}


def test_every_test_has_exactly_one_row() -> None:
    rows = Counter(provoked.test for provoked in load_tests())
    assert {test: count for test, count in rows.items() if count != 1} == {}
    assert {provoked.row for provoked in load_tests()} <= set(ROWS)


@pytest.mark.parametrize("operation", REFERENCE)
def test_every_errno_of_the_interface_is_provoked_or_cannot_be(operation: str) -> None:
    provoked = {row.errno for row in ROWS if operation in row.operations}
    never = {errno for whose, errno in NEVER if whose == operation}
    assert provoked == REFERENCE[operation] - never


def test_the_tables_know_every_operation() -> None:
    operations = {operation for row in ROWS for operation in row.operations}
    assert operations == set(REFERENCE) == {*COMMANDS, *OTHERS}


def test_what_cannot_be_provoked_is_explained_and_in_the_interface() -> None:
    assert {(entry.operation, entry.errno) for entry in UNREACHABLE} >= NEVER
    for entry in UNREACHABLE:
        assert entry.errno in REFERENCE[entry.operation], entry


def test_every_errno_is_one() -> None:
    names = {row.errno for row in ROWS} | {entry.errno for entry in (*UNREACHABLE, *MANUAL)}
    assert {name for name in names if not hasattr(errno_numbers, name)} == set()


def test_the_document_is_what_the_tables_say() -> None:
    assert DOCUMENT.read_text() == render(), "write it anew: python -m tests.kdbus.errno_report"


# That a test which does not provoke its errno fails


@pytest.mark.usefixtures("unregistered")
def test_a_refusal_with_another_errno_does_not_count(world: World) -> None:
    @provokes(*EBADSLT_ROW)
    def check(world: World) -> None:
        world.connect().name_acquire("nodots")

    with pytest.raises(AssertionError, match="EBADSLT of MATCH_REMOVE expected, got EINVAL"):
        check(world=world)


@pytest.mark.usefixtures("unregistered")
def test_the_same_errno_of_another_command_does_not_count(world: World) -> None:
    @provokes(*EBADSLT_ROW)
    def check(world: World) -> None:
        client = world.connect()
        client.reply(client, 7)

    with pytest.raises(AssertionError, match=f"operation='SEND', errno={EBADSLT}"):
        check(world=world)


@pytest.mark.usefixtures("unregistered")
def test_a_command_that_is_done_does_not_count(world: World) -> None:
    @provokes(*EBADSLT_ROW)
    def check(world: World) -> None:
        client = world.connect()
        client.add_match_empty()
        client.remove_match(0)

    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check(world=world)


@pytest.mark.usefixtures("unregistered")
def test_a_shared_row_is_looked_at_command_by_command(world: World) -> None:
    @provokes(*SHARED_ROW)
    def check(world: World, command: str) -> None:
        world.connect().command(LAYOUTS["BYEBYE"], flags=1)

    check(world=world, command="BYEBYE")
    with pytest.raises(AssertionError, match=f"operation='BYEBYE', errno={EINVAL}"):
        check(world=world, command="FREE")


def test_a_test_without_a_row_is_an_error() -> None:
    with pytest.raises(LookupError, match="no row says so"):
        provokes("MATCH_REMOVE", "EBADSLT", "another condition")
