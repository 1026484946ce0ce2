"""A connection to a bus, made and prepared before the clock starts.

The handshake, Hello, name requests and match rules happen here, in the benchmark's own process; the finished
socket is then inherited by the load process that uses it. `settle` makes sure that nothing is on its way to
the socket any more, so that the first thing a load loop reads is an answer to what it sent.

The socket stays blocking, with a kernel timeout (SO_RCVTIMEO, SO_SNDTIMEO) instead of Python's, which would
cost a poll(2) for every operation: a stuck bus shows as BlockingIOError.
"""

import os
import socket
import struct

from bench import messages
from bench.messages import CALL, ERROR, REPLY_SERIAL, SERIAL_OFFSET, UINT32

BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"

AUTH = b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n"
NEGOTIATE_UNIX_FD = b"NEGOTIATE_UNIX_FD\r\n"
BEGIN = b"BEGIN\r\n"

_STUCK_AFTER_S = 10


class BusError(Exception):
    """The bus refused, sent something senseless, or closed the connection."""


def open_socket(address: str | bytes) -> socket.socket:
    """A blocking stream socket connected to `address`; its operations fail after ten seconds."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        timeout = struct.pack("@ll", _STUCK_AFTER_S, 0)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        connected.connect(address)
    except BaseException:
        connected.close()
        raise
    return connected


class Connection:
    """One client of a bus, connected and known to it; owns its socket until `close`."""

    def __init__(self, address: str | bytes) -> None:
        self.socket = open_socket(address)
        self._buffer = b""
        self._serial = 0
        try:
            self._authenticate()
            self.unique_name = messages.parse_string(self.call_driver("Hello"))
        except BaseException:
            self.socket.close()
            raise

    def call_driver(self, member: str, *, signature: str = "", body: bytes = b"") -> bytes:
        """Call a method of the bus and return the reply; signals that come first are dropped."""
        return self.call(
            messages.build_call(BUS, BUS_PATH, BUS, member, signature=signature, body=body), what=member
        )

    def call(self, message: bytearray, *, what: str) -> bytes:
        """Send a method call and return the reply to it; BusError when that is an error."""
        assert message[1] == CALL
        self._serial += 1
        UINT32.pack_into(message, SERIAL_OFFSET, self._serial)
        self.socket.sendall(message)
        while True:
            answer = self._read_message()
            fields = messages.parse_fields(answer)
            if fields.get(REPLY_SERIAL) != self._serial:
                continue
            if answer[1] == ERROR:
                raise BusError(f"{what}: {fields.get(messages.ERROR_NAME)}")
            return answer

    def request_name(self, name: str) -> None:
        """Become the owner of `name`; BusError when it cannot be had at once."""
        text = messages.build_strings(name)
        flags = bytes(-len(text) % 4) + UINT32.pack(0)
        answer = self.call_driver("RequestName", signature="su", body=text + flags)
        (code,) = UINT32.unpack(answer[-4:])
        if code != 1:
            raise BusError(f"RequestName {name}: answered {code}")

    def add_match(self, rule: str) -> None:
        """Install a match rule."""
        self.call_driver("AddMatch", signature="s", body=messages.build_strings(rule))

    def settle(self) -> None:
        """Return when everything the bus had for this connection has been read."""
        self.call_driver("GetId")
        if self._buffer:
            raise BusError("the bus goes on sending to a connection that asked for nothing")

    def close(self) -> None:
        """Leave the bus."""
        self.socket.close()

    def _authenticate(self) -> None:
        self.socket.sendall(AUTH)
        answer = self._read_line()
        if not answer.startswith(b"OK "):
            raise BusError(f"authentication refused: {answer.decode(errors='replace')}")
        self.socket.sendall(BEGIN)

    def _read_line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._read_more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _read_message(self) -> bytes:
        while len(self._buffer) < messages.FIXED_LENGTH:
            self._read_more()
        length = messages.frame_length(self._buffer)
        while len(self._buffer) < length:
            self._read_more()
        message, self._buffer = self._buffer[:length], self._buffer[length:]
        return message

    def _read_more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise BusError("the bus closed the connection")
        self._buffer += data
