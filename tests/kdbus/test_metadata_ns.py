"""Metadata across namespaces: ids, pids and capabilities are told as the receiver's namespaces have them.

Root owns the bus. U is its child, became uid 65534, and is in the same namespaces; N is a child of U in a
user and a pid namespace of its own, in which 65534 is root. Everything is tried twice: on a bus where
metadata goes by consent, and on one with the formula of the last kdbus. As everybody grants everything here,
both tell the same; at the end somebody grants nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.kdbus import NOBODY, Attach, Client, Hello, ItemType, Make, Received, Task, World, layout
from support.kdbus.decode import Caps as CapsItem
from support.kdbus.decode import Creds as CredsItem
from support.kdbus.decode import Pids as PidsItem
from support.kdbus.layout import DST_BROADCAST, OVERFLOW_ID, TALK, UNSET_ID, WORLD, access

from kdbus_core.metadata import INITIAL_USER_NAMESPACE, Caps, Extent, PidNamespace, Pids, UserNamespace

BUS, NAME = "0-metadata", "com.example.metadata"
LAST_CAP = 40
SOME_CAPS = CapsItem(LAST_CAP, 1, 2, 4, 8)
NO_CAPS = CapsItem(LAST_CAP, 0, 0, 0, 0)
EVERY_CAP = CapsItem(LAST_CAP, 0, 2**64 - 1, 2**64 - 1, 2**64 - 1)
ALL_ROOT, ALL_NOBODY, ALL_OVERFLOW = (CredsItem(*[id] * 8) for id in (0, NOBODY, OVERFLOW_ID))
INVISIBLE = PidsItem(0, 0, 0)
ROOT_PIDS, U_PIDS, N_PIDS = PidsItem(100, 100, 99), PidsItem(200, 200, 100), PidsItem(300, 300, 200)


class Scene:
    """Everybody on the bus: root's connection `conn`, which owns the name, `u`, `n` and a monitor."""

    def __init__(self, world: World, flags: int) -> None:
        self.world = world
        self.root = world.task(
            0, privileged=True, pid=100, ppid=99, caps=Caps(*SOME_CAPS), groups=(0, NOBODY)
        )
        world.make_bus(BUS, self.root, flags=flags)
        self.monitor = self.connect(self.root, flags=Hello.MONITOR)
        self.connect(self.root, layout.name(NAME), access(WORLD, TALK), flags=Hello.POLICY_HOLDER)
        self.conn = self.connect(self.root)
        self.conn.name_acquire(NAME)
        ids = (Extent(0, NOBODY, 1),)
        self.users = UserNamespace(INITIAL_USER_NAMESPACE, ids, ids, owner=NOBODY)
        self.processes = PidNamespace()
        self.u = self.connect(world.task(NOBODY, pid=200, ppid=100, caps=Caps(*SOME_CAPS)))
        self.n = self.connect(self.task_in_namespaces())
        for client in (self.conn, self.u, self.n):
            client.add_match_empty()
        self.monitor.drain()

    def connect(self, task: Task, *items: bytes, flags: int = 0) -> Client:
        return self.world.connect(task, *items, node=self.world.find_endpoint(bus=BUS), flags=flags)

    def task_in_namespaces(self, *, root: str = "/") -> Task:
        return self.world.task(
            NOBODY,
            pid=300,
            ppid=200,
            caps=Caps(*SOME_CAPS),
            root=root,
            user_namespace=self.users,
            pid_namespace=self.processes,
            pids_in={self.processes: Pids(1, 1, 0)},
        )


@pytest.fixture(params=[Make.ACCESS_WORLD, Make.ACCESS_WORLD | Make.FINAL_METADATA], ids=["consent", "final"])
def scene(world: World, request: pytest.FixtureRequest) -> Scene:
    return Scene(world, request.param)


def send_unicast(sender: Client, receiver: Client) -> Received:
    """A message to an id, as it arrives."""
    sender.send(receiver, cookie=1)
    message = receiver.recv()
    assert (message.src_id, message.dst_id) == (sender.id, receiver.id)
    return message


def send_broadcast(sender: Client, receiver: Client) -> Received:
    """A broadcast, as it arrives."""
    receiver.drain()
    sender.broadcast(cookie=1)
    message = receiver.recv()
    assert (message.src_id, message.dst_id) == (sender.id, DST_BROADCAST)
    return message


both_ways = pytest.mark.parametrize("send", [send_unicast, send_broadcast])
Sender = Callable[[Client, Client], Received]


# Ids and pids


@both_ways
def test_in_the_same_namespaces_everything_is_told_as_it_is(scene: Scene, send: Sender) -> None:
    message = send(scene.u, scene.conn)
    assert message.creds == ALL_NOBODY
    assert message.pids == U_PIDS
    message = send(scene.conn, scene.u)
    assert message.creds == ALL_ROOT
    assert message.pids == ROOT_PIDS


@both_ways
def test_who_is_root_inside_is_told_outside_as_who_he_is(scene: Scene, send: Sender) -> None:
    message = send(scene.n, scene.conn)
    assert message.creds == ALL_NOBODY
    assert message.pids == N_PIDS


@both_ways
def test_who_does_not_exist_inside_is_told_as_nobody_there(scene: Scene, send: Sender) -> None:
    message = send(scene.conn, scene.n)
    assert message.creds == ALL_OVERFLOW
    assert message.pids == INVISIBLE


@both_ways
def test_inside_a_namespace_its_own_ids_are_told(scene: Scene, send: Sender) -> None:
    message = send(scene.n, scene.n)
    assert message.creds == ALL_ROOT
    assert message.pids == PidsItem(1, 1, 0)


@both_ways
def test_his_own_user_outside_is_root_for_who_is_inside(scene: Scene, send: Sender) -> None:
    message = send(scene.u, scene.n)
    assert message.creds == ALL_ROOT  # the same uid, but a process that is not visible
    assert message.pids == INVISIBLE


def test_a_monitor_sees_all_processes_of_its_namespace(scene: Scene) -> None:
    scene.conn.send(name=NAME)
    for sender, receiver in ((scene.u, scene.conn), (scene.n, scene.conn), (scene.conn, scene.n)):
        sender.send(receiver)
    scene.n.broadcast()
    told = [(message.pids, message.creds) for message in scene.monitor.drain()]
    root, u, n = (ROOT_PIDS, ALL_ROOT), (U_PIDS, ALL_NOBODY), (N_PIDS, ALL_NOBODY)
    assert told == [root, u, n, root, n]


def test_supplementary_groups_are_translated(scene: Scene) -> None:
    assert send_unicast(scene.conn, scene.u).auxgroups == (0, NOBODY)
    assert send_unicast(scene.conn, scene.n).auxgroups == (OVERFLOW_ID, 0)


def test_a_login_uid_that_does_not_exist_is_unset(scene: Scene) -> None:
    assert send_unicast(scene.conn, scene.u).audit == (1, 0)
    assert send_unicast(scene.conn, scene.n).audit == (1, UNSET_ID)
    assert send_unicast(scene.n, scene.conn).audit == (1, NOBODY)
    assert send_unicast(scene.n, scene.n).audit == (1, 0)


# Capabilities


@both_ways
def test_capabilities_count_where_they_are_and_further_in(scene: Scene, send: Sender) -> None:
    assert send(scene.conn, scene.u).caps == SOME_CAPS
    assert send(scene.conn, scene.n).caps == SOME_CAPS
    assert send(scene.n, scene.n).caps == SOME_CAPS


@both_ways
def test_capabilities_inside_are_none_outside(scene: Scene, send: Sender) -> None:
    assert send(scene.n, scene.conn).caps == NO_CAPS
    assert send(scene.n, scene.u).caps == NO_CAPS


@both_ways
def test_who_made_a_namespace_may_do_everything_in_it(scene: Scene, send: Sender) -> None:
    assert send(scene.u, scene.n).caps == EVERY_CAP


# Files


def test_a_path_is_told_to_who_has_the_same_root(scene: Scene) -> None:
    jailed = scene.connect(scene.task_in_namespaces(root="/jail"))
    assert not send_unicast(scene.conn, jailed).has(ItemType.EXE)
    assert not send_unicast(jailed, scene.conn).has(ItemType.EXE)
    for sender, receiver in ((scene.conn, scene.u), (scene.n, scene.conn), (scene.conn, scene.n)):
        assert send_unicast(sender, receiver).text(ItemType.EXE) == "/usr/bin/task"


# Questions


def test_a_connection_is_described_to_a_reader_as_the_reader_sees_it(scene: Scene) -> None:
    mask = Attach.CREDS | Attach.PIDS | Attach.CAPS
    seen = [
        (of, reader, info.creds, info.pids, info.caps)
        for of, reader in (("conn", "n"), ("n", "conn"), ("n", "n"), ("u", "n"), ("conn", "u"))
        for info in [getattr(scene, reader).conn_info(getattr(scene, of), mask=mask)]
    ]
    assert seen == [
        ("conn", "n", ALL_OVERFLOW, INVISIBLE, SOME_CAPS),
        ("n", "conn", ALL_NOBODY, N_PIDS, NO_CAPS),
        ("n", "n", ALL_ROOT, PidsItem(1, 1, 0), SOME_CAPS),
        ("u", "n", ALL_ROOT, INVISIBLE, EVERY_CAP),
        ("conn", "u", ALL_ROOT, ROOT_PIDS, SOME_CAPS),
    ]


def test_the_creator_of_a_bus_is_described_to_a_reader_as_the_reader_sees_him(scene: Scene) -> None:
    mask = Attach.CREDS | Attach.PIDS
    inside, outside = (client.creator_info(mask) for client in (scene.n, scene.u))
    assert (inside.creds, inside.pids) == (ALL_OVERFLOW, INVISIBLE)
    assert (outside.creds, outside.pids) == (ALL_ROOT, ROOT_PIDS)


def test_who_passes_a_handle_on_is_still_who_is_told_of(scene: Scene) -> None:
    scene.n.share(scene.root).send(scene.conn)
    message = scene.conn.recv()
    assert (message.creds, message.pids) == (ALL_NOBODY, N_PIDS)


# Unknown namespaces


def connect_unknown(scene: Scene) -> Client:
    return scene.connect(scene.world.task(NOBODY, user_namespace=None, pid_namespace=None, root=None))


def test_what_the_reader_could_not_read_is_left_out(scene: Scene) -> None:
    message = send_unicast(scene.conn, connect_unknown(scene))
    for kind in (ItemType.CREDS, ItemType.PIDS, ItemType.AUXGROUPS, ItemType.CAPS, ItemType.EXE):
        assert not message.has(kind)
    assert message.has(ItemType.TIMESTAMP)


def test_of_who_lives_in_unknown_namespaces_ids_are_told_and_not_what_they_can_do(scene: Scene) -> None:
    message = send_unicast(connect_unknown(scene), scene.conn)
    for kind in (ItemType.CAPS, ItemType.EXE, ItemType.CGROUP):
        assert not message.has(kind)
    assert message.creds == ALL_NOBODY
    assert message.has(ItemType.PIDS)
    assert message.has(ItemType.AUXGROUPS)


# What can be withheld


def test_a_sender_in_a_pid_namespace_that_cannot_be_seen_may_withhold_what_is_in_proc(world: World) -> None:
    scene = Scene(world, Make.ACCESS_WORLD | Make.FINAL_METADATA)
    for client in (scene.conn, scene.u, scene.n):
        client.update_attach_flags(send=0)
    in_proc = {ItemType.TID_COMM, ItemType.PID_COMM, ItemType.CMDLINE, ItemType.CAPS, ItemType.AUDIT}
    implicit = {ItemType.CREDS, ItemType.PIDS, ItemType.AUXGROUPS, ItemType.TIMESTAMP}
    to_n = set(send_unicast(scene.conn, scene.n).kinds)
    assert implicit <= to_n
    assert not in_proc & to_n
    assert implicit | in_proc <= set(send_unicast(scene.n, scene.conn).kinds)


def test_by_consent_a_sender_may_withhold_everything(world: World) -> None:
    scene = Scene(world, Make.ACCESS_WORLD)
    for client in (scene.conn, scene.n):
        client.update_attach_flags(send=0)
    assert send_unicast(scene.conn, scene.n).metadata_kinds == []
    assert send_unicast(scene.n, scene.conn).metadata_kinds == []


@pytest.mark.parametrize(
    ("hide_pid", "gid", "looks_in"),
    [
        pytest.param(0, 7, True, id="nothing is hidden"),
        pytest.param(1, 7, False, id="hidden"),
        pytest.param(2, 7, False, id="hidden well"),
        pytest.param(2, 42, True, id="hidden, but not from this group"),
    ],
)
def test_what_proc_hides_from_the_receiver_a_sender_may_withhold(
    world: World, hide_pid: int, gid: int, *, looks_in: bool
) -> None:
    scene = Scene(world, Make.ACCESS_WORLD | Make.FINAL_METADATA)
    processes = PidNamespace(hide_pid=hide_pid, pid_gid=42)
    sender, reader = (
        scene.connect(
            world.task(
                NOBODY,
                gid,
                pid=pid,
                pid_namespace=processes,
                pids_in={processes: Pids(pid - 400, pid - 400, 1)},
            )
        )
        for pid in (411, 422)
    )
    for client in (sender, reader):
        client.update_attach_flags(send=Attach.EXE)
    message = send_unicast(sender, reader)
    assert message.pids == PidsItem(11, 11, 1)
    assert message.has(ItemType.EXE)
    assert message.has(ItemType.CMDLINE) == looks_in
    assert send_unicast(reader, reader).has(ItemType.CMDLINE)  # nobody hides from himself
