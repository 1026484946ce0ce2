"""All that a domain holds, as values that can be compared: a refused command must leave it as it was."""

from __future__ import annotations

from kdbus_core.bus import Bus
from kdbus_core.connection import Connection
from kdbus_core.domain import Domain

Digest = dict[str, object]


def _digest_inbox(connection: Connection, *, with_lost: bool) -> object:
    inbox = connection.inbox
    assert inbox is not None
    quota = connection.quota
    shares = {id(user): (share.memory, share.messages, share.fds) for user, share in quota.shares.items()}
    slices = [
        (piece.offset, piece.size, piece.is_published) for piece in inbox.pool.slices() if piece.is_busy
    ]
    totals = (quota.total_memory, quota.total_messages, quota.total_fds)
    lost = inbox.lost if with_lost else None
    return ([entry.number for entry in inbox], inbox.reserved, lost, shares, totals, slices, inbox.pool.busy)


def _digest_connection(connection: Connection, *, with_lost: bool, with_monitors: bool) -> object:
    names = {name: place.flags for name, place in connection.names.items()}
    matches = {cookie: len(entries) for cookie, entries in connection.matches.items()}
    requests = {
        replier.id: [(tracker.cookie, tracker.deadline, tracker.reserved) for tracker in window.tracked()]
        for replier, window in connection.requests.items()
    }
    inbox: object = None
    if with_monitors or not connection.is_monitor:
        inbox = _digest_inbox(connection, with_lost=with_lost)
    return (
        (connection.attach_send, connection.attach_recv, connection.flags, connection.description),
        (names, matches, connection.match_count),
        ({replier: found for replier, found in requests.items() if found}, connection.outstanding),
        len(connection.calls),
        inbox,
    )


def _digest_bus(bus: Bus, *, with_lost: bool, with_monitors: bool) -> object:
    names = {
        entry.name: (
            entry.name_id,
            [place.connection.id for place in entry.queue],
            entry.activator.connection.id if entry.activator is not None else None,
        )
        for entry in bus.names.entries()
    }
    connections = {
        id: _digest_connection(connection, with_lost=with_lost, with_monitors=with_monitors)
        for id, connection in bus.connections.items()
    }
    endpoints = {
        name: sorted(endpoint.policy._owners) if endpoint.policy is not None else None
        for name, endpoint in bus.endpoints.items()
    }
    policy = {name: getattr(owner, "id", None) for name, owner in bus.policy._owners.items()}
    return names, connections, endpoints, policy, len(bus.monitors), bus.replies.next_deadline()


def digest(domain: Domain, *, with_lost: bool = True, with_monitors: bool = True) -> Digest:
    """What there is in a domain and everything below it."""
    users = {
        uid: (user.connections, user.charged if with_monitors else None)
        for uid, user in domain._users.items()
        if user.connections or with_monitors
    }
    return {
        "buses": {
            name: _digest_bus(bus, with_lost=with_lost, with_monitors=with_monitors)
            for name, bus in domain.buses.items()
        },
        "domains": {
            name: digest(child, with_lost=with_lost, with_monitors=with_monitors)
            for name, child in domain.domains.items()
        },
        "users": users,
    }
