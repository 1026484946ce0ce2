"""Which strings are names; the verdicts are libdbus'."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from busproxy.wire.names import (
    is_bus_name,
    is_error_name,
    is_interface_name,
    is_member_name,
    is_namespace,
    is_object_path,
    is_unique_name,
    is_well_known_name,
)

LONGEST = "a." * 127 + "b"


@pytest.mark.parametrize("name", [":1.5", ":1", ":", ":.1", ":a-b.0", ":" + "1" * 254])
def test_a_colon_makes_a_unique_name_even_with_one_element_or_none(name: str) -> None:
    assert is_unique_name(name)
    assert is_bus_name(name)
    assert not is_well_known_name(name)


@pytest.mark.parametrize("name", ["", "1.5", ":1..5", ":1.", ":1.5\n", ":\u00e9", ":1:5", ":" + "1" * 255])
def test_other_strings_are_no_unique_names(name: str) -> None:
    assert not is_unique_name(name)


@pytest.mark.parametrize("name", ["a.b", "org.example.Editor", "a-b.-c", "_._", "a.b0", LONGEST])
def test_two_elements_make_a_well_known_name_and_may_hold_hyphens(name: str) -> None:
    assert is_well_known_name(name)
    assert is_bus_name(name)
    assert not is_unique_name(name)


@pytest.mark.parametrize(
    "name", ["", "a", ".a.b", "a..b", "a.b.", "a.0b", "0.a", "a.b\n", "a b.c", LONGEST + "c"]
)
def test_other_strings_are_no_bus_names(name: str) -> None:
    assert not is_well_known_name(name)
    assert not is_bus_name(name)


@pytest.mark.parametrize("check", [is_interface_name, is_error_name])
@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("org.example.Face", True),
        ("_._0", True),
        (LONGEST, True),
        (LONGEST + "c", False),
        ("Face", False),
        ("a-b.c", False),
        ("a.0", False),
        ("a..b", False),
        ("", False),
        ("\u00e9.a", False),
        (":1.5", False),
    ],
)
def test_interface_and_error_names_have_two_elements_and_no_hyphen(
    check: Callable[[str], bool], name: str, valid: bool
) -> None:
    assert check(name) is valid


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("Get", True),
        ("_", True),
        ("a0", True),
        ("x" * 255, True),
        ("x" * 256, False),
        ("", False),
        ("0a", False),
    ]
    + [("a.b", False), ("a-b", False), ("Get\n", False), ("\u00e9", False)],
)
def test_a_member_is_one_element(name: str, valid: bool) -> None:
    assert is_member_name(name) is valid


@pytest.mark.parametrize("path", ["/", "/a", "/a/b_0", "/0", "/" + "p" * 1000])
def test_a_path_of_any_length_is_a_path(path: str) -> None:
    assert is_object_path(path)


@pytest.mark.parametrize(
    "path", ["", "a", "//", "/a/", "/a//b", "/a-b", "/a.b", "/a\n", "/\u00e9", "/" + "p" * 999 + "/"]
)
def test_other_strings_are_no_paths(path: str) -> None:
    assert not is_object_path(path)


@pytest.mark.parametrize("name", ["a", "com", "com.example", "-", LONGEST, ":1"])
def test_one_element_is_enough_for_a_namespace(name: str) -> None:
    assert is_namespace(name)


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "0", LONGEST + "c"])
def test_other_strings_are_no_namespaces(name: str) -> None:
    assert not is_namespace(name)
