"""org.freedesktop.DBus.Properties of the driver: Features and Interfaces.

HeaderFiltering is not among the features, because unknown header fields are
forwarded as they are.
"""

from __future__ import annotations

from typing import Any

from busproxy.driver.call import Call, Method, MethodError
from busproxy.driver.outbox import DRIVER_INTERFACE

PROPERTIES: dict[str, tuple[str, list[str]]] = {
    "Features": ("as", ["ActivatableServicesChanged"]),
    "Interfaces": ("as", ["org.freedesktop.DBus.Monitoring", "org.freedesktop.DBus.Debug.Stats"]),
}


def _check_interface(call: Call, interface: str) -> None:
    if interface not in call.driver.interfaces:
        raise MethodError("UnknownInterface", f'Interface "{interface}" not found')


def _check_property(call: Call, interface: str, name: str) -> None:
    _check_interface(call, interface)
    if interface != DRIVER_INTERFACE or name not in PROPERTIES:
        raise MethodError("UnknownProperty", f'Property "{interface}.{name}" not found')


def _get(call: Call) -> tuple[Any, ...]:
    interface, name = call.arguments
    _check_property(call, interface, name)
    return (PROPERTIES[name],)


def _get_all(call: Call) -> tuple[Any, ...]:
    (interface,) = call.arguments
    _check_interface(call, interface)
    return (dict(PROPERTIES) if interface == DRIVER_INTERFACE else {},)


def _set(call: Call) -> tuple[Any, ...]:
    interface, name, _value = call.arguments
    _check_property(call, interface, name)
    raise MethodError("PropertyReadOnly", f"Property '{interface}.{name}' cannot be set")


METHODS = (
    Method("Get", "ss", "v", _get, anywhere=False),
    Method("GetAll", "s", "a{sv}", _get_all, anywhere=False),
    Method("Set", "ssv", "", _set, anywhere=False),
)
