"""Signals, names and monitors on a bus with both kinds of peers.

A signal reaches those whose rule holds for it, whichever kind its sender is of, and nobody else. What becomes
of names is told to both kinds in their own terms, in one order. Monitors of either kind see what passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from support.mixed import EMBEDDED, KINDS, MixedBus, MixedBuses
from support.native_peer import PATIENCE_SECONDS, NativePeer
from support.raw import METHOD_RETURN, NO_REPLY_EXPECTED, SIGNAL, Message, RawClient

from busproxy.native import connect
from busproxy.native.messages import Message as NativeMessage
from kdbus_core.abi import HelloFlag, ItemType, NameFlag
from kdbus_core.transport.client import NameChanged

MONITORING = "org.freedesktop.DBus.Monitoring"
ALLOW_REPLACEMENT, REPLACE_EXISTING, DO_NOT_QUEUE = 1, 2, 4
PRIMARY_OWNER, IN_QUEUE, EXISTS = 1, 2, 3


@pytest.fixture(scope="module")
def buses() -> Iterator[MixedBuses]:
    with MixedBuses() as buses:
        yield buses


@pytest.fixture(params=KINDS)
def mixed(request: pytest.FixtureRequest, buses: MixedBuses) -> MixedBus:
    return buses[request.param]


@pytest.fixture
def native(mixed: MixedBus) -> Iterator[NativePeer]:
    with mixed.join() as peer:
        yield peer


@pytest.fixture
def legacy(mixed: MixedBus) -> Iterator[RawClient]:
    with mixed.connect() as client:
        yield client


def signal(
    member: str,
    signature: str = "",
    *body: object,
    path: str = "/a",
    interface: str = "a.b",
    destination: str | None = None,
    order: str = "l",
) -> Message:
    fields = {"path": path, "interface": interface, "member": member}
    if signature:
        fields["signature"] = signature
    if destination is not None:
        fields["destination"] = destination
    return Message(SIGNAL, NO_REPLY_EXPECTED, 0, fields, list(body), order)


def heard_by_native(native: NativePeer) -> list[str]:
    """What has come for a native peer, in a few words."""
    words = []
    for mail in native.drain():
        if isinstance(mail, NativeMessage):
            words.append(" ".join([mail.member or "reply", *map(str, mail.values)]))
        else:
            words.append(type(mail).__name__)
    return words


def heard_by_legacy(legacy: RawClient) -> list[str]:
    """The same for a client, but for what the driver tells it of its own names."""
    return [
        " ".join([message.member or "reply", *map(str, message.body)])
        for message in legacy.sync()
        if message.member not in ("NameAcquired", "NameLost")
    ]


# Broadcasts

SIGNALS = [
    ("S", "s", ("wanted",), "/a", "a.b"),
    ("S", "s", ("other",), "/a", "a.b"),
    ("T", "s", ("wanted",), "/a", "a.b"),
    ("S", "s", ("wanted",), "/a/b", "a.c"),
    ("S", "su", ("com.example.Sub", 7), "/ab", "a.b"),
    ("S", "o", ("/x/y",), "/a", "a.b"),
    ("S", "s", ("/x/y/z",), "/", "a.b"),
    ("S", "us", (7, "wanted"), "/a", "a.b"),
    ("S", "", (), "/a", "a.b"),
    ("S", "as", (["wanted"],), "/a", "a.b"),
    ("Sx", "s", ("wanted ",), "/a", "a.bc"),
]

RULES = [
    "type='signal',sender='{sender}'",
    "type='signal',sender='{sender}',interface='a.b'",
    "type='signal',sender='{sender}',member='S'",
    "type='signal',sender='{sender}',path='/a'",
    "type='signal',sender='{sender}',path_namespace='/a'",
    "type='signal',sender='{sender}',arg0='wanted'",
    "type='signal',sender='{sender}',arg1='wanted'",
    "type='signal',sender='{sender}',arg0path='/x/'",
    "type='signal',sender='{sender}',arg0namespace='com.example'",
    "sender='{sender}',path='/a',member='S',interface='a.b',arg0='other'",
    "type='method_call',sender='{sender}'",
    "type='signal',sender=':1.999999'",
    "type='signal',sender='{sender}',interface='a.bcd'",
]


def names_of(rule: str, sender: str) -> list[str]:
    """The numbers of the signals for which a rule holds, found by the rule's own words."""
    conditions = [part.split("=", 1) for part in rule.format(sender=sender).split(",")]
    return [
        str(number)
        for number, emitted in enumerate(SIGNALS)
        if all(holds(key, value.strip("'"), sender, *emitted) for key, value in conditions)
    ]


def holds(
    key: str,
    wanted: str,
    sender: str,
    member: str,
    signature: str,
    values: tuple[Any, ...],
    path: str,
    interface: str,
) -> bool:
    """Whether one condition of a rule holds for a signal."""
    position = 1 if key.startswith("arg1") else 0
    kind = signature[position : position + 1] if signature != "as" else ""
    text = values[position] if kind in ("s", "o") else ""
    match key:
        case "type":
            return wanted == "signal"
        case "sender" | "member" | "path" | "interface":
            return wanted == {"sender": sender, "member": member, "path": path, "interface": interface}[key]
        case "path_namespace":
            return path == wanted or path.startswith(wanted + "/")
        case "arg0" | "arg1":
            return kind == "s" and text == wanted
        case "arg0namespace":
            return kind == "s" and (text == wanted or text.startswith(wanted + "."))
        case "arg0path":
            is_below = wanted.endswith("/") and text.startswith(wanted)
            is_above = text.endswith("/") and wanted.startswith(text)
            return kind != "" and kind in "so" and (text == wanted or is_below or is_above)
    raise AssertionError(key)


async def test_a_native_gets_a_clients_signals_that_its_rule_holds_for(
    mixed: MixedBus, legacy: RawClient
) -> None:
    """The broker's filter lets more through; the library does not."""
    for rule in RULES:
        heard: list[str] = []
        end = asyncio.Event()

        def finish(_: NativeMessage, end: asyncio.Event = end) -> None:
            end.set()

        def hear(mail: NativeMessage, heard: list[str] = heard) -> None:
            what = (mail.member, mail.signature, mail.values, mail.path, mail.interface)
            if mail.interface == "x.end":
                return
            heard.append(str(SIGNALS.index(what)))  # type: ignore[arg-type]  # a signal has them all

        async with await connect(mixed.node) as native:
            await native.add_match(rule.format(sender=legacy.unique_name), hear)
            await native.add_match("type='signal',interface='x.end'", finish)
            for order in ("l", "B"):
                for member, signature, values, path, interface in SIGNALS:
                    legacy.send(
                        signal(member, signature, *values, path=path, interface=interface, order=order)
                    )
            legacy.send(signal("End", path="/end", interface="x.end", destination=native.unique_name))
            await asyncio.wait_for(end.wait(), PATIENCE_SECONDS)
        assert heard == names_of(rule, legacy.unique_name) * 2, rule


def test_a_client_gets_a_natives_signals_that_its_rule_holds_for(mixed: MixedBus, native: NativePeer) -> None:
    for rule in RULES:
        with mixed.connect() as legacy:
            legacy.reply("AddMatch", "s", rule.format(sender=native.unique_name))
            for member, signature, values, path, interface in SIGNALS:
                native.emit(member, signature, *values, path=path, interface=interface)
            heard = [
                str(
                    SIGNALS.index(
                        (
                            message.member,
                            message.fields.get("signature", ""),
                            tuple(message.body),
                            message.fields["path"],
                            message.fields["interface"],
                        )
                    )
                )
                for message in legacy.sync()
                if message.fields["sender"] == native.unique_name
            ]
            assert heard == names_of(rule, native.unique_name), rule


def test_who_has_no_rule_hears_nothing(mixed: MixedBus, native: NativePeer, legacy: RawClient) -> None:
    with mixed.join() as other_native, mixed.connect() as other_legacy:
        native.emit("S", "s", "x")
        legacy.send(signal("S", "s", "x"))
        legacy.sync()
        assert (heard_by_native(other_native), heard_by_legacy(other_legacy)) == ([], [])
        assert (heard_by_native(native), heard_by_legacy(legacy)) == ([], [])


def test_who_has_many_rules_hears_a_signal_once(native: NativePeer, legacy: RawClient) -> None:
    for rule in ("type='signal',interface='a.b'", "member='S'", "path='/a'"):
        native.add_match(rule)
        legacy.reply("AddMatch", "s", rule)
    native.emit("S", "s", "native")
    legacy.send(signal("S", "s", "legacy"))
    assert heard_by_legacy(legacy) == ["S native", "S legacy"]
    assert heard_by_native(native) == ["S native", "S legacy"]


def test_a_rule_that_was_removed_holds_no_longer(native: NativePeer, legacy: RawClient) -> None:
    cookie = native.add_match("member='S'")
    legacy.reply("AddMatch", "s", "member='S'")
    native.emit("S", "s", "first")
    legacy.send(signal("S", "s", "second"))
    legacy.sync()
    assert heard_by_native(native) == ["S first", "S second"]
    native.connection.match_remove(cookie)
    legacy.reply("RemoveMatch", "s", "member='S'")
    native.emit("S")
    legacy.send(signal("S"))
    assert (heard_by_legacy(legacy), heard_by_native(native)) == ([], [])


def test_a_sender_is_known_by_its_well_known_name_to_clients(native: NativePeer, legacy: RawClient) -> None:
    legacy.reply("AddMatch", "s", "type='signal',sender='com.example.Emitter'")
    native.emit("S", "s", "before")
    native.acquire("com.example.Emitter")
    native.emit("S", "s", "while")
    native.release("com.example.Emitter")
    native.emit("S", "s", "after")
    heard = [word for word in heard_by_legacy(legacy) if not word.startswith("NameOwnerChanged")]
    assert heard == ["S while"]


# Signals to one


def test_a_signal_to_one_reaches_that_one_without_a_rule(
    mixed: MixedBus, native: NativePeer, legacy: RawClient
) -> None:
    with mixed.join() as other_native, mixed.connect() as other_legacy:
        other_native.add_match("type='signal'")
        other_legacy.reply("AddMatch", "s", "type='signal',interface='a.b'")
        native.emit("S", "s", "to legacy", destination=legacy.unique_name)
        legacy.send(signal("S", "s", "to native", destination=native.unique_name))
        assert heard_by_legacy(legacy) == ["S to legacy"]
        assert heard_by_native(native) == ["S to native"]
        assert heard_by_legacy(other_legacy) == []
        assert [word for word in heard_by_native(other_native) if word.startswith("S ")] == []


def test_a_signal_to_a_name_reaches_its_owner(native: NativePeer, legacy: RawClient) -> None:
    native.acquire("com.example.Ear")
    legacy.send(signal("S", "s", "x", destination="com.example.Ear"))
    legacy.sync()
    assert heard_by_native(native) == ["S x"]
    native.release("com.example.Ear")
    legacy.reply("RequestName", "su", "com.example.Ear", 0)
    legacy.sync()
    native.emit("S", "s", "y", destination="com.example.Ear")
    assert heard_by_legacy(legacy) == ["S y"]
    legacy.reply("ReleaseName", "s", "com.example.Ear")


# Names


def owner_changes(legacy: RawClient, name: str) -> list[tuple[str, ...]]:
    """What a client was told of a name and of its own."""
    return [
        (message.member, *message.body[1:])
        for message in legacy.sync()
        if message.fields["sender"] == "org.freedesktop.DBus" and message.body and message.body[0] == name
    ]


def native_changes(native: NativePeer, name: str) -> list[tuple[ItemType, int, int]]:
    return [
        (mail.kind, mail.old_id, mail.new_id)
        for mail in native.drain()
        if isinstance(mail, NameChanged) and mail.name == name
    ]


def id_of(legacy: RawClient) -> int:
    return int(legacy.unique_name.removeprefix(":1."))


def test_a_name_goes_from_owner_to_owner_of_either_kind(mixed: MixedBus) -> None:
    name = "com.example.Passed"
    with mixed.join() as native_watcher, mixed.connect() as watcher, mixed.connect() as legacy:
        native_watcher.add_match(f"sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{name}'")
        watcher.reply("AddMatch", "s", f"member='NameOwnerChanged',arg0='{name}'")
        watcher.sync()
        with mixed.join() as native:
            assert NameFlag.PRIMARY in native.acquire(name, NameFlag.ALLOW_REPLACEMENT | NameFlag.QUEUE)
            assert legacy.reply("RequestName", "su", name, DO_NOT_QUEUE).body == [EXISTS]
            assert legacy.reply("RequestName", "su", name, ALLOW_REPLACEMENT).body == [IN_QUEUE]
            queue = legacy.reply("ListQueuedOwners", "s", name).body[0]
            assert queue == [native.unique_name, legacy.unique_name]
            assert legacy.reply("RequestName", "su", name, ALLOW_REPLACEMENT | REPLACE_EXISTING).body == [
                PRIMARY_OWNER
            ]
            assert owner_changes(legacy, name) == [("NameAcquired",)]
            assert NameFlag.PRIMARY in native.acquire(name, NameFlag.REPLACE_EXISTING | NameFlag.QUEUE)
            assert owner_changes(legacy, name) == [("NameLost",)]
            native_id, native_name = native.id, native.unique_name
            assert legacy.reply("GetNameOwner", "s", name).body == [native_name]
        watcher.wait_for_name_lost(native_name)
        assert native_changes(native_watcher, name) == [
            (ItemType.NAME_ADD, 0, native_id),
            (ItemType.NAME_CHANGE, native_id, id_of(legacy)),
            (ItemType.NAME_CHANGE, id_of(legacy), native_id),
            (ItemType.NAME_CHANGE, native_id, id_of(legacy)),
        ]
        with mixed.connect() as fresh:
            assert fresh.reply("GetNameOwner", "s", name).body == [legacy.unique_name]
        assert owner_changes(legacy, name) == [("NameAcquired",)]
        assert legacy.reply("ReleaseName", "s", name).body == [1]
        assert owner_changes(legacy, name) == [("NameLost",)]
        assert native_changes(native_watcher, name) == [(ItemType.NAME_REMOVE, id_of(legacy), 0)]


def test_clients_are_told_of_every_change_of_a_natives_name(mixed: MixedBus, native: NativePeer) -> None:
    name = "com.example.Told"
    with mixed.connect() as watcher:
        watcher.reply("AddMatch", "s", f"member='NameOwnerChanged',arg0='{name}'")
        native.acquire(name, NameFlag.ALLOW_REPLACEMENT)
        with mixed.connect() as legacy:
            legacy.reply("RequestName", "su", name, REPLACE_EXISTING)
            native.acquire(name, NameFlag.QUEUE)
            gone = legacy.unique_name
        watcher.wait_for_name_lost(gone)
        native.release(name)
        with mixed.connect() as check:
            assert check.reply("NameHasOwner", "s", name).body == [False]
    assert native.drain() == []


def test_a_watching_client_sees_the_whole_history(mixed: MixedBus) -> None:
    name = "com.example.History"
    with mixed.connect() as watcher, mixed.join() as native, mixed.connect() as legacy:
        watcher.reply("AddMatch", "s", f"member='NameOwnerChanged',arg0='{name}'")
        native.acquire(name, NameFlag.ALLOW_REPLACEMENT)
        legacy.reply("RequestName", "su", name, REPLACE_EXISTING | ALLOW_REPLACEMENT)
        native.acquire(name, NameFlag.REPLACE_EXISTING)
        native.release(name)
        legacy.reply("RequestName", "su", name, 0)
        legacy.reply("ReleaseName", "s", name)
        ours, theirs = native.unique_name, legacy.unique_name
        changes = owner_changes(watcher, name)
    # The client that was replaced had allowed to wait in the queue, so it got the name back.
    assert changes == [
        ("NameOwnerChanged", "", ours),
        ("NameOwnerChanged", ours, theirs),
        ("NameOwnerChanged", theirs, ours),
        ("NameOwnerChanged", ours, theirs),
        ("NameOwnerChanged", theirs, ""),
    ]


def test_a_native_that_comes_and_goes_is_told_to_clients(mixed: MixedBus, legacy: RawClient) -> None:
    legacy.reply("AddMatch", "s", "member='NameOwnerChanged'")
    with mixed.join() as native:
        name = native.unique_name
    legacy.wait_for_name_lost(name)
    with mixed.connect() as watcher, mixed.join() as native:
        watcher.reply("AddMatch", "s", "member='NameOwnerChanged'")
        native.acquire("com.example.Gone")
        native.close()
        changes: list[list[str]] = []
        while changes[-1:] != [[native.unique_name, native.unique_name, ""]]:
            message = watcher.receive()
            if message.member == "NameOwnerChanged":
                changes.append(message.body)
    gone = native.unique_name
    assert changes == [
        ["com.example.Gone", "", gone],
        ["com.example.Gone", gone, ""],
        [gone, gone, ""],
    ]


def test_a_name_that_is_taken_is_taken_for_the_other_kind(native: NativePeer, legacy: RawClient) -> None:
    assert legacy.reply("RequestName", "su", "com.example.Taken", 0).body == [PRIMARY_OWNER]
    assert native.acquire("com.example.Taken", NameFlag.QUEUE) & NameFlag.IN_QUEUE
    assert legacy.reply("ReleaseName", "s", "com.example.Taken").body == [1]
    assert legacy.reply("GetNameOwner", "s", "com.example.Taken").body == [native.unique_name]
    assert legacy.reply("RequestName", "su", "com.example.Taken", 0).body == [IN_QUEUE]
    native.release("com.example.Taken")
    assert legacy.reply("GetNameOwner", "s", "com.example.Taken").body == [legacy.unique_name]


def test_a_change_is_told_before_what_is_sent_after_it(native: NativePeer, legacy: RawClient) -> None:
    legacy.reply("AddMatch", "s", "type='signal'")
    native.add_match("type='signal'")
    native.acquire("com.example.Ordered")
    native.emit("S")
    native.release("com.example.Ordered")
    ours = native.unique_name
    assert heard_by_legacy(legacy) == [
        f"NameOwnerChanged com.example.Ordered  {ours}",
        "S",
        f"NameOwnerChanged com.example.Ordered {ours} ",
    ]
    heard_by_native(native)
    legacy.reply("RequestName", "su", "com.example.Ordered", 0)
    legacy.send(signal("S"))
    legacy.reply("ReleaseName", "s", "com.example.Ordered")
    assert heard_by_native(native) == ["NameChanged", "S", "NameChanged"]


# Monitors


def test_a_legacy_monitor_sees_messages_of_natives(
    mixed: MixedBus, native: NativePeer, legacy: RawClient
) -> None:
    with mixed.connect() as monitor, mixed.join() as other:
        monitor.reply("BecomeMonitor", "asu", [], 0, interface=MONITORING)
        native.post(legacy.unique_name, "ToLegacy", "s", "x")
        call = legacy.receive()
        legacy.send(
            Message(
                METHOD_RETURN,
                NO_REPLY_EXPECTED,
                fields={
                    "reply_serial": call.serial,
                    "destination": native.unique_name,
                    "signature": "s",
                },
                body=["back"],
            )
        )
        native.receive_message()
        native.emit("ToAll", "u", 7)
        native.post(other.unique_name, "ToNative", "s", "y")
        native.emit("Last", destination=legacy.unique_name)
        seen: list[tuple[str, str, list[object]]] = []
        while not seen or seen[-1][0] != "Last":
            message = monitor.receive()
            if {message.fields.get("sender"), message.fields.get("destination")} & {
                native.unique_name,
                other.unique_name,
            }:
                seen.append((message.member or "reply", message.fields["sender"], message.body))
    ours, theirs = native.unique_name, legacy.unique_name
    assert [entry for entry in seen if entry[0] not in ("NameAcquired", "NameLost")] == [
        ("ToLegacy", ours, ["x"]),
        ("reply", theirs, ["back"]),
        ("ToAll", ours, [7]),
        ("ToNative", ours, ["y"]),
        ("Last", ours, []),
    ]


def test_a_native_monitor_sees_messages_of_clients(
    mixed: MixedBus, native: NativePeer, legacy: RawClient
) -> None:
    with mixed.join(flags=HelloFlag.ACCEPT_FD | HelloFlag.MONITOR) as monitor, mixed.connect() as other:
        other.sync()
        monitor.drain()
        legacy.send_call("ToNative", "s", "x", destination=native.unique_name)
        legacy.sync()
        call = native.receive_message()
        native.answer(call, "s", "back")
        legacy.receive()
        if mixed.kind == EMBEDDED:  # else it does not leave the proxy
            legacy.send_call("ToLegacy", "s", "y", destination=other.unique_name)
        legacy.send(signal("ToAll", "u", 7))
        legacy.send(signal("Last", destination=native.unique_name))
        legacy.sync()
        ours = {legacy.unique_name, native.unique_name}
        seen = [
            (mail.member or "reply", mail.sender, mail.values)
            for mail in monitor.drain()
            if isinstance(mail, NativeMessage)
            and mail.sender in ours
            and mail.destination != "org.freedesktop.DBus"
        ]
    expected = [
        ("ToNative", legacy.unique_name, ("x",)),
        ("reply", native.unique_name, ("back",)),
        ("ToLegacy", legacy.unique_name, ("y",)),
        ("ToAll", legacy.unique_name, (7,)),
        ("Last", legacy.unique_name, ()),
    ]
    if mixed.kind != EMBEDDED:
        del expected[2]
        seen = [
            entry for entry in seen if entry[0] != "ToAll"
        ]  # broadcasts stay there if nobody waits for them
        del expected[2]
    assert seen == expected


def test_a_native_monitor_sees_names_change(mixed: MixedBus, legacy: RawClient) -> None:
    with mixed.join(flags=HelloFlag.ACCEPT_FD | HelloFlag.MONITOR) as monitor:
        monitor.drain()
        legacy.reply("RequestName", "su", "com.example.Watched", 0)
        legacy.reply("ReleaseName", "s", "com.example.Watched")
        assert native_changes(monitor, "com.example.Watched") == [
            (ItemType.NAME_ADD, 0, id_of(legacy)),
            (ItemType.NAME_REMOVE, id_of(legacy), 0),
        ]


def test_monitors_do_not_change_what_others_see(
    mixed: MixedBus, native: NativePeer, legacy: RawClient
) -> None:
    with (
        mixed.join(flags=HelloFlag.ACCEPT_FD | HelloFlag.MONITOR) as native_monitor,
        mixed.connect() as monitor,
    ):
        monitor.reply("BecomeMonitor", "asu", [], 0, interface=MONITORING)
        for _ in range(20):
            native.post(legacy.unique_name, "M", "s", "x")
            call = legacy.receive()
            fields = {"reply_serial": call.serial, "destination": native.unique_name}
            legacy.send(Message(METHOD_RETURN, NO_REPLY_EXPECTED, fields=fields))
            assert native.receive_message().reply_cookie
        native_monitor.drain()
    assert (heard_by_legacy(legacy), heard_by_native(native)) == ([], [])
