"""What happens between the moment in which something was looked at and that in which it is told.

The broker goes on while the proxy reads, asks and sends.  Each test has one thing happen in such a moment.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from errno import EMFILE
from typing import Any

import pytest
from support.proxy import Client, count_own_fds
from support.raw import ERROR, METHOD_CALL, METHOD_RETURN, NO_REPLY_EXPECTED, Message
from support.split import SplitWorld, Stranger

from busproxy.core import broker
from busproxy.core.incoming import MAX_BYTES_AT_ONCE, MAX_FDS_AT_ONCE, Intake
from kdbus_core.abi import HelloFlag
from kdbus_core.errors import KdbusError
from kdbus_core.message import Memfd, Vec
from kdbus_core.transport.files import OpenFile, make_memfd

NAME = "com.example.Name"
NO_REPLY = "org.freedesktop.DBus.Error.NoReply"


def call(destination: str, member: str = "M", serial: int = 0, flags: int = 0) -> Message:
    fields = {"path": "/", "member": member, "destination": destination}
    return Message(METHOD_CALL, serial=serial, flags=flags, fields=fields)


def answer(to: Message) -> Message:
    fields = {"destination": to.fields["sender"], "reply_serial": to.serial}
    return Message(METHOD_RETURN, flags=NO_REPLY_EXPECTED, fields=fields)


def words(client: Client) -> list[str]:
    return [
        f"{message.member} {message.body[0]}"
        if message.member in ("NameAcquired", "NameLost", "NameOwnerChanged")
        else message.error_name or message.member or f"reply to {message.fields['reply_serial']}"
        for message in client.messages()
    ]


def act_after(owner: Any, method: str, act: Callable[[], object]) -> None:
    """Have something done once, when a method of an object has been called."""
    original = getattr(owner, method)

    def both(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        setattr(owner, method, original)
        act()
        return result

    setattr(owner, method, both)


def act_before(owner: Any, method: str, act: Callable[[], object]) -> None:
    """Have something done once, before a method of an object is called."""
    original = getattr(owner, method)

    def both(*args: Any, **kwargs: Any) -> Any:
        setattr(owner, method, original)
        act()
        return original(*args, **kwargs)

    setattr(owner, method, both)


# Messages of our own clients that have crossed the broker


def test_what_waited_at_another_ones_activator_reaches_our_client(world: SplitWorld) -> None:
    with Stranger(world, flags=HelloFlag.ACTIVATOR, name=NAME):
        world.settle()
        caller, service = world.join("caller"), world.join("service")
        caller.messages()
        serial = caller.send(call(NAME))
        caller.send(call(NAME, "N", flags=NO_REPLY_EXPECTED))
        service.messages()
        assert service.request_name(NAME) == 1
        received = service.messages()
        assert [message.member for message in received] == ["NameAcquired", "M", "N"]
        assert received[1].fields["sender"] == caller.unique_name
        service.send(answer(received[1]))
        assert words(caller) == [f"reply to {serial}"]
        assert not caller.connection.outstanding
        service.send(answer(received[1]))


def test_requests_that_came_that_way_are_open_nowhere_afterwards(world: SplitWorld) -> None:
    with Stranger(world, flags=HelloFlag.ACTIVATOR, name=NAME):
        world.settle()
        caller, service = world.join("caller"), world.join("service")
        serial = caller.send(call(NAME))
        service.request_name(NAME)
        request = next(message for message in service.messages() if message.type == METHOD_CALL)
        caller.messages()
        service.leave()
        assert words(caller) == [NO_REPLY]
        assert request.serial == serial
        assert not caller.connection.outstanding
        with Stranger(world) as stranger:
            world.settle()
            caller.send(call(stranger.unique_name, serial=serial))
            stranger.answer(stranger.one())
            assert words(caller) == [f"reply to {serial}"]


def test_a_call_to_a_name_that_has_just_become_a_clients_reaches_it(
    world: SplitWorld, stranger: Stranger
) -> None:
    caller, heir = world.join("caller"), world.join("heir")
    stranger.acquire(NAME)
    world.settle()
    assert heir.request_name(NAME) == 2
    for client in (caller, heir):
        client.messages()
    act_after(world.bus, "resolve", lambda: stranger.release(NAME))
    serial = caller.send(call(NAME))
    received = heir.messages()
    assert [message.member for message in received] == ["NameAcquired", "M"]
    heir.send(answer(received[1]))
    assert words(caller) == [f"reply to {serial}"]


# Names that move while they are looked at


def test_a_name_that_moves_while_its_queue_is_looked_at_is_told_of(
    world: SplitWorld, stranger: Stranger
) -> None:
    client, heir = world.join("client"), world.join("heir")
    client.add_match("member='NameOwnerChanged'")
    stranger.acquire(NAME)
    world.settle()
    heir.request_name(NAME)
    for one in (client, heir):
        one.messages()
    act_before(world.bus.news, "_look", lambda: stranger.release(NAME))
    assert client.call("ListQueuedOwners", "s", NAME).body == [[heir.unique_name]]
    assert words(client) == [f"NameOwnerChanged {NAME}"]
    assert words(heir) == [f"NameAcquired {NAME}"]
    assert client.call("ListQueuedOwners", "s", NAME).body == [[heir.unique_name]]


# Requests that end


def test_a_request_of_somebody_who_has_gone_is_not_kept(world: SplitWorld) -> None:
    with Stranger(world, flags=HelloFlag.ACTIVATOR, name=NAME):
        service = world.join("service")
        caller = Stranger(world)
        caller.call(NAME)
        caller.leave()
        service.request_name(NAME)
        assert [message.member for message in service.messages() if message.type == METHOD_CALL] in (
            ["M"],
            [],
        )
        assert not service.connection.duties
        assert world.bus.replies.next_deadline() is None


def test_calls_with_one_serial_to_two_strangers_end_separately(
    world: SplitWorld, strangers: Callable[[], Stranger]
) -> None:
    first, second, client = strangers(), strangers(), world.join("client")
    client.messages()
    client.send(call(first.unique_name, serial=7))
    client.send(call(second.unique_name, serial=7))
    first.leave()
    assert words(client) == [NO_REPLY]
    second.answer(second.one())
    world.settle()
    assert words(client) == ["reply to 7"]
    assert not client.connection.outstanding


def test_callers_of_a_service_that_has_died_learn_of_it_though_it_can_be_started_again(
    world: SplitWorld, stranger: Stranger
) -> None:
    world.offer(NAME)
    service = world.join("service")
    service.request_name(NAME)
    by_name, by_id = stranger.call(NAME), stranger.call(service.unique_name)
    world.settle()
    service.leave()
    first, second = stranger.mail()
    assert first.parsed.error_name == NO_REPLY
    assert (first.last, second.words) == (by_name, f"REPLY_DEAD {by_id}")


def test_callers_of_a_service_that_becomes_a_monitor_learn_of_it(
    world: SplitWorld, stranger: Stranger
) -> None:
    world.offer(NAME)
    service = world.join("service")
    service.request_name(NAME)
    cookie = stranger.call(NAME)
    world.settle()
    service.become_monitor()
    mail = stranger.one()
    assert (mail.parsed.error_name, mail.last) == (NO_REPLY, cookie)


# Connections of ours that end


def test_a_client_whose_connection_has_just_ended_leaves_in_good_order(world: SplitWorld) -> None:
    client, other = world.join("client"), world.join("other")
    other.add_match("member='NameOwnerChanged'")
    for name in ("a.b", "a.c"):
        client.request_name(name)
    world.collect()
    peer, connection = client.peer, client.connection
    remote = world.bus.links[connection].remote
    with socket.socket(fileno=os.dup(remote.socket_fileno())) as handle:
        handle.shutdown(socket.SHUT_RDWR)
    peer.close()
    world.settle()
    assert peer.phase.name == "CLOSED"
    assert not connection.active
    assert connection not in world.bus.links
    assert {message.body[0] for message in other.messages()} == {"a.b", "a.c", client.unique_name}


def test_a_connection_that_cannot_be_read_any_more_is_the_end_of_its_client_alone(
    world: SplitWorld, stranger: Stranger
) -> None:
    client, other = world.join("client"), world.join("other")
    world.collect()
    id = client.connection.id
    stranger.call(client.unique_name)
    remote = world.bus.links[client.connection].remote
    with socket.socket(fileno=os.dup(remote.socket_fileno())) as handle:
        handle.shutdown(socket.SHUT_RDWR)
    stranger.call(other.unique_name, member="N", flags=NO_REPLY_EXPECTED)
    world.bus.drain()
    while not world.lost:
        assert world.bus.news.intake.wait(30)
        world.bus.drain()
    assert world.lost == [id]
    assert words(other) == ["N"]


def test_the_end_of_a_services_connection_ends_nobody(world: SplitWorld) -> None:
    world.offer(NAME)
    client = world.join("client")
    (activator,) = [connection for connection in world.bus.links if connection.is_activator]
    remote = world.bus.links[activator].remote
    with socket.socket(fileno=os.dup(remote.socket_fileno())) as handle:
        handle.shutdown(socket.SHUT_RDWR)
    while activator.active:
        assert world.bus.news.intake.wait(30)
        world.settle()
    assert world.lost == []
    client.send(call(NAME))
    assert world.activation._starts


# What is read


def test_a_service_is_asked_for_when_everything_before_was_told(
    world: SplitWorld, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name comes back to the activator, and something is sent to it, while queues are read."""
    world.offer(NAME)
    stranger.acquire(NAME)
    world.settle()
    caller = Stranger(world)  # so that there is something to tell
    original = Intake._pass
    passes = 0

    def act(intake: Intake) -> int:
        nonlocal passes
        passes += 1
        if passes == 2:
            stranger.release(NAME)
            caller.call(NAME, flags=NO_REPLY_EXPECTED)
        return original(intake)

    monkeypatch.setattr(Intake, "_pass", act)
    world.bus.drain()
    assert passes == 2
    world.loop.run_until_complete(asyncio.sleep(0))
    world.settle()
    world.settle()
    assert NAME in world.activation._starts
    caller.remote.close()


def test_all_that_a_command_has_caused_is_told_however_much_else_there_is(
    world: SplitWorld, monkeypatch: pytest.MonkeyPatch, stranger: Stranger
) -> None:
    monkeypatch.setattr("busproxy.core.incoming.MAX_AT_ONCE", 2)
    client, other = world.join("client"), world.join("other")
    for one in (client, other):
        one.add_match("type='signal'")
        one.messages()
    for number in range(20):
        stranger.signal(member=f"S{number}")
    serial = client.send(
        Message(
            METHOD_CALL,
            fields={
                "path": "/org/freedesktop/DBus",
                "interface": "org.freedesktop.DBus",
                "member": "RequestName",
                "destination": "org.freedesktop.DBus",
                "signature": "su",
            },
            body=[NAME, 0],
        )
    )
    signals = [f"S{number}" for number in range(20)]
    assert words(client) == [
        *signals,
        f"NameOwnerChanged {NAME}",
        f"NameAcquired {NAME}",
        f"reply to {serial}",
    ]
    assert words(other) == [*signals, f"NameOwnerChanged {NAME}"]


def test_one_bad_piece_of_news_keeps_nothing_from_the_others(
    world: SplitWorld, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.join("client")
    client.messages()
    original = world.bus.mail.on_message
    failures = [ValueError("a bug")]

    def fail_once(arrival: Any, message: Any) -> None:
        if failures:
            raise failures.pop()
        original(arrival, message)

    monkeypatch.setattr(world.bus.mail, "on_message", fail_once)
    for number in range(3):
        stranger.call(client.unique_name, member=f"M{number}", flags=NO_REPLY_EXPECTED)
    world.settle()
    assert words(client) == ["M1", "M2"]


# Where there is no room


def send_sealed(stranger: Stranger, client: Client, flags: int = 0) -> int:
    """Call a client with a message in sealed memory; its cookie."""
    content = stranger.build(METHOD_CALL, client.unique_name, "s", "x" * 1000, member="M", flags=flags)
    data = b"".join(part.data for part in content.parts if isinstance(part, Vec))
    payload = [Memfd(0, len(data), OpenFile(make_memfd(data, name="test", sealed=True)))]
    return stranger.send(
        stranger.build(
            METHOD_CALL,
            client.unique_name,
            member="M",
            flags=flags,
            cookie=content.cookie,
            payload=payload,
        )
    )


@pytest.fixture
def out_of_connections(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(*_: object, **__: object) -> None:
        raise KdbusError(EMFILE, "enough")

    return lambda: monkeypatch.setattr(broker, "_hello", refuse)


def test_without_a_connection_for_it_clients_hear_each_other_alone(
    world: SplitWorld, out_of_connections: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, monitor, other = world.join("client"), world.join("monitor"), world.join("other")
    out_of_connections()
    client.add_match("eavesdrop='true',type='method_call'")
    monitor.become_monitor()
    for one in (client, monitor):
        one.messages()
    other.send(call(other.unique_name))
    assert words(client) == ["M"]
    assert words(monitor) == ["M"]
    monkeypatch.undo()
    first, second = Stranger(world), Stranger(world)
    world.settle()
    client.add_match("eavesdrop='true',type='signal'")
    client.messages()
    first.call(second.unique_name, member="N")
    world.settle()
    assert words(client) == ["N"]
    for stranger in (first, second):
        stranger.remote.close()


def test_services_that_the_broker_has_no_room_for_are_offered_to_clients(
    world: SplitWorld, out_of_connections: Callable[[], None]
) -> None:
    client = world.join("client")
    out_of_connections()
    world.offer(NAME)
    assert client.call("ListActivatableNames").body[0][1:] == [NAME]
    client.send(call(NAME))
    assert list(world.activation._starts) == [NAME]
    world.offer()
    assert client.call("ListActivatableNames").body[0][1:] == []


def test_large_messages_are_not_copied_before_their_turn(
    world: SplitWorld, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.join("client")
    client.messages()
    seen: list[bool] = []
    original = world.bus.mail.on_message

    def look(arrival: Any, message: Any) -> None:
        seen.append(all(isinstance(part, Memfd) for part in message.parts))
        original(arrival, message)

    monkeypatch.setattr(world.bus.mail, "on_message", look)
    fds = count_own_fds()
    for _ in range(3):
        send_sealed(stranger, client, flags=NO_REPLY_EXPECTED)
    world.settle()
    assert seen == [True] * 3
    assert words(client) == ["M"] * 3
    assert count_own_fds() == fds


def test_large_messages_wait_at_the_broker_until_there_may_be_room(
    world: SplitWorld, stranger: Stranger
) -> None:
    client = world.join("client")
    client.messages()
    told: list[str] = []
    peer = client.peer
    peer.router.bridge.deliver = lambda peer, sender, message: told.append("M")  # type: ignore[method-assign]
    for _ in range(6):
        stranger.call(client.unique_name, "s", "x" * MAX_BYTES_AT_ONCE, flags=NO_REPLY_EXPECTED)
    while len(told) < 6:
        before = len(told)
        world.bus.drain()
        assert 1 <= len(told) - before <= 2


def test_few_descriptors_are_held_at_once(
    world: SplitWorld, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.join("client")
    client.messages()
    most = 0
    original = Intake.take

    def count(intake: Intake) -> Any:
        nonlocal most
        most = max(most, count_own_fds())
        return original(intake)

    monkeypatch.setattr(Intake, "take", count)
    before = count_own_fds()
    for _ in range(100):
        send_sealed(stranger, client, flags=NO_REPLY_EXPECTED)
    world.settle()
    assert MAX_FDS_AT_ONCE <= most - before <= 4 * MAX_FDS_AT_ONCE
    assert words(client) == ["M"] * 100
    assert count_own_fds() == before


def test_a_payload_that_cannot_be_had_is_refused(
    world: SplitWorld, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.join("client")
    client.messages()
    cookie = send_sealed(stranger, client)

    def fail(fd: int) -> int:
        raise OSError(EMFILE, "enough")

    with monkeypatch.context() as patched:
        patched.setattr(os, "dup", fail)
        world.bus.drain()
    world.settle()
    mail = stranger.one()
    assert mail.parsed.type == ERROR
    assert mail.last == cookie
    assert words(client) == []
