"""Who owns a name, who waits for it, and who hears of it in which order.

Three clients ask for the same name with every combination of flags; each of them, and an observer, watches
NameOwnerChanged. What is compared is everything each of them receives, in order, replies among signals, and
the queue after each step. Names are new for each combination, so the clients can stay.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.raw import DRIVER, Message, RawClient

pytestmark = pytest.mark.program("dbus-daemon")

ALLOW_REPLACEMENT, REPLACE_EXISTING, DO_NOT_QUEUE = 1, 2, 4
ALL_FLAGS = range(8)


class Stage:
    """Clients around one name, and the transcript of what they hear."""

    def __init__(self, clients: list[RawClient], name: str) -> None:
        self.clients = clients
        self.name = name
        self.transcript: list[Any] = []

    def act(self, actor: int, member: str, signature: str, *arguments: Any) -> None:
        """One client calls the driver; then all say what they have heard."""
        heard = {actor: self.clients[actor].call(member, signature, *arguments)}
        for index, client in enumerate(self.clients):
            heard[index] = heard.get(index, []) + client.sync()
        self.transcript.append(
            (
                f"client {actor}: {member} {arguments[1:]}",
                {
                    index: [message.brief() for message in messages]
                    for index, messages in sorted(heard.items())
                },
                self.clients[-1].reply("ListQueuedOwners", "s", self.name).brief(),
            )
        )

    def request(self, actor: int, flags: int) -> None:
        self.act(actor, "RequestName", "su", self.name, flags)

    def release(self, actor: int) -> None:
        self.act(actor, "ReleaseName", "s", self.name)


def play(bus: Bus, scripts: list[Any], count: int = 4) -> list[Any]:
    """Play each script on a new name with the same clients; a script is a function of the stage."""
    clients = [bus.connect() for _ in range(count)]
    try:
        transcripts = []
        for number, script in enumerate(scripts):
            name = f"com.example.Name{number}"
            for client in clients:
                client.call("AddMatch", "s", f"sender='{DRIVER}',member='NameOwnerChanged',arg0='{name}'")
            stage = Stage(clients, name)
            script(stage)
            for index in range(count):
                stage.release(index)
            transcripts.append(stage.transcript)
        return transcripts
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize("first", ALL_FLAGS)
def test_three_clients_ask_for_one_name_with_all_flags(compare: Comparison, first: int) -> None:
    def script_for(second: int, third: int) -> Any:
        def script(stage: Stage) -> None:
            for actor, flags in enumerate((first, second, third)):
                stage.request(actor, flags)

        return script

    scripts = [script_for(second, third) for second, third in product(ALL_FLAGS, ALL_FLAGS)]
    transcripts = compare(lambda bus: play(bus, scripts))
    assert len(transcripts) == 64
    assert transcripts[0][0][1][0][-1] == "return reply [1]"


@pytest.mark.parametrize("again", ALL_FLAGS)
def test_asking_again_changes_the_flags_of_owner_and_waiter(compare: Comparison, again: int) -> None:
    def script_for(first: int, second: int, asker: int) -> Any:
        def script(stage: Stage) -> None:
            stage.request(0, first)
            stage.request(1, second)
            stage.request(asker, again)
            stage.request(2, REPLACE_EXISTING)

        return script

    scripts = [
        script_for(first, second, asker)
        for first, second, asker in product((0, 1, 5), (0, 1, 2, 3, 4), (0, 1))
    ]
    compare(lambda bus: play(bus, scripts))


def test_a_middle_waiter_leaves_the_queue_without_a_signal(compare: Comparison) -> None:
    def script(stage: Stage) -> None:
        for actor in (0, 1, 2):
            stage.request(actor, 0)
        stage.release(1)
        stage.release(3)
        stage.release(0)

    compare(lambda bus: play(bus, [script]))


def test_when_the_owner_vanishes_the_next_in_the_queue_hears_first_of_its_new_name(
    compare: Comparison,
) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as waiter, bus.connect() as observer:
            for client in (waiter, observer):
                client.call("AddMatch", "s", "member='NameOwnerChanged'")
            with bus.connect() as owner:
                for name in ("com.example.A", "com.example.B", "com.example.C"):
                    owner.call("RequestName", "su", name, 0)
                waiter.call("RequestName", "su", "com.example.B", 0)
                gone = owner.unique_name
            observer.wait_for_name_lost(gone)
            return [[message.brief() for message in client.sync()] for client in (waiter, observer)]

    compare(scenario)


def test_a_client_that_leaves_gives_up_its_names_in_the_same_order(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as observer:
            observer.call("AddMatch", "s", "member='NameOwnerChanged'")
            with bus.connect() as owner:
                for name in ("com.example.B", "com.example.A", "com.example.D", "com.example.C"):
                    owner.call("RequestName", "su", name, 0)
            heard: list[Message] = []
            while not heard or heard[-1].body[0] != owner.unique_name or heard[-1].body[2]:
                heard.append(observer.receive())
            return [message.describe() for message in heard]

    compare(scenario)


def test_names_are_listed_in_the_same_order(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as first, bus.connect() as second:
            second.call("RequestName", "su", "com.example.B", 0)
            first.call("RequestName", "su", "com.example.A", 0)
            listed = first.reply("ListNames").body[0]
            assert len(listed) == 5
            return [listed[0], sorted(listed)]

    compare(scenario)


def test_a_name_signal_has_the_same_fields(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as owner, bus.connect() as taker:
            owner.call("AddMatch", "s", "member='NameOwnerChanged'")
            messages = owner.call("RequestName", "su", "com.example.A", ALLOW_REPLACEMENT)
            taker.call("RequestName", "su", "com.example.A", REPLACE_EXISTING)
            messages += owner.sync()
            return [message.describe() for message in messages]

    compare(scenario)


def test_signals_about_ones_own_name_need_no_match(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            messages = client.call("RequestName", "su", "com.example.A", 0)
            messages += client.call("ReleaseName", "s", "com.example.A")
            return [message.brief() for message in messages]

    compare(scenario)


def test_a_request_without_reply_still_takes_effect(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            client.send_call("RequestName", "su", "com.example.A", 0, flags=1)
            heard = client.sync()
            client.send_call("ReleaseName", "s", "com.example.A", flags=1)
            return [message.brief() for message in heard + client.sync()]

    compare(scenario)


def test_unknown_request_flags_are_treated_alike(compare: Comparison) -> None:
    def script(stage: Stage) -> None:
        stage.request(0, 0xFFFFFFF8)
        stage.request(1, 0xFFFFFFFA)
        stage.request(2, 8 | REPLACE_EXISTING | DO_NOT_QUEUE)

    compare(lambda bus: play(bus, [script]))


ODD_NAMES = [
    "a.b",
    "a-b.c_d",
    "_._",
    "A.9",
    "a.9b",
    "a..b",
    ".a.b",
    "a.b.",
    "a",
    "a b.c",
    "a.b!",
    "1a.b",
    "a.b/c",
    "é.b",
    "-.-",
    "a." + "b" * 253,
    "a." + "b" * 254,
    ":1",
    ":",
    ":a.b",
    "org.freedesktop.DBus.Sub",
    "org.freedesktop.DBusX",
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_what_is_a_valid_name_is_decided_alike(compare_shared: Comparison, name: str) -> None:
    def scenario(bus: Bus) -> Any:
        with bus.connect() as client:
            messages = client.call("RequestName", "su", name, 0)
            messages += client.call("NameHasOwner", "s", name)
            messages += client.call("ReleaseName", "s", name)
            return [message.describe() for message in messages]

    compare_shared(scenario)
