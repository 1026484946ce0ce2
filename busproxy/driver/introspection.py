"""org.freedesktop.DBus.Introspectable: the driver's tables as XML.

At the canonical path everything is there; elsewhere only what answers on any
path.  A path above the canonical one names the child that leads to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from busproxy.driver.call import Call, Interface, Method
from busproxy.driver.outbox import DRIVER_INTERFACE, DRIVER_PATH
from busproxy.driver.properties import PROPERTIES
from busproxy.wire.signatures import complete_types

_DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    '"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)

# Signals by interface: name, signature and the names of the arguments, as far as they have one.
_SIGNALS: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    DRIVER_INTERFACE: (
        ("NameOwnerChanged", "sss", ()),
        ("NameLost", "s", ()),
        ("NameAcquired", "s", ()),
        ("ActivatableServicesChanged", "", ()),
    ),
    "org.freedesktop.DBus.Properties": (
        (
            "PropertiesChanged",
            "sa{sv}as",
            ("interface_name", "changed_properties", "invalidated_properties"),
        ),
    ),
}


def _arguments(signature: str, direction: str) -> Iterator[str]:
    for type_ in complete_types(signature):
        yield f'      <arg direction="{direction}" type="{type_}"/>\n'


def _signal(name: str, signature: str, names: tuple[str, ...]) -> str:
    lines = ""
    for type_, argument in zip_longest(complete_types(signature), names):
        attribute = f' name="{argument}"' if argument else ""
        lines += f'      <arg type="{type_}"{attribute}/>\n'
    return f'    <signal name="{name}">\n{lines}    </signal>\n'


def _method(method: Method) -> str:
    lines = [*_arguments(method.arguments, "in"), *_arguments(method.results, "out")]
    return f'    <method name="{method.name}">\n{"".join(lines)}    </method>\n'


def _interface(name: str, methods: dict[str, Method]) -> str:
    content = "".join(map(_method, methods.values()))
    if name == DRIVER_INTERFACE:
        for property_name, (type_, _) in PROPERTIES.items():
            content += (
                f'    <property name="{property_name}" type="{type_}" access="read">\n'
                '      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal" value="const"/>\n'
                "    </property>\n"
            )
    content += "".join(_signal(*signal) for signal in _SIGNALS.get(name, ()))
    return f'  <interface name="{name}">\n{content}  </interface>\n'


def introspect(path: str, interfaces: Mapping[str, Interface]) -> str:
    """The introspection data of an object with these interfaces at an object path."""
    canonical = path == DRIVER_PATH
    parts = [_DOCTYPE, "<node>\n"]
    parts += [
        _interface(name, interface.methods)
        for name, interface in interfaces.items()
        if canonical or interface.anywhere
    ]
    above = path.rstrip("/") + "/"
    if DRIVER_PATH.startswith(above):
        parts.append(f'  <node name="{DRIVER_PATH[len(above) :]}"/>\n')
    parts.append("</node>\n")
    return "".join(parts)


def _introspect(call: Call) -> tuple[Any, ...]:
    return (introspect(call.message.header.path or "/", call.driver.interfaces),)


METHODS = (Method("Introspect", "", "s", _introspect),)
