"""Finding nodes in a domain's directory: what counts as one, and which bus somebody means."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kdbus_core.ctl.places import Place, Problem, find_domain


class Tree:
    """A directory with sockets in it, short enough for their addresses."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.place = Place(directory)
        self._stack = stack

    def add(self, *paths: str) -> None:
        for path in paths:
            file = self.directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            node = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            node.bind(str(file))


@pytest.fixture
def tree() -> Iterator[Tree]:
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="kd-"))
        yield Tree(Path(directory), stack)


def test_a_bus_is_a_directory_with_a_default_endpoint(tree: Tree) -> None:
    tree.add("control", "0-b/bus", "0-a/bus", "0-a/ep.0-x", "0-a/ep.0-e", "0-c/ep.0-e")
    (tree.directory / "0-d").mkdir()
    (tree.directory / "0-e").mkdir()
    (tree.directory / "0-e" / "bus").touch()
    assert tree.place.buses() == ["0-a", "0-b"]
    assert tree.place.endpoints("0-a") == ["bus", "0-e", "0-x"]


def test_domains_are_found_by_their_names(tree: Tree) -> None:
    tree.add("control", "domains/a/control", "domains/a/domains/b/control", "domains/c/other")
    assert [place.name for place in tree.place.inner()] == ["a"]
    assert find_domain(tree.directory, "") == tree.place
    inner = find_domain(tree.directory, "a/b")
    assert inner == Place(tree.directory / "domains" / "a" / "domains" / "b", "a/b")
    assert [place.name for place in find_domain(tree.directory, "a").inner()] == ["a/b"]


def test_a_domain_that_is_not_there_is_a_problem(tree: Tree) -> None:
    with pytest.raises(Problem, match="no control node"):
        find_domain(tree.directory, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("0-a", ("0-a", "bus")),
        ("0-a/bus", ("0-a", "bus")),
        ("0-a/0-e", ("0-a", "0-e")),
        ("0-a/ep.0-e", ("0-a", "0-e")),
    ],
)
def test_an_endpoint_is_named_after_its_bus(tree: Tree, words: str, expected: tuple[str, str]) -> None:
    tree.add("control", "0-a/bus", "0-a/ep.0-e", "0-b/bus")
    assert tree.place.resolve(words) == expected


def test_the_only_bus_need_not_be_named(tree: Tree) -> None:
    tree.add("control", "0-a/bus")
    assert tree.place.resolve(None) == ("0-a", "bus")


def test_an_endpoint_has_its_socket(tree: Tree) -> None:
    tree.add("0-a/bus", "0-a/ep.0-e")
    assert tree.place.node("0-a") == tree.directory / "0-a" / "bus"
    assert tree.place.node("0-a", "0-e") == tree.directory / "0-a" / "ep.0-e"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (None, "which bus"),
        ("0-c", "there is no bus 0-c"),
        ("0-a/0-x", "bus 0-a has no endpoint 0-x"),
        ("../0-a", "there is no bus .."),
        ("", "there is no bus"),
    ],
)
def test_a_bus_that_cannot_be_told_is_a_problem(tree: Tree, words: str | None, why: str) -> None:
    tree.add("control", "0-a/bus", "0-b/bus")
    with pytest.raises(Problem, match=why):
        tree.place.resolve(words)


def test_without_a_bus_there_is_none_to_mean(tree: Tree) -> None:
    tree.add("control")
    with pytest.raises(Problem, match="there is no bus in"):
        tree.place.resolve(None)
