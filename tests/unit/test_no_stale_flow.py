"""No message goes where an earlier one went if the bus has changed in between.

Every row of the tables is one kind of change: the same message is sent until a flow deals with it, the change
is made, and the same bytes are sent again under a new serial. Who gets it then is written in the row, and is
also compared, message by message, with a bus that forgets its flows before every message. A last test draws
whole histories of changes and messages at random and compares the two buses in all that anybody receives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.proxy import World
from support.raw import ERROR, METHOD_CALL, METHOD_RETURN, NO_REPLY_EXPECTED, SIGNAL, Message

NAME = "com.example.Name"
MENTIONED = "com.example.Mentioned"
NOBODY_RULE = "member='Never'"
ALLOW_REPLACEMENT, REPLACE_EXISTING, DO_NOT_QUEUE = 1, 2, 4

Step = Callable[[World], object]


def probe_fields(**fields: Any) -> dict[str, Any]:
    return {"path": "/probe", "interface": "com.example.Probe", "member": "Probe", **fields}


def nothing(world: World) -> None:
    """No preparation, or no change."""


def does(label: str, action: str, *arguments: Any, **options: Any) -> Step:
    """A step: that client does this."""
    return lambda world: getattr(world[label], action)(*arguments, **options)


def in_turn(*steps: Step) -> Step:
    def run(world: World) -> None:
        for step in steps:
            step(world)

    return run


def joins(label: str) -> Step:
    return lambda world: world.join(label)


def offers(*names: str) -> Step:
    return lambda world: world.offer(*names)


@dataclass(frozen=True)
class Change:
    """One row: how it begins, who gets the message, what changes, who gets it then.

    `is_cached` is False where no flow can be made before the change; `refused` says that the sender is then
    told so.
    """

    what: str
    before: tuple[str, ...]
    change: Step
    after: tuple[str, ...]
    prepare: Step = nothing
    is_cached: bool = True
    refused: bool = False


UNICAST_MESSAGES: dict[str, Callable[[str], Message]] = {
    "call": lambda to: Message(METHOD_CALL, fields=probe_fields(destination=to, signature="s"), body=["x"]),
    "call without reply": lambda to: Message(
        METHOD_CALL, NO_REPLY_EXPECTED, fields=probe_fields(destination=to)
    ),
    "signal": lambda to: Message(SIGNAL, fields=probe_fields(destination=to, signature="s"), body=["x"]),
    "big-endian call": lambda to: Message(METHOD_CALL, fields=probe_fields(destination=to), order="B"),
}

OWNED = does("first", "request_name", NAME)
LISTENS_IN = "eavesdrop='true',member='Probe'"
LISTENS_TO_MENTIONED = f"eavesdrop='true',sender='{MENTIONED}'"
LISTENS_FOR_MENTIONED = f"eavesdrop='true',destination='{MENTIONED}'"

TO_A_NAME = [
    Change("the name is acquired", (), OWNED, ("first",), is_cached=False),
    Change("the name is released", ("first",), does("first", "release_name", NAME), (), OWNED, refused=True),
    Change(
        "the name is taken over",
        ("first",),
        does("second", "request_name", NAME, REPLACE_EXISTING),
        ("second",),
        does("first", "request_name", NAME, ALLOW_REPLACEMENT),
    ),
    Change(
        "the name is taken over from an owner who does not queue",
        ("first",),
        does("second", "request_name", NAME, REPLACE_EXISTING),
        ("second",),
        does("first", "request_name", NAME, ALLOW_REPLACEMENT | DO_NOT_QUEUE),
    ),
    Change(
        "a queued owner takes over",
        ("first",),
        does("first", "release_name", NAME),
        ("second",),
        in_turn(OWNED, does("second", "request_name", NAME)),
    ),
    Change("the owner disconnects", ("first",), does("first", "leave"), (), OWNED, refused=True),
    Change(
        "the owner disconnects and a queued one takes over",
        ("first",),
        does("first", "leave"),
        ("second",),
        in_turn(OWNED, does("second", "request_name", NAME)),
    ),
    Change(
        "a queued owner leaves the queue",
        ("first",),
        does("second", "release_name", NAME),
        ("first",),
        in_turn(OWNED, does("second", "request_name", NAME)),
    ),
    Change(
        "the name is released and acquired by another",
        ("first",),
        in_turn(does("first", "release_name", NAME), does("second", "request_name", NAME)),
        ("second",),
        OWNED,
    ),
    Change(
        "the name comes back to the first owner",
        ("first",),
        in_turn(
            does("first", "release_name", NAME),
            does("second", "request_name", NAME),
            does("second", "release_name", NAME),
            OWNED,
        ),
        ("first",),
        OWNED,
    ),
    Change(
        "the owner becomes a monitor",
        ("first",),
        does("first", "become_monitor", NOBODY_RULE),
        (),
        OWNED,
        refused=True,
    ),
    Change(
        "the service of an activatable name starts",
        (),
        OWNED,
        ("first",),
        offers(NAME),
        is_cached=False,
    ),
    Change(
        "the service of an activatable name goes",
        ("first",),
        does("first", "release_name", NAME),
        (),
        in_turn(offers(NAME), OWNED),
    ),
    Change("the name becomes activatable", ("first",), offers(NAME), ("first",), OWNED),
    Change(
        "the name is activatable no more",
        (),
        offers(),
        (),
        offers(NAME),
        is_cached=False,
        refused=True,
    ),
]

TO_A_CONNECTION = [
    Change("the receiver disconnects", ("first",), does("first", "leave"), (), refused=True),
    Change(
        "the receiver becomes a monitor",
        ("first",),
        does("first", "become_monitor", NOBODY_RULE),
        (),
        refused=True,
    ),
    Change("somebody listens in", ("first",), does("other", "add_match", LISTENS_IN), ("first", "other")),
    Change(
        "somebody listens in and names an argument",
        ("first",),
        does("other", "add_match", f"{LISTENS_IN},arg0='never'"),
        ("first",),
    ),
    Change(
        "who listens in stops",
        ("first", "other"),
        does("other", "remove_match", LISTENS_IN),
        ("first",),
        does("other", "add_match", LISTENS_IN),
        is_cached=False,
    ),
    Change(
        "who listens in disconnects",
        ("first", "other"),
        does("other", "leave"),
        ("first",),
        does("other", "add_match", LISTENS_IN),
        is_cached=False,
    ),
    Change("a monitor arrives", ("first",), does("other", "become_monitor"), ("first", "other")),
    Change(
        "a monitor arrives that wants something else",
        ("first",),
        does("other", "become_monitor", NOBODY_RULE),
        ("first",),
    ),
    Change(
        "a monitor leaves",
        ("first", "other"),
        does("other", "leave"),
        ("first",),
        does("other", "become_monitor"),
        is_cached=False,
    ),
    Change(
        "the sender gains a name that somebody listens to",
        ("first",),
        does("sender", "request_name", MENTIONED),
        ("first", "other"),
        does("other", "add_match", LISTENS_TO_MENTIONED),
    ),
    Change(
        "the sender loses a name that somebody listens to",
        ("first", "other"),
        does("sender", "release_name", MENTIONED),
        ("first",),
        in_turn(does("sender", "request_name", MENTIONED), does("other", "add_match", LISTENS_TO_MENTIONED)),
        is_cached=False,
    ),
    Change(
        "the receiver gains a name that somebody listens to",
        ("first",),
        does("first", "request_name", MENTIONED),
        ("first", "other"),
        does("other", "add_match", LISTENS_FOR_MENTIONED),
    ),
    Change("the sender becomes a monitor", ("first",), does("sender", "become_monitor", NOBODY_RULE), ()),
    Change("somebody subscribes", ("first",), does("other", "add_match", "type='signal'"), ("first",)),
    Change("somebody joins the bus", ("first",), joins("fourth"), ("first",)),
]

SUBSCRIBED = does("first", "add_match", "type='signal',member='Probe'")
RULE = "type='signal',interface='com.example.Probe'"

BROADCAST = [
    Change(
        "somebody subscribes", ("first",), does("other", "add_match", RULE), ("first", "other"), SUBSCRIBED
    ),
    Change("the first one subscribes", (), SUBSCRIBED, ("first",)),
    Change(
        "somebody unsubscribes",
        ("first", "other"),
        does("other", "remove_match", RULE),
        ("first",),
        in_turn(SUBSCRIBED, does("other", "add_match", RULE)),
    ),
    Change(
        "one of two equal rules goes",
        ("first", "other"),
        does("other", "remove_match", RULE),
        ("first", "other"),
        in_turn(SUBSCRIBED, does("other", "add_match", RULE), does("other", "add_match", RULE)),
    ),
    Change(
        "the last subscriber unsubscribes",
        ("first",),
        does("first", "remove_match", RULE),
        (),
        does("first", "add_match", RULE),
    ),
    Change(
        "a subscriber disconnects",
        ("first", "other"),
        does("other", "leave"),
        ("first",),
        in_turn(SUBSCRIBED, does("other", "add_match", RULE)),
    ),
    Change(
        "somebody subscribes to this argument",
        ("first",),
        does("other", "add_match", "arg0='x'"),
        ("first", "other"),
        SUBSCRIBED,
    ),
    Change(
        "somebody subscribes to another argument",
        ("first",),
        does("other", "add_match", "arg0='y'"),
        ("first",),
        SUBSCRIBED,
    ),
    Change(
        "somebody subscribes to a namespace of arguments",
        ("first",),
        does("other", "add_match", "arg0namespace='x'"),
        ("first", "other"),
        SUBSCRIBED,
    ),
    Change(
        "the subscription to this argument goes",
        ("first", "other"),
        does("other", "remove_match", "arg0='x'"),
        ("first",),
        in_turn(SUBSCRIBED, does("other", "add_match", "arg0='x'")),
    ),
    Change(
        "the subscriber to this argument disconnects",
        ("first", "other"),
        does("other", "leave"),
        ("first",),
        in_turn(SUBSCRIBED, does("other", "add_match", "arg0='x'")),
    ),
    Change(
        "a second subscriber to this argument comes",
        ("first", "other"),
        does("second", "add_match", "arg0='x'"),
        ("first", "other", "second"),
        in_turn(SUBSCRIBED, does("other", "add_match", "arg0='x'")),
    ),
    Change(
        "somebody listens in",
        ("first",),
        does("other", "add_match", LISTENS_IN),
        ("first", "other"),
        SUBSCRIBED,
    ),
    Change(
        "who listens in stops",
        ("first", "other"),
        does("other", "remove_match", LISTENS_IN),
        ("first",),
        in_turn(SUBSCRIBED, does("other", "add_match", LISTENS_IN)),
    ),
    Change("a monitor arrives", ("first",), does("other", "become_monitor"), ("first", "other"), SUBSCRIBED),
    Change(
        "a monitor leaves",
        ("first", "other"),
        does("other", "leave"),
        ("first",),
        in_turn(SUBSCRIBED, does("other", "become_monitor")),
    ),
    Change(
        "a subscriber becomes a monitor of something else",
        ("first", "other"),
        does("other", "become_monitor", NOBODY_RULE),
        ("first",),
        in_turn(SUBSCRIBED, does("other", "add_match", RULE)),
    ),
    Change(
        "the sender gains a name that a rule mentions",
        ("first",),
        does("sender", "request_name", MENTIONED),
        ("first", "other"),
        in_turn(SUBSCRIBED, does("other", "add_match", f"sender='{MENTIONED}'")),
    ),
    Change(
        "the sender loses a name that a rule mentions",
        ("first", "other"),
        does("sender", "release_name", MENTIONED),
        ("first",),
        in_turn(
            SUBSCRIBED,
            does("sender", "request_name", MENTIONED),
            does("other", "add_match", f"sender='{MENTIONED}'"),
        ),
    ),
    Change(
        "another takes over the name that a rule mentions",
        ("first", "other"),
        does("second", "request_name", MENTIONED, REPLACE_EXISTING),
        ("first",),
        in_turn(
            SUBSCRIBED,
            does("sender", "request_name", MENTIONED, ALLOW_REPLACEMENT),
            does("other", "add_match", f"sender='{MENTIONED}'"),
        ),
    ),
    Change(
        "the sender inherits the name that a rule mentions",
        ("first",),
        does("second", "leave"),
        ("first", "other"),
        in_turn(
            SUBSCRIBED,
            does("second", "request_name", MENTIONED),
            does("sender", "request_name", MENTIONED),
            does("other", "add_match", f"sender='{MENTIONED}'"),
        ),
    ),
    Change(
        "the sender becomes a monitor",
        ("first",),
        does("sender", "become_monitor", NOBODY_RULE),
        (),
        SUBSCRIBED,
    ),
    Change(
        "a new client subscribes",
        ("first",),
        in_turn(joins("fourth"), does("fourth", "add_match", RULE)),
        ("first", "fourth"),
        SUBSCRIBED,
    ),
]


def populate(world: World) -> World:
    for label in ("sender", "first", "second", "other"):
        world.join(label)
    return world


@pytest.fixture
def worlds() -> Iterator[tuple[World, World]]:
    """The bus as it is, and the one that forgets its flows."""
    with World() as fast, World(flows=False) as slow:
        yield populate(fast), populate(slow)


def probes(received: dict[str, list[Message]]) -> dict[str, list[dict[str, Any]]]:
    """Who got a probe, and what it looked like."""
    found = {
        label: [message.describe() for message in messages if message.member == "Probe"]
        for label, messages in received.items()
    }
    return {label: messages for label, messages in found.items() if messages}


def described(received: dict[str, list[Message]]) -> dict[str, list[dict[str, Any]]]:
    return {label: [message.describe() for message in messages] for label, messages in received.items()}


def send_and_collect(world: World, make: Callable[[World], Message]) -> dict[str, list[Message]]:
    world.collect()
    world["sender"].send(make(world))
    return world.collect()


def run_row(row: Change, worlds: tuple[World, World], make: Callable[[World], Message]) -> None:
    results = []
    for world in worlds:
        row.prepare(world)
        for _ in range(3):
            routed = world.router.routed
            assert set(probes(send_and_collect(world, make))) == set(row.before)
        if row.is_cached and world.flows:
            assert world.router.routed == routed, "no flow has dealt with the third message"
        row.change(world)
        received = send_and_collect(world, make)
        assert set(probes(received)) == set(row.after)
        assert all(len(messages) == 1 for messages in probes(received).values())
        errors = [message for message in received["sender"] if message.type == ERROR]
        assert bool(errors) == row.refused
        results.append((described(received), described(send_and_collect(world, make))))
    assert results[0] == results[1]


def to(label_or_name: str, kind: str) -> Callable[[World], Message]:
    """What makes the same message each time; the destination is a name, or a client's unique name."""
    addresses: dict[int, str] = {}

    def make(world: World) -> Message:
        address = label_or_name
        if label_or_name in world.clients:
            address = addresses.setdefault(id(world), world[label_or_name].unique_name)
        return UNICAST_MESSAGES[kind](address)

    return make


@pytest.mark.parametrize("kind", UNICAST_MESSAGES)
@pytest.mark.parametrize("row", TO_A_NAME, ids=lambda row: row.what)
def test_to_a_name(worlds: tuple[World, World], row: Change, kind: str) -> None:
    run_row(row, worlds, to(NAME, kind))


@pytest.mark.parametrize("kind", UNICAST_MESSAGES)
@pytest.mark.parametrize("row", TO_A_CONNECTION, ids=lambda row: row.what)
def test_to_a_connection(worlds: tuple[World, World], row: Change, kind: str) -> None:
    run_row(row, worlds, to("first", kind))


@pytest.mark.parametrize("order", ["l", "B"])
@pytest.mark.parametrize("row", BROADCAST, ids=lambda row: row.what)
def test_to_everybody(worlds: tuple[World, World], row: Change, order: str) -> None:
    def make(world: World) -> Message:
        return Message(SIGNAL, fields=probe_fields(signature="s"), body=["x"], order=order)

    run_row(row, worlds, make)


REPLIES = [
    Change("the caller disconnects", ("first",), does("first", "leave"), (), refused=True),
    Change(
        "the caller becomes a monitor",
        ("first",),
        does("first", "become_monitor", NOBODY_RULE),
        (),
        refused=True,
    ),
    Change(
        "somebody listens in", ("first",), does("other", "add_match", "eavesdrop='true'"), ("first", "other")
    ),
    Change("a monitor arrives", ("first",), does("other", "become_monitor"), ("first", "other")),
    Change("the replier becomes a monitor", ("first",), does("sender", "become_monitor", NOBODY_RULE), ()),
    Change("nothing", ("first",), nothing, ("first",)),
]


@pytest.mark.parametrize("kind", ["method_return", "error"])
@pytest.mark.parametrize("row", REPLIES, ids=lambda row: row.what)
def test_to_a_caller(worlds: tuple[World, World], row: Change, kind: str) -> None:
    def reply_to(world: World, serial: int, caller: str) -> dict[str, list[str]]:
        """Who gets the sender's reply to that call."""
        fields: dict[str, Any] = {"destination": caller, "reply_serial": serial, "signature": "s"}
        if kind == "error":
            fields = {"error_name": "com.example.Error", **fields}
        world.collect()
        world["sender"].send(
            Message(ERROR if kind == "error" else METHOD_RETURN, fields=fields, body=[f"answer {serial}"])
        )
        sender = world["sender"].unique_name
        return {
            label: [message.body[0] for message in messages if message.fields.get("sender") == sender]
            for label, messages in world.collect().items()
        }

    results = []
    for world in worlds:
        caller = world["first"].unique_name
        serials = [
            world["first"].send(
                Message(METHOD_CALL, fields=probe_fields(destination=world["sender"].unique_name))
            )
            for _ in range(4)
        ]
        for serial in serials[:3]:
            routed = world.router.routed
            got = reply_to(world, serial, caller)
            assert got["first"] == [f"answer {serial}"]
        if world.flows:
            assert world.router.routed == routed, "no flow has dealt with the third reply"
        row.change(world)
        got = reply_to(world, serials[3], caller)
        assert {label for label, bodies in got.items() if bodies} == set(row.after)
        results.append(got)
    assert results[0] == results[1]


def test_a_reply_is_let_through_once(worlds: tuple[World, World]) -> None:
    fast, _ = worlds
    call = Message(METHOD_CALL, fields=probe_fields(destination=fast["sender"].unique_name))
    caller = fast["first"].unique_name
    serials = [fast["first"].send(Message(METHOD_CALL, fields=dict(call.fields))) for _ in range(3)]
    counts = []
    for serial in [*serials, serials[0]]:
        requested = len(fast.bus.replies.window(fast["first"].connection, fast["sender"].connection))
        fast["sender"].send(Message(METHOD_RETURN, fields={"destination": caller, "reply_serial": serial}))
        counts.append(requested)
    assert counts == [3, 2, 1, 0]


# Histories

ACTORS = ("sender", "first", "second", "other")
NAMES = (NAME, MENTIONED)
RULES = (
    RULE,
    "arg0='x'",
    "arg0='y'",
    f"sender='{MENTIONED}'",
    f"sender='{NAME}',arg0='x'",
    LISTENS_IN,
    LISTENS_FOR_MENTIONED,
    "eavesdrop='true',arg0='x'",
    "path_namespace='/probe'",
)

actors = st.sampled_from(ACTORS)
messages = st.one_of(
    st.tuples(
        st.just("unicast"),
        actors,
        st.sampled_from([*ACTORS, *NAMES]),
        st.sampled_from(list(UNICAST_MESSAGES)),
    ),
    st.tuples(st.just("broadcast"), actors, st.sampled_from(["x", "y"]), st.sampled_from("lB")),
    st.tuples(st.just("reply"), actors),
)
changes = st.one_of(
    st.tuples(st.just("request"), actors, st.sampled_from(NAMES), st.integers(0, 7)),
    st.tuples(st.just("release"), actors, st.sampled_from(NAMES)),
    st.tuples(st.just("match"), actors, st.sampled_from(RULES)),
    st.tuples(st.just("unmatch"), actors, st.sampled_from(RULES)),
    st.tuples(st.just("leave"), actors),
    st.tuples(st.just("monitor"), actors, st.sampled_from(RULES)),
    st.tuples(st.just("offer"), st.sets(st.sampled_from(NAMES))),
)
histories = st.lists(st.one_of(messages, messages, changes), max_size=40)


def act(world: World, event: tuple[Any, ...]) -> None:
    """Let one event of a history happen, in as far as it can."""
    kind, *rest = event
    if kind == "offer":
        world.offer(*sorted(rest[0]))
        return
    client = world[rest[0]]
    if client.peer.closed:
        world.join(rest[0])
        return
    is_monitor = client.connection.is_monitor
    match kind:
        case "unicast":
            target = world[rest[1]].unique_name if rest[1] in world.clients else rest[1]
            client.send(UNICAST_MESSAGES[rest[2]](target))
        case "broadcast":
            client.send(Message(SIGNAL, fields=probe_fields(signature="s"), body=[rest[1]], order=rest[2]))
        case "reply":
            for window in list(client.connection.duties.values()):
                for serial in list(window)[:1]:
                    fields = {"destination": f":1.{window.requester.id}", "reply_serial": serial}
                    client.send(Message(METHOD_RETURN, fields=fields))
        case "leave":
            client.leave()
        case _ if is_monitor:
            client.leave()
        case "request":
            client.request_name(rest[1], rest[2])
        case "release":
            client.release_name(rest[1])
        case "match":
            client.add_match(rest[1])
        case "unmatch":
            client.call("RemoveMatch", "s", rest[1])
        case "monitor":
            client.become_monitor(rest[1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories)
def test_any_history_is_the_same_without_flows(history: list[tuple[Any, ...]]) -> None:
    with World() as fast, World(flows=False) as slow:
        for world in (fast, slow):
            populate(world)
        for event in history:
            results = []
            for world in (fast, slow):
                act(world, event)
                results.append(described(world.collect()))
            assert results[0] == results[1], event
            assert fast.bus.connections.keys() == slow.bus.connections.keys()
            for id, connection in fast.bus.connections.items():
                assert connection.outstanding == slow.bus.connections[id].outstanding
                assert connection.outstanding == sum(map(len, connection.requests.values()))
