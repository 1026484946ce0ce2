"""A native D-Bus peer that does one thing after another, for tests that read as conversations.

It stands on the blocking client library. What it sends and receives are D-Bus messages with their values;
what the broker itself says comes as the library's notifications, and errnos are not translated, so a test
sees what a native program sees. `drain` is all that waits: who has made a round trip with the sender knows
that nothing more is on its way.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from busproxy.match_entries import core_rule, message_filter, own_signal_entries, rule_entries
from busproxy.native.messages import Message, build_message, filter_arguments, read_message
from busproxy.wire.match_rules import parse_match_rule
from kdbus_core.abi import HelloFlag, MessageFlag, NameFlag
from kdbus_core.metadata import Credentials, Snapshot
from kdbus_core.transport.client import Connection, Metadata, Notification, Received, open_node
from support.raw import ERROR, METHOD_CALL, METHOD_RETURN, NO_AUTO_START, NO_REPLY_EXPECTED, SIGNAL

PATIENCE_SECONDS = 30.0
FAR_NS = 1 << 62
"""A deadline that does not come."""

OWN_SIGNALS = 1

Mail = Message | Notification


class NativePeer:
    """One native connection; use as a context manager or `close` it."""

    def __init__(
        self,
        node: Path,
        *,
        flags: HelloFlag = HelloFlag.ACCEPT_FD,
        attach_recv: int = 0,
        description: str = "",
        pool_size: int = 16 << 20,
        faked: Credentials | Snapshot | None = None,
    ) -> None:
        with open_node(node) as handle:
            self.connection: Connection = handle.hello(
                flags=flags,
                attach_recv=attach_recv,
                description=description,
                pool_size=pool_size,
                faked=faked,
            )
        self.metadata: list[Metadata] = []
        """What was told of the senders of everything received so far, notifications left out."""
        self._cookie = 0
        self._match_cookie = OWN_SIGNALS
        if not flags & HelloFlag.MONITOR:
            for rules in own_signal_entries(self.connection.id):
                self.connection.match_add(OWN_SIGNALS, rules)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.connection.close()

    @property
    def id(self) -> int:
        return self.connection.id

    @property
    def unique_name(self) -> str:
        return f":1.{self.connection.id}"

    # Sending

    def _send(
        self,
        type: int,
        destination: str | None,
        signature: str,
        values: Sequence[Any],
        *,
        flags: int = 0,
        kdbus_flags: MessageFlag | None = None,
        reply_cookie: int = 0,
        cookie: int = 0,
        timeout_ns: int = FAR_NS,
        path: str | None = None,
        interface: str | None = None,
        member: str | None = None,
        error_name: str | None = None,
    ) -> int:
        if not cookie:
            self._cookie += 1
            cookie = self._cookie
        outgoing = build_message(
            type,
            cookie,
            signature,
            values,
            flags=flags,
            path=path,
            interface=interface,
            member=member,
            error_name=error_name,
            destination=destination,
            reply_cookie=reply_cookie,
        )
        expects_reply = type == METHOD_CALL and not flags & NO_REPLY_EXPECTED
        if kdbus_flags is None:
            kdbus_flags = MessageFlag.NO_AUTO_START if flags & NO_AUTO_START else MessageFlag(0)
        self.connection.send(
            outgoing.payload,
            destination=_address(destination),
            cookie=cookie,
            cookie_reply=reply_cookie,
            flags=kdbus_flags | MessageFlag.EXPECT_REPLY if expects_reply else kdbus_flags,
            timeout_ns=timeout_ns if expects_reply else 0,
            filter=message_filter(
                self.connection.bloom,
                path=path,
                interface=interface,
                member=member,
                arguments=filter_arguments(signature, values),
            )
            if type == SIGNAL
            else None,
            fds=outgoing.fds,
        )
        return cookie

    def post(
        self,
        destination: str,
        member: str,
        signature: str = "",
        *values: Any,
        path: str = "/a",
        interface: str | None = "a.b",
        flags: int = 0,
        **options: Any,
    ) -> int:
        """Call without waiting; the cookie. KdbusError when the broker refuses it."""
        return self._send(
            METHOD_CALL,
            destination,
            signature,
            values,
            path=path,
            interface=interface,
            member=member,
            flags=flags,
            **options,
        )

    def call(self, destination: str, member: str, signature: str = "", *values: Any, **options: Any) -> Mail:
        """Call and wait for what answers it: a return, an error or a notification; nothing else may come."""
        cookie = self.post(destination, member, signature, *values, **options)
        mail = self.receive()
        answered = mail.reply_cookie if isinstance(mail, Message) else getattr(mail, "cookie", 0)
        assert answered == cookie, mail
        return mail

    def answer(self, call: Message, signature: str = "", *values: Any) -> int:
        """Answer a call with results."""
        return self._send(
            METHOD_RETURN,
            call.sender,
            signature,
            values,
            flags=NO_REPLY_EXPECTED,
            reply_cookie=call.cookie,
        )

    def refuse(self, call: Message, error_name: str, text: str) -> int:
        """Answer a call with an error."""
        return self._send(
            ERROR,
            call.sender,
            "s",
            (text,),
            flags=NO_REPLY_EXPECTED,
            error_name=error_name,
            reply_cookie=call.cookie,
        )

    def emit(
        self,
        member: str,
        signature: str = "",
        *values: Any,
        destination: str | None = None,
        path: str = "/a",
        interface: str = "a.b",
    ) -> int:
        """Emit a signal, to everybody or to one."""
        return self._send(
            SIGNAL,
            destination,
            signature,
            values,
            flags=NO_REPLY_EXPECTED,
            path=path,
            interface=interface,
            member=member,
        )

    # Names and rules

    def acquire(self, name: str, flags: NameFlag = NameFlag(0)) -> NameFlag:  # noqa: B008 - a constant
        return self.connection.name_acquire(name, flags)

    def release(self, name: str) -> None:
        self.connection.name_release(name)

    def add_match(self, rule: str) -> int:
        """The cookie under which the rule's entries are."""
        self._match_cookie += 1
        for entry in rule_entries(self.connection.bloom, core_rule(parse_match_rule(rule))):
            self.connection.match_add(self._match_cookie, entry)
        return self._match_cookie

    # Receiving

    def receive(self) -> Mail:
        """The next thing that comes, which is waited for; KdbusError when the connection has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            received = self.connection.receive()
            if received is not None:
                return self._read(received)
            if not self.connection.wait(max(0.0, deadline - time.monotonic())):
                raise AssertionError(f"nothing has come for {self.unique_name}")

    def receive_message(self) -> Message:
        """The next message, which has to be one of a peer."""
        mail = self.receive()
        assert isinstance(mail, Message), mail
        return mail

    def drain(self) -> list[Mail]:
        """All that waits."""
        found: list[Mail] = []
        while (received := self.connection.receive()) is not None:
            found.append(self._read(received))
        return found

    def _read(self, received: Received) -> Mail:
        with received:
            assert not received.lost, f"{received.lost} messages were lost before {received!r}"
            notification = received.notification
            if notification is not None:
                return notification
            self.metadata.append(received.metadata)
            return read_message(received)


def take_files(message: Message) -> list[int]:
    """The descriptors of a message, which are the caller's from then on."""
    return [file.detach() for file in message.files]


def _address(destination: str | None) -> int | str | None:
    if destination is not None and destination.startswith(":1."):
        return int(destination.removeprefix(":1."))
    return destination
