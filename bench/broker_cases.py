"""What is measured of the broker: cases, each of them prepared for several sizes.

Preparing a case gives its operations, which do the same thing a number of times and leave everything as it
was. An operation that did not do what it says raises AssertionError, be it at once or when it is checked
afterwards; so no number stands for work that was not done.

The size is what grows from row to row: bytes of payload, connections, names, matches. All else stays as it
is, also who receives: where matching is measured one connection wants the message. "match" is asked with
signals that come again and again, "match, unheard-of" with such as have not been seen for long.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from typing import NamedTuple

from bench.broker_world import (
    FAR_AWAY_NS,
    INTERFACE,
    MEMBER,
    Program,
    check_idle,
    connect,
    inbox_of,
    install_nothing,
    make_bus,
    make_foreign_mask,
    make_mask,
    make_process,
    make_signal,
)
from kdbus_core import Bus, Connection
from kdbus_core.abi import (
    CMD_FREE,
    CMD_RECV,
    CMD_SEND,
    DST_BROADCAST,
    MATCH_ANY,
    MSG,
    PAYLOAD_DBUS,
    Command,
    ItemType,
    MessageFlag,
    NameFlag,
)
from kdbus_core.items import VEC, build_item
from kdbus_core.matches import (
    REMEMBERED,
    DstIdMatch,
    IdMatch,
    IdNotice,
    MatchRule,
    NameMatch,
    NameNotice,
)
from kdbus_core.message import Message, Vec
from kdbus_core.notifications import NameChange

RECEIVERS = 10
"""Who gets a broadcast."""
SUBSCRIBERS = 100
"""Among whom installed matches are distributed."""
SIGNALS = 256
"""Different signals, and different matches to add, which take turns."""

_EXPECT_REPLY = int(MessageFlag.EXPECT_REPLY)
_SIGNAL = int(MessageFlag.SIGNAL)
_REQUEST, _REPLY = 1, 2
"""Cookies; a request is over before the next one begins."""

_FAR_ID = 1_000_000
"""Ids from here on are nobody's."""

Run = Callable[[int], None]


class Operation(NamedTuple):
    """Something that can be done so many times; `check` says whether that left everything as it was."""

    title: str
    run: Run
    check: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Case:
    """Operations on a bus of a size; `unit` says what it counts, and growth is relative to the first size."""

    name: str
    title: str
    unit: str
    sizes: tuple[int, ...]
    prepare: Callable[[int], list[Operation]]


# Calls


def _name(number: int) -> str:
    return f"org.example.bench.Name{number}"


def _prepare_call(size: int, *, metadata: bool) -> list[Operation]:
    bus = make_bus()
    client, server = (connect(bus, make_process(pid), metadata=metadata) for pid in (100, 200))
    ends = (client, server)
    for number, end in enumerate(ends):
        bus.name_acquire(end, _name(number), 0)
    run = partial(_call, bus, client, server, bytes(size))
    return [Operation("call, reply", run, partial(check_idle, ends))]


def _call(bus: Bus, client: Connection, server: Connection, payload: bytes, times: int) -> None:
    send, receive = bus.send, bus.receive
    free_request, free_reply = inbox_of(server).pool.free, inbox_of(client).pool.free
    request_to, reply_to = server.id, client.id
    for _ in range(times):
        request = Message(
            [Vec(payload)], flags=_EXPECT_REPLY, dst_id=request_to, cookie=_REQUEST, timeout_ns=FAR_AWAY_NS
        )
        send(client, request)
        received = receive(server, 0, 0, install_nothing)
        assert not received.errno
        free_request(received.offset)
        send(server, Message([Vec(payload)], dst_id=reply_to, cookie=_REPLY, cookie_reply=_REQUEST))
        received = receive(client, 0, 0, install_nothing)
        assert not received.errno
        free_reply(received.offset)


_RECEIVED_OFFSET = 40
_FREE_OFFSET = 24
"""Where RECV says where the message lies, and where FREE wants it."""


class _Correspondent(Program):
    """A program that sends one message again and again, and receives; all its commands lie ready."""

    def address_to(self, other: Connection, payload: bytes, *, is_reply: bool) -> None:
        """Lay the message and the commands down."""
        vec = build_item(ItemType.PAYLOAD_VEC, VEC.pack(len(payload), self.put(payload)))
        message = MSG.pack(
            MSG.size + len(vec),
            0 if is_reply else _EXPECT_REPLY,
            0,
            other.id,
            0,
            PAYLOAD_DBUS,
            _REPLY if is_reply else _REQUEST,
            _REQUEST if is_reply else FAR_AWAY_NS,
        )
        self._send = self.put(CMD_SEND.pack(CMD_SEND.size, 0, 0, self.put(message + vec), 0, 0, 0))
        self._receive = self.put(CMD_RECV.pack(CMD_RECV.size, 0, 0, 0, 0, 0, 0, 0))
        self._free = self.put(CMD_FREE.pack(CMD_FREE.size, 0, 0, 0))
        self._from = self._receive + _RECEIVED_OFFSET - self.BASE
        self._to = self._free + _FREE_OFFSET - self.BASE

    def send(self) -> None:
        self.handle.ioctl(self, Command.SEND, self._send)

    def receive(self) -> None:
        """RECV and FREE; refused with EAGAIN when nothing has come."""
        self.handle.ioctl(self, Command.RECV, self._receive)
        self.memory[self._to : self._to + 8] = self.memory[self._from : self._from + 8]
        self.handle.ioctl(self, Command.FREE, self._free)


def _prepare_ioctl(size: int, *, metadata: bool) -> list[Operation]:
    bus = make_bus()
    client, server = (_Correspondent(bus, make_process(pid)) for pid in (100, 200))
    for number, program in enumerate((client, server)):
        program.hello(metadata=metadata)
        bus.name_acquire(program.connection, _name(number), 0)
    client.address_to(server.connection, bytes(size), is_reply=False)
    server.address_to(client.connection, bytes(size), is_reply=True)

    def run(times: int) -> None:
        for _ in range(times):
            client.send()
            server.receive()
            server.send()
            client.receive()

    return [Operation("call, reply", run, partial(check_idle, (client.connection, server.connection)))]


# Broadcasts


def _prepare_broadcast(size: int) -> list[Operation]:
    bus = make_bus()
    random = Random(size)
    sender = connect(bus)
    others = [connect(bus) for _ in range(size)]
    receivers = random.sample(others, RECEIVERS)
    for other in others:
        bus.match_add(other, 0, [make_foreign_mask(random)])
        bus.match_add(other, 1, [IdMatch(_FAR_ID + other.id)])
    for receiver in receivers:
        bus.match_add(receiver, 2, [make_mask(INTERFACE, MEMBER)])
    signals = [make_signal(number) for number in range(SIGNALS)]
    ends = [(receiver, inbox_of(receiver).pool.free) for receiver in receivers]
    send, receive = bus.send, bus.receive

    def run(times: int) -> None:
        for number in range(times):
            signal = signals[number % SIGNALS]
            send(sender, Message([Vec(bytes(8)), signal], flags=_SIGNAL, dst_id=DST_BROADCAST, cookie=1))
            for receiver, free in ends:
                received = receive(receiver, 0, 0, install_nothing)
                assert not received.errno
                free(received.offset)

    return [Operation(f"broadcast to {RECEIVERS}", run, partial(check_idle, others))]


# Names


def _prepare_names(size: int) -> list[Operation]:
    bus = make_bus()
    owners = [connect(bus) for _ in range(SUBSCRIBERS)]
    for number in range(size):
        bus.name_acquire(owners[number % SUBSCRIBERS], _name(number), 0)
    somebody = connect(bus)
    names = [_name(size + number) for number in range(SIGNALS)]

    def run(times: int) -> None:
        acquire, release = bus.name_acquire, bus.name_release
        for number in range(times):
            name = names[number % SIGNALS]
            flags = acquire(somebody, name, 0)
            assert flags & NameFlag.PRIMARY.value
            release(somebody, name)

    def check() -> None:
        assert len(bus.names) == size

    return [Operation("acquire, release", run, check)]


# Matches


class _Kind(NamedTuple):
    """A kind of rules: one that lets the message through, and many different ones that do not."""

    passing: MatchRule
    foreign: Callable[[], MatchRule]


def _bloom_masks(random: Random, sender: Connection) -> _Kind:
    return _Kind(make_mask(INTERFACE, MEMBER), partial(make_foreign_mask, random))


def _masks_of_paths(random: Random, sender: Connection) -> _Kind:
    numbers = count()
    return _Kind(
        make_mask(INTERFACE, MEMBER),
        lambda: make_mask(INTERFACE, MEMBER, f"path:/org/example/object/{next(numbers)}"),
    )


def _sender_ids(random: Random, sender: Connection) -> _Kind:
    ids = count(_FAR_ID)
    return _Kind(IdMatch(sender.id), lambda: IdMatch(next(ids)))


def _names(random: Random, sender: Connection) -> _Kind:
    numbers = count(1)
    return _Kind(NameMatch(_name(0)), lambda: NameMatch(_name(next(numbers))))


def _destinations(random: Random, sender: Connection) -> _Kind:
    ids = count(_FAR_ID)
    return _Kind(DstIdMatch(MATCH_ANY), lambda: DstIdMatch(next(ids)))


def _notices(random: Random, sender: Connection) -> _Kind:
    numbers = count(1)
    types = (
        ItemType.NAME_ADD,
        ItemType.NAME_REMOVE,
        ItemType.NAME_CHANGE,
        ItemType.ID_ADD,
        ItemType.ID_REMOVE,
    )

    def foreign() -> MatchRule:
        number = next(numbers)
        type = types[number % len(types)]
        if type in (ItemType.ID_ADD, ItemType.ID_REMOVE):
            return IdNotice(type, _FAR_ID + number)
        return NameNotice(type, MATCH_ANY, MATCH_ANY, _name(number))

    return _Kind(NameNotice(ItemType.NAME_ADD, MATCH_ANY, MATCH_ANY, _name(0)), foreign)


def _prepare_matches(
    size: int, *, kind: Callable[[Random, Connection], _Kind], is_notified: bool = False
) -> list[Operation]:
    bus = make_bus()
    sender, listener, newcomer = (connect(bus) for _ in range(3))
    bus.name_acquire(sender, _name(0), 0)
    rules = kind(Random(size), sender)
    subscribers = [connect(bus) for _ in range(SUBSCRIBERS)]
    for number in range(size - 1):
        bus.match_add(subscribers[number % SUBSCRIBERS], number, [rules.foreign()])
    bus.match_add(listener, 0, [rules.passing])
    ask = _ask_for_notified(bus, sender) if is_notified else _ask_for_recipients(bus, sender, SIGNALS)
    ask_anew = ask if is_notified else _ask_for_recipients(bus, sender, 4 * REMEMBERED)

    def match(times: int) -> None:
        for number in range(times):
            assert ask(number) == [listener]

    following = count()  # goes on from run to run, so that none finds what the one before has asked

    def match_anew(times: int) -> None:
        for _ in range(times):
            assert listener in ask_anew(next(following))

    more = [[rules.foreign()] for _ in range(SIGNALS)]

    def change(times: int) -> None:
        add, remove = bus.match_add, bus.match_remove
        for number in range(times):
            add(newcomer, number, more[number % SIGNALS])
            remove(newcomer, number)

    def check() -> None:
        assert not newcomer.match_count
        assert listener.match_count + sum(other.match_count for other in subscribers) == size

    operations = [Operation("match", match, check), Operation("add, remove", change, check)]
    if not is_notified:
        operations.insert(1, Operation("match, unheard-of", match_anew, check))
    return operations


def _ask_for_recipients(bus: Bus, sender: Connection, different: int) -> Callable[[int], list[Connection]]:
    """With so many different signals one after the other, and then the first one again."""
    signals = [make_signal(number % SIGNALS, argument=number) for number in range(different)]
    recipients = bus.matches.recipients
    return lambda number: recipients(sender, signals[number % different], DST_BROADCAST)


def _ask_for_notified(bus: Bus, sender: Connection) -> Callable[[int], list[Connection]]:
    change = NameChange(_name(0), None, 0, sender, NameFlag.PRIMARY.value)
    notified = bus.matches.notified
    return lambda number: notified(change)


_PAYLOADS = (8, 8192)
_CONNECTIONS = (10, 100, 1000)
_NAMES = (100, 1000, 10_000)
_MATCHES = (1000, 10_000, 100_000)


def _match_case(
    name: str, what: str, kind: Callable[[Random, Connection], _Kind], *, is_notified: bool = False
) -> Case:
    prepare = partial(_prepare_matches, kind=kind, is_notified=is_notified)
    return Case(name, f"who wants a message, among many who ask for {what}", "matches", _MATCHES, prepare)


_CASES: Sequence[Case] = (
    Case("call", "call and reply", "bytes", _PAYLOADS, partial(_prepare_call, metadata=False)),
    Case("call-metadata", "call and reply", "bytes", _PAYLOADS, partial(_prepare_call, metadata=True)),
    Case("ioctl", "the same as bytes", "bytes", _PAYLOADS, partial(_prepare_ioctl, metadata=False)),
    Case("ioctl-metadata", "the same as bytes", "bytes", _PAYLOADS, partial(_prepare_ioctl, metadata=True)),
    Case("broadcast", "a signal to ten of many", "connections", _CONNECTIONS, _prepare_broadcast),
    Case("names", "a name among many", "names", _NAMES, _prepare_names),
    _match_case("match-bloom", "other things", _bloom_masks),
    _match_case("match-paths", "the same signal of other objects", _masks_of_paths),
    _match_case("match-senders", "other senders", _sender_ids),
    _match_case("match-names", "other owners of names", _names),
    _match_case("match-destinations", "other destinations", _destinations),
    _match_case("match-notices", "other notifications", _notices, is_notified=True),
)

CASES = {case.name: case for case in _CASES}
"""All cases by name, in the order in which they are measured."""
