"""Taking clients in.

An acceptor watches the listening sockets and makes a peer of each client.  It
never ends: when descriptors run out, or more clients are half-connected than
the limit allows, it stops listening for a while and goes on later; the clients
wait in the sockets' queues meanwhile.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

    from busproxy.transport.listeners import Listener

BATCH = 64
"""Clients taken in per turn of the loop and listener."""

PAUSE = 1.0
"""Seconds to wait when the system has run out of something."""

_EXHAUSTED = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM})


class Acceptor:
    """Accepts on all listeners of a bus."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: list[Listener],
        on_client: Callable[[socket.socket, Listener], None],
        is_full: Callable[[], bool],
        log: logging.Logger,
    ) -> None:
        self._loop = loop
        self._listeners = listeners
        self._on_client = on_client
        self._is_full = is_full
        self._log = log
        self._watching = False
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, or begin again, to accept."""
        self._pause = None
        if self._watching:
            return
        self._watching = True
        for listener in self._listeners:
            self._loop.add_reader(listener.sock.fileno(), self._accept, listener)

    def stop(self) -> None:
        """Accept nobody until `start`."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if not self._watching:
            return
        self._watching = False
        for listener in self._listeners:
            self._loop.remove_reader(listener.sock.fileno())

    def review(self) -> None:
        """The number of half-connected clients has changed."""
        if self._pause is None:
            if self._is_full():
                self.stop()
            else:
                self.start()

    def _accept(self, listener: Listener) -> None:
        for _ in range(BATCH):
            if not self._watching:
                return
            try:
                sock, _ = listener.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._log.error("cannot accept clients for %g s: %s", PAUSE, error.strerror)
                    self.stop()
                    self._pause = self._loop.call_later(PAUSE, self.start)
                    return
                self._log.debug("a client went before it was accepted: %s", error.strerror)
                continue
            sock.settimeout(0)
            self._on_client(sock, listener)
