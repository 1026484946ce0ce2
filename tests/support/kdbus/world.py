"""A domain to test in, the processes in it, and the check that nothing is left when it ends.

A `World` has one bus of uid 1000, made like the test buses of kdbus: open to the world, 64-byte filters,
all metadata of its creator to be asked for. `world.owner` is the task that made it and is not privileged:
it owns the bus, and nothing else. Further tasks have whatever credentials a test gives them, so no case
needs real privileges. Time stands still until `advance`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from kdbus_core.bus import Bus
from kdbus_core.domain import Domain
from kdbus_core.endpoint import Endpoint
from kdbus_core.metadata import (
    INITIAL_PID_NAMESPACE,
    INITIAL_USER_NAMESPACE,
    Audit,
    Caps,
    Creds,
    PidNamespace,
    Pids,
    Process,
    Snapshot,
    UserNamespace,
)

from . import layout
from .client import Client
from .layout import ATTACH_ALL, POOL_SIZE, Hello, ItemType, Make
from .task import Ledger, Task

OWNER_UID = 1000
NOBODY = 65534
BUS_NAME = f"{OWNER_UID}-test"
FIRST_PID = 4000
EPOCH_MONOTONIC = 1_000_000_000_000
EPOCH_REALTIME = 1_700_000_000_000_000_000


class World:
    """One domain with one bus; `tear_down` ends it and checks that it holds nothing."""

    def __init__(self, *, flags: int = Make.ACCESS_WORLD, creator_mask: int = ATTACH_ALL) -> None:
        self.monotonic_ns = EPOCH_MONOTONIC
        self.realtime_ns = EPOCH_REALTIME
        self.ledger = Ledger()
        self.tasks: list[Task] = []
        self.clients: list[Client] = []
        self._seen_buses: list[Bus] = []
        self._last_pid = FIRST_PID
        self._randomness = 0
        self.domain = Domain(self._random_bytes, lambda: self.monotonic_ns, lambda: self.realtime_ns)
        self.owner = self.task(OWNER_UID)
        self.maker = self.make_bus(BUS_NAME, flags=flags, creator_mask=creator_mask)
        self.bus = self.domain.buses[BUS_NAME]

    def _random_bytes(self, count: int) -> bytes:
        self._randomness += 1
        return self._randomness.to_bytes(count, "big")

    # Processes

    def task(
        self,
        uid: int = OWNER_UID,
        gid: int | None = None,
        *,
        groups: tuple[int, ...] = (),
        privileged: bool = False,
        creds: Creds | None = None,
        pid: int | None = None,
        ppid: int = 1,
        name: bytes = b"task",
        label: bytes | None = b"unconfined",
        caps: Caps | None = None,
        snapshot: Snapshot | None = None,
        user_namespace: UserNamespace | None = INITIAL_USER_NAMESPACE,
        pid_namespace: PidNamespace | None = INITIAL_PID_NAMESPACE,
        pids_in: Mapping[PidNamespace, Pids] | None = None,
        root: Hashable | None = "/",
        max_fds: int = 1024,
    ) -> Task:
        """A process; ids are those of the initial namespaces, and all eight are the same without `creds`.

        `privileged` is CAP_IPC_OWNER in the domain's user namespace. A `snapshot` replaces everything that
        would be told of it.
        """
        self._last_pid += 1
        pid = pid or self._last_pid
        gid = uid if gid is None else gid
        if snapshot is None:
            snapshot = Snapshot(
                creds=creds or Creds(uid, uid, uid, uid, gid, gid, gid, gid),
                pids=Pids(pid, pid, ppid),
                auxgroups=groups,
                tid_comm=name,
                pid_comm=name,
                exe=b"/usr/bin/" + name,
                cmdline=b"/usr/bin/" + name,
                cgroup=b"/user.slice/" + name,
                caps=caps or Caps(40, 0, 0, 0, 2**41 - 1),
                seclabel=label,
                audit=Audit(1, uid),
            )
        process = Process(
            snapshot,
            user_namespace=user_namespace,
            pid_namespace=pid_namespace,
            root=root,
            pids_in=pids_in or {},
            privileged=privileged,
        )
        task = Task(self.ledger, process, max_fds=max_fds)
        self.tasks.append(task)
        return task

    # Nodes

    def open(self, node: Domain | Endpoint | None = None, task: Task | None = None) -> Client:
        """Open a node (the bus's default endpoint unless told otherwise); nothing is said on it yet."""
        client = Client(self, task or self.owner, node or self.bus.endpoint)
        self.clients.append(client)
        return client

    def open_control(self, task: Task | None = None) -> Client:
        """Open the domain's control node."""
        return self.open(self.domain, task)

    def make_bus(
        self,
        name: str,
        task: Task | None = None,
        *,
        flags: int = Make.ACCESS_WORLD,
        creator_mask: int = ATTACH_ALL,
        required: int | None = None,
        bloom: bytes | None = None,
    ) -> Client:
        """A further bus; returns the handle it lives with. `required` is what every HELLO has to grant."""
        items = [layout.number(ItemType.ATTACH_FLAGS_SEND, creator_mask)]
        if required is not None:
            items.append(layout.number(ItemType.ATTACH_FLAGS_RECV, required))
        control = self.open_control(task)
        control.bus_make(*items, name=name, bloom=bloom, flags=flags)
        return control

    def find_endpoint(self, name: str = "bus", *, bus: str = BUS_NAME) -> Endpoint:
        """The node of an endpoint, as a path would lead to it; KeyError where there is none."""
        return self.domain.buses[bus].endpoints[name]

    def make_endpoint(
        self, name: str, *items: bytes, flags: int = Make.ACCESS_WORLD, task: Task | None = None
    ) -> tuple[Client, Endpoint]:
        """A custom endpoint of the bus with this policy; returns the handle it lives with and its node."""
        maker = self.open(task=task)
        maker.endpoint_make(name, flags)
        if items:
            maker.endpoint_update(*items)
        return maker, self.find_endpoint(name)

    # Connections

    def connect(
        self,
        task: Task | None = None,
        *items: bytes,
        node: Endpoint | None = None,
        flags: int = 0,
        accept_fd: bool = True,
        attach_send: int = ATTACH_ALL,
        attach_recv: int = ATTACH_ALL,
        pool_size: int = POOL_SIZE,
        description: str | None = "this-is-my-name",
    ) -> Client:
        """Open and say HELLO; of the bus owner and on the default endpoint unless told otherwise."""
        client = self.open(node, task)
        try:
            client.hello(
                *items,
                flags=flags,
                accept_fd=accept_fd,
                attach_send=attach_send,
                attach_recv=attach_recv,
                pool_size=pool_size,
                description=description,
            )
        except BaseException:
            client.close()
            raise
        return client

    def connect_monitor(self, task: Task | None = None, **options: int) -> Client:
        return self.connect(task, flags=Hello.MONITOR, **options)  # type: ignore[arg-type] # only numbers

    def connect_activator(self, name: str, *accesses: bytes, task: Task | None = None) -> Client:
        """An activator of a name, with the policy for it."""
        return self.connect(task, layout.name(name), *accesses, flags=Hello.ACTIVATOR)

    def connect_holder(self, name: str, *accesses: bytes, task: Task | None = None) -> Client:
        """A policy holder for a name."""
        return self.connect(task, layout.name(name), *accesses, flags=Hello.POLICY_HOLDER)

    # Time

    def advance(self, milliseconds: float) -> None:
        """Let time pass; whatever is due then happens."""
        elapsed = int(milliseconds * 1_000_000)
        self.monotonic_ns += elapsed
        self.realtime_ns += elapsed
        for bus in list(self.domain.buses.values()):
            bus.expire_replies(self.monotonic_ns)

    # The end

    def tear_down(self) -> None:
        """Every task exits; then nothing may be left of anything."""
        self._note_buses()
        connections = [client.handle.connection for client in self.clients]
        for client, connection in zip(self.clients, connections, strict=True):
            if connection is not None:
                assert_pool_is_in_order(client)
        for task in reversed(self.tasks):
            task.exit()
        assert self.ledger.open_files() == []
        assert [file for file in self.ledger.files if file.watchers] == []
        for client, connection in zip(self.clients, connections, strict=True):
            if connection is None:
                continue
            assert not connection.active
            assert not connection.names
            assert not connection.matches
            assert not connection.match_count
            assert not connection.requests
            assert not connection.duties
            assert not connection.outstanding
            assert not connection.calls
            assert not connection.quota.shares
            assert not connection.quota.total_messages
            assert connection.inbox is not None
            assert len(connection.inbox) == 0
            assert not [piece for piece in client.pool.slices() if piece.is_held]
            assert published(client) == client.unfreed
        for bus in self._seen_buses:
            assert_bus_is_empty(bus)
        assert not self.domain.buses
        assert not self.domain._users

    def _note_buses(self) -> None:
        """Remember the buses that are to end."""
        self._seen_buses = [self.bus, *self.domain.buses.values()]


def published(client: Client) -> set[int]:
    """Where the slices are that the client has."""
    return {piece.offset for piece in client.pool.slices() if piece.is_published}


def assert_pool_is_in_order(client: Client) -> None:
    """Slices tile the pool, and the client has exactly those it did not free."""
    at = 0
    for piece in client.pool.slices():
        assert piece.offset == at
        at += piece.size
    assert at == client.pool_size
    assert published(client) == client.unfreed


def assert_bus_is_empty(bus: Bus) -> None:
    """A bus that has gone refers to nothing."""
    assert not bus.active
    assert not bus.connections
    assert not bus.monitors
    assert not bus.endpoints
    assert len(bus.names) == 0
    assert len(bus.policy) == 0
    assert not bus.matches
    assert bus.replies.next_deadline() is None
    assert bus.order.is_idle


def ids(clients: Sequence[Client]) -> list[int]:
    return [client.id for client in clients]
