"""Files among values: indices when they go, descriptors when they come."""

from __future__ import annotations

import os
from typing import Any

import pytest

from busproxy.native.values import Descriptor, put_files, take_files


class File:
    """Something that has a descriptor."""

    def fileno(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("signature", "values", "indexed", "fds"),
    [
        ("h", [7], [0], [7]),
        ("hsh", [7, "x", File()], [0, "x", 1], [7, 7]),
        ("ah", [[5, 6, 7]], [[0, 1, 2]], [5, 6, 7]),
        ("(ih)a{uh}", [(1, 5), {2: 6}], [(1, 0), {2: 1}], [5, 6]),
        ("a{sv}", [{"a": ("v", ("(h)", (6,)))}], [{"a": ("v", ("(h)", (0,)))}], [6]),
        ("av", [[("s", "x")]], [[("s", "x")]], []),
        ("su", ["x", 1], ["x", 1], []),
    ],
)
def test_files_become_indices_and_come_back(
    signature: str, values: list[Any], indexed: list[Any], fds: list[int]
) -> None:
    taken, found = take_files(signature, values)
    assert (list(taken), found) == (indexed, fds)


def test_indices_become_descriptors_wherever_they_are() -> None:
    descriptors = [Descriptor(os.open("/dev/null", os.O_RDONLY)) for _ in range(2)]
    values = put_files("a{sv}h", [{"a": ("ah", [1, 0])}, 1], descriptors)
    assert values == [{"a": ("ah", [descriptors[1], descriptors[0]])}, descriptors[1]]
    for descriptor in descriptors:
        descriptor.close()
        descriptor.close()


def test_an_index_without_a_descriptor_is_refused() -> None:
    with pytest.raises(ValueError, match="descriptor 1 of 0"):
        put_files("v", [("h", 1)], [])


@pytest.mark.parametrize("value", [True, "name", None, 1.5])
def test_what_is_no_file_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="is not a file"):
        take_files("h", [value])


def test_a_descriptor_that_was_detached_is_somebody_elses() -> None:
    with Descriptor(os.open("/dev/null", os.O_RDONLY)) as descriptor:
        fd = descriptor.detach()
    os.close(fd)  # it was not closed before


def test_a_descriptor_that_nobody_closes_warns() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.warns(ResourceWarning, match="was not closed"):
        Descriptor(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
