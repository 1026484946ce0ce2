"""Names: Hello, who owns what, and how to own it."""

from __future__ import annotations

from errno import E2BIG, EEXIST, EMFILE, ESRCH
from typing import Any

from busproxy.driver.call import Call, Method, MethodError
from busproxy.driver.outbox import DRIVER_NAME
from busproxy.router import UNIQUE_PREFIX, connection_id
from busproxy.wire.names import is_bus_name
from kdbus_core.abi import ATTACH_ALL, HelloFlag
from kdbus_core.connection import Connection
from kdbus_core.errors import KdbusError
from kdbus_core.names import ACQUIRED, IN_QUEUE, PRIMARY, QUEUE

# Flags and results of RequestName and ReleaseName (specification, "Message Bus Names").
_ALLOW_REPLACEMENT = 1
_REPLACE_EXISTING = 2
_DO_NOT_QUEUE = 4
_PRIMARY_OWNER, _IN_QUEUE, _EXISTS, _ALREADY_OWNER = 1, 2, 3, 4
_RELEASED, _NON_EXISTENT, _NOT_OWNER = 1, 2, 3


def find_owner(call: Call, name: str) -> Connection | None:
    """The connection that has a unique name or owns a well-known one."""
    bus = call.driver.router.bus
    if name[:1] == ":":
        id = connection_id(name)
        connection = bus.connections.get(id) if id is not None else None
        return connection if connection is not None and connection.is_ordinary else None
    return bus.names.owner(name)


def _hello(call: Call) -> None:
    peer, router = call.peer, call.driver.router
    if peer.connection is not None:
        raise MethodError("Failed", "Already handled an Hello message")
    bus, limits = router.bus, router.limits
    if router.active >= limits.max_completed_connections:
        raise MethodError("LimitsExceeded", "The maximum number of active connections has been reached")
    with bus.transaction():
        try:
            connection = bus.hello(
                bus.endpoint,
                bus.creator,
                sink=peer,
                flags=HelloFlag.ACCEPT_FD if peer.unix_fds else HelloFlag(0),
                attach_send=ATTACH_ALL,
                faked=peer.credentials,
                description="busproxy",
                limits=router.connection_limits(),
                quota=peer.quota,
                account=bus.domain.user(peer.user.uid),
                max_connections=limits.max_connections_per_user,
            )
        except KdbusError as error:
            if error.errno != EMFILE:
                raise
            raise MethodError(
                "LimitsExceeded",
                f"The maximum number of active connections for UID {peer.credentials.uid} has been reached",
            ) from error
        unique_name = f"{UNIQUE_PREFIX}{connection.id}"
        peer.activate(connection, unique_name)
        router.on_activated()
        active = router.active
        call.driver.statistics.on_connected(active, len(bus.names) + active)
        router.show_to_monitors(call.message, to_driver=True)
        call.driver.outbox.send_reply(peer, call.serial, "s", (unique_name,))


def _check_ownable(name: str, verb: str, what: str) -> None:
    if not is_bus_name(name):
        raise MethodError("InvalidArgs", f'{what} bus name "{name}" is not valid')
    if name[0] == ":":
        raise MethodError("InvalidArgs", f"Cannot {verb} a service starting with ':' such as \"{name}\"")


def _request_name(call: Call) -> tuple[Any, ...]:
    name, flags = call.arguments
    _check_ownable(name, "acquire", "Requested")
    if name == DRIVER_NAME:
        raise MethodError(
            "InvalidArgs",
            f'Connection "{call.peer.unique_name}" is not allowed to own the service "{name}"'
            "because it is reserved for D-Bus' use only",  # as dbus-daemon spells it
        )
    wanted = flags & (_ALLOW_REPLACEMENT | _REPLACE_EXISTING)
    wanted = (wanted & _REPLACE_EXISTING) >> 1 | (wanted & _ALLOW_REPLACEMENT) << 1
    if not flags & _DO_NOT_QUEUE:
        wanted |= QUEUE
    try:
        result = call.driver.router.bus.name_acquire(call.connection, name, wanted)
    except KdbusError as error:
        if error.errno == EEXIST:
            return (_EXISTS,)
        if error.errno != E2BIG:
            raise
        limit = call.driver.router.limits.max_names_per_connection
        raise MethodError(
            "LimitsExceeded",
            f'Connection "{call.peer.unique_name}" is not allowed to own more services '
            "(increase limits in configuration file if required; "
            f"max_names_per_connection={limit})",
        ) from error
    router = call.driver.router
    call.driver.statistics.on_name_acquired(
        call.peer, len(call.connection.names) + 1, len(router.bus.names) + router.active
    )
    if result & PRIMARY:
        return (_PRIMARY_OWNER if result & ACQUIRED else _ALREADY_OWNER,)
    return (_IN_QUEUE if result & IN_QUEUE else _EXISTS,)


def _release_name(call: Call) -> tuple[Any, ...]:
    (name,) = call.arguments
    _check_ownable(name, "release", "Given")
    if name == DRIVER_NAME:
        raise MethodError("InvalidArgs", f"Cannot release the {name} service because it is owned by the bus")
    try:
        call.driver.router.bus.name_release(call.connection, name)
    except KdbusError as error:
        # Only an activator may stand behind a name that is known but owned by nobody.
        nobody = error.errno == ESRCH or call.driver.router.bus.names.owner(name) is None
        return (_NON_EXISTENT if nobody else _NOT_OWNER,)
    return (_RELEASED,)


def _name_has_owner(call: Call) -> tuple[Any, ...]:
    (name,) = call.arguments
    return (name == DRIVER_NAME or find_owner(call, name) is not None,)


def _list_names(call: Call) -> tuple[Any, ...]:
    bus = call.driver.router.bus
    names = [DRIVER_NAME]
    names += [
        f"{UNIQUE_PREFIX}{connection.id}" for connection in bus.connections.values() if connection.is_ordinary
    ]
    names += [entry.name for entry in bus.names.entries() if entry.queue and entry.name != DRIVER_NAME]
    return (names,)


def _get_name_owner(call: Call) -> tuple[Any, ...]:
    (name,) = call.arguments
    if name == DRIVER_NAME:
        return (DRIVER_NAME,)
    owner = find_owner(call, name)
    if owner is None:
        raise MethodError("NameHasNoOwner", f"Could not get owner of name '{name}': no such name")
    return (f"{UNIQUE_PREFIX}{owner.id}",)


def _list_queued_owners(call: Call) -> tuple[Any, ...]:
    (name,) = call.arguments
    if name == DRIVER_NAME:
        return ([DRIVER_NAME],)
    owners = call.driver.router.bus.owners(name)
    if owners:
        return ([f"{UNIQUE_PREFIX}{owner.id}" for owner in owners],)
    if name[:1] == ":" and find_owner(call, name) is not None:
        return ([name],)
    raise MethodError("NameHasNoOwner", f"Could not get owners of name '{name}': no such name")


def _get_id(call: Call) -> tuple[Any, ...]:
    return (call.driver.host.guid,)


METHODS = (
    Method("Hello", "", "s", _hello),
    Method("RequestName", "su", "u", _request_name),
    Method("ReleaseName", "s", "u", _release_name),
    Method("NameHasOwner", "s", "b", _name_has_owner),
    Method("ListNames", "", "as", _list_names),
    Method("GetNameOwner", "s", "s", _get_name_owner),
    Method("ListQueuedOwners", "s", "as", _list_queued_owners),
    Method("GetId", "", "s", _get_id),
)
