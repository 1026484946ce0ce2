"""How much there may be of everything, and whose it is counted as."""

from __future__ import annotations

from errno import E2BIG, EEXIST, EINVAL, EMFILE, EMSGSIZE, ENAMETOOLONG, ENOBUFS, EXFULL

import pytest
from support.kdbus import NOBODY, OWNER_UID, Client, ItemType, Name, World, layout, refused, repeat_until
from support.kdbus.layout import OWN, TALK, WORLD, access, bloom_parameter, creds, name, number, string

from kdbus_core.metadata import Creds

MAX_BUSES, MAX_CONNECTIONS, MAX_NAMES = 16, 1024, 256


def connect_many(world: World, client: Client, count: int) -> list[Client]:
    """Further connections of a client's task on its node, with the smallest pools."""
    return [
        world.connect(client.task, node=client.handle._endpoint, pool_size=layout.PAGE) for _ in range(count)
    ]


# Buses


def test_a_user_has_16_buses(world: World) -> None:
    task = world.task(2000)
    buses = [world.make_bus(f"2000-bus{number}", task) for number in range(MAX_BUSES)]
    with refused(EMFILE):
        world.make_bus("2000-more", task)
    with refused(EMFILE):
        world.make_bus("2000-more", world.task(2000, privileged=True))
    with refused(EEXIST):  # which is told first
        world.make_bus("2000-bus3", task)
    world.make_bus("2001-bus", world.task(2001))
    buses[3].close()
    world.make_bus("2000-more", task)
    with refused(EMFILE):
        world.make_bus("2000-even-more", task)


def test_buses_are_counted_for_the_real_uid(world: World) -> None:
    """The name has the effective one."""
    setuid = world.task(creds=Creds(2000, 3000, 3000, 3000, 5, 5, 5, 5))
    for number_ in range(MAX_BUSES):
        world.make_bus(f"3000-bus{number_}", setuid)
    with refused(EMFILE):
        world.make_bus("3000-more", setuid)
    with refused(EMFILE):
        world.make_bus("2000-more", world.task(2000))
    world.make_bus("3000-more", world.task(3000))


def test_a_refused_bus_does_not_count(world: World) -> None:
    task = world.task(2000)
    world.make_bus("2000-a", task)
    for _ in range(MAX_BUSES):
        with refused(EEXIST):
            world.make_bus("2000-a", task)
        with refused(EINVAL):
            world.make_bus("2001-a", task)
    for number_ in range(MAX_BUSES - 1):
        world.make_bus(f"2000-bus{number_}", task)


def test_a_domain_in_a_domain_counts_for_itself(world: World) -> None:
    maker = world.open_control(world.task(0, privileged=True))
    maker.domain_make("inner", layout.Make.ACCESS_WORLD)
    inner = world.domain.domains["inner"]
    for number_ in range(MAX_BUSES - 1):
        world.make_bus(f"{OWNER_UID}-bus{number_}")
    with refused(EMFILE):
        world.make_bus(f"{OWNER_UID}-more")
    world.open(inner, world.owner).bus_make(name=f"{OWNER_UID}-more")
    maker.close()


# Connections


def test_a_user_has_1024_connections(world: World) -> None:
    first = world.connect(world.task(2000), pool_size=layout.PAGE)
    clients = connect_many(world, first, MAX_CONNECTIONS - 1)
    watcher = world.connect()
    watcher.add_match()
    with refused(EMFILE):
        world.connect(first.task)
    with refused(EMFILE):
        world.connect(world.task(2000, 77))
    assert not watcher.is_readable  # of what was refused nobody hears
    world.connect(world.task(2001)).close()
    clients[5].close()
    clients[6].byebye()  # its handle is still open
    connect_many(world, first, 2)
    with refused(EMFILE):
        world.connect(first.task)


def test_connections_to_all_buses_of_a_domain_count(world: World) -> None:
    world.make_bus("1000-other")
    first = world.connect(world.task(2000), pool_size=layout.PAGE)
    other = world.connect(first.task, node=world.find_endpoint(bus="1000-other"), pool_size=layout.PAGE)
    connect_many(world, first, MAX_CONNECTIONS // 2 - 1)
    connect_many(world, other, MAX_CONNECTIONS // 2 - 1)
    for node in (None, world.find_endpoint(bus="1000-other")):
        with refused(EMFILE):
            world.connect(first.task, node=node)


def test_a_custom_endpoint_counts_for_itself(world: World) -> None:
    task = world.task(2000)
    first = world.connect(task, pool_size=layout.PAGE)
    connect_many(world, first, MAX_CONNECTIONS - 1)
    with refused(EMFILE):
        world.connect(task)
    _, node = world.make_endpoint("1000-custom")
    inside = world.connect(task, node=node, pool_size=layout.PAGE)
    connect_many(world, inside, MAX_CONNECTIONS - 2)
    world.connect(world.task(3000), node=node, pool_size=layout.PAGE)
    for uid in (2000, 3000, 4000):  # whoever it is
        with refused(EMFILE):
            world.connect(world.task(uid), node=node)
    world.connect(world.task(3000))
    _, another = world.make_endpoint("1000-another")
    world.connect(task, node=another).close()


def test_special_connections_count_too(world: World) -> None:
    root = world.task(0, privileged=True)
    world.connect_monitor(root, pool_size=layout.PAGE)
    world.connect(root, name("a.b"), flags=layout.Hello.ACTIVATOR, pool_size=layout.PAGE)
    world.connect(root, name("a.c"), flags=layout.Hello.POLICY_HOLDER, pool_size=layout.PAGE)
    first = world.connect(root, pool_size=layout.PAGE)
    connect_many(world, first, MAX_CONNECTIONS - 4)
    for flags in (0, layout.Hello.MONITOR):
        with refused(EMFILE):
            world.connect(root, flags=flags)
    with refused(EMFILE):
        world.connect(root, name("a.d"), flags=layout.Hello.POLICY_HOLDER)
    world.connect_holder("a.d")  # what was refused holds nothing


def test_the_privileged_may_have_connections_counted_for_others(world: World) -> None:
    root = world.task(0, privileged=True)
    for _ in range(MAX_CONNECTIONS):
        world.connect(root, creds(*[2000] * 8), pool_size=layout.PAGE)
    with refused(EMFILE):
        world.connect(root, creds(*[2000] * 8))
    with refused(EMFILE):
        world.connect(world.task(2000))
    world.connect(root, creds(*[2001] * 8))
    world.connect(root)


# Quota on custom endpoints


def test_everybody_on_a_custom_endpoint_shares_one_quota(world: World) -> None:
    endpoint, node = world.make_endpoint("1000-custom", name("foo.bar"), access(WORLD, TALK))
    world.connect_holder("foo.bar", access(WORLD, TALK))
    receiver = world.connect()
    receiver.name_acquire("foo.bar")
    first, second = (world.connect(world.task(uid), node=node) for uid in (2000, 3000))
    outside = world.connect(world.task(2000))
    for _ in range(MAX_NAMES):
        first.send_items(dst=receiver)
    for client in (first, second):
        with refused(ENOBUFS):
            client.send_items(dst=receiver)
    outside.send_items(dst=receiver)
    endpoint.close()
    assert len(receiver.drain()) == MAX_NAMES + 1


def test_two_custom_endpoints_do_not_share_a_quota(world: World) -> None:
    receiver = world.connect()
    receiver.name_acquire("foo.bar")
    for uid in (1, 2):
        _, node = world.make_endpoint(f"1000-custom{uid}", name("foo.bar"), access(WORLD, TALK))
        client = world.connect(node=node)
        for _ in range(256):
            client.send_items(dst=receiver)
        with refused(ENOBUFS):
            client.send_items(dst=receiver)
    assert len(receiver.drain()) == 512


# Names


def test_a_connection_has_256_names(world: World) -> None:
    client = world.connect()
    for number_ in range(MAX_NAMES):
        client.name_acquire(f"a.n{number_}")
    for flags in (0, Name.QUEUE, Name.REPLACE_EXISTING):
        with refused(E2BIG):
            client.name_acquire("a.more", flags)
    assert client.name_acquire("a.n7") & Name.PRIMARY  # it has that one
    client.name_release("a.n7")
    client.name_acquire("a.more")
    world.connect().name_acquire("b.c")


def test_names_that_are_waited_for_count(world: World) -> None:
    owner, client = world.connect(), world.connect()
    for number_ in range(MAX_NAMES):
        owner.name_acquire(f"a.n{number_}", Name.ALLOW_REPLACEMENT | Name.QUEUE)
        client.name_acquire(f"a.n{number_}", Name.QUEUE)
    with refused(E2BIG):
        client.name_acquire("a.more")
    client.name_acquire("a.n0")  # leaves that queue
    client.name_acquire("a.more")
    with refused(E2BIG):
        client.name_acquire("a.n0", Name.QUEUE)
    assert client.name_acquire("a.n1", Name.QUEUE | Name.REPLACE_EXISTING) & Name.PRIMARY
    with refused(E2BIG):
        owner.name_acquire("b.c")  # it waits for the name that it lost


def test_a_replaced_owner_that_does_not_wait_has_room_again(world: World) -> None:
    owner, client = world.connect(), world.connect()
    for number_ in range(MAX_NAMES):
        owner.name_acquire(f"a.n{number_}", Name.ALLOW_REPLACEMENT)
    client.name_acquire("a.n0", Name.REPLACE_EXISTING)
    owner.name_acquire("a.more")


def test_a_malformed_name_is_told_before_there_is_no_room(world: World) -> None:
    client = world.connect()
    for number_ in range(MAX_NAMES):
        client.name_acquire(f"a.n{number_}")
    with refused(EINVAL):
        client.name_acquire("foo")


# Sizes


@pytest.mark.parametrize("size", [0, 7, 12, 4104, 8192, 2**63, 2**64 - 8])
def test_a_filter_has_8_to_4096_bytes(world: World, size: int) -> None:
    control = world.open_control()
    with refused(EINVAL):
        control.bus_make(name="1000-other", bloom=bloom_parameter(size))
    for good in (8, 4096):
        world.make_bus(f"1000-other{good}", bloom=bloom_parameter(good))
    with refused(EINVAL):
        control.bus_make(name="1000-other", bloom=bloom_parameter(64, 0))
    control.bus_make(name="1000-other", bloom=bloom_parameter(64, 2**64 - 1))


def test_names_of_nodes_have_63_bytes(world: World) -> None:
    long = "1000-" + "x" * 58
    world.make_bus(long)
    with refused(ENAMETOOLONG):
        world.make_bus(long + "x")
    world.make_endpoint(long)
    with refused(ENAMETOOLONG):
        world.make_endpoint(long + "x")
    world.connect(description="x" * 63)
    with refused(ENAMETOOLONG):
        world.connect(description="x" * 64)
    with refused(EINVAL):
        world.connect(description="")


def test_a_command_has_32_kib(world: World) -> None:
    client = world.connect()
    room = layout.MAX_COMMAND_SIZE - layout.MATCH_ADD.size
    assert room % 24 == 0
    rule = number(ItemType.ID, layout.ANY)
    client.add_match(*[rule] * (room // 24), cookie=1)
    with refused(EMSGSIZE):
        client.add_match(*[rule] * (room // 24), rule, cookie=2)
    for command in (layout.LIST, layout.RECV, layout.UPDATE, layout.BYEBYE):
        with refused(EMSGSIZE):
            client.command(command, size=layout.MAX_COMMAND_SIZE + 1)


def test_a_policy_has_as_many_names_as_fit_into_a_command(world: World) -> None:
    endpoint = world.open()
    endpoint.endpoint_make("1000-custom")
    room = layout.MAX_COMMAND_SIZE - layout.ENDPOINT_UPDATE.size
    entries = [name(f"a.n{n:04}") for n in range(room // 24)]
    endpoint.endpoint_update(*entries)
    with refused(EMSGSIZE):
        endpoint.endpoint_update(*entries, name("a.b"))


def test_a_policy_holder_has_one_name(world: World) -> None:
    holder = world.connect_holder("a.b", access(WORLD, OWN))
    with refused(E2BIG):
        holder.update(name("a.b"), access(WORLD, OWN), name("a.c"))
    with refused(EINVAL):
        world.connect(None, name("a.c"), name("a.d"), flags=layout.Hello.POLICY_HOLDER)
    world.connect(world.task(NOBODY)).name_acquire("a.b")


@pytest.mark.parametrize("size", [0, 1, 4095, 4097, 2**63 + 1])
def test_a_pool_is_made_of_pages(world: World, size: int) -> None:
    with refused(EINVAL):
        world.connect(pool_size=size)
    client = world.connect(pool_size=layout.PAGE)
    assert client.pool.busy == 0


def test_a_pool_of_one_page_can_be_used_up_and_emptied(world: World) -> None:
    client = world.connect(pool_size=layout.PAGE)
    count = repeat_until(EXFULL, lambda: client.list_records(keep=True))
    assert count == layout.PAGE // layout.INFO_SIZE
    for offset in list(client.unfreed):
        client.free(offset)
    assert client.pool.busy == 0
    client.list_records()


def test_a_description_is_a_node_name(world: World) -> None:
    for wrong in ("-x", "x-", ".x", "x.", "a b", "a/b", "\u00e4"):
        with refused(EINVAL):
            world.connect(None, string(ItemType.CONN_DESCRIPTION, wrong), description=None)
    world.connect(description="a.b-c_D9")
