"""The SASL server, read as conversations: what the client writes, what it gets back."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha1
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busproxy.wire import sasl
from busproxy.wire.sasl import (
    MAX_BUFFER,
    MAX_REJECTIONS,
    MECHANISMS,
    CookieError,
    SaslCommand,
    SaslServer,
    SaslState,
)

GUID = "0123456789abcdef0123456789abcdef"
OK = f"OK {GUID}"
REJECTED = "REJECTED EXTERNAL"
UNKNOWN = 'ERROR "Unknown command"'
BAD_HEX = 'ERROR "Invalid hex encoding"'
NOT_ASCII = 'ERROR "Command contained non-ASCII"'
NO_CONVERSATION = 'ERROR "Not currently in an auth conversation"'
NOT_YET = 'ERROR "Need to authenticate first"'

USERS = {"ada": 1000, "bob": 1001, "jürgen": 1000}


@dataclass
class Cookies:
    """A keyring with one cookie."""

    context: str = "org_freedesktop_general"
    uid: int = 1000
    secrets: dict[int, str] = field(default_factory=lambda: {7: "5ec7e7"})
    problem: str | None = None

    def choose_cookie(self) -> int:
        if self.problem is not None:
            raise CookieError(self.problem)
        return 7

    def cookie_secret(self, cookie_id: int) -> str | None:
        return self.secrets.get(cookie_id)

    def new_challenge(self) -> str:
        return "c4a11e"


def make_server(
    *mechanisms: str,
    peer_uid: int | None = 1000,
    cookies: Cookies | None = None,
    allow_unix_fds: bool = True,
) -> SaslServer:
    return SaslServer(
        guid=GUID,
        mechanisms=mechanisms or ("EXTERNAL",),
        peer_uid=peer_uid,
        resolve_user=USERS.get,
        cookies=cookies,
        allow_unix_fds=allow_unix_fds,
    )


def hexed(text: str | bytes) -> str:
    return (text if isinstance(text, bytes) else text.encode()).hex()


def say(server: SaslServer, *lines: str) -> list[str]:
    """Send lines (NUL first, if it is still due) in one piece; give the lines of the answer."""
    nul = b"\0" if server.state is SaslState.WAITING_FOR_NUL else b""
    return answer_lines(server.feed(nul + "".join(f"{line}\r\n" for line in lines).encode("latin-1")))


def answer_lines(answer: bytes) -> list[str]:
    lines = answer.decode("ascii").split("\r\n")
    assert lines.pop() == "", "an answer ends with CRLF"
    return lines


def test_a_client_with_an_initial_response_gets_through() -> None:
    server = make_server()
    assert say(server, f"AUTH EXTERNAL {hexed('1000')}") == [OK]
    assert say(server, "NEGOTIATE_UNIX_FD") == ["AGREE_UNIX_FD"]
    assert say(server, "BEGIN") == []
    assert (server.begun, server.mechanism, server.uid, server.unix_fds) == (True, "EXTERNAL", 1000, True)


def test_a_client_without_initial_response_is_asked_for_data() -> None:
    server = make_server()
    assert say(server, "AUTH EXTERNAL") == ["DATA"]
    assert say(server, "DATA") == [OK]
    assert say(server, "BEGIN") == []
    assert (server.begun, server.uid, server.unix_fds) == (True, 1000, False)


def test_an_empty_initial_response_is_none() -> None:
    server = make_server()
    assert say(server, "AUTH EXTERNAL ", "DATA ") == ["DATA", OK]


def test_the_identity_may_come_with_data() -> None:
    server = make_server()
    assert say(server, "AUTH EXTERNAL", f"DATA {hexed('1000')}") == ["DATA", OK]


def test_all_lines_may_come_at_once_with_a_message_behind_them() -> None:
    server = make_server()
    lines = b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"
    answer = server.feed(lines + b"l\1\0\1\r\nAUTH\r\n")
    assert answer_lines(answer) == ["DATA", OK, "AGREE_UNIX_FD"]
    assert server.begun
    assert server.leftover == b"l\1\0\1\r\nAUTH\r\n"


def test_a_long_message_behind_begin_is_left_whole() -> None:
    server = make_server()
    message = bytes(range(256)) * 400
    server.feed(b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n" + message)
    assert server.leftover == message


def test_what_comes_after_begin_is_added_to_what_was_left() -> None:
    server = make_server()
    say(server, "AUTH EXTERNAL", "DATA", "BEGIN")
    assert server.feed(b"abc") == b""
    assert server.feed(b"def") == b""
    assert server.leftover == b"abcdef"


@pytest.mark.parametrize(
    "identity",
    [
        hexed("1000"),
        hexed("ada"),
        hexed("jürgen"),
        hexed("jürgen").upper(),
        hexed("0x3e8"),
        hexed("01750"),
        hexed("+1000"),
        hexed(" 1000"),
        hexed("-18446744073709550616"),
    ],
)
def test_these_say_uid_1000(identity: str) -> None:
    assert say(make_server(), f"AUTH EXTERNAL {identity}") == [OK]


@pytest.mark.parametrize(
    "identity",
    [
        "1001",
        "bob",
        "nobody-of-that-name",
        "1000 ",
        "1000\0",
        "ada\0",
        "4294968296",
        "-1",
        "99999999999999999999999",
        "0x",
        "1_000",
        b"\xff",
    ],
)
def test_these_do_not_say_uid_1000(identity: str | bytes) -> None:
    server = make_server()
    assert say(server, f"AUTH EXTERNAL {hexed(identity)}") == [REJECTED]
    assert server.uid is None


def test_a_lone_last_hex_digit_is_a_high_nibble() -> None:
    assert say(make_server(peer_uid=0), "AUTH EXTERNAL 3") == [OK]


@pytest.mark.parametrize("data", ["zz", "31303030 ", "3130 3030", "0x31"])
def test_bad_hex_is_an_error_and_no_rejection(data: str) -> None:
    server = make_server()
    assert say(server, f"AUTH EXTERNAL {data}") == [BAD_HEX]
    assert server.rejections == 0
    assert say(server, "AUTH EXTERNAL", f"DATA {data}", "DATA") == ["DATA", BAD_HEX, OK]


@pytest.mark.parametrize("line", ["AUTH EXTERNAL", "AUTH EXTERNAL 30", f"AUTH EXTERNAL {hexed('ada')}"])
def test_without_socket_credentials_external_is_refused(line: str) -> None:
    server = make_server(peer_uid=None)
    assert say(server, line) == [REJECTED]
    assert server.uid is None


def test_auth_alone_asks_for_the_list() -> None:
    assert say(make_server(), "AUTH") == [REJECTED]
    assert say(make_server(), "AUTH ") == [REJECTED]


def test_the_list_has_the_order_of_libdbus() -> None:
    server = make_server("ANONYMOUS", "DBUS_COOKIE_SHA1", "EXTERNAL", cookies=Cookies())
    assert say(server, "AUTH") == ["REJECTED EXTERNAL DBUS_COOKIE_SHA1 ANONYMOUS"]


def test_a_mechanism_that_is_not_offered_is_rejected() -> None:
    lines = ("AUTH ANONYMOUS", "AUTH DBUS_COOKIE_SHA1", "AUTH external", "AUTH KERBEROS_V4")
    assert say(make_server(), *lines) == [REJECTED] * 4


def test_blanks_between_words_may_be_many_and_tabs() -> None:
    assert say(make_server(), "AUTH \t EXTERNAL\t\t31303030") == [OK]


@pytest.mark.parametrize(
    "line", ["", " AUTH", "auth", "OK", "REJECTED", "AGREE_UNIX_FD", "AUTH\r", "HELP me"]
)
def test_what_is_no_command_of_a_client_is_unknown(line: str) -> None:
    assert say(make_server(), line) == [UNKNOWN]


@pytest.mark.parametrize("line", ["AUTH \x80", "A\0UTH", "\xff"])
def test_a_line_that_is_not_ascii_is_an_error(line: str) -> None:
    assert say(make_server(), line) == [NOT_ASCII]


def test_a_newline_alone_ends_no_line() -> None:
    server = make_server()
    assert server.feed(b"\0AUTH\nAUTH\n") == b""
    assert server.feed(b"\r\n") == b'ERROR "Unknown command"\r\n'


TABLE = [
    ("DATA", NO_CONVERSATION, BAD_HEX, 'ERROR "Sent DATA while expecting BEGIN"'),
    ("CANCEL", NO_CONVERSATION, REJECTED, REJECTED),
    ("ERROR", REJECTED, REJECTED, REJECTED),
    ("ERROR anything at all", REJECTED, REJECTED, REJECTED),
    ("NEGOTIATE_UNIX_FD", NOT_YET, NOT_YET, "AGREE_UNIX_FD"),
    (
        "AUTH",
        REJECTED,
        'ERROR "Sent AUTH while another AUTH in progress"',
        'ERROR "Sent AUTH while expecting BEGIN"',
    ),
    ("WHATEVER", UNKNOWN, UNKNOWN, UNKNOWN),
]


@pytest.mark.parametrize(("line", "before", "during", "after"), TABLE)
def test_each_command_has_its_answer_in_each_state(line: str, before: str, during: str, after: str) -> None:
    assert say(make_server(), line) == [before]
    in_conversation = "DATA zz" if line == "DATA" else line
    assert say(make_server(), "AUTH EXTERNAL", in_conversation) == ["DATA", during]
    assert say(make_server(), "AUTH EXTERNAL", "DATA", line) == ["DATA", OK, after]


@pytest.mark.parametrize("lines", [(), ("AUTH EXTERNAL",), ("AUTH",)])
def test_begin_before_authentication_ends_it_without_an_answer(lines: tuple[str, ...]) -> None:
    server = make_server()
    say(server, *lines)
    assert say(server, "BEGIN", "AUTH") == []
    assert server.failed == "BEGIN before authentication"
    assert not server.begun


def test_the_table_has_an_entry_for_every_state_and_command() -> None:
    final = {SaslState.WAITING_FOR_NUL, SaslState.BEGUN, SaslState.FAILED}
    assert {state: set(commands) for state, commands in sasl._ACTIONS.items()} == {
        state: set(SaslCommand) for state in SaslState if state not in final
    }


def test_after_cancel_the_client_can_start_again() -> None:
    server = make_server()
    assert say(server, "AUTH EXTERNAL", "DATA", "CANCEL") == ["DATA", OK, REJECTED]
    assert (server.uid, server.mechanism) == (None, None)
    assert say(server, "BEGIN") == []
    assert server.failed is not None


def test_after_cancel_the_identity_is_asked_for_again() -> None:
    server = make_server()
    assert say(server, "AUTH EXTERNAL", "CANCEL", "AUTH EXTERNAL", "DATA", "BEGIN") == [
        "DATA",
        REJECTED,
        "DATA",
        OK,
    ]
    assert server.begun


def test_the_first_byte_must_be_nul() -> None:
    server = make_server()
    assert server.feed(b"AUTH\r\n") == b""
    assert server.failed == "the first byte was not NUL"


def test_nothing_is_answered_after_a_failure() -> None:
    server = make_server()
    server.feed(b"X")
    assert server.feed(b"\0AUTH\r\n") == b""
    assert server.leftover == b""


def test_the_sixth_rejection_is_sent_and_is_the_last() -> None:
    server = make_server()
    assert say(server, *["AUTH"] * 5) == [REJECTED] * 5
    assert server.failed is None
    assert say(server, "AUTH", "AUTH") == [REJECTED]
    assert server.rejections == MAX_REJECTIONS
    assert server.failed is not None
    assert "6 rejections" in server.failed


def test_a_client_gets_through_after_four_rejections() -> None:
    server = make_server()
    assert say(server, *["AUTH NTLM"] * 4) == [REJECTED] * 4
    assert say(server, "AUTH EXTERNAL 31303030", "BEGIN") == [OK]
    assert server.begun


def test_a_line_of_16_kib_is_read() -> None:
    server = make_server()
    line = b"X" * (MAX_BUFFER - 2) + b"\r\n"
    assert answer_lines(server.feed(b"\0" + line)) == [UNKNOWN]
    assert answer_lines(server.feed(line)) == [UNKNOWN]


@pytest.mark.parametrize("step", [1, 1000, 2048, 100_000])
def test_a_line_longer_than_16_kib_ends_it(step: int) -> None:
    server = make_server()
    data = b"\0" + b"X" * (MAX_BUFFER + 1)
    answers = b"".join(server.feed(data[start : start + step]) for start in range(0, len(data), step))
    assert answers == b""
    assert server.failed == "more than 16384 bytes without an end of line"


def test_more_than_16_kib_of_answers_to_one_read_end_it() -> None:
    server = make_server()
    answer = server.feed(b"\0" + b"\r\n" * 2000)
    assert len(answer) == 16400
    assert server.failed == "more than 16384 bytes of answers to one read"


def test_many_errors_one_by_one_do_not_end_it() -> None:
    server = make_server()
    assert [say(server, "") for _ in range(2000)] == [[UNKNOWN]] * 2000
    assert server.failed is None


def test_fds_are_refused_with_a_bare_error_where_they_cannot_pass() -> None:
    server = make_server(allow_unix_fds=False)
    assert say(server, "AUTH EXTERNAL", "DATA", "NEGOTIATE_UNIX_FD", "BEGIN") == ["DATA", OK, "ERROR"]
    assert (server.begun, server.unix_fds) == (True, False)


@pytest.mark.parametrize("trace", ["", hexed("someone@example.com"), hexed("ü")])
def test_anonymous_is_let_in_at_once_and_is_nobody(trace: str) -> None:
    server = make_server("EXTERNAL", "ANONYMOUS")
    assert say(server, f"AUTH ANONYMOUS {trace}", "BEGIN") == [OK]
    assert (server.begun, server.mechanism, server.uid) == (True, "ANONYMOUS", None)


@pytest.mark.parametrize("trace", ["ff", "00", "eda080"])
def test_an_anonymous_trace_must_be_utf_8(trace: str) -> None:
    assert say(make_server("ANONYMOUS"), f"AUTH ANONYMOUS {trace}") == ["REJECTED ANONYMOUS"]


def cookie_response(secret: str = "5ec7e7", challenge: str = "c4a11e", separator: str = " ") -> str:
    return hexed("1234" + separator + sha1(f"{challenge}:1234:{secret}".encode()).hexdigest())


COOKIE_CHALLENGE = "DATA " + hexed("org_freedesktop_general 7 c4a11e")
NO_COOKIE = "REJECTED DBUS_COOKIE_SHA1"


@pytest.mark.parametrize("identity", ["1000", "ada"])
@pytest.mark.parametrize("separator", [" ", "\t  "])
def test_who_knows_the_cookie_is_let_in(identity: str, separator: str) -> None:
    server = make_server("DBUS_COOKIE_SHA1", peer_uid=None, cookies=Cookies())
    assert say(server, f"AUTH DBUS_COOKIE_SHA1 {hexed(identity)}") == [COOKIE_CHALLENGE]
    assert say(server, f"DATA {cookie_response(separator=separator)}", "BEGIN") == [OK]
    assert (server.begun, server.mechanism, server.uid) == (True, "DBUS_COOKIE_SHA1", 1000)


@pytest.mark.parametrize(
    "response",
    [
        cookie_response("0bad"),
        cookie_response(challenge="0bad"),
        cookie_response().upper()[:-2] + "00",
        cookie_response(separator=""),
        hexed("1234 "),
        hexed(" 1234"),
        "",
    ],
)
def test_who_does_not_know_the_cookie_is_rejected(response: str) -> None:
    server = make_server("DBUS_COOKIE_SHA1", cookies=Cookies())
    assert say(server, f"AUTH DBUS_COOKIE_SHA1 {hexed('ada')}", f"DATA {response}") == [
        COOKIE_CHALLENGE,
        NO_COOKIE,
    ]
    assert server.uid is None


@pytest.mark.parametrize("identity", ["", hexed("bob"), hexed("1001"), hexed("nobody-of-that-name")])
def test_cookies_are_only_for_the_user_of_the_keyring(identity: str) -> None:
    server = make_server("DBUS_COOKIE_SHA1", cookies=Cookies())
    assert say(server, f"AUTH DBUS_COOKIE_SHA1 {identity}") == [NO_COOKIE]


def test_a_keyring_that_cannot_be_used_is_a_rejection_with_the_reason_in_the_log() -> None:
    server = make_server("DBUS_COOKIE_SHA1", cookies=Cookies(problem="the disk is full"))
    assert say(server, f"AUTH DBUS_COOKIE_SHA1 {hexed('ada')}") == [NO_COOKIE]
    assert server.log[-1] == "> REJECTED (the disk is full)"


def test_a_cookie_that_has_expired_meanwhile_is_a_rejection() -> None:
    cookies = Cookies()
    server = make_server("DBUS_COOKIE_SHA1", cookies=cookies)
    say(server, f"AUTH DBUS_COOKIE_SHA1 {hexed('ada')}")
    cookies.secrets.clear()
    assert say(server, f"DATA {cookie_response()}") == [NO_COOKIE]


def test_a_challenge_is_not_valid_in_the_next_conversation() -> None:
    server = make_server("DBUS_COOKIE_SHA1", cookies=Cookies())
    say(server, f"AUTH DBUS_COOKIE_SHA1 {hexed('ada')}", "CANCEL")
    assert say(server, f"AUTH DBUS_COOKIE_SHA1 {cookie_response()}") == [NO_COOKIE]


def test_the_log_shows_both_sides_and_why() -> None:
    server = make_server()
    say(server, f"AUTH EXTERNAL {hexed('bob')}", "AUTH EXTERNAL", "DATA")
    assert list(server.log) == [
        "< AUTH EXTERNAL <6 bytes>",
        "> REJECTED (the client says it is 'bob', its socket is of uid 1000)",
        "< AUTH EXTERNAL",
        "> DATA",
        "< DATA",
        f"> {OK}",
    ]


def test_the_log_holds_no_secrets() -> None:
    server = make_server("DBUS_COOKIE_SHA1", cookies=Cookies())
    secret = cookie_response()
    say(server, f"AUTH DBUS_COOKIE_SHA1 {hexed('ada')}", f"DATA {secret}", f"data {secret}", f"AUTH {secret}")
    shown = "\n".join(server.log)
    assert secret not in shown
    assert COOKIE_CHALLENGE.split()[1] not in shown


def test_the_log_is_short_and_printable_whatever_the_client_sends() -> None:
    server = make_server()
    for _ in range(100):
        server.feed(b"\0" + b"\x1b[2J\n" * 200 + b"\r\n")
    assert len(server.log) <= 16
    assert all(len(line) <= 85 and line.isprintable() for line in server.log)


@pytest.mark.parametrize("guid", ["", GUID.upper(), GUID[:-1], GUID + "0", "x" * 32])
def test_the_guid_must_be_one(guid: str) -> None:
    with pytest.raises(ValueError, match="GUID"):
        SaslServer(guid=guid, mechanisms=("EXTERNAL",), peer_uid=0, resolve_user=USERS.get)


def test_an_unknown_mechanism_cannot_be_offered() -> None:
    with pytest.raises(ValueError, match="unknown mechanism: KERBEROS_V4"):
        make_server("EXTERNAL", "KERBEROS_V4")


def test_cookies_cannot_be_offered_without_a_source() -> None:
    with pytest.raises(ValueError, match="needs cookies"):
        make_server("DBUS_COOKIE_SHA1")


_lines = st.sampled_from(
    [
        b"AUTH",
        b"AUTH EXTERNAL",
        b"AUTH EXTERNAL 31303030",
        b"AUTH EXTERNAL 31",
        b"AUTH EXTERNAL zz",
        b"AUTH ANONYMOUS",
        b"AUTH DBUS_COOKIE_SHA1 616461",
        b"DATA",
        b"DATA 31303030",
        b"CANCEL",
        b"ERROR why",
        b"NEGOTIATE_UNIX_FD",
        b"BEGIN",
        b"",
        b"\r",
        b"\xe9",
    ]
)


@given(
    lines=st.lists(_lines, max_size=12),
    tail=st.binary(max_size=8),
    cuts=st.lists(st.integers(min_value=0, max_value=200), max_size=20),
)
def test_the_answer_does_not_depend_on_how_the_bytes_are_cut(
    lines: list[bytes], tail: bytes, cuts: list[int]
) -> None:
    data = b"\0" + b"".join(line + b"\r\n" for line in lines) + tail
    whole = make_server(*MECHANISMS, cookies=Cookies())
    expected = whole.feed(data)
    borders = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = make_server(*MECHANISMS, cookies=Cookies())
    answer = b"".join(pieces.feed(data[a:b]) for a, b in pairwise(borders))
    assert answer == expected
    assert (pieces.state, pieces.failed, pieces.uid, pieces.mechanism, pieces.unix_fds, pieces.leftover) == (
        whole.state,
        whole.failed,
        whole.uid,
        whole.mechanism,
        whole.unix_fds,
        whole.leftover,
    )


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_no_garbage_gets_in_or_breaks_the_server(chunks: list[bytes]) -> None:
    server = make_server(peer_uid=None)
    server.feed(b"\0")
    for chunk in chunks:
        server.feed(chunk + b"\r\n")
    assert not server.begun
