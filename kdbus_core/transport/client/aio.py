"""The asyncio half of the client library: the same names as the blocking one, as coroutines.

    async with await open_node("/run/kdbus/0-system/bus") as node, await node.hello() as connection:
        await connection.name_acquire("com.example.Clock")
        async for request in connection:
            with request:
                await connection.send(b"12:00", destination=request.sender, cookie_reply=request.cookie)

It works in any loop with `add_reader`, uvloop's too.  A connection belongs to
the loop in which it was opened.  Commands are performed in the order in which
they are awaited; where the socket has no room they wait for it.  A command may
be cancelled at any time: a call that was sent is then cancelled at the broker too,
and a message that was received for somebody cancelled goes to who receives
next.  A process that was forked can only close its copy: a command is ECHILD.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from errno import EBADF, ECONNRESET, ESHUTDOWN
from select import POLLIN, poll
from typing import Any, Unpack

from kdbus_core.abi import ATTACH_ALL, Command, HelloFlag, ListFlag, MakeFlag, NameFlag, ReceiveFlag
from kdbus_core.domain import Bloom
from kdbus_core.errors import KdbusError
from kdbus_core.matches import MatchRule
from kdbus_core.metadata import Credentials, Snapshot
from kdbus_core.policy import Access, PolicyEntry
from kdbus_core.transport.client.aio_link import AioLink
from kdbus_core.transport.client.commands import LIST_ALL, Infos
from kdbus_core.transport.client.connection import HELLO_POOL_SIZE, MSG_CANCEL, BaseConnection
from kdbus_core.transport.client.handle_commands import HandleCommands, Supported, Welcome, negotiate
from kdbus_core.transport.client.link import explain_open, open_socket
from kdbus_core.transport.client.received import Part, Received
from kdbus_core.transport.client.records import Info
from kdbus_core.transport.client.sending import SendOptions

_FIRST_RETRY_S = 0.001
_LAST_RETRY_S = 0.1
"""Pauses between attempts to open a node whose server accepts nobody at the moment."""


async def open_node(path: str | os.PathLike[str]) -> Handle:
    """Open a node: a bus' `bus` or `ep.NAME`, or a domain's `control`.  Raises what open(2) would."""
    pause = _FIRST_RETRY_S
    while True:
        try:
            sock = open_socket(path, blocking=False)
        except BlockingIOError:  # too many wait to be accepted, and nothing tells when there is room
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_RETRY_S)
        except OSError as error:
            raise explain_open(path, error) from error
        else:
            return Handle(AioLink(sock, asyncio.get_running_loop()))


class Handle:
    """A node that was opened; one command makes it what it stays.  What it makes lives until it is closed."""

    def __init__(self, link: AioLink) -> None:
        self._link: AioLink | None = link

    async def __aenter__(self) -> Handle:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed, or has become a connection."""
        return self._link is None or self._link.closed

    def close(self) -> None:
        """Close the node, and with it what was made through it; a connection that it has become stays."""
        if self._link is not None:
            self._link.close()

    def fileno(self) -> int:
        """The socket: it polls as hung up when the server has gone."""
        return self._used().fileno

    def _used(self) -> AioLink:
        if self._link is None:
            raise KdbusError(EBADF, "the handle has become a connection")
        return self._link

    async def supported(self, command: Command) -> Supported:
        """Which flags and items the broker knows of a command; does nothing else.

        ENOTTY where there is no such command, EBADFD where this handle does not take it.
        """
        return await self._used().perform(negotiate(command))

    async def make_bus(
        self,
        name: str,
        *,
        access: MakeFlag = MakeFlag(0),  # noqa: B008 - a constant
        bloom: Bloom = Bloom(),  # noqa: B008 - a constant
        creator_mask: int = 0,
        required: int = 0,
    ) -> None:
        """Make a bus, which lives until the handle is closed (BUS_MAKE).

        `creator_mask` says what may be asked about us, `required` what everybody who connects has to grant.
        """
        operation = HandleCommands.make_bus(
            name, access=access, bloom=bloom, creator_mask=creator_mask, required=required
        )
        await self._used().perform(operation)

    async def make_domain(self, name: str, *, access: MakeFlag = MakeFlag(0)) -> None:  # noqa: B008 - a constant
        """Make a domain in this one, which lives until the handle is closed (DOMAIN_MAKE)."""
        await self._used().perform(HandleCommands.make_node(Command.DOMAIN_MAKE, name, access))

    async def make_endpoint(self, name: str, *, access: MakeFlag = MakeFlag(0)) -> None:  # noqa: B008 - a constant
        """Make an endpoint of the bus, which lives until the handle is closed (ENDPOINT_MAKE)."""
        await self._used().perform(HandleCommands.make_node(Command.ENDPOINT_MAKE, name, access))

    async def update_endpoint(self, policy: Sequence[PolicyEntry]) -> None:
        """Make this the policy of the endpoint that was made here (ENDPOINT_UPDATE)."""
        await self._used().perform(HandleCommands.update_endpoint(policy))

    async def inspect(self) -> dict[str, Any]:
        """The state of the domain, by its owner on a fresh handle of `control`; EPERM for others."""
        return await self._used().perform(HandleCommands.inspect())

    async def hello(
        self,
        *,
        flags: HelloFlag = HelloFlag.ACCEPT_FD,
        attach_send: int = ATTACH_ALL,
        attach_recv: int = 0,
        pool_size: int = HELLO_POOL_SIZE,
        description: str = "",
        name: str | None = None,
        accesses: Sequence[Access] = (),
        faked: Credentials | Snapshot | None = None,
    ) -> Connection:
        """Become a connection, which owns the socket from then on (HELLO).

        `attach_send` is what may be told of us, `attach_recv` what we want to be told of others.  `name` and
        `accesses` are of an activator or policy holder.  `faked` is for whom an owner of the bus speaks.
        """
        link = self._used()
        operation = HandleCommands.hello(
            flags=flags,
            attach_send=attach_send,
            attach_recv=attach_recv,
            pool_size=pool_size,
            description=description,
            name=name,
            accesses=accesses,
            faked=faked,
        )
        connection = Connection(link, await link.perform(operation))
        self._link = None
        return connection


class Connection(BaseConnection):
    """A connection to a bus; a context manager, closed at its end.  Iterating gives messages as they come."""

    _link: AioLink

    def __init__(self, link: AioLink, welcome: Welcome) -> None:
        """Own a link that has said HELLO; both it and the welcome are closed when that fails."""
        super().__init__(link, welcome)
        link.on_closed = self._on_closed
        self._poll = poll()
        self._poll.register(self._event_fd, POLLIN)
        self._poll.register(link.fileno, 0)  # that the server has gone

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[Received]:
        """Messages as they come, until the connection is closed here; ECONNRESET, ESHUTDOWN as `receive`."""
        while True:
            try:
                await self.wait()
                received = await self.receive()
            except KdbusError as error:
                if self.closed and error.errno in (EBADF, ECONNRESET, ESHUTDOWN):
                    return
                raise
            if received is not None:
                yield received

    def close(self) -> None:
        """Disconnect.  Whoever waits gets ECONNRESET; views of messages stay valid until they are let go."""
        self._link.close()

    async def byebye(self) -> None:
        """Disconnect if nothing is left to receive (BYEBYE): EBUSY.  It still has to be closed."""
        await self._link.perform(self._commands.byebye())

    async def supported(self, command: Command) -> Supported:
        """Which flags and items the broker knows of a command; does nothing else."""
        return await self._link.perform(negotiate(command))

    # Sending

    async def send(
        self,
        parts: Sequence[Part] | bytes | bytearray | memoryview,
        *,
        destination: int | str | None,
        **options: Unpack[SendOptions],
    ) -> int:
        """Send a message to an id, a name or (None, with a filter) everybody who wants it (SEND); its cookie.

        The parts, one after another, are its payload.  Raises the errnos of SEND, EINVAL for what cannot be
        one.
        """
        return await self._link.perform(self._commands.send(parts, destination, options))

    async def call(
        self,
        parts: Sequence[Part] | bytes | bytearray | memoryview,
        *,
        destination: int | str,
        cancel_fd: int | None = None,
        **options: Unpack[SendOptions],
    ) -> Received:
        """Send a request and wait for the reply (SEND with SYNC_REPLY), 25 s unless `timeout_ns` is given.

        It ends with ECANCELED when `cancel_fd` becomes readable or `cancel` is called with its cookie, and
        with ETIMEDOUT, EPIPE (whoever should reply has gone) or what the reply was refused with.
        """
        operation, cookie = self._commands.call(parts, destination, cancel_fd, options)
        try:
            return await self._link.perform(operation)
        except asyncio.CancelledError:
            if operation.was_sent and not operation.done:
                self._link.fire(MSG_CANCEL, self._build_cancel(cookie))
            raise

    async def cancel(self, cookie: int) -> None:
        """End the calls with this cookie (MSG_CANCEL): ENOENT when there is none."""
        await self._link.perform(self._commands.cancel(cookie))

    async def post(
        self,
        parts: Sequence[Part] | bytes | bytearray | memoryview,
        *,
        destination: int | str | None,
        **options: Unpack[SendOptions],
    ) -> int:
        """Like `send`, but without waiting for the answer, only for room in the socket; its cookie.

        If it is refused, `on_error` is told when the broker says so, at the latest in `drain`.
        """
        operation = self._commands.send(parts, destination, options)
        await self._link.post(operation.cookie, operation)
        if operation.may_echo:
            self._link.expect_echo()
        return operation.cookie

    async def drain(self) -> None:
        """Wait until the broker has seen everything that was posted.

        Raises the first refusal since the last time, unless `on_error` was told of it.
        """
        await self._link.perform(self._commands.sync())
        self._link.take_unreported()

    # Receiving

    async def receive(
        self,
        *,
        flags: ReceiveFlag = ReceiveFlag(0),  # noqa: B008 - a constant
        priority: int = 0,
    ) -> Received | None:
        """The next message (RECV), None when there is none or it was dropped; does not wait for one.

        With PEEK it stays in the queue and brings no descriptors; with USE_PRIORITY it is the most urgent one
        up to `priority`.
        """
        if not flags:
            if self._commands.left_over:
                return self._commands.left_over.popleft()
            self._link.check()
            if self._link.is_settled and not self._poll.poll(0):
                self._link.flush()
                return None
        return await self._link.perform(self._commands.receive(flags, priority))

    async def drop(self) -> bool:
        """Throw the next message away; whether there was one.  Who waits for its reply is told."""
        return await self._link.perform(self._commands.drop())

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Until there is something to receive or the connection has ended; False after so many seconds."""
        if self._commands.left_over:
            return True
        self._link.check()
        if self._poll.poll(0):
            return True
        if timeout_s is None:
            await self._link.wait(self._event_fd)
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._link.wait(self._event_fd)
        except TimeoutError:
            return False
        return True

    # Names and matches

    async def name_acquire(self, name: str, flags: NameFlag = NameFlag(0)) -> NameFlag:  # noqa: B008 - a constant
        """Acquire a well-known name or queue for it (NAME_ACQUIRE); ACQUIRED, IN_QUEUE … are returned.

        Raises EEXIST, EALREADY, EPERM, EINVAL, E2BIG.
        """
        return await self._link.perform(self._commands.name_acquire(name, flags))

    async def name_release(self, name: str) -> None:
        """Give a name up, or the place in its queue (NAME_RELEASE): ESRCH, EADDRINUSE."""
        await self._link.perform(self._commands.name_release(name))

    async def match_add(self, cookie: int, rules: Sequence[MatchRule], *, replace: bool = False) -> None:
        """Ask for the signals and notifications that pass all of these rules (MATCH_ADD).

        Several may have one cookie; `replace` removes those that had it.  Raises EDOM, EINVAL, EMFILE.
        """
        await self._link.perform(self._commands.match_add(cookie, rules, replace=replace))

    async def match_remove(self, cookie: int) -> None:
        """Ask for what was added under a cookie no longer (MATCH_REMOVE): EBADSLT."""
        await self._link.perform(self._commands.match_remove(cookie))

    async def update(
        self,
        *,
        attach_send: int | None = None,
        attach_recv: int | None = None,
        policy: Sequence[PolicyEntry] | None = None,
    ) -> None:
        """Change what is told of us and to us, or the policy of a policy holder (UPDATE)."""
        await self._link.perform(self._commands.update(attach_send, attach_recv, policy))

    # Questions

    async def info(self, id: int | None = None, *, name: str | None = None, attach: int = ATTACH_ALL) -> Info:
        """What is known of a connection, by id or name (CONN_INFO): ENXIO, ESRCH."""
        return await self._link.perform(self._commands.info(id, name, attach))

    async def creator_info(self, attach: int = ATTACH_ALL) -> Info:
        """What is known of whoever made the bus, and the bus' name (BUS_CREATOR_INFO)."""
        return await self._link.perform(self._commands.creator_info(attach))

    async def list(self, flags: ListFlag = LIST_ALL) -> Infos:
        """Who is on the bus, and with which names (LIST): one `Info` a connection, without credentials."""
        return await self._link.perform(self._commands.list(flags))
