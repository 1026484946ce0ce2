"""Local connections, as a proxy makes them, in the world of native ones.

A `Local` is the sink of its own connection. What comes goes into its log as words, `#7` for a message as in
`native_world`, and it refuses with an errno while told to. `Listeners` is a gateway that notes what it is
shown.
"""

from __future__ import annotations

from native_world import OWNER, World

from kdbus_core import Connection, Credentials, KdbusError
from kdbus_core.abi import ATTACH_ALL, HelloFlag, MessageFlag
from kdbus_core.connection import Limits
from kdbus_core.message import Message, MessageItem
from kdbus_core.metadata import Process
from kdbus_core.notifications import ReplyDead, ReplyTimeout
from kdbus_core.quota import User
from kdbus_core.subscriptions import Rule

CLIENT = Credentials(uid=5000, gid=5001, pid=815, groups=(5002,), label=b"client_t")


class Local:
    """A local connection and everything that came to it."""

    def __init__(
        self,
        world: World,
        *,
        process: Process = OWNER,
        flags: HelloFlag = HelloFlag(0),  # noqa: B008 - a constant
        limits: Limits = Limits(),  # noqa: B008 - a constant
        account: User | None = None,
    ) -> None:
        self.world = world
        self.log: list[str] = []
        self.messages: list[Message] = []
        self.refuses = 0
        self.connection: Connection = world.bus.hello(
            world.bus.endpoint,
            process,
            sink=self,
            flags=flags,
            faked=CLIENT,
            attach_send=ATTACH_ALL,
            limits=limits,
            account=account,
        )

    def on_reply_lost(self, notification: ReplyDead | ReplyTimeout) -> None:
        assert notification.requester is self.connection
        kind = "REPLY_DEAD" if isinstance(notification, ReplyDead) else "REPLY_TIMEOUT"
        self.log.append(f"{kind} #{notification.cookie}")

    def on_message(self, sender: Connection, message: Message) -> None:
        assert self.connection.active
        assert message.sender is sender
        assert message.stamp.seqnum
        if self.refuses:
            raise KdbusError(self.refuses, "as the test wants it")
        self.messages.append(message)
        self.log.append(f"#{message.cookie}")

    def read(self) -> list[str]:
        """What has come since the last time."""
        words = list(self.log)
        self.log.clear()
        self.messages.clear()
        return words

    def ask(self, to: Connection | str, cookie: int, *items: MessageItem, timeout_ns: int = 0) -> None:
        """A request; without a deadline, as a proxy's are, unless told otherwise."""
        message = self.world.message(
            to, cookie, *items, flags=MessageFlag.EXPECT_REPLY, timeout_ns=timeout_ns
        )
        self.world.bus.send(self.connection, message)

    def listen_in(self) -> None:
        """Subscribe to what others send each other."""
        self.world.bus.subscribe(self.connection, 1, Rule(eavesdrop=True))

    def leave(self) -> None:
        self.world.bus.disconnect(self.connection)

    def assert_idle(self) -> None:
        """Nothing is open that this connection has to do with."""
        assert self.connection.outstanding == 0
        assert not any(window.trackers for window in self.connection.requests.values())
        assert not any(window.trackers for window in self.connection.duties.values())


class Listeners:
    """A gateway that notes what it is shown."""

    def __init__(self, world: World) -> None:
        self.shown: list[str] = []
        world.bus.gateway = self

    def on_broadcast(self, sender: Connection, message: Message) -> None:
        self.shown.append(f"#{message.cookie} from {sender.id}")

    def on_unicast(self, sender: Connection, message: Message, receiver: Connection) -> None:
        self.shown.append(f"#{message.cookie} from {sender.id} to {receiver.id}")

    def on_hand_over(self, name: str, owner: Connection, sequence: int) -> None:
        """It keeps nothing back."""
