"""A small world of native connections, which have pools and go through `Bus.send`, `call` and `receive`.

Tests read as conversations. A message is known by its cookie and shown as `#7`; what a connection finds
in its queue, read to the end, is a list of such words, notifications and losses among them (`World.read`).
How a synchronous call ended stands in `Waiter.outcomes`, a list, so that an end that came twice shows.

Every file counts its closings and every message is remembered, so that `World.end` can look for what was
kept or given back twice: each test ends with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from errno import EAGAIN, EOPNOTSUPP, errorcode
from functools import partial

from native_mail import Mail, SomeFile, Waiter, inbox_of, look

from kdbus_core import Bus, Connection, Credentials, Domain, Endpoint, KdbusError
from kdbus_core.abi import (
    DST_BROADCAST,
    MATCH_ANY,
    PAGE_SIZE,
    HelloFlag,
    ItemType,
    MakeFlag,
    MessageFlag,
    ReceiveFlag,
)
from kdbus_core.caller import File
from kdbus_core.connection import Limits
from kdbus_core.matches import BloomMask, Filter, IdNotice, MatchRule, NameNotice
from kdbus_core.message import DstName, Fds, Memfd, Message, MessageItem, Vec
from kdbus_core.metadata import Process, Snapshot
from kdbus_core.policy import Access
from kdbus_core.pool import Pool
from kdbus_core.quota import User
from kdbus_core.synchronous import SyncCall

OWNER = Process.of(Credentials(uid=1000, gid=1000, pid=4711))
STRANGER = Process.of(Credentials(uid=2000, gid=2000, pid=4712))
OTHER = Process.of(Credentials(uid=3000, gid=3000, pid=4713))
ROOT = Process.of(Credentials(uid=0, gid=0, pid=1), privileged=True)

NAME = "org.example.Name"
SECOND = 1_000_000_000
NO_FLAGS = HelloFlag(0)
EVERY_NOTICE: tuple[MatchRule, ...] = (
    IdNotice(ItemType.ID_ADD, MATCH_ANY),
    IdNotice(ItemType.ID_REMOVE, MATCH_ANY),
    NameNotice(ItemType.NAME_ADD, MATCH_ANY, MATCH_ANY, None),
    NameNotice(ItemType.NAME_REMOVE, MATCH_ANY, MATCH_ANY, None),
    NameNotice(ItemType.NAME_CHANGE, MATCH_ANY, MATCH_ANY, None),
)

_KINDS = {
    HelloFlag.MONITOR: "monitor",
    HelloFlag.ACTIVATOR: "activator",
    HelloFlag.POLICY_HOLDER: "policy holder",
}


class Clock:
    """Time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000 * SECOND

    def __call__(self) -> int:
        return self.now


class World:
    """A domain with one bus of uid 1000, which everybody may enter; the first connection has id 2."""

    def __init__(self, access: MakeFlag = MakeFlag.ACCESS_WORLD) -> None:
        self.clock = Clock()
        self.domain = Domain(bytes, self.clock, self.clock)
        self.bus: Bus = self.domain.make_bus("1000-native", OWNER, access)
        self.installed: list[str] = []
        self.has_room_for_files = True
        self._files: list[SomeFile] = []
        self._messages: list[Message] = []
        self._connections: list[Connection] = []

    # Connections

    def connect(
        self,
        process: Process = OWNER,
        *,
        endpoint: Endpoint | None = None,
        flags: HelloFlag = HelloFlag.ACCEPT_FD,
        name: str | None = None,
        accesses: Sequence[Access] = (),
        attach_send: int = 0,
        attach_recv: int = 0,
        faked: Snapshot | None = None,
        pages: int = 64,
        limits: Limits = Limits(),  # noqa: B008 - a constant
        on_ready: Callable[[], None] | None = None,
    ) -> Connection:
        """Say hello with a pool of that many pages."""
        connection = self.bus.hello(
            endpoint or self.bus.endpoint,
            process,
            pool=Pool(pages * PAGE_SIZE),
            on_ready=on_ready,
            flags=flags,
            attach_send=attach_send,
            attach_recv=attach_recv,
            faked=faked,
            name=name,
            accesses=accesses,
            limits=limits,
        )
        self._connections.append(connection)
        return connection

    def connect_many(self, count: int) -> list[Connection]:
        """Ordinary connections of the bus' owner."""
        return [self.connect() for _ in range(count)]

    def connect_kind(self, kind: str, *, name: str = NAME) -> Connection:
        """An ordinary connection, or a special one called what it is; the latter accept no descriptors."""
        flags = {text: flag for flag, text in _KINDS.items()}.get(kind, NO_FLAGS)
        is_named = bool(flags & (HelloFlag.ACTIVATOR | HelloFlag.POLICY_HOLDER))
        return self.connect(flags=flags, name=name if is_named else None)

    def connect_activator(self, name: str = NAME, *, accept_fds: bool = True, pages: int = 64) -> Connection:
        flags = HelloFlag.ACTIVATOR | (HelloFlag.ACCEPT_FD if accept_fds else NO_FLAGS)
        return self.connect(flags=flags, name=name, pages=pages)

    def listen(self, connection: Connection, *rules: MatchRule) -> Connection:
        """Have a connection receive what any of these rules lets through."""
        for cookie, rule in enumerate(rules):
            self.bus.match_add(connection, cookie, [rule])
        return connection

    # Messages

    def file(self, label: str) -> SomeFile:
        self._files.append(SomeFile(label))
        return self._files[-1]

    def fds(self, *labels: str) -> Fds:
        return Fds(tuple(self.file(label) for label in labels))

    def memfd(self, label: str) -> Memfd:
        return Memfd(0, 8, self.file(label))

    def message(
        self,
        to: Connection | str | None,
        cookie: int,
        *items: MessageItem,
        flags: int = 0,
        priority: int = 0,
        dst_id: int = 0,
        timeout_ns: int = 0,
        reply_to: int = 0,
    ) -> Message:
        """A message to a connection, a name or everybody."""
        parts = list(items)
        if isinstance(to, str):
            parts.append(DstName(to))
        elif to is None:
            dst_id = DST_BROADCAST
        else:
            dst_id = to.id
        if flags & MessageFlag.SIGNAL and not any(isinstance(part, Filter) for part in parts):
            parts.append(Filter(0, bytes(64)))
        message = Message(
            parts,
            flags=flags,
            priority=priority,
            dst_id=dst_id,
            cookie=cookie,
            timeout_ns=timeout_ns,
            cookie_reply=reply_to,
        )
        self._messages.append(message)
        return message

    def send(
        self,
        sender: Connection,
        to: Connection | str,
        cookie: int,
        *items: MessageItem,
        flags: int = 0,
        priority: int = 0,
        dst_id: int = 0,
    ) -> None:
        """A message that wants no answer."""
        message = self.message(to, cookie, *items, flags=flags, priority=priority, dst_id=dst_id)
        self.bus.send(sender, message)

    def signal(
        self, sender: Connection, to: Connection | str | None, cookie: int, *items: MessageItem
    ) -> None:
        self.bus.send(sender, self.message(to, cookie, *items, flags=MessageFlag.SIGNAL))

    def request(
        self,
        sender: Connection,
        to: Connection | str,
        cookie: int,
        *items: MessageItem,
        wait: int = SECOND,
        priority: int = 0,
    ) -> None:
        """A message that wants an answer within so many nanoseconds."""
        deadline = self.clock.now + wait
        flags = MessageFlag.EXPECT_REPLY
        message = self.message(to, cookie, *items, flags=flags, priority=priority, timeout_ns=deadline)
        self.bus.send(sender, message)

    def call(
        self,
        sender: Connection,
        to: Connection | str,
        cookie: int,
        *items: MessageItem,
        wait: int = SECOND,
        on_done: Callable[[SyncCall], None] | None = None,
    ) -> Waiter:
        """The same, waiting for the answer."""
        waiter = Waiter(sender, self.install)
        deadline = self.clock.now + wait
        message = self.message(to, cookie, *items, flags=MessageFlag.EXPECT_REPLY, timeout_ns=deadline)
        waiter.call = self.bus.call(sender, message, on_done or waiter.on_done)
        return waiter

    def reply(
        self, sender: Connection, to: Connection | str, reply_to: int, cookie: int, *items: MessageItem
    ) -> None:
        self.bus.send(sender, self.message(to, cookie, *items, reply_to=reply_to))

    def pass_time(self, nanoseconds: int = SECOND) -> None:
        self.clock.now += nanoseconds
        self.bus.expire_replies(self.clock.now)

    # Receiving

    def install(self, file: File) -> int:
        """A table of descriptors with room for all or for none; the first number is 10."""
        assert isinstance(file, SomeFile)
        assert not file.is_closed
        if not self.has_room_for_files:
            return -1
        self.installed.append(file.label)
        return 9 + len(self.installed)

    def receive(
        self, connection: Connection, flags: int = 0, priority: int = 0
    ) -> tuple[Mail | None, int, bool]:
        """One RECV: the message if there is one, how many were lost, and whether a descriptor is missing."""
        got = self.bus.receive(connection, flags, priority, self.install)
        pool = inbox_of(connection).pool
        if got.errno or flags & ReceiveFlag.DROP:
            assert got.errno in (0, EAGAIN)
            assert (got.offset, got.size) == (pool.size, 0)
            return None, got.lost, got.incomplete
        mail = look(connection, got.offset, got.size)
        if not flags & ReceiveFlag.PEEK:
            pool.free(got.offset)
        return mail, got.lost, got.incomplete

    def read(self, connection: Connection) -> list[str]:
        """Everything that waits, in order, and `lost n` before whatever RECV reported that with."""
        words = []
        while True:
            mail, lost, incomplete = self.receive(connection)
            if lost:
                words.append(f"lost {lost}")
            if mail is None:
                return words
            words.append(mail.words + (" incomplete" if incomplete else ""))

    def take(self, connection: Connection) -> Mail:
        """The next message, of which nothing is missing."""
        mail, lost, incomplete = self.receive(connection)
        assert mail is not None
        assert (lost, incomplete) == (0, False)
        return mail

    def drop(self, connection: Connection) -> int:
        """Throw the first message away; how many were lost before."""
        mail, lost, _ = self.receive(connection, ReceiveFlag.DROP)
        assert mail is None
        return lost

    # Being in the way

    def use_up_pool(self, connection: Connection) -> Callable[[], None]:
        """Leave no room in a pool, as somebody does who frees nothing; returns how to free it again."""
        pool = inbox_of(connection).pool
        offsets: list[int] = []
        for size in (PAGE_SIZE, 512, 64, 8):
            while not errno_of(partial(_take_room, pool, size, offsets)):
                pass
        assert pool.busy == pool.size

        def free() -> None:
            for offset in offsets:
                pool.free(offset)

        return free

    def use_up_quota(self, connection: Connection, by: User | None = None) -> Callable[[], None]:
        """Have somebody's messages take all the room there is; returns how to refund it again."""
        quota, user = connection.quota, by or self.domain.user(99)
        quota.force(user, quota.capacity + 1)
        return partial(quota.refund, user, quota.capacity + 1)

    # The end

    def assert_idle(self, *connections: Connection) -> None:
        """Nothing waits at these connections, nobody is charged there, and no request of theirs is open."""
        for connection in connections:
            inbox = inbox_of(connection)
            assert len(inbox) == 0
            assert not inbox._apart
            assert inbox.reserved == 0
            assert not any(slice_.is_held for slice_ in inbox.pool.slices())
            assert not connection.quota.shares
            assert connection.quota.total_memory == 0
            assert not connection.calls
            assert connection.outstanding == 0
            assert not any(window.trackers for window in connection.requests.values())
            assert not any(window.trackers for window in connection.duties.values())

    def assert_files_closed(self) -> None:
        assert [file.label for file in self._files if not file.is_closed] == []
        assert not any(message._holders for message in self._messages)

    def end(self) -> None:
        """Close the bus; then nothing is left of anybody."""
        self.bus.close()
        bus = self.bus
        assert not bus.connections
        assert not bus.monitors
        assert not bus.endpoints
        assert len(bus.names) == 0
        assert len(bus.policy) == 0
        assert not bus.matches
        assert bus.replies.next_deadline() is None
        assert bus.order.is_idle
        assert not bus.kernel_user.connections
        assert not bus.kernel_user.charged
        assert not self.domain.buses
        assert not self.domain._users
        self.assert_idle(*self._connections)
        for connection in self._connections:
            assert not connection.active
            assert not connection.names
            assert not connection.matches
            assert not connection.match_count
            assert not connection.requests
            assert not connection.duties
        self.assert_files_closed()


def running_world() -> Iterator[World]:
    """A world that ends with the test, for a fixture."""
    world = World()
    yield world
    world.end()


def errno_of(command: Callable[[], object]) -> str:
    """The name of the errno a command is refused with, or nothing."""
    try:
        command()
    except KdbusError as error:
        return "EOPNOTSUPP" if error.errno == EOPNOTSUPP else errorcode[error.errno]
    return ""


def everything() -> BloomMask:
    """A mask that every filter contains."""
    return BloomMask((bytes(64),))


def _take_room(pool: Pool, size: int, offsets: list[int]) -> None:
    offset, _ = pool.answer(bytes(size))
    offsets.append(offset)


def bulk(size: int) -> Vec:
    """Payload that takes room."""
    return Vec(bytes(size))
