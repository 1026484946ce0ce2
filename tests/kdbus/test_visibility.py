"""Who can find out about whom: LIST, CONN_INFO and notifications, on custom endpoints and with monitors."""

from __future__ import annotations

from errno import EINVAL, ENXIO, EPERM, ESRCH

import pytest
from support.kdbus import NOBODY, Client, ItemType, List, Name, World, layout, refused
from support.kdbus.layout import ATTACH_ALL, GROUP, LIST_ALL, OWN, SEE, TALK, USER, WORLD, access, name

SEEN, HIDDEN = "foo.seen", "foo.hidden"
EVERY_FLAGS = range(16)


class Scene:
    """A bus with all kinds of connections, and a custom endpoint that shows one name.

    `both` owns the shown and a hidden name, `shy` a hidden one, `waiting` waits for the shown one, `plain`
    has none; the activators are those of a shown and of a hidden name.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.endpoint, self.node = world.make_endpoint(
            "1000-custom", name(SEEN), access(WORLD, SEE), name("foo.act"), access(WORLD, SEE)
        )
        self.both, self.shy, self.waiting, self.plain = (world.connect() for _ in range(4))
        self.both.name_acquire(SEEN)
        self.both.name_acquire(HIDDEN)
        self.shy.name_acquire("foo.shy")
        self.waiting.name_acquire(SEEN, Name.QUEUE)
        self.activator = world.connect_activator("foo.act")
        self.secret_activator = world.connect_activator("foo.secret")
        self.holder = world.connect_holder("foo.held")
        self.monitor = world.connect_monitor()
        self.inside = world.connect(world.task(NOBODY), node=self.node)
        self.outside = world.connect(world.task(NOBODY))

    @property
    def everybody(self) -> list[Client]:
        return [
            self.both,
            self.shy,
            self.waiting,
            self.plain,
            self.activator,
            self.secret_activator,
            self.holder,
            self.inside,
            self.outside,
        ]


@pytest.fixture
def scene(world: World) -> Scene:
    return Scene(world)


# LIST on the default endpoint


def test_on_the_default_endpoint_everybody_but_monitors_is_listed(scene: Scene) -> None:
    for reader in (scene.outside, scene.plain, scene.monitor, scene.activator, scene.holder):
        assert sorted(set(reader.list_ids(List.UNIQUE))) == sorted(client.id for client in scene.everybody)
        assert len(reader.list_records(List.UNIQUE)) == len(scene.everybody)


def expected_names(scene: Scene, flags: int) -> set[tuple[int, str, int]]:
    """All names of the scene that a LIST with these flags shows."""
    primary, queued = int(Name.PRIMARY), int(Name.QUEUE | Name.IN_QUEUE)
    activating = int(Name.ACTIVATOR | Name.PRIMARY)
    listed = set()
    if flags & List.NAMES:
        listed |= {
            (scene.both.id, SEEN, primary),
            (scene.both.id, HIDDEN, primary),
            (scene.shy.id, "foo.shy", primary),
        }
    if flags & List.QUEUED:
        listed |= {(scene.waiting.id, SEEN, queued)}
    if flags & List.ACTIVATORS:
        listed |= {
            (scene.activator.id, "foo.act", activating),
            (scene.secret_activator.id, "foo.secret", activating),
        }
    return listed


@pytest.mark.parametrize("flags", EVERY_FLAGS)
def test_a_list_has_what_was_asked_for(scene: Scene, flags: int) -> None:
    records = scene.outside.list_records(flags)
    names = expected_names(scene, flags)
    assert {(info.id, *one) for info in records for one in info.names} == names
    bare = {info.id for info in records if not info.names}
    assert all(info.size == layout.INFO_SIZE for info in records if not info.names)
    assert len(records) == len(names) + len(bare)
    with_names = {id for id, _, _ in names}
    unique = {client.id for client in scene.everybody} - with_names
    assert bare == (unique if flags & List.UNIQUE else set())


@pytest.mark.parametrize("flags", EVERY_FLAGS)
def test_on_a_custom_endpoint_a_list_has_what_can_be_seen_of_that(scene: Scene, flags: int) -> None:
    records = scene.inside.list_records(flags)
    names = {one for one in expected_names(scene, flags) if one[1] in (SEEN, "foo.act")}
    assert {(info.id, *one) for info in records for one in info.names} == names
    bare = {info.id for info in records if not info.names}
    visible = {scene.both.id, scene.activator.id} - {id for id, _, _ in names}
    assert bare == (visible if flags & List.UNIQUE else set())


def test_records_tell_the_flags_of_hello(scene: Scene) -> None:
    accepts = int(layout.Hello.ACCEPT_FD)
    flags = {info.id: info.flags for info in scene.outside.list_records()}
    assert flags[scene.plain.id] == accepts
    assert flags[scene.activator.id] == accepts | layout.Hello.ACTIVATOR
    assert flags[scene.holder.id] == accepts | layout.Hello.POLICY_HOLDER


def test_with_nothing_to_list_there_is_no_slice(world: World, scene: Scene) -> None:
    for flags in (0, List.NAMES):
        _, node = world.make_endpoint(f"1000-empty{flags}")
        reader = world.connect(node=node)
        before = reader.pool.busy
        answer = reader.command(layout.LIST, flags=flags)
        assert (answer["offset"], answer["list_size"]) == (reader.pool_size, 0)
        assert reader.pool.busy == before
        reader.free(answer["offset"])


def test_nobody_is_seen_through_an_endpoint_that_says_nothing(world: World, scene: Scene) -> None:
    _, node = world.make_endpoint("1000-empty")
    reader = world.connect(node=node)
    assert reader.list_records(LIST_ALL) == []
    for client in (*scene.everybody, reader):
        with refused(ENXIO):
            reader.conn_info(client)


def test_what_cannot_be_is_not_listed(scene: Scene) -> None:
    for flags in (16, 1 << 40):
        with refused(EINVAL):
            scene.inside.list_records(flags)


# CONN_INFO on a custom endpoint


def test_a_name_is_found_if_it_can_be_seen(scene: Scene) -> None:
    assert scene.inside.conn_info(name=SEEN).id == scene.both.id
    assert scene.inside.conn_info(name="foo.act").id == scene.activator.id
    for hidden in (HIDDEN, "foo.shy", "foo.secret", "nobody.has.this", "no name", ""):
        with refused(ESRCH):
            scene.inside.conn_info(name=hidden)


def test_a_name_is_found_with_the_right_id_only(scene: Scene) -> None:
    assert scene.inside.conn_info(scene.both, name=SEEN).id == scene.both.id
    for wrong in (scene.waiting, scene.shy, 9999):
        with refused(ESRCH):
            scene.inside.conn_info(wrong, name=SEEN)
    with refused(ESRCH):
        scene.inside.conn_info(scene.shy, name="foo.shy")


def test_an_id_is_found_if_one_of_its_names_can_be_seen(scene: Scene) -> None:
    assert scene.inside.conn_info(scene.both).id == scene.both.id
    assert scene.inside.conn_info(scene.activator).id == scene.activator.id
    for hidden in (scene.shy, scene.waiting, scene.plain, scene.secret_activator, scene.holder):
        with refused(ENXIO):
            scene.inside.conn_info(hidden)
    with refused(ENXIO):
        scene.inside.conn_info(0x0FFFFFFFFFFFFFFF)


def test_what_is_hidden_and_what_is_not_there_look_the_same(scene: Scene) -> None:
    with refused(ENXIO) as hidden:
        scene.inside.conn_info(scene.shy)
    with refused(ENXIO) as missing:
        scene.inside.conn_info(9999)
    assert hidden.answer.raw[32:] == missing.answer.raw[32:]


def test_on_the_default_endpoint_everybody_is_found(scene: Scene) -> None:
    for client in scene.everybody:
        assert scene.outside.conn_info(client).id == client.id
    assert scene.outside.conn_info(name=HIDDEN).id == scene.both.id
    for wrong in ("no name", "", "foo.*", "a"):
        with refused(ESRCH):
            scene.outside.conn_info(name=wrong)


def test_who_is_asked_for_has_to_be_said(scene: Scene) -> None:
    with refused(EINVAL):
        scene.outside.conn_info(0)
    with refused(EINVAL):  # before anybody is looked for
        scene.outside.conn_info(9999, mask=1 << 20)
    with refused(EINVAL):
        scene.outside.conn_info(name="nobody.has.this", mask=1 << 20)


def test_a_name_that_is_waited_for_leads_to_its_owner(scene: Scene) -> None:
    assert scene.outside.conn_info(name=SEEN).id == scene.both.id
    assert scene.outside.conn_info(scene.waiting, mask=layout.Attach.NAMES).names == []
    scene.both.name_release(SEEN)
    assert scene.outside.conn_info(name=SEEN).id == scene.waiting.id
    assert scene.inside.conn_info(scene.waiting).id == scene.waiting.id
    with refused(ENXIO):
        scene.inside.conn_info(scene.both)


# Who is let see


@pytest.mark.parametrize(
    ("rule", "sees"),
    [
        (access(USER, SEE, 2000), True),
        (access(USER, SEE, 2001), False),
        (access(GROUP, SEE, 3000), True),
        (access(GROUP, SEE, 4000), True),
        (access(GROUP, SEE, 2000), False),
        (access(WORLD, SEE), True),
        (access(WORLD, TALK), True),
        (access(USER, OWN, 2000), True),
        (b"", False),
    ],
)
def test_the_endpoint_says_who_sees_a_name(world: World, scene: Scene, rule: bytes, sees: bool) -> None:
    scene.endpoint.endpoint_update(name(SEEN), rule)
    reader = world.connect(world.task(2000, 3000, groups=(4000,)), node=scene.node)
    assert len(reader.list_names()) == 2 * sees


def test_the_policy_of_the_bus_shows_nothing(world: World, scene: Scene) -> None:
    world.connect_holder("foo.shy", access(WORLD, OWN))
    with refused(ESRCH):
        scene.inside.conn_info(name="foo.shy")


def test_a_change_of_the_endpoint_shows_at_once(scene: Scene) -> None:
    scene.endpoint.endpoint_update(name("foo.shy"), access(WORLD, SEE))
    assert scene.inside.list_names() == {(scene.shy.id, "foo.shy", Name.PRIMARY)}
    scene.endpoint.endpoint_update()
    assert scene.inside.list_records() == []


def test_an_owner_of_the_bus_sees_no_more_on_a_custom_endpoint(world: World, scene: Scene) -> None:
    for task in (world.owner, world.task(0, privileged=True)):
        reader = world.connect(task, node=scene.node)
        assert {listed for _, listed, _ in reader.list_names()} == {SEEN, "foo.act"}


def test_who_is_on_a_custom_endpoint_is_seen_like_everybody(scene: Scene) -> None:
    assert scene.inside.id in scene.outside.list_ids()
    assert scene.inside.id not in scene.inside.list_ids()


# What may be done is not what can be seen


def test_what_is_hidden_cannot_be_talked_to_or_owned(world: World, scene: Scene) -> None:
    for target in (scene.both, scene.shy, scene.plain):
        with refused(EPERM):
            scene.inside.send_small(target)
    for wanted in (SEEN, HIDDEN, "nobody.has.this"):
        with refused(EPERM):
            scene.inside.name_acquire(wanted)


# Notifications


def test_on_a_custom_endpoint_changes_of_visible_names_are_told(world: World, scene: Scene) -> None:
    for reader in (scene.inside, scene.outside):
        for kind in (ItemType.NAME_ADD, ItemType.NAME_REMOVE, ItemType.NAME_CHANGE):
            reader.add_match_name(kind)
    scene.both.name_release(HIDDEN)
    scene.both.name_release(SEEN)
    scene.waiting.name_release(SEEN)
    assert [message.change[:2] for message in scene.inside.drain()] == [
        (ItemType.NAME_CHANGE, SEEN),
        (ItemType.NAME_REMOVE, SEEN),
    ]
    assert len(scene.outside.drain()) == 3


def test_everybody_who_comes_and_goes_is_told_everywhere(world: World, scene: Scene) -> None:
    scene.inside.add_match_id(ItemType.ID_ADD)
    scene.inside.add_match_id(ItemType.ID_REMOVE)
    client = world.connect()
    client.close()
    assert [message.arrival for message in scene.inside.drain()] == [
        (ItemType.ID_ADD, client.id),
        (ItemType.ID_REMOVE, client.id),
    ]


def test_monitors_are_told_of_every_name(world: World, scene: Scene) -> None:
    scene.monitor.drain()
    scene.shy.name_release("foo.shy")
    assert scene.monitor.recv().change[1] == "foo.shy"


# Monitors


def test_a_monitor_is_found_by_nobody_but_itself(world: World, scene: Scene) -> None:
    another = world.connect_monitor()
    for reader in (scene.outside, scene.inside, scene.plain, scene.activator, scene.holder, another):
        with refused(ENXIO):
            reader.conn_info(scene.monitor)
        with refused(ENXIO):
            reader.conn_info(scene.monitor, mask=ATTACH_ALL)
        assert scene.monitor.id not in reader.list_ids(LIST_ALL)
    assert scene.monitor.conn_info(scene.monitor).id == scene.monitor.id
    assert scene.monitor.id not in scene.monitor.list_ids(LIST_ALL)


def test_a_monitor_looks_like_an_id_that_was_never_given(scene: Scene) -> None:
    with refused(ENXIO) as monitor:
        scene.outside.conn_info(scene.monitor)
    with refused(ENXIO) as nobody:
        scene.outside.conn_info(9999)
    assert monitor.answer.raw[32:] == nobody.answer.raw[32:]
    for target in (scene.monitor, 9999):
        with refused(ENXIO):
            scene.plain.send_small(target)
        with refused(ENXIO):
            scene.plain.signal(dst=target)


def test_a_monitor_asks_like_everybody(scene: Scene) -> None:
    for client in scene.everybody:
        assert scene.monitor.conn_info(client).id == client.id
    assert scene.monitor.creator_info().text(ItemType.MAKE_NAME) == "1000-test"


def test_nobody_hears_of_a_monitor(world: World, scene: Scene) -> None:
    scene.plain.add_match()
    for _ in range(3):
        monitor = world.connect_monitor()
        monitor.update_attach_flags(recv=0)
        monitor.close()
    assert not scene.plain.is_readable
