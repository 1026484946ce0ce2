"""A node of a bus that can be connected to.

Every bus has the default endpoint `bus`.  An endpoint decides who is an owner
of the bus: on the default one, whoever has the uid of the bus' maker or the
privilege over all of the domain; on a custom one nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdbus_core.abi import MakeFlag
from kdbus_core.metadata import Credentials

if TYPE_CHECKING:
    from kdbus_core.bus import Bus

DEFAULT_NAME = "bus"


class Endpoint:
    """A named way into a bus."""

    __slots__ = ("access", "bus", "name")

    def __init__(self, bus: Bus, name: str, access: MakeFlag) -> None:
        self.bus = bus
        self.name = name
        self.access = access

    @property
    def is_default(self) -> bool:
        return self.name == DEFAULT_NAME

    def is_owner(self, credentials: Credentials, *, privileged: bool) -> bool:
        """Whether a process with these credentials counts as bus owner here."""
        if not self.is_default:
            return False
        return privileged or (credentials.uid is not None and credentials.uid == self.bus.owner.uid)
