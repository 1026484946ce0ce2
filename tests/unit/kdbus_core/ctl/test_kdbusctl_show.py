"""What kdbusctl prints: cells, columns, sizes and payloads, and nothing that a terminal would obey."""

from __future__ import annotations

import io
import json

import pytest

from kdbus_core.ctl.show import (
    hex_dump,
    preview,
    print_json,
    print_record,
    print_table,
    printable,
    size,
    word,
)


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    out = io.StringIO()
    print_table(("A", "LONG", "C"), [(1, "x", None), ("wide one", 2, "end")], out)
    assert out.getvalue().splitlines() == [
        "A         LONG  C",
        "1         x     -",
        "wide one  2     end",
    ]


def test_a_record_leaves_out_what_is_unknown() -> None:
    out = io.StringIO()
    print_record({"id": 0, "long_key": ["a", "b"], "unknown": None}, out)
    assert out.getvalue().splitlines() == ["id        0", "long key  a, b"]


def test_json_is_one_document_or_one_line() -> None:
    out = io.StringIO()
    print_json({"a": [1]}, out)
    assert json.loads(out.getvalue()) == {"a": [1]}
    out = io.StringIO()
    print_json({"a": [1]}, out, indent=None)
    assert out.getvalue() == '{"a": [1]}\n'


def test_json_has_nothing_in_it_that_a_terminal_would_obey() -> None:
    out = io.StringIO()
    print_json({"comm": "\x9b31mcaf\xe9\u202e"}, out, indent=None)
    assert out.getvalue().isascii()
    assert json.loads(out.getvalue()) == {"comm": "\x9b31mcaf\xe9\u202e"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_lines_end_at_its_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    rows = [("a" * 8, "b"), ("c", "d" * 50)]
    out, anywhere = Terminal(), io.StringIO()
    print_table(("ONE", "TWO"), rows, out)
    assert out.getvalue().splitlines() == ["ONE       T…", "aaaaaaaa  b", "c         d…"]
    print_table(("ONE", "TWO"), rows, anywhere)
    assert anywhere.getvalue().splitlines()[2].endswith("d" * 50)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        (0, "0"),
        (True, "yes"),
        (False, "no"),
        (["a", None], "a, -"),
        ({"a": 1, "b": None}, "a=1 b=-"),
        ("\x1b[31mred\n", "\\x1b[31mred\\n"),
        ("café", "café"),
    ],
)
def test_a_cell_is_one_line_of_text(value: object, text: str) -> None:
    assert word(value) == text


def test_text_that_would_move_the_cursor_is_written_out() -> None:
    assert printable("a\rb\x9b\u202ec") == "a\\rb\\x9b\\u202ec"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (10239, "10239 B"),
        (10240, "10.0 KiB"),
        (16 << 20, "16.0 MiB"),
        (1 << 30, "1.0 GiB"),
        (1 << 41, "2048.0 GiB"),
    ],
)
def test_a_size_is_exact_while_it_is_small(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", '""'),
        (b"hello", '"hello"'),
        (b"he\nlo\x00", '"he·lo·"'),
        (b"\x01\x02\x03\x04\x05", "01020304 05"),
        (b"a" * 49, '"' + "a" * 48 + '"…'),
    ],
)
def test_a_preview_is_text_or_hexadecimal(payload: bytes, text: str) -> None:
    assert preview(payload) == text


def test_a_hex_dump_has_sixteen_bytes_a_line() -> None:
    lines = list(hex_dump(bytes(range(0x3A, 0x4B))))
    assert lines == [
        "00000000  3a 3b 3c 3d 3e 3f 40 41 42 43 44 45 46 47 48 49  :;<=>?@ABCDEFGHI",
        "00000010  4a                                               J",
    ]
