"""Errnos of the broker become the errors that dbus-daemon's clients know."""

from __future__ import annotations

import errno

import pytest

from busproxy.errno_names import Refused, command_error, send_error
from busproxy.wire.names import is_error_name
from kdbus_core.errors import KdbusError

PREFIX = "org.freedesktop.DBus.Error."
CALL = Refused(1, ":1.5", "org.example.S", ":1.6", "org.example.I", "M")


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_errno_has_an_error_of_the_specification(number: int) -> None:
    for reply in (send_error(number, CALL), command_error(number)):
        assert reply.name.startswith(PREFIX)
        assert is_error_name(reply.name)
        assert reply.text


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (errno.ESRCH, "ServiceUnknown"),
        (errno.ENXIO, "ServiceUnknown"),
        (errno.EADDRNOTAVAIL, "NameHasNoOwner"),
        (errno.EREMCHG, "NameHasNoOwner"),
        (errno.ENOBUFS, "LimitsExceeded"),
        (errno.EXFULL, "LimitsExceeded"),
        (errno.EMFILE, "LimitsExceeded"),
        (errno.EMLINK, "LimitsExceeded"),
        (errno.EMSGSIZE, "LimitsExceeded"),
        (errno.EPERM, "AccessDenied"),
        (errno.EBADSLT, "AccessDenied"),
        (errno.ECOMM, "NotSupported"),
        (errno.EOPNOTSUPP, "NotSupported"),
        (errno.EPIPE, "NoReply"),
        (errno.ETIMEDOUT, "NoReply"),
        (errno.ESHUTDOWN, "Disconnected"),
        (errno.ECONNRESET, "Disconnected"),
        (errno.EBADMSG, "InconsistentMessage"),
        (errno.EDQUOT, "Failed"),
    ],
)
def test_a_refused_message_has_its_error(number: int, name: str) -> None:
    assert send_error(number, CALL).name == PREFIX + name


def test_nobody_there_and_nobody_to_start() -> None:
    assert send_error(errno.ESRCH, CALL).text == (
        "The name org.example.S was not provided by any .service files"
    )


def test_nobody_there_and_nobody_wanted_to_be_started() -> None:
    reply = send_error(errno.ESRCH, Refused(destination="org.example.S", auto_start=False))
    assert reply == (PREFIX + "NameHasNoOwner", 'Name "org.example.S" does not exist')


def test_a_full_queue_is_told_as_dbus_daemon_tells_it() -> None:
    assert send_error(KdbusError(errno.ENOBUFS, "over quota"), CALL).text == (
        'Rejected: destination has a full message queue; type="method_call", sender=":1.5" '
        'interface="org.example.I" member="M" error name="(unset)" destination=":1.6"'
    )


def test_the_reason_of_the_broker_is_the_text_of_a_refused_command() -> None:
    reply = command_error(KdbusError(errno.EPERM, "connection 7 may not own 'org.example.S'"))
    assert reply == (PREFIX + "AccessDenied", "Connection 7 may not own 'org.example.S'")


def test_a_command_without_a_reason_still_has_a_text() -> None:
    assert command_error(errno.ECONNRESET) == (PREFIX + "Disconnected", "Connection is closed")
