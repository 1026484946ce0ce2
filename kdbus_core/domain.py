"""A directory of buses with one control node: hands out identifiers and keeps the users' accounts.

Bus and connection identifiers come from one counter of the domain, are never
used again and start at 1.  A `User` exists while something is charged to it.
Randomness (for 128-bit bus ids) and clocks (nanoseconds) are parameters.

A domain may have named domains in it, each with buses, identifiers and
accounts of its own: kdbus' first version made them on a control node, and only
for the privileged.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from errno import EEXIST, EINVAL, EMFILE, EPERM, ESHUTDOWN
from typing import NamedTuple

from kdbus_core.abi import (
    MAX_BLOOM_SIZE,
    MAX_BUSES_PER_USER,
    MAX_CONNECTIONS_PER_USER,
    MAX_POOL_SIZE,
    MIN_BLOOM_SIZE,
    MakeFlag,
)
from kdbus_core.bus import Bus
from kdbus_core.connection import Limits
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import Credentials, Process, parse_attach_flags
from kdbus_core.node import Nodes, check_own_name, is_valid_node_name, may_open
from kdbus_core.quota import User


class Bloom(NamedTuple):
    """Bloom parameters of a bus: filter size in bytes and how many bits a string sets."""

    size: int = 64
    n_hash: int = 8


class Domain:
    """All buses of one domain; `owner` opens its control node, and so does everybody with `access`.

    No connection has a pool of more than `max_pool_size` bytes.  `limits` and `max_connections_per_user` are
    for those who connect through a handle; a proxy in this process brings its own along.
    """

    def __init__(
        self,
        random_bytes: Callable[[int], bytes],
        monotonic: Callable[[], int] = lambda: 0,
        realtime: Callable[[], int] = lambda: 0,
        *,
        name: str = "",
        parent: Domain | None = None,
        max_pool_size: int = MAX_POOL_SIZE,
        max_connections_per_user: int = MAX_CONNECTIONS_PER_USER,
        limits: Limits = Limits(),  # noqa: B008 - a constant
        owner: Credentials = Credentials(),  # noqa: B008 - a constant
        access: MakeFlag = MakeFlag.ACCESS_WORLD,
    ) -> None:
        self.name = name
        self.parent = parent
        self.nodes: Nodes = Nodes() if parent is None else parent.nodes
        self.owner = owner
        self.access = access
        self.max_pool_size = max_pool_size
        self.max_connections_per_user = max_connections_per_user
        self.limits = limits
        self.monotonic = monotonic
        self.realtime = realtime
        self.active = True
        self.buses: dict[str, Bus] = {}
        self.domains: dict[str, Domain] = {}
        self._users: dict[int | None, User] = {}
        self._random_bytes = random_bytes
        self._last_id = 0

    def may_open(self, process: Process) -> bool:
        """Whether this process may open the control node."""
        return may_open(process, self.owner, self.access)

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def user(self, uid: int | None) -> User:
        """The account of a uid; None is the account of everybody unknown."""
        user = self._users.get(uid)
        if user is None:
            user = self._users[uid] = User(uid, self._forget)
        return user

    def _forget(self, user: User) -> None:
        if self._users.get(user.uid) is user:
            del self._users[user.uid]

    def make_bus(
        self,
        name: str,
        creator: Process,
        access: MakeFlag = MakeFlag(0),  # noqa: B008 - a constant
        *,
        bloom: Bloom = Bloom(),  # noqa: B008 - a constant
        creator_mask: int = 0,
        required: int = 0,
    ) -> Bus:
        """Make a bus (BUS_MAKE); its name starts with the creator's uid and a dash.

        `creator_mask` says which metadata of the creator others may ask for,
        `required` which metadata every connection has to grant.  Raises EINVAL
        (bloom parameters, masks, name), EEXIST, EMFILE (16 buses of one real
        uid), ESHUTDOWN.
        """
        if not self.active:
            raise KdbusError(ESHUTDOWN, "the domain has gone")
        if not MIN_BLOOM_SIZE <= bloom.size <= MAX_BLOOM_SIZE or bloom.size % 8 or bloom.n_hash < 1:
            raise KdbusError(EINVAL, f"{bloom} is no bloom filter")
        creator_mask = parse_attach_flags(creator_mask)
        required = parse_attach_flags(required)
        check_own_name(name, creator.credentials)
        if name in self.buses:
            raise KdbusError(EEXIST, f"there is a bus '{name}'")
        if sum(bus.creator.real_uid == creator.real_uid for bus in self.buses.values()) >= MAX_BUSES_PER_USER:
            raise KdbusError(EMFILE, f"uid {creator.real_uid} has {MAX_BUSES_PER_USER} buses")
        bus = self.buses[name] = Bus(
            self, name, self.next_id(), self._uuid(), creator, access, bloom, creator_mask, required
        )
        try:
            self.nodes.on_made(bus.endpoint)
        except KdbusError:
            bus.close()
            raise
        return bus

    def make_domain(self, name: str, process: Process, access: MakeFlag = MakeFlag(0)) -> Domain:  # noqa: B008 - a constant
        """Make a domain in this one (DOMAIN_MAKE): EPERM unless privileged, EINVAL, EEXIST, ESHUTDOWN."""
        if not self.active:
            raise KdbusError(ESHUTDOWN, "the domain has gone")
        if not process.privileged:
            raise KdbusError(EPERM, "only the privileged make domains")
        if not is_valid_node_name(name):
            raise KdbusError(EINVAL, f"'{name}' is not a domain name")
        if name in self.domains:
            raise KdbusError(EEXIST, f"there is a domain '{name}'")
        domain = self.domains[name] = Domain(
            self._random_bytes,
            self.monotonic,
            self.realtime,
            max_pool_size=self.max_pool_size,
            max_connections_per_user=self.max_connections_per_user,
            limits=self.limits,
            name=name,
            parent=self,
            owner=process.credentials,
            access=access,
        )
        self.nodes.on_made(domain)
        return domain

    def close(self) -> None:
        """End the domain and everything in it; later commands get ESHUTDOWN."""
        if not self.active:
            return
        self.active = False
        self.nodes.on_gone(self)
        if self.parent is not None:
            del self.parent.domains[self.name]
        with ExitStack() as closing:  # all of it, whatever a callback does
            for bus in self.buses.values():
                closing.callback(bus.close)
            for domain in self.domains.values():
                closing.callback(domain.close)

    def _uuid(self) -> bytes:
        raw = bytearray(self._random_bytes(16))
        raw[6] = raw[6] & 0x0F | 0x40
        raw[8] = raw[8] & 0x3F | 0x80
        return bytes(raw)
