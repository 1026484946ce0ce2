"""Messages of strangers, from our connections to our clients.

A message to one client is told to it in its turn.  A signal to everybody is read as many times as we have
connections whose matches let it through, and told once: who gets it is decided by the clients' exact rules.
Signals of our own clients come back in the same way and are dropped, for everybody here has got them.  A
monitoring connection sees everything; of that only what strangers send each other is news.

What was sent to a name that nobody owned waits at the broker and comes with the name.  It is older than the
news that the name has a new owner, who is to hear of that first; so it is kept until then.

A message of one of our clients that comes back to another one was sent to a name which was somebody else's
then.  It has not been told here; its request goes on as one between two clients of ours.

Requests in either direction are known here as open requests of the bus, the ones that strangers make of our
clients so that the answers find their way, and those of our clients so that they have one outcome.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from errno import ENXIO
from typing import TYPE_CHECKING, cast

from busproxy.core.links import Link, Role
from busproxy.core.outgoing import FOREVER_NS, send_message
from busproxy.core.refusal import build_no_reply, build_refusal
from kdbus_core.abi import DST_BROADCAST
from kdbus_core.errors import KdbusError
from kdbus_core.message import Message
from kdbus_core.metadata import Stamp
from kdbus_core.notifications import NameChange, Notification, ReplyDead, ReplyTimeout

if TYPE_CHECKING:
    from busproxy.core.incoming import Arrival
    from busproxy.core.remote import RemoteBus
    from kdbus_core.connection import Connection
    from kdbus_core.replies import Tracker


@dataclass(frozen=True, slots=True)
class Letter:
    """A message in its turn: for one of our clients, for all that want it (None), or only overheard."""

    sender: Connection
    message: Message
    receiver: Connection | None = None
    is_overheard: bool = False
    was_shown: bool = False  # to those who listen in, when it was sent


class Mail:
    """The messages of a bus that is somewhere else."""

    def __init__(self, bus: RemoteBus, log: logging.Logger) -> None:
        self.lost = 0
        self._bus = bus
        self._log = log
        self._early: list[Arrival] = []
        self._last_broadcast = 0
        self._copies: dict[tuple[int, int], list[Link]] = {}
        # Requests that have ended with a stranger; the broker will say so of each.
        self._orphans: Counter[tuple[Link, int]] = Counter()

    def on_message(self, arrival: Arrival, message: Message) -> None:
        """Something was sent: take it, or let go of it."""
        bus, link = self._bus, arrival.link
        known = bus.connections.get(arrival.sender)
        if known is not None and known.sink is not None and not _has_crossed(link, message):
            message.release()  # one of ours
        elif message.dst_id == DST_BROADCAST:
            if self._is_first_copy(arrival, message):
                self._report(arrival, Letter(bus.news.stranger(arrival.sender), message))
            else:
                message.release()
        elif link.role is Role.MONITOR:
            receiver = self._addressee(message)
            if receiver is None or receiver.sink is not None:
                message.release()  # comes to our client's own connection as well
            else:
                sender = bus.news.stranger(arrival.sender)
                self._report(arrival, Letter(sender, message, receiver, is_overheard=True))
        elif message.dst_name is not None and self._addressee(message) is not link.local:
            self._early.append(arrival)
        else:
            self._post(arrival, message)

    def on_name_change(self, change: NameChange) -> None:
        """A name has got another owner: what came with it may follow."""
        came = [
            (arrival, arrival.content)
            for arrival in self._early
            if arrival.link.local is change.new
            and isinstance(arrival.content, Message)
            and arrival.content.dst_name == change.name
        ]
        if came:
            self._early = [arrival for arrival in self._early if all(arrival is not one for one, _ in came)]
            was_handed_over = change.old is not None and change.old.is_activator
            for arrival, message in came:
                self._post(arrival, message, was_shown=was_handed_over)

    def on_quiet(self) -> None:
        """Everything that there was has been told."""
        self._copies.clear()
        early, self._early = self._early, []
        for arrival in early:  # the name has moved on already
            assert isinstance(arrival.content, Message)
            self._post(arrival, arrival.content)

    def forget(self, link: Link) -> None:
        """One of our connections has gone, and what was read from it goes too."""
        for arrival in self._early:
            if arrival.link is link:
                arrival.drop()
        self._early = [arrival for arrival in self._early if arrival.link is not link]
        for key in [key for key in self._orphans if key[0] is link]:
            del self._orphans[key]

    def close(self) -> None:
        """Let go of everything."""
        for arrival in self._early:
            arrival.drop()
        self._early.clear()

    def _addressee(self, message: Message) -> Connection | None:
        if message.dst_name is not None:
            entry = self._bus.names.entry(message.dst_name)
            return None if entry is None or entry.holder is None else entry.holder.connection
        return self._bus.connections.get(message.dst_id)

    def _is_first_copy(self, arrival: Arrival, message: Message) -> bool:
        """Whether this is not yet another connection's copy of a signal that was told."""
        if arrival.is_numbered:
            is_first = arrival.sequence > self._last_broadcast
            self._last_broadcast = max(arrival.sequence, self._last_broadcast)
            return is_first
        # Of one sender and cookie every connection that gets any has as many as were sent.
        copies = self._copies.setdefault((arrival.sender, message.cookie), [])
        told = max((copies.count(link) for link in copies), default=0)
        copies.append(arrival.link)
        return copies.count(arrival.link) > told

    # One by one

    def _post(self, arrival: Arrival, message: Message, *, was_shown: bool = False) -> None:
        bus, receiver = self._bus, arrival.link.local
        if receiver is None or not receiver.active:
            if message.expects_reply:
                self._answer_for_nobody(arrival, message)
            message.release()
            return
        sender = bus.news.stranger(arrival.sender)
        if message.expects_reply and sender.sink is not None:
            self._take_home(arrival, sender, receiver, message)
        elif message.expects_reply and sender.active:
            bus.expire_replies(time.monotonic_ns())
            bus.replies.track(
                sender, receiver, message.cookie, message.timeout_ns, name_id=self._name_id(message)
            ).on_dequeued()
        elif message.cookie_reply:
            answered = _find_request(receiver, message.cookie_reply, sender)
            if answered is not None:
                bus.replies.close(answered)
        self._report(
            arrival, Letter(sender, message, receiver, was_shown=was_shown or sender.sink is not None)
        )

    def _name_id(self, message: Message) -> int:
        entry = None if message.dst_name is None else self._bus.names.entry(message.dst_name)
        return 0 if entry is None else entry.name_id

    def renounce(self, link: Link, replier: Connection) -> None:
        """A client that goes answers the requests that would go back to its names' activators, with an error.

        The broker gives those back with the name, though nobody has them there to answer; who waits would not
        even learn that the client has gone.
        """
        name_ids = {mine.entry.name_id for mine in replier.names.values() if mine.entry.activator is not None}
        if not name_ids:
            return
        for requester, window in replier.duties.items():
            if requester.sink is not None:
                continue
            for tracker in [tracker for tracker in window.tracked() if tracker.name_id in name_ids]:
                self._bus.replies.close(tracker)
                refusal = build_no_reply(tracker.cookie, requester.id)
                try:
                    send_message(link.remote, refusal)
                except KdbusError as error:
                    self._log.debug("connection %d does not learn of it: %s", requester.id, error)

    def _take_home(
        self, arrival: Arrival, sender: Connection, receiver: Connection, request: Message
    ) -> None:
        """A request of one of our clients has reached another one: it is the broker's business no more."""
        replies, cookie = self._bus.replies, request.cookie
        tracker = _find_request(sender, cookie)
        if tracker is not None:
            replies.close(tracker)
            is_endless = request.timeout_ns > time.monotonic_ns() + FOREVER_NS // 2
            replies.open(replies.window(sender, receiver), cookie, 0 if is_endless else request.timeout_ns)
        done = Message((), dst_id=sender.id, cookie=cookie, cookie_reply=cookie)
        try:
            send_message(arrival.link.remote, done)  # which is dropped when it comes to its sender
        except KdbusError as error:
            self._log.debug("request %d of connection %d stays open: %s", cookie, sender.id, error)

    def on_stranger_gone(self, stranger: Connection) -> None:
        """The requests that it has not answered end with it."""
        for requester, window in stranger.duties.items():
            link = self._bus.links.get(requester)
            if link is not None:
                for tracker in window.tracked():
                    self._orphans[link, tracker.cookie] += 1

    def on_request_lost(self, link: Link, cookie: int, kind: type[ReplyDead | ReplyTimeout]) -> None:
        """The broker says that a client's request gets no answer."""
        requester = link.local
        if requester is None or link.role is not Role.CLIENT:
            return
        if kind is ReplyDead and (orphans := self._orphans.pop((link, cookie), 0)):
            if orphans > 1:
                self._orphans[link, cookie] = orphans - 1
            return  # the client knows: whom it asked was said to have gone
        tracker = _find_request(requester, cookie)
        if tracker is not None:
            self._bus.replies.close(tracker)
            self._bus.order.report(kind(requester, cookie))

    def _report(self, arrival: Arrival, letter: Letter) -> None:
        letter.message.sender = letter.sender
        letter.message.stamp = Stamp(arrival.sequence, 0, 0)
        self._bus.order.report(cast(Notification, letter))

    def tell(self, letter: Letter) -> None:
        """It is this one's turn."""
        try:
            self._deliver(letter)
        except Exception:  # a bug must cost a message, never the bus
            self._log.exception("internal error with a message of connection %d", letter.sender.id)
        finally:
            letter.message.release()

    def _deliver(self, letter: Letter) -> None:
        bus, sender, message, receiver = self._bus, letter.sender, letter.message, letter.receiver
        if receiver is None:
            if bus.gateway is not None:
                bus.gateway.on_broadcast(sender, message)
            return
        if bus.gateway is not None and bus.subscriptions.has_listeners and not letter.was_shown:
            bus.gateway.on_unicast(sender, message, receiver)
        if letter.is_overheard or not receiver.active or receiver.sink is None:
            return
        try:
            receiver.sink.on_message(sender, message)
        except KdbusError as error:
            self.lost += 1
            self._log.debug("connection %d does not take a message: %s", receiver.id, error)
            if message.expects_reply:
                self._answer(sender, receiver, message, error)

    def _answer_for_nobody(self, arrival: Arrival, request: Message) -> None:
        """Who has called a connection of ours that is nobody's learns that."""
        id = arrival.link.id
        refusal = build_refusal(request, arrival.sender, id, KdbusError(ENXIO, f"no client {id}"))
        try:
            send_message(arrival.link.remote, refusal)
        except KdbusError as error:
            self._log.debug("connection %d does not learn that nobody is there: %s", arrival.sender, error)
        finally:
            refusal.release()

    def _answer(self, sender: Connection, receiver: Connection, request: Message, error: KdbusError) -> None:
        """Who waits for a reply gets one."""
        if sender.sink is not None:
            if self._bus.replies.is_open(sender, receiver, request.cookie):
                self._bus.replies.take(sender, receiver, request.cookie)
                self._bus.order.report(ReplyDead(sender, request.cookie))
            return
        try:
            self._bus.send(receiver, build_refusal(request, sender.id, receiver.id, error))
        except KdbusError as refusal:
            self._log.debug("connection %d does not learn of it: %s", sender.id, refusal)


def _has_crossed(link: Link, message: Message) -> bool:
    """Whether a message of one of ours has come to another one, and is not just to be seen again."""
    return link.role is Role.CLIENT and message.dst_id != DST_BROADCAST and not message.cookie_reply


def _find_request(requester: Connection, cookie: int, replier: Connection | None = None) -> Tracker | None:
    """Our client's open request with this cookie: that to `replier`, else to whichever stranger."""
    if replier is not None and replier in requester.requests:
        tracker = requester.requests[replier].trackers.get(cookie)
        if tracker is not None:
            return tracker
    for window in requester.requests.values():
        tracker = window.trackers.get(cookie)
        if tracker is not None:
            return tracker
    return None
