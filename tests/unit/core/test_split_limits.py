"""What is too much, or no message at all: who is told of it, and how."""

from __future__ import annotations

from errno import EMFILE

import pytest
from support.neighbour import Mail
from support.proxy import Client
from support.raw import METHOD_CALL, Message
from support.split import Cores, SplitWorld, Stranger

from busproxy.policy.config import Limits
from kdbus_core.abi import MAX_MATCHES, MAX_NAMES, MAX_OUTSTANDING_REQUESTS, HelloFlag
from kdbus_core.errors import KdbusError
from kdbus_core.message import Vec
from kdbus_core.subscriptions import Rule

NAME = "com.example.Name"
LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"


def names_of(client: Client) -> list[str]:
    """Members and errors that a client has received, "" for a reply."""
    return [message.error_name or message.member or "" for message in client.messages()]


def test_a_client_may_have_more_rules_than_the_broker_allows(cores: Cores) -> None:
    limits = Limits(max_match_rules_per_connection=2 * MAX_MATCHES)
    with cores.bus() as endpoint, SplitWorld(endpoint, limits=limits) as world, Stranger(world) as stranger:
        check_many_rules(world, stranger)


def check_many_rules(world: SplitWorld, stranger: Stranger) -> None:
    client = world.join("client")
    for number in range(MAX_MATCHES - 2):  # those that the test does not look at, without a conversation each
        world.bus.subscribe(client.connection, 1000 + number, Rule(member="Other"))
    for number in range(4):
        client.add_match(f"interface='a.b',member='M{number}'")
    client.messages()
    for number in range(5):
        stranger.signal(member=f"M{number}")
    stranger.signal(client.unique_name, member="Own")
    world.settle()
    assert names_of(client) == ["M0", "M1", "M2", "M3", "Own"]
    client.remove_match("interface='a.b',member='M0'")
    client.remove_match("interface='a.b',member='M3'")
    client.messages()
    for number in range(4):
        stranger.signal(member=f"M{number}")
    world.settle()
    assert names_of(client) == ["M1", "M2"]


def test_a_client_has_as_many_names_as_the_broker_allows(world: SplitWorld) -> None:
    client = world.join("client")
    for number in range(MAX_NAMES):
        assert client.request_name(f"a.b{number}") == 1
    refused = client.call("RequestName", "su", "a.c", 0)
    assert refused.error_name == LIMITS_EXCEEDED
    assert client.release_name("a.b0") == 1
    assert client.request_name("a.c") == 1


def test_how_many_names_a_client_has_is_decided_by_the_configuration_first(cores: Cores) -> None:
    with cores.bus() as endpoint:
        world = SplitWorld(endpoint, limits=Limits(max_names_per_connection=3))
        with world:
            client = world.join("client")
            assert [client.request_name(name) for name in ("a.a", "a.b")] == [1, 1]
            assert client.call("RequestName", "su", "a.c", 0).error_name == LIMITS_EXCEEDED


def test_how_many_clients_a_user_has_is_decided_by_the_configuration(cores: Cores) -> None:
    with cores.bus() as endpoint, SplitWorld(endpoint, limits=Limits(max_connections_per_user=2)) as world:
        world.join("first")
        world.join("second")
        with pytest.raises(IndexError):  # an error has a text, and no unique name
            world.join("third").call("GetId").body[1]
        world["second"].leave()
        assert world.join("fourth").unique_name.startswith(":1.")


def test_a_client_has_as_many_open_calls_as_the_broker_allows(world: SplitWorld, stranger: Stranger) -> None:
    client = world.join("client")
    client.messages()
    for _ in range(MAX_OUTSTANDING_REQUESTS):
        client.send(
            Message(METHOD_CALL, fields={"path": "/", "member": "M", "destination": stranger.unique_name})
        )
    assert names_of(client) == []
    client.send(
        Message(METHOD_CALL, fields={"path": "/", "member": "M", "destination": stranger.unique_name})
    )
    assert names_of(client) == [LIMITS_EXCEEDED]
    for mail in stranger.mail():
        stranger.answer(mail)
    world.settle()
    assert names_of(client) == [""] * MAX_OUTSTANDING_REQUESTS
    client.send(
        Message(METHOD_CALL, fields={"path": "/", "member": "M", "destination": stranger.unique_name})
    )
    assert names_of(client) == []


def test_what_is_no_message_is_answered_with_an_error(world: SplitWorld, stranger: Stranger) -> None:
    client = world.join("client")
    client.messages()
    stranger.call(client.unique_name, payload=[Vec(b"nonsense")])
    world.settle()
    assert client.messages() == []
    mail = stranger.one()
    assert mail.parsed.error_name == "org.freedesktop.DBus.Error.InconsistentMessage"
    assert mail.source == client.connection.id
    assert mail.last == 1
    assert not any(window.trackers for window in client.connection.duties.values())


def test_what_is_no_message_and_wants_no_answer_is_dropped(world: SplitWorld, stranger: Stranger) -> None:
    client = world.join("client")
    client.add_match("type='signal'")
    client.messages()
    stranger.call(client.unique_name, payload=[Vec(b"nonsense")], flags=1)
    stranger.signal(payload=[Vec(b"nonsense")])
    stranger.signal(client.unique_name, payload=[Vec(b"nonsense")])
    world.settle()
    assert client.messages() == []
    assert stranger.words() == []
    stranger.call(client.unique_name)
    world.settle()
    assert names_of(client) == ["M"]


def test_who_calls_the_watcher_learns_that_nobody_is_there(world: SplitWorld, stranger: Stranger) -> None:
    (id,) = [
        info.id for info in stranger.remote.list() if info.description is None and info.id != stranger.id
    ]
    stranger.call(f":1.{id}")
    stranger.call(f":1.{id}", flags=1)
    world.settle()
    mail = stranger.one()
    assert mail.parsed.error_name == "org.freedesktop.DBus.Error.ServiceUnknown"
    assert (mail.source, mail.last) == (id, 1)


def test_a_client_that_does_not_read_has_its_callers_told(cores: Cores) -> None:
    limits = Limits(max_outgoing_bytes=100_000)
    with cores.bus() as endpoint, SplitWorld(endpoint, limits=limits) as world, Stranger(world) as stranger:
        client = world.join("client")
        client.messages()
        serial = 0
        errors: list[Mail] = []
        while not errors:
            serial = stranger.call(client.unique_name, "s", "x" * 50_000)
            world.settle()
            errors = stranger.mail()
            assert serial < 1000
        assert [error.parsed.error_name for error in errors] == [LIMITS_EXCEEDED]
        assert errors[0].last == serial
        assert len(client.messages()) == serial - 1


def test_a_service_that_somebody_else_offers_is_offered_all_the_same(world: SplitWorld) -> None:
    with Stranger(world, flags=HelloFlag.ACTIVATOR, name=NAME) as activator:
        world.settle()
        world.offer(NAME)
        client = world.join("client")
        assert client.call("ListActivatableNames").body[0][1:] == [NAME]
        client.send(Message(METHOD_CALL, fields={"path": "/", "member": "M", "destination": NAME}))
        assert activator.words() == [f"M from {client.connection.id}"]
        world.offer()
        assert client.call("ListActivatableNames").body[0][1:] == []
    assert world.domain.user(None).connections == 0


def test_a_service_can_be_offered_again_at_once(world: SplitWorld) -> None:
    for _ in range(3):
        world.offer(NAME)
        world.offer()
    world.offer(NAME)
    assert [connection.is_activator for connection in world.bus.connections.values()] == [True]


def test_a_connection_that_the_broker_does_not_take_is_a_limit(
    world: SplitWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    from busproxy.core import broker

    def refuse(*_: object, **__: object) -> None:
        raise KdbusError(EMFILE, "enough")

    client = world.join("client")
    monkeypatch.setattr(broker, "_hello", refuse)
    before = len(world.bus.links)
    with pytest.raises(KdbusError) as caught:
        world.bus.hello(world.bus.endpoint, world.bus.creator, sink=client.peer)
    assert caught.value.errno == EMFILE
    assert len(world.bus.links) == before
