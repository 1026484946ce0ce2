"""Services that are started because a native connection wants them, or that turn out to be native."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from errno import EADDRNOTAVAIL, errorcode
from typing import Any

import pytest
from support.neighbour import Neighbour
from support.proxy import World, count_own_fds
from support.raw import (
    METHOD_CALL,
    METHOD_RETURN,
    NO_AUTO_START,
    NO_REPLY_EXPECTED,
    SIGNAL,
    Message,
)

from busproxy.activation.launcher import LaunchError
from busproxy.activation.service_files import ServiceFile
from busproxy.policy.config import Limits
from kdbus_core import KdbusError
from kdbus_core.abi import HelloFlag
from kdbus_core.synchronous import SyncCall

NAME = "com.example.Service"
PREFIX = "org.freedesktop.DBus.Error."


class Started:
    """A process that does nothing."""

    def kill(self) -> None:
        """It is ended."""


class Launches:
    """Notes what is launched, or fails as it is told to."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.error: LaunchError | None = None

    def launch(self, loop: asyncio.AbstractEventLoop, service: ServiceFile, on_failure: Any) -> Started:
        self.names.append(service.name)
        if self.error is not None:
            raise self.error
        return Started()


class Scene:
    """A bus that offers one service, with one client and one native connection."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.world = World(limits=limits)
        self.launches = Launches()
        self.world.launcher.launch = self.launches.launch  # type: ignore[method-assign, assignment]
        self.world.offer(NAME)
        self.client = self.world.join("client")
        self.service = self.world.join("service")
        self.native = Neighbour(self.world)
        self.world.collect()

    def settle(self) -> None:
        """Let what was put off happen."""
        for _ in range(3):
            self.world.settle()

    def calls(self) -> list[str]:
        """What the service was called with, signals of the driver left out."""
        return [m.member for m in self.service.messages() if m.type == METHOD_CALL or m.member == "S"]


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.world.close()


def call(member: str = "M", flags: int = 0) -> Message:
    fields = {"path": "/a", "interface": "a.b", "member": member, "destination": NAME}
    return Message(METHOD_CALL, flags=flags, fields=fields)


# Natives that ask


def test_a_natives_call_starts_the_service_once_and_reaches_it(scene: Scene) -> None:
    cookies = [scene.native.call(NAME, "u", number) for number in range(3)]
    scene.settle()
    assert scene.launches.names == [NAME]
    scene.service.request_name(NAME)
    messages = [message for message in scene.service.messages() if message.type == METHOD_CALL]
    assert [message.body for message in messages] == [[0], [1], [2]]
    for message in messages:
        fields = {"destination": message.fields["sender"], "reply_serial": message.serial}
        scene.service.send(Message(METHOD_RETURN, fields=fields))
    assert [mail.last for mail in scene.native.mail()] == cookies


def test_the_owner_knows_that_it_has_the_name_before_it_is_called(scene: Scene) -> None:
    scene.native.call(NAME)
    scene.service.request_name(NAME)
    members = [message.member for message in scene.service.messages()]
    assert members == ["NameAcquired", "M"]


def test_a_call_that_wants_no_reply_starts_the_service_too(scene: Scene) -> None:
    scene.native.call(NAME, flags=NO_REPLY_EXPECTED)
    scene.settle()
    assert scene.launches.names == [NAME]


def test_a_call_that_starts_nothing_is_refused(scene: Scene) -> None:
    with pytest.raises(KdbusError) as refused:
        scene.native.call(NAME, flags=NO_AUTO_START)
    assert errorcode[refused.value.errno] == errorcode[EADDRNOTAVAIL]
    scene.settle()
    assert scene.launches.names == []


def test_calls_of_both_kinds_reach_the_service_in_their_order(scene: Scene) -> None:
    for number in range(4):
        scene.native.call(NAME, member=f"N{number}")
        scene.client.send(call(f"L{number}"))
    scene.settle()
    assert scene.launches.names == [NAME]
    scene.service.request_name(NAME)
    assert scene.calls() == [f"{kind}{number}" for number in range(4) for kind in "NL"]


def test_a_call_that_waits_is_answered_by_a_service_that_was_started(scene: Scene) -> None:
    done: list[SyncCall] = []
    waiting = scene.native.wait(NAME, done.append)
    scene.service.request_name(NAME)
    (message,) = [message for message in scene.service.messages() if message.type == METHOD_CALL]
    fields = {"destination": message.fields["sender"], "reply_serial": message.serial}
    scene.service.send(Message(METHOD_RETURN, fields=fields))
    assert done == [waiting]
    assert waiting.errno == 0
    assert scene.native.take(waiting).parsed.type == METHOD_RETURN


def test_who_calls_and_goes_is_forgotten(scene: Scene) -> None:
    scene.native.call(NAME)
    scene.native.leave()
    scene.service.request_name(NAME)
    assert scene.service.connection.duties == {}


def test_a_call_whose_service_goes_at_once_is_dead(scene: Scene) -> None:
    cookie = scene.native.call(NAME)
    scene.service.request_name(NAME)
    scene.service.leave()
    assert scene.native.words() == [f"REPLY_DEAD {cookie}"]


def test_what_a_service_does_not_take_is_dead_too(scene: Scene) -> None:
    deaf = scene.world.join("deaf", negotiate_fds=False)
    before = count_own_fds()
    with open(os.devnull) as file:
        cookie = scene.native.call(NAME, "h", 0, fds=[file.fileno()])
        other = scene.native.call(NAME)
        deaf.request_name(NAME)
    assert scene.native.words() == [f"REPLY_DEAD {cookie}"]
    assert [m.serial for m in deaf.messages() if m.type == METHOD_CALL] == [other]
    assert count_own_fds() == before


# Starts that fail


def test_a_native_learns_that_the_start_has_failed(scene: Scene) -> None:
    scene.launches.error = LaunchError("Spawn.ExecFailed", "no")
    cookie = scene.native.call(NAME)
    done: list[SyncCall] = []
    scene.native.wait(NAME, done.append)
    scene.settle()
    assert scene.native.words() == [f"REPLY_DEAD {cookie}"]
    assert [errorcode[call.errno] for call in done] == ["EPIPE"]
    assert scene.native.connection.outstanding == 0


def test_everybody_learns_that_the_start_has_failed(scene: Scene) -> None:
    scene.launches.error = LaunchError("Spawn.ExecFailed", "no")
    cookie = scene.native.call(NAME)
    serial = scene.client.send(call())
    scene.settle()
    (error,) = scene.client.messages()
    assert (error.error_name, error.fields["reply_serial"]) == (PREFIX + "Spawn.ExecFailed", serial)
    assert scene.native.words() == [f"REPLY_DEAD {cookie}"]


def test_after_a_failure_it_can_be_tried_again(scene: Scene) -> None:
    scene.launches.error = LaunchError("Spawn.ExecFailed", "no")
    scene.native.call(NAME)
    scene.settle()
    scene.launches.error = None
    scene.native.words()
    scene.native.call(NAME, member="Again")
    scene.settle()
    assert scene.launches.names == [NAME, NAME]
    scene.service.request_name(NAME)
    assert scene.calls() == ["Again"]


def test_too_many_starts_are_refused_for_natives_too() -> None:
    limits = Limits()
    limits.max_pending_service_starts = 1
    scene = Scene(limits)
    try:
        scene.world.offer(NAME, NAME + "2")
        first = scene.native.call(NAME)
        scene.settle()
        second = scene.native.call(NAME + "2")
        scene.settle()
        assert scene.launches.names == [NAME]
        assert scene.native.words() == [f"REPLY_DEAD {second}"]
        scene.service.request_name(NAME)
        assert [m.serial for m in scene.service.messages() if m.type == METHOD_CALL] == [first]
    finally:
        scene.world.close()


def test_a_service_that_is_offered_no_longer_is_dead(scene: Scene) -> None:
    cookie = scene.native.call(NAME)
    scene.world.offer()
    assert scene.native.words() == [f"REPLY_DEAD {cookie}"]
    scene.settle()


# Services that are native


def test_a_native_that_takes_the_name_gets_what_was_held(scene: Scene) -> None:
    serial = scene.client.send(call("Held"))
    scene.native.call(NAME, member="Own")
    scene.settle()
    owner = Neighbour(scene.world)
    scene.world.bus.name_acquire(owner.connection, NAME, 0)
    mails = {mail.parsed.member: mail for mail in owner.mail()}
    assert set(mails) == {"Held", "Own"}
    for mail in mails.values():
        owner.answer(mail)
    (reply,) = scene.client.messages()
    assert reply.fields["reply_serial"] == serial
    assert len(scene.native.mail()) == 1


def test_whoever_asked_for_the_start_learns_that_a_native_came(scene: Scene) -> None:
    fields = {
        "path": "/org/freedesktop/DBus",
        "interface": "org.freedesktop.DBus",
        "member": "StartServiceByName",
        "destination": "org.freedesktop.DBus",
        "signature": "su",
    }
    serial = scene.client.send(Message(METHOD_CALL, fields=fields, body=[NAME, 0]))
    scene.settle()
    owner = Neighbour(scene.world)
    scene.world.bus.name_acquire(owner.connection, NAME, 0)
    (reply,) = scene.client.messages()
    assert (reply.fields["reply_serial"], reply.body) == (serial, [1])
    assert scene.client.call("StartServiceByName", "su", NAME, 0).body == [2]


def test_what_a_native_owner_has_not_read_starts_the_service_again(scene: Scene) -> None:
    owner = Neighbour(scene.world)
    scene.world.bus.name_acquire(owner.connection, NAME, 0)
    scene.native.call(NAME, member="Unread")
    owner.leave()
    scene.settle()
    assert scene.launches.names == [NAME]
    scene.service.request_name(NAME)
    assert scene.calls() == ["Unread"]


# Activators that are native


def test_a_clients_call_waits_with_a_native_activator(scene: Scene) -> None:
    name = "com.example.NativelyActivated"
    activator = Neighbour(scene.world, flags=HelloFlag.ACTIVATOR | HelloFlag.ACCEPT_FD, name=name)
    ready: list[str] = []
    inbox = activator.connection.inbox
    assert inbox is not None
    inbox.on_ready = lambda: ready.append("ready")
    message = call("Held")
    message.fields["destination"] = name
    serial = scene.client.send(message)
    assert ready == ["ready"]
    scene.service.request_name(name)
    (held,) = [m for m in scene.service.messages() if m.type == METHOD_CALL]
    assert (held.fields["sender"], held.serial) == (scene.client.unique_name, serial)
    fields = {"destination": scene.client.unique_name, "reply_serial": held.serial}
    scene.service.send(Message(METHOD_RETURN, flags=NO_REPLY_EXPECTED, fields=fields))
    (reply,) = scene.client.messages()
    assert (reply.type, reply.fields["reply_serial"]) == (METHOD_RETURN, serial)
    assert scene.client.connection.outstanding == 0


def test_signals_to_an_activatable_name_are_held_as_well(scene: Scene) -> None:
    scene.native.call(NAME, flags=NO_REPLY_EXPECTED, member="First")
    fields = {"path": "/a", "interface": "a.b", "member": "S", "destination": NAME}
    scene.client.send(Message(SIGNAL, fields=fields))
    scene.service.request_name(NAME)
    assert scene.calls() == ["First", "S"]


# Natives that listen in, and native services


def test_a_native_monitor_sees_what_waits_for_a_service_once_and_when_it_comes(scene: Scene) -> None:
    for owner in (Neighbour(scene.world), None):
        watcher = Neighbour(scene.world, flags=HelloFlag.MONITOR | HelloFlag.ACCEPT_FD)
        scene.client.send(call("Held"))
        scene.native.call(NAME, member="Mail")
        assert watcher.words() == [
            f"Held from {scene.client.connection.id}",
            f"Mail from {scene.native.connection.id}",
        ]
        if owner is not None:
            scene.world.bus.name_acquire(owner.connection, NAME, 0)
            assert [mail.parsed.member for mail in owner.mail()] == ["Held", "Mail"]
            owner.leave()
        else:
            scene.service.request_name(NAME)
            assert scene.calls() == ["Held", "Mail"]
        assert not [words for words in watcher.words() if words.startswith(("Held", "Mail"))]
        watcher.leave()


def test_calls_of_both_kinds_reach_a_native_service_in_their_order(scene: Scene) -> None:
    for number in range(3):
        scene.client.send(call(f"L{number}"))
        scene.native.call(NAME, member=f"N{number}")
    scene.client.send(call("L3"))
    service = Neighbour(scene.world)
    scene.world.bus.name_acquire(service.connection, NAME, 0)
    mails = service.mail()
    assert [mail.parsed.member for mail in mails] == ["L0", "N0", "L1", "N1", "L2", "N2", "L3"]
    for mail in mails:
        service.answer(mail)
    scene.settle()
    answers = [message for message in scene.client.messages() if message.type == METHOD_RETURN]
    assert len(answers) == 4
    assert len(scene.native.mail()) == 3
    assert not scene.world.activation._starts


def test_who_has_gone_while_its_call_waited_for_a_native_service_is_passed_over(scene: Scene) -> None:
    scene.client.send(call("L0"))
    scene.native.call(NAME, member="N0")
    scene.client.leave()
    service = Neighbour(scene.world)
    scene.world.bus.name_acquire(service.connection, NAME, 0)
    assert [mail.parsed.member for mail in service.mail()] == ["N0"]
