"""One domain, put together: the broker, its nodes as sockets, and the buses that were configured.

`Host` owns all of them.  It is made from a configuration, may be given a new one while it runs (`reload`),
and gives everything back in `close`: clients see the end of their sockets, and no file is left.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from dataclasses import fields, replace
from pathlib import Path

from kdbus_core.daemon.buses import ConfiguredBuses
from kdbus_core.daemon.config import Config, ConfigError, LimitsConfig
from kdbus_core.domain import Domain
from kdbus_core.metadata import Process
from kdbus_core.transport.processes import read_process
from kdbus_core.transport.server import NodeServer, ServerLimits

_FIXED = "cannot be changed while the domain is there"


def own_process() -> Process:
    """Who this process is, as a client would see it: the other end of a socket of its own."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        process = read_process(near)
    credentials = process.credentials
    if credentials.pidfd is not None:  # nobody needs a reference to what is always there
        os.close(credentials.pidfd)
    return replace(process, credentials=replace(credentials, pidfd=None))


def _server_limits(limits: LimitsConfig) -> ServerLimits:
    chosen = {
        limit.name: value
        for limit in fields(ServerLimits)
        if (value := getattr(limits, limit.name)) is not None
    }
    return ServerLimits(**chosen)


class Host:
    """A domain that can be connected to while it is there."""

    def __init__(
        self,
        directory: Path,
        config: Config,
        process: Process,
        loop: asyncio.AbstractEventLoop,
        log: logging.Logger,
    ) -> None:
        """Make the domain and serve it in `directory`.

        Raises OSError where the directory cannot be had, ConfigError where the configuration cannot be
        carried out; then nothing is left.
        """
        self.domain = Domain(
            os.urandom,
            time.monotonic_ns,
            time.time_ns,
            owner=process.credentials,
            access=config.access,
            max_pool_size=config.limits.max_pool_size,
        )
        self._limits = config.limits
        self._server = NodeServer(self.domain, directory, loop, log, limits=_server_limits(config.limits))
        self._buses = ConfiguredBuses(self.domain, process)
        try:
            self._buses.apply(config)
        except BaseException:
            self.close()
            raise

    def reload(self, config: Config) -> None:
        """Go by another configuration from now on; ConfigError if that cannot be, and nothing has changed."""
        if config.access != self.domain.access:
            raise ConfigError(config.file, "access", _FIXED)
        for limit in fields(LimitsConfig):
            if getattr(config.limits, limit.name) != getattr(self._limits, limit.name):
                raise ConfigError(config.file, f"limits.{limit.name}", _FIXED)
        self._buses.apply(config)

    def close(self) -> None:
        """End the domain and everybody in it."""
        self._server.close()
        self.domain.close()
