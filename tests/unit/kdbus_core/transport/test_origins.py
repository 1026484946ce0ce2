"""Who sends a packet: the opener as it is now, another process that has the handle, or nobody knows."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from support.children import Child, Meeting, needs_root, open_fds, receive_ucred

from kdbus_core.metadata import INITIAL_USER_NAMESPACE, Creds, Origin, Process, Snapshot, UserNamespace
from kdbus_core.transport.facts import Facts, ProcessReader
from kdbus_core.transport.processes import UCRED, make_origin, read_process

OTHER = 12345


class CountingReader(ProcessReader):
    """Counts how often somebody is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def read(self, pid: int, pidfd: int) -> Facts | None:
        self.count += 1
        return super().read(pid, pidfd)


@dataclass
class Conversation:
    """A child that has connected, and what is known of it since."""

    child: Child
    sock: socket.socket
    reader: CountingReader
    opener: Process

    def origin_of_next(self) -> Process | None:
        return self.origin(receive_ucred(self.sock))

    def origin(self, ucred: bytes | tuple[int, int, int] | None) -> Process | None:
        return self.make_origin(ucred)()

    def make_origin(self, ucred: bytes | tuple[int, int, int] | None) -> Origin:
        return make_origin(self.opener, self.opener.credentials.pidfd, ucred, self.reader)

    def send(self) -> None:
        self.child.run("sock.send(b'x')")


@pytest.fixture
def conversation() -> Iterator[Conversation]:
    before = open_fds()
    with Meeting() as meeting, Child() as child:
        sock = meeting.meet(child)
        reader = CountingReader()
        opener = read_process(sock, reader)
        yield Conversation(child, sock, reader, opener)
        assert opener.credentials.pidfd is not None
        os.close(opener.credentials.pidfd)
    assert open_fds() == before


def assert_unknown(process: Process | None) -> None:
    assert process is not None
    assert process.snapshot == Snapshot()
    assert (process.user_namespace, process.pid_namespace, process.root) == (None, None, None)
    assert not process.privileged
    assert process.credentials.uid is None


# The opener


def test_an_opener_that_has_not_changed_is_the_opener(conversation: Conversation) -> None:
    conversation.send()
    assert conversation.origin_of_next() is conversation.opener


def test_a_packet_says_who_sends_it_in_the_kernel_s_words(conversation: Conversation) -> None:
    conversation.send()
    ucred = receive_ucred(conversation.sock)
    assert UCRED.unpack(ucred) == (conversation.child.pid, os.getuid(), os.getgid())


def test_what_has_changed_of_the_opener_is_told_as_it_is_now(conversation: Conversation) -> None:
    conversation.child.run('write("/proc/self/comm", "renamed")')
    conversation.send()
    origin = conversation.origin_of_next()
    assert origin is not None
    assert origin.snapshot.pid_comm == b"renamed"
    assert conversation.opener.snapshot.pid_comm != b"renamed"
    assert origin.snapshot.creds == conversation.opener.snapshot.creds


@needs_root
def test_an_opener_that_has_given_up_its_ids_is_told_with_its_new_ones(conversation: Conversation) -> None:
    conversation.child.become(OTHER, OTHER)
    conversation.send()
    origin = conversation.origin_of_next()
    assert origin is not None
    assert origin.snapshot.creds == Creds(*[OTHER] * 8)
    assert origin.credentials.uid == OTHER
    assert conversation.opener.credentials.uid == 0
    assert not origin.privileged


@needs_root
def test_ids_given_up_after_sending_make_a_sender_unknown(conversation: Conversation) -> None:
    conversation.send()
    conversation.child.become(OTHER, OTHER)
    assert_unknown(conversation.origin_of_next())


def test_an_opener_that_has_ended_since_is_told_as_it_was(conversation: Conversation) -> None:
    conversation.send()
    conversation.child.kill()
    assert conversation.origin_of_next() is None


@needs_root
def test_an_opener_that_ended_with_other_ids_is_unknown(conversation: Conversation) -> None:
    conversation.child.become(OTHER, OTHER)
    conversation.send()
    conversation.child.kill()
    conversation.child.reap()
    assert_unknown(conversation.origin_of_next())


def test_an_opener_that_has_moved_into_another_namespace_is_described_from_there(
    conversation: Conversation,
) -> None:
    conversation.child.enter_user_namespace()
    conversation.send()
    origin = conversation.origin_of_next()
    assert origin is not None
    assert isinstance(origin.user_namespace, UserNamespace)
    assert origin.user_namespace is not INITIAL_USER_NAMESPACE
    assert origin.user_namespace.from_initial_uid(os.geteuid()) == 0


# Somebody else


def test_a_fork_that_sends_on_its_parent_s_handle_is_described_itself(conversation: Conversation) -> None:
    child = conversation.child
    child.run('renamed = lambda: write("/proc/self/comm", "fork")')
    child.run("forked = fork_and_wait(renamed, lambda: sock.send(b'x'))")
    origin = conversation.origin_of_next()
    assert origin is not None
    assert origin.snapshot.pids == (child.ask("forked"), child.ask("forked"), child.pid)
    assert origin.snapshot.pid_comm == b"fork"


@needs_root
def test_a_fork_with_other_ids_is_told_with_these(conversation: Conversation) -> None:
    conversation.child.run(
        f"fork_and_wait(lambda: os.setresgid(0, {OTHER}, 7), lambda: os.setresuid(0, {OTHER}, 7),"
        " lambda: sock.send(b'x'))"
    )
    origin = conversation.origin_of_next()
    assert origin is not None
    assert origin.snapshot.creds == Creds(0, OTHER, 7, OTHER, 0, OTHER, 7, OTHER)


def test_a_fork_that_has_ended_is_unknown_and_not_its_parent(conversation: Conversation) -> None:
    child = conversation.child
    child.run("forked = fork_and_wait(lambda: sock.send(b'x'), lambda: os._exit(0))")
    child.run("os.waitpid(forked, 0)")
    assert_unknown(conversation.origin_of_next())


def test_a_fork_that_has_ended_and_is_not_reaped_is_unknown(conversation: Conversation) -> None:
    child = conversation.child
    child.run("forked = fork_and_wait(lambda: sock.send(b'x'), lambda: os._exit(0))")
    child.run("os.waitid(os.P_PID, forked, os.WEXITED | os.WNOWAIT)")
    assert_unknown(conversation.origin_of_next())


@needs_root
def test_a_child_whose_parent_ended_sends_as_itself(conversation: Conversation) -> None:
    child = conversation.child
    # The fork waits for a pipe that the test keeps open, so it lives on without its parent.
    read_end, write_end = os.pipe()
    try:
        child.run(f"gate = os.open('/proc/{os.getpid()}/fd/{read_end}', os.O_RDONLY)")
        child.run("forked = fork_and_wait(lambda: sock.send(b'x'), lambda: os.read(gate, 1))")
        pid = child.ask("forked")
        child.kill()
        child.reap()
        origin = conversation.origin_of_next()
        assert origin is not None
        assert origin.credentials.pid == pid
    finally:
        os.close(write_end)
        os.close(read_end)


# What cannot be verified


@pytest.mark.parametrize("ucred", [None, b"", (0, 65534, 65534), (-1, 0, 0)])
def test_whoever_the_kernel_does_not_name_is_unknown(
    conversation: Conversation, ucred: bytes | tuple[int, int, int] | None
) -> None:
    assert_unknown(conversation.origin(ucred))


def test_a_process_that_does_not_have_the_ids_on_the_packet_is_unknown(conversation: Conversation) -> None:
    pid = conversation.child.pid
    assert_unknown(conversation.origin((pid, os.getuid() + 1, os.getgid())))
    assert_unknown(conversation.origin((pid, os.getuid(), os.getgid() + 1)))


def test_without_a_pidfd_of_the_opener_it_is_looked_up_by_its_pid(conversation: Conversation) -> None:
    conversation.send()
    ucred = receive_ucred(conversation.sock)
    assert make_origin(conversation.opener, None, ucred, conversation.reader)() is conversation.opener


# When it is asked


def test_nobody_is_looked_at_before_somebody_asks_and_then_once(conversation: Conversation) -> None:
    conversation.send()
    ucred = receive_ucred(conversation.sock)
    before = conversation.reader.count
    origin = make_origin(
        conversation.opener, conversation.opener.credentials.pidfd, ucred, conversation.reader
    )
    assert conversation.reader.count == before
    first = origin()
    conversation.child.run('write("/proc/self/comm", "renamed")')
    assert origin() is first
    assert conversation.reader.count == before + 1


def test_an_answer_that_is_the_opener_as_it_was_is_kept(conversation: Conversation) -> None:
    conversation.send()
    ucred = receive_ucred(conversation.sock)
    conversation.child.kill()
    origin = make_origin(
        conversation.opener, conversation.opener.credentials.pidfd, ucred, conversation.reader
    )
    count = conversation.reader.count
    assert origin() is origin() is None
    assert conversation.reader.count == count + 1
