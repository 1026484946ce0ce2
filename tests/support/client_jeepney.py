"""Scenarios of jeepney, blocking or with asyncio; prints its findings as JSON.

Run as a program: `blocking` or `asyncio`, then the scenario's name. jeepney writes BEGIN and Hello in one
piece and refuses to go on when anything follows the OK line early. The dbus-next service runs beside it.
"""

# mypy: ignore-errors

import asyncio
import inspect
import json
import os
import sys

from jeepney import (
    DBusAddress,
    HeaderFields,
    MatchRule,
    MessageType,
    new_error,
    new_method_call,
    new_method_return,
)
from jeepney.bus_messages import message_bus
from jeepney.io import asyncio as aio
from jeepney.io import blocking

SERVICE = DBusAddress("/com/example/Service", "com.example.Next", "com.example.Service")


class Both:
    """One interface over the two kinds of connection: each method may be awaited."""

    def __init__(self, connection, *, is_async):
        self.connection = connection
        self.is_async = is_async

    async def call(self, message):
        """Send a call; returns the reply message."""
        reply = self.connection.send_and_get_reply(message)
        return await reply if inspect.isawaitable(reply) else reply

    async def send(self, message):
        sent = self.connection.send(message)
        if inspect.isawaitable(sent):
            await sent

    async def receive(self):
        found = self.connection.receive()
        return await found if inspect.isawaitable(found) else found

    async def close(self):
        closed = self.connection.close()
        if inspect.isawaitable(closed):
            await closed


async def open_plain(kind, **options):
    """A connection on which the scenario itself receives."""
    if kind == "blocking":
        return Both(blocking.open_dbus_connection("SESSION", **options), is_async=False)
    return Both(await aio.open_dbus_connection("SESSION"), is_async=True)


async def ask(client, message):
    """Send a call on a plain connection and receive up to its reply; returns all that came."""
    serial = next(client.connection.outgoing_serial)
    message.header.serial = serial
    sent = client.connection.send(message, serial=serial)
    if inspect.isawaitable(sent):
        await sent
    messages = []
    while not messages or messages[-1].header.fields.get(HeaderFields.reply_serial) != serial:
        messages.append(await client.receive())
    return messages


def shown(message):
    """A message's type and body."""
    return [message.header.message_type.name, message.body]


async def calls(kind):
    """Calls with many types, and errors."""
    client = await open_plain(kind)
    found = []
    for member, signature, body in (
        ("EchoByte", "y", (200,)),
        ("EchoInt64", "x", (-(2**60),)),
        ("EchoDouble", "d", (0.125,)),
        ("EchoString", "s", ("Grüße ✓",)),
        ("EchoStrings", "as", (["a", ""],)),
        ("EchoStruct", "(isad)", ((1, "x", [0.5]),)),
        ("EchoDict", "a{sv}", ({"k": ("u", 7)},)),
        ("EchoSeveral", "ysa(ib)", (1, "x", [(3, True)])),
        ("Nothing", None, ()),
        ("Fail", "s", ("on purpose",)),
        ("NoSuchMethod", None, ()),
    ):
        reply = (await ask(client, new_method_call(SERVICE, member, signature, body)))[-1]
        found.append(shown(reply))
    nobody = DBusAddress("/", "com.example.Nobody", "a.b")
    found.append(shown((await ask(client, new_method_call(nobody, "M")))[-1]))
    assert found[3] == ["method_return", ("Grüße ✓",)]
    await client.close()
    return found


async def names(kind):
    """The bus's own methods as jeepney's generated wrappers call them."""
    client, other = await open_plain(kind), await open_plain(kind)
    found = []
    for who, message in (
        (client, message_bus.RequestName("com.example.A", 1)),
        (other, message_bus.RequestName("com.example.A")),
        (other, message_bus.RequestName("com.example.A", 2)),
        (client, message_bus.ListQueuedOwners("com.example.A")),
        (client, message_bus.NameHasOwner("com.example.A")),
        (client, message_bus.GetNameOwner("com.example.A")),
        (client, message_bus.GetNameOwner("com.example.Nobody")),
        (other, message_bus.ReleaseName("com.example.A")),
        (client, message_bus.GetConnectionUnixUser("com.example.A")),
        (client, message_bus.GetConnectionUnixProcessID("com.example.A")),
        (client, message_bus.StartServiceByName("com.example.Nobody")),
        (client, message_bus.GetId()),
        (client, message_bus.ListActivatableNames()),
    ):
        found.append([shown(message) for message in await ask(who, message)])
    (pid,) = found[9][-1][1]
    assert pid == os.getpid()
    found[9] = "the process of this client"
    await client.close()
    await other.close()
    return found


async def signals(kind):
    """A match rule, then the service's signal."""
    client = await open_plain(kind)
    rule = MatchRule(
        type="signal", interface="com.example.Service", member="Said", path="/com/example/Service"
    )
    rule.add_arg_condition(0, "wanted")
    heard = await ask(client, message_bus.AddMatch(rule))
    for text in ("not wanted", "wanted"):
        heard += await ask(client, new_method_call(SERVICE, "Say", "s", (text,)))
    assert any(message.body == ("wanted",) for message in heard)
    assert not any(message.body == ("not wanted",) for message in heard)
    await client.close()
    return [shown(message) for message in heard]


async def serve(kind):
    """One connection answers the calls of another, once well and once with an error."""
    server, client = await open_plain(kind), await open_plain(kind)
    await ask(server, message_bus.RequestName("com.example.Jeepney"))
    address = DBusAddress("/a", "com.example.Jeepney", "a.b")
    found = []
    for build in (
        lambda call: new_method_return(call, "s", ("fine",)),
        lambda call: new_error(call, "com.example.Error.Bad", "s", ("bad",)),
    ):
        serial = next(client.connection.outgoing_serial)
        sent = client.connection.send(new_method_call(address, "M", "u", (serial,)), serial=serial)
        if inspect.isawaitable(sent):
            await sent
        call = await server.receive()
        while call.header.message_type is not MessageType.method_call:
            call = await server.receive()
        await server.send(build(call))
        reply = await client.receive()
        while reply.header.fields.get(HeaderFields.reply_serial) != serial:
            reply = await client.receive()
        found.append([shown(call)[0], shown(reply), reply.header.fields.get(HeaderFields.error_name)])
    await server.close()
    await client.close()
    return found


async def router(kind):
    """The library's own routing of replies and signals, which hides the stream."""
    if kind == "blocking":
        with blocking.open_dbus_connection("SESSION") as connection:
            rule = MatchRule(type="signal", interface="com.example.Service", member="Said")
            connection.send_and_get_reply(message_bus.AddMatch(rule))
            with connection.filter(rule) as queue:
                connection.send_and_get_reply(new_method_call(SERVICE, "Say", "s", ("hello",)))
                return list(connection.recv_until_filtered(queue).body)
    async with aio.open_dbus_router("SESSION") as requests:
        rule = MatchRule(type="signal", interface="com.example.Service", member="Said")
        await requests.send_and_get_reply(message_bus.AddMatch(rule))
        with requests.filter(rule) as queue:
            await requests.send_and_get_reply(new_method_call(SERVICE, "Say", "s", ("hello",)))
            return list((await queue.get()).body)


async def fds(kind):
    """File descriptors both ways; only the blocking connection carries them."""
    assert kind == "blocking"
    client = await open_plain(kind, enable_fds=True)
    reader, writer = os.pipe()
    os.write(writer, b"through the bus")
    os.close(writer)
    with os.fdopen(reader) as stream:
        reply = (await ask(client, new_method_call(SERVICE, "ReadFd", "h", (stream,))))[-1]
    assert reply.body == ("through the bus",)
    reply = (await ask(client, new_method_call(SERVICE, "OpenFd", "s", ("back",))))[-1]
    with reply.body[0].to_file("r") as stream:
        text = stream.read()
    assert text == "back"
    await client.close()
    return text


SCENARIOS = [calls, names, signals, serve, router, fds]


if __name__ == "__main__":
    chosen = next(scenario for scenario in SCENARIOS if scenario.__name__ == sys.argv[2])
    print(json.dumps(asyncio.run(chosen(sys.argv[1]))))
