"""Who sees what is not, or not only, for them: subscribers, eavesdroppers and monitors of either kind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.neighbour import Neighbour
from support.proxy import World
from support.raw import DRIVER, METHOD_CALL, METHOD_RETURN, NO_REPLY_EXPECTED, SIGNAL, Message

from busproxy.policy.config import Limits
from kdbus_core.abi import DST_BROADCAST, HelloFlag, ItemType

NAME = "com.example.Name"


@pytest.fixture
def world() -> Iterator[World]:
    """A bus with two clients."""
    with World() as world:
        for label in ("client", "other"):
            world.join(label)
        world.collect()
        yield world


def signal(*body: object, signature: str = "", member: str = "S", **fields: object) -> Message:
    fields = {"path": "/a/b", "interface": "a.b", "member": member} | fields
    if signature:
        fields["signature"] = signature
    return Message(SIGNAL, flags=NO_REPLY_EXPECTED, fields=fields, body=list(body))


def call(to: str, member: str = "M") -> Message:
    fields = {"path": "/a", "interface": "a.b", "member": member, "destination": to}
    return Message(METHOD_CALL, fields=fields)


def reply(to: Message) -> Message:
    fields = {"destination": to.fields["sender"], "reply_serial": to.serial}
    return Message(METHOD_RETURN, flags=NO_REPLY_EXPECTED, fields=fields)


def members(world: World, label: str) -> list[str]:
    return [message.member for message in world[label].messages()]


def heard(native: Neighbour) -> list[str | None]:
    return [mail.parsed.member for mail in native.mail()]


# Signals of natives


def test_a_signal_reaches_the_clients_that_subscribed_to_it(world: World) -> None:
    native = Neighbour(world)
    world["client"].add_match("type='signal',interface='a.b',arg0='yes'")
    cookie = native.signal(None, "su", "yes", 7)
    native.signal(None, "su", "no", 7)
    native.signal(None, "su", "yes", 7, interface="a.c")
    (message,) = world["client"].messages()
    assert message.fields == {
        "path": "/a",
        "interface": "a.b",
        "member": "S",
        "sender": native.unique_name,
        "signature": "su",
    }
    assert (message.body, message.serial) == (["yes", 7], cookie)
    assert world["other"].messages() == []


@pytest.mark.parametrize("by_name", [False, True])
def test_a_subscription_may_be_to_a_native_sender(world: World, by_name: bool) -> None:
    native, stranger = Neighbour(world), Neighbour(world)
    world.bus.name_acquire(native.connection, NAME, 0)
    world["client"].add_match(f"sender='{NAME if by_name else native.unique_name}'")
    native.signal(member="Mine")
    stranger.signal(member="Others")
    assert members(world, "client") == ["Mine"]
    world.bus.name_release(native.connection, NAME)
    native.signal(member="Later")
    assert ("Later" in members(world, "client")) is not by_name


def test_a_signal_that_is_no_message_reaches_natives_only(world: World) -> None:
    native, listener = Neighbour(world), Neighbour(world)
    world["client"].add_match("")
    world.bus.match_add(listener.connection, 1, [])
    native.signal(payload_type=4711)
    native.signal(header_cookie=4711)
    assert world["client"].messages() == []
    inbox = listener.connection.inbox
    assert inbox is not None
    assert len(inbox) == 2


def test_a_signal_that_says_it_is_for_one_reaches_nobody_else(world: World) -> None:
    """What a message says of its destination is what policy and subscribers have been told, or it is odd."""
    native = Neighbour(world)
    world["client"].add_match("type='signal'")
    message = native.build(SIGNAL, ":1.77", member="S", flags=NO_REPLY_EXPECTED)
    message.dst_id = DST_BROADCAST
    native.send(message)
    assert world["client"].messages() == []


def test_a_signal_with_a_large_cookie_reaches_clients(world: World) -> None:
    native = Neighbour(world)
    world["client"].add_match("type='signal'")
    for cookie in (1 << 32, (1 << 64) - 1):
        native.signal(cookie=cookie)
    assert [bool(message.serial) for message in world["client"].messages()] == [True, True]


# Signals of clients


def test_a_clients_signal_reaches_natives_whose_matches_let_it_through(world: World) -> None:
    wanting, other, none = Neighbour(world), Neighbour(world), Neighbour(world)
    wanting.add_match(1, "type='signal',interface='a.b',path_namespace='/a',arg0='yes'")
    other.add_match(1, "interface='a.c'")
    world["client"].send(signal("yes", 7, signature="su"))
    world["client"].send(signal("no", 7, signature="su"))
    (mail,) = wanting.mail()
    assert (mail.source, mail.destination) == (world["client"].connection.id, DST_BROADCAST)
    assert (mail.parsed.member, mail.body, mail.parsed.sender) == ("S", ["yes", 7], None)
    assert other.mail() == none.mail() == []


def test_a_clients_signal_reaches_both_kinds_of_listeners_once(world: World) -> None:
    native = Neighbour(world)
    native.add_match(1, "type='signal',member='S'")
    native.add_match(2, "type='signal',path='/a/b'")
    world["other"].add_match("member='S'")
    for _ in range(3):
        world["client"].send(signal())
    assert heard(native) == ["S"] * 3
    assert members(world, "other") == ["S"] * 3


def test_natives_can_match_a_clients_name(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    client.request_name(NAME)
    native.add_match(1, f"type='signal',sender='{NAME}'")
    native.mail()
    client.send(signal())
    world["other"].send(signal())
    assert heard(native) == ["S"]


def test_a_broadcast_with_descriptors_is_not_for_natives(world: World) -> None:
    native = Neighbour(world)
    native.add_match(1, "type='signal',interface='a.b'")
    watcher = monitor(world)
    world["other"].add_match("interface='a.b'")
    watcher.mail()
    with open(os.devnull) as file:
        world["client"].send(signal(0, signature="h", unix_fds=1), [file.fileno()])
    assert members(world, "other") == ["S"]
    assert native.mail() == []
    assert watcher.words() == [f"S from {world['client'].connection.id}"]


def test_a_native_that_reads_nothing_loses_signals_and_clients_do_not(world: World) -> None:
    native = Neighbour(world, pages=2)
    native.add_match(1, "type='signal',interface='a.b'")
    world["other"].add_match("interface='a.b'")
    for _ in range(50):
        world["client"].send(signal("x" * 500, signature="s"))
    assert members(world, "other") == ["S"] * 50
    inbox = native.connection.inbox
    assert inbox is not None
    assert inbox.lost + len(inbox) == 50
    assert inbox.lost


# Clients that listen in


@pytest.mark.parametrize("kind", ["monitor", "eavesdropper"])
def test_clients_that_listen_in_see_what_natives_send_each_other(world: World, kind: str) -> None:
    if kind == "monitor":
        world["client"].become_monitor()
    else:
        world["client"].add_match("eavesdrop='true'")
    one, another = Neighbour(world), Neighbour(world)
    world.collect()
    one.call(another.unique_name, member="Call")
    another.answer(another.one())
    another.want_own_signals(1)
    one.signal(another.unique_name, member="Directed")
    one.signal(member="Broadcast")
    messages = world["client"].messages()
    assert [(message.type, message.member) for message in messages] == [
        (METHOD_CALL, "Call"),
        (METHOD_RETURN, ""),
        (SIGNAL, "Directed"),
        (SIGNAL, "Broadcast"),
    ]
    assert [message.fields.get("destination") for message in messages] == [
        another.unique_name,
        one.unique_name,
        another.unique_name,
        None,
    ]
    assert messages[1].fields["reply_serial"] == messages[0].serial


def test_a_reply_to_a_native_that_waits_is_seen_too(world: World) -> None:
    world["client"].become_monitor()
    one, another = Neighbour(world), Neighbour(world)
    world.collect()
    one.wait(another.unique_name, lambda call: None)
    another.answer(another.one())
    assert [message.type for message in world["client"].messages()] == [METHOD_CALL, METHOD_RETURN]


@pytest.mark.parametrize("kind", ["monitor", "eavesdropper"])
def test_clients_that_listen_in_see_what_passes_between_both_kinds(world: World, kind: str) -> None:
    if kind == "monitor":
        world["other"].become_monitor()
    else:
        world["other"].add_match("eavesdrop='true'")
    native, client = Neighbour(world), world["client"]
    world.collect()
    native.call(client.unique_name, member="ToClient", cookie=1 << 40)
    (message,) = client.messages()
    client.send(reply(message))
    assert native.one().last == 1 << 40
    client.send(call(native.unique_name, "ToNative"))
    native.answer(native.one())
    native.signal(client.unique_name, member="Directed")
    seen = world["other"].messages()
    assert [(message.type, message.member) for message in seen] == [
        (METHOD_CALL, "ToClient"),
        (METHOD_RETURN, ""),
        (METHOD_CALL, "ToNative"),
        (METHOD_RETURN, ""),
        (SIGNAL, "Directed"),
    ]
    assert [message.fields["sender"] for message in seen] == [
        native.unique_name,
        client.unique_name,
        client.unique_name,
        native.unique_name,
        native.unique_name,
    ]


def test_an_eavesdropper_that_is_the_addressee_gets_a_message_once(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    client.add_match("eavesdrop='true'")
    world.collect()
    native.call(client.unique_name)
    assert members(world, "client") == ["M"]


def test_a_monitor_sees_only_what_its_rules_say(world: World) -> None:
    world["client"].become_monitor("type='method_call',member='Wanted'")
    one, another = Neighbour(world), Neighbour(world)
    world.collect()
    one.call(another.unique_name, member="Wanted")
    one.call(another.unique_name, member="Unwanted")
    one.signal(member="Wanted")
    assert members(world, "client") == ["Wanted"]


def test_what_is_no_message_is_not_shown_and_reaches_its_native_addressee(world: World) -> None:
    world["client"].become_monitor()
    one, another = Neighbour(world), Neighbour(world)
    world.collect()
    one.call(another.unique_name, payload_type=4711)
    inbox = another.connection.inbox
    assert inbox is not None
    assert len(inbox) == 1
    assert world["client"].messages() == []


def test_descriptors_are_shown_to_clients_that_take_them(world: World) -> None:
    deaf = world.join("deaf", negotiate_fds=False)
    deaf.become_monitor()
    world["client"].become_monitor()
    one, another = Neighbour(world), Neighbour(world)
    world.collect()
    with open(os.devnull) as file:
        one.call(another.unique_name, "h", 0, fds=[file.fileno()])
    assert another.words() == [f"M from {one.connection.id}"]
    assert members(world, "client") == ["M"]
    assert len(world["client"].fds) == 1
    assert members(world, "deaf") == []


# Natives that listen in


def monitor(world: World) -> Neighbour:
    return Neighbour(world, flags=HelloFlag.MONITOR | HelloFlag.ACCEPT_FD)


def test_a_native_monitor_sees_what_clients_send_each_other(world: World) -> None:
    client, other = world["client"], world["other"]
    client.send(call(other.unique_name, "Before"))
    watcher = monitor(world)
    for number in range(3):
        client.send(call(other.unique_name, f"Call{number}"))
    *_, last = other.messages()
    other.send(reply(last))
    client.send(signal(member="Broadcast"))
    client.send(signal(member="Directed", destination=other.unique_name))
    mails = watcher.mail()
    assert [mail.parsed.member for mail in mails] == [
        "Call0",
        "Call1",
        "Call2",
        None,
        "Broadcast",
        "Directed",
    ]
    assert [mail.source for mail in mails[:4]] == [client.connection.id] * 3 + [other.connection.id]
    assert mails[0].destination == other.connection.id
    assert mails[3].last == mails[3].parsed.reply_cookie == mails[2].cookie


def test_a_native_monitor_sees_calls_to_names_and_to_the_driver(world: World) -> None:
    client, other = world["client"], world["other"]
    other.request_name(NAME)
    watcher = monitor(world)
    client.send(call(NAME))
    client.call("GetId")
    named, driver = watcher.mail()
    assert ItemType.DST_NAME in named.kinds
    assert (driver.parsed.destination, driver.parsed.member) == (DRIVER, "GetId")


def test_a_native_monitor_sees_what_is_refused(world: World) -> None:
    watcher = monitor(world)
    world["client"].send(call("com.example.Nobody", "Lost"))
    assert heard(watcher) == ["Lost"]


def test_a_native_monitor_sees_a_message_between_both_kinds_once(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    watcher = monitor(world)
    client.send(call(native.unique_name, "ToNative"))
    native.answer(native.one())
    native.call(client.unique_name, member="ToClient")
    client.send(signal(member="Broadcast"))
    native.signal(member="Broadcast")
    assert heard(watcher) == ["ToNative", None, "ToClient", "Broadcast", "Broadcast"]


def test_when_the_native_monitor_has_gone_messages_take_the_fast_way_again(world: World) -> None:
    client, other = world["client"], world["other"]
    watcher = monitor(world)
    client.send(call(other.unique_name))
    watcher.leave()
    client.send(call(other.unique_name))
    routed = world.router.routed
    for _ in range(5):
        client.send(call(other.unique_name))
    assert world.router.routed == routed
    assert members(world, "other") == ["M"] * 7


def test_a_native_monitor_gets_no_descriptors_of_sockets_but_the_message(world: World) -> None:
    watcher = monitor(world)
    client, other = world["client"], world["other"]
    with open(os.devnull) as file:
        message = call(other.unique_name)
        message.fields |= {"signature": "h", "unix_fds": 1}
        message.body = [0]
        client.send(message, [file.fileno()])
        message.serial = 0
        client.send(message, [client.socket.fileno()])
    assert members(world, "other") == ["M", "M"]
    assert watcher.words() == [f"M from {client.connection.id}"] * 2


def test_a_native_monitor_sees_which_id_a_message_to_nobody_was_for(world: World) -> None:
    watcher = monitor(world)
    world["client"].send(call(":1.987654"))
    assert watcher.one().destination == 987654


# Large messages


def limited(**limits: int) -> World:
    """A bus with limits of its own, and a client that has subscribed to signals of one kind."""
    world = World(limits=Limits(**limits))
    world.join("client").add_match("interface='a.b'")
    world.collect()
    return world


def test_nobody_piles_up_signals_before_the_sockets_had_their_chance() -> None:
    with limited(max_outgoing_bytes=300_000) as world:
        stream = world["client"].peer.stream
        native = Neighbour(world, pages=4096)
        for _ in range(10):
            native.signal(None, "ay", bytes(90_000))
        assert sum(map(len, stream.out)) < 200_000
        assert world.router.lost_broadcasts == 8
        assert members(world, "client") == ["S", "S"]
        native.signal(None, "ay", bytes(90_000))
        assert members(world, "client") == ["S"]


@pytest.mark.parametrize("kind", ["monitor", "eavesdropper"])
def test_nobody_piles_up_copies_for_those_who_listen_in(kind: str) -> None:
    with limited(max_outgoing_bytes=300_000) as world:
        if kind == "monitor":
            world["client"].become_monitor()
        else:
            world["client"].add_match("eavesdrop='true'")
        one, another = Neighbour(world, pages=4096), Neighbour(world, pages=4096)
        world.collect()
        for _ in range(10):
            one.call(another.unique_name, "ay", bytes(90_000))
        assert len(another.mail()) == 10
        assert members(world, "client") == ["M", "M"]
        assert world.router.lost_broadcasts == 8


def test_a_signal_may_not_be_longer_than_what_clients_may_send() -> None:
    with limited(max_message_size=100_000) as world:
        native = Neighbour(world, pages=4096)
        native.signal(None, "ay", bytes(100_000), member="TooLong")
        native.signal(None, "ay", bytes(90_000), member="Long")
        assert members(world, "client") == ["Long"]
        assert world.router.lost_broadcasts == 1
