"""org.freedesktop.DBus for a native program: its methods as commands of the broker.

On a native bus nobody has this name. What legacy clients ask of the driver is asked of the broker, so that
code that calls the driver by its methods works here too; `METHODS` is the table. Errors and results are those
of the specification.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from errno import EADDRINUSE, EALREADY, EEXIST, ESRCH
from typing import TYPE_CHECKING, Any, NamedTuple

from busproxy.errno_names import command_error
from busproxy.match_entries import connection_id
from busproxy.native.errors import (
    INVALID_ARGS,
    NAME_HAS_NO_OWNER,
    PREFIX,
    UNKNOWN_INTERFACE,
    UNKNOWN_METHOD,
    DBusError,
)
from busproxy.native.messages import unique_name
from busproxy.native.objects import INTROSPECTABLE, PEER, machine_id
from busproxy.native.rules import DRIVER_NAME
from busproxy.wire.names import is_bus_name, is_well_known_name
from kdbus_core.abi import UNSET_ID, AttachFlag, HelloFlag, ListFlag, NameFlag
from kdbus_core.errors import KdbusError
from kdbus_core.transport.client import Info

if TYPE_CHECKING:
    from kdbus_core.transport.client.aio import Connection

# Flags and results of RequestName, results of ReleaseName and StartServiceByName (specification).
ALLOW_REPLACEMENT, REPLACE_EXISTING, DO_NOT_QUEUE = 1, 2, 4
PRIMARY_OWNER, IN_QUEUE, EXISTS, ALREADY_OWNER = 1, 2, 3, 4
RELEASED, NON_EXISTENT, NOT_OWNER = 1, 2, 3
STARTED, ALREADY_RUNNING = 1, 2

_HIDDEN = HelloFlag.ACTIVATOR | HelloFlag.MONITOR | HelloFlag.POLICY_HOLDER
_NOT_OWNED = NameFlag.IN_QUEUE | NameFlag.ACTIVATOR


def is_owned(flags: NameFlag) -> bool:
    """Whether a name that somebody has with these flags is owned: not waited for, not merely activated."""
    return not flags & _NOT_OWNED


async def request_name(connection: Connection, name: str, flags: int) -> int:
    """RequestName: 1 primary owner, 2 in the queue, 3 somebody else has it, 4 we had it already."""
    _check_ownable(name, "acquire")
    wanted = NameFlag(0)
    if flags & ALLOW_REPLACEMENT:
        wanted |= NameFlag.ALLOW_REPLACEMENT
    if flags & REPLACE_EXISTING:
        wanted |= NameFlag.REPLACE_EXISTING
    if not flags & DO_NOT_QUEUE:
        wanted |= NameFlag.QUEUE
    try:
        result = await connection.name_acquire(name, wanted)
    except KdbusError as error:
        if error.errno == EEXIST:
            return EXISTS
        if error.errno == EALREADY:
            return ALREADY_OWNER
        raise DBusError.of(command_error(error)) from error
    if result & NameFlag.PRIMARY:
        return PRIMARY_OWNER if result & NameFlag.ACQUIRED else ALREADY_OWNER
    return IN_QUEUE if result & NameFlag.IN_QUEUE else EXISTS


async def release_name(connection: Connection, name: str) -> int:
    """ReleaseName: 1 released, 2 nobody has it, 3 it is not ours."""
    _check_ownable(name, "release")
    try:
        await connection.name_release(name)
    except KdbusError as error:
        if error.errno == ESRCH:
            return NON_EXISTENT
        if error.errno == EADDRINUSE:
            return NOT_OWNER
        raise DBusError.of(command_error(error)) from error
    return RELEASED


def _check_ownable(name: str, verb: str) -> None:
    if not is_bus_name(name):
        raise DBusError(INVALID_ARGS, f'Requested bus name "{name}" is not valid')
    if not is_well_known_name(name) or name == DRIVER_NAME:
        raise DBusError(INVALID_ARGS, f'Cannot {verb} the name "{name}"')


async def find_owner(connection: Connection, name: str, attach: int = 0) -> Info | None:
    """Who has a unique name or owns a well-known one; None when nobody does."""
    id = connection_id(name)
    if id is None and not is_well_known_name(name):
        return None
    try:
        info = (
            await connection.info(id, attach=attach)
            if id
            else await connection.info(name=name, attach=attach)
        )
    except KdbusError as error:
        if command_error(error).name == NAME_HAS_NO_OWNER:
            return None
        raise DBusError.of(command_error(error)) from error
    return None if info.flags & _HIDDEN else info


async def _owner(connection: Connection, name: str, what: str, attach: int = 0) -> Info:
    info = await find_owner(connection, name, attach)
    if info is None:
        raise DBusError(NAME_HAS_NO_OWNER, f"Could not get {what} of name '{name}': no such name")
    return info


# Methods


async def _list_names(connection: Connection) -> list[str]:
    infos = [
        info for info in await connection.list(ListFlag.UNIQUE | ListFlag.NAMES) if not info.flags & _HIDDEN
    ]
    names = {name for info in infos for name, flags in info.names.items() if is_owned(flags)}
    return [DRIVER_NAME, *(unique_name(info.id) for info in infos), *sorted(names)]


async def _list_activatable_names(connection: Connection) -> list[str]:
    activators = await connection.list(ListFlag.ACTIVATORS)
    return [DRIVER_NAME, *sorted({name for info in activators for name in info.names})]


async def _name_has_owner(connection: Connection, name: str) -> bool:
    return name == DRIVER_NAME or await find_owner(connection, name) is not None


async def _get_name_owner(connection: Connection, name: str) -> str:
    return DRIVER_NAME if name == DRIVER_NAME else unique_name((await _owner(connection, name, "owner")).id)


async def _list_queued_owners(connection: Connection, name: str) -> list[str]:
    if name == DRIVER_NAME:
        return [DRIVER_NAME]
    first = unique_name((await _owner(connection, name, "owners")).id)
    queued = await connection.list(ListFlag.QUEUED)
    return [first, *(unique_name(info.id) for info in queued if name in info.names)]


def _known(id: int | None) -> int | None:
    return None if id == UNSET_ID else id


async def _get_unix_user(connection: Connection, name: str) -> int:
    info = await _owner(connection, name, "UID", AttachFlag.CREDS)
    uid = _known(info.metadata.creds.euid if info.metadata.creds is not None else None)
    if uid is None:
        raise DBusError(PREFIX + "Failed", f"Could not determine UID for '{name}'")
    return uid


async def _get_process_id(connection: Connection, name: str) -> int:
    info = await _owner(connection, name, "PID", AttachFlag.PIDS)
    pids = info.metadata.pids
    if pids is None or not pids.pid:
        raise DBusError(PREFIX + "UnixProcessIdUnknown", f"Could not determine PID for '{name}'")
    return pids.pid


async def _get_security_context(connection: Connection, name: str) -> bytes:
    info = await _owner(connection, name, "security context", AttachFlag.SECLABEL)
    if info.metadata.seclabel is None:
        raise DBusError(
            PREFIX + "SELinuxSecurityContextUnknown", f"Could not determine security context for '{name}'"
        )
    return info.metadata.seclabel


_CREDENTIALS = AttachFlag.CREDS | AttachFlag.PIDS | AttachFlag.AUXGROUPS | AttachFlag.SECLABEL


async def _get_credentials(connection: Connection, name: str) -> dict[str, tuple[str, Any]]:
    known = (await _owner(connection, name, "credentials", _CREDENTIALS)).metadata
    answer: dict[str, tuple[str, Any]] = {}
    if known.pids is not None and known.pids.pid:
        answer["ProcessID"] = ("u", known.pids.pid)
    uid, gid = (None, None) if known.creds is None else (_known(known.creds.euid), _known(known.creds.egid))
    if uid is not None:
        answer["UnixUserID"] = ("u", uid)
    if known.auxgroups is not None:
        groups = set(known.auxgroups) if gid is None else {gid, *known.auxgroups}
        answer["UnixGroupIDs"] = ("au", sorted(groups))
    if known.seclabel is not None:
        answer["LinuxSecurityLabel"] = ("ay", known.seclabel + b"\0")
    return answer


async def _get_id(connection: Connection) -> str:
    return connection.id128.hex()


async def _ping(connection: Connection) -> None:
    """The broker has answered everything that was asked of it so far."""


async def _get_machine_id(connection: Connection) -> str:
    return machine_id()


class DriverMethod(NamedTuple):
    """A method of the driver: signatures of its arguments and of its result, and what answers."""

    arguments: str
    result: str
    handler: Callable[..., Awaitable[Any]]


METHODS: dict[str, dict[str, DriverMethod]] = {
    DRIVER_NAME: {
        "RequestName": DriverMethod("su", "u", request_name),
        "ReleaseName": DriverMethod("s", "u", release_name),
        "ListNames": DriverMethod("", "as", _list_names),
        "ListActivatableNames": DriverMethod("", "as", _list_activatable_names),
        "NameHasOwner": DriverMethod("s", "b", _name_has_owner),
        "GetNameOwner": DriverMethod("s", "s", _get_name_owner),
        "ListQueuedOwners": DriverMethod("s", "as", _list_queued_owners),
        "GetConnectionUnixUser": DriverMethod("s", "u", _get_unix_user),
        "GetConnectionUnixProcessID": DriverMethod("s", "u", _get_process_id),
        "GetConnectionSELinuxSecurityContext": DriverMethod("s", "ay", _get_security_context),
        "GetConnectionCredentials": DriverMethod("s", "a{sv}", _get_credentials),
        "GetId": DriverMethod("", "s", _get_id),
    },
    PEER: {
        "Ping": DriverMethod("", "", _ping),
        "GetMachineId": DriverMethod("", "s", _get_machine_id),
    },
}


async def call_driver(
    connection: Connection, interface: str | None, member: str, signature: str, values: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Do what a call of the driver asks for; `DBusError`."""
    if interface is not None and interface not in METHODS and interface != INTROSPECTABLE:
        raise DBusError(UNKNOWN_INTERFACE, f"{DRIVER_NAME} does not understand interface {interface}")
    for name, methods in METHODS.items():
        method = methods.get(member) if interface in (None, name) else None
        if method is None:
            continue
        if method.arguments != signature:
            raise DBusError(
                INVALID_ARGS,
                f'Call to "{member}" has wrong args ("{signature}", expected "{method.arguments}")',
            )
        result = await method.handler(connection, *values)
        return (result,) if method.result else ()
    raise DBusError(UNKNOWN_METHOD, f"{DRIVER_NAME} does not understand message {member}")
