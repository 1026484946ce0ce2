"""The tables of `tests/unit/wire/test_match_rules.py`, asked of a real dbus-daemon: it must say the same.

Each rule is added, read back with GetAllMatchRules and removed by the text in which it was given.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.bus import DBUS_DAEMON, start_bus
from support.raw import RawClient
from unit.wire.test_match_rules import ACCEPTED, REFUSED, SIXTEEN

from busproxy.wire.match_rules import MATCH_RULE_INVALID, MatchRuleError, format_match_rule, parse_match_rule

pytestmark = pytest.mark.program("dbus-daemon")

MORE = [
    SIXTEEN,
    SIXTEEN + ",bogus",
    SIXTEEN.removesuffix(",arg15='x'") + ",bogus",
    f"arg0='{'x' * 1017}'",
    f"arg0='{'x' * 1018}'",
    f"arg0='{'ü' * 508}'",
    f"arg0='{'ü' * 509}'",
    f"sender='a.{'b' * 253}'",
    f"sender='a.{'b' * 254}'",
]


@pytest.fixture(scope="module")
def client() -> Iterator[RawClient]:
    bus = start_bus(DBUS_DAEMON)
    try:
        with RawClient(bus.address) as client:
            yield client
    finally:
        bus.stop()


def ask_dbus_daemon(client: RawClient, text: str) -> tuple[str | None, str]:
    """The error name and text, or None and the rule as dbus-daemon writes it; nothing is left behind."""
    reply = client.reply("AddMatch", "s", text)
    if reply.error_name is not None:
        return reply.error_name, reply.body[0]
    stats = "org.freedesktop.DBus.Debug.Stats"
    rules = dict(client.reply("GetAllMatchRules", interface=stats).body[0])[client.unique_name]
    assert client.reply("RemoveMatch", "s", text).error_name is None
    assert len(rules) == 1
    return None, rules[0]


def ask_parser(text: str) -> tuple[str | None, str]:
    try:
        return None, format_match_rule(parse_match_rule(text))
    except MatchRuleError as error:
        return error.error_name, str(error)


@pytest.mark.parametrize(("text", "canonical"), ACCEPTED)
def test_dbus_daemon_shows_an_accepted_rule_like_this(client: RawClient, text: str, canonical: str) -> None:
    assert ask_dbus_daemon(client, text) == (None, canonical)


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_dbus_daemon_refuses_a_bad_rule_like_this(client: RawClient, text: str, message: str) -> None:
    assert ask_dbus_daemon(client, text) == (MATCH_RULE_INVALID, message)


@pytest.mark.parametrize("text", MORE)
def test_dbus_daemon_has_the_same_limits(client: RawClient, text: str) -> None:
    assert ask_dbus_daemon(client, text) == ask_parser(text)
