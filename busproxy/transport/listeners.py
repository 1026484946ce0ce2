"""The addresses of the bus, opened: each becomes a listening socket that clients can be told about.

A `Listener` owns its socket and, where the bus made one, the socket file; `close` ends both, and leaves a
file alone that somebody else has put at the path meanwhile. Every listener has a GUID of its own, which is
part of the address it is advertised under. Sockets are non-blocking and closed on exec.

One address text may list alternatives separated by ";". dbus-daemon stops at the first that works; here all
of them are opened, and one that cannot be is skipped (and reported) as long as another one can. Clients are
told the text given last first, as dbus-daemon does.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from busproxy.wire.address import Address, format_address, parse_addresses

LONGEST_NAME = 99
"""Bytes in a socket's path or abstract name that every client library can connect to."""

SOCKET_MODE = 0o777
"""Everybody may connect; who may stay is decided by credentials and policy."""

_UNIX_KINDS = ("path", "dir", "tmpdir", "abstract", "runtime")
_NOT_OFFERED = frozenset({"tcp", "nonce-tcp", "launchd", "autolaunch", "unixexec"})
_RANDOM_CHARACTERS = string.ascii_letters + string.digits


class ListenError(Exception):
    """An address that cannot be listened on; the text names the address and the reason."""


@dataclass(slots=True)
class Listener:
    """A socket that accepts clients. `address` is the advertised one, GUID included.

    `path_to_unlink` is the socket file that the bus made, with `mode` its permission bits; both are None for
    abstract and inherited sockets. `inode` identifies that file.
    """

    sock: socket.socket
    address: str
    guid: str
    path_to_unlink: str | None = None
    mode: int | None = None
    inode: tuple[int, int] | None = None

    def close(self) -> None:
        """Stop listening and remove the socket file if it is still ours. A second call does nothing."""
        self.sock.close()
        path, self.path_to_unlink = self.path_to_unlink, None
        if path is None:
            return
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            if (status.st_dev, status.st_ino) == self.inode:
                os.unlink(path)


def generate_guid() -> str:
    """A fresh GUID: 32 lower-case hexadecimal digits."""
    return secrets.token_hex(16)


def advertised_address(listeners: Iterable[Listener]) -> str:
    """The address list a client is given, in the order of `listeners`."""
    return ";".join(listener.address for listener in listeners)


def open_listeners(
    addresses: Sequence[str],
    *,
    guid_factory: Callable[[], str] = generate_guid,
    runtime_dir: str | None = None,
    inherited_fds: Sequence[tuple[int, str]] = (),
    on_skipped: Callable[[str], None] = lambda reason: None,
) -> list[Listener]:
    """Listen on all of `addresses`; the result is in the order to advertise (last address text first).

    `runtime_dir` is XDG_RUNTIME_DIR, None when unset. `inherited_fds` are taken over by `systemd:`: once that
    address is reached they belong to the result, or are closed on an error; without one they stay the
    caller's. `on_skipped` hears a sentence about each alternative that was passed over.
    Raises AddressError for text that is no address and ListenError for an address text none of whose
    alternatives can be listened on; nothing stays open then.
    """
    opener = _Opener(guid_factory=guid_factory, runtime_dir=runtime_dir, inherited_fds=inherited_fds)
    groups: list[list[Listener]] = []
    try:
        parsed = [(text, parse_addresses(text)) for text in addresses]
        for text, alternatives in parsed:
            group: list[Listener] = []
            groups.append(group)
            problems = []
            for alternative in alternatives:
                try:
                    group += opener.open(alternative)
                except ListenError as error:
                    problems.append(f"{format_address(alternative)}: {error}")
            if not group:
                raise ListenError("; ".join(problems) or f'"{text}" has no address')
            for problem in problems:
                on_skipped(problem)
    except BaseException:
        for group in groups:
            for listener in group:
                listener.close()
        raise
    return [listener for group in reversed(groups) for listener in group]


class _Opener:
    """One address at a time, with what addresses share: the GUID source and the sockets not yet taken."""

    def __init__(
        self,
        *,
        guid_factory: Callable[[], str],
        runtime_dir: str | None,
        inherited_fds: Sequence[tuple[int, str]],
    ) -> None:
        self._guid_factory = guid_factory
        self._runtime_dir = runtime_dir
        self._inherited = list(inherited_fds)

    def open(self, address: Address) -> list[Listener]:
        if address.transport == "unix":
            return [self._open_unix(address.params)]
        if address.transport == "systemd":
            return self._take_inherited()
        if address.transport in _NOT_OFFERED:
            raise ListenError(f"the {address.transport} transport is not offered here, use unix or systemd")
        raise ListenError(f'unknown transport "{address.transport}"')

    def _open_unix(self, params: dict[str, str]) -> Listener:
        kinds = [kind for kind in _UNIX_KINDS if kind in params]
        if len(kinds) != 1:
            given = " and ".join(kinds) or "none"
            raise ListenError(f"needs exactly one of {', '.join(_UNIX_KINDS)}; there is {given}")
        kind = kinds[0]
        value = params[kind]
        if kind == "abstract":
            return self._bind_abstract(value)
        if kind in ("dir", "tmpdir"):
            suffix = "".join(secrets.choice(_RANDOM_CHARACTERS) for _ in range(10))
            return self._bind_path(os.path.join(value, f"dbus-{suffix}"))
        if kind == "runtime":
            if value != "yes":
                raise ListenError('the only value for runtime is "yes"')
            if not self._runtime_dir:
                raise ListenError("XDG_RUNTIME_DIR is not set")
            return self._bind_path(os.path.join(self._runtime_dir, "bus"))
        return self._bind_path(value)

    def _bind_path(self, path: str) -> Listener:
        if len(os.fsencode(path)) > LONGEST_NAME:
            raise ListenError(f"the socket's path has more than {LONGEST_NAME} bytes")
        address, guid = self._advertise("path", path)
        listener = Listener(_new_socket(), address, guid)
        try:
            _remove_stale_socket(path)
            listener.sock.bind(path)
            made = os.lstat(path)
            listener.path_to_unlink, listener.inode = os.path.abspath(path), (made.st_dev, made.st_ino)
            listener.mode = _open_to_everybody(path)
            listener.sock.listen(socket.SOMAXCONN)
        except (OSError, ValueError) as error:
            listener.close()
            raise ListenError(f"cannot listen: {_reason(error)}") from error
        return listener

    def _bind_abstract(self, name: str) -> Listener:
        if len(os.fsencode(name)) + 1 > LONGEST_NAME:
            raise ListenError(f"the socket's name has more than {LONGEST_NAME - 1} bytes")
        address, guid = self._advertise("abstract", name)
        listener = Listener(_new_socket(), address, guid)
        try:
            listener.sock.bind(b"\0" + os.fsencode(name))
            listener.sock.listen(socket.SOMAXCONN)
        except OSError as error:
            listener.close()
            raise ListenError(f"cannot listen: {_reason(error)}") from error
        return listener

    def _take_inherited(self) -> list[Listener]:
        if not self._inherited:
            raise ListenError("no socket was inherited")
        inherited, self._inherited = self._inherited, []
        listeners: list[Listener] = []
        try:
            while inherited:
                fd, name = inherited.pop(0)
                listeners.append(self._adopt(fd, f"inherited descriptor {fd} ({name})"))
        except BaseException:
            for listener in listeners:
                listener.close()
            for fd, _ in inherited:
                os.close(fd)
            raise
        return listeners

    def _adopt(self, fd: int, which: str) -> Listener:
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            os.close(fd)
            raise ListenError(f"{which} is no socket") from error
        try:
            if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
                raise ListenError(f"{which} is not a unix stream socket")
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ListenError(f"{which} does not listen")
            bound: str | bytes = sock.getsockname()
            if not bound or bound == b"\0":
                raise ListenError(f"{which} has no address")
            sock.settimeout(0)
            sock.set_inheritable(False)
            if isinstance(bound, bytes):
                return Listener(sock, *self._advertise("abstract", os.fsdecode(bound[1:])))
            return Listener(sock, *self._advertise("path", bound))
        except BaseException:
            sock.close()
            raise

    def _advertise(self, kind: str, value: str) -> tuple[str, str]:
        """The address to tell clients, and its GUID."""
        guid = self._guid_factory()
        return format_address(Address("unix", {kind: value, "guid": guid})), guid


def _new_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(0)
    return sock


def _remove_stale_socket(path: str) -> None:
    """Make room at `path` if a socket is there, as dbus-daemon does; anything else makes the bind fail."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)


def _open_to_everybody(path: str) -> int:
    """Let every user connect to the socket at `path` if we may; the permission bits it then has."""
    with contextlib.suppress(OSError):
        os.chmod(path, SOCKET_MODE)
    return stat.S_IMODE(os.lstat(path).st_mode)


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
