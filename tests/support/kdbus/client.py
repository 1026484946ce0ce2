"""Sending and receiving: the helpers that tests want, over the commands SEND and RECV.

Messages are sent to `dst` (a client, an id or DST_BROADCAST) or to `name`; `send` sends the standard message,
which needs about 131 KiB of the receiver's pool, `send_small` one with an 8-byte payload, `send_items`
exactly the given items. `call` is a synchronous SEND and returns a `Pending`. What is received is decoded,
copied and its slice freed, unless `keep=True`.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EAGAIN, ESHUTDOWN, ETIMEDOUT
from struct import pack

from kdbus_core.errors import KdbusError

from . import layout
from .connected import Connected
from .layout import DROPPED_MSGS, DST_BROADCAST, PAYLOAD_DBUS, POLLERR, POLLHUP, POLLIN, ItemType, Msg, Recv
from .node import Call
from .received import Received
from .refusal import Answer, Refused
from .task import Task

STANDARD_SIZE = 131075
STANDARD_FIRST = bytes(i * 7 % 251 for i in range(STANDARD_SIZE))
STANDARD_LAST = b"hello world!\0"
STANDARD_MEMFD = 16
STANDARD_PAYLOAD = STANDARD_FIRST + bytes(5) + STANDARD_LAST
"""What the vectors of a standard message hold; in a unicast the first bytes of a zeroed memfd follow."""


class Pending:
    """A synchronous call that may still be waiting."""

    def __init__(self, client: Client, task: Task, regions: list[int], command: bytes, call: Call | None):
        self.client = client
        self.task = task
        self._regions = regions
        self._command = command
        self._is_collected = False
        self.call = call

    @property
    def is_done(self) -> bool:
        return self.call is None or self.call.done

    def interrupt(self) -> None:
        """A signal reaches the waiting thread."""
        assert self.call is not None
        self.call.interrupt()

    def result(self, *, keep: bool = False) -> Received:
        """The reply; fails while there is no result, and can be asked for once."""
        assert self.is_done, "the call is still waiting"
        assert not self._is_collected
        self._is_collected = True
        answer = Answer(layout.SEND, self.task.read(self._regions[0], len(self._command)))
        for region in self._regions:
            self.task.memory.release(region)
        if self.call is not None and self.call.errno:
            raise Refused(KdbusError(self.call.errno, "the call failed"), answer)
        return self.client.take_message(answer, self.task, keep=keep)


class Client(Connected):
    """A connection that sends and receives."""

    # Sending

    def vec(self, content: bytes) -> bytes:
        """PAYLOAD_VEC of these bytes, which get a place in the task's memory."""
        return layout.vec_at(self.task.constant(content), len(content))

    def build_message(
        self,
        *items: bytes,
        dst: Client | int = 0,
        cookie: int = 0,
        flags: int = 0,
        priority: int = 0,
        timeout_ms: int | None = None,
        deadline_ns: int | None = None,
        cookie_reply: int = 0,
        src: int = 0,
        payload_type: int = PAYLOAD_DBUS,
        size: int | None = None,
    ) -> bytes:
        """A message with these items; `timeout_ms` counts from now, `deadline_ns` is absolute."""
        if timeout_ms is not None:
            deadline_ns = self.world.monotonic_ns + timeout_ms * 1_000_000
        last = cookie_reply if deadline_ns is None else deadline_ns
        tail = b"".join(items)
        dst_id = dst if isinstance(dst, int) else dst.id
        size = layout.MSG_SIZE + len(tail) if size is None else size
        header = pack("=2Qq5Q", size, flags, priority, dst_id, src, payload_type, cookie, last)
        return header + tail

    def send_message(self, message: bytes, *, items: Sequence[bytes] = (), flags: int = 0) -> Answer:
        """SEND these message bytes asynchronously; `items` are the command's."""
        address = self.task.memory.allocate(message)
        try:
            answer = self.command(layout.SEND, *items, flags=flags, msg_address=address)
            assert flags & layout.NEGOTIATE or self.task.read(address, len(message)) == message
        finally:
            self.task.memory.release(address)
        if not flags & layout.NEGOTIATE:
            assert (answer["offset"], answer["msg_size"]) == (self.pool_size, 0)
        return answer

    def send_items(
        self,
        *items: bytes,
        dst: Client | int = 0,
        cookie: int = 0,
        flags: int = 0,
        priority: int = 0,
        timeout_ms: int | None = None,
        deadline_ns: int | None = None,
        cookie_reply: int = 0,
        src: int = 0,
        payload_type: int = PAYLOAD_DBUS,
        command_items: Sequence[bytes] = (),
        command_flags: int = 0,
    ) -> Answer:
        """SEND a message with exactly these items."""
        message = self.build_message(
            *items,
            dst=dst,
            cookie=cookie,
            flags=flags,
            priority=priority,
            timeout_ms=timeout_ms,
            deadline_ns=deadline_ns,
            cookie_reply=cookie_reply,
            src=src,
            payload_type=payload_type,
        )
        return self.send_message(message, items=command_items, flags=command_flags)

    def standard_items(self, name: str | bytes | None, *, memfd: int | None = None) -> list[bytes]:
        """[DST_NAME], a vector of 131075 bytes, 5 zeros, 13 bytes, and a filter unless there is a memfd."""
        items = [] if name is None else [layout.string(ItemType.DST_NAME, name)]
        items += [self.vec(STANDARD_FIRST), layout.vec_at(0, 5), self.vec(STANDARD_LAST)]
        if memfd is None:
            return [*items, layout.bloom_filter()]
        return [*items, layout.memfd(memfd, STANDARD_MEMFD)]

    def send(
        self,
        dst: Client | int = 0,
        *,
        name: str | bytes | None = None,
        cookie: int = 0,
        flags: int = 0,
        priority: int = 0,
        timeout_ms: int | None = None,
        cookie_reply: int = 0,
    ) -> Answer:
        """SEND the standard message; a broadcast is made a signal with an all-zero filter."""
        is_broadcast = dst == DST_BROADCAST
        memfd = None if is_broadcast else self.task.open_memfd()
        try:
            return self.send_items(
                *self.standard_items(name, memfd=memfd),
                dst=dst,
                cookie=cookie,
                flags=flags | (Msg.SIGNAL if is_broadcast else 0),
                priority=priority,
                timeout_ms=timeout_ms,
                cookie_reply=cookie_reply,
            )
        finally:
            if memfd is not None:
                self.task.close(memfd)

    def broadcast(self, cookie: int = 0) -> Answer:
        """SEND the standard message to everybody who matches it."""
        return self.send(DST_BROADCAST, cookie=cookie)

    def send_small(
        self,
        dst: Client | int = 0,
        *,
        name: str | bytes | None = None,
        cookie: int = 0,
        flags: int = 0,
        priority: int = 0,
        timeout_ms: int | None = None,
        cookie_reply: int = 0,
        payload: bytes = b"payload.",
    ) -> Answer:
        """SEND a message of one short vector."""
        items = () if name is None else (layout.string(ItemType.DST_NAME, name),)
        return self.send_items(
            *items,
            self.vec(payload),
            dst=dst,
            cookie=cookie,
            flags=flags,
            priority=priority,
            timeout_ms=timeout_ms,
            cookie_reply=cookie_reply,
        )

    def signal(
        self,
        *items: bytes,
        dst: Client | int = DST_BROADCAST,
        bits: bytes = b"",
        generation: int = 0,
        cookie: int = 0,
    ) -> Answer:
        """SEND a signal without payload; its filter is all zero unless `bits` are given."""
        bloom = layout.bloom_filter(bits or bytes(layout.BLOOM_SIZE), generation)
        return self.send_items(*items, bloom, dst=dst, cookie=cookie, flags=Msg.SIGNAL)

    def reply(self, dst: Client | int, cookie_reply: int, *items: bytes, cookie: int = 0) -> Answer:
        """Answer a request, with one vector of 131075 bytes unless there are items."""
        return self.send_items(
            *(items or (self.vec(STANDARD_FIRST),)), dst=dst, cookie=cookie, cookie_reply=cookie_reply
        )

    def call(
        self,
        dst: Client | int = 0,
        *items: bytes,
        name: str | bytes | None = None,
        cookie: int = 0,
        flags: int = 0,
        timeout_ms: int = 5000,
        cancel_fd: int | None = None,
        task: Task | None = None,
    ) -> Pending:
        """A synchronous SEND, with the standard payload unless there are items.

        What is refused at once raises here; otherwise `Pending.result` tells how it went.
        """
        task = task or self.task
        if not items:
            items = (self.vec(STANDARD_FIRST), layout.vec_at(0, 5), self.vec(STANDARD_LAST))
        if name is not None:
            items = (layout.string(ItemType.DST_NAME, name), *items)
        message = self.build_message(
            *items, dst=dst, cookie=cookie, flags=flags | Msg.EXPECT_REPLY, timeout_ms=timeout_ms
        )
        cancel = b"" if cancel_fd is None else layout.cancel_fd(cancel_fd)
        msg_address = task.memory.allocate(message)
        struct = layout.SEND.build(
            layout.SYNC_REPLY, layout.SEND.size + len(cancel), {"msg_address": msg_address}
        )
        address = task.memory.allocate(struct + cancel)
        regions = [address, msg_address]
        try:
            call = self.ioctl(layout.SEND.request, address, task=task)
        except Refused:
            for region in regions:
                task.memory.release(region)
            raise
        pending = Pending(self, task, regions, struct + cancel, call)
        if call is not None and call.done and call.errno:
            pending.result()
        return pending

    def msg_cancel(self, cookie: int) -> Answer:
        """MSG_CANCEL: end the synchronous calls with this cookie."""
        return self.command(layout.MSG_CANCEL, cookie=cookie)

    # Receiving

    def take_message(self, answer: Answer, task: Task, *, keep: bool) -> Received:
        """Decode what a RECV or a synchronous SEND points to."""
        raw = self.take_slice(answer["offset"], answer["msg_size"], keep=keep)
        dropped = answer["dropped_msgs"] if answer.layout is layout.RECV else 0
        if answer.layout is layout.RECV:
            assert bool(answer["return_flags"] & DROPPED_MSGS) == bool(dropped)
        return Received(
            raw, task, offset=answer["offset"], return_flags=answer["msg_return_flags"], dropped=dropped
        )

    def recv(
        self, *, flags: int = 0, priority: int = 0, keep: bool = False, task: Task | None = None
    ) -> Received:
        """RECV one message; EAGAIN without."""
        answer = self.command(layout.RECV, flags=flags, priority=priority, task=task)
        return self.take_message(answer, task or self.task, keep=keep)

    def recv_poll(self, timeout_ms: int = 100) -> Received:
        """Wait that long on the world's clock for a message; ETIMEDOUT, or ESHUTDOWN after a hang-up."""
        if not self.is_readable:
            self.world.advance(timeout_ms)
        events = self.poll()
        if events & (POLLERR | POLLHUP):
            raise Refused(KdbusError(ESHUTDOWN, "poll: hang-up"))
        if not events & POLLIN:
            raise Refused(KdbusError(ETIMEDOUT, "poll: nothing"))
        return self.recv()

    def peek(self, *, keep: bool = True) -> Received:
        """RECV with PEEK; the slice stays unless `keep=False`."""
        return self.recv(flags=Recv.PEEK, keep=keep)

    def drop(self) -> Answer:
        """RECV with DROP."""
        answer = self.command(layout.RECV, flags=Recv.DROP)
        assert (answer["offset"], answer["msg_size"]) == (self.pool_size, 0)
        return answer

    def drain(self) -> list[Received]:
        """RECV until there is nothing more."""
        messages = []
        while True:
            try:
                messages.append(self.recv())
            except Refused as error:
                if error.errno != EAGAIN:
                    raise
                return messages
