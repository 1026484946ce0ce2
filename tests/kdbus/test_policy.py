"""Policy entries: a name, and a wildcard, belongs to one policy holder at a time."""

from __future__ import annotations

from errno import EEXIST, EINVAL

import pytest
from support.kdbus import OWNER_UID, Client, World, layout, refused
from support.kdbus.layout import OWN, SEE, USER, WORLD, access

SEEN_BY_OWNER = access(USER, SEE, OWNER_UID)


@pytest.fixture
def holders(world: World) -> tuple[Client, Client]:
    """A and B, for com.example.a and com.example.b."""
    return world.connect_holder("com.example.a"), world.connect_holder("com.example.b")


@pytest.mark.parametrize("name", [".example.a", "example", "", "com.*.a", "*", ".*", "com.example.a*"])
def test_a_holder_is_not_made_for_what_is_no_name(world: World, name: str) -> None:
    with refused(EINVAL):
        world.connect_holder(name)


def test_a_name_is_held_once(holders: tuple[Client, Client]) -> None:
    first, second = holders
    first.update_policy("com.example.a", SEEN_BY_OWNER)
    with refused(EEXIST):
        second.update_policy("com.example.a", SEEN_BY_OWNER)


def test_a_name_and_a_wildcard_are_different_things(holders: tuple[Client, Client]) -> None:
    first, second = holders
    first.update_policy("com.example.a", SEEN_BY_OWNER)
    second.update_policy("com.example.a.*", SEEN_BY_OWNER)
    with refused(EEXIST):
        first.update_policy("com.example.a.*", SEEN_BY_OWNER)


def test_what_was_held_before_is_free_again(holders: tuple[Client, Client]) -> None:
    first, second = holders
    first.update_policy("com.example.a", SEEN_BY_OWNER)
    second.update_policy("com.example.a.*", SEEN_BY_OWNER)
    first.update_policy("com.example.*", SEEN_BY_OWNER)
    second.update_policy("com.example.a", SEEN_BY_OWNER)
    with refused(EEXIST):
        second.update_policy("com.example.*", SEEN_BY_OWNER)


@pytest.mark.parametrize("name", [".example.*", "example"])
def test_what_is_no_name_is_not_held(holders: tuple[Client, Client], name: str) -> None:
    with refused(EINVAL):
        holders[1].update_policy(name, SEEN_BY_OWNER)


def test_a_refused_update_keeps_what_was_held(world: World, holders: tuple[Client, Client]) -> None:
    first, second = holders
    for name, errno in (("com.example.a", EEXIST), ("example", EINVAL)):
        with refused(errno):
            second.update_policy(name, SEEN_BY_OWNER)
        with refused(EEXIST):  # still B's
            first.update_policy("com.example.b", SEEN_BY_OWNER)


def test_a_second_holder_for_a_name_is_refused(world: World, holders: tuple[Client, Client]) -> None:
    for name in ("com.example.a", "com.example.b"):
        with refused(EEXIST):
            world.connect_holder(name)
    world.connect_holder("com.example.*")
    with refused(EEXIST):
        world.connect_holder("com.example.*")


def test_a_name_is_free_when_its_holder_has_gone(world: World, holders: tuple[Client, Client]) -> None:
    first, second = holders
    first.close()
    second.update_policy("com.example.a", SEEN_BY_OWNER)


def test_an_activator_holds_the_policy_of_its_name(world: World, holders: tuple[Client, Client]) -> None:
    with refused(EEXIST):
        world.connect_activator("com.example.a", access(WORLD, OWN))
    activator = world.connect_activator("com.example.c", access(WORLD, OWN))
    with refused(EEXIST):
        holders[0].update_policy("com.example.c", SEEN_BY_OWNER)
    activator.close()
    holders[0].update_policy("com.example.c", SEEN_BY_OWNER)


def test_an_activator_has_no_wildcard(world: World) -> None:
    with refused(EINVAL):
        world.connect_activator("com.example.*")


def test_a_holder_may_say_the_same_again(holders: tuple[Client, Client]) -> None:
    for _ in range(3):
        holders[0].update_policy("com.example.a", SEEN_BY_OWNER)
    holders[0].update(layout.name("com.example.a"))
