"""The end of things: what a handle says after its connection, endpoint, bus or domain has gone."""

from __future__ import annotations

from collections.abc import Callable
from errno import EAGAIN, EBADFD, EFAULT, EINVAL, ENOTTY, EPERM, EPIPE, ESHUTDOWN

import pytest
from support.kdbus import OWNER_UID, Client, ItemType, List, Make, Msg, Name, Refused, World, layout, refused
from support.kdbus.layout import (
    PAGE,
    POLLERR,
    POLLHUP,
    POLLIN,
    POLLOUT,
    POLLRDNORM,
    POLLWRNORM,
    Layout,
    name,
    number,
    string,
)

from kdbus_core.errors import KdbusError

NAME = "foo.bar.baz"
GONE, IDLE = POLLERR | POLLHUP, POLLOUT | POLLWRNORM
READY = IDLE | POLLIN | POLLRDNORM
CONNECTED: dict[str, tuple[Layout, bytes]] = {
    "BYEBYE": (layout.BYEBYE, b""),
    "NAME_ACQUIRE": (layout.NAME_ACQUIRE, name(NAME)),
    "NAME_RELEASE": (layout.NAME_RELEASE, name(NAME)),
    "LIST": (layout.LIST, b""),
    "CONN_INFO": (layout.CONN_INFO, name(NAME)),
    "BUS_CREATOR_INFO": (layout.BUS_CREATOR_INFO, b""),
    "UPDATE": (layout.UPDATE, number(ItemType.ATTACH_FLAGS_RECV, 0)),
    "MATCH_ADD": (layout.MATCH_ADD, b""),
    "MATCH_REMOVE": (layout.MATCH_REMOVE, b""),
    "SEND": (layout.SEND, b""),
    "RECV": (layout.RECV, b""),
    "FREE": (layout.FREE, b""),
    "MSG_CANCEL": (layout.MSG_CANCEL, b""),
}
COMMANDS = pytest.mark.parametrize("command", CONNECTED)


class Scene:
    """Connections on the default and on a custom endpoint, and the handles that all of it lives with."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.maker, self.node = world.make_endpoint("1000-custom")
        self.client = world.connect(world.task())
        self.inside = world.connect(world.task(), node=self.node)
        self.fresh = world.open()
        self.fresh_inside = world.open(self.node)
        self.control = world.open_control()

    def end(self, way: str) -> Client:
        """End something; returns a connection that has gone with it."""
        match way:
            case "goodbye":
                self.client.byebye()
                return self.client
            case "endpoint":
                self.maker.close()
                return self.inside
            case "bus":
                self.world.maker.close()
            case _:
                self.world.domain.close()
        return self.client


@pytest.fixture
def scene(world: World) -> Scene:
    return Scene(world)


def connect_special(world: World, kind: str) -> Client:
    match kind:
        case "monitor":
            return world.connect_monitor()
        case "activator":
            return world.connect_activator(NAME)
        case _:
            return world.connect_holder(NAME)


WAYS = pytest.mark.parametrize("way", ["goodbye", "endpoint", "bus", "domain"])
SOME_END = pytest.mark.parametrize("way", ["endpoint", "bus", "domain"])


# Every command


@WAYS
@COMMANDS
def test_after_the_end_every_command_says_so(scene: Scene, way: str, command: str) -> None:
    gone = scene.end(way)
    request, items = CONNECTED[command]
    for _ in range(2):
        with refused(ESHUTDOWN):
            gone.command(request, items)


@WAYS
@COMMANDS
def test_after_the_end_nothing_is_read(scene: Scene, way: str, command: str) -> None:
    gone = scene.end(way)
    request, _ = CONNECTED[command]
    for address in (0, 1, 2**63):
        with refused(ESHUTDOWN):
            gone.ioctl(request.request, address)
    with refused(ESHUTDOWN) as refusal:
        gone.command(request, flags=1 << 40)
    assert refusal.answer["return_flags"] == layout.CANARY


@WAYS
def test_after_the_end_other_commands_are_as_wrong_as_before(scene: Scene, way: str) -> None:
    gone = scene.end(way)
    for request in (layout.HELLO, layout.BUS_MAKE, layout.ENDPOINT_MAKE, layout.ENDPOINT_UPDATE):
        with refused(EBADFD):
            gone.command(request)
    with refused(ENOTTY):
        gone.ioctl(0x409595FF, 0)


@pytest.mark.parametrize("kind", ["monitor", "activator", "holder"])
@COMMANDS
def test_after_the_end_of_the_bus_special_connections_say_so_too(
    world: World, kind: str, command: str
) -> None:
    client = connect_special(world, kind)
    world.maker.close()
    request, items = CONNECTED[command]
    with refused(ESHUTDOWN):
        client.command(request, items)


# Handles that are not connected


@SOME_END
def test_what_has_gone_is_not_connected_to(scene: Scene, way: str) -> None:
    scene.end(way)
    handles = [scene.fresh_inside] if way == "endpoint" else [scene.fresh, scene.fresh_inside]
    for handle in handles:
        with refused(ESHUTDOWN):
            handle.hello()
        with refused(ESHUTDOWN):
            handle.endpoint_make("1000-more")
        with refused(ESHUTDOWN):
            handle.ioctl(layout.HELLO.request, 1)
        with refused(EBADFD):
            handle.command(layout.LIST)


@SOME_END
def test_what_has_gone_is_not_opened(world: World, scene: Scene, way: str) -> None:
    default = world.bus.endpoint
    scene.end(way)
    for node in [scene.node] if way == "endpoint" else [scene.node, default]:
        with refused(ESHUTDOWN):
            world.open(node)
    if way == "domain":
        with refused(ESHUTDOWN):
            world.open_control()


@pytest.mark.parametrize("way", ["bus", "domain"])
def test_an_endpoint_that_has_gone_is_not_updated(scene: Scene, way: str) -> None:
    scene.end(way)
    with refused(ESHUTDOWN):
        scene.maker.endpoint_update(name(NAME))
    with refused(ESHUTDOWN):
        scene.maker.ioctl(layout.ENDPOINT_UPDATE.request, 1)


def test_in_a_domain_that_has_gone_nothing_is_made(world: World, scene: Scene) -> None:
    privileged = world.open_control(world.task(0, privileged=True))
    world.domain.close()
    with refused(ESHUTDOWN):
        scene.control.bus_make(name="1000-more")
    with refused(ESHUTDOWN):
        privileged.domain_make("more")
    with refused(ESHUTDOWN):
        scene.control.ioctl(layout.BUS_MAKE.request, 1)


def test_who_owns_what_has_gone_is_told_that_it_owns_something(world: World) -> None:
    world.domain.close()
    with refused(EBADFD):
        world.maker.bus_make(name="1000-more")


# Whose end it is


def test_an_endpoint_ends_with_its_handle_and_nothing_else_does(world: World, scene: Scene) -> None:
    scene.client.add_match_id(ItemType.ID_REMOVE)
    scene.maker.close()
    assert [message.arrival for message in scene.client.drain()] == [(ItemType.ID_REMOVE, scene.inside.id)]
    assert "1000-custom" not in world.bus.endpoints
    world.make_endpoint("1000-custom")
    scene.fresh.hello()
    with refused(ESHUTDOWN):
        scene.inside.list_records()


def test_a_bus_ends_with_its_handle_and_its_name_is_free(world: World, scene: Scene) -> None:
    world.maker.close()
    assert world.domain.buses == {}
    world.make_bus(world.bus.name)
    world.connect(node=world.find_endpoint())
    with refused(ESHUTDOWN):
        scene.client.list_records()


def test_other_buses_do_not_notice(world: World, scene: Scene) -> None:
    world.make_bus("1000-other")
    client = world.connect(node=world.find_endpoint(bus="1000-other"))
    client.add_match()
    world.maker.close()
    assert not client.is_readable
    client.send_small(client)
    client.recv()


def test_a_handle_that_is_shared_lives_until_the_last_is_closed(world: World, scene: Scene) -> None:
    for handle, member in ((scene.maker, scene.inside), (world.maker, scene.client)):
        child = handle.share(world.task())
        handle.close()
        member.list_records()
        child.close()
        with refused(ESHUTDOWN):
            member.list_records()


def test_a_domain_in_a_domain_ends_with_its_handle_and_with_the_outer_one(world: World) -> None:
    root = world.task(0, privileged=True)
    for end in ("handle", "domain"):
        maker = world.open_control(root)
        maker.domain_make("inner", Make.ACCESS_WORLD)
        inner = world.domain.domains["inner"]
        bus = world.open(inner, world.owner)
        bus.bus_make(name=f"{OWNER_UID}-deep", flags=Make.ACCESS_WORLD)
        client = world.connect(node=inner.buses[f"{OWNER_UID}-deep"].endpoint)
        if end == "handle":
            maker.close()
        else:
            world.domain.close()
        with refused(ESHUTDOWN):
            client.list_records()
        assert client.poll() == GONE
        assert world.domain.domains == {}


def test_endings_in_any_order_are_all_right(world: World, scene: Scene) -> None:
    world.maker.close()
    scene.maker.close()
    world.domain.close()
    scene.control.close()
    scene.client.close()


# What ends with it


def test_waiting_calls_end_with_their_caller(scene: Scene) -> None:
    call = scene.client.call(scene.client, cookie=1)
    scene.end("bus")
    with refused(ESHUTDOWN):
        call.result()


def test_calls_through_an_endpoint_end_with_it(world: World, scene: Scene) -> None:
    scene.maker.endpoint_update(name(NAME), layout.access(layout.WORLD, layout.TALK))
    scene.client.name_acquire(NAME)
    outgoing = scene.inside.call(name=NAME, cookie=1)
    incoming = scene.client.call(scene.inside, cookie=2)
    scene.maker.close()
    assert outgoing.is_done
    with refused(ESHUTDOWN):
        outgoing.result()
    with refused(EPIPE):
        incoming.result()
    scene.client.drain()


def test_requests_to_an_endpoint_that_ends_are_dead(scene: Scene) -> None:
    scene.client.send_small(scene.inside, cookie=7, flags=Msg.EXPECT_REPLY, timeout_ms=100)
    scene.maker.close()
    (message,) = scene.client.drain()
    assert (message.kind, message.cookie_reply) == (ItemType.REPLY_DEAD, 7)


def test_names_of_an_endpoint_that_ends_are_free(world: World, scene: Scene) -> None:
    scene.maker.endpoint_update(name(NAME), layout.access(layout.WORLD, layout.OWN))
    world.connect_holder(NAME, layout.access(layout.WORLD, layout.OWN))
    scene.inside.name_acquire(NAME)
    scene.client.name_acquire(NAME, Name.QUEUE)
    scene.maker.close()
    assert scene.client.list_names(List.NAMES) == {(scene.client.id, NAME, Name.PRIMARY | Name.QUEUE)}


def test_files_that_were_on_their_way_are_closed(world: World, scene: Scene) -> None:
    task = scene.client.task
    null, memory = task.open_null(), task.open_memfd(b"contents")
    scene.client.send_items(layout.fds([null]), layout.memfd(memory, 8), dst=scene.client)
    assert [task.description(fd).references for fd in (null, memory)] == [2, 2]
    world.maker.close()
    assert [task.description(fd).references for fd in (null, memory)] == [1, 1]


# poll


def test_a_handle_that_is_not_connected_hangs_up(world: World, scene: Scene) -> None:
    inner = world.open_control(world.task(0, privileged=True))
    inner.domain_make("inner")
    for handle in (scene.control, world.maker, inner, scene.fresh, scene.fresh_inside, scene.maker):
        assert handle.poll() == GONE


def test_a_connection_is_always_writable_and_readable_while_there_is_something(scene: Scene) -> None:
    client = scene.client
    assert client.poll() == IDLE
    client.send_small(client)
    client.send_small(client)
    assert client.poll() == READY
    client.peek()
    assert client.poll() == READY
    client.recv()
    assert client.poll() == READY
    client.drop()
    assert client.poll() == IDLE


def test_a_connection_that_lost_something_is_readable(world: World, scene: Scene) -> None:
    small = world.connect(pool_size=PAGE)
    small.add_match_empty()
    scene.client.broadcast()
    assert small.poll() == READY
    with refused(EAGAIN):
        small.recv()
    assert small.poll() == IDLE


@pytest.mark.parametrize("kind", ["monitor", "activator", "holder"])
def test_special_connections_are_polled_like_others(world: World, scene: Scene, kind: str) -> None:
    special = connect_special(world, kind)
    assert special.poll() == IDLE
    if kind != "holder":
        scene.client.name_acquire("other.name")
        world.connect_activator("some.other")
        scene.client.send_small(name=NAME if kind == "activator" else "some.other")
        assert special.poll() == READY


@WAYS
def test_after_the_end_a_connection_hangs_up_whatever_waited(scene: Scene, way: str) -> None:
    if way != "goodbye":
        for target in (scene.client, scene.inside):
            scene.client.send_small(target)
    assert scene.end(way).poll() == GONE


def test_a_synchronous_reply_makes_nothing_readable(scene: Scene) -> None:
    client = scene.client
    call = client.call(client, cookie=1)
    client.recv()
    client.reply(client, 1)
    assert client.poll() == IDLE
    call.result()


def test_a_failed_hello_leaves_a_handle_hung_up_and_usable(scene: Scene) -> None:
    with refused(EINVAL):
        scene.fresh.hello(pool_size=1)
    assert scene.fresh.poll() == GONE
    scene.fresh.hello()
    assert scene.fresh.poll() == IDLE


# mmap


def map_pool(client: Client, length: int, *, writable: bool = False) -> int:
    """Map the pool; returns its size."""
    try:
        return client.handle.map_pool(length, writable=writable).size
    except KdbusError as error:
        raise Refused(error) from None


def test_a_handle_that_is_not_connected_has_no_pool(world: World, scene: Scene) -> None:
    for handle in (scene.control, world.maker, scene.fresh, scene.fresh_inside, scene.maker):
        for writable in (False, True):
            for length in (0, PAGE, 2**40):
                with refused(EBADFD):
                    map_pool(handle, length, writable=writable)


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, 2 * PAGE, 3 * PAGE])
def test_a_pool_is_mapped_up_to_its_size(world: World, length: int) -> None:
    assert map_pool(world.connect(pool_size=3 * PAGE), length) == 3 * PAGE


@pytest.mark.parametrize("length", [3 * PAGE + 1, 4 * PAGE, 2**40])
def test_beyond_its_size_a_pool_is_not_mapped(world: World, length: int) -> None:
    with refused(EFAULT):
        map_pool(world.connect(pool_size=3 * PAGE), length)


def test_a_pool_is_never_mapped_for_writing(world: World) -> None:
    for client in (world.connect(), world.connect_monitor(), world.connect_activator(NAME)):
        for length in (PAGE, client.pool_size, 2 * client.pool_size):
            with refused(EPERM):
                map_pool(client, length, writable=True)


@WAYS
def test_what_was_received_can_be_read_after_the_end(scene: Scene, way: str) -> None:
    for client in (scene.client, scene.inside):
        scene.client.send_small(client, payload=b"remains")
    kept = {client.id: client.recv(keep=True) for client in (scene.client, scene.inside)}
    gone = scene.end(way)
    message = kept[gone.id]
    assert gone.read_pool(message.offset, message.msg_size) == message.raw
    with refused(ESHUTDOWN):
        gone.free(message.offset)


# Once more


@SOME_END
def test_what_has_gone_can_be_made_again(world: World, scene: Scene, way: str) -> None:
    scene.end(way)
    remake: dict[str, Callable[[], object]] = {
        "endpoint": lambda: world.make_endpoint("1000-custom"),
        "bus": lambda: world.make_bus("1000-test"),
    }
    if way in remake:
        remake[way]()
    else:
        with refused(ESHUTDOWN):
            scene.control.command(layout.BUS_MAKE, string(ItemType.MAKE_NAME, "1000-test"))
