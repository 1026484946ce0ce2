"""What `inspect` tells of a domain: everything there is, as values that JSON has, changing nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from native_world import NAME, OWNER, ROOT, SECOND, STRANGER, World, bulk, running_world

from kdbus_core import Bloom, Connection, Credentials, Domain, Message, Process
from kdbus_core.abi import (
    MATCH_ANY,
    MAX_BLOOM_SIZE,
    UNSET_ID,
    AccessLevel,
    AccessType,
    AttachFlag,
    HelloFlag,
    ItemType,
    MakeFlag,
    NameFlag,
)
from kdbus_core.inspection import FORMAT, inspect
from kdbus_core.matches import BloomMask, DstIdMatch, IdMatch, IdNotice, NameMatch, NameNotice
from kdbus_core.metadata import Audit, Caps, Creds, Pids, Snapshot
from kdbus_core.notifications import ReplyDead, ReplyTimeout
from kdbus_core.policy import Access, PolicyEntry
from kdbus_core.pool import Pool
from kdbus_core.subscriptions import ArgumentTest, Rule

WORLD_TALKS = Access(AccessType.WORLD, 0, AccessLevel.TALK)
PAGE = 4096

Told = dict[str, Any]


class Nobody:
    """A sink that nothing is sent to."""

    def on_reply_lost(self, notification: ReplyDead | ReplyTimeout) -> None:
        raise AssertionError(notification)

    def on_message(self, sender: Connection, message: Message) -> None:
        raise AssertionError(message)


@pytest.fixture
def world() -> Iterator[World]:
    yield from running_world()


def told(world: World, **options: int) -> Told:
    """What is told of the domain, having been JSON."""
    state: Told = json.loads(json.dumps(inspect(world.domain, **options)))
    return state


def bus_of(world: World, **options: int) -> Told:
    (bus,) = told(world, **options)["buses"]
    assert isinstance(bus, dict)
    return bus


def connection_of(world: World, id: int, **options: int) -> Told:
    (found,) = [one for one in bus_of(world, **options)["connections"] if one["id"] == id]
    assert isinstance(found, dict)
    return found


# Domains, buses and endpoints


def test_a_domain_says_whose_it_is_and_what_it_holds() -> None:
    owner = Credentials(uid=7, gid=8)
    domain = Domain(
        bytes,
        lambda: 99,
        owner=owner,
        access=MakeFlag.ACCESS_GROUP,
        max_pool_size=PAGE,
        max_connections_per_user=5,
    )
    domain.make_domain("inner", ROOT)
    state = inspect(domain)
    assert state["format"] == FORMAT
    assert (state["name"], state["owner"], state["access"]) == ("", {"uid": 7, "gid": 8}, "group")
    assert (state["max_pool_size"], state["monotonic_ns"], state["buses"]) == (PAGE, 99, [])
    assert state["max_connections_per_user"] == 5
    inner = json.loads(json.dumps(state["domains"]))
    assert [(one["name"], one["access"], one["domains"]) for one in inner] == [("inner", "owner", [])]


def test_a_bus_says_what_it_was_made_with() -> None:
    domain = Domain(bytes)
    domain.make_bus(
        "1000-it",
        OWNER,
        MakeFlag.ACCESS_WORLD | MakeFlag.FINAL_METADATA,
        bloom=Bloom(32, 3),
        creator_mask=AttachFlag.CREDS | AttachFlag.PID_COMM,
        required=AttachFlag.TIMESTAMP,
    )
    (bus,) = json.loads(json.dumps(inspect(domain)["buses"]))
    assert (bus["name"], bus["id"]) == ("1000-it", 1)
    assert bus["id128"] == "00000000000040008000000000000000"
    assert (bus["access"], bus["final_metadata"]) == ("world", True)
    assert bus["bloom"] == {"size": 32, "n_hash": 3}
    assert bus["creator_metadata"] == ["creds", "pid_comm"]
    assert bus["required_metadata"] == ["timestamp"]
    assert bus["owner"] == {"uid": 1000, "gid": 1000}
    assert bus["creator"]["pid"] == 4711


def test_an_endpoint_says_who_gets_in_and_what_it_lets_through(world: World) -> None:
    endpoint = world.bus.make_endpoint("1000-narrow", OWNER, MakeFlag.ACCESS_GROUP)
    accesses = (WORLD_TALKS, Access(AccessType.GROUP, 5, AccessLevel.OWN), Access(AccessType.USER, 6, 0))
    endpoint.update_policy([PolicyEntry("org.example.*", accesses), PolicyEntry("org.example", ())])
    world.connect(STRANGER, endpoint=endpoint)
    default, narrow = bus_of(world)["endpoints"]
    assert (default["name"], default["is_default"], default["policy"]) == ("bus", True, None)
    assert (narrow["name"], narrow["access"], narrow["connections"]) == ("1000-narrow", "group", 1)
    assert narrow["policy"] == [
        {"name": "org.example", "holder": None, "accesses": []},
        {
            "name": "org.example.*",
            "holder": None,
            "accesses": [
                {"type": "world", "id": None, "level": "talk"},
                {"type": "user", "id": 6, "level": "see"},
                {"type": "group", "id": 5, "level": "own"},
            ],
        },
    ]


def test_the_policy_of_a_bus_names_its_holders(world: World) -> None:
    holder = world.connect(flags=HelloFlag.POLICY_HOLDER, name="org.example.*", accesses=[WORLD_TALKS])
    (entry,) = bus_of(world)["policy"]
    assert (entry["name"], entry["holder"]) == ("org.example.*", holder.id)
    assert connection_of(world, holder.id)["kind"] == "policy holder"


# Names


def test_a_name_has_an_owner_a_queue_and_an_activator(world: World) -> None:
    activator = world.connect_activator()
    first, second = world.connect_many(2)
    world.bus.name_acquire(first, NAME, NameFlag.ALLOW_REPLACEMENT)
    world.bus.name_acquire(second, NAME, NameFlag.QUEUE)
    (name,) = bus_of(world)["names"]
    assert name == {
        "name": NAME,
        "owner": first.id,
        "activator": activator.id,
        "queue": [
            {"connection": first.id, "flags": ["allow replacement", "primary"]},
            {"connection": second.id, "flags": ["queue", "in queue"]},
        ],
    }
    assert connection_of(world, activator.id)["names"] == [{"name": NAME, "flags": ["in queue", "activator"]}]


def test_a_name_that_is_only_offered_has_no_owner(world: World) -> None:
    world.connect_activator()
    (name,) = bus_of(world)["names"]
    assert (name["owner"], name["queue"]) == (None, [])


# Connections


@pytest.mark.parametrize("kind", ["ordinary", "activator", "policy holder", "monitor"])
def test_a_connection_is_of_a_kind(world: World, kind: str) -> None:
    connection = world.connect_kind(kind)
    assert connection_of(world, connection.id)["kind"] == kind


def test_a_connection_says_what_it_is_and_what_it_asked_for(world: World) -> None:
    connection = world.bus.hello(
        world.bus.endpoint,
        STRANGER,
        pool=Pool(4 * PAGE),
        flags=HelloFlag.ACCEPT_FD,
        description="me",
        attach_send=AttachFlag.CREDS,
        attach_recv=AttachFlag.TIMESTAMP | AttachFlag.SECLABEL,
    )
    state = connection_of(world, connection.id)
    assert (state["endpoint"], state["description"], state["accepts_fds"]) == ("bus", "me", True)
    assert (state["is_native"], state["is_owner"], state["is_faked"]) == (True, False, False)
    assert (state["attach_send"], state["attach_recv"]) == (["creds"], ["timestamp", "seclabel"])
    assert state["account"] == {"uid": 2000, "of": None}
    assert state["pool"] == {"size": 4 * PAGE, "used": 0, "reserved_slots": 0}


def test_what_is_known_of_a_process_is_told_and_nothing_else(world: World) -> None:
    process = Process(
        Snapshot(
            creds=Creds(uid=1, euid=2, gid=UNSET_ID, egid=0),
            pids=Pids(10, 11),
            auxgroups=(4, 5),
            pid_comm=b"caf\xe9",
            cmdline=b"cat\0-n\0",
            caps=Caps(40, 0, 1 << 40, 0xFF, 3),
            seclabel=b"label\0",
            audit=Audit(3, UNSET_ID),
        ),
        privileged=True,
    )
    connection = world.connect(process)
    assert connection_of(world, connection.id)["credentials"] == {
        "uid": 1,
        "euid": 2,
        "egid": 0,
        "pid": 10,
        "tid": 11,
        "groups": [4, 5],
        "pid_comm": "caf\\xe9",
        "cmdline": "cat -n",
        "caps": {
            "last_cap": 40,
            "inheritable": "0",
            "permitted": "10000000000",
            "effective": "ff",
            "bounding": "3",
        },
        "seclabel": "label",
        "sessionid": 3,
        "is_privileged": True,
    }


def test_nothing_is_told_of_a_process_of_which_nothing_is_known(world: World) -> None:
    connection = world.connect(Process(Snapshot()))
    assert connection_of(world, connection.id)["credentials"] == {"is_privileged": False}


def test_faked_credentials_stand_beside_those_of_the_opener(world: World) -> None:
    faked = Snapshot(creds=Creds(uid=5, euid=6), pids=Pids(77))
    connection = world.connect(OWNER, faked=faked)
    state = connection_of(world, connection.id)
    assert (state["is_faked"], state["credentials"]) == (True, {"uid": 5, "euid": 6, "pid": 77})
    assert state["opened_by"]["pid"] == 4711


def test_what_waits_is_told_with_who_pays_for_it(world: World) -> None:
    receiver, sender = world.connect_many(2)
    endpoint = world.bus.make_endpoint("1000-e", OWNER, MakeFlag.ACCESS_WORLD)
    endpoint.update_policy([PolicyEntry(NAME, (WORLD_TALKS,))])
    world.bus.name_acquire(receiver, NAME, 0)
    world.send(sender, receiver, 1, bulk(1000), world.fds("a"))
    world.send(world.connect(OWNER, endpoint=endpoint), receiver, 2)
    queue = connection_of(world, receiver.id)["queue"]
    assert (queue["messages"], queue["fds"], queue["lost"]) == (2, 1, 0)
    assert [(who["uid"], who["of"], who["messages"]) for who in queue["users"]] == [
        (1000, None, 1),
        (None, "endpoint 1000-e", 1),
    ]
    assert sum(who["bytes"] for who in queue["users"]) == queue["bytes"] == queue["peak_bytes"] > 1000
    assert connection_of(world, receiver.id)["pool"]["used"] == queue["bytes"]


def test_a_notification_that_waits_is_charged_to_the_bus(world: World) -> None:
    listener = world.listen(world.connect(), IdNotice(ItemType.ID_ADD, MATCH_ANY))
    world.connect()
    (user,) = connection_of(world, listener.id)["queue"]["users"]
    assert (user["uid"], user["of"], user["messages"]) == (None, "the bus", 1)


def test_what_was_lost_is_counted(world: World) -> None:
    listener = world.listen(world.connect(), IdNotice(ItemType.ID_ADD, MATCH_ANY))
    free = world.use_up_pool(listener)
    world.connect_many(3)
    assert connection_of(world, listener.id)["queue"]["lost"] == 3
    free()


def test_open_requests_are_told_at_both_ends(world: World) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7, wait=5 * SECOND)
    world.call(requester, replier, 8)
    state = connection_of(world, requester.id)
    deadline = world.clock.now + 5 * SECOND
    assert state["requests"] == {
        "total": 2,
        "left_out": 0,
        "records": [
            {"to": replier.id, "cookie": 7, "deadline_ns": deadline, "is_waiting": False},
            {"to": replier.id, "cookie": 8, "deadline_ns": world.clock.now + SECOND, "is_waiting": True},
        ],
    }
    assert (state["outstanding"], state["waiting_calls"]) == (2, 1)
    assert state["pool"]["reserved_slots"] > 0
    assert connection_of(world, replier.id)["owes"] == [{"to": requester.id, "requests": 2}]


def test_an_answered_request_is_not_told(world: World) -> None:
    requester, replier = world.connect_many(2)
    world.request(requester, replier, 7)
    world.reply(replier, requester, 7, 1)
    assert connection_of(world, requester.id)["requests"]["records"] == []
    assert connection_of(world, replier.id)["owes"] == []


def test_matches_can_be_read(world: World) -> None:
    one = world.connect()
    mask = BloomMask((b"\x0f" + bytes(63), bytes(63) + b"\x01"))
    bus = world.bus
    bus.match_add(one, 1, [IdMatch(9), NameMatch("org.example.A"), DstIdMatch(MATCH_ANY), mask])
    bus.match_add(one, 2, [NameNotice(ItemType.NAME_CHANGE, MATCH_ANY, 4, "org.example.B")])
    bus.match_add(one, 2, [IdNotice(ItemType.ID_REMOVE, 5)])
    bus.match_add(one, 3, [])
    bus.match_add(one, 4, [IdMatch(1), IdMatch(2)])
    empty = {"sender": None, "sender_names": [], "destination": None, "masks": [""]}
    assert connection_of(world, one.id)["matches"]["records"] == [
        {
            "cookie": 1,
            "message": {
                "sender": 9,
                "sender_names": ["org.example.A"],
                "destination": None,
                "masks": ["0f", "00" * 63 + "01"],
            },
            "notification": None,
        },
        {
            "cookie": 2,
            "message": None,
            "notification": {"type": "name change", "name": "org.example.B", "old_id": None, "new_id": 4},
        },
        {"cookie": 2, "message": None, "notification": {"type": "id remove", "id": 5}},
        {"cookie": 3, "message": empty, "notification": {"type": None}},
        {"cookie": 4, "message": None, "notification": None},
    ]


def test_subscriptions_of_a_local_connection_can_be_read(world: World) -> None:
    local = world.bus.hello(world.bus.endpoint, OWNER, sink=Nobody())
    rule = Rule(
        4,
        "org.example.A",
        "org.example.I",
        path="/a",
        arguments=(ArgumentTest(0, "string", "x"),),
        eavesdrop=True,
    )
    world.bus.subscribe(local, 3, rule)
    world.bus.subscribe(local, 4, Rule())
    state = connection_of(world, local.id)
    assert (state["is_native"], state["pool"]) == (False, None)
    assert state["subscriptions"]["records"] == [
        {
            "cookie": 3,
            "message_type": 4,
            "sender": "org.example.A",
            "interface": "org.example.I",
            "path": "/a",
            "arguments": [{"index": 0, "kind": "string", "value": "x"}],
            "eavesdrop": True,
        },
        {"cookie": 4},
    ]


# Bounds


def test_long_tables_stop_where_the_room_ends_and_say_so(world: World) -> None:
    first, second = world.connect_many(2)
    for cookie in range(10):
        world.bus.match_add(first, cookie, [IdMatch(1)])
        world.bus.match_add(second, cookie, [IdMatch(1)])
    state = connection_of(world, first.id, max_records=15)["matches"]
    assert (state["total"], state["left_out"], len(state["records"])) == (10, 0, 10)
    state = connection_of(world, second.id, max_records=15)["matches"]
    assert (state["total"], state["left_out"], len(state["records"])) == (10, 5, 5)


def test_long_masks_count_as_several_records() -> None:
    domain = Domain(bytes)
    bus = domain.make_bus("1000-wide", OWNER, bloom=Bloom(MAX_BLOOM_SIZE, 8))
    one = bus.hello(bus.endpoint, OWNER, pool=Pool(PAGE))
    for cookie in range(20):
        bus.match_add(one, cookie, [BloomMask((b"\xff" * MAX_BLOOM_SIZE,))])
    (state,) = json.loads(json.dumps(inspect(domain, max_records=100)["buses"]))
    matches = state["connections"][0]["matches"]
    assert matches["left_out"] == 20 - len(matches["records"]) > 10


def test_looking_changes_nothing(world: World) -> None:
    receiver = world.listen(world.connect(), IdNotice(ItemType.ID_ADD, MATCH_ANY))
    sender = world.connect(attach_send=AttachFlag.CREDS)
    world.request(sender, receiver, 1, bulk(100))
    assert told(world) == told(world)
    assert world.read(receiver) == [f"ID_ADD {sender.id}", "#1"]
