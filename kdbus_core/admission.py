"""What HELLO asks before anybody hears of a connection: what kind it is, and who pays for it.

The kinds exclude each other.  Activators and policy holders are made for one
name and bring it along; an activator's is a plain one, a policy holder's may
be a wildcard.  Monitors see everything, so a custom endpoint, which is there to
hide things, has none.
"""

from __future__ import annotations

from errno import EINVAL, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING

from kdbus_core.abi import UNSET_ID, HelloFlag
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import Credentials
from kdbus_core.names import is_valid_name
from kdbus_core.policy import is_valid_policy_name

if TYPE_CHECKING:
    from kdbus_core.endpoint import Endpoint
    from kdbus_core.metadata import Creds, Process, Snapshot
    from kdbus_core.quota import User

SPECIAL = int(HelloFlag.ACTIVATOR | HelloFlag.MONITOR | HelloFlag.POLICY_HOLDER)
_NAMED = int(HelloFlag.ACTIVATOR | HelloFlag.POLICY_HOLDER)
_POLICY_HOLDER = int(HelloFlag.POLICY_HOLDER)
_MONITOR = int(HelloFlag.MONITOR)


def check_kind(endpoint: Endpoint, flags: int, name: str | None) -> None:
    """Whether there are connections of this kind with this name here: EINVAL, EOPNOTSUPP."""
    special = flags & SPECIAL
    if special & (special - 1):
        raise KdbusError(EINVAL, "a connection is of one kind")
    if name is None:
        if special & _NAMED:
            raise KdbusError(EINVAL, "an activator or policy holder needs a name")
    else:
        if not special & _NAMED:
            raise KdbusError(EINVAL, "only activators and policy holders have a name from the start")
        is_valid = is_valid_policy_name if special & _POLICY_HOLDER else is_valid_name
        if not is_valid(name):
            raise KdbusError(EINVAL, f"'{name}' is not a well-known name")
    if special & _MONITOR and not endpoint.is_default:
        raise KdbusError(EOPNOTSUPP, "there are no monitors on a custom endpoint")


def check_rights(flags: int, faked: Credentials | Snapshot | None, *, is_owner: bool) -> None:
    """Special connections and speaking for others are for owners of the bus (EPERM)."""
    if is_owner:
        return
    if flags & SPECIAL:
        raise KdbusError(EPERM, "only an owner of the bus makes special connections")
    if faked is not None:
        raise KdbusError(EPERM, "only an owner of the bus may speak for others")


def resolve_account(
    endpoint: Endpoint, process: Process, faked: Credentials | Snapshot | None, *, is_local: bool
) -> User:
    """Whom a connection is charged to.

    On a custom endpoint that is the endpoint.  A proxy in this process has its clients charged; a native
    connection that speaks for somebody only if its opener is privileged and gave a uid.  That is the real
    one, or where it is unset the effective one: of a socket's peer the kernel tells no other.
    """
    if endpoint.user is not None:
        return endpoint.user
    spoken_for: int | None = None
    if faked is not None and (is_local or process.privileged):
        spoken_for = faked.uid if isinstance(faked, Credentials) else _uid_charged(faked.creds)
    return endpoint.bus.domain.user(process.real_uid if spoken_for is None else spoken_for)


def _uid_charged(faked: Creds | None) -> int | None:
    if faked is None:
        return None
    uid = faked.euid if faked.uid == UNSET_ID else faked.uid
    return None if uid == UNSET_ID else uid
