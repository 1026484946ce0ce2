"""The example service written with GDBus through PyGObject; the system's Python runs it with its name."""

# mypy: ignore-errors

import os
import sys

import gi

gi.require_version("Gio", "2.0")
from gi.repository import Gio, GLib  # noqa: E402

XML = """
<node>
  <interface name="com.example.Service">
    <method name="EchoString"><arg type="s" direction="in"/><arg type="s" direction="out"/></method>
    <method name="EchoDict"><arg type="a{sv}" direction="in"/><arg type="a{sv}" direction="out"/></method>
    <method name="EchoStruct"><arg type="(isad)" direction="in"/><arg type="(isad)" direction="out"/></method>
    <method name="Nothing"/>
    <method name="Fail"><arg type="s" direction="in"/></method>
    <method name="ReadFd"><arg type="h" direction="in"/><arg type="s" direction="out"/></method>
    <method name="OpenFd"><arg type="s" direction="in"/><arg type="h" direction="out"/></method>
    <method name="Say"><arg type="s" direction="in"/></method>
    <signal name="Said"><arg type="s"/></signal>
    <property name="Text" type="s" access="readwrite"/>
    <property name="Count" type="u" access="read"/>
  </interface>
</node>
"""

state = {"Text": "first"}


def on_method_call(connection, sender, path, interface, method, parameters, invocation):
    """Answer one call."""
    match method:
        case "EchoString" | "EchoDict" | "EchoStruct":
            invocation.return_value(parameters)
        case "Nothing":
            invocation.return_value(None)
        case "Fail":
            invocation.return_dbus_error("com.example.Error.Failed", parameters.unpack()[0])
        case "ReadFd":
            fds = invocation.get_message().get_unix_fd_list()
            with os.fdopen(fds.get(parameters.unpack()[0]), "r") as stream:
                invocation.return_value(GLib.Variant("(s)", (stream.read(),)))
        case "OpenFd":
            reader, writer = os.pipe()
            with os.fdopen(writer, "w") as stream:
                stream.write(parameters.unpack()[0])
            fds = Gio.UnixFDList.new()
            index = fds.append(reader)
            os.close(reader)
            invocation.return_value_with_unix_fd_list(GLib.Variant("(h)", (index,)), fds)
        case "Say":
            connection.emit_signal(None, path, interface, "Said", parameters)
            invocation.return_value(None)


def on_get_property(connection, sender, path, interface, name):
    """One property's value."""
    return GLib.Variant("u", 7) if name == "Count" else GLib.Variant("s", state["Text"])


def on_set_property(connection, sender, path, interface, name, value):
    """Set the text and announce it."""
    state["Text"] = value.unpack()
    changed = GLib.Variant("(sa{sv}as)", (interface, {"Text": value}, []))
    connection.emit_signal(None, path, "org.freedesktop.DBus.Properties", "PropertiesChanged", changed)
    return True


def on_bus_acquired(connection, name):
    """Register the object before the name is asked for."""
    connection.set_exit_on_close(False)
    interface = Gio.DBusNodeInfo.new_for_xml(XML).interfaces[0]
    connection.register_object(
        "/com/example/Service", interface, on_method_call, on_get_property, on_set_property
    )


def main(name):
    """Own the name until the bus goes away."""
    loop = GLib.MainLoop()
    Gio.bus_own_name(
        Gio.BusType.SESSION,
        name,
        Gio.BusNameOwnerFlags.NONE,
        on_bus_acquired,
        lambda connection, owned: print("ready", flush=True),
        lambda connection, lost: loop.quit(),
    )
    loop.run()


if __name__ == "__main__":
    main(sys.argv[1])
