"""What strangers do is told in the order in which they did it, whoever is told of it by which queue."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from support.proxy import Client
from support.raw import METHOD_CALL, METHOD_RETURN, SIGNAL, Message
from support.split import SplitWorld, Stranger

NAME = "com.example.Name"
MANY = 300
"""More than a queue of the broker's takes of one sender."""


def told(client: Client) -> list[str]:
    """What a client has received, a few words each."""
    return [_words(message) for message in client.messages()]


def _words(message: Message) -> str:
    if message.member == "NameOwnerChanged":
        name, old, new = message.body
        return f"{name} {'+' if new else ''}{'-' if old else ''}"
    if message.type == METHOD_CALL:
        return f"call {message.member}"
    return f"{message.member or message.error_name or 'reply'}"


def test_signals_and_names_come_in_their_order(world: SplitWorld, stranger: Stranger) -> None:
    client = world.join("client")
    client.add_match("type='signal'")
    client.messages()
    stranger.signal(member="First")
    stranger.acquire(NAME)
    stranger.signal(member="Second")
    stranger.call(client.unique_name, member="Third")
    stranger.release(NAME)
    stranger.signal(member="Fourth")
    world.settle()
    assert told(client) == ["First", f"{NAME} +", "Second", "call Third", f"{NAME} -", "Fourth"]


def test_what_happened_before_a_command_is_told_before_its_reply(
    world: SplitWorld, stranger: Stranger
) -> None:
    client = world.join("client")
    client.add_match("type='signal'")
    client.messages()
    stranger.acquire("com.example.Other")
    stranger.signal(member="First")
    serial = client.send(
        Message(
            METHOD_CALL,
            fields={
                "path": "/",
                "interface": "org.freedesktop.DBus",
                "member": "RequestName",
                "destination": "org.freedesktop.DBus",
                "signature": "su",
            },
            body=[NAME, 0],
        )
    )
    messages = client.messages()
    words = [_words(message) for message in messages]
    assert words == ["com.example.Other +", "First", f"{NAME} +", "NameAcquired", "reply"]
    assert messages[-1].type == METHOD_RETURN
    assert messages[-1].fields["reply_serial"] == serial


def test_what_happened_before_a_message_is_known_when_it_is_routed(
    world: SplitWorld, strangers: Callable[[], Stranger]
) -> None:
    client, stranger = world.join("client"), strangers()
    stranger.acquire(NAME)  # nobody has looked yet
    client.send(Message(METHOD_CALL, fields={"path": "/", "member": "M", "destination": NAME}))
    assert stranger.words() == [f"M from {client.connection.id}"]


def test_many_messages_of_one_sender_come_in_order(world: SplitWorld, stranger: Stranger) -> None:
    first, second = world.join("first"), world.join("second")
    for client in (first, second):
        client.add_match("interface='a.b'")
        client.messages()
    for number in range(100):
        stranger.signal(member=f"S{number}")
        stranger.call(first.unique_name, member=f"C{number}", flags=1)
    world.settle()
    assert told(second) == [f"S{number}" for number in range(100)]
    expected = [word for number in range(100) for word in (f"S{number}", f"call C{number}")]
    assert told(first) == expected


@pytest.mark.parametrize("seed", range(4))
def test_random_histories_are_told_as_they_were(
    world: SplitWorld, strangers: Callable[[], Stranger], seed: int
) -> None:
    rng = random.Random(seed)
    made = [strangers() for _ in range(3)]
    clients = [world.join(f"client {number}") for number in range(3)]
    for client in clients:
        client.add_match("type='signal'")
        client.messages()
    history: dict[Client, list[str]] = {client: [] for client in clients}
    owner: dict[str, Stranger] = {}

    def everybody(word: str) -> None:
        for client in clients:
            history[client].append(word)

    for number in range(60):
        actor = rng.choice(made)
        match rng.randrange(4):
            case 0:
                actor.signal(member=f"S{number}")
                everybody(f"S{number}")
            case 1:
                client = rng.choice(clients)
                actor.call(client.unique_name, member=f"C{number}", flags=1)
                history[client].append(f"call C{number}")
            case 2:
                name = f"a.b{rng.randrange(3)}"
                if name in owner:
                    owner.pop(name).release(name)
                    everybody(f"{name} -")
                else:
                    actor.acquire(name)
                    owner[name] = actor
                    everybody(f"{name} +")
            case _:
                if rng.random() < 0.3:
                    world.settle()
    world.settle()
    for client in clients:
        assert told(client) == history[client]


def test_a_signal_without_a_number_comes_once(world: SplitWorld) -> None:
    with Stranger(world, attach_send=0) as secretive:
        clients = [world.join(f"client {number}") for number in range(3)]
        for client in clients:
            client.add_match("interface='a.b'")
            client.add_match("member='S'")
            client.messages()
        for _ in range(3):
            secretive.signal(cookie=7)
        world.settle()
        assert [told(client) for client in clients] == [["S"] * 3] * 3
        secretive.signal(cookie=7)
        world.settle()
        assert [told(client) for client in clients] == [["S"]] * 3


def test_signals_of_our_own_clients_do_not_come_back(world: SplitWorld, stranger: Stranger) -> None:
    stranger.add_match(1, "interface='a.b'")
    sender, other = world.join("sender"), world.join("other")
    for client in (sender, other):
        client.add_match("interface='a.b'")
        client.messages()
    sender.send(Message(SIGNAL, fields={"path": "/a", "interface": "a.b", "member": "S"}))
    assert stranger.words() == [f"S from {sender.connection.id}"]
    assert told(sender) == ["S"]
    assert told(other) == ["S"]


def test_a_bus_that_changes_too_fast_is_looked_at_again(world: SplitWorld) -> None:
    client = world.join("client")
    client.add_match("member='NameOwnerChanged'")
    client.messages()
    with Stranger(world) as stranger:
        for number in range(MANY):
            stranger.acquire(f"a.b{number % 250}", 0)
            stranger.release(f"a.b{number % 250}")
        stranger.acquire(NAME)
        world.settle()
        words = told(client)
        assert words[0] == f"{stranger.unique_name} +"
        assert words[-1] == f"{NAME} +"
        assert len(words) < MANY
        assert client.call("GetNameOwner", "s", NAME).body == [stranger.unique_name]
        assert client.call("ListNames").body[0][-1] == NAME
    assert not any(word.startswith("a.b") for word in client.call("ListNames").body[0])


def test_connections_that_nobody_has_told_of_are_found(world: SplitWorld) -> None:
    client = world.join("client")
    client.add_match("member='NameOwnerChanged'")
    client.messages()
    made = [Stranger(world) for _ in range(MANY)]
    world.settle()
    assert sorted(told(client)) == sorted(f"{stranger.unique_name} +" for stranger in made)
    for stranger in made[:-1]:
        stranger.remote.close()
    made[-1].leave()
    world.settle()
    words = [word for word in told(client) if word.endswith(" -")]
    assert {f"{stranger.unique_name} -" for stranger in made} <= set(words)
    assert len(words) == len(set(words))
    assert not world.bus.news.strangers
