"""No message takes a way that was right before a native connection came, listened, owned a name, or went."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from support.neighbour import Neighbour
from support.proxy import World
from support.raw import METHOD_CALL, METHOD_RETURN, NO_REPLY_EXPECTED, SIGNAL, Message

from kdbus_core.abi import HelloFlag
from kdbus_core.names import REPLACE_EXISTING

NAME = "com.example.Name"
MONITOR = HelloFlag.MONITOR | HelloFlag.ACCEPT_FD
ALLOW_REPLACEMENT = 1


@pytest.fixture
def world() -> Iterator[World]:
    """A bus with two clients."""
    with World() as world:
        for label in ("client", "other"):
            world.join(label)
        world.collect()
        yield world


def signal(*body: object, signature: str = "") -> Message:
    fields = {"path": "/a", "interface": "a.b", "member": "S"}
    if signature:
        fields["signature"] = signature
    return Message(SIGNAL, flags=NO_REPLY_EXPECTED, fields=fields, body=list(body))


def call(to: str, *, flags: int = 0) -> Message:
    fields = {"path": "/a", "interface": "a.b", "member": "M", "destination": to}
    return Message(METHOD_CALL, flags=flags, fields=fields)


def count(native: Neighbour) -> int:
    return len(native.words())


def routed_during(world: World, command: Callable[[], object]) -> int:
    before = world.router.routed
    command()
    return world.router.routed - before


# Flows are made and used


def test_calls_to_a_native_take_the_same_way_again(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    client.send(call(native.unique_name))
    assert routed_during(world, lambda: [client.send(call(native.unique_name)) for _ in range(5)]) == 0
    cookies = [mail.cookie for mail in native.mail()]
    assert len(cookies) == len(set(cookies)) == 6


def test_replies_to_a_native_take_the_same_way_again(world: World) -> None:
    native, client = Neighbour(world), world["client"]

    def converse() -> int:
        cookie = native.call(client.unique_name)
        (message,) = client.messages()
        fields = {"destination": native.unique_name, "reply_serial": message.serial}
        client.send(Message(METHOD_RETURN, flags=NO_REPLY_EXPECTED, fields=fields))
        mail = native.one()
        assert mail.last == mail.parsed.reply_cookie == cookie
        return cookie

    converse()
    assert routed_during(world, lambda: [converse() for _ in range(5)]) == 0


def test_replies_by_a_flow_find_surrogates(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    for cookie in (3, 1 << 40, (1 << 40) + 1):
        native.call(client.unique_name, cookie=cookie)
        (message,) = client.messages()
        fields = {"destination": native.unique_name, "reply_serial": message.serial}
        client.send(Message(METHOD_RETURN, flags=NO_REPLY_EXPECTED, fields=fields))
        assert native.one().last == cookie


def test_signals_take_the_same_way_again_while_a_native_listens(world: World) -> None:
    native = Neighbour(world)
    native.add_match(1, "type='signal',arg0='yes'")
    client = world["client"]
    client.send(signal("yes", signature="s"))
    texts = ["yes", "no", "yes", "no"]
    assert routed_during(world, lambda: [client.send(signal(text, signature="s")) for text in texts]) == 0
    assert count(native) == 3


@pytest.mark.parametrize("signature", ["s", "u", "as"])
def test_a_body_is_checked_on_the_fast_way_too(world: World, signature: str) -> None:
    native = Neighbour(world)
    native.add_match(1, "type='signal',interface='a.b'")
    client = world["client"]
    good: object = {"s": "text", "u": 7, "as": ["text"]}[signature]
    message = call(native.unique_name)
    message.fields["signature"] = signature
    message.body = [good]
    client.send(message)
    client.send(signal(good, signature=signature))
    assert count(native) == 2
    from support.raw import build_message

    message.serial = client.next_serial()
    data = bytearray(build_message(message))
    if signature == "u":
        data[4] = 2
        del data[-2:]
    else:
        data[-1] = 1  # where a NUL belongs
    client.send_bytes(bytes(data))
    assert client.peer.closed
    assert count(native) == 0


# Every change is noticed


def test_a_match_is_noticed(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    client.send(signal())
    client.send(signal())
    native.add_match(1, "type='signal',interface='a.b'")
    client.send(signal())
    assert count(native) == 1
    world.bus.match_remove(native.connection, 1)
    client.send(signal())
    assert count(native) == 0
    assert routed_during(world, lambda: client.send(signal())) == 0


def test_a_further_match_is_noticed(world: World) -> None:
    first, second, client = Neighbour(world), Neighbour(world), world["client"]
    first.add_match(1, "type='signal',interface='a.b'")
    client.send(signal())
    second.add_match(1, "type='signal',interface='a.b'")
    client.send(signal())
    assert (count(first), count(second)) == (2, 1)
    world.bus.match_remove(first.connection, 1)
    client.send(signal())
    assert (count(first), count(second)) == (0, 1)


def test_a_replaced_match_is_noticed(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    native.add_match(1, "type='signal',interface='a.b'")
    client.send(signal())
    assert count(native) == 1
    world.bus.match_add(native.connection, 1, [], replace=True)
    client.send(signal())
    assert count(native) == 1


def test_a_listener_that_goes_is_noticed(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    native.add_match(1, "type='signal',interface='a.b'")
    client.send(signal())
    native.leave()
    client.send(signal())
    assert world.bus.has_native_listeners is False
    assert routed_during(world, lambda: client.send(signal())) == 0


def test_a_monitor_is_noticed_by_all_kinds_of_messages(world: World) -> None:
    client, other = world["client"], world["other"]

    def everything() -> None:
        client.send(signal())
        client.send(call(other.unique_name, flags=NO_REPLY_EXPECTED))
        client.call("GetId")

    everything()
    everything()
    watcher = Neighbour(world, flags=MONITOR)
    everything()
    everything()
    assert count(watcher) == 6
    watcher.leave()
    everything()
    assert routed_during(world, everything) == 0


def test_a_name_that_a_native_takes_over_is_noticed(world: World) -> None:
    client, other, native = world["client"], world["other"], Neighbour(world)
    other.request_name(NAME, ALLOW_REPLACEMENT)
    other.messages()
    client.send(call(NAME))
    client.send(call(NAME))
    world.bus.name_acquire(native.connection, NAME, REPLACE_EXISTING)
    client.send(call(NAME))
    assert [message.member for message in other.messages()] == ["M", "M", "NameLost"]
    assert count(native) == 1


def test_a_name_that_a_native_gives_back_is_noticed(world: World) -> None:
    client, other, native = world["client"], world["other"], Neighbour(world)
    world.bus.name_acquire(native.connection, NAME, 0)
    client.send(call(NAME))
    client.send(call(NAME))
    assert count(native) == 2
    world.bus.name_release(native.connection, NAME)
    other.request_name(NAME)
    other.messages()
    client.send(call(NAME))
    assert [message.member for message in other.messages()] == ["M"]
    assert count(native) == 0


def test_a_native_receiver_that_goes_is_noticed(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    client.send(call(native.unique_name, flags=NO_REPLY_EXPECTED))
    client.send(call(native.unique_name, flags=NO_REPLY_EXPECTED))
    native.leave()
    client.send(call(native.unique_name))
    assert [message.error_name for message in client.messages()] == [
        "org.freedesktop.DBus.Error.ServiceUnknown"
    ]


def test_an_eavesdropper_is_noticed_by_messages_to_natives(world: World) -> None:
    native, client, other = Neighbour(world), world["client"], world["other"]
    client.send(call(native.unique_name))
    client.send(call(native.unique_name))
    other.add_match("eavesdrop='true'")
    world.collect()
    client.send(call(native.unique_name))
    assert [message.member for message in other.messages()] == ["M"]
    assert count(native) == 3


# Random histories agree with a bus without flows


class History:
    """One bus with clients and natives, and what each of them has seen."""

    def __init__(self, *, flows: bool) -> None:
        self.world = World(flows=flows)
        for label in "ab":
            self.world.join(label)
        self.natives = [Neighbour(self.world) for _ in range(2)]
        self.watcher: Neighbour | None = None
        self.matches: set[tuple[int, int]] = set()
        self.seen: list[object] = []

    def step(self, random: random.Random) -> None:
        client = self.world[random.choice("ab")]
        index = random.randrange(2)
        native = self.natives[index]
        match random.randrange(9):
            case 0:
                client.send(signal(random.choice(["yes", "no"]), signature="s"))
            case 1:
                client.send(call(native.unique_name, flags=NO_REPLY_EXPECTED))
            case 2 | 3:
                client.send(call(NAME, flags=NO_REPLY_EXPECTED))
            case 4:
                cookie = random.randrange(2)
                if (index, cookie) in self.matches:
                    self.world.bus.match_remove(native.connection, cookie)
                else:
                    native.add_match(cookie, f"type='signal',arg0='{'yes' if cookie else 'no'}'")
                self.matches ^= {(index, cookie)}
            case 5:
                if NAME in native.connection.names:
                    self.world.bus.name_release(native.connection, NAME)
                else:
                    self.world.bus.name_acquire(native.connection, NAME, 2 | 4)
            case 6:
                client.request_name(NAME, 1 | 2)
            case 7:
                if self.watcher is None:
                    self.watcher = Neighbour(self.world, flags=MONITOR)
                else:
                    self.watcher.leave()
                    self.watcher = None
            case 8:
                native.leave()
                self.natives[index] = Neighbour(self.world)
                self.matches = {held for held in self.matches if held[0] != index}
        self.look()

    def look(self) -> None:
        for label, messages in self.world.collect().items():
            self.seen += [(label, message.member, message.error_name) for message in messages]
        for number, native in enumerate(self.natives):
            self.seen += [(number, words) for words in native.words()]
        if self.watcher is not None:
            self.seen += [("watcher", words) for words in self.watcher.words()]


@pytest.mark.parametrize("seed", range(12))
def test_any_history_is_the_same_without_flows(seed: int) -> None:
    histories = [History(flows=flows) for flows in (True, False)]
    try:
        for history in histories:
            chance = random.Random(seed)
            for _ in range(60):
                history.step(chance)
        assert histories[0].seen == histories[1].seen
    finally:
        for history in histories:
            history.world.close()
