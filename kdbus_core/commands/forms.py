"""What a command looks like, and how its bytes are read.

Every command is a fixed struct with flags, followed by items.  `FORMS` says
for each which flags and items it takes; `parse` reads any of them, and the
message inside a SEND, by one algorithm in which the order of the checks is
part of the interface: address, size, flags, items one after the other, then
what has to be there.

*Negotiation* is how a caller learns what is supported without doing it: with
the highest bit of the flags set, the flags are overwritten with those that
exist and nothing else happens.  A NEGOTIATE item is a list of item types in
which those that the command does not take are overwritten by 0, and that
whether or not the bit is set.

The flags a command returns are 0 in the caller's memory from the moment its
struct has been read, so a command that fails has returned none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from errno import EFAULT, EINVAL, EMSGSIZE
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

from kdbus_core import abi
from kdbus_core.abi import (
    NEGOTIATE,
    Command,
    HelloFlag,
    ItemType,
    ListFlag,
    MakeFlag,
    MatchFlag,
    MessageFlag,
    ReceiveFlag,
    SendFlag,
)
from kdbus_core.caller import Caller
from kdbus_core.errors import KdbusError
from kdbus_core.items import HEADER_SIZE, NUMBER, Item, iterate_items, validate_item

ADDRESS_LIMIT = 1 << 63
"""The caller's memory lies below; what is above belongs to the machine's kernel."""
RETURN_FLAGS_OFFSET = 16
_FLAGS_OFFSET = 8
_NO_FLAGS = bytes(8)
MAX_REMEMBERED = 512
"""Bytes of items up to which they are remembered, with what was found in them."""


class Occurs(NamedTuple):
    """How often an item may be in a command."""

    repeatable: bool
    mandatory: bool


OPTIONAL = Occurs(repeatable=False, mandatory=False)
MANDATORY = Occurs(repeatable=False, mandatory=True)
REPEATABLE = Occurs(repeatable=True, mandatory=False)


class Form:
    """The fixed struct of a command or message, the flags and the items that it takes."""

    __slots__ = ("flags", "items", "mandatory", "refused_flags", "returns_flags", "size", "struct")

    def __init__(
        self,
        struct: Struct,
        flags: int = 0,
        items: Mapping[int, Occurs] | None = None,
        *,
        returns_flags: bool = True,
    ) -> None:
        self.struct = struct
        self.size = struct.size
        self.flags = int(flags)
        self.refused_flags = ~(self.flags | NEGOTIATE)
        self.items: dict[int, Occurs] = {ItemType.NEGOTIATE: OPTIONAL, **(items or {})}
        self.mandatory = tuple(type for type, occurs in self.items.items() if occurs.mandatory)
        self.returns_flags = returns_flags


_ACCESS_FLAGS = MakeFlag.ACCESS_GROUP | MakeFlag.ACCESS_WORLD
_POLICY: dict[int, Occurs] = {ItemType.NAME: REPEATABLE, ItemType.POLICY_ACCESS: REPEATABLE}

FORMS: dict[Command, Form] = {
    Command.BUS_MAKE: Form(
        abi.CMD,
        _ACCESS_FLAGS | MakeFlag.FINAL_METADATA,
        {
            ItemType.MAKE_NAME: MANDATORY,
            ItemType.BLOOM_PARAMETER: MANDATORY,
            ItemType.ATTACH_FLAGS_SEND: OPTIONAL,
            ItemType.ATTACH_FLAGS_RECV: OPTIONAL,
        },
    ),
    Command.DOMAIN_MAKE: Form(abi.CMD, _ACCESS_FLAGS, {ItemType.MAKE_NAME: MANDATORY}),
    Command.ENDPOINT_MAKE: Form(abi.CMD, _ACCESS_FLAGS, {ItemType.MAKE_NAME: MANDATORY}),
    Command.ENDPOINT_UPDATE: Form(abi.CMD, 0, _POLICY),
    Command.HELLO: Form(
        abi.CMD_HELLO,
        HelloFlag.ACCEPT_FD | HelloFlag.ACTIVATOR | HelloFlag.POLICY_HOLDER | HelloFlag.MONITOR,
        {
            ItemType.NAME: OPTIONAL,
            ItemType.CREDS: OPTIONAL,
            ItemType.PIDS: OPTIONAL,
            ItemType.AUXGROUPS: OPTIONAL,
            ItemType.SECLABEL: OPTIONAL,
            ItemType.CONN_DESCRIPTION: OPTIONAL,
            ItemType.POLICY_ACCESS: REPEATABLE,
        },
    ),
    Command.UPDATE: Form(
        abi.CMD,
        0,
        {ItemType.ATTACH_FLAGS_SEND: OPTIONAL, ItemType.ATTACH_FLAGS_RECV: OPTIONAL, **_POLICY},
    ),
    Command.BYEBYE: Form(abi.CMD),
    Command.FREE: Form(abi.CMD_FREE),
    Command.CONN_INFO: Form(abi.CMD_INFO, 0, {ItemType.NAME: OPTIONAL}),
    Command.BUS_CREATOR_INFO: Form(abi.CMD_INFO),
    Command.LIST: Form(
        abi.CMD_LIST, ListFlag.UNIQUE | ListFlag.NAMES | ListFlag.ACTIVATORS | ListFlag.QUEUED
    ),
    Command.SEND: Form(abi.CMD_SEND, SendFlag.SYNC_REPLY, {ItemType.CANCEL_FD: OPTIONAL}),
    Command.RECV: Form(abi.CMD_RECV, ReceiveFlag.PEEK | ReceiveFlag.DROP | ReceiveFlag.USE_PRIORITY),
    Command.MSG_CANCEL: Form(abi.CMD_MATCH),
    Command.NAME_ACQUIRE: Form(abi.CMD, abi.NAME_ACQUIRE_FLAGS, {ItemType.NAME: MANDATORY}),
    Command.NAME_RELEASE: Form(abi.CMD, 0, {ItemType.NAME: MANDATORY}),
    Command.MATCH_ADD: Form(
        abi.CMD_MATCH,
        MatchFlag.REPLACE,
        {
            ItemType.BLOOM_MASK: REPEATABLE,
            ItemType.NAME: REPEATABLE,
            ItemType.ID: REPEATABLE,
            ItemType.DST_ID: REPEATABLE,
            ItemType.NAME_ADD: REPEATABLE,
            ItemType.NAME_REMOVE: REPEATABLE,
            ItemType.NAME_CHANGE: REPEATABLE,
            ItemType.ID_ADD: REPEATABLE,
            ItemType.ID_REMOVE: REPEATABLE,
        },
    ),
    Command.MATCH_REMOVE: Form(abi.CMD_MATCH),
}

MESSAGE = Form(
    abi.MSG,
    MessageFlag.EXPECT_REPLY | MessageFlag.NO_AUTO_START | MessageFlag.SIGNAL,
    {
        ItemType.PAYLOAD_VEC: REPEATABLE,
        ItemType.PAYLOAD_MEMFD: REPEATABLE,
        ItemType.FDS: OPTIONAL,
        ItemType.BLOOM_FILTER: OPTIONAL,
        ItemType.DST_NAME: OPTIONAL,
    },
    returns_flags=False,
)
"""The message that SEND points to; it has no flags to return."""


class Items:
    """What follows the struct of a command: `all` its items but NEGOTIATE, which is `negotiation`.

    Commands with the same items may have the same object, so it never changes.  In `found` whoever reads
    them keeps what follows from the items alone.
    """

    __slots__ = ("all", "found", "negotiation", "types")

    def __init__(self, all: tuple[Item, ...] = (), negotiation: Item | None = None) -> None:
        self.all = all
        self.negotiation = negotiation
        self.types = frozenset(item.type for item in all)
        self.found: dict[object, Any] = {}


_NO_ITEMS = Items()


class Arguments:
    """A command as it was read: flags without the negotiation bit, fields of the struct, items in order."""

    __slots__ = ("_address", "_caller", "content", "fields", "flags", "items", "negotiates")

    def __init__(
        self,
        caller: Caller,
        address: int,
        flags: int,
        fields: Sequence[int],
        content: Items,
    ) -> None:
        self._caller = caller
        self._address = address
        self.flags = flags & ~NEGOTIATE
        self.negotiates = flags & NEGOTIATE != 0
        self.fields = fields
        """What follows the flags, and the returned flags where the struct has them."""
        self.content = content
        self.items = content.all
        """All but NEGOTIATE."""

    def find(self, type: ItemType) -> Item | None:
        """The item of a type that may be there once."""
        for item in self.items:
            if item.type == type:
                return item
        return None

    def name(self, type: ItemType = ItemType.NAME) -> str | None:
        """The string of an item that may be there once."""
        item = self.find(type)
        return None if item is None else item.string

    def number(self, type: ItemType) -> int | None:
        """The number of an item that may be there once."""
        item = self.find(type)
        return None if item is None else item.number

    def write(self, offset: int, data: bytes) -> None:
        """Put a result into the caller's struct; EFAULT where it cannot be written."""
        self._caller.write(self._address + offset, data)

    def return_flags(self, flags: int) -> None:
        """Say in the caller's struct what the command found."""
        if flags:
            self.write(RETURN_FLAGS_OFFSET, NUMBER.pack(flags))


def parse(form: Form, caller: Caller, address: int) -> Arguments:
    """Read a command or message of a form and negotiate if it asks for it.

    Raises EFAULT, EINVAL, EMSGSIZE, ENAMETOOLONG, EBADF (kdbus, generic parse algorithm), in that
    algorithm's order.
    """
    data = read_object(form, caller, address)
    _, flags, *fields = form.struct.unpack_from(data)
    if form.returns_flags:
        del fields[0]
        caller.write(address + RETURN_FLAGS_OFFSET, _NO_FLAGS)
    if flags & form.refused_flags:
        raise KdbusError(EINVAL, f"flags {flags:#x} where {form.flags:#x} are known")
    content = _NO_ITEMS
    size = len(data) - form.size
    if size:
        items = data[form.size :]
        content = parse_same_items(form, items) if size <= MAX_REMEMBERED else parse_items(form, items)
        if content.negotiation is not None:
            _negotiate(form, caller, address + form.size, content.negotiation)
    if flags & NEGOTIATE:
        caller.write(address + _FLAGS_OFFSET, NUMBER.pack(form.flags))
    elif form.mandatory:
        for type in form.mandatory:
            if type not in content.types:
                raise KdbusError(EINVAL, f"no item of type {type:#x}")
    return Arguments(caller, address, flags, fields, content)


def parse_items(form: Form, data: bytes) -> Items:
    """Read what follows the struct of a command; EINVAL, ENAMETOOLONG, EBADF."""
    items: list[Item] = []
    negotiation: Item | None = None
    seen: set[int] = set()
    for item in iterate_items(data, 0):
        occurs = form.items.get(item.type)
        if occurs is None:
            raise KdbusError(EINVAL, f"an item of type {item.type:#x} has no place here")
        validate_item(item)
        if item.type in seen and not occurs.repeatable:
            raise KdbusError(EINVAL, f"a second item of type {item.type:#x}")
        seen.add(item.type)
        if item.type == ItemType.NEGOTIATE:
            negotiation = item
        else:
            items.append(item)
    return Items(tuple(items), negotiation)


# Whoever sends messages of a kind sends them with the same items, and reading those is most of the work.
parse_same_items = lru_cache(maxsize=1024)(parse_items)


def _negotiate(form: Form, caller: Caller, address: int, item: Item) -> None:
    """Overwrite the types that are not supported with 0, in an item so far from an address."""
    known = [number if number in form.items else 0 for (number,) in NUMBER.iter_unpack(item.payload)]
    caller.write(address + item.offset + HEADER_SIZE, b"".join(NUMBER.pack(number) for number in known))


def read_object(form: Form, caller: Caller, address: int) -> bytes:
    """The bytes of a command or message, as many as it says it has.

    Raises EFAULT, EINVAL (too small for its struct), EMSGSIZE.
    """
    if address % 8:
        raise KdbusError(EFAULT, f"address {address:#x} is no multiple of 8")
    # Most have no items, so what is read for the size is all there is.
    struct_size = form.size
    try:
        head = read_memory(caller, address, struct_size)
    except KdbusError:
        head = read_memory(caller, address, NUMBER.size)
    size: int = NUMBER.unpack_from(head)[0]
    if size == len(head) == struct_size:
        return head
    if size < struct_size:
        raise KdbusError(EINVAL, f"{size} bytes where {struct_size} or more are needed")
    if size > abi.MAX_COMMAND_SIZE:
        raise KdbusError(EMSGSIZE, f"{size} bytes where {abi.MAX_COMMAND_SIZE} are allowed")
    return read_memory(caller, address, size)


def is_in_memory(address: int, size: int) -> bool:
    """Whether a caller can have memory there at all."""
    return 0 <= address <= ADDRESS_LIMIT - size


def read_memory(caller: Caller, address: int, size: int) -> bytes:
    """The caller's bytes; EFAULT also for an address that no caller has memory at."""
    if not 0 <= address <= ADDRESS_LIMIT - size:  # as `is_in_memory` says, for every command
        raise KdbusError(EFAULT, f"{size} bytes at {address:#x} are not the caller's")
    return caller.read(address, size)
