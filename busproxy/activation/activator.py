"""Starting services when a message asks for them.

Each name that a .service file offers is an activator connection of the
broker: that is what the name leads to while nobody owns it.  A message to it
is held here, charged to its sender, and the service is started; when somebody
acquires the name the held messages are delivered in the order in which they
came, before anything that is sent later.  If the start fails, each sender
gets an error.  A `Start` is one attempt; it ends in exactly one of the two.

What native connections send to the name waits in the activator's pool instead,
and the broker hands it to the owner; here it asks for the start, and is thrown
away when that fails.

Who is waited for is this module's business; how a process comes into being is
the launcher's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from busproxy.activation.launcher import Launcher, LaunchError, Process
from busproxy.incoming import Incoming
from busproxy.router import ACCESS_DENIED, LIMITS_EXCEEDED, is_client, peer_of
from busproxy.wire.marshal import unmarshal
from busproxy.wire.names import is_error_name, is_well_known_name
from kdbus_core.abi import ATTACH_ALL, PAGE_SIZE, HelloFlag, ReceiveFlag
from kdbus_core.connection import Connection, Limits
from kdbus_core.errors import KdbusError
from kdbus_core.pool import Pool

if TYPE_CHECKING:
    import asyncio

    from busproxy.activation.service_files import ServiceFile
    from busproxy.peer import Peer
    from busproxy.router import Router
    from kdbus_core.quota import Quota

SERVICE_UNKNOWN = "org.freedesktop.DBus.Error.ServiceUnknown"
FAILED = "org.freedesktop.DBus.Error.Failed"
TIMED_OUT = "org.freedesktop.DBus.Error.TimedOut"

SYSTEMD_NAME = "org.freedesktop.systemd1"
SYSTEMD_PATH = "/org/freedesktop/systemd1"
SYSTEMD_MANAGER = "org.freedesktop.systemd1.Manager"
SYSTEMD_INTERFACE = "org.freedesktop.systemd1.Activator"

STARTED = 1  # StartServiceByName: the service was started


class Start:
    """One attempt to start a service, and what waits for it."""

    __slots__ = ("_quota", "callers", "held", "name", "process", "service", "timer")

    # Each with the number of the last native message before it.
    held: list[tuple[int, Incoming]]
    callers: list[tuple[int, Incoming]]

    def __init__(self, name: str, service: ServiceFile, quota: Quota) -> None:
        self.name = name
        self._quota = quota
        self.service = service
        self.held = []
        self.callers = []
        self.timer: asyncio.TimerHandle | None = None
        self.process: Process | None = None

    def hold(self, message: Incoming, queue: list[tuple[int, Incoming]], sequence: int) -> None:
        """Keep a message in one of the queues; KdbusError when its sender has too much here."""
        self._quota.charge(message.peer.user, message.size, message.fd_count)
        queue.append((sequence, message.kept()))

    def release(self, message: Incoming) -> None:
        """A held message was dealt with."""
        self._quota.refund(message.peer.user, message.size, message.fd_count)
        if message.fds is not None:
            message.fds.release()


class Activation:
    """All activatable services of a bus."""

    def __init__(
        self, router: Router, launcher: Launcher, rescan: Callable[[], None], *, systemd: bool
    ) -> None:
        self._router = router
        self._rescan = rescan
        self._untold_environment: dict[str, str] | None = None  # what systemd has yet to be told
        self._launcher = launcher
        self._systemd = systemd
        self._services: dict[str, ServiceFile] = {}
        self._activators: dict[str, Connection] = {}
        self._starts: dict[str, Start] = {}
        router.activation = self

    # What is offered

    def load(self, services: Mapping[str, ServiceFile]) -> None:
        """Offer exactly these services; tells the bus when that is a change.

        A service whose name is no bus name can never be asked for and is passed over.
        """
        router = self._router
        before = set(self._services)
        services = {name: service for name, service in services.items() if is_well_known_name(name)}
        self._services = services
        for name in before - set(services):
            router.bus.disconnect(self._activators.pop(name))
        for name in services.keys() - before:
            activator = router.bus.hello(
                router.bus.endpoint,
                router.bus.creator,
                # Backed only where a native message lies in it.
                pool=Pool(-(-2 * router.limits.max_outgoing_bytes // PAGE_SIZE) * PAGE_SIZE),
                on_ready=partial(self._on_native_mail, name),
                flags=HelloFlag.ACTIVATOR | HelloFlag.ACCEPT_FD,
                attach_send=ATTACH_ALL,
                name=name,
                description="activator",
                account=router.bus.kernel_user,
                max_connections=None,
                limits=Limits(queued_messages=1 << 30, in_flight_fds=router.limits.max_outgoing_unix_fds),
            )
            self._activators[name] = activator
        if before != set(services):
            router.driver.outbox.broadcast("ActivatableServicesChanged", "", ())

    def offers(self, name: str) -> bool:
        """Whether the service files provide this name; looks again before saying no."""
        if name not in self._services:
            self._rescan()
        return name in self._services

    def has(self, connection: Connection) -> bool:
        """Whether a connection is the activator of one of these services."""
        return any(self._activators.get(name) is connection for name in connection.names)

    def names(self) -> list[str]:
        """Every name that can be activated now."""
        self._rescan()
        return list(self._services)

    def update_environment(self, variables: Mapping[str, str]) -> None:
        """Start services with these variables from now on (UpdateActivationEnvironment).

        What cannot be in an environment is passed over.
        """
        variables = {
            name: value
            for name, value in variables.items()
            if name and "=" not in name and "\0" not in name + value
        }
        self._launcher.environment.update(variables)
        if self._systemd:
            self._untold_environment = (self._untold_environment or {}) | dict(variables)
            self._tell_environment(was_held=False)

    def _tell_environment(self, *, was_held: bool) -> None:
        """systemd starts services too; it is told when it is there, by name if it was waited for."""
        owner = self._router.bus.names.owner(SYSTEMD_NAME)
        if owner is None or not is_client(owner) or self._untold_environment is None:
            return
        assignments = [f"{name}={value}" for name, value in self._untold_environment.items()]
        self._untold_environment = None
        self._router.driver.outbox.send_call(
            peer_of(owner),
            SYSTEMD_PATH,
            SYSTEMD_MANAGER,
            "SetEnvironment",
            "as",
            (assignments,),
            destination=SYSTEMD_NAME if was_held else None,
        )

    # What asks for a start

    def start_or_refuse(self, message: Incoming, name: str) -> None:
        """A message to a name that nobody owns and nobody was known to offer."""
        if self.offers(name):
            self.start_for(message, name)
            return
        self._router.driver.refuse(
            message, SERVICE_UNKNOWN, f"The name {name} was not provided by any .service files"
        )

    def start_for(self, message: Incoming, name: str) -> None:
        """Hold a message for a service and start that."""
        start = self._begin(message, name)
        if start is not None:
            self._hold(start, message, start.held)

    def start_for_caller(self, message: Incoming, name: str) -> None:
        """Start a service because StartServiceByName says so; the reply comes when it has its name."""
        start = self._begin(message, name)
        if start is not None:
            self._hold(start, message, start.callers)

    def _on_native_mail(self, name: str) -> None:
        """Something waits in an activator's pool."""
        if name not in self._starts:
            self._router.poller.hurry()
            self._router.loop.call_soon(self._start_for_natives, name)

    def _start_for_natives(self, name: str) -> None:
        activator = self._activators.get(name)
        if activator is None or name in self._starts or self._router.bus.names.owner(name) is not None:
            return
        if activator.inbox is not None and not len(activator.inbox):
            return
        if self._is_full():
            self._router.log.warning("activation of %s failed: too many services are starting", name)
            self._drop_native_mail(name)
        else:
            self._make_start(name)

    def _drop_native_mail(self, name: str) -> None:
        """Nobody will read what natives have sent; those who wait for a reply learn of it."""
        activator = self._activators.get(name)
        bus = self._router.bus
        while activator is not None and activator.active:
            if bus.receive(activator, int(ReceiveFlag.DROP), 0, lambda file: -1).errno:
                return

    def _hold(self, start: Start, message: Incoming, queue: list[tuple[int, Incoming]]) -> None:
        try:
            start.hold(message, queue, self._router.bus.sequence)
        except KdbusError as error:
            text = f"Too much is waiting for {start.name} to start: {error.why}"
            self._router.driver.refuse(message, LIMITS_EXCEEDED, text)

    def _begin(self, message: Incoming, name: str) -> Start | None:
        """The attempt that is under way, or a new one; None when there may be no more."""
        running = self._starts.get(name)
        if running is not None:
            return running
        router = self._router
        if self._is_full():
            router.driver.refuse(
                message,
                LIMITS_EXCEEDED,
                "The maximum number of pending activations has been reached, "
                f"activation of {name} failed "
                f"(max_pending_service_starts={router.limits.max_pending_service_starts})",
            )
            return None
        return self._make_start(name)

    def _is_full(self) -> bool:
        return len(self._starts) >= self._router.limits.max_pending_service_starts

    def _make_start(self, name: str) -> Start:
        router = self._router
        start = self._starts[name] = Start(name, self._services[name], self._activators[name].quota)
        timeout = router.limits.service_start_timeout
        start.timer = router.call_later(timeout / 1000, lambda: self._give_up(start, timeout))
        if self._systemd and name == SYSTEMD_NAME:
            pass  # it will come by itself
        elif self._systemd and start.service.systemd_service and not self._is_systemd_native():
            self._ask_systemd(start, is_new=True)
        else:
            # From the loop, so that whoever asked is queued before a failure is told.
            router.poller.hurry()
            router.loop.call_soon(self._launch, start)
        return start

    def _give_up(self, start: Start, timeout: int) -> None:
        """The service has not come in time: its process, if it has one, is ended."""
        if start.process is not None:
            start.process.kill()
        self._fail(
            start,
            TIMED_OUT,
            f"Failed to activate service '{start.name}': timed out (service_start_timeout={timeout}ms)",
        )

    def _launch(self, start: Start) -> None:
        def on_failure(error: LaunchError) -> None:
            if self._starts.get(start.name) is start:
                self._fail(start, error.name, error.text)

        if self._starts.get(start.name) is not start:
            return
        try:
            start.process = self._launcher.launch(self._router.loop, start.service, on_failure)
        except LaunchError as error:
            self._fail(start, error.name, error.text)

    # systemd as launcher

    def _is_systemd_native(self) -> bool:
        """Whether systemd is there as a native peer, which the driver cannot send anything to."""
        owner = self._router.bus.names.owner(SYSTEMD_NAME)
        return owner is not None and not is_client(owner)

    def _ask_systemd(self, start: Start, *, is_new: bool) -> None:
        """Ask systemd to start a unit, now or when it comes; monitors see that once, now."""
        owner = self._router.bus.names.owner(SYSTEMD_NAME)
        self._router.driver.outbox.send_signal(
            peer_of(owner) if owner is not None else None,
            "ActivationRequest",
            "s",
            (start.service.systemd_service,),
            interface=SYSTEMD_INTERFACE,
            destination=SYSTEMD_NAME,
            is_new=is_new,
        )

    def on_systemd_signal(self, message: Incoming) -> None:
        """systemd says that a unit could not be started."""
        header = message.header
        if header.interface != SYSTEMD_INTERFACE or header.member != "ActivationFailure":
            return
        if header.signature != "sss":
            return
        owner = self._router.bus.names.owner(SYSTEMD_NAME)
        if owner is None or owner is not message.peer.connection:
            self._router.driver.refuse(message, ACCESS_DENIED, "Only systemd can report a failed activation")
            return
        unit, name, text = unmarshal(
            header.signature, message.data, message.body, message.end, header.little_endian
        )
        if not is_error_name(name):
            name = FAILED
        for start in list(self._starts.values()):
            if start.service.systemd_service == unit:
                self._fail(start, name, text)

    # How a start ends

    def on_name_acquired(self, name: str, owner: Connection) -> None:
        """A name has a new owner: what was held for it goes there."""
        if name == SYSTEMD_NAME and self._systemd and is_client(owner):
            self._tell_environment(was_held=True)
            for start in list(self._starts.values()):
                if start.service.systemd_service and start.name != name:
                    self._ask_systemd(start, is_new=False)
        ended = self._end(name)
        if ended is None:
            return
        router = self._router
        for sequence, message in ended.held:
            router.bus.bring(owner, sequence)
            self._deliver(ended, message, owner)
        for _, message in ended.callers:
            if not message.peer.closed:
                router.driver.outbox.send_reply(message.peer, message.serial, "u", (STARTED,))
            ended.release(message)

    def on_hand_over(self, name: str, owner: Connection, sequence: int) -> None:
        """A native owner is about to get the native message of that number: what is older comes first."""
        start = self._starts.get(name)
        while start is not None and start.held and start.held[0][0] < sequence:
            self._deliver(start, start.held.pop(0)[1], owner)

    def _deliver(self, start: Start, message: Incoming, owner: Connection) -> None:
        """Bring to the owner what was held for it, if its sender is still there."""
        sender = message.peer.connection
        if sender is not None and sender.active:
            self._router.deliver(message, sender, owner, was_held=True)
        start.release(message)

    def on_disconnected(self, peer: Peer) -> None:
        """A peer goes: what it has waiting is dropped."""
        for start in self._starts.values():
            gone = [message for _, message in (*start.held, *start.callers) if message.peer is peer]
            if not gone:
                continue
            start.held = [kept for kept in start.held if kept[1].peer is not peer]
            start.callers = [kept for kept in start.callers if kept[1].peer is not peer]
            for message in gone:
                start.release(message)

    def _fail(self, start: Start, error_name: str, text: str) -> None:
        if self._end(start.name) is None:
            return
        self._router.log.warning("activation of %s failed: %s", start.name, text)
        for _, message in (*start.held, *start.callers):
            self._router.driver.refuse(message, error_name, text)
            start.release(message)
        self._drop_native_mail(start.name)

    def _end(self, name: str) -> Start | None:
        start = self._starts.pop(name, None)
        if start is not None and start.timer is not None:
            start.timer.cancel()
        return start

    def close(self) -> None:
        """The bus ends: nothing that waits will happen. Services that run go on."""
        for name in list(self._starts):
            ended = self._end(name)
            if ended is not None:
                for _, message in (*ended.held, *ended.callers):
                    ended.release(message)
