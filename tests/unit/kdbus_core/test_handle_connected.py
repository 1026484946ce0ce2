"""Commands of a connection but SEND: who may use them, what they return and where."""

from __future__ import annotations

from errno import (
    E2BIG,
    EADDRINUSE,
    EAGAIN,
    EBADSLT,
    EBUSY,
    EDOM,
    EEXIST,
    EFAULT,
    EINVAL,
    EMFILE,
    ENOENT,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    ESHUTDOWN,
    ESRCH,
    EXFULL,
)

import pytest
from handle_world import (
    ACTIVATOR,
    BLOOM_SIZE,
    EVERYTHING,
    NAME,
    POLICY_HOLDER,
    POOL_SIZE,
    STRANGER,
    Client,
    HandleWorld,
    OpenFile,
    access_item,
    bloom_filter,
    build_command,
    build_message,
    fds_item,
    memfd_item,
    name_item,
    refused,
    sealed_memory,
    vec_item,
)

from kdbus_core.abi import (
    DST_BROADCAST,
    INFO,
    MATCH_ANY,
    MAX_MATCHES,
    MAX_NAMES,
    NEGOTIATE,
    UNSET_ID,
    AccessLevel,
    AccessType,
    AttachFlag,
    Command,
    HelloFlag,
    ItemType,
    ListFlag,
    MatchFlag,
    MessageFlag,
    NameFlag,
    ReceiveFlag,
    ReceiveReturnFlag,
)
from kdbus_core.items import FD, ID_NOTICE, NAME_NOTICE, Item, build_item, build_numbers_item, iterate_items

PEEK, DROP, USE_PRIORITY = ReceiveFlag
DROPPED_MSGS = ReceiveReturnFlag.DROPPED_MSGS
INCOMPLETE_FDS = ReceiveReturnFlag.INCOMPLETE_FDS
KINDS = ["ordinary", "monitor", "activator", "policy holder"]
ORDINARY_ONLY = [
    Command.BYEBYE,
    Command.SEND,
    Command.MSG_CANCEL,
    Command.NAME_ACQUIRE,
    Command.NAME_RELEASE,
    Command.MATCH_ADD,
    Command.MATCH_REMOVE,
]
BROADCAST = build_message(dst_id=DST_BROADCAST, flags=MessageFlag.SIGNAL, items=[bloom_filter()])


def acquire(client: Client, name: str = NAME, flags: int = 0) -> int:
    return client.run(Command.NAME_ACQUIRE, flags=flags, items=[name_item(name)]).return_flags


def release(client: Client, name: str = NAME) -> None:
    client.run(Command.NAME_RELEASE, items=[name_item(name)])


def update(client: Client, **masks: int) -> None:
    types = {"send": ItemType.ATTACH_FLAGS_SEND, "recv": ItemType.ATTACH_FLAGS_RECV}
    client.run(Command.UPDATE, items=[build_numbers_item(types[side], mask) for side, mask in masks.items()])


def unwritable(client: Client, address: int, size: int) -> None:
    """From now on nothing can be written there."""
    write = client.thread.write

    def guarded(at: int, data: bytes) -> None:
        write(0 if at < address + size and address < at + len(data) else at, data)

    client.thread.write = guarded  # type: ignore[method-assign]


# Which kind of connection may use what


@pytest.mark.parametrize("command", ORDINARY_ONLY)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_special_connections_are_refused_before_a_byte_is_read(kind: str, command: Command) -> None:
    client = HandleWorld().connect_kind(kind)
    with refused(EOPNOTSUPP):
        client.handle.ioctl(client.thread, command, 0)


def test_only_a_policy_holder_does_not_receive() -> None:
    for kind in KINDS:
        client = HandleWorld().connect_kind(kind)
        with refused(EOPNOTSUPP if kind == "policy holder" else EAGAIN):
            client.run(Command.RECV)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_asks_and_frees(kind: str) -> None:
    client = HandleWorld().connect_kind(kind)
    client.run(Command.LIST, flags=ListFlag.UNIQUE)
    client.run(Command.CONN_INFO, client.id)
    client.run(Command.BUS_CREATOR_INFO)
    before = client.busy
    assert before
    client.free(0)
    assert client.busy < before


@pytest.mark.parametrize("command", [command for command in Command if command >= Command.UPDATE & 0xFF])
@pytest.mark.parametrize("kind", ["ordinary"])
def test_negotiation_does_nothing(kind: str, command: Command) -> None:
    if command in (
        Command.BUS_MAKE, Command.DOMAIN_MAKE, Command.ENDPOINT_MAKE, Command.ENDPOINT_UPDATE, Command.HELLO
    ):  # fmt: skip
        pytest.skip("not a command of a connection")
    world = HandleWorld()
    client = world.connect_kind(kind)
    client.send(build_message(dst_id=client.id, cookie=3))
    before = client.busy
    client.run(command, flags=NEGOTIATE)
    assert client.handle.connection is not None
    assert client.handle.connection.active
    assert client.busy == before
    assert client.receive().cookie == 3


# BYEBYE


def test_byebye_ends_a_connection_with_an_empty_queue() -> None:
    world = HandleWorld()
    client = world.connect()
    client.send(build_message(dst_id=client.id))
    with refused(EBUSY):
        client.run(Command.BYEBYE)
    client.receive()
    client.run(Command.BYEBYE)
    with refused(ESHUTDOWN):
        client.run(Command.BYEBYE)


def test_a_bad_byebye_ends_nothing() -> None:
    client = HandleWorld().connect()
    with refused(EINVAL):
        client.run(Command.BYEBYE, flags=1)
    client.run(Command.LIST)


# FREE


@pytest.mark.parametrize("offset", [0, 8, POOL_SIZE + 1, POOL_SIZE - 8, (1 << 64) - 1])
def test_only_a_published_slice_is_freed(offset: int) -> None:
    with refused(ENXIO):
        HandleWorld().connect().free(offset)


def test_the_offset_of_empty_answers_can_be_freed_at_any_time() -> None:
    client = HandleWorld().connect()
    for _ in range(2):
        client.free(POOL_SIZE)


def test_a_slice_is_freed_once() -> None:
    client = HandleWorld().connect()
    offset = client.run(Command.LIST, flags=ListFlag.UNIQUE).fields[0]
    client.free(offset)
    with refused(ENXIO):
        client.free(offset)


# CONN_INFO, BUS_CREATOR_INFO, LIST


def record(client: Client, command: Command, *fields: int, items: list[bytes]) -> tuple[int, int, list[Item]]:
    _, _, offset, size = client.run(command, *fields, items=items).fields
    data = client.read_pool(offset, size)
    client.free(offset)
    length, id, flags = INFO.unpack_from(data)
    assert length == size
    return id, flags, list(iterate_items(data, INFO.size))


def test_a_connection_is_found_by_id_and_by_name() -> None:
    world = HandleWorld()
    client, other = world.connect(), world.connect(flags=HelloFlag.ACCEPT_FD)
    acquire(other)
    names = AttachFlag.NAMES
    by_id = record(client, Command.CONN_INFO, other.id, names, items=[])
    by_name = record(client, Command.CONN_INFO, 0, names, items=[name_item(NAME)])
    by_both = record(client, Command.CONN_INFO, other.id, names, items=[name_item(NAME)])
    assert by_id == by_name == by_both
    id, flags, (name,) = by_id
    assert (id, flags, name.type) == (other.id, HelloFlag.ACCEPT_FD, ItemType.OWNED_NAME)
    assert client.busy == 0


def test_all_metadata_may_be_asked_for() -> None:
    client = HandleWorld().connect()
    _, _, items = record(client, Command.CONN_INFO, client.id, EVERYTHING, items=[])
    assert [item.type for item in items] == [ItemType.CREDS, ItemType.PIDS]


@pytest.mark.parametrize(
    ("id", "mask", "items", "errno"),
    [
        pytest.param(0, 0, [], EINVAL, id="neither id nor name"),
        pytest.param(0, 0x4000, [], EINVAL, id="unknown metadata"),
        pytest.param(0, 0x4000, [name_item("a.b")], EINVAL, id="unknown metadata before an unknown name"),
        pytest.param(99, 0, [], ENXIO, id="an unknown id"),
        pytest.param((1 << 64) - 1, 0, [], ENXIO, id="the largest id"),
        pytest.param(0, 0, [name_item("a.b")], ESRCH, id="an unknown name"),
        pytest.param(0, 0, [name_item("!")], ESRCH, id="what is no name"),
        pytest.param(0, 0, [name_item("com.ex\xe4mple")], ESRCH, id="what is not ASCII"),
        pytest.param(0, 0, [name_item("")], ESRCH, id="an empty name"),
        pytest.param(99, 0, [name_item(NAME)], ESRCH, id="a name of somebody else"),
        pytest.param(0, 0, [build_item(ItemType.NAME, b"com.example")], EINVAL, id="a string without end"),
        pytest.param(0, 0, [name_item("a.b")] * 2, EINVAL, id="two names"),
    ],
)
def test_what_conn_info_refuses(id: int, mask: int, items: list[bytes], errno: int) -> None:
    client = HandleWorld().connect()
    acquire(client)
    with refused(errno):
        client.run(Command.CONN_INFO, id, mask, items=items)
    assert client.busy == 0


def test_the_creator_of_a_bus_is_told_as_far_as_it_said() -> None:
    world = HandleWorld(bus_items=[build_numbers_item(ItemType.ATTACH_FLAGS_SEND, AttachFlag.PIDS)])
    client = world.connect(STRANGER)
    id, flags, items = record(client, Command.BUS_CREATOR_INFO, 77, EVERYTHING, items=[])
    assert (id, flags) == (1, world.bus.flags)
    assert [item.type for item in items] == [ItemType.MAKE_NAME, ItemType.PIDS]
    assert items[0].string == world.bus.name
    with refused(EINVAL):
        client.run(Command.BUS_CREATOR_INFO, 0, 0x4000)
    with refused(EINVAL):
        client.run(Command.BUS_CREATOR_INFO, items=[name_item(NAME)])


def test_a_list_lies_in_the_pool_and_an_empty_one_nowhere() -> None:
    world = HandleWorld()
    client = world.connect()
    assert client.run(Command.LIST, EVERYTHING, EVERYTHING).fields == (POOL_SIZE, 0)
    world.connect()
    offset, size = client.run(Command.LIST, flags=ListFlag.UNIQUE).fields
    assert (offset, size) == (0, 2 * INFO.size)
    assert INFO.unpack_from(client.read_pool(offset, size)) == (INFO.size, client.id, HelloFlag.ACCEPT_FD)
    with refused(EINVAL):
        client.run(Command.LIST, flags=16)


ASKING = {
    "list": (build_command(Command.LIST, flags=ListFlag.UNIQUE), Command.LIST, 24),
    "creator": (build_command(Command.BUS_CREATOR_INFO), Command.BUS_CREATOR_INFO, 40),
    "info": (build_command(Command.CONN_INFO, 2), Command.CONN_INFO, 40),
}


@pytest.mark.parametrize("question", ASKING)
def test_an_answer_that_has_no_room_is_refused(question: str) -> None:
    data, command, _ = ASKING[question]
    client = HandleWorld().connect(pool_size=4096)
    with refused(EXFULL):
        for _ in range(4096 // 24 + 1):
            client.ioctl(command, data)


@pytest.mark.parametrize("question", ASKING)
def test_an_answer_that_cannot_be_told_takes_no_room(question: str) -> None:
    data, command, result_offset = ASKING[question]
    client = HandleWorld().connect()
    address = client.thread.put(data)
    unwritable(client, address + result_offset, 8)
    with refused(EFAULT):
        client.handle.ioctl(client.thread, command, address)
    assert client.busy == 0


# UPDATE


SEND_MASK = build_numbers_item(ItemType.ATTACH_FLAGS_SEND, 1)
RECV_MASK = build_numbers_item(ItemType.ATTACH_FLAGS_RECV, 1)
BAD_MASK = build_numbers_item(ItemType.ATTACH_FLAGS_SEND, 0x4000)
ACCESS = access_item(AccessType.WORLD, AccessLevel.OWN)
BAD_ACCESS = access_item(AccessType.USER, AccessLevel.OWN, UNSET_ID)


@pytest.mark.parametrize(
    ("kind", "items", "errno"),
    [
        ("ordinary", [], 0),
        ("ordinary", [SEND_MASK, RECV_MASK], 0),
        ("ordinary", [name_item(NAME)], EOPNOTSUPP),
        ("ordinary", [ACCESS], EOPNOTSUPP),
        ("ordinary", [name_item(NAME), name_item("a.b"), BAD_ACCESS], EOPNOTSUPP),
        ("ordinary", [BAD_MASK, name_item(NAME)], EINVAL),
        ("ordinary", [BAD_MASK], EINVAL),
        ("ordinary", [build_numbers_item(ItemType.ATTACH_FLAGS_RECV, 0x4000)], EINVAL),
        ("monitor", [SEND_MASK, RECV_MASK], 0),
        ("monitor", [name_item(NAME)], EOPNOTSUPP),
        ("activator", [RECV_MASK], 0),
        ("activator", [SEND_MASK], EOPNOTSUPP),
        ("activator", [BAD_MASK], EOPNOTSUPP),
        ("activator", [name_item(NAME), ACCESS], EOPNOTSUPP),
        ("policy holder", [], 0),
        ("policy holder", [SEND_MASK], EOPNOTSUPP),
        ("policy holder", [RECV_MASK], EOPNOTSUPP),
        ("policy holder", [RECV_MASK, ACCESS], EOPNOTSUPP),
        ("policy holder", [name_item("a.b")], 0),
        ("policy holder", [name_item("a.*"), ACCESS, ACCESS], 0),
        ("policy holder", [name_item("a.b"), name_item("c.d")], E2BIG),
        ("policy holder", [ACCESS, name_item("a.b")], EINVAL),
        ("policy holder", [ACCESS], EINVAL),
        ("policy holder", [name_item("a")], EINVAL),
        ("policy holder", [name_item("a.b"), BAD_ACCESS], EINVAL),
        ("policy holder", [name_item("taken.name")], EEXIST),
    ],
)
def test_what_may_be_updated(kind: str, items: list[bytes], errno: int) -> None:
    world = HandleWorld()
    world.connect(flags=POLICY_HOLDER, items=[name_item("taken.name")])
    client = world.connect_kind(kind)
    if errno:
        with refused(errno):
            client.run(Command.UPDATE, items=items)
    else:
        client.run(Command.UPDATE, items=items)


def test_masks_are_updated_each_by_itself() -> None:
    client = HandleWorld().connect(attach_send=0, attach_recv=0)
    connection = client.handle.connection
    assert connection is not None
    update(client, send=3)
    update(client, recv=5)
    assert (connection.attach_send, connection.attach_recv) == (3, 5)
    update(client, send=EVERYTHING, recv=EVERYTHING)
    assert (connection.attach_send, connection.attach_recv) == (0x3FFF, 0x3FFF)


def test_a_policy_is_replaced_and_its_name_may_change() -> None:
    world = HandleWorld()
    holder = world.connect(flags=POLICY_HOLDER, items=[name_item(NAME), ACCESS])
    holder.run(Command.UPDATE, items=[name_item("com.example.second"), ACCESS])
    stranger = world.connect(STRANGER)
    acquire(stranger, "com.example.second")
    with refused(EPERM):
        acquire(stranger, NAME)


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
    try:
        client.receive()
    except Exception:
        return True
    return False


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


# RECV


def test_a_message_is_received_once_and_lies_in_the_pool() -> None:
    world = HandleWorld()
    sender, receiver = world.connect(), world.connect()
    sender.send(build_message(dst_id=receiver.id, cookie=7))
    answer = receiver.run(Command.RECV, 0, EVERYTHING, EVERYTHING, EVERYTHING, EVERYTHING)
    assert answer.fields == (0, 0, 0, 64, 0)
    assert answer.return_flags == 0
    assert receiver.read_message(0, 64).header[3:7] == (receiver.id, sender.id, 0x4442757344427573, 7)
    with refused(EAGAIN):
        receiver.run(Command.RECV)


def test_a_message_that_is_peeked_at_stays() -> None:
    client = HandleWorld().connect()
    client.send(build_message(dst_id=client.id))
    peeked = [client.receive(PEEK).offset for _ in range(2)]
    assert [client.receive().offset] * 2 == peeked
    client.free(peeked[0])
    assert client.busy == 0


@pytest.mark.parametrize("flags", [DROP, DROP | PEEK])
def test_a_dropped_message_is_gone_and_lies_nowhere(flags: int) -> None:
    client = HandleWorld().connect()
    client.send(build_message(dst_id=client.id))
    assert client.run(Command.RECV, flags=flags).fields == (0, 0, POOL_SIZE, 0, 0)
    assert client.busy == 0
    with refused(EAGAIN):
        client.run(Command.RECV)


def test_the_most_urgent_message_is_received_if_it_is_urgent_enough() -> None:
    client = HandleWorld().connect()
    for cookie, priority in enumerate([25, -600, 10]):
        client.send(build_message(dst_id=client.id, cookie=cookie, priority=priority))
    assert client.receive(USE_PRIORITY, -200).cookie == 1
    with refused(EAGAIN):
        client.receive(USE_PRIORITY, 9)
    assert client.receive(USE_PRIORITY, 10).cookie == 2
    assert client.receive(0, -1000).cookie == 0


def test_what_is_dropped_is_not_chosen_by_priority() -> None:
    client = HandleWorld().connect()
    client.send(build_message(dst_id=client.id))
    for flags in (DROP | USE_PRIORITY, DROP | USE_PRIORITY | PEEK, 8):
        with refused(EINVAL):
            client.run(Command.RECV, flags=flags)
    client.receive()


def lose_one(world: HandleWorld) -> Client:
    """A connection that has lost a broadcast."""
    sender, receiver = world.connect(), world.connect(pool_size=4096)
    match(receiver)
    vec = vec_item(4096, sender.thread.put(bytes(4096)))
    sender.send(build_message(dst_id=DST_BROADCAST, flags=MessageFlag.SIGNAL, items=[vec, bloom_filter()]))
    return receiver


def test_what_was_lost_is_told_once_with_a_message() -> None:
    receiver = lose_one(HandleWorld())
    receiver.send(build_message(dst_id=receiver.id))
    answer = receiver.run(Command.RECV)
    assert (answer.return_flags, answer.fields[1]) == (DROPPED_MSGS, 1)
    receiver.send(build_message(dst_id=receiver.id))
    answer = receiver.run(Command.RECV)
    assert (answer.return_flags, answer.fields[1]) == (0, 0)


def test_what_was_lost_is_told_when_there_is_no_message() -> None:
    receiver = lose_one(HandleWorld())
    with refused(EAGAIN):
        receiver.run(Command.RECV)
    answer = receiver.answer(Command.RECV)
    assert (answer.return_flags, answer.fields[1]) == (DROPPED_MSGS, 1)
    with refused(EAGAIN):
        receiver.run(Command.RECV)
    assert receiver.answer(Command.RECV).return_flags == 0


def test_what_was_lost_is_told_when_a_message_is_dropped_but_not_by_a_refused_command() -> None:
    receiver = lose_one(HandleWorld())
    receiver.send(build_message(dst_id=receiver.id))
    with refused(EINVAL):
        receiver.run(Command.RECV, flags=DROP | USE_PRIORITY)
    answer = receiver.run(Command.RECV, flags=DROP)
    assert (answer.return_flags, answer.fields[1]) == (DROPPED_MSGS, 1)


@pytest.mark.parametrize("position", range(32, 64, 8))
def test_a_message_is_not_taken_where_its_place_cannot_be_told(position: int) -> None:
    client = HandleWorld().connect()
    client.send(build_message(dst_id=client.id, cookie=5))
    address = client.thread.put(build_command(Command.RECV))
    unwritable(client, address + position, 8)
    with refused(EFAULT):
        client.handle.ioctl(client.thread, Command.RECV, address)
    assert client.receive().cookie == 5


def fd_of(received_item: Item, offset: int = 0) -> int:
    return int(FD.unpack_from(received_item.payload, offset)[0])


def test_files_are_installed_when_a_message_is_received() -> None:
    world = HandleWorld()
    sender, receiver = world.connect(), world.connect()
    pipe, memory = OpenFile(), sealed_memory()
    items = [fds_item(sender.thread.open(pipe)), memfd_item(sender.thread.open(memory))]
    sender.send(build_message(dst_id=receiver.id, items=items))
    peeked = receiver.receive(PEEK)
    assert fd_of(peeked.item(ItemType.FDS)) == fd_of(peeked.item(ItemType.PAYLOAD_MEMFD), 16) == -1
    received = receiver.receive()
    files = [
        receiver.thread.fds[fd_of(received.item(ItemType.FDS))].file,
        receiver.thread.fds[fd_of(received.item(ItemType.PAYLOAD_MEMFD), 16)].file,
    ]
    assert files == [pipe, memory]
    assert (pipe.references, memory.references) == (2, 2)


def test_files_that_do_not_fit_into_the_table_are_lost_and_that_is_said() -> None:
    world = HandleWorld()
    sender, receiver = world.connect(), world.connect()
    pipe = OpenFile()
    sender.send(build_message(dst_id=receiver.id, items=[fds_item(sender.thread.open(pipe))]))
    receiver.thread.max_fds = 0
    answer = receiver.run(Command.RECV)
    assert answer.fields[4] == INCOMPLETE_FDS
    assert pipe.references == 1


@pytest.mark.parametrize("end", ["drop", "close"])
def test_files_nobody_receives_are_closed(end: str) -> None:
    world = HandleWorld()
    sender, receiver = world.connect(), world.connect()
    pipe = OpenFile()
    sender.send(build_message(dst_id=receiver.id, items=[fds_item(sender.thread.open(pipe))]))
    if end == "drop":
        receiver.run(Command.RECV, flags=DROP)
    else:
        receiver.handle.close()
    sender.thread.assert_no_reference_left(pipe)


# MSG_CANCEL


def test_without_a_call_there_is_none_to_cancel() -> None:
    client = HandleWorld().connect()
    for cookie in (0, 1, (1 << 64) - 1):
        with refused(ENOENT):
            client.run(Command.MSG_CANCEL, cookie)
    with refused(EINVAL):
        client.run(Command.MSG_CANCEL, flags=1)


def test_an_activator_consumes_what_it_receives() -> None:
    world = HandleWorld()
    activator = world.connect(flags=ACTIVATOR, items=[name_item(NAME)])
    sender = world.connect()
    sender.send(build_message(cookie=4, items=[name_item(NAME, ItemType.DST_NAME)]))
    assert activator.receive().cookie == 4
    with refused(EAGAIN):
        activator.receive()


def test_a_monitor_sees_broadcasts_nobody_gets() -> None:
    world = HandleWorld()
    monitor = world.connect_kind("monitor")
    world.connect().send(BROADCAST)
    assert monitor.receive().header[3] == DST_BROADCAST
