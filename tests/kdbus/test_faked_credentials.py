"""Credentials that a bus owner speaks for: they answer CONN_INFO, exactly as given, and nothing else."""

from __future__ import annotations

from errno import EINVAL, ENOBUFS, EPERM
from struct import pack

import pytest
from support.kdbus import NOBODY, OWNER_UID, Attach, Client, Hello, ItemType, Make, World, layout, refused
from support.kdbus.layout import ATTACH_ALL, OWN, UNSET_ID, USER, access, creds, item, pids, string

from kdbus_core.metadata import INITIAL_USER_NAMESPACE, Creds, Extent, PidNamespace, Pids, UserNamespace

CREDS = creds(1, 2, 3, 4, 5, 6, 7, 8)
PIDS = pids(11, 12, 13)
SECLABEL = string(ItemType.SECLABEL, "system_u:object_r:fake_t")
GROUPS = item(ItemType.AUXGROUPS, pack("=3Q", 30, 10, 20))
FAKES = {
    ItemType.CREDS: CREDS,
    ItemType.PIDS: PIDS,
    ItemType.AUXGROUPS: GROUPS,
    ItemType.SECLABEL: SECLABEL,
}
SUBSETS = [
    tuple(kind for bit, kind in enumerate(FAKES) if chosen >> bit & 1) for chosen in range(1, 1 << len(FAKES))
]
NAME = "foo.bar.baz"


@pytest.fixture
def reader(world: World) -> Client:
    return world.connect()


def fake(world: World, *kinds: ItemType) -> Client:
    """A connection of the bus owner that speaks for somebody else."""
    return world.connect(None, *(FAKES[kind] for kind in kinds))


# CONN_INFO


@pytest.mark.parametrize("kinds", SUBSETS)
def test_conn_info_is_exactly_what_was_faked(
    world: World, reader: Client, kinds: tuple[ItemType, ...]
) -> None:
    client = fake(world, *kinds)
    info = reader.conn_info(client, mask=ATTACH_ALL)
    assert info.kinds == [*kinds, ItemType.CONN_DESCRIPTION]
    for kind in kinds:
        (data,) = info.all(kind)
        assert item(kind, data) == FAKES[kind]


@pytest.mark.parametrize("kind", list(FAKES))
def test_what_was_faked_has_to_be_asked_for_and_granted(world: World, reader: Client, kind: ItemType) -> None:
    flag = 1 << (kind - ItemType.TIMESTAMP)
    client = fake(world, *FAKES)
    assert reader.conn_info(client, mask=flag).kinds == [kind]
    client.update_attach_flags(send=ATTACH_ALL & ~flag)
    assert reader.conn_info(client, mask=flag).kinds == []
    assert kind not in reader.conn_info(client, mask=ATTACH_ALL).kinds


def test_names_are_told_of_a_faked_connection(world: World, reader: Client) -> None:
    client = fake(world, ItemType.PIDS)
    client.name_acquire(NAME)
    info = reader.conn_info(client, mask=ATTACH_ALL)
    assert info.kinds == [ItemType.PIDS, ItemType.OWNED_NAME, ItemType.CONN_DESCRIPTION]
    assert reader.conn_info(name=NAME, mask=Attach.PIDS).pids == (11, 12, 13)


def test_a_faked_connection_sees_its_own_fakes(world: World) -> None:
    client = fake(world, ItemType.CREDS)
    assert client.conn_info(client, mask=ATTACH_ALL).creds == (1, 2, 3, 4, 5, 6, 7, 8)


def test_ids_that_are_not_known_are_told_as_such(world: World, reader: Client) -> None:
    client = world.connect(
        None, creds(UNSET_ID, 7, UNSET_ID, UNSET_ID, UNSET_ID, 8, UNSET_ID, 0), pids(0, 0, 0)
    )
    info = reader.conn_info(client, mask=ATTACH_ALL)
    assert info.creds == (UNSET_ID, 7, UNSET_ID, UNSET_ID, UNSET_ID, 8, UNSET_ID, 0)
    assert info.pids == (0, 0, 0)


def test_zero_is_root(world: World, reader: Client) -> None:
    client = world.connect(None, creds(*[0] * 8))
    assert reader.conn_info(client, mask=Attach.CREDS).creds == (0,) * 8


@pytest.mark.parametrize("flags", [Hello.ACTIVATOR, Hello.POLICY_HOLDER])
def test_special_connections_may_speak_for_others(world: World, reader: Client, flags: Hello) -> None:
    client = world.connect(None, layout.name(NAME), CREDS, flags=flags)
    assert ItemType.CREDS in reader.conn_info(client, mask=ATTACH_ALL).kinds
    assert ItemType.PIDS not in reader.conn_info(client, mask=ATTACH_ALL).kinds


# Messages


@pytest.mark.parametrize("flags", [Make.ACCESS_WORLD, Make.ACCESS_WORLD | Make.FINAL_METADATA])
@pytest.mark.parametrize("kinds", [SUBSETS[0], SUBSETS[1], SUBSETS[-1]])
def test_messages_carry_nothing_of_any_process(
    world: World, flags: Make, kinds: tuple[ItemType, ...]
) -> None:
    maker = world.make_bus("1000-other", flags=flags)
    node = world.find_endpoint(bus="1000-other")
    client = world.connect(None, *(FAKES[kind] for kind in kinds), node=node)
    receiver = world.connect(node=node)
    receiver.add_match_empty()
    client.name_acquire(NAME)
    client.send_small(receiver)
    client.broadcast()
    own_metadata = [ItemType.OWNED_NAME, ItemType.CONN_DESCRIPTION, ItemType.TIMESTAMP]
    assert [message.metadata_kinds for message in receiver.drain()] == [own_metadata, own_metadata]
    maker.close()


def test_monitors_see_nothing_of_any_process_either(world: World, reader: Client) -> None:
    monitor = world.connect_monitor()
    client = fake(world, *FAKES)
    monitor.drain()
    client.send_small(reader)
    assert monitor.recv().metadata_kinds == [ItemType.CONN_DESCRIPTION, ItemType.TIMESTAMP]
    reader.drain()


def test_a_faked_connection_receives_metadata_like_any_other(world: World, reader: Client) -> None:
    client = fake(world, *FAKES)
    reader.send_small(client)
    message = client.recv()
    assert message.creds == (OWNER_UID,) * 8
    assert message.pids.pid == reader.task.pid


# Who may


@pytest.mark.parametrize("kind", list(FAKES))
def test_only_owners_speak_for_others(world: World, kind: ItemType) -> None:
    with refused(EPERM):
        world.connect(world.task(NOBODY), FAKES[kind])
    world.connect(world.task(0, privileged=True), FAKES[kind])


@pytest.mark.parametrize("kind", list(FAKES))
def test_on_a_custom_endpoint_nobody_speaks_for_others(world: World, kind: ItemType) -> None:
    _, node = world.make_endpoint("1000-custom")
    for task in (world.owner, world.task(0, privileged=True)):
        with refused(EPERM):
            world.connect(task, FAKES[kind], node=node)


def test_who_may_not_is_told_before_what_is_wrong(world: World) -> None:
    wrong = creds(1 << 40, 0, 0, 0, 0, 0, 0, 0)
    with refused(EPERM):
        world.connect(world.task(NOBODY), wrong)
    with refused(EPERM):
        world.connect(world.task(NOBODY), CREDS, attach_send=1 << 20)
    with refused(EINVAL):
        world.connect(world.task(NOBODY), CREDS, pool_size=5)


# What is wrong


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("id", [2**32, 2**32 + 5, 2**63, 2**64 - 1])
def test_an_id_that_cannot_be_is_refused(world: World, place: int, id: int) -> None:
    ids = [0] * 8
    ids[place] = id
    with refused(EINVAL):
        world.connect(None, creds(*ids))


@pytest.mark.parametrize("place", range(3))
def test_a_pid_that_cannot_be_is_refused(world: World, place: int) -> None:
    numbers = [0, 0, 0]
    numbers[place] = 2**32
    with refused(EINVAL):
        world.connect(None, pids(*numbers))


@pytest.mark.parametrize(
    "wrong",
    [
        item(ItemType.CREDS, bytes(56)),
        item(ItemType.CREDS, bytes(72)),
        item(ItemType.CREDS),
        item(ItemType.PIDS, bytes(16)),
        item(ItemType.PIDS, bytes(32)),
        item(ItemType.PIDS),
        item(ItemType.SECLABEL, b"label"),
        item(ItemType.SECLABEL, b"la\0bel\0"),
        item(ItemType.SECLABEL),
        item(ItemType.AUXGROUPS, bytes(6)),
        CREDS + CREDS,
        PIDS + PIDS,
        SECLABEL + SECLABEL,
        string(ItemType.EXE, "/bin/fake"),
        string(ItemType.PID_COMM, "fake"),
        item(ItemType.AUDIT, bytes(8)),
    ],
)
def test_items_that_are_wrong_are_refused(world: World, reader: Client, wrong: bytes) -> None:
    reader.add_match()
    with refused(EINVAL):
        world.connect(None, wrong)
    assert not reader.is_readable  # nobody heard of it


def test_ids_mean_what_they_mean_to_who_gives_them(world: World, reader: Client) -> None:
    """Ids 0..9 of the namespace are 1000..1009 outside, so its root owns the bus."""
    namespace = UserNamespace(
        INITIAL_USER_NAMESPACE, (Extent(0, OWNER_UID, 10),), (Extent(0, OWNER_UID, 10),), OWNER_UID
    )
    inside = world.task(OWNER_UID, user_namespace=namespace)
    client = world.connect(inside, creds(0, 1, 2, UNSET_ID, 0, 9, 2, UNSET_ID))
    told = (1000, 1001, 1002, UNSET_ID, 1000, 1009, 1002, UNSET_ID)
    assert reader.conn_info(client, mask=Attach.CREDS).creds == told
    for place in range(8):
        ids = [0] * 8
        ids[place] = 10
        with refused(EINVAL):
            world.connect(inside, creds(*ids))


def test_pids_mean_what_they_mean_to_who_gives_them(world: World, reader: Client) -> None:
    namespace = PidNamespace()
    inside = world.task(pid=700, ppid=600, pid_namespace=namespace, pids_in={namespace: Pids(7, 7, 0)})
    client = world.connect(inside, pids(7, 7, 0))
    assert reader.conn_info(client, mask=Attach.PIDS).pids == (700, 700, 0)
    with refused(EINVAL):
        world.connect(inside, pids(700))


# No decision


def test_who_speaks_for_root_has_not_got_its_rights(world: World) -> None:
    proxy = world.connect(None, creds(*[NOBODY] * 8))
    proxy.name_acquire(NAME)  # still an owner
    world.connect_holder("foo.other", access(USER, OWN, 7))
    stranger = world.connect(world.task(NOBODY))
    with refused(EPERM):  # not of the uid that the proxy speaks for
        stranger.send_small(proxy)
    for_seven = world.connect(world.task(0, privileged=True), creds(*[7] * 8))
    seven = world.connect(world.task(7))
    with refused(EPERM):
        seven.send_small(for_seven)
    seven.name_acquire("foo.other")


@pytest.mark.parametrize(
    ("privileged", "items", "account"),
    [
        (True, CREDS, 1),
        (True, creds(0, *[UNSET_ID] * 7), 0),
        (True, creds(5, 9, *[UNSET_ID] * 6), 5),
        (True, creds(UNSET_ID, 9, *[UNSET_ID] * 6), 9),
        (True, creds(UNSET_ID, 0, *[UNSET_ID] * 6), 0),
        (True, creds(UNSET_ID, UNSET_ID, *[9] * 6), 500),
        (True, PIDS, 500),
        (True, SECLABEL, 500),
        (True, PIDS + SECLABEL, 500),
        (True, b"", 500),
        (False, CREDS, OWNER_UID),
        (False, creds(UNSET_ID, 9, *[UNSET_ID] * 6), OWNER_UID),
        (False, PIDS, OWNER_UID),
        (False, b"", OWNER_UID),
    ],
)
def test_quota_goes_to_a_faked_uid_only_if_the_privileged_give_one(
    world: World, privileged: bool, items: bytes, account: int
) -> None:
    uid = 500 if privileged else OWNER_UID
    client = world.connect(world.task(uid, privileged=privileged), items)
    assert client.connection.user.uid == account


def test_what_a_privileged_proxy_sends_is_charged_to_whom_it_speaks_for(world: World) -> None:
    root = world.task(0, privileged=True)
    receiver = world.connect()
    one, same, other = (world.connect(root, creds(*[uid] * 8)) for uid in (7, 7, 8))
    for _ in range(256):
        one.send_items(dst=receiver)
    with refused(ENOBUFS):
        same.send_items(dst=receiver)
    other.send_items(dst=receiver)


def test_quota_is_charged_to_the_real_uid(world: World) -> None:
    task = world.task(creds=Creds(2000, OWNER_UID, 2000, OWNER_UID, 5, 5, 5, 5))
    client = world.connect(task)
    assert client.connection.user.uid == 2000
    assert client.connection.is_owner
