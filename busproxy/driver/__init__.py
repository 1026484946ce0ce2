"""The driver: the object `org.freedesktop.DBus` that the proxy answers for.

What it does is a table of interfaces and methods; each module of this package
contributes the methods of one subject.  The driver finds the method, checks
path, signature and privilege in dbus-daemon's order and words, calls the
handler and sends what it returns.

The driver also turns the broker's notifications into the signals that legacy
clients know: a change of owner is NameLost to the old owner, then
NameOwnerChanged to whoever subscribed, then NameAcquired to the new one, the
first and the last only where that is a client: native owners get the
notifications themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from busproxy.driver import (
    activation,
    credentials,
    introspection,
    itself,
    names,
    properties,
    statistics,
    subscriptions,
)
from busproxy.driver.call import ERROR_PREFIX, Call, Interface, Method, MethodError
from busproxy.driver.flow import DriverFlow
from busproxy.driver.outbox import DRIVER_INTERFACE, DRIVER_NAME, DRIVER_PATH, Outbox
from busproxy.peer import Peer
from busproxy.router import UNIQUE_PREFIX, UNKNOWN_TYPE_ERROR, UNKNOWN_TYPE_TEXT, is_client, peer_of
from busproxy.wire.header import NO_REPLY_EXPECTED, MessageType
from kdbus_core.names import ACTIVATOR, IN_QUEUE
from kdbus_core.notifications import IdAdd, IdRemove, NameChange, Notification

if TYPE_CHECKING:
    from busproxy.driver.host import Host
    from busproxy.incoming import Incoming
    from busproxy.router import Router
    from kdbus_core.connection import Connection


def _table(*methods: Method) -> dict[str, Method]:
    return {method.name: method for method in methods}


_OWN_METHODS = _table(*names.METHODS, *activation.METHODS, *subscriptions.METHODS, *credentials.METHODS)

# In dbus-daemon's order, which is the one that people know from introspection.
_ORDER = (
    "Hello",
    "RequestName",
    "ReleaseName",
    "StartServiceByName",
    "UpdateActivationEnvironment",
    "NameHasOwner",
    "ListNames",
    "ListActivatableNames",
    "AddMatch",
    "RemoveMatch",
    "GetNameOwner",
    "ListQueuedOwners",
    "GetConnectionUnixUser",
    "GetConnectionUnixProcessID",
    "GetAdtAuditSessionData",
    "GetConnectionSELinuxSecurityContext",
    "ReloadConfig",
    "GetId",
    "GetConnectionCredentials",
)

INTERFACES: dict[str, Interface] = {
    DRIVER_INTERFACE: Interface({name: _OWN_METHODS[name] for name in _ORDER}, anywhere=True),
    "org.freedesktop.DBus.Properties": Interface(_table(*properties.METHODS)),
    "org.freedesktop.DBus.Introspectable": Interface(_table(*introspection.METHODS), anywhere=True),
    "org.freedesktop.DBus.Monitoring": Interface(_table(*subscriptions.MONITORING_METHODS)),
    "org.freedesktop.DBus.Debug.Stats": Interface(_table(*statistics.METHODS)),
    "org.freedesktop.DBus.Peer": Interface(_table(*itself.METHODS), anywhere=True),
}


class Driver:
    """`org.freedesktop.DBus` of one bus."""

    def __init__(self, router: Router, host: Host) -> None:
        self.router = router
        self.host = host
        self.interfaces = INTERFACES
        self.outbox = Outbox(router)
        self.statistics = statistics.Peaks()
        router.driver = self
        router.bus.observers.append(self._on_notification)

    def close(self) -> None:
        """Tell clients of no more changes."""
        self.router.bus.observers.remove(self._on_notification)

    # Messages to the driver

    def on_message(self, message: Incoming) -> bool:
        """Deal with a message whose destination is the driver; False: it was refused."""
        header = message.header
        if header.type > MessageType.SIGNAL:
            self.refuse(message, UNKNOWN_TYPE_ERROR, UNKNOWN_TYPE_TEXT)
        elif header.type == MessageType.SIGNAL:
            self.router.activation.on_systemd_signal(message)
        if header.type != MessageType.METHOD_CALL:
            return header.type <= MessageType.SIGNAL
        try:
            method = self._find(message)
        except MethodError as error:
            self.refuse(message, error.name, error.text)
            return False
        peer = message.peer
        bus = self.router.bus
        listeners = bus.subscriptions.has_listeners or bus.has_native_monitors
        if peer.connection is not None and message.fds is None and not listeners:
            peer.flows.add(DriverFlow(self, method, header), message.data, message.start, message.body, 0)
        return self.call(method, message)

    def call(self, method: Method, message: Incoming) -> bool:
        """Carry out a call that is in order; False: the method has refused."""
        header = message.header
        try:
            values = method.handler(Call(self, message))
        except MethodError as error:
            self.refuse(message, error.name, error.text)
            return False
        except OSError as error:  # out of descriptors, most likely
            self.refuse(message, ERROR_PREFIX + "Failed", f"{header.member}: {error.strerror}")
            return False
        if values is not None:
            self.reply(message, method, values)
        return True

    def reply(self, message: Incoming, method: Method, values: Sequence[Any]) -> None:
        """Answer a call; one without results is only acknowledged to who wants to know."""
        header = message.header
        if method.results or not header.flags & NO_REPLY_EXPECTED:
            self.outbox.send_reply(message.peer, message.serial, method.results, values)

    def _find(self, message: Incoming) -> Method:
        header, peer = message.header, message.peer
        name, interface, signature = header.member or "", header.interface, header.signature
        if peer.connection is None and (name != "Hello" or interface not in (None, DRIVER_INTERFACE)):
            raise MethodError(
                "AccessDenied", "Client tried to send a message other than Hello without being registered"
            )
        canonical = header.path == DRIVER_PATH
        known_interface = interface is None
        for interface_name, table in INTERFACES.items():
            if (interface is not None and interface != interface_name) or not (canonical or table.anywhere):
                continue
            known_interface = True
            method = table.methods.get(name)
            if method is None:
                continue
            if not canonical and not method.anywhere:
                raise MethodError(
                    "AccessDenied",
                    f"Method '{name}' is only available at the canonical object path '{DRIVER_PATH}'",
                )
            if method.privileged:
                self._check_privilege(peer, method)
            if signature != method.arguments:
                raise MethodError(
                    "InvalidArgs",
                    f"Call to {name} has wrong args ({signature}, expected {method.arguments})\n",
                )
            return method
        raise MethodError(
            "UnknownMethod" if known_interface else "UnknownInterface",
            f"{DRIVER_NAME} does not understand message {name}",
        )

    def _check_privilege(self, peer: Peer, method: Method) -> None:
        uid = peer.credentials.uid
        if uid is not None and uid in (0, self.router.owner_uid):
            return
        raise MethodError(
            "AccessDenied",
            f"rejected attempt to call {method.name} by {'unknown' if uid is None else f'uid {uid}'}",
        )

    def answer_for_itself(self, message: Incoming) -> None:
        """Deal with a call that has no destination: only org.freedesktop.DBus.Peer is known there."""
        header = message.header
        if header.type != MessageType.METHOD_CALL:
            return
        method = None
        if header.interface == "org.freedesktop.DBus.Peer":
            method = INTERFACES[header.interface].methods.get(header.member or "")
        if method is not None:
            try:
                values = method.handler(Call(self, message))
            except MethodError as error:
                self._answer_bare(message, error.name, "s", (error.text,))
            else:
                self._answer_bare(message, None, method.results, values or ())
            return
        text = (
            f'Method "{header.member}" with signature "{header.signature}" '
            f'on interface "{header.interface or "(null)"}" doesn\'t exist\n'
        )
        self._answer_bare(message, ERROR_PREFIX + "UnknownMethod", "s", (text,))

    def _answer_bare(
        self, message: Incoming, error_name: str | None, signature: str, values: Sequence[Any]
    ) -> None:
        self.outbox.send_bare(
            message.peer,
            message.serial,
            error_name=error_name,
            signature=signature,
            values=values,
        )

    # Refusals

    def refuse(self, message: Incoming, name: str, text: str) -> None:
        """Tell the sender of a message that it went nowhere."""
        self.outbox.send_error(message.peer, message.serial, name, text)

    def send_no_reply(self, peer: Peer, serial: int, name: str, text: str) -> None:
        """Tell a caller that its call will not be answered."""
        self.outbox.send_error(peer, serial, name, text)

    # Notifications of the broker

    def _on_notification(self, notification: Notification) -> None:
        match notification:
            case NameChange(name, old, old_flags, new, new_flags):
                self._on_name_change(
                    name,
                    None if old_flags & (IN_QUEUE | ACTIVATOR) else old,
                    None if new_flags & (IN_QUEUE | ACTIVATOR) else new,
                )
            case IdAdd(connection) if not (connection.is_activator or connection.is_policy_holder):
                name = f"{UNIQUE_PREFIX}{connection.id}"
                self._on_name_change(name, None, connection)
            case IdRemove(connection) if not (connection.is_activator or connection.is_policy_holder):
                name = f"{UNIQUE_PREFIX}{connection.id}"
                self._on_name_change(name, connection, None)
            case _:
                pass

    def _on_name_change(self, name: str, old: Connection | None, new: Connection | None) -> None:
        if (old is None and new is None) or name == DRIVER_NAME:
            return  # to clients that name is the driver's, whoever else has it
        if old is not None and is_client(old) and (old.active or self.router.bus.subscriptions.has_monitors):
            # Even if it has gone: monitors see what it would have been told.
            self.outbox.send_signal(peer_of(old), "NameLost", "s", (name,))
        old_name = f"{UNIQUE_PREFIX}{old.id}" if old is not None else ""
        new_name = f"{UNIQUE_PREFIX}{new.id}" if new is not None else ""
        self.outbox.broadcast("NameOwnerChanged", "sss", (name, old_name, new_name))
        if new is not None:
            if is_client(new):
                self.outbox.send_signal(peer_of(new), "NameAcquired", "s", (name,))
            self.router.activation.on_name_acquired(name, new)


__all__ = ["DRIVER_NAME", "INTERFACES", "Driver"]
