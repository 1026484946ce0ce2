"""The poller: streams are served inside the loop's own waiting, and the loop still gets its turn.

Tests run on both loops, on asyncio's with the poller as its selector and on uvloop with the poller as one of
its descriptors. Echoing streams stand in for peers. Where a test waits, it waits for the event itself, with
a deadline that only a fault can reach.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from support.proxy import count_own_fds

from busproxy.transport.loop import new_event_loop
from busproxy.transport.poller import LoopSelector, Poller
from busproxy.transport.streams import Stream
from kdbus_core.quota import Quota, User

SOMEBODY = User(1)
PATIENCE_SECONDS = 20


class Echo:
    """A stream that answers with what it was sent, and does what else the test wants on data."""

    def __init__(self, poller: Poller, on_data: Callable[[bytes], None] = lambda data: None) -> None:
        ours, self.client = socket.socketpair()
        ours.settimeout(0)
        self.client.settimeout(PATIENCE_SECONDS)
        self.stream = Stream(ours, poller, self, Quota(1 << 24, 1 << 30, 0))
        self.then = on_data
        self.failures: list[Exception] = []

    def on_data(self, data: bytes | bytearray, fds: list[int]) -> None:
        self.then(bytes(data))
        self.stream.push(bytes(data), SOMEBODY)

    def on_lost(self, reason: str) -> None:
        self.stream.close()

    def on_failure(self, error: Exception) -> None:
        self.failures.append(error)
        self.stream.close()

    def close(self) -> None:
        self.stream.close()
        self.client.close()


def write_to(fd: int) -> Callable[[bytes], None]:
    """An `on_data` that passes data on to a pipe."""

    def on_data(data: bytes) -> None:
        os.write(fd, data)

    return on_data


@pytest.fixture(scope="session", autouse=True)
def uvloop_has_opened_its_own_pipe() -> None:
    """uvloop opens a pipe at its first run and keeps it for the life of the process."""
    with suppress(ImportError):
        import uvloop

        loop = uvloop.new_event_loop()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.fixture(autouse=True)
def no_fd_is_left() -> Iterator[None]:
    before = count_own_fds()
    yield
    assert count_own_fds() == before


Turn = tuple[asyncio.AbstractEventLoop, Poller]


@pytest.fixture(params=["asyncio", "uvloop"])
def turn(request: pytest.FixtureRequest) -> Iterator[Turn]:
    """A loop and its poller."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    loop, poller = new_event_loop(request.param)
    yield loop, poller
    if request.param == "uvloop":
        loop.remove_reader(poller.epoll.fileno())
        loop.close()
        poller.close()
    else:
        loop.close()


def run(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    loop.run_until_complete(asyncio.wait_for(future, PATIENCE_SECONDS))


def test_a_stream_is_served_while_the_loop_runs(turn: Turn) -> None:
    loop, poller = turn
    done = loop.create_future()

    def on_data(data: bytes) -> None:
        if data == b"last":
            poller.hurry()
            done.set_result(None)

    echo = Echo(poller, on_data)
    echo.client.send(b"last")
    run(loop, done)
    assert echo.client.recv(10) == b"last"
    echo.close()


def test_what_is_queued_outside_a_round_leaves_without_waiting_for_one(turn: Turn) -> None:
    loop, poller = turn
    echo = Echo(poller)

    async def push_and_read() -> bytes:
        echo.stream.push(b"from outside", SOMEBODY)
        echo.client.settimeout(0)
        for _ in range(1000):
            with suppress(BlockingIOError):
                return echo.client.recv(100)
            await asyncio.sleep(0)
        return b""

    assert loop.run_until_complete(push_and_read()) == b"from outside"
    echo.close()


def test_a_timer_goes_off_while_streams_are_never_idle(turn: Turn) -> None:
    loop, poller = turn
    done = loop.create_future()
    rounds = 0

    def ask_again(data: bytes) -> None:
        nonlocal rounds
        rounds += 1
        if not done.done():
            echo.client.send(b"x")

    echo = Echo(poller, ask_again)
    echo.client.send(b"x")
    loop.call_later(0.02, done.set_result, None)
    run(loop, done)
    assert rounds > 1
    echo.close()


def test_a_timer_that_is_set_while_serving_goes_off(turn: Turn) -> None:
    loop, poller = turn
    done = loop.create_future()

    def on_data(data: bytes) -> None:
        poller.hurry()
        loop.call_later(0.01, done.set_result, None)

    echo = Echo(poller, on_data)
    echo.client.send(b"x")
    run(loop, done)
    echo.close()


def test_the_loops_own_descriptors_are_watched_beside_the_streams(turn: Turn) -> None:
    loop, poller = turn
    done = loop.create_future()
    reader, writer = os.pipe()
    echo = Echo(poller, write_to(writer))

    def on_pipe() -> None:
        assert os.read(reader, 10) == b"through"
        loop.remove_reader(reader)
        done.set_result(None)

    loop.add_reader(reader, on_pipe)
    echo.client.send(b"through")
    run(loop, done)
    echo.close()
    os.close(reader)
    os.close(writer)


def test_many_streams_are_all_served(turn: Turn) -> None:
    loop, poller = turn
    done = loop.create_future()
    served: list[bytes] = []

    def on_data(data: bytes) -> None:
        served.append(data)
        if len(served) == 100:
            poller.hurry()
            done.set_result(None)

    echoes = [Echo(poller, on_data) for _ in range(100)]
    for index, echo in enumerate(echoes):
        echo.client.send(b"%d" % index)
    run(loop, done)
    assert [echo.client.recv(10) for echo in echoes] == [b"%d" % index for index in range(100)]
    for echo in echoes:
        echo.close()


def test_a_stream_that_another_one_closes_in_the_same_round_is_left_alone() -> None:
    poller = Poller()
    heard: list[bytes] = []

    def closes(other: Echo) -> Callable[[bytes], None]:
        def on_data(data: bytes) -> None:
            heard.append(data)
            other.stream.close()

        return on_data

    first, second = Echo(poller), Echo(poller)
    first.then, second.then = closes(second), closes(first)
    for echo in (first, second):
        echo.client.send(b"x")
    events = poller.epoll.poll(0)
    assert len(events) == 2
    foreign = poller.serve(events)
    assert heard == [b"x"]
    assert len(foreign) == 1
    for echo in (first, second):
        echo.close()
    poller.close()


def test_a_failure_with_one_stream_leaves_the_others_served() -> None:
    poller = Poller()

    def fail(data: bytes) -> None:
        raise RuntimeError("a bug")

    echoes = [Echo(poller), Echo(poller, fail), Echo(poller)]
    for echo in echoes:
        echo.client.send(b"x")
    poller.serve(poller.epoll.poll(0))
    assert [str(error) for error in echoes[1].failures] == ["a bug"]
    assert [echo.client.recv(10) for echo in echoes] == [b"x", b"", b"x"]
    for echo in echoes:
        echo.close()
    poller.close()


def test_a_round_ends_with_everything_sent() -> None:
    poller = Poller()
    echo = Echo(poller)
    echo.client.send(b"x")
    poller.serve(poller.epoll.poll(0))
    assert poller.touched == []
    assert echo.client.recv(10) == b"x"
    echo.close()
    poller.close()


def test_waiting_ends_with_its_time() -> None:
    poller = Poller()
    assert poller.wait(0) == []
    assert poller.wait(0.001) == []
    poller.close()


def test_waiting_serves_streams_until_something_else_is_ready() -> None:
    poller = Poller()
    reader, writer = os.pipe()
    poller.epoll.register(reader, select.EPOLLIN)
    echo = Echo(poller, write_to(writer))
    echo.client.send(b"x")
    assert [fd for fd, _ in poller.wait(PATIENCE_SECONDS)] == [reader]
    assert echo.client.recv(10) == b"x"
    echo.close()
    for fd in (reader, writer):
        os.close(fd)
    poller.close()


def test_the_selector_reports_what_asyncio_asked_for() -> None:
    poller = Poller()
    selector = LoopSelector(poller)
    left, right = socket.socketpair()
    key = selector.register(left, selectors.EVENT_READ | selectors.EVENT_WRITE, "data")
    assert selector.select(0) == [(key, selectors.EVENT_WRITE)]
    key = selector.modify(left, selectors.EVENT_READ, "data")
    assert selector.select(0) == []
    right.send(b"x")
    assert selector.select(0) == [(key, selectors.EVENT_READ)]
    right.close()
    assert selector.select(0) == [(key, selectors.EVENT_READ)]
    assert selector.get_key(left) is key
    assert list(selector.get_map()) == [left.fileno()]
    assert selector.unregister(left) is key
    assert selector.select(0) == []
    left.close()
    selector.close()


def test_the_selector_refuses_a_descriptor_twice() -> None:
    poller = Poller()
    selector = LoopSelector(poller)
    reader, writer = os.pipe()
    selector.register(reader, selectors.EVENT_READ)
    with pytest.raises(KeyError):
        selector.register(reader, selectors.EVENT_READ)
    selector.unregister(reader)
    with pytest.raises(KeyError):
        selector.unregister(reader)
    os.close(reader)
    os.close(writer)
    selector.close()


def test_a_descriptor_closed_before_it_was_unregistered_is_forgotten() -> None:
    poller = Poller()
    selector = LoopSelector(poller)
    reader, writer = os.pipe()
    selector.register(reader, selectors.EVENT_READ)
    os.close(reader)
    os.close(writer)
    selector.unregister(reader)
    assert not selector.get_map()
    selector.close()


def test_what_comes_before_a_round_leaves_with_it() -> None:
    poller = Poller()
    echo = Echo(poller)
    rounds: list[int] = []

    def before() -> None:
        rounds.append(len(echo.stream.out))
        echo.stream.push(b"before ", SOMEBODY)

    poller.before_round = before
    echo.client.send(b"data")
    poller.serve(poller.epoll.poll(PATIENCE_SECONDS))
    assert rounds == [0]
    assert echo.client.recv(100) == b"before data"
    echo.close()
    poller.close()


def test_a_round_that_is_not_begun_keeps_whose_turn_it_is() -> None:
    """What comes before a round may end the program; nothing is half done then."""
    poller = Poller()
    echo = Echo(poller)

    def before() -> None:
        raise SystemExit(3)

    echo.stream.defer()
    poller.before_round = before
    with pytest.raises(SystemExit):
        poller.serve([])
    assert poller.deferred == [echo.stream]
    echo.close()
    poller.close()
