"""A handle: one open node, and everything that can be asked through it.

A handle is fresh at first.  One command makes it what it stays until it is
closed: the owner of a bus, of a domain or of an endpoint, or a connection.
What it owns lives exactly as long as the handle; a command that fails, or
only negotiates, leaves it fresh.

Who opened the node is frozen with the handle: whatever comes through it, from
whichever process, is judged as coming from its opener.

Any bytes at all end in success or in an errno of the interface.  The order of
refusals is fixed: no such command (ENOTTY), none for this handle (EBADFD),
something underneath has gone (ESHUTDOWN), not for these (EPERM, EOPNOTSUPP),
then whatever the bytes are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum, IntFlag, auto
from errno import EACCES, EBADF, EBADFD, EFAULT, EINVAL, ENOMEM, ENOTTY, EPERM, ESHUTDOWN
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, assert_never

from kdbus_core.abi import PAGE_SIZE, Command, HelloFlag, ItemType, MakeFlag
from kdbus_core.bus import Bus
from kdbus_core.caller import Caller
from kdbus_core.commands.connected import HANDLERS, perform
from kdbus_core.commands.forms import FORMS, Arguments, parse
from kdbus_core.commands.identities import parse_faked, parse_policy
from kdbus_core.domain import Bloom, Domain
from kdbus_core.endpoint import Endpoint
from kdbus_core.errors import KdbusError
from kdbus_core.items import BLOOM_PARAMETER, build_numbers_item
from kdbus_core.metadata import Origin, Process, Snapshot, parse_attach_flags
from kdbus_core.policy import Access
from kdbus_core.pool import Memory, Pool

if TYPE_CHECKING:
    from kdbus_core.connection import Connection
    from kdbus_core.synchronous import SyncCall

_COMMANDS = {int(command): command for command in Command}
_ON_CONTROL_NODE = frozenset({Command.BUS_MAKE, Command.DOMAIN_MAKE})
_ON_ENDPOINT = frozenset({Command.HELLO, Command.ENDPOINT_MAKE})
_OF_ENDPOINT_OWNER = frozenset({Command.ENDPOINT_UPDATE})
_CONNECTED = frozenset({*HANDLERS, Command.SEND})
_NONE: frozenset[Command] = frozenset()

_BUS_FLAGS_OFFSET = 40
_BUS_FLAGS_AND_ID = Struct("=2Q")
_BLOOM_OFFSET = 64
_BLOOM_AND_ID128 = Struct("=2Q16s")
"""Where the bloom parameters lie in the pool, offset and size, and the bus' id."""


class HandleState(Enum):
    """What a handle has become."""

    NONE = auto()
    BUS_OWNER = auto()
    DOMAIN_OWNER = auto()
    EP_OWNER = auto()
    CONNECTED = auto()


class PollFlag(IntFlag):
    """What poll(2) says of a handle, with its numbers."""

    IN = 0x001
    OUT = 0x004
    ERR = 0x008
    HUP = 0x010
    RDNORM = 0x040
    WRNORM = 0x100


class Handle:
    """One open node; ended by `close`, after which every command is EBADF."""

    def __init__(
        self,
        node: Domain | Endpoint,
        process: Process,
        *,
        make_memory: Callable[[int], Memory] | None = None,
        on_ready: Callable[[], None] | None = None,
        is_admitted: bool = False,
    ) -> None:
        """Open a node, a domain's control node or an endpoint: ESHUTDOWN, EACCES.

        `make_memory` makes the memory of a pool of so many bytes.  `on_ready` is called when, once
        connected, there is something more to receive.  Whoever `is_admitted` has got past the mode of a
        real file already.
        """
        if not node.active:
            raise KdbusError(ESHUTDOWN, "the node has gone")
        if not is_admitted and not node.may_open(process):
            raise KdbusError(EACCES, "the mode of the node does not let this process in")
        self.node = node
        self.process = process
        self.state = HandleState.NONE
        self.connection: Connection | None = None
        self._owned: Bus | Domain | Endpoint | None = None
        self._is_closed = False
        self._make_memory = make_memory
        self._on_ready = on_ready

    def ioctl(
        self,
        caller: Caller,
        request: int,
        address: int,
        on_done: Callable[[int], None] | None = None,
        *,
        origin: Origin | None = None,
    ) -> SyncCall | None:
        """Perform a command whose struct lies at an address of the caller's memory.

        `origin` finds out who issues it, for the metadata of a message; without it that is the opener, as
        it was then.

        Returns None when it is done, and the call when it is a synchronous SEND that waits: its result is
        in the caller's memory before `on_done` gets the call's errno.  Raises KdbusError with an errno of
        the command's table.
        """
        if self._is_closed:
            raise KdbusError(EBADF, "the handle has been closed")
        command = _COMMANDS.get(request)
        if command is None:
            raise KdbusError(ENOTTY, f"there is no command {request:#x}")
        if command not in (_CONNECTED if self.state is HandleState.CONNECTED else self._accepted()):
            raise KdbusError(EBADFD, f"a handle in state {self.state.name} does not take {command.name}")
        if self.connection is not None:
            if not self.connection.active:
                raise KdbusError(ESHUTDOWN, f"connection {self.connection.id} has gone")
            return perform(self.connection, command, caller, address, on_done, origin)
        if not self.node.active or (self._owned is not None and not self._owned.active):
            raise KdbusError(ESHUTDOWN, "what the handle was opened at, or made, has gone")
        self._check_permitted(command)
        arguments = parse(FORMS[command], caller, address)
        if not arguments.negotiates:
            _SETUP[command](self, arguments)
        return None

    def poll(self) -> PollFlag:
        """What the handle is ready for."""
        connection = self.connection
        if connection is None or not connection.active:
            return PollFlag.ERR | PollFlag.HUP
        assert connection.inbox is not None
        ready = PollFlag.OUT | PollFlag.WRNORM
        return ready | PollFlag.IN | PollFlag.RDNORM if connection.inbox.readable else ready

    def map_pool(self, length: int, *, writable: bool) -> Pool:
        """The pool, for mapping so many bytes of its memory for reading: EBADFD, EPERM, EFAULT."""
        if self.connection is None:
            raise KdbusError(EBADFD, "a handle that is not connected has no pool")
        if writable:
            raise KdbusError(EPERM, "a pool is for reading")
        assert self.connection.inbox is not None
        pool = self.connection.inbox.pool
        if length > pool.size:
            raise KdbusError(EFAULT, f"{length} bytes of a pool of {pool.size}")
        return pool

    def close(self) -> None:
        """End the handle and what it owns: a bus, a domain, an endpoint or a connection."""
        self._is_closed = True
        if self._owned is not None:
            self._owned.close()
        if self.connection is not None:
            self.connection.endpoint.bus.disconnect(self.connection)

    def _accepted(self) -> frozenset[Command]:
        match self.state:
            case HandleState.NONE:
                return _ON_CONTROL_NODE if isinstance(self.node, Domain) else _ON_ENDPOINT
            case HandleState.BUS_OWNER | HandleState.DOMAIN_OWNER:
                return _NONE
            case HandleState.EP_OWNER:
                return _OF_ENDPOINT_OWNER
            case HandleState.CONNECTED:
                return _CONNECTED
            case _:
                assert_never(self.state)

    def _check_permitted(self, command: Command) -> None:
        """Who may not make something need not know how it is asked for."""
        if command is Command.DOMAIN_MAKE and not self.process.privileged:
            raise KdbusError(EPERM, "only the privileged make domains")
        if command is Command.ENDPOINT_MAKE and not self._endpoint.is_owner(self.process):
            raise KdbusError(EPERM, "only an owner of the bus makes endpoints, on the default one")

    @property
    def _domain(self) -> Domain:
        assert isinstance(self.node, Domain)
        return self.node

    @property
    def _endpoint(self) -> Endpoint:
        assert isinstance(self.node, Endpoint)
        return self.node

    def _become(self, state: HandleState, owned: Bus | Domain | Endpoint) -> None:
        self._owned = owned
        self.state = state

    def _make_bus(self, command: Arguments) -> None:
        bloom = command.find(ItemType.BLOOM_PARAMETER)
        assert bloom is not None
        bus = self._domain.make_bus(
            _made_name(command),
            self.process,
            MakeFlag(command.flags),
            bloom=Bloom(*BLOOM_PARAMETER.unpack(bloom.payload)),
            creator_mask=command.number(ItemType.ATTACH_FLAGS_SEND) or 0,
            required=command.number(ItemType.ATTACH_FLAGS_RECV) or 0,
        )
        self._become(HandleState.BUS_OWNER, bus)

    def _make_domain(self, command: Arguments) -> None:
        domain = self._domain.make_domain(_made_name(command), self.process, MakeFlag(command.flags))
        self._become(HandleState.DOMAIN_OWNER, domain)

    def _make_endpoint(self, command: Arguments) -> None:
        bus = self._endpoint.bus
        endpoint = bus.make_endpoint(_made_name(command), self.process, MakeFlag(command.flags))
        self._become(HandleState.EP_OWNER, endpoint)

    def _update_endpoint(self, command: Arguments) -> None:
        assert isinstance(self._owned, Endpoint)
        self._owned.update_policy(parse_policy(command.items, self.process))

    def _hello(self, command: Arguments) -> None:
        attach_send, attach_recv, _, _, pool_size, *_ = command.fields
        bus = self._endpoint.bus
        if not 0 < pool_size <= bus.domain.max_pool_size or pool_size % PAGE_SIZE:
            raise KdbusError(
                EINVAL,
                f"a pool of {pool_size} bytes: it has to be a multiple of {PAGE_SIZE}, "
                f"at most {bus.domain.max_pool_size}",
            )
        faked = self._parse_faked(command)
        # If the results cannot be said, nobody shall have been told of the connection.
        command.write(_BUS_FLAGS_OFFSET, bytes(_BUS_FLAGS_AND_ID.size))
        command.write(_BLOOM_OFFSET, bytes(_BLOOM_AND_ID128.size))
        connection = bus.hello(
            self._endpoint,
            self.process,
            flags=HelloFlag(command.flags),
            pool=partial(self._make_pool, pool_size),
            on_ready=self._on_ready,
            attach_send=attach_send,
            attach_recv=attach_recv,
            faked=faked,
            description=command.name(ItemType.CONN_DESCRIPTION) or "",
            name=command.name(),
            accesses=self._iterate_accesses(command),
            limits=bus.domain.limits,
            max_connections=bus.domain.max_connections_per_user,
        )
        try:
            assert connection.inbox is not None
            offset, size = connection.inbox.pool.answer(
                build_numbers_item(ItemType.BLOOM_PARAMETER, *bus.bloom)
            )
            command.write(_BUS_FLAGS_OFFSET, _BUS_FLAGS_AND_ID.pack(bus.flags, connection.id))
            command.write(_BLOOM_OFFSET, _BLOOM_AND_ID128.pack(offset, size, bus.id128))
        except KdbusError:
            bus.disconnect(connection)
            raise
        self.connection = connection
        self.state = HandleState.CONNECTED

    def _make_pool(self, size: int) -> Pool:
        """The pool of a connection that there is going to be; ENOMEM where there is no memory for it."""
        if self._make_memory is None:
            return Pool(size)
        try:
            return Pool(size, self._make_memory(size))
        except (OSError, OverflowError, MemoryError) as error:
            raise KdbusError(ENOMEM, f"no memory for a pool of {size} bytes: {error}") from error

    def _parse_faked(self, command: Arguments) -> Snapshot | None:
        """For whom a connection will speak.

        Ids that do not exist come late among what HELLO looks at.  So where they are wrong, and something
        that it looks at earlier is wrong with another errno, they are left to the bus to refuse with that.
        """
        try:
            return parse_faked(command.items, self.process)
        except KdbusError:
            if self._endpoint.is_owner(self.process) and self._grants_required(command):
                raise
            return Snapshot()

    def _iterate_accesses(self, command: Arguments) -> Iterator[Access]:
        """Whom a connection will let use its name; read, and found wrong, only when all else is right."""
        yield from parse_policy(command.items, self.process)[0].accesses

    def _grants_required(self, command: Arguments) -> bool:
        return not self._endpoint.bus.required & ~parse_attach_flags(command.fields[0])


def _made_name(command: Arguments) -> str:
    name = command.name(ItemType.MAKE_NAME)
    assert name is not None
    return name


_SETUP: dict[Command, Callable[[Handle, Arguments], None]] = {
    Command.BUS_MAKE: Handle._make_bus,
    Command.DOMAIN_MAKE: Handle._make_domain,
    Command.ENDPOINT_MAKE: Handle._make_endpoint,
    Command.ENDPOINT_UPDATE: Handle._update_endpoint,
    Command.HELLO: Handle._hello,
}
