"""A link and a server that does what a test wants: what is asked, what becomes of answers, how it ends."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from errno import EAGAIN, EBADF, EBADMSG, ECONNRESET, EMFILE, ENXIO, EPERM
from pathlib import Path
from struct import pack

import pytest
from client_world import DEADLINE_S, Script, in_thread, open_fds, script, until

from kdbus_core.abi import (
    CMD_FREE,
    CMD_HELLO,
    CMD_MATCH,
    CMD_RECV,
    CMD_SEND,
    MSG,
    PAYLOAD_DBUS,
    Command,
    ItemType,
    MessageFlag,
)
from kdbus_core.errors import KdbusError
from kdbus_core.items import BLOOM_PARAMETER, build_item, build_numbers_item
from kdbus_core.matches import Filter
from kdbus_core.transport.client.blocking import Connection, Handle, open_node
from kdbus_core.transport.client.blocking_link import BlockingLink
from kdbus_core.transport.client.pool import COPY_LIMIT
from kdbus_core.transport.client.sending import SendOptions
from kdbus_core.transport.files import make_memfd
from kdbus_core.transport.protocol import INSPECT, QUIET, REFUSED

POOL_SIZE = 1 << 20
MESSAGE_AT = 4096


class Server:
    """A script that has let a client say HELLO, and can write its pool."""

    def __init__(self, ends: Script, client: socket.socket) -> None:
        self.script = ends
        self.pool = os.memfd_create("pool", os.MFD_CLOEXEC)
        os.truncate(self.pool, POOL_SIZE)
        self.event = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        os.pwrite(self.pool, build_item(ItemType.BLOOM_PARAMETER, BLOOM_PARAMETER.pack(64, 8)), 0)
        said = in_thread(lambda: Handle(BlockingLink(client)).hello(pool_size=POOL_SIZE))
        request = ends.read()
        assert request.number == Command.HELLO
        result = CMD_HELLO.pack(0, 0, 0, 0, 0, 4, 11, POOL_SIZE, 0, 32, b"0123456789abcdef")
        ends.answer(request, patches=[(40, result[40:])], fds=[self.pool, self.event])
        self.connection: Connection = said.result(DEADLINE_S)

    def close(self) -> None:
        self.connection.close()
        os.close(self.pool)
        os.close(self.event)

    def put_message(self, *items: bytes, cookie: int = 1, size: int = 0) -> tuple[int, bytes]:
        """Put a message into the pool; the patch that tells of it in RECV's answer."""
        tail = b"".join(items)
        length = MSG.size + len(tail)
        data = MSG.pack(length, 0, 0, 11, 5, PAYLOAD_DBUS, cookie, 0) + tail
        os.pwrite(self.pool, data, MESSAGE_AT)
        return 32, CMD_RECV.pack(0, 0, 0, 0, 0, MESSAGE_AT, max(size, length), 0)[32:]

    def freed(self) -> int:
        """The offset of the FREE that comes next."""
        request = self.script.read()
        assert (request.number, request.flags) == (Command.FREE, QUIET)
        offset: int = CMD_FREE.unpack(request.body)[3]
        return offset


@pytest.fixture
def ends() -> Iterator[tuple[Script, socket.socket]]:
    with script() as both:
        yield both


@pytest.fixture
def server(ends: tuple[Script, socket.socket]) -> Iterator[Server]:
    server = Server(*ends)
    yield server
    server.close()


def test_hello_says_who_we_are(server: Server) -> None:
    connection = server.connection
    assert (connection.id, connection.bus_flags, connection.id128) == (11, 4, b"0123456789abcdef")
    assert (connection.bloom.size, connection.bloom.n_hash) == (64, 8)
    assert connection.pool_size == POOL_SIZE


def test_hello_without_a_pool_is_refused_and_leaves_nothing(ends: tuple[Script, socket.socket]) -> None:
    other, client = ends
    with Handle(BlockingLink(client)) as handle:
        said = in_thread(handle.hello)
        other.answer(other.read())
        with pytest.raises(KdbusError) as refusal:
            said.result(DEADLINE_S)
    assert refusal.value.errno == EMFILE


def test_hello_with_a_pool_that_is_too_small_to_map_ends_the_handle(
    ends: tuple[Script, socket.socket],
) -> None:
    other, client = ends
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    handle = Handle(BlockingLink(client))
    said = in_thread(handle.hello)
    other.answer(other.read(), fds=[fd, fd])
    os.close(fd)
    with pytest.raises(KdbusError):
        said.result(DEADLINE_S)
    assert handle.closed


def test_the_slice_of_hello_is_given_back_with_the_next_command(server: Server) -> None:
    sent = in_thread(lambda: server.connection.send(b"x", destination=7))
    request = server.script.read()
    assert (request.number, request.freed) == (Command.SEND, 0)
    server.script.answer(request)
    assert sent.result(DEADLINE_S) == 1


def test_several_slices_are_given_back_before_the_next_command(server: Server) -> None:
    link = server.connection._link
    for offset in (8, 16, 24):
        link.free(offset)
    sent = in_thread(lambda: server.connection.send(b"x", destination=7))
    assert [server.freed() for _ in range(4)] == [0, 8, 16, 24]
    request = server.script.read()
    assert (request.number, request.freed) == (Command.SEND, None)
    server.script.answer(request)
    sent.result(DEADLINE_S)


def test_a_request_without_room_leaves_behind_what_it_would_have_given_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_no_room, make_room = threading.Event(), BlockingLink._make_room

    def note(link: BlockingLink, token: object) -> None:
        has_no_room.set()
        make_room(link, token)

    monkeypatch.setattr(BlockingLink, "_make_room", note)
    sock, quiet = server.connection._link.socket, server.connection._link.build_quiet(Command.BYEBYE, b"")
    with suppress(BlockingIOError):
        while True:
            sock.send(quiet, socket.MSG_DONTWAIT)
    sent = in_thread(lambda: server.connection.send(b"x", destination=7))
    assert has_no_room.wait(DEADLINE_S)
    while (request := server.script.read()).number == Command.BYEBYE:
        pass
    assert (request.number, request.freed) == (Command.SEND, None)
    server.script.answer(request)
    sent.result(DEADLINE_S)
    server.connection.wait(0)
    assert server.freed() == 0


def test_a_request_that_cannot_be_sent_leaves_behind_what_it_would_have_given_back(server: Server) -> None:
    with pytest.raises(KdbusError):
        server.connection.send(b"x", destination=7, fds=[-1])
    server.connection.wait(0)
    assert server.freed() == 0


def test_answers_may_come_in_any_order(server: Server) -> None:
    first = in_thread(lambda: server.connection.match_remove(1))
    one = server.script.read()
    second = in_thread(lambda: server.connection.match_remove(2))
    two = server.script.read()
    server.script.answer(two, errno=ENXIO)
    with pytest.raises(KdbusError) as refusal:
        second.result(DEADLINE_S)
    assert refusal.value.errno == ENXIO
    assert not first.done()
    server.script.answer(one)
    first.result(DEADLINE_S)


def test_an_answer_to_nothing_is_passed_over_and_its_descriptors_closed(server: Server) -> None:
    server.script.answer(99, fds=[server.event])
    sent = in_thread(lambda: server.connection.send(b"x", destination=7))
    server.script.answer(server.script.read(), fds=[server.event])
    sent.result(DEADLINE_S)


def test_a_refusal_says_what_was_refused(server: Server) -> None:
    sent = in_thread(lambda: server.connection.send(b"x", destination=7))
    server.script.answer(server.script.read(), errno=EPERM)
    with pytest.raises(KdbusError, match="SEND: Operation not permitted"):
        sent.result(DEADLINE_S)


@pytest.mark.parametrize("packet", [b"x", b"x" * 15, bytes(70000)])
def test_an_answer_that_is_none_ends_the_link(server: Server, packet: bytes) -> None:
    sent = in_thread(lambda: server.connection.send(b"x", destination=7))
    server.script.read()
    server.script.send(packet)
    with pytest.raises(KdbusError) as refusal:
        sent.result(DEADLINE_S)
    assert refusal.value.errno == EBADMSG
    with pytest.raises(KdbusError) as refusal:
        server.connection.send(b"x", destination=7)
    assert refusal.value.errno == EBADMSG


@pytest.mark.parametrize("patches", [[(0, b"x" * 8), (1 << 63, b"y" * 3)], [(60, b"x" * 24)]])
def test_patches_that_lead_elsewhere_do_nothing(server: Server, patches: list[tuple[int, bytes]]) -> None:
    received = in_thread(server.connection.receive)
    server.script.answer(server.script.read(), errno=EAGAIN, patches=patches)
    assert received.result(DEADLINE_S) is None


def test_a_patch_that_is_cut_off_is_an_error_of_that_command_alone(server: Server) -> None:
    received = in_thread(server.connection.receive)
    request = server.script.read()
    server.script.send(request.id.to_bytes(8, sys.byteorder) + pack("=2I2Q", 0, 1, 0, (1 << 64) - 1))
    with pytest.raises(KdbusError) as refusal:
        received.result(DEADLINE_S)
    assert refusal.value.errno == EBADMSG
    sent = in_thread(lambda: server.connection.send(b"x", destination=7))
    server.script.answer(server.script.read())
    sent.result(DEADLINE_S)


def test_what_was_lost_is_counted_whatever_the_answer(server: Server) -> None:
    for lost in (3, 2):
        received = in_thread(server.connection.receive)
        request = server.script.read()
        patch = CMD_RECV.pack(0, 0, 0, 0, lost, POOL_SIZE, 0, 0)[32:]
        server.script.answer(request, errno=EAGAIN, patches=[(32, patch)])
        assert received.result(DEADLINE_S) is None
    assert server.connection.lost == 5


def test_a_message_says_how_many_were_lost_before_it(server: Server) -> None:
    received = in_thread(server.connection.receive)
    request = server.script.read()
    _, patch = server.put_message()
    server.script.answer(request, patches=[(32, pack("=Q", 4) + patch[8:])])
    message = received.result(DEADLINE_S)
    assert message is not None
    assert (message.lost, server.connection.lost) == (4, 4)


def test_a_message_that_cannot_be_read_is_given_back_with_its_descriptors(server: Server) -> None:
    received = in_thread(server.connection.receive)
    request = server.script.read()
    patch = server.put_message(build_numbers_item(ItemType.PAYLOAD_OFF, 1 << 20, 100), size=COPY_LIMIT + 8)
    server.script.answer(request, patches=[patch], fds=[server.event])
    with pytest.raises(KdbusError) as refusal:
        received.result(DEADLINE_S)
    assert refusal.value.errno == EBADMSG
    assert server.freed() == MESSAGE_AT


def test_descriptors_there_is_no_room_for_are_missing_and_the_others_are_not(server: Server) -> None:
    received = in_thread(server.connection.receive)
    request = server.script.read()
    patch = server.put_message(build_item(ItemType.FDS, pack("=2i", 0, 1)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(server.event)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
    try:
        server.script.answer(request, patches=[patch], fds=[server.event, server.pool])
        message = received.result(DEADLINE_S)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert message is not None
    with message:
        assert message.incomplete
        assert message.fds == (lowest, -1)


# How it ends


def test_the_end_of_the_server_is_told_to_everybody_who_waits(server: Server) -> None:
    waiting = [in_thread(lambda: server.connection.send(b"x", destination=7)) for _ in range(3)]
    for _ in waiting:
        server.script.read()
    server.script.socket.shutdown(socket.SHUT_RDWR)
    for one in waiting:
        with pytest.raises(KdbusError) as refusal:
            one.result(DEADLINE_S)
        assert refusal.value.errno == ECONNRESET
    with pytest.raises(KdbusError) as refusal:
        server.connection.receive()
    assert refusal.value.errno == ECONNRESET


def test_the_end_of_the_server_wakes_who_waits_for_messages(server: Server) -> None:
    os.eventfd_read(server.event)
    waiting = in_thread(server.connection.wait)
    server.freed()
    server.script.socket.shutdown(socket.SHUT_RDWR)
    assert waiting.result(DEADLINE_S)


def test_a_handle_that_is_refused_says_why(ends: tuple[Script, socket.socket]) -> None:
    other, client = ends
    other.answer(REFUSED, errno=EMFILE)
    other.socket.close()
    with Handle(BlockingLink(client)) as handle, pytest.raises(KdbusError) as refusal:
        handle.supported(Command.BUS_MAKE)
    assert refusal.value.errno == EMFILE


def test_a_handle_that_is_refused_with_a_request_unread_says_why(ends: tuple[Script, socket.socket]) -> None:
    other, client = ends
    with Handle(BlockingLink(client)) as handle:
        said = in_thread(lambda: handle.supported(Command.BUS_MAKE))
        select.select([other.socket], [], [], DEADLINE_S)
        other.answer(REFUSED, errno=EMFILE)
        other.socket.close()
        with pytest.raises(KdbusError) as refusal:
            said.result(DEADLINE_S)
    assert refusal.value.errno == EMFILE


def test_closing_wakes_everybody_who_waits(server: Server) -> None:
    os.eventfd_read(server.event)
    calls = [in_thread(lambda: server.connection.send(b"x", destination=7)) for _ in range(2)]
    for _ in range(2):
        server.script.read()
    waiting = in_thread(server.connection.wait)
    server.connection.close()
    for one in calls:
        with pytest.raises(KdbusError) as refusal:
            one.result(DEADLINE_S)
        assert refusal.value.errno == ECONNRESET
    try:
        waiting.result(DEADLINE_S)
    except KdbusError as error:
        assert error.errno == EBADF  # noqa: PT017 - it may come after closing
    until(lambda: not server.connection._link._inside)
    assert (server.connection.fileno(), server.connection.socket_fileno()) == (-1, -1)


def test_a_command_after_closing_says_so(server: Server) -> None:
    server.connection.close()
    server.connection.close()
    for command in (
        lambda: server.connection.send(b"x", destination=7),
        lambda: server.connection.post(b"x", destination=7),
        server.connection.receive,
        server.connection.wait,
        server.connection.list,
    ):
        with pytest.raises(KdbusError, match="closed") as refusal:
            command()
        assert refusal.value.errno == EBADF


def test_what_was_to_be_sent_is_closed_when_it_cannot_be(server: Server) -> None:
    server.connection.close()
    before = open_fds()
    for command in (server.connection.send, server.connection.post):
        with pytest.raises(KdbusError):
            command(bytes(1 << 20), destination=7)
    assert open_fds() == before


def test_a_descriptor_that_is_not_open_is_refused_and_nothing_else_happens(server: Server) -> None:
    with pytest.raises(KdbusError) as refusal:
        server.connection.send(b"x", destination=7, fds=[100_000])
    assert refusal.value.errno == EBADF
    sent = in_thread(lambda: server.connection.send(b"x", destination=7))
    server.script.answer(server.script.read())
    sent.result(DEADLINE_S)


def test_a_handle_that_was_closed_takes_no_command(ends: tuple[Script, socket.socket]) -> None:
    _, client = ends
    handle = Handle(BlockingLink(client))
    handle.close()
    assert handle.closed
    with pytest.raises(KdbusError) as refusal:
        handle.make_bus("0-x")
    assert refusal.value.errno == EBADF


# Posted messages


def test_a_posted_message_is_quiet_and_is_not_waited_for(server: Server) -> None:
    assert server.connection.post(b"x", destination=7) == 1
    request = server.script.read()
    assert (request.number, request.flags & QUIET) == (Command.SEND, QUIET)


@pytest.mark.parametrize("cookie", [5, 1 << 32, (1 << 64) - 1])
def test_a_refusal_of_a_posted_message_is_told_with_its_cookie(server: Server, cookie: int) -> None:
    told: list[tuple[int, int]] = []
    server.connection.on_error = lambda cookie, error: told.append((cookie, error.errno))
    server.connection.post(b"x", destination=7, cookie=cookie)
    server.script.answer(server.script.read(), errno=ENXIO)
    drained = in_thread(server.connection.drain)
    server.script.answer(server.script.read())
    drained.result(DEADLINE_S)
    assert told == [(cookie, ENXIO)]


def test_a_refusal_nobody_is_told_of_is_raised_by_drain_once(server: Server) -> None:
    server.connection.post(b"x", destination=7)
    server.script.answer(server.script.read(), errno=ENXIO)
    drained = in_thread(server.connection.drain)
    server.script.answer(server.script.read())
    with pytest.raises(KdbusError) as refusal:
        drained.result(DEADLINE_S)
    assert refusal.value.errno == ENXIO
    drained = in_thread(server.connection.drain)
    server.script.answer(server.script.read())
    drained.result(DEADLINE_S)


def test_posting_goes_on_when_the_socket_was_full(server: Server) -> None:
    count = 2000
    posted = in_thread(
        lambda: [server.connection.post(bytes(4096), destination=7) for _ in range(count)] and None
    )
    poll = select.poll()
    poll.register(server.connection.socket_fileno(), select.POLLOUT)
    until(lambda: not poll.poll(0))
    for _ in range(count):
        server.script.read()
    posted.result(DEADLINE_S)


def test_who_cannot_send_reads_answers_meanwhile(server: Server) -> None:
    """As the server takes nothing further while its answers are not taken."""
    told: list[int] = []
    server.connection.on_error = lambda cookie, error: told.append(cookie)
    count = 1000
    posted = in_thread(
        lambda: [server.connection.post(bytes(4096), destination=7) for _ in range(count)] and None
    )
    for _ in range(count):
        request = server.script.read()
        if request.number == Command.SEND:
            server.script.answer(request, errno=ENXIO)
    posted.result(DEADLINE_S)
    drained = in_thread(server.connection.drain)
    server.script.answer(server.script.read())
    drained.result(DEADLINE_S)
    assert told == list(range(1, count + 1))


# What is not there is not asked for


@pytest.fixture
def idle(server: Server) -> Server:
    """A server whose client has nothing to receive, and nothing to give back."""
    os.eventfd_read(server.event)
    server.connection.wait(0)
    assert server.freed() == 0
    return server


def is_asked(server: Server) -> bool:
    """Whether the client asks for a message when it receives; there is none."""
    received = in_thread(server.connection.receive)
    until(lambda: received.done() or next_number(server) == Command.RECV)
    asked = next_number(server) == Command.RECV
    if asked:
        server.script.answer(server.script.read(), errno=EAGAIN)
    assert received.result(DEADLINE_S) is None
    return asked


def next_number(server: Server) -> int | None:
    """The number of the request that is there, None without one; it stays there."""
    if not select.select([server.script.socket], [], [], 0)[0]:
        return None
    return int.from_bytes(server.script.socket.recv(8, socket.MSG_PEEK), sys.byteorder)


def test_where_nothing_is_nobody_is_asked(idle: Server) -> None:
    assert not is_asked(idle)
    os.eventfd_write(idle.event, 1)
    assert is_asked(idle)


def test_where_nothing_is_slices_are_given_back(idle: Server) -> None:
    idle.connection._link.free(4096)
    assert not is_asked(idle)
    assert idle.freed() == 4096


ECHOES: list[tuple[int | str | None, SendOptions]] = [
    (11, {}),
    ("com.example.Maybe.Me", {}),
    (None, {"filter": Filter(0, bytes(64))}),
    (7, {"flags": MessageFlag.EXPECT_REPLY, "timeout_ns": 1}),
]


@pytest.mark.parametrize(("destination", "options"), ECHOES)
def test_who_has_posted_what_may_come_back_asks_until_an_answer_shows_that_it_was_sent(
    idle: Server, destination: int | str | None, options: SendOptions
) -> None:
    idle.connection.post(b"x", destination=destination, **options)
    assert idle.script.read().number == Command.SEND
    assert is_asked(idle)
    assert not is_asked(idle)


def test_a_refusal_of_an_earlier_message_does_not_show_that_a_later_one_was_sent(idle: Server) -> None:
    idle.connection.post(b"x", destination=7, cookie=1 << 40)
    first = idle.script.read()
    idle.connection.post(b"x", destination=11)
    idle.script.read()
    idle.script.answer(first)
    assert is_asked(idle)


def test_who_has_posted_to_somebody_else_does_not_ask(idle: Server) -> None:
    idle.connection.post(b"x", destination=7)
    idle.script.read()
    assert not is_asked(idle)


def test_while_others_wait_for_an_answer_everybody_asks(idle: Server) -> None:
    sent = in_thread(lambda: idle.connection.send(b"x", destination=7))
    request = idle.script.read()
    assert is_asked(idle)
    idle.script.answer(request)
    sent.result(DEADLINE_S)
    assert not is_asked(idle)


def test_who_receives_learns_of_the_end_even_if_nothing_is_there(idle: Server) -> None:
    idle.script.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(KdbusError) as refusal:
        idle.connection.receive()
    assert refusal.value.errno == ECONNRESET


# Signals


class Interrupted(Exception):
    """Raised by a signal handler."""


def _raise(*_: object) -> None:
    raise Interrupted


@pytest.fixture
def alarmed() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, _raise)
    yield
    signal.signal(signal.SIGUSR1, before)


def interrupt_main() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


@pytest.mark.usefixtures("alarmed")
def test_a_message_for_somebody_interrupted_goes_to_who_receives_next(server: Server) -> None:

    def serve() -> None:
        request = server.script.read()
        interrupt_main()
        woken.wait(DEADLINE_S)
        server.script.answer(request, patches=[server.put_message(cookie=77)])
        server.script.answer(server.script.read())

    woken = threading.Event()
    serving = in_thread(serve)
    with pytest.raises(Interrupted):
        server.connection.receive()
    woken.set()
    server.connection.match_remove(1)
    serving.result(DEADLINE_S)
    assert server.connection.wait(0)
    message = server.connection.receive()
    assert message is not None
    assert message.cookie == 77


@pytest.mark.usefixtures("alarmed")
def test_a_call_that_is_interrupted_is_cancelled_and_its_reply_given_back(server: Server) -> None:
    def serve() -> None:
        request = server.script.read()
        interrupt_main()
        cancel = server.script.read()
        assert (cancel.number, cancel.flags) == (Command.MSG_CANCEL, QUIET)
        assert CMD_MATCH.unpack(cancel.body)[3] == 1
        at = CMD_SEND.pack(0, 0, 0, 0, MESSAGE_AT, COPY_LIMIT + 8, 0)[32:]
        server.script.answer(request, patches=[(32, at)], fds=[server.event])
        server.script.answer(server.script.read())
        freed.append(server.freed())

    freed: list[int] = []
    serving = in_thread(serve)
    with pytest.raises(Interrupted):
        server.connection.call(b"x", destination=7)
    server.connection.match_remove(1)
    serving.result(DEADLINE_S)
    assert freed == [MESSAGE_AT]


def test_a_signal_that_raises_nothing_interrupts_nothing(server: Server) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.set())
    seen = threading.Event()
    try:

        def serve() -> None:
            request = server.script.read()
            interrupt_main()
            assert seen.wait(DEADLINE_S)
            server.script.answer(request)

        serving = in_thread(serve)
        assert server.connection.send(b"x", destination=7) == 1
        serving.result(DEADLINE_S)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_handler_may_close_the_connection_it_interrupts(server: Server) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: server.connection.close())
    try:

        def serve() -> None:
            server.script.read()
            interrupt_main()

        serving = in_thread(serve)
        with pytest.raises(KdbusError) as refusal:
            server.connection.send(b"x", destination=7)
        assert refusal.value.errno == ECONNRESET
        serving.result(DEADLINE_S)
    finally:
        signal.signal(signal.SIGUSR1, before)


# Opening


def test_opening_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(KdbusError, match="No such file"):
        open_node(tmp_path / "control")


def test_opening_what_nobody_serves_says_so(tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(str(tmp_path / "s"))
    sock.close()
    with pytest.raises(KdbusError, match="nobody serves it"):
        open_node(tmp_path / "s")


def test_a_node_with_a_long_path_can_be_opened(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    fd = os.open(directory, os.O_PATH)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"/proc/self/fd/{fd}/bus")
        os.close(fd)
        listener.listen()
        with open_node(directory / "bus") as node:
            assert not node.closed


def test_inspect_reads_what_the_server_gives(ends: tuple[Script, socket.socket]) -> None:
    other, client = ends
    with Handle(BlockingLink(client)) as handle:
        asked = in_thread(handle.inspect)
        request = other.read()
        assert (request.number, request.body) == (INSPECT, b"")
        fd = make_memfd(json.dumps({"format": 1}).encode(), name="state", sealed=True)
        other.answer(request, fds=[fd])
        os.close(fd)
        assert asked.result(DEADLINE_S) == {"format": 1}


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff"])
def test_inspect_refuses_what_is_no_state(ends: tuple[Script, socket.socket], text: bytes) -> None:
    other, client = ends
    with Handle(BlockingLink(client)) as handle:
        asked = in_thread(handle.inspect)
        fd = make_memfd(text, name="state", sealed=True)
        other.answer(other.read(), fds=[fd])
        os.close(fd)
        with pytest.raises(KdbusError) as refusal:
            asked.result(DEADLINE_S)
    assert refusal.value.errno == EBADMSG
