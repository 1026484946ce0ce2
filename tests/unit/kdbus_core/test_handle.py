"""Handles: what each takes, what each owns, when it is ready, and how it ends."""

from __future__ import annotations

from errno import (
    EACCES,
    EBADF,
    EBADFD,
    EFAULT,
    EINVAL,
    ENOTTY,
    EPERM,
    ESHUTDOWN,
)

import pytest
from handle_world import (
    OWNER,
    OWNER_UID,
    POOL_SIZE,
    ROOT,
    STRANGER,
    Client,
    HandleWorld,
    bloom_filter,
    bloom_parameter,
    build_command,
    build_message,
    name_item,
    refused,
)

from kdbus_core.abi import (
    DST_BROADCAST,
    Command,
    ItemType,
    MakeFlag,
    MessageFlag,
)
from kdbus_core.handle import Handle, HandleState, PollFlag
from kdbus_core.items import build_item
from kdbus_core.metadata import Credentials, Process

MAKE_NAME = ItemType.MAKE_NAME
OF_CONNECTIONS = {
    Command.BYEBYE,
    Command.NAME_ACQUIRE,
    Command.NAME_RELEASE,
    Command.LIST,
    Command.CONN_INFO,
    Command.BUS_CREATOR_INFO,
    Command.UPDATE,
    Command.MATCH_ADD,
    Command.MATCH_REMOVE,
    Command.SEND,
    Command.RECV,
    Command.FREE,
    Command.MSG_CANCEL,
}
UNKNOWN = [0, 0x9502, 0x40189512, 0xC0609581, (1 << 32) - 1, -1]


def make_domain(client: Client, name: str = "inner") -> None:
    client.run(Command.DOMAIN_MAKE, items=[name_item(name, MAKE_NAME)])


def handle_in(world: HandleWorld, state: str) -> Client:
    match state:
        case "fresh, of a control node":
            return world.open(world.domain)
        case "bus owner":
            return world.maker
        case "domain owner":
            client = world.open(world.domain, ROOT)
            make_domain(client)
            return client
        case "fresh, of an endpoint":
            return world.open()
        case "endpoint owner":
            return world.make_endpoint()[0]
        case _:
            return world.connect()


TAKEN = {
    "fresh, of a control node": {Command.BUS_MAKE, Command.DOMAIN_MAKE},
    "bus owner": set(),
    "domain owner": set(),
    "fresh, of an endpoint": {Command.HELLO, Command.ENDPOINT_MAKE},
    "endpoint owner": {Command.ENDPOINT_UPDATE},
    "connected": OF_CONNECTIONS,
}


@pytest.mark.parametrize("state", TAKEN)
@pytest.mark.parametrize("command", list(Command))
def test_a_handle_takes_what_its_state_takes_and_nothing_else(state: str, command: Command) -> None:
    client = handle_in(HandleWorld(), state)
    # Nothing can be read there, so a command that is taken ends with EFAULT, or with EPERM before that.
    expected = EBADFD
    if command in TAKEN[state]:
        expected = EPERM if command is Command.DOMAIN_MAKE else EFAULT
    with refused(expected):
        client.handle.ioctl(client.thread, command, 0)


@pytest.mark.parametrize("state", TAKEN)
@pytest.mark.parametrize("request_number", UNKNOWN)
def test_a_command_that_does_not_exist_is_enotty_in_every_state(state: str, request_number: int) -> None:
    client = handle_in(HandleWorld(), state)
    with refused(ENOTTY):
        client.handle.ioctl(client.thread, request_number, 0)


def test_the_table_of_this_test_has_every_command() -> None:
    assert set().union(*TAKEN.values()) == set(Command)


# Opening


def test_a_node_is_opened_by_whom_its_mode_lets_in() -> None:
    world = HandleWorld(access=MakeFlag(0))
    Handle(world.bus.endpoint, OWNER)
    Handle(world.bus.endpoint, ROOT)
    with refused(EACCES):
        Handle(world.bus.endpoint, STRANGER)


def test_a_control_node_is_opened_by_everybody() -> None:
    assert Handle(HandleWorld().domain, STRANGER).state is HandleState.NONE


def test_a_node_that_has_gone_cannot_be_opened_even_by_those_who_may_not() -> None:
    world = HandleWorld(access=MakeFlag(0))
    endpoint = world.bus.endpoint
    world.maker.handle.close()
    with refused(ESHUTDOWN):
        Handle(endpoint, STRANGER)
    world.domain.close()
    with refused(ESHUTDOWN):
        Handle(world.domain, OWNER)


# When what is underneath has gone


def test_a_fresh_handle_of_an_endpoint_that_has_gone_is_shut_down() -> None:
    world = HandleWorld()
    maker, endpoint = world.make_endpoint()
    fresh, default = world.open(endpoint), world.open()
    maker.handle.close()
    with refused(ESHUTDOWN):
        fresh.hello()
    world.maker.handle.close()
    with refused(ESHUTDOWN):
        default.hello()
    with refused(ESHUTDOWN):
        default.run(Command.ENDPOINT_MAKE)
    with refused(EBADFD):
        default.run(Command.LIST)


def test_an_endpoint_owner_whose_bus_has_gone_is_shut_down() -> None:
    world = HandleWorld()
    maker, _ = world.make_endpoint()
    world.maker.handle.close()
    with refused(ESHUTDOWN):
        maker.run(Command.ENDPOINT_UPDATE)


@pytest.mark.parametrize("command", sorted(OF_CONNECTIONS))
@pytest.mark.parametrize("kind", ["ordinary", "monitor", "activator", "policy holder"])
def test_after_its_end_every_command_of_a_connection_is_shut_down(kind: str, command: Command) -> None:
    world = HandleWorld()
    client = world.connect_kind(kind)
    assert client.handle.connection is not None
    world.bus.disconnect(client.handle.connection)
    with refused(ESHUTDOWN):
        client.handle.ioctl(client.thread, command, 0)


def test_every_handle_of_a_closed_domain_is_shut_down() -> None:
    world = HandleWorld()
    client, fresh, control = world.connect(), world.open(), world.open(world.domain)
    world.domain.close()
    for used, command in (
        (client, Command.LIST),
        (fresh, Command.HELLO),
        (control, Command.BUS_MAKE),
    ):
        with refused(ESHUTDOWN):
            used.run(command)


# poll


IDLE = PollFlag.OUT | PollFlag.WRNORM
READABLE = IDLE | PollFlag.IN | PollFlag.RDNORM
DEAD = PollFlag.ERR | PollFlag.HUP


def test_what_is_not_connected_is_in_error_when_polled() -> None:
    world = HandleWorld()
    for state in TAKEN.keys() - {"connected"}:
        assert handle_in(HandleWorld(), state).handle.poll() == DEAD
    assert world.open().handle.poll() == DEAD


def test_a_connection_can_be_read_while_something_is_queued() -> None:
    world = HandleWorld()
    client = world.connect()
    assert client.handle.poll() == IDLE
    client.send(build_message(dst_id=client.id))
    assert client.handle.poll() == READABLE
    client.receive()
    assert client.handle.poll() == IDLE


def test_a_connection_can_be_read_while_something_was_lost() -> None:
    world = HandleWorld()
    small, sender = world.connect(pool_size=4096), world.connect()
    small.run(Command.MATCH_ADD)
    vec = build_item(ItemType.PAYLOAD_VEC, (4096).to_bytes(8, "little") + (0x8000).to_bytes(8, "little"))
    sender.thread.blocks.append(type(sender.thread.blocks[0])(0x8000, bytearray(4096)))
    sender.send(build_message(dst_id=DST_BROADCAST, flags=MessageFlag.SIGNAL, items=[vec, bloom_filter()]))
    assert small.handle.poll() == READABLE


def test_a_dead_connection_is_in_error_when_polled() -> None:
    world = HandleWorld()
    client = world.connect()
    client.run(Command.BYEBYE)
    assert client.handle.poll() == DEAD


def test_whoever_opened_the_handle_is_told_when_there_is_something_to_receive() -> None:
    world = HandleWorld()
    calls: list[int] = []
    client = Client(Handle(world.bus.endpoint, OWNER, on_ready=lambda: calls.append(1)))
    client.hello()
    assert calls == []
    client.send(build_message(dst_id=client.id))
    assert calls == [1]


# The pool


def test_a_pool_is_mapped_up_to_its_size_and_for_reading_only() -> None:
    client = HandleWorld().connect()
    assert client.handle.map_pool(POOL_SIZE, writable=False).size == POOL_SIZE
    client.handle.map_pool(4096, writable=False)
    with refused(EFAULT):
        client.handle.map_pool(POOL_SIZE + 1, writable=False)
    for length in (4096, POOL_SIZE + 1):
        with refused(EPERM):
            client.handle.map_pool(length, writable=True)


@pytest.mark.parametrize("state", sorted(TAKEN.keys() - {"connected"}))
def test_what_is_not_connected_has_no_pool(state: str) -> None:
    with refused(EBADFD):
        handle_in(HandleWorld(), state).handle.map_pool(4096, writable=True)


def test_a_pool_can_be_mapped_after_the_connection_ended() -> None:
    client = HandleWorld().connect()
    client.run(Command.BYEBYE)
    assert client.handle.map_pool(4096, writable=False).size == POOL_SIZE


# Closing


@pytest.mark.parametrize("state", TAKEN)
def test_closing_ends_what_a_handle_owns_and_can_be_repeated(state: str) -> None:
    world = HandleWorld()
    client = handle_in(world, state)
    for _ in range(2):
        client.handle.close()
    if client is world.maker:
        assert not world.domain.buses
    else:
        world.maker.handle.close()
    assert not world.bus.connections
    assert list(world.bus.endpoints) == []
    assert not world.domain.domains


@pytest.mark.parametrize("state", TAKEN)
def test_a_closed_handle_takes_nothing(state: str) -> None:
    world = HandleWorld()
    client = handle_in(world, state)
    client.handle.close()
    for command in Command:
        with refused(EBADF):
            client.run(command)
    assert client.handle.connection is None or not client.handle.connection.active


def test_closing_a_connection_throws_away_what_is_queued() -> None:
    world = HandleWorld()
    client, sender = world.connect(), world.connect()
    sender.send(build_message(dst_id=client.id))
    client.handle.close()
    assert client.handle.connection is not None
    assert not client.handle.connection.active
    assert client.busy == 0


def test_a_process_is_judged_as_it_was_when_it_opened_the_handle() -> None:
    """The uid counts on the handle, not the thread that happens to use it."""
    world = HandleWorld()
    thread = world.open(process=STRANGER).thread
    owner = Client(Handle(world.bus.endpoint, OWNER), thread)
    owner.run(Command.ENDPOINT_MAKE, items=[name_item(f"{OWNER_UID}-door", MAKE_NAME)])
    assert owner.handle.process is OWNER


def test_nobody_without_a_known_uid_makes_a_bus() -> None:
    world = HandleWorld()
    with refused(EINVAL):
        world.make_bus(world.open(world.domain, Process.of(Credentials())), "0-bus")


def test_the_results_of_a_command_that_needs_unwritable_memory_are_not_there() -> None:
    world = HandleWorld()
    client = world.open(world.domain)
    data = build_command(Command.BUS_MAKE, items=[name_item(f"{OWNER_UID}-x", MAKE_NAME), bloom_parameter()])
    with refused(EFAULT):
        client.handle.ioctl(client.thread, Command.BUS_MAKE, client.thread.put(data, writable=False))
    assert list(world.domain.buses) == [f"{OWNER_UID}-bus"]
