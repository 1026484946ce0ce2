"""What a native connection sends to a client arrives there as dbus1 and is answered, or is refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from errno import EBADMSG, ECOMM, EMFILE, EMSGSIZE, ENOBUFS, ENXIO, EPERM, ESRCH, errorcode
from functools import partial
from typing import Any

import pytest
from support.neighbour import FAR, Neighbour
from support.proxy import OWNER_UID, Client, World, count_own_fds
from support.raw import (
    ERROR,
    METHOD_CALL,
    METHOD_RETURN,
    NO_AUTO_START,
    NO_REPLY_EXPECTED,
    SIGNAL,
    Message,
)

from busproxy.policy.config import Limits
from kdbus_core import KdbusError
from kdbus_core.abi import AccessLevel, AccessType, HelloFlag, MessageFlag
from kdbus_core.message import Memfd, Vec, Zeros
from kdbus_core.policy import Access
from kdbus_core.synchronous import SyncCall
from kdbus_core.transport.files import OpenFile, make_memfd

NAME = "com.example.Legacy"
PREFIX = "org.freedesktop.DBus.Error."


@pytest.fixture
def world() -> Iterator[World]:
    """A bus with one client."""
    with World() as world:
        world.join("client")
        world.collect()
        yield world


def refusal(command: Callable[[], object]) -> str:
    try:
        command()
    except KdbusError as error:
        return errorcode[error.errno]
    return ""


def reply(client: Client, to: Message, *body: Any, signature: str = "", **fields: Any) -> int:
    fields = {"destination": to.fields["sender"], "reply_serial": to.serial} | fields
    if signature:
        fields["signature"] = signature
    return client.send(Message(METHOD_RETURN, flags=NO_REPLY_EXPECTED, fields=fields, body=list(body)))


def call(to: str) -> Message:
    fields = {"path": "/a", "interface": "a.b", "member": "M", "destination": to}
    return Message(METHOD_CALL, fields=fields)


# Calls and their replies


def test_a_call_to_an_id_arrives_with_all_that_it_says(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    cookie = native.call(client.unique_name, "sau", "Grüße", [1, 2], member="Greet")
    (message,) = client.messages()
    assert message.type == METHOD_CALL
    assert message.serial == cookie
    assert message.fields == {
        "path": "/a",
        "interface": "a.b",
        "member": "Greet",
        "destination": client.unique_name,
        "sender": native.unique_name,
        "signature": "sau",
    }
    assert message.body == ["Grüße", [1, 2]]


def test_a_call_to_a_name_arrives_with_the_name(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    client.request_name(NAME)
    client.messages()
    native.call(NAME)
    (message,) = client.messages()
    assert message.fields["destination"] == NAME


@pytest.mark.parametrize("flags", range(8))
def test_the_flags_of_a_call_are_kept(world: World, flags: int) -> None:
    native, client = Neighbour(world), world["client"]
    native.call(client.unique_name, flags=flags)
    (message,) = client.messages()
    assert message.flags == flags
    assert native.connection.outstanding == (0 if flags & NO_REPLY_EXPECTED else 1)


def test_a_reply_comes_back_to_the_caller(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    cookie = native.call(client.unique_name)
    (message,) = client.messages()
    serial = reply(client, message, 7, "seven", signature="us")
    mail = native.one()
    assert (mail.source, mail.cookie, mail.last) == (client.connection.id, serial, cookie)
    assert (mail.parsed.type, mail.parsed.reply_cookie) == (METHOD_RETURN, cookie)
    assert mail.body == [7, "seven"]
    assert native.connection.outstanding == 0
    assert client.messages() == []


def test_an_error_comes_back_to_the_caller(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    cookie = native.call(client.unique_name)
    (message,) = client.messages()
    fields = {
        "destination": native.unique_name,
        "reply_serial": message.serial,
        "error_name": PREFIX + "UnknownObject",
        "signature": "s",
    }
    client.send(Message(ERROR, fields=fields, body=["no such object"]))
    mail = native.one()
    assert mail.last == cookie
    assert (mail.parsed.type, mail.parsed.error_name) == (ERROR, PREFIX + "UnknownObject")
    assert mail.body == ["no such object"]


def test_a_call_that_waits_gets_its_reply(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    done: list[SyncCall] = []
    call = native.wait(client.unique_name, done.append)
    (message,) = client.messages()
    assert not done
    reply(client, message, 7, signature="u")
    assert done == [call]
    assert call.errno == 0
    assert native.take(call).body == [7]
    assert native.mail() == []


def test_a_reply_to_a_name_may_come_after_the_name_has_moved_on(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    client.request_name(NAME)
    client.messages()
    native.call(NAME)
    (message,) = client.messages()
    client.release_name(NAME)
    client.messages()
    reply(client, message)
    assert native.one().parsed.type == METHOD_RETURN


def test_a_second_reply_reaches_nobody(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    native.call(client.unique_name)
    (message,) = client.messages()
    reply(client, message)
    reply(client, message)
    assert len(native.mail()) == 1
    assert client.messages() == []


def test_a_directed_signal_reaches_a_client_without_a_match(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    native.signal(client.unique_name, "s", "text")
    (message,) = client.messages()
    assert (message.type, message.body) == (SIGNAL, ["text"])
    assert message.fields["sender"] == native.unique_name
    assert message.fields["destination"] == client.unique_name


def test_order_is_kept_between_both_kinds_of_senders(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    other = world.join("other")
    client.messages()
    for number in range(10):
        native.call(client.unique_name, member=f"N{number}")
        message = call(client.unique_name)
        message.fields["member"] = f"L{number}"
        other.send(message)
    expected = [f"{kind}{number}" for number in range(10) for kind in "NL"]
    assert [message.member for message in client.messages()] == expected


# Cookies that are no serials

LARGE = [1 << 32, (1 << 32) + 1, (1 << 64) - 1, 0xABCDEF0123456789]


@pytest.mark.parametrize("cookie", LARGE)
def test_a_cookie_that_is_no_serial_is_answered_all_the_same(world: World, cookie: int) -> None:
    native, client = Neighbour(world), world["client"]
    native.call(client.unique_name, cookie=cookie)
    (message,) = client.messages()
    reply(client, message, 5, signature="u")
    mail = native.one()
    assert (mail.last, mail.parsed.reply_cookie, mail.body) == (cookie, cookie, [5])
    assert client.peer.surrogates is not None
    assert len(client.peer.surrogates) == 0


def test_requests_with_large_cookies_are_told_apart(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    cookies = [*LARGE, 0xFFFFFFFF, 0xFFFFFFFE, 5]
    for cookie in cookies:
        native.call(client.unique_name, "t", cookie, cookie=cookie)
    messages = client.messages()
    assert len({message.serial for message in messages}) == len(cookies)
    for message in reversed(messages):
        reply(client, message, *message.body, signature="t")
    assert [(mail.last, mail.body) for mail in native.mail()] == [(c, [c]) for c in reversed(cookies)]


def test_surrogates_of_several_native_peers_do_not_mix(world: World) -> None:
    client = world["client"]
    natives = [Neighbour(world) for _ in range(3)]
    for number, native in enumerate(natives):
        native.call(client.unique_name, "u", number, cookie=1 << 40)
    client.messages()
    for native in natives:
        native.call(client.unique_name, "u", 9, cookie=1 << 41)
    for message in client.messages():
        reply(client, message, message.fields["sender"], signature="s")
    for native in natives:
        assert [(mail.last, mail.body) for mail in native.mail()] == [(1 << 41, [native.unique_name])]


def test_a_message_without_a_reply_needs_no_surrogate(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    native.call(client.unique_name, cookie=1 << 32, flags=NO_REPLY_EXPECTED)
    native.signal(client.unique_name, cookie=1 << 32)
    assert [bool(message.serial) for message in client.messages()] == [True, True]
    assert client.peer.surrogates is None


# Outcomes other than a reply


def test_a_caller_learns_that_the_client_has_gone(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    cookie = native.call(client.unique_name)
    client.leave()
    assert native.words() == [f"REPLY_DEAD {cookie}"]
    assert native.connection.outstanding == 0


def test_a_call_that_waits_ends_when_the_client_goes(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    done: list[SyncCall] = []
    native.wait(client.unique_name, done.append)
    client.leave()
    assert [errorcode[call.errno] for call in done] == ["EPIPE"]
    assert native.mail() == []


def test_a_deadline_passes_and_a_late_reply_reaches_nobody(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    deadline = world.domain.monotonic() + 10**9
    cookie = native.call(client.unique_name, timeout_ns=deadline)
    world.bus.expire_replies(deadline)
    assert native.words() == [f"REPLY_TIMEOUT {cookie}"]
    (message,) = client.messages()
    reply(client, message)
    assert native.mail() == []
    assert client.messages() == []


def test_a_caller_that_goes_leaves_no_request_behind(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    native.call(client.unique_name)
    native.leave()
    (message,) = client.messages()
    assert not client.connection.duties
    reply(client, message)
    assert [answer.error_name for answer in client.messages()] == [PREFIX + "ServiceUnknown"]


# Refusals


def test_nobody_is_there(world: World) -> None:
    native = Neighbour(world)
    assert refusal(lambda: native.call(":1.999999")) == errorcode[ENXIO]
    assert refusal(lambda: native.call(NAME)) == errorcode[ESRCH]


def test_a_client_that_has_become_a_monitor_has_no_address(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    client.become_monitor()
    assert refusal(lambda: native.call(client.unique_name)) == errorcode[ENXIO]


def test_a_stranger_may_talk_only_where_a_policy_says_so(world: World) -> None:
    """The policy of the broker is asked as with native receivers; a client's endpoint is the proxy's."""
    stranger, client = Neighbour(world, uid=OWNER_UID + 1), world["client"]
    client.request_name(NAME)
    client.messages()
    assert refusal(lambda: stranger.call(NAME)) == errorcode[EPERM]
    world.bus.hello(
        world.bus.endpoint,
        world.bus.creator,
        sink=client.peer,
        flags=HelloFlag.POLICY_HOLDER,
        name=NAME,
        accesses=[Access(AccessType.WORLD, 0, AccessLevel.TALK)],
    )
    assert refusal(lambda: stranger.call(NAME)) == ""
    (message,) = client.messages()
    reply(client, message)
    assert stranger.one().parsed.type == METHOD_RETURN


def test_a_client_that_reads_nothing_is_a_full_queue_for_whoever_fills_it() -> None:
    limits = Limits()
    limits.max_outgoing_bytes = 300_000
    with World(limits=limits) as world:
        client = world.join("client")
        client.messages()
        native = Neighbour(world)
        results = []
        for _ in range(40):
            results.append(refusal(lambda: native.call(client.unique_name, "ay", bytes(20_000))))
            world.settle()
        assert results[-1] == errorcode[ENOBUFS]
        passed = results.count("")
        assert native.connection.outstanding == passed
        assert client.peer.quota.total_memory <= 300_000
        assert len(client.messages()) == passed
        assert not client.peer.quota.shares


def test_nobody_piles_up_messages_before_the_socket_had_its_chance() -> None:
    """But one message may be as large as it is allowed to be, like a client's."""
    limits = Limits()
    limits.max_outgoing_bytes = 300_000
    with World(limits=limits) as world:
        client = world.join("client")
        client.messages()
        native = Neighbour(world, pages=4096)
        results = [refusal(lambda: native.call(client.unique_name, "ay", bytes(200_000))) for _ in range(3)]
        assert results == ["", errorcode[ENOBUFS], errorcode[ENOBUFS]]
        assert native.connection.outstanding == 1
        assert len(client.messages()) == 1
        assert refusal(lambda: native.call(client.unique_name, "ay", bytes(200_000))) == ""


def test_a_lost_signal_is_counted_and_not_told(world: World) -> None:
    native = Neighbour(world)
    client = world.join("deaf", negotiate_fds=False)
    with open(os.devnull) as file:
        native.signal(client.unique_name, "h", 0, fds=[file.fileno()])
    assert world.router.lost_broadcasts == 1
    assert all(message.member != "S" for message in client.messages())


def test_a_message_may_not_be_longer_than_what_clients_may_send() -> None:
    limits = Limits()
    limits.max_message_size = 100_000
    with World(limits=limits) as world:
        client = world.join("client")
        client.messages()
        native = Neighbour(world)
        too_long = refusal(lambda: native.call(client.unique_name, "ay", bytes(100_000)))
        assert too_long == errorcode[EMSGSIZE]
        assert refusal(lambda: native.call(client.unique_name, "ay", bytes(90_000))) == ""


# What is no D-Bus message

ODD: dict[str, dict[str, Any]] = {
    "another type of payload": {"payload_type": 4711},
    "no payload": {"payload": []},
    "zeros": {"payload": [Zeros(4096)]},
    "rubbish": {"payload": [Vec(b"rubbish" * 20)]},
    "dbus1": {"payload": [Vec(b"l\1\0\1\0\0\0\0\1\0\0\0\0\0\0\0")]},
    "another cookie": {"header_cookie": 4711},
    "a reply that the broker knows nothing of": {"reply_cookie": 4711},
    "no reply expected, says the broker": {"send_flags": 0},
    "a signal, says the broker": {"send_flags": int(MessageFlag.SIGNAL)},
    "auto start, says the broker": {"flags": NO_AUTO_START, "send_flags": int(MessageFlag.EXPECT_REPLY)},
    "descriptors that are not there": {"unix_fds": 1},
    "no path": {"path": None},
    "an invalid path": {"path": "/a/"},
    "an invalid interface": {"interface": "a"},
    "a reserved interface": {"interface": "org.freedesktop.DBus.Local"},
    "an invalid member": {"member": "a.b"},
}


@pytest.mark.parametrize("oddity", ODD.values(), ids=ODD)
def test_what_is_no_proper_message_is_refused_and_reaches_nobody(
    world: World, oddity: dict[str, Any]
) -> None:
    native, client = Neighbour(world), world["client"]
    assert refusal(lambda: native.call(client.unique_name, **oddity)) == errorcode[EBADMSG]
    assert native.connection.outstanding == 0
    assert native.mail() == []
    assert client.messages() == []
    native.call(client.unique_name)
    assert len(client.messages()) == 1


def test_an_unknown_type_is_refused(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    message = native.build(5, client.unique_name)
    assert refusal(lambda: native.send(message)) == errorcode[EBADMSG]


def test_a_reply_without_a_request_is_refused(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    message = native.build(METHOD_RETURN, client.unique_name, flags=NO_REPLY_EXPECTED, reply_cookie=5)
    assert refusal(lambda: native.send(message)) == errorcode[EBADMSG]
    assert client.messages() == []


def test_a_directed_signal_that_is_no_message_is_refused(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    assert refusal(lambda: native.signal(client.unique_name, payload_type=4711)) == errorcode[EBADMSG]


@pytest.mark.parametrize("signature", ["s", "g", "o", "v", "as", "a{sv}", "b"])
@pytest.mark.parametrize("seed", range(8))
def test_a_body_of_noise_is_refused_or_valid(world: World, signature: str, seed: int) -> None:
    """Whatever a native peer puts into a body, a client gets a valid message or none."""
    native, client = Neighbour(world), world["client"]
    whole = native.build(METHOD_CALL, client.unique_name, member="M").parts[0]
    assert isinstance(whole, Vec)
    noise = bytes((seed * 37 + index * 101) % 256 for index in range(seed * 3 + 1))
    # An empty body is one zero byte; then come NUL, "()" and the end of the fields.
    head, ending = whole.data[:-5], whole.data[-1:]
    data = head + noise + b"\0(" + signature.encode() + b")" + ending
    cookie = 1
    refused = refusal(lambda: native.call(client.unique_name, cookie=cookie, payload=[Vec(data)]))
    messages = client.messages()
    assert len(messages) == (0 if refused else 1)
    assert refused in ("", errorcode[EBADMSG])


# Payload in shared memory, and descriptors


def test_a_payload_in_pieces_and_in_shared_memory_is_put_together(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    content = bytes(range(256)) * 512
    whole = native.build(METHOD_CALL, client.unique_name, "ay", content, member="M", cookie=5).parts[0]
    assert isinstance(whole, Vec)
    before = count_own_fds()
    memory = OpenFile(make_memfd(b"...." + whole.data[100:-100] + b"....", name="test", sealed=True))
    parts = [Vec(whole.data[:100]), Memfd(4, len(whole.data) - 200, memory), Vec(whole.data[-100:])]
    native.call(client.unique_name, "ay", content, cookie=5, payload=parts)
    (message,) = client.messages()
    assert bytes(message.body[0]) == content
    assert count_own_fds() == before


def test_shared_memory_longer_than_any_message_is_refused_unread(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 40)
    memory = OpenFile(fd)
    refused = refusal(lambda: native.call(client.unique_name, payload=[Memfd(0, 1 << 40, memory)]))
    assert refused == errorcode[EMSGSIZE]
    assert memory.is_closed


def test_descriptors_arrive(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    before = count_own_fds()
    reading, writing = os.pipe()
    native.call(client.unique_name, "h", 0, fds=[writing])
    os.close(writing)
    (message,) = client.messages()
    assert message.fields["unix_fds"] == 1
    (fd,) = client.fds
    client.fds.clear()
    os.write(fd, b"through")
    os.close(fd)
    assert os.read(reading, 10) == b"through"
    assert os.read(reading, 10) == b""
    os.close(reading)
    assert count_own_fds() == before


def test_descriptors_of_a_reply_arrive(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    native.call(client.unique_name)
    (message,) = client.messages()
    with open(os.devnull) as file:
        fields = {
            "destination": native.unique_name,
            "reply_serial": message.serial,
            "signature": "h",
            "unix_fds": 1,
        }
        client.send(Message(METHOD_RETURN, fields=fields, body=[0]), [file.fileno()])
    (fd,) = native.one().fds
    os.close(fd)


def test_a_client_that_has_not_negotiated_descriptors_gets_none(world: World) -> None:
    native = Neighbour(world)
    client = world.join("deaf", negotiate_fds=False)
    client.messages()
    before = count_own_fds()
    with open(os.devnull) as file:
        refused = refusal(lambda: native.call(client.unique_name, "h", 0, fds=[file.fileno()]))
    assert refused == errorcode[ECOMM]
    assert client.messages() == []
    assert count_own_fds() == before


def test_descriptors_that_wait_for_a_client_are_counted() -> None:
    limits = Limits()
    limits.max_outgoing_unix_fds = 4
    with World(limits=limits) as world:
        client = world.join("client")
        client.messages()
        native = Neighbour(world)
        before = count_own_fds()
        native.call(client.unique_name, "ay", bytes(2_000_000))
        world.settle()
        with open(os.devnull) as file:
            results = [
                refusal(lambda: native.call(client.unique_name, "h", 0, fds=[file.fileno()]))
                for _ in range(6)
            ]
        assert results == [""] * 4 + [errorcode[EMFILE]] * 2
        assert len(client.messages()) == 5
        client.close()
        assert count_own_fds() == before - 1


def test_a_request_without_an_end_is_never_told_to_have_ended(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    native.call(client.unique_name, timeout_ns=FAR)
    world.bus.expire_replies(FAR - 1)
    assert native.mail() == []
    assert len(client.messages()) == 1


def test_without_room_for_descriptors_none_is_left_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it ends: halfway through those of a message, or at shared memory."""
    native, client = Neighbour(world), world["client"]
    before = count_own_fds()
    real, left = os.dup, 0

    def dup(fd: int) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        left -= 1
        return real(fd)

    with open(os.devnull) as file:
        for room in range(3):
            message = native.build(
                METHOD_CALL, client.unique_name, "hhh", 0, 1, 2, member="M", fds=[file.fileno()] * 3
            )
            with monkeypatch.context() as patched:
                patched.setattr(os, "dup", dup)
                left = room
                assert refusal(partial(native.send, message)) == errorcode[EMFILE]
            serial = client.next_serial()
            fields: dict[str, Any] = {"path": "/a", "member": "M", "destination": native.unique_name}
            fields |= {"signature": "hhh", "unix_fds": 3}
            with monkeypatch.context() as patched:
                patched.setattr(os, "dup", dup)
                left = room
                client.send(Message(METHOD_CALL, 0, serial, fields, [0, 1, 2]), [file.fileno()] * 3)
            (answer,) = client.messages()
            assert answer.error_name == PREFIX + "LimitsExceeded"
    assert native.mail() == []
    assert native.connection.outstanding == client.connection.outstanding == 0
    assert count_own_fds() == before
