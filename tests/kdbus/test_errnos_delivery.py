"""Why a good message is not delivered, and how a synchronous call ends without a reply."""

from __future__ import annotations

from errno import ECOMM, EMFILE, ENOBUFS, EXFULL

import pytest
from support.kdbus import (
    NOBODY,
    Client,
    ItemType,
    Msg,
    Name,
    Refused,
    World,
    layout,
    refused,
    repeat_until,
)
from support.kdbus.layout import PAGE, SYNC_REPLY, TALK, WORLD, access, fds

from kdbus_core.errors import KdbusError

from .errno_provoking import provokes

NAME = "foo.bar"
COOKIE = 7
REQUEST = Msg.EXPECT_REPLY
SHARE = 2 * PAGE // 2 // 3
"""What one user may have waiting in a pool of two pages."""
HEADERS = 64 + 32
"""Bytes of a message with one vector, besides the payload."""
FILL = 1264
"""The largest payload of a message that is within the share."""
assert FILL + HEADERS <= SHARE < FILL + HEADERS + 8


@pytest.fixture
def client(world: World) -> Client:
    return world.connect()


@pytest.fixture
def peer(world: World) -> Client:
    return world.connect()


@pytest.fixture
def small(world: World) -> Client:
    """Somebody with a pool of two pages."""
    return world.connect(pool_size=2 * PAGE, attach_recv=0)


def send_bytes(sender: Client, receiver: Client, count: int, cookie_reply: int = 0) -> None:
    """Send so many bytes, or nothing but a header."""
    items = [sender.vec(bytes(count))] if count else []
    sender.send_items(*items, dst=receiver, cookie_reply=cookie_reply)


def fill_pool(owner: Client, count: int) -> None:
    """Receive messages of so many bytes, and free none, until there is no room for another."""

    def receive() -> None:
        send_bytes(owner, owner, count)
        owner.recv(keep=True)

    assert repeat_until(EXFULL, receive)


def send_fds(sender: Client, receiver: Client, count: int, cookie_reply: int = 0) -> None:
    null = fds([sender.task.open_null()] * count)
    sender.send_items(null, dst=receiver, cookie_reply=cookie_reply)


# Who it is for


@provokes("SEND", "ETIMEDOUT", "SYNC_REPLY and a deadline that has passed; nothing is sent")
@pytest.mark.parametrize("timeout", [0, -1])
@pytest.mark.parametrize("there", [False, True])
def test_a_call_that_is_late(client: Client, peer: Client, timeout: int, there: bool) -> None:
    client.call(peer if there else 9999, timeout_ms=timeout)


@provokes("SEND", "ESRCH", "DST_NAME has neither an owner nor an activator")
@pytest.mark.parametrize("dst", [0, 9999])
@pytest.mark.parametrize("kind", ["message", "request", "reply", "signal", "call"])
def test_to_a_free_name(client: Client, dst: int, kind: str) -> None:
    match kind:
        case "message":
            client.send_small(dst, name=NAME)
        case "request":
            client.send_small(dst, name=NAME, flags=REQUEST, timeout_ms=100)
        case "reply":
            client.send_small(dst, name=NAME, cookie_reply=COOKIE)
        case "signal":
            client.signal(layout.string(ItemType.DST_NAME, NAME), dst=dst)
        case _:
            client.call(dst, name=NAME)


@provokes("SEND", "EREMCHG", "DST_NAME is owned by another connection than dst_id")
@pytest.mark.parametrize("holder", ["owner", "activator", "waiting"])
def test_to_a_name_that_moved(world: World, client: Client, peer: Client, holder: str) -> None:
    match holder:
        case "owner":
            client.name_acquire(NAME)
        case "activator":
            world.connect_activator(NAME)
        case _:
            client.name_acquire(NAME)
            peer.name_acquire(NAME, Name.QUEUE)
    client.send_small(peer, name=NAME)


@provokes("SEND", "EADDRNOTAVAIL", "NO_AUTO_START, and DST_NAME has only an activator")
@pytest.mark.parametrize("pinned", [False, True])
def test_to_a_name_that_does_not_run(world: World, client: Client, pinned: bool) -> None:
    activator = world.connect_activator(NAME)
    client.send_small(activator if pinned else 0, name=NAME, flags=Msg.NO_AUTO_START)


@provokes("SEND", "ENXIO", "nobody has the id dst_id")
@pytest.mark.parametrize("id", [9999, 2**64 - 2, None])
def test_to_an_id_of_nobody(client: Client, peer: Client, id: int | None) -> None:
    peer.close()
    client.send_small(peer if id is None else id)


@provokes("SEND", "ENXIO", "dst_id is a monitor, an activator or a policy holder")
@pytest.mark.parametrize("kind", ["monitor", "activator", "holder"])
def test_to_the_id_of_somebody_special(world: World, client: Client, kind: str) -> None:
    match kind:
        case "monitor":
            special = world.connect_monitor()
        case "activator":
            special = world.connect_activator(NAME)
        case _:
            special = world.connect_holder(NAME, access(WORLD, TALK))
    client.send_small(special)


@provokes("SEND", "EPERM", "no policy lets the sender talk to the receiver")
@pytest.mark.parametrize("level", [None, layout.SEE])
@pytest.mark.parametrize("where", ["default", "custom"])
def test_to_somebody_else(world: World, client: Client, level: int | None, where: str) -> None:
    client.name_acquire(NAME)
    grants = [] if level is None else [layout.name(NAME), access(WORLD, level)]
    if where == "default":
        world.connect_holder(NAME, *grants[1:])
        world.connect(world.task(NOBODY)).send_small(client)
    world.connect_holder(NAME, access(WORLD, TALK))
    _, custom = world.make_endpoint("1000-blah", *grants)
    world.connect(node=custom).send_small(client)


# Requests and replies


@provokes("SEND", "EMLINK", "the sender has 128 requests outstanding")
@pytest.mark.parametrize("flags", [0, SYNC_REPLY])
def test_a_request_too_many(client: Client, peer: Client, flags: int) -> None:
    for cookie in range(128):
        client.send_small(peer, cookie=cookie, flags=REQUEST, timeout_ms=100)
    client.send_items(dst=peer, flags=REQUEST, timeout_ms=100, command_flags=flags)


@provokes("SEND", "EXFULL", "EXPECT_REPLY, and the sender's pool has no room to say that no reply will come")
def test_a_request_that_could_not_be_told_of_its_end(small: Client, peer: Client) -> None:
    fill_pool(small, 0)
    small.send_small(peer, flags=REQUEST, timeout_ms=100)


@provokes("SEND", "EBADSLT", "a reply without an open request of the receiver to the sender with this cookie")
@pytest.mark.parametrize(
    "what", ["none", "another cookie", "another replier", "another requester", "answered", "late", "dropped"]
)
def test_a_reply_to_nothing(world: World, client: Client, peer: Client, what: str) -> None:
    replier, requester = peer, client
    if what != "none":
        client.send_small(peer, cookie=8 if what == "another cookie" else 7, flags=REQUEST, timeout_ms=100)
    match what:
        case "another replier":
            replier = world.connect()
        case "another requester":
            requester = world.connect()
        case "answered":
            peer.reply(client, COOKIE)
        case "late":
            world.advance(100)
        case "dropped":
            peer.drop()
    replier.reply(requester, COOKIE)


# Room


@provokes("SEND", "ECOMM", "FDS, and the receiver did not say ACCEPT_FD")
@pytest.mark.parametrize("kind", ["message", "request", "reply"])
def test_descriptors_to_somebody_who_takes_none(world: World, client: Client, kind: str) -> None:
    deaf = world.connect(accept_fd=False)
    null = fds([client.task.open_null()])
    match kind:
        case "message":
            client.send_items(null, dst=deaf)
        case "request":
            client.send_items(null, dst=deaf, flags=REQUEST, timeout_ms=100)
        case _:
            deaf.send_small(client, cookie=COOKIE, flags=REQUEST, timeout_ms=100)
            client.send_items(null, dst=deaf, cookie_reply=COOKIE)


@provokes("SEND", "ENOBUFS", "the sender's user would have more than its share of the receiver's pool")
@pytest.mark.parametrize("counts", [[FILL + 8], [FILL, 0], [600, 600]])
def test_more_than_a_share(world: World, small: Client, counts: list[int]) -> None:
    for count in counts:
        send_bytes(world.connect(), small, count)


@provokes("SEND", "ENOBUFS", "the sender's user has 256 messages waiting at the receiver")
def test_too_many_messages(world: World, client: Client, peer: Client) -> None:
    for _ in range(255):
        client.send_items(dst=peer)
    world.connect().send_items(dst=peer)  # of the same user
    client.send_items(dst=peer)


@provokes("SEND", "EMFILE", "the sender's user would have more than 16 descriptors waiting at the receiver")
def test_too_many_descriptors_on_their_way(world: World, client: Client, peer: Client) -> None:
    send_fds(client, peer, 15)
    with refused(EMFILE):
        send_fds(client, peer, 2)
    send_fds(world.connect(), peer, 1)
    send_fds(client, peer, 1)


@provokes("SEND", "EXFULL", "the receiver's pool has no free slice as large as the message")
def test_a_pool_that_is_full(client: Client, small: Client) -> None:
    fill_pool(small, FILL)
    send_bytes(client, small, FILL)


# How a synchronous call ends


@provokes("SEND", "ETIMEDOUT", "SYNC_REPLY and the deadline passes")
@pytest.mark.parametrize("is_read", [False, True])
def test_a_call_that_is_not_answered(world: World, client: Client, peer: Client, is_read: bool) -> None:
    call = client.call(peer, timeout_ms=100)
    if is_read:
        peer.recv()
    world.advance(99)
    assert not call.is_done
    world.advance(1)
    call.result()


@provokes("SEND", "ECANCELED", "SYNC_REPLY and CANCEL_FD becomes readable")
@pytest.mark.parametrize("early", [False, True])
def test_a_call_whose_canceller_is_readable(client: Client, peer: Client, early: bool) -> None:
    eventfd = client.task.open_eventfd()
    if early:
        client.task.signal(eventfd)
    call = client.call(peer, cancel_fd=eventfd)
    assert not call.is_done
    client.task.signal(eventfd)
    call.result()


@provokes("SEND", "ECANCELED", "SYNC_REPLY and MSG_CANCEL names the cookie")
def test_a_call_that_is_cancelled(client: Client, peer: Client) -> None:
    call = client.call(peer, cookie=COOKIE)
    client.msg_cancel(COOKIE)
    call.result()


@provokes("SEND", "EINTR", "SYNC_REPLY and a signal ends the wait; the same SEND again goes on waiting")
@pytest.mark.parametrize("times", [1, 2])
def test_a_call_that_is_interrupted(client: Client, peer: Client, times: int) -> None:
    for _ in range(times):
        call = client.call(peer, cookie=COOKIE)
        call.interrupt()
    assert len(peer.drain()) == 1
    call.result()


@provokes("SEND", "ESHUTDOWN", "SYNC_REPLY and the caller's own connection ends")
@pytest.mark.parametrize("how", ["BYEBYE", "close", "bus"])
def test_a_call_of_somebody_who_leaves(world: World, client: Client, peer: Client, how: str) -> None:
    call = client.call(peer)
    match how:
        case "BYEBYE":
            client.byebye()
        case "close":
            client.close()
        case _:
            world.maker.close()
    call.result()


@provokes("SEND", "EPIPE", "SYNC_REPLY and the replier ends, or drops the request")
@pytest.mark.parametrize("how", ["close", "BYEBYE", "DROP"])
def test_a_call_to_somebody_who_leaves(client: Client, peer: Client, how: str) -> None:
    call = client.call(peer)
    match how:
        case "close":
            peer.close()
        case "BYEBYE":
            peer.recv()
            peer.byebye()
        case _:
            peer.drop()
    call.result()


@provokes("SEND", "EREMOTEIO", "SYNC_REPLY and the reply has FDS, but the caller did not say ACCEPT_FD")
def test_a_call_answered_with_descriptors_that_are_not_taken(world: World, peer: Client) -> None:
    deaf = world.connect(accept_fd=False)
    call = deaf.call(peer, cookie=COOKIE)
    with refused(ECOMM):
        send_fds(peer, deaf, 1, COOKIE)
    call.result()


@provokes("SEND", "ENOBUFS", "SYNC_REPLY and the reply is beyond the replier's share of the caller's pool")
def test_a_call_answered_with_too_much(small: Client, peer: Client) -> None:
    call = small.call(peer, cookie=COOKIE)
    with refused(ENOBUFS):
        peer.reply(small, COOKIE)
    call.result()


@provokes(
    "SEND", "EMFILE", "SYNC_REPLY and the reply would be beyond 16 waiting descriptors of the replier's user"
)
def test_a_call_answered_with_too_many_descriptors(client: Client, peer: Client) -> None:
    call = client.call(peer, cookie=COOKIE)
    send_fds(peer, client, 16)
    with refused(EMFILE):
        send_fds(peer, client, 1, COOKIE)
    call.result()


@provokes("SEND", "EXFULL", "SYNC_REPLY and the caller's pool has no free slice as large as the reply")
def test_a_call_answered_into_a_full_pool(small: Client, peer: Client) -> None:
    fill_pool(small, FILL)
    call = small.call(peer, cookie=COOKIE)
    with refused(EXFULL):
        send_bytes(peer, small, FILL, COOKIE)
    call.result()


@provokes("SEND", "EFAULT", "SYNC_REPLY and the place of the result can no longer be written")
def test_a_call_whose_memory_has_gone(client: Client, peer: Client) -> None:
    memory = client.task.memory
    message = memory.allocate(client.build_message(dst=peer, cookie=COOKIE, flags=REQUEST, timeout_ms=100))
    address = memory.allocate(layout.SEND.build(SYNC_REPLY, layout.SEND.size, {"msg_address": message}))
    call = client.ioctl(layout.SEND.request, address)
    assert call is not None
    memory.release(address)
    peer.reply(client, COOKIE)
    assert call.done
    raise Refused(KdbusError(call.errno, "the call failed"))
