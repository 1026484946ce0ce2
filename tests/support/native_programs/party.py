"""One peer of either kind with one vocabulary, for workers that must not care which kind they are.

What comes is an `Event`; what the broker refuses comes as one too, so that a call has its outcomes in one
place: a reply, an error reply, or an errno.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from busproxy.native.messages import Message as NativeMessage
from kdbus_core.abi import NameFlag
from kdbus_core.errors import KdbusError
from kdbus_core.transport.client import IdChanged, NameChanged, ReplyDead, ReplyTimeout
from support.native_peer import Mail, NativePeer
from support.raw import (
    DRIVER,
    ERROR,
    METHOD_CALL,
    METHOD_RETURN,
    NO_REPLY_EXPECTED,
    SIGNAL,
    Message,
    RawClient,
)

NATIVE, LEGACY = "native", "legacy"
PATH, INTERFACE = "/worker", "com.example.Worker"
ALLOW_REPLACEMENT, REPLACE_EXISTING = 1, 2
PREFIX = "org.freedesktop.DBus.Error."


class Event(NamedTuple):
    """Something that came: `kind` is call, signal, owner or an outcome of a call: reply, error.

    `number` is that of the call. `what` is a member, an error's name, or of an owner the name; `body` are the
    arguments, or an owner's predecessor and itself.
    """

    kind: str
    what: str
    sender: str
    number: int
    body: list[Any]
    origin: Any = None


class Party(Protocol):
    """A connection, and what is done on it."""

    unique_name: str

    def call(self, destination: str, member: str, signature: str, *values: Any) -> int:
        """Call; the number under which the outcome comes. Descriptors are borrowed."""

    def answer(self, call: Event, signature: str, *values: Any) -> None:
        """Answer a call, which may be nobody's by now."""

    def refuse(self, call: Event, name: str) -> None:
        """Answer it with an error."""

    def emit(self, member: str, signature: str, *values: Any) -> None:
        """Emit a signal to everybody."""

    def listen(self, *, owners: bool) -> None:
        """Hear the signals of workers, and if asked for what becomes of names."""

    def acquire(self, name: str, *, contested: bool = False) -> bool:
        """Ask for a name, and queue for it; whether it is ours."""

    def release(self, name: str) -> None:
        """Give it up."""

    def next(self) -> Event:
        """The next thing that comes; waits."""

    def rest(self) -> list[Event]:
        """What else has come, when the bus has been asked for the last time."""

    def close(self) -> None: ...


class NativeParty:
    """A native worker."""

    def __init__(self, node: Path) -> None:
        self._peer = NativePeer(node)
        self._refused: deque[Event] = deque()
        self._last = 0
        self.unique_name = self._peer.unique_name

    @property
    def peer(self) -> NativePeer:
        return self._peer

    def call(self, destination: str, member: str, signature: str, *values: Any) -> int:
        self._last += 1
        try:
            self._peer.post(
                destination, member, signature, *values, cookie=self._last, path=PATH, interface=INTERFACE
            )
        except KdbusError as error:
            self._refused.append(Event("error", errno.errorcode[error.errno], "", self._last, []))
        return self._last

    def answer(self, call: Event, signature: str, *values: Any) -> None:
        try:
            self._peer.answer(call.origin, signature, *values)
        except KdbusError as error:
            _forgive(error)

    def refuse(self, call: Event, name: str) -> None:
        try:
            self._peer.refuse(call.origin, name, "on purpose")
        except KdbusError as error:
            _forgive(error)

    def emit(self, member: str, signature: str, *values: Any) -> None:
        self._peer.emit(member, signature, *values, path=PATH, interface=INTERFACE)

    def listen(self, *, owners: bool) -> None:
        self._peer.add_match(f"type='signal',interface='{INTERFACE}'")
        if owners:
            self._peer.add_match(f"sender='{DRIVER}',member='NameOwnerChanged'")

    def acquire(self, name: str, *, contested: bool = False) -> bool:
        flags = NameFlag.QUEUE
        if contested:
            flags |= NameFlag.ALLOW_REPLACEMENT | NameFlag.REPLACE_EXISTING
        return NameFlag.PRIMARY in self._peer.acquire(name, flags)

    def release(self, name: str) -> None:
        self._peer.release(name)

    def next(self) -> Event:
        while True:
            if self._refused:
                return self._refused.popleft()
            event = _read_native(self._peer.receive())
            if event is not None:
                return event

    def poll(self) -> list[Event]:
        """What has come, without waiting."""
        events = [event for mail in self._peer.drain() if (event := _read_native(mail)) is not None]
        while self._refused:
            events.append(self._refused.popleft())
        return events

    def rest(self) -> list[Event]:
        self._peer.connection.list()
        return self.poll()

    def close(self) -> None:
        self._peer.close()


def _forgive(error: KdbusError) -> None:
    """Whoever asked may have gone, or wait no longer."""
    assert error.errno in (errno.ENXIO, errno.EBADSLT, errno.EPERM), error


def _read_native(mail: Mail) -> Event | None:
    match mail:
        case ReplyDead(cookie):
            return Event("error", "EPIPE", "", cookie, [])
        case ReplyTimeout(cookie):
            return Event("error", "ETIMEDOUT", "", cookie, [])
        case NameChanged(_, name, old, _, new, _):
            return Event("owner", name, DRIVER, 0, [f":1.{id}" if id else "" for id in (old, new)])
        case IdChanged():
            return None
    assert isinstance(mail, NativeMessage)
    mail.close()
    body = [None if file in mail.files else file for file in mail.values]
    if mail.type == METHOD_CALL:
        return Event("call", mail.member or "", mail.sender, mail.cookie, body, mail)
    if mail.type == SIGNAL:
        return Event("signal", mail.member or "", mail.sender, 0, body)
    kind = "error" if mail.type == ERROR else "reply"
    return Event(kind, mail.error_name or "", mail.sender, mail.reply_cookie, body)


class LegacyParty:
    """A worker with the raw client."""

    def __init__(self, address: str) -> None:
        self._client = RawClient(address)
        self.unique_name = self._client.unique_name

    def call(self, destination: str, member: str, signature: str, *values: Any) -> int:
        fds = [value for code, value in zip(_codes(signature), values, strict=True) if code == "h"]
        indices = iter(range(len(fds)))
        numbered = [
            next(indices) if code == "h" else value
            for code, value in zip(_codes(signature), values, strict=True)
        ]
        return self._client.send_call(
            member, signature, *numbered, destination=destination, path=PATH, interface=INTERFACE, fds=fds
        )

    def _reply(self, call: Event, type: int, signature: str, values: list[Any], **fields: str) -> None:
        message = Message(
            type,
            NO_REPLY_EXPECTED,
            fields={"reply_serial": call.number, "destination": call.sender, **fields},
            body=values,
        )
        if signature:
            message.fields["signature"] = signature
        self._client.send(message)

    def answer(self, call: Event, signature: str, *values: Any) -> None:
        self._reply(call, METHOD_RETURN, signature, list(values))

    def refuse(self, call: Event, name: str) -> None:
        self._reply(call, ERROR, "s", ["on purpose"], error_name=name)

    def emit(self, member: str, signature: str, *values: Any) -> None:
        fields = {"path": PATH, "interface": INTERFACE, "member": member, "signature": signature}
        self._client.send(Message(SIGNAL, NO_REPLY_EXPECTED, fields=fields, body=list(values)))

    def listen(self, *, owners: bool) -> None:
        self._client.reply("AddMatch", "s", f"type='signal',interface='{INTERFACE}'")
        if owners:
            self._client.reply("AddMatch", "s", f"sender='{DRIVER}',member='NameOwnerChanged'")

    def acquire(self, name: str, *, contested: bool = False) -> bool:
        flags = ALLOW_REPLACEMENT | REPLACE_EXISTING if contested else 0
        return self._client.reply("RequestName", "su", name, flags).body[0] in (1, 4)

    def release(self, name: str) -> None:
        self._client.reply("ReleaseName", "s", name)

    def next(self) -> Event:
        while True:
            event = self._read(self._client.receive())
            if event is not None:
                return event

    def rest(self) -> list[Event]:
        return [event for message in self._client.sync() if (event := self._read(message)) is not None]

    def _read(self, message: Message) -> Event | None:
        for fd in self._client.take_fds(message.fds):
            os.close(fd)
        sender = message.fields["sender"]
        if message.type == METHOD_CALL:
            return Event("call", message.member, sender, message.serial, message.body)
        if message.type == SIGNAL:
            if sender != DRIVER:
                return Event("signal", message.member, sender, 0, message.body)
            if message.member == "NameOwnerChanged" and message.body[0][0] != ":":
                return Event("owner", message.body[0], sender, 0, message.body[1:])
            return None
        name = (message.error_name or "").removeprefix(PREFIX)
        return Event(
            "error" if message.type == ERROR else "reply",
            name,
            sender,
            message.fields["reply_serial"],
            message.body,
        )

    def close(self) -> None:
        self._client.close()


def _codes(signature: str) -> list[str]:
    """Signatures of workers are basic types and arrays of bytes."""
    return list(signature.replace("ay", "y"))


def join(kind: str, where: str) -> Party:
    """A party of that kind at a node or an address."""
    return NativeParty(Path(where)) if kind == NATIVE else LegacyParty(where)
