"""What can be asked for through a connected handle.

Which kind of connection may use a command is decided before any of its bytes
are read.  Then the command is read, asked of the bus, and its result written
into the caller's struct.  An answer that is too long for a struct is put into
the caller's pool, who frees it; a result that cannot be written gives its
slice back, and RECV makes sure before it takes a message out of the queue.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EDOM, EINVAL, EOPNOTSUPP
from struct import Struct
from typing import TYPE_CHECKING

from kdbus_core.abi import Command, ItemType, MatchFlag, ReceiveReturnFlag
from kdbus_core.caller import Caller
from kdbus_core.commands.forms import FORMS, Arguments, parse
from kdbus_core.commands.identities import parse_policy
from kdbus_core.commands.send import send
from kdbus_core.errors import KdbusError
from kdbus_core.items import ID_NOTICE, NAME_NOTICE, Item
from kdbus_core.listing import connection_record, creator_record, list_records
from kdbus_core.matches import BloomMask, DstIdMatch, IdMatch, IdNotice, MatchRule, NameMatch, NameNotice
from kdbus_core.names import is_valid_name
from kdbus_core.pool import Pool

if TYPE_CHECKING:
    from kdbus_core.connection import Connection
    from kdbus_core.metadata import Origin
    from kdbus_core.synchronous import SyncCall

Handler = Callable[["Connection", Caller, Arguments], None]

_ORDINARY_ONLY = frozenset(
    {
        Command.BYEBYE,
        Command.SEND,
        Command.MSG_CANCEL,
        Command.NAME_ACQUIRE,
        Command.NAME_RELEASE,
        Command.MATCH_ADD,
        Command.MATCH_REMOVE,
    }
)

_INFO_RESULT_OFFSET = 40
_LIST_RESULT_OFFSET = 24
_RECEIVE_RESULT_OFFSET = 32
_SLICE = Struct("=2Q")
"""Where an answer lies: offset, size."""
_RECEIVED = Struct("=4Q")
"""dropped_msgs, then where the message lies: offset, size, flags."""


def perform(
    connection: Connection,
    command: Command,
    caller: Caller,
    address: int,
    on_done: Callable[[int], None] | None,
    origin: Origin | None = None,
) -> SyncCall | None:
    """Perform a command that `HANDLERS` has, or SEND, which may still be waiting when this returns."""
    if not connection.is_ordinary and _is_refused(connection, command):
        raise KdbusError(EOPNOTSUPP, f"connection {connection.id} is not of a kind that can {command.name}")
    arguments = parse(FORMS[command], caller, address)
    if command is Command.SEND:
        return send(connection, caller, arguments, on_done, origin)
    if not arguments.negotiates:
        HANDLERS[command](connection, caller, arguments)
    return None


def _is_refused(connection: Connection, command: Command) -> bool:
    return command in _ORDINARY_ONLY or (command is Command.RECV and connection.is_policy_holder)


def _pool(connection: Connection) -> Pool:
    assert connection.inbox is not None, "what has a handle has a pool"
    return connection.inbox.pool


def _answer(connection: Connection, command: Arguments, result_offset: int, data: bytes) -> None:
    """Put an answer into the pool and say where; EXFULL."""
    pool = _pool(connection)
    offset, size = pool.answer(data)
    try:
        command.write(result_offset, _SLICE.pack(offset, size))
    except KdbusError:
        pool.free(offset)
        raise


# The connection


def _update(connection: Connection, caller: Caller, command: Arguments) -> None:
    attach_send = command.number(ItemType.ATTACH_FLAGS_SEND)
    attach_recv = command.number(ItemType.ATTACH_FLAGS_RECV)
    has_policy = any(item.type in (ItemType.NAME, ItemType.POLICY_ACCESS) for item in command.items)
    policy = None
    if has_policy:
        # Where a policy has no place that is the error, whatever is wrong with it.
        is_welcome = connection.is_policy_holder and attach_send is None and attach_recv is None
        policy = parse_policy(command.items, connection.process, max_names=1) if is_welcome else []
    bus = connection.endpoint.bus
    bus.update(connection, attach_send=attach_send, attach_recv=attach_recv, policy=policy)


def _byebye(connection: Connection, caller: Caller, command: Arguments) -> None:
    connection.endpoint.bus.byebye(connection)


def _free(connection: Connection, caller: Caller, command: Arguments) -> None:
    _pool(connection).free(command.fields[0])


# Questions


def _connection_info(connection: Connection, caller: Caller, command: Arguments) -> None:
    id, mask, *_ = command.fields
    record = connection_record(connection.endpoint.bus, connection, id=id, name=command.name(), mask=mask)
    _answer(connection, command, _INFO_RESULT_OFFSET, record)


def _creator_info(connection: Connection, caller: Caller, command: Arguments) -> None:
    _, mask, *_ = command.fields
    _answer(
        connection, command, _INFO_RESULT_OFFSET, creator_record(connection.endpoint.bus, connection, mask)
    )


def _list(connection: Connection, caller: Caller, command: Arguments) -> None:
    room = _pool(connection).size
    records = list_records(connection.endpoint.bus, connection, command.flags, room)
    _answer(connection, command, _LIST_RESULT_OFFSET, records)


# Messages


def _receive(connection: Connection, caller: Caller, command: Arguments) -> None:
    command.write(_RECEIVE_RESULT_OFFSET, bytes(_RECEIVED.size))
    received = connection.endpoint.bus.receive(connection, command.flags, command.fields[0], caller.install)
    flags = ReceiveReturnFlag.INCOMPLETE_FDS if received.incomplete else 0
    command.write(
        _RECEIVE_RESULT_OFFSET, _RECEIVED.pack(received.lost, received.offset, received.size, flags)
    )
    command.return_flags(ReceiveReturnFlag.DROPPED_MSGS if received.lost else 0)
    if received.errno:
        raise KdbusError(received.errno, "there is nothing to receive")


def _cancel(connection: Connection, caller: Caller, command: Arguments) -> None:
    connection.endpoint.bus.cancel(connection, command.fields[0])


# Names


def _name_acquire(connection: Connection, caller: Caller, command: Arguments) -> None:
    bus = connection.endpoint.bus
    command.return_flags(bus.name_acquire(connection, command.name() or "", command.flags))


def _name_release(connection: Connection, caller: Caller, command: Arguments) -> None:
    connection.endpoint.bus.name_release(connection, command.name() or "")


# Matches


def _match_add(connection: Connection, caller: Caller, command: Arguments) -> None:
    bus = connection.endpoint.bus
    rules = [parse_rule(item, bus.bloom.size) for item in command.items]
    replace = bool(command.flags & MatchFlag.REPLACE)
    bus.match_add(connection, command.fields[0], rules, replace=replace)


def _match_remove(connection: Connection, caller: Caller, command: Arguments) -> None:
    connection.endpoint.bus.match_remove(connection, command.fields[0])


def parse_rule(item: Item, bloom_size: int) -> MatchRule:
    """One rule of a match: EDOM for a mask that is not of the bus' filter size, EINVAL for a bad name."""
    match item.type:
        case ItemType.BLOOM_MASK:
            mask = item.payload
            if not mask or len(mask) % bloom_size:
                raise KdbusError(EDOM, f"a mask of {len(mask)} bytes where a filter has {bloom_size}")
            return BloomMask(
                tuple(mask[start : start + bloom_size] for start in range(0, len(mask), bloom_size))
            )
        case ItemType.ID:
            return IdMatch(item.number)
        case ItemType.DST_ID:
            return DstIdMatch(item.number)
        case ItemType.NAME:
            if not is_valid_name(item.string):
                raise KdbusError(EINVAL, f"{item.string!r} is not a well-known name")
            return NameMatch(item.string)
        case ItemType.ID_ADD:
            return IdNotice(ItemType.ID_ADD, ID_NOTICE.unpack(item.payload)[0])
        case ItemType.ID_REMOVE:
            return IdNotice(ItemType.ID_REMOVE, ID_NOTICE.unpack(item.payload)[0])
        case ItemType.NAME_ADD:
            return NameNotice(ItemType.NAME_ADD, *_parse_name_notice(item))
        case ItemType.NAME_REMOVE:
            return NameNotice(ItemType.NAME_REMOVE, *_parse_name_notice(item))
        case _:
            return NameNotice(ItemType.NAME_CHANGE, *_parse_name_notice(item))


def _parse_name_notice(item: Item) -> tuple[int, int, str | None]:
    """The old and the new owner, and the name if there is one; flags do not matter."""
    old_id, _, new_id, _ = NAME_NOTICE.unpack_from(item.payload)
    return old_id, new_id, item.string[NAME_NOTICE.size :] if len(item.payload) > NAME_NOTICE.size else None


HANDLERS: dict[Command, Handler] = {
    Command.UPDATE: _update,
    Command.BYEBYE: _byebye,
    Command.FREE: _free,
    Command.CONN_INFO: _connection_info,
    Command.BUS_CREATOR_INFO: _creator_info,
    Command.LIST: _list,
    Command.RECV: _receive,
    Command.MSG_CANCEL: _cancel,
    Command.NAME_ACQUIRE: _name_acquire,
    Command.NAME_RELEASE: _name_release,
    Command.MATCH_ADD: _match_add,
    Command.MATCH_REMOVE: _match_remove,
}
"""All commands of a connection but SEND."""
