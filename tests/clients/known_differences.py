"""Every difference between dbus-daemon and `busproxyd` that a test may overlook, each with its reason.

A key is a test's name (with its parameters in brackets) or a function's name for all its parameters.
Nothing is excused that is not listed here, and an entry says what the results still have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.compare import KnownDifference


def without(*names: str) -> Callable[[Any], Any]:
    """Leaves dictionary entries with these names out of a result, however deep they are."""

    def reduce(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: reduce(item) for name, item in value.items() if name not in names}
        if isinstance(value, list | tuple):
            return [reduce(item) for item in value]
        return value

    return reduce


def sorted_names(text: str) -> list[str]:
    """The names in GVariant's print of a list, whatever their order; unique names only by how many."""
    names = [word.strip("([],)\n") for word in text.split(", ")]
    return sorted("a unique name" if name.startswith("':U") else name for name in names)


KNOWN_DIFFERENCES: dict[str, KnownDifference] = {
    "test_statistics_name_the_same_figures": KnownDifference(
        "the figures of Debug.Stats are each implementation's own: dbus-daemon counts its memory pools, "
        "busproxyd its flows, calls and lost broadcasts",
        without(
            "ListMemPoolUsedBytes",
            "ListMemPoolCachedBytes",
            "ListMemPoolAllocatedBytes",
            "PeakActiveConnections",
            "LostBroadcasts",
            "MessagesReceived",
            "Flows",
            "OutstandingCalls",
        ),
    ),
    "test_credentials_are_those_of_the_client_that_is_asked_about": KnownDifference(
        "dbus-daemon 1.14 does not know ProcessFD, which specification 0.43 has and busproxyd gives",
        without("ProcessFD", "unix_fds"),
    ),
    "test_a_call_is_answered_alike[list names]": KnownDifference(
        "dbus-daemon lists names in the order of its hash table, which is no order to rely on",
        sorted_names,
    ),
}


def find_difference(test_name: str) -> KnownDifference | None:
    """What is known to differ in that test: its own entry, or else its function's."""
    function = test_name.partition("[")[0]
    return KNOWN_DIFFERENCES.get(test_name, KNOWN_DIFFERENCES.get(function))
