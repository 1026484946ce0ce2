"""The program that becomes dbus-broker's launcher on a machine, or in a container, without systemd.

    python launch_broker.py LISTENER_FD JOURNAL_FD ADDRESS CONFIG_FILE

dbus-broker-launch(1) takes its listening socket from the environment (LISTEN_FDS, as systemd passes it),
wants a journal to log to, and opens a client connection to the bus named by DBUS_SESSION_BUS_ADDRESS, which
here is the very bus it is about to serve. LISTENER_FD is a listening socket; JOURNAL_FD is a datagram
socket not yet bound. Where the machine has no journal, this process moves into a mount namespace of its own
(and, where it may not, into a user namespace that lets it), where an empty file system holds nothing
but JOURNAL_FD, bound to the journal's path. The caller keeps a duplicate of that socket and reads the log
from it.

The process id stays the same through the exec, so that the caller's child is the launcher. On failure a
line on stderr says why and the status is 1. Only the standard library is used: the file is run by its path.
"""

import ctypes
import os
import socket
import sys
from pathlib import Path

LAUNCHER = "dbus-broker-launch"
JOURNAL = Path("/run/systemd/journal/socket")

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_FIRST_PASSED_FD = 3

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount_tmpfs(target: Path) -> None:
    _check(_libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", 0, b"mode=755"), f"mount on {target}")


def enter_namespace() -> None:
    """Move into mounts of our own; OSError where the kernel does not let us."""
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(_CLONE_NEWNS):
        _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWUSER), "neither root nor user namespaces to be had")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "making the mounts private")


def provide_journal(journal: socket.socket) -> None:
    """Bind `journal` to the journal's path, on an empty file system that only this process sees."""
    systemd = JOURNAL.parent.parent
    # Without the directory, cover its parent: creating it would change the machine outside.
    _mount_tmpfs(systemd if systemd.is_dir() else systemd.parent)
    JOURNAL.parent.mkdir(parents=True)
    journal.bind(str(JOURNAL))


def main(arguments: list[str]) -> int:
    """Prepare and become the launcher; returns only on failure."""
    listener, address, config_file = int(arguments[0]), arguments[2], arguments[3]
    journal = socket.socket(fileno=int(arguments[1]))
    try:
        if not JOURNAL.is_socket():
            enter_namespace()
            provide_journal(journal)
        journal.close()
        if listener == _FIRST_PASSED_FD:
            os.set_inheritable(listener, True)  # noqa: FBT003 - it takes no keyword
        else:
            os.dup2(listener, _FIRST_PASSED_FD)
            os.close(listener)
        environment = dict(
            os.environ, LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), DBUS_SESSION_BUS_ADDRESS=address
        )
        os.execvpe(LAUNCHER, [LAUNCHER, "--scope", "user", "--config-file", config_file], environment)
    except OSError as error:
        print(error.strerror or error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
