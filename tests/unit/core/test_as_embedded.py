"""Clients of a proxy in front of another broker see what they would see on an embedded bus.

Every scenario is played twice, with the broker in this process and with one in another, and what each client
and each native connection has received has to be the same, in the same order, but for the numbers of
connections.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from support.neighbour import Neighbour
from support.proxy import OWNER_UID, Client, World
from support.raw import METHOD_CALL, METHOD_RETURN, NO_REPLY_EXPECTED, SIGNAL, Message
from support.split import Cores, SplitWorld, Stranger

from kdbus_core.abi import HelloFlag
from kdbus_core.errors import KdbusError

NAME = "com.example.Name"
OTHER = "com.example.Other"

ALLOW, REPLACE, DO_NOT_QUEUE = 1, 2, 4
QUEUE = 4
"""Of a native connection."""

Transcript = list[tuple[str, Any]]


class Stage:
    """A bus with clients and native connections, by label, and what they have received."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.natives: dict[str, Neighbour] = {}
        self.labels: dict[str, str] = {}
        self.transcript: Transcript = []

    def client(self, label: str, *rules: str, uid: int = OWNER_UID) -> Client:
        client = self.world.join(label, uid=uid)
        self.labels[client.unique_name] = label
        for rule in rules:
            client.add_match(rule)
        return client

    def native(self, label: str, *rules: str) -> Neighbour:
        world = self.world
        made = Stranger(world) if isinstance(world, SplitWorld) else Neighbour(world)
        self.natives[label] = made
        self.labels[made.unique_name] = label
        for cookie, rule in enumerate(rules):
            made.add_match(cookie, rule)
        world.settle()
        return made

    def activator(self, label: str, name: str) -> None:
        world, flags = self.world, HelloFlag.ACTIVATOR
        if isinstance(world, SplitWorld):
            self.natives[label] = Stranger(world, flags=flags, name=name)
        else:
            self.natives[label] = Neighbour(world, flags=flags, name=name)
        world.settle()

    def acquire(self, label: str, name: str, flags: int = 0) -> None:
        native = self.natives[label]
        if isinstance(native, Stranger):
            native.acquire(name, flags)
        else:
            native.bus.name_acquire(native.connection, name, flags)
        self.world.settle()

    def release(self, label: str, name: str) -> None:
        native = self.natives[label]
        if isinstance(native, Stranger):
            native.release(name)
        else:
            native.bus.name_release(native.connection, name)
        self.world.settle()

    def leave(self, label: str) -> None:
        native = self.natives.pop(label)
        if isinstance(native, Stranger):
            native.remote.close()
            _wait(self.world, native.id)
        else:
            native.leave()

    def note(self, what: str, value: Any) -> None:
        """Remember an answer."""
        self.transcript.append((what, self._labelled(value)))

    def look(self) -> None:
        """Take down what everybody has received since the last time."""
        self.world.settle()
        for label, client in self.world.clients.items():
            if client.socket.fileno() >= 0:
                messages = [self._told(message) for message in client.messages()]
                self.transcript.append((label, messages))
        for label, native in self.natives.items():
            self.transcript.append((label, [self._labelled(words) for words in native.words()]))

    def _told(self, message: Message) -> tuple[Any, ...]:
        fields = {key: value for key, value in message.fields.items() if key != "reply_serial"}
        return message.type, self._labelled(fields), self._labelled(message.body)

    def _labelled(self, value: Any) -> Any:
        if isinstance(value, str):
            label = partial(_label, self.labels)
            return re.sub(r"(?<= from )\d+$", label, re.sub(r":1\.\d+", label, value))
        if isinstance(value, dict):
            return {key: self._labelled(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._labelled(one) for one in value]
        return value

    def close(self) -> None:
        for native in self.natives.values():
            if isinstance(native, Stranger):
                native.remote.close()


def _label(labels: dict[str, str], found: re.Match[str]) -> str:
    return labels["".join((":1.", found[0].removeprefix(":1.")))]


def _wait(world: World, id: int) -> None:
    assert isinstance(world, SplitWorld)
    while id in world.bus.connections:
        assert world.bus.news.intake.wait(30), "nobody tells that it has gone"
        world.settle()


def call(destination: str, *body: Any, flags: int = 0, signature: str = "") -> Message:
    fields = {"path": "/a", "interface": "a.b", "member": "M", "destination": destination}
    if signature:
        fields["signature"] = signature
    return Message(METHOD_CALL, flags=flags, fields=fields, body=list(body))


def answer(to: Message) -> Message:
    fields = {"destination": to.fields["sender"], "reply_serial": to.serial}
    return Message(METHOD_RETURN, flags=NO_REPLY_EXPECTED, fields=fields)


def signal(destination: str | None = None, **fields: Any) -> Message:
    fields = {"path": "/a", "interface": "a.b", "member": "S"} | fields
    if destination is not None:
        fields["destination"] = destination
    return Message(SIGNAL, fields=fields)


def calls(client: Client) -> list[Message]:
    return [message for message in client.messages() if message.type == METHOD_CALL]


# Scenarios


def clients_come_and_go(stage: Stage) -> None:
    stage.client("watcher", "member='NameOwnerChanged'")
    stage.client("second")
    stage.look()
    stage.world["second"].leave()
    stage.look()


def a_name_goes_from_hand_to_hand(stage: Stage) -> None:
    stage.client("watcher", "member='NameOwnerChanged'")
    for label in ("first", "second", "third"):
        stage.note(label, stage.client(label).request_name(NAME, ALLOW))
    stage.note("queue", stage.world["first"].call("ListQueuedOwners", "s", NAME).body)
    stage.look()
    stage.note("again", stage.world["first"].request_name(NAME))
    stage.note("replace", stage.world["third"].request_name(NAME, REPLACE))
    stage.note("no queue", stage.world["second"].request_name(NAME, DO_NOT_QUEUE))
    stage.note("queue", stage.world["first"].call("ListQueuedOwners", "s", NAME).body)
    stage.note("release", stage.world["first"].release_name(NAME))
    stage.note("nobody's", stage.world["first"].release_name(OTHER))
    stage.note("another's", stage.world["second"].release_name(NAME))
    stage.look()
    stage.world["first"].leave()
    stage.look()


def who_would_replace_is_next_in_line(stage: Stage) -> None:
    for label in ("owner", "first", "second", "pushing"):
        flags = REPLACE if label == "pushing" else 0
        stage.note(label, stage.client(label).request_name(NAME, flags))
    stage.note("queue", stage.world["owner"].call("ListQueuedOwners", "s", NAME).body)
    stage.note("again", stage.world["second"].request_name(NAME, REPLACE))
    stage.note("queue", stage.world["owner"].call("ListQueuedOwners", "s", NAME).body)


def who_is_replaced_waits_or_not(stage: Stage) -> None:
    stage.client("watcher", "member='NameOwnerChanged'")
    stage.client("patient").request_name(NAME, ALLOW)
    stage.client("proud").request_name(NAME, ALLOW | REPLACE | DO_NOT_QUEUE)
    stage.client("third").request_name(NAME, REPLACE)
    stage.note("queue", stage.world["third"].call("ListQueuedOwners", "s", NAME).body)
    stage.look()
    stage.world["third"].leave()
    stage.look()


def a_client_goes_with_all_its_names(stage: Stage) -> None:
    stage.client("watcher", "member='NameOwnerChanged'")
    leaving, heir = stage.client("leaving"), stage.client("heir")
    for name in ("a.a", "a.b", "a.c"):
        leaving.request_name(name)
    heir.request_name("a.b")
    stage.look()
    leaving.leave()
    stage.look()
    stage.note("names", heir.call("ListNames").body)


def a_native_one_comes_with_a_name_and_goes(stage: Stage) -> None:
    stage.client("watcher", "member='NameOwnerChanged'")
    stage.native("native")
    stage.acquire("native", NAME)
    stage.note("names", stage.world["watcher"].call("ListNames").body)
    stage.note("owner", stage.world["watcher"].call("GetNameOwner", "s", NAME).body)
    stage.look()
    stage.release("native", NAME)
    stage.acquire("native", OTHER)
    stage.look()
    stage.leave("native")
    stage.look()


def client_and_native_one_compete_for_a_name(stage: Stage) -> None:
    stage.client("watcher", "member='NameOwnerChanged'")
    client = stage.client("client")
    stage.native("native")
    stage.acquire("native", NAME, QUEUE | 2)
    stage.note("queues", client.request_name(NAME))
    stage.note("queue", client.call("ListQueuedOwners", "s", NAME).body)
    stage.note("takes it", client.request_name(NAME, REPLACE | ALLOW))
    stage.note("queue", client.call("ListQueuedOwners", "s", NAME).body)
    stage.look()
    stage.acquire("native", NAME, QUEUE | 1)
    stage.note("queue", client.call("ListQueuedOwners", "s", NAME).body)
    stage.look()
    stage.leave("native")
    stage.note("queue", client.call("ListQueuedOwners", "s", NAME).body)
    stage.look()
    stage.note("released", client.release_name(NAME))
    stage.look()


def many_wait_for_a_name(stage: Stage) -> None:
    first = stage.client("first")
    first.request_name(NAME)
    stage.native("second")
    stage.acquire("second", NAME, QUEUE)
    stage.client("third").request_name(NAME)
    stage.native("fourth")
    stage.acquire("fourth", NAME, QUEUE)
    stage.client("fifth").request_name(NAME, REPLACE)
    stage.note("queue", first.call("ListQueuedOwners", "s", NAME).body)
    stage.look()
    first.release_name(NAME)
    stage.world["fifth"].release_name(NAME)
    stage.note("queue", first.call("ListQueuedOwners", "s", NAME).body)
    stage.look()


def calls_in_both_directions(stage: Stage) -> None:
    client, native = stage.client("client"), stage.native("native")
    client.messages()
    client.send(call(native.unique_name, "hello", signature="s"))
    native.answer(native.one(), "s", "yes")
    stage.look()
    client.send(call(native.unique_name))
    native.refuse(native.one(), "com.example.Error", "no")
    stage.look()
    native.call(client.unique_name, "s", "hello")
    stage.world.settle()
    (request,) = calls(client)
    client.send(answer(request))
    stage.look()


def nobody_is_there(stage: Stage) -> None:
    client, native = stage.client("client"), stage.native("native")
    client.messages()
    unique_name = native.unique_name
    stage.leave("native")
    client.messages()
    client.send(call(unique_name))
    client.send(call(NAME))
    client.send(call(NAME, flags=2))
    stage.look()


def who_should_answer_goes(stage: Stage) -> None:
    client, native = stage.client("client", "member='NameOwnerChanged'"), stage.native("native")
    client.messages()
    client.send(call(native.unique_name))
    client.send(call(native.unique_name))
    stage.leave("native")
    stage.look()
    native = stage.native("native")
    native.call(client.unique_name)
    stage.world.settle()
    client.leave()
    stage.look()


def a_reply_that_nobody_waits_for(stage: Stage) -> None:
    client, native = stage.client("client"), stage.native("native")
    client.messages()
    native.call(client.unique_name)
    stage.world.settle()
    (request,) = calls(client)
    client.send(answer(request))
    client.send(answer(request))
    client.send(call(native.unique_name))
    stage.look()


def signals_to_whoever_wants_them(stage: Stage) -> None:
    stage.client("wants it", "interface='a.b',arg0='x'")
    stage.client("wants all", "type='signal'")
    stage.client("wants another", "interface='a.b',arg0='y'")
    stage.client("wants it twice", "interface='a.b'", "member='S'")
    native = stage.native("native", "interface='a.b'")
    other = stage.native("other", "member='T'")
    stage.look()
    native.signal(None, "s", "x")
    other.signal(None, "s", "x", member="T")
    stage.look()
    stage.world["wants all"].send(signal())
    sender = stage.world["wants it"]
    sender.send(Message(SIGNAL, fields=signal().fields | {"signature": "s"}, body=["x"]))
    stage.look()
    sender.remove_match("interface='a.b',arg0='x'")
    native.signal(None, "s", "x")
    stage.look()


def signals_of_who_has_a_name(stage: Stage) -> None:
    stage.client("client", f"type='signal',sender='{NAME}'")
    native = stage.native("native")
    native.signal()
    stage.acquire("native", NAME)
    native.signal()
    stage.look()
    stage.release("native", NAME)
    native.signal()
    stage.look()


def signals_to_one(stage: Stage) -> None:
    client = stage.client("client")
    stage.client("other", "type='signal'")
    native = stage.native("native")
    native.want_own_signals(0)
    client.request_name(NAME)
    stage.look()
    native.signal(client.unique_name)
    native.signal(NAME, member="ByName")
    client.send(signal(native.unique_name))
    stage.look()


def what_a_monitor_sees(stage: Stage) -> None:
    monitor = stage.client("monitor", "member='NameOwnerChanged'")
    client, native, other = stage.client("client"), stage.native("native"), stage.native("other")
    monitor.request_name(NAME)
    monitor.request_name(OTHER)
    client.add_match("member='NameOwnerChanged'")
    stage.look()
    monitor.become_monitor()
    stage.look()
    client.send(call(native.unique_name))
    native.answer(native.one())
    native.call(other.unique_name)
    other.answer(other.one())
    native.call(client.unique_name)
    stage.world.settle()
    native.signal()
    other.signal(native.unique_name)
    stage.acquire("native", NAME)
    stage.leave("other")
    stage.look()
    monitor.leave()
    stage.look()


def what_an_eavesdropper_hears(stage: Stage) -> None:
    stage.client("listener", "eavesdrop='true',type='method_call'")
    client, native, other = stage.client("client"), stage.native("native"), stage.native("other")
    stage.look()
    native.call(other.unique_name)
    native.call(client.unique_name)
    client.send(call(native.unique_name))
    stage.look()
    stage.world["listener"].remove_match("eavesdrop='true',type='method_call'")
    native.call(other.unique_name)
    stage.look()


def a_monitor_sees_once_what_a_service_is_started_for(stage: Stage) -> None:
    stage.world.offer(NAME)
    stage.activator("elsewhere", OTHER)
    monitor, client, native = stage.client("monitor"), stage.client("client"), stage.native("native")
    service = stage.client("service")
    stage.look()
    monitor.become_monitor("type='method_call',interface='a.b'")
    stage.look()
    for name in (NAME, OTHER):
        client.send(call(name))
        native.call(name)
        for label in ("monitor", "client"):
            stage.note(label, [message.fields["sender"] for message in stage.world[label].messages()])
        stage.note("started", service.request_name(name))
        stage.look()


def what_waited_elsewhere_is_brought(stage: Stage) -> None:
    stage.activator("elsewhere", OTHER)
    client, native = stage.client("client"), stage.native("native")
    service = stage.client("service")
    client.send(call(OTHER))
    native.call(OTHER)
    client.send(call(OTHER, flags=NO_REPLY_EXPECTED))
    service.request_name(OTHER)
    requests = calls(service)
    stage.note("requests", [(request.member, request.fields["sender"]) for request in requests])
    for request in requests:
        service.send(answer(request))
    stage.look()
    service.leave()
    stage.look()


def who_waits_elsewhere_goes(stage: Stage) -> None:
    stage.activator("elsewhere", OTHER)
    client, other = stage.client("client"), stage.client("other")
    service = stage.client("service")
    for caller in (client, other):
        caller.send(call(OTHER))
    client.leave()
    service.request_name(OTHER)
    stage.look()
    service.leave()
    stage.look()


def a_service_is_started_for_everybody(stage: Stage) -> None:
    stage.world.offer(NAME)
    client, native = stage.client("client"), stage.native("native")
    stage.look()
    client.send(call(NAME))
    native.call(NAME, flags=NO_REPLY_EXPECTED)
    native.call(NAME)
    stage.look()
    service = stage.client("service")
    stage.note("acquired", service.request_name(NAME))
    stage.world.settle()
    for request in calls(service):
        if not request.flags & NO_REPLY_EXPECTED:
            service.send(answer(request))
    stage.look()
    stage.note("released", service.release_name(NAME))
    stage.look()


def a_service_gives_its_name_up_and_answers(stage: Stage) -> None:
    stage.world.offer(NAME)
    native = stage.native("native")
    service = stage.client("service")
    service.request_name(NAME)
    native.call(NAME)
    stage.world.settle()
    (request,) = calls(service)
    service.release_name(NAME)
    service.send(answer(request))
    stage.look()


def a_native_service_is_started(stage: Stage) -> None:
    stage.world.offer(NAME)
    client, native = stage.client("client"), stage.native("native")
    stage.look()
    client.send(call(NAME))
    native.call(NAME)
    stage.native("service")
    stage.acquire("service", NAME)
    service = stage.natives["service"]
    for request in service.mail():
        service.answer(request)
    stage.look()


def somebody_else_starts_a_service(stage: Stage) -> None:
    stage.activator("activator", NAME)
    client = stage.client("client", "member='NameOwnerChanged'")
    stage.look()
    stage.note("has no owner", client.call("NameHasOwner", "s", NAME).body)
    client.send(call(NAME))
    stage.look()
    stage.native("service")
    stage.acquire("service", NAME)
    stage.look()


def credentials_are_the_clients(stage: Stage) -> None:
    stage.client("client")
    asking = stage.client("asking", uid=4711)
    for label in ("client", "asking"):
        name = stage.world[label].unique_name
        found = dict(asking.call("GetConnectionCredentials", "s", name).body[0])
        stage.note(label, sorted((key, value) for key, value in found.items() if key != "ProcessFD"))
        stage.note("uid", asking.call("GetConnectionUnixUser", "s", name).body)


def descriptors_travel(stage: Stage) -> None:
    client, native = stage.client("client"), stage.native("native")
    plain = stage.world.join("plain", negotiate_fds=False)
    stage.labels[plain.unique_name] = "plain"
    stage.look()
    reader, writer = os.pipe()
    try:
        message = call(native.unique_name, 0, signature="h")
        message.fields["unix_fds"] = 1
        client.send(message, [writer])
        mail = native.one()
        os.write(mail.fds[0], b"there")
        os.close(mail.fds[0])
        stage.note("there", os.read(reader, 10))
        native.call(client.unique_name, "h", 0, fds=[writer])
        stage.look()
        os.write(client.fds[0], b"and back")
        stage.note("back", os.read(reader, 10))
        with pytest.raises(KdbusError) as caught:
            native.call(plain.unique_name, "h", 0, fds=[writer])
        stage.note("refused", caught.value.errno)
        stage.look()
    finally:
        os.close(reader)
        os.close(writer)


SCENARIOS: list[Callable[[Stage], None]] = [
    clients_come_and_go,
    a_name_goes_from_hand_to_hand,
    who_would_replace_is_next_in_line,
    who_is_replaced_waits_or_not,
    a_client_goes_with_all_its_names,
    a_native_one_comes_with_a_name_and_goes,
    client_and_native_one_compete_for_a_name,
    many_wait_for_a_name,
    calls_in_both_directions,
    nobody_is_there,
    who_should_answer_goes,
    a_reply_that_nobody_waits_for,
    signals_to_whoever_wants_them,
    signals_of_who_has_a_name,
    signals_to_one,
    what_a_monitor_sees,
    what_an_eavesdropper_hears,
    a_monitor_sees_once_what_a_service_is_started_for,
    what_waited_elsewhere_is_brought,
    who_waits_elsewhere_goes,
    a_service_is_started_for_everybody,
    a_service_gives_its_name_up_and_answers,
    a_native_service_is_started,
    somebody_else_starts_a_service,
    credentials_are_the_clients,
    descriptors_travel,
]


def play(scenario: Callable[[Stage], None], world: World) -> Transcript:
    with world:
        stage = Stage(world)
        try:
            scenario(stage)
        finally:
            stage.close()
    return stage.transcript


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__.replace("_", " "))
def test_everybody_sees_what_they_would_see_on_an_embedded_bus(
    cores: Cores, scenario: Callable[[Stage], None]
) -> None:
    embedded = play(scenario, World())
    with cores.bus() as endpoint:
        split = play(scenario, SplitWorld(endpoint))
    assert split == embedded
