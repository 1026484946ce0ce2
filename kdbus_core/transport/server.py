"""A domain's nodes, opened: a directory of sockets, and a session for each handle.

The server is told of nodes as they are made and go (`NodeWatcher`), so what can be connected to is exactly
what there is.  It accepts whoever the nodes let in, up to its limits, and never ends because something has
run out: then it stops accepting for a while, and clients wait in the sockets' queues.

Everything happens in callbacks of one loop.  A session belongs to the server from its acceptance until it
is closed, by its client or with the server.  When a bus goes, the sessions on it stay: their clients are
told by every command, and by the ready descriptor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter
from dataclasses import dataclass
from errno import EACCES, EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from struct import Struct
from typing import TYPE_CHECKING

from kdbus_core.abi import MAX_CONNECTIONS_PER_USER
from kdbus_core.domain import Domain
from kdbus_core.errors import KdbusError
from kdbus_core.node import NodeWatcher
from kdbus_core.notifications import NameChange, Notification
from kdbus_core.transport.deadlines import Deadlines
from kdbus_core.transport.directory import NodeDirectory, NodeFile
from kdbus_core.transport.files import FileAccounts
from kdbus_core.transport.processes import PeerUnknown, read_process
from kdbus_core.transport.session import Session, refuse
from kdbus_core.transport.sockets import PacketReader

if TYPE_CHECKING:
    from kdbus_core.bus import Bus
    from kdbus_core.connection import Connection
    from kdbus_core.endpoint import Endpoint

BATCH = 64
"""Handles that are accepted at one node before others get their turn."""
PAUSE = 1.0
"""Seconds to accept nobody when the system has run out of something."""
MAX_HANDLES = 65536
_FDS_PER_HANDLE = 6
"""Descriptors that a connection takes, generously: socket, event, pool, pidfd."""

_EXHAUSTED = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM})
_UCRED = Struct("=iII")


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits of a server: counts.

    `handles` in total (None: as many as the descriptors of this process allow, at most MAX_HANDLES),
    `handles_per_user` of one uid, `open_files_per_user` that are under way in messages (None: see
    `files.default_limit`).
    """

    handles: int | None = None
    handles_per_user: int = MAX_CONNECTIONS_PER_USER + 64
    open_files_per_user: int | None = None


class NodeServer(NodeWatcher):
    """Opens all nodes of a domain, and of the domains in it, to other processes.

    `reader`, `files`, `loop` and `log` are what the sessions share.
    """

    def __init__(
        self,
        domain: Domain,
        directory: str | Path,
        loop: asyncio.AbstractEventLoop,
        log: logging.Logger,
        *,
        limits: ServerLimits = ServerLimits(),
    ) -> None:
        """Make the directory, and a socket for each node that there is already.

        The domain's monotonic clock has to be time.monotonic_ns.  Raises OSError when the directory cannot
        be made or belongs to another server (BlockingIOError).
        """
        assert domain.nodes.watcher is None, "somebody watches the nodes of this domain already"
        self.domain = domain
        self.loop = loop
        self.log = log
        self.limits = limits
        self.reader = PacketReader()
        self.files = FileAccounts(loop, limits.open_files_per_user)
        self._max_handles = default_handles() if limits.handles is None else limits.handles
        self._sessions: set[Session] = set()
        self._connected: dict[Connection, Session] = {}
        self._handles_of: Counter[int] = Counter()
        self._deadlines: dict[Bus, Deadlines] = {}
        self._pause: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._directory = NodeDirectory(directory, domain)
        try:
            self._open_domain(domain)
        except BaseException:
            self._stop_listening()
            self._directory.close()
            raise
        domain.nodes.watcher = self

    def close(self) -> None:
        """Close every handle, and remove every socket and the directory's files; the domain goes on."""
        if self._is_closed:
            return
        self._is_closed = True
        self._stop_listening()
        if self._pause is not None:
            self._pause.cancel()
        for session in list(self._sessions):
            self._close_session(session)
        for bus, deadlines in self._deadlines.items():
            deadlines.close()
            bus.observers.remove(self._on_notification)
        self._deadlines.clear()
        self._directory.close()
        self.domain.nodes.watcher = None

    @property
    def path(self) -> Path:
        """The directory."""
        return self._directory.path

    @property
    def handles(self) -> int:
        """How many handles are open."""
        return len(self._sessions)

    def handles_of(self, uid: int) -> int:
        """How many handles a user has open."""
        return self._handles_of[uid]

    # Nodes

    def on_made(self, node: Domain | Endpoint) -> None:
        """Open a node that has been made; KdbusError when there can be no socket for it."""
        try:
            self._open(node)
        except OSError as error:
            self.log.error("no socket for %r: %s", node, error)
            raise KdbusError(error.errno or EIO, f"no socket for the node: {error}") from error

    def on_gone(self, node: Domain | Endpoint) -> None:
        """Close a node that has gone; its handles stay, and learn of it."""
        file = self._directory.find(node)
        if file is not None:
            self.loop.remove_reader(file.listener.fileno())
            self._directory.remove(node)
        if isinstance(node, Domain):
            return
        for connection, session in self._connected.items():
            if connection.endpoint is node:
                session.on_ready()
        if node.is_default:
            deadlines = self._deadlines.pop(node.bus, None)
            if deadlines is not None:
                deadlines.close()

    def _open_domain(self, domain: Domain) -> None:
        self._open(domain)
        for bus in domain.buses.values():
            for endpoint in bus.endpoints.values():
                self._open(endpoint)
        for inner in domain.domains.values():
            self._open_domain(inner)

    def _open(self, node: Domain | Endpoint) -> None:
        file = self._directory.make(node)
        if not isinstance(node, Domain) and node.is_default:
            self._deadlines[node.bus] = Deadlines(node.bus, self.loop)
            node.bus.observers.append(self._on_notification)
        if self._pause is None:
            self._listen(node, file)

    # Accepting

    def _listen(self, node: Domain | Endpoint, file: NodeFile) -> None:
        self.loop.add_reader(file.listener.fileno(), self._accept, node, file)

    def _stop_listening(self) -> None:
        for _, file in self._directory:
            self.loop.remove_reader(file.listener.fileno())

    def _resume(self) -> None:
        self._pause = None
        for node, file in self._directory:
            self._listen(node, file)

    def _accept(self, node: Domain | Endpoint, file: NodeFile) -> None:
        for _ in range(BATCH):
            try:
                sock, _ = file.listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self.log.error("no handles can be opened for %g s: %s", PAUSE, error.strerror)
                    self._stop_listening()
                    self._pause = self.loop.call_later(PAUSE, self._resume)
                    return
                self.log.debug("a client went before it was accepted: %s", error.strerror)
                continue
            try:
                sock.setblocking(False)  # noqa: FBT003 - not our signature
                self._open_handle(sock, node, file)
            except KdbusError as error:
                self.log.debug("a handle is refused: %s", error)
                refuse(sock, error.errno)
                sock.close()
            except Exception:  # a bug must cost one client, never the bus
                self.log.exception("a handle cannot be opened")
                sock.close()

    def _open_handle(self, sock: socket.socket, node: Domain | Endpoint, file: NodeFile) -> None:
        if len(self._sessions) >= self._max_handles:
            raise KdbusError(ENFILE, f"{len(self._sessions)} handles are open")
        uid = _peer_uid(sock)
        if self._handles_of[uid] >= self.limits.handles_per_user:
            raise KdbusError(EMFILE, f"uid {uid} has {self._handles_of[uid]} handles open")
        try:
            process = read_process(sock)
        except PeerUnknown as error:
            raise KdbusError(EACCES, f"nothing is known of a client: {error}") from error
        except OSError as error:
            raise KdbusError(ENOMEM, f"a client cannot be looked at: {error}") from error
        try:
            session = Session(self, sock, node, process, uid=uid, is_admitted=file.is_enforced)
        except BaseException:
            if process.credentials.pidfd is not None:
                os.close(process.credentials.pidfd)
            raise
        self._sessions.add(session)
        self._handles_of[uid] += 1

    # Sessions

    def on_connected(self, session: Session, connection: Connection) -> None:
        """A handle has become a connection."""
        self._connected[connection] = session

    def on_closed(self, session: Session) -> None:
        """A handle has been closed."""
        self._sessions.discard(session)
        self._handles_of[session.uid] -= 1
        if not self._handles_of[session.uid]:
            del self._handles_of[session.uid]
        if session.connection is not None:
            del self._connected[session.connection]

    def deadlines(self, bus: Bus) -> Deadlines:
        """The deadlines of an open bus."""
        return self._deadlines[bus]

    def _close_session(self, session: Session) -> None:
        try:
            session.close()
        except Exception:  # all of them, whatever one does
            self.log.exception("a handle of uid %d does not end well", session.uid)

    def _on_notification(self, notification: Notification) -> None:
        """What waits for an activator may have moved on, and nobody has received it."""
        if isinstance(notification, NameChange):
            for connection in (notification.old, notification.new):
                if connection is not None and connection.is_activator:
                    session = self._connected.get(connection)
                    if session is not None:
                        session.review_ready()


def default_handles() -> int:
    """How many handles the descriptors of this process allow, at most MAX_HANDLES."""
    soft = getrlimit(RLIMIT_NOFILE)[0]
    return MAX_HANDLES if soft == RLIM_INFINITY else min(MAX_HANDLES, soft // _FDS_PER_HANDLE)


def _peer_uid(sock: socket.socket) -> int:
    """Whom a handle is counted for; EACCES when the kernel does not say."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    except OSError as error:
        raise KdbusError(EACCES, f"nothing is known of a client: {error.strerror}") from error
    uid: int = _UCRED.unpack(raw)[1]
    return uid
