"""The blocking half of the client library: every command returns when it is done.

    with open_node("/run/kdbus/0-system/bus") as node, node.hello() as connection:
        connection.name_acquire("com.example.Clock")
        for request in connection:
            with request:
                connection.send(b"12:00", destination=request.sender, cookie_reply=request.cookie)

A command that is refused raises `KdbusError` with its errno; ECONNRESET says
that the server has gone or that somebody closed the connection meanwhile, EBADF
that it was closed before.  Threads may use a connection at the same time: while
one waits in `call`, others go on.  Signals interrupt nothing.  An exception
raised by a signal handler ends the waiting: a call is cancelled, and a message
that comes for it is received next.  (If it comes in the very moment in which an
answer is read, the connection ends, and says so with ECONNRESET.)  A signal
handler may close a connection, but not use it for anything else.  After a fork
one of the two processes may use a connection, and the other close its copy;
messages that were received before stay those of the parent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from errno import EBADF, ECONNRESET, ESHUTDOWN
from typing import Any, Unpack

from kdbus_core.abi import (
    ATTACH_ALL,
    Command,
    HelloFlag,
    ListFlag,
    MakeFlag,
    NameFlag,
    ReceiveFlag,
)
from kdbus_core.domain import Bloom
from kdbus_core.errors import KdbusError
from kdbus_core.matches import MatchRule
from kdbus_core.metadata import Credentials, Snapshot
from kdbus_core.policy import Access, PolicyEntry
from kdbus_core.transport.client.blocking_link import BlockingLink
from kdbus_core.transport.client.commands import LIST_ALL, Infos
from kdbus_core.transport.client.connection import HELLO_POOL_SIZE, MSG_CANCEL, BaseConnection
from kdbus_core.transport.client.handle_commands import HandleCommands, Supported, Welcome, negotiate
from kdbus_core.transport.client.link import explain_open, open_socket
from kdbus_core.transport.client.received import Part, Received
from kdbus_core.transport.client.records import Info
from kdbus_core.transport.client.sending import SendOptions


def open_node(path: str | os.PathLike[str]) -> Handle:
    """Open a node: a bus' `bus` or `ep.NAME`, or a domain's `control`.  Raises what open(2) would."""
    try:
        return Handle(BlockingLink(open_socket(path, blocking=True)))
    except OSError as error:
        raise explain_open(path, error) from error


class Handle:
    """A node that was opened; one command makes it what it stays.  What it makes lives until it is closed."""

    def __init__(self, link: BlockingLink) -> None:
        self._link: BlockingLink | None = link

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
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

    def _used(self) -> BlockingLink:
        if self._link is None:
            raise KdbusError(EBADF, "the handle has become a connection")
        return self._link

    def supported(self, command: Command) -> Supported:
        """Which flags and items the broker knows of a command; does nothing else.

        ENOTTY where there is no such command, EBADFD where this handle does not take it.
        """
        return self._used().perform(negotiate(command))

    def make_bus(
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
        self._used().perform(operation)

    def make_domain(self, name: str, *, access: MakeFlag = MakeFlag(0)) -> None:  # noqa: B008 - a constant
        """Make a domain in this one, which lives until the handle is closed (DOMAIN_MAKE)."""
        self._used().perform(HandleCommands.make_node(Command.DOMAIN_MAKE, name, access))

    def make_endpoint(self, name: str, *, access: MakeFlag = MakeFlag(0)) -> None:  # noqa: B008 - a constant
        """Make an endpoint of the bus, which lives until the handle is closed (ENDPOINT_MAKE)."""
        self._used().perform(HandleCommands.make_node(Command.ENDPOINT_MAKE, name, access))

    def update_endpoint(self, policy: Sequence[PolicyEntry]) -> None:
        """Make this the policy of the endpoint that was made here (ENDPOINT_UPDATE)."""
        self._used().perform(HandleCommands.update_endpoint(policy))

    def inspect(self) -> dict[str, Any]:
        """The state of the domain, by its owner on a fresh handle of `control`; EPERM for others."""
        return self._used().perform(HandleCommands.inspect())

    def hello(
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
        connection = Connection(link, link.perform(operation))
        self._link = None
        return connection


class Connection(BaseConnection):
    """A connection to a bus; a context manager, closed at its end.  Iterating gives messages as they come."""

    _link: BlockingLink

    def __init__(self, link: BlockingLink, welcome: Welcome) -> None:
        """Own a link that has said HELLO; both it and the welcome are closed when that fails."""
        super().__init__(link, welcome)
        link.on_closed = self._on_closed

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Received]:
        """Messages as they come, until the connection is closed here; ECONNRESET, ESHUTDOWN as `receive`."""
        while True:
            try:
                self.wait()
                received = self._receive()
            except KdbusError as error:
                if self.closed and error.errno in (EBADF, ECONNRESET, ESHUTDOWN):
                    return
                raise
            if received is not None:
                yield received

    def close(self) -> None:
        """Disconnect.  Whoever waits gets ECONNRESET; views of messages stay valid until they are let go."""
        self._link.close()

    def byebye(self) -> None:
        """Disconnect if nothing is left to receive (BYEBYE): EBUSY.  It still has to be closed."""
        self._link.perform(self._commands.byebye())

    def supported(self, command: Command) -> Supported:
        """Which flags and items the broker knows of a command; does nothing else."""
        return self._link.perform(negotiate(command))

    # Sending

    def send(
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
        return self._link.perform(self._commands.send(parts, destination, options))

    def call(
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
            return self._link.perform(operation)
        except KdbusError:
            raise
        except BaseException:
            self._link.fire(MSG_CANCEL, self._build_cancel(cookie))
            raise

    def cancel(self, cookie: int) -> None:
        """End the calls with this cookie (MSG_CANCEL): ENOENT when there is none."""
        self._link.perform(self._commands.cancel(cookie))

    def post(
        self,
        parts: Sequence[Part] | bytes | bytearray | memoryview,
        *,
        destination: int | str | None,
        **options: Unpack[SendOptions],
    ) -> int:
        """Like `send`, but without waiting for the answer; its cookie.

        If it is refused, `on_error` is told during one of the next commands, at the latest in `drain`.
        """
        operation = self._commands.send(parts, destination, options)
        self._link.post(operation.cookie, operation)
        if operation.may_echo:
            self._link.expect_echo()
        return operation.cookie

    def drain(self) -> None:
        """Wait until the broker has seen everything that was posted.

        Raises the first refusal since the last time, unless `on_error` was told of it.
        """
        self._link.perform(self._commands.sync())
        self._link.take_unreported()

    # Receiving

    def receive(
        self,
        *,
        flags: ReceiveFlag = ReceiveFlag(0),  # noqa: B008 - a constant
        priority: int = 0,
    ) -> Received | None:
        """The next message (RECV), None when there is none or it was dropped; does not wait.

        With PEEK it stays in the queue and brings no descriptors; with USE_PRIORITY it is the most urgent one
        up to `priority`.
        """
        if not flags:
            if self._commands.left_over:
                return self._receive()
            if self._link.is_settled and not self._link.may_receive(self._event_fd):
                self._link.flush()
                return None
        return self._receive(flags, priority)

    def _receive(self, flags: int = 0, priority: int = 0) -> Received | None:
        if self._commands.left_over and not flags:
            try:
                return self._commands.left_over.popleft()
            except IndexError:  # another thread was faster
                pass
        return self._link.perform(self._commands.receive(flags, priority))

    def drop(self) -> bool:
        """Throw the next message away; whether there was one.  Who waits for its reply is told."""
        return self._link.perform(self._commands.drop())

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until there is something to receive or the connection has ended; False after so many seconds."""
        if self._commands.left_over:
            return True
        return self._link.wait(self._event_fd, None if timeout_s is None else max(0.0, timeout_s * 1000))

    # Names and matches

    def name_acquire(self, name: str, flags: NameFlag = NameFlag(0)) -> NameFlag:  # noqa: B008 - a constant
        """Acquire a well-known name or queue for it (NAME_ACQUIRE); ACQUIRED, IN_QUEUE … are returned.

        Raises EEXIST, EALREADY, EPERM, EINVAL, E2BIG.
        """
        return self._link.perform(self._commands.name_acquire(name, flags))

    def name_release(self, name: str) -> None:
        """Give a name up, or the place in its queue (NAME_RELEASE): ESRCH, EADDRINUSE."""
        self._link.perform(self._commands.name_release(name))

    def match_add(self, cookie: int, rules: Sequence[MatchRule], *, replace: bool = False) -> None:
        """Ask for the signals and notifications that pass all of these rules (MATCH_ADD).

        Several may have one cookie; `replace` removes those that had it.  Raises EDOM, EINVAL, EMFILE.
        """
        self._link.perform(self._commands.match_add(cookie, rules, replace=replace))

    def match_remove(self, cookie: int) -> None:
        """Ask for what was added under a cookie no longer (MATCH_REMOVE): EBADSLT."""
        self._link.perform(self._commands.match_remove(cookie))

    def update(
        self,
        *,
        attach_send: int | None = None,
        attach_recv: int | None = None,
        policy: Sequence[PolicyEntry] | None = None,
    ) -> None:
        """Change what is told of us and to us, or the policy of a policy holder (UPDATE)."""
        self._link.perform(self._commands.update(attach_send, attach_recv, policy))

    # Questions

    def info(self, id: int | None = None, *, name: str | None = None, attach: int = ATTACH_ALL) -> Info:
        """What is known of a connection, by id or name (CONN_INFO): ENXIO, ESRCH."""
        return self._link.perform(self._commands.info(id, name, attach))

    def creator_info(self, attach: int = ATTACH_ALL) -> Info:
        """What is known of whoever made the bus, and the bus' name (BUS_CREATOR_INFO)."""
        return self._link.perform(self._commands.creator_info(attach))

    def list(self, flags: ListFlag = LIST_ALL) -> Infos:
        """Who is on the bus, and with which names (LIST): one `Info` a connection, without credentials."""
        return self._link.perform(self._commands.list(flags))
