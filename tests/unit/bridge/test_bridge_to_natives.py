"""What a client sends to a native connection arrives there in the native form, and is answered or refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from support.neighbour import FAR, Neighbour
from support.proxy import World, count_own_fds
from support.raw import (
    ALLOW_INTERACTIVE,
    ERROR,
    METHOD_CALL,
    METHOD_RETURN,
    NO_AUTO_START,
    NO_REPLY_EXPECTED,
    SIGNAL,
    Message,
)

from busproxy.bridge.crossing import MEMFD_THRESHOLD
from busproxy.policy.config import Limits
from kdbus_core.abi import ATTACH_ALL, PAGE_SIZE, HelloFlag, ItemType, MessageFlag
from kdbus_core.connection import Limits as ConnectionLimits

NAME = "com.example.Native"
PREFIX = "org.freedesktop.DBus.Error."


@pytest.fixture
def world() -> Iterator[World]:
    """A bus with one client."""
    with World() as world:
        world.join("client")
        world.collect()
        yield world


def call(to: str, *body: object, flags: int = 0, signature: str = "", **fields: object) -> Message:
    fields = {"path": "/a", "interface": "a.b", "member": "M", "destination": to} | fields
    if signature:
        fields["signature"] = signature
    return Message(METHOD_CALL, flags=flags, fields=fields, body=list(body))


def error_of(world: World, message: Message) -> str:
    """The error that the client gets for a message."""
    client = world["client"]
    serial = client.send(message)
    (answer,) = client.messages()
    assert answer.type == ERROR
    assert answer.fields["reply_serial"] == serial
    assert answer.fields["sender"] == "org.freedesktop.DBus"
    return str(answer.error_name).removeprefix(PREFIX)


# Calls and their replies


def test_a_call_to_an_id_arrives_with_all_that_it_says(world: World) -> None:
    native = Neighbour(world)
    client = world["client"]
    serial = client.send(call(native.unique_name, "Grüße", [1, 2], signature="sau"))
    mail = native.one()
    assert (mail.source, mail.cookie) == (client.connection.id, serial)
    parsed = mail.parsed
    assert (parsed.path, parsed.interface, parsed.member) == ("/a", "a.b", "M")
    assert (parsed.signature, mail.body) == ("sau", ["Grüße", [1, 2]])
    assert parsed.cookie == serial
    assert mail.flags == MessageFlag.EXPECT_REPLY


def test_a_call_to_a_name_arrives_with_the_name(world: World) -> None:
    native = Neighbour(world)
    world.bus.name_acquire(native.connection, NAME, 0)
    world["client"].send(call(NAME))
    mail = native.one()
    assert mail.parsed.destination == NAME
    assert ItemType.DST_NAME in mail.kinds


@pytest.mark.parametrize("order", ["l", "B"])
def test_either_byte_order_is_understood(world: World, order: str) -> None:
    native = Neighbour(world)
    message = call(native.unique_name, 0x01020304, "x", signature="us")
    message.order = order
    world["client"].send(message)
    assert native.one().body == [0x01020304, "x"]


@pytest.mark.parametrize("flags", range(8))
def test_the_flags_of_a_call_are_kept(world: World, flags: int) -> None:
    native = Neighbour(world)
    world["client"].send(call(native.unique_name, flags=flags))
    mail = native.one()
    assert mail.parsed.flags == flags
    assert bool(mail.flags & MessageFlag.EXPECT_REPLY) is not bool(flags & NO_REPLY_EXPECTED)
    assert bool(mail.flags & MessageFlag.NO_AUTO_START) is bool(flags & NO_AUTO_START)
    assert flags & ALLOW_INTERACTIVE == mail.parsed.flags & ALLOW_INTERACTIVE


def test_a_reply_comes_back_to_the_caller(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    serial = client.send(call(native.unique_name))
    native.answer(native.one(), "us", 7, "seven")
    (reply,) = client.messages()
    assert (reply.type, reply.body) == (METHOD_RETURN, [7, "seven"])
    assert reply.fields["reply_serial"] == serial
    assert reply.fields["sender"] == native.unique_name
    assert reply.fields["destination"] == client.unique_name
    assert client.connection.outstanding == 0


def test_an_error_comes_back_to_the_caller(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    serial = client.send(call(native.unique_name))
    native.refuse(native.one(), "com.example.Error.No", "no")
    (reply,) = client.messages()
    assert (reply.type, reply.error_name, reply.body) == (ERROR, "com.example.Error.No", ["no"])
    assert reply.fields["reply_serial"] == serial


def test_many_calls_are_answered_in_whatever_order(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    serials = [client.send(call(native.unique_name, number, signature="u")) for number in range(20)]
    mails = native.mail()
    assert [mail.body for mail in mails] == [[number] for number in range(20)]
    for mail in reversed(mails):
        native.answer(mail, "u", *mail.body)
    answered = {reply.fields["reply_serial"]: reply.body for reply in client.messages()}
    assert answered == {serial: [number] for number, serial in enumerate(serials)}


def test_nothing_of_a_process_goes_along_with_a_clients_message(world: World) -> None:
    """Neither the proxy's nor what the client is known for: that answers CONN_INFO alone."""
    native = Neighbour(world, attach_recv=ATTACH_ALL)
    client = world["client"]
    client.request_name("com.example.Client")
    client.messages()
    client.send(call(native.unique_name))
    kinds = native.one().kinds
    assert kinds == [
        ItemType.PAYLOAD_OFF,
        ItemType.OWNED_NAME,
        ItemType.CONN_DESCRIPTION,
        ItemType.TIMESTAMP,
    ]
    info = world.bus.connection_info(id=client.connection.id)
    assert info.credentials is client.peer.credentials


def test_a_directed_signal_arrives_where_it_is_wanted(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    signal = {"path": "/a", "interface": "a.b", "member": "S", "destination": native.unique_name}
    client.send(Message(SIGNAL, fields=signal))
    assert native.mail() == []
    native.want_own_signals(1)
    client.send(Message(SIGNAL, fields=signal))
    assert native.one().parsed.member == "S"
    assert client.messages() == []


# Outcomes other than a reply


def test_a_caller_learns_that_the_native_callee_has_gone(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    serial = client.send(call(native.unique_name))
    native.leave()
    (answer,) = client.messages()
    assert answer.error_name == PREFIX + "NoReply"
    assert answer.fields["reply_serial"] == serial
    assert client.connection.outstanding == 0


def test_a_caller_that_goes_leaves_no_request_behind(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    client.send(call(native.unique_name))
    mail = native.one()
    client.leave()
    with pytest.raises(Exception, match="no connection"):
        native.answer(mail)
    assert not native.connection.duties


def test_a_late_reply_reaches_nobody(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    client.send(call(native.unique_name))
    mail = native.one()
    native.answer(mail)
    client.messages()
    with pytest.raises(Exception, match="no open request"):
        native.answer(mail)
    assert client.messages() == []


def test_a_configured_timeout_ends_a_call_to_a_native(world: World) -> None:
    limits = Limits()
    limits.reply_timeout = 1000
    with World(limits=limits) as world:
        client = world.join("client")
        native = Neighbour(world)
        client.messages()
        serial = client.send(call(native.unique_name))
        deadline = world.bus.replies.next_deadline()
        assert deadline is not None
        world.bus.expire_replies(deadline - 1)
        assert client.messages() == []
        world.bus.expire_replies(deadline)
        (answer,) = client.messages()
        assert answer.error_name == PREFIX + "NoReply"
        assert "timeout" in answer.body[0]
        assert answer.fields["reply_serial"] == serial
        with pytest.raises(Exception, match="no open request"):
            native.answer(native.one())


def test_without_a_configured_timeout_a_call_waits_for_ever(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    client.send(call(native.unique_name))
    world.bus.expire_replies(FAR)
    assert client.messages() == []
    native.answer(native.one())
    assert [reply.type for reply in client.messages()] == [METHOD_RETURN]


# Refusals


@pytest.mark.parametrize("to", [":1.999999", ":1.0", ":2.1", "com.example.Nobody"])
def test_nobody_is_there(world: World, to: str) -> None:
    assert error_of(world, call(to)) == "ServiceUnknown"
    assert error_of(world, call(to, flags=NO_AUTO_START)) == "NameHasNoOwner"


@pytest.mark.parametrize("flags", [HelloFlag.MONITOR, HelloFlag.ACTIVATOR, HelloFlag.POLICY_HOLDER])
def test_special_connections_have_no_address(world: World, flags: HelloFlag) -> None:
    native = Neighbour(world, flags=flags, name=None if flags is HelloFlag.MONITOR else NAME)
    assert error_of(world, call(native.unique_name)) == "ServiceUnknown"


def test_a_full_pool_is_a_full_queue(world: World) -> None:
    native = Neighbour(world, pages=2)
    errors = []
    for _ in range(100):
        client = world["client"]
        client.send(call(native.unique_name, "x" * 500, signature="s"))
        errors += [answer.error_name for answer in client.messages()]
    assert set(errors) == {PREFIX + "LimitsExceeded"}
    assert native.mail()
    world["client"].send(call(native.unique_name))
    assert world["client"].messages() == []


def test_a_refused_call_is_not_open(world: World) -> None:
    native = Neighbour(world, pages=1)
    assert error_of(world, call(native.unique_name, "x" * PAGE_SIZE, signature="s")) == "LimitsExceeded"
    assert world["client"].connection.outstanding == 0


def test_too_many_open_calls_are_refused() -> None:
    limits = Limits()
    limits.max_replies_per_connection = 2
    with World(limits=limits) as world:
        world.join("client")
        world.collect()
        native = Neighbour(world)
        for _ in range(2):
            world["client"].send(call(native.unique_name))
        assert error_of(world, call(native.unique_name)) == "LimitsExceeded"
        assert len(native.mail()) == 2


def test_a_serial_that_is_in_use_is_refused(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    first = call(native.unique_name)
    client.send(first)
    again = call(native.unique_name)
    again.serial = first.serial
    assert error_of(world, again) == "AccessDenied"
    native.answer(native.one())
    assert [reply.type for reply in client.messages()] == [METHOD_RETURN]


def test_a_message_of_unknown_type_is_refused(world: World) -> None:
    native = Neighbour(world)
    message = call(native.unique_name)
    message.type = 5
    assert error_of(world, message) == "AccessDenied"
    assert native.mail() == []


def test_a_reply_that_nobody_waits_for_is_dropped_without_a_word(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    fields = {"destination": native.unique_name, "reply_serial": 77}
    client.send(Message(METHOD_RETURN, flags=NO_REPLY_EXPECTED, fields=fields))
    assert native.mail() == []
    assert client.messages() == []


# Descriptors and large messages


def test_descriptors_arrive(world: World) -> None:
    native, client = Neighbour(world), world["client"]
    before = count_own_fds()
    reading, writing = os.pipe()
    client.send(call(native.unique_name, 0, signature="h", unix_fds=1), [writing])
    os.close(writing)
    mail = native.one()
    (fd,) = mail.fds
    os.write(fd, b"through")
    os.close(fd)
    assert os.read(reading, 10) == b"through"
    assert os.read(reading, 10) == b""
    os.close(reading)
    assert count_own_fds() == before


def test_descriptors_for_a_native_that_takes_none_are_not_supported(world: World) -> None:
    native = Neighbour(world, flags=HelloFlag(0))
    with open(os.devnull) as file:
        serial = world["client"].send(call(native.unique_name, 0, signature="h", unix_fds=1), [file.fileno()])
    (answer,) = world["client"].messages()
    assert (answer.error_name, answer.fields["reply_serial"]) == (PREFIX + "NotSupported", serial)


def test_unix_sockets_are_not_passed(world: World) -> None:
    native = Neighbour(world)
    before = count_own_fds()
    one, other = socket.socketpair()
    with one, other:
        world["client"].send(call(native.unique_name, 0, signature="h", unix_fds=1), [one.fileno()])
    (answer,) = world["client"].messages()
    assert answer.error_name == PREFIX + "NotSupported"
    assert native.mail() == []
    assert count_own_fds() == before


def test_sixteen_descriptors_are_passed_and_no_more() -> None:
    limits = Limits()
    limits.max_message_unix_fds = 64
    with World(limits=limits) as world, open(os.devnull) as file:
        world.join("client")
        world.collect()
        native = Neighbour(world)
        before = count_own_fds()
        for count, passed in [(16, True), (17, False)]:
            fds = [file.fileno()] * count
            message = call(native.unique_name, *range(count), signature="h" * count, unix_fds=count)
            world["client"].send(message, fds)
            errors = [answer.error_name for answer in world["client"].messages()]
            assert errors == ([] if passed else [PREFIX + "LimitsExceeded"])
        for fd in native.one().fds:
            os.close(fd)
        assert count_own_fds() == before


def test_descriptors_that_wait_are_counted(world: World) -> None:
    native = Neighbour(world, limits=ConnectionLimits(in_flight_fds=2))
    errors = []
    with open(os.devnull) as file:
        for _ in range(3):
            client = world["client"]
            client.send(call(native.unique_name, 0, signature="h", unix_fds=1), [file.fileno()])
            errors += [answer.error_name for answer in client.messages()]
    assert errors == [PREFIX + "LimitsExceeded"]
    assert native.words() == [f"M from {client.connection.id}"] * 2


@pytest.mark.parametrize("size", [MEMFD_THRESHOLD - 200, MEMFD_THRESHOLD, 8 << 20])
def test_a_large_message_needs_no_more_room_in_the_pool_than_it_takes(world: World, size: int) -> None:
    native = Neighbour(world, pages=4096)
    before = count_own_fds()
    content = os.urandom(size)
    world["client"].send(call(native.unique_name, content, signature="ay"))
    mail = native.one()
    assert (ItemType.PAYLOAD_MEMFD in mail.kinds) is (size >= MEMFD_THRESHOLD)
    assert bytes(mail.body[0]) == content
    assert count_own_fds() == before


@pytest.mark.parametrize("flags", [HelloFlag(0), HelloFlag.ACCEPT_FD])
def test_a_large_message_that_is_refused_leaves_nothing_open(world: World, flags: HelloFlag) -> None:
    """For the one receiver takes no descriptors, and the other no sockets."""
    native = Neighbour(world, flags=flags)
    before = count_own_fds()
    one, other = socket.socketpair()
    with one, other:
        message = call(native.unique_name, 0, bytes(MEMFD_THRESHOLD), signature="hay", unix_fds=1)
        world["client"].send(message, [one.fileno()])
    assert [answer.error_name for answer in world["client"].messages()] == [PREFIX + "NotSupported"]
    assert count_own_fds() == before
