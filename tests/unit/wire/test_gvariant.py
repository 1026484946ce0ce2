"""GVariant against bytes known from its specification, and against its own limits.

Whether all else is as GLib would have it, `tests/property/test_remarshal_and_glib.py` finds out.
"""

from __future__ import annotations

import random
import struct
from array import array
from typing import Any

import pytest

from busproxy.wire import gvariant_checks, gvariant_elements, gvariant_readers
from busproxy.wire.body import body_checker
from busproxy.wire.errors import ProtocolError
from busproxy.wire.gvariant import (
    BulkArray,
    bulk_array,
    dbus1_body_to_gvariant,
    decode,
    encode,
    gvariant_body_to_dbus1,
)
from busproxy.wire.gvariant_layout import Layout, build_offsets, fixed_type, layout_of, offset_size, word_size
from busproxy.wire.marshal import marshal

LITTLE, BIG = True, False

# Values and their bytes, little endian, from the specification's examples.
EXAMPLES: list[tuple[str, Any, bytes]] = [
    ("s", "hello world", b"hello world\0"),
    ("(si)", ("foo", -1), b"foo\0\xff\xff\xff\xff\x04"),
    (
        "a(si)",
        [("hi", -2), ("bye", -1)],
        bytes.fromhex("68690000 feffffff 03000000 62796500 ffffffff 04 0915"),
    ),
    ("as", ["i", "can", "has", "strings?"], b"i\0can\0has\0strings?\0\x02\x06\x0a\x13"),
    ("((ys)as)", ((0x69, "can"), ["has", "strings?"]), b"ican\0has\0strings?\0\x04\x0d\x05"),
    ("a(iy)", [(96, 0x70), (648, 0xF7)], bytes.fromhex("60000000 70000000 88020000 f7000000")),
    ("ay", bytes((4, 5, 6, 7)), b"\4\5\6\7"),
    ("ai", [4, 258], b"\4\0\0\0\2\1\0\0"),
    ("{si}", ("a key", 514), b"a key\0\0\0\2\2\0\0\6"),
]


def to_gvariant(signature: str, *values: Any) -> bytes:
    return bytes(encode(signature, values, LITTLE))


def to_dbus1(signature: str, data: bytes, *, fd_count: int = 0) -> bytes:
    return bytes(
        gvariant_body_to_dbus1(
            signature, data, 0, len(data), LITTLE, to_little_endian=LITTLE, fd_count=fd_count
        )
    )


def refusal(signature: str, data: bytes, *, fd_count: int = 0) -> str:
    """Why a body is refused; it has to be."""
    with pytest.raises(ProtocolError) as caught:
        to_dbus1(signature, data, fd_count=fd_count)
    assert 0 <= caught.value.offset <= len(data)
    return caught.value.reason


@pytest.mark.parametrize(("signature", "value", "data"), EXAMPLES[:-1], ids=[row[0] for row in EXAMPLES[:-1]])
def test_the_examples_of_the_specification_are_written(signature: str, value: Any, data: bytes) -> None:
    # The struct of one fixed argument is that argument; all of these are variable.
    assert to_gvariant(signature, value) == data


@pytest.mark.parametrize(("signature", "value", "data"), EXAMPLES[:-1], ids=[row[0] for row in EXAMPLES[:-1]])
def test_the_examples_of_the_specification_are_read(signature: str, value: Any, data: bytes) -> None:
    assert decode(signature, data, 0, len(data), LITTLE) == [value]


def test_a_dict_entry_is_a_struct() -> None:
    _, (key, value), entry = EXAMPLES[-1]
    assert to_gvariant("a{si}", {key: value}) == entry + bytes((len(entry),))


def test_no_arguments_are_one_zero_byte() -> None:
    assert to_gvariant("") == b"\0"
    assert to_dbus1("", b"\0") == b""


@pytest.mark.parametrize("data", [b"", b"\1", b"\0\0"])
def test_no_arguments_are_nothing_else(data: bytes) -> None:
    assert refusal("", data) == "empty struct that is not one zero byte"


def test_fixed_arguments_are_padded_to_their_largest_alignment() -> None:
    assert to_gvariant("uyb", *(1, 2, True)) == b"\1\0\0\0\2\1\0\0"


def test_numbers_are_turned_where_the_byte_orders_differ() -> None:
    body = marshal("qsax", [0x102, "x", [1, 2]], BIG)
    made = dbus1_body_to_gvariant("qsax", body, 0, len(body), BIG, to_little_endian=LITTLE)
    assert made == to_gvariant("qsax", 0x102, "x", [1, 2])


def test_framing_offsets_are_little_endian_in_either_byte_order() -> None:
    assert bytes(encode("as", [["a" * 300]], BIG)).endswith(b"\0\x2d\x01")


@pytest.mark.parametrize(
    ("signature", "layout"),
    [
        ("b", Layout(1, 1)),
        ("h", Layout(4, 4)),
        ("v", Layout(8, 0)),
        ("(yyyyuta{tv}v)", Layout(8, 0)),
        ("(yu)", Layout(4, 8)),
        ("(uy)", Layout(4, 8)),
        ("(y(ny)b)", Layout(2, 8)),
        ("{qy}", Layout(2, 4)),
        ("a(yb)", Layout(1, 0)),
    ],
)
def test_a_type_has_its_layout(signature: str, layout: Layout) -> None:
    assert layout_of(signature) == layout


@pytest.mark.parametrize(
    ("body", "count", "size"),
    [(0, 1, 1), (254, 1, 1), (255, 1, 2), (200, 55, 1), (200, 56, 2), (65533, 1, 2), (65534, 1, 4)],
)
def test_offsets_are_as_small_as_they_can_be(body: int, count: int, size: int) -> None:
    assert offset_size(body, count) == size
    assert len(build_offsets(body, array("I", [1] * count))) == count * size
    assert word_size(body + count * size) == size


def test_structs_alike_in_both_formats_are_known() -> None:
    assert fixed_type("(tu)").is_alike
    assert fixed_type("(tu)").has_gaps
    assert fixed_type("(ii)").is_alike
    assert not fixed_type("(iii)").is_alike
    assert not fixed_type("(yb)").is_alike


def test_an_array_of_nothing_but_numbers_is_known() -> None:
    assert bulk_array("ay") == BulkArray(4, 1)
    assert bulk_array("ad") == BulkArray(8, 8)
    assert bulk_array("a(ii)") == BulkArray(8, 8)
    for signature in ("", "y", "ab", "ah", "as", "ayay", "a(tu)", "a(hh)", "(ay)", "aay"):
        assert bulk_array(signature) is None


@pytest.mark.parametrize(
    ("signature", "data", "reason"),
    [
        ("s", b"", "string without a terminating NUL"),
        ("s", b"abc", "string without a terminating NUL"),
        ("s", b"a\0c\0", "NUL inside a string"),
        ("s", b"\xff\0", "invalid UTF-8 in string"),
        ("s", b"\xed\xa0\x80\0", "invalid UTF-8 in string"),
        ("o", b"a\0", "invalid object path"),
        ("o", b"\0", "invalid object path"),
        ("g", b"(\0", "'(' is never closed in signature"),
        ("g", b"mi\0", "unknown type code 'm' in signature"),
        ("as", b"", ""),
        ("as", b"a\0\3", "framing offset that is not in order"),
        ("as", b"a\0b\0\4\2", "framing offset that is not in order"),
        ("as", b"a\0b\0\0\4", "framing offset that is not in order"),
        ("as", b"\0", "framing offset that is not in order"),
        ("as", b"a" * 300 + b"\0\0\0", "framing offset that is not in order"),
        ("b", b"\2", "boolean other than 0 and 1"),
        ("ab", b"\1\2\0", "boolean other than 0 and 1"),
        ("a(by)", b"\2\0", "boolean other than 0 and 1"),
        ("u", b"\0\0\0", "value of a wrong size"),
        ("au", bytes(7), "value of a wrong size"),
        ("ax", bytes(9), "value of a wrong size"),
        ("uy", b"\1\0\0\0\1\0\0\1", "padding that is not zero"),
        ("yu", b"\1\1\0\0\1\0\0\0", "padding that is not zero"),
        ("su", b"\0\1\0\0\1\0\0\0\1", "padding that is not zero"),
        ("su", b"\0\0\0\0\1\0\0\0\0\1", "value of a wrong size"),
        ("su", b"", "struct too short for its framing offsets"),
        ("ss", b"\0\0\3", "framing offset that is not in order"),
        ("sss", b"a\0b\0c\0\1\2", "framing offset that is not in order"),
        ("yss", b"\0\0\0\0", "framing offset that is not in order"),
        ("v", b"", "variant without a signature"),
        ("v", b"y", "variant without a signature"),
        ("v", b"\0\0", "variant signature that is not one complete type"),
        ("v", b"\0\0yy", "variant signature that is not one complete type"),
        ("v", b"\0\0()", "empty struct in signature of a variant"),
        ("v", b"\0\0my", "unknown type code 'm' in signature of a variant"),
        ("h", bytes(4), "index of a descriptor that did not come along"),
        ("ah", bytes(8), "index of a descriptor that did not come along"),
        ("a(hu)", bytes(8), "index of a descriptor that did not come along"),
    ],
)
def test_what_is_not_in_normal_form_is_refused(signature: str, data: bytes, reason: str) -> None:
    if not reason:
        assert to_dbus1(signature, data) == bytes(4)
        return
    assert refusal(signature, data) == reason


def test_offsets_larger_than_they_need_be_are_refused() -> None:
    data = b"abc\0" * 50 + struct.pack("<50H", *range(4, 201, 4))
    assert refusal("as", data) == "framing offsets larger than they need be"
    pair = b"a" * 253 + b"\0" + struct.pack("<H", 254)
    assert refusal("say", pair) == "framing offsets larger than they need be"


def test_a_descriptor_that_came_along_has_an_index() -> None:
    assert to_dbus1("h", struct.pack("<I", 1), fd_count=2) == struct.pack("<I", 1)
    assert to_dbus1("ah", struct.pack("<2I", 1, 0), fd_count=2) == struct.pack("<3I", 8, 1, 0)
    assert refusal("ah", struct.pack("<2I", 0, 2), fd_count=2)


def variants(depth: int) -> bytes:
    """A byte in so many variants."""
    return b"\0" + b"\0y" + b"\0v" * (depth - 1)


def test_values_nest_up_to_64_levels() -> None:
    body = to_dbus1("v", variants(64))
    body_checker("v", LITTLE)(body, 0, len(body))
    assert refusal("v", variants(65)) == "more than 64 levels of nesting"


def test_a_million_nested_variants_are_refused_at_once() -> None:
    assert refusal("v", variants(1_000_000)) == "more than 64 levels of nesting"


NESTED: list[tuple[str, Any, int]] = [
    ("(" * 32 + "y" + ")" * 32, 1, 32),
    ("a" * 32 + "y", b"\1", 31),
    ("a" * 32 + "s", "x", 32),
    ("a(" * 31 + "s" + ")" * 31, "x", 62),
    ("a" + "(" * 32 + "y" + ")" * 32, 1, 33),
    ("a{s" * 20 + "v" + "}" * 20, ("y", 1), 41),
]
"""Types, what is innermost in a value, and how many levels that value has."""


def nested_value(signature: str, value: Any) -> Any:
    """A value with one element in every array."""
    opening = signature.rstrip(")}")[:-1].replace("{s", "{")
    if opening[-1] == "a" and value == b"\1":
        opening = opening[:-1]
    for code in reversed(opening):
        match code:
            case "a":
                value = value if isinstance(value, dict) else [value]
            case "{":
                value = {"key": value}
            case _:
                value = (value,)
    return value


@pytest.mark.parametrize(("signature", "innermost", "levels"), NESTED, ids=[row[0][:8] for row in NESTED])
def test_depth_is_counted_as_in_a_dbus_body(signature: str, innermost: Any, levels: int) -> None:
    content = to_gvariant(signature, nested_value(signature, innermost)) + b"\0" + signature.encode()
    allowed = 64 - levels
    body = to_dbus1("v", content + b"\0v" * (allowed - 1))
    body_checker("v", LITTLE)(body, 0, len(body))
    assert refusal("v", content + b"\0v" * allowed) == "more than 64 levels of nesting"


@pytest.mark.parametrize(
    "signature",
    [
        ("a" * 32 + "(") * 7 + "y" + ")" * 7,
        "a(" * 32 + "a" * 32 + "s" + ")" * 32,
        "a{s" * 32 + "v" + "}" * 32,
    ],
)
def test_the_deepest_types_do_not_exhaust_the_stack(signature: str) -> None:
    native = b"\0" + signature.encode()
    body = to_dbus1("v", native)
    body_checker("v", LITTLE)(body, 0, len(body))
    assert dbus1_body_to_gvariant("v", body, 0, len(body), LITTLE, to_little_endian=LITTLE) == native


def test_an_array_that_is_too_long_in_dbus1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gvariant_readers, gvariant_elements):
        monkeypatch.setattr(module, "MAX_ARRAY_LENGTH", 64)
    assert to_dbus1("ab", bytes(16))
    for signature, value in (
        ("ab", [False] * 17),
        ("ay", bytes(65)),
        ("au", [0] * 17),
        ("a(yu)", [(1, 2)] * 9),
        ("as", ["text"] * 8),
        ("a(sv)", [("a", ("y", 1))] * 5),
    ):
        assert refusal(signature, to_gvariant(signature, value)) == "array longer than 64 MiB"


@pytest.mark.parametrize("signature", ["as", "aas"])
def test_what_becomes_too_long_is_given_up_on_the_way(
    monkeypatch: pytest.MonkeyPatch, signature: str
) -> None:
    data = to_gvariant(signature, [""] * 100 if signature == "as" else [[]] * 100)
    assert len(to_dbus1(signature, data)) > 400 - 4
    monkeypatch.setattr(gvariant_elements, "MAX_OUTPUT", 200)
    assert refusal(signature, data) == "message longer than 128 MiB"


def test_elements_that_overlap_cannot_multiply_the_work() -> None:
    # Each array names the whole of its inside many times over: with default values 100 ** 6 elements.
    inside = b"\0\1"
    for _ in range(6):
        inside += struct.pack("<H", len(inside)) * 100 if len(inside) > 55 else bytes([len(inside)]) * 100
    assert refusal("a" * 7 + "s", inside)


def test_a_body_that_its_signature_does_not_fit_is_the_callers_fault() -> None:
    with pytest.raises(ValueError, match="not a body of signature 'u'"):
        dbus1_body_to_gvariant("u", b"\0", 0, 1, LITTLE)


def test_remembered_variant_signatures_are_bounded() -> None:
    chance = random.Random(1)
    kept = gvariant_readers.Readers(source_little_endian=LITTLE, little_endian=LITTLE)
    read = kept.reader("v")
    for _ in range(2000):
        signature = "(" + "".join(chance.choices("ynqiuxt", k=10)) + ")"
        out = gvariant_checks.Output()
        out.fd_count = 0
        size = layout_of(signature).size
        data = bytes(size) + b"\0" + signature.encode()
        read(data, 0, len(data), out, 0)
    assert len(kept._by_signature) <= 512
