"""Processes that do as they are told, line by line, so that a test can look at them in every state.

A `Child` is a Python of its own that runs what it is given (`run`) and says what an expression is (`ask`).
Its modules are loaded before it becomes somebody else, because that somebody may not be able to read them.
`Meeting` is a socket that children connect to, whoever they are: its name lies in no directory.
"""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")

_PROGRAM = """
import ctypes, os, signal, socket, sys, threading, time, traceback
libc = ctypes.CDLL(None, use_errno=True)
def unshare(flags):
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def connect(name):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(name)
    return sock
def write(path, text):
    with open(path, "w") as file:
        file.write(text)
def fork_and_wait(*jobs):
    # Of the first process that comes of it, everybody else hears only that it has gone.
    here, there = os.pipe()
    pid = os.fork()
    if pid:
        os.close(here)
        KEPT.append(there)
        return pid
    try:
        os.close(there)
        os.close(0)
        for job in jobs:
            job()
        os.read(here, 1)
    finally:
        os._exit(0)
KEPT = []
scope = globals()
for line in sys.stdin:
    kind, source = line[0], eval(line[1:])
    try:
        answer = "=" + repr(eval(source, scope) if kind == "?" else exec(source, scope))
    except BaseException as error:
        code = error.errno if isinstance(error, OSError) else None
        answer = "!" + repr((code, traceback.format_exc()))
    print(answer, flush=True)
"""


class ChildError(AssertionError):
    """What a child was told to do has failed; `errno` where the system refused it."""

    def __init__(self, errno: int | None, text: str) -> None:
        super().__init__(text)
        self.errno = errno


class Child:
    """A process of one test; leaving the `with` block ends it, and all it has forked."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", _PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self.reap()

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, source: str) -> None:
        """Have it execute statements; ChildError when they raise."""
        self._tell("!", source)

    def ask(self, source: str) -> Any:
        """What an expression is, as far as a literal can say."""
        return self._tell("?", source)

    def _tell(self, kind: str, source: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{kind}{source!r}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the child has ended"
        value = ast.literal_eval(answer[1:])
        if answer[0] == "!":
            raise ChildError(*value)
        return value

    def kill(self) -> None:
        """End it, and wait until it has ended, but leave it to be reaped."""
        if self.process.returncode is None:
            # Not by way of `process`, which would reap it when it has ended already.
            os.kill(self.pid, signal.SIGKILL)
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def reap(self) -> None:
        """Let its pid go."""
        self.process.wait(timeout=60)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and not stream.closed:
                stream.close()

    def become(self, uid: int, gid: int, groups: tuple[int, ...] = ()) -> None:
        """Be somebody else altogether; only root can."""
        self.run(f"os.setgroups({list(groups)}); os.setresgid({gid}, {gid}, {gid})")
        self.run(f"os.setresuid({uid}, {uid}, {uid})")

    def enter_user_namespace(self, uid_map: str = "", gid_map: str = "") -> None:
        """Be in a user namespace of its own, as root if no maps are given; skips where none may be made."""
        uid, gid = self.ask("os.geteuid()"), self.ask("os.getegid()")
        self.unshare(CLONE_NEWUSER)
        self.run('write("/proc/self/setgroups", "deny")')
        write_map(self, "gid_map", gid_map or f"0 {gid} 1")
        write_map(self, "uid_map", uid_map or f"0 {uid} 1")

    def unshare(self, flags: int) -> None:
        """Leave namespaces; skips where that is not permitted."""
        try:
            self.run(f"unshare({flags})")
        except ChildError as error:
            if error.errno is None:
                raise
            pytest.skip(f"no namespaces of one's own here: {os.strerror(error.errno)}")


def write_map(child: Child, name: str, text: str) -> None:
    """Write a map of the child's user namespace: root from here, others from within."""
    if os.geteuid() == 0:
        Path(f"/proc/{child.pid}/{name}").write_text(text)
    else:
        child.run(f'write("/proc/self/{name}", {text!r})')


class Meeting:
    """A listening socket; `meet` has a child connect to it."""

    def __init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._listener.bind("")  # the kernel finds a name
        self._listener.listen(16)
        self._listener.settimeout(60)
        self.name: bytes = self._listener.getsockname()
        self._accepted: list[socket.socket] = []

    def __enter__(self) -> Meeting:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for sock in self._accepted:
            sock.close()

    def meet(self, child: Child) -> socket.socket:
        """Have it connect; in there the socket is `sock`."""
        child.run(f"sock = connect({self.name!r})")
        return self.accept()

    def accept(self) -> socket.socket:
        """The next one that has connected."""
        sock, _ = self._listener.accept()
        sock.settimeout(60)
        self._accepted.append(sock)
        return sock


def receive_ucred(sock: socket.socket) -> bytes:
    """The credentials that the kernel has written on the next packet."""
    _, ancillary, _, _ = sock.recvmsg(64, socket.CMSG_SPACE(12))
    [(_, kind, data)] = ancillary
    assert kind == socket.SCM_CREDENTIALS
    return data


def open_fds() -> set[int]:
    """The descriptors of this process."""
    here = {int(name) for name in os.listdir("/proc/self/fd")}
    return {fd for fd in here if os.path.lexists(f"/proc/self/fd/{fd}")}
