"""The bus of another broker, put together with everything the proxy has for an embedded one (`--core`).

What happens on that bus is told before each round of the clients' sockets, so that whatever a client sends is
dealt with in the light of everything that the broker has done before.  When the broker goes away, so does the
proxy (`busproxy.core.gone`).
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from busproxy.core import RemoteBus
from busproxy.daemon.bus import EmbeddedBus
from busproxy.router import peer_of

if TYPE_CHECKING:
    from busproxy.policy.config import BusConfig
    from busproxy.transport.listeners import Listener
    from busproxy.transport.poller import Poller
    from kdbus_core.bus import Bus
    from kdbus_core.connection import Connection


class SplitBus(EmbeddedBus):
    """A bus whose broker is somewhere else; KdbusError when there is none at `endpoint`."""

    def __init__(
        self,
        endpoint: str,
        config_file: str,
        config: BusConfig,
        listeners: list[Listener],
        address: str,
        loop: asyncio.AbstractEventLoop,
        poller: Poller,
        log: logging.Logger,
        *,
        systemd_activation: bool,
        fd_limit: tuple[int, int],
    ) -> None:
        self._core = RemoteBus(Path(endpoint), log)
        self._core.on_lost = self._on_lost
        self._core.news.schedule = self._drain_soon
        self._loop = loop
        self._poller = poller
        super().__init__(
            config_file,
            config,
            listeners,
            address,
            loop,
            poller,
            log,
            systemd_activation=systemd_activation,
            fd_limit=fd_limit,
        )

    def _make_bus(self) -> Bus:
        self.domain = self._core.domain
        return self._core

    def start(self) -> None:
        """Begin to listen to the broker, and to accept clients."""
        self._loop.add_reader(self._core.fileno(), self._drain)
        self._poller.before_round = self._drain
        super().start()

    def _drain(self) -> None:
        try:
            self._core.drain()
        except Exception as error:  # a bug must not cost the bus
            self._log.error("internal error with the news of the broker", exc_info=error)

    def _drain_soon(self) -> None:
        self._poller.hurry()
        self._loop.call_soon(self._drain)

    def _on_lost(self, connection: Connection) -> None:
        peer_of(connection).disconnect("its connection was ended by the broker")

    def close(self) -> None:
        """Leave the broker, disconnect everybody and stop listening."""
        self._poller.before_round = None
        self._loop.remove_reader(self._core.fileno())
        self._core.close()
        super().close()
