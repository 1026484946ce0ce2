"""Every difference between dbus-daemon and `busproxyd` that a test may overlook, each with its reason.

A key is a test's name (with its parameters in brackets) or a function's name for all its parameters.
Nothing is excused that is not listed here, and an entry says what the results still have in common.
"""

from __future__ import annotations

from support.compare import KnownDifference

KNOWN_DIFFERENCES: dict[str, KnownDifference] = {}


def find_difference(test_name: str) -> KnownDifference | None:
    """What is known to differ in that test: its own entry, or else its function's."""
    function = test_name.partition("[")[0]
    return KNOWN_DIFFERENCES.get(test_name, KNOWN_DIFFERENCES.get(function))
