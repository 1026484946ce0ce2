"""Who a legacy client is to native peers: always the client, never the proxy.

Legacy clients run as other users, with other groups, in other namespaces; the children that connect are real
processes. What a native peer is told of them by CONN_INFO is what the kernel told the proxy when they
connected, and what the kernel did not tell is not there at all. Their messages carry nothing of any process,
whatever the native peer asks for. Others may not do what the proxy does.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.adopted import AdoptedClient, Adoption
from support.bus import REPOSITORY
from support.children import CLONE_NEWPID, Child, Meeting, needs_root
from support.mixed import KINDS, OPEN_TO_ALL, MixedBus, MixedBuses
from support.native_peer import NativePeer
from support.raw import METHOD_RETURN, NO_REPLY_EXPECTED, SIGNAL, Message, RawClient

from kdbus_core.abi import ATTACH_ALL, UNSET_ID, AttachFlag, HelloFlag
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import Credentials, Creds, Pids, Snapshot
from kdbus_core.transport.client import Info, Metadata, open_node

OTHER_UID, OTHER_GID = 4242, 4343
GROUPS = (4400, 4401, 60000)

OF_PROCESSES = (
    "creds",
    "pids",
    "auxgroups",
    "tid_comm",
    "pid_comm",
    "exe",
    "cmdline",
    "cgroup",
    "caps",
    "seclabel",
    "audit",
)
"""Everything of Metadata that is said of a process."""

NEVER_FAKED = ("tid_comm", "pid_comm", "exe", "cmdline", "cgroup", "caps", "audit")
"""What no socket tells, and no HELLO takes."""


@pytest.fixture(scope="module")
def buses() -> Iterator[MixedBuses]:
    with MixedBuses(extra=OPEN_TO_ALL) as buses:
        yield buses


@pytest.fixture(params=KINDS)
def mixed(request: pytest.FixtureRequest, buses: MixedBuses) -> MixedBus:
    """A bus that other users may connect to, as legacy clients and as natives."""
    bus = buses[request.param]
    bus.legacy.directory.chmod(0o755)
    if os.geteuid() == 0:
        bus.node.chmod(0o666)
    return bus


@pytest.fixture
def native(mixed: MixedBus) -> Iterator[NativePeer]:
    """A native peer that asks for everything there is."""
    with mixed.join(attach_recv=ATTACH_ALL) as peer:
        yield peer


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


Adopt = Callable[[Child], tuple[AdoptedClient, Adoption]]


@pytest.fixture
def adopt(mixed: MixedBus, stack: ExitStack) -> Adopt:
    """Makes a legacy client of what a child connects."""
    meeting = stack.enter_context(Meeting())

    def adopt(child: Child) -> tuple[AdoptedClient, Adoption]:
        adoption = Adoption(meeting, child)
        return stack.enter_context(AdoptedClient(adoption.connect(socket_path(mixed)))), adoption

    return adopt


def socket_path(mixed: MixedBus) -> str:
    return str(mixed.legacy.directory / "socket")


def id_of(client: RawClient) -> int:
    return int(client.unique_name.removeprefix(":1."))


def info_of(native: NativePeer, client: RawClient) -> Info:
    return native.connection.info(id_of(client))


def effective(uid: int, gid: int) -> Creds:
    """Effective ids, and nothing else."""
    return Creds(euid=uid, egid=gid)


def assert_nothing_of_a_process(metadata: Metadata) -> None:
    assert {kind: getattr(metadata, kind) for kind in OF_PROCESSES} == dict.fromkeys(OF_PROCESSES)


# CONN_INFO


@needs_root
def test_conn_info_is_of_the_client(native: NativePeer, adopt: Adopt, stack: ExitStack) -> None:
    child = stack.enter_context(Child())
    child.become(OTHER_UID, OTHER_GID, GROUPS)
    client, adoption = adopt(child)
    assert adoption.ids == (child.pid, OTHER_UID, OTHER_GID)
    told = info_of(native, client).metadata
    assert told.creds == effective(OTHER_UID, OTHER_GID)
    assert told.pids == Pids(pid=child.pid)
    assert told.auxgroups is not None
    assert sorted(told.auxgroups) == sorted(GROUPS)
    assert told.seclabel == adoption.label
    assert {kind: getattr(told, kind) for kind in NEVER_FAKED} == dict.fromkeys(NEVER_FAKED)


@needs_root
def test_effective_ids_count_and_the_others_are_not_told(
    native: NativePeer, adopt: Adopt, stack: ExitStack
) -> None:
    child = stack.enter_context(Child())
    child.run(f"os.setgroups([]); os.setresgid(5001, {OTHER_GID}, 5003)")
    child.run(f"os.setresuid(5001, {OTHER_UID}, 5003)")
    client, _ = adopt(child)
    told = info_of(native, client).metadata
    assert told.creds == Creds(
        uid=UNSET_ID,
        euid=OTHER_UID,
        suid=UNSET_ID,
        fsuid=UNSET_ID,
        gid=UNSET_ID,
        egid=OTHER_GID,
        sgid=UNSET_ID,
        fsgid=UNSET_ID,
    )
    assert told.auxgroups == ()  # it is known that there are none


def test_a_client_of_the_same_user_is_another_process_than_the_proxy(
    mixed: MixedBus, native: NativePeer, adopt: Adopt, stack: ExitStack
) -> None:
    child = stack.enter_context(Child())
    client, _ = adopt(child)
    told = info_of(native, client).metadata
    assert told.creds == effective(os.geteuid(), os.getegid())
    assert told.pids == Pids(pid=child.pid)
    assert child.pid not in mixed.pids


def test_each_kind_is_told_only_to_who_asks_for_it(
    native: NativePeer, adopt: Adopt, stack: ExitStack
) -> None:
    client, _ = adopt(stack.enter_context(Child()))
    for flag, kind in (
        (AttachFlag.CREDS, "creds"),
        (AttachFlag.PIDS, "pids"),
        (AttachFlag.AUXGROUPS, "auxgroups"),
    ):
        told = native.connection.info(id_of(client), attach=int(flag)).metadata
        assert [other for other in OF_PROCESSES if getattr(told, other) is not None] == [kind]


def test_a_client_is_described_under_its_well_known_name_too(
    native: NativePeer, adopt: Adopt, stack: ExitStack
) -> None:
    child = stack.enter_context(Child())
    client, _ = adopt(child)
    client.reply("RequestName", "su", "com.example.Known", 0)
    told = native.connection.info(name="com.example.Known")
    assert told.id == id_of(client)
    assert told.metadata.pids == Pids(pid=child.pid)
    assert list(told.names) == ["com.example.Known"]
    client.reply("ReleaseName", "s", "com.example.Known")


@needs_root
def test_a_client_stays_who_it_was_when_it_connected(
    native: NativePeer, adopt: Adopt, stack: ExitStack
) -> None:
    child = stack.enter_context(Child())
    child.run(f"os.setgroups({list(GROUPS)}); os.setresgid({OTHER_GID}, {OTHER_GID}, 0)")
    child.run(f"os.setresuid({OTHER_UID}, {OTHER_UID}, 0)")
    client, _ = adopt(child)
    before = info_of(native, client).metadata
    child.run("os.seteuid(0); os.setgroups([]); os.setresgid(0, 0, 0); os.setresuid(0, 0, 0)")
    assert info_of(native, client).metadata == before
    child.kill()
    child.reap()
    assert info_of(native, client).metadata == before
    assert before.creds == effective(OTHER_UID, OTHER_GID)
    assert before.pids == Pids(pid=child.pid)


@needs_root
def test_a_client_of_another_user_namespace_is_who_it_is_out_here(
    native: NativePeer, adopt: Adopt, stack: ExitStack
) -> None:
    child = stack.enter_context(Child())
    child.run(f"os.setgroups({list(GROUPS)}); os.setresgid({OTHER_GID}, {OTHER_GID}, {OTHER_GID})")
    child.run(f"os.setresuid({OTHER_UID}, {OTHER_UID}, {OTHER_UID})")
    enter_user_namespace(child, OTHER_UID, OTHER_GID)
    assert (child.ask("os.geteuid()"), child.ask("os.getegid()")) == (0, 0)
    client, _ = adopt(child)
    told = info_of(native, client).metadata
    assert told.creds == effective(OTHER_UID, OTHER_GID)
    assert told.pids == Pids(pid=child.pid)
    assert told.auxgroups is not None
    assert sorted(told.auxgroups) == sorted(GROUPS)


@needs_root
def test_root_of_a_user_namespace_is_not_root(mixed: MixedBus, adopt: Adopt, stack: ExitStack) -> None:
    child = stack.enter_context(Child())
    child.become(OTHER_UID, OTHER_GID)
    enter_user_namespace(child, OTHER_UID, OTHER_GID)
    client, _ = adopt(child)
    for member, expected in (("GetConnectionUnixUser", OTHER_UID), ("GetConnectionUnixProcessID", child.pid)):
        assert client.reply(member, "s", client.unique_name).body == [expected]


@needs_root
def test_a_client_of_another_pid_namespace_has_the_pid_that_it_has_out_here(
    mixed: MixedBus, native: NativePeer, stack: ExitStack
) -> None:
    child = stack.enter_context(Child())
    meeting = stack.enter_context(Meeting())
    adoption = Adoption(meeting, child)
    child.unshare(CLONE_NEWPID)
    child.run(
        "def join():\n"
        "    legacy = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)\n"
        f"    legacy.connect({socket_path(mixed)!r})\n"
        "    assert os.getpid() == 1\n"
        "    socket.send_fds(sock, [b'x'], [legacy.fileno()])\n"
    )
    pid = child.ask("fork_and_wait(join)")
    client = stack.enter_context(AdoptedClient(adoption.receive()))
    assert info_of(native, client).metadata.pids == Pids(pid=pid)


# Messages


def conversation(native: NativePeer, client: RawClient) -> list[Metadata]:
    """Each kind of message that a client can send to a native peer; what each has told of its sender."""
    rule = native.add_match(f"type='signal',sender='{client.unique_name}'")
    native.metadata.clear()
    fields = {"path": "/a", "interface": "a.b", "member": "S"}
    client.send_call("M", destination=native.unique_name)
    client.send_call("M", destination=native.unique_name, flags=NO_REPLY_EXPECTED)
    client.send(Message(SIGNAL, fields=fields))
    client.send(Message(SIGNAL, fields={**fields, "destination": native.unique_name}))
    client.sync()
    assert len(native.drain()) == 4
    native.post(client.unique_name, "M")
    call = client.receive()
    answer = {"reply_serial": call.serial, "destination": native.unique_name}
    client.send(Message(METHOD_RETURN, NO_REPLY_EXPECTED, fields=answer))
    native.receive_message()
    native.connection.match_remove(rule)
    assert len(native.metadata) == 5
    return native.metadata


@needs_root
def test_messages_of_a_client_tell_nothing_of_any_process(
    native: NativePeer, adopt: Adopt, stack: ExitStack
) -> None:
    child = stack.enter_context(Child())
    child.become(OTHER_UID, OTHER_GID, GROUPS)
    client, _ = adopt(child)
    for told in conversation(native, client):
        assert_nothing_of_a_process(told)


def test_messages_of_a_client_of_ones_own_tell_nothing_of_any_process(
    mixed: MixedBus, native: NativePeer
) -> None:
    with mixed.connect() as client:
        for told in conversation(native, client):
            assert_nothing_of_a_process(told)
            assert told.timestamp is not None


def test_what_is_true_of_the_connection_is_told(mixed: MixedBus, native: NativePeer) -> None:
    with mixed.connect() as client:
        client.reply("RequestName", "su", "com.example.Mine", 0)
        client.sync()
        assert all(list(told.names) == ["com.example.Mine"] for told in conversation(native, client))
        client.reply("ReleaseName", "s", "com.example.Mine")


def test_a_native_monitor_is_told_nothing_of_any_process_either(mixed: MixedBus, native: NativePeer) -> None:
    with (
        mixed.join(flags=HelloFlag.ACCEPT_FD | HelloFlag.MONITOR, attach_recv=ATTACH_ALL) as monitor,
        mixed.connect() as one,
        mixed.connect() as other,
    ):
        monitor.drain()
        monitor.metadata.clear()
        one.send_call("M", destination=other.unique_name)
        one.send_call("M", destination=native.unique_name)
        one.send(Message(SIGNAL, fields={"path": "/a", "interface": "a.b", "member": "S"}))
        one.sync()
        other.sync()
        monitor.drain()
        assert monitor.metadata
        for told in monitor.metadata:
            assert_nothing_of_a_process(told)


def test_a_native_sender_is_told_of_as_before(mixed: MixedBus, native: NativePeer) -> None:
    with mixed.join() as sender:
        sender.emit("S", destination=native.unique_name)
        native.receive_message()
        (told,) = native.metadata
        assert told.creds is not None
        assert told.creds.euid == os.geteuid()
        assert told.pids is not None
        assert told.pids.pid == os.getpid()
        assert told.exe is not None


# Who may fake


SOMEBODY = Snapshot(creds=Creds(euid=OTHER_UID, egid=OTHER_GID), pids=Pids(pid=1), seclabel=b"a_label")


def test_an_owner_may_speak_for_somebody(mixed: MixedBus, native: NativePeer) -> None:
    with mixed.join(faked=SOMEBODY) as speaker:
        told = native.connection.info(speaker.id).metadata
        assert told.creds == effective(OTHER_UID, OTHER_GID)
        assert told.pids == Pids(pid=1)
        assert told.seclabel == b"a_label"
        assert told.auxgroups is None
        assert {kind: getattr(told, kind) for kind in NEVER_FAKED} == dict.fromkeys(NEVER_FAKED)
        rule = native.add_match(f"type='signal',sender='{speaker.unique_name}'")
        native.metadata.clear()
        speaker.emit("S")
        speaker.emit("S", destination=native.unique_name)
        speaker.post(native.unique_name, "M")
        native.drain()
        native.post(speaker.unique_name, "M")
        speaker.answer(speaker.receive_message())
        native.receive_message()
        native.connection.match_remove(rule)
        assert len(native.metadata) == 4
        for metadata in native.metadata:
            assert_nothing_of_a_process(metadata)


@pytest.mark.parametrize(
    ("faked", "kinds"),
    [
        (Snapshot(pids=Pids(pid=7)), ["pids"]),
        (Snapshot(creds=Creds(euid=7)), ["creds"]),
        (Snapshot(seclabel=b"only"), ["seclabel"]),
        (Snapshot(auxgroups=(7, 8)), ["auxgroups"]),
    ],
)
def test_what_a_faker_does_not_say_is_not_told(
    mixed: MixedBus, native: NativePeer, faked: Snapshot, kinds: list[str]
) -> None:
    with mixed.join(faked=faked) as speaker:
        told = native.connection.info(speaker.id).metadata
        assert [kind for kind in OF_PROCESSES if getattr(told, kind) is not None] == kinds
        if faked.creds is not None:
            assert told.creds == Creds(euid=7)
    with mixed.connect() as legacy, mixed.join(faked=faked) as speaker:
        (credentials,) = legacy.reply("GetConnectionCredentials", "s", speaker.unique_name).body
        for fd in legacy.take_fds(1 if "ProcessFD" in credentials else 0):
            os.close(fd)
        expected: dict[str, Any] = {}
        if faked.pids is not None:
            expected["ProcessID"] = ("u", 7)
        if faked.creds is not None:
            expected["UnixUserID"] = ("u", 7)
        if faked.auxgroups is not None:
            expected["UnixGroupIDs"] = ("au", [7, 8])
        if faked.seclabel is not None:
            expected["LinuxSecurityLabel"] = ("ay", b"only\0")
        assert credentials == expected


@needs_root
@pytest.mark.parametrize(
    "faked",
    [
        SOMEBODY,
        Snapshot(creds=Creds(euid=0, egid=0)),
        Snapshot(creds=Creds(euid=OTHER_UID, egid=OTHER_GID)),
        Snapshot(pids=Pids(pid=1)),
        Snapshot(seclabel=b"a_label"),
        Snapshot(auxgroups=(0,)),
    ],
)
def test_who_does_not_own_the_bus_may_speak_for_nobody(
    mixed: MixedBus, stack: ExitStack, faked: Snapshot
) -> None:
    child = stack.enter_context(Child())
    load_library(child)
    child.become(OTHER_UID, OTHER_GID)
    child.run(f"node = client.open_node({str(mixed.node)!r})")
    assert child.ask(f"errno_of(lambda: node.hello(faked={faked!r}))") == errno.EPERM
    child.run("connection = node.hello()")  # without it, it may be here
    assert child.ask("connection.id") > 0


@needs_root
def test_root_of_a_user_namespace_may_speak_for_nobody(mixed: MixedBus, stack: ExitStack) -> None:
    child = stack.enter_context(Child())
    load_library(child)
    child.become(OTHER_UID, OTHER_GID)
    enter_user_namespace(child, OTHER_UID, OTHER_GID)
    child.run(f"node = client.open_node({str(mixed.node)!r})")
    assert child.ask(f"errno_of(lambda: node.hello(faked={SOMEBODY!r}))") == errno.EPERM


def test_nobody_speaks_for_others_at_a_custom_endpoint(mixed: MixedBus) -> None:
    name = f"{os.geteuid()}-custom"
    with open_node(mixed.node) as maker:
        maker.make_endpoint(name)
        with (
            open_node(mixed.node.with_name(f"ep.{name}")) as node,
            pytest.raises(KdbusError) as caught,
        ):
            node.hello(faked=Credentials(uid=OTHER_UID))
        assert caught.value.errno == errno.EPERM


# Who asks


@needs_root
def test_somebody_without_rights_is_told_the_same(
    mixed: MixedBus, native: NativePeer, adopt: Adopt, stack: ExitStack
) -> None:
    child = stack.enter_context(Child())
    child.become(OTHER_UID, OTHER_GID, GROUPS)
    client, _ = adopt(child)
    told = info_of(native, client).metadata
    asker = stack.enter_context(Child())
    load_library(asker)
    asker.become(OTHER_UID + 1, OTHER_GID + 1)
    asker.run(f"told = client.open_node({str(mixed.node)!r}).hello().info({id_of(client)}).metadata")
    assert asker.ask("tuple(told.creds)") == tuple(told.creds or ())
    assert asker.ask("tuple(told.pids)") == tuple(told.pids or ())
    assert asker.ask("told.auxgroups") == told.auxgroups


@needs_root
def test_somebody_in_a_user_namespace_is_not_told_that_a_stranger_is_root(
    mixed: MixedBus, adopt: Adopt, stack: ExitStack
) -> None:
    child = stack.enter_context(Child())
    child.become(OTHER_UID, OTHER_GID, GROUPS)
    client, _ = adopt(child)
    asker = stack.enter_context(Child())
    load_library(asker)
    asker.become(OTHER_UID + 1, OTHER_GID + 1)
    enter_user_namespace(asker, OTHER_UID + 1, OTHER_GID + 1)
    asker.run(f"told = client.open_node({str(mixed.node)!r}).hello().info({id_of(client)}).metadata")
    creds = asker.ask("None if told.creds is None else tuple(told.creds)")
    assert creds is None or 0 not in creds
    groups = asker.ask("told.auxgroups")
    assert groups is None or 0 not in groups
    assert asker.ask("told.exe, told.cmdline, told.cgroup") == (None, None, None)


@needs_root
def test_a_client_learns_who_another_users_client_is(mixed: MixedBus, adopt: Adopt, stack: ExitStack) -> None:
    child = stack.enter_context(Child())
    child.become(OTHER_UID, OTHER_GID, GROUPS)
    client, _ = adopt(child)
    with mixed.connect(negotiate_fds=False) as asker:
        (credentials,) = asker.reply("GetConnectionCredentials", "s", client.unique_name).body
    assert credentials["UnixUserID"] == ("u", OTHER_UID)
    assert credentials["ProcessID"] == ("u", child.pid)
    assert credentials["UnixGroupIDs"] == ("au", sorted({OTHER_GID, *GROUPS}))


@needs_root
def test_a_client_learns_who_another_users_native_is(mixed: MixedBus, stack: ExitStack) -> None:
    child = stack.enter_context(Child())
    load_library(child)
    child.become(OTHER_UID, OTHER_GID, GROUPS)
    child.run(f"connection = client.open_node({str(mixed.node)!r}).hello()")
    name = f":1.{child.ask('connection.id')}"
    with mixed.connect(negotiate_fds=False) as asker:
        (credentials,) = asker.reply("GetConnectionCredentials", "s", name).body
    assert credentials["UnixUserID"] == ("u", OTHER_UID)
    assert credentials["ProcessID"] == ("u", child.pid)
    assert credentials["UnixGroupIDs"] == ("au", sorted({OTHER_GID, *GROUPS}))


def load_library(child: Child) -> None:
    """Have the client library there, before the child becomes somebody who may not read it."""
    child.run(f"sys.path.insert(0, {str(REPOSITORY)!r})")
    child.run(
        "from kdbus_core.abi import UNSET_ID\n"
        "from kdbus_core.metadata import Credentials, Creds, Pids, Snapshot\n"
        "from kdbus_core.transport import client\n"
        "def errno_of(command):\n"
        "    try:\n"
        "        command()\n"
        "    except client.KdbusError as error:\n"
        "        return error.errno\n"
    )


def enter_user_namespace(child: Child, uid: int, gid: int) -> None:
    """Have the child be that user here, and root in a namespace of its own."""
    child.run("libc.prctl(4, 1, 0, 0, 0)")  # PR_SET_DUMPABLE: who has changed ids may not write its maps
    child.enter_user_namespace(f"0 {uid} 1", f"0 {gid} 1")
