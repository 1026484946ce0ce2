"""Messages between root, an ordinary user and root of that user's container.

The container has a user namespace of its own, in which uid and gid 0 are the user's outside, and a pid
namespace of its own; all three processes have the same parent.
"""

from __future__ import annotations

from struct import pack

import pytest
from metadata_world import STAMP, Town, decode, types

from kdbus_core import Connection
from kdbus_core.abi import AttachFlag, HelloFlag, ItemType, MakeFlag
from kdbus_core.metadata import Caps, Creds, Pids, Process, Snapshot, connection_items, message_items
from kdbus_core.namespaces import (
    INITIAL_PID_NAMESPACE,
    INITIAL_USER_NAMESPACE,
    Extent,
    PidNamespace,
    UserNamespace,
)

NOBODY = 65534
PARENT = 50
USERS = UserNamespace(INITIAL_USER_NAMESPACE, (Extent(0, NOBODY, 1),), (Extent(0, NOBODY, 1),), owner=NOBODY)
PIDS = PidNamespace(INITIAL_PID_NAMESPACE)
EVERY_CAPABILITY = (1 << 41) - 1


def snapshot(id: int, pid: int, capabilities: int) -> Snapshot:
    caps = Caps(40, 0, capabilities, capabilities, EVERY_CAPABILITY)
    return Snapshot(creds=Creds(*[id] * 8), pids=Pids(pid, pid, PARENT), auxgroups=(), caps=caps)


ROOT = Process(snapshot(0, 100, EVERY_CAPABILITY))
USER = Process(snapshot(NOBODY, 200, 0))
INSIDE = Process(
    snapshot(NOBODY, 300, EVERY_CAPABILITY),
    user_namespace=USERS,
    pid_namespace=PIDS,
    pids_in={PIDS: Pids(1, 1, 0)},
)


class Crossing(Town):
    """All three on one bus of root's."""

    def __init__(self, flags: MakeFlag) -> None:
        super().__init__(creator=ROOT, flags=flags)
        self.root, self.user, self.inside = (self.connect(process) for process in (ROOT, USER, INSIDE))
        self.monitor = self.connect(ROOT, flags=HelloFlag.MONITOR)


@pytest.fixture(params=[MakeFlag(0), MakeFlag.FINAL_METADATA], ids=["by consent", "final"])
def crossing(request: pytest.FixtureRequest) -> Crossing:
    return Crossing(request.param)


def told(sender: Connection, receiver: Connection) -> dict[ItemType, bytes]:
    return dict(decode(message_items(sender, receiver, STAMP)))


def ids(id: int) -> bytes:
    return pack("=8Q", *[id] * 8)


def caps(inheritable: int, *sets: int) -> bytes:
    words = [word for one in (inheritable, *sets) for word in (one & 0xFFFFFFFF, one >> 32)]
    return pack("=I8I", 40, *words)


def test_outside_a_user_is_as_it_is(crossing: Crossing) -> None:
    items = told(crossing.user, crossing.root)
    assert items[ItemType.CREDS] == ids(NOBODY)
    assert items[ItemType.PIDS] == pack("=3Q", 200, 200, PARENT)


def test_outside_root_of_a_container_is_the_user_and_its_capabilities_are_nothing(crossing: Crossing) -> None:
    items = told(crossing.inside, crossing.root)
    assert items[ItemType.CREDS] == ids(NOBODY)
    assert items[ItemType.PIDS] == pack("=3Q", 300, 300, PARENT)
    assert items[ItemType.CAPS] == caps(0, 0, 0, 0)


def test_inside_root_of_outside_is_nobody_and_invisible(crossing: Crossing) -> None:
    items = told(crossing.root, crossing.inside)
    assert items[ItemType.CREDS] == ids(NOBODY)
    assert items[ItemType.PIDS] == pack("=3Q", 0, 0, 0)
    assert items[ItemType.CAPS] == caps(0, EVERY_CAPABILITY, EVERY_CAPABILITY, EVERY_CAPABILITY)


def test_inside_the_user_is_root_and_may_do_everything(crossing: Crossing) -> None:
    items = told(crossing.user, crossing.inside)
    assert items[ItemType.CREDS] == ids(0)
    assert items[ItemType.CAPS] == caps(0, *[(1 << 64) - 1] * 3)


def test_inside_it_is_what_it_is_inside(crossing: Crossing) -> None:
    reader = Town().connect(process=INSIDE)
    items = dict(decode(connection_items(crossing.inside, reader, AttachFlag.CREDS | AttachFlag.PIDS)))
    assert items == {ItemType.CREDS: ids(0), ItemType.PIDS: pack("=3Q", 1, 1, 0)}


def test_to_a_user_outside_root_is_root(crossing: Crossing) -> None:
    items = told(crossing.root, crossing.user)
    assert items[ItemType.CREDS] == ids(0)
    assert items[ItemType.PIDS] == pack("=3Q", 100, 100, PARENT)


def test_a_monitor_outside_sees_the_pids_of_everybody(crossing: Crossing) -> None:
    for sender in (crossing.root, crossing.user, crossing.inside):
        assert sender.process.snapshot.pids is not None
        assert told(sender, crossing.monitor)[ItemType.PIDS] == pack("=3Q", *sender.process.snapshot.pids)


def test_what_outside_withholds_is_withheld_from_inside_by_either_formula(crossing: Crossing) -> None:
    crossing.root.attach_send = int(AttachFlag.CREDS | AttachFlag.PIDS | AttachFlag.AUXGROUPS)
    known = [ItemType.CREDS, ItemType.PIDS, ItemType.AUXGROUPS]
    items = types(message_items(crossing.root, crossing.inside, STAMP))
    assert [type for type in items if type is not ItemType.TIMESTAMP] == known
