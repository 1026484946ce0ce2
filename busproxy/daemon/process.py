"""What makes a program a daemon: fork, pid file, user, descriptors."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource

WANTED_FDS = 65536


def fork_into_background(*, keep_umask: bool) -> int:
    """Go on in a child without a terminal; the parent waits until the child is ready.

    Returns a descriptor; the child closes it (or ends) to let the parent go.
    The parent's status is 0 if one byte came before that, 1 otherwise.
    """
    receive, send = os.pipe()
    if os.fork():
        os.close(send)
        ready = os.read(receive, 1)
        os._exit(0 if ready else 1)
    os.close(receive)
    os.setsid()
    os.chdir("/")
    if not keep_umask:
        os.umask(0o022)
    return send


def say_ready(fd: int) -> None:
    """Let the waiting parent end with success, and let go of what is left of the terminal.

    Not before: address and pid may have to be written there.
    """
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    with contextlib.suppress(OSError):
        os.write(fd, b"\n")
    os.close(fd)


class PidFile:
    """A file with the daemon's pid; it must not be there before."""

    def __init__(self, path: str) -> None:
        self.path = path
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "w") as file:
            file.write(f"{os.getpid()}\n")

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def write_line(fd: int, text: str) -> None:
    """Write one line to a descriptor given on the command line, and close it unless it is a standard one."""
    os.write(fd, text.encode() + b"\n")
    if fd > 2:
        os.close(fd)


def raise_fd_limit() -> tuple[int, int]:
    """Allow as many descriptors as the system lets us; returns the limits (soft, hard) there were."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FDS if hard == resource.RLIM_INFINITY else min(WANTED_FDS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return soft, hard


def become_user(name: str) -> None:
    """Change to a user for good, with all of its groups.  Raises KeyError for an unknown one, OSError."""
    entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    os.initgroups(entry.pw_name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def user_name(uid: int) -> str:
    """The name of a user; raises KeyError for an unknown one."""
    return pwd.getpwuid(uid).pw_name


def machine_id() -> str:
    """The id of this machine; raises OSError where it has none."""
    problem: OSError | None = None
    for path in ("/var/lib/dbus/machine-id", "/etc/machine-id"):
        try:
            with open(path, encoding="ascii") as file:
                return file.read().strip()
        except OSError as error:
            problem = error
    assert problem is not None
    raise problem
