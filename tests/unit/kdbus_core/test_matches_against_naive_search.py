"""The index finds what a search through all rules finds, and never anything else.

Small vocabularies make rules and messages meet often. A naive judge, written from the D-Bus specification's
table of match keys, goes through all rules for each message; the index has to come to the same receivers
before and after some of the rules have gone, and with no more arguments than it said it wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker_world import World, receivers
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbus_core.connection import Connection
from kdbus_core.matches import DRIVER, ArgumentTest, Audience, Envelope, Rule
from kdbus_core.names import QUEUE

NAMES = ["org.example.A", "org.example.B"]
PATHS = ["/", "/a", "/a/b", "/ab", "/a/b/c"]
INTERFACES = ["a.b", "a.bc"]
MEMBERS = ["M", "N"]
TEXTS = ["", "a.b", "a.b.c", "a.bc", "/", "/a/", "/a/b"]
MONITOR = 3
# Four connections in each example, the last one a monitor; ids follow from the order in which they are made.
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


sometimes = st.sampled_from([True, False, False])


def optional(values: list[str]) -> st.SearchStrategy[str | None]:
    return st.none() | st.sampled_from(values)


peers: st.SearchStrategy[int | str | None] = st.sampled_from([None, None, None, DRIVER, *IDS, *NAMES])
argument_tests = st.lists(
    st.builds(
        ArgumentTest,
        st.integers(0, 2),
        st.sampled_from(["string", "path", "namespace"]),
        st.sampled_from(TEXTS),
    ),
    max_size=2,
    unique_by=lambda test: test.index,
).map(lambda tests: tuple(sorted(tests, key=lambda test: test.index)))


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    path = draw(optional(PATHS))
    is_namespace = draw(st.booleans())
    return Rule(
        message_type=draw(st.sampled_from([None, None, 1, 4])),
        sender=draw(peers),
        interface=draw(optional(INTERFACES)),
        member=draw(optional(MEMBERS)),
        path=None if is_namespace else path,
        path_namespace=path if is_namespace else None,
        destination=draw(peers),
        arguments=draw(argument_tests),
        eavesdrop=draw(st.booleans()),
    )


subscriptions = st.lists(
    st.builds(Subscription, st.integers(0, len(IDS) - 1), rules(), st.booleans()), max_size=12
)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    destination = draw(st.sampled_from([None, None, 0, 1, 2]))
    argument = st.none() | st.tuples(st.sampled_from("sog"), st.sampled_from(TEXTS))
    return Message(
        type=draw(st.sampled_from([1, 4])),
        sender=draw(st.sampled_from([None, 0, 1, 2])),
        destination=destination,
        to_driver=destination is None and draw(sometimes),
        path=draw(optional(PATHS)),
        interface=draw(optional(INTERFACES)),
        member=draw(optional(MEMBERS)),
        arguments=tuple(draw(st.lists(argument, max_size=4))),
    )


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

    def _argument_holds(self, test: ArgumentTest) -> bool:
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
            rule.destination is None
            or (has_destination and self._is(message.destination, rule.destination)),
            all(self._argument_holds(test) for test in rule.arguments),
        ]
        if rule.path_namespace is not None:
            elements = [element for element in rule.path_namespace.split("/") if element]
            path = message.path
            conditions.append(
                path is not None and [part for part in path.split("/") if part][: len(elements)] == elements
            )
        return all(conditions)


def set_up(owners: dict[str, list[int]], wanted: list[Subscription]) -> tuple[World, list[Connection]]:
    world = World()
    connections = [*world.connect_many(MONITOR), world.connect_monitor()]
    assert [connection.id for connection in connections] == IDS
    for name, places in owners.items():
        for place in places:
            world.bus.name_acquire(connections[place], name, QUEUE)
    for cookie, subscription in enumerate(wanted):
        world.bus.match_add(connections[subscription.owner], cookie, subscription.rule)
    return world, connections


def check(audience: Audience, arguments: tuple[Argument, ...], expected: set[int]) -> None:
    found = receivers(audience, *arguments)
    assert len(found) == len(set(found))
    assert {IDS.index(connection.id) for connection in found} == expected
    assert receivers(audience, *arguments[: audience.argument_count]) == found
    assert set(audience.always) <= set(found)
    if audience.argument_count == 0:
        assert list(audience.always) == found


@settings(max_examples=400, deadline=None)
@given(owners=ownerships, wanted=subscriptions, message=messages())
def test_the_index_agrees_with_a_naive_search(
    owners: dict[str, list[int]], wanted: list[Subscription], message: Message
) -> None:
    world, connections = set_up(owners, wanted)
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
    matches = world.bus.matches
    left = wanted
    for _ in range(2):
        holding = [subscription for subscription in left if judge.holds(subscription.rule)]
        everybody = {subscription.owner for subscription in holding}
        monitors = everybody & {MONITOR}
        listening_in = {subscription.owner for subscription in holding if subscription.rule.eavesdrop}
        check(matches.broadcast_audience(envelope), message.arguments, everybody)
        check(matches.unicast_audience(envelope), message.arguments, listening_in | monitors)
        check(matches.eavesdropper_audience(envelope), message.arguments, listening_in - monitors)
        check(matches.monitor_audience(envelope), message.arguments, monitors)
        assert matches.has_monitors == any(subscription.owner == MONITOR for subscription in left)
        for cookie, subscription in enumerate(wanted):
            if subscription.removed and subscription in left:
                connection = connections[subscription.owner]
                if cookie in connection.matches:
                    world.bus.match_remove(connection, cookie)
        left = [subscription for subscription in left if not subscription.removed]
