"""libdbus as an oracle, through ctypes: would the reference implementation take these bytes?

Nothing but the functions for marshalling is used, so no bus is needed. `LIBRARY` is None where libdbus is not
installed.
"""

from __future__ import annotations

import ctypes

__all__ = ["LIBRARY", "Verdict", "bytes_needed", "judge"]


class _Error(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("message", ctypes.c_char_p),
        ("flags", ctypes.c_uint),
        ("padding", ctypes.c_void_p),
    )


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libdbus-1.so.3")
    except OSError:
        return None
    library.dbus_message_demarshal.restype = ctypes.c_void_p
    library.dbus_message_demarshal.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(_Error))
    library.dbus_message_demarshal_bytes_needed.restype = ctypes.c_int
    library.dbus_message_demarshal_bytes_needed.argtypes = (ctypes.c_char_p, ctypes.c_int)
    library.dbus_message_get_sender.restype = ctypes.c_char_p
    library.dbus_message_get_sender.argtypes = (ctypes.c_void_p,)
    library.dbus_message_unref.restype = None
    library.dbus_message_unref.argtypes = (ctypes.c_void_p,)
    library.dbus_error_init.argtypes = library.dbus_error_free.argtypes = (ctypes.POINTER(_Error),)
    library.dbus_error_init.restype = library.dbus_error_free.restype = None
    return library


LIBRARY = _load()


class Verdict:
    """What libdbus says of a message: accepted or not, its reason if not, the sender it read if so."""

    def __init__(self, *, accepted: bool, reason: str = "", sender: str | None = None) -> None:
        self.accepted = accepted
        self.reason = reason
        self.sender = sender

    def __repr__(self) -> str:
        return f"libdbus {'accepts' if self.accepted else 'rejects'} ({self.reason})"


def bytes_needed(data: bytes) -> int:
    """Length of the message that begins here; 0: fewer than 16 bytes; -1: no message begins like that."""
    assert LIBRARY is not None
    return int(LIBRARY.dbus_message_demarshal_bytes_needed(data, len(data)))


def judge(message: bytes) -> Verdict:
    """Judge exactly one whole message.

    No fds can come along, so libdbus refuses a message that announces some; as it looks for them last, that
    refusal says that all else is well.
    """
    assert LIBRARY is not None
    error = _Error()
    LIBRARY.dbus_error_init(ctypes.byref(error))
    loaded = LIBRARY.dbus_message_demarshal(message, len(message), ctypes.byref(error))
    if loaded:
        sender = LIBRARY.dbus_message_get_sender(loaded)
        verdict = Verdict(accepted=True, sender=sender.decode() if sender is not None else None)
        LIBRARY.dbus_message_unref(loaded)
        return verdict
    reason = (error.message or b"").decode()
    LIBRARY.dbus_error_free(ctypes.byref(error))
    return Verdict(accepted="Unix file descriptor missing" in reason, reason=reason)
