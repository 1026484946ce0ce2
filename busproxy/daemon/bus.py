"""One bus, put together: broker, router, driver, activation, sockets.

`EmbeddedBus` owns all of them and is the driver's host.  It is made from a
configuration, may take a new one while it runs (`reload`), and gives
everything back in `close`.  `open_to_natives` opens the broker's nodes to
native peers beside the clients.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, assert_never

from busproxy.activation.activator import Activation
from busproxy.activation.launcher import Launcher
from busproxy.activation.service_files import (
    ServiceFileError,
    load_service_directories,
    prepare_transient_service_directory,
    standard_session_service_directories,
    standard_system_service_directories,
    transient_session_service_directory,
)
from busproxy.credentials import PeerUnknown, peer_credentials
from busproxy.daemon.process import machine_id, user_name
from busproxy.driver import Driver
from busproxy.peer import Peer
from busproxy.policy.config import BusConfig, ServiceDirKind
from busproxy.policy.loader import ConfigError, load_config, resolve_user, selinux_enabled
from busproxy.router import UNLIMITED, Router
from busproxy.transport.acceptor import Acceptor
from busproxy.transport.fds import FdSet
from busproxy.wire.sasl import SaslServer
from kdbus_core.abi import MakeFlag
from kdbus_core.domain import Domain
from kdbus_core.metadata import Credentials, Process
from kdbus_core.node import is_valid_node_name
from kdbus_core.quota import Quota

if TYPE_CHECKING:
    from busproxy.transport.listeners import Listener
    from busproxy.transport.poller import Poller
    from busproxy.wire.sasl import CookieSource
    from kdbus_core.bus import Bus
    from kdbus_core.transport.server import NodeServer

DEFAULT_MECHANISMS = ("EXTERNAL", "DBUS_COOKIE_SHA1", "ANONYMOUS")


class EmbeddedBus:
    """A bus with its broker inside the process."""

    def __init__(
        self,
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
        self.pid = os.getpid()
        self.uid = os.geteuid()
        self.pidfd = _own_pidfd()
        self.has_selinux = selinux_enabled()
        self._config_file = config_file
        self._config = config
        self._listeners = listeners
        self._log = log
        self._cookies: CookieSource | None = None
        self._mechanisms: tuple[str, ...] = ()
        creator = Credentials(uid=self.uid, gid=os.getegid(), pid=self.pid)
        self.domain = Domain(os.urandom, time.monotonic_ns, time.time_ns, owner=creator, access=MakeFlag(0))
        self.bus = self._make_bus()
        self._nodes: NodeServer | None = None
        self.bus.names.replacers_first = True
        self.guid = self.bus.id128.hex()
        self.router = Router(self.bus, poller, loop, log, config.limits, config.connect, self.uid)
        self.driver = Driver(self.router, self)
        launcher = Launcher(
            os.environ,
            bus_type=config.type,
            address=address,
            helper=config.servicehelper,
            fd_limit=fd_limit,
        )
        self._service_directories: list[str] = []
        self._strict_directories: set[str] = set()
        self._scanned: list[int] = []
        self.activation = Activation(self.router, launcher, self._rescan_services, systemd=systemd_activation)
        self._acceptor = Acceptor(loop, listeners, self._on_client, self._is_full, log)
        self.router.on_incomplete_change = self._acceptor.review
        self._apply(config)

    def _make_bus(self) -> Bus:
        """The bus that all of this is about, owned by the user that the daemon runs as.

        Native peers of other users get onto a system bus only; what they may do there is kdbus' policy.
        """
        name = f"{self.uid}-{self._config.type or 'bus'}"
        if not is_valid_node_name(name):
            name = f"{self.uid}-bus"
        access = MakeFlag.ACCESS_WORLD if self._config.type == "system" else MakeFlag(0)
        return self.domain.make_bus(name, Process.of(self.domain.owner), access)

    # Clients and native peers

    def open_to_natives(self, directory: str) -> None:
        """Have native peers connect at `directory`/NAME/bus, NAME being that of the bus; OSError."""
        from kdbus_core.transport.server import NodeServer

        self._nodes = NodeServer(self.domain, directory, self.router.loop, self._log)
        self._log.info("native peers connect at %s/%s/bus", directory, self.bus.name)

    def start(self) -> None:
        """Begin to accept clients."""
        self._acceptor.start()

    def _is_full(self) -> bool:
        return self.router.incomplete >= self.router.limits.max_incomplete_connections

    def _on_client(self, sock: socket.socket, listener: Listener) -> None:
        try:
            credentials = peer_credentials(sock)
        except PeerUnknown as error:
            self._log.warning("refusing a client: %s", error)
            sock.close()
            return
        limits = self.router.limits
        sasl = SaslServer(
            guid=listener.guid,
            mechanisms=self._mechanisms,
            peer_uid=credentials.uid,
            resolve_user=resolve_user,
            cookies=self._cookies,
        )
        peer = Peer(
            sock,
            self.router,
            credentials,
            sasl,
            self.domain.user(credentials.uid),
            Quota(limits.max_outgoing_bytes, UNLIMITED, limits.max_outgoing_unix_fds),
        )
        self.router.on_accepted(peer)

    # Configuration

    def reload(self) -> None:
        """Read the configuration again; raises ValueError and changes nothing if it is wrong."""
        try:
            config = load_config(self._config_file)
        except ConfigError as error:
            self._log.error("configuration not reloaded: %s", error)
            raise ValueError(str(error)) from error
        self.router.apply(config.limits, config.connect)
        self._config = config
        self._apply(config)
        self._log.info("configuration reloaded")

    def _apply(self, config: BusConfig) -> None:
        for warning in (*config.warnings, *config.unenforced()):
            self._log.warning("%s", warning)
        named = {mechanism.value for mechanism in config.auth}
        mechanisms = tuple(name for name in DEFAULT_MECHANISMS if not named or name in named)
        if not config.allow_anonymous:
            mechanisms = tuple(name for name in mechanisms if name != "ANONYMOUS")
        if "DBUS_COOKIE_SHA1" in mechanisms:
            mechanisms = self._with_cookies(mechanisms, required="DBUS_COOKIE_SHA1" in named)
        self._mechanisms = mechanisms
        self._find_service_directories(config)
        self._load_services()

    def _with_cookies(self, mechanisms: tuple[str, ...], *, required: bool) -> tuple[str, ...]:
        """Offer cookies if asked for by name; EXTERNAL is what unix sockets want otherwise."""
        if not required:
            return tuple(name for name in mechanisms if name != "DBUS_COOKIE_SHA1")
        if self._cookies is None:
            from pathlib import Path

            from busproxy.transport.keyring import Keyring

            home = os.environ.get("DBUS_TEST_HOMEDIR") or os.path.expanduser(f"~{user_name(self.uid)}")
            self._cookies = Keyring(Path(home) / ".dbus-keyrings")
        return mechanisms

    # Services

    def _find_service_directories(self, config: BusConfig) -> None:
        directories: list[str] = []
        strict: set[str] = set()
        for entry in config.service_dirs:
            match entry.kind:
                case ServiceDirKind.EXPLICIT:
                    assert entry.path is not None
                    directories.append(entry.path)
                case ServiceDirKind.STANDARD_SESSION:
                    try:
                        prepare_transient_service_directory(os.environ)
                    except OSError as error:
                        self._log.warning("no services of this session only: %s", error)
                    directories += standard_session_service_directories(os.environ)
                    transient = transient_session_service_directory(os.environ)
                    if transient is not None:
                        strict.add(transient)
                case ServiceDirKind.STANDARD_SYSTEM:
                    directories += standard_system_service_directories()
                case unreachable:
                    assert_never(unreachable)
        self._service_directories = directories
        self._strict_directories = strict

    def _load_services(self) -> None:
        self._scanned = self._times()
        self.activation.load(
            load_service_directories(
                self._service_directories, strict=self._strict_directories, on_problem=self._on_bad_service
            )
        )

    def _rescan_services(self) -> None:
        """Look for services again where a directory has changed."""
        if self._times() != self._scanned:
            self._load_services()

    def _times(self) -> list[int]:
        """When each directory was changed, in nanoseconds; 0 for one that is not there."""
        times = []
        for directory in self._service_directories:
            try:
                times.append(os.stat(directory).st_mtime_ns)
            except OSError:
                times.append(0)
        return times

    def _on_bad_service(self, problem: ServiceFileError) -> None:
        self._log.warning("%s", problem)

    # What the driver asks for

    def machine_id(self) -> str:
        return machine_id()

    # The end

    def close(self) -> None:
        """Disconnect everybody and stop listening."""
        self._acceptor.stop()
        self.activation.close()
        # Nobody is told of the others' going: the bus itself goes.
        self.driver.close()
        if self._nodes is not None:
            self._nodes.close()
        for peer in list(self.router.peers):
            peer.close()
        self._acceptor.stop()
        if self.pidfd is not None:
            self.pidfd.release()
        for listener in self._listeners:
            listener.close()


def _own_pidfd() -> FdSet | None:
    try:
        return FdSet([os.pidfd_open(os.getpid())])
    except OSError:
        return None
