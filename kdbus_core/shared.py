"""What a proxy has to know of the natives that share the bus with its local connections.

Local connections send each other their messages by way of the proxy, which does
not make native ones of them unless somebody native gets those.  So it asks the
bus: whether anybody listens at all, which holds until a generation changes, and
whether one particular broadcast is awaited.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kdbus_core.abi import DST_BROADCAST, AttachFlag

if TYPE_CHECKING:
    from kdbus_core.connection import Connection
    from kdbus_core.delivery import Delivery
    from kdbus_core.matches import Filter, Matches
    from kdbus_core.message import Message
    from kdbus_core.metadata import Credentials

_CREDS = int(AttachFlag.CREDS)
_PIDS = int(AttachFlag.PIDS)
_AUXGROUPS = int(AttachFlag.AUXGROUPS)
_SECLABEL = int(AttachFlag.SECLABEL)


class SharedBus:
    """The part of a bus that tells a proxy of native listeners, and lets them see what they missed."""

    matches: Matches
    monitors: list[Connection]
    delivery: Delivery

    @property
    def has_native_listeners(self) -> bool:
        """Whether any native connection may want broadcasts; `audience_generation` changes with it."""
        return self.matches.takes_messages or self.has_native_monitors

    @property
    def has_native_monitors(self) -> bool:
        """Whether a native connection sees all messages; `route_generation` changes with it."""
        return any(monitor.inbox is not None for monitor in self.monitors)

    def is_awaited(self, sender: Connection, filter: Filter) -> bool:
        """Whether a broadcast with this filter would go to any native connection, as far as is known."""
        return self.has_native_monitors or bool(self.matches.recipients(sender, filter, DST_BROADCAST))

    def show_to_native_monitors(self, sender: Connection, message: Message) -> None:
        """Show native monitors what a local connection sends to another one.  The message is used up."""
        try:
            self.delivery.show_to_monitors(sender, message)
        finally:
            message.release()

    @property
    def sequence(self) -> int:
        """The number of the last message that came this way: of a native, or for natives."""
        return self.delivery.sequence

    def bring(self, connection: Connection, until: int) -> None:
        """Bring a local connection what natives had sent to a name that it has got, up to that number.

        The rest comes when everybody knows of the name's new owner.
        """
        self.delivery.bring(connection, until)


def granted_credentials(known: Credentials, granted: int) -> Credentials:
    """Of somebody's credentials those that these attach flags speak of, as CONN_INFO would tell them."""
    if not granted & _CREDS:
        known = replace(known, uid=None, gid=None)
    if not granted & _PIDS:
        known = replace(known, pid=None, pidfd=None)
    if not granted & _AUXGROUPS:
        known = replace(known, groups=None)
    if not granted & _SECLABEL:
        known = replace(known, label=None)
    return known
