"""A native peer that asks who a legacy client is gets the client, never the proxy."""

from __future__ import annotations

import os
from errno import EPERM

import pytest
from support.raw import METHOD_CALL, Message
from support.split import Cores, SplitWorld, Stranger

from kdbus_core.abi import ATTACH_ALL, UNSET_ID
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import Credentials, Creds, Pids
from kdbus_core.transport import client as native
from kdbus_core.transport.client import Metadata

SOMEBODY = Credentials(uid=4711, gid=4712, pid=4713, groups=(4714, 4715), label=b"a label")


def info_of(world: SplitWorld, stranger: Stranger, known: Credentials) -> Metadata:
    """What CONN_INFO tells of a client of whom this is known."""
    client = world.join("client")
    world.bus.disconnect(client.connection)
    connection = world.bus.hello(world.bus.endpoint, world.bus.creator, sink=client.peer, faked=known)
    return stranger.remote.info(connection.id).metadata


def test_everything_that_is_known_of_a_client_is_told(world: SplitWorld, stranger: Stranger) -> None:
    told = info_of(world, stranger, SOMEBODY)
    assert told.creds == Creds(euid=4711, egid=4712)  # the other ids are not known
    assert told.pids == Pids(4713, 0, 0)
    assert told.auxgroups == (4714, 4715)
    assert told.seclabel == b"a label"


@pytest.mark.parametrize("missing", ["uid", "gid", "pid", "groups", "label"])
def test_what_is_not_known_of_a_client_is_not_told(
    world: SplitWorld, stranger: Stranger, missing: str
) -> None:
    known = {field: getattr(SOMEBODY, field) for field in ("uid", "gid", "pid", "groups", "label")}
    told = info_of(world, stranger, Credentials(**(known | {missing: None})))
    assert told.creds == Creds(
        euid=UNSET_ID if missing == "uid" else 4711, egid=UNSET_ID if missing == "gid" else 4712
    )
    assert told.pids == (None if missing == "pid" else Pids(4713, 0, 0))
    assert told.auxgroups == (None if missing == "groups" else (4714, 4715))
    assert told.seclabel == (None if missing == "label" else b"a label")


def test_a_client_of_whom_nothing_is_known_is_nobody(world: SplitWorld, stranger: Stranger) -> None:
    told = info_of(world, stranger, Credentials())
    assert told.creds == Creds()
    assert (told.pids, told.auxgroups, told.seclabel) == (None, None, None)


def test_no_more_than_that_is_told_of_a_client(world: SplitWorld, stranger: Stranger) -> None:
    told = info_of(world, stranger, SOMEBODY)
    for what in ("tid_comm", "pid_comm", "exe", "cmdline", "cgroup", "caps", "audit"):
        assert getattr(told, what) is None, what


def test_messages_of_a_client_tell_nothing_of_any_process(world: SplitWorld) -> None:
    client = world.join("client", uid=4711)
    with Stranger(world, attach_recv=ATTACH_ALL) as curious:
        client.request_name("a.b")
        fields = {"path": "/", "member": "M", "destination": curious.unique_name}
        client.send(Message(METHOD_CALL, fields=fields))
        received = curious.remote.receive()
        assert received is not None
        with received:
            told = received.metadata
        for what in ("creds", "pids", "auxgroups", "tid_comm", "pid_comm", "exe", "cmdline", "cgroup"):
            assert getattr(told, what) is None, what
        assert list(told.names) == ["a.b"]
        assert told.description == "busproxy"


def test_clients_of_another_proxy_are_told_as_they_are(cores: Cores) -> None:
    with cores.bus() as endpoint, SplitWorld(endpoint) as here, SplitWorld(endpoint) as there:
        client = there.join("client", uid=4711)
        asking = here.join("asking")
        name = client.unique_name
        assert asking.call("GetConnectionUnixUser", "s", name).body == [4711]
        assert asking.call("GetConnectionUnixProcessID", "s", name).body == [os.getpid()]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_only_owners_speak_for_others(cores: Cores) -> None:
    maker, endpoint = cores.make_bus()
    with maker:
        for path in (endpoint.parents[2], endpoint.parents[1], endpoint.parent):
            path.chmod(0o755)
        endpoint.chmod(0o666)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.setgroups([])
                os.setresgid(4711, 4711, 4711)
                os.setresuid(4711, 4711, 4711)
                with native.open_node(endpoint) as node:
                    node.hello(faked=SOMEBODY)
            except KdbusError as error:
                status = error.errno
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == EPERM


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_bus_that_somebody_else_has_made_has_its_proxy_too(cores: Cores) -> None:
    control = cores.daemon.control
    done, end = os.pipe()
    made, ready = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(end)
            os.setgroups([])
            os.setresgid(4711, 4711, 4711)
            os.setresuid(4711, 4711, 4711)
            with native.open_node(control) as node:
                node.make_bus("4711-test")
                os.write(ready, b"!")
                os.read(done, 1)
            status = 0
        finally:
            os._exit(status)
    os.close(ready)
    try:
        assert os.read(made, 1)
        endpoint = cores.daemon.node("4711-test")
        with SplitWorld(endpoint) as world, Stranger(world) as stranger:
            world.settle()
            client = world.join("client", uid=4712)
            told = stranger.remote.info(client.connection.id).metadata
            assert told.creds == Creds(euid=4712, egid=4712)
            assert client.request_name("a.b") == 1
            assert [info.id for info in stranger.remote.list() if "a.b" in info.names] == [
                client.connection.id
            ]
    finally:
        for fd in (end, made, done):
            os.close(fd)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
