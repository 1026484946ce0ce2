"""Which metadata goes along with a message: by consent, and by the final kernel's formula."""

from __future__ import annotations

import pytest
from metadata_world import ALICE, KNOWN, Town, a_process

from kdbus_core.abi import ATTACH_ALL, AttachFlag, MakeFlag
from kdbus_core.metadata import Pids, Process, Snapshot, attach_mask
from kdbus_core.namespaces import INITIAL_PID_NAMESPACE, PidNamespace

IMPLICIT = int(
    AttachFlag.CONN_DESCRIPTION
    | AttachFlag.TIMESTAMP
    | AttachFlag.NAMES
    | AttachFlag.AUXGROUPS
    | AttachFlag.CREDS
    | AttachFlag.PIDS
)
FROM_PROC = int(
    AttachFlag.TID_COMM
    | AttachFlag.PID_COMM
    | AttachFlag.SECLABEL
    | AttachFlag.CMDLINE
    | AttachFlag.CGROUP
    | AttachFlag.AUDIT
    | AttachFlag.CAPS
    | AttachFlag.EXE
)
READER_GID = 2002
OTHER_PID = Snapshot(creds=KNOWN.creds, pids=Pids(777, 777, 1))
"""Of another process with the same ids."""

OPEN = PidNamespace(INITIAL_PID_NAMESPACE)
HIDDEN = PidNamespace(INITIAL_PID_NAMESPACE, hide_pid=1)
HIDDEN_BUT_FOR_US = PidNamespace(INITIAL_PID_NAMESPACE, hide_pid=2, pid_gid=READER_GID)


def mask(
    *,
    flags: MakeFlag,
    send: int = ATTACH_ALL,
    recv: int = ATTACH_ALL,
    sender: Process = ALICE,
    receiver: Process = ALICE,
) -> int:
    town = Town(flags=flags)
    return attach_mask(town.connect(sender, attach_send=send), town.connect(receiver, attach_recv=recv))


def final_mask(**what: int | Process) -> int:
    return mask(flags=MakeFlag.FINAL_METADATA, **what)  # type: ignore[arg-type]  # as `mask` has them


def visible_in(namespace: PidNamespace | None) -> Process:
    """A process that is pid 1 in there."""
    seen = {} if namespace is None else {namespace: Pids(1, 1, 0)}
    return a_process(pid_namespace=namespace, pids_in=seen)


def living_in(namespace: PidNamespace | None) -> Process:
    """Another process in there: pid 2."""
    seen = {} if namespace is None else {namespace: Pids(2, 2, 1)}
    return a_process(snapshot=OTHER_PID, pid_namespace=namespace, pids_in=seen)


def test_the_formulas_cover_every_kind() -> None:
    assert IMPLICIT | FROM_PROC == ATTACH_ALL
    assert IMPLICIT & FROM_PROC == 0


@pytest.mark.parametrize("access", [MakeFlag(0), MakeFlag.ACCESS_GROUP | MakeFlag.ACCESS_WORLD])
@pytest.mark.parametrize(
    ("send", "recv", "expected"),
    [
        (ATTACH_ALL, ATTACH_ALL, ATTACH_ALL),
        (0, ATTACH_ALL, 0),
        (ATTACH_ALL, 0, 0),
        (AttachFlag.CREDS | AttachFlag.EXE, AttachFlag.EXE | AttachFlag.TIMESTAMP, AttachFlag.EXE),
        (IMPLICIT, FROM_PROC, 0),
    ],
)
def test_by_consent_what_both_want_goes_along(access: MakeFlag, send: int, recv: int, expected: int) -> None:
    assert mask(flags=access, send=send, recv=recv) == expected


def test_by_the_final_formula_the_sender_cannot_withhold_who_it_is() -> None:
    hidden = a_process(pid_namespace=OPEN)
    assert final_mask(send=0, receiver=hidden) == IMPLICIT
    assert final_mask(send=0, receiver=hidden, recv=AttachFlag.CREDS | AttachFlag.EXE) == AttachFlag.CREDS
    assert final_mask(send=AttachFlag.EXE, receiver=hidden) == IMPLICIT | AttachFlag.EXE


def test_by_the_final_formula_nothing_goes_along_that_is_not_asked_for() -> None:
    assert final_mask(recv=0) == 0
    assert final_mask(send=0, recv=AttachFlag.EXE) == AttachFlag.EXE


@pytest.mark.parametrize(
    ("sender", "receiver", "readable"),
    [
        pytest.param(ALICE, ALICE, True, id="itself"),
        pytest.param(ALICE, living_in(INITIAL_PID_NAMESPACE), True, id="both in the initial namespace"),
        pytest.param(visible_in(OPEN), living_in(OPEN), True, id="both in another one"),
        pytest.param(visible_in(OPEN), living_in(INITIAL_PID_NAMESPACE), True, id="from outside"),
        pytest.param(ALICE, living_in(OPEN), False, id="invisible from inside"),
        pytest.param(visible_in(OPEN), living_in(PidNamespace()), False, id="beside"),
        pytest.param(visible_in(HIDDEN), living_in(HIDDEN), False, id="hidden from others"),
        pytest.param(visible_in(HIDDEN), visible_in(HIDDEN), True, id="hidden, but the same pid"),
        pytest.param(visible_in(HIDDEN_BUT_FOR_US), living_in(HIDDEN_BUT_FOR_US), True, id="of the group"),
        pytest.param(
            visible_in(HIDDEN_BUT_FOR_US),
            a_process(snapshot=Snapshot(pids=Pids(5)), pid_namespace=HIDDEN_BUT_FOR_US),
            False,
            id="of no known group",
        ),
        pytest.param(ALICE, living_in(HIDDEN_BUT_FOR_US), False, id="of the group, but invisible"),
        pytest.param(ALICE, living_in(None), False, id="unknown namespace"),
        pytest.param(
            Process(Snapshot()), living_in(INITIAL_PID_NAMESPACE), False, id="pid of the sender is unknown"
        ),
        pytest.param(
            Process(Snapshot()), Process(Snapshot()), False, id="both pids are unknown, which is not the same"
        ),
        pytest.param(
            ALICE, Process(Snapshot()), True, id="pid of the reader is unknown, but nothing is hidden"
        ),
    ],
)
def test_by_the_final_formula_what_the_receiver_could_read_in_proc_goes_along(
    sender: Process, receiver: Process, *, readable: bool
) -> None:
    expected = ATTACH_ALL if readable else IMPLICIT
    assert final_mask(send=0, sender=sender, receiver=receiver) == expected
    assert mask(flags=MakeFlag(0), send=0, sender=sender, receiver=receiver) == 0


def test_a_process_in_an_unknown_namespace_reads_itself() -> None:
    process = visible_in(None)
    assert final_mask(send=0, sender=process, receiver=process) == ATTACH_ALL


def test_it_is_the_bus_of_the_receiver_that_has_the_formula() -> None:
    sender = Town().connect(attach_send=0)
    receiver = Town(flags=MakeFlag.FINAL_METADATA | MakeFlag.ACCESS_WORLD).connect()
    assert attach_mask(sender, receiver) == ATTACH_ALL
