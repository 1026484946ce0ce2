"""A D-Bus client for native programs: calls, signals, names and objects on a kdbus bus.

    async with await connect("/run/kdbus/0-system/bus") as bus:
        bus.export("/clock", "org.example.Clock", {"Now": ("", "s", lambda: time.ctime())})
        await bus.request_name("org.example.Clock")
        print(await bus.call("org.example.Editor", "/", "org.example.Editor", "Open", "s", "a.txt"))

Who is at the other end, a native program or a legacy one behind the proxy, makes no difference. Bodies are
GVariant on the way, match rules become bloom masks, and what the broker says of names becomes the signals
that D-Bus has for it. `docs/native-clients.md` shows whole programs.
"""

from busproxy.native.bus import DEFAULT_TIMEOUT, NativeBus, connect, current_call
from busproxy.native.errors import DBusError
from busproxy.native.messages import Message
from busproxy.native.rules import Match
from busproxy.native.values import Descriptor

__all__ = [
    "DEFAULT_TIMEOUT",
    "DBusError",
    "Descriptor",
    "Match",
    "Message",
    "NativeBus",
    "connect",
    "current_call",
]
