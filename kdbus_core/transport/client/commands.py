"""Every command of a connection as an `Operation`: the bytes that ask for it, and what its answer means.

Nothing in here sends or waits: the blocking and the asynchronous half perform
the same operations.  `ConnectionCommands` also keeps what belongs to the
connection itself: its pool, the next cookie, how many messages it lost, and
messages that were received for somebody who had stopped waiting.

A slice that was only peeked at may still be received: then it is the same
slice.  Its FREE must not overtake that, so while a RECV is under way such
slices are kept, and one that RECV returns belongs to what was received.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from errno import EAGAIN, EBADMSG
from threading import RLock

from kdbus_core.abi import (
    CMD,
    CMD_INFO,
    CMD_LIST,
    CMD_MATCH,
    CMD_RECV,
    CMD_SEND,
    Command,
    ItemType,
    ListFlag,
    MatchFlag,
    NameFlag,
    ReceiveFlag,
    ReceiveReturnFlag,
)
from kdbus_core.domain import Bloom
from kdbus_core.errors import KdbusError
from kdbus_core.items import (
    BLOOM_PARAMETER,
    build_numbers_item,
)
from kdbus_core.matches import MatchRule
from kdbus_core.policy import PolicyEntry
from kdbus_core.transport.client.building import (
    build_free,
    build_policy,
    build_rule,
    build_simple,
    build_text,
)
from kdbus_core.transport.client.handle_commands import Welcome
from kdbus_core.transport.client.operations import Answer, Operation, check, name_of, plain
from kdbus_core.transport.client.pool import PoolView
from kdbus_core.transport.client.received import Part, Received
from kdbus_core.transport.client.records import Info, parse_first, parse_records
from kdbus_core.transport.client.sending import Draft, SendOptions, build_send

LIST_ALL = ListFlag.UNIQUE | ListFlag.NAMES | ListFlag.ACTIVATORS | ListFlag.QUEUED
DEFAULT_CALL_TIMEOUT_NS = 25_000_000_000
"""How long a call waits for its reply unless it says so itself."""

_FREE = int(Command.FREE)
_RECV = int(Command.RECV)
_SEND = int(Command.SEND)
_PEEK = int(ReceiveFlag.PEEK)
_DROP = int(ReceiveFlag.DROP)
_INCOMPLETE = int(ReceiveReturnFlag.INCOMPLETE_FDS)
_RECEIVE = CMD_RECV.pack(CMD_RECV.size, 0, 0, 0, 0, 0, 0, 0)


Infos = list[Info]


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
        self._id = welcome.id
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
        draft = build_send(parts, destination, **options)
        is_elsewhere = isinstance(destination, int) and destination != self._id
        return Send(draft, may_echo=not is_elsewhere or bool(options.get("timeout_ns")))

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
        return plain(Command.MSG_CANCEL, CMD_MATCH.pack(CMD_MATCH.size, 0, 0, cookie))

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
        body = build_simple([build_text(ItemType.NAME, name)], flags)

        def finish(answer: Answer) -> NameFlag:
            check(answer, Command.NAME_ACQUIRE)
            return NameFlag(CMD.unpack(answer.apply(bytearray(CMD.size)))[2])

        return Operation(Command.NAME_ACQUIRE, body, finish)

    def name_release(self, name: str) -> Operation[None]:
        return plain(Command.NAME_RELEASE, build_simple([build_text(ItemType.NAME, name)]))

    def match_add(self, cookie: int, rules: Sequence[MatchRule], *, replace: bool) -> Operation[None]:
        items = b"".join(build_rule(rule) for rule in rules)
        flags = MatchFlag.REPLACE if replace else 0
        struct = CMD_MATCH.pack(CMD_MATCH.size + len(items), flags, 0, cookie)
        return plain(Command.MATCH_ADD, struct + items)

    def match_remove(self, cookie: int) -> Operation[None]:
        return plain(Command.MATCH_REMOVE, CMD_MATCH.pack(CMD_MATCH.size, 0, 0, cookie))

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
        return plain(Command.UPDATE, build_simple(items))

    def byebye(self) -> Operation[None]:
        return plain(Command.BYEBYE, build_simple())

    def sync(self) -> Operation[None]:
        """Nothing: its answer comes after those of everything before it."""
        return Operation(_FREE, build_free(self.pool.size), lambda _: None)

    # Questions

    def info(self, id: int | None, name: str | None, attach: int) -> Operation[Info]:
        items = b"" if name is None else build_text(ItemType.NAME, name)
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
    """A SEND without a wait for the reply; its result is its cookie.

    `may_echo`: whoever sends it may receive something at once, the message itself or word of its reply.
    """

    __slots__ = ("cookie", "may_echo")

    def __init__(self, draft: Draft, *, may_echo: bool) -> None:
        super().__init__(
            _SEND, draft.body, self._finish_send, fds=draft.fds, owned=draft.owned, flags=draft.flags
        )
        self.cookie = draft.cookie
        self.may_echo = may_echo

    def _finish_send(self, answer: Answer) -> int:
        if answer.errno:
            check(answer, _SEND)
        return self.cookie
