"""Valid signatures, their complete types and alignments."""

from __future__ import annotations

import pytest

from busproxy.wire.errors import ProtocolError
from busproxy.wire.signatures import (
    alignment_of,
    complete_types,
    is_single_complete_type,
    validate_signature,
)


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "ybnqiuxtdhsogv",
        "a{sv}",
        "a{s(ua{ys})}",
        "(a(aa(i)))",
        "a" * 32 + "y",
        "(" * 32 + "y" + ")" * 32,
        "a{y" * 32 + "y" + "}" * 32,
        "y" * 255,
    ],
)
def test_a_valid_signature_passes(signature: str) -> None:
    validate_signature(signature)


def test_only_arrays_in_a_row_count_against_their_limit() -> None:
    validate_signature("a" * 32 + "(" + "a" * 32 + "y)")
    validate_signature("a" * 32 + "y" + "a" * 32 + "y")


@pytest.mark.parametrize(
    ("signature", "offset"),
    [
        ("sz", 1),
        ("s\0", 1),
        ("\u00e9", 0),
        ("a", 1),
        ("ua", 2),
        ("(a)", 2),
        ("a{sa}", 4),
        ("()", 1),
        ("(i", 2),
        ("i)", 1),
        ("(i}", 2),
        ("(a{ii)}", 5),
        ("{sv}", 0),
        ("(s{sv})", 2),
        ("a{}", 2),
        ("a{s}", 3),
        ("a{sss}", 5),
        ("a{vs}", 2),
        ("a{(i)s}", 2),
        ("a{ass}", 2),
        ("r", 0),
        ("e", 0),
        ("a" * 33 + "y", 32),
        ("(" * 33 + "y" + ")" * 33, 32),
        ("a{y" * 33 + "y" + "}" * 33, 97),
        ("y" * 256, 255),
    ],
)
def test_an_invalid_signature_is_refused_where_it_breaks_the_rule(signature: str, offset: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        validate_signature(signature)
    assert caught.value.offset == offset


@pytest.mark.parametrize(
    ("signature", "types"),
    [
        ("", ()),
        ("s", ("s",)),
        ("sa{sv}as", ("s", "a{sv}", "as")),
        ("(i(ss))aa{s(uu)}v", ("(i(ss))", "aa{s(uu)}", "v")),
    ],
)
def test_a_signature_splits_into_complete_types(signature: str, types: tuple[str, ...]) -> None:
    assert complete_types(signature) == types


def test_an_invalid_signature_does_not_split() -> None:
    with pytest.raises(ProtocolError):
        complete_types("a{s")


@pytest.mark.parametrize(
    ("signature", "single"), [("a{sv}", True), ("v", True), ("", False), ("ss", False), ("a", False)]
)
def test_a_single_complete_type_is_told_from_others(signature: str, single: bool) -> None:
    assert is_single_complete_type(signature) is single


@pytest.mark.parametrize(("codes", "alignment"), [("ygv", 1), ("nq", 2), ("biuhsoa", 4), ("xtd({", 8)])
def test_types_align_to_their_size_or_that_of_their_length(codes: str, alignment: int) -> None:
    assert {alignment_of(code) for code in codes} == {alignment}
