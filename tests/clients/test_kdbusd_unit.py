"""The delivered unit of `kdbusd`: systemd takes it, and what it leaves of root's power is enough.

No service manager runs here.  Of its promises those are kept by hand that others could do without in silence:
the capabilities.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.bus import REPOSITORY
from support.children import Child, needs_root
from support.kdbusd import Kdbusd

from kdbus_core.daemon.options import parse_options
from kdbus_core.transport.client import Metadata, open_node

UNIT = REPOSITORY / "systemd" / "kdbusd.service"
OTHER_UID, OTHER_GID = 4242, 4343

CONFIG = f"""
[[bus]]
name = "{{uid}}-test"
access = "world"

[[bus]]
name = "{{uid}}-theirs"
owner = {{ user = {OTHER_UID}, group = {OTHER_GID} }}
access = "group"
[[bus.endpoint]]
name = "{{uid}}-narrow"
"""


def setting(name: str) -> str:
    """The value of a setting that is there once."""
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert isinstance(value, str)
    return value


def test_its_command_line_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    program, *arguments = shlex.split(setting("ExecStart"))
    options = parse_options(arguments, {}, 0)
    assert program == "/usr/bin/kdbusd"
    assert options.directory == Path("/run") / setting("RuntimeDirectory")
    assert options.config == Path("/etc/kdbusd.toml")
    assert capsys.readouterr().err == ""


@pytest.mark.program("systemd-analyze")
def test_systemd_has_nothing_to_say_about_it(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/kdbusd", "/bin/true"))  # it may not be installed
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]
    assert (done.returncode, said) == (0, [])


@pytest.fixture
def confined() -> Iterator[Kdbusd]:
    """A daemon of root with nothing but the capabilities of the unit."""
    kept = [word.removeprefix("CAP_").lower() for word in setting("CapabilityBoundingSet").split()]
    bounds = ",".join(["-all", *(f"+{word}" for word in kept)])
    wrapper = ("setpriv", "--inh-caps=-all", f"--bounding-set={bounds}", "--no-new-privs", "--")
    daemon = Kdbusd(CONFIG, wrapper=wrapper)
    try:
        yield daemon
        daemon.stop()
    finally:
        daemon.discard()


@needs_root
@pytest.mark.program("setpriv")
def test_with_the_units_capabilities_nodes_belong_to_whoever_owns_them(confined: Kdbusd) -> None:
    def found(*words: str) -> tuple[int, int, int]:
        status = confined.directory.joinpath(*words).stat()
        return status.st_uid, status.st_gid, status.st_mode & 0o777

    theirs = f"{OTHER_UID}-theirs"
    assert found("0-test", "bus") == (0, 0, 0o666)
    assert found(theirs, "bus") == (OTHER_UID, OTHER_GID, 0o660)
    assert found(theirs, f"ep.{OTHER_UID}-narrow") == (OTHER_UID, OTHER_GID, 0o600)
    confined.reload(CONFIG.replace("narrow", "wide"))
    assert found(theirs, f"ep.{OTHER_UID}-wide") == (OTHER_UID, OTHER_GID, 0o600)
    assert not (confined.directory / theirs / f"ep.{OTHER_UID}-narrow").exists()


@needs_root
@pytest.mark.program("setpriv")
def test_with_the_units_capabilities_all_is_known_of_other_users(confined: Kdbusd) -> None:
    with ExitStack() as stack:
        handle = stack.enter_context(open_node(confined.node("0-test")))
        reader = stack.enter_context(handle.hello(pool_size=1 << 20))
        child = stack.enter_context(Child())
        child.run(f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})")
        child.run("from kdbus_core.transport.client import open_node")
        child.become(OTHER_UID, OTHER_GID, (7,))
        child.run(f"one = open_node({str(confined.node('0-test'))!r}).hello(pool_size=1 << 20)")
        known: Metadata = reader.info(child.ask("one.id")).metadata
        assert known.creds is not None
        assert (known.creds.uid, known.creds.gid, known.auxgroups) == (OTHER_UID, OTHER_GID, (7,))
        assert known.exe == child.ask("os.readlink(b'/proc/self/exe')")
        assert known.caps is not None
        assert known.caps.effective == 0
        assert known.cgroup
