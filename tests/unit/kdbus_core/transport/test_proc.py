"""What /proc says: its formats, and that what is read is of one process only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.children import Child, open_fds

from kdbus_core.metadata import Caps
from kdbus_core.transport import proc as proc_module
from kdbus_core.transport.proc import (
    ProcessDirectory,
    caps_of,
    is_alive,
    last_cap,
    parse_control_group,
    parse_status,
    shows_own_pids,
)

STATUS = b"""Name:\todd\\nname: Uid:
Umask:\t0022
State:\tS (sleeping)
Tgid:\t4711
Pid:\t4711
PPid:\t42
Uid:\t1\t2\t3\t4
Gid:\t5\t6\t7\t8
FDSize:\t64
Groups:\t9 10 1000\x20
NStgid:\t4711\t7\t1
Threads:\t3
CapInh:\t0000000000000001
CapPrm:\t000001ffffffffff
CapEff:\t0000000000008000
CapBnd:\t000001fffffffff0
CapAmb:\t0000000000000000
"""


def without(line: bytes) -> bytes:
    return b"".join(one for one in STATUS.splitlines(keepends=True) if not one.startswith(line))


def test_a_status_is_parsed() -> None:
    status = parse_status(STATUS)
    assert status is not None
    assert (status.uids, status.gids, status.groups) == ((1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 1000))
    assert (status.ppid, status.pids, status.threads) == (42, (4711, 7, 1), 3)
    assert (status.inheritable, status.permitted, status.effective, status.bounding) == (
        1,
        0x1FFFFFFFFFF,
        0x8000,
        0x1FFFFFFFFF0,
    )


def test_a_kernel_without_pid_namespaces_has_one_pid() -> None:
    status = parse_status(without(b"NStgid"))
    assert status is not None
    assert status.pids == (4711,)


@pytest.mark.parametrize("line", [b"Uid", b"Gid", b"Groups", b"PPid", b"Threads", b"CapEff", b"CapBnd"])
def test_a_status_that_lacks_something_is_none(line: bytes) -> None:
    assert parse_status(without(line)) is None


@pytest.mark.parametrize(
    "status", [b"", b"garbage", STATUS.replace(b"Uid:\t1\t2\t3\t4", b"Uid:\t1"), STATUS.replace(b"42", b"x")]
)
def test_what_is_no_status_is_none(status: bytes) -> None:
    assert parse_status(status) is None


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (b"0::/user.slice/one.scope\n", b"/user.slice/one.scope"),
        (
            b"12:cpu,cpuacct:/c\n1:name=systemd:/system.slice/one.service\n0::/u\n",
            b"/system.slice/one.service",
        ),
        (b"3:net_cls:/\n0::/u\n", b"/u"),
        (b"5:memory:/five\n2:cpu:/two\n10:pids:/ten\n", b"/two"),
        (b"0::/with:colon\n", b"/with:colon"),
        (b"", None),
        (b"garbage\n", None),
    ],
)
def test_of_many_hierarchies_one_path_is_told(content: bytes, path: bytes | None) -> None:
    assert parse_control_group(content) == path


def test_without_the_number_of_the_last_capability_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    status = parse_status(STATUS)
    assert status is not None
    monkeypatch.setattr(proc_module, "last_cap", lambda: 40)
    assert caps_of(status) == Caps(40, 1, 0x1FFFFFFFFFF, 0x8000, 0x1FFFFFFFFF0)
    monkeypatch.setattr(proc_module, "last_cap", lambda: None)
    assert caps_of(status) is None


def test_the_last_capability_is_the_kernel_s() -> None:
    assert last_cap() == int(Path("/proc/sys/kernel/cap_last_cap").read_text())


def test_this_proc_is_our_own() -> None:
    assert shows_own_pids()


def test_a_directory_stays_with_its_process_when_that_has_gone() -> None:
    before = open_fds()
    with Child() as child, ProcessDirectory(child.pid) as directory:
        assert directory.status() is not None
        child.kill()
        assert directory.command_line() is None
        assert directory.link("exe") is None
        child.reap()
        assert (directory.status(), directory.name(), directory.identity("root")) == (None, None, None)
        assert (directory.control_group(), directory.label(), directory.audit()) == (None, None, None)
    assert open_fds() == before


def test_nobody_has_a_directory_who_is_not_there() -> None:
    with Child() as child:
        pass
    with pytest.raises(OSError, match=str(child.pid)):
        ProcessDirectory(child.pid)


def test_a_process_is_alive_until_it_has_ended_even_if_nobody_reaps_it() -> None:
    with Child() as child:
        pidfd = os.pidfd_open(child.pid)
        assert is_alive(pidfd)
        child.kill()
        assert not is_alive(pidfd)
        child.reap()
        assert not is_alive(pidfd)
    os.close(pidfd)


def test_a_command_line_keeps_its_first_page() -> None:
    with Child("x" * 9000) as child, ProcessDirectory(child.pid) as directory:
        child.run("")  # it has begun by now
        line = directory.command_line()
    assert line is not None
    assert len(line) == proc_module.PAGE_SIZE


def test_a_file_is_read_to_its_end_or_its_limit(tmp_path: Path) -> None:
    data = os.urandom(200_000)
    (tmp_path / "file").write_bytes(data)
    directory = object.__new__(ProcessDirectory)
    directory._fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    with directory:
        assert directory.read("file") == data
        assert directory.read("file", 100_000) == data[:100_000]
        assert directory.read("missing") is None
