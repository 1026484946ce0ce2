"""File descriptors through the bus: they arrive, they are the same files, and none stays behind.

Raw clients pass numbers of fds, to one receiver or to several, in messages that are right, wrong,
undeliverable or cut short. Every scenario also counts the fds of the bus's process before its clients came
and after they went.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from support.bus import Bus
from support.compare import Comparison
from support.raw import METHOD_CALL, METHOD_RETURN, SIGNAL, Message, RawClient, build_message

pytestmark = pytest.mark.program("dbus-daemon")


@contextmanager
def no_fd_left(bus: Bus) -> Iterator[None]:
    """Around a scenario: when its clients are gone the bus holds as many fds as before."""
    before = bus.count_fds_besides()
    yield
    assert bus.settle_fds(before) == before


@contextmanager
def open_files(count: int) -> Iterator[list[int]]:
    """That many fds of different files, closed at the end."""
    with ExitStack() as stack:
        fds = []
        for _ in range(count):
            reader, writer = os.pipe()
            os.close(writer)
            stack.callback(os.close, reader)
            fds.append(reader)
        yield fds


def identities(fds: list[int]) -> list[tuple[int, int]]:
    """Which files these are; closes them."""
    found = []
    for fd in fds:
        status = os.fstat(fd)
        found.append((status.st_dev, status.st_ino))
        os.close(fd)
    return found


def call_with_fds(destination: str, count: int, *, claimed: int | None = None) -> Message:
    """A call whose body names `count` handles and whose header claims as many, or another number of, fds."""
    fields: dict[Any, Any] = {"path": "/", "interface": "a.b", "member": "M", "destination": destination}
    if count:
        fields["signature"] = "h" * count
    if claimed != 0:
        fields["unix_fds"] = count if claimed is None else claimed
    return Message(METHOD_CALL, fields=fields, body=list(range(count)))


@pytest.mark.parametrize("count", [1, 2, 15, 16])
def test_fds_arrive_and_are_the_same_files(compare: Comparison, count: int) -> None:
    def scenario(bus: Bus) -> Any:
        with no_fd_left(bus), bus.connect() as sender, bus.connect() as receiver, open_files(count) as fds:
            wanted = [(status.st_dev, status.st_ino) for status in map(os.fstat, fds)]
            sender.send(call_with_fds(receiver.unique_name, count), fds)
            received = receiver.receive()
            assert identities(receiver.take_fds(count)) == wanted
            return received.describe()

    compare(scenario)


def test_fds_of_many_messages_stay_with_their_messages(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with no_fd_left(bus), bus.connect() as sender, bus.connect() as receiver, open_files(30) as fds:
            wanted = [(status.st_dev, status.st_ino) for status in map(os.fstat, fds)]
            counts = [1, 0, 2, 0, 0, 3, 4, 10, 10]
            start = 0
            for count in counts:
                sender.send(call_with_fds(receiver.unique_name, count), fds[start : start + count])
                start += count
            assert [receiver.receive().fds for _ in counts] == counts
            assert identities(receiver.take_fds(30)) == wanted
            return counts

    compare(scenario)


def test_a_reply_carries_an_fd_back(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with no_fd_left(bus), bus.connect() as caller, bus.connect() as callee, open_files(1) as fds:
            serial = caller.send_call("M", destination=callee.unique_name, path="/", interface="a.b")
            callee.receive()
            callee.send(
                Message(
                    METHOD_RETURN,
                    fields={
                        "reply_serial": serial,
                        "destination": caller.unique_name,
                        "signature": "h",
                        "unix_fds": 1,
                    },
                    body=[0],
                ),
                fds,
            )
            reply = caller.receive()
            status = os.fstat(fds[0])
            assert identities(caller.take_fds(1)) == [(status.st_dev, status.st_ino)]
            return reply.describe()

    compare(scenario)


def test_a_broadcast_brings_every_subscriber_its_own_fd(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with no_fd_left(bus), ExitStack() as stack, open_files(2) as fds:
            sender = stack.enter_context(bus.connect())
            subscribers = [stack.enter_context(bus.connect()) for _ in range(5)]
            for subscriber in subscribers:
                subscriber.call("AddMatch", "s", "interface='a.b'")
            fields = {"path": "/", "interface": "a.b", "member": "S", "signature": "hh", "unix_fds": 2}
            sender.send(Message(SIGNAL, fields=fields, body=[0, 1]), fds)
            wanted = [(status.st_dev, status.st_ino) for status in map(os.fstat, fds)]
            messages = [subscriber.receive().describe() for subscriber in subscribers]
            for subscriber in subscribers:
                assert identities(subscriber.take_fds(2)) == wanted
            return messages

    compare(scenario)


def test_a_receiver_that_did_not_negotiate_gets_no_fds(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with (
            no_fd_left(bus),
            bus.connect() as sender,
            RawClient(bus.address, negotiate_fds=False) as receiver,
            open_files(1) as fds,
        ):
            sender.send(call_with_fds(receiver.unique_name, 1), fds)
            return [described(sender), described(receiver)]

    compare(scenario)


def test_a_subscriber_that_did_not_negotiate_misses_a_broadcast_with_fds(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with (
            no_fd_left(bus),
            bus.connect() as sender,
            RawClient(bus.address, negotiate_fds=False) as plain,
            bus.connect() as other,
            open_files(1) as fds,
        ):
            for subscriber in (plain, other):
                subscriber.call("AddMatch", "s", "interface='a.b'")
            fields = {"path": "/", "interface": "a.b", "member": "S", "signature": "h", "unix_fds": 1}
            sender.send(Message(SIGNAL, fields=fields, body=[0]), fds)
            return [described(sender), described(plain), described(other)]

    compare(scenario)


def described(client: RawClient) -> list[Any]:
    """What a client has received, and whether it is still connected."""
    return ["closed" if message is None else message.describe() for message in client.probe()]


@pytest.mark.parametrize("destination", ["com.example.Nobody", ":1.4711", "org.freedesktop.DBus"])
def test_fds_to_a_place_that_does_not_take_them_are_closed(compare: Comparison, destination: str) -> None:
    def scenario(bus: Bus) -> Any:
        with no_fd_left(bus), bus.connect() as sender, open_files(3) as fds:
            sender.send(call_with_fds(destination, 3), fds)
            return described(sender)

    compare(scenario)


WRONG_COUNTS = {
    "one claimed, none sent": (1, 1, 0),
    "none claimed, one sent": (0, 0, 1),
    "two claimed, one sent": (2, 2, 1),
    "one claimed, two sent": (1, 1, 2),
    "seventeen": (17, 17, 17),
    "more handles than fds": (3, 1, 1),
    "fds that no handle names": (0, 2, 2),
}


@pytest.mark.parametrize("case", WRONG_COUNTS)
def test_a_wrong_number_of_fds_is_treated_alike(compare: Comparison, case: str) -> None:
    handles, claimed, sent = WRONG_COUNTS[case]

    def scenario(bus: Bus) -> Any:
        with no_fd_left(bus), bus.connect() as sender, bus.connect() as receiver, open_files(sent) as fds:
            sender.send(call_with_fds(receiver.unique_name, handles, claimed=claimed), fds)
            return [described(sender), described(receiver)]

    compare(scenario)


def test_fds_from_a_client_that_did_not_negotiate_are_treated_alike(compare: Comparison) -> None:
    def scenario(bus: Bus) -> Any:
        with (
            no_fd_left(bus),
            RawClient(bus.address, negotiate_fds=False) as sender,
            bus.connect() as receiver,
            open_files(1) as fds,
        ):
            sender.send(call_with_fds(receiver.unique_name, 1), fds)
            return [described(sender), described(receiver)]

    compare(scenario)


def test_fds_of_a_message_that_is_cut_short_are_closed(bus: Bus) -> None:
    with no_fd_left(bus), bus.connect() as other:
        with bus.connect() as sender, open_files(4) as fds:
            data = build_message(call_with_fds(other.unique_name, 4))
            socket.send_fds(sender.socket, [data[:20]], fds)
        other.wait_for_name_lost(sender.unique_name)


def test_fds_before_the_handshake_is_over_are_closed(bus: Bus) -> None:
    with no_fd_left(bus), open_files(3) as fds, socket.socket(socket.AF_UNIX) as raw:
        raw.connect(bus.address.partition("path=")[2].partition(",")[0])
        raw.settimeout(20)
        socket.send_fds(raw, [b"\0AUTH EXTERNAL\r\n"], fds)
        raw.recv(100)


def test_fds_that_wait_for_a_receiver_that_vanishes_are_closed(bus: Bus) -> None:
    with no_fd_left(bus), bus.connect() as sender, open_files(8) as fds:
        with bus.connect() as receiver:
            for _ in range(20):
                sender.send(call_with_fds(receiver.unique_name, 8), fds)
            sender.sync()
        sender.wait_for_name_lost(receiver.unique_name)
