"""`python -m bench.native`: native peers beside legacy clients and dbus-daemon.

The same work over several routes: a call with a payload of some size, answered without one. Legacy callers
and services speak D-Bus over a stream socket; native ones use the client library, whose large payloads
travel as sealed memory. What is measured of a native route includes the library on both sides, in Python,
as what is measured of a legacy route includes a caller and a service that do next to nothing; so the
processor time of the bus is the figure to compare, and the rate is what a program would see.

Routes: `dbus-daemon`; `legacy`: two classic clients of `busproxyd --native`; `native`: two native peers of
the same bus; `to-native` and `to-legacy`: a call from the one kind to the other; `kdbusd`: two native peers
of a broker of its own.
"""

import argparse
import contextlib
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench import buses, load, report
from bench.__main__ import DEFAULT_ROUNDS, Options, pin, run_scenario
from bench.buses import BusKind, RunningBus, StartError
from bench.client import BusError
from bench.frames import Frames, unexpected
from bench.load import Limits, Tally
from bench.messages import (
    CALL,
    FIXED_LENGTH,
    FRAMING,
    REPLY_SERIAL_OFFSET,
    RETURN,
    SERIAL_OFFSET,
    UINT32,
    build_bytes,
    build_call,
    frame_length,
)
from bench.scenarios import INTERFACE, OBJECT, SERVICE, WINDOW, Driver, Scenario, Stage
from busproxy.remarshal import build_gvariant, to_gvariant
from busproxy.wire.header import MessageType, parse_header
from kdbus_core.abi import MessageFlag
from kdbus_core.transport.client import Connection, open_node

SUBJECT = "native"
LARGEST_AT_ONCE = 64 * 1024
"""Payloads up to this size (bytes) are sent and answered by the loops of `bench.load`."""

_COOKIE_AT = 8
_COOKIE = struct.Struct("=Q")
_DEADLINE_NS = 60 * 10**9
_clock = time.perf_counter_ns


# Native callers and services

Payload = Callable[[int], bytes]
"""What to send with a cookie; or in answer to one."""


def _connect_native(stage: Stage, node: str) -> Connection:
    return stage.enter(open_node(node).hello())


def call_native(connection: Connection, payload: Payload, limits: Limits) -> Tally:
    """Call, wait for the reply, call again; every latency is kept."""
    latencies: array[int] = array("Q")
    cookie = load.FIRST_SERIAL
    began = now = _clock()
    deadline = began + limits.duration_ns
    while now < deadline and len(latencies) < limits.operations:
        reply = connection.call(
            payload(cookie),
            destination=SERVICE,
            cookie=cookie,
            flags=MessageFlag.EXPECT_REPLY,
            timeout_ns=time.monotonic_ns() + _DEADLINE_NS,
        )
        reply.close()
        cookie += 1
        done = _clock()
        latencies.append(done - now)
        now = done
    return Tally(len(latencies), now - began, latencies)


def call_native_window(connection: Connection, payload: Payload, window: int, limits: Limits) -> Tally:
    """Keep `window` calls outstanding, each posted by itself."""
    began = _clock()
    deadline = began + limits.duration_ns
    sent = received = 0
    allowed = limits.operations
    while received < sent or not sent:
        while sent - received < window and sent < allowed:
            cookie = load.FIRST_SERIAL + sent
            connection.post(
                payload(cookie),
                destination=SERVICE,
                cookie=cookie,
                flags=MessageFlag.EXPECT_REPLY,
                timeout_ns=time.monotonic_ns() + _DEADLINE_NS,
            )
            sent += 1
        connection.wait()
        while (reply := connection.receive()) is not None:
            if reply.notification is not None:
                raise BusError(f"no reply but {reply.notification}")
            reply.close()
            received += 1
        if _clock() >= deadline:
            allowed = sent
    return Tally(received, _clock() - began)


def serve_native(connection: Connection, answer: Payload) -> None:
    """Answer each call; what is in it is not looked at."""
    while True:
        connection.wait()
        while (call := connection.receive()) is not None:
            with call:
                connection.post(
                    answer(call.cookie),
                    destination=call.sender,
                    cookie=call.cookie,
                    cookie_reply=call.cookie,
                )


def _plain_payload(size: int) -> Payload:
    data = bytes(size)
    return lambda _: data


def _native_call(size: int) -> Payload:
    """A D-Bus method call in the native form; its cookie stands at 8."""
    message = bytes(_legacy_call(size))
    header = parse_header(message, 0)
    built = bytearray(to_gvariant(header, message[header.length :], cookie=1))

    def with_cookie(cookie: int) -> bytes:
        _COOKIE.pack_into(built, _COOKIE_AT, cookie)
        return bytes(built)

    return with_cookie


def _native_reply(cookie: int) -> bytes:
    return b"".join(build_gvariant(MessageType.METHOD_RETURN, cookie, reply_cookie=cookie))


# Legacy callers and services of any size


def call_large(connected: socket.socket, message: bytearray, limits: Limits) -> Tally:
    """Like `load.call_one_at_a_time`, with a message that no socket takes at once."""
    frames = Frames(connected)
    latencies: array[int] = array("Q")
    serial = load.FIRST_SERIAL
    began = now = _clock()
    deadline = began + limits.duration_ns
    while now < deadline and len(latencies) < limits.operations:
        UINT32.pack_into(message, SERIAL_OFFSET, serial)
        connected.sendall(message)
        frames.end = 0
        while frames.end < FIXED_LENGTH or frames.end < frame_length(frames.buffer):
            frames.read()
        if frames.buffer[1] != RETURN:
            raise unexpected(bytes(frames.view[: frames.end]))
        serial += 1
        done = _clock()
        latencies.append(done - now)
        now = done
    return Tally(len(latencies), now - began, latencies)


def serve_large(connected: socket.socket) -> None:
    """Answer calls, the bodies of which are read and forgotten."""
    buffer = bytearray(1 << 20)
    serial = load.FIRST_SERIAL
    while True:
        got = 0
        while got < FIXED_LENGTH or got < FIXED_LENGTH + FRAMING.unpack_from(buffer)[3]:
            read = connected.recv_into(memoryview(buffer)[got:])
            if not read:
                raise BusError("the bus closed the connection")
            got += read
        _, _, call_serial, fields_length = FRAMING.unpack_from(buffer)
        head = memoryview(bytes(buffer[: FIXED_LENGTH + fields_length + 7 & ~7]))
        left = frame_length(buffer) - got
        while left:
            read = connected.recv_into(buffer, min(left, len(buffer)))
            if not read:
                raise BusError("the bus closed the connection")
            left -= read
        reply = load.first_reply(head, CALL, "", b"")
        UINT32.pack_into(reply, SERIAL_OFFSET, serial)
        UINT32.pack_into(reply, REPLY_SERIAL_OFFSET, call_serial)
        connected.sendall(reply)
        serial += 1


# Scenarios


def _legacy_call(size: int) -> bytearray:
    signature, body = ("ay", build_bytes(size)) if size else ("", b"")
    return build_call(SERVICE, OBJECT, INTERFACE, "Echo", signature=signature, body=body)


def _legacy_driver(stage: Stage, address: str, size: int, window: int) -> Driver:
    connected = stage.connect(address).socket
    message = _legacy_call(size)
    if window > 1:
        return partial(load.call_window, connected, message, window)
    if size > LARGEST_AT_ONCE:
        return partial(call_large, connected, message)
    return partial(load.call_one_at_a_time, connected, message)


def _legacy_service(stage: Stage, address: str, size: int) -> None:
    connected = stage.connect(address, name=SERVICE).socket
    if size > LARGEST_AT_ONCE:
        stage.responders.append(partial(serve_large, connected))
    else:
        stage.responders.append(partial(load.serve_calls, connected, "", b""))


def _native_driver(stage: Stage, node: str, payload: Payload, window: int) -> Driver:
    caller = _connect_native(stage, node)
    if window > 1:
        return partial(call_native_window, caller, payload, window)
    return partial(call_native, caller, payload)


def _native_service(stage: Stage, node: str, answer: Payload) -> None:
    service = _connect_native(stage, node)
    service.name_acquire(SERVICE)
    stage.responders.append(partial(serve_native, service, answer))


def _prepare(stage: Stage, *, size: int, window: int = 1) -> Driver:
    kind, legacy, node = _parse_route(stage.address)
    match kind:
        case "legacy":
            _legacy_service(stage, legacy, size)
            return _legacy_driver(stage, legacy, size, window)
        case "native":
            _native_service(stage, node, _plain_payload(0))
            return _native_driver(stage, node, _plain_payload(size), window)
        case "to-native":
            _native_service(stage, node, _native_reply)
            return _legacy_driver(stage, legacy, size, window)
        case "to-legacy":
            _legacy_service(stage, legacy, size)
            return _native_driver(stage, node, _native_call(size), window)
    raise ValueError(stage.address)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("call", "one call at a time, no payload", "call", partial(_prepare, size=0)),
        Scenario("call-64", "64 calls outstanding", "call", partial(_prepare, size=0, window=WINDOW)),
        Scenario("call-1m", "one call at a time, 1 MiB there", "call", partial(_prepare, size=1 << 20)),
        Scenario("call-64m", "one call at a time, 64 MiB there", "call", partial(_prepare, size=1 << 26)),
    )
}


# Routes


def _build_route(kind: str, legacy: str, node: str = "") -> str:
    return f"{kind}|{legacy}|{node}"


def _parse_route(address: str) -> tuple[str, str, str]:
    kind, legacy, node = address.split("|")
    return kind, legacy, node


@contextmanager
def _start_dbus_daemon() -> Iterator[RunningBus]:
    with buses.KINDS["dbus-daemon"].start() as bus:
        yield replace(bus, address=_build_route("legacy", bus.address))


@contextmanager
def _start_busproxyd(kind: str) -> Iterator[RunningBus]:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        command = (*buses.BUSPROXYD, f"--native={directory}/native")
        with buses.start_daemon(kind, command) as bus:
            (node,) = Path(directory).glob("native/*/bus")
            yield replace(bus, address=_build_route(kind, bus.address, str(node)))


@contextmanager
def _start_kdbusd() -> Iterator[RunningBus]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        (directory / "kdbusd.toml").write_text('[[bus]]\nname = "{uid}-bench"\n')
        reader, writer = os.pipe()
        command = [
            sys.executable,
            "-m",
            "kdbus_core.daemon",
            f"--directory={directory / 'domain'}",
            f"--config={directory / 'kdbusd.toml'}",
            f"--print-ready-fd={writer}",
        ]
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, reader)
            try:
                process = stack.enter_context(buses.running(command, directory, pass_fds=(writer,)))
            finally:
                os.close(writer)
            if not os.read(reader, 4096):
                raise StartError("kdbusd ended at once")
            (node,) = directory.glob("domain/*/bus")
            yield RunningBus("kdbusd", _build_route("native", "", str(node)), (process.pid,), directory)


_VERSION = (sys.executable, "-m", "busproxy.daemon", "--version")

#: In the order in which they are measured and shown.
ROUTES = {
    kind.name: kind
    for kind in (
        BusKind("dbus-daemon", _start_dbus_daemon, ("dbus-daemon", "--version")),
        BusKind("legacy", partial(_start_busproxyd, "legacy"), _VERSION),
        BusKind("to-native", partial(_start_busproxyd, "to-native"), _VERSION),
        BusKind("to-legacy", partial(_start_busproxyd, "to-legacy"), _VERSION),
        BusKind("native", partial(_start_busproxyd, "native"), _VERSION),
        BusKind("kdbusd", _start_kdbusd, _VERSION),
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 0, or 1 when a route gave no result."""
    parser = argparse.ArgumentParser(prog="python -m bench.native", description=__doc__.split("\n")[0])
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only this one (repeatable)")
    parser.add_argument("--route", action="append", choices=ROUTES, help="only this one (repeatable)")
    parser.add_argument(
        "--rounds", type=int, default=DEFAULT_ROUNDS, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--duration", type=float, default=1.0, metavar="SECONDS", help="of one run")
    found = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = Options(
        scenarios=tuple(found.scenario or SCENARIOS),
        buses=tuple(name for name in ROUTES if not found.route or name in found.route),
        required=True,
        rounds=found.rounds,
        duration_s=found.duration,
        pin=True,
        batch=False,
        json_path=None,
        list_only=False,
    )
    core = pin()
    print(f"{options.rounds} rounds of {options.duration_s:g} s, all on core {core}; medians\n")
    results = []
    for name in options.scenarios:
        results.append(run_scenario(SCENARIOS[name], [ROUTES[route] for route in options.buses], options))
        print(report.format_scenario(results[-1], SUBJECT), end="\n\n", flush=True)
    return 1 if any(result.failures for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
