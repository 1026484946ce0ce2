"""A directory of buses: hands out identifiers and keeps the users' accounts.

Bus and connection identifiers come from one counter of the domain, are never
used again and start at 1.  A `User` exists while something is charged to it.
Randomness (for 128-bit bus ids) is a parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EEXIST, EINVAL, EMFILE

from kdbus_core.abi import MAX_BUSES_PER_USER, MAX_NODE_NAME_LENGTH, MakeFlag
from kdbus_core.bus import Bus
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import Credentials
from kdbus_core.quota import User

_NODE_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")


def is_valid_node_name(name: str) -> bool:
    """1 to 63 letters, digits, `_`, and `-` or `.` anywhere but first and last."""
    return (
        0 < len(name) <= MAX_NODE_NAME_LENGTH
        and _NODE_NAME_CHARACTERS.issuperset(name)
        and name[0] not in "-."
        and name[-1] not in "-."
    )


class Domain:
    """All buses of one domain."""

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self.buses: dict[str, Bus] = {}
        self._users: dict[int | None, User] = {}
        self._random_bytes = random_bytes
        self._last_id = 0

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

    def make_bus(self, name: str, creator: Credentials, access: MakeFlag = MakeFlag(0)) -> Bus:  # noqa: B008 - a constant
        """Make a bus (BUS_MAKE); its name starts with the creator's uid and a dash.

        Raises EINVAL, EEXIST, EMFILE.
        """
        if creator.uid is None or not is_valid_node_name(name) or not name.startswith(f"{creator.uid}-"):
            raise KdbusError(EINVAL, f"'{name}' is not a bus name of uid {creator.uid}")
        if name in self.buses:
            raise KdbusError(EEXIST, f"there is a bus '{name}'")
        if sum(bus.owner.uid == creator.uid for bus in self.buses.values()) >= MAX_BUSES_PER_USER:
            raise KdbusError(EMFILE, f"uid {creator.uid} has {MAX_BUSES_PER_USER} buses")
        bus = self.buses[name] = Bus(self, name, self.next_id(), self._uuid(), creator, access)
        return bus

    def _uuid(self) -> bytes:
        raw = bytearray(self._random_bytes(16))
        raw[6] = raw[6] & 0x0F | 0x40
        raw[8] = raw[8] & 0x3F | 0x80
        return bytes(raw)
