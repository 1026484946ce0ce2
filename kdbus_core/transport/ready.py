"""The descriptor that tells a client whether there is something to receive.

The client gets an epoll set that contains an event of ours and nothing else, so it can wait for the event and
do nothing to it.  A client that had the event itself could empty it; and because both ends of an eventfd
are one open file, it could make it block, and with it whoever reads or writes it here.
"""

from __future__ import annotations

import os
import select


class Ready:
    """Owns the event, and until it is taken the descriptor for the client; `is_set` says how it polls."""

    __slots__ = ("_event", "_fd", "is_set")

    def __init__(self) -> None:
        """Not set; OSError when there are no descriptors for it."""
        self.is_set = False
        self._fd = -1
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with select.epoll(1) as watching:
                watching.register(self._event, select.EPOLLIN)
                self._fd = os.dup(watching.fileno())
        except BaseException:
            os.close(self._event)
            raise

    def set(self) -> None:
        """Poll readable from now on; not to be called again before `clear`."""
        self.is_set = True
        os.eventfd_write(self._event, 1)

    def clear(self) -> None:
        """Poll readable no longer, after `set`."""
        self.is_set = False
        os.eventfd_read(self._event)

    def take_fd(self) -> int:
        """The descriptor for the client, once; it is the caller's from now on."""
        fd, self._fd = self._fd, -1
        assert fd >= 0, "the descriptor has been taken"
        return fd

    def close(self) -> None:
        """Let go of it; the client's descriptor polls as if never set."""
        os.close(self._event)
        if self._fd >= 0:
            os.close(self._fd)
