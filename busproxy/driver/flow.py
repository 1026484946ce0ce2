"""Calls to the driver that look like an earlier one.

The method was found, the caller's right to it checked and nobody listens in;
what remains is to check the body and to call the handler.  A call that does
not fit any more (a monitor has come, the configuration was reloaded) takes
the long way again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from busproxy.incoming import Incoming
from busproxy.wire.body import body_checker

if TYPE_CHECKING:
    from busproxy.driver import Driver
    from busproxy.driver.call import Method
    from busproxy.peer import Peer
    from busproxy.wire.header import Header


class DriverFlow:
    """One method, called again and again by one peer; see `flows.Flow`."""

    __slots__ = ("_check", "_driver", "_generation", "_header", "_method")

    def __init__(self, driver: Driver, method: Method, header: Header) -> None:
        self._driver = driver
        self._method = method
        self._header = header
        self._check = body_checker(header.signature, header.little_endian)
        self._generation = driver.router.bus.route_generation

    is_costly = True

    def forward(
        self,
        peer: Peer,
        data: bytes | bytearray,
        start: int,
        body: int,
        end: int,
        serial: int,
        is_checked: bool = False,
    ) -> bool:
        if self._generation != self._driver.router.bus.route_generation:
            return False
        if not is_checked:
            self._check(data, body, end)
        self._driver.call(self._method, Incoming(peer, self._header, data, start, end, None, serial))
        return True
