"""The asyncio half, in asyncio's own loop and in uvloop's: the same commands, cancellation, back-pressure."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from errno import EAGAIN, EBADF, EBADSLT, ECONNRESET, EINVAL, ENOENT, ENXIO, EPIPE, ESHUTDOWN
from pathlib import Path
from typing import Any, TypeVar

import pytest
from client_world import BUS, DEADLINE_S, TOLD, Script, Served, in_thread, refused, script, served, until

from kdbus_core.abi import (
    CMD_HELLO,
    CMD_MATCH,
    CMD_RECV,
    CMD_SEND,
    MATCH_ANY,
    Command,
    ItemType,
    NameFlag,
    ReceiveFlag,
)
from kdbus_core.domain import Bloom
from kdbus_core.errors import KdbusError
from kdbus_core.items import BLOOM_PARAMETER, build_item
from kdbus_core.matches import Filter, IdMatch, NameNotice
from kdbus_core.metadata import Creds, Snapshot
from kdbus_core.transport.client.aio import Connection, Handle, open_node
from kdbus_core.transport.client.aio_link import AioLink
from kdbus_core.transport.client.notices import NameChanged
from kdbus_core.transport.client.pool import COPY_LIMIT
from kdbus_core.transport.client.received import Received
from kdbus_core.transport.protocol import QUIET

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture(autouse=True, scope="module")
def first_loops() -> None:
    """The first loop of each kind opens what stays open in this process."""
    asyncio.Runner().close()
    with suppress(ImportError):
        import uvloop

        asyncio.Runner(loop_factory=uvloop.new_event_loop).run(asyncio.sleep(0))


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, object]], object]:
    """Run a scene in a loop of its own; it has to end in time."""
    factory = None
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop

    def run_scene(scene: Coroutine[Any, Any, object]) -> object:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(asyncio.wait_for(scene, DEADLINE_S))

    return run_scene


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path) as world:
        yield world


@asynccontextmanager
async def connect(world: Served, **options: Any) -> AsyncIterator[Connection]:
    async with (
        await open_node(world.bus) as node,
        await node.hello(**{"attach_recv": TOLD, **options}) as one,
    ):
        yield one


async def receive(connection: Connection) -> Received:
    """The next message, which has to come."""
    assert await connection.wait(DEADLINE_S)
    received = await connection.receive()
    assert received is not None
    return received


async def echo(connection: Connection) -> None:
    async for request in connection:
        with request:
            reply = request.payload
            # Whoever gets it may close the connection before there is an answer.
            await connection.post(reply, destination=request.sender, cookie_reply=request.cookie)


# The same commands


def test_handles_make_what_they_are_asked_for(world: Served, run: Run[None]) -> None:
    async def scene() -> None:
        name = f"{os.getuid()}-other"
        async with await open_node(world.control) as node:
            assert (await node.supported(Command.BUS_MAKE)).flags
            assert BUS in str(await node.inspect())
            await node.make_bus(name, bloom=Bloom(32, 1))
            async with await open_node(world.directory / name / "bus") as bus:
                async with await bus.hello() as connection:
                    assert connection.bloom == Bloom(32, 1)
                    assert (await connection.creator_info()).bus_name == name
                with refused(EBADF):
                    await bus.hello()
            async with await open_node(world.directory / name / "bus") as bus:
                await bus.make_endpoint(f"{os.getuid()}-private")
                await bus.update_endpoint([])
        await asyncio.to_thread(until, lambda: not (world.directory / name).exists())
        with refused(ENOENT):
            await open_node(world.directory / name / "bus")

    run(scene())


def test_messages_calls_and_names(world: Served, run: Run[None]) -> None:
    async def scene() -> None:
        async with connect(world, description="alice") as alice, connect(world) as bob:
            assert await alice.name_acquire("com.example.A") & NameFlag.ACQUIRED
            await bob.match_add(1, [NameNotice(ItemType.NAME_REMOVE, MATCH_ANY, 0, None)])
            echoing = asyncio.create_task(echo(alice))
            for text in (b"short", os.urandom(100_000), os.urandom(1 << 20)):
                with await bob.call(text, destination="com.example.A") as reply:
                    assert reply.payload == text
                    assert reply.metadata.description == "alice"
            assert {info.id: list(info.names) for info in await bob.list()} == {
                alice.id: ["com.example.A"],
                bob.id: [],
            }
            assert (await bob.info(name="com.example.A")).id == alice.id
            await alice.name_release("com.example.A")
            with await receive(bob) as news:
                assert isinstance(news.notification, NameChanged)
            await bob.match_remove(1)
            with refused(ENXIO):
                await bob.send(b"x", destination=999)
            with refused(EINVAL):
                await bob.send(b"x", destination="\u20ac")
            alice.close()
            await echoing

    run(scene())


def test_signals_drops_and_updates(world: Served, run: Run[None]) -> None:
    async def scene() -> None:
        async with connect(world) as alice, connect(world) as bob:
            await alice.match_add(1, [IdMatch(bob.id)])
            for _ in range(2):
                await bob.send(b"news", destination=None, filter=Filter(0, bytes(64)))
            assert await alice.drop()
            assert (await receive(alice)).payload == b"news"
            assert not await alice.drop()
            assert await alice.receive() is None
            await bob.update(attach_send=0)
            assert (await alice.supported(Command.SEND)).flags
            await alice.byebye()
            with refused(ESHUTDOWN):
                await alice.receive()

    run(scene())


def test_an_owner_speaks_for_others(world: Served, run: Run[None]) -> None:
    async def scene() -> None:
        faked = Snapshot(creds=Creds(*range(1, 9)))
        async with connect(world) as alice, connect(world, faked=faked) as other:
            assert (await alice.info(other.id)).metadata.creds == faked.creds

    run(scene())


def test_descriptors_are_handed_over(world: Served, run: Run[None]) -> None:
    async def scene() -> None:
        reader, writer = os.pipe()
        async with connect(world) as alice:
            await alice.send(b"", destination=alice.id, fds=[reader])
            await alice.post(b"", destination=alice.id, fds=[reader])
            os.close(reader)
            os.write(writer, b"ab")
            for expected in (b"a", b"b"):
                with await receive(alice) as message:
                    assert os.read(message.fds[0], 1) == expected
        os.close(writer)

    run(scene())


def test_posted_messages_arrive_and_refusals_are_told(world: Served, run: Run[None]) -> None:
    async def scene() -> None:
        async with connect(world) as alice, connect(world) as bob:
            for index in range(100):
                await bob.post(str(index).encode(), destination=alice.id)
            await bob.drain()
            for index in range(100):
                with await receive(alice) as message:
                    assert message.payload == str(index).encode()
            await bob.post(b"x", destination=999)
            with refused(ENXIO):
                await bob.drain()
            await bob.drain()

    run(scene())


def test_many_calls_at_once_each_get_their_reply(world: Served, run: Run[None]) -> None:
    async def scene() -> None:
        async with connect(world, pool_size=1 << 24) as alice, connect(world, pool_size=1 << 24) as bob:
            echoing = asyncio.create_task(echo(alice))

            async def call(index: int) -> None:
                text = str(index).encode() * (1 + index * 10)
                with await bob.call(text, destination=alice.id) as reply:
                    assert reply.payload == text

            await asyncio.gather(*map(call, range(60)))
            alice.close()
            await echoing

    run(scene())


# Cancelling


async def settled(world: Served, connection: Connection) -> None:
    """All that the connection has sent has been performed."""
    await connection.list()
    await connection.wait(0)
    await connection.list()


def test_a_cancelled_call_is_cancelled_at_the_broker_too(world: Served, run: Run[None]) -> None:
    async def scene() -> None:
        async with connect(world) as alice, connect(world) as bob:
            call = asyncio.create_task(bob.call(b"?", destination=alice.id))
            with await receive(alice) as request:
                assert world.open_calls(bob.id) == 1
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                await settled(world, bob)
                assert world.open_calls(bob.id) == 0
                with refused(EBADSLT):  # there is no request any more
                    await alice.send(b"!", destination=request.sender, cookie_reply=request.cookie)
            await settled(world, bob)
            assert not bob._link._pending

    run(scene())


def test_calls_cancelled_at_any_moment_never_keep_the_reply(world: Served, run: Run[None]) -> None:
    async def scene() -> None:
        async with connect(world, pool_size=1 << 24) as alice, connect(world, pool_size=1 << 24) as bob:

            async def answer() -> None:
                async for request in alice:
                    with request, suppress(KdbusError):  # it was cancelled first
                        await alice.send(
                            request.payload, destination=request.sender, cookie_reply=request.cookie
                        )

            answering = asyncio.create_task(answer())
            payload = bytes(COPY_LIMIT + 100)
            ended = 0
            for turns in range(60):
                call = asyncio.create_task(bob.call(payload, destination=alice.id))
                for _ in range(turns % 20):
                    await asyncio.sleep(0)
                if turns % 3:
                    await asyncio.wait([call], timeout=turns / 20_000)
                call.cancel()
                try:
                    (await call).close()
                    ended += 1
                except asyncio.CancelledError:
                    pass
            await settled(world, bob)
            alice.close()
            await answering
            await settled(world, bob)
            assert world.open_calls(bob.id) == 0
            assert world.pool_use(bob.id) < 1000  # the answer of LIST perhaps
            assert not bob._link._pending

    run(scene())


def test_a_message_for_somebody_cancelled_goes_to_who_receives_next(world: Served, run: Run[None]) -> None:
    async def scene() -> None:
        async with connect(world) as alice:
            await alice.send(b"one", destination=alice.id)
            await alice.send(b"two", destination=alice.id)
            first = asyncio.create_task(alice.receive())
            await asyncio.sleep(0)  # it is sent
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert (await receive(alice)).payload in (b"one", b"two")
            await settled(world, alice)
            assert (await receive(alice)).payload in (b"one", b"two")
            assert await alice.receive() is None

    run(scene())


def test_waiting_can_be_cancelled_and_done_by_many(world: Served, run: Run[None]) -> None:
    async def scene() -> None:
        async with connect(world) as alice:
            waiting = [asyncio.create_task(alice.wait()) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            assert not await alice.wait(0.001)
            await alice.send(b"x", destination=alice.id)
            assert await waiting[1]
            assert await waiting[2]
            assert await alice.wait(0)

    run(scene())


# The end


def test_closing_wakes_everybody_who_waits(world: Served, run: Run[None]) -> None:
    async def scene() -> None:
        async with connect(world) as alice, connect(world) as bob:
            call = asyncio.create_task(bob.call(b"?", destination=alice.id))
            waiting = asyncio.create_task(bob.wait())
            reading = asyncio.create_task(echo(bob))
            (await receive(alice)).close()
            bob.close()
            bob.close()
            with refused(ECONNRESET):
                await call
            assert await waiting
            await reading
            for command in (bob.receive, bob.wait, bob.list):
                with refused(EBADF):
                    await command()
            with refused(EBADF):
                await bob.post(bytes(1 << 20), destination=alice.id)
            assert bob.fileno() == bob.socket_fileno() == -1

    run(scene())


def test_the_end_of_the_server_is_told_to_everybody(world: Served, run: Run[None]) -> None:
    async def scene() -> None:
        async with connect(world) as alice, connect(world) as bob:
            call = asyncio.create_task(bob.call(b"?", destination=alice.id))
            (await receive(alice)).close()
            waiting = asyncio.create_task(alice.wait())
            await asyncio.sleep(0)
            await asyncio.to_thread(world.stop)
            with refused(ECONNRESET, EPIPE, ESHUTDOWN):
                await call
            assert await waiting
            for _ in range(2):
                with refused(ECONNRESET):
                    await alice.receive()
            with refused(ECONNRESET):
                async for _ in alice:
                    pass

    run(scene())


def test_a_connection_may_be_closed_after_its_loop(world: Served, run: Run[Connection]) -> None:
    async def scene() -> Connection:
        async with await open_node(world.bus) as node:
            return await node.hello()

    run(scene()).close()


# A server that does what the test wants


@pytest.fixture
def ends() -> Iterator[tuple[Script, socket.socket]]:
    with script() as both:
        yield both


Scripted = Callable[[], AbstractAsyncContextManager[tuple[Script, Connection]]]


@pytest.fixture
def scripted(ends: tuple[Script, socket.socket]) -> Scripted:
    """A connection to a script; its pool has a message at 4096."""

    @asynccontextmanager
    async def connect_to_script() -> AsyncIterator[tuple[Script, Connection]]:
        other, client = ends
        client.settimeout(0)
        pool = os.memfd_create("pool", os.MFD_CLOEXEC)
        event = os.eventfd(1, os.EFD_CLOEXEC)
        os.truncate(pool, 1 << 20)
        os.pwrite(pool, build_item(ItemType.BLOOM_PARAMETER, BLOOM_PARAMETER.pack(64, 8)), 0)
        os.pwrite(pool, (64).to_bytes(8, sys.byteorder), 4096)

        def welcome() -> None:
            result = CMD_HELLO.pack(0, 0, 0, 0, 0, 0, 1, 1 << 20, 0, 32, bytes(16))
            other.answer(other.read(), patches=[(40, result[40:])], fds=[pool, event])

        welcoming = in_thread(welcome)
        handle = Handle(AioLink(client, asyncio.get_running_loop()))
        try:
            async with await handle.hello(pool_size=1 << 20) as connection:
                welcoming.result(DEADLINE_S)
                yield other, connection
        finally:
            os.close(pool)
            os.close(event)

    return connect_to_script


def test_who_posts_waits_while_the_socket_is_full(scripted: Scripted, run: Run[None]) -> None:
    async def scene() -> None:
        async with scripted() as (other, connection):
            count = 500

            async def post() -> None:
                for _ in range(count):
                    await connection.post(bytes(8192), destination=7)

            posting = asyncio.create_task(post())
            while not connection._link._line:
                await asyncio.sleep(0)
            waiting = asyncio.create_task(connection.send(b"last", destination=7))
            await asyncio.sleep(0)
            assert not posting.done()

            def serve() -> list[int]:
                seen: list[int] = []
                while len(seen) <= count:
                    request = other.read()
                    if request.number == Command.SEND:
                        seen.append(len(request.body))
                        if not request.flags & QUIET:
                            other.answer(request)
                return seen

            serving = asyncio.create_task(asyncio.to_thread(serve))
            await posting
            await waiting
            assert len(await serving) == count + 1

    run(scene())


def test_what_waits_for_room_can_be_cancelled_and_is_not_sent(scripted: Scripted, run: Run[None]) -> None:
    async def scene() -> None:
        async with scripted() as (other, connection):
            link = connection._link
            sent = 0
            while not link._line:
                posting = asyncio.create_task(connection.post(bytes(8192), destination=7))
                await asyncio.sleep(0)
                sent += 1
            calls = [asyncio.create_task(connection.call(bytes(600_000), destination=7)) for _ in range(3)]
            receiving = asyncio.create_task(connection.receive())
            await asyncio.sleep(0)
            for one in (*calls, receiving):
                one.cancel()
            await asyncio.wait((*calls, receiving))
            assert len(link._line) == 1
            assert not link._pending
            numbers = await asyncio.to_thread(lambda: [other.read().number for _ in range(sent)])
            assert set(numbers) == {Command.SEND}
            await posting

    run(scene())


def test_who_waits_for_room_is_told_of_the_end(scripted: Scripted, run: Run[None]) -> None:
    async def scene() -> None:
        async with scripted() as (other, connection):
            while not connection._link._line:
                posting = asyncio.create_task(connection.post(bytes(8192), destination=7))
                await asyncio.sleep(0)
            sending = asyncio.create_task(connection.send(bytes(1 << 20), destination=7))
            await asyncio.sleep(0)
            other.socket.shutdown(socket.SHUT_RDWR)
            for one in (posting, sending):
                with refused(ECONNRESET):
                    await one

    run(scene())


def test_the_reply_of_a_cancelled_call_is_given_back(scripted: Scripted, run: Run[None]) -> None:
    async def scene() -> None:
        async with scripted() as (other, connection):
            call = asyncio.create_task(connection.call(b"?", destination=7))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

            def serve() -> tuple[int, int]:
                request = other.read()
                cancel = other.read()
                assert (cancel.number, CMD_MATCH.unpack(cancel.body)[3]) == (Command.MSG_CANCEL, 1)
                reply = CMD_SEND.pack(0, 0, 0, 0, 4096, COPY_LIMIT + 8, 0)
                event = os.eventfd(0, os.EFD_CLOEXEC)
                other.answer(request, patches=[(32, reply[32:])], fds=[event])
                os.close(event)
                free = other.read()
                return free.number, int.from_bytes(free.body[24:], sys.byteorder)

            assert await asyncio.to_thread(serve) == (Command.FREE, 4096)

    run(scene())


def test_a_peek_that_is_cancelled_does_not_free_what_is_received(scripted: Scripted, run: Run[None]) -> None:
    """The FREE of a peeked slice never overtakes the RECV of the same slice."""

    async def scene() -> None:
        async with scripted() as (other, connection):
            peek = asyncio.create_task(connection.receive(flags=ReceiveFlag.PEEK))
            await asyncio.sleep(0)
            peek.cancel()
            take = asyncio.create_task(connection.receive())
            await asyncio.sleep(0)

            def serve() -> None:
                requests = [other.read() for _ in range(2)]
                assert [request.number for request in requests] == [Command.RECV, Command.RECV]
                found = CMD_RECV.pack(0, 0, 0, 0, 0, 4096, COPY_LIMIT + 8, 0)
                other.answer(requests[0], patches=[(32, found[32:])])
                other.answer(requests[1], patches=[(32, found[32:])])

            await asyncio.to_thread(serve)
            message = await take
            assert message is not None
            other.socket.settimeout(0)
            with pytest.raises(BlockingIOError):
                other.read()
            message.close()
            assert other.read().number == Command.FREE

    run(scene())


def test_nothing_there_is_none(scripted: Scripted, run: Run[None]) -> None:
    async def scene() -> None:
        async with scripted() as (other, connection):
            receiving = asyncio.create_task(connection.receive())
            await asyncio.to_thread(lambda: other.answer(other.read(), errno=EAGAIN))
            assert await receiving is None

    run(scene())


def test_where_nothing_is_nobody_is_asked_unless_something_is_on_its_way(
    scripted: Scripted, run: Run[None]
) -> None:
    async def scene() -> None:
        async with scripted() as (other, connection):
            os.eventfd_read(connection.fileno())
            assert await connection.receive() is None
            assert (await asyncio.to_thread(other.read)).number == Command.FREE
            await connection.post(b"x", destination=connection.id)
            assert (await asyncio.to_thread(other.read)).number == Command.SEND
            receiving = asyncio.create_task(connection.receive())
            await asyncio.to_thread(lambda: other.answer(other.read(), errno=EAGAIN))
            assert await receiving is None
            assert await connection.receive() is None
            other.socket.shutdown(socket.SHUT_RDWR)
            with refused(ECONNRESET):
                await connection.receive()

    run(scene())
