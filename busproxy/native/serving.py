"""Calls that come, and what they are answered with.

A handler is called at once, in the order in which calls come; what it returns to be awaited goes on in a
task of its own, and its answer comes when it comes. Every call that wants a reply gets one: the results, the
`DBusError` that was raised, or `Failed` for any other exception, which is logged. The descriptors of a call,
and each `Descriptor` among the results, are closed when it is answered.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from inspect import isawaitable
from typing import Any

from busproxy.match_entries import connection_id
from busproxy.native.errors import FAILED, DBusError
from busproxy.native.messages import Message, Outgoing, build_message
from busproxy.native.objects import Method, Objects
from busproxy.native.values import close_given
from busproxy.wire.header import NO_REPLY_EXPECTED, MessageType
from kdbus_core.errors import KdbusError
from kdbus_core.transport.client.aio import Connection

__all__ = ["Answers", "current_call"]

_log = logging.getLogger(__name__)
_current_call: ContextVar[Message] = ContextVar("current_call")


def current_call() -> Message:
    """The call that is being answered, in its handler; `LookupError` elsewhere."""
    return _current_call.get()


class Answers:
    """Answers what a connection is asked.

    `go_on` has work done in a task; at its end the message that it is about is closed, and so are the
    coroutines, which may not have begun.
    """

    def __init__(
        self,
        connection: Connection,
        cookies: Iterator[int],
        go_on: Callable[[Coroutine[Any, Any, None], Message, Iterable[object]], None],
    ) -> None:
        self.objects = Objects()
        self._connection = connection
        self._cookies = cookies
        self._go_on = go_on

    async def serve(self, call: Message) -> None:
        """Answer a call: at once, or when what its handler awaits is there."""
        token = _current_call.set(call)
        try:
            method = self.objects.find(call)
            result = method.handler(*call.values)
        except Exception as error:
            await self.refuse(call, error)
        else:
            if isawaitable(result):
                self._go_on(self._answer_later(call, method, result), call, (result,))
            else:
                await self._answer(call, method, result)
        finally:
            _current_call.reset(token)

    async def _answer_later(self, call: Message, method: Method, result: Awaitable[Any]) -> None:
        try:
            value = await result
        except Exception as error:
            await self.refuse(call, error)
        else:
            await self._answer(call, method, value)

    async def _answer(self, call: Message, method: Method, result: Any) -> None:
        cookie = next(self._cookies)
        values: tuple[Any, ...] = ()
        try:
            values = method.pack(result)
            outgoing = build_message(
                MessageType.METHOD_RETURN,
                cookie,
                method.results,
                values,
                flags=NO_REPLY_EXPECTED,
                destination=call.sender,
                reply_cookie=call.cookie,
            )
        except (ValueError, TypeError) as error:
            await self.refuse(call, error)
        else:
            await self._reply(call, outgoing, cookie)
        finally:
            with suppress(ValueError, TypeError, AttributeError):  # values that do not fit the signature
                close_given(method.results, values)

    async def refuse(self, call: Message, error: Exception) -> None:
        """Answer a call with an error."""
        if not isinstance(error, DBusError):
            _log.error("%s of %s has failed", call.member, call.path, exc_info=error)
            error = DBusError(FAILED, f"{type(error).__name__}: {error}")
        cookie = next(self._cookies)
        try:
            outgoing = build_message(
                MessageType.ERROR,
                cookie,
                "s",
                (error.text,),
                flags=NO_REPLY_EXPECTED,
                error_name=error.name,
                destination=call.sender,
                reply_cookie=call.cookie,
            )
        except (ValueError, TypeError) as why:
            await self.refuse(call, DBusError(FAILED, f"There is no way to say what has failed: {why!r}"))
            return
        await self._reply(call, outgoing, cookie)

    async def _reply(self, call: Message, outgoing: Outgoing, cookie: int) -> None:
        """Send a reply to who wants one; that it was refused is of interest to nobody but the log."""
        try:
            if call.expects_reply:
                await self._connection.post(
                    outgoing.payload,
                    destination=connection_id(call.sender) or 0,
                    cookie=cookie,
                    cookie_reply=call.cookie,
                    fds=outgoing.fds,
                )
        except KdbusError as error:
            _log.debug("reply %d cannot be sent: %s", cookie, error)
        finally:
            call.close()
