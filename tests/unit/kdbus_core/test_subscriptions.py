"""Who receives a message beside its destination: every condition of a rule, all kinds of listener."""

from __future__ import annotations

import pytest
from broker_world import METHOD_CALL, SIGNAL, World, listening_to, receivers, signal

from kdbus_core.names import ALLOW_REPLACEMENT, QUEUE, REPLACE_EXISTING
from kdbus_core.subscriptions import DRIVER, EMPTY_AUDIENCE, ArgumentKind, ArgumentTest, Envelope, Rule

ANYTHING = Rule()


def hears(rule: Rule, envelope: Envelope, *arguments: tuple[str, str] | None) -> bool:
    """Whether a listener with this one rule gets a broadcast from outside its world's connections."""
    world = World()
    listener = listening_to(world, rule)
    heard = receivers(world.bus.subscriptions.broadcast_audience(envelope), *arguments)
    assert heard in ([], [listener])
    return bool(heard)


# Conditions on the header


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule(), True),
        (Rule(message_type=SIGNAL), True),
        (Rule(message_type=METHOD_CALL), False),
        (Rule(interface="org.example.I"), True),
        (Rule(interface="org.example"), False),
        (Rule(interface="org.example.I2"), False),
        (Rule(member="M"), True),
        (Rule(member="m"), False),
        (Rule(path="/a/b"), True),
        (Rule(path="/a"), False),
        (Rule(path="/a/b/c"), False),
        (Rule(path_namespace="/a/b"), True),
        (Rule(path_namespace="/a"), True),
        (Rule(path_namespace="/"), True),
        (Rule(path_namespace="/a/b/c"), False),
        (Rule(path_namespace="/b"), False),
        (Rule(sender=DRIVER), True),
        (Rule(sender=2), False),
        (Rule(sender="org.example.Name"), False),
        (Rule(destination=DRIVER), False),
        (Rule(destination=2), False),
        (Rule(destination="org.example.Name"), False),
        (Rule(eavesdrop=True), True),
        (Rule(message_type=SIGNAL, interface="org.example.I", member="M", path="/a/b", sender=0), True),
        (Rule(message_type=SIGNAL, interface="org.example.I", member="M", path="/a/c", sender=0), False),
        (Rule(interface="org.example.I", member="N"), False),
        (Rule(path_namespace="/a", member="M"), True),
        (Rule(path_namespace="/a", member="N"), False),
    ],
)
def test_all_conditions_on_the_header_have_to_hold(rule: Rule, expected: bool) -> None:
    assert hears(rule, signal(None, path="/a/b", interface="org.example.I", member="M")) is expected


@pytest.mark.parametrize(
    ("namespace", "path", "expected"),
    [
        ("/a", "/ab", False),
        ("/a", "/a", True),
        ("/a", "/a/b/c/d", True),
        ("/a/b", "/a", False),
        ("/", "/", True),
        ("/a", "/", False),
    ],
)
def test_a_path_namespace_covers_whole_elements(namespace: str, path: str, expected: bool) -> None:
    assert hears(Rule(path_namespace=namespace), signal(None, path=path)) is expected


def test_of_several_namespaces_around_a_path_all_hold_and_none_beside_it_does() -> None:
    world = World()
    around = ["/", "/a", "/a/b", "/a/b/c", "/a/b/c/long_element"]
    listeners = [listening_to(world, Rule(path_namespace=namespace)) for namespace in around]
    for namespace in ("/b", "/a/c", "/a/b/cc", "/a/b/c/long", "/a/b/c/long_element/d"):
        listening_to(world, Rule(path_namespace=namespace))
    broadcast = world.bus.subscriptions.broadcast_audience
    for count, path in enumerate(around, start=1):
        heard = receivers(broadcast(signal(None, path=path)))
        assert sorted(connection.id for connection in heard) == [x.id for x in listeners[:count]]
    heard = receivers(broadcast(signal(None, path="/a/b/c/long_element/" + "x/" * 1000 + "x")))
    assert sorted(connection.id for connection in heard) == [x.id for x in listeners]


@pytest.mark.parametrize(
    "rule",
    [
        Rule(path="/a"),
        Rule(path_namespace="/"),
        Rule(interface="org.example.I"),
        Rule(member="M"),
    ],
)
def test_a_condition_on_a_field_that_the_message_lacks_does_not_hold(rule: Rule) -> None:
    assert not hears(rule, signal(None, path=None, interface=None, member=None))


def test_a_message_that_lacks_fields_reaches_who_does_not_ask_for_them() -> None:
    assert hears(Rule(message_type=SIGNAL), signal(None, path=None, interface=None, member=None))


# Senders and destinations


def test_a_sender_is_known_by_its_number() -> None:
    world = World()
    sender, other = world.connect_many(2)
    listener = listening_to(world, Rule(sender=sender.id))
    broadcast = world.bus.subscriptions.broadcast_audience
    assert receivers(broadcast(signal(sender))) == [listener]
    assert receivers(broadcast(signal(other))) == []
    assert receivers(broadcast(signal(None))) == []


def test_a_sender_is_known_by_the_names_it_owns_when_it_sends() -> None:
    world = World()
    sender, other = world.connect_many(2)
    listener = listening_to(world, Rule(sender="org.example.Name"))
    broadcast = world.bus.subscriptions.broadcast_audience
    assert receivers(broadcast(signal(sender))) == []
    world.bus.name_acquire(sender, "org.example.Name", ALLOW_REPLACEMENT | QUEUE)
    world.bus.name_acquire(sender, "org.example.Second", 0)
    assert receivers(broadcast(signal(sender))) == [listener]
    assert receivers(broadcast(signal(other))) == []
    world.bus.name_acquire(other, "org.example.Name", REPLACE_EXISTING)
    assert receivers(broadcast(signal(sender))) == []
    assert receivers(broadcast(signal(other))) == [listener]


def test_the_driver_sends_as_number_zero_and_under_no_name() -> None:
    world = World()
    (sender,) = world.connect_many(1)
    listener = listening_to(world, Rule(sender=DRIVER))
    listening_to(world, Rule(sender="org.freedesktop.DBus"))
    broadcast = world.bus.subscriptions.broadcast_audience
    assert receivers(broadcast(signal(None))) == [listener]
    assert receivers(broadcast(signal(sender))) == []


def test_a_destination_is_known_by_its_number() -> None:
    world = World()
    sender, destination, other = world.connect_many(3)
    listener = listening_to(world, Rule(destination=destination.id, eavesdrop=True))
    unicast = world.bus.subscriptions.unicast_audience
    assert receivers(unicast(signal(sender, destination=destination))) == [listener]
    assert receivers(unicast(signal(sender, destination=other))) == []
    assert receivers(unicast(signal(sender, to_driver=True))) == []


def test_a_destination_is_known_by_the_names_it_owns_when_it_is_sent_to() -> None:
    world = World()
    sender, owner, waiting = world.connect_many(3)
    world.bus.name_acquire(owner, "org.example.Name", 0)
    world.bus.name_acquire(waiting, "org.example.Name", QUEUE)
    listener = listening_to(world, Rule(destination="org.example.Name", eavesdrop=True))
    unicast = world.bus.subscriptions.unicast_audience
    assert receivers(unicast(signal(sender, destination=owner))) == [listener]
    assert receivers(unicast(signal(sender, destination=waiting))) == []
    assert receivers(unicast(signal(sender, destination=sender))) == []
    world.bus.name_release(owner, "org.example.Name")
    assert receivers(unicast(signal(sender, destination=waiting))) == [listener]


def test_the_driver_as_destination_is_number_zero_and_has_no_name() -> None:
    world = World()
    sender, destination = world.connect_many(2)
    listener = listening_to(world, Rule(destination=DRIVER, eavesdrop=True))
    listening_to(world, Rule(destination="org.freedesktop.DBus", eavesdrop=True))
    unicast = world.bus.subscriptions.unicast_audience
    assert receivers(unicast(signal(sender, to_driver=True))) == [listener]
    assert receivers(unicast(signal(sender, destination=destination))) == []


@pytest.mark.parametrize("destination", [DRIVER, 2, "org.example.Name"])
def test_a_broadcast_has_no_destination_that_a_rule_could_name(destination: int | str) -> None:
    world = World()
    (sender,) = world.connect_many(1)
    world.bus.name_acquire(sender, "org.example.Name", 0)
    listening_to(world, Rule(destination=destination, eavesdrop=True))
    assert receivers(world.bus.subscriptions.broadcast_audience(signal(sender))) == []


def test_a_sender_hears_its_own_broadcast() -> None:
    world = World()
    sender = listening_to(world, ANYTHING)
    assert receivers(world.bus.subscriptions.broadcast_audience(signal(sender))) == [sender]


# Conditions on arguments


@pytest.mark.parametrize(
    ("kind", "value", "argument", "expected"),
    [
        ("string", "x", ("s", "x"), True),
        ("string", "", ("s", ""), True),
        ("string", "x", ("s", "xy"), False),
        ("string", "a.b", ("s", "a.b.c"), False),
        ("string", "/a/", ("s", "/a/b"), False),
        ("string", "/x", ("o", "/x"), False),
        ("string", "s", ("g", "s"), False),
        ("string", "x", None, False),
        ("path", "/a/b", ("s", "/a/b"), True),
        ("path", "/a/b", ("o", "/a/b"), True),
        ("path", "/a/b", ("g", "/a/b"), False),
        ("path", "/a/", ("o", "/a/b/c"), True),
        ("path", "/a", ("o", "/a/b"), False),
        ("path", "/a/b/c", ("s", "/a/b/"), True),
        ("path", "/a/b/c", ("s", "/a/b"), False),
        ("path", "/b", ("s", "/a/"), False),
        ("path", "/a/", ("s", "/a/"), True),
        ("path", "/a/", ("s", "/a"), False),
        ("path", "/", ("o", "/z"), True),
        ("path", "/z", ("o", "/"), True),
        ("path", "/aa", ("s", ""), False),
        ("path", "", ("s", ""), True),
        ("path", "/a", None, False),
        ("namespace", "a.b", ("s", "a.b"), True),
        ("namespace", "a.b", ("s", "a.b.c.d"), True),
        ("namespace", "a.b", ("s", "a.bc"), False),
        ("namespace", "a.b", ("s", "a"), False),
        ("namespace", "a", ("s", "a.b"), True),
        ("namespace", "a", ("o", "a.b"), False),
        ("namespace", "a", None, False),
    ],
)
def test_one_argument_is_compared_by_kind(
    kind: ArgumentKind, value: str, argument: tuple[str, str] | None, expected: bool
) -> None:
    assert hears(Rule(arguments=(ArgumentTest(0, kind, value),)), signal(None), argument) is expected
    later = Rule(arguments=(ArgumentTest(2, kind, value),))
    assert hears(later, signal(None), None, ("s", "else"), argument) is expected


@pytest.mark.parametrize("kind", ["string", "path", "namespace"])
def test_an_argument_that_is_not_there_equals_nothing(kind: ArgumentKind) -> None:
    assert not hears(Rule(arguments=(ArgumentTest(0, kind, "a"),)), signal(None))
    assert not hears(Rule(arguments=(ArgumentTest(63, kind, "a"),)), signal(None), *[("s", "a")] * 63)


def test_the_last_argument_that_can_be_asked_for_is_number_63() -> None:
    rule = Rule(arguments=(ArgumentTest(63, "string", "a"),))
    assert hears(rule, signal(None), *[None] * 63, ("s", "a"))


def test_all_conditions_on_arguments_have_to_hold() -> None:
    rule = Rule(arguments=(ArgumentTest(0, "string", "x"), ArgumentTest(1, "path", "/a/")))
    assert hears(rule, signal(None), ("s", "x"), ("o", "/a/b"))
    assert not hears(rule, signal(None), ("s", "x"), ("o", "/b"))
    assert not hears(rule, signal(None), ("s", "y"), ("o", "/a/b"))
    assert not hears(rule, signal(None), ("s", "x"))


def test_a_first_argument_does_not_excuse_the_header() -> None:
    world = World()
    (sender,) = world.connect_many(1)
    first = (ArgumentTest(0, "string", "x"),)
    listening_to(world, Rule(message_type=METHOD_CALL, arguments=first))
    listening_to(world, Rule(destination=sender.id, arguments=first))
    listener = listening_to(world, Rule(message_type=SIGNAL, arguments=first))
    assert receivers(world.bus.subscriptions.broadcast_audience(signal(sender)), ("s", "x")) == [listener]


def test_an_audience_says_how_many_arguments_it_wants_to_see() -> None:
    world = World()
    broadcast = world.bus.subscriptions.broadcast_audience
    assert broadcast(signal(None)).argument_count == 0
    listening_to(world, ANYTHING)
    assert broadcast(signal(None)).argument_count == 0
    listening_to(world, Rule(arguments=(ArgumentTest(1, "path", "/"), ArgumentTest(4, "string", "x"))))
    assert broadcast(signal(None)).argument_count == 5
    listening_to(world, Rule(arguments=(ArgumentTest(0, "namespace", "a"),)))
    assert broadcast(signal(None)).argument_count == 5
    listening_to(world, Rule(arguments=(ArgumentTest(0, "string", "x"), ArgumentTest(9, "string", "y"))))
    assert broadcast(signal(None)).argument_count == 10


def test_a_rule_on_the_first_argument_alone_wants_to_see_it() -> None:
    world = World()
    listener = listening_to(world, Rule(arguments=(ArgumentTest(0, "string", "x"),)))
    audience = world.bus.subscriptions.broadcast_audience(signal(None))
    assert audience.argument_count == 1
    assert receivers(audience) == []
    assert receivers(audience, ("s", "x")) == [listener]


@pytest.mark.parametrize("index", [1, 9, 63])
def test_as_many_arguments_are_asked_for_as_a_rule_on_the_first_and_a_later_one_needs(index: int) -> None:
    world = World()
    rule = Rule(arguments=(ArgumentTest(index, "string", "y"), ArgumentTest(0, "string", "x")))
    listener = listening_to(world, rule)
    audience = world.bus.subscriptions.broadcast_audience(signal(None))
    assert audience.argument_count == index + 1
    assert receivers(audience, ("s", "x"), *[None] * (index - 1), ("s", "y")) == [listener]


def test_arguments_that_rules_on_other_messages_need_are_not_asked_for() -> None:
    world = World()
    listening_to(world, Rule(member="M", arguments=(ArgumentTest(0, "string", "x"),)))
    listening_to(world, Rule(member="N", arguments=(ArgumentTest(9, "string", "x"),)))
    broadcast = world.bus.subscriptions.broadcast_audience
    counts = [broadcast(signal(None, member=member)).argument_count for member in "MNO"]
    assert counts == [1, 10, 0]


def test_when_the_rules_on_a_message_have_gone_their_arguments_are_not_asked_for_any_more() -> None:
    world = World()
    listener = listening_to(world, Rule(arguments=(ArgumentTest(9, "string", "x"),)))
    world.bus.unsubscribe(listener, 1)
    world.bus.subscribe(listener, 1, Rule(arguments=(ArgumentTest(0, "string", "x"),)))
    assert world.bus.subscriptions.broadcast_audience(signal(None)).argument_count == 1


def test_arguments_are_not_asked_for_where_only_other_messages_need_them() -> None:
    world = World()
    first = (ArgumentTest(0, "string", "x"),)
    listening_to(world, Rule(member="Other", arguments=first))
    listening_to(world, Rule(message_type=METHOD_CALL, arguments=(ArgumentTest(0, "path", "/"),)))
    assert world.bus.subscriptions.broadcast_audience(signal(None)) is EMPTY_AUDIENCE


def test_who_listens_anyway_is_not_asked_about_arguments() -> None:
    world = World()
    listener = listening_to(world, Rule(arguments=(ArgumentTest(0, "path", "/"),)))
    world.bus.subscribe(listener, 2, ANYTHING)
    audience = world.bus.subscriptions.broadcast_audience(signal(None))
    assert audience.always == (listener,)
    assert audience.argument_count == 0
