"""Calls that wait for their reply.

A call is a request with a deadline, posted: only a refusal of the broker is answered. It ends once, with its
reply or with the error that a refusal, a notification or the end of the connection stands for. A reply that
nobody waits for any more is closed, and so are the descriptors in it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from errno import ENXIO

from busproxy.errno_names import Refused, send_error
from busproxy.match_entries import connection_id
from busproxy.native.errors import DBusError
from busproxy.native.messages import Message, Outgoing
from kdbus_core.abi import MATCH_ANY, MessageFlag
from kdbus_core.errors import KdbusError
from kdbus_core.transport.client.aio import Connection

__all__ = ["Requests", "address_of"]

_NEVER_NS = 1 << 62
"""A deadline beyond all times of the monotonic clock."""

_log = logging.getLogger(__name__)


def address_of(refused: Refused) -> int | str:
    """The id behind a unique name, or the name; `DBusError` for a unique name that nobody can have."""
    destination = refused.destination or ""
    if destination[:1] != ":":
        return destination
    id = connection_id(destination)
    if not id or id >= MATCH_ANY:
        raise DBusError.of(send_error(ENXIO, refused))
    return id


class _Request:
    """A call that waits: its reply, and what its refusal would speak of."""

    __slots__ = ("refused", "reply")

    def __init__(self, reply: asyncio.Future[Message], refused: Refused) -> None:
        self.reply = reply
        self.refused = refused

    def succeed(self, message: Message) -> None:
        if self.reply.done():
            message.close()
        else:
            self.reply.set_result(message)

    def fail(self, error: DBusError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)

    def abandon(self) -> None:
        """Nobody waits any more; what has come meanwhile is nobody's."""
        if not self.reply.cancel() and not self.reply.cancelled() and self.reply.exception() is None:
            self.reply.result().close()


class Requests:
    """The open calls of a connection, by cookie."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._open: dict[int, _Request] = {}
        connection.on_error = self.on_refused

    async def perform(
        self,
        outgoing: Outgoing,
        cookie: int,
        refused: Refused,
        *,
        flags: MessageFlag,
        timeout: float | None,
    ) -> Message:
        """Send a request and wait for what answers it, for so many seconds; `DBusError`."""
        deadline = _NEVER_NS
        if timeout is not None:
            deadline = min(deadline, time.monotonic_ns() + max(1, int(timeout * 1e9)))
        destination = address_of(refused)
        request = self._open[cookie] = _Request(asyncio.get_running_loop().create_future(), refused)
        try:
            await self._connection.post(
                outgoing.payload,
                destination=destination,
                cookie=cookie,
                flags=flags | MessageFlag.EXPECT_REPLY,
                timeout_ns=deadline,
                fds=outgoing.fds,
            )
            return await request.reply
        except KdbusError as error:
            request.abandon()
            raise DBusError.of(send_error(error, refused)) from error
        except BaseException:
            request.abandon()
            raise
        finally:
            del self._open[cookie]

    def on_refused(self, cookie: int, error: KdbusError) -> None:
        """The broker has refused what was posted: a call, or a reply that nobody can be told about."""
        request = self._open.get(cookie)
        if request is not None:
            request.fail(DBusError.of(send_error(error, request.refused)))
        else:
            _log.debug("reply %d was refused: %s", cookie, error)

    def on_reply(self, message: Message) -> None:
        """A reply has come."""
        request = self._open.get(message.reply_cookie)
        if request is not None:
            request.succeed(message)
        else:
            message.close()

    def on_lost(self, cookie: int, errno: int) -> None:
        """The broker says that there will be no reply: EPIPE, ETIMEDOUT."""
        request = self._open.get(cookie)
        if request is not None:
            request.fail(DBusError.of(send_error(errno, request.refused)))

    def fail(self, cookie: int, error: DBusError) -> None:
        """End a call, if it is open."""
        request = self._open.get(cookie)
        if request is not None:
            request.fail(error)

    def fail_all(self, error: DBusError) -> None:
        """End every call."""
        for request in self._open.values():
            request.fail(error)
