"""The one way in which a proxy without a broker ends.

The broker may go away at any moment, in the middle of a command too.  Nothing can be done for anybody then:
clients are disconnected as when a bus ends, and the exit status says why.  So it is no error that somebody
handles on the way, but the end of the program; Python's name for that is SystemExit, which event loops and
handlers of errors let pass.
"""

from __future__ import annotations

EXIT_STATUS = 3
"""Of a proxy whose broker has gone away."""


class BrokerGone(SystemExit):
    """The broker has gone, and the proxy with it; it was said in the log."""

    def __init__(self) -> None:
        super().__init__(EXIT_STATUS)
