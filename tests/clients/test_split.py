"""`busproxyd --core` as a process: in front of a kdbusd, with others in front of the same bus, and its end.

What clients see is the business of all other tests here, which run in split mode with BUSPROXY_TEST_CORE=1;
what passes between native and legacy peers is tested on both forms of the bus.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from support.bus import BUSPROXYD, REPOSITORY, Bus, build_session_config, clean_environment, start_bus
from support.kdbusd import PATIENCE, Kdbusd
from support.raw import (
    METHOD_CALL,
    METHOD_RETURN,
    NO_REPLY_EXPECTED,
    SIGNAL,
    Disconnected,
    Message,
    RawClient,
)

from busproxy.core import EXIT_STATUS
from kdbus_core.abi import MATCH_ANY, ItemType, ListFlag
from kdbus_core.matches import IdNotice
from kdbus_core.transport.client import Connection, IdChanged, Notification, open_node

BUS = f"{os.geteuid()}-test"
CONFIG = f'[[bus]]\nname = "{BUS}"\naccess = "world"\n'
NAME = "com.example.Name"

LOOPS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]


class Split:
    """A broker, and proxies in front of its one bus."""

    def __init__(self) -> None:
        self.core = Kdbusd(CONFIG)
        self.node = self.core.node(BUS)
        self.proxies: list[Bus] = []

    def start(self, *arguments: str) -> Bus:
        self.proxies.append(start_bus(BUSPROXYD, arguments=[f"--core={self.node}", *arguments]))
        return self.proxies[-1]

    def native(self) -> Connection:
        with open_node(self.node) as handle:
            return handle.hello()

    def discard(self) -> None:
        for proxy in self.proxies:
            proxy._discard()
        self.core.discard()


@pytest.fixture
def split() -> Iterator[Split]:
    """Everything that is still there at the end is given up."""
    split = Split()
    try:
        yield split
    finally:
        split.discard()


def await_end(client: RawClient) -> None:
    """The bus closes this client's connection."""
    with suppress(ConnectionResetError):
        while True:
            try:
                client.receive()
            except Disconnected:
                return


def check_end(proxy: Bus) -> None:
    """It has ended because its broker has, and has said so in one line."""
    assert proxy.process.wait(PATIENCE) == EXIT_STATUS
    lines = [line for line in proxy.stderr_text().splitlines() if "not enforced" not in line]
    assert len(lines) == 1, lines
    assert "has gone away" in lines[0]
    assert not (proxy.directory / "socket").exists()


def run_proxy(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A busproxyd that is not expected to stay."""
    config = directory / "bus.conf"
    config.write_text(build_session_config(directory))
    words = [sys.executable, "-m", "busproxy.daemon", f"--config-file={config}", "--nofork", *arguments]
    environment = clean_environment(directory) | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL
    )


# Beginnings


def test_without_a_broker_there_is_no_proxy(tmp_path: Path) -> None:
    ended = run_proxy(tmp_path, f"--core={tmp_path}/bus")
    assert ended.returncode == 1
    assert "Cannot use the bus at" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_proxy_has_one_broker(tmp_path: Path) -> None:
    ended = run_proxy(tmp_path, f"--core={tmp_path}/bus", f"--native={tmp_path}/native")
    assert ended.returncode == 1
    assert "--core" in ended.stderr
    assert run_proxy(tmp_path, "--core=").returncode == 1


@pytest.mark.parametrize("loop", LOOPS)
def test_clients_of_either_loop_are_served(split: Split, loop: str) -> None:
    proxy = split.start(f"--loop={loop}")
    with proxy.connect() as client, split.native() as native:
        assert client.reply("NameHasOwner", "s", f":1.{native.id}").body == [True]
        assert native.info(int(client.unique_name.removeprefix(":1."))).description == "busproxy"
        native.name_acquire(NAME)
        assert client.reply("GetNameOwner", "s", NAME).body == [f":1.{native.id}"]
    proxy.stop()


# Several proxies


def test_clients_of_several_proxies_are_on_one_bus(split: Split) -> None:
    first, second = split.start(), split.start()
    with first.connect() as here, second.connect() as there:
        there.call("AddMatch", "s", "interface='a.b'")
        assert here.reply("RequestName", "su", NAME, 0).body == [1]
        assert there.reply("RequestName", "su", NAME, 0).body == [2]
        owners = [here.unique_name, there.unique_name]
        for client in (here, there):
            assert client.reply("ListQueuedOwners", "s", NAME).body == [owners]
            assert set(owners) < set(client.reply("ListNames").body[0])
            assert client.reply("GetConnectionUnixProcessID", "s", NAME).body == [os.getpid()]
        serial = there.send_call("M", "s", "x", destination=NAME, path="/a", interface="a.b")
        request = receive(here, METHOD_CALL)
        assert (request.body, request.fields["sender"]) == (["x"], there.unique_name)
        here.send(
            Message(METHOD_RETURN, 1, 0, {"destination": there.unique_name, "reply_serial": request.serial})
        )
        assert receive(there, METHOD_RETURN).fields["reply_serial"] == serial
        here.send(Message(SIGNAL, 1, 0, {"path": "/a", "interface": "a.b", "member": "S"}))
        assert receive(there, SIGNAL, "S").fields["sender"] == here.unique_name
        here.socket.shutdown(socket.SHUT_RDWR)
        while receive(there, SIGNAL, "NameAcquired").body != [NAME]:
            pass
    for proxy in (first, second):
        proxy.stop()
    split.core.stop()


def receive(client: RawClient, type: int, member: str | None = None) -> Message:
    """The next message of this kind."""
    while True:
        message = client.receive()
        if message.type == type and member in (None, message.member):
            return message


def test_what_one_proxy_had_goes_with_it(split: Split) -> None:
    first, second = split.start(), split.start()
    native = split.native()
    with first.connect() as here, second.connect() as there, native:
        here.call("RequestName", "su", NAME, 0)
        there.call("AddMatch", "s", f"member='NameOwnerChanged',arg0='{NAME}'")
        there.send_call("M", destination=NAME, path="/a", interface="a.b")
        receive(here, METHOD_CALL)
        first.process.kill()
        first.process.wait()
        assert receive(there, SIGNAL, "NameOwnerChanged").body == [NAME, here.unique_name, ""]
        error = receive(there, 3)
        assert error.error_name == "org.freedesktop.DBus.Error.NoReply"
        assert there.reply("NameHasOwner", "s", here.unique_name).body == [False]
        assert f":1.{native.id}" in there.reply("ListNames").body[0]
    second.stop()


# Ends


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_broker_ends_so_does_the_proxy(split: Split, loop: str, number: signal.Signals) -> None:
    proxy = split.start(f"--loop={loop}")
    with proxy.connect() as first, proxy.connect() as second:
        first.call("RequestName", "su", NAME, 0)
        split.core.process.send_signal(number)
        for client in (first, second):
            await_end(client)
    check_end(proxy)


def test_when_the_bus_ends_so_does_the_proxy(split: Split) -> None:
    with open_node(split.core.control) as maker:
        name = f"{os.geteuid()}-made"
        maker.make_bus(name)
        proxy = start_bus(BUSPROXYD, arguments=[f"--core={split.core.node(name)}"])
        split.proxies.append(proxy)
        with proxy.connect() as client:
            maker.close()
            await_end(client)
    check_end(proxy)


@pytest.mark.parametrize("seed", range(6))
def test_the_broker_may_go_at_any_moment(split: Split, seed: int) -> None:
    """While clients come and go, own names, subscribe, call each other and native ones."""
    rng = random.Random(seed)
    proxy = split.start()
    with split.native() as native, ExitStack() as clients:
        native.name_acquire(NAME)
        threads = [
            threading.Thread(target=be_busy, args=(proxy, random.Random(f"{seed} {number}")))
            for number in range(3)
        ]
        witness = clients.enter_context(proxy.connect())
        for thread in threads:
            thread.start()
        for _ in range(rng.randrange(5, 60)):
            witness.sync()
        split.core.process.kill()
        await_end(witness)
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    check_end(proxy)


def be_busy(proxy: Bus, rng: random.Random) -> None:
    """Do this and that until the bus has gone."""
    acts: list[Callable[[RawClient], object]] = [
        lambda client: client.call("RequestName", "su", f"a.b{rng.randrange(4)}", rng.randrange(8)),
        lambda client: client.call("ReleaseName", "s", f"a.b{rng.randrange(4)}"),
        lambda client: client.call("AddMatch", "s", f"member='S{rng.randrange(4)}'"),
        lambda client: client.call("ListNames"),
        lambda client: client.send_call(
            "M", destination=NAME, path="/a", interface="a.b", flags=NO_REPLY_EXPECTED
        ),
        lambda client: client.send(
            Message(SIGNAL, 1, 0, {"path": "/a", "interface": "a.b", "member": f"S{rng.randrange(4)}"})
        ),
    ]
    with suppress(OSError, Disconnected):
        while True:
            with proxy.connect() as client:
                for _ in range(rng.randrange(1, 20)):
                    rng.choice(acts)(client)


def test_a_proxy_that_is_told_to_end_leaves_nobody_behind(split: Split) -> None:
    proxy = split.start()
    with split.native() as native, proxy.connect() as client:
        client.call("RequestName", "su", NAME, 0)
        client.call("BecomeMonitor", "asu", [], 0, interface="org.freedesktop.DBus.Monitoring")
        proxy.stop()
        deadline = time.monotonic() + PATIENCE
        while [info.id for info in native.list()] != [native.id]:
            assert time.monotonic() < deadline, native.list()
    split.core.stop()


def test_clients_that_have_gone_leave_no_descriptor_behind(split: Split) -> None:
    proxy = split.start()
    fds = proxy.count_fds_besides()
    with proxy.connect() as client:
        client.sync()
        core_fds = split.core.count_fds()  # one client's among them, or those of the one before as well
    with ExitStack() as stack:
        clients = [stack.enter_context(proxy.connect()) for _ in range(20)]
        for number, client in enumerate(clients):
            client.call("RequestName", "su", f"a.b{number % 7}", 0)
            client.call("AddMatch", "s", "type='signal'")
    assert proxy.settle_fds(fds) == fds
    with proxy.connect() as client:
        deadline = time.monotonic() + PATIENCE
        while split.core.count_fds() > core_fds:
            client.sync()
            assert time.monotonic() < deadline
    proxy.stop()
    split.core.stop()


def test_a_native_witness_sees_clients_come_and_go(split: Split) -> None:
    proxy = split.start()
    with split.native() as native:
        for cookie, type in enumerate((ItemType.ID_ADD, ItemType.ID_REMOVE)):
            native.match_add(cookie, [IdNotice(type, MATCH_ANY)])
        with proxy.connect() as client:
            id = int(client.unique_name.removeprefix(":1."))
        seen: list[Notification | None] = []
        while len(seen) < 2:
            assert native.wait(PATIENCE)
            received = native.receive()
            if received is not None:
                with received:
                    seen.append(received.notification)
        assert [(news.kind, news.id) for news in seen if isinstance(news, IdChanged)] == [
            (ItemType.ID_ADD, id),
            (ItemType.ID_REMOVE, id),
        ]
    proxy.stop()


def test_a_reload_changes_what_natives_can_start(split: Split, tmp_path: Path) -> None:
    proxy = start_bus(BUSPROXYD, servicedir=tmp_path, arguments=[f"--core={split.node}"])
    split.proxies.append(proxy)
    service = tmp_path / "test.service"

    def await_offer(native: Connection, names: list[str]) -> None:
        proxy.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE
        while [name for info in native.list(ListFlag.ACTIVATORS) for name in info.names] != names:
            assert time.monotonic() < deadline

    with split.native() as native, proxy.connect() as client:
        client.reply("RequestName", "su", "a.b", 0)
        service.write_text(f"[D-BUS Service]\nName={NAME}\nExec=/bin/false\n")
        await_offer(native, [NAME])
        service.unlink()
        await_offer(native, [])
        assert client.reply("GetNameOwner", "s", "a.b").body == [client.unique_name]
    proxy.stop()
