"""File descriptors in messages: which may be passed, to whom, and how many."""

from __future__ import annotations

from errno import (
    E2BIG,
    EAGAIN,
    EBADF,
    ECOMM,
    EFAULT,
    EINVAL,
    EMEDIUMTYPE,
    EMFILE,
    EMSGSIZE,
    ENOTUNIQ,
    EOPNOTSUPP,
    EREMOTEIO,
    ETIMEDOUT,
    ETXTBSY,
)

import pytest
from support.kdbus import Client, ItemType, Msg, World, layout, refused
from support.kdbus.layout import DST_BROADCAST, F_SEAL_ALL, INCOMPLETE_FDS, bloom_filter, fds, memfd

SECRET = b"stackenblocken"
SMALL = b"memfd..."
COOKIE = 0x1234ABCD5678EEFF


@pytest.fixture
def pair(world: World) -> tuple[Client, Client]:
    """Two connections of different tasks, which take file descriptors."""
    return world.connect(world.task()), world.connect(world.task())


@pytest.fixture
def deaf(world: World) -> Client:
    """A connection that takes no file descriptors."""
    return world.connect(world.task(), accept_fd=False, attach_recv=0)


def open_nulls(client: Client, count: int) -> list[int]:
    return [client.task.open_null() for _ in range(count)]


def open_memfds(client: Client, count: int) -> bytes:
    """Items of that many memfds."""
    return b"".join(memfd(client.task.open_memfd(SMALL), len(SMALL)) for _ in range(count))


# Which


def test_a_handle_of_the_bus_is_not_passed(pair: tuple[Client, Client]) -> None:
    source, target = pair
    handles = [source.fd, source.task.adopt(target.task, target.fd)]
    for receiver in (target, source):
        with refused(EOPNOTSUPP):
            source.send_items(fds(handles), dst=receiver, src=source.id)
    with refused(EOPNOTSUPP):
        target.send_items(fds([target.fd]), dst=source)


def test_a_control_handle_is_not_passed(world: World, pair: tuple[Client, Client]) -> None:
    source, target = pair
    with refused(EOPNOTSUPP):
        source.send_items(fds([world.open_control(source.task).fd]), dst=target)


def test_a_unix_socket_is_not_passed(pair: tuple[Client, Client]) -> None:
    source, target = pair
    with refused(EOPNOTSUPP):
        source.send_items(fds([source.task.open_socket() for _ in range(2)]), dst=target)


def test_a_descriptor_opened_as_a_path_is_passed(pair: tuple[Client, Client]) -> None:
    source, target = pair
    source.send_items(fds([source.task.open_path()]), dst=target)
    assert len(target.recv().fds) == 1


@pytest.mark.parametrize("fd", [-1, 99])
def test_a_descriptor_that_is_not_open_is_refused(pair: tuple[Client, Client], fd: int) -> None:
    source, target = pair
    with refused(EBADF):
        source.send_items(fds([source.task.open_null(), fd]), dst=target)
    with refused(EBADF):
        source.send_items(memfd(fd, 8), dst=target)


def test_a_file_that_is_no_shared_memory_is_no_payload(pair: tuple[Client, Client]) -> None:
    source, target = pair
    with refused(EMEDIUMTYPE):
        source.send_items(memfd(source.task.open_null(), 8), dst=target)


@pytest.mark.parametrize("seals", [F_SEAL_ALL & ~seal for seal in (1, 2, 4, 8)] + [0])
def test_shared_memory_that_may_still_change_is_no_payload(pair: tuple[Client, Client], seals: int) -> None:
    source, target = pair
    with refused(ETXTBSY):
        source.send_items(memfd(source.task.open_memfd(SMALL, seals), 8), dst=target)


@pytest.mark.parametrize(("start", "size"), [(0, 9), (1, 8), (8, 1), (2**40, 1)])
def test_a_payload_beyond_the_end_of_its_file_is_refused(
    pair: tuple[Client, Client], start: int, size: int
) -> None:
    source, target = pair
    with refused(EFAULT):
        source.send_items(memfd(source.task.open_memfd(SMALL), size, start), dst=target)


def test_a_payload_that_fits_into_no_file_is_refused(pair: tuple[Client, Client]) -> None:
    source, target = pair
    with refused(EMSGSIZE):
        source.send_items(memfd(source.task.open_memfd(SMALL), 1, 2**64 - 1), dst=target)


def test_a_part_of_a_memfd_is_a_payload(pair: tuple[Client, Client]) -> None:
    source, target = pair
    source.send_items(memfd(source.task.open_memfd(SMALL), 3, 2), dst=target)
    assert target.recv().payload == SMALL[2:5]


def test_an_item_without_descriptors_is_legal(pair: tuple[Client, Client]) -> None:
    source, target = pair
    source.send_items(fds([]), dst=target)
    assert target.recv().fds == []


def test_a_message_without_any_payload_is_legal(pair: tuple[Client, Client]) -> None:
    source, target = pair
    source.send_items(dst=target, cookie=5)
    message = target.recv()
    assert (message.cookie, message.payload) == (5, b"")


# To whom


def test_who_does_not_take_descriptors_gets_none(pair: tuple[Client, Client], deaf: Client) -> None:
    with refused(ECOMM):
        pair[0].send_items(fds([pair[0].task.open_null()]), dst=deaf)
    with refused(EAGAIN):
        deaf.recv()


def test_everybody_takes_memfds(pair: tuple[Client, Client], deaf: Client) -> None:
    source, _ = pair
    source.send_items(memfd(source.task.open_memfd(SMALL), len(SMALL)), dst=deaf)
    assert deaf.recv_poll(100).payload == SMALL


def test_descriptors_for_an_owner_who_takes_none_are_lost_when_the_name_moves(
    world: World, pair: tuple[Client, Client], deaf: Client
) -> None:
    source, _ = pair
    activator = world.connect_activator("foo.bar")
    null = source.task.open_null()
    source.send_items(layout.string(ItemType.DST_NAME, "foo.bar"), fds([null]), cookie=1)
    source.send_small(name="foo.bar", cookie=2)
    deaf.name_acquire("foo.bar")
    message = deaf.recv()
    assert (message.cookie, message.dropped) == (2, 1)
    assert not activator.is_readable
    assert source.task.description(null).references == 1


def test_a_call_with_descriptors_to_who_takes_none_is_refused(world: World, deaf: Client) -> None:
    other = world.connect(accept_fd=False, attach_recv=0)
    with refused(ECOMM):
        deaf.call(other, fds([deaf.task.open_null()]), timeout_ms=100)
    with refused(ETIMEDOUT):
        other.recv_poll(100)


def test_a_caller_who_takes_no_descriptors_learns_that_the_reply_had_some(
    pair: tuple[Client, Client], deaf: Client
) -> None:
    replier, _ = pair
    call = deaf.call(replier, cookie=COOKIE, timeout_ms=5000)
    assert replier.recv_poll(100).cookie == COOKIE
    with refused(ECOMM):
        replier.reply(deaf, COOKIE, fds([replier.task.open_pipe()[0]]))
    with refused(EREMOTEIO):
        call.result()
    replier.send(deaf, cookie=COOKIE + 1)
    assert deaf.recv_poll(100).cookie == COOKIE + 1


def test_a_reply_that_is_not_valid_leaves_the_call_waiting(pair: tuple[Client, Client], deaf: Client) -> None:
    replier, _ = pair
    call = deaf.call(replier, cookie=COOKIE)
    replier.recv()
    with refused(EOPNOTSUPP):
        replier.reply(deaf, COOKIE, fds([replier.task.adopt(deaf.task, deaf.fd)]))
    assert not call.is_done
    replier.reply(deaf, COOKIE)
    call.result()


def test_a_broadcast_carries_no_descriptors(pair: tuple[Client, Client]) -> None:
    source, _ = pair
    with refused(ENOTUNIQ):
        source.send_items(fds([source.task.open_null()]), bloom_filter(), dst=DST_BROADCAST, flags=Msg.SIGNAL)


def test_a_broadcast_may_carry_memfds(pair: tuple[Client, Client]) -> None:
    source, target = pair
    item = memfd(source.task.open_memfd(SMALL), len(SMALL))
    source.signal(item)
    target.add_match_empty()
    source.signal(item)
    assert target.recv().payload == SMALL
    with refused(EAGAIN):
        target.recv()


def test_the_end_of_a_pipe_can_be_passed_on_and_on(pair: tuple[Client, Client]) -> None:
    source, target = pair
    reader, writer = source.task.open_pipe()
    source.task.write_to(writer, SECRET)
    source.send_items(fds([reader]), dst=target)
    source.task.close(reader)
    (received,) = target.recv().fds
    assert target.task.read_from(received, 100) == SECRET
    source.task.close(writer)
    target.send_items(fds([received]), dst=source)
    (back,) = source.recv().fds
    assert source.task.read_from(back, 100) == b""
    source.task.close(back)
    with refused(EBADF):
        source.send_items(fds([back]), dst=target)


# How many


def test_a_message_carries_16_descriptors(pair: tuple[Client, Client]) -> None:
    source, target = pair
    nulls = open_nulls(source, 17)
    with refused(EMFILE):
        source.send_items(fds(nulls), dst=target)
    source.send_items(fds(nulls[:16]), dst=target)
    message = target.recv()
    assert len(set(message.fds)) == 16
    message.close_fds()


@pytest.mark.parametrize("count", [17, 129])
def test_a_message_carries_no_more_than_16_memfds(pair: tuple[Client, Client], count: int) -> None:
    source, target = pair
    with refused(E2BIG):
        source.send_items(open_memfds(source, count), dst=target)


def test_a_message_carries_16_memfds(pair: tuple[Client, Client]) -> None:
    source, target = pair
    source.send_items(open_memfds(source, 16), dst=target)
    message = target.recv()
    assert len(set(message.memfds)) == 16
    assert message.payload == 16 * SMALL


@pytest.mark.parametrize(
    ("descriptors", "memfds", "errno"), [(17, 10, EMFILE), (16, 128, E2BIG), (16, 17, E2BIG)]
)
def test_each_kind_has_its_own_limit(
    pair: tuple[Client, Client], descriptors: int, memfds: int, errno: int
) -> None:
    source, target = pair
    with refused(errno):
        source.send_items(fds(open_nulls(source, descriptors)), open_memfds(source, memfds), dst=target)
    with refused(EAGAIN):
        target.recv()


def test_of_the_descriptors_to_one_receiver_16_are_on_their_way(pair: tuple[Client, Client]) -> None:
    source, target = pair
    for _ in range(2):
        source.send_items(fds(open_nulls(source, 16)), open_memfds(source, 16), dst=target)
        message = target.recv()
        assert len(set(message.fds + message.memfds)) == 32
        message.close_fds()

    source.send_items(fds(open_nulls(source, 16)), open_memfds(source, 16), dst=target)
    for fd in source.task.fds():
        if fd != source.fd:
            source.task.close(fd)
    with refused(EMFILE):
        source.send_items(fds(open_nulls(source, 16)), dst=target)
    source.send_items(open_memfds(source, 16), dst=target)
    first, second = target.recv(), target.recv()
    assert len(set(first.fds + first.memfds)) == 32
    assert (len(second.fds), len(second.memfds)) == (0, 16)
    with refused(EAGAIN):
        target.recv()


def test_descriptors_on_their_way_are_counted_for_each_user(
    world: World, pair: tuple[Client, Client]
) -> None:
    source, target = pair
    source.send_items(fds(open_nulls(source, 16)), dst=target)
    root = world.connect(world.task(0, privileged=True))
    root.send_items(fds(open_nulls(root, 16)), dst=target)
    for message in target.drain():
        message.close_fds()


def test_what_no_longer_fits_into_the_table_is_lost_and_said_to_be(world: World) -> None:
    source = world.connect(world.task())
    target = world.connect(world.task(max_fds=3))
    source.send_items(fds(open_nulls(source, 3)), dst=target)
    message = target.recv()
    assert message.return_flags == INCOMPLETE_FDS
    assert [fd >= 0 for fd in message.fds] == [True, True, False]


def test_items_keep_their_order_and_places(pair: tuple[Client, Client]) -> None:
    source, target = pair
    source.send_items(
        fds(open_nulls(source, 1)), source.vec(b"one"), open_memfds(source, 1), source.vec(b"two"), dst=target
    )
    message = target.recv()
    assert message.kinds[:4] == [
        ItemType.FDS,
        ItemType.PAYLOAD_OFF,
        ItemType.PAYLOAD_MEMFD,
        ItemType.PAYLOAD_OFF,
    ]
    assert message.payload == b"one" + SMALL + b"two"


def test_an_empty_vector_is_refused(pair: tuple[Client, Client]) -> None:
    source, target = pair
    with refused(EINVAL):
        source.send_items(layout.vec_at(0, 0), dst=target)
    with refused(EINVAL):
        source.send_items(memfd(source.task.open_memfd(SMALL), 0), dst=target)
