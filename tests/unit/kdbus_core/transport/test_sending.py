"""Who sends a message: asked for while it is sent, and never later."""

from __future__ import annotations

import os
import struct

import pytest

from kdbus_core.metadata import Credentials, Process
from kdbus_core.transport.sending import Sending

OPENER = Process.of(Credentials(uid=os.geteuid(), gid=os.getegid(), pid=os.getpid()))
OWN = struct.pack("=iII", os.getpid(), os.geteuid(), os.getegid())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The credentials that somebody was looked for by; each time another process is found."""
    asked: list[object] = []

    def make_origin(_opener: Process, _pidfd: int | None, ucred: object) -> object:
        def find() -> Process:
            asked.append(ucred)
            return Process.of(Credentials(pid=len(asked)))

        return find

    monkeypatch.setattr("kdbus_core.transport.sending.make_origin", make_origin)
    return asked


def pid(process: Process | None) -> int | None:
    return None if process is None else process.credentials.pid


def test_nobody_is_looked_for_unless_asked(asked: list[object]) -> None:
    sending = Sending(OPENER)
    sending.begin(OWN)
    sending.end()
    assert asked == []


def test_a_message_remembers_what_was_found_out(asked: list[object]) -> None:
    sending = Sending(OPENER)
    sending.begin(OWN)
    first = sending.origin
    assert pid(first()) == 1
    sending.end()
    sending.begin(b"")
    second = sending.origin
    assert pid(second()) == 2
    assert pid(first()) == 1
    sending.end()
    assert asked == [(os.getpid(), os.geteuid(), os.getegid()), None]


def test_what_was_not_asked_cannot_be_known_later(asked: list[object]) -> None:
    sending = Sending(OPENER)
    sending.begin(OWN)
    origin = sending.origin
    sending.end()
    assert origin() is None
    assert asked == []
