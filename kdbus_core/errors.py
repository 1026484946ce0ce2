"""The one error a broker command ends with.

A command succeeds or is refused with an errno of the kdbus interface; `why`
says in words what was refused, for logs and for the person who asks.  A
refusal changes nothing: whatever a command did before it failed is undone.
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
