"""Nothing that a sender keeps about a destination or an audience may outlive a change of it.

Each case changes one thing; the generation that covers it has to be another one afterwards, while what
cannot matter to anybody's route (a refusal, another place in a queue) is free to leave it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EEXIST, EOPNOTSUPP

import pytest
from broker_world import World, refused

from kdbus_core.connection import Connection
from kdbus_core.names import ALLOW_REPLACEMENT, QUEUE, REPLACE_EXISTING
from kdbus_core.subscriptions import ArgumentTest, Rule

OWNED = "org.example.Owned"
OFFERED = "org.example.Offered"


class Scene:
    """A bus on which everything that can change is there: owner, heir, activator, eavesdropper, monitor."""

    def __init__(self) -> None:
        self.world = World()
        self.bus = self.world.bus
        self.owner, self.heir, self.other, self.listener, self.eavesdropper = self.world.connect_many(5)
        self.activator = self.world.connect_activator(OFFERED)
        self.monitor = self.world.connect_monitor()
        self.bus.name_acquire(self.owner, OWNED, ALLOW_REPLACEMENT | QUEUE)
        self.bus.name_acquire(self.heir, OWNED, QUEUE)
        self.bus.subscribe(self.listener, 1, Rule())
        self.bus.subscribe(self.eavesdropper, 1, Rule(eavesdrop=True))

    def changes(self, command: Callable[[Scene], object]) -> tuple[bool, bool]:
        """Run a command; says whether the generations of routes and of audiences have changed."""
        route, audience = self.bus.route_generation, self.bus.audience_generation
        command(self)
        assert self.bus.route_generation >= route
        assert self.bus.audience_generation >= audience
        return self.bus.route_generation != route, self.bus.audience_generation != audience


def _acquire(connection: str, name: str, flags: int) -> Callable[[Scene], object]:
    return lambda scene: scene.bus.name_acquire(_one(scene, connection), name, flags)


def _one(scene: Scene, connection: str) -> Connection:
    found: Connection = getattr(scene, connection)
    return found


NAME_CHANGES: list[tuple[str, Callable[[Scene], object]]] = [
    ("a new name", _acquire("other", "org.example.New", 0)),
    ("a name taken from its activator", _acquire("other", OFFERED, 0)),
    ("an owner replaced", _acquire("other", OWNED, REPLACE_EXISTING)),
    ("an owner replaced from the queue", _acquire("heir", OWNED, REPLACE_EXISTING)),
    ("a name handed on", lambda scene: scene.bus.name_release(scene.owner, OWNED)),
    ("a name newly offered", lambda scene: scene.world.connect_activator("org.example.New")),
]


@pytest.mark.parametrize("command", [c for _, c in NAME_CHANGES], ids=[label for label, _ in NAME_CHANGES])
def test_a_name_that_leads_elsewhere_changes_routes_and_audiences(command: Callable[[Scene], object]) -> None:
    assert Scene().changes(command) == (True, True)


def test_a_name_that_ends_changes_routes_and_audiences() -> None:
    scene = Scene()
    name = "org.example.Only"
    scene.bus.name_acquire(scene.other, name, 0)
    assert scene.changes(lambda scene: scene.bus.name_release(scene.other, name)) == (True, True)


def test_a_name_that_falls_back_to_its_activator_changes_routes_and_audiences() -> None:
    scene = Scene()
    scene.bus.name_acquire(scene.other, OFFERED, 0)
    assert scene.changes(lambda scene: scene.bus.name_release(scene.other, OFFERED)) == (True, True)


@pytest.mark.parametrize(
    "connection", ["owner", "heir", "other", "listener", "eavesdropper", "activator", "monitor"]
)
def test_a_connection_that_goes_changes_routes_and_audiences(connection: str) -> None:
    scene = Scene()
    assert scene.changes(lambda scene: scene.bus.disconnect(_one(scene, connection))) == (True, True)


@pytest.mark.parametrize("connection", ["owner", "other", "listener", "eavesdropper"])
def test_a_connection_that_becomes_a_monitor_changes_routes_and_audiences(connection: str) -> None:
    scene = Scene()
    assert scene.changes(lambda scene: scene.bus.become_monitor(_one(scene, connection))) == (True, True)


def test_a_new_monitor_changes_routes_and_audiences() -> None:
    assert Scene().changes(lambda scene: scene.world.connect_monitor()) == (True, True)


RULES = [Rule(), Rule(arguments=(ArgumentTest(0, "string", "x"),)), Rule(path_namespace="/a", sender="a.b")]


@pytest.mark.parametrize("rule", RULES)
def test_a_subscription_changes_audiences_when_it_comes_and_when_it_goes(rule: Rule) -> None:
    scene = Scene()
    _, audience = scene.changes(lambda scene: scene.bus.subscribe(scene.other, 1, rule))
    assert audience
    _, audience = scene.changes(lambda scene: scene.bus.unsubscribe(scene.other, 1))
    assert audience


SOME_OR_NO_ARGUMENTS: list[tuple[ArgumentTest, ...]] = [(), (ArgumentTest(0, "string", "x"),)]


@pytest.mark.parametrize("arguments", SOME_OR_NO_ARGUMENTS)
def test_who_eavesdrops_changes_routes_when_it_comes_and_when_it_goes(
    arguments: tuple[ArgumentTest, ...],
) -> None:
    scene = Scene()
    rule = Rule(arguments=arguments, eavesdrop=True)
    assert scene.changes(lambda scene: scene.bus.subscribe(scene.other, 5, rule)) == (True, True)
    assert scene.changes(lambda scene: scene.bus.unsubscribe(scene.other, 5)) == (True, True)


@pytest.mark.parametrize("arguments", SOME_OR_NO_ARGUMENTS)
def test_what_a_monitor_sees_changes_routes_when_it_comes_and_when_it_goes(
    arguments: tuple[ArgumentTest, ...],
) -> None:
    scene = Scene()
    rule = Rule(arguments=arguments)
    assert scene.changes(lambda scene: scene.bus.become_monitor(scene.other, [rule])) == (True, True)
    assert scene.changes(lambda scene: scene.bus.disconnect(scene.other)) == (True, True)


def test_a_cookie_with_rules_of_both_kinds_changes_routes_when_it_goes() -> None:
    scene = Scene()
    scene.bus.subscribe(scene.other, 5, Rule(eavesdrop=True))
    scene.bus.subscribe(scene.other, 5, Rule())
    assert scene.changes(lambda scene: scene.bus.unsubscribe(scene.other, 5)) == (True, True)


def test_subscriptions_of_others_leave_routes_alone() -> None:
    scene = Scene()
    assert scene.changes(lambda scene: scene.bus.subscribe(scene.other, 1, Rule())) == (False, True)


def test_a_new_connection_leaves_routes_alone() -> None:
    route, _ = Scene().changes(lambda scene: scene.world.connect())
    assert not route


def test_traffic_and_places_in_a_queue_leave_everything_alone() -> None:
    def command(scene: Scene) -> None:
        scene.world.open_request(scene.owner, scene.heir, 1)
        scene.bus.replies.take(scene.owner, scene.heir, 1)
        scene.bus.name_acquire(scene.other, OWNED, QUEUE)
        scene.bus.name_acquire(scene.other, OWNED, 0)
        scene.bus.name_acquire(scene.owner, OWNED, QUEUE)
        scene.bus.resolve(name=OWNED)
        scene.bus.connection_info(name=OWNED)

    assert Scene().changes(command) == (False, False)


def test_a_refused_command_leaves_everything_alone() -> None:
    def command(scene: Scene) -> None:
        with refused(EEXIST):
            scene.bus.name_acquire(scene.other, OWNED, 0)
        for special in (scene.monitor, scene.activator):
            with refused(EOPNOTSUPP):
                scene.bus.subscribe(special, 1, Rule(eavesdrop=True))
            with refused(EOPNOTSUPP):
                scene.bus.become_monitor(special)
        with refused(EOPNOTSUPP):
            scene.bus.name_release(scene.activator, OFFERED)
        with refused(EEXIST):
            scene.world.connect_activator(OFFERED)

    assert Scene().changes(command) == (False, False)


def test_rules_outside_the_bus_that_change_make_everybody_ask_again() -> None:
    assert Scene().changes(lambda scene: scene.bus.invalidate()) == (True, True)


def test_when_others_are_told_of_a_change_the_generations_have_changed_already() -> None:
    scene = Scene()
    before = scene.bus.route_generation, scene.bus.audience_generation
    seen: list[tuple[int, int]] = []
    scene.bus.observers.append(
        lambda _: seen.append((scene.bus.route_generation, scene.bus.audience_generation))
    )
    scene.bus.disconnect(scene.owner)
    after = scene.bus.route_generation, scene.bus.audience_generation
    assert seen == [after, after]
    assert before[0] != after[0]
    assert before[1] != after[1]
