"""D-Bus clients beside native connections, which no D-Bus message can reach.

To a client such a neighbour looks as if it were not there: what is sent to it is answered with an error, and
the client stays.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.proxy import Client, World
from support.raw import METHOD_CALL, NO_AUTO_START, NO_REPLY_EXPECTED, SIGNAL, Message

from kdbus_core import Pool
from kdbus_core.abi import PAGE_SIZE, HelloFlag
from kdbus_core.connection import Connection

NAME = "com.example.Native"
NO_FLAGS = HelloFlag(0)
SERVICE_UNKNOWN = "org.freedesktop.DBus.Error.ServiceUnknown"
NAME_HAS_NO_OWNER = "org.freedesktop.DBus.Error.NameHasNoOwner"

DESTINATIONS = ["id of a connection", "name of a connection", "id of an activator", "name of an activator"]


@pytest.fixture
def world() -> Iterator[World]:
    """A bus with two D-Bus clients."""
    with World() as world:
        for label in ("client", "other"):
            world.join(label)
        world.collect()
        yield world


def connect_native(world: World, flags: HelloFlag = NO_FLAGS, name: str | None = None) -> Connection:
    bus = world.bus
    return bus.hello(bus.endpoint, bus.creator, pool=Pool(16 * PAGE_SIZE), flags=flags, name=name)


def destination(world: World, kind: str) -> tuple[Connection, str]:
    """A native connection, and where a D-Bus client would write to."""
    if kind.endswith("activator"):
        native = connect_native(world, HelloFlag.ACTIVATOR, NAME)
    else:
        native = connect_native(world)
        world.bus.name_acquire(native, NAME, 0)
    return native, NAME if kind.startswith("name") else f":1.{native.id}"


def call(to: str, flags: int = 0) -> Message:
    fields = {"path": "/a", "interface": "a.b", "member": "M", "destination": to}
    return Message(METHOD_CALL, flags=flags, fields=fields)


def signal(to: str) -> Message:
    return Message(SIGNAL, fields={"path": "/a", "interface": "a.b", "member": "S", "destination": to})


def errors(client: Client, serial: int) -> list[str | None]:
    """What has come in answer to a message; there must be nothing else."""
    messages = client.messages()
    assert all(message.fields.get("reply_serial") == serial for message in messages)
    return [message.error_name for message in messages]


def assert_well(world: World) -> None:
    """Both clients are served as ever."""
    client, other = world["client"], world["other"]
    assert not client.peer.closed
    serial = client.send(call(other.unique_name))
    assert [message.serial for message in other.messages()] == [serial]


@pytest.mark.parametrize("kind", DESTINATIONS)
def test_a_call_to_a_native_connection_is_answered_with_an_error(world: World, kind: str) -> None:
    native, to = destination(world, kind)
    client = world["client"]
    for _ in range(2):
        assert errors(client, client.send(call(to))) == [SERVICE_UNKNOWN]
    assert native.inbox is not None
    assert len(native.inbox) == 0
    assert_well(world)


@pytest.mark.parametrize("kind", DESTINATIONS)
def test_a_call_that_starts_nothing_is_told_that_nobody_is_there(world: World, kind: str) -> None:
    _, to = destination(world, kind)
    client = world["client"]
    serial = client.send(call(to, NO_AUTO_START))
    assert errors(client, serial) == [NAME_HAS_NO_OWNER]
    assert_well(world)


@pytest.mark.parametrize("kind", DESTINATIONS)
def test_a_message_that_wants_no_reply_does_no_harm(world: World, kind: str) -> None:
    native, to = destination(world, kind)
    client = world["client"]
    client.send(call(to, NO_REPLY_EXPECTED))
    client.send(signal(to))
    assert native.inbox is not None
    assert len(native.inbox) == 0
    assert_well(world)


def test_a_client_that_had_the_name_before_is_written_to_no_more(world: World) -> None:
    """The way that messages took before is not kept."""
    client, other = world["client"], world["other"]
    other.request_name(NAME)
    for _ in range(2):
        client.send(call(NAME))
    assert len([message for message in other.messages() if message.type == METHOD_CALL]) == 2
    other.release_name(NAME)
    other.messages()
    world.bus.name_acquire(connect_native(world), NAME, 0)
    client.messages()
    assert errors(client, client.send(call(NAME))) == [SERVICE_UNKNOWN]
    assert other.messages() == []
    assert_well(world)
