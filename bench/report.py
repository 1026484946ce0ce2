"""From samples to numbers a reader can judge: medians with their spread, ratios, tables, JSON.

A ratio is taken within each round, between two runs that followed each other, and only then its median, so
that a machine that gets slower half-way does not favour one bus. The *subject* is the bus the ratios are
about: busproxyd where it takes part. Rates: above 1 the subject is ahead. CPU time for an operation: below
1 it is.

An operation is what the scenario counts: a call is two messages through the bus, a delivery one.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from bench.scenarios import Sample, Scenario

SUBJECT = "busproxyd"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of several values."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(slots=True)
class ScenarioResult:
    """The samples of a scenario by bus, round by round; a bus with a failure has no samples that count."""

    scenario: Scenario
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def complete(self) -> dict[str, list[Sample]]:
        """The samples of the buses that finished every round."""
        return {name: found for name, found in self.samples.items() if found and name not in self.failures}


@dataclass(frozen=True, slots=True)
class Ratio:
    """The subject relative to another bus: rate, and CPU time for an operation."""

    subject: str
    other: str
    rate: Spread
    cpu: Spread


def choose_subject(names: Sequence[str]) -> str:
    """The bus the ratios are about: busproxyd, or else the last."""
    return SUBJECT if SUBJECT in names else names[-1]


def compare(result: ScenarioResult, subject: str) -> list[Ratio]:
    """The subject's ratios to every other bus that finished; none when the subject did not."""
    complete = result.complete()
    if subject not in complete:
        return []
    mine = complete[subject]
    ratios = []
    for other, theirs in complete.items():
        if other == subject:
            continue
        rounds = list(zip(mine, theirs, strict=True))
        rate = Spread.of([a.rate / b.rate for a, b in rounds])
        cpu = Spread.of([a.cpu_us / b.cpu_us for a, b in rounds])
        ratios.append(Ratio(subject, other, rate, cpu))
    return ratios


def _spread(samples: Sequence[Sample], value: Callable[[Sample], float]) -> Spread:
    return Spread.of([value(sample) for sample in samples])


def _latency(samples: Sequence[Sample], value: Callable[[Sample], float | None]) -> float | None:
    values = [found for sample in samples if (found := value(sample)) is not None]
    return statistics.median(values) if values else None


# Text


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [
            cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _drop_empty_columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The rows, a heading first, without the columns in which no row has anything."""
    kept = [column for column in range(len(rows[0])) if column == 0 or any(row[column] for row in rows[1:])]
    return [[row[column] for column in kept] for row in rows]


def _between(spread: Spread, form: str) -> str:
    return f"{spread.minimum:{form}} to {spread.maximum:{form}}"


def format_scenario(result: ScenarioResult, subject: str) -> str:
    """A scenario's table: a line for each bus, then the ratios.

    "CPU" is the bus's; "bus" and "load" are the shares of the elapsed time each kept a processor busy.
    """
    unit = result.scenario.unit
    plural = "deliveries" if unit == "delivery" else f"{unit}s"
    rows = [
        [
            "",
            f"{plural}/s",
            "min to max",
            "p50 µs",
            "p99 µs",
            f"CPU µs/{unit}",
            "min to max",
            "bus",
            "load",
            "RSS MiB",
        ]
    ]
    for name, samples in result.complete().items():
        rate = _spread(samples, lambda sample: sample.rate)
        cpu = _spread(samples, lambda sample: sample.cpu_us)
        p50 = _latency(samples, lambda sample: sample.p50_us)
        p99 = _latency(samples, lambda sample: sample.p99_us)
        rows.append(
            [
                name,
                f"{rate.median:.0f}",
                _between(rate, ".0f"),
                "" if p50 is None else f"{p50:.1f}",
                "" if p99 is None else f"{p99:.1f}",
                f"{cpu.median:.2f}",
                _between(cpu, ".2f"),
                f"{_spread(samples, lambda sample: sample.bus_cpu_s / sample.elapsed_s).median:.0%}",
                f"{_spread(samples, lambda sample: sample.load_cpu_s / sample.elapsed_s).median:.0%}",
                f"{_spread(samples, lambda sample: sample.rss_kib / 1024).median:.1f}",
            ]
        )
    lines = [f"{result.scenario.name}: {result.scenario.title}"]
    if len(rows) > 1:
        lines.append(_indent(format_table(_drop_empty_columns(rows))))
    lines += [f"  {name}: no result, because {reason}" for name, reason in result.failures.items()]
    lines += [
        f"  {ratio.subject} / {ratio.other}:  rate {ratio.rate.median:.2f} ({_between(ratio.rate, '.2f')})"
        f"  CPU for a {unit} {ratio.cpu.median:.2f} ({_between(ratio.cpu, '.2f')})"
        for ratio in compare(result, subject)
    ]
    return "\n".join(lines)


def format_summary(results: Sequence[ScenarioResult], subject: str) -> str:
    """All ratios in one table; empty when there is nothing to compare."""
    rows = []
    for result in results:
        for ratio in compare(result, subject):
            rows.append(
                [
                    result.scenario.name,
                    f"{ratio.subject} / {ratio.other}",
                    f"{ratio.rate.median:.2f}",
                    _between(ratio.rate, ".2f"),
                    f"{ratio.cpu.median:.2f}",
                    _between(ratio.cpu, ".2f"),
                ]
            )
    if not rows:
        return ""
    heading = ["ratio (median)", "", "rate", "min to max", "CPU", "min to max"]
    note = "rate: more is better; CPU time of the bus for an operation: less is better"
    return f"{format_table([heading, *rows])}\n{note}"


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


# JSON


def build_document(
    results: Sequence[ScenarioResult],
    subject: str,
    *,
    environment: dict[str, object],
    left_out: dict[str, str],
) -> dict[str, object]:
    """Everything the run found, every sample included, as JSON can hold it."""
    return {
        "format": FORMAT_VERSION,
        "environment": environment,
        "left_out": left_out,
        "subject": subject,
        "scenarios": [_describe(result, subject) for result in results],
    }


def _describe(result: ScenarioResult, subject: str) -> dict[str, object]:
    buses = {}
    for name, samples in result.complete().items():
        buses[name] = {
            "rate_per_s": asdict(_spread(samples, lambda sample: sample.rate)),
            "bus_cpu_us_per_operation": asdict(_spread(samples, lambda sample: sample.cpu_us)),
            "p50_us": _latency(samples, lambda sample: sample.p50_us),
            "p99_us": _latency(samples, lambda sample: sample.p99_us),
            "rss_kib": _spread(samples, lambda sample: sample.rss_kib).median,
            "samples": [asdict(sample) for sample in samples],
        }
    return {
        "name": result.scenario.name,
        "title": result.scenario.title,
        "unit": result.scenario.unit,
        "buses": buses,
        "failures": result.failures,
        "ratios": [asdict(ratio) for ratio in compare(result, subject)],
    }
