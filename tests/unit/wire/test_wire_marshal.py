"""Values to bytes and back."""

from __future__ import annotations

from typing import Any

import pytest

from busproxy.wire.marshal import marshal, unmarshal

CASES: list[tuple[str, list[Any]]] = [
    ("", []),
    ("ybnqiuxtdh", [255, True, -(2**15), 65535, -(2**31), 2**32 - 1, -(2**63), 2**64 - 1, 0.5, 7]),
    ("sog", ["Z\u00fcrich", "/a", "a{sv}"]),
    ("ay", [b"\x00\x01\xff"]),
    ("as", [["a", "", "b"]]),
    ("a{sv}", [{"a": ("u", 1), "b": ("as", ["x"]), "c": ("v", ("y", 2))}]),
    ("(y(xs)at)", [(1, (2, "s"), [3])]),
    ("aa{s(ib)}", [[{"k": (1, False)}, {}]]),
    ("ya(t)", [1, []]),
]


@pytest.mark.parametrize("little_endian", [True, False])
@pytest.mark.parametrize(("signature", "values"), CASES)
def test_values_come_back_as_they_went(signature: str, values: list[Any], little_endian: bool) -> None:
    body = marshal(signature, values, little_endian=little_endian)
    assert unmarshal(signature, b"\xee" + body + b"\xee", 1, 1 + len(body), little_endian) == values


def test_bytes_are_laid_out_as_the_specification_says() -> None:
    body = marshal("ysa{yv}", [1, "ab", {2: ("q", 3)}])
    assert body == bytes.fromhex("01000000 02000000 6162 00 00 06000000 02 017100 0300")


def test_a_big_endian_body_has_its_most_significant_byte_first() -> None:
    assert marshal("us", [1, "a"], little_endian=False) == b"\0\0\0\x01\0\0\0\x01a\0"


def test_padding_stands_before_values_and_not_in_the_length_of_an_array() -> None:
    assert marshal("yat", [1, [2]]) == b"\x01\0\0\0\x08\0\0\0\x02\0\0\0\0\0\0\0"
    assert marshal("at", [[]]) == bytes(8)


def test_an_array_of_bytes_may_be_given_as_numbers() -> None:
    assert marshal("ay", [[1, 2]]) == marshal("ay", [bytearray((1, 2))])


@pytest.mark.parametrize(
    ("signature", "values"),
    [
        ("u", ["1"]),
        ("u", [1.0]),
        ("b", [1]),
        ("s", [b"a"]),
        ("o", [None]),
        ("g", [b"s"]),
        ("d", ["1"]),
        ("as", ["ab"]),
        ("ai", [5]),
        ("a{sv}", [[("a", ("s", "b"))]]),
        ("v", ["x"]),
        ("v", [("s",)]),
        ("(ii)", [5]),
        ("ay", ["ab"]),
    ],
)
def test_a_value_of_a_wrong_type_is_a_type_error(signature: str, values: list[Any]) -> None:
    with pytest.raises(TypeError):
        marshal(signature, values)


@pytest.mark.parametrize(
    ("signature", "values", "text"),
    [
        ("y", [256], "out of range"),
        ("u", [-1], "out of range"),
        ("n", [2**15], "out of range"),
        ("t", [2**64], "out of range"),
        ("d", [10**400], "out of range"),
        ("s", ["a\0b"], "holds a NUL"),
        ("s", ["\ud800"], "surrogates"),
        ("o", ["a"], "not an object path"),
        ("g", ["a"], "invalid signature"),
        ("v", [("ss", "a")], "not one complete type"),
        ("v", [("", "a")], "not one complete type"),
        ("v", [("z", "a")], "invalid signature"),
        ("(ii)", [(1,)], "1 values for a struct of 2"),
        ("ss", ["a"], "1 values for signature"),
        ("s", ["a", "b"], "2 values for signature"),
        ("a{", [1], "invalid signature"),
    ],
)
def test_a_value_that_breaks_a_rule_is_a_value_error(signature: str, values: list[Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        marshal(signature, values)


def test_nothing_nests_deeper_than_64_levels() -> None:
    value: tuple[str, Any] = ("y", 1)
    for _ in range(63):
        value = ("v", value)
    marshal("v", [value])
    with pytest.raises(ValueError, match="64 levels"):
        marshal("v", [("v", value)])


def test_an_array_over_64_mib_is_refused() -> None:
    with pytest.raises(ValueError, match="64 MiB"):
        marshal("ay", [bytes(67108865)])
