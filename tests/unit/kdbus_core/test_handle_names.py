"""NAME_ACQUIRE, NAME_RELEASE, MATCH_ADD, MATCH_REMOVE: names and what broadcasts come through."""

from __future__ import annotations

from errno import (
    E2BIG,
    EADDRINUSE,
    EBADSLT,
    EDOM,
    EEXIST,
    EINVAL,
    EMFILE,
    EPERM,
    ESRCH,
)

import pytest
from handle_world import (
    BLOOM_SIZE,
    NAME,
    STRANGER,
    Client,
    HandleWorld,
    bloom_filter,
    build_message,
    name_item,
    refused,
)

from kdbus_core.abi import (
    DST_BROADCAST,
    MATCH_ANY,
    MAX_MATCHES,
    MAX_NAMES,
    Command,
    ItemType,
    MatchFlag,
    MessageFlag,
    NameFlag,
)
from kdbus_core.handle import PollFlag
from kdbus_core.items import ID_NOTICE, NAME_NOTICE, build_item, build_numbers_item


def acquire(client: Client, name: str = NAME, flags: int = 0) -> int:
    return client.run(Command.NAME_ACQUIRE, flags=flags, items=[name_item(name)]).return_flags


def release(client: Client, name: str = NAME) -> None:
    client.run(Command.NAME_RELEASE, items=[name_item(name)])


# NAME_ACQUIRE, NAME_RELEASE


def test_acquiring_returns_what_happened() -> None:
    world = HandleWorld()
    first, second = world.connect(), world.connect()
    assert acquire(first, flags=NameFlag.ALLOW_REPLACEMENT) & NameFlag.ACQUIRED
    assert not acquire(first) & NameFlag.ACQUIRED
    assert acquire(second, flags=NameFlag.QUEUE) & NameFlag.IN_QUEUE
    with refused(EADDRINUSE):
        release(world.connect())
    release(first)
    release(second)
    with refused(ESRCH):
        release(second)


@pytest.mark.parametrize(
    "name",
    ["", "foo", ".bla.blaz", "foo.bla.bl.*", "a..b", "a.1", "com.ex\xe4mple", "a." + "b" * 254, ":1.2"],
)
def test_a_bad_name_is_not_acquired_and_not_found(name: str) -> None:
    client = HandleWorld().connect()
    with refused(EINVAL):
        acquire(client, name)
    with refused(ESRCH):
        release(client, name)


@pytest.mark.parametrize("flags", [8, 16, 32, 64, 128])
def test_flags_that_are_only_returned_are_not_accepted(flags: int) -> None:
    with refused(EINVAL):
        acquire(HandleWorld().connect(), flags=flags)


def test_a_name_is_needed() -> None:
    client = HandleWorld().connect()
    for command in (Command.NAME_ACQUIRE, Command.NAME_RELEASE):
        with refused(EINVAL):
            client.run(command)


def test_a_name_is_not_acquired_without_the_right_to_and_not_with_too_many() -> None:
    world = HandleWorld()
    with refused(EPERM):
        acquire(world.connect(STRANGER))
    client = world.connect()
    for number in range(MAX_NAMES):
        acquire(client, f"a.b{number}")
    with refused(E2BIG):
        acquire(client, "a.c")
    with refused(EEXIST):
        acquire(world.connect(), "a.b0")


# MATCH_ADD, MATCH_REMOVE


def match(client: Client, *rules: bytes, cookie: int = 1, flags: int = 0) -> None:
    client.run(Command.MATCH_ADD, cookie, flags=flags, items=rules)


def mask(bits: bytes) -> bytes:
    return build_item(ItemType.BLOOM_MASK, bits)


def notice(type: ItemType, old: int = MATCH_ANY, new: int = MATCH_ANY, name: bytes = b"") -> bytes:
    return build_item(type, NAME_NOTICE.pack(old, 0, new, 0) + name)


def broadcast(client: Client, bits: bytes = bytes(BLOOM_SIZE), generation: int = 0) -> None:
    client.send(
        build_message(dst_id=DST_BROADCAST, flags=MessageFlag.SIGNAL, items=[bloom_filter(bits, generation)])
    )


def is_empty(client: Client) -> bool:
    answer = client.handle.poll()
    if answer & PollFlag.IN:
        client.receive()
    return not answer & PollFlag.IN


FULL = b"\xff" * BLOOM_SIZE
ONE = b"\x01" + bytes(BLOOM_SIZE - 1)


@pytest.mark.parametrize(
    ("rules", "bits", "generation", "is_matched"),
    [
        ([], ONE, 0, True),
        ([mask(ONE)], FULL, 0, True),
        ([mask(FULL)], ONE, 0, False),
        ([mask(ONE + FULL)], ONE, 0, True),
        ([mask(ONE + FULL)], ONE, 1, False),
        ([mask(ONE + FULL)], ONE, (1 << 64) - 1, False),
        ([build_numbers_item(ItemType.ID, MATCH_ANY)], ONE, 0, True),
        ([build_numbers_item(ItemType.ID, 99)], ONE, 0, False),
        ([build_numbers_item(ItemType.DST_ID, DST_BROADCAST)], ONE, 0, True),
        ([build_numbers_item(ItemType.DST_ID, 3)], ONE, 0, False),
        ([name_item(NAME)], ONE, 0, True),
        ([name_item("a.b")], ONE, 0, False),
        ([name_item(NAME), mask(ONE)], ONE, 0, True),
        ([name_item(NAME), mask(FULL)], ONE, 0, False),
    ],
)
def test_rules_let_broadcasts_through(
    rules: list[bytes], bits: bytes, generation: int, is_matched: bool
) -> None:
    world = HandleWorld()
    sender, receiver = world.connect(), world.connect()
    acquire(sender)
    match(receiver, *rules)
    broadcast(sender, bits, generation)
    assert is_empty(receiver) is not is_matched


@pytest.mark.parametrize(
    ("rule", "type"),
    [
        (notice(ItemType.NAME_ADD), ItemType.NAME_ADD),
        (notice(ItemType.NAME_ADD, name=NAME.encode() + b"\0"), ItemType.NAME_ADD),
        (notice(ItemType.NAME_ADD, old=0, new=3), ItemType.NAME_ADD),
        (notice(ItemType.NAME_ADD, old=3), None),
        (notice(ItemType.NAME_ADD, name=b"a.b\0"), None),
        (notice(ItemType.NAME_ADD, name=b"\xff\0"), None),
        (notice(ItemType.NAME_REMOVE), ItemType.NAME_REMOVE),
        (notice(ItemType.NAME_CHANGE), None),
        (build_item(ItemType.ID_REMOVE, ID_NOTICE.pack(3, 0)), ItemType.ID_REMOVE),
        (build_item(ItemType.ID_REMOVE, ID_NOTICE.pack(MATCH_ANY, 0)), ItemType.ID_REMOVE),
        (build_item(ItemType.ID_ADD, ID_NOTICE.pack(MATCH_ANY, 0)), None),
    ],
)
def test_rules_let_notifications_through(rule: bytes, type: ItemType | None) -> None:
    world = HandleWorld()
    receiver, other = world.connect(), world.connect()
    match(receiver, rule)
    acquire(other)
    release(other)
    other.handle.close()
    if type is None:
        assert is_empty(receiver)
    else:
        assert receiver.receive().items[0].type == type
        assert is_empty(receiver)


@pytest.mark.parametrize(
    ("rules", "errno"),
    [
        ([mask(b"")], EDOM),
        ([mask(bytes(BLOOM_SIZE - 1))], EDOM),
        ([mask(bytes(BLOOM_SIZE + 8))], EDOM),
        ([name_item("noname")], EINVAL),
        ([name_item("com.ex\xe4mple")], EINVAL),
        ([name_item("a.*")], EINVAL),
        ([mask(b""), name_item("noname")], EDOM),
        ([name_item("noname"), mask(b"")], EINVAL),
        ([build_item(ItemType.NAME_ADD, bytes(24))], EINVAL),
        ([build_item(ItemType.BLOOM_FILTER, bytes(72))], EINVAL),
    ],
)
def test_what_match_add_refuses(rules: list[bytes], errno: int) -> None:
    client = HandleWorld().connect()
    with refused(errno):
        match(client, *rules)
    with refused(EBADSLT):
        client.run(Command.MATCH_REMOVE, 1)


def test_a_negotiate_item_is_no_rule() -> None:
    client = HandleWorld().connect()
    match(client, build_numbers_item(ItemType.NEGOTIATE, ItemType.ID), mask(ONE))
    broadcast(client, ONE)
    assert not is_empty(client)
    client.run(Command.MATCH_REMOVE, 1)


def test_a_cookie_stands_for_all_its_entries_and_replacing_removes_them_first() -> None:
    client = HandleWorld().connect()
    match(client, mask(ONE))
    match(client, mask(FULL))
    match(client, mask(FULL), flags=MatchFlag.REPLACE)
    broadcast(client, ONE)
    assert is_empty(client)
    match(client, mask(ONE), cookie=2, flags=MatchFlag.REPLACE)
    client.run(Command.MATCH_REMOVE, 1)
    with refused(EBADSLT):
        client.run(Command.MATCH_REMOVE, 1)
    with refused(EINVAL):
        match(client, flags=2)


def test_a_connection_has_4096_matches() -> None:
    client = HandleWorld().connect()
    for _ in range(MAX_MATCHES):
        match(client, build_numbers_item(ItemType.ID, 99))
    with refused(EMFILE):
        match(client, cookie=2)
    with refused(EMFILE):
        match(client, cookie=2, flags=MatchFlag.REPLACE)
    match(client, flags=MatchFlag.REPLACE)
