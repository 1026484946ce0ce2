"""org.freedesktop.DBus.Debug.Stats: counters of the bus and of its peers.

The names are those of dbus-daemon where the figure means the same here; its
memory pools do not exist in this bus and are left out.  Peaks are kept as
things happen, so that asking costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from busproxy.driver.call import Call, Method, MethodError
from busproxy.driver.names import find_owner
from busproxy.driver.outbox import DRIVER_NAME
from busproxy.router import UNIQUE_PREFIX, is_client, peer_of
from busproxy.wire.match_rules import format_match_rule

if TYPE_CHECKING:
    from busproxy.peer import Peer


class Peak:
    """The highest value that something has had."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def rise_to(self, value: int) -> None:
        self.value = max(self.value, value)


class Peaks:
    """What the driver remembers for its statistics."""

    def __init__(self) -> None:
        self.serial = 0
        self.connections = Peak()
        self.names = Peak()
        self.names_per_connection = Peak()
        self.rules = Peak()
        self.rules_per_connection = Peak()
        self.rule_count = 0

    def on_connected(self, count: int, names: int) -> None:
        """There are `count` active clients and `names` names, unique ones included."""
        self.connections.rise_to(count)
        self.names.rise_to(names)
        self.names_per_connection.rise_to(1)

    def on_name_acquired(self, peer: Peer, own: int, names: int) -> None:
        """A peer has `own` names, of `names` in all, unique ones included."""
        peer.peak_names = max(peer.peak_names, own)
        self.names.rise_to(names)
        self.names_per_connection.rise_to(own)

    def on_match_added(self, peer: Peer) -> None:
        self.rule_count += 1
        self.rules.rise_to(self.rule_count)
        self.rules_per_connection.rise_to(peer.rules)
        peer.peak_rules = max(peer.peak_rules, peer.rules)

    def on_match_removed(self) -> None:
        self.rule_count -= 1

    def on_matches_gone(self, count: int) -> None:
        self.rule_count -= count


def _unsigned(values: dict[str, int]) -> dict[str, tuple[str, int]]:
    return {name: ("u", value & 0xFFFFFFFF) for name, value in values.items()}


def _get_stats(call: Call) -> tuple[Any, ...]:
    router, peaks = call.driver.router, call.driver.statistics
    peaks.serial += 1
    active = len(router.peers) - router.incomplete
    return (
        _unsigned(
            {
                "Serial": peaks.serial,
                "ActiveConnections": active,
                "IncompleteConnections": router.incomplete,
                "MatchRules": peaks.rule_count,
                "PeakMatchRules": peaks.rules.value,
                "PeakMatchRulesPerConnection": peaks.rules_per_connection.value,
                "BusNames": len(router.bus.names) + active,
                "PeakBusNames": max(peaks.names.value, len(router.bus.names) + active),
                "PeakBusNamesPerConnection": peaks.names_per_connection.value,
                "PeakActiveConnections": peaks.connections.value,
                "LostBroadcasts": router.lost_broadcasts,
            }
        ),
    )


def _get_connection_stats(call: Call) -> tuple[Any, ...]:
    (name,) = call.arguments
    connection = find_owner(call, name)
    if name == DRIVER_NAME:
        raise MethodError(
            "InvalidArgs", f'GetConnectionStats is not meaningful for the message bus "{name}" itself'
        )
    if connection is None:
        raise MethodError("NameHasNoOwner", f"Could not get statistics of name '{name}': no such name")
    peaks, quota = call.driver.statistics, connection.quota
    peaks.serial += 1
    figures = {
        "Serial": peaks.serial,
        "BusNames": len(connection.names) + 1,
        "OutgoingMessages": quota.total_messages,
        "OutgoingBytes": quota.total_memory,
        "OutgoingFDs": quota.total_fds,
        "PeakOutgoingBytes": quota.peak_memory,
        "PeakOutgoingFDs": quota.peak_fds,
        "OutstandingCalls": connection.outstanding,
    }
    if is_client(connection):
        figures |= _client_figures(peer_of(connection))
    else:
        figures["MatchRules"] = connection.match_count
    answer: dict[str, tuple[str, Any]] = dict(_unsigned(figures))
    answer["UniqueName"] = ("s", f"{UNIQUE_PREFIX}{connection.id}")
    return (answer,)


def _client_figures(peer: Peer) -> dict[str, int]:
    """What there is to know of a client only, and not of a native connection."""
    return {
        "MatchRules": peer.rules,
        "PeakMatchRules": peer.peak_rules,
        "PeakBusNames": peer.peak_names,
        # A message is dealt with when it is whole; only a part of one can be waiting.
        "IncomingMessages": 0,
        "IncomingBytes": peer.incoming_bytes,
        "IncomingFDs": peer.incoming_fds,
        "PeakIncomingBytes": peer.peak_incoming_bytes,
        "PeakIncomingFDs": peer.peak_incoming_fds,
        "MessagesReceived": peer.messages_received,
        "Flows": len(peer.flows),
    }


def _get_all_match_rules(call: Call) -> tuple[Any, ...]:
    answer: dict[str, list[str]] = {}
    for peer in call.driver.router.peers:
        if peer.connection is not None and not peer.connection.is_monitor:
            answer[peer.unique_name] = [
                format_match_rule(rule)
                for rule, subscription in peer.subscriptions.items()
                for _ in range(subscription.count)
            ]
    return (answer,)


METHODS = (
    Method("GetStats", "", "a{sv}", _get_stats, anywhere=False),
    Method("GetConnectionStats", "s", "a{sv}", _get_connection_stats, anywhere=False),
    Method("GetAllMatchRules", "", "a{sas}", _get_all_match_rules, anywhere=False),
)
