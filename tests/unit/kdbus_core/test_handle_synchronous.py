"""SEND with SYNC_REPLY: how the wait ends, where the reply lies, and what becomes of the canceller."""

from __future__ import annotations

from collections.abc import Callable
from errno import (
    EAGAIN,
    EBADSLT,
    ECANCELED,
    ECOMM,
    EFAULT,
    EINTR,
    EINVAL,
    ENOBUFS,
    ENXIO,
    EOPNOTSUPP,
    EPIPE,
    EREMOTEIO,
    ESHUTDOWN,
    ETIMEDOUT,
)

import pytest
from caller_world import OpenFile
from handle_world import (
    POOL_SIZE,
    Client,
    HandleWorld,
    build_command,
    build_message,
    cancel_item,
    fds_item,
    refused,
    vec_item,
)

from kdbus_core.abi import Command, ItemType, MessageFlag, ReceiveFlag, ReceiveReturnFlag, SendFlag
from kdbus_core.caller import FileKind
from kdbus_core.connection import Connection
from kdbus_core.items import FD
from kdbus_core.message import Message
from kdbus_core.synchronous import OnDone, SyncCall

LATER = 1 << 60
COOKIE = 5


class Call:
    """A call that waits, from `caller` to `callee`, which has not read it yet."""

    def __init__(
        self,
        *,
        canceller: OpenFile | None = None,
        accept_fds: bool = True,
        timeout: int = LATER,
        pool_size: int = POOL_SIZE,
    ) -> None:
        self.world = HandleWorld()
        self.caller = self.world.connect(flags=int(accept_fds), pool_size=pool_size)
        self.callee = self.world.connect()
        self.ends: list[int] = []
        self.canceller = canceller
        self.timeout = timeout
        self.start()

    def start(self, on_done: Callable[[int], None] | None = None) -> None:
        items = [] if self.canceller is None else [cancel_item(self.caller.thread.open(self.canceller))]
        self.caller.send(
            build_message(
                dst_id=self.callee.id,
                flags=MessageFlag.EXPECT_REPLY,
                cookie=COOKIE,
                timeout_or_reply=self.timeout,
            ),
            flags=SendFlag.SYNC_REPLY,
            items=items,
            on_done=on_done or self.ends.append,
        )
        self.address = self.caller.address

    def reply(self, *items: bytes) -> None:
        self.callee.send(build_message(dst_id=self.caller.id, cookie=9, timeout_or_reply=COOKIE, items=items))

    @property
    def result(self) -> tuple[int, ...]:
        """Where the reply lies: offset, size, flags."""
        self.caller.address = self.address
        return self.caller.answer(Command.SEND).fields[1:]

    def assert_over(self, errno: int) -> None:
        """The wait has ended once, with this errno; the broker keeps none but interrupted calls."""
        assert self.ends == [errno]
        assert self.caller.pending is not None
        assert (self.caller.pending.done, self.caller.pending.errno) == (True, errno)
        if self.canceller is not None:
            self.caller.thread.assert_no_reference_left(self.canceller)
        assert self.caller.handle.connection is not None
        assert all(waiting.is_interrupted for waiting in self.caller.handle.connection.calls)


def test_a_call_waits_and_says_so() -> None:
    call = Call()
    assert call.caller.pending is not None
    assert not call.caller.pending.done
    assert call.ends == []
    assert call.callee.receive().cookie == COOKIE


def test_a_reply_ends_the_wait_and_is_nowhere_but_in_its_result() -> None:
    call = Call(canceller=OpenFile())
    call.reply()
    call.assert_over(0)
    offset, size, flags = call.result
    assert (size, flags) == (64, 0)
    assert call.caller.read_message(offset, size).cookie == 9
    with refused(EAGAIN):
        call.caller.receive()
    call.caller.free(offset)
    assert call.caller.busy == 0


def test_a_reply_comes_once() -> None:
    call = Call()
    call.reply()
    with refused(EBADSLT):
        call.reply()
    call.assert_over(0)


def test_until_its_reply_comes_nothing_is_said_to_lie_in_the_pool() -> None:
    assert Call().result == (POOL_SIZE, 0, 0)


def test_the_files_of_a_reply_are_installed_where_the_call_was_made() -> None:
    call = Call()
    pipe = OpenFile()
    call.reply(fds_item(call.callee.thread.open(pipe)))
    offset, size, flags = call.result
    assert flags == 0
    item = call.caller.read_message(offset, size).item(ItemType.FDS)
    assert call.caller.thread.fds[FD.unpack(item.payload)[0]].file is pipe
    assert pipe.references == 2


def test_files_that_do_not_fit_into_the_table_of_the_caller_are_lost_and_that_is_said() -> None:
    call = Call()
    call.caller.thread.max_fds = 0
    pipe = OpenFile()
    call.reply(fds_item(call.callee.thread.open(pipe)))
    assert call.result[2] == ReceiveReturnFlag.INCOMPLETE_FDS
    assert pipe.references == 1
    call.assert_over(0)


def test_a_reply_with_files_for_one_who_takes_none_ends_the_wait_for_both() -> None:
    call = Call(accept_fds=False)
    pipe = OpenFile()
    with refused(ECOMM):
        call.reply(fds_item(call.callee.thread.open(pipe)))
    call.assert_over(EREMOTEIO)
    call.callee.thread.assert_no_reference_left(pipe)


def test_a_reply_that_is_refused_before_it_is_delivered_does_not_end_the_wait() -> None:
    call = Call(accept_fds=False)
    handle = call.callee.thread.open(OpenFile(kind=FileKind.BUS_HANDLE))
    with refused(EOPNOTSUPP):
        call.reply(fds_item(handle))
    call.reply()
    call.assert_over(0)


def test_a_reply_that_finds_no_room_ends_the_wait_for_both() -> None:
    call = Call(pool_size=4096)
    with refused(ENOBUFS):
        call.reply(vec_item(4096, call.callee.thread.put(bytes(4096))))
    call.assert_over(ENOBUFS)


def test_a_reply_whose_place_cannot_be_told_is_lost_and_its_slice_free() -> None:
    call = Call(canceller=OpenFile())
    call.caller.thread.protect(call.address + 32, 8)
    call.reply()
    call.assert_over(EFAULT)
    assert call.caller.busy == 0


# Ends without a reply


def by_canceller(call: Call) -> None:
    assert call.canceller is not None
    call.canceller.become_readable()


def by_command(call: Call) -> None:
    other = Client(call.caller.handle)
    other.run(Command.MSG_CANCEL, COOKIE)


def by_deadline(call: Call) -> None:
    call.world.clock.now = LATER
    call.world.bus.expire_replies(LATER)


def by_drop(call: Call) -> None:
    call.callee.run(Command.RECV, flags=ReceiveFlag.DROP)


def by_death_of_the_callee(call: Call) -> None:
    call.callee.handle.close()


def by_byebye_of_the_caller(call: Call) -> None:
    Client(call.caller.handle).run(Command.BYEBYE)


def by_closing(call: Call) -> None:
    call.caller.handle.close()


def by_end_of_the_bus(call: Call) -> None:
    call.world.maker.handle.close()


def by_signal(call: Call) -> None:
    assert call.caller.pending is not None
    call.caller.pending.interrupt()


@pytest.mark.parametrize(
    ("end", "errno"),
    [
        (by_canceller, ECANCELED),
        (by_command, ECANCELED),
        (by_deadline, ETIMEDOUT),
        (by_drop, EPIPE),
        (by_death_of_the_callee, EPIPE),
        (by_byebye_of_the_caller, ESHUTDOWN),
        (by_closing, ESHUTDOWN),
        (by_end_of_the_bus, ESHUTDOWN),
        (by_signal, EINTR),
    ],
)
def test_how_a_wait_ends_without_a_reply(end: Callable[[Call], None], errno: int) -> None:
    call = Call(canceller=OpenFile())
    end(call)
    call.assert_over(errno)
    assert call.result == (POOL_SIZE, 0, 0)


@pytest.mark.parametrize("end", [by_canceller, by_command, by_deadline])
def test_a_late_reply_finds_no_request_and_the_caller_is_told_nothing_more(
    end: Callable[[Call], None],
) -> None:
    call = Call(canceller=OpenFile())
    end(call)
    with refused(EBADSLT):
        call.reply()
    with refused(EAGAIN):
        call.caller.receive()
    call.assert_over(call.ends[0])


def test_a_canceller_that_is_readable_after_the_reply_changes_nothing() -> None:
    call = Call(canceller=OpenFile())
    call.reply()
    by_canceller(call)
    call.assert_over(0)


def test_a_canceller_that_is_readable_already_ends_the_call_at_once_but_it_is_sent() -> None:
    world = HandleWorld()
    caller, callee = world.connect(), world.connect()
    event = OpenFile(is_readable=True)
    ends: list[int] = []
    message = build_message(
        dst_id=callee.id, flags=MessageFlag.EXPECT_REPLY, cookie=COOKIE, timeout_or_reply=LATER
    )
    with refused(ECANCELED):
        caller.send(
            message,
            flags=SendFlag.SYNC_REPLY,
            items=[cancel_item(caller.thread.open(event))],
            on_done=ends.append,
        )
    assert ends == []  # the command itself said so
    caller.thread.assert_no_reference_left(event)
    assert callee.receive().cookie == COOKIE


def test_a_call_that_is_answered_before_it_could_wait_is_done_when_the_command_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = HandleWorld()
    caller, callee = world.connect(), world.connect()
    event = OpenFile()
    ends: list[int] = []
    make_call = world.bus.call

    def call_and_answer(connection: Connection, message: Message, on_done: OnDone) -> SyncCall:
        call = make_call(connection, message, on_done)
        callee.send(build_message(dst_id=caller.id, cookie=9, timeout_or_reply=COOKIE))
        return call

    monkeypatch.setattr(world.bus, "call", call_and_answer)
    answer = caller.send(
        build_message(
            dst_id=callee.id, flags=MessageFlag.EXPECT_REPLY, cookie=COOKIE, timeout_or_reply=LATER
        ),
        flags=SendFlag.SYNC_REPLY,
        items=[cancel_item(caller.thread.open(event))],
        on_done=ends.append,
    )
    assert caller.pending is None
    assert ends == []
    assert caller.read_message(*answer.fields[1:3]).cookie == 9
    caller.thread.assert_no_reference_left(event)


def test_whoever_does_not_ask_is_not_told_of_the_end() -> None:
    world = HandleWorld()
    caller, callee = world.connect(), world.connect()
    message = build_message(
        dst_id=callee.id, flags=MessageFlag.EXPECT_REPLY, cookie=COOKIE, timeout_or_reply=LATER
    )
    caller.send(message, flags=SendFlag.SYNC_REPLY)
    callee.send(build_message(dst_id=caller.id, timeout_or_reply=COOKIE))
    assert caller.pending is not None
    assert (caller.pending.done, caller.pending.errno) == (True, 0)


def test_an_interrupted_call_goes_on_when_it_is_made_again() -> None:
    call = Call(canceller=OpenFile())
    by_signal(call)
    call.start()
    assert call.ends == [EINTR]
    assert call.callee.receive().cookie == COOKIE
    with refused(EAGAIN):
        call.callee.receive()
    call.reply()
    assert call.ends == [EINTR, 0]


def test_a_reply_that_came_in_between_is_there_when_the_call_is_made_again() -> None:
    call = Call()
    by_signal(call)
    call.reply()
    assert call.ends == [EINTR]
    call.start()
    assert call.ends == [EINTR]
    offset, size, _ = call.result
    assert offset < POOL_SIZE
    assert size


def test_a_call_made_again_where_another_one_ends_is_told_of_its_end_when_its_result_is_written() -> None:
    call = Call(canceller=OpenFile())
    by_signal(call)
    call.reply()
    told: list[str] = []
    results: list[tuple[int, ...]] = []
    again: list[SyncCall | None] = []

    def on_done_again(errno: int) -> None:
        told.append(f"again {errno}")
        results.append(call.result)

    def on_done_other(errno: int) -> None:
        call.start(on_done_again)
        again.append(call.caller.pending)
        told.append(f"other {errno}")
        results.append(call.result)

    other = Client(call.caller.handle)
    other.send(
        build_message(
            dst_id=call.callee.id, flags=MessageFlag.EXPECT_REPLY, cookie=6, timeout_or_reply=LATER
        ),
        flags=SendFlag.SYNC_REPLY,
        on_done=on_done_other,
    )
    call.callee.send(build_message(dst_id=call.caller.id, cookie=10, timeout_or_reply=6))
    (pending,) = again
    assert pending is not None
    assert (pending.done, pending.errno) == (True, 0)
    assert told == ["other 0", "again 0"]
    offset, size, flags = results[1]
    assert results[0] == (POOL_SIZE, 0, 0)
    assert (call.caller.read_message(offset, size).cookie, flags) == (9, 0)
    assert call.canceller is not None
    call.caller.thread.assert_no_reference_left(call.canceller)


def test_a_cancelling_command_ends_only_calls_with_its_cookie() -> None:
    call = Call()
    other = Client(call.caller.handle)
    other.send(
        build_message(
            dst_id=call.callee.id, flags=MessageFlag.EXPECT_REPLY, cookie=6, timeout_or_reply=LATER
        ),
        flags=SendFlag.SYNC_REPLY,
    )
    other.run(Command.MSG_CANCEL, COOKIE)
    assert call.ends == [ECANCELED]
    connection = call.caller.handle.connection
    assert connection is not None
    assert [waiting.cookie for waiting in connection.calls] == [6]


# Refusals


@pytest.mark.parametrize("timeout", [1, 999_999, 1_000_000])
def test_a_call_whose_deadline_has_passed_is_not_sent(timeout: int) -> None:
    world = HandleWorld()
    caller, callee = world.connect(), world.connect()
    event, pipe = OpenFile(), OpenFile()
    message = build_message(
        dst_id=callee.id,
        flags=MessageFlag.EXPECT_REPLY,
        timeout_or_reply=timeout,
        items=[fds_item(caller.thread.open(pipe))],
    )
    with refused(ETIMEDOUT):
        caller.send(message, flags=SendFlag.SYNC_REPLY, items=[cancel_item(caller.thread.open(event))])
    assert callee.busy == 0
    caller.thread.assert_no_reference_left(event, pipe)


@pytest.mark.parametrize(
    ("dst_id", "flags", "errno"), [(99, MessageFlag.EXPECT_REPLY, ENXIO), (2, MessageFlag(0), EINVAL)]
)
def test_a_refused_call_lets_go_of_its_files(dst_id: int, flags: MessageFlag, errno: int) -> None:
    caller = HandleWorld().connect()
    event, pipe = OpenFile(), OpenFile()
    message = build_message(
        dst_id=dst_id, flags=flags, timeout_or_reply=LATER, items=[fds_item(caller.thread.open(pipe))]
    )
    with refused(errno):
        caller.send(message, flags=SendFlag.SYNC_REPLY, items=[cancel_item(caller.thread.open(event))])
    caller.thread.assert_no_reference_left(event, pipe)


def test_a_call_is_not_made_where_its_result_cannot_be_told() -> None:
    world = HandleWorld()
    caller, callee = world.connect(), world.connect()
    event, pipe = OpenFile(), OpenFile()
    message = caller.thread.put(
        build_message(
            dst_id=callee.id,
            flags=MessageFlag.EXPECT_REPLY,
            timeout_or_reply=LATER,
            items=[fds_item(caller.thread.open(pipe))],
        )
    )
    command = build_command(
        Command.SEND, message, flags=SendFlag.SYNC_REPLY, items=[cancel_item(caller.thread.open(event))]
    )
    address = caller.thread.put(command)
    caller.thread.protect(address + 48, 8)
    with refused(EFAULT):
        caller.handle.ioctl(caller.thread, Command.SEND, address)
    assert callee.busy == 0
    caller.thread.assert_no_reference_left(event, pipe)
