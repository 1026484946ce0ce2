"""SEND: a message, and for a synchronous one the wait for its reply.

A message is read and checked (see `messages`), then handed to the bus.
A synchronous call may wait; until it is over, the command's struct is where
its result goes, and the file that cancels it is held and watched.  However it
ends, the result is written, the canceller let go, and only then is told that
it ended.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT, EINVAL
from struct import Struct
from typing import TYPE_CHECKING

from kdbus_core.abi import ItemType, ReceiveReturnFlag, SendFlag
from kdbus_core.caller import Caller, File
from kdbus_core.commands.forms import MESSAGE, Arguments, parse
from kdbus_core.commands.messages import build_message, open_file
from kdbus_core.errors import KdbusError
from kdbus_core.items import FD
from kdbus_core.message import Message

if TYPE_CHECKING:
    from kdbus_core.connection import Connection
    from kdbus_core.metadata import Origin
    from kdbus_core.synchronous import SyncCall

REPLY_OFFSET = 32
_SYNC_REPLY = int(SendFlag.SYNC_REPLY)
MESSAGE_INFO = Struct("=3Q")
"""Where a message lies: offset, size, flags."""


def send(
    connection: Connection,
    caller: Caller,
    command: Arguments,
    on_done: Callable[[int], None] | None = None,
    origin: Origin | None = None,
) -> SyncCall | None:
    """SEND by an ordinary connection; `origin` finds out who issues it.

    None when it is done; else the synchronous call that is waiting, whose result is in the caller's
    memory before `on_done` gets its errno.
    """
    draft = _parse_draft(caller, command)
    if draft is None:
        return None
    assert connection.inbox is not None
    is_sync = bool(command.flags & _SYNC_REPLY)
    canceller = _open_canceller(caller, command)
    try:
        message = build_message(connection, caller, draft, is_sync=is_sync)
        message.origin = origin
        # There is no reply yet. If that cannot be said, a reply could not either, so nothing is sent.
        _write_or_release(command, MESSAGE_INFO.pack(connection.inbox.pool.size, 0, 0), message)
    except BaseException:
        _close(canceller)
        raise
    if is_sync:
        return _call(connection, message, _Waiting(connection, caller, command, canceller, on_done))
    _close(canceller)
    connection.endpoint.bus.send(connection, message)
    return None


def _write_or_release(command: Arguments, info: bytes, message: Message) -> None:
    try:
        command.write(REPLY_OFFSET, info)
    except KdbusError:
        message.release()
        raise


def _parse_draft(caller: Caller, command: Arguments) -> Arguments | None:
    """The message of a SEND; None when there was only something to negotiate."""
    address = command.fields[0]
    if command.negotiates and not address:
        return None
    if not address:
        raise KdbusError(EFAULT, "there is no message")
    draft = parse(MESSAGE, caller, address)
    if command.negotiates:
        return None
    if draft.negotiates:
        raise KdbusError(EINVAL, "a message cannot negotiate while its command sends it")
    return draft


def _open_canceller(caller: Caller, command: Arguments) -> File | None:
    """The file behind CANCEL_FD: EBADF, and EINVAL when it cannot be waited for."""
    item = command.find(ItemType.CANCEL_FD)
    if item is None:
        return None
    file = open_file(caller, FD.unpack(item.payload)[0])
    if not file.pollable:
        file.close()
        raise KdbusError(EINVAL, "the file that cancels cannot be waited for")
    return file


# Synchronous calls


def _call(connection: Connection, message: Message, waiting: _Waiting) -> SyncCall | None:
    try:
        call = connection.endpoint.bus.call(connection, message, waiting.on_done)
    except BaseException:
        waiting.stop()
        raise
    waiting.watch(call)
    if not waiting.is_told:
        return call
    waiting.stop()
    if call.errno:
        raise KdbusError(call.errno, "the call has ended without a reply")
    return None


class _Waiting:
    """What a synchronous SEND holds while it waits, and where its result goes."""

    def __init__(
        self,
        connection: Connection,
        caller: Caller,
        command: Arguments,
        canceller: File | None,
        on_done: Callable[[int], None] | None,
    ) -> None:
        self._connection = connection
        self._caller = caller
        self._command = command
        self._canceller = canceller
        self._on_done = on_done
        self._unwatch: Callable[[], None] | None = None
        self._returned = False
        self.is_told = False

    def watch(self, call: SyncCall) -> None:
        """From now on the command has returned, unless it is done or the canceller readable already."""
        if self._canceller is not None:
            self._unwatch = self._canceller.watch(lambda: None if call.done else call.cancel())
        self._returned = not self.is_told

    def stop(self) -> None:
        """Let go of the canceller."""
        unwatch, self._unwatch = self._unwatch, None
        if unwatch is not None:
            unwatch()
        canceller, self._canceller = self._canceller, None
        _close(canceller)

    def on_done(self, call: SyncCall) -> None:
        """Write the result; a reply whose place cannot be written is lost, and its slice is free again."""
        self.is_told = True
        if not call.errno:
            call.errno = self._hand_over(call)
        if self._returned:
            self.stop()
            if self._on_done is not None:
                self._on_done(call.errno)

    def _hand_over(self, call: SyncCall) -> int:
        offset, size, incomplete = call.take(self._caller.install)
        flags = ReceiveReturnFlag.INCOMPLETE_FDS if incomplete else 0
        try:
            self._command.write(REPLY_OFFSET, MESSAGE_INFO.pack(offset, size, flags))
        except KdbusError as error:
            assert self._connection.inbox is not None
            self._connection.inbox.pool.free(offset)
            return error.errno
        return 0


def _close(file: File | None) -> None:
    if file is not None:
        file.close()
