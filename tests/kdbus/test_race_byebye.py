"""BYEBYE at the same time as something else: commands come one after the other, so both orders are tried."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADSLT, ESHUTDOWN
from itertools import permutations

import pytest
from support.kdbus import Client, Msg, World, layout

from .encounters import errno_of

COOKIE = 0xDEADBEEF


def outcomes(*commands: Callable[[], object]) -> list[int]:
    """How each command went, in this order."""
    return [errno_of(command) for command in commands]


@pytest.fixture
def client(world: World) -> Client:
    return world.connect()


@pytest.mark.parametrize("order", list(permutations(range(2))))
def test_of_two_who_leave_one_does(world: World, client: Client, order: tuple[int, ...]) -> None:
    threads = [client, client.share(world.task())]
    assert outcomes(*(threads[number].byebye for number in order)) == [0, ESHUTDOWN]


@pytest.mark.parametrize("has_match", [True, False])
def test_leaving_and_removing_a_match(world: World, *, has_match: bool) -> None:
    for leaves_first in (True, False):
        client = world.connect()
        if has_match:
            client.add_match(cookie=COOKIE)
        other = client.share(world.task())

        def remove(thread: Client = other) -> None:
            thread.remove_match(COOKIE)

        if leaves_first:
            assert outcomes(client.byebye, remove) == [0, ESHUTDOWN]
        else:
            assert outcomes(remove, client.byebye) == [0 if has_match else EBADSLT, 0]


def test_after_leaving_no_command_of_another_thread_goes_through(world: World, client: Client) -> None:
    peer = world.connect()
    thread = client.share(world.task())
    client.byebye()
    commands: list[Callable[[], object]] = [
        thread.byebye,
        thread.recv,
        thread.list_records,
        lambda: thread.send(peer),
        lambda: thread.call(peer),
        lambda: thread.conn_info(peer),
        lambda: thread.creator_info(0),
        lambda: thread.name_acquire("foo.bar"),
        lambda: thread.name_release("foo.bar"),
        lambda: thread.add_match(),
        lambda: thread.update(),
        lambda: thread.free(0),
        lambda: thread.msg_cancel(1),
        lambda: thread.command(layout.LIST, flags=layout.NEGOTIATE),
    ]
    assert outcomes(*commands) == [ESHUTDOWN] * len(commands)


@pytest.mark.parametrize("replies_first", [True, False])
def test_leaving_and_answering_are_one_outcome(world: World, client: Client, *, replies_first: bool) -> None:
    replier = world.connect()
    client.send_small(replier, cookie=COOKIE, flags=Msg.EXPECT_REPLY, timeout_ms=5000)
    replier.recv()
    steps: list[Callable[[], object]] = [lambda: replier.reply(client, COOKIE), replier.byebye]
    if replies_first:
        assert outcomes(*steps) == [0, 0]
    else:
        assert outcomes(*reversed(steps)) == [0, ESHUTDOWN]
    (outcome,) = client.drain()
    assert outcome.cookie_reply == COOKIE
    assert outcome.is_notification != replies_first
