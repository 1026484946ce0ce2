"""What a connection is, whichever way one waits for it.

A connection owns its socket, the descriptor that says when there is something to
receive, and the mapping of its pool.  All of them go when it is closed, and when
nobody is using them any more.
"""

from __future__ import annotations

from errno import ENOMEM

from kdbus_core.abi import Command, MakeFlag
from kdbus_core.domain import Bloom
from kdbus_core.errors import KdbusError
from kdbus_core.transport.client.commands import ConnectionCommands
from kdbus_core.transport.client.handle_commands import Welcome
from kdbus_core.transport.client.link import ErrorHandler, Link
from kdbus_core.transport.client.operations import close_fds

HELLO_POOL_SIZE = 16 * 1024 * 1024
"""Bytes of the pool of a connection that does not ask for another."""
MSG_CANCEL = int(Command.MSG_CANCEL)


class BaseConnection:
    """The fixed part of a connection: its identity and its descriptors."""

    def __init__(self, link: Link, welcome: Welcome) -> None:
        """Own the link and the descriptors of the welcome; all of them are closed when that fails."""
        self._link: Link = link
        self._event_fd = welcome.event_fd
        self.id = welcome.id
        self.id128 = welcome.id128
        self.bus_flags: MakeFlag = welcome.bus_flags
        self.pool_size = welcome.pool_size
        try:
            self._commands = ConnectionCommands(welcome, link.free, link.free_now)
        except OSError as error:
            welcome.close()
            link.close()
            raise KdbusError(error.errno or ENOMEM, f"the pool cannot be mapped: {error}") from error
        except BaseException:
            welcome.close()
            link.close()
            raise
        close_fds((welcome.pool_fd,))
        self.bloom: Bloom = self._commands.bloom

    def __repr__(self) -> str:
        return f"<connection {self.id}{' (closed)' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether it was closed on this side."""
        return self._link.closed

    @property
    def lost(self) -> int:
        """How many messages were reported lost so far."""
        return self._commands.lost

    @property
    def on_error(self) -> ErrorHandler | None:
        """Called with cookie and error of a posted message that was refused; without it `drain` raises."""
        return self._link.on_error

    @on_error.setter
    def on_error(self, handler: ErrorHandler | None) -> None:
        self._link.on_error = handler

    def fileno(self) -> int:
        """The descriptor that polls readable while there is something to receive; -1 once closed."""
        return -1 if self._link.closed else self._event_fd

    def socket_fileno(self) -> int:
        """The socket: it polls as hung up when the server has gone; -1 once closed."""
        return -1 if self._link.closed else self._link.fileno

    def _on_closed(self) -> None:
        """Nobody uses the link any more."""
        self._commands.close()
        event_fd, self._event_fd = self._event_fd, -1
        close_fds((event_fd,))

    def _build_cancel(self, cookie: int) -> bytes:
        return self._commands.cancel(cookie).body
