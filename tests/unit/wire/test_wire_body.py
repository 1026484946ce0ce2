"""The body validator: each rule with a body that keeps it and one that breaks it."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from busproxy.wire.body import (
    _MOST_VARIANT_SIGNATURES,
    _STEPS,
    MAX_ARRAY_LENGTH,
    body_checker,
    string_arguments,
    trivial_body_length,
)
from busproxy.wire.errors import ProtocolError
from busproxy.wire.marshal import marshal

LITTLE = True
BIG = False


def check(signature: str, body: bytes, *, little_endian: bool = LITTLE) -> None:
    """Check a body that lies at an odd place of a buffer that goes on behind it."""
    data = b"\xee" * 3 + body + b"\xee" * 9
    body_checker(signature, little_endian)(data, 3, 3 + len(body))
    body_checker(signature, little_endian)(bytearray(data), 3, 3 + len(body))


def refusal(signature: str, body: bytes, *, little_endian: bool = LITTLE) -> tuple[str, int]:
    with pytest.raises(ProtocolError) as caught:
        check(signature, body, little_endian=little_endian)
    return caught.value.reason, caught.value.offset


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def nested_variants(count: int) -> bytes:
    return b"\x01v\0" * (count - 1) + b"\x01y\0\x05"


VALID = [
    ("", []),
    ("y", [1]),
    ("ybnqiuxtdh", [1, True, -2, 3, -4, 5, -6, 7, 8.5, 9]),
    ("s", ["Z\u00fcrich \U0001f600"]),
    ("sog", ["", "/a/b", "a{sv}"]),
    ("as", [["a", "", "bcd", "\u65e5"]]),
    ("ay", [b"\x00\xff"]),
    ("at", [[1, 2]]),
    ("yat", [1, []]),
    ("ab", [[True, False]]),
    ("a(uu)", [[(1, 2), (3, 4)]]),
    ("a(yy)", [[(1, 2), (3, 4)]]),
    ("a{uu}", [{1: 2}]),
    ("a{sv}", [{"a": ("s", "b"), "bc": ("a{sv}", {"x": ("(ii)", (1, 2))}), "d": ("v", ("y", 1))}]),
    ("a{ss}a{os}", [{"a": "b"}, {"/a": "b"}]),
    ("a(ss)(ss)(sss)", [[("a", "b"), ("cde", "")], ("a", "b"), ("", "", "")]),
    ("(y(x)as)", [(1, (2,), ["a"])]),
    ("aas", [[["a"], [], ["bcdef", "g"]]]),
    ("a{s(ua{sas})}", [{"k": (1, {"l": ["m"]})}]),
    ("vv", [("as", ["x"]), ("(yv)", (1, ("t", 2)))]),
]


@pytest.mark.parametrize("little_endian", [LITTLE, BIG])
@pytest.mark.parametrize(("signature", "values"), VALID)
def test_what_marshal_writes_is_valid_in_both_byte_orders(
    signature: str, values: list[Any], little_endian: bool
) -> None:
    check(signature, marshal(signature, values, little_endian=little_endian), little_endian=little_endian)


@pytest.mark.parametrize(("signature", "values"), VALID)
def test_a_byte_too_many_is_refused(signature: str, values: list[Any]) -> None:
    body = marshal(signature, values)
    assert refusal(signature, body + b"\0") == ("body longer than its signature says", len(body))


@pytest.mark.parametrize(("signature", "values"), VALID)
def test_every_truncation_is_refused(signature: str, values: list[Any]) -> None:
    body = marshal(signature, values)
    for length in range(len(body)):
        _, offset = refusal(signature, body[:length])
        assert offset <= length


@pytest.mark.parametrize(
    ("signature", "body", "offset"),
    [
        ("yu", b"\x01\x00\x01\x00" + u32(1), 1),
        ("yn", b"\x01\x01\x00\x00", 1),
        ("yt", b"\x01" + b"\0" * 6 + b"\x01" + bytes(8), 1),
        ("ys", b"\x01\x00\x00\x01" + u32(0) + b"\0", 1),
        ("yo", b"\x01\x00\x00\x01" + u32(1) + b"/\0", 1),
        ("yb", b"\x01\x00\x00\x01" + u32(0), 1),
        ("yau", b"\x01\x00\x00\x01" + u32(0), 1),
        ("at", u32(0) + b"\0\0\0\x01", 4),
        ("at", u32(8) + b"\0\0\0\x01" + bytes(8), 4),
        ("y(y)", b"\x01" + b"\0" * 6 + b"\x01\x01", 1),
        ("y(ss)", b"\x01" + b"\0" * 6 + b"\x01" + (u32(0) + bytes(4)) * 2, 1),
        ("(ss)", u32(0) + b"\0\0\0\x01" + u32(0) + b"\0", 5),
        ("as", u32(13) + u32(0) + b"\0\x01\0\0" + u32(0) + b"\0", 9),
        ("a(y)", u32(9) + bytes(4) + b"\x01" + b"\0\0\0\x01\0\0\0" + b"\x01", 9),
        ("a{sy}", u32(14) + bytes(4) + u32(0) + b"\0\x05\0\x07" + u32(0) + b"\0\x05", 14),
        ("v", b"\x01u\0\x01" + u32(1), 3),
    ],
)
def test_padding_must_be_zero(signature: str, body: bytes, offset: int) -> None:
    assert refusal(signature, body) == ("padding that is not zero", offset)


@pytest.mark.parametrize(
    ("signature", "body", "offset"),
    [
        ("b", u32(2), 0),
        ("ab", u32(8) + u32(1) + u32(256), 8),
        ("v", b"\x01b\0\0" + u32(2), 4),
        ("(b)", u32(3), 0),
    ],
)
def test_a_boolean_is_0_or_1(signature: str, body: bytes, offset: int) -> None:
    assert refusal(signature, body) == ("boolean other than 0 and 1", offset)


@pytest.mark.parametrize("text", [b"\xff", b"ab\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3"])
@pytest.mark.parametrize("signature", ["s", "(ss)", "as", "a{sy}"])
def test_a_string_is_utf8_wherever_it_stands(signature: str, text: bytes) -> None:
    string = u32(len(text)) + text + b"\0"
    match signature:
        case "s":
            body, at = string, 4
        case "(ss)":
            body, at = string, 4
        case "as":
            body, at = u32(len(string)) + string, 8
        case _:
            body, at = u32(len(string) + 1) + bytes(4) + string + b"\x01", 12
    reason, offset = refusal(signature, body)
    assert reason == "invalid UTF-8 in string"
    assert at <= offset < at + len(text)


def test_noncharacters_are_valid_utf8() -> None:
    check("s", marshal("s", ["\ufffe\U0010ffff"]))


@pytest.mark.parametrize(
    ("signature", "prefix"),
    [("s", b""), ("(ss)", b""), ("as", u32(8)), ("a{ss}", u32(15) + bytes(4)), ("o", b"")],
)
def test_a_string_ends_with_the_first_nul_and_there(signature: str, prefix: bytes) -> None:
    at = len(prefix)
    rest = u32(2) + b"/a\0" if signature in ("(ss)", "a{ss}") else b""
    assert refusal(signature, prefix + u32(3) + b"/\0a\0" + rest) == ("NUL inside a string", at + 5)
    unterminated = refusal(signature, prefix + u32(3) + b"/abc" + rest)
    assert unterminated == ("string without a terminating NUL", at + 7)
    assert refusal(signature, prefix + u32(400) + b"/ab\0" + rest)[1] == at


@pytest.mark.parametrize("path", [b"", b"a", b"/a/", b"//", b"/\xc3\xbc", b"/a-b"])
def test_an_object_path_is_one(path: bytes) -> None:
    assert refusal("o", u32(len(path)) + path + b"\0") == ("invalid object path", 4)


@pytest.mark.parametrize(
    ("body", "offset"), [(b"\x01z\0", 1), (b"\x02a{\0", 3), (b"\x01\0\0", 1), (b"\x01yy", 2), (b"\x02y\0", 3)]
)
def test_a_signature_is_one(body: bytes, offset: int) -> None:
    assert refusal("g", body)[1] == offset


@pytest.mark.parametrize(
    "body", [b"\0\0", b"\x02yy\0\x01\x01", b"\x01z\0\x01", b"\x02(y\0\x01", b"\x01y\x01\x01", b"\x02ayy"]
)
def test_a_variant_holds_one_complete_type(body: bytes) -> None:
    assert "variant" in refusal("v", body)[0]


def test_an_unknown_variant_signature_is_refused_the_second_time_too() -> None:
    for _ in range(2):
        assert "variant" in refusal("v", b"\x03(y}\0\x01")[0]


def test_more_variant_signatures_than_are_kept_are_all_checked() -> None:
    for count in range(600):
        members = f"{count:010b}".replace("0", "y").replace("1", "u")
        check("v", marshal("v", [(f"({members})", (1,) * 10)]))
        assert len(_STEPS[LITTLE]._by_signature) <= _MOST_VARIANT_SIGNATURES


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("au", u32(6) + bytes(6)),
        ("at", u32(4) + bytes(8)),
        ("ab", u32(6) + bytes(8)),
        ("as", u32(4) + u32(0) + b"\0"),
        ("as", u32(3) + u32(0) + b"\0"),
        ("a(uu)", u32(12) + bytes(16)),
        ("a(yu)", u32(7) + bytes(12)),
        ("a{sy}", u32(5) + bytes(4) + u32(0) + b"\0\x01"),
        ("a{yy}", u32(1) + bytes(4) + b"\x01\x01"),
        ("aau", u32(4) + u32(4) + u32(1)),
    ],
)
def test_an_array_ends_where_an_element_does(signature: str, body: bytes) -> None:
    refusal(signature, body)


@pytest.mark.parametrize("signature", ["ay", "at", "as", "a{sv}", "aay"])
def test_an_array_does_not_reach_beyond_the_body(signature: str) -> None:
    assert refusal(signature, u32(64) + bytes(12))[0] == "array longer than what is left"


def test_an_array_holds_64_mib_and_no_more() -> None:
    check_array = body_checker("ay", LITTLE)
    for length, valid in ((MAX_ARRAY_LENGTH, True), (MAX_ARRAY_LENGTH + 1, False)):
        body = u32(length) + bytes(length)
        if valid:
            check_array(body, 0, len(body))
            continue
        with pytest.raises(ProtocolError, match="longer than 64 MiB"):
            check_array(body, 0, len(body))


@pytest.mark.parametrize("signature", ["au", "at", "s", "b", "(ss)"])
def test_a_truncated_body_at_the_end_of_the_buffer_is_refused(signature: str) -> None:
    for length in range(4):
        with pytest.raises(ProtocolError, match="body shorter"):
            body_checker(signature, LITTLE)(bytes(length), 0, length)


def test_64_levels_are_the_deepest() -> None:
    check("v", nested_variants(64))
    assert refusal("v", nested_variants(65))[0] == "more than 64 levels of nesting"


@pytest.mark.parametrize(
    ("signature", "levels"), [("(v)", 1), ("av", 1), ("a(v)", 2), ("a{yv}", 2), ("a{sv}", 2)]
)
def test_structs_and_elements_of_arrays_count_as_levels(signature: str, levels: int) -> None:
    for count, valid in ((64 - levels, True), (65 - levels, False)):
        content = nested_variants(count)
        prefix = {"(v)": b"", "a{yv}": b"\x01", "a{sv}": u32(0) + b"\0"}.get(signature, b"")
        element = prefix + content
        length = {"(v)": b"", "av": u32(len(element))}.get(signature, u32(len(element)) + bytes(4))
        body = length + element
        if valid:
            check(signature, body)
        else:
            assert refusal(signature, body)[0] == "more than 64 levels of nesting"


@pytest.mark.parametrize(
    ("inner", "content", "levels"),
    [
        (b"au", u32(4) + u32(1), 0),
        (b"as", u32(0), 0),
        (b"as", u32(5) + u32(0) + b"\0", 1),
        (b"a(uu)", u32(8) + bytes(8), 2),
        (b"a((uu))", u32(8) + bytes(8), 3),
        (b"(ss)", u32(0) + bytes(4) + u32(0) + b"\0", 1),
    ],
)
def test_levels_inside_the_last_variant_count_too(inner: bytes, content: bytes, levels: int) -> None:
    for count, valid in ((64 - levels, True), (65 - levels, False)):
        head = b"\x01v\0" * (count - 1) + bytes((len(inner),)) + inner + b"\0"
        if inner[:2] == b"a(":
            body = head + bytes(-len(head) % 4) + content[:4]
            body += bytes(-len(body) % 8) + content[4:]
        else:
            body = head + bytes(-len(head) % (8 if inner[:1] == b"(" else 4)) + content
        if valid:
            check("v", body)
        else:
            assert refusal("v", body)[0] == "more than 64 levels of nesting"


def test_an_fd_is_any_number() -> None:
    check("h", u32(2**32 - 1))


def test_the_signature_of_a_body_must_be_valid() -> None:
    with pytest.raises(ProtocolError):
        body_checker("a{", LITTLE)


@pytest.mark.parametrize(
    ("signature", "length"),
    [
        ("", 0),
        ("y", 1),
        ("u", 4),
        ("uu", 8),
        ("t", 8),
        ("uut", 16),
        ("(uu)", 8),
        ("(uu)h", 12),
        ("yy", 2),
        ("dh", 12),
    ],
)
def test_a_body_without_padding_or_choice_has_a_trivial_length(signature: str, length: int) -> None:
    assert trivial_body_length(signature) == length
    check(signature, b"\xff" * length)


@pytest.mark.parametrize("signature", ["b", "s", "ay", "v", "g", "yu", "ut", "(yu)", "u(u)", "(b)", "as"])
def test_other_bodies_have_no_trivial_length(signature: str) -> None:
    assert trivial_body_length(signature) is None


@pytest.mark.parametrize("little_endian", [LITTLE, BIG])
def test_string_arguments_skip_everything_else(little_endian: bool) -> None:
    signature = "sya{sv}(yv)ogvatbxs"
    values = [
        "\u00fc", 1, {"a": ("s", "no")}, (1, ("s", "no")), "/p", "ai", ("s", "no"), [1, 2], True, 5, "last"
    ]  # fmt: skip
    body = marshal(signature, values, little_endian=little_endian)
    data = b"\xee" * 5 + body + b"\xee"
    found = string_arguments(signature, little_endian, data, 5, 5 + len(body), 64)
    texts = {0: ("s", "\u00fc"), 4: ("o", "/p"), 5: ("g", "ai"), 10: ("s", "last")}
    assert found == [texts.get(number) for number in range(11)]


def test_string_arguments_stop_at_the_count_or_the_last_argument() -> None:
    body = marshal("sus", ["a", 1, "b"])
    assert string_arguments("sus", LITTLE, body, 0, len(body), 2) == [("s", "a"), None]
    assert string_arguments("sus", LITTLE, body, 0, len(body), 0) == []
    assert len(string_arguments("sus", LITTLE, body, 0, len(body), 64)) == 3
    assert string_arguments("", LITTLE, b"", 0, 0, 64) == []
