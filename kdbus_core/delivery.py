"""How a message gets from its sender into pools: unicasts, replies, signals, broadcasts, notifications.

A message is checked, then given its place in the bus' order, then shown to the
monitors, then put into the receiver's inbox; a refusal leaves nothing behind
but what monitors saw.  The sender of a unicast is told when it does not fit;
for everything else the receiver's lost counter says so.

A request opens a tracker and takes a slot for the notification that may have
to replace its reply, so that every request gets exactly one outcome.  A reply
closes its tracker only when it has been delivered.

Native connections have an inbox.  A local one takes what natives send to it
through its sink, at once and with the same outcome for the sender; what local
connections send each other does not come here, but goes through the proxy's
router.  Local listeners are shown what natives send by the bus' gateway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from errno import EAGAIN, EBADMSG, EBADSLT, ECOMM, EINVAL, ENXIO, EPERM, EPIPE, EREMOTEIO, ETIMEDOUT
from typing import TYPE_CHECKING, NamedTuple

from kdbus_core.abi import DST_BROADCAST, MessageFlag, ReceiveFlag
from kdbus_core.errors import KdbusError
from kdbus_core.metadata import Stamp, as_sent, message_items, notification_items
from kdbus_core.notifications import (
    IdAdd,
    IdRemove,
    NameChange,
    Notification,
    ReplyDead,
    ReplyTimeout,
    build_notification,
)
from kdbus_core.policy import may_see_name, may_talk
from kdbus_core.replies import Lost, Tracker
from kdbus_core.synchronous import OnDone, SyncCall

if TYPE_CHECKING:
    from kdbus_core.bus import Bus
    from kdbus_core.caller import File
    from kdbus_core.connection import Connection
    from kdbus_core.inbox import Inbox, Parcel
    from kdbus_core.message import Message
    from kdbus_core.quota import User

_NO_AUTO_START = int(MessageFlag.NO_AUTO_START)
_PEEK = int(ReceiveFlag.PEEK)
_DROP = int(ReceiveFlag.DROP)
_USE_PRIORITY = int(ReceiveFlag.USE_PRIORITY)


class Received(NamedTuple):
    """What RECV gives: where the message lies in the pool, and how many were lost before it.

    `errno` is 0 or EAGAIN; with nothing to hand out the offset is the pool's size.
    """

    errno: int
    offset: int
    size: int
    lost: int
    incomplete: bool = False


class Delivery:
    """SEND and RECV of a bus: from natives to everybody, and from local connections to natives.

    `sequence` is the number of the last message that got its place in the order.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.sequence = 0
        # What monitors have been shown before it is sent; see `Bus.send_seen`.
        self.seen: Message | None = None
        # What came to local owners together with their name and is not brought yet; each message is held.
        self._handed: dict[Connection, deque[tuple[Message, Tracker | None]]] = {}

    # Commands

    def send(self, sender: Connection, message: Message) -> None:
        """SEND without SYNC_REPLY; the errnos are those of kdbus' table of delivery errors."""
        message.sender = sender
        if message.dst_id == DST_BROADCAST:
            self._broadcast(sender, message)
        elif message.expects_reply:
            self._request(sender, message, None)
        elif message.cookie_reply:
            self._reply(sender, message)
        else:
            self._unicast(sender, message)

    def call(self, sender: Connection, message: Message, on_done: OnDone | None) -> SyncCall:
        """SEND with SYNC_REPLY; ETIMEDOUT when its deadline has already passed, and nothing is sent."""
        message.sender = sender
        now = self._bus.domain.monotonic()
        if message.timeout_ns <= now:
            raise KdbusError(ETIMEDOUT, "the deadline has passed")
        call = SyncCall(self._bus.replies, self._bus.order, sender, message, on_done)
        for earlier in reversed(list(sender.calls)):
            if earlier.is_interrupted and earlier.deadline <= now:
                earlier.forget()
            elif earlier.is_repeated_by(call):
                earlier.resume(call)
                return call
        self._request(sender, message, call)
        return call

    def receive(
        self, connection: Connection, flags: int, priority: int, install: Callable[[File], int]
    ) -> Received:
        """RECV: the next message, or with USE_PRIORITY the most urgent one up to `priority`.

        PEEK leaves it queued and installs nothing; DROP throws it away, and
        whoever waits for its reply learns of that.  EINVAL for DROP with
        USE_PRIORITY.  `errno` of the result is EAGAIN when nothing is there.
        """
        inbox = connection.inbox
        assert inbox is not None
        if flags & _DROP and flags & _USE_PRIORITY:
            raise KdbusError(EINVAL, "what is dropped is the first in the queue")
        lost = inbox.take_lost()
        entry = inbox.head(priority if flags & _USE_PRIORITY else None)
        if entry is None:
            return Received(EAGAIN, inbox.pool.size, 0, lost)
        if flags & _DROP:
            tracker = entry.tracker
            inbox.discard(entry)
            if tracker is not None:
                self._drop(tracker)
            return Received(0, inbox.pool.size, 0, lost)
        if flags & _PEEK:
            return Received(0, *inbox.peek(entry), lost)
        offset, size, incomplete = inbox.take(entry, install, accept_fds=connection.accepts_fds)
        return Received(0, offset, size, lost, incomplete=incomplete)

    # Where it goes

    def _destination(self, sender: Connection, message: Message) -> tuple[Connection, int]:
        """The receiver, and the id of the name it is addressed by (0 if it is not)."""
        bus = self._bus
        name = message.dst_name
        receiver = bus.resolve(id=message.dst_id, name=name, auto_start=not message.flags & _NO_AUTO_START)
        if receiver.inbox is None and receiver.sink is None:
            raise KdbusError(ENXIO, f"connection {receiver.id} receives nothing")
        name_id = 0
        if name is not None:
            entry = bus.names.entry(name)
            assert entry is not None
            name_id = entry.name_id
            message.sent = as_sent(sender)  # the name may lead to somebody else before it is read
        return receiver, name_id

    def _stamp(self, message: Message) -> None:
        message.stamp = self._next_stamp()

    def _next_stamp(self) -> Stamp:
        self.sequence += 1
        domain = self._bus.domain
        return Stamp(self.sequence, domain.monotonic(), domain.realtime())

    @staticmethod
    def _check_fds(receiver: Connection, message: Message) -> None:
        if message.fd_count and not receiver.accepts_fds:
            raise KdbusError(ECOMM, f"connection {receiver.id} does not accept file descriptors")

    @staticmethod
    def _compose(sender: Connection, receiver: Connection, message: Message) -> Parcel:
        return message.compose(message_items(sender, receiver, message.stamp, message.sent, message.origin))

    def _insert(
        self,
        sender: Connection,
        receiver: Connection,
        message: Message,
        *,
        name_id: int = 0,
        tracker: Tracker | None = None,
    ) -> None:
        inbox = receiver.inbox
        if inbox is None:
            assert receiver.sink is not None
            receiver.sink.on_message(sender, message)
            if tracker is not None:
                tracker.on_dequeued()  # there is no queue
            return
        self._check_fds(receiver, message)
        inbox.push(
            self._compose(sender, receiver, message),
            sender.user,
            priority=message.priority,
            name_id=name_id,
            tracker=tracker,
        )

    def _insert_or_lose(
        self, sender: Connection, receiver: Connection, message: Message, name_id: int = 0
    ) -> None:
        try:
            self._insert(sender, receiver, message, name_id=name_id)
        except KdbusError as error:
            if receiver.inbox is not None:
                receiver.inbox.on_lost()
            elif error.errno == EBADMSG:
                raise  # not lost for want of room: nobody could ever take it

    @staticmethod
    def _push_or_lose(inbox: Inbox, parcel: Parcel, user: User, priority: int = 0) -> None:
        try:
            inbox.push(parcel, user, priority=priority)
        except KdbusError:
            inbox.on_lost()

    def _show_to_monitors(self, sender: Connection, message: Message) -> None:
        if message is self.seen:
            return
        for monitor, inbox in self._monitors():
            self._push_or_lose(inbox, self._compose(sender, monitor, message), sender.user, message.priority)

    def _show(self, sender: Connection, receiver: Connection, message: Message) -> None:
        """Let those who listen see what is sent to somebody else."""
        self._show_to_monitors(sender, message)
        bus = self._bus
        if bus.gateway is not None and sender.inbox is not None and bus.subscriptions.has_listeners:
            bus.gateway.on_unicast(sender, message, receiver)

    def show_to_monitors(self, sender: Connection, message: Message) -> None:
        """Show native monitors what does not come this way otherwise."""
        message.sender = sender
        self._stamp(message)
        self._show_to_monitors(sender, message)

    def _monitors(self) -> Iterator[tuple[Connection, Inbox]]:
        for monitor in self._bus.monitors:
            if monitor.inbox is not None:
                yield monitor, monitor.inbox

    # Kinds of messages

    def _unicast(self, sender: Connection, message: Message) -> None:
        receiver, name_id = self._destination(sender, message)
        if message.is_signal:
            self._signal(sender, receiver, message, name_id)
            return
        self._check_talk(sender, receiver)
        self._stamp(message)
        self._show(sender, receiver, message)
        self._insert(sender, receiver, message, name_id=name_id)

    @staticmethod
    def _check_talk(sender: Connection, receiver: Connection) -> None:
        if not may_talk(sender, receiver):
            raise KdbusError(EPERM, f"connection {sender.id} may not talk to {receiver.id}")

    def _signal(self, sender: Connection, receiver: Connection, message: Message, name_id: int) -> None:
        """A signal to one connection: it has to want it, and to be allowed to talk to the sender.

        A local connection wants every signal that is sent to it, as D-Bus has it.
        """
        assert message.filter is not None
        self._stamp(message)
        self._show(sender, receiver, message)
        wanted = receiver.inbox is None or self._bus.matches.wants(
            receiver, sender, message.filter, message.dst_id
        )
        if wanted and may_talk(receiver, sender):
            self._insert_or_lose(sender, receiver, message, name_id)

    def _broadcast(self, sender: Connection, message: Message) -> None:
        assert message.filter is not None
        self._stamp(message)
        self._show_to_monitors(sender, message)
        for receiver in self._bus.matches.recipients(sender, message.filter, DST_BROADCAST):
            if receiver.inbox is not None and may_talk(receiver, sender):
                self._insert_or_lose(sender, receiver, message)
        gateway = self._bus.gateway
        if gateway is not None and sender.inbox is not None:
            gateway.on_broadcast(sender, message)

    def _request(self, sender: Connection, message: Message, call: SyncCall | None) -> None:
        receiver, name_id = self._destination(sender, message)
        self._check_talk(sender, receiver)
        replies = self._bus.replies
        tracker = replies.track(
            sender, receiver, message.cookie, message.timeout_ns, name_id=name_id, waiter=call
        )
        try:
            if call is not None:
                call.wait(tracker)
            elif sender.inbox is not None:
                self._reserve(sender.inbox, tracker)
            self._stamp(message)
            self._show(sender, receiver, message)
            self._insert(sender, receiver, message, name_id=name_id, tracker=tracker)
        except BaseException:
            if call is not None:
                call.withdraw()
            self._close(tracker)
            tracker.on_dequeued()
            raise
        if (
            call is None
            and message.timeout_ns
            and message.timeout_ns <= (now := self._bus.domain.monotonic())
        ):
            self._bus.expire_replies(now)

    def _reply(self, sender: Connection, message: Message) -> None:
        requester, _ = self._destination(sender, message)
        tracker = self._bus.replies.find(requester, sender, message.cookie_reply)
        if not isinstance(tracker, Tracker):
            raise KdbusError(
                EBADSLT, f"no open request {message.cookie_reply} from {requester.id} to {sender.id}"
            )
        self._stamp(message)
        self._show(sender, requester, message)
        if isinstance(tracker.waiter, SyncCall):
            self._answer(tracker.waiter, sender, message)
            return
        self._insert(sender, requester, message)
        self._close(tracker)

    def _answer(self, call: SyncCall, sender: Connection, message: Message) -> None:
        """Hand a reply to somebody who waits for it; both ends learn why when that fails."""
        inbox = call.sender.inbox
        assert inbox is not None
        try:
            self._check_fds(call.sender, message)
        except KdbusError:
            call.fail(EREMOTEIO)
            raise
        try:
            entry = inbox.stage(self._compose(sender, call.sender, message), sender.user)
        except KdbusError as error:
            call.fail(error.errno)
            raise
        call.answer(entry)

    # Requests that end without a reply

    @staticmethod
    def _reserve(inbox: Inbox, tracker: Tracker) -> None:
        """Take the slot for the notification that there will be no reply.

        Who waits is told otherwise, and a local requester by its sink.
        """
        inbox.reserve()
        tracker.reserved = True

    def _close(self, tracker: Tracker) -> None:
        self._bus.replies.close(tracker)
        if tracker.reserved:
            tracker.reserved = False
            assert tracker.requester.inbox is not None
            tracker.requester.inbox.unreserve()

    def _drop(self, tracker: Tracker) -> None:
        """The receiver of a request has thrown it away unread: its sender is told like of a death."""
        lost = self._bus.replies.fail(tracker)
        if lost is not None:
            self.on_lost(lost, EPIPE)

    def on_lost(self, lost: Lost, errno: int) -> None:
        """A request was closed without a reply: EPIPE (its receiver has gone) or ETIMEDOUT."""
        tracker = lost.tracker
        if tracker is not None and isinstance(tracker.waiter, SyncCall):
            tracker.waiter.lose(errno)
            return
        if tracker is not None:
            tracker.reserved = False  # the notification has the slot now
        if errno == ETIMEDOUT:
            self._bus.order.report(ReplyTimeout(lost.requester, lost.cookie))
        else:
            self._bus.order.report(ReplyDead(lost.requester, lost.cookie))

    # Notifications

    def notify(self, notification: Notification) -> None:
        """Put a notification into the inboxes of those whom it concerns, monitors first."""
        bus = self._bus
        match notification:
            case ReplyDead() | ReplyTimeout():
                requester = notification.requester
                if requester.inbox is None:
                    return
                parcel = build_notification(notification, notification_items(self._next_stamp()))
                self._notify_monitors(parcel)
                if requester.active:
                    requester.inbox.push_reserved(parcel, bus.kernel_user)
            case NameChange() | IdAdd() | IdRemove():
                receivers = bus.matches.notified(notification) if bus.matches else []
                if not receivers and not bus.monitors:
                    return
                parcel = build_notification(notification, notification_items(self._next_stamp()))
                self._notify_monitors(parcel)
                for receiver in receivers:
                    if receiver.inbox is None or not receiver.active:
                        continue
                    if isinstance(notification, NameChange) and not may_see_name(receiver, notification.name):
                        continue
                    self._push_or_lose(receiver.inbox, parcel, bus.kernel_user)

    def _notify_monitors(self, parcel: Parcel) -> None:
        for _, inbox in self._monitors():
            self._push_or_lose(inbox, parcel, self._bus.kernel_user)

    # Hand-over between an activator and an owner

    def hand_over(self, old: Connection, new: Connection, name_id: int) -> None:
        """Move the messages that were sent to a name to whom it leads now, and the duty to answer them.

        They are charged to their senders again; what does not fit is lost for the new receiver.  A local
        connection has got all that was sent to it, and still owes the answers.
        """
        if old.inbox is None:
            return
        if new.inbox is not None:
            self._hand_to_native(old.inbox, new, new.inbox, name_id)
        elif new.sink is not None:
            self._hand_to_local(old.inbox, new, name_id)
        else:
            return
        # A proxy's client may give a name up and answer afterwards, as on any D-Bus bus.
        only_unread = old.faked is not None and new.is_activator
        self._bus.replies.repoint(old, new, name_id, only_unread=only_unread)

    def _hand_to_native(self, old: Inbox, new: Connection, inbox: Inbox, name_id: int) -> None:
        gateway = self._bus.gateway
        for entry in old.extract(name_id):
            message = entry.message
            assert message is not None
            assert message.sender is not None
            if gateway is not None and message.dst_name is not None:
                gateway.on_hand_over(message.dst_name, new, message.stamp.seqnum)
            try:
                self._check_fds(new, message)
            except KdbusError:
                old.discard(entry)
                inbox.on_lost()
            else:
                old.hand_over(entry, inbox, self._compose(message.sender, new, message))

    def _hand_to_local(self, old: Inbox, new: Connection, name_id: int) -> None:
        """A local owner is told that it has the name before it gets what was sent to that."""
        entries = old.extract(name_id)
        if not entries:
            return
        waiting = self._handed.setdefault(new, deque())
        for entry in entries:
            assert entry.message is not None
            entry.message.hold()
            waiting.append((entry.message, entry.tracker))
            old.discard(entry)
        self._bus.order.call_later(lambda: self.bring(new))

    def bring(self, receiver: Connection, until: int | None = None) -> None:
        """Bring a local connection what came with its name, all of it or up to the message of a number.

        What it does not take is lost; who waits for its reply learns of that.
        """
        waiting = self._handed.get(receiver)
        while waiting and (until is None or waiting[0][0].stamp.seqnum <= until):
            message, tracker = waiting.popleft()
            assert message.sender is not None
            try:
                if receiver.active and receiver.sink is not None:
                    receiver.sink.on_message(message.sender, message)
            except KdbusError:
                if tracker is not None:
                    self._drop(tracker)
            finally:
                message.release()
        if waiting is not None and not waiting:
            self._handed.pop(receiver, None)
