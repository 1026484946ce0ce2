"""What processes do on a bus in the tests of many and of sudden ends; run by `nursery`.

A worker gets `report`, which tells the test something at once, and its arguments. What a worker does
depends on its seed and on what comes, never on time.
"""

from __future__ import annotations

import os
import select
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from support.native_programs.party import Event, NativeParty, join

Report = Callable[[Any], None]

MAX_HELD = 3
"""Calls that a service leaves unanswered at a time; callers have more open than that."""


def serve(report: Report, kind: str, where: str, name: str, seed: int) -> None:
    """Answer calls: with results, with errors, later; until somebody says Stop."""
    random = Random(seed)
    party = join(kind, where)
    assert party.acquire(name)
    report({"name": party.unique_name})
    held: list[Event] = []
    try:
        while True:
            event = party.next()
            if event.kind != "call":
                continue
            report("got")
            choice = random.random()
            if event.what in ("Flush", "Stop"):
                while held:
                    party.answer(held.pop(random.randrange(len(held))), "s", "late")
                party.answer(event, "s", event.what)
                if event.what == "Stop":
                    break
            elif choice < 0.3 and len(held) < MAX_HELD:
                held.append(event)
            elif choice < 0.4:
                party.refuse(event, "com.example.Error.OnPurpose")
            else:
                party.answer(event, "u", event.body[0])
                if held and choice > 0.7:
                    party.answer(held.pop(random.randrange(len(held))), "s", "late")
    finally:
        party.close()


def call(
    report: Report, kind: str, where: str, service: str, name: str, seed: int, calls: int, window: int
) -> None:
    """Call a service, with several calls open, some with files, some large; tell what became of each."""
    random = Random(seed)
    party = join(kind, where)
    assert party.acquire(name)
    report({"name": party.unique_name})
    null = os.open("/dev/null", os.O_RDONLY)
    outcomes: dict[int, list[str]] = {}
    expected: dict[int, int] = {}
    waiting: set[int] = set()

    def take(event: Event) -> None:
        if event.kind not in ("reply", "error"):
            return
        outcomes.setdefault(event.number, []).append(event.what or "reply")
        waiting.discard(event.number)
        if event.kind == "reply" and isinstance(event.body[0], int):
            assert event.body[0] == expected[event.number], event

    for number in range(calls):
        while len(waiting) >= window:
            take(party.next())
        data = random.randbytes(random.choice([0, 10, 3000, 90_000]))
        if random.random() < 0.2:
            serial = party.call(service, "Work", "uayh", number, data, null)
        else:
            serial = party.call(service, "Work", "uay", number, data)
        expected[serial] = number
        waiting.add(serial)
        outcomes.setdefault(serial, [])
        report("sent")
    waiting.add(flush := party.call(service, "Flush", ""))
    outcomes.setdefault(flush, [])
    while waiting:
        take(party.next())
    for event in party.rest():
        take(event)
    party.close()
    counts = Counter(kinds[0] for kinds in outcomes.values() if kinds)
    wrong = {number: kinds for number, kinds in outcomes.items() if len(kinds) != 1}
    report({"outcomes": dict(counts), "wrong": wrong, "calls": len(outcomes)})


def talk(report: Report, kind: str, where: str, index: int, total: int, seed: int, rounds: int) -> None:
    """Emit numbered signals and change names, in rounds that all end together; tell what was heard.

    Every signal says how often the sender's own name had changed hands when it was sent.
    """
    random = Random(seed)
    party = join(kind, where)
    party.listen(owners=True)
    own_name = f"com.example.Talker.N{index}"
    shared = ["com.example.Shared.A", "com.example.Shared.B"]
    heard: list[list[Any]] = []
    ended: defaultdict[int, set[str]] = defaultdict(set)

    def hear() -> Event:
        event = party.next()
        if event.kind == "signal" and event.what == "Round":
            ended[event.body[0]].add(event.sender)
        if event.kind in ("signal", "owner") and event.what != "Go":
            heard.append([event.kind, event.what, event.sender, *event.body])
        return event

    report({"name": party.unique_name})
    while hear().what != "Go":
        pass
    heard.clear()
    number = changes = 0
    is_owner = False
    for turn in range(rounds):
        for _ in range(random.randrange(4, 9)):
            choice = random.random()
            if choice < 0.3:
                if is_owner:
                    party.release(own_name)
                else:
                    assert party.acquire(own_name)
                is_owner = not is_owner
                changes += 1
            elif choice < 0.45:
                party.acquire(random.choice(shared), contested=True)
            party.emit("Tick", "uu", number, changes)
            number += 1
        party.emit("Round", "uuu", turn, number, changes)
        while len(ended[turn]) < total:
            hear()
    report({"heard": heard, "name": party.unique_name, "sent": number})
    party.close()


def crowd(report: Report, where: str, first: int, count: int, total: int, calls: int) -> None:
    """Many native peers in one process: each calls others' names, all answer, some emit signals to all.

    Told when everybody's replies are in; after that the process stays until it is ended.
    """
    parties = [NativeParty(Path(where)) for _ in range(count)]
    by_fd = {party.peer.connection.fileno(): party for party in parties}
    poller = select.epoll()
    for fd in by_fd:
        poller.register(fd, select.EPOLLIN)
    for offset, party in enumerate(parties):
        party.listen(owners=False)
        assert party.acquire(_member(first + offset))
    report("joined")
    made = dict.fromkeys(parties, 0)
    answered = dict.fromkeys(parties, 0)
    signals = dict.fromkeys(parties, 0)
    wrong: list[Any] = []
    speakers = [party for offset, party in enumerate(parties) if (first + offset) % 50 == 0]
    expected_signals = (total + 49) // 50
    is_told = False

    def go_on(party: NativeParty) -> None:
        number = first + parties.index(party)
        if made[party] < calls:
            made[party] += 1
            party.call(_member((number + 1 + 37 * made[party]) % total), "Echo", "u", number)

    while True:
        for fd, _ in poller.poll(30):
            party = by_fd[fd]
            for event in party.poll():
                if event.kind == "call":
                    party.answer(event, "u", event.body[0])
                elif event.kind == "reply":
                    answered[party] += 1
                    go_on(party)
                elif event.kind == "error":
                    wrong.append(event[:5])
                elif event.kind == "signal" and event.what == "Go":
                    go_on(party)
                elif event.kind == "signal":
                    signals[party] += 1
        if not is_told and speakers and all(answered[party] == calls for party in parties):
            for speaker in speakers:
                speaker.emit("Done", "u", first)
            speakers = []
        if not is_told and all(
            answered[party] == calls and signals[party] == expected_signals for party in parties
        ):
            is_told = True
            report({"answered": sum(answered.values()), "wrong": wrong})


def _member(number: int) -> str:
    return f"com.example.Crowd.N{number}"


WORKERS: dict[str, Callable[..., None]] = {"serve": serve, "call": call, "talk": talk, "crowd": crowd}
