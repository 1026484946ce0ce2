"""The one error a broker command ends with.

A command succeeds or is refused with an errno of the kdbus interface; `why`
says in words what was refused, for logs and for the person who asks.  A
refusal changes nothing, but for what the interface says of it: MATCH_ADD with
REPLACE has removed what it was to replace, RECV has told what was lost.
"""

from errno import errorcode


class KdbusError(Exception):
    """A refused command: `errno` as kdbus gives it, `why` for people."""

    def __init__(self, errno: int, why: str) -> None:
        super().__init__(errno, why)
        self.errno = errno
        self.why = why

    def __str__(self) -> str:
        return f"{errorcode.get(self.errno, self.errno)}: {self.why}"
