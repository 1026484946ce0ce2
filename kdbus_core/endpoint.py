"""A node of a bus that can be connected to.

Every bus has the default endpoint `bus`, which lives as long as the bus.  A
custom endpoint lives as long as the handle that made it and narrows what can
be done through it: it has a policy of its own, at first empty, so that nothing
is allowed or seen; everybody on it is charged to one account of its own; and
nobody on it counts as an owner of the bus.

On the default endpoint whoever has the uid of the bus' maker, or the privilege
over all of the domain, is an owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import ESHUTDOWN
from typing import TYPE_CHECKING

from kdbus_core.abi import MakeFlag
from kdbus_core.errors import KdbusError
from kdbus_core.node import may_open
from kdbus_core.policy import PolicyDatabase, PolicyEntry
from kdbus_core.quota import User

if TYPE_CHECKING:
    from kdbus_core.bus import Bus
    from kdbus_core.metadata import Credentials, Process

DEFAULT_NAME = "bus"


class Endpoint:
    """A named way into a bus; `policy` and `user` are those of a custom one, else None."""

    __slots__ = ("access", "active", "bus", "is_default", "name", "owner", "policy", "user")

    def __init__(self, bus: Bus, name: str, owner: Credentials, access: MakeFlag) -> None:
        self.bus = bus
        self.name = name
        self.owner = owner
        self.access = access
        self.active = True
        self.is_default = name == DEFAULT_NAME
        self.policy = None if self.is_default else PolicyDatabase()
        self.user = None if self.is_default else User(None)

    def may_open(self, process: Process) -> bool:
        """Whether file modes, the bus directory's included, let this process connect."""
        bus = self.bus
        return may_open(process, bus.owner, bus.flags) and may_open(process, self.owner, self.access)

    def is_owner(self, process: Process) -> bool:
        """Whether this process counts as an owner of the bus here."""
        if not self.is_default:
            return False
        uid = process.credentials.uid
        return process.privileged or (uid is not None and uid == self.bus.owner.uid)

    def update_policy(self, entries: Sequence[PolicyEntry]) -> None:
        """Replace the policy of a custom endpoint (ENDPOINT_UPDATE).

        All or nothing: EINVAL for a bad entry, EEXIST when a name is there twice.
        """
        if not self.active:
            raise KdbusError(ESHUTDOWN, f"endpoint '{self.name}' has gone")
        assert self.policy is not None, "only custom endpoints have a policy"
        self.policy.replace(self, entries)

    def close(self) -> None:
        """End the endpoint and every connection that came through it."""
        if not self.active:
            return
        self.active = False
        self.bus.domain.nodes.on_gone(self)
        del self.bus.endpoints[self.name]
        with self.bus.transaction():
            for connection in list(self.bus.connections.values()):
                if connection.endpoint is self:
                    self.bus.disconnect(connection)

    def __repr__(self) -> str:
        return f"Endpoint({self.bus.name}/{self.name})"
