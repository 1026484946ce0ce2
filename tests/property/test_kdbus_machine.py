"""Whatever many users do on a bus through command bytes, every set of books agrees afterwards.

A machine connects owners, strangers and the privileged, on the default endpoint and on a custom one, as
ordinary connections, activators, policy holders and monitors, and has them do everything there is to do. Two
sets of books are compared with the broker after each command: what `kdbus_model.Ledger` wrote down itself,
who is owed what and how it ended, and what `kdbus_books` counts again from what there is. Nothing may be left
at the end. KDBUS_MACHINE_EXAMPLES=5000 makes a long run of it, KDBUS_MACHINE_STEPS=200 long histories.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from errno import (
    EADDRINUSE,
    EADDRNOTAVAIL,
    EAGAIN,
    EBADSLT,
    EBUSY,
    ECANCELED,
    ECOMM,
    EEXIST,
    EMFILE,
    ENOBUFS,
    ENOENT,
    ENXIO,
    EOPNOTSUPP,
    EPERM,
    EREMOTEIO,
    ESHUTDOWN,
    ESRCH,
    EXFULL,
    errorcode,
)

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from kdbus_model import Ledger, Peer, Request, Waiting
from support.kdbus import (
    Client,
    Hello,
    ItemType,
    Msg,
    Name,
    Pending,
    Received,
    Recv,
    Refused,
    Task,
    World,
    layout,
)
from support.kdbus.layout import ATTACH_ALL, OWN, SEE, TALK, WORLD, Attach, access, name

from kdbus_core.endpoint import Endpoint

EXAMPLES = int(os.environ.get("KDBUS_MACHINE_EXAMPLES", "150"))
STEPS = int(os.environ.get("KDBUS_MACHINE_STEPS", "50"))
NAMES = ("org.example.A", "org.example.B", "org.example.C")
MAX_PEERS = 9
NO_ROOM = {ENOBUFS, EXFULL, EMFILE, ECOMM}
"""What a receiver's pool, quota or flags make of a message that is right."""

POOLS = st.sampled_from([1 << 24, 4096, 8192])
PAYLOADS = st.sampled_from([8, 0, 1, 700, 3000, 100_000])
COOKIES = st.integers(1, 3)
PRIORITIES = st.sampled_from([0, 0, -3, 9])
ACCESSES = st.lists(st.sampled_from([SEE, TALK, OWN]), max_size=2)
ATTACHMENTS = st.sampled_from([ATTACH_ALL, Attach.TIMESTAMP, Attach.TIMESTAMP | Attach.NAMES, layout.ANY])


def attempt(command: Callable[[], object]) -> int:
    """The errno a command is refused with, 0 when it succeeds."""
    try:
        command()
    except Refused as error:
        return error.errno
    return 0


class KdbusMachine(RuleBasedStateMachine):
    """One bus and whoever is on it."""

    @initialize(accesses=ACCESSES)
    def start(self, accesses: list[int]) -> None:
        self.world = world = World()
        self.is_over = False
        self.ledger = Ledger(world, world.bus)
        self.spies: list[Client] = []
        self.tasks = [world.owner, world.task(0, privileged=True), world.task(2000), world.task(3000)]
        self.files = {
            task: [task.open_null(), task.open_memfd(64), task.open_eventfd()] for task in self.tasks
        }
        self.custom: tuple[Client, Endpoint] | None = None
        self.sends: dict[tuple[int, int], tuple[object, str | None]] = {}
        for task in (world.owner, world.owner, self.tasks[2]):
            self._add(world.connect(task), "ordinary")
        self._add(world.connect_activator(NAMES[2], access(WORLD, OWN)), "activator")
        for name_ in NAMES[:2]:
            rights = [access(WORLD, level) for level in accesses]
            self._add(world.connect_holder(name_, *rights), "holder")
        self.ledger.settle()

    def _add(self, client: Client, kind: str) -> None:
        peer = Peer(client, kind)
        self.ledger.peers[peer.id] = peer

    # Picking

    def _pick(self, data: st.DataObject, *kinds: str) -> Peer | None:
        peers = [peer for peer in self.ledger.peers.values() if not kinds or peer.kind in kinds]
        return data.draw(st.sampled_from(peers), label="peer") if peers else None

    def _pick_receiver(self, data: st.DataObject) -> Peer | None:
        """Somebody who can receive, and has something to, if there is anybody like that."""
        peers = [peer for peer in self.ledger.peers.values() if peer.kind != "holder"]
        peers = [peer for peer in peers if peer.queue] or peers
        return data.draw(st.sampled_from(peers), label="receiver") if peers else None

    def _request(self, data: st.DataObject, *, waiting: bool = False) -> Request | None:
        requests = [
            one for one in self.ledger.requests if not waiting or (one.pending and not one.is_interrupted)
        ]
        return data.draw(st.sampled_from(requests), label="request") if requests else None

    # Coming and going

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data(), accept_fd=st.booleans(), pool_size=POOLS, custom=st.booleans())
    def connect(self, data: st.DataObject, accept_fd: bool, pool_size: int, custom: bool) -> None:
        if len(self.ledger.peers) < MAX_PEERS:
            task = data.draw(st.sampled_from(self.tasks), label="task")
            node = self.custom[1] if custom and self.custom is not None else None
            client = self.world.connect(task, node=node, accept_fd=accept_fd, pool_size=pool_size)
            self._add(client, "ordinary")
            self.ledger.settle()

    @precondition(lambda self: not self.is_over)
    @rule(
        task_number=st.integers(0, 3),
        kind=st.sampled_from(["activator", "activator", "holder"]),
        name_=st.sampled_from(NAMES),
        accept_fd=st.booleans(),
        pool_size=POOLS,
        accesses=ACCESSES,
    )
    def connect_special(
        self, task_number: int, kind: str, name_: str, accept_fd: bool, pool_size: int, accesses: list[int]
    ) -> None:
        if len(self.ledger.peers) >= MAX_PEERS:
            return
        task = self.tasks[task_number]
        flags = Hello.ACTIVATOR if kind == "activator" else Hello.POLICY_HOLDER
        made: list[Client] = []

        def connect() -> None:
            rights = [access(WORLD, level) for level in accesses]
            made.append(
                self.world.connect(
                    task, name(name_), *rights, flags=flags, accept_fd=accept_fd, pool_size=pool_size
                )
            )

        errno = attempt(connect)
        assert errno in ((EPERM,) if task_number > 1 else (0, EEXIST))
        for client in made:
            self._add(client, kind)
        self.ledger.settle()

    @precondition(lambda self: not self.is_over)
    @rule(pool_size=POOLS, accept_fd=st.booleans())
    def connect_monitor(self, pool_size: int, accept_fd: bool) -> None:
        if len(self.spies) < 2:
            spy = self.world.connect(flags=Hello.MONITOR, pool_size=pool_size, accept_fd=accept_fd)
            self.spies.append(spy)
            assert self.ledger.settle() == []

    @precondition(lambda self: not self.is_over and self.spies)
    @rule(closes=st.booleans())
    def look_into_a_monitor(self, closes: bool) -> None:
        spy = self.spies[-1]
        if closes:
            self.spies.pop().close()
        else:
            for message in spy.drain():
                assert spy.connection.accepts_fds or not any(fd >= 0 for fd in message.fds)
                message.close_fds()
        assert self.ledger.settle() == []

    @precondition(lambda self: not self.is_over and self.custom is None)
    @rule(accesses=ACCESSES)
    def make_endpoint(self, accesses: list[int]) -> None:
        rights = [access(WORLD, level) for level in accesses]
        self.custom = self.world.make_endpoint("1000-custom", name("org.example.*"), *rights)
        self.ledger.settle()

    @precondition(lambda self: not self.is_over and self.custom is not None)
    @rule(close=st.booleans(), accesses=ACCESSES)
    def update_or_close_endpoint(self, close: bool, accesses: list[int]) -> None:
        assert self.custom is not None
        owner, _ = self.custom
        if close:
            owner.close()
            self.custom = None
        else:
            owner.endpoint_update(name(NAMES[0]), *(access(WORLD, level) for level in accesses))
        self.ledger.settle()

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data())
    def byebye(self, data: st.DataObject) -> None:
        peer = self._pick(data)
        if peer is None:
            return
        errno = attempt(peer.client.byebye)
        if peer.kind != "ordinary":
            assert errno == EOPNOTSUPP
        else:
            assert errno == (EBUSY if peer.queue else 0)
        self.ledger.settle()
        if not errno:
            assert attempt(peer.client.byebye) == ESHUTDOWN

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        peer = self._pick(data)
        if peer is not None:
            peer.client.close()
            self.ledger.settle()
            assert peer.id not in self.ledger.peers

    # Names, matches, policies

    @precondition(lambda self: not self.is_over)
    @rule(
        data=st.data(),
        name_=st.sampled_from(NAMES),
        replace=st.booleans(),
        allow=st.booleans(),
        queue=st.booleans(),
    )
    def acquire(self, data: st.DataObject, name_: str, replace: bool, allow: bool, queue: bool) -> None:
        peer = self._pick(data, "ordinary")
        if peer is None:
            return
        flags = Name.REPLACE_EXISTING * replace | Name.ALLOW_REPLACEMENT * allow | Name.QUEUE * queue
        results: list[int] = []
        errno = attempt(lambda: results.append(peer.client.name_acquire(name_, flags)))
        assert errno in (0, EPERM, EEXIST)
        assert errno != EPERM or not peer.connection.is_owner
        self.ledger.settle()
        for result in results:
            assert bool(result & Name.PRIMARY) is (self.ledger.holders.get(name_) == peer.id)

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data(), name_=st.sampled_from(NAMES))
    def release(self, data: st.DataObject, name_: str) -> None:
        peer = self._pick(data, "ordinary")
        if peer is not None:
            errno = attempt(lambda: peer.client.name_release(name_))
            assert errno in (0, ESRCH, EADDRINUSE)
            is_hidden = peer.connection.endpoint.policy is not None
            assert errno != ESRCH or name_ not in self.ledger.holders or is_hidden
            assert errno != EADDRINUSE or name_ in self.ledger.holders
            self.ledger.settle()
            assert self.ledger.holders.get(name_) != peer.id

    @precondition(lambda self: not self.is_over)
    @rule(
        data=st.data(),
        cookie=COOKIES,
        rule_=st.sampled_from(
            [
                (),
                (layout.number(ItemType.ID, layout.ANY),),
                (name(NAMES[0]),),
                (layout.name_rule(ItemType.NAME_CHANGE), layout.name_rule(ItemType.NAME_CHANGE, NAMES[0])),
                (layout.id_rule(ItemType.ID_ADD),),
                (layout.bloom_mask(layout.bits({0: 1})),),
            ]
        ),
        flags=st.sampled_from([0, layout.MATCH_REPLACE]),
    )
    def add_match(self, data: st.DataObject, cookie: int, rule_: tuple[bytes, ...], flags: int) -> None:
        peer = self._pick(data, "ordinary")
        if peer is not None:
            peer.client.add_match(*rule_, cookie=cookie, flags=flags)
            assert self.ledger.settle() == []

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data(), cookie=COOKIES)
    def remove_match(self, data: st.DataObject, cookie: int) -> None:
        peer = self._pick(data, "ordinary")
        if peer is not None:
            assert attempt(lambda: peer.client.remove_match(cookie)) in (0, EBADSLT)
            assert attempt(lambda: peer.client.remove_match(cookie)) == EBADSLT
            assert self.ledger.settle() == []

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data(), name_=st.sampled_from(NAMES), accesses=ACCESSES, attach=ATTACHMENTS)
    def update(self, data: st.DataObject, name_: str, accesses: list[int], attach: int) -> None:
        peer = self._pick(data)
        if peer is None:
            return
        if peer.kind == "holder":
            rights = [access(WORLD, level) for level in accesses]
            assert attempt(lambda: peer.client.update_policy(name_, *rights)) in (0, EEXIST)
        elif peer.kind == "activator":
            peer.client.update_attach_flags(recv=attach)
            assert attempt(lambda: peer.client.update_attach_flags(send=attach)) == EOPNOTSUPP
        else:
            peer.client.update_attach_flags(send=attach, recv=attach)
        assert self.ledger.settle() == []

    # Sending

    def _items(self, task: Task, payload: int, files: int) -> list[bytes]:
        """Payload of zeros, of memory, and descriptors: `files` counts them, with bit 4 for the memory."""
        null, memfd, _ = self.files[task]
        items = []
        if payload:
            items.append(layout.vec_at(task.constant(bytes(payload)), payload))
        if files & 4:
            items.append(layout.memfd(memfd, 16))
        if files & 3:
            items.append(layout.fds([null] * (files & 3)))
        return items

    def _target(self, data: st.DataObject, name_: str | None) -> tuple[Peer | None, int, list[bytes]]:
        """The receiver if there is one, and how it is addressed."""
        if name_ is None:
            peer = self._pick(data)
            assert peer is not None
            return (peer if peer.kind == "ordinary" else None), peer.id, []
        return self._holder(name_), 0, [layout.string(ItemType.DST_NAME, name_)]

    def _holder(self, name_: str) -> Peer | None:
        id = self.ledger.holders.get(name_)
        return None if id is None else self.ledger.peers[id]

    def _judge_sent(
        self, sender: Peer, receiver: Peer | None, name_: str | None, errno: int
    ) -> Received | None:
        """After a unicast: it is in the receiver's queue and nowhere else, or there was a reason."""
        self.ledger.settle()
        shown = self.ledger.user_messages()
        if receiver is None:
            assert errno == (ENXIO if name_ is None else ESRCH)
            assert not shown
            return None
        assert errno in {0, EPERM} | NO_ROOM, errorcode[errno]
        assert errno != EPERM or not (sender.connection.is_owner or shown)
        queued = [
            (peer, waiting)
            for peer in self.ledger.peers.values()
            for waiting in peer.queue
            if shown and waiting.seqnum == shown[0].timestamp.seqnum
        ]
        assert [peer for peer, _ in queued] == ([] if errno else [receiver])
        return shown[0] if shown and not errno else None

    @precondition(lambda self: not self.is_over)
    @rule(
        data=st.data(),
        name_=st.sampled_from([None, None, *NAMES]),
        cookie=COOKIES,
        payload=PAYLOADS,
        files=st.sampled_from([0, 0, 0, 1, 2, 4, 5]),
        priority=PRIORITIES,
        wait=st.sampled_from([None, None, 5, 50, 10_000, -1]),
        times=st.sampled_from([1, 1, 1, 5]),
    )
    def send(
        self,
        data: st.DataObject,
        name_: str | None,
        cookie: int,
        payload: int,
        files: int,
        priority: int,
        wait: int | None,
        times: int,
    ) -> None:
        """A plain message, or a request with a deadline that may have passed already; several of them."""
        sender = self._pick(data, "ordinary")
        if sender is None:
            return
        receiver, dst, destination = self._target(data, name_)
        deadline = None if wait is None else self.world.monotonic_ns + wait * 1_000_000
        items = destination + self._items(sender.client.task, payload, files)
        for _ in range(times):
            errno = attempt(
                lambda: sender.client.send_items(
                    *items,
                    dst=dst,
                    cookie=cookie,
                    priority=priority,
                    flags=Msg.EXPECT_REPLY if deadline is not None else 0,
                    deadline_ns=deadline,
                )
            )
            if deadline is None or errno:
                # A request that has no room for its notification is refused before it is shown.
                self._judge_sent(sender, receiver, name_, errno)
                continue
            assert receiver is not None
            # Its place in the order is not known before the monitor has seen it.
            request = self.ledger.open(sender, receiver, cookie, deadline, name=name_, seqnum=0)
            if deadline <= self.world.monotonic_ns:
                self.ledger.expire()
            shown = self._judge_sent(sender, receiver, name_, 0)
            assert shown is not None
            request.seqnum = shown.timestamp.seqnum

    @precondition(lambda self: not self.is_over)
    @rule(
        data=st.data(),
        name_=st.sampled_from([None, None, *NAMES]),
        cookie=COOKIES,
        payload=PAYLOADS,
        wait=st.sampled_from([5, 50, 10_000]),
        cancellable=st.booleans(),
    )
    def call(
        self, data: st.DataObject, name_: str | None, cookie: int, payload: int, wait: int, cancellable: bool
    ) -> None:
        """A synchronous call, or the one that was interrupted once more."""
        sender = self._pick(data, "ordinary")
        if sender is None:
            return
        receiver, dst, destination = self._target(data, name_)
        task = sender.client.task
        event = self.files[task][2] if cancellable else None
        interrupted = [
            one
            for one in self.ledger.requests
            if one.requester is sender and one.cookie == cookie and one.is_interrupted
        ]
        kept = [one for one in self.ledger.kept if one[:2] == (sender, cookie)]
        same_send = self.sends.setdefault((sender.id, cookie), (dst, name_)) == (dst, name_)
        if interrupted or kept:
            if len(interrupted) + len(kept) > 1 or not same_send or receiver is None:
                return  # which of them goes on is not said, or it is another call
        else:
            self.sends[sender.id, cookie] = (dst, name_)
        items = destination + self._items(task, payload or 8, 0)
        pending: Pending | None = None
        errno = 0
        try:
            pending = sender.client.call(dst, *items, cookie=cookie, timeout_ms=wait, cancel_fd=event)
        except Refused as error:
            errno = error.errno
        canceller = None if event is None else task._fds[event]
        if receiver is not None and interrupted:
            assert not errno, "an interrupted call goes on"
            interrupted[0].pending, interrupted[0].canceller = pending, canceller
            interrupted[0].is_interrupted = False
            assert self.ledger.settle() == []
            return
        if receiver is not None and kept:
            assert errno == kept[0][2], "an interrupted call gets what its request ended with"
            self.ledger.kept.remove(kept[0])
            if pending is not None:
                pending.result().close_fds()
            assert self.ledger.settle() == []
            return
        if not errno:
            assert receiver is not None
            deadline = self.world.monotonic_ns + wait * 1_000_000
            request = self.ledger.open(
                sender, receiver, cookie, deadline, name=name_, seqnum=0, pending=pending, canceller=canceller
            )
        shown = self._judge_sent(sender, receiver, name_, errno)
        if not errno:
            assert shown is not None
            request.seqnum = shown.timestamp.seqnum

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data(), payload=PAYLOADS, files=st.sampled_from([0, 0, 0, 1, 4]))
    def answer(self, data: st.DataObject, payload: int, files: int) -> None:
        """A right reply: it ends the newest request of that cookie, unless it finds no room."""
        request = self._request(data)
        if request is None or request.replier.kind != "ordinary":
            return
        replier, requester = request.replier, request.requester
        newest = self.ledger.find(requester, replier, request.cookie)
        assert newest is not None
        items = self._items(replier.client.task, payload, files)
        errno = attempt(
            lambda: replier.client.send_items(*items, dst=requester.id, cookie_reply=request.cookie)
        )
        assert errno in {0} | NO_ROOM
        if not errno:
            self.ledger.end(newest, 0)
        elif newest.pending is not None:
            self.ledger.end(newest, EREMOTEIO if errno == ECOMM else errno)
        ended = [one for one in (newest,) if one not in self.ledger.requests and one.pending is not None]
        self.ledger.settle()
        self._collect(ended)
        queued = [
            one for one in requester.queue if one.seqnum == self.ledger.user_messages()[0].timestamp.seqnum
        ]
        assert len(queued) == (not errno and newest.pending is None)

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data(), cookie=COOKIES)
    def answer_what_was_not_asked(self, data: st.DataObject, cookie: int) -> None:
        replier, requester = self._pick(data, "ordinary"), self._pick(data)
        if replier is None or requester is None:
            return
        if self.ledger.find(requester, replier, cookie) is None:
            errno = attempt(lambda: replier.client.send_items(dst=requester.id, cookie_reply=cookie))
            assert errno == (EBADSLT if requester.kind == "ordinary" else ENXIO)
            assert self.ledger.settle() == []

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data(), cookie=COOKIES, bit=st.booleans(), to_one=st.booleans(), memory=st.booleans())
    def signal(self, data: st.DataObject, cookie: int, bit: bool, to_one: bool, memory: bool) -> None:
        """A broadcast, or a signal to one: whoever gets it gets it once."""
        sender = self._pick(data, "ordinary")
        if sender is None:
            return
        receiver = self._pick(data) if to_one else None
        dst = layout.DST_BROADCAST if receiver is None else receiver.id
        items = self._items(sender.client.task, 8, 4 * memory)
        bits = layout.bits({0: bit})
        errno = attempt(lambda: sender.client.signal(*items, dst=dst, bits=bits, cookie=cookie))
        assert errno == (ENXIO if receiver is not None and receiver.kind != "ordinary" else 0)
        self.ledger.settle()
        for shown in self.ledger.user_messages():
            found = [
                peer
                for peer in self.ledger.peers.values()
                if any(one.seqnum == shown.timestamp.seqnum for one in peer.queue)
            ]
            assert all(peer.kind == "ordinary" for peer in found)
            assert all(peer.connection.match_count for peer in found)
            assert receiver is None or found in ([], [receiver])

    @precondition(lambda self: not self.is_over)
    @rule(name_=st.sampled_from(NAMES), data=st.data())
    def send_to_what_must_run_already(self, name_: str, data: st.DataObject) -> None:
        sender = self._pick(data, "ordinary")
        holder = self._holder(name_)
        if sender is not None and holder is not None and holder.kind == "activator":
            items = [layout.string(ItemType.DST_NAME, name_)]
            assert attempt(lambda: sender.client.send_items(*items, flags=Msg.NO_AUTO_START)) == EADDRNOTAVAIL
            assert self.ledger.settle() == []

    # Receiving

    @staticmethod
    def _next(peer: Peer, priority: int | None) -> Waiting | None:
        """What RECV has to give: the first, or with a priority the first of the most urgent ones."""
        if priority is None:
            return peer.queue[0] if peer.queue else None
        urgent = [one for one in peer.queue if one.priority <= priority]
        return min(urgent, key=lambda one: one.priority, default=None)

    @precondition(lambda self: not self.is_over)
    @rule(
        data=st.data(),
        priority=st.sampled_from([None, None, None, -5, 0, 20]),
        peek=st.sampled_from([False, False, True]),
        keep=st.booleans(),
    )
    def receive(self, data: st.DataObject, priority: int | None, peek: bool, keep: bool) -> None:
        peer = self._pick_receiver(data)
        if peer is None:
            return
        flags = Recv.PEEK * peek | (0 if priority is None else Recv.USE_PRIORITY)
        waiting = self._next(peer, priority)
        lost = peer.connection.inbox.lost if peer.connection.inbox is not None else 0
        message: Received | None = None
        refusal: Refused | None = None
        try:
            message = peer.client.recv(flags=flags, priority=priority or 0, keep=keep)
        except Refused as error:
            refusal = error
        if message is None:
            assert refusal is not None
            assert refusal.errno == EAGAIN
            assert waiting is None
            assert refusal.answer is not None
            assert refusal.answer["dropped_msgs"] == lost
        else:
            assert waiting is not None
            assert message.dropped == lost
            assert (message.offset, message.timestamp.seqnum) == (waiting.offset, waiting.seqnum)
            assert (message.cookie, message.src_id) == (waiting.cookie, waiting.src_id)
            if peek:
                assert not any(fd >= 0 for fd in message.fds + message.memfds)
            else:
                assert all(fd >= 0 for fd in message.memfds)
                assert all((fd >= 0) is peer.connection.accepts_fds for fd in message.fds)
                message.close_fds()
                peer.queue.remove(waiting)
        assert self.ledger.settle() == []

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        peer = self._pick_receiver(data)
        if peer is None:
            return
        errno = attempt(peer.client.drop)
        assert errno == (0 if peer.queue else EAGAIN)
        ended: list[Request] = []
        if not errno:
            before = list(self.ledger.requests)
            self.ledger.drop(peer, peer.queue[0])
            ended = [one for one in before if one not in self.ledger.requests]
        self.ledger.settle()
        self._collect(ended)

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data(), any_offset=st.integers(0, 600))
    def free(self, data: st.DataObject, any_offset: int) -> None:
        """FREE what was received, or something else."""
        peer = self._pick(data)
        if peer is None:
            return
        mine = sorted(peer.client.unfreed)
        offset = data.draw(st.sampled_from([*mine, any_offset * 8]), label="offset")
        is_mine = offset in mine or offset == peer.client.pool_size
        assert attempt(lambda: peer.client.free(offset)) == (0 if is_mine else ENXIO)
        assert self.ledger.settle() == []

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data(), keep=st.booleans())
    def ask(self, data: st.DataObject, keep: bool) -> None:
        peer = self._pick(data)
        if peer is not None:
            answers: list[set[int]] = []
            errno = attempt(lambda: answers.append({info.id for info in peer.client.list_records(keep=keep)}))
            assert errno in (0, EXFULL)
            for ids in answers:
                assert ids <= self.ledger.peers.keys()
                assert peer.connection.endpoint.policy is not None or ids == self.ledger.peers.keys()
            assert self.ledger.settle() == []

    # Waiting, and time

    def _collect(self, ended: list[Request]) -> None:
        """Take the results of calls that have ended: a reply that is freed, or an errno."""
        for request in ended:
            if (
                request.pending is not None
                and not request.is_interrupted
                and request.requester.client.is_open
            ):
                with suppress(Refused):
                    request.pending.result().close_fds()

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data())
    def interrupt(self, data: st.DataObject) -> None:
        request = self._request(data, waiting=True)
        if request is not None:
            assert request.pending is not None
            request.pending.interrupt()
            self.ledger.interrupt(request)
            assert self.ledger.settle() == []

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data(), cookie=COOKIES)
    def cancel_by_cookie(self, data: st.DataObject, cookie: int) -> None:
        peer = self._pick(data, "ordinary")
        if peer is not None:
            errno = attempt(lambda: peer.client.msg_cancel(cookie))
            assert errno == (0 if self.ledger.cancel(peer, cookie) else ENOENT)
            assert self.ledger.settle() == []

    @precondition(lambda self: not self.is_over)
    @rule(number=st.integers(0, 3))
    def cancel_by_file(self, number: int) -> None:
        task = self.tasks[number]
        event = self.files[task][2]
        for request in list(self.ledger.requests):
            if request.canceller is task._fds[event] and not request.is_interrupted:
                self.ledger.end(request, ECANCELED)
        task.signal(event)
        task.description(event).is_readable = False
        assert self.ledger.settle() == []

    @precondition(lambda self: not self.is_over)
    @rule(milliseconds=st.sampled_from([1, 4, 10, 60, 20_000]))
    def pass_time(self, milliseconds: int) -> None:
        before = list(self.ledger.requests)
        self.world.advance(milliseconds)
        self.ledger.expire()
        self.ledger.settle()
        self._collect([one for one in before if one not in self.ledger.requests])

    # The end

    @precondition(lambda self: not self.is_over and self.ledger.last_seqnum > 60)
    @rule()
    def close_the_bus(self) -> None:
        peers = list(self.ledger.peers.values())
        for peer in peers:
            self.ledger.leave(peer)
        calls = dict(self.ledger.ends)
        self.world._note_buses()
        self.world.maker.close()
        self.is_over = True
        for request, errno in calls.items():
            assert request.pending is not None
            assert request.pending.call is not None
            assert (request.pending.is_done, request.pending.call.errno) == (True, errno)
        for peer in peers:
            assert peer.client.poll() == layout.POLLERR | layout.POLLHUP
            assert attempt(lambda client=peer.client: client.list_records()) == ESHUTDOWN  # type: ignore[misc]
        assert not self.world.domain.buses

    @precondition(lambda self: self.is_over)
    @rule(milliseconds=st.integers(0, 100))
    def speak_on_a_closed_bus(self, milliseconds: int) -> None:
        self.world.advance(milliseconds)
        for peer in self.ledger.peers.values():
            if peer.kind == "ordinary":
                assert attempt(lambda client=peer.client: client.send_items(dst=1)) == ESHUTDOWN  # type: ignore[misc]
            assert attempt(lambda client=peer.client: client.free(0)) == ESHUTDOWN  # type: ignore[misc]

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.tear_down()


TestKdbusMachine = KdbusMachine.TestCase
TestKdbusMachine.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
