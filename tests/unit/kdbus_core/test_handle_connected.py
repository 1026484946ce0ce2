"""Commands of a connection but SEND: who may use them, what they return and where."""

from __future__ import annotations

from errno import (
    E2BIG,
    EAGAIN,
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
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
    EVERYTHING,
    NAME,
    POLICY_HOLDER,
    POOL_SIZE,
    STRANGER,
    Client,
    HandleWorld,
    access_item,
    build_command,
    build_message,
    name_item,
    refused,
)

from kdbus_core.abi import (
    INFO,
    NEGOTIATE,
    UNSET_ID,
    AccessLevel,
    AccessType,
    AttachFlag,
    Command,
    HelloFlag,
    ItemType,
    ListFlag,
    ReceiveFlag,
    ReceiveReturnFlag,
)
from kdbus_core.commands.connected import HANDLERS
from kdbus_core.items import Item, build_item, build_numbers_item, iterate_items

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


def acquire(client: Client, name: str = NAME, flags: int = 0) -> int:
    return client.run(Command.NAME_ACQUIRE, flags=flags, items=[name_item(name)]).return_flags


def update(client: Client, **masks: int) -> None:
    types = {"send": ItemType.ATTACH_FLAGS_SEND, "recv": ItemType.ATTACH_FLAGS_RECV}
    client.run(Command.UPDATE, items=[build_numbers_item(types[side], mask) for side, mask in masks.items()])


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


@pytest.mark.parametrize("command", sorted({*HANDLERS, Command.SEND}))
def test_negotiation_does_nothing(command: Command) -> None:
    client = HandleWorld().connect()
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
    client.thread.protect(address + result_offset, 8)
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


# MSG_CANCEL


def test_without_a_call_there_is_none_to_cancel() -> None:
    client = HandleWorld().connect()
    for cookie in (0, 1, (1 << 64) - 1):
        with refused(ENOENT):
            client.run(Command.MSG_CANCEL, cookie)
    with refused(EINVAL):
        client.run(Command.MSG_CANCEL, flags=1)
