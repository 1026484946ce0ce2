"""The example service written with dbus-next; run as a program with the well-known name to own.

Its methods have the signatures of every basic type and the usual containers; see `services.py` for how it is
started. Annotations of dbus-next are D-Bus signatures, which no Python type checker can read.
"""

# mypy: ignore-errors
# ruff: noqa: F722, F821

import asyncio
import os
import sys

from dbus_next import DBusError, Message, MessageType
from dbus_next.aio import MessageBus
from dbus_next.constants import PropertyAccess
from dbus_next.service import ServiceInterface, dbus_property, method, signal


class ExampleService(ServiceInterface):
    """One object's interface `com.example.Service`."""

    def __init__(self):
        super().__init__("com.example.Service")
        self.text = "first"
        self.kept_fds = []

    @method()
    def EchoByte(self, value: "y") -> "y":
        return value

    @method()
    def EchoBoolean(self, value: "b") -> "b":
        return value

    @method()
    def EchoInt16(self, value: "n") -> "n":
        return value

    @method()
    def EchoUint16(self, value: "q") -> "q":
        return value

    @method()
    def EchoInt32(self, value: "i") -> "i":
        return value

    @method()
    def EchoUint32(self, value: "u") -> "u":
        return value

    @method()
    def EchoInt64(self, value: "x") -> "x":
        return value

    @method()
    def EchoUint64(self, value: "t") -> "t":
        return value

    @method()
    def EchoDouble(self, value: "d") -> "d":
        return value

    @method()
    def EchoString(self, value: "s") -> "s":
        return value

    @method()
    def EchoObjectPath(self, value: "o") -> "o":
        return value

    @method()
    def EchoSignature(self, value: "g") -> "g":
        return value

    @method()
    def EchoVariant(self, value: "v") -> "v":
        return value

    @method()
    def EchoBytes(self, value: "ay") -> "ay":
        return value

    @method()
    def EchoStrings(self, value: "as") -> "as":
        return value

    @method()
    def EchoDict(self, value: "a{sv}") -> "a{sv}":
        return value

    @method()
    def EchoStruct(self, value: "(isad)") -> "(isad)":
        return value

    @method()
    def EchoSeveral(self, first: "y", second: "s", third: "a(ib)") -> "ysa(ib)":
        return [first, second, third]

    @method()
    def Nothing(self):
        pass

    @method()
    def Fail(self, text: "s"):
        raise DBusError("com.example.Error.Failed", text)

    @method()
    def ReadFd(self, file: "h") -> "s":
        with os.fdopen(file, "r") as stream:
            return stream.read()

    @method()
    def OpenFd(self, text: "s") -> "h":
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as stream:
            stream.write(text)
        self.kept_fds.append(reader)
        return reader

    @method()
    def Say(self, text: "s"):
        self.Said(text)

    @signal()
    def Said(self, text) -> "s":
        return text

    @dbus_property()
    def Text(self) -> "s":
        return self.text

    @Text.setter
    def Text(self, text: "s"):
        self.text = text
        self.emit_properties_changed({"Text": text})

    @dbus_property(access=PropertyAccess.READ)
    def Count(self) -> "u":
        return 7


def close_sent_fds(service):
    """The library sends a copy of each fd and leaves ours open: close those whose reply is out."""
    while service.kept_fds:
        os.close(service.kept_fds.pop())


async def main(name):
    """Own the name until the bus goes away."""
    bus = await MessageBus(negotiate_unix_fd=True).connect()
    service = ExampleService()
    bus.export("/com/example/Service", service)

    def on_message(message: Message):
        if message.message_type is MessageType.METHOD_CALL:
            close_sent_fds(service)

    bus.add_message_handler(on_message)
    await bus.request_name(name)
    print("ready", flush=True)
    await bus.wait_for_disconnect()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1]))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        sys.exit(0)
