"""The records of LIST, CONN_INFO and BUS_CREATOR_INFO: who is in them, and who is not told."""

from __future__ import annotations

from errno import EINVAL, ENXIO, ESRCH
from struct import pack

import pytest
from broker_world import refused
from metadata_world import ALICE, BOB, Items, Town, a_process, decode_records

from kdbus_core.abi import (
    ATTACH_ALL,
    AccessLevel,
    AccessType,
    AttachFlag,
    HelloFlag,
    ItemType,
    ListFlag,
    MakeFlag,
)
from kdbus_core.connection import Connection
from kdbus_core.listing import connection_record, creator_record, list_records
from kdbus_core.metadata import Credentials, Creds, Process
from kdbus_core.names import ACTIVATOR, ALLOW_REPLACEMENT, IN_QUEUE, PRIMARY, QUEUE
from kdbus_core.namespaces import INITIAL_USER_NAMESPACE, UserNamespace
from kdbus_core.policy import Access, PolicyEntry

NAME = "org.example.Name"
OTHER = "org.example.Other"
EVERYTHING = int(ListFlag.UNIQUE | ListFlag.NAMES | ListFlag.ACTIVATORS | ListFlag.QUEUED)
NOBODY = 0x0FFF_FFFF_FFFF_FFFF
ROOM = 1 << 20


def owned(flags: int, name: str) -> Items:
    return [(ItemType.OWNED_NAME, pack("=Q", flags) + name.encode() + b"\0")]


def show(town: Town, *names: str) -> None:
    """The policy of the custom endpoint: everybody sees these names, and nothing else."""
    everybody = (Access(AccessType.WORLD, 0, AccessLevel.SEE),)
    town.custom_endpoint.update_policy([PolicyEntry(name, everybody) for name in names])


def listed(town: Town, reader: Connection, flags: int) -> list[tuple[int, Items]]:
    return [(id, items) for id, _, items in decode_records(list_records(town.bus, reader, flags, ROOM))]


def info(
    town: Town, reader: Connection, *, id: int = 0, name: str | None = None, mask: int = 0
) -> tuple[int, int, Items]:
    (record,) = decode_records(connection_record(town.bus, reader, id=id, name=name, mask=mask))
    return record


# LIST


class Square(Town):
    """An owner of two names, one who waits for the first, activators, a monitor and a policy holder."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = self.connect(flags=HelloFlag.ACCEPT_FD)
        self.queued = self.connect()
        self.activator = self.connect_activator(NAME)
        self.starter = self.connect_activator("org.example.Started")
        self.monitor = self.connect(flags=HelloFlag.MONITOR)
        self.holder = self.connect(flags=HelloFlag.POLICY_HOLDER, name="org.example.Held")
        self.names.acquire(self.owner, NAME, ALLOW_REPLACEMENT)
        self.names.acquire(self.owner, OTHER, 0)
        self.names.acquire(self.queued, NAME, QUEUE)


def test_everything_is_listed_one_place_at_a_name_a_record_and_never_a_monitor() -> None:
    square = Square()
    assert decode_records(list_records(square.bus, square.owner, EVERYTHING, ROOM)) == [
        (square.owner.id, HelloFlag.ACCEPT_FD, owned(PRIMARY | ALLOW_REPLACEMENT, NAME)),
        (square.owner.id, HelloFlag.ACCEPT_FD, owned(PRIMARY, OTHER)),
        (square.queued.id, 0, owned(IN_QUEUE | QUEUE, NAME)),
        (square.activator.id, HelloFlag.ACTIVATOR, owned(ACTIVATOR | IN_QUEUE, NAME)),
        (square.starter.id, HelloFlag.ACTIVATOR, owned(ACTIVATOR | PRIMARY, "org.example.Started")),
        (square.holder.id, HelloFlag.POLICY_HOLDER, []),
    ]


def test_names_are_those_of_owners() -> None:
    square = Square()
    assert listed(square, square.owner, ListFlag.NAMES) == [
        (square.owner.id, owned(PRIMARY | ALLOW_REPLACEMENT, NAME)),
        (square.owner.id, owned(PRIMARY, OTHER)),
    ]


def test_queued_are_those_that_wait_but_no_activators() -> None:
    square = Square()
    assert listed(square, square.owner, ListFlag.QUEUED) == [
        (square.queued.id, owned(IN_QUEUE | QUEUE, NAME))
    ]


def test_activators_are_listed_whether_they_stand_in_or_not() -> None:
    square = Square()
    assert listed(square, square.owner, ListFlag.ACTIVATORS) == [
        (square.activator.id, owned(ACTIVATOR | IN_QUEUE, NAME)),
        (square.starter.id, owned(ACTIVATOR | PRIMARY, "org.example.Started")),
    ]


def test_unique_lists_everybody_but_monitors_once() -> None:
    square = Square()
    everybody = [square.owner, square.queued, square.activator, square.starter, square.holder]
    assert listed(square, square.owner, ListFlag.UNIQUE) == [(connection.id, []) for connection in everybody]


def test_unique_adds_only_who_is_not_listed_with_a_name() -> None:
    square = Square()
    assert listed(square, square.owner, ListFlag.UNIQUE | ListFlag.QUEUED) == [
        (square.owner.id, []),
        (square.queued.id, owned(IN_QUEUE | QUEUE, NAME)),
        (square.activator.id, []),
        (square.starter.id, []),
        (square.holder.id, []),
    ]


def test_a_bare_record_has_24_bytes() -> None:
    town = Town()
    reader = town.connect(flags=HelloFlag.ACCEPT_FD)
    assert list_records(town.bus, reader, ListFlag.UNIQUE, ROOM) == pack("=3Q", 24, reader.id, 1)


@pytest.mark.parametrize("flags", [0, ListFlag.NAMES, ListFlag.QUEUED, ListFlag.ACTIVATORS])
def test_a_list_of_nothing_is_empty(flags: int) -> None:
    town = Town()
    assert list_records(town.bus, town.connect(), flags, ROOM) == b""


def test_even_a_monitor_is_not_listed_to_itself() -> None:
    town = Town()
    assert list_records(town.bus, town.connect(flags=HelloFlag.MONITOR), EVERYTHING, ROOM) == b""


def test_on_a_custom_endpoint_with_no_policy_nobody_is_listed() -> None:
    square = Square()
    reader = square.connect(BOB, endpoint=square.custom_endpoint)
    assert list_records(square.bus, reader, EVERYTHING, ROOM) == b""


def test_on_a_custom_endpoint_hidden_names_are_left_out() -> None:
    square = Square()
    reader = square.connect(BOB, endpoint=square.custom_endpoint)
    show(square, OTHER)
    assert listed(square, reader, EVERYTHING) == [(square.owner.id, owned(PRIMARY, OTHER))]


def test_on_a_custom_endpoint_who_has_a_visible_name_is_listed_without_it_too() -> None:
    square = Square()
    reader = square.connect(BOB, endpoint=square.custom_endpoint)
    show(square, OTHER)
    assert listed(square, reader, ListFlag.UNIQUE) == [(square.owner.id, [])]
    assert listed(square, reader, ListFlag.UNIQUE | ListFlag.QUEUED) == [(square.owner.id, [])]


def test_on_a_custom_endpoint_who_has_no_name_or_only_hidden_ones_is_not_listed() -> None:
    square = Square()
    square.connect()
    reader = square.connect(BOB, endpoint=square.custom_endpoint)
    show(square, "org.example.Started")
    assert listed(square, reader, ListFlag.UNIQUE) == [(square.starter.id, [])]


def test_on_the_default_endpoint_everybody_sees_everybody() -> None:
    square = Square()
    stranger = square.connect(BOB)
    assert (stranger.id, []) in listed(square, stranger, EVERYTHING)
    assert len(listed(square, stranger, ListFlag.NAMES)) == 2


# CONN_INFO


def test_of_a_connection_its_id_hello_flags_and_what_was_asked_for_are_told() -> None:
    town = Town()
    subject = town.connect(flags=HelloFlag.ACCEPT_FD, description="a subject")
    reader = town.connect(BOB)
    mask = int(AttachFlag.PIDS | AttachFlag.CONN_DESCRIPTION)
    assert info(town, reader, id=subject.id, mask=mask) == (
        subject.id,
        HelloFlag.ACCEPT_FD,
        [(ItemType.PIDS, pack("=3Q", 301, 302, 300)), (ItemType.CONN_DESCRIPTION, b"a subject\0")],
    )


def test_nothing_asked_for_is_a_bare_record() -> None:
    town = Town()
    reader = town.connect()
    assert connection_record(town.bus, reader, id=reader.id, name=None, mask=0) == pack(
        "=3Q", 24, reader.id, 0
    )


def test_all_bits_set_asks_for_everything_that_is_granted() -> None:
    town = Town()
    subject = town.connect(attach_send=AttachFlag.EXE | AttachFlag.TIMESTAMP)
    _, _, items = info(town, town.connect(BOB), id=subject.id, mask=2**64 - 1)
    assert items == [(ItemType.EXE, b"/usr/bin/alice\0")]


def test_names_it_owns_are_told_and_those_it_waits_for_are_not() -> None:
    square = Square()
    square.names.acquire(square.queued, "org.example.Own", QUEUE)
    _, _, items = info(square, square.owner, id=square.queued.id, mask=AttachFlag.NAMES)
    assert items == owned(PRIMARY | QUEUE, "org.example.Own")


def test_a_name_leads_to_its_owner_and_without_one_to_its_activator() -> None:
    square = Square()
    assert info(square, square.queued, name=NAME)[0] == square.owner.id
    assert info(square, square.queued, name="org.example.Started")[:2] == (
        square.starter.id,
        HelloFlag.ACTIVATOR,
    )


@pytest.mark.parametrize("kind", ["owner", "queued", "activator", "starter", "holder"])
def test_every_kind_of_connection_is_found_by_its_id(kind: str) -> None:
    square = Square()
    subject = getattr(square, kind)
    assert info(square, square.connect(BOB), id=subject.id)[:2] == (subject.id, subject.flags)


def test_a_monitor_is_found_by_nobody_but_itself() -> None:
    square = Square()
    other_monitor = square.connect(flags=HelloFlag.MONITOR)
    assert info(square, square.monitor, id=square.monitor.id)[0] == square.monitor.id
    for reader in (square.owner, other_monitor):
        with refused(ENXIO):
            info(square, reader, id=square.monitor.id)


def test_a_name_and_an_id_have_to_be_of_the_same_connection() -> None:
    square = Square()
    assert info(square, square.owner, name=NAME, id=square.owner.id)[0] == square.owner.id
    for id in (square.queued.id, square.activator.id, square.monitor.id, NOBODY, 2**64 - 1):
        with refused(ESRCH):
            info(square, square.owner, name=NAME, id=id)


@pytest.mark.parametrize("name", ["non.existent.name", "", "not a name", ":1.2", "org.example.*"])
def test_a_name_that_nobody_has_is_not_found(name: str) -> None:
    square = Square()
    for id in (0, square.owner.id):
        with refused(ESRCH):
            info(square, square.owner, name=name, id=id)


@pytest.mark.parametrize("id", [1, NOBODY, 2**64 - 1])
def test_an_id_that_nobody_has_is_not_found(id: int) -> None:
    square = Square()
    with refused(ENXIO):
        info(square, square.owner, id=id)


def test_with_neither_a_name_nor_an_id_there_is_nothing_to_look_for() -> None:
    town = Town()
    with refused(EINVAL):
        info(town, town.connect())


@pytest.mark.parametrize("what", [{"id": NOBODY}, {"name": "non.existent.name"}, {"id": 2}])
def test_unknown_metadata_is_refused_before_anything_is_looked_up(what: dict[str, object]) -> None:
    town = Town()
    reader = town.connect()
    with refused(EINVAL):
        info(town, reader, mask=ATTACH_ALL + 1, **what)  # type: ignore[arg-type]  # as `info` has them


def test_on_a_custom_endpoint_what_is_hidden_looks_as_if_it_were_not_there() -> None:
    square = Square()
    reader = square.connect(BOB, endpoint=square.custom_endpoint)
    for name in (NAME, "random.crappy.name"):
        with refused(ESRCH):
            info(square, reader, name=name)
        with refused(ESRCH):
            info(square, reader, name=name, id=square.owner.id)
    for id in (square.owner.id, square.monitor.id, NOBODY):
        with refused(ENXIO):
            info(square, reader, id=id)


def test_on_a_custom_endpoint_one_visible_name_shows_the_connection() -> None:
    square = Square()
    reader = square.connect(BOB, endpoint=square.custom_endpoint)
    show(square, OTHER)
    assert info(square, reader, name=OTHER)[0] == square.owner.id
    assert info(square, reader, id=square.owner.id)[0] == square.owner.id
    with refused(ESRCH):
        info(square, reader, name=NAME)


def test_on_a_custom_endpoint_a_name_one_waits_for_shows_nobody() -> None:
    square = Square()
    reader = square.connect(BOB, endpoint=square.custom_endpoint)
    show(square, NAME)
    with refused(ENXIO):
        info(square, reader, id=square.queued.id)


def test_on_a_custom_endpoint_without_a_visible_name_one_does_not_even_find_oneself() -> None:
    square = Square()
    reader = square.connect(BOB, endpoint=square.custom_endpoint)
    with refused(ENXIO):
        info(square, reader, id=reader.id)


def test_what_is_told_is_as_the_reader_has_it() -> None:
    town = Town()
    container = UserNamespace(INITIAL_USER_NAMESPACE, (), ())
    reader = town.connect(a_process(user_namespace=container))
    _, _, items = info(town, reader, id=town.connect(a_process()).id, mask=AttachFlag.CREDS)
    assert items == [(ItemType.CREDS, pack("=8Q", *[65534] * 8))]


# BUS_CREATOR_INFO

OF_BUS = (ItemType.MAKE_NAME, b"1002-town\0")


def test_of_the_bus_its_id_flags_and_name_are_told_and_what_is_granted_of_its_creator() -> None:
    town = Town(flags=MakeFlag.ACCESS_WORLD, creator_mask=int(AttachFlag.PIDS | AttachFlag.EXE))
    reader = town.connect(BOB)
    (record,) = decode_records(creator_record(town.bus, reader, 2**64 - 1))
    pids, exe = (ItemType.PIDS, pack("=3Q", 301, 302, 300)), (ItemType.EXE, b"/usr/bin/alice\0")
    assert record == (1, MakeFlag.ACCESS_WORLD, [OF_BUS, pids, exe])
    (record,) = decode_records(creator_record(town.bus, reader, AttachFlag.EXE | AttachFlag.CREDS))
    assert record == (1, MakeFlag.ACCESS_WORLD, [OF_BUS, exe])


def test_of_a_creator_that_grants_nothing_nothing_is_told() -> None:
    town = Town(creator_mask=0)
    (record,) = decode_records(creator_record(town.bus, town.connect(), ATTACH_ALL))
    assert record == (1, 0, [OF_BUS])


def test_of_a_creator_there_are_no_names_no_description_and_no_time() -> None:
    town = Town(creator=ALICE)
    town.names.acquire(town.connect(ALICE, description="the creator"), NAME, 0)
    (record,) = decode_records(creator_record(town.bus, town.connect(BOB), ATTACH_ALL))
    types = [type for type, _ in record[2]]
    assert types == [ItemType.MAKE_NAME, *range(ItemType.CREDS, ItemType.OWNED_NAME), *range(0x1005, 0x100D)]


def test_what_is_unknown_of_a_creator_is_left_out() -> None:
    town = Town(creator=Process.of(Credentials(uid=1002, groups=())))
    (record,) = decode_records(creator_record(town.bus, town.connect(BOB), ATTACH_ALL))
    creds = Creds(euid=1002)
    assert record[2] == [OF_BUS, (ItemType.CREDS, pack("=8Q", *creds)), (ItemType.AUXGROUPS, b"")]


def test_unknown_metadata_of_a_creator_is_refused() -> None:
    town = Town()
    with refused(EINVAL):
        creator_record(town.bus, town.connect(), ATTACH_ALL + 1)
