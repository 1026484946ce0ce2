"""The server's side of the authentication that opens every D-Bus connection (specification,
"Authentication Protocol").

A conversation of CRLF lines: `SaslServer.feed` takes what came from the socket, in pieces of any size, and
gives back what has to be written; bytes after BEGIN are left in `leftover` for the message parser. What each
command does in each state stands in one table, `_ACTIONS`; every pair has an entry. Answers are byte for byte
those of libdbus' server, its odd readings included: a lone last hex digit is a high nibble, a number is
whatever strtoul(3) takes with base 0, ANONYMOUS needs no data.

What always holds: nothing the peer says is believed. EXTERNAL only confirms the uid the kernel gave for the
socket (`peer_uid`); where that is unknown EXTERNAL is refused, never taken for uid 0. `begun` and `failed`
exclude each other and both are final. Limits: `MAX_REJECTIONS` refusals, `MAX_BUFFER` bytes of one unfinished
line, `MAX_BUFFER` bytes of answers to one read. Time limits are the caller's.

Two answers differ from libdbus, for the sake of clients: EXTERNAL also takes a user name (old clients send
one), and NEGOTIATE_UNIX_FD is refused with a bare ERROR, the only refusal that every client survives.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from hashlib import sha1
from hmac import compare_digest
from typing import Final, Protocol, assert_never

__all__ = [
    "MAX_BUFFER",
    "MAX_REJECTIONS",
    "MECHANISMS",
    "CookieError",
    "CookieSource",
    "SaslCommand",
    "SaslServer",
    "SaslState",
]

MECHANISMS: Final = ("EXTERNAL", "DBUS_COOKIE_SHA1", "ANONYMOUS")
"""All mechanisms, in the order in which REJECTED lists them."""
MAX_REJECTIONS: Final = 6
MAX_BUFFER: Final = 16 * 1024

_READ_SIZE: Final = 2048
_LOG_LINES: Final = 16
_LOG_LINE_LENGTH: Final = 80


class SaslState(Enum):
    """Where the conversation is; the last two are final."""

    WAITING_FOR_NUL = "waiting for the NUL byte"
    WAITING_FOR_AUTH = "waiting for AUTH"
    WAITING_FOR_DATA = "waiting for DATA"
    WAITING_FOR_BEGIN = "waiting for BEGIN"
    BEGUN = "begun"
    FAILED = "failed"


class SaslCommand(Enum):
    """What a client may say. A server's own words (OK, REJECTED …) count as unknown."""

    AUTH = b"AUTH"
    DATA = b"DATA"
    CANCEL = b"CANCEL"
    BEGIN = b"BEGIN"
    ERROR = b"ERROR"
    NEGOTIATE_UNIX_FD = b"NEGOTIATE_UNIX_FD"
    UNKNOWN = b""


class _Do(Enum):
    START_MECHANISM = "start the mechanism that AUTH names"
    CONTINUE_MECHANISM = "hand the data to the mechanism"
    REJECT = "refuse and start again"
    AGREE_UNIX_FD = "agree to pass file descriptors"
    FINISH = "hand over to the messages"
    DISCONNECT = "close without an answer"


_UNKNOWN: Final = "Unknown command"
_NOT_YET: Final = "Need to authenticate first"
_NO_CONVERSATION: Final = "Not currently in an auth conversation"

# What to do in each state on each command; a string is the text of the ERROR to answer with.
_ACTIONS: Final[Mapping[SaslState, Mapping[SaslCommand, _Do | str]]] = {
    SaslState.WAITING_FOR_AUTH: {
        SaslCommand.AUTH: _Do.START_MECHANISM,
        SaslCommand.DATA: _NO_CONVERSATION,
        SaslCommand.CANCEL: _NO_CONVERSATION,
        SaslCommand.BEGIN: _Do.DISCONNECT,
        SaslCommand.ERROR: _Do.REJECT,
        SaslCommand.NEGOTIATE_UNIX_FD: _NOT_YET,
        SaslCommand.UNKNOWN: _UNKNOWN,
    },
    SaslState.WAITING_FOR_DATA: {
        SaslCommand.AUTH: "Sent AUTH while another AUTH in progress",
        SaslCommand.DATA: _Do.CONTINUE_MECHANISM,
        SaslCommand.CANCEL: _Do.REJECT,
        SaslCommand.BEGIN: _Do.DISCONNECT,
        SaslCommand.ERROR: _Do.REJECT,
        SaslCommand.NEGOTIATE_UNIX_FD: _NOT_YET,
        SaslCommand.UNKNOWN: _UNKNOWN,
    },
    SaslState.WAITING_FOR_BEGIN: {
        SaslCommand.AUTH: "Sent AUTH while expecting BEGIN",
        SaslCommand.DATA: "Sent DATA while expecting BEGIN",
        SaslCommand.CANCEL: _Do.REJECT,
        SaslCommand.BEGIN: _Do.FINISH,
        SaslCommand.ERROR: _Do.REJECT,
        SaslCommand.NEGOTIATE_UNIX_FD: _Do.AGREE_UNIX_FD,
        SaslCommand.UNKNOWN: _UNKNOWN,
    },
}

_COMMANDS: Final = {command.value: command for command in SaslCommand if command is not SaslCommand.UNKNOWN}
_NOT_ASCII: Final = re.compile(rb"[\0\x80-\xff]")
_BLANKS: Final = re.compile(rb"[ \t]+")
_HEX: Final = re.compile(rb"[0-9a-fA-F]*")
_HEX_RUN: Final = re.compile(rb"[0-9a-fA-F]{8,}")
_NUMBER: Final = re.compile(rb"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]{0,19})")
_GUID: Final = re.compile(r"[0-9a-f]{32}")


class CookieError(Exception):
    """No cookie can be offered now; the text says why."""


class CookieSource(Protocol):
    """Where DBUS_COOKIE_SHA1 gets its cookies: the keyring of the user the daemon runs as."""

    @property
    def context(self) -> str:
        """The keyring's name: ASCII without blanks, slashes and dots."""

    @property
    def uid(self) -> int:
        """The only user who can authenticate with these cookies."""

    def choose_cookie(self) -> int:
        """Give the id of a cookie young enough for a new conversation. Raise `CookieError` if none is."""

    def cookie_secret(self, cookie_id: int) -> str | None:
        """Give the secret of a cookie in lower-case hex, None if there is no such cookie."""

    def new_challenge(self) -> str:
        """Give a fresh random challenge in lower-case hex."""


class SaslServer:
    """One conversation with one client.

    `guid` is the address's (32 lower-case hex digits). `peer_uid` is the uid the kernel gave for the socket,
    None if it gave none. `resolve_user` turns a user name into a uid, None for an unknown one.

    Read after each `feed`: `begun` (BEGIN was accepted: `uid`, `mechanism`, `unix_fds` are final, `leftover`
    holds the first bytes of the message stream), `failed` (a reason: write what `feed` gave, then close).
    `uid` is the authenticated identity, None for ANONYMOUS. `log` has the last lines of both sides and the
    reasons of refusals, with everything secret cut out, fit for a log message.
    """

    def __init__(
        self,
        *,
        guid: str,
        mechanisms: tuple[str, ...],
        peer_uid: int | None,
        resolve_user: Callable[[str], int | None],
        cookies: CookieSource | None = None,
        allow_unix_fds: bool = True,
    ) -> None:
        if _GUID.fullmatch(guid) is None:
            raise ValueError(f"not a GUID of 32 lower-case hex digits: {guid!r}")
        unknown = [name for name in mechanisms if name not in MECHANISMS]
        if unknown:
            raise ValueError(f"unknown mechanism: {', '.join(unknown)}")
        if "DBUS_COOKIE_SHA1" in mechanisms and cookies is None:
            raise ValueError("DBUS_COOKIE_SHA1 needs cookies")
        self.state = SaslState.WAITING_FOR_NUL
        self.failed: str | None = None
        self.leftover = b""
        self.unix_fds = False
        self.mechanism: str | None = None
        self.uid: int | None = None
        self.rejections = 0
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self._ok_line = b"OK " + guid.encode()
        offered = [name for name in MECHANISMS if name in mechanisms]
        self._rejected_line = " ".join(["REJECTED", *offered]).encode()
        self._peer_uid = peer_uid
        self._resolve_user = resolve_user
        self._cookies = cookies
        self._allow_unix_fds = allow_unix_fds
        on_data = {
            b"EXTERNAL": self._on_external_data,
            b"DBUS_COOKIE_SHA1": self._on_cookie_data,
            b"ANONYMOUS": self._on_anonymous_data,
        }
        self._mechanisms = {name.encode(): on_data[name.encode()] for name in offered}
        self._on_data: Callable[[bytes], None] | None = None
        self._asked_for_identity = False
        self._cookie_id: int | None = None
        self._challenge = ""
        self._incoming = bytearray()
        self._outgoing = bytearray()

    @property
    def begun(self) -> bool:
        """Tell whether BEGIN was accepted, so that messages follow."""
        return self.state is SaslState.BEGUN

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the socket; give back the answers, in order (maybe none).

        Hand over each read by itself and only when all earlier answers are written: the limit on answers
        counts per call, in steps of 2 KiB, which is how libdbus reads.
        """
        if self.state is SaslState.BEGUN:
            self.leftover += data
            return b""
        if self.state is SaslState.FAILED or not data:
            return b""
        start = 0
        if self.state is SaslState.WAITING_FOR_NUL:
            if data[0] != 0:
                self._fail("the first byte was not NUL")
                return b""
            self.state = SaslState.WAITING_FOR_AUTH
            start = 1

        answers = bytearray()
        for offset in range(start, len(data), _READ_SIZE):
            self._incoming += data[offset : offset + _READ_SIZE]
            self._process_lines()
            answers += self._outgoing
            self._outgoing.clear()
            if self.state is SaslState.BEGUN:
                self.leftover = bytes(self._incoming) + data[offset + _READ_SIZE :]
            if self.state in (SaslState.BEGUN, SaslState.FAILED):
                self._incoming.clear()
                break
        return bytes(answers)

    def _process_lines(self) -> None:
        """Act on each whole line in the buffer, until there is none or the conversation has ended."""
        while self.state is not SaslState.BEGUN and self.state is not SaslState.FAILED:
            if len(self._incoming) > MAX_BUFFER:
                self._fail(f"more than {MAX_BUFFER} bytes without an end of line")
                return
            if len(self._outgoing) > MAX_BUFFER:
                self._fail(f"more than {MAX_BUFFER} bytes of answers to one read")
                return
            line_end = self._incoming.find(b"\r\n")
            if line_end < 0:
                return
            line = bytes(self._incoming[:line_end])
            del self._incoming[: line_end + 2]
            self._process_line(line)

    def _process_line(self, line: bytes) -> None:
        name, arguments = _split_word(line)
        command = _COMMANDS.get(name, SaslCommand.UNKNOWN)
        self._remember("<", _redact(command, name, arguments, line))
        if _NOT_ASCII.search(line):
            self._send_error("Command contained non-ASCII")
            return
        action = _ACTIONS[self.state][command]
        if isinstance(action, str):
            self._send_error(action)
            return
        match action:
            case _Do.START_MECHANISM:
                self._start_mechanism(arguments)
            case _Do.CONTINUE_MECHANISM:
                self._give_data(arguments)
            case _Do.REJECT:
                self._reject(f"the client sent {name.decode()}")
            case _Do.AGREE_UNIX_FD:
                if self._allow_unix_fds:
                    self.unix_fds = True
                    self._send(b"AGREE_UNIX_FD")
                else:
                    self._send(b"ERROR")
            case _Do.FINISH:
                self.state = SaslState.BEGUN
            case _Do.DISCONNECT:
                self._fail("BEGIN before authentication")
            case _:
                assert_never(action)

    def _start_mechanism(self, arguments: bytes) -> None:
        name, initial_response = _split_word(arguments)
        self._on_data = self._mechanisms.get(name)
        if self._on_data is None:
            self._reject("the client asked for the list" if not arguments else "mechanism not offered")
        else:
            self._give_data(initial_response)

    def _give_data(self, hex_digits: bytes) -> None:
        assert self._on_data is not None, "DATA is only taken within a mechanism"
        data = _decode_hex(hex_digits)
        if data is None:
            self._send_error("Invalid hex encoding")
        else:
            self._on_data(data)

    def _on_external_data(self, identity: bytes) -> None:
        if self._peer_uid is None:
            self._reject("the kernel gave no uid for this socket")
        elif identity:
            uid = self._resolve_identity(identity)
            if uid == self._peer_uid:
                self._accept("EXTERNAL", uid)
            else:
                shown = ascii(identity[:32].decode("utf-8", "replace"))
                self._reject(f"the client says it is {shown}, its socket is of uid {self._peer_uid}")
        elif self._asked_for_identity:
            self._accept("EXTERNAL", self._peer_uid)
        else:
            self._asked_for_identity = True
            self._send(b"DATA")
            self.state = SaslState.WAITING_FOR_DATA

    def _on_anonymous_data(self, trace: bytes) -> None:
        if _is_text(trace):
            self._accept("ANONYMOUS", None)
        else:
            self._reject("the trace is not UTF-8")

    def _on_cookie_data(self, data: bytes) -> None:
        assert self._cookies is not None, "the mechanism is only offered with cookies"
        if self._cookie_id is None:
            self._send_cookie_challenge(data, self._cookies)
        else:
            self._check_cookie_response(data, self._cookies, self._cookie_id)

    def _send_cookie_challenge(self, identity: bytes, cookies: CookieSource) -> None:
        if self._resolve_identity(identity) != cookies.uid:
            self._reject(f"cookies are only for uid {cookies.uid}")
            return
        try:
            self._cookie_id = cookies.choose_cookie()
        except CookieError as error:
            self._reject(str(error))
            return
        self._challenge = cookies.new_challenge()
        text = f"{cookies.context} {self._cookie_id} {self._challenge}"
        self._send(b"DATA " + text.encode().hex().encode(), shown="DATA <challenge>")
        self.state = SaslState.WAITING_FOR_DATA

    def _check_cookie_response(self, data: bytes, cookies: CookieSource, cookie_id: int) -> None:
        client_challenge, client_hash = _split_word(data)
        secret = cookies.cookie_secret(cookie_id)
        if not client_challenge or not client_hash:
            self._reject("the response is not a challenge and a hash")
        elif not secret:
            self._reject("the cookie has expired")
        else:
            hashed = b":".join((self._challenge.encode(), client_challenge, secret.encode()))
            expected = sha1(hashed, usedforsecurity=False).hexdigest().encode()
            if compare_digest(client_hash, expected):
                self._accept("DBUS_COOKIE_SHA1", cookies.uid)
            else:
                self._reject("the hash is wrong")

    def _resolve_identity(self, identity: bytes) -> int | None:
        """Give the uid that a number or a user name stands for, None if it stands for nobody."""
        number = _parse_number(identity)
        if number is not None:
            return number
        if not identity or not _is_text(identity):
            return None
        return self._resolve_user(identity.decode())

    def _accept(self, mechanism: str, uid: int | None) -> None:
        self.mechanism = mechanism
        self.uid = uid
        self._send(self._ok_line)
        self.state = SaslState.WAITING_FOR_BEGIN

    def _reject(self, reason: str) -> None:
        self._send(self._rejected_line, shown=f"REJECTED ({reason})")
        self.mechanism = None
        self.uid = None
        self._on_data = None
        self._asked_for_identity = False
        self._cookie_id = None
        self._challenge = ""
        self.rejections += 1
        self.state = SaslState.WAITING_FOR_AUTH
        if self.rejections >= MAX_REJECTIONS:
            self._fail(f"{MAX_REJECTIONS} rejections, the last one: {reason}")

    def _fail(self, reason: str) -> None:
        self.failed = reason
        self.state = SaslState.FAILED

    def _send_error(self, text: str) -> None:
        self._send(f'ERROR "{text}"'.encode())

    def _send(self, line: bytes, shown: str | None = None) -> None:
        self._outgoing += line + b"\r\n"
        self._remember(">", line.decode() if shown is None else shown)

    def _remember(self, direction: str, line: str) -> None:
        if len(line) > _LOG_LINE_LENGTH:
            line = line[:_LOG_LINE_LENGTH] + "…"
        self.log.append(f"{direction} {line}")


def _split_word(text: bytes) -> tuple[bytes, bytes]:
    """Cut at the first run of blanks: the word before it (maybe empty) and everything after it."""
    blanks = _BLANKS.search(text)
    if blanks is None:
        return text, b""
    return text[: blanks.start()], text[blanks.end() :]


def _decode_hex(digits: bytes) -> bytes | None:
    if _HEX.fullmatch(digits) is None:
        return None
    return bytes.fromhex((digits + b"0" if len(digits) % 2 else digits).decode())


def _parse_number(text: bytes) -> int | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, digits = match.groups()
    if digits[:2] in (b"0x", b"0X"):
        number = int(digits, 16)
    else:
        number = int(digits, 8 if digits.startswith(b"0") else 10)
    if number >= 1 << 64:
        return None
    return (-number if sign == b"-" else number) % (1 << 64)


def _is_text(data: bytes) -> bool:
    if 0 in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _redact(command: SaslCommand, name: bytes, arguments: bytes, line: bytes) -> str:
    """Give the line for the log without the data of AUTH and DATA, and without anything like it elsewhere."""
    if command is SaslCommand.AUTH:
        mechanism, data = _split_word(arguments)
        line = b" ".join(filter(None, (name, mechanism)))
    elif command is SaslCommand.DATA:
        data = arguments
        line = name
    else:
        data = b""
    line = _HEX_RUN.sub(lambda run: b"<%d bytes>" % len(run[0]), line)
    shown = ascii(line[: _LOG_LINE_LENGTH + 1].decode("latin-1"))[1:-1]
    return f"{shown} <{len(data)} bytes>" if data else shown
