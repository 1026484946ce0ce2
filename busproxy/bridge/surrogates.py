"""Serials for native requests whose cookies are no serials.

A cookie has 64 bits and may be anything, a serial has 32 and is never 0.  A
request with a cookie that a client cannot be given gets a *surrogate*: a
serial that is unused at that client, counted down from the largest one, while
everybody's cookies count up.  It stands for the request until that was
answered; then, or when the request is no longer open, it may be used again.

Only requests need one that is remembered: nobody refers to other messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbus_core.connection import Connection

MAX_SERIAL = 0xFFFFFFFF
MAX_KEPT = 1024
"""Surrogates of one client from which on those of requests that have ended are thrown out now and then."""

IsOpen = Callable[["Connection", int], bool]
"""Whether a request of a connection with this cookie is open at the client."""


def as_serial(cookie: int) -> int:
    """A serial for a message that nobody refers to: the cookie, or what there is room for of it."""
    return cookie & MAX_SERIAL or MAX_SERIAL


class Surrogates:
    """The surrogates of one client."""

    __slots__ = ("_is_open", "_kept", "_last", "_throw_out_at")

    def __init__(self, is_open: IsOpen) -> None:
        self._is_open = is_open
        self._kept: dict[int, tuple[Connection, int]] = {}
        self._last = 0
        self._throw_out_at = MAX_KEPT

    def __len__(self) -> int:
        return len(self._kept)

    def serial(self, sender: Connection, cookie: int) -> int:
        """The serial under which the client gets a request: the cookie itself, if that can be one."""
        if 0 < cookie <= MAX_SERIAL and not self._stands_for_another(sender, cookie):
            return cookie
        if len(self._kept) >= self._throw_out_at:
            self._throw_out()
        serial = self._last
        while True:
            serial = serial - 1 if serial > 1 else MAX_SERIAL
            if serial not in self._kept and not self._is_open(sender, serial):
                break
        self._last = serial
        self._kept[serial] = (sender, cookie)
        return serial

    def cookie(self, sender: Connection, serial: int) -> int:
        """The cookie of the request that a reply to this serial is for."""
        found = self._kept.get(serial)
        return found[1] if found is not None and found[0] is sender else serial

    def forget(self, sender: Connection, serial: int) -> None:
        """The request was answered."""
        if self._stands_for_another(sender, serial):
            del self._kept[serial]

    def _stands_for_another(self, sender: Connection, serial: int) -> bool:
        found = self._kept.get(serial)
        return found is not None and found[0] is sender

    def _throw_out(self) -> None:
        self._kept = {
            serial: (sender, cookie)
            for serial, (sender, cookie) in self._kept.items()
            if sender.active and self._is_open(sender, cookie)
        }
        self._throw_out_at = max(MAX_KEPT, 2 * len(self._kept))
