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

from kdbus_core.connection import Limits
from kdbus_core.daemon.buses import ConfiguredBuses
from kdbus_core.daemon.config import Config, ConfigError, LimitsConfig
from kdbus_core.domain import Domain
from kdbus_core.metadata import Process
from kdbus_core.transport.processes import read_process
from kdbus_core.transport.server import NodeServer, ServerLimits

SPARE_HANDLES = ServerLimits().handles_per_user - LimitsConfig().connections_per_user
"""Handles of a user beside those of all the connections it may have."""
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


def connection_limits(limits: LimitsConfig) -> Limits:
    """What each connection may have, and what may wait there."""
    return Limits(
        names=limits.names_per_connection,
        matches=limits.matches_per_connection,
        outstanding_requests=limits.requests_per_connection,
        queued_messages=limits.waiting_messages_per_user,
        in_flight_fds=limits.waiting_fds_per_user,
    )


def server_limits(limits: LimitsConfig) -> ServerLimits:
    """What the server allows; who may have more connections also has handles for them."""
    handles_per_user = limits.handles_per_user
    if handles_per_user is None:
        handles_per_user = limits.connections_per_user + SPARE_HANDLES
    return ServerLimits(limits.handles, handles_per_user, limits.open_files_per_user)


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
            max_connections_per_user=config.limits.connections_per_user,
            limits=connection_limits(config.limits),
        )
        self._limits = config.limits
        self._server = NodeServer(self.domain, directory, loop, log, limits=server_limits(config.limits))
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
