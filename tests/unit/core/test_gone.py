"""When the broker goes away the proxy ends, whatever it is doing, with one line in its log."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from errno import EACCES, ECONNREFUSED, ENOENT, EPERM
from pathlib import Path

import pytest
from support.kdbusd import Kdbusd
from support.split import PATIENCE, Cores, SplitWorld, Stranger

from busproxy.core import EXIT_STATUS, BrokerGone, RemoteBus
from kdbus_core.errors import KdbusError
from kdbus_core.transport import client as native

LOG = logging.getLogger("tests.core")

Ending = Callable[[], None]


@pytest.fixture(params=["the bus ends", "the broker is killed"])
def ending(request: pytest.FixtureRequest, cores: Cores) -> Iterator[tuple[SplitWorld, Ending]]:
    """A proxy, and how its bus comes to an end."""
    if request.param == "the bus ends":
        maker, endpoint = cores.make_bus()
        with maker, SplitWorld(endpoint) as world:

            def end() -> None:
                maker.close()
                assert world.bus.news.intake.wait(PATIENCE)

            yield world, end
        return
    daemon = Kdbusd(f'[[bus]]\nname = "{os.geteuid()}-test"\n')
    try:
        with SplitWorld(daemon.node(f"{os.geteuid()}-test")) as world:
            yield world, daemon.kill
    finally:
        daemon.discard()


class Lines(logging.Handler):
    """What a log is told."""

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._log = log

    def __enter__(self) -> list[str]:
        self._log.addHandler(self)
        return self.lines

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def asking_for_news(world: SplitWorld) -> None:
    world.bus.drain()


def acquiring_a_name(world: SplitWorld) -> None:
    world.bus.name_acquire(world["client"].connection, "a.b", 0)


def releasing_a_name(world: SplitWorld) -> None:
    world.bus.name_release(world["client"].connection, "a.c")


def connecting(world: SplitWorld) -> None:
    world.join("another")


def disconnecting(world: SplitWorld) -> None:
    world.bus.disconnect(world["client"].connection)


def subscribing(world: SplitWorld) -> None:
    world["client"].add_match("type='signal'")


def becoming_a_monitor(world: SplitWorld) -> None:
    world["client"].become_monitor()


def offering_a_service(world: SplitWorld) -> None:
    world.offer("a.d")


@pytest.mark.parametrize(
    "command",
    [
        asking_for_news,
        acquiring_a_name,
        releasing_a_name,
        connecting,
        disconnecting,
        subscribing,
        becoming_a_monitor,
        offering_a_service,
    ],
    ids=lambda command: command.__name__.replace("_", " "),
)
def test_the_end_is_noticed_whatever_is_asked(
    ending: tuple[SplitWorld, Ending],
    command: Callable[[SplitWorld], None],
) -> None:
    world, end = ending
    client = world.join("client")
    assert client.request_name("a.c") == 1
    with Lines(world.log) as lines:
        end()
        with pytest.raises(BrokerGone) as caught:
            command(world)
        assert caught.value.code == EXIT_STATUS
        with pytest.raises(BrokerGone):
            world.bus.hello(world.bus.endpoint, world.bus.creator, sink=client.peer)
        world.bus.drain()  # nothing any more
        world.close()
    assert not world.router.peers
    (line,) = lines
    assert line.startswith(f"the bus {world.endpoint} has gone away: ")


def test_an_end_while_nothing_happens_is_readable(ending: tuple[SplitWorld, Ending]) -> None:
    world, end = ending
    world.settle()
    end()
    assert world.bus.news.intake.wait(PATIENCE)


def test_a_connection_that_others_have_ended_takes_its_client_along(world: SplitWorld) -> None:
    client, other = world.join("client"), world.join("other")
    other.add_match("member='NameOwnerChanged'")
    client.request_name("a.b")
    world.collect()
    id = client.connection.id
    remote = world.bus.links[client.connection].remote
    with socket.socket(fileno=os.dup(remote.socket_fileno())) as handle:
        handle.shutdown(socket.SHUT_RDWR)
    assert world.bus.news.intake.wait(PATIENCE)
    world.settle()
    assert world.lost == [id]
    assert [message.body for message in other.messages()] == [
        ["a.b", f":1.{id}", ""],
        [f":1.{id}", f":1.{id}", ""],
    ]
    assert not client.connection.active


def test_there_has_to_be_a_bus(tmp_path: Path) -> None:
    with pytest.raises(KdbusError) as caught:
        RemoteBus(tmp_path / "bus", LOG)
    assert caught.value.errno == ENOENT
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(tmp_path / "dead"))
        with pytest.raises(KdbusError) as caught:
            RemoteBus(tmp_path / "dead", LOG)
    assert caught.value.errno == ECONNREFUSED


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(("access", "errno"), [("world", EPERM), ("owner", EACCES)])
def test_only_an_owner_may_put_a_proxy_in_front_of_a_bus(access: str, errno: int) -> None:
    daemon = Kdbusd(f'[[bus]]\nname = "0-test"\naccess = "{access}"\n')
    try:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.setgroups([])
                os.setresgid(4711, 4711, 4711)
                os.setresuid(4711, 4711, 4711)
                RemoteBus(daemon.node("0-test"), LOG)
            except KdbusError as error:
                status = error.errno
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == errno
    finally:
        daemon.stop()


def test_nothing_is_left_open(cores: Cores) -> None:
    with cores.bus() as endpoint:
        before = os.listdir("/proc/self/fd")
        world = SplitWorld(endpoint)
        world.offer("a.b")
        for label in ("first", "second", "monitor"):
            world.join(label).request_name(f"a.{label}")
        world["monitor"].become_monitor()
        with Stranger(world) as stranger:
            stranger.call("a.first")
            world.settle()
            world["first"].leave()
        world.close()
        assert os.listdir("/proc/self/fd") == before
        with native.open_node(endpoint) as node, node.hello() as witness:
            assert [info.id for info in witness.list()] == [witness.id]
