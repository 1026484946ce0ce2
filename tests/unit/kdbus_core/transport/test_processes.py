"""Who is behind a socket, shown with real processes: what is told, and what is left unset."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from support.children import Child, Meeting, needs_root, open_fds

from kdbus_core.abi import UNSET_ID
from kdbus_core.metadata import INITIAL_PID_NAMESPACE, INITIAL_USER_NAMESPACE, Creds, Pids, Process
from kdbus_core.transport import processes as processes_module
from kdbus_core.transport.facts import CAP_IPC_OWNER, ProcessReader
from kdbus_core.transport.patience import Patience
from kdbus_core.transport.processes import PeerUnknown, read_process

T = TypeVar("T")

OTHER = 12345
MANY_GROUPS = tuple(range(2000, 2400))


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    before = open_fds()
    with Meeting() as meeting:
        yield meeting
    assert open_fds() == before


@pytest.fixture
def child(meeting: Meeting) -> Iterator[Child]:
    with Child("an argument", "") as child:
        yield child


def read(sock: socket.socket, reader: ProcessReader | None = None) -> Process:
    """Who is behind it, as far as that needs no open pidfd."""
    process = read_process(sock, reader)
    if process.credentials.pidfd is not None:
        os.close(process.credentials.pidfd)
    return process


def proc(child: Child, name: str) -> bytes:
    return Path(f"/proc/{child.pid}/{name}").read_bytes()


def assert_only_the_socket_s(process: Process, *, uid: int, gid: int, pid: int) -> None:
    """Nothing is known of it that would have come from /proc."""
    snapshot = process.snapshot
    assert snapshot.creds == Creds(euid=uid, egid=gid)
    assert snapshot.pids == Pids(pid)
    assert (process.credentials.uid, process.credentials.gid, process.credentials.pid) == (uid, gid, pid)
    from_proc = (snapshot.tid_comm, snapshot.pid_comm, snapshot.exe, snapshot.cmdline, snapshot.cgroup)
    assert from_proc == (None,) * 5
    assert (snapshot.caps, snapshot.audit) == (None, None)
    assert (process.user_namespace, process.pid_namespace, process.root) == (None, None, None)
    assert not process.privileged


# What is told


def test_ids_and_pids_are_those_of_the_process(meeting: Meeting, child: Child) -> None:
    process = read(meeting.meet(child))
    (ruid, euid, suid), (rgid, egid, sgid) = child.ask("os.getresuid()"), child.ask("os.getresgid()")
    assert process.snapshot.creds == Creds(ruid, euid, suid, euid, rgid, egid, sgid, egid)
    assert process.snapshot.pids == Pids(child.pid, child.pid, os.getpid())
    assert process.snapshot.auxgroups == tuple(sorted(child.ask("os.getgroups()")))


def test_what_proc_says_is_told_as_it_stands_there(meeting: Meeting, child: Child) -> None:
    child.run('write("/proc/self/comm", "renamed\\nhere")')
    snapshot = read(meeting.meet(child)).snapshot
    assert snapshot.pid_comm == snapshot.tid_comm == b"renamed\nhere"
    assert snapshot.exe == os.readlink(f"/proc/{child.pid}/exe").encode()
    assert snapshot.cmdline == proc(child, "cmdline")[:-1][:4096]
    assert snapshot.cgroup is not None
    assert snapshot.cgroup in [line.split(b":", 2)[2] for line in proc(child, "cgroup").splitlines()]


def test_capabilities_are_told_with_the_last_one_there_is(meeting: Meeting, child: Child) -> None:
    caps = read(meeting.meet(child)).snapshot.caps
    status = dict(line.split(":\t", 1) for line in proc(child, "status").decode().splitlines())
    assert caps is not None
    assert caps.last_cap == int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert [f"{number:016x}" for number in caps[1:]] == [
        status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd")
    ]


def test_the_audit_session_is_told_where_there_is_one(meeting: Meeting, child: Child) -> None:
    if not Path("/proc/self/loginuid").exists():
        pytest.skip("the kernel does not audit")
    audit = read(meeting.meet(child)).snapshot.audit
    assert audit == (int(proc(child, "sessionid")), int(proc(child, "loginuid")))


def test_a_process_of_ours_lives_in_the_initial_namespaces_and_our_root(
    meeting: Meeting, child: Child
) -> None:
    process = read(meeting.meet(child))
    assert process.user_namespace is INITIAL_USER_NAMESPACE
    assert process.pid_namespace is INITIAL_PID_NAMESPACE
    assert process.pids_in == {}
    root = os.stat("/")
    assert process.root == (root.st_dev, root.st_ino)


def test_the_pidfd_is_the_process_and_belongs_to_the_caller(meeting: Meeting, child: Child) -> None:
    pidfd = read_process(meeting.meet(child)).credentials.pidfd
    assert pidfd is not None
    assert not os.get_inheritable(pidfd)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    assert poller.poll(60_000)
    child.reap()
    assert child.process.returncode == -signal.SIGKILL
    os.close(pidfd)


def test_a_pair_of_sockets_is_its_maker_s() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        assert read(one).credentials.pid == os.getpid()


def test_the_same_is_told_twice(meeting: Meeting, child: Child) -> None:
    assert read(meeting.meet(child)).snapshot == read(meeting.meet(child)).snapshot


# Threads


def test_of_several_threads_nobody_knows_which_it_was(meeting: Meeting, child: Child) -> None:
    child.run("threading.Thread(target=signal.pause, daemon=True).start()")
    snapshot = read(meeting.meet(child)).snapshot
    assert snapshot.pids == Pids(child.pid, 0, os.getpid())
    assert snapshot.tid_comm is None
    assert snapshot.pid_comm is not None


# Other users


@needs_root
def test_each_id_is_told_as_what_it_is(meeting: Meeting, child: Child) -> None:
    child.run("os.setresgid(11, 12, 13); os.setresuid(21, 22, 23)")
    child.run("libc.setfsuid(21); libc.setfsgid(11)")
    process = read(meeting.meet(child))
    assert process.snapshot.creds == Creds(21, 22, 23, 21, 11, 12, 13, 11)
    assert (process.credentials.uid, process.credentials.gid) == (22, 12)
    assert process.real_uid == 21


@needs_root
@pytest.mark.parametrize("groups", [(), (7, 8, 9), MANY_GROUPS], ids=["none", "some", "many"])
def test_groups_are_told_however_many(meeting: Meeting, child: Child, groups: tuple[int, ...]) -> None:
    child.become(OTHER, OTHER, groups)
    process = read(meeting.meet(child))
    assert process.snapshot.auxgroups == groups
    assert process.credentials.groups == groups


@needs_root
def test_root_is_privileged_and_others_are_not(meeting: Meeting, child: Child) -> None:
    if not read(meeting.meet(child)).snapshot.caps[3] >> CAP_IPC_OWNER & 1:  # type: ignore[index]
        pytest.skip("root lacks CAP_IPC_OWNER here")
    assert read(meeting.meet(child)).privileged
    child.become(OTHER, OTHER)
    assert not read(meeting.meet(child)).privileged


@needs_root
def test_another_root_directory_is_another(meeting: Meeting, child: Child, tmp_path: Path) -> None:
    child.run(f"os.chroot({str(tmp_path)!r})")
    process = read(meeting.meet(child))
    root = tmp_path.stat()
    assert process.root == (root.st_dev, root.st_ino)


# What is left unset


@pytest.mark.parametrize("is_reaped", [False, True], ids=["not reaped", "reaped"])
def test_of_a_process_that_has_ended_only_the_socket_tells(
    meeting: Meeting, child: Child, is_reaped: bool
) -> None:
    sock = meeting.meet(child)
    child.kill()
    if is_reaped:
        child.reap()
    assert_only_the_socket_s(read(sock), uid=os.geteuid(), gid=os.getegid(), pid=child.pid)


@needs_root
def test_of_a_process_that_has_become_another_user_only_the_socket_tells(
    meeting: Meeting, child: Child
) -> None:
    sock = meeting.meet(child)
    child.run(f"os.setresuid({OTHER}, {OTHER}, {OTHER})")
    assert_only_the_socket_s(read(sock), uid=0, gid=0, pid=child.pid)


@needs_root
def test_of_a_process_that_has_become_root_only_the_socket_tells(meeting: Meeting, child: Child) -> None:
    child.run(f"os.setresuid({OTHER}, {OTHER}, 0)")
    sock = meeting.meet(child)
    child.run("os.setresuid(0, 0, 0)")
    assert_only_the_socket_s(read(sock), uid=OTHER, gid=0, pid=child.pid)


def test_a_peer_without_credentials_is_unknown() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(PeerUnknown):
        read_process(sock)


def test_a_socket_that_nobody_has_connected_is_unknown() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, pytest.raises(PeerUnknown):
        read_process(sock)


def test_without_our_own_proc_only_the_socket_tells(
    meeting: Meeting, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdbus_core.transport.facts.shows_own_pids", lambda: False)
    process = read(meeting.meet(child))
    assert_only_the_socket_s(process, uid=os.geteuid(), gid=os.getegid(), pid=child.pid)


class NoPatience(Patience):
    """Waits for nobody; `asked` says about whom it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Hashable] = []

    def ask(self, read: Callable[[], T], of: Hashable) -> T | None:
        self.asked.append(of)
        return None


def test_a_process_that_can_hold_up_a_reader_is_not_waited_for(meeting: Meeting, child: Child) -> None:
    child.enter_user_namespace()
    patience = NoPatience()
    process = read(meeting.meet(child), ProcessReader(patience=patience))
    assert patience.asked == [os.getuid()]
    assert process.snapshot.cmdline is process.root is None
    assert process.snapshot.exe is not None
    assert process.credentials.pid == child.pid


@needs_root
def test_another_user_s_process_is_not_waited_for(meeting: Meeting, child: Child) -> None:
    child.run(f"os.setresuid({OTHER}, 0, 0)")
    patience = NoPatience()
    assert read(meeting.meet(child), ProcessReader(patience=patience)).snapshot.cmdline is None
    assert patience.asked == [OTHER]


def test_whoever_could_kill_the_broker_is_waited_for(meeting: Meeting, child: Child) -> None:
    patience = NoPatience()
    process = read(meeting.meet(child), ProcessReader(patience=patience))
    assert process.snapshot.cmdline is not None
    assert process.root is not None
    assert patience.asked == []


@needs_root
def test_another_user_s_process_is_read_by_a_thread(meeting: Meeting, child: Child) -> None:
    child.become(OTHER, OTHER)
    snapshot = read(meeting.meet(child)).snapshot
    assert snapshot.cmdline == proc(child, "cmdline")[:-1][:4096]


# Kernels that do not tell everything


@pytest.fixture
def _older_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without SO_PEERPIDFD: there is no such option."""
    monkeypatch.setattr(processes_module, "SO_PEERPIDFD", 0x7FFF)


@pytest.mark.usefixtures("_older_kernel")
def test_an_older_kernel_tells_the_same(meeting: Meeting, child: Child) -> None:
    process = read(meeting.meet(child))
    assert process.snapshot.exe == os.readlink(f"/proc/{child.pid}/exe").encode()
    assert process.user_namespace is INITIAL_USER_NAMESPACE
    assert process.credentials.pidfd is not None


@pytest.mark.usefixtures("_older_kernel")
@pytest.mark.parametrize("is_reaped", [False, True], ids=["not reaped", "reaped"])
def test_an_older_kernel_vouches_for_nobody_who_has_ended(
    meeting: Meeting, child: Child, is_reaped: bool
) -> None:
    sock = meeting.meet(child)
    child.kill()
    if is_reaped:
        child.reap()
    process = read_process(sock)
    assert process.credentials.pidfd is None
    assert_only_the_socket_s(process, uid=os.geteuid(), gid=os.getegid(), pid=child.pid)


@needs_root
@pytest.mark.usefixtures("_older_kernel")
@pytest.mark.parametrize(
    "change", ["os.setresuid(7, 7, 7)", "os.setresgid(7, 7, 7)", "os.setgroups([7, 8, 9])"]
)
def test_an_older_kernel_vouches_for_nobody_who_has_changed(
    meeting: Meeting, child: Child, change: str
) -> None:
    sock = meeting.meet(child)
    child.run(change)
    process = read_process(sock)
    assert process.credentials.pidfd is None
    assert_only_the_socket_s(process, uid=0, gid=0, pid=child.pid)


@pytest.mark.usefixtures("_older_kernel")
def test_where_there_are_no_pidfds_nothing_counts(
    meeting: Meeting, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes_module, "open_pidfd", lambda _: None)
    process = read(meeting.meet(child))
    assert_only_the_socket_s(process, uid=os.geteuid(), gid=os.getegid(), pid=child.pid)


@pytest.mark.parametrize("option", ["SO_PEERGROUPS", "SO_PEERSEC"])
def test_an_option_the_kernel_lacks_is_made_up_for_by_proc(
    meeting: Meeting, child: Child, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(processes_module, option, 0x7FFF)
    snapshot = read(meeting.meet(child)).snapshot
    assert snapshot.auxgroups == tuple(sorted(child.ask("os.getgroups()")))
    assert snapshot.creds is not None
    assert snapshot.creds.uid != UNSET_ID
