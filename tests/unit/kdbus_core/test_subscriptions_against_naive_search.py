"""The index finds what a search through all rules finds, and never anything else.

Small vocabularies make rules and messages meet often. A naive judge, written from the D-Bus specification's
table of match keys, goes through all rules for each message; the index has to come to the same receivers
before and after some of the rules have gone, and with no more arguments than it said it wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
from broker_world import World, receivers
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbus_core.connection import Connection
from kdbus_core.names import QUEUE
from kdbus_core.subscriptions import DRIVER, ArgumentKind, ArgumentTest, Audience, Envelope, Rule

NAMES = ["org.example.A", "org.example.B"]
PATHS = ["/", "/a", "/a/b", "/ab", "/a/b/c"]
INTERFACES = ["a.b", "a.bc"]
MEMBERS = ["M", "N"]
TEXTS = ["a.b", "a.b.c", "a.bc", "/a/", "/a/b"]
KINDS: list[ArgumentKind] = ["string", "path", "namespace"]
CONDITIONS = ["type", "sender", "destination", "interface", "member", "path", "path_namespace"]
CONDITIONS += ["arg0", "arg1", "arg2", "arg3"]
MONITOR = 3
# Four connections in each example, the last one a monitor in the end; ids follow from their order.
IDS = [2, 3, 4, 5]

Argument = tuple[str, str] | None


@dataclass(frozen=True)
class Subscription:
    """A rule of the connection with this index; `removed` ones go before the second half of the test."""

    owner: int
    rule: Rule
    removed: bool


@dataclass(frozen=True)
class Message:
    """A message between connections given by index; the sender None is the driver."""

    type: int
    sender: int | None
    destination: int | None
    to_driver: bool
    path: str | None
    interface: str | None
    member: str | None
    arguments: tuple[Argument, ...]


@st.composite
def messages(draw: st.DrawFn) -> Message:
    destination = draw(st.sampled_from([None, None, 0, 1, 2]))
    argument = st.sampled_from([None, *((code, text) for code in "sssog" for text in TEXTS)])
    return Message(
        type=draw(st.sampled_from([1, 4])),
        sender=draw(st.sampled_from([None, 0, 1, 2])),
        destination=destination,
        to_driver=destination is None and draw(st.booleans()),
        path=draw(st.sampled_from([None, *PATHS])),
        interface=draw(st.sampled_from([None, *INTERFACES])),
        member=draw(st.sampled_from([None, *MEMBERS])),
        arguments=tuple(draw(st.lists(argument, min_size=2, max_size=4))),
    )


@st.composite
def rules(draw: st.DrawFn, message: Message) -> Rule:
    """A rule with few conditions, each of which often asks for just what the message has."""
    wanted = draw(st.lists(st.sampled_from(CONDITIONS), max_size=3, unique=True))

    def some(condition: str, values: list[str], own: str | None) -> str | None:
        if condition not in wanted:
            return None
        return draw(st.sampled_from(values if own is None else [own] * len(values) + values))

    def peer(condition: str, own: int | None) -> int | str | None:
        if condition not in wanted:
            return None
        mine: int | str = DRIVER if own is None else IDS[own]
        return draw(st.sampled_from([mine] * 4 + [*NAMES] * 2 + [DRIVER, *IDS]))

    def argument_test(index: int) -> ArgumentTest:
        own = message.arguments[index] if index < len(message.arguments) else None
        values = TEXTS if own is None else [*TEXTS, *[own[1]] * len(TEXTS)]
        return ArgumentTest(index, draw(st.sampled_from(KINDS)), draw(st.sampled_from(values)))

    return Rule(
        message_type=draw(st.sampled_from([1, 4])) if "type" in wanted else None,
        sender=peer("sender", message.sender),
        interface=some("interface", INTERFACES, message.interface),
        member=some("member", MEMBERS, message.member),
        path=None if "path_namespace" in wanted else some("path", PATHS, message.path),
        path_namespace=some("path_namespace", PATHS, message.path),
        destination=peer("destination", message.destination),
        arguments=tuple(argument_test(index) for index in range(4) if f"arg{index}" in wanted),
        eavesdrop=draw(st.booleans()),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Message, list[Subscription]]:
    message = draw(messages())
    subscription = st.builds(Subscription, st.integers(0, len(IDS) - 1), rules(message), st.booleans())
    return message, draw(st.lists(subscription, max_size=10))


# For each name who owns it, and who waits for it.
ownerships = st.fixed_dictionaries({name: st.lists(st.integers(0, 2), unique=True) for name in NAMES})


class NaiveJudge:
    """Decides on one rule and one message from what the test itself set up, without the broker's help."""

    def __init__(self, owners: dict[str, list[int]], message: Message) -> None:
        self._owners = owners
        self._message = message

    def _is(self, peer: int | None, wanted: int | str) -> bool:
        if isinstance(wanted, str):
            return peer is not None and self._owners[wanted][:1] == [peer]
        return wanted == (DRIVER if peer is None else IDS[peer])

    def argument_holds(self, test: ArgumentTest) -> bool:
        present = dict(enumerate(self._message.arguments)).get(test.index)
        if present is None:
            return False
        code, text = present
        if test.kind == "string":
            return code == "s" and text == test.value
        if test.kind == "namespace":
            return code == "s" and f"{text}.".startswith(f"{test.value}.")
        shorter, longer = sorted((text, test.value), key=len)
        return code != "g" and (shorter == longer or (shorter.endswith("/") and longer.startswith(shorter)))

    def holds(self, rule: Rule) -> bool:
        message = self._message
        has_destination = message.destination is not None or message.to_driver
        conditions = [
            rule.message_type in (None, message.type),
            rule.interface in (None, message.interface),
            rule.member in (None, message.member),
            rule.path in (None, message.path),
            rule.sender is None or self._is(message.sender, rule.sender),
            rule.destination is None or (has_destination and self._is(message.destination, rule.destination)),
            all(self.argument_holds(test) for test in rule.arguments),
        ]
        if rule.path_namespace is not None:
            elements = [element for element in rule.path_namespace.split("/") if element]
            path = message.path
            conditions.append(
                path is not None and [part for part in path.split("/") if part][: len(elements)] == elements
            )
        return all(conditions)


@pytest.mark.parametrize("kind", KINDS)
def test_one_argument_is_compared_as_the_naive_judge_does_it(kind: ArgumentKind) -> None:
    texts = ["", "/", ".", *TEXTS]
    for value, text, code in product(texts, texts, "sog"):
        test = ArgumentTest(0, kind, value)
        message = Message(
            type=4,
            sender=None,
            destination=None,
            to_driver=False,
            path=None,
            interface=None,
            member=None,
            arguments=((code, text),),
        )
        judge = NaiveJudge({}, message)
        assert test.holds([(code, text)]) is judge.argument_holds(test), (test, code, text)


def set_up(
    owners: dict[str, list[int]], wanted: list[Subscription]
) -> tuple[World, list[Connection], list[int]]:
    """A world with these owners and subscriptions, its connections, and under which cookie each rule is."""
    world = World()
    connections = world.connect_many(len(IDS))
    assert [connection.id for connection in connections] == IDS
    monitored = [subscription.rule for subscription in wanted if subscription.owner == MONITOR]
    world.bus.become_monitor(connections[MONITOR], monitored)
    monitors_cookies = iter(range(len(monitored)))
    cookies = []
    for name, places in owners.items():
        for place in places:
            world.bus.name_acquire(connections[place], name, QUEUE)
    for number, subscription in enumerate(wanted):
        if subscription.owner == MONITOR:
            cookies.append(next(monitors_cookies))
        else:
            world.bus.subscribe(connections[subscription.owner], number, subscription.rule)
            cookies.append(number)
    return world, connections, cookies


def check(audience: Audience, arguments: tuple[Argument, ...], expected: set[int]) -> None:
    found = receivers(audience, *arguments)
    assert len(found) == len(set(found))
    assert {IDS.index(connection.id) for connection in found} == expected
    assert receivers(audience, *arguments[: audience.argument_count]) == found
    assert set(audience.always) <= set(found)
    if audience.argument_count == 0:
        assert list(audience.always) == found


@settings(max_examples=400, deadline=None)
@given(owners=ownerships, case=cases())
def test_the_index_agrees_with_a_naive_search(
    owners: dict[str, list[int]], case: tuple[Message, list[Subscription]]
) -> None:
    message, wanted = case
    world, connections, cookies = set_up(owners, wanted)
    judge = NaiveJudge(owners, message)
    envelope = Envelope(
        message.type,
        sender=None if message.sender is None else connections[message.sender],
        destination=None if message.destination is None else connections[message.destination],
        to_driver=message.to_driver,
        path=message.path,
        interface=message.interface,
        member=message.member,
    )
    subscriptions = world.bus.subscriptions
    left = wanted
    for _ in range(2):
        holding = [subscription for subscription in left if judge.holds(subscription.rule)]
        everybody = {subscription.owner for subscription in holding}
        monitors = everybody & {MONITOR}
        listening_in = {subscription.owner for subscription in holding if subscription.rule.eavesdrop}
        check(subscriptions.broadcast_audience(envelope), message.arguments, everybody)
        check(subscriptions.unicast_audience(envelope), message.arguments, listening_in | monitors)
        check(subscriptions.eavesdropper_audience(envelope), message.arguments, listening_in - monitors)
        check(subscriptions.monitor_audience(envelope), message.arguments, monitors)
        assert subscriptions.has_monitors == any(subscription.owner == MONITOR for subscription in left)
        assert subscriptions.has_listeners == any(
            subscription.owner == MONITOR or subscription.rule.eavesdrop for subscription in left
        )
        for cookie, subscription in zip(cookies, wanted, strict=True):
            if subscription.removed and subscription in left:
                connection = connections[subscription.owner]
                if cookie in connection.subscriptions:
                    subscriptions.remove(connection, cookie)
        left = [subscription for subscription in left if not subscription.removed]
