"""Which metadata goes along with what: both formulas, for every kind.

By consent, a message carries what its sender grants and its receiver asks for. On a bus made with
FINAL_METADATA six kinds cannot be withheld, and eight come along if the receiver could read them in /proc.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.kdbus import (
    OWNER_UID,
    Attach,
    Client,
    ItemType,
    Make,
    Msg,
    Received,
    World,
)
from support.kdbus.layout import ATTACH_ALL, UNSET_ID

from kdbus_core.metadata import INITIAL_PID_NAMESPACE, Audit, Creds, PidNamespace, Pids, Snapshot

from .metadata_kinds import (
    DESCRIPTION,
    EACH,
    EACH_IN_PROC,
    EACH_OF_PROCESS,
    FORMULAS,
    IMPLICIT,
    KINDS,
    KNOWN,
    NAME,
    OF_PROCESS,
    Buses,
    Kind,
    by_unicast,
    connect,
    subject,
)


@pytest.fixture
def nodes(world: World) -> Buses:
    """A bus of each formula."""
    world.make_bus("1000-final", flags=Make.ACCESS_WORLD | Make.FINAL_METADATA)
    return {"consent": world.bus.endpoint, "final": world.find_endpoint(bus="1000-final")}


# Ways for metadata to arrive


def by_broadcast(sender: Client, receiver: Client) -> Received:
    receiver.add_match_empty()
    sender.signal()
    return receiver.recv()


def by_signal(sender: Client, receiver: Client) -> Received:
    receiver.add_match_empty()
    sender.signal(dst=receiver)
    return receiver.recv()


def by_reply(sender: Client, receiver: Client) -> Received:
    receiver.send_small(sender, cookie=1, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    sender.recv()
    sender.reply(receiver, 1)
    return receiver.recv()


def by_synchronous_reply(sender: Client, receiver: Client) -> Received:
    call = receiver.call(sender, cookie=1)
    sender.recv()
    sender.reply(receiver, 1)
    return call.result()


WAYS = [by_unicast, by_broadcast, by_signal, by_reply, by_synchronous_reply]
EACH_WAY = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
Way = Callable[[Client, Client], Received]


# Both formulas


@EACH_WAY
@EACH
def test_by_consent_a_kind_is_told_if_granted_and_asked_for(
    world: World, nodes: Buses, kind: Kind, way: Way
) -> None:
    node = nodes["consent"]
    for send in (kind.flag, ATTACH_ALL, ATTACH_ALL & ~kind.flag, 0):
        for recv in (kind.flag, ATTACH_ALL, ATTACH_ALL & ~kind.flag, 0):
            sender = connect(world, node, send=send)
            receiver = world.connect(node=node, attach_recv=recv)
            told = way(sender, receiver).metadata_kinds
            expected = [one.item for one in KINDS if one.flag & send & recv]
            assert sorted(told) == sorted(expected)
            sender.close()


@EACH_WAY
@EACH
def test_by_the_final_formula_a_kind_is_told_if_asked_for(
    world: World, nodes: Buses, kind: Kind, way: Way
) -> None:
    """Everything in here is visible in /proc, so what the sender grants does not matter."""
    node = nodes["final"]
    for send in (0, ATTACH_ALL & ~kind.flag, ATTACH_ALL):
        for recv in (kind.flag, ATTACH_ALL & ~kind.flag, 0):
            sender = connect(world, node, send=send)
            receiver = world.connect(node=node, attach_recv=recv)
            told = way(sender, receiver).metadata_kinds
            assert sorted(told) == sorted(one.item for one in KINDS if one.flag & recv)
            sender.close()


@FORMULAS
def test_monitors_are_told_by_the_same_formula(world: World, nodes: Buses, formula: str) -> None:
    node = nodes[formula]
    sender = connect(world, node, send=Attach.CREDS)
    receiver = world.connect(node=node)
    monitor = world.connect(None, node=node, flags=8, attach_recv=Attach.CREDS | Attach.EXE)
    sender.send_small(receiver)
    expected = {"consent": [ItemType.CREDS], "final": [ItemType.CREDS, ItemType.EXE]}
    assert monitor.recv().metadata_kinds == expected[formula]
    receiver.drain()


def test_the_formula_is_that_of_the_bus(world: World, nodes: Buses) -> None:
    told = {}
    for formula, node in nodes.items():
        sender = connect(world, node, send=0)
        told[formula] = len(by_unicast(sender, world.connect(node=node)).metadata_kinds)
    assert told == {"consent": 0, "final": len(KINDS)}


def test_a_bus_says_by_which_formula_it_tells(world: World, nodes: Buses) -> None:
    for formula, flags in (
        ("consent", Make.ACCESS_WORLD),
        ("final", Make.ACCESS_WORLD | Make.FINAL_METADATA),
    ):
        client = world.open(nodes[formula])
        answer = client.hello()
        assert answer["bus_flags"] == flags
        assert client.creator_info().flags == flags


@FORMULAS
def test_metadata_stands_in_one_order(world: World, nodes: Buses, formula: str) -> None:
    message = by_unicast(connect(world, nodes[formula]), world.connect(node=nodes[formula]))
    assert message.metadata_kinds == [
        ItemType.CREDS,
        ItemType.PIDS,
        ItemType.AUXGROUPS,
        ItemType.TID_COMM,
        ItemType.PID_COMM,
        ItemType.EXE,
        ItemType.CMDLINE,
        ItemType.CGROUP,
        ItemType.CAPS,
        ItemType.SECLABEL,
        ItemType.AUDIT,
        ItemType.OWNED_NAME,
        ItemType.CONN_DESCRIPTION,
        ItemType.TIMESTAMP,
    ]


@FORMULAS
def test_everything_is_told_as_it_is_known(world: World, nodes: Buses, formula: str) -> None:
    message = by_unicast(connect(world, nodes[formula]), world.connect(node=nodes[formula]))
    assert KNOWN.creds is not None
    assert tuple(message.creds) == tuple(KNOWN.creds)
    assert KNOWN.pids is not None
    assert tuple(message.pids) == tuple(KNOWN.pids)
    assert message.auxgroups == (11, 9, 10)
    assert message.text(ItemType.TID_COMM) == "thread"
    assert message.text(ItemType.PID_COMM) == "process"
    assert message.text(ItemType.EXE) == "/bin/program"
    assert message.text(ItemType.CMDLINE) == "program"
    assert message.text(ItemType.CGROUP) == "/user.slice"
    assert KNOWN.caps is not None
    assert tuple(message.caps) == tuple(KNOWN.caps)
    assert message.text(ItemType.SECLABEL) == "label"
    assert message.audit == (12, 13)
    assert message.names == [(NAME, 32)]
    assert message.description == DESCRIPTION
    assert message.timestamp[1:] == (world.monotonic_ns, world.realtime_ns)


def test_every_receiver_of_a_broadcast_gets_its_own_selection(world: World, nodes: Buses) -> None:
    for node in nodes.values():
        masks = [0, ATTACH_ALL, *(int(kind.flag) for kind in KINDS), 0, ATTACH_ALL]
        receivers = [world.connect(node=node, attach_recv=mask) for mask in masks]
        for receiver in receivers:
            receiver.add_match_empty()
        connect(world, node).signal()
        stamps = set()
        for mask, receiver in zip(masks, receivers, strict=True):
            message = receiver.recv()
            assert sorted(message.metadata_kinds) == sorted(kind.item for kind in KINDS if kind.flag & mask)
            if mask & Attach.TIMESTAMP:
                stamps.add(message.timestamp)
        assert len(stamps) == 1


# What is not known


@FORMULAS
@EACH_OF_PROCESS
def test_what_is_not_known_is_left_out(world: World, nodes: Buses, formula: str, kind: Kind) -> None:
    node = nodes[formula]
    changes: dict[str, None] = {kind.source: None}
    sender = connect(world, node, snapshot=replace(KNOWN, **changes)) if kind.source != "creds" else None
    if sender is None:  # who is not known owns nothing, so it has no name to be known by
        sender = world.connect(subject(world, replace(KNOWN, creds=None)), node=node, attach_recv=0)
    receiver = world.connect(node=node)
    receiver.add_match_empty()
    sender.signal()
    for answer in (receiver.recv(), receiver.conn_info(sender, mask=ATTACH_ALL)):
        assert kind.item not in answer.kinds
        others = {one.item for one in OF_PROCESS if one is not kind}
        assert others <= set(answer.kinds)


@FORMULAS
def test_of_nothing_nothing_is_told(world: World, nodes: Buses, formula: str) -> None:
    node = nodes[formula]
    sender = world.connect(subject(world, Snapshot()), node=node, description=None)
    receiver = world.connect(node=node)
    receiver.add_match_empty()
    sender.signal()
    assert receiver.recv().metadata_kinds == [ItemType.TIMESTAMP]
    assert receiver.conn_info(sender, mask=ATTACH_ALL).kinds == []


@FORMULAS
def test_no_groups_are_an_empty_item(world: World, nodes: Buses, formula: str) -> None:
    sender = connect(world, nodes[formula], snapshot=replace(KNOWN, auxgroups=()))
    message = by_unicast(sender, world.connect(node=nodes[formula]))
    assert message.auxgroups == ()
    assert message.has(ItemType.AUXGROUPS)


@FORMULAS
def test_ids_that_are_not_known_are_told_as_such(world: World, nodes: Buses, formula: str) -> None:
    known = Creds(OWNER_UID, OWNER_UID, UNSET_ID, UNSET_ID, UNSET_ID, 6, UNSET_ID, UNSET_ID)
    snapshot = replace(KNOWN, creds=known, audit=Audit(UNSET_ID, UNSET_ID), pids=Pids(70, 0, 0))
    message = by_unicast(
        connect(world, nodes[formula], snapshot=snapshot), world.connect(node=nodes[formula])
    )
    assert tuple(message.creds) == tuple(known)
    assert message.audit == (UNSET_ID, UNSET_ID)
    assert message.pids == (70, 0, 0)


@FORMULAS
def test_only_names_that_are_owned_are_told(world: World, nodes: Buses, formula: str) -> None:
    node = nodes[formula]
    sender, receiver = world.connect(node=node), world.connect(node=node)
    receiver.name_acquire("a.waited")
    sender.name_acquire("a.waited", 4)
    assert by_unicast(sender, receiver).names == []
    sender.name_acquire("z.first", 2)
    sender.name_acquire("a.second")
    assert by_unicast(sender, receiver).names == [("z.first", 34), ("a.second", 32)]
    sender.name_release("z.first")
    receiver.name_release("a.waited")
    assert sorted(by_unicast(sender, receiver).names) == [("a.second", 32), ("a.waited", 36)]


@FORMULAS
@pytest.mark.parametrize(
    ("whose", "unknown", "missing"),
    [
        ("reader", "user_namespace", {"CREDS", "AUXGROUPS", "CAPS", "AUDIT", "CGROUP"}),
        ("reader", "pid_namespace", {"PIDS", "CGROUP"}),
        ("sender", "user_namespace", {"CAPS", "CGROUP"}),
        ("sender", "pid_namespace", {"CGROUP"}),
        ("reader", "root", {"EXE"}),
        ("sender", "root", {"EXE"}),
    ],
)
def test_what_needs_an_unknown_namespace_is_left_out(
    world: World, nodes: Buses, formula: str, unknown: str, missing: set[str], whose: str
) -> None:
    options: dict[str, None] = {unknown: None}
    strange = world.task(snapshot=KNOWN, **options)  # type: ignore[arg-type] # each of them may be None
    plain = subject(world)
    node = nodes[formula]
    sender = world.connect(strange if whose == "sender" else plain, node=node)
    reader = world.connect(strange if whose == "reader" else plain, node=node)
    told = {kind.name for kind in by_unicast(sender, reader).metadata_kinds}
    expected = {kind.item.name for kind in KINDS} - {"OWNED_NAME"} - missing
    info = {kind.name for kind in reader.conn_info(sender, mask=ATTACH_ALL).kinds}
    assert info == expected - {"TIMESTAMP"}
    assert told == expected


# The final formula and /proc


@pytest.mark.parametrize(
    ("hide_pid", "pid_gid", "reader_gid", "told"),
    [(0, 0, 50, True), (1, 0, 50, False), (2, 0, 50, False), (1, 50, 50, True), (2, 50, 51, False)],
)
@EACH_IN_PROC
def test_what_proc_hides_has_to_be_granted(
    world: World, nodes: Buses, kind: Kind, hide_pid: int, pid_gid: int, reader_gid: int, told: bool
) -> None:
    namespace = PidNamespace(INITIAL_PID_NAMESPACE, hide_pid=hide_pid, pid_gid=pid_gid)
    inside = {namespace: Pids(5, 5, 1)}
    process = world.task(snapshot=KNOWN, pid_namespace=namespace, pids_in=inside)
    reader_task = world.task(
        OWNER_UID, reader_gid, pid_namespace=namespace, pids_in={namespace: Pids(6, 6, 1)}
    )
    node = nodes["final"]
    reader = world.connect(reader_task, node=node)
    silent = world.connect(process, node=node, attach_send=0)
    assert (kind.item in by_unicast(silent, reader).kinds) == told
    granting = world.connect(process, node=node, attach_send=kind.flag)
    message = by_unicast(granting, reader)
    assert kind.item in message.kinds
    assert {one.item for one in KINDS if one.flag in IMPLICIT} - {ItemType.OWNED_NAME} <= set(message.kinds)


@EACH_IN_PROC
def test_a_process_that_is_not_visible_has_to_grant(world: World, nodes: Buses, kind: Kind) -> None:
    namespace = PidNamespace(INITIAL_PID_NAMESPACE)
    node = nodes["final"]
    reader = world.connect(world.task(pid_namespace=namespace, pids_in={namespace: Pids(1, 1, 0)}), node=node)
    silent = world.connect(subject(world), node=node, attach_send=0)
    message = by_unicast(silent, reader)
    assert kind.item not in message.kinds
    assert message.pids == (0, 0, 0)


def test_a_process_can_always_look_at_itself(world: World, nodes: Buses) -> None:
    namespace = PidNamespace(INITIAL_PID_NAMESPACE, hide_pid=2, pid_gid=1)
    task = world.task(pid_namespace=namespace, pids_in={namespace: Pids(5, 5, 1)})
    first, second = (world.connect(task, node=nodes["final"], attach_send=0) for _ in range(2))
    told = set(by_unicast(first, second).metadata_kinds)
    assert told == {kind.item for kind in KINDS} - {ItemType.OWNED_NAME}
