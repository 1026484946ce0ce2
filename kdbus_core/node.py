"""What can be opened: names of nodes, and who may open one.

A domain's control node and every endpoint is a node.  Its name obeys one rule,
and the only access control on opening it is the file mode it would have had:
its maker always, the maker's group with ACCESS_GROUP, everybody with
ACCESS_WORLD, and whoever is privileged in the domain.
"""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING, Protocol

from kdbus_core.abi import MAX_NODE_NAME_LENGTH, MakeFlag
from kdbus_core.errors import KdbusError

if TYPE_CHECKING:
    from kdbus_core.domain import Domain
    from kdbus_core.endpoint import Endpoint
    from kdbus_core.metadata import Credentials, Process

_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")


class NodeWatcher(Protocol):
    """Whoever makes nodes that can really be opened of those that there are."""

    def on_made(self, node: Domain | Endpoint) -> None:
        """There is a new node, complete but not announced; a KdbusError undoes its making."""

    def on_gone(self, node: Domain | Endpoint) -> None:
        """A node can be opened no longer."""


class Nodes:
    """The nodes of a domain and all domains in it; nobody watches until `watcher` is set."""

    __slots__ = ("watcher",)

    def __init__(self) -> None:
        self.watcher: NodeWatcher | None = None

    def on_made(self, node: Domain | Endpoint) -> None:
        """Tell of a node that was made; closes it again when the watcher refuses it."""
        if self.watcher is None:
            return
        try:
            self.watcher.on_made(node)
        except KdbusError:
            node.close()
            raise

    def on_gone(self, node: Domain | Endpoint) -> None:
        """Tell of a node that has gone."""
        if self.watcher is not None:
            self.watcher.on_gone(node)


def is_valid_node_name(name: str) -> bool:
    """1 to 63 letters, digits, `_`, and `-` or `.` anywhere but first and last."""
    return (
        0 < len(name) <= MAX_NODE_NAME_LENGTH
        and _CHARACTERS.issuperset(name)
        and name[0] not in "-."
        and name[-1] not in "-."
    )


def check_own_name(name: str, maker: Credentials) -> None:
    """A bus or endpoint name has to begin with its maker's uid and a dash (EINVAL)."""
    if maker.uid is None or not is_valid_node_name(name) or not name.startswith(f"{maker.uid}-"):
        raise KdbusError(EINVAL, f"'{name}' is not a name that uid {maker.uid} may make")


def may_open(process: Process, owner: Credentials, access: MakeFlag) -> bool:
    """Whether a node of this owner, made with this access, can be opened."""
    if access & MakeFlag.ACCESS_WORLD or process.privileged:
        return True
    credentials = process.credentials
    if credentials.uid is not None and credentials.uid == owner.uid:
        return True
    if not access & MakeFlag.ACCESS_GROUP or owner.gid is None:
        return False
    return credentials.gid == owner.gid or owner.gid in (credentials.groups or ())
