"""The example service written with dbus-python (libdbus); run by the system's Python with the name to own."""

# mypy: ignore-errors

import os
import sys

import dbus
import dbus.mainloop.glib
import dbus.service
from gi.repository import GLib

INTERFACE = "com.example.Service"
PROPERTIES = "org.freedesktop.DBus.Properties"


class Failed(dbus.DBusException):
    """The error that `Fail` answers with."""

    _dbus_error_name = "com.example.Error.Failed"


class ExampleService(dbus.service.Object):
    """The one object of the service."""

    text = "first"

    @dbus.service.method(INTERFACE, in_signature="s", out_signature="s")
    def EchoString(self, value):
        return value

    @dbus.service.method(INTERFACE, in_signature="a{sv}", out_signature="a{sv}")
    def EchoDict(self, value):
        return value

    @dbus.service.method(INTERFACE, in_signature="(isad)", out_signature="(isad)")
    def EchoStruct(self, value):
        return value

    @dbus.service.method(INTERFACE)
    def Nothing(self):
        pass

    @dbus.service.method(INTERFACE, in_signature="s")
    def Fail(self, text):
        raise Failed(text)

    @dbus.service.method(INTERFACE, in_signature="h", out_signature="s")
    def ReadFd(self, file):
        with os.fdopen(file.take(), "r") as stream:
            return stream.read()

    @dbus.service.method(INTERFACE, in_signature="s", out_signature="h")
    def OpenFd(self, text):
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as stream:
            stream.write(text)
        passed = dbus.types.UnixFd(reader)
        os.close(reader)
        return passed

    @dbus.service.method(INTERFACE, in_signature="s", out_signature="s", sender_keyword="sender")
    def WhoAsks(self, question, sender=None):
        return f"{question} {sender}"

    @dbus.service.method(INTERFACE, in_signature="s")
    def Say(self, text):
        self.Said(text)

    @dbus.service.signal(INTERFACE, signature="s")
    def Said(self, text):
        pass

    @dbus.service.method(PROPERTIES, in_signature="ss", out_signature="v")
    def Get(self, interface, name):
        return dbus.UInt32(7) if name == "Count" else self.text

    @dbus.service.method(PROPERTIES, in_signature="s", out_signature="a{sv}")
    def GetAll(self, interface):
        return {"Text": self.text, "Count": dbus.UInt32(7)}

    @dbus.service.method(PROPERTIES, in_signature="ssv")
    def Set(self, interface, name, value):
        self.text = value


def main(name):
    """Own the name until the bus goes away."""
    dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
    bus = dbus.SessionBus()
    bus.set_exit_on_disconnect(False)
    loop = GLib.MainLoop()
    bus.call_on_disconnection(lambda connection: loop.quit())
    service = ExampleService(bus, "/com/example/Service")
    owned = dbus.service.BusName(name, bus, do_not_queue=True)
    print("ready", flush=True)
    loop.run()
    del owned, service


if __name__ == "__main__":
    main(sys.argv[1])
