"""What the tests of metadata share: the fourteen kinds, a process of which all is known, and who sends.

`KINDS` says of each kind which item it is and from where in a `Snapshot` it comes.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from support.kdbus import (
    OWNER_UID,
    Attach,
    Client,
    ItemType,
    Received,
    Task,
    World,
)
from support.kdbus.layout import ATTACH_ALL

from kdbus_core.endpoint import Endpoint
from kdbus_core.metadata import Audit, Caps, Creds, Pids, Snapshot

NAME = "foo.bar.baz"
DESCRIPTION = "a-description"
KNOWN = Snapshot(
    creds=Creds(OWNER_UID, OWNER_UID, 3, 4, 5, 6, 7, 8),
    pids=Pids(70, 71, 72),
    auxgroups=(11, 9, 10),
    tid_comm=b"thread",
    pid_comm=b"process",
    exe=b"/bin/program",
    cmdline=b"program\0--option",
    cgroup=b"/user.slice",
    caps=Caps(37, 1 << 37, 2, 3, 2**38 - 1),
    seclabel=b"label",
    audit=Audit(12, 13),
)


class Kind(NamedTuple):
    """A kind of metadata: its flag and item, and where it comes from in a `Snapshot`."""

    flag: Attach
    item: ItemType
    source: str = ""


KINDS = [
    Kind(Attach.TIMESTAMP, ItemType.TIMESTAMP),
    Kind(Attach.CREDS, ItemType.CREDS, "creds"),
    Kind(Attach.PIDS, ItemType.PIDS, "pids"),
    Kind(Attach.AUXGROUPS, ItemType.AUXGROUPS, "auxgroups"),
    Kind(Attach.NAMES, ItemType.OWNED_NAME),
    Kind(Attach.TID_COMM, ItemType.TID_COMM, "tid_comm"),
    Kind(Attach.PID_COMM, ItemType.PID_COMM, "pid_comm"),
    Kind(Attach.EXE, ItemType.EXE, "exe"),
    Kind(Attach.CMDLINE, ItemType.CMDLINE, "cmdline"),
    Kind(Attach.CGROUP, ItemType.CGROUP, "cgroup"),
    Kind(Attach.CAPS, ItemType.CAPS, "caps"),
    Kind(Attach.SECLABEL, ItemType.SECLABEL, "seclabel"),
    Kind(Attach.AUDIT, ItemType.AUDIT, "audit"),
    Kind(Attach.CONN_DESCRIPTION, ItemType.CONN_DESCRIPTION),
]
OF_PROCESS = [kind for kind in KINDS if kind.source]
IMPLICIT = {
    Attach.TIMESTAMP,
    Attach.CREDS,
    Attach.PIDS,
    Attach.AUXGROUPS,
    Attach.NAMES,
    Attach.CONN_DESCRIPTION,
}
IN_PROC = [kind for kind in KINDS if kind.flag not in IMPLICIT]
EACH = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.item.name)
EACH_OF_PROCESS = pytest.mark.parametrize("kind", OF_PROCESS, ids=lambda kind: kind.item.name)
EACH_IN_PROC = pytest.mark.parametrize("kind", IN_PROC, ids=lambda kind: kind.item.name)
Buses = dict[str, Endpoint]
FORMULAS = pytest.mark.parametrize("formula", ["consent", "final"])


def subject(world: World, snapshot: Snapshot = KNOWN) -> Task:
    """A process of the bus owner of which all of this is known."""
    return world.task(snapshot=snapshot)


def connect(world: World, node: Endpoint, *, send: int = ATTACH_ALL, snapshot: Snapshot = KNOWN) -> Client:
    """A sender with a name and a description."""
    client = world.connect(subject(world, snapshot), node=node, attach_send=send, description=DESCRIPTION)
    client.name_acquire(NAME)
    return client


def by_unicast(sender: Client, receiver: Client) -> Received:
    sender.send_small(receiver)
    return receiver.recv()
