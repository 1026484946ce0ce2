"""Namespaces of real processes: what ids and pids are in there, and one object for each."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import ExitStack
from errno import EACCES

import pytest
from support.children import CLONE_NEWPID, CLONE_NEWUSER, Child, Meeting, needs_root, open_fds, write_map

from kdbus_core.metadata import (
    INITIAL_PID_NAMESPACE,
    INITIAL_USER_NAMESPACE,
    Creds,
    Extent,
    Pids,
    Process,
    UserNamespace,
)
from kdbus_core.transport.facts import ProcessReader
from kdbus_core.transport.namespace_finder import NamespaceFinder
from kdbus_core.transport.proc import ProcessDirectory
from kdbus_core.transport.processes import read_process


class Place:
    """Where processes are looked at; closing it shows that nothing of their namespaces is kept."""

    def __init__(self, owned: ExitStack) -> None:
        self.meeting = owned.enter_context(Meeting())
        self.finder = NamespaceFinder()
        self.reader = ProcessReader(self.finder)
        self._owned = owned

    def launch(self) -> Child:
        return self._owned.enter_context(Child())

    def meet(self, child: Child) -> Process:
        child.run(f"sock = connect({self.meeting.name!r})")
        return self.accept()

    def accept(self) -> Process:
        process = read_process(self.meeting.accept(), self.reader)
        assert process.credentials.pidfd is not None
        os.close(process.credentials.pidfd)
        return process

    def meet_fork(self, child: Child) -> Process:
        """Have the child fork a process that connects."""
        child.run(f"forked = fork_and_wait(lambda: KEPT.append(connect({self.meeting.name!r})))")
        return self.accept()


@pytest.fixture
def place() -> Iterator[Place]:
    before = open_fds()
    with ExitStack() as owned:
        place = Place(owned)
        yield place
    gc.collect()
    assert len(place.finder) == 0
    assert open_fds() == before


def user_namespace(process: Process) -> UserNamespace:
    namespace = process.user_namespace
    assert namespace is not None
    assert namespace is not INITIAL_USER_NAMESPACE
    return namespace


# User namespaces


def test_root_in_a_namespace_of_its_own_is_who_it_is_outside(place: Place) -> None:
    child = place.launch()
    uid, gid = os.getuid(), os.getgid()
    child.enter_user_namespace()
    assert child.ask("os.getuid()") == 0
    process = place.meet(child)
    namespace = user_namespace(process)
    assert process.snapshot.creds == Creds(*[uid] * 4, *[gid] * 4)
    assert (process.credentials.uid, process.credentials.gid) == (uid, gid)
    assert namespace.to_initial_uid(0) == uid
    assert namespace.from_initial_gid(gid) == 0
    assert namespace.from_initial_uid(uid + 1) is None
    assert namespace.parent is INITIAL_USER_NAMESPACE
    assert namespace.owner == uid


def test_root_in_a_namespace_of_its_own_is_not_privileged(place: Place) -> None:
    child = place.launch()
    child.enter_user_namespace()
    process = place.meet(child)
    assert process.snapshot.caps is not None
    assert process.snapshot.caps.effective
    assert not process.privileged


@needs_root
def test_maps_of_several_extents_are_those_of_the_namespace(place: Place) -> None:
    child = place.launch()
    child.enter_user_namespace("0 100000 1000\n5000 0 1\n", "10 200000 5")
    child.run("os.setresuid(7, 7, 7)")
    process = place.meet(child)
    namespace = user_namespace(process)
    assert process.credentials.uid == 100007
    assert set(namespace.uid_map) == {Extent(0, 100000, 1000), Extent(5000, 0, 1)}
    assert namespace.gid_map == (Extent(10, 200000, 5),)
    assert namespace.from_initial_uid(0) == 5000


@needs_root
def test_an_id_that_the_namespace_gives_nobody_is_not_root(place: Place) -> None:
    child = place.launch()
    child.unshare(CLONE_NEWUSER)  # and no maps: in there it is the overflow id
    process = place.meet(child)
    assert process.credentials.uid == 0  # here it is what it was
    assert user_namespace(process).from_initial_uid(0) is None
    assert not process.privileged


def test_processes_of_one_namespace_share_one_object(place: Place) -> None:
    child = place.launch()
    child.enter_user_namespace()
    first, second, third = place.meet(child), place.meet(child), place.meet_fork(child)
    assert user_namespace(first) is second.user_namespace is third.user_namespace
    assert len(place.finder) == 1


def test_two_namespaces_with_the_same_maps_are_two(place: Place) -> None:
    processes = []
    for _ in range(2):
        child = place.launch()
        child.enter_user_namespace()
        processes.append(place.meet(child))
    assert user_namespace(processes[0]) is not user_namespace(processes[1])


def test_a_namespace_is_forgotten_with_the_last_who_uses_it(place: Place) -> None:
    child = place.launch()
    child.enter_user_namespace()
    fds = open_fds()
    process: Process | None = place.meet(child)
    other: Process | None = place.meet(child)
    process = None
    gc.collect()
    assert len(place.finder) == 1
    other = None
    gc.collect()
    assert len(place.finder) == 0
    assert len(open_fds() - fds) == 2  # the sockets
    assert process is other is None


@pytest.mark.parametrize("kind", ["user", "pid"])
def test_a_namespace_in_use_is_kept_so_that_no_other_gets_its_number(place: Place, kind: str) -> None:
    child = place.launch()
    if kind == "user":
        child.enter_user_namespace()
    else:
        make_first(child)
    process = place.meet_fork(child)
    link = os.readlink(f"/proc/{process.credentials.pid}/ns/{kind}")
    child.kill()
    child.reap()
    assert link in [os.readlink(f"/proc/self/fd/{fd}") for fd in open_fds()]


def test_maps_that_are_written_later_are_seen_later(place: Place) -> None:
    child = place.launch()
    uid, gid = child.ask("os.getuid()"), child.ask("os.getgid()")
    child.unshare(CLONE_NEWUSER)
    before = place.meet(child)
    child.run('write("/proc/self/setgroups", "deny")')
    write_map(child, "gid_map", f"0 {gid} 1")
    write_map(child, "uid_map", f"0 {uid} 1")
    after = place.meet(child)
    assert user_namespace(before).to_initial_uid(0) is None
    assert user_namespace(after).to_initial_uid(0) == uid
    assert place.meet(child).user_namespace is after.user_namespace


# User namespaces in user namespaces


def nest(child: Child) -> None:
    """Put the child's next fork into a namespace within that of the child."""
    child.run(
        "def enter():\n"
        f"    unshare({CLONE_NEWUSER})\n"
        '    write("/proc/self/uid_map", "3 0 1")\n'
        '    write("/proc/self/setgroups", "deny")\n'
        '    write("/proc/self/gid_map", "4 0 1")\n'
    )


def test_a_namespace_in_another_has_that_for_its_parent(place: Place) -> None:
    child = place.launch()
    child.enter_user_namespace()
    nest(child)
    child.run(f"fork_and_wait(enter, lambda: KEPT.append(connect({place.meeting.name!r})))")
    inner = place.accept()
    outer = place.meet(child)
    assert user_namespace(inner).parent is user_namespace(outer)
    assert user_namespace(inner).is_descendant_of(user_namespace(outer))
    assert user_namespace(inner).uid_map == (Extent(3, 0, 1),)
    assert user_namespace(inner).to_initial_uid(3) == os.getuid()
    assert user_namespace(inner).from_initial_gid(os.getgid()) == 4


def test_a_namespace_around_it_that_nobody_lives_in_is_left_out(place: Place) -> None:
    child = place.launch()
    child.enter_user_namespace()
    nest(child)
    child.run("enter()")
    process = place.meet(child)
    assert user_namespace(process).parent is INITIAL_USER_NAMESPACE
    assert user_namespace(process).to_initial_uid(3) == os.getuid()
    assert user_namespace(process).to_initial_gid(4) == os.getgid()


def test_a_namespace_around_it_is_known_from_others_who_live_there(place: Place) -> None:
    child = place.launch()
    child.enter_user_namespace()
    outer = place.meet(child)
    nest(child)
    child.run("enter()")
    inner = place.meet(child)
    assert user_namespace(inner).parent is user_namespace(outer)


# Pid namespaces


def make_first(child: Child) -> None:
    """Let the child's next fork be the first process of a pid namespace."""
    if os.geteuid() != 0:
        child.enter_user_namespace()
    child.unshare(CLONE_NEWPID)


def test_a_process_has_a_pid_in_each_namespace_it_is_in(place: Place) -> None:
    child = place.launch()
    make_first(child)
    process = place.meet_fork(child)
    namespace = process.pid_namespace
    assert namespace is not None
    assert namespace.parent is INITIAL_PID_NAMESPACE
    assert process.credentials.pid == child.ask("forked")
    pid = child.ask("forked")
    assert process.snapshot.pids == Pids(pid, pid, child.pid)
    assert process.pids_in == {namespace: Pids(1, 1, 0)}
    assert process.pids_seen_in(namespace) == Pids(1, 1, 0)


def test_a_parent_is_seen_where_it_is(place: Place) -> None:
    child = place.launch()
    make_first(child)
    meet = f"lambda: KEPT.append(connect({place.meeting.name!r}))"
    child.run(f"fork_and_wait({meet}, lambda: fork_and_wait({meet}))")
    first, second = place.accept(), place.accept()
    assert first.pid_namespace is second.pid_namespace
    assert first.pid_namespace is not None
    assert second.pids_seen_in(first.pid_namespace) == Pids(2, 2, 1)
    assert second.snapshot.pids is not None
    assert second.snapshot.pids.ppid == first.credentials.pid


def test_namespaces_in_each_other_each_have_their_pids(place: Place) -> None:
    child = place.launch()
    make_first(child)
    meet = f"lambda: KEPT.append(connect({place.meeting.name!r}))"
    child.run(f"fork_and_wait({meet}, lambda: unshare({CLONE_NEWPID}), lambda: fork_and_wait({meet}))")
    outer, inner = place.accept(), place.accept()
    assert outer.pid_namespace is not None
    assert inner.pid_namespace is not None
    assert inner.pid_namespace.parent is outer.pid_namespace
    assert inner.pids_seen_in(inner.pid_namespace) == Pids(1, 1, 0)
    assert inner.pids_seen_in(outer.pid_namespace) == Pids(2, 2, 1)
    assert outer.pids_seen_in(inner.pid_namespace) == Pids()


def test_a_process_of_ours_is_invisible_in_there(place: Place) -> None:
    child, ours = place.launch(), place.launch()
    make_first(child)
    namespace = place.meet_fork(child).pid_namespace
    assert namespace is not None
    assert place.meet(ours).pids_seen_in(namespace) == Pids()


# Processes that the broker may not trace


class Untraced(ProcessDirectory):
    """/proc/PID as an unprivileged broker has it for a process of somebody else."""

    def identity(self, name: str) -> tuple[int, int] | None:
        return None

    def open(self, name: str) -> int:
        if name.startswith("ns/"):
            raise PermissionError(EACCES, "not for us")
        return super().open(name)


def test_of_who_may_not_be_traced_the_ids_are_known_by_the_maps(place: Place) -> None:
    with Untraced(place.launch().pid) as directory:
        namespace = place.finder.user_namespace(directory)
        assert namespace is not None
        assert [namespace.from_initial_uid(uid) for uid in (0, os.getuid())] == [0, os.getuid()]
        assert namespace.from_initial_gid(os.getgid()) == os.getgid()
        assert place.finder.user_namespace(directory) is namespace
        del namespace


def test_of_who_may_not_be_traced_the_ids_of_its_own_namespace_are_known(place: Place) -> None:
    child = place.launch()
    uid, gid = os.getuid(), os.getgid()
    child.enter_user_namespace()
    with Untraced(child.pid) as directory:
        namespace = place.finder.user_namespace(directory)
    assert namespace is not None
    assert (namespace.from_initial_uid(uid), namespace.from_initial_gid(gid)) == (0, 0)
    assert namespace.from_initial_uid(uid + 1) is None
    assert namespace.to_initial_uid(0) == uid
    assert namespace.parent is None


def test_who_has_one_pid_lives_in_the_pid_namespace_of_proc(place: Place) -> None:
    with Untraced(place.launch().pid) as directory:
        assert place.finder.pid_namespace(directory) is INITIAL_PID_NAMESPACE


def test_who_has_several_pids_lives_in_a_pid_namespace_that_is_not_known(place: Place) -> None:
    child = place.launch()
    make_first(child)
    place.meet_fork(child)
    with Untraced(child.ask("forked")) as directory:
        assert place.finder.pid_namespace(directory) is None


def test_of_who_has_ended_nothing_is_known(place: Place) -> None:
    child = place.launch()
    with Untraced(child.pid) as directory:
        child.kill()
        child.reap()
        assert place.finder.user_namespace(directory) is None
        assert place.finder.pid_namespace(directory) is None
