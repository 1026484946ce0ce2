"""The one exception for bytes that break the rules of the protocol.

A `ProtocolError` always means that the *peer* is wrong, never the caller: misuse of this package raises
`TypeError` or `ValueError` instead. It carries what the log line needs: the reason in words and the offset
at which the rule was broken.
"""

from __future__ import annotations

__all__ = ["ProtocolError"]


class ProtocolError(Exception):
    """The peer broke the rules.

    `reason` is a phrase without a full stop. `offset` counts bytes from the start of the message, unless the
    function that raised says that it counts from elsewhere; whoever knows the start adds it to `offset`.
    `fatal` tells that the stream can no longer be trusted, so that the peer has to be disconnected; libdbus
    treats every invalid message like that.
    """

    reason: str
    offset: int
    fatal: bool

    def __init__(self, reason: str, offset: int, *, fatal: bool = True) -> None:
        super().__init__(reason, offset)
        self.reason = reason
        self.offset = offset
        self.fatal = fatal

    def __str__(self) -> str:
        return f"{self.reason} at offset {self.offset}"
