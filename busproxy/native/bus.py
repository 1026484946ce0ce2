"""A native program's connection to a bus, spoken to in D-Bus terms.

One task receives. Whatever comes is taken in the order of the broker's queue, replies and what the broker
says of names included, so that nobody sees a reply before the signal that was sent ahead of it. Handlers are
called from that task; what they return to be awaited goes on in a task of its own.

A call is a request with a deadline: it ends with its reply, or with the error that the broker's refusal,
its notification or the end of the connection stands for. Nothing is retried.

Who owns descriptors: what is sent is borrowed until the coroutine returns; what comes with a reply is the
caller's; what comes with a call or a signal is closed when its handler is through, unless detached.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Coroutine, Iterable
from errno import EIO, EPIPE, ESHUTDOWN, ETIMEDOUT
from inspect import isawaitable, iscoroutine
from itertools import count
from typing import Any

from busproxy.errno_names import Refused, command_error, send_error
from busproxy.match_entries import message_filter, own_signal_entries, rule_entries
from busproxy.native import driver
from busproxy.native.errors import FAILED, INCONSISTENT_MESSAGE, NOT_SUPPORTED, DBusError
from busproxy.native.messages import (
    Message,
    Outgoing,
    build_message,
    filter_arguments,
    read_message,
    unique_name,
)
from busproxy.native.objects import MethodTable
from busproxy.native.requests import Requests, address_of
from busproxy.native.rules import DRIVER_NAME, Match, Rules, SignalHandler
from busproxy.native.serving import Answers, current_call
from busproxy.wire.errors import ProtocolError
from busproxy.wire.header import NO_AUTO_START, NO_REPLY_EXPECTED, MessageType
from kdbus_core.abi import MATCH_ANY, AttachFlag, HelloFlag, ItemType, MessageFlag
from kdbus_core.errors import KdbusError
from kdbus_core.matches import MatchRule, NameNotice
from kdbus_core.transport.client import IdChanged, NameChanged, Received, ReplyDead, ReplyTimeout
from kdbus_core.transport.client.aio import Connection, open_node

__all__ = ["DEFAULT_TIMEOUT", "NativeBus", "connect", "current_call"]

DEFAULT_TIMEOUT = 25.0
"""Seconds that a call waits for its reply, as in most D-Bus libraries."""

DRIVER_PATH = "/org/freedesktop/DBus"
_OWN_COOKIE = 1
"""The cookie of what every program listens to."""

_log = logging.getLogger(__name__)


async def connect(path: str | os.PathLike[str], *, description: str = "") -> NativeBus:
    """Connect to the bus behind a node, `…/BUS/bus`; `description` may be seen by others.

    Raises `KdbusError` with what open(2) or HELLO says. The result is an asynchronous context manager.
    """
    handle = await open_node(path)
    try:
        connection = await handle.hello(
            flags=HelloFlag.ACCEPT_FD, attach_recv=AttachFlag.NAMES, description=description
        )
    except BaseException:
        handle.close()
        raise
    try:
        for rules in _own_entries(connection.id):
            await connection.match_add(_OWN_COOKIE, rules)
    except BaseException:
        connection.close()
        raise
    return NativeBus(connection)


def _own_entries(id: int) -> list[list[MatchRule]]:
    """What is sent to us, and what becomes of our names."""
    own_names: list[list[MatchRule]] = [
        [NameNotice(ItemType.NAME_ADD, MATCH_ANY, id, None)],
        [NameNotice(ItemType.NAME_CHANGE, MATCH_ANY, id, None)],
        [NameNotice(ItemType.NAME_CHANGE, id, MATCH_ANY, None)],
        [NameNotice(ItemType.NAME_REMOVE, id, MATCH_ANY, None)],
    ]
    return own_signal_entries(id) + own_names


class NativeBus:
    """A connection to a bus; made by `connect`, ended by `close` or with the server."""

    def __init__(self, connection: Connection) -> None:
        """Own a connection that listens to `_own_entries`."""
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._cookies = count(1)
        self._match_cookies = count(_OWN_COOKIE + 1)
        self._rules = Rules()
        self._names: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._end: asyncio.Future[KdbusError | None] = self._loop.create_future()
        self._requests = Requests(connection)
        self._answers = Answers(connection, self._cookies, self._go_on)
        self._receiver = self._loop.create_task(self._receive())

    @property
    def unique_name(self) -> str:
        """Our name on this bus."""
        return unique_name(self._connection.id)

    @property
    def connection(self) -> Connection:
        """The connection itself, for commands that D-Bus has no words for."""
        return self._connection

    async def __aenter__(self) -> NativeBus:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Disconnect. Calls that wait end with Disconnected, handlers that wait are cancelled."""
        tasks = [task for task in (self._receiver, *self._tasks) if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._finish(None)

    async def wait_disconnected(self) -> KdbusError | None:
        """Wait for the end of the connection: why it ended, None if it was closed here."""
        return await asyncio.shield(self._end)

    def _finish(self, error: KdbusError | None) -> None:
        self._connection.close()
        self._requests.fail_all(DBusError.of(send_error(ESHUTDOWN, Refused())))
        if not self._end.done():
            self._end.set_result(error)

    # Calls

    async def call(
        self,
        destination: str,
        path: str,
        interface: str | None,
        member: str,
        signature: str = "",
        *values: Any,
        timeout: float | None = DEFAULT_TIMEOUT,
        flags: int = 0,
    ) -> tuple[Any, ...]:
        """Call a method and wait for its results, as many seconds as `timeout` says (None: however long).

        `flags` are those of D-Bus: NO_AUTO_START (2), ALLOW_INTERACTIVE_AUTHORIZATION (4); with
        NO_REPLY_EXPECTED (1) nothing is waited for but that the broker has taken it. Raises `DBusError`;
        `ValueError` and `TypeError` for what cannot be said in D-Bus.
        """
        if destination == DRIVER_NAME:
            return await self._call_driver(path, interface, member, signature, values)
        cookie = next(self._cookies)
        outgoing = build_message(
            MessageType.METHOD_CALL,
            cookie,
            signature,
            values,
            flags=flags,
            path=path,
            interface=interface,
            member=member,
            destination=destination,
        )
        refused = Refused(
            MessageType.METHOD_CALL,
            self.unique_name,
            destination,
            interface=interface,
            member=member,
            auto_start=not flags & NO_AUTO_START,
        )
        message_flags = MessageFlag.NO_AUTO_START if flags & NO_AUTO_START else MessageFlag(0)
        if flags & NO_REPLY_EXPECTED:
            await self._send(outgoing, cookie, refused, flags=message_flags)
            return ()
        self._check_open()
        reply = await self._requests.perform(outgoing, cookie, refused, flags=message_flags, timeout=timeout)
        if reply.type == MessageType.ERROR:
            reply.close()
            text = reply.values[0] if reply.values and isinstance(reply.values[0], str) else ""
            raise DBusError(reply.error_name or FAILED, text)
        return reply.values

    async def _call_driver(
        self, path: str, interface: str | None, member: str, signature: str, values: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        self._check_open()
        if interface in (None, DRIVER_NAME):
            if member in ("AddMatch", "RemoveMatch"):
                raise DBusError(NOT_SUPPORTED, f"{member} is what add_match and remove_match are for")
            if member == "StartServiceByName" and signature == "su":
                return (await self.start_service(values[0]),)
        try:
            return await driver.call_driver(self._connection, interface, member, signature, values)
        except KdbusError as error:
            raise DBusError.of(command_error(error)) from error

    # Signals

    async def emit(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *values: Any,
        destination: str | None = None,
    ) -> None:
        """Emit a signal, to everybody who wants it or to one destination.  Raises as `call`."""
        cookie = next(self._cookies)
        outgoing = build_message(
            MessageType.SIGNAL,
            cookie,
            signature,
            values,
            flags=NO_REPLY_EXPECTED,
            path=path,
            interface=interface,
            member=member,
            destination=destination,
        )
        filter = message_filter(
            self._connection.bloom,
            path=path,
            interface=interface,
            member=member,
            arguments=filter_arguments(signature, values),
        )
        refused = Refused(
            MessageType.SIGNAL, self.unique_name, destination, interface=interface, member=member
        )
        await self._send(outgoing, cookie, refused, filter=filter)

    async def _send(self, outgoing: Outgoing, cookie: int, refused: Refused, **options: Any) -> None:
        """Send what has no reply; what is refused is an error."""
        self._check_open()
        destination = None if refused.destination is None else address_of(refused)
        try:
            await self._connection.send(
                outgoing.payload, destination=destination, cookie=cookie, fds=outgoing.fds, **options
            )
        except KdbusError as error:
            raise DBusError.of(send_error(error, refused)) from error

    async def add_match(self, rule: str, handler: SignalHandler) -> Match:
        """Have `handler` called with each signal for which a match rule holds, until it is removed.

        A rule with the sender org.freedesktop.DBus gets NameOwnerChanged, and NameAcquired and NameLost for
        our own names. Raises `MatchRuleError` for what is no rule, `DBusError` when there are too many.
        """
        self._check_open()
        match = Match(rule, next(self._match_cookies), handler)
        self._rules.add(match)
        try:
            for entry in self._entries(match):
                await self._connection.match_add(match.cookie, entry)
        except KdbusError as error:
            await self.remove_match(match)
            raise DBusError.of(command_error(error)) from error
        return match

    async def remove_match(self, match: Match) -> None:
        """Have a handler called no longer; nothing happens when it was removed before."""
        if self._rules.remove(match) and self._entries(match) and not self._end.done():
            try:
                await self._connection.match_remove(match.cookie)
            except KdbusError as error:  # not one of its entries is there, or the connection is gone
                _log.debug("match %s: %s", match.text, error)

    def _entries(self, match: Match) -> list[list[MatchRule]]:
        """What is sent to us comes anyway."""
        return [] if match.rule.destination is not None else rule_entries(self._connection.bloom, match.rule)

    # Names

    async def request_name(self, name: str, flags: int = 0) -> int:
        """RequestName: flags 1 allow replacement, 2 replace existing, 4 do not queue.

        Gives 1 (we are the owner), 2 (we are in the queue), 3 (somebody else has it), 4 (we had it already).
        """
        self._check_open()
        return await driver.request_name(self._connection, name, flags)

    async def release_name(self, name: str) -> int:
        """ReleaseName: 1 (released), 2 (nobody has it), 3 (it is not ours)."""
        self._check_open()
        return await driver.release_name(self._connection, name)

    async def start_service(self, name: str) -> int:
        """StartServiceByName: 1 (it was started), 2 (it runs already)."""
        self._check_open()
        if name == DRIVER_NAME or await driver.find_owner(self._connection, name) is not None:
            return driver.ALREADY_RUNNING
        try:
            await self.call(name, "/", "org.freedesktop.DBus.Peer", "Ping")
        except DBusError:
            if await driver.find_owner(self._connection, name) is None:
                raise
        return driver.STARTED

    # Objects

    def export(self, path: str, interface: str, methods: MethodTable) -> None:
        """Export an interface at a path: a table of name → (arguments, results, handler); see `objects`.

        Raises `ValueError` for names and signatures that D-Bus does not have, and for what is there already.
        """
        self._answers.objects.add(path, interface, methods)

    def unexport(self, path: str, interface: str) -> None:
        """Export it no longer; `ValueError` when it is not there."""
        self._answers.objects.remove(path, interface)

    # What comes

    async def _receive(self) -> None:
        error: KdbusError | None = None
        connection = self._connection
        try:
            while True:
                await connection.wait()
                while (received := await connection.receive()) is not None:
                    with received:
                        message = self._read(received)
                    if message is not None:
                        await self._dispatch(message)
        except KdbusError as why:
            error = why
        except Exception as why:
            _log.exception("%s cannot receive any more", self.unique_name)
            error = KdbusError(EIO, str(why))
        finally:
            self._finish(error)

    def _read(self, received: Received) -> Message | None:
        """What was received, None where that is dealt with."""
        if received.lost:
            _log.warning("%s has lost %d messages", self.unique_name, received.lost)
        try:
            notification = received.notification
            match notification:
                case None:
                    return read_message(received)
                case ReplyDead(cookie):
                    self._requests.on_lost(cookie, EPIPE)
                case ReplyTimeout(cookie):
                    self._requests.on_lost(cookie, ETIMEDOUT)
                case NameChanged() | IdChanged():
                    self._on_change(notification)
        except (ProtocolError, KdbusError) as error:
            self._refuse(received, error)
        return None

    def _refuse(self, received: Received, error: Exception) -> None:
        """A message cannot be read: whoever waits for something because of it is told."""
        sender = unique_name(received.sender)
        _log.debug("a message from %s cannot be read: %s", sender, error)
        unreadable = DBusError(INCONSISTENT_MESSAGE, f"The message cannot be read: {error}")
        if received.flags & MessageFlag.EXPECT_REPLY:
            call = Message(MessageType.METHOD_CALL, sender, cookie=received.cookie)
            self._go_on(self._answers.refuse(call, unreadable), call)
        elif received.cookie_reply:
            self._requests.fail(received.cookie_reply, unreadable)

    async def _dispatch(self, message: Message) -> None:
        match message.type:
            case MessageType.METHOD_CALL:
                await self._answers.serve(message)
            case MessageType.SIGNAL:
                self._deliver(message)
            case MessageType.METHOD_RETURN | MessageType.ERROR:
                self._requests.on_reply(message)
            case _:
                message.close()

    # Signals that come

    def _deliver(self, message: Message) -> None:
        """Call every handler whose rule holds; the descriptors are closed when the last one is through."""
        waiting: list[Awaitable[Any]] = []
        for match in self._rules.matching(message, self._connection.id, self._names):
            try:
                result = match.handler(message)
            except Exception:
                _log.exception("the handler of %s has failed", match.text)
                continue
            if isawaitable(result):
                waiting.append(result)
        if waiting:
            self._go_on(self._await_handlers(message, waiting), message, waiting)
        else:
            message.close()

    async def _await_handlers(self, message: Message, waiting: list[Awaitable[Any]]) -> None:
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(outcome, Exception):
                _log.error("the handler of a signal %s has failed", message.member, exc_info=outcome)

    def _on_change(self, change: NameChanged | IdChanged) -> None:
        """What the broker says of names and connections, as the signals that D-Bus has for it."""
        if isinstance(change, IdChanged):
            if not change.flags & (HelloFlag.ACTIVATOR | HelloFlag.MONITOR | HelloFlag.POLICY_HOLDER):
                name = unique_name(change.id)
                has_come = change.kind == ItemType.ID_ADD
                self._tell("NameOwnerChanged", name, "" if has_come else name, name if has_come else "")
            return
        old = unique_name(change.old_id) if change.old_id and driver.is_owned(change.old_flags) else ""
        new = unique_name(change.new_id) if change.new_id and driver.is_owned(change.new_flags) else ""
        if old == new:
            return
        if old == self.unique_name:
            self._names.discard(change.name)
            self._tell("NameLost", change.name, destination=old)
        self._tell("NameOwnerChanged", change.name, old, new)
        if new == self.unique_name:
            self._names.add(change.name)
            self._tell("NameAcquired", change.name, destination=new)

    def _tell(self, member: str, *names: str, destination: str | None = None) -> None:
        self._deliver(
            Message(
                MessageType.SIGNAL,
                DRIVER_NAME,
                NO_REPLY_EXPECTED,
                path=DRIVER_PATH,
                interface=DRIVER_NAME,
                member=member,
                destination=destination,
                signature="s" * len(names),
                values=names,
            )
        )

    # Everything else

    def _go_on(
        self, work: Coroutine[Any, Any, None], message: Message, awaited: Iterable[object] = ()
    ) -> None:
        """Have work done in a task; at its end, even if it never began, what it was about is let go."""
        task = self._loop.create_task(work)
        self._tasks.add(task)

        def end(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            message.close()
            for coroutine in awaited:
                if iscoroutine(coroutine):
                    coroutine.close()

        task.add_done_callback(end)

    def _check_open(self) -> None:
        if self._end.done():
            raise DBusError.of(send_error(ESHUTDOWN, Refused()))
