"""The bus: connections come and go, monitors are made of them, and destinations are found."""

from __future__ import annotations

from errno import (
    EADDRNOTAVAIL,
    EMFILE,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EREMCHG,
    ESHUTDOWN,
    ESRCH,
)

import pytest
from broker_world import OWNER, STRANGER, World, assert_refers_to_nothing, refused

from kdbus_core import Credentials, KdbusError
from kdbus_core.abi import HelloFlag, MakeFlag
from kdbus_core.connection import Limits
from kdbus_core.metadata import Process
from kdbus_core.names import ACTIVATOR, ALLOW_REPLACEMENT, PRIMARY, QUEUE, REPLACE_EXISTING
from kdbus_core.notifications import IdAdd, IdRemove, NameChange, Notification, ReplyDead
from kdbus_core.quota import Quota
from kdbus_core.subscriptions import Rule

NAME = "org.example.Name"
ROOT = Credentials(uid=0, gid=0)
FAKED = Credentials(uid=3000, gid=3000, pid=77)


# HELLO


def test_a_new_connection_is_active_and_known_by_its_number() -> None:
    world = World()
    connection = world.connect()
    assert connection.active
    assert world.bus.connections == {connection.id: connection}
    assert world.bus.resolve(id=connection.id) is connection


def test_numbers_of_connections_rise_and_are_never_used_again() -> None:
    world = World()
    first = world.connect()
    world.bus.disconnect(first)
    assert world.connect().id > first.id


@pytest.mark.parametrize("flags", [HelloFlag(0), HelloFlag.ACCEPT_FD, HelloFlag.POLICY_HOLDER])
def test_a_new_connection_is_announced(flags: HelloFlag) -> None:
    world = World()
    connection = world.connect(flags=flags, name=NAME if flags & HelloFlag.POLICY_HOLDER else None)
    assert world.take_news() == [IdAdd(connection)]


def test_an_activator_is_announced_and_then_its_name() -> None:
    world = World()
    activator = world.connect_activator(NAME)
    assert world.take_news() == [
        IdAdd(activator),
        NameChange(NAME, None, 0, activator, ACTIVATOR | PRIMARY),
    ]


def test_a_monitor_comes_and_goes_without_a_word() -> None:
    world = World()
    monitor = world.connect_monitor()
    assert world.bus.monitors == [monitor]
    assert monitor.is_monitor
    world.bus.disconnect(monitor)
    assert not world.bus.monitors
    assert not world.news


@pytest.mark.parametrize(
    ("flags", "name"),
    [(HelloFlag.ACTIVATOR, NAME), (HelloFlag.POLICY_HOLDER, NAME), (HelloFlag.MONITOR, None)],
)
@pytest.mark.parametrize("privileged", [True, False])
def test_only_an_owner_makes_special_connections(
    flags: HelloFlag, name: str | None, privileged: bool
) -> None:
    world = World()
    with refused(EPERM):
        world.connect(STRANGER, flags=flags, name=name)
    maker = STRANGER if privileged else OWNER
    assert world.connect(maker, flags=flags, name=name, privileged=privileged).active


@pytest.mark.parametrize("credentials", [STRANGER, ROOT, Credentials()])
def test_only_an_owner_may_speak_for_others(credentials: Credentials) -> None:
    world = World()
    with refused(EPERM):
        world.connect(credentials, faked=FAKED)
    assert not world.bus.connections
    assert not world.news
    assert not world.domain._users


def test_the_privileged_are_owners_too() -> None:
    connection = World().connect(ROOT, faked=FAKED, privileged=True)
    assert connection.faked == FAKED
    assert connection.credentials == ROOT


@pytest.mark.parametrize("privileged", [True, False])
def test_on_a_custom_endpoint_nobody_is_an_owner(privileged: bool) -> None:
    world = World()
    custom = world.bus.make_endpoint("1000-custom", Process.of(OWNER), MakeFlag.ACCESS_WORLD)
    with refused(EPERM):
        world.connect(endpoint=custom, faked=FAKED, privileged=privileged)
    for flags in (HelloFlag.ACTIVATOR, HelloFlag.POLICY_HOLDER):
        with refused(EPERM):
            world.connect(endpoint=custom, flags=flags, name=NAME, privileged=privileged)
    with refused(EOPNOTSUPP):
        world.connect(endpoint=custom, flags=HelloFlag.MONITOR, privileged=privileged)
    connection = world.connect(endpoint=custom, privileged=privileged)
    assert connection.endpoint is custom
    assert not connection.is_owner


def test_a_connection_is_charged_to_whom_it_speaks_for() -> None:
    world = World()
    own, spoken_for = world.connect(), world.connect(faked=FAKED)
    assert (own.user.uid, spoken_for.user.uid) == (1000, 3000)
    assert (own.user.connections, spoken_for.user.connections) == (1, 1)


@pytest.mark.parametrize("faked", [Credentials(), Credentials(gid=3000, pid=77), Credentials(label=b"label")])
def test_a_connection_that_speaks_for_an_unknown_user_is_charged_to_its_own(faked: Credentials) -> None:
    world = World()
    own, spoken_for = world.connect(), world.connect(faked=faked)
    assert spoken_for.user is own.user
    assert own.user.connections == 2
    with refused(EMFILE):
        world.connect(faked=faked, max_connections=2)


def test_root_spoken_for_is_charged_as_root() -> None:
    connection = World().connect(faked=ROOT)
    assert connection.user.uid == 0


@pytest.mark.parametrize("faked", [None, FAKED])
def test_a_connection_can_be_charged_to_another_account(faked: Credentials | None) -> None:
    world = World()
    account = world.bus.kernel_user
    connection = world.connect(faked=faked, account=account)
    assert connection.user is account
    assert account.connections == 1
    assert not world.domain._users
    with refused(EMFILE):
        world.connect(account=account, max_connections=1)
    assert world.connect(faked=faked, max_connections=1).user is not account
    world.bus.disconnect(connection)
    assert account.connections == 0
    assert world.connect(account=account, max_connections=1).user is account


def test_connections_of_one_user_are_counted_and_limited() -> None:
    world = World()
    first = world.connect(faked=FAKED, max_connections=2)
    world.connect(faked=FAKED, max_connections=2)
    world.news.clear()
    with refused(EMFILE):
        world.connect(faked=FAKED, max_connections=2)
    assert first.user.connections == 2
    assert not world.news
    world.connect(max_connections=2)
    world.bus.disconnect(first)
    assert world.connect(faked=FAKED, max_connections=2).active


def test_without_a_limit_a_user_has_as_many_connections_as_it_wants() -> None:
    world = World()
    connections = [world.connect() for _ in range(300)]
    assert connections[0].user.connections == 300


def test_a_connection_is_shown_by_its_number() -> None:
    world = World()
    assert repr(world.connect()) == "Connection(2)"


def test_a_refusal_says_what_was_refused_and_as_which_errno() -> None:
    world = World()
    with pytest.raises(KdbusError, match=r"^ESRCH: nobody owns 'org\.example\.Name'$"):
        world.bus.resolve(name=NAME)
    assert str(KdbusError(99999, "why")) == "99999: why"


def test_a_refused_hello_leaves_no_account_behind() -> None:
    world = World()
    with refused(EMFILE):
        world.connect(STRANGER, max_connections=0)
    world.assert_holds_nothing()


def test_a_connection_may_bring_the_account_book_of_its_queue() -> None:
    world = World()
    quota = Quota(100, 2, 3)
    assert world.connect(quota=quota).quota is quota
    made = world.connect(limits=Limits(queued_messages=5, in_flight_fds=6, pool_size=4096)).quota
    assert (made.capacity, made.max_messages, made.max_fds) == (2048, 5, 6)


# Ending a connection


def test_after_a_disconnect_nothing_refers_to_the_connection() -> None:
    world = World()
    gone, other = world.connect_many(2)
    world.bus.name_acquire(gone, NAME, 0)
    world.bus.subscribe(gone, 1, Rule())
    world.open_request(gone, other, 1)
    world.bus.disconnect(gone)
    assert_refers_to_nothing(gone)
    world.bus.disconnect(other)
    world.assert_holds_nothing()


def test_a_second_disconnect_does_nothing() -> None:
    world = World()
    gone, other = world.connect_many(2)
    world.bus.disconnect(gone)
    world.news.clear()
    world.bus.disconnect(gone)
    assert not world.news
    assert other.user.connections == 1


def test_others_learn_of_names_then_of_the_connection_then_of_lost_replies() -> None:
    world = World()
    gone, heir, caller = world.connect_many(3)
    world.bus.name_acquire(gone, "org.example.Z", 0)
    world.bus.name_acquire(gone, "org.example.A", ALLOW_REPLACEMENT)
    world.bus.name_acquire(heir, "org.example.A", QUEUE)
    world.open_request(caller, gone, 4)
    world.news.clear()
    world.bus.disconnect(gone)
    assert world.take_news() == [
        NameChange("org.example.Z", gone, PRIMARY, None, 0),
        NameChange("org.example.A", gone, ALLOW_REPLACEMENT | PRIMARY, heir, QUEUE | PRIMARY),
        IdRemove(gone),
        ReplyDead(caller, 4),
    ]


def test_when_others_learn_of_a_disconnect_it_is_complete() -> None:
    world = World()
    gone, heir = world.connect_many(2)
    world.bus.name_acquire(gone, NAME, 0)
    world.bus.name_acquire(heir, NAME, QUEUE)
    world.bus.subscribe(gone, 1, Rule())
    seen: list[tuple[object, ...]] = []

    def look(_: Notification) -> None:
        users = world.domain.user(1000).connections
        seen.append((gone.id in world.bus.connections, gone.names, gone.subscriptions, users))

    world.bus.observers.append(look)
    world.bus.disconnect(gone)
    assert seen == [(False, {}, {}, 1)] * 2


def test_a_user_is_forgotten_with_its_last_connection() -> None:
    world = World()
    first, second = world.connect(STRANGER), world.connect(STRANGER)
    account = first.user
    assert second.user is account
    world.bus.disconnect(first)
    assert world.domain.user(2000) is account
    world.bus.disconnect(second)
    world.assert_holds_nothing()


def test_an_activator_that_has_gone_offers_nothing() -> None:
    world = World()
    activator = world.connect_activator(NAME)
    world.bus.disconnect(activator)
    assert world.bus.names.entry(NAME) is None
    with refused(ESRCH):
        world.bus.resolve(name=NAME)


# Monitors made of ordinary connections


def test_who_becomes_a_monitor_gives_up_everything_as_if_it_had_gone() -> None:
    world = World()
    watcher, heir, caller = world.connect_many(3)
    world.bus.name_acquire(watcher, NAME, 0)
    world.bus.name_acquire(heir, NAME, QUEUE)
    world.bus.subscribe(watcher, 1, Rule(eavesdrop=True))
    world.open_request(caller, watcher, 9)
    world.news.clear()
    world.bus.become_monitor(watcher)
    assert world.take_news() == [
        IdRemove(watcher),
        NameChange(NAME, watcher, PRIMARY, heir, QUEUE | PRIMARY),
        ReplyDead(caller, 9),
    ]
    assert (watcher.names, watcher.match_count) == ({}, 1)
    assert [entry.rule for entries in watcher.subscriptions.values() for entry in entries] == [Rule()]
    assert world.bus.monitors == [watcher]
    assert watcher.active
    assert watcher.is_monitor
    assert watcher.user.connections == 3


def test_who_became_a_monitor_goes_without_a_word() -> None:
    world = World()
    (watcher,) = world.connect_many(1)
    world.bus.become_monitor(watcher)
    world.news.clear()
    world.bus.disconnect(watcher)
    assert not world.news
    assert_refers_to_nothing(watcher)
    world.assert_holds_nothing()


def test_only_an_ordinary_connection_becomes_a_monitor() -> None:
    world = World()
    monitor, activator = world.connect_monitor(), world.connect_activator(NAME)
    became = world.connect_monitor_of(Rule(member="M"))
    world.news.clear()
    for special in (monitor, activator, became):
        count = special.match_count
        with refused(EOPNOTSUPP):
            world.bus.become_monitor(special, [Rule(), Rule()])
        assert special.match_count == count
    assert world.bus.monitors == [monitor, became]
    assert activator.names.keys() == {NAME}
    assert not world.news


def test_who_has_gone_becomes_no_monitor() -> None:
    world = World()
    for gone in (world.connect(), world.connect_monitor(), world.connect_activator(NAME)):
        world.bus.disconnect(gone)
        world.news.clear()
        with refused(ESHUTDOWN):
            world.bus.become_monitor(gone)
        assert not world.news
        assert_refers_to_nothing(gone)
    world.assert_holds_nothing()


# Destinations


def test_an_unknown_number_leads_nowhere() -> None:
    world = World()
    (gone,) = world.connect_many(1)
    world.bus.disconnect(gone)
    for id in (0, -1, world.bus.id, gone.id, gone.id + 1, 2**64 - 1):
        with refused(ENXIO):
            world.bus.resolve(id=id)


def test_special_connections_cannot_be_reached_by_number() -> None:
    world = World()
    became = world.connect()
    world.bus.become_monitor(became)
    holder = world.connect(flags=HelloFlag.POLICY_HOLDER, name=NAME)
    for connection in (world.connect_monitor(), world.connect_activator("org.example.A"), holder, became):
        with refused(ENXIO):
            world.bus.resolve(id=connection.id)


def test_a_name_leads_to_the_head_of_its_queue() -> None:
    world = World()
    owner, waiting = world.connect_many(2)
    world.bus.name_acquire(owner, NAME, ALLOW_REPLACEMENT | QUEUE)
    world.bus.name_acquire(waiting, NAME, QUEUE)
    assert world.bus.resolve(name=NAME) is owner
    world.bus.name_acquire(waiting, NAME, REPLACE_EXISTING)
    assert world.bus.resolve(name=NAME) is waiting


def test_a_name_that_nobody_has_leads_nowhere() -> None:
    world = World()
    for name in (NAME, "", "not a name"):
        with refused(ESRCH):
            world.bus.resolve(name=name)


def test_a_name_without_owner_leads_to_its_activator_unless_nothing_shall_be_started() -> None:
    world = World()
    activator = world.connect_activator(NAME)
    assert world.bus.resolve(name=NAME) is activator
    with refused(EADDRNOTAVAIL):
        world.bus.resolve(name=NAME, auto_start=False)
    owner = world.connect()
    world.bus.name_acquire(owner, NAME, 0)
    assert world.bus.resolve(name=NAME, auto_start=False) is owner


def test_with_a_name_and_a_number_the_owner_has_to_have_that_number() -> None:
    world = World()
    owner, other = world.connect_many(2)
    activator = world.connect_activator("org.example.Offered")
    world.bus.name_acquire(owner, NAME, 0)
    assert world.bus.resolve(id=owner.id, name=NAME) is owner
    assert world.bus.resolve(id=activator.id, name="org.example.Offered") is activator
    with refused(EREMCHG):
        world.bus.resolve(id=other.id, name=NAME)
    with refused(EREMCHG):
        world.bus.resolve(id=other.id, name="org.example.Offered", auto_start=False)
    with refused(ESRCH):
        world.bus.resolve(id=owner.id, name="org.example.Nobody")


def test_a_connection_reaches_itself() -> None:
    world = World()
    (me,) = world.connect_many(1)
    world.bus.name_acquire(me, NAME, 0)
    assert world.bus.resolve(id=me.id) is world.bus.resolve(name=NAME) is me


def test_a_connection_that_takes_descriptors_is_reached_like_any_other() -> None:
    world = World()
    connection = world.connect(flags=HelloFlag.ACCEPT_FD)
    assert world.bus.resolve(id=connection.id) is connection
