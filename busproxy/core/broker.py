"""The broker behind `--core`: whether it is there, and how to ask it for something.

A command is a round trip that waits.  When there is nobody to answer, that is said once in the log and ends
the proxy (see `gone`); every other refusal is the caller's.  A connection of ours may be ended without that
the bus has gone, so before that is believed the watcher, which lives as long as the bus, is asked.

The broker owns the watcher.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from errno import ECONNREFUSED, ECONNRESET, EMFILE, ENOENT, ESHUTDOWN
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

from busproxy.core.gone import BrokerGone
from kdbus_core.abi import ATTACH_ALL, AttachFlag, HelloFlag
from kdbus_core.errors import KdbusError
from kdbus_core.transport.client import Connection, open_node

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kdbus_core.metadata import Credentials, Snapshot
    from kdbus_core.policy import Access

P = ParamSpec("P")
T = TypeVar("T")

POOL_SIZE = 16 * 1024 * 1024

ENDED = frozenset({ECONNRESET, ESHUTDOWN})
"""What a command is refused with when its connection, or the whole broker, has gone."""

_NO_NODE = frozenset({ENOENT, ECONNREFUSED})


class Broker:
    """The remote bus at `path`; `gone` once it is there no more.

    Raises KdbusError: ENOENT, ECONNREFUSED or EACCES when there is none that can be connected to, EPERM when
    this process is not an owner of it.
    """

    def __init__(self, path: Path, own: Credentials, log: logging.Logger) -> None:
        self.path = path
        self.gone = False
        self._log = log
        # Speaking for somebody, were it for oneself, is what only owners may do.
        self.watcher = _hello(path, description="busproxy-watcher", faked=own)

    def close(self) -> None:
        """Leave; nothing can be asked any more."""
        self.gone = True
        self.watcher.close()

    def check(self) -> None:
        """BrokerGone if there is nobody to ask any more."""
        if self.gone:
            raise BrokerGone

    def ask(self, command: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Issue a command; raises what it is refused with, and BrokerGone when nobody is there."""
        self.check()
        try:
            return command(*args, **kwargs)
        except KdbusError as error:
            if error.errno in ENDED and not self._is_there():
                self._lose(error)
            raise

    def connect(
        self,
        *,
        flags: HelloFlag,
        description: str,
        name: str | None = None,
        accesses: Iterable[Access] = (),
        faked: Credentials | Snapshot | None = None,
    ) -> Connection:
        """A new connection; EMFILE when the broker takes no more of them."""
        self.check()
        try:
            return _hello(
                self.path, flags=flags, description=description, name=name, accesses=accesses, faked=faked
            )
        except KdbusError as error:
            if error.errno in _NO_NODE or (error.errno in ENDED and not self._is_there()):
                self._lose(error)
            if error.errno in ENDED:  # the door was shut before anything was said
                raise KdbusError(EMFILE, error.why) from error
            raise

    def queue(self, name: str) -> list[int]:
        """Whose name it is and who waits for it, in this order; empty where we may not know.

        No command tells the order.  The domain's state does, to whoever owns the domain and not only the bus.
        """
        try:
            with open_node(self.path.parents[1] / "control") as handle:
                state = handle.inspect()
            return [
                place["connection"]
                for bus in state["buses"]
                if bus["name"] == self.path.parent.name
                for entry in bus["names"]
                if entry["name"] == name
                for place in entry["queue"]
            ]
        except (KdbusError, LookupError, TypeError):  # it may be a domain that tells something else
            return []

    def _is_there(self) -> bool:
        try:
            self.watcher.info(self.watcher.id, attach=0)
        except KdbusError as error:
            return error.errno not in ENDED
        return True

    def _lose(self, error: KdbusError) -> NoReturn:
        self.gone = True
        self._log.error("the bus %s has gone away: %s", self.path, error.why)
        raise BrokerGone from error


def _hello(
    path: Path,
    *,
    description: str,
    flags: HelloFlag = HelloFlag(0),  # noqa: B008 - a constant
    name: str | None = None,
    accesses: Iterable[Access] = (),
    faked: Credentials | Snapshot | None = None,
) -> Connection:
    """Connect; the numbers of all messages are wanted, and of each sender nothing else."""
    with open_node(path) as handle:
        return handle.hello(
            flags=flags,
            attach_send=ATTACH_ALL,
            attach_recv=AttachFlag.TIMESTAMP,
            pool_size=POOL_SIZE,
            description=description,
            name=name,
            accesses=tuple(accesses),
            faked=faked,
        )
