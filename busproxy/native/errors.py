"""The one error of a D-Bus call: a name for programs and a text for people.

A handler raises it to answer with an error; a call raises it when it was answered with one, or by none.
"""

from __future__ import annotations

from busproxy.errno_names import ErrorReply

PREFIX = "org.freedesktop.DBus.Error."

FAILED = PREFIX + "Failed"
INCONSISTENT_MESSAGE = PREFIX + "InconsistentMessage"
INVALID_ARGS = PREFIX + "InvalidArgs"
NAME_HAS_NO_OWNER = PREFIX + "NameHasNoOwner"
NOT_SUPPORTED = PREFIX + "NotSupported"
UNKNOWN_INTERFACE = PREFIX + "UnknownInterface"
UNKNOWN_METHOD = PREFIX + "UnknownMethod"
UNKNOWN_OBJECT = PREFIX + "UnknownObject"


class DBusError(Exception):
    """An error reply: `name` as in "org.freedesktop.DBus.Error.Failed", `text` may be empty."""

    def __init__(self, name: str, text: str = "") -> None:
        super().__init__(name, text)
        self.name = name
        self.text = text

    @classmethod
    def of(cls, reply: ErrorReply) -> DBusError:
        """The error that an errno of the broker stands for."""
        return cls(reply.name, reply.text)

    def __str__(self) -> str:
        return f"{self.name}: {self.text}" if self.text else self.name
