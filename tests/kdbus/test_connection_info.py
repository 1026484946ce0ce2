"""CONN_INFO: who somebody was when they opened their handle, and which names they have now."""

from __future__ import annotations

from errno import EINVAL, ENXIO, ESRCH, EXFULL

import pytest
from support.kdbus import (
    NOBODY,
    Attach,
    Client,
    Hello,
    ItemType,
    Name,
    Task,
    World,
    layout,
    refused,
    repeat_until,
)
from support.kdbus.decode import Creds as CredsItem
from support.kdbus.decode import Pids as PidsItem
from support.kdbus.layout import ATTACH_ALL

from kdbus_core.metadata import Caps, Creds

VALID = Attach.NAMES | Attach.CREDS | Attach.PIDS | Attach.CONN_DESCRIPTION
CREDS = Creds(1001, 1000, 1002, 1003, 2001, 2000, 2002, 2003)


@pytest.fixture
def creator(world: World) -> Task:
    """A task in which no two ids are the same."""
    return world.task(1000, 2000, creds=CREDS, pid=77, ppid=55, caps=Caps(40, 1, 2, 4, 8))


@pytest.fixture
def conn(world: World, creator: Task) -> Client:
    return world.connect(creator)


# Whom


def test_a_connection_can_ask_about_itself_for_nothing(conn: Client) -> None:
    info = conn.conn_info(conn, mask=0)
    assert (info.id, info.flags, info.kinds) == (conn.id, Hello.ACCEPT_FD, [])


@pytest.mark.parametrize("cut", [1, 3])
def test_a_name_without_its_nul_is_refused(conn: Client, cut: int) -> None:
    raw = b"foo.bar.baz\0"[:-cut]
    with refused(EINVAL):
        conn.command(layout.CONN_INFO, layout.item(ItemType.NAME, raw))


@pytest.mark.parametrize("name", ["non.existent.name", "nodots", "in valid.name", ":1.2", b"\xff.\xff"])
def test_a_name_that_nobody_has_is_not_found_whatever_it_looks_like(conn: Client, name: str | bytes) -> None:
    with refused(ESRCH):
        conn.conn_info(name=name)


def test_an_id_that_nobody_has_is_not_found(world: World, conn: Client) -> None:
    gone = world.connect()
    gone.close()
    for id in (gone.id, conn.id + 1000, 2**64 - 1):
        with refused(ENXIO):
            conn.conn_info(id)


def test_neither_an_id_nor_a_name_is_a_mistake(conn: Client) -> None:
    with refused(EINVAL):
        conn.conn_info()


def test_unknown_metadata_is_found_before_the_connection_is_looked_for(conn: Client) -> None:
    for mask in (ATTACH_ALL + 1, 1 << 63):
        with refused(EINVAL):
            conn.conn_info(99999, mask=mask)
        with refused(EINVAL):
            conn.conn_info(name="non.existent.name", mask=mask)


def test_a_name_and_an_id_have_to_be_of_one_connection(world: World, conn: Client) -> None:
    other = world.connect()
    conn.name_acquire("com.example.a")
    assert other.conn_info(conn, name="com.example.a").id == conn.id
    with refused(ESRCH):
        other.conn_info(other, name="com.example.a")


def test_a_name_with_only_an_activator_leads_to_the_activator(world: World, conn: Client) -> None:
    activator = world.connect_activator("com.example.a")
    info = conn.conn_info(name="com.example.a", mask=Attach.NAMES)
    assert (info.id, info.flags) == (activator.id, Hello.ACCEPT_FD | Hello.ACTIVATOR)
    conn.name_acquire("com.example.a")
    assert conn.conn_info(name="com.example.a").id == conn.id


# What


def test_what_is_valid_for_a_connection_without_names(conn: Client) -> None:
    info = conn.conn_info(conn, mask=VALID)
    assert info.id == conn.id
    assert info.kinds == [ItemType.CREDS, ItemType.PIDS, ItemType.CONN_DESCRIPTION]
    assert info.description == "this-is-my-name"


def test_credentials_are_told_to_the_byte(conn: Client) -> None:
    info = conn.conn_info(conn, mask=VALID)
    assert info.one(ItemType.CREDS) == layout.creds(*CREDS)[16:]
    assert info.one(ItemType.PIDS) == layout.pids(77, 77, 55)[16:]
    assert not info.has(ItemType.CAPS)
    assert not info.has(ItemType.OWNED_NAME)


def test_an_owned_name_is_told_and_found(conn: Client) -> None:
    conn.name_acquire("com.example.a", Name.ALLOW_REPLACEMENT)
    info = conn.conn_info(conn, mask=VALID)
    assert info.names == [("com.example.a", Name.PRIMARY | Name.ALLOW_REPLACEMENT)]
    assert conn.conn_info(name="com.example.a", mask=VALID).id == conn.id


def test_all_names_are_told_and_none_that_is_only_waited_for(world: World, conn: Client) -> None:
    world.connect().name_acquire("com.example.c")
    for name in ("com.example.a", "com.example.b"):
        conn.name_acquire(name)
    conn.name_acquire("com.example.c", Name.QUEUE)
    info = conn.conn_info(conn, mask=VALID)
    assert [name for name, _ in info.names] == ["com.example.a", "com.example.b"]
    conn.name_release("com.example.a")
    assert [name for name, _ in conn.conn_info(conn, mask=VALID).names] == ["com.example.b"]


def test_who_holds_the_handle_later_is_not_who_is_told_of(world: World, conn: Client) -> None:
    conn.name_acquire("com.example.a")
    inherited = conn.share(world.task(NOBODY))
    for mask in (VALID, VALID | Attach.CAPS | Attach.CGROUP):
        info = inherited.conn_info(conn, mask=mask)
        assert info.creds == CredsItem(*CREDS)
        assert info.pids == PidsItem(77, 77, 55)
        assert [name for name, _ in info.names] == ["com.example.a"]
        wants_more = mask != VALID
        assert len(info.all(ItemType.CAPS)) == wants_more
        assert len(info.all(ItemType.CGROUP)) == wants_more
    assert info.caps == (40, 1, 2, 4, 8)
    assert info.text(ItemType.CGROUP) == "/user.slice/task"


def test_somebody_else_is_told_the_same(world: World, conn: Client) -> None:
    other = world.connect(world.task(NOBODY))
    info, own = (client.conn_info(conn, mask=ATTACH_ALL) for client in (other, conn))
    assert [(kind, data) for kind, data, _ in info.items] == [(kind, data) for kind, data, _ in own.items]


def test_the_kinds_that_are_there_come_in_their_order_and_never_the_time(conn: Client) -> None:
    conn.name_acquire("com.example.a")
    info = conn.conn_info(conn, mask=ATTACH_ALL)
    assert info.kinds == [kind for kind in layout.METADATA_ORDER if kind != ItemType.TIMESTAMP]
    assert info.text(ItemType.EXE) == info.text(ItemType.CMDLINE) == "/usr/bin/task"
    assert info.text(ItemType.SECLABEL) == "unconfined"
    assert info.audit == (1, 1000)
    assert conn.conn_info(conn, mask=2**64 - 1).kinds == info.kinds


@pytest.mark.parametrize("bit", list(Attach), ids=lambda bit: bit.name)
def test_one_kind_is_told_when_it_alone_is_asked_for(conn: Client, bit: Attach) -> None:
    conn.name_acquire("com.example.a")
    kind = ItemType(0x1000 + bit.bit_length() - 1)
    expected = [] if bit == Attach.TIMESTAMP else [kind]
    assert conn.conn_info(conn, mask=bit).kinds == expected


def test_no_supplementary_groups_are_an_empty_item(world: World, conn: Client) -> None:
    assert conn.conn_info(conn, mask=Attach.AUXGROUPS).auxgroups == ()
    member = world.connect(world.task(groups=(5, 2**32 - 2)))
    assert conn.conn_info(member, mask=Attach.AUXGROUPS).auxgroups == (5, 2**32 - 2)


def test_what_is_not_known_is_left_out(world: World) -> None:
    bare = world.connect(world.task(label=None), description=None)
    info = bare.conn_info(bare, mask=Attach.SECLABEL | Attach.CONN_DESCRIPTION | Attach.PIDS)
    assert info.kinds == [ItemType.PIDS]


def test_only_what_is_granted_now_is_told(world: World, conn: Client) -> None:
    other = world.connect()
    conn.update_attach_flags(send=Attach.PIDS)
    assert other.conn_info(conn, mask=ATTACH_ALL).kinds == [ItemType.PIDS]
    conn.update_attach_flags(send=0)
    assert other.conn_info(conn, mask=ATTACH_ALL).kinds == []


# Where


def test_an_answer_for_which_there_is_no_room_is_refused(world: World) -> None:
    client = world.connect(pool_size=layout.PAGE)
    count = repeat_until(EXFULL, lambda: client.conn_info(client, mask=ATTACH_ALL, keep=True))
    assert count > 1
    client.free(min(client.unfreed))
    client.conn_info(client, mask=ATTACH_ALL)
    for offset in sorted(client.unfreed):
        client.free(offset)


def test_special_connections_ask_and_are_asked_about(world: World, conn: Client) -> None:
    holder = world.connect_holder("com.example.a")
    activator = world.connect_activator("com.example.b")
    for special in (holder, activator):
        assert conn.conn_info(special, mask=VALID).creds.euid == 1000
        assert special.conn_info(conn, mask=VALID).creds == CredsItem(*CREDS)
    assert activator.conn_info(activator, mask=Attach.NAMES).names == [
        ("com.example.b", Name.ACTIVATOR | Name.PRIMARY)
    ]
