"""Who pays for a connection: its endpoint, the one it speaks for, or whoever opened the handle."""

from __future__ import annotations

from functools import partial

import pytest
from broker_world import World

from kdbus_core import Credentials, Pool
from kdbus_core.abi import PAGE_SIZE
from kdbus_core.admission import resolve_account
from kdbus_core.metadata import Creds, Process, Snapshot

OPENER = 1000
CLIENT = 4242

Faked = Credentials | Snapshot | None

SNAPSHOT = Snapshot(creds=Creds(CLIENT, CLIENT, CLIENT, CLIENT))
KINDS: dict[str, Faked] = {
    "nobody else": None,
    "credentials with a uid": Credentials(uid=CLIENT),
    "credentials without a uid": Credentials(gid=CLIENT),
    "credentials without any id": Credentials(pid=7),
    "a snapshot with a uid": SNAPSHOT,
    "a snapshot with an effective uid alone": Snapshot(creds=Creds(euid=CLIENT, egid=7)),
    "a snapshot with two uids": Snapshot(creds=Creds(CLIENT, 9, 9, 9)),
    "a snapshot whose uids are unset": Snapshot(creds=Creds()),
    "a snapshot with other uids alone": Snapshot(creds=Creds(suid=9, fsuid=9)),
    "a snapshot without ids": Snapshot(seclabel=b"label"),
}
WITH_A_UID = {
    "credentials with a uid",
    "a snapshot with a uid",
    "a snapshot with an effective uid alone",
    "a snapshot with two uids",
}


@pytest.fixture
def world() -> World:
    return World()


def opener(*, is_privileged: bool = False) -> Process:
    return Process.of(Credentials(uid=OPENER, gid=OPENER, pid=4711), privileged=is_privileged)


def payer(world: World, process: Process, faked: Faked, *, is_local: bool) -> int | None:
    """The uid that is charged."""
    user = resolve_account(world.bus.endpoint, process, faked, is_local=is_local)
    assert world.domain.user(user.uid) is user
    return user.uid


@pytest.mark.parametrize("is_privileged", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_proxy_has_its_clients_charged(world: World, kind: str, *, is_privileged: bool) -> None:
    process = opener(is_privileged=is_privileged)
    expected = CLIENT if kind in WITH_A_UID else OPENER
    assert payer(world, process, KINDS[kind], is_local=True) == expected


@pytest.mark.parametrize(
    "kind", [kind for kind, faked in KINDS.items() if not isinstance(faked, Credentials)]
)
def test_a_privileged_native_connection_has_those_charged_whose_uid_it_gives(world: World, kind: str) -> None:
    expected = CLIENT if kind in WITH_A_UID else OPENER
    assert payer(world, opener(is_privileged=True), KINDS[kind], is_local=False) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_any_other_native_connection_pays_for_itself(world: World, kind: str) -> None:
    assert payer(world, opener(), KINDS[kind], is_local=False) == OPENER


def test_of_the_one_who_opened_the_real_uid_counts(world: World) -> None:
    creds = Creds(OPENER, 2000, 3000, 4000)
    for is_local in (False, True):
        assert payer(world, Process(Snapshot(creds=creds)), None, is_local=is_local) == OPENER


@pytest.mark.parametrize("is_local", [False, True])
def test_on_a_custom_endpoint_the_endpoint_pays_whoever_comes(world: World, *, is_local: bool) -> None:
    endpoint = world.bus.make_endpoint("1000-door", opener())
    for is_privileged in (False, True):
        for faked in KINDS.values():
            process = opener(is_privileged=is_privileged)
            account = resolve_account(endpoint, process, faked, is_local=is_local)
            assert account is endpoint.user
            assert account is not world.domain.user(OPENER)


@pytest.mark.parametrize("faked", [Credentials(uid=CLIENT), SNAPSHOT])
def test_a_bus_charges_a_connection_with_a_pool_as_a_native_one(world: World, faked: Faked) -> None:
    hello = partial(world.bus.hello, world.bus.endpoint, opener(), faked=faked)
    local, native = hello(), hello(pool=Pool(PAGE_SIZE))
    assert (local.user.uid, native.user.uid) == (CLIENT, OPENER)
    assert (local.user.connections, native.user.connections) == (1, 1)


def test_a_bus_charges_what_a_privileged_native_connection_says(world: World) -> None:
    process = opener(is_privileged=True)
    native = world.bus.hello(world.bus.endpoint, process, faked=SNAPSHOT, pool=Pool(PAGE_SIZE))
    assert native.user.uid == CLIENT
    world.bus.disconnect(native)
    assert not world.domain._users
