"""The two halves of systemd's protocol for services: inherited sockets in, notifications out.

Inherited sockets are the descriptors from 3 on, counted by LISTEN_FDS for the process LISTEN_PID, named by
LISTEN_FDNAMES. They are taken once: the variables are removed, whoever they were meant for, so that no child
takes them for its own. Each descriptor then belongs to the caller.

Notifications go as datagrams to NOTIFY_SOCKET. Without it, or where nobody reads it, they are no error: a
service manager that is not there needs no news.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Mapping, MutableMapping

FIRST_INHERITED_FD = 3
UNNAMED = "unknown"
"""What systemd calls an inherited descriptor without a name."""

_PATIENCE = 1.0
"""Seconds that a notification may wait for room in the service manager's queue."""


class InheritedFdError(Exception):
    """The environment promises descriptors that are not there, or its promise cannot be read."""


def take_listen_fds(environ: MutableMapping[str, str], pid: int) -> list[tuple[int, str]]:
    """The descriptors that process `pid` inherited, with their names, from now on closed on exec.

    Raises InheritedFdError for a malformed variable or a descriptor that is not open; then nothing but the
    environment has changed.
    """
    for_pid = environ.pop("LISTEN_PID", None)
    environ.pop("LISTEN_PIDFDID", None)
    count_text = environ.pop("LISTEN_FDS", None)
    names_text = environ.pop("LISTEN_FDNAMES", None)
    if for_pid is None or count_text is None:
        return []
    if _parse_number("LISTEN_PID", for_pid) != pid:
        return []
    count = _parse_number("LISTEN_FDS", count_text)
    if count == 0:
        return []
    names = [UNNAMED] * count if names_text is None else names_text.split(":")
    if len(names) != count:
        raise InheritedFdError(f"LISTEN_FDNAMES has {len(names)} names for {count} descriptors")
    fds = range(FIRST_INHERITED_FD, FIRST_INHERITED_FD + count)
    flags = {}
    for fd in fds:
        try:
            flags[fd] = fcntl.fcntl(fd, fcntl.F_GETFD)
        except (OSError, OverflowError) as error:
            raise InheritedFdError(f"inherited descriptor {fd} is not open") from error
    for fd in fds:
        fcntl.fcntl(fd, fcntl.F_SETFD, flags[fd] | fcntl.FD_CLOEXEC)
    return list(zip(fds, names, strict=True))


def _parse_number(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise InheritedFdError(f'{variable} is "{text}", which is no number')
    return int(text)


class Notifier:
    """Tells the service manager of `environ`'s NOTIFY_SOCKET what the daemon is doing.

    Every method returns whether the message was handed over; False is for information, never a failure.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address: bytes | None = None
        if address.startswith("@"):
            self._address = b"\0" + os.fsencode(address[1:])
        elif address.startswith("/"):
            self._address = os.fsencode(address)

    def ready(self) -> bool:
        """The daemon accepts clients (again)."""
        return self._send("READY=1")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send(f"STATUS={' '.join(text.splitlines())}")

    def stopping(self) -> bool:
        """The daemon is about to end."""
        return self._send("STOPPING=1")

    def reloading(self, monotonic_usec: int) -> bool:
        """The configuration is being read again since `monotonic_usec` (CLOCK_MONOTONIC); `ready` ends it."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_usec}")

    def _send(self, message: str) -> bool:
        if self._address is None:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_PATIENCE)
            try:
                sock.sendto(message.encode(), self._address)
            except OSError:
                return False
        return True
