"""Whatever a bus goes through, its books are in order afterwards.

A machine connects, disconnects, passes names round, subscribes, asks and answers at random. After each
command it looks at the broker from outside and compares with what it wrote down itself: who may owe an
answer to whom, which names the notifications add up to, how much is counted and who is charged. It also
asks for every route and audience afresh: where an answer differs from the one before, the generation must
have changed, because a sender who kept the old answer has nothing else to warn it. In the end all disconnect
and nothing may be left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from errno import EADDRINUSE, EBADSLT, EEXIST, EMLINK, EOPNOTSUPP, ESHUTDOWN, ESRCH
from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kdbus_core import Bus, Connection, Credentials, Domain, KdbusError
from kdbus_core.abi import HelloFlag
from kdbus_core.connection import Limits
from kdbus_core.message import Message
from kdbus_core.metadata import Process
from kdbus_core.names import (
    ACQUIRED,
    ACTIVATOR,
    ALLOW_REPLACEMENT,
    IN_QUEUE,
    PRIMARY,
    QUEUE,
    REPLACE_EXISTING,
)
from kdbus_core.notifications import IdAdd, IdRemove, NameChange, Notification, ReplyDead, ReplyTimeout
from kdbus_core.quota import User
from kdbus_core.subscriptions import DRIVER, ArgumentTest, Audience, Envelope, Rule

OWNER = Credentials(uid=1000)
ORDINARY = HelloFlag(0)
NAMES = ["org.example.A", "org.example.B", "org.example.C"]
MAX_CONNECTIONS = 6
MAX_OUTSTANDING = 5
LIMITS = Limits(outstanding_requests=MAX_OUTSTANDING)

# Every message that the machine pretends to send: path, member and arguments.
MESSAGES = [
    ("/a", "M", ()),
    ("/a/b", "N", (("s", "x"),)),
]
RULES = st.builds(
    Rule,
    sender=st.sampled_from([None, None, DRIVER, 2, 3, *NAMES]),
    member=st.sampled_from([None, None, "M", "N"]),
    path_namespace=st.sampled_from([None, None, "/a", "/a/b"]),
    destination=st.sampled_from([None, None, None, DRIVER, 3, NAMES[0]]),
    arguments=st.sampled_from(
        [(), (), (ArgumentTest(0, "string", "x"),), (ArgumentTest(0, "namespace", "x"),)]
    ),
    eavesdrop=st.booleans(),
)
ACQUIRE_FLAGS = st.builds(
    lambda *flags: sum(flags),
    st.sampled_from([0, ALLOW_REPLACEMENT]),
    st.sampled_from([0, REPLACE_EXISTING]),
    st.sampled_from([0, QUEUE]),
)
UIDS = st.sampled_from([None, 0, 1000, 2000])

Request = tuple[Connection, Connection, int]
Charge = tuple[Connection, User, int]
Probe = dict[Hashable, Hashable]


def refusal(command: Callable[[], object]) -> int:
    """The errno a command is refused with, 0 when it succeeds."""
    try:
        command()
    except KdbusError as error:
        return error.errno
    return 0


class BrokerMachine(RuleBasedStateMachine):
    """One bus with two to seven connections on it, and the machine's own books."""

    bus: Bus
    domain: Domain

    @initialize(replacers_first=st.booleans())
    def start(self, replacers_first: bool) -> None:
        self.domain = Domain(bytes)
        self.bus = self.domain.make_bus("1000-test", Process.of(OWNER))
        self.bus.names.replacers_first = replacers_first
        self.bus.observers.append(self._observe)
        self.alive: list[Connection] = []
        self.now = 0
        self.last_cookie = 0
        # What the notifications add up to.
        self.announced: set[Connection] = set()
        self.holders: dict[str, Connection] = {}
        # Requests that are open, with their deadlines, and how the others ended.
        self.open_requests: dict[Request, int] = {}
        self.outcomes: Counter[int] = Counter()
        self.told: list[ReplyDead | ReplyTimeout] = []
        # What waits: at which receiver, charged to whom, how many bytes.
        self.waiting: list[Charge] = []
        # Rules that are in force.
        self.subscriptions: dict[tuple[Connection, int], list[Rule]] = {}
        for _ in range(3):
            self._connect()
        self._remember(self._probe_routes(), self._probe_audiences())

    # What the bus says

    def _observe(self, notification: Notification) -> None:
        match notification:
            case IdAdd(connection):
                assert connection not in self.announced
                self.announced.add(connection)
            case IdRemove(connection):
                self.announced.remove(connection)
            case NameChange():
                self._observe_name(notification)
            case _:
                raise AssertionError(f"observers are not told of {notification}")

    def _observe_name(self, change: NameChange) -> None:
        assert change.old is not None or change.new is not None
        assert change.old is not change.new
        assert self.holders.get(change.name) is change.old
        for connection, flags in ((change.old, change.old_flags), (change.new, change.new_flags)):
            assert bool(flags & PRIMARY) is (connection is not None)
            assert not flags & (IN_QUEUE | ACQUIRED)
        if change.new is None:
            del self.holders[change.name]
        else:
            self.holders[change.name] = change.new

    def on_reply_lost(self, notification: ReplyDead | ReplyTimeout) -> None:
        assert notification.requester.active
        self.told.append(notification)

    def on_message(self, sender: Connection, message: Message) -> None:
        raise AssertionError(f"{sender} is a local connection, and those do not send {message} this way")

    # Picking

    @staticmethod
    def _is_special(connection: Connection) -> bool:
        return bool(connection.flags & (HelloFlag.MONITOR | HelloFlag.ACTIVATOR))

    def _ordinary(self) -> list[Connection]:
        return [connection for connection in self.alive if not self._is_special(connection)]

    def _pick(self, data: st.DataObject, among: list[Connection]) -> Connection:
        return among[data.draw(st.integers(0, len(among) - 1), label="connection")]

    def _pick_ordinary(self, data: st.DataObject) -> Connection:
        if not self._ordinary():
            self._connect()
        return self._pick(data, self._ordinary())

    # Commands: connections

    @precondition(lambda self: len(self.alive) < MAX_CONNECTIONS)
    @rule(uid=UIDS, is_faked=st.booleans(), kind=st.sampled_from([ORDINARY] * 3 + [HelloFlag.MONITOR]))
    def connect(self, uid: int | None, is_faked: bool, kind: HelloFlag) -> None:
        self._connect(uid, is_faked=is_faked, flags=kind)

    def _connect(
        self, uid: int | None = 1000, *, is_faked: bool = False, flags: HelloFlag = ORDINARY
    ) -> None:
        connection = self.bus.hello(
            self.bus.endpoint,
            Process.of(OWNER if is_faked else Credentials(uid=uid), privileged=True),
            sink=self,
            faked=Credentials(uid=uid) if is_faked else None,
            flags=flags,
            limits=LIMITS,
        )
        self.alive.append(connection)
        if connection.is_monitor:
            self.subscriptions[connection, 0] = [Rule()]
        assert (connection in self.announced) is not connection.is_monitor

    @precondition(lambda self: len(self.alive) < MAX_CONNECTIONS)
    @rule(name=st.sampled_from(NAMES))
    def connect_activator(self, name: str) -> None:
        entry = self.bus.names.entry(name)
        is_taken = entry is not None and entry.activator is not None

        def offer() -> None:
            activator = self.bus.hello(
                self.bus.endpoint,
                self.bus.creator,
                sink=self,
                flags=HelloFlag.ACTIVATOR,
                name=name,
                account=self.bus.kernel_user,
            )
            self.alive.append(activator)

        assert refusal(offer) == (EEXIST if is_taken else 0)

    @precondition(lambda self: len(self.alive) > 2)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        self._disconnect(self._pick(data, self.alive))

    @precondition(lambda self: len(self.alive) > 3)
    @rule(data=st.data())
    def disconnect_two_in_one_command(self, data: st.DataObject) -> None:
        with self.bus.transaction():
            first = self._leave(self._pick(data, self.alive))
            second = self._leave(self._pick(data, self.alive))
            assert not self.told
        self._settle_deaths(first, second)

    @precondition(lambda self: len(self.bus.monitors) < 2 and len(self._ordinary()) > 1)
    @rule(data=st.data(), wanted=st.lists(RULES, max_size=3))
    def become_monitor(self, data: st.DataObject, wanted: list[Rule]) -> None:
        connection = self._pick_ordinary(data)
        self._forget(connection)
        self.bus.become_monitor(connection, wanted)
        self._settle_deaths(connection)
        self.subscriptions.update({(connection, cookie): [rule] for cookie, rule in enumerate(wanted)})
        assert connection.active
        assert not connection.names

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def ask_what_only_ordinary_connections_may(self, data: st.DataObject, name: str) -> None:
        specials = [connection for connection in self.alive if self._is_special(connection)]
        if specials:
            self._is_refused_everything(self._pick(data, specials), name, EOPNOTSUPP)

    def _is_refused_everything(self, connection: Connection, name: str, errno: int) -> None:
        assert refusal(lambda: self.bus.name_acquire(connection, name, QUEUE)) == errno
        assert refusal(lambda: self.bus.name_release(connection, name)) == errno
        assert refusal(lambda: self.bus.subscribe(connection, 0, Rule())) == errno
        assert refusal(lambda: self.bus.become_monitor(connection)) == errno

    def _disconnect(self, connection: Connection) -> None:
        self._settle_deaths(self._leave(connection))

    def _leave(self, connection: Connection) -> Connection:
        self.alive.remove(connection)
        self._forget(connection)
        self.bus.disconnect(connection)
        self.bus.disconnect(connection)
        assert not connection.active
        assert not connection.names
        assert not connection.subscriptions
        assert not connection.requests
        assert not connection.duties
        self._is_refused_everything(connection, NAMES[0], ESHUTDOWN)
        return connection

    def _forget(self, gone: Connection) -> None:
        """Strike out what ends in silence when a connection leaves: its rules and its own requests.

        What waits at a connection is not the bus', which neither delivers nor refunds it.
        """
        for key in [key for key in self.subscriptions if key[0] is gone]:
            del self.subscriptions[key]
        for request in [request for request in self.open_requests if request[0] is gone]:
            self._drop(request)

    def _drop(self, request: Request) -> None:
        del self.open_requests[request]
        self.outcomes[request[2]] += 1

    def _settle_deaths(self, *gone: Connection) -> None:
        """Exactly those who waited for a connection have been told, once for each request and in order."""
        dead = [request for request in self.open_requests if request[1] in gone]
        assert Counter(self.told) == Counter(ReplyDead(requester, cookie) for requester, _, cookie in dead)
        for replier in gone:
            for requester in {request[0] for request in dead}:
                cookies = [request[2] for request in dead if request[:2] == (requester, replier)]
                assert [news.cookie for news in self.told if news.cookie in cookies] == cookies
        self.told.clear()
        for request in dead:
            self._drop(request)

    # Commands: names

    @rule(data=st.data(), name=st.sampled_from(NAMES), flags=ACQUIRE_FLAGS)
    def acquire(self, data: st.DataObject, name: str, flags: int) -> None:
        connection = self._pick_ordinary(data)
        before = connection.names.get(name)
        had = (before.flags if before is not None else 0) & (PRIMARY | IN_QUEUE)
        entry = self.bus.names.entry(name)
        owner = entry.queue[0] if entry is not None and entry.queue else None
        may_replace = owner is None or (flags & REPLACE_EXISTING and owner.flags & ALLOW_REPLACEMENT)
        can_have = owner is before or may_replace
        if not can_have and before is None and not flags & QUEUE:
            assert refusal(lambda: self.bus.name_acquire(connection, name, flags)) == EEXIST
            return
        result = self.bus.name_acquire(connection, name, flags)
        assert bool(result & PRIMARY) is bool(can_have)
        mine = connection.names.get(name)
        assert result & ~ACQUIRED == (mine.flags if mine is not None else flags & ALLOW_REPLACEMENT)
        assert bool(result & ACQUIRED) is bool(result & (PRIMARY | IN_QUEUE) & ~had)
        assert result & (ALLOW_REPLACEMENT | QUEUE) == flags & (ALLOW_REPLACEMENT | QUEUE)

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def release(self, data: st.DataObject, name: str) -> None:
        connection = self._pick_ordinary(data)
        exists, had = self.bus.names.entry(name) is not None, name in connection.names
        errno = refusal(lambda: self.bus.name_release(connection, name))
        assert errno == (0 if had else EADDRINUSE if exists else ESRCH)
        assert name not in connection.names

    # Commands: subscriptions

    @rule(data=st.data(), cookie=st.integers(0, 2), wanted=RULES)
    def subscribe(self, data: st.DataObject, cookie: int, wanted: Rule) -> None:
        connection = self._pick_ordinary(data)
        self.bus.subscribe(connection, cookie, wanted)
        self.subscriptions.setdefault((connection, cookie), []).append(wanted)

    @rule(data=st.data(), cookie=st.integers(0, 2))
    def unsubscribe(self, data: st.DataObject, cookie: int) -> None:
        connection = self._pick(data, self.alive)
        is_there = (connection, cookie) in self.subscriptions
        errno = refusal(lambda: self.bus.unsubscribe(connection, cookie))
        if self._is_special(connection):
            assert errno == EOPNOTSUPP
            return
        assert errno == (0 if is_there else EBADSLT)
        self.subscriptions.pop((connection, cookie), None)

    # Commands: replies

    @rule(data=st.data(), wait=st.sampled_from([None, 0, 1, 2, 5]), count=st.integers(1, 3))
    def open_requests_to(self, data: st.DataObject, wait: int | None, count: int) -> None:
        requester, replier = self._pick_ordinary(data), self._pick_ordinary(data)
        window = self.bus.replies.window(requester, replier)
        deadline = 0 if wait is None else max(1, self.now + wait)
        for _ in range(count):
            self.last_cookie += 1
            is_full = requester.outstanding == MAX_OUTSTANDING
            cookie = self.last_cookie
            errno = refusal(partial(self.bus.replies.open, window, cookie, deadline))
            assert errno == (EMLINK if is_full else 0)
            if not errno:
                self.open_requests[requester, replier, cookie] = deadline

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        if self.open_requests:
            request = data.draw(st.sampled_from(list(self.open_requests)), label="request")
            self.bus.replies.take(*request)
            self._drop(request)

    @rule(data=st.data())
    def answer_what_was_not_asked(self, data: st.DataObject) -> None:
        requester = self._pick_ordinary(data)
        replier = self._pick_ordinary(data)
        cookie = data.draw(st.integers(0, self.last_cookie + 1), label="cookie")
        if (requester, replier, cookie) not in self.open_requests:
            assert refusal(lambda: self.bus.replies.take(requester, replier, cookie)) == EBADSLT

    @rule(wait=st.integers(0, 3))
    def pass_time(self, wait: int) -> None:
        self.now += wait
        self.bus.expire_replies(self.now)
        late = [request for request, deadline in self.open_requests.items() if 0 < deadline <= self.now]
        assert Counter(self.told) == Counter(ReplyTimeout(request[0], request[2]) for request in late)
        self.told.clear()
        for request in late:
            self._drop(request)

    # Commands: quotas

    @rule(data=st.data(), size=st.sampled_from([0, 1, 1000]))
    def charge(self, data: st.DataObject, size: int) -> None:
        receiver, sender = self._pick(data, self.alive), self._pick(data, self.alive)
        receiver.quota.charge(sender.user, size)
        self.waiting.append((receiver, sender.user, size))

    @rule(data=st.data())
    def refund(self, data: st.DataObject) -> None:
        if self.waiting:
            number = data.draw(st.integers(0, len(self.waiting) - 1), label="charge")
            self._refund(self.waiting.pop(number))

    def _refund(self, charge: Charge) -> None:
        receiver, user, size = charge
        receiver.quota.refund(user, size)

    # What always holds

    @invariant()
    def names_are_consistent_both_ways(self) -> None:
        places = 0
        for entry in self.bus.names.entries():
            assert self.bus.names.entry(entry.name) is entry
            assert entry.queue or entry.activator
            for position, place in enumerate(entry.queue):
                assert place.entry is entry
                assert place.connection.names[entry.name] is place
                assert place.flags & ~(ALLOW_REPLACEMENT | QUEUE) == (IN_QUEUE if position else PRIMARY)
            if entry.activator is not None:
                assert entry.activator.connection.names[entry.name] is entry.activator
                assert entry.activator.flags == ACTIVATOR | (IN_QUEUE if entry.queue else PRIMARY)
            places += len(entry.queue) + (entry.activator is not None)
        assert places == sum(len(connection.names) for connection in self.alive)

    @invariant()
    def notifications_add_up_to_what_is(self) -> None:
        holders = {entry.name: entry.holder for entry in self.bus.names.entries()}
        assert self.holders == {name: place.connection for name, place in holders.items() if place}
        assert self.announced == {connection for connection in self.alive if not connection.is_monitor}
        assert not self.told

    @invariant()
    def counters_add_up(self) -> None:
        assert list(self.bus.connections.values()) == self.alive
        for connection in self.alive:
            assert connection.is_monitor is bool(connection.flags & HelloFlag.MONITOR)
            assert connection.is_activator is bool(connection.flags & HelloFlag.ACTIVATOR)
        assert Counter(self.bus.monitors) == Counter(c for c in self.alive if c.is_monitor)
        for connection in self.alive:
            owned = [item for item in self.subscriptions.items() if item[0][0] is connection]
            mine = {cookie: rules for (_, cookie), rules in owned}
            assert connection.match_count == sum(map(len, mine.values()))
            held = {c: [entry.rule for entry in entries] for c, entries in connection.subscriptions.items()}
            assert held == mine
            assert connection.outstanding == sum(request[0] is connection for request in self.open_requests)

    @invariant()
    def accounts_exist_while_they_have_connections_or_charges(self) -> None:
        connections = Counter(connection.user for connection in self.alive)
        charged = Counter(user for _, user in {(receiver, user) for receiver, user, _ in self.waiting})
        users = self.domain._users
        assert set(users.values()) == {*connections, *charged} - {self.bus.kernel_user}
        for user in (*users.values(), self.bus.kernel_user):
            assert (user.connections, user.charged) == (connections[user], charged[user])
        assert all(user.uid == uid for uid, user in users.items())
        for connection in self.alive:
            assert connection.user is self._account_of(connection)
            shares = {user: share.memory for user, share in connection.quota.shares.items()}
            here = [(user, size) for receiver, user, size in self.waiting if receiver is connection]
            assert shares == {user: sum(size for other, size in here if other is user) for user, _ in here}

    def _account_of(self, connection: Connection) -> User:
        if connection.is_activator:
            return self.bus.kernel_user
        spoken_for = connection.faked.uid if isinstance(connection.faked, Credentials) else None
        return self.domain.user(connection.credentials.uid if spoken_for is None else spoken_for)

    @invariant()
    def the_index_holds_exactly_the_rules_in_force(self) -> None:
        subscriptions = self.bus.subscriptions
        found = [
            (entry.connection, entry.rule)
            for index in (subscriptions._subscribers, subscriptions._eavesdroppers, subscriptions._monitors)
            for bucket in index._buckets.values()
            for entries in (bucket.plain, *bucket.by_argument.values())
            for entry in entries
        ]
        wanted = [(key[0], wanted) for key, rules in self.subscriptions.items() for wanted in rules]
        assert Counter(found) == Counter(wanted)

    @invariant()
    def windows_hold_exactly_the_open_requests(self) -> None:
        found: dict[Request, int] = {}
        for requester in self.alive:
            for replier, window in requester.requests.items():
                assert window.requester is requester
                assert window.replier is replier
                assert replier.duties[requester] is window
                found.update({(requester, replier, cookie): when for cookie, when in window.items()})
            for other in requester.duties:
                assert requester in other.requests
        assert found == self.open_requests
        assert self.bus.replies.next_deadline() == min(filter(None, found.values()), default=None)

    @invariant()
    def every_request_has_one_outcome_or_none_yet(self) -> None:
        assert all(count == 1 for count in self.outcomes.values())
        assert not self.outcomes.keys() & {cookie for _, _, cookie in self.open_requests}

    @invariant()
    def whoever_kept_an_answer_was_warned_when_it_changed(self) -> None:
        routes, audiences = self._probe_routes(), self._probe_audiences()
        if self.bus.route_generation == self.route_generation:
            assert self._changed(self.routes, routes) == {}
        if self.bus.audience_generation == self.audience_generation:
            assert self._changed(self.audiences, audiences) == {}
        self._remember(routes, audiences)

    def _remember(self, routes: Probe, audiences: Probe) -> None:
        self.route_generation = self.bus.route_generation
        self.audience_generation = self.bus.audience_generation
        self.routes, self.audiences = routes, audiences

    @staticmethod
    def _changed(before: Probe, after: Probe) -> Probe:
        both = before.keys() & after.keys()
        return {key: (before[key], after[key]) for key in both if before[key] != after[key]}

    def _resolve(self, *, id: int = 0, name: str | None = None, auto_start: bool = True) -> Hashable:
        try:
            return self.bus.resolve(id=id, name=name, auto_start=auto_start)
        except KdbusError as error:
            return error.errno

    def _probe_routes(self) -> Probe:
        """Where messages go, and who else sees them, for each destination there is."""
        probe: Probe = {("id", id): self._resolve(id=id) for id in self.bus.connections}
        for name in NAMES:
            for auto_start in (True, False):
                probe["name", name, auto_start] = self._resolve(name=name, auto_start=auto_start)
        for sender in self.alive:
            for destination in (None, *self.alive):
                for path, member, arguments in MESSAGES:
                    envelope = Envelope(
                        1,
                        sender=sender,
                        destination=destination,
                        to_driver=destination is None,
                        path=path,
                        member=member,
                    )
                    audience = self.bus.subscriptions.unicast_audience(envelope)
                    probe["others", sender, destination, member] = self._all_of(audience, arguments)
        return probe

    def _probe_audiences(self) -> Probe:
        """Who hears broadcasts, from each connection and from the bus itself."""
        probe: Probe = {}
        for sender in (None, *self.alive):
            for path, member, arguments in MESSAGES:
                envelope = Envelope(4, sender=sender, path=path, member=member)
                audience = self.bus.subscriptions.broadcast_audience(envelope)
                probe[sender, member] = self._all_of(audience, arguments)
        return probe

    @staticmethod
    def _all_of(audience: Audience, arguments: tuple[tuple[str, str], ...]) -> Hashable:
        """Everything an audience promises: who hears it anyway, and who hears it with these arguments."""
        found = list(audience.receivers(arguments))
        assert len(found) == len(set(found))
        assert all(connection.active for connection in found)
        return frozenset(audience.always), frozenset(found)

    # The end

    def teardown(self) -> None:
        if not hasattr(self, "bus"):
            return
        while self.alive:
            self._disconnect(self.alive[len(self.alive) // 2])
        self.accounts_exist_while_they_have_connections_or_charges()
        while self.waiting:
            self._refund(self.waiting.pop())
        self.notifications_add_up_to_what_is()
        bus = self.bus
        assert not self.holders
        assert not self.announced
        assert not self.open_requests
        assert not bus.connections
        assert not bus.monitors
        assert len(bus.names) == 0
        kept = bus.subscriptions
        for index in (kept._subscribers, kept._eavesdroppers, kept._monitors):
            assert not index._buckets
            assert not index._shapes
        assert not bus.subscriptions.has_monitors
        assert bus.replies.next_deadline() is None
        assert not bus.replies._deadlines
        assert not self.domain._users
        assert bus.order.is_idle


TestBroker = BrokerMachine.TestCase
TestBroker.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
