"""Buses made from a configuration: what is made, what a new one changes, and that a wrong one does not."""

from __future__ import annotations

import pytest

from kdbus_core import Bus, Connection, Credentials, Domain, KdbusError, PolicyEntry, Pool, Process
from kdbus_core.abi import AccessLevel, AccessType, HelloFlag, MakeFlag
from kdbus_core.daemon.buses import ConfiguredBuses
from kdbus_core.daemon.config import Accounts, ConfigError, parse_config
from kdbus_core.endpoint import Endpoint
from kdbus_core.inspection import inspect
from kdbus_core.policy import Access

OWNER = Process.of(Credentials(uid=1000, gid=100, pid=1))
ROOT = Process.of(Credentials(uid=0, gid=0, pid=2), privileged=True)
STRANGER = Process.of(Credentials(uid=2000, gid=2000, pid=3))
NAME = "org.example.A"
NOBODY = Accounts(dict[str, int]().__getitem__, dict[str, int]().__getitem__)


class Place:
    """A domain, and the buses in it that a configuration asks for."""

    def __init__(self, process: Process = OWNER) -> None:
        self.domain = Domain(bytes)
        self.process = process
        self.buses = ConfiguredBuses(self.domain, process)

    def apply(self, text: str) -> None:
        self.buses.apply(parse_config(text, "conf", self.process.credentials, NOBODY))

    def refusal(self, text: str) -> tuple[str, str]:
        """Key and reason of the error that a configuration is refused with; nothing has changed then."""
        before = inspect(self.domain)
        with pytest.raises(ConfigError) as caught:
            self.apply(text)
        assert caught.value.file == "conf"
        assert inspect(self.domain) == before
        return caught.value.key, caught.value.why

    def bus(self, name: str = "1000-a") -> Bus:
        return self.domain.buses[name]

    def connect(self, process: Process = STRANGER, endpoint: Endpoint | None = None) -> Connection:
        bus = self.bus()
        return bus.hello(endpoint or bus.endpoint, process, pool=Pool(4096))

    def may_own(self, connection: Connection, name: str = NAME) -> bool:
        try:
            self.bus().name_acquire(connection, name, 0)
        except KdbusError:
            return False
        self.bus().name_release(connection, name)
        return True


BUS = '[[bus]]\nname = "1000-a"\n'
OPEN = f'[[bus.policy]]\nname = "{NAME}"\nown = ["user:2000"]\n'
ENDPOINT = '[[bus.endpoint]]\nname = "1000-e"\n'
ENDPOINT_POLICY = '[[bus.endpoint.policy]]\nname = "org.example.*"\nown = ["world"]\n'


# Making


def test_a_bus_is_made_as_asked_for() -> None:
    place = Place()
    place.apply(f'{BUS}access = "world"\nbloom = {{ size = 32, hashes = 2 }}\nrequired_metadata = ["creds"]')
    bus = place.bus()
    assert bus.flags & MakeFlag.ACCESS_WORLD
    assert (bus.bloom.size, bus.bloom.n_hash, bus.required) == (32, 2, 2)
    assert bus.creator is OWNER


def test_a_bus_of_somebody_else_is_made_by_root_alone() -> None:
    text = '[[bus]]\nname = "{uid}-a"\nowner = { user = 5, group = 6 }'
    key, why = Place().refusal(text)
    assert (key, why) == (
        "bus[0].owner",
        "only with CAP_IPC_OWNER a daemon of uid 1000 makes buses for others",
    )
    place = Place(ROOT)
    place.apply(text)
    assert place.bus("5-a").owner == Credentials(uid=5, gid=6, pid=2)


def test_policy_of_a_bus_holds_for_whoever_connects() -> None:
    place = Place()
    place.apply(BUS + OPEN)
    stranger = place.connect()
    assert place.may_own(stranger)
    assert not place.may_own(stranger, "org.example.B")


def test_policy_of_an_endpoint_holds_for_whoever_comes_through_it() -> None:
    place = Place()
    place.apply(BUS + OPEN + ENDPOINT)
    stranger = place.connect(endpoint=place.bus().endpoints["1000-e"])
    assert not place.may_own(stranger)
    place.apply(BUS + OPEN + ENDPOINT + ENDPOINT_POLICY)
    assert place.may_own(stranger)


# Another configuration


def test_the_same_configuration_again_changes_nothing() -> None:
    place = Place()
    text = BUS + OPEN + ENDPOINT + ENDPOINT_POLICY
    place.apply(text)
    before = inspect(place.domain)
    place.apply(text)
    assert inspect(place.domain) == before


def test_a_bus_that_stays_keeps_its_connections_when_others_come_and_go() -> None:
    place = Place()
    place.apply(f'{BUS}[[bus]]\nname = "1000-b"')
    connection, other = place.connect(), place.bus("1000-b")
    place.apply(f'[[bus]]\nname = "1000-c"\n{BUS}')
    assert list(place.domain.buses) == ["1000-a", "1000-c"]
    assert connection.active
    assert not other.active


def test_policy_that_is_asked_for_no_longer_goes() -> None:
    place = Place()
    place.apply(BUS + OPEN)
    stranger = place.connect()
    place.apply(BUS)
    assert not place.may_own(stranger)


def test_an_endpoint_that_is_asked_for_no_longer_goes_with_its_connections() -> None:
    place = Place()
    place.apply(BUS + ENDPOINT)
    connection = place.connect(endpoint=place.bus().endpoints["1000-e"])
    place.apply(BUS)
    assert list(place.bus().endpoints) == ["bus"]
    assert not connection.active
    place.apply(BUS + ENDPOINT)
    assert list(place.bus().endpoints) == ["bus", "1000-e"]


def test_what_clients_have_made_is_left_alone() -> None:
    place = Place()
    place.apply(BUS + ENDPOINT)
    mine = place.domain.make_bus("2000-mine", STRANGER)
    theirs = place.bus().make_endpoint("1000-theirs", OWNER)
    place.apply(BUS)
    assert mine.active
    assert theirs.active


# What cannot be


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('access = "world"', "access"),
        ("final_metadata = true", "access"),
        ("bloom = { hashes = 1 }", "bloom"),
        ('creator_metadata = ["creds"]', "creator_metadata"),
        ('required_metadata = ["creds"]', "required_metadata"),
        ("owner = { group = 7 }", "owner"),
    ],
)
def test_what_a_bus_was_made_with_cannot_be_changed(line: str, key: str) -> None:
    place = Place()
    place.apply(BUS)
    found, why = place.refusal(f'[[bus]]\nname = "1000-first"\n{BUS}{line}')
    assert (found, why) == (f"bus[1].{key}", "cannot be changed while the bus is there")


def test_what_an_endpoint_was_made_with_cannot_be_changed() -> None:
    place = Place()
    place.apply(BUS + ENDPOINT)
    assert place.refusal(f'{BUS}{ENDPOINT}access = "world"')[0] == "bus[0].endpoint[0].access"


def test_a_name_that_a_client_has_taken_for_its_bus_is_refused_and_all_is_undone() -> None:
    place = Place()
    place.domain.make_bus("1000-taken", OWNER)
    place.apply(BUS + OPEN + ENDPOINT + ENDPOINT_POLICY)
    text = f'[[bus]]\nname = "1000-new"\n{ENDPOINT}{BUS}{OPEN.replace("2000", "3000")}{ENDPOINT}'
    text += f'{OPEN.replace("bus.policy", "bus.endpoint.policy")}[[bus.endpoint]]\nname = "1000-f"\n'
    key, why = place.refusal(f'{text}[[bus]]\nname = "1000-taken"')
    assert (key, why) == ("bus[2]", "cannot be made: there is a bus '1000-taken'")
    place.apply(text)
    assert list(place.domain.buses) == ["1000-taken", "1000-a", "1000-new"]


def test_a_name_whose_policy_a_client_holds_is_refused() -> None:
    place = Place()
    place.apply(BUS)
    bus = place.bus()
    talk = [Access(AccessType.WORLD, 0, AccessLevel.TALK)]
    bus.hello(bus.endpoint, OWNER, pool=Pool(4096), flags=HelloFlag.POLICY_HOLDER, name=NAME, accesses=talk)
    assert place.refusal(BUS + OPEN) == ("bus[0].policy", f"there is an entry for '{NAME}' already")


def test_a_name_whose_policy_is_configured_is_no_clients_to_hold() -> None:
    place = Place()
    place.apply(BUS + OPEN)
    bus = place.bus()
    with pytest.raises(KdbusError, match="EEXIST"):
        bus.hello(bus.endpoint, OWNER, pool=Pool(4096), flags=HelloFlag.POLICY_HOLDER, name=NAME)


def test_an_endpoint_that_a_client_has_made_is_refused() -> None:
    place = Place()
    place.apply(BUS)
    place.bus().make_endpoint("1000-e", OWNER).update_policy([PolicyEntry(NAME, ())])
    assert place.refusal(BUS + ENDPOINT) == (
        "bus[0].endpoint[0]",
        "cannot be made: there is an endpoint '1000-e'",
    )
