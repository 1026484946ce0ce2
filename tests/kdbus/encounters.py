"""Strangers meet: what two sides see of one attempt to talk.

Each function plays a scene between a connection and a task of another user, and returns how it went for
both as two errnos, the connection's first; 0 means that everything arrived.
"""

from __future__ import annotations

from collections.abc import Callable

from support.kdbus import Client, Refused, Task

COOKIE = 0xC0FFEE00


def errno_of(command: Callable[[], object]) -> int:
    """0 for a command that is done, else why it was refused."""
    try:
        command()
    except Refused as error:
        return error.errno
    return 0


def listen(client: Client, cookie: int, timeout_ms: int) -> int:
    """Wait for a message, which has to be this one: 0, or ETIMEDOUT."""

    def receive() -> None:
        message = client.recv_poll(timeout_ms)
        assert message.cookie == cookie
        message.close_fds()

    return errno_of(receive)


def send_by_id(dst: Client, task: Task) -> tuple[int, int]:
    """Somebody new sends to a connection, which waits 300 ms."""
    stranger = dst.world.connect(task)
    sent = errno_of(lambda: stranger.send(dst, cookie=COOKIE))
    received = listen(dst, COOKIE, 300)
    stranger.close()
    return received, sent


def exchange_broadcasts(dst: Client, task: Task, *, peer_task: Task | None = None) -> tuple[int, int]:
    """A listener of `task` waits for the broadcast of a peer, then broadcasts itself, always with success.

    The peer is `dst`, which has nothing queued, or somebody new of `peer_task`; it hears its own broadcast,
    then waits for the listener's.
    """
    world = dst.world
    listener = world.connect(task)
    listener.add_match_empty()
    peer = dst
    if peer_task is not None:
        peer = world.connect(peer_task)
        peer.add_match_empty()
    peer.broadcast(COOKIE)
    assert listen(peer, COOKIE, 0) == 0
    heard = listen(listener, COOKIE, 500)
    listener.broadcast(COOKIE + 1)
    told = listen(peer, COOKIE + 1, 1000)
    listener.close()
    if peer is not dst:
        peer.close()
    return told, heard
