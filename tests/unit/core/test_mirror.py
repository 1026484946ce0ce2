"""The mirror of a name registry follows what is announced, and what our own clients' commands lead to."""

from __future__ import annotations

import os

import pytest

from busproxy.core.mirror import NameMirror, Place
from kdbus_core.abi import PAGE_SIZE
from kdbus_core.connection import Connection
from kdbus_core.domain import Domain
from kdbus_core.metadata import Credentials, Process
from kdbus_core.names import ACTIVATOR, ALLOW_REPLACEMENT, IN_QUEUE, PRIMARY, QUEUE
from kdbus_core.notifications import NameChange
from kdbus_core.pool import Pool

NAME = "com.example.Name"


class Scene:
    """A mirror and three connections that nobody else knows."""

    def __init__(self) -> None:
        self.told: list[NameChange] = []
        self.mirror = NameMirror(self.told.append)
        maker = Process.of(Credentials(uid=1000, gid=1000, pid=1))
        bus = Domain(os.urandom).make_bus("1000-test", maker)
        self.a, self.b, self.c = (bus.hello(bus.endpoint, maker, pool=Pool(PAGE_SIZE)) for _ in range(3))

    def change(
        self,
        old: Connection | None,
        new: Connection | None,
        *,
        old_flags: int = PRIMARY,
        new_flags: int = PRIMARY,
        has_left: bool = False,
    ) -> None:
        self.mirror.change(
            NAME,
            old,
            old_flags if old is not None else 0,
            new,
            new_flags if new is not None else 0,
            has_left=has_left,
        )

    def queue(self) -> list[tuple[Connection, int]]:
        entry = self.mirror.entry(NAME)
        return [] if entry is None else [(place.connection, place.flags) for place in entry.queue]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_new_owner_is_known_and_reported(scene: Scene) -> None:
    scene.change(None, scene.a, new_flags=PRIMARY | QUEUE)
    assert scene.mirror.owner(NAME) is scene.a
    assert scene.a.names[NAME].flags == PRIMARY | QUEUE
    assert scene.told == [NameChange(NAME, None, 0, scene.a, PRIMARY | QUEUE)]


def test_a_name_that_nobody_has_is_forgotten(scene: Scene) -> None:
    scene.change(None, scene.a)
    scene.change(scene.a, None)
    assert scene.mirror.entry(NAME) is None
    assert not scene.a.names
    assert len(scene.mirror) == 0
    assert scene.told[-1] == NameChange(NAME, scene.a, PRIMARY, None, 0)


def test_who_gave_a_name_up_is_out_of_the_queue(scene: Scene) -> None:
    scene.change(None, scene.a, new_flags=PRIMARY | QUEUE)
    scene.mirror.settle(scene.b, NAME, IN_QUEUE | QUEUE)
    scene.change(scene.a, scene.b, old_flags=PRIMARY | QUEUE, new_flags=PRIMARY | QUEUE, has_left=True)
    assert scene.queue() == [(scene.b, PRIMARY | QUEUE)]
    assert not scene.a.names


def test_who_was_replaced_and_waits_is_next_in_line(scene: Scene) -> None:
    flags = PRIMARY | QUEUE | ALLOW_REPLACEMENT
    scene.change(None, scene.a, new_flags=flags)
    scene.mirror.settle(scene.b, NAME, IN_QUEUE | QUEUE)
    scene.change(scene.a, scene.c, old_flags=flags)
    waiting = QUEUE | ALLOW_REPLACEMENT | IN_QUEUE
    assert scene.queue() == [(scene.c, PRIMARY), (scene.a, waiting), (scene.b, QUEUE | IN_QUEUE)]


def test_who_was_replaced_and_does_not_wait_is_out_of_the_queue(scene: Scene) -> None:
    scene.change(None, scene.a, new_flags=PRIMARY | ALLOW_REPLACEMENT)
    scene.change(scene.a, scene.b, old_flags=PRIMARY | ALLOW_REPLACEMENT)
    assert scene.queue() == [(scene.b, PRIMARY)]
    assert not scene.a.names


def test_who_waited_and_replaces_stands_in_the_queue_once(scene: Scene) -> None:
    flags = PRIMARY | QUEUE | ALLOW_REPLACEMENT
    scene.change(None, scene.a, new_flags=flags)
    scene.mirror.settle(scene.b, NAME, IN_QUEUE | QUEUE)
    scene.change(scene.a, scene.b, old_flags=flags)
    assert [connection for connection, _ in scene.queue()] == [scene.b, scene.a]


def test_an_activator_stands_beside_the_queue(scene: Scene) -> None:
    scene.change(None, scene.a, new_flags=ACTIVATOR | PRIMARY)
    entry = scene.mirror.entry(NAME)
    assert entry is not None
    assert entry.holder is entry.activator is scene.a.names[NAME]
    scene.change(scene.a, scene.b, old_flags=ACTIVATOR | PRIMARY)
    assert entry.holder is scene.b.names[NAME]
    assert scene.a.names[NAME].flags == ACTIVATOR | IN_QUEUE
    scene.change(scene.b, scene.a, new_flags=ACTIVATOR | PRIMARY, has_left=True)
    assert entry.holder is scene.a.names[NAME]
    assert entry.queue == []
    scene.change(scene.a, None, old_flags=ACTIVATOR | PRIMARY)
    assert scene.mirror.entry(NAME) is None
    assert not scene.a.names


def test_who_waits_comes_last_or_next(scene: Scene) -> None:
    scene.change(None, scene.a)
    scene.mirror.settle(scene.b, NAME, IN_QUEUE | QUEUE)
    scene.mirror.settle(scene.c, NAME, IN_QUEUE | QUEUE)
    assert [connection for connection, _ in scene.queue()] == [scene.a, scene.b, scene.c]
    scene.mirror.settle(scene.c, NAME, IN_QUEUE | QUEUE, is_next=True)
    assert [connection for connection, _ in scene.queue()] == [scene.a, scene.c, scene.b]
    scene.mirror.settle(scene.c, NAME, IN_QUEUE | QUEUE, is_next=True)
    assert [connection for connection, _ in scene.queue()] == [scene.a, scene.c, scene.b]


def test_who_has_become_the_owner_meanwhile_does_not_wait(scene: Scene) -> None:
    scene.change(None, scene.a)
    scene.change(scene.a, scene.b, new_flags=PRIMARY | QUEUE)
    scene.mirror.settle(scene.b, NAME, IN_QUEUE | QUEUE)
    assert scene.queue() == [(scene.b, PRIMARY | QUEUE)]


def test_new_flags_of_an_owner_are_kept(scene: Scene) -> None:
    scene.change(None, scene.a)
    scene.mirror.settle(scene.a, NAME, PRIMARY | ALLOW_REPLACEMENT)
    assert scene.queue() == [(scene.a, PRIMARY | ALLOW_REPLACEMENT)]
    assert len(scene.told) == 1


def test_who_does_not_want_to_wait_any_more_leaves(scene: Scene) -> None:
    scene.change(None, scene.a)
    scene.mirror.settle(scene.b, NAME, IN_QUEUE | QUEUE)
    scene.mirror.settle(scene.b, NAME, 0)
    assert scene.queue() == [(scene.a, PRIMARY)]
    scene.mirror.settle(scene.b, NAME, IN_QUEUE | QUEUE)
    scene.mirror.leave(scene.b, NAME)
    assert scene.queue() == [(scene.a, PRIMARY)]
    assert not scene.b.names


def test_an_owner_does_not_leave_without_an_announcement(scene: Scene) -> None:
    scene.change(None, scene.a)
    scene.mirror.leave(scene.a, NAME)
    assert scene.mirror.owner(NAME) is scene.a


def test_who_has_gone_stands_nowhere(scene: Scene) -> None:
    scene.change(None, scene.a)
    scene.mirror.settle(scene.b, NAME, IN_QUEUE | QUEUE)
    scene.mirror.disconnect(scene.b)
    assert scene.queue() == [(scene.a, PRIMARY)]
    scene.mirror.disconnect(scene.a)
    assert scene.mirror.entry(NAME) is None
    assert len(scene.told) == 1


def test_what_is_listed_is_taken_over_with_the_owner_first(scene: Scene) -> None:
    scene.mirror.load(NAME, [Place(scene.a, QUEUE | IN_QUEUE), Place(scene.b, PRIMARY)])
    assert scene.queue() == [(scene.b, PRIMARY), (scene.a, QUEUE | IN_QUEUE)]
    assert not scene.told
    scene.mirror.load(NAME, [Place(scene.c, ACTIVATOR | PRIMARY)])
    assert scene.queue() == []
    assert list(scene.c.names) == [NAME]
    assert not scene.a.names
    scene.mirror.load(NAME, [])
    assert scene.mirror.entry(NAME) is None


def test_who_was_known_to_wait_keeps_its_place_before_who_was_not(scene: Scene) -> None:
    scene.change(None, scene.a)
    scene.mirror.settle(scene.c, NAME, IN_QUEUE | QUEUE)
    waiting = QUEUE | IN_QUEUE
    listed = [Place(scene.a, PRIMARY), Place(scene.b, waiting), Place(scene.c, waiting)]
    scene.mirror.refresh(NAME, listed)
    assert [connection for connection, _ in scene.queue()] == [scene.a, scene.c, scene.b]
    assert len(scene.told) == 1


def test_names_stay_in_the_order_in_which_they_were_acquired(scene: Scene) -> None:
    for name in ("a.a", "a.b"):
        scene.mirror.change(name, None, 0, scene.a, PRIMARY, has_left=False)
    scene.mirror.refresh("a.a", [Place(scene.a, PRIMARY), Place(scene.b, QUEUE | IN_QUEUE)])
    assert list(scene.a.names) == ["a.a", "a.b"]
