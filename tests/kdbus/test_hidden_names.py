"""Names that the policy of a custom endpoint hides are told to nobody there, by whichever way they ask."""

from __future__ import annotations

from errno import EADDRINUSE, EPERM, ESRCH

import pytest
from support.kdbus import Attach, Client, List, Name, World, layout, refused
from support.kdbus.layout import ATTACH_ALL, OWN, SEE, TALK, WORLD, access, name

SEEN, HIDDEN, HANDED_ON = "foo.seen", "foo.hidden", "foo.handed.on"


class Scene:
    """Somebody who owns a seen and a hidden name, and readers inside and outside of a custom endpoint."""

    def __init__(self, world: World) -> None:
        self.maker, self.node = world.make_endpoint(
            "1000-custom", name(SEEN), access(WORLD, SEE), name(HANDED_ON), access(WORLD, OWN)
        )
        self.owner = world.connect()
        self.owner.name_acquire(SEEN)
        self.owner.name_acquire(HIDDEN)
        self.inside = world.connect(node=self.node)
        self.outside = world.connect()


@pytest.fixture
def scene(world: World) -> Scene:
    return Scene(world)


def texts(names: list[tuple[str, int]]) -> list[str]:
    return [text for text, _ in names]


# Information


def test_who_asks_by_id_is_told_of_the_names_it_may_see(scene: Scene) -> None:
    assert texts(scene.inside.conn_info(scene.owner, mask=ATTACH_ALL).names) == [SEEN]
    assert texts(scene.outside.conn_info(scene.owner, mask=ATTACH_ALL).names) == [SEEN, HIDDEN]


def test_who_asks_by_name_is_told_of_the_names_it_may_see(scene: Scene) -> None:
    assert texts(scene.inside.conn_info(name=SEEN, mask=Attach.NAMES).names) == [SEEN]
    assert texts(scene.outside.conn_info(name=SEEN, mask=Attach.NAMES).names) == [SEEN, HIDDEN]


def test_a_list_and_an_answer_tell_of_the_same_names(scene: Scene) -> None:
    for reader in (scene.inside, scene.outside):
        listed = [text for info in reader.list_records(List.NAMES) for text, _ in info.names]
        assert texts(reader.conn_info(scene.owner, mask=Attach.NAMES).names) == listed


def test_what_a_new_policy_shows_is_told(scene: Scene) -> None:
    scene.maker.endpoint_update(name(HIDDEN), access(WORLD, SEE))
    assert texts(scene.inside.conn_info(scene.owner, mask=Attach.NAMES).names) == [HIDDEN]


def test_other_metadata_is_told_as_ever(scene: Scene) -> None:
    kinds = scene.outside.conn_info(scene.owner, mask=ATTACH_ALL).kinds
    kinds.remove(layout.ItemType.OWNED_NAME)
    assert scene.inside.conn_info(scene.owner, mask=ATTACH_ALL).kinds == kinds


# Messages


def test_a_message_tells_of_the_names_its_receiver_may_see(scene: Scene) -> None:
    for receiver, known in ((scene.inside, [SEEN]), (scene.outside, [SEEN, HIDDEN])):
        scene.owner.send_small(receiver)
        assert texts(receiver.recv().names) == known


def test_each_receiver_of_a_broadcast_is_told_of_what_it_may_see(scene: Scene) -> None:
    scene.maker.endpoint_update(name(SEEN), access(WORLD, TALK))
    for receiver in (scene.inside, scene.outside):
        receiver.add_match_empty()
    scene.owner.signal()
    assert texts(scene.inside.recv().names) == [SEEN]
    assert texts(scene.outside.recv().names) == [SEEN, HIDDEN]


def test_a_message_without_a_name_that_may_be_seen_tells_of_none(scene: Scene) -> None:
    scene.maker.endpoint_update()
    scene.owner.send_small(scene.inside)
    assert scene.inside.recv().names == []


def hand_on(world: World, scene: Scene, receiver: Client) -> list[str]:
    """The names that come with a message that waited at an activator until this receiver took the name."""
    activator = world.connect_activator(HANDED_ON, access(WORLD, OWN))
    scene.owner.send_small(name=HANDED_ON, cookie=7)
    assert activator.is_readable
    scene.owner.name_release(SEEN)
    receiver.name_acquire(HANDED_ON)
    message = receiver.recv()
    assert message.cookie == 7
    return texts(message.names)


def test_a_message_that_is_handed_on_tells_its_new_receiver_what_that_may_see(
    world: World, scene: Scene
) -> None:
    assert hand_on(world, scene, scene.inside) == [SEEN]


def test_a_message_that_is_handed_on_outside_tells_all_names(world: World, scene: Scene) -> None:
    assert hand_on(world, scene, scene.outside) == [SEEN, HIDDEN]


# Releasing


@pytest.mark.parametrize("text", [HIDDEN, "foo.nobodys"])
def test_a_hidden_name_is_released_as_one_that_nobody_owns(scene: Scene, text: str) -> None:
    with refused(ESRCH):
        scene.inside.name_release(text)


def test_a_name_that_is_seen_belongs_to_somebody_else(scene: Scene) -> None:
    with refused(EADDRINUSE):
        scene.inside.name_release(SEEN)
    for text in (SEEN, HIDDEN):
        with refused(EADDRINUSE):
            scene.outside.name_release(text)


def test_an_own_name_is_released_though_it_has_been_hidden(world: World, scene: Scene) -> None:
    world.connect_holder(HANDED_ON, access(WORLD, OWN))
    scene.inside.name_acquire(HANDED_ON)
    scene.maker.endpoint_update()
    scene.inside.name_release(HANDED_ON)
    with refused(ESRCH):
        scene.inside.name_release(HANDED_ON)
    assert scene.outside.name_acquire(HANDED_ON) & Name.PRIMARY


def test_a_place_in_the_queue_is_released_though_the_name_has_been_hidden(world: World, scene: Scene) -> None:
    world.connect_holder(HANDED_ON, access(WORLD, OWN))
    scene.outside.name_acquire(HANDED_ON)
    assert scene.inside.name_acquire(HANDED_ON, Name.QUEUE) & Name.IN_QUEUE
    scene.maker.endpoint_update()
    scene.inside.name_release(HANDED_ON)
    with refused(ESRCH):
        scene.inside.name_release(HANDED_ON)


def test_a_hidden_name_cannot_be_acquired(scene: Scene) -> None:
    for text in (HIDDEN, "foo.nobodys"):
        with refused(EPERM):
            scene.inside.name_acquire(text)
