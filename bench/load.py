"""The loops that run while the clock runs, each in a process of its own, one system call a step.

They must cost less than any bus: sockets are raw and blocking, messages were built before and only their
serials are patched, answers are counted by their framing alone, and where many messages of one shape arrive
together they are counted and answered as strided words of the buffer, without a Python step for each.

Two sorts of loop. *Drivers* (`call_*`, `emit`, `connect_repeatedly`) decide when to stop — at the deadline,
or when the operations allowed are used up — wait for what is outstanding, and return a `Tally`.
*Responders* (`serve_*`, `receive_signals`) go on until their process is ended.

An answer that is not a method return ends the run: error replies must never be counted as work done.
"""

import os
import select
import socket
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.client import AUTH, BEGIN, NEGOTIATE_UNIX_FD, BusError, open_socket
from bench.frames import Frames, unexpected
from bench.messages import (
    CALL,
    FIXED_LENGTH,
    FRAMING,
    REPLY_SERIAL_OFFSET,
    RETURN,
    SENDER,
    SERIAL_OFFSET,
    SIGNAL,
    UINT32,
    build_reply,
    frame_length,
    parse_fields,
)

#: Where the serials of measured messages start; preparation used small ones.
FIRST_SERIAL = 1000
SIGNALS_PER_ACK = 32

_patch = UINT32.pack_into
_framing = FRAMING.unpack_from
_clock = time.perf_counter_ns


@dataclass(frozen=True, slots=True)
class Limits:
    """When a driver stops: after `duration_ns` nanoseconds or `operations` operations, whichever is first."""

    duration_ns: int
    operations: int


@dataclass(slots=True)
class Tally:
    """What a driver did: operations, nanoseconds from the first send to the last answer, latencies in ns."""

    operations: int
    elapsed_ns: int
    latencies_ns: "array[int]" = field(default_factory=lambda: array("Q"))


# Drivers


def call_one_at_a_time(connected: socket.socket, message: bytearray, limits: Limits) -> Tally:
    """Call, wait for the reply, call again; every latency is kept."""
    frames = Frames(connected)
    buffer, read, send, size = frames.buffer, frames.read, connected.send, len(message)
    latencies: array[int] = array("Q")
    keep = latencies.append
    receive = connected.recv_into
    expected = 0
    serial = FIRST_SERIAL
    began = now = _clock()
    deadline = began + limits.duration_ns
    last = FIRST_SERIAL + limits.operations
    while now < deadline and serial < last:
        _patch(message, SERIAL_OFFSET, serial)
        if send(message) != size:
            raise BusError("the bus does not read")
        got = receive(buffer)
        if got != expected:
            if not got:
                raise BusError("the bus closed the connection")
            frames.end = got
            while frames.end < FIXED_LENGTH or frames.end < frame_length(buffer):
                read()
            expected = frames.end
            if expected != frame_length(buffer):
                raise BusError("more than one reply to one call")
            frames.end = 0
        if buffer[1] != RETURN:
            raise unexpected(bytes(frames.view[:expected]))
        done = _clock()
        keep(done - now)
        now = done
        serial += 1
    return Tally(serial - FIRST_SERIAL, now - began, latencies)


def call_window(connected: socket.socket, message: bytearray, window: int, limits: Limits) -> Tally:
    """Keep `window` calls outstanding: each reply is followed by one call, in a write of its own."""
    frames = Frames(connected)
    buffer, read, send = frames.buffer, frames.read, connected.send
    first, received = FIRST_SERIAL, 0
    serial, last = first, first + limits.operations
    began = now = _clock()
    deadline = began + limits.duration_ns
    while serial < min(first + window, last):
        _patch(message, SERIAL_OFFSET, serial)
        send(message)
        serial += 1
    while received < serial - first:
        end = read()
        now = _clock()
        if now >= deadline:
            last = serial
        offset = 0
        while end - offset >= FIXED_LENGTH:
            kind, body_length, _, fields_length = _framing(buffer, offset)
            length = FIXED_LENGTH + (fields_length + 7 & ~7) + body_length
            if end - offset < length:
                break
            if kind != RETURN:
                raise unexpected(bytes(frames.view[offset : offset + length]))
            offset += length
            received += 1
            if serial < last:
                _patch(message, SERIAL_OFFSET, serial)
                send(message)
                serial += 1
        frames.keep_from(offset)
    return Tally(received, _clock() - began)


def call_batches(connected: socket.socket, message: bytearray, window: int, limits: Limits) -> Tally:
    """Keep `window` calls outstanding: the replies of one read are followed by as many calls in one write.

    `message` must be a multiple of four bytes long.
    """
    frames = Frames(connected)
    size = len(message)
    batch = bytearray(message * window)
    batch_view = memoryview(batch)
    serials = batch_view.cast("I")[SERIAL_OFFSET // 4 :: size // 4]
    sent = received = 0
    allowed = limits.operations
    began = _clock()
    deadline = began + limits.duration_ns
    refill = min(window, allowed)
    while True:
        if refill:
            first = FIRST_SERIAL + sent
            serials[:refill] = memoryview(array("I", range(first, first + refill)))
            connected.sendall(batch_view[: refill * size])
            sent += refill
        if received == sent:
            return Tally(received, _clock() - began)
        frames.read()
        answered = frames.count(RETURN)
        received += answered
        if _clock() >= deadline:
            allowed = sent
        refill = min(answered, allowed - sent)


def call_from_many(connections: Sequence[socket.socket], message: bytearray, limits: Limits) -> Tally:
    """One call outstanding on each of many connections."""
    by_fd = {connected.fileno(): connected for connected in connections}
    partial: dict[int, bytes] = {}
    with select.epoll() as poller:
        for fd in by_fd:
            poller.register(fd, select.EPOLLIN)
        sent = received = 0
        allowed = limits.operations
        began = _clock()
        deadline = began + limits.duration_ns
        for connected in connections[:allowed]:
            _patch(message, SERIAL_OFFSET, FIRST_SERIAL + sent)
            connected.send(message)
            sent += 1
        while received < sent:
            ready = poller.poll(10)
            if not ready:
                raise BusError("no reply within ten seconds")
            if _clock() >= deadline:
                allowed = sent
            for fd, _ in ready:
                data = by_fd[fd].recv(4096)
                if fd in partial:
                    data = partial.pop(fd) + data
                if len(data) < FIXED_LENGTH or len(data) < frame_length(data):
                    if not data:
                        raise BusError("the bus closed the connection")
                    partial[fd] = data
                    continue
                if data[1] != RETURN:
                    raise unexpected(data)
                received += 1
                if sent < allowed:
                    _patch(message, SERIAL_OFFSET, FIRST_SERIAL + sent)
                    by_fd[fd].send(message)
                    sent += 1
        return Tally(received, _clock() - began)


def emit(
    connected: socket.socket, message: bytearray, acks_fd: int, subscribers: int, limits: Limits
) -> Tally:
    """Emit signals, one a write, at most two groups of SIGNALS_PER_ACK ahead of the subscribers.

    Each subscriber acknowledges a group with a byte to the other end of `acks_fd`. Operations are deliveries.
    """
    send = connected.send
    groups = acks = 0
    began = _clock()
    deadline = began + limits.duration_ns
    deliveries_per_group = SIGNALS_PER_ACK * subscribers
    serial = FIRST_SERIAL
    while not groups or (_clock() < deadline and (groups + 1) * deliveries_per_group <= limits.operations):
        for offset in range(SIGNALS_PER_ACK):
            _patch(message, SERIAL_OFFSET, serial + offset)
            send(message)
        serial += SIGNALS_PER_ACK
        groups += 1
        while acks < (groups - 1) * subscribers:
            acks += _read_acks(acks_fd)
    while acks < groups * subscribers:
        acks += _read_acks(acks_fd)
    return Tally(groups * deliveries_per_group, _clock() - began)


def _read_acks(acks_fd: int) -> int:
    acks = os.read(acks_fd, 4096)
    if not acks:
        raise BusError("the subscribers are gone")
    return len(acks)


def connect_repeatedly(address: str | bytes, hello: bytearray, limits: Limits) -> Tally:
    """Connect, authenticate, ask for fd passing, Hello, close; one after the other; every latency is kept."""
    latencies: array[int] = array("Q")
    begin = BEGIN + hello
    began = now = _clock()
    deadline = began + limits.duration_ns
    count = 0
    while now < deadline and count < limits.operations:
        with open_socket(address) as connected:
            connected.send(AUTH)
            if not connected.recv(256).startswith(b"OK "):
                raise BusError("authentication refused")
            connected.send(NEGOTIATE_UNIX_FD)
            if not connected.recv(256).startswith(b"AGREE_UNIX_FD"):
                raise BusError("fd passing refused")
            connected.send(begin)
            data = connected.recv(4096)
            while len(data) < FIXED_LENGTH or len(data) < frame_length(data):
                more = connected.recv(4096)
                if not more:
                    raise BusError("the bus closed the connection")
                data += more
            if data[1] != RETURN:
                raise unexpected(data)
        count += 1
        done = _clock()
        latencies.append(done - now)
        now = done
    return Tally(count, now - began, latencies)


# Responders


def serve_calls(connected: socket.socket, signature: str, body: bytes) -> None:
    """Answer each call with a method return that carries `body`, in a write of its own.

    Calls with the same header fields come from the same caller and get the same reply but for the serials, so
    the bytes of the fields are the key to a finished reply.
    """
    frames = Frames(connected)
    buffer, view, read, send = frames.buffer, frames.view, frames.read, connected.sendall
    replies: dict[bytes, bytearray] = {}
    serial = FIRST_SERIAL
    while True:
        end = read()
        offset = 0
        while end - offset >= FIXED_LENGTH:
            kind, body_length, call_serial, fields_length = _framing(buffer, offset)
            length = FIXED_LENGTH + (fields_length + 7 & ~7) + body_length
            if end - offset < length:
                break
            fields = bytes(view[offset + FIXED_LENGTH : offset + FIXED_LENGTH + fields_length])
            reply = replies.get(fields)
            if reply is None:
                reply = replies[fields] = first_reply(view[offset : offset + length], kind, signature, body)
            _patch(reply, SERIAL_OFFSET, serial)
            _patch(reply, REPLY_SERIAL_OFFSET, call_serial)
            send(reply)
            serial += 1
            offset += length
        frames.keep_from(offset)


def serve_batches(connected: socket.socket) -> None:
    """Answer the calls of one caller, those of one read together in one write, without a body."""
    frames = Frames(connected)
    replies = memoryview(bytearray())
    size = 0
    while True:
        frames.read()
        count, length = frames.count_alike(CALL)
        if not count:
            if frames.end >= FIXED_LENGTH and frames.end >= frame_length(frames.buffer):
                raise BusError("calls of different shapes")
            continue
        if len(replies) < count * size or not size:
            reply = first_reply(frames.view[:length], CALL, "", b"")
            size = len(reply)
            replies = memoryview(bytearray(reply * count))
            serials = replies.cast("I")[SERIAL_OFFSET // 4 :: size // 4]
            serials[:] = memoryview(array("I", range(FIRST_SERIAL, FIRST_SERIAL + count)))
            reply_serials = replies.cast("I")[REPLY_SERIAL_OFFSET // 4 :: size // 4]
        reply_serials[:count] = frames.words[SERIAL_OFFSET // 4 : count * length // 4 : length // 4]
        frames.keep_from(count * length)
        connected.sendall(replies[: count * size])


def first_reply(call: memoryview, kind: int, signature: str, body: bytes) -> bytearray:
    message = bytes(call)
    if kind != CALL:
        raise unexpected(message)
    sender = parse_fields(message).get(SENDER)
    if not isinstance(sender, str):
        raise BusError("a call without a sender")
    return build_reply(sender, signature=signature, body=body)


def receive_signals(connected: socket.socket, acks_fd: int) -> None:
    """Count signals and acknowledge every SIGNALS_PER_ACK of them with a byte on `acks_fd`."""
    frames = Frames(connected)
    count = 0
    while True:
        frames.read()
        count += frames.count(SIGNAL)
        if count >= SIGNALS_PER_ACK:
            groups, count = divmod(count, SIGNALS_PER_ACK)
            os.write(acks_fd, bytes(groups))
