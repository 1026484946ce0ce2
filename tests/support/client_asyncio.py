"""Scenarios of a dbus-next or dbus-fast client, whose interfaces are the same; prints its findings as JSON.

Run as a program: the library's module name, then the scenario's name. A scenario asserts what must be true on
any bus, and returns what has to be equal on two buses. The dbus-next service runs beside it.
"""

# mypy: ignore-errors
# ruff: noqa: F821

import asyncio
import importlib
import json
import os
import sys

library = importlib.import_module(sys.argv[1])
MessageBus = importlib.import_module(f"{sys.argv[1]}.aio").MessageBus
service = importlib.import_module(f"{sys.argv[1]}.service")
Message, MessageType, Variant = library.Message, library.MessageType, library.Variant
NameFlag, DBusError = library.NameFlag, library.DBusError

NAME = "com.example.Next"
PATH = "/com/example/Service"
INTERFACE = "com.example.Service"


async def connect(**options):
    """A connected bus object."""
    return await MessageBus(**options).connect()


async def proxy(bus):
    """The service's interface as the library makes it from introspection."""
    introspection = await bus.introspect(NAME, PATH)
    return bus.get_proxy_object(NAME, PATH, introspection).get_interface(INTERFACE)


async def calls():
    """Every echo through a proxy."""
    bus = await connect()
    echo = await proxy(bus)
    struct = await echo.call_echo_struct([1, "x", [0.5, 1.5]])
    return [
        await echo.call_echo_byte(200),
        await echo.call_echo_boolean(True),  # noqa: FBT003  (a generated method has no keywords)
        await echo.call_echo_int16(-300),
        await echo.call_echo_uint16(60000),
        await echo.call_echo_int32(-70000),
        await echo.call_echo_uint32(4000000000),
        await echo.call_echo_int64(-(2**60)),
        await echo.call_echo_uint64(2**63),
        await echo.call_echo_double(0.125),
        await echo.call_echo_string("Grüße ✓"),
        await echo.call_echo_object_path("/a/b"),
        await echo.call_echo_signature("a{sv}"),
        (await echo.call_echo_variant(Variant("as", ["x", "y"]))).value,
        list(await echo.call_echo_bytes(bytes(range(256)))),
        await echo.call_echo_strings(["a", "", "b"]),
        {key: value.value for key, value in (await echo.call_echo_dict({"k": Variant("u", 7)})).items()},
        struct,
        await echo.call_echo_several(1, "x", [[3, True]]),
        await echo.call_nothing(),
    ]


async def large():
    """A body of some megabytes there and back."""
    bus = await connect()
    echo = await proxy(bus)
    data = bytes(range(256)) * 16384
    assert bytes(await echo.call_echo_bytes(data)) == data
    text = "x" * 3_000_000
    assert await echo.call_echo_string(text) == text
    return len(data)


async def concurrent():
    """Many calls at once, each with its own answer; as many as the library's sockets take unread."""
    bus = await connect()
    echo = await proxy(bus)
    numbers = []
    for start in range(0, 500, 50):
        numbers += await asyncio.gather(*(echo.call_echo_uint32(start + number) for number in range(50)))
    assert numbers == list(range(500))
    return sum(numbers)


async def errors():
    """Errors of the service, of the bus, and of a name nobody owns."""
    bus = await connect()
    echo = await proxy(bus)
    found = []
    try:
        await echo.call_fail("on purpose")
    except DBusError as error:
        found.append([error.type, error.text])
    for destination, path, interface, member in (
        ("com.example.Nobody", "/", "a.b", "M"),
        (NAME, PATH, INTERFACE, "NoSuchMethod"),
        (NAME, "/no/such/path", INTERFACE, "Nothing"),
        ("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "NoSuchMethod"),
    ):
        reply = await bus.call(
            Message(destination=destination, path=path, interface=interface, member=member)
        )
        assert reply.message_type is MessageType.ERROR
        found.append([reply.error_name, reply.body, reply.signature])
    assert len(found) == 5
    return found


async def signals():
    """A signal through the proxy, and by a match of one's own."""
    bus = await connect()
    echo = await proxy(bus)
    heard = asyncio.Queue()
    echo.on_said(heard.put_nowait)
    await bus.introspect(NAME, PATH)
    await echo.call_say("hello")
    await echo.call_say("again")
    result = [await heard.get(), await heard.get()]
    echo.off_said(heard.put_nowait)
    return result


async def properties():
    """Reading, setting, and hearing of a change."""
    bus = await connect()
    introspection = await bus.introspect(NAME, PATH)
    node = bus.get_proxy_object(NAME, PATH, introspection)
    echo = node.get_interface(INTERFACE)
    changes = asyncio.Queue()
    watched = node.get_interface("org.freedesktop.DBus.Properties")
    watched.on_properties_changed(
        lambda interface, changed, gone: changes.put_nowait([interface, changed, gone])
    )
    before = await echo.get_text()
    await echo.set_text("second")
    interface, changed, gone = await changes.get()
    try:
        await watched.call_set(INTERFACE, "Count", Variant("u", 1))
        refused = None
    except DBusError as error:
        refused = [error.type, error.text]
    assert refused is not None
    return [
        before,
        await echo.get_text(),
        await echo.get_count(),
        interface,
        changed["Text"].value,
        gone,
        refused,
    ]


async def names():
    """Asking for names with flags, from two connections, while a third watches."""
    first, second, watcher = await connect(), await connect(), await connect()
    heard = []
    done = asyncio.Event()

    def on_message(message):
        if message.member == "NameOwnerChanged" and message.body[0].startswith("com.example"):
            heard.append(message.body)
            if message.body[0] == "com.example.End":
                done.set()

    watcher.add_message_handler(on_message)
    rule = "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged'"
    await call_bus(watcher, "AddMatch", "s", [rule])
    replies = [
        await first.request_name("com.example.A", NameFlag.ALLOW_REPLACEMENT),
        await second.request_name("com.example.A"),
        await second.request_name("com.example.A", NameFlag.DO_NOT_QUEUE),
        await second.request_name("com.example.A", NameFlag.REPLACE_EXISTING),
        await first.request_name("com.example.A"),
        await second.release_name("com.example.A"),
        await second.release_name("com.example.A"),
        await first.release_name("com.example.B"),
        await first.request_name("com.example.End"),
    ]
    await done.wait()
    return [[str(reply.name) for reply in replies], heard]


async def call_bus(bus, member, signature="", body=()):
    """A call of the bus itself; returns the reply's body."""
    reply = await bus.call(
        Message(
            destination="org.freedesktop.DBus",
            path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus",
            member=member,
            signature=signature,
            body=list(body),
        )
    )
    assert reply.message_type is MessageType.METHOD_RETURN, reply.body
    return reply.body


async def credentials():
    """What the bus says about the service's process."""
    bus = await connect()
    (owner,) = await call_bus(bus, "GetNameOwner", "s", [NAME])
    (own,) = await call_bus(bus, "GetConnectionUnixProcessID", "s", [bus.unique_name])
    assert own == os.getpid()
    (described,) = await call_bus(bus, "GetConnectionCredentials", "s", [owner])
    shown = {name: value.value for name, value in described.items()}
    return {name: list(value) if isinstance(value, bytes) else value for name, value in shown.items()}


async def export():
    """An own service, called by a second connection of the same process."""

    class Counter(service.ServiceInterface):
        def __init__(self):
            super().__init__("com.example.Counter")
            self.count = 0

        @service.method()
        def Add(self, amount: "i") -> "i":
            self.count += amount
            self.Changed(self.count)
            return self.count

        @service.signal()
        def Changed(self, count: "i") -> "i":
            return self.count

    server, client = await connect(), await connect()
    server.export("/counter", Counter())
    await server.request_name("com.example.Counter")
    introspection = await client.introspect("com.example.Counter", "/counter")
    counter = client.get_proxy_object("com.example.Counter", "/counter", introspection)
    interface = counter.get_interface("com.example.Counter")
    heard = asyncio.Queue()
    interface.on_changed(heard.put_nowait)
    await client.introspect("com.example.Counter", "/counter")
    totals = [await interface.call_add(amount) for amount in (1, 2, 3)]
    assert totals == [1, 3, 6]
    return [totals, [await heard.get() for _ in range(3)]]


async def fds():
    """A file descriptor to the service and one from it."""
    bus = await connect(negotiate_unix_fd=True)
    reader, writer = os.pipe()
    os.write(writer, b"through the bus")
    os.close(writer)
    reply = await bus.call(
        Message(
            destination=NAME,
            path=PATH,
            interface=INTERFACE,
            member="ReadFd",
            signature="h",
            body=[0],
            unix_fds=[reader],
        )
    )
    os.close(reader)
    assert reply.body == ["through the bus"], reply.body
    reply = await bus.call(
        Message(
            destination=NAME, path=PATH, interface=INTERFACE, member="OpenFd", signature="s", body=["back"]
        )
    )
    with os.fdopen(reply.unix_fds[reply.body[0]]) as stream:
        text = stream.read()
    assert text == "back"
    return [reply.signature, text]


async def disconnect():
    """A connection that ends while others watch it."""
    watcher, leaver = await connect(), await connect()
    await call_bus(watcher, "AddMatch", "s", ["member='NameOwnerChanged',arg2=''"])
    gone = asyncio.Event()
    heard = []

    def on_message(message):
        if message.member == "NameOwnerChanged":
            heard.append(message.body)
            if message.body[0] == leaver.unique_name:
                gone.set()

    watcher.add_message_handler(on_message)
    await leaver.request_name("com.example.Leaver")
    leaver.disconnect()
    await gone.wait()
    return heard


SCENARIOS = [
    calls,
    large,
    concurrent,
    errors,
    signals,
    properties,
    names,
    credentials,
    export,
    fds,
    disconnect,
]


if __name__ == "__main__":
    chosen = next(scenario for scenario in SCENARIOS if scenario.__name__ == sys.argv[2])
    print(json.dumps(asyncio.run(chosen())))
