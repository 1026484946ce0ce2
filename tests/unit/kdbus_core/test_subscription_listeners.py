"""The kinds of listener, each of which hears a message once, and what is left when rules go."""

from __future__ import annotations

from errno import EBADSLT, EMFILE, EOPNOTSUPP, ESHUTDOWN

import pytest
from broker_world import World, listening_to, receivers, refused, signal

from kdbus_core.abi import HelloFlag
from kdbus_core.connection import Limits
from kdbus_core.subscriptions import DRIVER, EMPTY_AUDIENCE, ArgumentTest, Rule

ANYTHING = Rule()
FIRST_X = (ArgumentTest(0, "string", "x"),)


# Each receiver once


@pytest.mark.parametrize(
    "rules",
    [
        (ANYTHING, ANYTHING),
        (ANYTHING, Rule(member="M"), Rule(path_namespace="/"), Rule(path_namespace="/a")),
        (ANYTHING, Rule(arguments=FIRST_X)),
        (Rule(arguments=FIRST_X), ANYTHING),
        (Rule(arguments=FIRST_X), Rule(arguments=FIRST_X)),
        (Rule(arguments=FIRST_X), Rule(member="M", arguments=FIRST_X)),
        (Rule(arguments=(ArgumentTest(0, "namespace", "x"),)), Rule(arguments=FIRST_X)),
        (Rule(arguments=(ArgumentTest(0, "path", "x"),)), Rule(arguments=FIRST_X)),
        (ANYTHING, Rule(eavesdrop=True)),
        (Rule(sender="org.example.A"), Rule(sender="org.example.B"), Rule(sender=2)),
    ],
)
def test_a_connection_hears_a_message_once_however_many_rules_hold(rules: tuple[Rule, ...]) -> None:
    world = World()
    (sender,) = world.connect_many(1)
    world.bus.name_acquire(sender, "org.example.A", 0)
    world.bus.name_acquire(sender, "org.example.B", 0)
    listener, other = world.connect_many(2)
    for cookie, rule in enumerate(rules):
        world.bus.subscribe(listener, cookie, rule)
        world.bus.subscribe(other, cookie, rule)
    heard = receivers(world.bus.subscriptions.broadcast_audience(signal(sender)), ("s", "x"))
    assert sorted(connection.id for connection in heard) == [listener.id, other.id]


# The three kinds of listener


def test_a_subscriber_hears_broadcasts_only() -> None:
    world = World()
    sender, destination = world.connect_many(2)
    listener = listening_to(world, ANYTHING)
    subscriptions = world.bus.subscriptions
    message = signal(sender, destination=destination)
    assert receivers(subscriptions.broadcast_audience(signal(sender))) == [listener]
    assert receivers(subscriptions.unicast_audience(message)) == []
    assert receivers(subscriptions.eavesdropper_audience(message)) == []
    assert receivers(subscriptions.monitor_audience(message)) == []


def test_an_eavesdropper_hears_broadcasts_and_what_is_sent_to_others() -> None:
    world = World()
    sender, destination = world.connect_many(2)
    listener = listening_to(world, Rule(eavesdrop=True))
    subscriptions = world.bus.subscriptions
    message = signal(sender, destination=destination)
    assert receivers(subscriptions.broadcast_audience(signal(sender))) == [listener]
    assert receivers(subscriptions.unicast_audience(message)) == [listener]
    assert receivers(subscriptions.eavesdropper_audience(message)) == [listener]
    assert receivers(subscriptions.monitor_audience(message)) == []


@pytest.mark.parametrize("eavesdrop", [True, False])
def test_a_monitor_hears_everything_with_or_without_eavesdropping(eavesdrop: bool) -> None:
    world = World()
    sender, destination = world.connect_many(2)
    monitor = world.connect_monitor_of(Rule(eavesdrop=eavesdrop))
    subscriptions = world.bus.subscriptions
    message = signal(sender, destination=destination)
    assert receivers(subscriptions.broadcast_audience(signal(sender))) == [monitor]
    assert receivers(subscriptions.unicast_audience(message)) == [monitor]
    assert receivers(subscriptions.eavesdropper_audience(message)) == []
    assert receivers(subscriptions.monitor_audience(message)) == [monitor]


def test_who_connects_as_a_monitor_hears_everything_by_one_rule() -> None:
    world = World()
    sender, destination = world.connect_many(2)
    monitor = world.connect_monitor()
    assert monitor.match_count == 1
    assert [entry.rule for entries in monitor.subscriptions.values() for entry in entries] == [ANYTHING]
    subscriptions = world.bus.subscriptions
    assert receivers(subscriptions.broadcast_audience(signal(sender))) == [monitor]
    assert receivers(subscriptions.unicast_audience(signal(sender, destination=destination))) == [monitor]
    assert receivers(subscriptions.eavesdropper_audience(signal(sender, to_driver=True))) == []
    assert receivers(subscriptions.monitor_audience(signal(None, path=None, interface=None))) == [monitor]


def test_who_becomes_a_monitor_without_rules_of_its_own_hears_everything() -> None:
    world = World()
    monitor = world.connect()
    world.bus.become_monitor(monitor)
    assert monitor.match_count == 1
    assert world.bus.subscriptions.monitor_audience(signal(None)).always == (monitor,)


def test_a_monitor_hears_what_any_of_its_rules_says_and_hears_it_once() -> None:
    world = World()
    monitor = world.connect_monitor_of(Rule(member="M"), Rule(member="N"), Rule(path_namespace="/a"))
    assert monitor.match_count == 3
    seen = world.bus.subscriptions.monitor_audience
    paths_and_members = [("/a/b", "M"), ("/b", "N"), ("/a", "O"), ("/b", "O")]
    heard = [receivers(seen(signal(None, path=path, member=member))) for path, member in paths_and_members]
    assert heard == [[monitor], [monitor], [monitor], []]


def test_a_monitor_hears_only_what_its_rules_say() -> None:
    world = World()
    monitor = world.connect_monitor_of(Rule(member="M", arguments=FIRST_X))
    seen = world.bus.subscriptions.monitor_audience
    assert receivers(seen(signal(None)), ("s", "x")) == [monitor]
    assert receivers(seen(signal(None)), ("s", "y")) == []
    assert receivers(seen(signal(None, member="N")), ("s", "x")) == []


def test_there_are_monitors_while_a_monitor_has_a_rule() -> None:
    world = World()
    listening_to(world, Rule(eavesdrop=True))
    monitor = world.connect()
    answers = [world.bus.subscriptions.has_monitors]
    world.bus.become_monitor(monitor, [ANYTHING])
    answers.append(world.bus.subscriptions.has_monitors)
    world.bus.subscriptions.remove(monitor, 0)
    answers.append(world.bus.subscriptions.has_monitors)
    assert answers == [False, True, False]


@pytest.mark.parametrize(
    ("is_monitor", "rule", "expected"),
    [
        (False, ANYTHING, False),
        (False, Rule(eavesdrop=True), True),
        (False, Rule(member="M", arguments=FIRST_X, eavesdrop=True), True),
        (True, ANYTHING, True),
    ],
)
def test_somebody_listens_while_a_monitor_or_an_eavesdropper_has_a_rule(
    is_monitor: bool, rule: Rule, expected: bool
) -> None:
    world = World()
    listener = world.connect()
    answers = [world.bus.subscriptions.has_listeners]
    if is_monitor:
        world.bus.become_monitor(listener, [rule])
    else:
        world.bus.subscribe(listener, 0, rule)
    answers.append(world.bus.subscriptions.has_listeners)
    world.bus.subscriptions.remove(listener, 0)
    answers.append(world.bus.subscriptions.has_listeners)
    assert answers == [False, expected, False]


def test_an_ordinary_connection_that_becomes_a_monitor_keeps_none_of_its_rules() -> None:
    world = World()
    listener = listening_to(world, ANYTHING)
    world.bus.subscribe(listener, 2, Rule(eavesdrop=True))
    world.bus.become_monitor(listener, [Rule(member="M")])
    assert listener.match_count == 1
    assert world.bus.subscriptions.broadcast_audience(signal(None, member="N")) is EMPTY_AUDIENCE
    assert receivers(world.bus.subscriptions.monitor_audience(signal(None, member="M"))) == [listener]


def test_special_connections_neither_subscribe_nor_unsubscribe() -> None:
    world = World()
    holder = world.connect(flags=HelloFlag.POLICY_HOLDER, name="c.d")
    monitor, activator = world.connect_monitor(), world.connect_activator("a.b")
    for special in (monitor, world.connect_monitor_of(), activator, holder):
        count = special.match_count
        with refused(EOPNOTSUPP):
            world.bus.subscribe(special, 7, ANYTHING)
        for cookie in (0, 7):
            with refused(EOPNOTSUPP):
                world.bus.unsubscribe(special, cookie)
        assert special.match_count == count
        assert 7 not in special.subscriptions
    assert receivers(world.bus.subscriptions.monitor_audience(signal(None))) == [monitor]


def test_who_has_gone_cannot_subscribe() -> None:
    world = World()
    for gone in (world.connect(), world.connect_monitor(), world.connect_activator("a.b")):
        world.bus.disconnect(gone)
        with refused(ESHUTDOWN):
            world.bus.subscribe(gone, 7, ANYTHING)
        with refused(ESHUTDOWN):
            world.bus.unsubscribe(gone, 7)
    world.assert_holds_nothing()


# Adding and removing


def test_what_is_under_a_cookie_goes_together() -> None:
    world = World()
    (listener,) = world.connect_many(1)
    world.bus.subscribe(listener, 7, Rule(member="M"))
    world.bus.subscribe(listener, 7, Rule(member="N"))
    world.bus.subscribe(listener, 8, Rule(member="O"))
    assert listener.match_count == 3
    world.bus.unsubscribe(listener, 7)
    assert listener.match_count == 1
    heard = [receivers(world.bus.subscriptions.broadcast_audience(signal(None, member=m))) for m in "MNO"]
    assert heard == [[], [], [listener]]


def test_of_two_equal_rules_removing_one_leaves_the_other() -> None:
    world = World()
    (listener,) = world.connect_many(1)
    rule = Rule(member="M", arguments=FIRST_X)
    world.bus.subscribe(listener, 1, rule)
    world.bus.subscribe(listener, 2, rule)
    world.bus.unsubscribe(listener, 1)
    assert receivers(world.bus.subscriptions.broadcast_audience(signal(None)), ("s", "x")) == [listener]


@pytest.mark.parametrize("cookie", [0, 1, 2**64 - 1])
def test_removing_what_is_not_there_is_refused(cookie: int) -> None:
    world = World()
    listener, other = world.connect_many(2)
    world.bus.subscribe(other, cookie, ANYTHING)
    with refused(EBADSLT):
        world.bus.unsubscribe(listener, cookie)
    world.bus.unsubscribe(other, cookie)
    with refused(EBADSLT):
        world.bus.unsubscribe(other, cookie)


def test_more_rules_than_the_limit_are_refused_and_not_kept() -> None:
    world = World()
    listener = world.connect(limits=Limits(matches=2))
    world.bus.subscribe(listener, 1, Rule(member="A"))
    world.bus.subscribe(listener, 1, Rule(member="B"))
    with refused(EMFILE):
        world.bus.subscribe(listener, 2, ANYTHING)
    assert listener.match_count == 2
    assert 2 not in listener.subscriptions
    assert world.bus.subscriptions.broadcast_audience(signal(None)) is EMPTY_AUDIENCE
    world.bus.unsubscribe(listener, 1)
    world.bus.subscribe(listener, 2, ANYTHING)


def test_a_connection_may_have_4096_rules_unless_told_otherwise() -> None:
    world = World()
    (listener,) = world.connect_many(1)
    for cookie in range(4096):
        world.bus.subscribe(listener, cookie, ANYTHING)
    with refused(EMFILE):
        world.bus.subscribe(listener, 4096, ANYTHING)


def test_a_rule_leaves_no_trace_when_it_is_removed() -> None:
    world = World()
    shapes = [
        Rule(),
        Rule(sender=DRIVER),
        Rule(sender="org.example.A", member="M"),
        Rule(path="/a"),
        Rule(path_namespace="/a"),
        Rule(interface="a.b", eavesdrop=True),
        Rule(arguments=FIRST_X),
        Rule(arguments=(ArgumentTest(0, "string", "y"),)),
        Rule(arguments=(ArgumentTest(1, "string", "x"),)),
    ]
    listener, monitor = world.connect(), world.connect_monitor_of(*shapes)
    for cookie, rule in enumerate(shapes):
        world.bus.subscribe(listener, cookie, rule)
    for cookie in range(len(shapes)):
        world.bus.unsubscribe(listener, cookie)
    for cookie in reversed(range(len(shapes))):
        world.bus.subscriptions.remove(monitor, cookie)
    world.bus.disconnect(listener)
    world.bus.disconnect(monitor)
    world.assert_holds_nothing()
