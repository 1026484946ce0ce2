"""Which entries a rule becomes, and what is in a filter."""

from __future__ import annotations

from time import perf_counter

import pytest

from busproxy.bloom import all_bits, tag_bits, to_bytes
from busproxy.match_entries import (
    FilterArguments,
    core_rule,
    message_filter,
    own_signal_entries,
    rule_entries,
)
from busproxy.wire.match_rules import parse_match_rule
from kdbus_core.abi import MATCH_ANY, ItemType
from kdbus_core.domain import Bloom
from kdbus_core.matches import (
    BloomMask,
    DstIdMatch,
    Filter,
    IdMatch,
    IdNotice,
    MatchRule,
    NameMatch,
    NameNotice,
)
from kdbus_core.subscriptions import Rule

BLOOM = Bloom(64, 8)
ANY = MATCH_ANY

EVERY_NOTICE: list[list[MatchRule]] = [
    [IdNotice(ItemType.ID_ADD, ANY)],
    [IdNotice(ItemType.ID_REMOVE, ANY)],
    [NameNotice(ItemType.NAME_ADD, ANY, ANY, None)],
    [NameNotice(ItemType.NAME_REMOVE, ANY, ANY, None)],
    [NameNotice(ItemType.NAME_CHANGE, ANY, ANY, None)],
]


def entries(text: str) -> list[list[MatchRule]]:
    return rule_entries(BLOOM, core_rule(parse_match_rule(text)))


def mask(*tags: str) -> BloomMask:
    bits = 0
    for tag in tags:
        bits |= tag_bits(BLOOM, tag.encode())
    return BloomMask((to_bytes(BLOOM, bits),))


def has(filter: Filter, tag: str) -> bool:
    wanted = tag_bits(BLOOM, tag.encode())
    return int.from_bytes(filter.bits, "little") & wanted == wanted


def signal(arguments: FilterArguments = (), path: str = "/a") -> Filter:
    return message_filter(BLOOM, path=path, interface="org.example.I", member="M", arguments=arguments)


# Messages


def test_header_fields_and_a_first_argument_become_one_mask() -> None:
    assert entries("type='signal',interface='a.b',member='M',path='/p',arg0='x'") == [
        [mask("message-type:signal", "interface:a.b", "member:M", "path:/p", "arg0:x")]
    ]


def test_a_namespace_of_paths_asks_for_the_prefix() -> None:
    assert entries("interface='a.b',path_namespace='/p/q'") == [
        [mask("interface:a.b", "path-slash-prefix:/p/q")]
    ]


def test_the_namespace_of_all_paths_asks_for_nothing() -> None:
    assert entries("interface='a.b',path_namespace='/'") == [[mask("interface:a.b")]]


def test_a_namespace_of_names_asks_for_the_prefix() -> None:
    assert entries("interface='a.b',arg0namespace='org.example'") == [
        [mask("interface:a.b", "arg0-dot-prefix:org.example")]
    ]


def test_an_argument_that_is_a_path_is_left_to_the_exact_rule() -> None:
    assert entries("interface='a.b',arg0path='/p/',arg1='x'") == [[mask("interface:a.b", "arg1:x")]]


def test_a_value_too_long_for_any_client_to_match_is_left_to_the_exact_rule() -> None:
    rule = Rule(interface="a.b", path="/" + "p" * 2000)
    assert rule_entries(BLOOM, rule) == [[mask("interface:a.b")]]


def test_a_unique_sender_is_an_id() -> None:
    assert entries("sender=':1.7',member='M'") == [[IdMatch(7), mask("member:M")]]


def test_a_well_known_sender_is_whoever_owns_the_name() -> None:
    assert entries("sender='org.example.S'") == [[NameMatch("org.example.S")]]


def test_a_rule_for_everything_is_the_entry_without_rules() -> None:
    assert entries("") == [[]]


def test_a_rule_for_every_message_but_no_notification_has_an_empty_mask() -> None:
    assert rule_entries(BLOOM, Rule(), notifications=False) == [[mask()]]


def test_a_rule_for_every_message_with_some_eighth_argument_asks_for_no_notification() -> None:
    assert entries("arg7path='/'") == [[mask()]]


def test_a_destination_that_is_an_id_may_be_addressed_by_one_of_its_names() -> None:
    assert entries("destination=':1.7',member='M'") == [
        [DstIdMatch(7), mask("member:M")],
        [DstIdMatch(0), mask("member:M")],
    ]


def test_a_destination_that_is_a_name_is_left_to_the_exact_rule() -> None:
    assert entries("destination='org.example.D',member='M'") == [[mask("member:M")]]


def test_a_connection_asks_for_what_is_sent_to_its_id_and_to_its_names() -> None:
    assert own_signal_entries(7) == [[DstIdMatch(7)], [DstIdMatch(0)]]


@pytest.mark.parametrize(
    "text",
    [
        "type='method_call'",
        "type='method_return'",
        "type='error',interface='a.b'",
        "interface='org.freedesktop.DBus.Local'",
        "path='/org/freedesktop/DBus/Local',member='M'",
        "sender=':2.7',member='M'",
        "sender=':1.18446744073709551615'",
        "sender=':1.0'",
        "destination='org.freedesktop.DBus'",
        "destination=':junk'",
        "sender='org.freedesktop.DBus',member='NameLost'",
    ],
)
def test_a_rule_that_matches_cannot_satisfy_becomes_nothing(text: str) -> None:
    assert entries(text) == []


# Notifications


def test_a_rule_for_owners_of_all_names_asks_for_every_notification() -> None:
    assert entries("sender='org.freedesktop.DBus',member='NameOwnerChanged'") == EVERY_NOTICE


def test_a_rule_without_sender_asks_for_messages_and_notifications() -> None:
    text = "type='signal',path='/org/freedesktop/DBus'"
    assert entries(text) == [[mask("message-type:signal", "path:/org/freedesktop/DBus")], *EVERY_NOTICE]


@pytest.mark.parametrize("namespace", ["/", "/org", "/org/freedesktop/DBus"])
def test_a_namespace_around_the_bus_itself_asks_for_every_notification(namespace: str) -> None:
    assert entries(f"sender='org.freedesktop.DBus',path_namespace='{namespace}'") == EVERY_NOTICE


def test_notifications_can_be_declined() -> None:
    rule = core_rule(parse_match_rule("sender='org.freedesktop.DBus'"))
    assert rule_entries(BLOOM, rule, notifications=False) == []


@pytest.mark.parametrize(
    "text",
    [
        "sender='org.example.S'",
        "sender=':1.7'",
        "type='error'",
        "interface='org.example.I'",
        "member='NameLost'",
        "path='/org'",
        "path_namespace='/org/freedesktop/DBus/x'",
        "path_namespace='/org/free'",
        "destination=':1.7'",
        "arg3='x'",
        "arg1='org.example.S'",
        "arg1='',arg2='',arg0='a.b'",
        "arg0='not a name'",
        "arg1=':1.7',arg2=':1.x'",
        "arg0='a.b',arg1path='/'",
    ],
)
def test_a_rule_that_no_change_of_owners_satisfies_asks_for_no_notification(text: str) -> None:
    found = [rule for entry in entries(text) for rule in entry]
    assert not any(isinstance(rule, IdNotice | NameNotice) for rule in found)


def notices(text: str) -> list[MatchRule]:
    return [rule for entry in entries("sender='org.freedesktop.DBus'," + text) for rule in entry]


def test_a_well_known_name_asks_for_its_three_notifications() -> None:
    assert notices("arg0='a.b'") == [
        NameNotice(ItemType.NAME_ADD, ANY, ANY, "a.b"),
        NameNotice(ItemType.NAME_REMOVE, ANY, ANY, "a.b"),
        NameNotice(ItemType.NAME_CHANGE, ANY, ANY, "a.b"),
    ]


def test_a_unique_name_asks_for_the_connection() -> None:
    assert notices("arg0=':1.7'") == [IdNotice(ItemType.ID_ADD, 7), IdNotice(ItemType.ID_REMOVE, 7)]


def test_a_new_owner_is_the_connection_that_comes_or_gets_a_name() -> None:
    assert notices("arg2=':1.7'") == [
        IdNotice(ItemType.ID_ADD, 7),
        NameNotice(ItemType.NAME_ADD, ANY, 7, None),
        NameNotice(ItemType.NAME_CHANGE, ANY, 7, None),
    ]


def test_nobody_as_new_owner_is_a_name_removed_or_back_with_its_activator() -> None:
    assert notices("arg0='a.b',arg2=''") == [
        NameNotice(ItemType.NAME_REMOVE, ANY, ANY, "a.b"),
        NameNotice(ItemType.NAME_CHANGE, ANY, ANY, "a.b"),
    ]


def test_nobody_as_old_owner_is_a_name_added_or_taken_from_its_activator() -> None:
    assert notices("arg0='a.b',arg1=''") == [
        NameNotice(ItemType.NAME_ADD, ANY, ANY, "a.b"),
        NameNotice(ItemType.NAME_CHANGE, ANY, ANY, "a.b"),
    ]


def test_an_owner_who_hands_on_a_name_is_a_change_between_two_ids() -> None:
    assert notices("arg1=':1.7',arg2=':1.8'") == [NameNotice(ItemType.NAME_CHANGE, 7, 8, None)]


def test_a_connection_that_goes_under_another_name_never_does() -> None:
    assert notices("arg0=':1.7',arg1=':1.8'") == []


# Filters


def test_a_filter_has_all_fields_of_the_header() -> None:
    filter = signal()
    for tag in ("message-type:signal", "interface:org.example.I", "member:M", "path:/a"):
        assert has(filter, tag)


def test_a_filter_has_every_path_above_with_and_without_slash() -> None:
    filter = signal(path="/foo/bar")
    for prefix in ("/foo/bar", "/foo/", "/foo", "/"):
        assert has(filter, f"path-slash-prefix:{prefix}")
    assert not has(filter, "path-slash-prefix:/foo/b")


def test_a_filter_has_every_name_above_with_and_without_dot() -> None:
    filter = signal([("s", "com.example.x")])
    for prefix in ("com.example.x", "com.example.", "com.example", "com.", "com"):
        assert has(filter, f"arg0-dot-prefix:{prefix}")
    assert has(filter, "arg0:com.example.x")
    assert not has(filter, "arg0:com.example")


def test_arguments_after_the_first_are_in_the_filter() -> None:
    filter = signal([("s", "one"), ("o", "/two"), ("g", "ai"), ("s", "four")])
    for tag in ("arg0:one", "arg1:/two", "arg1-slash-prefix:/two", "arg2:ai", "arg3:four"):
        assert has(filter, tag)


def test_an_argument_of_another_type_does_not_hide_those_after_it() -> None:
    assert has(signal([None, ("s", "x")]), "arg1:x")


def test_elements_of_an_array_are_in_the_filter() -> None:
    filter = signal([("as", ["x", "y"])])
    assert has(filter, "arg0-has:x")
    assert has(filter, "arg0-has:y")
    assert not has(filter, "arg0:x")


def test_the_sixty_fifth_argument_is_not_in_the_filter() -> None:
    assert signal([None] * 64 + [("s", "x")]) == signal()


def test_an_empty_argument_is_in_the_filter() -> None:
    assert has(signal([("s", "")]), "arg0:")


def test_a_long_text_is_in_the_filter_as_far_as_rules_reach() -> None:
    filter = signal([("s", "a.b." + "x" * 5000)])
    assert has(filter, "arg0-dot-prefix:a.b")


def test_a_message_not_worth_hashing_passes_every_mask() -> None:
    hostile: FilterArguments = [("s", "a.b/" * 1000)] * 64
    started = perf_counter()
    filter = message_filter(BLOOM, path="/a", interface="a.b", member="M", arguments=hostile)
    assert perf_counter() - started < 1
    assert filter.bits == to_bytes(BLOOM, all_bits(BLOOM))


def test_a_filter_has_the_size_of_the_bus() -> None:
    assert len(message_filter(Bloom(256, 4), member="M").bits) == 256
