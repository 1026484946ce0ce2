"""kdbusd's command line, and the directory it and kdbusctl take when nobody names one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import busproxy
import kdbus_core
from kdbus_core.daemon.directory import default_directory
from kdbus_core.daemon.options import Options, parse_options

REPOSITORY = Path(__file__).resolve().parents[4]
RUNTIME = {"XDG_RUNTIME_DIR": "/run/user/7"}


@pytest.mark.parametrize(
    ("environ", "uid", "directory"),
    [
        ({}, 0, "/run/kdbus"),
        (RUNTIME, 0, "/run/kdbus"),
        (RUNTIME, 7, "/run/user/7/kdbus"),
        ({**RUNTIME, "KDBUS_DIRECTORY": "/x"}, 7, "/x"),
        ({"KDBUS_DIRECTORY": "/x"}, 0, "/x"),
        ({"KDBUS_DIRECTORY": ""}, 0, "/run/kdbus"),
    ],
)
def test_the_directory_follows_from_who_runs_it(environ: dict[str, str], uid: int, directory: str) -> None:
    assert default_directory(environ, uid) == Path(directory)


def test_a_user_without_a_runtime_directory_has_no_default() -> None:
    assert default_directory({}, 7) is None


def test_nothing_has_to_be_said() -> None:
    assert parse_options([], {}, 0) == Options(Path("/run/kdbus"), None, None, "asyncio")


def test_everything_can_be_said() -> None:
    words = ["--directory=/d", "--config", "/c", "--print-ready-fd=5", "--loop=uvloop"]
    assert parse_options(words, {}, 7) == Options(Path("/d"), Path("/c"), 5, "uvloop")


def test_paths_do_not_depend_on_where_the_daemon_goes() -> None:
    options = parse_options(["--directory=d", "--config=c"], {}, 7)
    assert (options.directory, options.config) == (Path.cwd() / "d", Path.cwd() / "c")


@pytest.mark.parametrize(
    "words",
    [["--loop=trio"], ["--print-ready-fd=-1"], ["--print-ready-fd=x"], ["--dir=/x"], ["more"], ["--config"]],
)
def test_a_wrong_command_line_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(words, RUNTIME, 7)
    assert ended.value.code == 2
    assert "usage: kdbusd" in capsys.readouterr().err


def test_no_directory_at_all_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options([], {}, 7)
    assert ended.value.code == 2
    assert "no --directory given" in capsys.readouterr().err


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(["--version"], {}, 0)
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"kdbusd {kdbus_core.__version__}\n"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert kdbus_core.__version__ == busproxy.__version__ == project["version"]
