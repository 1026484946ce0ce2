"""Every command as an `Operation`: the bytes that ask for it, and what its answer means.

Nothing in here sends or waits: the blocking and the asynchronous half perform
the same operations.  `HandleCommands` are those of a node that was opened,
`ConnectionCommands` those of a connection; the latter also keeps what belongs to
the connection itself: its pool, the next cookie, how many messages it lost, and
messages that were received for somebody who had stopped waiting.

A slice that was only peeked at may still be received: then it is the same
slice.  Its FREE must not overtake that, so while a RECV is under way such
slices are kept, and one that RECV returns belongs to what was received.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from errno import EAGAIN, EBADMSG, EINVAL
from functools import partial
from struct import Struct
from threading import RLock
from typing import Any, NamedTuple

from kdbus_core.abi import (
    CMD,
    CMD_FREE,
    CMD_HELLO,
    CMD_INFO,
    CMD_LIST,
    CMD_MATCH,
    CMD_RECV,
    CMD_SEND,
    NEGOTIATE,
    Command,
    HelloFlag,
    ItemType,
    ListFlag,
    MakeFlag,
    MatchFlag,
    NameFlag,
    ReceiveFlag,
    ReceiveReturnFlag,
)
from kdbus_core.domain import Bloom
from kdbus_core.errors import KdbusError
from kdbus_core.items import (
    ACCESS,
    BLOOM_PARAMETER,
    HEADER_SIZE,
    ID_NOTICE,
    NAME_NOTICE,
    NUMBER,
    build_item,
    build_numbers_item,
    build_string_item,
)
from kdbus_core.matches import BloomMask, DstIdMatch, IdMatch, IdNotice, MatchRule, NameMatch
from kdbus_core.metadata import Credentials, Snapshot, as_snapshot
from kdbus_core.policy import Access, PolicyEntry
from kdbus_core.transport.client.operations import Answer, Operation, check, close_fds, name_of, truncated
from kdbus_core.transport.client.received import Part, PoolView, Received, read_all
from kdbus_core.transport.client.records import Info, parse_first, parse_records
from kdbus_core.transport.client.sending import Draft, SendOptions, build_send
from kdbus_core.transport.protocol import INSPECT

LIST_ALL = ListFlag.UNIQUE | ListFlag.NAMES | ListFlag.ACTIVATORS | ListFlag.QUEUED
DEFAULT_CALL_TIMEOUT_NS = 25_000_000_000
"""How long a call waits for its reply unless it says so itself."""

_EMPTY_STRUCTS: dict[Command, Struct] = {
    Command.HELLO: CMD_HELLO,
    Command.FREE: CMD_FREE,
    Command.CONN_INFO: CMD_INFO,
    Command.BUS_CREATOR_INFO: CMD_INFO,
    Command.LIST: CMD_LIST,
    Command.SEND: CMD_SEND,
    Command.RECV: CMD_RECV,
    Command.MSG_CANCEL: CMD_MATCH,
    Command.MATCH_ADD: CMD_MATCH,
    Command.MATCH_REMOVE: CMD_MATCH,
}
"""Those whose struct is more than `CMD`."""

_FREE = int(Command.FREE)
_RECV = int(Command.RECV)
_SEND = int(Command.SEND)
_PEEK = int(ReceiveFlag.PEEK)
_DROP = int(ReceiveFlag.DROP)
_INCOMPLETE = int(ReceiveReturnFlag.INCOMPLETE_FDS)
_RECEIVE = CMD_RECV.pack(CMD_RECV.size, 0, 0, 0, 0, 0, 0, 0)


Infos = list[Info]


class Supported(NamedTuple):
    """What the broker knows of a command: its flags, and the types of the items it takes."""

    flags: int
    items: frozenset[int]


class Welcome(NamedTuple):
    """What HELLO brings: who we are, on which bus, and where to receive.  The descriptors are owned."""

    id: int
    id128: bytes
    bus_flags: MakeFlag
    bloom_offset: int
    bloom_size: int
    pool_size: int
    pool_fd: int
    event_fd: int

    def close(self) -> None:
        """Nobody wants it: the descriptors go."""
        close_fds((self.pool_fd, self.event_fd))


def _text(type: ItemType, text: str) -> bytes:
    try:
        return build_string_item(type, text)
    except UnicodeEncodeError as error:
        raise KdbusError(EINVAL, f"{text!r} cannot be a name") from error


def _simple(command: Command, items: Iterable[bytes] = (), flags: int = 0) -> bytes:
    rest = b"".join(items)
    return CMD.pack(CMD.size + len(rest), flags, 0) + rest


def _nothing(number: int, answer: Answer) -> None:
    check(answer, number)


def _done(command: Command, body: bytes) -> Operation[None]:
    """An operation with no other result than that it is done."""
    return Operation(command, body, partial(_nothing, command))


def build_free(offset: int) -> bytes:
    """The body of a FREE."""
    return CMD_FREE.pack(CMD_FREE.size, 0, 0, offset)


def build_accesses(accesses: Iterable[Access]) -> Iterable[bytes]:
    """POLICY_ACCESS items."""
    for access in accesses:
        yield build_item(ItemType.POLICY_ACCESS, ACCESS.pack(access.type, access.level, access.id))


def build_policy(policy: Sequence[PolicyEntry]) -> Iterable[bytes]:
    """NAME items, each followed by its accesses."""
    for entry in policy:
        yield _text(ItemType.NAME, entry.name)
        yield from build_accesses(entry.accesses)


def build_faked(faked: Credentials | Snapshot) -> Iterable[bytes]:
    """The items of HELLO that say for whom a connection speaks; what is unknown has none."""
    snapshot = as_snapshot(faked)
    if snapshot.creds is not None:
        yield build_numbers_item(ItemType.CREDS, *snapshot.creds)
    if snapshot.pids is not None:
        yield build_numbers_item(ItemType.PIDS, *snapshot.pids)
    if snapshot.auxgroups is not None:
        yield build_numbers_item(ItemType.AUXGROUPS, *snapshot.auxgroups)
    if snapshot.seclabel is not None:
        yield build_item(ItemType.SECLABEL, snapshot.seclabel + b"\0")


def build_rule(rule: MatchRule) -> bytes:
    """One rule of a match as an item."""
    match rule:
        case BloomMask(generations):
            return build_item(ItemType.BLOOM_MASK, b"".join(generations))
        case IdMatch(id):
            return build_numbers_item(ItemType.ID, id)
        case DstIdMatch(id):
            return build_numbers_item(ItemType.DST_ID, id)
        case NameMatch(name):
            return _text(ItemType.NAME, name)
        case IdNotice(type, id):
            return build_item(type, ID_NOTICE.pack(id, 0))
        case _:
            about = b"" if rule.name is None else rule.name.encode("latin-1", "replace") + b"\0"
            return build_item(rule.type, NAME_NOTICE.pack(rule.old_id, 0, rule.new_id, 0) + about)


def negotiate(command: Command) -> Operation[Supported]:
    """Ask what is supported of a command without doing anything."""
    struct = _EMPTY_STRUCTS.get(command, CMD)
    types = build_numbers_item(ItemType.NEGOTIATE, *ItemType)
    body = bytearray(struct.size) + types
    CMD.pack_into(body, 0, len(body), NEGOTIATE, 0)

    def finish(answer: Answer) -> Supported:
        check(answer, command)
        memory = answer.apply(body)
        numbers = NUMBER.iter_unpack(memory[struct.size + HEADER_SIZE :])
        return Supported(CMD.unpack_from(memory)[1], frozenset(type for (type,) in numbers if type))

    return Operation(command, bytes(body), finish)


class HandleCommands:
    """What can be asked of a node that was opened."""

    supported = staticmethod(negotiate)

    @staticmethod
    def make_bus(
        name: str,
        *,
        access: MakeFlag = MakeFlag(0),  # noqa: B008 - a constant
        bloom: Bloom = Bloom(),  # noqa: B008 - a constant
        creator_mask: int = 0,
        required: int = 0,
    ) -> Operation[None]:
        items = [
            _text(ItemType.MAKE_NAME, name),
            build_item(ItemType.BLOOM_PARAMETER, BLOOM_PARAMETER.pack(*bloom)),
            build_numbers_item(ItemType.ATTACH_FLAGS_SEND, creator_mask),
            build_numbers_item(ItemType.ATTACH_FLAGS_RECV, required),
        ]
        return _done(Command.BUS_MAKE, _simple(Command.BUS_MAKE, items, access))

    @staticmethod
    def make_node(command: Command, name: str, access: MakeFlag) -> Operation[None]:
        """DOMAIN_MAKE and ENDPOINT_MAKE."""
        return _done(command, _simple(command, [_text(ItemType.MAKE_NAME, name)], access))

    @staticmethod
    def update_endpoint(policy: Sequence[PolicyEntry]) -> Operation[None]:
        return _done(Command.ENDPOINT_UPDATE, _simple(Command.ENDPOINT_UPDATE, build_policy(policy)))

    @staticmethod
    def inspect() -> Operation[dict[str, Any]]:
        """INSPECT: the domain as plain values."""

        def finish(answer: Answer) -> dict[str, Any]:
            check(answer, INSPECT)
            if not answer.fds:
                raise truncated(INSPECT)
            try:
                state = json.loads(read_all(answer.fds[0]))
            except (OSError, ValueError) as error:
                raise KdbusError(EBADMSG, f"the state of the domain cannot be read: {error}") from error
            if not isinstance(state, dict):
                raise KdbusError(EBADMSG, "the state of the domain is not an object")
            return state

        return Operation(INSPECT, b"", finish)

    @staticmethod
    def hello(
        *,
        flags: HelloFlag,
        attach_send: int,
        attach_recv: int,
        pool_size: int,
        description: str,
        name: str | None,
        accesses: Iterable[Access],
        faked: Credentials | Snapshot | None,
    ) -> Operation[Welcome]:
        items = [] if name is None else [_text(ItemType.NAME, name)]
        if description:
            items.append(_text(ItemType.CONN_DESCRIPTION, description))
        items += build_accesses(accesses)
        if faked is not None:
            items += build_faked(faked)
        rest = b"".join(items)
        size = CMD_HELLO.size + len(rest)
        struct = CMD_HELLO.pack(size, flags, 0, attach_send, attach_recv, 0, 0, pool_size, 0, 0, bytes(16))

        def finish(answer: Answer) -> Welcome:
            check(answer, Command.HELLO)
            if len(answer.fds) < 2:
                raise truncated(Command.HELLO)
            _, _, _, _, _, bus_flags, id, _, offset, items_size, id128 = CMD_HELLO.unpack(
                answer.apply(bytearray(struct))
            )
            pool_fd, event_fd, *others = answer.take_fds()
            close_fds(others)
            return Welcome(id, id128, MakeFlag(bus_flags), offset, items_size, pool_size, pool_fd, event_fd)

        return Operation(Command.HELLO, struct + rest, finish, dispose=Welcome.close)


class ConnectionCommands:
    """What can be asked of a connection, and what it keeps.

    `free_soon` gives a slice back with the next command and `free_now` at once; neither waits.  `lost` counts
    messages that were reported lost.
    """

    def __init__(
        self, welcome: Welcome, free_soon: Callable[[int], None], free_now: Callable[[int], None]
    ) -> None:
        """Map the pool: it is closed with these commands; OSError.  The descriptors stay the caller's."""
        self.pool = PoolView(welcome.pool_fd, welcome.pool_size, free_soon, free_now)
        self.lost = 0
        self.left_over: deque[Received] = deque()
        """Received for somebody who had stopped waiting; first in the queue."""
        self._free_now = free_now
        self._next_cookie = itertools.count(1).__next__
        # A RECV is noted before it is sent, and a FREE sent in here, so one never overtakes the other.
        self._order = RLock()
        self._receiving: set[Receive] = set()
        self._peeked: list[int] = []
        try:
            data = self.pool.take(welcome.bloom_offset, welcome.bloom_size)
            self.bloom = Bloom(*parse_first(data, ItemType.BLOOM_PARAMETER, BLOOM_PARAMETER))
        except BaseException:
            self.pool.close()
            raise

    def close(self) -> None:
        """Give up what is kept."""
        while self.left_over:
            self.left_over.popleft().close()
        self.pool.close()

    # Messages

    def send(
        self,
        parts: Sequence[Part] | bytes | bytearray | memoryview,
        destination: int | str | None,
        options: SendOptions,
    ) -> Send:
        if not options.get("cookie"):
            options["cookie"] = self._next_cookie()
        return Send(build_send(parts, destination, **options))

    def call(
        self,
        parts: Sequence[Part] | bytes | bytearray | memoryview,
        destination: int | str | None,
        cancel_fd: int | None,
        options: SendOptions,
    ) -> tuple[Operation[Received], int]:
        """A synchronous SEND, and its cookie."""
        if not options.get("cookie"):
            options["cookie"] = self._next_cookie()
        if not options.get("timeout_ns"):
            options["timeout_ns"] = time.monotonic_ns() + DEFAULT_CALL_TIMEOUT_NS
        draft = build_send(parts, destination, is_sync=True, cancel_fd=cancel_fd, **options)
        operation = Operation(
            _SEND,
            draft.body,
            self._finish_call,
            fds=draft.fds,
            owned=draft.owned,
            flags=draft.flags,
            dispose=Received.close,
        )
        return operation, draft.cookie

    def _finish_call(self, answer: Answer) -> Received:
        check(answer, _SEND)
        fields = CMD_SEND.unpack(answer.apply(bytearray(CMD_SEND.size)))
        _, _, _, _, offset, size, flags = fields
        incomplete = bool(flags & _INCOMPLETE) or answer.is_truncated
        return Received(self.pool, offset, size, fds=answer.fds, incomplete=incomplete)

    def cancel(self, cookie: int) -> Operation[None]:
        return _done(Command.MSG_CANCEL, CMD_MATCH.pack(CMD_MATCH.size, 0, 0, cookie))

    def receive(self, flags: int, priority: int) -> Operation[Received | None]:
        if flags & _PEEK and not flags & _DROP:
            body = CMD_RECV.pack(CMD_RECV.size, flags, 0, priority, 0, 0, 0, 0)
            return Operation(_RECV, body, self._finish_peek)
        body = _RECEIVE
        if flags or priority:
            body = CMD_RECV.pack(CMD_RECV.size, flags, 0, priority, 0, 0, 0, 0)
        operation = Receive(self, body)
        with self._order:
            self._receiving.add(operation)
        return operation

    def drop(self) -> Operation[bool]:
        body = CMD_RECV.pack(CMD_RECV.size, _DROP, 0, 0, 0, 0, 0, 0)
        return Operation(_RECV, body, lambda answer: self._read(answer) is not None)

    def _read(self, answer: Answer) -> tuple[int, int, int, int] | None:
        """What RECV found, None when there is nothing: lost, offset, size, flags."""
        fields = answer.apply(bytearray(CMD_RECV.size)) if answer.count else None
        lost, offset, size, flags = (0, 0, 0, 0) if fields is None else CMD_RECV.unpack(fields)[4:]
        self.lost += lost
        if answer.errno == EAGAIN:
            return None
        check(answer, _RECV)
        return lost, offset, size, flags

    def _finish_receive(self, answer: Answer) -> Received | None:
        found = self._read(answer)
        if found is None:
            return None
        lost, offset, size, flags = found
        if not size:
            return None  # dropped
        with self._order:
            if offset in self._peeked:
                self._peeked.remove(offset)
        incomplete = bool(flags & _INCOMPLETE) or answer.is_truncated
        return Received(self.pool, offset, size, fds=answer.fds, incomplete=incomplete, lost=lost)

    def end_receive(self, operation: Receive) -> None:
        """A RECV is over, or will never be sent."""
        with self._order:
            self._receiving.discard(operation)
            while self._peeked and not self._receiving:
                self._free_now(self._peeked.pop())

    def _finish_peek(self, answer: Answer) -> Received | None:
        found = self._read(answer)
        if found is None:
            return None
        lost, offset, size, _ = found
        try:
            return Received(self.pool, offset, size, fds=[], lost=lost, is_peeked=True)
        finally:
            with self._order:
                if not self._receiving:
                    self._free_now(offset)
                elif offset not in self._peeked:
                    self._peeked.append(offset)

    def keep(self, received: Received | None) -> None:
        """Nobody waits for this any longer: whoever receives next gets it."""
        if received is not None:
            self.left_over.append(received)

    # Names and matches

    def name_acquire(self, name: str, flags: int) -> Operation[NameFlag]:
        body = _simple(Command.NAME_ACQUIRE, [_text(ItemType.NAME, name)], flags)

        def finish(answer: Answer) -> NameFlag:
            check(answer, Command.NAME_ACQUIRE)
            return NameFlag(CMD.unpack(answer.apply(bytearray(CMD.size)))[2])

        return Operation(Command.NAME_ACQUIRE, body, finish)

    def name_release(self, name: str) -> Operation[None]:
        return _done(Command.NAME_RELEASE, _simple(Command.NAME_RELEASE, [_text(ItemType.NAME, name)]))

    def match_add(self, cookie: int, rules: Sequence[MatchRule], *, replace: bool) -> Operation[None]:
        items = b"".join(build_rule(rule) for rule in rules)
        flags = MatchFlag.REPLACE if replace else 0
        struct = CMD_MATCH.pack(CMD_MATCH.size + len(items), flags, 0, cookie)
        return _done(Command.MATCH_ADD, struct + items)

    def match_remove(self, cookie: int) -> Operation[None]:
        return _done(Command.MATCH_REMOVE, CMD_MATCH.pack(CMD_MATCH.size, 0, 0, cookie))

    # The connection

    def update(
        self, attach_send: int | None, attach_recv: int | None, policy: Sequence[PolicyEntry] | None
    ) -> Operation[None]:
        items: list[bytes] = []
        if attach_send is not None:
            items.append(build_numbers_item(ItemType.ATTACH_FLAGS_SEND, attach_send))
        if attach_recv is not None:
            items.append(build_numbers_item(ItemType.ATTACH_FLAGS_RECV, attach_recv))
        if policy is not None:
            items += build_policy(policy)
        return _done(Command.UPDATE, _simple(Command.UPDATE, items))

    def byebye(self) -> Operation[None]:
        return _done(Command.BYEBYE, _simple(Command.BYEBYE))

    def sync(self) -> Operation[None]:
        """Nothing: its answer comes after those of everything before it."""
        return Operation(_FREE, build_free(self.pool.size), lambda _: None)

    # Questions

    def info(self, id: int | None, name: str | None, attach: int) -> Operation[Info]:
        items = b"" if name is None else _text(ItemType.NAME, name)
        return self._ask(Command.CONN_INFO, id or 0, attach, items)

    def creator_info(self, attach: int) -> Operation[Info]:
        return self._ask(Command.BUS_CREATOR_INFO, 0, attach, b"")

    def _ask(self, command: Command, id: int, attach: int, items: bytes) -> Operation[Info]:
        struct = CMD_INFO.pack(CMD_INFO.size + len(items), 0, 0, id, attach, 0, 0)

        def finish(answer: Answer) -> Info:
            check(answer, command)
            _, _, _, _, _, offset, size = CMD_INFO.unpack(answer.apply(bytearray(struct)))
            records = parse_records(self.pool.take(offset, size))
            if len(records) != 1:
                raise KdbusError(EBADMSG, f"{name_of(command)} brought {len(records)} records")
            return records[0]

        return Operation(command, struct + items, finish)

    def list(self, flags: int) -> Operation[Infos]:
        struct = CMD_LIST.pack(CMD_LIST.size, flags, 0, 0, 0)

        def finish(answer: Answer) -> Infos:
            check(answer, Command.LIST)
            _, _, _, offset, size = CMD_LIST.unpack(answer.apply(bytearray(struct)))
            return parse_records(self.pool.take(offset, size))

        return Operation(Command.LIST, struct, finish)


class Receive(Operation["Received | None"]):
    """A RECV that takes a message out of the queue: one that nobody waits for any longer is kept."""

    __slots__ = ("_commands",)

    def __init__(self, commands: ConnectionCommands, body: bytes) -> None:
        super().__init__(_RECV, body, commands._finish_receive, dispose=commands.keep)
        self._commands = commands

    def resolve(self, answer: Answer) -> None:
        """Make the message of the answer; one more RECV is over."""
        try:
            super().resolve(answer)
        finally:
            self._commands.end_receive(self)

    def withdraw(self) -> None:
        """It was never sent."""
        super().withdraw()
        self._commands.end_receive(self)


class Send(Operation[int]):
    """A SEND without a wait for the reply; its result is its cookie."""

    __slots__ = ("cookie",)

    def __init__(self, draft: Draft) -> None:
        super().__init__(
            _SEND, draft.body, self._finish_send, fds=draft.fds, owned=draft.owned, flags=draft.flags
        )
        self.cookie = draft.cookie

    def _finish_send(self, answer: Answer) -> int:
        if answer.errno:
            check(answer, _SEND)
        return self.cookie
