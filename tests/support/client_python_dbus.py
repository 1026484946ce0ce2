"""Scenarios of dbus-python (libdbus) with GLib's main loop; prints its findings as JSON.

Run by the system's Python with the scenario's name. libdbus adds matches without waiting for a reply and
follows well-known senders by watching their owner. The python3-dbus service runs beside it, except where a
scenario starts and ends names itself.
"""

# mypy: ignore-errors

import json
import os
import sys

import dbus
import dbus.bus
import dbus.lowlevel
import dbus.mainloop.glib
import dbus.service
from gi.repository import GLib

NAME = "com.example.Python"
PATH = "/com/example/Service"
INTERFACE = "com.example.Service"


def plain(value):
    """A D-Bus value as JSON knows it."""
    match value:
        case dbus.Boolean():
            return bool(value)
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case int():
            return int(value)
        case float():
            return float(value)
        case None:
            return None
        case _:
            return str(value)


class Waiting:
    """Things heard, and a main loop that runs until there are enough."""

    def __init__(self):
        self.loop = GLib.MainLoop()
        self.heard = []
        self.wanted = 0

    def hear(self, *what):
        self.heard.append(plain(what))
        if len(self.heard) >= self.wanted:
            self.loop.quit()

    def until(self, count):
        self.wanted = count
        if len(self.heard) < count:
            self.loop.run()
        return self.heard


def calls():
    """Calls through a proxy, with introspection to find the signatures, and without."""
    bus = dbus.SessionBus()
    service = bus.get_object(NAME, PATH)
    interface = dbus.Interface(service, INTERFACE)
    found = [
        interface.EchoString("Grüße ✓"),
        interface.EchoDict({"a": 1, "b": "two", "c": [True]}),
        interface.EchoStruct((1, "x", [0.5, 1.5])),
        interface.Nothing(),
        service.EchoString("y", dbus_interface=INTERFACE),
        bus.call_blocking(NAME, PATH, INTERFACE, "EchoString", "s", ("z",)),
        interface.WhoAsks("it is"),
    ]
    assert found[0] == "Grüße ✓"
    assert str(found[-1]).endswith(bus.get_unique_name())
    return plain(found)


def errors():
    """Errors of the service and of the bus."""
    bus = dbus.SessionBus()
    found = []
    for name, path, interface, member, signature, arguments in (
        (NAME, PATH, INTERFACE, "Fail", "s", ("on purpose",)),
        (NAME, PATH, INTERFACE, "NoSuchMethod", "", ()),
        (NAME, "/none", INTERFACE, "Nothing", "", ()),
        ("com.example.Nobody", "/", "a.b", "M", "", ()),
        (dbus.BUS_DAEMON_NAME, dbus.BUS_DAEMON_PATH, dbus.BUS_DAEMON_IFACE, "GetNameOwner", "s", ("a.b",)),
        (dbus.BUS_DAEMON_NAME, dbus.BUS_DAEMON_PATH, dbus.BUS_DAEMON_IFACE, "GetNameOwner", "u", (1,)),
        (dbus.BUS_DAEMON_NAME, dbus.BUS_DAEMON_PATH, dbus.BUS_DAEMON_IFACE, "AddMatch", "s", ("bad",)),
    ):
        try:
            bus.call_blocking(name, path, interface, member, signature, arguments)
        except dbus.DBusException as error:
            found.append([error.get_dbus_name(), error.get_dbus_message()])
    try:
        bus.get_object("com.example.Nobody", "/")
    except dbus.DBusException as error:
        found.append([error.get_dbus_name(), error.get_dbus_message()])
    assert len(found) == 8
    return found


def names():
    """Names asked for, listed, queued, released."""
    bus, other = dbus.SessionBus(private=True), dbus.SessionBus(private=True)
    found = [
        bus.request_name("com.example.A", dbus.bus.NAME_FLAG_ALLOW_REPLACEMENT),
        other.request_name("com.example.A"),
        other.request_name("com.example.A", dbus.bus.NAME_FLAG_REPLACE_EXISTING),
        bus.list_queued_owners("com.example.A") if hasattr(bus, "list_queued_owners") else None,
        bus.name_has_owner("com.example.A"),
        bus.get_name_owner("com.example.A") == other.get_unique_name(),
        sorted(name for name in bus.list_names() if not name.startswith(":")),
        bus.list_activatable_names(),
        bus.get_unix_user("com.example.A"),
        other.release_name("com.example.A"),
        bus.release_name("com.example.A"),
        bus.release_name("com.example.A"),
    ]
    try:
        bus.start_service_by_name("com.example.Nobody")
    except dbus.DBusException as error:
        found.append([error.get_dbus_name(), error.get_dbus_message()])
    bus.close()
    other.close()
    return plain(found)


def signals():
    """Receivers with argument matches, paths, and keywords; emitted by another connection."""
    bus, sender = dbus.SessionBus(private=True), dbus.SessionBus(private=True)
    waiting = Waiting()

    def receiver(label):
        return lambda *arguments, **keywords: waiting.hear(label, arguments, sorted(keywords.items()))

    bus.add_signal_receiver(receiver("all"), dbus_interface="com.example.I")
    bus.add_signal_receiver(
        receiver("member"), signal_name="T", dbus_interface="com.example.I", member_keyword="member"
    )
    bus.add_signal_receiver(receiver("arg0"), dbus_interface="com.example.I", arg0="wanted")
    bus.add_signal_receiver(receiver("arg1"), dbus_interface="com.example.I", arg1="second")
    bus.add_signal_receiver(receiver("path"), path="/b", dbus_interface="com.example.I", path_keyword="path")
    bus.get_name_owner(dbus.BUS_DAEMON_NAME)
    for path, member, signature, arguments in (
        ("/a", "S", "s", ("wanted",)),
        ("/a", "S", "s", ("other",)),
        ("/a", "T", "", ()),
        ("/b", "S", "ss", ("x", "second")),
        ("/b", "End", "s", ("wanted",)),
    ):
        message = dbus.lowlevel.SignalMessage(path, "com.example.I", member)
        message.append(*arguments, signature=signature)
        sender.send_message(message)
    sender.flush()
    return waiting.until(11)


def sender_by_name():
    """A receiver for a well-known sender hears its owners in turn, and nobody else."""
    bus, first, second = (dbus.SessionBus(private=True) for _ in range(3))
    waiting = Waiting()
    first.request_name("com.example.A")
    second.request_name("com.example.A")
    bus.add_signal_receiver(
        waiting.hear, dbus_interface="com.example.I", bus_name="com.example.A", signal_name="S"
    )
    bus.add_signal_receiver(waiting.hear, dbus_interface="com.example.I", signal_name="End")
    bus.get_name_owner(dbus.BUS_DAEMON_NAME)

    def emit(connection, member, text):
        message = dbus.lowlevel.SignalMessage("/", "com.example.I", member)
        message.append(text, signature="s")
        connection.send_message(message)
        connection.get_name_owner(dbus.BUS_DAEMON_NAME)

    emit(first, "S", "first")
    emit(second, "S", "second too early")
    first.release_name("com.example.A")
    emit(second, "S", "second")
    emit(first, "S", "first too late")
    emit(first, "End", "end")
    heard = waiting.until(3)
    assert [item[0] for item in heard] == ["first", "second", "end"]
    return heard


def owner_watch():
    """watch_name_owner tells of every owner of a name."""
    bus, other = dbus.SessionBus(private=True), dbus.SessionBus(private=True)
    waiting = Waiting()
    other.set_exit_on_disconnect(False)
    bus.watch_name_owner("com.example.A", waiting.hear)
    waiting.until(1)
    other.request_name("com.example.A")
    waiting.until(2)
    other.close()
    heard = waiting.until(3)
    assert heard[0] == [""]
    assert heard[2] == [""]
    return heard


def properties():
    """Properties by the standard interface."""
    bus = dbus.SessionBus()
    properties = dbus.Interface(bus.get_object(NAME, PATH), dbus.PROPERTIES_IFACE)
    before = properties.GetAll(INTERFACE)
    properties.Set(INTERFACE, "Text", "second")
    driver = dbus.Interface(bus.get_object(dbus.BUS_DAEMON_NAME, dbus.BUS_DAEMON_PATH), dbus.PROPERTIES_IFACE)
    return plain([before, properties.Get(INTERFACE, "Text"), driver.GetAll(dbus.BUS_DAEMON_IFACE)])


def asynchronous():
    """Many calls at once, with reply and error handlers."""
    bus = dbus.SessionBus()
    interface = dbus.Interface(bus.get_object(NAME, PATH, introspect=False), INTERFACE)
    waiting = Waiting()
    for number in range(100):
        interface.EchoString(str(number), reply_handler=waiting.hear, error_handler=waiting.hear)
    interface.Fail(
        "x", reply_handler=waiting.hear, error_handler=lambda error: waiting.hear(error.get_dbus_name())
    )
    heard = waiting.until(101)
    assert heard[:100] == [[str(number)] for number in range(100)]
    return heard[100:]


def fds():
    """File descriptors both ways."""
    bus = dbus.SessionBus()
    interface = dbus.Interface(bus.get_object(NAME, PATH), INTERFACE)
    reader, writer = os.pipe()
    os.write(writer, b"through the bus")
    os.close(writer)
    found = [interface.ReadFd(dbus.types.UnixFd(reader))]
    os.close(reader)
    with os.fdopen(interface.OpenFd("back").take()) as stream:
        found.append(stream.read())
    assert found == ["through the bus", "back"]
    return plain(found)


SCENARIOS = [calls, errors, names, signals, sender_by_name, owner_watch, properties, asynchronous, fds]


if __name__ == "__main__":
    dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
    chosen = next(scenario for scenario in SCENARIOS if scenario.__name__ == sys.argv[1])
    print(json.dumps(chosen()))
