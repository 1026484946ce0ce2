"""A `kdbusd` that runs as an ordinary user tells its clients, whoever they are, who the others are.

It may not look into the processes of other users, nor into those of its own user that are not dumpable (as a
process is that was root and is no longer). Broker and clients are children that load what they need as root
and become somebody else then, because that somebody may not be able to read it.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.bus import REPOSITORY
from support.children import Child, needs_root

pytestmark = needs_root

BROKER, OTHER = 12345, 23456
BUS = f"{BROKER}-test"
CONFIG = f"""
[[bus]]
name = "{BUS}"
access = "world"

[[bus.policy]]
name = "org.example.*"
own = ["world"]
"""
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4


class Broker:
    """A child that has forked a kdbusd, which ends with it."""

    def __init__(self, home: Path, child: Child) -> None:
        self.node = home / "k" / BUS / "bus"
        config = home / "kdbusd.toml"
        config.write_text(CONFIG)
        os.chown(home, BROKER, BROKER)
        child.run(f"sys.path.insert(0, {str(REPOSITORY)!r})")
        child.run("import shutil\nfrom kdbus_core.daemon.run import main")  # argparse loads it late
        child.become(BROKER, BROKER)
        child.run("ready, is_ready = os.pipe()")
        arguments = [f"--directory={home / 'k'}", f"--config={config}"]
        child.run(
            "def host():\n"
            f"    libc.prctl({PR_SET_PDEATHSIG}, {int(signal.SIGTERM)})\n"
            f"    libc.prctl({PR_SET_DUMPABLE}, 1)\n"  # as one that was started as this user
            "    try:\n"
            f"        main([*{arguments!r}, f'--print-ready-fd={{is_ready}}'])\n"
            "    except BaseException:\n"
            "        traceback.print_exc()\n"
            "    os._exit(0)\n"
            "daemon = fork_and_wait(host)\n"
            "os.close(is_ready)"
        )
        self._child = child
        assert child.ask("os.read(ready, 4096)"), "it has ended before it was ready"

    def stop(self) -> None:
        self._child.run(f"os.kill(daemon, {int(signal.SIGTERM)}); os.waitpid(daemon, 0)")


class Client:
    """A connection of a process of its own."""

    def __init__(self, broker: Broker, child: Child, uid: int, *, is_dumpable: bool) -> None:
        self.uid = uid
        self._child = child
        child.run(f"sys.path.insert(0, {str(REPOSITORY)!r})")
        child.run("from kdbus_core.transport.client import open_node")
        child.become(uid, uid, (7,))
        if is_dumpable:
            child.run(f"libc.prctl({PR_SET_DUMPABLE}, 1)")
        child.run(
            f"one = open_node({str(broker.node)!r}).hello(pool_size=1 << 20, attach_recv=(1 << 64) - 1)"
        )
        self.id: int = child.ask("one.id")
        child.run("one.name_acquire(f'org.example.Client{one.id}')")  # so that others may talk to it

    def told_of(self, other: Client) -> dict[str, Any]:
        """What CONN_INFO tells."""
        self._child.run(f"found = one.info({other.id}).metadata")
        return self._found()

    def told_by_message_of(self, other: Client) -> dict[str, Any]:
        """What comes along with a message."""
        other._child.run(f"one.send(b'hello', destination={self.id})")
        self._child.run("assert one.wait(30)\nwith one.receive() as message: found = message.metadata")
        return self._found()

    def _found(self) -> dict[str, Any]:
        told = "('creds', 'pids', 'auxgroups', 'pid_comm', 'caps')"
        found: dict[str, Any] = self._child.ask(
            "{name: tuple(value) if isinstance(value, tuple) else value"
            f" for name in {told} if (value := getattr(found, name)) is not None}}"
        )
        return found

    def expected(self) -> dict[str, Any]:
        return {
            "creds": (self.uid,) * 8,
            "pids": (self._child.pid, self._child.pid, os.getpid()),
            "auxgroups": (7,),
            "pid_comm": self._child.ask("open('/proc/self/comm', 'rb').read()[:-1]"),
        }


@pytest.fixture
def owned() -> Iterator[ExitStack]:
    with ExitStack() as owned:
        yield owned


@pytest.fixture
def broker(owned: ExitStack) -> Broker:
    # Where everybody may go, which a directory of pytest's is not.
    home = Path(owned.enter_context(tempfile.TemporaryDirectory(prefix="kd-")))
    home.chmod(0o755)
    broker = Broker(home, owned.enter_context(Child()))
    owned.callback(broker.stop)
    return broker


@pytest.mark.parametrize("is_dumpable", [True, False], ids=["dumpable", "not dumpable"])
@pytest.mark.parametrize("uids", [(BROKER, OTHER), (BROKER, BROKER), (OTHER, OTHER + 1)])
def test_clients_are_told_who_the_others_are(
    broker: Broker, owned: ExitStack, uids: tuple[int, int], *, is_dumpable: bool
) -> None:
    one, other = (Client(broker, owned.enter_context(Child()), uid, is_dumpable=is_dumpable) for uid in uids)
    for reader, subject in ((one, other), (other, one)):
        for told in (reader.told_of(subject), reader.told_by_message_of(subject)):
            is_traceable = is_dumpable and uids == (BROKER, BROKER)
            assert ("caps" in told) is is_traceable, "where capabilities count is told if it is known"
            told.pop("caps", None)
            assert told == subject.expected()
