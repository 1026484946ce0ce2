"""Running one scenario on each selected bus and insisting that the results are equal.

A scenario is a function of a bus that returns values made of strings, numbers, lists and dicts; it asserts
for itself what must be true on any bus (a program's exit status, a text that has to be there), so that two
equal failures do not pass as equality. The results are normalised; what differs on purpose is described by
a `KnownDifference` with its reason, which turns either bus's result into what both have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from support.bus import BUSPROXYD, DBUS_DAEMON, Bus
from support.normalise import Normaliser, name_pids


@dataclass(frozen=True)
class KnownDifference:
    """Why the two buses differ in one scenario, and what of a result they still have in common."""

    reason: str
    common: Callable[[Any], Any]


@dataclass(frozen=True)
class Comparison:
    """The buses of one test and what is known to differ in it."""

    buses: Sequence[Bus]
    difference: KnownDifference | None = None

    def __call__(self, scenario: Callable[[Bus], Any]) -> Any:
        """Run the scenario on each bus; fails unless the results are equal. Returns it normalised."""
        results: Mapping[str, Any] = {bus.kind: normalised(bus, scenario(bus)) for bus in self.buses}
        first, last = self.buses[0], self.buses[-1]
        results = dict(
            zip(
                results,
                name_pids(results[first.kind], first.labels, results[last.kind], last.labels),
                strict=False,  # with one bus both are the same
            )
        )
        if self.difference is not None:
            results = {kind: self.difference.common(result) for kind, result in results.items()}
        if len(results) == 2:
            assert results[BUSPROXYD] == results[DBUS_DAEMON]
        return next(iter(results.values()))


def normalised(bus: Bus, result: Any) -> Any:
    """A scenario's result on that bus, fit for comparing with another bus's but for process ids."""
    return Normaliser(address=bus.address, directory=bus.directory)(result)
