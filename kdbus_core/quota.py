"""What waits for a receiver, and who is charged for it.

A receiver offers room for `capacity` bytes of waiting messages.  Every byte,
message and file descriptor that waits is charged to the *user* who sent it,
so that one user cannot fill a queue that others need: of the room that is
left, counting a user's own share as free, each may hold a third (kdbus, pool
share rule).  The method that stores is the method that charges; `refund`
mirrors it exactly, and an account with nothing waiting does not exist.

What a receiver has read and not freed yet is not charged to anybody: of its
pool only half is offered, and the other half is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EMFILE, ENOBUFS

from kdbus_core.errors import KdbusError

MAX_SHARE = (1 << 32) - 1
"""Bytes of one user that may wait at one receiver, however large its pool is."""


class User:
    """Somebody who is charged: one per uid, or one per custom endpoint.

    `charged` counts the receivers where something of theirs waits.  An account
    with neither connections nor charges is `settled` and may be forgotten.
    """

    __slots__ = ("charged", "connections", "on_settled", "uid")

    def __init__(self, uid: int | None, on_settled: Callable[[User], None] | None = None) -> None:
        self.uid = uid
        self.connections = 0
        self.charged = 0
        self.on_settled = on_settled

    def disconnect(self) -> None:
        """One connection less."""
        self.connections -= 1
        self.settle()

    def settle(self) -> None:
        """Say so if there is nothing left in this account."""
        if not self.connections and not self.charged and self.on_settled is not None:
            self.on_settled(self)

    def __repr__(self) -> str:
        return f"User({self.uid})"


class _Share:
    __slots__ = ("fds", "memory", "messages")

    def __init__(self) -> None:
        self.memory = 0
        self.messages = 0
        self.fds = 0


class Quota:
    """The accounts of one receiver; sizes in bytes."""

    __slots__ = (
        "capacity",
        "max_fds",
        "max_messages",
        "peak_fds",
        "peak_memory",
        "shares",
        "total_fds",
        "total_memory",
        "total_messages",
    )

    def __init__(self, capacity: int, max_messages: int, max_fds: int) -> None:
        self.capacity = capacity
        self.max_messages = max_messages
        self.max_fds = max_fds
        self.shares: dict[User, _Share] = {}
        self.total_memory = 0
        self.total_messages = 0
        self.total_fds = 0
        self.peak_memory = 0
        self.peak_fds = 0

    def charge(self, user: User, size: int, fds: int = 0) -> None:
        """Charge a message of `size` bytes with `fds` descriptors to `user`.

        Raises ENOBUFS when the user's share of the room or its number of
        messages is used up, EMFILE when too many descriptors wait.
        """
        share = self.shares.get(user)
        own, messages, in_flight = (0, 0, 0) if share is None else (share.memory, share.messages, share.fds)
        waiting = self.total_memory
        allowed = (self.capacity - waiting + own) // 3
        if waiting > self.capacity or size > allowed - own or size > MAX_SHARE - own:
            raise KdbusError(ENOBUFS, f"{user} has {own} bytes waiting here, no room for {size} more")
        if messages >= self.max_messages:
            raise KdbusError(ENOBUFS, f"{user} has {messages} messages waiting here")
        if in_flight + fds > self.max_fds:
            raise KdbusError(
                EMFILE, f"{user} has {in_flight} file descriptors waiting here, no room for {fds}"
            )
        self.force(user, size, fds)

    def force(self, user: User, size: int, fds: int = 0) -> None:
        """Charge without asking: for what was accepted before it had to wait."""
        share = self.shares.get(user)
        if share is None:
            share = self.shares[user] = _Share()
            user.charged += 1
        share.memory += size
        share.messages += 1
        share.fds += fds
        self.total_memory += size
        self.total_messages += 1
        self.total_fds += fds
        if self.total_memory > self.peak_memory:
            self.peak_memory = self.total_memory
        if self.total_fds > self.peak_fds:
            self.peak_fds = self.total_fds

    def refund(self, user: User, size: int, fds: int = 0) -> None:
        """Take back one charge of exactly this size."""
        share = self.shares[user]
        share.memory -= size
        share.messages -= 1
        share.fds -= fds
        self.total_memory -= size
        self.total_messages -= 1
        self.total_fds -= fds
        if not share.messages:
            assert not share.memory
            assert not share.fds
            del self.shares[user]
            user.charged -= 1
            user.settle()
