"""Whether a domain's books add up: everything that is counted is counted again from what there is.

`check_books` looks at a world from inside, between two commands. Charges are the queued entries, slots are
the open asynchronous requests, held slices are entries and slots, references to files are descriptors and
messages that wait, accounts are the connections and the receivers where something waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from support.kdbus import OpenFile, World
from support.kdbus.task import Reference

from kdbus_core.bus import Bus
from kdbus_core.caller import File
from kdbus_core.connection import Connection
from kdbus_core.domain import Domain
from kdbus_core.inbox import Entry, Inbox
from kdbus_core.message import Memfd
from kdbus_core.names import ACTIVATOR, IN_QUEUE, PRIMARY, QUEUE
from kdbus_core.quota import User
from kdbus_core.replies import Tracker


def check_books(world: World, cancellers: Iterable[Reference] = ()) -> None:
    """Fail unless everything adds up; `cancellers` are the files that waiting calls hold."""
    held: list[Reference] = list(cancellers)
    for domain in domains_below(world.domain):
        for bus in domain.buses.values():
            check_bus(bus)
            held += files_in_flight(bus)
        check_users(domain)
    for task in world.tasks:
        held += task._fds.values()
    assert all(reference.is_open for reference in held)
    references: Counter[OpenFile] = Counter(reference.description for reference in held)
    for file in world.ledger.files:
        assert file.references == references[file], "references to files are lost, or are forgotten"


def domains_below(domain: Domain) -> Iterator[Domain]:
    yield domain
    for child in domain.domains.values():
        yield from domains_below(child)


def inbox_of(connection: Connection) -> Inbox:
    assert connection.inbox is not None
    return connection.inbox


def entries_of(connection: Connection) -> list[Entry]:
    """What waits in a queue, and the replies that interrupted calls will be given; nothing else is apart."""
    kept = [call._entry for call in connection.calls if call._entry is not None]
    inbox = inbox_of(connection)
    assert list(inbox._apart.values()) == sorted(kept, key=lambda entry: entry.number)
    return [*inbox, *kept]


def files_in_flight(bus: Bus) -> list[Reference]:
    """The references that queued messages hold, each once however many queues a message is in."""
    messages = {
        entry.message
        for connection in bus.connections.values()
        for entry in entries_of(connection)
        if entry.message is not None
    }
    found: list[File] = []
    for message in messages:
        found += message.files
        found += [part.file for part in message.parts if isinstance(part, Memfd)]
    for file in found:
        assert isinstance(file, Reference)
    return [file for file in found if isinstance(file, Reference)]


def check_bus(bus: Bus) -> None:
    assert bus.active
    assert bus.order.is_idle
    connections = list(bus.connections.values())
    for id, connection in bus.connections.items():
        assert connection.id == id
        assert connection.active
        assert connection.endpoint.active
        assert bus.endpoints[connection.endpoint.name] is connection.endpoint
    assert Counter(bus.monitors) == Counter(one for one in connections if one.is_monitor)
    check_requests(bus, connections)
    for connection in connections:
        check_queue(connection)
        check_pool(connection)
        assert connection.match_count == sum(map(len, connection.matches.values()))
    check_names(bus, connections)
    for owner in bus.policy._owners.values():
        assert isinstance(owner, Connection)
        assert owner in connections


def check_queue(connection: Connection) -> None:
    """What waits is charged to who sent it, and nothing else is."""
    inbox, quota = inbox_of(connection), connection.quota
    entries = entries_of(connection)
    assert inbox.quota is quota
    assert [entry.number for entry in inbox] == sorted({entry.number for entry in inbox})
    memory: Counter[User] = Counter()
    messages: Counter[User] = Counter()
    fds: Counter[User] = Counter()
    for entry in entries:
        memory[entry.user] += entry.slice.size
        messages[entry.user] += 1
        fds[entry.user] += entry.fd_count
    assert {user: share.memory for user, share in quota.shares.items()} == dict(memory)
    assert {user: share.messages for user, share in quota.shares.items()} == dict(messages)
    assert {user: share.fds for user, share in quota.shares.items()} == dict(fds)
    assert quota.total_memory == sum(memory.values())
    assert quota.total_messages == sum(messages.values())
    assert quota.total_fds == sum(fds.values())
    assert quota.capacity == inbox.pool.size // 2


def check_pool(connection: Connection) -> None:
    """Slices tile the pool; the broker holds those of entries and slots, each for one purpose."""
    inbox = inbox_of(connection)
    at = busy = 0
    was_free = False
    held = []
    for piece in inbox.pool.slices():
        assert piece.offset == at
        assert piece.size > 0
        assert piece.size % 8 == 0
        assert piece.is_busy or not was_free, "two free slices lie side by side"
        was_free = not piece.is_busy
        busy += piece.size if piece.is_busy else 0
        held += [piece.offset] if piece.is_held else []
        at += piece.size
    assert at == inbox.pool.size
    assert busy == inbox.pool.busy
    wanted = [entry.slice.offset for entry in entries_of(connection)] + [slot.offset for slot in inbox._slots]
    assert held == sorted(wanted)


def open_trackers(connections: Iterable[Connection]) -> list[Tracker]:
    return [
        tracker
        for connection in connections
        for window in connection.requests.values()
        for tracker in window.tracked()
    ]


def check_requests(bus: Bus, connections: list[Connection]) -> None:
    """Windows are the same from both ends; slots, calls and counts are those of the open requests."""
    for connection in connections:
        for replier, window in connection.requests.items():
            assert replier in connections
            assert replier.duties[connection] is window
            assert (window.requester, window.replier) == (connection, replier)
            assert not window, "native connections have no plain requests"
        for requester in connection.duties:
            assert connection in requester.requests
    opened = open_trackers(connections)
    assert all(tracker.is_open for tracker in opened)
    queued: dict[Tracker, Entry] = {}
    for connection in connections:
        for entry in inbox_of(connection):
            if entry.tracker is not None:
                assert entry.tracker not in queued, "a request waits in two queues"
                queued[entry.tracker] = entry
                assert entry.tracker.is_queued
                assert entry.tracker in opened or not entry.tracker.is_open
    counted = {*opened, *queued}
    for connection in connections:
        mine = [tracker for tracker in opened if tracker.requester is connection]
        notified = [tracker for tracker in mine if tracker.waiter is None]
        assert inbox_of(connection).reserved == len(notified)
        for tracker in mine:
            assert tracker.reserved is (tracker.waiter is None)
            if tracker.waiter is not None and not tracker.waiter.done:
                assert tracker.waiter.tracker is tracker
                assert tracker.waiter in connection.calls
        for call in connection.calls:
            assert call.done is call.is_interrupted
            assert call.tracker in mine or (call.is_interrupted and call.outcome is not None)
        outstanding = sum(tracker.requester is connection for tracker in counted)
        assert connection.outstanding == outstanding
        assert outstanding <= connection.limits.outstanding_requests
    deadlines = [tracker.deadline for tracker in opened]
    deadlines += [call._kept.deadline for one in connections for call in one.calls if call._kept is not None]
    assert bus.replies.next_deadline() == min(deadlines, default=None)


def check_names(bus: Bus, connections: list[Connection]) -> None:
    """A name has one owner; places in queue and in the connections' lists are the same."""
    places = 0
    for entry in bus.names.entries():
        assert entry.queue or entry.activator
        members = [place.connection for place in entry.queue]
        assert len(set(members)) == len(members), "somebody queues twice"
        for position, place in enumerate(entry.queue):
            assert place.connection in connections
            assert place.connection.is_ordinary
            assert place.connection.names[entry.name] is place
            assert bool(place.flags & PRIMARY) is (position == 0)
            assert bool(place.flags & IN_QUEUE) is (position > 0)
            assert position == 0 or place.flags & QUEUE
        if entry.activator is not None:
            assert entry.activator.connection.is_activator
            assert entry.activator.connection.names[entry.name] is entry.activator
            assert entry.activator.flags == ACTIVATOR | (IN_QUEUE if entry.queue else PRIMARY)
        places += len(entry.queue) + (entry.activator is not None)
    assert places == sum(len(connection.names) for connection in connections)


def check_users(domain: Domain) -> None:
    """An account exists while somebody is connected on it or something of its waits."""
    connected: Counter[User] = Counter()
    charged: Counter[User] = Counter()
    unlisted: set[User] = set()
    for bus in domain.buses.values():
        unlisted.add(bus.kernel_user)
        unlisted.update(endpoint.user for endpoint in bus.endpoints.values() if endpoint.user is not None)
        for connection in bus.connections.values():
            connected[connection.user] += 1
            charged.update(list(connection.quota.shares))
    assert {user.uid: user for user in domain._users.values()} == domain._users
    listed = set(domain._users.values())
    assert {*connected, *charged} - listed <= unlisted | _of_ended_endpoints(domain, charged)
    assert listed <= {*connected, *charged}, "an account is kept that nobody has"
    for user in {*listed, *unlisted, *connected, *charged}:
        assert (user.connections, user.charged) == (connected[user], charged[user])


def _of_ended_endpoints(domain: Domain, charged: Iterable[User]) -> set[User]:
    """Accounts of endpoints that have gone while something sent through them still waits."""
    return {user for user in charged if user.uid is None and user not in domain._users.values()}
