"""The objects of a program: what others can call here, and what answers.

An object is a path with interfaces, an interface a table of methods: name → (arguments, results, handler),
signatures on both sides. A handler is called with the arguments; what it returns is the result: nothing, one
value, or a tuple of as many as the results' signature has. It may be a coroutine function, and then others
are served meanwhile. An error is a `DBusError` that it raises.

Every program answers `Peer` on any path and `Introspectable` where there is an object or one below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

from busproxy.native.errors import (
    FAILED,
    INVALID_ARGS,
    UNKNOWN_INTERFACE,
    UNKNOWN_METHOD,
    UNKNOWN_OBJECT,
    DBusError,
)
from busproxy.native.messages import Message
from busproxy.wire.errors import ProtocolError
from busproxy.wire.names import is_interface_name, is_member_name, is_object_path
from busproxy.wire.signatures import complete_types, validate_signature

PEER = "org.freedesktop.DBus.Peer"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")

Handler = Callable[..., Any]
"""Takes the arguments, returns the results or an awaitable of them."""
MethodTable = Mapping[str, tuple[str, str, Handler]]

_DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    '"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)


@dataclass(frozen=True, slots=True)
class Method:
    """A method that can be called: signatures of arguments and results, and what answers."""

    arguments: str
    results: str
    handler: Handler

    def pack(self, result: Any) -> tuple[Any, ...]:
        """What a handler returned as one value for each type of the results."""
        count = len(complete_types(self.results))
        if count == 0:
            return ()
        if count == 1:
            return (result,)
        return tuple(result)


def machine_id() -> str:
    """The id of this machine; `DBusError` when it has none."""
    for path in MACHINE_ID_FILES:
        try:
            with open(path, encoding="ascii") as file:
                return file.read().strip()
        except (OSError, UnicodeDecodeError):
            continue
    raise DBusError(FAILED, "This machine has no id")


class Objects:
    """Everything that a program exports."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[str, dict[str, Method]]] = {}
        self._anywhere = {PEER: {"Ping": Method("", "", _ping), "GetMachineId": Method("", "s", machine_id)}}

    def add(self, path: str, interface: str, methods: MethodTable) -> None:
        """Export an interface at a path; `ValueError` for what is no name or signature, or there already."""
        if not is_object_path(path):
            raise ValueError(f"{path!r} is not an object path")
        if not is_interface_name(interface):
            raise ValueError(f"{interface!r} is not an interface name")
        table = {}
        for name, (arguments, results, handler) in methods.items():
            if not is_member_name(name):
                raise ValueError(f"{name!r} is not a method name")
            for signature in (arguments, results):
                try:
                    validate_signature(signature)
                except ProtocolError as error:
                    raise ValueError(f"{signature!r} is not a signature: {error.reason}") from error
            table[name] = Method(arguments, results, handler)
        if interface in self._objects.get(path, ()):
            raise ValueError(f"{path} has an interface {interface}")
        self._objects.setdefault(path, {})[interface] = table

    def remove(self, path: str, interface: str) -> None:
        """Export it no longer; `ValueError` when it is not there."""
        try:
            interfaces = self._objects[path]
            del interfaces[interface]
        except KeyError:
            raise ValueError(f"{path} has no interface {interface}") from None
        if not interfaces:
            del self._objects[path]

    def find(self, call: Message) -> Method:
        """What answers a call; `DBusError` in the specification's words when nothing does."""
        path, interface, member = call.path or "", call.interface, call.member or ""
        own = self._objects.get(path, {})
        interfaces = own | self._anywhere
        if own or self._children(path):
            interfaces[INTROSPECTABLE] = {"Introspect": Method("", "s", lambda: self.introspect(path))}
        tables = list(interfaces.values()) if interface is None else [interfaces.get(interface)]
        if tables == [None]:
            if INTROSPECTABLE in interfaces:
                raise DBusError(UNKNOWN_INTERFACE, f"{path} has no interface {interface}")
            raise DBusError(UNKNOWN_OBJECT, f"There is no object {path}")
        for table in tables:
            method = table.get(member) if table is not None else None
            if method is None:
                continue
            if method.arguments != call.signature:
                raise DBusError(
                    INVALID_ARGS,
                    f'{member} takes arguments of types "{method.arguments}", not "{call.signature}"',
                )
            return method
        if INTROSPECTABLE in interfaces or interface is not None:
            where = f" of {interface}" if interface is not None else ""
            raise DBusError(UNKNOWN_METHOD, f"{path} has no method {member}{where}")
        raise DBusError(UNKNOWN_OBJECT, f"There is no object {path}")

    def introspect(self, path: str) -> str:
        """What is at a path, as XML."""
        interfaces = self._objects.get(path, {}) | self._anywhere
        interfaces[INTROSPECTABLE] = {"Introspect": Method("", "s", _ping)}
        lines = [_DOCTYPE, "<node>\n"]
        for name, table in interfaces.items():
            lines.append(f"  <interface name={quoteattr(name)}>\n")
            for member, method in table.items():
                lines.append(f"    <method name={quoteattr(member)}>\n")
                for direction, signature in (("in", method.arguments), ("out", method.results)):
                    for type_ in complete_types(signature):
                        lines.append(f'      <arg direction="{direction}" type={quoteattr(type_)}/>\n')
                lines.append("    </method>\n")
            lines.append("  </interface>\n")
        lines += [f"  <node name={quoteattr(child)}/>\n" for child in self._children(path)]
        lines.append("</node>\n")
        return "".join(lines)

    def _children(self, path: str) -> list[str]:
        above = path.rstrip("/") + "/"
        return sorted(
            {other[len(above) :].partition("/")[0] for other in self._objects if other.startswith(above)}
            - {""}
        )


def _ping() -> None:
    """There is somebody."""
