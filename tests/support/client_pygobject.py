"""Scenarios of GLib's GDBus through PyGObject; prints its findings as JSON.

Run by the system's Python with the scenario's name. GDBus owns and watches names with its own machinery of
matches and callbacks, and its proxies cache properties. The GDBus service runs beside it.
"""

# mypy: ignore-errors

import json
import os
import sys

import gi

gi.require_version("Gio", "2.0")
from gi.repository import Gio, GLib  # noqa: E402

NAME = "com.example.GDBus"
PATH = "/com/example/Service"
INTERFACE = "com.example.Service"
DRIVER = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


def connect():
    """A connection of its own, not the process's shared one."""
    address = os.environ["DBUS_SESSION_BUS_ADDRESS"]
    flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
    return Gio.DBusConnection.new_for_address_sync(address, flags, None, None)


def call(connection, name, path, interface, member, arguments=None):
    """A blocking call; returns the unpacked reply or the error."""
    try:
        reply = connection.call_sync(
            name, path, interface, member, arguments, None, Gio.DBusCallFlags.NONE, 10000, None
        )
    except GLib.Error as error:
        return ["error", Gio.dbus_error_get_remote_error(error), error.message]
    return list(reply.unpack())


class Waiting:
    """Things heard, and a main loop that runs until there are enough."""

    def __init__(self):
        self.loop = GLib.MainLoop()
        self.heard = []
        self.wanted = 0

    def hear(self, *what):
        self.heard.append(list(what))
        if len(self.heard) >= self.wanted:
            self.loop.quit()

    def until(self, count):
        self.wanted = count
        if len(self.heard) < count:
            self.loop.run()
        return self.heard


def calls():
    """Calls, well and failing."""
    connection = connect()
    service = (connection, NAME, PATH, INTERFACE)
    found = [
        call(*service, "EchoString", GLib.Variant("(s)", ("Grüße ✓",))),
        call(*service, "EchoDict", GLib.Variant("(a{sv})", ({"k": GLib.Variant("u", 7)},))),
        call(*service, "EchoStruct", GLib.Variant("((isad))", ((1, "x", [0.5]),))),
        call(*service, "Nothing"),
        call(*service, "Fail", GLib.Variant("(s)", ("on purpose",))),
        call(*service, "NoSuchMethod"),
        call(connection, NAME, "/none", INTERFACE, "Nothing"),
        call(connection, "com.example.Nobody", "/", "a.b", "M"),
        call(connection, *DRIVER, "GetNameOwner", GLib.Variant("(s)", ("a.b",))),
        call(connection, *DRIVER, "NoSuchMethod"),
        call(connection, *DRIVER, "GetId"),
    ]
    assert found[0] == ["Grüße ✓"]
    return found


def own_name():
    """own_name with replacement and queueing: who acquires and loses what, in order."""
    first, second = connect(), connect()
    waiting = Waiting()

    def own(label, connection, flags):
        return Gio.bus_own_name_on_connection(
            connection,
            "com.example.Owned",
            flags,
            lambda connection, name: waiting.hear(label, "acquired", name),
            lambda connection, name: waiting.hear(label, "lost", name),
        )

    own("first", first, Gio.BusNameOwnerFlags.ALLOW_REPLACEMENT)
    waiting.until(1)
    owned = own("second", second, Gio.BusNameOwnerFlags.REPLACE)
    waiting.until(3)
    waiting.heard[1:3] = sorted(waiting.heard[1:3])
    Gio.bus_unown_name(owned)
    return waiting.until(4)


def watch_name():
    """watch_name tells of a name's appearing and vanishing."""
    watcher, owner = connect(), connect()
    waiting = Waiting()
    Gio.bus_watch_name_on_connection(
        watcher,
        "com.example.Watched",
        Gio.BusNameWatcherFlags.NONE,
        lambda connection, name, owner: waiting.hear("appeared", name, owner),
        lambda connection, name: waiting.hear("vanished", name),
    )
    waiting.until(1)
    call(owner, *DRIVER, "RequestName", GLib.Variant("(su)", ("com.example.Watched", 0)))
    waiting.until(2)
    owner.close_sync(None)
    return waiting.until(3)


def proxy():
    """A proxy: cached properties, changes, signals, owner."""
    connection = connect()
    waiting = Waiting()
    proxy = Gio.DBusProxy.new_sync(connection, Gio.DBusProxyFlags.NONE, None, NAME, PATH, INTERFACE, None)
    proxy.connect("g-signal", lambda proxy, sender, name, arguments: waiting.hear(name, arguments.unpack()))
    proxy.connect(
        "g-properties-changed",
        lambda proxy, changed, invalidated: waiting.hear(changed.unpack(), list(invalidated)),
    )
    names = sorted(proxy.get_cached_property_names())
    before = proxy.get_cached_property("Text").unpack()
    proxy.call_sync("Say", GLib.Variant("(s)", ("hello",)), Gio.DBusCallFlags.NONE, 10000, None)
    connection.call_sync(
        NAME,
        PATH,
        "org.freedesktop.DBus.Properties",
        "Set",
        GLib.Variant("(ssv)", (INTERFACE, "Text", GLib.Variant("s", "second"))),
        None,
        Gio.DBusCallFlags.NONE,
        10000,
        None,
    )
    heard = waiting.until(2)
    after = proxy.get_cached_property("Text").unpack()
    assert (before, after) == ("first", "second")
    return [names, before, after, proxy.get_name_owner(), heard]


def signals():
    """Subscriptions with every kind of match that GDBus makes."""
    receiver, sender = connect(), connect()
    waiting = Waiting()
    call(sender, *DRIVER, "RequestName", GLib.Variant("(su)", ("com.example.Sender", 0)))

    def subscribe(label, *, name=None, member=None, path=None, arg0=None, flags=Gio.DBusSignalFlags.NONE):
        receiver.signal_subscribe(
            name,
            "com.example.I",
            member,
            path,
            arg0,
            flags,
            lambda connection, sender, path, interface, member, arguments: waiting.hear(
                label, path, member, arguments.unpack()
            ),
        )

    subscribe("all")
    subscribe("member", member="T")
    subscribe("path", path="/b")
    subscribe("arg0", arg0="wanted")
    subscribe("name", name="com.example.Sender", member="S")
    subscribe("namespace", arg0="com.example", flags=Gio.DBusSignalFlags.MATCH_ARG0_NAMESPACE)
    subscribe("argpath", arg0="/a/b/", flags=Gio.DBusSignalFlags.MATCH_ARG0_PATH)
    call(receiver, *DRIVER, "GetId")
    for path, member, text in (
        ("/a", "S", "wanted"),
        ("/a", "T", "other"),
        ("/b", "S", "com.example.Sub"),
        ("/c", "S", "/a/b/c"),
        ("/c", "S", "com.examples"),
        ("/c", "End", "end"),
    ):
        sender.emit_signal(None, path, "com.example.I", member, GLib.Variant("(s)", (text,)))
    sender.flush_sync(None)
    while ["all", "/c", "End", ("end",)] not in waiting.heard:
        waiting.until(len(waiting.heard) + 1)
    return sorted(map(str, waiting.heard))


def fds():
    """File descriptors both ways."""
    connection = connect()
    reader, writer = os.pipe()
    os.write(writer, b"through the bus")
    os.close(writer)
    sent = Gio.UnixFDList.new()
    index = sent.append(reader)
    os.close(reader)

    def ask(member, arguments, fds):
        return connection.call_with_unix_fd_list_sync(
            NAME, PATH, INTERFACE, member, arguments, None, Gio.DBusCallFlags.NONE, 10000, fds, None
        )

    text = ask("ReadFd", GLib.Variant("(h)", (index,)), sent)[0].unpack()[0]
    assert text == "through the bus"
    reply, received = ask("OpenFd", GLib.Variant("(s)", ("back",)), None)
    with os.fdopen(received.get(reply.unpack()[0])) as stream:
        back = stream.read()
    assert back == "back"
    return [text, back]


def peer_credentials():
    """What the bus says about this very process."""
    connection = connect()
    own = GLib.Variant("(s)", (connection.get_unique_name(),))
    pid = call(connection, *DRIVER, "GetConnectionUnixProcessID", own)
    assert pid == [os.getpid()]
    return [call(connection, *DRIVER, "GetConnectionUnixUser", own), bool(connection.get_capabilities())]


SCENARIOS = [calls, own_name, watch_name, proxy, signals, fds, peer_credentials]


if __name__ == "__main__":
    chosen = next(scenario for scenario in SCENARIOS if scenario.__name__ == sys.argv[1])
    print(json.dumps(chosen()))
