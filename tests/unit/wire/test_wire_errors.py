"""The exception for peers that break the rules."""

from __future__ import annotations

from busproxy.wire.errors import ProtocolError


def test_the_text_names_reason_and_offset() -> None:
    assert str(ProtocolError("invalid UTF-8 in string", 132)) == "invalid UTF-8 in string at offset 132"


def test_the_text_follows_an_offset_that_was_moved() -> None:
    error = ProtocolError("serial 0", 8)
    error.offset += 100
    assert str(error) == "serial 0 at offset 108"


def test_a_broken_rule_is_fatal_unless_said_otherwise() -> None:
    assert ProtocolError("serial 0", 8).fatal
    assert not ProtocolError("serial 0", 8, fatal=False).fatal
