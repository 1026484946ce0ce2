"""`python -m bench`: measure the buses of this machine side by side and print ratios.

For each scenario every bus is started once and warmed up by one short run; then come the rounds, in each of
which every bus gets one run, in an order that moves on by one a round.

By default everything is pinned to one core, which makes ratios steady. `--batch` also has the kernel schedule
everything as SCHED_BATCH: then no process is interrupted because it woke another one, each works off what is
there before the next one runs, and the load takes a smaller share of the time. Without it a bus that writes
each message on its own is interrupted by the receivers it wakes, as it is on a busy machine. Ratios of runs
with and without it must not be compared.

Status 0: every bus asked for gave a result everywhere. 1: one did not. 2: wrong options.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.buses import KINDS, BusKind, RunningBus, StartError, find_available
from bench.load import Limits
from bench.report import ScenarioResult
from bench.scenarios import SCENARIOS, RunError, Scenario, measure

QUICK_DURATION_S = 0.5
FULL_DURATION_S = 1.0
WARM_UP_S = 0.2
DEFAULT_ROUNDS = 5
#: No run gets here in its time; it bounds memory should a clock stand still.
MAX_OPERATIONS = 20_000_000


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    scenarios: tuple[str, ...]
    buses: tuple[str, ...]
    #: Buses that were named, so that one that cannot run is a failure.
    required: bool
    rounds: int
    duration_s: float
    pin: bool
    batch: bool
    json_path: Path | None
    list_only: bool


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _positive_seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 600:
        raise ValueError
    return value


def parse_options(arguments: Sequence[str]) -> Options:
    """The options; a wrong command line ends the program with status 2 and a word on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure message buses side by side."
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="the three main scenarios, in less than a minute")
    which.add_argument(
        "--scenario", action="append", choices=SCENARIOS, metavar="NAME", help="only this one (repeatable)"
    )
    parser.add_argument(
        "--bus", action="append", choices=KINDS, metavar="NAME", help="only this one (repeatable)"
    )
    parser.add_argument("--list", action="store_true", help="list scenarios and buses, and end")
    parser.add_argument(
        "--rounds", type=_positive_int, default=DEFAULT_ROUNDS, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--duration",
        type=_positive_seconds,
        metavar="SECONDS",
        help=f"of one run; default: {FULL_DURATION_S}, with --quick {QUICK_DURATION_S}",
    )
    parser.add_argument(
        "--pin",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run buses and load on one core (default)",
    )
    parser.add_argument(
        "--batch",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="schedule buses and load so that none interrupts another",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write all results to this file")
    found = parser.parse_args(arguments)
    if found.quick:
        names = [scenario.name for scenario in SCENARIOS.values() if scenario.quick]
    else:
        names = list(dict.fromkeys(found.scenario or SCENARIOS))
    return Options(
        scenarios=tuple(names),
        buses=tuple(name for name in KINDS if not found.bus or name in found.bus),
        required=bool(found.bus),
        rounds=found.rounds,
        duration_s=found.duration or (QUICK_DURATION_S if found.quick else FULL_DURATION_S),
        pin=found.pin,
        batch=found.batch,
        json_path=found.json,
        list_only=found.list,
    )


def pin() -> int:
    """Bind this process, and all it will start, to one core; its number."""
    # The last one: interrupts tend to be served by the first.
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def rotate(names: Sequence[str], steps: int) -> list[str]:
    """The names in a ring, begun `steps` further on."""
    start = steps % len(names) if names else 0
    return [*names[start:], *names[:start]]


def run_scenario(scenario: Scenario, kinds: Sequence[BusKind], options: Options) -> ScenarioResult:
    """Warm-up and all rounds of one scenario on fresh buses."""
    result = ScenarioResult(scenario)
    limits = Limits(round(options.duration_s * 1e9), MAX_OPERATIONS)
    warm_up = Limits(round(min(options.duration_s, WARM_UP_S) * 1e9), MAX_OPERATIONS)
    running: dict[str, RunningBus] = {}
    with contextlib.ExitStack() as started:
        for kind in kinds:
            try:
                running[kind.name] = started.enter_context(kind.start())
            except StartError as error:
                result.failures[kind.name] = str(error)
        result.samples = {name: [] for name in running}
        for number in range(options.rounds + 1):
            _show_progress(f"{scenario.name}: round {number} of {options.rounds}")
            for name in rotate(list(running), number):
                if name in result.failures:
                    continue
                try:
                    sample = measure(running[name], scenario, limits if number else warm_up)
                except RunError as error:
                    result.failures[name] = str(error)
                    continue
                if number:
                    result.samples[name].append(sample)
    _show_progress("")
    return result


def _show_progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def describe_environment(versions: dict[str, str], options: Options, core: int | None) -> dict[str, object]:
    """What somebody needs to know about the machine and the run to judge the numbers."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": _processor_name(),
        "processors": os.cpu_count(),
        "pinned_to": core,
        "batch": options.batch,
        "python": platform.python_version(),
        "buses": versions,
        "rounds": options.rounds,
        "duration_s": options.duration_s,
    }


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"


def list_names() -> str:
    """The scenarios and the buses, for `--list`."""
    width = max(len(name) for name in SCENARIOS)
    lines = ["scenarios:"]
    for name, scenario in SCENARIOS.items():
        lines.append(f"  {name:{width}}  {scenario.title}{' (quick)' if scenario.quick else ''}")
    return "\n".join([*lines, "buses:", *(f"  {name}" for name in KINDS)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    if options.list_only:
        print(list_names())
        return 0
    # Leave through the context managers, so that no bus outlives the benchmark.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    core = pin() if options.pin else None
    if options.batch:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    kinds, left_out = find_available(list(options.buses))
    for name, reason in left_out.items():
        print(f"{name}: left out, because {reason}")
    if not kinds:
        print("no bus to measure", file=sys.stderr)
        return 1
    subject = report.choose_subject([kind.name for kind in kinds])
    versions = {kind.name: kind.version() for kind in kinds}
    for name, version in versions.items():
        print(f"{name}: {version}")
    where = "not pinned" if core is None else f"all on core {core}"
    how = "scheduled as batch work" if options.batch else "scheduled as usual"
    print(f"{options.rounds} rounds of {options.duration_s:g} s, {where}, {how}; medians\n")
    results = []
    for name in options.scenarios:
        results.append(run_scenario(SCENARIOS[name], kinds, options))
        print(report.format_scenario(results[-1], subject), end="\n\n", flush=True)
    summary = report.format_summary(results, subject)
    if summary:
        print(summary)
    if options.json_path is not None:
        environment = describe_environment(versions, options, core)
        document = report.build_document(results, subject, environment=environment, left_out=left_out)
        options.json_path.write_text(json.dumps(document, indent=1) + "\n")
    failed = any(result.failures for result in results) or (options.required and bool(left_out))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
