"""What the kernel knows about processes: CPU time in nanoseconds, resident memory, children.

CPU time comes from the process's CPU-time clock (clock_getcpuclockid(3)): it counts user and system time of
all threads, ended ones included, to the nanosecond, and it can be read from outside. `/proc/PID/stat`
counts in ticks of 10 ms, too coarse for runs of half a second.
"""

import ctypes
import os
import signal
import time
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def cpu_ns(pid: int) -> int:
    """CPU time the process has used; ProcessLookupError when it is gone."""
    clock = ctypes.c_int()
    error = _libc.clock_getcpuclockid(ctypes.c_int(pid), ctypes.byref(clock))
    if error:
        raise ProcessLookupError(error, os.strerror(error), str(pid))
    try:
        return time.clock_gettime_ns(clock.value)
    except OSError as failure:
        raise ProcessLookupError(failure.errno, failure.strerror, str(pid)) from failure


def rss_kib(pid: int) -> int:
    """Resident memory of the process in KiB; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`, in the order of their ids."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except OSError:
            continue
        # The command, in parentheses, may hold anything: count from its end.
        if int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(int(entry.name))
    return sorted(found)


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent ends; survives exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
