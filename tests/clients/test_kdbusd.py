"""`kdbusd` as a process: its directory, its configuration, its signals and its end.

Clients are the library's blocking ones, in the test's own process.  What is waited for is always an event: a
line on a pipe, a datagram for the service manager, a message, the end of a socket or of the process.
"""

from __future__ import annotations

import os
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from errno import ECONNRESET, EPERM, ESHUTDOWN
from pathlib import Path

import pytest
from support.kdbusd import PATIENCE, Kdbusd

from kdbus_core.abi import MATCH_ANY, ItemType
from kdbus_core.domain import Bloom
from kdbus_core.errors import KdbusError
from kdbus_core.matches import NameNotice
from kdbus_core.transport.client import Connection, NameChanged, open_node

UID = os.geteuid()
NAME = "org.example.Echo"
POOL = 1 << 20

BUS = '[[bus]]\nname = "{uid}-test"\naccess = "world"\n'
ENDPOINT = '[[bus.endpoint]]\nname = "{uid}-narrow"\n'
OPEN = f'[[bus.policy]]\nname = "org.example.*"\nown = ["user:{UID}"]\n'
MAY_OWN = f'[[bus.endpoint.policy]]\nname = "{NAME}"\nown = ["user:{UID}"]\n'
TEST = f"{UID}-test"
NARROW = f"ep.{UID}-narrow"

Start = Callable[..., Kdbusd]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts daemons, and gives up all that are still there at the end."""
    with ExitStack() as stack:

        def start(*arguments: str, options: tuple[str, ...] = (), **more: object) -> Kdbusd:
            daemon = Kdbusd(*arguments, options=options, **more)  # type: ignore[arg-type]
            stack.callback(daemon.discard)
            return daemon

        yield start


def connect(daemon: Kdbusd, bus: str = TEST, endpoint: str = "bus") -> Connection:
    with open_node(daemon.node(bus, endpoint)) as handle:
        return handle.hello(pool_size=POOL)


def errno_of(command: Callable[[], object]) -> int:
    with pytest.raises(KdbusError) as refused:
        command()
    return refused.value.errno


def converse(daemon: Kdbusd) -> None:
    """A call to a name and its reply."""
    with connect(daemon) as service, connect(daemon) as client:
        service.name_acquire(NAME)
        cookie = client.send(b"ping", destination=NAME)
        assert service.wait(PATIENCE)
        message = service.receive()
        assert message is not None
        with message:
            assert (message.sender, message.cookie, message.payload) == (client.id, cookie, b"ping")


def await_end(connection: Connection) -> int:
    """The errno with which a connection ends."""
    assert connection.wait(PATIENCE)
    return errno_of(connection.receive)


# A domain


def test_it_hosts_a_domain_that_clients_make_buses_in(start: Start) -> None:
    daemon = start()
    with open_node(daemon.control) as handle:
        handle.make_bus(f"{UID}-mine", bloom=Bloom(32, 4))
        with connect(daemon, f"{UID}-mine") as connection:
            assert connection.bloom == Bloom(32, 4)
    daemon.stop()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_it_runs_on_either_loop(start: Start, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    daemon = start(BUS, options=(f"--loop={loop}",))
    converse(daemon)
    daemon.stop()


def test_its_owner_may_look_into_it(start: Start) -> None:
    daemon = start(BUS)
    with connect(daemon) as connection, open_node(daemon.control) as handle:
        (bus,) = handle.inspect()["buses"]
        assert bus["name"] == TEST
        assert [one["id"] for one in bus["connections"]] == [connection.id]
    daemon.stop()


def test_it_may_open_as_many_files_as_the_system_allows(start: Start) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] <= 256:
        pytest.skip("the hard limit is too low to see a difference")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        daemon = start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE) == (before[1], before[1])
    daemon.stop()


def test_clients_that_have_gone_leave_no_descriptor_behind(start: Start) -> None:
    daemon = start(BUS)
    with connect(daemon):
        with open_node(daemon.control) as handle:
            handle.inspect()
        before = daemon.count_fds()
        for _ in range(20):
            converse(daemon)
        with connect(daemon) as last:  # a round trip after those who have gone before
            assert last.info(last.id).id == last.id
            deadline = time.monotonic() + PATIENCE
            while daemon.count_fds() > before + 3 and time.monotonic() < deadline:
                last.info(last.id)
            assert daemon.count_fds() <= before + 3
    daemon.stop()


# What is configured


def test_configured_buses_are_there_when_it_is_ready(start: Start) -> None:
    daemon = start(f'{BUS}bloom = {{ size = 128, hashes = 2 }}\n[[bus]]\nname = "{{uid}}-other"\n{ENDPOINT}')
    with connect(daemon) as connection:
        assert connection.bloom == Bloom(128, 2)
    assert stat.S_ISSOCK(daemon.node(f"{UID}-other", NARROW).stat().st_mode)
    daemon.stop()


def test_access_is_the_mode_of_the_node(start: Start) -> None:
    daemon = start(f'access = "group"\n{BUS}{ENDPOINT}')
    modes = [
        stat.S_IMODE(path.stat().st_mode)
        for path in (daemon.control, daemon.node(TEST), daemon.node(TEST, NARROW))
    ]
    assert modes == [0o660, 0o666, 0o600]
    daemon.stop()


def test_a_configured_endpoint_lets_through_what_its_policy_says(start: Start) -> None:
    daemon = start(BUS + OPEN + ENDPOINT + MAY_OWN)
    with connect(daemon, endpoint=NARROW) as connection:
        connection.name_acquire(NAME)
        assert errno_of(lambda: connection.name_acquire("org.example.Other")) == EPERM
    daemon.stop()


def test_required_metadata_has_to_be_granted(start: Start) -> None:
    daemon = start(f'{BUS}required_metadata = ["creds"]')
    with open_node(daemon.node(TEST)) as handle, pytest.raises(KdbusError, match="ECONNREFUSED"):
        handle.hello(attach_send=0, pool_size=POOL)
    daemon.stop()


@pytest.mark.skipif(UID != 0, reason="only root makes buses for others")
def test_a_bus_for_somebody_else_is_theirs(start: Start) -> None:
    daemon = start('[[bus]]\nname = "{uid}-theirs"\nowner = { user = 7, group = 8 }')
    status = daemon.node("7-theirs").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (7, 8, 0o600)
    daemon.stop()


# Another configuration


def test_a_reload_makes_and_ends_buses(start: Start) -> None:
    daemon = start(f'{BUS}[[bus]]\nname = "{{uid}}-old"')
    with connect(daemon) as stays, connect(daemon, f"{UID}-old") as goes:
        daemon.reload(f'{BUS}[[bus]]\nname = "{{uid}}-new"')
        assert await_end(goes) == ESHUTDOWN
        assert not daemon.node(f"{UID}-old").exists()
        connect(daemon, f"{UID}-new").close()
        assert stays.info(stays.id).id == stays.id
    daemon.stop()


def test_a_reload_changes_policy_under_those_who_are_connected(start: Start) -> None:
    daemon = start(BUS + OPEN + ENDPOINT + MAY_OWN)
    with connect(daemon, endpoint=NARROW) as connection:
        connection.name_acquire(NAME)
        connection.name_release(NAME)
        daemon.reload(BUS + OPEN + ENDPOINT + MAY_OWN.replace(NAME, "org.example.Other"))
        assert errno_of(lambda: connection.name_acquire(NAME)) == EPERM
        connection.name_acquire("org.example.Other")
    daemon.stop()


def test_reloads_leave_no_descriptor_behind(start: Start) -> None:
    daemon = start(BUS)
    with connect(daemon) as connection:

        def count_fds() -> int:
            """Of the daemon when it is done: READY=1 is there before the socket it came from is closed."""
            connection.info(connection.id)
            return daemon.count_fds()

        before = count_fds()
        for name in ("a", "b", "c"):
            daemon.reload(f'{BUS}{ENDPOINT}[[bus]]\nname = "{{uid}}-{name}"\n')
        daemon.reload(BUS)
        assert count_fds() == before
    daemon.stop()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("bus = [", "not TOML"),
        ('[[bus]]\nname = "{uid}-new"\nacess = "world"', "bus[0].acess: is not known; did you mean access?"),
        (BUS.replace("world", "group"), "bus[0].access: cannot be changed while the bus is there"),
        (f'access = "owner"\n{BUS}', "access: cannot be changed while the domain is there"),
        (f"limits = {{ handles = 7 }}\n{BUS}", "limits.handles: cannot be changed while the domain is there"),
    ],
)
def test_a_wrong_configuration_changes_nothing_and_is_one_line_in_the_log(
    start: Start, text: str, why: str
) -> None:
    daemon = start(BUS)
    with connect(daemon) as connection:
        daemon.reload(text)
        (line,) = daemon.stderr().splitlines()
        assert line.startswith(f"kdbusd[{daemon.pid}]: configuration not reloaded: {daemon.config}: ")
        assert why in line
        assert sorted(path.name for path in daemon.directory.iterdir() if path.name[0] != ".") == [
            TEST,
            "control",
        ]
        assert connection.info(connection.id).id == connection.id
    daemon.stop()


# Start


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("x = 1", "kdbusd.toml: x: is not known"),
        ('[[bus]]\nname = "system"', "kdbusd.toml: bus[0].name: "),
    ],
)
def test_with_a_wrong_configuration_it_does_not_start(start: Start, config: str, why: str) -> None:
    daemon = start(config, is_ready=False)
    assert daemon.wait() == 1
    (line,) = daemon.stderr().splitlines()
    assert line.startswith("kdbusd: ")
    assert why in line
    assert not daemon.directory.exists()


def test_two_do_not_share_a_directory(start: Start) -> None:
    first = start(BUS)
    second = start(home=first.home, is_ready=False)
    assert second.wait() == 1
    assert f"cannot serve {first.directory}" in second.stderr()
    converse(first)
    first.stop()


def test_what_a_killed_one_has_left_is_taken_over(start: Start) -> None:
    killed = start(BUS)
    killed.kill()
    assert killed.node(TEST).exists()
    daemon = start('[[bus]]\nname = "{uid}-other"\n', home=killed.home)
    assert not killed.node(TEST).exists()
    connect(daemon, f"{UID}-other").close()
    daemon.stop()


def test_a_place_that_cannot_be_had_is_told(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    daemon = start(options=(f"--directory={tmp_path}/file/k",), is_ready=False)
    assert daemon.wait() == 1
    (line,) = daemon.stderr().splitlines()
    assert line.startswith(f"kdbusd: cannot serve {tmp_path}/file/k: ")


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_everybody_on_it(start: Start, number: signal.Signals) -> None:
    daemon = start(BUS)
    with (
        connect(daemon) as connection,
        open_node(daemon.control) as owner,
        open_node(daemon.control) as fresh,
    ):
        owner.make_bus(f"{UID}-mine")
        daemon.stop(number)
        assert await_end(connection) == ECONNRESET
        assert errno_of(fresh.inspect) == ECONNRESET


def test_the_service_manager_is_told_of_all_of_it(start: Start) -> None:
    daemon = start(BUS)
    assert daemon.news() == "READY=1"
    daemon.process.send_signal(signal.SIGHUP)
    reloading, ready = daemon.news(), daemon.news()
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert ready == "READY=1"
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.news() == "STOPPING=1"
    assert daemon.wait() == 0


def test_a_client_that_is_killed_is_gone_for_the_others(start: Start) -> None:
    daemon = start(BUS)
    with connect(daemon) as connection:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                other = connect(daemon)
                other.name_acquire(NAME)
                os.write(writer, b"x")
                signal.pause()
            finally:
                os._exit(1)
        os.close(writer)
        assert os.read(reader, 1) == b"x"
        os.close(reader)
        assert connection.info(name=NAME).id != connection.id
        connection.match_add(1, [NameNotice(ItemType.NAME_REMOVE, MATCH_ANY, MATCH_ANY, NAME)])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert connection.wait(PATIENCE)
        message = connection.receive()
        assert message is not None
        with message:
            assert isinstance(message.notification, NameChanged)
            assert message.notification.name == NAME
    daemon.stop()
