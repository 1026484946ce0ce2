"""A small world for tests of the broker: one domain, one bus, and everything it said, in order.

`World.news` is the one log of all that left the bus: what observers were told and what went to the sink of
a single connection. Nothing in here knows what is right; the two `assert_…` alone judge, and they look into
every place in which a bus that was torn down, or a connection that has gone, could have kept something.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from kdbus_core import Bus, Connection, Credentials, Domain, Endpoint, KdbusError
from kdbus_core.abi import HelloFlag
from kdbus_core.connection import Limits
from kdbus_core.message import Message
from kdbus_core.metadata import Process
from kdbus_core.notifications import Notification, ReplyDead, ReplyTimeout
from kdbus_core.quota import Quota, User
from kdbus_core.subscriptions import Audience, Envelope, Rule

OWNER_UID = 1000
OWNER = Credentials(uid=OWNER_UID, gid=1000, pid=4711)
STRANGER = Credentials(uid=2000, gid=2000, pid=4712)

SIGNAL = 4
METHOD_CALL = 1


def zeros(count: int) -> bytes:
    """The randomness of a world that shall not surprise."""
    return bytes(count)


class Recorder:
    """A sink that writes to a log which it may share with others."""

    def __init__(self, log: list[Notification]) -> None:
        self.log = log

    def on_reply_lost(self, notification: ReplyDead | ReplyTimeout) -> None:
        self.log.append(notification)

    def on_message(self, sender: Connection, message: Message) -> None:
        raise AssertionError(f"{sender} has sent {message} to a connection that nothing is sent to")


class World:
    """One bus of uid 1000 in a domain of its own, so the bus has id 1 and the first connection 2."""

    def __init__(self) -> None:
        self.domain = Domain(zeros)
        self.bus: Bus = self.domain.make_bus(f"{OWNER_UID}-test", Process.of(OWNER))
        self.news: list[Notification] = []
        self.bus.observers.append(self.news.append)

    def connect(
        self,
        credentials: Credentials = OWNER,
        *,
        endpoint: Endpoint | None = None,
        faked: Credentials | None = None,
        privileged: bool = False,
        flags: HelloFlag = HelloFlag(0),  # noqa: B008 - a constant
        name: str | None = None,
        description: str = "",
        limits: Limits = Limits(),  # noqa: B008 - a constant
        quota: Quota | None = None,
        account: User | None = None,
        max_connections: int | None = None,
    ) -> Connection:
        """Say hello, on the default endpoint unless told otherwise, with this world's log as the sink."""
        return self.bus.hello(
            endpoint or self.bus.endpoint,
            Process.of(credentials, privileged=privileged),
            sink=Recorder(self.news),
            faked=faked,
            flags=flags,
            name=name,
            description=description,
            limits=limits,
            quota=quota,
            account=account,
            max_connections=max_connections,
        )

    def connect_many(self, count: int) -> list[Connection]:
        """That many ordinary connections; what they caused is forgotten."""
        connections = [self.connect() for _ in range(count)]
        self.news.clear()
        return connections

    def connect_activator(self, name: str) -> Connection:
        """An activator that offers a name."""
        return self.connect(flags=HelloFlag.ACTIVATOR, name=name)

    def connect_monitor(self) -> Connection:
        """A monitor that was one from the start, so it sees everything."""
        return self.connect(flags=HelloFlag.MONITOR)

    def connect_monitor_of(self, *rules: Rule) -> Connection:
        """An ordinary connection that became a monitor of what these rules say."""
        monitor = self.connect()
        self.bus.become_monitor(monitor, rules)
        return monitor

    def take_news(self) -> list[Notification]:
        """All notifications since the last time."""
        news = list(self.news)
        self.news.clear()
        return news

    def queue(self, name: str) -> list[tuple[Connection, int]]:
        """Who stands at a name, head first, with flags; empty where nobody does."""
        entry = self.bus.names.entry(name)
        return [] if entry is None else [(place.connection, place.flags) for place in entry.queue]

    def open_request(
        self, requester: Connection, replier: Connection, cookie: int, deadline: int = 0
    ) -> None:
        replies = self.bus.replies
        replies.open(replies.window(requester, replier), cookie, deadline)

    def assert_holds_nothing(self) -> None:
        """Nothing is left of any connection that ever was."""
        bus = self.bus
        assert not bus.connections
        assert not bus.monitors
        assert len(bus.names) == 0
        assert bus.names.entries() == []
        assert len(bus.policy) == 0
        assert not bus.matches
        assert bus.replies.next_deadline() is None
        assert not bus.replies._deadlines
        kept = bus.subscriptions
        for index in (kept._subscribers, kept._eavesdroppers, kept._monitors):
            assert not index._buckets
            assert not index._shapes
        assert not self.domain._users
        assert bus.order.is_idle


def assert_refers_to_nothing(connection: Connection) -> None:
    """A connection that has gone refers to nothing that others could still see."""
    assert not connection.active
    assert not connection.names
    assert not connection.matches
    assert not connection.subscriptions
    assert connection.match_count == 0
    assert not connection.calls
    assert not connection.requests
    assert not connection.duties
    assert connection.outstanding == 0


@contextmanager
def refused(errno: int) -> Iterator[None]:
    """The command inside must be refused with exactly this errno."""
    with pytest.raises(KdbusError) as caught:
        yield
    assert caught.value.errno == errno, str(caught.value)


def listening_to(world: World, rule: Rule) -> Connection:
    """A new connection with this one rule."""
    listener = world.connect()
    world.bus.subscribe(listener, 1, rule)
    return listener


def receivers(audience: Audience, *arguments: tuple[str, str] | None) -> list[Connection]:
    """Who gets a message with these arguments, as a list so that receiving twice shows."""
    return list(audience.receivers(arguments))


def signal(
    sender: Connection | None,
    *,
    path: str | None = "/a/b",
    interface: str | None = "org.example.I",
    member: str | None = "M",
    destination: Connection | None = None,
    to_driver: bool = False,
) -> Envelope:
    """A signal's envelope; sender None is the bus itself."""
    return Envelope(
        SIGNAL,
        sender=sender,
        destination=destination,
        to_driver=to_driver,
        path=path,
        interface=interface,
        member=member,
    )


def kinds(news: Iterable[Notification]) -> list[type[Notification]]:
    return [type(item) for item in news]
