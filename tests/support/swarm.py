"""Many clients in one process that call clients of all processes of the swarm; run as a program.

Arguments: the first client's number, how many clients this process has, how many there are in all, and how
long to go on: `calls:N` (each client makes N calls) or `seconds:S`. Client k owns `com.example.Swarm.Nk`,
answers each call with what it was sent, and calls the others in turn, each call when the last is answered.
Everybody starts with the signal `Go`. The first client of a process also counts the signals that all
clients emit as they end. The last line of output is a JSON object: calls made, wrong answers, signals
heard.
"""

# mypy: ignore-errors

import asyncio
import json
import sys

from dbus_fast import Message, MessageFlag, MessageType
from dbus_fast.aio import MessageBus

DRIVER = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
INTERFACE = "com.example.Swarm"


def name_of(number):
    """The well-known name of a client."""
    return f"com.example.Swarm.N{number}"


class Client:
    """One connection of the swarm."""

    def __init__(self, number, total):
        self.number = number
        self.total = total
        self.go = asyncio.Event()
        self.all_done = asyncio.Event()
        self.done_signals = 0
        self.calls = 0
        self.wrong = []

    async def connect(self):
        self.bus = await MessageBus().connect()
        self.bus.add_message_handler(self.on_message)
        await self.ask_driver("AddMatch", "s", f"type='signal',interface='{INTERFACE}'")
        await self.ask_driver("RequestName", "su", name_of(self.number), 0)

    async def ask_driver(self, member, signature, *body):
        destination, path, interface = DRIVER
        reply = await self.bus.call(
            Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=list(body),
            )
        )
        if reply.message_type is not MessageType.METHOD_RETURN:
            raise AssertionError(reply.body)

    def on_message(self, message):
        if message.message_type is MessageType.METHOD_CALL and message.interface == INTERFACE:
            return Message.new_method_return(message, "us", [self.number, message.body[0]])
        if message.message_type is MessageType.SIGNAL and message.interface == INTERFACE:
            if message.member == "Go":
                self.go.set()
            else:
                self.done_signals += 1
                if self.done_signals == self.total:
                    self.all_done.set()
        return None

    async def run(self, *, calls, seconds):
        """Call the others in turn until the measure is full."""
        loop = asyncio.get_running_loop()
        await self.go.wait()
        end = loop.time() + seconds
        while self.calls < calls or loop.time() < end:
            target = (self.number + 1 + self.calls) % self.total
            text = f"{self.number} {self.calls}"
            reply = await self.bus.call(
                Message(
                    destination=name_of(target),
                    path="/swarm",
                    interface=INTERFACE,
                    member="Echo",
                    signature="s",
                    body=[text],
                )
            )
            self.calls += 1
            if reply.message_type is not MessageType.METHOD_RETURN or reply.body != [target, text]:
                self.wrong.append([reply.error_name, reply.body])
        await self.bus.send(
            Message(
                message_type=MessageType.SIGNAL,
                flags=MessageFlag.NONE,
                path="/swarm",
                interface=INTERFACE,
                member="Done",
            )
        )
        await self.all_done.wait()


async def main(first, count, total, measure):
    """Run this process's share of the swarm."""
    kind, _, amount = measure.partition(":")
    limits = (
        {"calls": int(amount), "seconds": 0} if kind == "calls" else {"calls": 0, "seconds": float(amount)}
    )
    clients = [Client(number, total) for number in range(first, first + count)]
    for client in clients:
        await client.connect()
    print("ready", flush=True)
    await asyncio.gather(*(client.run(**limits) for client in clients))
    print(
        json.dumps(
            {
                "calls": sum(client.calls for client in clients),
                "wrong": [answer for client in clients for answer in client.wrong],
                "signals": sorted({client.done_signals for client in clients}),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
