"""Whatever the exact rules let through, the entries made of them pass too.

Rules and messages are drawn from few words, so that they meet often; paths, names and arguments are built to
lie below each other, to be equal, and to differ in nothing but a trailing separator. The judge is
`Subscriptions`, which delivers by the exact rule; the entries are judged by `Matches`, as on a bus. The same
for changes of owners: the exact rule judges the signal that a client would see, the entries the notification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from busproxy.match_entries import message_filter, own_signal_entries, rule_entries
from kdbus_core.abi import DST_BROADCAST, HelloFlag, NameFlag
from kdbus_core.connection import Connection
from kdbus_core.domain import Bloom, Domain
from kdbus_core.matches import Filter, Matches
from kdbus_core.message import Message
from kdbus_core.metadata import Credentials, Process
from kdbus_core.names import QUEUE
from kdbus_core.notifications import IdAdd, IdRemove, NameChange, Notification, ReplyDead, ReplyTimeout
from kdbus_core.subscriptions import (
    DRIVER,
    ArgumentKind,
    Arguments,
    ArgumentTest,
    Envelope,
    Rule,
    Subscriptions,
)

SIGNAL = 4
DRIVER_NAME = "org.freedesktop.DBus"
DRIVER_PATH = "/org/freedesktop/DBus"
NAMES = ["org.example.A", "org.example.A.B", "org.example"]
# Three ordinary connections and an activator in each example; ids follow from their order.
IDS = [2, 3, 4]
WHO: list[int | str] = [*IDS, *NAMES]
ACTIVATOR_NAME = "org.example.Started"

PATHS = ["/", "/a", "/a/b", "/a/bc", "/a/b/c", DRIVER_PATH]
INTERFACES = ["org.example.I", "org.example.J", DRIVER_NAME]
MEMBERS = ["M", "NameOwnerChanged"]
TEXTS = [
    "",
    "/",
    "//",
    "/a",
    "/a/",
    "/a/b",
    "/a/b/",
    "/a//b",
    "a",
    "a.b",
    "a.b.",
    "a..b",
    ".a",
    "a/b.c",
    "é.ß/",
    "a" * 1023 + ".b",
    "a" * 1100,
    *NAMES,
]
OWNERS = ["", ":1.2", ":1.3", ":1.4", ":1.99", *NAMES, ACTIVATOR_NAME]
NAMESPACES = ["a", "a.b", "org", "org.example", "org.example.A", ":1", ":1.3"]
BLOOMS = [Bloom(64, 8), Bloom(8, 1), Bloom(4096, 20), Bloom(64, 60)]


OWNER = Process.of(Credentials(uid=1000, gid=1000, pid=4711), privileged=True)


class Nothing:
    """A sink of connections that ask nothing of anybody."""

    def on_reply_lost(self, notification: ReplyDead | ReplyTimeout) -> None:
        raise AssertionError(notification)

    def on_message(self, sender: Connection, message: Message) -> None:
        raise AssertionError(message)


class World:
    """A bus, and what its connections were told of each other; the first connection has id 2."""

    def __init__(self) -> None:
        self.domain = Domain(bytes)
        self.bus = self.domain.make_bus("1000-test", OWNER)
        self.news: list[Notification] = []
        self.bus.observers.append(self.news.append)

    def connect(self, flags: HelloFlag = HelloFlag(0), name: str | None = None) -> Connection:  # noqa: B008
        return self.bus.hello(self.bus.endpoint, OWNER, sink=Nothing(), flags=flags, name=name)


T = TypeVar("T")


def maybe(values: Sequence[T]) -> st.SearchStrategy[T | None]:
    return st.none() | st.sampled_from(values)


@st.composite
def argument_tests(draw: st.DrawFn, texts: Sequence[str]) -> tuple[ArgumentTest, ...]:
    tests = []
    for index in sorted(draw(st.sets(st.sampled_from([0, 1, 2, 3, 63]), max_size=3))):
        kinds: list[ArgumentKind] = ["string", "path", "namespace"] if index == 0 else ["string", "path"]
        kind = draw(st.sampled_from(kinds))
        value = draw(st.sampled_from(NAMESPACES if kind == "namespace" else texts))
        tests.append(ArgumentTest(index, kind, value))
    return tuple(tests)


@st.composite
def rules(draw: st.DrawFn, texts: Sequence[str] = TEXTS) -> Rule:
    path, path_namespace = draw(maybe(PATHS)), None
    if draw(st.booleans()):
        path, path_namespace = None, path
    return Rule(
        message_type=draw(st.sampled_from([None, None, SIGNAL, SIGNAL, 1])),
        sender=draw(maybe([*WHO, DRIVER])),
        interface=draw(maybe(INTERFACES)),
        member=draw(maybe(MEMBERS)),
        path=path,
        path_namespace=path_namespace,
        destination=draw(st.none() | maybe(WHO)),
        arguments=draw(argument_tests(texts)),
        eavesdrop=draw(st.booleans()),
    )


@dataclass(frozen=True)
class Signal:
    sender: int
    path: str
    interface: str
    member: str
    arguments: Arguments


arguments = st.lists(
    st.none() | st.tuples(st.sampled_from("sog"), st.sampled_from(TEXTS)), max_size=4
) | st.builds(lambda text: [None] * 63 + [("s", text)], st.sampled_from(TEXTS))

signals = st.builds(
    Signal,
    st.sampled_from([0, 1, 2]),
    st.sampled_from([*PATHS, "/a/b/" + "c" * 1100]),
    st.sampled_from(INTERFACES),
    st.sampled_from(MEMBERS),
    arguments,
)


@st.composite
def near_rules(draw: st.DrawFn, signal: Signal) -> Rule:
    """Rules that speak of what is in the signal, or of what is close to it."""
    above = [signal.path[:at] for at in range(1, len(signal.path)) if signal.path[at] == "/"]
    path = draw(maybe([signal.path, *PATHS]))
    path_namespace = None if path is not None else draw(maybe([signal.path, "/", *above]))
    senders: list[int | str] = [IDS[signal.sender], *NAMES]
    destinations: list[int | str] = [IDS[0], *NAMES]
    tests = []
    for index, argument in enumerate(signal.arguments):
        if argument is None or draw(st.booleans()):
            continue
        _, text = argument
        kinds: list[ArgumentKind] = ["string", "path", "namespace"] if index == 0 else ["string", "path"]
        kind = draw(st.sampled_from(kinds))
        values = [text, text]
        if kind == "path":
            values += [text[:at] for at, char in enumerate(text, 1) if char == "/"] + [text + "/", text + "x"]
        elif kind == "namespace":
            values += [text[:at] for at, char in enumerate(text) if char == "."]
        tests.append(ArgumentTest(index, kind, draw(st.sampled_from(values))))
    return Rule(
        message_type=draw(st.sampled_from([None, SIGNAL])),
        sender=draw(maybe(senders)),
        interface=draw(maybe([signal.interface])),
        member=draw(maybe([signal.member])),
        path=path,
        path_namespace=path_namespace,
        destination=draw(st.none() | maybe(destinations)),
        arguments=tuple(tests),
        eavesdrop=draw(st.booleans()),
    )


pairs = signals.flatmap(lambda signal: st.tuples(st.just(signal), rules() | near_rules(signal)))


def world_with(owners: list[tuple[int, str]]) -> tuple[World, list[Connection]]:
    world = World()
    connections = [world.connect() for _ in IDS]
    assert [connection.id for connection in connections] == IDS
    for index, name in owners:
        world.bus.name_acquire(connections[index], name, QUEUE)
    return world, connections


owners = st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from(NAMES)), max_size=4)


def exact(rule: Rule, envelope: Envelope, arguments: Arguments, receiver: Connection) -> bool:
    """Whether the rule holds for a message, whoever it is for."""
    subscriptions = Subscriptions()
    is_unicast = envelope.destination is not None
    # Who a unicast signal is for gets it without a rule; what is asked here is whether a rule holds.
    rule = replace(rule, eavesdrop=is_unicast)
    subscriptions.add(receiver, 0, rule)
    try:
        audience = (
            subscriptions.unicast_audience(envelope)
            if is_unicast
            else subscriptions.broadcast_audience(envelope)
        )
        return receiver in audience.receivers(arguments)
    finally:
        subscriptions.disconnect(receiver)


@given(st.sampled_from(BLOOMS), owners, pairs)
@settings(max_examples=600)
def test_entries_pass_every_broadcast_for_which_the_rule_holds(
    bloom: Bloom, owners: list[tuple[int, str]], pair: tuple[Signal, Rule]
) -> None:
    signal, rule = pair
    world, connections = world_with(owners)
    sender, receiver = connections[signal.sender], connections[0]
    envelope = Envelope(
        SIGNAL, sender=sender, path=signal.path, interface=signal.interface, member=signal.member
    )
    holds = exact(rule, envelope, signal.arguments, receiver)
    event(f"holds: {holds}")
    matches = Matches()
    for entry in rule_entries(bloom, rule):
        matches.add(receiver, 1, entry)
    found = matches.recipients(sender, filter_of(bloom, signal), DST_BROADCAST)
    matches.disconnect(receiver)
    world.domain.close()
    assert not holds or receiver in found


def filter_of(bloom: Bloom, signal: Signal) -> Filter:
    return message_filter(
        bloom,
        path=signal.path,
        interface=signal.interface,
        member=signal.member,
        arguments=signal.arguments,
    )


@given(st.sampled_from(BLOOMS), owners, pairs, maybe(NAMES))
@settings(max_examples=400)
def test_entries_pass_every_signal_to_their_connection_for_which_the_rule_holds(
    bloom: Bloom, owners: list[tuple[int, str]], pair: tuple[Signal, Rule], name: str | None
) -> None:
    signal, rule = pair
    world, connections = world_with(owners)
    sender, receiver = connections[signal.sender], connections[0]
    owner = world.bus.names.owner(name) if name is not None else None
    if owner is not receiver:
        name = None
    dst_id = receiver.id if name is None else 0
    envelope = Envelope(
        SIGNAL,
        sender=sender,
        destination=receiver,
        path=signal.path,
        interface=signal.interface,
        member=signal.member,
    )
    holds = exact(rule, envelope, signal.arguments, receiver)
    event(f"holds: {holds}")
    filter = filter_of(bloom, signal)
    matches = Matches()
    for entry in rule_entries(bloom, rule):
        matches.add(receiver, 1, entry)
    wanted = matches.wants(receiver, sender, filter, dst_id)
    for entry in own_signal_entries(receiver.id):
        matches.add(receiver, 2, entry)
    assert matches.wants(receiver, sender, filter, dst_id)
    matches.disconnect(receiver)
    world.domain.close()
    assert not holds or wanted


# Changes of owners


def told(change: NameChange | IdAdd | IdRemove) -> tuple[str, str, str] | None:
    """The NameOwnerChanged that clients see; None when there is none."""

    def shown(connection: Connection | None, flags: int) -> str:
        hidden = connection is None or flags & (NameFlag.ACTIVATOR | NameFlag.IN_QUEUE)
        return "" if hidden or connection is None else f":1.{connection.id}"

    match change:
        case NameChange(name, old, old_flags, new, new_flags):
            before, after = shown(old, old_flags), shown(new, new_flags)
            return (name, before, after) if before or after else None
        case IdAdd(connection):
            return None if connection.is_activator else (f":1.{connection.id}", "", f":1.{connection.id}")
        case IdRemove(connection):
            return None if connection.is_activator else (f":1.{connection.id}", f":1.{connection.id}", "")


Act = tuple[str, int, str]
acts = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "release", "leave", "come"]),
        st.sampled_from([0, 1, 2]),
        st.sampled_from([*NAMES, ACTIVATOR_NAME]),
    ),
    min_size=1,
    max_size=6,
)

owner_rules = st.builds(
    Rule,
    message_type=st.sampled_from([None, SIGNAL]),
    sender=st.sampled_from([None, DRIVER]),
    interface=st.sampled_from([None, DRIVER_NAME]),
    member=st.sampled_from([None, "NameOwnerChanged"]),
    path=st.sampled_from([None, DRIVER_PATH]),
    arguments=argument_tests(OWNERS),
) | rules(OWNERS)


@given(acts, owner_rules)
@settings(max_examples=600)
@example([("acquire", 0, ACTIVATOR_NAME)], Rule(sender=DRIVER, arguments=(ArgumentTest(1, "string", ""),)))
@example([("come", 0, "")], Rule(arguments=(ArgumentTest(0, "namespace", ":1"),)))
def test_entries_pass_every_notification_of_a_change_for_which_the_rule_holds(
    acts: list[Act], rule: Rule
) -> None:
    world, connections = world_with([])
    receiver = world.connect()
    world.connect(HelloFlag.ACTIVATOR, name=ACTIVATOR_NAME)
    world.news.clear()
    for verb, index, name in acts:
        perform(world, connections[index], verb, name)
    matches = Matches()
    for entry in rule_entries(Bloom(), rule):
        matches.add(receiver, 1, entry)
    for change in world.news:
        if not isinstance(change, NameChange | IdAdd | IdRemove):
            continue
        words = told(change)
        if words is None:
            continue
        envelope = Envelope(SIGNAL, path=DRIVER_PATH, interface=DRIVER_NAME, member="NameOwnerChanged")
        holds = exact(rule, envelope, [("s", word) for word in words], receiver)
        event(f"holds: {holds}")
        assert not holds or receiver in matches.notified(change), words
    matches.disconnect(receiver)
    world.domain.close()


def perform(world: World, connection: Connection, verb: str, name: str) -> None:
    if verb == "come":
        world.connect()
    elif not connection.active:
        return
    elif verb == "leave":
        world.bus.disconnect(connection)
    elif verb == "acquire":
        world.bus.name_acquire(connection, name, QUEUE)
    elif name in connection.names:
        world.bus.name_release(connection, name)
