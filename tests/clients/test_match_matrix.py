"""Match rules: which are accepted, and who receives what.

Every rule of the table is added by a subscriber of its own; then every message of the table is sent. The
result is a matrix of who received which messages, and it must be the same on both buses. Rules that are
refused are compared by their error's name and text.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.raw import METHOD_CALL, SIGNAL, Message, RawClient

pytestmark = pytest.mark.program("dbus-daemon")

SENDER_NAME = "com.example.Sender"
OTHER_NAME = "com.example.Other"

RULES = [
    "",
    "type='signal'",
    "type='method_call'",
    "type='method_return'",
    "type='error'",
    "interface='com.example.I'",
    "interface='com.example.J'",
    "member='S'",
    "member='T'",
    "interface='com.example.I',member='S'",
    "type='signal',interface='com.example.I',member='S',path='/a/b'",
    "path='/a'",
    "path='/a/b'",
    "path='/'",
    "path_namespace='/a'",
    "path_namespace='/a/b'",
    "path_namespace='/'",
    "path_namespace='/ab'",
    "sender='com.example.Sender'",
    "sender='com.example.Other'",
    "sender='com.example.Nobody'",
    "sender='{sender}'",
    "sender='{other}'",
    "sender='org.freedesktop.DBus'",
    "destination='com.example.Other'",
    "destination='{other}'",
    "destination='{sender}'",
    "eavesdrop='true'",
    "eavesdrop='false'",
    "eavesdrop='true',type='signal'",
    "eavesdrop='true',destination='com.example.Other'",
    "eavesdrop='true',destination='{other}'",
    "eavesdrop='true',type='method_call',interface='com.example.I'",
    "eavesdrop='true',sender='{sender}'",
    "arg0='one'",
    "arg0='two'",
    "arg1='two'",
    "arg0='one',arg1='two'",
    "arg0='one',arg2='three'",
    "arg0=''",
    "arg63='last'",
    "arg0='/a/b'",
    "arg0path='/a/b'",
    "arg0path='/a/'",
    "arg0path='/a/b/'",
    "arg0path='/a/b/c'",
    "arg0path='/'",
    "arg0path='one'",
    "arg1path='/x/'",
    "arg0namespace='com.example'",
    "arg0namespace='com.example.Sub'",
    "arg0namespace='com'",
    "arg0namespace='com.exam'",
    "type='signal',arg0='com.example'",
    "interface=com.example.I",
    "type=signal,member=S",
    " type='signal', member='S'",
    "member='S',interface='com.example.I',type='signal'",
    "arg0='it'\\''s'",
    "arg0='a,b'",
    "arg0=a\\b",
]

BAD_RULES = [
    "nonsense",
    "=",
    ",",
    ",,",
    "type",
    "type=",
    "type=''",
    "type='nonsense'",
    "type='signal',type='signal'",
    "type='signal",
    "type='signal',",
    "type='signal',,member='S'",
    "type='signal' member='S'",
    "unknown='x'",
    "interface='1.2'",
    "interface=''",
    "interface='noDots'",
    "member='with.dot'",
    "member=''",
    "path='relative'",
    "path='/trailing/'",
    "path=''",
    "path_namespace='/a/'",
    "path_namespace='x'",
    "path='/a',path_namespace='/a'",
    "path_namespace='/a',path='/a'",
    "sender=':'",
    "sender='not a name'",
    "sender=''",
    "destination='not a name'",
    "destination=''",
    "eavesdrop='maybe'",
    "eavesdrop=''",
    "eavesdrop='TRUE'",
    "eavesdrop='true',eavesdrop='true'",
    "arg='x'",
    "arg64='x'",
    "arg-1='x'",
    "arg01='x'",
    "arg100000000000000000000='x'",
    "arg0x='x'",
    "argpath='x'",
    "arg0pathx='x'",
    "arg0path='a',arg0='a'",
    "arg0='a',arg0='a'",
    "arg0='a',arg0path='/a'",
    "arg0='a',arg0namespace='a'",
    "arg1namespace='a.b'",
    "arg0namespace='1.2'",
    "arg0namespace=''",
    "arg0namespace='a..b'",
    "arg0namespace='single'",
    "arg0namespace=':1.5'",
    "arg0namespacex='a'",
    "argument0='x'",
    "'type'='signal'",
    "type='signal'\x00",
    " type='signal' , member='S' ",
    "type\t=\t'signal'",
    "type ='signal'",
    "type= 'signal'",
    "\\type='signal'",
    "sender=':1.5',sender=':1.5'",
    "member='S',member='T'",
    "x" * 1025,
    "arg0='" + "x" * 1000 + "'",
    "arg0='" + "x" * 1017 + "'",
    "arg0='" + "x" * 1018 + "'",
    "log='true'",
    "requested_reply='true'",
]


def build_messages(receiver: str) -> dict[str, Message]:
    """The messages to send, by what is special about each; some are for `receiver` alone."""

    def signal(
        path: str, interface: str, member: str, signature: str = "", *body: Any, **more: str
    ) -> Message:
        fields = {"path": path, "interface": interface, "member": member, **more}
        if signature:
            fields["signature"] = signature
        return Message(SIGNAL, fields=fields, body=list(body))

    i = "com.example.I"
    return {
        "plain": signal("/", i, "S"),
        "other member": signal("/a", i, "T"),
        "other interface": signal("/a/b", "com.example.J", "S"),
        "deep path": signal("/a/b/c", i, "S"),
        "similar path": signal("/ab", i, "S"),
        "one": signal("/a/b", i, "S", "s", "one"),
        "one two": signal("/a/b", i, "S", "ss", "one", "two"),
        "one 2 three": signal("/", i, "S", "sis", "one", 2, "three"),
        "number": signal("/", i, "S", "i", 1),
        "empty string": signal("/", i, "S", "s", ""),
        "variant string": signal("/", i, "S", "v", ("s", "one")),
        "string array": signal("/", i, "S", "as", ["one"]),
        "object path": signal("/", i, "S", "o", "/a/b"),
        "object path with slash": signal("/", i, "S", "s", "/a/b/"),
        "parent path": signal("/", i, "S", "s", "/a/"),
        "path string": signal("/", i, "S", "s", "/a/b"),
        "child path": signal("/", i, "S", "o", "/a/b/c"),
        "second path": signal("/", i, "S", "ss", "x", "/x/y"),
        "root path": signal("/", i, "S", "s", "/"),
        "signature": signal("/", i, "S", "g", ""),
        "name": signal("/", i, "S", "s", "com.example"),
        "sub name": signal("/", i, "S", "s", "com.example.Sub"),
        "similar name": signal("/", i, "S", "s", "com.examples"),
        "quote": signal("/", i, "S", "s", "it's"),
        "comma": signal("/", i, "S", "s", "a,b"),
        "backslash": signal("/", i, "S", "s", "a\\b"),
        "64 arguments": signal("/", i, "S", "s" * 64, *["x"] * 63, "last"),
        "65 arguments": signal("/", i, "S", "s" * 65, *["x"] * 64, "last"),
        "unicast signal": signal("/", i, "S", "s", "one", destination=receiver),
        "unicast by name": signal("/", i, "S", "s", "two", destination=OTHER_NAME),
        "call": Message(
            METHOD_CALL,
            1,
            fields={"path": "/a", "interface": i, "member": "S", "destination": receiver, "signature": "s"},
            body=["one"],
        ),
    }


def send_all(sender: RawClient, receiver: str) -> dict[int, str]:
    """Send every message; returns their names by serial."""
    return {sender.send(message): name for name, message in build_messages(receiver).items()}


def received_names(client: RawClient, sender: RawClient, names: dict[int, str]) -> list[str]:
    """Which of the sender's messages the client received, in order."""
    return [
        names.get(message.serial, message.brief())
        for message in client.sync()
        if message.fields.get("sender") == sender.unique_name
    ]


def run_matrix(bus: Bus, rules: list[str]) -> dict[str, list[str]]:
    """One subscriber for each rule, one sender, one other client that is spoken to."""
    subscribers: list[RawClient] = []
    with bus.connect() as sender, bus.connect() as other:
        sender.call("RequestName", "su", SENDER_NAME, 0)
        other.call("RequestName", "su", OTHER_NAME, 0)
        placeholders = {"{sender}": sender.unique_name, "{other}": other.unique_name}
        try:
            for rule in rules:
                for placeholder, name in placeholders.items():
                    rule = rule.replace(placeholder, name)
                subscribers.append(bus.connect())
                reply = subscribers[-1].call("AddMatch", "s", rule)[-1]
                assert reply.error_name is None, f"{rule}: {reply.brief()}"
            for subscriber in subscribers:
                subscriber.sync()
            names = send_all(sender, other.unique_name)
            sender.sync()
            result = {
                rule: received_names(client, sender, names)
                for rule, client in zip(rules, subscribers, strict=True)
            }
            result["the addressee"] = received_names(other, sender, names)
            return result
        finally:
            for subscriber in subscribers:
                subscriber.close()


def test_every_rule_selects_the_same_messages(compare: Comparison) -> None:
    matrix = compare(lambda bus: run_matrix(bus, RULES))
    assert matrix["the addressee"] == ["unicast signal", "unicast by name", "call"]
    assert matrix["member='T'"] == ["other member"]
    assert "plain" in matrix["type='signal'"]


@pytest.mark.parametrize("rule", BAD_RULES, ids=range(len(BAD_RULES)))
@pytest.mark.parametrize("member", ["AddMatch", "RemoveMatch"])
def test_a_doubtful_rule_is_accepted_or_refused_alike(
    compare_shared: Comparison, member: str, rule: str
) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            client.send_call(member, "s", rule)
            return ["closed" if found is None else found.describe() for found in client.probe()]

    compare_shared(scenario)


@pytest.mark.parametrize("member", ["AddMatch", "RemoveMatch"])
@pytest.mark.parametrize(("signature", "arguments"), [("", []), ("i", [1]), ("ss", ["", ""]), ("as", [[""]])])
def test_a_rule_of_a_wrong_type_is_refused_alike(
    compare_shared: Comparison, member: str, signature: str, arguments: list[Any]
) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            return [message.describe() for message in client.call(member, signature, *arguments)]

    compare_shared(scenario)


SAME_RULES = [
    ("type='signal',member='S'", "member='S',type='signal'"),
    ("member='S'", "member=S"),
    ("member='S'", " member = 'S' "),
    ("arg0='x'", "arg0path='x'"),
    ("eavesdrop='true'", "eavesdrop='false'"),
    ("eavesdrop='false'", ""),
    ("type='signal'", ""),
    ("arg0='x',arg1='y'", "arg1='y',arg0='x'"),
    ("path='/a'", "path_namespace='/a'"),
    ("sender='org.freedesktop.DBus'", "sender='org.freedesktop.DBus'"),
    ("arg0namespace='a.b'", "arg0='a.b'"),
]


@pytest.mark.parametrize(("added", "removed"), SAME_RULES)
def test_removing_a_rule_finds_an_equal_one(compare_shared: Comparison, added: str, removed: str) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            client.call("AddMatch", "s", added)
            return [client.reply("RemoveMatch", "s", removed).describe() for _ in range(2)]

    compare_shared(scenario)


def test_a_rule_added_twice_delivers_once_and_is_removed_twice(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client, bus.connect() as sender:
            heard = []
            for member in ("AddMatch", "AddMatch", "RemoveMatch", "RemoveMatch", "RemoveMatch"):
                reply = client.reply(member, "s", "interface='com.example.I'")
                sender.send(
                    Message(SIGNAL, fields={"path": "/", "interface": "com.example.I", "member": "S"})
                )
                sender.sync()
                heard.append((member, reply.brief(), [message.brief() for message in client.sync()]))
            return heard

    compare(scenario)


def test_two_rules_that_match_one_message_deliver_it_once(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client, bus.connect() as sender:
            client.call("AddMatch", "s", "interface='com.example.I'")
            client.call("AddMatch", "s", "member='S'")
            sender.send(Message(SIGNAL, fields={"path": "/", "interface": "com.example.I", "member": "S"}))
            sender.sync()
            return [message.describe() for message in client.sync()]

    assert len(compare(scenario)) == 1


def test_a_sender_receives_its_own_broadcast_when_it_matches(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            client.call("AddMatch", "s", "interface='com.example.I'")
            client.send(Message(SIGNAL, fields={"path": "/", "interface": "com.example.I", "member": "S"}))
            return [message.describe() for message in client.sync()]

    assert len(compare(scenario)) == 1


def test_a_well_known_sender_follows_the_name_to_its_next_owner(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        def emit(client: RawClient, text: str) -> None:
            client.send(
                Message(
                    SIGNAL,
                    fields={"path": "/", "interface": "com.example.I", "member": "S", "signature": "s"},
                    body=[text],
                )
            )
            client.sync()

        with bus.connect() as watcher, bus.connect() as first, bus.connect() as second:
            watcher.call("AddMatch", "s", f"sender='{SENDER_NAME}'")
            emit(first, "nobody owns it")
            first.call("RequestName", "su", SENDER_NAME, 0)
            second.call("RequestName", "su", SENDER_NAME, 0)
            emit(first, "first owns it")
            emit(second, "second waits")
            first.call("ReleaseName", "s", SENDER_NAME)
            emit(first, "first has released it")
            emit(second, "second owns it")
            return [message.brief() for message in watcher.sync()]

    assert compare(scenario) == ["signal S ['first owns it']", "signal S ['second owns it']"]


def test_rules_about_the_drivers_own_signals_select_alike(compare: Comparison) -> None:
    rules = [
        "sender='org.freedesktop.DBus'",
        "member='NameOwnerChanged'",
        "path='/org/freedesktop/DBus'",
        "path='/org/freedesktop/DBus/Local'",
        "interface='org.freedesktop.DBus'",
        "arg0='com.example.Sender'",
        "arg0namespace='com.example'",
        "member='NameOwnerChanged',arg2=''",
        "member='NameOwnerChanged',arg1=''",
        "member='NameAcquired'",
        "member='NameAcquired',eavesdrop='true'",
        "member='NameLost',eavesdrop='true'",
        "destination='com.example.Sender',eavesdrop='true'",
        "type='method_return',eavesdrop='true'",
        "type='method_call',eavesdrop='true'",
        "type='error',eavesdrop='true'",
    ]

    def scenario(bus: Bus) -> Any:
        watchers = []
        with bus.connect() as client:
            try:
                for rule in rules:
                    watchers.append(bus.connect())
                    watchers[-1].call("AddMatch", "s", rule)
                for watcher in watchers:
                    watcher.sync()
                client.call("RequestName", "su", SENDER_NAME, 0)
                client.call("NoSuchMethod")
                client.call("ReleaseName", "s", SENDER_NAME)
                return {
                    rule: relevant(watcher, client) for rule, watcher in zip(rules, watchers, strict=True)
                }
            finally:
                for watcher in watchers:
                    watcher.close()

    compare(scenario)


def relevant(watcher: RawClient, client: RawClient) -> list[str]:
    """What the watcher heard that is about the client or its name; other watchers' traffic is left out."""
    return [
        message.brief()
        for message in watcher.sync()
        if client.unique_name in (message.fields.get("sender"), message.fields.get("destination"))
        or SENDER_NAME in message.body
    ]
