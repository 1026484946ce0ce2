"""Who may own, talk and see: what two policies, ownership of the bus and a common uid decide together."""

from __future__ import annotations

from typing import cast

import pytest

from kdbus_core.abi import UNSET_ID, AccessLevel, AccessType, NameFlag
from kdbus_core.connection import Connection
from kdbus_core.metadata import Credentials, Creds, Process, Snapshot
from kdbus_core.policy import (
    Access,
    PolicyDatabase,
    PolicyEntry,
    may_own,
    may_see,
    may_see_name,
    may_talk,
)

SEE, TALK, OWN = AccessLevel.SEE, AccessLevel.TALK, AccessLevel.OWN
PRIMARY = int(NameFlag.PRIMARY)
QUEUED = int(NameFlag.QUEUE | NameFlag.IN_QUEUE)
OFFERED = int(NameFlag.ACTIVATOR | NameFlag.PRIMARY)
SHADOWED = int(NameFlag.ACTIVATOR | NameFlag.IN_QUEUE)
ALICE = Process.of(Credentials(uid=1000, gid=1000, groups=()))
BOB = Process.of(Credentials(uid=2000, gid=2000, groups=()))
NOBODY = Process.of(Credentials())


class Bus:
    def __init__(self) -> None:
        self.policy = PolicyDatabase()


class Endpoint:
    """The default endpoint of a bus, or a custom one with a policy."""

    def __init__(self, bus: Bus, policy: PolicyDatabase | None = None) -> None:
        self.bus = bus
        self.policy = policy


class Place:
    """Where a connection stands at a name."""

    def __init__(self, flags: int) -> None:
        self.flags = flags


class Party:
    """What a decision asks of a connection."""

    def __init__(
        self, endpoint: Endpoint, process: Process, names: dict[str, int], *, is_owner: bool
    ) -> None:
        self.endpoint = endpoint
        self.process = process
        self.credentials = process.credentials
        self.is_owner = is_owner
        self.names = {name: Place(flags) for name, flags in names.items()}


class Scene:
    """A bus with its default endpoint and a custom one; nothing is granted anywhere at first."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.own_policy = PolicyDatabase()
        self.default = Endpoint(self.bus)
        self.custom = Endpoint(self.bus, self.own_policy)

    def connect(
        self,
        process: Process,
        names: dict[str, int] | None = None,
        *,
        custom: bool = False,
        is_owner: bool = False,
    ) -> Connection:
        endpoint = self.custom if custom else self.default
        return cast(Connection, Party(endpoint, process, names or {}, is_owner=is_owner))

    def grant(self, name: str, level: int, *, custom: bool = False) -> None:
        """Let everybody have this level on a name, by one of the two policies."""
        policy = self.own_policy if custom else self.bus.policy
        policy.replace(name, [PolicyEntry(name, (Access(AccessType.WORLD, 0, level),))])


# OWN


@pytest.mark.parametrize("level", [None, SEE, TALK, OWN])
def test_a_name_may_be_owned_by_those_whom_the_bus_grants_it(level: int | None) -> None:
    scene = Scene()
    if level is not None:
        scene.grant("a.b", level)
    assert may_own(scene.connect(BOB), "a.b") is (level == OWN)
    assert not may_own(scene.connect(BOB), "a.c")


def test_an_owner_of_the_bus_may_own_every_name() -> None:
    assert may_own(Scene().connect(ALICE, is_owner=True), "a.b")


def test_who_has_the_uid_of_a_names_owner_may_not_own_it_for_that() -> None:
    scene = Scene()
    scene.connect(BOB, {"a.b": PRIMARY})
    assert not may_own(scene.connect(BOB), "a.b")


@pytest.mark.parametrize("on_bus", [None, SEE, TALK, OWN])
@pytest.mark.parametrize("on_endpoint", [None, SEE, TALK, OWN])
def test_on_a_custom_endpoint_both_policies_have_to_grant_a_name(
    on_endpoint: int | None, on_bus: int | None
) -> None:
    scene = Scene()
    if on_endpoint is not None:
        scene.grant("a.b", on_endpoint, custom=True)
    if on_bus is not None:
        scene.grant("a.b", on_bus)
    assert may_own(scene.connect(BOB, custom=True), "a.b") is (on_endpoint == on_bus == OWN)


# TALK


@pytest.mark.parametrize("level", [None, SEE, TALK, OWN])
def test_a_stranger_may_talk_to_whose_name_the_bus_lets_it_talk_to(level: int | None) -> None:
    scene = Scene()
    if level is not None:
        scene.grant("a.b", level)
    receiver = scene.connect(ALICE, {"x.y": PRIMARY, "a.b": PRIMARY})
    assert may_talk(scene.connect(BOB), receiver) is (level in (TALK, OWN))


@pytest.mark.parametrize(
    ("flags", "counts"), [(PRIMARY, True), (QUEUED, False), (OFFERED, True), (SHADOWED, False)]
)
def test_only_names_that_lead_to_a_connection_open_it(flags: int, counts: bool) -> None:
    scene = Scene()
    scene.grant("a.b", TALK)
    scene.grant("a.b", TALK, custom=True)
    receiver = scene.connect(ALICE, {"a.b": flags})
    assert may_talk(scene.connect(BOB), receiver) is counts
    assert may_talk(scene.connect(BOB, custom=True), receiver) is counts
    assert may_see(scene.connect(BOB, custom=True), receiver) is counts


def test_a_connection_without_names_is_closed_to_strangers() -> None:
    scene = Scene()
    assert not may_talk(scene.connect(BOB), scene.connect(ALICE))


def test_talking_one_way_does_not_allow_the_other() -> None:
    scene = Scene()
    scene.grant("a.b", TALK)
    service, client = scene.connect(ALICE, {"a.b": PRIMARY}), scene.connect(BOB)
    assert may_talk(client, service)
    assert not may_talk(service, client)


def test_an_owner_of_the_bus_talks_to_everybody() -> None:
    scene = Scene()
    owner = scene.connect(ALICE, is_owner=True)
    assert may_talk(owner, scene.connect(BOB))
    assert may_talk(owner, scene.connect(NOBODY))
    assert not may_talk(scene.connect(BOB), owner)


def test_everybody_talks_to_those_of_the_same_uid() -> None:
    scene = Scene()
    assert may_talk(scene.connect(BOB), scene.connect(BOB))


def test_unknown_uids_are_not_the_same() -> None:
    scene = Scene()
    assert not may_talk(scene.connect(NOBODY), scene.connect(NOBODY))
    assert not may_talk(scene.connect(NOBODY), scene.connect(BOB))
    assert not may_talk(scene.connect(BOB), scene.connect(NOBODY))


@pytest.mark.parametrize(
    ("creds", "may"),
    [
        (Creds(uid=1000, euid=2000), True),
        (Creds(uid=2000, euid=1000), False),
        (Creds(uid=UNSET_ID, euid=1000), True),
        (Creds(uid=UNSET_ID, euid=2000), False),
    ],
)
def test_the_same_uid_is_the_effective_one_of_who_talks_and_the_real_one_of_who_is_talked_to(
    creds: Creds, may: bool
) -> None:
    scene = Scene()
    sender = Process(Snapshot(creds=Creds(uid=2000, euid=1000)))
    assert may_talk(scene.connect(sender), scene.connect(Process(Snapshot(creds=creds)))) is may


@pytest.mark.parametrize("on_bus", [None, SEE, TALK])
@pytest.mark.parametrize("on_endpoint", [None, SEE, TALK])
@pytest.mark.parametrize("receiver_is", [ALICE, BOB])
def test_on_a_custom_endpoint_its_policy_has_to_let_one_talk_as_well(
    receiver_is: Process, on_endpoint: int | None, on_bus: int | None
) -> None:
    scene = Scene()
    if on_endpoint is not None:
        scene.grant("a.b", on_endpoint, custom=True)
    if on_bus is not None:
        scene.grant("a.b", on_bus)
    sender, receiver = scene.connect(BOB, custom=True), scene.connect(receiver_is, {"a.b": PRIMARY})
    expected = on_endpoint == TALK and (on_bus == TALK or receiver_is is BOB)
    assert may_talk(sender, receiver) is expected


def test_each_policy_may_let_one_talk_by_another_name() -> None:
    scene = Scene()
    scene.grant("a.b", TALK, custom=True)
    scene.grant("a.c", TALK)
    sender = scene.connect(BOB, custom=True)
    assert may_talk(sender, scene.connect(ALICE, {"a.b": PRIMARY, "a.c": PRIMARY}))
    assert not may_talk(sender, scene.connect(ALICE, {"a.b": PRIMARY}))
    assert not may_talk(sender, scene.connect(ALICE, {"a.c": PRIMARY}))


def test_what_the_endpoint_of_the_receiver_allows_is_not_asked() -> None:
    scene = Scene()
    scene.grant("a.b", TALK)
    assert may_talk(scene.connect(BOB), scene.connect(ALICE, {"a.b": PRIMARY}, custom=True))


def test_a_change_of_policy_takes_effect_with_the_next_question() -> None:
    scene = Scene()
    sender, receiver = scene.connect(BOB), scene.connect(ALICE, {"a.b": PRIMARY})
    scene.grant("a.b", TALK)
    assert may_talk(sender, receiver)
    scene.bus.policy.replace("a.b", [PolicyEntry("a.b", ())])
    assert not may_talk(sender, receiver)
    scene.grant("a.b", OWN)
    assert may_talk(sender, receiver)
    scene.bus.policy.remove("a.b")
    assert not may_talk(sender, receiver)


def test_a_wildcard_opens_the_names_below_it() -> None:
    scene = Scene()
    scene.grant("a.b.*", TALK)
    sender = scene.connect(BOB)
    assert may_talk(sender, scene.connect(ALICE, {"a.b.c": PRIMARY}))
    assert not may_talk(sender, scene.connect(ALICE, {"a.b.c.d": PRIMARY}))


# SEE


def test_on_the_default_endpoint_everything_is_seen() -> None:
    scene = Scene()
    reader = scene.connect(NOBODY)
    assert may_see_name(reader, "a.b")
    assert may_see(reader, scene.connect(ALICE))


@pytest.mark.parametrize("level", [None, SEE, TALK, OWN])
def test_on_a_custom_endpoint_names_are_seen_that_its_policy_grants(level: int | None) -> None:
    scene = Scene()
    scene.grant("a.b", OWN)
    if level is not None:
        scene.grant("a.b", level, custom=True)
    reader = scene.connect(BOB, custom=True)
    assert may_see_name(reader, "a.b") is (level is not None)
    assert may_see(reader, scene.connect(ALICE, {"x.y": PRIMARY, "a.b": PRIMARY})) is (level is not None)


def test_on_a_custom_endpoint_a_connection_without_names_is_not_seen() -> None:
    scene = Scene()
    reader = scene.connect(BOB, custom=True)
    assert not may_see(reader, scene.connect(BOB))
    assert not may_see(reader, reader)
