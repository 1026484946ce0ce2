"""Whatever the bytes of a command are, it succeeds or ends with an errno, and nothing is left of it."""

from __future__ import annotations

from errno import errorcode
from random import Random

import pytest
from support.kdbus import Client, Hello, ItemType, Refused, World, layout
from support.kdbus.layout import ATTACH_ALL, PAGE, WORLD, Layout

INTERESTING = (0, 1, 7, 8, 15, 16, 17, 24, 63, 64, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 8, 2**64 - 1)
COMMANDS: list[tuple[Layout, list[bytes]]] = [
    (layout.UPDATE, [layout.number(ItemType.ATTACH_FLAGS_SEND, ATTACH_ALL)]),
    (layout.UPDATE, [layout.name("a.b"), layout.access(WORLD, layout.OWN)]),
    (layout.FREE, []),
    (layout.CONN_INFO, [layout.name("a.b")]),
    (layout.BUS_CREATOR_INFO, []),
    (layout.LIST, []),
    (layout.RECV, []),
    (layout.MSG_CANCEL, []),
    (layout.NAME_ACQUIRE, [layout.name("a.b")]),
    (layout.NAME_RELEASE, [layout.name("a.b")]),
    (
        layout.MATCH_ADD,
        [
            layout.number(ItemType.ID, 3),
            layout.bloom_mask(bytes(64)),
            layout.name_rule(ItemType.NAME_ADD, "a.b"),
            layout.id_rule(ItemType.ID_ADD),
        ],
    ),
    (layout.MATCH_REMOVE, []),
]
SETUP: list[tuple[Layout, list[bytes]]] = [
    (
        layout.HELLO,
        [
            layout.string(ItemType.CONN_DESCRIPTION, "x"),
            layout.creds(*range(8)),
            layout.pids(1, 2, 3),
            layout.string(ItemType.SECLABEL, "label"),
        ],
    ),
    (layout.HELLO, [layout.name("a.b"), layout.access(WORLD, layout.TALK)]),
    (layout.ENDPOINT_MAKE, [layout.string(ItemType.MAKE_NAME, "1000-foo")]),
]
ROUNDS = 60


def spoil(random: Random, raw: bytes) -> bytes:
    """The same bytes with up to three changes."""
    spoiled = bytearray(raw)
    for _ in range(random.randrange(4)):
        match random.randrange(4):
            case 0:
                spoiled[random.randrange(len(spoiled))] = random.randrange(256)
            case 1:
                at = random.randrange(len(spoiled) // 8) * 8
                spoiled[at : at + 8] = random.choice(INTERESTING).to_bytes(8, "little")
            case 2:
                del spoiled[random.randrange(8, max(9, len(spoiled))) :]
            case _:
                at = random.randrange(len(spoiled) // 8) * 8
                spoiled[at:at] = spoiled[random.randrange(len(spoiled) // 8) * 8 :]
    return bytes(spoiled or b"\0")


def issue(client: Client, request: int, raw: bytes) -> None:
    address = client.task.memory.allocate(raw)
    try:
        client.ioctl(request, address)
    except Refused as error:
        if error.errno not in errorcode:
            raise
    finally:
        client.task.memory.release(address)
    # What it may have got is not looked at, so it is found out what has to be freed.
    if client.handle.connection is not None:
        inbox = client.connection.inbox
        assert inbox is not None
        client.pool, client.pool_size = inbox.pool, inbox.pool.size
        client.unfreed = {piece.offset for piece in inbox.pool.slices() if piece.is_published}


@pytest.mark.parametrize("seed", range(20))
def test_a_connection_takes_any_bytes(world: World, seed: int) -> None:
    random = Random(seed)
    clients = [world.connect(), world.connect(), world.connect_holder("a.b"), world.connect_monitor()]
    for _ in range(ROUNDS):
        command, items = random.choice(COMMANDS)
        values = dict.fromkeys(command.fields, 0)
        raw = command.build(random.choice((0, 1, 2)), command.size + len(b"".join(items)), values)
        issue(random.choice(clients), command.request, spoil(random, raw + b"".join(items)))


@pytest.mark.parametrize("seed", range(20))
def test_a_message_may_be_any_bytes(world: World, seed: int) -> None:
    random = Random(seed)
    sender, receiver = world.connect(world.task()), world.connect()
    sender.name_acquire("a.b")
    for round_ in range(ROUNDS):
        memfd, null = sender.task.open_memfd(64), sender.task.open_null()
        items = [
            layout.string(ItemType.DST_NAME, "a.b"),
            sender.vec(b"payload"),
            layout.vec_at(0, 77),
            layout.memfd(memfd, 64),
            layout.fds([null, memfd]),
            layout.bloom_filter(),
        ]
        random.shuffle(items)
        message = sender.build_message(
            *items[: random.randrange(7)],
            dst=random.choice((0, sender, receiver, layout.DST_BROADCAST)),
            flags=random.randrange(8),
            cookie=round_,
            deadline_ns=random.choice((0, 1, world.monotonic_ns + 10)),
        )
        spoiled = spoil(random, message)
        address = sender.task.memory.allocate(spoiled)
        raw = layout.SEND.build(random.randrange(2), layout.SEND.size, {"msg_address": address})
        regions = [address, sender.task.memory.allocate(raw)]
        try:
            sender.ioctl(layout.SEND.request, regions[1])
        except Refused as error:
            if error.errno not in errorcode:
                raise
        if random.random() < 0.3:
            world.advance(10)
    for client in (sender, receiver):
        client.drain()


@pytest.mark.parametrize("seed", range(20))
def test_a_fresh_handle_takes_any_bytes(world: World, seed: int) -> None:
    random = Random(seed)
    for _ in range(ROUNDS):
        client = world.open()
        command, items = random.choice(SETUP)
        values = {"pool_size": PAGE} if command is layout.HELLO else {}
        flags = random.choice((0, Hello.ACTIVATOR, Hello.POLICY_HOLDER, Hello.MONITOR))
        raw = command.build(flags, command.size + len(b"".join(items)), values)
        issue(client, command.request, spoil(random, raw + b"".join(items)))
        if random.random() < 0.5:
            client.close()
