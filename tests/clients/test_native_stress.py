"""Many peers of both kinds at once, in processes of their own: order, sudden ends, and crowds.

Everything random comes from seeds. Where a process is killed, the test has seen it send or answer so many
calls; what it does after that is its own affair. In the end the bus has to hold what it held before.
"""

from __future__ import annotations

import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from support.mixed import EMBEDDED, KINDS, MixedBus, MixedBuses
from support.native_peer import NativePeer
from support.native_programs.nursery import Nursery, Worker
from support.native_programs.party import INTERFACE, LEGACY, NATIVE, PATH, NativeParty
from support.raw import RawClient

from kdbus_core.transport.client import NameChanged

PEERS = (NATIVE, LEGACY)

SERVICE, CALLER = "service", "caller"
VICTIMS = [(role, kind) for kind in PEERS for role in (SERVICE, CALLER)]
"""Who is killed, in turn."""

ROUNDS = 16
CALLERS = 3
CALLS_OF_EACH = 30
WINDOW = 8
ENDLESS = 1 << 30

TALKERS = 6
TURNS = 8

CROWD = 500
CROWD_PROCESSES = 4
CROWD_CALLS = 4

GONE = {"NoReply", "ServiceUnknown", "NameHasNoOwner", "EPIPE", "ESRCH"}
"""What a call ends with when its service has been killed, as clients and as natives are told."""
ANSWERED = {"reply", "com.example.Error.OnPurpose"}


@pytest.fixture(scope="module")
def buses() -> Iterator[MixedBuses]:
    with MixedBuses() as buses:
        yield buses


@pytest.fixture(params=KINDS)
def mixed(request: pytest.FixtureRequest, buses: MixedBuses) -> MixedBus:
    return buses[request.param]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


def where(mixed: MixedBus, kind: str) -> str:
    """Where a worker of that kind connects."""
    return str(mixed.node) if kind == NATIVE else mixed.legacy.address


# Order


def test_every_receiver_hears_every_sender_in_order_and_names_before_what_follows(
    mixed: MixedBus, nursery: Nursery
) -> None:
    talkers = [
        nursery.start(
            "talk",
            kind=(kind := PEERS[index % 2]),
            where=where(mixed, kind),
            index=index,
            total=TALKERS,
            seed=index,
            rounds=TURNS,
        )
        for index in range(TALKERS)
    ]
    names = {talker.report()["name"]: index for index, talker in enumerate(talkers)}
    with mixed.join() as starter:
        starter.emit("Go", "u", 0, path=PATH, interface=INTERFACE)
        logs = [talker.report() for talker in talkers]
    for talker in talkers:
        assert os.waitstatus_to_exitcode(talker.reap()) == 0
    sent = {log["name"]: log["sent"] for log in logs}
    for log in logs:
        check_log(log["heard"], names, sent)
    if mixed.kind == EMBEDDED:  # one broker does one thing after the other, for all
        orders = [log["heard"] for log in logs]
        assert all(order == orders[0] for order in orders)


def check_log(heard: list[list[Any]], names: dict[str, int], sent: dict[str, int]) -> None:
    """What one receiver has heard: of each sender all in order, and each change of a name in its place."""
    numbers: Counter[str] = Counter()
    changes: defaultdict[str, list[list[str]]] = defaultdict(list)
    for kind, what, sender, *body in heard:
        if kind == "owner":
            changes[what].append(body)
            continue
        own_name = f"com.example.Talker.N{names[sender]}"
        if what == "Tick":
            number, changed = body
            assert number == numbers[sender], f"{sender} was at {numbers[sender]}: {body}"
            numbers[sender] += 1
        else:
            _, count, changed = body
            assert count == numbers[sender]
        assert len(changes[own_name]) == changed, (
            f"{own_name} had changed {changed} times: {changes[own_name]}"
        )
    assert dict(numbers) == sent
    for name, history in changes.items():
        owners = ["", *(new for _, new in history)]
        assert [old for old, _ in history] == owners[:-1], f"{name}: {history}"


# Sudden ends


def test_whoever_is_killed_the_others_go_on(mixed: MixedBus, nursery: Nursery) -> None:
    random = Random(f"killed {mixed.kind}")
    with mixed.connect() as witness, mixed.connect() as log, mixed.join() as native_log:
        log.reply("AddMatch", "s", "member='NameOwnerChanged',arg0namespace='com.example'")
        native_log.add_match("member='NameOwnerChanged',arg0namespace='com.example'")
        before = mixed.settled()
        endings: Counter[str] = Counter()
        for number in range(ROUNDS):
            ended = kill_one(mixed, nursery, witness, random, number)
            endings += ended.outcomes
            history = [message.body for message in log.sync() if message.member == "NameOwnerChanged"]
            assert sorted(history) == ended.changes
            assert native_history(native_log) == history
        assert mixed.settle(before).is_within(before)
    # No round has every ending; all of them together have.
    assert {"reply", "com.example.Error.OnPurpose", "NoReply", "EPIPE"} <= set(endings)


@dataclass
class Ended:
    """What became of the survivors' calls, and what names have to have changed."""

    outcomes: Counter[str]
    changes: list[list[str]]


def native_history(native: NativePeer) -> list[list[str]]:
    """The changes of names that a native was told of, as clients are."""
    return [
        [mail.name, *(f":1.{id}" if id else "" for id in (mail.old_id, mail.new_id))]
        for mail in native.drain()
        if isinstance(mail, NameChanged) and mail.name.startswith("com.example.")
    ]


def kill_one(mixed: MixedBus, nursery: Nursery, witness: RawClient, random: Random, number: int) -> Ended:
    """A service, its callers, and the end of one of them; what became of the others' calls."""
    service_name = f"com.example.Service.R{number}"
    role, victim_kind = VICTIMS[number % len(VICTIMS)]
    service_kind = victim_kind if role == SERVICE else random.choice(PEERS)
    service = nursery.start(
        "serve", kind=service_kind, where=where(mixed, service_kind), name=service_name, seed=random.random()
    )
    service_id = service.report()["name"]
    kinds = [NATIVE, LEGACY, random.choice(PEERS)]
    random.shuffle(kinds)
    caller_names = [f"com.example.Caller.R{number}N{index}" for index in range(CALLERS)]
    doomed = kinds.index(victim_kind) if role == CALLER else -1
    callers = [
        nursery.start(
            "call",
            kind=kind,
            where=where(mixed, kind),
            service=service_name,
            name=name,
            seed=random.random(),
            calls=ENDLESS if index == doomed else CALLS_OF_EACH,
            window=WINDOW,
        )
        for index, (kind, name) in enumerate(zip(kinds, caller_names, strict=True))
    ]
    unique_names = [caller.report()["name"] for caller in callers]
    victim = callers[doomed] if role == CALLER else service
    kill_at(victim, random.randrange(1, CALLS_OF_EACH - 5))
    endings: Counter[str] = Counter()
    for caller in callers:
        if caller is victim:
            continue
        *_, last = caller.reports()
        assert os.waitstatus_to_exitcode(caller.reap()) == 0
        assert last["wrong"] == {}, f"round {number}: calls without, or with more than one outcome"
        assert sum(last["outcomes"].values()) == last["calls"] == CALLS_OF_EACH + 1
        unexpected = set(last["outcomes"]) - ANSWERED - (GONE if role == SERVICE else set())
        assert not unexpected, f"round {number}: {last}"
        endings.update(last["outcomes"])
    if role == CALLER:
        witness.reply("Stop", destination=service_name, path=PATH, interface=INTERFACE)
        list(service.reports())
        assert os.waitstatus_to_exitcode(service.reap()) == 0
    assert os.WTERMSIG(victim.reap()) == signal.SIGKILL
    for name in (service_id, *unique_names):
        witness.wait_for_name_lost(name)
    taken = {service_name, *caller_names} & set(witness.reply("ListNames").body[0])
    assert not taken
    owners = [(service_name, service_id), *zip(caller_names, unique_names, strict=True)]
    changes = [[name, old, new] for name, id in owners for old, new in (("", id), (id, ""))]
    return Ended(endings, sorted(changes))


def kill_at(victim: Worker, count: int) -> None:
    """Kill it when it has told of so many calls."""
    for _ in range(count):
        victim.report()
    victim.kill()


# Crowds


def test_five_hundred_natives_talk_and_leave_nothing(mixed: MixedBus, nursery: Nursery) -> None:
    share = CROWD // CROWD_PROCESSES
    with mixed.nothing_left():
        members = [
            nursery.start(
                "crowd",
                where=str(mixed.node),
                first=first,
                count=share,
                total=CROWD,
                calls=CROWD_CALLS,
            )
            for first in range(0, CROWD, share)
        ]
        for member in members:
            assert member.report() == "joined"
        state = mixed.inspect()
        assert len(state["connections"]) >= CROWD
        assert len(state["names"]) == CROWD
        with mixed.connect() as legacy:
            assert len(legacy.reply("ListNames").body[0]) >= 2 * CROWD
        starter = NativeParty(mixed.node)
        starter.emit("Go", "")
        starter.close()
        for member in members:
            assert member.report() == {"answered": share * CROWD_CALLS, "wrong": []}
        with mixed.connect() as legacy:
            echoed = legacy.reply(
                "Echo", "u", 7, destination="com.example.Crowd.N0", path=PATH, interface=INTERFACE
            )
            assert echoed.body == [7]
        for member in members:
            member.kill()
        for member in members:
            member.reap()
    assert mixed.inspect()["names"] == []
