"""Names that change hands: activators that stand in, owners that leave, heirs, and the end of a name."""

from __future__ import annotations

from errno import EADDRINUSE, EEXIST, EINVAL, EOPNOTSUPP, ESHUTDOWN, ESRCH

import pytest
from broker_world import World, refused

from kdbus_core.abi import HelloFlag
from kdbus_core.names import ACTIVATOR, ALLOW_REPLACEMENT, IN_QUEUE, PRIMARY, QUEUE, REPLACE_EXISTING
from kdbus_core.notifications import IdRemove, NameChange

NAME = "org.example.Name"

# Activators


def test_offering_a_free_name_is_reported_as_its_beginning() -> None:
    world = World()
    activator = world.connect_activator(NAME)
    flags = ACTIVATOR | PRIMARY
    assert world.take_news()[1:] == [NameChange(NAME, None, 0, activator, flags)]
    assert activator.names[NAME].flags == flags == 48
    assert world.bus.names.owner(NAME) is None


def test_offering_an_owned_name_is_silent() -> None:
    world = World()
    (owner,) = world.connect_many(1)
    world.bus.name_acquire(owner, NAME, 0)
    world.news.clear()
    activator = world.connect_activator(NAME)
    assert not [news for news in world.news if isinstance(news, NameChange)]
    assert activator.names[NAME].flags == ACTIVATOR | IN_QUEUE == 24
    assert world.queue(NAME) == [(owner, PRIMARY)]


@pytest.mark.parametrize("owned", [True, False])
def test_a_name_has_one_activator(owned: bool) -> None:
    world = World()
    activator = world.connect_activator(NAME)
    if owned:
        world.bus.name_acquire(world.connect(), NAME, 0)
    entry = world.bus.names.entry(NAME)
    with refused(EEXIST):
        world.connect_activator(NAME)
    assert entry is not None
    assert entry.activator is not None
    assert entry.activator.connection is activator


def test_an_invalid_name_cannot_be_offered() -> None:
    world = World()
    with refused(EINVAL):
        world.connect_activator("nodots")
    assert len(world.bus.names) == 0


def test_the_registry_itself_takes_one_valid_offer_for_a_name() -> None:
    world = World()
    names = world.bus.names
    activator, other = world.connect_activator(NAME), world.connect()
    with refused(EINVAL):
        names.offer(other, "nodots")
    with refused(EEXIST):
        names.offer(other, NAME)
    assert not other.names
    assert [entry.name for entry in names.entries()] == [NAME]
    assert names.owner(NAME) is None
    assert activator.names.keys() == {NAME}


def test_an_activator_is_no_owner_whom_one_could_replace() -> None:
    world = World()
    activator = world.connect_activator(NAME)
    first, second = world.connect_many(2)
    world.bus.name_acquire(first, NAME, 0)
    with refused(EEXIST):
        world.bus.name_acquire(second, NAME, REPLACE_EXISTING)
    assert activator not in [connection for connection, _ in world.queue(NAME)]


def test_an_activator_takes_its_offer_back_by_leaving_alone() -> None:
    world = World()
    activator = world.connect_activator(NAME)
    world.news.clear()
    with refused(EOPNOTSUPP):
        world.bus.name_release(activator, NAME)
    assert not world.news
    assert activator.names[NAME].flags == ACTIVATOR | PRIMARY
    world.bus.disconnect(activator)
    expected = [NameChange(NAME, activator, ACTIVATOR | PRIMARY, None, 0), IdRemove(activator)]
    assert world.take_news() == expected
    assert not activator.names
    assert world.connect_activator(NAME).names


@pytest.mark.parametrize("name", [NAME, "org.example.Other"])
def test_monitors_and_activators_own_no_names(name: str) -> None:
    world = World()
    specials = world.connect_activator(NAME), world.connect_monitor(), world.connect_monitor_of()
    world.news.clear()
    for special in specials:
        with refused(EOPNOTSUPP):
            world.bus.name_acquire(special, name, QUEUE)
        with refused(EOPNOTSUPP):
            world.bus.name_release(special, name)
    assert not world.news
    assert world.queue(name) == []
    assert len(world.bus.names) == 1


def test_only_activators_and_policy_holders_have_a_name_from_the_start() -> None:
    world = World()
    for flags in (HelloFlag(0), HelloFlag.MONITOR):
        with refused(EINVAL):
            world.connect(flags=flags, name=NAME)
    holder = world.connect(flags=HelloFlag.POLICY_HOLDER, name=NAME)
    assert not holder.names
    assert len(world.bus.names) == 0


def test_who_has_gone_gets_no_names_and_gives_none_back() -> None:
    world = World()
    owner = world.connect()
    world.bus.name_acquire(owner, NAME, 0)
    for gone in (world.connect(), world.connect_monitor(), world.connect_activator("org.example.Offered")):
        world.bus.disconnect(gone)
        world.news.clear()
        for name in (NAME, "org.example.Offered"):
            with refused(ESHUTDOWN):
                world.bus.name_acquire(gone, name, QUEUE)
            with refused(ESHUTDOWN):
                world.bus.name_release(gone, name)
        assert not gone.names
        assert not world.news
    assert world.queue(NAME) == [(owner, PRIMARY)]
    assert len(world.bus.names) == 1


# RELEASE and disconnect


def test_releasing_a_name_that_nobody_has_is_refused() -> None:
    world = World()
    (me,) = world.connect_many(1)
    with refused(ESRCH):
        world.bus.name_release(me, NAME)
    with refused(ESRCH):
        world.bus.name_release(me, "not a name")


@pytest.mark.parametrize("offered", [True, False])
def test_releasing_a_name_of_others_is_refused(offered: bool) -> None:
    world = World()
    owner, me = world.connect_many(2)
    if offered:
        world.connect_activator(NAME)
    else:
        world.bus.name_acquire(owner, NAME, 0)
    world.news.clear()
    with refused(EADDRINUSE):
        world.bus.name_release(me, NAME)
    assert not world.news


def test_who_waits_leaves_in_silence() -> None:
    world = World()
    owner, first, second = world.connect_many(3)
    for connection in (owner, first, second):
        world.bus.name_acquire(connection, NAME, QUEUE)
    world.news.clear()
    world.bus.name_release(first, NAME)
    assert world.queue(NAME) == [(owner, QUEUE | PRIMARY), (second, QUEUE | IN_QUEUE)]
    assert NAME not in first.names
    assert not world.news


def test_the_next_in_the_queue_inherits() -> None:
    world = World()
    owner, first, second = world.connect_many(3)
    world.bus.name_acquire(owner, NAME, ALLOW_REPLACEMENT)
    world.bus.name_acquire(first, NAME, QUEUE | ALLOW_REPLACEMENT)
    world.bus.name_acquire(second, NAME, QUEUE)
    world.news.clear()
    world.bus.name_release(owner, NAME)
    inherited = QUEUE | ALLOW_REPLACEMENT | PRIMARY
    assert world.take_news() == [NameChange(NAME, owner, ALLOW_REPLACEMENT | PRIMARY, first, inherited)]
    assert world.queue(NAME) == [(first, inherited), (second, QUEUE | IN_QUEUE)]


def test_a_waiting_owner_inherits_before_the_activator() -> None:
    world = World()
    activator = world.connect_activator(NAME)
    owner, waiting = world.connect_many(2)
    world.bus.name_acquire(owner, NAME, 0)
    world.bus.name_acquire(waiting, NAME, QUEUE)
    world.news.clear()
    world.bus.name_release(owner, NAME)
    assert world.take_news() == [NameChange(NAME, owner, PRIMARY, waiting, QUEUE | PRIMARY)]
    assert activator.names[NAME].flags == ACTIVATOR | IN_QUEUE


def test_without_a_queue_the_activator_stands_in_again() -> None:
    world = World()
    activator = world.connect_activator(NAME)
    (owner,) = world.connect_many(1)
    world.bus.name_acquire(owner, NAME, 0)
    world.news.clear()
    world.bus.name_release(owner, NAME)
    assert world.take_news() == [NameChange(NAME, owner, PRIMARY, activator, ACTIVATOR | PRIMARY)]
    assert activator.names[NAME].flags == ACTIVATOR | PRIMARY
    assert world.bus.resolve(name=NAME) is activator


def test_the_last_owner_ends_the_name() -> None:
    world = World()
    (owner,) = world.connect_many(1)
    world.bus.name_acquire(owner, NAME, QUEUE)
    world.news.clear()
    world.bus.name_release(owner, NAME)
    assert world.take_news() == [NameChange(NAME, owner, QUEUE | PRIMARY, None, 0)]
    assert world.bus.names.entry(NAME) is None
    assert len(world.bus.names) == 0


def test_an_activator_in_view_ends_the_name_when_it_leaves() -> None:
    world = World()
    activator = world.connect_activator(NAME)
    world.news.clear()
    world.bus.disconnect(activator)
    assert world.take_news()[0] == NameChange(NAME, activator, ACTIVATOR | PRIMARY, None, 0)
    assert world.bus.names.entry(NAME) is None


def test_an_activator_behind_an_owner_leaves_in_silence() -> None:
    world = World()
    activator = world.connect_activator(NAME)
    (owner,) = world.connect_many(1)
    world.bus.name_acquire(owner, NAME, 0)
    world.news.clear()
    world.bus.disconnect(activator)
    assert not [news for news in world.news if isinstance(news, NameChange)]
    entry = world.bus.names.entry(NAME)
    assert entry is not None
    assert entry.activator is None
    assert entry.holder is owner.names[NAME]


def test_a_disconnect_gives_names_back_in_the_order_they_came() -> None:
    world = World()
    owner, me = world.connect_many(2)
    world.bus.name_acquire(owner, "org.example.B", ALLOW_REPLACEMENT)
    world.bus.name_acquire(me, "org.example.C", 0)
    world.bus.name_acquire(me, "org.example.B", REPLACE_EXISTING)
    world.bus.name_acquire(me, "org.example.A", 0)
    world.bus.name_acquire(me, "org.example.C", QUEUE)
    world.news.clear()
    world.bus.disconnect(me)
    names = [news.name for news in world.take_news() if isinstance(news, NameChange)]
    assert names == ["org.example.C", "org.example.B", "org.example.A"]


def test_who_waits_for_one_name_and_owns_another_gives_both_back() -> None:
    world = World()
    owner, me = world.connect_many(2)
    world.bus.name_acquire(owner, NAME, 0)
    world.bus.name_acquire(me, NAME, QUEUE)
    world.bus.name_acquire(me, "org.example.Other", 0)
    world.news.clear()
    world.bus.disconnect(me)
    changes = [news.name for news in world.take_news() if isinstance(news, NameChange)]
    assert changes == ["org.example.Other"]
    assert world.queue(NAME) == [(owner, PRIMARY)]
