"""A kdbus client without a kernel: it drives the broker through command bytes alone.

    def test_a_message_arrives(world: World) -> None:
        sender, receiver = world.connect(), world.connect()
        sender.send(receiver, cookie=7)
        assert receiver.recv().cookie == 7
        with refused(EAGAIN):
            receiver.recv()

What there is:

- `World` (fixture `world`): a domain with one bus of uid 1000. `world.task(uid, …)` is a process with any
  credentials, `world.connect(task, …)` a connection, `world.open(node, task)` a bare handle, and
  `connect_monitor`, `connect_activator`, `connect_holder`, `make_endpoint`, `make_bus` are what they say.
  `world.advance(ms)` is the only clock. At the end of a test everything is closed, and it is checked that
  nothing is left: connections, users, names, charges, file references, watches; in a pool only the slices
  that the test did not free.
- `Client`: a handle. A method a command, which returns what the command gives or raises `Refused`; commands
  that are wrong on purpose go through `client.command(layout.HELLO, *items, size=…, flags=…, field=…)` or
  `client.ioctl(request, address)`. Messages: `send` (the standard message: a vector of 131075 bytes, five
  zeros, 13 bytes, then a memfd, or in a broadcast a filter), `broadcast`, `send_small`, `signal`, `reply`,
  `send_items` (any items), and `call`, the synchronous SEND: it returns a `Pending`, whose `result()` is
  the reply or raises. `recv`, `peek`, `drop`, `recv_poll`, `drain` receive; a message is decoded strictly,
  copied, and its slice freed unless `keep=True`.
- `refused(errno)`: the command inside has to be refused with exactly that; afterwards `.answer["field"]` is
  the struct as it was written back. `repeat_until(errno, command)` counts how often a command is done before.
- `Received` and `Info`: messages and records, with their items, metadata, payload and notifications decoded.
- `Task`: memory (`task.memory.allocate`) and descriptors (`open_memfd`, `open_pipe`, `open_socket`,
  `open_null`, `open_path`, `open_eventfd`, `signal`, `content`, `read_from`, `close`).
- `layout`: numbers, structs and item builders, written down independently of `kdbus_core.abi`.

Metadata goes by consent, what the sender grants and the receiver asks, unless a bus is made with
`Make.FINAL_METADATA`; every decision is taken on the credentials of the task that opened the handle.
"""

from . import layout
from .client import STANDARD_FIRST, STANDARD_LAST, STANDARD_PAYLOAD, Client, Pending
from .layout import Attach, Hello, ItemType, List, Make, Msg, Name, Recv
from .received import Info, Received
from .refusal import Answer, Refused, refused, repeat_until
from .task import OpenFile, Task
from .world import BUS_NAME, NOBODY, OWNER_UID, World

__all__ = [
    "BUS_NAME",
    "NOBODY",
    "OWNER_UID",
    "STANDARD_FIRST",
    "STANDARD_LAST",
    "STANDARD_PAYLOAD",
    "Answer",
    "Attach",
    "Client",
    "Hello",
    "Info",
    "ItemType",
    "List",
    "Make",
    "Msg",
    "Name",
    "OpenFile",
    "Pending",
    "Received",
    "Recv",
    "Refused",
    "Task",
    "World",
    "layout",
    "refused",
    "repeat_until",
]
