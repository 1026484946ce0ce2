"""What can be asked of a node that was opened, as operations: making something of it, and asking about it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from errno import EBADMSG
from struct import Struct
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
    MakeFlag,
)
from kdbus_core.domain import Bloom
from kdbus_core.errors import KdbusError
from kdbus_core.items import BLOOM_PARAMETER, HEADER_SIZE, NUMBER, build_item, build_numbers_item
from kdbus_core.metadata import Credentials, Snapshot, as_snapshot
from kdbus_core.policy import Access, PolicyEntry
from kdbus_core.transport.client.building import build_accesses, build_policy, build_simple, build_text
from kdbus_core.transport.client.operations import Answer, Operation, check, close_fds, plain, truncated
from kdbus_core.transport.client.pool import read_all
from kdbus_core.transport.protocol import INSPECT


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
            build_text(ItemType.MAKE_NAME, name),
            build_item(ItemType.BLOOM_PARAMETER, BLOOM_PARAMETER.pack(*bloom)),
            build_numbers_item(ItemType.ATTACH_FLAGS_SEND, creator_mask),
            build_numbers_item(ItemType.ATTACH_FLAGS_RECV, required),
        ]
        return plain(Command.BUS_MAKE, build_simple(items, access))

    @staticmethod
    def make_node(command: Command, name: str, access: MakeFlag) -> Operation[None]:
        """DOMAIN_MAKE and ENDPOINT_MAKE."""
        return plain(command, build_simple([build_text(ItemType.MAKE_NAME, name)], access))

    @staticmethod
    def update_endpoint(policy: Sequence[PolicyEntry]) -> Operation[None]:
        return plain(Command.ENDPOINT_UPDATE, build_simple(build_policy(policy)))

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
        items = [] if name is None else [build_text(ItemType.NAME, name)]
        if description:
            items.append(build_text(ItemType.CONN_DESCRIPTION, description))
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
