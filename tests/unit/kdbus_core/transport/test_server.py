"""A domain as a directory of sockets: nodes that come and go, who gets in, limits, and what is left."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from errno import (
    EACCES,
    EBADFD,
    EEXIST,
    EINVAL,
    EMFILE,
    ENFILE,
    ENOSPC,
    EPERM,
    EPIPE,
    ESHUTDOWN,
)
from pathlib import Path

import pytest
from support.nodes import (
    BUS_NAME,
    POOL_SIZE,
    UID,
    NodeWorld,
    RawClient,
    command,
    connect_to,
    count_fds,
    item,
    items_of,
    no_descriptors_left,
    send_body,
    string_item,
)

from kdbus_core.abi import AttachFlag, Command, ItemType, MakeFlag
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import Credentials, Process
from kdbus_core.transport.processes import PeerUnknown
from kdbus_core.transport.protocol import INSPECT
from kdbus_core.transport.server import NodeServer, ServerLimits

REFUSED = (1 << 64) - 1
DOOR = f"{UID}-door"
WORLD = MakeFlag.ACCESS_WORLD
root_only = pytest.mark.skipif(UID != 0, reason="takes the right to be other users")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "n"


@pytest.fixture
def world(path: Path) -> Iterator[NodeWorld]:
    world = NodeWorld(path)
    try:
        yield world
    finally:
        world.close()


def make_endpoint(world: NodeWorld, *, flags: int = WORLD) -> RawClient:
    maker = world.connect(BUS_NAME, "bus")
    maker.run(Command.ENDPOINT_MAKE, flags=flags, items=[string_item(ItemType.MAKE_NAME, DOOR)])
    return maker


def make_domain(world: NodeWorld, name: str = "inner", *parts: str) -> RawClient:
    maker = world.connect(*parts, "control")
    maker.run(Command.DOMAIN_MAKE, flags=WORLD, items=[string_item(ItemType.MAKE_NAME, name)])
    return maker


def make_bus_in(world: NodeWorld, *parts: str) -> RawClient:
    maker = world.connect(*parts, "control")
    parameter = item(ItemType.BLOOM_PARAMETER, struct.pack("=2Q", 64, 1))
    maker.run(Command.BUS_MAKE, items=[string_item(ItemType.MAKE_NAME, BUS_NAME), parameter])
    return maker


def assert_refused(client: RawClient, errno: int) -> None:
    answer = client.take()
    assert answer is not None
    assert (answer.id, answer.errno, answer.patches) == (REFUSED, errno, [])
    client.assert_ended()


# Nodes


def test_a_bus_can_be_connected_to_when_its_making_is_answered(world: NodeWorld) -> None:
    world.make_bus()
    assert world.hello().id


def test_a_bus_has_gone_with_the_handle_that_made_it(world: NodeWorld, path: Path) -> None:
    owner = world.make_bus()
    owner.close()
    world.wait_until(lambda: not (path / BUS_NAME).exists())
    assert world.run(lambda: world.domain.buses) == {}


def test_a_custom_endpoint_comes_and_goes_with_its_handle(world: NodeWorld, path: Path) -> None:
    world.make_bus()
    maker = make_endpoint(world)
    client = world.connect(BUS_NAME, f"ep.{DOOR}")
    client.hello()
    maker.close()
    client.wait_ready()
    assert client.request(Command.FREE, command(Command.FREE, POOL_SIZE)).errno == ESHUTDOWN
    assert os.listdir(path / BUS_NAME) == ["bus"]


def test_buses_and_endpoints_go_together(world: NodeWorld, path: Path) -> None:
    owner = world.make_bus()
    make_endpoint(world)
    owner.close()
    world.wait_until(lambda: not (path / BUS_NAME).exists())


@pytest.mark.skipif(UID != 0, reason="only the privileged make domains")
def test_a_domain_in_the_domain_has_nodes_of_its_own(world: NodeWorld, path: Path) -> None:
    maker = make_domain(world)
    make_bus_in(world, "domains", "inner")
    innermost = make_domain(world, "innermost", "domains", "inner")
    make_bus_in(world, "domains", "inner", "domains", "innermost")
    for parts in (("domains", "inner"), ("domains", "inner", "domains", "innermost")):
        client = world.connect(*parts, BUS_NAME, "bus")
        client.hello()
        assert client.id == 2, "identifiers of its own"
    innermost.close()
    world.wait_until(lambda: not (path / "domains" / "inner" / "domains").exists())
    assert (path / "domains" / "inner" / BUS_NAME / "bus").is_socket()
    maker.close()
    world.wait_until(lambda: not (path / "domains").exists())
    assert (path / "control").is_socket()


@pytest.mark.skipif(UID != 0, reason="only the privileged make domains")
def test_buses_of_a_domain_that_has_gone_are_shut_down(world: NodeWorld) -> None:
    maker = make_domain(world)
    owner = make_bus_in(world, "domains", "inner")
    client = world.connect("domains", "inner", BUS_NAME, "bus")
    client.hello()
    fresh = world.connect("domains", "inner", "control")
    assert fresh.request(INSPECT).errno == 0
    maker.close()
    client.wait_ready()
    assert client.request(Command.RECV, command(Command.RECV)).errno == ESHUTDOWN
    assert fresh.request(INSPECT).errno == ESHUTDOWN
    assert owner.request(Command.BUS_MAKE, bytes(24)).errno == EBADFD


def test_a_node_that_cannot_be_made_real_is_not_made(
    world: NodeWorld, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = world.connect("control")
    parameter = item(ItemType.BLOOM_PARAMETER, struct.pack("=2Q", 64, 1))
    body = command(Command.BUS_MAKE, items=[string_item(ItemType.MAKE_NAME, BUS_NAME), parameter])
    real = os.rename

    def fail(*_: object) -> None:
        raise OSError(ENOSPC, "no space left")

    monkeypatch.setattr(os, "rename", fail)
    assert maker.request(Command.BUS_MAKE, body).errno == ENOSPC
    assert world.run(lambda: world.domain.buses) == {}
    assert not (path / BUS_NAME).exists()
    monkeypatch.setattr(os, "rename", real)
    assert maker.request(Command.BUS_MAKE, body).errno == 0, "the handle is as fresh as before"
    assert world.hello().id


def test_a_node_that_is_there_cannot_be_made_again(world: NodeWorld) -> None:
    world.make_bus()
    maker = world.connect("control")
    parameter = item(ItemType.BLOOM_PARAMETER, struct.pack("=2Q", 64, 1))
    body = command(Command.BUS_MAKE, items=[string_item(ItemType.MAKE_NAME, BUS_NAME), parameter])
    assert maker.request(Command.BUS_MAKE, body).errno == EEXIST
    assert world.hello().id


def test_what_was_there_before_the_server_can_be_connected_to(tmp_path: Path) -> None:
    world = NodeWorld(tmp_path / "a")
    try:
        maker = Process.of(Credentials(uid=UID, gid=os.getegid()))

        def make() -> None:
            world.server.close()
            world.domain.make_bus(BUS_NAME, maker, WORLD).make_endpoint(DOOR, maker, WORLD)
            world.server = NodeServer(world.domain, tmp_path / "b", world.loop, world.server.log)

        world.run(make)
        world.path = tmp_path / "b"
        assert world.hello().id
        world.connect(BUS_NAME, f"ep.{DOOR}").hello()
    finally:
        world.close()


def test_two_servers_do_not_share_a_directory(world: NodeWorld, path: Path) -> None:
    with pytest.raises(BlockingIOError, match="another server"):
        NodeWorld(path)
    world.make_bus()
    assert world.hello().id


# The end of a server


def test_a_server_that_closes_leaves_nothing(path: Path) -> None:
    before = count_fds()
    world = NodeWorld(path)
    try:
        world.make_bus()
        clients = [world.hello() for _ in range(3)]
        clients[0].send(b"x", dst_id=clients[1].id)
        world.run(world.server.close)
        for client in clients:
            client.assert_ended()
        assert not path.exists()
        assert world.run(lambda: world.domain.nodes.watcher) is None
        assert world.run(lambda: world.domain.active)
        world.run(world.server.close)
    finally:
        world.close()
    assert count_fds() == before


def test_the_end_of_a_server_reaches_calls_that_wait(world: NodeWorld) -> None:
    world.make_bus()
    client, service = world.hello(), world.hello()
    body = send_body(b"x", dst_id=service.id, flags=1, timeout_or_reply=1 << 62, send_flags=1)
    client.post(Command.SEND, body)
    service.wait_ready()
    world.run(world.server.close)
    answer = client.take()  # where the service or the bus was closed first
    if answer is not None:
        assert answer.errno in (EPIPE, ESHUTDOWN)
        client.assert_ended()


def test_handles_leave_no_descriptor_behind(world: NodeWorld) -> None:
    world.make_bus()
    world.hello().close()
    world.settle()
    before = count_fds()
    clients = [world.hello() for _ in range(20)]
    clients += [world.connect("control") for _ in range(20)]
    assert world.run(lambda: world.server.handles_of(UID)) in range(21, 42)
    for client in clients:
        client.close()
    world.settle()
    assert count_fds() == before


def test_the_pool_stays_readable_after_the_end(world: NodeWorld) -> None:
    world.make_bus()
    client = world.hello()
    client.send(b"kept", dst_id=client.id)
    answer, message = client.receive()
    world.run(world.server.close)
    assert client.read_pool(answer.number(40), answer.number(48)) == message


# Who gets in


@root_only
@pytest.mark.root
@pytest.mark.parametrize(
    ("flags", "gid", "gets_in"),
    [
        (0, 23456, False),
        (MakeFlag.ACCESS_GROUP, 23456, False),
        (MakeFlag.ACCESS_GROUP, 0, True),
        (WORLD, 1, True),
    ],
)
def test_the_mode_of_the_node_decides(
    world: NodeWorld, path: Path, flags: int, gid: int, gets_in: bool
) -> None:
    world.make_bus(flags=flags)
    make_reachable(path)
    assert try_as(12345, gid, path / BUS_NAME / "bus") == ("in" if gets_in else "EACCES")


@root_only
@pytest.mark.root
def test_a_node_is_its_makers(world: NodeWorld, path: Path) -> None:
    make_reachable(path)
    # Somebody else makes a bus only they can open.
    script = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from support.nodes import *
os.setgroups([]); os.setgid(23456); os.setuid(12345)
client = RawClient({os.fspath(path / "control")!r})
parameter = item(ItemType.BLOOM_PARAMETER, struct.pack("=2Q", 64, 1))
client.run(Command.BUS_MAKE, items=[string_item(ItemType.MAKE_NAME, "12345-x"), parameter])
print("made", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "made\n"
        status = (path / "12345-x" / "bus").stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12345, 23456, 0o600)
        assert try_as(12345, 1, path / "12345-x" / "bus") == "in"
        assert try_as(12346, 23456, path / "12345-x" / "bus") == "EACCES"
        maker.communicate("")
    world.wait_until(lambda: not (path / "12345-x").exists())


@root_only
@pytest.mark.root
def test_a_custom_endpoint_does_not_let_into_a_closed_bus(world: NodeWorld, path: Path) -> None:
    world.make_bus(flags=0)
    make_endpoint(world, flags=WORLD)
    make_reachable(path)
    assert try_as(12345, 23456, path / BUS_NAME / f"ep.{DOOR}") == "refused EACCES"


@root_only
@pytest.mark.root
def test_where_files_cannot_be_given_away_the_broker_decides(
    world: NodeWorld, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(EPERM, "not yours")

    monkeypatch.setattr(os, "chown", refuse)
    world.make_bus(flags=0)
    make_reachable(path)
    assert stat.S_IMODE((path / BUS_NAME / "bus").stat().st_mode) == 0o666
    assert try_as(12345, 23456, path / BUS_NAME / "bus") == "refused EACCES"
    assert world.hello().id


def test_whoever_the_kernel_does_not_know_gets_nowhere(
    world: NodeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: socket.socket) -> Process:
        raise PeerUnknown("nobody")

    monkeypatch.setattr("kdbus_core.transport.server.read_process", fail)
    assert_refused(world.connect("control"), EACCES)
    assert world.run(lambda: world.server.handles) == 0


def test_a_handle_that_the_broker_refuses_leaves_nothing(
    world: NodeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KdbusError(ESHUTDOWN, "just gone")

    before = world.run(count_fds)
    monkeypatch.setattr("kdbus_core.transport.session.Handle", refuse)
    client = world.connect("control")
    assert_refused(client, ESHUTDOWN)
    client.close()
    assert world.run(count_fds) == before
    assert world.run(lambda: world.server.handles) == 0


def test_a_message_tells_of_the_process_that_sends_it(world: NodeWorld) -> None:
    world.make_bus()
    receiver = world.hello(attach_recv=AttachFlag.PIDS)
    client = world.hello()
    client.send(b"x", dst_id=receiver.id)
    assert pid_of(receiver) == os.getpid()
    packet = struct.pack("=3Q", Command.SEND, 1, 0) + send_body(b"x", dst_id=receiver.id)
    script = f"""
import os, socket
sock = socket.socket(fileno={client.sock.fileno()})
sock.settimeout(20)
sock.send(bytes.fromhex({packet.hex()!r}))
sock.recv(1000)
print(os.getpid())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        pass_fds=[client.sock.fileno()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert pid_of(receiver) == int(done.stdout), done.stderr
    client.send(b"x", dst_id=receiver.id)
    assert pid_of(receiver) == os.getpid()


def test_who_sent_a_message_is_not_looked_for_later(world: NodeWorld) -> None:
    world.make_bus()
    name = [string_item(ItemType.NAME, "org.example.Name")]
    activator = world.hello(flags=2, items=name)
    client = world.hello()
    assert client.send(b"x", items=[string_item(ItemType.DST_NAME, "org.example.Name")]).errno == 0
    client.close()
    world.settle()
    owner = world.hello(attach_recv=AttachFlag.PIDS)
    owner.run(Command.NAME_ACQUIRE, items=name)
    assert not activator.is_ready()
    assert pid_of(owner) == os.getpid(), "as it was when the handle was opened"


def pid_of(receiver: RawClient) -> int:
    """The pid that the next message tells."""
    _, message = receiver.receive()
    pid: int = struct.unpack_from("=Q", dict(items_of(message))[ItemType.PIDS])[0]
    return pid


def make_reachable(path: Path) -> None:
    """Let other users come as far as the directory."""
    for parent in path.parents:
        if parent.stat().st_mode & 0o005 != 0o005:
            parent.chmod(parent.stat().st_mode | 0o055)


def try_as(uid: int, gid: int, path: Path) -> str:
    """What a process with these ids gets from connecting: in, refused, or the errno of connect(2)."""
    script = f"""
import os, sys
from errno import errorcode
sys.path[:0] = {sys.path!r}
from support.nodes import *
os.setgroups([]); os.setgid({gid}); os.setuid({uid})
try:
    client = RawClient({os.fspath(path)!r})
except OSError as error:
    print(errorcode[error.errno])
else:
    try:
        client.post(Command.RECV, command(Command.RECV))
    except OSError:
        pass
    answer = client.take()
    print("in" if answer.id == 1 else "refused " + errorcode[answer.errno])
    client.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert not done.stderr, done.stderr
    return done.stdout.strip()


# Limits


def test_a_user_has_so_many_handles(path: Path) -> None:
    world = NodeWorld(path, limits=ServerLimits(handles_per_user=3))
    try:
        clients = [world.connect("control") for _ in range(3)]
        assert clients[2].request(INSPECT).errno == 0
        before = world.run(count_fds)
        refused = world.connect("control")
        assert_refused(refused, EMFILE)
        refused.close()
        assert count_fds() == before
        clients[0].close()
        world.settle()
        assert world.connect("control").request(INSPECT).errno == 0
    finally:
        world.close()


def test_a_server_has_so_many_handles(path: Path) -> None:
    world = NodeWorld(path, limits=ServerLimits(handles=2))
    try:
        clients = [world.connect("control") for _ in range(2)]
        assert clients[1].request(INSPECT).errno == 0
        assert_refused(world.connect("control"), ENFILE)
    finally:
        world.close()


def test_a_server_without_descriptors_goes_on_when_there_are_some(
    world: NodeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdbus_core.transport.server.PAUSE", 0.05)
    world.make_bus()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        directory = os.open(world.path / BUS_NAME, os.O_PATH)
        with no_descriptors_left():
            sock.connect(f"/proc/self/fd/{directory}/bus")
            world.wait_until(lambda: bool(world.warnings))
        os.close(directory)
        world.wait_until(lambda: world.server.handles == 2)
    assert "no handles can be opened" in world.warnings[0]
    assert world.hello().id


def test_a_hello_without_descriptors_is_refused_and_can_be_repeated(world: NodeWorld) -> None:
    world.make_bus()
    client = world.connect(BUS_NAME, "bus")
    assert client.request(Command.RECV, command(Command.RECV)).errno == EBADFD
    before = count_fds()
    with no_descriptors_left():
        client.post(Command.HELLO, command(Command.HELLO, 0, 0, 0, 0, POOL_SIZE))
        answer = client.take()
    assert answer is not None
    assert answer.errno != 0
    assert count_fds() == before
    assert client.hello().errno == 0


# Many at once


def test_a_node_is_served_while_others_have_much_to_do(world: NodeWorld) -> None:
    world.make_bus()
    busy, calm = world.hello(), world.hello()
    for _ in range(200):
        busy.post(Command.FREE, command(Command.FREE, POOL_SIZE))
    assert calm.request(Command.FREE, command(Command.FREE, POOL_SIZE)).errno == 0
    for _ in range(200):
        assert busy.take() is not None


def test_a_handle_can_be_used_before_it_is_accepted(world: NodeWorld) -> None:
    world.make_bus()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        connect_to(sock, world.path / BUS_NAME / "bus")
        sock.send(struct.pack("=3Q", Command.HELLO, 1, 0) + command(Command.HELLO, 0, 0, 0, 0, POOL_SIZE))
    world.settle()
    assert world.run(lambda: len(world.domain.buses[BUS_NAME].connections)) == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_it_runs_on_either_loop(path: Path, loop: str) -> None:
    make_loop = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    world = NodeWorld(path, **({"make_loop": make_loop} if make_loop else {}))
    try:
        world.make_bus()
        client, service = world.hello(), world.hello()
        client.send(b"hello", dst_id=service.id)
        service.wait_ready()
        assert service.receive()[1].rstrip(b"\0").endswith(b"hello")
        deadline = world.run(world.domain.monotonic) + 20_000_000
        client.send(b"x", dst_id=service.id, flags=1, timeout_or_reply=deadline)
        client.wait_ready()
    finally:
        world.close()


def test_a_fault_of_ours_costs_one_handle(world: NodeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make_bus()
    client, other = world.hello(), world.hello()

    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    connection = world.run(lambda: world.domain.buses[BUS_NAME].connections[client.id])
    handle = world.run(lambda: world.server._connected[connection].handle)
    monkeypatch.setattr(handle, "ioctl", fail)
    before = count_fds()
    client.post(Command.FREE, command(Command.FREE, POOL_SIZE), fds=[0, 0])
    client.assert_ended()
    assert other.request(Command.FREE, command(Command.FREE, POOL_SIZE)).errno == 0
    assert len(world.warnings) == 1
    assert count_fds() < before


# INSPECT


def test_the_owner_of_a_domain_gets_its_state(world: NodeWorld) -> None:
    world.make_bus()
    world.hello()
    client = world.connect("control")
    answer = client.request(INSPECT)
    (fd,) = answer.fds
    state = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    assert state["format"] == 1
    assert [bus["name"] for bus in state["buses"]] == [BUS_NAME]
    assert client.request(INSPECT).errno == 0, "the handle stays fresh"
    owner = world.make_bus(f"{UID}-second")
    assert owner.request(INSPECT).errno == EBADFD


def test_the_state_of_a_domain_is_not_for_connections(world: NodeWorld) -> None:
    world.make_bus()
    assert world.hello().request(INSPECT).errno == EBADFD
    assert world.connect(BUS_NAME, "bus").request(INSPECT).errno == EBADFD


def test_the_state_of_a_domain_is_asked_for_with_nothing(world: NodeWorld) -> None:
    client = world.connect("control")
    assert client.request(INSPECT, bytes(8)).errno == EINVAL
    assert client.request(INSPECT, fds=[0]).errno == EINVAL


@root_only
@pytest.mark.root
def test_the_state_of_a_domain_is_not_for_everybody(world: NodeWorld, path: Path) -> None:
    os.chmod(path / "control", 0o666)
    make_reachable(path)
    script = f"""
import os, sys
from errno import errorcode
sys.path[:0] = {sys.path!r}
from support.nodes import *
os.setgroups([]); os.setgid(1); os.setuid(12345)
with RawClient({os.fspath(path / "control")!r}) as client:
    print(errorcode[client.request({INSPECT}).errno])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "EPERM\n", done.stderr
