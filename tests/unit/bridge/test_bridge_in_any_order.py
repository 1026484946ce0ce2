"""Whatever clients and natives do to each other, each request has one end, and in the end nothing is left."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from support.neighbour import FAR, Mail, Neighbour
from support.nothing_left import end_in_peace
from support.proxy import World, count_own_fds
from support.raw import (
    ERROR,
    METHOD_CALL,
    METHOD_RETURN,
    NO_AUTO_START,
    NO_REPLY_EXPECTED,
    SIGNAL,
    Message,
)

from busproxy.activation.launcher import LaunchError
from busproxy.policy.config import Limits
from kdbus_core import KdbusError
from kdbus_core.abi import HelloFlag
from kdbus_core.names import ALLOW_REPLACEMENT, QUEUE, REPLACE_EXISTING
from kdbus_core.synchronous import SyncCall

NAME = "com.example.Name"
OFFERED = "com.example.Offered"
MONITOR = HelloFlag.MONITOR | HelloFlag.ACCEPT_FD
COOKIES = [0, 0, 0, 1 << 32, (1 << 64) - 1, 0xFFFFFFFF]


class Scene:
    """Clients and natives that come and go.

    `asked` says how often each request has ended, by its requester's id and its serial or cookie.  A second
    answer of one client to another is passed on as dbus-daemon may do; that is not looked at here.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.world = World(limits=Limits(max_replies_per_connection=8, max_outgoing_bytes=400_000))
        self.world.launcher.launch = self._launch  # type: ignore[method-assign, assignment]
        self.world.offer(OFFERED)
        self.null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.labels = ["a", "b"]
        for label in self.labels:
            self.world.join(label)
        self.natives = [Neighbour(self.world, pages=40) for _ in range(2)]
        self.gone: list[Neighbour] = []
        self.watcher: Neighbour | None = None
        self.is_watched = False
        self.asked: dict[tuple[int, int], int] = {}
        self.to_clients: list[tuple[str, Message]] = []
        self.to_natives: list[tuple[Neighbour, Mail]] = []

    def _launch(self, *arguments: object) -> object:
        if self.chance.random() < 0.5:
            raise LaunchError("Spawn.ExecFailed", "no")

        class Process:
            def kill(self) -> None:
                """It is ended."""

        return Process()

    def somebody(self) -> str:
        names = [self.world[label].unique_name for label in self.labels]
        names += [native.unique_name for native in self.natives]
        return self.chance.choice([*names, *names, NAME, OFFERED])

    def step(self) -> None:
        actions: list[Callable[[], None]] = [
            *[self.client_calls, self.native_calls, self.client_answers, self.native_answers] * 3,
            self.native_waits,
            self.signals,
            self.client_leaves,
            self.native_leaves,
            self.names_change,
            self.time_passes,
            self.monitors_change,
        ]
        self.chance.choice(actions)()
        self.look()

    # What they do

    def body(self) -> tuple[str, list[object], int]:
        kind = self.chance.randrange(6)
        if kind == 0:
            return "h", [0], 1
        if kind == 1:
            return "ay", [bytes(30_000)], 0
        return "s", ["text"], 0

    def client_calls(self) -> None:
        client = self.world[self.chance.choice(self.labels)]
        signature, values, fds = self.body()
        flags = self.chance.choice([0, 0, 0, NO_AUTO_START, NO_REPLY_EXPECTED])
        fields: dict[str, Any] = {"path": "/a", "member": "M", "destination": self.somebody()}
        fields["signature"] = signature
        if fds:
            fields["unix_fds"] = fds
        serial = client.next_serial()
        if not flags & NO_REPLY_EXPECTED:
            self.asked[client.connection.id, serial] = 0
        client.send(Message(METHOD_CALL, flags, serial, fields, values), [self.null] * fds)

    def native_calls(self) -> None:
        native = self.chance.choice(self.natives)
        signature, values, fds = self.body()
        cookie = self.chance.choice(COOKIES) or native.next_cookie()
        if (native.connection.id, cookie) in self.asked:
            cookie = native.next_cookie()
        flags = self.chance.choice([0, 0, 0, NO_AUTO_START, NO_REPLY_EXPECTED])
        timeout = self.chance.choice([FAR, 1000, 2000])
        try:
            native.call(
                self.somebody(),
                signature,
                *values,
                cookie=cookie,
                flags=flags,
                timeout_ns=timeout,
                fds=[self.null] * fds,
            )
        except KdbusError:
            return
        if not flags & NO_REPLY_EXPECTED:
            self.asked[native.connection.id, cookie] = 0

    def native_waits(self) -> None:
        native = self.chance.choice(self.natives)

        def on_done(call: SyncCall) -> None:
            self.ended(native.connection.id, call.cookie)
            if not call.errno:
                for fd in native.take(call).fds:
                    os.close(fd)

        self.asked[native.connection.id, native._cookie + 1] = 0
        try:
            native.wait(self.somebody(), on_done)
        except KdbusError:
            del self.asked[native.connection.id, native._cookie]

    def client_answers(self) -> None:
        if not self.to_clients:
            return
        label, call = self.to_clients.pop(self.chance.randrange(len(self.to_clients)))
        client = self.world[label]
        signature, values, fds = self.body()
        fields = {"destination": call.fields["sender"], "reply_serial": call.serial, "signature": signature}
        if fds:
            fields["unix_fds"] = fds
        if self.chance.random() < 0.3:
            fields |= {"error_name": "a.b.C"}
        kind = ERROR if "error_name" in fields else METHOD_RETURN
        for _ in range(self.chance.choice([1, 1, 1, 2])):
            client.send(Message(kind, NO_REPLY_EXPECTED, 0, dict(fields), values), [self.null] * fds)

    def native_answers(self) -> None:
        if not self.to_natives:
            return
        native, mail = self.to_natives.pop(self.chance.randrange(len(self.to_natives)))
        other = self.chance.choice(self.natives)
        signature, values, fds = self.body()
        for who in self.chance.choice([[native], [native], [native, native], [other, native]]):
            with suppress(KdbusError):
                who.answer(mail, signature, *values, fds=[self.null] * fds)

    def signals(self) -> None:
        client, native = self.world[self.chance.choice(self.labels)], self.chance.choice(self.natives)
        fields = {"path": "/a", "interface": "a.b", "member": "S"}
        if self.chance.random() < 0.5:
            fields["destination"] = self.somebody()
        client.send(Message(SIGNAL, NO_REPLY_EXPECTED, 0, fields))
        with suppress(KdbusError):
            native.signal(fields.get("destination"), "ay", bytes(20_000))

    def client_leaves(self) -> None:
        label = self.chance.choice(self.labels)
        self.look()
        self.to_clients = [(whose, call) for whose, call in self.to_clients if whose != label]
        self.forget(self.world[label].connection.id)
        self.world[label].leave()
        client = self.world.join(label)
        if self.chance.random() < 0.5:
            client.add_match("type='signal',interface='a.b'")

    def native_leaves(self) -> None:
        index = self.chance.randrange(2)
        native = self.natives[index]
        self.to_natives = [(whose, mail) for whose, mail in self.to_natives if whose is not native]
        self.forget(native.connection.id)
        native.leave()
        self.gone.append(native)
        self.natives[index] = Neighbour(self.world, pages=40)
        if self.chance.random() < 0.5:
            self.natives[index].add_match(1, "type='signal',interface='a.b'")

    def forget(self, id: int) -> None:
        """Nobody tells who has gone how its requests end."""
        self.asked = {key: ends for key, ends in self.asked.items() if key[0] != id or ends}

    def names_change(self) -> None:
        client, native = self.world[self.chance.choice(self.labels)], self.chance.choice(self.natives)
        name = self.chance.choice([NAME, OFFERED])
        match self.chance.randrange(4):
            case 0:
                client.request_name(name, self.chance.randrange(8))
            case 1:
                client.release_name(name)
            case 2:
                flags = self.chance.choice([0, ALLOW_REPLACEMENT, REPLACE_EXISTING | QUEUE, QUEUE])
                with suppress(KdbusError):
                    self.world.bus.name_acquire(native.connection, name, flags)
            case 3:
                with suppress(KdbusError):
                    self.world.bus.name_release(native.connection, name)

    def time_passes(self) -> None:
        self.world.bus.expire_replies(self.chance.choice([1000, 2000]))
        for start in list(self.world.activation._starts.values()):
            if self.chance.random() < 0.3:
                self.world.activation._fail(start, "a.b.TimedOut", "too late")

    def monitors_change(self) -> None:
        if self.chance.random() < 0.5:
            if self.watcher is None:
                self.watcher = Neighbour(self.world, flags=MONITOR, pages=40)
            else:
                self.watcher.words()
                self.watcher.leave()
                self.gone.append(self.watcher)
                self.watcher = None
        elif self.is_watched:
            self.world["monitor"].leave()
            self.is_watched = False
        else:
            self.world.join("monitor").become_monitor()
            self.is_watched = True

    # What they see

    def look(self) -> None:
        self.world.settle()
        for label in self.labels:
            client = self.world[label]
            for message in client.messages():
                if message.type == METHOD_CALL:
                    if not message.flags & NO_REPLY_EXPECTED:
                        self.to_clients.append((label, message))
                elif message.type in (METHOD_RETURN, ERROR):
                    self.ended(client.connection.id, message.fields["reply_serial"])
            while client.fds:
                os.close(client.fds.pop())
        if self.is_watched:
            self.world["monitor"].messages()
            while self.world["monitor"].fds:
                os.close(self.world["monitor"].fds.pop())
        for native in self.natives:
            for mail in native.mail():
                for fd in mail.fds:
                    if fd >= 0:
                        os.close(fd)
                if mail.dbus is None:
                    if mail.words.startswith("REPLY"):
                        self.ended(native.connection.id, mail.last)
                elif mail.dbus.type == METHOD_CALL:
                    if not mail.dbus.flags & NO_REPLY_EXPECTED:
                        self.to_natives.append((native, mail))
                elif mail.dbus.type in (METHOD_RETURN, ERROR):
                    self.ended(native.connection.id, mail.last)
        if self.watcher is not None:
            self.watcher.words()

    def ended(self, id: int, number: int) -> None:
        if (id, number) in self.asked:  # it may be the refusal of what wanted no reply
            self.asked[id, number] += 1

    def finish(self) -> None:
        """Everybody who owes an answer goes, except for those who wait for one."""
        self.world.bus.expire_replies(FAR)
        for start in list(self.world.activation._starts.values()):
            self.world.activation._fail(start, "a.b.TimedOut", "too late")
        self.look()


@pytest.mark.parametrize("seed", range(24))
def test_each_request_ends_once_and_nothing_is_left(seed: int) -> None:
    before = count_own_fds()
    scene = Scene(seed)
    try:
        for _ in range(120):
            scene.step()
        scene.finish()
        owed = {
            (requester.id, cookie)
            for connection in scene.world.bus.connections.values()
            for requester, window in connection.duties.items()
            for cookie in (*window, *window.trackers)
        }
        natives = {native.connection.id for native in (*scene.natives, *scene.gone)}
        for (id, number), ends in scene.asked.items():
            if id in natives:
                assert ends == (0 if (id, number) in owed else 1), (id, number)
            else:
                assert ends or (id, number) in owed, (id, number)
        everybody = [*scene.natives, *scene.gone, *([scene.watcher] if scene.watcher else [])]
        end_in_peace(scene.world, *everybody)
    finally:
        scene.world.close()
        os.close(scene.null)
    assert count_own_fds() == before
