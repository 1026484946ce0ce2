"""What load is put on a bus, and one measured run of it.

A scenario prepares its connections on a `Stage`, names the responders, and gives back the driver: the loop
that is measured. `measure` then forks a process for each, waits until all are ready, reads the CPU clocks
of the bus and of the load, lets the driver go, and reads the clocks again when the driver reports. Every
run has fresh connections and fresh processes; the bus stays.

A run that cannot be completed (the bus ended, refused, sent an error, fell silent) is a `RunError`, never a
number.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import time
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from typing import TypeVar

from bench import load, messages, processes
from bench.buses import RunningBus
from bench.client import BUS, BUS_PATH, BusError, Connection
from bench.load import Limits, Tally

T = TypeVar("T")
Driver = Callable[[Limits], Tally]

SERVICE = "org.example.Bench"
OBJECT = "/org/example/Bench"
INTERFACE = "org.example.Bench"

WINDOW = 64
CALLERS = 64
SUBSCRIBERS = 10
LARGE_BODY = 64 * 1024

_START_TIMEOUT_S = 20.0
_REPORT_GRACE_S = 20.0
_FAILURES = (BusError, OSError, messages.BadMessageError)
_fork = multiprocessing.get_context("fork")


class RunError(Exception):
    """A run that gave no result; the text says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one scenario on one bus. An operation is what the scenario's `unit` says."""

    operations: int
    elapsed_s: float
    bus_cpu_s: float
    load_cpu_s: float
    rss_kib: int
    p50_us: float | None
    p99_us: float | None

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.elapsed_s

    @property
    def cpu_us(self) -> float:
        """Microseconds of the bus's CPU time for an operation."""
        return self.bus_cpu_s / self.operations * 1e6


class Stage:
    """The connections and responders of one run on one bus; closes the connections when left."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.responders: list[Callable[[], None]] = []
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Enter a context that is left with the stage."""
        return self._open.enter_context(context)

    def connect(
        self, address: str | None = None, *, name: str | None = None, match: str | None = None
    ) -> Connection:
        """A settled client, owner of `name` and subscribed to `match`."""
        connection = Connection(address or self.address)
        self._open.callback(connection.close)
        if name is not None:
            connection.request_name(name)
        if match is not None:
            connection.add_match(match)
        connection.settle()
        return connection

    def pipe(self) -> tuple[int, int]:
        """A pipe beside the bus: (read end, write end)."""
        ends = os.pipe()
        for end in ends:
            self._open.callback(os.close, end)
        return ends


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load by name. `unit` is what is counted; `quick` tells whether it belongs to the short run."""

    name: str
    title: str
    unit: str
    prepare: Callable[[Stage], Driver]
    quick: bool = False


def _echo_call(signature: str = "", body: bytes = b"") -> bytearray:
    return messages.build_call(SERVICE, OBJECT, INTERFACE, "Echo", signature=signature, body=body)


def _prepare_one_call(stage: Stage, *, body_length: int = 0) -> Driver:
    signature, body = ("ay", messages.build_bytes(body_length)) if body_length else ("", b"")
    service = stage.connect(name=SERVICE)
    stage.responders.append(partial(load.serve_calls, service.socket, signature, body))
    return partial(load.call_one_at_a_time, stage.connect().socket, _echo_call(signature, body))


def _prepare_window(stage: Stage) -> Driver:
    service = stage.connect(name=SERVICE)
    stage.responders.append(partial(load.serve_calls, service.socket, "", b""))
    return partial(load.call_window, stage.connect().socket, _echo_call(), WINDOW)


def _prepare_batches(stage: Stage) -> Driver:
    service = stage.connect(name=SERVICE)
    stage.responders.append(partial(load.serve_batches, service.socket))
    return partial(load.call_batches, stage.connect().socket, _echo_call(), WINDOW)


def _prepare_signal(stage: Stage) -> Driver:
    read_end, write_end = stage.pipe()
    rule = f"type='signal',interface='{INTERFACE}',member='Tick'"
    for _ in range(SUBSCRIBERS):
        subscriber = stage.connect(match=rule)
        stage.responders.append(partial(load.receive_signals, subscriber.socket, write_end))
    signal_message = messages.build_signal(OBJECT, INTERFACE, "Tick")
    return partial(load.emit, stage.connect().socket, signal_message, read_end, SUBSCRIBERS)


def _prepare_connect(stage: Stage) -> Driver:
    return partial(load.connect_repeatedly, stage.address, messages.build_call(BUS, BUS_PATH, BUS, "Hello"))


def _prepare_clients(stage: Stage) -> Driver:
    service = stage.connect(name=SERVICE)
    stage.responders.append(partial(load.serve_calls, service.socket, "", b""))
    callers = [stage.connect().socket for _ in range(CALLERS)]
    return partial(load.call_from_many, callers, _echo_call())


def _prepare_driver(stage: Stage) -> Driver:
    stage.connect(name=SERVICE)
    body = messages.build_strings(SERVICE)
    call = messages.build_call(BUS, BUS_PATH, BUS, "GetNameOwner", signature="s", body=body)
    return partial(load.call_one_at_a_time, stage.connect().socket, call)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("call-1", "one call at a time, no body", "call", _prepare_one_call, quick=True),
        Scenario(
            "call-1-64k",
            "one call at a time, 64 KiB there and back",
            "call",
            partial(_prepare_one_call, body_length=LARGE_BODY),
        ),
        Scenario("call-64", "64 calls outstanding, written one by one", "call", _prepare_window, quick=True),
        Scenario("call-64-batch", "64 calls outstanding, written in batches", "call", _prepare_batches),
        Scenario("signal-10", "a signal to 10 subscribers", "delivery", _prepare_signal, quick=True),
        Scenario("connect", "connect, authenticate, Hello, close", "connection", _prepare_connect),
        Scenario("clients-64", "64 callers with one call each, one service", "call", _prepare_clients),
        Scenario("driver", "GetNameOwner, one at a time", "call", _prepare_driver),
    )
}


# One run


class _Worker:
    """A forked process that runs one loop, and the pipe it reports through."""

    def __init__(self, loop: Callable[[Pipe], None]) -> None:
        self.pipe, theirs = _fork.Pipe()
        self._process: ForkProcess = _fork.Process(target=_work, args=(loop, theirs), daemon=True)
        self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def end(self) -> None:
        self._process.terminate()
        self._process.join()
        self._process.close()
        self.pipe.close()


def _work(loop: Callable[[Pipe], None], pipe: Pipe) -> None:
    processes.end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()
    try:
        pipe.send("ready")
        loop(pipe)
    except _FAILURES as failure:
        with contextlib.suppress(OSError):
            pipe.send(RunError(f"{type(failure).__name__}: {failure}"))


def _drive(driver: Driver, limits: Limits, pipe: Pipe) -> None:
    pipe.recv()
    tally = driver(limits)
    pipe.send((tally.operations, tally.elapsed_ns))
    pipe.send_bytes(tally.latencies_ns.tobytes())
    # Stay, so that the parent can read this process's clock.
    pipe.recv()


def _respond(responder: Callable[[], None], pipe: Pipe) -> None:
    responder()


def _receive(workers: list[_Worker], wanted: _Worker, timeout_s: float) -> object:
    """The next thing `wanted` says; RunError when one of the workers complains, ends, or all stay silent."""
    deadline = time.monotonic() + timeout_s
    while True:
        ready = wait([worker.pipe for worker in workers], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RunError(f"nothing within {timeout_s:.0f} s")
        for worker in workers:
            if worker.pipe not in ready:
                continue
            try:
                said = worker.pipe.recv()
            except EOFError:
                raise RunError("a load process ended without a word") from None
            if isinstance(said, RunError):
                raise said
            if worker is wanted:
                return said


def _cpu_ns(workers: list[_Worker]) -> int:
    return sum(processes.cpu_ns(worker.pid) for worker in workers)


def measure(bus: RunningBus, scenario: Scenario, limits: Limits) -> Sample:
    """Run the scenario once on the bus; RunError when that gives no result."""
    workers: list[_Worker] = []
    try:
        with Stage(bus.address) as stage, contextlib.ExitStack() as running:
            driver = scenario.prepare(stage)
            loops = [partial(_respond, responder) for responder in stage.responders]
            for loop in [*loops, partial(_drive, driver, limits)]:
                worker = _Worker(loop)
                workers.append(worker)
                running.callback(worker.end)
                _receive([worker], worker, _START_TIMEOUT_S)
            lead = workers[-1]
            bus_before, load_before = bus.cpu_ns(), _cpu_ns(workers)
            lead.pipe.send("go")
            said = _receive(workers, lead, limits.duration_ns / 1e9 + _REPORT_GRACE_S)
            bus_after, load_after = bus.cpu_ns(), _cpu_ns(workers)
            assert isinstance(said, tuple)
            operations, elapsed_ns = said
            latencies = array("Q", lead.pipe.recv_bytes())
            rss_kib = bus.rss_kib()
    except ProcessLookupError as failure:
        raise RunError(f"a process ended ({failure}); {bus.last_words()}") from failure
    except _FAILURES as failure:
        raise RunError(f"{failure}; {bus.last_words()}" if bus.last_words() else str(failure)) from failure
    ordered = sorted(latencies)
    return Sample(
        operations=operations,
        elapsed_s=elapsed_ns / 1e9,
        bus_cpu_s=(bus_after - bus_before) / 1e9,
        load_cpu_s=(load_after - load_before) / 1e9,
        rss_kib=rss_kib,
        p50_us=percentile(ordered, 50) / 1000 if ordered else None,
        p99_us=percentile(ordered, 99) / 1000 if ordered else None,
    )


def percentile(ordered: list[int], percent: int) -> int:
    """The smallest of the ordered values that at least `percent` per cent of them do not exceed."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
