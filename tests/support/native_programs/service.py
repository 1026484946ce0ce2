"""A native service with the surface of `support.services`: run with the bus' node and the name to own.

It prints `ready` once it has the name, and ends when the bus does.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from typing import Any

from busproxy.native import DBusError, Descriptor, NativeBus, connect, current_call

PATH = "/com/example/Service"
INTERFACE = "com.example.Service"

ECHOES = {
    "EchoByte": "y",
    "EchoBoolean": "b",
    "EchoInt16": "n",
    "EchoUint16": "q",
    "EchoInt32": "i",
    "EchoUint32": "u",
    "EchoInt64": "x",
    "EchoUint64": "t",
    "EchoDouble": "d",
    "EchoString": "s",
    "EchoObjectPath": "o",
    "EchoSignature": "g",
    "EchoVariant": "v",
    "EchoBytes": "ay",
    "EchoStrings": "as",
    "EchoDict": "a{sv}",
    "EchoStruct": "(isad)",
    "EchoSeveral": "ysa(ib)",
}


class Service:
    """The handlers; what they return are the results."""

    def __init__(self, bus: NativeBus) -> None:
        self._bus = bus
        self.text = "first"

    def fail(self, text: str) -> None:
        raise DBusError("com.example.Error.Failed", text)

    def flags(self) -> int:
        """The flags of the very call."""
        return current_call().flags

    async def caller(self) -> tuple[str, int]:
        """Who calls: the unique name, and the user behind it as the bus knows them."""
        sender = current_call().sender
        (uid,) = await self._bus.call(
            "org.freedesktop.DBus",
            "/",
            "org.freedesktop.DBus",
            "GetConnectionUnixUser",
            "s",
            sender,
        )
        return sender, uid

    def digest(self, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    def read_fd(self, file: Descriptor) -> str:
        with os.fdopen(file.detach()) as stream:
            return stream.read()

    def open_fd(self, text: str) -> Descriptor:
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as stream:
            stream.write(text)
        return Descriptor(reader)

    async def say(self, text: str) -> None:
        await self._bus.emit(PATH, INTERFACE, "Said", "s", text)

    async def forward(self, destination: str, text: str) -> str:
        """What another service echoes."""
        (answer,) = await self._bus.call(destination, PATH, INTERFACE, "EchoString", "s", text)
        return str(answer)

    def get(self, interface: str, name: str) -> Any:
        return ("u", 7) if name == "Count" else ("s", self.text)

    def get_all(self, interface: str) -> Any:
        return {"Count": ("u", 7), "Text": ("s", self.text)}

    async def set(self, interface: str, name: str, value: tuple[str, Any]) -> None:
        self.text = value[1]
        await self._bus.emit(
            PATH,
            "org.freedesktop.DBus.Properties",
            "PropertiesChanged",
            "sa{sv}as",
            INTERFACE,
            {"Text": ("s", self.text)},
            [],
        )


def echo(*values: Any) -> Any:
    return values[0] if len(values) == 1 else values


async def main(node: str, name: str) -> None:
    async with await connect(node) as bus:
        service = Service(bus)
        methods: dict[str, tuple[str, str, Any]] = {
            member: (signature, signature, echo) for member, signature in ECHOES.items()
        }
        methods |= {
            "Nothing": ("", "", lambda: None),
            "Fail": ("s", "", service.fail),
            "Flags": ("", "u", service.flags),
            "Caller": ("", "su", service.caller),
            "Digest": ("ay", "s", service.digest),
            "ReadFd": ("h", "s", service.read_fd),
            "OpenFd": ("s", "h", service.open_fd),
            "Say": ("s", "", service.say),
            "Forward": ("ss", "s", service.forward),
        }
        bus.export(PATH, INTERFACE, methods)
        bus.export(
            PATH,
            "org.freedesktop.DBus.Properties",
            {
                "Get": ("ss", "v", service.get),
                "GetAll": ("s", "a{sv}", service.get_all),
                "Set": ("ssv", "", service.set),
            },
        )
        await bus.request_name(name)
        print("ready", flush=True)
        await bus.wait_disconnected()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
