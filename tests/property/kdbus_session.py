"""A domain with a handle in every state, to which any bytes may be said.

`Session.run` takes steps, each a run of bytes that decides what is done next: a command from any handle with
anything wrong in it, a handle opened or closed, time, a signal to who waits. After each step the same must
hold, whatever it was:

- the command was done or refused with an errno that it has, and with the one there has to be where the
  refusal comes early; nothing but `KdbusError` came out;
- a command that was refused, or only negotiated, left everything as it was;
- what was delivered can be read by a strict reader;
- all books add up, no reference to a file is lost;
- two bystanders, on the same bus, ask and answer as ever.

At the end everybody goes, and nothing may be left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from errno import EBADFD, EFAULT, EPERM, errorcode
from struct import unpack_from

from kdbus_books import check_books, domains_below, inbox_of
from kdbus_choices import Choices
from kdbus_digest import Digest, digest
from kdbus_errnos import (
    CONNECTED,
    LAYOUTS,
    NAMES,
    SYNC_ENDS,
    Kind,
    allowed_errnos,
    early_refusal,
)
from kdbus_grammar import Scene, build_command, spoil
from support.kdbus import Client, Hello, Received, Task, World, layout
from support.kdbus.layout import OWN, SEE, TALK, WORLD, access, name
from support.kdbus.received import Info, parse_infos
from support.kdbus.task import Reference
from support.kdbus.world import published

from kdbus_core.caller import File
from kdbus_core.connection import Connection
from kdbus_core.domain import Domain
from kdbus_core.endpoint import Endpoint
from kdbus_core.errors import KdbusError
from kdbus_core.handle import HandleState
from kdbus_core.synchronous import SyncCall

BYSTANDER_UID = 777_000_111
SMALL_POOL = 8192
MAX_ACTORS = 30
SHOWN = 512
UNMAPPED = (0, 8, 0x1000, (1 << 47), (1 << 63) - 8, 1 << 63, (1 << 64) - 8, (1 << 64) - 16, (1 << 64) - 4096)


class BrittleCaller:
    """A task whose memory can no longer be written after so many writes, as if a thread had unmapped it."""

    def __init__(self, task: Task, writes: int) -> None:
        self._task = task
        self._left = writes

    def read(self, address: int, size: int) -> bytes:
        return self._task.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        if not self._left:
            raise KdbusError(EFAULT, "that memory has gone")
        self._left -= 1
        self._task.write(address, data)

    def file(self, fd: int) -> Reference | None:
        return self._task.file(fd)

    def install(self, file: File) -> int:
        return self._task.install(file)


class Waiting:
    """A synchronous call that has not ended."""

    def __init__(self, actor: Actor, address: int, region: int | None) -> None:
        self.actor = actor
        self.address = address
        self.region = region
        self.canceller: Reference | None = None
        self.call: SyncCall | None = None
        self.ends: list[int] = []

    def on_done(self, errno: int) -> None:
        self.ends.append(errno)


class Actor:
    """A handle and what it has to be by what was done with it."""

    def __init__(self, label: str, client: Client, kind: Kind) -> None:
        self.label = label
        self.client = client
        self.kind = kind

    @property
    def task(self) -> Task:
        return self.client.task

    @property
    def has_gone(self) -> bool:
        """Whether what is behind the handle has ended."""
        handle = self.client.handle
        if handle.connection is not None:
            return not handle.connection.active
        return not handle.node.active or (handle._owned is not None and not handle._owned.active)

    @property
    def may_make(self) -> bool:
        """Whether it may make endpoints, or on a control node domains."""
        node, process = self.client.handle.node, self.client.handle.process
        return node.is_owner(process) if isinstance(node, Endpoint) else process.privileged

    def become(self, command: str, flags: int) -> None:
        """What a successful command makes of the handle."""
        match command:
            case "BUS_MAKE" | "DOMAIN_MAKE":
                self.kind = Kind.OWNER
            case "ENDPOINT_MAKE":
                self.kind = Kind.ENDPOINT_OWNER
            case "HELLO":
                self.kind = kind_of(flags)
            case _:
                pass


def kind_of(hello_flags: int) -> Kind:
    if hello_flags & Hello.MONITOR:
        return Kind.MONITOR
    if hello_flags & Hello.ACTIVATOR:
        return Kind.ACTIVATOR
    return Kind.HOLDER if hello_flags & Hello.POLICY_HOLDER else Kind.ORDINARY


_STATES = {
    Kind.CONTROL: {HandleState.NONE},
    Kind.OWNER: {HandleState.BUS_OWNER, HandleState.DOMAIN_OWNER},
    Kind.ENDPOINT: {HandleState.NONE},
    Kind.ENDPOINT_OWNER: {HandleState.EP_OWNER},
}


class Session:
    """One domain, its handles, and whoever does what the bytes say."""

    def __init__(self) -> None:
        self.world = world = World()
        self.cookie = 1 << 40
        self.steps = 0
        self.waiting: list[Waiting] = []
        self.journal: list[str] = []
        self.outcomes: set[str] = set()
        bystander = world.task(BYSTANDER_UID)
        self.caller, self.callee = world.connect(bystander), world.connect(bystander)
        self.callee.add_match()
        self.stranger = world.task(2000, groups=(100,))
        self.privileged = world.task(0, privileged=True, max_fds=24)
        self.tasks = [world.owner, self.stranger, self.privileged]
        self.offered = {task: self._furnish(task) for task in self.tasks}
        self.actors: list[Actor] = []
        self._open_handles()
        self.check()

    def _furnish(self, task: Task) -> list[int]:
        """A descriptor of every kind, and memory to send from; returns the descriptors."""
        socket, path, null, event = (
            task.open_socket(),
            task.open_path(),
            task.open_null(),
            task.open_eventfd(),
        )
        handle = self.world.open(task=task).fd
        memory = [
            task.open_memfd(4096),
            task.open_memfd(4096, seals=layout.F_SEAL_WRITE),
            task.open_memfd(16, seals=None),
        ]
        task.constant(bytes(range(256)) * 1024)
        return [null, *memory, event, path, socket, handle]

    def _open_handles(self) -> None:
        world = self.world
        custom_owner, custom = world.make_endpoint(
            "1000-custom",
            name("org.example.A"),
            access(WORLD, OWN),
            name("org.example.B"),
            access(WORLD, SEE),
        )
        self.custom = custom
        holder = world.connect_holder("org.example.Held", access(WORLD, TALK))
        activator = world.connect_activator("org.example.Activated", access(WORLD, OWN))
        gone = world.connect()
        gone.byebye()
        domain_owner = world.open_control(self.privileged)
        domain_owner.domain_make("sub", layout.Make.ACCESS_WORLD)
        other = world.make_bus("1000-other", bloom=layout.bloom_parameter(8, 1), required=layout.Attach.PIDS)
        other_endpoint = world.find_endpoint(bus="1000-other")
        subdomain = world.domain.domains["sub"]
        for label, client, kind in (
            ("ordinary", world.connect(), Kind.ORDINARY),
            ("ordinary of a stranger", world.connect(self.stranger, pool_size=SMALL_POOL), Kind.ORDINARY),
            ("ordinary of the privileged", world.connect(self.privileged, accept_fd=False), Kind.ORDINARY),
            ("ordinary on a custom endpoint", world.connect(self.stranger, node=custom), Kind.ORDINARY),
            ("monitor", world.connect_monitor(pool_size=65536), Kind.MONITOR),
            ("activator", activator, Kind.ACTIVATOR),
            ("policy holder", holder, Kind.HOLDER),
            ("gone", gone, Kind.ORDINARY),
            ("ordinary elsewhere", world.connect(node=other_endpoint), Kind.ORDINARY),
            ("fresh control", world.open_control(), Kind.CONTROL),
            ("fresh control of the privileged", world.open_control(self.privileged), Kind.CONTROL),
            ("fresh control below", world.open(subdomain, self.privileged), Kind.CONTROL),
            ("fresh endpoint", world.open(), Kind.ENDPOINT),
            ("fresh endpoint of a stranger", world.open(task=self.stranger), Kind.ENDPOINT),
            ("fresh endpoint elsewhere", world.open(other_endpoint), Kind.ENDPOINT),
            ("fresh custom endpoint", world.open(custom, self.stranger), Kind.ENDPOINT),
            ("bus owner", other, Kind.OWNER),
            ("domain owner", domain_owner, Kind.OWNER),
            ("endpoint owner", custom_owner, Kind.ENDPOINT_OWNER),
        ):
            self.actors.append(Actor(label, client, kind))

    # Running

    def run(self, steps: Iterable[bytes]) -> None:
        """All of it, the end included."""
        try:
            for step in steps:
                self.step(step)
            self.finish()
        except BaseException as error:
            error.add_note("\n".join(["what was done:", *self.journal]))
            raise

    def step(self, data: bytes) -> None:
        """One step, and what must hold after it."""
        choices = Choices(data)
        actions: tuple[Callable[[Choices], None], ...] = (
            *(self._fitting_command,) * 10,
            self._any_command,
            self._any_bytes,
            self._pass_time,
            self._wake,
            self._look,
            self._open_or_close,
        )
        choices.pick(actions)(choices)
        self.steps += 1
        self.check()

    def say(self, actor_number: int, request: int, data: bytes, address_number: int = 0) -> None:
        """A given command from a given handle, at one of several addresses."""
        self._issue(self.actors[actor_number % len(self.actors)], request, data, address_number)
        self.check()

    def _fitting_command(self, choices: Choices) -> None:
        ordinary = [actor for actor in self.actors if actor.kind is Kind.ORDINARY and not actor.has_gone]
        actor = choices.pick(ordinary if ordinary and not choices.once_in(3) else self.actors)
        readable = [actor for actor in self.actors if actor.client.is_readable]
        if readable and choices.once_in(4):
            self._build_and_issue(choices, choices.pick(readable), "RECV")
            return
        match actor.kind:
            case Kind.CONTROL:
                names = ["BUS_MAKE", "DOMAIN_MAKE"]
            case Kind.ENDPOINT:
                names = ["HELLO", "HELLO", "ENDPOINT_MAKE"]
            case Kind.OWNER | Kind.ENDPOINT_OWNER:
                names = ["ENDPOINT_UPDATE"]
            case Kind.MONITOR | Kind.ACTIVATOR | Kind.HOLDER:
                names = ["RECV", "UPDATE", "FREE", "CONN_INFO", "BUS_CREATOR_INFO", "LIST"]
            case _:
                # Most often what moves messages.
                names = [*LAYOUTS, *["SEND"] * 12, *["RECV"] * 2][5:]
        self._build_and_issue(choices, actor, choices.pick(names))

    def _any_command(self, choices: Choices) -> None:
        self._build_and_issue(choices, choices.pick(self.actors), choices.pick(tuple(LAYOUTS)))

    def _any_bytes(self, choices: Choices) -> None:
        actor = choices.pick(self.actors)
        request = choices.number() if choices.once_in(8) else choices.pick(tuple(NAMES))
        self._issue(actor, request, choices.blob(200), choices.below(12))

    def _build_and_issue(self, choices: Choices, actor: Actor, command: str) -> None:
        placed: list[int] = []
        memory = actor.task.memory

        def place(content: bytes) -> int:
            placed.append(memory.allocate(content, read_only=choices.once_in(16)))
            self.journal.append(f"{actor.label} has {shown(content)} at {placed[-1]:#x}")
            return placed[-1]

        data = spoil(choices, build_command(choices, self._scene(actor, place), command))
        address_number = choices.below(12) if choices.once_in(8) else 0
        writes = choices.below(5) if choices.once_in(24) else None
        self._issue(actor, LAYOUTS[command].request, data, address_number, writes=writes)
        for address in placed:
            memory.release(address)

    def _scene(self, actor: Actor, place: Callable[[bytes], int]) -> Scene:
        connection = actor.client.handle.connection
        bus = self.world.bus if connection is None else connection.endpoint.bus
        ids = list(bus.connections)
        peers = [id for id, peer in bus.connections.items() if peer.is_ordinary]
        task = actor.task
        constants = list(task._constants.values())
        return Scene(
            bloom_size=bus.bloom.size,
            now=self.world.monotonic_ns,
            ids=ids,
            peers=peers,
            own_id=0 if connection is None else connection.id,
            own_names=[] if connection is None else sorted(connection.names),
            own_cookies=[] if connection is None else [*connection.matches, *cookies_awaited(connection)],
            duties=[] if connection is None else duties_of(connection),
            fds=self.offered[task],
            memfds=self.offered[task][1:2],
            events=self.offered[task][4:5],
            offsets=[] if connection is None else sorted(published_of(actor)),
            addresses=[*constants, *(address + 3 for address in constants)],
            place=place,
        )

    # Commands

    def _place(self, task: Task, data: bytes, address_number: int) -> tuple[int, int | None, bool]:
        """Put a command where `address_number` says: address, region if any, whether it is writable."""
        memory = task.memory
        match address_number:
            case 1:
                region = memory.allocate(b"\0" + data)
                return region + 1, region, True
            case 2:
                region = memory.allocate(bytes(8) + data)
                return region + 8, region, True
            case 3:
                region = memory.allocate(data, read_only=True)
                return region, region, False
            case number if number > 3:
                return UNMAPPED[(number - 4) % len(UNMAPPED)], None, True
            case _:
                region = memory.allocate(data)
                return region, region, True

    def _issue(
        self, actor: Actor, request: int, data: bytes, address_number: int = 0, *, writes: int | None = None
    ) -> None:
        """One command and everything that has to be true of its outcome."""
        task, handle = actor.task, actor.client.handle
        command = NAMES.get(request, f"{request:#x}")
        address, region, writable = self._place(task, data, address_number)
        readable = b"" if region is None else data
        self.journal.append(f"{actor.label}: {command} {shown(data)} at {address:#x}, {writes} writes")
        expected = early_refusal(
            request,
            actor.kind,
            has_gone=actor.has_gone,
            may_make=actor.may_make,
            address=address,
            readable=readable,
            writable=writable,
        )
        flags = int(unpack_from("=Q", data, 8)[0]) if len(readable) >= 16 else 0
        before = self._digest(command)
        ended_before = self._ended()
        lost_before = {waiting: len(waiting.ends) for waiting in self.waiting}
        waiting = Waiting(actor, address, region)
        held_before = self._canceller_candidates(task)
        errno = 0
        try:
            waiting.call = handle.ioctl(
                task if writes is None else BrittleCaller(task, writes), request, address, waiting.on_done
            )
        except KdbusError as error:
            errno = error.errno
        outcome = errorcode[errno] if errno else "waits" if waiting.call else "done"
        self.journal[-1] += f" -> {outcome}"
        self.outcomes.add(f"{actor.label}: {command} -> {outcome}")
        if expected is not None:
            first = {expected} if writes is None else {expected, EFAULT}
            assert errno in first, f"{errorcode[expected]} has to come first"
        if errno:
            allowed = allowed_errnos(command, flags) if command in LAYOUTS else {errno}
            assert errno in allowed, f"{command} has no {errorcode[errno]}"
            assert not waiting.ends
        is_undisturbed = (
            writes is None and self._ended() == ended_before and lost_before.keys() == set(self.waiting)
        )
        negotiated = not errno and bool(flags & layout.NEGOTIATE)
        is_sync = command == "SEND" and bool(flags & layout.SYNC_REPLY)
        if (errno or negotiated) and is_undisturbed and not (errno and is_sync):
            assert self._digest(command) == before, "a refused command changed something"
        if waiting.call is not None:
            self._remember(waiting, held_before)
        elif region is not None:
            if not errno and not negotiated and command in LAYOUTS:
                actor.become(command, flags)
                self._read_answer(actor, command, task.read(address, min(len(data), 4096)))
            task.memory.release(region)
        self._check_state(actor)

    def _digest(self, command: str) -> Digest:
        # A message that is refused in the end has been shown to monitors; RECV reports what was lost.
        return digest(self.world.domain, with_lost=command != "RECV", with_monitors=command != "SEND")

    def _ended(self) -> int:
        return sum(len(waiting.ends) for waiting in self.waiting)

    def _canceller_candidates(self, task: Task) -> dict[int, int]:
        """How many watch each file of a task."""
        return {fd: len(task.description(fd).watchers) for fd in task.fds()}

    def _remember(self, waiting: Waiting, watchers_before: dict[int, int]) -> None:
        task = waiting.actor.task
        call = waiting.call
        assert call is not None
        assert not call.done
        assert not waiting.ends
        for fd, count in watchers_before.items():
            if len(task.description(fd).watchers) > count:
                waiting.canceller = task._fds[fd]
        self.waiting.append(waiting)

    def _check_state(self, actor: Actor) -> None:
        state = actor.client.handle.state
        assert state in _STATES.get(actor.kind, {HandleState.CONNECTED})
        connection = actor.client.handle.connection
        assert (connection is not None) is (actor.kind in CONNECTED)
        if connection is not None:
            assert kind_of(connection.flags) is actor.kind

    def _read_answer(self, actor: Actor, command: str, raw: bytes) -> None:
        """Read what a command has put into the pool, as a wary client would."""
        answer = LAYOUTS[command].fields
        match command:
            case "HELLO":
                connection = actor.client.handle.connection
                assert connection is not None
                assert read_field(raw, answer["id"]) == connection.id
                offset, size = read_field(raw, answer["offset"]), read_field(raw, answer["items_size"])
                assert (offset, size) == (0, 32)
            case "CONN_INFO" | "BUS_CREATOR_INFO" | "LIST":
                offset = read_field(raw, answer["offset"])
                size = read_field(raw, answer["list_size" if command == "LIST" else "info_size"])
                content = read_slice(actor, offset, size)
                if command != "LIST":
                    Info(content)
                else:
                    parse_infos(content)
            case "RECV":
                offset, size = read_field(raw, answer["offset"]), read_field(raw, answer["msg_size"])
                if size:
                    message = Received(read_slice(actor, offset, size), actor.task, offset=offset)
                    self._forget_descriptors(actor, message, flags=read_field(raw, (8, "=Q")))
            case _:
                pass

    @staticmethod
    def _forget_descriptors(actor: Actor, message: Received, *, flags: int) -> None:
        connection = actor.client.handle.connection
        assert connection is not None
        numbers = message.fds + message.memfds
        if flags & layout.Recv.PEEK or message.is_notification:
            assert set(numbers) <= {-1}
            return
        assert connection.accepts_fds or set(message.fds) <= {-1}
        for fd in numbers:
            if fd >= 0:
                actor.task.close(fd)

    # Other steps

    def _pass_time(self, choices: Choices) -> None:
        milliseconds = choices.pick((5, 0, 1, 100_000))
        self.journal.append(f"{milliseconds} ms pass")
        self.world.advance(milliseconds)

    def _wake(self, choices: Choices) -> None:
        """Interrupt or cancel somebody who waits, or make a descriptor readable."""
        if self.waiting and not choices.once_in(3):
            call = choices.pick(self.waiting).call
            assert call is not None
            self.journal.append("a waiting call is interrupted or cancelled")
            if choices.once_in(2):
                call.cancel()
            else:
                call.interrupt()
        else:
            task = choices.pick(self.tasks)
            self.journal.append(f"a descriptor of {task} becomes readable")
            task.signal(self.offered[task][4])
            task.description(self.offered[task][4]).is_readable = False

    def _look(self, choices: Choices) -> None:
        """poll and mmap, of any length."""
        actor = choices.pick(self.actors)
        length, writable = choices.number(), choices.once_in(2)
        self.journal.append(f"{actor.label}: mmap {length}, writable {writable}")
        handle = actor.client.handle
        connection = handle.connection
        assert bool(handle.poll() & (layout.POLLERR | layout.POLLHUP)) is (
            connection is None or not connection.active
        )
        expected = 0
        if connection is None:
            expected = EBADFD
        elif writable:
            expected = EPERM
        elif length > inbox_of(connection).pool.size:
            expected = EFAULT
        errno = 0
        try:
            handle.map_pool(length, writable=writable)
        except KdbusError as error:
            errno = error.errno
        assert errno == expected

    def _open_or_close(self, choices: Choices) -> None:
        if choices.once_in(2) and len(self.actors) > 4:
            actor = choices.pick(self.actors)
            self.journal.append(f"{actor.label} is closed")
            self.actors.remove(actor)
            actor.client.close()
        elif len(self.actors) < MAX_ACTORS:
            task = choices.pick(self.tasks)
            nodes: list[Endpoint | Domain] = [self.world.bus.endpoint, self.custom, self.world.domain]
            node = choices.pick([node for node in nodes if node.active])
            kind = Kind.CONTROL if node is self.world.domain else Kind.ENDPOINT
            self.journal.append(f"{task} opens {node}")
            self.actors.append(Actor(f"opened {len(self.journal)}", self.world.open(node, task), kind))

    # What must hold

    def check(self) -> None:
        """The books, calls that have ended, and the bystanders."""
        for waiting in list(self.waiting):
            call = waiting.call
            assert call is not None
            assert len(waiting.ends) == call.done
            if call.done:
                self._collect(waiting)
        check_books(self.world, self._cancellers())
        self._talk()

    def _cancellers(self) -> list[Reference]:
        """One reference for each call that can be cancelled by a file; and nobody else watches one."""
        held = [waiting.canceller for waiting in self.waiting if waiting.canceller is not None]
        for file in self.world.ledger.files:
            assert len(file.watchers) == sum(reference.description is file for reference in held)
        return held

    def _collect(self, waiting: Waiting) -> None:
        """A call has ended: with an errno that it may end with, or with a reply that can be read."""
        (errno,) = waiting.ends
        self.waiting.remove(waiting)
        actor = waiting.actor
        assert errno == 0 or errno in SYNC_ENDS, f"a synchronous call ends with {errorcode[errno]}"
        raw = actor.task.read(waiting.address, layout.SEND.size)
        assert waiting.region is not None
        actor.task.memory.release(waiting.region)
        if errno or actor.client.handle.connection is None:
            return
        fields = layout.SEND.fields
        offset, size = read_field(raw, fields["offset"]), read_field(raw, fields["msg_size"])
        message = Received(read_slice(actor, offset, size), actor.task, offset=offset)
        for fd in message.fds + message.memfds:
            if fd >= 0:
                actor.task.close(fd)

    def _talk(self) -> None:
        """A bystander asks, the other answers; what others have sent them is passed over."""
        self.cookie += 1
        self.caller.send_items(
            dst=self.callee, cookie=self.cookie, flags=layout.Msg.EXPECT_REPLY, timeout_ms=1000
        )
        request = self._next_from(self.callee, self.caller)
        assert request.cookie == self.cookie
        self.callee.send_items(dst=self.caller, cookie_reply=self.cookie)
        reply = self._next_from(self.caller, self.callee)
        assert reply.cookie_reply == self.cookie

    @staticmethod
    def _next_from(receiver: Client, sender: Client) -> Received:
        while True:
            message = receiver.recv()
            message.close_fds()
            if message.src_id == sender.id:
                return message

    # The end

    def finish(self) -> None:
        """Everybody goes; nothing may be left."""
        for client in (self.caller, self.callee):
            for message in client.drain():
                message.close_fds()
        domains = list(domains_below(self.world.domain))
        buses = [bus for domain in domains for bus in domain.buses.values()]
        for client in self.world.clients:
            connection = client.handle.connection
            if connection is not None:
                client.pool = inbox_of(connection).pool
                client.pool_size = client.pool.size
                client.unfreed = published(client)
        self.world.tear_down()
        for waiting in list(self.waiting):
            assert len(waiting.ends) == 1, "a call still waits for a reply, or ended twice"
        assert not any(bus.active or bus.connections or bus.endpoints for bus in buses)
        assert not any(domain._users or domain.buses or domain.domains for domain in domains)


def shown(data: bytes) -> str:
    """Bytes for a report."""
    return data.hex() if len(data) <= SHOWN else f"{data[:SHOWN].hex()}... ({len(data)} bytes)"


def cookies_awaited(connection: Connection) -> list[int]:
    return [call.cookie for call in connection.calls]


def duties_of(connection: Connection) -> list[tuple[int, int]]:
    """The requests that a connection may answer: whose, and their cookies."""
    return [
        (requester.id, cookie)
        for requester, window in connection.duties.items()
        for cookie in window.trackers
    ]


def published_of(actor: Actor) -> set[int]:
    connection = actor.client.handle.connection
    assert connection is not None
    return {piece.offset for piece in inbox_of(connection).pool.slices() if piece.is_published}


def read_field(raw: bytes, field: tuple[int, str]) -> int:
    at, code = field
    return int(unpack_from(code, raw, at)[0])


def read_slice(actor: Actor, offset: int, size: int) -> bytes:
    """What lies in a slice that was handed out; it has to be one, unless it is empty."""
    connection = actor.client.handle.connection
    assert connection is not None
    pool = inbox_of(connection).pool
    if not size:
        assert offset == pool.size
        return b""
    assert offset in published_of(actor)
    return pool.memory.read(offset, size)


def run_session(steps: Iterable[bytes]) -> None:
    """A session of its own for these steps."""
    Session().run(steps)


def cut_steps(data: bytes) -> list[bytes]:
    """One run of bytes as steps: each is as long as the byte before it says."""
    steps = []
    at = 0
    while at < len(data):
        size = data[at]
        steps.append(data[at + 1 : at + 1 + size])
        at += 1 + size
    return steps
