"""A domain's nodes as files: a directory of listening sockets.

A node appears under its final name only when it has its mode and owner and can be connected to, and its
file goes with it.  The file's mode and owner are the node's, so connect(2) decides as open(2) did on kdbusfs.
Where a file cannot be given away everybody may connect, and the broker itself has to decide: a `Node` says
which of the two it is.

One server has a directory at a time: it holds a lock on `.lock` in it.  What a server that died has left is
removed by the next one, but only where there is such a lock file, so that pointing a server at a
directory of somebody else removes nothing.

The directory owns the listening sockets until `remove` or `close`.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import EINVAL, EPERM, EWOULDBLOCK
from pathlib import Path

from kdbus_core.abi import MakeFlag
from kdbus_core.domain import Domain
from kdbus_core.endpoint import DEFAULT_NAME, Endpoint

CONTROL_NAME = "control"
DOMAINS_NAME = "domains"
LOCK_NAME = ".lock"
MAX_ADDRESS = 107
"""Bytes of a socket's path; a longer one is reached through a descriptor of its directory."""
BACKLOG = 4096
"""Handles that may wait to be accepted; the system may allow fewer."""

_DIRECTORY_MODE = 0o755
_EVERYBODY = 0o666
_BUS_DIRECTORY = re.compile(r"\d+-[A-Za-z0-9_.-]*")
_OWNER_REFUSED = frozenset({EPERM, EINVAL})


@dataclass(frozen=True, eq=False, slots=True)
class NodeFile:
    """A node that can be connected to; `is_enforced` says that connect(2) has decided who may."""

    listener: socket.socket
    path: Path
    is_enforced: bool


class NodeDirectory:
    """The directory of a domain and of the domains in it."""

    def __init__(self, path: str | Path, domain: Domain) -> None:
        """Make the directory, or take over one that a dead server has left.

        Raises BlockingIOError when another server has it, other OSErrors when it cannot be made.
        """
        self.path = Path(path)
        self._domain = domain
        self._files: dict[Domain | Endpoint, NodeFile] = {}
        self._is_own = _make_directory(self.path)
        try:
            self._lock, is_left_behind = _lock(self.path)
        except BaseException:
            self._remove_own()
            raise
        if is_left_behind:
            _sweep_domain(self.path)

    def __iter__(self) -> Iterator[tuple[Domain | Endpoint, NodeFile]]:
        return iter(list(self._files.items()))

    def make(self, node: Domain | Endpoint) -> NodeFile:
        """Make the socket of a node; OSError when it cannot be made, and nothing of it is left."""
        directory, name = self._locate(node)
        try:
            self._make_directories(directory)
            file = _listen(directory, name, node)
        except BaseException:
            self._prune(directory)
            raise
        self._files[node] = file
        return file

    def find(self, node: Domain | Endpoint) -> NodeFile | None:
        """The file of a node, None where it has none."""
        return self._files.get(node)

    def remove(self, node: Domain | Endpoint) -> None:
        """Close a node's socket and remove its file, and its directory with the last one in it."""
        file = self._files.pop(node, None)
        if file is not None:
            self._remove(file)

    def close(self) -> None:
        """Remove everything, the lock at last."""
        while self._files:
            self._remove(self._files.popitem()[1])
        with suppress(OSError):
            os.unlink(self.path / LOCK_NAME)
        os.close(self._lock)
        self._remove_own()

    def _remove(self, file: NodeFile) -> None:
        with suppress(OSError):
            os.unlink(file.path)
        file.listener.close()
        self._prune(file.path.parent)

    def _remove_own(self) -> None:
        if self._is_own:
            with suppress(OSError):
                os.rmdir(self.path)

    # Where a node is

    def _locate(self, node: Domain | Endpoint) -> tuple[Path, str]:
        if isinstance(node, Domain):
            return self._domain_path(node), CONTROL_NAME
        name = DEFAULT_NAME if node.is_default else f"ep.{node.name}"
        return self._domain_path(node.bus.domain) / node.bus.name, name

    def _domain_path(self, domain: Domain) -> Path:
        if domain is self._domain:
            return self.path
        assert domain.parent is not None, "a domain that is not in this directory"
        return self._domain_path(domain.parent) / DOMAINS_NAME / domain.name

    def _make_directories(self, path: Path) -> None:
        if path != self.path:
            self._make_directories(path.parent)
            _make_directory(path)

    def _prune(self, path: Path) -> None:
        """Remove directories in which there is nothing any more."""
        while path != self.path:
            try:
                os.rmdir(path)
            except OSError:
                return
            path = path.parent


def _make_directory(path: Path) -> bool:
    """A directory that everybody may look into; whether it was made."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return False
    os.chmod(path, _DIRECTORY_MODE)  # whatever the umask is
    return True


# One node


def _listen(directory: Path, name: str, node: Domain | Endpoint) -> NodeFile:
    """A socket that listens before it has its name."""
    path, unnamed = directory / name, f".{name}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.setblocking(False)  # noqa: FBT003 - not our signature
        # Whoever is accepted has it too: the kernel says with each packet who sent it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with suppress(FileNotFoundError):
            os.unlink(directory / unnamed)
        _bind(listener, directory, unnamed)
        try:
            is_enforced = _set_access(directory / unnamed, node)
            listener.listen(BACKLOG)
            os.rename(directory / unnamed, path)
        except BaseException:
            os.unlink(directory / unnamed)
            raise
    except BaseException:
        listener.close()
        raise
    return NodeFile(listener, path, is_enforced)


def _bind(listener: socket.socket, directory: Path, name: str) -> None:
    path = os.fspath(directory / name)
    if len(os.fsencode(path)) <= MAX_ADDRESS:
        listener.bind(path)
        return
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def _set_access(path: Path, node: Domain | Endpoint) -> bool:
    """Give a file the mode and owner of its node; whether connect(2) lets in exactly whom the node does."""
    owner, access = node.owner, node.access
    os.chmod(path, _mode(access, has_group=owner.gid is not None))
    try:
        os.chown(
            path,
            -1 if owner.uid is None else owner.uid,
            -1 if owner.gid is None else owner.gid,
            follow_symlinks=False,
        )
    except OSError as error:
        if error.errno not in _OWNER_REFUSED:
            raise
        os.chmod(path, _EVERYBODY)
        return False
    # The mode of a custom endpoint says nothing of its bus.
    return isinstance(node, Domain) or node.is_default or bool(node.bus.flags & MakeFlag.ACCESS_WORLD)


def _mode(access: MakeFlag, *, has_group: bool) -> int:
    if access & MakeFlag.ACCESS_WORLD:
        return _EVERYBODY
    return 0o660 if access & MakeFlag.ACCESS_GROUP and has_group else 0o600


# The lock, and what a dead server has left


def _lock(directory: Path) -> tuple[int, bool]:
    """A lock on a directory, and whether somebody had one before and did not end well."""
    path = directory / LOCK_NAME
    while True:
        is_left_behind = True
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            is_left_behind = False
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have removed it before letting go.
            if _is_file(fd, path):
                return fd, is_left_behind
        except BlockingIOError:
            os.close(fd)
            raise BlockingIOError(EWOULDBLOCK, "another server has this directory", str(directory)) from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _is_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _sweep_domain(path: Path) -> None:
    for name in os.listdir(path):
        if name.removeprefix(".") == CONTROL_NAME:
            _sweep_socket(path / name)
        elif name == DOMAINS_NAME and _is_directory(path / name):
            for domain in os.listdir(path / name):
                if _is_directory(path / name / domain):
                    _sweep_domain(path / name / domain)
                    _sweep_directory(path / name / domain)
            _sweep_directory(path / name)
        elif _BUS_DIRECTORY.fullmatch(name) and _is_directory(path / name):
            _sweep_bus(path / name)
            _sweep_directory(path / name)


def _sweep_bus(path: Path) -> None:
    for name in os.listdir(path):
        plain = name.removeprefix(".")
        if plain == DEFAULT_NAME or plain.startswith("ep."):
            _sweep_socket(path / name)


def _sweep_socket(path: Path) -> None:
    if stat.S_ISSOCK(os.lstat(path).st_mode):
        os.unlink(path)


def _sweep_directory(path: Path) -> None:
    with suppress(OSError):  # something else is in it
        os.rmdir(path)


def _is_directory(path: Path) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)
