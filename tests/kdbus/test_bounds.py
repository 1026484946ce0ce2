"""What one user can make the broker hold: sizes of pools, bytes of masks, lengths of lists."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EINVAL, EMFILE, EXFULL

import pytest
from support.kdbus import NOBODY, Client, List, World, layout, refused, repeat_until
from support.kdbus.layout import bloom_mask

from kdbus_core.connection import Connection
from kdbus_core.domain import Domain
from kdbus_core.pool import CHUNK_SIZE, KEPT_CHUNKS, LazyMemory

MAX_POOL = 1024 * 1024 * 1024
MAX_MASK_BYTES = 4096 * 4096
ROOM_FOR_MASK = layout.MAX_COMMAND_SIZE - layout.MATCH_ADD.size - 16
GENERATIONS = ROOM_FOR_MASK // layout.BLOOM_SIZE
LARGE_MASK = bloom_mask(*[bytes(layout.BLOOM_SIZE)] * GENERATIONS)
MOST_LARGE_MASKS = MAX_MASK_BYTES // (GENERATIONS * layout.BLOOM_SIZE)


# Pools


def test_a_pool_has_1_gib_at_most(world: World) -> None:
    nobody = world.task(NOBODY)
    assert world.connect(nobody, pool_size=MAX_POOL).pool.size == MAX_POOL
    for size in (MAX_POOL + layout.PAGE, 1 << 62, (1 << 64) - layout.PAGE):
        with refused(EINVAL):
            world.connect(nobody, pool_size=size)


@pytest.mark.parametrize("privileged", [False, True])
def test_a_domain_says_how_large_its_pools_may_be(world: World, *, privileged: bool) -> None:
    task = world.task(2000, privileged=privileged)
    world.domain.max_pool_size = 4 * layout.PAGE
    world.connect(task, pool_size=4 * layout.PAGE)
    with refused(EINVAL):
        world.connect(task, pool_size=5 * layout.PAGE)


def test_domains_in_a_domain_have_its_limit(world: World) -> None:
    root = world.task(0, privileged=True)
    small = Domain(bytes, max_pool_size=layout.PAGE)
    world.open(small, root).domain_make("inner")
    world.open(small.domains["inner"], root).bus_make(name="0-bus")
    endpoint = small.domains["inner"].buses["0-bus"].endpoint
    world.connect(root, node=endpoint, pool_size=layout.PAGE)
    with refused(EINVAL):
        world.connect(root, node=endpoint, pool_size=2 * layout.PAGE)


def memory_of(client: Client) -> LazyMemory:
    """What the client's pool takes in the broker."""
    memory = client.pool.memory
    assert isinstance(memory, LazyMemory)
    return memory


def test_memory_of_an_emptied_pool_is_given_back(world: World) -> None:
    client = world.connect()
    for _ in range(6):
        client.send(client)
    assert len(memory_of(client)) >= 6 * 128 * 1024
    first, *others = [client.recv(keep=True).offset for _ in range(6)]
    for offset in others:
        client.free(offset)
    assert len(memory_of(client)) >= 6 * 128 * 1024, "one slice is still the client's"
    client.free(first)
    assert len(memory_of(client)) <= KEPT_CHUNKS * CHUNK_SIZE


def test_a_pool_that_was_emptied_can_be_filled_again(world: World) -> None:
    client = world.connect()
    for _ in range(2):
        for _ in range(6):
            client.send(client)
        payloads = {message.payload[: layout.PAGE] for message in client.drain()}
        assert len(payloads) == 1
    assert client.pool.busy == 0


def test_memory_that_was_never_more_than_a_little_is_kept() -> None:
    memory = LazyMemory()
    memory.write(0, b"x" * KEPT_CHUNKS * CHUNK_SIZE)
    memory.trim()
    assert len(memory) == KEPT_CHUNKS * CHUNK_SIZE
    memory.write(KEPT_CHUNKS * CHUNK_SIZE, b"x")
    memory.trim()
    assert len(memory) == KEPT_CHUNKS * CHUNK_SIZE


# Masks


@pytest.fixture
def full(world: World) -> Client:
    """A connection whose masks, under the cookies from 0, leave no room for another large one."""
    client = world.connect(world.task(NOBODY))
    for cookie in range(MOST_LARGE_MASKS):
        client.add_match(LARGE_MASK, cookie=cookie)
    return client


def test_masks_of_a_connection_have_16_mib(full: Client) -> None:
    rest = MAX_MASK_BYTES - MOST_LARGE_MASKS * GENERATIONS * layout.BLOOM_SIZE
    with refused(EMFILE):
        full.add_match(LARGE_MASK, cookie=5000)
    fitting = bloom_mask(*[bytes(layout.BLOOM_SIZE)] * (rest // layout.BLOOM_SIZE))
    full.add_match(fitting, cookie=5000)
    with refused(EMFILE):
        full.add_match(bloom_mask(bytes(layout.BLOOM_SIZE)), cookie=5001)
    full.add_match(cookie=5001)  # without a mask there is room


def test_several_masks_of_one_match_count_together(full: Client) -> None:
    full.remove_match(0)
    one = bytes(layout.BLOOM_SIZE)
    half = GENERATIONS // 2 + 1
    full.add_match(bloom_mask(*[one] * (GENERATIONS - half)), bloom_mask(*[one] * (half - 2)), cookie=0)
    with refused(EMFILE):
        full.add_match(LARGE_MASK, cookie=5000)


def test_a_removed_match_gives_its_masks_back(full: Client) -> None:
    full.remove_match(3)
    full.add_match(LARGE_MASK, cookie=3)
    with refused(EMFILE):
        full.add_match(LARGE_MASK, cookie=3)


def test_a_replaced_match_gives_its_masks_back(full: Client) -> None:
    full.add_match(LARGE_MASK, cookie=3, flags=layout.MATCH_REPLACE)


def test_a_refused_match_counts_nothing(full: Client) -> None:
    before = full.connection.mask_bytes
    for _ in range(3):
        with refused(EMFILE):
            full.add_match(LARGE_MASK, cookie=5000)
    assert full.connection.mask_bytes == before


def test_masks_of_others_leave_the_room_as_it_is(world: World, full: Client) -> None:
    world.connect(full.task).add_match(LARGE_MASK)


def test_a_connection_that_goes_gives_its_masks_back(full: Client) -> None:
    connection = full.connection
    full.byebye()
    assert connection.mask_bytes == 0


# Lists


class CountedConnections(dict[int, Connection]):
    """The connections of a bus; counts how many were looked at one after the other."""

    looked_at = 0

    def values(self) -> Iterator[Connection]:  # type: ignore[override] # as much of a view as a loop needs
        for connection in super().values():
            self.looked_at += 1
            yield connection


@pytest.mark.parametrize("flags", [List.UNIQUE, layout.LIST_ALL])
def test_a_list_ends_where_the_pool_does(world: World, flags: int) -> None:
    fitting = layout.PAGE // layout.INFO_SIZE
    reader = world.connect(pool_size=layout.PAGE)
    for _ in range(fitting - 1):
        world.connect(pool_size=layout.PAGE)
    assert len(reader.list_records(flags)) == fitting
    for _ in range(fitting):
        world.connect(pool_size=layout.PAGE)
    connections = world.bus.connections = CountedConnections(world.bus.connections)
    with refused(EXFULL):
        reader.list_records(flags)
    assert connections.looked_at == fitting + 1
    assert reader.pool.busy == 0


def test_a_list_of_names_ends_where_the_pool_does(world: World) -> None:
    """One connection's names are all looked at, those of the next ones are not."""
    reader = world.connect(pool_size=layout.PAGE)
    for number in range(4):
        owner = world.connect()
        for name in range(100):
            owner.name_acquire(f"a.n{number}.n{name}")
    connections = world.bus.connections = CountedConnections(world.bus.connections)
    with refused(EXFULL):
        reader.list_records(List.NAMES)
    assert connections.looked_at == 2


def test_what_is_in_the_pool_already_leaves_less_for_a_list(world: World) -> None:
    reader = world.connect(pool_size=layout.PAGE)
    for _ in range(50):
        world.connect(pool_size=layout.PAGE)
    assert repeat_until(EXFULL, lambda: reader.list_records(keep=True)) == layout.PAGE // (
        51 * layout.INFO_SIZE
    )
