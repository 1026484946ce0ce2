"""kdbusd's start, as far as it goes without a domain: what is wrong is said, and nothing is made."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kdbus_core.daemon.loop import new_event_loop
from kdbus_core.daemon.run import main


@pytest.fixture
def closed_fd() -> int:
    """The number of a descriptor that is not open."""
    fd = os.dup(0)
    os.close(fd)
    return fd


def test_a_descriptor_that_is_not_open_is_told(
    closed_fd: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--directory={tmp_path}/k", f"--print-ready-fd={closed_fd}"]) == 1
    assert capsys.readouterr().err == f"kdbusd: descriptor {closed_fd} is not open\n"
    assert not (tmp_path / "k").exists()


def test_a_configuration_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--directory={tmp_path}/k", f"--config={tmp_path}/none.toml"]) == 1
    expected = f"kdbusd: {tmp_path}/none.toml: cannot be read: No such file or directory\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "k").exists()


def test_without_uvloop_there_is_no_loop_of_that_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(ImportError):
        new_event_loop("uvloop")
    new_event_loop("asyncio").close()
