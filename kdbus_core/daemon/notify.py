"""News for the service manager, as systemd takes them from services of `Type=notify`.

They go as datagrams to the socket that NOTIFY_SOCKET names, a path or an abstract name after "@".  Without
it, or where nobody reads it, nothing happens: a service manager that is not there needs no news.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

_PATIENCE = 1.0
"""Seconds that a message may wait for room in the service manager's queue."""


class Notifier:
    """Tells the service manager of an environment what the daemon is doing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = os.fsencode(environ.get("NOTIFY_SOCKET", ""))
        self._address = b"\0" + address[1:] if address.startswith(b"@") else address

    def ready(self) -> None:
        """The daemon serves (again)."""
        self._send("READY=1")

    def reloading(self, monotonic_ns: int) -> None:
        """The configuration is being read again since then (CLOCK_MONOTONIC); `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns // 1000}")

    def stopping(self) -> None:
        """The daemon is about to end."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if self._address[:1] not in (b"\0", b"/"):
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(_PATIENCE)
            sock.sendto(message.encode(), self._address)
