"""`python -m bench.broker`: what commands on kdbus_core cost, and how that grows with the size of the bus.

Everything happens in this process, without I/O: what is measured is the broker's CPU time for an operation,
message building by its callers included. Time in which somebody else had the processor does not count.

A case is prepared for all of its sizes. For each operation comes a warm-up that finds out how many times make
a round, and then the rounds, in each of which every size has its turn; the median of the rounds is what
counts. "Growth" is the CPU time relative to the same operation at the case's smallest size, taken within each
round before its median, so that a machine that gets slower half-way does not look like growth. 1.00 is what
an operation wants that must not get slower on a busy bus.

Garbage collection: what was prepared is frozen (`gc.freeze`) after a full collection, and the collector stays
on. So an operation pays for collecting what it leaves behind, and does not pay for a walk over a bus that
stands still, which depends on what else was allocated and not on what is done.

Inputs are the same in every run. Numbers of different machines must not be compared; growth may be.

Status 0, and 2 for wrong options: no time is too long here.
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.broker_cases import CASES, Case, Operation
from bench.report import format_table

FORMAT_VERSION = 1
QUICK_ROUND_S = 0.02
FULL_ROUND_S = 0.1
DEFAULT_ROUNDS = 5
_HEADING = ("", "size", "CPU µs", "min to max", "op/s", "growth")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    cases: tuple[str, ...]
    rounds: int
    round_s: float
    quick: bool
    json_path: Path | None


@dataclass(frozen=True, slots=True)
class Row:
    """An operation at one size: CPU time of one, in µs, round by round, and relative to the smallest size.

    A round is `times` operations.
    """

    case: str
    operation: str
    size: int
    unit: str
    times: int
    cpu_us: tuple[float, ...]
    growth: float

    @property
    def median_us(self) -> float:
        return statistics.median(self.cpu_us)

    @property
    def rate(self) -> float:
        """Operations in a second of CPU time."""
        return 1e6 / self.median_us


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def parse_options(arguments: Sequence[str]) -> Options:
    """The options; a wrong command line ends the program with status 2 and a word on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.broker",
        description="Measure what commands on the broker cost, and how that grows.",
        epilog=f"cases: {' '.join(CASES)}",
    )
    parser.add_argument(
        "--quick", action="store_true", help="short rounds, without the largest of three sizes"
    )
    parser.add_argument(
        "--rounds", type=_positive_int, default=DEFAULT_ROUNDS, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write all results to this file")
    parser.add_argument(
        "--only", action="append", choices=CASES, metavar="NAME", help="only this case (repeatable)"
    )
    found = parser.parse_args(arguments)
    return Options(
        cases=tuple(name for name in CASES if not found.only or name in found.only),
        rounds=found.rounds,
        round_s=QUICK_ROUND_S if found.quick else FULL_ROUND_S,
        quick=found.quick,
        json_path=found.json,
    )


def choose_sizes(case: Case, options: Options) -> tuple[int, ...]:
    """The sizes that are measured, two at least."""
    return case.sizes[:2] if options.quick else case.sizes


# Measuring


def _cpu_s(run: Callable[[int], None], times: int) -> float:
    before = time.process_time_ns()
    run(times)
    return max(time.process_time_ns() - before, 1) / 1e9


def find_times(run: Callable[[int], None], round_s: float) -> int:
    """How often an operation is done in about so many seconds; doing it that often is the warm-up."""
    times = 1
    while (taken := _cpu_s(run, times)) < round_s / 4:
        times *= 4
    return max(1, round(times * round_s / taken))


def measure_case(case: Case, sizes: Sequence[int], rounds: int, round_s: float) -> Iterator[Row]:
    """The rows of a case: an operation after the other, each with its sizes in the order given."""
    _show_progress(f"{case.name}: being prepared")
    prepared = [case.prepare(size) for size in sizes]
    gc.collect()
    gc.freeze()
    try:
        for same in zip(*prepared, strict=True):
            _show_progress(f"{case.name}: {same[0].title}")
            yield from _measure_operation(case, sizes, same, rounds, round_s)
    finally:
        gc.unfreeze()
        _show_progress("")


def _measure_operation(
    case: Case, sizes: Sequence[int], operations: Sequence[Operation], rounds: int, round_s: float
) -> Iterator[Row]:
    """The rows of an operation that is there once for each size."""
    times = [find_times(operation.run, round_s) for operation in operations]
    found: list[list[float]] = [[] for _ in operations]
    for _ in range(rounds):
        for operation, often, samples in zip(operations, times, found, strict=True):
            samples.append(_cpu_s(operation.run, often) / often * 1e6)
    for operation in operations:
        operation.check()
    for size, operation, often, samples in zip(sizes, operations, times, found, strict=True):
        yield Row(
            case.name, operation.title, size, case.unit, often, tuple(samples), find_growth(samples, found[0])
        )


def find_growth(samples: Sequence[float], smallest: Sequence[float]) -> float:
    """The median of the ratios of each round."""
    return statistics.median(mine / base for mine, base in zip(samples, smallest, strict=True))


def _show_progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


# Telling


def format_rows(rows: Sequence[Row]) -> str:
    """One table, a line for each row."""
    lines = [
        (
            f"{row.case}: {row.operation}",
            f"{row.size} {row.unit}",
            f"{row.median_us:.2f}",
            f"{min(row.cpu_us):.2f} to {max(row.cpu_us):.2f}",
            f"{row.rate:.0f}",
            f"{row.growth:.2f}",
        )
        for row in rows
    ]
    return format_table([_HEADING, *lines])


def build_document(rows: Sequence[Row], options: Options) -> dict[str, object]:
    """Everything the run found, every round included, as JSON can hold it."""
    return {
        "format": FORMAT_VERSION,
        "environment": {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
        },
        "quick": options.quick,
        "rounds": options.rounds,
        "rows": [{**asdict(row), "median_us": row.median_us, "operations_per_s": row.rate} for row in rows],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    rows: list[Row] = []
    for name in options.cases:
        case = CASES[name]
        rows += measure_case(case, choose_sizes(case, options), options.rounds, options.round_s)
    print(f"{options.rounds} rounds; medians of CPU time")
    print(format_rows(rows))
    if options.json_path is not None:
        options.json_path.write_text(json.dumps(build_document(rows, options), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
