"""Many random commands on one bus: nothing breaks, is mixed up or is left, and every request ends once.

A `Walk` does what programs might do, in any order: come and go, own and activate names, send every kind of
message with memory and descriptors, call and answer, peek, drop and forget to free. What is refused is
refused; that it is refused with the right errno is for the other tests. The walk remembers what was sent
under which cookie, and compares what arrives; it counts how each request ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from errno import EAGAIN, ECANCELED, EMFILE, ENOBUFS, EPIPE, EREMOTEIO, ESHUTDOWN, ETIMEDOUT, EXFULL
from random import Random

import pytest
from support.kdbus import Client, ItemType, Msg, Pending, Received, Recv, Refused, World, layout
from support.kdbus.layout import DST_BROADCAST, OWN, PAGE, WORLD, access

NAMES = ("a.b", "a.c", "x.y.z")
STEPS = 500
CALL_ENDS = {ECANCELED, EMFILE, ENOBUFS, EPIPE, EREMOTEIO, ESHUTDOWN, ETIMEDOUT, EXFULL}
ENDS = {ItemType.REPLY_DEAD, ItemType.REPLY_TIMEOUT}


class Walk:
    """One random conversation and what has to be true of it."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = Random(seed)
        self.tasks = [world.task(uid) for uid in (1000, 1000, 2000, 3000)]
        self.clients: list[Client] = []
        self.sent: dict[int, bytes] = {}
        self.requests: dict[int, Client] = {}
        self.open_requests: list[tuple[Client, int, int]] = []
        self.ends: Counter[int] = Counter()
        self.calls: list[tuple[Pending, int]] = []
        self.last_cookie = 0
        world.connect_holder("x.y.z", access(WORLD, OWN))
        for name in NAMES[:2]:
            world.connect_holder(name, access(WORLD, OWN))
        self.activators = [self._activate(f"{name}.activated") for name in NAMES[:2]]

    def _activate(self, name: str) -> Client:
        return self.world.connect_activator(name, access(WORLD, OWN))

    def run(self, steps: int) -> None:
        actions: list[Callable[[], None]] = [
            *[self.connect] * 2,
            self.leave,
            *[self.send] * 8,
            *[self.request] * 4,
            *[self.answer] * 4,
            *[self.call] * 2,
            *[self.receive] * 10,
            self.drop,
            *[self.acquire] * 3,
            self.release,
            self.match,
            self.cancel,
            self.wait,
        ]
        for _ in range(steps):
            try:
                self.random.choice(actions)()
            except Refused:
                continue
            finally:
                self.check_accounts()

    # What programs do

    def connect(self) -> None:
        if len(self.clients) < 8:
            pages = self.random.choice((4, 16, 64))
            client = self.world.connect(
                self.random.choice(self.tasks),
                accept_fd=self.random.random() < 0.8,
                attach_recv=self.random.choice((0, layout.ATTACH_ALL)),
                pool_size=pages * PAGE,
            )
            self.clients.append(client)

    def leave(self) -> None:
        client = self.pick()
        if self.random.random() < 0.5:
            client.byebye()  # refused while something is queued; who does not ask just goes
        self.clients.remove(client)
        client.close()

    def pick(self) -> Client:
        if len(self.clients) < 2:
            self.connect()
        return self.random.choice(self.clients)

    def build_items(self, client: Client, *, may_have_fds: bool = True) -> tuple[list[bytes], int]:
        """Items of a message that can be recognised, and the cookie under which they are remembered."""
        self.last_cookie += 1
        text = f"<{self.last_cookie}>".encode() * self.random.choice((1, 1, 3, 400, 3000))
        zeros = self.random.choice((0, 0, 1, 8, 4099))
        items, payload = [client.vec(text)], text
        if zeros:
            items.append(layout.vec_at(0, zeros))
            payload += bytes(zeros)
        if self.random.random() < 0.3:
            content = f"[{self.last_cookie}]".encode()
            items.append(layout.memfd(client.task.open_memfd(content), len(content)))
            payload += content
        if may_have_fds and self.random.random() < 0.2:
            items.append(layout.fds([client.task.open_null()] * self.random.randrange(1, 9)))
        self.sent[self.last_cookie] = payload
        return items, self.last_cookie

    def address(self) -> tuple[list[bytes], Client | int]:
        """Somebody or some name."""
        if self.random.random() < 0.4:
            name = self.random.choice((*NAMES, "a.b.activated", "a.c.activated"))
            return [layout.string(ItemType.DST_NAME, name)], 0
        return [], self.pick()

    def send(self) -> None:
        client = self.pick()
        if self.random.random() < 0.3:
            items, cookie = self.build_items(client, may_have_fds=False)
            dst = self.random.choice((DST_BROADCAST, self.pick().id))
            client.signal(*items, dst=dst, cookie=cookie)
            return
        to_name, receiver = self.address()
        items, cookie = self.build_items(client)
        client.send_items(
            *to_name, *items, dst=receiver, cookie=cookie, priority=self.random.randrange(-2, 3)
        )

    def request(self) -> None:
        client = self.pick()
        to_name, receiver = self.address()
        items, cookie = self.build_items(client)
        timeout_ms = self.random.choice((-1, 1, 50, 5000))
        client.send_items(
            *to_name, *items, dst=receiver, cookie=cookie, flags=Msg.EXPECT_REPLY, timeout_ms=timeout_ms
        )
        self.requests[cookie] = client

    def call(self) -> None:
        client = self.pick()
        to_name, receiver = self.address()
        items, cookie = self.build_items(client)
        cancel_fd = client.task.open_eventfd()
        pending = client.call(
            receiver,
            *to_name,
            *items,
            cookie=cookie,
            timeout_ms=self.random.choice((1, 50)),
            cancel_fd=cancel_fd,
        )
        self.calls.append((pending, cancel_fd))

    def answer(self) -> None:
        if self.open_requests:
            replier, requester, cookie = self.random.choice(self.open_requests)
            if replier in self.clients:
                items, own = self.build_items(replier)
                replier.reply(requester, cookie, *items, cookie=own)

    def receive(self) -> None:
        client = self.random.choice([*self.clients, *self.activators]) if self.clients else self.pick()
        keep = self.random.random() < 0.05
        flags = self.random.choice((0, 0, Recv.USE_PRIORITY, Recv.PEEK))
        message = client.recv(flags=flags, priority=self.random.randrange(-2, 3), keep=keep)
        self.check_message(client, message, is_taken=not flags & Recv.PEEK)

    def drop(self) -> None:
        client = self.pick()
        message = client.peek(keep=False)
        client.drop()
        if message.is_notification:
            self.check_message(client, message)
        elif message.cookie_reply and not message.flags & Msg.EXPECT_REPLY:
            self.note_end(client, message.cookie_reply)

    def acquire(self) -> None:
        name = self.random.choice((*NAMES, "a.b.activated", "a.c.activated"))
        self.pick().name_acquire(name, self.random.randrange(8))

    def release(self) -> None:
        self.pick().name_release(self.random.choice((*NAMES, "a.b.activated", "a.c.activated")))

    def match(self) -> None:
        client = self.pick()
        rule = self.random.choice(
            (
                layout.number(ItemType.ID, layout.ANY),
                layout.number(ItemType.DST_ID, client.id),
                layout.id_rule(ItemType.ID_REMOVE),
                layout.name_rule(ItemType.NAME_CHANGE),
                layout.name(self.random.choice(NAMES)),
            )
        )
        client.add_match(rule, cookie=self.random.randrange(4), flags=layout.MATCH_REPLACE)

    def cancel(self) -> None:
        if self.calls:
            pending, cancel_fd = self.random.choice(self.calls)
            pending.task.signal(cancel_fd)

    def wait(self) -> None:
        self.world.advance(self.random.choice((1, 20)))

    # What has to be true

    def check_message(self, client: Client, message: Received, *, is_taken: bool = True) -> None:
        """What arrived is what was sent under its cookie, and a request or its end is noted."""
        if message.is_notification:
            if message.kind in ENDS and is_taken:
                self.note_end(client, message.cookie_reply)
            return
        if is_taken:
            assert message.payload == self.sent[message.cookie]
            if message.flags & Msg.EXPECT_REPLY:
                self.open_requests.append((client, message.src_id, message.cookie))
            elif message.cookie_reply:
                self.note_end(client, message.cookie_reply)
            message.close_fds()

    def note_end(self, client: Client, cookie: int) -> None:
        assert self.requests[cookie] is client
        self.ends[cookie] += 1

    def check_accounts(self) -> None:
        """What is charged is what waits."""
        for client in self.clients:
            connection = client.connection
            assert connection.inbox is not None
            entries = list(connection.inbox)
            assert connection.quota.total_messages == len(entries)
            assert connection.quota.total_memory == sum(entry.slice.size for entry in entries)
            assert connection.quota.total_fds == sum(entry.fd_count for entry in entries)

    def finish(self) -> None:
        """Let all deadlines pass and everybody read everything."""
        self.world.advance(10_000)
        for client in [*self.clients, *self.activators]:
            while True:
                try:
                    self.check_message(client, client.recv())
                except Refused as error:
                    if error.errno != EAGAIN:
                        raise
                    break
        for pending, _ in self.calls:
            try:
                message = pending.result(keep=not pending.client.is_open)
            except Refused as error:
                assert error.errno in CALL_ENDS  # noqa: PT017 - not the point
            else:
                assert message.payload == self.sent[message.cookie]
        for cookie, client in self.requests.items():
            if client in self.clients:
                assert self.ends[cookie] == 1, cookie
            else:
                assert self.ends[cookie] <= 1, cookie


@pytest.mark.parametrize("seed", range(20))
def test_a_random_conversation_ends_well(world: World, seed: int) -> None:
    walk = Walk(world, seed)
    walk.run(STEPS)
    walk.finish()
