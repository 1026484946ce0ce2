"""Match rules: what dbus-daemon 1.14 takes, in which spelling it shows it, and how it refuses the rest.

The two tables are facts, collected from dbus-daemon; `tests/clients/test_match_rules_against_dbus_daemon.py`
compares them with the one at hand.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busproxy.wire.match_rules import (
    LIMITS_EXCEEDED,
    MATCH_RULE_INVALID,
    ArgMatch,
    MatchRule,
    MatchRuleError,
    format_match_rule,
    parse_match_rule,
)

ACCEPTED = [
    ("", ""),
    ("  ", ""),
    ("type='signal'", "type='signal'"),
    ("type='signal',", "type='signal'"),
    ("type='signal', ", "type='signal'"),
    ("type=signal", "type='signal'"),
    ("type='si'g'nal'", "type='signal'"),
    ("type ='signal'", "type='signal'"),
    ("type='method_call'", "type='method_call'"),
    ("type='method_return'", "type='method_return'"),
    ("type='error'", "type='error'"),
    ("sender='org.a.b'", "sender='org.a.b'"),
    ("sender=':1.2'", "sender=':1.2'"),
    ("sender=':'", "sender=':'"),
    ("interface='a.b'", "interface='a.b'"),
    ("member='x'", "member='x'"),
    ("path='/'", "path='/'"),
    ("path_namespace='/'", "path_namespace='/'"),
    ("destination='org.a.b'", "destination='org.a.b'"),
    ("destination=':1.1'", "destination=':1.1'"),
    ("eavesdrop='true'", "eavesdrop='true'"),
    ("eavesdrop='false'", ""),
    ("eavesdrop=true", "eavesdrop='true'"),
    ("eavesdrop='true',eavesdrop='false'", ""),
    ("eavesdrop='true',eavesdrop='true'", "eavesdrop='true'"),
    ("arg0='x'", "arg0='x'"),
    ("arg0=''", "arg0=''"),
    ("arg63='x'", "arg63='x'"),
    ("arg63path='/'", "arg63path='/'"),
    ("arg0path='aa/'", "arg0path='aa/'"),
    ("arg0path=''", "arg0path=''"),
    ("arg0path='not a path'", "arg0path='not a path'"),
    ("arg0namespace='com.example'", "arg0namespace='com.example'"),
    ("arg0namespace='com'", "arg0namespace='com'"),
    ("arg0namespace=':1.2'", "arg0namespace=':1.2'"),
    ("arg00='a'", "arg0='a'"),
    ("arg010='x'", "arg8='x'"),
    ("arg0x1='x'", "arg1='x'"),
    ("arg0X3Fpath='x'", "arg63path='x'"),
    ("arg-0='x'", "arg0='x'"),
    ("arg+1='x'", "arg1='x'"),
    ("arg\x0b1='x'", "arg1='x'"),
    ("arg\x0c2path='x'", "arg2path='x'"),
    ("arg1 ='x'", "arg1='x'"),
    ("arg-18446744073709551615='x'", "arg1='x'"),
    ("arg-18446744073709551553='x'", "arg63='x'"),
    ("arg2='z',arg1='y',arg0='x'", "arg0='x',arg1='y',arg2='z'"),
    ("='x'", ""),
    ("='x',type='bogus'", ""),
    ("type='signal',='x',member='a b'", "type='signal'"),
    ("member='x',='y'", "member='x'"),
    ("arg0==x", "arg0='=x'"),
    ("arg0='it'\\''s'", "arg0='it'\\''s'"),
    ("arg0=it\\'s", "arg0='it'\\''s'"),
    ("arg0=a\\b", "arg0='a\\b'"),
    ("arg0=a\\", "arg0='a\\'"),
    ("arg0='a\\b'", "arg0='a\\b'"),
    ("arg0='a\\'", "arg0='a\\'"),
    ("arg0=a b", "arg0='a b'"),
    ("arg0= a", "arg0=' a'"),
    ("arg0='a,b'", "arg0='a,b'"),
    ("arg0=a\\,b", "arg0='a\\,b'"),
    ("arg0=\\\\", "arg0='\\\\'"),
    ("arg0=\\\\'x'", "arg0='\\\\x'"),
    ('arg0="x"', "arg0='\"x\"'"),
    ("arg0='ü'", "arg0='ü'"),
    ("member=a'b'c", "member='abc'"),
    ("arg0='\n'", "arg0='\n'"),
    ("\n\t\r type\n=signal", "type='signal'"),
    ("arg0='x'y", "arg0='xy'"),
    ("='", ""),
    (
        "path='/a',arg0='b',eavesdrop='true',destination='a.b',sender='c.d',member='M',interface='e.f',type='error'",
        "type='error',interface='e.f',member='M',path='/a',sender='c.d',destination='a.b',eavesdrop='true',arg0='b'",
    ),
    ("path_namespace='/a',member='b'", "member='b',path_namespace='/a'"),
    (
        "arg0='x',arg1='x',arg2='x',arg3='x',arg4='x',arg5='x',arg6='x',arg7='x',arg8='x',arg9='x',arg10='x',arg11='x',arg12='x',arg13='x',arg14='x',arg15='x'",
        "arg0='x',arg1='x',arg2='x',arg3='x',arg4='x',arg5='x',arg6='x',arg7='x',arg8='x',arg9='x',arg10='x',arg11='x',arg12='x',arg13='x',arg14='x',arg15='x'",
    ),
    ("type='signal',\n", "type='signal'"),
]
"""A rule, and the text GetAllMatchRules shows for it."""


def without_number(key: str, what: str) -> str:
    return (
        f"Key '{key}' in match rule starts with 'arg' but {what}. Should be 'arg0' or 'arg7' for example.\n"
    )


def junk_after_number(key: str, number: int) -> str:
    return (
        f"Key '{key}' in match rule contains junk after argument number ({number}). "
        f"Only 'arg{number}path' (for example) or 'arg0namespace' are valid"
    )


def number_too_high(key: str, number: int) -> str:
    return f"Key '{key}' in match rule has arg number {number} but the maximum is 63.\n"


REFUSED = [
    (",", "Match rule has a key with no subsequent '=' character"),
    ("type='signal',,", "Match rule has a key with no subsequent '=' character"),
    (" type = 'signal'", "Invalid message type ( signal) in match rule\n"),
    ("type= 'signal'", "Invalid message type ( signal) in match rule\n"),
    ("type='signal' ", "Invalid message type (signal ) in match rule\n"),
    ("type='signal' ,member='x'", "Invalid message type (signal ) in match rule\n"),
    ("type='signal',type='signal'", "Key type specified twice in match rule\n"),
    ("type='bogus'", "Invalid message type (bogus) in match rule\n"),
    ("type=''", "Invalid message type () in match rule\n"),
    ("type='Signal'", "Invalid message type (Signal) in match rule\n"),
    ("type='invalid'", "Invalid message type (invalid) in match rule\n"),
    ("sender='a'", "Sender name 'a' is invalid\n"),
    ("sender=''", "Sender name '' is invalid\n"),
    ("sender='org.a.b',sender='org.a.b'", "Key sender specified twice in match rule\n"),
    ("interface='a'", "Interface name 'a' is invalid\n"),
    ("interface='a.b',interface='a.b'", "Key interface specified twice in match rule\n"),
    ("member='a.b'", "Member name 'a.b' is invalid\n"),
    ("member=''", "Member name '' is invalid\n"),
    ("member='x',member='y'", "Key member specified twice in match rule\n"),
    ("path='/a/'", "Path '/a/' is invalid\n"),
    ("path='a'", "Path 'a' is invalid\n"),
    ("path=''", "Path '' is invalid\n"),
    ("path='/a',path='/b'", "path or path_namespace specified twice in match rule\n"),
    ("path='/a',path_namespace='/b'", "path or path_namespace specified twice in match rule\n"),
    ("path_namespace='/a',path='/b'", "path or path_namespace specified twice in match rule\n"),
    ("path_namespace='/a/'", "Path '/a/' is invalid\n"),
    ("path_namespace='/a',path_namespace='/a'", "path or path_namespace specified twice in match rule\n"),
    ("destination='x'", "Destination name 'x' is invalid\n"),
    ("destination=':1.1',destination=':1.1'", "Key destination specified twice in match rule\n"),
    ("eavesdrop='yes'", "eavesdrop='yes' is invalid, it should be 'true' or 'false'\n"),
    ("eavesdrop=''", "eavesdrop='' is invalid, it should be 'true' or 'false'\n"),
    ("arg='x'", without_number("arg", "lacks an arg number")),
    ("arg", "Match rule has a key with no subsequent '=' character"),
    ("argx='x'", without_number("argx", "could not parse arg number")),
    ("arg64='x'", number_too_high("arg64", 64)),
    ("arg64path='/'", number_too_high("arg64path", 64)),
    ("arg0namespace=''", "arg0namespace='' is not a valid prefix of a bus name"),
    ("arg0namespace='com.'", "arg0namespace='com.' is not a valid prefix of a bus name"),
    ("arg1namespace='com'", junk_after_number("arg1namespace", 1)),
    ("arg00namespace='com'", junk_after_number("arg00namespace", 0)),
    ("arg64namespace='com'", junk_after_number("arg64namespace", 64)),
    ("arg0namespacex='com'", junk_after_number("arg0namespacex", 0)),
    ("arg0pathx='x'", junk_after_number("arg0pathx", 0)),
    ("arg0xpath='x'", junk_after_number("arg0xpath", 0)),
    ("arg0='a',arg0='b'", "Argument arg0 matched more than once in match rule\n"),
    ("arg0='a',arg0path='b'", "Argument arg0path matched more than once in match rule\n"),
    ("arg0='a',arg0namespace='b'", "Argument arg0namespace matched more than once in match rule\n"),
    ("arg00='a',arg0='b'", "Argument arg0 matched more than once in match rule\n"),
    ("arg08='x'", junk_after_number("arg08", 0)),
    ("arg09path='x'", junk_after_number("arg09path", 0)),
    ("arg0x1='x',arg1='y'", "Argument arg1 matched more than once in match rule\n"),
    ("arg0x='x'", junk_after_number("arg0x", 0)),
    ("arg-1='x'", number_too_high("arg-1", 18446744073709551615)),
    ("arg99999999999999999999='x'", without_number("arg99999999999999999999", "could not parse arg number")),
    ("arg18446744073709551615='x'", number_too_high("arg18446744073709551615", 18446744073709551615)),
    ("arg 1='x'", "Match rule has a key with no subsequent '=' character"),
    ("foo='bar'", 'Unknown key "foo" in match rule'),
    ("foo", "Match rule has a key with no subsequent '=' character"),
    ("foo bar='x'", "Match rule has a key with no subsequent '=' character"),
    ("type", "Match rule has a key with no subsequent '=' character"),
    ("type 'signal'", "Match rule has a key with no subsequent '=' character"),
    ("type==signal", "Invalid message type (=signal) in match rule\n"),
    ("arg0='a\\',b'", "Match rule has a key with no subsequent '=' character"),
    ("arg0='unbalanced", "Unbalanced quotation marks in match rule"),
    ("arg0='", "Unbalanced quotation marks in match rule"),
    ("arg0='ü',member='ä'", "Member name 'ä' is invalid\n"),
    ("ü='x'", 'Unknown key "ü" in match rule'),
    ("member='a' 'b'", "Member name 'a b' is invalid\n"),
    ("type=signal\n", "Invalid message type (signal\n) in match rule\n"),
    ("foo='x", "Unbalanced quotation marks in match rule"),
    (
        "arg0='x',arg1='x',arg2='x',arg3='x',arg4='x',arg5='x',arg6='x',arg7='x',arg8='x',arg9='x',arg10='x',arg11='x',arg12='x',arg13='x',arg14='x',bogus",
        "Match rule has a key with no subsequent '=' character",
    ),
    ("TYPE='signal'", 'Unknown key "TYPE" in match rule'),
    ("arg0 path='x'", "Match rule has a key with no subsequent '=' character"),
    ("argpath='x'", without_number("argpath", "could not parse arg number")),
    ("arg0Path='x'", junk_after_number("arg0Path", 0)),
    (" , ", "Match rule has a key with no subsequent '=' character"),
    ("arg63namespace='x'", junk_after_number("arg63namespace", 63)),
    ("path_namespace=''", "Path '' is invalid\n"),
    ("type='signal',sender", "Match rule has a key with no subsequent '=' character"),
    ("eavesdrop", "Match rule has a key with no subsequent '=' character"),
    ("type=\\signal", "Invalid message type (\\signal) in match rule\n"),
    ("type=s\\'ignal", "Invalid message type (s'ignal) in match rule\n"),
]
"""A rule, and the text of the MatchRuleInvalid error it is answered with."""

SIXTEEN = ",".join(f"arg{index}='x'" for index in range(16))


@pytest.mark.parametrize(("text", "canonical"), ACCEPTED)
def test_a_rule_means_what_its_canonical_text_says(text: str, canonical: str) -> None:
    assert format_match_rule(parse_match_rule(text)) == canonical


@pytest.mark.parametrize(("text", "canonical"), ACCEPTED)
def test_a_rule_equals_its_canonical_text(text: str, canonical: str) -> None:
    assert parse_match_rule(text) == parse_match_rule(canonical)


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_bad_rule_is_refused_in_the_words_of_dbus_daemon(text: str, message: str) -> None:
    with pytest.raises(MatchRuleError) as caught:
        parse_match_rule(text)
    assert (caught.value.error_name, str(caught.value)) == (MATCH_RULE_INVALID, message)


def test_all_components_arrive_in_their_fields() -> None:
    rule = parse_match_rule(
        "type='error',sender='a.b',interface='c.d',member='M',path='/p',destination=':1.2',"
        "eavesdrop='true',arg2path='/x/',arg1='y',arg0namespace='z'"
    )
    assert rule == MatchRule(
        type=3,
        sender="a.b",
        interface="c.d",
        member="M",
        path="/p",
        destination=":1.2",
        eavesdrop=True,
        args=(ArgMatch(0, "namespace", "z"), ArgMatch(1, "string", "y"), ArgMatch(2, "path", "/x/")),
    )


def test_a_path_namespace_is_not_a_path() -> None:
    rule = parse_match_rule("path_namespace='/a'")
    assert (rule.path, rule.path_namespace) == (None, "/a")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("path='/a'", "path_namespace='/a'"),
        ("path_namespace='/a'", "path_namespace='/b'"),
        ("arg0='a'", "arg0path='a'"),
        ("arg0='a'", "arg0namespace='a'"),
        ("arg0='a'", "arg1='a'"),
        ("eavesdrop='true'", ""),
        ("type='signal'", ""),
        ("sender='a.b'", "destination='a.b'"),
    ],
)
def test_rules_that_ask_for_different_things_differ(one: str, other: str) -> None:
    assert parse_match_rule(one) != parse_match_rule(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("eavesdrop='false'", ""),
        ("arg0=a", "arg0='a'"),
        ("member='M',type='signal'", "type='signal',member='M'"),
        ("arg1='b',arg0='a'", "arg0='a',arg1='b'"),
        ("arg010='x'", "arg8='x'"),
    ],
)
def test_spelling_and_order_do_not_matter(one: str, other: str) -> None:
    assert parse_match_rule(one) == parse_match_rule(other)
    assert hash(parse_match_rule(one)) == hash(parse_match_rule(other))


@pytest.mark.parametrize("rest", [",arg16='x'", ",bogus", ",arg0='again'", ",'"])
def test_what_follows_the_sixteenth_component_is_not_looked_at(rest: str) -> None:
    assert parse_match_rule(SIXTEEN + rest) == parse_match_rule(SIXTEEN)


def test_a_rule_of_1024_bytes_is_read() -> None:
    value = "x" * (1024 - len("arg0=''"))
    assert parse_match_rule(f"arg0='{value}'").args == (ArgMatch(0, "string", value),)


@pytest.mark.parametrize("value", ["x" * 1018, "\u00fc" * 509])
def test_a_rule_of_1025_bytes_exceeds_a_limit(value: str) -> None:
    with pytest.raises(MatchRuleError, match="Match rule text is 1025 bytes, maximum is 1024") as caught:
        parse_match_rule(f"arg0='{value}'")
    assert caught.value.error_name == LIMITS_EXCEEDED


def test_the_limit_on_the_length_can_be_raised() -> None:
    assert parse_match_rule(f"arg0='{'x' * 2000}'", max_length=4096).args[0].value == "x" * 2000


def test_a_name_of_255_bytes_is_a_sender_and_one_of_256_is_not() -> None:
    longest = "a." + "b" * 253
    assert parse_match_rule(f"sender='{longest}'").sender == longest
    with pytest.raises(MatchRuleError, match="is invalid"):
        parse_match_rule(f"sender='{longest}b'")


_pieces = st.sampled_from(
    [
        "type",
        "signal",
        "sender",
        "member",
        "path",
        "arg0",
        "arg1path",
        "a.b",
        "/a",
        "=",
        ",",
        "'",
        "\\",
        " ",
        "x",
    ]
)


@given(st.lists(_pieces, max_size=14).map("".join))
def test_every_text_is_refused_or_survives_being_written_and_read(text: str) -> None:
    try:
        rule = parse_match_rule(text)
    except MatchRuleError:
        return
    assert parse_match_rule(format_match_rule(rule), max_length=10_000) == rule


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=100))
def test_any_argument_value_survives_being_written_and_read(value: str) -> None:
    rule = MatchRule(args=(ArgMatch(5, "string", value),))
    assert parse_match_rule(format_match_rule(rule), max_length=10_000) == rule
