"""D-Bus clients beside native connections: to the driver and its signals those are peers like any other."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.neighbour import Neighbour
from support.proxy import OWNER_UID, Client, World
from support.raw import DRIVER, METHOD_CALL, Message

from kdbus_core import Pool
from kdbus_core.abi import ATTACH_ALL, PAGE_SIZE, AttachFlag, HelloFlag
from kdbus_core.names import ALLOW_REPLACEMENT, QUEUE, REPLACE_EXISTING

NAME = "com.example.Native"
SPECIAL = [HelloFlag.MONITOR, HelloFlag.ACTIVATOR, HelloFlag.POLICY_HOLDER]
PREFIX = "org.freedesktop.DBus.Error."


@pytest.fixture
def world() -> Iterator[World]:
    """A bus with one client and its news about names, which nobody has read."""
    with World() as world:
        world.join("client")
        world["client"].add_match("sender='org.freedesktop.DBus'")
        world.collect()
        yield world


def ask(client: Client, member: str, signature: str = "", *arguments: object) -> object:
    """What the driver answers: the one value, or the name of an error."""
    reply = client.call(member, signature, *arguments)
    if reply.error_name is not None:
        return reply.error_name.removeprefix(PREFIX)
    return reply.body[0] if reply.body else None


def news(world: World) -> list[tuple[str, ...]]:
    """What the client was told about names."""
    return [(message.member, *message.body) for message in world["client"].messages()]


# What there is


def test_a_native_is_listed_and_asked_about_like_a_client(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    world.bus.name_acquire(native.connection, NAME, 0)
    names = ask(client, "ListNames")
    assert isinstance(names, list)
    assert {native.unique_name, NAME} <= set(names)
    assert ask(client, "NameHasOwner", "s", native.unique_name) is True
    assert ask(client, "NameHasOwner", "s", NAME) is True
    assert ask(client, "GetNameOwner", "s", NAME) == native.unique_name
    assert ask(client, "GetNameOwner", "s", native.unique_name) == native.unique_name
    assert ask(client, "ListQueuedOwners", "s", NAME) == [native.unique_name]
    assert ask(client, "StartServiceByName", "su", NAME, 0) == "ServiceUnknown"


@pytest.mark.parametrize("flags", SPECIAL)
def test_special_connections_are_nobody(world: World, flags: HelloFlag) -> None:
    native = Neighbour(world, flags=flags, name=None if flags is HelloFlag.MONITOR else NAME)
    client = world["client"]
    assert news(world) == []
    names = ask(client, "ListNames")
    assert isinstance(names, list)
    assert native.unique_name not in names
    assert NAME not in names
    assert ask(client, "NameHasOwner", "s", native.unique_name) is False
    assert ask(client, "GetNameOwner", "s", NAME) == "NameHasNoOwner"
    assert ask(client, "GetConnectionUnixUser", "s", native.unique_name) == "NameHasNoOwner"
    client.messages()
    native.leave()
    assert news(world) == []


def test_credentials_of_a_native_are_those_of_its_process(world: World) -> None:
    native, client = Neighbour(world, uid=1234), world["client"]
    assert ask(client, "GetConnectionUnixUser", "s", native.unique_name) == 1234
    assert ask(client, "GetConnectionUnixProcessID", "s", native.unique_name) == os.getpid()
    known = ask(client, "GetConnectionCredentials", "s", native.unique_name)
    assert isinstance(known, dict)
    assert {key: value[1] for key, value in known.items()} == {"UnixUserID": 1234, "ProcessID": os.getpid()}


def test_statistics_of_a_native_are_what_there_is_of_it(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    native.add_match(1, "type='signal',interface='a.b'")
    interface = "org.freedesktop.DBus.Debug.Stats"
    (figures,) = client.call("GetConnectionStats", "s", native.unique_name, interface=interface).body
    assert figures["UniqueName"][1] == native.unique_name
    assert figures["BusNames"][1] == 1
    assert figures["MatchRules"][1] == 1
    assert "Flows" not in figures
    (rules,) = client.call("GetAllMatchRules", interface=interface).body
    assert set(rules) == {client.unique_name}


# What changes


def test_clients_are_told_of_natives_that_come_and_go(world: World) -> None:
    native = Neighbour(world)
    native.leave()
    name = native.unique_name
    assert news(world) == [("NameOwnerChanged", name, "", name), ("NameOwnerChanged", name, name, "")]


def test_clients_are_told_of_names_of_natives(world: World) -> None:
    native, other = Neighbour(world), Neighbour(world)
    news(world)
    world.bus.name_acquire(native.connection, NAME, ALLOW_REPLACEMENT)
    world.bus.name_acquire(other.connection, NAME, REPLACE_EXISTING)
    world.bus.name_release(other.connection, NAME)
    assert news(world) == [
        ("NameOwnerChanged", NAME, "", native.unique_name),
        ("NameOwnerChanged", NAME, native.unique_name, other.unique_name),
        ("NameOwnerChanged", NAME, other.unique_name, ""),
    ]


def test_a_name_goes_from_one_kind_to_the_other_and_back(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    news(world)
    native.bus.match_add(native.connection, 1, [])
    client.request_name(NAME, 1)
    world.bus.name_acquire(native.connection, NAME, REPLACE_EXISTING | ALLOW_REPLACEMENT | QUEUE)
    client.request_name(NAME, 2)
    mine, theirs = client.unique_name, native.unique_name
    assert news(world) == [
        ("NameOwnerChanged", NAME, "", mine),
        ("NameAcquired", NAME),
        ("NameLost", NAME),
        ("NameOwnerChanged", NAME, mine, theirs),
        ("NameOwnerChanged", NAME, theirs, mine),
        ("NameAcquired", NAME),
    ]
    words = [words for words in native.words() if words.startswith("NAME")]
    assert words == [f"NAME_ADD {NAME}", f"NAME_CHANGE {NAME}", f"NAME_CHANGE {NAME}"]


def test_natives_are_told_of_clients_as_of_any_connection(world: World) -> None:
    native = Neighbour(world)
    native.bus.match_add(native.connection, 1, [])
    other = world.join("other")
    other.request_name(NAME)
    other.leave()
    assert native.words() == ["ID_ADD", f"NAME_ADD {NAME}", f"NAME_REMOVE {NAME}", "ID_REMOVE"]


def test_a_client_that_becomes_a_monitor_has_gone_for_natives(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    native.bus.match_add(native.connection, 1, [])
    cookie = native.call(client.unique_name)
    client.become_monitor()
    assert native.words() == ["ID_REMOVE", f"REPLY_DEAD {cookie}"]


def test_in_a_queue_both_kinds_wait_for_a_name(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    world.bus.name_acquire(native.connection, NAME, 0)
    client.request_name(NAME)
    assert ask(client, "ListQueuedOwners", "s", NAME) == [native.unique_name, client.unique_name]
    news(world)
    native.leave()
    assert ("NameAcquired", NAME) in news(world)
    assert ask(client, "GetNameOwner", "s", NAME) == client.unique_name


def test_the_end_of_a_bus_with_both_kinds_leaves_nothing(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    native.call(client.unique_name)
    client.send(
        Message(
            METHOD_CALL,
            fields={"path": "/a", "interface": "a.b", "member": "M", "destination": native.unique_name},
        )
    )
    client.leave()
    native.leave()
    assert not world.bus.connections
    assert world.bus.order.is_idle
    assert not native.connection.quota.shares
    assert not client.peer.quota.shares


def test_a_pool_of_a_native_is_its_own(world: World) -> None:
    """A connection made with a pool and without a sink is native, whoever made it."""
    bus = world.bus
    connection = bus.hello(bus.endpoint, bus.creator, pool=Pool(16 * PAGE_SIZE))
    world["client"].send(
        Message(
            METHOD_CALL,
            fields={
                "path": "/a",
                "interface": "a.b",
                "member": "M",
                "destination": f":1.{connection.id}",
            },
        )
    )
    assert connection.inbox is not None
    assert len(connection.inbox) == 1


def test_the_name_of_the_bus_is_the_drivers_even_where_a_native_has_it(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    news(world)
    world.bus.name_acquire(native.connection, DRIVER, 0)
    assert news(world) == []
    names = ask(client, "ListNames")
    assert isinstance(names, list)
    assert names.count(DRIVER) == 1
    assert ask(client, "GetNameOwner", "s", DRIVER) == DRIVER
    assert native.mail() == []
    native.signal(member="NameOwnerChanged", interface=DRIVER)
    assert news(world) == []
    world.bus.name_release(native.connection, DRIVER)
    assert news(world) == []


@pytest.mark.parametrize(
    ("granted", "known"),
    [
        (ATTACH_ALL, {"UnixUserID", "ProcessID"}),
        (AttachFlag.CREDS, {"UnixUserID"}),
        (AttachFlag.PIDS, {"ProcessID"}),
        (AttachFlag(0), set()),
    ],
)
def test_of_a_native_is_told_what_it_grants(world: World, granted: AttachFlag, known: set[str]) -> None:
    """As CONN_INFO does, which is what a proxy before another broker has to go by."""
    native, client = Neighbour(world), world["client"]
    world.bus.update(native.connection, attach_send=int(granted))
    answer = ask(client, "GetConnectionCredentials", "s", native.unique_name)
    assert isinstance(answer, dict)
    assert set(answer) == known
    user = ask(client, "GetConnectionUnixUser", "s", native.unique_name)
    assert user == (OWNER_UID if "UnixUserID" in known else "Failed")
    process = ask(client, "GetConnectionUnixProcessID", "s", native.unique_name)
    assert process == (os.getpid() if "ProcessID" in known else "UnixProcessIdUnknown")
