"""Signals between native programs: who is told of what, by the exact rule."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from unit.native.native_programs import Connect, Served, refusal

from busproxy.native import Message, NativeBus
from busproxy.wire.match_rules import MatchRuleError
from kdbus_core.abi import HelloFlag
from kdbus_core.transport.client.aio import open_node

PATH = "/org/example/Test"
INTERFACE = "org.example.Test"
NAME = "org.example.Service"
LAST = "type='signal',interface='org.example.Last'"


class Listener:
    """Collects what a program's rules let through, until the signal that a sender says is its last."""

    def __init__(self, bus: NativeBus) -> None:
        self.bus = bus
        self.heard: list[Message] = []
        self._last = asyncio.Event()

    async def listen(self, *rules: str) -> None:
        for rule in rules:
            await self.bus.add_match(rule, self.heard.append)
        await self.bus.add_match(LAST, lambda message: self._last.set())

    async def until_last(self, sender: NativeBus) -> list[tuple[Any, ...]]:
        """What was heard before the last signal: its values, or its member where it has none."""
        await sender.emit("/", "org.example.Last", "Last")
        await self._last.wait()
        return [message.values or (message.member,) for message in self.heard]


async def listen(join: Connect, *rules: str) -> Listener:
    listener = Listener(await join())
    await listener.listen(*rules)
    return listener


async def test_a_signal_goes_to_those_whose_rule_holds(join: Connect) -> None:
    listener = await listen(join, f"interface='{INTERFACE}',member='Changed',path='{PATH}',arg0='x'")
    sender = await join()
    await sender.emit(PATH, INTERFACE, "Changed", "si", "x", 1)
    await sender.emit(PATH, INTERFACE, "Changed", "si", "y", 2)
    await sender.emit(PATH, INTERFACE, "Other", "si", "x", 3)
    await sender.emit("/", INTERFACE, "Changed", "si", "x", 4)
    await sender.emit(PATH, "org.example.Other", "Changed", "si", "x", 5)
    assert await listener.until_last(sender) == [("x", 1)]


SENT = [("a", "b"), ("/p/q", ""), ("/", ""), ("com.example", ""), ("com.example.x", "")]


@pytest.mark.parametrize(
    ("rule", "heard"),
    [
        ("arg1='b'", [("a", "b")]),
        ("arg0path='/p/'", [("/p/q", ""), ("/", "")]),
        ("arg0namespace='com.example'", [("com.example", ""), ("com.example.x", "")]),
        (
            f"path_namespace='{PATH}'",
            [("a", "b"), ("/p/q", ""), ("/", ""), ("com.example", ""), ("com.example.x", "")],
        ),
        ("path_namespace='/org/example/Tes'", []),
        ("type='method_call'", []),
    ],
)
async def test_every_kind_of_condition_is_exact(join: Connect, rule: str, heard: list[Any]) -> None:
    listener = await listen(join, f"interface='{INTERFACE}',{rule}")
    sender = await join()
    for values in SENT:
        await sender.emit(PATH, INTERFACE, "M", "ss", *values)
    assert await listener.until_last(sender) == heard


async def test_what_the_filter_lets_through_by_chance_is_not_heard(join: Connect) -> None:
    # More tags than a filter has bits for: it contains every mask.
    listener = await listen(join, f"interface='{INTERFACE}',member='Never'")
    sender = await join()
    await sender.emit(PATH, "org.example.Full", "M", "s", "a.b/" * 300)
    assert await listener.until_last(sender) == []


async def test_two_rules_of_a_program_are_told_each_once(join: Connect) -> None:
    listener = await listen(join, f"interface='{INTERFACE}'", "member='M'")
    sender = await join()
    await sender.emit(PATH, INTERFACE, "M", "i", 1)
    assert await listener.until_last(sender) == [(1,), (1,)]


async def test_a_sender_is_known_by_its_id_and_by_its_names(join: Connect) -> None:
    sender, other = await join(), await join()
    await sender.request_name(NAME)
    listener = await listen(join, f"sender='{sender.unique_name}',member='M'", f"sender='{NAME}',member='M'")
    await sender.emit(PATH, INTERFACE, "M", "i", 1)
    await other.emit(PATH, INTERFACE, "M", "i", 2)
    await sender.release_name(NAME)
    await sender.emit(PATH, INTERFACE, "M", "i", 3)
    assert await listener.until_last(sender) == [(1,), (1,), (3,)]
    assert {message.sender for message in listener.heard} == {sender.unique_name}


async def test_a_program_hears_itself(join: Connect) -> None:
    listener = await listen(join, f"interface='{INTERFACE}'")
    await listener.bus.emit(PATH, INTERFACE, "M", "i", 1)
    assert await listener.until_last(listener.bus) == [(1,)]


async def test_a_rule_that_was_removed_holds_no_longer(join: Connect) -> None:
    listener, sender = await listen(join), await join()
    match = await listener.bus.add_match(f"interface='{INTERFACE}'", listener.heard.append)
    await sender.emit(PATH, INTERFACE, "M", "i", 1)
    assert await listener.until_last(sender) == [(1,)]
    await listener.bus.remove_match(match)
    await listener.bus.remove_match(match)
    await sender.emit(PATH, INTERFACE, "M", "i", 2)
    assert await listener.until_last(sender) == [(1,)]


async def test_nothing_of_a_rule_that_was_removed_stays_on_the_bus(served: Served, join: Connect) -> None:
    program = await join()
    (connection,) = served.bus.connections.values()
    before = connection.match_count
    match = await program.add_match("member='NameOwnerChanged'", lambda message: None)
    assert connection.match_count == before + 6
    await program.remove_match(match)
    assert connection.match_count == before


async def test_a_text_that_is_no_rule_is_refused(join: Connect) -> None:
    program = await join()
    with pytest.raises(MatchRuleError, match="Unknown key"):
        await program.add_match("colour='red'", lambda message: None)


async def test_a_rule_too_many_is_refused_and_leaves_nothing(served: Served, join: Connect) -> None:
    program = await join()
    (connection,) = served.bus.connections.values()
    before = connection.match_count
    connection.limits = replace(connection.limits, matches=before + 3)
    name, _ = await refusal(program.add_match("member='NameOwnerChanged'", lambda message: None))
    assert (name, connection.match_count) == ("LimitsExceeded", before)


# Signals to one program


async def test_a_signal_to_one_program_is_heard_by_that_one_alone(join: Connect) -> None:
    one, other = (
        await listen(join, f"interface='{INTERFACE}'"),
        await listen(join, f"interface='{INTERFACE}'"),
    )
    sender = await join()
    await one.bus.request_name(NAME)
    await sender.emit(PATH, INTERFACE, "M", "i", 1, destination=one.bus.unique_name)
    await sender.emit(PATH, INTERFACE, "M", "i", 2, destination=NAME)
    assert await one.until_last(sender) == [(1,), (2,)]
    assert await other.until_last(sender) == []


async def test_a_rule_for_ones_own_messages_hears_no_broadcast(join: Connect) -> None:
    program = await join()
    await program.request_name(NAME)
    listener = Listener(program)
    rules = [f"destination='{name}'" for name in (program.unique_name, NAME)]
    await listener.listen(*rules)
    sender = await join()
    await sender.emit(PATH, INTERFACE, "M", "i", 1)
    await sender.emit(PATH, INTERFACE, "M", "i", 2, destination=program.unique_name)
    heard = await listener.until_last(sender)
    assert [values for values in heard if values != ("NameAcquired",)].count((2,)) == 2
    assert (1,) not in heard


async def test_a_signal_to_nobody_is_refused(join: Connect) -> None:
    sender = await join()
    assert (await refusal(sender.emit(PATH, INTERFACE, "M", destination=NAME)))[0] == "ServiceUnknown"


async def test_a_file_cannot_be_sent_to_everybody(join: Connect) -> None:
    sender = await join()
    with open("/dev/null", "rb") as file:
        assert (await refusal(sender.emit(PATH, INTERFACE, "M", "h", file)))[0] == "NotSupported"


async def test_a_file_can_be_sent_to_one_program_and_is_closed_when_it_was_heard(join: Connect) -> None:
    listener, sender = await listen(join, f"interface='{INTERFACE}'"), await join()
    with open("/dev/null", "rb") as file:
        await sender.emit(PATH, INTERFACE, "M", "h", file, destination=listener.bus.unique_name)
    ((descriptor,),) = await listener.until_last(sender)
    with pytest.raises(ValueError, match="closed"):
        descriptor.fileno()


# Handlers


async def test_a_handler_that_fails_is_logged_and_the_others_are_told(
    join: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    program, sender = await join(), await join()

    def fail(message: Message) -> None:
        raise ZeroDivisionError

    async def fail_later(message: Message) -> None:
        raise KeyError

    await program.add_match(f"interface='{INTERFACE}'", fail)
    await program.add_match(f"interface='{INTERFACE}'", fail_later)
    listener = Listener(program)
    await listener.listen(f"interface='{INTERFACE}'")
    await sender.emit(PATH, INTERFACE, "M", "i", 1)
    assert await listener.until_last(sender) == [(1,)]
    assert "ZeroDivisionError" in caplog.text
    assert "KeyError" in caplog.text


async def test_a_handler_may_call_others(join: Connect) -> None:
    service, program = await join(), await join()
    service.export(PATH, INTERFACE, {"Echo": ("s", "s", lambda text: text)})
    answers: asyncio.Queue[Any] = asyncio.Queue()

    async def ask(message: Message) -> None:
        await answers.put(await program.call(message.sender, PATH, INTERFACE, "Echo", "s", "x"))

    await program.add_match(f"interface='{INTERFACE}'", ask)
    await service.emit(PATH, INTERFACE, "M")
    assert await answers.get() == ("x",)


# Names


async def test_changes_of_owners_are_signals_of_the_driver(served: Served, join: Connect) -> None:
    listener = await listen(join, "sender='org.freedesktop.DBus',member='NameOwnerChanged'")
    one, other = await join(), await join()
    await one.request_name(NAME, 1)
    await other.request_name(NAME, 2)
    await other.release_name(NAME)
    await one.close()
    sender = listener.bus
    assert (await listener.until_last(sender))[:6] == [
        (one.unique_name, "", one.unique_name),
        (other.unique_name, "", other.unique_name),
        (NAME, "", one.unique_name),
        (NAME, one.unique_name, other.unique_name),
        (NAME, other.unique_name, one.unique_name),
        (NAME, one.unique_name, ""),
    ]


async def test_who_goes_is_told(served: Served, join: Connect) -> None:
    listener = await listen(join, "member='NameOwnerChanged',arg2=''")
    gone: asyncio.Event = asyncio.Event()
    await listener.bus.add_match("member='NameOwnerChanged',arg2=''", lambda message: gone.set())
    one = await join()
    await one.close()
    await gone.wait()
    assert [message.values for message in listener.heard] == [(one.unique_name, one.unique_name, "")]


async def test_a_program_is_told_what_it_gets_and_loses(join: Connect) -> None:
    program, other = await join(), await join()
    listener = Listener(program)
    await listener.listen("sender='org.freedesktop.DBus',interface='org.freedesktop.DBus'")
    await program.request_name(NAME, 1)
    await other.request_name(NAME, 2)
    await listener.until_last(other)
    assert [(message.member, *message.values) for message in listener.heard] == [
        ("NameOwnerChanged", NAME, "", program.unique_name),
        ("NameAcquired", NAME),
        ("NameLost", NAME),
        ("NameOwnerChanged", NAME, program.unique_name, other.unique_name),
    ]


async def test_an_activator_is_nobody(served: Served, join: Connect) -> None:
    listener = await listen(join, "sender='org.freedesktop.DBus',member='NameOwnerChanged'")
    handle = await open_node(served.node)
    async with await handle.hello(flags=HelloFlag.ACTIVATOR, name=NAME):
        service = await join()
        await service.request_name(NAME)
        await service.release_name(NAME)
        await listener.until_last(service)
    assert [message.values for message in listener.heard] == [
        (service.unique_name, "", service.unique_name),
        (NAME, "", service.unique_name),
        (NAME, service.unique_name, ""),
    ]
