"""A D-Bus client of its own, down to the byte: SASL, framing, marshalling, fds, over a blocking socket.

It shares nothing with the packages under test and validates nothing it sends, so a test can say odd and
wrong things on purpose. It reads strictly: what a bus sends must be well-formed. Messages come back in the
order the bus sent them; `sync` asks the driver for a reply and returns all that came before it, which is
how a test knows that nothing more is on its way. The client owns its socket and every fd it has received
until `take_fds`.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from support.marshal import Reader, Writer

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4
TYPE_NAMES = {METHOD_CALL: "call", METHOD_RETURN: "return", ERROR: "error", SIGNAL: "signal"}
NO_REPLY_EXPECTED, NO_AUTO_START, ALLOW_INTERACTIVE = 1, 2, 4

DRIVER = "org.freedesktop.DBus"
DRIVER_PATH = "/org/freedesktop/DBus"

FIELDS = {
    1: ("path", "o"),
    2: ("interface", "s"),
    3: ("member", "s"),
    4: ("error_name", "s"),
    5: ("reply_serial", "u"),
    6: ("destination", "s"),
    7: ("sender", "s"),
    8: ("signature", "g"),
    9: ("unix_fds", "u"),
}
CODES = {name: (code, signature) for code, (name, signature) in FIELDS.items()}

PATIENCE_SECONDS = 20.0


class Disconnected(Exception):
    """The bus closed the connection; `messages` holds what arrived before and was not yet taken."""

    def __init__(self, messages: list[Message]) -> None:
        super().__init__("the bus closed the connection")
        self.messages = messages


@dataclass
class Message:
    """One message as it is on the wire; `fields` uses the names in `FIELDS`, unknown codes their number."""

    type: int
    flags: int = 0
    serial: int = 0
    fields: dict[Any, Any] = field(default_factory=dict)
    body: list[Any] = field(default_factory=list)
    order: str = "l"
    fds: int = 0

    @property
    def member(self) -> str:
        return str(self.fields.get("member", ""))

    @property
    def error_name(self) -> str | None:
        return self.fields.get("error_name")

    def describe(self) -> dict[str, Any]:
        """All that a client can see of the message, for comparing; serials are left to the tests about
        serials.
        """
        shown = {str(name): value for name, value in self.fields.items() if name != "reply_serial"}
        return {
            "type": TYPE_NAMES.get(self.type, self.type),
            "flags": self.flags,
            "is_reply": "reply_serial" in self.fields,
            **dict(sorted(shown.items())),
            "body": self.body,
        }

    def brief(self) -> str:
        """One line that names the message: kind, member or error, arguments."""
        what = self.error_name or self.member or "reply"
        return f"{TYPE_NAMES.get(self.type, self.type)} {what} {self.body!r}"


def build_message(message: Message) -> bytes:
    """The bytes of a message; nothing about it is checked."""
    body = Writer(message.order)
    signature = message.fields.get("signature", "")
    body.write_all(signature, message.body)
    header = Writer(message.order)
    header.write("y", ord(message.order))
    header.write("y", message.type)
    header.write("y", message.flags)
    header.write("y", 1)
    header.write("u", len(body.data))
    header.write("u", message.serial)
    entries = []
    for name, value in message.fields.items():
        if isinstance(name, str):
            code, kind = CODES[name]
            entries.append((code, (kind, value)))
        else:
            entries.append((name, value))
    header.write("a(yv)", entries)
    header.pad(8)
    return bytes(header.data + body.data)


def parse_message(data: bytes) -> tuple[Message, int] | None:
    """The first whole message in `data` and its length; None when there is not all of it yet."""
    if len(data) < 16:
        return None
    order = chr(data[0])
    reader = Reader(data, order)
    _, kind, flags, version, body_length, serial = reader.read_all("yyyyuu")
    if version != 1:
        raise ValueError(f"protocol version {version}")
    fields_length = int.from_bytes(data[12:16], "little" if order == "l" else "big")
    start = (16 + fields_length + 7) & ~7
    if len(data) < start + body_length:
        return None
    fields: dict[Any, Any] = {}
    for code, value in reader.read("a(yv)"):
        fields[FIELDS[code][0] if code in FIELDS else code] = value[1] if code in FIELDS else value
    body_reader = Reader(data[start : start + body_length], order)
    body = body_reader.read_all(fields.get("signature", ""))
    if body_reader.offset != body_length:
        raise ValueError(
            f"body of {body_length} bytes, signature {fields.get('signature')!r}, read {body_reader.offset}"
        )
    message = Message(kind, flags, serial, fields, body, order, fields.get("unix_fds", 0))
    return message, start + body_length


class RawClient:
    """A connected, authenticated client; use as a context manager or `close` it."""

    def __init__(self, address: str, *, hello: bool = True, negotiate_fds: bool = True) -> None:
        self.socket = connect_address(address)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.guid = ""
        self.unique_name = ""
        self._serial = 0
        self._data = b""
        self._pending: list[Message] = []
        self._fds: list[int] = []
        try:
            self._authenticate(negotiate_fds=negotiate_fds)
            if hello:
                reply = self.call("Hello")[-1]
                self.unique_name = reply.body[0]
                self.sync()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process the bus sees behind this client."""
        return os.getpid()

    def close(self) -> None:
        """Close the socket and every fd that was received and not taken."""
        self.socket.close()
        while self._fds:
            os.close(self._fds.pop())

    def _authenticate(self, *, negotiate_fds: bool) -> None:
        uid = str(os.getuid()).encode().hex()
        self.socket.sendall(b"\0AUTH EXTERNAL " + uid.encode() + b"\r\n")
        word, _, self.guid = self._read_line().partition(" ")
        if word != "OK":
            raise AssertionError(f"authentication was answered with {word}")
        if negotiate_fds:
            self.socket.sendall(b"NEGOTIATE_UNIX_FD\r\n")
            answer = self._read_line()
            if answer != "AGREE_UNIX_FD":
                raise AssertionError(f"NEGOTIATE_UNIX_FD was answered with {answer}")
        self.socket.sendall(b"BEGIN\r\n")

    def _read_line(self) -> str:
        while b"\r\n" not in self._data:
            chunk = self.socket.recv(4096)
            if not chunk:
                raise Disconnected([])
            self._data += chunk
        line, _, self._data = self._data.partition(b"\r\n")
        return line.decode("ascii")

    def next_serial(self) -> int:
        """Take the next serial of this client."""
        self._serial += 1
        return self._serial

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Write bytes as they are, the fds with the first of them."""
        if fds:
            sent = socket.send_fds(self.socket, [data], list(fds))
            data = data[sent:]
        if data:
            self.socket.sendall(data)

    def send(self, message: Message, fds: Sequence[int] = ()) -> int:
        """Send a message, with the next serial unless it has one; returns the serial."""
        if message.serial == 0:
            message.serial = self.next_serial()
        self.send_bytes(build_message(message), fds)
        return message.serial

    def send_call(
        self,
        member: str,
        signature: str = "",
        *arguments: Any,
        destination: str | None = DRIVER,
        path: str = DRIVER_PATH,
        interface: str | None = DRIVER,
        flags: int = 0,
        order: str = "l",
        fds: Sequence[int] = (),
    ) -> int:
        """Send a method call, to the driver unless told otherwise; None leaves a header field out."""
        fields: dict[Any, Any] = {"path": path}
        if interface is not None:
            fields["interface"] = interface
        fields["member"] = member
        if destination is not None:
            fields["destination"] = destination
        if signature:
            fields["signature"] = signature
        if fds:
            fields["unix_fds"] = len(fds)
        return self.send(Message(METHOD_CALL, flags, 0, fields, list(arguments), order), fds)

    def call(self, member: str, signature: str = "", *arguments: Any, **options: Any) -> list[Message]:
        """Send a call and return all that came up to its reply, the reply last."""
        serial = self.send_call(member, signature, *arguments, **options)
        return list(self.until_reply(serial))

    def reply(self, member: str, signature: str = "", *arguments: Any, **options: Any) -> Message:
        """Send a call and return its reply; what came before it stays for `sync`."""
        messages = self.call(member, signature, *arguments, **options)
        self._pending[:0] = messages[:-1]
        return messages[-1]

    def until_reply(self, serial: int) -> Iterator[Message]:
        """Messages as they come, up to and with the reply to `serial`."""
        while True:
            message = self.receive()
            yield message
            if message.fields.get("reply_serial") == serial:
                return

    def sync(self) -> list[Message]:
        """All that the bus had sent to this client before it answered a call made now."""
        return self.call("GetId")[:-1]

    def receive(self) -> Message:
        """The next message; raises `Disconnected` at the end of the stream."""
        if self._pending:
            return self._pending.pop(0)
        while (parsed := parse_message(self._data)) is None:
            chunk, ancillary, _, _ = self.socket.recvmsg(
                262144, socket.CMSG_SPACE(253 * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                    self._fds.extend(fds)
            if not chunk:
                raise Disconnected([])
            self._data += chunk
        message, length = parsed
        self._data = self._data[length:]
        return message

    def wait_for_name(self, name: str) -> None:
        """Wait until somebody owns the name."""
        self.call("AddMatch", "s", _owner_change_rule(name))
        if not self.reply("NameHasOwner", "s", name).body[0]:
            while self._next_owner_change(name)[2] == "":
                pass
        self.call("RemoveMatch", "s", _owner_change_rule(name))

    def wait_for_name_lost(self, name: str) -> None:
        """Wait until nobody owns the name."""
        self.call("AddMatch", "s", _owner_change_rule(name))
        if self.reply("NameHasOwner", "s", name).body[0]:
            while self._next_owner_change(name)[2] != "":
                pass
        self.call("RemoveMatch", "s", _owner_change_rule(name))

    def _next_owner_change(self, name: str) -> list[str]:
        while True:
            message = self.receive()
            if message.member == "NameOwnerChanged" and message.body[0] == name:
                return list(message.body)

    def probe(self) -> list[Message | None]:
        """All up to the reply to one more call, or to the end of the stream, which is None."""
        messages: list[Message | None] = []
        try:
            messages.extend(self.until_reply(self.send_call("GetId")))
        except (Disconnected, ConnectionResetError, BrokenPipeError):
            messages.extend(self._rest())
            messages.append(None)
        return messages

    def _rest(self) -> Iterator[Message]:
        try:
            while True:
                yield self.receive()
        except (Disconnected, ConnectionResetError, BrokenPipeError):
            return

    def take_fds(self, count: int) -> list[int]:
        """The first `count` received fds; they are the caller's now."""
        taken, self._fds = self._fds[:count], self._fds[count:]
        return taken


def _owner_change_rule(name: str) -> str:
    return f"type='signal',sender='{DRIVER}',member='NameOwnerChanged',arg0='{name}'"


def connect_address(address: str) -> socket.socket:
    """Connect to a `unix:path=` or `unix:abstract=` address (the first of several)."""
    transport, _, rest = address.split(";")[0].partition(":")
    options = dict(item.split("=", 1) for item in rest.split(","))
    if transport != "unix":
        raise ValueError(f"no unix address: {address}")
    target = options["path"] if "path" in options else "\0" + options["abstract"]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(target)
    except BaseException:
        connection.close()
        raise
    return connection
