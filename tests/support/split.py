"""The proxy of `support.proxy` in split mode, and strangers on the same remote bus.

`Cores` runs one kdbusd for many tests and makes a fresh bus for each of them. A `SplitWorld` is a `World`
whose bus is that one: broker in another process, everything else in the test. A `Stranger` is what a
`support.neighbour.Neighbour` is on an embedded bus, through the client library.

Nothing waits here either: a command of the client library has been carried out when it returns, so what it
has caused is there to be read, and `SplitWorld.settle` reads until there is nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from busproxy.activation.activator import Activation
from busproxy.activation.launcher import Launcher
from busproxy.core import RemoteBus
from busproxy.core.outgoing import send_message
from busproxy.driver import Driver
from busproxy.match_entries import core_rule, own_signal_entries, rule_entries
from busproxy.policy.config import ConnectPolicy, ConnectRule, Limits
from busproxy.remarshal import parse_gvariant
from busproxy.transport.loop import new_event_loop
from busproxy.wire.match_rules import parse_match_rule
from kdbus_core.abi import ATTACH_ALL, MSG, SRC_KERNEL, HelloFlag, NameFlag
from kdbus_core.items import iterate_items
from kdbus_core.message import Message as KdbusMessage
from kdbus_core.metadata import Credentials, Snapshot
from kdbus_core.transport import client
from support.kdbusd import Kdbusd
from support.neighbour import FAR, Mail, Neighbour
from support.proxy import OWNER_UID, Client, CountingRouter, Host, PatientLauncher, World

PATIENCE = 30.0
"""Seconds for what takes no time on a fast machine."""


class Cores:
    """A running kdbusd, and the buses that were made in it for tests."""

    def __init__(self) -> None:
        self.daemon = Kdbusd()
        self._count = 0

    @contextmanager
    def bus(self) -> Iterator[Path]:
        """The default endpoint of a new bus, which is there in here."""
        maker, endpoint = self.make_bus()
        with maker:
            yield endpoint

    def make_bus(self) -> tuple[client.Handle, Path]:
        """A new bus: its maker, whose end is that of the bus, and its default endpoint."""
        self._count += 1
        name = f"{os.geteuid()}-{self._count}"
        maker = client.open_node(self.daemon.control)
        try:
            maker.make_bus(name)
        except BaseException:
            maker.close()
            raise
        return maker, self.daemon.node(name)

    def close(self) -> None:
        self.daemon.stop()


class SplitWorld(World):
    """A bus of a broker in another process, and clients of a proxy in front of it."""

    bus: RemoteBus

    def __init__(self, endpoint: Path, *, flows: bool = True, limits: Limits | None = None) -> None:
        self.endpoint = endpoint
        self.flows = flows
        self.loop, self.poller = new_event_loop("asyncio")
        self.log = logging.getLogger("tests.world")
        self.log.propagate = False
        self.bus = RemoteBus(endpoint, self.log)
        self.domain = self.bus.domain
        everybody = ConnectPolicy(default=[ConnectRule(True, None, None, "test:1")])  # noqa: FBT003 - as in a file
        self.limits = limits or Limits()
        self.router = CountingRouter(
            self.bus, self.poller, self.loop, self.log, self.limits, everybody, OWNER_UID
        )
        self.driver = Driver(self.router, Host())
        self.launcher = PatientLauncher()
        self.activation = Activation(self.router, cast(Launcher, self.launcher), lambda: None, systemd=False)
        self.clients: dict[str, Client] = {}
        self.lost: list[int] = []
        self.bus.on_lost = lambda connection: self.lost.append(connection.id)
        self.poller.before_round = self.bus.drain

    def settle(self) -> None:
        """Read the broker's news and serve every socket until nothing is left to do."""
        while True:
            self.bus.drain()
            super().settle()
            if not self.bus.news.intake.wait(0):
                return

    def close(self) -> None:
        """Give everything back; twice is as good as once."""
        if self.loop.is_closed():
            return
        self.poller.before_round = None
        self.bus.close()
        super().close()


class Stranger(Neighbour):
    """A native connection to a bus in another process."""

    world: SplitWorld
    bus: RemoteBus

    def __init__(
        self,
        world: SplitWorld,
        *,
        flags: HelloFlag = HelloFlag.ACCEPT_FD,
        name: str | None = None,
        attach_send: int = ATTACH_ALL,
        attach_recv: int = 0,
        faked: Credentials | Snapshot | None = None,
    ) -> None:
        self.world = world
        self.bus = world.bus
        with client.open_node(world.endpoint) as node:
            self.remote = node.hello(
                flags=flags, name=name, attach_send=attach_send, attach_recv=attach_recv, faked=faked
            )
        self.id = self.remote.id
        self.unique_name = f":1.{self.id}"
        self._cookie = 0

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.remote.close()

    def build(
        self,
        type: int,
        destination: str | None,
        signature: str = "",
        *values: Any,
        timeout_ns: int = FAR,
        **options: Any,
    ) -> KdbusMessage:
        return super().build(type, destination, signature, *values, timeout_ns=timeout_ns, **options)

    def send(self, message: KdbusMessage) -> int:
        try:
            send_message(self.remote, message)
        finally:
            message.release()
        return message.cookie

    def acquire(self, name: str, flags: int = 0) -> int:
        return int(self.remote.name_acquire(name, NameFlag(flags)))

    def release(self, name: str) -> None:
        self.remote.name_release(name)

    def add_match(self, cookie: int, rule: str) -> None:
        for entry in rule_entries(self.bus.bloom, core_rule(parse_match_rule(rule))):
            self.remote.match_add(cookie, entry)

    def want_own_signals(self, cookie: int) -> None:
        for entry in own_signal_entries(self.id):
            self.remote.match_add(cookie, entry)

    def mail(self) -> list[Mail]:
        found: list[Mail] = []
        while (received := self.remote.receive()) is not None:
            found.append(_read(received))
        return found

    def leave(self) -> None:
        """Close the connection, and wait until the broker has noticed."""
        with client.open_node(self.world.endpoint) as node, node.hello() as witness:
            self.remote.close()
            deadline = time.monotonic() + PATIENCE
            while any(info.id == self.id for info in witness.list()):
                assert time.monotonic() < deadline, "the broker has not noticed"
        self.world.settle()


def _read(received: client.Received) -> Mail:
    with received:
        is_notice = received.sender == SRC_KERNEL
        payload = received.payload
        return Mail(
            received.sender,
            received.destination,
            received.flags,
            received.cookie,
            received.timeout_ns or received.cookie_reply,
            list(iterate_items(received._items, MSG.size)),
            payload,
            None if is_notice else parse_gvariant(payload),
            list(received.take_fds()),
        )
