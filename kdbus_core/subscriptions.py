"""Subscriptions: which connections a message goes to beside its destination.

A connection subscribes with rules; a rule is a conjunction of conditions and
a connection receives a message once if any of its rules holds.  There are
three kinds of listener, kept apart because they are asked at different times:
*subscribers* get broadcasts, *eavesdroppers* get broadcasts and what is sent
to others, *monitors* get everything, refused messages included.

Rules are indexed by what they say exactly about path (or path namespace),
interface, member and sender, and below that by their first string argument,
so that rules which cannot match cost nothing, however many there are.

Looking a message up gives an `Audience`: the receivers that follow from the
header alone, and what is still to be compared with the body's arguments.  It
holds as long as the bus' audience generation does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from errno import EBADSLT
from typing import TYPE_CHECKING, Literal

from kdbus_core.errors import KdbusError
from kdbus_core.names import PRIMARY

if TYPE_CHECKING:
    from kdbus_core.connection import Connection

ArgumentKind = Literal["string", "path", "namespace"]

# A message's leading arguments: (type code, text) of a string, object path or
# signature, None for anything else.
Arguments = Sequence[tuple[str, str] | None]

DRIVER = 0
"""The sender or destination "the bus itself", as an id in a rule."""


@dataclass(frozen=True, slots=True)
class ArgumentTest:
    """A condition on the argument at `index` (0 to 63)."""

    index: int
    kind: ArgumentKind
    value: str

    def holds(self, arguments: Arguments) -> bool:
        argument = arguments[self.index] if self.index < len(arguments) else None
        if argument is None:
            return False
        code, text = argument
        value = self.value
        if self.kind == "path":
            return code in "so" and (
                text == value
                or (value[-1:] == "/" and text.startswith(value))
                or (text[-1:] == "/" and value.startswith(text))
            )
        if code != "s":
            return False
        if self.kind == "namespace":
            return text == value or text.startswith(value + ".")
        return text == value


@dataclass(frozen=True, slots=True)
class Rule:
    """One subscription; None is "any".

    `sender` and `destination` are a connection id or a well-known name, which
    holds while the connection owns that name.  `message_type` is the D-Bus
    message type.  At most one of `path` and `path_namespace` is given.
    """

    message_type: int | None = None
    sender: int | str | None = None
    interface: str | None = None
    member: str | None = None
    path: str | None = None
    path_namespace: str | None = None
    destination: int | str | None = None
    arguments: tuple[ArgumentTest, ...] = ()
    eavesdrop: bool = False


class Envelope:
    """What rules are compared with: a message's header and true origin.

    `sender` and `destination` None with `from_driver`, `to_driver` stand for
    the bus itself; a broadcast has neither destination nor `to_driver`.
    """

    __slots__ = ("destination", "interface", "member", "message_type", "path", "sender", "to_driver")

    def __init__(
        self,
        message_type: int,
        *,
        sender: Connection | None = None,
        destination: Connection | None = None,
        to_driver: bool = False,
        path: str | None = None,
        interface: str | None = None,
        member: str | None = None,
    ) -> None:
        self.message_type = message_type
        self.sender = sender
        self.destination = destination
        self.to_driver = to_driver
        self.path = path
        self.interface = interface
        self.member = member


class Entry:
    """A rule of one connection."""

    __slots__ = ("connection", "rule")

    def __init__(self, connection: Connection, rule: Rule) -> None:
        self.connection = connection
        self.rule = rule

    def arguments_hold(self, arguments: Arguments) -> bool:
        return all(test.holds(arguments) for test in self.rule.arguments)


class Audience:
    """Receivers of a message: `always`, and those its arguments decide on.

    `argument_count` says how many leading arguments `receivers` wants to see;
    with 0 the audience is `always` and nothing else.
    """

    __slots__ = ("_keyed", "_tested", "always", "argument_count")

    def __init__(
        self,
        always: tuple[Connection, ...],
        tested: tuple[Entry, ...],
        keyed: tuple[tuple[dict[str, dict[Entry, None]], Envelope], ...],
        argument_count: int,
    ) -> None:
        self.always = always
        self._tested = tested
        self._keyed = keyed
        self.argument_count = argument_count

    def receivers(self, arguments: Arguments) -> Iterable[Connection]:
        """Everybody who gets a message with these arguments, each once."""
        found = dict.fromkeys(self.always)
        for entry in self._tested:
            if entry.connection not in found and entry.arguments_hold(arguments):
                found[entry.connection] = None
        if self._keyed and arguments:
            first = arguments[0]
            if first is not None and first[0] == "s":
                for by_argument, envelope in self._keyed:
                    for entry in by_argument.get(first[1], ()):
                        if (
                            entry.connection not in found
                            and _header_holds(entry.rule, envelope)
                            and entry.arguments_hold(arguments)
                        ):
                            found[entry.connection] = None
        return found


EMPTY_AUDIENCE = Audience((), (), (), 0)

_Key = tuple[str | None, str | None, str | None, int | str | None, bool]


class _Bucket:
    __slots__ = ("argument_count", "by_argument", "plain")

    def __init__(self) -> None:
        self.argument_count = 0  # how many leading arguments any rule in here has looked at
        self.plain: dict[Entry, None] = {}
        self.by_argument: dict[str, dict[Entry, None]] = {}


def _key(rule: Rule) -> _Key:
    is_namespace = rule.path_namespace is not None
    path = rule.path_namespace if is_namespace else rule.path
    return path, rule.interface, rule.member, rule.sender, is_namespace


def _first_argument(rule: Rule) -> str | None:
    for test in rule.arguments:
        if test.index == 0 and test.kind == "string":
            return test.value
    return None


def _owns(connection: Connection, name: str) -> bool:
    mine = connection.names.get(name)
    return mine is not None and bool(mine.flags & PRIMARY)


def _is(connection: Connection | None, wanted: int | str) -> bool:
    if connection is None:
        return wanted == DRIVER
    return connection.id == wanted if isinstance(wanted, int) else _owns(connection, wanted)


def _header_holds(rule: Rule, envelope: Envelope) -> bool:
    """The conditions on the header that the index has not already decided."""
    if rule.message_type is not None and rule.message_type != envelope.message_type:
        return False
    if rule.destination is None:
        return True
    if envelope.destination is None and not envelope.to_driver:
        return False
    return _is(envelope.destination, rule.destination)


def _namespaces(path: str, longest: int) -> Iterator[str]:
    """The path and those above it, none longer than `longest`: a path may have any number of elements."""
    if len(path) <= longest:
        yield path
    end = path.rfind("/", 0, longest + 1)
    while end > 0:
        yield path[:end]
        end = path.rfind("/", 0, end)
    if path != "/":
        yield "/"


class _Index:
    """Rules of one kind of listener."""

    __slots__ = ("_buckets", "_longest_namespace", "_shapes")

    def __init__(self) -> None:
        self._buckets: dict[_Key, _Bucket] = {}
        self._longest_namespace = 1
        # How many buckets there are of each shape: which key parts are given.
        self._shapes: dict[tuple[bool, bool, bool, bool, bool], int] = {}

    def __bool__(self) -> bool:
        return bool(self._buckets)

    @staticmethod
    def _shape(key: _Key) -> tuple[bool, bool, bool, bool, bool]:
        path, interface, member, sender, is_namespace = key
        return path is not None, interface is not None, member is not None, sender is not None, is_namespace

    def add(self, entry: Entry) -> None:
        key = _key(entry.rule)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket()
            shape = self._shape(key)
            self._shapes[shape] = self._shapes.get(shape, 0) + 1
            if entry.rule.path_namespace is not None:
                self._longest_namespace = max(self._longest_namespace, len(entry.rule.path_namespace))
        for test in entry.rule.arguments:
            bucket.argument_count = max(bucket.argument_count, test.index + 1)
        first = _first_argument(entry.rule)
        if first is None:
            bucket.plain[entry] = None
        else:
            bucket.by_argument.setdefault(first, {})[entry] = None

    def remove(self, entry: Entry) -> None:
        key = _key(entry.rule)
        bucket = self._buckets[key]
        first = _first_argument(entry.rule)
        if first is None:
            del bucket.plain[entry]
        else:
            entries = bucket.by_argument[first]
            del entries[entry]
            if not entries:
                del bucket.by_argument[first]
        if not bucket.plain and not bucket.by_argument:
            del self._buckets[key]
            shape = self._shape(key)
            self._shapes[shape] -= 1
            if not self._shapes[shape]:
                del self._shapes[shape]

    def buckets(self, envelope: Envelope) -> Iterator[_Bucket]:
        """Every bucket whose key agrees with the message."""
        sender = envelope.sender
        senders: list[int | str] = [DRIVER]
        if sender is not None:
            senders = [sender.id]
            senders.extend(name for name, mine in sender.names.items() if mine.flags & PRIMARY)
        for with_path, with_interface, with_member, with_sender, is_namespace in self._shapes:
            paths: Iterable[str | None] = (None,)
            if with_path:
                if envelope.path is None:
                    continue
                paths = (
                    _namespaces(envelope.path, self._longest_namespace) if is_namespace else (envelope.path,)
                )
            if (with_interface and envelope.interface is None) or (with_member and envelope.member is None):
                continue
            interface = envelope.interface if with_interface else None
            member = envelope.member if with_member else None
            for path in paths:
                for origin in senders if with_sender else (None,):
                    bucket = self._buckets.get((path, interface, member, origin, is_namespace))
                    if bucket is not None:
                        yield bucket


class Subscriptions:
    """All subscriptions of a bus."""

    def __init__(self) -> None:
        self._subscribers = _Index()
        self._eavesdroppers = _Index()
        self._monitors = _Index()

    def _index(self, entry: Entry) -> _Index:
        if entry.connection.is_monitor:
            return self._monitors
        return self._eavesdroppers if entry.rule.eavesdrop else self._subscribers

    def add(self, connection: Connection, cookie: int, rule: Rule) -> None:
        """Subscribe; several rules may share a cookie."""
        entry = Entry(connection, rule)
        connection.subscriptions.setdefault(cookie, []).append(entry)
        connection.match_count += 1
        self._index(entry).add(entry)

    def remove(self, connection: Connection, cookie: int) -> list[Rule]:
        """Drop all rules under a cookie; EBADSLT when there is none."""
        entries = connection.subscriptions.pop(cookie, None)
        if entries is None:
            raise KdbusError(EBADSLT, f"connection {connection.id} has no match {cookie}")
        connection.match_count -= len(entries)
        for entry in entries:
            self._index(entry).remove(entry)
        return [entry.rule for entry in entries]

    def disconnect(self, connection: Connection) -> None:
        """Drop every rule of a connection."""
        for cookie in list(connection.subscriptions):
            self.remove(connection, cookie)

    @property
    def has_monitors(self) -> bool:
        return bool(self._monitors)

    @property
    def has_listeners(self) -> bool:
        """Whether anybody sees messages that are meant for others."""
        return bool(self._monitors) or bool(self._eavesdroppers)

    def broadcast_audience(self, envelope: Envelope) -> Audience:
        """Receivers of a message without destination."""
        return self._audience((self._subscribers, self._eavesdroppers, self._monitors), envelope)

    def unicast_audience(self, envelope: Envelope) -> Audience:
        """Who else receives a message that has a destination."""
        return self._audience((self._eavesdroppers, self._monitors), envelope)

    def eavesdropper_audience(self, envelope: Envelope) -> Audience:
        """Who but monitors listens to what others send to the bus itself."""
        return self._audience((self._eavesdroppers,), envelope)

    def monitor_audience(self, envelope: Envelope) -> Audience:
        """Which monitors see a message of the bus itself, or a refused one."""
        return self._audience((self._monitors,), envelope)

    @staticmethod
    def _audience(indices: tuple[_Index, ...], envelope: Envelope) -> Audience:
        always: dict[Connection, None] = {}
        tested: list[Entry] = []
        keyed: list[tuple[dict[str, dict[Entry, None]], Envelope]] = []
        count = 0
        for index in indices:
            if not index:
                continue
            for bucket in index.buckets(envelope):
                if bucket.by_argument:
                    keyed.append((bucket.by_argument, envelope))
                    count = max(count, bucket.argument_count)
                for entry in bucket.plain:
                    if entry.connection in always or not _header_holds(entry.rule, envelope):
                        continue
                    if entry.rule.arguments:
                        tested.append(entry)
                        count = max(count, bucket.argument_count)
                    else:
                        always[entry.connection] = None
        if not always and not tested and not keyed:
            return EMPTY_AUDIENCE
        remaining = tuple(entry for entry in tested if entry.connection not in always)
        return Audience(tuple(always), remaining, tuple(keyed), count if remaining or keyed else 0)
