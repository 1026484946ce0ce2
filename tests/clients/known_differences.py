"""Every difference between dbus-daemon and `busproxyd` that a test may overlook, each with its reason.

A key is a test's name (with its parameters in brackets) or a function's name for all its parameters.
Nothing is excused that is not listed here, and an entry says what the results still have in common.
"""

from __future__ import annotations

import re
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


_FILTERING = "HeaderFiltering"


def without_filtering(value: Any) -> Any:
    """Leaves the feature HeaderFiltering out of whatever names it, in values and in printed text."""
    if isinstance(value, dict):
        return {name: without_filtering(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        kept = [item for item in value if not (isinstance(item, str) and item.strip() == _FILTERING)]
        return [without_filtering(item) for item in kept]
    if isinstance(value, str):
        value = re.sub(rf"[\s,]*['\"]?{_FILTERING}['\"]?", "", value)
        value = re.sub(r'[12](?= +"ActivatableServicesChanged")', "", value)  # how many features
        value = re.sub(r"  +", " ", value)  # columns
    return value


HEADER_FILTERING = KnownDifference(
    "unknown header fields are forwarded as they are, so the feature HeaderFiltering is not offered",
    without_filtering,
)

PROCESS_FD = KnownDifference(
    "dbus-daemon 1.14 does not know ProcessFD, which specification 0.43 has and busproxyd gives",
    without("ProcessFD", "unix_fds"),
)

KNOWN_DIFFERENCES: dict[str, KnownDifference] = {
    "test_introspect_shows_interfaces_and_values": HEADER_FILTERING,
    "test_properties_are_read_and_set": HEADER_FILTERING,
    "test_introspect_prints_the_same_tree[driver]": HEADER_FILTERING,
    "test_a_scenario_with_a_libdbus_service_has_the_same_result[properties]": HEADER_FILTERING,
    "test_a_command_has_the_same_result[a bus property]": HEADER_FILTERING,
    "test_the_driver_answers_a_call_alike"
    "[GetAll of 'org.freedesktop.DBus' on /org/freedesktop/DBus]": HEADER_FILTERING,
    "test_the_driver_answers_a_call_alike"
    "[Get of 'org.freedesktop.DBus' Features on /org/freedesktop/DBus]": HEADER_FILTERING,
    "test_the_driver_answers_a_call_alike[Get of 'Features']": HEADER_FILTERING,
    "test_a_driver_call_that_wants_no_reply_is_treated_alike"
    "[GetAll of 'org.freedesktop.DBus' on /org/freedesktop/DBus]": HEADER_FILTERING,
    "test_a_driver_call_that_wants_no_reply_is_treated_alike"
    "[Get of 'org.freedesktop.DBus' Features on /org/freedesktop/DBus]": HEADER_FILTERING,
    "test_a_driver_call_that_wants_no_reply_is_treated_alike[Get of 'Features']": HEADER_FILTERING,
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
    "test_credentials_are_those_of_the_client_that_is_asked_about": PROCESS_FD,
    "test_the_driver_answers_a_call_alike[GetConnectionCredentials of the driver]": PROCESS_FD,
    "test_a_driver_call_that_wants_no_reply_is_treated_alike"
    "[GetConnectionCredentials of the driver]": PROCESS_FD,
    "test_a_call_is_answered_alike[list names]": KnownDifference(
        "dbus-daemon lists names in the order of its hash table, which is no order to rely on",
        sorted_names,
    ),
}


def find_difference(test_name: str) -> KnownDifference | None:
    """What is known to differ in that test: its own entry, or else its function's."""
    function = test_name.partition("[")[0]
    return KNOWN_DIFFERENCES.get(test_name, KNOWN_DIFFERENCES.get(function))


_POLICY = "the rules of <policy> are read, warned about and not enforced yet"
_FILTERS = "unknown header fields are forwarded as they are; dbus-daemon filters them out"

FAILING_INSTALLED_CASES: dict[str, str] = {
    "/properties/features": _FILTERS,
    "/message/weird-header-field/append": _FILTERS,
    "/message/weird-header-field/change": _FILTERS,
    "/message/weird-header-field/prepend": _FILTERS,
    "/message/weird-header-field/multi": _FILTERS,
    "/policy/count-fds": _POLICY,
    "/system-policy/send-destination/prefix": _POLICY,
    "/monitor/activation": _POLICY,
    "/monitor/forbidden": _POLICY,
    "/monitor/forbidden-broadcast": _POLICY,
    "/monitor/forbidden-method": _POLICY,
    "/monitor/forbidden-reply": _POLICY,
    "/sd-activation/deny-send/com.example.SendDenied": _POLICY,
    "/sd-activation/deny-send/com.example.SendPrefixDenied": _POLICY,
    "/sd-activation/deny-send/com.example.SendPrefixDenied.internal": _POLICY,
    "/sd-activation/deny-receive/com.example.ReceiveDenied": _POLICY,
}
"""Cases of dbus-daemon's own test programs that `busproxyd` does not pass; each must fail until it does."""
