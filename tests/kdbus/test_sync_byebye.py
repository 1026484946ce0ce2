"""BYEBYE while a call waits: the caller's own ends it, and so does the callee's, each in its own way."""

from __future__ import annotations

from errno import EAGAIN, EBADSLT, EBUSY, ENXIO, EPIPE, ESHUTDOWN

import pytest
from support.kdbus import Client, ItemType, World, refused

COOKIE = 0xDEADBEEF


@pytest.fixture
def callee(world: World) -> Client:
    return world.connect()


@pytest.fixture
def caller(world: World) -> Client:
    return world.connect()


def test_a_caller_who_leaves_is_no_longer_waiting(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE, timeout_ms=5000)
    assert callee.recv_poll(3000).cookie == COOKIE
    with refused(EAGAIN):
        callee.recv()
    assert not call.is_done
    caller.byebye()
    with refused(ESHUTDOWN):
        call.result()
    with refused(ENXIO):
        callee.reply(caller, COOKIE)


def test_a_callee_who_leaves_breaks_the_call(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE, timeout_ms=5000)
    assert callee.recv_poll(3000).cookie == COOKIE
    assert not call.is_done
    callee.byebye()
    with refused(EPIPE):
        call.result()
    with refused(EAGAIN):  # nobody is told of it a second time
        caller.recv()


def test_a_callee_with_the_call_unread_cannot_leave(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE)
    with refused(EBUSY):
        callee.byebye()
    assert not call.is_done
    callee.recv()
    callee.reply(caller, COOKIE)
    assert call.result().cookie_reply == COOKIE


def test_a_caller_who_closes_is_no_longer_waiting(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE)
    callee.recv()
    caller.close()
    assert call.call is not None
    assert (call.call.done, call.call.errno) == (True, ESHUTDOWN)
    with refused(ENXIO):
        callee.reply(caller, COOKIE)


def test_a_callee_that_is_called_to_itself_can_leave(caller: Client) -> None:
    call = caller.call(caller, cookie=COOKIE)
    caller.recv()
    caller.byebye()
    with refused(ESHUTDOWN):
        call.result()


def test_a_refused_byebye_leaves_the_callers_wait_alone(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE)
    callee.recv()
    callee.send_small(caller, cookie=1)
    with refused(EBUSY):
        caller.byebye()
    assert not call.is_done
    callee.reply(caller, COOKIE)
    assert call.result().cookie_reply == COOKIE
    assert [message.cookie for message in caller.drain()] == [1]


def test_of_several_calls_all_end(world: World, caller: Client, callee: Client) -> None:
    other = world.connect()
    calls = [caller.call(to, cookie=cookie) for to, cookie in ((callee, 1), (callee, 2), (other, 1))]
    for client in (callee, other):
        client.drain()
    callee.byebye()
    for call in calls[:2]:
        with refused(EPIPE):
            call.result()
    assert not calls[2].is_done
    caller.byebye()
    with refused(ESHUTDOWN):
        calls[2].result()


def test_the_end_of_the_bus_ends_a_call(world: World, caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=COOKIE)
    world.maker.close()
    assert call.call is not None
    assert call.call.done
    assert call.call.errno in (ESHUTDOWN, EPIPE)  # whichever of the two goes first


def test_an_asynchronous_request_is_answered_by_the_news_of_the_death(caller: Client, callee: Client) -> None:
    call = caller.call(callee, cookie=1)
    caller.send_small(callee, cookie=2, flags=1, timeout_ms=5000)
    callee.drain()
    callee.byebye()
    with refused(EPIPE):
        call.result()
    (notice,) = caller.drain()
    assert (notice.kind, notice.cookie_reply) == (ItemType.REPLY_DEAD, 2)
    with refused(EBADSLT):
        caller.reply(caller, 2)
